"""PRAGMAs and SQLite's own tables: as one file with the same schema answers, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError, RoutingError
from shardlite.sql.pragmas import PRAGMAS, PragmaPlace
from shardlite.sql.statistics import merged_statistics

Make = Callable[..., ShardManager]

SCHEMA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE NOCASE, age INT DEFAULT 5)", {}),
    (
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users ON DELETE CASCADE, total, "
        "half AS (total / 2), UNIQUE (user_id, total))",
        {"shard_key": "user_id"},
    ),
    (
        "CREATE TABLE checked (id INTEGER PRIMARY KEY, mail TEXT UNIQUE, other INT REFERENCES orders (id), note)",
        {"shard_key": "id", "constraints": "checked"},
    ),
    ("CREATE TABLE codes (code TEXT PRIMARY KEY, n INT) WITHOUT ROWID", {"kind": "reference"}),
    ("CREATE TABLE notes (body TEXT, at DEFAULT CURRENT_TIMESTAMP)", {}),
    ("CREATE TABLE strict_one (id INT PRIMARY KEY, b BLOB) STRICT", {}),
)
LATER = (
    "CREATE INDEX users_name ON users (name DESC, lower(name)) WHERE age > 3",
    "CREATE UNIQUE INDEX orders_one ON orders (user_id, id)",
    "CREATE VIEW old AS SELECT name FROM users WHERE age > 60",
    "CREATE VIEW listed AS SELECT name AS object FROM sqlite_schema WHERE type = 'table'",
    "CREATE TRIGGER noted AFTER INSERT ON notes BEGIN DELETE FROM notes WHERE body IS NULL; END",
    "ALTER TABLE notes ADD COLUMN extra INT",
    "ALTER TABLE users RENAME COLUMN age TO years",
)

QUESTIONS = (
    *(
        f"PRAGMA {pragma}({name})"
        for pragma in ("table_info", "table_xinfo", "index_list", "foreign_key_list", "table_list")
        for name in ("users", "ORDERS", "checked", "codes", "notes", "strict_one", "old", "nobody")
    ),
    *(
        f"PRAGMA {pragma}({name})"
        for pragma in ("index_info", "index_xinfo")
        for name in ("users_name", "orders_one", "sqlite_autoindex_checked_1", "sqlite_autoindex_codes_1", "nobody")
    ),
    "PRAGMA main.table_info = users",
    "PRAGMA table_info('users')",
    "PRAGMA temp.table_info(users)",
    "PRAGMA table_info",
    "PRAGMA table_list",
    "PRAGMA encoding",
    "PRAGMA foreign_keys",
    "PRAGMA foreign_keys = ON",
    "PRAGMA user_version",
    "PRAGMA application_id",
    "PRAGMA page_size",
    "PRAGMA auto_vacuum",
    "PRAGMA collation_list",
    "PRAGMA function_list",
    "PRAGMA module_list",
    "PRAGMA compile_options",
    "PRAGMA pragma_list",
    "PRAGMA foreign_key_check(users)",
    "PRAGMA foreign_key_check(orders)",
    "PRAGMA quick_check(users)",
    "PRAGMA integrity_check(orders)",
    "SELECT * FROM pragma_table_info('users')",
    "SELECT name, type FROM pragma_table_xinfo(?1) WHERE hidden = 2",
    "SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p ORDER BY 1, p.cid",
    "SELECT type, name, tbl_name, sql FROM sqlite_schema",
    "SELECT type, name, tbl_name, sql FROM main.sqlite_master ORDER BY name",
    "SELECT count(*), group_concat(name) FROM sqlite_schema WHERE type = 'index'",
    "SELECT * FROM sqlite_temp_schema",
    "SELECT * FROM sqlite_temp_master",
    "SELECT object FROM listed ORDER BY 1",
    "SELECT user_version, application_id FROM pragma_user_version, pragma_application_id",
    "SELECT * FROM pragma_foreign_keys",
    "SELECT count(*) FROM sqlite_schema s, json_each('[1, 2, 3]')",
    "SELECT * FROM sqlite_sequence",
    "SELECT * FROM sqlite_sequence WHERE name = 'users' AND seq > 40",
    "WITH names AS (SELECT name FROM sqlite_schema WHERE type = 'table') SELECT max(name) FROM names",
)


@contextlib.contextmanager
def one_file(*statements: str) -> Iterator[sqlite3.Connection]:
    """Give a plain connection on which these statements have run."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = ON")
        for sql in statements:
            conn.execute(sql)
        yield conn


def fill(execute: Callable[..., Any]) -> None:
    """Insert the same rows, ids stated, the highest one deleted again."""
    for number in (*range(1, 30), 50):
        execute("INSERT INTO users (id, name) VALUES (?, ?)", (number, f"n{number}"))
        execute("INSERT INTO orders (id, user_id, total) VALUES (?, ?, ?)", (number, number, number * 2.0))
    execute("DELETE FROM users WHERE id = 50")


def make_schema(manager: ShardManager) -> None:
    for ddl, options in SCHEMA:
        manager.create_table(ddl, **options)
    manager.apply_schema(";".join(LATER[:4]))
    for statement in LATER[4:]:
        manager.execute(statement)


def answer(execute: Callable[..., Any], sql: str) -> tuple[list[str] | None, list[tuple[Any, ...]]]:
    cursor = execute(sql, ("orders",) if "?1" in sql else ())
    description = cursor.description
    rows = [tuple(row) for row in cursor.fetchall()]
    return None if description is None else [column[0] for column in description], rows


def test_like_one_file(manager: ShardManager) -> None:
    make_schema(manager)
    fill(manager.execute)
    with one_file(*(ddl for ddl, _ in SCHEMA), *LATER) as plain:
        fill(plain.execute)
        for sql in QUESTIONS:
            theirs, ours = answer(plain.execute, sql), answer(manager.execute, sql)
            if "table_list" in sql or "function_list" in sql:  # in the order of a hash table
                theirs[1].sort(key=repr)
                ours[1].sort(key=repr)
            assert ours == theirs, sql
            assert [list(map(type, row)) for row in ours[1]] == [list(map(type, row)) for row in theirs[1]], sql


def test_nothing_of_ours_is_shown(manager: ShardManager) -> None:
    make_schema(manager)
    manager.create_table("CREATE TABLE kept (a)", kind="sharded")  # its keys are remembered in a table of ours
    manager.insert("kept", {"a": 1}, key="k")
    manager.execute("ANALYZE")
    for sql in (
        "SELECT * FROM sqlite_schema",
        "PRAGMA table_list",
        "SELECT * FROM sqlite_stat1",
        "PRAGMA index_list(kept)",
    ):
        assert "_shardlite_" not in repr(manager.execute(sql).fetchall()), sql
    with pytest.raises(ProgrammingError, match="reserved"):
        manager.execute("PRAGMA table_info(_shardlite_meta)")
    with pytest.raises(OperationalError, match="no such table"):
        manager.execute("SELECT * FROM _shardlite_meta")


def test_what_outlives_its_table(manager: ShardManager) -> None:
    changes = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "CREATE TABLE v (id INTEGER PRIMARY KEY)",
        "CREATE VIRTUAL TABLE docs USING fts5(body)",
        "ANALYZE",
        "DROP TABLE t",
        "DROP TABLE v",
        "VACUUM",
        "CREATE TABLE w (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "DROP TABLE docs",
    )
    with one_file() as plain:
        for sql in changes:
            plain.execute(sql)
            manager.execute(sql)
            for question in ("SELECT type, name, sql FROM sqlite_schema ORDER BY name", "PRAGMA table_list"):
                theirs, ours = answer(plain.execute, question), answer(manager.execute, question)
                assert sorted(ours[1], key=repr) == sorted(theirs[1], key=repr), sql


def test_errors_are_sqlites(manager: ShardManager) -> None:
    make_schema(manager)
    with pytest.raises(OperationalError, match="no such column: nope"):
        manager.execute("SELECT nope FROM sqlite_schema")
    with pytest.raises(OperationalError, match="no such table: sqlite_stat1"):
        manager.execute("SELECT * FROM sqlite_stat1").fetchall()
    with pytest.raises(OperationalError, match="unknown database nowhere"):
        manager.execute("PRAGMA nowhere.table_info(users)")
    with pytest.raises(OperationalError, match="unknown database nowhere"):
        manager.execute("PRAGMA nowhere.user_version = 5")
    assert manager.execute("PRAGMA user_version").scalar() == 0


# -- settings of every shard -------------------------------------------------------------------------------------------


def headers(manager: ShardManager, pragma: str) -> set[int]:
    found = set()
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            found.add(conn.execute(f"PRAGMA {pragma}").fetchone()[0])
    return found


@pytest.mark.parametrize("pragma", ["user_version", "application_id"])
def test_numbers_in_the_header(make_manager: Make, pragma: str) -> None:
    manager, other = make_manager(num_shards=3), make_manager()
    with one_file() as plain:
        for setting in (f"{pragma} = 7", f"{pragma}(-12)", f"main.{pragma} = 2147483647", f"{pragma} = 'x'"):
            assert answer(manager.execute, f"PRAGMA {setting}") == answer(plain.execute, f"PRAGMA {setting}")
            expected = plain.execute(f"PRAGMA {pragma}").fetchone()[0]
            assert manager.execute(f"PRAGMA {pragma}").scalar() == expected
            assert other.execute(f"SELECT * FROM pragma_{pragma}").scalar() == expected
            assert headers(manager, pragma) == {expected}
    manager.execute(f"PRAGMA {pragma} = 31")
    manager.shutdown()
    assert make_manager().execute(f"PRAGMA {pragma}").scalar() == 31


def test_a_setting_is_everywhere_or_nowhere(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(num_shards=3)
    manager.execute("PRAGMA user_version = 4")
    monkeypatch.setattr(manager.database.catalog, "add_job", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manager.execute("PRAGMA user_version = 5")
    monkeypatch.undo()
    assert headers(manager, "user_version") == {4}
    assert manager.execute("PRAGMA user_version").scalar() == 4


def test_schema_version_tells_of_each_change(manager: ShardManager) -> None:
    seen = [manager.execute("PRAGMA schema_version").scalar()]
    for sql in ("CREATE TABLE t (a)", "CREATE INDEX i ON t (a)", "DROP INDEX i", "DROP TABLE t"):
        manager.execute(sql)
        seen.append(manager.execute("SELECT schema_version FROM pragma_schema_version").scalar())
    assert len(set(seen)) == len(seen)
    assert manager.execute("PRAGMA schema_version").scalar() == seen[-1]


def test_database_list(manager: ShardManager) -> None:
    (row,) = manager.execute("PRAGMA database_list").fetchall()
    assert tuple(row) == (0, "main", manager.database.directory)


# -- checks ------------------------------------------------------------------------------------------------------------


def test_checks_find_what_is_wrong_on_any_shard(manager: ShardManager) -> None:
    for ddl, options in SCHEMA[:2] + SCHEMA[3:]:
        manager.create_table(ddl, **options)
    fill(manager.execute)
    for check in ("integrity_check", "quick_check"):
        assert answer(manager.execute, f"PRAGMA {check}") == ([check], [("ok",)])
    assert answer(manager.execute, "PRAGMA foreign_key_check") == (["table", "rowid", "parent", "fkid"], [])
    with one_file(*(ddl for ddl, _ in SCHEMA[:2] + SCHEMA[3:])) as plain:
        fill(plain.execute)
        plain.execute("PRAGMA foreign_keys = OFF")
        for number in (5, 12, 23):
            break_it = f"DELETE FROM users WHERE id = {number}"
            plain.execute(break_it)
            with manager.pool(manager.shard_for("users", number)).get_connection_context() as conn:
                conn.execute("PRAGMA foreign_keys = OFF")
                conn.execute(break_it)
                conn.commit()
        for sql in ("foreign_key_check", "foreign_key_check(orders)", "foreign_key_check(users)"):
            assert answer(manager.execute, f"PRAGMA {sql}") == answer(plain.execute, f"PRAGMA {sql}"), sql
        assert len(manager.execute("PRAGMA foreign_key_check").fetchall()) == 3


def test_a_fault_names_its_shard(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT CHECK (n > 0))")
    wrong = list(range(1, 9))
    for number in wrong:
        with manager.pool(manager.shard_for("t", number)).get_connection_context() as conn:
            conn.execute("PRAGMA ignore_check_constraints = ON")
            conn.execute("INSERT INTO t VALUES (?, -1)", (number,))
            conn.commit()
    shards = {manager.shard_for("t", number) for number in wrong}
    found = [row[0] for row in manager.execute("PRAGMA integrity_check")]
    assert {text.split(":")[0] for text in found} == {f"shard {shard}" for shard in shards}
    assert all("CHECK constraint failed in t" in text for text in found)
    assert len(found) == len(wrong)
    assert len(manager.execute("PRAGMA integrity_check(1)").fetchall()) == 1
    assert len(manager.execute("PRAGMA quick_check(t)").fetchall()) == len(wrong)


def test_a_check_that_can_not_see_everything_is_refused(manager: ShardManager) -> None:
    make_schema(manager)
    for check in ("integrity_check", "quick_check", "foreign_key_check"):
        with pytest.raises(NotSupportedError, match=r"checked's .*FOREIGN KEY \(other\).*check\(\)"):
            manager.execute(f"PRAGMA {check}")
        with pytest.raises(NotSupportedError, match="check"):
            manager.execute(f"PRAGMA {check}(checked)")
        assert len(manager.execute(f"PRAGMA {check}(users)").fetchall()) == (check != "foreign_key_check")


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused() -> list[str]:
    return sorted(n for n, p in PRAGMAS.items() if p.place in (PragmaPlace.SESSION, PragmaPlace.REFUSED))


@pytest.mark.parametrize("name", refused())
def test_refused_by_name(make_manager: Make, name: str) -> None:
    manager = make_manager(num_shards=2)
    for sql in (f"PRAGMA {name}", f"PRAGMA main.{name} = 1", f"PRAGMA {name}(1)", f"SELECT * FROM pragma_{name}"):
        known = sql.startswith("PRAGMA") or name in {row[0] for row in table_valued()}
        kind = NotSupportedError if known else OperationalError
        with pytest.raises(kind, match=name) as caught:
            manager.execute(sql)
        if known:
            assert PRAGMAS[name].advice in str(caught.value)


def table_valued() -> list[tuple[str]]:
    """List the PRAGMAs that this SQLite knows as tables."""
    with one_file() as plain:
        return [
            (name.removeprefix("pragma_"),)
            for (name,) in plain.execute("SELECT name FROM pragma_module_list")
            if name.startswith("pragma_")
        ] + [(name,) for (name,) in plain.execute("SELECT name FROM pragma_pragma_list") if _is_table(plain, name)]


def _is_table(plain: sqlite3.Connection, name: str) -> bool:
    try:
        plain.execute(f"EXPLAIN SELECT * FROM pragma_{name}")
    except sqlite3.OperationalError:
        return False
    return True


def test_every_pragma_of_this_sqlite_is_decided(make_manager: Make) -> None:
    with one_file() as plain:
        names = {name for (name,) in plain.execute("SELECT name FROM pragma_pragma_list")}
    assert names - {"parser_trace", "vdbe_addoptrace", "vdbe_debug", "vdbe_listing", "vdbe_trace"} <= set(PRAGMAS)
    with pytest.raises(NotSupportedError, match=r"PRAGMA tabel_info.*table_info"):
        make_manager().execute("PRAGMA tabel_info(t)")


def test_every_pragma_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "sql.md").read_text(encoding="utf-8")
    assert [name for name in PRAGMAS if f"`{name}`" not in page] == []


def test_what_can_be_read_but_not_set(manager: ShardManager) -> None:
    for sql, why in {
        "PRAGMA foreign_keys = OFF": "enforced",
        "PRAGMA foreign_keys(0)": "enforced",
        "PRAGMA encoding = 'UTF-16'": "made",
        "PRAGMA schema_version = 5": "counts",
        "PRAGMA page_size = 512": "made",
        "PRAGMA journal_mode = DELETE": "stays so",
        "PRAGMA locking_mode(exclusive)": "stays so",
        "PRAGMA synchronous = OFF": "durability",
        "PRAGMA cache_size = 5": "max_connections_per_shard",
        "PRAGMA recursive_triggers = 1": "it is off",
        "PRAGMA auto_vacuum = FULL": "VACUUM",
        "PRAGMA optimize(-1)": "lowest bit",
        "PRAGMA optimize(yes)": "mask",
    }.items():
        with pytest.raises(NotSupportedError, match=why):
            manager.execute(sql)
    assert manager.execute("PRAGMA optimize(0x10002)").fetchall() == manager.execute("PRAGMA optimize").fetchall() == []


def test_settings_of_every_connection_are_told(make_manager: Make) -> None:
    for durability, level in (("full", 2), ("normal", 1)):
        manager = make_manager(durability=durability)
        assert manager.execute("PRAGMA synchronous").scalar() == level
        for sql in ("PRAGMA journal_mode", "PRAGMA journal_mode = WAL", "PRAGMA main.journal_mode(wal)"):
            assert manager.execute(sql).fetchall() == [("wal",)]
        assert manager.execute("PRAGMA locking_mode = NORMAL").fetchall() == [("normal",)]
        assert manager.execute("PRAGMA recursive_triggers").scalar() == 0
        with manager.pool(1).get_connection_context() as conn:
            assert manager.execute("PRAGMA cache_size").scalar() == conn.execute("PRAGMA cache_size").fetchone()[0]


def test_the_schema_beside_rows_is_refused(manager: ShardManager) -> None:
    make_schema(manager)
    for sql in (
        "SELECT s.name, count(*) FROM sqlite_schema s, users GROUP BY 1",
        "SELECT name, (SELECT count(*) FROM notes) FROM pragma_table_info('notes')",
        "SELECT * FROM codes WHERE code IN (SELECT object FROM listed)",
    ):
        with pytest.raises(NotSupportedError, match="Ask for the schema first"):
            manager.execute(sql)
    for sql in (
        "UPDATE sqlite_sequence SET seq = 0",
        "DELETE FROM sqlite_sequence WHERE name = 'users'",
        "INSERT INTO notes (body) SELECT sql FROM sqlite_schema",
        "INSERT INTO notes (body) SELECT name FROM pragma_table_info('users')",
    ):
        with pytest.raises(NotSupportedError, match="schema is changed by CREATE"):
            manager.execute(sql)


def test_a_key_or_many_sets_are_refused(manager: ShardManager) -> None:
    make_schema(manager)
    for sql in ("PRAGMA table_info(users)", "SELECT * FROM sqlite_schema", "PRAGMA user_version = 2", "VACUUM"):
        with pytest.raises(RoutingError, match="belongs to no key"):
            manager.execute(sql, key=5)
        with pytest.raises(ProgrammingError, match="executemany"):
            manager.executemany(sql, [(), ()])
    assert manager.execute("PRAGMA user_version").scalar() == 0


def test_explain_says_where(manager: ShardManager) -> None:
    make_schema(manager)
    for sql, kind in {
        "PRAGMA table_info(users)": "logical schema",
        "SELECT name FROM sqlite_schema": "logical schema",
        "PRAGMA user_version": "logical schema",
        "PRAGMA user_version = 1": "setting of every shard",
        "PRAGMA quick_check(users)": "check of all shards",
        "PRAGMA page_size": "home shard",
        "VACUUM": "each shard in turn",
    }.items():
        plan = manager.explain(sql)
        assert plan.kind == kind, sql
        assert str(plan).startswith(kind)


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_are_of_all_rows(manager: ShardManager) -> None:
    for ddl, options in SCHEMA:
        manager.create_table(ddl, **options)
    manager.execute("CREATE INDEX by_user ON orders (user_id)")
    fill(manager.execute)
    manager.execute("ANALYZE")
    with one_file(*(ddl for ddl, _ in SCHEMA), "CREATE INDEX by_user ON orders (user_id)") as plain:
        fill(plain.execute)
        plain.execute("ANALYZE")
        sql = "SELECT tbl, idx, stat FROM sqlite_stat1 WHERE tbl IN ('orders', 'users') ORDER BY 1, 2"
        assert answer(manager.execute, sql) == answer(plain.execute, sql)
        schema = "SELECT type, name, sql FROM sqlite_schema"
        assert answer(manager.execute, schema) == answer(plain.execute, schema)


def test_merging_statistics(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    tables = {
        "t": manager.create_table("CREATE TABLE t (k, a, b)", shard_key="k"),
        "r": manager.create_table("CREATE TABLE r (k PRIMARY KEY)", kind="reference"),
    }
    columns = {"ik": ["k", "a"], "ia": ["a", "k"], "ie": [None]}
    found = [
        (0, ("t", "ik", "10 5 1")),
        (1, ("t", "ik", "30 10 2 unordered")),
        (0, ("t", "ia", "10 5 1")),
        (1, ("t", "ia", "30 3 2")),
        (0, ("t", "ie", "10 1")),
        (1, ("t", "ie", "30 2")),
        (0, ("r", "sqlite_autoindex_r_1", "7 1")),
        (1, ("r", "sqlite_autoindex_r_1", "7 1")),
    ]
    assert merged_statistics(found, tables, columns) == [
        ("t", "ik", "40 8 2"),
        ("t", "ia", "40 4 2"),
        ("t", "ie", "40 3"),
        ("r", "sqlite_autoindex_r_1", "7 1"),
    ]
