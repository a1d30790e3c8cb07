"""One connection per thread and file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardlite.connection import close_connection, close_connections, get_connection
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import PoolClosedError, ProgrammingError


def in_thread(work: Callable[[], Any]) -> Any:
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(work()))
    thread.start()
    thread.join(20)
    return out[0]


def test_same_thread_same_connection(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    conn = get_connection(path)
    assert isinstance(conn, sqlite3.Connection)
    assert conn.row_factory is sqlite3.Row
    assert get_connection(str(path)) is conn
    assert get_connection(tmp_path / "b.db") is not conn
    assert conn.fetch_row("PRAGMA foreign_keys") == (1,)
    assert conn.fetch_row("PRAGMA busy_timeout") == (30000,)
    close_connections()
    assert sorted(os.listdir(tmp_path)) == ["a.db", "b.db"]
    with pytest.raises(PoolClosedError):
        conn.execute("SELECT 1")


def test_each_thread_has_its_own_and_its_end_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    theirs: list[Connection] = []

    def work() -> bool:
        theirs.append(get_connection(path))
        theirs[0].execute("CREATE TABLE t (x)")
        theirs[0].execute("INSERT INTO t VALUES (1)")
        return os.path.exists(f"{path}-wal")

    assert in_thread(work)
    assert not os.path.exists(f"{path}-wal")
    with pytest.raises(PoolClosedError, match="ended"):
        theirs[0].execute("SELECT 1")
    conn = get_connection(path)
    assert conn.fetch_row("SELECT count(*) FROM t") == (0,)
    assert close_connection(path)
    assert not close_connection(path)


def test_close_one_of_several(tmp_path: Path) -> None:
    first, second = get_connection(tmp_path / "a.db"), get_connection(tmp_path / "b.db")
    close_connection(tmp_path / "a.db")
    assert second.execute("SELECT 1").fetchone()[0] == 1
    assert get_connection(tmp_path / "a.db") is not first
    close_connections()


def test_close_connections_leaves_other_threads_alone_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ready, go_on = threading.Event(), threading.Event()
    alive: list[bool] = []

    def work() -> None:
        conn = get_connection(path)
        for _ in range(2):
            ready.set()
            go_on.wait(20)
            go_on.clear()
            try:
                conn.execute("SELECT 1")
                alive.append(True)
            except PoolClosedError:
                alive.append(False)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(20)
    ready.clear()
    close_connections()
    go_on.set()
    assert ready.wait(20)
    close_connections(all_threads=True)
    go_on.set()
    thread.join(20)
    assert alive == [True, False]


def test_closed_by_its_user_or_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    first = get_connection(path)
    first.close()
    second = get_connection(path)
    assert second is not first
    second.execute("CREATE TABLE t (x)")
    for name in os.listdir(tmp_path):
        os.rename(tmp_path / name, tmp_path / f"gone-{name}")
    third = get_connection(path)
    assert third.fetch_row("SELECT count(*) FROM sqlite_schema") == (0,)
    close_connections()


def test_memory_is_refused() -> None:
    with pytest.raises(ProgrammingError, match="needs a file"):
        get_connection(":memory:")


def test_long_use_keeps_the_log_short(tmp_path: Path) -> None:
    """Nobody returns such a connection, so its commits alone must lead to checkpoints."""
    path = tmp_path / "a.db"
    conn = get_connection(path)
    conn.execute("PRAGMA synchronous = OFF")
    conn.execute("CREATE TABLE t (x)")
    biggest = 0
    for _ in range(300):
        conn.execute("INSERT INTO t VALUES (zeroblob(200000))")
        conn.commit()
        conn.execute("DELETE FROM t")
        conn.commit()
        biggest = max(biggest, os.stat(f"{path}-wal").st_size)
    close_connections()
    assert biggest < 40_000_000
