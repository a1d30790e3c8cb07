"""A table with every kind of column, and the plain connections that the differential tests split its rows over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from hypothesis import strategies as st

from shardlite.driver import sqlite3
from shardlite.router.keys import affinity_of
from shardlite.router.table import Column, Table, TableKind

COLUMNS = (
    ("id", "INTEGER", "BINARY"),
    ("i", "INT", "BINARY"),
    ("r", "REAL", "BINARY"),
    ("n", "NUMERIC", "BINARY"),
    ("t", "TEXT", "BINARY"),
    ("nc", "VARCHAR(20)", "NOCASE"),
    ("rt", "TEXT", "RTRIM"),
    ("b", "BLOB", "BINARY"),
    ("x", "", "BINARY"),
    ("order", "DATE", "BINARY"),
)
NAMES = tuple(name for name, _, _ in COLUMNS)


def make_table(name: str = "things", columns: Sequence[tuple[str, str, str]] = COLUMNS, **more: Any) -> Table:
    """Describe a table whose first column is the primary key."""
    made = tuple(
        Column(column, kind, affinity_of(kind), collation, False, None, int(not index), False)
        for index, (column, kind, collation) in enumerate(columns)
    )
    return Table(name, TableKind.SHARDED, made, (columns[0][0],), **more)


TABLE = make_table()
DDL = (
    "CREATE TABLE things ("
    + ", ".join(
        f'"{name}" {kind}{" PRIMARY KEY" if name == "id" else ""} COLLATE {collation}'
        for name, kind, collation in COLUMNS
    )
    + ")"
)

numbers = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**63 - 1, -(2**63), 2**62, -(2**62), 2**53 + 1, 2**32, -(2**32) - 1]),
    st.integers(-(2**63), 2**63 - 1),
)
reals = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.5, 1e16, 2.0**53, float("inf"), float("-inf")]),
    st.floats(-1e6, 1e6, allow_nan=False),
)
texts = st.one_of(
    st.sampled_from(["", "a", "A", "a ", "b", "B", "ä", "Ä", "12", " 12 ", "12abc", "1e2", "1.0", "+7", "-0", "now"]),
    st.sampled_from(["9223372036854775807", "9223372036854775808", "0x10", "1_0", ".5", "5.", "\t3\n", "inf", "'\""]),
    st.text(alphabet="abAB 19.eé", max_size=4),
)
blobs = st.sampled_from([b"", b"a", b"A", b"12", b"1e2", b"12x"])
values = st.one_of(st.none(), numbers, reals, texts, blobs)
rows = st.lists(st.tuples(*[values] * (len(COLUMNS) - 1)), max_size=14)


@contextmanager
def split_over(
    rows: Iterable[tuple[Any, ...]], shards: int
) -> Iterator[tuple[sqlite3.Connection, list[sqlite3.Connection]]]:
    """Give one connection with all rows and ``shards`` connections with a part each; rowids are equal."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(sqlite3.connect(":memory:", isolation_level=None))) for _ in range(shards + 1)
        ]
        for connection in connections:
            connection.execute(DDL)
        insert = f"INSERT INTO things VALUES ({', '.join('?' * len(COLUMNS))})"
        for rowid, row in enumerate(rows, start=1):
            connections[0].execute(insert, (rowid, *row))
            connections[1 + (rowid * 7 // 3) % shards].execute(insert, (rowid, *row))
        yield connections[0], connections[1:]
