"""What a condition's text says about single columns: equalities and bounds that every matching row fulfils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardlite.names import fold
from shardlite.router.table import Table
from shardlite.sql.cores import Span, conjuncts
from shardlite.sql.expressions import column_name
from shardlite.sql.tokens import Token, closing, constant_of, split_commas

Parameters = Sequence[Any] | Mapping[str, Any]

_COMPARISONS = {"=": "=", "==": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""A comparison and what it becomes with its sides exchanged."""
_UNKNOWN = object()


def analyse_conjuncts(
    table: Table, tokens: Sequence[Token], parameters: Parameters
) -> tuple[dict[str, tuple[Any, ...]], dict[str, list[tuple[str, Any]]]]:
    """Return pins and ranges (see ``Condition``) from the conjuncts ``column op constant`` of a text.

    Only a bare column against a literal or a parameter counts: there SQLite applies the column's own affinity and
    collation. Everything else is ignored, which is always safe.
    """
    pins: dict[str, tuple[Any, ...]] = {}
    ranges: dict[str, list[tuple[str, Any]]] = {}
    for span in conjuncts(tokens, Span(0, len(tokens))):
        found = _comparison(table, tokens[span.start : span.end], parameters)
        if found is None:
            continue
        name, operator, values = found
        if operator == "=":
            if name not in pins or len(values) < len(pins[name]):
                pins[name] = values
        else:
            ranges.setdefault(name, []).append((operator, values[0]))
    return pins, ranges


def _comparison(
    table: Table, tokens: Sequence[Token], parameters: Parameters
) -> tuple[str, str, tuple[Any, ...]] | None:
    operators = [index for index, token in enumerate(tokens) if token.key in _COMPARISONS]
    if len(operators) == 1:
        at = operators[0]
        left, operator, right = tokens[:at], tokens[at].key, tokens[at + 1 :]
        if _column(table, left) is None:
            left, operator, right = right, _COMPARISONS[operator], left
        name = _column(table, left)
        value = _constant(right, parameters)
        if name is None or value is _UNKNOWN:
            return None
        operator = "=" if operator == "==" else operator
        if value is None:
            return name, "=", ()
        return name, operator, (value,)
    return _membership(table, tokens, parameters)


def _membership(
    table: Table, tokens: Sequence[Token], parameters: Parameters
) -> tuple[str, str, tuple[Any, ...]] | None:
    at = next((index for index, token in enumerate(tokens) if token.is_word("IN")), None)
    if at is None or at + 1 >= len(tokens) or closing(tokens, at + 1) != len(tokens) - 1:
        return None
    name = _column(table, tokens[:at])
    inner = tokens[at + 2 : -1]
    values = [_constant(part, parameters) for part in split_commas(inner)] if inner else []
    if name is None or any(value is _UNKNOWN for value in values):
        return None
    return name, "=", tuple(value for value in values if value is not None)


def _column(table: Table, tokens: Sequence[Token]) -> str | None:
    name = column_name(tokens)
    column = table.by_name.get(fold(name)) if name is not None else None
    return fold(column.name) if column is not None else None


def _constant(tokens: Sequence[Token], parameters: Parameters) -> Any:
    """Return a literal's or a parameter's value, or _UNKNOWN. Reals are left out: Python may read them otherwise."""
    if not tokens or tokens[0].key in ("(", "+", "TRUE", "FALSE"):  # a column may be called true
        return _UNKNOWN
    constant = constant_of(tokens)
    if constant is None or isinstance(constant.value, float):
        return _UNKNOWN
    return _parameter(tokens[0], parameters) if constant.parameter else constant.value


def _parameter(token: Token, parameters: Parameters) -> Any:
    value: Any = _UNKNOWN
    if not isinstance(parameters, Mapping):
        value = parameters[token.index - 1] if 0 < token.index <= len(parameters) else _UNKNOWN
    elif token.text[0] != "?":
        value = parameters.get(token.text[1:], _UNKNOWN)
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, (int, float, str, bytes, bytearray, memoryview)) else _UNKNOWN
