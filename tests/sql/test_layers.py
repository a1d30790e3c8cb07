"""Views, CTEs, subqueries in FROM and joins of equal names: how they are written out, and answered, over shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from layered import LAYERED, random_query
from sharded import SHARD_COUNTS, Cluster, Template, ask, plain

from shardlite.driver import sqlite3
from shardlite.sql.plan import PlanKind

QUICK = 300
LONG = int(os.environ.get("SHARDLITE_EXAMPLES", "20000"))
Sides = tuple[sqlite3.Connection, list[Cluster]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    whole = plain(LAYERED)
    with Template(LAYERED) as template, ExitStack() as stack:
        yield whole, [stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS]
    whole.close()


def check(sides: Sides, seed: int) -> PlanKind | None:
    """Compare one query's answers; return its plan at four shards, None where one file refuses it."""
    whole, clusters = sides
    query = random_query(seed)
    expected = ask(whole, query.sql, query.parameters)
    if expected.error:
        return None
    for cluster in clusters:
        found = cluster.run(query.sql, query.parameters)
        shown = f"seed {seed}: {query.sql}\n{query.parameters}\n{cluster.plan(query.sql, query.parameters)}"
        assert found.shown(ordered=query.ordered) == expected.shown(ordered=query.ordered), shown
    return clusters[2].plan(query.sql, query.parameters).kind


def check_many(sides: Sides, seeds: range) -> None:
    kinds = Counter(check(sides, seed) for seed in seeds)
    run = len(seeds) - kinds[None]
    assert run > len(seeds) * 0.7
    assert kinds[PlanKind.PUSH_DOWN] + kinds[PlanKind.FAN_OUT] + kinds[PlanKind.ONE_SHARD] > run * 0.3
    assert kinds[PlanKind.GATHER] > 0


def test_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK))


@pytest.mark.slow
def test_many_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK, QUICK + LONG))
