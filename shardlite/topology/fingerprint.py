"""Content hashes of tables: order-independent, typed, over the rowid and every column.

The fingerprint of a set of rows is the sum, modulo 2**128, of a 128-bit hash (MurmurHash3) of each row; so that of a
table is the sum of those of its parts, wherever they lie and in whatever order they are read. A row is hashed as the
bytes that ``marshal`` (format 2) makes of the tuple of its values: they tell 1, 1.0, '1' and x'31' apart and hold every
REAL exactly. It finds accidents, not attacks: MurmurHash3 is no cryptographic hash.

Text is handed to Python as its bytes and a blob as its hexadecimal text: the bytes of a text need not be valid UTF-8,
and an aggregate of Python's sqlite3 silently loses a row whose text isn't. So fingerprints of databases with different
text encodings differ.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mmh3

from shardlite.driver import sqlite3
from shardlite.errors import InternalError
from shardlite.names import quote
from shardlite.router.table import Table
from shardlite.topology.callbacks import Raised

_MODULUS = 1 << 128
_MAX_ARGUMENTS = 100
"""SQLite's limit on a function's arguments is 127 unless built otherwise; older builds have 100."""
_FUNCTION = "_shardlite_fingerprint"

_hash: Callable[[bytes], int] = mmh3.hash128
_bytes_of: Callable[[Any, int], bytes] = marshal.dumps

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The number of rows and the sum of their hashes. Fingerprints of parts add up."""

    rows: int = 0
    value: int = 0

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.rows + other.rows, (self.value + other.value) % _MODULUS)

    def __str__(self) -> str:
        return f"{self.value:032x}"


def total(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of the union of the parts."""
    return sum(parts, Fingerprint())


class _Aggregate:
    """The aggregate function. Its result is text, since it has more bits than SQLite's integers."""

    def __init__(self, raised: Raised) -> None:
        self._raised = raised
        self._sum = 0
        self._rows = 0

    def step(self, *values: Any) -> None:
        try:
            self._sum += _hash(_bytes_of(values, 2))
            self._rows += 1
        except BaseException as error:
            self._raised.failure = error
            raise

    def finalize(self) -> str:
        try:
            return f"{self._rows} {self._sum % _MODULUS:x}"
        except BaseException as error:
            self._raised.failure = error
            raise


def fingerprint_table(
    conn: sqlite3.Connection, table: Table, *, schema: str = "main", tick: Tick | None = None, batch: int = 100_000
) -> Fingerprint:
    """Compute a table's fingerprint on one connection, at constant memory.

    :param tick: called with the number of rows done since the last call, about every ``batch`` rows.
    """
    values = [_handed_over(quote(c.name), c.name == table.rowid_alias) for c in table.columns]
    if table.rowid_name is not None and table.rowid_alias is None and not table.virtual:
        values.insert(0, table.rowid_name)
    place = f"{quote(schema)}.{quote(table.name)} NOT INDEXED"
    if len(values) > _MAX_ARGUMENTS:
        return _fetched(conn, values, place, tick, batch)
    raised = Raised()
    make: Any = functools.partial(_Aggregate, raised)  # typeshed knows of classes with fixed numbers of arguments only
    conn.create_aggregate(_FUNCTION, len(values), make)
    call = f"SELECT {_FUNCTION}({', '.join(values)}), count(*) FROM {place}"
    result = Fingerprint()
    for where, bounds in _ranges(conn, table, place, batch):
        with raised.statement():
            text, rows = conn.execute(f"{call} {where}", bounds).fetchone()
        part = _parsed(text)
        if part.rows != rows:
            raise InternalError(f"{table.name}: {rows:,} rows were read but {part.rows:,} hashed")
        result += part
        if tick is not None and rows:
            tick(rows)
    return result


def _handed_over(name: str, is_rowid: bool) -> str:
    if is_rowid:
        return name
    # At least two characters, since Python keeps shorter strings for ever, and marshal shows that.
    texts = f"WHEN 'text' THEN CAST({name} AS BLOB)"
    return f"CASE typeof({name}) {texts} WHEN 'blob' THEN 'x:' || hex({name}) ELSE {name} END"


def _ranges(conn: sqlite3.Connection, table: Table, place: str, batch: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield conditions that split a table with rowids into ranges of ``batch`` rows; the whole of any other."""
    if table.rowid_name is None or table.virtual:
        yield "", ()
        return
    rowid = quote(table.rowid_name)
    where = ""
    bounds: tuple[int, ...] = ()
    while True:
        row = conn.execute(
            f"SELECT {rowid} FROM {place} {where} ORDER BY {rowid} LIMIT 1 OFFSET ?", (*bounds, batch - 1)
        ).fetchone()
        if row is None:
            yield where, bounds
            return
        yield f"{where} {'AND' if where else 'WHERE'} {rowid} <= ?", (*bounds, row[0])
        where, bounds = f"WHERE {rowid} > ?", (row[0],)


def _fetched(conn: sqlite3.Connection, values: list[str], place: str, tick: Tick | None, batch: int) -> Fingerprint:
    """Fetch the rows and hash them here: a table of more columns than a function may have arguments."""
    rows, value = 0, 0
    cursor = conn.cursor()
    cursor.row_factory = None
    with contextlib.closing(cursor):
        for row in cursor.execute(f"SELECT {', '.join(values)} FROM {place}"):
            value += _hash(_bytes_of(row, 2))
            rows += 1
            if tick is not None and rows % batch == 0:
                tick(batch)
    if tick is not None and rows % batch:
        tick(rows % batch)
    return Fingerprint(rows, value % _MODULUS)


def _parsed(text: str | None) -> Fingerprint:
    if text is None:  # the aggregate of no rows
        return Fingerprint()
    rows, value = text.split()
    return Fingerprint(int(rows), int(value, 16))
