"""Random transactions on random schemas: what was captured, replayed on the base, gives the same file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redo_world import Rounds, failures

from shardlite.transaction import capture
from shardlite.transaction.definition import TableDefinition, UniqueIndex


def assert_all_alike(first: int, last: int, rounds: int, least: int) -> None:
    committed, wrong, shown = failures(range(first, last), rounds)
    assert not wrong, f"{wrong} of {committed} transactions:\n" + "\n".join(shown[:3])[:6000]
    assert committed >= least


def test_images_fuzz() -> None:
    assert_all_alike(0, 40, 10, 300)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_images_fuzz_long() -> None:
    assert_all_alike(1_000, 1_600, 20, 8_000)


def test_victims_left_out_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(table: TableDefinition, notes: str, *, updates: bool) -> Iterator[str]:
        return iter(())

    monkeypatch.setattr(capture, "victims", none)
    assert failures(range(300), 10, enough=3)[1] == 3


def test_victims_by_the_columns_collations_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_columns(index: UniqueIndex, new: str) -> str:
        equal = [f"zz.{text} = NEW.{text}" for text, _ in index.terms if text.startswith('"')]
        return " AND ".join(equal) if len(equal) == len(index.terms) else "0"

    monkeypatch.setattr(capture, "victims_condition", by_columns)
    monkeypatch.setattr(capture, "indexed", lambda index: "")
    assert failures(range(300), 10, enough=3)[1] == 3


def test_what_a_failure_shows_names_the_seed_and_the_statements() -> None:
    with Rounds(3) as rounds:
        rounds.round()
        assert rounds.log
