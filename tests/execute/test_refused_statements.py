"""Statements that are wrong: SQLite's words, and nothing half done. And the short way gives what the long one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import Error, OperationalError

DDL = "CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)"
WRONG: list[tuple[str, tuple[Any, ...]]] = [
    ("SELEC * FROM t", ()),
    ("SELECT * FROM t WHERE", ()),
    ("SELECT 'open", ()),
    ("SELECT * FROM t, t u WHERE id = 1", ()),
    ("SELECT nothing FROM t", ()),
    ("SELECT * FROM nothing", ()),
    ("SELECT nothing(1) FROM t", ()),
    ("SELECT count(a, b) FROM t", ()),
    ("UPDATE t SET nothing = 1", ()),
    ("UPDATE t SET a = 1 WHERE nothing = 1", ()),
    ("INSERT INTO t(id, a) VALUES (1)", ()),
    ("DELETE FROM t WHERE sum(a) > 1", ()),
]


@pytest.mark.parametrize(("sql", "parameters"), WRONG)
def test_it_is_worded_as_by_sqlite(
    filled: ShardManager, require_clean: Callable[[], None], sql: str, parameters: tuple[Any, ...]
) -> None:
    plain = sqlite3.connect(":memory:")
    plain.execute(DDL)
    with pytest.raises(sqlite3.Error) as theirs:
        plain.execute(sql, parameters)
    plain.close()
    before = filled.execute("SELECT sum(a), max(b) FROM t").fetchall()
    with pytest.raises(Error) as ours:
        filled.execute(sql, parameters)
    assert str(ours.value).split(" [")[0] == str(theirs.value)
    assert filled.execute("SELECT sum(a), max(b) FROM t").fetchall() == before
    require_clean()


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("parameters", [(), (1, 2), {"x": 1}], ids=repr)
def test_a_wrong_number_of_parameters(filled: ShardManager, parameters: Any, repeated: bool) -> None:
    sql = "SELECT * FROM t WHERE id = ?"
    for _ in range(3 if repeated else 0):
        assert filled.execute(sql, (1,)).fetchone() is not None
    plain = sqlite3.connect(":memory:")
    plain.execute(DDL)
    with pytest.raises(sqlite3.Error) as ours:
        filled.execute(sql, parameters)
    assert isinstance(ours.value, Error)
    if not isinstance(parameters, dict):
        with pytest.raises(sqlite3.Error) as theirs:
            plain.execute(sql, parameters)
        assert str(ours.value) == str(theirs.value)
    plain.close()


def test_a_function_of_one_connection_only(filled: ShardManager, require_clean: Callable[[], None]) -> None:
    pool = filled.pool(1)
    conn = pool.get_connection()
    conn.create_function("mine", 1, lambda x: x)
    pool.release(conn)
    with pytest.raises(OperationalError, match="no such function: mine"):
        filled.execute("SELECT mine(a) FROM t")
    with pytest.raises(OperationalError, match="no such function: mine"):
        filled.execute("UPDATE t SET a = mine(a)")
    require_clean()


def test_more_shards_than_can_be_attached(tmp_path: Path) -> None:
    """SQLite attaches ten files at most unless built otherwise: no statement may need one for each shard."""
    with ShardManager(num_shards=16, db_dir=tmp_path / "db", durability="normal") as manager:
        manager.create_table(DDL)
        manager.insert_many("t", ({"id": i, "a": i % 7, "b": f"{i:05d}"} for i in range(1, 16_001)))
        join = "SELECT count(*), sum(u.a) FROM t JOIN t u ON u.b = t.b AND u.a >= t.a"
        total = sum(i % 7 for i in range(1, 16_001))
        assert manager.execute(join).fetchall() == [(16_000, total)]
        ids = [row[0] for row in manager.execute("SELECT id FROM t ORDER BY b DESC")]
        assert ids == list(range(16_000, 0, -1))
        assert manager.execute("UPDATE t SET a = a + 1").rowcount == 16_000
        assert manager.execute("SELECT sum(a) FROM t").scalar() == total + 16_000


def test_a_repeated_text_gives_what_it_gave_at_first(filled: ShardManager) -> None:
    sql = "SELECT *, a || b AS both FROM t WHERE id = ?"
    find = filled._find
    assert find(sql, (1,)) is None
    first = filled.execute(sql, (1,)).fetchall()
    short = find(sql, (1,))
    assert short is not None
    assert short.columns == ("id", "a", "b", "both")
    assert (short.rowcount, short.lastrowid, short.rows_moved) == (-1, None, 0)
    assert short.fetchall() == first
    for key in (None, float("nan"), 99_999_999, "5", 5.0, True):
        assert filled.execute(sql, (key,)).fetchall() == filled.execute(sql + " AND 1", (key,)).fetchall()
    with pytest.raises(Error):
        filled.execute(sql, (object(),))
    filled.apply_schema("ALTER TABLE t ADD COLUMN c DEFAULT 'new'")
    assert find(sql, (1,)) is None
    assert filled.execute(sql, (1,)).fetchone() == (*first[0][:3], "new", first[0][3])
    filled.create_function("lower", 1, lambda text: "mine")
    again = "SELECT lower(b) FROM t WHERE id = ?"
    assert [filled.execute(again, (1,)).scalar() for _ in range(2)] == ["mine", "mine"]


def test_a_large_answer_of_one_key_is_not_held(tmp_path: Path) -> None:
    with ShardManager(num_shards=3, db_dir=tmp_path / "db", durability="normal") as manager:
        manager.create_table("CREATE TABLE e(k INTEGER, n INTEGER, PRIMARY KEY (k, n))", shard_key="k")
        sql = "SELECT n FROM e WHERE k = ?"
        manager.execute("INSERT INTO e VALUES (1, 1)")
        assert manager.execute(sql, (1,)).fetchall() == [(1,)]
        manager.insert_many("e", ({"k": 2, "n": n} for n in range(5_000)))
        for _ in range(3):
            result = manager.execute(sql, (2,))
            assert result.is_held
            assert [row[0] for row in result] == list(range(5_000))
            assert not result.is_held
        assert manager.execute(sql, (1,)).fetchall() == [(1,)]
