"""The redo of one shard as bytes: a sequence of items, each of which begins with its letter. Pure.

====  ==============================================================================================================
D     u32 length, a schema statement (UTF-8). All of them come first, in their order
T     rows of one table, at most 1,000 or about 1 MiB: u16 length + table's name; u8 flags: 1 rows are named by key
      columns, otherwise by the rowid, 2 whole table; u16 key columns, their names (u16 length each; one for the rowid);
      u16 other columns, their names; u32 rows, u32 bytes of these rows; each row: key values, u8 1 there or 0 gone, if
      there the other values
A     u16 length + table's name, i64: its value in ``sqlite_sequence``, -1 for no row
====  ==============================================================================================================

A large table has several T items. Those of a whole table all carry the flag: before their rows come, all that the
table holds goes. Names are UTF-8, integers little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from shardlite.errors import DataError, InternalError
from shardlite.transaction.values import Text, Value, decode_values

Section = bytes
"""The redo of one shard."""

BY_KEY: Final = 1
WHOLE: Final = 2
NO_SEQUENCE: Final = -1

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_I64: Final = struct.Struct("<q")


class Row(NamedTuple):
    """One row of a T item. ``values`` is None where the row is gone."""

    key: Sequence[Value]
    values: Sequence[Value] | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A schema statement."""

    sql: str


@dataclass(frozen=True, slots=True)
class SequenceValue:
    """What ``sqlite_sequence`` holds of a table; ``NO_SEQUENCE`` for nothing."""

    table: str
    value: int


@dataclass(frozen=True, slots=True)
class Rows:
    """A T item. ``body`` is its rows as bytes."""

    table: str
    flags: int
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    count: int
    body: bytes

    @property
    def by_key(self) -> bool:
        return bool(self.flags & BY_KEY)

    @property
    def whole(self) -> bool:
        return bool(self.flags & WHOLE)

    def rows(self, text: Callable[[bytes], Value] = Text) -> Iterator[Row]:
        """Yield the rows; ``text`` says what to make of a text's bytes. Raises InternalError for damaged bytes."""
        body, at, keys, columns = self.body, 0, len(self.keys), len(self.columns)
        for _ in range(self.count):
            key, at = decode_values(body, at, keys, text)
            there = _part(body, at, 1)[0]
            at += 1
            values = None
            if there:
                values, at = decode_values(body, at, columns, text)
            yield Row(key, values)
        if at != len(body):
            raise InternalError(f"redo: {len(body) - at} bytes too many behind the rows of {self.table}")


Item = Statement | Rows | SequenceValue


def encode_item(item: Item) -> bytes:
    """Return an item's bytes. Raises DataError where a name is too long for it."""
    if isinstance(item, Statement):
        raw = item.sql.encode()
        return b"D" + _U32.pack(len(raw)) + raw
    if isinstance(item, SequenceValue):
        return b"A" + _name(item.table) + _I64.pack(item.value)
    parts = [b"T", _name(item.table), bytes((item.flags,))]
    for names in (item.keys, item.columns):
        parts.append(_U16.pack(len(names)))
        parts.extend(map(_name, names))
    return b"".join((*parts, _U32.pack(item.count), _U32.pack(len(item.body)), item.body))


def decode_section(section: Section) -> Iterator[Item]:
    """Yield a section's items. Raises InternalError where it isn't one."""
    at = 0
    while at < len(section):
        letter = section[at : at + 1]
        at += 1
        if letter == b"D":
            (size,) = _U32.unpack(_part(section, at, 4))
            yield Statement(_part(section, at + 4, size).decode())
            at += 4 + size
        elif letter == b"A":
            table, at = _read_name(section, at)
            (value,) = _I64.unpack(_part(section, at, 8))
            yield SequenceValue(table, value)
            at += 8
        elif letter == b"T":
            rows, at = _read_rows(section, at)
            yield rows
        else:
            raise InternalError(f"redo: byte {at - 1} should be the letter of an item, and is {letter!r}")


def _read_rows(section: Section, at: int) -> tuple[Rows, int]:
    table, at = _read_name(section, at)
    flags = _part(section, at, 1)[0]
    at += 1
    names: list[tuple[str, ...]] = []
    for _ in range(2):
        (count,) = _U16.unpack(_part(section, at, 2))
        at += 2
        found = []
        for _ in range(count):
            name, at = _read_name(section, at)
            found.append(name)
        names.append(tuple(found))
    (count,) = _U32.unpack(_part(section, at, 4))
    at += 4
    (size,) = _U32.unpack(_part(section, at, 4))
    at += 4
    body = _part(section, at, size)
    return Rows(table, flags, names[0], names[1], count, body), at + size


def _name(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > 0xFFFF:
        raise DataError(f"a name of {len(raw):,} bytes is too long for the log of transactions: {name[:40]}...")
    return _U16.pack(len(raw)) + raw


def _read_name(section: Section, at: int) -> tuple[str, int]:
    (size,) = _U16.unpack(_part(section, at, 2))
    return _part(section, at + 2, size).decode(), at + 2 + size


def _part(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise InternalError(f"redo: it ends within an item, at byte {len(data)}")
    return part
