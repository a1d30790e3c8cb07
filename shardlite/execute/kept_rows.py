"""Rows that are read before the locks are taken and written under them: kept in a file of SQLite's, not in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from shardlite.driver import sqlite3
from shardlite.execute.state import HOME_SHARD
from shardlite.execute.writes import WriteScope
from shardlite.names import quote
from shardlite.router.table import Table

_BATCH = 500


class KeptRows:
    """The rows of one query, in their order."""

    def __init__(self, conn: sqlite3.Connection, width: int) -> None:
        self._conn = conn
        self._width = width

    def insert(self, scope: WriteScope, table: Table) -> None:
        """Insert the rows into a table of the home shard."""
        if not self._width:
            return
        sql = f"INSERT INTO {quote(table.name)} VALUES ({', '.join('?' * self._width)})"
        cursor = self._conn.execute("SELECT * FROM kept ORDER BY rowid")
        while batch := cursor.fetchmany(_BATCH):
            scope.run_many(HOME_SHARD, sql, batch)


@contextlib.contextmanager
def kept_rows(rows: Iterable[Sequence[Any]]) -> Iterator[KeptRows]:
    """Keep all rows, as they are, in a temporary database, which SQLite deletes with the connection."""
    each = iter(rows)
    first = next(each, None)
    with contextlib.closing(sqlite3.connect("", isolation_level=None)) as conn:
        width = len(first) if first is not None else 0
        if first is not None:
            conn.execute("PRAGMA journal_mode = OFF").fetchall()
            # BLOB is the affinity that changes nothing.
            conn.execute(f"CREATE TABLE kept ({', '.join(f'c{number} BLOB' for number in range(width))})")
            conn.execute("BEGIN")
            values = f"({', '.join('?' * width)})"
            every = chain([first], each)
            while batch := list(islice(every, _BATCH)):
                conn.executemany(f"INSERT INTO kept VALUES {values}", batch)
            conn.execute("COMMIT")
        yield KeptRows(conn, width)
