"""aggregate: the parts from each shard, put together as ``sql/aggregate.py`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.execute.database import Database
from shardlite.execute.read import Where
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.aggregate import plan_aggregates


@contextmanager
def _snapshots(database: Database, shard_ids: Sequence[int]) -> Iterator[list[Callable[..., Any]]]:
    """Give a function for each shard that reads it; all that it reads comes from one state of that shard."""
    shards = [database.shards[shard] for shard in shard_ids]
    pools = [shard.pool for shard in shards]
    connections = database.budget.acquire_all(pools, database.timeout_s)
    try:
        for conn in connections:
            conn.run("BEGIN")
        yield [_fetcher(shard, conn) for shard, conn in zip(shards, connections, strict=True)]
    finally:
        database.budget.release_all(pools, connections)


def _fetcher(shard: SqliteShard, conn: Connection) -> Callable[..., Any]:
    def fetch(sql: str, parameters: Any) -> Any:
        try:
            return conn.fetch_all(sql, parameters)
        except sqlite3.Error as error:
            shard.fail(error, sql)

    return fetch


def aggregate(
    database: Database,
    name: str,
    expressions: str | Sequence[str],
    where: Where,
    group_by: str | Sequence[str] | None,
    parameters: Sequence[Any] | Mapping[str, Any],
) -> Any:
    """Return the aggregates over the rows that match; see ShardManager.aggregate."""
    while True:
        state = database.current()
        table = state.table(name)
        condition = database.reader.condition(table, where, parameters, None)
        plan = plan_aggregates(table, expressions, condition, group_by, functions=state.registered.functions)
        if state.layout.encoding != "UTF-8":
            plan = plan.ordered_for(state.layout.encoding)
        shards = database.reader.route(state, table, condition)
        with _snapshots(database, shards) as fetchers:
            answer = plan.run(fetchers)
        if database.is_current(state):
            return answer
