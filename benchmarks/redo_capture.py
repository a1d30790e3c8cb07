"""What the redo of rows costs, per row: capturing keys, reading images, writing them. Beside plain SQLite, in one run.

python benchmarks/redo_capture.py [--rows N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.transaction.capture import capturing
from shardlite.transaction.definition import Definitions
from shardlite.transaction.images import prepare_replay, read_images, write_images
from shardlite.transaction.returning import with_returning
from shardlite.transaction.touched import Touched

INSERT = "INSERT INTO t(a, b, c) VALUES (?, ?, ?)"


def connect(ddl: str) -> Connection:
    conn = sqlite3.connect(":memory:", factory=Connection, isolation_level=None)
    conn.run(ddl)
    return conn


@contextmanager
def rolled_back(conn: Connection) -> Iterator[None]:
    conn.run("BEGIN IMMEDIATE")
    yield
    conn.run("ROLLBACK")


def report(name: str, action: Callable[[], float], per: int, unit: str = "a row", tries: int = 7) -> None:
    """Print the median of several measurements, in microseconds."""
    print(f"{name:60} {statistics.median(action() for _ in range(tries)) / per * 1e6:9.2f} us {unit}")


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bulk(conn: Connection, rows: list[tuple[object, ...]], *, capture: bool) -> float:
    with rolled_back(conn):
        if not capture:
            return timed(lambda: conn.run_many(INSERT, rows))
        with capturing(conn, ["t"]):
            return timed(lambda: conn.run_many(INSERT, rows))


def undone(conn: Connection, sql: str) -> float:
    with rolled_back(conn):
        return timed(lambda: conn.run(sql).fetchall())


def one_row(conn: Connection, definitions: Definitions, *, capture: bool) -> float:
    def run() -> None:
        with rolled_back(conn):
            if capture:
                with capturing(conn, ["t"], definitions):
                    conn.run(INSERT, (1, 2, 3))
            else:
                conn.run(INSERT, (1, 2, 3))

    return timed(lambda: [run() for _ in range(100)])


def measure(count: int, ddl: str, title: str) -> None:
    print(f"{title}: {count:,} rows")
    rows: list[tuple[object, ...]] = [(f"name {i}", i, i * 1.5) for i in range(count)]
    with closing(connect(ddl)) as here, closing(connect(ddl)) as there:
        definitions = Definitions(here)
        table = definitions.table(here, "t")
        report("  INSERT", lambda: bulk(here, rows, capture=False), count)
        report("  INSERT, keys by TEMP triggers", lambda: bulk(here, rows, capture=True), count)
        report("  one-row transaction", lambda: one_row(here, definitions, capture=False), 100, "each")
        report(
            "  one-row transaction, triggers made and dropped",
            lambda: one_row(here, definitions, capture=True),
            100,
            "each",
        )
        select = "INSERT INTO t(a, b, c) SELECT a, b + 1000000, c FROM source"
        here.run("CREATE TEMP TABLE source(a, b, c)")
        here.run_many("INSERT INTO source VALUES (?, ?, ?)", rows)
        if not table.by_key:
            text = with_returning(select, table)
            report("  INSERT ... SELECT", lambda: undone(here, select), count)
            report("  INSERT ... SELECT, keys by RETURNING", lambda: undone(here, text), count)
        touched = Touched()
        here.run("BEGIN")
        with capturing(here, ["t"], definitions) as capture:
            here.run_many(INSERT, rows)
            report("  keys collected", lambda: timed(lambda: capture.collect(0, Touched())), count)
            capture.collect(0, touched)
        report("  images read", lambda: timed(lambda: read_images(here, touched.on(0), definitions)), count)
        section = read_images(here, touched.on(0), definitions)
        print(f"  {'bytes':58} {len(section) / count:9.1f}    a row")
        prepare_replay(there)

        def replayed() -> float:
            there.run("BEGIN")
            took = timed(lambda: write_images(there, section))
            there.run("ROLLBACK")
            return took

        report("  images written and compared", replayed, count, tries=3)


def main() -> None:
    """Measure a table with rowids, one with a unique index, and one WITHOUT ROWID."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    count = parser.parse_args().rows
    measure(count, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b INT, c REAL)", "rowids")
    measure(count, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b INT UNIQUE, c REAL)", "rowids, a unique column")
    measure(
        count,
        "CREATE TABLE t(a TEXT, b INT, c REAL, PRIMARY KEY (b, a)) WITHOUT ROWID",
        "WITHOUT ROWID, two key columns",
    )


if __name__ == "__main__":
    main()
