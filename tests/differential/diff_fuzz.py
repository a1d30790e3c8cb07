"""From a seed: a schema on one file and on shards, SELECTs on its rows, then changes of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from diff_case import Case, Create, Ddl, Rows, Statement, Step
from diff_compare import Answer
from diff_facts import Source
from diff_from import Query, Skip, describe_table
from diff_rare import RareSelects
from diff_rare_changes import RareChanges
from diff_rare_schema import add_rare, written_view
from diff_schema import Schema, Table, make_schema, value_for
from diff_variants import varied
from diff_world import Difference, Refused, Unusable, World, ask, build

from shardlite.driver import sqlite3


@dataclass
class Tally:
    """What was run, and what came out."""

    selects: int = 0
    changes: int = 0
    texts: int = 0
    """Statements that were new, not an earlier text with other values."""
    failures: int = 0
    """Statements that one file refuses, and the shards in the same words."""
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    shapes: Counter[tuple[str, bool]] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def statements(self) -> int:
        return self.selects + self.changes

    def refuse(self, refusal: Refused, text: str) -> None:
        self.refused[refusal.group] += 1
        self.examples.setdefault(refusal.group, f"{refusal.reason}\n      {text}")

    def add(self, other: Tally) -> None:
        self.selects += other.selects
        self.changes += other.changes
        self.texts += other.texts
        self.failures += other.failures
        self.refused += other.refused
        self.shapes += other.shapes
        self.found += other.found
        self.seconds += other.seconds
        for group, example in other.examples.items():
            self.examples.setdefault(group, example)


@dataclass
class Found:
    """A difference and the case that shows it: its last statement differs."""

    seed: int
    difference: Difference
    case: Case


class Fuzz:
    """One seed's schema. ``counts``: at which shard counts; the first one decides what of the schema is accepted.

    ``variants``: how often a SELECT that has parameters is run again with other values; a change is, at most once.
    """

    def __init__(
        self, seed: int, counts: Sequence[int], *, selects: int = 60, changes: int = 20, variants: int = 0
    ) -> None:
        self.seed = seed
        self.r = Random(seed)
        self.counts = list(counts)
        self.selects = selects
        self.changes = changes
        self.variants = variants
        self.tally = Tally()
        self.steps: list[Step] = []
        self.tables: dict[str, Table] = {}

    def run(self, deadline: float | None = None) -> Tally:
        started = time.monotonic()
        first = World(self.counts[0])
        worlds = [first]
        try:
            self._prepare(first)
            for count in self.counts[1:]:
                made = build(self.steps, count)
                if isinstance(made, Difference):
                    self._report(made, self.steps, ())
                    return self.tally
                worlds.append(made)
            if not self.tally.found:
                self._run_selects(worlds, deadline)
                self._run_changes(worlds, deadline)
        finally:
            for world in worlds:
                world.close()
            self.tally.seconds = time.monotonic() - started
        return self.tally

    def _report(self, difference: Difference, steps: Sequence[Step], statements: Sequence[Statement]) -> None:
        self.tally.found.append(Found(self.seed, difference, Case(tuple(steps), tuple(statements))))

    # -- schema and rows -----------------------------------------------------------------------------------------

    def _take(self, world: World, step: Step, text: str) -> bool:
        try:
            outcome = world.add(step)
        except Unusable:
            return False
        if isinstance(outcome, Refused):
            self.tally.refuse(outcome, text)
            return False
        if outcome is not None:
            self._report(outcome, [*self.steps, step], ())
            return False
        self.steps.append(step)
        return True

    def _prepare(self, world: World) -> None:
        schema = make_schema(self.r)
        add_rare(self.r, schema)
        for table in schema.tables:
            for options in (
                table.options,
                {**table.options, "shard_key": None, "colocate_with": None},
                {"kind": "single"},
            ):
                given = {name: value for name, value in options.items() if value is not None}
                if given.get("colocate_with", table.name) not in {*self.tables, table.name}:
                    continue  # what it would stand beside was refused
                if self._take(world, Create(table.ddl, given), table.ddl):
                    table.options = given
                    self.tables[table.name] = table
                    break
                if self.tally.found:
                    return
        for extra in schema.extras:
            self._take(world, extra, extra.sql)
        self._fill(world, schema)
        self._make_views(world)
        self._make_written_view(world)

    def _fill(self, world: World, schema: Schema) -> None:
        scratch = sqlite3.connect(":memory:", isolation_level=None)
        try:
            scratch.execute("PRAGMA foreign_keys = ON")
            for step in self.steps:
                scratch.execute(step.ddl if isinstance(step, Create) else step.sql)  # type: ignore[union-attr]  # no rows yet
            for table in schema.tables:
                if table.name not in self.tables or table.hidden or not table.rows:
                    continue
                columns = tuple(column.ref for column in table.stored)
                rows = []
                for _ in range(table.rows):
                    row = tuple(value_for(self.r, column, table.strict) for column in table.stored)
                    parent = table.options.get("colocate_with")
                    if parent and self.r.random() < 0.85:
                        keys = scratch.execute(f"SELECT k FROM {parent} ORDER BY quote(k)").fetchall()
                        if keys:
                            key = self.r.choice(keys)[0]
                            row = tuple(key if c.name == "k" else v for c, v in zip(table.stored, row, strict=True))
                    try:
                        scratch.execute(*Rows(table.name, columns, (row,)).insert)
                    except (sqlite3.Error, OverflowError):
                        continue
                    rows.append(row)
                if rows:
                    step = Rows(table.name, columns, tuple(rows))
                    self._take(world, step, step.insert[0][:80])
        finally:
            scratch.close()

    def _sources(self, world: World) -> list[Source]:
        made = []
        for name, table in self.tables.items():
            collations = {column.name: column.collation for column in table.columns}
            key = table.primary_key if table.without_rowid else ("rowid",)
            made.append(describe_table(world.plain, name, collations, key, not table.without_rowid))
        return made

    def _make_views(self, world: World) -> None:
        self.views: list[Source] = []
        tables = self._sources(world)
        for number in range(self.r.choice((0, 1, 2, 3))):
            selects = RareSelects(self.r, world.plain, tables, self.views)
            selects.values.allowed = False
            selects.top_level = False
            try:
                query: Query = selects.query(limit=True)
            except Skip:
                continue
            if not query.determined or not query.columns or ask(world.plain, Statement(query.sql)).error is not None:
                continue
            names = [f"o{n}" for n in range(len(query.columns))]
            view = Ddl(f"CREATE VIEW v{number} ({', '.join(names)}) AS {query.sql}")
            if self._take(world, view, view.sql):
                collations = {n: c.expr.collation for n, c in zip(names, query.columns, strict=True)}
                key = [f"quote({n})" for n in names]
                source = describe_table(world.plain, f"v{number}", collations, (), False)
                key = [f"quote({source.alias}.{n})" for n in names]
                self.views.append(Source(source.alias, source.columns, tuple(key), source.rows, source.table))

    def _make_written_view(self, world: World) -> None:
        self.written_views: list[Table] = []
        # A rowid that SQLite gives to a row of a trigger would be another one on each side.
        able = [t for t in self.tables.values() if (t.integer_key or t.without_rowid) and not t.hidden]
        if not able or self.r.random() > 0.25:
            return
        table = self.r.choice(able)
        if all(self._take(world, step, step.sql) for step in written_view(self.r, table)):
            self.written_views.append(table)

    # -- statements ----------------------------------------------------------------------------------------------

    def _run_selects(self, worlds: Sequence[World], deadline: float | None) -> None:
        plain = worlds[0].plain
        selects = RareSelects(self.r, plain, self._sources(worlds[0]), self.views)
        for _ in range(self.selects):
            if deadline is not None and time.monotonic() > deadline:
                return
            statement = selects.statement()
            answer = worlds[0].ask_plain(statement)
            if answer.error is not None and statement.shape != "bad":
                text = str(answer.error)
                if not ("overflow" in text or "parser stack" in text):
                    # Nothing to learn from the same mistake again and again: bad statements have a share of their own.
                    self.tally.shapes[(f"unusable: {text[:60]}", False)] += 1
                    continue
            self.tally.texts += len(worlds)
            self._check(worlds, statement, answer)
            if statement.shape == "bad" or not statement.varies:
                continue
            for _ in range(self.variants):
                other = varied(self.r, statement)
                if other is None:
                    break
                answer = ask(plain, other)
                if answer.error is None:
                    self._check(worlds, other, answer)

    def _check(self, worlds: Sequence[World], statement: Statement, answer: Answer) -> None:
        outcomes = []
        for world in worlds:
            outcome = world.check(statement, answer)
            outcomes.append(outcome)
            self.tally.selects += 1
            self.tally.failures += answer.error is not None
            self._note(outcome, statement, [*self.steps], [statement])
        self._agree(outcomes, worlds, statement, [statement])

    def _note(self, outcome: Any, statement: Statement, steps: Sequence[Step], statements: Sequence[Statement]) -> None:
        self.tally.shapes[(statement.shape, isinstance(outcome, Refused))] += 1
        if isinstance(outcome, Refused):
            self.tally.refuse(outcome, statement.sql)
        elif outcome is not None:
            self._report(outcome, steps, statements)

    def _agree(
        self, outcomes: Sequence[Any], worlds: Sequence[World], statement: Statement, all_of: Sequence[Statement]
    ) -> None:
        """A statement that is accepted at one shard count is accepted at every one."""
        refusals = [isinstance(outcome, Refused) for outcome in outcomes]
        if any(refusals) and not all(refusals):
            count = worlds[refusals.index(True)].num_shards
            other = worlds[refusals.index(False)].num_shards
            reason = outcomes[refusals.index(True)].reason
            found = Difference("acceptance", count, statement, f"accepted at {other} shards", f"refused: {reason}")
            self._report(found, self.steps, all_of)

    def _run_changes(self, worlds: Sequence[World], deadline: float | None) -> None:
        limits = "ENABLE_UPDATE_DELETE_LIMIT" in {o for (o,) in worlds[0].plain.execute("PRAGMA compile_options")}
        tables = [table for name, table in self.tables.items()]
        changes = RareChanges(self.r, worlds[0].plain, tables, self._sources(worlds[0]), limits)
        changes.written_views = self.written_views
        done: list[Statement] = []
        for _ in range(self.changes):
            if deadline is not None and time.monotonic() > deadline:
                break
            statement = changes.statement()
            if not self._usable(worlds[0], statement):
                continue
            again = varied(self.r, statement) if self.variants and statement.varies else None
            self.tally.texts += len(worlds)
            for one in (statement, again):
                if one is not None and not self._change(worlds, one, done):
                    return
            if sum(map(len, worlds[0].content_of_plain().values())) > 150:
                break
        for world in worlds:
            trouble = world.verify()
            if trouble is not None:
                last = done[-1] if done else Statement("")
                found = Difference("manager.check()", world.num_shards, last, "sound", trouble)
                self._report(found, self.steps, done)

    def _change(self, worlds: Sequence[World], statement: Statement, done: list[Statement]) -> bool:
        """Run one statement everywhere and note it as done where it was; tell whether there is no difference."""
        outcomes = []
        for world in worlds:
            outcome = world.run(statement)
            outcomes.append(outcome)
            if statement.change:
                self.tally.changes += 1
            self._note(outcome, statement, self.steps, [*done, statement])
        self._agree(outcomes, worlds, statement, [*done, statement])
        if any(isinstance(outcome, Difference) for outcome in outcomes):
            return False
        if not any(isinstance(outcome, Refused) for outcome in outcomes):
            done.append(statement)
        return True

    def _usable(self, world: World, statement: Statement) -> bool:
        """Tell whether SQLite compiles a statement."""
        try:
            world.plain.execute(f"EXPLAIN {statement.sql}", statement.parameters).close()
        except sqlite3.Error as error:
            self.tally.shapes[(f"unusable: {str(error)[:60]}", False)] += 1
            return False
        return True
