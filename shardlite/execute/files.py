"""The files of a directory: their names, how a shard file is made, and how one is recognised.

Every shard file carries the database's id and its own number in ``_shardlite_meta``, so that a file in the wrong place
is found out at the first connection to it, before a row is read.

====================  ====================================================================================
id                    always 1: the table has one row
database_id, shard    whose file this is, and which
epoch                 that of the catalog when the schema or layout last changed; statements compare it
watermark             the last decision of the commit log that was applied here
ids                   raised when a rowid that a process may already have drawn was given explicitly
====================  ====================================================================================
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from shardlite.connection.connection import Connection
from shardlite.connection.opening import ConnectionSettings, open_connection
from shardlite.driver import sqlite3
from shardlite.errors import ShardUnavailableError
from shardlite.router.layout import Layout

CATALOG_NAME = "catalog.db"
META_TABLE = "_shardlite_meta"
_SHARD_NAME = re.compile(r"shard_\d+\.db")
_LOOKS = 3
_LEAST_BYTES = 512
"""SQLite's smallest page."""
_META_DDL = f"""CREATE TABLE {META_TABLE} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    database_id TEXT NOT NULL,
    shard INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    ids INTEGER NOT NULL
)"""


def shard_path(directory: str, shard: int) -> str:
    """Return where a shard's file is."""
    return os.path.join(directory, f"shard_{shard}.db")


def missing_shards(directory: str, layout: Layout) -> list[int]:
    """Return the shards whose file is not there. Opens nothing."""
    return [shard for shard in layout.shard_ids if not os.path.exists(shard_path(directory, shard))]


def truncated_shards(directory: str, layout: Layout) -> list[str]:
    """Return the shard files that are too short for any database, which SQLite would take for new ones."""
    paths = (shard_path(directory, shard) for shard in layout.shard_ids)
    return [path for path in paths if os.stat(path).st_size < _LEAST_BYTES]


def orphaned_shards(directory: str) -> list[str]:
    """Return the shard files of a directory, for one that has no catalog."""
    try:
        names = sorted(name for name in os.listdir(directory) if _SHARD_NAME.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(directory, name) for name in names]


def create_shard_file(directory: str, layout: Layout, shard: int) -> None:
    """Make an empty shard file, whole or not at all; harmless when another process made it first.

    It is written under another name, closed, and only then linked into place: a file that is there is complete.
    """
    target = Path(shard_path(directory, shard))
    beside = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.new")
    try:
        conn = open_connection(beside, ConnectionSettings(encoding=layout.encoding, isolation_level=None))
        try:
            conn.run("BEGIN IMMEDIATE")
            conn.run(_META_DDL)
            values = (1, layout.database_id, shard, layout.epoch, 0, 0)
            conn.run(f"INSERT INTO {META_TABLE} VALUES (?, ?, ?, ?, ?, ?)", values)
            conn.run("COMMIT")
        finally:
            conn.close()
        with contextlib.suppress(FileExistsError):
            _put_in_place(beside, target)
    finally:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{beside}{suffix}")


def _put_in_place(beside: Path, target: Path) -> None:
    try:
        os.link(beside, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system: a rename would replace a file that another process has just made and may
        # have opened, so look first; on Windows rename itself refuses.
        if target.exists():
            raise FileExistsError(target) from None
        os.rename(beside, target)


def sync_directory(directory: str) -> None:
    """Make the names of new files durable, where the system lets a directory be synced."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verifier(path: str, layout: Layout, shard: int) -> Callable[[Connection], None]:
    """Return the check that a pool makes of each connection it opens."""

    def verify(conn: Connection) -> None:
        try:
            row = conn.fetch_row(f"SELECT database_id, shard FROM {META_TABLE}")
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            raise ShardUnavailableError(
                f"{path} is a SQLite file, but no shard of shardlite's (it has no {META_TABLE}): "
                f"shard {shard} of database {layout.database_id} was expected there"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ShardUnavailableError(f"{path}: {error}: restore shard {shard} from a backup") from error
        _require_whole(conn, path)
        if row is None:
            raise ShardUnavailableError(f"{path}: its {META_TABLE} is empty: restore shard {shard} from a backup")
        if row[0] != layout.database_id:
            raise ShardUnavailableError(
                f"{path} belongs to database {row[0]}, this directory is database {layout.database_id}: "
                f"put the right file for shard {shard} back"
            )
        if row[1] != shard:
            raise ShardUnavailableError(
                f"{path} holds shard {row[1]}, not shard {shard}: the file was renamed or swapped, put it back as "
                f"shard_{row[1]}.db"
            )

    return verify


def _require_whole(conn: Connection, path: str) -> None:
    """Raise ShardUnavailableError for a file that lost its end.

    SQLite fills the last page up with zeros and goes on. Looked at only while the -wal is empty: the file may lawfully
    be the shorter one otherwise.
    """
    whole = size = 0
    for _ in range(_LOOKS):
        row = conn.fetch_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        whole, size = row[0] if row is not None else 0, os.stat(path).st_size
        if size >= whole or _wal_size(path) > 0:
            return
    raise ShardUnavailableError(f"{path} is truncated: {size} of {whole} bytes are there: restore it from a backup")


def _wal_size(path: str) -> int:
    try:
        return os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return 0
