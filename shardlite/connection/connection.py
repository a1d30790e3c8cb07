"""The one connection class: a ``sqlite3.Connection`` that may be ended while another thread is using it.

Closing a plain connection that another thread is inside crashes the interpreter, because the close frees the
statement that the other one is stepping through. So every call that enters SQLite is counted while it lasts
(``calls``), and ending a connection is three steps, in this order (``end_connection``): mark it *doomed*, interrupt
until no call is in flight, close. A call first counts itself and then looks at the mark, the closer first sets the
mark and then looks at the count; so at least one of them sees the other.

The count is a list that grows by ``calls += ONE`` and shrinks by ``del calls[-1]``: both are one uninterruptible
step of the interpreter, a method call is not (a KeyboardInterrupt may strike when it returns).

Cursors are remembered weakly, since an open one survives ``rollback()`` (Python 3.11) and would hold a read
transaction, and with it the write-ahead log, after the connection went back to its pool.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from shardlite.connection.blob import Blob, blobopen, tracking
from shardlite.connection.calls import (
    FORKING,
    ONE,
    all_connections,
    altering,
    counted,
    enter_sqlite,
    fork_pause,
    leave_sqlite,
    registering,
    watched,
)
from shardlite.connection.closing import end_connection
from shardlite.connection.cursor import Cursor, Parameters, PlainCursor
from shardlite.driver import sqlite3
from shardlite.errors import PoolClosedError, ProgrammingError

if TYPE_CHECKING:
    from shardlite.connection.thread_end import ThreadLife

Row = tuple[Any, ...]

_MANY_CURSORS: Final = 64
_MANY_TEXTS: Final = 500
_LEAVES_A_MARK: Final = re.compile(r"\b(pragma|attach|detach|temp|temporary)\b", re.IGNORECASE)

_close_cursor = sqlite3.Cursor.close
_close_connection = sqlite3.Connection.close
_make_cursor = sqlite3.Connection.cursor

Holder = tuple["ThreadLife", float, CodeType, int]
"""Who has a connection: the thread, since when (the pool's clock), and the code and the instruction that took it."""


class Connection(sqlite3.Connection):
    """A ``sqlite3.Connection`` of a pool (or of a thread): counted, able to be ended by others, and reset on return.

    Use it in one thread at a time. Beside the interface of ``sqlite3`` it has ``fetch_row``, ``fetch_all``,
    ``fetch_some``, ``run``, ``run_many`` and ``stream``: short cuts that give plain tuples whatever the
    ``row_factory``. After its pool was closed every call raises PoolClosedError.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[None] = []
        self.was_opened = False
        """Closing one that was never opened crashes pysqlite3."""
        self.doomed = ""
        self.closing: dict[int, object] = {}
        """Empty until somebody closes the connection: whose ``setdefault`` fills it is the one."""
        self.cursors: list[weakref.ref[Any]] = []
        self.plain_texts: set[str] = set()
        self.unclean = True
        """Something happened that the return to the pool has to look at."""
        self.altered = False
        """Settings may differ from those it was opened with."""
        self.suspect = False
        """An error came that may mean that the connection or its file is damaged."""
        self.leftover = ""
        """What can't be undone (an attached database, a temporary table): the connection isn't used again."""
        self.context: weakref.ref[object] | None = None
        """The ``with`` block that has it; when that is gone without having given it back, it is lost."""
        self.polling = False
        self.changes_seen = 0
        """``total_changes`` at the last return to the pool."""
        self.changes_noted = 0
        """``total_changes`` when the checkpointer last heard of a commit."""
        self.after_commit: Callable[[Connection], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the connection has been closed by ``end_connection``."""
        self.path = ""
        self.identity: tuple[int, int] | None = None
        self.number = 0
        self.holder: Holder | None = None
        self.opener: ThreadLife | None = None
        self.pool_ref: object = None
        self.opened_at = 0.0
        self.idle_since = 0.0
        self.uses = 0
        self.returns = 0
        self.expires_at = 0.0
        self.generation = 0
        """The pool's when it was opened; -1 when its user registered a function or collation on it."""
        self._inner: sqlite3.Cursor | None = None
        enter_sqlite()
        try:
            super().__init__(*args, **kwargs)
            self.was_opened = True
            all_connections.add(self)
        finally:
            leave_sqlite()

    # ---- for users: the interface of sqlite3, counted

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor; ``factory`` must make ``shardlite.connection.Cursor`` objects."""
        if self.doomed:
            calls = self.calls
            calls += ONE
            try:
                self.refuse()
            finally:
                del calls[-1]
        self.unclean = True
        cursor = _make_cursor(self, Cursor if factory is None else factory)
        if factory is not None and not isinstance(cursor, Cursor):
            raise ProgrammingError(
                f"the cursor factory {factory!r} made a {type(cursor).__name__}: derive it from "
                "shardlite.connection.Cursor, which counts the calls in flight"
            )
        self.track(cursor)
        return cursor

    def execute(self, sql: str, parameters: Parameters = (), /) -> Cursor:
        """Run one statement on a new cursor and return it."""
        cursor: Cursor = self.cursor()
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Cursor:
        """Run one statement for each of ``parameters`` on a new cursor and return it."""
        cursor: Cursor = self.cursor()
        return cursor.executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Cursor:
        """Run several statements on a new cursor and return it."""
        cursor: Cursor = self.cursor()
        return cursor.executescript(sql_script)

    def commit(self) -> None:
        """Commit the open transaction, if there is one."""
        if self.in_transaction:
            _commit(self)
            self.note_commit()

    def backup(self, target: sqlite3.Connection, **options: Any) -> None:
        """Copy this database into ``target``; both connections count as in use meanwhile."""
        if isinstance(target, Connection):
            counted(lambda _, *args: _backup(self, *args, **options))(target, target)
        else:
            _backup(self, target, **options)

    def close(self) -> None:
        """Close the connection for good; its pool opens another one in its place. May be repeated."""
        end_connection(self, "it was closed by its user")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if error is None:
            try:
                self.commit()
            except BaseException:
                self.rollback()
                raise
        else:
            self.rollback()
        return False

    # ---- for the layers above: plain tuples, one counted call each
    #
    # Each writes the counting out: a shared helper would be a further call of Python for each statement (measured on a
    # point SELECT: between nothing on Python 3.11 and 4 % on 3.13), and would hide their signatures.

    def fetch_row(self, sql: str, params: Parameters = ()) -> Row | None:
        """Run one statement and return its first row as a tuple, or None; the statement is left reset."""
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            cursor = self._inner or self._make_inner()
            row: Row | None = cursor.execute(sql, params).fetchone()
            if row is not None and cursor.fetchone() is not None:
                self._drop_inner()
            return row
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    def fetch_all(self, sql: str, params: Parameters = ()) -> list[Row]:
        """Run one statement and return all its rows as tuples."""
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            return (self._inner or self._make_inner()).execute(sql, params).fetchall()
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    def fetch_some(self, sql: str, params: Parameters, most: int) -> list[Row] | None:
        """Run one statement and return its rows as tuples, None where they are ``most`` or more."""
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            rows = (self._inner or self._make_inner()).execute(sql, params).fetchmany(most)
            if len(rows) < most:
                return rows
            self._drop_inner()
            return None
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    def run(self, sql: str, params: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement; the cursor's ``rowcount`` and ``lastrowid`` are valid until the next short cut."""
        self.unclean = True
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            return (self._inner or self._make_inner()).execute(sql, params)
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    def run_many(self, sql: str, rows: Iterable[Parameters]) -> int:
        """Run one statement for each of ``rows`` and return how many rows it changed."""
        self.unclean = True
        calls = self.calls
        calls += ONE
        try:
            if self.doomed:
                self.refuse()
            return (self._inner or self._make_inner()).executemany(sql, rows).rowcount
        except sqlite3.DatabaseError as error:
            self.note_error(error)
            raise
        finally:
            del calls[-1]

    def stream(self, sql: str, params: Parameters = ()) -> Cursor:
        """Run one statement and return a new cursor over its rows, as tuples."""
        self.unclean = True
        cursor = Cursor(self)
        self.track(cursor)
        return cursor.execute(sql, params)

    # ---- for the pool

    @property
    def in_use(self) -> bool:
        """Whether a call is inside SQLite at this moment."""
        return bool(self.calls)

    @property
    def has_inner(self) -> bool:
        """Whether the cursor of the short cuts exists; it refers to the connection."""
        return self._inner is not None

    @property
    def has_open_cursors(self) -> bool:
        """Whether a cursor exists that may be in the middle of a statement."""
        return self._inner is not None or any(ref() is not None for ref in self.cursors)

    def refuse(self) -> None:
        """Raise PoolClosedError if the connection is doomed; hold the call up while the process forks.

        For a counted call; while held up it isn't counted.
        """
        while self.doomed is FORKING:
            calls = self.calls
            del calls[-1]
            try:
                fork_pause.wait()
            finally:
                calls += ONE
        if self.doomed:
            raise PoolClosedError(
                f"this connection to {self.path or 'a database'} is closed: {self.doomed}: take a new one from its pool"
            )

    def look_at(self, sql: str) -> None:
        """Note what a statement's text says about settings that outlive a transaction."""
        found = _LEAVES_A_MARK.search(sql) if isinstance(sql, str) else None
        if found:
            if found[1].lower() == "pragma":
                self.altered = True
            self.leftover = self.leftover or "unknown"
            return
        if len(self.plain_texts) >= _MANY_TEXTS:
            self.plain_texts.clear()
        self.plain_texts.add(sql)

    def note_commit(self) -> None:
        """Tell the checkpointer that a transaction of a user was committed."""
        self.changes_noted = self.total_changes
        if self.after_commit is not None:
            self.after_commit(self)

    def note_error(self, error: sqlite3.DatabaseError) -> None:
        """Remember that a statement failed in a way that may mean more than a bad statement."""
        self.unclean = True
        if not isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)):
            self.suspect = True

    def track(self, thing: object) -> None:
        """Remember a cursor or a blob weakly, so that it can be closed when the connection is returned."""
        cursors = self.cursors
        if len(cursors) >= _MANY_CURSORS:
            alive = [ref for ref in cursors if ref() is not None]
            cursors[:] = alive
        cursors.append(weakref.ref(thing))

    def close_cursors(self) -> None:
        """Close what is still open of cursors and blobs; no call may be in flight."""
        cursors, self.cursors = self.cursors, []
        for ref in cursors:
            thing = ref()
            if thing is not None:
                _close_cursor(thing) if isinstance(thing, sqlite3.Cursor) else thing.end()
        self._drop_inner()

    def base_close(self) -> None:
        """Close without asking anybody; no call may be in flight."""
        self.doomed = self.doomed or "it was closed"
        enter_sqlite()
        try:
            with suppress(sqlite3.Error):
                self.close_cursors()  # a statement that lives on would keep the file open
                # An interrupt that came after the last statement would stop the checkpoint that ends the log; it is
                # forgotten when a statement begins.
                sqlite3.Cursor(self).execute("SELECT 1").close()
            self._inner = None
            _close_connection(self)
        finally:
            leave_sqlite()

    def _make_inner(self) -> sqlite3.Cursor:
        inner = self._inner = PlainCursor(self)
        return inner

    def _drop_inner(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()

    def __repr__(self) -> str:
        state = f"closed: {self.doomed}" if self.doomed else "in use" if self.calls else "open"
        return f"<shardlite Connection {self.number} to {self.path} ({state})>"

    # The names are bound here, since at the interpreter's end the module's may be gone before the last connection.
    def __del__(
        self,
        close: Callable[[sqlite3.Connection], None] = _close_connection,
        never_opened: type[Exception] = sqlite3.ProgrammingError,
    ) -> None:
        # A connection that nobody holds any more is closed here, so that no ResourceWarning blames the user of a pool.
        if getattr(self, "was_opened", False) and not self.calls:
            self.doomed = self.doomed or "nobody referred to it"  # a fork may meet it here, half closed
            try:
                close(self)
            except never_opened:
                return


_commit = counted(sqlite3.Connection.commit)
_backup = counted(sqlite3.Connection.backup)
_COUNTED: Sequence[str] = (
    *("rollback", "load_extension", "enable_load_extension", "serialize", "deserialize", "getlimit", "getconfig"),
)
_ALTERING: Sequence[str] = (
    *("set_authorizer", "set_progress_handler", "set_trace_callback", "setlimit", "setconfig"),
    *("set_busy_timeout", "set_busy_handler"),  # pysqlite3's
)
_REGISTERING: Sequence[str] = ("create_function", "create_aggregate", "create_window_function", "create_collation")
_WATCHED: Sequence[str] = ("row_factory", "text_factory", "isolation_level", "autocommit")
for _name in _COUNTED:
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, counted(getattr(sqlite3.Connection, _name)))
for _name in _ALTERING:
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, altering(getattr(sqlite3.Connection, _name)))
for _name in _REGISTERING:
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, registering(getattr(sqlite3.Connection, _name)))
for _name in _WATCHED:
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, watched(_name))
for _name in ("blobopen", "open_blob"):  # the second is pysqlite3's name for it
    _open = blobopen if _name == "blobopen" else getattr(sqlite3.Connection, _name, None)
    if _open is not None:
        setattr(Connection, _name, tracking(_open))


__all__ = ["Blob", "Connection", "Cursor", "Holder", "Parameters", "Row", "end_connection"]
