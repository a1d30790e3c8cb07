"""The end of the interpreter: silent, and clean where nothing is in use any more, even if nobody closed anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys, threading
from shardlite.connection import ConnectionPool, get_connection

directory = sys.argv[1]
pool = ConnectionPool(directory + "/pool.db", max_connections=4)
with pool.get_connection_context() as conn:
    conn.execute("CREATE TABLE t (x)")
get_connection(directory + "/thread.db").execute("CREATE TABLE t (x)")

class Cycle:
    pass

cycle = Cycle()
cycle.itself, cycle.pool = cycle, pool
"""

HELD = """
held = pool.get_connection()
held.execute("INSERT INTO t VALUES (1)")
"""

ENDED = """
def lose():
    pool.get_connection().execute("INSERT INTO t VALUES (1)")
    get_connection(directory + "/other.db").execute("SELECT 1")

thread = threading.Thread(target=lose)
thread.start()
thread.join()
"""

DAEMON = """
begun = threading.Event()

def work():
    mine = pool.get_connection()
    theirs = get_connection(directory + "/other.db")
    while True:
        mine.execute("SELECT 1").fetchall()
        theirs.execute("SELECT 1").fetchall()
        begun.set()

threading.Thread(target=work, daemon=True).start()
begun.wait(20)
"""


@pytest.mark.parametrize(
    ("rest", "is_clean"),
    [("", True), (ENDED, True), (HELD, False), (DAEMON, False), (HELD + "raise SystemExit(0)", False)],
    ids=["idle", "ended thread", "held", "daemon", "held, exit"],
)
def test_interpreter_exit(tmp_path: Path, rest: str, is_clean: bool) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore::UserWarning", "-c", START + rest]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if is_clean:
        assert not [name for name in os.listdir(tmp_path) if name.endswith(("-wal", "-shm"))]
