"""What SQLite knows of a table, read from a scratch connection that holds the schema and no rows.

Nothing is parsed here: every fact comes from a PRAGMA, from ``sqlite_schema``, or from an index made for the question
and rolled back.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.keys import COLLATIONS, affinity_of
from shardlite.router.table import Column, ForeignKey, Table, TableKind, UniqueConstraint

_PROBE = "_shardlite_probe"
_HIDDEN_VIRTUAL, _GENERATED = 1, (2, 3)


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table's definition, before anything is decided about where its rows live."""

    name: str
    columns: tuple[Column, ...]
    without_rowid: bool
    strict: bool
    autoincrement: bool
    virtual: bool
    unique: tuple[UniqueConstraint, ...]
    foreign_keys: tuple[ForeignKey, ...]
    sql: str

    def table(self, kind: TableKind, **decided: Any) -> Table:
        """Return the Table of these facts, with its kind and whatever else of Table's fields was decided."""
        return Table(
            name=self.name,
            kind=kind,
            columns=self.columns,
            without_rowid=self.without_rowid,
            strict=self.strict,
            autoincrement=self.autoincrement,
            virtual=self.virtual,
            unique=self.unique,
            foreign_keys=self.foreign_keys,
            **decided,
        )


def describe(connection: sqlite3.Connection, table_name: str) -> TableFacts:
    """Return the facts of one table of ``main``.

    ``connection`` is a scratch one, in no transaction or in one that may hold a savepoint; it is left as it was.
    Raises ProgrammingError when there is no such table or the name is a view.
    """
    listed = _rows(
        connection, "SELECT name, type, wr, strict FROM pragma_table_list(?) WHERE schema = 'main'", table_name
    )
    if not listed:
        raise ProgrammingError(f"no such table: {table_name}")
    name, kind, without_rowid, strict = listed[0]
    if kind not in ("table", "virtual"):
        raise ProgrammingError(f"{name} is a {kind}, not a table")
    found = _rows(
        connection, "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE", name
    )
    virtual = kind == "virtual"
    return TableFacts(
        name=name,
        columns=_columns(connection, name, bool(strict), virtual),
        without_rowid=bool(without_rowid),
        strict=bool(strict),
        autoincrement=not virtual and not without_rowid and _autoincrement(found[0][0] or ""),
        virtual=virtual,
        unique=_unique(connection, name),
        foreign_keys=_foreign_keys(connection, name),
        sql=found[0][0] or "",
    )


def table_names(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the user's tables in ``main``, in the order of their creation; shadow tables left out."""
    shadows = {name for (name,) in _rows(connection, "SELECT name FROM pragma_table_list WHERE type = 'shadow'")}
    rows = _rows(connection, "SELECT name FROM main.sqlite_schema WHERE type = 'table' ORDER BY rowid")
    return [name for (name,) in rows if not name.startswith("sqlite_") and name not in shadows]


def _rows(connection: sqlite3.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Return plain tuples whatever the connection's row factory is."""
    cursor = connection.cursor()
    cursor.row_factory = None
    try:
        return cursor.execute(sql, parameters).fetchall()
    finally:
        cursor.close()


def _columns(connection: sqlite3.Connection, table: str, strict: bool, virtual: bool) -> tuple[Column, ...]:
    rows = [
        row
        for row in _rows(
            connection, 'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', table
        )
        if row[5] != _HIDDEN_VIRTUAL
    ]
    names = [row[0] for row in rows]
    collations = {} if virtual else _collations(connection, table, names)
    return tuple(
        Column(
            name=name,
            declared_type=declared or "",
            affinity=affinity_of(declared or "", strict),
            collation=collations.get(name, "BINARY"),
            not_null=bool(not_null),
            default_sql=default,
            primary_key_position=position,
            generated=hidden in _GENERATED,
        )
        for name, declared, not_null, default, position, hidden in rows
    )


def _collations(connection: sqlite3.Connection, table: str, names: list[str]) -> dict[str, str]:
    """Return each column's collation, as an index on it would have it."""
    connection.execute(f"SAVEPOINT {_PROBE}")
    try:
        found = {}
        for name in names:
            connection.execute(f"CREATE INDEX main.{_PROBE} ON {quote(table)} ({quote(name)})")
            rows = _rows(connection, "SELECT coll FROM pragma_index_xinfo(?) WHERE seqno = 0", _PROBE)
            collation = str(rows[0][0])
            found[name] = collation.upper() if collation.upper() in COLLATIONS else collation
            connection.execute(f"DROP INDEX main.{_PROBE}")
        return found
    finally:
        connection.execute(f"ROLLBACK TO {_PROBE}")
        connection.execute(f"RELEASE {_PROBE}")


def _unique(connection: sqlite3.Connection, table: str) -> tuple[UniqueConstraint, ...]:
    indexes = _rows(
        connection,
        'SELECT name, origin, partial FROM pragma_index_list(?) WHERE "unique" ORDER BY seq DESC',
        table,
    )
    found = []
    for name, origin, partial in indexes:
        parts = _rows(connection, "SELECT name, cid, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno", name)
        found.append(
            UniqueConstraint(
                name=name,
                columns=tuple(column if number >= 0 else None for column, number, _ in parts),
                origin=origin,
                partial=bool(partial),
                collations=tuple(collation for _, _, collation in parts),
            )
        )
    return tuple(found)


def _foreign_keys(connection: sqlite3.Connection, table: str) -> tuple[ForeignKey, ...]:
    clauses: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    sql = 'SELECT id, "table", "from", "to", on_update, on_delete FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq'
    for row in _rows(connection, sql, table):
        clauses[row[0]].append(row)
    return tuple(
        ForeignKey(
            columns=tuple(row[2] for row in rows),
            parent=rows[0][1],
            parent_columns=tuple(row[3] for row in rows if row[3] is not None),
            on_update=rows[0][4],
            on_delete=rows[0][5],
        )
        for rows in clauses.values()
    )


_QUOTED_OR_COMMENT = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL
)


def _autoincrement(sql: str) -> bool:
    """Tell whether a CREATE TABLE text says AUTOINCREMENT; the keyword stands nowhere else outside quotes.

    SQLite doesn't tell by PRAGMA. AUTOINCREMENT is no fallback identifier, so a column of that name must be quoted.
    """
    bare = _QUOTED_OR_COMMENT.sub(" ", sql)
    return re.search(r"\bautoincrement\b", fold(bare)) is not None
