"""Where the planner's and the executor's parts meet: N shards against one plain file, choices forced for few rows."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from diff_case import Create, Ddl, Rows, Statement
from diff_meet import Meeting
from diff_meet_world import CHOICES, MeetWorld, forced
from diff_world import Difference, Refused, Unusable

from shardlite.driver import sqlite3
from shardlite.sql.plan import PlanKind

SHARD_COUNTS = (1, 3, 4, 8)
SHORT_S = float(os.environ.get("SHARDLITE_MEETING_SECONDS", "8"))
STATEMENTS = 100_000


@dataclass
class Run:
    """What was run of one seed; fails at the first difference."""

    seed: int
    selects: int
    changes: int
    kinds: Counter[str] = field(default_factory=Counter)
    done: list[Statement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_shards = SHARD_COUNTS[self.seed % 4]
        self.choice = list(CHOICES)[self.seed // 4 % len(CHOICES)]
        self.meeting = Meeting(self.seed)

    def run(self) -> Counter[str]:
        with forced(self.choice):
            steps = self.meeting.steps()
            world = self.meeting.world(self.num_shards)
            try:
                self._run(world, steps)
            finally:
                world.close()
        return self.kinds

    def _run(self, world: MeetWorld, steps: Sequence[Any]) -> None:
        meeting, r = self.meeting, self.meeting.r
        virtual = meeting.virtual() if r.random() < 0.25 else []
        for step in (*steps, *virtual):
            self._take(world, step)
        if r.random() < 0.3:
            world.attach(meeting.beside())
        if r.random() < 0.2 and world.plain.execute("PRAGMA encoding").fetchone() == ("UTF-8",):
            for statement in meeting.raw():
                self._ask(world, statement)
        kept = []
        for _ in range(self.selects):
            several = list(meeting.select())
            kept.append(several[0])
            for statement in several:
                self._ask(world, statement)
        for number in range(self.changes):
            for statement in meeting.change():
                self._ask(world, statement)
            if number % 4 == 2:
                self._later(world, number)
                for statement in r.sample(kept, min(3, len(kept))):
                    self._ask(world, statement)
            if sum(map(len, world.content_of_plain().values())) > 150:
                break
        assert world.verify() is None, self._told(f"check(): {world.verify()}")

    def _take(self, world: MeetWorld, step: Any) -> None:
        """Take a step of the schema; what is refused, or SQLite doesn't take, is not named later."""
        try:
            outcome = world.add(step)
        except Unusable:
            outcome = Refused("")
        if isinstance(outcome, Difference):
            pytest.fail(self._told(str(outcome)), pytrace=False)
        if outcome is not None and isinstance(step, Create):
            self.meeting.base.pop(step.ddl.split()[2])
        elif outcome is not None and isinstance(step, Ddl) and " VIEW " in step.sql:
            self.meeting.views.pop(step.sql.split()[2].partition("(")[0])
        elif outcome is not None:
            assert not isinstance(step, Rows) or step.table not in self.meeting.base, self._told(str(outcome))

    def _later(self, world: MeetWorld, number: int) -> None:
        """Change what plans stand on: the statements that follow are known already."""
        text = self.meeting.later()
        if text:
            world.define(text)
            return
        for side in (world.plain, world.manager):
            side.create_function(f"later_{number}", 1, lambda value: value)

    def _ask(self, world: MeetWorld, statement: Statement) -> None:
        try:
            world.plain.execute(f"EXPLAIN {statement.sql}", statement.parameters).close()
        except sqlite3.Error:
            return  # the generator's fault
        kind = world.kind_of(statement)
        outcome = world.run(statement)
        self.kinds[f"refused: {outcome.reason}" if isinstance(outcome, Refused) else kind] += 1
        if isinstance(outcome, Difference):
            pytest.fail(self._told(str(outcome)), pytrace=False)
        if statement.change and outcome is None:
            self.done.append(statement)

    def _told(self, text: str) -> str:
        changes = "\n".join(f"  {s.sql}  {s.parameters!r}" for s in self.done)
        return f"seed {self.seed}, choice {self.choice!r}\n{text}\nafter\n{changes}"


def test_meetings() -> None:
    """As many seeds as fit into the time, the same ones first each time."""
    kinds: Counter[str] = Counter()
    deadline = time.monotonic() + SHORT_S
    seed = 0
    while seed < 4 or time.monotonic() < deadline:
        kinds += Run(seed, selects=12, changes=8).run()
        seed += 1
    assert kinds.total() > 100
    assert not [kind for kind in kinds if kind.startswith("refused")]
    assert {PlanKind.GATHER, PlanKind.FAN_OUT, PlanKind.INSERT_QUERY} <= set(kinds)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_meetings() -> None:
    """Every choice at every shard count, over and over."""
    kinds: Counter[str] = Counter()
    seed = 10_000
    while kinds.total() < STATEMENTS:
        kinds += Run(seed, selects=30, changes=16).run()
        seed += 1
    print(kinds.most_common())


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_are_those_of_the_modules(choice: str) -> None:
    """A constant that was renamed is an error (``patch`` makes no new names)."""
    with forced(choice):
        pass


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = MeetWorld.answer

    def lossy(self: MeetWorld, statement: Statement) -> Any:
        found = real(self, statement)
        rows = getattr(found, "rows", ())
        return found if statement.change or len(rows) < 2 else type(found)(found.columns, rows[1:], found.changed)

    monkeypatch.setattr(MeetWorld, "answer", lossy)
    with pytest.raises(pytest.fail.Exception, match="rows differ"):
        Run(1, selects=60, changes=0).run()
