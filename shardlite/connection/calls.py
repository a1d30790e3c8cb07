"""Counting the calls that are inside SQLite, and holding them up while the process forks.

A connection's own calls are in its ``calls``, a list that grows by ``calls += ONE`` and shrinks by ``del calls[-1]``:
each is one uninterruptible step of the interpreter, a method call is not (a KeyboardInterrupt may strike when it
returns). Openings and closings are in ``in_sqlite``, by thread: a mark that an interrupt left behind is taken away by
the thread's next opening or closing, and says nothing when that thread itself forks.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from shardlite.driver import sqlite3

if TYPE_CHECKING:
    from shardlite.connection.connection import Connection

ONE: Final[tuple[None]] = (None,)
FORKING: Final = "the process is forking"
"""The mark of a connection whose calls are held up while this process forks; told apart by identity."""

all_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
"""Every connection of the process, for the fork handling."""

in_sqlite: dict[int, None] = {}
"""The threads that are opening or closing a connection; what happens inside an open one is in its ``calls``."""


class ForkPause:
    """Whether this process is forking at the moment; waiting for its end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()

    def begin(self) -> None:
        self._over.clear()

    def end(self) -> None:
        self._over.set()

    def wait(self) -> None:
        """Wait until no fork is under way."""
        while not self._over.is_set():
            self._over.wait(0.1)

    def reset_in_child(self) -> None:
        self._over = threading.Event()
        self._over.set()

    @property
    def is_on(self) -> bool:
        return not self._over.is_set()


fork_pause = ForkPause()


def enter_sqlite() -> None:
    """Note that this thread begins an opening or closing (``leave_sqlite`` ends it); wait while the process forks."""
    while True:
        fork_pause.wait()
        in_sqlite[threading.get_ident()] = None
        if not fork_pause.is_on:
            return
        leave_sqlite()


def leave_sqlite() -> None:
    """Note that this thread's opening or closing is over."""
    in_sqlite.pop(threading.get_ident(), None)


def others_in_sqlite() -> bool:
    """Tell whether another thread is opening or closing a connection."""
    own, alive = threading.get_ident(), sys._current_frames()
    return any(ident != own and ident in alive for ident in list(in_sqlite))


def counted(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of ``sqlite3.Connection`` that enters SQLite: count it, refuse it on a doomed connection."""

    @wraps(method)
    def call(self: Connection, *args: Any, **kwargs: Any) -> Any:
        self.unclean = True
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    return call


def altering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that changes a setting: as ``counted``, and the setting is restored on return to the pool."""
    inner = counted(method)

    @wraps(method)
    def call(self: Connection, *args: Any, **kwargs: Any) -> Any:
        self.altered = True
        return inner(self, *args, **kwargs)

    return call


def registering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that registers a function or collation: as ``counted``, and the pool's next user won't get it."""
    inner = counted(method)

    @wraps(method)
    def call(self: Connection, *args: Any, **kwargs: Any) -> Any:
        self.generation = -1
        return inner(self, *args, **kwargs)

    return call


def watched(name: str) -> property:
    """Make an attribute of ``sqlite3.Connection`` remember that it was set, so that it is restored on return."""
    plain: Any = getattr(sqlite3.Connection, name)

    def read(self: Connection) -> Any:
        return plain.__get__(self, type(self))

    def write(self: Connection, value: Any) -> None:
        self.unclean = self.altered = True
        plain.__set__(self, value)

    return property(read, write)


__all__ = [
    "FORKING",
    "ONE",
    "all_connections",
    "altering",
    "counted",
    "enter_sqlite",
    "fork_pause",
    "in_sqlite",
    "leave_sqlite",
    "others_in_sqlite",
    "registering",
    "watched",
]
