"""A change that every shard makes to its own rows, side by side, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.execute.deadline import Deadline
from shardlite.execute.past import Told
from shardlite.execute.result import Result
from shardlite.execute.workers import run_on_shards
from shardlite.execute.writes import WriteScope
from shardlite.sql.plan import Plan


class AskOneFileError(Exception):
    """A statement failed in a way that only all rows together can word. Never leaves the package.

    Which of several failures one file meets first is a matter of its order, over the rows of all shards: the statement
    runs again as a gather, which knows it.
    """


@dataclass(frozen=True, slots=True)
class _Done:
    """What one shard's part gave."""

    columns: Sequence[str] = ()
    rows: Sequence[tuple[Any, ...]] = ()
    rowcount: int = 0
    """-1 where the driver doesn't count: behind WITH."""
    changed: int = 0
    failure: sqlite3.Error | None = None


def fail_as_one_file(scope: WriteScope, failures: Mapping[int, tuple[sqlite3.Error, str]]) -> None:
    """Raise what one file would for what failed on some shards, each at its own first row that doesn't fit.

    Where they don't say the same, that is AskOneFileError. Does nothing where nothing failed.
    """
    for shard, (failure, sql) in failures.items():
        if len({(type(other), str(other)) for other, _ in failures.values()}) > 1:
            raise AskOneFileError(str(failure)) from failure
        scope.fail(shard, failure, sql)


def changed_by(session: Connection, rowcount: int) -> int:
    """Return the rows that a session's last statement changed; the driver's ``rowcount`` is -1 behind WITH."""
    return rowcount if rowcount >= 0 else int(session.fetch_all("SELECT changes()")[0][0])


def fan_out_write(scope: WriteScope, plan: Plan, deadline: Deadline, told: Told) -> tuple[Result, int]:
    """Run a FAN_OUT_WRITE in a scope that holds its shards; return what it gives, and the rows changed.

    Raises what SQLite raises where all shards that fail say the same, else AskOneFileError; the caller rolls back.
    ``told`` is filled then.
    """
    steps = {step.shard: step for step in plan.steps}

    def run(shard: int) -> _Done:
        step = steps[shard]
        try:
            cursor = scope.sessions[shard].run(step.sql, step.parameters)
            rows = cursor.fetchall() if cursor.description is not None else []
        except (sqlite3.IntegrityError, sqlite3.OperationalError) as error:
            return _Done(failure=error)
        except sqlite3.Error as error:
            scope.fail(shard, error, step.sql)
        columns = [column[0] for column in cursor.description or ()]
        count = cursor.rowcount
        return _Done(columns, rows, count, changed_by(scope.sessions[shard], count))

    before = {shard: scope.sessions[shard].total_changes for shard in steps}
    done = dict(zip(steps, run_on_shards(run, steps, plan.sql, scope.sessions, deadline), strict=True))
    # What triggers and foreign keys did counts, also where it is undone. (One file may have come less far, or further.)
    told.total = sum(scope.sessions[s].total_changes - before[s] - part.changed for s, part in done.items())
    fail_as_one_file(scope, {s: (part.failure, plan.sql) for s, part in done.items() if part.failure is not None})
    parts = list(done.values())
    columns: Sequence[str] = parts[-1].columns
    rows = [row for part in parts for row in part.rows]
    if plan.merge_rowid:
        rows.sort(key=lambda row: row[0])
        rows = [row[1:] for row in rows]
        columns = columns[1:]
    changed = sum(part.changed for part in parts)
    rowcount = changed if all(part.rowcount >= 0 for part in parts) else -1
    return Result(columns, iter(rows), rowcount=rowcount), changed
