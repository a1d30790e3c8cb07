"""Which source of which SELECT a column's name means, from the places of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardlite.names import fold
from shardlite.router.table import Column, Table
from shardlite.sql.cores import COMPOUNDS, Core, Item, Span, conjuncts, disjuncts
from shardlite.sql.tokens import Text, Token, TokenKind, closing

ROWIDS = frozenset(("rowid", "_rowid_", "oid"))


@dataclass(frozen=True, slots=True)
class Mention:
    """One column of one source."""

    core: Core
    item: Item
    column: Column


@dataclass(frozen=True, slots=True)
class Edge:
    """Two columns of one affinity and collation that must be equal for a row of the result.

    ``into``: the right one is the result of a subquery (``left IN (SELECT right ...)``); ``plain``: no grouping and no
    LIMIT of it depends on rows that the left one doesn't ask for.
    """

    left: Mention
    right: Mention
    into: bool = False
    plain: bool = True


def column_at(tokens: Sequence[Token], span: Span, core: Core, tables: Mapping[str, Table]) -> Mention | None:
    """Return the column that the tokens are, nothing but a column; None where it can't be told."""
    words = tokens[span.start : span.end]
    if any(token.kind not in (TokenKind.WORD, TokenKind.QUOTED) for token in words[::2]):
        return None
    if len(words) == 1:
        return _unqualified(tokens, words[0].name or "", core, tables)
    if len(words) == 3 and words[1].key == ".":
        return _qualified(words[0].name or "", words[2].name or "", core, tables)
    return None


def _qualified(alias: str, name: str, core: Core | None, tables: Mapping[str, Table]) -> Mention | None:
    while core is not None:
        if core.nested:
            return None
        found = [item for item in core.items if item.alias == alias]
        if len(found) > 1:
            return None
        if found:
            return _pick(core, found[0], name, tables)
        core = core.parent
    return None


def _unqualified(tokens: Sequence[Token], name: str, core: Core | None, tables: Mapping[str, Table]) -> Mention | None:
    while core is not None:
        if core.nested or any(item.name not in tables for item in core.items):
            return None
        if any(name in tables[item.name].by_name for item in core.items):
            holder = holder_of(core, name, tables)
            return None if holder is None else _pick(core, holder, name, tables)
        if any(token.name == name for token in tokens[core.columns.start : core.columns.end]):
            return None  # perhaps the name of a result column, which goes before a column of the SELECT around
        core = core.parent
    return None


def merged_columns(core: Core, item: Item, tables: Mapping[str, Table]) -> frozenset[str]:
    """Return the columns that a source's USING or NATURAL JOIN makes one with those of a source before it."""
    if not item.natural:
        return frozenset(item.using)
    before = [tables.get(other.name) for other in core.items[: core.items.index(item)]]
    own = tables.get(item.name)
    if own is None:
        return frozenset()
    return frozenset(
        name for name in own.by_name if any(table is not None and name in table.by_name for table in before)
    )


def holder_of(core: Core, name: str, tables: Mapping[str, Table]) -> Item | None:
    """Return the source whose column an unqualified name means, None where it can't be told."""
    if core.nested or any(item.name not in tables for item in core.items):
        return None
    holders = [item for item in core.items if name in tables[item.name].by_name]
    if len(holders) > 1 and core.outer_joins:
        return None  # then the first of their values that isn't NULL
    if not all(name in merged_columns(core, other, tables) for other in holders[1:]):
        return None
    return holders[0] if holders else None


def _pick(core: Core, item: Item, name: str, tables: Mapping[str, Table]) -> Mention | None:
    table = tables.get(item.name)
    if table is None:
        return None
    column = table.by_name.get(name)
    if column is None and name in ROWIDS and table.rowid_alias is not None:
        column = table.by_name[fold(table.rowid_alias)]
    return None if column is None else Mention(core, item, column)


def edges_of(
    text: Text, core: Core, cores: Sequence[Core], tables: Mapping[str, Table]
) -> list[tuple[Edge, Item | None]]:
    """Return the equalities of columns in a SELECT's WHERE (item None) and in its joins' ON (with the join's item)."""
    found: list[tuple[Edge, Item | None]] = []
    places: list[tuple[Span, Item | None]] = [] if core.where is None else [(core.where, None)]
    places += [(item.on, item) for item in core.items if item.on is not None]
    for place, item in places:
        for span in conjuncts(text.tokens, place):
            found += [(edge, item) for edge in _edges_in(text.tokens, span, core, cores, tables)]
    for item in core.items:
        found += [(edge, item) for edge in _using(core, item, tables)]
    return found


def _edges_in(
    tokens: Sequence[Token], span: Span, core: Core, cores: Sequence[Core], tables: Mapping[str, Table]
) -> list[Edge]:
    """Return the equality that a condition is, or those that all its alternatives have."""
    edge = _equality(tokens, span, core, tables) or _membership(tokens, span, core, cores, tables)
    if edge is not None:
        return [edge]
    parts = disjuncts(tokens, span)
    if len(parts) < 2:
        return []
    found = [
        [edge for each in conjuncts(tokens, part) for edge in _edges_in(tokens, each, core, cores, tables)]
        for part in parts
    ]
    return [edge for edge in found[0] if all(any(_same(edge, other) for other in others) for others in found[1:])]


def _same(one: Edge, other: Edge) -> bool:
    return _place(one.left) == _place(other.left) and _place(one.right) == _place(other.right) and not other.into


def _place(mention: Mention) -> tuple[int, str, str]:
    return id(mention.core), mention.item.alias, mention.column.name


def _membership(
    tokens: Sequence[Token], span: Span, core: Core, cores: Sequence[Core], tables: Mapping[str, Table]
) -> Edge | None:
    """Return the edge of ``column IN (SELECT column FROM ...)``."""
    at = next((p for p in range(span.start, span.end) if tokens[p].key == "IN"), None)
    if at is None or at + 2 >= span.end or tokens[at + 1].key != "(" or closing(tokens, at + 1) != span.end - 1:
        return None
    inner = next((each for each in cores if each.span.start == at + 2), None)
    if inner is None or inner.nested or inner.outer_joins:
        return None
    left = column_at(tokens, Span(span.start, at), core, tables)
    right = column_at(tokens, inner.columns, inner, tables)
    if left is None or right is None or right.core is not inner or not alike(left.column, right.column):
        return None
    after = tokens[inner.span.end].key
    if after in COMPOUNDS:
        return None
    plain = after == ")" and inner.group is None and inner.having is None
    return Edge(left, right, True, plain)


def _equality(tokens: Sequence[Token], span: Span, core: Core, tables: Mapping[str, Table]) -> Edge | None:
    at = next((p for p in range(span.start, span.end) if tokens[p].key in ("=", "==")), None)
    if at is None:
        return None
    left = column_at(tokens, Span(span.start, at), core, tables)
    right = column_at(tokens, Span(at + 1, span.end), core, tables)
    if left is None or right is None or not alike(left.column, right.column):
        return None
    return Edge(left, right)


def _using(core: Core, item: Item, tables: Mapping[str, Table]) -> list[Edge]:
    found = []
    for name in sorted(merged_columns(core, item, tables)):
        holder = holder_of(core, name, tables)
        if holder is None or core.items.index(holder) >= core.items.index(item):
            continue
        left = _pick(core, holder, name, tables)
        right = _pick(core, item, name, tables)
        if left is not None and right is not None and alike(left.column, right.column):
            found.append(Edge(left, right))
    return found


def alike(left: Column, right: Column) -> bool:
    """Tell whether equality of two columns is that of the values stored."""
    return left.affinity is right.affinity and fold(left.collation) == fold(right.collation)


def cte_names(text: Text) -> frozenset[str]:
    """Return the names that the text may give to common table expressions (and windows)."""
    tokens = text.tokens
    found = set()
    for position in range(len(tokens) - 2):
        at = position + 1
        if tokens[at].key == "(":
            at = closing(tokens, at) + 1
        if at + 1 < len(tokens) and tokens[at].key == "AS" and tokens[at + 1].key in ("(", "MATERIALIZED", "NOT"):
            found.add(tokens[position].name or "")
    return frozenset(found)


def is_exists(text: Text, core: Core) -> bool:
    """Tell whether a SELECT stands in EXISTS (...): what it selects doesn't matter."""
    tokens, at = text.tokens, core.span.start
    return at >= 2 and tokens[at - 1].key == "(" and tokens[at - 2].key == "EXISTS"


def only_asks(text: Text, core: Core) -> bool:
    """Tell whether a SELECT of one table is only asked whether it has rows, or a value among them."""
    tokens = text.tokens
    at, end = core.span
    if len(core.items) != 1 or core.nested or core.group is not None or core.having is not None:
        return False
    if end >= len(tokens) or tokens[end].key != ")" or at < 2 or tokens[at - 1].key != "(":
        return False
    if tokens[at - 2].key == "EXISTS":
        return not any(token.key == "(" for token in tokens[core.columns.start : core.columns.end])
    return tokens[at - 2].key == "IN" and not any(
        token.key == "(" for token in tokens[core.columns.start : core.columns.end]
    )


def stars_matter(text: Text, cores: Sequence[Core]) -> bool:
    """Tell whether columns are looked at that the text doesn't name: by ``*`` or ``t.*``, or by ``x IN t``.

    Not those of EXISTS (SELECT * ...), which nobody looks at.
    """
    tokens = text.tokens
    asked = [core.columns for core in cores if is_exists(text, core)]
    for position, token in enumerate(tokens):
        if token.key == "IN" and tokens[position + 1].key != "(":
            return True
        if token.key != "*" or position == 0 or any(span.start <= position < span.end for span in asked):
            continue
        if tokens[position - 1].key in ("SELECT", "DISTINCT", "ALL", ",", ".", "RETURNING"):
            return True
    return False
