"""Import then export is the identity on content and schema."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_sources import NASTY, NASTY_ROWS, content_of, make, schema_of

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.topology import check_database, export_sqlite, import_sqlite


@pytest.mark.parametrize("num_shards", [1, 3, 8])
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
def test_nasty_schema_comes_back_as_it_was(tmp_path: Path, num_shards: int, encoding: str) -> None:
    source = make(tmp_path / "nasty.db", NASTY, NASTY_ROWS, encoding=encoding)
    before = source.read_bytes()
    report = import_sqlite(source, tmp_path / "shop", num_shards=num_shards)
    exported = export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    assert schema_of(tmp_path / "out.db") == schema_of(source)
    assert content_of(tmp_path / "out.db") == content_of(source)
    assert source.read_bytes() == before
    prints = {t.table: t.fingerprint for t in report.tables}
    assert all(prints[t.table] == t.fingerprint for t in exported.tables if t.fingerprint)
    checked = check_database(tmp_path / "shop")
    broken = {(p.kind.value, p.table) for p in checked.problems}
    assert broken <= {("foreign-key", "left_one")}, str(checked)  # the source breaks this one itself
    assert ("foreign-key", "left_one") in broken
    assert any("left_one" in text and "right_one" in text for text in report.warnings)


def test_more_shards_than_one_connection_can_attach(nasty: Path, tmp_path: Path) -> None:
    import_sqlite(nasty, tmp_path / "shop", num_shards=23)
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    assert schema_of(tmp_path / "out.db") == schema_of(nasty)
    assert content_of(tmp_path / "out.db") == content_of(nasty)
    assert {p.table for p in check_database(tmp_path / "shop").problems} == {"left_one"}


def test_virtual_tables_answer_after_the_round_trip(nasty: Path, tmp_path: Path) -> None:
    import_sqlite(nasty, tmp_path / "shop")
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    for path in (tmp_path / "shop" / "shard_0.db", tmp_path / "out.db"):
        conn = sqlite3.connect(path)
        try:
            assert conn.execute("SELECT rowid FROM own_fts WHERE own_fts MATCH 'run'").fetchall() == [(1,)]
            assert conn.execute("SELECT rowid FROM docs_fts WHERE docs_fts MATCH 'bye'").fetchall() == [(2,)]
            assert conn.execute("SELECT id FROM boxes WHERE x0 > 5").fetchall() == [(2,)]
            conn.execute("INSERT INTO docs_fts(docs_fts) VALUES ('integrity-check')")
        finally:
            conn.close()


def test_batches_and_exact_multiples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardlite.topology.loading.BATCH_ROWS", 10)
    monkeypatch.setattr("shardlite.topology.exporter.BATCH_ROWS", 10)
    source = make(
        tmp_path / "s.db",
        "CREATE TABLE a(id INTEGER PRIMARY KEY, x TEXT); CREATE TABLE w(k TEXT PRIMARY KEY, x) WITHOUT ROWID;"
        "CREATE TABLE p(x);",
    )
    conn = sqlite3.connect(source)
    conn.executemany("INSERT INTO a VALUES (?, ?)", [(i * 3 - 50, f"r{i}") for i in range(100)])
    conn.executemany("INSERT INTO w VALUES (?, ?)", [(f"k{i}", i) for i in range(90)])
    conn.executemany("INSERT INTO p(rowid, x) VALUES (?, ?)", [(i * i, i) for i in range(30)])
    conn.commit()
    conn.close()
    for shards in (1, 3, 8):
        report = import_sqlite(source, tmp_path / f"d{shards}", num_shards=shards)
        assert [t.rows for t in report.tables] == [100, 90, 30]
        export_sqlite(tmp_path / f"d{shards}", tmp_path / f"o{shards}.db")
        assert content_of(tmp_path / f"o{shards}.db") == content_of(source)


@pytest.mark.parametrize("rule", ["BINARY", "NOCASE", "RTRIM"])
def test_a_primary_key_with_a_collation_of_its_own(tmp_path: Path, rule: str) -> None:
    rows = {"BINARY": "('a', 1), ('A', 2), ('a ', 3)", "NOCASE": "('a', 1), ('a ', 2)", "RTRIM": "('a', 1), ('A', 2)"}
    source = make(
        tmp_path / "s.db",
        f"CREATE TABLE w(k TEXT COLLATE NOCASE, x, PRIMARY KEY (k COLLATE {rule})) WITHOUT ROWID;"
        f"INSERT INTO w VALUES {rows[rule]};",
    )
    import_sqlite(source, tmp_path / "shop", num_shards=3)
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    assert schema_of(tmp_path / "out.db") == schema_of(source)
    assert content_of(tmp_path / "out.db") == content_of(source)
    assert check_database(tmp_path / "shop").ok


_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
    st.binary(max_size=5),
)
_types = st.sampled_from(
    ["", "INTEGER", "INT", "TEXT", "REAL", "NUMERIC", "BLOB", "TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM"]
)
_names = st.sampled_from(["a", "b b", 'c"c', "order", "Key", "é", "x'y", "id"])


@st.composite
def _databases(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, list[tuple[object, ...]]]]]:
    ddl, rows = [], []
    for number in range(draw(st.integers(1, 3))):
        names = draw(st.lists(_names, min_size=1, max_size=4, unique_by=str.lower))
        types = [draw(_types) for _ in names]
        quoted = ['"' + n.replace('"', '""') + '"' for n in names]
        keys = draw(st.integers(0, min(2, len(names))))
        parts = [f"{q} {t}" for q, t in zip(quoted, types, strict=True)]
        if keys:
            parts.append(f"PRIMARY KEY ({', '.join(quoted[:keys])})")
        if number and draw(st.booleans()):
            parts.append(f"FOREIGN KEY ({quoted[0]}) REFERENCES t0")
        without = " WITHOUT ROWID" if keys and draw(st.booleans()) else ""
        ddl.append(f'CREATE TABLE "t{number}" ({", ".join(parts)}){without}')
        if draw(st.booleans()):
            ddl.append(f'CREATE INDEX "i {number}" ON t{number}({quoted[-1]} DESC)')
        rows.append((f"t{number}", draw(st.lists(st.tuples(*[_values] * len(names)), max_size=8))))
    return ddl, rows


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(_databases(), st.sampled_from([1, 3, 8]))
def test_any_database_comes_back_as_it_was(
    database: tuple[list[str], list[tuple[str, list[tuple[object, ...]]]]], num_shards: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        conn = sqlite3.connect(here / "s.db", isolation_level=None)
        for sql in database[0]:
            conn.execute(sql)
        for table, rows in database[1]:
            for row in rows:
                with contextlib.suppress(sqlite3.IntegrityError):  # text in an INTEGER PRIMARY KEY
                    conn.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        conn.close()
        import_sqlite(here / "s.db", here / "shop", num_shards=num_shards, durability="normal")
        export_sqlite(here / "shop", here / "out.db")
        assert schema_of(here / "out.db") == schema_of(here / "s.db")
        assert content_of(here / "out.db") == content_of(here / "s.db")
        wrong = [p for p in check_database(here / "shop").problems if p.kind.value != "foreign-key"]
        assert wrong == []


def test_the_manager_works_with_what_was_imported(nasty: Path, tmp_path: Path) -> None:
    import_sqlite(nasty, tmp_path / "shop", num_shards=3)
    with ShardManager(db_dir=tmp_path / "shop") as manager:
        manager.create_table("CREATE TABLE added(id INTEGER PRIMARY KEY, x TEXT)")
        manager.apply_schema("CREATE INDEX added_x ON added(x)")
        assert manager.insert("order", {'a "b" c': "new"}) == 71  # AUTOINCREMENT had seen 70
        assert manager.get("pairs", (3, "p3")) or manager.select("pairs", {"b": 3, "a": "p3"})
        assert manager.select("tags", {"tag": "TAG7"})[0]["tag"] == "Tag7"  # NOCASE, in the case that was stored
        assert len(manager.select("it's", {"user_id": 7})) == 2
        manager.update("it's", {"note": None}, {"id": 9993, "user_id": 7})
        assert manager.select("it's", {"id": 9993, "user_id": 7})[0]["note"] == "none"
        manager.insert("added", {"x": "y"})
        assert {p.table for p in manager.check().problems} == {"left_one"}
    export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as conn:
        assert conn.execute("SELECT x FROM added").fetchall() == [("y",)]
