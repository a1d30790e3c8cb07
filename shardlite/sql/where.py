"""Conditions: ``where`` as a mapping or as SQL text, compiled to text, parameters and what routing may use of them.

Mapping form, column -> value:

=============================  ==========================================================================
``5``, ``"x"``, ``b".."``      equal
``None``                       IS NULL
``[1, 2]`` (list, set, range)  IN; an empty one matches nothing; a None inside also matches NULL
``(">=", 18)``                 a comparison, see ``OPERATORS``; with None ``=`` and ``!=`` mean IS [NOT] NULL
``("BETWEEN", 1, 9)``          both ends included
``[(">", 1), ("<", 9)]``       several comparisons, all to hold
=============================  ==========================================================================

As in SQL, ``!=``, ``<`` and ``NOT IN`` never match NULL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from shardlite.errors import DataError, NotSupportedError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.keys import Affinity
from shardlite.router.table import Table
from shardlite.sql.conjuncts import Parameters, analyse_conjuncts
from shardlite.sql.expressions import (
    CALLING_OPERATORS,
    check_expression,
    find_column,
    read_expression,
    says_now_text,
    uses_dates,
)
from shardlite.sql.functions import NO_FUNCTIONS, UserFunctions

OPERATORS: Mapping[str, str] = {
    "=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
    "IS": "IS", "IS NOT": "IS NOT", "IN": "IN", "NOT IN": "NOT IN", "LIKE": "LIKE", "NOT LIKE": "NOT LIKE",
    "GLOB": "GLOB", "NOT GLOB": "NOT GLOB", "BETWEEN": "BETWEEN", "NOT BETWEEN": "NOT BETWEEN",
}  # fmt: skip
"""What may stand first in a comparison (case doesn't matter), and the SQL that it becomes."""

JSON_LIST_FROM = 200
"""IN lists longer than this are shipped as one JSON parameter: the text stays short and the limit on variables far."""
MAX_PARAMETERS = 32_000
"""SQLite takes 32,766 variables in a statement; the rest is left for the statement around the condition."""

_RANGES = frozenset({"<", "<=", ">", ">="})
_EXACT_SCALARS = frozenset({int, str, bytes, bool})
_NOTHING: Mapping[Any, Any] = MappingProxyType({})
_CACHE = "_where_shapes"
_CACHE_LIMIT = 1_000
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class Condition(NamedTuple):
    """A compiled condition. ``parameters`` is a mapping where the caller's text has named parameters."""

    sql: str
    """Text to stand after WHERE; empty when there is no condition."""
    parameters: Parameters
    pins: Mapping[str, tuple[Any, ...]]
    """Folded column -> the only values, as given, that it can have (None: NULL). No values: no row can match."""
    ranges: Mapping[str, Sequence[tuple[str, Any]]]
    """Folded column -> bounds (``<``, ``<=``, ``>``, ``>=``; value) that all hold."""
    cache_key: str
    """Equal for conditions with equal text: statements around it can be cached by it."""


_ALL = Condition("", (), _NOTHING, _NOTHING, "")


def compile_where(
    table: Table,
    where: Mapping[str, Any] | str | None,
    parameters: Parameters = (),
    *,
    functions: UserFunctions = NO_FUNCTIONS,
) -> Condition:
    """Compile a condition over ``table``.

    ``parameters`` belongs to the text form; ``functions`` are those that the user registered: a text may call the
    deterministic ones. Raises ProgrammingError for an unknown column, operator or value (naming it), NotSupportedError
    for text that shards can't evaluate one by one (subqueries, random functions).
    """
    if not where:
        # Nothing may pass for "all rows" by being empty or false: an empty list, 0 or "" is a mistake of the caller's.
        if where is not None and not isinstance(where, Mapping):
            raise ProgrammingError(f"where must be a mapping, SQL text or None (all rows), not {where!r}")
        if parameters:
            raise ProgrammingError(f"{len(parameters)} parameters are given, but no where text that uses them")
        return _ALL
    if where.__class__ is dict and len(where) == 1 and not parameters:
        # The case of nearly all calls by key, kept at about a microsecond.
        ((name, value),) = where.items()
        kind = value.__class__
        if kind is str or kind is bytes or (kind is int and _INT64_MIN <= value <= _INT64_MAX):
            known = table.__dict__.get(_CACHE, _NOTHING).get((name,))
            if known is not None:
                values = (value,)
                return tuple.__new__(Condition, (known[0], values, {known[1][0]: values}, _NOTHING, known[0]))
    if isinstance(where, str):
        return _compile_text(table, where, parameters, functions)
    if parameters:
        raise ProgrammingError("parameters= belongs to a where that is SQL text; a mapping carries its own values")
    if not isinstance(where, Mapping):
        raise ProgrammingError(f"where must be a mapping, SQL text or None, not {type(where).__name__}")
    values = tuple(where.values())
    for value in values:
        if value.__class__ not in _EXACT_SCALARS or (value.__class__ is int and not _INT64_MIN <= value <= _INT64_MAX):
            return _compile_mapping(table, where, functions)
    names = tuple(where)
    shape = table.__dict__.get(_CACHE, {}).get(names)
    if shape is None:
        shape = _remember_shape(table, names)
    sql, folded = shape
    if len(folded) == 1:
        return Condition(sql, values, {folded[0]: values}, _NOTHING, sql)
    pins = {name: (value,) for name, value in zip(folded, values, strict=True)}
    return Condition(sql, values, pins, _NOTHING, sql)


def _remember_shape(table: Table, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Build the text for equalities on these columns and keep it with the (immutable) table."""
    columns = [_resolve(table, name) for name in names]
    shape = (" AND ".join(f"{quote(name)} = ?" for name in columns), tuple(fold(name) for name in columns))
    if len(set(shape[1])) == len(names):
        cache = table.__dict__.setdefault(_CACHE, {})
        if len(cache) >= _CACHE_LIMIT:
            cache.clear()
        cache[names] = shape
        return shape
    raise ProgrammingError(f"where names a column of table {table.name!r} twice: {', '.join(names)}")


def _resolve(table: Table, name: object) -> str:
    """Return a usable name of the column, the rowid's included."""
    if not isinstance(name, str):
        raise ProgrammingError(f"where of table {table.name!r}: a column name must be a str, not {name!r}")
    column = find_column(table, name, "where")
    return column.name if column is not None else (table.rowid_name or name)


class _Builder:
    """Collects the terms of a mapping."""

    def __init__(self, table: Table, functions: UserFunctions) -> None:
        self.table = table
        self.functions = functions
        self.terms: list[str] = []
        self.parameters: list[Any] = []
        self.pins: dict[str, tuple[Any, ...]] = {}
        self.ranges: dict[str, list[tuple[str, Any]]] = {}

    def pin(self, name: str, values: tuple[Any, ...]) -> None:
        known = self.pins.get(fold(name))
        if known is None or len(values) < len(known):
            self.pins[fold(name)] = values

    def scalar(self, name: str, value: Any) -> Any:
        """Check one value and note it as a parameter's."""
        checked = check_value(self.table, name, value)
        self.parameters.append(checked)
        return checked

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, tuple):
            self.compare(name, value)
        elif isinstance(value, list) and any(isinstance(item, tuple) for item in value):
            for item in value:
                if not isinstance(item, tuple):
                    raise ProgrammingError(
                        f"where {name!r}: a list holds either values or comparisons (tuples), not both: {item!r}"
                    )
                self.compare(name, item)
        elif isinstance(value, (list, set, frozenset, range)):
            self.member(name, value, negated=False)
        elif value is None:
            self.terms.append(f"{quote(name)} IS NULL")
            self.pin(name, (None,))
        else:
            self.terms.append(f"{quote(name)} = ?")
            self.pin(name, (self.scalar(name, value),))

    def compare(self, name: str, comparison: tuple[Any, ...]) -> None:
        operator = comparison[0] if comparison else None
        sql = OPERATORS.get(" ".join(operator.upper().split())) if isinstance(operator, str) else None
        if sql is None:
            raise ProgrammingError(
                f"where {name!r}: {comparison!r} is no comparison: give (operator, value) with one of "
                f"{', '.join(OPERATORS)}; a list for IN"
            )
        operands = comparison[1:]
        if sql.endswith("BETWEEN") and len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = tuple(operands[0])
        needed = 2 if sql.endswith("BETWEEN") else 1
        if len(operands) != needed:
            raise ProgrammingError(
                f"where {name!r}: {sql} takes {needed} value(s), not {len(operands)}: {comparison!r}"
            )
        if sql.endswith("IN"):
            self.member(name, operands[0], negated=sql == "NOT IN")
        elif needed == 2:
            self.between(name, sql, operands)
        elif operands[0] is None:
            self.null(name, sql)
        else:
            self.binary(name, sql, operands[0])

    def null(self, name: str, sql: str) -> None:
        if sql in ("=", "IS"):
            self.add(name, None)
        elif sql in ("!=", "IS NOT"):
            self.terms.append(f"{quote(name)} IS NOT NULL")
        else:
            raise ProgrammingError(f"where {name!r}: {sql} None matches no row; use ('IS', None) or ('IS NOT', None)")

    def binary(self, name: str, sql: str, operand: Any) -> None:
        function = fold(sql.removeprefix("NOT "))
        if function in self.functions.others and function in CALLING_OPERATORS:
            raise NotSupportedError(
                f"where {name!r}: the function {function}(), which {sql} calls, was registered without "
                "deterministic=True and can't be evaluated on each shard alone"
            )
        value = self.scalar(name, operand)
        self.terms.append(f"{quote(name)} {sql} ?")
        if sql in ("=", "IS"):
            self.pin(name, (value,))
        elif sql in _RANGES:
            self.ranges.setdefault(fold(name), []).append((sql, value))

    def between(self, name: str, sql: str, operands: Sequence[Any]) -> None:
        if None in operands:
            raise ProgrammingError(f"where {name!r}: {sql} needs two values that are not None: {operands!r}")
        low, high = self.scalar(name, operands[0]), self.scalar(name, operands[1])
        self.terms.append(f"{quote(name)} {sql} ? AND ?")
        if sql == "BETWEEN":
            self.ranges.setdefault(fold(name), []).extend(((">=", low), ("<=", high)))

    def member(self, name: str, values: Any, *, negated: bool) -> None:
        """Add IN or NOT IN; see the module's text for NULL."""
        if not isinstance(values, (list, tuple, set, frozenset, range)):
            raise ProgrammingError(f"where {name!r}: IN takes a list, not {type(values).__name__}")
        with_null = any(value is None for value in values)
        checked = [check_value(self.table, name, value) for value in values if value is not None]
        word = "NOT IN" if negated else "IN"
        parts = []
        column = self.table.by_name.get(fold(name))
        real = column is not None and column.affinity is Affinity.REAL
        through_json, bound = _split_for_json(checked, real)
        if through_json:
            # The plus takes the affinity off json_each's column, so that the left column's own applies, as to a list.
            parts.append(f"{quote(name)} {word} (SELECT +value FROM json_each(?))")
            self.parameters.append(json.dumps(through_json, ensure_ascii=False))
        if bound or not parts:
            parts.append(f"{quote(name)} {word} ({', '.join('?' * len(bound))})")
            self.parameters.extend(bound)
        if with_null:
            parts.append(f"{quote(name)} IS {'NOT ' if negated else ''}NULL")
        text = (" AND " if negated else " OR ").join(parts)
        self.terms.append(f"({text})" if len(parts) > 1 else text)
        if not negated:
            self.pin(name, (*checked, None) if with_null else tuple(checked))


def _split_for_json(values: list[Any], real: bool) -> tuple[list[Any], list[Any]]:
    """Part a long list into values that JSON carries exactly (integers, text) and those to bind one by one.

    Reals stay out because older SQLites don't read every decimal back to the same double, blobs because JSON has none,
    text with NUL because SQLite's JSON ends it there. A ``real`` column compares a subquery's values by REAL affinity,
    a list's by NUMERIC, which differs for whole numbers that no double holds: there only small integers go.
    """
    if len(values) <= JSON_LIST_FROM:
        return [], values
    exact: list[Any] = []
    bound: list[Any] = []
    for value in values:
        if isinstance(value, int) and (not real or abs(value) <= 2**53):
            exact.append(int(value))
        elif isinstance(value, str) and "\0" not in value and not real:
            exact.append(value)
        else:
            bound.append(value)
    return exact, bound


def check_value(table: Table, name: str, value: Any) -> Any:
    """Return a value that SQLite can take, or raise naming the column and the type."""
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise DataError(f"column {name!r} of table {table.name!r}: {value} doesn't fit SQLite's 64-bit integers")
        return value
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, float):
        if value != value:
            raise ProgrammingError(f"column {name!r} of table {table.name!r}: NaN is NULL to SQLite; give None")
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise ProgrammingError(
        f"column {name!r} of table {table.name!r}: can't compare with a value of type {type(value).__name__}; "
        "use int, float, str, bytes or None"
    )


def _compile_mapping(table: Table, where: Mapping[str, Any], functions: UserFunctions) -> Condition:
    builder = _Builder(table, functions)
    seen: set[str] = set()
    for given, value in where.items():
        name = _resolve(table, given)
        if fold(name) in seen:
            raise ProgrammingError(f"where names the column {name!r} of table {table.name!r} twice")
        seen.add(fold(name))
        builder.add(name, value)
    if len(builder.parameters) > MAX_PARAMETERS:
        raise NotSupportedError(
            f"where on table {table.name!r} has {len(builder.parameters)} floats, blobs (or texts "
            f"that JSON can't carry) in its lists; SQLite takes at most {MAX_PARAMETERS}: split the call"
        )
    sql = " AND ".join(builder.terms)
    return Condition(sql, tuple(builder.parameters), builder.pins, builder.ranges, sql)


def _compile_text(table: Table, where: str, parameters: Parameters, functions: UserFunctions) -> Condition:
    if not isinstance(parameters, (Mapping, Sequence)) or isinstance(parameters, (str, bytes)):
        raise ProgrammingError(f"parameters must be a sequence or a mapping, not {type(parameters).__name__}")
    what = f"where {where!r} on table {table.name!r}"
    tokens = read_expression(where, "where")
    check_expression(table, tokens, what, functions)
    values: Iterable[Any] = parameters.values() if isinstance(parameters, Mapping) else parameters
    if uses_dates(tokens) and any(says_now_text(value) for value in values):
        raise NotSupportedError(f"{what}: 'now' differs from shard to shard; give the time itself as a parameter")
    pins, ranges = analyse_conjuncts(table, tokens, parameters)
    # The line break is for the reader of a trace; comments, which could swallow the parenthesis, are refused above.
    sql = f"({where}\n)"
    return Condition(sql, parameters, pins, ranges, sql)
