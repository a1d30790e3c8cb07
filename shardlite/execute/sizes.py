"""What the planner weighs plans by: about how many rows a table has, and how many are equal in an indexed column.

An old figure costs speed, never an answer.
"""

from __future__ import annotations

import time

from shardlite.driver import sqlite3
from shardlite.errors import Error
from shardlite.execute.core import DatabaseCore
from shardlite.names import fold, quote
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.statistics import Prefixes, Row, merged_statistics, prefixes_of

_KEPT_S = 60.0
_PATIENCE_S = 0.05
"""Seconds to wait for a connection: this is only an estimate, and a statement may have little time."""
_STATISTICS = (
    "SELECT tbl, idx, stat FROM main.sqlite_stat1 WHERE tbl = ? COLLATE NOCASE AND idx IN "
    "(SELECT name FROM pragma_index_list(?) WHERE NOT partial)"
)
_COLUMNS = (
    "SELECT l.name, i.name FROM pragma_index_list(?) AS l, pragma_index_info(l.name) AS i ORDER BY l.seq, i.seqno"
)
_STAT1 = "SELECT max(CAST(stat AS INTEGER)) FROM main.sqlite_stat1 WHERE tbl = ? COLLATE NOCASE"
_COUNTED = 100_000
"""Rows up to which a table without rowids is counted; beyond, it is taken to be that large."""


class Sizes:
    """Figures by table, looked up once a minute and after changes of the schema. Thread-safe: a race asks twice."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database
        self._known: dict[str, tuple[float, int]] = {}
        self._prefixes: dict[str, tuple[float, Prefixes]] = {}
        self._epoch = -1

    def rows(self, table: Table) -> int:
        """Return about how many rows a table has over all shards."""
        self._renew()
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

    def _renew(self) -> None:
        """Forget all after a change of the schema: it may have been ANALYZE, or a table of a name that was there."""
        epoch = self._db.current().epoch
        if epoch != self._epoch:
            self._known, self._prefixes, self._epoch = {}, {}, epoch

    def prefixes(self, table: Table) -> Prefixes:
        """Return what ANALYZE found of the table's indexes, over all shards; nothing where it has not run."""
        self._renew()
        known = self._prefixes.get(table.name)
        now = time.monotonic()
        if known is not None and now - known[0] < _KEPT_S:
            return known[1]
        try:
            found = self._ask_prefixes(table)
        except (Error, sqlite3.Error, ValueError):
            return {} if known is None else known[1]
        self._prefixes[table.name] = (now, found)
        return found

    def _ask_prefixes(self, table: Table) -> Prefixes:
        found: list[tuple[int, Row]] = []
        for shard in self._shards_of(table):
            if not self._is_analysed(shard):
                return {}
            rows = shard.fetch_all(_STATISTICS, (table.name, table.name), _PATIENCE_S)
            found += [(shard.id, row) for row in rows]
        columns: dict[str, list[str | None]] = {}
        if found:
            for index, column in self._db.shards[0].fetch_all(_COLUMNS, (table.name,), _PATIENCE_S):
                columns.setdefault(index, []).append(column)
        return prefixes_of(merged_statistics(found, {fold(table.name): table}, columns), columns)

    def _shards_of(self, table: Table) -> list[SqliteShard]:
        return self._db.shards if table.sharded else self._db.shards[:1]

    @staticmethod
    def _is_analysed(shard: SqliteShard) -> bool:
        sql = "SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_stat1'"
        return shard.fetch_row(sql, (), _PATIENCE_S) is not None

    def _ask(self, table: Table) -> int:
        shards = self._shards_of(table)
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
        for shard in self._shards_of(table):
            if not self._is_analysed(shard):
                return None
            row = shard.fetch_row(_STAT1, (table.name,), _PATIENCE_S)
            if row is None or row[0] is None:
                return None
            counted += int(row[0])
        return counted
