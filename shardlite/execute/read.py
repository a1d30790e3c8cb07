"""get, select and count: rows by key and by condition, merged over shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.merge import merge_rows
from shardlite.execute.state import HOME_SHARD, State, key_parts, key_store_of
from shardlite.names import fold, is_reserved, quote
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.order import compile_order
from shardlite.sql.where import Condition, compile_where

Where = Mapping[str, Any] | str | None
Parameters = Sequence[Any] | Mapping[str, Any]
_MOST_PINNED_KEYS = 10_000
_INT64_MAX = 2**63 - 1
_BATCH = 500


class GetPlan:
    """How one row of a table is found by its key. Immutable once made."""

    __slots__ = ("columns", "names", "readers", "route", "single", "sql", "table")

    def __init__(self, state: State, table: Table, shards: Sequence[SqliteShard]) -> None:
        self.readers = [shard.fetch_row for shard in shards]
        key_columns = state.key_columns(table)
        if table.explicit_key or not key_columns:
            raise ProgrammingError(f"{table.name} has no primary key to get a row by: use select")
        primary = table.primary_key
        if not {fold(name) for name in key_columns} <= {fold(name) for name in primary}:
            raise ProgrammingError(
                f"{table.name}: the shard key ({', '.join(key_columns)}) is not the primary key "
                f"({', '.join(primary) or 'there is none'}), so a key may have many rows: use select(table, key=...)"
            )
        self.table = table
        self.names = tuple(column.name for column in table.columns)
        self.columns = primary
        self.single = len(primary) == 1
        where = " AND ".join(f"{quote(name)} = ?" for name in primary)
        self.sql = f"SELECT {', '.join(map(quote, self.names))} FROM {quote(table.name)} WHERE {where}"
        at = [primary.index(name) for name in _as_declared(primary, key_columns)]
        route = state.route(table)
        self.route = _picked(route, at, len(primary)) if table.sharded else route


def _as_declared(primary: Sequence[str], key_columns: Sequence[str]) -> list[str]:
    by_folded = {fold(name): name for name in primary}
    return [by_folded[fold(name)] for name in key_columns]


def _picked(route: Any, at: list[int], width: int) -> Any:
    if width == 1:
        return route
    if len(at) == 1:
        (index,) = at
        return lambda key: route(key[index])
    return lambda key: route(tuple(key[index] for index in at))


class Reader:
    """Reads for one database. Thread-safe."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database

    def get(self, name: str, key: Any) -> dict[str, Any] | None:
        """Return the row with this primary key, or None."""
        db = self._db
        while True:
            state = db.current()
            try:
                plan = state.gets[name]
            except (KeyError, TypeError):
                plan = state.gets[name] = GetPlan(state, state.table(name), db.shards)
            if plan.single:
                row = plan.readers[plan.route(key)](plan.sql, (key,))
            else:
                parts = key_parts(plan.table, plan.columns, key)
                row = plan.readers[plan.route(parts)](plan.sql, parts)
            if db.is_current(state):
                return None if row is None else dict(zip(plan.names, row))  # noqa: B905 - the SQL names them

    def select(
        self,
        name: str,
        where: Where = None,
        *,
        key: Any = None,
        columns: Sequence[str] | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        parameters: Parameters = (),
    ) -> list[dict[str, Any]]:
        """Return rows as dicts; see ShardManager.select."""
        db = self._db
        while True:
            state = db.current()
            table = db.table(name)
            names = self._columns(table, columns)
            condition = self.condition(table, where, parameters, key)
            shards = self.route(state, table, condition, key)
            rows = self._rows(
                state, table, names, condition, shards, order_by, _count("limit", limit), _count("offset", offset)
            )
            if db.is_current(state):
                return [dict(zip(names, row, strict=True)) for row in rows]

    def count(self, name: str, where: Where = None, *, key: Any = None, parameters: Parameters = ()) -> int:
        """Return the number of rows."""
        db = self._db
        while True:
            state = db.current()
            table = db.table(name)
            condition = self.condition(table, where, parameters, key)
            sql = f"SELECT count(*) FROM {quote(table.name)}{where_text(condition)}"
            total = 0
            for shard in self.route(state, table, condition, key):
                row = db.shards[shard].fetch_row(sql, condition.parameters)
                total += row[0] if row is not None else 0
            if db.is_current(state):
                return total

    # -- what the writers use too --------------------------------------------------------------------------------

    def condition(self, table: Table, where: Where, parameters: Parameters, key: Any) -> Condition:
        """Compile ``where`` together with ``key=``: the rows with that shard key, not the whole shard."""
        if isinstance(parameters, Mapping):
            for name in parameters:
                if is_reserved(str(name)):
                    raise ProgrammingError(f"parameters that begin with _shardlite_ are shardlite's own: {name}")
        condition = compile_where(table, where, parameters, functions=self._db.registry.functions)
        if key is None:
            return condition
        if table.explicit_key:
            store = quote(key_store_of(table))
            text = f"{quote(table.rowid_name or '')} IN (SELECT id FROM {store} WHERE key = ?)"
            return _both(condition, text, (key,), {})
        columns = self._db.current().key_columns(table)
        if not columns:
            raise ProgrammingError(f"{table.name} is kept whole and has no primary key: key= has no meaning, use where")
        parts = key_parts(table, columns, key)
        text = " AND ".join(f"{quote(name)} = ?" for name in columns)
        return _both(condition, text, parts, {fold(n): (p,) for n, p in zip(columns, parts, strict=True)})

    def route(self, state: State, table: Table, condition: Condition, key: Any = None) -> list[int]:
        """Return the shards that can hold rows of the condition, ascending; at least one."""
        if not table.sharded:
            return [HOME_SHARD]
        route = state.route(table)
        if table.explicit_key:
            return [route(key)] if key is not None else list(state.layout.shard_ids)
        pins = [condition.pins.get(fold(name)) for name in table.key_columns]
        if None not in pins:
            choices = [values or (None,) for values in pins if values is not None]
            combinations = 1
            for values in choices:
                combinations *= len(values)
            if combinations <= _MOST_PINNED_KEYS:
                if len(choices) == 1:
                    return sorted({route(value) for value in choices[0]})
                return sorted({route(values) for values in product(*choices)})
        if len(table.key_columns) == 1:
            bounds = condition.ranges.get(fold(table.key_columns[0]))
            if bounds:
                return self._between(state, table, bounds)
        return list(state.layout.shard_ids)

    def _between(self, state: State, table: Table, bounds: Sequence[tuple[str, Any]]) -> list[int]:
        """Return the shards for a range of the key; every bound alone may narrow it, their intersection holds all."""
        shards = set(state.layout.shard_ids)
        for operator, value in bounds:
            low, high = (value, None) if operator.startswith(">") else (None, value)
            shards &= state.layout.shards_between(table.key_type, low, high)
        return sorted(shards) or [HOME_SHARD]

    def _columns(self, table: Table, columns: Sequence[str] | None) -> tuple[str, ...]:
        if columns is None:
            return tuple(column.name for column in table.columns)
        if isinstance(columns, str):
            columns = (columns,)
        if not columns:
            raise ProgrammingError(f"{table.name}: columns must name a column at least, or be None for all")
        for name in columns:
            if not isinstance(name, str) or fold(name) not in table.by_name:
                known = ", ".join(column.name for column in table.columns)
                raise ProgrammingError(f"{table.name} has no column {name!r}: it has {known}")
        return tuple(columns)

    def _rows(
        self,
        state: State,
        table: Table,
        names: tuple[str, ...],
        condition: Condition,
        shards: Sequence[int],
        order_by: str | Sequence[str] | None,
        limit: int | None,
        offset: int | None,
    ) -> Iterable[tuple[Any, ...]]:
        select = f"SELECT {', '.join(map(quote, names))}"
        body = f" FROM {quote(table.name)}{where_text(condition)}"
        if len(shards) == 1:
            order = compile_order(table, order_by, state.registered.collations).sql if order_by is not None else ""
            sql = f"{select}{body} {order}{limit_text(limit, offset)}"
            return self._db.shards[shards[0]].fetch_all(sql, condition.parameters)
        spec = compile_order(table, order_by, state.registered.collations)
        whole = None if limit is None else min(limit + (offset or 0), _INT64_MAX)
        sql = f"{select}{spec.hidden}{body} {spec.sql}{limit_text(whole, None)}"
        parts = [self._db.shards[shard].fetch_all(sql, condition.parameters) for shard in shards]
        return merge_rows(parts, spec, limit=limit, offset=offset, encoding=state.layout.encoding)


def _both(condition: Condition, text: str, values: tuple[Any, ...], pins: Mapping[str, tuple[Any, ...]]) -> Condition:
    """Add a condition that is ours to one that is the caller's."""
    parameters: Parameters
    if isinstance(condition.parameters, Mapping):
        named = {f"_shardlite_k{index}": value for index, value in enumerate(values)}
        for name in named:
            text = text.replace("?", f":{name}", 1)
        parameters = {**condition.parameters, **named}
    else:
        parameters = (*condition.parameters, *values)
    sql = f"({condition.sql}) AND {text}" if condition.sql else text
    return Condition(sql, parameters, {**condition.pins, **pins}, condition.ranges, sql)


def where_text(condition: Condition) -> str:
    """Return `` WHERE ...``, or nothing."""
    return f" WHERE {condition.sql}" if condition.sql else ""


def limit_text(limit: int | None, offset: int | None) -> str:
    """Return `` LIMIT n OFFSET m`` as SQLite wants it, or nothing."""
    if limit is None and not offset:
        return ""
    return f" LIMIT {-1 if limit is None else limit}" + (f" OFFSET {offset}" if offset else "")


def _count(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _INT64_MAX:
        raise ProgrammingError(f"{name} must be an int from 0 to {_INT64_MAX}, not {value!r}")
    return value


def refuse_key_change(table: Table, key_columns: Sequence[str], names: Iterable[str]) -> None:
    """Raise NotSupportedError when an update would move rows to other shards, or change ids that every shard shares."""
    changed = {fold(name) for name in names}
    if not table.sharded:
        return  # every copy of a reference table makes the same change
    moved = [name for name in key_columns if fold(name) in changed]
    if moved:
        raise NotSupportedError(
            f"{table.name}: an update can't change {moved[0]}, which decides where the row lives: "
            "delete the row and insert it again"
        )
    alias = table.rowid_alias
    if alias is not None and fold(alias) in changed:
        raise NotSupportedError(
            f"{table.name}: an update can't change {alias}, whose values are unique over all shards: "
            "delete the row and insert it again"
        )
