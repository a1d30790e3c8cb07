"""CSV and NDJSON: what becomes of good text, and what is said of bad."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import DatabaseError, DataError, OperationalError, ProgrammingError
from shardlite.topology import check_database, export_sqlite, import_delimited
from shardlite.topology.report import JobProgress


def _exported(shop: Path, sql: str) -> list[tuple[object, ...]]:
    out = shop.parent / "exported.db"
    export_sqlite(shop, out, overwrite=True)
    with contextlib.closing(sqlite3.connect(out)) as conn:
        return conn.execute(sql).fetchall()


def _ddl(shop: Path) -> str:
    return str(_exported(shop, "SELECT sql FROM sqlite_schema")[0][0])


def test_csv(tmp_path: Path) -> None:
    text = 'id,name,price,zip,note,when\n1,Ann,1.5,01234,"a ""b""\nc",\n2,,7,99999,x,\n30,Ünï,,5,"",\n'
    (tmp_path / "people.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    steps: list[JobProgress] = []
    report = import_delimited(tmp_path / "people.csv", tmp_path / "shop", progress=steps.append)
    assert (report.rows, report.source) == (3, str(tmp_path / "people.csv"))
    assert _ddl(tmp_path / "shop") == (
        'CREATE TABLE "people" ("id" INTEGER PRIMARY KEY, "name" TEXT, "price" REAL, "zip" TEXT, "note" TEXT, '
        '"when" TEXT)'
    )
    assert _exported(tmp_path / "shop", "SELECT * FROM people ORDER BY id") == [
        (1, "Ann", 1.5, "01234", 'a "b"\nc', ""),
        (2, "", 7.0, "99999", "x", ""),
        (30, "Ünï", None, "5", "", ""),
    ]
    assert steps[0].rows_total == 3
    assert check_database(tmp_path / "shop").ok
    assert {p.name for p in tmp_path.iterdir()} == {"people.csv", "shop", "exported.db"}


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (["9223372036854775807", "-9223372036854775808"], "INTEGER"),
        (["9223372036854775808", "2"], "TEXT"),
        (["-9223372036854775809"], "TEXT"),
        (["12345678901234567890123456789012", "1.5"], "TEXT"),
        (["1" * 5000], "TEXT"),
        (["9007199254740992", "1.5"], "REAL"),
        (["9007199254740993", "1.5"], "TEXT"),
        (["1.5", "-9007199254740993"], "TEXT"),
        (["1e400"], "TEXT"),
    ],
)
def test_an_integer_is_never_rounded(tmp_path: Path, values: list[str], declared: str) -> None:
    (tmp_path / "t.csv").write_text("id,v\n" + "".join(f"{n},{v}\n" for n, v in enumerate(values)))
    import_delimited(tmp_path / "t.csv", tmp_path / "shop")
    stored = _exported(tmp_path / "shop", "SELECT v, upper(typeof(v)) FROM t ORDER BY id")
    make = {"INTEGER": int, "REAL": float, "TEXT": str}[declared]
    assert stored == [(make(value), declared) for value in values]


@pytest.mark.parametrize(("mark", "suffix"), [(";", "csv"), ("\t", "tsv"), ("|", "txt")])
def test_the_delimiter_is_found(tmp_path: Path, mark: str, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").write_text(
        mark.join(["a", '"x,y,z"', "id"]) + "\n" + mark.join(["1", "2,3", "4"]) + "\n"
    )
    import_delimited(tmp_path / f"t.{suffix}", tmp_path / "shop")
    assert _exported(tmp_path / "shop", "SELECT * FROM t") == [(1, "2,3", 4)]


def test_options(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes("Näme:'x:y':zip\nÄnn:'1:2':007\n".encode("latin-1"))
    import_delimited(
        tmp_path / "data.bin", tmp_path / "shop", table="a table", format="csv", key="zip", types={"ZIP": "INTEGER"},
        delimiter=":", quote_char="'", encoding="latin-1", num_shards=2,
    )  # fmt: skip
    assert _exported(tmp_path / "shop", 'SELECT * FROM "a table"') == [("Änn", "1:2", 7)]
    assert '"zip" INTEGER PRIMARY KEY' in _ddl(tmp_path / "shop")


def test_key_that_is_not_unique_or_missing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,n\n1,5\n1,6\n,7\n")
    report = import_delimited(tmp_path / "t.csv", tmp_path / "shop", key="user")
    assert report.plan.choice("t").key_columns == ("user",)
    assert "PRIMARY KEY" not in _ddl(tmp_path / "shop")
    assert sorted(_exported(tmp_path / "shop", "SELECT n FROM t WHERE user = 1")) == [(5,), (6,)]
    import_delimited(tmp_path / "t.csv", tmp_path / "shop2")
    assert _exported(tmp_path / "shop2", "SELECT id, n FROM t") == [(1, 5), (2, 6), (3, 7)]
    with ShardManager(db_dir=tmp_path / "shop2") as manager:
        assert manager.insert("t", {"n": 8}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n\n3\n", "line 4: 1 fields where the header names 2"),
        (b'a,b\n"x\ny",2\n1,2,3\n', "line 4: 3 fields"),
        (b'a,b\n1,2\n"never,closed\n1,2\n', "line .*the quote that opens in the record of line 3 is never closed"),
        (b'a,b\n1,"x"y\n', "line 2"),
        (b"a,b,A\n1,2,3\n", r"line 1: the header names 'A' twice \(columns 1 and 3\)"),
        (b"a,,c\n1,2,3\n", "line 1: column 2 of the header has no name"),
        (b"a,b\n1,2\n\xff,3\n", "line 3: not utf-8-sig text"),
    ],
)
def test_malformed_csv_names_the_line_and_creates_nothing(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        import_delimited(tmp_path / "t.csv", tmp_path / "shop")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "nope"}, "no column 'nope' to be the key: it has a, b"),
        ({"types": {"nope": "TEXT"}}, "no column 'nope' to give a type"),
        ({"types": {"a": "TEXT, x"}}, "not a column type"),
        ({"types": {"a": "TEXT); DROP"}}, "not a column type"),
        ({"delimiter": ",,"}, "one character"),
        ({"encoding": "klingon"}, "unknown text encoding"),
        ({"table": "_shardlite_x"}, "reserved"),
        ({"format": "xml"}, "unknown format 'xml'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ProgrammingError, match=message):
        import_delimited(tmp_path / "t.csv", tmp_path / "shop", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_ndjson(tmp_path: Path) -> None:
    records = [
        {"id": "a", "n": 1, "deep": {"x": [1, None]}, "mixed": 1},
        {"id": "b", "n": 2, "flag": True, "mixed": "1"},
        {"n": None, "id": "c", "f": 0.5, "big": 9007199254740993, "text": "é\u2028\0"},
    ]
    (tmp_path / "t.ndjson").write_text("\n\n".join(map(json.dumps, records)) + "\n")
    import_delimited(tmp_path / "t.ndjson", tmp_path / "shop", num_shards=3)
    assert _ddl(tmp_path / "shop").startswith(
        'CREATE TABLE "t" ("id" TEXT PRIMARY KEY, "n" INTEGER, "deep" TEXT, "mixed", '
    )
    assert _exported(tmp_path / "shop", "SELECT id, n, deep, mixed, flag, f, big, text FROM t ORDER BY id") == [
        ("a", 1, '{"x":[1,null]}', 1, None, None, None, None),
        ("b", 2, None, "1", 1, None, None, None),
        ("c", None, None, None, None, 0.5, 9007199254740993, "é\u2028\0"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ('{"a": 1}\n{"a": \n', "line 2: not a JSON object"),
        ('{"a": 1}\n\n[1]\n', r"line 3: a JSON object is expected, not '\[1\]'"),
        ('{"a": NaN}\n', "line 1: .*NaN is no JSON"),
        ('{"a": 1, "a": 2}\n', "line 1: .*one thing twice"),
        ('{"a": 1}\n{"A": 2}\n', "line 2: 'A' and 'a' are one column name"),
        ('{"a": 99999999999999999999}\n', "line 1: a = 99999999999999999999 is beyond 64 bits"),
        ('{"a": "\\ud800"}\n', "line 1: a holds half of a surrogate pair"),
        ('{"": 1}\n', "line 1: '' can't be a column's name"),
    ],
)
def test_malformed_ndjson_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        import_delimited(tmp_path / "t.jsonl", tmp_path / "shop")
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_one_more_table_of_an_existing_directory(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x\n" + "".join(f"{i},r{i}\n" for i in range(1, 101)))
    (tmp_path / "b.csv").write_text("user,x\n" + "".join(f"{i % 7},r{i}\n" for i in range(100)))
    shop = tmp_path / "shop"
    import_delimited(tmp_path / "a.csv", shop, num_shards=3)
    report = import_delimited(tmp_path / "b.csv", shop, key="user", num_shards=99)
    assert report.rows == sum(report.tables[0].rows_per_shard) == 100
    assert len(report.tables[0].rows_per_shard) == 3
    import_delimited(tmp_path / "a.csv", shop, table="c")
    assert check_database(shop).ok
    with ShardManager(db_dir=shop) as manager:
        assert manager.count("b", {"user": 3}) == 14
        assert manager.insert("c", {"x": "next"}) == 101
        assert manager.insert("b", {"user": 3, "x": "next"}) > 100
    with pytest.raises(OperationalError, match="has a table b already"):
        import_delimited(tmp_path / "b.csv", shop)
    (tmp_path / "bad.csv").write_text("id,x\n1\n")
    with pytest.raises(DataError, match="line 2"):
        import_delimited(tmp_path / "bad.csv", shop)
    assert check_database(shop).tables == 3
    assert not [p.name for p in shop.iterdir() if "importing" in p.name]


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="no such file"):
        import_delimited(tmp_path / "none.csv", tmp_path / "shop")
    (tmp_path / "t.dat").write_text("a\n1\n")
    with pytest.raises(ProgrammingError, match=r"unknown suffix '.dat'"):
        import_delimited(tmp_path / "t.dat", tmp_path / "shop")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(DatabaseError, match="is a directory"):
        import_delimited(tmp_path / "dir.csv", tmp_path / "shop")
