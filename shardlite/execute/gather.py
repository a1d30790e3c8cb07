"""Queries over rows of several shards that are brought together: see ``coordinator.py`` for where and how."""

from __future__ import annotations

from shardlite.driver import sqlite3
from shardlite.errors import reraise
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.exchange import is_full
from shardlite.execute.past import Past
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError
from shardlite.sql.plan import Plan, Program

SMALL = 1_000
"""Rows up to which an answer is read at once, so that the coordinator isn't kept."""


def gather(database: Database, state: State, plan: Plan, program: Program, past: Past, deadline: Deadline) -> Result:
    """Run a plan that brings rows together. The shards' connections are given back before the statement runs."""
    coordinator = Coordinator(state, deadline)
    try:
        bring(database, plan, program, coordinator, deadline)
        if not database.is_current(state):
            raise StaleEpochError
        if program.past:
            past.tell(coordinator.connection)
        for sql in program.setup:
            coordinator.run(sql)
        coordinator.attach(program)
        cursor = coordinator.run(plan.sql, program.parameters)
        columns = [column[0] for column in cursor.description or ()]
        head = coordinator.first(cursor, SMALL)
    except BaseException as error:
        coordinator.close()
        if plan.on_overflow is not None and isinstance(error, sqlite3.Error) and _overflows(error, program):
            otherwise = plan.on_overflow()
            if otherwise.program is not None:
                return gather(database, state, otherwise, otherwise.program, past, deadline)
        if isinstance(error, sqlite3.Error):
            reraise(error)
        raise
    if len(head) < SMALL:
        coordinator.close()
        return Result(columns, iter(head), rows_moved=coordinator.rows_moved)
    rows = coordinator.rows(cursor, head, SMALL)
    return Result(columns, rows, close=coordinator.close, rows_moved=coordinator.rows_moved)


def _overflows(error: sqlite3.Error, program: Program) -> bool:
    """Tell whether another plan can do what failed: add integers in one place, or do without databases in memory."""
    if "integer overflow" in str(error):
        return True
    unplaced = "user-defined function raised exception" in str(error)  # the one that tells a row's owner, perhaps
    return bool(program.shared) and (is_full(error) or unplaced)


def bring(database: Database, plan: Plan, program: Program, coordinator: Coordinator, deadline: Deadline) -> None:
    """Bring the rows, and give back the shards' connections."""
    shards = [database.shards[shard] for shard in plan.shards]
    pools = [shard.pool for shard in shards]
    connections = database.budget.acquire_all(pools, deadline.wait_s)
    try:
        deadline.watch(connections)
        sessions = dict(zip(plan.shards, connections, strict=True))
        coordinator.bring(program, {shard.id: shard for shard in shards}, sessions)
    finally:
        deadline.release(connections)
        database.budget.release_all(pools, connections)
