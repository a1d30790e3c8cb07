"""One logical SQLite database over many SQLite files."""

from __future__ import annotations

from shardlite.api import (
    aggregate,
    apply_schema,
    count,
    create_table,
    delete,
    execute,
    get,
    get_manager,
    initialize,
    insert,
    insert_many,
    select,
    shutdown,
    update,
    upsert,
)
from shardlite.config import ShardliteConfig
from shardlite.connection import ConnectionPool, PoolStatistics
from shardlite.manager import ShardManager
from shardlite.router import (
    DirectoryStrategy,
    HashStrategy,
    RangeStrategy,
    Router,
    ShardingStrategy,
)

__version__ = "0.1.0"

__all__ = [
    "ConnectionPool",
    "DirectoryStrategy",
    "HashStrategy",
    "PoolStatistics",
    "RangeStrategy",
    "Router",
    "ShardManager",
    "ShardingStrategy",
    "ShardliteConfig",
    "aggregate",
    "apply_schema",
    "count",
    "create_table",
    "delete",
    "execute",
    "get",
    "get_manager",
    "initialize",
    "insert",
    "insert_many",
    "select",
    "shutdown",
    "update",
    "upsert",
]
