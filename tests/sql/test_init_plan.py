"""Subqueries that are evaluated first, against one plain file: what comparisons mean, what fails, what is told."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sharded import SHARD_COUNTS, Cluster, Definition, Template, ask, plain

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError, StatementTimeoutError
from shardlite.execute.planners import automatic_indexes_lose
from shardlite.sql.plan import Plan

ROWS = Definition(
    (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, x REAL, s TEXT, n TEXT COLLATE NOCASE, v, d NUMERIC, b BLOB)",
        "CREATE TABLE u (k INTEGER, i INT, s TEXT, n TEXT COLLATE NOCASE, r TEXT COLLATE RTRIM, v, d NUMERIC, x REAL)",
        "CREATE TABLE docs (k INTEGER PRIMARY KEY, j TEXT)",
        "CREATE TABLE big (k INTEGER PRIMARY KEY, i INT)",
        "CREATE TABLE none (k INTEGER PRIMARY KEY, i INT)",
        "CREATE TABLE ref (code INT, word TEXT)",
        "CREATE TABLE alone (id INTEGER PRIMARY KEY, i INT, s TEXT)",
        "CREATE TABLE sums (k INTEGER PRIMARY KEY, g INT, x REAL)",
        "CREATE VIEW busy AS SELECT i, count(*) AS times FROM u GROUP BY i",
        "CREATE VIEW above AS SELECT id, a FROM t WHERE x > (SELECT avg(x) FROM t)",
    ),
    keys={name: ("id" if name == "t" else "k",) for name in ("t", "u", "docs", "big", "none", "sums")},
    references=frozenset({"ref"}),
    rows=(
        (
            "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(i, i % 7, i / 8, ("5", "a", "A", "b ", None, "07")[i % 6], ("a", "B", "b", None)[i % 4]),
                    *((5, "5", 5.0, b"5", None, "a", "A")[i % 7], (1, "1.0", "x", 2.5)[i % 4], (b"a", "a", 1)[i % 3]),
                )
                for i in range(1, 41)
            ],
        ),
        (
            "INSERT INTO u VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(i * 3 % 17, (i * 5 % 9) or None, ("5", "a", "B", None, "05")[i % 5], ("A", "b", "C")[i % 3]),
                    *(("a", "a ", "b  ")[i % 3], ("5", 5, b"a", "a", 2.5)[i % 5], (5, "7", "z")[i % 3], i * 0.1),
                )
                for i in range(1, 31)
            ],
        ),
        ("INSERT INTO docs VALUES (?, ?)", [(1, "[1, 2]"), (2, '{"a": 5}'), (3, "no JSON"), (4, "[5]")]),
        ("INSERT INTO big VALUES (?, ?)", [(i, 2**62) for i in range(1, 9)]),
        ("INSERT INTO ref VALUES (?, ?)", [(1, "a"), (2, "B"), (5, "5")]),
        ("INSERT INTO alone VALUES (?, ?, ?)", [(1, 3, "a"), (2, 5, "b ")]),
        ("INSERT INTO sums VALUES (?, ?, ?)", [(i, i % 5, 0.1 * 1.7**i * (-1) ** i) for i in range(1, 61)]),
    ),
)
FIRST: list[tuple[str, Any]] = [
    # what is asked, and where it stands
    ("SELECT id FROM t WHERE x > (SELECT avg(x) FROM t) ORDER BY id", ()),
    ("SELECT id FROM t WHERE a IN (SELECT i FROM u WHERE s = 'a') ORDER BY id", ()),
    ("SELECT id FROM t WHERE a NOT IN (SELECT i FROM u WHERE i > 3) ORDER BY id", ()),
    ("SELECT id FROM t WHERE a NOT IN (SELECT i FROM u) ORDER BY id", ()),
    ("SELECT count(*) FROM t WHERE a NOT IN (SELECT i FROM none)", ()),
    ("SELECT count(*) FROM t WHERE EXISTS (SELECT * FROM u WHERE i = 4) AND a > 1", ()),
    ("SELECT count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE i > 100)", ()),
    ("SELECT count(*) FROM t WHERE EXISTS (SELECT 1 FROM u LIMIT 0)", ()),
    ("SELECT count(*) FROM t WHERE EXISTS (SELECT count(*) FROM none)", ()),
    ("SELECT count(*), sum(a) FROM t WHERE (a, s) IN (SELECT i, s FROM u)", ()),
    ("SELECT count(*) FROM t WHERE (a, s) = (SELECT i, s FROM u WHERE i = 5 AND s = 'a')", ()),
    ("SELECT count(*) FROM t WHERE (a, n) <= (SELECT max(i), 'b' FROM u)", ()),
    ("SELECT a, count(*) FROM t GROUP BY a HAVING count(*) > (SELECT count(*) / 6 FROM u) ORDER BY a", ()),
    ("SELECT a, count(*) FROM t GROUP BY a HAVING max(id) IN (SELECT i * 5 FROM u) ORDER BY a", ()),
    ("SELECT a, count(*) FROM t GROUP BY a HAVING EXISTS (SELECT 1 FROM u WHERE i = 2) ORDER BY a", ()),
    ("SELECT a, (SELECT max(i) FROM u), count(*) FROM t GROUP BY a ORDER BY a", ()),
    ("SELECT id, (SELECT max(i) FROM u) FROM t ORDER BY id", ()),
    ("SELECT id, (SELECT  max( i )  /* most */ FROM u) + 1, ? || 'x' FROM t ORDER BY id", ("y",)),
    ("SELECT id FROM t ORDER BY a > (SELECT avg(i) FROM u), id", ()),
    ("SELECT id FROM t ORDER BY a IN (SELECT i FROM u WHERE i < 4) DESC, id LIMIT 7", ()),
    ("SELECT CASE WHEN EXISTS (SELECT 1 FROM u WHERE i = 3) THEN a ELSE -a END c, count(*) FROM t GROUP BY c", ()),
    ("SELECT sum(a * (SELECT max(i) FROM u)), max(x + (SELECT min(i) FROM u)) FROM t", ()),
    ("SELECT t.id, f.word FROM t JOIN ref f ON f.code = t.a AND t.id > (SELECT avg(k) FROM u) ORDER BY 1", ()),
    ("SELECT t.id, f.word FROM t LEFT JOIN ref f ON f.code IN (SELECT i FROM u WHERE s = 'a') ORDER BY 1, 2", ()),
    ("SELECT count(*) FROM (SELECT id FROM t WHERE a < (SELECT avg(i) FROM u)) AS few", ()),
    ("SELECT id FROM t WHERE a = 1 AND a < (SELECT max(i) FROM u) UNION SELECT k FROM docs ORDER BY 1", ()),
    ("SELECT a FROM t UNION ALL SELECT k FROM docs WHERE k > (SELECT avg(k) FROM docs) ORDER BY 1", ()),
    ("SELECT id FROM t WHERE id = 12 AND a < (SELECT max(i) FROM u)", ()),
    ("SELECT id, s FROM t WHERE id = ? AND a IN (SELECT i FROM u WHERE i < ?)", (12, 8)),
    ("SELECT DISTINCT a FROM t WHERE id > (SELECT count(*) FROM u) ORDER BY a", ()),
    ("SELECT count(*) FROM t WHERE a > (SELECT i FROM alone ORDER BY i LIMIT 1)", ()),
    ("SELECT s, i FROM alone WHERE i IN (SELECT a FROM t WHERE id > 5) ORDER BY i", ()),
    ("SELECT code FROM ref WHERE code < (SELECT avg(a) FROM t) ORDER BY code", ()),
    ("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u WHERE s = 'a')", ()),
    ("VALUES (1, (SELECT max(id) FROM t)), (2, (SELECT count(*) FROM u))", ()),
    ("SELECT count(*) FROM t WHERE a < (SELECT max(times) FROM busy)", ()),
    # the first row of several, and none
    ("SELECT id FROM t WHERE a = (SELECT i FROM u ORDER BY k, i DESC) ORDER BY id", ()),
    ("SELECT count(*), (SELECT s FROM t) FROM u", ()),
    ("SELECT count(*), (SELECT id FROM t WHERE a = 3) FROM u", ()),
    ("SELECT count(*), (SELECT i FROM u ORDER BY x LIMIT 1 OFFSET 4) FROM t", ()),
    ("SELECT count(*), (SELECT i FROM none) IS NULL FROM t", ()),
    ("SELECT count(*) FROM t WHERE a > (SELECT max(i) FROM none)", ()),
    ("SELECT count(*) FROM t WHERE (a, s) IS NOT (SELECT i, 'x' FROM none)", ()),
    ("SELECT count(*), (SELECT a FROM t WHERE id = 3 UNION SELECT i FROM u ORDER BY 1 DESC) FROM t", ()),
    # affinity and collation
    *(
        (f"SELECT id FROM t WHERE {left} {how} (SELECT {right} FROM u{limit}) ORDER BY id", ())
        for left in ("s", "n", "v", "d", "+s", "a", "b", "CAST(a AS TEXT)", "lower(n)")
        for right in ("i", "s", "n", "r", "v", "d", "+n", "i + 0", "s || ''", "CAST(i AS TEXT)", "upper(n)")
        for how, limit in (("IN", ""), ("=", " ORDER BY x LIMIT 1"))
    ),
    ("SELECT id FROM t WHERE s IN (SELECT n COLLATE BINARY FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE s IN (SELECT s COLLATE NOCASE FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE upper(s) IN (SELECT +n FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE lower(s) COLLATE NOCASE IN (SELECT s FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE (lower(s), a) IN (SELECT n, i FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE (lower(s), 1) = (SELECT n, 1 FROM u WHERE n = 'a') ORDER BY id", ()),
    ("SELECT id FROM t WHERE s IN (SELECT max(n COLLATE NOCASE) FROM u GROUP BY i) ORDER BY id", ()),
    ("SELECT id FROM t WHERE s = (SELECT CAST(5 AS INTEGER) FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE s = (SELECT 5 FROM u) ORDER BY id", ()),
    ("SELECT id FROM t WHERE a BETWEEN (SELECT s FROM u WHERE s = '05') AND (SELECT max(v) FROM u) ORDER BY id", ()),
    ("SELECT typeof((SELECT d FROM u WHERE d = 5)), typeof((SELECT v FROM u ORDER BY x LIMIT 1)) FROM t", ()),
    # parameters
    ("SELECT id FROM t WHERE a > ? AND a < (SELECT max(i) FROM u WHERE k < ?) AND id <> ? ORDER BY id", (1, 12, 9)),
    ("SELECT id FROM t WHERE a < (SELECT max(i) FROM u WHERE k < ?) AND s > (SELECT ?) ORDER BY id", (12, "0")),
    ("SELECT id FROM t WHERE id <> ?2 AND a < (SELECT max(i) FROM u WHERE k < ?1 OR k = ?2) ORDER BY id", (5, 9)),
    ("SELECT id FROM t WHERE a > :low AND a < (SELECT max(i) - :by FROM u) ORDER BY id", {"low": 1, "by": 2}),
    ("SELECT id FROM t WHERE a < (SELECT max(i) - @by FROM u) AND a > @low ORDER BY id", (2, 1)),
    ("SELECT id FROM t WHERE a > @low AND a < (SELECT max(i) - @by FROM u) AND b <> @low ORDER BY id", (1, 2)),
    ("SELECT id + $x FROM t WHERE a < (SELECT max(i) - :by FROM u) AND a > @low ORDER BY id + $x", (3, 2, 1)),
    ("SELECT id FROM t WHERE a IN (SELECT i FROM u ORDER BY i LIMIT ?) ORDER BY id LIMIT ? OFFSET ?", (9, 4, 1)),
    # nested
    ("SELECT id FROM t WHERE a > (SELECT avg(i) FROM u WHERE i < (SELECT max(a) FROM t)) ORDER BY id", ()),
    ("SELECT id FROM t WHERE a IN (SELECT i FROM u WHERE s IN (SELECT s FROM alone)) ORDER BY id", ()),
    ("SELECT id FROM t WHERE a > (SELECT avg(i) FROM u) AND a IN (SELECT i FROM u) ORDER BY id", ()),
    (
        "SELECT count(*) FROM u WHERE EXISTS (SELECT 1 FROM u w WHERE w.k = u.k AND w.i > u.i "
        "AND w.i > (SELECT avg(a) FROM t))",
        (),
    ),
    ('SELECT id FROM t WHERE a IN (SELECT "i" FROM u WHERE "s" > \'a\') ORDER BY id', ()),
    ("SELECT id FROM t WHERE EXISTS (WITH w AS (SELECT i FROM u) SELECT 1 FROM w) AND id < 9 ORDER BY id", ()),
    ("SELECT id FROM t ORDER BY id LIMIT (SELECT count(*) / 4 FROM u)", ()),
    # twice
    ("SELECT id, (SELECT max(i) FROM u) FROM t WHERE a > (SELECT max(i) FROM u) - 4 ORDER BY id", ()),
    # views, CTEs and subqueries in FROM
    ("SELECT count(*), sum(a) FROM above", ()),
    ("SELECT w.a, count(*) FROM above w WHERE w.a IN (SELECT i FROM u) GROUP BY w.a ORDER BY 1", ()),
    ("WITH w AS (SELECT id, a FROM t WHERE a > ?) SELECT count(*) FROM w WHERE a < (SELECT max(i) - ? FROM u)", (1, 2)),
    (
        "WITH w AS (SELECT id, a FROM t WHERE a > :low) SELECT max(a) FROM w WHERE a < (SELECT max(i) - :by FROM u)",
        {"by": 2, "low": 1},
    ),
    ("SELECT max(n) FROM (SELECT a, count(*) AS n FROM t GROUP BY a) AS g WHERE n > (SELECT max(i) - 5 FROM u)", ()),
    ("SELECT count(*), max(a) FROM (SELECT a FROM t) AS f WHERE a IN (SELECT i FROM u WHERE s = 'a')", ()),
    ("SELECT a, (SELECT max(i) FROM u) FROM (SELECT id, a FROM t) AS f WHERE id > (SELECT min(i) FROM u)", ()),
    # sorted streams
    ("SELECT id, x FROM t WHERE x > (SELECT avg(x) FROM t) ORDER BY x DESC LIMIT 5", ()),
    ("SELECT count(*) FROM t WHERE a IN (SELECT i FROM u ORDER BY x DESC LIMIT ?)", (7,)),
    # bits: what REAL sums are compared with
    ("SELECT k FROM sums WHERE x > (SELECT avg(x) FROM sums) ORDER BY k", ()),
    ("SELECT g FROM sums GROUP BY g HAVING sum(x) > (SELECT sum(x) * 0.25 FROM sums) ORDER BY g", ()),
    ("SELECT g FROM sums GROUP BY g HAVING sum(x) > (SELECT avg(x) FROM sums) ORDER BY g", ()),
    ("SELECT g FROM sums GROUP BY g HAVING sum(x) < (SELECT sum(g) FROM sums) ORDER BY g", ()),
    ("SELECT k FROM sums WHERE x > (SELECT avg(x) FROM sums) OR -x > (SELECT avg(x) FROM sums) ORDER BY k", ()),
    ("SELECT g, count(*), sum(g) FROM sums WHERE x < (SELECT avg(x) FROM sums) GROUP BY g ORDER BY g", ()),
]
"""Answered with a subquery evaluated first."""
NOT_FIRST: list[tuple[str, Any]] = [
    # the row around, by a name that would be a string elsewhere
    ('SELECT id FROM t WHERE a = (SELECT max(i) FROM u WHERE i <= "a") ORDER BY id', ()),
    ('SELECT id FROM t WHERE x > (SELECT "a" FROM docs) ORDER BY id', ()),
    ('SELECT id FROM t WHERE s = (SELECT "b " FROM docs) ORDER BY id', ()),
    ("SELECT id FROM t o WHERE a > (SELECT avg(i) FROM u WHERE u.x < o.x) ORDER BY id", ()),
    ("SELECT a FROM t GROUP BY a HAVING (SELECT count(*) FROM u WHERE i < max(t.id)) > 20 ORDER BY a", ()),
    # a CTE by the name of a table
    ("WITH u AS (SELECT 99 AS i) SELECT count(*) FROM t WHERE a < (SELECT max(i) FROM u)", ()),
    ("WITH w(i) AS (SELECT max(i) FROM u) SELECT count(*) FROM t WHERE a < (SELECT i FROM w)", ()),
    # its first value would have to be the same bits
    (
        "SELECT g FROM sums GROUP BY g HAVING sum(x) = (SELECT max(y) FROM (SELECT sum(x) AS y FROM sums GROUP BY g))",
        (),
    ),
    (
        "SELECT g, y FROM (SELECT g, sum(x) AS y FROM sums GROUP BY g) WHERE y >= "
        "(SELECT max(y) FROM (SELECT sum(x) AS y FROM sums GROUP BY g))",
        (),
    ),
    ("SELECT g FROM sums GROUP BY g HAVING sum(x) / count(x) = (SELECT avg(x) FROM sums WHERE g = 1) ORDER BY g", ()),
    ("SELECT g FROM sums WHERE g = 1 GROUP BY g HAVING 2 * sum(x) >= (SELECT 2 * sum(x) FROM sums WHERE g = 1)", ()),
    ("SELECT avg(x) = (SELECT avg(x) FROM sums) FROM sums", ()),
    ("SELECT (SELECT total(x) FROM sums) UNION SELECT total(x) FROM sums", ()),
    ("SELECT count(*) FROM none WHERE (SELECT sum(x) FROM sums) <> (SELECT sum(x) FROM sums WHERE k < 99)", ()),
    ("SELECT sum(x) AS y FROM sums HAVING y = (SELECT sum(x) FROM sums)", ()),
    # JSON stays JSON
    ("SELECT json_array((SELECT json_group_array(k) FROM docs)), count(*) FROM t", ()),
    # which type its column has there can't be told
    ("SELECT count(*) FROM t WHERE a IN (SELECT i FROM busy WHERE times > 3)", ()),
    ("SELECT count(*) FROM t WHERE a IN (WITH w AS (SELECT i FROM u) SELECT i FROM w)", ()),
    ("SELECT count(*) FROM t WHERE s IN (SELECT i FROM u UNION SELECT s FROM u)", ()),
    ("SELECT count(*) FROM t WHERE s IN (SELECT likely(s) FROM u)", ()),
    # another value each time
    ("SELECT count(*) FROM t WHERE a > (SELECT i + random() * 0 FROM u WHERE i = 1) AND a IN (SELECT 1)", ()),
    ("SELECT count(*) > 0 FROM t WHERE (SELECT max(k) || date('now') FROM u) < CURRENT_TIMESTAMP || 'z'", ()),
]
"""Answered otherwise."""
NEVER_ASKED: list[tuple[str, Any]] = [
    ("SELECT i FROM none WHERE i > (SELECT sum(i) FROM big)", ()),
    ("SELECT count(*) FROM none WHERE i > (SELECT abs(min(-9223372036854775807 - 1)) FROM big)", ()),
    ("SELECT count(*) FROM t WHERE a > 99 AND a > (SELECT max(json_extract(j, '$.a')) FROM docs)", ()),
    ("SELECT count(*) FROM t WHERE a > 99 AND a IN (SELECT k FROM docs ORDER BY k LIMIT 'many')", ()),
    ("SELECT CASE WHEN a < 99 THEN a ELSE (SELECT sum(i) FROM big) END FROM t ORDER BY id", ()),
    ("SELECT coalesce(a, (SELECT sum(i) FROM big)) FROM t ORDER BY id", ()),
]
"""One file doesn't evaluate the subquery, which would fail."""
FAILS: list[tuple[str, Any]] = [
    ("SELECT count(*) FROM t WHERE id > (SELECT sum(i) FROM big)", ()),
    ("SELECT count(*) FROM t WHERE a < (SELECT max(json_extract(j, '$.a')) FROM docs)", ()),
    ("SELECT count(*) FROM t WHERE a IN (SELECT k FROM docs ORDER BY k LIMIT 'many')", ()),
]
QUICK = 150
LONG = int(os.environ.get("SHARDLITE_EXAMPLES", "20000"))
LEFT = (
    "a",
    "s",
    "n",
    "v",
    "d",
    "b",
    "x",
    "+s",
    "+n",
    "a + 1",
    "lower(n)",
    "CAST(a AS TEXT)",
    "upper(s) COLLATE NOCASE",
)
SHOWN = ("i", "s", "n", "r", "v", "d", "+n", "i - 1", "s || ''", "CAST(i AS TEXT)", "CAST(s AS INTEGER)", "NULL", "'a'")
SHOWN_MORE = ("n COLLATE BINARY", "s COLLATE NOCASE", "coalesce(i, s)", "CASE WHEN i > 3 THEN s ELSE i END", "-i", "k")
TESTS = ("", " WHERE i > 2", " WHERE k < ?", " WHERE s IS NOT NULL", " WHERE i > 50", " WHERE n = 'B'", " WHERE k = 6")
Sides = tuple[sqlite3.Connection, list[Cluster]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    whole = plain(ROWS)
    with Template(ROWS) as template, ExitStack() as stack:
        yield whole, [stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS]
    whole.close()


class Maker:
    """Makes one random statement; its parameters are small integers."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def make(self) -> str:
        r = self.r
        some = [self.predicate() for _ in range(r.choice((1, 1, 2)))]
        where = r.choice((" AND ", " OR ")).join(some) + r.choice(("", " AND id > ?", " AND a IS NOT NULL"))
        form = r.randrange(9)
        if form == 0:
            return f"SELECT a, count(*), sum(id) FROM t WHERE {where} GROUP BY a ORDER BY a"
        if form == 1:
            return f"SELECT a, count(*) FROM t WHERE id > ? GROUP BY a HAVING {self.number('max(id)')} ORDER BY a"
        if form == 2:
            return f"SELECT id, {self.scalar()}, {self.predicate()} FROM t ORDER BY id LIMIT ?"
        if form == 3:
            return f"SELECT DISTINCT a, {self.scalar()} FROM t WHERE {where} ORDER BY a"
        if form == 4:
            return f"SELECT count(*) FROM t JOIN ref ON code = a AND ({self.predicate()}) WHERE id > ?"
        if form == 5:
            return f"SELECT id FROM t WHERE {where} UNION SELECT k FROM docs WHERE k < {self.scalar()} ORDER BY 1"
        if form == 6:
            return f"SELECT id FROM t ORDER BY {self.predicate()}, id LIMIT 9"
        if form == 7:
            return f"SELECT count(*), max(c) FROM (SELECT a + ? AS c FROM t WHERE {where})"
        return f"SELECT id, typeof({self.scalar()}) FROM t WHERE {where} ORDER BY id DESC"

    def predicate(self) -> str:
        r = self.r
        left = r.choice(LEFT)
        form = r.randrange(8)
        if form < 3:
            return f"{left} {r.choice(('IN', 'IN', 'NOT IN'))} ({self.query(1)})"
        if form == 3:
            return f"({left}, {r.choice(LEFT)}) {r.choice(('IN', 'NOT IN'))} ({self.query(2)})"
        if form == 4:
            return f"{r.choice(('EXISTS', 'NOT EXISTS'))} ({self.query(r.choice((1, 2)))})"
        if form == 5:
            return f"({left}, a) {r.choice(('=', '<', '>=', 'IS'))} ({self.query(2, row=True)})"
        if form == 6:
            return f"{left} BETWEEN {self.scalar()} AND {self.scalar()}"
        return f"{left} {r.choice(('=', '<', '>=', '<>', 'IS', 'IS NOT'))} {self.scalar()}"

    def number(self, left: str) -> str:
        r = self.r
        if r.random() < 0.5:
            return f"{left} {r.choice(('<', '>='))} (SELECT {r.choice(('count(*)', 'sum(i)', 'max(k) * 2'))} FROM u)"
        return f"{left} {r.choice(('IN', 'NOT IN'))} (SELECT {r.choice(('i * 5', 'k + 20', 'max(k)'))} FROM u)"

    def scalar(self) -> str:
        r = self.r
        if r.random() < 0.4:
            return f"({self.query(1, row=True)})"
        what = r.choice(("max(i)", "min(k)", "count(DISTINCT n)", "sum(i)", "max(lower(n))", "min(x)", "count(*) - ?"))
        return f"(SELECT {what} FROM u{r.choice(TESTS)})"

    def query(self, width: int, *, row: bool = False) -> str:
        """Return a query; ``row``: its first row is one and the same."""
        r = self.r
        shown = [r.choice(r.choice((SHOWN, SHOWN, SHOWN_MORE))) for _ in range(width)]
        text = f"{', '.join(shown)} FROM u{r.choice(TESTS)}"
        if row:
            return f"SELECT {text} ORDER BY x{r.choice((' DESC', ''))} LIMIT {r.choice(('1', '2', '?', '1 OFFSET 3'))}"
        if r.random() < 0.1:
            return f"SELECT {text} ORDER BY x LIMIT ?"
        if r.random() < 0.1:
            more = ", ".join(shown) if r.random() < 0.7 else ", ".join(r.choice(SHOWN) for _ in shown)
            return f"SELECT {text} {r.choice(('UNION ALL', 'UNION', 'EXCEPT'))} SELECT {more} FROM u WHERE i < 4"
        if r.random() < 0.1:
            return f"SELECT {text} {'AND' if 'WHERE' in text else 'WHERE'} i < (SELECT max(a) FROM t)"
        return f"SELECT {r.choice(('', 'DISTINCT '))}{text}"


def check_random(sides: Sides, seeds: range) -> None:
    firsts = 0
    for seed in seeds:
        sql = Maker(seed).make()
        firsts += first_of(check(sides, sql, [random.Random(seed).randint(0, 9) for _ in range(sql.count("?"))])) > 0
    assert firsts > 0.7 * len(seeds)


def test_random_statements(sides: Sides) -> None:
    check_random(sides, range(QUICK))


@pytest.mark.slow
def test_many_random_statements(sides: Sides) -> None:
    check_random(sides, range(QUICK, QUICK + LONG // 20))


def first_of(plan: Plan) -> int:
    """Count the subqueries that are evaluated first."""
    return 0 if plan.program is None else len(plan.program.inits)


def check(sides: Sides, sql: str, parameters: Any) -> Plan:
    """Compare one query's answers; return its plan at four shards."""
    whole, clusters = sides
    expected = ask(whole, sql, parameters)
    for cluster in clusters:
        found = cluster.run(sql, parameters)
        ordered = "ORDER BY" in sql.rpartition(")")[2]
        plan = cluster.plan(sql, parameters)
        assert found.shown(ordered=ordered) == expected.shown(ordered=ordered), f"{sql}\n{parameters}\n{plan}"
    return clusters[2].plan(sql, parameters)


@pytest.mark.parametrize(("sql", "parameters"), FIRST, ids=[sql for sql, _ in FIRST])
def test_evaluated_first(sides: Sides, sql: str, parameters: Any) -> None:
    assert not ask(sides[0], sql, parameters).error
    found = first_of(check(sides, sql, parameters))
    # Under RTRIM all is gathered where SQLite's automatic indexes may lose matches.
    assert (found > 0) is not (" r FROM u" in sql and automatic_indexes_lose())


@pytest.mark.parametrize(("sql", "parameters"), NOT_FIRST, ids=[sql for sql, _ in NOT_FIRST])
def test_not_evaluated_first(sides: Sides, sql: str, parameters: Any) -> None:
    assert not ask(sides[0], sql, parameters).error
    assert first_of(check(sides, sql, parameters)) == 0


@pytest.mark.parametrize(("sql", "parameters"), NEVER_ASKED, ids=[sql for sql, _ in NEVER_ASKED])
def test_what_one_file_never_evaluates_does_not_fail(sides: Sides, sql: str, parameters: Any) -> None:
    assert not ask(sides[0], sql, parameters).error
    assert first_of(check(sides, sql, parameters)) > 0


@pytest.mark.parametrize(("sql", "parameters"), FAILS, ids=[sql for sql, _ in FAILS])
def test_what_one_file_evaluates_fails(sides: Sides, sql: str, parameters: Any) -> None:
    assert ask(sides[0], sql, parameters).error
    assert first_of(check(sides, sql, parameters)) > 0


def test_the_same_text_is_computed_once(sides: Sides) -> None:
    sql = "SELECT id, (SELECT max(i) FROM u) FROM t WHERE a > (SELECT max(i) FROM u) - 4 ORDER BY id"
    assert first_of(check(sides, sql, ())) == 1
    assert first_of(check(sides, sql.replace("max(i) FROM u) - 4", "max( i) FROM u) - 4"), ())) == 2


def test_a_subquery_in_one_evaluated_first(sides: Sides) -> None:
    sql = "SELECT id FROM t WHERE a > (SELECT avg(i) FROM u WHERE i < (SELECT max(a) FROM t)) ORDER BY id"
    plan = check(sides, sql, ())
    assert plan.program is not None
    assert first_of(plan.program.inits[0].plan) == 1
    text = str(plan)
    assert text.index("init _shardlite_init_0") < text.index("├─ move to")
    assert text.count("init _shardlite_init_0 (its first row)") == 2


def test_a_large_result_is_not_sent(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = "SELECT count(*) FROM t WHERE a IN (SELECT i FROM u WHERE i > 1)"
    monkeypatch.setattr("shardlite.sql.rules.init_plan.MOST_SHARED_ROWS", 3)
    assert first_of(check(sides, f"{sql} /* few rows are allowed */", ())) == 0
    monkeypatch.undo()
    assert first_of(check(sides, sql, ())) == 1


@pytest.mark.parametrize("parameters", [(), (1,), (1, 2, 3)])
def test_parameters_are_counted(sides: Sides, parameters: tuple[int, ...]) -> None:
    whole, clusters = sides
    sql = "SELECT id FROM t WHERE a > ? AND a < (SELECT max(i) FROM u WHERE k < ?)"
    with pytest.raises(sqlite3.ProgrammingError) as expected:
        whole.execute(sql, parameters)
    for cluster in clusters:
        with pytest.raises(ProgrammingError) as caught:
            cluster.manager.execute(sql, parameters)
        assert str(caught.value) == str(expected.value)


def test_the_deadline_holds_for_subqueries(sides: Sides) -> None:
    sql = "SELECT count(*) FROM t WHERE a < (SELECT count(*) FROM u a, u b, u c, u d, u e, u f)"
    for cluster in sides[1]:
        if cluster.manager.num_shards > 1:
            assert first_of(cluster.plan(sql)) == 1
        with pytest.raises(StatementTimeoutError):
            cluster.manager.execute(sql, timeout=0.2)
        assert cluster.run("SELECT count(*) FROM t").rows == [(40,)]


def test_nothing_stays_attached(sides: Sides) -> None:
    cluster = sides[1][2]
    assert cluster.run("SELECT id FROM t WHERE x > (SELECT avg(x) FROM t)").rows
    for shard in cluster.manager.shard_ids:
        with cluster.manager.pool(shard).connection() as connection:
            assert [row[1] for row in connection.execute("PRAGMA database_list")] == ["main"]


def test_explain_query_plan_tells_of_subqueries(sides: Sides) -> None:
    cluster = sides[1][2]
    told = cluster.run("EXPLAIN QUERY PLAN SELECT id FROM t WHERE x > (SELECT avg(x) FROM t WHERE id < ?)", (9,))
    assert told.error == ""
    headings = [row[3] for row in told.rows if row[1] == 0]
    assert headings[0] == "SHARD 0: _shardlite_init_0: _shardlite_part"
    assert headings[4] == "COORDINATOR: _shardlite_init_0"
    assert headings[5:] == [*(f"SHARD {shard}: _shardlite_part" for shard in range(4)), "COORDINATOR"]
    assert cluster.run("EXPLAIN SELECT id FROM t WHERE x > (SELECT avg(x) FROM t)").error == ""


def test_text_that_is_no_unicode_goes_as_it_is(sides: Sides) -> None:
    sql = "SELECT count(*) FROM t WHERE a >= (SELECT CAST(x'ff' AS TEXT) FROM u ORDER BY k LIMIT 1)"
    assert first_of(check(sides, sql, ())) == 1


def test_no_name_of_ours_is_a_users(sides: Sides) -> None:
    for cluster in sides[1]:
        found = cluster.run("SELECT id FROM t WHERE a = (SELECT c FROM _shardlite_shared._shardlite_init_0)")
        assert found.error.startswith("OperationalError: no such table: _shardlite_shared._shardlite_init_0")
