"""INSERT ... VALUES into a sharded table: each row to the shard of its key, with an id from the table's sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.keys import Affinity, apply_affinity
from shardlite.router.table import Table, TableKind
from shardlite.sql.ddl import conflict_clauses
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import CLOCK, DATES, tells_the_time
from shardlite.sql.insert import GENERATED, Insertion, Row, take_apart
from shardlite.sql.pins import Values
from shardlite.sql.plan import InsertedRow, InsertIds, LayoutView, Parameters, Plan, PlanKind, Step
from shardlite.sql.rules.common import (
    refuse_key_changes,
    refuse_mixed,
    refuse_reference_writes,
    refuse_tolerance_in_triggers,
    refuse_triggers,
    refuse_views,
    unlocal_uniqueness,
)
from shardlite.sql.rules.insert_query import firing, ignores_rows, insert_query
from shardlite.sql.statement import Statement
from shardlite.sql.template import Template
from shardlite.sql.tokens import Text

MOST_PARAMETERS = 30_000
"""SQLite takes 32,766 in one statement."""

_TOLERANT = ("IGNORE", "REPLACE", "UPSERT")


def insert(statement: Statement) -> Template | None:
    """Split an INSERT by its rows' keys, or refuse by name what can't be placed row by row."""
    if statement.kind is not StatementKind.INSERT:
        return None
    try:
        return _insert(statement)
    except NotSupportedError:
        found = insert_query(statement, values=True)
        if found is None:
            raise
        return found


def _insert(statement: Statement) -> Template:
    refuse_views(statement)
    target = statement.schema.tables.get(statement.target or "")
    if target is None or not target.sharded:
        raise NotSupportedError(
            f"INSERT INTO {statement.target} reads or writes the sharded table "
            f"{statement.of_kind(TableKind.SHARDED)[0].name}: read the values first and pass them as parameters"
        )
    if target.explicit_key or not target.key_columns:
        raise NotSupportedError(
            f"INSERT INTO {target.name}: its key stands beside the row: use manager.insert({target.name!r}, row, key)"
        )
    pieces = take_apart(statement.text, target)
    refuse_mixed(statement)
    if statement.mentions("SELECT"):
        raise NotSupportedError(
            f"a query inside INSERT INTO {target.name}: run it first and pass its values as parameters"
        )
    refuse_triggers(statement)
    refuse_reference_writes(statement)
    refuse_key_changes(statement)
    if pieces.conflict in ("IGNORE", "REPLACE"):
        refuse_tolerance_in_triggers(statement, f"OR {pieces.conflict}")
    ignoring = next(
        (f"the trigger {name}" for name in firing(statement, target) if ignores_rows(statement.schema.triggers[name])),
        None,
    )
    if any(clause.action in _TOLERANT for clause in conflict_clauses(statement.schema.ddl.get(fold(target.name), ""))):
        ignoring = ignoring or "ON CONFLICT in the definition"
    explicit_id_conflict = _check_conflicts(target, pieces, ignoring)
    several = _several_keys(statement, target)
    return InsertTemplate(
        statement.text,
        target,
        pieces,
        statement.table_names,
        statement.returns_rows,
        explicit_id_conflict,
        several,
        None if several is None and explicit_id_conflict is None else insert_query(statement, values=True),
    )


def _check_conflicts(table: Table, pieces: Insertion, ignoring: str | None) -> str | None:
    """Refuse a tolerated conflict that may lie on another shard; return the refusal for a stated id.

    ``ignoring`` is what may leave a row out before its id is looked at.
    """
    if pieces.conflict not in _TOLERANT:
        if ignoring is None or unlocal_uniqueness(table) is None:
            return None
        return f"INSERT INTO {table.name} with an id, whose row {ignoring} may leave out"
    unlocal = unlocal_uniqueness(table)
    if unlocal is None:
        if not pieces.takes_id or table.rowid_alias is not None:
            return None
        unlocal = "PRIMARY KEY (rowid)"
    how = "ON CONFLICT" if pieces.conflict == "UPSERT" else f"OR {pieces.conflict}"
    words = (
        f"{how} on {table.name}: the row that conflicts with {unlocal} may be on another shard; "
        "look it up first, then insert or update"
    )
    if not unlocal.startswith("PRIMARY KEY"):
        raise NotSupportedError(words)
    return words


def _several_keys(statement: Statement, table: Table) -> str | None:
    """Return why rows of several keys can't be inserted in one statement, or None when they can."""
    where = f"INSERT INTO {table.name} with rows of several keys and"
    if statement.mentions("RETURNING"):
        return f"{where} RETURNING: insert the rows one by one"
    own = sorted(statement.prepared.functions & statement.schema.functions.others)
    if own:
        return (
            f"{where} the function {own[0]}(), which may answer otherwise in another order: insert the rows one by one"
        )
    defaults = " ".join(fold(column.default_sql or "") for column in statement.left_to_defaults)
    if tells_the_time(statement.text) or any(name in defaults for name in DATES | CLOCK):
        return f"{where} the current time, which is one instant per statement: give the time as a parameter"
    return None


@dataclass(frozen=True, slots=True)
class InsertTemplate:
    """An INSERT ... VALUES into a sharded table."""

    text: Text
    table: Table
    pieces: Insertion
    tables: tuple[str, ...]
    returns_rows: bool
    explicit_id_conflict: str | None
    several_keys: str | None
    otherwise: Template | None = None
    """How rows go in that have to do with each other: as those of a query."""

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        try:
            return self._bind(parameters, layout)
        except NotSupportedError:
            if self.otherwise is None:
                raise
            return self.otherwise.bind(parameters, layout)

    def _bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        ids = [self._stated_id(row, values) for row in self.pieces.rows]
        missing = sum(found is GENERATED_ID for found in ids)
        explicit = tuple(found for found in ids if type(found) is int)
        if explicit and self.explicit_id_conflict is not None:
            raise NotSupportedError(self.explicit_id_conflict)
        alias = self.table.rowid_alias
        id_is_key = alias is not None and fold(alias) in {fold(name) for name in self.table.key_columns}
        wanted = InsertIds(self.table.name, missing, bool(missing) and id_is_key, explicit, not id_is_key)
        if id_is_key and missing:
            # Which ids are drawn decides how many keys there are: refuse by the rows, not by luck.
            if len(ids) > 1 and self.several_keys is not None:
                raise NotSupportedError(self.several_keys)
            plan = self._plan((), parameters, wanted)
            return plan._replace(complete=lambda drawn: self._complete(plan, drawn, ids, values, layout))
        plan = self._placed(self._plan((), parameters, wanted), ids, values, layout, finished=not missing)
        if missing:
            return plan._replace(complete=lambda drawn: self._complete(plan, drawn, ids, values, layout))
        return plan

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        values = Values(self.text, parameters)
        ids = [self._stated_id(row, values) for row in self.pieces.rows]
        if any(found is GENERATED_ID and None in row.key for row, found in zip(self.pieces.rows, ids, strict=True)):
            return None  # the key is an id that is drawn as the statement runs
        rows = zip(self.pieces.rows, ids, strict=True)
        return frozenset(self.table.key_type.canonical(self._key(row, found, values)) for row, found in rows)

    def _plan(self, shards: tuple[int, ...], parameters: Parameters, wanted: InsertIds) -> Plan:
        return Plan(
            PlanKind.ONE_SHARD,
            self.text.sql,
            parameters,
            shards,
            False,
            f"the rows' keys of {self.table.name} are stated",
            self.tables,
            returns_rows=self.returns_rows,
            insert=wanted if self.pieces.takes_id else None,
        )

    def _stated_id(self, row: Row, values: Values) -> Any:
        if not self.pieces.takes_id:
            return None
        if row.id is None:
            return GENERATED_ID
        value = values.of(row.id)
        return GENERATED_ID if value is None else apply_affinity(value, Affinity.INTEGER)

    def _complete(
        self, plan: Plan, drawn: Sequence[int], ids: Sequence[Any], values: Values, layout: LayoutView
    ) -> Plan:
        supply = iter(drawn)
        filled = [Generated(next(supply)) if found is GENERATED_ID else found for found in ids]
        insert = InsertIds(
            self.table.name,
            explicit_ids=plan.explicit_ids,
            probe=plan.insert is not None and plan.insert.probe,
        )
        done = plan._replace(insert=insert, complete=None)
        return self._placed(done, filled, values, layout, finished=True)

    def _placed(self, plan: Plan, ids: Sequence[Any], values: Values, layout: LayoutView, *, finished: bool) -> Plan:
        key_type = self.table.key_type
        locate = layout.shard_of(key_type)
        keys = [self._key(row, found, values) for row, found in zip(self.pieces.rows, ids, strict=True)]
        shards = [locate(key) for key in keys]
        several = len(keys) > 1 and len({key_type.canonical(key) for key in keys}) > 1
        if several and self.several_keys is not None:
            raise NotSupportedError(self.several_keys)
        kind = PlanKind.SPLIT_INSERT if several else PlanKind.ONE_SHARD
        everywhere = tuple(sorted(set(shards)))
        if finished:
            fails = self._key_failures(keys)
            plan = plan._replace(
                rows=lambda: self._one_by_one(shards, ids, values, fails),
                row_count=len(keys),
                fails=next(iter(fails.values()), ""),
            )
        if not finished or (len(everywhere) == 1 and not any(isinstance(found, Generated) for found in ids)):
            return plan._replace(kind=kind, shards=everywhere)
        # The shard of the last row comes last, so that the last step's lastrowid is the statement's.
        order = sorted(everywhere, key=lambda shard: (shard == shards[-1], shard))
        rows: dict[int, list[int]] = {shard: [] for shard in order}
        for position, shard in enumerate(shards):
            rows[shard].append(position)
        steps = tuple(
            self._step(shard, part, ids, values) for shard, mine in rows.items() for part in self._parts(mine)
        )
        if len(steps) == 1:
            only = steps[0]
            return plan._replace(kind=kind, shards=everywhere, sql=only.sql, parameters=only.parameters)
        return plan._replace(kind=kind, shards=everywhere, split=steps)

    def _key(self, row: Row, found: Any, values: Values) -> Any:
        identity = found.id if isinstance(found, Generated) else found
        parts = [identity if part is None else values.of(part) for part in row.key]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _key_failures(self, keys: Sequence[Any]) -> dict[int, str]:
        """Refuse NULL where SQLite may store the key's default instead (OR REPLACE): it would not be routed by that.

        Returns what is to be said, by the row's position.
        """
        columns = [self.table.by_name[fold(name)] for name in self.table.key_columns]
        found: dict[int, str] = {}
        if self.pieces.conflict == "IGNORE":
            return found
        for part, column in enumerate(columns):
            if not column.not_null or column.default_sql is None:
                continue
            words = f"NOT NULL constraint failed: {self.table.name}.{column.name} [it is the shard key]"
            for position, key in enumerate(keys):
                if (key if len(columns) == 1 else key[part]) is None:
                    found.setdefault(position, words)
        return found

    def _one_by_one(
        self, shards: Sequence[int], ids: Sequence[Any], values: Values, fails: Mapping[int, str]
    ) -> list[InsertedRow]:
        found = []
        for position, (shard, identity) in enumerate(zip(shards, ids, strict=True)):
            _, sql, parameters = self._step(shard, [position], ids, values)
            drawn = isinstance(identity, Generated)
            known = identity.id if drawn else identity if type(identity) is int else None
            found.append(InsertedRow(shard, sql, parameters, known, drawn, fails.get(position, "")))
        return found

    def _parts(self, positions: list[int]) -> Iterator[list[int]]:
        """Cut rows into parts that stay under SQLite's limit of parameters."""
        fixed = len(self.pieces.prefix.slots) + len(self.pieces.tail.slots)
        part: list[int] = []
        bound = fixed
        for position in positions:
            needed = len(self.pieces.rows[position].with_id.slots) + 1
            if part and bound + needed > MOST_PARAMETERS:
                yield part
                part, bound = [], fixed
            part.append(position)
            bound += needed
        yield part

    def _step(self, shard: int, positions: Sequence[int], ids: Sequence[Any], values: Values) -> Step:
        pieces = self.pieces
        texts: list[str] = []
        bound: list[Any] = [values.raw(slot) for slot in pieces.prefix.slots]
        injects = pieces.takes_id and any(pieces.rows[i].id is None for i in positions)
        for position in positions:
            row, found = pieces.rows[position], ids[position]
            generated = isinstance(found, Generated)
            piece = row.with_id if generated or injects else row.as_given
            texts.append(piece.sql)
            bound += [found.id if slot == GENERATED else values.raw(slot) for slot in piece.slots]
        bound += [values.raw(slot) for slot in pieces.tail.slots]
        return Step(shard, pieces.prefix.sql + ", ".join(texts) + pieces.tail.sql, tuple(bound))


@dataclass(frozen=True, slots=True)
class Generated:
    """An id that was drawn from the sequence."""

    id: int


class _Missing:
    """The mark of a row whose id has to be drawn."""


GENERATED_ID = _Missing()
