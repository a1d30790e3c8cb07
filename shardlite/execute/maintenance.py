"""VACUUM and ``PRAGMA optimize``: one shard after another, each by itself, under its gate.

VACUUM must not renumber
------------------------
The rowids of a sharded table are unique over all shards, and what the catalog remembers of explicit keys is by rowid.
SQLite's VACUUM numbers the rows of a table anew where nothing refers to them by rowid: where it has neither an INTEGER
PRIMARY KEY nor an index. So such a table gets an index for as long as that takes: of no row (``WHERE 0``) and of no
column. SQLite doesn't promise that this is enough, so it is tried first, on a database in memory.

A crash may leave the index behind. It is recorded as a job before it is made, and whoever opens the database next, or
vacuums it, drops it, but not while its owner lives: one process at a time vacuums, and holds a lock as long.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence

from shardlite.connection.busy import begin_immediate, is_busy, retry_busy
from shardlite.connection.connection import Connection
from shardlite.connection.opening import ConnectionSettings, open_connection, set_polling
from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.errors import NotSupportedError, OperationalError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.deadline import Deadline, watched
from shardlite.names import RESERVED_PREFIX, quote
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.tokens import tokenize

JOB_KIND = "vacuum"
LOCK_NAME = "vacuum.lock"
"""A database without content: its write lock is held by the process that vacuums. It stays when all is done."""

_RENUMBERED = """
    SELECT t.name FROM pragma_table_list AS t
    WHERE t.schema = 'main' AND t.type IN ('table', 'shadow') AND NOT t.wr AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    AND NOT EXISTS (SELECT 1 FROM pragma_index_list(t.name))
    AND (SELECT count(*) FROM pragma_table_info(t.name) WHERE pk > 0) = 0
"""
"""Tables whose rows VACUUM would number anew. A PRIMARY KEY that is no INTEGER PRIMARY KEY is an index."""


class Maintenance:
    """Runs what rebuilds files. Thread-safe."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database

    def run(self, sql: str, deadline: Deadline) -> None:
        """Run VACUUM or ``PRAGMA optimize`` on every shard, one after another.

        The deadline ends it: the shards that it has come to are done, each by itself, and the others are as they were.
        """
        if tokenize(sql).head == "VACUUM":
            self.vacuum(deadline)
        else:
            self.optimize(sql, deadline)

    def optimize(self, sql: str, deadline: Deadline) -> None:
        """Run ``PRAGMA optimize`` on every shard."""
        for shard in self._db.shards:
            deadline.check()
            with self._held(shard, deadline.wait_s) as conn, watched(conn, deadline):
                _run(shard, conn, sql, deadline.wait_s)

    def vacuum(self, deadline: Deadline) -> None:
        """Rebuild every shard's file without its free pages; rowids stay.

        :raises NotSupportedError: this SQLite renumbers rows whatever is done, and there are rows to be renumbered.
        """
        with self._alone(deadline.wait_s):
            self._forget_leftovers()
            for shard in self._db.shards:
                deadline.check()
                with self._held(shard, deadline.wait_s) as conn:
                    self._vacuum(shard, conn, deadline)

    def recover(self) -> None:
        """Drop what a process that died in the middle of VACUUM has left; one that lives is left alone."""
        if not self._db.catalog.jobs(JOB_KIND):
            return
        with contextlib.suppress(OperationalError), self._alone(0.0):
            self._forget_leftovers()

    # -- one shard -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _held(self, shard: SqliteShard, timeout_s: float) -> Iterator[Connection]:
        """Hold the shard's gate and a connection: this process's writers queue meanwhile."""
        with shard.pool.gate.held(timeout_s), shard.reading(timeout_s) as conn:
            yield conn

    def _vacuum(self, shard: SqliteShard, conn: Connection, deadline: Deadline) -> None:
        timeout_s = self._db.timeout_s
        tables = [name for (name,) in conn.fetch_all(_RENUMBERED)]
        if tables and not keeps_rowids():
            raise NotSupportedError(
                f"VACUUM with SQLite {'.'.join(map(str, SQLITE_VERSION))} would renumber the rows of {tables[0]} on "
                f"shard {shard.id}: give the table an INTEGER PRIMARY KEY, or an index"
            )
        job, indexes = 0, _index_names(len(tables))
        if tables:
            job = self._db.catalog.add_job(JOB_KIND, {"shard": shard.id, "indexes": indexes})
        try:
            _change(
                shard,
                conn,
                [f"CREATE INDEX {i} ON {quote(table)} (1) WHERE 0" for i, table in zip(indexes, tables, strict=True)],
                timeout_s,
            )
            with watched(conn, deadline):
                _run(shard, conn, "VACUUM", deadline.wait_s)
        finally:
            if job:
                _drop(shard, conn, indexes, timeout_s)
        if job:
            self._db.catalog.delete_job(job)

    # -- one process at a time -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, timeout_s: float) -> Iterator[None]:
        """Hold the lock that only one process can have; the system takes it from one that dies."""
        path = os.path.join(self._db.directory, LOCK_NAME)
        conn = open_connection(path, ConnectionSettings(durability="normal", isolation_level=None))
        try:
            set_polling(conn, True, ConnectionSettings())
            begin_immediate(conn, time.monotonic() + timeout_s)
            yield
            conn.run("ROLLBACK")
        finally:
            conn.close()

    def _forget_leftovers(self) -> None:
        for job in self._db.catalog.jobs(JOB_KIND):
            shard = self._db.shards[int(job.payload["shard"])]
            with self._held(shard, self._db.timeout_s) as conn:
                _drop(shard, conn, job.payload["indexes"], self._db.timeout_s)
            self._db.catalog.delete_job(job.id)


def keeps_rowids() -> bool:
    """Tell whether the SQLite in use keeps the rowids of a table that has an index, be it empty, in VACUUM."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute("CREATE TABLE t (a)")
        conn.execute("CREATE INDEX i ON t (1) WHERE 0")
        conn.execute("INSERT INTO t (rowid, a) VALUES (5, 'a'), (9, 'b')")
        conn.execute("VACUUM")
        return [row[0] for row in conn.execute("SELECT rowid FROM t ORDER BY rowid")] == [5, 9]


def _index_names(count: int) -> list[str]:
    token = secrets.token_hex(8)
    return [f"{RESERVED_PREFIX}vacuum_{token}_{number}" for number in range(count)]


def _drop(shard: SqliteShard, conn: Connection, indexes: Sequence[str], timeout_s: float) -> None:
    _change(shard, conn, [f"DROP INDEX IF EXISTS {quote(index)}" for index in indexes], timeout_s)


def _change(shard: SqliteShard, conn: Connection, statements: Sequence[str], timeout_s: float) -> None:
    """Run schema statements in one transaction."""
    if not statements:
        return
    shard.begin_write(conn, timeout_s)
    try:
        for sql in statements:
            conn.run(sql)
        conn.run("COMMIT")
    except sqlite3.Error as error:
        if conn.in_transaction:
            conn.run("ROLLBACK")
        shard.fail(error, statements[0])


def _run(shard: SqliteShard, conn: Connection, sql: str, timeout_s: float) -> None:
    """Run one statement outside a transaction, polling while another process writes."""
    try:
        conn.fetch_all(sql)
    except sqlite3.Error as error:
        if not is_busy(error):
            shard.fail(error, sql)
        try:
            retry_busy(lambda: conn.fetch_all(sql), time.monotonic() + timeout_s, f"to run {sql} on {shard.name}")
        except sqlite3.Error as failure:
            shard.fail(failure, sql)
