"""Virtual tables, and large single ones, beside sharded tables in one query: against one file."""

from __future__ import annotations

import pytest
from one_file import one_file

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.sql.plan import PlanKind

QUERIES = (
    "SELECT t.id, t.b FROM f JOIN t ON t.id = f.rowid WHERE f MATCH 'apple' ORDER BY rank, t.id",
    "SELECT t.id, snippet(f, 0, '<', '>', '..', 3) FROM f, t WHERE f MATCH 'pear' AND t.id = f.rowid AND t.b > 0",
    "SELECT t.id, g.x0 FROM g, t WHERE g.id = t.id AND g.x0 > 3 AND t.b = 1 ORDER BY t.id DESC",
    "SELECT count(*) FROM t WHERE id IN (SELECT rowid FROM f WHERE f MATCH 'pear')",
    "WITH q AS (SELECT rowid AS r FROM f WHERE f MATCH 'w3') SELECT t.* FROM t JOIN q ON q.r = t.id",
    "SELECT t.id AS rowid, f.body FROM t JOIN f ON f.rowid = t.id ORDER BY t.id DESC LIMIT (SELECT count(*) FROM t)/2",
    "SELECT t.b, count(*), sum(big.v) FROM t JOIN big ON big.t_id = t.id WHERE t.b = 2 GROUP BY t.b",
)


@pytest.fixture
def plain() -> sqlite3.Connection:
    return one_file()


@pytest.fixture
def filled(manager: ShardManager, plain: sqlite3.Connection) -> ShardManager:
    names = {row[0] for row in plain.execute("SELECT name FROM pragma_module_list")}
    if not {"fts5", "rtree"} <= names:
        pytest.skip("this SQLite has no FTS5 or no R-Tree")
    for ddl in (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INT)",
        "CREATE VIRTUAL TABLE f USING fts5(body)",
        "CREATE VIRTUAL TABLE g USING rtree(id, x0, x1)",
        "CREATE TABLE big (t_id INT, v INT) /* shardlite: kind=single */",
    ):
        manager.apply_schema(ddl)
        plain.execute(ddl)
    for run in (plain.execute, manager.execute):
        for i in range(1, 13):
            word = "apple" if i % 2 else "pear"
            run("INSERT INTO t VALUES (?, ?, ?)", (i, f"w{i}", i % 3))
            run("INSERT INTO f (rowid, body) VALUES (?, ?)", (i, f"w{i} {word}"))
            run("INSERT INTO g VALUES (?, ?, ?)", (i, i, i + 1))
        for i in range(100):
            run("INSERT INTO big VALUES (?, ?)", (i % 12, i))
    return manager


@pytest.mark.parametrize("sql", QUERIES)
def test_against_one_file(filled: ShardManager, plain: sqlite3.Connection, sql: str) -> None:
    result = filled.execute(sql)
    expected = plain.execute(sql)
    rows = expected.fetchall()
    assert rows
    assert [tuple(row) for row in result] == rows
    assert list(result.columns) == [column[0] for column in expected.description]


def test_only_the_rows_needed_visit(filled: ShardManager) -> None:
    sql = "SELECT f.body FROM f JOIN t ON t.id = f.rowid WHERE f MATCH 'apple' AND t.b = 2"
    assert filled.explain(sql).kind == PlanKind.BROADCAST
    result = filled.execute(sql)
    rows = result.fetchall()
    assert result.rows_moved == 4 + len(rows)  # ids 2, 5, 8, 11 go there; what was found comes back


def test_a_large_single_table_stays(filled: ShardManager) -> None:
    sql = "SELECT t.b, count(*) FROM t JOIN big ON big.t_id = t.id WHERE t.b = 2 GROUP BY t.b"
    assert filled.execute(sql).rows_moved < 100


def test_a_parameter_of_match(filled: ShardManager, plain: sqlite3.Connection) -> None:
    sql = "SELECT t.a FROM f JOIN t ON t.id = f.rowid WHERE f MATCH :word AND t.b < :most ORDER BY t.id"
    values = {"word": "apple", "most": 2}
    assert filled.execute(sql, values).fetchall() == plain.execute(sql, values).fetchall()


def test_what_is_needed_of_what_is_needed_comes_too(filled: ShardManager, plain: sqlite3.Connection) -> None:
    for run in (filled.execute, plain.execute):
        run("CREATE TABLE kinds (id INTEGER PRIMARY KEY, y INT) /* shardlite: kind=single */")
        run("CREATE TABLE things (id INTEGER PRIMARY KEY, x INT) /* shardlite: kind=single */")
        run("CREATE TABLE lots (id INTEGER PRIMARY KEY, b INT)")
        for i in range(1, 6):
            run("INSERT INTO kinds VALUES (?, ?)", (i, i % 2))
        for i in range(1, 51):
            run("INSERT INTO things VALUES (?, ?)", (i, i % 5 + 1))
        for i in range(1, 401):
            run("INSERT INTO lots VALUES (?, ?)", (i, i % 50 + 1))
    sql = """SELECT lots.id FROM f, lots, things, kinds WHERE f MATCH 'apple' AND lots.id = f.rowid
        AND lots.b = things.id AND things.x = kinds.id AND kinds.y = 1 ORDER BY 1"""
    expected = plain.execute(sql).fetchall()
    assert expected
    assert filled.execute(sql).fetchall() == expected


GATHERED = (
    "SELECT t.id, t.a FROM t JOIN g ON g.id = t.id WHERE x0 > 5 AND x1 < 9 ORDER BY t.id",
    "SELECT id, a FROM t WHERE id IN (SELECT id FROM g WHERE x0 > 5 AND x1 < 9) ORDER BY id",
    "SELECT count(*) FROM v JOIN f ON f.rowid = v.id WHERE f MATCH 'apple'",
    "SELECT body, r FROM w WHERE id < 6 ORDER BY id",
    "SELECT id, highlight(f, 0, '[', ']') FROM v, f WHERE f.rowid = v.id AND f MATCH 'pear' ORDER BY rank, id",
)
"""Through views, and with a virtual table that says which rows are needed of another."""


@pytest.fixture
def viewed(filled: ShardManager, plain: sqlite3.Connection) -> ShardManager:
    for ddl in (
        "CREATE VIEW v AS SELECT id, a FROM t",
        "CREATE VIEW w AS SELECT t.id, f.body, g.x0 + t.b AS r FROM t JOIN f ON f.rowid = t.id JOIN g ON g.id = t.id",
    ):
        filled.apply_schema(ddl)
        plain.execute(ddl)
    return filled


@pytest.mark.parametrize("sql", GATHERED)
def test_virtual_tables_are_brought_where_rows_cannot_visit(
    viewed: ShardManager, plain: sqlite3.Connection, sql: str
) -> None:
    rows = plain.execute(sql).fetchall()
    assert rows
    assert rows[0][0] is not None
    assert viewed.execute(sql).fetchall() == rows


CHANGES = (
    "UPDATE t SET b = 99 WHERE id IN (SELECT rowid FROM f WHERE f MATCH 'apple')",
    "DELETE FROM t WHERE id IN (SELECT id FROM g WHERE x0 > 10)",
    "UPDATE t SET a = (SELECT body FROM f WHERE f.rowid = t.id), id = id + 100 WHERE b < 99",
    "INSERT INTO t(id, a) SELECT rowid + 500, body FROM f WHERE f MATCH 'pear'",
    "INSERT INTO f(rowid, body) SELECT id, a FROM t WHERE id > 500",
    "INSERT INTO f SELECT a || ' again' FROM t ORDER BY id LIMIT 2",
    "INSERT INTO g SELECT id, id, id + 1 FROM t WHERE id > 500",
)


def test_changes_that_read_and_feed_virtual_tables(filled: ShardManager, plain: sqlite3.Connection) -> None:
    for sql in CHANGES:
        assert filled.execute(sql).rowcount == plain.execute(sql).rowcount > 0, sql
        for state in (
            "SELECT * FROM t ORDER BY id",
            "SELECT rowid, body FROM f ORDER BY rowid",
            "SELECT rowid FROM f WHERE f MATCH 'pear OR again' ORDER BY rank, rowid",
            "SELECT * FROM g ORDER BY id",
        ):
            assert filled.execute(state).fetchall() == plain.execute(state).fetchall(), (sql, state)
    assert filled.execute("INSERT INTO f(f) VALUES ('integrity-check')").rowcount == 1


def test_a_failed_feed_leaves_nothing(filled: ShardManager) -> None:
    before = filled.execute("SELECT count(*) FROM f").fetchall()
    with pytest.raises(sqlite3.IntegrityError):
        filled.execute("INSERT INTO f(rowid, body) SELECT id + 9, a FROM t ORDER BY id DESC")  # 10 is there
    assert filled.execute("SELECT count(*) FROM f").fetchall() == before


def test_a_change_of_a_virtual_table_by_sharded_rows_is_refused(filled: ShardManager) -> None:
    with pytest.raises(NotSupportedError, match="change of the virtual table f that reads sharded tables"):
        filled.execute("DELETE FROM f WHERE rowid IN (SELECT id FROM t WHERE b = 1)")


def test_full_text_over_the_rows_of_a_table(filled: ShardManager, plain: sqlite3.Connection) -> None:
    """``content=`` names a table whose rows the module reads itself, behind the planner's back."""
    with pytest.raises(NotSupportedError, match="content=t: the rows of t are spread"):
        filled.apply_schema("CREATE VIRTUAL TABLE x USING fts5(a, content='t', content_rowid='id')")
    for ddl in (
        "CREATE TABLE doc (id INTEGER PRIMARY KEY, a TEXT) /* shardlite: kind=single */",
        "CREATE VIRTUAL TABLE x USING fts5(a, content=\"doc\", content_rowid='id')",
        "CREATE VIEW y AS SELECT t.id, x.a FROM t JOIN x ON x.rowid = t.id",
    ):
        filled.apply_schema(ddl)
        plain.execute(ddl)
    for run in (filled.execute, plain.execute):
        run("INSERT INTO doc SELECT id, a || ' doc' FROM t")
        run("INSERT INTO x(x) VALUES ('rebuild')")
    for sql in ("SELECT * FROM y ORDER BY id", "SELECT t.b, x.a FROM x, t WHERE x MATCH 'w3 doc' AND t.id = x.rowid"):
        rows = plain.execute(sql).fetchall()
        assert rows
        assert filled.execute(sql).fetchall() == rows


def test_content_that_becomes_spread_is_refused(manager: ShardManager) -> None:
    with pytest.raises(NotSupportedError, match="content=late"):
        manager.apply_schema(
            "CREATE VIRTUAL TABLE x USING fts5(a, content=late); CREATE TABLE late (id INTEGER PRIMARY KEY, a TEXT)"
        )
    assert manager.execute("SELECT name FROM sqlite_schema").fetchall() == []
