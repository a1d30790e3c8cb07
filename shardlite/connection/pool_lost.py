"""Connections that were lost: by an interrupt, by a user who forgot them, by a thread that has ended.

They are closed and replaced, never handed on, so a mistaken suspicion can't give one connection to two users.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Any

from shardlite.connection.calls import FORKING
from shardlite.connection.closing import end_connection
from shardlite.connection.connection import Connection, Holder
from shardlite.connection.opening import ConnectionSettings
from shardlite.connection.pool_parts import PoolOptions, Slot, is_in_transaction, is_unreachable
from shardlite.connection.pool_places import PoolPlaces
from shardlite.connection.thread_end import ThreadLife, at_any_end


class PoolLosses(PoolPlaces):
    """Giving up, giving back and finding again."""

    def __init__(self, path: str, name: str, options: PoolOptions, settings: ConnectionSettings, budget: Any) -> None:
        super().__init__(path, name, options, settings, budget)
        _pools.add(self)

    def _discard(self, conn: Connection, reason: str, timeout_s: float = 10.0) -> None:
        """Close a connection; its place is free when it is closed, also if that takes longer than the time given."""
        end_connection(conn, reason, timeout_s)

    def _give_back(self, thing: Connection | Slot) -> None:
        """Put back what was claimed and can't be used by whoever claimed it."""
        if isinstance(thing, Slot):
            if thing.victim is not None:
                end_connection(thing.victim, "its place was needed")
            self._give_permit_back(thing.permitted)
            self._free(thing.number)
            return
        with self._lock:
            if not self._closed:
                thing.holder = None
                self._idle.append(thing)
                self._serve()
        self._note_idle()

    def put_back(self, conn: Connection) -> None:
        """Take back a connection that was handed over to somebody who can't use it."""
        self._give_back(conn)

    def _rescue(self, conn: Connection, holder: Holder | None) -> None:
        """After an interrupt: close a connection that is neither idle nor in somebody else's hands; replace it.

        Closed rather than handed on, since an interrupt may hide how far it had come.
        """
        with self._lock:
            mine = holder is not None and conn.holder is holder
            if not mine and (conn.holder is not None or conn in self._idle):
                self._serve_unless_closed()
                return
            if mine:
                conn.holder = None
                self._released += 1
        self._discard(conn, "its user was interrupted while taking or returning it")

    def _take_back(self, conn: Connection | None) -> None:
        """After an interrupt: undo ``_take``, whether or not its result had arrived."""
        if conn is not None and conn.holder is not None:
            self._rescue(conn, conn.holder)

    def _reclaim(self, *, needed: bool = False) -> int:
        """Free the places that nobody has any more, and close connections that were lost; return how many.

        Lost is what nobody refers to; and what an ended thread took, though somebody refers to it (a variable that
        had it before, perhaps), if one is ``needed`` or a transaction is open on it, which keeps other writers waiting.
        """
        lost: list[Connection] = []
        with self._lock:
            idle = {conn.number for conn in list(self._idle)}  # a copy: others append and pop without the lock
            for number in list(self._open):
                if self._is_free(number):
                    del self._open[number]
                elif number not in idle and self._is_lost(number, needed):
                    conn = self._open[number]
                    if isinstance(conn, Connection):
                        lost.append(conn)
            if self.options.check_same_thread:
                for conn in list(self._idle):  # in this mode nobody takes without the lock
                    if conn.opener is not None and not conn.opener.alive:
                        self._idle.remove(conn)
                        lost.append(conn)
            self._serve_unless_closed()
            self._reclaimed += len(lost)
        count = 0
        while lost:
            conn = lost.pop()
            count += 1
            self._discard(conn, "it was lost by its user, or the thread that took it has ended")
        return count

    def _is_lost(self, number: int, needed: bool) -> bool:
        thing = self._open[number]
        if not isinstance(thing, Connection):
            return False
        if thing.doomed:  # its closing was interrupted, or hasn't begun; it has one closer in any case
            return not thing.closing and thing.doomed is not FORKING
        if thing.context is not None and thing.context() is None:
            return True
        holder = thing.holder
        if holder is not None and not holder[0].alive and not thing.calls and (needed or is_in_transaction(thing)):
            return True
        del thing
        return is_unreachable(self._open, number)

    def _has_something_of(self, life: ThreadLife) -> bool:
        with self._lock:  # so that no other thread's search is disturbed by the references that this one makes
            for thing in self._open.values():
                holder = thing.holder if isinstance(thing, Connection) else None
                if holder is not None and holder[0] is life:
                    return True
            return False

    def close_idle(self) -> bool:
        """Close the connection that has been idle longest; tell whether there was one."""
        with self._lock:
            try:
                conn = self._idle.popleft()
            except IndexError:
                return False
        self._discard(conn, "the budget of open connections needed its place")
        return True


_pools: weakref.WeakSet[PoolLosses] = weakref.WeakSet()


def _reclaim_from(life: ThreadLife) -> None:
    """Take back at once what an ended thread has left behind: its open transaction would keep others waiting."""
    for pool in _pools.copy():
        if pool._has_something_of(life):
            pool._reclaim()


at_any_end.append(_reclaim_from)


def _close_idle_at_exit() -> None:
    """Close what is idle in pools that nobody closed, while the interpreter is still whole; the logs end cleanly.

    What daemon threads have in use is left to them.
    """
    for pool in _pools.copy():
        while pool.close_idle():
            pass


atexit.register(_close_idle_at_exit)

__all__ = ["PoolLosses"]
