"""insert_many: rows from any iterable, split by shard, in one transaction.

Rows are taken in batches, so an endless source costs the memory of one batch. When the first batch holds all rows,
only the shards that they need are locked; otherwise all are, since a later row may belong anywhere and locks are only
ever taken in ascending order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import call, itemgetter
from typing import Any

from shardlite.errors import IntegrityError, NotSupportedError, ProgrammingError, RoutingError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.insert import (
    InsertPlan,
    insert_copies,
    omitted_with_default,
    require_key_values,
    require_no_shifting_null,
)
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError, WriteScope
from shardlite.router.keys import Affinity, apply_affinity
from shardlite.router.table import Table, TableKind

DEFAULT_BATCH = 10_000
Row = Mapping[str, Any]


class BulkInserter:
    """insert_many for one database. Thread-safe."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database

    def insert_many(self, name: str, rows: Iterable[Row], batch_size: int = DEFAULT_BATCH) -> int:
        """Insert all rows or none and return how many."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ProgrammingError(f"batch_size must be an int of 1 or more, not {batch_size!r}")
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise ProgrammingError(f"rows must be an iterable of mappings, not a {type(rows).__name__}")
        table = self._db.table(name)
        if table.explicit_key and table.sharded:
            raise NotSupportedError(f"{table.name} has no key column: insert its rows one by one with key=")
        source = iter(rows)
        first = list(islice(source, batch_size))
        if not first:
            return 0
        second = list(islice(source, batch_size))
        return self._db.with_current(lambda: self._insert(table.name, first, second, source, batch_size))

    def _insert(self, name: str, first: list[Row], second: list[Row], source: Iterator[Row], batch_size: int) -> int:
        state = self._db.current()
        table = state.table(name)
        prepared = Batch(self._db, state, table, _by_shape(table, first, 0))
        everywhere = bool(second) or table.kind is TableKind.REFERENCE or prepared.probes
        shards = list(state.layout.shard_ids) if everywhere else prepared.shards
        with self._db.write_scope(shards, state) as scope:
            if not prepared.is_current:
                raise StaleEpochError  # an id that was drawn before the locks may be in use now: draw again
            total = prepared.write(scope)
            batch = second
            while batch:
                total += Batch(self._db, state, table, _by_shape(table, batch, total)).write(scope)
                batch = list(islice(source, batch_size))
        return total


Shape = tuple[tuple[str, ...], list[tuple[Any, ...]]]
"""Names of columns, and rows that have those."""


class Batch:
    """Some rows, compiled by shape and split by shard."""

    def __init__(self, database: DatabaseCore, state: State, table: Table, shapes: Iterable[Shape]) -> None:
        self._db = database
        self._table = table
        self._layout = state.layout
        self.parts: list[tuple[InsertPlan, dict[int, list[tuple[Any, ...]]]]] = []
        self.ids: list[Any] = []
        """Rowids that the rows state and that are not the shard key."""
        self.placed: tuple[list[tuple[Any, ...]], list[int]] = ([], [])
        """A sharded table's rows in their order, and the shard of each."""
        self.last_id: int | None = None
        """The rowid of the last row, where the table's sequence is concerned with rowids."""
        self.drawn = False
        """Somebody may have drawn one of ``ids`` and not used it yet."""
        self._generated = False
        self._token = database.sequence(table).token
        for names, values in shapes:
            plan = InsertPlan(state, table, names, False)
            self.parts.append((plan, self._split(plan, values)))

    @property
    def is_current(self) -> bool:
        """Tell, under the locks, whether the ids drawn before may be used."""
        return not self._generated or self._db.sequence(self._table).is_current(self._token)

    @property
    def probes(self) -> bool:
        return bool(self.ids)

    @property
    def shards(self) -> list[int]:
        return sorted({shard for _, buckets in self.parts for shard in buckets})

    def write(self, scope: WriteScope) -> int:
        """Insert the rows, whose ids are sure to be new, and return how many."""
        self.probe(scope)
        return self.write_rows(scope)

    def probe(self, scope: WriteScope) -> None:
        """Raise IntegrityError where an id that the rows state is there already."""
        if self.ids:
            self._db.require_new_ids(scope, self._table, self.ids, self.drawn)

    def write_rows(self, scope: WriteScope) -> int:
        """Insert the rows and return how many."""
        total = 0
        for plan, buckets in self.parts:
            if self._table.kind is TableKind.REFERENCE:
                total += self._write_copies(scope, plan, next(iter(buckets.values())))
            else:
                total += sum(scope.run_many(shard, plan.insert_sql, buckets[shard]) for shard in sorted(buckets))
        return total

    def _write_copies(self, scope: WriteScope, plan: InsertPlan, rows: list[tuple[Any, ...]]) -> int:
        """Insert rows into every copy of a reference table; return how many one copy got."""
        shards = self._layout.shard_ids
        if omitted_with_default(self._table, plan.columns):
            return sum(insert_copies(scope, shards, plan, row) is not None for row in rows)
        for place, row in enumerate(rows):
            try:
                require_no_shifting_null(self._table, plan.columns, row)
            except IntegrityError:
                scope.run_many(shards[0], plan.insert_sql, rows[:place])  # one before it may be the first that fails
                raise
        counts = [scope.run_many(shard, plan.insert_sql, rows) for shard in shards]
        return counts[0]

    def _fill_ids(self, plan: InsertPlan, values: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Give rows whose INTEGER PRIMARY KEY is None an id, where ids are ours to give: above those that are noted."""
        at = plan.id_index
        assert at is not None
        self._generated = True
        sequence = self._db.sequence(self._table)
        return [row if row[at] is not None else (*row[:at], sequence.next(), *row[at + 1 :]) for row in values]

    def _split(self, plan: InsertPlan, values: list[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
        table = self._table
        keys: list[Any] | None = None
        integers = False
        if plan.generates_id:
            self._generated = True
            ids = self._db.take_ids(table, len(values))
            values = [(*row, rowid) for row, rowid in zip(values, ids, strict=True)]
            self.last_id = values[-1][-1]
        elif plan.id_index is not None and table.sharded:
            given = list(map(itemgetter(plan.id_index), values))
            stated = [rowid for rowid in given if rowid is not None] if None in given else given
            integers = self._note_ids(plan, stated) if stated else True
            if stated is not given:  # the drawn ones are above those that the rows state
                drawn_last = given[-1] is None
                values = self._fill_ids(plan, values)
                given = list(map(itemgetter(plan.id_index), values))
                self.last_id = given[-1] if drawn_last else self.last_id
            keys = given if plan.id_is_key else None
        if table.kind is TableKind.SINGLE:
            return {0: values}
        if table.kind is TableKind.REFERENCE:
            return dict.fromkeys(self._layout.shard_ids, values)
        if keys is None:
            keys, integers = list(map(itemgetter(*plan.key_indexes), values)), False
            require_key_values(table, keys)
        shards = self._layout.shards_of_many(table.key_type, keys, integers=integers)
        self.placed = (values, shards)
        return _by_shard(values, shards)

    def _note_ids(self, plan: InsertPlan, ids: list[Any]) -> bool:
        """Tell the sequence of the ids that the rows state; ids that aren't the key must be new on every shard.

        Returns whether all of them are of type int.
        """
        table = self._table
        stored = ids
        if set(map(type, ids)) != {int}:
            stored = [apply_affinity(rowid, Affinity.INTEGER) for rowid in ids]
        wrong = [] if stored is ids else [rowid for rowid in stored if not isinstance(rowid, int)]
        if wrong:
            raise RoutingError(
                f"{table.name}.{table.rowid_alias} is an INTEGER PRIMARY KEY: {wrong[0]!r} is no integer "
                "(datatype mismatch)"
            )
        self.last_id = stored[-1]
        self.drawn = self._db.note_ids(table, stored) or self.drawn
        if not plan.id_is_key:
            self.ids += stored
        return stored is ids


def _by_shard(values: list[tuple[Any, ...]], shards: list[int]) -> dict[int, list[tuple[Any, ...]]]:
    """Split rows by shard, each part in the order of the rows."""
    buckets: dict[int, list[tuple[Any, ...]]] = {shard: [] for shard in set(shards)}
    appends = {shard: bucket.append for shard, bucket in buckets.items()}
    # for shard, row in zip(shards, values): buckets[shard].append(row), without a step of Python per row
    deque(map(call, map(appends.__getitem__, shards), values), maxlen=0)
    return buckets


def _by_shape(table: Table, rows: Sequence[Row], offset: int) -> Iterator[Shape]:
    """Give the rows as tuples of values, in their order, as runs of rows with the same names.

    Almost always all rows have the names of the first; that is checked at C speed.
    """
    _require_mappings(table, rows, offset)
    names = tuple(rows[0])
    width = len(names)
    if set(map(len, rows)) == {width}:
        try:
            yield names, _values(names, rows)
            return
        except KeyError:
            pass
    for _, run in groupby(rows, key=frozenset):
        members = list(run)
        names = tuple(members[0])
        yield names, _values(names, members)


def _values(names: tuple[str, ...], rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    if not names:
        return [()] * len(rows)
    if len(names) == 1:
        (name,) = names
        return [(row[name],) for row in rows]
    return list(map(itemgetter(*names), rows))


def _require_mappings(table: Table, rows: Sequence[Row], offset: int) -> None:
    if set(map(type, rows)) <= {dict}:
        return
    for number, row in enumerate(rows, offset + 1):
        if not isinstance(row, dict) and not isinstance(row, Mapping):
            raise ProgrammingError(
                f"{table.name}: row {number} must be a mapping of column to value, not {type(row).__name__}: {row!r}"
            )
