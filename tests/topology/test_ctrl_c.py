"""Ctrl-C inside the Python functions that SQLite calls comes out as Ctrl-C, wherever it strikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nasty_sources import make

from shardlite.cli import run
from shardlite.router.layout import Layout
from shardlite.topology import check_database, export_sqlite, fingerprint, import_sqlite
from shardlite.topology.placing import PlacingFunction

DDL = """
CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE tags(word TEXT PRIMARY KEY) WITHOUT ROWID;
"""
ROWS = "INSERT INTO users VALUES (1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO tags VALUES ('x'), ('y');"


def _interrupt(*_arguments: Any) -> Any:
    raise KeyboardInterrupt


def _in_the_placing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Layout, "shard_of", lambda _self, _key_type: _interrupt)


def _before_the_placing(patch: pytest.MonkeyPatch) -> None:
    """As a signal that is handled when the function is entered: nothing in it can catch that."""
    patch.setattr(PlacingFunction, "_guarded_one", _interrupt)


def _before_the_raw_placing(patch: pytest.MonkeyPatch) -> None:
    _before_the_placing(patch)
    patch.setattr(PlacingFunction, "_raw", _interrupt)


def _in_the_hash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fingerprint, "_hash", _interrupt)


def _before_a_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fingerprint._Aggregate, "step", _interrupt)


def _at_the_end_of_an_aggregate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fingerprint._Aggregate, "finalize", _interrupt)


PLACING = [_in_the_placing, _before_the_placing, _before_the_raw_placing]
HASHING = [_in_the_hash, _before_a_step, _at_the_end_of_an_aggregate]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "app.db", DDL, ROWS)


@pytest.mark.parametrize("strike", [*PLACING, *HASHING])
def test_import(strike: Callable[[pytest.MonkeyPatch], None], source: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        strike(patch)
        with pytest.raises(KeyboardInterrupt):
            import_sqlite(source, tmp_path / "shop")
        assert run(["import", str(source), str(tmp_path / "shop")]) == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["app.db"]


@pytest.mark.parametrize("strike", PLACING)
def test_check(strike: Callable[[pytest.MonkeyPatch], None], source: Path, tmp_path: Path) -> None:
    import_sqlite(source, tmp_path / "shop")
    with pytest.MonkeyPatch.context() as patch:
        strike(patch)
        with pytest.raises(KeyboardInterrupt):
            check_database(tmp_path / "shop")
        assert run(["check", str(tmp_path / "shop")]) == 130
    assert check_database(tmp_path / "shop").ok


@pytest.mark.parametrize("strike", HASHING)
def test_export(strike: Callable[[pytest.MonkeyPatch], None], source: Path, tmp_path: Path) -> None:
    import_sqlite(source, tmp_path / "shop")
    with pytest.MonkeyPatch.context() as patch:
        strike(patch)
        with pytest.raises(KeyboardInterrupt):
            export_sqlite(tmp_path / "shop", tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()
