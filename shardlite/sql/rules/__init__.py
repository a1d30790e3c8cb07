"""The rules that turn a statement into a plan, one per file, tried in order."""

from __future__ import annotations

from collections.abc import Callable

from shardlite.sql.rules.attached import attached
from shardlite.sql.rules.common import keeps_failed
from shardlite.sql.rules.every_shard_write import every_shard_write
from shardlite.sql.rules.fan_out import fan_out
from shardlite.sql.rules.home import home
from shardlite.sql.rules.insert import insert
from shardlite.sql.rules.insert_query import insert_query
from shardlite.sql.rules.one_shard import one_shard
from shardlite.sql.rules.reference_write import reference_write
from shardlite.sql.rules.schema_change import schema_change
from shardlite.sql.rules.session import session
from shardlite.sql.statement import Statement
from shardlite.sql.template import Template

Rule = Callable[[Statement], Template | None]
"""Return a template, None where the rule isn't about the statement, or raise NotSupportedError to refuse it."""

FIRST: tuple[Rule, ...] = (session, attached, schema_change, home)
"""Rules whose refusals stand."""

RULES: tuple[Rule, ...] = (keeps_failed, insert_query, reference_write, insert, one_shard, every_shard_write, fan_out)
"""Rules after which a query that they refuse is pushed down, else gathered; their words say why."""
