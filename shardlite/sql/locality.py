"""What of a query's subqueries and windows is sure to need the rows of one shard only.

A subquery is local where each sharded table in it is tied by its key to a row that is local already: the row of the
query around it, whose shard has all rows of that key. A window is local where its partitions are.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.names import fold
from shardlite.router.keys import Affinity
from shardlite.sql.clauses import Found, Select, Sources, Unsure, commas, top
from shardlite.sql.cores import Core, Span, conjuncts
from shardlite.sql.functions import AGGREGATES
from shardlite.sql.pins import colocated, facts_for, same_key
from shardlite.sql.scopes import Reference, Scope, Scopes
from shardlite.sql.tokens import Text, Token, TokenKind, closing

_NUMERIC = frozenset((Affinity.INTEGER, Affinity.REAL, Affinity.NUMERIC))
_FRAMES = frozenset(("ORDER", "ROWS", "RANGE", "GROUPS"))


def calls_aggregate(tokens: Sequence[Token], at: int) -> bool:
    """Tell whether an aggregate that is no window function is called at a position."""
    token = tokens[at]
    if token.kind not in (TokenKind.WORD, TokenKind.QUOTED) or at + 1 >= len(tokens) or tokens[at + 1].key != "(":
        return False
    close = closing(tokens, at + 1)
    if token.name in ("min", "max"):
        if any(tokens[i].key == "," for i in top(tokens, Span(at + 2, close))):
            return False
    elif token.name not in AGGREGATES:
        return False
    after = close + 1
    if after < len(tokens) and tokens[after].key == "FILTER":
        after = closing(tokens, after + 1) + 1
    return after >= len(tokens) or tokens[after].key != "OVER"


def inside(cores: Sequence[Core], outer: Core) -> list[Core]:
    """Return the SELECTs that stand somewhere inside another."""
    return [core for core in cores if outer.span.start < core.span.start < outer.span.end]


def require_local_subqueries(
    text: Text, inner: Sequence[Core], scopes: Scopes, outer: Core, scope: Scope, sources: Sources
) -> None:
    """Raise Unsure unless the subqueries ``inner`` of ``outer`` need rows of the outer row's shard only."""
    if any(outer.from_ is not None and outer.from_.start <= core.span.start < outer.from_.end for core in inner):
        raise Unsure("a query in FROM")
    below = [each for each in scopes.scopes if _is_below(each, scope)]
    if len(inner) != len(below):
        raise Unsure("a query in an unusual place")
    tied = _members_of_keys(text, inner, below, outer, sources)
    anchored: dict[int, list[Reference]] = {scope.number: _sharded(scope.sources)}
    for each in below:
        if each.parent is None or each.parent.number not in anchored:
            raise Unsure("a query in an unusual place")
        if each.opaque or any(source.table is None for source in each.sources):
            raise Unsure("a subquery of something else than tables")
        anchored[each.number] = _anchored(scopes, each, anchored[each.parent.number], tied)
    for core in inner:
        _require_own_aggregates(text, inner, core, below)


def _anchored(scopes: Scopes, scope: Scope, known: Sequence[Reference], tied: Sequence[Reference]) -> list[Reference]:
    """Return the sharded sources around and in a subquery, all of whose rows that matter are on the outer row's shard.

    Raises Unsure where that isn't so for one of them.
    """
    pending = _sharded(scope.sources)
    found = [*known, *(reference for reference in pending if reference in tied)]
    pending = [reference for reference in pending if reference not in tied]
    while pending:
        ready = next((r for r in pending if any(same_key(facts_for(scopes, r), one, r) for one in found)), None)
        if ready is None:
            raise Unsure("a subquery that isn't tied by its key")
        found.append(ready)
        pending.remove(ready)
    return found


def _is_below(scope: Scope, outer: Scope) -> bool:
    parent = scope.parent
    while parent is not None and parent is not outer:
        parent = parent.parent
    return parent is outer


def _sharded(sources: Sequence[Reference]) -> list[Reference]:
    return [source for source in sources if source.table is not None and source.table.sharded]


def _matching(core: Core, scopes: Sequence[Scope]) -> list[Scope]:
    wanted = [(item.name, item.alias) for item in core.items]
    return [scope for scope in scopes if [(source.name, source.alias) for source in scope.sources] == wanted]


def _members_of_keys(
    text: Text, inner: Sequence[Core], below: Sequence[Scope], outer: Core, sources: Sources
) -> list[Reference]:
    """Return the references whose keys the outer row's key must be among: ``WHERE key IN (SELECT key FROM ...)``.

    As a condition of its own it doesn't matter that elsewhere a NULL may be among them.
    """
    tokens = text.tokens
    tied: list[Reference] = []
    for span in conjuncts(tokens, outer.where) if outer.where is not None else ():
        at = next((i for i in top(tokens, span) if tokens[i].key == "IN"), span.end)
        core = next((core for core in inner if core.span.start == at + 2), None)
        # What follows the SELECT, such as LIMIT or UNION, would look at other shards' rows as well.
        if core is None or core.span.end != span.end - 1 or closing(tokens, at + 1) != span.end - 1:
            continue
        matching = _matching(core, below)
        if len(matching) != 1:
            continue
        negated = tokens[at - 1].key == "NOT"
        own = Sources(text, core, matching[0].sources)
        left, right = _key(sources, Span(span.start, at - negated)), _key(own, core.columns)
        if left is None or right is None or left.source.table is None or right.source.table is None:
            continue
        if negated and not (_never_null(left) and _never_null(right)):
            continue  # a NULL on another shard would count
        together = colocated(left.source.table, right.source.table) and right.source.joined == "inner"
        if together and _groups_by(tokens, core, own, right):
            tied.append(right.source)
    return tied


def _groups_by(tokens: Sequence[Token], core: Core, sources: Sources, key: Found) -> bool:
    """Tell whether a SELECT's groups, where it has any, are each of one key."""
    if core.group is None:
        return core.having is None
    return any(sources.single(span) == key for span in commas(tokens, core.group))


def _never_null(found: Found) -> bool:
    table = found.source.table
    if table is None or found.source.joined != "inner":
        return False
    column = table.by_name.get(found.column)
    return column is not None and (column.not_null or table.rowid_alias == column.name)


def _key(sources: Sources, span: Span) -> Found | None:
    """Return the column that an expression is if it is a table's whole shard key."""
    try:
        found = sources.single(span)
    except Unsure:
        return None
    if found is None or found.source.table is None:
        return None
    return found if [fold(name) for name in found.source.table.key_columns] == [found.column] else None


def _require_own_aggregates(text: Text, inner: Sequence[Core], core: Core, below: Sequence[Scope]) -> None:
    """Raise Unsure where an aggregate in a subquery may be the outer query's: it names none of the own columns."""
    tokens = text.tokens
    matching = _matching(core, below)
    if not matching:
        raise Unsure("a query in an unusual place")
    sources = Sources(text, core, matching[0].sources)
    children = [other.span for other in inside(inner, core)]
    for at in range(core.span.start, core.span.end):
        if any(span.start <= at < span.end for span in children) or not calls_aggregate(tokens, at):
            continue
        units = sources.units(Span(at + 2, closing(tokens, at + 1)), strangers=True)
        foreign = any(unit.name for unit in units)
        if foreign and all(unit.found is None for unit in units):
            raise Unsure("an aggregate of the outer query")


def equates_unlike(text: Text, core: Core, sources: Sources) -> bool:
    """Tell whether text may be equal to a number here: ``a = b`` of a column with numeric affinity and one without.

    SQLite then takes the one for constant where the other is, and doesn't sort or group by it, though ``'01'`` and
    ``1`` are not the same to a sort.
    """
    tokens = text.tokens
    spans = [span for span in (core.where, *(item.on for item in core.items)) if span is not None]
    for span in (part for each in spans for part in conjuncts(tokens, each)):
        at = next((i for i in top(tokens, span) if tokens[i].key in ("=", "==")), None)
        if at is None:
            continue
        try:
            sides = [sources.single(Span(span.start, at)), sources.single(Span(at + 1, span.end))]
        except Unsure:
            continue
        numeric = [side.affinity in _NUMERIC for side in sides if side is not None]
        if len(numeric) == 2 and any(side is not None and not _is_typed(side) for side in sides):
            return True
        if len(numeric) == 2 and len(set(numeric)) == 2:
            return True
    return False


def _is_typed(found: Found) -> bool:
    column = found.source.table.by_name.get(found.column) if found.source.table is not None else None
    return column is None or column.typed


def has_windows(tokens: Sequence[Token], core: Core) -> bool:
    """Tell whether window functions may stand in a SELECT."""
    return any(token.key == "OVER" for token in tokens[core.span.start : core.span.end])


def require_local_windows(select: Select, sources: Sources) -> None:
    """Raise Unsure unless every window's PARTITION BY holds the key of a table that every row has."""
    tokens, core = select.text.tokens, select.core
    openings = [i + 1 for i in range(core.span.start, core.span.end) if tokens[i].key == "OVER"]
    if core.window is not None:
        openings += [i + 2 for i in top(tokens, core.window) if tokens[i + 1].key == "AS"]
    for opening in openings:
        if opening < len(tokens) and tokens[opening].key == "(":
            _require_key_partition(tokens, Span(opening + 1, closing(tokens, opening)), sources)


def _require_key_partition(tokens: Sequence[Token], span: Span, sources: Sources) -> None:
    start = span.start
    if start < span.end and tokens[start].key != "PARTITION" and tokens[start].key not in _FRAMES:
        return  # it begins with the name of another window, whose partitions it has
    if start >= span.end or tokens[start].key != "PARTITION":
        raise Unsure("a window over rows of several shards")
    end = next((i for i in top(tokens, span) if tokens[i].key in _FRAMES), span.end)
    terms = [sources.single(term) for term in commas(tokens, Span(start + 2, end))]
    if not holds_key(sources, terms):
        raise Unsure("a window over rows of several shards")


def holds_key(sources: Sources, columns: Sequence[Found | None]) -> bool:
    """Tell whether some columns hold the whole key of a table that every row of the result has."""
    given = {(found.alias, found.column) for found in columns if found is not None}
    for reference in sources.references:
        table = reference.table
        if table is None or not table.sharded or reference.joined != "inner" or table.explicit_key:
            continue
        if table.key_columns and all((reference.alias, fold(name)) in given for name in table.key_columns):
            return True
    return False
