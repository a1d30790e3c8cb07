"""A cap on the open connections of many pools.

Each open connection costs three file descriptors (the database, its ``-wal``, its ``-shm``), and a directory of 256
shards with ten connections each would need more than most systems give a process. So the pools of one manager share
a number of *permits*: a pool takes one before it opens a connection and gives it back after it has closed it. A
connection that is handed out again and again never passes here.

Rules
-----
1. Who finds no permit queues; the queue is FIFO, and its head is served first.
2. The head makes room: it closes the idle connection of the quietest pool (hysteresis: pools used within the last
   ``RECENT_S`` come last; and before a pool's last connection goes another pool's spare one does: closing the last
   costs 40 times more, since SQLite then checkpoints and removes the log). A connection that becomes idle while
   somebody queues wakes the head.
3. An operation over many pools (``acquire_all``) gets what it needs in one step: while it queues it holds nothing. At
   the head of the queue, when no other operation is *collecting*, it begins to collect as soon as there is a permit
   for each of its pools that has no idle connection to give. It takes the idle ones at once, holds a *reservation* in
   each of the other pools, and takes their connections one by one, in the order in which the pools joined.
4. A reservation belongs to the pool: whoever opens a connection there next uses it, whatever the place in the queue;
   and if a connection of the pool is closed while the operation still waits for its own, the permit becomes the
   reservation again.
5. An operation that needs more than the cap begins when nobody has exceeded the cap and nobody else has a connection
   in use; or, if the latter doesn't come about within ``GRACE_S``, without it (its own thread may be the user).

No deadlock
-----------
A thread waits in one of these places: (a) in the budget's queue for a single permit, with a place in one pool; (b) in
the budget's queue as an operation, holding nothing; (c) in a pool's queue as the operation that is collecting, of
which there is one; (d) in a pool's queue for a single connection, holding nothing.

Suppose that some threads wait for each other for ever and nobody else holds anything. If one of them is collecting, in
pool p: the places of p belong to (a)-threads, since an operation that isn't collecting has nothing or all that it
needs. But the collecting operation has a reservation in p, and such a thread uses it without queueing (rule 4). So
nobody is collecting. Then there are no reservations, and every permit belongs to an idle connection: the head of the
queue closes these and goes on. A contradiction in both cases.

Not covered: an application that keeps connections while it asks for more, one by one. It gets a time-out that names
the numbers.

Exceptions to the cap, counted in ``BudgetReport.peak_open``: rule 5, and the two connections that a checkpoint opens
for a moment (``overdraw``).

What a permit covers is told in ``budget_parts.py``.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shardlite.connection.budget_parts import (
    DESCRIPTORS_PER_CONNECTION,
    Account,
    BudgetReport,
    Member,
    Operation,
    Ticket,
    default_limit,
)
from shardlite.errors import PoolClosedError, PoolExhaustedError, ProgrammingError

RECENT_S = 1.0
GRACE_S = 0.25


class ConnectionBudget:
    """The permits that the pools of one manager share. Thread-safe.

    :param limit: how many connections may be open over all pools; None: as many as the process's descriptors allow.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = default_limit()
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ProgrammingError(f"the cap on open connections must be an int of 1 or more, not {limit!r}")
        self.limit = limit
        self.waiting = 0
        """How many are queued. A pool that has put a connection among the idle ones looks here."""
        self._mutex = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._accounts: dict[int, Account] = {}
        self._dead: deque[int] = deque()
        self._numbers = 0
        self._unnamed = Account(self, 0, deque())
        self._charged = self._open = self._reserved = 0
        self._collecting = False
        self._peak_open = self._peak_charged = self._evictions = self._timeouts = 0

    # ---- what a pool calls

    def join(self, pool: Member) -> None:
        """Make a pool known; the order of joining is the order in which operations take connections."""
        with self._mutex:
            self._account(pool)

    def acquire(self, pool: Member, timeout_s: float) -> None:
        """Take a permit to open one connection, waiting in FIFO order. Call it without holding the pool's lock.

        :raises PoolExhaustedError: when none became free in time.
        """
        with self._mutex:
            account = self._account(pool)
            if account.reserved or (not self._queue and self._fits(account)):
                self._grant(account)
                return
        ticket = Ticket((pool,), None)
        try:
            self._queue_up(ticket, lambda: self._try_single(ticket), timeout_s)
        except BaseException:
            if ticket.granted:  # interrupted on the way back
                self.release(pool)
            raise

    def release(self, pool: Member) -> None:
        """Give a permit back after a connection was closed (or could not be opened)."""
        with self._mutex:
            account = self._account(pool)
            self._change(account, -1)
            if account.pending > account.reserved:
                self._reserve(account, +1)
            self._poke()

    def note_idle(self) -> None:
        """Note that a connection became idle. Call it when ``waiting`` isn't 0, after the connection can be found."""
        with self._mutex:
            self._poke()

    def cancel(self, pool: Member) -> None:
        """End the waiting of those who want to open a connection of ``pool``: it is closed."""
        with self._mutex:
            for ticket in self._queue:
                if pool in ticket.pools:
                    ticket.cancelled = True
                    ticket.wake.set()

    @contextmanager
    def overdraw(self, key: object, connections: int) -> Iterator[None]:
        """Count connections that are open for the block only; never waits, and may exceed the cap."""
        pool = key() if isinstance(key, weakref.ref) else key
        with self._mutex:
            account = self._account(pool) if pool is not None else self._unnamed
            self._change(account, connections)
        try:
            yield
        finally:
            with self._mutex:
                self._change(account, -connections)
                self._poke()

    # ---- what an operation over many pools calls

    @property
    def is_locked(self) -> bool:
        """Whether some thread, perhaps this one, is inside the budget's lock."""
        return self._mutex.locked()

    def acquire_all(self, pools: Sequence[Member], timeout_s: float) -> list[Any]:
        """Take one connection of each pool, reserving what that needs in one step.

        :return: the connections, in the order of ``pools``.
        :raises PoolExhaustedError: when that was not possible in time; nothing is held then.
        """
        if len({id(pool) for pool in pools}) != len(pools):
            raise ProgrammingError("an operation takes one connection of each pool, but a pool is named twice")
        connections = None if self.waiting else self._take_all_idle(pools)
        if connections is not None:
            return connections
        deadline = time.monotonic() + timeout_s
        operation = Operation()
        ticket = Ticket(pools, operation)
        try:
            self._queue_up(ticket, lambda: self._try_operation(ticket, operation), timeout_s)
            while operation.missing:
                pool = operation.missing[0]
                operation.taken[id(pool)] = pool.acquire(max(0.0, deadline - time.monotonic()))
                self._settle(operation, 1)
            return [operation.taken[id(pool)] for pool in pools]
        except BaseException:
            for pool in pools:
                if id(pool) in operation.taken:
                    pool.release(operation.taken[id(pool)])
            raise
        finally:
            self._settle(operation, len(operation.missing))
            if operation.collecting:
                with self._mutex:
                    operation.collecting = self._collecting = False
                    self._poke()

    def _take_all_idle(self, pools: Sequence[Any]) -> list[Any] | None:
        """Return an idle connection of each pool, or None holding nothing: the short way, which needs no permit."""
        taken: list[Any] = []
        try:
            for pool in pools:
                conn = pool.take_idle() if pool.idle_count else None
                if conn is None:
                    break
                taken.append(conn)
            if len(taken) == len(pools):
                return taken
        except BaseException:
            self._return(pools, taken)
            raise
        self._return(pools, taken)
        return None

    def _return(self, pools: Sequence[Any], connections: Sequence[Any]) -> None:
        for pool, conn in zip(pools, connections, strict=False):
            pool.release(conn)

    def release_all(self, pools: Sequence[Member], connections: Sequence[Any]) -> None:
        """Return the connections of ``acquire_all``; close idle ones if the operation had exceeded the cap."""
        error: BaseException | None = None
        for pool, conn in zip(pools, connections, strict=True):
            try:
                pool.release(conn)
            except Exception as problem:
                error = error or problem
        while self._charged > self.limit and self._evict_one(None):
            pass
        if error is not None:
            raise error

    def report(self) -> BudgetReport:
        """Return the figures of this moment."""
        with self._mutex:
            self._bury()
            return BudgetReport(
                limit=self.limit,
                open=self._open,
                charged=self._charged,
                reserved=self._reserved,
                waiting=len(self._queue),
                peak_open=self._peak_open,
                peak_charged=self._peak_charged,
                evictions=self._evictions,
                timeouts=self._timeouts,
            )

    def reset_after_fork(self, pool: Member) -> None:
        """In a forked child, for each pool: forget the threads that waited and what the pool had open."""
        self._mutex = threading.Lock()
        self._queue.clear()
        self.waiting = 0
        self._collecting = False
        account = self._account(pool)
        self._change(account, -account.open)
        self._reserved -= account.reserved
        account.reserved = account.pending = 0

    # ---- accounts; the mutex is held

    def _account(self, pool: Any) -> Account:
        if self._dead:
            self._bury()
        account = self._accounts.get(id(pool))
        if account is None:
            self._numbers += 1
            account = self._accounts[id(pool)] = Account(pool, self._numbers, self._dead)
        return account

    def _bury(self) -> None:
        """Strike the accounts of pools that were garbage-collected."""
        while self._dead:
            key = self._dead.popleft()
            account = self._accounts.get(key)
            if account is not None and account.pool() is None:
                self._change(account, -account.open)
                del self._accounts[key]

    def _change(self, account: Account, by: int) -> None:
        before = account.charge
        account.open = max(0, account.open + by)
        account.peak = max(account.peak, account.open) if account.open else 0
        self._open += by
        self._charged += account.charge - before
        self._peak_open = max(self._peak_open, self._open)
        self._peak_charged = max(self._peak_charged, self._charged)

    def _grant(self, account: Account) -> None:
        if account.reserved:
            self._reserve(account, -1)
        self._change(account, +1)

    def _reserve(self, account: Account, by: int) -> None:
        account.reserved += by
        self._reserved += by
        if by > 0:  # those who wait for a permit of this pool may use it, wherever they stand
            pool = account.pool()
            for ticket in self._queue:
                if ticket.operation is None and ticket.pools[0] is pool:
                    ticket.wake.set()

    def _fits(self, account: Account) -> bool:
        return self._charged + self._reserved + account.charge_of_next <= self.limit

    def _poke(self) -> None:
        """Wake the head of the queue: it looks whether it can go on."""
        if self._queue:
            head = self._queue[0]
            head.at_head_since = head.at_head_since or time.monotonic()
            head.wake.set()

    # ---- waiting

    def _queue_up(self, ticket: Ticket, attempt: Callable[[], bool], timeout_s: float) -> None:
        """Queue until an attempt succeeds. The attempt leaves the queue in the same step in which it takes."""
        started = time.monotonic()
        with self._mutex:
            self._queue.append(ticket)
            self.waiting = len(self._queue)
            self._poke()
        try:
            while True:
                ticket.wake.clear()
                if ticket.cancelled:
                    raise PoolClosedError("the pool was closed while a permit for a connection was waited for")
                if attempt():
                    return
                if self._queue[0] is ticket and self._evict_one(ticket):
                    continue
                left_s = started + timeout_s - time.monotonic()
                if left_s <= 0:
                    break
                ticket.wake.wait(min(left_s, GRACE_S) if ticket.operation is not None else left_s)
        finally:
            self._leave(ticket)
        with self._mutex:
            self._timeouts += 1
        raise self._exhausted(ticket, time.monotonic() - started)

    def _leave(self, ticket: Ticket) -> None:
        with self._mutex:
            self._strike(ticket)
            self._poke()

    def _strike(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue. The mutex is held."""
        if ticket in self._queue:
            self._queue.remove(ticket)
            self.waiting = len(self._queue)

    def _try_single(self, ticket: Ticket) -> bool:
        with self._mutex:
            account = self._account(ticket.pools[0])
            if account.reserved or (self._queue[0] is ticket and self._fits(account)):
                self._grant(account)
                ticket.granted = True
                self._strike(ticket)
                return True
            return False

    def _try_operation(self, ticket: Ticket, operation: Operation) -> bool:
        """Begin to collect if that is possible now: take the idle connections, reserve the others."""
        pools = ticket.pools
        with self._mutex:
            if not self._may_collect(ticket, sum(not pool.idle_count for pool in pools)):
                return False
        for pool in pools:
            conn = pool.take_idle()
            if conn is not None:
                operation.taken[id(pool)] = conn
        missing = [pool for pool in pools if id(pool) not in operation.taken]
        with self._mutex:
            if self._may_collect(ticket, len(missing)):
                self._strike(ticket)
                operation.collecting = self._collecting = True
                operation.missing = sorted(missing, key=lambda pool: self._account(pool).number)
                for pool in missing:
                    account = self._account(pool)
                    account.pending += 1
                    self._reserve(account, +1)
                return True
        for pool in pools:  # others were quicker: give all back and look again
            if id(pool) in operation.taken:
                pool.release(operation.taken.pop(id(pool)))
        ticket.wake.set()
        return False

    def _may_collect(self, ticket: Ticket, needed: int) -> bool:
        """Tell whether the operation at the head can begin, if it has to open ``needed`` connections."""
        if self._queue[0] is not ticket or self._collecting:
            return False
        if self._charged + self._reserved + needed <= self.limit:
            return True
        if len(ticket.pools) <= self.limit or self._charged > self.limit:
            return False
        if time.monotonic() - ticket.at_head_since >= GRACE_S:
            return True
        own = {id(pool): pool for pool in ticket.pools}
        return all(
            not account.open or (key in own and account.open <= own[key].idle_count)
            for key, account in self._accounts.items()
        )

    def _settle(self, operation: Operation, count: int) -> None:
        """Give up the reservations in the first ``count`` of the missing pools; they may have been used."""
        if not count:
            return
        with self._mutex:
            for pool in operation.missing[:count]:
                account = self._account(pool)
                account.pending -= 1
                if account.reserved > account.pending:
                    self._reserve(account, -1)
            del operation.missing[:count]
            self._poke()

    def _evict_one(self, ticket: Ticket | None) -> bool:
        """Close one idle connection that costs a permit, the least missed; tell whether one was closed.

        An operation keeps one idle connection in each of its own pools, since it is about to take it.
        """
        now = time.monotonic()
        own = {id(pool) for pool in ticket.pools} if ticket is not None and ticket.operation is not None else set()
        with self._mutex:
            accounts = list(self._accounts.items())
        candidates = []
        for key, account in accounts:
            pool = account.pool()
            if pool is None or not account.open:
                continue
            if pool.idle_count > (1 if key in own and account.charge == account.open else 0):
                recent = now - pool.last_used < RECENT_S
                candidates.append((recent, not account.has_spare, pool.last_used, account.number, pool))
        for *_, pool in sorted(candidates, key=lambda each: each[:4]):
            if pool.close_idle():
                with self._mutex:
                    self._evictions += 1
                return True
        return False

    def _exhausted(self, ticket: Ticket, waited_s: float) -> PoolExhaustedError:
        with self._mutex:
            used = [account for account in self._accounts.values() if account.open]
            text = f"{self._open} connections to {len(used)} files are open, {self._reserved} more reserved"
            waiting = len(self._queue)
        what = (
            f"one more connection to {getattr(ticket.pools[0], 'path', ticket.pools[0])}"
            if ticket.operation is None
            else f"an operation over {len(ticket.pools)} files"
        )
        return PoolExhaustedError(
            f"the cap of {self.limit} open connections over all pools left no room for {what} within {waited_s:.2f} s: "
            f"{text}, {waiting} more waiting. Return connections sooner, or raise the cap (each connection takes "
            f"{DESCRIPTORS_PER_CONNECTION} file descriptors)"
        )


__all__ = ["DESCRIPTORS_PER_CONNECTION", "BudgetReport", "ConnectionBudget", "Member", "default_limit"]
