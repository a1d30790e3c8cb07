"""Writing rows: as a table for people, as CSV, JSON or NDJSON for programs. All of them stream.

A NULL is an empty field in CSV, ``null`` in JSON and ``NULL`` in a table. A blob is ``{"$base64": "..."}`` in JSON
and ``x'00ff'``, as SQL writes it, in CSV and tables. JSON has no infinities: these are ``9e999`` and ``-9e999``
(as SQL writes them) in text. Bytes that are no UTF-8 in a text are shown as U+FFFD.
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TextIO

import click
from rich.cells import cell_len

FORMATS = ("table", "csv", "json", "ndjson")

_SAMPLE_ROWS = 200
_MAX_CELL = 60


class Rows(Protocol):
    """What can be written: named columns and rows to iterate, as a Result has them."""

    @property
    def columns(self) -> Sequence[str]: ...

    def __iter__(self) -> Iterator[Sequence[Any]]: ...


def write_rows(rows: Rows, form: str, out: TextIO) -> int:
    """Write all rows in the given format to ``out`` and return how many there were."""
    writer = {"table": _write_table, "csv": _write_csv, "json": _write_json, "ndjson": _write_ndjson}[form]
    return writer(list(rows.columns), rows, out)


def json_value(value: object) -> object:
    """Return the value as JSON can hold it."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$base64": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        return _real_text(value)
    return value


def plain_text(value: object) -> str:
    """Return the value as it stands in a CSV field, NULL as nothing."""
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"x'{bytes(value).hex()}'"
    if isinstance(value, float):
        return _real_text(value)
    return str(value)


def _real_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else ("9e999" if value > 0 else "-9e999")


def _cell(value: object) -> str:
    """Return the value for a table: one line, shortened; NULL is said so that it differs from an empty text."""
    if value is None:
        return "NULL"
    text = plain_text(value).replace("\r", "").replace("\n", "⏎").replace("\t", " ")
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def _write_table(columns: list[str], rows: Iterable[Sequence[Any]], out: TextIO) -> int:
    """Write aligned columns; the widths are those of the first rows, so that memory stays constant."""
    source = iter(rows)
    first = list(itertools.islice(source, _SAMPLE_ROWS))
    shown = [[_cell(value) for value in row] for row in first]
    widths = [max([cell_len(_cell(name)), *(cell_len(row[i]) for row in shown)]) for i, name in enumerate(columns)]
    numeric = [
        any(row[i] is not None for row in first)
        and all(row[i] is None or isinstance(row[i], (int, float)) for row in first)
        for i in range(len(columns))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for text, width, right in zip(cells, widths, numeric, strict=True):
            space = " " * max(0, width - cell_len(text))
            padded.append(space + text if right else text + space)
        return "  ".join(padded).rstrip() + "\n"

    out.write(line([_cell(name) for name in columns]))
    out.write("  ".join("-" * width for width in widths) + "\n")
    out.writelines(line(row) for row in shown)
    count = len(shown)
    for row in source:
        out.write(line([_cell(value) for value in row]))
        count += 1
    return count


def _write_csv(columns: list[str], rows: Iterable[Sequence[Any]], out: TextIO) -> int:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([plain_text(value) for value in row])
        count += 1
    return count


def _objects(columns: list[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in rows:
        named = {name: json_value(value) for name, value in zip(columns, row, strict=True)}
        yield json.dumps(named, ensure_ascii=False)


def _unique(columns: list[str]) -> list[str]:
    """Number repeated column names (``id``, ``id_2``), since a JSON object holds each name once."""
    seen: set[str] = set()
    names = []
    for name in columns:
        candidates = itertools.chain((name,), (f"{name}_{n}" for n in itertools.count(2)))
        unique = next(candidate for candidate in candidates if candidate not in seen)
        seen.add(unique)
        names.append(unique)
    return names


def _write_json(columns: list[str], rows: Iterable[Sequence[Any]], out: TextIO) -> int:
    count = 0
    out.write("[")
    for text in _objects(_unique(columns), rows):
        out.write(("\n " if count == 0 else ",\n ") + text)
        count += 1
    out.write("\n]\n" if count else "]\n")
    return count


def _write_ndjson(columns: list[str], rows: Iterable[Sequence[Any]], out: TextIO) -> int:
    count = 0
    for text in _objects(_unique(columns), rows):
        out.write(text + "\n")
        count += 1
    return count


def write_document(document: object) -> None:
    """Write one JSON document to stdout: what ``--json`` prints."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2, default=_json_default))


def _json_default(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return json_value(value)
    if isinstance(value, (set, frozenset, range)):
        return sorted(value)
    return str(value)
