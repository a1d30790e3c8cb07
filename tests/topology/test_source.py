"""Sources that can't be imported, and sources that are in use."""

from __future__ import annotations

import contextlib
import gzip
import os
from pathlib import Path

import pytest
from nasty_sources import content_of, make

from shardlite.driver import sqlite3
from shardlite.errors import DatabaseError, DataError, NotSupportedError, OperationalError
from shardlite.router.strategies import DirectoryStrategy, HashStrategy, RangeStrategy, ShardingStrategy
from shardlite.topology import check_database, export_sqlite, import_sqlite, is_sqlite_file, plan_import
from shardlite.topology.report import JobProgress, Phase


def _filled(path: Path, rows: int = 20_000) -> Path:
    make(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)")
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executemany("INSERT INTO t VALUES (?, ?)", ((i, "x" * 30) for i in range(rows)))
        conn.commit()
    return path


def _truncated(path: Path) -> None:
    _filled(path)
    os.truncate(path, 40_000)


def _damaged(path: Path) -> None:
    _filled(path)
    with open(path, "r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 20)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"id,name\n1,Ann\n" * 100), "looks like text .*id,name.*csv"),
        (lambda p: p.write_bytes(bytes(range(128, 256)) * 40), "another kind of file, or encrypted"),
        (lambda p: p.write_bytes(gzip.compress(b"x" * 5000)), "gzip"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + b"\0" * 20), "truncated|damaged"),
        (_truncated, "damaged or truncated"),
        (_damaged, "damaged|malformed"),
    ],
    ids=["missing", "directory", "empty", "text", "encrypted", "gzip", "header", "truncated", "damaged"],
)
def test_bad_source_is_named_and_nothing_is_created(tmp_path: Path, write: object, message: str) -> None:
    source = tmp_path / "app.db"
    write(source)
    with pytest.raises(DatabaseError, match=message) as caught:
        import_sqlite(source, tmp_path / "shop")
    assert "app.db" in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"app.db"}


def test_sniffing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert not is_sqlite_file(tmp_path / "t.csv")
    assert not is_sqlite_file(tmp_path / "none")
    assert is_sqlite_file(_filled(tmp_path / "app.db", 3))


def test_a_shard_is_no_source(tmp_path: Path) -> None:
    import_sqlite(_filled(tmp_path / "app.db", 100), tmp_path / "shop")
    with pytest.raises(NotSupportedError, match="this is a shard"):
        import_sqlite(tmp_path / "shop" / "shard_0.db", tmp_path / "again")


def test_missing_collation_or_module_is_named(tmp_path: Path) -> None:
    source = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(source)) as conn:
        conn.create_collation("mine", lambda a, b: (a > b) - (a < b))
        conn.execute("CREATE TABLE t(a TEXT COLLATE mine PRIMARY KEY)")
    with pytest.raises(DatabaseError, match="mine"):
        plan_import(source)
    other = make(tmp_path / "b.db", "CREATE TABLE t(a)")
    with contextlib.closing(sqlite3.connect(other)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(
            "INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nothing_known(a)')"
        )
        conn.commit()
    with pytest.raises(NotSupportedError, match=r"virtual table v .*nothing_known"):
        plan_import(other)


def test_target_must_be_new_or_empty(tmp_path: Path) -> None:
    source = _filled(tmp_path / "app.db", 10)
    target = tmp_path / "shop"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(OperationalError, match=r"shop exists and is not empty \(it holds notes.txt\)"):
        import_sqlite(source, target)
    assert [entry.name for entry in target.iterdir()] == ["notes.txt"]
    (target / "notes.txt").unlink()
    import_sqlite(source, target)
    assert (target / "catalog.db").exists()
    with pytest.raises(OperationalError, match="is no directory"):
        import_sqlite(source, source)


def test_one_state_of_a_source_in_wal_mode_is_imported(tmp_path: Path) -> None:
    """Writers go on while the import reads; what they commit after it began is not in it."""
    source = _filled(tmp_path / "app.db", 3000)
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("INSERT INTO t VALUES (100000, 'in the wal')")
        seen = []

        def meanwhile(step: JobProgress) -> None:
            if step.phase in (Phase.ROUTING, Phase.COPYING, Phase.VERIFYING):
                conn.execute("INSERT INTO t(x) VALUES ('late')")
                seen.append(step.phase)

        report = import_sqlite(source, tmp_path / "shop", progress=meanwhile)
        assert {Phase.ROUTING, Phase.COPYING, Phase.VERIFYING} <= set(seen)
        assert report.rows == 3001
        assert conn.execute("SELECT count(*) FROM t").fetchone()[0] == 3001 + len(seen)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_source_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    source = _filled(tmp_path / "in" / "app.db", 10) if (tmp_path / "in").mkdir() is None else None
    assert source is not None
    with contextlib.closing(sqlite3.connect(source)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    (tmp_path / "in").chmod(0o555)
    try:
        assert import_sqlite(source, tmp_path / "shop").rows == 10
    finally:
        (tmp_path / "in").chmod(0o755)


def test_rows_that_break_constraints_come_over_as_they_are(tmp_path: Path) -> None:
    source = make(tmp_path / "app.db", "CREATE TABLE p(id INTEGER PRIMARY KEY CHECK (id < 100), c TEXT)")
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        conn.executemany("INSERT INTO p VALUES (?, 'x')", [(i * 10,) for i in range(30)])
    assert import_sqlite(source, tmp_path / "shop").rows == 30
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as conn:
        assert conn.execute("SELECT count(*) FROM p").fetchone() == (30,)


def test_wide_table(tmp_path: Path) -> None:
    columns = ", ".join(f"c{i}" for i in range(300))
    source = make(
        tmp_path / "app.db",
        f"CREATE TABLE w(id INTEGER PRIMARY KEY, {columns});"
        f"INSERT INTO w(id, c0, c299) VALUES (1, x'00', 'é'), (2, CAST(x'ff' AS TEXT), 1.5);",
    )
    import_sqlite(source, tmp_path / "shop")
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    assert content_of(tmp_path / "out.db") == content_of(source)


def test_keys_that_are_not_valid_text(tmp_path: Path) -> None:
    source = make(
        tmp_path / "app.db",
        "CREATE TABLE t(k TEXT PRIMARY KEY, v); INSERT INTO t VALUES (CAST(x'ff' AS TEXT), 1), ('b', 2);",
    )
    import_sqlite(source, tmp_path / "shop")
    assert check_database(tmp_path / "shop").ok
    with pytest.raises(DataError, match=r"t: the key .* not valid UTF-8: only a hash layout can place it"):
        import_sqlite(source, tmp_path / "ranges", num_shards=2, strategy=RangeStrategy(["m"]))
    assert not (tmp_path / "ranges").exists()


@pytest.mark.parametrize("strategy", [RangeStrategy([300, 600]), DirectoryStrategy({5: 2}, default=HashStrategy())])
def test_other_strategies(tmp_path: Path, strategy: ShardingStrategy) -> None:
    report = import_sqlite(_filled(tmp_path / "app.db", 900), tmp_path / "shop", num_shards=3, strategy=strategy)
    assert sum(report.tables[0].rows_per_shard) == 900
    if isinstance(strategy, RangeStrategy):
        assert report.tables[0].rows_per_shard == (300, 300, 300)
    assert check_database(tmp_path / "shop").ok
