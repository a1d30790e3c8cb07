"""About how many rows each table has: what the planner weighs plans by. An old figure costs speed, never an answer."""

from __future__ import annotations

import time

from shardlite.driver import sqlite3
from shardlite.errors import Error
from shardlite.execute.core import DatabaseCore
from shardlite.names import quote
from shardlite.router.table import Table

_KEPT_S = 60.0
_PATIENCE_S = 0.05
"""Seconds to wait for a connection: this is only an estimate, and a statement may have little time."""
_STAT1 = "SELECT max(CAST(stat AS INTEGER)) FROM main.sqlite_stat1 WHERE tbl = ? COLLATE NOCASE"
_COUNTED = 100_000
"""Rows up to which a table without rowids is counted; beyond, it is taken to be that large."""


class Sizes:
    """Row counts by table, each looked up at most once a minute. Thread-safe: a race asks twice."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database
        self._known: dict[str, tuple[float, int]] = {}

    def rows(self, table: Table) -> int:
        """Return about how many rows a table has over all shards."""
        known = self._known.get(table.name)
        now = time.monotonic()
        if known is not None and now - known[0] < _KEPT_S:
            return known[1]
        try:
            rows = self._ask(table)
        except (Error, sqlite3.Error, ValueError):
            return 0 if known is None else known[1]
        self._known[table.name] = (now, rows)
        return rows

    def _ask(self, table: Table) -> int:
        shards = self._db.shards if table.sharded else self._db.shards[:1]
        analysed = self._analysed(table)
        if analysed is not None:
            return analysed
        if table.rowid_name is not None:
            # Rowids are drawn from one sequence for all shards: the largest tells of all.
            rowid = quote(table.rowid_name) if table.rowid_alias is not None else table.rowid_name
            sql = f"SELECT max({rowid}) - min({rowid}) + 1 FROM main.{quote(table.name)}"
            found = [shard.fetch_row(sql, (), _PATIENCE_S) for shard in shards]
            return max((int(row[0]) for row in found if row is not None and row[0] is not None), default=0)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM main.{quote(table.name)} LIMIT {_COUNTED})"
        return sum(int(row[0]) for shard in shards if (row := shard.fetch_row(sql, (), _PATIENCE_S)) is not None)

    def _analysed(self, table: Table) -> int | None:
        """Return what ANALYZE counted; None where it has not run on every shard."""
        counted = 0
        for shard in self._db.shards if table.sharded else self._db.shards[:1]:
            if shard.fetch_row("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_stat1'", (), _PATIENCE_S) is None:
                return None
            row = shard.fetch_row(_STAT1, (table.name,), _PATIENCE_S)
            if row is None or row[0] is None:
                return None
            counted += int(row[0])
        return counted
