"""The connection class: the interface of sqlite3, and the short cuts."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardlite.connection import Connection, ConnectionPool, ConnectionSettings, Cursor, open_connection
from shardlite.driver import has_wal_reset_bug, sqlite3
from shardlite.errors import PoolClosedError, ProgrammingError


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    conn = open_connection(tmp_path / "a.db", ConnectionSettings())
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    conn.executemany("INSERT INTO t (x) VALUES (?)", [("a",), ("b",), ("c",)])
    conn.commit()
    yield conn
    conn.close()


def test_interface_of_sqlite3(conn: Connection) -> None:
    cursor = conn.execute("SELECT * FROM t ORDER BY id")
    assert isinstance(cursor, Cursor)
    assert cursor.fetchone()["x"] == "a"
    assert [row["x"] for row in cursor] == ["b", "c"]
    assert [tuple(row) for row in conn.execute("SELECT x FROM t").fetchmany(2)] == [("a",), ("b",)]
    cursor = conn.cursor()
    assert cursor.execute("SELECT 1") is cursor
    assert [tuple(row) for row in cursor.fetchall()] == [(1,)]
    conn.executescript("CREATE TABLE u (y); INSERT INTO u VALUES (1);")
    with pytest.raises(sqlite3.IntegrityError), conn:  # noqa: PT012  the block's own end is what is tested
        conn.execute("INSERT INTO t VALUES (4, 'd')")
        conn.execute("INSERT INTO t VALUES (1, 'again')")
    assert conn.fetch_row("SELECT count(*) FROM t") == (3,)
    with conn:
        conn.execute("INSERT INTO t VALUES (4, 'd')")
    assert conn.fetch_row("SELECT count(*) FROM t") == (4,)
    assert not conn.in_use


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "iterdump"), reason="pysqlite3 has no iterdump")
def test_iterdump(conn: Connection) -> None:
    assert "INSERT INTO \"t\" VALUES(2,'b');" in list(conn.iterdump())
    assert not conn.in_use


def test_nested_use_in_a_generator(conn: Connection) -> None:
    conn.executemany("INSERT INTO t (x) VALUES (?)", ((row["x"],) for row in conn.execute("SELECT x FROM t LIMIT 2")))
    assert conn.fetch_row("SELECT count(*) FROM t") == (5,)
    assert not conn.in_use


def test_backup_and_blob(conn: Connection, tmp_path: Path) -> None:
    target = open_connection(tmp_path / "copy.db", ConnectionSettings())
    conn.backup(target)
    assert target.fetch_all("SELECT x FROM t ORDER BY id") == [("a",), ("b",), ("c",)]
    target.close()
    conn.execute("INSERT INTO t VALUES (9, zeroblob(4))")
    conn.commit()
    with conn.blobopen("t", "x", 9) as blob:
        blob.write(b"ab")
        blob.seek(0)
        assert (blob.read(2), blob.tell(), len(blob), blob[1]) == (b"ab", 2, 4, ord("b"))
        blob[3] = 7
        blob[1:3] = b"xy"
        assert (blob[0:2], blob[-1], blob[::2], blob.tell()) == (b"ax", 7, b"ay", 2)
        with pytest.raises(IndexError):
            blob[1:3] = b"longer"
        with pytest.raises(IndexError):
            blob[4]
    conn.commit()
    assert conn.fetch_row("SELECT x FROM t WHERE id = 9") == (b"axy\x07",)
    with pytest.raises(sqlite3.OperationalError), conn.blobopen("t", "x", 9, readonly=True, name="main") as blob:
        blob[0] = 1
    conn.rollback()
    with pytest.raises((sqlite3.OperationalError, sqlite3.DatabaseError)):
        conn.blobopen("t", "x", 9, name="absent")


@pytest.mark.parametrize("name", ["blobopen", "open_blob"])
def test_an_open_blob_ends_at_the_return_to_the_pool(tmp_path: Path, name: str) -> None:
    """It would go on reading, and the log could not be emptied."""
    if not hasattr(Connection, name):
        pytest.skip("pysqlite3's name for it")
    with ConnectionPool(tmp_path / "a.db", 2) as pool:
        with pool.get_connection_context() as conn:
            conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
            conn.execute("INSERT INTO t VALUES (1, zeroblob(4))")
            conn.commit()
            blob = getattr(conn, name)("t", "x", 1)
            assert blob.read(1) == b"\x00"
        with pytest.raises(sqlite3.Error):
            blob.read(1)
        with pool.get_connection_context() as conn:
            conn.execute("INSERT INTO t VALUES (2, 2)")
            conn.commit()
            assert conn.fetch_row("PRAGMA wal_checkpoint(TRUNCATE)") == (0, 0, 0)


def test_short_cuts_give_tuples(conn: Connection) -> None:
    assert conn.fetch_row("SELECT id, x FROM t WHERE id = ?", (2,)) == (2, "b")
    assert type(conn.fetch_row("SELECT 1")) is tuple
    assert conn.fetch_row("SELECT id FROM t WHERE id = 99") is None
    assert conn.fetch_all("SELECT x FROM t WHERE id < :n", {"n": 3}) == [("a",), ("b",)]
    assert conn.run("UPDATE t SET x = 'z' WHERE id < 3").rowcount == 2
    assert conn.run("INSERT INTO t (x) VALUES ('new')").lastrowid == 4
    assert conn.run_many("INSERT INTO t (x) VALUES (?)", [("p",), ("q",)]) == 2
    for sql, rows in (
        ("UPDATE t SET x = 'y' WHERE id < 3 RETURNING id", [(1,), (2,)]),
        ("DELETE FROM t WHERE x = 'absent' RETURNING id", []),
        ("DELETE FROM t WHERE x = 'new' RETURNING x", [("new",)]),
    ):
        cursor = conn.run(sql)
        assert (cursor.fetchall(), cursor.rowcount) == (rows, len(rows))
    assert conn.run("SELECT 1").rowcount == -1
    stream = conn.stream("SELECT id FROM t ORDER BY id")
    assert next(stream) == (1,)
    assert conn.fetch_row("SELECT 5") == (5,)
    assert next(stream) == (2,)


def test_fetch_row_leaves_the_statement_reset(conn: Connection, tmp_path: Path) -> None:
    """Otherwise it would go on reading, and the log could not be emptied."""
    assert conn.fetch_row("SELECT id FROM t ORDER BY id") == (1,)
    assert not conn.in_transaction
    other = open_connection(tmp_path / "a.db", ConnectionSettings(busy_timeout=0))
    other.execute("INSERT INTO t (x) VALUES (1)")
    other.commit()
    assert other.fetch_row("PRAGMA wal_checkpoint(TRUNCATE)") == (0, 0, 0)
    other.close()


def test_foreign_cursor_factory_is_refused(conn: Connection) -> None:
    with pytest.raises(ProgrammingError, match="derive it from"):
        conn.cursor(sqlite3.Cursor)

    class Mine(Cursor):
        pass

    assert isinstance(conn.cursor(Mine), Mine)


def test_everything_is_refused_after_close(conn: Connection) -> None:
    cursor = conn.execute("SELECT x FROM t")
    blob = None
    conn.close()
    conn.close()
    for call in (
        conn.cursor,
        conn.rollback,
        cursor.fetchone,
        cursor.fetchall,
        cursor.fetchmany,
        lambda: next(cursor),
        lambda: conn.execute("SELECT 1"),
        lambda: conn.executemany("SELECT 1", []),
        lambda: conn.executescript("SELECT 1"),
        lambda: conn.fetch_row("SELECT 1"),
        lambda: conn.fetch_all("SELECT 1"),
        lambda: conn.run("SELECT 1"),
        lambda: conn.run_many("SELECT 1", []),
        lambda: conn.stream("SELECT 1"),
        lambda: conn.create_function("f", 0, lambda: 1),
        lambda: conn.blobopen("t", "x", 1),
    ):
        with pytest.raises(PoolClosedError, match=r"a\.db.*closed"):
            call()
    cursor.close()
    assert blob is None
    assert not conn.in_use


def test_calls_are_counted_while_they_last(conn: Connection) -> None:
    seen: list[int] = []
    conn.create_function("look", 0, lambda: seen.append(len(conn.calls)))
    conn.execute("SELECT look()").fetchall()
    conn.fetch_row("SELECT look()")
    conn.run("UPDATE t SET x = look() WHERE id = 1")
    assert seen == [1, 1, 1]
    with pytest.raises(sqlite3.OperationalError):
        conn.execute("SELECT nonsense FROM t")
    assert not conn.in_use


def test_interrupting_a_call_leaves_the_connection_usable(conn: Connection) -> None:
    over = threading.Event()

    def interrupt() -> None:  # again and again: one that comes before the statement begins is forgotten
        while not over.wait(0.02):
            conn.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        conn.fetch_row("WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c")
    over.set()
    thread.join()
    assert conn.fetch_row("SELECT 1") == (1,)


@pytest.mark.skipif(not has_wal_reset_bug(), reason="this SQLite is free of the bug")
def test_warning_comes_once_per_process(tmp_path: Path) -> None:
    script = """
import sys, warnings
warnings.simplefilter("always")
from shardlite.connection import ConnectionPool
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for number in range(3):
        pool = ConnectionPool(f"{sys.argv[1]}/{number}.db", min_connections=2)
        pool.close_all()
print([w.category.__name__ for w in seen if "WAL-reset" in str(w.message)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "['WalResetBugWarning']", done.stderr
