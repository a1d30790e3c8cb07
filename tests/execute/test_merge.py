"""The merge of sorted shards, against one connection's ORDER BY."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardlite.driver import sqlite3
from shardlite.execute.merge import merge_rows
from shardlite.router.keys import affinity_of
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.order import compile_order

COLUMNS = (("id", "INTEGER", "BINARY"), ("x", "", "BINARY"), ("nc", "TEXT", "NOCASE"), ("rt", "", "RTRIM"))
TABLE = Table(
    "things",
    TableKind.SHARDED,
    tuple(
        Column(name, kind, affinity_of(kind), collation, False, None, int(name == "id"), False)
        for name, kind, collation in COLUMNS
    ),
    ("id",),
)
values = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.sampled_from([2**63 - 1, 2**53 + 1, -(2**63), 2.0**53, 1.0, 1.5, float("inf"), float("-inf"), -0.0]),
    st.sampled_from(["", "a", "A", "b", "B", "a ", "[", "é", "É", "Z", "z", "\U0001f600", "\uffff", "a\0b"]),
    st.sampled_from([b"", b"a", b"\xff", b"A"]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.tuples(values, values, values), max_size=20),
    order=st.lists(st.sampled_from(["x", "-x", "nc", "-nc", "rt", "-rt", "id", "-id"]), max_size=3),
    shards=st.sampled_from([1, 3, 8]),
    limit=st.sampled_from([None, -1, 0, 1, 5]),
    offset=st.sampled_from([None, -1, 0, 3, 50]),
)
def test_merged_shards_come_as_one_file_orders_them(
    rows: list[Any], order: list[str], shards: int, limit: int | None, offset: int | None
) -> None:
    spec = compile_order(TABLE, order)
    ddl = "CREATE TABLE things (id INTEGER PRIMARY KEY, x, nc TEXT COLLATE NOCASE, rt COLLATE RTRIM)"
    with ExitStack() as stack:
        plain, *parts = [stack.enter_context(closing(sqlite3.connect(":memory:"))) for _ in range(shards + 1)]
        for connection in (plain, *parts):
            connection.execute(ddl)
        for rowid, row in enumerate(rows):
            for connection in (plain, parts[rowid * 5 % 7 % shards]):
                connection.execute("INSERT INTO things VALUES (?, ?, ?, ?)", (rowid, *row))
        tail = (
            "" if limit is None and offset is None else f" LIMIT {-1 if limit is None else limit} OFFSET {offset or 0}"
        )
        expected = plain.execute(f"SELECT x, nc, rt, id FROM things {spec.sql}{tail}").fetchall()
        streams = [part.execute(f"SELECT x, nc, rt, id{spec.hidden} FROM things {spec.sql}") for part in parts]
        merged = list(merge_rows(streams, spec, limit=limit, offset=offset))
        for stream in streams:
            stream.close()
    assert [tuple(map(repr, row)) for row in merged] == [tuple(map(repr, row)) for row in expected]


def test_merge_streams() -> None:
    """No more is read of any stream than the rows asked for need."""
    taken: list[int] = []

    def endless(start: int) -> Iterator[tuple[Any, ...]]:
        number = start
        while True:
            taken.append(number)
            yield ("row", number)
            number += 2

    merged = merge_rows([endless(0), endless(1)], compile_order(TABLE, None))
    assert [next(merged) for _ in range(3)] == [("row",)] * 3
    assert len(taken) <= 5
    limited = list(merge_rows([endless(0), endless(1)], compile_order(TABLE, None), limit=2, offset=1))
    assert limited == [("row",)] * 2


def test_equal_rows_come_in_the_order_of_the_streams() -> None:
    columns = tuple(
        Column(name, "", affinity_of(""), "BINARY", False, None, 0, False) for name in ("rowid", "oid", "_rowid_")
    )
    spec = compile_order(Table("hiding", TableKind.SHARDED, columns), "oid")
    streams = [[("first", 1), ("first", 2)], [("second", 1), ("second", 2)]]
    names = [row[0] for row in merge_rows(streams, spec)]
    assert names == ["first", "second", "first", "second"]


def test_without_any_order_the_streams_follow_each_other() -> None:
    columns = tuple(
        Column(name, "", affinity_of(""), "BINARY", False, None, 0, False) for name in ("rowid", "oid", "_rowid_")
    )
    spec = compile_order(Table("hiding", TableKind.SHARDED, columns), None)
    assert list(merge_rows([[(2,)], [(1,)]], spec)) == [(2,), (1,)]
    assert list(merge_rows([], spec)) == []


@pytest.mark.parametrize("order", [None, "x", "-x"])
def test_no_streams_and_empty_streams(order: str | None) -> None:
    spec = compile_order(TABLE, order)
    assert list(merge_rows([], spec)) == []
    assert list(merge_rows([[], []], spec)) == []
