"""EXPLAIN and EXPLAIN QUERY PLAN of a statement that runs on several shards: what each says, behind a row naming it.

Nothing of the statement runs. The coordinator's tables are made, without rows, so that it can be asked as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import InternalError
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.exchange import attach, detach, memory_uri
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError
from shardlite.sql.cores import SHARED
from shardlite.sql.plan import Move, Plan, Program
from shardlite.sql.reduction import OWNED
from shardlite.sql.tokens import tokenize

_QUERY_PLAN = "EXPLAIN QUERY PLAN"
_COORDINATOR = "COORDINATOR"


class _Rows:
    """The answer in the making: the parts' rows, each behind its heading."""

    def __init__(self, query_plan: bool) -> None:
        self.columns: Sequence[str] = ()
        self.rows: list[tuple[Any, ...]] = []
        self._query_plan = query_plan
        self._top = 0

    def add(self, shard: int | None, title: str, cursor: sqlite3.Cursor | Any) -> None:
        """Add what a place says: a shard, or None for the coordinator."""
        found = cursor.fetchall()
        self.columns = [column[0] for column in cursor.description]
        name = _COORDINATOR if shard is None else f"SHARD {shard}"
        if not self._query_plan:
            values: dict[str, Any] = {"addr": 0, "opcode": name.split()[0].title(), "p1": shard or 0, "p2": 0, "p3": 0}
            values |= {"p4": title, "p5": 0}
            self.rows += [tuple(values.get(column) for column in self.columns), *map(tuple, found)]
            return
        # One tree: what a place says hangs below its heading, and every number is there once.
        root = self._top + 1
        self.rows.append((root, 0, 0, f"{name}{title and ': '}{title}"))
        self.rows += [(root + number, root + parent, unused, detail) for number, parent, unused, detail in found]
        self._top = max([root, *(root + row[0] for row in found)])


def explain(database: Database, state: State, plan: Plan, deadline: Deadline) -> Result:
    """Ask every shard, and the coordinator where there is one, how it would run its part."""
    inner = plan.explained
    if inner is None:
        raise InternalError("an EXPLAIN without the plan that it explains")
    words = [token.key for token in tokenize(plan.sql).tokens[:3]]
    prefix = _QUERY_PLAN if words == _QUERY_PLAN.split() else "EXPLAIN"
    answer = _Rows(prefix == _QUERY_PLAN)
    with ExitStack() as stack:
        sessions = stack.enter_context(_sessions(database, sorted(_shards(inner)), deadline))
        _explain_part(database, state, inner, sessions, answer, prefix, "", deadline)
        if not database.is_current(state):
            raise StaleEpochError
    return Result(answer.columns, iter(answer.rows))


def _shards(plan: Plan) -> set[int]:
    """Return the shards that a plan asks, those of its subqueries among them."""
    inits = () if plan.program is None else plan.program.inits
    return {*plan.shards, *(step.shard for step in plan.steps)}.union(*(_shards(init.plan) for init in inits))


def _explain_part(
    database: Database,
    state: State,
    plan: Plan,
    sessions: dict[int, Connection],
    answer: _Rows,
    prefix: str,
    title: str,
    deadline: Deadline,
) -> None:
    """Ask for a statement, or a subquery that is evaluated before it: its name stands before every heading then."""
    if plan.program is not None:
        _explain_program(database, state, plan, plan.program, sessions, answer, prefix, title, deadline)
        return
    for step in plan.steps:
        _ask(database, sessions, answer, step.shard, title.removesuffix(": "), f"{prefix} {step.sql}", step.parameters)


@contextmanager
def _sessions(database: Database, shards: Sequence[int], deadline: Deadline) -> Iterator[dict[int, Connection]]:
    pools = [database.shards[shard].pool for shard in shards]
    connections = database.budget.acquire_all(pools, deadline.wait_s)
    try:
        deadline.watch(connections)
        yield dict(zip(shards, connections, strict=True))
    finally:
        deadline.release(connections)
        database.budget.release_all(pools, connections)


def _ask(
    database: Database,
    sessions: dict[int, Connection],
    answer: _Rows,
    shard: int,
    title: str,
    sql: str,
    parameters: Any,
) -> None:
    try:
        with closing(sessions[shard].stream(sql, parameters)) as cursor:
            answer.add(shard, title, cursor)
    except sqlite3.Error as error:
        database.shards[shard].fail(error, sql)


def _explain_program(
    database: Database,
    state: State,
    plan: Plan,
    program: Program,
    sessions: dict[int, Connection],
    answer: _Rows,
    prefix: str,
    title: str,
    deadline: Deadline,
) -> None:
    for init in program.inits:
        _explain_part(database, state, init.plan, sessions, answer, prefix, f"{title}{init.into}: ", deadline)
    with closing(Coordinator(state, deadline)) as coordinator, ExitStack() as stack:
        # Without rows one database stands for those of all shards.
        uris = {SHARED: coordinator.share()} if program.shared or program.inits else {}
        if program.shared:
            uris[OWNED] = memory_uri()
            coordinator.run(f"ATTACH '{uris[OWNED]}' AS {OWNED}")
        for init in program.inits:
            coordinator.run(init.create)
        for schema, uri in uris.items():
            for session in sessions.values():
                stack.callback(detach, session, schema)
                attach(session, uri, schema)
        for stage in (*program.shared, program.moves):
            for move in stage:
                for sql in (move.create, *move.indexes):
                    coordinator.run(sql)
            for shard in sorted({shard for move in stage for shard in move.shards}):
                for move in _of(stage, shard):
                    sql = f"{prefix} {move.sql}"
                    _ask(database, sessions, answer, shard, f"{title}{move.into}", sql, move.parameters)
        for sql in program.setup:
            coordinator.run(sql)
        coordinator.attach(program)
        answer.add(None, title.removesuffix(": "), coordinator.run(f"{prefix} {plan.sql}", program.parameters))


def _of(stage: Sequence[Move], shard: int) -> list[Move]:
    return [move for move in stage if shard in move.shards]
