"""Connections to single SQLite files: the pool, one connection per thread, how a connection is opened."""

from __future__ import annotations

from shardlite.connection.connection import Connection, Cursor
from shardlite.connection.opening import ConnectionSettings, open_connection
from shardlite.connection.per_thread import close_connection, close_connections, get_connection
from shardlite.connection.pool import ConnectionContext, ConnectionPool, get_db_connection
from shardlite.connection.statistics import PoolStatistics
from shardlite.errors import PoolClosedError, PoolExhaustedError, WalResetBugWarning

__all__ = [
    "Connection",
    "ConnectionContext",
    "ConnectionPool",
    "ConnectionSettings",
    "Cursor",
    "PoolClosedError",
    "PoolExhaustedError",
    "PoolStatistics",
    "WalResetBugWarning",
    "close_connection",
    "close_connections",
    "get_connection",
    "get_db_connection",
    "open_connection",
]
