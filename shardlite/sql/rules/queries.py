"""A query's outermost SELECTs, each taken apart and found to need rows of one shard for each row of its FROM.

That is what all plans stand on that let the shards answer. Whatever isn't sure raises ``Unsure``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlite.router.table import TableKind
from shardlite.sql.clauses import Select, Sources, Unsure, read_select
from shardlite.sql.cores import Core, Span, top_positions
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
from shardlite.sql.rules.common import analysed
from shardlite.sql.rules.fan_out import joins_locally
from shardlite.sql.scopes import Scope
from shardlite.sql.statement import Statement
from shardlite.sql.tokens import TokenKind

_OWN = AGGREGATES | WINDOWS | {"min", "max", "coalesce", "abs"}
"""What the texts that put the parts together call, and what is told from a scalar function by its name."""


@dataclass(frozen=True, slots=True)
class Query:
    """One outermost SELECT. ``below``: it has subqueries; ``by_key``: all rows of a group are on one shard."""

    select: Select
    sources: Sources
    scope: Scope
    below: bool
    grouped: bool
    by_key: bool
    windows: bool

    @property
    def sharded(self) -> bool:
        """Tell whether it reads a sharded table itself: otherwise every shard gives all of its rows."""
        return any(source.table is not None and source.table.sharded for source in self.scope.sources)


def queries_of(statement: Statement) -> list[Query]:
    """Return the SELECT of a query, or the arms of a compound one."""
    text, scopes = statement.text, statement.scopes
    if scopes is None or text.head != "SELECT" or statement.of_kind(TableKind.SINGLE) or not analysed(statement):
        raise Unsure("a statement of this form")
    if statement.schema.functions.names & _OWN:
        raise Unsure("a function of the user's own by the name of one that is taken apart here")
    cores = statement.cores
    plain = frozenset(top_positions(text.tokens))
    outer = [core for core in cores if core.span.start in plain]
    roots = [scope for scope in scopes.scopes if scope.parent is None]
    if not outer or len(cores) != len(scopes.scopes) or len(outer) != len(roots):
        raise Unsure("a query in an unusual place")
    ends = [*(core.span.end for core in outer[:-1]), len(text.tokens)]
    return [_query(statement, *each) for each in zip(outer, roots, ends, strict=True)]


def _query(statement: Statement, core: Core, scope: Scope, end: int) -> Query:
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
    return Query(select, sources, scope, bool(inner), grouped, by_key, windows)


def check_rows(statement: Statement, queries: Sequence[Query]) -> None:
    """Check the functions of queries whose rows are those of the shards."""
    windows = any(query.windows for query in queries)
    aggregates = windows or any(query.grouped or query.below for query in queries)
    if statement.prepared.aggregates and not aggregates:
        raise Unsure("an aggregate that the text doesn't show")
    allowed = AGGREGATES if aggregates else frozenset[str]()
    check_functions(statement, allowed | WINDOWS if windows else allowed)


def check_functions(statement: Statement, allowed: frozenset[str]) -> None:
    """Raise Unsure where a function that isn't allowed may answer differently from shard to shard."""
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
