"""Which row of an INSERT fails first, after a failure: its rows were split over shards, and each named its own.

One file goes row by row in the order of the statement, and names the first row that fails. So the rows are played
again one by one, each on its own shard, in a transaction that is rolled back. No rows are moved for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, OperationalError
from shardlite.execute.database import Database
from shardlite.execute.insert import is_id_taken
from shardlite.execute.past import NO_ROWID, Told, forget_rowid
from shardlite.execute.writes import WriteScope, require_new_ids
from shardlite.router.table import Table
from shardlite.sql.plan import InsertedRow, Plan


class DrawnIdTakenError(Exception):
    """A generated id met one that another process has just given explicitly. Never leaves the package."""


def may_be_another(error: sqlite3.Error, plan: Plan) -> bool:
    """Tell whether another row than the one that ``error`` is about may fail first, or the same one otherwise."""
    if plan.insert is not None and plan.insert.probe and plan.explicit_ids:
        several = True
    else:
        several = len(plan.steps) > 1 or bool(plan.fails)
    return several and plan.rows is not None and _is_of_a_row(error)


def _is_of_a_row(error: sqlite3.Error) -> bool:
    if isinstance(error, IntegrityError):
        return True
    # What a function or a trigger says to a row; a file that is locked, full or gone has other codes.
    return isinstance(error, OperationalError) and getattr(error, "sqlite_errorcode", 0) == 1


def raise_first(
    database: Database, scope: WriteScope, table: Table, rows: Iterable[InsertedRow], told: Told, *, probes: bool
) -> None:
    """Insert the rows one by one until one fails; return when none does, so that it was none's fault alone.

    The caller rolls back in any case. ``told`` is filled with what one file would leave of it. ``probes``: ids that the
    rows state must not be on other shards. Raises DrawnIdTakenError where the row's generated id is the reason.
    """
    for session in scope.sessions.values():
        forget_rowid(session.run)
        # A foreign key is looked at when the whole statement is done: another row may bring the parent.
        session.run("PRAGMA defer_foreign_keys = ON")
    for row in rows:
        if row.fails:
            raise IntegrityError(row.fails)
        taken = _taken(database, scope, table, row) if probes else None
        session = scope.sessions[row.shard]
        before = session.total_changes
        try:
            done = scope.run(row.shard, row.sql, tuple(row.parameters))
            if done.description is not None:
                done.fetchall()
        except (IntegrityError, OperationalError) as error:
            if row.drawn and isinstance(error, IntegrityError) and is_id_taken(error, table):
                raise DrawnIdTakenError from error
            if taken is None or _comes_before_the_id(scope, taken.shard, row, error):
                told.total += session.total_changes - before
                _note_inserted(told, row, scope)
                raise
        if taken is not None:
            raise taken.error
        told.total += session.total_changes - before - max(done.rowcount, 0)
        _note_inserted(told, row, scope)


def _note_inserted(told: Told, row: InsertedRow, scope: WriteScope) -> None:
    """Remember the row's id if it was inserted, and forget it on its shard."""
    session = scope.sessions[row.shard]
    found = session.fetch_all("SELECT last_insert_rowid()")[0][0]
    if found != NO_ROWID:
        told.last_rowid = found
        forget_rowid(session.run)


class _Taken(NamedTuple):
    """An id that the statement states is on another shard than its row's, which doesn't know of it."""

    shard: int
    error: IntegrityError


def _taken(database: Database, scope: WriteScope, table: Table, row: InsertedRow) -> _Taken | None:
    if row.drawn or row.id is None:
        return None
    for shard in database.layout.shard_ids:
        try:
            if shard != row.shard:
                require_new_ids(scope, [shard], table, [row.id])
        except IntegrityError as error:
            return _Taken(shard, error)
    return None


def _comes_before_the_id(scope: WriteScope, holder: int, row: InsertedRow, error: sqlite3.Error) -> bool:
    """Tell whether SQLite finds this fault before it looks whether the id is there already.

    NOT NULL, CHECK and triggers BEFORE the INSERT come before that, triggers AFTER it don't: where the id is, only
    those still find their fault.
    """
    try:
        scope.run(holder, row.sql, tuple(row.parameters))
    except (IntegrityError, OperationalError) as other:
        return _words(other) == _words(error)
    return False


def _words(error: sqlite3.Error) -> str:
    return str(error).partition(" [")[0]
