"""A manager on a temporary directory, and the proof that it left nothing open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_file import close_opened
from open_files import open_files_under

from shardlite import ShardManager


@pytest.fixture
def make_manager(tmp_path: Path) -> Iterator[Callable[..., ShardManager]]:
    """Open managers; all are shut down at the end, and then no file may be open and no -wal or -shm be left."""
    made: list[ShardManager] = []

    def make(db_dir: str = "db", **options: Any) -> ShardManager:
        options.setdefault("durability", "normal")
        manager = ShardManager(db_dir=tmp_path / db_dir, **options)
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.shutdown()
    assert open_files_under(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*") if path.name.endswith(("-wal", "-shm"))] == []


@pytest.fixture(params=[1, 3, 8])
def manager(request: pytest.FixtureRequest, make_manager: Callable[..., ShardManager]) -> ShardManager:
    """A new database of 1, 3 and 8 shards."""
    return make_manager(num_shards=request.param)


@pytest.fixture(autouse=True)
def _closed_files() -> Iterator[None]:
    yield
    close_opened()
