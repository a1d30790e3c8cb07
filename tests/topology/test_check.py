"""What check finds, what repair does, and that check alone writes nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nasty_sources import content_of, make

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.topology import check_database, export_sqlite, import_sqlite

DDL = """
CREATE TABLE countries(code TEXT PRIMARY KEY, name TEXT);
CREATE TABLE users(id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE, country TEXT REFERENCES countries(code),
    n INT DEFAULT 0);
CREATE UNIQUE INDEX by_email ON users(email);
CREATE UNIQUE INDEX by_lower ON users(lower(email) || n) WHERE n > 0;
CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id) ON DELETE CASCADE, note TEXT);
CREATE TABLE links(a INTEGER, b INTEGER REFERENCES users(id), PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE TABLE log(x TEXT);
CREATE TRIGGER gone AFTER DELETE ON users BEGIN DELETE FROM orders WHERE user_id = OLD.id; END;
CREATE TRIGGER come AFTER INSERT ON users BEGIN UPDATE users SET n = n + 100 WHERE id = NEW.id; END;
"""
ROWS = """
INSERT INTO countries VALUES ('at', 'Austria'), ('de', CAST(x'ff' AS TEXT)), ('fr', 'France');
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)
    INSERT INTO users(id, email, country) SELECT i, 'e' || i, 'at' FROM c;
UPDATE users SET n = 0;
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 400)
    INSERT INTO orders SELECT i, i % 100 + 1, 'n' || i FROM c;
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 50)
    INSERT INTO links SELECT i, i FROM c;
INSERT INTO log VALUES ('one'), ('two');
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    import_sqlite(make(tmp_path / "app.db", DDL, ROWS), tmp_path / "shop", keys={"links": "a"})
    report = check_database(tmp_path / "shop")
    assert report.ok, str(report)
    assert (report.shards, report.tables, report.rows) == (4, 5, 3 + 100 + 400 + 50 + 2)
    return tmp_path / "shop"


@contextlib.contextmanager
def _shard(shop: Path, number: int) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(shop / f"shard_{number}.db", isolation_level=None)) as conn:
        yield conn


def _kinds(shop: Path) -> list[tuple[str, str | None, int | None]]:
    return [(p.kind.value, p.table, p.shard) for p in check_database(shop).problems]


def _files(shop: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in shop.iterdir()}


def _shard_with(shop: Path, sql: str) -> int:
    for number in range(4):
        with _shard(shop, number) as conn:
            if conn.execute(sql).fetchone()[0]:
                return number
    raise AssertionError(sql)


def _move(shop: Path, table: str, where: str) -> tuple[int, int]:
    """Put the rows on the shard after the one where they are, past the router."""
    here = _shard_with(shop, f"SELECT count(*) FROM {table} WHERE {where}")
    there = (here + 1) % 4
    with _shard(shop, there) as conn:
        conn.execute("ATTACH ? AS other", (str(shop / f"shard_{here}.db"),))
        triggers = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _sql in triggers:
            conn.execute(f"DROP TRIGGER main.{name}")
        conn.execute(f"INSERT INTO main.{table} SELECT * FROM other.{table} WHERE {where}")
        for _name, sql in triggers:
            conn.execute(sql)
    with _shard(shop, here) as conn:
        triggers = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _sql in triggers:
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute(f"DELETE FROM {table} WHERE {where}")
        for _name, sql in triggers:
            conn.execute(sql)
    return here, there


def test_check_writes_nothing(shop: Path) -> None:
    before = _files(shop)
    assert check_database(shop).ok
    assert check_database(shop, quick=True).ok
    after = _files(shop)
    assert after.keys() == before.keys()
    assert {n for n in before if before[n] != after[n]} == set()


def test_misplaced_rows_are_found_and_moved_back(shop: Path, tmp_path: Path) -> None:
    expected = content_of(tmp_path / "app.db")
    _, users = _move(shop, "users", "id = 17")
    _, links = _move(shop, "links", "a = 5")
    report = check_database(shop)
    assert {("misplaced-row", "users", users), ("misplaced-row", "links", links)} <= set(_kinds(shop))
    assert any("1 row(s) on shard" in p.detail and "key 17" in p.detail for p in report.problems)
    repaired = check_database(shop, repair=True)
    assert repaired.ok, str(repaired)
    assert any(f"users: moved 1 row(s) from shard {users}" in act for act in repaired.repaired)
    export_sqlite(shop, tmp_path / "out.db")
    assert content_of(tmp_path / "out.db") == expected  # no trigger and no cascade ran


def test_a_misplaced_row_that_stands_at_its_place_too(shop: Path) -> None:
    here = _shard_with(shop, "SELECT count(*) FROM orders WHERE id = 7")
    there = (here + 1) % 4
    with _shard(shop, there) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("INSERT INTO orders VALUES (7, 8, 'n7')")  # the same row
        conn.execute("INSERT INTO orders VALUES (107, 8, 'another note')")  # not the same
    kinds = _kinds(shop)
    assert ("misplaced-row", "orders", there) in kinds
    assert ("duplicate-rowid", "orders", None) in kinds
    report = check_database(shop, repair=True)
    assert [(p.kind.value, p.count) for p in report.problems if p.kind.value == "misplaced-row"] == [
        ("misplaced-row", 1)
    ]
    with _shard(shop, there) as conn:
        assert conn.execute("SELECT id FROM orders WHERE user_id = 8").fetchall() == [(107,)]
    with _shard(shop, here) as conn:
        assert conn.execute("SELECT note FROM orders WHERE id IN (7, 107)").fetchall() == [("n7",), ("n107",)]


def test_rows_of_a_single_table_elsewhere(shop: Path) -> None:
    with _shard(shop, 2) as conn:
        conn.execute("INSERT INTO log(rowid, x) VALUES (10, 'lost')")
    assert _kinds(shop) == [("misplaced-row", "log", 2)]
    assert check_database(shop, repair=True).ok
    with _shard(shop, 0) as conn:
        assert conn.execute("SELECT x FROM log WHERE rowid = 10").fetchall() == [("lost",)]


def test_reference_copies(shop: Path) -> None:
    with _shard(shop, 3) as conn:
        conn.execute("UPDATE countries SET name = 'Autriche' WHERE code = 'at'")
    assert _kinds(shop) == [("reference-copy", "countries", 3)]
    report = check_database(shop, repair=True)
    assert report.ok, str(report)
    assert report.repaired == ("countries: copied 3 row(s) from shard 0 to shard 3 again",)


def test_rows_that_only_another_copy_holds_are_kept(shop: Path) -> None:
    with _shard(shop, 3) as conn:
        conn.execute("INSERT INTO countries(rowid, code, name) VALUES (50, 'it', 'Italy')")
        conn.execute("DELETE FROM countries WHERE code = 'fr'")
    with _shard(shop, 2) as conn:
        conn.execute("INSERT INTO countries(rowid, code, name) VALUES (51, 'es', 'Spain')")
    report = check_database(shop, repair=True)
    assert report.ok, str(report)
    assert "countries: added 1 row(s) to shard 0 that only shard 3 held" in report.repaired
    for number in range(4):
        with _shard(shop, number) as conn:
            codes = [code for (code,) in conn.execute("SELECT code FROM countries ORDER BY code")]
        assert codes == ["at", "de", "es", "fr", "it"]


def test_a_copy_with_rows_that_shard_0_cannot_take_is_left_alone(shop: Path) -> None:
    with _shard(shop, 3) as conn:
        rowid = conn.execute("SELECT rowid FROM countries WHERE code = 'fr'").fetchone()[0]
        conn.execute("DELETE FROM countries WHERE code = 'fr'")
        conn.execute("INSERT INTO countries(rowid, code, name) VALUES (?, 'it', 'Italy')", (rowid,))
    report = check_database(shop, repair=True)
    assert [(p.kind.value, p.shard) for p in report.problems] == [("reference-copy", 3)]
    assert "it leaves that copy as it is" in report.problems[0].remedy
    assert report.repaired == ()
    with _shard(shop, 3) as conn:
        assert conn.execute("SELECT name FROM countries WHERE code = 'it'").fetchall() == [("Italy",)]


def test_constraints_that_no_shard_enforces(shop: Path) -> None:
    one, other = _shard_with(shop, "SELECT count(*) FROM users WHERE id = 1"), 0
    with contextlib.ExitStack() as stack:
        shards = {n: stack.enter_context(_shard(shop, n)) for n in range(4)}
        other, twin = next(
            (n, row[0]) for n in range(4) if n != one for row in shards[n].execute("SELECT id FROM users").fetchmany(1)
        )
        shards[other].execute("UPDATE users SET email = 'E1' WHERE id = ?", (twin,))
        shards[other].execute("UPDATE users SET n = 1 WHERE id = ?", (twin,))
        shards[one].execute("UPDATE users SET n = 1 WHERE id = 1")
        shards[0].execute("UPDATE links SET b = 999 WHERE a = (SELECT min(a) FROM links)")
    report = check_database(shop)
    texts = [str(p) for p in report.problems]
    assert {p.kind.value for p in report.problems} == {"unique", "foreign-key"}
    assert any("1 value(s), such as 'E1'" in t.replace("'e1'", "'E1'") and "UNIQUE (email)" in t for t in texts)
    assert any("unique index by_lower" in t for t in texts)
    assert any("links: 1 row(s) on shard 0 break b -> users(id)" in t for t in texts)
    with pytest.raises(sqlite3.IntegrityError, match="shardlite check"):
        export_sqlite(shop, shop.parent / "out.db")
    assert not (shop.parent / "out.db").exists()


def test_foreign_keys_that_the_shard_sees(shop: Path) -> None:
    here = _shard_with(shop, "SELECT count(*) FROM users WHERE id = 3")
    with _shard(shop, here) as conn:
        conn.execute("DROP TRIGGER gone")
        conn.execute("DELETE FROM users WHERE id = 3")
        conn.execute("CREATE TRIGGER gone AFTER DELETE ON users BEGIN DELETE FROM orders WHERE user_id = OLD.id; END")
    assert {(k, t) for k, t, _ in _kinds(shop)} == {("foreign-key", "orders"), ("foreign-key", "links")}
    assert ("foreign-key", "orders", here) in _kinds(shop)


def test_sequence_behind_the_ids(shop: Path) -> None:
    here = _shard_with(shop, "SELECT count(*) FROM users WHERE id = 3")
    with _shard(shop, here) as conn:
        conn.execute("INSERT INTO orders VALUES (7000, 3, 'past the router')")
    assert _kinds(shop) == [("sequence", "orders", None)]
    assert check_database(shop, repair=True).repaired == ("orders: the next generated id is 7,001 now",)
    assert check_database(shop).ok


def test_schema_and_epoch(shop: Path) -> None:
    with _shard(shop, 1) as conn:
        conn.execute("CREATE TABLE extra(x)")
        conn.execute("DROP INDEX by_email")
    with _shard(shop, 2) as conn:
        conn.execute("UPDATE _shardlite_meta SET epoch = epoch + 5")
    texts = [str(p) for p in check_database(shop).problems]
    assert any(t.startswith("epoch: shard 2 is at epoch 7, the catalog at 2") for t in texts)
    assert any("index by_email is missing" in t and "table extra is not in the catalog" in t for t in texts)
    assert len(texts) == 2


def test_files(shop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    import_sqlite(tmp_path / "app.db", other)
    os.unlink(shop / "shard_0.db")
    shutil.copy(other / "shard_1.db", shop / "shard_1.db")
    with open(shop / "shard_2.db", "r+b") as file:
        file.truncate(9000)
    shutil.copy(tmp_path / "app.db", shop / "shard_3.db")
    report = check_database(shop)
    texts = [str(p) for p in report.problems]
    assert [p.shard for p in report.problems] == [0, 1, 2, 3]
    assert "missing-shard: " in texts[0]
    assert "wrong-file: " in texts[1]
    assert "belongs to database" in texts[1]
    assert "damaged: " in texts[2]
    assert "no shard of shardlite's" in texts[3]
    assert not check_database(shop, repair=True).ok


def test_swapped_files(shop: Path) -> None:
    os.rename(shop / "shard_1.db", shop / "x")
    os.rename(shop / "shard_2.db", shop / "shard_1.db")
    os.rename(shop / "x", shop / "shard_2.db")
    report = check_database(shop)
    assert [p.kind.value for p in report.problems] == ["wrong-file", "wrong-file"]
    assert "holds shard 2, not 1: files were renamed or swapped" in report.problems[0].detail


def test_no_database(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OperationalError, match="no shardlite database"):
            check_database(path)
        with pytest.raises(OperationalError, match="no shardlite database"):
            export_sqlite(path, tmp_path / "out.db")


def test_in_use(shop: Path, tmp_path: Path) -> None:
    with ShardManager(db_dir=shop) as manager:
        manager.insert("orders", {"user_id": 5, "note": "new"})
        assert check_database(manager).ok
        report = export_sqlite(manager, tmp_path / "out.db")
        assert next(t for t in report.tables if t.table == "orders").rows == 401
        manager.insert("orders", {"user_id": 6, "note": "later"})
        assert manager.count("orders") == 402
        with pytest.raises(OperationalError, match=r"out.db exists"):
            export_sqlite(manager, tmp_path / "out.db")
        assert export_sqlite(manager, tmp_path / "out.db", overwrite=True).rows == report.rows + 1
        with pytest.raises(OperationalError, match="no directory"):
            export_sqlite(manager, tmp_path / "none" / "out.db")
    assert not [entry.name for entry in tmp_path.iterdir() if "export" in entry.name]


def test_export_never_replaces_what_is_the_databases_own(shop: Path, tmp_path: Path) -> None:
    (shop / "inner").mkdir()
    (tmp_path / "alias").symlink_to(shop, target_is_directory=True)
    (tmp_path / "linked.db").symlink_to(shop / "shard_1.db")
    os.link(shop / "shard_2.db", tmp_path / "same.db")
    own = ["shard_0.db", "catalog.db", "fence", "shard_0.db-wal", "new.db", "inner/new.db", "../shop/./shard_3.db"]
    with ShardManager(db_dir=shop) as manager:
        before = {name: os.stat(shop / name).st_ino for name in os.listdir(shop)}
        dests = [shop / name for name in own]
        dests += [tmp_path / "alias" / "shard_0.db", tmp_path / "linked.db", tmp_path / "same.db"]
        for source in (manager, shop):
            for dest in dests:
                with pytest.raises(OperationalError, match="database's own"):
                    export_sqlite(source, dest, overwrite=True)
        assert {name: os.stat(shop / name).st_ino for name in os.listdir(shop)} == before
    assert check_database(shop).ok


def test_rows_of_virtual_tables_count_as_in_the_imports_report(tmp_path: Path) -> None:
    source = make(tmp_path / "v.db", "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES ('a'), ('b')")
    report = import_sqlite(source, tmp_path / "v")
    assert check_database(tmp_path / "v").rows == report.rows == 2
