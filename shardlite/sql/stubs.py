"""Tables as the coordinator's private database has them: the columns that decide answers, without constraints.

Types, collations, STRICT, and what makes the rowid are kept, since comparisons, orders and ``rowid`` depend on them.
CHECK, NOT NULL, UNIQUE, foreign keys and defaults are dropped: the rows are there already. Generated columns become
plain ones that get the values the shards computed.
"""

from __future__ import annotations

import re

from shardlite.names import fold, quote
from shardlite.router.keys import Affinity, affinity_of
from shardlite.router.table import Column, Table
from shardlite.sql.tokens import tokenize

_PLAIN_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_ ]*(?:\(\s*[-+]?[0-9.]+\s*(?:,\s*[-+]?[0-9.]+\s*)?\))?\Z")
_TYPE_OF = {
    Affinity.INTEGER: "INT",
    Affinity.TEXT: "TEXT",
    Affinity.BLOB: "",
    Affinity.REAL: "REAL",
    Affinity.NUMERIC: "NUMERIC",
}


def stub_ddl(table: Table, schema: str = "main") -> str:
    """Return the CREATE TABLE of a table's stub in an attached database."""
    parts = [_column(table, column) for column in table.columns]
    options = []
    if table.without_rowid:
        # The key's columns come after the primary key's: a table whose primary key no shard could check may hold
        # two rows with the same.
        names = dict.fromkeys(fold(name) for name in (*table.primary_key, *table.key_columns))
        parts.append(f"PRIMARY KEY ({', '.join(quote(table.by_name[name].name) for name in names)})")
        options.append("WITHOUT ROWID")
    if table.strict:
        options.append("STRICT")
    return f"CREATE TABLE {schema}.{quote(table.name)}({', '.join(parts)}){' ' if options else ''}{', '.join(options)}"


def _column(table: Table, column: Column) -> str:
    if table.rowid_alias is not None and fold(table.rowid_alias) == fold(column.name):
        return f"{quote(column.name)} INTEGER PRIMARY KEY"
    return f"{quote(column.name)} {_type(table, column)} COLLATE {quote(column.collation)}"


def _type(table: Table, column: Column) -> str:
    """Return the declared type where it can be written again, else a type of the same affinity."""
    declared = column.declared_type
    words = {token.key for token in tokenize(declared).tokens}
    if (
        _PLAIN_TYPE.match(declared)
        and not words & _CONSTRAINT_WORDS
        and affinity_of(declared, table.strict) is column.affinity
    ):
        return declared
    return _TYPE_OF[column.affinity]


_CONSTRAINT_WORDS = frozenset(
    ("PRIMARY", "NOT", "NULL", "UNIQUE", "CHECK", "DEFAULT", "COLLATE", "REFERENCES", "GENERATED", "AS", "CONSTRAINT")
)


def source_columns(table: Table, wanted: frozenset[str] | None) -> tuple[list[str], list[str]]:
    """Return what to select of a table and where to insert it, both quoted: the rowid and the columns wanted.

    ``wanted`` holds folded names; None means every column.
    """
    needed = [c.name for c in table.columns if wanted is None or fold(c.name) in wanted]
    if table.without_rowid:
        must = {fold(name) for name in (*table.primary_key, *table.key_columns)}
        needed = [c.name for c in table.columns if fold(c.name) in must or c.name in needed]
    elif table.rowid_alias is not None:
        needed = [c.name for c in table.columns if c.name == table.rowid_alias or c.name in needed]
    listed = [quote(name) for name in needed]
    if table.rowid_alias is None and table.rowid_name is not None:
        return [table.rowid_name, *listed], [table.rowid_name, *listed]
    if not listed:
        listed = [quote(table.columns[0].name)]
    return listed, listed


def index_ddl(table: Table, schema: str = "main") -> list[str]:
    """Return ordinary indexes in the places of a table's PRIMARY KEY and UNIQUE constraints."""
    made = []
    for number, constraint in enumerate(table.unique):
        if constraint.partial or constraint.origin == "c" or None in constraint.columns:
            continue
        if table.without_rowid and constraint.origin == "pk":
            continue
        columns = ", ".join(quote(name) for name in constraint.columns if name is not None)
        made.append(
            f"CREATE INDEX {schema}.{quote(f'_shardlite_{table.name}_{number}')} ON {quote(table.name)}({columns})"
        )
    return made


def index_in(sql: str, schema: str) -> str:
    """Return a CREATE INDEX text that makes an ordinary index in an attached database."""
    tokens = tokenize(sql).tokens
    at = next(i for i, token in enumerate(tokens) if token.key == "INDEX") + 1
    if tokens[at].key == "IF":
        at += 3
    if tokens[at + 1].key == ".":
        at += 2
    return f"CREATE INDEX {schema}.{sql[tokens[at].start :]}"
