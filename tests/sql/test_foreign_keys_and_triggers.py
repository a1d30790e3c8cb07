"""What foreign keys and triggers bring into a statement, behind its words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, Definition, Planning, plain, whole_contents

from shardlite.errors import NotSupportedError
from shardlite.sql.plan import PlanKind

FAMILY = Definition(
    (
        "CREATE TABLE country (code TEXT PRIMARY KEY, name TEXT, at TEXT DEFAULT CURRENT_TIMESTAMP)",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, code TEXT REFERENCES country (code) ON DELETE SET NULL, n INT)",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES parent (id) ON DELETE CASCADE, x)",
        "CREATE TABLE counted (k INTEGER PRIMARY KEY, x)",
        "CREATE TABLE watched (k INTEGER PRIMARY KEY, code TEXT)",
        "CREATE TABLE alone (id INTEGER PRIMARY KEY, what)",
        "CREATE TABLE heard (id INTEGER PRIMARY KEY, what)",
        "CREATE TRIGGER few BEFORE INSERT ON counted WHEN (SELECT count(*) FROM counted) > 2 "
        "BEGIN SELECT raise(ABORT, 'too many'); END",
        "CREATE TRIGGER known BEFORE INSERT ON watched WHEN NOT EXISTS (SELECT 1 FROM country WHERE code = new.code) "
        "BEGIN SELECT raise(ABORT, 'unknown country'); END",
        "CREATE TRIGGER echo AFTER INSERT ON alone BEGIN INSERT INTO heard (what) VALUES (new.what); END",
        "CREATE TABLE sale (id INTEGER PRIMARY KEY, pid INTEGER, state TEXT)",
        "CREATE TABLE history (pid INTEGER, sale INTEGER, state TEXT, PRIMARY KEY (pid, sale, state)) WITHOUT ROWID",
        "CREATE TRIGGER record AFTER UPDATE OF state ON sale BEGIN "
        "INSERT OR REPLACE INTO history VALUES (new.pid, new.id, new.state); "
        "UPDATE parent SET n = n + (SELECT count(*) FROM history WHERE pid = new.pid) WHERE id = new.pid; END",
    ),
    keys={
        "parent": ("id",),
        "child": ("pid",),
        "counted": ("k",),
        "watched": ("k",),
        "sale": ("pid",),
        "history": ("pid",),
    },
    references=frozenset({"country"}),
    groups={"parent": "p", "child": "p", "sale": "p", "history": "p"},
    rows=(
        ("INSERT INTO country VALUES (?, ?, 'then')", [("de", "Germany"), ("fr", "France")]),
        ("INSERT INTO parent VALUES (?, ?, ?)", [(i * 37, ("de", "fr")[i % 2], i) for i in range(1, 12)]),
        ("INSERT INTO child VALUES (?, ?, ?)", [(i, (i % 11 + 1) * 37, i) for i in range(30)]),
        ("INSERT INTO sale VALUES (?, ?, 'open')", [(i, (i % 11 + 1) * 37) for i in range(1, 30)]),
    ),
)


@pytest.fixture(scope="module")
def planning() -> Iterator[Planning]:
    made = Planning(FAMILY)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("DELETE FROM parent WHERE id = 37", PlanKind.ONE_SHARD),
        ("DELETE FROM country WHERE code = 'de'", PlanKind.EVERY_SHARD),
        ("UPDATE country SET name = 'x' WHERE code = 'fr'", PlanKind.EVERY_SHARD),
        ("INSERT INTO country VALUES ('it', 'Italy', 'now')", PlanKind.EVERY_SHARD),
        ("INSERT INTO watched VALUES (5, 'de'), (6, 'fr')", PlanKind.SPLIT_INSERT),
        ("INSERT INTO child (pid, x) VALUES (37, 1), (74, 2)", PlanKind.SPLIT_INSERT),
        ("INSERT INTO alone (what) VALUES ('x')", PlanKind.HOME),
        ("UPDATE sale SET state = 'paid' WHERE pid = 37", PlanKind.ONE_SHARD),
    ],
)
@pytest.mark.parametrize("num_shards", [1, 4])
def test_answers_as_one_file(planning: Planning, sql: str, kind: PlanKind, num_shards: int) -> None:
    cluster, whole = Cluster(planning, num_shards), plain(FAMILY, rows=True)
    plan, _, count = cluster.run(sql)
    assert (plan.kind, count) == (kind, whole.execute(sql).rowcount)
    assert cluster.contents() == whole_contents(whole, planning.tables)
    assert cluster.misplaced() == []
    copies = [shard.execute("SELECT * FROM country").fetchall() for shard in cluster.shards]
    assert copies == copies[:1] * num_shards
    cluster.close()
    whole.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("INSERT INTO counted VALUES (1, 2)", "the trigger few reads counted"),
        ("INSERT INTO country (code) VALUES ('it')", "the default CURRENT_TIMESTAMP of at"),
    ],
)
def test_refused(planning: Planning, sql: str, words: str) -> None:
    cluster = Cluster(planning, 1)
    with pytest.raises(NotSupportedError, match=words):
        cluster.plan(sql)
    cluster.close()


def test_an_action_that_would_move_rows_is_refused() -> None:
    moving = Definition(
        (
            "CREATE TABLE a (id INTEGER PRIMARY KEY)",
            "CREATE TABLE b (id INTEGER PRIMARY KEY, aid INTEGER REFERENCES a (id) ON DELETE SET NULL)",
        ),
        keys={"a": ("id",), "b": ("aid",)},
        groups={"a": "g", "b": "g"},
    )
    planning = Planning(moving)
    cluster = Cluster(planning, 4)
    with pytest.raises(NotSupportedError, match=r"an update of b\.aid, the shard key"):
        cluster.plan("DELETE FROM a WHERE id = 1")
    cluster.close()
    planning.close()
