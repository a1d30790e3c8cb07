"""N shards against one plain file, typed: schemas, rows and statements from seeds. The short form, and the long one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from diff_case import Case, Create, Rows, Statement, loads
from diff_compare import compare_rows
from diff_fuzz import Fuzz, Tally
from diff_shrink import Shrinker, refusals, replay
from differential import describe, report
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

SHARD_COUNTS = (1, 3, 4, 8)
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.json"))
SHORT_S = float(os.environ.get("SHARDLITE_DIFFERENTIAL_SECONDS", "8"))
SELECTS, CHANGES = 200_000, 50_000


def fail_on(tally: Tally) -> None:
    if tally.found:
        pytest.fail("\n".join(describe(found, 20) for found in tally.found[:3]) + "\n" + report(tally), pytrace=False)


def test_seeds() -> None:
    """Different shard counts in turn; as many seeds as fit into the time, the same ones first each time."""
    total = Tally()
    deadline = time.monotonic() + SHORT_S
    seed = 0
    while seed < 4 or time.monotonic() < deadline:
        total.add(Fuzz(seed, [SHARD_COUNTS[seed % 4]], selects=30, changes=12, variants=1).run())
        seed += 1
    fail_on(total)
    assert total.selects > 100
    assert total.changes > 30


# A seed can't be shrunk as a number: the case is, when it fails.
@settings(max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(seed=st.integers(1000, 2**32), count=st.sampled_from(SHARD_COUNTS))
def test_drawn_seeds(seed: int, count: int) -> None:
    fail_on(Fuzz(seed, [1, count] if count > 1 else [1], selects=15, changes=8).run())


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_seeds() -> None:
    """200,000 SELECTs and 50,000 changes, at each shard count in turn."""
    total = Tally()
    seed = 10_000
    while total.selects < SELECTS or total.changes < CHANGES:
        wanted = (120 if total.selects < SELECTS else 0, 40 if total.changes < CHANGES else 0)
        counts = [SHARD_COUNTS[seed % 4]]
        total.add(Fuzz(seed, counts, selects=wanted[0], changes=wanted[1], variants=2).run())
        fail_on(total)
        seed += 1
    print(report(total))


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path: Path, num_shards: int) -> None:
    """What once differed: answered now, and alike."""
    case = loads(path.read_text())
    difference = replay(case, num_shards)
    assert difference is None, str(difference)
    assert refusals(case, num_shards) == []


# -- the test itself: it must be able to fail ------------------------------------------------------------------------

TABLE = Create("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", {"shard_key": "id"})
CASE = Case((TABLE, Rows("t", ("id", "v"), tuple((n, f"v{n}") for n in range(1, 13)))))


def test_a_seed_makes_the_same_statements_again() -> None:
    first, second = (Fuzz(3, [1], selects=25, changes=10, variants=1).run() for _ in range(2))
    assert first.shapes == second.shapes
    assert first.examples == second.examples


def test_a_wrong_answer_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from diff_compare import Answer
    from diff_world import World

    real = World.answer

    def lossy(self: World, statement: Statement) -> object:
        found = real(self, statement)
        if isinstance(found, Answer) and not statement.change:
            return Answer(found.columns, tuple(row for row in found.rows if 7 not in row), found.changed)
        return found

    monkeypatch.setattr(World, "answer", lossy)
    statement = Statement("SELECT t.id, t.v FROM t WHERE t.id > 0 AND t.v IS NOT NULL")
    noise = Statement("UPDATE t SET v = 'x' WHERE id = 2", change=True)
    case = CASE.only(statements=[noise, statement])
    difference = replay(case, 3)
    assert difference is not None
    assert difference.what == "rows"
    small = Shrinker(case, difference, budget_s=30).shrink()
    assert [len(step.rows) for step in small.steps if isinstance(step, Rows)] == [1]
    assert [one.sql for one in small.statements] == ["SELECT t.id FROM t"]
    assert loads(small.dumps()) == small


@pytest.mark.parametrize(
    ("statement", "plain", "ours", "ordered", "same"),
    [
        (Statement(""), [(1,)], [(1.0,)], False, False),
        (Statement(""), [("1",)], [(b"1",)], False, False),
        (Statement(""), [(1,), (2,)], [(2,), (1,)], False, True),
        (Statement(""), [(1,), (2,)], [(2,), (1,)], True, False),
        (Statement(""), [(1,), (1,)], [(1,)], False, False),
        (Statement("", modes=("rep:NOCASE",)), [("a",)], [("A",)], False, True),
        (Statement("", modes=("rep:BINARY",)), [("a",)], [("A",)], False, False),
        (Statement("", modes=("rep:BINARY",)), [(1,)], [(1.0,)], False, True),
        (Statement("", modes=("rep:BINARY",)), [(1,)], [("1",)], False, False),
        (Statement("", modes=("concat:|",)), [("a|b",)], [("b|a",)], False, True),
        (Statement("", modes=("concat:|",)), [("a|b",)], [("b|b",)], False, False),
        (Statement("", modes=("approx",)), [(0.1 + 0.2,)], [(0.3,)], False, True),
        (Statement("", modes=("approx",)), [(0.3,)], [(0.3001,)], False, False),
        (Statement("", modes=("approx",)), [(3,)], [(3.0,)], False, False),
        (Statement("", order=(0,)), [(1, 2), (2, 3)], [(2, 3), (1, 2)], False, False),
        (Statement("", order=(0,)), [(1, 2), (1, 3)], [(1, 3), (1, 2)], False, True),
    ],
)
def test_comparison(statement: Statement, plain: list, ours: list, ordered: bool, same: bool) -> None:
    assert (compare_rows(statement, plain, ours, ordered=ordered) is None) is same


def test_sums_are_relative_to_the_absolute_values() -> None:
    statement = Statement("", modes=("approx",))
    assert compare_rows(statement, [(1.0,)], [(0.0,)], ordered=False, scale=[(2e16,)]) is None
    assert compare_rows(statement, [(1.0,)], [(0.0,)], ordered=False, scale=[(2.0,)]) is not None
