"""How many rows of one shard reach the coordinator without becoming Python objects: through a database in memory.

The shard's connection fills it and the coordinator's reads it. It is bounded: a shard whose rows don't fit gives them
through Python instead, a batch at a time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.execute.raw_text import is_raw_text
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.plan import Move

FEW = 150
"""Rows that come through Python: up to here attaching a database costs more than it saves."""
DEAR_S = 0.03
"""Rows that took so long to compute aren't computed once more to come by a database, unless they are many."""
FEW_COMPUTED = 5_000
COMPUTED_BYTES = 4 << 20
"""Up to here, and about so large, such rows come through Python, which takes about 2 us for each."""
EXCHANGE_BYTES = 64 << 20
"""What the exchange databases of all shards may hold together, for one statement."""
SHARED_BYTES = 256 << 20
"""What the database may hold that the shards see as well."""
_SCHEMA = "_shardlite_exchange"
_PAGE_BYTES = 4096
_LEAST_PAGES = 256
_numbers = itertools.count(1)


class Answer:
    """What one shard gives for some moves: rows, or None where they are many.

    Those wait in the exchange database, or, where ``streaming`` holds, are still to be read: the session is in the
    transaction then in which the others were read.
    """

    def __init__(self, shard: SqliteShard, session: Connection, moves: Sequence[Move], sharing: int = 1) -> None:
        """``sharing``: how many shards share the memory that exchange databases may take."""
        self.shard = shard
        self.session = session
        self.moves = moves
        self.exchange: Exchange | None = None
        self.streaming = False
        self.few: list[list[Any] | None] = []
        self._bytes = EXCHANGE_BYTES // sharing

    def ask(self) -> None:
        """Run the moves' queries, all on one state of the shard."""
        try:
            if len(self.moves) > 1:
                self.session.run("BEGIN")
            if self._ask_all():
                # What fills an exchange database can be read elsewhere once this is over.
                self._end("COMMIT")
                return
            self.close()
            self.session.run("BEGIN")
            self.streaming = True
            self.few = [self._ask(move) for move in self.moves]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the exchange database and the transaction. Idempotent."""
        try:
            self._end("ROLLBACK")
        except sqlite3.Error:
            self.session.suspect = True  # the pool ends the transaction, or the connection
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close()

    def _end(self, sql: str) -> None:
        if self.session.in_transaction:
            self.session.run(sql)

    def _ask_all(self) -> bool:
        """Read all moves' rows; False where they are more than the exchange database may hold."""
        self.few = [self._ask(move) for move in self.moves]
        many = [number for number, rows in enumerate(self.few) if rows is None]
        if not many:
            return True
        sql = "ATTACH"
        try:
            self.exchange = Exchange(self.session, self._bytes)
            self.exchange.begin()
            for number in many:
                sql = self.moves[number].sql
                self.exchange.fill(number, self.moves[number])
        except sqlite3.Error as error:
            if is_full(error):
                return False
            self.shard.fail(error, sql)
        return True

    def _ask(self, move: Move) -> list[Any] | None:
        """Read a shard's rows; None where they are many or hold text that is no Unicode, which Python can't carry."""
        asked = FEW + 1
        started = time.monotonic()
        try:
            cursor = self.session.stream(move.sql, move.parameters)
            try:
                rows = cursor.fetchmany(asked)
                dear = move.computed and time.monotonic() - started > DEAR_S
                if dear and len(rows) == asked:
                    more = _fitting(rows)
                    rows += cursor.fetchmany(more)
                    asked += more
            finally:
                cursor.close()
        except sqlite3.Error as error:
            if is_raw_text(error):
                return None
            self.shard.fail(error, move.sql)
        return rows if len(rows) < asked else None


class Exchange:
    """A database in memory, shared by two connections of this process, that lives as long as one of them has it."""

    def __init__(self, session: Connection, size: int) -> None:
        self.uri = memory_uri()
        self._session = session
        self._size = size

    def begin(self) -> None:
        attach(self._session, self.uri, _SCHEMA)
        limit_size(self._session.run, _SCHEMA, self._size)

    def fill(self, number: int, move: Move) -> None:
        columns = ", ".join(f"c{index}" for index in range(move.width))
        self._session.run(f"CREATE TABLE {_SCHEMA}.part_{number}({columns})")
        self._session.run(f"INSERT INTO {_SCHEMA}.part_{number} {move.sql}", move.parameters)

    def close(self) -> None:
        detach(self._session, _SCHEMA)


def _fitting(rows: Sequence[Sequence[Any]]) -> int:
    """Return how many further rows, taken to be as large as these, may come through Python."""
    size = sum(len(value) if isinstance(value, (str, bytes)) else 8 for row in rows for value in row)
    most = min(FEW_COMPUTED - len(rows), COMPUTED_BYTES * len(rows) // max(1, size))
    return max(1, most)  # fetchmany(0) is fetchall()


def is_full(error: sqlite3.Error) -> bool:
    """Tell whether a database can't grow any more."""
    return str(error).startswith("database or disk is full")


def memory_uri() -> str:
    """Return a name of its own for a database in memory that several connections of this process open."""
    return f"file:/shardlite-{os.getpid()}-{next(_numbers)}?vfs=memdb"


def limit_size(run: Callable[[str], Any], schema: str, size: int) -> None:
    """Let an attached database in memory grow to ``size`` bytes (a MiB at least) and no further."""
    run(f"PRAGMA {schema}.max_page_count = {max(_LEAST_PAGES, size // _PAGE_BYTES)}").fetchall()


def attach(session: Connection, uri: str, schema: str) -> None:
    """Attach a database in memory. Whatever comes, the pool looks whether it was detached."""
    session.leftover = session.leftover or "an attached database"
    session.run(f"ATTACH '{uri}' AS {schema}")


def detach(session: Connection, schema: str) -> None:
    """Let go of an attached database; a session that can't is replaced by its pool."""
    try:
        if session.in_transaction:
            session.run("ROLLBACK")
        session.run(f"DETACH {schema}")
    except sqlite3.Error:
        session.suspect = True
