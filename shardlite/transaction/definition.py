"""A shard file's own definitions, as far as capturing and replaying rows need them.

A shard's tables differ from what the catalog says of them: constraints that no shard can see are gone, a primary key
may be longer, and tables of shardlite's own stand beside them. So they are read from the file itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.table import ROWID_NAMES
from shardlite.sql.tokens import Token, closing, split_commas, tokens_of
from shardlite.transaction.values import CODECS

_ACTIONLESS: Final = ("NO ACTION", "RESTRICT")
SEQUENCES: Final = "sqlite_sequence"


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """An index that can make a row the victim of a REPLACE, in its own terms."""

    name: str
    terms: tuple[tuple[str, str], ...]
    """For each column of the index: its expression (SQL over the table's columns) and its collation."""
    predicate: str
    """The WHERE of a partial index, "" for a whole one."""
    shifting: str
    """When what BEFORE triggers see may differ from what is stored: a condition over NEW, "" for never."""
    searchable: bool
    """A search through the index itself works with all its terms."""


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """How rows of a table are named, read and written."""

    name: str
    by_key: bool
    """WITHOUT ROWID: a row is named by its primary key, otherwise by its rowid."""
    keys: tuple[str, ...]
    """The primary key's columns in its order, or the one name by which SQL reaches the rowid."""
    key_terms: tuple[str, ...]
    """SQL of the same: quoted, except for a rowid that is no column."""
    key_collations: tuple[str, ...]
    columns: tuple[str, ...]
    """The other stored columns. Generated ones are left out."""
    all_columns: tuple[str, ...]
    autoincrement: bool
    unique: tuple[UniqueIndex, ...]
    rewritten: bool
    """A trigger of the user's that runs before an UPDATE may write this very table: NEW may change under it."""
    plain: bool
    """A change of its rows changes nothing else, and no row goes or stays but those that RETURNING names."""


@dataclass(frozen=True, slots=True)
class StoredTrigger:
    """A trigger as ``sqlite_schema`` has it."""

    name: str
    table: str
    """Folded: of a table or a view."""
    sql: str


class Definitions:
    """The definitions of one shard file at one moment: make it anew when the schema changed.

    Each method gets the connection that it may read with. Thread-safe: entries are added, never changed.
    """

    def __init__(self, conn: Connection) -> None:
        rows = conn.fetch_all("SELECT type, name, tbl_name, sql FROM main.sqlite_schema ORDER BY rowid")
        self.triggers = tuple(StoredTrigger(n, fold(t), sql) for kind, n, t, sql in rows if kind == "trigger")
        self._sql = {fold(name): sql or "" for kind, name, _, sql in rows if kind in ("table", "index")}
        self._tables = {fold(name): name for kind, name, _, _ in rows if kind == "table"}
        self._views = frozenset(fold(name) for kind, name, _, _ in rows if kind == "view")
        self._targets: dict[str, set[str]] = defaultdict(set)
        for trigger in self.triggers:
            self._targets[trigger.table] |= written_by(tokens_of(trigger.sql))
        self._children: dict[str, set[str]] = defaultdict(set)
        for child, parent, on_update, on_delete in conn.fetch_all(
            'SELECT m.name, f."table", f.on_update, f.on_delete FROM main.sqlite_schema AS m, '
            "pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table'"
        ):
            if on_update not in _ACTIONLESS or on_delete not in _ACTIONLESS:
                self._children[fold(parent)].add(fold(child))
        row = conn.fetch_row("PRAGMA main.encoding")
        assert row is not None
        self.encoding: str = row[0]
        self.codec = CODECS[self.encoding]
        """The file's text encoding, as Python calls it."""
        self._known: dict[str, TableDefinition] = {}

    def has(self, name: str) -> bool:
        """Tell whether ``main`` has a table of that name."""
        return fold(name) in self._tables

    def reachable(self, names: Iterable[str]) -> list[str]:
        """Return the folded names of all tables that a change of these (tables or views) can change.

        Triggers and foreign-key actions are followed; rather one too many than one too few.
        """
        found: set[str] = set()
        todo = [fold(name) for name in names]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(self._targets.get(name, ()))
                todo.extend(self._children.get(name, ()))
        return sorted(name for name in found if name in self._tables)

    def autoincrement_tables(self) -> list[str]:
        """Return the names of the tables whose rowids SQLite never gives twice."""
        return [
            name
            for folded, name in self._tables.items()
            if any(token.key == "AUTOINCREMENT" for token in tokens_of(self._sql[folded]))
        ]

    def triggers_of(self, names: Iterable[str]) -> list[StoredTrigger]:
        """Return the triggers of these tables in the order in which they were made."""
        folded = {fold(name) for name in names}
        return [trigger for trigger in self.triggers if trigger.table in folded]

    def table(self, conn: Connection, name: str) -> TableDefinition:
        """Return a table's definition.

        :raises ProgrammingError: there is no such table in ``main``.
        :raises NotSupportedError: its rows can't be named, or triggers can't see them: virtual tables and the tables
            in which they keep their content, SQLite's own tables, tables that call columns by every name of the rowid.
        """
        known = self._known.get(fold(name))
        return known if known is not None else self._known.setdefault(fold(name), self._read(conn, name))

    def _read(self, conn: Connection, asked: str) -> TableDefinition:
        name = self._tables.get(fold(asked))
        if name is None:
            kind = "is a view, not a table" if fold(asked) in self._views else "is no table of this shard"
            raise ProgrammingError(f"{asked} {kind}")
        _refuse_special(conn, name)
        listed = conn.fetch_row("SELECT wr FROM pragma_table_list(?) WHERE schema = 'main'", (name,))
        by_key = listed is not None and bool(listed[0])
        info = conn.fetch_all(
            'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (name,)
        )
        indexes = conn.fetch_all('SELECT name, origin FROM pragma_index_list(?) WHERE "unique"', (name,))
        stored = [row[0] for row in info if row[5] == 0]
        primary = next((index for index, origin in indexes if origin == "pk"), None)
        keys, terms, collations = _keys(conn, name, info, primary if by_key else None, bool(primary))
        tokens = tokens_of(self._sql[fold(name)])
        said = {(a.key, b.key) for a, b in pairwise(tokens)}
        folded = {fold(key) for key in keys}
        reached = self.reachable(self._targets.get(fold(name), ()))
        return TableDefinition(
            name=name,
            by_key=by_key,
            keys=keys,
            key_terms=terms,
            key_collations=collations,
            columns=tuple(column for column in stored if fold(column) not in folded),
            all_columns=tuple(row[0] for row in info),
            autoincrement=not by_key and any(token.key == "AUTOINCREMENT" for token in tokens),
            unique=tuple(
                self._unique(conn, name, index, info, terms[0])
                for index, origin in indexes
                if not (by_key and origin == "pk")
            ),
            rewritten=fold(name) in reached
            and any(_runs_before_update(trigger.sql) for trigger in self.triggers_of((name,))),
            plain=not by_key
            and not self._targets.get(fold(name))
            and not self.triggers_of((name,))
            and not self._children.get(fold(name))
            and not said & {("CONFLICT", "REPLACE"), ("CONFLICT", "FAIL")},
        )

    def _unique(
        self, conn: Connection, table: str, index: str, info: Sequence[Sequence[object]], rowid: str
    ) -> UniqueIndex:
        parts, predicate = _parts(self._sql.get(fold(index), ""))
        terms = []
        for place, (number, column, collation) in enumerate(
            conn.fetch_all('SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno', (index,))
        ):
            terms.append((parts[place] if number == -2 else quote(column), collation))
        shifting = _shifting(parts, predicate, terms, info, rowid)
        made = UniqueIndex(index, tuple(terms), predicate, shifting, True)
        if _is_searchable(conn, table, made):
            return made
        return UniqueIndex(index, tuple(terms), predicate, shifting, False)


def _refuse_special(conn: Connection, name: str) -> None:
    row = conn.fetch_row("SELECT type FROM pragma_table_list(?) WHERE schema = 'main'", (name,))
    kind = row[0] if row is not None else "table"
    if kind == "table" and not fold(name).startswith("sqlite_"):
        return
    what = "one of SQLite's own tables" if kind == "table" else f"a {kind} table"
    raise NotSupportedError(
        f"{name} is {what}, whose changes can't be told row by row: change it outside of a transaction over several "
        "shards"
    )


def _keys(
    conn: Connection, table: str, info: Sequence[Sequence[object]], primary: str | None, has_index: bool
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of what tells rows apart, the same as SQL, and their collations."""
    if primary is not None:
        rows = conn.fetch_all('SELECT name, coll FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno', (primary,))
        names = tuple(row[0] for row in rows)
        return names, tuple(quote(name) for name in names), tuple(row[1] for row in rows)
    in_key = [row for row in info if row[4]]
    if len(in_key) == 1 and not has_index and fold(str(in_key[0][1])) == "integer":
        alias = str(in_key[0][0])
        return (alias,), (quote(alias),), ("BINARY",)
    taken = {fold(str(row[0])) for row in info}
    free = next((name for name in ROWID_NAMES if name not in taken), None)
    if free is None:
        raise NotSupportedError(
            f"{table} calls columns by all names of the rowid ({', '.join(ROWID_NAMES)}), so that its rows can't be "
            "named: give it an INTEGER PRIMARY KEY, or change it outside of a transaction over several shards"
        )
    return (free,), (free,), ("BINARY",)


def _parts(sql: str) -> tuple[list[str], str]:
    """Return the columns of a CREATE INDEX as SQL, each without its direction, and the WHERE of a partial index."""
    tokens = tokens_of(sql)
    opening = next((at for at, token in enumerate(tokens) if token.key == "("), None)
    if opening is None:
        return [], ""  # of a constraint: it has columns only
    end = closing(tokens, opening)
    parts = []
    for part in split_commas(tokens[opening + 1 : end]):
        last = len(part) - 1 if part[-1].is_word("ASC", "DESC") else len(part)
        parts.append(f"({sql[part[0].start : part[last - 1].end]})")
    if end + 2 < len(tokens) and tokens[end + 1].key == "WHERE":
        return parts, f"({sql[tokens[end + 2].start : tokens[-1].end]})"
    return parts, ""


def _shifting(
    parts: Sequence[str],
    predicate: str,
    terms: Sequence[tuple[str, str]],
    info: Sequence[Sequence[object]],
    rowid: str,
) -> str:
    """Return when NEW, as a BEFORE trigger sees it, may not be what this index will hold; "" for never.

    A rowid that SQLite makes is still -1 there, which matters where it stands in an expression. And REPLACE puts the
    default in the place of a NULL that a NOT NULL column is given.
    """
    expressions = [text for text, _ in terms if text in parts] + [predicate]
    named = {token.name for text, _ in terms for token in tokens_of(text)}
    named |= {token.name for token in tokens_of(predicate)}
    computed = {token.name for text in expressions for token in tokens_of(text)}
    generated = any(row[5] != 0 and fold(str(row[0])) in named for row in info)
    found = []
    for name, _, not_null, default, primary, hidden in info:
        column = fold(str(name))
        if hidden == 0 and not_null and default is not None and (generated or column in named):
            found.append(f"NEW.{quote(str(name))} IS NULL")
        if primary and quote(str(name)) == rowid and (generated or column in computed):
            found.append(f"NEW.{rowid} = -1")
    return " OR ".join(found)


def victims_condition(index: UniqueIndex, new: str) -> str:
    """Return the condition that a row ``zz`` equals another one in an index's own terms.

    :param new: a query that gives the other one's columns by their names.
    """
    conditions = [index.predicate] if index.predicate and index.searchable else []
    for text, collation in index.terms:
        # Outside of a partial index its expressions may fail (malformed JSON): they aren't asked there.
        there = f"CASE WHEN {index.predicate} THEN {text} END" if index.predicate else text
        here = text if index.searchable else there
        conditions.append(f"(({here}) COLLATE {quote(collation)}) = (SELECT {there} FROM ({new}))")
    return " AND ".join(conditions)


def indexed(index: UniqueIndex) -> str:
    """Return what makes SQLite search through this index and no other, if it can."""
    return f"INDEXED BY {quote(index.name)}" if index.searchable else "NOT INDEXED"


def _is_searchable(conn: Connection, table: str, index: UniqueIndex) -> bool:
    sql = (
        f"EXPLAIN SELECT 1 FROM main.{quote(table)} AS zz {indexed(index)} "
        f"WHERE {victims_condition(index, f'SELECT * FROM main.{quote(table)}')}"
    )
    try:
        conn.fetch_all(sql)
    except sqlite3.OperationalError as error:
        if "no query solution" in str(error):
            return False
        raise
    return True


def written_by(tokens: Sequence[Token]) -> set[str]:
    """Return the folded names of all tables and views that a trigger's text can change, perhaps some more."""
    found = set()
    for at, token in enumerate(tokens):
        after = at + 1
        if token.key == "UPDATE" and after < len(tokens) and tokens[after].key == "OR":
            after += 2
        deletes = token.key == "FROM" and at > 0 and tokens[at - 1].key == "DELETE"
        if (token.key in ("INTO", "UPDATE") or deletes) and after < len(tokens):
            name = tokens[after].name
            if name is not None:
                found.add(name)
    return found


def _runs_before_update(sql: str) -> bool:
    """Tell whether a CREATE TRIGGER is for before an UPDATE, which is also what it means when it doesn't say."""
    tokens = tokens_of(sql)
    at = next((at for at, token in enumerate(tokens) if token.key == "TRIGGER"), 0) + 1
    if at + 1 < len(tokens) and tokens[at + 1].key == ".":
        at += 2
    keys = [token.key for token in tokens[at + 1 : at + 3]]
    if keys[:1] == ["BEFORE"]:
        del keys[0]
    return keys[:1] == ["UPDATE"]


__all__ = [
    "SEQUENCES",
    "Definitions",
    "StoredTrigger",
    "TableDefinition",
    "UniqueIndex",
    "indexed",
    "victims_condition",
    "written_by",
]
