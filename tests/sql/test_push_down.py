"""Random queries of the forms that are pushed down, against one plain file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from queries import LOOKALIKES, PARTS, Query, random_query
from sharded import SHARD_COUNTS, Cluster, Definition, Template, ask, plain

from shardlite.driver import sqlite3
from shardlite.sql.plan import PlanKind

QUICK = 200
LONG = int(os.environ.get("SHARDLITE_EXAMPLES", "20000"))
Sides = tuple[sqlite3.Connection, list[Cluster]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    yield from opened(PARTS)


@pytest.fixture(scope="module")
def lookalikes() -> Iterator[Sides]:
    yield from opened(LOOKALIKES)


def opened(definition: Definition) -> Iterator[Sides]:
    whole = plain(definition)
    with Template(definition) as template, ExitStack() as stack:
        yield whole, [stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS]
    whole.close()


def shown(cluster: Cluster, query: Query) -> str:
    return f"{query.sql}\n{query.parameters}\n{cluster.plan(query.sql, query.parameters)}"


def check(sides: Sides, query: Query) -> PlanKind | None:
    """Compare one query's answers; return its plan at four shards, None where one file refuses it."""
    whole, clusters = sides
    expected = ask(whole, query.sql, query.parameters)
    if expected.error:
        return None
    for cluster in clusters:
        found = cluster.run(query.sql, query.parameters)
        ordered = query.total_order
        assert found.shown(ordered=ordered) == expected.shown(ordered=ordered), shown(cluster, query)
    return clusters[2].plan(query.sql, query.parameters).kind


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
    expected = ask(whole, query.sql, query.parameters)
    if expected.error:
        return
    for cluster in clusters:
        found = cluster.run(query.sql, query.parameters)
        assert (blurred(found.rows), found.error) == (blurred(expected.rows), ""), shown(cluster, query)


def test_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK))


def test_random_queries_over_lookalikes(lookalikes: Sides) -> None:
    for seed in range(QUICK):
        check_blurred(lookalikes, random_query(seed))


@pytest.mark.slow
def test_many_random_queries(sides: Sides) -> None:
    check_many(sides, range(QUICK, QUICK + LONG))
