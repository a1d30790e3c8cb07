"""Queries of which each shard answers its part, and the coordinator puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.router.table import TableKind
from shardlite.sql.clauses import PART, Select, Sources, Texts, Unsure, part_column, read_select
from shardlite.sql.cores import Core, Span, cores_of
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES, WINDOWS, not_shardable
from shardlite.sql.locality import (
    calls_aggregate,
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
from shardlite.sql.scopes import Scopes
from shardlite.sql.sorted_rows import SortedRows
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, PushedDown, Source
from shardlite.sql.tokens import TokenKind
from shardlite.sql.two_phase import COMBINED, TwoPhase


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
    cores = cores_of(text)
    outer = [core for core in cores if core.parent is None]
    roots = [scope for scope in scopes.scopes if scope.parent is None]
    if len(outer) != 1 or len(roots) != 1 or len(cores) != len(scopes.scopes):
        return None
    select = read_select(text, outer[0], len(text.tokens))
    sources = Sources(text, outer[0], roots[0].sources)
    names = statement.columns(_without_limit(statement, select))
    inner = inside(cores, outer[0])
    if not names or not joins_locally(scopes, roots[0]):
        return None
    if inner:
        require_local_subqueries(text, inner, scopes, outer[0], roots[0], sources)
    grouped = _is_grouped(select, inner)
    if grouped and not _groups_by_key(select, sources):
        return _aggregated(statement, scopes, select, sources, names)
    return _rows(statement, scopes, select, sources, names, grouped=grouped)


def _rows(
    statement: Statement, scopes: Scopes, select: Select, sources: Sources, names: Sequence[str], *, grouped: bool
) -> PushedDown | FannedOut | None:
    """Push down a query whose rows are those of all shards."""
    windows = has_windows(statement.text.tokens, select.core)
    if windows:
        require_local_windows(select, sources)
    below = len(scopes.scopes) > 1
    if statement.prepared.aggregates and not (grouped or windows or below):
        return None  # an aggregate that the text doesn't show
    allowed = AGGREGATES if grouped or windows or below else frozenset[str]()
    _check_functions(statement, allowed | WINDOWS if windows else allowed)
    reason = "each group is on one shard" if grouped else "each shard sorts its rows and the sorted are put together"
    if select.order or select.limit is not None or select.core.distinct:
        return _split(statement, scopes, SortedRows(select, sources, names).write(), names, reason)
    sql, merge = statement.sql, False
    if not grouped:
        reason = "each window is on one shard" if windows else "what its subqueries look at is on the row's shard"
        if not windows:
            sql, merge = with_rowid(statement, scopes.scopes[0])
    return FannedOut(sql, merge, reason, statement.table_names, statement.text, _pins(scopes))


def _aggregated(
    statement: Statement, scopes: Scopes, select: Select, sources: Sources, names: Sequence[str]
) -> PushedDown | None:
    """Push down a query whose groups lie over several shards."""
    if select.core.distinct:
        return None
    _check_functions(statement, COMBINED if len(scopes.scopes) == 1 else COMBINED | AGGREGATES)
    reason = "each shard aggregates its rows and the parts are put together"
    return _split(statement, scopes, TwoPhase(select, sources, names).write(), names, reason)


def _split(statement: Statement, scopes: Scopes, texts: Texts, names: Sequence[str], reason: str) -> PushedDown | None:
    """Return the plan of a split query if SQLite takes both of its texts."""
    listed = ", ".join(map(part_column, range(texts.width)))
    stub = f"WITH {PART}({listed}) AS (SELECT {', '.join(['NULL'] * texts.width)}) "
    if len(statement.columns(texts.shard)) != texts.width or statement.columns(stub + texts.final) != tuple(names):
        return None
    otherwise = gather(statement, reason)
    if otherwise is None:
        return None
    part = Source(
        PART,
        texts.create,
        f"INSERT INTO {PART}({listed})",
        texts.width,
        texts.shard + texts.shard_limit,
        True,
        _pins(scopes),
    )
    return PushedDown(texts.final + texts.final_limit, statement.text, part, reason, statement.table_names, otherwise)


def _without_limit(statement: Statement, select: Select) -> str:
    """Return the text up to its LIMIT: SQLite refuses NULL there, and its parameters have no values yet."""
    tokens = statement.text.tokens
    at = next((i for i in range(select.core.span.end, len(tokens)) if tokens[i].key == "LIMIT"), None)
    return statement.sql if at is None else statement.sql[: tokens[at].start]


def _pins(scopes: Scopes) -> tuple[Pin, ...]:
    """Return a pin that may leave shards out: of a source whose rows every row of the result needs."""
    inner = [r for r in scopes.scopes[0].sources if r.table is not None and r.table.sharded and r.joined == "inner"]
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
