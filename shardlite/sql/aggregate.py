"""Aggregates over shards: what each shard computes, and how the parts become the answer of one file.

Counts, sums, averages and extremes go in two phases: one row (per group) from each shard. DISTINCT and ``group_concat``
need the values themselves: the distinct ones, or all in rowid order, are gathered.

SUM over integers is exact. Each shard adds with SQLite's own SUM; only where a shard's part overflows 64 bits the
statements are run again as ``exact_statements``, which add the upper and lower halves apart, so that the total is known
whatever its size. One file's SUM may overflow or not by the order of its rows; here it does only when the total does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.keys import sort_key, text_order
from shardlite.router.table import Table
from shardlite.sql.conjuncts import Parameters
from shardlite.sql.expressions import (
    BUILT_IN_COLLATIONS,
    check_expression,
    collation_of,
    find_column,
    read_expression,
)
from shardlite.sql.functions import NO_FUNCTIONS, UserFunctions
from shardlite.sql.order import tie_break
from shardlite.sql.tokens import Token, TokenKind, closing, split_commas
from shardlite.sql.where import Condition

Rows = Sequence[tuple[Any, ...]]
Fetch = Callable[[str, Parameters], Rows]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_OVERFLOW = "integer overflow"

_SUMS = frozenset(("sum", "total", "count", "typeof", "glob"))
_CALLED: Mapping[str, frozenset[str]] = {
    "count": frozenset(("count", "sum")),
    "sum": _SUMS,
    "avg": _SUMS | {"avg"},
    "total": _SUMS,
    "min": frozenset(("min",)),
    "max": frozenset(("max",)),
    "group_concat": frozenset(("group_concat",)),
}
"""Aggregate -> the functions of SQLite by which it is computed on the shards; the one that it names is meant, too."""

AGGREGATES = frozenset(_CALLED)
"""The aggregates that can be put together from the shards' parts."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate call, taken apart. The SQL pieces are the caller's text, checked."""

    text: str
    function: str
    distinct: bool
    argument: str
    """The argument's SQL, empty for ``count(*)``."""
    separator: str
    filter: str
    collation: str

    @property
    def gathered(self) -> bool:
        """Tell whether the values themselves have to be brought together."""
        return self.function == "group_concat" or (self.distinct and self.function not in ("min", "max"))

    def call(self, function: str, argument: str) -> str:
        """Return the SQL of an aggregate with this one's FILTER."""
        return f"{function}({argument})" + (f" FILTER (WHERE {self.filter})" if self.filter else "")


def parse_aggregate(table: Table, text: object, functions: UserFunctions = NO_FUNCTIONS) -> Aggregate:
    """Parse exactly one aggregate call over the table's columns.

    Raises ProgrammingError for what is no such call or names unknown columns, NotSupportedError for what can't be put
    together from shards.
    """
    if not isinstance(text, str):
        raise ProgrammingError(f"an aggregate is given as SQL text, not {type(text).__name__}: {text!r}")
    what = f"aggregate {text!r} on table {table.name!r}"
    tokens = read_expression(text, "aggregate")
    if len(tokens) < 3 or not tokens[0].identifier or tokens[1].text != "(":
        raise ProgrammingError(f"{what}: give one call of {', '.join(sorted(AGGREGATES))}")
    function = fold(tokens[0].identifier)
    if function not in AGGREGATES:
        usable = ", ".join(sorted(AGGREGATES))
        raise NotSupportedError(
            f"{what}: {tokens[0].identifier}() can't be put together from shards; use one of {usable}"
        )
    hidden = sorted(_CALLED[function] & functions.names)
    if hidden:
        raise NotSupportedError(
            f"{what}: it is put together from what {hidden[0]}() gives on each shard, and the {hidden[0]}() that was "
            "registered hides SQLite's own: register yours under another name"
        )
    for token in tokens:
        if token.kind is TokenKind.PARAMETER:
            raise ProgrammingError(f"{what}: an aggregate takes no parameters ({token.text}); they belong to where=")
    end = closing(tokens, 1)
    filtered = _filter_tokens(tokens[end + 1 :], what)
    inner = tokens[2:end]
    distinct = bool(inner) and inner[0].is_word("DISTINCT")
    parts = split_commas(inner[1:] if distinct else inner) if inner else []
    if len(parts) == 1 and len(parts[0]) == 1 and parts[0][0].text == "*":
        if function != "count" or distinct:
            raise ProgrammingError(f"{what}: * is for COUNT(*) only")
        parts = []
    _check_arguments(function, distinct, parts, what)
    for part in (*parts, filtered):
        check_expression(table, part, what, functions)
    return Aggregate(
        text=text,
        function=function,
        distinct=distinct,
        argument=_slice(text, parts[0]) if parts else "",
        separator=_slice(text, parts[1]) if len(parts) > 1 else "",
        filter=_slice(text, filtered) if filtered else "",
        collation=collation_of(table, parts[0], what)
        if parts and (distinct or function in ("min", "max"))
        else "BINARY",
    )


def _slice(text: str, tokens: Sequence[Token]) -> str:
    return f"({text[tokens[0].start : tokens[-1].end]})"


def _filter_tokens(tokens: Sequence[Token], what: str) -> Sequence[Token]:
    """Return the tokens of the condition in ``FILTER (WHERE condition)``; none when there is no FILTER."""
    if not tokens:
        return []
    if tokens[0].is_word("OVER"):
        raise NotSupportedError(f"{what}: OVER makes it a window function; give a plain aggregate")
    good = len(tokens) > 4 and tokens[0].is_word("FILTER") and tokens[1].text == "(" and tokens[2].is_word("WHERE")
    if not good or closing(tokens, 1) != len(tokens) - 1:
        raise ProgrammingError(f"{what}: only FILTER (WHERE ...) may follow the call, not {tokens[0].text!r}")
    return tokens[3:-1]


def _check_arguments(function: str, distinct: bool, parts: Sequence[Sequence[Token]], what: str) -> None:
    allowed = {"count": (0, 1), "group_concat": (1, 2)}.get(function, (1, 1))
    if distinct:
        allowed = (1, 1)
    if not allowed[0] <= len(parts) <= allowed[1] or not all(parts):
        raise ProgrammingError(
            f"{what}: {'DISTINCT ' if distinct else ''}{function}() as an aggregate takes "
            f"{' or '.join(str(number) for number in sorted(set(allowed)))} argument(s), not {len(parts)}"
        )
    for index, token in enumerate(part := [token for tokens in parts for token in tokens]):
        if token.is_word("ORDER") and index + 1 < len(part) and part[index + 1].is_word("BY"):
            raise NotSupportedError(f"{what}: ORDER BY inside an aggregate is not supported")


# -- the parts of the two-phase aggregates


def _partial_columns(aggregate: Aggregate, exact: bool) -> tuple[str, ...]:
    """Return the SQL of the columns that each shard computes for an aggregate that isn't gathered."""
    value = aggregate.argument
    if aggregate.function == "count":
        return (aggregate.call("count", value or "*"),)
    if aggregate.function in ("min", "max"):
        return (aggregate.call(aggregate.function, value),)
    count = aggregate.call("count", value)
    if aggregate.function in ("avg", "total"):
        return (aggregate.call("total", value), count)
    if not exact:
        return (aggregate.call("sum", value), count)
    whole = _whole_number(value)
    return (
        aggregate.call("sum", f"{whole} >> 32"),
        aggregate.call("sum", f"{whole} & 4294967295"),
        aggregate.call("count", whole),
        aggregate.call("total", f"CASE WHEN {whole} IS NULL THEN {value} END"),
        count,
    )


def _whole_number(value: str) -> str:
    """Return SQL for the integer that SUM takes from a value, NULL where it takes a real (or nothing).

    Text counts as an integer when all of it is one that fits 64 bits: a comparison against a NUMERIC cast converts the
    text without loss or not at all.
    """
    text_is_whole = (
        f"typeof({value}) = 'text' AND +{value} = CAST({value} AS NUMERIC) "
        f"AND typeof(CAST({value} AS NUMERIC)) = 'integer' AND {value} NOT GLOB '*[.eE]*'"
    )
    return f"CASE WHEN typeof({value}) = 'integer' OR ({text_is_whole}) THEN CAST({value} AS INTEGER) END"


def _merge_partials(aggregate: Aggregate, parts: Rows, exact: bool) -> Any:
    if aggregate.function == "count":
        return sum(part[0] for part in parts)
    if aggregate.function in ("min", "max"):
        values = [part[0] for part in parts if part[0] is not None]
        if not values:
            return None
        choose = min if aggregate.function == "min" else max
        return choose(values, key=lambda value: sort_key(value, aggregate.collation))
    if aggregate.function == "sum":
        return _merge_exact(aggregate, parts) if exact else _merge_sums(aggregate, parts)
    total = _add_reals(math.nan if part[0] is None else part[0] for part in parts)
    if aggregate.function == "total":
        return total
    count = sum(part[1] for part in parts)
    return None if total is None or not count else total / count


def _merge_sums(aggregate: Aggregate, parts: Rows) -> Any:
    """Add the shards' (SUM, COUNT); a NULL sum over some values is NaN."""
    return _sum([math.nan if part[0] is None else part[0] for part in parts if part[1]], aggregate)


def _merge_exact(aggregate: Aggregate, parts: Rows) -> Any:
    values: list[int | float] = []
    for high, low, whole, reals, count in parts:
        if whole:
            values.append((high << 32) + low)
        if count > whole:
            values.append(math.nan if reals is None else reals)
    return _sum(values, aggregate)


def _sum(values: Iterable[int | float], aggregate: Aggregate) -> Any:
    """Add as SQLite's SUM does: integers exactly, REAL as soon as one is, NULL of nothing."""
    collected = list(values)
    if not collected:
        return None
    whole = sum(value for value in collected if isinstance(value, int))
    reals = [value for value in collected if isinstance(value, float)]
    if reals:
        return _add_reals([*reals, float(whole)])
    if not _INT64_MIN <= whole <= _INT64_MAX:
        raise OperationalError(f"{_OVERFLOW}: {aggregate.text} is {whole}, beyond 64 bits; use TOTAL() for a REAL sum")
    return whole


def _add_reals(values: Iterable[float]) -> float | None:
    """Add doubles; NaN (such as Inf - Inf) becomes NULL, as in SQLite."""
    collected = list(values)
    try:
        total = math.fsum(collected)
    except (OverflowError, ValueError):
        total = 0.0
        for value in collected:
            total += value
    return None if math.isnan(total) else total


# -- the gathered aggregates


def _merge_values(aggregate: Aggregate, rows: Rows) -> Any:
    """Put together one group's gathered rows: (value, what SUM makes of it), or (order..., value, text, separator)."""
    if aggregate.function == "group_concat":
        return _concatenate(aggregate, rows)
    distinct = {sort_key(row[0], aggregate.collation): row for row in reversed(rows)}
    if aggregate.function == "count":
        return len(distinct)
    numbers = [row[1] for row in distinct.values()]
    if aggregate.function == "sum":
        return _sum(numbers, aggregate)
    total = _add_reals(float(number) for number in numbers)
    if aggregate.function == "total":
        return total
    return None if total is None or not numbers else total / len(numbers)


def _concatenate(aggregate: Aggregate, rows: Rows) -> str | None:
    pieces: list[str] = []
    seen: set[Any] = set()
    for *_, value, text, separator in rows:
        if aggregate.distinct:
            identity = sort_key(value, aggregate.collation)
            if identity in seen:
                continue
            seen.add(identity)
        if pieces:
            pieces.append(separator or "")
        pieces.append(text)
    return "".join(pieces) if pieces else None


# -- the plan


@dataclass(frozen=True)
class AggregatePlan:
    """What to ask every shard, and how to combine what they say.

    Run all of ``statements`` with ``parameters`` on each shard, all from one snapshot, and give the rows to
    ``combine``; when a shard raises SQLite's "integer overflow", run ``exact_statements`` on all and
    ``combine(..., exact=True)``. ``run`` does all this.
    """

    table: Table
    aggregates: tuple[Aggregate, ...]
    group_by: tuple[str, ...] | None
    """The group columns as the caller spelled them; None without grouping, when the answer is one dict."""
    statements: tuple[str, ...]
    exact_statements: tuple[str, ...]
    parameters: Parameters
    _group_collations: tuple[str, ...] = field(default=())
    _order_collations: tuple[str, ...] = field(default=())

    def ordered_for(self, encoding: str) -> AggregatePlan:
        """Return the plan for a database of this text encoding, whose BINARY order follows from it."""
        return replace(
            self,
            aggregates=tuple(replace(a, collation=text_order(a.collation, encoding)) for a in self.aggregates),
            _group_collations=tuple(text_order(name, encoding) for name in self._group_collations),
            _order_collations=tuple(text_order(name, encoding) for name in self._order_collations),
        )

    def run(self, fetchers: Sequence[Fetch]) -> dict[str, Any] | list[dict[str, Any]]:
        """Ask the shards one after the other through ``fetch(sql, parameters) -> rows`` and combine."""
        exact = False
        try:
            results = [[fetch(sql, self.parameters) for sql in self.statements] for fetch in fetchers]
        except Exception as error:
            if _OVERFLOW not in str(error) or self.exact_statements == self.statements:
                raise
            exact = True
            results = [[fetch(sql, self.parameters) for sql in self.exact_statements] for fetch in fetchers]
        return self.combine(results, exact=exact)

    def combine(
        self, results: Sequence[Sequence[Rows]], *, exact: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the answer from ``results[shard][statement]``: a dict, or with ``group_by`` a list in their order.

        Raises OperationalError "integer overflow" when a SUM's total doesn't fit 64 bits.
        """
        width = len(self.group_by or ())
        groups: dict[Any, list[Any]] = {}
        if self.group_by is None:
            groups[()] = []
        columns: list[dict[Any, list[tuple[Any, ...]]]] = []
        for statement in range(len(self.statements)):
            by_group: dict[Any, list[tuple[Any, ...]]] = {}
            for shard in results:
                for row in shard[statement]:
                    identity = self._identity(row[:width])
                    groups.setdefault(identity, list(row[:width]))
                    by_group.setdefault(identity, []).append(row[width:])
            columns.append(by_group)
        answer = [
            self._group(values, [by_group.get(identity, []) for by_group in columns], exact)
            for identity, values in sorted(groups.items(), key=lambda item: item[0])
        ]
        return answer[0] if self.group_by is None else answer

    def _identity(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(sort_key, values, self._group_collations))

    def _group(self, values: list[Any], columns: list[list[tuple[Any, ...]]], exact: bool) -> dict[str, Any]:
        """Combine one group's rows of each statement."""
        answer = dict(zip(self.group_by or (), values, strict=True))
        rest = iter(columns)
        partials = next(rest) if self._has_partials else []
        at = 0
        for aggregate in self.aggregates:
            if aggregate.gathered:
                rows = next(rest)
                if aggregate.function == "group_concat" and self._order_collations:
                    rows.sort(key=lambda row: tuple(map(sort_key, row, self._order_collations)))
                answer[aggregate.text] = _merge_values(aggregate, rows)
            else:
                width = len(_partial_columns(aggregate, exact))
                parts = [row[at : at + width] for row in partials]
                answer[aggregate.text] = _merge_partials(aggregate, parts, exact)
                at += width
        return answer

    @property
    def _has_partials(self) -> bool:
        return self.group_by is not None or not all(aggregate.gathered for aggregate in self.aggregates)


def plan_aggregates(
    table: Table,
    expressions: str | Sequence[str],
    condition: Condition,
    group_by: str | Sequence[str] | None = None,
    *,
    functions: UserFunctions = NO_FUNCTIONS,
) -> AggregatePlan:
    """Plan one or several aggregates over the rows of ``table`` that fulfil ``condition``.

    The answer's keys are the expressions and group columns as written here. ``functions`` are those that the user
    registered: expressions may call the deterministic ones. Raises ProgrammingError or NotSupportedError naming what
    can't be had.
    """
    texts: list[Any] = list(expressions) if isinstance(expressions, (list, tuple)) else [expressions]
    if not texts:
        raise ProgrammingError(f"aggregate on table {table.name!r}: no expression is given")
    aggregates = tuple(parse_aggregate(table, text, functions) for text in dict.fromkeys(texts))
    names = None if group_by is None else _group_names(table, group_by)
    groups = [_group_column(table, name) for name in names or ()]
    order = tie_break(table)
    builder = _Statements(table, condition, [name for name, _ in groups], [name for name, _ in order])
    return AggregatePlan(
        table=table,
        aggregates=aggregates,
        group_by=names,
        statements=builder.build(aggregates, exact=False),
        exact_statements=builder.build(aggregates, exact=True),
        parameters=condition.parameters,
        _group_collations=tuple(collation for _, collation in groups),
        _order_collations=tuple(collation for _, collation in order),
    )


def _group_names(table: Table, group_by: object) -> tuple[str, ...]:
    names: list[str] = []
    for name in group_by if isinstance(group_by, (list, tuple)) else (group_by,):
        if not isinstance(name, str):
            raise ProgrammingError(f"group_by on table {table.name!r} takes column names, not {name!r}")
        names.append(name)
    if not names:
        raise ProgrammingError(f"aggregate on table {table.name!r}: group_by is an empty list; leave it out instead")
    return tuple(names)


def _group_column(table: Table, name: str) -> tuple[str, str]:
    """Return a group column's quoted, qualified SQL and its collation."""
    column = find_column(table, name, "group_by")
    if column is None:
        return f"{quote(table.name)}.{quote(table.rowid_name or name)}", "BINARY"
    if column.collation.upper() not in BUILT_IN_COLLATIONS:
        raise NotSupportedError(
            f"group_by: column {column.name!r} of table {table.name!r} has the collation {column.collation!r}; "
            "shards can be merged by BINARY, NOCASE and RTRIM only"
        )
    return f"{quote(table.name)}.{quote(column.name)}", column.collation.upper()


@dataclass(frozen=True)
class _Statements:
    """Writes the shards' statements."""

    table: Table
    condition: Condition
    groups: list[str]
    order: list[str]

    def build(self, aggregates: tuple[Aggregate, ...], *, exact: bool) -> tuple[str, ...]:
        """Return the statement of all partial columns (when there are any, or groups), then one per gathered one."""
        partial = [
            column
            for aggregate in aggregates
            if not aggregate.gathered
            for column in _partial_columns(aggregate, exact)
        ]
        statements = []
        if partial or self.groups:
            grouping = f" GROUP BY {', '.join(self.groups)}" if self.groups else ""
            columns = ", ".join([*self.groups, *partial])
            statements.append(f"SELECT {columns} FROM {quote(self.table.name)}{self.where()}{grouping}")
        statements.extend(self.gather(aggregate) for aggregate in aggregates if aggregate.gathered)
        return tuple(statements)

    def where(self, *more: str) -> str:
        """Return the WHERE clause, or nothing."""
        terms = [f"({self.condition.sql})"] if self.condition.sql else []
        terms.extend(term for term in more if term)
        return f" WHERE {' AND '.join(terms)}" if terms else ""

    def gather(self, aggregate: Aggregate) -> str:
        """Return the statement that brings the values of one aggregate."""
        table, value = quote(self.table.name), aggregate.argument
        where = self.where(aggregate.filter, f"{value} IS NOT NULL")
        if aggregate.function == "group_concat":
            separator = f"CAST({aggregate.separator} AS TEXT)" if aggregate.separator else "','"
            order = [f"{table}.{quote(name)}" for name in self.order]
            columns = ", ".join([*self.groups, *order, value, f"CAST({value} AS TEXT)", separator])
            return f"SELECT {columns} FROM {table}{where}"
        # Names inside the subquery keep a bare number in the argument from being read as a column's position.
        inner = [f'{group} AS "g{index}"' for index, group in enumerate(self.groups)]
        outer = [f'"g{index}"' for index in range(len(self.groups))]
        grouping = ", ".join([*outer, f'"v" COLLATE "{aggregate.collation}"'])
        inner.append(f'{value} AS "v"')
        columns = ", ".join([*outer, '"v"', 'sum(DISTINCT "v")' if aggregate.function != "count" else "1"])
        source = f"SELECT {', '.join(inner)} FROM {table}{where}"
        return f"SELECT {columns} FROM ({source}) GROUP BY {grouping}"
