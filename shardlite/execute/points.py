"""The short way for statements of one key that were run before: they cost little more than SQLite itself.

The first run goes the long way and leaves here what of it doesn't depend on the key: whose parameter the key is, how it
leads to a shard, and the columns. All of that holds for one state of the schema and is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardlite.driver import sqlite3
from shardlite.execute.database import Database
from shardlite.execute.insert import EPOCH_HOLDS
from shardlite.execute.past import Past
from shardlite.execute.result import Result, Row, row_class, small_result
from shardlite.execute.state import State
from shardlite.names import fold
from shardlite.sql.cores import top_positions
from shardlite.sql.plan import Plan
from shardlite.sql.template import Pinned, Template, WithFallback
from shardlite.sql.tokens import Text

_REMEMBERED = 1024
_LONGEST = 8192
"""Characters of a text that is remembered."""


class _Point:
    """What is known of one text. Immutable."""

    __slots__ = ("columns", "count", "guarded", "index", "make", "route", "state")

    def __init__(
        self,
        state: State,
        count: int,
        index: int,
        route: Callable[[Any], int],
        columns: tuple[str, ...],
        guarded: str = "",
    ) -> None:
        self.guarded = guarded
        """The text of a change, made to change nothing where the shard's epoch is another; "" for a query."""
        self.state = state
        self.count = count
        self.index = index
        self.route = route
        self.columns = columns
        self.make: type[Row] = row_class(columns)


class Points:
    """The texts that go the short way. Thread-safe: an entry is put or dropped in one step."""

    def __init__(self, database: Database, past: Past) -> None:
        self._db = database
        self._past = past
        self._known: dict[str, _Point] = {}
        self._readers = [shard.fetch_some for shard in database.shards]
        self._writers = [shard.write_once for shard in database.shards]

    def learn(self, state: State, sql: str, template: Template, result: Result) -> None:
        """Remember a statement that was just run, where it is one for the short way."""
        if not isinstance(template, Pinned) or template.point is None or not template.readonly or result.is_held:
            return
        constant, text = template.point.constant, template.text
        if not constant.parameter or text.names or len(sql) > _LONGEST:
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        route = state.layout.shard_of(template.point.key_type)
        self._known[sql] = _Point(state, text.parameter_count, constant.parameter - 1, route, result.columns)

    def learn_change(self, state: State, sql: str, template: Template, plan: Plan) -> None:
        """Remember an UPDATE or DELETE that was just run, where it touches no other table and gives no rows."""
        first = template.first if isinstance(template, WithFallback) else template
        if not isinstance(first, Pinned) or first.point is None or plan.returns_rows or len(plan.tables) != 1:
            return
        constant, text = first.point.constant, first.text
        if not constant.parameter or text.names or len(sql) > _LONGEST:
            return
        table = fold(plan.tables[0])
        if any(item.type == "trigger" and fold(item.tbl_name) == table for item in self._db.catalog.schema):
            return  # what a trigger changes counts in total_changes(), which one statement by itself doesn't tell
        guarded = _guarded(text, state.epoch)
        if guarded is None:
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        route = state.layout.shard_of(first.point.key_type)
        self._known[sql] = _Point(state, text.parameter_count, constant.parameter - 1, route, (), guarded)

    def _change(self, point: _Point, shard: int, parameters: Any) -> Result | None:
        try:
            rows, _ = self._writers[shard](point.guarded, parameters)
        except sqlite3.Error:
            self._past.changes = 0
            raise
        if not rows and self._db.is_stale(point.state, shard):
            return None
        self._past.note(rows, rows, None)
        return Result(rowcount=rows)

    def find(self, sql: str, parameters: Any) -> Result | None:
        """Run a statement the short way; None: it has to go the long one, and nothing was done."""
        try:
            point = self._known[sql]
        except (KeyError, TypeError):  # it may not be a str at all
            return None
        db = self._db
        state = point.state
        if db.current() is not state or not isinstance(parameters, (tuple, list)) or len(parameters) != point.count:
            return None
        value = parameters[point.index]
        if value is None or (isinstance(value, float) and value != value):  # NULL is nobody's key
            return None
        if db.abandoned:
            db.close_abandoned()
        if point.guarded:
            return self._change(point, point.route(value), parameters)
        rows = self._readers[point.route(value)](sql, parameters)
        if rows is None:  # too many to be read at once
            self._known.pop(sql, None)
            return None
        return small_result(point.columns, point.make, rows) if db.is_current(state) else None


def _guarded(text: Text, epoch: int) -> str | None:
    """Return an UPDATE or DELETE that does nothing on a shard of another epoch; None where its WHERE can't be told."""
    tokens = text.tokens
    if text.head not in ("UPDATE", "DELETE"):
        return None
    places = {tokens[at].key: at for at in top_positions(tokens) if tokens[at].key in _CLAUSES}
    if set(places) != {"WHERE"} or places["WHERE"] + 1 >= len(tokens):
        return None
    start, end = tokens[places["WHERE"]].end, tokens[-1].end
    return f"{text.sql[:start]} ({text.sql[start:end]}) AND {EPOCH_HOLDS.replace('?', str(epoch))}"


_CLAUSES = frozenset(("WHERE", "RETURNING", "ORDER", "LIMIT"))
