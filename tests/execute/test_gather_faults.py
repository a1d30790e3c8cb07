"""Whatever goes wrong while rows are brought together: every connection comes back as it was, nothing stays."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import InterfaceError, OperationalError, ProgrammingError
from shardlite.execute import exchange

GATHER = "SELECT count(*), sum(u.a) FROM t JOIN t u ON u.b = t.b AND u.a >= t.a"
TWO_MOVES = "SELECT count(*), max(b) FROM (SELECT b FROM t UNION SELECT b FROM w)"
SHARING = "SELECT count(*), sum(t.a) FROM t JOIN w ON w.b = t.b"
LARGE = "SELECT t.id, u.a FROM t JOIN t u ON u.b = t.b ORDER BY t.id"
STEPS = {
    "attach": r"^ATTACH .* AS _shardlite_exchange",
    "limit": r"^PRAGMA _shardlite_exchange",
    "create": r"^CREATE TABLE _shardlite_exchange",
    "fill": r"^INSERT INTO _shardlite_exchange",
    "detach": r"^DETACH _shardlite_exchange",
    "begin": r"^BEGIN",
    "commit": r"^COMMIT",
    "attach shared": r"^ATTACH .* AS _shardlite_shared",
    "detach shared": r"^DETACH _shardlite_shared",
}


@pytest.fixture
def wide(filled: ShardManager) -> ShardManager:
    filled.create_table("CREATE TABLE w(id INTEGER PRIMARY KEY, b TEXT)")
    filled.insert_many("w", ({"id": i, "b": f"{i:06d}"} for i in range(1, 6_001)))
    return filled


def break_at(
    monkeypatch: pytest.MonkeyPatch, pattern: str, error: BaseException, *, after: bool, nth: int
) -> list[str]:
    """Let the nth statement that matches fail before or after SQLite has run it; return those that did."""
    run, met, failed = Connection.run, [0], []

    def broken(self: Connection, sql: str, params: Any = ()) -> Any:
        if re.match(pattern, sql):
            met[0] += 1
            if met[0] == nth:
                failed.append(sql)
                if after:
                    run(self, sql, params)
                raise error
        return run(self, sql, params)

    monkeypatch.setattr(Connection, "run", broken)
    return failed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("made to fail"), KeyboardInterrupt()], ids=["error", "stop"]
)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_fails(
    wide: ShardManager,
    require_clean: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    after: bool,
) -> None:
    nth = 3 if after else 1
    queries = [GATHER, TWO_MOVES, SHARING]
    right = [wide.execute(sql).fetchall() for sql in queries]
    reached = 0
    for sql, expected in zip(queries, right, strict=True):
        with monkeypatch.context() as patched:
            failed = break_at(patched, STEPS[step], error, after=after, nth=nth)
            try:
                assert wide.execute(sql).fetchall() == expected  # a DETACH that fails costs a connection, no answer
            except (OperationalError, KeyboardInterrupt):
                assert failed
        reached += len(failed)
        require_clean()
        assert wide.execute(sql).fetchall() == expected
    assert reached, "no query takes this step"


@pytest.mark.parametrize("sql", [GATHER, TWO_MOVES, LARGE, "SELECT DISTINCT b, a FROM t", SHARING])
def test_more_than_the_exchange_holds_comes_through_python(
    wide: ShardManager, require_clean: Callable[[], None], monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    expected = wide.execute(sql).fetchall()
    monkeypatch.setattr(exchange, "_LEAST_PAGES", 4)
    monkeypatch.setattr(exchange, "EXCHANGE_BYTES", 4 * 4096)
    monkeypatch.setattr(exchange, "COMPUTED_BYTES", 4 * 4096)
    streamed: list[bool] = []
    close = exchange.Answer.close

    def noting(self: exchange.Answer) -> None:
        streamed.append(self.streaming)
        close(self)

    monkeypatch.setattr(exchange.Answer, "close", noting)
    assert wide.execute(sql).fetchall() == expected
    assert any(streamed)
    require_clean()


def test_more_than_the_shared_database_holds(
    wide: ShardManager, require_clean: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "share" in str(wide.explain(SHARING))
    expected = wide.execute(SHARING).fetchall()
    monkeypatch.setattr(exchange, "_LEAST_PAGES", 4)
    monkeypatch.setattr(importlib.import_module("shardlite.execute.coordinator"), "SHARED_BYTES", 4 * 4096)
    assert wide.execute(SHARING).fetchall() == expected
    require_clean()


def test_an_error_on_a_shard_names_it_and_what_ran_there(wide: ShardManager, require_clean: Callable[[], None]) -> None:
    bad = next(key for key in range(1, 100) if wide.router.shard_for("t", key) == 2)

    def fail_at(key: int) -> int:
        if key == bad:
            raise ValueError(key)
        return key

    wide.create_function("fail_at", 1, fail_at, deterministic=True)
    for sql in (
        "SELECT fail_at(id) FROM t",
        "SELECT sum(fail_at(id)) FROM t",
        "SELECT fail_at(id) FROM t ORDER BY b",
        f"SELECT fail_at(id) FROM t WHERE id = {bad}",
        "UPDATE t SET a = fail_at(id)",
    ):
        for _ in range(2):  # the second time it may go another way
            with pytest.raises(OperationalError) as caught:
                wide.execute(sql).fetchall()
            assert re.match(r"user-defined function raised exception \[shard 2: .*fail_at", str(caught.value)), sql
        require_clean()


def test_an_error_at_the_coordinator_is_worded_as_by_sqlite(
    wide: ShardManager, require_clean: Callable[[], None]
) -> None:
    with closing(sqlite3.connect(":memory:")) as plain:
        with pytest.raises(sqlite3.Error) as theirs:
            plain.execute("SELECT json_extract('{', '$') FROM (SELECT 1)").fetchall()
        with pytest.raises(OperationalError) as ours:
            wide.execute(
                "SELECT json_extract('{' || min(t.a, 0), '$') FROM t JOIN t u ON u.b = t.b AND t.a > u.a - 1"
            ).fetchall()
    assert str(ours.value) == str(theirs.value)
    require_clean()


def test_ctrl_c_while_shards_work(
    filled: ShardManager, require_clean: Callable[[], None], held_files: Callable[[Path], list[str]]
) -> None:
    started = threading.Event()

    def crawl(key: int) -> int:
        started.set()
        time.sleep(0.02)
        return key

    def interrupt() -> None:
        started.wait(30)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    filled.create_function("crawl", 1, crawl, deterministic=True)
    for sql in ("SELECT crawl(id) FROM t", "SELECT sum(crawl(id)) FROM t"):
        started.clear()
        stopper = threading.Thread(target=interrupt)
        stopper.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            filled.execute(sql).fetchall()
        stopper.join()
        assert time.monotonic() - began < 20
        require_clean()
    directory = Path(filled.database.directory)
    files = held_files(directory)
    for _ in range(3):
        filled.execute("SELECT sum(a) FROM t").fetchall()
    assert len(held_files(directory)) <= len(files)


SPILLING = """
import os, sys
sys.path[:0] = {path!r}
from shardlite import ShardManager
from shardlite.execute.coordinator import Coordinator

def stop():
    links = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
    spilled = [os.readlink(link) for link in links if os.path.islink(link)]
    print(sum(name.startswith({temporary!r}) for name in spilled), flush=True)
    sys.stdin.read()

def stopping(name, begins, nth=1):
    call, met = getattr(Coordinator, name), []
    def stops(self, *given):
        done = call(self, *given)
        met.extend([1] if str(given[0]).startswith(begins) else [])
        if len(met) == nth:
            stop()
        return done
    setattr(Coordinator, name, stops)

{hook}
manager = ShardManager(db_dir={directory!r})
rows = iter(manager.execute({sql!r}))
next(rows, None)
stop()
"""
WIDE = "hex(zeroblob(1500))"
CRASHES = {
    "the rows of a gather are read": (
        "",
        LARGE.replace("u.a", f"t.b || u.b || {WIDE}").replace("t.id,", "t.a,") + ", 2",
    ),
    "a gather is half there": (
        "stopping('_take', '', 3)",
        "SELECT max(t.id), max(u.b) FROM broad t JOIN broad u ON u.b = t.b",
    ),
    "a push-down": ("", f"SELECT DISTINCT b, {WIDE} FROM t ORDER BY b"),
    "a push-down through Python": (
        "",
        f"SELECT DISTINCT b, {WIDE} || {WIDE} || {WIDE} || {WIDE} || {WIDE} FROM t ORDER BY b",
    ),
    "shards that sort": ("", f"SELECT b, {WIDE} FROM t ORDER BY a, b"),
    "an insert of a query": ("stopping('first', '')", f"INSERT INTO w(b) SELECT b || {WIDE} FROM t"),
    "a gather and write": ("stopping('run', 'UPDATE')", f"UPDATE t SET b = b || {WIDE} || (SELECT max(a) FROM t)"),
}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which files are open")
@pytest.mark.parametrize("what", CRASHES)
def test_spilled_rows_are_gone_after_a_crash(wide: ShardManager, tmp_path: Path, what: str) -> None:
    hook, sql = CRASHES[what]
    directory = str(tmp_path / "db")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    wide.create_table("CREATE TABLE broad(id INTEGER PRIMARY KEY, b TEXT)")
    wide.execute(f"INSERT INTO broad SELECT id, b || {WIDE} FROM t")
    wide.shutdown()
    before = sorted(os.listdir(directory))
    code = SPILLING.format(path=sys.path, directory=directory, temporary=f"{temporary}/", hook=hook, sql=sql)
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "SQLITE_TMPDIR": str(temporary)},
        text=True,
    )
    try:
        assert child.stdout is not None
        assert int(child.stdout.readline()) >= 1, "nothing was spilled: the test shows nothing"
        assert os.listdir(temporary) == []  # no name leads to it even while it is there
    finally:
        child.kill()
        child.communicate()
    assert os.listdir(temporary) == []
    left = [name for name in sorted(os.listdir(directory)) if not name.endswith(("-wal", "-shm"))]
    assert left == [name for name in before if not name.endswith(("-wal", "-shm"))]
    with ShardManager(db_dir=directory) as manager:
        assert manager.check().ok
        assert manager.execute("SELECT count(*), max(length(b)) FROM t").fetchone() == (8_000, 6)
        assert manager.execute("SELECT count(*) FROM w").scalar() == 6_000
    assert sorted(os.listdir(directory)) == before


TOO_LARGE = [
    "SELECT * FROM t",
    "SELECT * FROM t ORDER BY b",
    "SELECT * FROM t ORDER BY b LIMIT 5000 OFFSET 10",
    "SELECT * FROM t WHERE id = 5 OR id = 6",
    "SELECT DISTINCT b FROM t",
    "SELECT t.id, u.b FROM t JOIN t u ON u.b = t.b",
    "SELECT * FROM t WHERE id = 5 UNION ALL SELECT 1, 2, 3",
]


@pytest.mark.parametrize("sql", TOO_LARGE)
def test_fetchall_under_a_limit(filled: ShardManager, require_clean: Callable[[], None], sql: str) -> None:
    count = len(filled.execute(sql).fetchall())
    assert len(filled.execute(sql, max_rows=count).fetchall()) == count
    for read in ("fetchall", "dicts"):
        result = filled.execute(sql, max_rows=count - 1)
        with pytest.raises(OperationalError) as caught:
            getattr(result, read)()
        assert str(caught.value) == (
            f"result too large: it has more rows than max_rows={count - 1}: read it row by row, or with fetchmany"
        )
        assert not result.is_held
        with pytest.raises(InterfaceError, match="closed"):
            next(result)
        require_clean()
    assert sum(1 for _ in filled.execute(sql, max_rows=1)) == count  # row by row there is no limit
    result = filled.execute(sql, max_rows=1)
    read_before = len(result.fetchmany(count - 1))
    assert (read_before, len(result.fetchall())) == (count - 1, 1)  # what is left counts
    require_clean()


@pytest.mark.parametrize("wrong", [-1, True, "5", 1.5])
def test_a_limit_that_is_none(filled: ShardManager, wrong: Any) -> None:
    with pytest.raises(ProgrammingError, match="max_rows must be an int of 0 or more"):
        filled.execute("SELECT 1", max_rows=wrong)
