"""EXPLAIN and EXPLAIN QUERY PLAN through execute: every shard's own words, and nothing runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError, RoutingError

Make = Callable[..., ShardManager]

SCHEMA = (
    "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INT)",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT, total /* shardlite: key=user_id */)",
    "CREATE TABLE codes (code TEXT PRIMARY KEY, n INT /* shardlite: kind=reference */)",
    "CREATE TABLE notes (body TEXT)",
    "CREATE INDEX by_age ON users (age)",
    "CREATE VIEW grown AS SELECT * FROM users WHERE age > 5",
)


@pytest.fixture
def filled(manager: ShardManager) -> ShardManager:
    manager.apply_schema(";".join(SCHEMA))
    manager.insert_many("users", [{"id": n, "name": f"n{n}", "age": n % 9} for n in range(40)])
    manager.insert_many("orders", [{"id": n, "user_id": n, "total": n} for n in range(40)])
    manager.execute("INSERT INTO codes VALUES ('a', 1), ('b', 2)")
    return manager


def contents(manager: ShardManager) -> list[Any]:
    return [manager.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in ("users", "orders", "codes")]


def tree(manager: ShardManager, sql: str, parameters: Any = ()) -> dict[str, list[str]]:
    """Return the details below each heading; raises AssertionError for what is no tree."""
    result = manager.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
    assert result.columns == ("id", "parent", "notused", "detail")
    top: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for number, parent, _, detail in result:
        assert number not in top
        if parent == 0:
            top[number] = detail
            found[detail] = []
        else:
            top[number] = top[parent]
            found[top[parent]].append(detail)
    return found


def test_a_fan_out_says_the_same_on_every_shard(filled: ShardManager) -> None:
    with sqlite3.connect(":memory:") as plain:
        for sql in SCHEMA:
            plain.execute(sql)
        for sql in ("SELECT * FROM users", "SELECT name FROM users WHERE name > 'n2' AND id < 30"):
            assert filled.explain(sql).kind == "fan-out"
            theirs = [row[3] for row in plain.execute(f"EXPLAIN QUERY PLAN {sql}")]
            assert tree(filled, sql) == {f"SHARD {shard}": theirs for shard in filled.shard_ids}
    plain.close()


def test_parts_and_the_coordinator(filled: ShardManager) -> None:
    for sql, parameters in (
        ("SELECT age, count(*) FROM users GROUP BY age", ()),
        ("SELECT DISTINCT name FROM users ORDER BY name LIMIT ?", (3,)),
        ("SELECT * FROM users u JOIN orders o ON o.id = u.id AND o.total > :least", {"least": 3}),
        ("SELECT * FROM grown WHERE age IN (SELECT total FROM orders)", ()),
        ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3) SELECT * FROM c, users", ()),
    ):
        found = tree(filled, sql, parameters)
        headings = {heading.split(":")[0] for heading in found}
        assert headings - {"COORDINATOR"} == {f"SHARD {shard}" for shard in filled.shard_ids}, sql
        assert "COORDINATOR" in headings or filled.num_shards == 1, sql
        assert all(details for details in found.values()), sql


def test_sorted_shards_need_no_coordinator(filled: ShardManager) -> None:
    sql = "SELECT * FROM users ORDER BY name LIMIT ?"
    result = filled.execute(f"EXPLAIN QUERY PLAN {sql}", (3,))
    details = [row["detail"] for row in result]
    assert "COORDINATOR" not in details
    if filled.num_shards > 1:
        assert [detail for detail in details if detail.startswith("SHARD")] == list(tree(filled, sql, (3,)))
        assert sum("ORDER BY" in detail for detail in details) == filled.num_shards


def test_what_the_shards_see_of_each_other(make_manager: Make) -> None:
    """A semi-join's texts name tables of a database that is shared while the statement runs."""
    manager = make_manager(num_shards=3)
    manager.apply_schema(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT, item INT /* shardlite: key=user_id */)"
    )
    manager.insert_many("items", [{"id": n, "name": f"i{n}"} for n in range(300)])
    manager.insert_many("users", [{"id": n, "name": f"n{n}"} for n in range(2000)])
    manager.insert_many("orders", [{"user_id": n % 2000, "item": n % 300} for n in range(6000)])
    manager.execute("ANALYZE")
    sql = (
        "SELECT u.name, o.id FROM items i JOIN orders o ON o.item = i.id JOIN users u ON u.id = o.user_id "
        "WHERE i.name = 'i7' ORDER BY 2"
    )
    assert "share move to items" in str(manager.explain(sql))
    found = tree(manager, sql)
    assert all(any("items FOR IN-OPERATOR" in text for text in found[f"SHARD {n}: orders"]) for n in range(3))
    assert len(manager.execute(sql).fetchall()) == 20
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            assert [row[1] for row in conn.execute("PRAGMA database_list")] == ["main"]


def test_a_broadcast_says_where_each_part_runs(filled: ShardManager) -> None:
    sql = "SELECT count(*) FROM users u JOIN orders o ON o.total = u.id AND u.age > 3"
    if filled.num_shards > 1:
        assert filled.explain(sql).kind == "broadcast"
        found = tree(filled, sql)
        assert {"SHARD 1: users", "SHARD 1: _shardlite_part", "COORDINATOR"} <= set(found)
        assert all(len(found[f"SHARD {n}: _shardlite_part"]) == 2 for n in filled.shard_ids)  # orders, and users beside


def test_an_index_is_seen(filled: ShardManager) -> None:
    found = tree(filled, "SELECT count(*) FROM users WHERE age = 3")
    details = [detail for heading, texts in found.items() if heading.startswith("SHARD") for detail in texts]
    assert len(details) == filled.num_shards
    assert all("by_age (age=?)" in detail for detail in details)


def test_one_place_speaks_for_itself(filled: ShardManager) -> None:
    for sql in (
        "SELECT * FROM users WHERE id = 3",
        "SELECT * FROM notes",
        "SELECT * FROM codes WHERE code = 'a'",
        "SELECT name FROM sqlite_schema",
        "SELECT 1",
    ):
        rows = filled.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        assert not any(row["detail"].startswith(("SHARD", "COORDINATOR")) for row in rows), sql
        assert filled.execute(f"explain {sql}").fetchall()[0]["opcode"] == "Init"


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("UPDATE users SET age = age + 1", ()),
        ("UPDATE users SET age = (SELECT max(total) FROM orders) WHERE id = ?", (3,)),
        ("DELETE FROM users", ()),
        ("DELETE FROM orders WHERE user_id IN (1, 2, 3)", ()),
        ("INSERT INTO codes VALUES ('z', 1)", ()),
        ("INSERT INTO users (id, name) VALUES (101, 'a'), (102, 'b'), (103, 'c')", ()),
        ("INSERT INTO orders (user_id) VALUES (?), (?)", (3, 4)),
        ("INSERT INTO orders (user_id, total) SELECT id, age FROM users", ()),
    ],
)
def test_nothing_runs(filled: ShardManager, sql: str, parameters: Any) -> None:
    before = contents(filled)
    filled.execute(f"EXPLAIN {sql}", parameters).fetchall()
    filled.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
    assert contents(filled) == before
    assert filled.check().ok


def test_bytecode_of_each_shard(filled: ShardManager) -> None:
    rows = filled.execute("EXPLAIN SELECT age, count(*) FROM users GROUP BY age").fetchall()
    marks = [(row["opcode"], row["p1"]) for row in rows if row["opcode"] in ("Shard", "Coordinator")]
    shards = [("Shard", shard) for shard in filled.shard_ids]
    assert marks in ([*shards, ("Coordinator", 0)], shards if filled.num_shards == 1 else None)
    assert rows[1]["opcode"] == "Init"
    assert sum(row["opcode"] == "Halt" for row in rows) >= len(marks)


def test_errors(filled: ShardManager) -> None:
    with pytest.raises(OperationalError, match="no such column: nope"):
        filled.execute("EXPLAIN SELECT nope FROM users")
    with pytest.raises(OperationalError, match=r"syntax error|incomplete"):
        filled.execute("EXPLAIN QUERY SELECT 1")
    with pytest.raises(ProgrammingError, match=r"binding|parameter"):
        filled.execute("EXPLAIN SELECT * FROM users WHERE age > ?").fetchall()
    with pytest.raises(RoutingError, match="explain"):
        filled.execute("EXPLAIN SELECT * FROM users", key=3)
    for sql, why in {
        "EXPLAIN CREATE TEMP TABLE x (a)": "CREATE TEMP lives in one connection",
        "EXPLAIN VACUUM INTO 'x.db'": "VACUUM INTO",
        "EXPLAIN PRAGMA optimize": "each shard in turn",
        "EXPLAIN PRAGMA busy_timeout": "PRAGMA busy_timeout",
        "EXPLAIN BEGIN": "belongs to one connection",
    }.items():
        with pytest.raises(NotSupportedError, match=why):
            filled.execute(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE x (a INTEGER PRIMARY KEY, b UNIQUE)",
        "CREATE TABLE x AS SELECT age, count(*) FROM users GROUP BY age",
        "CREATE UNIQUE INDEX one ON users (id, name)",
        "CREATE VIEW old AS SELECT * FROM users WHERE age > 90",
        "CREATE TRIGGER tr AFTER INSERT ON notes BEGIN DELETE FROM notes; END",
        "ALTER TABLE users RENAME COLUMN age TO years",
        "ALTER TABLE users ADD COLUMN more DEFAULT 3",
        "ALTER TABLE orders RENAME TO sales",
        "DROP TABLE users",
        "DROP VIEW grown",
        "REINDEX by_age",
        "ANALYZE",
        "VACUUM",
        "PRAGMA integrity_check",
        "PRAGMA user_version = 7",
    ],
)
def test_a_schema_change_is_told_as_one_file_would_run_it(filled: ShardManager, sql: str) -> None:
    def known() -> list[Any]:
        asked = ("SELECT * FROM sqlite_schema", "PRAGMA table_xinfo(users)", "PRAGMA user_version")
        return [filled.execute(one).fetchall() for one in asked]

    before = known()
    plain = sqlite3.connect(":memory:")
    for each in SCHEMA:
        plain.execute(each)
    for prefix in ("EXPLAIN", "EXPLAIN QUERY PLAN"):
        theirs = plain.execute(f"{prefix} {sql}")
        ours = filled.execute(f"{prefix} {sql}")
        assert ours.columns == tuple(column[0] for column in theirs.description)
        opcodes = [row[1] for row in theirs] if prefix == "EXPLAIN" else [row[3] for row in theirs]
        assert [row[1] if prefix == "EXPLAIN" else row[3] for row in ours] == opcodes
    plain.close()
    assert known() == before
    assert filled.check().ok


def test_a_schema_change_that_is_wrong(filled: ShardManager) -> None:
    for sql, words in {
        "EXPLAIN CREATE TABLE users (a)": "table users already exists",
        "EXPLAIN DROP TABLE nowhere": "no such table: nowhere",
        "EXPLAIN CREATE TABLE": "incomplete input",
        "EXPLAIN": "incomplete input",
        "EXPLAIN QUERY PLAN": "incomplete input",
    }.items():
        with pytest.raises(OperationalError, match=words):
            filled.execute(sql)


def test_an_insert_that_is_given_its_key(filled: ShardManager) -> None:
    """The rows would go where the first ids go; nothing is drawn from the sequence for that."""
    before = contents(filled)
    with sqlite3.connect(":memory:") as plain:
        for each in SCHEMA:
            plain.execute(each)
        sql = "EXPLAIN INSERT INTO users (name) VALUES (?)"
        theirs = [row[1] for row in plain.execute(sql, ("x",))]
    plain.close()
    assert [row["opcode"] for row in filled.execute(sql, ("x",))] == theirs
    several = "INSERT INTO users (name) VALUES ('a'), ('b'), ('c'), ('d')"
    rows = filled.execute(f"EXPLAIN {several}").fetchall()
    asked = {row["p1"] for row in rows if row["opcode"] == "Shard"}
    assert asked == ({filled.shard_for("users", n) for n in (1, 2, 3, 4)} if filled.num_shards > 1 else asked)
    assert contents(filled) == before
    assert filled.execute("INSERT INTO users (name) VALUES ('next')").lastrowid == 40


def test_the_plan_of_an_explanation(filled: ShardManager) -> None:
    plan = filled.explain("EXPLAIN SELECT * FROM users")
    assert plan.kind == "explain"
    assert plan.explained is not None
    assert plan.explained.kind == "fan-out"
    assert "fan-out" in str(plan)
