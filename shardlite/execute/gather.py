"""Queries over rows of several shards that are brought together: see ``coordinator.py`` for where and how."""

from __future__ import annotations

from shardlite.driver import sqlite3
from shardlite.errors import PoolExhaustedError, StatementTimeoutError, reraise
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.exchange import is_full
from shardlite.execute.past import Past
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.streams import read
from shardlite.execute.writes import StaleEpochError
from shardlite.sql.plan import Plan, Program

SMALL = 1_000
"""Rows up to which an answer is read at once, so that the coordinator isn't kept."""


def gather(database: Database, state: State, plan: Plan, program: Program, past: Past, deadline: Deadline) -> Result:
    """Run a plan that brings rows together. The shards' connections are given back before the statement runs."""
    coordinator = Coordinator(state, deadline)
    evaluated = False
    try:
        _evaluate(database, state, program, coordinator, past, deadline)
        evaluated = True
        bring(database, plan, program, coordinator, deadline)
        if not database.is_current(state):
            raise StaleEpochError
        if program.past:
            past.tell(coordinator.connection)
        for sql in program.setup:
            coordinator.run(sql)
        coordinator.attach(program)
        cursor = coordinator.run(plan.sql, program.parameters)
        columns = plan.columns or [column[0] for column in cursor.description or ()]
        head = coordinator.first(cursor, SMALL)
    except BaseException as error:
        coordinator.close()
        if plan.on_overflow is not None and not deadline.passed and _may_be_well(error, program, evaluated):
            otherwise = plan.on_overflow()
            if otherwise.program is not None:
                try:
                    return gather(database, state, otherwise, otherwise.program, past, deadline)
                except sqlite3.Error as again:
                    if str(error).startswith(f"{again} ["):
                        raise error from again  # it says the same, and where
                    raise
        if isinstance(error, sqlite3.Error):
            reraise(error)
        raise
    if len(head) < SMALL:
        coordinator.close()
        return Result(columns, iter(head), rows_moved=coordinator.rows_moved)
    rows = coordinator.rows(cursor, head, SMALL)
    return Result(columns, rows, close=coordinator.close, rows_moved=coordinator.rows_moved)


def _may_be_well(error: BaseException, program: Program, evaluated: bool) -> bool:
    """Tell whether another plan can do what failed.

    It may add integers in one place, do without databases in memory, or leave out what need not be evaluated.
    """
    if not isinstance(error, sqlite3.Error) or isinstance(error, (StatementTimeoutError, PoolExhaustedError)):
        return False
    if not evaluated or "integer overflow" in str(error):
        return True
    unplaced = "user-defined function raised exception" in str(error)  # the one that tells a row's owner, perhaps
    return (bool(program.shared or program.inits) and is_full(error)) or (bool(program.shared) and unplaced)


def _evaluate(
    database: Database, state: State, program: Program, coordinator: Coordinator, past: Past, deadline: Deadline
) -> None:
    """Evaluate the subqueries that come first, one after the other: no connection is held from one to the next."""
    for init in program.inits:
        coordinator.share()
        if init.plan.program is not None:
            result = gather(database, state, init.plan, init.plan.program, past, deadline)
        else:
            result = read(database, state, init.plan, deadline)
        try:
            coordinator.take(init, result)
        finally:
            result.close()


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
