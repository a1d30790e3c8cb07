"""A statement's timeout covers all of it, wherever it is when the time is over, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.errors import OperationalError, PoolExhaustedError, StatementTimeoutError

FOREVER = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n WHERE x < t.a)"
LONG_S = 60.0
"""What a statement below would take at the least if nothing ended it."""
PATIENCE_S = 20.0
"""A machine that is busy may be late, but not by so much."""


def slow(x: Any) -> Any:
    time.sleep(0.001)
    return x


@pytest.fixture(autouse=True)
def registered(filled: ShardManager) -> None:
    filled.create_function("slow", 1, slow, deterministic=True)


WHERE_IT_IS = {
    "one shard": "SELECT " + FOREVER + " FROM t WHERE id = 5",
    "fan-out": "SELECT id FROM t WHERE slow(a) + slow(a) + slow(a) + slow(a) + slow(a) + slow(a) + slow(a) < 0",
    "sorted fan-out": "SELECT id FROM t ORDER BY slow(a) + slow(a) + slow(a) + slow(b) + slow(b) + slow(id) + slow(id)",
    "push-down": "SELECT sum(slow(a) + slow(b) + slow(id) + slow(a) + slow(b) + slow(id) + slow(1)) FROM t",
    "gather": "SELECT count(*) FROM t JOIN t u JOIN t v ON u.a = v.a AND t.b < u.b AND u.id > v.b",
    "home shard": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
    "UPDATE of one shard": "UPDATE t SET a = " + FOREVER + " WHERE id = 5",
    "UPDATE of all shards": "UPDATE t SET a = (SELECT slow(t.a) + slow(t.b) + slow(t.id) + slow(1) + slow(2))",
    "gather and write": "UPDATE t SET a = (SELECT count(*) FROM t u JOIN t v WHERE u.b < v.b AND u.a < t.a)",
}


@pytest.mark.parametrize("where", WHERE_IT_IS)
def test_what_runs_is_ended(filled: ShardManager, require_clean: Callable[[], None], where: str) -> None:
    sql = WHERE_IT_IS[where]
    before = filled.execute("SELECT sum(a), count(*) FROM t").fetchall()
    started = time.monotonic()
    with pytest.raises(StatementTimeoutError) as caught:
        filled.execute(sql, timeout=0.3).fetchall()
    assert time.monotonic() - started < PATIENCE_S
    assert "its timeout of 0.3 s" in str(caught.value)
    assert sql[:60] in str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    require_clean()
    assert filled.execute("SELECT sum(a), count(*) FROM t").fetchall() == before


@pytest.mark.parametrize(
    "sql",
    ["SELECT id FROM t", "SELECT t.id, u.b FROM t LEFT JOIN t u ON u.id = t.id", "SELECT id FROM t ORDER BY b DESC"],
)
def test_reading_the_rows_counts(filled: ShardManager, require_clean: Callable[[], None], sql: str) -> None:
    rows = iter(filled.execute(sql, timeout=2))
    next(rows)
    time.sleep(2.1)
    with pytest.raises(StatementTimeoutError, match="its timeout of 2 s"):
        sum(1 for _ in rows)
    require_clean()


def test_reading_what_the_coordinator_gives_counts(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    rows = iter(filled.execute("SELECT t.id, u.id FROM t, t u WHERE t.a + u.a > 1", timeout=2))
    next(rows)
    time.sleep(2.1)
    with pytest.raises(StatementTimeoutError, match="its timeout of 2 s"):
        sum(1 for _ in rows)
    require_clean()


def test_an_unread_result_is_not_held_for_ever(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    result = filled.execute("SELECT id FROM t", timeout=0.5)
    time.sleep(0.7)
    result.close()
    require_clean()
    result = filled.execute("SELECT id FROM t", timeout=0.5)
    del result
    require_clean()


def test_waiting_for_connections_counts(filled: ShardManager) -> None:
    with_all = [filled.pool(1).get_connection() for _ in range(filled.config.max_connections_per_shard)]
    try:
        started = time.monotonic()
        with pytest.raises(PoolExhaustedError) as caught:
            filled.execute("SELECT count(*) FROM t", timeout=0.2)
        assert 0.2 <= time.monotonic() - started < PATIENCE_S
        assert "SELECT count(*) FROM t" in "".join(caught.value.__notes__)
    finally:
        for conn in with_all:
            filled.pool(1).release(conn)


def test_waiting_for_a_write_lock_counts(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filled.database.write_scope([2]):
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        started = time.monotonic()
        with pytest.raises(OperationalError):
            filled.execute("UPDATE t SET a = a + 1", timeout=0.2)
        assert time.monotonic() - started < PATIENCE_S
    finally:
        done.set()
        holder.join()
    require_clean()


def test_a_timeout_that_is_long_enough_changes_nothing(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    for sql in ("SELECT * FROM t WHERE id = 7", "SELECT * FROM t", "SELECT a, count(*) FROM t GROUP BY a ORDER BY a"):
        assert filled.execute(sql, timeout=LONG_S).fetchall() == filled.execute(sql).fetchall()
    assert filled.execute("UPDATE t SET a = a WHERE id < 100", timeout=LONG_S).rowcount == 99
    require_clean()


def test_the_next_statement_of_a_connection_is_not_interrupted(filled: ShardManager) -> None:
    """Many short timeouts beside each other: whoever has the connection next must not feel them."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def time_out() -> None:
        while not stop.is_set():
            try:
                filled.execute(WHERE_IT_IS["one shard"], timeout=0.005)
            except (StatementTimeoutError, PoolExhaustedError):  # so little time may be over while it waits
                continue
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=time_out) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert filled.execute("SELECT count(*) FROM t u WHERE id > 0").scalar() == 8_000
            assert filled.execute("SELECT id FROM t WHERE id = 5").scalar() == 5
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_the_first_error_ends_the_other_shards(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    """One shard fails at once while the others would be busy for minutes."""
    bad = next(key for key in range(1, 100) if filled.router.shard_for("t", key) == 0)

    def fail_at(key: int) -> bool:
        if key == bad:
            raise ValueError(key)
        time.sleep(0.05)
        return False

    filled.create_function("fail_at", 1, fail_at, deterministic=True)
    for sql in ("SELECT id FROM t WHERE fail_at(id)", "SELECT count(*), sum(a) FROM t WHERE fail_at(id)"):
        started = time.monotonic()
        with pytest.raises(OperationalError, match=r"^user-defined function raised exception \[shard 0: SELECT"):
            filled.execute(sql)
        assert time.monotonic() - started < PATIENCE_S
        require_clean()
