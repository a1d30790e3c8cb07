"""ORDER BY over sorted shards that are merged as they are read, against one plain file, with types and order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharded import SHARD_COUNTS, Answer, Cluster, Definition, Template, ask, plain

from shardlite import ShardManager
from shardlite.config import ShardliteConfig
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.execute import streams
from shardlite.execute.database import Database
from shardlite.sql.plan import PlanKind

ROWS = 600
CHOICES: list[Any] = [
    *(None, 0, 1, -1, 2, 7, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 2**63 - 1025),
    *(1.0, 1.5, -0.0, 2.0**53, float(2**53 + 2), 9223372036854774784.0, 1e300, -1e300, float("inf"), float("-inf")),
    *("", "a", "A", "a ", "a  ", "A ", "b", "B", "Z", "z", "[", "_", "10", "9", "é", "É", "ﬀ", "\uffff", "\U0001f600"),
    *("a\0b", "a\0c", "A\0B", "a\0", "a\0\0", "\0", " ", "  "),
    *(b"", b"\0", b"a", b"A", b"a ", b"\xff", b"\x61\xff"),
]
_dice = random.Random(53)
DEFINITION = Definition(
    [
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x, n NUMERIC, nc TEXT COLLATE NOCASE, rt COLLATE RTRIM, k INTEGER)",
        "CREATE TABLE u (a, b COLLATE NOCASE, c)",
        "CREATE TABLE w (p TEXT COLLATE NOCASE, q, x, PRIMARY KEY (p, q)) WITHOUT ROWID",
    ],
    {"t": ("k",), "u": ("c",), "w": ("q",)},
    rows=[
        (
            "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)",
            [
                (number * 7919 % 10007, *(_dice.choice(CHOICES) for _ in range(4)), _dice.randrange(90))
                for number in range(1, ROWS)
            ],
        ),
        ("INSERT INTO u VALUES (?, ?, ?)", [[_dice.choice(CHOICES) for _ in range(3)] for _ in range(ROWS)]),
        (
            "INSERT INTO w VALUES (?, ?, ?)",
            [(_dice.choice(["a", "B", "c\0d", "Ä"]), number, _dice.choice(CHOICES)) for number in range(ROWS // 2)],
        ),
    ],
)
Sides = tuple[sqlite3.Connection, list[Cluster]]


def backwards(left: str, right: str) -> int:
    return (left[::-1] > right[::-1]) - (left[::-1] < right[::-1])


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    whole = plain(DEFINITION)
    with Template(DEFINITION) as template, ExitStack() as stack:
        clusters = [stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS]
        for database in (whole, *(cluster.manager for cluster in clusters)):
            database.create_collation("backwards", backwards)
        yield whole, clusters
    whole.close()


@pytest.fixture(params=[(1000, 500), (5, 3)], ids=["first rows", "batches"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second: few rows are read at a time, so that merges of several batches are seen."""
    monkeypatch.setattr(streams, "SMALL", request.param[0])
    monkeypatch.setattr(streams, "_BATCH", request.param[1])


def same(sides: Sides, sql: str, parameters: Any = (), *, kind: PlanKind | None = PlanKind.FAN_OUT) -> Answer:
    whole, clusters = sides
    expected = ask(whole, sql, parameters)
    for cluster in clusters:
        plan = cluster.plan(sql, parameters)
        found = cluster.run(sql, parameters)
        assert found.shown(ordered=True) == expected.shown(ordered=True), f"{sql}\n{plan}"
        if kind is not None:
            assert plan.kind is kind, plan
            assert kind is not PlanKind.FAN_OUT or (plan.merge is not None) is (len(plan.shards) > 1), plan
    return expected


COLUMNS = ["id", "x", "n", "nc", "rt", "k"]
terms = st.tuples(
    st.sampled_from(
        [*COLUMNS, *COLUMNS, "rowid", "coalesce(x, nc)", "abs(k - 40)", "-n", "typeof(x)", "length(nc)", "t.x"]
    ),
    st.sampled_from(["", "", "", " COLLATE NOCASE", " COLLATE rtrim", " COLLATE BINARY", ' COLLATE "Backwards"']),
    st.sampled_from(["", " ASC", " DESC"]),
    st.sampled_from(["", "", " NULLS FIRST", " NULLS LAST"]),
)


@pytest.mark.usefixtures("sizes")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    order=st.lists(terms, min_size=1, max_size=4),
    shown=st.sampled_from(
        ["*", "id", "x", "nc AS rt, rt AS nc", "k, k AS x, id", "x, n, nc, rt", "count(*) OVER (PARTITION BY k), id"]
    ),
    where=st.sampled_from(["", " WHERE id % 3 = 1", " WHERE x > 'a'", " WHERE typeof(n) = 'integer'", " WHERE 0"]),
    tail=st.sampled_from(
        ["", "", "", " LIMIT 7", " LIMIT 40 OFFSET 11", " LIMIT -1", " LIMIT 0", " LIMIT 999 OFFSET 600"]
    ),
)
def test_any_order_of_mixed_columns(sides: Sides, order: list[Any], shown: str, where: str, tail: str) -> None:
    listed = ", ".join(map("".join, order))
    same(sides, f"SELECT {shown} FROM t{where} ORDER BY {listed}, id{tail}", kind=None)


FORMS = [
    "SELECT * FROM t ORDER BY x, id",
    "SELECT * FROM t ORDER BY x",
    "SELECT * FROM t ORDER BY x DESC, id DESC",
    "SELECT id FROM t ORDER BY x DESC, nc, rt DESC, n, id",
    "SELECT id, x FROM t ORDER BY 2, 1 DESC",
    "SELECT id, nc FROM t ORDER BY 2 COLLATE BINARY DESC NULLS LAST, 1",
    "SELECT x AS n, id FROM t ORDER BY n, id",
    "SELECT t.*, -k AS m FROM t ORDER BY m DESC, t.id LIMIT 300 OFFSET 20",
    "SELECT id FROM t ORDER BY rowid DESC",
    "SELECT id FROM t ORDER BY id, (x || '') COLLATE backwards",
    "SELECT * FROM u ORDER BY b, rowid",
    "SELECT a FROM u ORDER BY a COLLATE backwards, rowid",
    "SELECT b FROM u ORDER BY c DESC",
    "SELECT * FROM w ORDER BY x COLLATE RTRIM, p, q",
    "SELECT x FROM w ORDER BY x",
    "SELECT k, count(*), max(id) FROM t GROUP BY k ORDER BY 2 DESC, k",
    "SELECT k FROM t GROUP BY k ORDER BY max(id)",
    "SELECT a.id, b.id FROM t a JOIN t b ON b.k = a.k AND b.id > a.id ORDER BY a.x COLLATE NOCASE DESC, a.id, b.id",
    "SELECT a.id, b.x FROM t a LEFT JOIN t b ON b.k = a.k AND b.id < a.id ORDER BY b.x, a.id, b.id",
    "SELECT id FROM (SELECT id, x AS y, k FROM t WHERE k > 3) ORDER BY y, id",
    "SELECT k, row_number() OVER (PARTITION BY k ORDER BY id) r FROM t ORDER BY r, k",
    "SELECT id FROM t WHERE x = (SELECT max(y.x) FROM t y WHERE y.k = t.k) ORDER BY x, id",
    "SELECT id FROM t WHERE k IN (1, 2, 3, 4, 5, 6, 7) ORDER BY nc DESC, id",
]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("sql", FORMS)
def test_forms(sides: Sides, sql: str) -> None:
    assert same(sides, sql, kind=None).rows
    for cluster in sides[1][1:]:
        assert cluster.plan(sql).merge is not None, cluster.plan(sql)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("values", [(5, 2), (5, -3), (-1, 20), (0, 0), (2**63 - 1, 590), (300, 2**63 - 1), (4, 0)])
def test_parameters_in_limit(sides: Sides, values: tuple[int, int]) -> None:
    same(sides, "SELECT id, x FROM t ORDER BY nc, id LIMIT ? OFFSET ?", values)
    named = dict(zip(("limit", "offset"), values, strict=True))
    same(sides, "SELECT id FROM t WHERE k < 80 ORDER BY rt, id LIMIT :limit OFFSET :offset", named)


@pytest.mark.parametrize("value", ["5", 5.0, 5.5, None, "x", b"5"])
def test_sqlite_says_what_is_a_limit(sides: Sides, value: Any) -> None:
    whole, clusters = sides
    sql = "SELECT id FROM t ORDER BY x, id LIMIT ?"
    expected = ask(whole, sql, (value,))
    for cluster in clusters:
        found = cluster.run(sql, (value,))
        assert found.shown(ordered=True) == expected.shown(ordered=True)
        assert cluster.plan(sql, (value,)).merge is None


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT DISTINCT nc FROM t ORDER BY nc LIMIT 1",
        "SELECT n, count(*) FROM t GROUP BY n ORDER BY 1, 2",
        "SELECT id FROM t UNION ALL SELECT -id FROM t ORDER BY 1",
        "SELECT max(id) FROM t ORDER BY 1",
    ],
)
def test_what_is_not_merged(sides: Sides, sql: str) -> None:
    same(sides, sql, kind=None)
    assert all(cluster.plan(sql).merge is None for cluster in sides[1])


def test_a_function_is_called_no_more_often_than_it_has_to_be(sides: Sides) -> None:
    called: list[int] = []

    def noted(value: int) -> str:
        called.append(value)
        return f"{value % 10}"

    whole, clusters = sides
    for database in (whole, *(cluster.manager for cluster in clusters)):
        database.create_function("noted", 1, noted, deterministic=True)
    sql = "SELECT id FROM t ORDER BY noted(id), id"
    ask(whole, sql)
    once = len(called)
    for cluster in clusters[1:]:
        called.clear()
        assert cluster.run(sql).rows
        assert len(called) <= once
    same(sides, sql)


@pytest.fixture(scope="module", params=["UTF-8", "UTF-16le"])
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Databases of one encoding, in which some text is no Unicode."""
    directory = tmp_path_factory.mktemp("encoded") / "db"
    config = ShardliteConfig(num_shards=3, db_dir=str(directory), durability="normal")
    Database(config, encoding=request.param).close()
    rows = [(number, value, CHOICES[number * 7 % len(CHOICES)]) for number, value in enumerate(CHOICES * 3)]
    bad = (b"a\xff", b"\xff", b"a\xfe", b"A\xfe", b"\xc3") if request.param == "UTF-8" else ()
    with ShardManager(db_dir=directory) as manager, closing(sqlite3.connect(":memory:", isolation_level=None)) as whole:
        whole.execute(f"PRAGMA encoding = '{request.param}'")
        whole.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y COLLATE NOCASE)")
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y COLLATE NOCASE)")
        for database in (whole, manager):
            database.create_collation("backwards", backwards)
            database.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
            for number, value in enumerate(bad, 9000):
                sql = "INSERT INTO t VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
                database.execute(sql, (number, value, value))
        yield whole, [Cluster(manager)]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("direction", ["", " DESC", " DESC NULLS FIRST"])
@pytest.mark.parametrize("term", ["x", "y", "x COLLATE NOCASE", "y COLLATE RTRIM", "x || y", "x COLLATE backwards"])
def test_what_is_only_sorted_by_may_be_any_text(encoded: Sides, term: str, direction: str) -> None:
    where = " WHERE id < 9000" if "backwards" in term else ""
    same(encoded, f"SELECT id FROM t{where} ORDER BY {term}{direction}, id")
    same(encoded, f"SELECT id FROM t{where} ORDER BY {term}{direction}, id LIMIT 100 OFFSET 3")


def test_shown_text_that_is_no_unicode(encoded: Sides) -> None:
    """As on one file: an error where it is shown, none where a LIMIT leaves it out."""
    whole, (cluster,) = encoded
    if whole.execute("SELECT count(*) FROM t WHERE id >= 9000").fetchone() == (0,):
        pytest.skip("SQLite replaces what is no Unicode when it makes UTF-16 of it")
    with pytest.raises(sqlite3.OperationalError, match="Could not decode to UTF-8"):
        whole.execute("SELECT x FROM t ORDER BY id DESC").fetchall()
    with pytest.raises(OperationalError, match="Could not decode to UTF-8"):
        cluster.manager.execute("SELECT x FROM t ORDER BY id DESC").fetchall()
    same(encoded, "SELECT x FROM t ORDER BY id LIMIT 5")
    same(encoded, f"SELECT x FROM t ORDER BY id LIMIT {3 * len(CHOICES)}")
