"""What the layers above ask of one shard, and what it promises. ``tests/shard/`` holds every implementation to it.

Work over several shards (``execute/writes.py``, results that are read as they come) also takes the connections of all
of them in one step, through ``SqliteShard.pool``; that is the part of the seam that isn't here yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

from shardlite.driver import sqlite3

Parameters = Sequence[Any] | Mapping[str, Any]


class Outcome(Protocol):
    """What a statement left behind; valid until the session's next statement."""

    @property
    def rowcount(self) -> int:
        """How many rows an INSERT, UPDATE, DELETE or REPLACE changed, -1 for other statements."""
        ...

    @property
    def lastrowid(self) -> int | None:
        """The rowid of the last row that an INSERT made; says nothing after other statements."""
        ...

    @property
    def description(self) -> Any:
        """A tuple for each result column, its name first; None for a statement without any."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the rows that weren't read yet, as tuples."""
        ...


class Stream(Protocol):
    """Rows of one statement, read as they come. Its session's other statements don't disturb it."""

    @property
    def description(self) -> Any:
        """As ``Outcome.description``; known before the first row is read."""
        ...

    @property
    def rowcount(self) -> int:
        """As ``Outcome.rowcount``, of this statement."""
        ...

    @property
    def lastrowid(self) -> int | None:
        """As ``Outcome.lastrowid``, of this statement."""
        ...

    def fetchmany(self, size: int = ..., /) -> list[Any]:
        """Return the next rows, at most ``size``; none when there are no more."""
        ...

    def close(self) -> None:
        """Forget the rest; may be repeated. The session's end does it too: reading on is a ProgrammingError then."""
        ...


class Session(Protocol):
    """One connection to a shard, held by one thread. Rows are plain tuples.

    Every statement is a transaction of its own until one is begun (by ``BEGIN``, or by the shard's ``begin_write``).
    What isn't committed when the session ends is rolled back. Errors are the driver's own: the holder gives them to
    ``Shard.fail``. Once the shard is closed, each call raises PoolClosedError; one that is running is interrupted.
    """

    def fetch_row(self, sql: str, params: Parameters = ..., /) -> tuple[Any, ...] | None:
        """Run one statement and return its first row, or None. Nothing of the statement stays open."""
        ...

    def fetch_all(self, sql: str, params: Parameters = ..., /) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows."""
        ...

    def run(self, sql: str, params: Parameters = ..., /) -> Outcome:
        """Run one statement."""
        ...

    def run_many(self, sql: str, rows: Iterable[Parameters], /) -> int:
        """Run one statement for each of ``rows`` and return how many rows they changed in all."""
        ...

    def stream(self, sql: str, params: Parameters = ..., /) -> Stream:
        """Run one statement and return its rows, to be read as they come."""
        ...


class Shard(Protocol):
    """One shard of the database. Thread-safe.

    ``timeout_s`` is the time in seconds for all that a call waits for together: a connection, this process's other
    writers, another process's lock (None: ``Shard.timeout_s``; 0: not at all). When it is over PoolExhaustedError or
    OperationalError ("database is locked") is raised. It doesn't limit how long a statement runs.

    Errors are shardlite's and name the shard, by its number or its name. A value that no database holds (an int beyond
    64 bits, a text that is no Unicode) is a DataError. A statement that failed has changed nothing.

    A guard in the statement itself (``WHERE (SELECT epoch FROM ...) = ?``) is evaluated with the statement's work at
    one moment: whoever changes the layout or the schema raises the epoch under the same lock.
    """

    id: int
    name: str
    """For messages; a file's path where there is one."""
    timeout_s: float

    def fetch_row(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> tuple[Any, ...] | None:
        """Run one statement that reads and return its first row, or None."""
        ...

    def fetch_all(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> list[tuple[Any, ...]]:
        """Run one statement that reads and return all its rows."""
        ...

    def write_once(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> tuple[int, int | None]:
        """Run one statement that writes, alone in its transaction, committed on return.

        Return (rows changed, last rowid), as ``Outcome`` says. A statement that leaves a transaction open is a
        ProgrammingError, and what it began is rolled back. A thread that is writing to the shard already
        (``begin_write``) may not call this: it would wait for itself.
        """
        ...

    def reading(self, timeout_s: float | None = ...) -> AbstractContextManager[Session]:
        """Hold a session for the block; however the block ends, another thread can have the connection then."""
        ...

    def begin_write(self, session: Any, timeout_s: float) -> None:
        """Begin a transaction in a session of this shard and take the shard's write lock.

        The transaction sees what was committed last. This process's writers must be kept apart by the caller.
        """
        ...

    def fail(self, error: sqlite3.Error, sql: str) -> NoReturn:
        """Raise shardlite's error for one that a session raised while it ran ``sql``."""
        ...

    def fail_value(self, error: BaseException, sql: str) -> NoReturn:
        """Raise DataError for a value that a session couldn't bind."""
        ...

    def close(self, timeout_s: float | None = ...) -> None:
        """End every session and refuse new ones: from here on all calls raise PoolClosedError. May be repeated.

        What runs is interrupted and waited for, at most ``timeout_s`` seconds.
        """
        ...
