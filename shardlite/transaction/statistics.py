"""What transactions count."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionStatistics:
    """Counters of one open database in this process, from its opening on; never reset."""

    one_shard_commits: int = 0
    multi_shard_commits: int = 0
    """Transactions over several shards that were decided."""
    log_batches: int = 0
    """Writes to the commit log; each holds the records of all that queued."""
    log_records: int = 0
    """Records written, copies among them."""
    log_copies: int = 0
    """Records written again: by a settler, or after a failed sync."""
    log_syncs: int = 0
    log_failures: int = 0
    """Log files that were given up after a failed write or sync."""
    log_bytes: int = 0
    """Bytes of records written."""
    log_files_created: int = 0
    log_files_retired: int = 0
    shard_syncs: int = 0
    base_syncs: int = 0
    """Syncs of a shard that a transaction over several shards had to wait for before its record."""
    serialization_retries: int = 0
    busy_retries: int = 0
    settles_applied: int = 0
    settles_none: int = 0
    in_doubt: int = 0
    """Transactions whose fate was told to nobody yet."""
    pins: int = 0
    pin_tries: int = 0
    oldest_snapshot_s: float = 0.0
    """Seconds."""

    @property
    def commits_per_log_sync(self) -> float:
        """Decided transactions for each sync of a commit log; 0.0 before the first."""
        return self.multi_shard_commits / self.log_syncs if self.log_syncs else 0.0

    def as_dict(self) -> dict[str, int | float]:
        """Return the same as a plain dict, with ``commits_per_log_sync``."""
        return {**asdict(self), "commits_per_log_sync": self.commits_per_log_sync}


_NAMES = frozenset(field.name for field in fields(TransactionStatistics)) - {"in_doubt", "oldest_snapshot_s"}


class TransactionCounters:
    """Where the statistics are gathered. Safe for threads; its lock is a leaf."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, **counts: int) -> None:
        """Add to the counters of these names, which are those of TransactionStatistics."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

    def statistics(self, *, in_doubt: int = 0, oldest_snapshot_s: float = 0.0) -> TransactionStatistics:
        """Return the counters of one instant, with what isn't counted but measured put in."""
        with self._lock:
            counts = {name: count for name, count in self._counts.items() if name in _NAMES}
        return TransactionStatistics(**counts, in_doubt=in_doubt, oldest_snapshot_s=oldest_snapshot_s)

    def reset_after_fork(self) -> None:
        """In a forked child: begin at zero, with a lock that nobody holds."""
        self._lock = threading.Lock()
        self._counts = {}


__all__ = ["TransactionCounters", "TransactionStatistics"]
