"""A directory beside the target in which a database is made, put in its place by one rename when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.execute.files import CATALOG_NAME, sync_directory
from shardlite.topology.source import StrPath

_LOCK_NAME = "import.lock"


def workspace_of(target: StrPath) -> Path:
    """Return the directory in which an import into ``target`` works: ``.<name>.importing`` beside it."""
    path = Path(os.path.abspath(target))
    return path.with_name(f".{path.name}.importing")


@contextlib.contextmanager
def building(target: StrPath, *, durable: bool = True) -> Iterator[Path]:
    """Give an empty directory; at the end of the block it becomes ``target``. On an exception it is removed.

    What an earlier, interrupted run left there is removed first. Of two at the same time the second is refused. Nothing
    of ``target`` is touched before the end.

    :param durable: sync every file and the directories before and after the rename.
    :raises OperationalError: the target exists and is not an empty directory, can't be written, or another import
        into it is running.
    """
    path = Path(os.path.abspath(target))
    require_free(path)
    workspace = workspace_of(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(workspace)
    try:
        yield workspace
        lock.close()
        (workspace / _LOCK_NAME).unlink(missing_ok=True)
        require_free(path)
        with _explained(path):
            if durable:
                _sync_files(workspace)
            if path.exists():
                path.rmdir()
            os.rename(workspace, path)
            if durable:
                sync_directory(str(path.parent))
    except BaseException:
        lock.close()
        shutil.rmtree(workspace, ignore_errors=True)
        raise


def require_free(target: Path) -> None:
    """Raise OperationalError unless the target is missing or an empty directory."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OperationalError(f"{target} exists and is no directory: choose another place")
    with _explained(target), os.scandir(target) as entries:
        found = next(entries, None)
    if found is not None:
        what = "a shardlite database" if (target / CATALOG_NAME).exists() else found.name
        raise OperationalError(
            f"{target} exists and is not empty (it holds {what}): import into a new directory, or remove it first"
        )


def _lock(workspace: Path) -> sqlite3.Connection:
    """Make the workspace empty and hold its lock. A SQLite lock ends with its process, on every system."""
    if workspace.exists() and not (workspace / _LOCK_NAME).exists() and any(workspace.iterdir()):
        raise OperationalError(f"{workspace} is in the way and no import made it: remove or rename it")
    workspace.mkdir(exist_ok=True)
    conn = sqlite3.connect(workspace / _LOCK_NAME, timeout=0, isolation_level=None)
    try:
        conn.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        conn.close()
        if "locked" in str(error):
            raise OperationalError(f"another import works in {workspace}: wait until it has ended") from error
        raise
    for entry in workspace.iterdir():
        if not entry.name.startswith(_LOCK_NAME):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return conn


def _sync_files(directory: Path) -> None:
    """Sync every file of a directory that nobody has open."""
    for entry in directory.iterdir():
        descriptor = os.open(entry, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(str(directory))


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperationalError(f"can't write {target}: {error.strerror or error} ({error.filename})") from error
