"""Transactions over shards: the commit log, and what is built on it; ``DESIGN.md`` says how and why."""

from shardlite.transaction.commit_log import CommitLog, LogCatalog, LogShards, Staged
from shardlite.transaction.events import Event, emit, subscribe
from shardlite.transaction.statistics import TransactionStatistics

__all__ = [
    "CommitLog",
    "Event",
    "LogCatalog",
    "LogShards",
    "Staged",
    "TransactionStatistics",
    "emit",
    "subscribe",
]
