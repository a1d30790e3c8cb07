"""Text that is no Unicode, on its way through Python: read with escapes, and written as the bytes that it is.

SQLite stores any bytes as text; the driver can neither read nor bind those that are no UTF-8. A value read with
escapes is bound as a BLOB, which a CAST makes text again. (A database in UTF-16 would take the bytes for UTF-16: there
such text stays refused.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from shardlite.driver import sqlite3

Row = Sequence[Any]


class RawText:
    """A ``text_factory``; ``met`` says whether some text was no Unicode."""

    def __init__(self) -> None:
        self.met = False

    def __call__(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.met = True
            return raw.decode("utf-8", "surrogateescape")

    def run_many(
        self,
        run: Callable[[str, Sequence[Row]], int],
        sql: Callable[[Sequence[str]], str],
        width: int,
        rows: Sequence[Row],
    ) -> int:
        """Run one statement for each row; ``sql`` makes its text of the values' places. Return what ``run`` counts."""
        plain = ("?",) * width
        if not self.met:
            return run(sql(plain), rows)
        count = 0
        for raw, group in groupby(rows, key=_raw_places):
            part = list(group)
            if raw:
                places = ["CAST(? AS TEXT)" if at in raw else "?" for at in range(width)]
                part = [[_bytes_of(v) if at in raw else v for at, v in enumerate(row)] for row in part]
                count += run(sql(places), part)
            else:
                count += run(sql(plain), part)
        return count


def is_raw_text(error: sqlite3.Error) -> bool:
    """Tell whether a value couldn't be read because it is text that is no Unicode."""
    return "Could not decode to UTF-8" in str(error)


def _raw_places(row: Row) -> frozenset[int]:
    return frozenset(at for at, value in enumerate(row) if isinstance(value, str) and not _encodes(value))


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
