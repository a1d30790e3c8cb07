"""Forking a process that has SQLite files open.

SQLite keeps its table of file locks in the process, and a forked child inherits the table but not the locks: a child
that opens a file again believes that it holds locks which the system never gave it, and committed rows vanish.
The operating system's locks are dropped when the child *closes* what it inherited; so:

before the fork   stop handing out, hold up new calls, and wait (bounded) until no thread is inside SQLite, since
                  a child of a thread's inside would inherit its mutexes locked for ever.
in the child      close the connections that were at rest. Those in the middle of something (an open transaction, an
                  open cursor, a call that didn't end in time) must never be closed, nor finalised at exit: that would
                  write into the parent's transaction. They are kept for ever, and their files are refused by name.
in the parent     go on.

``subprocess`` and the "spawn" and "forkserver" ways of ``multiprocessing`` don't fork this way and need nothing.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Final, Protocol

from shardlite.connection.calls import FORKING, all_connections, fork_pause, in_sqlite, others_in_sqlite
from shardlite.connection.checkpoint import Checkpointer
from shardlite.connection.connection import Connection, Cursor
from shardlite.connection.opening import refused_files
from shardlite.connection.pool_parts import is_in_transaction

QUIET_WITHIN_S: Final = 2.0
"""How long a fork waits for calls that are inside SQLite."""


class Forkable(Protocol):
    """What has a lock that protects connections: a pool, or the table of the threads' connections."""

    _lock: threading.Lock

    @property
    def checkpointers(self) -> list[Checkpointer]:
        """Return the checkpointers that may be at work; takes no lock."""

    def reset_after_fork(self) -> None:
        """Forget, in the child, what belongs to the parent."""


class _Fork:
    """One fork: what was stopped before it and has to be started again after it."""

    def __init__(self) -> None:
        self.owners = list(_owners)
        self.paused: list[Checkpointer] = []
        self.locked: list[threading.Lock] = []
        self.kept: list[object] = []
        self.connections: list[Connection] = []
        self.disturbed = ""
        self.opening = False

    def stop_everything(self) -> None:
        """Hold up calls, stop hand-outs, wait until it is quiet."""
        deadline = time.monotonic() + QUIET_WITHIN_S
        for owner in self.owners:
            for checkpointer in owner.checkpointers:
                if checkpointer.pause(max(0.0, deadline - time.monotonic())):
                    self.paused.append(checkpointer)
                else:
                    self.disturbed = f"a checkpoint of {checkpointer.path} was running"
        for owner in self.owners:
            if owner._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self.locked.append(owner._lock)
        fork_pause.begin()
        while self._is_anybody_inside() and time.monotonic() < deadline:
            time.sleep(0.0005)
        self.opening = others_in_sqlite()  # asked here: the child has no other threads

    def _is_anybody_inside(self) -> bool:
        opening = others_in_sqlite()  # asked first: what was being opened until now is found by the next line
        self._hold_up_calls()
        return opening or any(conn.calls for conn in self.connections)

    def _hold_up_calls(self) -> None:
        """Mark the connections that aren't marked yet; some may have been in the middle of their opening before."""
        marked = set(map(id, self.connections))
        for conn in list(all_connections):
            if id(conn) not in marked:
                if not conn.doomed:
                    conn.doomed = FORKING
                self.connections.append(conn)
                self.kept += [conn, *(ref() for ref in conn.cursors)]

    def start_again(self) -> None:
        """In the parent: let everything go on."""
        for conn in self.connections:
            if conn.doomed is FORKING:
                conn.doomed = ""
        fork_pause.end()
        for lock in self.locked:
            lock.release()
        for checkpointer in self.paused:
            checkpointer.resume()

    def clear_child(self) -> None:
        """In the child: close what was at rest, keep the rest for ever and refuse its files."""
        fork_pause.reset_in_child()
        if self.opening:
            self.disturbed = "a connection was being opened or closed"
        in_sqlite.clear()
        for conn in self.connections:
            reason = self._what_it_was_doing(conn)
            if reason:
                refused_files[os.path.realpath(conn.path)] = (
                    f"{conn.path} can't be used in this process: it was forked while {reason}. Fork when no "
                    "transaction or cursor is open, or start processes with the 'spawn' method"
                )
        for conn in self.connections:
            was = conn.doomed
            conn.doomed = f"it belongs to the parent process {os.getppid()}"
            if os.path.realpath(conn.path) in refused_files or self.disturbed:
                conn.closing[0] = self  # nobody may close it
                _keep_for_ever(conn)
            elif was is FORKING:
                conn.closing[0] = self
                conn.base_close()
        for thing in self.kept:
            if isinstance(thing, Cursor) and os.path.realpath(thing.connection.path) in refused_files:
                _keep_for_ever(thing)
        if self.disturbed:
            refused_files["*"] = (
                f"no database can be used in this process: it was forked while {self.disturbed}. Fork while nothing is "
                "being done, or start processes with the 'spawn' method"
            )

    def _what_it_was_doing(self, conn: Connection) -> str:
        if conn.calls:
            self.disturbed = self.disturbed or f"a thread was inside a call on {conn.path}"
            return "a thread was inside a call on it"
        if conn.doomed is not FORKING:
            return ""
        if is_in_transaction(conn):  # not if a finaliser was closing it
            return "a transaction was open on it"
        if any(ref() is not None for ref in conn.cursors):
            return "a cursor was open on it"
        return ""


def _keep_for_ever(thing: object) -> None:
    """Let an object never be finalised, not even at the interpreter's exit."""
    try:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    except (ImportError, AttributeError):
        cycle: list[object] = [thing]
        cycle.append(cycle)
        gc.freeze()


_owners: weakref.WeakSet[Forkable] = weakref.WeakSet()
_one_at_a_time = threading.Lock()
_current: list[_Fork] = []


def register(owner: Forkable) -> None:
    """Let forks stop and reset ``owner``, which is known weakly."""
    _owners.add(owner)


def _before() -> None:
    _one_at_a_time.acquire()
    fork = _Fork()
    _current.append(fork)
    fork.stop_everything()


def _after_in_parent() -> None:
    if _current:
        _current.pop().start_again()
        _one_at_a_time.release()


def _after_in_child() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()
    if _current:
        fork = _current.pop()
        try:
            fork.clear_child()
        finally:  # a child whose locks stay taken would hang
            for owner in fork.owners:
                owner.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)

__all__ = ["QUIET_WITHIN_S", "register"]
