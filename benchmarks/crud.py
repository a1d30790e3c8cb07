"""What the manager costs, as ratios against sqlite3 written by hand that does the same in the same run.

    python benchmarks/crud.py                     # four files, one thread, durability="normal"; and full with threads
    python benchmarks/crud.py --rounds 15 --json

Each round measures both sides one after the other, and the ratio of that round counts, so that a machine whose speed
drifts changes both. Printed: the medians, and the median ratio (hand-written time / shardlite's time: 1 is as fast).
The rivals (DiskCache's FanoutCache, SQLAlchemy's horizontal sharding) are shown where they are installed:
pip install 'shardlite[bench]'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmh3

warnings.simplefilter("ignore")

from shardlite import ShardManager  # noqa: E402  # the warning of an old SQLite comes with the import

SHARDS = 4
ROWS = 3_000
DDL = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)"
Timed = Callable[[int], float]


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class ByHand:
    """Four files, routed by hand: what an application would write itself."""

    def __init__(self, directory: Path, synchronous: str = "NORMAL", files: int = SHARDS) -> None:
        directory.mkdir()
        self.files = []
        for number in range(files):
            conn = sqlite3.connect(directory / f"{number}.db", isolation_level=None, check_same_thread=False)
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute(f"PRAGMA synchronous = {synchronous}")
            conn.execute(DDL)
            self.files.append(conn)

    def shard(self, key: int) -> sqlite3.Connection:
        return self.files[mmh3.hash(key.to_bytes(8, "little"), 0, False) % SHARDS]

    def insert(self, base: int) -> float:
        def work() -> None:
            for key in range(base, base + ROWS):
                self.shard(key).execute("INSERT INTO users (id, name, age) VALUES (?, ?, ?)", (key, "name", 30))

        return seconds(work)

    def get(self, base: int) -> float:
        def work() -> None:
            for key in range(base, base + ROWS):
                self.shard(key).execute("SELECT * FROM users WHERE id = ?", (key,)).fetchone()

        return seconds(work)

    def insert_many(self, base: int) -> float:
        rows = [{"id": key, "name": "name", "age": 30} for key in range(base, base + 4 * ROWS)]

        def work() -> None:
            buckets: list[list[tuple[Any, ...]]] = [[] for _ in range(SHARDS)]
            for row in rows:
                key = row["id"]
                slot = mmh3.hash(key.to_bytes(8, "little"), 0, False) % SHARDS
                buckets[slot].append((key, row["name"], row["age"]))
            for conn, bucket in zip(self.files, buckets, strict=True):
                conn.execute("BEGIN IMMEDIATE")
                conn.executemany("INSERT INTO users (id, name, age) VALUES (?, ?, ?)", bucket)
            for conn in self.files:
                conn.execute("COMMIT")

        return seconds(work)

    def close(self) -> None:
        for conn in self.files:
            conn.close()


class Ours:
    """The same through a ShardManager."""

    def __init__(self, directory: Path) -> None:
        self.manager = ShardManager(num_shards=SHARDS, db_dir=directory, durability="normal")
        self.manager.create_table(DDL)
        self.pool = self.manager.pool(0)

    def insert(self, base: int) -> float:
        insert = self.manager.insert

        def work() -> None:
            for key in range(base, base + ROWS):
                insert("users", {"name": "name", "age": 30}, key)

        return seconds(work)

    def get(self, base: int) -> float:
        get = self.manager.get

        def work() -> None:
            for key in range(base, base + ROWS):
                get("users", key)

        return seconds(work)

    def insert_many(self, base: int) -> float:
        rows = [{"id": key, "name": "name", "age": 30} for key in range(base, base + 4 * ROWS)]
        return seconds(lambda: self.manager.insert_many("users", rows))

    def borrow(self, _base: int) -> float:
        pool = self.pool

        def work() -> None:
            for _ in range(ROWS):
                pool.return_connection(pool.get_connection())

        return seconds(work)

    def close(self) -> None:
        self.manager.shutdown()


def compare(pairs: dict[str, tuple[Timed, Timed, float | None, int]], rounds: int) -> list[dict[str, Any]]:
    """Measure pairs (by hand, ours, goal for the ratio, rows in a round) in turn; the first round warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for number in range(rounds + 1):
        base = number * 10 * ROWS
        for name, (theirs, ours, _, rows) in pairs.items():
            pair = (theirs(base) / rows, ours(base) / rows)
            if number:
                found[name].append(pair)
    return [
        {
            "what": name,
            "by_hand_us": statistics.median(a for a, _ in figures) * 1e6,
            "shardlite_us": statistics.median(b for _, b in figures) * 1e6,
            "ratio": statistics.median(a / b for a, b in figures),
            "goal": pairs[name][2],
        }
        for name, figures in found.items()
    ]


def measure_calls(directory: Path, rounds: int) -> list[dict[str, Any]]:
    """insert, get, insert_many, and a connection's way out and back, beside the same by hand."""
    by_hand, ours = ByHand(directory / "hand"), Ours(directory / "ours")
    try:
        return compare(
            {
                "insert(table, row, key)": (by_hand.insert, ours.insert, 0.70, ROWS),
                "get(table, key)": (by_hand.get, ours.get, 0.55, ROWS),
                "insert_many(table, rows)": (lambda b: by_hand.insert_many(b + ROWS),
                                             lambda b: ours.insert_many(b + ROWS), 0.75, 4 * ROWS),
                "pool: acquire + release, beside one point select": (by_hand.get, ours.borrow, 2.0, ROWS),
            },
            rounds,
        )  # fmt: skip
    finally:
        by_hand.close()
        ours.close()


def measure_threads(directory: Path, rounds: int, threads: int = 8, each: int = 150) -> list[dict[str, Any]]:
    """Autocommit inserts with every commit synced: eight threads on one file by hand, and on four shards."""
    by_hand = ByHand(directory / "one", "FULL", files=1)
    by_hand.close()
    manager = ShardManager(num_shards=SHARDS, db_dir=directory / "four", durability="full")
    manager.create_table(DDL)
    path = directory / "one" / "0.db"

    def run(work: Callable[[int], None]) -> float:
        crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]

        def together() -> None:
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()

        return seconds(together)

    def one_file(base: int) -> float:
        def work(number: int) -> None:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as conn:
                conn.execute("PRAGMA synchronous = FULL")
                for key in range(base + number * each, base + (number + 1) * each):
                    conn.execute("INSERT INTO users (id, name, age) VALUES (?, ?, ?)", (key, "name", 30))

        return run(work)

    def four_shards(base: int) -> float:
        def work(number: int) -> None:
            for key in range(base + number * each, base + (number + 1) * each):
                manager.insert("users", {"name": "name", "age": 30}, key)

        return run(work)

    try:
        name = f'insert, durability="full", {threads} threads: four shards beside one file'
        return compare({name: (one_file, four_shards, 2.0, threads * each)}, rounds)
    finally:
        manager.shutdown()


def measure_rivals(directory: Path, rounds: int) -> list[dict[str, Any]]:
    """DiskCache's FanoutCache (set, get) and SQLAlchemy's horizontal sharding (insert, get) beside the same by hand."""
    by_hand = ByHand(directory / "rivals")
    found: list[dict[str, Any]] = []
    try:
        with contextlib.suppress(ImportError), disk_cache(directory / "cache") as (put, read):
            found += compare(
                {
                    "DiskCache FanoutCache: set": (by_hand.insert, put, None, ROWS),
                    "DiskCache FanoutCache: get": (by_hand.get, read, None, ROWS),
                },
                rounds,
            )
        with contextlib.suppress(ImportError), sqlalchemy_shards(directory / "alchemy") as (put, read):
            found += compare(
                {
                    "SQLAlchemy horizontal sharding: insert": (
                        lambda b: by_hand.insert(b + 5 * ROWS), put, None, ROWS),
                    "SQLAlchemy horizontal sharding: get": (
                        lambda b: by_hand.get(b + 5 * ROWS), read, None, ROWS),
                },
                max(1, rounds // 3),
            )  # fmt: skip
    finally:
        by_hand.close()
    return found


@contextlib.contextmanager
def disk_cache(directory: Path) -> Iterator[tuple[Timed, Timed]]:
    """Four shards, as it comes: synchronous=NORMAL, WAL."""
    from diskcache import FanoutCache

    cache = FanoutCache(str(directory), shards=SHARDS)
    try:

        def put(base: int) -> float:
            def work() -> None:
                for key in range(base, base + ROWS):
                    cache.set(key, ("name", 30))

            return seconds(work)

        def read(base: int) -> float:
            def work() -> None:
                for key in range(base, base + ROWS):
                    cache.get(key)

            return seconds(work)

        yield put, read
    finally:
        cache.close()


@contextlib.contextmanager
def sqlalchemy_shards(directory: Path) -> Iterator[tuple[Timed, Timed]]:
    """One session per call, as a request would have; WAL and synchronous=NORMAL as the others."""
    from sqlalchemy import Column, Integer, String, create_engine, event
    from sqlalchemy.ext.horizontal_shard import ShardedSession
    from sqlalchemy.orm import DeclarativeBase

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id = Column(Integer, primary_key=True)
        name = Column(String)
        age = Column(Integer)

    directory.mkdir()
    engines = {}
    for number in range(SHARDS):
        engine = create_engine(f"sqlite:///{directory / str(number)}.db")

        @event.listens_for(engine, "connect")
        def prepare(conn: Any, _record: Any) -> None:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = NORMAL")

        Base.metadata.create_all(engine)
        engines[str(number)] = engine

    def shard_of(key: int) -> str:
        return str(mmh3.hash(key.to_bytes(8, "little"), 0, False) % SHARDS)

    def session() -> Any:
        return ShardedSession(
            shards=engines,
            shard_chooser=lambda mapper, instance, clause=None: shard_of(instance.id),
            identity_chooser=lambda mapper, key, **_: [shard_of(key[0])],
            execute_chooser=lambda context: list(engines),
        )

    def put(base: int) -> float:
        def work() -> None:
            for key in range(base, base + ROWS // 10):
                with session() as one:
                    one.add(User(id=key, name="name", age=30))
                    one.commit()

        return seconds(work) * 10

    def read(base: int) -> float:
        def work() -> None:
            for key in range(base, base + ROWS // 10):
                with session() as one:
                    one.get(User, key)

        return seconds(work) * 10

    try:
        yield put, read
    finally:
        for engine in engines.values():
            engine.dispose()


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    width = max(len(row["what"]) for row in rows)
    print(f"{'':{width}}  {'by hand':>9}  {'this':>9}  {'ratio':>6}  {'goal':>6}")
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        print(
            f"{row['what']:{width}}  {row['by_hand_us']:6.1f} us  {row['shardlite_us']:6.1f} us  "
            f"{row['ratio']:6.2f}  {goal:>6}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["calls", "threads", "rivals"])
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="shardlite-bench-"))
    parts = {"calls": measure_calls, "threads": measure_threads, "rivals": measure_rivals}
    rows: list[dict[str, Any]] = []
    try:
        for name, part in parts.items():
            if options.only in (None, name):
                rows += part(directory, options.rounds)
    finally:
        shutil.rmtree(directory)
    if options.json:
        print(json.dumps({"sqlite": sqlite3.sqlite_version, "cpus": os.cpu_count(), "rows": rows}, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
