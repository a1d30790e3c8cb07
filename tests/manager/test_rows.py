"""Rows and conditions whose handling is easily got wrong; each of these once was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import DataError, IntegrityError, ProgrammingError


@pytest.mark.parametrize("where", [[], (), set(), b"", 0, 0.0, False, ""])
def test_nothing_false_passes_for_all_rows(manager: ShardManager, where: Any) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n)")
    manager.insert_many("u", [{"n": 1}] * 3)
    for call in (
        lambda: manager.delete("u", where),
        lambda: manager.update("u", {"n": 9}, where),
        lambda: manager.count("u", where),
        lambda: manager.select("u", where),
        lambda: manager.aggregate("u", "COUNT(*)", where),
    ):
        with pytest.raises(ProgrammingError, match="where must be"):
            call()
    assert manager.count("u", {"n": 1}) == 3


def test_null_is_no_key_where_a_default_would_take_its_place(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE z (k INT NOT NULL ON CONFLICT REPLACE DEFAULT 5 PRIMARY KEY, v)")
    with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: z\.k"):
        manager.insert("z", {"k": None, "v": 1})
    with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: z\.k"):
        manager.insert_many("z", [{"k": 1, "v": 1}, {"k": None, "v": 1}])
    assert manager.count("z") == 0


def test_copies_do_not_draw_their_own_defaults_for_null(manager: ShardManager) -> None:
    ddl = "CREATE TABLE r (id INTEGER PRIMARY KEY, h NOT NULL DEFAULT (hex(randomblob(4))))"
    manager.create_table(ddl, kind="reference")
    for call in (
        lambda: manager.insert("r", {"id": 1, "h": None}),
        lambda: manager.insert_many("r", [{"id": 2, "h": None}]),
    ):
        with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: r\.h"):
            call()
    assert manager.insert("r", {"id": 3}) == 3
    assert manager.insert_many("r", [{"id": 4}]) == 1
    assert manager.check().ok


def test_a_reference_table_without_a_key_takes_none(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE r (a)", kind="reference")
    with pytest.raises(ProgrammingError, match="leave key= out"):
        manager.insert("r", {"a": 1}, key="k")
    assert not manager.tables["r"].explicit_key


def test_rows_of_different_shapes_keep_their_order(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE s (id INTEGER PRIMARY KEY, par INT REFERENCES s(id))", kind="single")
    assert manager.insert_many("s", [{"id": 1, "par": None}, {"id": 2}, {"id": 3, "par": 2}]) == 3
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n, x)")
    manager.insert_many("u", [{"n": 1}, {"n": 2, "x": 0}, {"n": 3}, {"x": 1, "n": 4}, {"n": 5, "x": 2}])
    assert [row["n"] for row in manager.select("u", order_by="id")] == [1, 2, 3, 4, 5]
    with pytest.raises(ProgrammingError, match="must be a str"):
        manager.insert_many("u", [{"n": 1}, {"n": 2, "x": 0}, {2: 3, 4: 5}])


def test_ignored_rows_are_not_counted(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=3)
    for name, kind in (("u", "sharded"), ("r", "reference"), ("s", "single")):
        manager.create_table(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, n, t DEFAULT CURRENT_TIMESTAMP)", kind=kind)
        manager.apply_schema(
            f"CREATE TRIGGER {name}_b BEFORE INSERT ON {name} WHEN NEW.n = 1 BEGIN SELECT RAISE(IGNORE); END"
        )
        assert manager.insert(name, {"id": 5, "n": 1}) is None
        assert manager.insert_many(name, [{"id": 60, "n": 0}, {"id": 61, "n": 1}]) == 1
        assert manager.count(name) == 1
    assert manager.check().ok


def test_limits_beyond_64_bits(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY)")
    manager.insert_many("u", [{"id": i} for i in range(1, 6)])
    assert len(manager.select("u", limit=2**63 - 1, offset=1)) == 4
    with pytest.raises(ProgrammingError, match="limit must be"):
        manager.select("u", limit=2**64)


def test_values_that_sqlite_cannot_hold(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n)")
    for value in (2**64, "\ud800"):
        for call in (
            lambda value=value: manager.insert("u", {"id": 1, "n": value}),
            lambda value=value: manager.insert("u", {"n": value}),
            lambda value=value: manager.insert_many("u", [{"n": value}]),
            lambda value=value: manager.update("u", {"n": value}, {"id": 1}),
        ):
            with pytest.raises(DataError, match="can't be stored"):
                call()
    assert manager.count("u") == 0


def test_the_key_and_the_row_may_say_the_same_in_two_ways(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n)")
    manager.create_table("CREATE TABLE w (a TEXT COLLATE NOCASE PRIMARY KEY, n)")
    assert manager.insert("u", {"id": 300, "n": 1}, key="300") == 300
    manager.insert("w", {"a": "Y", "n": 1}, key="y")
    assert manager.get("w", "y") == {"a": "Y", "n": 1}


def test_parameters_of_ours_are_refused(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n)")
    with pytest.raises(ProgrammingError, match="shardlite's own"):
        manager.update("u", {"n": 8}, "id = :_shardlite_s0", parameters={"_shardlite_s0": 1})


def test_a_row_can_be_pickled(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, name)")
    manager.insert("u", {"id": 1, "name": "a"})
    row = manager.execute("SELECT id, name FROM u WHERE id = 1").fetchone()
    again = pickle.loads(pickle.dumps(row))
    assert again == (1, "a")
    assert again["NAME"] == "a"


def test_refused_rows_do_not_use_up_the_ids(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n CHECK (n <> 13))")
    manager.create_table("CREATE TABLE o (id INTEGER PRIMARY KEY, u INT, n CHECK (n <> 13))", shard_key="u")
    top = 2**63 - 1
    for table, extra in (("u", {}), ("o", {"u": 7})):
        assert manager.insert(table, {"n": 1, **extra}) == 1
        for row in ({"id": 2**70, "n": 1}, {"id": top, "n": 13}, {"id": top, "n": 2**64}):
            for call in (
                lambda row=row, table=table, extra=extra: manager.insert(table, {**row, **extra}),
                lambda row=row, table=table, extra=extra: manager.insert_many(table, [{**row, **extra}]),
            ):
                with pytest.raises((IntegrityError, DataError, ProgrammingError)):
                    call()
        assert manager.insert(table, {"n": 2, **extra}) in (2, 3)
        assert manager.insert_many(table, [{"n": 3, **extra}]) == 1
        assert manager.execute(f"INSERT INTO {table} VALUES ({top}, {'7, ' if extra else ''}1)").lastrowid == top
        with pytest.raises(sqlite3.OperationalError, match="used up"):
            manager.insert(table, {"n": 4, **extra})
        assert manager.delete(table, {"id": top}) == 1
        assert manager.insert(table, {"n": 4, **extra}) < 10
    assert manager.check().ok


@pytest.mark.parametrize(
    "ddl", ["CREATE TABLE r (k REAL PRIMARY KEY, v)", "CREATE TABLE r (k REAL, id INTEGER PRIMARY KEY)"]
)
def test_upsert_returns_a_whole_number_where_the_first_column_is_real(manager: ShardManager, ddl: str) -> None:
    manager.create_table(ddl)
    big = 2**60 + 1
    if "id" in ddl:
        found = [manager.upsert("r", {"id": big, "k": k}) for k in (1.5, 2)]
        assert manager.get("r", big) == {"k": 2.0, "id": big}
    else:
        found = [manager.upsert("r", {"k": 5, "v": v}) for v in (1, 2)]
        big = 1
    assert list(map(repr, found)) == [repr(big)] * 2
