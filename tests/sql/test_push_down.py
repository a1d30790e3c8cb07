"""Pushed-down queries: their plans as data, the rows they move, and random ones against one plain file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import SHARD_COUNTS, Cluster, Definition, Planning, plain
from queries import LOOKALIKES, PARTS, Query, random_query
from shop import SHOP

from shardlite.driver import sqlite3
from shardlite.router.layout import Layout
from shardlite.sql.plan import PlanKind

PLANS = json.loads((Path(__file__).parent / "cases" / "push_down.json").read_text(encoding="utf-8"))
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


@pytest.fixture(scope="module")
def shop() -> Iterator[Planning]:
    planning = Planning(SHOP)
    yield planning
    planning.close()


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case["sql"][:70])
def test_plan(shop: Planning, case: dict[str, Any]) -> None:
    plan = shop.planner.plan(case["sql"], case.get("parameters", ()), Layout.create(num_shards=4))
    assert str(plan).splitlines() == case["plan"]


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
def test_plans_answer_as_one_file(shop: Planning, num_shards: int) -> None:
    whole, cluster = plain(SHOP, rows=True), Cluster(shop, num_shards)
    for case in PLANS:
        sql, parameters = case["sql"], case.get("parameters", ())
        if "random()" not in sql:
            _, rows, _ = cluster.run(sql, parameters)
            expected = whole.execute(sql, parameters).fetchall()
            assert sorted(map(repr, rows)) == sorted(map(repr, expected)), sql
    whole.close()
    cluster.close()


def test_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK))


def test_random_queries_over_lookalikes(lookalikes: Sides) -> None:
    for seed in range(QUICK):
        check_blurred(lookalikes, random_query(seed))


@pytest.mark.slow
def test_many_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK, QUICK + LONG))
