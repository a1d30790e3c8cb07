"""The sample that ships is what its script makes, is sound, and has in it what it promises."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shardlite.driver import sqlite3

DATA = Path(__file__).parents[1] / "data"
SHIPPED = DATA / "orders.db"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_orders", DATA / "make_orders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shipped() -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect(f"{SHIPPED.as_uri()}?mode=ro", uri=True)
    yield conn
    conn.close()


def test_a_fresh_build_has_the_same_content(script: ModuleType, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    command = [sys.executable, str(DATA / "make_orders.py"), str(fresh)]
    # Another hash seed and time zone than this process: nothing may depend on them.
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Pacific/Apia"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    assert list(script.dump(fresh)) == list(script.dump(SHIPPED))


def test_a_changed_value_shows_in_the_dump(script: ModuleType, tmp_path: Path) -> None:
    changed = tmp_path / "changed.db"
    script.build(changed)
    conn = sqlite3.connect(changed)
    conn.execute("UPDATE customers SET name = name || '.' WHERE id = 1")
    conn.commit()
    conn.close()
    different = [pair for pair in zip(script.dump(changed), script.dump(SHIPPED), strict=True) if pair[0] != pair[1]]
    assert len(different) == 1


def test_it_is_sound_and_small(shipped: sqlite3.Connection) -> None:
    assert shipped.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert shipped.execute("PRAGMA foreign_key_check").fetchall() == []
    assert shipped.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert SHIPPED.stat().st_size < 3_000_000
    tables = [name for (name,) in shipped.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    rows = sum(shipped.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables)
    assert 49_000 < rows < 51_000


def test_it_has_every_feature_an_import_must_carry(shipped: sqlite3.Connection) -> None:
    schema = " ".join(sql for (sql,) in shipped.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    for feature in (
        "WITHOUT ROWID",
        "STRICT",
        "STORED",
        "VIRTUAL",
        "CREATE VIEW",
        "CREATE TRIGGER",
        "CREATE INDEX",
        "REFERENCES",
        "CHECK",
        "COLLATE NOCASE",
    ):
        assert feature in schema


def test_the_script_refuses_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, str(DATA / "make_orders.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "usage" in done.stderr
