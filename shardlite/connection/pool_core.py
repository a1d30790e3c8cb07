"""The machinery of the pool: who gets which connection, and what becomes of each.

Rules
-----
1. Decisions are made under ``_lock``; opening, closing, rolling back, checking and waiting happen outside it.
2. ``_open`` has one entry for each place in use, so its length can't exceed the limit: a connection, or (weakly) the
   *slot* of somebody who is opening one. A freed place or a returned connection goes directly to the first in the
   queue; while anybody waits nothing is left lying for a newcomer to take.
3. Nothing is lost, wherever a KeyboardInterrupt strikes. What a thread was about to open, wait for or hand over is
   referred to by that thread's frame only: a slot whose frame has gone is free, a place in the queue whose frame has
   gone is skipped, and a connection that nobody refers to (or whose thread has ended) is taken back by whoever needs
   one next (``_reclaim``). It is closed and replaced, never handed on, so a mistaken suspicion can't give one
   connection to two users.
4. A connection is closed only when no call is inside it (``end_connection``).
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from types import FrameType
from typing import Final, NoReturn

from shardlite.connection.budget_parts import Fate
from shardlite.connection.connection import Connection, Holder
from shardlite.connection.opening import (
    file_identity,
    set_polling,
)
from shardlite.connection.pool_opening import PoolOpening
from shardlite.connection.pool_parts import (
    Slot,
    Waiter,
    call_back,
    clean,
    describe_holder,
    describe_statement,
    is_taken,
)
from shardlite.connection.thread_end import _local, this_thread
from shardlite.errors import OperationalError, PoolExhaustedError, ProgrammingError

LOOK_AGAIN_S: Final = 1.0
"""A connection that was idle for longer is looked at before reuse: is its file still there, is it too old."""
_RECLAIM_EVERY_S: Final = 0.1


class PoolCore(PoolOpening):
    """What ``ConnectionPool`` is made of; see the module's docstring."""

    # ---- taking

    def _take(self, timeout: float | None, frame: FrameType) -> Connection:
        """Return a connection with its holder set; ``frame`` is the caller's, to be named in messages.

        The fast path takes no lock: ``deque.pop`` is atomic, and whoever begins to wait looks at the idle ones after
        entering the queue (see ``release``).
        """
        now = self._clock()
        try:
            life = _local.life
        except AttributeError:
            life = this_thread()
        holder: Holder = (life, now, frame.f_code, frame.f_lasti)
        del frame
        conn = None
        try:
            if self._idle and now < self._fast_until and not self._waiting:
                try:
                    conn = self._idle.pop()
                except IndexError:
                    pass
                else:
                    fresh = conn.generation == self.generation and now - conn.idle_since < LOOK_AGAIN_S
                    if fresh and not conn.doomed:
                        conn.holder = holder
                        conn.uses += 1
                        return conn
                    self._idle.append(conn)
                    conn = None  # whoever loses it next must be the last who referred to it
        except BaseException:
            if conn is not None:
                self._rescue(conn, holder)
            raise
        return self._take_slowly(self.options.timeout if timeout is None else timeout, holder)

    def _take_slowly(self, timeout_s: float, holder: Holder) -> Connection:
        deadline = holder[1] + timeout_s
        while True:
            got = self._claim(holder, deadline, timeout_s)
            conn = self._connect(got, deadline, holder) if isinstance(got, Slot) else got
            opened = isinstance(got, Slot) and conn.number == got.number
            try:
                problem = "" if opened else self._problem_of(conn)
                if not problem and self.options.check is not None:
                    problem = call_back("check", self.options.check, conn)
                if not problem:
                    with self._lock:
                        conn.holder = (holder[0], self._clock(), holder[2], holder[3])
                        self._acquired += 1
                        self._misses += opened
                    return conn
            except BaseException:
                self._discard(conn, "its user was interrupted while taking it")
                raise
            self._discard(conn, problem)
            if opened and self._clock() >= deadline:
                raise OperationalError(f"no usable connection to {self.name}: {problem}")

    def _claim(self, holder: Holder, deadline: float, timeout_s: float) -> Connection | Slot:
        """Get a connection or the right to open one, in FIFO order."""
        waiter = Waiter(holder)
        with self._lock:
            self._refuse_if_closed()
            got = self._pick(waiter) if not self._anybody_waits() else None
            if got is not None:
                return got
            self._waiting.append(weakref.ref(waiter))
            self._serve()  # what became idle before the line above was not handed over by whoever returned it
        try:
            self._reclaim(needed=True)
            self._wait(waiter, deadline)
        except BaseException:
            self._leave(waiter, timed_out=False)
            if waiter.given is not None:
                self._give_back(waiter.given)
            raise
        given = waiter.given
        if given is None:
            self._refuse_if_closed(waiter.closed)
            raise self._exhausted(timeout_s, self._clock() - holder[1])
        return given

    def _wait(self, waiter: Waiter, deadline: float) -> None:
        """Sleep until something was given to the waiter, the pool is closed, or the time is over."""
        started = self._clock()
        woken = waiter.wake.acquire(blocking=False)
        while not woken:
            left_s = deadline - self._clock()
            if left_s <= 0:
                self._leave(waiter, timed_out=True)
                break
            woken = waiter.wake.acquire(timeout=min(left_s, _RECLAIM_EVERY_S))
            if not woken:
                self._reclaim(needed=True)
        with self._lock:
            self._waited_s += self._clock() - started

    def _leave(self, waiter: Waiter, *, timed_out: bool) -> None:
        """Leave the queue, keeping what was given at the last instant."""
        with self._lock:
            mine = next((ref for ref in self._waiting if ref() is waiter), None)
            if mine is not None:
                self._waiting.remove(mine)
            if timed_out and waiter.given is None and not waiter.closed:
                self._timeouts += 1

    def _problem_of(self, conn: Connection) -> str:
        """Look at an idle connection before reuse; return "" or what is wrong with it."""
        now = self._clock()
        if conn.doomed:
            return conn.doomed
        if now >= conn.expires_at:
            return "it was too old"
        if conn.generation != self.generation:
            return "functions were registered, on it alone or after it was opened"
        if now - conn.idle_since >= LOOK_AGAIN_S and file_identity(self.path) != conn.identity:
            return "its file was removed or replaced"
        return ""

    def _set_polling(self, conn: Connection, polling: bool) -> None:
        try:
            set_polling(conn, polling, self.settings)
        except BaseException:
            self._note_released(conn)
            self._discard(conn, "its busy timeout could not be set")
            raise

    # ---- returning

    def _clean(self, conn: Connection) -> bool:
        """Make a returned connection fit for its next user; tell whether it is, else it has been thrown away."""
        wrote = conn.unclean or conn.doomed or conn.total_changes != conn.changes_seen
        try:
            altered = conn.altered and self.options.configure is not None
            problem = clean(conn, self.options, self.settings)
            if altered and not problem:
                problem = "its settings were altered after its configure callback"
            if wrote and not problem:
                self.checkpointer.note_commit(conn)
        except BaseException:
            self._note_released(conn)
            self._discard(conn, "its user was interrupted while returning it")
            raise
        if not problem and self._clock() >= conn.expires_at:
            problem = "it was too old"
        if problem:
            self._note_released(conn)
            self._discard(conn, problem)
        return not problem

    def _settle(self, conn: Connection) -> None:
        """After a connection was put among the idle ones without the lock: serve who waits, or close it if closed."""
        with self._lock:
            self._serve_unless_closed()
            if self._closed:
                self._idle.clear()
                self._released += conn.returns
                conn.returns = 0
        if self._closed:
            self._discard(conn, "its pool was closed")

    def _release_slowly(self, conn: Connection, now: float) -> None:
        """Return a clean connection when somebody waits for it, or it is too old, or belongs to a thread."""
        budget = self.budget
        pressed = budget is not None and budget.pressed
        returned = False
        if not conn.doomed and now < conn.expires_at and not self._closed:
            with self._lock:
                if not self._closed and not conn.doomed and conn.holder is not None:
                    self._released += 1
                    conn.idle_since = now
                    conn.holder = None
                    returned = True
                    if not pressed:
                        self._idle.append(conn)
                        self._serve()
        if not returned:
            self._note_released(conn)
            self._discard(conn, "it was too old")
            return
        if pressed:
            fate = budget.offer(self, conn)
            if fate is Fate.HANDED_OVER:
                return
            if fate is Fate.CLOSE:
                self._discard(conn, "the budget of open connections needed its place")
                return
            with self._lock:
                if not self._closed:  # else whoever closed it has doomed the connection too
                    self._idle.append(conn)
                    self._serve()
        self._note_idle()

    def _note_released(self, conn: Connection) -> None:
        with self._lock:
            if conn.holder is None:
                self._refuse_return(conn)
            conn.holder = None
            self._released += 1

    # ---- the budget of open connections over many pools (see budget.py)

    @property
    def idle_count(self) -> int:
        """How many connections are open and not handed out; takes no lock."""
        return len(self._idle)

    @property
    def last_used(self) -> float:
        """When the connection that was returned last was returned; takes no lock."""
        try:
            return self._idle[-1].idle_since
        except IndexError:
            return self._clock()

    def take_idle(self) -> Connection | None:
        """Hand out an idle connection as ``acquire`` does; None when that would need waiting or opening."""
        frame = sys._getframe(1)
        holder: Holder = (this_thread(), self._clock(), frame.f_code, frame.f_lasti)
        del frame
        with self._lock:
            if self._closed or not self._idle or self._anybody_waits():
                return None
            if self.options.check_same_thread and all(conn.opener is not holder[0] for conn in self._idle):
                return None
            got = self._pick(Waiter(holder))
        if not isinstance(got, Connection):
            if got is not None:  # the idle one was taken just now: don't open another in its stead
                self._give_back(got)
            return None
        try:
            problem = self._problem_of(got)
            if not problem and self.options.check is not None:
                problem = call_back("check", self.options.check, got)
        except BaseException:
            self._discard(got, "its user was interrupted while taking it")
            raise
        if problem:
            self._discard(got, problem)
            return None
        with self._lock:
            self._acquired += 1
        if not got.polling:
            self._set_polling(got, True)
        return got

    # ---- fork (see fork.py)

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, what belongs to the parent: connections, waiting threads, locks."""
        self._lock = threading.Lock()
        self._idle = deque()
        self._waiting = deque()
        self._open = {}
        self.gate.reset_after_fork()
        self.checkpointer.reset_after_fork()
        if self.budget is not None:
            self.budget.reset_after_fork(self)

    # ---- errors

    def _refuse_return(self, conn: Connection) -> NoReturn:
        if not isinstance(conn, Connection) or conn.pool_ref is not self._self_ref:
            raise ProgrammingError(
                f"{conn!r} is not a connection of the pool of {self.name}: return it where it is from"
            )
        raise ProgrammingError(f"{conn!r} was returned to the pool of {self.name} before: return it once")

    def _users(self) -> list[tuple[str, float]]:
        """Say who has the connections that are handed out, and for how many seconds."""
        now = self._clock()
        with self._lock:  # so that no other thread's search is disturbed by the references that this one makes
            holders, nameless = self._taken()
        users = [(describe_holder(holder, now), max(0.0, now - holder[1])) for holder in holders]
        return users + [(describe_statement(conn, now), max(0.0, now - conn.idle_since)) for conn in nameless]

    def _taken(self) -> tuple[list[Holder], list[Connection]]:
        """List who took the connections that are handed out, and those that nobody took for longer than a statement.

        Under the lock. A function of its own, since an interrupt in a loop with a condition goes past the ``with`` that
        the loop stands in (Python 3.12 and 3.13 forget it in the jump back), and the lock would be held for ever.
        """
        taken = [thing for thing in self._open.values() if isinstance(thing, Connection) and is_taken(thing)]
        holders = [conn.holder for conn in taken if conn.holder is not None]
        return holders, [conn for conn in taken if conn.holder is None]

    def _exhausted(self, timeout_s: float, waited_s: float) -> PoolExhaustedError:
        who = "; ".join(text for text, _ in self._users())
        waiting = len(self._waiting)
        return PoolExhaustedError(
            f"no connection to {self.name} became free in {max(waited_s, 0.0):.2f} s (timeout {timeout_s:g} s): "
            f"all {self.options.max_connections} (max_connections) are in use, {waiting} more threads wait. "
            f"Held by: {who or 'nobody, they are being opened or closed'}. "
            "Return connections sooner, or raise max_connections or timeout"
        )


__all__ = ["LOOK_AGAIN_S", "PoolCore"]
