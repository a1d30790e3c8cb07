"""Views, CTEs, subqueries in FROM and joins of equal names: how they are written out, and answered, over shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from layered import LAYERED, random_query
from sharded import SHARD_COUNTS, Cluster, Template, ask, plain

from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.execute.program import program_of
from shardlite.sql.expand import expand
from shardlite.sql.plan import PlanKind
from shardlite.sql.tokens import tokenize

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


VIEWS = {
    "v": "CREATE VIEW v AS SELECT k, x FROM a WHERE x > 1 -- the last words",
    "w": 'CREATE VIEW "w" (one, "the other") AS SELECT k AS one, count(*) FROM v GROUP BY k',
    "all_of_b": "CREATE VIEW all_of_b(p, q) AS SELECT * FROM b /* whole */",
}
COLUMNS = {"SELECT * FROM b": ("k", "y"), "SELECT * FROM a": ("k", "x", "s")}


def written_out(sql: str) -> str | None:
    found = expand(tokenize(sql), VIEWS, lambda text: COLUMNS.get(text, ()))
    return None if found is None else found.sql


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM v", 'SELECT * FROM (SELECT k, x FROM a WHERE x > 1) AS "v"'),
        ("SELECT * FROM main.V AS t, b", "SELECT * FROM (SELECT k, x FROM a WHERE x > 1) AS t, b"),
        (
            "SELECT one FROM w",
            'SELECT one FROM (SELECT k AS "one", count(*) AS "the other" FROM (SELECT k, x FROM a WHERE x > 1) AS "v" '
            'GROUP BY k) AS "w"',
        ),
        ("SELECT p FROM all_of_b b", 'SELECT p FROM (SELECT "k" AS "p", "y" AS "q" FROM b) b'),
        ("WITH c AS (SELECT 1 AS n) SELECT n FROM c", 'SELECT n FROM (SELECT 1 AS n) AS "c"'),
        ("WITH c AS (SELECT k FROM a) SELECT 1", "SELECT 1"),
        ("WITH c(n) AS (SELECT k FROM a) SELECT n FROM C t", 'SELECT n FROM (SELECT k AS "n" FROM a) t'),
        # A parameter keeps its number where it comes to stand elsewhere, or twice.
        (
            "WITH c AS (SELECT k FROM a WHERE x = ?) SELECT ? FROM c, c AS d",
            'SELECT ?2 FROM (SELECT k FROM a WHERE x = ?1) AS "c", (SELECT k FROM a WHERE x = ?1) AS d',
        ),
        # A CTE hides a view and a table; within the view of the same name it isn't known.
        ("WITH v AS (SELECT k FROM b) SELECT * FROM v", 'SELECT * FROM (SELECT k FROM b) AS "v"'),
        (
            "WITH a AS (SELECT 1 AS k, 2 AS x) SELECT * FROM v, a",
            'SELECT * FROM (SELECT k, x FROM a WHERE x > 1) AS "v", (SELECT 1 AS k, 2 AS x) AS "a"',
        ),
        (
            "WITH c AS (SELECT k FROM d), d AS (SELECT k FROM a) SELECT * FROM c",
            'SELECT * FROM (SELECT k FROM (SELECT k FROM a) AS "d") AS "c"',
        ),
        (
            "WITH c AS (SELECT 1) SELECT * FROM (WITH c AS (SELECT 2) SELECT * FROM c), c",
            'SELECT * FROM (SELECT * FROM (SELECT 2) AS "c"), (SELECT 1) AS "c"',
        ),
        (
            "SELECT * FROM a WHERE k IN (WITH c AS (SELECT k FROM v) SELECT k FROM c)",
            'SELECT * FROM a WHERE k IN (SELECT k FROM (SELECT k FROM (SELECT k, x FROM a WHERE x > 1) AS "v") AS "c")',
        ),
        # What stays as it is.
        ("SELECT * FROM a", None),
        ("SELECT v.k FROM a AS v", None),
        ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c", None),
        ("WITH c AS MATERIALIZED (SELECT 1) SELECT * FROM c", None),
        ("WITH c(p, q) AS (VALUES (1, 2)) SELECT * FROM c", None),
        ("WITH c AS (SELECT k FROM a LIMIT 1) SELECT * FROM c, c d", None),
        ("WITH c AS (SELECT sum(x) FROM a) SELECT * FROM c, c d", None),
        ("WITH c AS (SELECT DISTINCT x FROM a) SELECT * FROM c, c d", None),
        ("WITH c AS (SELECT k FROM a UNION SELECT k FROM b) SELECT * FROM c, c d", None),
        ("WITH c(p, q) AS (SELECT * FROM a) SELECT * FROM c", None),
        ("SELECT * FROM v(1)", None),
    ],
)
def test_what_is_written_out(sql: str, expected: str | None) -> None:
    assert written_out(sql) == expected


NASTY = (
    "WITH a AS (SELECT k, 1 AS x FROM b) SELECT count(*), sum(x) FROM a",
    "WITH a AS (SELECT k, 1 AS x FROM b) SELECT count(*), sum(a.x) FROM a JOIN some USING (k)",
    "WITH some AS (SELECT k FROM a) SELECT count(*) FROM some NATURAL JOIN deep",
    "WITH b AS (SELECT k FROM a) SELECT count(*) FROM totals JOIN b ON b.k = totals.key",
    "SELECT count(*) FROM some AS totals JOIN totals AS some ON totals.k = some.key",
    "SELECT b.x, a.x FROM some AS b JOIN b AS a ON a.k = b.k ORDER BY 1, 2",
    "SELECT (WITH a AS (SELECT 7 AS k) SELECT max(k) FROM a), count(*) FROM a",
    "WITH x AS (SELECT k FROM a) "
    "SELECT count(*) FROM (WITH x AS (SELECT k FROM b) SELECT k FROM x) AS y, x WHERE x.k = y.k",
    'WITH "sElect" AS (SELECT k AS "from" FROM a) SELECT count("from") FROM [select]',
    'SELECT \'some\', "some".k FROM "some" ORDER BY 2',
    "SELECT max(some.k) FROM main.some JOIN main.a ON a.k = some.k",
    "WITH x AS (SELECT k, random() AS r FROM a) SELECT count(*) FROM x JOIN x AS y ON x.k = y.k AND x.r = y.r",
    "WITH x(k, x) AS (SELECT x, k FROM a) SELECT x, count(k) FROM x GROUP BY x ORDER BY 1",
    "SELECT k, (SELECT n FROM deep WHERE deep.k = a.k) AS n FROM a ORDER BY 1, 2",
    "SELECT count(*) FROM a WHERE k IN keys",
    "SELECT count(*) FROM a WHERE (k, x) IN some",
    "SELECT count(*) FROM (a JOIN some USING (k))",
    "SELECT * FROM some UNION ALL SELECT * FROM both WHERE k = 5 ORDER BY 1, 2",
    "SELECT ranked.n, count(*) FROM ranked JOIN a USING (k) WHERE k IN (1, 2) GROUP BY 1 ORDER BY 1",
    "SELECT k FROM casted WHERE k = 5 ORDER BY 1",
    "SELECT count(*) FROM casted JOIN a ON a.k = casted.k WHERE a.k = '5'",
    "SELECT a.k, b.k FROM a NATURAL FULL JOIN (SELECT k FROM b WHERE y > 1) AS b ORDER BY 1, 2",
    "SELECT k, count(*) FROM (SELECT k FROM b WHERE y > 1) AS b NATURAL RIGHT JOIN a GROUP BY k ORDER BY 1",
    "SELECT k, x, y FROM a NATURAL LEFT JOIN b ORDER BY 1, 2, 3",
    "SELECT * FROM a NATURAL JOIN b NATURAL JOIN some ORDER BY 1, 2, 3, 4",
    "SELECT count(*), count(s) FROM a NATURAL LEFT JOIN r NATURAL LEFT JOIN b",
    "SELECT x FROM a LEFT JOIN b USING (k, x) LEFT JOIN some USING (k, x) WHERE k = 8 ORDER BY x",
    "SELECT id, k, n FROM ids NATURAL JOIN deep ORDER BY 1, 2, 3",
    "SELECT k, y FROM sorted",
    "SELECT k, (SELECT max(x) FROM a WHERE a.k = sorted.k) FROM sorted",
    "SELECT y, k FROM sorted ORDER BY k, y",
    "SELECT y, count(*) FROM sorted GROUP BY y ORDER BY y",
    "SELECT group_concat(y) FROM sorted",
    "SELECT count(*), sum(y) FROM sorted JOIN a USING (k)",
    "EXPLAIN QUERY PLAN SELECT k FROM some WHERE k = 3",
)
"""One name for several things, or several names for one."""


@pytest.mark.parametrize("sql", NASTY)
def test_nasty_names(sides: Sides, sql: str) -> None:
    if ("FULL JOIN" in sql or "RIGHT JOIN" in sql) and SQLITE_VERSION < (3, 39):
        pytest.skip("this SQLite doesn't know the statement")
    whole, clusters = sides
    expected = ask(whole, sql)
    assert not expected.error
    for cluster in clusters:
        found = cluster.run(sql)
        ordered = "ORDER BY" in sql or "FROM sorted" in sql
        assert found.columns == expected.columns
        if "EXPLAIN" not in sql:
            assert found.shown(ordered=ordered) == expected.shown(ordered=ordered), str(cluster.plan(sql))


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT * FROM some WHERE k = ?", (5,)),
        ("SELECT t.total FROM totals t WHERE t.key = ?", (8,)),
        ("SELECT * FROM deep NATURAL JOIN some WHERE k = :k", {"k": 13}),
        ("WITH x AS (SELECT * FROM both WHERE x > ?) SELECT count(*) FROM x WHERE k = ?", (1, 8)),
        ("SELECT * FROM top WHERE k = 5 AND EXISTS (SELECT 1 FROM a WHERE a.k = 5)", ()),
    ],
)
def test_a_view_pinned_to_a_key_runs_on_its_shard(sides: Sides, sql: str, parameters: Any) -> None:
    whole, clusters = sides
    expected = ask(whole, sql, parameters)
    for cluster in clusters:
        plan = cluster.plan(sql, parameters)
        if "top" not in sql:  # its LIMIT is over the rows of all shards
            assert (plan.kind, plan.sql, len(plan.shards)) == (PlanKind.ONE_SHARD, sql, 1)
        else:
            assert plan.kind is PlanKind.GATHER
        assert cluster.run(sql, parameters).shown(ordered=False) == expected.shown(ordered=False)


def test_a_program_is_told_from_another() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE a (k, x); CREATE TABLE b (k, x); CREATE VIEW v AS SELECT k FROM a WHERE x > 1"
    )
    connection.text_factory = bytes

    def program(sql: str) -> str:
        return program_of(connection.execute(f"EXPLAIN {sql}", (None,) * tokenize(sql).parameter_count).fetchall())

    same = program("SELECT * FROM v JOIN b ON b.k = v.k")
    assert program("SELECT * FROM (SELECT k FROM a WHERE x > 1) AS w JOIN b ON b.k = w.k") == same
    assert program("SELECT * FROM (SELECT k FROM a WHERE x > 2) AS v JOIN b ON b.k = v.k") != same
    assert program("SELECT * FROM (SELECT k FROM b WHERE x > 1) AS v JOIN b ON b.k = v.k") != same
    assert program("SELECT * FROM (SELECT k FROM b WHERE x > 1) AS v JOIN a ON a.k = v.k") != same
    assert program("SELECT a.x FROM a JOIN b ON a.k = b.k") != program("SELECT b.x FROM a JOIN b ON a.k = b.k")
    assert program("SELECT ? + k FROM a") == program("SELECT ?1 + k FROM a") != program("SELECT ?2 + k FROM a")
    connection.close()


def test_a_text_may_hold_the_names_that_stand_for_subqueries(sides: Sides) -> None:
    sql = "SELECT '_shardlite_from_0_', x FROM (SELECT x FROM a) AS t ORDER BY x"
    whole, clusters = sides
    for cluster in clusters:
        assert cluster.run(sql).shown(ordered=True) == ask(whole, sql).shown(ordered=True)
