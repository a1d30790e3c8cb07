"""The time that one statement has: for waiting, for its work on the shards and the coordinator, and for its rows.

One thread of the process looks after all deadlines: when one has passed it interrupts the connections that were put
under it, again and again until they are taken away, since an interrupt between two statements is lost. (SQLite's
progress handler would do without a thread, but swallows the KeyboardInterrupt that comes while it runs.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import NoReturn

from shardlite.driver import sqlite3
from shardlite.errors import StatementTimeoutError

_AGAIN_S = 0.01
"""Seconds from one interrupt to the next at first; they double up to ``_SELDOM_S``: a result may lie unread."""
_SELDOM_S = 1.0
_LINGER_S = 5.0
"""Seconds that the thread waits for another deadline before it ends."""
_SHOWN_SQL = 200


class Deadline:
    """When one statement has to be over. Thread-safe."""

    __slots__ = ("_patience_s", "_watched", "at", "due", "pause", "seconds", "sql")

    def __init__(self, sql: str, seconds: float | None, patience_s: float) -> None:
        """``seconds`` for all; None, or 0: as long as it takes. ``patience_s``: for waiting, where there is no limit.

        0 means that nothing is waited for.
        """
        self.sql = sql
        self.seconds = seconds
        self._patience_s = patience_s if seconds is None else seconds
        self.at = monotonic() + seconds if seconds else inf
        self.due = self.at
        """When the thread has to look at it next."""
        self.pause = _AGAIN_S
        self._watched: tuple[sqlite3.Connection, ...] = ()

    @property
    def passed(self) -> bool:
        return monotonic() >= self.at

    @property
    def wait_s(self) -> float:
        """The seconds that connections and locks may be waited for."""
        return self._patience_s if self.at == inf else max(0.0, self.at - monotonic())

    @property
    def left_s(self) -> float | None:
        """The seconds that are left; None: no limit."""
        return None if self.at == inf else max(0.0, self.at - monotonic())

    def check(self) -> None:
        """Raise StatementTimeoutError when the time is over."""
        if self.passed:
            self.fail()

    def fail(self, cause: BaseException | None = None) -> NoReturn:
        """Raise StatementTimeoutError."""
        sql = self.sql if len(self.sql) <= _SHOWN_SQL else self.sql[: _SHOWN_SQL - 3] + "..."
        raise StatementTimeoutError(
            f"the statement took longer than its timeout of {self.seconds:g} s: {sql}"
        ) from cause

    def explain(self, error: sqlite3.Error) -> None:
        """Raise StatementTimeoutError if it was this deadline that ended a statement with ``error``; else return."""
        if self.passed and str(error).startswith("interrupted"):
            self.fail(error)

    def watch(self, connections: Sequence[sqlite3.Connection]) -> None:
        """Interrupt these connections when the time is over. Their user takes them away before giving them back."""
        if self.at == inf:
            return
        with _changed:
            self._watched += tuple(connections)
            _deadlines[id(self)] = self
            _require_watcher()

    def release(self, connections: Sequence[sqlite3.Connection] | None = None) -> None:
        """Take connections away, all unless named: from here on none of them is interrupted. May be repeated."""
        if not self._watched:
            return
        with _changed:
            gone = self._watched if connections is None else connections
            self._watched = tuple(one for one in self._watched if not any(one is other for other in gone))
            if not self._watched:
                _deadlines.pop(id(self), None)

    def interrupt(self) -> None:
        """Interrupt what is under it. For the watching thread, which holds the lock."""
        for connection in self._watched:
            with suppress(sqlite3.Error):  # closed meanwhile
                connection.interrupt()
        self.due = monotonic() + self.pause
        self.pause = min(_SELDOM_S, 2 * self.pause)


@contextmanager
def watched(connection: sqlite3.Connection, deadline: Deadline) -> Iterator[None]:
    """Let a deadline end what a connection does for a while."""
    deadline.watch([connection])
    try:
        yield
    finally:
        deadline.release([connection])


_changed = threading.Condition()
"""Guards all of this module. Its lock may be taken twice: a result's finaliser runs at any line of any thread."""
_deadlines: dict[int, Deadline] = {}
_watcher: threading.Thread | None = None
_wakes_at = 0.0


def _require_watcher() -> None:
    """Make sure that the thread runs and wakes in time; the lock is held."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_watch, name="shardlite deadlines", daemon=True)
        _watcher.start()
    elif min(one.due for one in _deadlines.values()) < _wakes_at:
        _changed.notify()


def _watch() -> None:
    global _watcher, _wakes_at
    with _changed:
        while True:
            now = monotonic()
            for deadline in list(_deadlines.values()):
                if deadline.due <= now:
                    deadline.interrupt()
            wait_s = min((one.due for one in list(_deadlines.values())), default=now + _LINGER_S) - monotonic()
            _wakes_at = monotonic() + wait_s
            if wait_s > 0 and not _changed.wait(wait_s) and not _deadlines:
                _watcher = None
                return


def _after_fork_in_child() -> None:
    global _changed, _watcher
    _changed = threading.Condition()
    _deadlines.clear()
    _watcher = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
