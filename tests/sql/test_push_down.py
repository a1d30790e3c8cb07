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

SELECTED = [
    "SELECT k FROM one WHERE k NOT IN (SELECT k FROM two WHERE c > 0) ORDER BY k",
    "SELECT count(*) FROM one WHERE k IN (SELECT k FROM two GROUP BY k, c HAVING count(*) > 0 AND c < 2)",
    "SELECT count(DISTINCT k) FROM two",
    "SELECT c, count(DISTINCT k), sum(k * c + id) FROM two GROUP BY c ORDER BY c",
    "SELECT c, count(DISTINCT k), count(DISTINCT id % 5) FROM two GROUP BY c ORDER BY c",
    "SELECT DISTINCT count(*) FROM two GROUP BY c ORDER BY 1",
    "SELECT one.c, total(two.c) FROM one LEFT JOIN two USING (k) GROUP BY one.c ORDER BY 1",
    "SELECT k, c FROM one EXCEPT SELECT k, c FROM two WHERE c = 1 ORDER BY k LIMIT 4 OFFSET 2",
    "SELECT k FROM one JOIN two USING (k) ORDER BY k, id LIMIT 5",
    "SELECT max(id) - 1, (SELECT 7) FROM two GROUP BY k ORDER BY 1",
    "SELECT c AS k, count(*) FROM two GROUP BY k ORDER BY 2, 1",
    "SELECT c AS s, count(*) FROM two GROUP BY s ORDER BY 2, 1",
    "SELECT -c AS c, count(*) AS n FROM two GROUP BY c HAVING n > 1 ORDER BY c",
    "SELECT c + 1 AS c, k FROM two ORDER BY c + 1, k, id LIMIT 7",
    "SELECT c + 1 AS x, k FROM two WHERE x > 2 ORDER BY x * -1, k, id LIMIT 7",
    'SELECT c, count("k"), "c" FROM two GROUP BY "c" ORDER BY "c" LIMIT 2',
    "SELECT a, b, sum(c) FROM three GROUP BY a, b ORDER BY 1, 2",
    "SELECT b, total(c), count(), count(ALL a) FROM three GROUP BY b ORDER BY b",
    "SELECT * FROM three ORDER BY b LIMIT 4",
    "SELECT c FROM three LIMIT 2",
    "SELECT count(DISTINCT a), count(DISTINCT b) FROM three",
    "SELECT sum(c) OVER (PARTITION BY b, a), c FROM three ORDER BY c",
    "SELECT sum(c) OVER (PARTITION BY a), c FROM three ORDER BY c",
    "SELECT * FROM three x WHERE EXISTS (SELECT 1 FROM three y WHERE y.a = x.a AND y.b = x.b AND y.c > 5)",
    "SELECT * FROM three x WHERE EXISTS (SELECT 1 FROM three y WHERE y.a = x.a AND y.c > 5)",
    "SELECT max(c), min(c), sum(c), count(*), avg(c), total(c) FROM three WHERE 0",
    "SELECT 1 FROM three GROUP BY b",
    "SELECT b FROM three GROUP BY b ORDER BY sum(c) DESC LIMIT 1",
    "SELECT x.b, count(*) FROM three x NATURAL JOIN three y GROUP BY 1 ORDER BY 1",
    "SELECT b, count(*) FROM three x JOIN three y USING (a, b) GROUP BY b ORDER BY 1",
    "SELECT strftime('%Y', '2020-01-0' || (1 + c % 3)) y, count(*) FROM three GROUP BY y ORDER BY y",
    'SELECT count(*), sum("select"), max("a b"), avg(k) FROM odd',
    "SELECT end, count(*) FROM odd GROUP BY end",
    'SELECT count(*) AS "" FROM docs',
    'SELECT count(*) AS "a ""b" FROM docs',
    "SELECT json(body), json_array(json(body), count(*)) FROM docs GROUP BY json(body) ORDER BY 1",
    "SELECT code FROM codes JOIN two USING (k) WHERE code = two.id AND two.id = 1 ORDER BY code DESC, codes.rowid",
    "SELECT [c], /* the groups */ count(*) -- all of them\n FROM two GROUP BY `c` ORDER BY 1",
]
"""Over tables whose keys are never NULL, and names that could be taken for others."""
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


@pytest.mark.parametrize("sql", SELECTED)
def test_selected(sides: Sides, sql: str) -> None:
    kind = check(sides, Query(sql, (), "ORDER BY" in sql))
    assert kind in (PlanKind.PUSH_DOWN, PlanKind.FAN_OUT, PlanKind.GATHER)


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
