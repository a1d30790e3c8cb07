"""The coordinator: a private database in which rows of several shards meet and the statement runs as it was written.

It is SQLite's own temporary database: kept in memory while it is small, spilled to a file that no name leads to, gone
with the connection, also after a crash. Rows come in one of three ways: a few through Python; many through an exchange
database in memory that the shard's connection fills and the coordinator reads (``exchange.py``), so that they never
become Python objects, and several shards fill theirs at the same time; more than such a database may hold through
Python again, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from shardlite.connection.connection import Connection
from shardlite.connection.cursor import PlainCursor
from shardlite.driver import sqlite3
from shardlite.errors import Error, reraise
from shardlite.execute.attached import AttachedFile, attach_files
from shardlite.execute.deadline import Deadline
from shardlite.execute.exchange import SHARED_BYTES, Answer, attach, detach, limit_size, memory_uri
from shardlite.execute.owned import Owned
from shardlite.execute.raw_text import RawText, is_raw_text
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.workers import run_on_shards
from shardlite.execute.writes import StaleEpochError
from shardlite.names import quote
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.cores import SHARED
from shardlite.sql.inits import Asked
from shardlite.sql.plan import Init, Move, Program
from shardlite.sql.reduction import OWNED

INDEX_FROM = 200
"""Rows from which a table's indexes are made: below, SQLite's own scan is faster."""
_BATCH = 1_000


class Coordinator:
    """One private database. Belongs to one thread at a time."""

    def __init__(self, state: State, deadline: Deadline | None = None, *, undo: bool = False) -> None:
        """``undo``: statements that fail have to leave nothing behind."""
        encoding = self._encoding = state.layout.encoding
        self.raw_text = RawText()
        """Reads text that is no Unicode, and knows whether there was any."""
        self._layout = state.layout
        self.connection = sqlite3.connect("", isolation_level=None, check_same_thread=False, uri=True)
        self.rows_moved = 0
        self._state = state
        self._shared = ""
        self._deadline = deadline or Deadline("", None, 0)
        try:
            for pragma in (f"journal_mode = {'MEMORY' if undo else 'OFF'}", "synchronous = OFF"):
                self.connection.execute(f"PRAGMA {pragma}")
            if encoding != "UTF-8":
                self.connection.execute(f'PRAGMA encoding = "{encoding}"')
            state.registered.apply(self.connection)
            self._deadline.watch([self.connection])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the database. Idempotent."""
        self._deadline.release([self.connection])
        self.connection.close()

    # -- rows in ---------------------------------------------------------------------------------------------------

    def bring(self, program: Program, shards: Mapping[int, SqliteShard], sessions: Mapping[int, Connection]) -> None:
        """Bring the rows of all moves: stage by stage those that shards need of each other, then the others."""
        if not program.shared and not program.inits:
            self.load(program.moves, shards, sessions)
            return
        attached: list[tuple[Connection, str]] = []

        def let_see(shard: int, uri: str, schema: str) -> None:
            attached.append((sessions[shard], schema))
            try:
                attach(sessions[shard], uri, schema)
            except sqlite3.Error as error:
                shards[shard].fail(error, "ATTACH")

        sent = [move for stage in program.shared for move in stage]
        try:
            if program.inits or any(move.route is None for move in sent):
                uri = self.share()
                for shard in sessions:
                    let_see(shard, uri, SHARED)
            asked = sorted({shard for move in program.moves for shard in move.shards})
            owned = Owned(self.connection, self.run, self._layout, asked)
            if any(move.route is not None for move in sent):
                for shard, uri in owned.uris.items():
                    let_see(shard, uri, OWNED)
            for stage in program.shared:
                everywhere = [move for move in stage if move.route is None]
                if everywhere:
                    self.load(everywhere, shards, sessions, shared=True)
                    self._count_rows(SHARED, everywhere)
                routed = [move for move in stage if move.route is not None]
                if routed:
                    self._send(routed, shards, sessions, owned)
            self.load(program.moves, shards, sessions)
        finally:
            for session, schema in attached:
                detach(session, schema)

    def _send(
        self,
        moves: Sequence[Move],
        shards: Mapping[int, SqliteShard],
        sessions: Mapping[int, Connection],
        owned: Owned,
    ) -> None:
        """Bring the rows of the moves and pass them on to the shards that own their keys."""
        spools = [owned.spool(move, number) for number, move in enumerate(moves)]
        self._bring(spools, shards, sessions, False)
        owned.fill(moves, spools, self._finish)

    def _finish(self, schema: str, moves: Sequence[Move], counts: Sequence[int]) -> None:
        """Make the indexes that pay, and count."""
        self._index(moves, counts)
        self._count_rows(schema, moves)

    def _index(self, moves: Sequence[Move], counts: Sequence[int]) -> None:
        for move, count in zip(moves, counts, strict=True):
            if count >= INDEX_FROM:
                for sql in move.indexes:
                    self.run(sql)

    def _count_rows(self, schema: str, stage: Sequence[Move]) -> None:
        """Give the shards' planners figures: without any SQLite takes a table to be large.

        A shard would then read all of its own for it. A table whose rows were chosen by a condition that the query
        still has must look as large as what they stand for, or that condition counts twice and SQLite begins with it.
        """
        self.run(f"ANALYZE {schema}")
        table = f"{schema}.sqlite_stat1"
        for move in stage:
            if move.weight != 1:
                grown = f"CAST(CAST(stat AS INTEGER) * {move.weight} AS INTEGER)"
                rest = "substr(stat, instr(stat || ' ', ' '))"
                self.run(f"UPDATE {table} SET stat = {grown} || {rest} WHERE tbl = ?", (move.into,))
            # It tells nothing of a table without rows.
            self.run(
                f"INSERT INTO {table} SELECT ?1, NULL, '0' WHERE ?1 NOT IN (SELECT tbl FROM {table})", (move.into,)
            )

    def share(self) -> str:
        """Make the database that shards see as well, unless it is there, and return its name."""
        if not self._shared:
            uri = memory_uri()
            self.run(f"ATTACH '{uri}' AS {SHARED}")
            self._shared = uri
            limit_size(self.connection.execute, SHARED, SHARED_BYTES)
        return self._shared

    def take(self, init: Init, result: Result) -> None:
        """Put the result of a subquery into its table of the shared database."""
        self.run(init.create)
        insert = f"{init.insert} VALUES ({', '.join('?' * init.width)})"
        if init.asked is Asked.ROWS:
            while rows := result.fetchmany(_BATCH):
                self._in_transaction(insert, rows)
                self.rows_moved += len(rows)
        elif (row := result.fetchone()) is not None:
            self._in_transaction(insert, [(1,) if init.asked is Asked.EXISTENCE else row])
            self.rows_moved += 1
        result.close()
        self.rows_moved += result.rows_moved

    def load(
        self,
        moves: Sequence[Move],
        shards: Mapping[int, SqliteShard],
        sessions: Mapping[int, Connection],
        *,
        locked: bool = False,
        shared: bool = False,
    ) -> None:
        """Make the tables of the moves and bring their rows.

        ``locked``: the sessions are in a transaction, in which nothing can be attached and read elsewhere.
        ``shared``: the tables are in the database that the sessions read, too.
        """
        for move in moves:
            self.run(move.create)
        if locked:
            counts = [sum(self._bring_all(m, shards[shard], sessions[shard]) for shard in m.shards) for m in moves]
        else:
            counts = self._bring(moves, shards, sessions, shared)
        self._index(moves, counts)

    def _bring(
        self,
        moves: Sequence[Move],
        shards: Mapping[int, SqliteShard],
        sessions: Mapping[int, Connection],
        shared: bool,
    ) -> list[int]:
        """Let the shards answer, side by side where that pays, and take their rows. Return how many of each move."""
        jobs: dict[int, list[int]] = {}
        for number, move in enumerate(moves):
            for shard in move.shards:
                jobs.setdefault(shard, []).append(number)
        counts = [0] * len(moves)

        answers = {
            shard: Answer(shards[shard], sessions[shard], [moves[number] for number in numbers], len(jobs))
            for shard, numbers in jobs.items()
        }
        spools: dict[int, Move] = {}
        try:
            texts = tuple(move.sql for move in moves)
            # All have answered before the first rows are taken: nobody may read the shared database while it grows.
            run_on_shards(lambda shard: answers[shard].ask(), jobs, texts, sessions, self._deadline)
            for shard, numbers in jobs.items():
                if shared and answers[shard].streaming:
                    # Its session goes on reading the shared database, so the rows wait beside it.
                    for number in numbers:
                        if number not in spools:
                            spools[number] = self._spool(moves[number], number)
                into = [spools.get(number, moves[number]) for number in numbers]
                for number, count in zip(numbers, self._take(answers[shard], into), strict=True):
                    counts[number] += count
                answers[shard].close()
        finally:
            for answer in answers.values():
                answer.close()
        for number, spool in spools.items():
            self.run(f"{moves[number].insert} SELECT * FROM {spool.into}")
            self.run(f"DROP TABLE {spool.into}")
        return counts

    def _spool(self, move: Move, number: int) -> Move:
        """Make a table of the coordinator's own for rows on their way."""
        into = f"main._shardlite_spool_{number}"
        columns = ", ".join(f"c{index}" for index in range(move.width))
        self.run(f"CREATE TABLE {into}({columns})")
        return move._replace(into=into, insert=f"INSERT INTO {into}({columns})")

    def _take(self, answer: Answer, into: Sequence[Move]) -> list[int]:
        """Put a shard's rows into the tables of ``into``; return how many of each."""
        counts = []
        for move, rows in zip(into, answer.few, strict=True):
            if rows:
                marks = ", ".join("?" * move.width)
                self._in_transaction(f"{move.insert} VALUES ({marks})", rows)
            counts.append(0 if rows is None else len(rows))
        self.rows_moved += sum(counts)
        many = [number for number, rows in enumerate(answer.few) if rows is None]
        if answer.streaming:
            for number in many:
                counts[number] = self._bring_all(into[number], answer.shard, answer.session)
        elif answer.exchange is not None:
            self.run(f"ATTACH '{answer.exchange.uri}' AS exchange")
            try:
                for number in many:
                    done = self.run(f"{into[number].insert} SELECT * FROM exchange.part_{number}")
                    counts[number] = done.rowcount
                    self.rows_moved += done.rowcount
            finally:
                self.connection.execute("DETACH exchange")
        return counts

    def _bring_all(self, move: Move, shard: SqliteShard, session: Connection) -> int:
        """Bring a shard's rows through Python, however many."""
        taken = 0
        try:
            for rows in self._read(move, session):
                self._insert(move, rows)
                taken += len(rows)
        except sqlite3.Error as error:
            if not is_raw_text(error) or self._encoding != "UTF-8":
                self._deadline.explain(error)
                shard.fail(error, move.sql)
            taken += self._bring_raw(move, shard, session, taken)
        self.rows_moved += taken
        return taken

    def _bring_raw(self, move: Move, shard: SqliteShard, session: Connection, taken: int) -> int:
        """Bring those rows again that come after ``taken``, text that is no Unicode among them."""
        count = 0
        session.text_factory = self.raw_text
        try:
            for rows in self._read(move, session):
                count += len(rows)
                if count > taken:
                    self._insert(move, rows[max(0, len(rows) - (count - taken)) :])
        except sqlite3.Error as error:
            self._deadline.explain(error)
            shard.fail(error, move.sql)
        finally:
            session.text_factory = str
        return count - taken

    def _read(self, move: Move, session: Connection) -> Iterator[list[Any]]:
        cursor = session.stream(move.sql, move.parameters)
        try:
            while rows := cursor.fetchmany(_BATCH):
                yield rows
        finally:
            cursor.close()

    def _insert(self, move: Move, rows: Sequence[Any]) -> None:
        def run(sql: str, part: Sequence[Any]) -> int:
            self._in_transaction(sql, part)
            return len(part)

        self.raw_text.run_many(run, lambda places: f"{move.insert} VALUES ({', '.join(places)})", move.width, rows)

    def _in_transaction(self, sql: str, rows: Sequence[Any]) -> None:
        try:
            self.connection.execute("BEGIN")
            self.connection.executemany(sql, rows)
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._explain(error)

    def attach(self, program: Program, begin: str = "BEGIN") -> None:
        """Attach the files that the program names, once all rows are there; ``begin`` a transaction over them.

        Raises StaleEpochError where a schema isn't the one that the statement was planned by.
        """
        if not program.attached:
            return
        names = {name for name, _ in program.attached}
        files = [file for file in self._state.attached if file.name in names]
        self._deadline.check()
        attach_files(self.connection, files, self._deadline.wait_s)
        if begin:
            self.run(begin)
        planned = dict(program.attached)
        for file in files:
            version = planned[file.name]
            if version is not None and version != self._version(file):
                file.known = None
                raise StaleEpochError

    def _version(self, file: AttachedFile) -> int:
        return int(self.run(f"PRAGMA {quote(file.schema)}.schema_version").fetchone()[0])

    @contextmanager
    def reading_raw_text(self) -> Iterator[None]:
        """Read text that is no Unicode from it as well."""
        if self._encoding != "UTF-8":
            yield
            return
        self.connection.text_factory = self.raw_text
        try:
            yield
        finally:
            self.connection.text_factory = str

    # -- answers ---------------------------------------------------------------------------------------------------

    def run(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement; its errors are SQLite's, as shardlite's classes."""
        self._deadline.check()
        try:
            return PlainCursor(self.connection).execute(sql, parameters)
        except sqlite3.Error as error:
            self._explain(error)

    def first(self, cursor: sqlite3.Cursor, count: int) -> list[Any]:
        """Read the first rows."""
        try:
            return cursor.fetchmany(count)
        except sqlite3.Error as error:
            self._explain(error)

    def rows(self, cursor: sqlite3.Cursor, head: Sequence[Any], batch: int) -> Iterator[tuple[Any, ...]]:
        """Yield rows that were read already and those that are left."""
        yield from head
        while True:
            try:
                rows = cursor.fetchmany(batch)
            except sqlite3.Error as error:
                self._explain(error)
            if not rows:
                return
            yield from rows

    def _explain(self, error: sqlite3.Error) -> NoReturn:
        if isinstance(error, Error):
            raise error
        self._deadline.explain(error)
        reraise(error)
