"""A database of several shards with rows, and the proof that a statement left nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.execute import deadline

HeldFiles = Callable[[Path], list[str]]
ROWS = 8_000
SHARDS = 4


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[ShardManager]:
    """A table t of 8,000 rows on 4 shards, more than a shard answers at once."""
    with ShardManager(num_shards=SHARDS, db_dir=tmp_path / "db", durability="normal") as manager:
        manager.create_table("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)")
        manager.insert_many("t", ({"id": i, "a": i % 7, "b": f"{i * 7919 % ROWS:06d}"} for i in range(1, ROWS + 1)))
        yield manager


@pytest.fixture
def require_clean(filled: ShardManager) -> Callable[[], None]:
    """Return a function that fails unless all connections are back, as they were, and nothing is watched."""

    def check() -> None:
        for shard in range(filled.num_shards):
            pool = filled.pool(shard)
            assert pool.get_statistics().active_connections == 0, f"shard {shard}"
            taken = []
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(pool._idle.pop())
            pool._idle.extend(reversed(taken))
            for conn in taken:
                names = [row[1] for row in sqlite3.Cursor(conn).execute("PRAGMA database_list")]
                assert names == ["main"], f"shard {shard}"
                assert not conn.in_transaction, f"shard {shard}"
        assert deadline._deadlines == {}
        assert filled.execute("SELECT count(*) FROM t").scalar() == ROWS

    return check
