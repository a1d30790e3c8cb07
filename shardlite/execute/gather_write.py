"""The gather of a change: the statement runs on the coordinator, and what changed there is written to the shards.

All shards are locked first. Of the tables that the statement can touch come the rows that it can find or meet
(``sql/found_rows.py``), with constraints, indexes and triggers, so it does row by row what it would do on one file.
Then the rows are compared with what they were; those that differ are written as images: old ones deleted, new ones
inserted on the shard of their key, without triggers and foreign keys, which have had their say. All shards commit
together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.execute.coordinator import Coordinator
from shardlite.execute.database import Database
from shardlite.execute.deadline import Deadline
from shardlite.execute.past import NO_ROWID, Past, forget_rowid
from shardlite.execute.result import Result
from shardlite.execute.state import HOME_SHARD, State
from shardlite.execute.triggers_off import triggers_off
from shardlite.execute.writes import WriteScope
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.plan import Plan, Program

_BATCH = 1_000
_GROUP = 100
_SIGN = "_shardlite_sign"
"""A function of the coordinator's: -1.0 for -0.0, which SQLite's own take for 0.0."""


@dataclass(frozen=True, slots=True)
class _Image:
    """How rows of one table are compared and written. ``identity`` names the rowid, or the primary key's columns."""

    table: Table
    number: int
    columns: tuple[str, ...]
    identity: tuple[str, ...]

    @property
    def before(self) -> str:
        return f"temp._shardlite_before_{self.number}"

    @property
    def listed(self) -> tuple[str, ...]:
        """Everything that makes up a row: a rowid that is no column comes first."""
        hidden = [name for name in self.identity if name not in self.columns]
        return (*hidden, *self.columns)


def _image(table: Table, number: int) -> _Image:
    columns = tuple(column.name for column in table.columns if column.writable)
    if table.without_rowid:
        keys = dict.fromkeys(fold(name) for name in (*table.primary_key, *table.key_columns))
        identity = tuple(table.by_name[key].name for key in keys if table.by_name[key].writable)
    else:
        assert table.rowid_name is not None
        identity = (table.rowid_name,)
    return _Image(table, number, columns, identity)


def gather_write(database: Database, state: State, plans: Sequence[Plan], past: Past, deadline: Deadline) -> Result:
    """Run GATHER_WRITE plans of one statement with several sets of parameters, as one transaction.

    Raises what SQLite raises for the statement; what OR FAIL keeps of a statement that fails is kept.
    """
    program = plans[0].program
    assert program is not None
    with database.write_scope(state.layout.shard_ids, state, timeout_s=deadline.wait_s, images=True) as scope:
        coordinator = Coordinator(state, deadline, undo=True)
        coordinator.connection.create_function(_SIGN, 1, _sign, deterministic=True)
        deadline.watch(list(scope.sessions.values()))
        failure: sqlite3.Error | None = None
        results: list[Result] = []
        try:
            if len(plans) > 1:
                program = for_all_parameters(program)
            images = _prepare(database, state, coordinator, scope, program)
            if program.past:
                past.relive(coordinator.connection)
            done = Done()
            try:
                results.extend(run_there(plan, coordinator, past, done) for plan in plans)
            except sqlite3.Error as error:
                failure = error
                if len(plans) > 1:
                    past.note(0, done.total, done.last_rowid)
                    raise
            past.note(done.changes, done.total, done.last_rowid)
            with coordinator.reading_raw_text():
                changed = _write_back(database, state, coordinator, scope, images)
            if failure is not None and not changed:
                raise failure
        finally:
            deadline.release()  # a COMMIT isn't interrupted
            coordinator.close()
    if failure is not None:
        raise failure
    last = results[-1]
    rowcount = sum(result.rowcount for result in results)
    if len(results) == 1:
        return last
    return Result(last.columns, rowcount=rowcount, lastrowid=last.lastrowid, rows_moved=coordinator.rows_moved)


def for_all_parameters(program: Program) -> Program:
    """Bring what is found with any parameters, and not only with the first."""
    moves = [move._replace(sql=move.whole, parameters=()) if move.whole else move for move in program.moves]
    return program._replace(moves=tuple(moves))


def _sign(value: object) -> float:
    return math.copysign(1.0, value) if isinstance(value, float) else 0.0


def _prepare(
    database: Database, state: State, coordinator: Coordinator, scope: WriteScope, program: Program
) -> list[_Image]:
    """Bring the rows, remember those of the tables that may change, then switch constraints and triggers on."""
    coordinator.run("PRAGMA foreign_keys = OFF")
    coordinator.run("PRAGMA ignore_check_constraints = ON")
    shards = {shard: database.shards[shard] for shard in scope.sessions}
    coordinator.load(program.moves, shards, scope.sessions, locked=True)
    images = []
    for number, name in enumerate(program.written):
        image = _image(state.table(name), number)
        columns = ", ".join(quote(f"c{index}") for index in range(len(image.listed)))
        coordinator.run(f"CREATE TABLE {image.before}({columns})")
        listed = ", ".join(_quoted(image.table, name) for name in image.listed)
        coordinator.run(f"INSERT INTO {image.before} SELECT {listed} FROM main.{quote(image.table.name)}")
        places = ", ".join(f"c{image.listed.index(name)}" for name in image.identity)
        coordinator.run(f"CREATE INDEX {image.before}_i ON _shardlite_before_{number}({places})")
        if image.table.autoincrement:
            last = _last_id(database, scope, image.table)
            coordinator.run("DELETE FROM main.sqlite_sequence WHERE name = ?", (image.table.name,))
            coordinator.run("INSERT INTO main.sqlite_sequence(name, seq) VALUES (?, ?)", (image.table.name, last))
        images.append(image)
    for sql in program.setup:
        coordinator.run(sql)
    coordinator.run("PRAGMA ignore_check_constraints = OFF")
    coordinator.run("PRAGMA foreign_keys = ON")
    coordinator.attach(program, begin="")
    return images


def _last_id(database: Database, scope: WriteScope, table: Table) -> int:
    """Return the highest id that an AUTOINCREMENT table ever had. All shards are locked."""
    if table.sharded:
        return database.catalog.next_id(fold(table.name)) - 1
    # The ids of a table kept whole are SQLite's own, and so is the count of them.
    rows = scope.fetch_all(HOME_SHARD, "SELECT seq FROM main.sqlite_sequence WHERE name = ?", (table.name,))
    last = rows[0][0] if rows else 0
    return last if isinstance(last, int) else 0


@dataclass(slots=True)
class Done:
    """What statements did on the coordinator, also one that failed in the middle."""

    changes: int = 0
    total: int = 0
    last_rowid: int | None = None


def run_there(plan: Plan, coordinator: Coordinator, past: Past, done: Done) -> Result:
    """Run a change on the coordinator and read its rows; ``done`` is told what it did, also where it fails."""
    assert plan.program is not None
    # A connection's last rowid is of some earlier statement unless this one inserts a row into a table with rowids.
    unmoved = past.last_rowid if plan.program.past else NO_ROWID
    if not plan.program.past:
        forget_rowid(coordinator.run)
    before = coordinator.connection.total_changes
    lastrowid: int | None = None
    try:
        cursor = coordinator.run(plan.sql, plan.program.parameters)
        columns = [column[0] for column in cursor.description or ()]
        rows = cursor.fetchall() if cursor.description is not None else []
    finally:
        done.total += coordinator.connection.total_changes - before
        done.changes, last = coordinator.run("SELECT changes(), last_insert_rowid()").fetchone()
        if last != unmoved:
            done.last_rowid = lastrowid = last
    return Result(columns, iter(rows), rowcount=cursor.rowcount, lastrowid=lastrowid, rows_moved=coordinator.rows_moved)


def _quoted(table: Table, name: str) -> str:
    """Quote a column; the rowid's own names stay bare, lest SQLite takes an unknown quoted name for a string."""
    return quote(name) if fold(name) in table.by_name else name


def _write_back(
    database: Database, state: State, coordinator: Coordinator, scope: WriteScope, images: Sequence[_Image]
) -> bool:
    """Write the rows that differ to the shards; tell whether there were any."""
    touched = [image for image in images if _differs(coordinator, image)]
    if not touched:
        return False
    names = {fold(image.table.name) for image in touched}
    triggers = [(t.name, t.sql) for t in database.catalog.schema if t.type == "trigger" and fold(t.tbl_name) in names]
    with ExitStack() as stack:
        for shard in scope.sessions:
            stack.enter_context(triggers_off(partial(scope.run, shard), triggers))
        for image in touched:
            _delete_old(state, coordinator, scope, image)
        for image in touched:
            _insert_new(database, state, coordinator, scope, image)
    return True


def _same(image: _Image) -> str:
    """Return the condition that a row (a) is the one remembered (b), bit by bit.

    What names the row is said in two more ways, which follow from the third. SQLite finds a row by an index only where
    the comparison has the index's own affinity and collation: those of the table's column in the first, none in the
    second, as the remembered columns have.
    """
    pairs = [(f"a.{_quoted(image.table, name)}", f"b.c{index}") for index, name in enumerate(image.listed)]
    found = [pairs[image.listed.index(name)] for name in image.identity]
    alike = [
        f"{a} IS {b} COLLATE BINARY AND typeof({a}) = typeof({b}) AND ({a} IS NOT 0 OR {_SIGN}({a}) = {_SIGN}({b}))"
        for a, b in pairs
    ]
    # SQLite takes conditions a thousand deep, and tables of two thousand columns.
    groups = [" AND ".join(alike[first : first + _GROUP]) for first in range(0, len(alike), _GROUP)]
    return " AND ".join([f"{a} IS {b} AND {b} IS +{a}" for a, b in found] + [f"({group})" for group in groups])


def _gone(image: _Image, select: str) -> str:
    """Return a query over the remembered rows that are not there any more as they were."""
    return (
        f"SELECT {select} FROM {image.before} AS b WHERE NOT EXISTS "
        f"(SELECT 1 FROM main.{quote(image.table.name)} AS a WHERE {_same(image)})"
    )


def _new(image: _Image, select: str) -> str:
    """Return a query over the rows that were not there as they are."""
    return (
        f"SELECT {select} FROM main.{quote(image.table.name)} AS a WHERE NOT EXISTS "
        f"(SELECT 1 FROM {image.before} AS b WHERE {_same(image)})"
    )


def _differs(coordinator: Coordinator, image: _Image) -> bool:
    for sql in (_gone(image, "1"), _new(image, "1")):
        if coordinator.run(f"{sql} LIMIT 1").fetchone() is not None:
            return True
    return False


def _owner(state: State, image: _Image) -> Any:
    """Return a function from a row (``listed``) to the shards that hold it."""
    table = image.table
    everywhere = tuple(state.layout.shard_ids)
    if table.kind is TableKind.SINGLE:
        return lambda row: (HOME_SHARD,)
    if table.kind is TableKind.REFERENCE or table.explicit_key:
        return lambda row: everywhere
    route = state.route(table)
    listed = [fold(name) for name in image.listed]
    places = [listed.index(fold(name)) for name in table.key_columns]
    if len(places) == 1:
        place = places[0]
        return lambda row: (route(row[place]),)
    return lambda row: (route(tuple(row[place] for place in places)),)


def _by_shard(coordinator: Coordinator, sql: str, owner: Any) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
    """Yield the rows of a query in batches, with the shard of each."""
    waiting: dict[int, list[tuple[Any, ...]]] = {}
    for row in coordinator.run(sql):
        for shard in owner(row):
            rows = waiting.setdefault(shard, [])
            rows.append(row)
            if len(rows) >= _BATCH:
                yield shard, waiting.pop(shard)
    yield from waiting.items()


def _delete_old(state: State, coordinator: Coordinator, scope: WriteScope, image: _Image) -> None:
    table = image.table
    names = [_quoted(table, name) for name in image.identity]
    places = [image.listed.index(name) for name in image.identity]
    gone = _gone(image, ", ".join(f"b.c{index}" for index in range(len(image.listed))))
    if table.explicit_key:
        # The key beside the row stays with a row that is only changed.
        gone += f" AND b.c0 NOT IN (SELECT {image.identity[0]} FROM main.{quote(table.name)})"

    def sql(marks: Sequence[str]) -> str:
        condition = " AND ".join(f"{name} IS {mark}" for name, mark in zip(names, marks, strict=True))
        return f"DELETE FROM main.{quote(table.name)} WHERE {condition}"

    for shard, rows in _by_shard(coordinator, gone, _owner(state, image)):
        ids = [tuple(row[place] for place in places) for row in rows]
        count = coordinator.raw_text.run_many(partial(scope.run_many, shard), sql, len(names), ids)
        if count != len(rows) and not table.explicit_key:
            raise OperationalError(
                f"shard {shard}: {len(rows) - count} rows of {table.name} are not where their key says: "
                "run check with repair"
            )


def _insert_new(database: Database, state: State, coordinator: Coordinator, scope: WriteScope, image: _Image) -> None:
    table = image.table
    new = _new(image, ", ".join(f"a.{_quoted(table, name)}" for name in image.listed))
    if table.explicit_key:
        _update_beside(coordinator, scope, image, new)
        return
    listed = ", ".join(_quoted(table, name) for name in image.listed)

    def sql(marks: Sequence[str]) -> str:
        return f"INSERT INTO main.{quote(table.name)}({listed}) VALUES ({', '.join(marks)})"

    if table.sharded and not table.without_rowid:
        _note_ids(database, coordinator, scope, image)
    for shard, rows in _by_shard(coordinator, new, _owner(state, image)):
        coordinator.raw_text.run_many(partial(scope.run_many, shard), sql, len(image.listed), rows)


def _update_beside(coordinator: Coordinator, scope: WriteScope, image: _Image, new: str) -> None:
    """Write the changed rows of a table whose keys stand beside the rows: their shards are not told by the rows."""
    table = image.table
    sets = ", ".join(
        f"{quote(name)} = ?{index + 1}" for index, name in enumerate(image.listed) if name in image.columns
    )
    at = image.listed.index(image.identity[0]) + 1
    sql = f"UPDATE main.{quote(table.name)} SET {sets} WHERE {_quoted(table, image.identity[0])} = ?{at}"
    for row in coordinator.run(new).fetchall():
        if sum(scope.run(shard, sql, row).rowcount for shard in scope.sessions) != 1:
            raise OperationalError(
                f"a row of {table.name} without a key beside it: use manager.insert({table.name!r}, row, key)"
            )


def _note_ids(database: Database, coordinator: Coordinator, scope: WriteScope, image: _Image) -> None:
    """Tell the table's sequence of the ids that are new. No other row has them: all shards are locked."""
    rowid = _quoted(image.table, image.identity[0])
    at = image.listed.index(image.identity[0])
    sql = (
        f"SELECT min(a.{rowid}), max(a.{rowid}), count(*) FROM main.{quote(image.table.name)} AS a "
        f"WHERE a.{rowid} NOT IN (SELECT c{at} FROM {image.before})"
    )
    lowest, highest, count = coordinator.run(sql).fetchone()
    if count and database.sequence(image.table).note_explicit_many(lowest, highest, count):
        database.stop_drawn_ids(scope)
