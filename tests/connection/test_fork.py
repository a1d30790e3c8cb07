"""Fork: what a child may do with files that its parent has open. Each case in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

START = """
import os, sys, threading, time
from shardlite.connection import ConnectionPool, get_connection, close_connections
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, PoolClosedError

path = os.path.join(sys.argv[1], "s.db")
pool = ConnectionPool(path, isolation_level=None, durability="normal")

def wait_for(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"

def rows():
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    count = check.execute("SELECT count(*) FROM t").fetchone()[0]
    check.close()
    return count
"""


def run(tmp_path: Path, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["sound"]), done.stdout + done.stderr


def test_idle_connections_are_closed_in_the_child(tmp_path: Path) -> None:
    """The child writes while the parent closes its last connection: a child that only abandons its inherited
    connection, or goes on using it, loses all these rows."""
    run(
        tmp_path,
        """
with pool.get_connection_context() as conn:
    conn.execute("CREATE TABLE t (x)")
    conn.execute("INSERT INTO t VALUES (1)")
    inherited = conn
r1, w1 = os.pipe()
r2, w2 = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        inherited.execute("SELECT 1")
        os._exit(2)
    except PoolClosedError as error:
        assert "parent process" in str(error)
    with pool.get_connection_context() as conn:
        conn.execute("INSERT INTO t VALUES (2)")
        conn.execute("BEGIN")
        conn.execute("SELECT * FROM t").fetchall()
        conn.execute("COMMIT")
        os.write(w1, b"x")
        os.read(r2, 1)
        for number in range(100, 200):
            conn.execute("INSERT INTO t VALUES (?)", (number,))
    os._exit(0)
os.read(r1, 1)
pool.close_all()
os.write(w2, b"x")
assert wait_for(pid) == 0
assert rows() == 102, rows()
print("sound")
""",
    )


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("spill", [True, False])
def test_a_busy_connection_is_kept_and_its_file_refused(tmp_path: Path, leave: str, spill: bool) -> None:
    """Closing or finalising it in the child would write into the parent's transaction."""
    run(
        tmp_path,
        f"""
conn = pool.get_connection()
conn.execute("CREATE TABLE t (x, y)")
conn.execute("CREATE INDEX i ON t (y)")
if {spill}:
    conn.execute("PRAGMA cache_size = 10")
conn.execute("BEGIN IMMEDIATE")
conn.executemany("INSERT INTO t VALUES (?, ?)", [(i, os.urandom(100)) for i in range(3000)])
pid = os.fork()
if pid == 0:
    for attempt in (pool.get_connection, lambda: get_connection(path), lambda: ConnectionPool(path).get_connection()):
        try:
            attempt()
            os._exit(2)
        except OperationalError as error:
            assert "s.db" in str(error) and "transaction was open" in str(error), error
    try:
        conn.execute("INSERT INTO t VALUES (-1, 'child')")
        os._exit(3)
    except PoolClosedError:
        pass
    conn.close()
    other = ConnectionPool(path + "2")
    with other.get_connection_context() as mine:  # other files are not concerned
        mine.execute("CREATE TABLE t (x)")
    other.close_all()
    pool.close_all()
    del conn, pool
    {leave}
assert wait_for(pid) == 0
conn.executemany("INSERT INTO t VALUES (?, ?)", [(i, os.urandom(100)) for i in range(3000)])
conn.execute("COMMIT")
pool.return_connection(conn)
pool.close_all()
assert rows() == 6000, rows()
print("sound")
""",
    )


def test_open_cursor_counts_as_busy(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
conn = pool.get_connection()
conn.execute("CREATE TABLE t (x)")
conn.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
cursor = conn.execute("SELECT x FROM t")
cursor.fetchone()
pid = os.fork()
if pid == 0:
    try:
        pool.get_connection()
        os._exit(2)
    except OperationalError as error:
        assert "cursor was open" in str(error), error
    os._exit(0)
assert wait_for(pid) == 0
assert cursor.fetchone()[0] == 2
pool.close_all()
print("sound")
""",
    )


def test_fork_waits_until_threads_have_left_sqlite(tmp_path: Path) -> None:
    """A child forked while another thread is inside SQLite may hang for ever on a mutex that nobody will release."""
    run(
        tmp_path,
        """
from shardlite.connection import fork
fork.QUIET_WITHIN_S = 60  # however slow the machine is: what counts is that the fork waits
with pool.get_connection_context() as conn:
    conn.execute("CREATE TABLE t (x)")
stop = False
written = [0, 0]
failures = []

def work(number):
    mine = ConnectionPool(f"{path}{number}", isolation_level=None, durability="normal")
    try:
        with mine.get_connection_context() as conn:
            conn.execute("CREATE TABLE t (x)")
        while not stop:
            with mine.get_connection_context() as conn:
                conn.execute("INSERT INTO t VALUES (1)")
                written[number] += 1
                conn.execute("SELECT x FROM t LIMIT 9").fetchall()
    except BaseException as error:
        failures.append(repr(error))
    mine.close_all()

threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
for thread in threads:
    thread.start()
outcomes = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        try:
            with pool.get_connection_context() as conn:
                conn.execute("INSERT INTO t VALUES (1)")
            pool.close_all()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(3)
    outcomes.append(wait_for(pid, 60))
before = sum(written)
deadline = time.monotonic() + 60
while sum(written) <= before and time.monotonic() < deadline:
    time.sleep(0.001)
assert sum(written) > before, "the parent's threads were not started again"
stop = True
for thread in threads:
    thread.join(60)
pool.close_all()
assert not failures, failures
assert outcomes == [0] * 20, outcomes
assert rows() == 20, rows()
print("sound")
""",
    )


def test_a_call_that_does_not_end_makes_the_child_refuse_everything(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
from shardlite.connection import fork
fork.QUIET_WITHIN_S = 0.05
conn = pool.get_connection()
conn.execute("CREATE TABLE t (x)")
inside, leave = threading.Event(), threading.Event()

def block():
    inside.set()
    leave.wait(20)
    return 1

conn.create_function("block", 0, block)
thread = threading.Thread(target=lambda: conn.execute("SELECT block()").fetchall())
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    for attempt in (pool.get_connection, ConnectionPool(path + "2").get_connection):
        try:
            attempt()
            os._exit(2)
        except OperationalError as error:
            assert "forked while" in str(error), error
    os._exit(0)
assert wait_for(pid) == 0
leave.set()
thread.join(20)
assert conn.execute("SELECT 1").fetchone()[0] == 1
pool.close_all()
print("sound")
""",
    )


def test_threads_connections_and_waiters_after_fork(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
mine = get_connection(path)
mine.execute("CREATE TABLE t (x)")
small = ConnectionPool(path, max_connections=1)
held = small.get_connection()
waiter = threading.Thread(target=lambda: small.return_connection(small.get_connection()))
waiter.start()
while small.get_statistics().waiting_threads == 0:
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    again = get_connection(path)
    assert again is not mine
    again.execute("INSERT INTO t VALUES (1)")
    again.commit()
    assert small.get_statistics().waiting_threads == 0
    with small.get_connection_context(timeout=1) as conn:
        conn.execute("INSERT INTO t VALUES (2)")
        conn.commit()
    close_connections()
    small.close_all()
    os._exit(0)
assert wait_for(pid) == 0
small.return_connection(held)
waiter.join(20)
assert get_connection(path) is mine
assert mine.execute("SELECT count(*) FROM t").fetchone()[0] == 2
close_connections()
small.close_all()
assert rows() == 2
print("sound")
""",
    )
