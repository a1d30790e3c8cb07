"""Writes of reference tables run on every shard, where every copy is sure to get the same."""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.router.table import Table, TableKind
from shardlite.sql.copies import shifts
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import not_shardable
from shardlite.sql.plan import PlanKind
from shardlite.sql.rules.common import refuse_key_changes, replaces
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template

_VALUES = "read the values first and pass them as parameters"


def reference_write(statement: Statement) -> Template | None:
    """Write a reference table on every shard if the statement is deterministic, else refuse it by name."""
    written = [table for table in statement.written if table.kind is TableKind.REFERENCE]
    if not written:
        return None
    target = statement.schema.tables.get(statement.target or "")
    if target is None or target.kind is not TableKind.REFERENCE:
        if statement.of_kind(TableKind.SHARDED):
            return None
        raise NotSupportedError(
            f"the reference table {written[0].name} is written by a trigger or foreign key of {statement.target}: "
            f"write to {written[0].name} itself"
        )
    name = target.name
    why = _why_not(statement, target)
    if why is not None:
        what, advice = why
        raise NotSupportedError(f"a write of the reference table {name} with {what}: {advice}")
    refuse_key_changes(statement)
    return Placed(
        PlanKind.EVERY_SHARD,
        statement.sql,
        False,
        f"{name} is a reference table: every shard has a copy",
        statement.table_names,
        statement.returns_rows,
    )


def _why_not(statement: Statement, target: Table) -> tuple[str, str] | None:
    single = statement.of_kind(TableKind.SINGLE)
    if single:
        return f"the single table {single[0].name}, which only the home shard has", _VALUES
    if statement.triggers:
        return f"the trigger {statement.triggers[0]}", "do the trigger's work in the application"
    if statement.mentions("SELECT") or (statement.kind is StatementKind.UPDATE and statement.mentions("FROM")):
        return "a query in it, whose rows may come in another order on each copy", _VALUES
    if statement.mentions("LIMIT"):
        return "LIMIT, which may choose other rows on each copy", "name the rows by their key"
    found = not_shardable(statement.prepared.functions, statement.text, statement.schema.functions)
    if found is not None:
        return f"the function {found}(), which may answer differently on each copy", "compute it in Python"
    if replaces(statement):
        for column in target.columns:
            if column.not_null and shifts(column):
                what = f"OR REPLACE, which puts the default {column.default_sql} of {column.name} in the place of NULL"
                return what, "leave OR REPLACE out"
    if statement.kind is StatementKind.INSERT:
        return _default_why_not(statement)
    return None


def _default_why_not(statement: Statement) -> tuple[str, str] | None:
    for column in statement.left_to_defaults:
        if shifts(column):
            return f"the default {column.default_sql} of {column.name}", f"give {column.name} as a parameter"
    return None
