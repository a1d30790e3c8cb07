"""Closing while another thread is inside SQLite: each round in a process of its own, since the failure is a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading, time
from shardlite.connection import ConnectionPool, PoolClosedError
from shardlite.driver import sqlite3

directory, mode, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(rounds):
    path = os.path.join(directory, f"{mode}{number}.db")
    pool = ConnectionPool(path, isolation_level=None)
    conn = pool.get_connection()
    conn.execute("CREATE TABLE t (x)")
    conn.execute("BEGIN")
    conn.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1500)])
    conn.execute("COMMIT")
    outcome, inside = [], threading.Event()

    def work():
        try:
            while True:
                inside.set()
                if mode == "read":
                    conn.execute("SELECT count(*) FROM t a, t b WHERE a.x + b.x > 1").fetchone()
                elif mode == "fast":
                    conn.fetch_row("SELECT count(*) FROM t a, t b WHERE a.x + b.x > 1")
                elif mode == "iterate":
                    for row in conn.execute("SELECT a.x FROM t a, t b"):
                        pass
                else:
                    conn.execute("BEGIN IMMEDIATE")
                    conn.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(3000)))
                    conn.execute("COMMIT")
        except (PoolClosedError, sqlite3.OperationalError) as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    time.sleep(number * 0.002)
    pool.close_all()
    thread.join(20)
    assert not thread.is_alive(), "the user of the connection hangs"
    assert len(outcome) == 1, outcome
    left = [name for name in os.listdir(directory) if name.endswith(("-wal", "-shm"))]
    assert not left, left
    if os.path.isdir("/proc/self/fd"):
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                 and os.path.exists(f"/proc/self/fd/{fd}")]
        assert not [name for name in names if name.startswith(directory)], names
    try:
        conn.execute("SELECT 1")
        raise SystemExit("a closed connection works")
    except PoolClosedError:
        pass
    pool.return_connection(conn)
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert check.execute("SELECT count(*) FROM t").fetchone()[0] % 1500 == 0
    check.close()
print("sound")
"""


@pytest.mark.parametrize("mode", ["read", "write", "iterate", "fast"])
def test_close_all_while_a_thread_is_inside(tmp_path: Path, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), mode, "25"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "sound"), done.stderr


def test_a_plain_close_crashes_or_misbehaves_where_ours_does_not() -> None:
    """The counting is what makes it safe: a connection that is inside a call isn't closed before the call has ended."""
    import threading

    from shardlite.connection.connection import Connection, end_connection
    from shardlite.driver import sqlite3

    conn = sqlite3.connect(":memory:", factory=Connection, check_same_thread=False)
    inside, leave = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        leave.wait(20)
        return 1

    conn.create_function("block", 0, block)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            conn.execute("SELECT block()").fetchall()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    assert end_connection(conn, "the test ends it", 0.05) is False
    assert conn.in_use
    leave.set()
    thread.join(20)
    for other in threading.enumerate():
        if other.name.startswith("closing"):
            other.join(20)
    assert not conn.in_use
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        sqlite3.Connection.commit(conn)
