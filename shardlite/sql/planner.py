"""From a text to a plan: prepare it, try the rules in order, remember the template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from shardlite.errors import NotSupportedError
from shardlite.router.table import Table
from shardlite.sql.facts import Columns, Prepare, Schema, StatementKind
from shardlite.sql.plan import LayoutView, Parameters, Plan, PlanKind
from shardlite.sql.rules import FIRST, RULES
from shardlite.sql.rules.broadcast import broadcast
from shardlite.sql.rules.gather import asks_past, gather
from shardlite.sql.rules.home import home
from shardlite.sql.rules.init_plan import init_plan
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.rules.repartition import repartition
from shardlite.sql.rules.visit_home import visit_home
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template, WithFallback
from shardlite.sql.tokens import tokenize

CACHED_TEXTS = 1024
LONGEST_CACHED_TEXT = 8192
"""Characters. Statements with thousands of literals are made once and would push the others out."""


class Planner:
    """Plan statements for one schema; a changed schema takes a new planner. Safe for threads.

    ``prepare`` and ``columns`` are the planning connection's. A repeated text costs a look-up and the binding of its
    parameters.
    """

    def __init__(
        self,
        schema: Schema,
        prepare: Prepare,
        columns: Columns,
        rows: Callable[[Table], int] | None = None,
    ) -> None:
        """``rows`` estimates how many rows a table has: it decides costs, never answers."""
        self._schema = schema
        self._rows = rows
        self._prepare = prepare
        self._columns = columns
        self._cached = lru_cache(maxsize=CACHED_TEXTS)(self._build)

    def plan(self, sql: str, parameters: Parameters, layout: LayoutView) -> Plan:
        """Return the plan of a statement.

        Raises SQLite's errors for a wrong statement, NotSupportedError for one that could be answered wrongly, and
        RoutingError or ProgrammingError for parameters that don't fit.
        """
        return self.template(sql).bind(parameters, layout)

    def template(self, sql: str) -> Template:
        """Return the template of a text. Raises as ``plan`` does."""
        return self._cached(sql) if len(sql) <= LONGEST_CACHED_TEXT else self._build(sql)

    def _build(self, sql: str) -> Template:
        prepared = self._prepare(sql)
        if prepared.kind is StatementKind.EXPLAIN:
            return self._explain(sql)
        statement = Statement(prepared, self._schema, self._columns, self._rows, self._prepare)
        for rule in FIRST:
            template = rule(statement)
            if template is not None and not asks_past(statement):
                return template
        why = ""
        # The rules that leave work to the shards look through views and WITH; a gather runs the text as it is.
        written = None if asks_past(statement) else statement.expanded
        for rule in () if asks_past(statement) else RULES if written is None else (home, *RULES):
            try:
                template = rule(written or statement)
            except NotSupportedError as refusal:
                why = str(refusal)
                break
            if template is not None:
                return template if prepared.readonly else WithFallback(template, partial(gather, statement))
        template = None if asks_past(statement) else self._pushed(written or statement)
        template = template or gather(statement, why)
        if template is None:
            raise NotSupportedError(why or f"no rule plans this {prepared.kind}")
        return template

    def _pushed(self, statement: Statement) -> Template | None:
        """Try the rules that let the shards do a query's work."""
        found = push_down(statement) or init_plan(statement, self.template)
        if found is not None:
            return found
        sent = broadcast(statement)
        return repartition(statement, sent) or sent or visit_home(statement)

    def gathered(self, sql: str, parameters: Parameters, layout: LayoutView) -> Plan | None:
        """Return the plan of a change that gathers in any case; None where there is none."""
        template = self.template(sql)
        return template.gathered(parameters, layout) if isinstance(template, WithFallback) else None

    def _explain(self, sql: str) -> Template:
        tokens = tokenize(sql).tokens
        skip = 3 if len(tokens) > 2 and tokens[1].key == "QUERY" and tokens[2].key == "PLAN" else 1
        inner = sql[tokens[skip].start :] if len(tokens) > skip else ""
        kind = self._prepare(inner).kind
        template = None if kind is StatementKind.EMPTY else self._build(inner)  # refusals of the inner one stand
        if template is None or kind in (StatementKind.DDL, StatementKind.VACUUM):
            return Placed(PlanKind.SCHEMA, sql, True, _BY_SCHEMA, returns_rows=True)
        return _Explained(sql, template)


_EXPLAINED_WHOLE = frozenset((PlanKind.ONE_SHARD, PlanKind.HOME, PlanKind.SCHEMA))
"""The whole statement runs in one place, which is asked in SQLite's own words."""
_BY_SCHEMA = "told as one file without rows would run it"
_EXPLAINED_BY_SCHEMA = frozenset((PlanKind.CHECK, PlanKind.SETTING))
"""What each file does by itself, in the same way."""
_EXPLAINED_IN_PARTS = frozenset(
    (
        *(PlanKind.FAN_OUT, PlanKind.FAN_OUT_WRITE, PlanKind.EVERY_SHARD, PlanKind.SPLIT_INSERT),
        *(PlanKind.PUSH_DOWN, PlanKind.BROADCAST, PlanKind.REPARTITION),
        *(PlanKind.GATHER, PlanKind.GATHER_WRITE, PlanKind.INSERT_QUERY),
        PlanKind.ATTACHED_WRITE,
    )
)


@dataclass(frozen=True, slots=True)
class _Explained:
    """EXPLAIN and EXPLAIN QUERY PLAN: asked where the statement would run, of all shards where it runs on several."""

    sql: str
    inner: Template

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return self.inner.keys(parameters)

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        plan = self.inner.bind(parameters, layout)
        if plan.needs_id_for_key:
            # All shards would say the same of a row: those that the first ids would go to are asked.
            plan = plan.with_ids(range(1, plan.id_rows + 1))
        if plan.kind in _EXPLAINED_IN_PARTS:
            reason = f"each shard says how it would run its part of a {plan.kind}"
            return Plan(
                *(PlanKind.EXPLAIN, self.sql, parameters, plan.shards, True, reason, plan.tables),
                returns_rows=True,
                explained=plan.with_ids(range(1, plan.id_rows + 1)),
            )
        if plan.kind in _EXPLAINED_BY_SCHEMA:
            return Placed(PlanKind.SCHEMA, self.sql, True, _BY_SCHEMA, returns_rows=True).bind(parameters, layout)
        if plan.kind not in _EXPLAINED_WHOLE:
            raise NotSupportedError(f"EXPLAIN of what runs as {plan.kind}: use manager.explain()")
        return plan._replace(
            sql=self.sql,
            parameters=parameters,
            readonly=True,
            insert=None,
            complete=None,
            split=(),
            returns_rows=True,
        )
