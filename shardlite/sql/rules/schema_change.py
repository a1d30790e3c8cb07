"""CREATE, ALTER, DROP, REINDEX and ANALYZE go to ``apply_schema``."""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.sql.facts import StatementKind
from shardlite.sql.plan import PlanKind
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template


def schema_change(statement: Statement) -> Template | None:
    """Send schema changes to every shard; refuse temporary objects."""
    if statement.kind is not StatementKind.DDL:
        return None
    second = statement.text.tokens[1].key if len(statement.text.tokens) > 1 else ""
    if statement.text.head == "CREATE" and second in ("TEMP", "TEMPORARY"):
        raise NotSupportedError(
            "CREATE TEMP lives in one connection: create an ordinary table, view or trigger, or use manager.pool(n)"
        )
    return Placed(PlanKind.DDL, statement.sql, False, "a schema change is made on every shard, all or nothing")
