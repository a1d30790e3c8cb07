"""Queries of which each shard answers its part, and the coordinator puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.names import fold
from shardlite.router.table import TableKind
from shardlite.sql.clauses import PART, Select, Sources, Texts, Unsure, part_column, read_select
from shardlite.sql.cores import Core, Span, cores_of
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES, not_shardable
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.rules.common import analysed
from shardlite.sql.rules.fan_out import joins_locally
from shardlite.sql.rules.gather import gather
from shardlite.sql.scopes import Scopes
from shardlite.sql.sorted_rows import SortedRows
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, PushedDown, Source
from shardlite.sql.tokens import Token, TokenKind, closing
from shardlite.sql.two_phase import COMBINED, TwoPhase

_COMBINING = COMBINED | {"coalesce"}
"""What the texts that put the parts together call."""


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
    cores = cores_of(text)
    if statement.of_kind(TableKind.SINGLE):
        return None
    if scopes is None or text.head != "SELECT" or not cores or not analysed(statement):
        return None
    if len(cores) != 1 or len(scopes.scopes) != 1 or not joins_locally(scopes):
        return None
    core = cores[0]
    sources = Sources(text, core, scopes.scopes[0].sources)
    select = read_select(text, core, len(text.tokens))
    names = statement.columns(_without_limit(statement, select))
    if not names:
        return None
    if core.group is None and core.having is None and not _aggregates(text.tokens, core, select):
        if statement.prepared.aggregates:
            return None
        _check_functions(statement, frozenset())
        reason = "each shard sorts its rows and the sorted are put together"
        return _split(statement, scopes, SortedRows(select, sources, names).write(), names, reason)
    if _groups_by_key(select, sources):
        _check_functions(statement, AGGREGATES)
        reason = "each group is on one shard"
        if not select.order and select.limit is None and not core.distinct:
            return FannedOut(statement.sql, False, reason, statement.table_names, text, _pins(scopes))
        return _split(statement, scopes, SortedRows(select, sources, names).write(), names, reason)
    if core.distinct:
        return None
    _check_functions(statement, COMBINED)
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
    own = statement.schema.functions
    # A name that the user has taken doesn't mean SQLite's aggregate any more, also where the parts are put together.
    hidden = statement.prepared.functions & own.others or (own.names & _COMBINING if allowed else ())
    if hidden:
        raise Unsure(min(hidden))
    functions = statement.prepared.functions - allowed
    found = not_shardable(functions, statement.text, statement.schema.functions)
    if found is not None:
        raise Unsure(found)


def _aggregates(tokens: Sequence[Token], core: Core, select: Select) -> bool:
    """Tell whether an aggregate is called among the result columns or in ORDER BY."""
    spans = [core.columns, *(term.span for term in select.order)]
    return any(_is_aggregate(tokens, at) for span in spans for at in range(span.start, span.end))


def _is_aggregate(tokens: Sequence[Token], at: int) -> bool:
    token = tokens[at]
    if token.kind not in (TokenKind.WORD, TokenKind.QUOTED) or at + 1 >= len(tokens) or tokens[at + 1].key != "(":
        return False
    if token.name in ("min", "max"):
        inside = Span(at + 2, closing(tokens, at + 1))
        depth = 0
        for inner in tokens[inside.start : inside.end]:
            depth += (inner.key == "(") - (inner.key == ")")
            if inner.key == "," and depth == 0:
                return False
        return True
    return token.name in AGGREGATES


def _groups_by_key(select: Select, sources: Sources) -> bool:
    """Tell whether all rows of a group are on one shard: the key of a table that every row has is among its terms."""
    grouped = set()
    for span in select.group:
        found = sources.single(_meant(select, sources, span))
        if found is not None:
            grouped.add((found.alias, found.column))
    for reference in sources.references:
        table = reference.table
        if table is None or not table.sharded or reference.joined != "inner" or table.explicit_key:
            continue
        if table.key_columns and all((reference.alias, fold(name)) in grouped for name in table.key_columns):
            return True
    return False


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
