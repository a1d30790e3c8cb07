"""INSERT of a query's rows: all shards are locked, the query is answered, its rows are split by key and inserted."""

from __future__ import annotations

from typing import Any, NoReturn

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
from shardlite.names import quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.plan import Into, Plan

_BATCH = 10_000


class _Failed(Exception):
    """The statement failed as one file would have."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


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
            coordinator.attach(program)
            cursor = coordinator.run(plan.sql, program.parameters)
            count, total, lastrowid = _insert(database, state, scope, coordinator, cursor, into)
            deadline.check()
        except StatementTimeoutError:
            raise
        except _Failed as failed:
            past.note(0, 0, None)
            raise failed.error from failed.error.__cause__
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
    if table.virtual:
        return _feed(scope, coordinator, cursor, into)
    count = total = 0
    lastrowid: Any = None
    while rows := coordinator.first(cursor, _BATCH):
        batch = Batch(database, state, table, [(into.columns, rows)])
        failures: list[sqlite3.Error] = []
        try:
            batch.probe(scope)
        except sqlite3.IntegrityError as error:
            failures.append(error)
        before = _changed(scope)
        count += _write(scope, table, batch, failures)
        total += _changed(scope) - before
        if failures:
            _fail(failures, coordinator, cursor)
        lastrowid = batch.last_id
    if table.kind is TableKind.REFERENCE:
        total //= len(scope.sessions)
    return count, total, lastrowid


def _feed(scope: WriteScope, coordinator: Coordinator, cursor: sqlite3.Cursor, into: Into) -> tuple[int, int, Any]:
    """Insert the rows into a virtual table, whose rowids and columns are its module's matter."""
    columns = ", ".join(map(quote, into.columns))
    marks = ", ".join("?" * len(into.columns))
    sql = f"INSERT INTO {quote(into.table)}({columns}) VALUES ({marks})"
    count, before = 0, _changed(scope)
    while rows := coordinator.first(cursor, _BATCH):
        count += scope.run_many(HOME_SHARD, sql, rows)
    return count, _changed(scope) - before, None


def _write(scope: WriteScope, table: Table, batch: Batch, failures: list[sqlite3.Error]) -> int:
    """Insert the rows of a batch, on each shard up to the first that doesn't fit; return how many."""
    count = 0
    if table.kind is not TableKind.SHARDED:
        try:
            return batch.write_rows(scope)
        except (sqlite3.IntegrityError, sqlite3.OperationalError) as error:
            failures.append(error)
            return 0
    for plan, buckets in batch.parts:
        for shard in sorted(buckets):
            try:
                count += scope.run_many(shard, plan.insert_sql, buckets[shard])
            except (sqlite3.IntegrityError, sqlite3.OperationalError) as error:
                failures.append(error)
    return count


def _fail(failures: list[sqlite3.Error], coordinator: Coordinator, cursor: sqlite3.Cursor) -> NoReturn:
    """Raise what one file says, where it can be told: its first row that doesn't fit is the first of some shard."""
    first = failures[0]
    said = {(type(error), str(error).partition(" [")[0]) for error in failures}
    # A foreign key is looked at when all rows are there, and a query may have failed before the first of its rows.
    if len(said) > 1 or str(first).startswith("FOREIGN KEY"):
        raise AskOneFileError(str(first)) from first
    while coordinator.first(cursor, _BATCH):
        pass
    raise _Failed(first)


def _changed(scope: WriteScope) -> int:
    return sum(session.total_changes for session in scope.sessions.values())


def _last_rowid(scope: WriteScope, table: Table) -> Any:
    """Return the id that the home shard gave to the last row."""
    if table.without_rowid:
        return None
    return scope.fetch_all(HOME_SHARD, "SELECT last_insert_rowid()")[0][0]
