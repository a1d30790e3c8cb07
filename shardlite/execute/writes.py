"""A transaction over one or several shards: all write locks first, then the work, then every COMMIT.

Order of what is taken, the same for everybody so that two can't wait for each other:

1. the gates of the shards, ascending (in-process writers queue there, first come first served, holding nothing else);
2. one connection for each, in one step from the budget;
3. BEGIN IMMEDIATE on each, ascending;
4. the epoch is compared: whoever changes the schema or the layout holds these same locks.

While a thread holds a shard's lock it may take the catalog's, never the other way round.

A crash between two COMMITs leaves a part of the transaction; the decision log closes that gap (``transaction/``).
Everything that SQLite can refuse is refused before the first COMMIT, deferred foreign keys included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from shardlite.connection.budget import ConnectionBudget
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, TransactionInDoubtError
from shardlite.names import quote
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard


class StaleEpochError(Exception):
    """The layout or schema changed between routing and locking: route again. Never leaves the package."""


class WriteScope:
    """The open transaction: one session for each shard, by shard number. Belongs to one thread."""

    __slots__ = ("_shards", "sessions")

    def __init__(self, shards: Sequence[SqliteShard], sessions: dict[int, Connection]) -> None:
        self._shards = {shard.id: shard for shard in shards}
        self.sessions = sessions

    def run(self, shard_id: int, sql: str, params: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement on one shard; its errors name the shard."""
        try:
            return self.sessions[shard_id].run(sql, params)
        except sqlite3.Error as error:
            self.fail(shard_id, error, sql)
        except (OverflowError, UnicodeEncodeError) as error:
            self._shards[shard_id].fail_value(error, sql)

    def run_many(self, shard_id: int, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Run one statement for each row on one shard and return the rows changed."""
        try:
            return self.sessions[shard_id].run_many(sql, rows)
        except sqlite3.Error as error:
            self.fail(shard_id, error, sql)
        except (OverflowError, UnicodeEncodeError) as error:
            self._shards[shard_id].fail_value(error, sql)

    def fetch_all(self, shard_id: int, sql: str, params: Sequence[object] = ()) -> list[tuple[object, ...]]:
        try:
            return self.sessions[shard_id].fetch_all(sql, params)
        except sqlite3.Error as error:
            self.fail(shard_id, error, sql)

    def fail(self, shard_id: int, error: sqlite3.Error, sql: str) -> NoReturn:
        self._shards[shard_id].fail(error, sql)


@contextmanager
def write_scope(
    shards: Sequence[SqliteShard],
    budget: ConnectionBudget,
    timeout_s: float,
    current: Callable[[Connection], bool] | None,
    deferred: Sequence[str] = (),
    *,
    foreign_keys: bool = True,
) -> Iterator[WriteScope]:
    """Hold the write locks of ``shards`` and commit them together at the end, or roll all of them back.

    ``current`` is asked once all locks are held, with the first connection; if it says no, StaleEpochError is raised
    and nothing was done.
    ``deferred`` names the tables with a deferred foreign key. Without ``foreign_keys`` SQLite neither checks them nor
    runs their actions.
    """
    shards = sorted(shards, key=lambda shard: shard.id)
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        for shard in shards:
            stack.enter_context(shard.pool.gate.held(_left(deadline)))
        pools = [shard.pool for shard in shards]
        connections = budget.acquire_all(pools, _left(deadline))
        stack.callback(budget.release_all, pools, connections)
        begun: list[Connection] = []
        try:
            if not foreign_keys:
                stack.enter_context(_without_foreign_keys(connections))
            for shard, conn in zip(shards, connections, strict=True):
                begun.append(conn)
                shard.begin_write(conn, _left(deadline))
            if current is not None and not current(connections[0]):
                raise StaleEpochError
            sessions = {shard.id: conn for shard, conn in zip(shards, connections, strict=True)}
            yield WriteScope(shards, sessions)
            if len(shards) > 1 and deferred:
                for shard, conn in zip(shards, connections, strict=True):
                    check_deferred_keys(shard, conn, deferred)
        except BaseException:
            roll_back(begun)
            raise
        commit_all(shards, connections)


@contextmanager
def _without_foreign_keys(connections: Sequence[Connection]) -> Iterator[None]:
    """Switch foreign keys off, which only works outside a transaction, and on again after it."""
    try:
        for conn in connections:
            conn.run("PRAGMA foreign_keys = OFF")
        yield
    finally:
        for conn in connections:
            conn.run("PRAGMA foreign_keys = ON")


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def check_deferred_keys(shard: SqliteShard, conn: Connection, tables: Sequence[str]) -> None:
    """Raise what a COMMIT would raise for deferred foreign keys, before any shard has committed.

    SQLite counts violations as they are made and looks at the count at COMMIT; the count can't be asked for. So the
    tables that hold a deferred key are checked whole, which also finds violations that were there before: a transaction
    over several shards is refused while such a table is unsound.
    """
    for table in tables:
        broken = conn.fetch_row('SELECT "table", "parent" FROM pragma_foreign_key_check(?)', (table,))
        if broken is not None:
            error = sqlite3.IntegrityError("FOREIGN KEY constraint failed")
            shard.fail(error, f"COMMIT: a row of {broken[0]} has no parent in {broken[1]}")


def roll_back(connections: Sequence[Connection]) -> None:
    """Roll every connection back; one that can't is replaced by its pool when it is returned."""
    for conn in connections:
        try:
            if conn.in_transaction:
                conn.run("ROLLBACK")
        except sqlite3.Error:
            continue


def commit_all(shards: Sequence[SqliteShard], connections: Sequence[Connection]) -> None:
    """Commit shard after shard. Once one has committed, the others are committed too, whatever interrupts."""
    committed = 0
    failed: list[tuple[SqliteShard, sqlite3.Error]] = []
    interrupted: BaseException | None = None
    for shard, conn in zip(shards, connections, strict=True):
        while True:
            try:
                if conn.in_transaction:
                    conn.run("COMMIT")
                committed += 1
            except sqlite3.Error as error:
                if committed == 0:
                    roll_back(connections)
                    shard.fail(error, "COMMIT")
                failed.append((shard, error))
                roll_back([conn])
            except BaseException as stop:
                interrupted = stop
                continue
            break
    if failed:
        names = ", ".join(f"shard {shard.id} ({error})" for shard, error in failed)
        raise TransactionInDoubtError(
            f"{committed} of {len(shards)} shards committed, then this failed: {names}; "
            "the change is there on some shards only: run check"
        ) from failed[0][1]
    if interrupted is not None:
        raise interrupted


def require_new_ids(scope: WriteScope, shards: Iterable[int], table: Table, ids: Sequence[Any]) -> None:
    """Raise IntegrityError when an id is on any shard, or twice in the list. All shards' locks are held."""
    alias = table.rowid_alias or table.rowid_name
    assert alias is not None
    column = quote(alias) if table.rowid_alias is not None else alias
    error = f"UNIQUE constraint failed: {table.name}.{alias}"
    if len(set(ids)) != len(ids):
        twice = next(rowid for rowid in ids if ids.count(rowid) > 1)
        raise IntegrityError(f"{error} [{alias} = {twice} is given twice]")
    sql = f"SELECT {column} FROM {quote(table.name)} WHERE {column} IN (SELECT value FROM json_each(?)) LIMIT 1"
    listed = json.dumps(list(ids))
    for shard in shards:
        found = scope.fetch_all(shard, sql, (listed,))
        if found:
            raise IntegrityError(f"{error} [{alias} = {found[0][0]} is on shard {shard}]")
