"""The short way for statements that read by one key and were run before: they cost little more than SQLite itself.

The first run goes the long way and leaves here what of it doesn't depend on the key: whose parameter the key is, how it
leads to a shard, and the columns. All of that holds for one state of the schema and is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardlite.execute.database import Database
from shardlite.execute.result import Result, Row, row_class, small_result
from shardlite.execute.state import State
from shardlite.sql.template import Pinned, Template

_REMEMBERED = 1024
_LONGEST = 8192
"""Characters of a text that is remembered."""


class _Point:
    """What is known of one text. Immutable."""

    __slots__ = ("columns", "count", "index", "make", "route", "state")

    def __init__(
        self, state: State, count: int, index: int, route: Callable[[Any], int], columns: tuple[str, ...]
    ) -> None:
        self.state = state
        self.count = count
        self.index = index
        self.route = route
        self.columns = columns
        self.make: type[Row] = row_class(columns)


class Points:
    """The texts that go the short way. Thread-safe: an entry is put or dropped in one step."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._known: dict[str, _Point] = {}
        self._readers = [shard.fetch_some for shard in database.shards]

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
        rows = self._readers[point.route(value)](sql, parameters)
        if rows is None:  # too many to be read at once
            self._known.pop(sql, None)
            return None
        return small_result(point.columns, point.make, rows) if db.is_current(state) else None
