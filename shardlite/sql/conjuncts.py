"""What a condition's text says about single columns: equalities and bounds that every matching row fulfils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardlite.names import fold
from shardlite.router.table import Table
from shardlite.sql.expressions import (
    Token,
    closing,
    column_name,
    is_word,
    split_commas,
    strip_parentheses,
)

Parameters = Sequence[Any] | Mapping[str, Any]

_COMPARISONS = {"=": "=", "==": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""A comparison and what it becomes with its sides exchanged."""
_UNKNOWN = object()


def analyse_conjuncts(
    table: Table, tokens: list[Token], parameters: Parameters
) -> tuple[dict[str, tuple[Any, ...]], dict[str, list[tuple[str, Any]]]]:
    """Return pins and ranges (see ``Condition``) from the conjuncts ``column op constant`` of a text.

    Only a bare column against a literal or a parameter counts: there SQLite applies the column's own affinity and
    collation. Everything else is ignored, which is always safe.
    """
    pins: dict[str, tuple[Any, ...]] = {}
    ranges: dict[str, list[tuple[str, Any]]] = {}
    positions = _positions(tokens)
    for conjunct in _conjuncts(tokens):
        found = _comparison(table, conjunct, positions, parameters)
        if found is None:
            continue
        name, operator, values = found
        if operator == "=":
            if name not in pins or len(values) < len(pins[name]):
                pins[name] = values
        else:
            ranges.setdefault(name, []).append((operator, values[0]))
    return pins, ranges


def _positions(tokens: list[Token]) -> dict[int, int]:
    """Number the ``?`` and ``?N`` as SQLite does: start offset -> 0-based position."""
    positions: dict[int, int] = {}
    largest = 0
    for token in tokens:
        if token.kind == "parameter" and token.text[0] == "?":
            number = int(token.text[1:]) if len(token.text) > 1 else largest + 1
            largest = max(largest, number)
            positions[token.start] = number - 1
    return positions


def _conjuncts(tokens: list[Token]) -> list[list[Token]]:
    """Split at the ANDs outside of parentheses and CASE, unless an OR beside them takes precedence over nothing."""
    tokens = strip_parentheses(tokens)
    parts: list[list[Token]] = [[]]
    depth = betweens = 0
    for token in tokens:
        if token.text == "(" or is_word(token, "case"):
            depth += 1
        elif token.text == ")" or is_word(token, "end"):
            depth -= 1
        if depth == 0 and is_word(token, "or"):
            return []
        if depth == 0 and is_word(token, "between"):
            betweens += 1
        if depth == 0 and is_word(token, "and"):
            if betweens:
                betweens -= 1
            else:
                parts.append([])
                continue
        parts[-1].append(token)
    if len(parts) == 1:
        return [tokens]
    return [inner for part in parts for inner in _conjuncts(part)]


def _comparison(
    table: Table, tokens: list[Token], positions: dict[int, int], parameters: Parameters
) -> tuple[str, str, tuple[Any, ...]] | None:
    operators = [index for index, token in enumerate(tokens) if token.text in _COMPARISONS]
    if len(operators) == 1:
        at = operators[0]
        left, operator, right = tokens[:at], tokens[at].text, tokens[at + 1 :]
        if _column(table, left) is None:
            left, operator, right = right, _COMPARISONS[operator], left
        name = _column(table, left)
        value = _constant(right, positions, parameters)
        if name is None or value is _UNKNOWN:
            return None
        operator = "=" if operator == "==" else operator
        if value is None:
            return name, "=", ()
        return name, operator, (value,)
    return _membership(table, tokens, positions, parameters)


def _membership(
    table: Table, tokens: list[Token], positions: dict[int, int], parameters: Parameters
) -> tuple[str, str, tuple[Any, ...]] | None:
    at = next((index for index, token in enumerate(tokens) if is_word(token, "in")), None)
    if at is None or at + 1 >= len(tokens) or closing(tokens, at + 1) != len(tokens) - 1:
        return None
    name = _column(table, tokens[:at])
    inner = tokens[at + 2 : -1]
    values = [_constant(part, positions, parameters) for part in split_commas(inner)] if inner else []
    if name is None or any(value is _UNKNOWN for value in values):
        return None
    return name, "=", tuple(value for value in values if value is not None)


def _column(table: Table, tokens: list[Token]) -> str | None:
    name = column_name(tokens)
    column = table.by_name.get(fold(name)) if name is not None else None
    return fold(column.name) if column is not None else None


def _constant(tokens: list[Token], positions: dict[int, int], parameters: Parameters) -> Any:
    """Return a literal's or a parameter's value, or _UNKNOWN. Reals are left out: Python may read them otherwise."""
    negative = len(tokens) == 2 and tokens[0].text == "-"
    if negative:
        tokens = tokens[1:]
    if len(tokens) != 1:
        return _UNKNOWN
    token = tokens[0]
    if token.kind == "number" and token.text.isdecimal():
        value = -int(token.text) if negative else int(token.text)
        return value if -(2**63) < value < 2**63 else _UNKNOWN
    if negative:
        return _UNKNOWN
    if token.kind == "string":
        return token.text[1:-1].replace("''", "'")
    if token.kind == "blob":
        return bytes.fromhex(token.text[2:-1]) if len(token.text) % 2 else _UNKNOWN
    if is_word(token, "null"):
        return None
    if token.kind == "parameter":
        return _parameter(token, positions, parameters)
    return _UNKNOWN


def _parameter(token: Token, positions: dict[int, int], parameters: Parameters) -> Any:
    value: Any = _UNKNOWN
    if token.start in positions:
        if not isinstance(parameters, Mapping) and positions[token.start] < len(parameters):
            value = parameters[positions[token.start]]
    elif isinstance(parameters, Mapping):
        value = parameters.get(token.text[1:], _UNKNOWN)
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, (int, float, str, bytes, bytearray, memoryview)) else _UNKNOWN
