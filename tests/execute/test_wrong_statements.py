"""Wrong statements of every sort, on every kind of table: SQLite's class and words, and nothing half done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import Error

SCHEMA = {
    "t": "CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT NOT NULL)",
    "o": "CREATE TABLE o(id INTEGER PRIMARY KEY, tid INTEGER, x)",
    "r": "CREATE TABLE r(k TEXT PRIMARY KEY, v /* shardlite: kind=reference */)",
    "s": "CREATE TABLE s(k TEXT PRIMARY KEY, v /* shardlite: kind=single */)",
    "w": "CREATE VIEW w AS SELECT a, count(*) AS n FROM t GROUP BY a",
}
WRONG: list[tuple[str, Any]] = [
    ("SELECT", ()),
    ("", ()),
    ("  ", ()),
    ("--c", ()),
    ("SELECT 1; SELECT 2", ()),
    ("SELECT id FROM t o, o", ()),
    ("SELECT id FROM t JOIN o ON t.id=o.tid", ()),
    ("SELECT a FROM t GROUP BY zz", ()),
    ("SELECT count(*) FROM t HAVING a", ()),
    ("SELECT * FROM t ORDER BY 9", ()),
    ("SELECT a FROM t UNION SELECT a,b FROM t", ()),
    ("SELECT max(a) FROM t WHERE max(a)>1", ()),
    ("SELECT nosuch(a) FROM t", ()),
    ("SELECT abs(a,b,a) FROM t", ()),
    ("SELECT * FROM t LIMIT 'x'", ()),
    ("SELECT * FROM t LIMIT ?", ("x",)),
    ("SELECT * FROM t WHERE a=? AND b=?", (1,)),
    ("SELECT * FROM t WHERE a=?", (1, 2)),
    ("SELECT * FROM t WHERE a=:x", {}),
    ("SELECT * FROM t WHERE a=:x", {"y": 1}),
    ("SELECT count(*) FROM t WHERE a=?", ()),
    ("SELECT t.id, o.id FROM t, o WHERE t.a<o.x AND o.x>?", ()),
    ("SELECT ?+?", (1,)),
    ("INSERT INTO t VALUES(1,2)", ()),
    ("INSERT INTO t(a,zz) VALUES(1,2)", ()),
    ("INSERT INTO t(id,a,b) VALUES(?,?,?)", (1, 2)),
    ("INSERT INTO t(id,b) VALUES(1,'x')", ()),
    ("INSERT INTO t(id) VALUES(999)", ()),
    ("INSERT INTO t SELECT 1", ()),
    ("INSERT INTO t(id,a,b) SELECT id+100,a,NULL FROM t", ()),
    ("INSERT INTO zz VALUES(1)", ()),
    ("INSERT INTO w VALUES(1,2)", ()),
    ("INSERT INTO t DEFAULT VALUES", ()),
    ("UPDATE t SET zz=1", ()),
    ("UPDATE t SET a=zz", ()),
    ("UPDATE zz SET a=1", ()),
    ("UPDATE t SET a=? WHERE id=?", (1,)),
    ("UPDATE t SET b=NULL WHERE id=3", ()),
    ("UPDATE t SET b=NULL", ()),
    ("UPDATE w SET n=1", ()),
    ("UPDATE t SET a=1, a=2, zz=3", ()),
    ("UPDATE t SET (a,b)=(1)", ()),
    ("UPDATE t SET a=(SELECT a,b FROM t)", ()),
    ("DELETE FROM zz", ()),
    ("DELETE FROM t WHERE zz", ()),
    ("DELETE FROM t WHERE id=?", ()),
    ("DELETE FROM w", ()),
    ("REPLACE INTO r VALUES(1)", ()),
    ("INSERT INTO r VALUES('a',1),('a',2)", ()),
    ("INSERT INTO s VALUES('a')", ()),
    ("UPDATE r SET zz=1", ()),
    ("SELECT * FROM t WHERE id IN (SELECT id,a FROM t)", ()),
    ("SELECT (1,2)=1", ()),
    ("SELECT row_number() FROM t", ()),
    ("SELECT sum(a) OVER w FROM t", ()),
    ("SELECT * FROM t INDEXED BY nope", ()),
    ("SELECT * FROM t JOIN o USING(zz)", ()),
    ("SELECT * FROM t NATURAL JOIN o ORDER BY zz", ()),
    ("WITH c(x,y) AS (SELECT 1) SELECT * FROM c", ()),
    ("WITH c AS (SELECT * FROM c) SELECT * FROM c", ()),
    ("SELECT * FROM (SELECT id FROM t) WHERE a", ()),
    ("SELECT t.* FROM t u", ()),
    ("SELECT main.t.zz FROM t", ()),
    ("SELECT * FROM nope.t", ()),
    ("SELECT a COLLATE nope FROM t ORDER BY 1", ()),
    ("SELECT CAST(a AS) FROM t", ()),
    ("SELECT 'x FROM t", ()),
    ("SELECT [a FROM t", ()),
    ("SELECT 1 +", ()),
    ("SELECT * FROM t WHERE a = @", ()),
    ("SELECT json_extract('{','$.a') FROM t", ()),
    ("SELECT a FROM t WHERE b MATCH 'x'", ()),
    ("SELECT group_concat(DISTINCT a, b) FROM t", ()),
    ("CREATE TABLE t(a)", ()),
    ("CREATE TABLE q(a,a)", ()),
    ("CREATE TABLE q", ()),
    ("CREATE INDEX i ON t(zz)", ()),
    ("CREATE INDEX i ON zz(a)", ()),
    ("DROP TABLE zz", ()),
    ("DROP INDEX zz", ()),
    ("DROP VIEW t", ()),
    ("DROP TABLE w", ()),
    ("ALTER TABLE zz ADD q", ()),
    ("ALTER TABLE t ADD a", ()),
    ("ALTER TABLE t RENAME COLUMN zz TO y", ()),
    ("ALTER TABLE t RENAME TO o", ()),
    ("CREATE VIEW w AS SELECT 1", ()),
    ("CREATE TRIGGER x AFTER INSERT ON zz BEGIN SELECT 1; END", ()),
    ("REINDEX zz", ()),
    ("ANALYZE zz", ()),
    ("PRAGMA", ()),
    ("EXPLAIN SELECT zz FROM t", ()),
    ("SELECT \0", ()),
    ("SELECT * FROM t WHERE a=?1 AND b=?3", (1, 2)),
    ("SELECT ?0", (1,)),
    ("SELECT ?99999", (1,)),
    ("SELECT * FROM t WHERE a=?", (object(),)),
    ("INSERT INTO t VALUES(?,?,?)", (50, object(), "x")),
    ("SELECT * FROM t WHERE a=?", (2**70,)),
    ("UPDATE t SET a=? WHERE id=1", (2**70,)),
    ("UPDATE t SET a=?", ({},)),
]
"""Statements and parameters. Some are no error at all: then neither side may take them for one."""


Pair = tuple[ShardManager, sqlite3.Connection]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory: Path = tmp_path_factory.mktemp("wrong")
    plain = sqlite3.connect(":memory:", isolation_level=None)
    with ShardManager(num_shards=3, db_dir=directory / "db", durability="normal") as manager:
        for sql in SCHEMA.values():
            manager.execute(sql)
            plain.execute(sql)
        for target in (manager, plain):
            target.executemany("INSERT INTO t VALUES (?, ?, 'b')", [(n, n % 3) for n in range(20)])
            target.executemany("INSERT INTO o VALUES (?, ?, ?)", [(n, n % 7, n) for n in range(20)])
            target.execute("INSERT INTO r VALUES ('z', 1)")
            target.execute("INSERT INTO s VALUES ('z', 1)")
        yield manager, plain
        assert manager.check().ok
    plain.close()


def _failure(target: Any, sql: str, parameters: Any) -> BaseException | None:
    try:
        target.execute(sql, parameters).fetchall()
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        return error
    return None


@pytest.mark.parametrize(("sql", "parameters"), WRONG, ids=[f"{n} {sql[:40]}" for n, (sql, _) in enumerate(WRONG)])
def test_it_is_worded_as_by_sqlite(pair: Pair, sql: str, parameters: Any) -> None:
    manager, plain = pair
    theirs, ours = _failure(plain, sql, parameters), _failure(manager, sql, parameters)
    assert (theirs is None) == (ours is None), (theirs, ours)
    if theirs is not None:
        assert str(ours).split(" [")[0] == str(theirs)
        assert isinstance(ours, (Error, OverflowError))
        assert isinstance(ours, type(theirs))
    for table in ("t", "o", "r", "s"):
        content = f"SELECT * FROM {table} ORDER BY 1"
        assert [tuple(row) for row in manager.execute(content)] == plain.execute(content).fetchall()
    told = "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    assert manager.execute(told).fetchall() == plain.execute(told).fetchall()
