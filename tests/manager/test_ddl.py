"""Schema changes through execute and apply_schema: as one file has them afterwards, rows too, on all shards or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import (
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from shardlite.execute import ddl as ddl_module
from shardlite.execute import maintenance, writes
from shardlite.execute.maintenance import LOCK_NAME, keeps_rowids

Make = Callable[..., ShardManager]


class Twin:
    """The same statements on a manager and on one plain file."""

    def __init__(self, manager: ShardManager) -> None:
        self.manager = manager
        self.plain = sqlite3.connect(":memory:", isolation_level=None)
        self.plain.execute("PRAGMA foreign_keys = ON")

    def both(self, sql: str, parameters: Any = ()) -> None:
        self.plain.execute(sql, parameters).fetchall()
        self.manager.execute(sql, parameters).fetchall()

    def fails(self, sql: str, parameters: Any = ()) -> None:
        """Both refuse a statement, in the same words."""
        with pytest.raises(sqlite3.Error) as theirs:
            self.plain.execute(sql, parameters)
        with pytest.raises(sqlite3.Error) as ours:
            self.manager.execute(sql, parameters)
        assert str(theirs.value) in str(ours.value), sql

    def same(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        theirs = [tuple(row) for row in self.plain.execute(sql, parameters).fetchall()]
        ours = [tuple(row) for row in self.manager.execute(sql, parameters).fetchall()]
        assert [[(type(v), v) for v in row] for row in ours] == [[(type(v), v) for v in row] for row in theirs], sql
        return ours

    def same_schema(self) -> None:
        self.same("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid")
        assert self.manager.check().ok, self.manager.check()


@pytest.fixture
def twin(manager: ShardManager) -> Iterator[Twin]:
    made = Twin(manager)
    for sql in (
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, age INT, born REAL, blob BLOB)",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users ON DELETE CASCADE, "
        "total NUMERIC(10, 2) /* shardlite: key=user_id */)",
        "CREATE TABLE notes (body TEXT, n)",
        "CREATE TABLE codes (code TEXT PRIMARY KEY, n INT /* shardlite: kind=reference */)",
    ):
        made.both(sql)
    for number in range(1, 25):
        row = (number, f"name {number % 7}", number % 5, number / 3, bytes([number]))
        made.both("INSERT INTO users VALUES (?, ?, ?, ?, ?)", row)
    for number in range(1, 25):
        made.both("INSERT INTO orders (id, user_id, total) VALUES (?, ?, ?)", (number, 25 - number, number * 1.5))
    for number in range(5):
        made.both("INSERT INTO notes VALUES (?, ?)", (f"note {number}", number))
        made.both("INSERT INTO codes VALUES (?, ?)", (f"c{number}", number))
    yield made
    made.plain.close()


# -- CREATE TABLE ... AS SELECT ----------------------------------------------------------------------------------------

AS = (
    "CREATE TABLE t AS SELECT * FROM users WHERE id = 3",
    "CREATE TABLE t AS SELECT * FROM users ORDER BY id",
    "CREATE TABLE main.t AS SELECT id AS a, name AS a, age + 1, born, blob FROM users ORDER BY id DESC LIMIT 5",
    "CREATE TABLE IF NOT EXISTS \"t\" AS SELECT count(*) AS n, sum(total), 'x', 1.5, NULL FROM orders",
    "CREATE TABLE t AS SELECT age, count(*), group_concat(id) FROM users WHERE age = 9 GROUP BY age",
    "CREATE TABLE t AS SELECT u.name, o.total FROM users u JOIN orders o ON o.user_id = u.id ORDER BY o.id",
    "CREATE TABLE t AS WITH c AS (SELECT n FROM codes) SELECT max(n) m FROM c",
    "CREATE TABLE t AS VALUES (1, 'a'), (2, NULL)",
    "CREATE TABLE t AS SELECT body, n FROM notes WHERE n > 1",
    "CREATE TABLE t AS SELECT name, type FROM sqlite_schema WHERE name LIKE 'o%'",
    "CREATE TABLE t AS SELECT CAST(id AS TEXT) AS id, age AS age FROM users WHERE id < 9 ORDER BY 1",
    "CREATE TABLE t(a, b, c) /* AS */",
)


@pytest.mark.parametrize("sql", AS)
def test_create_table_as(twin: Twin, sql: str) -> None:
    twin.both(sql)
    twin.same_schema()
    twin.same("SELECT * FROM pragma_table_xinfo('t')")
    twin.same("SELECT rowid, * FROM t ORDER BY rowid")
    assert twin.manager.tables["t"].kind == "single"


def test_create_table_as_with_parameters(twin: Twin) -> None:
    twin.both("CREATE TABLE t AS SELECT id, ? AS p, ?2 AS q FROM users WHERE age > ?1 ORDER BY id", (2, "x"))
    twin.both("CREATE TABLE u AS SELECT name FROM users WHERE id IN (:a, :b) ORDER BY id", {"a": 4, "b": 9})
    twin.same("SELECT rowid, * FROM t")
    twin.same("SELECT rowid, * FROM u")
    twin.same_schema()


def test_create_table_as_many_rows(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.execute(
        "CREATE TABLE t AS WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < 3456) "
        "SELECT n, n || 'x' AS s FROM c"
    )
    assert tuple(manager.execute("SELECT count(*), sum(n), max(rowid) FROM t").fetchone() or ()) == (
        3456,
        sum(range(3457)),
        3456,
    )


def test_create_table_as_that_exists(twin: Twin) -> None:
    twin.fails("CREATE TABLE notes AS SELECT 1")
    twin.both("CREATE TABLE IF NOT EXISTS notes AS SELECT 1 AS one")
    twin.same_schema()
    twin.same("SELECT * FROM notes")


def test_create_table_as_that_is_wrong(twin: Twin) -> None:
    for sql in (
        "CREATE TABLE t AS SELECT nope FROM users",
        "CREATE TABLE t AS SELECT * FROM nowhere",
        "CREATE TABLE t AS SELECT",
        "CREATE TABLE nowhere.t AS SELECT 1",
    ):
        twin.fails(sql)
    with pytest.raises(ProgrammingError, match=r"binding|parameters"):
        twin.manager.execute("CREATE TABLE t AS SELECT ?, ?", (1,))
    with pytest.raises(NotSupportedError, match=r"temp|TEMP"):
        twin.manager.execute("CREATE TEMP TABLE t AS SELECT 1")
    with pytest.raises(NotSupportedError, match=r"temp|TEMP"):
        twin.manager.execute("CREATE TABLE temp.t AS SELECT 1")
    with pytest.raises(ProgrammingError, match="reserved"):
        twin.manager.execute("CREATE TABLE _shardlite_x AS SELECT 1")
    for run in (twin.manager.apply_schema, twin.manager.create_table):
        with pytest.raises(NotSupportedError, match=r"run it through execute\(\)"):
            run("CREATE TABLE t AS SELECT 1")
    twin.same_schema()


def test_create_table_as_with_a_hint(twin: Twin) -> None:
    manager = twin.manager
    with pytest.raises(ProgrammingError, match="no column 'nope'"):
        manager.execute("CREATE TABLE t /* shardlite: key=nope */ AS SELECT id FROM users")
    manager.execute("CREATE TABLE t /* shardlite: kind=single */ AS SELECT id FROM users WHERE id = 3")
    text = manager.execute("SELECT sql FROM sqlite_schema WHERE name = 't'").scalar()
    assert text == "CREATE TABLE t(id INT /* shardlite: kind=single */)"
    assert manager.check().ok


def test_create_table_as_is_all_or_nothing(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the first COMMIT leaves nothing; one after it leaves the table with all its rows."""
    manager = make_manager(num_shards=3)
    manager.execute("CREATE TABLE s (id INTEGER PRIMARY KEY)")
    for number in range(10):
        manager.insert("s", {"id": number})
    sql = "CREATE TABLE t AS SELECT id FROM s ORDER BY id"

    monkeypatch.setattr(manager.database.catalog, "add_job", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manager.execute(sql)
    monkeypatch.undo()
    assert set(manager.tables) == {"s"}
    assert manager.check().ok

    # All shards have committed, the catalog has not: what a process that dies there leaves.
    monkeypatch.setattr(ddl_module.SchemaChanger, "_finish", lambda *_: None)
    manager.execute(sql)
    monkeypatch.undo()
    manager.shutdown()
    again = make_manager()
    assert [row[0] for row in again.execute("SELECT id FROM t")] == list(range(10))
    assert again.tables["t"].kind == "single"
    assert again.check().ok


def test_rows_are_there_when_the_home_shard_alone_committed(make_manager: Make, tmp_path: Path) -> None:
    """The home shard commits first: recovery gives the others the table, and the rows are there already."""
    manager = make_manager(num_shards=3)
    order: list[int] = []
    plain = writes.commit_all

    def dying(shards: Any, connections: Any) -> None:
        order.extend(shard.id for shard in shards)
        plain(shards[:1], connections[:1])
        writes.roll_back(connections[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writes, "commit_all", dying)
        patch.setattr(ddl_module.SchemaChanger, "_finish", lambda *_: None)
        manager.execute("CREATE TABLE t AS VALUES (1), (2), (3)")
    assert order == [0, 1, 2]
    manager.shutdown()
    again = make_manager()
    assert [row[0] for row in again.execute("SELECT * FROM t")] == [1, 2, 3]
    assert again.check().ok


SPREAD = (
    ("key=id", "SELECT * FROM users ORDER BY name, id DESC", "sharded"),
    ("kind=sharded, key=age", "SELECT id, age, born FROM users WHERE id > 3 ORDER BY id", "sharded"),
    ("key=name", "SELECT name, count(*) AS n FROM users GROUP BY name ORDER BY name", "sharded"),
    ("key=(a, b)", "SELECT age AS a, name AS b, max(id) AS c FROM users GROUP BY 1, 2 ORDER BY 3", "sharded"),
    ("key=id, colocate_with=users", "SELECT u.id, sum(total) AS t FROM users u JOIN orders o ON o.user_id = u.id "
     "GROUP BY u.id ORDER BY u.id", "sharded"),
    ("kind=reference", "SELECT code, n FROM codes UNION ALL SELECT body, n FROM notes ORDER BY 1", "reference"),
    ("kind=reference", "SELECT 1 AS a WHERE 0", "reference"),
    ("key=a", "SELECT 1 AS a WHERE 0", "sharded"),
    ("key=rowid", "SELECT id AS rowid, name AS oid FROM users ORDER BY id DESC", "sharded"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("hint", "select", "kind"), SPREAD, ids=[f"{hint} {number}" for number, (hint, _, _) in enumerate(SPREAD)]
)
def test_create_table_as_over_the_shards(twin: Twin, hint: str, select: str, kind: str) -> None:
    """The rows have the rowids that one file gives them, and the next row has the next."""
    twin.manager.execute(f"CREATE TABLE t /* shardlite: {hint} */ AS {select}")
    twin.plain.execute(f"CREATE TABLE t AS {select}")
    table = twin.manager.tables["t"]
    assert table.kind == kind
    twin.same("SELECT name, type FROM pragma_table_info('t')")
    twin.same("SELECT _rowid_, * FROM t ORDER BY _rowid_")
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    values = ", ".join(str(70 + number) for number in range(len(table.columns)))
    twin.both(f"INSERT INTO t ({names}) VALUES ({values})")
    twin.same("SELECT _rowid_, * FROM t ORDER BY _rowid_")
    assert twin.manager.check().ok
    twin.manager.execute("DROP TABLE t")
    assert "t" not in twin.manager.tables


def test_create_table_as_many_rows_over_the_shards(make_manager: Make) -> None:
    manager = make_manager(num_shards=5)
    numbers = "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < 2345)"
    manager.execute(f"CREATE TABLE t AS {numbers} SELECT n, n % 100 AS k /* shardlite: key=k */ FROM c")
    assert manager.execute("SELECT count(*), sum(n), count(DISTINCT rowid), max(rowid) FROM t").fetchone() == (
        *(2345, sum(range(2346)), 2345, 2345),
    )
    assert all(manager.get_shard_info()[shard]["tables"]["t"] for shard in manager.shard_ids)
    assert manager.check().ok


def test_create_table_as_over_the_shards_that_is_wrong(twin: Twin) -> None:
    manager = twin.manager
    for sql, words in (
        ("CREATE TABLE t /* shardlite: kind=sharded */ AS SELECT id FROM users", "key"),
        ("CREATE TABLE t /* shardlite: key=rowid */ AS SELECT 1 AS rowid, 2 AS oid, 3 AS _rowid_", "hides its rowid"),
        (
            "CREATE TABLE t /* shardlite: key=id */ AS SELECT abs(-9223372036854775807 - id) AS id FROM users",
            "overflow",
        ),
        ("CREATE TABLE t /* shardlite: kind=reference */ AS SELECT nope FROM users", "no such column"),
        ("CREATE TABLE users /* shardlite: key=id */ AS SELECT 1 AS id", "already exists"),
    ):
        with pytest.raises(sqlite3.Error, match=words):
            manager.execute(sql)
        assert "t" not in manager.tables
    twin.same_schema()
    assert manager.database.catalog.jobs() == ()


@pytest.mark.parametrize("hint", ["key=a", "kind=reference"])
@pytest.mark.parametrize("committed", [0, 1, 2, 3])
def test_a_crash_between_commits_leaves_no_half_filled_table(make_manager: Make, hint: str, committed: int) -> None:
    manager = make_manager(num_shards=3)
    manager.execute("CREATE TABLE s (a INTEGER PRIMARY KEY)")
    plain = writes.commit_all

    def dying(shards: Any, connections: Any) -> None:
        if manager.database.catalog.jobs():
            plain(shards[:committed], connections[:committed])
            writes.roll_back(connections[committed:])
        else:
            plain(shards, connections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writes, "commit_all", dying)
        patch.setattr(ddl_module.SchemaChanger, "_finish", lambda *_: None)
        manager.execute(
            f"CREATE TABLE t /* shardlite: {hint} */ AS SELECT value AS a FROM json_each('[1,2,3,4,5,6,7]')"
        )
    manager.shutdown()
    again = make_manager()
    assert again.database.catalog.jobs() == ()
    if committed == 3:
        assert sorted(row[0] for row in again.execute("SELECT a FROM t")) == [1, 2, 3, 4, 5, 6, 7]
    else:
        assert set(again.tables) == {"s"}
        again.execute(f"CREATE TABLE t /* shardlite: {hint} */ AS SELECT 5 AS a")
        assert again.execute("SELECT rowid, a FROM t").fetchall() == [(1, 5)]
    again.execute("INSERT INTO s VALUES (1)")
    assert again.check().ok


def test_create_table_as_of_an_attached_file(twin: Twin, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "beside.db", isolation_level=None)) as made:
        made.execute("CREATE TABLE far (a INTEGER PRIMARY KEY, b TEXT COLLATE NOCASE, c REAL)")
        made.execute("INSERT INTO far VALUES (1, 'x', 2), (5, NULL, 'y')")
    twin.plain.execute("ATTACH ? AS beside", (str(tmp_path / "beside.db"),))
    twin.manager.attach("beside", tmp_path / "beside.db")
    sql = "CREATE TABLE t AS SELECT far.*, name FROM beside.far LEFT JOIN users ON id = a ORDER BY a"
    twin.both(sql)
    twin.same_schema()
    twin.same("SELECT rowid, * FROM t")
    twin.manager.execute("CREATE TABLE u /* shardlite: key=a */ AS SELECT * FROM far ORDER BY a")
    assert twin.manager.execute("SELECT rowid, * FROM u").fetchall() == [(1, 1, "x", 2.0), (2, 5, None, "y")]


# -- ALTER, DROP, views, triggers, indexes -----------------------------------------------------------------------------


def test_a_life_of_a_schema(twin: Twin) -> None:
    for sql in (
        "CREATE INDEX by_age ON users (age, name DESC)",
        "CREATE INDEX IF NOT EXISTS by_age ON users (age)",
        "CREATE UNIQUE INDEX IF NOT EXISTS one ON orders (user_id, total)",
        "CREATE VIEW grown AS SELECT id, name FROM users WHERE age > 3",
        "CREATE VIEW IF NOT EXISTS grown AS SELECT 1",
        "CREATE TRIGGER counted AFTER INSERT ON notes BEGIN UPDATE notes SET n = n + 1 WHERE body = new.body; END",
        "INSERT INTO notes VALUES ('counted', 5)",
        "ALTER TABLE users ADD COLUMN mail TEXT DEFAULT 'none'",
        "ALTER TABLE users ADD shout AS (upper(name))",
        "ALTER TABLE users RENAME COLUMN age TO years",
        "ALTER TABLE users RENAME name TO called",
        "ALTER TABLE users RENAME TO people",
        "INSERT INTO people (id, called, years) VALUES (100, 'new', 7)",
        "ALTER TABLE people DROP COLUMN blob",
        "ALTER TABLE notes RENAME TO remarks",
        "INSERT INTO remarks VALUES ('renamed', 5)",
        "DROP INDEX one",
        "DROP INDEX IF EXISTS one",
        "REINDEX",
        "REINDEX by_age",
        "REINDEX people",
        "REINDEX main.people",
        "REINDEX nocase",
        "ANALYZE people",
        "DROP TRIGGER IF EXISTS counted",
        "DROP TRIGGER IF EXISTS counted",
    ):
        twin.both(sql)
        twin.same_schema()
    twin.same("SELECT * FROM people ORDER BY id")
    twin.same("SELECT * FROM grown ORDER BY id")
    twin.same("SELECT * FROM remarks ORDER BY rowid")
    for sql in ("DROP VIEW grown", "DROP VIEW IF EXISTS grown", "DROP TABLE orders", "DROP TABLE IF EXISTS orders"):
        twin.both(sql)
    twin.same_schema()


def test_keys_follow_a_renaming(twin: Twin) -> None:
    manager = twin.manager
    twin.both("ALTER TABLE users RENAME COLUMN id TO number")
    twin.both("ALTER TABLE orders RENAME COLUMN user_id TO buyer")
    twin.both("ALTER TABLE orders RENAME TO sales")
    assert manager.tables["users"].key_columns == ("number",)
    assert manager.tables["sales"].key_columns == ("buyer",)
    assert manager.tables["sales"].foreign_keys[0].parent == "users"
    assert manager.explain("SELECT * FROM sales WHERE buyer = 5").kind == "one shard"
    twin.same("SELECT u.number, s.total FROM users u JOIN sales s ON s.buyer = u.number WHERE u.number = 7")
    twin.both("DELETE FROM users WHERE number = 7")
    twin.same("SELECT * FROM sales ORDER BY id")
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        manager.execute("INSERT INTO sales (id, buyer) VALUES (500, 7)")
    manager.insert("sales", {"buyer": 8, "total": 1})
    with pytest.raises(NotSupportedError, match=r"buyer is the shard key"):
        manager.execute("ALTER TABLE sales DROP COLUMN buyer")
    assert manager.check().ok


def test_errors_are_sqlites_own(twin: Twin) -> None:
    for sql in (
        "CREATE TABLE users (a)",
        "CREATE TABLE t (a, a)",
        "CREATE TABLE t (",
        "CREATE INDEX i ON users (nope)",
        "CREATE INDEX i ON nowhere (a)",
        "CREATE VIEW notes AS SELECT 1",
        "ALTER TABLE nowhere RENAME TO t",
        "ALTER TABLE users RENAME TO orders",
        "ALTER TABLE users RENAME COLUMN nope TO x",
        "ALTER TABLE users DROP COLUMN id",
        "ALTER TABLE users ADD COLUMN name TEXT",
        "ALTER TABLE users ADD COLUMN x PRIMARY KEY",
        "DROP TABLE nowhere",
        "DROP INDEX nowhere",
        "DROP VIEW users",
        "DROP TRIGGER nowhere",
        "REINDEX nowhere",
        "ANALYZE nowhere",
    ):
        twin.fails(sql)
    twin.same_schema()


def test_add_column_that_the_rows_break(twin: Twin) -> None:
    """SQLite looks at the rows of the one file; here at those of every shard, though the home shard may have none."""
    for sql in (
        "ALTER TABLE users ADD COLUMN x INT NOT NULL",
        "ALTER TABLE users ADD COLUMN x INT CHECK (id < 24)",
        "ALTER TABLE users ADD COLUMN x TEXT DEFAULT CURRENT_TIMESTAMP",
    ):
        with pytest.raises(sqlite3.Error):
            twin.plain.execute(sql)
        with pytest.raises(sqlite3.Error):
            twin.manager.execute(sql)
    twin.both("INSERT INTO orders (id, user_id, total) VALUES (90, 3, 5), (91, 3, 5)")
    twin.fails("CREATE UNIQUE INDEX u ON orders (user_id, total)")
    twin.same_schema()


def test_a_script_is_all_or_nothing(twin: Twin) -> None:
    with pytest.raises(OperationalError, match="nowhere"):
        twin.manager.apply_schema("CREATE TABLE a (x); ALTER TABLE users ADD y; DROP TABLE nowhere")
    with pytest.raises(IntegrityError, match="UNIQUE"):
        twin.manager.apply_schema("CREATE TABLE a (x); CREATE UNIQUE INDEX i ON notes ((n > 1))")
    twin.same_schema()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMPORARY VIEW t AS SELECT 1",
        "CREATE TEMP TRIGGER t AFTER INSERT ON notes BEGIN SELECT 1; END",
        "CREATE TABLE temp.t (a)",
        "CREATE VIEW temp.t AS SELECT 1",
    ],
)
def test_temp_objects_are_refused(make_manager: Make, sql: str) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE TABLE notes (a)")
    for run in (manager.execute, manager.apply_schema):
        with pytest.raises(NotSupportedError, match=r"temp|TEMP"):
            run(sql)
    assert set(manager.tables) == {"notes"}


# -- VACUUM ------------------------------------------------------------------------------------------------------------


def test_vacuum_keeps_rows_and_rowids(manager: ShardManager) -> None:
    manager.execute("CREATE TABLE plain (k INT, v /* shardlite: key=k */)")
    manager.execute("CREATE TABLE whole (a)")
    manager.execute("CREATE TABLE copied (a /* shardlite: kind=reference */)")
    manager.execute("CREATE TABLE named (rowid TEXT, k INT, v /* shardlite: key=k */)")
    manager.execute("CREATE TABLE keyed (v)")
    manager.create_table("CREATE TABLE kept (v)", kind="sharded")
    manager.execute("CREATE TABLE bare (k TEXT PRIMARY KEY, v) WITHOUT ROWID")
    manager.execute("CREATE VIRTUAL TABLE words USING fts5(body)")
    for number in range(60):
        for table in ("plain", "named"):
            manager.insert(table, {"k": number, "v": "x" * 9000})
        for table in ("whole", "copied"):
            manager.execute(f"INSERT INTO {table} VALUES (?)", (number,))
        manager.insert("kept", {"v": number}, key=f"key {number}")
        manager.insert("bare", {"k": f"k{number}", "v": number})
        manager.execute("INSERT INTO words VALUES (?)", (f"word{number}",))
    for table in ("plain", "named", "whole", "copied", "kept"):
        manager.delete(table, f"{'_rowid_' if table == 'named' else 'rowid'} % 3 <> 0")
    before = rows_of(manager)
    sizes = pages(manager)
    manager.execute("VACUUM")
    manager.execute("VACUUM main")
    assert rows_of(manager) == before
    assert sum(pages(manager)) < sum(sizes)
    assert free_pages(manager) <= 6 * manager.num_shards  # one for each index that was there meanwhile
    for number in range(2, 60, 3):
        assert manager.select("kept", key=f"key {number}") == [{"v": number}]
    assert manager.execute("SELECT rowid FROM words WHERE words MATCH 'word7'").fetchall() == [(8,)]
    assert manager.check().ok
    assert manager.database.catalog.jobs() == ()
    manager.insert("plain", {"k": 1, "v": "after"})
    assert manager.execute("SELECT max(rowid) FROM plain WHERE k = 1").scalar() > 60


def rows_of(manager: ShardManager) -> dict[str, list[tuple[Any, ...]]]:
    """Return every shard's rows with their rowids, and the schemas of the files."""
    found = {}
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            for table, rowid in (
                ("plain", "rowid"),
                ("named", "_rowid_"),
                ("whole", "rowid"),
                ("copied", "rowid"),
                ("kept", "rowid"),
                ("bare", "k"),
                ("words", "rowid"),
                ("sqlite_schema", "type"),
            ):
                columns = "type, name, tbl_name, sql" if table == "sqlite_schema" else f"{rowid} AS r, *"
                rows = conn.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()
                found[f"{shard} {table}"] = [tuple(row) for row in rows]
    return found


def pages(manager: ShardManager) -> list[int]:
    return [_number(manager, shard, "page_count") for shard in manager.shard_ids]


def free_pages(manager: ShardManager) -> int:
    return sum(_number(manager, shard, "freelist_count") for shard in manager.shard_ids)


def _number(manager: ShardManager, shard: int, pragma: str) -> int:
    with manager.pool(shard).get_connection_context() as conn:
        return int(conn.execute(f"PRAGMA {pragma}").fetchone()[0])


def test_without_the_index_rowids_would_change() -> None:
    """What is worked around is there, and the work-around works, with the SQLite in use."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute("CREATE TABLE t (a)")
        conn.execute("INSERT INTO t (rowid, a) VALUES (5, 'a'), (9, 'b')")
        conn.execute("VACUUM")
        renumbered = [row[0] for row in conn.execute("SELECT rowid FROM t")] != [5, 9]
    assert renumbered or sqlite3.sqlite_version_info > (3, 53)
    assert keeps_rowids()


def test_vacuum_is_refused_where_it_would_renumber(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE TABLE fine (id INTEGER PRIMARY KEY)")
    monkeypatch.setattr(maintenance, "keeps_rowids", lambda: False)
    manager.execute("VACUUM")
    manager.execute("CREATE TABLE t (a)")
    with pytest.raises(NotSupportedError, match="would renumber the rows of t"):
        manager.execute("VACUUM")
    manager.execute("CREATE INDEX i ON t (a)")
    manager.execute("VACUUM")


def test_vacuum_into_and_others_are_refused(make_manager: Make, tmp_path: Path) -> None:
    manager = make_manager(num_shards=2)
    for sql in ("VACUUM INTO 'x.db'", "VACUUM main INTO ?"):
        with pytest.raises(NotSupportedError, match="shardlite export"):
            manager.execute(sql, ("x.db",) if "?" in sql else ())
    for sql in ("VACUUM temp", "VACUUM nowhere", "VACUUM a b"):
        with pytest.raises(ProgrammingError, match="no other database"):
            manager.execute(sql)
    assert not (tmp_path / "db" / LOCK_NAME).exists()


def test_a_crash_in_vacuum_leaves_nothing_for_long(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE TABLE t (k INT, v /* shardlite: key=k */)")
    for number in range(20):
        manager.insert("t", {"k": number})
    manager.execute("DELETE FROM t WHERE k = 3")
    expected = manager.execute("SELECT rowid, k FROM t ORDER BY k").fetchall()

    monkeypatch.setattr(maintenance, "_run", lambda *_: 1 / 0)
    monkeypatch.setattr(maintenance, "_drop", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        manager.execute("VACUUM")
    monkeypatch.undo()
    assert len(manager.database.catalog.jobs()) == 1
    assert left_behind(manager) == 1
    manager.insert("t", {"k": 50})  # in the meantime all goes on
    manager.execute("DELETE FROM t WHERE k = 50")
    manager.shutdown()

    again = make_manager()
    assert again.database.catalog.jobs() == ()
    assert left_behind(again) == 0
    assert again.check().ok
    again.execute("VACUUM")
    assert again.execute("SELECT rowid, k FROM t ORDER BY k").fetchall() == expected


def left_behind(manager: ShardManager) -> int:
    found = 0
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            sql = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '_shardlite_vacuum_*'"
            found += conn.execute(sql).fetchone()[0]
    return found


def test_a_vacuum_that_goes_on_is_not_disturbed(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that opens the database in the middle leaves the index alone."""
    manager = make_manager(num_shards=1)
    manager.execute("CREATE TABLE t (a)")
    manager.execute("INSERT INTO t (rowid, a) VALUES (7, 'x')")
    run, seen = maintenance._run, []

    def watched(shard: Any, conn: Any, sql: str, timeout_s: float) -> None:
        other = make_manager()
        seen.append((len(other.database.catalog.jobs()), left_behind(other)))
        other.database.timeout_s = 0.05
        with pytest.raises(OperationalError, match="locked"):
            other.execute("VACUUM")
        other.shutdown()
        run(shard, conn, sql, timeout_s)

    monkeypatch.setattr(maintenance, "_run", watched)
    manager.execute("VACUUM")
    assert seen == [(1, 1)]
    assert manager.execute("SELECT rowid FROM t").scalar() == 7
    assert left_behind(manager) == 0
