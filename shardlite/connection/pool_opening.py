"""How a pool opens connections: with a permit of the budget, pauses after failures, an introduction to the user."""

from __future__ import annotations

import random
from functools import partial
from typing import Final

from shardlite.connection.closing import end_connection
from shardlite.connection.connection import Connection, Holder
from shardlite.connection.opening import may_pass, open_connection
from shardlite.connection.pool_lost import PoolLosses
from shardlite.connection.pool_parts import Slot, Waiter, call_back
from shardlite.connection.pool_places import note_closed_in
from shardlite.connection.thread_end import this_thread
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, PoolClosedError

_LEAST_PATIENCE_S: Final = 1.0
"""How long opening may wait for other processes' locks, however little time a request has left."""
_FIRST_BACKOFF_S: Final = 0.01
_LONGEST_BACKOFF_S: Final = 1.0


class PoolOpening(PoolLosses):
    """Turning a free place into a connection."""

    def _connect(self, slot: Slot, deadline: float, holder: Holder | None = None) -> Connection:
        """Open the connection of a slot; the slot is freed if that fails.

        With a holder: return one of the pool's that became idle while the budget's permit was waited for, if that comes
        first; the slot is freed then, too.
        """
        try:
            if slot.victim is None and self.budget is not None:
                take = None if holder is None else partial(self._take_for, slot, holder)
                receiver = None if self.options.check_same_thread else holder
                got = self.budget.acquire(self, max(0.0, deadline - self._clock()), receiver, take)
                if isinstance(got, Connection):
                    self._free(slot.number)
                    return got
                slot.permitted = True
            if slot.victim is not None:
                end_connection(slot.victim, "its place was needed for another thread")
                slot.victim = None
            conn = self._open_with_backoff(slot, deadline)
        except BaseException:
            self._give_permit_back(slot.permitted)
            self._free(slot.number)
            raise
        return conn

    def _take_for(self, slot: Slot, holder: Holder) -> Connection | Slot | None:
        """Take an idle connection instead of opening one in a slot.

        One that belongs to another thread gives the slot its permit: then return the slot.
        """
        with self._lock:
            if self._closed:
                return None
            conn = self._pick_idle(Waiter(holder))
            if conn is None and self._idle and self.options.check_same_thread:
                slot.victim = self._pick_victim()
                slot.permitted = True
                return slot
            return conn

    def _open_with_backoff(self, slot: Slot, deadline: float) -> Connection:
        """Open; where it may help, try again with growing pauses until the deadline or the closing of the pool."""
        pause_s = _FIRST_BACKOFF_S
        while True:
            try:
                return self._open_once(slot, deadline)
            except sqlite3.Error as error:
                with self._lock:
                    self._failed += 1
                rest_s = pause_s * random.uniform(0.8, 1.2)
                if self._closed or not may_pass(error) or self._clock() + rest_s >= deadline:
                    raise
            self.options.sleep(rest_s)
            pause_s = min(2 * pause_s, _LONGEST_BACKOFF_S)

    def _open_once(self, slot: Slot, deadline: float) -> Connection:
        patience_s = max(_LEAST_PATIENCE_S, min(deadline - self._clock(), self.settings.open_timeout))
        generation = self.generation  # before the user's functions see it: what changes meanwhile, it may lack
        conn = open_connection(self.path, self.settings, patience_s)
        try:
            with self._lock:
                self._created += 1
                conn.on_closed = partial(note_closed_in, self._self_ref, slot.number, False)
            self._introduce(conn, slot)
            conn.generation = generation
            with self._lock:
                if self._closed:
                    raise PoolClosedError(f"the pool of {self.name} was closed while a connection was being opened")
                self._open[slot.number] = conn
                conn.on_closed = partial(note_closed_in, self._self_ref, slot.number, True)
                slot.permitted = False  # it is the connection's from here
        except BaseException:
            end_connection(conn, "it could not be set up")
            raise
        return conn

    def _introduce(self, conn: Connection, slot: Slot) -> None:
        """Make a new connection the pool's, and let the user's functions see it."""
        options = self.options
        now = self._clock()
        conn.number = slot.number
        conn.pool_ref = self._self_ref
        conn.opener = this_thread()
        conn.opened_at = conn.idle_since = now
        conn.expires_at = now + options.max_lifetime * random.uniform(0.95, 1.0)
        conn.after_commit = self.checkpointer.note_commit
        if options.verify is not None:
            options.verify(conn)
        if options.configure is not None:
            problem = call_back("configure", options.configure, conn)
            if problem:
                error = OperationalError(f"a connection to {self.name} was thrown away: {problem}")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY  # worth another try
                raise error
        conn.close_cursors()
        conn.unclean = options.reset is not None
        conn.altered = False
        conn.leftover = ""
        conn.changes_seen = conn.total_changes

    def _open_minimum(self) -> None:
        """Open connections until there are ``min_connections``."""
        deadline = self._clock() + self.options.timeout
        while True:
            with self._lock:
                if self._closed or len(self._open) >= self.options.min_connections:
                    return
                slot = self._reserve()
            conn = self._connect(slot, deadline)
            self._give_back(conn)


__all__ = ["PoolOpening"]
