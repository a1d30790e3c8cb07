"""The coordinator: a private database in which rows of several shards meet and the statement runs as it was written.

It is SQLite's own temporary database: kept in memory while it is small, spilled to a file that no name leads to, gone
with the connection, also after a crash. Rows come in one of two ways: a few through Python; many through an exchange
database in memory that the shard's connection fills and the coordinator reads, so that they never become Python
objects, and several shards fill theirs at the same time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import Error, OperationalError, reraise
from shardlite.execute.state import State
from shardlite.execute.workers import workers
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.plan import Move

FEW = 500
"""Rows that come through Python: up to here attaching a database costs more than it saves."""
INDEX_FROM = 200
"""Rows from which a table's indexes are made: below, SQLite's own scan is faster."""
_PROGRESS_STEPS = 20_000
_BATCH = 1_000
_numbers = itertools.count(1)


class Coordinator:
    """One private database. Belongs to one thread at a time."""

    def __init__(self, state: State, timeout_s: float | None = None, *, undo: bool = False) -> None:
        """``undo``: statements that fail have to leave nothing behind."""
        encoding = state.layout.encoding
        self.connection = sqlite3.connect("", isolation_level=None, check_same_thread=False, uri=True)
        self.rows_moved = 0
        for pragma in (f"journal_mode = {'MEMORY' if undo else 'OFF'}", "synchronous = OFF"):
            self.connection.execute(f"PRAGMA {pragma}")
        if encoding != "UTF-8":
            self.connection.execute(f'PRAGMA encoding = "{encoding}"')
        state.registered.apply(self.connection)
        if timeout_s is not None:
            self._set_deadline(timeout_s)

    def _set_deadline(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self.connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)

    def close(self) -> None:
        """Drop the database. Idempotent."""
        self.connection.close()

    # -- rows in ---------------------------------------------------------------------------------------------------

    def load(
        self,
        moves: Sequence[Move],
        shards: Mapping[int, SqliteShard],
        sessions: Mapping[int, Connection],
        *,
        locked: bool = False,
    ) -> None:
        """Make the tables of the moves and bring their rows.

        ``locked``: the sessions are in a transaction, in which nothing can be attached and read elsewhere.
        """
        large: list[tuple[Move, int]] = []
        counts = [0] * len(moves)
        for number, move in enumerate(moves):
            self.run(move.create)
            for shard in move.shards:
                if locked:
                    counts[number] += self._bring_all(move, shards[shard], sessions[shard])
                    continue
                found = self._bring_few(move, shards[shard], sessions[shard])
                counts[number] += found
                if found < 0:
                    counts[number] = 1 << 62
                    large.append((move, shard))
        if large:
            self._bring_many(large, shards, sessions)
        for number, move in enumerate(moves):
            if counts[number] >= INDEX_FROM:
                for sql in move.indexes:
                    self.run(sql)

    def _bring_few(self, move: Move, shard: SqliteShard, session: Connection) -> int:
        """Bring a shard's rows through Python; -1, with nothing brought, where they are many or hold broken text."""
        try:
            cursor = session.stream(move.sql, move.parameters)
            try:
                rows = cursor.fetchmany(FEW + 1)
            finally:
                cursor.close()
        except sqlite3.Error as error:
            if "Could not decode to UTF-8" in str(error):
                return -1
            shard.fail(error, move.sql)
        if len(rows) > FEW:
            return -1
        if rows:
            marks = ", ".join("?" * move.width)
            self._in_transaction(f"{move.insert} VALUES ({marks})", rows)
            self.rows_moved += len(rows)
        return len(rows)

    def _bring_all(self, move: Move, shard: SqliteShard, session: Connection) -> int:
        """Bring a shard's rows through Python, however many."""
        count = 0
        marks = ", ".join("?" * move.width)
        try:
            cursor = session.stream(move.sql, move.parameters)
            try:
                while rows := cursor.fetchmany(_BATCH):
                    self._in_transaction(f"{move.insert} VALUES ({marks})", rows)
                    count += len(rows)
            finally:
                cursor.close()
        except sqlite3.Error as error:
            shard.fail(error, move.sql)
        self.rows_moved += count
        return count

    def _in_transaction(self, sql: str, rows: Sequence[Any]) -> None:
        try:
            self.connection.execute("BEGIN")
            self.connection.executemany(sql, rows)
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            _explain(error, sql)

    def _bring_many(
        self,
        wanted: Sequence[tuple[Move, int]],
        shards: Mapping[int, SqliteShard],
        sessions: Mapping[int, Connection],
    ) -> None:
        """Let each shard fill an exchange database, side by side, and take the rows from there."""
        by_shard: dict[int, list[Move]] = {}
        for move, shard in wanted:
            by_shard.setdefault(shard, []).append(move)
        pool = workers()
        tasks: list[tuple[int, Future[_Exchange]]] = []
        for shard, moves in by_shard.items():
            tasks.append((shard, pool.submit(_fill, shards[shard], sessions[shard], moves)))
        failure: BaseException | None = None
        for shard, task in tasks:
            try:
                exchange = task.result()
            except BaseException as error:
                if failure is None:
                    failure = error
                    for other in sessions.values():
                        other.interrupt()
                continue
            try:
                if failure is None:
                    self._take(exchange, by_shard[shard])
            except BaseException as error:
                failure = error
            finally:
                exchange.close()
        if failure is not None:
            raise failure

    def _take(self, exchange: _Exchange, moves: Sequence[Move]) -> None:
        self.run(f"ATTACH '{exchange.uri}' AS exchange")
        try:
            for number, move in enumerate(moves):
                done = self.run(f"{move.insert} SELECT * FROM exchange.part_{number}")
                self.rows_moved += done.rowcount
        finally:
            self.run("DETACH exchange")

    # -- answers ---------------------------------------------------------------------------------------------------

    def run(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement; its errors are SQLite's, as shardlite's classes."""
        try:
            return self.connection.execute(sql, parameters)
        except sqlite3.Error as error:
            _explain(error, sql)

    def first(self, cursor: sqlite3.Cursor, count: int) -> list[Any]:
        """Read the first rows."""
        try:
            return cursor.fetchmany(count)
        except sqlite3.Error as error:
            _explain(error, "")

    def rows(self, cursor: sqlite3.Cursor, head: Sequence[Any], batch: int) -> Iterator[tuple[Any, ...]]:
        """Yield rows that were read already and those that are left."""
        yield from head
        while True:
            try:
                rows = cursor.fetchmany(batch)
            except sqlite3.Error as error:
                _explain(error, "")
            if not rows:
                return
            yield from rows


def _explain(error: sqlite3.Error, sql: str) -> NoReturn:
    if isinstance(error, Error):
        raise error
    if str(error) == "interrupted":
        raise OperationalError("the statement was interrupted: it took longer than its timeout") from error
    reraise(error)


class _Exchange:
    """A database in memory, shared by two connections of this process, that lives as long as one of them has it."""

    def __init__(self, session: Connection) -> None:
        self.uri = f"file:/shardlite-{os.getpid()}-{next(_numbers)}?vfs=memdb"
        self._session = session
        session.run(f"ATTACH '{self.uri}' AS _shardlite_exchange")

    def fill(self, moves: Sequence[Move]) -> None:
        for number, move in enumerate(moves):
            columns = ", ".join(f"c{index}" for index in range(move.width))
            self._session.run(f"CREATE TABLE _shardlite_exchange.part_{number}({columns})")
            self._session.run(f"INSERT INTO _shardlite_exchange.part_{number} {move.sql}", move.parameters)

    def close(self) -> None:
        try:
            self._session.run("DETACH _shardlite_exchange")
        except sqlite3.Error:
            self._session.suspect = True  # the pool replaces it


def _fill(shard: SqliteShard, session: Connection, moves: Sequence[Move]) -> _Exchange:
    try:
        exchange = _Exchange(session)
    except sqlite3.Error as error:
        shard.fail(error, "ATTACH")
    try:
        exchange.fill(moves)
    except BaseException as error:
        exchange.close()
        if isinstance(error, sqlite3.Error):
            shard.fail(error, moves[0].sql)
        raise
    return exchange
