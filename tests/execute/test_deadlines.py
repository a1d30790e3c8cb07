"""A statement's timeout covers all of it, wherever it is when the time is over, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.errors import OperationalError, PoolExhaustedError, ProgrammingError, StatementTimeoutError

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


# -- statements that are no queries and no changes of rows -------------------------------------------------------------


@pytest.fixture
def pace(filled: ShardManager) -> list[float]:
    """A table whose CHECK sleeps for as long as the list says, and a function ``paced`` that does."""
    seconds = [0.0]
    filled.create_function("paced", 1, lambda x: time.sleep(seconds[0]) or x, deterministic=True)
    filled.execute("CREATE TABLE c(id INTEGER PRIMARY KEY, a, CHECK (paced(a) >= 0))")
    filled.insert_many("c", ({"id": i, "a": i} for i in range(400)))
    return seconds


def described(manager: ShardManager) -> list[Any]:
    """Return what the catalog and every file say of the schema."""
    found: list[Any] = [list(manager.tables), manager.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()]
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            found.append(conn.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid").fetchall())
            found.append(conn.execute("PRAGMA user_version").fetchall())
    return found


SCHEMA_CHANGES = {
    "CREATE INDEX": "CREATE INDEX by_a ON c(paced(a))",
    "CREATE UNIQUE INDEX": "CREATE UNIQUE INDEX one ON c(id, paced(a))",
    "ALTER TABLE": "ALTER TABLE c ADD COLUMN more CHECK (paced(a) < 1000)",
    "CREATE TABLE AS": "CREATE TABLE made AS SELECT paced(a) AS a FROM c",
    "CREATE TABLE AS, over the shards": "CREATE TABLE made /* shardlite: key=a */ AS SELECT paced(a) AS a FROM c",
}


@pytest.mark.parametrize("what", SCHEMA_CHANGES)
def test_a_schema_change_cut_short_is_undone(
    filled: ShardManager, require_clean: Callable[[], None], pace: list[float], what: str
) -> None:
    before = described(filled)
    pace[0] = 0.02
    started = time.monotonic()
    with pytest.raises(StatementTimeoutError, match=r"its timeout of 0\.2 s"):
        filled.execute(SCHEMA_CHANGES[what], timeout=0.2)
    assert time.monotonic() - started < 6, "400 rows of 20 ms take 8 seconds"
    pace[0] = 0.0
    assert described(filled) == before
    assert filled.database.catalog.jobs() == ()
    require_clean()
    filled.execute(SCHEMA_CHANGES[what], timeout=LONG_S)
    assert described(filled) != before
    filled.insert("c", {"id": 1_000, "a": 1})
    assert filled.check().ok


def test_a_check_of_all_shards_is_ended(filled: ShardManager, pace: list[float]) -> None:
    pace[0] = 0.02
    started = time.monotonic()
    with pytest.raises(StatementTimeoutError):
        filled.execute("PRAGMA integrity_check", timeout=0.2)
    assert time.monotonic() - started < 6
    pace[0] = 0.0
    assert filled.execute("PRAGMA integrity_check", timeout=LONG_S).fetchall() == [("ok",)]


def test_many_sets_of_parameters_have_one_timeout(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    before = filled.execute("SELECT sum(a), max(b) FROM t").fetchall()
    for sql in (
        "UPDATE t SET a = slow(1 + ?) + slow(2) + slow(3) WHERE id = ?",
        "INSERT INTO t(a, b) VALUES (slow(1 + ?) + slow(2) + slow(3), ?)",
        "UPDATE t SET a = slow(?) WHERE id = ? RETURNING a",
    ):
        started = time.monotonic()
        with pytest.raises(StatementTimeoutError, match=r"its timeout of 0\.3 s"):
            filled.executemany(sql, [(n, n) for n in range(1, 7_000)], timeout=0.3)
        assert time.monotonic() - started < 6, "7,000 rows take at least 7 seconds"
        require_clean()
    assert filled.execute("SELECT sum(a), max(b) FROM t").fetchall() == before

    def late() -> Any:
        yield (1, 1)
        time.sleep(0.3)
        yield (2, 2)

    with pytest.raises(StatementTimeoutError):
        filled.executemany("UPDATE t SET a = ? WHERE id = ?", late(), timeout=0.2)
    assert filled.executemany("UPDATE t SET a = a + 0 * ? WHERE id = ?", [(1, 1), (2, 2)], timeout=LONG_S).rowcount == 2
    for wrong in (-1, "x", True):
        with pytest.raises(ProgrammingError, match="timeout"):
            filled.executemany("UPDATE t SET a = ?", [(1,)], timeout=wrong)  # type: ignore[arg-type]  # what is tested
    require_clean()
    assert filled.execute("SELECT sum(a), max(b) FROM t").fetchall() == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE t SET a = a + 1",
        *("CREATE TABLE more(a)", "DROP TABLE t", "PRAGMA user_version = 3", "VACUUM", "PRAGMA optimize", "ANALYZE"),
        *("CREATE TABLE more AS SELECT 1 AS a", "ALTER TABLE t RENAME TO u"),
    ],
)
def test_waiting_for_another_writer_counts_for_all(
    filled: ShardManager, require_clean: Callable[[], None], sql: str
) -> None:
    before = described(filled)
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
            filled.execute(sql, timeout=0.2)
        assert time.monotonic() - started < PATIENCE_S
    finally:
        done.set()
        holder.join()
    assert described(filled) == before
    require_clean()


@pytest.mark.parametrize("sql", ["EXPLAIN QUERY PLAN SELECT sum(a) FROM t", "PRAGMA quick_check"])
def test_waiting_for_connections_counts_for_what_only_asks(filled: ShardManager, sql: str) -> None:
    with_all = [filled.pool(1).get_connection() for _ in range(filled.config.max_connections_per_shard)]
    try:
        started = time.monotonic()
        with pytest.raises(PoolExhaustedError):
            filled.execute(sql, timeout=0.2)
        assert time.monotonic() - started < PATIENCE_S
    finally:
        for conn in with_all:
            filled.pool(1).release(conn)


def test_waiting_for_another_schema_change_counts(filled: ShardManager, pace: list[float]) -> None:
    pace[0] = 0.005
    other = threading.Thread(target=filled.execute, args=("CREATE INDEX by_a ON c(paced(a))",))
    other.start()
    try:
        with pytest.raises(OperationalError):
            filled.execute("CREATE TABLE more(a)", timeout=0.1)
    finally:
        other.join()
    assert "more" not in filled.tables
    filled.execute("CREATE TABLE more(a)", timeout=LONG_S)
