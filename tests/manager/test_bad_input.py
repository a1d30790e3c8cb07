"""Bad input: a clear error that names the thing, of the right class, and nothing changed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import DirectoryStrategy, HashStrategy, RangeStrategy, ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import (
    DatabaseError,
    Error,
    IntegrityError,
    InternalError,
    LayoutMismatchError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    RoutingError,
    ShardUnavailableError,
)

Make = Callable[..., ShardManager]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small closed database with tables of every kind, made once."""
    place = tmp_path_factory.mktemp("sample") / "db"
    with ShardManager(num_shards=3, db_dir=place, durability="normal") as manager:
        manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INT CHECK (age >= 0))")
        manager.create_table("CREATE TABLE tags (name TEXT PRIMARY KEY, n INT) WITHOUT ROWID")
        manager.create_table("CREATE TABLE codes (code TEXT PRIMARY KEY, n INT)", kind="reference")
        manager.create_table("CREATE TABLE notes (body TEXT)")
        manager.create_table("CREATE TABLE events (what TEXT)", kind="sharded")
        manager.insert_many("users", ({"id": n, "name": f"u{n}", "age": n} for n in range(30)))
        manager.insert_many("tags", ({"name": f"t{n}", "n": n} for n in range(10)))
        manager.insert("codes", {"code": "a", "n": 1})
        manager.insert("notes", {"body": "x"})
        manager.insert("events", {"what": "x"}, key="k")
    return place


@pytest.fixture
def filled(sample: Path, tmp_path: Path, make_manager: Make) -> Iterator[ShardManager]:
    """A copy of the sample; whatever the test does, its content must be the same afterwards."""
    shutil.copytree(sample, tmp_path / "db")
    manager = make_manager()
    before = content(manager)
    yield manager
    assert content(manager) == before


def content(manager: ShardManager) -> Any:
    """Return every row of every shard, our own tables' too, and the schema."""
    found = []
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            schema = conn.fetch_all("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")
            tables = [name for kind, name, _ in schema if kind == "table"]
            found.append((schema, [conn.fetch_all(f'SELECT * FROM "{name}" ORDER BY 1') for name in tables]))
    return found, dict(manager.tables)


def table_calls(table: str) -> list[Callable[[ShardManager], Any]]:
    """Return one call of each method that takes a table's name."""
    return [
        lambda m: m.insert(table, {"id": 1}),
        lambda m: m.insert(table, {"id": 1}, key=1),
        lambda m: m.insert_many(table, [{"id": 1}]),
        lambda m: m.select(table),
        lambda m: m.get(table, 1),
        lambda m: m.update(table, {"age": 1}),
        lambda m: m.delete(table),
        lambda m: m.upsert(table, {"id": 1}),
        lambda m: m.aggregate(table, "COUNT(*)"),
        lambda m: m.count(table),
        lambda m: m.shard_for(table, 1),
    ]


BAD_NAMES = [
    "nobody", "", "users; DROP TABLE users", 'users"', "users--", "main.users", "users\0", " users", "sqlite_schema",
    "_shardlite_meta", "ußers", "SELECT", "[users]", "(SELECT 1)",
]  # fmt: skip


@pytest.mark.parametrize("table", BAD_NAMES)
def test_unknown_table(filled: ShardManager, table: str) -> None:
    for call in table_calls(table):
        with pytest.raises(ProgrammingError) as caught:
            call(filled)
        assert isinstance(caught.value, sqlite3.ProgrammingError)
        assert table in str(caught.value) or repr(table) in str(caught.value)


@pytest.mark.parametrize("table", [None, 5, b"users", ["users"], ("users",), object()])
def test_a_table_name_is_text(filled: ShardManager, table: Any) -> None:
    for call in table_calls(table):
        with pytest.raises(ProgrammingError, match="name"):
            call(filled)


@pytest.mark.parametrize("column", ["nope", "", "name; DROP TABLE users", 'na"me', "name\0", "1", "id = id OR 1", "*"])
def test_unknown_column(filled: ShardManager, column: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: filled.insert("users", {"id": 100, column: 1}),
        lambda: filled.insert("users", {column: 1}, key=100),
        lambda: filled.insert_many("users", [{"id": 100}, {"id": 101, column: 1}]),
        lambda: filled.select("users", {column: 1}),
        lambda: filled.select("users", columns=["id", column]),
        lambda: filled.select("users", order_by=column),
        lambda: filled.select("users", order_by=[f"-{column}"]),
        lambda: filled.update("users", {column: 1}),
        lambda: filled.update("users", {"age": 1}, {column: 1}),
        lambda: filled.delete("users", {column: 1}),
        lambda: filled.upsert("users", {"id": 1, column: 1}),
        lambda: filled.upsert("users", {"id": 1}, conflict=column or ["", "id"]),
        lambda: filled.aggregate("users", "COUNT(*)", {column: 1}),
        lambda: filled.aggregate("users", "COUNT(*)", group_by=column),
        lambda: filled.count("users", {column: 1}),
    ]
    for number, call in enumerate(calls):
        with pytest.raises((ProgrammingError, NotSupportedError, OperationalError)) as caught:
            call()
        assert isinstance(caught.value, Error), number
        assert column.split("\0")[0][:2] in str(caught.value), number


def test_strange_names_work(make_manager: Make) -> None:
    """What SQLite takes as a name, quoted, works in every method."""
    names = ['a"b', "semi;colon", "SELECT", "täble ✓", "with space", "it's", "a.b", "--", "x]y", "q?1", ":n", "%s", "`"]
    manager = make_manager(num_shards=3)
    for name in names:
        quoted = '"' + name.replace('"', '""') + '"'
        column = name + "_c"
        quoted_column = '"' + column.replace('"', '""') + '"'
        manager.create_table(f"CREATE TABLE {quoted} ({quoted_column} TEXT PRIMARY KEY, {quoted} INT)")
        for number in range(8):
            manager.insert(name, {column: f"k{number}", name: number})
        manager.insert(name, {name: 8}, key="k8")
        assert manager.insert_many(name, [{column: "k9", name: 9}]) == 1
        assert manager.get(name, "k3") == {column: "k3", name: 3}
        assert manager.count(name) == 10
        rows = manager.select(name, {name: (">", 6)}, columns=[name], order_by=f"-{name}", limit=2)
        assert rows == [{name: 9}, {name: 8}]
        assert manager.update(name, {name: 50}, {column: "k1"}) == 1
        assert manager.update(name, {name: 51}, key="k2") == 1
        manager.upsert(name, {column: "k1", name: 60})
        assert manager.select(name, {name: [60, 51]}, order_by=name) == [
            {column: "k2", name: 51},
            {column: "k1", name: 60},
        ]
        assert manager.delete(name, {column: "k4"}) == 1
        assert manager.aggregate(name, f"MAX({quoted})") == {f"MAX({quoted})": 60}
        assert len(manager.aggregate(name, "COUNT(*)", group_by=name)) == 9
        assert manager.execute(f"SELECT {quoted} FROM {quoted} WHERE {quoted_column} = ?", ("k1",)).scalar() == 60
        assert len(manager.execute(f"SELECT * FROM {quoted}").fetchall()) == 9
        with pytest.raises(ProgrammingError, match="column"):
            manager.insert(name, {column + "\0": 1})
    with pytest.raises((ProgrammingError, OperationalError)):
        manager.create_table('CREATE TABLE "nul\0" (id INTEGER PRIMARY KEY)')
    assert set(manager.tables) == set(names)


@pytest.mark.parametrize("key", [[1], (1,), {"a": 1}, object(), 2**63, -(2**63) - 1, {1}, (1, 2), "\ud800"])
def test_key_of_a_wrong_type(filled: ShardManager, key: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: filled.insert("tags", {"name": key, "n": 1}),
        lambda: filled.insert("tags", {"n": 1}, key=key),
        lambda: filled.insert_many("tags", [{"name": "new", "n": 1}, {"name": key, "n": 1}]),
        lambda: filled.get("tags", key),
        lambda: filled.select("tags", key=key),
        lambda: filled.update("tags", {"n": 1}, key=key),
        lambda: filled.delete("tags", key=key),
        lambda: filled.upsert("tags", {"name": key, "n": 1}),
        lambda: filled.shard_for("tags", key),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ProgrammingError) as caught:
            call()
        assert str(caught.value), number
    with pytest.raises(ProgrammingError):
        filled.execute("SELECT * FROM tags WHERE name = ?", (key,))


def test_an_integer_key_takes_integers(filled: ShardManager) -> None:
    for key in ("abc", 1.5, b"x", "1x"):
        with pytest.raises(ProgrammingError, match=r"INTEGER PRIMARY KEY|datatype"):
            filled.insert("users", {"id": key})
        with pytest.raises(ProgrammingError, match=r"INTEGER PRIMARY KEY|datatype"):
            filled.insert_many("users", [{"id": 100}, {"id": key}])
        with pytest.raises(Error, match=r"INTEGER PRIMARY KEY|datatype"):
            filled.execute("INSERT INTO users (id) VALUES (?)", (key,))
        with pytest.raises(ProgrammingError, match=r"INTEGER PRIMARY KEY|datatype"):
            filled.upsert("users", {"id": key})
        assert filled.get("users", key) is None


def test_key_and_row_disagree(filled: ShardManager) -> None:
    for call in (
        lambda: filled.insert("users", {"id": 100, "name": "x"}, key=101),
        lambda: filled.upsert("users", {"id": 100, "name": "x"}, key=101),
        lambda: filled.insert("tags", {"name": "a"}, key="b"),
        lambda: filled.insert("tags", {"n": 1}),
        lambda: filled.upsert("tags", {"n": 1}, conflict="name"),
        lambda: filled.insert("events", {"what": "x"}),
        lambda: filled.execute("SELECT * FROM users WHERE id = 1", key=other_key(filled, 1)),
        lambda: filled.execute("UPDATE users SET age = 1 WHERE id = 1", key=other_key(filled, 1)),
        lambda: filled.execute("INSERT INTO users (id) VALUES (100)", key=other_key(filled, 100)),
        lambda: filled.execute("SELECT * FROM users", key=1),
    ):
        with pytest.raises(ProgrammingError):
            call()


def other_key(manager: ShardManager, key: int) -> int:
    """Return a key of another shard."""
    return next(k for k in range(1000) if manager.shard_for("users", k) != manager.shard_for("users", key))


@pytest.mark.parametrize(
    "row", [None, 5, "id", b"x", ["id"], [("id", 1)], {"id"}, ("id", 1), object(), (x for x in ())]
)
def test_rows_are_mappings(filled: ShardManager, row: Any) -> None:
    for call in (
        lambda: filled.insert("users", row),
        lambda: filled.upsert("users", row),
        lambda: filled.update("users", row),
        lambda: filled.insert_many("users", [{"id": 100}, row]),
        lambda: filled.insert_many("users", itertools.chain(({"id": n} for n in range(100, 130)), [row]), batch_size=4),
        lambda: filled.insert_many("tags", [row]),
    ):
        with pytest.raises(ProgrammingError, match="mapping"):
            call()
    with pytest.raises(ProgrammingError, match="row 31"):
        filled.insert_many("users", itertools.chain(({"id": n} for n in range(100, 130)), [row]), batch_size=4)


def test_rows_of_an_insert_many(filled: ShardManager) -> None:
    for rows in (None, 5, "abc", b"abc", {"id": 1}, object()):
        with pytest.raises(ProgrammingError, match="iterable"):
            filled.insert_many("users", rows)
    for size in (0, -1, True, "5", None, 1.5):
        with pytest.raises(ProgrammingError, match="batch_size"):
            filled.insert_many("users", [{"id": 100}], batch_size=size)
    assert filled.insert_many("users", []) == 0
    assert filled.insert_many("users", iter(())) == 0


def test_other_mappings_are_rows(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
    manager.insert("t", UserDict(id=1, a=2))
    manager.insert_many("t", [UserDict(id=2, a=3), {"A": 4, "ID": 3}])
    manager.upsert("t", UserDict(id=1, a=5))
    manager.update("t", UserDict(a=6), UserDict(id=2))
    assert manager.select("t", order_by="id") == [{"id": 1, "a": 5}, {"id": 2, "a": 6}, {"id": 3, "a": 4}]
    with pytest.raises(ProgrammingError, match="twice"):
        manager.insert("t", {"id": 4, "a": 1, "A": 2})
    with pytest.raises(ProgrammingError, match="twice"):
        manager.update("t", {"a": 1, "A": 2})
    with pytest.raises(ProgrammingError, match="twice"):
        manager.upsert("t", {"id": 4, "a": 1, "A": 2})


def test_values_that_sqlite_cannot_hold(filled: ShardManager) -> None:
    """What sqlite3 raises for such a value is raised, after everything is rolled back."""
    for value in (object(), [1], {"a": 1}, 1j):
        for call in (
            lambda v=value: filled.insert("users", {"id": 100, "name": v}),
            lambda v=value: filled.insert_many(
                "users", [{"id": 100 + n, "name": v if n == 7 else "x"} for n in range(9)]
            ),
            lambda v=value: filled.update("users", {"name": v}),
            lambda v=value: filled.update("users", {"name": "x"}, "age = ?", parameters=(v,)),
            lambda v=value: filled.execute("INSERT INTO users (id, name) VALUES (100, ?)", (v,)),
            lambda v=value: filled.select("users", {"name": ("=", v)}),
        ):
            with pytest.raises(sqlite3.Error, match=r"type|value|mapping|object|where"):
                call()
    for call in (
        lambda: filled.insert("users", {"id": 100, "age": 2**70}),
        lambda: filled.insert_many("users", [{"id": 100}, {"id": 101, "age": 2**70}]),
        lambda: filled.update("users", {"age": 2**70}),
        lambda: filled.execute("INSERT INTO users (id, age) VALUES (100, ?)", (2**70,)),
    ):
        with pytest.raises((OverflowError, sqlite3.Error)):
            call()


def test_a_constraint_broken_on_one_shard_rolls_all_back(filled: ShardManager) -> None:
    with pytest.raises(IntegrityError, match="CHECK"):
        filled.update("users", {"age": -1}, {"id": [1, 2, 3, 4, 5, 6]})
    with pytest.raises(IntegrityError, match="UNIQUE"):
        filled.insert_many("users", [{"id": n} for n in range(100, 140)] + [{"id": 5}])
    with pytest.raises(IntegrityError, match="UNIQUE"):
        filled.insert_many("users", ({"id": n} for n in [*range(100, 140), 5]), batch_size=7)
    with pytest.raises(IntegrityError, match="UNIQUE"):
        filled.executemany("INSERT INTO users (id) VALUES (?)", [(n,) for n in [*range(100, 140), 5]])
    with pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: users.id"):
        filled.insert("users", {"id": 5})


def test_an_iterable_that_raises(filled: ShardManager) -> None:
    class OopsError(Exception):
        pass

    def rows(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            yield {"id": 100 + number}
        raise OopsError

    for count in (0, 1, 5, 50):
        with pytest.raises(OopsError):
            filled.insert_many("users", rows(count), batch_size=5)
    filled.insert("users", {"id": 100})
    filled.delete("users", key=100)


def test_an_iterable_that_uses_the_same_manager(filled: ShardManager) -> None:
    """It may read; its write would wait for itself for ever, and is refused at once."""

    def rows(call: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
        for number in range(100, 130):
            call(number)
            yield {"id": number}

    seen = filled.insert_many("users", rows(lambda n: filled.get("users", 1)), batch_size=4)
    assert seen == 30
    filled.delete("users", {"id": (">=", 100)})
    for call in (
        lambda n: filled.insert("users", {"id": 1000 + n}) if n > 110 else None,
        lambda n: filled.update("users", {"age": 1}) if n > 110 else None,
        lambda n: filled.execute("DELETE FROM users WHERE id = 1") if n > 110 else None,
        lambda n: filled.apply_schema("CREATE TABLE oops (x)") if n > 110 else None,
        lambda n: filled.insert_many("users", [{"id": 2000}]) if n > 110 else None,
    ):
        with pytest.raises(ProgrammingError, match="this thread already holds the write gate"):
            filled.insert_many("users", rows(call), batch_size=4)


def test_wrong_arguments(filled: ShardManager) -> None:
    for call in (
        lambda: filled.select("users", limit=-1),
        lambda: filled.select("users", limit="1"),
        lambda: filled.select("users", offset=True),
        lambda: filled.select("users", columns=[]),
        lambda: filled.select("users", {"id": ("~", 1)}),
        lambda: filled.select("users", 5),
        lambda: filled.select("users", "id = ?"),
        lambda: filled.select("users", "id = 1) OR (1 = 1"),
        lambda: filled.delete("users", "1 = 1) OR (1 = 1"),
        lambda: filled.delete("users", "1; DROP TABLE users"),
        lambda: filled.delete("users", "id IN (SELECT id FROM users)"),
        lambda: filled.delete("notes", key="x") if not filled.tables["notes"].explicit_key else filled.get("notes", 1),
        lambda: filled.update("users", {}),
        lambda: filled.update("users", {"id": 5}, key=1),
        lambda: filled.update("tags", {"name": "x"}),
        lambda: filled.upsert("users", {"id": 1}, conflict="name"),
        lambda: filled.upsert("events", {"what": 1}),
        lambda: filled.get("notes", 1),
        lambda: filled.aggregate("users", "MEDIAN(age)"),
        lambda: filled.aggregate("users", "COUNT(*); DROP TABLE users"),
        lambda: filled.aggregate("users", []),
        lambda: filled.execute(5),
        lambda: filled.execute("SELECT ?", "a"),
        lambda: filled.execute("SELECT ?", ()),
        lambda: filled.execute("SELECT 1; SELECT 2"),
        lambda: filled.execute("SELECT 1\0"),
        lambda: filled.execute("PRAGMA journal_mode = DELETE"),
        lambda: filled.execute("BEGIN"),
        lambda: filled.executemany("SELECT 1", [()]),
        lambda: filled.executemany("INSERT INTO users (id) VALUES (?)", itertools.count()),
        lambda: filled.insert_many("users", itertools.repeat(itertools.count())),
        lambda: filled.insert_many("users", ((x for x in y) for y in itertools.repeat([1]))),
        lambda: filled.executemany("INSERT INTO users (id) VALUES (?)", ["a"]),
        lambda: filled.execute("DROP TABLE users", key=1),
        lambda: filled.pool(3),
        lambda: filled.pool(-1),
        lambda: filled.pool("0"),
        lambda: filled.pool(True),
    ):
        with pytest.raises((ProgrammingError, NotSupportedError, OperationalError)) as caught:
            call()
        assert str(caught.value)


def test_a_comment_in_a_condition_hides_nothing(filled: ShardManager) -> None:
    """What is put behind a caller's condition must not vanish in its comment."""
    for where in ("id < 5 -- and more", "id < 5 /* open", "id < 5 /* shut */", "--"):
        with pytest.raises(ProgrammingError, match="comment"):
            filled.delete("users", where, key=1)


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database of four shards with rows on each, made once."""
    place = tmp_path_factory.mktemp("shop") / "shop"
    with ShardManager(num_shards=4, db_dir=place, strategy=HashStrategy(), durability="normal") as manager:
        manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        manager.insert_many("users", ({"id": n, "name": "x" * 100} for n in range(2000)))
    return place


@pytest.fixture
def directory(shop: Path, tmp_path: Path) -> Path:
    """A copy of the shop."""
    return Path(shutil.copytree(shop, tmp_path / "shop"))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if not path.name.endswith("-shm")}


def test_wrong_layout(directory: Path, make_manager: Make) -> None:
    before = files(directory)
    with pytest.raises(LayoutMismatchError, match=r"4 shards.*num_shards=8"):
        make_manager("shop", num_shards=8)
    with pytest.raises(LayoutMismatchError, match=r"hash.*range"):
        make_manager("shop", strategy=RangeStrategy([1, 2, 3]))
    with pytest.raises(LayoutMismatchError, match="hash"):
        make_manager("shop", strategy=HashStrategy(slots=128))
    assert files(directory) == before
    for bad in (0, -1, 5000, "4", True, 2.0):
        with pytest.raises(ProgrammingError, match="num_shards"):
            make_manager("other", num_shards=bad)
    with pytest.raises(ProgrammingError, match="boundaries"):
        make_manager("other", num_shards=3, strategy=RangeStrategy([1, 2, 3]))
    with pytest.raises(ProgrammingError, match="strategy"):
        make_manager("other", strategy="hash")
    with pytest.raises(ProgrammingError, match="unknown option"):
        make_manager("other", config={"shards": 3})
    with pytest.raises(TypeError):
        make_manager("other", shards=3)
    with pytest.raises(ProgrammingError, match="directory puts the key"):
        make_manager("other", num_shards=3, strategy=DirectoryStrategy({"a": 9}))
    assert not (directory.parent / "other").exists()
    assert make_manager("shop", num_shards=4, strategy=HashStrategy()).count("users") == 2000


def test_a_missing_shard(directory: Path, make_manager: Make) -> None:
    (directory / "shard_2.db").rename(directory / "away")
    before = files(directory)
    with pytest.raises(ShardUnavailableError, match=r"shard_2\.db is missing \(1 of 4"):
        make_manager("shop")
    assert files(directory) == before
    (directory / "away").rename(directory / "shard_2.db")
    assert make_manager("shop").count("users") == 2000


def test_a_shard_that_goes_missing_while_open(directory: Path, make_manager: Make) -> None:
    manager = make_manager("shop")
    (directory / "shard_1.db").unlink()
    assert not manager.validate_shard_files()
    with pytest.raises(ShardUnavailableError, match=r"shard_1\.db"):
        manager.count("users")
    assert not (directory / "shard_1.db").exists()
    elsewhere = next(n for n in range(100) if manager.shard_for("users", n) != 1)
    assert manager.get("users", elsewhere) is not None


@pytest.mark.parametrize("length", [0, 1, 50, 100, 512, 4095, 4096, 4097, 8192, 0.5, -4096, -1])
def test_a_truncated_shard(directory: Path, make_manager: Make, length: float) -> None:
    path = directory / "shard_1.db"
    size = path.stat().st_size
    left = int(size * length) if isinstance(length, float) else length if length >= 0 else size + int(length)
    os.truncate(path, left)
    broken = path.read_bytes()
    if left < 512:
        with pytest.raises(ShardUnavailableError, match=r"shard_1\.db is truncated"):
            make_manager("shop")
        assert path.read_bytes() == broken
        return
    manager = make_manager("shop")
    mine = [n for n in range(2000) if manager.shard_for("users", n) == 1]
    others = next(n for n in range(100) if manager.shard_for("users", n) != 1)
    for call in (lambda: manager.count("users"), lambda: manager.select("users", {"id": mine})):
        with pytest.raises(ShardUnavailableError, match=r"shard_1\.db"):
            call()
    assert manager.get("users", others) == {"id": others, "name": "x" * 100}
    manager.shutdown()
    assert path.read_bytes() == broken


@pytest.mark.parametrize(
    "what", [b"not a database, just some text" * 200, b"\0" * 8192, b"SQLite format 3\0" + b"x" * 9000]
)
def test_a_shard_that_is_no_database(directory: Path, make_manager: Make, what: bytes) -> None:
    (directory / "shard_0.db").write_bytes(what)
    manager = make_manager("shop")
    key = next(n for n in range(100) if manager.shard_for("users", n) == 0)
    for call in (
        lambda: manager.get("users", key),
        lambda: manager.insert("users", {"id": key}),
        lambda: manager.count("users"),
        lambda: manager.insert_many("users", ({"id": 5000 + n} for n in range(100))),
        lambda: manager.apply_schema("CREATE TABLE x (id INTEGER PRIMARY KEY)"),
        lambda: manager.execute("SELECT * FROM users"),
    ):
        with pytest.raises(ShardUnavailableError, match=r"shard_0\.db"):
            call()
    assert not manager.validate_shard_files()
    assert (directory / "shard_0.db").read_bytes() == what
    assert set(manager.tables) == {"users"}


def test_a_foreign_sqlite_file(directory: Path, make_manager: Make) -> None:
    path = directory / "shard_3.db"
    path.unlink()
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    conn.close()
    manager = make_manager("shop")
    with pytest.raises(ShardUnavailableError, match=r"shard_3\.db is a SQLite file, but no shard"):
        manager.count("users")


def test_a_shard_of_another_directory(directory: Path, make_manager: Make) -> None:
    other = make_manager("other", num_shards=4)
    other.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    other.shutdown()
    shutil.copy(directory.parent / "other" / "shard_1.db", directory / "shard_1.db")
    manager = make_manager("shop")
    with pytest.raises(ShardUnavailableError, match=r"shard_1\.db belongs to database"):
        manager.count("users")


def test_swapped_shards(directory: Path, make_manager: Make) -> None:
    one, two = directory / "shard_1.db", directory / "shard_2.db"
    one.rename(directory / "x")
    two.rename(one)
    (directory / "x").rename(two)
    manager = make_manager("shop")
    with pytest.raises(ShardUnavailableError, match=r"shard_1\.db holds shard 2, not shard 1"):
        manager.count("users")
    key = next(n for n in range(100) if manager.shard_for("users", n) == 2)
    with pytest.raises(ShardUnavailableError, match="holds shard 1"):
        manager.get("users", key)
    assert not manager.validate_shard_files()


def test_catalog_missing(directory: Path, make_manager: Make) -> None:
    for suffix in ("", "-wal", "-shm"):
        (directory / f"catalog.db{suffix}").unlink(missing_ok=True)
    before = files(directory)
    with pytest.raises(ShardUnavailableError, match=r"catalog\.db is missing, but .*shard_0\.db is there"):
        make_manager("shop")
    (directory / "shard_0.db").unlink()
    with pytest.raises(ShardUnavailableError, match=r"shard_1\.db is there"):
        make_manager("shop", num_shards=4)
    with pytest.raises(ShardUnavailableError, match="no shardlite database"):
        make_manager("nowhere", create=False)
    before.pop("shard_0.db")
    assert files(directory) == before


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 8192])
def test_catalog_truncated(directory: Path, make_manager: Make, length: int) -> None:
    os.truncate(directory / "catalog.db", length)
    with pytest.raises(DatabaseError, match=r"catalog\.db"):
        make_manager("shop")
    assert (directory / "catalog.db").stat().st_size in (length, 0)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM setting WHERE name = 'num_shards'",
        "UPDATE setting SET value = '{' WHERE name = 'strategy'",
        "UPDATE setting SET value = 'x' WHERE name = 'slot_map'",
        "UPDATE logical_table SET definition = '{}'",
        "UPDATE logical_table SET definition = 'nonsense'",
    ],
)
def test_catalog_damaged(directory: Path, make_manager: Make, sql: str) -> None:
    edit(directory / "catalog.db", sql)
    with pytest.raises(InternalError, match=r"catalog\.db is damaged"):
        make_manager("shop")


def test_catalog_of_a_newer_format(directory: Path, make_manager: Make) -> None:
    edit(directory / "catalog.db", "PRAGMA user_version = 99")
    with pytest.raises(NotSupportedError, match=r"format version 99.*newer"):
        make_manager("shop")


def test_catalog_of_something_else(directory: Path, make_manager: Make) -> None:
    (directory / "catalog.db").unlink()
    edit(directory / "catalog.db", "CREATE TABLE t (x)")
    with pytest.raises(DatabaseError, match=r"catalog\.db"):
        make_manager("shop")


def edit(path: Path, sql: str) -> None:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute(sql)
    conn.close()


def test_fence_deleted_or_damaged(directory: Path, make_manager: Make) -> None:
    (directory / "fence").unlink()
    manager = make_manager("shop")
    assert manager.count("users") == 2000
    manager.shutdown()
    for damage in (b"", b"garbage!" * 100, b"SHLFNCE\x63" + b"\0" * 600):
        (directory / "fence").write_bytes(damage)
        with pytest.raises(ShardUnavailableError, match="fence"):
            make_manager("shop")
    (directory / "fence").write_bytes(b"SHLFNCE\x01")
    manager = make_manager("shop")
    manager.apply_schema("CREATE TABLE more (id INTEGER PRIMARY KEY)")
    assert manager.insert("more", {}) == 1
    assert manager.insert("users", {"name": "y"}) == 2000


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody remove a mapped file")
def test_fence_lost_while_two_have_the_database_open(directory: Path, make_manager: Make) -> None:
    """Without the common fence a change isn't announced; a write by the old schema is refused all the same."""
    first = make_manager("shop")
    first.count("users")
    (directory / "fence").unlink()
    second = make_manager("shop")
    second.apply_schema("DROP TABLE users; CREATE TABLE users (id INTEGER, name TEXT PRIMARY KEY)")
    for number in range(20):
        first.insert("users", {"id": number, "name": f"n{number}"})
    for shard in second.shard_ids:
        with second.pool(shard).get_connection_context() as conn:
            for (name,) in conn.execute("SELECT name FROM users"):
                assert second.shard_for("users", name) == shard
    assert second.count("users") == 20


def test_places_that_are_no_directory(tmp_path: Path, make_manager: Make) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShardUnavailableError, match="is a file"):
        make_manager("file")
    with pytest.raises(OperationalError, match="can't create"):
        make_manager("file/below")
    for bad in ("", "a\0b", 5, None):
        with pytest.raises(ProgrammingError, match="db_dir"):
            ShardManager(config={"db_dir": bad})


def test_half_made_directory_is_completed(tmp_path: Path, make_manager: Make) -> None:
    """A process that died while it made the files leaves a directory that the next one completes."""
    code = """
        import os, sys
        from shardlite import ShardManager
        from shardlite.execute import core as d
        real = d.create_shard_file
        def dying(directory, layout, shard):
            if shard == 2:
                os._exit(9)
            real(directory, layout, shard)
        d.create_shard_file = dying
        ShardManager(num_shards=4, db_dir=sys.argv[1])
    """
    assert run(code, tmp_path / "db").returncode == 9
    assert not (tmp_path / "db" / "shard_2.db").exists()
    with pytest.raises(LayoutMismatchError):
        make_manager(num_shards=3)
    manager = make_manager()
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    manager.insert_many("t", ({} for _ in range(20)))
    assert manager.count("t") == 20


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def set_modes(directory: Path, folder: int, file: int) -> None:
    for path in [directory, *directory.iterdir()]:
        path.chmod(folder if path.is_dir() else file)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_directory_that_may_not_be_entered(directory: Path) -> None:
    """A clear error; root, who may go anywhere, tries it as another user."""
    code = """
        import os, sys
        from shardlite import ShardManager, errors
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            ShardManager(db_dir=sys.argv[1])
        except errors.ShardUnavailableError as error:
            print(error)
        else:
            raise SystemExit("opened")
    """
    place = Path(tempfile.mkdtemp(prefix="closed-"))
    try:
        shop = place / "shop"
        shutil.copytree(directory, shop)
        place.chmod(0o755)
        shop.chmod(0o000)
        done = run(code, shop)
        assert done.returncode == 0, done.stderr + done.stdout
        assert f"can't look into {shop}" in done.stdout
    finally:
        shop.chmod(0o755)
        shutil.rmtree(place)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_read_only_directory(directory: Path) -> None:
    """A clear error; root, who may write anywhere, tries it as another user."""
    code = """
        import os, sys
        from shardlite import ShardManager, errors
        from shardlite.driver import sqlite3
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        for arguments in ({"db_dir": sys.argv[1]}, {"db_dir": sys.argv[1] + "/new"}):
            try:
                ShardManager(**arguments)
            except errors.Error as error:
                assert isinstance(error, sqlite3.OperationalError), repr(error)
                print(error)
            else:
                raise SystemExit("opened")
    """
    place = Path(tempfile.mkdtemp(prefix="read-only-"))  # pytest's own directories are closed to other users
    try:
        shop = place / "shop"
        shutil.copytree(directory, shop)
        place.chmod(0o755)
        set_modes(shop, 0o555, 0o444)
        done = run(code, shop)
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stdout.count(str(shop)) >= 2
        set_modes(shop, 0o755, 0o644)
        assert files(shop) == files(directory)
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs Linux and root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk(small_disk: Path) -> None:
    """Writes report it and change nothing, reads go on, and with space again everything works."""
    with ShardManager(num_shards=2, db_dir=small_disk / "db", durability="full") as manager:
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        manager.create_table("CREATE TABLE r (id INTEGER PRIMARY KEY, v)", kind="reference")
        kept = [manager.insert("t", {"v": b"x" * 1000}) for _ in range(50)]
        (small_disk / "ballast").write_bytes(b"x" * 600_000)
        with pytest.raises(OperationalError, match="full"):
            kept.extend(manager.insert("t", {"v": b"x" * 50_000}) for _ in range(100))
        count = len(kept)
        assert manager.count("t") == count
        with pytest.raises(OperationalError, match="full"):
            manager.insert_many("t", ({"v": b"x" * 50_000} for _ in range(100)), batch_size=8)
        with pytest.raises(OperationalError, match="full"):
            manager.update("t", {"v": b"y" * 100_000})
        with pytest.raises(OperationalError, match=r"full|disk"):
            manager.execute("INSERT INTO r (id, v) VALUES (1, ?)", (b"x" * 2_000_000,))
        assert manager.count("t") == count
        assert manager.count("t", {"v": b"y" * 100_000}) == 0
        assert manager.count("r") == 0
        assert manager.get("t", kept[0]) == {"id": kept[0], "v": b"x" * 1000}
        (small_disk / "ballast").unlink()
        manager.insert("t", {"v": b"z"})
        manager.insert_many("t", ({"v": b"z"} for _ in range(20)))
        manager.apply_schema("CREATE TABLE u (id INTEGER PRIMARY KEY)")
        assert manager.count("t") == count + 21
        assert manager.check().ok


# -- closed ------------------------------------------------------------------------------------------------------------


def test_a_closed_manager(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, age INT)")
    manager.insert_many("users", ({"age": n} for n in range(5000)))
    result = manager.execute("SELECT id FROM users")
    next(result)
    manager.shutdown()
    manager.shutdown()
    calls = [
        *table_calls("users"),
        lambda m: m.execute("SELECT 1"),
        lambda m: m.executemany("INSERT INTO users VALUES (?, ?)", [(1, 1)]),
        lambda m: m.explain("SELECT 1"),
        lambda m: m.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)"),
        lambda m: m.apply_schema("CREATE TABLE t (id INTEGER PRIMARY KEY)"),
        lambda m: m.pool(0),
        lambda m: m.tables,
        lambda m: m.layout,
        lambda m: m.get_shard_info(),
        lambda m: m.get_shard_stats(),
        lambda m: m.validate_shard_files(),
        lambda m: m.check(),
        lambda m: m.router.route_select("users"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ProgrammingError, match=r"is closed: open a new ShardManager"):
            call(manager)
        assert number >= 0
    with pytest.raises(sqlite3.Error, match="closed"):
        list(result)
    assert "closed" in repr(manager)
    assert make_manager().count("users") == 5000


def test_config_files(tmp_path: Path) -> None:
    directory = tmp_path / "db"
    path = tmp_path / "app.json"
    path.write_text(json.dumps({"shardlite": {"db_dir": str(directory), "num_shards": 2}}))
    with ShardManager(config=path) as manager:
        assert manager.num_shards == 2
    for name, text in (("a.json", "{"), ("a.toml", "x ="), ("a.ini", ""), ("b.json", "[1]"), ("c.json", '{"x": 1}'),
                       ("d.json", '{"num_shards": "4"}'), ("e.json", '{"connection_timeout": -1}'),
                       ("f.json", '{"durability": "none"}'), ("g.yaml", "a: [")):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(ProgrammingError):
            ShardManager(config=tmp_path / name)
    (tmp_path / "h.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProgrammingError, match=r"h\.toml"):
        ShardManager(config=tmp_path / "h.toml")
    with pytest.raises(ProgrammingError, match="absent"):
        ShardManager(config=tmp_path / "absent.toml")


def test_routing_errors_are_programming_errors(filled: ShardManager) -> None:
    with pytest.raises(sqlite3.ProgrammingError) as caught:
        filled.insert("users", {"id": 1}, key=2)
    assert isinstance(caught.value, RoutingError)
