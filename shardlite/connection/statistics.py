"""What a pool counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """The state and the counters of a pool.

    Exact, however many threads use the pool. Connections also change hands without its lock, so while some do, the
    figures of one answer may be apart by these: ``active_connections + idle_connections`` may be less than
    ``pool_size``, but never more, and ``total_released`` is never more than ``total_acquired``.

    ``created_at`` is seconds since 1970. Counters count from the making of the pool and are never reset.
    """

    active_connections: int
    """Handed out now, or inside a single statement of the manager."""
    idle_connections: int
    """Open and ready."""
    pool_size: int
    """Open, being opened or being closed: never more than ``max_connections``."""
    max_connections: int
    min_connections: int
    waiting_threads: int
    total_acquired: int
    total_released: int
    total_timeouts: int
    """Requests that raised PoolExhaustedError."""
    pool_hits: int
    """Requests served by a connection that was open already."""
    pool_misses: int
    """Requests for which a connection had to be opened."""
    connections_reused: int
    """The same as ``pool_hits``, under its other name."""
    total_connections_created: int
    connections_closed: int
    connections_failed: int
    """Attempts to open that failed."""
    connections_reclaimed: int
    """Taken back from threads that ended, or lost by whoever had them."""
    total_wait_s: float
    """Seconds that requests have waited, together."""
    closed: bool
    created_at: float

    def as_dict(self) -> dict[str, int | float | bool]:
        """Return the same as a plain dict."""
        return asdict(self)


__all__ = ["PoolStatistics"]
