"""INSERT of a query's rows: all shards are locked, the query is answered, its rows are split by key and inserted."""

from __future__ import annotations

from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import InternalError, StatementTimeoutError
from shardlite.execute.bulk import Batch
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.fan_out_write import AskOneFileError
from shardlite.execute.past import Past
from shardlite.execute.result import Result
from shardlite.execute.state import HOME_SHARD, State
from shardlite.execute.writes import WriteScope
from shardlite.router.table import Table, TableKind
from shardlite.sql.plan import Into, Plan

_BATCH = 10_000


def insert_query(database: Database, state: State, plan: Plan, past: Past, deadline: Deadline) -> Result:
    """Run an INSERT_QUERY as one transaction.

    Raises AskOneFileError, with nothing done, where the query or one of its rows fails: which failure one file meets
    first is a matter of its order.
    """
    into, program = plan.into, plan.program
    if into is None or program is None:
        raise InternalError("an INSERT of a query without its query")
    table = state.table(into.table)
    with database.write_scope(state.layout.shard_ids, state, timeout_s=deadline.wait_s) as scope:
        coordinator = Coordinator(state, deadline)
        deadline.watch(list(scope.sessions.values()))
        try:
            shards = {shard: database.shards[shard] for shard in scope.sessions}
            coordinator.load(program.moves, shards, scope.sessions, locked=True)
            for sql in program.setup:
                coordinator.run(sql)
            cursor = coordinator.run(plan.sql, program.parameters)
            count, total, lastrowid = _insert(database, state, scope, coordinator, cursor, into)
            deadline.check()
        except StatementTimeoutError:
            raise
        except (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            deadline.explain(error)
            raise AskOneFileError(str(error)) from error
        finally:
            deadline.release()  # a COMMIT isn't interrupted
            coordinator.close()
        if table.kind is not TableKind.SHARDED:
            lastrowid = _last_rowid(scope, table) if count else None
    past.note(count, total, lastrowid)
    return Result(rowcount=count if into.counted else -1, lastrowid=lastrowid, rows_moved=coordinator.rows_moved)


def _insert(
    database: Database, state: State, scope: WriteScope, coordinator: Coordinator, cursor: sqlite3.Cursor, into: Into
) -> tuple[int, int, Any]:
    """Insert the rows that a cursor gives; return how many, what changed with triggers' share, and the last id."""
    table = state.table(into.table)
    count = total = 0
    lastrowid: Any = None
    while rows := coordinator.first(cursor, _BATCH):
        batch = Batch(database, state, table, [(into.columns, rows)])
        batch.probe(scope)
        before = _changed(scope)
        count += batch.write_rows(scope)
        total += _changed(scope) - before
        lastrowid = batch.last_id
    if table.kind is TableKind.REFERENCE:
        total //= len(scope.sessions)
    return count, total, lastrowid


def _changed(scope: WriteScope) -> int:
    return sum(session.total_changes for session in scope.sessions.values())


def _last_rowid(scope: WriteScope, table: Table) -> Any:
    """Return the id that the home shard gave to the last row."""
    if table.without_rowid:
        return None
    return scope.fetch_all(HOME_SHARD, "SELECT last_insert_rowid()")[0][0]
