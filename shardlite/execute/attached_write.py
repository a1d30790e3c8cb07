"""Changes of an attached file's rows: SQLite makes them itself, beside the rows of the shards that they read."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, reraise
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.gather import bring
from shardlite.execute.gather_write import Done, for_all_parameters, run_there
from shardlite.execute.past import Past
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError
from shardlite.sql.plan import Plan


def attached_write(database: Database, state: State, plans: Sequence[Plan], past: Past, deadline: Deadline) -> Result:
    """Run ATTACHED_WRITE plans of one statement with several sets of parameters, as one transaction of the file.

    Raises what SQLite raises for the statement; what OR FAIL keeps of a statement that fails is kept.
    """
    program = plans[0].program
    assert program is not None
    coordinator = Coordinator(state, deadline)
    connection = coordinator.connection
    done = Done()
    results: list[Result] = []
    try:
        if len(plans) > 1:
            program = for_all_parameters(program)
        bring(database, plans[0], program, coordinator, deadline)
        if not database.is_current(state):
            raise StaleEpochError
        for sql in program.setup:
            coordinator.run(sql)
        if program.past:
            past.relive(connection)
        coordinator.run("PRAGMA foreign_keys = ON")
        coordinator.attach(program, begin="BEGIN IMMEDIATE")
        try:
            results.extend(run_there(plan, coordinator, past, done) for plan in plans)
        except IntegrityError:
            past.note(done.changes, done.total, done.last_rowid)
            if len(plans) == 1 and connection.in_transaction:
                _commit(connection, deadline)
            raise
        _commit(connection, deadline)
    finally:
        coordinator.close()  # which undoes what is not committed
    past.note(done.changes, done.total, done.last_rowid)
    if len(results) == 1:
        return results[0]
    rowcount = sum(result.rowcount for result in results)
    return Result(results[-1].columns, rowcount=rowcount, rows_moved=coordinator.rows_moved)


def _commit(connection: sqlite3.Connection, deadline: Deadline) -> None:
    deadline.check()
    deadline.release()  # a COMMIT isn't interrupted
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        reraise(error)


def ask_attached(state: State, plan: Plan, deadline: Deadline) -> Result:
    """Run a PRAGMA of an attached file."""
    assert plan.program is not None
    coordinator = Coordinator(state, deadline)
    try:
        coordinator.attach(plan.program, begin="")
        cursor = coordinator.run(plan.sql)
        described = cursor.description or ()
        return Result([column[0] for column in described], iter(cursor.fetchall()))
    finally:
        coordinator.close()
