"""The merge of sorted shards, against one connection's ORDER BY."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import chain, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardlite.driver import sqlite3
from shardlite.execute.merge import Order, merge_batches, merge_rows
from shardlite.router.keys import TEXT_ENCODINGS, affinity_of
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.order import SortTerm, compile_order, swapped

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


def backwards(left: str, right: str) -> int:
    """Compare texts from their ends."""
    return (left[::-1] > right[::-1]) - (left[::-1] < right[::-1])


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
        answers = [
            part.execute(f"SELECT x, nc, rt, id{spec.hidden} FROM things {spec.sql}").fetchall() for part in parts
        ]
        merged = list(merge_rows(answers, spec, limit=limit, offset=offset))
    assert [tuple(map(repr, row)) for row in merged] == [tuple(map(repr, row)) for row in expected]


def test_no_more_is_read_than_the_rows_asked_for_need() -> None:
    taken: list[int] = []

    def endless(start: int) -> Iterator[list[tuple[Any, ...]]]:
        number = start
        while True:
            taken.append(number)
            yield [("row", number), ("row", number + 2)]
            number += 4

    merged = chain.from_iterable(merge_batches([endless(0), endless(1)], Order([SortTerm(1, "BINARY")])))
    assert next(merged) == ("row", 0)
    assert len(taken) == 2
    assert [number for _, number in islice(merged, 9)] == list(range(1, 10))
    assert len(taken) <= 6


def batches(rows: list[Any], size: int) -> Iterator[list[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_batches_of_any_size_and_streams_that_follow_each_other(size: int) -> None:
    """As with a shard for each range of dates: nothing is sorted, and nothing is lost."""
    ranges = [[(number,) for number in range(start, start + 100)] for start in (200, 0, 100, 100)]
    order = Order([SortTerm(0, "BINARY")])
    merged = list(chain.from_iterable(merge_batches([batches(rows, size) for rows in ranges], order)))
    assert merged == sorted(chain.from_iterable(ranges))


def test_streams_that_are_not_sorted_lose_nothing() -> None:
    """A collation that contradicts itself must not stop the merge, nor double a row."""
    dice = random.Random(3)
    streams = [[(dice.choice("abc"), number) for number in range(start, 300, 3)] for start in range(3)]
    compare = {"dice": lambda _left, _right: dice.choice((-1, 0, 1))}
    order = Order([SortTerm(0, "dice", descending=True)], comparisons=compare)
    merged = list(chain.from_iterable(merge_batches([batches(rows, 7) for rows in streams], order)))
    assert sorted(merged) == sorted(chain.from_iterable(streams))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("nulls_high", [False, True])
@pytest.mark.parametrize("encoding", TEXT_ENCODINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_terms_sort_as_sqlite_sorts(encoding: str, nulls_high: bool, descending: bool, data: st.DataObject) -> None:
    """Values of all classes, texts that are no Unicode behind ``swapped``, a collation in Python."""
    rows = data.draw(st.lists(st.tuples(values, values), max_size=40), label="rows")
    collation = data.draw(st.sampled_from(["BINARY", "NOCASE", "RTRIM", "backwards"]), label="collation")
    size = data.draw(st.integers(1, 9), label="size")
    nulls = "LAST" if nulls_high is not descending else "FIRST"
    terms = f"x COLLATE {collation} {'DESC' if descending else 'ASC'} NULLS {nulls}, y COLLATE {collation}, rowid"
    with closing(sqlite3.connect(":memory:")) as plain:
        plain.execute(f"PRAGMA encoding = '{encoding}'")
        plain.create_collation("backwards", backwards)
        plain.execute("CREATE TABLE things(x, y)")
        plain.executemany("INSERT INTO things VALUES (?, ?)", rows)
        if encoding == "UTF-8" and collation != "backwards":  # Python can't be asked about such a text
            plain.execute("INSERT INTO things VALUES (CAST(x'61ff' AS TEXT), CAST(x'61fe' AS TEXT))")
        wanted = [row[0] for row in plain.execute(f"SELECT rowid FROM things ORDER BY {terms}")]
        columns = f"rowid, {swapped('x')}, {swapped('y')}"
        given_rows = [
            plain.execute(f"SELECT {columns} FROM things WHERE rowid % 3 = {part} ORDER BY {terms}").fetchall()
            for part in range(3)
        ]
    order = Order(
        [
            SortTerm(1, collation, descending, nulls_high, swapped=True),
            SortTerm(2, collation, swapped=True),
            SortTerm(0, "BINARY", integer=True),
        ],
        encoding,
        {"backwards": backwards},
    )
    merged = chain.from_iterable(merge_batches([batches(part, size) for part in given_rows], order))
    assert [row[0] for row in merged] == wanted


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
