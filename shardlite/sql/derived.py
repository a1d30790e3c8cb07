"""A subquery in FROM as a table: its columns with the affinities and collations that they have there."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.names import fold
from shardlite.router.keys import Affinity
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.clauses import Found, Select, Sources, Unsure
from shardlite.sql.cores import Core, Item, Span
from shardlite.sql.scopes import Reference
from shardlite.sql.tokens import Text, closing


def derived_core(text: Text, cores: Sequence[Core], outer: Core) -> Core | None:
    """Return the plain SELECT in parentheses that is the only source of another, None where it's something else."""
    if len(outer.items) != 1 or outer.nested:
        return None
    start = outer.items[0].span.start
    if text.tokens[start].key != "(":
        return None
    core = next((core for core in cores if core.span.start == start + 1), None)
    # What follows it, such as LIMIT or UNION, would look at rows of other shards as well.
    return core if core is not None and core.span.end == closing(text.tokens, start) else None


def derived_table(item: Item, select: Select, sources: Sources, names: Sequence[str], scope: int) -> Reference:
    """Return the subquery as a source. It has a shard key where it shows one of its tables'."""
    shown = _shown(select, sources)
    folded = [fold(name) for name in names]
    if len(shown) != len(names) or len(set(folded)) != len(folded) or not all(folded):
        raise Unsure("the columns of a subquery")
    columns = tuple(
        Column(name, "", found.affinity if found else Affinity.BLOB, collation, False, None, 0, False)
        for name, (found, collation) in zip(names, shown, strict=True)
    )
    key, group = _key(sources, [found for found, _ in shown], names)
    table = Table(item.alias_text or "subquery", TableKind.SHARDED, columns, key, group, without_rowid=True)
    return Reference("", item.alias, item.alias_text, scope, table)


def _shown(select: Select, sources: Sources) -> list[tuple[Found | None, str]]:
    """Return for each result column the table's column that it is, or None, and its collation."""
    found: list[tuple[Found | None, str]] = []
    for output in select.outputs:
        if output.star:
            found.extend((column, column.collation) for column in sources.expand(output.star))
        else:
            found.append((_single(sources, output.span), sources.collation(output.span)))
    return found


def _single(sources: Sources, span: Span) -> Found | None:
    try:
        return sources.single(span)
    except Unsure:
        return None


def _key(sources: Sources, shown: Sequence[Found | None], names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    places = {(found.alias, found.column): name for found, name in zip(shown, names, strict=True) if found is not None}
    for reference in sources.references:
        table = reference.table
        if table is None or not table.sharded or not table.key_columns or reference.joined != "inner":
            continue
        wanted = [(reference.alias, fold(name)) for name in table.key_columns]
        if all(each in places for each in wanted):
            return tuple(places[each] for each in wanted), table.group
    return (), ""
