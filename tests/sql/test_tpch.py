"""TPC-H at scale factor 0.01: all 22 answers, the plans that were meant, and a bound on the rows that are moved.

``python tests/sql/test_tpch.py`` writes the plans and the rows moved anew into ``tpch_plans.json``: look at the
difference, it must be what you meant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).with_name("tpch_plans.json")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCALE = 0.01
SLACK = 1.1
"""The data is the same everywhere; another SQLite's optimizer may choose other rows among equals."""


def _tpch() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import tpch
    finally:
        sys.path.remove(str(BENCHMARKS))
    return tpch


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    pytest.importorskip("duckdb", reason="its tpch extension makes the data: pip install 'shardlite[bench]'")
    tpch = _tpch()
    with tpch.databases(tmp_path_factory.mktemp("tpch"), SCALE, True) as (source, opened):
        yield tpch, source, opened


@pytest.mark.parametrize("number", range(1, 23))
def test_query(sides: tuple[Any, Any, Any], number: int) -> None:
    tpch, source, opened = sides
    sql = source.queries()[number]
    figure = tpch.first_look(opened, f"Q{number}", sql, source.answers().get(number))
    assert figure.verdict == "right"
    golden = json.loads(CASES.read_text())[f"Q{number}"]
    assert figure.plan == golden["plan"]
    assert figure.rows_moved <= golden["moved"] * SLACK
    assert figure.rows_moved < _whole_tables(opened, sql)


def _whole_tables(opened: Any, sql: str) -> int:
    """Count the rows of the tables that aren't on every shard: what a gather of whole tables would move."""
    spread = [name for name in opened.manager.explain(sql).tables if name not in ("nation", "region")]
    return sum(opened.manager.count(name) for name in spread)


def main() -> None:
    import tempfile

    tpch = _tpch()
    found = {}
    with tempfile.TemporaryDirectory() as directory, tpch.databases(Path(directory), SCALE, True) as (source, opened):
        for number, sql in source.queries().items():
            figure = tpch.first_look(opened, f"Q{number}", sql, source.answers().get(number))
            share = figure.rows_moved / _whole_tables(opened, sql)
            print(f"Q{number}: {figure.verdict}, {figure.plan}, {figure.rows_moved} rows, {share:.1%} of the tables")
            found[f"Q{number}"] = {"plan": figure.plan, "moved": figure.rows_moved}
    CASES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
