"""Make a case that shows a difference small: fewer statements, rows, tables and words, while the difference stays."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from diff_case import Case, Create, Rows, Statement, Step
from diff_world import Difference, Refused, Unusable, World, ask, build

from shardlite.driver import sqlite3

T = TypeVar("T")


def replay(case: Case, num_shards: int) -> Difference | None:
    """Run a case from the start and return its first difference. Refusals of statements are passed over."""
    try:
        world = build(case.steps, num_shards)
    except Unusable:
        return None
    if isinstance(world, Difference):
        return world
    try:
        for statement in case.statements:
            outcome = world.run(statement)
            if isinstance(outcome, Difference):
                return outcome
        trouble = world.verify()
        if trouble is not None and case.statements:
            return Difference("manager.check()", num_shards, case.statements[-1], "sound", trouble)
    finally:
        world.close()
    return None


def refusals(case: Case, num_shards: int) -> list[str]:
    """Return what is refused when a case runs: a fixture is there to be answered."""
    world = build(case.steps, num_shards)
    assert isinstance(world, World), world
    try:
        return [outcome.reason for s in case.statements if isinstance(outcome := world.run(s), Refused)]
    finally:
        world.close()


def _fewer(items: Sequence[T], still: Callable[[list[T]], bool]) -> list[T]:
    """Drop ever smaller runs of items while the difference stays (delta debugging)."""
    kept = list(items)
    size = max(1, (len(kept) + 1) // 2)
    while True:
        start = 0
        while start < len(kept):
            attempt = kept[:start] + kept[start + size :]
            if still(attempt):
                kept = attempt
            else:
                start += size if size > 4 else 1
        if size == 1:
            return kept
        size //= 2


class Shrinker:
    """Shrinks one case. ``budget_s`` bounds the time; what was reached by then counts."""

    def __init__(self, case: Case, difference: Difference, *, budget_s: float = 60.0) -> None:
        self.case = case
        self.difference = difference
        self._kind = difference.what.split("(")[0]
        self._until = time.monotonic() + budget_s

    def _same(self, case: Case) -> bool:
        if time.monotonic() > self._until:
            return False
        try:
            found = replay(case, self.difference.num_shards)
        except Exception:  # a world that can't be built shows nothing
            return False
        if found is None or found.what.split("(")[0] != self._kind:
            return False
        if _errors(found) != _errors(self.difference):
            return False
        self.difference = found
        return True

    def shrink(self) -> Case:
        """Return the smallest case that was found; ``difference`` is what it shows."""
        if not self._same(self.case):
            return self.case
        case = self.case
        if case.statements:
            *before, last = case.statements
            kept = _fewer(before, lambda some: self._same(case.only(statements=[*some, last])))
            case = case.only(statements=[*kept, last])
        for _ in range(2):
            for number, step in enumerate(case.steps):
                if isinstance(step, Rows):
                    case = self._fewer_rows(case, number, step)
            steps = list(case.steps)
            for step in reversed(case.steps):
                attempt = [one for one in steps if one is not step]
                if self._same(case.only(steps=attempt)):
                    steps = attempt
            case = case.only(steps=steps)
        return self._fewer_words(case)

    def _fewer_rows(self, case: Case, number: int, step: Rows) -> Case:
        def with_rows(rows: Sequence[Any]) -> Case:
            steps: list[Step] = list(case.steps)
            steps[number] = replace(step, rows=tuple(rows))
            return case.only(steps=steps)

        def still(rows: list[Any]) -> bool:
            return bool(rows) and self._same(with_rows(rows))

        return with_rows(_fewer(step.rows, still))

    def _fewer_words(self, case: Case) -> Case:
        """Drop words of the last SELECT, as long as one file gives the same answer however it scans."""
        if not case.statements or case.statements[-1].change or case.statements[-1].parameters:
            return case
        *before, last = case.statements
        words = re.findall(r"\s*(?:'(?:[^']|'')*'|\w+\.\w+|\w+|.)", last.sql, re.S)
        if len(words) > 400:
            return case
        bare = replace(last, modes=(), scale=None, order="" if last.order != "total" else "total")

        def made(some: list[str]) -> Statement:
            return replace(bare if len(last.modes) == 0 or set(last.modes) == {"exact"} else last, sql="".join(some))

        def still(some: list[str]) -> bool:
            statement = made(some)
            if not some or not _fixed(case, statement):
                return False
            return self._same(case.only(statements=[*before, statement]))

        before_that = None
        while words != before_that:
            before_that, words = words, _fewer(words, still)
        return case.only(statements=[*before, made(words)])


def _fixed(case: Case, statement: Statement) -> bool:
    """Tell whether one file answers without an error, and alike when it scans the other way round or has no indexes."""
    answers = []
    for indexes, reverse in ((True, False), (True, True), (False, False)):
        conn = sqlite3.connect(":memory:", isolation_level=None)
        try:
            for step in case.steps:
                if isinstance(step, Create):
                    conn.execute(step.ddl)
                elif isinstance(step, Rows):
                    conn.execute(*step.insert)
                elif indexes or " INDEX " not in step.sql:
                    conn.execute(step.sql)
            conn.execute(f"PRAGMA reverse_unordered_selects = {reverse}")
            conn.execute("PRAGMA automatic_index = OFF")  # they may lose matches by RTRIM
            found = ask(conn, statement)
        except sqlite3.Error:
            return False
        finally:
            conn.close()
        if found.error is not None:
            return False
        answers.append(found.rows if statement.order == "total" else tuple(sorted(found.rows, key=repr)))
    return len(set(map(repr, answers))) == 1


def _errors(difference: Difference) -> tuple[str, str]:
    """The errors of both sides without names: another error is another difference."""

    def bare(text: str) -> str:
        found = re.match(r"(\w*(?:Error|Warning)): (\D{0,20})", text)
        return f"{found[1]} {found[2]}" if found else ""

    return bare(difference.plain), bare(difference.ours)
