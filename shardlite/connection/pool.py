"""The connection pool of one SQLite file: what users call. How it works is told in ``pool_core.py``."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

from shardlite.config import check_seconds
from shardlite.connection import fork
from shardlite.connection.checkpoint import Checkpointer, CheckpointSettings, Reader
from shardlite.connection.connection import Connection, Holder
from shardlite.connection.express import ExpressLane
from shardlite.connection.opening import ConnectionSettings, IsolationLevel
from shardlite.connection.pool_parts import Callback, PoolOptions, Waiter, is_taken
from shardlite.connection.statistics import PoolStatistics
from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError

_getframe = sys._getframe
_NEVER = float("-inf")


class ConnectionPool(ExpressLane):
    """Connections to one SQLite file, opened when needed, at most ``max_connections`` at a time. Thread-safe.

    :param db_path: the file; it is created when missing, unless ``create=False``.
    :param max_connections: the most connections open at a time, those being opened or closed included.
    :param timeout: seconds to wait for a connection; each call may give another.
    :param check_same_thread: hand a connection only to the thread that opened it.
    :param min_connections: opened at once and kept open.
    :param durability: "full" (each commit is synced) or "normal".
    :param busy_timeout: seconds that SQLite waits for locks of other connections; None: as ``timeout``.
    :param isolation_level: as ``sqlite3.connect``: "" begins transactions by itself, None is autocommit.
    :param max_lifetime: seconds after which a connection is replaced (up to 5 % earlier, at random, so that those
        opened together aren't closed together).
    :param max_idle: seconds after which an unused connection is closed, down to ``min_connections``.
    :param configure: called with each new connection.
    :param reset: called with each returned connection, after the rollback.
    :param check: called with each connection before it is handed out.
    :param verify: called with each new connection before ``configure``; what it raises is raised to the user.
    :param budget: a ``ConnectionBudget`` shared with other pools.
    :param encoding: text encoding of a file that is created.
    :param trusted_schema: let the file's views and triggers call any function and write to virtual tables.
    :param clock: the time in seconds, never going back; for tests.
    :param name: what messages call the pool; the path unless given.

    A callback (``configure``, ``reset``, ``check``) that raises, or leaves a transaction open, gets its connection
    thrown away and replaced.
    """

    def __init__(
        self,
        db_path: str | os.PathLike[str],
        max_connections: int = 10,
        timeout: float = 30.0,
        check_same_thread: bool = False,
        min_connections: int = 0,
        *,
        durability: str = "full",
        busy_timeout: float | None = None,
        isolation_level: IsolationLevel = "",
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        configure: Callback | None = None,
        reset: Callback | None = None,
        check: Callback | None = None,
        verify: Callback | None = None,
        budget: Any = None,
        create: bool = True,
        encoding: str | None = None,
        trusted_schema: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        name: str | None = None,
    ) -> None:
        path = os.fspath(db_path)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if path in ("", ":memory:"):
            raise ProgrammingError(
                f"a pool needs a file, not {path!r}: each connection would see a database of its own"
            )
        options = PoolOptions(
            max_connections=max_connections,
            min_connections=min_connections,
            timeout=timeout,
            check_same_thread=check_same_thread,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            configure=configure,
            reset=reset,
            check=check,
            verify=verify,
            clock=clock,
            sleep=sleep,
        )
        settings = ConnectionSettings(
            durability=durability,
            busy_timeout=timeout if busy_timeout is None else busy_timeout,
            isolation_level=isolation_level,
            create=create,
            encoding=encoding,
            trusted_schema=trusted_schema,
        )
        full_path = os.path.abspath(path)
        super().__init__(full_path, name or full_path, options, settings, budget)
        self.created_at = time.time()
        self.checkpointer = self._make_checkpointer()
        self._schedule_maintenance(self._clock())
        fork.register(self)
        if min_connections:
            self._open_minimum()

    # ---- taking and returning

    def get_connection(self, timeout: float | None = None) -> Connection:
        """Return a connection, waiting for one for at most ``timeout`` seconds (None: as the pool was told).

        It is a ``sqlite3.Connection`` with ``row_factory`` ``sqlite3.Row``. Give it back by ``return_connection``.

        :raises PoolExhaustedError: none became free in time; says who holds them.
        :raises PoolClosedError: the pool is closed.
        :raises OperationalError: the file can't be opened.
        :raises ProgrammingError: ``timeout`` is no number of seconds, 0 or more.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        conn = None
        try:
            conn = self._take(timeout, _getframe(1))
            if conn.polling:
                self._set_polling(conn, False)
            return conn
        except BaseException:
            self._take_back(conn)
            raise

    def acquire(self, timeout: float | None = None) -> Connection:
        """As ``get_connection``, but with SQLite's busy timeout 0, for callers that poll (``busy.py``)."""
        if timeout is not None:
            check_seconds("timeout", timeout)
        conn = None
        try:
            conn = self._take(timeout, _getframe(1))
            if not conn.polling:
                self._set_polling(conn, True)
            return conn
        except BaseException:
            self._take_back(conn)
            raise

    def release(self, conn: Connection) -> None:
        """Take a connection back: roll back what isn't committed, close its cursors, hand it to the first who waits.

        :raises ProgrammingError: it isn't of this pool, or it was returned before.
        """
        holder = getattr(conn, "holder", None)
        if holder is None or conn.pool_ref is not self._self_ref:
            self._refuse_return(conn)
        try:
            conn.context = None
            try:
                clean = not (conn.unclean or conn.in_transaction or conn.total_changes != conn.changes_seen)
                if not clean and not self._clean(conn):
                    return
            except sqlite3.ProgrammingError:  # closed by another thread just now
                if not conn.doomed:
                    raise
            now = self._clock()
            budget = self.budget
            pressed = budget is not None and budget.pressed
            if now < self._fast_until and not (self._waiting or conn.doomed or pressed):
                conn.returns += 1
                conn.idle_since = now
                conn.holder = None
                self._idle.append(conn)
                if self._waiting or self._closed:  # began while this went on, perhaps before it was there to be seen
                    self._settle(conn)
            else:
                self._release_slowly(conn, now)
                if now >= self._maintain_at:
                    self.maintain()
            if budget is not None and budget.pressed:
                self._note_idle()
        except BaseException:
            self._rescue(conn, holder)
            raise

    return_connection = release

    def get_connection_context(self, timeout: float | None = None) -> ConnectionContext:
        """Return a context manager that takes a connection and gives it back; rolled back unless committed."""
        return ConnectionContext(self, timeout)

    connection = get_connection_context

    def close_connection(self, conn: Connection) -> None:
        """Give a connection back to be closed; another is opened when one is needed.

        :raises ProgrammingError: it isn't of this pool, or it was returned before.
        """
        holder = getattr(conn, "holder", None)
        if holder is None or conn.pool_ref is not self._self_ref:
            self._refuse_return(conn)
        try:
            self._note_released(conn)
            self._discard(conn, "it was closed by its user")
        except BaseException:
            self._rescue(conn, holder)
            raise

    # ---- the life of the pool

    def open(self) -> None:
        """Open a closed pool again; opening an open one does nothing."""
        with self._lock:
            if not self._closed:
                return
            self._closed = False
            self._schedule_maintenance(self._clock())
            self.checkpointer = self._make_checkpointer()
        self._open_minimum()

    def close_all(self, timeout: float = 10.0) -> None:
        """Close the pool and all its connections, those handed out too, even while other threads are inside SQLite.

        Threads that wait get PoolClosedError; users of its connections get it at their next call, calls that are
        running are interrupted. Returns when all is closed, or after ``timeout`` seconds; what couldn't be
        interrupted until then is closed in the background. May be repeated; ``open`` opens the pool again.
        """
        check_seconds("timeout", timeout)
        with self._lock:
            self._closed = True
            self._fast_until = _NEVER
            self._idle.clear()
            victims = tuple(thing for thing in self._open.values() if isinstance(thing, Connection))  # see _taken
            for ref in self._waiting:
                self._wake_closed(ref())
            self._waiting.clear()
            for conn in victims:
                conn.doomed = conn.doomed or "its pool was closed"
        if self.budget is not None:
            self.budget.cancel(self)
        self.checkpointer.close()
        deadline = time.monotonic() + timeout
        for conn in victims:
            self._discard(conn, "its pool was closed", max(0.0, deadline - time.monotonic()))
        while self._slots_in_use() and time.monotonic() < deadline:
            time.sleep(0.001)

    close = close_all

    @property
    def closed(self) -> bool:
        """Whether ``close_all`` was called."""
        return self._closed

    def maintain(self) -> None:
        """Close connections that are too old or idle for too long, take back lost ones, keep the minimum open.

        Done by itself while the pool is in use; call it now and then (every minute, say) for a pool that may be
        left alone. Costs microseconds when there is nothing to do.
        """
        now = self._clock()
        with self._lock:
            self._schedule_maintenance(now)
            victims = self._too_old(now)
        while victims:
            self._discard(victims.pop(), "it was idle for too long, or too old")
        self._reclaim()
        if not self._closed:
            self._open_minimum()

    def _too_old(self, now: float) -> list[Connection]:
        """Take out the idle connections that have to go, mark those in use. The lock is held.

        A method of its own: a variable of ``maintain`` that went on referring to one would hide that it is lost.
        """
        victims: list[Connection] = []
        spare = len(self._open) - self.options.min_connections
        for conn in list(self._idle):
            too_idle = spare > 0 and now - conn.idle_since >= self.options.max_idle
            if too_idle or now >= conn.expires_at:
                with suppress(ValueError):  # taken just now, without the lock
                    self._idle.remove(conn)
                    victims.append(conn)
                    spare -= 1
        for conn in self.connections():
            if now >= conn.expires_at:
                conn.unclean = True  # looked at when it is returned
        return victims

    def __enter__(self) -> ConnectionPool:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close_all()

    def __del__(self) -> None:
        idle = getattr(self, "_idle", None)
        while idle:
            idle.pop().close()

    def _schedule_maintenance(self, now: float) -> None:
        shortest_s = min(self.options.max_idle, self.options.max_lifetime)
        self._maintain_at = now + min(60.0, max(shortest_s / 4, 0.01))
        self._fast_until = self._maintain_at if self._simple and not self._closed else _NEVER

    def _make_checkpointer(self) -> Checkpointer:
        this = self._self_ref

        def readers() -> list[Reader]:
            pool = this()
            return list(pool.readers()) if isinstance(pool, ConnectionPool) else []

        return Checkpointer(
            self.path,
            gate=self.gate,
            readers=readers,
            budget=self.budget,
            budget_key=self._self_ref,
            settings=CheckpointSettings.of(self.settings.durability),
        )

    # ---- figures

    def get_statistics(self) -> PoolStatistics:
        """Return the state and the counters."""
        with self._lock:
            # Other threads may take and return without the lock: what is idle is looked at once, and what was given
            # back is added up before what was taken, so that it is never the larger.
            idle = set(map(id, list(self._idle)))
            connections = self.connections()
            released = self._released + sum(conn.returns for conn in connections)
            acquired = self._acquired + sum(conn.uses for conn in connections)
            active = sum(id(conn) not in idle and is_taken(conn) for conn in connections)
            return PoolStatistics(
                active_connections=active,
                idle_connections=len(idle),
                pool_size=len(self._open),
                max_connections=self.options.max_connections,
                min_connections=self.options.min_connections,
                waiting_threads=sum(ref() is not None for ref in self._waiting),
                total_acquired=acquired,
                total_released=released,
                total_timeouts=self._timeouts,
                pool_hits=acquired - self._misses,
                pool_misses=self._misses,
                connections_reused=acquired - self._misses,
                total_connections_created=self._created,
                connections_closed=self._ended,
                connections_failed=self._failed,
                connections_reclaimed=self._reclaimed,
                total_wait_s=self._waited_s,
                closed=self._closed,
                created_at=self.created_at,
            )

    def get_pool_stats(self) -> dict[str, int | float | bool]:
        """Return the same as ``get_statistics`` as a dict."""
        return self.get_statistics().as_dict()

    def holders(self) -> list[str]:
        """Say for each connection that is handed out who has it, since when, and which line took it."""
        return [text for text, _ in self._users()]

    def readers(self) -> Iterator[Reader]:
        """List who may be reading from the write-ahead log, for the checkpointer's report."""
        for text, age_s in self._users():
            yield Reader(text, age_s)

    @property
    def checkpointers(self) -> list[Checkpointer]:
        """Return the pool's checkpointer in a list; takes no lock."""
        return [self.checkpointer]

    def connections(self) -> list[Connection]:
        """Return all open connections; for the fork handling and for tests. Takes no lock."""
        return [thing for thing in list(self._open.values()) if isinstance(thing, Connection)]

    def _wake_closed(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            waiter.closed = True
            waiter.wake.release()

    def _slots_in_use(self) -> bool:
        with self._lock:
            return any(not isinstance(thing, Connection) and thing() is not None for thing in self._open.values())

    def __repr__(self) -> str:
        s = self.get_statistics()
        state = "closed" if s.closed else "open"
        return (
            f"<ConnectionPool {self.name!r} {state}: {s.active_connections} active, {s.idle_connections} idle, "
            f"{s.pool_size} of {s.max_connections} open, {s.waiting_threads} waiting>"
        )


class ConnectionContext:
    """Takes a connection for a ``with`` block and gives it back, rolled back unless committed."""

    __slots__ = ("__weakref__", "_conn", "_holder", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool, timeout: float | None) -> None:
        if timeout is not None:
            check_seconds("timeout", timeout)
        self._pool = pool
        self._timeout = timeout
        self._conn: Connection | None = None
        self._holder: Holder | None = None

    def __enter__(self) -> Connection:
        if self._conn is not None:
            raise ProgrammingError("this context has a connection already: call get_connection_context() for each use")
        try:
            conn = self._conn = self._pool._take(self._timeout, _getframe(1))
            self._holder = conn.holder
            conn.context = weakref.ref(self)  # an interrupt at the first instruction of __exit__ leaves only this
            if conn.polling:
                self._pool._set_polling(conn, False)
            return conn
        except BaseException:
            self._pool._take_back(self._conn)
            self._conn = None
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn = self._conn
        if conn is not None:
            try:
                if conn.holder is self._holder is not None:  # unless it was given back in the block
                    self._pool.release(conn)
            except BaseException:
                if conn.holder is self._holder is not None:
                    self._pool._take_back(conn)
                raise
            finally:
                self._conn = None


def get_db_connection(pool: ConnectionPool, timeout: float | None = None) -> ConnectionContext:
    """Return ``pool.get_connection_context(timeout)``: ``with get_db_connection(pool) as conn``."""
    return ConnectionContext(pool, timeout)


__all__ = ["ConnectionContext", "ConnectionPool", "get_db_connection"]
