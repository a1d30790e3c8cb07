"""What the pools of a budget have open, reserve and wait for: the sums, and who is woken when they change.

The rules are told in ``budget.py``.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from shardlite.connection.budget_parts import (
    Account,
    BudgetReport,
    Held,
    Member,
    Operation,
    Ticket,
    default_limit,
)
from shardlite.errors import ProgrammingError

GRACE_S: Final = 0.05
"""For how long the head of the queue waits for what comes by itself."""


class BudgetAccounts:
    """The state of a budget. What begins with an underscore is called with the mutex held."""

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = default_limit()
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ProgrammingError(f"the cap on open connections must be an int of 1 or more, not {limit!r}")
        self.limit = limit
        self.waiting = 0
        """How many are queued."""
        self.pressed = False
        """Whether a returned connection has to be offered: somebody queues, or too many are open. Pools look here."""
        self._mutex = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._accounts: dict[int, Account] = {}
        self._dead: deque[int] = deque()
        self._numbers = 0
        self._unnamed = Account(self, 0, deque())
        self._charged = self._open = self._reserved = 0
        self._collector: Operation | None = None
        self._wide: list[weakref.ref[Held]] = []
        """What operations beyond the cap have; weakly, so that one that is lost counts no longer."""
        self._peak_open = self._peak_charged = self._evictions = self._timeouts = 0

    def join(self, pool: Member) -> None:
        """Make a pool known; the order of joining is the order in which operations take connections."""
        with self._mutex:
            self._account(pool)

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

    @property
    def is_locked(self) -> bool:
        """Whether some thread, perhaps this one, is inside the budget's lock."""
        return self._mutex.locked()

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
        self._collector = None
        self._wide = []
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

    def _account_of(self, pool: Any) -> Account:
        with self._mutex:
            return self._account(pool)

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
        self._refresh()

    def _refresh(self) -> None:
        self.pressed = bool(self._queue) or (self._charged > self.limit and not self._is_exceeding())

    def _is_exceeding(self) -> bool:
        """Tell whether an operation beyond the cap has its connections, or is collecting them."""
        if self._wide:
            self._wide = [ref for ref in self._wide if ref() is not None]
        return bool(self._wide) or (self._collector is not None and self._collector.is_wide)

    def _grant(self, account: Account) -> None:
        if account.reserved:
            self._reserve(account, -1)
        self._change(account, +1)

    def _reserve(self, account: Account, by: int) -> None:
        account.reserved += by
        self._reserved += by
        if by > 0:
            self._wake_first_of(account)

    def _wake_first_of(self, account: Account) -> None:
        """Wake the first who may use a reservation, wherever it stands."""
        ticket = self._first_of(account)
        if ticket is not None:
            ticket.wake.set()

    def _first_of(self, account: Account) -> Ticket | None:
        pool = account.pool()
        return next((ticket for ticket in self._queue if ticket.is_for(pool)), None)

    def _may_open(self, account: Account, ticket: Ticket | None) -> bool:
        """Tell whether one may open a connection now: a newcomer (None) or who has that ticket."""
        if account.reserved and self._first_of(account) is ticket:
            return True
        return (self._queue[0] if self._queue else None) is ticket and self._fits(account)

    def _fits(self, account: Account) -> bool:
        return self._charged + self._reserved + account.charge_of_next <= self.limit

    def _is_overdue(self, head: Ticket) -> bool:
        """Tell whether the head has waited for long enough and a returned connection should be closed for it."""
        if time.monotonic() - head.at_head_since < GRACE_S or self._is_exceeding():
            return False
        if head.operation is None:
            return not (head.helped or self._fits(self._account(head.pools[0])))
        return self._collector is None and not self._has_room(head, sum(not pool.idle_count for pool in head.pools))

    def _has_room(self, ticket: Ticket, needed: int) -> bool:
        """Tell whether an operation may open as many connections; one beyond the cap may once nobody else is beyond."""
        beyond = len(ticket.pools) if ticket.is_wide else 0
        return self._charged + self._reserved + needed <= self.limit + beyond

    def _poke(self) -> None:
        """Wake the head of the queue: it looks whether it can go on."""
        if self._queue:
            head = self._queue[0]
            head.at_head_since = head.at_head_since or time.monotonic()
            head.wake.set()


__all__ = ["GRACE_S", "BudgetAccounts"]
