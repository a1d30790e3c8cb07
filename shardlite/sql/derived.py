"""A subquery in FROM as a table: its columns with the affinities and collations that they have there."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.names import fold
from shardlite.router.keys import Affinity
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.clauses import Found, Select, Sources, Unsure
from shardlite.sql.compound import Arm
from shardlite.sql.cores import Span

_MAY_HAVE_A_TYPE = frozenset(("CAST", "SELECT"))


def derived_columns(arms: Sequence[Arm], names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of a query, or of the arms of a compound one. Unsure where they can't be told apart."""
    folded = [fold(name) for name in names]
    if len(set(folded)) != len(folded) or not all(folded):
        raise Unsure("the columns of a subquery")
    first, *others = [_columns(arm.select, arm.sources, names) for arm in arms]
    columns = []
    for index, column in enumerate(first):
        same = [other[index] for other in others]
        if any(other.collation != column.collation for other in same):
            raise Unsure("the collation of a compound query's column")
        typed = column.typed and all(other.typed and other.affinity is column.affinity for other in same)
        columns.append(column if typed else _column(column.name, Affinity.BLOB, column.collation, typed=False))
    return tuple(columns)


def derived_key(arm: Arm, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the columns in which a query shows the shard key of one of its tables, and the group of these keys."""
    shown = [found for found, _, _ in _shown(arm.select, arm.sources)]
    places = {(found.alias, found.column): name for found, name in zip(shown, names, strict=True) if found is not None}
    for reference in arm.sources.references:
        table = reference.table
        if table is None or not table.sharded or not table.key_columns or reference.joined != "inner":
            continue
        wanted = [(reference.alias, fold(name)) for name in table.key_columns]
        if all(each in places for each in wanted):
            return tuple(places[each] for each in wanted), table.group
    return (), ""


def derived_table(
    name: str, kind: TableKind, columns: tuple[Column, ...], key: tuple[tuple[str, ...], str], *, rowid: bool
) -> Table:
    """Return a subquery as a table: sharded where each shard gives a part of its rows, a reference table where all."""
    columns_of_key, group = key if kind is TableKind.SHARDED else ((), "")
    return Table(name, kind, columns, columns_of_key, group, without_rowid=not rowid)


def _columns(select: Select, sources: Sources, names: Sequence[str]) -> list[Column]:
    shown = _shown(select, sources)
    if len(shown) != len(names):
        raise Unsure("the columns of a subquery")
    return [
        _column(name, found.affinity if found else Affinity.BLOB, collation, typed=typed)
        for name, (found, collation, typed) in zip(names, shown, strict=True)
    ]


def _column(name: str, affinity: Affinity, collation: str, *, typed: bool) -> Column:
    return Column(name, "", affinity, collation, False, None, 0, False, typed)


def _shown(select: Select, sources: Sources) -> list[tuple[Found | None, str, bool]]:
    """Return for each result column the table's column that it is, or None, its collation, and if its type is known."""
    found: list[tuple[Found | None, str, bool]] = []
    for output in select.outputs:
        if output.star:
            found.extend((column, column.collation, _is_typed(column)) for column in sources.expand(output.star))
            continue
        column = _single(sources, output.span)
        typed = _is_typed(column) if column is not None else not _converts(select, output.span)
        found.append((column, sources.collation(output.span), typed))
    return found


def _is_typed(found: Found) -> bool:
    column = found.source.table.by_name.get(found.column) if found.source.table is not None else None
    return column is None or column.typed


def _converts(select: Select, span: Span) -> bool:
    tokens = select.text.tokens
    return any(token.key in _MAY_HAVE_A_TYPE for token in tokens[span.start : span.end])


def _single(sources: Sources, span: Span) -> Found | None:
    try:
        return sources.single(span)
    except Unsure:
        return None
