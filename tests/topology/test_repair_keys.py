"""Repair of rows whose key is no column (it stands beside the row), or isn't a part of what tells rows apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.topology import check_database

STORE = "_shardlite_key_notes"
QUIET = "CREATE TRIGGER quiet AFTER DELETE ON notes WHEN OLD.n > 5 BEGIN SELECT RAISE(ABORT, 'a trigger ran'); END"


@contextlib.contextmanager
def shard(shop: Path, number: int) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(shop / f"shard_{number}.db", isolation_level=None)) as conn:
        yield conn


def rows_on(shop: Path, number: int) -> list[tuple[Any, ...]]:
    with shard(shop, number) as conn:
        sql = f"SELECT t.rowid, body, typeof(key), key FROM notes AS t LEFT JOIN {STORE} AS k ON k.id = t.rowid"
        return sorted(conn.execute(sql).fetchall())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    with ShardManager(db_dir=tmp_path / "shop", num_shards=3, durability="normal") as manager:
        manager.create_table("CREATE TABLE notes (body TEXT, n INT)", kind="sharded")
        manager.apply_schema(QUIET)
        for n in range(30):
            manager.insert("notes", {"body": f"b{n}", "n": n}, key=[n, f"k{n}", b"k%d" % n, n + 0.5, str(n)][n % 5])
        assert manager.check().ok
    return tmp_path / "shop"


def take_away(shop: Path, here: int, there: int, where: str, *, keep: bool = False) -> int:
    """Put rows and their keys on another shard, past the router; return how many."""
    with shard(shop, here) as conn:
        found = conn.execute(
            f"SELECT t.rowid, t.body, t.n, k.key FROM notes t JOIN {STORE} k ON k.id = t.rowid WHERE {where}"
        ).fetchall()
        if not keep:
            conn.execute("DROP TRIGGER quiet")
            conn.executemany("DELETE FROM notes WHERE rowid = ?", [row[:1] for row in found])
            conn.execute(QUIET)
    with shard(shop, there) as conn:
        conn.executemany("INSERT INTO notes (rowid, body, n) VALUES (?, ?, ?)", [row[:3] for row in found])
        conn.executemany(f"INSERT INTO {STORE} (id, key) VALUES (?, ?)", [(row[0], row[3]) for row in found])
    return len(found)


def problems(shop: Path, **options: Any) -> list[tuple[str, int | None, int]]:
    return sorted((p.kind.value, p.shard, p.count) for p in check_database(shop, **options).problems)


def test_rows_move_with_their_keys(shop: Path) -> None:
    before = [rows_on(shop, number) for number in range(3)]
    moved = take_away(shop, 0, 1, "1") + take_away(shop, 2, 1, "t.n % 2")
    assert moved > 5
    assert problems(shop) == [("misplaced-row", 1, moved)]
    report = check_database(shop, repair=True)
    assert report.ok, str(report)
    assert sum("moved" in act for act in report.repaired) == 2
    assert [rows_on(shop, number) for number in range(3)] == before
    with ShardManager(db_dir=shop, durability="normal") as manager:
        assert [row["body"] for row in manager.select("notes", key="k1")] == ["b1"]
        assert [row["body"] for row in manager.select("notes", key=b"k2")] == ["b2"]


def test_a_row_that_stands_at_its_place_too(shop: Path) -> None:
    before = [rows_on(shop, number) for number in range(3)]
    twice = take_away(shop, 0, 1, "1", keep=True)
    assert ("misplaced-row", 1, twice) in problems(shop)
    assert check_database(shop, repair=True).ok
    assert [rows_on(shop, number) for number in range(3)] == before


@pytest.mark.parametrize("change", ["UPDATE notes SET body = 'another'", f"UPDATE {STORE} SET key = key || 'x'"])
def test_another_row_in_its_place_is_left_alone(shop: Path, change: str) -> None:
    """Neither row is lost, and neither gets the other's key."""
    take_away(shop, 0, 1, "t.rowid = (SELECT min(rowid) FROM notes)", keep=True)
    with shard(shop, 0) as conn:
        (rowid,) = conn.execute("SELECT min(rowid) FROM notes").fetchone()
    with shard(shop, 1) as conn:
        conn.execute(f"{change} WHERE {'rowid' if 'notes SET' in change else 'id'} = ?", (rowid,))
    before = [row for number in range(3) for row in rows_on(shop, number)]
    assert len(before) == 31
    assert "duplicate-rowid" in {kind for kind, _, _ in problems(shop)}
    check_database(shop, repair=True)
    after = [row for number in range(3) for row in rows_on(shop, number)]
    assert sorted(after, key=repr) == sorted(before, key=repr)


def test_a_key_of_a_row_that_is_gone_is_not_given_to_another(shop: Path) -> None:
    before = [rows_on(shop, number) for number in range(3)]
    moved = take_away(shop, 0, 1, "1")
    with shard(shop, 0) as conn:
        conn.executemany(f"INSERT INTO {STORE} (id, key) VALUES (?, 'stale')", [row[:1] for row in before[0]])
    assert moved == len(before[0])
    check_database(shop, repair=True)
    assert [rows_on(shop, number) for number in range(3)] == before


def test_a_table_kept_whole_with_keys(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    with ShardManager(db_dir=shop, num_shards=3, durability="normal") as manager:
        manager.create_table("CREATE TABLE notes (body TEXT, n INT)")
        manager.insert("notes", {"body": "with", "n": 1}, key="k")
        manager.insert("notes", {"body": "without", "n": 2})
        assert manager.tables["notes"].kind == "single"
    with shard(shop, 2) as conn:
        conn.execute("INSERT INTO notes (rowid, body) VALUES (50, 'lost'), (51, 'lost too')")
        conn.execute(f"INSERT INTO {STORE} VALUES (50, 'its key')")
    assert problems(shop) == [("misplaced-row", 2, 2)]
    assert check_database(shop, repair=True).ok
    assert rows_on(shop, 2) == []
    assert rows_on(shop, 0)[-2:] == [(50, "lost", "text", "its key"), (51, "lost too", "null", None)]


def test_rows_without_a_rowid_that_are_told_apart_by_the_key_too(tmp_path: Path) -> None:
    """A PRIMARY KEY that is only checked may stand in several rows: one that moves takes no other along."""
    shop = tmp_path / "shop"
    with ShardManager(db_dir=shop, num_shards=3, durability="normal") as manager:
        ddl = "CREATE TABLE t (code TEXT PRIMARY KEY, k INTEGER NOT NULL, v) WITHOUT ROWID"
        manager.create_table(ddl, shard_key="k", constraints="checked")
        for k in range(30):
            manager.insert("t", {"code": "same", "k": k, "v": k})
        assert [p.kind.value for p in manager.check().problems] == ["unique"]
        home = next(k for k in range(30) if manager.shard_for("t", k) == 0)
    with shard(shop, 0) as conn:
        conn.execute("DELETE FROM t WHERE k = ?", (home,))
    with shard(shop, 1) as conn:
        conn.execute("INSERT INTO t VALUES ('same', ?, ?)", (home, home))
    assert problems(shop, repair=True) == [("unique", None, 1)]
    with ShardManager(db_dir=shop, durability="normal") as manager:
        assert sorted((row["k"], row["v"]) for row in manager.select("t")) == [(k, k) for k in range(30)]
