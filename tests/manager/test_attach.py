"""Files attached beside the shards: the answers of one plain connection with the same ATTACH."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import (
    DatabaseError,
    Error,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    StatementTimeoutError,
)

MAIN = """
    CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, country TEXT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER, total REAL);
    CREATE TABLE country(code TEXT PRIMARY KEY, name TEXT /* shardlite: kind=reference */);
    CREATE TABLE settings(name TEXT PRIMARY KEY, value /* shardlite: kind=single */);
    CREATE VIRTUAL TABLE words USING fts5(body);
    CREATE VIEW rich AS SELECT user_id, sum(total) AS total FROM orders GROUP BY user_id HAVING sum(total) > 50;
"""
BESIDE = """
    CREATE TABLE notes(user_id INTEGER, note TEXT COLLATE NOCASE, weight);
    CREATE TABLE users(id TEXT PRIMARY KEY, alias TEXT);
    CREATE TABLE target(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, total, CHECK (total IS NULL OR total < 1e6));
    CREATE TABLE child(id INTEGER PRIMARY KEY, target_id REFERENCES target DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE log(what TEXT);
    CREATE TRIGGER target_log AFTER INSERT ON target BEGIN INSERT INTO log VALUES ('made ' || new.name); END;
    CREATE VIEW heavy AS SELECT user_id, note FROM notes WHERE weight > 3;
    CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, x);
    CREATE VIRTUAL TABLE texts USING fts5(body);
    INSERT INTO users VALUES ('1', 'one'), ('2', 'two'), ('x', 'none'), ('07', 'seven');
    INSERT INTO log VALUES ('begun');
    INSERT INTO counted VALUES (5, 'x');
    INSERT INTO texts VALUES ('name 3 is here'), ('nothing of name 4');
"""
READS = [
    "SELECT u.name, n.note, n.weight FROM users u JOIN beside.notes n ON n.user_id = u.id ORDER BY u.id, n.rowid",
    "SELECT u.name, note FROM users u LEFT JOIN notes ON user_id = u.id AND weight > 2 ORDER BY u.id, note",
    "SELECT a.alias, u.name FROM beside.users a JOIN main.users u ON a.id = u.id ORDER BY u.id",
    "SELECT a.alias, u.name FROM beside.users a, users u WHERE u.id = a.id AND a.id = '07' ORDER BY 1",
    "SELECT count(*), total(total) FROM orders o WHERE user_id IN (SELECT user_id FROM beside.notes WHERE weight = 3)",
    "SELECT name FROM users u WHERE EXISTS (SELECT 1 FROM notes WHERE user_id = u.id AND note = 'NOTE 2') ORDER BY id",
    "SELECT name FROM users WHERE NOT EXISTS (SELECT 1 FROM heavy h WHERE h.user_id = users.id) ORDER BY id",
    "SELECT n.note, (SELECT sum(total) FROM orders o WHERE o.user_id = n.user_id) FROM beside.notes n ORDER BY n.rowid",
    "SELECT h.note, r.total FROM rich r JOIN beside.heavy h USING (user_id) ORDER BY 1, 2",
    "SELECT beside.notes.note, users.name FROM notes, users WHERE notes.user_id = users.id ORDER BY 1, 2",
    "SELECT c.name, count(*) FROM country c JOIN users u ON u.country = c.code JOIN notes n ON n.user_id = u.id "
    "GROUP BY c.name ORDER BY 1",
    "WITH notes AS (SELECT 1 AS user_id, 'my' AS note) SELECT note FROM notes UNION ALL SELECT note FROM beside.notes",
    "SELECT note, weight, typeof(weight) FROM notes ORDER BY weight, note",
    "SELECT id FROM users INTERSECT SELECT user_id FROM notes ORDER BY 1",
    "SELECT name, sum(weight) OVER (ORDER BY u.id, n.rowid) FROM users u, notes n WHERE user_id = u.id ORDER BY 2, 1",
    "SELECT u.name FROM users u NATURAL JOIN (SELECT user_id AS id FROM notes) ORDER BY u.id",
    "SELECT name FROM users u JOIN texts ON texts MATCH '\"name ' || u.id || '\"' ORDER BY 1",
    "SELECT value, note FROM settings JOIN notes ON note = value ORDER BY 2",
    "SELECT max(weight), note FROM notes WHERE user_id IN (SELECT id FROM users)",
    "SELECT * FROM beside.users WHERE id IN (SELECT CAST(id AS TEXT) FROM users) ORDER BY id",
    "SELECT name FROM users WHERE (id, 'two') IN (SELECT CAST(id AS INTEGER), alias FROM beside.users)",
    "SELECT type, name, tbl_name FROM beside.sqlite_schema ORDER BY rowid",
    "SELECT s.name, count(*) FROM beside.sqlite_master s, users WHERE s.type = 'view' GROUP BY 1",
    "SELECT name, type FROM pragma_table_info('notes', 'beside')",
    "PRAGMA beside.table_info(users)",
    "PRAGMA table_info(notes)",
    "PRAGMA table_info(users)",
    "PRAGMA beside.index_list(target)",
    "PRAGMA beside.user_version",
    "PRAGMA beside.foreign_key_list(child)",
    "PRAGMA beside.integrity_check",
    "SELECT name, seq FROM beside.sqlite_sequence",
    "SELECT count(*) FROM notes",
    "SELECT w.body, n.note FROM words w JOIN beside.notes n ON w.body = 'about ' || n.note ORDER BY 1",
    "SELECT n.weight FROM notes n, words WHERE words MATCH 'about' AND n.user_id = words.rowid ORDER BY n.rowid",
    "SELECT count(*) FROM users JOIN counted USING (id)",
    "SELECT total_changes() - total_changes(), count(*) FROM notes",
]
WRITES = [
    "INSERT INTO beside.target(id, name, total) SELECT u.id, u.name, sum(o.total) FROM users u JOIN orders o "
    "ON o.user_id = u.id WHERE u.id < 6 GROUP BY u.id ORDER BY u.id",
    "INSERT INTO target(name) VALUES ('plain'), ('second') RETURNING id, name, total",
    "INSERT OR IGNORE INTO beside.target(name) SELECT name FROM users ORDER BY id",
    "INSERT INTO beside.target(name, total) SELECT name, id FROM users WHERE id BETWEEN 3 AND 8 ORDER BY id "
    "ON CONFLICT (name) DO UPDATE SET total = excluded.total WHERE excluded.total <> 5",
    "UPDATE beside.target SET total = (SELECT sum(total) FROM orders WHERE user_id = target.id) WHERE id % 2 = 0",
    "UPDATE notes SET weight = weight + 1 FROM users u WHERE u.id = notes.user_id AND u.country = 'no' RETURNING note",
    "DELETE FROM notes WHERE user_id IN (SELECT id FROM users WHERE country = 'it')",
    "INSERT INTO counted(x) SELECT name FROM users WHERE id > 10 ORDER BY id",
    "INSERT INTO beside.child(target_id) SELECT id FROM users WHERE id = 1",
    "INSERT INTO beside.child(target_id) VALUES (9999)",
    "DELETE FROM target WHERE id = 1",
    "INSERT INTO target(name) VALUES ('new'), ('plain')",
    "INSERT OR FAIL INTO target(name) VALUES ('kept'), ('plain'), ('never')",
    "INSERT INTO target(name, total) SELECT name || '!', 1e7 FROM users",
    "INSERT INTO users(id, name) SELECT user_id + 100, note FROM beside.notes WHERE user_id < 5 GROUP BY user_id",
    "INSERT INTO users(name, country) SELECT note, 'xx' FROM notes ORDER BY notes.rowid",
    "INSERT OR REPLACE INTO users(id, name) SELECT CAST(id AS INTEGER), alias FROM beside.users WHERE id <> 'x'",
    "INSERT INTO users(id, name) SELECT id, name FROM target WHERE id < 3",
    "UPDATE users SET name = (SELECT note FROM notes n WHERE n.user_id = users.id LIMIT 1) WHERE id IN "
    "(SELECT user_id FROM notes)",
    "DELETE FROM orders WHERE user_id IN (SELECT user_id FROM beside.notes WHERE weight < 3) RETURNING id",
    "INSERT INTO country SELECT DISTINCT note, note FROM notes WHERE note IS NOT NULL",
    "INSERT INTO settings SELECT alias, id FROM beside.users",
    "INSERT INTO beside.log SELECT name FROM settings ORDER BY name",
    "INSERT INTO beside.log SELECT body FROM words WHERE words MATCH 'about' AND rowid < 4 ORDER BY rowid",
    "DELETE FROM beside.log",
    "INSERT INTO texts SELECT name FROM users WHERE id < 3 ORDER BY id",
    "PRAGMA beside.user_version = 12",
    "REPLACE INTO beside.users SELECT CAST(id AS TEXT), name FROM users WHERE id < 4",
    "INSERT INTO beside.nothing VALUES (1)",
    "UPDATE beside.target SET nothing = 1",
]


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A file with a few tables."""
    path = tmp_path / "be side%.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.executescript(BESIDE)
        rows = [(n % 9, f"note {n}", [n, n / 2, str(n), None, b"x"][n % 5]) for n in range(23)]
        made.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)
    return path


@pytest.fixture
def pair(manager: ShardManager, beside: Path, tmp_path: Path) -> Iterator[tuple[ShardManager, sqlite3.Connection]]:
    """Shards and one plain connection with the same rows, and a copy of the same file attached to each."""
    plain = sqlite3.connect(":memory:", isolation_level=None, uri=True)
    plain.executescript(MAIN)
    plain.execute("PRAGMA foreign_keys = ON")
    manager.apply_schema(MAIN)
    changes: list[tuple[str, list[tuple[Any, ...]]]] = [
        ("INSERT INTO users VALUES (?, ?, ?)", [(n, f"name {n}", ["no", "it", None][n % 3]) for n in range(1, 16)]),
        ("INSERT INTO orders VALUES (?, ?, ?)", [(n, n % 11 + 1, n * 1.5) for n in range(1, 60)]),
        ("INSERT INTO country VALUES (?, ?)", [("no", "Norway"), ("it", "Italy")]),
        ("INSERT INTO settings VALUES (?, ?)", [("a", "note 3"), ("b", 4)]),
        ("INSERT INTO words VALUES (?)", [(f"about note {n}",) for n in range(5)]),
    ]
    for sql, rows in changes:
        manager.executemany(sql, rows)
        plain.executemany(sql, rows)
    copy = tmp_path / "copy.db"
    copy.write_bytes(beside.read_bytes())
    plain.execute("ATTACH ? AS beside", (str(copy),))
    manager.attach("beside", beside)
    yield manager, plain
    plain.close()


def _typed(rows: list[Any]) -> list[tuple[Any, ...]]:
    return [tuple((type(value), value) for value in row) for row in rows]


def _answer(run: Callable[[str], Any], sql: str) -> Any:
    try:
        done = run(sql)
        rows = done.fetchall() if done.description else []
    except sqlite3.Error as error:
        return str(error).split(" [")[0]
    return _typed(rows)


@pytest.mark.parametrize("sql", READS)
def test_a_query_beside_the_shards(pair: tuple[ShardManager, sqlite3.Connection], sql: str) -> None:
    manager, plain = pair
    expected = _answer(plain.execute, sql)
    assert isinstance(expected, list)
    assert expected, "a query without rows compares nothing"
    for _ in range(2):
        assert _answer(manager.execute, sql) == expected


def test_changes_beside_the_shards(pair: tuple[ShardManager, sqlite3.Connection], beside: Path, tmp_path: Path) -> None:
    manager, plain = pair
    asked = "SELECT changes(), last_insert_rowid()"
    manager.execute("INSERT INTO settings VALUES ('c', 1)")
    plain.execute("INSERT INTO settings VALUES ('c', 1)")
    failed = 0
    for sql in WRITES:
        expected = _answer(plain.execute, sql)
        failed += isinstance(expected, str)
        assert _answer(manager.execute, sql) == expected, sql
        if isinstance(expected, list) and not sql.startswith(("PRAGMA", "INSERT INTO country")):
            got, wanted = manager.execute(asked).fetchone(), plain.execute(asked).fetchone()
            assert got[0] == wanted[0], sql
            if "beside." in sql and "INSERT" in sql:
                assert got == wanted, sql
        for table in ("users", "orders", "country", "settings"):
            rows = f"SELECT * FROM main.{table} ORDER BY 1, 2"
            assert _answer(manager.execute, rows) == _answer(plain.execute, rows), sql
        assert _contents(beside) == _contents(tmp_path / "copy.db"), sql
    assert failed >= 5, "too few of the statements fail to see that a failure leaves nothing"
    assert manager.check().ok


def _contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(path)) as opened:
        names = [
            name for (name,) in opened.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql <> ''")
        ]
        found = {name: _typed(opened.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}
        found["user_version"] = opened.execute("PRAGMA user_version").fetchall()
    return found


def test_executemany_is_one_transaction(pair: tuple[ShardManager, sqlite3.Connection], beside: Path) -> None:
    manager, _ = pair
    before = _contents(beside)
    with pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: target\.name"):
        manager.executemany("INSERT INTO beside.target(name) VALUES (?)", [("a",), ("b",), ("a",)])
    assert _contents(beside) == before
    sql = "INSERT INTO beside.target(name) SELECT name FROM users WHERE id = ?"
    assert manager.executemany(sql, [(1,), (2,), (3,)]).rowcount == 3
    assert manager.execute("SELECT name FROM target ORDER BY id").fetchall() == [("name 1",), ("name 2",), ("name 3",)]


def test_of_the_shards_only_the_rows_needed_come(pair: tuple[ShardManager, sqlite3.Connection]) -> None:
    manager, _ = pair
    result = manager.execute("SELECT u.name FROM users u, beside.notes n WHERE u.id = n.user_id AND u.country = 'no'")
    result.fetchall()
    assert result.rows_moved == 5
    plan = manager.explain(
        "SELECT o.total FROM orders o JOIN notes n ON n.user_id = o.user_id WHERE o.user_id = ?", (3,)
    )
    assert plan.kind == "gather"
    assert "attached: beside" in str(plan)
    assert manager.explain("SELECT name FROM users WHERE id = 3").kind == "one shard"
    assert manager.explain("DELETE FROM beside.log").kind == "change of an attached file"
    told = manager.execute("EXPLAIN QUERY PLAN SELECT * FROM users JOIN beside.notes ON user_id = id").fetchall()
    assert any("notes" in row["detail"] for row in told)


def test_what_others_do_to_its_schema_is_seen(pair: tuple[ShardManager, sqlite3.Connection], beside: Path) -> None:
    manager, _ = pair
    assert len(manager.execute("SELECT * FROM beside.log").columns) == 1
    with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as other:
        other.execute("ALTER TABLE log ADD COLUMN who DEFAULT 'me'")
        other.execute("CREATE TABLE orders(x)")
        other.execute("CREATE TABLE later(x)")
        other.execute("INSERT INTO later VALUES (3)")
        assert manager.execute("SELECT * FROM beside.log").fetchall() == [("begun", "me")]
        assert manager.execute("SELECT who FROM log").fetchall() == [("me",)]
        assert manager.execute("SELECT x FROM later").fetchall() == [(3,)]
        assert manager.execute("SELECT count(*) FROM orders").scalar() == 59
        other.execute("DROP TABLE later")
        with pytest.raises(OperationalError, match="no such table: later"):
            manager.execute("SELECT x FROM later")
        # What only the file had is found in the database from now on.
        assert manager.execute("SELECT what FROM log").fetchall() == [("begun",)]
        manager.execute("CREATE TABLE log(id INTEGER PRIMARY KEY)")
        assert manager.execute("SELECT * FROM log").fetchall() == []
        manager.execute("DROP TABLE log")
        assert manager.execute("SELECT what FROM log").fetchall() == [("begun",)]


def test_another_file_in_its_place(pair: tuple[ShardManager, sqlite3.Connection], beside: Path, tmp_path: Path) -> None:
    manager, _ = pair
    assert manager.execute("SELECT count(*) FROM notes").scalar() == 23
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other, isolation_level=None)) as made:
        made.execute("CREATE TABLE notes(another)")
        made.execute("INSERT INTO notes VALUES ('here')")
    os.replace(other, beside)
    assert manager.execute("SELECT * FROM notes").fetchall() == [("here",)]
    beside.unlink()
    with pytest.raises(OperationalError, match=r"unable to open database.*beside"):
        manager.execute("SELECT * FROM notes")
    assert not beside.exists()
    assert manager.execute("SELECT count(*) FROM users").scalar() == 15
    assert [row["name"] for row in manager.execute("PRAGMA table_info(users)")] == ["id", "name", "country"]
    assert manager.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'view'").scalar() == 1
    with pytest.raises(OperationalError, match=r"unable to open database.*beside"):
        manager.execute("PRAGMA table_info(notes)")


@pytest.mark.parametrize(
    "sql",
    [
        *("CREATE TABLE beside.t(a)", "DROP TABLE beside.notes", "CREATE INDEX beside.i ON notes(note)"),
        *("ALTER TABLE beside.notes ADD x", "VACUUM beside", "ANALYZE beside", "REINDEX beside.notes"),
        *("CREATE VIEW IF NOT EXISTS beside.v AS SELECT 1", "PRAGMA beside.journal_mode = DELETE"),
        *("PRAGMA beside.schema_version = 3", "ATTACH 'x' AS y", "DETACH beside", "PRAGMA beside.nothing"),
    ],
)
def test_what_is_refused_says_what_to_do(pair: tuple[ShardManager, sqlite3.Connection], beside: Path, sql: str) -> None:
    manager, _ = pair
    before = beside.read_bytes()
    with pytest.raises(NotSupportedError, match=r"connection to that file|manager\.(attach|detach)"):
        manager.execute(sql)
    assert beside.read_bytes() == before


def test_a_table_that_only_the_file_has_is_not_dropped(pair: tuple[ShardManager, sqlite3.Connection]) -> None:
    manager, _ = pair
    with pytest.raises(OperationalError, match="no such table: notes"):
        manager.execute("DROP TABLE notes")
    assert manager.execute("SELECT count(*) FROM beside.notes").scalar() == 23


def test_names_that_can_not_be_attached(pair: tuple[ShardManager, sqlite3.Connection], beside: Path) -> None:
    manager, plain = pair
    for name in ("main", "TEMP", "Beside"):
        with pytest.raises(sqlite3.OperationalError) as theirs:
            plain.execute("ATTACH ? AS ?", (str(beside), name))
        with pytest.raises(OperationalError) as ours:
            manager.attach(name, beside)
        assert str(ours.value) == str(theirs.value)
    wrong: list[Any] = ["_shardlite_x", "", 3, None]
    for name in wrong:
        with pytest.raises(ProgrammingError):
            manager.attach(name, beside)
    for path in ("", None, 3, b"x", "a\0b"):
        with pytest.raises(ProgrammingError, match="path must"):
            manager.attach("other", path)  # type: ignore[arg-type]  # what the test is about
    for name in ("main", "nobody"):
        with pytest.raises(sqlite3.OperationalError) as theirs:
            plain.execute("DETACH ?", (name,))
        with pytest.raises(OperationalError) as ours:
            manager.detach(name)
        assert str(ours.value) == str(theirs.value)
    assert list(manager.attached) == ["beside"]


def test_files_that_can_not_be_attached(pair: tuple[ShardManager, sqlite3.Connection], tmp_path: Path) -> None:
    manager, _ = pair
    with pytest.raises(OperationalError, match=r"unable to open.*missing\.db.*create=True"):
        manager.attach("other", tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at\n" * 20)
    with pytest.raises(DatabaseError, match=r"file is not a database.*text\.db"):
        manager.attach("other", tmp_path / "text.db")
    with pytest.raises(OperationalError, match="unable to open"):
        manager.attach("other", tmp_path)
    for name in ("shard_0.db", "catalog.db"):
        with pytest.raises(ProgrammingError, match=f"{name} is a file of a shardlite database"):
            manager.attach("other", tmp_path / "db" / name)
    with contextlib.closing(sqlite3.connect(tmp_path / "wide.db", isolation_level=None)) as wide:
        wide.execute("PRAGMA encoding = 'UTF-16le'")
        wide.execute("CREATE TABLE t(a)")
    with pytest.raises(OperationalError, match="must use the same text encoding"):
        manager.attach("other", tmp_path / "wide.db")
    assert list(manager.attached) == ["beside"]


def test_a_new_file_is_made_when_asked_for(manager: ShardManager, tmp_path: Path) -> None:
    manager.attach("fresh", tmp_path / "fresh.db", create=True)
    assert (tmp_path / "fresh.db").exists()
    assert manager.execute("SELECT count(*) FROM fresh.sqlite_schema").scalar() == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "fresh.db")) as other:
        other.execute("CREATE TABLE t(a)")
    manager.execute("INSERT INTO fresh.t VALUES (1)")
    assert manager.execute("SELECT * FROM fresh.t").fetchall() == [(1,)]


def test_as_many_files_as_sqlite_allows(pair: tuple[ShardManager, sqlite3.Connection], tmp_path: Path) -> None:
    """With rows on their way by a shared and by an exchange database at the same time."""
    manager, _ = pair
    manager.insert_many("orders", ({"user_id": n % 15, "total": n} for n in range(3_000)))
    for number in range(8):
        manager.attach(f"more{number}", tmp_path / f"more{number}.db", create=True)
        with contextlib.closing(sqlite3.connect(tmp_path / f"more{number}.db", isolation_level=None)) as made:
            made.execute(f"CREATE TABLE m{number}(a)")
            made.execute(f"INSERT INTO m{number} VALUES ({number})")
    with pytest.raises(OperationalError, match="too many attached databases - max 9"):
        manager.attach("more8", tmp_path / "more8.db", create=True)
    assert not (tmp_path / "more8.db").exists()
    named = ", ".join(f"more{number}.m{number}" for number in range(8))
    joined = f"FROM users u, orders o, beside.notes n, {named}"
    sql = f"SELECT count(*), sum(m7.a) {joined} WHERE u.id = o.user_id AND n.user_id = u.id AND u.country = 'no'"
    expected = manager.execute(
        "SELECT count(*) FROM users u, orders o, beside.notes n WHERE u.id = o.user_id AND n.user_id = u.id "
        "AND u.country = 'no'"
    ).scalar()
    assert expected > 1_000
    assert manager.execute(sql).fetchone() == (expected, expected * 7)
    manager.detach("more3")
    manager.attach("more8", tmp_path / "more8.db", create=True)
    assert [*manager.attached][-2:] == ["more7", "more8"]


def test_detached(pair: tuple[ShardManager, sqlite3.Connection], beside: Path) -> None:
    manager, _ = pair
    assert manager.attached == {"beside": str(beside)}
    sql = "SELECT count(*) FROM beside.notes"
    assert manager.execute(sql).scalar() == 23
    reading = manager.execute("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) SELECT i FROM n, notes")
    assert reading.fetchone() == (1,)
    manager.detach("BESIDE")
    assert manager.attached == {}
    for _ in range(2):
        with pytest.raises(OperationalError, match=r"no such table: beside\.notes"):
            manager.execute(sql)
    assert len(reading.fetchall()) == 3000 * 23 - 1
    manager.attach("again", beside)
    assert manager.execute("SELECT count(*) FROM again.notes").scalar() == 23


def test_a_stranger_s_file_is_not_trusted(manager: ShardManager, tmp_path: Path) -> None:
    path = tmp_path / "stranger.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.create_function("harm", 1, lambda x: x)
        made.executescript(
            "CREATE TABLE t(a); CREATE VIEW v AS SELECT harm(a) AS a FROM t; INSERT INTO t VALUES (1);"
            "CREATE TRIGGER tt AFTER INSERT ON t BEGIN SELECT harm(new.a); END"
        )
    called: list[int] = []
    manager.create_function("harm", 1, lambda x: called.append(x) or x)
    manager.attach("stranger", path)
    for sql in ("SELECT * FROM stranger.v", "INSERT INTO stranger.t VALUES (2)"):
        with pytest.raises(OperationalError, match=r"unsafe use of harm\(\)"):
            manager.execute(sql)
    assert called == []
    assert manager.execute("SELECT harm(a) FROM stranger.t").fetchall() == [(1,)]
    manager.detach("stranger")
    manager.attach("stranger", path, trusted_schema=True)
    manager.execute("INSERT INTO stranger.t VALUES (2)")
    assert manager.execute("SELECT * FROM stranger.v").fetchall() == [(1,), (2,)]


def test_a_schema_that_would_run_something(manager: ShardManager, tmp_path: Path) -> None:
    path = tmp_path / "forged.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.execute("CREATE TABLE t(a)")
        made.execute("PRAGMA writable_schema = ON")
        made.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE t AS SELECT randomblob(1e9) AS a'")
    with pytest.raises(Error, match="malformed"):
        manager.attach("forged", path)


def test_a_locked_file_is_waited_for(make_manager: Callable[..., ShardManager], beside: Path, tmp_path: Path) -> None:
    manager = make_manager(num_shards=2, connection_timeout=0.2)
    manager.apply_schema(MAIN)
    manager.attach("beside", beside)
    assert manager.execute("SELECT count(*) FROM notes").scalar() == 23
    with contextlib.closing(sqlite3.connect(beside, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OperationalError, match=r"database is locked"):
            manager.execute("INSERT INTO beside.log VALUES ('x')")
        with pytest.raises((OperationalError, StatementTimeoutError)):
            manager.execute("INSERT INTO beside.log VALUES ('x')", timeout=0.05)
        assert manager.execute("SELECT count(*) FROM users").scalar() == 0
        timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        timer.start()
        manager.execute("INSERT INTO beside.log VALUES ('waited')", timeout=30)
        timer.join()
    assert manager.execute("SELECT what FROM log").fetchall() == [("begun",), ("waited",)]


def test_a_change_that_takes_too_long_leaves_nothing(
    pair: tuple[ShardManager, sqlite3.Connection], beside: Path
) -> None:
    manager, _ = pair
    before = _contents(beside)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n, users"
    with pytest.raises(StatementTimeoutError):
        manager.execute(f"INSERT INTO beside.log {endless}", timeout=0.2)
    assert _contents(beside) == before
    manager.execute("INSERT INTO beside.log VALUES ('free')")


def test_threads_attach_detach_and_ask(pair: tuple[ShardManager, sqlite3.Connection], beside: Path) -> None:
    manager, _ = pair
    failures: list[BaseException] = []

    def come_and_go(name: str) -> None:
        try:
            for _ in range(8):
                manager.attach(name, beside)
                assert manager.execute(f"SELECT count(*) FROM {name}.notes, users WHERE id = 1").scalar() == 23
                manager.detach(name)
        except BaseException as error:  # told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=come_and_go, args=(f"of_{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [*manager.attached] == ["beside"]
