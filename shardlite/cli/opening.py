"""Opening a directory of shards for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardlite.cli.console import CommandFailure
from shardlite.manager import ShardManager


def require_database(directory: str) -> Path:
    """Return the directory as a path. Raises CommandFailure when it isn't a shardlite database."""
    path = Path(directory)
    if not path.exists():
        raise CommandFailure(f"{directory}: no such directory; 'shardlite init' or 'shardlite import' makes one")
    if not path.is_dir():
        raise CommandFailure(f"{directory} is a file: name the directory that holds the shards")
    if not (path / "catalog.db").exists():
        raise CommandFailure(f"{directory} holds no shardlite database: there is no catalog.db in it")
    return path


@contextmanager
def opened(directory: str) -> Iterator[ShardManager]:
    """Open an existing database for the block; its layout is read from the catalog. Never creates one."""
    path = require_database(directory)
    with ShardManager(db_dir=str(path), create=False) as manager:
        yield manager
