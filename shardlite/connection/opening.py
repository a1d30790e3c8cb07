"""How a connection is opened: one small function per setting, applied in the order of ``SETTINGS``."""

from __future__ import annotations

import errno
import os
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from shardlite.config import check_seconds
from shardlite.connection.busy import retry_busy
from shardlite.connection.connection import Connection
from shardlite.driver import SQLITE_VERSION, has_wal_reset_bug, sqlite3
from shardlite.errors import (
    Error,
    OperationalError,
    ProgrammingError,
    ShardUnavailableError,
    WalResetBugWarning,
    counterpart,
)

IsolationLevel = Literal["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None
"""As ``sqlite3.connect`` takes it; "" and "DEFERRED" mean the same."""

_SYNCHRONOUS: Final = {"full": 2, "normal": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How the connections to a file are set up.

    :param durability: "full" syncs at each commit; "normal" may lose the last commits in a power failure, no more.
    :param busy_timeout: seconds that SQLite waits for a lock of another connection in ``get_connection`` mode.
    :param isolation_level: as ``sqlite3``: "" begins transactions by itself, None is autocommit.
    :param create: create the file when it is missing.
    :param encoding: the text encoding of a file that is created: "UTF-8", "UTF-16le" or "UTF-16be".
    :param trusted_schema: let views and triggers of the file call any function and write to virtual tables such as
        FTS5; off, a file that somebody else made can't use the application's own functions against it.
    :param cached_statements: how many prepared statements a connection keeps.
    :param open_timeout: seconds to wait for other processes that are opening, recovering or closing the file.
    """

    durability: str = "full"
    busy_timeout: float = 30.0
    isolation_level: IsolationLevel = ""
    create: bool = True
    encoding: str | None = None
    trusted_schema: bool = False
    cached_statements: int = 128
    open_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.durability not in _SYNCHRONOUS:
            raise ProgrammingError(f"durability must be 'full' or 'normal', not {self.durability!r}")
        check_seconds("busy_timeout", self.busy_timeout)
        if self.encoding not in (None, "UTF-8", "UTF-16", "UTF-16le", "UTF-16be"):
            raise ProgrammingError(f"encoding must be UTF-8, UTF-16le or UTF-16be, not {self.encoding!r}")


def _set_encoding(conn: Connection, settings: ConnectionSettings) -> None:
    """Choose the text encoding; SQLite ignores it for a file that has content."""
    if settings.encoding is not None:
        conn.fetch_all(f"PRAGMA encoding = '{settings.encoding}'")


def _set_wal(conn: Connection, settings: ConnectionSettings) -> None:
    """Use the write-ahead log: readers don't block writers."""
    row = conn.fetch_row("PRAGMA journal_mode = WAL")
    if row is None or row[0] != "wal":
        raise OperationalError(
            f"{conn.path} can't use the write-ahead log (its journal mode stays {row[0] if row else 'unknown'!r}): "
            "the file system must support shared memory, and the file must be writable"
        )


def _set_no_autocheckpoint(conn: Connection, settings: ConnectionSettings) -> None:
    """Leave checkpoints to the pool's checkpointer (https://sqlite.org/wal.html#walresetbug)."""
    conn.fetch_all("PRAGMA wal_autocheckpoint = 0")


def _set_synchronous(conn: Connection, settings: ConnectionSettings) -> None:
    """Sync at every commit ("full") or only at checkpoints ("normal")."""
    conn.fetch_all(f"PRAGMA synchronous = {_SYNCHRONOUS[settings.durability]}")


def _set_foreign_keys(conn: Connection, settings: ConnectionSettings) -> None:
    """Enforce foreign keys, which SQLite leaves off."""
    conn.fetch_all("PRAGMA foreign_keys = ON")


def _set_trusted_schema(conn: Connection, settings: ConnectionSettings) -> None:
    """Say whether views and triggers of the file may call functions with side effects and use virtual tables."""
    conn.fetch_all(f"PRAGMA trusted_schema = {'ON' if settings.trusted_schema else 'OFF'}")


def _set_busy_timeout(conn: Connection, settings: ConnectionSettings) -> None:
    """Let SQLite wait for other connections' locks."""
    set_polling(conn, False, settings)


Setting = Callable[[Connection, ConnectionSettings], None]

AT_OPEN: tuple[Setting, ...] = (_set_encoding, _set_wal)
"""Once: what is stored in the file."""

SETTINGS: tuple[Setting, ...] = (
    _set_no_autocheckpoint,
    _set_synchronous,
    _set_foreign_keys,
    _set_trusted_schema,
)
"""At open, and again when a user may have changed them."""


def set_polling(conn: Connection, polling: bool, settings: ConnectionSettings) -> None:
    """Switch between SQLite's busy handler and polling (SQLite's busy timeout 0: BUSY comes back at once)."""
    milliseconds = 0 if polling else max(1, int(settings.busy_timeout * 1000))
    conn.fetch_all(f"PRAGMA busy_timeout = {min(milliseconds, 2**31 - 1)}")
    conn.polling = polling


def restore_settings(conn: Connection, settings: ConnectionSettings) -> None:
    """Undo what a user may have set: pragmas, hooks, factories."""
    conn.set_authorizer(None)
    conn.set_progress_handler(None, 0)
    conn.set_trace_callback(None)
    if hasattr(conn, "autocommit"):
        conn.autocommit = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL")  # noqa: B009  Python 3.11 has no such name
    _set_factories(conn, settings)
    conn.fetch_all("PRAGMA query_only = OFF")
    conn.fetch_all("PRAGMA ignore_check_constraints = OFF")
    conn.fetch_all("PRAGMA defer_foreign_keys = OFF")
    conn.fetch_all("PRAGMA recursive_triggers = OFF")
    for apply in SETTINGS:
        apply(conn, settings)
    set_polling(conn, conn.polling, settings)
    conn.altered = False


def _set_factories(conn: Connection, settings: ConnectionSettings) -> None:
    conn.row_factory = sqlite3.Row
    conn.text_factory = str
    conn.isolation_level = _named(settings.isolation_level)


def _named(level: IsolationLevel) -> Any:
    return level  # the type stubs know no ""


def open_connection(
    path: str | os.PathLike[str], settings: ConnectionSettings, timeout_s: float | None = None
) -> Connection:
    """Open a file and return a connection with all settings applied, its busy handler set.

    Waits up to ``timeout_s`` seconds (None: ``settings.open_timeout``) for other processes that recover or close it.

    :raises ShardUnavailableError: the file or its directory is missing, unreadable, or not a database.
    :raises OperationalError: as the above, or locked for too long.
    """
    warn_of_wal_reset_bug()
    name = os.path.abspath(os.fspath(path))
    refused = refused_files and (refused_files.get("*") or refused_files.get(os.path.realpath(name)))
    if refused:
        raise OperationalError(refused)
    started = time.monotonic()
    try:
        conn = _connect(name, settings)
    except sqlite3.Error as error:
        raise _explained(error, name, settings) from error
    try:
        conn.path = name
        _apply_all(conn, settings, started + (settings.open_timeout if timeout_s is None else timeout_s))
    except BaseException as error:
        conn.base_close()
        if isinstance(error, sqlite3.Error):
            raise _explained(error, name, settings) from error
        raise
    return conn


def _connect(name: str, settings: ConnectionSettings) -> Connection:
    mode = "rwc" if settings.create else "rw"
    uri = f"file:{urllib.parse.quote(name.replace(os.sep, '/'))}?mode={mode}"
    if os.name == "nt":  # a drive letter needs a slash before it
        uri = f"file:///{urllib.parse.quote(name.replace(os.sep, '/'), safe='/:')}?mode={mode}"
    return sqlite3.connect(
        uri,
        uri=True,
        timeout=0.0,
        check_same_thread=False,  # who may have it is the pool's decision; closing is done by any thread
        isolation_level=_named(settings.isolation_level),
        cached_statements=settings.cached_statements,
        factory=Connection,
    )


def _apply_all(conn: Connection, settings: ConnectionSettings, deadline: float) -> None:
    for apply in AT_OPEN + SETTINGS:

        def call(apply: Setting = apply) -> None:
            apply(conn, settings)

        retry_busy(call, deadline, f"to open {conn.path}")
    _set_factories(conn, settings)
    _set_busy_timeout(conn, settings)
    conn.identity = file_identity(conn.path)
    conn.unclean = conn.altered = conn.suspect = False
    conn.changes_seen = conn.total_changes


def file_identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from another one at the same path, None when it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _explained(error: sqlite3.Error, name: str, settings: ConnectionSettings) -> Error:
    """Name the file and, where it can be found out, the cause."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
        return ShardUnavailableError(f"{name} is not a SQLite database: {error}")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
        return ShardUnavailableError(f"{name} is damaged: {error}: restore it from a backup")
    cause = find_cause(name, settings.create)
    made: Error = (
        ShardUnavailableError(f"can't open {name}: {cause}") if cause else counterpart(error, f"opening {name}")
    )
    for attribute in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, attribute):
            setattr(made, attribute, getattr(error, attribute))
    return made


def find_cause(name: str, create: bool) -> str:
    """Say why a file can't be opened, "" when nothing is found (SQLite only says "unable to open")."""
    directory = os.path.dirname(name)
    if not os.path.isdir(directory):
        return f"its directory {directory} does not exist"
    if os.path.isdir(name):
        return "it is a directory"
    if not os.path.exists(name):
        if not create:
            return "the file does not exist"
        if not os.access(directory, os.W_OK | os.X_OK):
            return f"its directory {directory} is not writable"
    elif not os.access(name, os.R_OK):
        return "no permission to read it"
    elif not os.access(name, os.W_OK):
        return "no permission to write to it"
    elif not os.access(directory, os.W_OK | os.X_OK):
        return f"its directory {directory} is not writable, and the write-ahead log needs that"
    return ""


TRANSIENT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    }
)


def may_pass(error: BaseException) -> bool:
    """Tell whether opening again later may succeed: no cause was found that only a person can remove."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR)
    if isinstance(error, ShardUnavailableError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in TRANSIENT


refused_files: dict[str, str] = {}
"""Real path -> why this process must not open it (it was forked while a connection to it was in use)."""

_warned = threading.Lock()


def warn_of_wal_reset_bug() -> None:
    """Warn, once per process, where the SQLite in use has the WAL-reset bug."""
    if has_wal_reset_bug() and _warned.acquire(blocking=False):
        warnings.warn(
            f"SQLite {'.'.join(map(str, SQLITE_VERSION))} has the WAL-reset bug "
            "(https://sqlite.org/wal.html#walresetbug). shardlite runs all checkpoints itself, which avoids it as long "
            "as no other program checkpoints the files; SQLite 3.51.3 or later is free of it "
            "(SHARDLITE_DRIVER=pysqlite3 uses the one from PyPI)",
            WalResetBugWarning,
            stacklevel=3,
        )


__all__ = ["ConnectionSettings", "WalResetBugWarning", "open_connection"]
