"""The pool as its users see it: sizes, queue, time-outs, what comes back clean and what is replaced."""

from __future__ import annotations

import gc
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from open_files import open_files_under

from shardlite.connection import ConnectionPool, PoolClosedError, PoolExhaustedError, get_db_connection
from shardlite.connection.busy import is_busy, retry_busy
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, ProgrammingError, ShardUnavailableError

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for something that another thread brings about."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.001)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A path for a database; afterwards nothing of it may be open."""
    yield str(tmp_path / "app.db")
    assert not open_files_under(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(("-wal", "-shm"))]


@pytest.fixture
def make(path: str) -> Iterator[Callable[..., ConnectionPool]]:
    pools: list[ConnectionPool] = []

    def make(**options: Any) -> ConnectionPool:
        pool = ConnectionPool(path, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close_all()


Make = Callable[..., ConnectionPool]


def in_thread(work: Callable[[], Any]) -> Any:
    """Run in a thread that ends, and return or raise what it did."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


class Taker(threading.Thread):
    """Takes a connection, says so, and returns it when told."""

    def __init__(self, pool: ConnectionPool, timeout: float | None = None) -> None:
        super().__init__(daemon=True)
        self.pool, self.timeout = pool, timeout
        self.got: Connection | None = None
        self.error: BaseException | None = None
        self.took = threading.Event()
        self.go_on = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            conn = self.pool.get_connection(self.timeout)
        except BaseException as error:
            self.error = error
            self.took.set()
            return
        self.got = conn
        self.took.set()
        self.go_on.wait(DEADLINE_S)
        self.pool.return_connection(conn)


# ---- what a connection is like


def test_connection_settings(make: Make) -> None:
    with make().get_connection_context() as conn:
        assert isinstance(conn, sqlite3.Connection)
        assert conn.row_factory is sqlite3.Row
        assert conn.execute("SELECT 1 AS one").fetchone()["one"] == 1

        def pragma(name: str) -> object:
            return conn.execute(f"PRAGMA {name}").fetchone()[0]

        assert pragma("journal_mode") == "wal"
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 30000
        assert pragma("synchronous") == 2
        assert pragma("wal_autocheckpoint") == 0
        assert pragma("trusted_schema") == 0


def test_durability_normal(make: Make) -> None:
    with make(durability="normal") as pool, pool.get_connection_context() as conn:
        assert conn.execute("PRAGMA synchronous").fetchone()[0] == 1


def test_acquire_polls_and_get_connection_waits(make: Make) -> None:
    pool = make(max_connections=1, busy_timeout=7)
    for take, milliseconds in ((pool.acquire, 0), (pool.get_connection, 7000), (pool.acquire, 0)):
        conn = take()
        assert conn.fetch_row("PRAGMA busy_timeout") == (milliseconds,)
        pool.release(conn)
    assert pool.get_statistics().total_connections_created == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_connections": 0},
        {"max_connections": 2.5},
        {"min_connections": 11},
        {"min_connections": -1},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": None},
        {"durability": "maybe"},
        {"configure": 5},
        {"busy_timeout": -1},
    ],
)
def test_bad_options_are_named(path: str, options: dict[str, Any]) -> None:
    with pytest.raises(ProgrammingError, match=next(iter(options))):
        ConnectionPool(path, **options)


@pytest.mark.parametrize("bad", ["", ":memory:"])
def test_memory_is_refused(bad: str) -> None:
    with pytest.raises(ProgrammingError, match="needs a file"):
        ConnectionPool(bad)


# ---- sizes


def test_opens_lazily_and_reuses(make: Make, path: str) -> None:
    pool = make()
    assert not os.path.exists(path)
    for _ in range(5):
        with pool.get_connection_context():
            pass
    stats = pool.get_statistics()
    assert (stats.total_connections_created, stats.pool_size, stats.pool_hits, stats.pool_misses) == (1, 1, 4, 1)


def test_min_connections_are_opened_at_once(make: Make) -> None:
    stats = make(min_connections=3, max_connections=4).get_statistics()
    assert (stats.pool_size, stats.idle_connections, stats.total_connections_created) == (3, 3, 3)
    assert stats.total_acquired == 0


def test_hard_limit_and_the_message(make: Make, path: str) -> None:
    pool = make(max_connections=2)
    held = [pool.get_connection(), pool.get_connection()]
    with pytest.raises(PoolExhaustedError) as caught:
        pool.get_connection(timeout=0.02)
    text = str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    assert path in text
    assert "all 2" in text
    assert text.count(f"thread {threading.current_thread().name!r}") == 2
    line = test_hard_limit_and_the_message.__code__.co_firstlineno + 2
    assert text.count(f"{os.path.basename(__file__)}:{line} in test_hard_limit_and_the_message") == 2
    assert re.search(r"for \d+\.\d s", text)
    for conn in held:
        pool.return_connection(conn)
    assert pool.get_statistics().total_timeouts == 1


def test_timeout_zero_fails_at_once(make: Make) -> None:
    pool = make(max_connections=1, timeout=60)
    conn = pool.get_connection(timeout=0)
    started = time.monotonic()
    with pytest.raises(PoolExhaustedError):
        pool.get_connection(timeout=0)
    assert time.monotonic() - started < 5
    pool.return_connection(conn)


def test_grows_one_by_one_when_all_are_in_use(make: Make) -> None:
    pool = make(max_connections=4)
    held = []
    for size in range(1, 5):
        held.append(pool.get_connection())
        assert pool.get_statistics().pool_size == size
    for conn in held:
        pool.return_connection(conn)
    for _ in range(10):  # what is there is used again
        pool.return_connection(pool.get_connection())
    stats = pool.get_statistics()
    assert (stats.pool_size, stats.total_connections_created, stats.pool_misses) == (4, 4, 4)


def test_spike(make: Make) -> None:
    """Many at once get no more than the limit, each its turn; afterwards the pool is as small as before."""
    clock = Clock()
    pool = make(min_connections=1, max_connections=3, max_idle=100, timeout=DEADLINE_S, clock=clock)
    takers = [Taker(pool) for _ in range(15)]
    wait_until(lambda: pool.get_statistics().waiting_threads == 12)
    assert pool.get_statistics().pool_size == 3
    for taker in takers:
        taker.go_on.set()
    for taker in takers:
        taker.join(DEADLINE_S)
        assert taker.error is None
    stats = pool.get_statistics()
    assert (stats.total_acquired, stats.total_connections_created, stats.idle_connections) == (15, 3, 3)
    assert stats.total_timeouts == 0
    clock.now += 101
    pool.maintain()
    assert pool.get_statistics().pool_size == 1


def test_shrinks_to_the_minimum(make: Make) -> None:
    clock = Clock()
    pool = make(min_connections=1, max_connections=4, max_idle=100, clock=clock)
    for conn in [pool.get_connection() for _ in range(4)]:
        pool.return_connection(conn)
    assert pool.get_statistics().pool_size == 4
    clock.now += 99
    pool.maintain()
    assert pool.get_statistics().pool_size == 4
    clock.now += 2
    pool.maintain()
    assert pool.get_statistics().pool_size == 1
    assert pool.get_statistics().connections_closed == 3


def test_shrinks_while_one_connection_is_busy(make: Make) -> None:
    """After a spike, the others go although the pool is in use all the time."""
    clock = Clock()
    pool = make(max_connections=4, max_idle=100, clock=clock)
    for conn in [pool.get_connection() for _ in range(4)]:
        pool.return_connection(conn)
    for _ in range(20):
        clock.now += 10
        with pool.get_connection_context():
            pass
    assert pool.get_statistics().pool_size == 1


def test_max_lifetime_with_jitter(make: Make) -> None:
    clock = Clock()
    pool = make(max_connections=8, max_lifetime=1000, max_idle=1e9, clock=clock)
    held = [pool.get_connection() for _ in range(8)]
    ends = {conn.expires_at - clock.now for conn in held}
    assert len(ends) > 1
    assert all(950 <= end <= 1000 for end in ends)
    for conn in held:
        pool.return_connection(conn)
    clock.now += 1000
    with pool.get_connection_context() as conn:
        assert conn not in held
    assert pool.get_statistics().pool_size == 1


def test_max_lifetime_of_a_busy_connection(make: Make) -> None:
    clock = Clock()
    pool = make(max_connections=1, max_lifetime=100, clock=clock)
    seen = set()
    for _ in range(60):
        clock.now += 5
        with pool.get_connection_context() as conn:
            seen.add(conn.number)
    assert len(seen) >= 3


def test_a_replaced_file_is_noticed(make: Make, path: str) -> None:
    clock = Clock()
    pool = make(clock=clock)
    with pool.get_connection_context() as conn:
        conn.execute("CREATE TABLE old (x)")
    clock.now += 2
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, path + suffix + ".gone")
    with pool.get_connection_context() as conn:
        assert conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    pool.close_all()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix + ".gone"):
            os.unlink(path + suffix + ".gone")


# ---- the queue


def test_queue_is_first_in_first_out(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    takers = []
    for number in range(6):
        takers.append(Taker(pool))
        wait_until(lambda number=number: pool.get_statistics().waiting_threads == number + 1)
    pool.return_connection(conn)
    for index, taker in enumerate(takers):
        assert taker.took.wait(DEADLINE_S)
        assert taker.got is conn
        assert not any(later.took.is_set() for later in takers[index + 1 :])
        taker.go_on.set()
    for taker in takers:
        taker.join(DEADLINE_S)
    stats = pool.get_statistics()
    assert (stats.total_acquired, stats.total_released, stats.waiting_threads) == (7, 7, 0)


def test_newcomer_does_not_overtake(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    taker = Taker(pool)
    wait_until(lambda: pool.get_statistics().waiting_threads == 1)
    pool.return_connection(conn)
    with pytest.raises(PoolExhaustedError):
        pool.get_connection(timeout=0)
    assert taker.took.wait(DEADLINE_S)
    taker.go_on.set()
    taker.join(DEADLINE_S)


def test_queue_timeout_and_override(make: Make) -> None:
    pool = make(max_connections=1, timeout=0.05)
    conn = pool.get_connection()
    patient = Taker(pool, timeout=DEADLINE_S)
    wait_until(lambda: pool.get_statistics().waiting_threads == 1)
    impatient = Taker(pool)
    assert impatient.took.wait(DEADLINE_S)
    assert isinstance(impatient.error, PoolExhaustedError)
    assert not patient.took.is_set()
    pool.return_connection(conn)
    assert patient.took.wait(DEADLINE_S)
    assert patient.got is conn
    patient.go_on.set()
    patient.join(DEADLINE_S)


def test_timed_out_waiter_loses_nothing(make: Make) -> None:
    """Waiters whose time ends at the moment of the hand-over: the connection is theirs or goes on, never lost."""
    pool = make(max_connections=1)
    outcomes = []
    for round_ in range(150):
        conn = pool.get_connection()
        taker = Taker(pool, timeout=0.002)
        wait_until(lambda t=taker: pool.get_statistics().waiting_threads == 1 or t.took.is_set())
        time.sleep(round_ % 10 * 0.0004)
        pool.return_connection(conn)
        assert taker.took.wait(DEADLINE_S)
        taker.go_on.set()
        taker.join(DEADLINE_S)
        outcomes.append(taker.error is None)
        assert pool.get_statistics().idle_connections == 1
    stats = pool.get_statistics()
    assert stats.total_connections_created == 1
    assert stats.total_acquired == stats.total_released
    assert stats.total_timeouts == outcomes.count(False)


def test_closed_connection_gives_its_place_to_a_waiter(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    taker = Taker(pool)
    wait_until(lambda: pool.get_statistics().waiting_threads == 1)
    pool.close_connection(conn)
    assert taker.took.wait(DEADLINE_S)
    assert taker.got is not None
    assert taker.got is not conn
    taker.go_on.set()
    taker.join(DEADLINE_S)


# ---- what is returned


def test_uncommitted_is_rolled_back(make: Make) -> None:
    pool = make(max_connections=1)
    with get_db_connection(pool) as conn:
        conn.execute("CREATE TABLE t (x)")
        conn.execute("INSERT INTO t VALUES (1)")
        conn.commit()
        conn.execute("INSERT INTO t VALUES (2)")
    with get_db_connection(pool) as conn:
        assert conn.fetch_all("SELECT x FROM t") == [(1,)]


def test_exception_in_the_block(make: Make) -> None:
    pool = make(max_connections=1)
    with pytest.raises(ZeroDivisionError), pool.get_connection_context() as conn:  # noqa: PT012  the block's own end is what is tested
        conn.execute("CREATE TABLE t (x)")
        conn.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError
    with pool.get_connection_context(timeout=0) as again:
        assert again is conn
        assert again.fetch_row("SELECT count(*) FROM t") == (0,)


def test_open_cursor_is_closed_at_return(make: Make, path: str) -> None:
    """An open cursor survives rollback() on Python 3.11 and would pin the write-ahead log."""
    pool = make(max_connections=2)
    with pool.get_connection_context() as conn:
        conn.execute("CREATE TABLE t (x)")
        conn.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1000)])
        conn.commit()
        cursor = conn.execute("SELECT x FROM t")
        stream = conn.stream("SELECT x FROM t")
        cursor.fetchone()
        stream.fetchone()
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.fetchone()
    with pool.get_connection_context() as conn:
        conn.execute("INSERT INTO t VALUES (0)")
        conn.commit()
        assert conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert os.stat(path + "-wal").st_size == 0


def test_settings_are_restored(make: Make) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as first:
        first.row_factory = None
        first.isolation_level = None
        first.execute("PRAGMA foreign_keys = OFF")
        first.execute("pragma QUERY_only = 1")
        first.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    with pool.get_connection_context() as second:
        assert second is first
        assert second.row_factory is sqlite3.Row
        assert second.isolation_level == ""
        assert second.fetch_row("PRAGMA foreign_keys") == (1,)
        second.execute("CREATE TABLE t (x)")


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "set_busy_timeout"), reason="pysqlite3 alone has these methods")
def test_busy_settings_of_pysqlite3_are_restored(make: Make) -> None:
    pool = make(max_connections=1, busy_timeout=3)
    for change in (lambda c: c.set_busy_timeout(0.5), lambda c: c.set_busy_handler(lambda n: False)):
        with pool.get_connection_context() as first:
            change(first)
        with pool.get_connection_context() as second:
            assert second is first
            assert second.fetch_row("PRAGMA busy_timeout") == (3000,)


@pytest.mark.parametrize("statement", ["ATTACH ':memory:' AS other", "CREATE TEMP TABLE mine (x)"])
def test_what_cannot_be_undone_is_replaced(make: Make, statement: str) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as first:
        first.execute(statement)
        first.commit()
    with pool.get_connection_context() as second:
        assert second is not first
        assert len(second.fetch_all("PRAGMA database_list")) == 1


def test_a_word_like_temp_costs_no_connection(make: Make) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as first:
        first.execute("SELECT 1 AS temp")
    with pool.get_connection_context() as second:
        assert second is first


def test_a_broken_connection_is_replaced(make: Make, path: str) -> None:
    """After an error that may mean damage a connection has to read the schema before it is used again."""
    pool = make(max_connections=1)
    with pool.get_connection_context() as first:
        first.execute("CREATE TABLE t (x)")
        first.commit()
        with pytest.raises(sqlite3.OperationalError):
            first.execute("SELECT 1 FROM absent")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA writable_schema = ON")
    good = other.execute("SELECT sql FROM sqlite_schema").fetchone()[0]
    with pool.get_connection_context() as again:
        assert again is first  # it could
        other.execute("UPDATE sqlite_schema SET sql = 'CREATE nonsense'")
        other.execute("PRAGMA schema_version = 99")
        with pytest.raises(sqlite3.DatabaseError, match="malformed"):
            again.execute("SELECT * FROM t")
    assert pool.get_statistics().pool_size == 0  # it couldn't
    other.execute("UPDATE sqlite_schema SET sql = ?", (good,))
    other.execute("PRAGMA schema_version = 100")
    other.close()
    with pool.get_connection_context() as second:
        assert second.fetch_all("SELECT * FROM t") == []
    assert second is not first


def test_closed_by_its_user(make: Make) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as first:
        first.close()
    with pool.get_connection_context(timeout=0) as second:
        assert second is not first
    stats = pool.get_statistics()
    assert (stats.total_acquired, stats.total_released, stats.connections_closed) == (2, 2, 1)


def test_wrong_returns_are_named(make: Make, tmp_path: Path) -> None:
    pool = make()
    conn = pool.get_connection()
    pool.return_connection(conn)
    with pytest.raises(ProgrammingError, match="before"):
        pool.return_connection(conn)
    with ConnectionPool(tmp_path / "other.db") as other:
        stranger = other.get_connection()
        with pytest.raises(ProgrammingError, match="not a connection of the pool"):
            pool.return_connection(stranger)
        other.return_connection(stranger)


def test_connection_in_use_by_another_thread_is_not_reused(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    inside, leave = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        leave.wait(DEADLINE_S)
        return 1

    conn.create_function("block", 0, block)
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            conn.execute("SELECT block()").fetchone()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(DEADLINE_S)
    timer = threading.Timer(0.05, leave.set)
    timer.start()
    pool.return_connection(conn)
    thread.join(DEADLINE_S)
    with pool.get_connection_context() as second:
        assert second is not conn
    timer.join()


# ---- callbacks


def test_configure_is_called_once_per_connection_and_persists(make: Make) -> None:
    seen: list[Any] = []

    def configure(conn: Connection) -> None:
        seen.append(conn)
        conn.row_factory = None

    pool = make(configure=configure, max_connections=1)
    for _ in range(3):
        with pool.get_connection_context() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    assert seen == [conn]


@pytest.mark.parametrize("way", ["raises", "open transaction"])
def test_bad_configure(make: Make, way: str) -> None:
    calls: list[int] = []

    def configure(conn: Connection) -> None:
        calls.append(1)
        if len(calls) == 1:
            if way == "raises":
                raise ValueError("no")
            conn.execute("BEGIN")

    pool = make(configure=configure, max_connections=1, sleep=lambda _: None)
    with pool.get_connection_context() as conn:
        assert not conn.in_transaction
    assert len(calls) == 2
    stats = pool.get_statistics()
    assert (stats.pool_size, stats.connections_closed, stats.connections_failed) == (1, 1, 1)


def test_configure_that_never_works_names_the_cause(make: Make) -> None:
    def configure(conn: Connection) -> None:
        raise ValueError("the moon is full")

    pool = make(configure=configure, timeout=0.05)
    with pytest.raises(OperationalError, match="the moon is full"):
        pool.get_connection()
    assert pool.get_statistics().pool_size == 0


@pytest.mark.parametrize("way", ["raises", "open transaction", "closes"])
def test_bad_reset(make: Make, way: str) -> None:
    bad: list[Connection] = []

    def reset(conn: Connection) -> None:
        assert not conn.in_transaction
        if not bad:
            bad.append(conn)
            if way == "raises":
                raise ValueError("no")
            conn.close() if way == "closes" else conn.execute("BEGIN")

    pool = make(reset=reset, max_connections=1)
    for _ in range(3):
        with pool.get_connection_context() as conn:
            pass
    assert conn is not bad[0]
    stats = pool.get_statistics()
    assert (stats.total_connections_created, stats.connections_closed, stats.total_released) == (2, 1, 3)


def test_bad_check_replaces(make: Make) -> None:
    checked: list[Connection] = []

    def check(conn: Connection) -> None:
        checked.append(conn)
        if len(checked) == 2:
            raise ValueError("stale")

    pool = make(check=check, max_connections=1)
    with pool.get_connection_context() as first:
        pass
    with pool.get_connection_context() as second:
        pass
    assert first is not second
    assert checked == [first, first, second]


def test_verify_raises_to_the_user(make: Make) -> None:
    def verify(conn: Connection) -> None:
        raise ShardUnavailableError("of another database")

    pool = make(verify=verify)
    with pytest.raises(ShardUnavailableError, match="of another database"):
        pool.get_connection()
    assert pool.get_statistics().pool_size == 0


# ---- failures to open


def test_open_failures_name_file_and_cause(tmp_path: Path) -> None:
    pool = ConnectionPool(tmp_path / "missing" / "a.db")
    with pytest.raises(ShardUnavailableError, match=r"missing.*does not exist"):
        pool.get_connection()
    pool = ConnectionPool(tmp_path / "b.db", create=False)
    with pytest.raises(ShardUnavailableError, match=r"b\.db: the file does not exist"):
        pool.get_connection()
    assert not (tmp_path / "b.db").exists()
    (tmp_path / "c.db").write_bytes(b"this is not a database at all, but a text" * 100)
    pool = ConnectionPool(tmp_path / "c.db")
    with pytest.raises(ShardUnavailableError, match=r"c\.db is not a SQLite database"):
        pool.get_connection()
    (tmp_path / "d.db").mkdir()
    pool = ConnectionPool(tmp_path / "d.db", max_connections=1)
    for _ in range(3):  # the place is given back each time
        with pytest.raises(ShardUnavailableError, match="it is a directory"):
            pool.get_connection(timeout=0.1)
    assert pool.get_statistics().pool_size == 0


def test_reconnects_with_backoff(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardlite.connection import pool_opening

    rests: list[float] = []
    real = pool_opening.open_connection

    def flaky(*args: Any) -> Connection:
        if len(rests) < 5:
            error = OperationalError("unable to open")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return real(*args)

    monkeypatch.setattr(pool_opening, "open_connection", flaky)
    pool = make(sleep=rests.append)
    with pool.get_connection_context():
        pass
    assert len(rests) == 5
    assert all(later > 1.2 * earlier for earlier, later in pairwise(rests))
    assert pool.get_statistics().connections_failed == 5


# ---- one thread's connections


def test_check_same_thread(make: Make) -> None:
    pool = make(check_same_thread=True, max_connections=2)
    with pool.get_connection_context() as mine:
        pass
    theirs = in_thread(lambda: take_and_return(pool))
    assert theirs is not mine
    with pool.get_connection_context() as again:
        assert again is mine


def take_and_return(pool: ConnectionPool) -> Connection:
    conn = pool.get_connection(timeout=DEADLINE_S)
    pool.return_connection(conn)
    return conn


def test_check_same_thread_has_no_dead_end(make: Make) -> None:
    """All idle connections belong to another thread that lives: one of them gives way."""
    pool = make(check_same_thread=True, max_connections=1, timeout=DEADLINE_S)
    with pool.get_connection_context() as mine:
        pass
    assert in_thread(lambda: take_and_return(pool)) is not mine
    assert mine.doomed
    assert pool.get_statistics().pool_size == 1


def test_check_same_thread_hands_the_place_to_a_waiter(make: Make) -> None:
    pool = make(check_same_thread=True, max_connections=1, timeout=DEADLINE_S)
    mine = pool.get_connection()
    taker = Taker(pool)
    wait_until(lambda: pool.get_statistics().waiting_threads == 1)
    pool.return_connection(mine)
    assert taker.took.wait(DEADLINE_S)
    assert taker.got is not None
    assert taker.got is not mine
    taker.go_on.set()
    taker.join(DEADLINE_S)


def test_check_same_thread_closes_those_of_ended_threads(make: Make) -> None:
    pool = make(check_same_thread=True, max_connections=3)
    in_thread(lambda: take_and_return(pool))
    pool.maintain()
    assert pool.get_statistics().pool_size == 0


# ---- lost connections


@pytest.mark.parametrize("kept", [False, True], ids=["forgotten", "still referred to"])
def test_connection_of_an_ended_thread_comes_back(make: Make, kept: bool) -> None:
    pool = make(max_connections=1)
    shelf: list[Connection] = []

    def lose() -> None:
        conn = pool.get_connection()
        conn.fetch_row("SELECT 1")  # makes the inner cursor, and with it a reference cycle
        if kept:
            shelf.append(conn)

    in_thread(lose)
    with pool.get_connection_context(timeout=DEADLINE_S):
        pass
    if kept:
        with pytest.raises(PoolClosedError, match="ended"):
            shelf[0].execute("SELECT 1")
    assert pool.get_statistics().connections_reclaimed == 1


def test_forgotten_connection_comes_back_while_its_thread_lives(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    conn.fetch_row("SELECT 1")
    cursor = conn.execute("SELECT 1")
    del conn
    with pytest.raises(PoolExhaustedError):  # a cursor is a reference too
        pool.get_connection(timeout=0)
    del cursor
    pool.return_connection(pool.get_connection(timeout=0))


def test_open_transaction_of_an_ended_thread_ends_though_somebody_refers_to_it(make: Make) -> None:
    """A variable that had the connection before keeps it from being garbage; its write lock must not stay."""
    pool = make(max_connections=2, busy_timeout=0.001)
    with pool.get_connection_context() as stale:
        stale.execute("CREATE TABLE t (x)")

    def lose() -> None:
        conn = pool.get_connection()
        assert conn is stale
        conn.execute("INSERT INTO t VALUES (1)")

    in_thread(lose)
    with pool.get_connection_context() as conn:
        conn.execute("INSERT INTO t VALUES (2)")  # not locked
    assert stale.doomed
    assert pool.get_statistics().connections_reclaimed == 1


def test_connection_handed_to_another_thread_lives_on_after_the_taker(make: Make) -> None:
    pool = make(max_connections=2)
    conn = in_thread(pool.get_connection)
    assert conn.fetch_row("SELECT 1") == (1,)
    pool.return_connection(conn)


def test_block_that_never_came_to_its_end(make: Make) -> None:
    """As when an interrupt strikes the first instruction of ``__exit__``: the block is gone, the variable is not."""
    pool = make(max_connections=1)
    context = pool.get_connection_context()
    kept = context.__enter__()
    assert pool._reclaim() == 0
    del context
    with pool.get_connection_context(timeout=0) as conn:
        assert conn is not kept
    assert kept.doomed


def test_returned_within_its_block(make: Make) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as conn:
        pool.return_connection(conn)
        again = pool.get_connection(timeout=0)
    assert again is conn
    assert pool._reclaim() == 0
    assert pool.get_statistics().active_connections == 1  # the block didn't return what somebody else has
    pool.return_connection(again)


def test_closing_that_was_interrupted_is_finished(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardlite.connection import closing as module

    pool = make(max_connections=1)
    conn = pool.get_connection()

    def interrupt(*args: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_drain", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.close_connection(conn)
    pool.return_connection(pool.get_connection(timeout=0))
    assert pool.get_statistics().pool_size == 1


def test_leaks_are_reported(make: Make) -> None:
    """Who took it, since when, from which line."""
    clock = Clock()
    pool = make(max_connections=3, clock=clock)
    mine = pool.get_connection()
    taker = Taker(pool)
    assert taker.took.wait(DEADLINE_S)
    clock.now += 7.5
    with pool.get_connection_context():
        first, second, third = pool.holders()
    line = test_leaks_are_reported.__code__.co_firstlineno + 4
    name = threading.current_thread().name
    assert first == f"thread {name!r} for 7.5 s, taken at {__file__}:{line} in test_leaks_are_reported"
    assert second.startswith(f"thread {taker.name!r} for 7.5 s, taken at {__file__}:")
    assert second.endswith(" in run")
    assert third == f"thread {name!r} for 0.0 s, taken at {__file__}:{line + 4} in test_leaks_are_reported"
    taker.go_on.set()
    taker.join(DEADLINE_S)
    assert pool.holders() == [first]
    pool.return_connection(mine)
    assert pool.holders() == []


def test_connection_in_use_is_not_reclaimed(make: Make) -> None:
    pool = make(max_connections=1)
    with pool.get_connection_context() as conn:
        for _ in range(3):
            assert pool._reclaim() == 0
        assert conn.fetch_row("SELECT 1") == (1,)
    with pool.get_connection_context():  # the context object alone refers to it
        assert pool._reclaim() == 0


# ---- close, reopen, go away


def test_close_all_open_again(make: Make) -> None:
    pool = make(max_connections=2)
    held = pool.get_connection()
    pool.close_all()
    pool.close_all()
    assert pool.closed
    assert "closed" in repr(pool)
    with pytest.raises(PoolClosedError, match="open\\(\\) opens it again"):
        pool.get_connection()
    with pytest.raises(PoolClosedError, match="its pool was closed"):
        held.execute("SELECT 1")
    with pytest.raises(PoolClosedError):
        held.fetch_row("SELECT 1")
    pool.return_connection(held)
    assert pool.get_statistics().pool_size == 0
    pool.open()
    with pool.get_connection_context() as conn:
        assert conn.fetch_row("SELECT 1") == (1,)
    stats = pool.get_statistics()
    assert (stats.total_acquired, stats.total_released) == (2, 2)


def test_open_again_opens_the_minimum(make: Make) -> None:
    pool = make(min_connections=2, max_connections=4)
    pool.close_all()
    assert pool.get_statistics().pool_size == 0
    with pool:
        assert pool.get_statistics().idle_connections == 2
    assert pool.closed


def test_close_all_while_a_connection_is_being_opened(make: Make) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def configure(conn: Connection) -> None:
        inside.set()
        go_on.wait(DEADLINE_S)

    pool = make(configure=configure)
    taker = Taker(pool)
    assert inside.wait(DEADLINE_S)
    closer = threading.Thread(target=pool.close_all)
    closer.start()
    wait_until(lambda: pool.closed)
    go_on.set()
    closer.join(DEADLINE_S)
    assert taker.took.wait(DEADLINE_S)
    assert isinstance(taker.error, PoolClosedError)
    stats = pool.get_statistics()
    assert (stats.pool_size, stats.total_connections_created, stats.connections_closed) == (0, 1, 1)


def test_close_all_wakes_who_waits(make: Make) -> None:
    pool = make(max_connections=1)
    conn = pool.get_connection()
    takers = [Taker(pool) for _ in range(3)]
    wait_until(lambda: pool.get_statistics().waiting_threads == 3)
    pool.close_all()
    for taker in takers:
        assert taker.took.wait(DEADLINE_S)
        assert isinstance(taker.error, PoolClosedError)
    assert conn.doomed


def test_last_release_and_close_leave_nothing(make: Make, path: str, tmp_path: Path) -> None:
    pool = make()
    conn = pool.get_connection()
    conn.execute("CREATE TABLE t (x)")
    assert os.path.exists(path + "-wal")
    pool.close_all()
    assert sorted(os.listdir(tmp_path)) == ["app.db"]
    assert not open_files_under(tmp_path)


def test_no_reference_cycle(path: str) -> None:
    gc.disable()
    try:
        pool = ConnectionPool(path)
        with pool.get_connection_context() as conn:
            conn.fetch_row("SELECT 1")
        pool.close_all()
        ref = weakref.ref(pool)
        del pool
        assert ref() is None
        pool = ConnectionPool(path)
        with pool.get_connection_context():
            pass
        ref = weakref.ref(pool)
        del pool  # unclosed: its idle connections close with it
        assert ref() is None
    finally:
        gc.enable()


def test_repr_states_the_condition(make: Make, path: str) -> None:
    pool = make(max_connections=3)
    with pool.get_connection_context():
        assert repr(pool) == f"<ConnectionPool {path!r} open: 1 active, 0 idle, 1 of 3 open, 0 waiting>"
    assert repr(pool) == f"<ConnectionPool {path!r} open: 0 active, 1 idle, 1 of 3 open, 0 waiting>"


def test_statistics_as_dict_and_dataclass(make: Make) -> None:
    pool = make()
    with pool.get_connection_context():
        stats = pool.get_statistics()
        assert pool.get_pool_stats() == stats.as_dict()
    with pytest.raises(AttributeError):
        stats.pool_size = 5
    assert stats.active_connections == 1
    assert abs(stats.created_at - time.time()) < 100


# ---- all together


@pytest.mark.parametrize("same_thread", [False, True])
def test_statistics_are_exact_under_concurrency(make: Make, same_thread: bool) -> None:
    pool = make(max_connections=3, timeout=DEADLINE_S, check_same_thread=same_thread)
    users: list[int] = []
    most: list[int] = []
    rounds = 40 if same_thread else 400

    def work() -> None:
        for _ in range(rounds):
            with pool.get_connection_context() as conn:
                assert conn.holder is not None
                assert conn.holder[0].ident == threading.get_ident()
                assert conn.opener is conn.holder[0] or not same_thread
                users.append(1)
                most.append(len(users))
                users.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S * 3)
    assert max(most) <= 3
    stats = pool.get_statistics()
    assert stats.total_acquired == stats.total_released == 6 * rounds
    assert stats.pool_hits + stats.pool_misses == 6 * rounds
    assert stats.total_connections_created - stats.connections_closed == stats.pool_size <= 3
    assert (stats.active_connections, stats.waiting_threads, stats.total_timeouts) == (0, 0, 0)


def test_statistics_are_exact_on_every_way(make: Make) -> None:
    """Single statements without the lock, the other ways, errors, time-outs, closed ones; looked at all the while."""
    pool = make(max_connections=2, timeout=DEADLINE_S, isolation_level=None)
    with pool.get_connection_context() as conn:
        conn.execute("CREATE TABLE t (x)")
    counts = {"took": 1, "timed out": 0, "closed": 0}
    counting, stop = threading.Lock(), threading.Event()
    problems: list[object] = []

    def count(what: str) -> None:
        with counting:
            counts[what] += 1

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(150):
            way = chance.randrange(8)
            try:
                # Whoever closes the last connection has the file locked for a moment.
                retry_busy(partial(one_use, way), time.monotonic() + DEADLINE_S, "to use it")
            except BaseException as error:
                problems.append(error)

    def one_use(way: int) -> None:
        if way < 6:
            count("took")
        if way <= 1:
            pool.express_row("SELECT count(*) FROM t")
        elif way == 2:
            pool.express_all("SELECT x FROM t LIMIT 2")
        elif way == 3:
            with pool.gate.held(DEADLINE_S):
                pool.express_write("INSERT INTO t VALUES (1)")
        elif way == 4:
            try:
                pool.express_row("SELECT 1 FROM absent")
            except sqlite3.OperationalError as error:
                if is_busy(error):
                    raise
        elif way == 5:
            pool.release(pool.acquire())
        elif way == 6:
            pool.close_connection(pool.get_connection())
            count("took")
            count("closed")
        else:
            try:
                pool.return_connection(pool.get_connection(timeout=0))
            except PoolExhaustedError:
                count("timed out")
                return
            count("took")

    def look() -> None:
        while not stop.is_set():
            stats = pool.get_statistics()
            if stats.active_connections + stats.idle_connections > stats.pool_size or stats.pool_size > 2:
                problems.append(stats)
            if stats.total_released > stats.total_acquired:
                problems.append(stats)
            time.sleep(0.0005)

    watcher = threading.Thread(target=look)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S * 3)
    stop.set()
    watcher.join()
    assert not problems, problems[:3]
    stats = pool.get_statistics()
    assert stats.total_acquired == stats.total_released == stats.pool_hits + stats.pool_misses == counts["took"]
    assert stats.total_timeouts == counts["timed out"]
    assert stats.total_connections_created - stats.connections_closed == stats.pool_size == stats.idle_connections
    assert stats.connections_closed >= counts["closed"]
    assert (stats.active_connections, stats.waiting_threads, stats.connections_failed) == (0, 0, 0)


def test_a_single_statement_counts_and_is_named(make: Make) -> None:
    """It notes nothing itself; it is found in its thread's stack."""
    inside, leave = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        leave.wait(DEADLINE_S)
        return 1

    def configure(conn: Connection) -> None:
        conn.create_function("block", 0, block)

    pool = make(max_connections=1, isolation_level=None, configure=configure)
    pool.release(pool.acquire())
    thread = threading.Thread(target=lambda: pool.express_row("SELECT block()"), name="asker")
    thread.start()
    assert inside.wait(DEADLINE_S)
    try:
        stats = pool.get_statistics()
        assert (stats.active_connections, stats.idle_connections, stats.pool_size) == (1, 0, 1)
        line = test_a_single_statement_counts_and_is_named.__code__.co_firstlineno + 14
        (text,) = pool.holders()
        assert text.startswith("thread 'asker' for at most ")
        assert f"{os.path.basename(__file__)}:{line} in <lambda>" in text
        assert [reader.holder for reader in pool.readers()] == [text]
        with pytest.raises(PoolExhaustedError, match="thread 'asker' for at most"):
            pool.acquire(timeout=0)
    finally:
        leave.set()
        thread.join(DEADLINE_S)
    assert pool.holders() == []


def random_checkouts(pool: ConnectionPool, rounds: int, seed: int) -> None:
    """Threads that raise, time out, close, forget, and die with a connection."""
    chance = random.Random(seed)

    def life(steps: int, own: random.Random) -> None:
        for _ in range(steps):
            try:
                with pool.get_connection_context(timeout=own.choice([0, 0.001, 5])) as conn:
                    what = own.random()
                    if what < 0.1:
                        conn.execute("INSERT INTO t VALUES (1)")
                    elif what < 0.2:
                        raise ZeroDivisionError
                    elif what < 0.22:
                        conn.close()
            except (ZeroDivisionError, PoolExhaustedError):
                pass
        if own.random() < 0.5:
            with_out_return = pool.get_connection(timeout=DEADLINE_S)
            with_out_return.execute("INSERT INTO t VALUES (2)")

    done = 0
    while done < rounds:
        threads = [threading.Thread(target=life, args=(100, random.Random(chance.random()))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S * 3)
            assert not thread.is_alive()
        done += 500


def check_random_checkouts(make: Make, rounds: int) -> None:
    pool = make(max_connections=3)
    with pool.get_connection_context() as conn:
        conn.execute("CREATE TABLE t (x)")
    random_checkouts(pool, rounds, seed=7)
    held = [pool.get_connection(timeout=DEADLINE_S) for _ in range(3)]
    assert pool.get_statistics().pool_size == 3
    assert held[0].fetch_row("SELECT count(*) FROM t") == (0,)
    for each in held:
        pool.return_connection(each)


def test_random_checkouts_leak_nothing(make: Make) -> None:
    check_random_checkouts(make, 2500)


@pytest.mark.slow
def test_random_checkouts_leak_nothing_long(make: Make) -> None:
    check_random_checkouts(make, 100_000)


@pytest.mark.parametrize("thing", [None, "conn"])
def test_what_is_no_connection_cannot_be_returned(tmp_path: Path, thing: Any) -> None:
    other = sqlite3.connect(":memory:")
    with ConnectionPool(tmp_path / "a.db") as pool:
        for call in (pool.return_connection, pool.close_connection, pool.release):
            with pytest.raises(ProgrammingError, match="not a connection of the pool"):
                call(other if thing == "conn" else thing)
    other.close()
