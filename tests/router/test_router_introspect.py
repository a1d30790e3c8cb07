"""What is read of a table's definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError
from shardlite.router.introspect import TableFacts, describe, table_names
from shardlite.router.keys import Affinity
from shardlite.router.table import Column, ForeignKey, TableKind, UniqueConstraint


@pytest.fixture
def scratch() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def columns(facts: TableFacts) -> dict[str, Column]:
    return {column.name: column for column in facts.columns}


def test_columns_with_affinity_and_collation(scratch: sqlite3.Connection) -> None:
    scratch.execute(
        "CREATE TABLE \"P x\"(id INTEGER PRIMARY KEY, n VARCHAR(9) COLLATE nocase NOT NULL DEFAULT 'a', d, "
        "g AS (n || 'x') COLLATE rtrim, s INT AS (id) STORED, r REAL DEFAULT (1 + 1))"
    )
    facts = describe(scratch, "p X")
    found = columns(facts)
    assert facts.name == "P x"
    assert found["n"] == Column("n", "VARCHAR(9)", Affinity.TEXT, "NOCASE", True, "'a'", 0, False)
    assert (found["d"].affinity, found["d"].declared_type) == (Affinity.BLOB, "")
    assert (found["g"].collation, found["g"].generated, found["g"].writable) == ("RTRIM", True, False)
    assert (found["s"].affinity, found["s"].generated) == (Affinity.INTEGER, True)
    assert found["r"].default_sql == "1 + 1"
    table = facts.table(TableKind.SHARDED, key_columns=("n",))
    assert table.key_type.collations == ("NOCASE",)
    assert table.rowid_alias == "id"


def test_constraints_in_the_order_they_were_written(scratch: sqlite3.Connection) -> None:
    scratch.executescript(
        """
        CREATE TABLE p(id INTEGER PRIMARY KEY);
        CREATE TABLE c(a INT, b TEXT, p REFERENCES p, q UNIQUE, r, PRIMARY KEY(a, b DESC),
          FOREIGN KEY(q, r) REFERENCES c(a, b) ON DELETE CASCADE ON UPDATE SET NULL) WITHOUT ROWID;
        CREATE UNIQUE INDEX ux ON c(lower(b), q) WHERE q > 0;
        CREATE INDEX plain ON c(r);
        """
    )
    facts = describe(scratch, "c")
    assert facts.without_rowid
    assert [column.primary_key_position for column in facts.columns] == [1, 2, 0, 0, 0]
    assert [(u.columns, u.origin, u.partial) for u in facts.unique] == [
        (("q",), "u", False),
        (("a", "b"), "pk", False),
        ((None, "q"), "c", True),
    ]
    assert UniqueConstraint("ux", (None, "q"), "c", True, ("BINARY", "BINARY")) in facts.unique
    assert facts.foreign_keys == (
        ForeignKey(("p",), "p", (), "NO ACTION", "NO ACTION"),
        ForeignKey(("q", "r"), "c", ("a", "b"), "SET NULL", "CASCADE"),
    )


@pytest.mark.parametrize(
    ("ddl", "expected"),
    [
        ("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT)", True),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY /* AUTOINCREMENT */)", False),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY -- autoincrement\n)", False),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, \"autoincrement\" TEXT, CHECK(id <> 'AUTOINCREMENT'))", False),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, [my autoincrement] TEXT, `autoincrement` INT)", False),
        ("CREATE TABLE t('it''s' TEXT, id INTEGER PRIMARY KEY ASC /* ' */ AutoIncrement)", True),
    ],
)
def test_autoincrement(scratch: sqlite3.Connection, ddl: str, expected: bool) -> None:
    scratch.execute(ddl)
    assert describe(scratch, "t").autoincrement is expected


def test_strict_and_the_rowid(scratch: sqlite3.Connection) -> None:
    scratch.create_collation("custom", lambda a, b: (a > b) - (a < b))
    scratch.executescript(
        """
        CREATE TABLE s(a ANY, b INTEGER PRIMARY KEY DESC, k TEXT COLLATE custom) STRICT;
        CREATE TABLE m(rowid TEXT, oid INT PRIMARY KEY);
        """
    )
    strict, named = describe(scratch, "s"), describe(scratch, "m").table(TableKind.SINGLE)
    assert strict.strict
    assert columns(strict)["a"].affinity is Affinity.BLOB
    assert columns(strict)["k"].collation == "custom"
    assert strict.table(TableKind.SINGLE).rowid_alias is None  # DESC: an ordinary column in SQLite
    assert (named.rowid_alias, named.rowid_name) == (None, "_rowid_")


def test_virtual_tables_hide_their_shadows(scratch: sqlite3.Connection) -> None:
    scratch.executescript("CREATE TABLE b(x); CREATE VIRTUAL TABLE f USING fts5(t); CREATE TABLE a(x);")
    assert table_names(scratch) == ["b", "f", "a"]
    facts = describe(scratch, "f")
    assert facts.virtual
    assert [column.name for column in facts.columns] == ["t"]


def test_what_is_no_table(scratch: sqlite3.Connection) -> None:
    scratch.execute("CREATE VIEW v AS SELECT 1")
    with pytest.raises(ProgrammingError, match="v is a view"):
        describe(scratch, "v")
    with pytest.raises(ProgrammingError, match="no such table: nope"):
        describe(scratch, "nope")


def test_the_scratch_connection_is_left_as_it_was(scratch: sqlite3.Connection) -> None:
    scratch.execute("CREATE TABLE t(a, b COLLATE NOCASE)")
    before = [tuple(row) for row in scratch.execute("SELECT * FROM sqlite_schema")]
    describe(scratch, "t")
    assert not scratch.in_transaction
    assert [tuple(row) for row in scratch.execute("SELECT * FROM sqlite_schema")] == before
    scratch.execute("BEGIN")
    describe(scratch, "t")
    assert scratch.in_transaction
    scratch.execute("COMMIT")
