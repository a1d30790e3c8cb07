"""Who gets which place in a pool: the table of what is open, the idle ones, the queue. No I/O, no waiting.

The rules are told in ``pool_core.py``.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any

from shardlite.connection.checkpoint import Checkpointer
from shardlite.connection.connection import Connection
from shardlite.connection.gate import WriteGate
from shardlite.connection.opening import ConnectionSettings
from shardlite.connection.pool_parts import PoolOptions, Slot, Waiter
from shardlite.errors import PoolClosedError


class PoolPlaces:
    """The state of a pool and the decisions about it; mostly called with the lock held."""

    def __init__(self, path: str, name: str, options: PoolOptions, settings: ConnectionSettings, budget: Any) -> None:
        self.path = path
        self.name = name
        self.options = options
        self.settings = settings
        self.budget = budget
        self.gate = WriteGate(path)
        self.checkpointer: Checkpointer
        self._clock = options.clock
        self._lock = threading.Lock()
        self._idle: deque[Connection] = deque()
        self._waiting: deque[weakref.ref[Waiter]] = deque()
        self._open: dict[int, Connection | weakref.ref[Slot]] = {}
        self._numbers = 0
        self.generation = 0
        """Connections of an earlier one are not handed out any more (see ``renew``)."""
        self._closed = False
        self._simple = not options.check_same_thread and options.check is None
        self._fast_until = 0.0
        """When maintenance is due; until then, if nothing forbids it, connections change hands without the lock."""
        self._acquired = self._released = self._timeouts = self._misses = 0
        self._created = self._ended = self._failed = self._reclaimed = 0
        self._waited_s = 0.0
        self._self_ref = weakref.ref(self)
        if budget is not None:
            budget.join(self)

    def renew(self) -> None:
        """Have every connection that is open now replaced before its next use; those in use, after their return.

        For what is set up when a connection is opened and has changed.
        """
        with self._lock:
            self.generation += 1

    def _anybody_waits(self) -> bool:
        while self._waiting and self._waiting[0]() is None:
            self._waiting.popleft()
        return bool(self._waiting)

    def _pick(self, waiter: Waiter) -> Connection | Slot | None:
        """Choose for one user: an idle connection, a free place, another thread's idle connection's place, nothing.

        The lock is held.
        """
        conn = self._pick_idle(waiter)
        if conn is not None:
            return conn
        if len(self._open) < self.options.max_connections:
            return self._reserve()
        if self._idle and self.options.check_same_thread:
            return self._reserve(self._pick_victim())
        return None

    def _pick_idle(self, waiter: Waiter) -> Connection | None:
        idle = self._idle
        if not self.options.check_same_thread:
            with suppress(IndexError):  # taken just now, without the lock
                return self._mark(idle.pop(), waiter)
            return None
        for conn in reversed(idle):
            if conn.opener is waiter.holder[0]:
                idle.remove(conn)
                return self._mark(conn, waiter)
        return None

    def _pick_victim(self) -> Connection:
        """Take an idle connection off the list whose place and permit a slot gets."""
        victim = self._idle.popleft()
        self._retire(victim.number)
        victim.on_closed = partial(note_closed_in, self._self_ref, victim.number, False)  # the slot has the permit
        return victim

    def _mark(self, conn: Connection, waiter: Waiter) -> Connection:
        conn.holder = waiter.holder
        return conn

    def _reserve(self, victim: Connection | None = None) -> Slot:
        self._numbers += 1
        slot = Slot(self._numbers, victim)
        self._open[slot.number] = weakref.ref(slot)
        return slot

    def _serve(self) -> None:
        """Give what is there to those who wait, first come first. The lock is held."""
        while self._waiting:
            waiter = self._waiting[0]()
            if waiter is None:
                self._waiting.popleft()
                continue
            got = self._pick(waiter)
            if got is None:
                return
            self._waiting.popleft()
            waiter.given = got
            waiter.wake.release()

    def _serve_unless_closed(self) -> None:
        if not self._closed:
            self._serve()

    def _retire(self, number: int) -> None:
        """Strike a connection off the list, keeping its counts. The lock is held."""
        thing = self._open.pop(number, None)
        if isinstance(thing, Connection):
            self._acquired += thing.uses
            self._released += thing.returns
            thing.uses = thing.returns = 0

    def _free(self, number: int) -> None:
        """Free the place of a slot that is not used."""
        with self._lock:
            self._open.pop(number, None)
            self._serve_unless_closed()

    def _note_closed(self, number: int, had_permit: bool) -> None:
        """Free the place of a connection that was closed, by whomever."""
        with self._lock:
            known = isinstance(self._open.get(number), Connection)
            if had_permit and not known:  # said before: an interrupt came in between
                return
            self._ended += 1
            if known:
                self._retire(number)
        self._give_permit_back(had_permit)
        with self._lock:
            self._serve_unless_closed()

    def _is_free(self, number: int) -> bool:
        thing = self._open[number]
        return not isinstance(thing, Connection) and thing() is None

    def _give_permit_back(self, had_one: bool) -> None:
        if had_one and self.budget is not None:
            self.budget.release(self)

    def _note_idle(self) -> None:
        if self.budget is not None and self.budget.pressed:
            self.budget.note_idle(self)

    def _refuse_if_closed(self, closed: bool = False) -> None:
        if self._closed or closed:
            raise PoolClosedError(f"the pool of {self.name} is closed: open() opens it again")


def note_closed_in(pool_ref: weakref.ref[PoolPlaces], number: int, had_permit: bool) -> None:
    """Tell a pool, if there still is one, that the connection of that number is closed."""
    pool = pool_ref()
    if pool is not None:
        pool._note_closed(number, had_permit)


__all__ = ["PoolPlaces", "note_closed_in"]
