"""Waiting for other connections' locks: which codes are worth it, and for how long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardlite.connection import busy
from shardlite.connection.busy import begin_immediate, is_busy, is_snapshot_conflict, retry_busy
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError


def connect(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA wal_autocheckpoint=0")
    return conn


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    first, second = connect(tmp_path / "a.db"), connect(tmp_path / "a.db")
    first.execute("CREATE TABLE t(x)")
    yield first, second
    first.close()
    second.close()


def test_begins_at_once_when_nobody_writes(pair: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    begin_immediate(pair[0], 0.0)
    assert pair[0].in_transaction
    pair[0].rollback()


def test_waits_until_the_other_has_committed(pair: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    first, second = pair
    begin_immediate(first, 0.0)
    polled = threading.Event()

    class Watching:
        def run(self, sql: str) -> None:
            try:
                second.execute(sql)
            except sqlite3.OperationalError:
                polled.set()
                raise

    thread = threading.Thread(target=begin_immediate, args=(Watching(), time.monotonic() + 30))
    thread.start()
    assert polled.wait(10)
    first.execute("COMMIT")
    thread.join()
    assert second.in_transaction
    second.rollback()


def test_time_out_names_the_file_and_the_seconds(
    pair: tuple[sqlite3.Connection, sqlite3.Connection], tmp_path: Path
) -> None:
    first, second = pair
    begin_immediate(first, 0.0)
    started = time.monotonic()
    with pytest.raises(OperationalError, match=r"database is locked: waited \d+\.\d\d s to write to") as caught:
        begin_immediate(second, started + 0.3)
    took = time.monotonic() - started
    assert took >= 0.3
    assert 0.05 <= float(str(caught.value).split("waited ")[1].split(" s")[0]) <= took + 0.01
    assert str(tmp_path / "a.db") in str(caught.value)
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
    assert caught.value.sqlite_errorname == "SQLITE_BUSY"
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert not second.in_transaction
    first.rollback()


@pytest.mark.skipif(
    not hasattr(sqlite3, "SQLITE_BUSY_SNAPSHOT"),
    reason="pysqlite3 reports the first byte of SQLite's codes alone: a stale snapshot looks like any lock",
)
def test_a_stale_snapshot_is_not_waited_for(pair: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    first, second = pair
    first.execute("BEGIN")
    first.execute("SELECT * FROM t").fetchall()
    second.execute("INSERT INTO t VALUES (1)")
    started = time.monotonic()
    with pytest.raises(sqlite3.OperationalError) as caught:
        retry_busy(lambda: first.execute("INSERT INTO t VALUES (2)"), started + 60, "to write")
    assert time.monotonic() - started < 10
    assert is_snapshot_conflict(caught.value)
    assert not is_busy(caught.value)
    first.rollback()


def test_a_conflict_inside_the_connection_is_not_waited_for(
    pair: tuple[sqlite3.Connection, sqlite3.Connection],
) -> None:
    first, _ = pair
    first.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    cursor = first.execute("SELECT * FROM t")
    cursor.fetchone()
    with pytest.raises(sqlite3.OperationalError) as caught:
        retry_busy(lambda: first.execute("DROP TABLE t"), time.monotonic() + 60, "to drop")
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_LOCKED
    assert not is_busy(caught.value)
    cursor.close()


def test_other_errors_pass_through(pair: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        retry_busy(lambda: pair[0].execute("SELECT * FROM absent"), time.monotonic() + 60, "to read")
    begin_immediate(pair[0], 0.0)
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        begin_immediate(pair[0], time.monotonic() + 60)
    pair[0].rollback()


@pytest.mark.parametrize(
    ("code", "worth_it"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (261, True),  # SQLITE_BUSY_RECOVERY, for which pysqlite3 has no name
        (773, True),
        (517, False),  # SQLITE_BUSY_SNAPSHOT, the same
        (sqlite3.SQLITE_LOCKED, False),
        (262, False),
        (sqlite3.SQLITE_FULL, False),
    ],
)
def test_codes(code: int, worth_it: bool) -> None:
    error = sqlite3.OperationalError("made up")
    error.sqlite_errorcode = code
    assert is_busy(error) is worth_it


def test_pauses_are_short_and_random(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(busy.time, "sleep", pauses.append)
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    error.sqlite_errorname = "SQLITE_BUSY"
    calls = 0

    def call() -> str:
        nonlocal calls
        calls += 1
        if calls < 200:
            raise error
        return "done"

    assert retry_busy(call, time.monotonic() + 60, "to write") == "done"
    assert len(pauses) == 199
    assert max(pauses) <= 0.001
    assert max(pauses[:3]) <= 0.00015
    assert len(set(pauses)) > 150


def test_one_call_is_made_even_when_the_deadline_has_passed() -> None:
    assert retry_busy(lambda: 5, time.monotonic() - 1, "to read") == 5


def test_an_interrupt_while_polling_leaves_no_transaction(
    pair: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    begin_immediate(first, 0.0)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(busy.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin_immediate(second, time.monotonic() + 60)
    assert not second.in_transaction
    first.rollback()


def test_a_lock_of_another_process_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    mine = connect(path)
    mine.execute("CREATE TABLE t(x)")
    code = (
        "import sys; from shardlite.driver import sqlite3\n"
        f"c = sqlite3.connect({str(path)!r}, isolation_level=None); c.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True); sys.stdin.readline(); c.execute('COMMIT'); c.close()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OperationalError, match="another process"):
            begin_immediate(mine, time.monotonic() + 0.02)
        other.stdin.write("\n")
        other.stdin.flush()
        begin_immediate(mine, time.monotonic() + 30)
        assert mine.in_transaction
        mine.rollback()
    mine.close()
