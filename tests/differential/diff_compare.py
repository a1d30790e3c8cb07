"""When are two answers the same: typed, in order where the order is fixed, open only where SQLite leaves it open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diff_case import Statement

Row = tuple[Any, ...]
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Answer:
    """What one side said: rows and names, or an error."""

    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    changed: int = -1
    lastrowid: int | None = None
    error: BaseException | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        rows = ", ".join(map(repr, self.rows[:12])) + (", ..." if len(self.rows) > 12 else "")
        counts = f" changed={self.changed} lastrowid={self.lastrowid}" if self.changed >= 0 else ""
        return f"{list(self.columns)} {len(self.rows)} rows: {rows}{counts}"


def representative(value: Any, collation: str) -> Any:
    """Return what values that compare equal have in common, by type and collation."""
    if isinstance(value, int | float):
        return ("number", value + 0)
    if isinstance(value, str):
        if "NOCASE" in collation:
            value = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in value)
        return ("text", value.rstrip(" ") if "RTRIM" in collation else value)
    return repr(value)


def normal(row: Row, modes: Sequence[str]) -> Row:
    """Return a row with what is open taken out, so that equal rows are equal."""
    if not modes:
        return tuple(map(repr, row))
    made: list[Any] = []
    for value, mode in zip(row, modes, strict=True):
        name, _, how = mode.partition(":")
        if name == "rep":
            made.append(representative(value, how))
        elif name == "concat" and isinstance(value, str):
            made.append(tuple(sorted(value.split(how))))
        elif name == "approx":
            made.append(type(value).__name__)
        else:
            made.append(repr(value))
    return tuple(made)


def compare_rows(
    statement: Statement, plain: Sequence[Row], ours: Sequence[Row], *, ordered: bool, scale: Sequence[Row] = ()
) -> str | None:
    """Return what differs, or None."""
    modes = statement.modes
    if modes and plain and len(modes) != len(plain[0]):
        return f"the statement has {len(plain[0])} columns, and {len(modes)} modes"
    left, right = [normal(row, modes) for row in plain], [normal(row, modes) for row in ours]
    if ordered:
        if left != right:
            return "rows" if Counter(left) != Counter(right) else "order"
    elif Counter(left) != Counter(right):
        return "rows"
    if isinstance(statement.order, tuple) and not ordered:
        for a, b in zip(left, right, strict=True):
            if any(a[column] != b[column] for column in statement.order):
                return "order of the sorted columns"
    if any(mode == "approx" for mode in modes):
        return _compare_sums(modes, plain, ours, scale)
    return None


def _compare_sums(modes: Sequence[str], plain: Sequence[Row], ours: Sequence[Row], scale: Sequence[Row]) -> str | None:
    """Compare REAL sums to 1e-12 of the sums of absolute values; rows are paired by their other columns."""
    columns = [number for number, mode in enumerate(modes) if mode == "approx"]

    def paired(rows: Sequence[Row]) -> list[Row]:
        rest = [m if m != "approx" else "rep:" for m in modes]
        kept = [(normal(tuple(None if n in columns else v for n, v in enumerate(row)), rest), row) for row in rows]
        kept.sort(key=lambda pair: (repr(pair[0]), [_number(pair[1][n]) for n in columns]))
        return [row for _, row in kept]

    sizes = paired(scale) if len(scale) == len(plain) else []
    for number, (a, b) in enumerate(zip(paired(plain), paired(ours), strict=True)):
        for column in columns:
            x, y = a[column], b[column]
            if x is None or y is None:
                if x is not y:
                    return "sums"
                continue
            size = _number(sizes[number][column]) if sizes else max(abs(x), abs(y))
            if not math.isclose(x, y, rel_tol=0, abs_tol=TOLERANCE * max(size, abs(x))) and repr(x) != repr(y):
                return f"sums ({x!r} and {y!r}, where the absolute values add up to {size!r})"
    return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else -math.inf


def compare_errors(plain: BaseException | None, ours: BaseException | None) -> str | None:
    """Return what differs: both fail with the same class, and with SQLite's words, or neither does."""
    if plain is None and ours is None:
        return None
    if plain is None:
        return "an error where one file has none"
    if ours is None:
        return "no error where one file has one"
    if not isinstance(ours, type(plain)):
        return f"the class of the error ({type(ours).__name__} for {type(plain).__name__})"
    if str(plain) not in str(ours):
        return "the words of the error"
    return None


def same_but_for_ids(plain: Sequence[Row], ours: Sequence[Row], ids: Mapping[int, int]) -> bool:
    """Tell whether RETURNING gave the same rows, in any order, where ``ids`` says which generated id became which.

    RETURNING gives the rowid as REAL where the first column is REAL (a quirk of SQLite): then the ids are REAL too.
    """

    def same(x: Any, y: Any) -> bool:
        return repr(x) == repr(y) or (type(x) in (int, float) and repr(type(x)(ids.get(x, x))) == repr(y))

    if len(plain) != len(ours):
        return False
    left = list(ours)
    for row in plain:
        partner = next((n for n, other in enumerate(left) if all(map(same, row, other))), None)
        if partner is None:
            return False
        del left[partner]
    return True
