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
from shardlite.sql.plan import Move, Plan, Program
from shardlite.sql.reduction import OWNED, SHARED
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
        shards = sorted({*inner.shards, *(step.shard for step in inner.steps)})
        sessions = stack.enter_context(_sessions(database, shards, deadline))
        if inner.program is None:
            for step in inner.steps:
                _ask(database, sessions, answer, step.shard, "", f"{prefix} {step.sql}", step.parameters)
        else:
            _explain_program(database, Coordinator(state, deadline), inner, inner.program, sessions, answer, prefix)
        if not database.is_current(state):
            raise StaleEpochError
    return Result(answer.columns, iter(answer.rows))


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
    coordinator: Coordinator,
    plan: Plan,
    program: Program,
    sessions: dict[int, Connection],
    answer: _Rows,
    prefix: str,
) -> None:
    with closing(coordinator), ExitStack() as stack:
        # Without rows one database stands for those of all shards.
        for schema in (SHARED, OWNED) if program.shared else ():
            uri = memory_uri()
            coordinator.run(f"ATTACH '{uri}' AS {schema}")
            for session in sessions.values():
                stack.callback(detach, session, schema)
                attach(session, uri, schema)
        for stage in (*program.shared, program.moves):
            for move in stage:
                for sql in (move.create, *move.indexes):
                    coordinator.run(sql)
            for shard in sorted({shard for move in stage for shard in move.shards}):
                for move in _of(stage, shard):
                    _ask(database, sessions, answer, shard, move.into, f"{prefix} {move.sql}", move.parameters)
        for sql in program.setup:
            coordinator.run(sql)
        coordinator.attach(program)
        answer.add(None, "", coordinator.run(f"{prefix} {plan.sql}", program.parameters))


def _of(stage: Sequence[Move], shard: int) -> list[Move]:
    return [move for move in stage if shard in move.shards]
