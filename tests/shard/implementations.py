"""The shards that the suite is run over. Another kind is one class here and one entry in ``IMPLEMENTATIONS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shardlite.connection import ConnectionPool
from shardlite.driver import sqlite3
from shardlite.shard import Shard, SqliteShard

SCHEMA = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v UNIQUE)",
    "CREATE TABLE meta (epoch INTEGER NOT NULL)",
    "INSERT INTO meta VALUES (1)",
)
SHARD_ID = 37


class Elsewhere(Protocol):
    """Somebody in another process who uses the same shard. Each statement is committed unless one is begun."""

    def execute(self, sql: str, params: Any = (), /) -> Any: ...
    def close(self) -> None: ...


class Implementation(Protocol):
    """Makes shards with ``SCHEMA`` and the number ``SHARD_ID``; all that one instance makes are the same shard."""

    def shard(self, sessions: int, timeout_s: float) -> Shard:
        """Return the shard with at most so many sessions at a time."""
        ...

    def elsewhere(self) -> Elsewhere: ...


class SqliteFile:
    """A file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "shard.db")

    def shard(self, sessions: int, timeout_s: float) -> SqliteShard:
        connection = self.elsewhere()
        connection.execute("PRAGMA journal_mode = wal")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.close()
        name = f"shard {SHARD_ID} ({self._path})"
        pool = ConnectionPool(
            self._path, sessions, timeout=timeout_s, isolation_level=None, create=False, name=name, durability="normal"
        )
        return SqliteShard(SHARD_ID, pool, timeout_s)

    def elsewhere(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, timeout=0, check_same_thread=False)


IMPLEMENTATIONS: dict[str, Callable[[Path], Implementation]] = {"sqlite": SqliteFile}
