"""A trigger's text is split into the statements of its body where SQLite splits it."""

from __future__ import annotations

import pytest

from shardlite.driver import sqlite3
from shardlite.sql.triggers import raises, read_trigger, written_tables

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, v, [when], \"end\", 'begin')"


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END", ("SELECT 1",)),
        (
            "create trigger r after update of v on t when new.v > old.v begin update t set v = 1; delete from t; end",
            ("SELECT new.v > old.v", "update t set v = 1", "delete from t"),
        ),
        (
            "CREATE TRIGGER r INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 'a; b', \"v\" FROM t; END",
            ("SELECT CASE WHEN 1 THEN 2 END", "SELECT 'a; b', \"v\" FROM t"),
        ),
        (
            "CREATE TRIGGER r INSERT ON t WHEN CASE WHEN new.v THEN 1 END BEGIN -- BEGIN; END\n"
            " SELECT /* ; */ 1 -- one\n; END -- the END",
            ("SELECT CASE WHEN new.v THEN 1 END", "SELECT /* ; */ 1"),
        ),
        ("CREATE TRIGGER begin DELETE ON t BEGIN SELECT 1; END", ("SELECT 1",)),
        ("CREATE TRIGGER IF NOT EXISTS begin DELETE ON t BEGIN SELECT 1; END", ("SELECT 1",)),
        ("CREATE TRIGGER main.begin DELETE ON t BEGIN SELECT 1; END", ("SELECT 1",)),
        (
            'CREATE TRIGGER r DELETE ON t WHEN old."begin" OR old.[when] BEGIN SELECT "end" FROM t; END',
            ('SELECT old."begin" OR old.[when]', 'SELECT "end" FROM t'),
        ),
        (
            "CREATE TRIGGER r DELETE ON t WHEN old.begin BEGIN SELECT v->>'$.a;b' FROM t; END;",
            ("SELECT old.begin", "SELECT v->>'$.a;b' FROM t"),
        ),
    ],
)
def test_statements(sql: str, statements: tuple[str, ...]) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(TABLE)
        connection.execute(sql)
    finally:
        connection.close()
    assert read_trigger("r", "t", sql).statements == statements


def test_words_are_what_may_be_a_table() -> None:
    sql = "CREATE TRIGGER r DELETE ON t BEGIN DELETE FROM \"Other One\"; SELECT 'Third', [a.b] FROM main.Fourth; END"
    assert {"t", "other one", "third", "a.b", "fourth"} <= read_trigger("r", "t", sql).words


@pytest.mark.parametrize(
    "sql", ["CREATE TRIGGER r DELETE ON t", "BEGIN x", "CREATE TRIGGER r BEGIN 'a; END", "END BEGIN"]
)
def test_what_is_no_trigger_is_not_understood(sql: str) -> None:
    assert read_trigger("r", "t", sql).statements is None


def test_raise() -> None:
    trigger = read_trigger("r", "t", "CREATE TRIGGER r DELETE ON t BEGIN SELECT raise /**/ (fail, 'RAISE(ABORT'); END")
    assert raises(trigger, "FAIL")
    assert not raises(trigger, "ABORT")


@pytest.mark.parametrize(
    "body",
    [
        "REPLACE INTO other VALUES (1)",
        "INSERT OR ROLLBACK INTO other VALUES (1)",
        "UPDATE /* or */ OR /* else */ IGNORE other SET x = 'RAISE(ROLLBACK'",
        "UPDATE other SET x = raise /**/ ( rollback , 'no')",
        "WITH n AS (SELECT 1) DELETE FROM other",
    ],
)
def test_what_a_trigger_writes(body: str) -> None:
    trigger = read_trigger("r", "t", f"CREATE TRIGGER r DELETE ON t BEGIN SELECT 1 FROM third; {body}; END")
    assert written_tables(trigger) == {"other"}
