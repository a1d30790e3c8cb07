"""Import of constraints that no shard can see: they are recorded, not enforced, and come out as they were written."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.topology.check import check_database
from shardlite.topology.exporter import export_sqlite
from shardlite.topology.importer import import_sqlite

SCHEMA = """
CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE COLLATE NOCASE, name TEXT);
CREATE TABLE devices (serial TEXT PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users (id)) WITHOUT ROWID;
CREATE TABLE badges (code TEXT PRIMARY KEY, user_id INTEGER REFERENCES users (id)) WITHOUT ROWID;
CREATE TABLE tokens (token TEXT UNIQUE ON CONFLICT REPLACE, user_id INTEGER REFERENCES users (id));
CREATE UNIQUE INDEX users_by_name ON users (name);
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(SCHEMA)
        for n in range(1, 200):
            conn.execute("INSERT INTO users VALUES (?, ?, ?)", (n, f"U{n}@x", f"user {n}"))
            conn.execute("INSERT INTO devices VALUES (?, ?)", (f"d{n}", n))
            conn.execute("INSERT INTO badges VALUES (?, ?)", (f"b{n}", n if n % 2 else None))
            conn.execute("INSERT INTO tokens VALUES (?, ?)", (f"t{n}", n))
        conn.commit()
    return path


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_nothing_is_enforced_by_luck(source: Path, tmp_path: Path, shards: int) -> None:
    report = import_sqlite(source, tmp_path / "db", num_shards=shards)
    kinds = {table.table: table.kind for table in report.plan.tables}
    assert kinds == {"users": "sharded", "devices": "sharded", "badges": "single", "tokens": "single"}
    assert check_database(tmp_path / "db").ok
    with ShardManager(db_dir=tmp_path / "db", durability="normal") as manager:
        for n in range(1000, 1010):
            manager.insert("users", {"id": n, "email": "u1@X", "name": "user 2"})
            manager.insert("devices", {"serial": "d1", "user_id": n})
        manager.insert("tokens", {"token": "t1", "user_id": 2})
        assert manager.count("tokens") == 199  # kept whole, it replaces as it says
        found = sorted((problem.kind.value, problem.table or "", problem.count) for problem in manager.check().problems)
        assert found == [("unique", "devices", 1), ("unique", "users", 1), ("unique", "users", 1)]
        for shard in manager.shard_ids:
            with manager.pool(shard).get_connection_context() as conn:
                for column, value in (("email", "u1@x"), ("name", "user 2")):
                    plan = conn.execute(f"EXPLAIN QUERY PLAN SELECT * FROM users WHERE {column} = ?", (value,))
                    assert "SEARCH" in plan.fetchone()[3]
        manager.delete("devices", {"user_id": (">=", 1000)})
        manager.delete("users", {"id": (">=", 1000)})
        assert manager.check().ok
        export_sqlite(manager, tmp_path / "out.db")
    texts = []
    for path in (source, tmp_path / "out.db"):
        with contextlib.closing(sqlite3.connect(path)) as conn:
            texts.append(conn.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid").fetchall())
    assert texts[0] == texts[1]


def test_a_stated_key_that_cant_be_followed_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"badges \(code\).*user_id may be NULL"):
        import_sqlite(source, tmp_path / "db", keys={"badges": "user_id"})
    with pytest.raises(NotSupportedError, match=r"tokens \(token\): ON CONFLICT REPLACE"):
        import_sqlite(source, tmp_path / "db", keys={"tokens": "user_id"})
    assert not (tmp_path / "db").exists()
