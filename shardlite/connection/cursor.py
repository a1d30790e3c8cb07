"""The cursor of ``Connection``: each of its calls is counted on its connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

from shardlite.connection.calls import ONE
from shardlite.driver import DRIVER_NAME, sqlite3

if TYPE_CHECKING:
    from shardlite.connection.connection import Connection

Parameters = Any

_execute = sqlite3.Cursor.execute
_executemany = sqlite3.Cursor.executemany
_executescript = sqlite3.Cursor.executescript
_fetchmany = sqlite3.Cursor.fetchmany
_close_cursor = sqlite3.Cursor.close


def _counting(fetch: Callable[[sqlite3.Cursor], Any]) -> Callable[[Cursor], Any]:
    """Make a method that counts a fetch; it costs no more than one written out (measured on Python 3.11 and 3.13)."""

    @wraps(fetch)
    def call(self: Cursor) -> Any:
        conn = self.connection
        calls = conn.calls
        calls += ONE
        try:
            if conn.doomed:
                conn.refuse()
            return fetch(self)
        finally:
            del calls[-1]

    return call


class Cursor(sqlite3.Cursor):
    """A cursor that counts its calls on its connection; otherwise ``sqlite3.Cursor``."""

    connection: Connection

    fetchone = _counting(sqlite3.Cursor.fetchone)
    fetchall = _counting(sqlite3.Cursor.fetchall)
    __next__ = _counting(sqlite3.Cursor.__next__)

    def execute(self, sql: str, parameters: Parameters = (), /) -> Cursor:
        conn = self.connection
        calls = conn.calls
        calls += ONE
        try:
            if conn.doomed:
                conn.refuse()
            if sql not in conn.plain_texts:
                conn.look_at(sql)
            _execute(self, sql, parameters)
            if conn.total_changes != conn.changes_noted and not conn.in_transaction:
                conn.note_commit()
            return self
        except sqlite3.DatabaseError as error:
            conn.note_error(error)
            raise
        finally:
            del calls[-1]

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Cursor:
        return self._run_several(lambda: _executemany(self, sql, parameters))

    def executescript(self, sql_script: str, /) -> Cursor:
        self.connection.look_at(sql_script)
        return self._run_several(lambda: _executescript(self, sql_script))

    def _run_several(self, run: Callable[[], object]) -> Cursor:
        conn = self.connection
        calls = conn.calls
        calls += ONE
        try:
            if conn.doomed:
                conn.refuse()
            run()
            if not conn.in_transaction:
                conn.note_commit()
            return self
        except sqlite3.DatabaseError as error:
            conn.note_error(error)
            raise
        finally:
            del calls[-1]

    def fetchmany(self, size: int | None = None) -> list[Any]:
        conn = self.connection
        calls = conn.calls
        calls += ONE
        try:
            if conn.doomed:
                conn.refuse()
            return _fetchmany(self, self.arraysize if size is None else size)
        finally:
            del calls[-1]

    def close(self) -> None:
        conn = self.connection
        calls = conn.calls
        calls += ONE
        try:
            if not conn.doomed:  # ending the connection closes its cursors too
                _close_cursor(self)
        finally:
            del calls[-1]


class _ReturningCursor(sqlite3.Cursor):
    """Counts the rows of a statement with RETURNING, for which pysqlite3 gives the number of an earlier one.

    Ask for ``rowcount`` when all rows are read, before the connection's next statement.
    """

    @property
    def rowcount(self) -> int:
        count: int = _rowcount.__get__(self)
        if count < 0 or self.description is None:
            return count
        (changes,) = sqlite3.Cursor(self.connection).execute("SELECT changes()").fetchone()
        return int(changes)


_rowcount: Any = sqlite3.Cursor.rowcount
PlainCursor: type[sqlite3.Cursor] = sqlite3.Cursor if DRIVER_NAME == "sqlite3" else _ReturningCursor
"""For the short cuts of ``Connection``, which count their calls themselves."""

__all__ = ["Cursor", "Parameters", "PlainCursor"]
