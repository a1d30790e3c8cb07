"""The rows of a query that runs on the shards as it is: read as they are needed, a connection for each shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.merge import Order, merge_batches, sliced
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.workers import run_on_shards
from shardlite.execute.writes import StaleEpochError
from shardlite.sql.order import SortTerm
from shardlite.sql.plan import Plan

SMALL = 1_000
"""Rows of a shard up to which an answer is read at once, if they aren't wide, so that no connection is held."""
_BATCH = 500
_BATCH_BYTES = 1 << 20
"""Bytes of text and blobs of a shard that are read at a time: of wide rows fewer than ``_BATCH`` are."""
_FIRST = 4
"""Rows of a shard by which it is told how wide the next are."""
_BY_ROWID = Order([SortTerm(0, "BINARY", integer=True)])
_WITHOUT_ROWID = itemgetter(slice(1, None))


def read(database: Database, state: State, plan: Plan, deadline: Deadline) -> Result:
    """Run a plan that only reads, without a program: one shard, the home shard or a fan-out."""
    streams = Streams(database, plan, deadline)
    streams.fill()
    if not database.is_current(state):
        streams.close()
        raise StaleEpochError
    parts = [streams.batches(index) for index in range(len(plan.shards))]
    columns: Sequence[str] = streams.columns
    rows: Iterator[tuple[Any, ...]]
    if plan.merge is not None:
        columns, width = plan.merge.columns, len(plan.merge.columns)
        order = Order(plan.merge.terms, state.layout.encoding, state.registered.collations)
        rows = sliced(chain.from_iterable(merge_batches(parts, order)), plan.merge.limit, plan.merge.offset)
        if len(streams.columns) > width:
            rows = map(itemgetter(slice(width)), rows)
    elif plan.merge_rowid:
        columns, rows = columns[1:], map(_WITHOUT_ROWID, chain.from_iterable(merge_batches(parts, _BY_ROWID)))
    else:
        rows = chain.from_iterable(chain.from_iterable(parts))
    if streams.closed:
        return Result(columns, rows)
    return Result(columns, rows, close=streams.close, abandon=streams.abandon)


def _fitting(rows: Sequence[tuple[Any, ...]], most: int) -> int:
    """Return how many rows that are as wide as some of these, and at most how many, are to be read at a time."""
    some = rows[:: len(rows) // 8 + 1]
    width = sum(len(value) for row in some for value in row if isinstance(value, (str, bytes)))
    return most if width * most <= _BATCH_BYTES * len(some) else max(1, _BATCH_BYTES * len(some) // width)


class Streams:
    """The open cursors of one query, a connection for each, until all rows are read or the result is closed.

    All shards begin side by side. After their first rows they are read one after the other unless a merge needs them
    side by side; rows come in batches, so that the interpreter lock isn't handed to and fro per row.
    """

    def __init__(self, database: Database, plan: Plan, deadline: Deadline) -> None:
        self.columns: Sequence[str] = ()
        self.closed = False
        self._database = database
        self._plan = plan
        self._deadline = deadline
        self._shards = [database.shards[shard] for shard in plan.shards]
        self._pools = [shard.pool for shard in self._shards]
        self._cursors: list[Any] = [None] * len(self._shards)
        self._heads: list[list[tuple[Any, ...]]] = []
        self._ended = [False] * len(self._shards)
        self._connections: list[Connection] = []
        if len(self._pools) == 1:
            self._connections = [self._pools[0].acquire(deadline.wait_s)]
        else:
            self._connections = database.budget.acquire_all(self._pools, deadline.wait_s)

    def fill(self) -> None:
        """Run the statement everywhere and read the first rows; a small answer ends here."""
        plan, places = self._plan, {shard: place for place, shard in enumerate(self._plan.shards)}
        try:
            self._deadline.watch(self._connections)
            sessions = dict(zip(plan.shards, self._connections, strict=True))
            self._heads = run_on_shards(
                lambda shard: self._begin(places[shard]), plan.shards, plan.sql, sessions, self._deadline
            )
            self.columns = [column[0] for column in self._cursors[0].description or ()]
        except BaseException:
            self.close()
            raise
        if all(self._ended):
            self.close()

    def _begin(self, place: int) -> list[tuple[Any, ...]]:
        try:
            cursor = self._cursors[place] = self._connections[place].stream(self._plan.sql, self._plan.parameters)
            head: list[tuple[Any, ...]] = cursor.fetchmany(_FIRST)
            self._ended[place] = len(head) < _FIRST
            if not self._ended[place]:
                more = max(1, _fitting(head, SMALL) - _FIRST)
                head += cursor.fetchmany(more)
                self._ended[place] = len(head) < _FIRST + more
        except sqlite3.Error as error:
            self._deadline.explain(error)
            self._shards[place].fail(error, self._plan.sql)
        return head

    def batches(self, index: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of one shard; of an answer that ended with its first rows no connection is needed."""
        head, self._heads[index] = self._heads[index], []
        size = _fitting(head, _BATCH)
        yield head
        del head
        if self._ended[index]:
            return
        cursor = self._cursors[index]
        while True:
            self._deadline.check()
            try:
                batch = cursor.fetchmany(size)
            except sqlite3.Error as error:
                self._deadline.explain(error)
                self._shards[index].fail(error, self._plan.sql)
            if not batch:
                return
            size = _fitting(batch, _BATCH)
            yield batch

    def abandon(self) -> None:
        """Close from a finaliser, which may run at any line of this thread, also inside a lock that closing takes."""
        if any(pool.is_locked for pool in self._pools) or self._database.budget.is_locked:
            self._database.abandoned.append(self.close)
        else:
            self.close()

    def close(self) -> None:
        """Give the connections back. Idempotent."""
        self.closed = True
        connections, self._connections = self._connections, []
        if not connections:
            return
        self._deadline.release(connections)
        try:
            for cursor in self._cursors:
                if cursor is not None:
                    cursor.close()
        finally:
            if len(connections) == 1:
                self._pools[0].release(connections[0])
            else:
                self._database.budget.release_all(self._pools, connections)
