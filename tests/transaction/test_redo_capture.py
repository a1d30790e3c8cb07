"""Capturing keys: what is found, what the user sees of it, and that nothing of it stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redo_world import connect, dump

from shardlite.connection.connection import Connection
from shardlite.connection.opening import ConnectionSettings, open_connection
from shardlite.connection.pool_parts import PoolOptions, clean
from shardlite.driver import sqlite3
from shardlite.errors import InternalError, NotSupportedError, ProgrammingError
from shardlite.transaction.capture import capturing
from shardlite.transaction.definition import Definitions
from shardlite.transaction.images import prepare_replay, read_images, write_images
from shardlite.transaction.returning import is_plain, keeps_rows, with_returning
from shardlite.transaction.touched import Touched


@pytest.fixture
def conn() -> Iterator[Connection]:
    with closing(connect()) as made:
        yield made


def keys_of(touched: Touched, table: str) -> list[Any]:
    (found,) = (part for part in touched.on(0) if part.name == table)
    return ["whole"] if found.whole else sorted({*found.rowids, *found.keys})


def captured(conn: Connection, table: str, *statements: str) -> list[Any]:
    """Run statements of which some may fail, and return the keys of ``table`` that were captured."""
    conn.run("BEGIN")
    touched = Touched()
    with capturing(conn, [table]) as capture:
        for sql in statements:
            try:
                conn.run(sql)
            except sqlite3.IntegrityError:
                continue
        capture.collect(0, touched)
    conn.run("COMMIT")
    return keys_of(touched, table)


def same_after_replay(setup: Sequence[str], statements: Sequence[str], table: str = "t") -> None:
    with closing(connect()) as here, closing(connect()) as there:
        for sql in setup:
            here.run(sql)
            there.run(sql)
        here.run("BEGIN IMMEDIATE")
        touched = Touched()
        with capturing(here, [table]) as capture:
            for sql in statements:
                here.run(sql)
            capture.collect(0, touched)
            section = read_images(here, touched.on(0))
        here.run("COMMIT")
        prepare_replay(there)
        there.run("BEGIN IMMEDIATE")
        write_images(there, section)
        there.run("COMMIT")
        assert dump(there) == dump(here)


def test_each_kind_of_change_is_noted(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)")
    conn.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (9, 'z')")
    changes = ("INSERT INTO t VALUES (4, 'd')", "UPDATE t SET id = 8 WHERE id = 1", "DELETE FROM t WHERE id = 2")
    assert captured(conn, "t", *changes) == [1, 2, 4, 8]
    assert captured(conn, "t", "INSERT OR REPLACE INTO t VALUES (5, 'c')") == [3, 5]
    assert captured(conn, "t", "UPDATE OR REPLACE t SET x = 'd' WHERE id = 5") == [4, 5]
    assert captured(conn, "t", "DELETE FROM t") == [5, 8, 9]


def test_tables_that_triggers_and_foreign_keys_reach_are_captured(conn: Connection) -> None:
    for sql in (
        "CREATE TABLE parent(id INTEGER PRIMARY KEY)",
        "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE CASCADE)",
        "CREATE TABLE 'gone children'(id INTEGER PRIMARY KEY)",
        "CREATE TRIGGER after AFTER DELETE ON child BEGIN INSERT OR IGNORE INTO [gone children] VALUES (OLD.id); END",
        "CREATE TABLE other(id INTEGER PRIMARY KEY)",
        "CREATE VIEW v AS SELECT 1 AS x",
        "CREATE TRIGGER iv INSTEAD OF INSERT ON v BEGIN UPDATE OR IGNORE parent SET id = NEW.x; END",
    ):
        conn.run(sql)
    assert Definitions(conn).reachable(["V"]) == ["child", "gone children", "parent"]
    conn.run("INSERT INTO parent VALUES (1)")
    conn.run("INSERT INTO child VALUES (5, 1)")
    assert captured(conn, "parent", "DELETE FROM parent") == [1]
    conn.run("INSERT INTO parent VALUES (1)")
    conn.run("INSERT INTO child VALUES (6, 1)")
    touched = Touched()
    conn.run("BEGIN")
    with capturing(conn, ["parent"]) as capture:
        conn.run("DELETE FROM parent")
        capture.collect(0, touched)
    assert (keys_of(touched, "child"), keys_of(touched, "gone children")) == ([6], [6])
    assert "other" not in [part.name for part in touched.on(0)]


NASTY: dict[str, tuple[list[str], list[str]]] = {
    "a NULL for which REPLACE takes the default": (
        ["CREATE TABLE t(id INTEGER PRIMARY KEY, x NOT NULL DEFAULT 'd' UNIQUE)", "INSERT INTO t VALUES (1, 'd')"],
        ["INSERT OR REPLACE INTO t VALUES (5, NULL)"],
    ),
    "a rowid that SQLite makes, in an expression": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
            "CREATE UNIQUE INDEX i ON t(id % 5)",
            "INSERT INTO t VALUES (2, 'a'), (6, 'b')",
        ],
        ["INSERT OR REPLACE INTO t(x) VALUES ('c')"],
    ),
    "a rowid that SQLite makes, in a generated column": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x, g AS (id % 5) UNIQUE)",
            "INSERT INTO t VALUES (2, 'a'), (6, 'b')",
        ],
        ["INSERT OR REPLACE INTO t(x) VALUES ('c')"],
    ),
    "a rowid that SQLite makes, in a predicate": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
            "CREATE UNIQUE INDEX i ON t(x) WHERE id > 1",
            "INSERT INTO t VALUES (2, 'a'), (6, 'b')",
        ],
        ["INSERT OR REPLACE INTO t(x) VALUES ('a')"],
    ),
    "a trigger that changes the row before it is updated": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, UNIQUE (a, b))",
            "INSERT INTO t VALUES (1, 1, 1), (2, 2, 7)",
            "CREATE TRIGGER r UPDATE OF a ON t BEGIN UPDATE t SET b = 7 WHERE id = NEW.id; END",
        ],
        ["UPDATE OR REPLACE t SET a = 2 WHERE id = 1"],
    ),
    "a table called new": (
        ["CREATE TABLE new(id INTEGER PRIMARY KEY, x UNIQUE)", "INSERT INTO new VALUES (1, 'a'), (2, 'b')"],
        ["INSERT OR REPLACE INTO new VALUES (3, 'a')"],
    ),
    "an index that holds a row by its predicate alone": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
            "CREATE UNIQUE INDEX i ON t(json_extract(x, '$.k')) WHERE json_valid(x)",
            "INSERT INTO t VALUES (1, '{\"k\": 1}'), (2, 'no json')",
        ],
        ["INSERT OR REPLACE INTO t VALUES (3, '{\"k\":1}')", "INSERT OR REPLACE INTO t VALUES (4, 'nor this')"],
    ),
    "a definition that replaces by itself": (
        [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE ON CONFLICT REPLACE)",
            "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        ],
        ["UPDATE t SET x = 'a' WHERE id = 2"],
    ),
    "a primary key finer than its column": (
        [
            "CREATE TABLE t(k TEXT COLLATE NOCASE, x, PRIMARY KEY (k COLLATE BINARY)) WITHOUT ROWID",
            "INSERT INTO t VALUES ('a', 1), ('A', 2), ('b', 3)",
        ],
        ["UPDATE t SET k = 'B' WHERE x = 3", "UPDATE t SET x = 5 WHERE k = 'a' COLLATE BINARY"],
    ),
    "a primary key coarser than its column": (
        [
            "CREATE TABLE t(k TEXT, x, PRIMARY KEY (k COLLATE NOCASE)) WITHOUT ROWID",
            "INSERT INTO t VALUES ('a', 1), ('b', 3)",
        ],
        ["REPLACE INTO t VALUES ('A', 4)", "UPDATE t SET k = 'B' WHERE k = 'b'", "DELETE FROM t WHERE k = 'none'"],
    ),
    "keys that are equal and not the same": (
        ["CREATE TABLE t(k, x, PRIMARY KEY (k)) WITHOUT ROWID", "INSERT INTO t VALUES (1, 1), ('1', 2), (x'31', 3)"],
        ["UPDATE t SET k = 1.0 WHERE x = 1", "UPDATE t SET x = 7 WHERE k = '1'"],
    ),
    "a sequence that moved without a row": (
        ["CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, x UNIQUE)", "INSERT INTO t VALUES (3, 'a')"],
        ["INSERT OR IGNORE INTO t(x) VALUES ('a')"],
    ),
    "names to quote": (
        [
            'CREATE TABLE "t "" x"("a ""b" INTEGER PRIMARY KEY, "select" COLLATE NOCASE)',
            'CREATE UNIQUE INDEX "i "" y" ON "t "" x"("select" COLLATE RTRIM DESC, ("a ""b" + 0))',
            'INSERT INTO "t "" x" VALUES (1, \'a\')',
        ],
        ['INSERT OR REPLACE INTO "t "" x" VALUES (1, \'a \')'],
    ),
    "a column called rowid": (
        ["CREATE TABLE t(rowid, oid UNIQUE, x)", "INSERT INTO t VALUES ('r', 'o', 1), (5, 6, 7)"],
        ["REPLACE INTO t VALUES ('s', 6, 8)", "UPDATE t SET _rowid_ = 99 WHERE x = 1"],
    ),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_tables_come_out_the_same(name: str) -> None:
    setup, statements = NASTY[name]
    table = {"a table called new": "new", "names to quote": 't " x'}.get(name, "t")
    same_after_replay(setup, statements, table)


SHIFTING = [name for name in NASTY if name.startswith(("a NULL", "a rowid", "a trigger"))]


@pytest.mark.parametrize("name", SHIFTING)
def test_without_noting_whole_tables_they_would_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Definitions.table

    def steady(self: Definitions, conn: Connection, table: str) -> Any:
        found = read(self, conn, table)
        unique = tuple(dataclasses.replace(index, shifting="") for index in found.unique)
        return dataclasses.replace(found, unique=unique, rewritten=False)

    monkeypatch.setattr(Definitions, "table", steady)
    setup, statements = NASTY[name]
    with pytest.raises((InternalError, AssertionError)):
        same_after_replay(setup, statements)


def test_what_the_user_sees_is_what_it_would_be_without() -> None:
    statements = (
        "INSERT INTO t(x) VALUES ('a'), ('b'), ('c')",
        "UPDATE t SET x = x || '1'",
        "INSERT OR REPLACE INTO t VALUES (9, 'a1')",
        "INSERT INTO t VALUES (9, 'q') ON CONFLICT DO UPDATE SET x = 'qq'",
        "DELETE FROM t WHERE id > 5",
        "UPDATE t SET id = id + 10",
    )
    with closing(connect()) as with_capture, closing(connect()) as without:
        for conn in (with_capture, without):
            conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)")
            conn.run("CREATE TABLE log(id INTEGER PRIMARY KEY, seen)")
            conn.run("CREATE TRIGGER l AFTER INSERT ON t BEGIN INSERT INTO log(seen) VALUES (last_insert_rowid()); END")
            conn.run("CREATE TRIGGER m AFTER UPDATE ON t BEGIN INSERT INTO log(seen) VALUES (changes()); END")
            conn.run("BEGIN")
        base = with_capture.total_changes - without.total_changes
        with capturing(with_capture, ["t"]) as capture:
            for sql in statements:
                answers = []
                for conn in (with_capture, without):
                    rowcount = conn.run(sql).rowcount
                    answers.append((rowcount, conn.fetch_row("SELECT changes(), last_insert_rowid()")))
                assert answers[0] == answers[1], sql
                assert with_capture.total_changes - capture.own_changes() - without.total_changes == base, sql
            assert capture.own_changes() > 0
            seen = with_capture.total_changes - capture.own_changes()
            with_capture.run("SAVEPOINT s")
            with_capture.run("INSERT INTO t VALUES (77, 'x')")
            with capture.undoing():
                with_capture.run("ROLLBACK TO s")
            assert with_capture.total_changes - capture.own_changes() == seen + 2  # SQLite counts them all the same
            before = with_capture.total_changes
            with pytest.raises(sqlite3.IntegrityError):
                with_capture.run("INSERT INTO t VALUES (78, 'y'), (78, 'z')")
            capture.failed(with_capture.total_changes - before)
            assert with_capture.total_changes - capture.own_changes() == seen + 2
        assert dump(with_capture) == dump(without)


def test_a_users_cursor_and_factories_are_left_alone(conn: Connection) -> None:
    conn.run("CREATE TABLE t(k TEXT PRIMARY KEY) WITHOUT ROWID")
    conn.run("INSERT INTO t VALUES ('a'), ('b'), ('c')")
    conn.text_factory = str
    conn.row_factory = sqlite3.Row
    conn.altered = False
    conn.run("BEGIN")
    reading = conn.execute("SELECT k FROM t ORDER BY k")
    assert next(reading)["k"] == "a"
    touched = Touched()
    with capturing(conn, ["t"]) as capture:
        conn.run("INSERT INTO t VALUES ('d')")
        capture.collect(0, touched)
        touched.whole(0, "t")
        read_images(conn, touched.on(0))
        assert next(reading)["k"] == "b"
        assert (conn.text_factory, conn.altered) == (str, False)
        reading.close()
    assert not conn.leftover


def temp_objects(conn: Connection) -> list[Any]:
    return conn.fetch_all("SELECT name FROM temp.sqlite_schema")


def test_nothing_stays(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)")

    def stop() -> None:
        with capturing(conn, ["t"]):
            assert temp_objects(conn)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert temp_objects(conn) == []
    conn.run("BEGIN")
    with capturing(conn, ["t"]):
        conn.run("INSERT INTO t VALUES (1, 1)")
        conn.run("ROLLBACK")
    assert temp_objects(conn) == []
    with capturing(conn, ["t"]), pytest.raises(sqlite3.IntegrityError):
        conn.run("INSERT OR ROLLBACK INTO t VALUES (1, 1), (1, 2)")
    assert temp_objects(conn) == []
    conn.run("BEGIN")
    with capturing(conn, ["t"]):
        conn.run("COMMIT")
    assert temp_objects(conn) == []
    with capturing(conn, ["t"]) as capture:
        capture.end()
        assert temp_objects(conn) == []
    assert not conn.leftover


def test_an_unread_query_doesnt_keep_it(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    conn.run("INSERT INTO t VALUES (1), (2), (3)")
    reading = conn.execute("SELECT id FROM t")
    next(reading)
    with capturing(conn, ["t"]):
        pass
    assert temp_objects(conn) == []
    assert not conn.leftover


def test_a_connection_that_cant_be_cleaned_says_so(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    with capturing(conn, ["t"]):
        conn.set_authorizer(lambda action, *_: 1 if action == sqlite3.SQLITE_DROP_TEMP_TRIGGER else 0)
    conn.set_authorizer(None)
    assert conn.leftover == "triggers that capture changes"


def test_a_pool_takes_a_connection_back_that_captured(tmp_path: Path) -> None:
    settings = ConnectionSettings()
    with closing(open_connection(tmp_path / "shard.db", settings)) as conn:
        conn.run("CREATE TABLE t(k TEXT PRIMARY KEY, x UNIQUE) WITHOUT ROWID")
        conn.run("BEGIN IMMEDIATE")
        touched = Touched()
        with capturing(conn, ["t"]) as capture:
            conn.run("INSERT INTO t VALUES ('a', 1)")
            capture.collect(0, touched)
            assert read_images(conn, touched.on(0))
            conn.run("COMMIT")
        assert not conn.altered
        assert clean(conn, PoolOptions(), settings) == ""


def test_a_table_that_cant_be_captured_is_refused_and_nothing_stays(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    conn.run("CREATE TABLE full(rowid, oid, _rowid_)")
    conn.run("CREATE VIRTUAL TABLE f USING fts5(x)")
    conn.run("CREATE TRIGGER tf AFTER INSERT ON t BEGIN INSERT INTO f VALUES (NEW.x); END")
    conn.run("ANALYZE")
    for table, reason in (
        ("f", "f is a virtual table"),
        ("f_data", "f_data is a shadow table"),
        ("full", "by all names of the rowid"),
        ("t", "f is a virtual table.*a trigger or foreign key of t changes it"),
        ("sqlite_stat1", "sqlite_stat1 is one of SQLite's own tables"),
    ):
        with pytest.raises(NotSupportedError, match=reason), capturing(conn, [table]):
            pass
        assert temp_objects(conn) == []
    with pytest.raises(ProgrammingError, match="nobody is no table of this shard"):
        Definitions(conn).table(conn, "nobody")


def test_capture_that_began_after_a_savepoint_survives_rollback_to_it(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)")
    conn.run("BEGIN")
    conn.run("SAVEPOINT s")
    touched = Touched()
    with capturing(conn, ["t"]) as capture:
        conn.run("INSERT INTO t VALUES (1, 1)")
        with capture.undoing():
            conn.run("ROLLBACK TO s")
        assert temp_objects(conn)
        conn.run("INSERT INTO t VALUES (2, 2)")
        capture.collect(0, touched)
    assert keys_of(touched, "t") == [2]


def test_keys_that_rollback_to_took_back_are_harmless() -> None:
    with closing(connect()) as here, closing(connect()) as there:
        for conn in (here, there):
            conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE)")
            conn.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        here.run("BEGIN IMMEDIATE")
        touched = Touched()
        with capturing(here, ["t"]) as capture:
            here.run("UPDATE t SET x = 'z' WHERE id = 1")
            here.run("SAVEPOINT s")
            here.run("DELETE FROM t WHERE id = 2")
            here.run("INSERT INTO t VALUES (7, 'n')")
            capture.collect(0, touched)  # as if the notes were not taken back
            with capture.undoing():
                here.run("ROLLBACK TO s")
            fewer = Touched()
            capture.collect(0, fewer)
            capture.collect(0, touched)
        assert (keys_of(touched, "t"), keys_of(fewer, "t")) == ([1, 2, 7], [1])
        section = read_images(here, touched.on(0))
        here.run("COMMIT")
        prepare_replay(there)
        there.run("BEGIN IMMEDIATE")
        write_images(there, section)
        there.run("COMMIT")
        assert dump(there) == dump(here)


def test_the_sequence_table_itself_may_be_changed() -> None:
    setup = ["CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, x)", "INSERT INTO t(x) VALUES (1), (2)"]
    same_after_replay(setup, ["UPDATE sqlite_sequence SET seq = 50"], "sqlite_sequence")
    same_after_replay(setup, ["DELETE FROM sqlite_sequence"], "sqlite_sequence")


def test_victims_are_searched_through_their_index(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, a COLLATE NOCASE UNIQUE, b TEXT, c)")
    conn.run("CREATE UNIQUE INDEX i1 ON t(b COLLATE NOCASE DESC, c + 0) WHERE c IS NOT NULL AND b > ''")
    conn.run("CREATE UNIQUE INDEX i2 ON t((b || 'x') COLLATE RTRIM)")
    assert [index.searchable for index in Definitions(conn).table(conn, "t").unique] == [True] * 3


@pytest.mark.parametrize(
    ("sql", "plain"),
    [
        ("INSERT INTO t VALUES (1, 2)", True),
        ("INSERT OR IGNORE INTO t VALUES (1, 2)", True),
        ("INSERT OR REPLACE INTO t VALUES (1, 2)", False),
        ("REPLACE INTO t VALUES (1, 2)", False),
        ("INSERT OR FAIL INTO t VALUES (1, 2)", False),
        ("INSERT INTO t VALUES (1, 2) ON CONFLICT(id) DO UPDATE SET x = excluded.id", True),
        ("INSERT INTO t VALUES (1, 2) ON CONFLICT(id) DO UPDATE SET x = 1, id = 4", False),
        ("UPDATE t SET x = 1 WHERE id = 4", True),
        ("UPDATE t SET x = (SELECT max(id) FROM t WHERE id = 3), x = 4 WHERE id = 4", True),
        ("UPDATE t SET (x, id) = (1, 2)", False),
        ("UPDATE t SET x = 2, [ROWID] = 4", False),
        ("UPDATE OR FAIL t SET x = 1", False),
        ("WITH c AS (SELECT 1) DELETE FROM t WHERE id IN c", True),
        ("SELECT 1", False),
    ],
)
def test_which_statements_are_plain(conn: Connection, sql: str, plain: bool) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    assert is_plain(sql, Definitions(conn).table(conn, "t")) is plain


@pytest.mark.parametrize(
    "more",
    [
        "CREATE TRIGGER r AFTER DELETE ON t BEGIN SELECT 1; END",
        "CREATE TABLE child(p REFERENCES t ON DELETE CASCADE)",
        "CREATE TABLE child(p REFERENCES T ON UPDATE SET NULL)",
    ],
)
def test_a_table_that_reaches_others_is_not_plain(conn: Connection, more: str) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    conn.run(more)
    assert not Definitions(conn).table(conn, "t").plain


@pytest.mark.parametrize("clause", ["UNIQUE ON CONFLICT REPLACE", "UNIQUE ON CONFLICT FAIL", "UNIQUE)WITHOUT ROWID--"])
def test_a_definition_that_keeps_or_replaces_is_not_plain(conn: Connection, clause: str) -> None:
    conn.run(f"CREATE TABLE t(id INTEGER PRIMARY KEY, x {clause}\n{'' if '--' in clause else ')'}")
    assert not Definitions(conn).table(conn, "t").plain


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("INSERT INTO t VALUES (1.5, 'a') ;", [(3,)]),
        ("INSERT INTO t SELECT x, y FROM t ORDER BY 1 LIMIT 1 -- the end", [(3,)]),
        ("UPDATE t SET y = 'q' RETURNING y, *", [("q", 1.0, "q", 1), ("q", 2.0, "q", 2)]),
        ("DELETE FROM t WHERE x = 2 RETURNING x;", [(2.0, 2)]),
        ("/* so */ DELETE FROM t", [(1,), (2,)]),
        (
            "INSERT INTO t(x) VALUES (5) ON CONFLICT DO NOTHING RETURNING 'RETURNING' AS \"returning\"",
            [("RETURNING", 3)],
        ),
    ],
)
def test_the_rowid_comes_last(conn: Connection, sql: str, rows: list[Any]) -> None:
    conn.run("CREATE TABLE t(x REAL, y)")
    conn.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    text = with_returning(sql, Definitions(conn).table(conn, "t"))
    found = conn.run(text).fetchall()
    assert found == rows
    assert all(type(row[-1]) is int for row in found)


def test_the_rowid_stands_before_order_and_limit(conn: Connection) -> None:
    conn.run("CREATE TABLE t(id INTEGER PRIMARY KEY, y)")
    table = Definitions(conn).table(conn, "t")
    assert with_returning("DELETE FROM t WHERE y ORDER BY id LIMIT 1;", table) == (
        'DELETE FROM t WHERE y RETURNING +"id" ORDER BY id LIMIT 1'
    )
    assert with_returning("UPDATE t SET y = 1 RETURNING y LIMIT 1", table) == (
        'UPDATE t SET y = 1 RETURNING y, +"id" LIMIT 1'
    )


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("INSERT OR IGNORE INTO t VALUES (1, 1), ('x', 2)", [1]),
        ("INSERT OR IGNORE INTO t SELECT value, abs(value) FROM json_each('[1, 2, -9223372036854775808]')", []),
        ("INSERT INTO t VALUES (1, 1), (2, x'00') -- STRICT", [1]),
        ("INSERT INTO t VALUES (1, 1), (1, 2)", []),
        ("INSERT INTO t VALUES (1, 1), (2, NULL)", []),
        ("INSERT INTO t(id, x, p) VALUES (1, 1, NULL), (2, 2, 77)", []),
    ],
)
def test_a_statement_that_fails_may_keep_rows(conn: Connection, sql: str, kept: list[int]) -> None:
    parent = ", p DEFAULT NULL REFERENCES t" if "p)" in sql else ""
    columns = "id INT, x INT) STRICT" if "STRICT" in sql else f"id INTEGER PRIMARY KEY, x NOT NULL{parent})"
    conn.run(f"CREATE TABLE t({columns}")
    table = Definitions(conn).table(conn, "t")
    conn.run("BEGIN")
    assert is_plain(sql, table)
    with pytest.raises(sqlite3.Error) as raised:
        conn.run(with_returning(sql, table)).fetchall()
    assert [row[0] for row in conn.fetch_all("SELECT id FROM t")] == kept
    assert keeps_rows(raised.value) or not kept  # it may say so where nothing was kept


def test_touched_rows_are_named_by_rowids_or_tuples() -> None:
    touched = Touched()
    touched.add(1, "T", [1, 2])
    touched.add(1, "t", [("a", 1)])
    other = Touched()
    other.add(0, "u", [5])
    other.whole(1, "t")
    touched.merge(other)
    assert touched.shards == (0, 1)
    assert [(part.name, list(part.rowids), part.keys, part.whole) for part in touched.on(1)] == [
        ("T", [1, 2], [("a", 1)], True)
    ]
    for wrong in ("a", 1.5, None, 2**63):
        with pytest.raises(ProgrammingError, match="rowid or by a tuple"):
            touched.add(0, "u", [wrong])  # type: ignore[list-item]  # what is tested
