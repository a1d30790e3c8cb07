"""One statement on one connection, for the layers above: take, run, give back, with as little between as is safe.

``get_connection`` notes who takes a connection, where and when, because users keep connections and forget them. A
statement that begins and ends inside one call of ours needs none of that, and these notes would cost a third of a point
SELECT. What holds all the same:

* the idle list changes by atomic steps (see ``PoolCore._take``), and who waits is served first;
* the call is counted before anything is run and ``doomed`` is looked at after that, so closing and forking wait for it;
* a connection that is due for a look (its file may have been replaced, its life may be over), lacks functions that
  were registered since, is in the users' mode, or comes back from an error goes the long way through ``acquire`` and
  ``release``;
* a connection that an interrupt catches between two steps is closed and replaced (``_rescue``); between two functions
  nobody refers to it any more, which ``_reclaim`` finds.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING

from shardlite.connection.connection import Connection, Parameters, Row
from shardlite.connection.pool_core import LOOK_AGAIN_S, PoolCore
from shardlite.connection.thread_end import this_thread
from shardlite.errors import ProgrammingError

MOST_ROWS = 1_000
"""Rows from which an answer is too large to be read at once."""


class ExpressLane(PoolCore):
    """The short way for single statements. Part of ConnectionPool; needs a connection in polling mode."""

    if TYPE_CHECKING:

        def acquire(self, timeout: float | None = None) -> Connection: ...

        def release(self, conn: Connection) -> None: ...

    @property
    def is_locked(self) -> bool:
        """Whether some thread, perhaps this one, is inside the pool's lock."""
        return self._lock.locked()

    def express_row(self, sql: str, params: Parameters = (), timeout: float | None = None) -> Row | None:
        """Run one statement on some connection and return its first row, or None."""
        conn = self._hop_on()
        if conn is None:
            conn = self.acquire(timeout)
            try:
                return conn.fetch_row(sql, params)
            finally:
                self.release(conn)
        try:
            row = conn.fetch_row(sql, params)
        except BaseException:
            self._hop_off_slowly(conn)
            raise
        self._hop_off(conn)
        return row

    def express_all(self, sql: str, params: Parameters = (), timeout: float | None = None) -> list[Row]:
        """Run one statement on some connection and return its rows."""
        conn = self._hop_on()
        if conn is None:
            conn = self.acquire(timeout)
            try:
                return conn.fetch_all(sql, params)
            finally:
                self.release(conn)
        try:
            rows = conn.fetch_all(sql, params)
        except BaseException:
            self._hop_off_slowly(conn)
            raise
        self._hop_off(conn)
        return rows

    def express_some(
        self, sql: str, params: Parameters = (), timeout: float | None = None, most: int = MOST_ROWS
    ) -> list[Row] | None:
        """Run one statement on some connection and return its rows, None where they are ``most`` or more."""
        conn = self._hop_on()
        if conn is None:
            conn = self.acquire(timeout)
            try:
                return conn.fetch_some(sql, params, most)
            finally:
                self.release(conn)
        try:
            rows = conn.fetch_some(sql, params, most)
        except BaseException:
            self._hop_off_slowly(conn)
            raise
        self._hop_off(conn)
        return rows

    def express_write(self, sql: str, params: Parameters = (), timeout: float | None = None) -> tuple[int, int | None]:
        """Run one statement that writes, alone in its transaction; return (rows changed, last rowid).

        The caller holds the gate.
        """
        conn = self._hop_on()
        if conn is None:
            conn = self.acquire(timeout)
            try:
                done = conn.run(sql, params)
                if conn.in_transaction:
                    raise self._left_open(sql)
                return done.rowcount, done.lastrowid
            finally:
                self.release(conn)
        try:
            done = conn.run(sql, params)
            outcome = done.rowcount, done.lastrowid
            if conn.in_transaction:
                raise self._left_open(sql)
            conn.unclean = False
            conn.changes_seen = conn.total_changes
            self.checkpointer.note_commit(conn)
        except BaseException:
            self._hop_off_slowly(conn)
            raise
        self._hop_off(conn)
        return outcome

    def _left_open(self, sql: str) -> ProgrammingError:
        return ProgrammingError(f"{self.name}: the statement began a transaction and left it open: {sql}")

    def _hop_on(self) -> Connection | None:
        """Take an idle connection that is ready to use, or None: then go the long way."""
        now = monotonic()
        if self._waiting or now >= self._fast_until:
            return None
        conn = None
        try:
            conn = self._idle.pop()
            ready = conn.polling and conn.generation == self.generation
            if ready and not conn.doomed and now - conn.idle_since < LOOK_AGAIN_S:
                conn.uses += 1
                return conn
            self._idle.append(conn)
            return None
        except IndexError:
            return None
        except BaseException:
            if conn is not None:
                self._rescue(conn, None)
            raise

    def _hop_off(self, conn: Connection) -> None:
        """Give a connection back on which nothing is open."""
        budget = self.budget
        try:
            if budget is not None and budget.pressed:
                self._hop_off_slowly(conn)
                return
            conn.returns += 1
            self._idle.append(conn)
            if self._waiting or self._closed:
                self._settle(conn)
            if budget is not None and budget.pressed:
                self._note_idle()
        except BaseException:
            self._rescue(conn, None)
            raise

    def _hop_off_slowly(self, conn: Connection) -> None:
        """Give a connection back after an error: looked at, rolled back, replaced if need be."""
        frame = sys._getframe(1)
        conn.unclean = True
        conn.holder = (this_thread(), monotonic(), frame.f_code, frame.f_lasti)
        self.release(conn)
