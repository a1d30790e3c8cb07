"""The write gate: the queue in which the writers of one shard wait inside this process.

SQLite lets one connection write to a file at a time, and lets the others poll for it; whoever polls luckily
goes first. Within a process a queue is fairer and cheaper: writers go in the order they came, exactly one thread
is woken when the gate changes hands, and nobody polls. (Between processes there is only polling: ``busy.py``.)

State
-----
``_slot``     a dict that is empty (the gate is open) or holds one entry, the *token* of the holder: its thread's
              ident and the time it got the gate. Taking the gate is one ``dict.setdefault``, which is atomic:
              there is no instant at which the gate is taken and the taker not written down.
``_waiters``  the queue. It changes only under ``_mutex``; whoever finds it empty needs no mutex at all.

Why no wake-up is lost
----------------------
A waiter enters the queue and *then* looks at the slot; the holder empties the slot and *then* looks at the queue.
So at least one of the two sees the other, and both do the same thing then: give the slot to the head of the queue.
While anybody waits the slot is handed over and never emptied, so a newcomer can't overtake the queue.

KeyboardInterrupt may come between any two instructions. Every step leaves the gate consistent: the head of the
queue is written into the slot first, woken second, and taken out of the queue last; each of these may be repeated.
What an interrupt can still hit is the return from ``acquire`` or the first instruction of ``release``; ``held``
covers these too, since its object knows what it holds and gives it back, at the latest when it is finalised.
"""

from __future__ import annotations

import threading
from collections import deque
from threading import get_ident
from time import monotonic
from types import TracebackType

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, ProgrammingError

_Token = list[float]
"""[ident of the holder's thread, monotonic time at which it got the gate]; told apart by identity, never by value."""

_MAX_WAIT_S = min(threading.TIMEOUT_MAX, 10 * 365 * 86400.0)


class _Waiter:
    """A thread in the queue: it sleeps on ``wake``, and owns the gate once its ``token`` is in the slot."""

    __slots__ = ("token", "wake")

    def __init__(self, token: _Token) -> None:
        self.token = token
        self.wake = threading.Lock()
        self.wake.acquire()


class WriteGate:
    """A FIFO lock with a time limit, one per shard and process.

    Thread-safe. Not re-entrant: a thread that asks for a gate it holds gets an error at once instead of a deadlock.
    Like ``threading.Lock`` it may be released by another thread than the one that took it (a transaction may be
    finished by another thread).

    :param name: what the gate guards, for messages: the path of the database file.
    """

    __slots__ = ("__weakref__", "_mutex", "_slot", "_waiters", "name")

    def __init__(self, name: str = "database") -> None:
        self.name = name
        self._slot: dict[int, _Token] = {}
        self._waiters: deque[_Waiter] = deque()
        self._mutex = threading.Lock()

    def acquire(self, timeout_s: float | None = None) -> None:
        """Take the gate, waiting in FIFO order for at most ``timeout_s`` seconds (None: for ever; 0: not at all).

        :raises OperationalError: ("database is locked") when the time is over; names file, wait and holder.
        :raises ProgrammingError: when this thread holds the gate already.
        """
        token: _Token = [get_ident(), monotonic()]
        if self._slot.setdefault(0, token) is not token:
            self._wait(token, timeout_s)

    def try_acquire(self) -> bool:
        """Take the gate if that needs no waiting; tell whether it was taken. Holding it already counts as not."""
        token: _Token = [get_ident(), monotonic()]
        return self._slot.setdefault(0, token) is token

    def release(self) -> None:
        """Give the gate to the thread that has waited longest, or open it.

        :raises ProgrammingError: when nobody holds it.
        """
        if self._waiters:
            self._hand_over()
            return
        try:
            del self._slot[0]
        except KeyError:
            raise ProgrammingError(
                f"the write gate of {self.name} is released but nobody holds it: release it once per acquire"
            ) from None
        if self._waiters:  # came between the two lines above, and may have seen the slot taken
            with self._mutex:
                self._serve_head()

    def held(self, timeout_s: float | None = None) -> HeldGate:
        """Return a context manager that holds the gate for the block; raises what ``acquire`` raises."""
        return HeldGate(self, timeout_s)

    @property
    def owner(self) -> int | None:
        """The ident of the thread that took the gate, None when it is open."""
        token = self._slot.get(0)
        return None if token is None else int(token[0])

    @property
    def waiting(self) -> int:
        """How many threads wait in the queue."""
        return len(self._waiters)

    def holder_text(self) -> str:
        """Say who holds the gate and for how long, for messages."""
        token = self._slot.get(0)
        if token is None:
            return "nobody"
        ident, since = token
        name = next((thread.name for thread in threading.enumerate() if thread.ident == ident), None)
        who = f"thread {name!r}" if name is not None else "a thread that has ended"
        return f"{who} ({ident:.0f}) for {monotonic() - since:.2f} s"

    def reset_after_fork(self) -> None:
        """Open the gate in a forked child: the threads that held it or waited don't exist there."""
        self._slot = {}
        self._waiters = deque()
        self._mutex = threading.Lock()

    def __repr__(self) -> str:
        return f"<WriteGate of {self.name}: held by {self.holder_text()}, {self.waiting} waiting>"

    def _wait(self, mine: _Token, timeout_s: float | None) -> None:
        """Queue up; return owning the gate, or raise owning nothing."""
        token = self._slot.get(0)
        if token is not None and token[0] == mine[0]:
            raise ProgrammingError(
                f"this thread already holds the write gate of {self.name} (for {monotonic() - token[1]:.2f} s): "
                "finish its open transaction before beginning another"
            )
        asked_at = mine[1]
        waiter = _Waiter(mine)
        limit_s = _MAX_WAIT_S if timeout_s is None else min(timeout_s, _MAX_WAIT_S)
        try:
            with self._mutex:
                self._waiters.append(waiter)
                self._serve_head()
            if limit_s > 0:
                waiter.wake.acquire(timeout=limit_s)
            if self._leave(waiter):
                return
        except BaseException:
            self._leave(waiter)
            self._give_back(mine)
            raise
        raise self._timed_out(monotonic() - asked_at)

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the queue; tell whether the gate is the waiter's (even if the time was over as it came)."""
        with self._mutex:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            return self._slot.get(0) is waiter.token

    def _give_back(self, token: _Token) -> None:
        """Release the gate if ``token`` holds it; may be repeated."""
        if self._slot.get(0) is token:
            self.release()
        elif self._waiters:  # an interrupted release may have left the new holder asleep
            with self._mutex:
                self._serve_head()

    def _hand_over(self) -> None:
        """Give the gate to the head of the queue; open it when the queue has emptied meanwhile."""
        with self._mutex:
            if self._waiters:
                head = self._waiters[0]
                head.token[1] = monotonic()
                self._slot[0] = head.token
                self._wake(head)
            else:
                self._slot.pop(0, None)

    def _serve_head(self) -> None:
        """Give an open gate to the head of the queue. The mutex is held."""
        if self._waiters:
            head = self._waiters[0]
            if self._slot.setdefault(0, head.token) is head.token:
                self._wake(head)

    def _wake(self, head: _Waiter) -> None:
        if head.wake.locked():
            head.wake.release()
        self._waiters.popleft()

    def _timed_out(self, waited_s: float) -> OperationalError:
        error = OperationalError(
            f"database is locked: waited {waited_s:.2f} s in this process to write to {self.name}, which is held by "
            f"{self.holder_text()}, with {self.waiting} more waiting: commit sooner, or allow a longer timeout"
        )
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        error.sqlite_errorname = "SQLITE_BUSY"
        return error


class HeldGate:
    """Holds a gate, for a ``with`` block or from ``acquire`` to ``release``.

    It knows whether it holds the gate, so releasing twice is harmless, and finalising it gives the gate back when an
    interrupt prevented the exit.
    """

    __slots__ = ("_gate", "_timeout_s", "_token")

    def __init__(self, gate: WriteGate, timeout_s: float | None) -> None:
        self._gate = gate
        self._timeout_s = timeout_s
        self._token: _Token | None = None

    def acquire(self) -> None:
        """Take the gate; raises what ``WriteGate.acquire`` raises."""
        gate = self._gate
        token = self._token = [get_ident(), monotonic()]
        if gate._slot.setdefault(0, token) is not token:
            gate._wait(token, self._timeout_s)

    def release(self) -> None:
        """Give the gate back if this object holds it."""
        token = self._token
        if token is not None:
            self._gate._give_back(token)
            self._token = None

    def __enter__(self) -> HeldGate:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_token", None) is not None:  # None, too, when an interrupt cut __init__ short
            self.release()
