"""What a connection costs: the account of each pool in the budget, the default cap, the places in the budget's queue.

The rules are told in ``budget.py``.

Counting
--------
On Unix SQLite can't close the descriptor of a database file while another connection of the process has locks on
it, and in WAL mode each open connection has one. It keeps the descriptor for the next connection to the file. So a
pool that has had up to ``peak`` connections since it was last empty, and has ``n`` now, holds peak + n + 1
descriptors, and is charged max(n, (peak + n + 1) / 3) permits.

For a moment it may be a few more, which come out of ``RESERVED_DESCRIPTORS``: SQLite opens the *directory* to sync a
log or a journal that it has just made (a thread that is inside a commit, an opening or a closing has at most one of
these; SQLite goes on without that sync where it can't open it), temporary files of large sorts are SQLite's too, and
a look at the log's length opens the ``-wal`` (see ``checkpoint.py``).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

try:
    import resource
except ImportError:  # Windows has no such limit worth asking for
    resource = None  # type: ignore[assignment]  # stands for the module that isn't there

DESCRIPTORS_PER_CONNECTION = 3
RESERVED_DESCRIPTORS = 128
"""Left for everything else that a process opens, for the exceptions to the cap and for what is open for a moment."""
WITHOUT_LIMIT = 1000
"""The cap where the system has no limit, or a very large one."""


class Fate(Enum):
    """What becomes of a connection that is returned."""

    IDLE = "it may lie idle"
    HANDED_OVER = "somebody else has it"
    CLOSE = "its permit is needed: close it"


class Member(Protocol):
    """What the budget asks of a pool. None of it may wait, apart from ``acquire``."""

    @property
    def idle_count(self) -> int:
        """How many connections are open and not handed out."""

    @property
    def last_used(self) -> float:
        """When a connection was last handed out or returned (``time.monotonic``)."""

    def close_idle(self) -> bool:
        """Close one idle connection, and tell the budget; False when there is none."""

    def take_idle(self) -> Any:
        """Hand out an idle connection as ``acquire`` does, or return None."""

    def acquire(self, timeout: float | None = None) -> Any:
        """Hand out a connection."""

    def release(self, conn: Any) -> None:
        """Take a connection back."""

    def put_back(self, conn: Any) -> None:
        """Take back a connection that was handed over to somebody who can't use it."""


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """A budget's figures at one moment."""

    limit: int
    open: int
    """Connections open now."""
    charged: int
    """Permits that these cost."""
    reserved: int
    waiting: int
    peak_open: int
    peak_charged: int
    evictions: int
    """Idle connections closed to make room."""
    timeouts: int


def _charge(count: int, peak: int) -> int:
    """Return the permits that cover the descriptors of a pool (see "Counting" at the top)."""
    return max(count, -(-(peak + count + 1) // DESCRIPTORS_PER_CONNECTION)) if count else 0


class Account:
    """What one pool has."""

    __slots__ = ("number", "open", "peak", "pending", "pool", "reserved")

    def __init__(self, pool: Any, number: int, dead: deque[int]) -> None:
        key = id(pool)
        self.pool = weakref.ref(pool, lambda _: dead.append(key))
        self.number = number
        self.open = 0
        self.peak = 0
        self.reserved = 0
        """Permits set aside for admitted operations and not used yet."""
        self.pending = 0
        """Admitted operations that have no connection of this pool yet."""

    @property
    def charge(self) -> int:
        return _charge(self.open, self.peak)

    @property
    def has_spare(self) -> bool:
        """Whether closing one connection frees a permit and leaves another connection open."""
        return self.open > 1 and _charge(self.open - 1, self.peak) < self.charge

    @property
    def charge_of_next(self) -> int:
        """What one more connection would add."""
        return _charge(self.open + 1, max(self.peak, self.open + 1)) - self.charge


class Ticket:
    """A place in the queue: a single permit for the one pool in ``pools``, or an operation over all of them."""

    __slots__ = (
        "accepting",
        "at_head_since",
        "cancelled",
        "given",
        "granted",
        "helped",
        "holder",
        "operation",
        "pools",
        "take",
        "wake",
    )

    def __init__(
        self,
        pools: Sequence[Any],
        operation: Operation | None,
        holder: object = None,
        take: Callable[[], Any] | None = None,
    ) -> None:
        self.pools = pools
        self.operation = operation
        self.holder = holder
        self.take = take
        self.wake = threading.Event()
        self.at_head_since = 0.0
        self.accepting = False
        """Whether a connection may be handed over: not while it looks for one itself."""
        self.given: Any = None
        """A connection that it got instead of the permit."""
        self.granted = False
        self.cancelled = False
        self.helped = False
        """Whether somebody is closing a connection for it and it hasn't looked since."""

    @property
    def is_wide(self) -> bool:
        """Whether it is an operation beyond the cap."""
        return self.operation is not None and self.operation.is_wide

    def is_for(self, pool: object) -> bool:
        """Tell whether it waits for a single permit of that pool."""
        return self.operation is None and self.pools[0] is pool

    def accepts(self, pool: object) -> bool:
        """Tell whether a connection of that pool may be handed over to it."""
        return self.accepting and not self.cancelled and self.is_for(pool)


class Operation:
    """What an operation over many pools has so far."""

    __slots__ = ("is_wide", "missing", "taken")

    def __init__(self, is_wide: bool) -> None:
        self.is_wide = is_wide
        """Whether it needs more than the cap."""
        self.taken: dict[int, Any] = {}
        self.missing: list[Any] = []
        """Pools in which it has a reservation and no connection yet."""


class Held(list[Any]):
    """The connections of an operation; a class of its own, so that the list can be referred to weakly."""

    __slots__ = ("__weakref__",)


def default_limit() -> int:
    """Return how many connections this process's descriptors allow, at least 8."""
    if resource is None:
        return WITHOUT_LIMIT
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return WITHOUT_LIMIT
    reserved = min(RESERVED_DESCRIPTORS, soft // 2)
    return max(8, min(WITHOUT_LIMIT, (soft - reserved) // DESCRIPTORS_PER_CONNECTION))


__all__ = [
    "DESCRIPTORS_PER_CONNECTION",
    "Account",
    "BudgetReport",
    "Fate",
    "Held",
    "Member",
    "Operation",
    "Ticket",
    "default_limit",
]
