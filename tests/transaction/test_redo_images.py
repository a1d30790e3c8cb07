"""Reading and writing images: the bytes of a section, what a replay refuses, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redo_world import connect, dump

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import DataError, InternalError, ProgrammingError
from shardlite.transaction import images
from shardlite.transaction.images import image_items, prepare_replay, read_images, write_images
from shardlite.transaction.section import Rows, SequenceValue, Statement, decode_section, encode_item
from shardlite.transaction.touched import Touched
from shardlite.transaction.values import Text


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    with closing(connect()) as here, closing(connect()) as there:
        yield here, there


def both(pair: Sequence[Connection], *statements: str) -> None:
    for conn in pair:
        for sql in statements:
            conn.run(sql)


def section_of(conn: Connection, table: str, keys: Any, statements: Sequence[str] = ()) -> bytes:
    touched = Touched()
    if keys is None:
        touched.whole(0, table)
    else:
        touched.add(0, table, keys)
    return read_images(conn, touched.on(0), statements=statements)


def replay(conn: Connection, section: bytes) -> None:
    prepare_replay(conn)
    conn.run("BEGIN IMMEDIATE")
    try:
        write_images(conn, section)
    finally:
        conn.run("COMMIT")


def test_the_bytes_are_those_of_the_document(pair: tuple[Connection, Connection]) -> None:
    here, _ = pair
    here.run("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, x, g AS (x || 'g'))")
    here.run("CREATE TABLE w(b, a, PRIMARY KEY (a, b)) WITHOUT ROWID")
    here.run("INSERT INTO t VALUES (3, 'é')")
    here.run("INSERT INTO w VALUES (1, 2)")
    touched = Touched()
    touched.add(0, "W", [(2, 1)])
    touched.add(0, "T", [4, 3, 3])
    assert read_images(here, touched.on(0), statements=["CREATE VIEW v AS SELECT 1"]) == b"".join(
        (
            b"D\x19\x00\x00\x00CREATE VIEW v AS SELECT 1",
            b"T\x01\x00t\x00\x01\x00\x02\x00id\x01\x00\x01\x00x\x02\x00\x00\x00\x1b\x00\x00\x00",
            b"\x01\x03\x00\x00\x00\x00\x00\x00\x00\x01\x03\x02\x00\x00\x00\xc3\xa9",
            b"\x01\x04\x00\x00\x00\x00\x00\x00\x00\x00",
            b"T\x01\x00w\x01\x02\x00\x01\x00a\x01\x00b\x00\x00\x01\x00\x00\x00\x13\x00\x00\x00",
            b"\x01\x02\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01",
            b"A\x01\x00t\x03\x00\x00\x00\x00\x00\x00\x00",
        )
    )


def test_items_come_back(pair: tuple[Connection, Connection]) -> None:
    items = (
        Statement("CREATE TABLE é(x)"),
        Rows("t", 3, ("a", "b"), (), 0, b""),
        Rows("u", 0, ("rowid",), ("x",), 1, b"\x01" + bytes(8) + b"\x01\x00"),
        SequenceValue("t", -1),
    )
    section = b"".join(map(encode_item, items))
    assert tuple(decode_section(section)) == items
    (row,) = items[2].rows()
    assert (list(row.key), row.values) == ([0], [None])
    starts = [len(b"".join(map(encode_item, items[:count]))) for count in range(len(items))]
    for cut in set(range(1, len(section))) - set(starts):
        with pytest.raises(InternalError, match="ends within"):
            list(decode_section(section[:cut]))
    with pytest.raises(InternalError, match="letter of an item"):
        list(decode_section(b"X"))
    with pytest.raises(DataError, match="too long"):
        encode_item(SequenceValue("n" * 70_000, 1))


def test_equal_rows_give_equal_bytes_whatever_the_order(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    both(pair, "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY, x) WITHOUT ROWID")
    here.run("INSERT INTO t VALUES ('a', 1), ('b', 2)")
    there.run("INSERT INTO t VALUES ('b', 2), ('a', 1)")
    one = section_of(here, "t", [("b",), ("c",), (Text(b"a"),), ("B",)])
    assert one == section_of(there, "t", [("A",), ("c",), ("b",)])
    assert one == section_of(there, "t", [("a",), (Text(b"c"),), ("b",)])


def test_large_tables_come_in_pieces(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    both(pair, "CREATE TABLE t(x, y)", "INSERT INTO t VALUES (0, 0)")
    numbers = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) "
    here.run(f"{numbers}INSERT INTO t SELECT i, zeroblob(CASE WHEN i < 9 THEN 700000 ELSE 1 END) FROM n")
    for keys in (range(0, 2600), None):
        touched = Touched()
        if keys is None:
            touched.whole(0, "t")
        else:
            touched.add(0, "t", keys)
        items = list(image_items(here, touched.on(0)))
        assert len(items) >= 6
        assert max(map(len, items)) < 2_000_000
        counts = [item.count for piece in items for item in decode_section(piece) if isinstance(item, Rows)]
        assert max(counts) <= 1_000
        there.run("DELETE FROM t WHERE x > 100")
        replay(there, b"".join(items))
        assert dump(there) == dump(here)


@pytest.mark.parametrize("ddl", ["x INTEGER PRIMARY KEY, y", "x, y, PRIMARY KEY (x)) WITHOUT ROWID --", "x, y"])
@pytest.mark.parametrize("rows", ["(1, 2), (3, 4)", "(1, 9)", ""])
def test_whole_tables(pair: tuple[Connection, Connection], ddl: str, rows: str) -> None:
    here, there = pair
    both(pair, f"CREATE TABLE t({ddl}\n{'' if '--' in ddl else ')'}")
    there.run("INSERT INTO t VALUES (1, 1), (7, 7)")
    if rows:
        here.run(f"INSERT INTO t VALUES {rows}")
    section = section_of(here, "t", None)
    for _ in range(2):
        replay(there, section)
        assert dump(there) == dump(here)


def test_triggers_dont_run_and_come_back_in_their_order(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    triggers = [
        f"CREATE TRIGGER {name} AFTER INSERT ON t BEGIN INSERT INTO log VALUES ('{name}'); END" for name in "cab"
    ]
    both(pair, "CREATE TABLE t(id INTEGER PRIMARY KEY)", "CREATE TABLE log(x)", *triggers)
    here.run("INSERT INTO t VALUES (1)")
    replay(there, section_of(here, "t", [1]))
    assert there.fetch_all("SELECT * FROM log") == []
    here.run("DELETE FROM log")
    assert dump(there) == dump(here)
    there.run("INSERT INTO t VALUES (2)")
    here.run("INSERT INTO t VALUES (2)")
    assert there.fetch_all("SELECT x FROM log") == here.fetch_all("SELECT x FROM log")


def test_schema_changes_come_first(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    both(pair, "CREATE TABLE t(id INTEGER PRIMARY KEY)", "CREATE TABLE old(x)", "INSERT INTO t VALUES (1)")
    changes = ["ALTER TABLE t ADD COLUMN x DEFAULT 5", "DROP TABLE old", "CREATE TABLE u(y UNIQUE)"]
    for sql in (*changes, "UPDATE t SET x = 6", "INSERT INTO u VALUES ('a')"):
        here.run(sql)
    touched = Touched()
    touched.add(0, "t", [1])
    touched.add(0, "old", [1])
    touched.add(0, "u", [1])
    replay(there, read_images(here, touched.on(0), statements=changes))
    assert dump(there) == dump(here)


def refused(there: Connection, section: bytes, error: type[Exception], match: str) -> None:
    before = dump(there)
    with pytest.raises(error, match=match):
        replay(there, section)
    assert dump(there) == before


def test_rows_that_dont_fit_are_refused_and_nothing_is_done(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    both(
        pair,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE ON CONFLICT REPLACE)",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END",
    )
    here.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    there.run("INSERT INTO t VALUES (9, 'b')")  # a victim that nobody noted
    refused(there, section_of(here, "t", [1, 2]), InternalError, "don't fit what the shard holds: UNIQUE")


def test_a_shard_of_another_schema_is_refused(pair: tuple[Connection, Connection]) -> None:
    here, there = pair
    here.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    section = section_of(here, "t", [1])
    refused(there, section, InternalError, "there is no table t")
    there.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x, y)")
    refused(there, section, InternalError, "the columns of t are others")
    there.run("DROP TABLE t")
    there.run("CREATE TABLE t(id, x, PRIMARY KEY (id)) WITHOUT ROWID")
    refused(there, section, InternalError, "the columns of t are others")
    here.run("CREATE TABLE w(a, b, PRIMARY KEY (a, b)) WITHOUT ROWID")
    there.run("CREATE TABLE w(a, b, PRIMARY KEY (b, a)) WITHOUT ROWID")
    refused(there, section_of(here, "w", [(1, 2)]), InternalError, "the rows of w are named otherwise")


def test_a_connection_that_isnt_set_up_is_refused(pair: tuple[Connection, Connection]) -> None:
    conn, _ = pair
    with pytest.raises(ProgrammingError, match="prepare_replay"):
        write_images(conn, b"")
    conn.run("BEGIN")
    with pytest.raises(ProgrammingError, match="prepare_replay"):
        write_images(conn, b"")


def test_a_missing_function_does_nothing(tmp_path: Path) -> None:
    def twice(conn: Connection) -> Connection:
        conn.create_function("twice", 1, lambda x: 2 * x, deterministic=True)
        return conn

    with closing(twice(connect())) as here, closing(twice(connect(tmp_path / "there.db"))) as there:
        both((here, there), "CREATE TABLE t(id INTEGER PRIMARY KEY, x)", "CREATE INDEX i ON t(twice(x))")
        here.run("INSERT INTO t VALUES (1, 2)")
        section = section_of(here, "t", [1])
        wanted = dump(here)
    with closing(connect(tmp_path / "there.db")) as there:
        with pytest.raises(sqlite3.OperationalError, match="twice"):
            replay(there, section)
        assert there.fetch_all("SELECT * FROM t NOT INDEXED") == []
    with closing(twice(connect(tmp_path / "there.db"))) as there:
        replay(there, section)
        assert dump(there) == wanted


@pytest.mark.parametrize("weak", [False, True])
def test_indexes_on_expressions_of_blobs_stay_sound_in_utf16(weak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(connect(encoding="UTF-16le")) as here, closing(connect(encoding="UTF-16le")) as there:
        both((here, there), "CREATE TABLE t(id INTEGER PRIMARY KEY, x)", "CREATE INDEX i ON t(lower(x))")
        here.run("INSERT INTO t VALUES (1, x'00ff')")
        section = section_of(here, "t", [1])
        if weak:
            made = images._Replay.__init__

            def init(self: Any, *args: Any) -> None:
                made(self, *args)
                self._odd = {Text}

            monkeypatch.setattr(images._Replay, "__init__", init)
        replay(there, section)
        assert (dump(there) == dump(here)) is not weak


Change = Callable[[Sequence[Any]], Sequence[Any]]


@pytest.mark.parametrize(
    "change",
    [
        lambda row: (*row[:-1], 0.0),  # instead of -0.0
        lambda row: (row[0], row[1], 1.0, row[3]),  # instead of 1
        lambda row: (row[0], b"a", *row[2:]),  # instead of 'a'
        lambda row: (row[0] + 1, *row[1:]),
    ],
)
def test_each_bit_is_compared(
    pair: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    here, there = pair
    both(pair, "CREATE TABLE t(id INTEGER PRIMARY KEY, x, y, z)")
    here.run("INSERT INTO t VALUES (1, 'a', 1, -0.0)")
    section = section_of(here, "t", [1])
    split = images._Replay._split

    def changed(self: Any, rows: Any) -> Any:
        plain, odd = split(self, rows)
        return [change(row) if len(row) > 1 else row for row in plain], odd

    monkeypatch.setattr(images._Replay, "_split", changed)
    refused(there, section, InternalError, "a row of t comes out otherwise than it was: id = 1: x = b'a'")
    monkeypatch.undo()
    replay(there, section)


def test_rows_that_should_be_gone_are_looked_for(
    pair: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    both(pair, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    there.run("INSERT INTO t VALUES (1)")
    monkeypatch.setattr(images._Replay, "_delete", lambda self, item: None)
    refused(there, section_of(here, "t", [1]), InternalError, "id = 1: gone, and here id = 1")
    whole = section_of(here, "t", None)
    monkeypatch.setattr(images._Replay, "_insert", lambda self, item: self._conn.run("INSERT INTO t VALUES (5)"))
    refused(there, whole, InternalError, "t should have 0 rows")


def test_keys_of_the_wrong_kind_are_refused(pair: tuple[Connection, Connection]) -> None:
    here, _ = pair
    here.run("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    here.run("CREATE TABLE w(a, b, PRIMARY KEY (a, b)) WITHOUT ROWID")
    with pytest.raises(ProgrammingError, match="t: a touched row must be named by its rowid"):
        section_of(here, "t", [(1,)])
    with pytest.raises(ProgrammingError, match=r"w: a touched row must be named by its key columns \(a, b\)"):
        section_of(here, "w", [1])
    with pytest.raises(ProgrammingError, match=r"w: a row is named by \(a, b\), not by 1 values"):
        section_of(here, "w", [(1,)])


def test_a_sequence_that_is_no_number_is_refused(pair: tuple[Connection, Connection]) -> None:
    here, _ = pair
    here.run("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT)")
    here.run("INSERT INTO sqlite_sequence VALUES ('t', 'x')")
    with pytest.raises(DataError, match="holds 'x' for t"):
        section_of(here, "t", [])
