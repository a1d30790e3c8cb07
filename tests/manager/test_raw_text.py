"""Text that is no Unicode, which SQLite stores and the driver can't read, in changes that bring rows together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from one_file import one_file

from shardlite import ShardManager
from shardlite.config import ShardliteConfig
from shardlite.errors import OperationalError, RoutingError
from shardlite.execute.database import Database

DDL = (
    "CREATE TABLE t (k INTEGER PRIMARY KEY, s TEXT, n INT)",
    "CREATE TABLE w (k INTEGER, s TEXT, n, PRIMARY KEY (k, s)) WITHOUT ROWID",
)
ROWS = (
    "WITH i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 2500) INSERT INTO t "
    "SELECT n, CASE n % 700 WHEN 3 THEN CAST(x'ff61' || x'80' AS TEXT) ELSE 'é' || n END, n FROM i",
    "INSERT INTO w SELECT n % 9, CASE n WHEN 5 THEN CAST(x'c328' AS TEXT) ELSE s END, CAST(x'fe' AS TEXT) "
    "FROM t WHERE n < 40",
)
CHANGES = (
    "UPDATE t SET n = (SELECT max(n) FROM t AS o WHERE o.k < 9) - n WHERE k < 2200",
    "UPDATE t SET s = s || '!' WHERE n = (SELECT max(n) FROM t) OR k IN (3, 4)",
    "UPDATE t SET s = CAST(x'ff' AS TEXT) WHERE k = (SELECT max(k) FROM t)",
    "UPDATE t SET k = k + 10000 WHERE k < 20 OR k > 2000",
    "INSERT OR REPLACE INTO t SELECT k, s || s, n FROM t WHERE k < 800",
    "UPDATE w SET s = s || 'x' WHERE n = (SELECT max(n) FROM w)",
    "DELETE FROM w WHERE s = (SELECT s FROM w WHERE k = 5 ORDER BY s DESC LIMIT 1) OR k = 3",
    "DELETE FROM t WHERE s = (SELECT max(s) FROM t)",
)


def contents(run: Callable[..., object], table: str) -> list[tuple[object, ...]]:
    rows = run(f"SELECT k, typeof(s), hex(s), typeof(n), hex(n) FROM {table} ORDER BY k, hex(s)")
    return [tuple(row) for row in rows]  # type: ignore[attr-defined]  # a cursor of the one or of the other


def test_gathered_changes(manager: ShardManager) -> None:
    plain = one_file()
    manager.create_table(DDL[0])
    manager.create_table(DDL[1], shard_key="k")
    for ddl in DDL:
        plain.execute(ddl)
    for sql in (*ROWS, *CHANGES):
        assert manager.execute(sql).rowcount == max(plain.execute(sql).rowcount, -1), sql
        for table in ("t", "w"):
            assert contents(manager.execute, table) == contents(plain.execute, table), sql
    assert manager.check().ok


def test_no_key(manager: ShardManager) -> None:
    """What no client could ask for is no key."""
    manager.create_table("CREATE TABLE t (k TEXT, n INT)", shard_key="k")
    manager.execute("INSERT INTO t VALUES ('a', 1)")
    with pytest.raises(RoutingError, match="surrogate"):
        manager.execute("UPDATE t SET k = CAST(x'ff' AS TEXT)")
    assert manager.execute("SELECT k FROM t").fetchall() == [("a",)]


def test_utf_16_is_refused(tmp_path: Path) -> None:
    config = ShardliteConfig(num_shards=3, db_dir=str(tmp_path / "db"), durability="normal")
    Database(config, encoding="UTF-16le").close()
    with ShardManager(db_dir=tmp_path / "db") as manager:
        manager.create_table("CREATE TABLE t (k INTEGER PRIMARY KEY, s TEXT, n INT)")
        manager.execute("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
        manager.execute("UPDATE t SET s = CAST(x'00d8' AS TEXT) WHERE k = 1")
        with pytest.raises(OperationalError, match="decode"):
            manager.execute("UPDATE t SET n = (SELECT sum(n) FROM t AS o WHERE o.k <= t.k)")
        assert manager.execute("SELECT n FROM t ORDER BY k").fetchall() == [(1,), (2,)]
