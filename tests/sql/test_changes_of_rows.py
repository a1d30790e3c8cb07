"""Changes whose rows have to do with each other: triggers that raise, conflicts, actions of foreign keys, failures.

One plain file is the oracle: rows, RETURNING, changes(), total_changes(), last_insert_rowid(), errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sharded import SHARD_COUNTS, Cluster, Definition, Template, ask, plain, whole_contents

PAST = "SELECT changes(), total_changes(), last_insert_rowid()"
WORLD = Definition(
    (
        "CREATE TABLE top (k INTEGER PRIMARY KEY, n INT)",
        "CREATE TABLE kid (id INTEGER PRIMARY KEY, k INTEGER REFERENCES top (k) ON DELETE CASCADE, v, w INT NOT NULL "
        "DEFAULT 0, x AS (v || '!'), UNIQUE (k, v), UNIQUE (k, x), CHECK (w < 50))",
        "CREATE TABLE toy (k INTEGER, n INT, v, PRIMARY KEY (k, n), FOREIGN KEY (k) REFERENCES top (k)) WITHOUT ROWID",
        "CREATE TABLE log (k INTEGER, what, n INT, PRIMARY KEY (k, what, n)) WITHOUT ROWID",
        "CREATE TABLE bag (id INTEGER PRIMARY KEY, t TEXT, n INT, s AS (n * 2) STORED)",
        "CREATE TABLE word (t TEXT PRIMARY KEY ON CONFLICT REPLACE, n INT NOT NULL ON CONFLICT IGNORE) WITHOUT ROWID",
        "CREATE TABLE ref (code TEXT PRIMARY KEY, n INT)",
        "CREATE TABLE one (id INTEGER PRIMARY KEY, v UNIQUE)",
        "CREATE TRIGGER skip BEFORE INSERT ON kid WHEN new.v = 'skip' BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER stop BEFORE INSERT ON kid WHEN new.v = 'stop' BEGIN SELECT RAISE(ABORT, 'stopped'); END",
        "CREATE TRIGGER late AFTER INSERT ON kid WHEN new.v = 'late' BEGIN "
        "INSERT INTO log VALUES (new.k, 'late', new.id); SELECT RAISE(ABORT, 'too late'); END",
        "CREATE TRIGGER keep BEFORE DELETE ON kid WHEN old.v = 'keep' BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER gone AFTER DELETE ON kid BEGIN INSERT OR REPLACE INTO log VALUES (old.k, 'gone', old.id); END",
        "CREATE TRIGGER hold BEFORE UPDATE ON kid WHEN new.v = 'hold' BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER bad BEFORE UPDATE ON kid WHEN new.v = 'bad' BEGIN SELECT RAISE(ABORT, 'bad'); END",
        "CREATE TRIGGER skip_bag BEFORE INSERT ON bag WHEN new.n < 0 BEGIN SELECT RAISE(IGNORE); END",
    ),
    keys={"top": ("k",), "kid": ("k",), "toy": ("k",), "log": ("k",), "bag": ("t",), "word": ("t",)},
    references=frozenset({"ref"}),
    groups=dict.fromkeys(("top", "kid", "toy", "log"), "k"),
    rows=(
        ("INSERT INTO top VALUES (?, ?)", [(k, k * k) for k in range(1, 10)]),
        ("INSERT INTO kid (id, k, v, w) VALUES (?, ?, ?, ?)", [(i, i % 5 + 1, f"v{i}", i) for i in range(1, 31)]),
        ("INSERT INTO kid (id, k, v, w) VALUES (?, ?, ?, ?)", [(40, 6, "keep", 1), (41, 6, "v1", 2), (42, 7, None, 3)]),
        ("INSERT INTO toy VALUES (?, ?, ?)", [(7, 1, "a"), (7, 2, "b"), (8, 1, "c")]),
        ("INSERT INTO bag (id, t, n) VALUES (?, ?, ?)", [(i, f"t{i % 7}", i) for i in range(1, 25)]),
        ("INSERT INTO word VALUES (?, ?)", [(f"w{i}", i) for i in range(12)]),
        ("INSERT INTO ref VALUES (?, ?)", [("a", 1), ("b", 2), ("c", 3)]),
        ("INSERT INTO one VALUES (?, ?)", [(1, "a"), (2, "b")]),
    ),
)
STATEMENTS: tuple[str, ...] = (
    # RAISE in triggers
    "INSERT INTO kid (id, k, v) VALUES (1, 3, 'skip')",  # the id is another row's, which is on another shard
    "INSERT INTO kid (id, k, v) VALUES (1, 3, 'skip'), (50, 1, 'new'), (2, 4, 'skip')",
    "INSERT INTO kid (id, k, v) VALUES (51, 3, 'x'), (1, 3, 'stop')",
    "INSERT INTO kid (id, k, v) VALUES (1, 4, 'late')",
    "INSERT INTO kid (id, k, v) VALUES (51, 2, 'x'), (52, 3, 'late'), (53, 4, 'y')",
    "INSERT INTO kid (id, k, v) VALUES (51, 1, 'x'), (52, 2, 'skip'), (53, 3, 'stop'), (54, 4, 'late')",
    "INSERT OR IGNORE INTO kid (id, k, v) VALUES (51, 1, 'x'), (52, 2, 'late')",
    "INSERT OR REPLACE INTO kid (id, k, v) VALUES (1, 3, 'skip')",
    "INSERT OR IGNORE INTO kid (id, k, v) VALUES (1, 3, 'skip')",
    "INSERT OR IGNORE INTO kid (id, k, v) VALUES (1, 3, 'new')",
    "INSERT INTO kid (id, k, v) VALUES (1, 3, 'skip') ON CONFLICT (id) DO UPDATE SET w = 9",
    "INSERT INTO kid (id, k, v) VALUES (1, 3, 'skip') RETURNING id",
    "INSERT INTO bag (id, t, n) VALUES (3, 'elsewhere', -1), (30, 'new', -2), (31, 'new', 5)",
    "INSERT INTO bag (id, t, n) SELECT id, 'x' || id, -1 FROM bag WHERE id < 9",
    "INSERT INTO bag (id, t, n) SELECT id, 'x' || id, CASE WHEN id < 4 THEN -1 ELSE 1 END FROM bag",
    "INSERT INTO bag (id, t, n) SELECT id + 100, t, 3 - id FROM bag ORDER BY id DESC RETURNING id, s",
    "DELETE FROM kid WHERE k > 4",
    "DELETE FROM top WHERE k = 6",
    "DELETE FROM top WHERE n > 30 AND k < 7",
    "UPDATE kid SET v = CASE WHEN id % 2 THEN 'hold' ELSE v || 'y' END WHERE w > 10",
    "UPDATE kid SET v = CASE id WHEN 7 THEN 'bad' ELSE v || 'y' END",
    "UPDATE kid SET v = CASE id WHEN 7 THEN 'bad' WHEN 5 THEN NULL ELSE v || 'y' END, w = CASE id WHEN 9 THEN 99 END",
    # OR FAIL and OR ROLLBACK over several shards
    "INSERT OR FAIL INTO kid (id, k, v) VALUES (60, 1, 'a'), (61, 2, 'b'), (1, 3, 'c'), (62, 4, 'd')",
    "INSERT OR FAIL INTO kid (id, k, v, w) VALUES (60, 1, 'a', 1), (61, 2, 'b', 60), (62, 4, 'd', 1)",
    "INSERT OR FAIL INTO kid (id, k, v) SELECT id + 100, k, CASE id WHEN 20 THEN 'v4' ELSE v || 'f' END FROM kid",
    "INSERT OR ROLLBACK INTO kid (id, k, v) VALUES (60, 1, 'a'), (61, 2, 'b'), (1, 3, 'c'), (62, 4, 'd')",
    "UPDATE OR FAIL kid SET w = w * 2",
    "UPDATE OR ROLLBACK kid SET w = w * 2",
    "UPDATE OR IGNORE kid SET w = w * 2",
    "UPDATE OR REPLACE kid SET w = CASE WHEN w < 9 THEN NULL ELSE w END",
    "UPDATE OR IGNORE kid SET v = 'same' WHERE w < 20",
    "UPDATE OR REPLACE kid SET v = 'same' WHERE w < 20",
    "UPDATE OR REPLACE kid SET v = 'v1' WHERE v = 'v6' OR v = 'v11'",
    # UPSERT
    "INSERT INTO kid (id, k, v) VALUES (70, 2, 'v1'), (71, 2, 'n') ON CONFLICT (k, v) DO UPDATE SET w = 8",
    "INSERT INTO kid (id, k, v) VALUES (70, 2, 'v1'), (71, 2, 'v6') ON CONFLICT (k, v) DO UPDATE SET w = 8 WHERE w < 5",
    "INSERT INTO kid (id, k, v) VALUES (70, 2, 'v1'), (71, 2, 'v6') ON CONFLICT (k, v) DO UPDATE SET v = 'v11'",
    "INSERT INTO kid (id, k, v) VALUES (7, 2, 'v1'), (8, 2, 'z') ON CONFLICT (k, v) DO UPDATE SET v = 'z' RETURNING id",
    "INSERT INTO kid (id, k, v) VALUES (1, 2, 'q'), (2, 3, 'r') ON CONFLICT (id) DO UPDATE SET v = excluded.v || id",
    "INSERT INTO kid (id, k, v) VALUES (1, 4, 'q'), (2, 5, 'r') ON CONFLICT (id) DO UPDATE SET v = excluded.v || id",
    "INSERT INTO kid (id, k, v) SELECT id + 100, k, v FROM kid WHERE w < 9 ON CONFLICT (k, v) DO UPDATE SET w = w + 40",
    "INSERT INTO kid (id, k, v) SELECT id, k, v FROM kid WHERE w < 9 ON CONFLICT (id) DO UPDATE SET w = w + 40",
    "INSERT INTO kid (id, k, v) SELECT id, k, 'u' FROM kid WHERE 1 ON CONFLICT (id) DO UPDATE SET v = excluded.v || id",
    "INSERT INTO word SELECT t, n + 1 FROM word WHERE n < 5 ON CONFLICT (t) DO UPDATE SET n = NULL",
    # OR REPLACE, and ON CONFLICT of the definition
    "INSERT OR REPLACE INTO kid (id, k, v) VALUES (1, 2, 'v6'), (2, 3, 'new')",
    "INSERT OR REPLACE INTO kid (id, k, v) VALUES (1, 5, 'moved'), (90, 5, 'v4')",
    "INSERT OR REPLACE INTO top VALUES (6, 0), (7, 0)",
    "INSERT OR REPLACE INTO top SELECT k, 0 FROM top WHERE k > 5",
    "REPLACE INTO toy VALUES (7, 1, 'z'), (8, 1, 'y'), (8, 9, 'x')",
    "INSERT INTO word VALUES ('w1', 50), ('w2', NULL), ('w3', 52), ('new', NULL)",
    "INSERT INTO word SELECT t, CASE WHEN n % 2 THEN n * 2 END FROM word",
    "INSERT OR ABORT INTO word SELECT t, n FROM word",
    "UPDATE word SET n = CASE WHEN n > 5 THEN n END",
    "UPDATE word SET t = 'w1' WHERE n IN (5, 6)",
    # foreign keys
    "INSERT INTO kid (id, k, v) VALUES (80, 9, 'x'), (81, 99, 'y')",
    "INSERT INTO kid (id, k, v) SELECT id + 100, CASE id WHEN 7 THEN 77 ELSE k END, v || 'w' FROM kid",
    "INSERT INTO toy SELECT k, 5, 'q' FROM top UNION ALL SELECT 55, 5, 'q'",
    "DELETE FROM top WHERE k IN (7, 8, 9)",
    "DELETE FROM top WHERE k < 4 RETURNING k",
    "DELETE FROM top",
    "DELETE FROM toy WHERE n > 0",
    "UPDATE top SET k = k + 100 WHERE k = 9",
    "UPDATE top SET k = k + 100 WHERE k > 6",
    # the k-th row
    "INSERT INTO kid (id, k, v, w) SELECT id + 100, k, v || 'c', id * 2 FROM kid ORDER BY id",
    "INSERT INTO kid (id, k, v, w) SELECT id + 100, k, v || 'c', id * 2 FROM kid ORDER BY id DESC",
    "UPDATE kid SET w = w * 2 WHERE k < 4",
    "UPDATE bag SET n = n * -1 RETURNING id, s",
    "WITH c (i) AS (SELECT id FROM kid WHERE w > 25) UPDATE kid SET w = 49 WHERE id IN (SELECT i FROM c)",
    "WITH c (i) AS (SELECT k FROM top WHERE n > 30) DELETE FROM kid WHERE k IN (SELECT i FROM c) RETURNING id",
    "WITH c (i) AS (SELECT k FROM top WHERE n > 60) INSERT OR IGNORE INTO toy SELECT i, 1, 'w' FROM c",
    "INSERT OR IGNORE INTO ref SELECT v, id FROM kid ORDER BY id RETURNING code",
    "INSERT OR REPLACE INTO one SELECT id, v FROM one UNION ALL SELECT 9, 'a' RETURNING id, v",
)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(WORLD) as made:
        yield made


def agree(cluster: Cluster, whole: Any, sql: str) -> None:
    """Run a statement on both sides; all that can be seen afterwards must be the same."""
    before = [one.rows[0] for one in (cluster.run(PAST), ask(whole, PAST))]
    found, expected = cluster.run(sql), ask(whole, sql)
    ordered = "RETURNING" in sql
    assert found.shown(ordered=ordered) == expected.shown(ordered=ordered)
    after = [one.rows[0] for one in (cluster.run(PAST), ask(whole, PAST))]
    told = [(now[0], now[1] - was[1], now[2]) for now, was in zip(after, before, strict=True)]
    if found.error and sql.startswith("DELETE"):  # what cascades had deleted before is a matter of the shards' order
        told = [(changed, 0, last) for changed, _, last in told]
    assert told[0] == told[1]
    assert cluster.contents() == whole_contents(whole, cluster.tables)
    assert cluster.misplaced() == []


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize("sql", STATEMENTS)
def test_as_one_file(template: Template, sql: str, num_shards: int) -> None:
    with closing(plain(WORLD)) as whole, template.cluster(num_shards) as cluster:
        agree(cluster, whole, sql)


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
def test_one_after_the_other(template: Template, num_shards: int) -> None:
    with closing(plain(WORLD)) as whole, template.cluster(num_shards) as cluster:
        for sql in STATEMENTS:
            # Ids that are drawn have gaps after a failure; without ORDER BY one file may take an index's order.
            if not ("SELECT" in sql and ("bag" in sql or "FROM kid" in sql) and "ORDER BY" not in sql):
                agree(cluster, whole, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT OR IGNORE INTO kid (id, k, v) SELECT id + 100, ?, v FROM kid WHERE w < 9",
        "INSERT INTO kid (id, k, v) SELECT id, k, v FROM kid WHERE k = ? ON CONFLICT (k, v) DO UPDATE SET w = w + 1",
        "INSERT OR REPLACE INTO word SELECT t, n + 1 FROM word WHERE n > ?",
        "INSERT INTO bag (t, n) SELECT max(t), count(*) FROM bag WHERE n > ?",
    ],
)
def test_executemany(template: Template, sql: str) -> None:
    with closing(plain(WORLD)) as whole, template.cluster(4) as cluster:
        sets = [(2,), (3,), (5,)]
        assert cluster.manager.executemany(sql, sets).rowcount == whole.executemany(sql, sets).rowcount
        assert cluster.contents() == whole_contents(whole, cluster.tables)
        assert cluster.run(PAST).rows == ask(whole, PAST).rows
