"""INSERT of a query's rows: all shards are locked, the query is answered, its rows are split by key and inserted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import InternalError, StatementTimeoutError
from shardlite.execute.bulk import Batch
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.fan_out_write import AskOneFileError
from shardlite.execute.first_failure import DrawnIdTakenError, raise_first
from shardlite.execute.insert import InsertPlan
from shardlite.execute.past import NO_ROWID, Past, Told, forget_rowid
from shardlite.execute.result import Result
from shardlite.execute.state import HOME_SHARD, State
from shardlite.execute.writes import WriteScope
from shardlite.names import fold, quote
from shardlite.router.keys import Affinity, apply_affinity
from shardlite.router.table import Table, TableKind
from shardlite.sql.plan import InsertedRow, Into, Plan, Program

_BATCH = 10_000
_ROW_FAILED = (sqlite3.IntegrityError, sqlite3.OperationalError)


class _RowFailedError(Exception):
    """A row didn't fit. Which one file meets first is found out by inserting them one after the other."""


def insert_query(database: Database, state: State, plans: Sequence[Plan], past: Past, deadline: Deadline) -> Result:
    """Run INSERT_QUERY plans of one statement with several sets of parameters, as one transaction.

    Raises AskOneFileError, with nothing done, where only all rows together can tell what one file does: the query
    fails, a stated id is on another shard, or a foreign key that is looked at when all rows are there.
    """
    done: list[_Done] = []
    drawn: list[int] = []
    try:
        return _run(database, state, plans, past, deadline, done, drawn)
    except _RowFailedError as failed:
        error = failed.__cause__
    except sqlite3.IntegrityError:
        if len(done) == len(plans):  # all rows were there, and COMMIT found one without a parent
            last = done[-1]
            past.note_failure(Told(sum(one.total for one in done) - last.count, _last_of(done)))
        raise
    plans = plans[: len(done) + 1]
    told = Told()
    try:
        _run(database, state, plans, past, deadline, [], drawn, told)
    except (_RowFailedError, DrawnIdTakenError):
        pass
    except sqlite3.Error:
        told.total += sum(one.total for one in done)
        told.last_rowid = _last_of(done) if told.last_rowid is None else told.last_rowid
        past.note_failure(told)
        raise
    raise AskOneFileError(str(error)) from error


def _run(
    database: Database,
    state: State,
    plans: Sequence[Plan],
    past: Past,
    deadline: Deadline,
    done: list[_Done],
    drawn: list[int],
    told: Told | None = None,
) -> Result:
    """Run the plans. ``told``: the last one fails, and says so at the first row that one file would name.

    ``drawn`` holds the ids that its rows had when it failed first, and have again.
    """
    with database.write_scope(state.layout.shard_ids, state, timeout_s=deadline.wait_s) as scope:
        deadline.watch(list(scope.sessions.values()))
        try:
            for plan in plans:
                statement = _Insert(database, state, scope, plan, deadline)
                try:
                    if told is not None and plan is plans[-1]:
                        statement.fail(told, drawn)
                    drawn.clear()
                    done.append(statement.run(drawn))
                finally:
                    statement.close()
            deadline.check()
        finally:
            deadline.release()  # a COMMIT isn't interrupted
    last, into = done[-1], plans[-1].into
    past.note(last.count, sum(one.total for one in done), _last_of(done))
    count = sum(one.count for one in done) if into is not None and into.counted else -1
    moved = sum(one.moved for one in done)
    return Result(last.columns, iter(last.rows), rowcount=count, lastrowid=last.last_rowid, rows_moved=moved)


@dataclass(slots=True)
class _Done:
    """What one statement did: rows inserted (or updated), those with triggers' share, the last rowid, RETURNING."""

    count: int = 0
    total: int = 0
    last_rowid: int | None = None
    columns: Sequence[str] = ()
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    moved: int = 0


def _last_of(done: Sequence[_Done]) -> int | None:
    return next((one.last_rowid for one in reversed(done) if one.last_rowid is not None), None)


class _Insert:
    """One set of parameters. The scope holds all shards."""

    def __init__(self, database: Database, state: State, scope: WriteScope, plan: Plan, deadline: Deadline) -> None:
        if plan.into is None or plan.program is None:
            raise InternalError("an INSERT of a query without its query")
        self._database = database
        self._state = state
        self._scope = scope
        self._plan = plan
        self._program: Program = plan.program
        self._into: Into = plan.into
        self._table: Table = state.table(plan.into.table)
        self._coordinator = Coordinator(state, deadline)
        self._deadline = deadline
        self._done = _Done()

    def close(self) -> None:
        """Let go of the query's rows."""
        self._coordinator.close()

    @property
    def _upserts(self) -> bool:
        return "CONFLICT" in self._into.tail.upper()

    # -- all goes well -----------------------------------------------------------------------------------------------

    def run(self, drawn: list[int]) -> _Done:
        """Insert the rows; the ids that are drawn for them are added to ``drawn``.

        Raises _RowFailedError or AskOneFileError where one can't be; the caller rolls back.
        """
        done, scope = self._done, self._scope
        if self._table.virtual:
            return self._feed()
        for batch in self._batches():
            if self._into.tolerant:
                self._require_ids_at_home(batch)
            if self._into.tolerant or self._into.returns:
                for session in scope.sessions.values():
                    forget_rowid(session.run)
            drawn += _drawn_ids(self._table, batch)
            try:
                if not self._into.tolerant:
                    batch.probe(scope)
                before = self._changed()
                if self._into.returns or (self._into.tolerant and _ids_repeat(self._table, batch)):
                    self._one_by_one(batch)
                elif self._into.tolerant:
                    self._tolerantly(batch)
                else:
                    done.count += batch.write_rows(scope)
            except _ROW_FAILED as error:
                self._deadline.explain(error)
                raise _RowFailedError(str(error)) from error
            done.total += self._changed() - before
            if not self._into.tolerant and not self._into.returns:
                done.last_rowid = batch.last_id
        if self._table.kind is TableKind.REFERENCE:
            done.total //= len(scope.sessions)
        if self._table.kind is not TableKind.SHARDED and done.count and not self._into.tolerant:
            done.last_rowid = self._home_rowid()
        if self._into.returns and not done.columns:
            done.columns = self._columns()
        done.moved = self._coordinator.rows_moved
        return done

    def _feed(self) -> _Done:
        """Insert the rows into a virtual table, whose rowids and columns are its module's matter."""
        into, before = self._into, self._changed()
        columns, marks = ", ".join(map(quote, into.columns)), ", ".join("?" * len(into.columns))
        sql = f"INSERT INTO {quote(into.table)}({columns}) VALUES ({marks})"
        try:
            for rows in self._answers():
                self._done.count += self._scope.run_many(HOME_SHARD, sql, rows)
        except _ROW_FAILED as error:
            self._deadline.explain(error)
            raise AskOneFileError(str(error)) from error
        self._done.total = self._changed() - before
        self._done.last_rowid = self._home_rowid() if self._done.count else None
        self._done.moved = self._coordinator.rows_moved
        return self._done

    def _batches(self) -> Iterator[Batch]:
        """Yield the query's rows, split by shard."""
        for rows in self._answers():
            try:
                batch = Batch(self._database, self._state, self._table, [(self._into.columns, rows)])
            except (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
                raise AskOneFileError(str(error)) from error
            yield batch

    def _answers(self) -> Iterator[list[Any]]:
        """Answer the query and yield its rows."""
        coordinator, program = self._coordinator, self._program
        try:
            shards = {shard: self._database.shards[shard] for shard in self._scope.sessions}
            coordinator.load(program.moves, shards, self._scope.sessions, locked=True)
            for sql in program.setup:
                coordinator.run(sql)
            coordinator.attach(program)
            cursor = coordinator.run(self._plan.sql, program.parameters)
            while True:
                rows = coordinator.first(cursor, _BATCH)
                if not rows:
                    return
                yield rows
        except StatementTimeoutError:
            raise
        except (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            self._deadline.explain(error)
            raise AskOneFileError(str(error)) from error

    def _sql(self, plan: InsertPlan) -> str:
        into = self._into
        columns = ", ".join(map(quote, plan.columns))
        marks = ", ".join("?" * len(plan.columns))
        return f"{into.verb} INTO main.{quote(into.table)}{into.alias} ({columns}) VALUES ({marks}){into.tail}"

    def _tolerantly(self, batch: Batch) -> None:
        """Insert rows of which some may be left out or change others, each shard its own."""
        counts = []
        for plan, buckets in batch.parts:
            sql = self._sql(plan)
            for shard in sorted(buckets):
                rows = [row + self._into.tail_values for row in buckets[shard]] if self._into.tail else buckets[shard]
                counts.append(self._scope.run_many(shard, sql, rows))
        self._done.count += counts[0] if self._table.kind is TableKind.REFERENCE else sum(counts)
        self._note_last(batch)

    def _note_last(self, batch: Batch) -> None:
        """Remember the id of the last row that was inserted, which is one of the last ones of the shards."""
        found: dict[int, int] = {}
        for shard, session in self._scope.sessions.items():
            rowid = session.fetch_all("SELECT last_insert_rowid()")[0][0]
            if rowid != NO_ROWID:
                found[shard] = rowid
        if not found or self._table.without_rowid:
            return
        if len(found) == 1 or self._table.kind is TableKind.REFERENCE:
            self._done.last_rowid = next(iter(found.values()))
            return
        values, shards = batch.placed
        at = _id_place(self._table, batch.parts[0][0])
        for row, shard in zip(reversed(values), reversed(shards), strict=True):
            if shard in found and apply_affinity(row[at], Affinity.INTEGER) == found[shard]:
                self._done.last_rowid = found[shard]
                return

    def _one_by_one(self, batch: Batch) -> None:
        """Insert the rows in their order, for what RETURNING says of each."""
        done, scope = self._done, self._scope
        seen: dict[int, int | None] = {}
        for row in self._rows(batch):
            cursor = scope.run(row.shard, row.sql, tuple(row.parameters))
            done.columns = [column[0] for column in cursor.description or ()]
            found = cursor.fetchall()
            rowid = cursor.lastrowid
            if self._table.kind is TableKind.REFERENCE and row.shard != HOME_SHARD:
                continue
            done.rows += found
            done.count += max(cursor.rowcount, 0)
            # A row that is there already may have been updated instead, where the text says so.
            moved = rowid != seen.get(row.shard, NO_ROWID) or (cursor.rowcount > 0 and not self._upserts)
            if moved and not self._table.without_rowid:
                done.last_rowid = seen[row.shard] = rowid

    def _rows(self, batch: Batch) -> Iterator[InsertedRow]:
        """Yield the rows in their order, each as a statement of its own (of a reference table once for each copy)."""
        for plan, buckets in batch.parts:
            sql, tail = self._sql(plan), self._into.tail_values
            place = _id_place(self._table, plan)
            values, shards = batch.placed
            if self._table.kind is TableKind.REFERENCE:
                everywhere = self._state.layout.shard_ids
                placed = [(row, shard) for row in next(iter(buckets.values())) for shard in everywhere]
            elif self._table.kind is TableKind.SINGLE:
                placed = [(row, HOME_SHARD) for row in buckets[HOME_SHARD]]
            else:
                placed = list(zip(values, shards, strict=True))
            for row, shard in placed:
                found = row[place] if place >= 0 else None
                identity = apply_affinity(found, Affinity.INTEGER)
                known = identity if type(identity) is int else None
                yield InsertedRow(shard, sql, row + tail, known, plan.generates_id, "")

    def _require_ids_at_home(self, batch: Batch) -> None:
        """Raise AskOneFileError where a row meets an id that is on another shard, which it could replace or change."""
        if not batch.ids:
            return
        name = quote(self._table.rowid_alias or "")
        sql = f"SELECT {name} FROM main.{quote(self._table.name)} WHERE {name} IN (SELECT value FROM json_each(?))"
        homes: dict[object, int] = {}
        listed = f"[{', '.join(str(apply_affinity(one, Affinity.INTEGER)) for one in batch.ids)}]"
        for shard in self._scope.sessions:
            homes.update((rowid, shard) for (rowid,) in self._scope.fetch_all(shard, sql, (listed,)))
        place = _id_place(self._table, batch.parts[0][0])
        for row, shard in zip(*batch.placed, strict=True):
            if homes.setdefault(apply_affinity(row[place], Affinity.INTEGER), shard) != shard:
                raise AskOneFileError(f"an id of {self._table.name} that is on another shard")
        if batch.drawn:
            self._database.stop_drawn_ids(self._scope)

    def _columns(self) -> list[str]:
        """Return the names of what RETURNING gives, where it gave nothing."""
        into = self._into
        nothing = f"SELECT {', '.join(['NULL'] * len(into.columns))} WHERE 0"
        listed = ", ".join(map(quote, into.columns))
        sql = f"{into.verb} INTO main.{quote(into.table)}{into.alias} ({listed}) {nothing}{into.tail}"
        cursor = self._scope.run(HOME_SHARD, sql, into.tail_values)
        return [column[0] for column in cursor.description or ()]

    def _changed(self) -> int:
        return sum(session.total_changes for session in self._scope.sessions.values())

    def _home_rowid(self) -> Any:
        """Return the id that the home shard gave to the last row."""
        if self._table.without_rowid:
            return None
        return self._scope.fetch_all(HOME_SHARD, "SELECT last_insert_rowid()")[0][0]

    # -- a row failed ------------------------------------------------------------------------------------------------

    def fail(self, told: Told, drawn: list[int]) -> None:
        """Insert the rows one after the other, up to the one that fails; _RowFailedError where none does."""
        rows = self._rows_again(iter(drawn))
        probes = self._table.sharded and not self._into.tolerant and not _id_is_key(self._table)
        raise_first(self._database, self._scope, self._table, rows, told, probes=probes)
        raise _RowFailedError

    def _rows_again(self, drawn: Iterator[int]) -> Iterator[InsertedRow]:
        """Yield the rows with the ids that they had at first: those are drawn, and nobody's."""
        for batch in self._batches():
            place = _id_place(self._table, batch.parts[0][0])
            for row in self._rows(batch):
                first = next(drawn, None) if row.drawn else None
                if first is None:
                    yield row
                    continue
                values = list(row.parameters)
                values[place] = first
                yield row._replace(parameters=values, id=first)


def _drawn_ids(table: Table, batch: Batch) -> list[int]:
    plan = batch.parts[0][0]
    return [row[_id_place(table, plan)] for row in batch.placed[0]] if plan.generates_id else []


def _ids_repeat(table: Table, batch: Batch) -> bool:
    """Tell whether rows state an id more than once: which of them was inserted is known only one by one."""
    place = _id_place(table, batch.parts[0][0])
    values = batch.placed[0]
    return place >= 0 and len({row[place] for row in values}) < len(values)


def _id_place(table: Table, plan: InsertPlan) -> int:
    """Return where the rowid stands in a row of the plan; -1 where it doesn't."""
    names = [fold(name) for name in plan.columns]
    rowid = None if table.rowid_name is None else fold(table.rowid_name)
    return names.index(rowid) if rowid in names else -1


def _id_is_key(table: Table) -> bool:
    return table.rowid_alias is not None and table.key_columns == (table.rowid_alias,)
