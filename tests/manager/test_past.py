"""changes(), total_changes() and last_insert_rowid(): a thread's own past, as a connection of one file tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from one_file import one_file

from shardlite import ShardManager
from shardlite.driver import sqlite3

Make = Callable[..., ShardManager]
PAST = "SELECT changes(), total_changes(), last_insert_rowid()"


class Pair:
    """The same statements on a manager and on one file."""

    def __init__(self, manager: ShardManager) -> None:
        self.manager = manager
        self.plain = one_file()
        self.plain.execute("PRAGMA foreign_keys = ON")
        for ddl, options in (
            ("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, n INT)", {}),
            ("CREATE TABLE u (id INTEGER PRIMARY KEY, t_id INT REFERENCES t ON DELETE CASCADE)", {"shard_key": "t_id"}),
            ("CREATE TABLE r (code TEXT PRIMARY KEY, n INT)", {"kind": "reference"}),
            ("CREATE TABLE s (x)", {"kind": "single"}),
        ):
            manager.create_table(ddl, **options)
            self.plain.execute(ddl)

    def run(self, sql: str, parameters: tuple[object, ...] = ()) -> None:
        """Run on both; the answers and what is told of the past must be the same."""
        expected = self.plain.execute(sql, parameters).fetchall()
        found = [tuple(row) for row in self.manager.execute(sql, parameters)]
        assert found == expected, sql
        assert tuple(self.manager.execute(PAST).fetchone() or ()) == self.plain.execute(PAST).fetchone(), sql


def test_every_way_of_writing_counts(manager: ShardManager) -> None:
    pair = Pair(manager)
    pair.run("SELECT 1")
    pair.run("INSERT INTO t (a, n) VALUES ('x', 1), ('y', 2), ('z', 3)")  # split
    pair.run("INSERT INTO t (id, a) VALUES (?, 'p')", (17,))  # one shard
    pair.run("UPDATE t SET n = 5 WHERE id = 17")
    pair.run("UPDATE t SET n = 6 WHERE id = 99")  # nothing changes
    pair.run("INSERT INTO r VALUES ('a', 1), ('b', 2)")  # every shard
    pair.run("INSERT INTO s VALUES (1)")  # home
    pair.run("INSERT INTO u (t_id) SELECT id FROM t")  # brought together
    pair.run("UPDATE t SET n = (SELECT count(*) FROM t AS other WHERE other.id <= t.id)")
    pair.run("SELECT count(*) FROM t")  # a query changes nothing of it
    pair.run("DELETE FROM t WHERE id IN (SELECT min(id) FROM t)")  # with a foreign key's action, which counts in total
    pair.run("DELETE FROM t WHERE id = 17")


def test_a_change_may_ask(manager: ShardManager) -> None:
    pair = Pair(manager)
    pair.run("INSERT INTO t (a) VALUES ('x'), ('y'), ('z')")
    pair.run("INSERT INTO t (id, a, n) VALUES (last_insert_rowid() + 100, 'next', changes()) RETURNING *")
    pair.run("UPDATE t SET n = total_changes() WHERE id < 3")
    pair.run("SELECT id, n, changes() FROM t ORDER BY id")


def test_a_change_that_fails_counts_nothing(manager: ShardManager) -> None:
    pair = Pair(manager)
    pair.run("INSERT INTO t (id) VALUES (1), (2)")
    for run in (pair.plain.execute, manager.execute):
        with pytest.raises(sqlite3.IntegrityError):
            run("INSERT INTO t (id) VALUES (1)")
    assert manager.execute("SELECT changes()").scalar() == pair.plain.execute("SELECT changes()").fetchone()[0] == 0


FAILING = (
    "INSERT INTO w VALUES (10, 1, 1), (11, 2, 1), (1, 3, 1)",
    "INSERT INTO w VALUES (1, 1, 1)",
    "INSERT INTO w VALUES (10, 1, 1), (11, 2, 99)",
    "INSERT INTO w VALUES (10, 1, 1), (11, 2, 1), (12, 3, 99), (13, 2, 1)",
    "INSERT INTO w VALUES (10, 1, 7)",
    "INSERT INTO w VALUES (10, 1, 1), (11, 2, 1), (12, 2, 7), (13, 3, 1)",
    "INSERT INTO w VALUES (10, 1, 5), (11, 2, 5), (12, 2, 5), (13, 3, 99)",
    "INSERT OR ROLLBACK INTO w VALUES (10, 1, 1), (11, 2, 1), (1, 3, 1)",
    "INSERT OR FAIL INTO w VALUES (10, 1, 1), (11, 2, 1), (1, 3, 1)",
    "INSERT INTO w VALUES (10, 1, 1), (11, 2, 1), (12, 3, 99) RETURNING id",
    "INSERT INTO w VALUES (10, 1, 1), (1, 1, 8) ON CONFLICT (id) DO UPDATE SET n = 99",
    "INSERT OR REPLACE INTO w VALUES (10, 1, 1), (11, 2, 99)",
    "INSERT INTO w VALUES (10, 6, 1)",
    "INSERT INTO w VALUES (10, 6, 5), (11, 1, 5)",
    "INSERT INTO w SELECT 10 + x, x, CASE x WHEN 3 THEN 99 ELSE 5 END FROM s",
    "INSERT INTO w SELECT 10 + x, x, 5 FROM s",
    "INSERT INTO s VALUES (20), (21), (20)",
    "INSERT INTO s VALUES (1)",
    "INSERT INTO r VALUES ('p', 1), ('q', 2), ('a', 3)",
    "INSERT INTO r VALUES ('a', 3)",
    "UPDATE w SET n = 99 WHERE id = 1",
    "UPDATE w SET n = n + 97",
)


@pytest.mark.parametrize("sql", FAILING)
def test_what_a_failure_leaves(manager: ShardManager, sql: str) -> None:
    plain = one_file()
    plain.execute("PRAGMA foreign_keys = ON")
    for ddl, options in (
        ("CREATE TABLE p (k INTEGER PRIMARY KEY)", {}),
        ("CREATE TABLE w (id INTEGER PRIMARY KEY, k INT REFERENCES p, n CHECK (n < 90))", {"shard_key": "k"}),
        ("CREATE TABLE log (k INT, n INT, PRIMARY KEY (k, n)) WITHOUT ROWID", {"colocate_with": "p", "shard_key": "k"}),
        ("CREATE TABLE r (code TEXT PRIMARY KEY, n INT)", {"kind": "reference"}),
        ("CREATE TABLE s (x INTEGER PRIMARY KEY)", {"kind": "single"}),
    ):
        manager.create_table(ddl, **options)
        plain.execute(ddl)
    for text in (
        "CREATE TRIGGER a AFTER INSERT ON w WHEN new.n = 5 BEGIN INSERT INTO log VALUES (new.k, new.id); END",
        "CREATE TRIGGER b AFTER INSERT ON w WHEN new.n = 7 BEGIN INSERT INTO log VALUES (new.k, new.id); "
        "SELECT RAISE(ABORT, 'seven'); END",
    ):
        manager.apply_schema(text)
        plain.execute(text)
    for run in (plain.execute, manager.execute):
        run("INSERT INTO p VALUES (1), (2), (3), (4)")
        run("INSERT INTO r VALUES ('a', 1)")
        run("INSERT INTO s VALUES (1), (2), (3), (4), (8)")
        run("INSERT INTO w VALUES (1, 1, 1), (2, 2, 2)")
        run("INSERT INTO w VALUES (3, 3, 3)")
    expected = plain.execute(PAST).fetchone()
    assert tuple(manager.execute(PAST).fetchone() or ()) == expected
    told = []
    for run in (plain.execute, manager.execute):
        with pytest.raises(sqlite3.Error) as caught:
            run(sql).fetchall()
        told.append(str(caught.value).partition(" [")[0])
    assert told[0] == told[1]
    assert tuple(manager.execute(PAST).fetchone() or ()) == plain.execute(PAST).fetchone()
    assert (
        manager.execute("SELECT * FROM w ORDER BY id").fetchall()
        == plain.execute("SELECT * FROM w ORDER BY id").fetchall()
    )


def test_what_or_fail_keeps_counts(manager: ShardManager) -> None:
    pair = Pair(manager)
    pair.run("INSERT INTO t (id) VALUES (3)")
    for run in (pair.plain.execute, manager.execute):
        with pytest.raises(sqlite3.IntegrityError):
            run("INSERT OR FAIL INTO t (id) VALUES (1), (2), (3), (4)")
    assert manager.execute("SELECT changes()").scalar() == pair.plain.execute("SELECT changes()").fetchone()[0] == 2
    pair.run("SELECT id FROM t ORDER BY id")


def test_each_thread_has_its_own(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    manager.execute("INSERT INTO t VALUES (5), (6)")
    found: list[object] = []

    def other() -> None:
        found.append(manager.execute("SELECT changes()").scalar())
        manager.execute("INSERT INTO t VALUES (7)")
        found.append(manager.execute("SELECT changes()").scalar())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(30)
    assert found == [0, 1]
    assert manager.execute("SELECT changes(), last_insert_rowid()").fetchone() == (2, 6)


def test_a_trigger_asks_in_the_middle(manager: ShardManager) -> None:
    plain = one_file()
    ddl = "CREATE TABLE t (id INTEGER PRIMARY KEY, tenant INT, seen INT)"
    manager.create_table(ddl, shard_key="tenant")
    plain.execute(ddl)
    trigger = """CREATE TRIGGER seen AFTER INSERT ON t BEGIN
        UPDATE t SET seen = last_insert_rowid() WHERE id = new.id AND tenant = new.tenant; END"""
    manager.apply_schema(trigger)
    plain.execute(trigger)
    for run in (plain.execute, manager.execute):
        run("INSERT INTO t (id, tenant) VALUES (10, 1), (20, 2)")
    expected = plain.execute("SELECT * FROM t ORDER BY id").fetchall()
    assert manager.execute("SELECT * FROM t ORDER BY id").fetchall() == expected


def test_executemany_gathers_where_a_set_needs_it(manager: ShardManager) -> None:
    pair = Pair(manager)
    sql = "INSERT OR REPLACE INTO t (id, n) SELECT ?, count(*) FROM t"
    sets = [(1,), (2,), (1,), (9,)]
    assert manager.executemany(sql, sets).rowcount == pair.plain.executemany(sql, sets).rowcount
    pair.run("SELECT * FROM t ORDER BY id")
    pair.plain.execute("BEGIN")
    for many in (manager.executemany, pair.plain.executemany):
        with pytest.raises(sqlite3.IntegrityError):
            many("INSERT INTO t (id, n) SELECT ?, count(*) FROM t", [(20,), (1,)])
    pair.plain.execute("ROLLBACK")
    pair.run("SELECT * FROM t ORDER BY id")


def test_the_short_way_of_changes_counts_too(manager: ShardManager) -> None:
    pair = Pair(manager)
    pair.run("INSERT INTO t (id, n) VALUES (1, 1), (2, 2), (3, 3)")
    for sql in ("UPDATE t SET n = n + 1 WHERE id = ? OR id = ? AND n > 99", "DELETE FROM s WHERE x = ? -- nothing"):
        pair.run(sql, (1, 1)[: sql.count("?")])
    for key in (1, 2, 2, 7, 3):
        pair.run("UPDATE t SET n = n * 10 WHERE id = ?", (key,))
    for key in (1, 7, 1):
        pair.run("DELETE FROM t WHERE n > 5 AND id = ? /* one */", (key,))
    pair.run("SELECT * FROM t ORDER BY id")


def test_the_short_way_of_changes_sees_a_new_schema(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    manager.execute("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    sql = "UPDATE t SET n = n + 1 WHERE id = ?"
    for _ in range(3):
        assert manager.execute(sql, (1,)).rowcount == 1
    manager.apply_schema(
        "CREATE TABLE seen (id INTEGER PRIMARY KEY, n INT);"
        "CREATE TRIGGER no AFTER UPDATE ON t WHEN new.n > 5 BEGIN SELECT RAISE(ABORT, 'too many'); END"
    )
    assert manager.execute(sql, (1,)).rowcount == 1
    with pytest.raises(sqlite3.IntegrityError, match="too many"):
        manager.execute(sql, (1,))
    assert manager.execute("SELECT n FROM t WHERE id = 1").scalar() == 5
