"""Finding the keys of the rows that statements touch, by TEMP triggers that SQLite itself runs.

For each table a TEMP table takes the keys, and TEMP triggers put them there: after an INSERT the new key, after an
UPDATE the old and the new one, after a DELETE the old one. Rows that REPLACE pushes out fire no trigger: triggers
before INSERT and UPDATE look for them, in each unique index's own terms. A NULL for a key means all rows of the table,
where what such a trigger sees may not be what is stored.

The TEMP tables have no constraint: a statement's conflict clause overrides the one of a trigger's INSERT, so an
UPSERT would fail by *our* key. Keys noted twice are made distinct when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.names import RESERVED_PREFIX, fold, quote
from shardlite.transaction.definition import SEQUENCES, Definitions, TableDefinition, indexed, victims_condition
from shardlite.transaction.touched import Touched
from shardlite.transaction.values import Text, Value

_PREFIX = f"{RESERVED_PREFIX}touch_"
_BATCH = 10_000


class KeyCapture:
    """The TEMP triggers of one connection, and what they noted. Belongs to the thread that uses the connection.

    While it is there, each statement on the connection notes its keys by itself. ROLLBACK TO takes the notes back, and
    the triggers too where they were made since the savepoint: run it inside of ``undoing()``. The notes count in
    ``total_changes``, by ``own_changes()``; nothing else that a user can see changes.
    """

    def __init__(self, conn: Connection, definitions: Definitions) -> None:
        self._conn = conn
        self._definitions = definitions
        self._tables: list[TableDefinition] = []
        self._watched: set[str] = set()
        self._sequences = False
        self._undone = 0

    def watch(self, tables: Iterable[str]) -> None:
        """Capture changes of these tables or views, and of all tables that their triggers and foreign keys reach.

        Tables that are captured already cost nothing.

        :raises NotSupportedError: one of them is virtual, or its rows can't be named; nothing has changed then.
        :raises sqlite3.Error: what SQLite raises when it makes a trigger; end the capture then.
        """
        tables = {fold(name) for name in tables}
        self._sequences = self._sequences or SEQUENCES in tables
        names = [name for name in self._definitions.reachable(tables) if name not in self._watched]
        self._sequences = self._sequences or SEQUENCES in names
        found = [self._definition(name, tables) for name in names if name != SEQUENCES]
        for table in found:
            self._watched.add(fold(table.name))
            self._tables.append(table)
            self._make(len(self._tables) - 1)

    def _definition(self, name: str, asked: Iterable[str]) -> TableDefinition:
        try:
            return self._definitions.table(self._conn, name)
        except NotSupportedError as error:
            if name in asked:
                raise
            reason = f"{error} (a trigger or foreign key of {', '.join(sorted(asked))} changes it)"
            raise NotSupportedError(reason) from error

    def _make(self, number: int) -> None:
        run = self._conn.run
        for sql in capture_ddl(self._tables[number], f"{_PREFIX}{number}"):
            run(sql)

    def collect(self, shard: int, touched: Touched) -> None:
        """Add what was noted to what the transaction touched. The notes stay: adding them twice is harmless."""
        for number, table in enumerate(self._tables):
            touched.add(shard, table.name)
            self._collect_one(number, table, shard, touched)
        if self._sequences:
            for name in self._definitions.autoincrement_tables():
                touched.add(shard, name)

    def _collect_one(self, number: int, table: TableDefinition, shard: int, touched: Touched) -> None:
        notes = f"temp.{_PREFIX}{number}"
        if self._conn.fetch_row(f"SELECT 1 FROM {notes} WHERE k0 IS NULL LIMIT 1") is not None:
            touched.whole(shard, table.name)
            return
        names = [f"k{place}" for place in range(len(table.keys))]
        row = self._conn.fetch_row(f"SELECT max(rowid) FROM {notes}")
        last = row[0] or 0 if row is not None else 0
        for first in range(1, last + 1, _BATCH):
            source = f"FROM {notes} WHERE rowid BETWEEN ? AND ?"
            span = (first, first + _BATCH - 1)
            if table.by_key:
                touched.add(shard, table.name, stored_rows(self._conn, self._definitions.codec, names, source, span))
            else:
                rows = self._conn.fetch_all(f"SELECT DISTINCT k0 {source}", span)
                touched.add(shard, table.name, [key for (key,) in rows])

    def own_changes(self) -> int:
        """Return how many of the changes that the connection counts (``total_changes``) are notes of ours."""
        return self._undone + self._noted()

    def _noted(self) -> int:
        # Notes are only ever added, or taken back from the end: the largest rowid is their number.
        counts = [
            self._conn.fetch_row(f"SELECT max(rowid) FROM temp.{_PREFIX}{number}")
            for number in range(len(self._tables))
        ]
        return sum(row[0] or 0 for row in counts if row is not None)

    def failed(self, grown: int) -> None:
        """Tell of a statement that failed, after ``total_changes`` had grown by so much.

        All of it is taken for ours: SQLite counts nothing of a statement that fails, except for what triggers did.
        """
        self._undone += grown

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """Run ROLLBACK TO a savepoint in the block: afterwards all is captured that was before."""
        noted = self._noted()
        yield
        rows = self._conn.fetch_all("SELECT name FROM temp.sqlite_schema WHERE type = 'table'")
        there = {row[0] for row in rows}
        for number in range(len(self._tables)):
            if f"{_PREFIX}{number}" not in there:
                self._make(number)
        self._undone += noted - self._noted()

    def end(self) -> None:
        """Drop all triggers and notes, whatever of them is there. May be repeated.

        A connection on which that fails must not be used again; it says so by ``leftover``.
        """
        conn, count = self._conn, len(self._tables)
        self._tables, self._watched = [], set()
        if not count or conn.doomed:
            return
        with suppress(sqlite3.Error):
            drop_capture(conn, count)
            return
        conn.close_cursors()  # a query that is not at its end forbids to drop any table
        with suppress(sqlite3.Error):
            drop_capture(conn, count)
            return
        conn.leftover = conn.leftover or "triggers that capture changes"


def drop_capture(conn: Connection, count: int) -> None:
    """Drop the first ``count`` tables of notes and their triggers: these first, since they fail without the tables."""
    for number in range(count):
        for event in _EVENTS:
            conn.run(f"DROP TRIGGER IF EXISTS temp.{_PREFIX}{number}_{event}")
    for number in range(count):
        conn.run(f"DROP TABLE IF EXISTS temp.{_PREFIX}{number}")


_EVENTS = ("ai", "au", "ad", "bi", "bu")


@contextmanager
def capturing(conn: Connection, tables: Iterable[str], definitions: Definitions | None = None) -> Iterator[KeyCapture]:
    """Capture the keys of what statements on ``conn`` touch in the block.

    :param tables: tables or views that are going to be changed; ``watch()`` adds others.
    :param definitions: of this shard's schema as it is now, for who has them already.
    :raises NotSupportedError: rows of a table can't be captured; see ``KeyCapture.watch``.

    Call it outside of a savepoint, or run ROLLBACK TO inside of ``undoing()``. Leaving the block drops all TEMP
    triggers and tables, also after an error or when the transaction is over; read the keys before.
    """
    capture = KeyCapture(conn, Definitions(conn) if definitions is None else definitions)
    try:
        capture.watch(tables)
        yield capture
    finally:
        capture.end()


def capture_ddl(table: TableDefinition, notes: str) -> list[str]:
    """Return the statements that make a table's notes and triggers; each trigger is named by the notes and its event.

    Names inside the triggers are unqualified where SQLite wants it: those of TEMP come first.
    """
    names = ", ".join(f"k{place}" for place in range(len(table.keys)))

    def key(of: str) -> str:
        return ", ".join(f"{of}.{term}" for term in table.key_terms)

    def trigger(event: str, when: str, body: Sequence[str]) -> str:
        text = "; ".join(body)
        return f"CREATE TEMP TRIGGER {notes}_{event} {when} ON main.{quote(table.name)} BEGIN {text}; END"

    def note(of: str) -> str:
        return f"INSERT INTO {notes} VALUES ({key(of)})"

    moved = note("OLD")
    if not table.by_key:
        moved = f"INSERT INTO {notes} SELECT {key('OLD')} WHERE {key('OLD')} <> {key('NEW')}"
    made = [
        f"CREATE TEMP TABLE {notes}({names})",
        trigger("ai", "AFTER INSERT", [note("NEW")]),
        trigger("au", "AFTER UPDATE", [note("NEW"), moved]),
        trigger("ad", "AFTER DELETE", [note("OLD")]),
    ]
    for event, when, updates in (("bi", "BEFORE INSERT", False), ("bu", "BEFORE UPDATE", True)):
        body = list(victims(table, notes, updates=updates))
        if body:
            made.append(trigger(event, when, body))
    return made


def victims(table: TableDefinition, notes: str, *, updates: bool) -> Iterator[str]:
    """Yield the statements that note the rows that NEW may push out of a table."""
    if not table.unique:
        return
    if updates and table.rewritten:
        yield f"INSERT INTO {notes}(k0) VALUES (NULL)"
        return
    columns = ", ".join(f"NEW.{quote(name)} AS {quote(name)}" for name in table.all_columns)
    keys = ", ".join(f"zz.{term}" for term in table.key_terms)
    # An UPDATE finds the row itself, which is noted anyway.
    other = f" AND zz.{table.key_terms[0]} <> OLD.{table.key_terms[0]}" if updates and not table.by_key else ""
    for index in table.unique:
        if index.shifting:
            yield f"INSERT INTO {notes}(k0) SELECT NULL WHERE {index.shifting}"
        place = f"main.{quote(table.name)} AS zz {indexed(index)}"
        condition = victims_condition(index, f"SELECT {columns}")
        yield f"INSERT INTO {notes} SELECT {keys} FROM {place} WHERE {condition}{other}"


def stored_rows(
    conn: Connection, codec: str, terms: Sequence[str], source: str, parameters: Sequence[object] = ()
) -> list[tuple[Value, ...]]:
    """Return rows of a query with all text as the file stores it.

    :param codec: of the file's text encoding.
    :param terms: what to select, as SQL; ``source`` is the text from FROM on.
    """
    with stored_text(conn):
        rows = conn.fetch_all(_stored_sql(codec, terms, source), parameters)
    return _as_stored(codec, rows)


def stored_batches(
    conn: Connection, codec: str, terms: Sequence[str], source: str, most: int
) -> Iterator[list[tuple[Value, ...]]]:
    """Yield what ``stored_rows`` returns in lists of up to ``most`` rows, as SQLite comes upon them."""
    with stored_text(conn):
        cursor = conn.stream(_stored_sql(codec, terms, source))
    try:
        while True:
            with stored_text(conn):  # not while the caller has the connection
                rows = cursor.fetchmany(most)
            if not rows:
                return
            yield _as_stored(codec, rows)
    finally:
        cursor.close()


def _stored_sql(codec: str, terms: Sequence[str], source: str) -> str:
    if codec == "utf-8":
        return f"SELECT {', '.join(terms)} {source}"
    # SQLite would turn text into UTF-8, and into something else where it isn't valid.
    return "SELECT " + ", ".join(f"typeof({t}) = 'text', {_bytes(t)}" for t in terms) + f" {source}"


def _bytes(term: str) -> str:
    return f"CASE typeof({term}) WHEN 'text' THEN CAST({term} AS BLOB) ELSE {term} END"


def _as_stored(codec: str, rows: list[tuple[Value, ...]]) -> list[tuple[Value, ...]]:
    if codec == "utf-8":
        return rows
    return [
        tuple(
            Text(value) if is_text and isinstance(value, bytes) else value
            for is_text, value in zip(row[::2], row[1::2], strict=True)
        )
        for row in rows
    ]


@contextmanager
def stored_text(conn: Connection) -> Iterator[None]:
    """Read text as ``Text`` in the block, whatever the connection's ``text_factory`` is."""
    altered, factory = conn.altered, conn.text_factory
    try:
        conn.text_factory = Text
        yield
    finally:
        conn.text_factory = factory
    conn.altered = altered  # all is as it was; after an error the pool looks for itself


__all__ = ["KeyCapture", "capture_ddl", "capturing", "stored_batches", "stored_rows"]
