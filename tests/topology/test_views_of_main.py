"""Views and triggers that say ``main.``: attached to another connection, a shard's file would mean another's tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.topology import check_database, export_sqlite, import_delimited, import_sqlite

SCHEMA = """
CREATE TABLE log (k INTEGER PRIMARY KEY, what TEXT);
CREATE VIEW seen AS SELECT what FROM main.log;
CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT UNIQUE);
CREATE VIEW most (id) AS SELECT max(id) FROM main.t;
CREATE VIEW above AS SELECT * FROM most;
CREATE TRIGGER through INSTEAD OF INSERT ON most BEGIN
    SELECT RAISE(ABORT, 'full') WHERE (SELECT max(k) FROM main.log) > 0; END;
CREATE TRIGGER logged AFTER INSERT ON log WHEN NEW.k > 100 BEGIN
    UPDATE log SET what = (SELECT 'k' || k FROM main.log WHERE k = NEW.k) WHERE k = NEW.k; END;
CREATE INDEX by_what ON log (what);
CREATE TABLE late (n INT);
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(tmp_path / "source.db", isolation_level=None)) as conn:
        conn.executescript(SCHEMA)
        conn.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"v{n}") for n in range(40)])
        conn.executemany("INSERT INTO log VALUES (?, ?)", [(n, f"w{n}") for n in range(95, 105)])
        conn.executemany("INSERT INTO late VALUES (?)", [(n,) for n in range(5)])
    return tmp_path / "source.db"


@pytest.fixture
def shop(source: Path, tmp_path: Path) -> Path:
    import_sqlite(source, tmp_path / "shop", num_shards=3, reference=["log"], single=["late"], durability="normal")
    return tmp_path / "shop"


@contextlib.contextmanager
def shard(shop: Path, number: int) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(shop / f"shard_{number}.db", isolation_level=None)) as conn:
        yield conn


def test_check_and_info(shop: Path) -> None:
    assert check_database(shop).ok
    with ShardManager(db_dir=shop, durability="normal") as manager:
        assert manager.get_shard_stats()["tables"]["t"]["rows"] == 40
        assert manager.check().ok
        assert set(manager.get_shard_info()) == {0, 1, 2}
        assert manager.execute("SELECT id FROM above").fetchall() == [(39,)]
        assert manager.execute("SELECT count(*), max(what) FROM seen").fetchone() == (10, "w99")


def test_a_table_behind_the_view_is_still_looked_at(shop: Path) -> None:
    with shard(shop, 1) as conn:
        conn.execute("DROP TABLE late")
    assert {problem.kind.value for problem in check_database(shop).problems} == {"schema"}


def test_a_view_that_is_gone_is_still_found(shop: Path) -> None:
    with shard(shop, 1) as conn:
        conn.execute("DROP VIEW most")
    assert "view most is missing" in str(check_database(shop))


def test_repair_of_places_and_copies(shop: Path) -> None:
    with shard(shop, 0) as conn:
        moved = conn.execute("SELECT id, v FROM t").fetchall()
        conn.execute("DELETE FROM t")
    with shard(shop, 1) as conn:
        conn.executemany("INSERT INTO t VALUES (?, ?)", moved)
        conn.execute("DELETE FROM log WHERE k = 104")
        conn.execute("INSERT INTO log VALUES (90, 'only here')")
    assert {p.kind.value for p in check_database(shop).problems} == {"misplaced-row", "reference-copy"}
    report = check_database(shop, repair=True)
    assert report.ok, str(report)
    assert len(report.repaired) > 2
    with shard(shop, 0) as conn:
        assert sorted(conn.execute("SELECT id, v FROM t")) == sorted(moved)
        # The trigger didn't run again for rows that are copied.
        assert dict(conn.execute("SELECT k, what FROM log WHERE k IN (90, 104)")) == {90: "only here", 104: "k104"}
        assert conn.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND name = 'logged'").fetchone()
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_export_is_the_source_again(source: Path, shop: Path, tmp_path: Path) -> None:
    export_sqlite(shop, tmp_path / "out.db")
    dumps = []
    for path in (source, tmp_path / "out.db"):
        with contextlib.closing(sqlite3.connect(path)) as conn:
            dumps.append(list(conn.iterdump()))
            assert conn.execute("SELECT id FROM above").fetchall() == [(39,)]
    assert dumps[0] == dumps[1]


def test_a_file_of_values_goes_in(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("id,v\n1,a\n2,b\n")
    report = import_delimited(tmp_path / "more.csv", shop, table="more", key="id")
    assert [table.rows for table in report.tables] == [2]
    assert check_database(shop).ok
