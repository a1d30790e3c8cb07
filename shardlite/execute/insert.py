"""INSERT of rows given as mappings: one row fast, many rows in one transaction.

A row's shape (the names it has) is compiled once per epoch into an InsertPlan; after that an insert costs a look-up,
the hash of the key, and one statement. That statement compares the shard's epoch by itself, inside its own transaction,
so a row can't go by a layout or a schema that has just been replaced: it then changes nothing, and the row is routed
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, OperationalError, ProgrammingError, RoutingError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.state import HOME_SHARD, State, key_parts, key_store_of, require_user_name
from shardlite.execute.writes import StaleEpochError, WriteScope
from shardlite.names import fold, quote
from shardlite.router.keys import Affinity, KeyType, apply_affinity
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.copies import shifts

EPOCH_HOLDS = "(SELECT epoch FROM _shardlite_meta) = ?"
IDS_HOLD = "(SELECT ids FROM _shardlite_meta) <= ?"
"""No id that somebody had drawn was given explicitly since: a generated id that isn't the key may be on any shard."""
# PRIMARYKEY and ROWID; pysqlite3 reports only the general code, SQLITE_CONSTRAINT
_ID_TAKEN = frozenset({1555, 2579} if hasattr(sqlite3, "SQLITE_CONSTRAINT_ROWID") else {sqlite3.SQLITE_CONSTRAINT})
_ATTEMPTS = 50
_MOST_PLANS = 4096


class InsertPlan:
    """How rows of one shape go into one table. Immutable once made; shared by threads."""

    __slots__ = (
        "checks_ids",
        "columns",
        "extra",
        "fast",
        "generates_id",
        "id_index",
        "id_is_key",
        "insert_sql",
        "key_index",
        "key_indexes",
        "note_key",
        "once_sql",
        "plain",
        "route",
        "row_columns",
        "table",
        "writers",
    )

    def __init__(self, state: State, table: Table, names: tuple[str, ...], key_given: bool) -> None:
        self.table = table
        self.row_columns = tuple(column.name for column in _columns_of_row(table, names))
        folded = {fold(name): index for index, name in enumerate(self.row_columns)}
        alias = table.rowid_alias
        key_columns = state.key_columns(table)
        missing = tuple(name for name in key_columns if fold(name) not in folded)
        self.id_is_key = alias is not None and key_columns == (alias,)
        self.extra = self._extra_key_columns(table, missing, key_columns, key_given)
        columns = [*self.row_columns, *self.extra]
        self.generates_id = _generates_id(table, {fold(name) for name in columns})
        if self.generates_id:
            assert table.rowid_name is not None
            columns.append(table.rowid_name)
        self.columns = tuple(columns)
        positions = {fold(name): index for index, name in enumerate(columns)}
        self.key_indexes: tuple[int, ...] = ()
        if all(fold(name) in positions for name in key_columns):  # a table kept whole may leave its id to SQLite
            self.key_indexes = tuple(positions[fold(name)] for name in key_columns)
        self.key_index = self.key_indexes[0] if self.key_indexes else -1
        self.id_index = positions.get(fold(alias)) if alias is not None and not self.generates_id else None
        target = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, columns))})"
        marks = ", ".join("?" * len(columns))
        self.insert_sql = f"{target} VALUES ({marks})" if columns else f"INSERT INTO {quote(table.name)} DEFAULT VALUES"
        self.checks_ids = self.generates_id and not self.id_is_key
        guard = f"{EPOCH_HOLDS} AND {IDS_HOLD}" if self.checks_ids else EPOCH_HOLDS
        self.writers: Sequence[Callable[..., tuple[int, int | None]]] = ()
        self.note_key: Callable[[int], None] = _note_nothing
        state.require_steady(table)
        self.plain = table.kind is not TableKind.REFERENCE and not table.explicit_key and bool(columns)
        """One statement on one shard does it all."""
        self.fast = (
            self.plain
            and table.sharded
            and len(key_columns) == 1
            and not self.generates_id
            and (self.id_index is None or self.id_is_key)
            and not table.without_rowid
        )
        """The common case: routed by one column, and no id to be generated or looked for."""
        self.route = state.route(table)
        self.once_sql = f"{target} SELECT {marks} WHERE {guard}" if columns else ""

    def _extra_key_columns(
        self, table: Table, missing: tuple[str, ...], key_columns: tuple[str, ...], key_given: bool
    ) -> tuple[str, ...]:
        """Return the key columns that ``key`` fills."""
        if not missing:
            return ()
        if key_given:
            if len(missing) < len(key_columns):
                raise RoutingError(
                    f"{table.name}: the row holds a part of the key only; {', '.join(missing)} is missing"
                )
            return key_columns
        if table.sharded and not self.id_is_key:
            raise RoutingError(
                f"{table.name}: the row has no value for the shard key ({', '.join(missing)}): "
                "put it into the row or pass key="
            )
        return ()


def _note_nothing(_number: int) -> None:
    """Stand in for the sequence until the plan has one."""


def _columns_of_row(table: Table, names: tuple[str, ...]) -> list[Column]:
    columns = []
    for name in names:
        if not isinstance(name, str):
            raise ProgrammingError(f"{table.name}: a column's name must be a str, not {name!r}")
        column = table.by_name.get(fold(name))
        if column is None:
            known = ", ".join(c.name for c in table.columns)
            raise ProgrammingError(f"{table.name} has no column {name!r}: it has {known}")
        if column.generated:
            raise ProgrammingError(f"{table.name}.{column.name} is a generated column: it can't be written")
        if column in columns:
            raise ProgrammingError(f"{table.name}: the row names the column {column.name} twice")
        columns.append(column)
    return columns


def _generates_id(table: Table, columns: set[str]) -> bool:
    """Tell whether the row's rowid comes from the table's sequence.

    Those of reference tables don't: equal copies that get equal rows in the same order give them equal rowids.
    """
    if table.without_rowid or table.virtual or not table.sharded:
        return False
    if table.rowid_alias is not None:
        return fold(table.rowid_alias) not in columns
    return table.rowid_name is not None


class Inserter:
    """Inserts for one database. Thread-safe."""

    def __init__(self, database: DatabaseCore, keep_explicit_keys: Callable[[Table], Table]) -> None:
        self._db = database
        self._keep_explicit_keys = keep_explicit_keys

    def insert(self, name: str, row: Mapping[str, Any], key: Any = None) -> Any:
        """Insert one row; return its rowid, or the primary key of a table without rowid."""
        db = self._db
        state = db.current()
        try:
            plan = state.inserts[name, tuple(row), key is None]
        except (KeyError, TypeError):
            plan = self._plan(state, name, row, key)
        try:
            if plan.fast and (plan.extra or key is None):
                values = [*row.values()]
                if plan.extra:
                    values.append(key)
                value = values[plan.key_index]
                if type(value) is int or (value is not None and not plan.id_is_key):
                    if plan.id_is_key:
                        plan.note_key(value)
                    values.append(state.epoch)
                    changed, rowid = plan.writers[plan.route(value)](plan.once_sql, values)
                    if changed == 0:
                        db.require_current(state)
                        return None  # a trigger said RAISE(IGNORE)
                    return rowid
            return self._insert_slowly(state, plan, name, row, key)
        except StaleEpochError:
            return db.with_current(lambda: self.insert(name, row, key))

    def _insert_slowly(self, state: State, plan: InsertPlan, name: str, row: Mapping[str, Any], key: Any) -> Any:
        values = [*row.values()]
        if plan.extra:
            values += key_parts(plan.table, plan.extra, key)
        elif key is not None:
            self._require_same_key(state, plan, values, key)
        if plan.id_index is not None and values[plan.id_index] is None:
            return self.insert(name, _without(row, plan.table.rowid_alias), key)
        if not plan.plain:
            return self._insert_elsewhere(state, plan, values, key)
        if plan.generates_id:
            return self._insert_generated(state, plan, values)
        if plan.id_index is not None and plan.table.sharded:
            if not plan.id_is_key:
                return self._insert_probed(state, plan, values)
            self.note_id(plan, values[plan.id_index])
        return self._insert_plain(state, plan, values)

    def _plan(self, state: State, name: str, row: Mapping[str, Any], key: Any) -> InsertPlan:
        if not isinstance(row, Mapping):
            raise ProgrammingError(f"a row must be a mapping of column to value, not {type(row).__name__}: {row!r}")
        table = state.table(name)
        require_user_name(table.name)
        if key is not None and table.kind is TableKind.REFERENCE and not table.primary_key:
            raise ProgrammingError(
                f"{table.name} is a reference table without a primary key: its rows have no key, leave key= out"
            )
        if key is not None and not table.sharded and not table.primary_key and not table.explicit_key:
            table = self._keep_explicit_keys(table)
            state = self._db.current()
        plan = InsertPlan(state, table, tuple(row), key is not None and not table.explicit_key)
        plan.writers = [shard.write_once for shard in self._db.shards]
        plan.note_key = self._db.sequence(table).note_key
        if len(state.inserts) >= _MOST_PLANS:
            state.inserts.clear()
        state.inserts[name, tuple(row), key is None] = plan
        return plan

    def _require_same_key(self, state: State, plan: InsertPlan, values: list[Any], key: Any) -> None:
        """Raise RoutingError when ``key`` is another value than the row's own."""
        table = plan.table
        if table.explicit_key or not plan.key_indexes:
            return
        columns = state.key_columns(table)
        for name, index, part in zip(columns, plan.key_indexes, key_parts(table, columns, key), strict=True):
            column = table.by_name[fold(name)]
            if values[index] is None and part is not None and column.name == table.rowid_alias:
                values[index] = part
                continue
            kind = KeyType((column.affinity,), (column.collation,))
            if kind.canonical(values[index]) != kind.canonical(part):
                raise RoutingError(
                    f"{table.name}: the row says {column.name} = {values[index]!r}, but key = {part!r}: "
                    "leave one of them out"
                )

    # -- one shard, one statement ------------------------------------------------------------------------------

    def _insert_plain(self, state: State, plan: InsertPlan, values: list[Any]) -> Any:
        shard = self._shard_of(state, plan, values)
        values.append(state.epoch)
        changed, rowid = self._db.shards[shard].write_once(plan.once_sql, values)
        if changed == 0:
            self._db.require_current(state)
            return None
        return rowid if not plan.table.without_rowid else self._primary_key(plan, values)

    def _insert_generated(self, state: State, plan: InsertPlan, values: list[Any]) -> Any:
        """Insert with an id from the sequence; draw again when another process gave that id explicitly."""
        sequence = self._db.sequence(plan.table)
        for _ in range(_ATTEMPTS):
            token = sequence.token
            rowid = sequence.next()
            row = [*values, rowid]
            shard = self._shard_of(state, plan, row)
            row.append(state.epoch)
            if plan.checks_ids:
                row.append(token)
            try:
                changed, _ = self._db.shards[shard].write_once(plan.once_sql, row)
            except IntegrityError as error:
                if not is_id_taken(error, plan.table):
                    raise
                sequence.invalidate()
                continue
            if changed == 0:
                self._db.require_current(state)
                if plan.checks_ids and not sequence.is_current(token):
                    continue
                return None
            return rowid
        raise OperationalError(f"{plan.table.name}: {_ATTEMPTS} generated ids in turn were taken by other processes")

    def _shard_of(self, state: State, plan: InsertPlan, values: list[Any]) -> int:
        indexes = plan.key_indexes
        key = values[indexes[0]] if len(indexes) == 1 else tuple(values[index] for index in indexes)
        if plan.table.sharded and None in (key if len(indexes) > 1 else (key,)):
            require_key_values(plan.table, [key])
        return plan.route(key)

    def _primary_key(self, plan: InsertPlan, values: list[Any]) -> Any:
        positions = {fold(name): index for index, name in enumerate(plan.columns)}
        parts = tuple(values[positions[fold(n)]] for n in plan.table.primary_key if fold(n) in positions)
        return parts[0] if len(parts) == 1 else parts

    def note_id(self, plan: InsertPlan, value: Any) -> bool:
        """Tell the sequence of an id that the row states; True when somebody may have drawn it already."""
        if type(value) is not int:
            value = apply_affinity(value, Affinity.INTEGER)
            if not isinstance(value, int):
                raise RoutingError(
                    f"{plan.table.name}.{plan.table.rowid_alias} is an INTEGER PRIMARY KEY: {value!r} is no integer "
                    "(datatype mismatch)"
                )
        return self._db.sequence(plan.table).note_explicit(value)

    # -- everything that needs more than one statement ---------------------------------------------------------

    def _insert_elsewhere(self, state: State, plan: InsertPlan, values: list[Any], key: Any) -> Any:
        if plan.table.kind is TableKind.REFERENCE:
            return self._insert_reference(state, plan, values)
        if plan.table.explicit_key:
            return self._insert_with_explicit_key(state, plan, values, key)
        with self._db.write_scope([HOME_SHARD], state) as scope:
            return _rowid_of(scope.run(HOME_SHARD, plan.insert_sql, values))

    def _insert_probed(self, state: State, plan: InsertPlan, values: list[Any]) -> Any:
        """Insert an id that isn't the shard key: it must be new on every shard, under all their locks."""
        assert plan.id_index is not None
        drawn = self.note_id(plan, values[plan.id_index])
        rowid = apply_affinity(values[plan.id_index], Affinity.INTEGER)

        def work(scope: Any) -> Any:
            shard = self._shard_of(state, plan, values)
            try:
                self._db.require_new_ids(scope, plan.table, [rowid], drawn)
            except IntegrityError:
                # A trigger may leave the row out before anybody looks at its id.
                with suppress(sqlite3.Error):
                    if not scope.run(shard, plan.insert_sql, values).rowcount:
                        return None
                raise
            return _rowid_of(scope.run(shard, plan.insert_sql, values))

        with self._db.write_scope(state.layout.shard_ids, state) as scope:
            return work(scope)

    def _insert_reference(self, state: State, plan: InsertPlan, values: list[Any]) -> Any:
        """Insert into every copy. Defaults are evaluated once, on the home shard."""
        table = plan.table
        if plan.generates_id:
            values = [*values, self._db.sequence(table).next()]
        elif plan.id_index is not None:
            self.note_id(plan, values[plan.id_index])
        with self._db.write_scope(state.layout.shard_ids, state) as scope:
            rowid = insert_copies(scope, state.layout.shard_ids, plan, values)
        return rowid if rowid is None or not table.without_rowid else self._primary_key(plan, values)

    def _insert_with_explicit_key(self, state: State, plan: InsertPlan, values: list[Any], key: Any) -> Any:
        """Insert a row whose key is no column, and remember the key beside it."""
        table = plan.table
        if key is None and table.sharded:
            raise RoutingError(f"{table.name} has no key column: pass key= with each row")
        row = [*values, self._db.sequence(table).next()] if plan.generates_id else values

        def work(scope: Any) -> Any:
            shard = state.route(table)(key)
            rowid = _rowid_of(scope.run(shard, plan.insert_sql, row))
            if key is not None and rowid is not None:
                sql = f"INSERT OR REPLACE INTO {quote(key_store_of(table))} (id, key) VALUES (?, ?)"
                scope.run(shard, sql, (rowid, apply_affinity(key, Affinity.BLOB)))
            return rowid

        shard = state.route(table)(key)
        with self._db.write_scope([shard], state) as scope:
            return work(scope)


def insert_copies(scope: WriteScope, shards: Sequence[int], plan: InsertPlan, values: Sequence[Any]) -> Any:
    """Insert one row into every copy of a reference table; defaults are evaluated once, on the first shard."""
    shifting = omitted_with_default(plan.table, plan.columns)
    require_no_shifting_null(plan.table, plan.columns, values)
    if not shifting:
        rowids = [_rowid_of(scope.run(shard, plan.insert_sql, values)) for shard in shards]
        return rowids[0]
    done = scope.run(shards[0], f"{plan.insert_sql} RETURNING {', '.join(map(quote, shifting))}", values)
    drawn = done.fetchall()
    if not drawn:
        return None  # a trigger ignored the row
    row = [*values, *drawn[0]]
    rowid = done.lastrowid
    sql = insert_text(plan.table, (*plan.columns, *shifting))
    for shard in shards[1:]:
        scope.run(shard, sql, row)
    return rowid


def _rowid_of(done: sqlite3.Cursor) -> Any:
    """Return the new row's id, None when a trigger or a conflict clause ignored it."""
    return done.lastrowid if done.rowcount else None


def require_no_shifting_null(table: Table, columns: Sequence[str], values: Sequence[Any]) -> None:
    """Refuse NULL where SQLite may put a default in its place that differs from copy to copy."""
    if None not in values:
        return
    given = {fold(name): value for name, value in zip(columns, values, strict=True)}
    for column in table.columns:  # in SQLite's order: the first one that fails is told
        name = fold(column.name)
        if not column.not_null or column.name == table.rowid_alias or given.get(name) is not None:
            continue
        if name in given and shifts(column):
            raise IntegrityError(f"NOT NULL constraint failed: {table.name}.{column.name}")
        if column.default_sql is None and not column.generated:
            return  # SQLite refuses the row here


def require_key_values(table: Table, keys: Sequence[Any]) -> None:
    """Refuse NULL as a part of the key where the column is NOT NULL.

    SQLite may store the column's default instead (NOT NULL ON CONFLICT REPLACE), and the row would have been routed by
    NULL.
    """
    columns = [table.by_name[fold(name)] for name in table.key_columns]
    for key in keys:
        for column, part in zip(columns, key if len(columns) > 1 else (key,), strict=True):
            if part is None and column.not_null:
                raise IntegrityError(f"NOT NULL constraint failed: {table.name}.{column.name} [it is the shard key]")


def insert_text(table: Table, columns: Sequence[str]) -> str:
    """Return INSERT INTO with a parameter for each column."""
    if not columns:
        return f"INSERT INTO {quote(table.name)} DEFAULT VALUES"
    return (
        f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, columns))}) VALUES ({', '.join('?' * len(columns))})"
    )


def _without(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    return {name: value for name, value in row.items() if column is None or fold(name) != fold(column)}


def is_id_taken(error: sqlite3.Error, table: Table) -> bool:
    """Tell whether an insert failed because its rowid is there already."""
    return getattr(error, "sqlite_errorcode", 0) in _ID_TAKEN and (
        str(error).startswith(f"UNIQUE constraint failed: {table.name}.{table.rowid_name}")
    )


def omitted_with_default(table: Table, columns: tuple[str, ...]) -> list[str]:
    """Return the columns that get a default which may differ from one evaluation to the next."""
    given = {fold(name) for name in columns}
    return [
        column.name
        for column in table.columns
        if fold(column.name) not in given and not column.generated and shifts(column)
    ]
