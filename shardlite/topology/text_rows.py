"""Reading CSV and NDJSON: a first pass finds columns, types and errors, then the rows can be read again and again."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardlite.errors import DataError, ProgrammingError
from shardlite.names import fold
from shardlite.router.keys import MAX_INTEGER, MIN_INTEGER

_DELIMITERS = (",", ";", "\t", "|")
_FIELD_LIMIT = 1 << 30
"""Characters in one CSV field. The csv module's own limit, 131,072, is less than a text column may hold."""
_INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)
_INTEGER_LENGTH = len(str(MIN_INTEGER))
_EXACT_IN_REAL = 2**53
"""Up to here every integer is a REAL too. A longer one that is no 64-bit integer is a code, and stays text."""
_REAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class RowSource:
    """A text file that has been read through once. ``rows()`` reads it again, one sequence of values per row."""

    path: Path
    columns: tuple[str, ...]
    types: dict[str, str]
    count: int
    rows: Callable[[], Iterator[Sequence[Any]]]
    is_text: bool
    """All values are text, numbers too: the columns' affinities make numbers of them."""


class _Kind:
    """What the values of one column have in common so far."""

    __slots__ = ("exact", "integer", "seen", "text")

    def __init__(self) -> None:
        self.seen = False
        self.integer = True
        self.exact = True
        self.text = False

    def look(self, value: str) -> None:
        """Note a field of a CSV file; an empty one says nothing."""
        if self.text or not value:
            return
        self.seen = True
        if _INTEGER.match(value):
            self._look_at_integer(value)
            return
        self.integer = False
        if not (_REAL.match(value) and _plain(value) and math.isfinite(float(value))):
            self.text = True

    def _look_at_integer(self, value: str) -> None:
        # The length first: making an int of a very long run of digits is slow, and Python refuses it.
        if len(value) > _INTEGER_LENGTH or not (_plain(value) and MIN_INTEGER <= int(value) <= MAX_INTEGER):
            self.text = True
        elif abs(int(value)) > _EXACT_IN_REAL:
            self.exact = False

    @property
    def declared(self) -> str:
        if self.text or not self.seen:
            return "TEXT"
        if self.integer:
            return "INTEGER"
        return "REAL" if self.exact else "TEXT"


def _plain(value: str) -> bool:
    """Tell whether a number would be written so again: 007 and +1 are codes, not numbers, and stay text."""
    digits = value.lstrip("-")
    return not value.startswith("+") and (len(digits) < 2 or digits[0] != "0" or not digits[1].isdigit())


def csv_source(path: Path, delimiter: str | None, quote_char: str, encoding: str) -> RowSource:
    """Read a CSV file through. Raises DataError naming the line of what is malformed."""
    for what, char in (("delimiter", delimiter), ("quote_char", quote_char)):
        if char is not None and len(char) != 1:
            raise ProgrammingError(f"{what} must be one character, not {char!r}")
    _require_encoding(encoding)
    found = delimiter or _sniff(path, quote_char, encoding)
    if found == quote_char:
        raise ProgrammingError(f"delimiter and quote_char are both {found!r}")

    def records() -> Iterator[tuple[int, list[str]]]:
        return _records(path, found, quote_char, encoding)

    first = next(records(), None)
    if first is None:
        raise DataError(f"{path} is empty: its first line must name the columns")
    columns = _header(path, first[0], first[1])
    kinds = [_Kind() for _ in columns]
    count = 0
    source = records()
    next(source)
    for line, row in source:
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields where the header names {len(columns)}: "
                f"{found.join(row)[:60]!r}"
            )
        for kind, value in zip(kinds, row, strict=True):
            kind.look(value)
        count += 1

    def rows() -> Iterator[Sequence[Any]]:
        again = records()
        next(again, None)
        return (row for _line, row in again)

    types = {name: kind.declared for name, kind in zip(columns, kinds, strict=True)}
    return RowSource(path, columns, types, count, rows, True)


def _sniff(path: Path, quote_char: str, encoding: str) -> str:
    """Choose the delimiter that splits the first line, outside quotes, into the most fields."""
    with _text(path, encoding) as file:
        line = file.readline(1 << 20)
    bare = re.sub(f"{re.escape(quote_char)}[^{re.escape(quote_char)}]*{re.escape(quote_char)}", "", line)
    return max(_DELIMITERS, key=lambda mark: (bare.count(mark), -_DELIMITERS.index(mark)))


def _records(path: Path, delimiter: str, quote_char: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the record's first line, fields); lines with nothing on them are left out."""
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    with _text(path, encoding) as file:
        reader = csv.reader(file, delimiter=delimiter, quotechar=quote_char, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}, line {max(line, reader.line_num)}: {_csv_words(error, line)}") from error
            except UnicodeDecodeError as error:
                raise _not_text(path, encoding, error) from error
            if row:
                yield line, row


def _csv_words(error: csv.Error, line: int) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return f"the quote that opens in the record of line {line} is never closed"
    return f"{text} (in the record that begins in line {line})"


def _header(path: Path, line: int, names: Sequence[str]) -> tuple[str, ...]:
    columns = [name.strip() for name in names]
    for number, name in enumerate(columns, 1):
        if not name:
            raise DataError(f"{path}, line {line}: column {number} of the header has no name")
        if "\0" in name:
            raise DataError(f"{path}, line {line}: column {number} of the header holds a NUL")
    seen: dict[str, int] = {}
    for number, name in enumerate(columns, 1):
        if fold(name) in seen:
            raise DataError(
                f"{path}, line {line}: the header names {name!r} twice (columns {seen[fold(name)]} and {number})"
            )
        seen[fold(name)] = number
    return tuple(columns)


# ---- NDJSON


def ndjson_source(path: Path, encoding: str) -> RowSource:
    """Read an NDJSON file through. Raises DataError naming the line of what is malformed."""
    _require_encoding(encoding)
    names: dict[str, str] = {}
    kinds: dict[str, set[type]] = {}
    count = 0
    for line, record in _objects(path, encoding):
        count += 1
        for name, value in record.items():
            _note_name(path, line, names, name)
            if value is not None:
                kinds.setdefault(name, set()).add(type(value))
    if not names:
        raise DataError(f"{path} holds no rows: one JSON object per line is expected")
    columns = tuple(names.values())

    def rows() -> Iterator[Sequence[Any]]:
        for _line, record in _objects(path, encoding):
            yield [_stored(record.get(name)) for name in columns]

    types = {name: _declared(kinds.get(name, set())) for name in columns}
    return RowSource(path, columns, types, count, rows, False)


def _objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("an object names one thing twice")
        return made

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    decoder = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse)
    with _text(path, encoding, newline="\n") as file:
        number = 0
        while True:
            number += 1
            try:
                text = file.readline()
            except UnicodeDecodeError as error:
                raise _not_text(path, encoding, error) from error
            if not text:
                return
            if not text.strip():
                continue
            try:
                record = decoder.decode(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not a JSON object: {error}: {text.strip()[:60]!r}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: a JSON object is expected, not {text.strip()[:60]!r}")
            _require_values(path, number, record)
            yield number, record


def _require_values(path: Path, line: int, record: dict[str, Any]) -> None:
    for name, value in record.items():
        if type(value) is int and not MIN_INTEGER <= value <= MAX_INTEGER:
            raise DataError(f"{path}, line {line}: {name} = {value} is beyond 64 bits: write it as a string")
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(f"{path}, line {line}: {name} holds half of a surrogate pair, which is no text")


def _note_name(path: Path, line: int, names: dict[str, str], name: str) -> None:
    if name in names:
        return
    if not name or "\0" in name:
        raise DataError(f"{path}, line {line}: {name!r} can't be a column's name")
    other = next((known for known in names if fold(known) == fold(name)), None)
    if other is not None:
        raise DataError(f"{path}, line {line}: {name!r} and {other!r} are one column name to SQLite")
    names[name] = name


def _stored(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return int(value) if isinstance(value, bool) else value


def _declared(kinds: set[type]) -> str:
    """Return the type in which every value stays what it is; none where texts and numbers are mixed."""
    if kinds and kinds <= {int, bool}:
        return "INTEGER"
    if kinds and kinds <= {int, bool, float}:
        return "REAL" if float in kinds and int not in kinds else ""
    return "TEXT" if kinds <= {str, dict, list} else ""


# ---- text


def _require_encoding(encoding: str) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ProgrammingError(f"unknown text encoding {encoding!r}") from None


@contextlib.contextmanager
def _text(path: Path, encoding: str, newline: str = "") -> Iterator[io.TextIOWrapper]:
    try:
        file = open(path, encoding=encoding, newline=newline)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    with file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise _not_text(path, encoding, error) from error


def _not_text(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    """Name the line of the first byte that is not text; the decoder works on blocks and can't tell."""
    line = 1
    with open(path, "rb") as raw:
        decoder = codecs.getincrementaldecoder(encoding)()
        for number, block in enumerate(raw, 1):
            line = number
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                break
    return DataError(
        f"{path}, line {line}: not {encoding} text ({error.reason}): give its encoding "
        "(--encoding, encoding=), such as latin-1"
    )
