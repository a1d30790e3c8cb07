"""One logical SQLite database over many SQLite files."""

from __future__ import annotations

from typing import NoReturn

try:
    from shardlite.api import (
        aggregate,
        apply_schema,
        count,
        create_aggregate,
        create_collation,
        create_function,
        create_table,
        create_window_function,
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
except ImportError as error:
    if error.name != "shardlite.driver":
        raise
    # Said by the first name that is asked for, so that the command line can say it too, in one line.
    _problem = str(error)

    def __getattr__(name: str) -> NoReturn:
        if name in __all__:
            raise ImportError(_problem, name="shardlite.driver")
        raise AttributeError(f"module 'shardlite' has no attribute {name!r}")


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
    "create_aggregate",
    "create_collation",
    "create_function",
    "create_table",
    "create_window_function",
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
