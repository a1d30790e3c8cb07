"""Which constraints one shard can see."""

from __future__ import annotations

import pytest

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.execute.placement import Placement, place, unseen_constraints
from shardlite.router.introspect import describe
from shardlite.router.table import ConstraintMode, Table, TableKind


def table_of(ddl: str, name: str = "t") -> Table:
    conn = sqlite3.connect(":memory:")
    conn.executescript(ddl)
    facts = describe(conn, name)
    conn.close()
    return facts.table(TableKind.SINGLE)


@pytest.mark.parametrize(
    ("ddl", "key", "unseen"),
    [
        ("CREATE TABLE t (a PRIMARY KEY, b UNIQUE)", "a", ("UNIQUE (b)",)),
        ("CREATE TABLE t (a PRIMARY KEY, b, UNIQUE (b, a))", "a", ()),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, u)", "u", ()),
        ("CREATE TABLE t (id INT PRIMARY KEY, u)", "u", ("UNIQUE (id)",)),
        ("CREATE TABLE t (a TEXT); CREATE UNIQUE INDEX i ON t (a COLLATE NOCASE)", "a", ("UNIQUE (a)",)),
        ("CREATE TABLE t (a TEXT COLLATE NOCASE); CREATE UNIQUE INDEX i ON t (a COLLATE BINARY)", "a", ()),
        ("CREATE TABLE t (a TEXT COLLATE NOCASE UNIQUE)", "a", ()),
        ("CREATE TABLE t (a, b); CREATE UNIQUE INDEX i ON t (lower(a))", "a", ("UNIQUE (an expression)",)),
        ("CREATE TABLE t (a, b); CREATE UNIQUE INDEX i ON t (b) WHERE a = 1", "a", ("UNIQUE (b)",)),
        ("CREATE TABLE t (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID", "b", ()),
    ],
)
def test_uniqueness_that_no_shard_sees(ddl: str, key: str, unseen: tuple[str, ...]) -> None:
    table = table_of(ddl)
    placed = place(table, Placement(key_columns=(key,), constraints=ConstraintMode.CHECKED), {})
    assert placed.unenforced == unseen == unseen_constraints(placed, {})
    if unseen:
        with pytest.raises(NotSupportedError, match="no single shard can enforce"):
            place(table, Placement(key_columns=(key,)), {})


def test_a_coarser_unique_index_keeps_a_table_whole_by_default() -> None:
    ddl = "CREATE TABLE t (a TEXT PRIMARY KEY); CREATE UNIQUE INDEX i ON t (a COLLATE NOCASE)"
    placed = place(table_of(ddl), Placement(), {})
    assert placed.kind is TableKind.SINGLE
    assert "UNIQUE (a)" in placed.reason
