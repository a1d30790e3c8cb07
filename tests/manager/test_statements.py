"""execute, executemany, explain: against one plain file, and what a Result holds and gives back."""

from __future__ import annotations

import gc
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import DRIVER_NAME, sqlite3
from shardlite.errors import IntegrityError, InterfaceError, OperationalError, ProgrammingError, RoutingError

Make = Callable[..., ShardManager]

SCHEMA = {
    "users": "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, age INT, score REAL DEFAULT 1.5)",
    "orders": "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users ON DELETE CASCADE, total)",
    "tags": "CREATE TABLE tags (name TEXT PRIMARY KEY, n INT) WITHOUT ROWID",
    "codes": "CREATE TABLE codes (code TEXT PRIMARY KEY, n INT)",
    "notes": "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT UNIQUE)",
}
OPTIONS: dict[str, dict[str, Any]] = {"orders": {"shard_key": "user_id"}, "codes": {"kind": "reference"}}


class Pair:
    """The same statements on a manager and on one file."""

    def __init__(self, manager: ShardManager) -> None:
        self.manager = manager
        self.plain = sqlite3.connect(":memory:", isolation_level=None)
        self.plain.execute("PRAGMA foreign_keys = ON")
        for name, ddl in SCHEMA.items():
            manager.create_table(ddl, **OPTIONS.get(name, {}))
            self.plain.execute(ddl)

    def run(self, sql: str, parameters: Any = (), *, ordered: bool = True) -> Any:
        """Run on both and compare rows, names, rowcount and lastrowid; an error must be of the same class."""
        try:
            cursor = self.plain.execute(sql, parameters)
            rows = [tuple(row) for row in cursor.fetchall()]
        except sqlite3.Error as error:
            kinds = (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.Error)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            with pytest.raises(kind, match=re.escape(str(error).split(":")[0])):
                self.manager.execute(sql, parameters).fetchall()
            return None
        result = self.manager.execute(sql, parameters)
        if cursor.description:
            # pysqlite3 puts the declared type second; the standard library's driver, and shardlite, None.
            assert result.description == [(column[0], *[None] * 6) for column in cursor.description]
            assert list(result.columns) == [column[0] for column in cursor.description]
        else:
            assert result.description is None
        found = [tuple(row) for row in result]
        if not ordered:
            rows, found = sorted(rows, key=repr), sorted(found, key=repr)
        assert [[(type(v), v) for v in row] for row in found] == [[(type(v), v) for v in row] for row in rows], sql
        count = cursor.rowcount
        if cursor.description and count >= 0:  # of a RETURNING, where pysqlite3 gives an earlier statement's number
            count = self.plain.execute("SELECT changes()").fetchone()[0]
        assert result.rowcount == count, sql
        if (
            sql.startswith(("INSERT INTO", "INSERT OR REPLACE", "REPLACE"))
            and "CONFLICT" not in sql
            and " tags " not in sql
        ):
            assert result.lastrowid == cursor.lastrowid, sql
        else:
            assert result.lastrowid is None, sql
        return found

    def same_content(self) -> None:
        for table in SCHEMA:
            theirs = self.plain.execute(f"SELECT * FROM {table}").fetchall()
            ours = [tuple(row.values()) for row in self.manager.select(table)]
            assert sorted(ours, key=repr) == sorted(theirs, key=repr), table


@pytest.fixture
def pair(manager: ShardManager) -> Iterator[Pair]:
    made = Pair(manager)
    yield made
    made.same_content()
    made.plain.close()


def fill(pair: Pair) -> None:
    for n in range(1, 21):
        pair.run("INSERT INTO users (id, name, age) VALUES (?, ?, ?)", (n, f"User{n % 7}", n % 5))
        pair.run("INSERT INTO orders (user_id, total) VALUES (?, ?)", (n, n * 1.5))
    pair.run("INSERT INTO tags VALUES ('a', 1), ('b', 2), ('c', NULL)")
    pair.run("INSERT INTO codes VALUES ('x', 1), ('y', 2)")
    pair.run("INSERT INTO notes (body) VALUES ('one'), ('two')")


def test_against_one_file(pair: Pair) -> None:
    fill(pair)
    run = pair.run
    run("SELECT * FROM users WHERE id = 3")
    run("SELECT * FROM users WHERE id = ?", (3,))
    run("SELECT * FROM users WHERE id = ?1 AND age = ?2 OR id = ?1 AND name = ?3", (3, 3, "user3"))
    run("SELECT * FROM users WHERE id = :id", {"id": 3})
    run("SELECT * FROM users WHERE id = @id AND name = $name", {"id": 3, "name": "USER3"})
    run("SELECT * FROM users WHERE id = '3'")
    run("SELECT * FROM users WHERE id = 3.0")
    run("SELECT * FROM users WHERE id = 'x'")
    run("SELECT * FROM users WHERE id IS NULL")
    run("SELECT id, upper(name) AS n, age + 1 FROM users WHERE age > ?", (2,))
    run("SELECT u.id, o.total FROM users u JOIN orders o ON o.user_id = u.id WHERE o.total > 5", ordered=False)
    run("SELECT count(*), max(total), sum(total) FROM orders WHERE user_id = 4")
    run("SELECT u.name, (SELECT count(*) FROM orders o WHERE o.user_id = u.id) FROM users u WHERE u.id = 4")
    run("SELECT u.id, c.n FROM users u JOIN codes c ON c.n = u.age", ordered=False)
    run("SELECT n, count(*) FROM codes GROUP BY n ORDER BY n DESC")
    run("SELECT body FROM notes ORDER BY body LIMIT 1")
    run("SELECT 1 + 1, 'a' AS b")
    run("VALUES (1, 2), (3, 4)")
    run("SELECT name FROM tags WHERE name = 'a'")
    run("SELECT * FROM users WHERE id IN (1, 2, 3)", ordered=False)


def test_writes_against_one_file(pair: Pair) -> None:
    fill(pair)
    run = pair.run
    run("INSERT INTO users (name) VALUES ('generated')")
    run("INSERT INTO users DEFAULT VALUES")
    run("INSERT INTO users (id, name) VALUES (100, 'a'), (101, 'b'), (103, 'c')")
    run("INSERT INTO users VALUES (NULL, 'n', 1, 2)")
    run("INSERT INTO users (name) VALUES ('r') RETURNING id, name, score")
    run("INSERT INTO users (id, name) VALUES (100, 'again')")
    run("INSERT OR IGNORE INTO users (id, name) VALUES (100, 'ignored')")
    run("INSERT OR REPLACE INTO users (id, name) VALUES (100, 'replaced')")
    run("INSERT INTO users (id, name) VALUES (100, 'up') ON CONFLICT (id) DO UPDATE SET name = excluded.name")
    run("INSERT INTO tags VALUES ('a', 5) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n RETURNING n")
    run("UPDATE users SET name = 'x', age = age + 1 WHERE id = 5")
    run("UPDATE users SET name = 'x' WHERE id = 5000")
    run("UPDATE users SET age = 3 WHERE id = 6 RETURNING id, age")
    run("DELETE FROM users WHERE id = 7")
    run("DELETE FROM users WHERE id = 8 RETURNING name")
    run("DELETE FROM orders WHERE user_id = 9 AND total > 1000")
    run("INSERT INTO orders (id, user_id, total) VALUES (500, 1, 1)")
    run("INSERT INTO orders (id, user_id, total) VALUES (500, 2, 1)")
    run("INSERT INTO orders (user_id, total) VALUES (9999, 1)")
    run("INSERT INTO orders (id, user_id, total) VALUES (600, 1, ?), (601, 2, ?)", (1, 2))
    run("INSERT INTO codes VALUES ('z', 26)")
    run("UPDATE codes SET n = 27 WHERE code = 'z'")
    run("DELETE FROM codes WHERE n < 2")
    run("INSERT INTO notes (body) VALUES ('one')")
    run("REPLACE INTO notes (id, body) VALUES (9, 'one')")
    run("UPDATE notes SET body = body || id")
    run("DELETE FROM notes WHERE id = (SELECT max(id) FROM notes)")
    run("INSERT INTO notes (body) SELECT body || 'x' FROM notes")
    run("INSERT INTO nowhere VALUES (1)")
    run("SELECT nothing FROM users WHERE id = 1")
    run("SELEC 1")


def test_several_keys_with_returning(manager: ShardManager) -> None:
    """The rows of all keys come back, in the order in which they were given."""
    manager.create_table(SCHEMA["tags"])
    values = ", ".join(f"('t{n}', {n})" for n in range(20))
    result = manager.execute(f"INSERT INTO tags VALUES {values} RETURNING n")
    assert [tuple(row) for row in result] == [(n,) for n in range(20)]
    assert manager.count("tags") == 20


def test_executemany(manager: ShardManager) -> None:
    manager.create_table(SCHEMA["users"])
    manager.create_table(SCHEMA["orders"], shard_key="user_id")
    sql = "INSERT INTO users (id, name) VALUES (?, ?)"
    result = manager.executemany(sql, ((n, f"u{n}") for n in range(1, 31)))
    assert (result.rowcount, result.lastrowid) == (30, None)
    assert manager.executemany(sql, []).rowcount == 0
    assert manager.executemany("INSERT INTO users (id) VALUES (:i)", [{"i": 100}, {"i": 101}]).rowcount == 2
    assert (
        manager.executemany("INSERT INTO orders (user_id, total) VALUES (?, 1)", [(n,) for n in range(1, 31)]).rowcount
        == 30
    )
    assert len({row["id"] for row in manager.select("orders")}) == 30
    assert manager.executemany("UPDATE users SET age = ? WHERE id = ?", [(n, n) for n in range(1, 31)]).rowcount == 30
    assert manager.executemany("DELETE FROM users WHERE id = ?", [(100,), (101,), (102,)]).rowcount == 2
    with pytest.raises(sqlite3.Error):
        manager.executemany(sql, [(500, "a"), (501,)])
    with pytest.raises(sqlite3.IntegrityError):
        manager.executemany(sql, [(500, "a"), (1, "b")])
    with pytest.raises(OperationalError, match="no such table"):
        manager.executemany("INSERT INTO nowhere VALUES (?)", [])
    assert manager.count("users") == 30


def test_executemany_keeps_no_rows_of_returning(manager: ShardManager) -> None:
    """The rows are written, their columns named, and none of them comes back: what sqlite3 of Python 3.11 does."""
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    one_file = sqlite3.connect(":memory:", isolation_level=None)
    one_file.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    for sql, sets in (
        ("INSERT INTO t (id, v) VALUES (?, ?) RETURNING id, upper(v) AS u", [(1, "a"), (2, "b"), (3, "c")]),
        ("INSERT INTO t (id, v) VALUES (?, ?) RETURNING id, upper(v) AS u", [(4, "d")]),
        ("UPDATE t SET v = 'x' WHERE id = ? AND v <> ? RETURNING v", [(1, ""), (9, ""), (2, "")]),
        ("DELETE FROM t WHERE id = ? AND v = ? RETURNING *", [(1, "x"), (3, "no")]),
        ("INSERT INTO t (id, v) VALUES (?, ?) RETURNING id", []),
    ):
        result = manager.executemany(sql, sets)
        assert result.fetchall() == []
        assert result.lastrowid is None
        cursor = one_file.cursor()
        if sys.version_info < (3, 12) and DRIVER_NAME == "sqlite3":
            cursor.executemany(sql, sets)
            assert cursor.fetchall() == []
            assert cursor.lastrowid is None
            assert result.description == (None if cursor.description is None else list(cursor.description))
        else:  # it gives the first set's row, and fails at the second set; pysqlite3 at once
            for one in sets:
                cursor.execute(sql, one).fetchall()
        stored = one_file.execute("SELECT * FROM t ORDER BY id").fetchall()
        assert [tuple(row.values()) for row in manager.select("t", order_by="id")] == stored
    one_file.close()
    assert manager.executemany("DELETE FROM t WHERE id = ? RETURNING id", [(2,), (3,), (77,)]).rowcount == 2


def test_key_is_an_assertion(make_manager: Make) -> None:
    manager = make_manager(num_shards=4)
    manager.create_table(SCHEMA["users"])
    manager.create_table(SCHEMA["orders"], shard_key="user_id")
    manager.create_table(SCHEMA["notes"])
    other = next(k for k in range(100) if manager.shard_for("users", k) != manager.shard_for("users", 1))
    manager.execute("INSERT INTO users (id, name) VALUES (1, 'a')", key=1)
    assert manager.execute("SELECT name FROM users WHERE id = 1", key=1).scalar() == "a"
    with pytest.raises(RoutingError, match=f"key={other}"):
        manager.execute("SELECT name FROM users WHERE id = 1", key=other)
    with pytest.raises(RoutingError):
        manager.execute("UPDATE users SET name = 'b' WHERE id = 1", key=other)
    with pytest.raises(RoutingError):
        manager.execute("SELECT name FROM users", key=1)
    with pytest.raises(RoutingError):
        manager.execute("INSERT INTO users (id) VALUES (1000), (1001), (1002), (1003), (1004), (1005)", key=1000)
    with pytest.raises(RoutingError):
        manager.execute("CREATE TABLE t (x)", key=1)
    assert manager.count("users") == 1


def test_timeouts(make_manager: Make) -> None:
    """A statement gives up after its own timeout, says who is in its way, and leaves nothing behind."""
    manager = make_manager(num_shards=2, max_connections_per_shard=2)
    manager.create_table(SCHEMA["users"])
    shard = manager.shard_for("users", 1)
    with manager.pool(shard).get_connection_context() as conn:
        conn.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"):
            manager.execute("INSERT INTO users (id) VALUES (1)", timeout=0.1)
        with pytest.raises(OperationalError, match="locked"):
            manager.execute("INSERT INTO users (id) VALUES (1), (2), (3), (4), (5), (6)", timeout=0.1)
        assert manager.execute("SELECT count(*) FROM users WHERE id = 1", timeout=0.1).scalar() == 0
        with manager.pool(shard).get_connection_context(), pytest.raises(OperationalError, match="became free"):
            manager.execute("SELECT * FROM users", timeout=0.1)
        conn.execute("ROLLBACK")
    manager.execute("INSERT INTO users (id) VALUES (1), (2), (3), (4), (5), (6)", timeout=5)
    assert manager.count("users") == 6


# -- large results -----------------------------------------------------------------------------------------------------

ROWS = 12_000
ORDERS = ["", " ORDER BY id", " ORDER BY v DESC, id"]
"""All rows have the same v: each is the order of the ids, in which the rows of the shards are merged."""


@pytest.fixture
def large(make_manager: Make) -> ShardManager:
    manager = make_manager(num_shards=3, max_connections_per_shard=3)
    manager.create_table("CREATE TABLE big (id INTEGER PRIMARY KEY, v TEXT)")
    manager.insert_many("big", ({"v": "x" * 400} for _ in range(ROWS)))
    return manager


def in_use(manager: ShardManager) -> int:
    return sum(stats["active_connections"] for stats in (manager.pool(s).get_pool_stats() for s in manager.shard_ids))


@pytest.mark.parametrize("order", ORDERS)
def test_streaming(large: ShardManager, order: str) -> None:
    """Rows come in the order of one file's scan, in bounded memory, and the connections go back at the end."""
    tracemalloc.start()
    try:
        with large.execute("SELECT id, v FROM big" + order) as result:
            assert in_use(large) == 3
            ids = [row["id"] for row in result]
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ids == list(range(1, ROWS + 1))
    assert peak < 0.75 * ROWS * 450
    assert in_use(large) == 0


@pytest.mark.parametrize("order", ORDERS)
def test_connections_go_back(large: ShardManager, order: str) -> None:
    def opened() -> Any:
        result = large.execute("SELECT id, v FROM big" + order)
        assert next(result)["id"] == 1
        assert in_use(large) == 3
        return result

    result = opened()
    result.close()
    result.close()
    assert in_use(large) == 0
    with pytest.raises(InterfaceError, match="closed"):
        next(result)
    result = opened()
    assert result.scalar() == 2
    assert in_use(large) == 0
    result = opened()
    with pytest.raises(ZeroDivisionError), result:
        raise ZeroDivisionError
    assert in_use(large) == 0
    result = opened()
    assert len(result.fetchall()) == ROWS - 1
    assert in_use(large) == 0
    result = opened()
    del result
    assert in_use(large) == 0
    ring: list[Any] = [opened()]
    ring.append(ring)
    del ring
    gc.collect()
    assert in_use(large) == 0
    result = opened()
    assert [row["id"] for row in result.fetchmany(3)] == [2, 3, 4]
    result.close()
    with pytest.raises(OperationalError, match=r"overflow|integer"):
        list(large.execute("SELECT abs(CASE id WHEN 11000 THEN -9223372036854775808 ELSE id END) FROM big"))
    assert in_use(large) == 0


@pytest.mark.parametrize("order", ORDERS)
def test_an_abandoned_result_holds_nobody_up(large: ShardManager, order: str) -> None:
    results = [large.execute("SELECT id FROM big" + order) for _ in range(2)]
    firsts = [next(result)["id"] for result in results]
    large.insert("big", {"v": "y"})
    large.update("big", {"v": "z"}, {"id": (">", 100)})
    large.apply_schema(
        "CREATE TABLE other (id INTEGER PRIMARY KEY); ALTER TABLE big ADD COLUMN w; CREATE INDEX i ON big (w)"
    )
    large.delete("big", {"id": (">", ROWS)})
    assert firsts == [1, 1]
    assert len(results[0].fetchall()) == ROWS - 1
    results[1].close()
    assert large.count("big") == ROWS
    with pytest.raises(ProgrammingError, match="no such table: gone"):
        large.count("gone")


@pytest.mark.parametrize("order", ORDERS)
def test_a_result_ends_when_the_manager_does(large: ShardManager, order: str) -> None:
    result = large.execute("SELECT id, v FROM big" + order)
    next(result)
    large.shutdown()
    with pytest.raises(sqlite3.Error, match="closed"):
        result.fetchall()
    result.close()


# -- results and plans -------------------------------------------------------------------------------------------------


def test_rows(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    row = manager.execute("SELECT 1 AS a, 2 AS B, 3 AS a").fetchone()
    assert row is not None
    assert (row["a"], row["b"], row[2], row[-1], tuple(row[0:2])) == (1, 2, 3, 3, (1, 2))
    assert row.keys() == ["a", "B", "a"]
    assert row == (1, 2, 3)
    with pytest.raises(IndexError, match="c"):
        row["c"]
    with pytest.raises(IndexError):
        row[3]
    result = manager.execute("SELECT 1 AS a WHERE 0")
    assert (result.columns, result.fetchone(), result.fetchall(), result.fetchmany(5)) == (("a",), None, [], [])
    assert manager.execute("SELECT 1 AS a WHERE 0").scalar() is None
    assert manager.execute("SELECT 1 AS a").dicts() == [{"a": 1}]
    for size in (-1, True, "1"):
        with pytest.raises(ProgrammingError, match="size"):
            manager.execute("SELECT 1").fetchmany(size)


def test_explain_runs_nothing(manager: ShardManager) -> None:
    manager.create_table(SCHEMA["users"])
    plan = manager.explain("SELECT * FROM users WHERE id = ?", (1,))
    assert plan.shards == (manager.shard_for("users", 1),)
    assert "one" in str(plan)
    assert len(manager.explain("SELECT * FROM users").shards) == manager.num_shards
    manager.explain("INSERT INTO users (id) VALUES (1)")
    manager.explain("INSERT INTO users (name) VALUES ('x')")
    manager.explain("DROP TABLE users")
    assert manager.count("users") == 0
    assert manager.insert("users", {"name": "first"}) == 1
    manager.explain("DELETE FROM users")
    manager.explain("UPDATE users SET name = upper(name)")
    assert manager.select("users", columns=["name"]) == [{"name": "first"}]


def test_a_plan_follows_the_schema(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
    manager.execute("INSERT INTO t VALUES (1, 'x')")
    assert manager.execute("SELECT * FROM t WHERE a = 1").dicts() == [{"a": 1, "b": "x"}]
    manager.execute("ALTER TABLE t ADD COLUMN c DEFAULT 7")
    assert manager.execute("SELECT * FROM t WHERE a = 1").dicts() == [{"a": 1, "b": "x", "c": 7}]
    manager.execute("DROP TABLE t")
    with pytest.raises(OperationalError, match="no such table"):
        manager.execute("SELECT * FROM t WHERE a = 1")
    manager.execute("CREATE TABLE t (a INT, b TEXT PRIMARY KEY)")
    for n in range(20):
        manager.execute("INSERT INTO t VALUES (?, ?)", (n, f"k{n}"))
    assert manager.execute("SELECT a FROM t WHERE b = 'k7'").scalar() == 7
    assert {manager.shard_for("t", f"k{n}") for n in range(20)} <= set(manager.shard_ids)


def test_a_result_dropped_inside_a_pools_lock_is_given_back_later(make_manager: Callable[..., ShardManager]) -> None:
    """A finaliser may run at any line; one that waits for a lock of its own thread would wait for ever."""
    manager = make_manager(num_shards=2)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    manager.insert_many("t", [{"id": i} for i in range(1, 5000)])
    result = manager.execute("SELECT id FROM t")
    pool = manager.pool(0)
    assert pool.get_pool_stats()["active_connections"] == 1
    with pool._lock:
        del result
    assert pool.get_pool_stats()["active_connections"] == 1
    assert manager.execute("SELECT id FROM t WHERE id = 1").scalar() == 1
    assert pool.get_pool_stats()["active_connections"] == 0


def test_the_word_conflict_in_a_value_hides_no_rowid(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=2)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
    assert manager.execute("INSERT INTO t (name) VALUES ('conflict')").lastrowid == 1
    sql = "INSERT INTO t VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET name = 'y'"
    assert manager.execute(sql).lastrowid is None


# -- blobs -------------------------------------------------------------------------------------------------------------


def test_blobs_that_are_no_text_in_statements_and_definitions(make_manager: Make) -> None:
    """What SQLite says of a prepared statement holds its blobs as if they were text."""
    manager = make_manager(num_shards=3)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as plain:
        for sql in (
            "CREATE TABLE t (k PRIMARY KEY, v DEFAULT x'fe', CHECK (v <> x'fc'))",
            "CREATE TABLE log (k, v)",
            "CREATE TRIGGER noted BEFORE UPDATE ON t WHEN NEW.v = x'ff' BEGIN SELECT RAISE(ABORT, 'no'); END",
            "INSERT INTO t VALUES (x'ff', x'80'), (1, x'ff00ff'), ('a', NULL)",
            "INSERT INTO t (k) VALUES (x'c3')",
            "SELECT * FROM t WHERE k = x'ff'",
            "SELECT * FROM t WHERE k IN (x'ff', 1) AND v > x'7f'",
            "SELECT hex(v || x'ff'), count(*) FROM t GROUP BY v <> x'fd' ORDER BY 1",
            "UPDATE t SET v = x'fb' WHERE k = x'ff'",
            "UPDATE t SET v = x'fa' WHERE v = (SELECT x'fb')",
            "DELETE FROM t WHERE k = x'c3'",
            "CREATE INDEX by_v ON t (v) WHERE v <> x'ee'",
            "SELECT k, v FROM t ORDER BY k",
        ):
            assert list(map(tuple, manager.execute(sql).fetchall())) == plain.execute(sql).fetchall(), sql
    with pytest.raises(IntegrityError, match="no"):
        manager.execute("UPDATE t SET v = x'ff' WHERE k = x'ff'")
