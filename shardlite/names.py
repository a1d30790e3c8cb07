"""Identifiers: quoting, comparing, and the prefix that is ours."""

from __future__ import annotations

from shardlite.errors import ProgrammingError

RESERVED_PREFIX = "_shardlite_"

_UPPER_TO_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_LOWER_TO_UPPER = {lower: upper for upper, lower in _UPPER_TO_LOWER.items()}


def fold(name: str) -> str:
    """Fold a name's case as SQLite does: ASCII letters only."""
    return name.lower() if name.isascii() else name.translate(_UPPER_TO_LOWER)


def unfold(name: str) -> str:
    """Return a name in upper case, as SQLite reads keywords: ASCII letters only ("ſelect" is no SELECT)."""
    return name.upper() if name.isascii() else name.translate(_LOWER_TO_UPPER)


def quote(name: str) -> str:
    """Quote an identifier for SQL text. Raises ProgrammingError for one that SQLite can't hold (a NUL, empty)."""
    if not isinstance(name, str):
        raise ProgrammingError(f"an identifier must be a str, not {type(name).__name__}: {name!r}")
    if not name or "\0" in name:
        raise ProgrammingError(f"not a usable identifier: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def is_reserved(name: str) -> bool:
    """Tell whether a name is shardlite's own (hidden from listings, refused in user DDL)."""
    return fold(name).startswith(RESERVED_PREFIX)
