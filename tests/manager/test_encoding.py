"""A database of another text encoding orders text by other bytes; merges and extremes must follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.config import ShardliteConfig
from shardlite.driver import sqlite3
from shardlite.execute.database import Database

WORDS = ["", "a", "b", "ab", "é", "\uff5e", "\U0001f600", "\ue000", "zz", "Z", "Ā", "\u0100a"]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_text_is_ordered_as_in_one_file_of_that_encoding(tmp_path: Path, encoding: str) -> None:
    one = sqlite3.connect(":memory:")
    one.execute(f"PRAGMA encoding = '{encoding}'")
    one.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, w TEXT, n TEXT COLLATE NOCASE)")
    rows = [(number, word, word) for number, word in enumerate(WORDS)]
    one.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    Database(ShardliteConfig(num_shards=3, db_dir=str(tmp_path / "db"), durability="normal"), encoding=encoding).close()
    with ShardManager(db_dir=tmp_path / "db") as manager:
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, w TEXT, n TEXT COLLATE NOCASE)")
        manager.insert_many("t", [{"id": i, "w": w, "n": n} for i, w, n in rows])
        for column in ("w", "n"):
            expected = [r[0] for r in one.execute(f"SELECT {column} FROM t ORDER BY {column}, id")]
            assert [row[column] for row in manager.select("t", order_by=column)] == expected
            pair = one.execute(f"SELECT min({column}), max({column}) FROM t").fetchone()
            assert tuple(manager.aggregate("t", [f"min({column})", f"max({column})"]).values()) == pair
            groups = [r[0] for r in one.execute(f"SELECT {column} FROM t GROUP BY {column} ORDER BY {column}")]
            assert [row[column] for row in manager.aggregate("t", "count(*)", group_by=column)] == groups
    one.close()
