"""Rows that are read before the locks are taken and written under them: kept in a file of SQLite's, not in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.execute.state import HOME_SHARD
from shardlite.execute.writes import WriteScope
from shardlite.names import fold, quote
from shardlite.router.layout import Layout
from shardlite.router.table import Table, TableKind

_BATCH = 500


class KeptRows:
    """The rows of one query, in their order."""

    def __init__(self, conn: sqlite3.Connection, width: int) -> None:
        self._conn = conn
        self._width = width

    def insert(self, scope: WriteScope, table: Table, layout: Layout) -> int:
        """Insert the rows into a new table; return the next id of a sharded one, 0 where it needs none.

        Rows of a sharded table are numbered over all shards in their order, as one file numbers them.
        """
        columns = [quote(column.name) for column in table.columns]
        numbered = table.sharded and not table.without_rowid
        if numbered:
            columns.insert(0, table.rowid_name or "rowid")
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO main.{quote(table.name)}({', '.join(columns)}) VALUES ({marks})"
        cursor = self._conn.execute("SELECT * FROM kept ORDER BY rowid") if self._width else None
        count = 0
        while cursor is not None and (batch := cursor.fetchmany(_BATCH)):
            for shard, rows in _placed(table, layout, batch, count if numbered else None).items():
                scope.run_many(shard, sql, rows)
            count += len(batch)
        return count + 1 if numbered else 0


def _placed(
    table: Table, layout: Layout, batch: Sequence[tuple[Any, ...]], before: int | None
) -> dict[int, list[tuple[Any, ...]]]:
    """Return rows by shard, in their order, each behind its number where ``before`` numbers were given before."""
    if table.kind is not TableKind.SHARDED:
        shards = layout.shard_ids if table.kind is TableKind.REFERENCE else (HOME_SHARD,)
        return {shard: list(batch) for shard in shards}
    route = layout.shard_of(table.key_type)
    names = [fold(column.name) for column in table.columns]
    places = [names.index(fold(name)) for name in table.key_columns]
    found: dict[int, list[tuple[Any, ...]]] = {}
    for number, row in enumerate(batch, (before or 0) + 1):
        key = row[places[0]] if len(places) == 1 else tuple(row[place] for place in places)
        found.setdefault(route(key), []).append(row if before is None else (number, *row))
    return found


def require_room_for_ids(table: Table) -> None:
    """Raise NotSupportedError where the rows of a new sharded table can't be told apart over all shards."""
    if not table.key_columns:
        raise NotSupportedError(f"CREATE TABLE {table.name} AS SELECT: say its key: /* shardlite: key=a_column */")
    if not table.without_rowid and table.rowid_name is None:
        raise NotSupportedError(
            f"CREATE TABLE {table.name} AS SELECT hides its rowid behind columns of all its names: rename one of them"
        )


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
