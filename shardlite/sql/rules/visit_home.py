"""Queries of virtual tables (FTS5, R-Tree), or large single tables, beside sharded ones: the rows visit the home shard.

What a virtual table knows can't be moved, and a large single table need not be. So the rows that the query needs of the
sharded tables go to the database in memory that shards can see, and the text runs on the home shard.
"""

from __future__ import annotations

from shardlite.names import fold, quote
from shardlite.router.table import TableKind
from shardlite.sql.clauses import PART, part_column
from shardlite.sql.facts import StatementKind
from shardlite.sql.names_in import cte_names
from shardlite.sql.rules.broadcast import in_shared
from shardlite.sql.rules.gather import source_of
from shardlite.sql.statement import Statement
from shardlite.sql.template import PushedDown, Source


def visit_home(statement: Statement) -> PushedDown | None:
    """Run the text on the home shard, the sharded tables' rows beside it; None where that can't be or doesn't pay."""
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly:
        return None
    sharded = statement.of_kind(TableKind.SHARDED)
    whole = statement.of_kind(TableKind.SINGLE)
    if not sharded or not whole or statement.views:
        return None
    reduction = statement.reduction
    moved = sum(reduction.needed[fold(table.name)].rows for table in sharded)
    stays = sum(reduction.needed[fold(table.name)].rows for table in whole)
    if not any(table.virtual for table in whole) and stays < moved:
        return None
    names = {fold(table.name) for table in sharded}
    columns = statement.columns(statement.sql)
    sql = in_shared(statement.sql, names)
    if sql is None or not columns or cte_names(statement.text) & names:
        return None
    used = reduction.with_used(names)
    listed = ", ".join(map(part_column, range(len(columns))))
    part = Source(PART, f"CREATE TABLE {PART}({listed})", f"INSERT INTO {PART}({listed})", len(columns), sql, False)
    shown = ", ".join(f"{part_column(number)} AS {quote(name)}" for number, name in enumerate(columns))
    return PushedDown(
        f"SELECT {shown} FROM {PART} ORDER BY {PART}.rowid",
        statement.whole.text,
        part,
        f"{', '.join(sorted(table.name for table in whole))} can stay on the home shard; the other rows go there",
        statement.table_names,
        None,
        tuple(source_of(statement, reduction.needed[name], shared=True) for name in used),
    )
