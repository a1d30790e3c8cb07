"""Joins by collations that take texts of several lengths for equal: SQLite's automatic indexes may lose matches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3

TABLES = (
    "CREATE TABLE a (id INTEGER PRIMARY KEY, k TEXT COLLATE RTRIM, v)",
    "CREATE TABLE b (id INTEGER PRIMARY KEY, k TEXT COLLATE RTRIM, v)",
    "CREATE TABLE c (k TEXT COLLATE RTRIM, n INTEGER)",
    "CREATE TABLE r (k TEXT COLLATE RTRIM, n /* shardlite: kind=reference */)",
)
INDEXES = (
    "CREATE INDEX b_k ON b (k)",
    "CREATE INDEX a_k ON a (k)",
    "CREATE INDEX c_k ON c (k)",
    "CREATE INDEX r_k ON r (k)",
)
QUERIES = (
    "SELECT a.id, b.id FROM a LEFT JOIN b ON a.k = b.k",
    "SELECT a.id, b.id FROM a JOIN b ON a.k = b.k",
    "SELECT a.id, b.id FROM a CROSS JOIN b WHERE a.k = b.k AND b.v = 'x'",
    "SELECT count(*), count(b.id) FROM a LEFT JOIN b USING (k)",
    "SELECT a.id, q.top FROM a LEFT JOIN (SELECT k, max(id) AS top FROM b GROUP BY k) q ON q.k = a.k",
    "SELECT a.id FROM a WHERE EXISTS (SELECT 1 FROM b JOIN c ON c.k = b.k WHERE b.k = a.k)",
    "SELECT a.id, (SELECT count(*) FROM b WHERE b.k = a.k) FROM a",
    "SELECT x.k, y.n FROM c x LEFT JOIN c y ON y.k = x.k AND y.n > 4",
    "SELECT a.id, r.n FROM a LEFT JOIN r ON r.k = a.k",
    "SELECT r.n, b.id FROM r LEFT JOIN b ON r.k = b.k",
    "SELECT a.id, b.id FROM a LEFT JOIN b ON a.k = b.k WHERE a.id IN (1, 2, 3)",
)


@pytest.mark.parametrize("rows", [7, 400])
@pytest.mark.parametrize("indexed", [False, True])
def test_all_matches_are_found(make_manager: Callable[..., ShardManager], rows: int, indexed: bool) -> None:
    """As by one file that has all indexes itself, whether the database has them or not."""
    manager = make_manager(num_shards=3)
    plain = sqlite3.connect(":memory:")
    plain.execute("PRAGMA automatic_index = OFF")  # as for a subquery's rows, which have no index in any case
    for sql in TABLES:
        plain.execute(sql)
    manager.create_table(TABLES[0])
    manager.create_table(TABLES[1])
    manager.create_table(TABLES[2], shard_key="k")
    manager.create_table(TABLES[3])
    for sql in INDEXES:
        plain.execute(sql)
        if indexed:
            manager.apply_schema(sql)
    values = [(n, f"k{n % 5}" + " " * (n % 3), "xy"[n % 2]) for n in range(rows)]
    others = [(n, f"k{n % 7}" + " " * ((n + 1) % 4 * 2 + 3), "xy"[n % 2]) for n in range(0, rows, 3)]
    for sql, given in (
        ("INSERT INTO a VALUES (?, ?, ?)", values),
        ("INSERT INTO b VALUES (?, ?, ?)", others),
        ("INSERT INTO c VALUES (?, ?)", [(k, n) for n, k, _ in values[::9]]),
        ("INSERT INTO r VALUES (?, ?)", [(k + "  ", n) for n, k, _ in values[:9]]),
    ):
        plain.executemany(sql, given)
        manager.executemany(sql, given)
    for sql in QUERIES:
        expected = sorted(map(repr, plain.execute(sql)))
        assert sorted(repr(tuple(row)) for row in manager.execute(sql)) == expected, sql
    for sql in (
        "UPDATE a SET v = (SELECT max(b.id) FROM b LEFT JOIN c ON c.k = b.k WHERE b.k = a.k)",
        "UPDATE a SET v = b.id FROM b JOIN c ON c.k = b.k WHERE b.id = a.id",
        "INSERT INTO c SELECT a.k, b.id FROM a LEFT JOIN b ON b.k = a.k WHERE a.id < 9",
    ):
        assert manager.execute(sql).rowcount == plain.execute(sql).rowcount
        for table in ("a", "c"):
            ours = sorted(repr(tuple(row)) for row in manager.execute(f"SELECT * FROM {table}"))
            assert ours == sorted(map(repr, plain.execute(f"SELECT * FROM {table}"))), sql
    plain.close()


def test_other_collations_are_not_held_up(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE a (k TEXT COLLATE NOCASE PRIMARY KEY, v TEXT)")
    manager.create_table("CREATE TABLE t (k TEXT COLLATE RTRIM PRIMARY KEY, v TEXT)")
    assert manager.explain("SELECT x.v, y.v FROM a x LEFT JOIN a y USING (k)").kind == "fan-out"
    assert manager.explain("SELECT * FROM t WHERE v > 'x'").kind == "fan-out"
    assert manager.explain("SELECT * FROM t WHERE k = 'x'").kind == "one shard"
    assert manager.explain("INSERT INTO t VALUES ('x', 'y')").kind == "one shard"
    assert manager.explain("INSERT INTO t VALUES ('x', 'y'), ('z', 'y')").kind == "split insert"
    assert manager.explain("UPDATE t SET v = 'z' WHERE k = 'x'").kind == "one shard"
    assert manager.explain("DELETE FROM t").kind == "fan-out write"
