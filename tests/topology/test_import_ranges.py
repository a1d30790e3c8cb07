"""Import by a range strategy: what can't be placed is refused before anything is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from shardlite import DirectoryStrategy, RangeStrategy, ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.topology.importer import import_sqlite, plan_import

KEYS = {"numbers": "n", "words": "w", "pairs": ("w", "n")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(
            "CREATE TABLE numbers (n INTEGER PRIMARY KEY, v); CREATE TABLE words (w TEXT COLLATE NOCASE, v);"
            "CREATE TABLE pairs (w TEXT, n INTEGER); CREATE TABLE anything (a PRIMARY KEY)"
        )
        for n in range(40):
            conn.execute("INSERT INTO numbers VALUES (?, 'x')", (n,))
            conn.execute("INSERT INTO words VALUES (?, 'x')", (f"w{n}",))
            conn.execute("INSERT INTO pairs VALUES (?, ?)", (f"w{n % 5}", n))
            conn.execute("INSERT INTO anything VALUES (?)", (n if n % 2 else f"a{n}",))
        conn.commit()
    return path


@pytest.mark.parametrize(
    ("table", "boundaries", "words"),
    [
        ("numbers", ["m"], r"numbers: its key \(n\): n is INTEGER, and the boundary 'm' is not"),
        ("numbers", [10, "m"], r"numbers: .*the boundary 'm' is not"),
        ("numbers", [b"\x05"], r"numbers: .*the boundary b'\\x05' is not"),
        ("words", [10], r"words: its key \(w\): w is TEXT, and the boundary 10 is not"),
        ("words", ["B", "a"], r"words: its key \(w\) can't be placed.*'a' comes after 'B'"),
        ("pairs", [("b", "c")], r"pairs: its key \(w, n\): n is INTEGER, and the boundary \('b', 'c'\) is not"),
        ("pairs", [("b", 1, 2)], r"pairs: .*\('b', 1, 2\)"),
        ("numbers", [(5, 6)], r"numbers: .*\(5, 6\)"),
    ],
)
def test_a_boundary_of_another_type_is_refused_first(
    source: Path, tmp_path: Path, table: str, boundaries: list[Any], words: str
) -> None:
    others = [name for name in ("numbers", "words", "pairs", "anything") if name != table]
    strategy = RangeStrategy(boundaries)
    before = sorted(tmp_path.iterdir())
    for wrapped in (strategy, DirectoryStrategy({}, strategy)):
        arguments: dict[str, Any] = {"num_shards": len(boundaries) + 1, "strategy": wrapped}
        for run in (plan_import, lambda path, **options: import_sqlite(path, tmp_path / "db", **options)):
            with pytest.raises(NotSupportedError, match=words):
                run(source, keys={table: KEYS[table]}, single=others, **arguments)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("table", "boundaries"),
    [
        ("numbers", [10, 20.5]),
        ("numbers", ["10", "20"]),
        ("numbers", [None, 10]),
        ("words", ["a", "w2"]),
        ("pairs", ["w1", ("w3", 5)]),
    ],
)
def test_boundaries_of_the_keys_type(source: Path, tmp_path: Path, table: str, boundaries: list[Any]) -> None:
    others = [name for name in ("numbers", "words", "pairs", "anything") if name != table]
    import_sqlite(
        source,
        tmp_path / "db",
        num_shards=3,
        strategy=RangeStrategy(boundaries),
        keys={table: KEYS[table]},
        single=others,
    )
    with ShardManager(db_dir=tmp_path / "db", durability="normal") as manager:
        assert manager.check().ok
        assert manager.count(table) == 40


def test_a_column_without_a_type_takes_any_boundary(source: Path, tmp_path: Path) -> None:
    strategy = RangeStrategy([5, "a2"])
    others = ["numbers", "words", "pairs"]
    import_sqlite(source, tmp_path / "db", num_shards=3, strategy=strategy, keys={"anything": "a"}, single=others)
    with ShardManager(db_dir=tmp_path / "db", durability="normal") as manager:
        assert manager.check().ok
        assert all(manager.get_shard_info()[shard]["rows"] for shard in manager.shard_ids)
