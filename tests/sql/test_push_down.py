"""Pushed-down queries: their plans as data, the rows they move, and random ones against one plain file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import SHARD_COUNTS, Cluster, Definition, Planning, plain
from queries import LOOKALIKES, PARTS, Query, random_query

from shardlite.driver import sqlite3
from shardlite.sql.plan import PlanKind

QUICK = 600
LONG = int(os.environ.get("SHARDLITE_EXAMPLES", "20000"))
Sides = tuple[sqlite3.Connection, list[Cluster]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    yield from opened(PARTS)


@pytest.fixture(scope="module")
def lookalikes() -> Iterator[Sides]:
    yield from opened(LOOKALIKES)


def opened(definition: Definition) -> Iterator[Sides]:
    planning = Planning(definition)
    made = [Cluster(planning, count) for count in SHARD_COUNTS]
    whole = plain(definition, rows=True)
    yield whole, made
    whole.close()
    for cluster in made:
        cluster.close()
    planning.close()


def shown(rows: list[tuple[Any, ...]], query: Query) -> list[str]:
    found = [repr(row) for row in rows]
    return found if query.total_order else sorted(found)


def check(sides: Sides, query: Query) -> PlanKind | None:
    """Compare one query's answers; return its plan at four shards, None where one file refuses it."""
    whole, clusters = sides
    try:
        cursor = whole.execute(query.sql, query.parameters)
    except sqlite3.OperationalError:
        return None
    names = [column[0] for column in cursor.description]
    expected = shown(cursor.fetchall(), query)
    kind = None
    for cluster in clusters:
        plan, rows, _ = cluster.run(query.sql, query.parameters)
        what = f"{query.sql}\n{query.parameters}\n{plan}"
        assert shown(rows, query) == expected, what
        if plan.program is not None:
            assert cluster.columns == names, what
        if len(cluster.shards) == 4:
            kind = plan.kind
    return kind


def check_many(sides: Sides, seeds: range) -> None:
    kinds = [check(sides, random_query(seed)) for seed in seeds]
    run = [kind for kind in kinds if kind is not None]
    assert len(run) > len(kinds) * 0.9
    assert sum(kind in (PlanKind.PUSH_DOWN, PlanKind.FAN_OUT) for kind in run) > len(run) * 0.6


def blurred(rows: list[tuple[Any, ...]]) -> list[str]:
    """Rows without what tells values apart that a collation takes for equal."""
    return sorted(repr([v.lower().rstrip() if isinstance(v, str) else v for v in row]) for row in rows)


def check_blurred(lookalikes: Sides, query: Query) -> None:
    if "LIMIT" in query.sql or "substr" in query.sql:
        return  # which of two equal values stands for both decides
    whole, clusters = lookalikes
    try:
        expected = blurred(whole.execute(query.sql, query.parameters).fetchall())
    except sqlite3.OperationalError:
        return
    for cluster in clusters:
        plan, rows, _ = cluster.run(query.sql, query.parameters)
        assert blurred(rows) == expected, f"{query.sql}\n{query.parameters}\n{plan}"


def test_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK))


def test_random_queries_over_lookalikes(lookalikes: Sides) -> None:
    for seed in range(QUICK):
        check_blurred(lookalikes, random_query(seed))


@pytest.mark.slow
def test_many_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK, QUICK + LONG))
