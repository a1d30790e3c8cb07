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
from typing import Any, NoReturn

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import Error, OperationalError, reraise
from shardlite.execute.state import State
from shardlite.execute.workers import run_on_shards
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.plan import Move, Program
from shardlite.sql.reduction import SHARED

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

    def bring(self, program: Program, shards: Mapping[int, SqliteShard], sessions: Mapping[int, Connection]) -> None:
        """Bring the rows of all moves: stage by stage those of the shared database, then the others."""
        if not program.shared:
            self.load(program.moves, shards, sessions)
            return
        uri = memory_uri()
        self.run(f"ATTACH '{uri}' AS {SHARED}")
        attached: list[Connection] = []
        try:
            for shard, session in sessions.items():
                try:
                    session.run(f"ATTACH '{uri}' AS {SHARED}")
                except sqlite3.Error as error:
                    shards[shard].fail(error, "ATTACH")
                attached.append(session)
            for stage in program.shared:
                self.load(stage, shards, sessions)
                # Without figures SQLite takes a table to be large, and a shard would read all of its own for it.
                self.run(f"ANALYZE {SHARED}")
            self.load(program.moves, shards, sessions)
        finally:
            for session in attached:
                detach(session, SHARED)

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
        for move in moves:
            self.run(move.create)
        if locked:
            counts = [sum(self._bring_all(m, shards[shard], sessions[shard]) for shard in m.shards) for m in moves]
        else:
            counts = self._bring(moves, shards, sessions)
        for move, count in zip(moves, counts, strict=True):
            if count >= INDEX_FROM:
                for sql in move.indexes:
                    self.run(sql)

    def _bring(
        self, moves: Sequence[Move], shards: Mapping[int, SqliteShard], sessions: Mapping[int, Connection]
    ) -> list[int]:
        """Let the shards answer, side by side where that pays, and take their rows. Return how many of each move."""
        jobs: dict[int, list[int]] = {}
        for number, move in enumerate(moves):
            for shard in move.shards:
                jobs.setdefault(shard, []).append(number)
        counts = [0] * len(moves)

        answers = {
            shard: _Answer(shards[shard], sessions[shard], [moves[number] for number in numbers])
            for shard, numbers in jobs.items()
        }
        try:
            texts = tuple(move.sql for move in moves)
            # All have answered before the first rows are taken: nobody may read the shared database while it grows.
            for shard, _ in list(run_on_shards(lambda shard: answers[shard].ask(), jobs, texts, sessions)):
                for number, count in zip(jobs[shard], self._take(answers[shard]), strict=True):
                    counts[number] += count
        finally:
            for answer in answers.values():
                answer.close()
        return counts

    def _take(self, answer: _Answer) -> list[int]:
        counts = []
        for move, rows in zip(answer.moves, answer.few, strict=True):
            if rows:
                marks = ", ".join("?" * move.width)
                self._in_transaction(f"{move.insert} VALUES ({marks})", rows)
            counts.append(0 if rows is None else len(rows))
        if answer.exchange is not None:
            self.run(f"ATTACH '{answer.exchange.uri}' AS exchange")
            try:
                for number, rows in enumerate(answer.few):
                    if rows is None:
                        done = self.run(f"{answer.moves[number].insert} SELECT * FROM exchange.part_{number}")
                        counts[number] = done.rowcount
            finally:
                self.run("DETACH exchange")
        self.rows_moved += sum(counts)
        return counts

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


class _Answer:
    """What one shard gives for some moves: rows, or None where they are many and wait in the exchange database."""

    def __init__(self, shard: SqliteShard, session: Connection, moves: Sequence[Move]) -> None:
        self.moves = moves
        self.exchange: _Exchange | None = None
        self.few: list[list[Any] | None] = []
        self._shard = shard
        self._session = session

    def ask(self) -> None:
        """Run the moves' queries, all on one state of the shard."""
        if len(self.moves) == 1:
            return self._ask_all()
        self._session.run("BEGIN")
        try:
            self._ask_all()
        finally:
            # What fills an exchange database can be read elsewhere once this is over.
            if self._session.in_transaction:
                self._session.run("COMMIT")

    def _ask_all(self) -> None:
        shard, session = self._shard, self._session
        self.few = [self._ask(shard, session, move) for move in self.moves]
        many = [number for number, rows in enumerate(self.few) if rows is None]
        if not many:
            return
        try:
            self.exchange = _Exchange(session)
            for number in many:
                self.exchange.fill(number, self.moves[number])
        except sqlite3.Error as error:
            shard.fail(error, self.moves[many[0]].sql)

    @staticmethod
    def _ask(shard: SqliteShard, session: Connection, move: Move) -> list[Any] | None:
        """Read a shard's rows; None where they are many or hold text that is no Unicode, which Python can't carry."""
        try:
            cursor = session.stream(move.sql, move.parameters)
            try:
                rows = cursor.fetchmany(FEW + 1)
            finally:
                cursor.close()
        except sqlite3.Error as error:
            if "Could not decode to UTF-8" in str(error):
                return None
            shard.fail(error, move.sql)
        return rows if len(rows) <= FEW else None

    def close(self) -> None:
        """Let go of the exchange database. Idempotent."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close()


class _Exchange:
    """A database in memory, shared by two connections of this process, that lives as long as one of them has it."""

    def __init__(self, session: Connection) -> None:
        self.uri = memory_uri()
        self._session = session
        session.run(f"ATTACH '{self.uri}' AS _shardlite_exchange")

    def fill(self, number: int, move: Move) -> None:
        columns = ", ".join(f"c{index}" for index in range(move.width))
        self._session.run(f"CREATE TABLE _shardlite_exchange.part_{number}({columns})")
        self._session.run(f"INSERT INTO _shardlite_exchange.part_{number} {move.sql}", move.parameters)

    def close(self) -> None:
        detach(self._session, "_shardlite_exchange")


def memory_uri() -> str:
    """Return a name of its own for a database in memory that several connections of this process open."""
    return f"file:/shardlite-{os.getpid()}-{next(_numbers)}?vfs=memdb"


def detach(session: Connection, schema: str) -> None:
    """Let go of an attached database; a session that can't isn't used again."""
    try:
        session.run(f"DETACH {schema}")
    except sqlite3.Error:
        session.suspect = True  # the pool replaces it
