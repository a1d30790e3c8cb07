"""Opening a whole database to be read as one: every shard at one moment, attached to few connections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardlite.config import ShardliteConfig
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.execute.database import Database
from shardlite.execute.files import CATALOG_NAME, shard_path
from shardlite.execute.registry import NOTHING, Registered

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]  # a module's name has the type of the module

SHARDS_PER_READER = 9
"""SQLite attaches up to ten files unless built otherwise."""

_DESCRIPTORS_PER_SHARD = 5
"""A reader and a writer, each with the file and its -wal, and one -shm between them."""
_DESCRIPTORS_SPARE = 128

DatabaseOrDir = Any
"""A directory's path, a Database, or whatever has one as its ``database`` (a ShardManager)."""


def database_of(database: DatabaseOrDir) -> Database | None:
    """Return the Database that was given, itself or as a manager's; None for a path."""
    for found in (database, getattr(database, "database", None), getattr(database, "_database", None)):
        if isinstance(found, Database):
            return found
    return None


@contextlib.contextmanager
def opened(database: DatabaseOrDir) -> Iterator[Database]:
    """Give the open database; one that was opened here is closed at the end.

    :raises OperationalError: there is no database in the directory, or a shard is missing.
    """
    found = database_of(database)
    if found is not None:
        yield found
        return
    path = Path(database)
    if not (path / CATALOG_NAME).exists():
        what = "no such directory" if not path.exists() else f"it holds no {CATALOG_NAME}"
        raise OperationalError(f"{path} is no shardlite database: {what}")
    mine = Database(ShardliteConfig(db_dir=str(path), create=False))
    try:
        yield mine
    finally:
        mine.close()


@dataclass(frozen=True, slots=True)
class Reader:
    """A connection on which some shards are attached as ``s0``, ``s1`` ..."""

    conn: sqlite3.Connection
    shards: Sequence[int]

    def pin(self) -> None:
        """Begin a transaction that holds the present state of each shard."""
        self.conn.execute("BEGIN")
        for shard in self.shards:
            self.conn.execute(f"SELECT 1 FROM s{shard}.sqlite_schema LIMIT 1").fetchone()


def groups_of(shards: Sequence[int]) -> list[list[int]]:
    """Split shards into groups that fit on one connection."""
    return [list(shards[i : i + SHARDS_PER_READER]) for i in range(0, len(shards), SHARDS_PER_READER)]


def _make_room(needed: int) -> None:
    """See to it that this process may have so many descriptors: raise the soft limit up to the hard one.

    :raises OperationalError: the hard limit is lower.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OperationalError(
            f"holding all shards at one moment takes up to {needed:,} open files, and this process may have {hard:,}: "
            "raise the limit (ulimit -Hn), or do this on another machine with a copy"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextlib.contextmanager
def pinned(database: Database, main: str) -> Iterator[list[Reader]]:
    """Give readers over all shards that see one moment: no commit was under way on any shard when they were pinned.

    All shards' write locks are held for that moment, so it waits for transactions that write, and they for it.

    :param main: the main database of each reader; readers that write to it must do so one after the other.
    """
    ids = list(database.layout.shard_ids)
    _make_room(_DESCRIPTORS_PER_SHARD * len(ids) + _DESCRIPTORS_SPARE)
    with contextlib.ExitStack() as stack:
        encoding, registered = database.layout.encoding, database.registry.current
        readers = [
            open_reader(stack, database.directory, group, encoding, main, registered) for group in groups_of(ids)
        ]
        with database.write_scope(ids):
            for reader in readers:
                reader.pin()
        yield readers


def pass_over_views(conn: sqlite3.Connection) -> None:
    """Let a connection attach files whose views or triggers say ``main.``, which then means another file.

    SQLite refuses such a file whole, unless its schema may be written: then it passes over what it can't read there
    (``SQLITE_NoSchemaError``). Tables and indexes, which can't say that, are all read; views and triggers of attached
    files aren't asked for.
    """
    conn.execute("PRAGMA writable_schema = ON")


def open_reader(
    stack: contextlib.ExitStack,
    directory: str,
    shards: Sequence[int],
    encoding: str,
    main: str = "",
    registered: Registered = NOTHING,
) -> Reader:
    """Open a connection with these shards attached; ``stack`` closes it. Without ``main`` it has a temporary file.

    ``registered`` are the user's functions and collations, which the shards' tables may need.
    """
    conn = sqlite3.connect(main, uri=main.startswith("file:"), isolation_level=None, check_same_thread=False)
    stack.callback(conn.close)
    registered.apply(conn)
    conn.execute(f"PRAGMA encoding = '{encoding}'")
    for pragma in ("foreign_keys=OFF", "wal_autocheckpoint=0", "ignore_check_constraints=ON", "busy_timeout=30000"):
        conn.execute(f"PRAGMA {pragma}").fetchall()
    # The main database is private: it is thrown away when something fails.
    for pragma in ("journal_mode=OFF", "synchronous=OFF"):
        conn.execute(f"PRAGMA main.{pragma}").fetchall()
    pass_over_views(conn)
    for shard in shards:
        uri = Path(shard_path(directory, shard)).resolve().as_uri() + "?mode=rw"
        conn.execute(f"ATTACH ? AS s{shard}", (uri,))
    return Reader(conn, list(shards))
