"""execute: a statement's plan, and running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, OperationalError, ProgrammingError, RoutingError, reraise
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.insert import is_id_taken
from shardlite.execute.merge import merge_rows
from shardlite.execute.planning import kind_of
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError, WriteScope
from shardlite.names import fold
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.sequences import Sequence as IdSequence
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.ddl import tokens_of
from shardlite.sql.facts import Schema, StatementKind
from shardlite.sql.order import OrderSpec
from shardlite.sql.plan import Plan, PlanKind, Program
from shardlite.sql.planner import Planner
from shardlite.sql.tokens import tokenize

Parameters = Sequence[Any] | Mapping[str, Any]

SMALL = 1_000
"""Rows up to which an answer is read at once, so that no connection is held."""
_ATTEMPTS = 20
_BY_ROWID = OrderSpec("", ("rowid",), (False,), ("BINARY",), by_rowid=True)


class _IdsTakenError(Exception):
    """Ids that were drawn may have been given explicitly meanwhile: draw again."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A writing plan with its ids. ``sequence``: whose ids were drawn, at ``token``; ``drawn``: see note_ids."""

    plan: Plan
    sequence: IdSequence | None
    token: int
    drawn: bool


def _checked(parameters: Parameters) -> Parameters:
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, (Sequence, Mapping)):
        raise ProgrammingError(f"parameters must be a sequence or a mapping, not {parameters!r}")
    return parameters


def _probes(one: _Ready) -> bool:
    """Tell whether ids that the statement states have to be absent on every shard."""
    insert = one.plan.insert
    return insert is not None and insert.probe and bool(insert.explicit_ids)


def _inserts(sql: str) -> bool:
    """Tell whether a statement is an INSERT or REPLACE."""
    head = sql.lstrip()[:6].upper()
    if head in ("INSERT", "UPDATE", "DELETE"):
        return head == "INSERT"
    return kind_of(tokenize(sql)) is StatementKind.INSERT


class StatementRunner:
    """Runs SQL for one database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._planner: tuple[int, Planner] | None = None

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(self, sql: str, parameters: Parameters = ()) -> Plan:
        """Return the plan of one statement with these parameters."""
        return self._plan(self._db.current(), sql, parameters)

    def _plan(self, state: State, sql: str, parameters: Parameters) -> Plan:
        if not isinstance(sql, str):
            raise ProgrammingError(f"sql must be a str, not {type(sql).__name__}")
        _checked(parameters)
        return self._planner_of(state).plan(sql, parameters, state.layout)

    def _planner_of(self, state: State) -> Planner:
        known = self._planner
        if known is not None and known[0] == state.epoch:
            return known[1]
        schema = self._db.catalog.schema
        made = Planner(
            Schema(
                tables=state.tables,
                views={fold(item.name): item.sql for item in schema if item.type == "view"},
                triggers={fold(item.name): item.sql for item in schema if item.type == "trigger"},
                indexes=_index_texts(schema),
            ),
            lambda sql: self._db.planning().prepare(sql),
            lambda sql: self._db.planning().columns(sql),
        )
        self._planner = (state.epoch, made)
        return made

    # -- running -------------------------------------------------------------------------------------------------

    def execute(
        self, sql: str, parameters: Parameters = (), *, key: Any = None, timeout_s: float | None = None
    ) -> Result:
        """Run one statement and return its Result."""

        self._db.close_abandoned()

        def attempt() -> Result:
            state = self._db.current()
            plan = self._plan(state, sql, parameters)
            if plan.kind is PlanKind.DDL:
                if key is not None:
                    raise RoutingError("a schema change belongs to no shard: leave key= out")
                self._db.schema.apply(sql)
                return Result()
            self._require_key(state, plan, key, parameters, sql)
            if plan.readonly:
                return self._read(state, plan, timeout_s)
            return self._write(state, plan, timeout_s)

        return self._db.with_current(attempt)

    def executemany(self, sql: str, seq: Iterable[Parameters]) -> Result:
        """Run one writing statement for each set of parameters, all or none of them."""
        sets = [_checked(parameters) for parameters in seq]
        if not sets:
            self._planner_of(self._db.current()).template(sql)
            return Result(rowcount=0)

        drawing: list[Table] = []

        def attempt() -> Result:
            state = self._db.current()
            plans = []
            drawing.clear()
            for parameters in sets:
                plan = self._plan(state, sql, parameters)
                if plan.readonly or plan.kind is PlanKind.DDL:
                    raise ProgrammingError("executemany takes a statement that writes rows: use execute")
                if plan.insert is not None and plan.id_rows:
                    drawing[:] = [state.table(plan.insert.table)]
                plans.append(self._with_ids(state, plan))
            return self._run_writes(state, plans, None)

        for _ in range(_ATTEMPTS):
            try:
                return self._db.with_current(attempt)
            except _IdsTakenError:
                continue
            except IntegrityError as error:
                self._require_own_fault(error, drawing)
        raise OperationalError(f"{_ATTEMPTS} generated ids in turn were taken by other processes")

    def _require_key(self, state: State, plan: Plan, key: Any, parameters: Parameters, sql: str) -> None:
        """Raise RoutingError when the statement isn't held to ``key`` alone, at any number of shards."""
        if key is None:
            return
        sharded = [t for name in plan.tables if (t := state.table(name)).sharded]
        wanted = frozenset(table.key_type.canonical(key) for table in sharded)
        if not sharded and plan.kind is not PlanKind.EVERY_SHARD:
            return
        if not sharded or self._planner_of(state).template(sql).keys(parameters) != wanted:
            raise RoutingError(f"the statement isn't held to key={key!r} alone ({plan.kind}): {plan.reason}")

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, state: State, plan: Plan, timeout_s: float | None) -> Result:
        if plan.program is not None:
            return self._gather(state, plan, plan.program, timeout_s)
        if len(plan.shards) == 1:
            streams = self._open(plan, list(plan.shards), timeout_s)
            streams.fill()
            if not self._db.is_current(state):
                streams.close()
                raise StaleEpochError
            skip = 1 if plan.merge_rowid else 0
            rows = streams.rows(0)
            return self._result(plan, streams, map(itemgetter(slice(skip, None)), rows) if skip else rows)
        streams = self._open(plan, list(plan.shards), timeout_s)
        streams.fill()
        if not self._db.is_current(state):
            streams.close()
            raise StaleEpochError
        parts = [streams.rows(index) for index in range(len(plan.shards))]
        if plan.merge_rowid:
            moved = [((*row[1:], row[0]) for row in part) for part in parts]
            return self._result(plan, streams, merge_rows(moved, _BY_ROWID))
        return self._result(plan, streams, chain.from_iterable(parts))

    def _gather(self, state: State, plan: Plan, program: Program, timeout_s: float | None) -> Result:
        """Bring the rows to a private database and run the statement there."""
        coordinator = Coordinator(state.layout.encoding, timeout_s)
        try:
            shards = [self._db.shards[shard] for shard in plan.shards]
            pools = [shard.pool for shard in shards]
            wait = self._db.timeout_s if timeout_s is None else timeout_s
            connections = self._db.budget.acquire_all(pools, wait)
            try:
                sessions = dict(zip(plan.shards, connections, strict=True))
                coordinator.load(program.moves, {shard.id: shard for shard in shards}, sessions)
            finally:
                self._db.budget.release_all(pools, connections)
            if not self._db.is_current(state):
                raise StaleEpochError
            for sql in program.setup:
                coordinator.run(sql)
            cursor = coordinator.run(plan.sql, program.parameters)
            columns = [column[0] for column in cursor.description or ()]
            head = cursor.fetchmany(SMALL)
        except BaseException as error:
            coordinator.close()
            if plan.on_overflow is not None and isinstance(error, sqlite3.Error) and "integer overflow" in str(error):
                otherwise = plan.on_overflow()
                if otherwise.program is not None:
                    return self._gather(state, otherwise, otherwise.program, timeout_s)
            if isinstance(error, sqlite3.Error):
                reraise(error)
            raise
        if len(head) < SMALL:
            coordinator.close()
            return Result(columns, iter(head), rows_moved=coordinator.rows_moved)
        rows = coordinator.rows(cursor, head, SMALL)
        return Result(columns, rows, close=coordinator.close, rows_moved=coordinator.rows_moved)

    def _result(self, plan: Plan, streams: _Streams, rows: Iterator[tuple[Any, ...]]) -> Result:
        names = streams.columns[1:] if plan.merge_rowid else streams.columns
        return Result(names, rows, close=streams.close, abandon=streams.abandon)

    def _open(self, plan: Plan, shard_ids: list[int], timeout_s: float | None) -> _Streams:
        wait = self._db.timeout_s if timeout_s is None else timeout_s
        return _Streams(self._db, [self._db.shards[shard] for shard in shard_ids], plan, wait)

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, state: State, plan: Plan, timeout_s: float | None) -> Result:
        for _ in range(_ATTEMPTS):
            ready = self._with_ids(state, plan)
            try:
                return self._run_writes(state, [ready], timeout_s)
            except _IdsTakenError:
                continue
            except IntegrityError as error:
                drawing = [state.table(plan.insert.table)] if plan.insert is not None and plan.id_rows else []
                self._require_own_fault(error, drawing)
        raise OperationalError(f"{_ATTEMPTS} generated ids in turn were taken by other processes")

    def _require_own_fault(self, error: IntegrityError, drawing: Sequence[Table]) -> None:
        """Go on when a generated id met one that another process has just given explicitly: draw again. Else raise."""
        if not drawing or not is_id_taken(error, drawing[0]):
            raise error
        self._db.sequence(drawing[0]).invalidate()

    def _with_ids(self, state: State, plan: Plan) -> _Ready:
        """Draw the ids that an INSERT needs, and tell the sequence of those that it states: before any lock."""
        if plan.insert is None:
            return _Ready(plan, None, 0, False)
        table = state.table(plan.insert.table)
        drawn = bool(plan.explicit_ids) and self._db.note_ids(table, plan.explicit_ids)
        sequence = self._db.sequence(table)
        token = sequence.token
        if plan.id_rows:
            plan = plan.with_ids(list(self._db.take_ids(table, plan.id_rows)))
            return _Ready(plan, sequence, token, drawn)
        return _Ready(plan, None, token, drawn)

    def _run_writes(self, state: State, ready: Sequence[_Ready], timeout_s: float | None) -> Result:
        shards = {step.shard for one in ready for step in one.plan.steps}
        if any(map(_probes, ready)):
            shards = set(state.layout.shard_ids)
        with self._db.write_scope(sorted(shards), state, timeout_s=timeout_s) as scope:
            if any(one.sequence is not None and not one.sequence.is_current(one.token) for one in ready):
                raise _IdsTakenError
            results = []
            for one in ready:
                if _probes(one) and one.plan.insert is not None:
                    # Right before its rows: an earlier set of parameters may have brought the same id to another shard.
                    table = state.table(one.plan.insert.table)
                    self._db.require_new_ids(scope, table, list(one.plan.explicit_ids), one.drawn)
                results.append(self._run_steps(state, scope, one.plan))
        if len(results) == 1:
            return results[0]
        return Result(rowcount=sum(result.rowcount for result in results))

    def _run_steps(self, state: State, scope: WriteScope, plan: Plan) -> Result:
        # A connection's last rowid is of some earlier statement unless this one inserts into a table with rowids.
        inserts = plan.insert is not None or any(_inserts(step.sql) for step in plan.steps)
        inserts = inserts and not any(_has_conflict_clause(step.sql) for step in plan.steps)
        inserts = inserts and not all(state.table(name).without_rowid for name in plan.tables)
        counts: list[int] = []
        rows: list[tuple[Any, ...]] = []
        columns: Sequence[str] = ()
        lastrowid: Any = None
        for step in plan.steps:
            try:
                done = scope.sessions[step.shard].run(step.sql, step.parameters)
                if done.description is not None:
                    columns = [column[0] for column in done.description]
                    rows += done.fetchall()
            except sqlite3.Error as error:
                scope.fail(step.shard, error, step.sql)
            counts.append(done.rowcount)
            if inserts and done.rowcount:
                lastrowid = done.lastrowid
        if plan.kind is PlanKind.EVERY_SHARD:
            counts, rows = counts[:1], rows[: len(rows) // max(1, len(plan.steps))]
        return Result(columns, iter(rows), rowcount=sum(counts), lastrowid=lastrowid)


def _index_texts(schema: Iterable[SchemaObject]) -> dict[str, tuple[str, ...]]:
    """Return the CREATE INDEX texts of each table, without UNIQUE: what they check was checked on the shards."""
    found: dict[str, tuple[str, ...]] = {}
    for item in schema:
        if item.type == "index":
            tokens = tokenize(item.sql).tokens
            cut = tokens[1] if tokens[1].key == "UNIQUE" else None
            sql = item.sql if cut is None else item.sql[: cut.start] + item.sql[cut.end :]
            found[fold(item.tbl_name)] = (*found.get(fold(item.tbl_name), ()), sql)
    return found


def _has_conflict_clause(sql: str) -> bool:
    """Tell whether a statement says ON CONFLICT: it may then have updated a row instead of inserting one."""
    return "CONFLICT" in sql.upper() and any(token.is_word("CONFLICT") for token in tokens_of(sql))


class _Streams:
    """The open cursors of one query, a connection for each, until all rows are read or the result is closed.

    Shards are read one after the other unless a merge needs them side by side; rows come in batches, so that the
    interpreter lock isn't handed to and fro per row.
    """

    _BATCH = 500

    def __init__(self, database: Database, shards: Sequence[SqliteShard], plan: Plan, timeout_s: float) -> None:
        self.columns: Sequence[str] = ()
        self._shards = shards
        self._plan = plan
        self._database = database
        self._connections: list[Connection] = []
        self._stack = ExitStack()
        self._cursors: list[Any] = []
        self._heads: list[list[tuple[Any, ...]]] = []
        pools = [shard.pool for shard in shards]
        if len(shards) == 1:
            conn = pools[0].acquire(timeout_s)
            self._stack.callback(pools[0].release, conn)
            self._connections = [conn]
        else:
            self._connections = database.budget.acquire_all(pools, timeout_s)
            self._stack.callback(database.budget.release_all, pools, self._connections)

    def fill(self) -> None:
        """Run the statement everywhere and read the first rows; a small answer ends here."""
        try:
            for shard, conn in zip(self._shards, self._connections, strict=True):
                try:
                    cursor = conn.stream(self._plan.sql, self._plan.parameters)
                    self.columns = [column[0] for column in cursor.description or ()]
                    self._cursors.append(cursor)
                    self._heads.append(cursor.fetchmany(SMALL))
                except sqlite3.Error as error:
                    shard.fail(error, self._plan.sql)
        except BaseException:
            self.close()
            raise
        if all(len(head) < SMALL for head in self._heads):
            self.close()

    def rows(self, index: int) -> Iterator[tuple[Any, ...]]:
        yield from self._heads[index]
        if len(self._heads[index]) < SMALL:
            return
        shard, cursor = self._shards[index], self._cursors[index]
        while True:
            try:
                batch = cursor.fetchmany(self._BATCH)
            except sqlite3.Error as error:
                shard.fail(error, self._plan.sql)
            if not batch:
                return
            yield from batch

    def abandon(self) -> None:
        """Close from a finaliser, which may run at any line of this thread, also inside a lock that closing takes."""
        if any(shard.pool.is_locked for shard in self._shards) or self._database.budget.is_locked:
            self._database.abandoned.append(self.close)
        else:
            self.close()

    def close(self) -> None:
        for cursor in self._cursors:
            cursor.close()
        self._cursors = []
        self._stack.close()
