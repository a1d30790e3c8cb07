"""A shard that is a SQLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shardlite.connection import ConnectionPool
from shardlite.connection.busy import begin_immediate, is_busy, retry_busy
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import DataError, Error, ShardUnavailableError, counterpart
from shardlite.shard.protocol import Parameters, Shard

T = TypeVar("T")
_SHOWN_SQL = 200
_UNBINDABLE = (OverflowError, UnicodeEncodeError)


def shorten(sql: str) -> str:
    """Return SQL text short enough for a message."""
    return sql if len(sql) <= _SHOWN_SQL else sql[: _SHOWN_SQL - 3] + "..."


def _real_error(error: sqlite3.Error) -> BaseException:
    """Return what went wrong with a value, where the driver reports the connection's last error in its place.

    CPython does so since 3.11 when an earlier statement of the connection failed, and leaves the error of the value as
    the context. It never passed through a frame; an exception that the caller is handling has.
    """
    context = error.__context__
    known = isinstance(context, (sqlite3.Error, *_UNBINDABLE)) and context.__traceback__ is None
    return context if known and context is not None else error


class SqliteShard:
    """One shard file behind its pool. See ``Shard`` for what each method promises.

    The reads are written out: a call more would be a share of a point SELECT that can be measured.
    """

    __slots__ = ("_all", "_gate", "_row", "_some", "_write", "id", "name", "pool", "timeout_s")

    def __init__(self, shard_id: int, pool: ConnectionPool, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.id = shard_id
        self.pool = pool
        self.name = pool.path
        self._gate = pool.gate
        self._row = pool.express_row
        self._all = pool.express_all
        self._some = pool.express_some
        self._write = pool.express_write

    def fetch_row(self, sql: str, params: Parameters, timeout_s: float | None = None) -> tuple[Any, ...] | None:
        began = monotonic()
        try:
            return self._row(sql, params, timeout_s)
        except sqlite3.Error as error:
            self._fail_unless_busy(error, sql)
        except _UNBINDABLE as error:
            self.fail_value(error, sql)
        return self._retry(self._row, sql, params, began + (self.timeout_s if timeout_s is None else timeout_s))

    def fetch_all(self, sql: str, params: Parameters, timeout_s: float | None = None) -> list[tuple[Any, ...]]:
        began = monotonic()
        try:
            return self._all(sql, params, timeout_s)
        except sqlite3.Error as error:
            self._fail_unless_busy(error, sql)
        except _UNBINDABLE as error:
            self.fail_value(error, sql)
        return self._retry(self._all, sql, params, began + (self.timeout_s if timeout_s is None else timeout_s))

    def fetch_some(self, sql: str, params: Parameters, timeout_s: float | None = None) -> list[tuple[Any, ...]] | None:
        """Run one statement that reads and return all its rows; None where they are too many to be held."""
        began = monotonic()
        try:
            return self._some(sql, params, timeout_s)
        except sqlite3.Error as error:
            self._fail_unless_busy(error, sql)
        except _UNBINDABLE as error:
            self.fail_value(error, sql)
        return self._retry(self._some, sql, params, began + (self.timeout_s if timeout_s is None else timeout_s))

    def write_once(self, sql: str, params: Parameters, timeout_s: float | None = None) -> tuple[int, int | None]:
        """Run one statement that writes, alone in its transaction. Return (rows changed, last rowid).

        The shard's gate is taken first, so that writers queue without holding a connection each.
        """
        gate = self._gate
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = monotonic() + limit_s
        gate.acquire(limit_s)
        try:
            return self._write(sql, params, max(0.0, deadline - monotonic()))
        except sqlite3.Error as error:
            self._fail_unless_busy(error, sql)
            return self._retry(self._write, sql, params, deadline)
        except _UNBINDABLE as error:
            self.fail_value(error, sql)
        finally:
            gate.release()

    @contextmanager
    def reading(self, timeout_s: float | None = None) -> Iterator[Connection]:
        """Hold a connection to read with."""
        conn = self.pool.acquire(timeout_s)
        try:
            yield conn
        finally:
            self.pool.release(conn)

    def begin_write(self, conn: Connection, timeout_s: float) -> None:
        """Take the file's write lock; the gate is the caller's business."""
        try:
            begin_immediate(conn, monotonic() + timeout_s)
        except sqlite3.Error as error:
            self.fail(error, "BEGIN IMMEDIATE")

    def fail(self, error: sqlite3.Error, sql: str) -> NoReturn:
        """Raise shardlite's error for the driver's, with the shard and the SQL that ran there."""
        if isinstance(error, Error):
            raise error
        real = _real_error(error)
        if not isinstance(real, sqlite3.Error):
            self.fail_value(real, sql)
        error, shown = real, shorten(sql)
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")):
            raise ShardUnavailableError(f"shard {self.id} ({self.name}): {error}") from error
        raise counterpart(error, f"shard {self.id}: {shown}") from error

    def fail_value(self, error: BaseException, sql: str) -> NoReturn:
        """Raise DataError for a value that SQLite can't hold: an int beyond 64 bits, a text that is no Unicode."""
        raise DataError(f"a value can't be stored: {error} [shard {self.id}: {shorten(sql)}]") from error

    def _fail_unless_busy(self, error: sqlite3.Error, sql: str) -> None:
        if not is_busy(error) or _real_error(error) is not error:
            self.fail(error, sql)

    def _retry(self, call: Callable[..., T], sql: str, params: Parameters, deadline: float) -> T:
        """Poll until another process lets go of the file; the gate has seen to this process's own writers."""
        try:
            return retry_busy(
                lambda: call(sql, params, max(0.0, deadline - monotonic())),
                deadline,
                lambda: f"for shard {self.id} ({self.name})",
            )
        except sqlite3.Error as error:
            self.fail(error, sql)

    def close(self, timeout_s: float | None = None) -> None:
        """End every connection to the file."""
        if timeout_s is None:
            self.pool.close_all()
        else:
            self.pool.close_all(timeout_s)


if TYPE_CHECKING:

    def _is_a_shard(shard: SqliteShard) -> Shard:
        return shard
