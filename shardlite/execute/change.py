"""update, delete and upsert: on one shard as one statement, over several as one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardlite.errors import NotSupportedError, ProgrammingError, RoutingError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.insert import EPOCH_HOLDS, Inserter, InsertPlan, insert_text, omitted_with_default
from shardlite.execute.read import Parameters, Reader, Where, refuse_key_change
from shardlite.execute.state import HOME_SHARD, State, key_parts, require_user_name
from shardlite.execute.writes import StaleEpochError, WriteScope
from shardlite.names import fold, quote
from shardlite.router.keys import Affinity, KeyType, apply_affinity
from shardlite.router.table import Table, TableKind
from shardlite.sql.ddl import shift_numbered
from shardlite.sql.rules.common import refuse_updates_of_keys
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.where import Condition


class Changer:
    """Updates, deletes and upserts for one database. Thread-safe."""

    def __init__(self, database: DatabaseCore, reader: Reader, inserter: Inserter) -> None:
        self._db = database
        self._inserter = inserter
        self._reader = reader

    def update(
        self,
        name: str,
        set_values: Mapping[str, Any],
        where: Where = None,
        *,
        key: Any = None,
        parameters: Parameters = (),
    ) -> int:
        """Set columns of the rows that match and return how many matched."""
        table = self._db.table(name)
        if not isinstance(set_values, Mapping) or not set_values:
            raise ProgrammingError(f"{table.name}: set_values must be a mapping of column to value, not {set_values!r}")
        names = [self._writable(table, column) for column in set_values]
        if len({fold(column) for column in names}) != len(names):
            raise ProgrammingError(f"{table.name}: set_values names a column twice: {', '.join(names)}")
        refuse_key_change(table, table.key_columns, names)
        values = list(set_values.values())

        def statement(condition: Condition) -> tuple[str, Parameters]:
            given = condition.parameters
            if isinstance(given, Mapping):
                marks = [f":_shardlite_s{index}" for index in range(len(values))]
                sets: Parameters = {f"_shardlite_s{i}": value for i, value in enumerate(values)} | dict(given)
                text = condition.sql
            else:
                marks = ["?"] * len(values)
                sets = (*values, *given)
                text = shift_numbered(condition.sql, len(values))
            assignments = ", ".join(f"{quote(n)} = {mark}" for n, mark in zip(names, marks, strict=True))
            return f"UPDATE {quote(table.name)} SET {assignments}{f' WHERE {text}' if text else ''}", sets

        form = ("update", *names)
        text = f"UPDATE {quote(table.name)} SET {', '.join(f'{quote(n)} = NULL' for n in names)}"
        return self._change(table.name, where, key, parameters, statement, form, text)

    def delete(self, name: str, where: Where = None, *, key: Any = None, parameters: Parameters = ()) -> int:
        """Delete the rows that match and return how many."""
        table = self._db.table(name)

        def statement(condition: Condition) -> tuple[str, Parameters]:
            text = f" WHERE {condition.sql}" if condition.sql else ""
            return f"DELETE FROM {quote(table.name)}{text}", condition.parameters

        form, text = ("delete",), f"DELETE FROM {quote(table.name)}"
        return self._change(table.name, where, key, parameters, statement, form, text)

    def _require_rows_stay(self, state: State, table: Table, form: tuple[str, ...], sql: str) -> None:
        """Refuse a change of which a foreign key's action would alter a child's shard key: the row would be misplaced.

        ``sql`` does what the change does; ``form`` is what it is remembered by.
        """
        if table.kind is TableKind.SINGLE or (table.name, form) in state.stays:
            return  # a table that is kept whole has no children on the shards
        state.require_steady(table)
        if any(child.foreign_keys for child in state.tables.values()):
            refuse_updates_of_keys(self._db.planning().prepare(sql).updates, state.tables)
        state.stays.add((table.name, form))

    def _writable(self, table: Table, name: str) -> str:
        column = table.by_name.get(fold(name)) if isinstance(name, str) else None
        if column is None:
            known = ", ".join(c.name for c in table.columns)
            raise ProgrammingError(f"{table.name} has no column {name!r}: it has {known}")
        if column.generated:
            raise ProgrammingError(f"{table.name}.{column.name} is a generated column: it can't be written")
        return column.name

    def _change(
        self,
        name: str,
        where: Where,
        key: Any,
        parameters: Parameters,
        statement: Any,
        form: tuple[str, ...],
        text: str,
    ) -> int:
        """Run one statement on the shards of its condition, guarded by the epoch."""
        if isinstance(parameters, Mapping):
            for given in parameters:
                require_user_name(str(given))

        def attempt() -> int:
            state = self._db.current()
            table = state.table(name)
            self._require_rows_stay(state, table, form, text)
            condition = self._reader.condition(table, where, parameters, key)
            shards = self._reader.route(state, table, condition, key)
            if table.kind is TableKind.REFERENCE:
                shards = list(state.layout.shard_ids)
            if len(shards) == 1:
                sql, values = statement(_guarded(condition, state.epoch))
                changed, _ = self._db.shards[shards[0]].write_once(sql, values)
                if changed == 0:
                    self._db.require_current(state, shards[0])
                return changed
            sql, values = statement(condition)
            with self._db.write_scope(shards, state) as scope:
                counts = [scope.run(shard, sql, values).rowcount for shard in shards]
            return counts[0] if table.kind is TableKind.REFERENCE else sum(counts)

        return self._db.with_current(attempt)

    # -- upsert ------------------------------------------------------------------------------------------------

    def upsert(
        self, name: str, row: Mapping[str, Any], key: Any = None, conflict: str | Sequence[str] | None = None
    ) -> Any:
        """Insert the row, or update the row that it conflicts with; return its rowid (or primary key)."""
        return self._db.with_current(lambda: self._upsert(name, row, key, conflict))

    def _upsert(self, name: str, row: Mapping[str, Any], key: Any, conflict: str | Sequence[str] | None) -> Any:
        state = self._db.current()
        table = self._db.table(name)
        if not isinstance(row, Mapping):
            raise ProgrammingError(f"a row must be a mapping of column to value, not {type(row).__name__}: {row!r}")
        if table.explicit_key:
            raise NotSupportedError(f"{table.name} has no key column, so it has nothing to conflict on: use insert")
        row = self._with_key(state, table, row, key)
        target = self._conflict_target(table, row, conflict)
        plan = InsertPlan(state, table, tuple(row), False)
        form = ("upsert", *plan.columns, "", *target)
        self._require_rows_stay(state, table, form, self._upsert_text(table, plan.columns, plan, target))
        if plan.generates_id and table.rowid_alias in target:
            # A new id conflicts with nothing. As an upsert, one that another process has just given would be updated.
            return self._inserter.insert(table.name, row)
        values: list[Any] = list(row.values())
        sequence = self._db.sequence(table)
        token = sequence.token
        drawn = False
        if plan.generates_id:
            values.append(sequence.next())
        elif plan.id_index is not None and table.sharded:
            drawn = self._inserter.note_id(plan, values[plan.id_index])
        probes = plan.id_index is not None and table.sharded and not plan.id_is_key
        home = self._shard(state, plan, values)
        # The home shard comes first; the locks are taken in their own order.
        others = [shard for shard in state.layout.shard_ids if shard != home]
        shards = [home, *others] if table.kind is TableKind.REFERENCE else [home]
        # A default is evaluated once, on the first shard, and its value goes to the other copies.
        shifting = omitted_with_default(table, plan.columns) if len(shards) > 1 else []
        identity = self._identity(table)
        with self._db.write_scope([home, *others] if probes else shards, state) as scope:
            if plan.generates_id and not sequence.is_current(token):
                raise StaleEpochError  # somebody may have given this id meanwhile: draw again
            if probes:
                self._require_id_is_free(scope, plan, values, target, home, drawn)
            asked = ", ".join([*identity, *map(quote, shifting)])
            first = f"{self._upsert_text(table, plan.columns, plan, target)} RETURNING {asked}"
            returned = scope.run(shards[0], first, values).fetchall()
            if returned:
                found = tuple(returned[0])[: len(identity)]
                sql = self._upsert_text(table, (*plan.columns, *shifting), plan, target)
                for shard in shards[1:]:
                    scope.run(shard, sql, [*values, *tuple(returned[0])[len(identity) :]])
            else:  # DO NOTHING on a conflict: say which row is there
                where = " AND ".join(f"{quote(column)} = ?" for column in target)
                find = f"SELECT {', '.join(identity)} FROM {quote(table.name)} WHERE {where}"
                rows = scope.fetch_all(shards[0], find, [values[plan.columns.index(column)] for column in target])
                if not rows:
                    return None  # a trigger ignored the row
                found = tuple(rows[0])
        return found[0] if len(found) == 1 else found

    def _require_id_is_free(
        self, scope: WriteScope, plan: InsertPlan, values: Sequence[Any], target: Sequence[str], home: int, drawn: bool
    ) -> None:
        """Refuse an id that isn't the shard key and that another row has, on any shard; all are locked."""
        table = plan.table
        assert plan.id_index is not None
        assert table.rowid_alias is not None
        rowid = apply_affinity(values[plan.id_index], Affinity.INTEGER)
        where = " AND ".join(f"{quote(column)} = ?" for column in target)
        sql = f"SELECT {quote(table.rowid_alias)} FROM {quote(table.name)} WHERE {where}"
        conflicting = scope.fetch_all(home, sql, [values[plan.columns.index(column)] for column in target])
        if not conflicting or conflicting[0][0] != rowid:
            self._db.require_new_ids(scope, table, [rowid], drawn)

    def _with_key(self, state: State, table: Table, row: Mapping[str, Any], key: Any) -> dict[str, Any]:
        """Return the row with the key's columns filled from ``key``."""
        filled = {self._writable(table, name): value for name, value in row.items()}
        if len(filled) != len(row):
            raise ProgrammingError(f"{table.name}: the row names a column twice")
        alias = table.rowid_alias
        if alias is not None and filled.get(alias, 0) is None:
            del filled[alias]
        columns = state.key_columns(table)
        if key is not None:
            for column, part in zip(columns, key_parts(table, columns, key), strict=True):
                facts = table.by_name[fold(column)]
                kind = KeyType((facts.affinity,), (facts.collation,))
                if kind.canonical(filled.setdefault(column, part)) != kind.canonical(part):
                    raise RoutingError(
                        f"{table.name}: the row says {column} = {filled[column]!r}, but key = {part!r}: leave one out"
                    )
        return filled

    def _conflict_target(
        self, table: Table, row: Mapping[str, Any], conflict: str | Sequence[str] | None
    ) -> tuple[str, ...]:
        wanted = (conflict,) if isinstance(conflict, str) else tuple(conflict or table.primary_key)
        if not wanted:
            raise ProgrammingError(f"{table.name} has no primary key: say conflict=, the columns that must be unique")
        target = tuple(self._writable(table, name) for name in wanted)
        folded = {fold(name) for name in target}
        unique = [{fold(n) for n in c.columns if n is not None} for c in table.unique if not c.partial]
        unique.append({fold(name) for name in table.primary_key})
        if folded not in unique:
            raise ProgrammingError(f"{table.name}: no PRIMARY KEY or UNIQUE constraint on ({', '.join(target)})")
        if table.sharded and not {fold(name) for name in table.key_columns} <= folded:
            raise NotSupportedError(
                f"{table.name}: a conflict on ({', '.join(target)}) may lie on any shard, because the shard key "
                f"({', '.join(table.key_columns)}) is not part of it: select first, then update or insert"
            )
        matching = [
            c for c in table.unique if not c.partial and {fold(n) for n in c.columns if n is not None} == folded
        ]
        unseen = unseen_uniqueness(table)
        if matching and all(constraint in unseen for constraint in matching):
            raise NotSupportedError(
                f"{table.name}: a conflict on ({', '.join(target)}) may lie on any shard, because the constraint takes "
                "keys for equal that live on several: select first, then update or insert"
            )
        missing = [name for name in target if name not in row]
        if missing and missing != [table.rowid_alias]:
            raise ProgrammingError(f"{table.name}: the row lacks {missing[0]}, which conflict= names")
        return target

    def _upsert_text(self, table: Table, columns: Sequence[str], plan: InsertPlan, target: tuple[str, ...]) -> str:
        fixed = {fold(name) for name in (*target, *table.key_columns, *table.primary_key)}
        changing = [name for name in plan.row_columns if fold(name) not in fixed]
        sets = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in changing)
        action = f"UPDATE SET {sets}" if changing else "NOTHING"
        return f"{insert_text(table, columns)} ON CONFLICT ({', '.join(map(quote, target))}) DO {action}"

    def _identity(self, table: Table) -> list[str]:
        if table.rowid_name is not None:
            # The sign: where the first column is REAL, SQLite 3.40 makes a float of a bare rowid in RETURNING.
            return [f"+{quote(table.rowid_name) if table.rowid_alias else table.rowid_name}"]
        return list(map(quote, table.primary_key))

    def _shard(self, state: State, plan: InsertPlan, values: Sequence[Any]) -> int:
        if not plan.table.sharded:
            return HOME_SHARD
        parts = tuple(values[index] for index in plan.key_indexes)
        return state.route(plan.table)(parts[0] if len(parts) == 1 else parts)


def _guarded(condition: Condition, epoch: int) -> Condition:
    """Add the comparison of the shard's epoch, so that a stale route changes nothing."""
    parameters: Parameters
    if isinstance(condition.parameters, Mapping):
        text = EPOCH_HOLDS.replace("?", ":_shardlite_epoch")
        parameters = {**condition.parameters, "_shardlite_epoch": epoch}
    else:
        text, parameters = EPOCH_HOLDS, (*condition.parameters, epoch)
    sql = f"({condition.sql}) AND {text}" if condition.sql else text
    return Condition(sql, parameters, condition.pins, condition.ranges, sql)
