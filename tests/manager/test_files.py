"""The files of a directory: what opening touches, what shutting down leaves, what the reports say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from open_files import open_files_under

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError

Make = Callable[..., ShardManager]


def test_opening_opens_no_shard(tmp_path: Path, make_manager: Make) -> None:
    make_manager(num_shards=64).shutdown()
    manager = make_manager()
    assert [name for name in open_files_under(tmp_path) if "shard_" in name] == []
    assert sum(manager.pool(shard).get_pool_stats()["pool_size"] for shard in manager.shard_ids) == 0
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    manager.shutdown()
    manager = make_manager()
    manager.insert("t", {"id": 1})
    opened = {name.split("-")[0] for name in open_files_under(tmp_path) if "shard_" in name}
    assert len(opened) <= 1


def test_after_shutdown_nothing_is_left(tmp_path: Path) -> None:
    for durability in ("full", "normal"):
        with ShardManager(num_shards=3, db_dir=tmp_path / durability, durability=durability) as manager:
            manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
            manager.insert_many("t", ({} for _ in range(3000)))
            manager.execute("SELECT * FROM t").fetchone()
            held = manager.pool(0).get_connection()
            held.execute("SELECT * FROM t").fetchone()
        assert open_files_under(tmp_path) == []
        names = sorted(path.name for path in (tmp_path / durability).iterdir())
        assert [name for name in names if name.endswith(("-wal", "-shm", ".new"))] == []
        assert set(names) >= {"catalog.db", "fence", "shard_0.db", "shard_1.db", "shard_2.db"}
        with pytest.raises(sqlite3.Error):
            held.execute("SELECT 1")
        shutil.rmtree(tmp_path / durability)


def test_every_shard_is_an_ordinary_file(tmp_path: Path, make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.apply_schema("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); CREATE VIEW vw AS SELECT v FROM t")
    manager.insert_many("t", ({"v": str(n)} for n in range(100)))
    manager.shutdown()
    total = 0
    for shard in range(3):
        conn = sqlite3.connect(tmp_path / "db" / f"shard_{shard}.db")
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.execute("SELECT shard FROM _shardlite_meta").fetchone() == (shard,)
        total += conn.execute("SELECT count(*) FROM vw").fetchone()[0]
        conn.close()
    assert total == 100


def test_figures(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    manager.create_table("CREATE TABLE r (id INTEGER PRIMARY KEY)", kind="reference")
    manager.create_table("CREATE TABLE s (v)", kind="single")
    manager.insert_many("t", ({"v": "x"} for n in range(90)))
    manager.insert("r", {"id": 1})
    manager.insert("s", {"v": 1})
    info = manager.get_shard_info()
    assert sorted(info) == [0, 1, 2]
    assert sum(shard["tables"]["t"] for shard in info.values()) == 90
    assert [shard["tables"]["r"] for shard in info.values()] == [1, 1, 1]
    assert [shard["tables"]["s"] for shard in info.values()] == [1, 0, 0]
    assert all(shard["size"] == os.stat(shard["path"]).st_size for shard in info.values())
    stats: dict[str, Any] = manager.get_shard_stats()
    assert stats["tables"]["t"] == {"kind": "sharded", "key": ["id"], "rows": 90}
    assert stats["tables"]["r"]["rows"] == 1
    assert sum(stats["sharded_rows"].values()) == 90
    assert 1.0 <= stats["skew"] <= 3.0
    assert manager.validate_shard_files()
    assert manager.check().ok


def test_promises_of_the_manager(manager: ShardManager) -> None:
    """What the docstrings of the public methods say, one by one."""
    table = manager.create_table("CREATE TABLE t (k TEXT PRIMARY KEY, a INT, b INT) WITHOUT ROWID")
    assert (table.kind, table.reason) == ("sharded", "sharded by its primary key")
    assert list(manager.tables) == ["t"]
    assert manager.insert("t", {"a": 1}, key="x") == "x"
    assert manager.insert("t", {"k": "y", "a": None, "b": 5}) == "y"
    assert manager.insert_many("t", ({"k": f"k{n}", "a": n, "b": n % 3} for n in range(30)), batch_size=7) == 30
    assert manager.get("t", "x") == {"k": "x", "a": 1, "b": None}
    assert manager.get("t", "none") is None
    assert manager.select("t", {"a": None}) == [{"k": "y", "a": None, "b": 5}]
    assert manager.count("t", {"b": [0, 1]}) == 20
    assert manager.count("t", {"a": [(">=", 10), ("<", 20)]}) == 10
    assert manager.count("t", "a BETWEEN ? AND ?", parameters=(10, 19)) == 10
    assert manager.count("t", "a = :a", parameters={"a": 3}) == 1
    assert [row["a"] for row in manager.select("t", {"b": 2}, order_by=["-b", "-a"], limit=3, offset=1)] == [26, 23, 20]
    assert manager.select("t", key="k5", columns="a") == [{"a": 5}]
    assert manager.update("t", {"b": 9}, {"a": (">", 27)}) == 2
    assert manager.update("t", {"b": 9}, "a > ?", parameters=(27,)) == 2
    assert manager.update("t", {"b": 9}, "a > ?2 AND a > ?1", parameters=(27, 5)) == 2
    assert manager.update("t", {"b": 8}, "a > :low", key="k29", parameters={"low": 27}) == 1
    assert manager.delete("t", {"b": 9}) == 1
    assert manager.upsert("t", {"k": "k1", "a": 100}) == "k1"
    assert manager.get("t", "k1") == {"k": "k1", "a": 100, "b": 1}
    assert manager.upsert("t", {"a": 7}, key="new") == "new"
    assert manager.upsert("t", {"k": "new"}) == "new"
    assert manager.aggregate("t", ["COUNT(*)", "MAX(a)"], {"b": 0}) == {"COUNT(*)": 10, "MAX(a)": 27}
    assert manager.aggregate("t", "COUNT(*)", {"b": [0, 1]}, "b") == [
        {"b": 0, "COUNT(*)": 10},
        {"b": 1, "COUNT(*)": 9},
    ]
    assert manager.aggregate("t", "SUM(a)", {"k": "nobody"}) == {"SUM(a)": None}
    assert manager.shard_ids == range(manager.num_shards)
    assert manager.strategy.name == "hash"
    assert manager.layout.num_shards == manager.num_shards
    assert manager.shard_for("t", "x") in manager.shard_ids
    assert manager.router is manager.router
    assert manager.pool(0).name.startswith("shard 0")
    assert manager.delete("t") == 32
    assert manager.count("t") == 0
    assert "open" in repr(manager)
    with pytest.raises(ProgrammingError, match="the shards are 0 to"):
        manager.pool(manager.num_shards)
