"""Checkpoints: when, under which lock, and what happens when readers are in the way."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardlite.connection import checkpoint as checkpoint_module
from shardlite.connection.budget import ConnectionBudget
from shardlite.connection.checkpoint import Checkpointer, CheckpointSettings, Reader
from shardlite.connection.gate import WriteGate
from shardlite.connection.pool import ConnectionPool
from shardlite.connection.wal import NO_WAL, read_wal_length
from shardlite.driver import sqlite3

Open = Callable[[], sqlite3.Connection]
SMALL = CheckpointSettings(look_bytes=100_000, soft_limit_bytes=400_000, stall_limit_s=0.05)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a file.db")


@pytest.fixture
def connect(path: str) -> Iterator[Open]:
    made: list[sqlite3.Connection] = []

    def open_one() -> sqlite3.Connection:
        conn = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA wal_autocheckpoint=0")
        conn.execute("PRAGMA synchronous=OFF")
        made.append(conn)
        return conn

    yield open_one
    for conn in made:
        conn.close()


@pytest.fixture
def writer(connect: Open) -> sqlite3.Connection:
    conn = connect()
    conn.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    return conn


def write(conn: sqlite3.Connection, checkpointer: Checkpointer | None, commits: int, kilobytes: int = 4) -> None:
    for _ in range(commits):
        conn.execute("INSERT INTO t(x) VALUES (zeroblob(?))", (kilobytes * 1000,))
        if checkpointer is not None:
            checkpointer.note_commit(conn)


def test_the_length_of_the_log_is_read_from_the_file(writer: sqlite3.Connection, connect: Open, path: str) -> None:
    wal = f"{path}-wal"
    assert read_wal_length(f"{path}-absent") is NO_WAL
    for commits in (1, 5, 40):
        write(writer, None, commits)
        _, frames, _ = connect().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        length = read_wal_length(wal)
        assert length.frames == frames
        assert length.file_bytes == os.stat(wal).st_size
    before = read_wal_length(wal)
    write(writer, None, 1)  # everything is checkpointed: the log starts again
    after = read_wal_length(wal)
    assert after.salt != before.salt
    assert 0 < after.frames < before.frames
    assert after.file_bytes == before.file_bytes


def test_the_log_stays_short_without_readers(writer: sqlite3.Connection, path: str) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, checkpointer, 1500)
    report = checkpointer.report()
    assert report.wal_bytes < 2_000_000
    assert report.checkpoints >= 3
    assert report.incomplete == 0
    assert report.last_error is None
    assert report.blocking == ()
    assert os.stat(path).st_size > 5_000_000


def test_nothing_happens_below_the_limit(writer: sqlite3.Connection, path: str) -> None:
    checkpointer = Checkpointer(path)
    write(writer, checkpointer, 200)
    assert checkpointer.report().checkpoints == 0


def test_one_big_commit_is_noticed(writer: sqlite3.Connection, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_LOOK_EVERY_S", 0.0)
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, checkpointer, 1, kilobytes=3000)
    assert checkpointer.report().checkpoints == 1


def test_each_checkpoint_runs_under_the_write_lock(
    writer: sqlite3.Connection, connect: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule on which soundness rests: nobody can commit while PASSIVE runs."""
    other = connect()
    refused: list[int] = []
    passive = Checkpointer._passive

    def watched(self: Checkpointer, worker: sqlite3.Connection) -> bool:
        for _ in range(2):  # before and after PASSIVE
            with pytest.raises(sqlite3.OperationalError) as caught:
                other.execute("BEGIN IMMEDIATE")
            refused.append(caught.value.sqlite_errorcode)
            done = passive(self, worker)
        return done

    monkeypatch.setattr(Checkpointer, "_passive", watched)
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, checkpointer, 300)
    assert len(refused) >= 2
    assert set(refused) == {sqlite3.SQLITE_BUSY}
    other.execute("BEGIN IMMEDIATE")
    other.rollback()


def test_it_keeps_out_of_the_way_of_another_writer(writer: sqlite3.Connection, connect: Open, path: str) -> None:
    other = connect()
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, None, 200)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    for _ in range(20):
        checkpointer.note_commit(writer)
    assert time.monotonic() - started < 5
    assert checkpointer.report().postponed >= 1
    assert checkpointer.report().checkpoints == 0
    other.rollback()
    assert checkpointer.checkpoint()
    assert checkpointer.report().last_error is None


def test_no_checkpoint_inside_the_callers_own_transaction(writer: sqlite3.Connection, path: str) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, None, 200)
    writer.execute("BEGIN IMMEDIATE")
    for _ in range(20):
        checkpointer.note_commit(writer)
    assert (checkpointer.report().checkpoints, checkpointer.report().postponed) == (0, 0)
    writer.rollback()


def test_the_gate_is_used_when_held_and_taken_when_free(writer: sqlite3.Connection, path: str) -> None:
    gate = WriteGate(path)
    checkpointer = Checkpointer(path, gate=gate, settings=SMALL)
    write(writer, None, 200)
    gate.acquire(1)
    for _ in range(8):
        checkpointer.note_commit(writer)
    assert checkpointer.report().checkpoints == 1
    assert gate.owner == threading.get_ident()
    gate.release()
    write(writer, checkpointer, 100)
    assert checkpointer.report().checkpoints >= 2
    assert gate.owner is None


def test_a_gate_held_by_another_thread_is_not_waited_for(writer: sqlite3.Connection, path: str) -> None:
    gate = WriteGate(path)
    checkpointer = Checkpointer(path, gate=gate, settings=SMALL)
    write(writer, None, 50)
    thread = threading.Thread(target=lambda: gate.acquire(1))
    thread.start()
    thread.join()
    for _ in range(8):
        checkpointer.note_commit(writer)
    assert checkpointer.report().checkpoints == 0
    assert checkpointer.report().postponed >= 1
    gate.release()


def start_reading(connect: Open) -> sqlite3.Connection:
    reader = connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchall()
    return reader


def test_a_long_reader_is_named_costs_one_stall_and_is_left_alone_then(
    writer: sqlite3.Connection, connect: Open, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    readers = [Reader("thread 'report' at report.py:12", 7.5), Reader("thread 'quick'", 0.001)]
    checkpointer = Checkpointer(path, readers=lambda: readers, settings=SMALL)
    write(writer, checkpointer, 10)
    reader = start_reading(connect)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="shardlite.checkpoint"):
        write(writer, checkpointer, 600)
    took_s = time.monotonic() - started
    report = checkpointer.report()
    assert report.hopeless >= 1
    assert report.blocking == ("thread 'report' at report.py:12, for 7.5 s",)
    assert "report.py:12" in caplog.text
    assert path in caplog.text
    least_s = 0.8 * checkpoint_module._FIRST_BACKOFF_S * (2 ** (report.drains - 1) - 1)
    assert least_s <= took_s, f"{report.drains} drains in {took_s:.1f} s: it must back off"
    assert report.live_bytes > SMALL.soft_limit_bytes

    reader.rollback()
    checkpointer._backoff_until = 0.0
    write(writer, checkpointer, 200)
    assert checkpointer.report().blocking == ()
    assert checkpointer.report().live_bytes < SMALL.soft_limit_bytes + 300_000


@pytest.mark.parametrize("way", ["transaction", "statement"])
def test_the_reader_that_holds_the_log_is_named(path: str, way: str) -> None:
    """With a real pool: a transaction that somebody forgot, and a single statement that takes long."""
    inside, leave = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        leave.wait(20)
        return 1

    def read() -> None:
        if way == "statement":
            pool.express_row("SELECT block(), count(*) FROM t")
            return
        with pool.get_connection_context() as conn:
            conn.execute("BEGIN")
            conn.execute("SELECT count(*), block() FROM t").fetchall()

    pool = ConnectionPool(path, durability="normal", configure=lambda conn: conn.create_function("block", 0, block))
    pool.checkpointer.settings = SMALL
    with pool:
        writer, other = pool.acquire(), pool.acquire()
        writer.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
        writer.run("COMMIT") if writer.in_transaction else None
        pool.release(other)
        reader = threading.Thread(target=read, name="the forgetful one")
        reader.start()
        assert inside.wait(20)
        try:
            for _ in range(600):
                writer.run("INSERT INTO t(x) VALUES (zeroblob(4000))")
                writer.run("COMMIT")
                pool.checkpointer.note_commit(writer)
                if pool.checkpointer.report().blocking:
                    break
            blocking = pool.checkpointer.report().blocking
        finally:
            leave.set()
            reader.join(20)
        pool.release(writer)
    named = [text for text in blocking if text.startswith("thread 'the forgetful one' for ")]
    assert len(named) == 1, blocking
    assert __file__ in named[0]
    assert " in read" in named[0]


def test_a_reader_elsewhere_is_said_to_be_in_another_process(
    writer: sqlite3.Connection, connect: Open, path: str
) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    write(writer, checkpointer, 10)
    reader = start_reading(connect)
    write(writer, checkpointer, 300)
    assert "another process" in checkpointer.report().blocking[0]
    reader.rollback()


def test_the_pauses_between_hopeless_drains_grow(
    writer: sqlite3.Connection, connect: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module.random, "uniform", lambda low, high: 1.0)
    checkpointer = Checkpointer(path, settings=CheckpointSettings(50_000, 100_000, 0.0))
    reader = start_reading(connect)
    pauses = []
    for _ in range(8):
        checkpointer._backoff_until = 0.0
        write(writer, checkpointer, 80)
        pauses.append(checkpointer._backoff_s)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    reader.rollback()


def test_short_readers_are_waited_out_under_the_lock(writer: sqlite3.Connection, connect: Open, path: str) -> None:
    """Four overlapping readers: there is always one, so the log could never start again by chance."""
    stop = threading.Event()
    conns = [connect() for _ in range(4)]

    def read(number: int) -> None:
        pause = threading.Event()
        pause.wait(0.005 * number / 4)
        while not stop.is_set():
            conns[number].execute("BEGIN")
            conns[number].execute("SELECT max(id) FROM t").fetchall()
            pause.wait(0.005)
            conns[number].execute("COMMIT")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    # A limit that a reader doesn't exceed, however long the system keeps its thread waiting for a processor.
    settings = CheckpointSettings(look_bytes=500_000, soft_limit_bytes=2_000_000, stall_limit_s=2.0)
    checkpointer = Checkpointer(path, settings=settings)
    try:
        write(writer, checkpointer, 6000)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    report = checkpointer.report()
    assert report.drains >= 2
    assert report.wal_bytes < 12_000_000, report  # of 24 MB written, with a generous share for a loaded machine


def test_the_locker_does_not_stay_behind_an_old_read_mark(
    writer: sqlite3.Connection, connect: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four readers use up SQLite's four read marks, so the locker has to share the newest of these old ones."""
    readers = []
    for _ in range(4):
        write(writer, None, 1)
        readers.append(start_reading(connect))
    write(writer, None, 10)
    calls = 0
    passive = Checkpointer._passive

    def watched(self: Checkpointer, worker: sqlite3.Connection) -> bool:
        nonlocal calls
        calls += 1
        complete = passive(self, worker)
        if calls == 2:  # the first one of the drain; the copy before it was the other
            assert not complete
            for reader in readers:
                reader.rollback()
        return complete

    monkeypatch.setattr(Checkpointer, "_passive", watched)
    checkpointer = Checkpointer(path, settings=CheckpointSettings(stall_limit_s=1.0))
    assert checkpointer._run(drain=True, patience_s=1.0, queue=False)
    assert calls >= 3
    assert checkpointer.report().hopeless == 0
    before = read_wal_length(f"{path}-wal").salt
    write(writer, None, 1)
    assert read_wal_length(f"{path}-wal").salt != before


def test_an_error_does_not_reach_the_committer(writer: sqlite3.Connection, path: str, tmp_path: Path) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    checkpointer._uri = (tmp_path / "gone.db").as_uri() + "?mode=rw"
    write(writer, checkpointer, 200)
    error = checkpointer.report().last_error
    assert error is not None
    assert "unable to open" in error
    assert not (tmp_path / "gone.db").exists()


def test_an_interrupt_releases_the_lock(
    writer: sqlite3.Connection, connect: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = WriteGate(path)
    checkpointer = Checkpointer(path, gate=gate, settings=SMALL)

    def interrupted(self: Checkpointer, worker: sqlite3.Connection) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_passive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(writer, checkpointer, 300)
    assert gate.owner is None
    connect().execute("BEGIN IMMEDIATE").execute("ROLLBACK")
    assert checkpointer.checkpoint()


def test_close_waits_for_a_running_checkpoint_and_ends_them(
    writer: sqlite3.Connection, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    inside, go_on = threading.Event(), threading.Event()
    copy = Checkpointer._copy

    def slow(self: Checkpointer, worker: sqlite3.Connection) -> bool:
        inside.set()
        go_on.wait(20)
        return copy(self, worker)

    monkeypatch.setattr(Checkpointer, "_copy", slow)
    write(writer, None, 100)
    thread = threading.Thread(target=checkpointer.checkpoint)
    thread.start()
    inside.wait(20)
    closer = threading.Thread(target=checkpointer.close)
    closer.start()
    assert not checkpointer.pause(0.01)
    go_on.set()
    closer.join(20)
    thread.join(20)
    assert checkpointer.report().checkpoints == 1
    assert not checkpointer.checkpoint()
    checkpointer.close()


def test_pause_and_resume(writer: sqlite3.Connection, path: str) -> None:
    checkpointer = Checkpointer(path, settings=SMALL)
    assert checkpointer.pause(1)
    write(writer, checkpointer, 200)
    assert checkpointer.report().checkpoints == 0
    checkpointer.resume()
    write(writer, checkpointer, 100)
    assert checkpointer.report().checkpoints >= 1


def test_its_connections_are_counted_and_closed(writer: sqlite3.Connection, path: str) -> None:
    budget = ConnectionBudget(1)
    checkpointer = Checkpointer(path, budget=budget, settings=SMALL)
    write(writer, checkpointer, 200)
    assert budget.report().peak_open == 2
    assert budget.report().open == 0


def test_noting_a_commit_is_cheap(writer: sqlite3.Connection, path: str) -> None:
    checkpointer = Checkpointer(path)

    def cost(call: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(1000):
                call()
            best = min(best, time.perf_counter() - started)
        return best

    assert cost(lambda: checkpointer.note_commit(writer)) < 0.5 * cost(lambda: os.stat(path))
