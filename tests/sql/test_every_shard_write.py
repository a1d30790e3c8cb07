"""UPDATE and DELETE over many keys: what runs on the shards as written, what is gathered, and what both answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sharded import SHARD_COUNTS, Definition, Template, agree, fails_alike, many_alike

from shardlite.sql.plan import PlanKind

VALUES = (None, 0, 1, 2.5, "1", "a", "A", b"x", -3, "z", 2.0, 10**15)

WORLD = Definition(
    (
        "CREATE TABLE r (code TEXT PRIMARY KEY, rate, n INT)",
        "CREATE TABLE p (id INTEGER PRIMARY KEY, a, b TEXT COLLATE NOCASE, c INT CHECK (c < 1000), d REAL NOT NULL, "
        "g AS (c * 2))",
        "CREATE TABLE q (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES p (id) ON DELETE CASCADE, v, w TEXT, "
        "UNIQUE (pid, v))",
        "CREATE TABLE w (k TEXT, m INT, v, PRIMARY KEY (k, m)) WITHOUT ROWID",
        "CREATE TABLE h (k NUMERIC, v)",
        "CREATE TABLE e (id INTEGER PRIMARY KEY, pid INTEGER, v)",
        "CREATE TABLE trace (pid INTEGER, eid INTEGER, what TEXT, PRIMARY KEY (pid, eid, what)) WITHOUT ROWID",
        "CREATE TABLE tolerant (id INTEGER PRIMARY KEY, v NOT NULL ON CONFLICT IGNORE)",
        "CREATE TABLE one (id INTEGER PRIMARY KEY, v)",
        "CREATE INDEX p_c ON p (c)",
        "CREATE TRIGGER changed AFTER UPDATE OF v ON e BEGIN "
        "INSERT OR IGNORE INTO trace VALUES (new.pid, new.id, 'now ' || new.v); "
        "UPDATE p SET a = coalesce(a, 0) + 1 WHERE id = new.pid; END",
        "CREATE TRIGGER kept BEFORE DELETE ON e WHEN old.v = 'z' BEGIN SELECT raise(IGNORE); END",
        "CREATE TRIGGER sound BEFORE UPDATE ON e WHEN new.v = 'bad' BEGIN SELECT raise(ABORT, 'bad v'); END",
    ),
    keys={
        "p": ("id",),
        "q": ("pid",),
        "w": ("k",),
        "h": ("k",),
        "e": ("pid",),
        "trace": ("pid",),
        "tolerant": ("id",),
    },
    references=frozenset({"r"}),
    groups=dict.fromkeys(("p", "q", "e", "trace"), "p"),
    rows=(
        ("INSERT INTO r VALUES (?, ?, ?)", [("a", 2, 1), ("b", None, 2), ("z", 0.5, 3)]),
        ("INSERT INTO p VALUES (?, ?, ?, ?, ?)", [(i * 7, VALUES[i % 12], "abAz"[i % 4], i, i / 4) for i in range(40)]),
        ("INSERT INTO q VALUES (?, ?, ?, ?)", [(i, i * 5 % 40 * 7, i, "xyz"[i % 3]) for i in range(90)]),
        ("INSERT INTO w VALUES (?, ?, ?)", [("k" + str(i % 9), i, VALUES[i % 12]) for i in range(30)]),
        ("INSERT INTO h VALUES (?, ?)", [(VALUES[i % 12], i) for i in range(36)]),
        ("INSERT INTO e VALUES (?, ?, ?)", [(i, i * 3 % 40 * 7, "az"[i % 2]) for i in range(50)]),
        ("INSERT INTO tolerant VALUES (?, ?)", [(i, i) for i in range(9)]),
        ("INSERT INTO one VALUES (?, ?)", [(1, 2), (2, 3)]),
    ),
)

PUSHED: list[tuple[str, Any]] = [
    ("UPDATE OR ROLLBACK p SET c = c + 40 WHERE c < 3", ()),
    ("UPDATE tolerant SET v = CASE WHEN id > 4 THEN NULL ELSE 7 END", ()),
    ("UPDATE OR IGNORE h SET v = 'x' WHERE v BETWEEN ? AND 7", (5,)),
    ("UPDATE p SET a = 1", ()),
    ("UPDATE p SET a = a || 'x', c = c + 1 WHERE c > 5 AND b = 'A'", ()),
    ("UPDATE main.p SET a = ? WHERE c BETWEEN ? AND ?", ("v", 3, 20)),
    ("UPDATE p AS t SET (a, c) = (t.c, 3) WHERE t.g > 10 RETURNING *, id", ()),
    ("UPDATE p SET d = d / 3 WHERE id % 2 RETURNING d, typeof(a) AS kind, rowid", ()),
    ("UPDATE h SET v = k WHERE v > 4 RETURNING k, v, rowid", ()),
    ("UPDATE p SET a = :a WHERE id IN (7, 14, :b, 21)", {"a": 5, "b": 700}),
    ("DELETE FROM p WHERE id IN (?, ?, ?) RETURNING id", (7, 70, 140)),
    ("DELETE FROM h WHERE k IN (1, 'a', 2.5)", ()),
    ("DELETE FROM h WHERE k IN (NULL, 1, 2)", ()),
    ("UPDATE w SET v = m + 1 WHERE m > 3 RETURNING k, m, v", ()),
    ("DELETE FROM w", ()),
    ("DELETE FROM p", ()),
    ("DELETE FROM p WHERE c > 20 RETURNING id, b", ()),
    ("DELETE FROM q WHERE w = 'x'", ()),
    ("UPDATE p SET a = (SELECT rate FROM r WHERE code = p.b)", ()),
    ("UPDATE p SET a = (SELECT rate FROM r ORDER BY n DESC LIMIT 1) WHERE b IN (SELECT code FROM r)", ()),
    ("UPDATE p SET a = r.rate FROM r WHERE r.code = p.b AND r.n < 3", ()),
    ("DELETE FROM p WHERE id IN (SELECT value FROM json_each(?))", ("[7, 14, 210, 5]",)),
    ("UPDATE p SET a = (SELECT count(*) FROM q WHERE q.pid = p.id)", ()),
    ("DELETE FROM e WHERE EXISTS (SELECT 1 FROM p WHERE p.id = e.pid AND p.c > 10)", ()),
    ("UPDATE q SET w = (SELECT max(v) FROM e WHERE e.pid = q.pid) WHERE v % 2", ()),
    ("UPDATE q SET w = p.b FROM p WHERE p.id = q.pid AND p.c < 20", ()),
    ("UPDATE e SET v = 'n' WHERE id > 10", ()),
    ("UPDATE p SET a = 'in' WHERE id IN (SELECT pid FROM q WHERE v > 40)", ()),
    ("UPDATE p SET a = 'in' WHERE (c > 4 AND (id IN (SELECT DISTINCT q.pid AS x FROM q JOIN r ON r.n < 2)))", ()),
    ("DELETE FROM e WHERE pid IN (SELECT id FROM p WHERE c < 10) RETURNING id", ()),
    ("DELETE FROM e WHERE pid IN (SELECT q.pid FROM q JOIN p ON p.id = q.pid WHERE p.c > v)", ()),
    ("DELETE FROM e WHERE id < 30", ()),
    ("DELETE FROM e WHERE id < 30 RETURNING id", ()),
    ("UPDATE q SET v = v + 1 WHERE w = 'x'", ()),
    ("UPDATE q SET v = v - 8", ()),
    ("UPDATE OR ABORT p SET c = c - 1", ()),
    ("UPDATE p SET a = date('2020-01-31', '+1 month')", ()),
]
"""They run on the shards: no row is moved."""

GATHERED: list[tuple[str, Any]] = [
    ("UPDATE p SET a = (SELECT count(*) FROM p AS o WHERE o.c < p.c)", ()),
    ("UPDATE p SET a = (SELECT max(v) FROM q)", ()),
    ("UPDATE p SET a = (SELECT sum(c) FROM p AS o WHERE o.id = p.id) WHERE c > 3", ()),
    ("DELETE FROM p WHERE id NOT IN (SELECT pid FROM q)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT pid FROM q WHERE v > 40) OR c = 3", ()),
    ("UPDATE p SET a = id IN (SELECT pid FROM q WHERE v > 40)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT max(pid) FROM q)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT pid FROM q ORDER BY pid LIMIT 3)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT pid FROM q GROUP BY w)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT pid FROM q UNION SELECT pid FROM e)", ()),
    ("UPDATE p SET a = 1 WHERE id IN (SELECT max(pid) OVER () FROM q)", ()),
    ("UPDATE p SET a = 1 WHERE c IN (SELECT pid FROM q)", ()),
    ("UPDATE p SET id = id + 1000", ()),
    ("UPDATE q SET pid = 7 WHERE id < 3", ()),
    ("UPDATE OR IGNORE q SET v = 5", ()),
    ("UPDATE OR REPLACE q SET v = 5", ()),
    ("UPDATE OR FAIL p SET c = c * 40", ()),
    ("UPDATE p SET a = one.v FROM one WHERE one.id = p.c", ()),
    ("WITH x AS (SELECT 1) UPDATE p SET a = (SELECT * FROM x)", ()),
]
"""They look at more than a row and what is beside it."""

RESTRICTED: list[tuple[str, Any, int]] = [
    ("UPDATE h SET v = (SELECT max(v) FROM h AS o WHERE o.v < 5) WHERE v > 30", (), 10),
    ("UPDATE h SET v = (SELECT rate FROM r WHERE n = 2) WHERE v > 30 AND v <> (SELECT min(v) FROM w)", (), 40),
    ("UPDATE h SET k = 'moved' WHERE v IN (3, 4, 5)", (), 3),
    ("DELETE FROM h WHERE v > 33 AND k IN (SELECT v FROM w)", (), 40),
    ("DELETE FROM h WHERE v > 33 AND random() IS NOT NULL RETURNING v", (), 2),
    ("DELETE FROM main.h AS x WHERE x.v > 33 AND (x.k IS NULL OR EXISTS (SELECT 1 FROM one))", (), 4),
    ("UPDATE w SET v = (SELECT max(v) FROM h) WHERE m = 7", (), 37),
    ("UPDATE h SET v = o.c FROM p AS o WHERE o.d = h.v AND h.v > 30 AND o.c < 3", (), 8),
    ("UPDATE q SET w = (SELECT count(*) FROM h) WHERE v > 80", (), 45),
    ("WITH x AS (SELECT max(v) AS m FROM h) UPDATE w SET v = (SELECT m FROM x) WHERE m = 7", (), 37),
    ("WITH h AS (SELECT v FROM w WHERE m < 3) DELETE FROM q WHERE v IN (SELECT v FROM h) AND id > 80", (), 60),
    (
        "WITH x (i) AS (SELECT pid FROM q WHERE v > 85) UPDATE p SET a = 5 WHERE c < 4 AND id IN (SELECT i FROM x)",
        (),
        8,
    ),
    ("WITH q AS (SELECT 7 AS n) DELETE FROM main.q WHERE v > 85 AND v > (SELECT n FROM q) RETURNING id", (), 130),
    ("UPDATE OR IGNORE q SET v = v + 5 WHERE v < 3", (), 36),
    ("UPDATE OR REPLACE q SET v = v + 40 WHERE v < 2", (), 27),
    ("UPDATE OR REPLACE q SET v = 5 WHERE w = 'x' AND v < 4", (), 27),
    ("UPDATE OR FAIL p SET c = c * 40 WHERE c > 23 AND c < 28", (), 4),
    ("UPDATE p SET a = q.v FROM q WHERE q.pid = p.id AND q.v > 85 RETURNING id, a", (), 8),
    ("UPDATE p SET a = q.v FROM q WHERE q.pid = p.id AND p.c = 5 RETURNING a", (), 91),
    ("UPDATE p SET a = r.n FROM r WHERE r.rate = p.c RETURNING a", (), 45),
    ("DELETE FROM p WHERE c > 36 AND random() IS NOT NULL", (), 12),
    ("UPDATE e SET v = (SELECT count(*) FROM one) WHERE id < 3", (), 14),
    ("DELETE FROM q WHERE w = 'x' ORDER BY v DESC LIMIT 3", (), 24),
    ("DELETE FROM q ORDER BY w COLLATE NOCASE, v LIMIT ? OFFSET 1", (2,), 32),
    ("UPDATE h SET v = -1 WHERE v < 30 RETURNING k, v ORDER BY v DESC LIMIT :n", {"n": 2}, 16),
    ("UPDATE h SET v = -1 ORDER BY v LIMIT -1", (), 36),
    ("UPDATE h SET v = -1 ORDER BY v NULLS LAST LIMIT 0", (), 0),
]
"""Of what they change, as of what they read, only those rows come that they can find."""

FAILING: list[tuple[str, Any]] = [
    ("UPDATE p SET c = c + 980", ()),
    ("UPDATE p SET d = NULL WHERE c > 7", ()),
    ("UPDATE p SET c = CASE WHEN c = 30 THEN 2000 ELSE c END, d = CASE WHEN c = 11 THEN NULL ELSE d END", ()),
    ("UPDATE p SET c = CASE WHEN c = 11 THEN 2000 ELSE c END, d = CASE WHEN c = 30 THEN NULL ELSE d END", ()),
    ("UPDATE q SET v = 1", ()),
    ("UPDATE q SET v = v - 8 WHERE id > 7", ()),
    ("UPDATE q SET v = v + 8", ()),
    ("UPDATE e SET v = CASE WHEN id = 40 THEN 'bad' ELSE 'n' END", ()),
    ("UPDATE w SET v = abs(-9223372036854775808) WHERE m = 3", ()),
    ("UPDATE w SET v = CASE m WHEN 4 THEN abs(-9223372036854775808) WHEN 9 THEN json('{') ELSE 1 END", ()),
]
"""They fail with the words of one file, and change nothing."""


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(WORLD) as made:
        yield made


def compare(template: Template, sql: str, parameters: Any, num_shards: int, kind: PlanKind) -> int:
    ordered = "w SET" not in sql  # the table has no rowids
    past = "SELECT changes(), total_changes()"
    return agree(template, WORLD, sql, parameters, num_shards, kind, past=past, ordered=ordered)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), PUSHED, ids=lambda value: str(value)[:60])
def test_on_the_shards(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    assert compare(template, sql, parameters, num_shards, PlanKind.FAN_OUT_WRITE) == 0


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), GATHERED, ids=lambda value: str(value)[:60])
def test_gathered(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    compare(template, sql, parameters, num_shards, PlanKind.GATHER_WRITE)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters", "bound"), RESTRICTED, ids=lambda value: str(value)[:60])
def test_restricted(template: Template, sql: str, parameters: Any, bound: int, num_shards: int) -> None:
    assert compare(template, sql, parameters, num_shards, PlanKind.GATHER_WRITE) <= bound


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize(("sql", "parameters"), FAILING, ids=lambda value: str(value)[:60])
def test_failures(template: Template, sql: str, parameters: Any, num_shards: int) -> None:
    fails_alike(template, WORLD, "UPDATE w SET v = v", sql, parameters, num_shards)
    compare(template, sql, parameters, num_shards, PlanKind.FAN_OUT_WRITE)


def test_executemany(template: Template) -> None:
    sql = "UPDATE p SET c = c + ? WHERE c > ?"
    good, bad = (sql, [(1, 3), (5, 20), (2, 0)]), (sql, [(1, 3), (980, 0)])
    many_alike(template, WORLD, good, bad, "CHECK constraint failed")


def test_a_pinned_target_leaves_shards_out(template: Template) -> None:
    with template.cluster(8) as cluster:
        plan = cluster.plan("UPDATE p SET a = 1 WHERE id IN (7, 14)")
        assert plan.shards == tuple(sorted({cluster.manager.shard_for("p", key) for key in (7, 14)}))
