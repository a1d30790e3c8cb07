"""execute: a statement's plan, and running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import (
    IntegrityError,
    InternalError,
    NotSupportedError,
    OperationalError,
    PoolExhaustedError,
    ProgrammingError,
    RoutingError,
    reraise,
)
from shardlite.execute.attached_write import ask_attached, attached_write
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.explained import explain
from shardlite.execute.fan_out_write import AskOneFileError, changed_by, fan_out_write
from shardlite.execute.first_failure import DrawnIdTakenError, may_be_another, raise_first
from shardlite.execute.gather import gather
from shardlite.execute.gather_write import gather_write
from shardlite.execute.insert import is_id_taken
from shardlite.execute.insert_query import insert_query
from shardlite.execute.past import NO_ROWID, Past, Told, forget_rowid
from shardlite.execute.planning import has_conflict_clause, inserted_into, inserts
from shardlite.execute.points import Points
from shardlite.execute.raw_text import is_raw_text
from shardlite.execute.result import Result
from shardlite.execute.state import State
from shardlite.execute.streams import read
from shardlite.execute.writes import WriteScope
from shardlite.names import fold
from shardlite.router.sequences import Sequence as IdSequence
from shardlite.router.table import Table
from shardlite.shard.sqlite import shorten
from shardlite.sql.create_as import select_of
from shardlite.sql.plan import WITHOUT_STEPS, Plan, PlanKind
from shardlite.sql.tokens import tokenize

Parameters = Sequence[Any] | Mapping[str, Any]

_ATTEMPTS = 20


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


class StatementRunner:
    """Runs SQL for one database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._past = Past()
        self.points = Points(database, self._past)
        self._planners = database.planners

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(self, sql: str, parameters: Parameters = ()) -> Plan:
        """Return the plan of one statement with these parameters."""
        return self._plan(self._db.current(), sql, parameters)

    def _plan(self, state: State, sql: str, parameters: Parameters) -> Plan:
        if not isinstance(sql, str):
            raise ProgrammingError(f"sql must be a str, not {type(sql).__name__}")
        _checked(parameters)
        return self._planners.of(state, sql).plan(sql, parameters, state.layout)

    # -- running -------------------------------------------------------------------------------------------------

    def execute(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        key: Any = None,
        timeout_s: float | None = None,
        max_rows: int | None = None,
    ) -> Result:
        """Run one statement and return its Result; see ShardManager.execute."""
        self._db.close_abandoned()
        result = self._execute(sql, parameters, key, Deadline(sql, timeout_s, self._db.timeout_s))
        result.max_rows = max_rows
        return result

    def _execute(self, sql: str, parameters: Parameters, key: Any, deadline: Deadline) -> Result:
        def attempt() -> Result:
            state = self._db.current()
            plan = self._plan(state, sql, parameters)
            if plan.kind in WITHOUT_STEPS:
                if key is not None:
                    raise RoutingError(f"a {plan.kind} belongs to no key: leave key= out")
                return self._run_without_steps(state, plan, deadline)
            self._require_key(state, plan, key, parameters, sql)
            if plan.readonly:
                return self._read(state, sql, plan, deadline)
            if plan.kind is PlanKind.GATHER_WRITE:
                return gather_write(self._db, state, [plan], self._past, deadline)
            if plan.kind is PlanKind.ATTACHED_WRITE:
                return attached_write(self._db, state, [plan], self._past, deadline)
            try:
                if plan.kind is PlanKind.INSERT_QUERY:
                    return insert_query(self._db, state, [plan], self._past, deadline)
                result = self._write(state, plan, deadline)
                if plan.kind is PlanKind.ONE_SHARD:
                    self.points.learn_change(state, sql, self._planners.of(state, sql).template(sql), plan)
                return result
            except AskOneFileError as error:
                gathered = self._gathered(state, sql, parameters, error)
                return gather_write(self._db, state, [gathered], self._past, deadline)

        try:
            return self._db.with_current(attempt)
        except PoolExhaustedError as error:
            error.add_note(f"while this was to run: {shorten(sql)}")
            raise
        except sqlite3.Error as error:
            deadline.explain(error)
            raise

    def _run_without_steps(self, state: State, plan: Plan, deadline: Deadline) -> Result:
        """Run what isn't sent to shards as it is: schema changes, PRAGMAs, maintenance."""
        if plan.kind is PlanKind.ATTACHED_PRAGMA:
            return ask_attached(state, plan, deadline)
        if plan.kind is PlanKind.DDL:
            self._change_schema(plan, deadline)
        elif plan.kind is PlanKind.SETTING:
            self._db.schema.set_header(plan.sql, deadline)
        elif plan.kind is PlanKind.EACH_SHARD:
            self._db.maintenance.run(plan.sql, deadline)
        elif plan.kind is PlanKind.EXPLAIN:
            return explain(self._db, state, plan, deadline)
        else:
            return self._db.pragmas.run(state, plan, deadline)
        return Result()

    def _change_schema(self, plan: Plan, deadline: Deadline) -> None:
        select = select_of(plan.sql)
        if select is None:
            self._db.schema.apply(plan.sql, None, deadline)
        else:
            text = tokenize(plan.sql)
            nulls: Parameters = {name: None for name, _ in text.names} if text.names else (None,) * text.parameter_count

            def read() -> Result:
                deadline.check()
                return self._execute(select, plan.parameters, None, deadline)

            self._db.schema.create_table_as(plan.sql, nulls, read, deadline)

    def executemany(self, sql: str, seq: Iterable[Parameters], timeout_s: float | None = None) -> Result:
        """Run one writing statement for each set of parameters, all or none of them; see ShardManager.executemany.

        The rows of a RETURNING clause are not kept, as in ``sqlite3``: the result has its columns and no rows.
        """
        deadline = Deadline(sql, timeout_s, self._db.timeout_s)
        sets = [_checked(parameters) for parameters in seq]
        if not sets:
            self._planners.of(self._db.current(), sql).template(sql)
            return Result(rowcount=0)

        def attempt() -> Result:
            state = self._db.current()
            planned = []
            for parameters in sets:
                deadline.check()
                planned.append(self._plan(state, sql, parameters))
            if any(plan.readonly or plan.kind in WITHOUT_STEPS for plan in planned):
                raise ProgrammingError("executemany takes a statement that writes rows: use execute")
            kinds = {plan.kind for plan in planned}
            try:
                if kinds == {PlanKind.INSERT_QUERY}:
                    done = insert_query(self._db, state, planned, self._past, deadline)
                elif kinds & {PlanKind.GATHER_WRITE, PlanKind.INSERT_QUERY, PlanKind.ATTACHED_WRITE}:
                    return self._gather_many(state, sql, sets, deadline)
                else:
                    done = self._write_many(state, planned, deadline)
            except AskOneFileError as error:
                for parameters in sets:
                    self._gathered(state, sql, parameters, error)
                return self._gather_many(state, sql, sets, deadline)
            return Result(done.columns, rowcount=done.rowcount)

        for _ in range(_ATTEMPTS):
            try:
                return self._db.with_current(attempt)
            except _IdsTakenError:
                continue
            except sqlite3.Error as error:
                deadline.explain(error)
                raise
        raise OperationalError(f"{_ATTEMPTS} generated ids in turn were taken by other processes")

    def _write_many(self, state: State, plans: Sequence[Plan], deadline: Deadline) -> Result:
        told = Told()
        try:
            return self._run_writes(state, [self._with_ids(state, plan) for plan in plans], deadline, told)
        except sqlite3.Error as error:
            self._note_failure(error, told)
            raise

    def _gathered(self, state: State, sql: str, parameters: Parameters, asked: AskOneFileError) -> Plan:
        """Return the plan that gathers a change; where none may, raise what the shards said."""
        try:
            plan = self._planners.of(state, sql).gathered(sql, parameters, state.layout)
        except NotSupportedError:
            plan = None
        if plan is None and isinstance(asked.__cause__, sqlite3.Error):
            reraise(asked.__cause__)
        if plan is None:
            raise InternalError(f"a change that can't be gathered: {sql}") from asked
        return plan

    def _gather_many(self, state: State, sql: str, sets: Sequence[Parameters], deadline: Deadline) -> Result:
        """Run all sets of parameters on the coordinator, some of which can't run otherwise."""
        planner = self._planners.of(state, sql)
        plans = []
        for parameters in sets:
            plan = self._plan(state, sql, parameters)
            done_there = plan.kind in (PlanKind.GATHER_WRITE, PlanKind.ATTACHED_WRITE)
            gathered = plan if done_there else planner.gathered(sql, parameters, state.layout)
            assert gathered is not None
            plans.append(gathered)
        run = attached_write if plans[0].kind is PlanKind.ATTACHED_WRITE else gather_write
        done = run(self._db, state, plans, self._past, deadline)
        return Result(done.columns, rowcount=done.rowcount)

    def _require_key(self, state: State, plan: Plan, key: Any, parameters: Parameters, sql: str) -> None:
        """Raise RoutingError when the statement isn't held to ``key`` alone, at any number of shards."""
        if key is None:
            return
        sharded = [t for name in plan.tables if (t := state.table(name)).sharded]
        wanted = frozenset(table.key_type.canonical(key) for table in sharded)
        if not sharded and plan.kind is not PlanKind.EVERY_SHARD:
            return
        if not sharded or self._planners.of(state, sql).template(sql).keys(parameters) != wanted:
            raise RoutingError(f"the statement isn't held to key={key!r} alone ({plan.kind}): {plan.reason}")

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, state: State, sql: str, plan: Plan, deadline: Deadline) -> Result:
        if plan.program is not None:
            return gather(self._db, state, plan, plan.program, self._past, deadline)
        try:
            result = read(self._db, state, plan, deadline)
        except OperationalError as error:
            if plan.merge is None or not is_raw_text(error):
                raise
            # One file shows as much as is asked for of the result; here more was read, or what is only sorted by.
            return self._read(state, sql, plan.merge.otherwise(), deadline)
        if plan.kind is PlanKind.ONE_SHARD:
            self.points.learn(state, sql, self._planners.of(state, sql).template(sql), result)
        return result

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, state: State, plan: Plan, deadline: Deadline) -> Result:
        for _ in range(_ATTEMPTS):
            ready = self._with_ids(state, plan)
            told = Told()
            try:
                return self._run_writes(state, [ready], deadline, told)
            except _IdsTakenError:
                continue
            except sqlite3.Error as error:
                self._note_failure(error, told)
                raise
        raise OperationalError(f"{_ATTEMPTS} generated ids in turn were taken by other processes")

    def _note_failure(self, error: sqlite3.Error, told: Told) -> None:
        """Remember that the thread's last change failed, unless it never began."""
        if not isinstance(error, (ProgrammingError, NotSupportedError)):
            self._past.note_failure(told)

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

    def _run_writes(self, state: State, ready: Sequence[_Ready], deadline: Deadline, told: Told) -> Result:
        results: list[Result] = []
        try:
            return self._run_in_scope(state, ready, results, deadline, told)
        except (IntegrityError, OperationalError) as error:
            if len(results) < len(ready):
                self._explain_failure(state, ready[: len(results) + 1], error, deadline, told)
            raise

    def _explain_failure(
        self,
        state: State,
        ready: Sequence[_Ready],
        error: IntegrityError | OperationalError,
        deadline: Deadline,
        told: Told,
    ) -> None:
        """Raise what one file would say to the last of these INSERTs; return where that is ``error``.

        Raises _IdsTakenError when a generated id met one that another process has just given explicitly.
        """
        plan, sequence = ready[-1].plan, ready[-1].sequence
        meets_drawn = sequence is not None and is_id_taken(error, self._target(state, plan))
        if not meets_drawn and not may_be_another(error, plan):
            return
        told.total, told.last_rowid = 0, None
        try:
            self._run_in_scope(state, ready, [], deadline, told, failed=error)
        except DrawnIdTakenError:
            pass
        except sqlite3.Error as found:
            # When nothing fails any more, whoever had the id has gone: try again.
            if found is not error or not meets_drawn:
                raise
        if sequence is not None:
            sequence.invalidate()
        raise _IdsTakenError from error

    @staticmethod
    def _target(state: State, plan: Plan) -> Table:
        """Return the table that an INSERT with ids inserts into; for others it doesn't matter."""
        return state.table(plan.insert.table if plan.insert is not None else plan.tables[0])

    def _run_in_scope(
        self,
        state: State,
        ready: Sequence[_Ready],
        results: list[Result],
        deadline: Deadline,
        told: Told,
        failed: sqlite3.Error | None = None,
    ) -> Result:
        """Run writing plans in one transaction. ``failed``: what the last of them met; raise what its first row meets.

        The results are added to ``results`` as they come; ``told`` is filled by a plan that fails.
        """
        shards = {step.shard for one in ready for step in one.plan.steps}
        if any(map(_probes, ready)):
            shards = set(state.layout.shard_ids)
        with self._db.write_scope(sorted(shards), state, timeout_s=deadline.wait_s) as scope:
            if failed is None and any(one.sequence and not one.sequence.is_current(one.token) for one in ready):
                raise _IdsTakenError
            total = count = 0
            deadline.watch(list(scope.sessions.values()))
            try:
                for one in ready:
                    if failed is not None and one is ready[-1]:
                        assert one.plan.rows is not None
                        probes = one.plan.insert is not None and one.plan.insert.probe
                        target = self._target(state, one.plan)
                        raise_first(self._db, scope, target, one.plan.rows(), told, probes=probes)
                        raise failed
                    deadline.check()
                    if one.plan.fails:
                        raise IntegrityError(one.plan.fails)
                    if _probes(one) and one.plan.insert is not None:
                        # Right before its rows: an earlier set of parameters may have brought the id to another shard.
                        table = state.table(one.plan.insert.table)
                        self._db.require_new_ids(scope, table, list(one.plan.explicit_ids), one.drawn)
                    before = sum(session.total_changes for session in scope.sessions.values())
                    try:
                        result, count = self._run_steps(state, scope, one.plan, deadline, told)
                        results.append(result)
                    except (IntegrityError, OperationalError):
                        self._tell(scope, one.plan, before, told)
                        told.total += total
                        raise
                    changed = sum(session.total_changes for session in scope.sessions.values()) - before
                    total += changed // len(scope.sessions) if one.plan.kind is PlanKind.EVERY_SHARD else changed
                deadline.check()
            finally:
                deadline.release()  # a COMMIT isn't interrupted
        self._past.note(count, total, results[-1].lastrowid)
        if len(results) == 1:
            return results[0]
        return Result(results[0].columns, rowcount=sum(result.rowcount for result in results))

    @staticmethod
    def _has_rowids(state: State, plan: Plan) -> bool:
        """Tell whether an INSERT's target is a table with rowids; the plan's tables may be others too."""
        kinds = {state.table(name).without_rowid for name in plan.tables}
        if len(kinds) == 1:
            return not kinds.pop()
        into = inserted_into(plan.steps[0].sql)
        return not any(fold(name) == into and state.table(name).without_rowid for name in plan.tables)

    def _tell(self, scope: WriteScope, plan: Plan, before: int, told: Told) -> None:
        """Say what a statement leaves that has just failed on one shard; it is in the scope's transaction yet."""
        if plan.kind is PlanKind.FAN_OUT_WRITE:
            return
        told.total = sum(session.total_changes for session in scope.sessions.values()) - before
        if len(plan.steps) > 1 and plan.kind is not PlanKind.EVERY_SHARD:
            return
        step = plan.steps[0]
        session = scope.sessions[step.shard]
        if not inserts(step.sql):
            return
        last = session.fetch_all("SELECT last_insert_rowid()")[0][0]
        if not session.in_transaction:  # OR ROLLBACK has ended it
            told.last_rowid = last if plan.rows is not None and any(row.id == last for row in plan.rows()) else None
            return
        if last == self._past.last_rowid or (plan.rows is not None and all(row.id != last for row in plan.rows())):
            return  # nothing was inserted, or it makes no difference
        # Some other statement on this connection may have inserted that id: try once more, from none.
        forget_rowid(session.run)
        with suppress(sqlite3.Error):
            session.run(step.sql, step.parameters)
        last = session.fetch_all("SELECT last_insert_rowid()")[0][0]
        if last != NO_ROWID:
            told.last_rowid = last

    def _run_steps(
        self, state: State, scope: WriteScope, plan: Plan, deadline: Deadline, told: Told
    ) -> tuple[Result, int]:
        """Run a plan's steps; return what they give, and the rows changed."""
        if plan.kind is PlanKind.FAN_OUT_WRITE:
            return fan_out_write(scope, plan, deadline, told)
        # A connection's last rowid is of some earlier statement unless this one inserts into a table with rowids.
        inserting = plan.insert is not None or any(inserts(step.sql) for step in plan.steps)
        inserting = inserting and not any(has_conflict_clause(step.sql) for step in plan.steps)
        inserting = inserting and self._has_rowids(state, plan)
        counts: list[int] = []
        counted = True
        rows: list[tuple[Any, ...]] = []
        columns: Sequence[str] = ()
        lastrowid: Any = None
        last: list[Any] = []
        for step in plan.steps:
            session = scope.sessions[step.shard]
            try:
                done = session.run(step.sql, step.parameters)
                if done.description is not None:
                    columns = [column[0] for column in done.description]
                    rows += done.fetchall()
            except sqlite3.Error as error:
                scope.fail(step.shard, error, step.sql)
            counted = counted and done.rowcount >= 0
            counts.append(changed_by(session, done.rowcount))
            if inserting and counts[-1]:
                lastrowid = done.lastrowid
                last.append(done.lastrowid)
        if len(last) > 1 and plan.rows is not None and sum(counts) < plan.row_count:
            # The last row's shard comes last, but that row may have been ignored.
            places = {row.id: place for place, row in enumerate(plan.rows())}
            lastrowid = max(last, key=lambda rowid: places.get(rowid, -1))
        if plan.kind is PlanKind.EVERY_SHARD:
            counts, rows = counts[:1], rows[: len(rows) // max(1, len(plan.steps))]
        rowcount = sum(counts) if counted else -1
        return Result(columns, iter(rows), rowcount=rowcount, lastrowid=lastrowid), sum(counts)
