"""Queries that the shards can answer once the smaller tables are with each of them.

The tables of one colocation group stay where they are; the rows that the query needs of all others go to a database in
memory that every shard sees. There they are what a reference table is, so the query can be pushed down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.cores import SHARED, cores_of
from shardlite.sql.filters import times_named
from shardlite.sql.names_in import cte_names
from shardlite.sql.reduction import MOST_SHARED_ROWS, Reduction
from shardlite.sql.rules.gather import gather, source_of
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.statement import Statement
from shardlite.sql.template import PushedDown
from shardlite.sql.tokens import tokenize

_WORTH = 0.95
"""Rows are sent to the shards where they are fewer than those that a gather would bring: the work is then shared."""


def broadcast(statement: Statement) -> PushedDown | None:
    """Send the smaller tables to all shards and push the query down; None where that can't be or doesn't pay."""
    spread = [table for table in statement.tables if table.kind is not TableKind.REFERENCE]
    if len(spread) < 2 or statement.views or any(table.virtual for table in spread):
        return None
    if not _condenses(statement):
        return None  # the rows of the answer would be moved as well, and come in another order than one file's
    if cte_names(statement.text) & {fold(table.name) for table in spread}:
        return None
    reduction = statement.reduction
    everything = sum(needed.rows for needed in reduction.needed.values())
    for stay in sorted(anchors(reduction, spread), key=lambda stay: _cost(reduction, spread, stay)):
        cost = _cost(reduction, spread, stay)
        if cost > MOST_SHARED_ROWS or cost > everything * _WORTH:
            return None
        found = _pushed(statement, reduction, [table for table in spread if table not in stay])
        if found is not None:
            return found
    return None


def _condenses(statement: Statement) -> bool:
    """Tell whether the shards' answers are likely to be smaller than what they are made from."""
    return statement.prepared.aggregates or bool(statement.text.keywords() & {"LIMIT", "DISTINCT", "GROUP"})


def anchors(reduction: Reduction, spread: Sequence[Table]) -> list[tuple[Table, ...]]:
    """Return the sets of tables that may stay: those that are joined on equal keys, and each by itself."""
    stays = {fold(t.name): {fold(t.name)} for t in spread if t.sharded and not t.explicit_key}
    for left, right in reduction.local_joins():
        if left in stays and right in stays and stays[left] is not stays[right]:
            stays[left] |= stays[right]
            for name in stays[left]:
                stays[name] = stays[left]
    sets = {frozenset(names) for names in stays.values()} | {frozenset((name,)) for name in stays}
    return [tuple(table for table in spread if fold(table.name) in names) for names in sorted(sets, key=sorted)]


def _cost(reduction: Reduction, spread: Sequence[Table], stay: Sequence[Table]) -> float:
    sent = {fold(table.name) for table in spread if table not in stay}
    # What their conditions look at is sent as well, be it of a table that stays.
    return sum(reduction.needed[name].rows for name in reduction.with_used(sent))


def _pushed(statement: Statement, reduction: Reduction, sent: Sequence[Table]) -> PushedDown | None:
    """Push the query down as if the tables that are sent were reference tables."""
    names = {fold(table.name) for table in sent}
    tables = {
        name: replace(table, kind=TableKind.REFERENCE, key_columns=(), group="") if name in names else table
        for name, table in statement.schema.tables.items()
    }
    schema = replace(statement.schema, tables=tables)
    found = push_down(statement.as_if(schema))
    if not isinstance(found, PushedDown):
        return None
    part = in_shared(found.part.sql, names)
    otherwise = gather(statement)
    if part is None or otherwise is None:
        return None
    needed = [reduction.needed[name] for name in reduction.with_used(names)]
    shared = tuple(source_of(statement, one, shared=True) for one in needed)
    words = ", ".join(sorted(one.table.name for one in needed))
    return replace(
        found,
        part=replace(found.part, sql=part),
        shared=shared,
        rows_sent=sum(one.rows for one in needed),
        otherwise=otherwise,
        reason=f"{words} sent to every shard; {found.reason}",
    )


def in_shared(sql: str, names: set[str], schema: str = SHARED) -> str | None:
    """Let a text read some tables from the shared database (or another); None where a table's place isn't plain."""
    text = tokenize(sql)
    places: list[tuple[int, int, str]] = []
    for core in cores_of(text):
        for item in core.items:
            if item.name in names:
                if item.schema:
                    return None
                token = text.tokens[item.span.start]
                places.append((token.start, token.end, token.value))
    seen = [fold(name) for _, _, name in places]
    if any(seen.count(name) != times_named(text, name) for name in names):
        return None
    for start, end, name in sorted(places, reverse=True):
        sql = f"{sql[:start]}{schema}.{quote(name)}{sql[end:]}"
    return sql
