"""INSERT of what a query gives: which rows move, which ids they get, and what one file says of those that don't fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sharded import SHARD_COUNTS, Definition, Template, agree, fails_alike, many_alike, plain, whole_contents

from shardlite.execute import insert_query, statements
from shardlite.sql.plan import PlanKind

VALUES = (None, 0, 1, 2.5, "1", "a", "A", b"x", -3, "z", 2.0, 10**15)

WORLD = Definition(
    (
        "CREATE TABLE src (id INTEGER PRIMARY KEY, k INT, v, x REAL, s TEXT COLLATE NOCASE)",
        "CREATE TABLE other (k INT, y, PRIMARY KEY (k, y)) WITHOUT ROWID",
        "CREATE TABLE auto (id INTEGER PRIMARY KEY, v, d TEXT DEFAULT 'none')",
        "CREATE TABLE apart (id INTEGER PRIMARY KEY, k TEXT, v NUMERIC CHECK (v < 1000), u INT NOT NULL DEFAULT 7, "
        "g AS (v || k), UNIQUE (k, v))",
        "CREATE TABLE plain (k NUMERIC, v TEXT)",
        "CREATE TABLE strict (k INTEGER, v INTEGER, PRIMARY KEY (k, v)) STRICT, WITHOUT ROWID",
        "CREATE TABLE two (a TEXT, b INT, c, PRIMARY KEY (a, b))",
        "CREATE TABLE tree (id INTEGER PRIMARY KEY, up INTEGER REFERENCES tree (id))",
        "CREATE TABLE heard (k INTEGER PRIMARY KEY, v)",
        "CREATE TABLE seen (k INTEGER, v, PRIMARY KEY (k, v)) WITHOUT ROWID",
        "CREATE TABLE picky (k INTEGER PRIMARY KEY, v)",
        "CREATE TABLE told (k INTEGER PRIMARY KEY, v)",
        "CREATE TABLE timed (k INTEGER PRIMARY KEY, v, at TEXT DEFAULT CURRENT_TIMESTAMP)",
        "CREATE TABLE tolerant (k INTEGER, v, PRIMARY KEY (k) ON CONFLICT IGNORE)",
        "CREATE TABLE ref (code TEXT PRIMARY KEY, n INT)",
        "CREATE TABLE copies (a, b)",
        "CREATE TABLE one (id INTEGER PRIMARY KEY AUTOINCREMENT, v UNIQUE)",
        "CREATE VIEW big AS SELECT k, v FROM src WHERE x > 6",
        "CREATE TRIGGER hear AFTER INSERT ON heard BEGIN INSERT INTO seen VALUES (new.k, new.v); END",
        "CREATE TRIGGER pick BEFORE INSERT ON picky WHEN new.k % 2 BEGIN SELECT raise(IGNORE); END",
        "CREATE TRIGGER tell AFTER INSERT ON told BEGIN INSERT INTO seen VALUES (new.k, 'told'); "
        "SELECT raise(ABORT, 'enough') WHERE new.v = 5; END",
    ),
    keys={
        "src": ("k",),
        "other": ("k",),
        "auto": ("id",),
        "apart": ("k",),
        "plain": ("k",),
        "strict": ("k",),
        "two": ("a", "b"),
        "heard": ("k",),
        "seen": ("k",),
        "picky": ("k",),
        "told": ("k",),
        "timed": ("k",),
        "tolerant": ("k",),
    },
    references=frozenset({"ref", "copies"}),
    groups={"src": "k", "other": "k", "heard": "h", "seen": "h", "told": "h"},
    rows=(
        (
            "INSERT INTO src VALUES (?, ?, ?, ?, ?)",
            [(i, i * 3 % 17, VALUES[i % 12], i / 4, "abAc"[i % 4]) for i in range(1, 41)],
        ),
        ("INSERT INTO other VALUES (?, ?)", [(i % 9, i) for i in range(20)]),
        ("INSERT INTO auto (v) VALUES (?)", [(i,) for i in range(5)]),
        ("INSERT INTO apart (id, k, v) VALUES (?, ?, ?)", [(i * 2, f"k{i % 3}", i) for i in range(1, 9)]),
        ("INSERT INTO plain VALUES (?, ?)", [(value, "old") for value in VALUES]),
        ("INSERT INTO two VALUES (?, ?, ?)", [("a", i, None) for i in range(3)]),
        ("INSERT INTO heard VALUES (?, ?)", [(1, 1)]),
        ("INSERT INTO ref VALUES (?, ?)", [("a", 1), ("b", 2), ("z", 3)]),
        ("INSERT INTO copies VALUES (?, ?)", [(1, 2)]),
        ("INSERT INTO one (v) VALUES (?)", [("a",), ("q",)]),
    ),
)

MOVED: list[tuple[str, Any, int]] = [
    ("INSERT INTO auto (v) SELECT v FROM src WHERE x > 5", (), 20),
    ("INSERT INTO auto (v, d) SELECT v, s FROM src ORDER BY x DESC, id LIMIT 7", (), 56),
    ("INSERT INTO auto (v) SELECT s || count(*) FROM src GROUP BY s ORDER BY s", (), 32),
    ("INSERT INTO auto SELECT id + 100, v, NULL FROM src WHERE k = 3", (), 9),
    ("INSERT INTO auto SELECT NULL, k, y FROM other WHERE y > 15 ORDER BY y", (), 4),
    ("INSERT INTO auto (v) SELECT v FROM auto", (), 5),
    ("INSERT INTO apart (k, v) SELECT 'n' || id, x FROM src", (), 40),
    ("INSERT INTO apart (id, k, v, u) SELECT id * 2 + 1, 'k' || k, x, ? FROM src WHERE x > ?", (3, 4), 26),
    ("INSERT INTO apart (u, v, k) SELECT :u, n, code FROM ref WHERE n < :n", {"n": 3, "u": 1}, 2),
    ("INSERT INTO plain SELECT v, x FROM src", (), 40),
    ("INSERT INTO plain (v, k) SELECT * FROM (SELECT s, avg(x) FROM src GROUP BY s) ORDER BY 1", (), 40),
    ("INSERT INTO plain SELECT k, count(*) OVER () FROM src WHERE x < 2", (), 8),
    ("INSERT INTO strict SELECT k, max(id) FROM src WHERE k IS NOT NULL GROUP BY k", (), 17),
    ("INSERT INTO two (b, a) SELECT k, s || id FROM src", (), 40),
    ("INSERT INTO two SELECT 'n', y, k FROM other UNION ALL SELECT 'm', n, code FROM ref", (), 24),
    ("INSERT INTO tree SELECT id, id - 1 FROM src WHERE id = 1", (), 1),
    ("INSERT INTO heard SELECT id + 10, v FROM src WHERE id > 30", (), 10),
    ("INSERT INTO ref SELECT s || id, id FROM src WHERE x < 2", (), 8),
    ("INSERT INTO ref SELECT code || code, n FROM ref", (), 3),
    ("INSERT INTO copies SELECT k, v FROM src ORDER BY id DESC", (), 40),
    ("INSERT INTO one (v) SELECT id FROM src ORDER BY id DESC LIMIT 3", (), 24),
    ("INSERT INTO one SELECT id + 50, s || id FROM src WHERE x < 3", (), 12),
    ("INSERT INTO plain SELECT k, v FROM big", (), 40),
    ("INSERT INTO plain SELECT src.k, y FROM src JOIN other ON src.k = other.k WHERE y = 7", (), 40),
    ("INSERT INTO other SELECT k + 100, v FROM src WHERE v IS NOT NULL AND x < 3 AND k > 0", (), 12),
    ("WITH n AS (SELECT k FROM src WHERE x > 8) INSERT INTO plain SELECT k, 'cte' FROM n", (), 40),
    ("INSERT INTO plain WITH n(i) AS (VALUES (1), (2)) SELECT i, ? FROM n", ("p",), 0),
    ("INSERT INTO auto (v) VALUES ((SELECT max(x) FROM src)), (lower('X'))", (), 40),
    ("INSERT INTO apart (k, v) VALUES (upper(?), 5), ('l' || ?2, ?1)", ("q", "w"), 0),
    ("INSERT INTO auto (v) SELECT v FROM src WHERE 0", (), 0),
    ("INSERT OR ABORT INTO main.auto AS a (v) SELECT x FROM main.src WHERE id = ?", (5,), 40),
]
"""What they insert is read first; the bound is of the rows that are brought for that."""

CONFLICTING: list[tuple[str, Any, int]] = [
    ("WITH src (c, m) AS (SELECT code, n FROM ref) INSERT INTO plain SELECT m, c FROM src ORDER BY 1, 2", (), 43),
    ("INSERT OR IGNORE INTO strict SELECT k, 1 FROM src WHERE k > 3", (), 32),
    ("INSERT OR IGNORE INTO strict SELECT k % 4, NULL FROM src WHERE k > 3", (), 32),
    ("INSERT OR REPLACE INTO heard SELECT k, x FROM src WHERE k > 3", (), 32),
    ("REPLACE INTO heard (v, k) SELECT x, k FROM src WHERE x < 3", (), 12),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k > 3 ON CONFLICT DO UPDATE SET v = excluded.v", (), 32),
    ("INSERT INTO heard AS h SELECT k, x FROM src WHERE k > ? ON CONFLICT (k) DO UPDATE SET v = h.v + ?", (3, 5), 32),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k < 9 ON CONFLICT (k) DO NOTHING", (), 22),
    (
        "INSERT INTO apart (k, v) SELECT 'k' || k % 5, k FROM src WHERE k ON CONFLICT (k, v) "
        "DO UPDATE SET u = u + excluded.v WHERE v > :low",
        {"low": 2},
        40,
    ),
    ("INSERT OR REPLACE INTO apart (id, k, v) SELECT id + 100, 'k' || k % 5, k FROM src", (), 40),
    ("INSERT OR IGNORE INTO apart (id, k, v) SELECT id + 100, 'k' || k % 5, k * 100 FROM src", (), 40),
    ("INSERT OR REPLACE INTO apart (id, k, v, u) SELECT id, k, v * 10, u FROM apart WHERE v < 5", (), 8),
    ("INSERT OR IGNORE INTO apart SELECT 99 + id, 'k' || k % 5, 1, CASE WHEN k > 3 THEN k END FROM src", (), 40),
    ("INSERT INTO picky SELECT id, v FROM src", (), 40),
    ("INSERT INTO tolerant SELECT k, v FROM src WHERE k IS NOT NULL", (), 40),
    ("INSERT OR REPLACE INTO tolerant SELECT k, v FROM src WHERE k IS NOT NULL", (), 40),
    ("INSERT OR REPLACE INTO ref SELECT upper(code), n * 2 FROM ref UNION ALL SELECT 'a', 9", (), 8),
    ("INSERT OR IGNORE INTO ref SELECT s, id FROM src ORDER BY id", (), 40),
    ("INSERT INTO ref SELECT s, id FROM src WHERE 1 ON CONFLICT DO UPDATE SET n = excluded.n", (), 40),
    ("INSERT OR IGNORE INTO one (v) SELECT s FROM src", (), 40),
    ("INSERT OR ROLLBACK INTO plain SELECT k, v FROM src", (), 40),
    (
        "WITH n AS (SELECT k FROM src WHERE x > 8) INSERT OR IGNORE INTO tolerant SELECT k, 'c' FROM n WHERE k > 0",
        (),
        9,
    ),
    ("INSERT INTO auto (v) SELECT k FROM src WHERE x > 8 RETURNING *", (), 8),
    ("INSERT INTO auto (v) SELECT k FROM src WHERE x > 88 RETURNING id, v AS w", (), 0),
    ("INSERT INTO plain SELECT k, v FROM src ORDER BY x DESC RETURNING k, typeof(v), v || ?", ("!",), 40),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k >= 0 ON CONFLICT DO UPDATE SET v = v + 1 RETURNING k, v", (), 40),
    ("INSERT OR IGNORE INTO heard SELECT k, x FROM src WHERE k >= 0 RETURNING rowid, v", (), 40),
    ("INSERT INTO picky SELECT id, v FROM src ORDER BY id DESC RETURNING k", (), 40),
    ("INSERT OR REPLACE INTO ref SELECT s, id FROM src ORDER BY id RETURNING code, n", (), 40),
    ("INSERT INTO one (v) SELECT id FROM src WHERE id < 5 RETURNING id, v", (), 8),
    ("INSERT INTO apart (k, v) SELECT 'n' || id, x FROM src RETURNING id, g", (), 40),
    ("INSERT INTO strict SELECT k, max(id) FROM src WHERE k > 2 GROUP BY k RETURNING v", (), 40),
]
"""Rows that others may be in the way of, or that are told of: conflicts are with rows of the same shard."""

GATHERED: list[tuple[str, Any]] = [
    ("INSERT INTO apart (v, u) SELECT id, 1 FROM src", ()),
    ("INSERT INTO plain (rowid, k) SELECT id + 500, k FROM src", ()),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k ON CONFLICT DO UPDATE SET v = (SELECT max(v) FROM heard)", ()),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k ON CONFLICT DO UPDATE SET k = k + 100", ()),
    ("INSERT INTO auto (v) SELECT k FROM src WHERE x > 8 RETURNING id, (SELECT count(*) FROM auto)", ()),
    ("INSERT OR FAIL INTO apart (k, v) SELECT 'n' || id, id * 30 FROM src", ()),
]
"""Their rows have to do with each other."""

ELSEWHERE: list[tuple[str, Any]] = [
    ("INSERT OR REPLACE INTO apart (id, k, v) SELECT id, 'n' || id, 1 FROM src", ()),
    ("INSERT OR IGNORE INTO apart (id, k, v) SELECT id, 'n' || id, 1 FROM src", ()),
    ("INSERT INTO apart (id, k, v) SELECT id, 'n' || id, 1 FROM src WHERE 1 ON CONFLICT DO UPDATE SET v = 2", ()),
    ("INSERT OR REPLACE INTO apart (id, k, v) SELECT 77, 'n' || id, 1 FROM src", ()),
    ("INSERT OR IGNORE INTO apart (id, k, v) SELECT 77, 'n' || id, 1 FROM src RETURNING *", ()),
    ("INSERT OR IGNORE INTO tolerant SELECT id - 5, v FROM src RETURNING k", ()),
]
"""They state ids that rows of other shards have."""

FAILING: list[tuple[str, Any]] = [
    ("INSERT INTO apart (id, k, v) SELECT id, 'n' || id, 1 FROM src", ()),
    ("INSERT INTO apart (id, k, v) SELECT 77, 'n' || id, 1 FROM src", ()),
    ("INSERT INTO apart (k, v) SELECT 'n' || id, id * 30 FROM src", ()),
    ("INSERT INTO apart (k, v, u) SELECT 'n' || id, id * 30, CASE WHEN id = 30 THEN NULL ELSE 1 END FROM src", ()),
    ("INSERT INTO apart (k, v, u) SELECT 'n' || id, id * 30, CASE WHEN id = 39 THEN NULL ELSE 1 END FROM src", ()),
    ("INSERT INTO apart (k, v) SELECT 'k1', 4 FROM src WHERE id = 1", ()),
    ("INSERT INTO strict SELECT k, s FROM src", ()),
    ("INSERT INTO auto SELECT s, 1, 2 FROM src", ()),
    ("INSERT INTO auto SELECT id, 1, 2 FROM src", ()),
    ("INSERT INTO ref SELECT s, 1 FROM src", ()),
    ("INSERT INTO one (v) SELECT s FROM src", ()),
    ("INSERT INTO plain SELECT k, abs(-9223372036854775807 - id) FROM src", ()),
    ("INSERT INTO plain SELECT k, json(CASE WHEN x > 5 THEN '{' ELSE '1' END) FROM src", ()),
    ("INSERT INTO other SELECT k, k FROM src", ()),
    ("INSERT OR REPLACE INTO apart (k, v) SELECT 'n' || id, id * 30 FROM src", ()),
    ("INSERT INTO apart (k, v) SELECT 'n' || id, id * 30 FROM src RETURNING id", ()),
    ("INSERT INTO heard SELECT k, x FROM src WHERE k IS NOT NULL RETURNING *", ()),
    ("INSERT INTO heard SELECT id, x FROM src WHERE 1 ON CONFLICT DO UPDATE SET v = json('{' || v)", ()),
    ("INSERT OR ROLLBACK INTO other SELECT k, k FROM src", ()),
    ("INSERT INTO told SELECT id, x FROM src", ()),
    ("INSERT INTO told SELECT id, x FROM src ORDER BY id DESC RETURNING k", ()),
]
"""They fail with the words of one file, and insert nothing."""


FAILED_ROWS = (
    "INSERT INTO apart (k, v, u) SELECT 'n' || id, id * 30, CASE WHEN id = 30 THEN NULL ELSE 1 END FROM src",
    "INSERT INTO apart (id, k, v) SELECT id, 'n' || id, 1 FROM src",
    "INSERT INTO told SELECT id, x FROM src",
    "INSERT INTO apart (k, v) SELECT 'n' || id, id * 30 FROM src RETURNING id",
)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(WORLD) as made:
        yield made


def compare(template: Template, sql: str, parameters: Any, num_shards: int, kind: PlanKind) -> int:
    past = "SELECT changes(), total_changes(), last_insert_rowid()"
    return agree(template, WORLD, sql, parameters, num_shards, kind, past=past, after_errors=True)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters", "bound"), MOVED, ids=lambda value: str(value)[:60])
def test_rows_of_a_query(template: Template, sql: str, parameters: Any, bound: int, num_shards: int) -> None:
    assert compare(template, sql, parameters, num_shards, PlanKind.INSERT_QUERY) <= bound


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters", "bound"), CONFLICTING, ids=lambda value: str(value)[:60])
def test_conflicts(template: Template, sql: str, parameters: Any, bound: int, num_shards: int) -> None:
    assert compare(template, sql, parameters, num_shards, PlanKind.INSERT_QUERY) <= bound


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), ELSEWHERE, ids=lambda value: str(value)[:60])
def test_ids_on_other_shards(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    compare(template, sql, parameters, num_shards, PlanKind.INSERT_QUERY)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), GATHERED, ids=lambda value: str(value)[:60])
def test_gathered(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    compare(template, sql, parameters, num_shards, PlanKind.GATHER_WRITE)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), FAILING, ids=lambda value: str(value)[:60])
def test_failures(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    fails_alike(template, WORLD, "UPDATE src SET v = v", sql, parameters, num_shards)
    compare(template, sql, parameters, num_shards, PlanKind.INSERT_QUERY)


def test_failures_are_found_without_bringing_tables(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file's first failure is known once the rows were inserted one by one, each on its shard."""

    def never(*_args: object) -> None:
        raise AssertionError("a gather")

    monkeypatch.setattr(statements, "gather_write", never)
    for sql in FAILED_ROWS:
        compare(template, sql, (), 4, PlanKind.INSERT_QUERY)


@pytest.mark.parametrize(
    ("sql", "parameters"), [case[:2] for case in [*MOVED[:8], *CONFLICTING]] + FAILING[:8], ids=str
)
def test_batches(template: Template, monkeypatch: pytest.MonkeyPatch, sql: str, parameters: Any) -> None:
    monkeypatch.setattr(insert_query, "_BATCH", 3)
    compare(template, sql, parameters, 3, PlanKind.INSERT_QUERY)


def test_ids_that_follow(template: Template) -> None:
    """What is inserted later, by any way, has ids of its own."""
    with closing(plain(WORLD)) as whole, template.cluster(4) as cluster:
        for sql in (
            "INSERT INTO apart (id, k, v) SELECT id + 1000, 'm' || id, x FROM src",
            "INSERT INTO apart (k, v) VALUES ('one', 1)",
            "INSERT INTO apart (k, v) SELECT k || 'x', v FROM apart ORDER BY id",
            "INSERT INTO apart (k, v) VALUES ('two', 2), ('three', 3)",
        ):
            cluster.manager.execute(sql)
            whole.execute(sql)
        assert cluster.contents() == whole_contents(whole, cluster.tables)


def test_executemany(template: Template) -> None:
    good = ("INSERT INTO plain SELECT k, v FROM src WHERE id = ?", [(1,), (5,), (7,)])
    bad = ("INSERT INTO ref SELECT 'n' || n, ? FROM ref", [(1,), (2,)])
    many_alike(template, WORLD, good, bad, "UNIQUE constraint failed")
