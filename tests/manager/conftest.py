"""A manager on a temporary directory, and the proof that it left nothing open."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager


def open_files_under(directory: Path) -> list[str]:
    """Return the descriptors of this process that lead below a directory (Linux; elsewhere nothing is known)."""
    if not os.path.isdir("/proc/self/fd"):
        return []
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


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
