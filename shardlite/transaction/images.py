"""Final images of rows: read from the shard where a transaction ends, written to a shard that lacks it.

No statement is run again, so that ``random()``, the clock, defaults, triggers, cascades, the order of rows or another
SQLite version can't make a difference. A replay deletes all rows that were touched, inserts those that are there at the
end, and reads each back to compare it bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import DataError, InternalError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.transaction.capture import stored_batches, stored_rows
from shardlite.transaction.definition import SEQUENCES, Definitions, TableDefinition
from shardlite.transaction.section import (
    BY_KEY,
    NO_SEQUENCE,
    WHOLE,
    Item,
    Row,
    Rows,
    Section,
    SequenceValue,
    Statement,
    decode_section,
    encode_item,
)
from shardlite.transaction.touched import TouchedTable
from shardlite.transaction.values import Text, Value, bindable, encode_values

BATCH_ROWS: Final = 1_000
BATCH_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 4 << 20
_SAVEPOINT: Final = "_shardlite_replay"
_GONE, _THERE = b"\x00", b"\x01"

Key = tuple[Value, ...]


# ---- reading


def read_images(
    conn: Connection,
    touched: Sequence[TouchedTable],
    definitions: Definitions | None = None,
    statements: Sequence[str] = (),
) -> Section:
    """Return the redo of one shard: the final images of the rows that were touched there.

    :param conn: has the transaction open.
    :param definitions: of the shard's schema as it is now, for who has them already.
    :param statements: the schema changes of the transaction, in their order.
    :raises NotSupportedError: a table's rows can't be named.
    :raises DataError: something that the redo can't hold.

    Equal rows on two shards give equal bytes. ``image_items`` gives the same piece by piece, in bounded memory.
    """
    return b"".join(image_items(conn, touched, definitions, statements))


def image_items(
    conn: Connection,
    touched: Sequence[TouchedTable],
    definitions: Definitions | None = None,
    statements: Sequence[str] = (),
) -> Iterator[bytes]:
    """Yield the items of ``read_images``: each up to 1,000 rows, and no longer than 1 MiB and the last of them."""
    known = Definitions(conn) if definitions is None else definitions
    for sql in statements:
        yield encode_item(Statement(sql))
    sequences = []
    for part in touched:
        if statements and not known.has(part.name):
            continue  # a schema change of the transaction itself dropped it
        table = known.table(conn, part.name)
        reader = _Reader(conn, known.codec, table)
        yield from map(encode_item, reader.all_rows() if part.whole else reader.rows_of(part))
        if table.autoincrement:
            sequences.append(table.name)
    for name in sequences:
        yield encode_item(SequenceValue(name, _sequence(conn, name)))


class _Reader:
    """Reads rows of one table, in the order and with the names of its items."""

    def __init__(self, conn: Connection, codec: str, table: TableDefinition, columns: Sequence[str] = ()) -> None:
        self._conn = conn
        self._codec = codec
        self._table = table
        self._columns = tuple(columns) or table.columns
        self._terms = (*table.key_terms, *map(quote, self._columns))
        self._place = f"FROM main.{quote(table.name)}"

    def rows_of(self, touched: TouchedTable) -> Iterator[Rows]:
        """Yield items of the rows with these keys, by the keys' order, each row once."""
        if self._table.by_key != bool(touched.keys) and (touched.keys or touched.rowids):
            needed = f"its key columns ({', '.join(self._table.keys)})" if self._table.by_key else "its rowid"
            raise ProgrammingError(f"{self._table.name}: a touched row must be named by {needed}")
        if not self._table.by_key:
            rowids = iter(sorted(set(touched.rowids)))
            while batch := list(islice(rowids, BATCH_ROWS)):
                yield from self._items(self.by_rowid(batch))
            return
        found: dict[bytes, Row] = {}
        for row in self.by_keys(touched.keys):
            found[encode_values(row.key, self._codec)] = row
        yield from self._items(found[key] for key in sorted(found))

    def all_rows(self) -> Iterator[Rows]:
        """Yield items of the whole table; at least one, which may be empty."""
        found = False
        for item in self._items(self._scan(), WHOLE):
            found = True
            yield item
        if not found:
            yield self._item([], WHOLE)

    def _scan(self) -> Iterator[Row]:
        table, keys = self._table, len(self._table.keys)
        terms = zip(table.key_terms, table.key_collations, strict=True)
        order = ", ".join(f"{term} COLLATE {quote(collation)}" for term, collation in terms)
        source = f"{self._place} ORDER BY {order if table.by_key else table.key_terms[0]}"
        for rows in stored_batches(self._conn, self._codec, self._terms, source, BATCH_ROWS):
            yield from (Row(row[:keys], row[keys:]) for row in rows)

    def by_rowid(self, rowids: Sequence[int]) -> Iterator[Row]:
        """Yield the rows of these rowids in their order, also those that are gone."""
        source = f"{self._place} WHERE {self._table.key_terms[0]} IN (SELECT value FROM json_each(?))"
        listed = json.dumps(list(rowids))
        found = {row[0]: row for row in stored_rows(self._conn, self._codec, self._terms, source, (listed,))}
        for rowid in rowids:
            row = found.get(rowid)
            yield Row((rowid,), None if row is None else row[1:])

    def by_keys(self, keys: Iterable[Key]) -> Iterator[Row]:
        """Yield the rows of these keys in their order; one that is there has the key that it has there."""
        count = len(self._table.keys)
        for key in keys:
            if len(key) != count:
                raise ProgrammingError(
                    f"{self._table.name}: a row is named by ({', '.join(self._table.keys)}), not by {len(key)} values"
                )
            condition, parameters = _key_condition(self._table, key, self._codec)
            rows = stored_rows(self._conn, self._codec, self._terms, f"{self._place} WHERE {condition}", parameters)
            yield Row(rows[0][:count], rows[0][count:]) if rows else Row(key, None)

    def _items(self, rows: Iterable[Row], flags: int = 0) -> Iterator[Rows]:
        parts: list[bytes] = []
        size = 0
        for row in rows:
            part = self.encode(row)
            parts.append(part)
            size += len(part)
            if len(parts) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield self._item(parts, flags)
                parts, size = [], 0
        if parts:
            yield self._item(parts, flags)

    def encode(self, row: Row) -> bytes:
        """Return a row as it stands in an item."""
        key = encode_values(row.key, self._codec)
        return key + _GONE if row.values is None else key + _THERE + encode_values(row.values, self._codec)

    def _item(self, parts: Sequence[bytes], flags: int) -> Rows:
        table = self._table
        flags |= BY_KEY if table.by_key else 0
        return Rows(table.name, flags, table.keys, self._columns, len(parts), b"".join(parts))


def _key_condition(table: TableDefinition, key: Sequence[Value], codec: str) -> tuple[str, list[Value]]:
    """Return the condition that a row has a key, in the primary key's own terms, which can search through it."""
    bind = bindable(codec)
    parts, parameters = [], []
    for term, collation, value in zip(table.key_terms, table.key_collations, key, strict=True):
        bound = bind(value) if isinstance(value, Text) else value
        if isinstance(bound, Text):
            # The sign: the affinity of a CAST must not make text of a number that it is compared with.
            parts.append(f"({term} COLLATE {quote(collation)}) IS +{_literal(bound)}")
        else:
            parts.append(f"({term} COLLATE {quote(collation)}) IS ?")
            parameters.append(bound)
    return " AND ".join(parts), parameters


def _literal(value: Value) -> str:
    """Return SQL for text that no ``str`` says, or for a blob. Unlike one that is bound, it isn't taken for UTF-8."""
    assert isinstance(value, bytes)
    blob = f"x'{value.hex()}'"
    return f"CAST({blob} AS TEXT)" if isinstance(value, Text) else blob


def _sequence(conn: Connection, table: str) -> int:
    row = conn.fetch_row(f"SELECT seq FROM main.{SEQUENCES} WHERE name = ?", (table,))
    if row is None:
        return NO_SEQUENCE
    if not isinstance(row[0], int) or row[0] < 0:
        raise DataError(f"{SEQUENCES} holds {row[0]!r} for {table}: it must be a number from 0 on")
    return row[0]


# ---- writing


def prepare_replay(conn: Connection) -> None:
    """Set a connection up for ``write_images``, before its transaction begins: SQLite ignores it later."""
    conn.fetch_all("PRAGMA foreign_keys = OFF")
    conn.fetch_all("PRAGMA ignore_check_constraints = ON")


def write_images(conn: Connection, section: Section) -> None:
    """Make the rows of a shard what a section says, and compare each bit by bit. Twice is as good as once.

    :param conn: of its own, set up by ``prepare_replay``, in a transaction that holds the write lock.
    :raises InternalError: the rows can't be reproduced: the shard isn't the one that the section is of, or something
        is wrong with either.
    :raises ProgrammingError: the connection isn't set up.
    :raises sqlite3.Error: what SQLite says of a full disk, of a function or collation that this process lacks.

    After an error the transaction is what it was before.
    """
    if not conn.in_transaction or conn.fetch_row("PRAGMA foreign_keys") != (0,):
        raise ProgrammingError("images are written in a transaction of a connection that prepare_replay() has seen")
    with _whole_or_nothing(conn):
        items = list(decode_section(section))
        for item in items:
            if isinstance(item, Statement):
                conn.run(item.sql)
        _Replay(conn, items).run()


@contextmanager
def _whole_or_nothing(conn: Connection) -> Iterator[None]:
    conn.run(f"SAVEPOINT {_SAVEPOINT}")
    try:
        yield
    except BaseException as error:
        if conn.in_transaction:
            conn.run(f"ROLLBACK TO {_SAVEPOINT}")
            conn.run(f"RELEASE {_SAVEPOINT}")
        if isinstance(error, sqlite3.IntegrityError):
            raise InternalError(f"redo: the rows don't fit what the shard holds: {error}") from error
        raise
    conn.run(f"RELEASE {_SAVEPOINT}")


class _Replay:
    """Writes the rows of a section's items."""

    def __init__(self, conn: Connection, items: Sequence[Item]) -> None:
        self._conn = conn
        self._definitions = Definitions(conn)
        self._codec = self._definitions.codec
        # Text that no ``str`` says. And what an expression of an index makes of a blob depends, in UTF-16, on where the
        # blob comes from: SQLite takes the bytes of one that is bound for UTF-8, those of the file for UTF-16.
        self._odd = {Text} if self._codec == "utf-8" else {Text, bytes}
        self._rows = [item for item in items if isinstance(item, Rows)]
        self._sequences = [item for item in items if isinstance(item, SequenceValue)]
        self._kept: dict[int, list[Row]] | None = {}
        """Rows as they are bound, by the item; None where they would be too many to be kept."""
        if sum(len(item.body) for item in self._rows) > _KEPT_BYTES:
            self._kept = None
        self._tables = {item.table: self._table(item) for item in self._rows}

    def _table(self, item: Rows) -> TableDefinition:
        if not self._definitions.has(item.table):
            raise InternalError(f"redo: there is no table {item.table} on this shard")
        table = self._definitions.table(self._conn, item.table)
        names = sorted(map(fold, item.keys + item.columns))
        if table.by_key != item.by_key or names != sorted(map(fold, table.keys + table.columns)):
            raise InternalError(f"redo: the columns of {item.table} are others on this shard")
        if list(map(fold, table.keys)) != list(map(fold, item.keys)):
            raise InternalError(f"redo: the rows of {item.table} are named otherwise on this shard")
        return table

    def run(self) -> None:
        """Delete, insert, set sequences, compare; without the tables' triggers, which come back in their order."""
        triggers = self._definitions.triggers_of(self._tables)
        for trigger in triggers:
            self._conn.run(f"DROP TRIGGER main.{quote(trigger.name)}")
        for table in {item.table for item in self._rows if item.whole}:
            self._conn.run(f"DELETE FROM main.{quote(table)}")
        for item in self._rows:
            if not item.whole:
                self._delete(item)
        for item in self._rows:
            self._insert(item)
        for sequence in self._sequences:
            self._set_sequence(sequence)
        for trigger in triggers:
            self._conn.run(trigger.sql)
        for item in self._rows:
            self._compare(item)
        self._compare_counts()

    def _bound(self, item: Rows) -> Iterable[Row]:
        if self._kept is None:
            return item.rows(bindable(self._codec))
        found = self._kept.get(id(item))
        if found is None:
            found = self._kept[id(item)] = list(item.rows(bindable(self._codec)))
        return found

    def _delete(self, item: Rows) -> None:
        table = self._tables[item.table]
        place = f"DELETE FROM main.{quote(table.name)} WHERE "
        plain, odd = self._split(row.key for row in self._bound(item))
        if plain:
            condition, _ = _key_condition(table, plain[0], self._codec)
            self._conn.run_many(place + condition, plain)
        for key in odd:
            condition, parameters = _key_condition(table, key, self._codec)
            self._conn.run(place + condition, parameters)

    def _insert(self, item: Rows) -> None:
        table = self._tables[item.table]
        # A conflict clause in the table's definition would push rows out without a word.
        names = ", ".join((*table.key_terms, *map(quote, item.columns)))
        into = f"INSERT OR ABORT INTO main.{quote(table.name)}({names}) VALUES "
        rows = ((*row.key, *row.values) for row in self._bound(item) if row.values is not None)
        plain, odd = self._split(rows)
        if plain:
            self._conn.run_many(f"{into}({', '.join('?' * len(plain[0]))})", plain)
        for row in odd:
            marks = [_literal(value) if type(value) in self._odd else "?" for value in row]
            bound = [value for value in row if type(value) not in self._odd]
            self._conn.run(f"{into}({', '.join(marks)})", bound)

    def _split(self, rows: Iterable[Sequence[Value]]) -> tuple[list[Sequence[Value]], list[Sequence[Value]]]:
        """Tell rows that can be bound from those with values that can't."""
        plain: list[Sequence[Value]] = []
        odd: list[Sequence[Value]] = []
        for row in rows:
            (plain if self._odd.isdisjoint(map(type, row)) else odd).append(row)
        return plain, odd

    def _set_sequence(self, sequence: SequenceValue) -> None:
        run = self._conn.run
        run(f"DELETE FROM main.{SEQUENCES} WHERE name = ?", (sequence.table,))
        if sequence.value != NO_SEQUENCE:
            run(f"INSERT INTO main.{SEQUENCES}(name, seq) VALUES (?, ?)", (sequence.table, sequence.value))

    def _compare(self, item: Rows) -> None:
        reader = _Reader(self._conn, self._codec, self._tables[item.table], item.columns)
        found: Iterator[Row]
        if item.by_key:
            found = reader.by_keys(tuple(row.key) for row in self._bound(item))
        else:
            found = reader.by_rowid([_rowid(row, item.table) for row in self._bound(item)])
        got = list(found)
        if b"".join(map(reader.encode, got)) == item.body:
            return
        for wanted, here in zip(item.rows(), got, strict=True):
            if reader.encode(wanted) != reader.encode(here):
                raise InternalError(
                    f"redo: a row of {item.table} comes out otherwise than it was: {_shown(item, wanted)}, and here "
                    f"{_shown(item, here)}"
                )

    def _compare_counts(self) -> None:
        for name in sorted({item.table for item in self._rows if item.whole}):
            wanted = sum(item.count for item in self._rows if item.whole and item.table == name)
            row = self._conn.fetch_row(f"SELECT count(*) FROM main.{quote(name)}")
            if row != (wanted,):
                raise InternalError(f"redo: {name} should have {wanted:,} rows, and has {row}")


def _rowid(row: Row, table: str) -> int:
    (rowid,) = row.key
    if not isinstance(rowid, int):
        raise InternalError(f"redo: a rowid of {table} is no integer: {rowid!r}")
    return rowid


def _shown(item: Rows, row: Row) -> str:
    key = ", ".join(f"{name} = {value!r}" for name, value in zip(item.keys, row.key, strict=True))
    if row.values is None:
        return f"{key}: gone"
    values = ", ".join(f"{name} = {value!r:.60}" for name, value in zip(item.columns, row.values, strict=True))
    return f"{key}: {values}"
