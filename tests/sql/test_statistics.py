"""What the figures of ANALYZE say of conditions. Pure."""

from __future__ import annotations

import pytest

from shardlite.sql.statistics import SELECTIVITY, expected_rows, prefixes_of

PREFIXES = {("a",): 50.0, ("a", "b"): 2.0, ("c",): 900.0}
ROWS = 1000.0


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], ROWS),
        (['"t".a = ?1'], 50.0),
        (['5 = "t"."A"'], 50.0),
        (['"t".a == 5'], 50.0),
        (['"t".a IS NULL'], 50.0),
        (['"t".a IN (1, ?2, :x)'], 150.0),
        (['"t".c IN (1, 2)'], ROWS),
        (['"t".c = -1.5'], 900.0),
        (['"t".a = 1', '"t".b = 2'], 2.0),
        (['"t".b = 2', '"t".a IN (1, 2, 3)'], 6.0),
        (['"t".a = 1', '"t".d > 2'], 50.0 * SELECTIVITY),
        (['"t".a = 1', '"t".c = 2'], 50.0 * SELECTIVITY),
        (['"t".b = 2'], ROWS * SELECTIVITY),
        (['"t".a > 2'], ROWS * SELECTIVITY),
        (['"t".a = "t".b'], ROWS * SELECTIVITY),
        (['"t".a + 1 = 2'], ROWS * SELECTIVITY),
        (['"t".a NOT IN (1)'], ROWS * SELECTIVITY),
        (['"t".a IS NOT NULL'], ROWS * SELECTIVITY),
        (['"t".a IN ()'], ROWS * SELECTIVITY),
        (['"t".a = 1 OR "t".a = 2'], ROWS * SELECTIVITY),
    ],
)
def test_expected_rows(conditions: list[str], expected: float) -> None:
    assert expected_rows(ROWS, conditions, PREFIXES) == pytest.approx(expected)


def test_without_figures_a_share_is_taken() -> None:
    assert expected_rows(ROWS, ['"t".a = 1'], {}) == ROWS * SELECTIVITY


def test_prefixes_of_indexes() -> None:
    merged = [
        ("t", "one", "1000 50 2 1"),
        ("t", "two", "1000 40 unordered"),
        ("t", "three", "1000 10 5"),
        ("t", None, "1000"),
    ]
    columns = {"one": ["A", "b", "c"], "two": ["a"], "three": [None, "b"]}
    assert prefixes_of(merged, columns) == {("a",): 40, ("a", "b"): 2, ("a", "b", "c"): 1}
