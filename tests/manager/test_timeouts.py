"""What a timeout may be: the same everywhere, a number of seconds from 0 on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import shardlite
from shardlite import ConnectionPool, ShardManager
from shardlite.config import MAX_TIMEOUT_S, ShardliteConfig, check_seconds
from shardlite.errors import OperationalError, ProgrammingError

Make = Callable[..., ShardManager]
WRONG = [-1, -0.001, math.nan, math.inf, -math.inf, True, False, "5", b"5", Decimal(5), 5j, [5], 10**30]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_what_is_no_timeout_is_refused_everywhere(make_manager: Make, tmp_path: Path, value: Any) -> None:
    manager = make_manager(num_shards=2)
    pool = manager.pool(0)
    calls: list[Callable[[], Any]] = [
        lambda: ShardliteConfig(connection_timeout=value),
        lambda: ShardManager(db_dir=tmp_path / "other", connection_timeout=value),
        lambda: manager.execute("SELECT 1", timeout=value),
        lambda: manager.shutdown(timeout=value),
        lambda: shardlite.shutdown(timeout=value),
        lambda: pool.get_connection(value),
        lambda: pool.acquire(value),
        lambda: pool.get_connection_context(value),
        lambda: pool.close_all(value),
        lambda: ConnectionPool(tmp_path / "x.db", timeout=value),
        lambda: ConnectionPool(tmp_path / "x.db", busy_timeout=value),
    ]
    for call in calls:
        with pytest.raises(ProgrammingError, match="timeout must be a number of seconds from 0 to"):
            call()
    assert manager.execute("SELECT 1").scalar() == 1  # nothing was closed
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 30, MAX_TIMEOUT_S])
def test_what_a_timeout_may_be(make_manager: Make, value: float) -> None:
    assert check_seconds("timeout", value) == value
    manager = make_manager(num_shards=2, connection_timeout=value)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    assert manager.insert("t", {"id": 1}) == 1
    assert manager.execute("SELECT id FROM t WHERE id = 1", timeout=value).scalar() == 1
    with manager.pool(0).get_connection_context(value) as conn:
        assert conn.execute("SELECT 1").fetchone()[0] == 1
    manager.shutdown(timeout=value)


def test_zero_does_not_wait(make_manager: Make) -> None:
    manager = make_manager(num_shards=1)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with manager.database.write_scope([0]):
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(OperationalError):
            manager.execute("INSERT INTO t VALUES (1)", timeout=0)
    finally:
        done.set()
        holder.join()
    assert manager.execute("INSERT INTO t VALUES (1)", timeout=0).rowcount == 1
