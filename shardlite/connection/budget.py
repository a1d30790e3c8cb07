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
   somebody queues wakes the head. Connections that busy threads pass on among themselves are never seen idle: so once
   the head has waited for ``GRACE_S``, whoever returns a connection closes it for the head (``offer``).
3. An operation over many pools (``acquire_all``) gets what it needs in one step: while it queues it holds nothing. At
   the head of the queue, when no other operation is *collecting*, it begins to collect as soon as there is a permit
   for each of its pools that has no idle connection to give. It takes the idle ones at once, holds a *reservation* in
   each of the other pools, and takes their connections one by one, in the order in which the pools joined.
4. A reservation belongs to the pool: the first of those who wait for a permit of that pool uses it, whatever the place
   in the queue, or a newcomer when nobody waits there. If the operation then finds it used, the pool is *in debt* to
   it: a connection of that pool which is returned goes to the first who waits for a permit of the pool, and one that
   is closed becomes the reservation again. The head of the queue leaves it alone.
5. Who waits for a permit of a pool takes a connection of the pool instead when one is returned: it is handed over, or
   was returned just before the waiting began and is found idle.
6. An operation that needs more than the cap begins when no other such operation has connections, all others together
   have at most as many as the cap allows, and none of them is in use; or, if the latter doesn't come about within
   ``GRACE_S``, without it (its own thread may be the user). What is too much is closed when it returns its
   connections, unless the next in the queue is such an operation too: it takes them as they are.

Who waits for what, and who wakes whom
--------------------------------------
=======================================================  ==============================================================
waits                                                    is woken by
=======================================================  ==============================================================
(a) for a single permit, with a place in one pool p       a connection of p that is returned (handed over, or "look
    (a ticket in the budget's queue)                      again"); a reservation made in p; the end of the waiting of
                                                          another ticket of p, if a reservation is left; p's closing
(a') the same at the head of the queue                    also: any permit given back, any connection that becomes
                                                          idle, the end of a collection
(b) as an operation (a ticket), holding nothing           at the head: as (a'), and every ``GRACE_S``
(c) in the queue of pool p, collecting; there is one      a connection or a place of p, in FIFO order
(d) in the queue of pool p, for a single connection,      as (c)
    holding nothing
=======================================================  ==============================================================

Who begins to wait is in the queue first and looks second; who returns something puts it there first and looks at
``pressed`` second. So one of them sees the other. A ticket's event is cleared before each look. Who leaves the queue,
in whatever way, wakes the next head.

No deadlock
-----------
Invariants, at every moment at which the mutex is free:

I1. reserved <= pending in each account, and pending > 0 only for the pools that the one collecting operation lacks.
I2. pending > reserved in p only while another has the connection that was opened with the reservation, or is opening
    it, or it lies idle.
I3. While nobody collects nothing is reserved.

Suppose that some threads wait for each other for ever and nobody else holds anything, so nothing is in use but by
them; those of (a), (b) and (d) have no connection. If one of them is collecting it waits for pool p: as (c), then the
places of p belong to threads of kind (a); or with a place, as (a). In both cases somebody waits for a permit of p. If
p is not in debt there is a reservation, and the first of them uses it (rule 4). If it is, by I2 a connection of p lies
idle, and those who wait for p's permits have been woken since and take it (rule 5). So nobody is collecting. Then
nothing is reserved (I3), and every permit belongs to an idle connection: a head of kind (a') or an operation within
the cap closes all that it needs closed and goes on; an operation beyond the cap finds at most one idle connection in
each of its pools and none elsewhere, which rule 6 allows. A contradiction in all cases.

No starvation: the head waits until those who have connections return enough of them, ``GRACE_S`` at most in vain
(rule 2), and everybody becomes the head. A collecting operation waits in FIFO order for at most the users of one pool
at a time: those with a ticket before its own, and each of them is served by the next connection returned.

Not covered: an application that keeps connections while it asks for more, one by one. It gets a time-out that names
the numbers.

Exceptions to the cap, counted in ``BudgetReport.peak_open``: rule 6, and the two connections that a checkpoint opens
for a moment (``overdraw``).

What a permit covers is told in ``budget_parts.py``.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from shardlite.connection.budget_accounts import GRACE_S, BudgetAccounts
from shardlite.connection.budget_parts import (
    DESCRIPTORS_PER_CONNECTION,
    BudgetReport,
    Fate,
    Held,
    Member,
    Operation,
    Ticket,
    default_limit,
)
from shardlite.errors import PoolClosedError, PoolExhaustedError, ProgrammingError

RECENT_S = 1.0


class ConnectionBudget(BudgetAccounts):
    """The permits that the pools of one manager share. Thread-safe.

    :param limit: how many connections may be open over all pools; None: as many as the process's descriptors allow.
    """

    # ---- what a pool calls (see also ``BudgetAccounts``)

    def acquire(
        self, pool: Member, timeout_s: float, holder: object = None, take: Callable[[], Any] | None = None
    ) -> Any:
        """Take a permit to open one connection, waiting in FIFO order. Call it without holding the pool's lock.

        :param holder: what a connection that is handed over gets as its ``holder``.
        :param take: takes an idle connection of the pool, if there is one; without it none is taken or handed over.
        :return: None with the permit; or, without one, what ``take`` gave or a connection that was handed over.
        :raises PoolExhaustedError: when none became free in time.
        """
        with self._mutex:
            account = self._account(pool)
            if self._may_open(account, None):
                self._grant(account)
                return None
        ticket = Ticket((pool,), None, holder, take)
        try:
            self._queue_up(ticket, lambda: self._try_single(ticket), timeout_s)
        except BaseException:
            if ticket.granted:  # interrupted on the way back
                self.release(pool)
            if ticket.given is not None:
                pool.put_back(ticket.given)
            raise
        return ticket.given

    def release(self, pool: Member) -> None:
        """Give a permit back after a connection was closed (or could not be opened)."""
        with self._mutex:
            account = self._account(pool)
            self._change(account, -1)
            if account.pending > account.reserved:
                self._reserve(account, +1)
            self._poke()

    def offer(self, pool: Member, conn: Any) -> Fate:
        """Say what becomes of a connection that is being returned and has no holder; it may be handed over.

        Call it when ``pressed``, without the pool's lock.
        """
        with self._mutex:
            account = self._account(pool)
            head = self._queue[0] if self._queue else None
            in_debt = account.pending > account.reserved
            if head is None:
                return Fate.CLOSE if self._charged > self.limit and not self._is_exceeding() else Fate.IDLE
            ticket = next((each for each in self._queue if each.accepts(pool)), None)
            if not in_debt and ticket is not head and self._is_overdue(head):
                head.helped = head.operation is None
                return Fate.CLOSE
            if ticket is None:
                return Fate.IDLE
            conn.holder = ticket.holder
            ticket.given = conn
            self._strike(ticket)
            ticket.wake.set()
            self._poke()
            return Fate.HANDED_OVER

    def note_idle(self, pool: Member) -> None:
        """Note that a connection became idle. Call it when ``pressed``, after the connection can be found."""
        with self._mutex:
            for ticket in self._queue:
                if ticket.is_for(pool):
                    ticket.wake.set()
            self._poke()

    def cancel(self, pool: Member) -> None:
        """End the waiting of those who want to open a connection of ``pool``: it is closed."""
        with self._mutex:
            for ticket in self._queue:
                if pool in ticket.pools:
                    ticket.cancelled = True
                    ticket.wake.set()

    # ---- what an operation over many pools calls

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
        operation = Operation(len(pools) > self.limit)
        ticket = Ticket(pools, operation)
        try:
            self._queue_up(ticket, lambda: self._try_operation(ticket, operation), timeout_s)
            while operation.missing:
                pool = operation.missing[0]
                operation.taken[id(pool)] = pool.acquire(max(0.0, deadline - time.monotonic()))
                self._settle(operation, 1)
            connections = self._hold(pools, [operation.taken[id(pool)] for pool in pools])
        except BaseException:
            for pool in pools:
                if id(pool) in operation.taken:
                    pool.release(operation.taken[id(pool)])
            self._end_collecting(operation)
            self._trim()
            raise
        self._end_collecting(operation)
        return connections

    def _end_collecting(self, operation: Operation) -> None:
        self._settle(operation, len(operation.missing))
        with self._mutex:
            if self._collector is operation:
                self._collector = None
            self._refresh()
            self._poke()

    def _hold(self, pools: Sequence[Any], connections: list[Any]) -> list[Any]:
        """Return the connections of an operation, noted if it is beyond the cap."""
        if len(pools) <= self.limit:
            return connections
        held = Held(connections)
        with self._mutex:
            self._wide.append(weakref.ref(held))
            self._refresh()
        return held

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
                return self._hold(pools, taken)
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
        with self._mutex:
            self._wide = [ref for ref in self._wide if ref() is not connections]
            self._refresh()
        self._trim()
        if error is not None:
            raise error

    def _trim(self) -> None:
        """Close idle connections until the cap is kept, unless who comes next needs all of them."""
        while self._charged > self.limit:
            with self._mutex:
                if self._is_exceeding() or (self._queue and self._queue[0].is_wide):
                    return
            if not self._evict_one(None):
                return

    # ---- waiting

    def _queue_up(self, ticket: Ticket, attempt: Callable[[], bool], timeout_s: float) -> None:
        """Queue until an attempt succeeds. The attempt leaves the queue in the same step in which it takes."""
        started = time.monotonic()
        with self._mutex:
            self._queue.append(ticket)
            self.waiting = len(self._queue)
            self._refresh()
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
            self._refresh()
            if ticket.operation is None:
                account = self._account(ticket.pools[0])
                if account.reserved:
                    self._wake_first_of(account)

    def _try_single(self, ticket: Ticket) -> bool:
        account = self._account_of(ticket.pools[0])
        with self._mutex:
            if ticket.given is not None:
                return True
            ticket.accepting = False
        idle = ticket.take() if ticket.take is not None else None
        with self._mutex:
            ticket.accepting = ticket.holder is not None
            ticket.given = idle
            if idle is None:
                ticket.helped = False
                if not self._may_open(account, ticket):
                    return False
                self._grant(account)
                ticket.granted = True
            self._strike(ticket)
            return True

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
                self._collector = operation
                operation.missing = sorted(missing, key=lambda pool: self._account(pool).number)
                for pool in missing:
                    account = self._account(pool)
                    account.pending += 1
                    self._reserve(account, +1)
                self._refresh()
                return True
        for pool in pools:  # others were quicker: give all back and look again
            if id(pool) in operation.taken:
                pool.release(operation.taken.pop(id(pool)))
        ticket.wake.set()
        return False

    def _may_collect(self, ticket: Ticket, needed: int) -> bool:
        """Tell whether the operation at the head can begin, if it has to open ``needed`` connections."""
        if self._queue[0] is not ticket or self._collector is not None or not self._has_room(ticket, needed):
            return False
        if not ticket.is_wide or time.monotonic() - ticket.at_head_since >= GRACE_S:
            return True
        taken = ticket.operation.taken if ticket.operation is not None else {}
        own = {id(pool): pool.idle_count + (id(pool) in taken) for pool in ticket.pools}
        return all(account.open <= own.get(key, 0) for key, account in self._accounts.items())

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
            kept = 1 if key in own and account.charge == account.open else 0
            if pool.idle_count > max(kept, account.pending - account.reserved):
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


__all__ = ["DESCRIPTORS_PER_CONNECTION", "BudgetReport", "ConnectionBudget", "Fate", "Member", "default_limit"]
