"""Waiting for another process that has the file locked.

SQLite's own busy handler starves: its pauses grow to 100 ms, and whoever came last polls most often and wins
(measured with four writing processes: 111 commits for the slowest against 10,603 for the fastest). Short random
pauses share the lock evenly (1,933 against 2,340). So here SQLite's busy timeout is 0, BUSY comes back at once, and
the waiting is done in Python, with a deadline. Threads of one process don't meet here: they queue at the gate
first (``gate.py``).

What SQLite's codes ask for:

=================  =====================================================================  ===========
SQLITE_BUSY        another connection has the lock; it will go away                         poll
BUSY_RECOVERY      another process is recovering the write-ahead log; it will finish        poll
BUSY_TIMEOUT       a blocking lock (a build option of SQLite) waited in vain                poll
BUSY_SNAPSHOT      the transaction has read a state that is no longer the newest, so it     give up:
                   can't begin to write; only a rollback and a new start help               retry all
LOCKED             a conflict inside this connection or a shared cache, such as an open     give up:
                   statement on a table that is dropped; waiting in this thread is vain     a mistake
=================  =====================================================================  ===========

pysqlite3 reports the first byte of a code alone, so with it a stale snapshot is polled for until the deadline. Nothing
in shardlite writes in a transaction that it began by reading.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError

T = TypeVar("T")

_FIRST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 1e-3
_GROWTH = 1.5

_BUSY_SNAPSHOT = 517  # pysqlite3 has no name for it
_WORTH_WAITING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        261,  # SQLITE_BUSY_RECOVERY, for which pysqlite3 has no name
        773,  # SQLITE_BUSY_TIMEOUT, for which Python 3.11 has none
    }
)


def is_busy(error: BaseException) -> bool:
    """Tell whether waiting can help: another connection has the file locked, or is recovering it."""
    return getattr(error, "sqlite_errorcode", 0) in _WORTH_WAITING


def is_snapshot_conflict(error: BaseException) -> bool:
    """Tell whether the transaction read a state that another one has replaced: roll back and run it again."""
    return getattr(error, "sqlite_errorcode", 0) == _BUSY_SNAPSHOT


def begin_immediate(conn: sqlite3.Connection, deadline: float) -> None:
    """Begin a writing transaction, polling until ``deadline`` (of ``time.monotonic``) while another process writes.

    The connection's SQLite busy timeout must be 0. An interrupt while waiting leaves no transaction open.

    :raises OperationalError: "database is locked", with the file and the seconds, when the deadline has passed.
    """
    run: Callable[[str], Any] = getattr(conn, "run", None) or conn.execute
    try:
        run("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        retry_busy(lambda: run("BEGIN IMMEDIATE"), deadline, lambda: f"to write to {path_of(conn)}")


def retry_busy(call: Callable[[], T], deadline: float, what: str | Callable[[], str]) -> T:
    """Call until it isn't refused because of another connection's lock, and return what it returns.

    :param deadline: of ``time.monotonic``; one call is made even when it has passed.
    :param what: what is waited for, for the message ("to write to /data/shard_0.db"), or a function that says it.
    :raises OperationalError: "database is locked", with ``what`` and the seconds, when the deadline has passed.
    :raises sqlite3.OperationalError: as it came, where waiting can't help.
    """
    started = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            now = time.monotonic()
            if now >= deadline:
                raise _given_up(error, now - started, what) from error
        time.sleep(min(pause_s * random.random(), deadline - now))
        pause_s = min(pause_s * _GROWTH, _LONGEST_PAUSE_S)


def path_of(conn: sqlite3.Connection) -> str:
    """Return the path of a connection's main database, for messages."""
    for _, name, path in sqlite3.Connection.execute(conn, "PRAGMA database_list"):
        if name == "main":
            return path or ":memory:"
    return "an unknown file"


def _given_up(error: sqlite3.OperationalError, waited_s: float, what: str | Callable[[], str]) -> OperationalError:
    made = OperationalError(
        f"database is locked: waited {waited_s:.2f} s {what if isinstance(what, str) else what()} while another "
        "process or connection held its lock: commit sooner there, or allow a longer timeout here"
    )
    made.sqlite_errorcode = error.sqlite_errorcode
    made.sqlite_errorname = error.sqlite_errorname
    return made


__all__ = ["begin_immediate", "is_busy", "is_snapshot_conflict", "path_of", "retry_busy"]
