"""One plain file and one sharded database that receive the same statements, and the comparison after each."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diff_case import Create, Ddl, Rows, Statement, Step
from diff_compare import Answer, Row, compare_errors, compare_rows, same_but_for_ids

from shardlite import ShardManager
from shardlite.config import ShardliteConfig
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, WalResetBugWarning
from shardlite.execute.database import Database
from shardlite.execute.planners import automatic_indexes_lose
from shardlite.router.table import TableKind
from shardlite.sql.plan import PlanKind

Contents = dict[str, list[Row]]
MEMORY = Path("/dev/shm")


class Unusable(Exception):
    """SQLite itself doesn't take this step: the generator's fault, nothing to compare."""


@dataclass(frozen=True)
class Difference:
    """One statement whose answers differ at one shard count."""

    what: str
    num_shards: int
    statement: Statement | Step
    plain: str
    ours: str

    def __str__(self) -> str:
        text = self.statement.sql if isinstance(self.statement, Statement | Ddl) else repr(self.statement)
        parameters = ""
        if isinstance(self.statement, Statement) and self.statement.parameters:
            parameters = f"\n  parameters: {self.statement.parameters!r}"
        return (
            f"{self.what} differ at {self.num_shards} shards\n  statement:  {text}{parameters}\n"
            f"  one file:   {self.plain}\n  {self.num_shards} shards:   {self.ours}"
        )


@dataclass(frozen=True)
class Refused:
    """A statement that was refused by name."""

    reason: str

    @property
    def group(self) -> str:
        """The first words, without the names that the grammar gives."""
        return " ".join(re.sub(r"\b(t\d|v\d|log|on_\w+|i\d_t\d|[a-z])\b", "~", self.reason).split()[:8])


Outcome = Difference | Refused | None


def ask(conn: Any, statement: Statement) -> Answer:
    """Run a statement on a plain connection."""
    before = conn.total_changes
    try:
        cursor = conn.execute(statement.sql, statement.parameters)
        rows = tuple(map(tuple, cursor.fetchall()))
        columns = tuple(column[0] for column in cursor.description or ())
        if not statement.change:
            return Answer(columns, rows)
        changed, last = conn.execute("SELECT changes(), last_insert_rowid()").fetchone()
        if cursor.rowcount < 0:
            # The driver doesn't count what begins with WITH.
            changed, last = -1, last if conn.total_changes > before else None
        return Answer(columns, rows, changed, last)
    except (sqlite3.Error, OverflowError, sqlite3.Warning) as error:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        return Answer(error=error)


class World:
    """A plain file in memory and a ShardManager of ``num_shards``. Close it."""

    def __init__(self, num_shards: int, encoding: str = "UTF-8", strategy: Any = None) -> None:
        self.num_shards = num_shards
        self.directory = Path(tempfile.mkdtemp(prefix="shardlite-diff-", dir=MEMORY if MEMORY.is_dir() else None))
        self.plain = sqlite3.connect(":memory:", isolation_level=None)
        self.plain.execute(f"PRAGMA encoding = '{encoding}'")
        self.plain.execute("PRAGMA foreign_keys = ON")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WalResetBugWarning)
            config = ShardliteConfig(num_shards=num_shards, db_dir=str(self.directory), durability="normal")
            if encoding != "UTF-8":
                Database(config, encoding=encoding).close()
            self.manager = ShardManager(
                num_shards=num_shards, db_dir=self.directory, durability="normal", strategy=strategy
            )
        self._readers: list[Any] = []
        self._reads: dict[str, tuple[TableKind, str, str]] = {}
        self._trigger_targets: set[str] = set()
        self._highest: dict[str, int] = {}
        self._renumbered = False

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self.plain.close()
        try:
            self.manager.shutdown()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- schema and rows -----------------------------------------------------------------------------------------

    def add(self, step: Step) -> Outcome:
        """Take one step on both sides; a refused one is taken on neither."""
        if isinstance(step, Create | Ddl):
            return self._define(step)
        sql, parameters = step.insert
        return self.change(Statement(sql, parameters, change=True))

    def _define(self, step: Create | Ddl) -> Outcome:
        sql = step.ddl if isinstance(step, Create) else step.sql
        try:
            self.plain.execute("SAVEPOINT step")
            self.plain.execute(sql)
        except sqlite3.Error as error:
            self._undo()
            raise Unusable(f"{error}: {sql}") from error
        try:
            if isinstance(step, Create):
                self.manager.create_table(sql, **step.options)
            else:
                self.manager.apply_schema(sql)
        except NotSupportedError as refusal:
            self._undo()
            return Refused(str(refusal))
        except Exception as error:
            self._undo()
            return Difference("answers to DDL", self.num_shards, step, "accepted", f"{type(error).__name__}: {error}")
        self.plain.execute("RELEASE step")
        self._reads = {}
        if isinstance(step, Ddl) and " TRIGGER " in sql and " INSTEAD OF " not in sql:
            self._trigger_targets.update(name.lower() for name in re.findall(r"INSERT (?:OR \w+ )?INTO (\w+)", sql))
        return None

    def _undo(self) -> None:
        if self.plain.in_transaction:
            self.plain.execute("ROLLBACK TO step")
            self.plain.execute("RELEASE step")

    # -- statements ----------------------------------------------------------------------------------------------

    def run(self, statement: Statement) -> Outcome:
        """Run a statement on both sides and compare."""
        if statement.sql == "SELECT changes()" and self._renumbered:
            return None  # one file's count is that of the renumbering
        return self.change(statement) if statement.change else self.check(statement, self.ask_plain(statement))

    def ask_plain(self, statement: Statement) -> Answer:
        """Run a statement on the plain file.

        Its automatic indexes may lose matches by RTRIM, so it does without them (with an index of the table's own it
        would, too), but for what a shard is asked as the one file that it is for such statements.
        """
        if automatic_indexes_lose():
            try:
                alike = self.manager.explain(statement.sql, statement.parameters).kind == PlanKind.HOME
            except Exception:  # what is wrong with it is told when it runs
                alike = True
            self.plain.execute(f"PRAGMA automatic_index = {'ON' if alike else 'OFF'}")
        return ask(self.plain, statement)

    def check(self, statement: Statement, plain: Answer) -> Outcome:
        """Run a SELECT on the shards and compare with one file's answer."""
        ours = self.answer(statement)
        if isinstance(ours, Refused):
            return ours
        what = compare_errors(plain.error, ours.error)
        if what is None and plain.error is None:
            what = "columns' names" if plain.columns != ours.columns else None
        if what is None and plain.error is None:
            ordered = statement.order == "total" or (statement.order == "scan" and self._scans(statement))
            scale: Sequence[Row] = ()
            if statement.scale is not None:
                scale = self.plain.execute(statement.scale, statement.parameters).fetchall()
            what = compare_rows(statement, plain.rows, ours.rows, ordered=ordered, scale=scale)
        return None if what is None else self._difference(what, statement, plain, ours)

    def answer(self, statement: Statement) -> Answer | Refused:
        """Run a statement on the shards."""
        try:
            with self.manager.execute(statement.sql, statement.parameters) as result:
                rows = tuple(map(tuple, result))
                return Answer(tuple(result.columns), rows, result.rowcount, result.lastrowid)
        except NotSupportedError as refusal:
            return Refused(str(refusal))
        except Exception as error:
            return Answer(error=error)

    def change(self, statement: Statement) -> Outcome:
        """Run a writing statement on both sides; compare the answer, then the whole content."""
        before = self.content_of_shards()
        if isinstance(before, str):
            return Difference("copies", self.num_shards, statement, "", before)
        _, total = self._past()
        ours = self.answer(statement)
        if isinstance(ours, Refused):
            return ours
        changed, total = self._past()[0], self._past()[1] - total
        plain_total = self.plain.total_changes
        plain = self.ask_plain(statement)
        plain_total = self.plain.total_changes - plain_total
        plain_changed = self.plain.execute("SELECT changes()").fetchone()[0]
        ids = self._align(before)
        self._renumbered = bool(ids)
        what = compare_errors(plain.error, ours.error)
        if what is None and plain.error is None:
            what = self._compare_change(statement, plain, ours, ids)
        if what is None and (changed, total) != (plain_changed, plain_total) and not self._forgets(statement, ours):
            plain = replace(plain, columns=("changes()", "total_changes()"), rows=((plain_changed, plain_total),))
            ours = replace(ours, columns=plain.columns, rows=((changed, total),))
            what = "counts"
        after, expected = self.content_of_shards(), self.content_of_plain()
        if after != expected:
            what = "contents" if what is None else f"{what}, and the contents,"
            return Difference(
                what,
                self.num_shards,
                statement,
                f"{plain}\n{_show(expected, after)}",
                f"{ours}\n{_show(after, expected)}",
            )
        return None if what is None else self._difference(what, statement, plain, ours)

    def _past(self) -> tuple[int, int]:
        changed, total = self.manager.execute("SELECT changes(), total_changes()").fetchone()
        return changed, total

    def _forgets(self, statement: Statement, ours: Answer) -> bool:
        """Tell whether the counts are open: what triggers did before an UPDATE or DELETE of several shards failed."""
        return ours.error is not None and "INSERT" not in statement.sql and "REPLACE" not in statement.sql

    def _compare_change(self, statement: Statement, plain: Answer, ours: Answer, ids: dict[int, int]) -> str | None:
        if plain.columns != ours.columns:
            return "columns' names"
        if plain.changed != ours.changed:
            return "rowcount"
        if not same_but_for_ids(plain.rows, ours.rows, ids):
            return "RETURNING rows"
        inserts = re.match(r"\s*(?:WITH\b.*?\s)?(?<!OR )(INSERT|REPLACE)\s+(?:OR|INTO)\b", statement.sql, re.I | re.S)
        if ours.lastrowid is not None:
            if not inserts or not plain.changed or plain.lastrowid is None:
                return "lastrowid (nothing was inserted)"
            if ours.lastrowid not in (plain.lastrowid, ids.get(plain.lastrowid)) and not self._without_rowid(statement):
                return "lastrowid"
        elif (
            inserts
            and plain.changed
            and plain.lastrowid is not None
            and "CONFLICT" not in statement.sql
            and not self._without_rowid(statement)
        ):
            return "lastrowid (None)"
        return None

    def _without_rowid(self, statement: Statement) -> bool:
        found = re.search(r"\bINTO (?:main\.)?(\w+)", statement.sql, re.I)
        return found is not None and self._read_texts().get(found[1].lower(), (None, "", ""))[2] == "NULL"

    def _difference(self, what: str, statement: Statement, plain: Answer, ours: Answer) -> Difference:
        return Difference(what, self.num_shards, statement, str(plain), str(ours))

    def _scans(self, statement: Statement) -> bool:
        """Tell whether one file reads the one table by rowid: then its rows have an order."""
        plan = self.plain.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters).fetchall()
        return len(plan) == 1 and bool(re.fullmatch(r"SCAN \S+", plan[0][3]))

    # -- contents ------------------------------------------------------------------------------------------------

    def _read_texts(self) -> dict[str, tuple[TableKind, str, str]]:
        """For each table its kind, the SELECT of all its content, and the name of the rowid."""
        if not self._reads:
            for name, table in self.manager.tables.items():
                if table.virtual:
                    continue  # the tables below it are all that it has
                columns = [row[1] for row in self.plain.execute(f'PRAGMA table_xinfo("{name}")')]
                rowid = "NULL" if table.without_rowid or name.lower() in self._trigger_targets else "rowid"
                listed = ", ".join(f'"{column}"' for column in columns)
                self._reads[name.lower()] = (table.kind, f'SELECT {rowid}, {listed} FROM "{name}"', rowid)
        return self._reads

    def content_of_plain(self) -> Contents:
        return {
            name: sorted(self.plain.execute(sql).fetchall(), key=repr)
            for name, (_, sql, _) in self._read_texts().items()
        }

    def _open_readers(self) -> None:
        if not self._readers:
            for shard in self.manager.shard_ids:
                path = self.directory / f"shard_{shard}.db"
                self._readers.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False))

    def content_of_shards(self) -> Contents | str:
        """Return all rows of all shards, read from the files, or what is wrong with the copies."""
        self._open_readers()
        found: Contents = {}
        for name, (kind, sql, _) in self._read_texts().items():
            parts = [sorted(reader.execute(sql).fetchall(), key=repr) for reader in self._readers]
            if kind is TableKind.SHARDED:
                found[name] = sorted((row for part in parts for row in part), key=repr)
            else:
                found[name] = parts[0]
                if kind is TableKind.REFERENCE and any(part != parts[0] for part in parts):
                    return f"the copies of {name} differ: {parts}"
                if kind is TableKind.SINGLE and any(parts[1:]):
                    return f"rows of the single table {name} on other shards: {parts}"
        return _Typed(found)

    def _align(self, before: Contents) -> dict[int, int]:
        """Give generated ids of the plain file the numbers that the shards drew, if these are new; return old -> new.

        One file reuses the highest id after a DELETE or a failed statement, a sequence doesn't. Nothing else may
        differ: the ids must be ascending and above all that were ever seen.
        """
        after = self.content_of_shards()
        moved: dict[int, int] = {}
        if isinstance(after, str):
            return moved
        for name, (_, sql, rowid) in self._read_texts().items():
            if rowid == "NULL":
                continue
            old = {row[0] for row in before[name]}
            highest = max([self._highest.get(name, 0), *old], default=0)
            self._highest[name] = max([highest, *(row[0] for row in after[name])], default=0)
            here = {row[0]: row for row in self.plain.execute(sql) if row[0] not in old}
            there = {row[0]: row for row in after[name] if row[0] not in old}
            ids = _pair_ids(here, there, highest, self._follows_rowid(name))
            if ids:
                moved.update(ids)
                self._renumber(name, ids)
        return moved

    def _follows_rowid(self, table: str) -> frozenset[int]:
        """Return the places of what may depend on the rowid, in the rows, which begin with it.

        Those are an INTEGER PRIMARY KEY and generated columns. They are compared once the ids have been made equal.
        """
        columns = list(self.plain.execute(f'PRAGMA table_xinfo("{table}")'))
        keys = [row for row in columns if row[5]]
        alias = {keys[0][0] + 1} if len(keys) == 1 and keys[0][2].upper() == "INTEGER" else set()
        return frozenset({0} | alias | {row[0] + 1 for row in columns if row[6] in (2, 3)})

    def _renumber(self, table: str, ids: dict[int, int]) -> None:
        triggers = self.plain.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        self.plain.execute("PRAGMA foreign_keys = OFF")
        for name, _ in triggers:
            self.plain.execute(f'DROP TRIGGER "{name}"')
        for sign in (-1, 1):
            for a, b in ids.items():
                self.plain.execute(f'UPDATE "{table}" SET rowid = ? WHERE rowid = ?', (sign * b, a if sign < 0 else -b))
        for _, sql in triggers:
            self.plain.execute(sql)
        self.plain.execute("PRAGMA foreign_keys = ON")

    def verify(self) -> str | None:
        """Run the manager's own check; return what it found."""
        try:
            report = self.manager.check()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if report.ok else str(report)


def _pair_ids(here: dict[int, Row], there: dict[int, Row], highest: int, ids_in: frozenset[int]) -> dict[int, int]:
    """Return which generated ids of one side are which of the other, by the rows' other columns; nothing if unclear.

    ``ids_in``: the places of the rows in which the id shows.

    The shards' ids must be new (above ``highest``) and in the same order.
    """

    def rest(row: Row) -> str:
        return repr([value for number, value in enumerate(row) if number not in ids_in])

    def paired(left_out: set[int]) -> dict[int, int] | None:
        mine = sorted((rest(row), number) for number, row in here.items() if number not in left_out)
        theirs = sorted((rest(row), number) for number, row in there.items() if number not in left_out)
        if [text for text, _ in mine] != [text for text, _ in theirs]:
            return None
        ids = {a: b for (_, a), (_, b) in zip(mine, theirs, strict=True) if a != b}
        drawn = [ids[a] for a in sorted(ids)]
        return ids if drawn == sorted(drawn) and all(number > highest for number in drawn) else None

    found = paired(set())
    if found is None:
        # Ids that the statement itself gives are the same on both sides.
        found = paired({n for n in here.keys() & there.keys() if rest(here[n]) == rest(there[n])})
    return found or {}


class _Typed(dict[str, list[Row]]):
    """Contents that compare with types."""

    def __eq__(self, other: object) -> bool:
        return repr(dict(self)) == repr(dict(other)) if isinstance(other, dict) else False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # a dict has no hash either


def _show(mine: Any, other: Any) -> str:
    """Return the rows that only one side has."""
    if isinstance(mine, str) or isinstance(other, str):
        return str(mine) if isinstance(mine, str) else ""
    lines = []
    for name, rows in mine.items():
        extra = Counter(map(repr, rows)) - Counter(map(repr, other.get(name, [])))
        if extra:
            lines.append(f"      only here, {name} (rowid, columns): {', '.join(list(extra.elements())[:8])}")
    return "\n".join(lines)


def build(steps: Sequence[Step], num_shards: int) -> World | Difference:
    """Make a world and take steps that are known to be accepted."""
    world = World(num_shards)
    try:
        for step in steps:
            outcome = world.add(step)
            if isinstance(outcome, Refused):
                outcome = Difference("acceptance", num_shards, step, "accepted at another count", outcome.reason)
            if outcome is not None:
                world.close()
                return outcome
    except BaseException:
        world.close()
        raise
    return world


__all__ = ["Difference", "Refused", "Rows", "Unusable", "World", "ask", "build"]
