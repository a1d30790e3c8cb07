"""Pushed-down queries through the manager: the rows they move, and sums whose parts can't be put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from one_file import one_file

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError

Make = Callable[..., ShardManager]
ROWS = 3_000
LARGEST = 2**63 - 1

BOUNDED = [
    ("SELECT count(*) FROM t", 1),
    ("SELECT count(*), sum(n), avg(x), min(x), max(n), total(x) FROM t WHERE n > 100", 1),
    ("SELECT n % 7, count(*), avg(x) FROM t GROUP BY n % 7 HAVING count(*) > 3 ORDER BY 2 DESC, 1 LIMIT 3", 7),
    ("SELECT count(DISTINCT s) FROM t", 5),
    ("SELECT n % 3, count(DISTINCT s) FROM t GROUP BY 1 ORDER BY 1", 15),
    ("SELECT * FROM t ORDER BY x DESC, id LIMIT 10", 0),
    ("SELECT id, s FROM t ORDER BY s, id DESC LIMIT 5 OFFSET 20", 0),
    ("SELECT id FROM t LIMIT 4", 4),
    ("SELECT DISTINCT s FROM t ORDER BY s DESC", 5),
    ("SELECT DISTINCT s, n % 2 FROM t ORDER BY 1, 2 LIMIT 3", 3),
    ("SELECT k, count(*), group_concat(s) FROM t GROUP BY k ORDER BY 2, k LIMIT 6", 0),
    ("SELECT c.name, count(*) FROM t JOIN c ON c.s = t.s GROUP BY c.name ORDER BY 2, 1", 5),
]
"""Queries, and the rows that each shard may send; none where sorted shards are merged as they are read."""


def fill(manager: ShardManager) -> sqlite3.Connection:
    plain = one_file()
    schema = {
        "t": "CREATE TABLE t (id INTEGER PRIMARY KEY, k INT, n INT, x REAL, s TEXT COLLATE NOCASE)",
        "c": "CREATE TABLE c (s TEXT PRIMARY KEY, name TEXT)",
    }
    rows = [(i, i % 50, i * 7919 % 1000, i % 64 / 4, "abcde"[i % 5]) for i in range(1, ROWS)]
    for name, ddl in schema.items():
        plain.execute(ddl)
        manager.create_table(ddl, **({"shard_key": "k"} if name == "t" else {"kind": "reference"}))
    for target in (plain, manager):
        target.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        target.executemany("INSERT INTO c VALUES (?, ?)", [(letter, letter * 2) for letter in "abcde"])
    return plain


@pytest.mark.parametrize("num_shards", [1, 4])
def test_rows_moved(make_manager: Make, num_shards: int) -> None:
    manager = make_manager(num_shards=num_shards)
    plain = fill(manager)
    for sql, bound in BOUNDED:
        cursor = plain.execute(sql)
        expected = cursor.fetchall()
        result = manager.execute(sql)
        rows = [tuple(row) for row in result]
        assert [repr(row) for row in rows] == [repr(row) for row in expected], sql
        assert list(result.columns) == [column[0] for column in cursor.description]
        assert result.rows_moved <= bound * num_shards, sql
        assert num_shards == 1 or (result.rows_moved > 0) is (bound > 0), sql


def sums(make_manager: Make, values: list[Any]) -> tuple[ShardManager, sqlite3.Connection]:
    manager = make_manager(num_shards=3)
    plain = one_file()
    ddl = "CREATE TABLE w (id INTEGER PRIMARY KEY, v)"
    plain.execute(ddl)
    manager.create_table(ddl)
    for target in (plain, manager):
        target.executemany("INSERT INTO w VALUES (?, ?)", list(enumerate(values, 1)))
    return manager, plain


@pytest.mark.parametrize(
    "values",
    [
        [LARGEST, -LARGEST, 5],
        [1.5, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST],
        [LARGEST - 3, 1, 1, 1],
        [float("inf"), 1.0, float("-inf"), 2.0],
        [float("inf"), 1.0, 7],
        [None, None, None],
        [],
        [1, 2, 2.0, 4],
        ["5", "6x", b"7", 8],
        [2**53, 1, 2**53, 1],
    ],
    ids=repr,
)
def test_sums(make_manager: Make, values: list[Any]) -> None:
    manager, plain = sums(make_manager, values)
    sql = "SELECT sum(v), typeof(sum(v)), total(v), avg(v), count(v), count(*) FROM w"
    assert repr(tuple(manager.execute(sql).fetchall()[0])) == repr(plain.execute(sql).fetchone())


@pytest.mark.parametrize(
    "values", [[float("inf"), 1, float("-inf"), 2], [float("inf"), 5], [None, None, 3], [None, None]], ids=repr
)
def test_sums_of_products(make_manager: Make, values: list[Any]) -> None:
    manager, plain = sums(make_manager, values)
    sql = "SELECT sum(v * id), avg(v * id), sum(v - id) FROM w"
    assert repr(tuple(manager.execute(sql).fetchall()[0])) == repr(plain.execute(sql).fetchone())
    sql = "SELECT id > 2, sum(v * id + id) FROM w GROUP BY 1 ORDER BY 1"
    assert [tuple(row) for row in manager.execute(sql)] == plain.execute(sql).fetchall()


@pytest.mark.parametrize("values", [[LARGEST, LARGEST], [LARGEST, 1, 1, 1, 1, 1, 1], [-LARGEST, -2, -1]], ids=repr)
def test_a_sum_that_does_not_fit(make_manager: Make, values: list[int]) -> None:
    manager, plain = sums(make_manager, values)
    with pytest.raises(sqlite3.OperationalError, match="integer overflow"):
        plain.execute("SELECT sum(v) FROM w").fetchall()
    with pytest.raises(OperationalError, match="integer overflow"):
        manager.execute("SELECT sum(v) FROM w").fetchall()
