"""Small parts of the pool: its options, the places in its queue, and how a returned connection is made clean."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType

from shardlite.config import check_seconds
from shardlite.connection.connection import Connection, Holder
from shardlite.connection.opening import ConnectionSettings, restore_settings
from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError

Callback = Callable[[Connection], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What a pool was told; times are seconds."""

    max_connections: int = 10
    min_connections: int = 0
    timeout: float = 30.0
    check_same_thread: bool = False
    max_lifetime: float = 3600.0
    max_idle: float = 600.0
    configure: Callback | None = None
    reset: Callback | None = None
    check: Callback | None = None
    verify: Callback | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        for name in ("max_connections", "min_connections"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ProgrammingError(f"{name} must be an int, not {value!r}")
        if self.max_connections < 1:
            raise ProgrammingError(f"max_connections must be 1 or more, not {self.max_connections}")
        if not 0 <= self.min_connections <= self.max_connections:
            raise ProgrammingError(
                f"min_connections must be between 0 and max_connections ({self.max_connections}), "
                f"not {self.min_connections}"
            )
        check_seconds("timeout", self.timeout)
        for name in ("max_lifetime", "max_idle"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
                raise ProgrammingError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
        for name in ("configure", "reset", "check", "verify"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ProgrammingError(f"{name} must be a function that takes a connection, not {value!r}")


class Slot:
    """The right to open one connection. The pool knows it weakly: when whoever has it is gone, the right is free."""

    __slots__ = ("__weakref__", "number", "permitted", "victim")

    def __init__(self, number: int, victim: Connection | None = None) -> None:
        self.number = number
        self.victim = victim
        """An idle connection of another thread whose place this is; to be closed first."""
        self.permitted = victim is not None
        """Whether it has the budget's permit for one open connection."""


class Waiter:
    """A place in the queue; ``given`` is set and ``wake`` released, under the pool's lock, when its turn has come."""

    __slots__ = ("__weakref__", "closed", "given", "holder", "wake")

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.given: Connection | Slot | None = None
        self.closed = False
        self.wake = threading.Lock()
        self.wake.acquire()


def clean(conn: Connection, options: PoolOptions, settings: ConnectionSettings) -> str:
    """Make a returned connection fit for its next user: nothing open, nothing changed.

    Returns "", or the reason why it must be thrown away.
    """
    if conn.doomed:
        return conn.doomed
    if conn.calls:
        return "another thread was inside it when it was returned"
    try:
        conn.close_cursors()
        if conn.altered:
            conn.set_authorizer(None)  # it may forbid what follows
        if conn.in_transaction:
            conn.rollback()
        if conn.altered:
            restore_settings(conn, settings)
        if conn.leftover:
            if len(conn.fetch_all("PRAGMA database_list")) > 1:
                return "it had a database attached or a temporary table"
            conn.leftover = ""
        if conn.suspect:
            conn.fetch_row("SELECT 1 FROM sqlite_schema LIMIT 1")
            conn.suspect = False
        if options.reset is not None:
            problem = call_back("reset", options.reset, conn)
            if problem:
                return problem
            conn.close_cursors()
            if conn.altered:
                restore_settings(conn, settings)
    except sqlite3.Error as error:
        return f"it could not be reset: {error}"
    conn.unclean = options.reset is not None
    conn.changes_seen = conn.total_changes
    return ""


def call_back(name: str, callback: Callback, conn: Connection) -> str:
    """Call a user's function; return "" or what was wrong with it. BaseExceptions pass through."""
    try:
        callback(conn)
    except Exception as error:
        return f"the {name} callback raised {type(error).__name__}: {error}"
    if conn.doomed:
        return f"the {name} callback closed the connection"
    if conn.in_transaction:
        return f"the {name} callback left a transaction open: it must commit or roll back"
    return ""


def place_of(code: CodeType, instruction: int) -> str:
    """Return ``file:line`` of an instruction in a code object."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return f"{code.co_filename}:{line} in {code.co_name}"
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}"


def describe_holder(holder: Holder, now: float) -> str:
    """Say who has a connection, since when, and which line took it."""
    life, since, code, instruction = holder
    ended = "" if life.alive else " (ended)"
    return f"thread {life.name!r}{ended} for {max(0.0, now - since):.1f} s, taken at {place_of(code, instruction)}"


def is_taken(conn: Connection) -> bool:
    """Tell whether somebody has a connection: a holder, or a single statement (``express.py``), which notes nothing."""
    return conn.holder is not None or bool(conn.calls and not conn.doomed)


def describe_statement(conn: Connection, now: float) -> str:
    """Say which thread is inside a single statement on a connection, and which line outside of shardlite asked for it.

    It is looked up in the threads' stacks, since noting it at each statement would cost a third of a point SELECT.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    seconds = f"for at most {max(0.0, now - conn.idle_since):.1f} s"
    for ident, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost
        has_it = False
        while frame is not None:
            own = frame.f_code.co_filename.startswith(_PACKAGE)
            has_it = has_it or (own and frame.f_locals.get("conn") is conn)
            if has_it and not own:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
                return f"thread {names.get(ident, ident)!r} {seconds}, in a statement begun at {place}"
            frame = frame.f_back
    return f"a thread {seconds}, in a statement that has just ended"


_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


def _count_references(connections: Mapping[int, object], number: int) -> int:
    conn = connections[number]
    return sys.getrefcount(conn)


@cache
def _references_without_user() -> int:
    """Measure what ``_count_references`` gives for a connection that only a table refers to.

    It is more than one: the driver's own cache of statements refers to it too, and interpreters count
    temporary references differently.
    """
    connections = {0: Connection(":memory:")}
    count = _count_references(connections, 0)
    connections.pop(0).base_close()
    return count


def is_unreachable(connections: Mapping[int, object], number: int) -> bool:
    """Tell whether nothing but the pool's table (and its own inner cursor) refers to a connection."""
    without = _references_without_user()
    own = _has_inner(connections[number])
    return _count_references(connections, number) - own <= without


def is_in_transaction(conn: Connection) -> bool:
    """Tell whether a transaction is open; not when another thread has just closed the connection."""
    try:
        return bool(conn.in_transaction)
    except sqlite3.ProgrammingError:
        return False


def _has_inner(conn: object) -> bool:
    return isinstance(conn, Connection) and conn.has_inner


__all__ = [
    "PoolOptions",
    "Slot",
    "Waiter",
    "call_back",
    "clean",
    "describe_holder",
    "describe_statement",
    "is_in_transaction",
    "is_taken",
    "is_unreachable",
    "place_of",
]
