"""Ids: unique, above the explicit ones, cheap."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardlite.errors import OperationalError, ProgrammingError
from shardlite.router.catalog import Catalog
from shardlite.router.fence import Fence
from shardlite.router.keys import MAX_INTEGER
from shardlite.router.layout import Layout
from shardlite.router.sequences import MAX_BLOCK, Sequence, ids_of


class FakeFence:
    """The one word that a sequence looks at."""

    def __init__(self) -> None:
        self.words = [0] * 4

    def bump(self) -> None:
        self.words[Fence.SEQUENCE_EPOCH] += 1


class FakeCatalog:
    """A catalog in memory that counts its writes."""

    def __init__(self) -> None:
        self.fence: Any = FakeFence()
        self.unused = 1
        self.writes = 0

    def draw_block(self, sequence: str, size: int, at_least: int = 1) -> tuple[int, int]:
        self.writes += 1
        first = max(self.unused, at_least)
        self.unused = first + size
        return first, self.unused - 1

    def claim(self, sequence: str, number: int, size: int) -> tuple[int, int, int]:
        return (self.unused, *self.draw_block(sequence, size, number + 1))

    def give_back(self, sequence: str, first: int, last: int) -> bool:
        taken = self.unused == last + 1
        self.unused = first if taken else self.unused
        return taken

    def next_id(self, sequence: str) -> int:
        return self.unused


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.db", layout=Layout.create(4)) as made:
        yield made


def test_one_process_counts_from_one() -> None:
    catalog = FakeCatalog()
    sequence = Sequence(catalog, "t")
    assert [sequence.next() for _ in range(10_000)] == list(range(1, 10_001))
    assert catalog.writes < 20


def test_short_scripts_leave_no_gap(catalog: Catalog) -> None:
    for expected in (1, 2, 3):
        assert Sequence(catalog, "t").next() == expected
    sequence = Sequence(catalog, "t")
    assert [sequence.next() for _ in range(5)] == [4, 5, 6, 7, 8]
    sequence.release()
    assert catalog.next_id("t") == 9
    assert Sequence(catalog, "t").next() == 9


def test_a_rest_is_not_given_back_under_someone_elses_ids(catalog: Catalog) -> None:
    first, second = Sequence(catalog, "t"), Sequence(catalog, "t")
    for _ in range(2):
        first.next()
    first.next()
    assert second.next() == 4 + (catalog.next_id("t") - 5)
    first.release()
    assert Sequence(catalog, "t").next() > 4


def test_bulk_ids_are_ranges() -> None:
    catalog = FakeCatalog()
    sequence, other = Sequence(catalog, "t"), Sequence(catalog, "t")
    assert sequence.take(0) == []
    assert sequence.take(3) == [range(1, 4)]
    sequence.next()
    other.next()
    ranges = sequence.take(100_000)
    assert sum(map(len, ranges)) == len(set(ids_of(ranges))) == 100_000
    assert catalog.writes <= 5
    with pytest.raises(ProgrammingError, match="-1"):
        sequence.take(-1)


def test_generated_ids_come_after_explicit_ones() -> None:
    sequence = Sequence(FakeCatalog(), "t")
    sequence.note_explicit(100)
    assert sequence.next() == 101
    assert sequence.note_explicit(50)
    assert sequence.next() == 102
    assert not sequence.note_explicit(-5)
    assert not sequence.note_explicit(0)
    assert sequence.next() == 103


def test_an_explicit_id_inside_the_block_moves_its_start() -> None:
    catalog = FakeCatalog()
    sequence = Sequence(catalog, "t")
    sequence.take(300)
    sequence.next()
    writes, inside = catalog.writes, sequence._last
    assert not sequence.note_explicit(inside)
    assert catalog.writes == writes
    assert sequence.next() == inside + 1


def test_ascending_explicit_ids_cost_a_write_per_block() -> None:
    catalog = FakeCatalog()
    sequence = Sequence(catalog, "t")
    for number in range(1, 50_001):
        assert not sequence.note_explicit(number)
    assert catalog.writes <= 12 + 50_000 // MAX_BLOCK + 1
    assert sequence.next() == 50_001
    assert not sequence.is_new(50_001)
    assert sequence.is_new(10**6)


def test_an_explicit_id_among_others_ids_makes_them_stale() -> None:
    catalog = FakeCatalog()
    mine, theirs = Sequence(catalog, "t"), Sequence(catalog, "t")
    for _ in range(9):
        theirs.next()
    token, drawn = theirs.token, theirs.next()
    assert theirs.is_current(token)
    assert mine.note_explicit(drawn + 1)
    catalog.fence.bump()
    assert not theirs.is_current(token)
    assert theirs.next() > drawn + 1


def test_a_batch_of_explicit_ids_is_noted_by_its_bounds() -> None:
    catalog = FakeCatalog()
    sequence = Sequence(catalog, "t")
    assert not sequence.note_explicit_many(1, 500)
    assert sequence.next() == 501
    assert sequence.note_explicit_many(400, 700)
    assert sequence.next() == 701
    assert not sequence.note_explicit_many(-7, -3)
    assert sequence.next() == 702


def test_a_batch_that_spans_anothers_block_is_noticed() -> None:
    catalog = FakeCatalog()
    mine, theirs = Sequence(catalog, "t"), Sequence(catalog, "t")
    mine.take(40)
    for _ in range(3):
        mine.next()
    low = mine._next
    theirs.next()
    highest = catalog.unused - 1
    assert mine.note_explicit_many(low, highest)
    assert mine.next() > highest
    assert mine.note_explicit_many(low, 500)
    assert mine.next() > 500
    assert mine.note_explicit_many(1, mine._next)
    assert not mine.note_explicit_many(mine._next, mine._next + 100)


def test_the_greatest_id_ends_the_sequence(catalog: Catalog) -> None:
    sequence = Sequence(catalog, "t")
    assert not sequence.note_explicit(MAX_INTEGER - 2)
    assert sequence.next() == MAX_INTEGER - 1
    for last in (MAX_INTEGER - 1, MAX_INTEGER):
        sequence.note_explicit(last)
        with pytest.raises(OperationalError, match="database or disk is full: the ids of t are used up"):
            sequence.next()
    assert Sequence(catalog, "other").next() == 1


def test_bump_and_at_least(catalog: Catalog) -> None:
    assert catalog.bump("t", 10) == 10
    assert catalog.bump("t", 5) == 10
    assert catalog.draw_block("t", 2) == (10, 11)
    assert catalog.draw_block("t", 2, at_least=50) == (50, 51)
    assert catalog.claim("t", 40, 4) == (52, 52, 55)
    assert catalog.claim("t", 60, 4) == (56, 61, 64)


def test_a_dropped_table_begins_again(catalog: Catalog) -> None:
    sequence = Sequence(catalog, "t")
    sequence.take(10)
    sequence.invalidate()
    assert sequence.next() == 11


def test_threads_never_share_an_id(catalog: Catalog) -> None:
    sequence = Sequence(catalog, "t")
    drawn: list[list[int]] = [[] for _ in range(4)]

    def work(mine: list[int]) -> None:
        for _ in range(300):
            mine.append(sequence.next())
            mine.extend(ids_of(sequence.take(3)))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = sorted(number for mine in drawn for number in mine)
    assert everything == list(range(1, 4 * 300 * 4 + 1))


steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["next", "take", "explicit", "batch"]), st.integers(-2, 300)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_ids_are_unique_and_above_everything_given(steps: list[tuple[int, str, int]]) -> None:
    catalog = FakeCatalog()
    processes = [Sequence(catalog, "t") for _ in range(3)]
    used: set[int] = set()
    for who, what, number in steps:
        sequence, own = processes[who], processes[who]
        if what == "explicit":
            if number in used:
                continue
            if own.note_explicit(number):
                catalog.fence.bump()
            used.add(number)
            assert own.next() > number
            continue
        if what == "batch":
            batch = {number, number + 7, number + 40} - used
            if batch and own.note_explicit_many(min(batch), max(batch)):
                catalog.fence.bump()
            used |= batch
            continue
        count = max(number, 1) % 20 + 1
        fresh = [sequence.next()] if what == "next" else list(ids_of(sequence.take(count)))
        assert len(fresh) == len(set(fresh)) == (1 if what == "next" else count)
        assert used.isdisjoint(fresh)
        assert min(fresh) > 0
        used.update(fresh)


def _next_in_child(sequence: Sequence, queue: Any) -> None:
    queue.put([sequence.next() for _ in range(3)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_child_draws_blocks_of_its_own(catalog: Catalog) -> None:
    sequence = Sequence(catalog, "t")
    sequence.take(10)
    mine = [sequence.next() for _ in range(5)]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_next_in_child, args=(sequence, queue))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    theirs = queue.get()
    queue.close()
    mine += [sequence.next() for _ in range(200)]
    assert set(mine).isdisjoint(theirs)
