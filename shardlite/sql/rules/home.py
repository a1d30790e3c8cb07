"""Statements that touch no sharded table and write no reference table: the home shard has all that they need."""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.table import TableKind
from shardlite.sql.plan import PlanKind
from shardlite.sql.rules.common import may_keep_failed
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template
from shardlite.sql.tokens import words

TABLE_FUNCTIONS = words(
    """
    json_each json_tree generate_series pragma_table_info pragma_table_xinfo
    pragma_index_list pragma_index_info pragma_index_xinfo pragma_foreign_key_list pragma_function_list
    pragma_collation_list pragma_module_list pragma_compile_options pragma_pragma_list
    """
)


def home(statement: Statement) -> Template | None:
    """Run on shard 0 what is wholly there: any SQL over single tables, and queries of reference tables."""
    _refuse_strangers(statement)
    if statement.of_kind(TableKind.SHARDED):
        return None
    if any(table.kind is TableKind.REFERENCE for table in statement.written):
        return None
    if statement.prepared.writes and may_keep_failed(statement):
        return None  # the transaction here is all or nothing
    if statement.of_kind(TableKind.SINGLE):
        reason = "only single and reference tables, which are whole on the home shard"
    elif statement.tables:
        reason = "only reference tables, which are whole on every shard"
    else:
        reason = "no table is read"
    return Placed(
        PlanKind.HOME,
        statement.whole.sql,
        statement.prepared.readonly,
        reason,
        statement.table_names,
        statement.returns_rows,
    )


def _refuse_strangers(statement: Statement) -> None:
    """Refuse table-valued functions and tables that the catalog doesn't know: they may tell of one file only."""
    prepared = statement.prepared
    known = {fold(name) for name in (*statement.schema.tables, *statement.schema.views)}
    for access in sorted(prepared.reads | prepared.writes, key=lambda access: access.table):
        name = access.table
        if name and name not in known and name not in TABLE_FUNCTIONS and name.startswith(("pragma_", "sqlite_")):
            raise NotSupportedError(f"{name} tells of one file or one connection: ask it on manager.pool(n)")
