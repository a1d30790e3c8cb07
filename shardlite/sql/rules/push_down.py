"""Queries of which each shard answers its part, and the coordinator puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlite.router.table import TableKind
from shardlite.sql.clauses import PART, Select, Sources, Texts, Unsure, part_column, read_select
from shardlite.sql.compound import Arm, Compound
from shardlite.sql.cores import Core, Span, top_positions
from shardlite.sql.derived import derived_core, derived_table
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES, WINDOWS, not_shardable
from shardlite.sql.locality import (
    calls_aggregate,
    equates_unlike,
    has_windows,
    holds_key,
    inside,
    require_local_subqueries,
    require_local_windows,
)
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.rules.common import analysed
from shardlite.sql.rules.fan_out import joins_locally, with_rowid
from shardlite.sql.rules.gather import gather
from shardlite.sql.scopes import Scope
from shardlite.sql.sorted_rows import SortedRows
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, PushedDown, Source
from shardlite.sql.tokens import TokenKind
from shardlite.sql.two_phase import COMBINED, TwoPhase

_OWN = AGGREGATES | WINDOWS | {"min", "max", "coalesce", "abs"}
"""What the texts that put the parts together call, and what is told from a scalar function by its name."""


@dataclass(frozen=True, slots=True)
class _Query:
    """One outermost SELECT. ``below``: it has subqueries; ``by_key``: all rows of a group are on one shard."""

    select: Select
    sources: Sources
    scope: Scope
    below: bool
    grouped: bool
    by_key: bool
    windows: bool


def push_down(statement: Statement) -> PushedDown | FannedOut | None:
    """Push a query down to the shards where its answer is sure to be that of one file; None where it isn't."""
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly:
        return None
    try:
        return _push_down(statement)
    except Unsure:
        return None


def _push_down(statement: Statement) -> PushedDown | FannedOut | None:
    text, scopes = statement.text, statement.scopes
    if scopes is None or text.head != "SELECT" or statement.of_kind(TableKind.SINGLE) or not analysed(statement):
        return None
    if statement.schema.functions.names & _OWN:
        return None  # a function of the user's own by the name of one that is taken apart here
    cores = statement.cores
    plain = frozenset(top_positions(text.tokens))
    outer = [core for core in cores if core.span.start in plain]
    roots = [scope for scope in scopes.scopes if scope.parent is None]
    if not outer or len(cores) != len(scopes.scopes):
        return None
    if len(outer) == 1 and len(roots) == 2:
        return _over_derived(statement, outer[0], roots)
    if len(outer) != len(roots):
        return None
    ends = [*(core.span.end for core in outer[:-1]), len(text.tokens)]
    queries = [_query(statement, *each) for each in zip(outer, roots, ends, strict=True)]
    names = statement.columns(_without_limit(statement, queries[-1].select))
    if not names or "" in names:
        return None
    if len(queries) > 1:
        return _compound(statement, queries, names)
    return _single(statement, queries[0], names, _pins(statement, queries[0]))


def _single(
    statement: Statement, query: _Query, names: Sequence[str], pins: tuple[Pin, ...]
) -> PushedDown | FannedOut | None:
    if query.grouped and not query.by_key:
        return _aggregated(statement, query, names, pins)
    return _rows(statement, query, names, pins)


def _over_derived(statement: Statement, outer: Core, roots: Sequence[Scope]) -> PushedDown | FannedOut | None:
    """Push down a query over a subquery whose rows are those of the shards."""
    text, cores = statement.text, statement.cores
    core = derived_core(text, cores, outer)
    if core is None or any(other is not core and other.parent is outer for other in cores):
        return None
    inner = _query(statement, core, roots[1], core.span.end)
    if inner.select.core.distinct or (inner.grouped and not inner.by_key):
        return None
    if not any(source.table is not None and source.table.sharded for source in inner.scope.sources):
        return None  # every shard would give its rows
    select = read_select(text, outer, len(text.tokens))
    tokens = text.tokens
    shown = statement.columns(statement.sql[tokens[core.span.start].start : tokens[core.span.end - 1].end])
    names = statement.columns(_without_limit(statement, select))
    if not shown or not names or "" in names:
        return None
    source = derived_table(outer.items[0], inner.select, inner.sources, shown, roots[0].number)
    sources = Sources(text, outer, [source])
    grouped = _is_grouped(select, [core])
    by_key = grouped and _groups_by_key(select, sources)
    windows = has_windows(text.tokens, outer)
    if windows:
        require_local_windows(select, sources)
    query = _Query(select, sources, roots[0], True, grouped, by_key, windows)
    return _single(statement, query, names, _pins(statement, inner))


def _query(statement: Statement, core: Core, scope: Scope, end: int) -> _Query:
    """Take an outermost SELECT apart and check that it needs rows of one shard for each row of its FROM."""
    text, scopes = statement.text, statement.scopes
    if scopes is None or not joins_locally(scopes, scope):
        raise Unsure("a join over several shards")
    if [(item.name, item.alias) for item in core.items] != [(source.name, source.alias) for source in scope.sources]:
        raise Unsure("a query in an unusual place")
    select = read_select(text, core, end)
    sources = Sources(text, core, scope.sources)
    inner = inside(statement.cores, core)
    # Those of ORDER BY stand behind it.
    inner += [each for each in statement.cores if each.parent is None and core.span.end < each.span.start < end]
    if inner:
        require_local_subqueries(text, inner, scopes, core, scope, sources)
    grouped = _is_grouped(select, inner)
    sorts = bool(select.order) or core.distinct or core.group is not None
    if sorts and equates_unlike(text, core, sources):
        raise Unsure("equality of text and numbers")
    by_key = grouped and _groups_by_key(select, sources)
    windows = has_windows(text.tokens, core)
    if windows:
        require_local_windows(select, sources)
    return _Query(select, sources, scope, bool(inner), grouped, by_key, windows)


def _compound(statement: Statement, queries: Sequence[_Query], names: Sequence[str]) -> PushedDown | FannedOut | None:
    """Push down a UNION and its like."""
    _check_rows(statement, queries)
    for query in queries:
        if query.grouped and not query.by_key:
            return None
        if not any(source.table is not None and source.table.sharded for source in query.scope.sources):
            return None  # every shard would give its rows
    compound = Compound([Arm(query.select, query.sources) for query in queries], names)
    reason = "each shard does it for its rows"
    if compound.final_only_concatenates:
        return FannedOut(statement.sql, False, reason, statement.table_names, statement.text, ())
    return _split(statement, compound.write(), names, reason, ())


def _check_rows(statement: Statement, queries: Sequence[_Query]) -> None:
    """Check the functions of queries whose rows are those of the shards."""
    windows = any(query.windows for query in queries)
    aggregates = windows or any(query.grouped or query.below for query in queries)
    if statement.prepared.aggregates and not aggregates:
        raise Unsure("an aggregate that the text doesn't show")
    allowed = AGGREGATES if aggregates else frozenset[str]()
    _check_functions(statement, allowed | WINDOWS if windows else allowed)


def _rows(
    statement: Statement, query: _Query, names: Sequence[str], pins: tuple[Pin, ...]
) -> PushedDown | FannedOut | None:
    """Push down a query whose rows are those of all shards."""
    _check_rows(statement, (query,))
    select = query.select
    reason = "each shard sorts its rows and the sorted are put together"
    if query.grouped:
        reason = "each group is on one shard"
    if select.order or select.limit is not None or select.core.distinct:
        return _split(statement, SortedRows(select, query.sources, names).write(), names, reason, pins)
    sql, merge = statement.sql, False
    if query.windows:
        reason = "each window is on one shard"
    elif not query.grouped:
        reason = "what its subqueries look at is on the row's shard"
        sql, merge = with_rowid(statement, query.scope)
    return FannedOut(sql, merge, reason, statement.table_names, statement.text, pins)


def _aggregated(statement: Statement, query: _Query, names: Sequence[str], pins: tuple[Pin, ...]) -> PushedDown | None:
    """Push down a query whose groups lie over several shards."""
    if query.windows:
        return None
    _check_functions(statement, COMBINED | AGGREGATES if query.below else COMBINED)
    reason = "each shard aggregates its rows and the parts are put together"
    texts = TwoPhase(query.select, query.sources, names).write()
    return _split(statement, texts, names, reason, pins)


def _split(
    statement: Statement, texts: Texts, names: Sequence[str], reason: str, pins: tuple[Pin, ...]
) -> PushedDown | None:
    """Return the plan of a split query if SQLite takes both of its texts."""
    listed = ", ".join(map(part_column, range(texts.width)))
    stub = f"WITH {PART}({listed}) AS (SELECT {', '.join(['NULL'] * texts.width)}) "
    if len(statement.columns(texts.shard)) != texts.width or statement.columns(stub + texts.final) != tuple(names):
        return None
    otherwise = gather(statement, reason) if texts.may_overflow else None
    part = Source(
        PART,
        texts.create,
        f"INSERT INTO {PART}({listed})",
        texts.width,
        texts.shard + texts.shard_limit,
        True,
        pins,
        computed=True,
    )
    return PushedDown(texts.final + texts.final_limit, statement.text, part, reason, statement.table_names, otherwise)


def _without_limit(statement: Statement, select: Select) -> str:
    """Return the text up to its LIMIT: SQLite refuses NULL there, and its parameters have no values yet."""
    tokens = statement.text.tokens
    at = next((i for i in range(select.core.span.end, len(tokens)) if tokens[i].key == "LIMIT"), None)
    return statement.sql if at is None else statement.sql[: tokens[at].start]


def _pins(statement: Statement, query: _Query) -> tuple[Pin, ...]:
    """Return a pin that may leave shards out: of a source whose rows every row of the result needs."""
    scopes = statement.scopes
    if scopes is None:
        return ()
    inner = [r for r in query.scope.sources if r.table is not None and r.table.sharded and r.joined == "inner"]
    return tuple(pin for reference in inner if (pin := pin_of(scopes, reference)) is not None)[:1]


def _check_functions(statement: Statement, allowed: frozenset[str]) -> None:
    functions = statement.prepared.functions - allowed
    found = not_shardable(functions, statement.text, statement.schema.functions)
    if found is not None:
        raise Unsure(found)


def _is_grouped(select: Select, inner: Sequence[Core]) -> bool:
    """Tell whether the rows are grouped: by a clause, or by an aggregate outside of its subqueries."""
    core, tokens = select.core, select.text.tokens
    if core.group is not None or core.having is not None:
        return True
    below = {at for other in inner for at in range(*other.span)}
    spans = [core.columns, *(term.span for term in select.order)]
    return any(calls_aggregate(tokens, at) for span in spans for at in range(*span) if at not in below)


def _groups_by_key(select: Select, sources: Sources) -> bool:
    """Tell whether all rows of a group are on one shard: the key of a table that every row has is among its terms."""
    return holds_key(sources, [sources.single(_meant(select, sources, span)) for span in select.group])


def _meant(select: Select, sources: Sources, span: Span) -> Span:
    """Return the result column's expression where a GROUP BY term is its number or its name."""
    token = select.text.tokens[span.start]
    if span.end - span.start != 1:
        return span
    if token.kind is TokenKind.NUMBER and token.text.isdigit() and 0 < int(token.text) <= len(select.outputs):
        if any(output.star for output in select.outputs):
            return span
        return select.outputs[int(token.text) - 1].span
    named = [output for output in select.outputs if output.alias and output.alias == token.name]
    if named and sources.find((token.name or "",)) is None:
        return named[0].span
    return span
