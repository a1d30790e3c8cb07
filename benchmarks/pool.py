"""What the pool costs, as ratios against what it is there to serve: one point select of plain sqlite3 in the same run.

    python benchmarks/pool.py
    python benchmarks/pool.py --rounds 15 --json

Each round measures both sides one after the other, and the ratio of that round counts, so that a machine whose speed
drifts changes both. Printed: the medians per operation, and the median ratio (the operation's time / the point
select's time: 0.5 is half of a select). Beside it the same select through the pool, and the look at a connection that
nothing happened to, which each return takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

warnings.simplefilter("ignore")

from shardlite import ConnectionPool  # noqa: E402  # the warning of an old SQLite comes with the import

TIMES = 10_000
ROWS = 1_000
SELECT = "SELECT * FROM users WHERE id = ?"


def seconds_each(work: Callable[[], object]) -> float:
    """Return how long one of many calls takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / TIMES


@contextlib.contextmanager
def database() -> Iterator[tuple[sqlite3.Connection, ConnectionPool]]:
    """Make a file and give a plain connection and a pool to it."""
    directory = Path(tempfile.mkdtemp(prefix="shardlite-bench-"))
    try:
        pool = ConnectionPool(directory / "pool.db", durability="normal", isolation_level=None)
        with pool.get_connection_context() as conn:
            conn.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
            conn.executemany("INSERT INTO users VALUES (?, 'name', 30)", [(key,) for key in range(ROWS)])
        # A file of its own: another SQLite library than the pool's on the same one would be unsafe.
        raw = sqlite3.connect(directory / "raw.db", isolation_level=None)
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
        raw.executemany("INSERT INTO users VALUES (?, 'name', 30)", [(key,) for key in range(ROWS)])
        yield raw, pool
        raw.close()
        pool.close_all()
    finally:
        shutil.rmtree(directory)


def operations(raw: sqlite3.Connection, pool: ConnectionPool) -> dict[str, Callable[[], float]]:
    """Return what is measured, each giving the seconds of one."""

    def loop() -> None:
        for _ in range(TIMES):
            pass

    def point_select() -> None:
        for key in range(TIMES):
            raw.execute(SELECT, (key % ROWS,)).fetchone()

    def get_return() -> None:
        for _ in range(TIMES):
            pool.return_connection(pool.get_connection())

    def acquire_release() -> None:
        for _ in range(TIMES):
            pool.release(pool.acquire())

    def context() -> None:
        for _ in range(TIMES):
            with pool.get_connection_context():
                pass

    def fetch_row() -> None:
        with pool.get_connection_context() as conn:
            for key in range(TIMES):
                conn.fetch_row(SELECT, (key % ROWS,))

    def execute() -> None:
        with pool.get_connection_context() as conn:
            for key in range(TIMES):
                conn.execute(SELECT, (key % ROWS,)).fetchone()

    def express_row() -> None:
        pool.release(pool.acquire())
        for key in range(TIMES):
            pool.express_row(SELECT, (key % ROWS,))

    def health_check() -> None:  # the expression that ``release`` evaluates
        with pool.get_connection_context() as conn:
            for _ in range(TIMES):
                _ = conn.unclean or conn.in_transaction or conn.total_changes != conn.changes_seen

    works = (point_select, get_return, acquire_release, context, fetch_row, execute, express_row)
    timed = {work.__name__: (lambda work=work: seconds_each(work)) for work in works}  # type: ignore[misc]  # a default has no type
    timed["health_check"] = lambda: seconds_each(health_check) - seconds_each(loop)
    return timed


GOALS = {"get_return": 0.5, "acquire_release": 0.5}
"""Ratios to stay under."""
HEALTH_CHECK_S = 0.3e-6


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return for each operation the median microseconds and the median ratio to a raw point select."""
    with database() as (raw, pool):
        works = operations(raw, pool)
        base = works.pop("point_select")
        base()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                times[name].append((work(), base()))
    figures = {
        name: {
            "us": statistics.median(mine for mine, _ in pairs) * 1e6,
            "raw_us": statistics.median(raw_s for _, raw_s in pairs) * 1e6,
            "ratio": statistics.median(mine / raw_s for mine, raw_s in pairs),
        }
        for name, pairs in times.items()
    }
    figures["health_check"]["us"] = min(mine for mine, _ in times["health_check"]) * 1e6  # too short for a median
    for name, goal in GOALS.items():
        figures[name]["goal"] = goal
    figures["health_check"]["goal_us"] = HEALTH_CHECK_S * 1e6
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'operation':<18}{'us each':>9}{'raw select us':>15}{'ratio':>8}  goal")
    for name, each in figures.items():
        goal = f"< {each['goal']:.2f}" if "goal" in each else f"< {each['goal_us']:.1f} us" if "goal_us" in each else ""
        print(f"{name:<18}{each['us']:>9.2f}{each['raw_us']:>15.2f}{each['ratio']:>8.2f}  {goal}")


if __name__ == "__main__":
    main()
