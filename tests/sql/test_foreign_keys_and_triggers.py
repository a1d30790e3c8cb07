"""What foreign keys and triggers bring into a statement, behind its words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sharded import Definition, Template, ask, plain, whole_contents

from shardlite.sql.plan import PlanKind

FAMILY = Definition(
    (
        "CREATE TABLE country (code TEXT PRIMARY KEY, name TEXT, at TEXT DEFAULT CURRENT_TIMESTAMP)",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, code TEXT REFERENCES country (code) ON DELETE SET NULL, n INT)",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES parent (id) ON DELETE CASCADE, x)",
        "CREATE TABLE moved (id INTEGER PRIMARY KEY, x)",
        "CREATE TABLE along (id INTEGER PRIMARY KEY, mid INTEGER REFERENCES moved (id) ON UPDATE CASCADE "
        "ON DELETE SET NULL, x)",
        "CREATE TABLE watched (k INTEGER PRIMARY KEY, code TEXT)",
        "CREATE TABLE alone (id INTEGER PRIMARY KEY, what)",
        "CREATE TABLE heard (id INTEGER PRIMARY KEY, what)",
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
        "moved": ("id",),
        "along": ("mid",),
        "watched": ("k",),
        "sale": ("pid",),
        "history": ("pid",),
    },
    references=frozenset({"country"}),
    groups={"parent": "p", "child": "p", "sale": "p", "history": "p", "moved": "m", "along": "m"},
    rows=(
        ("INSERT INTO country VALUES (?, ?, 'then')", [("de", "Germany"), ("fr", "France")]),
        ("INSERT INTO parent VALUES (?, ?, ?)", [(i * 37, ("de", "fr")[i % 2], i) for i in range(1, 12)]),
        ("INSERT INTO child VALUES (?, ?, ?)", [(i, (i % 11 + 1) * 37, i) for i in range(30)]),
        ("INSERT INTO moved VALUES (?, ?)", [(i, i / 2) for i in range(1, 9)]),
        ("INSERT INTO along VALUES (?, ?, ?)", [(i, i % 8 + 1, i) for i in range(20)]),
        ("INSERT INTO sale VALUES (?, ?, 'open')", [(i, (i % 11 + 1) * 37) for i in range(1, 30)]),
    ),
)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(FAMILY) as made:
        yield made


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
        ("UPDATE sale SET state = 'paid' WHERE id % 3 = 0", PlanKind.FAN_OUT_WRITE),
        ("UPDATE sale SET pid = pid + 37 WHERE id = 3", PlanKind.GATHER_WRITE),
        ("UPDATE parent SET id = 5 WHERE id = 37", PlanKind.GATHER_WRITE),
        ("UPDATE parent SET code = 'xx' WHERE id > 100", PlanKind.FAN_OUT_WRITE),
        ("UPDATE moved SET id = -id", PlanKind.GATHER_WRITE),
        ("DELETE FROM moved WHERE id = 3", PlanKind.GATHER_WRITE),
        ("DELETE FROM parent WHERE n > 5", PlanKind.FAN_OUT_WRITE),
        ("INSERT INTO country (code) VALUES ('it')", PlanKind.GATHER_WRITE),
        ("INSERT INTO watched SELECT id, code FROM parent", PlanKind.INSERT_QUERY),
        ("INSERT INTO watched SELECT id, 'xx' FROM parent", PlanKind.INSERT_QUERY),
        ("INSERT OR REPLACE INTO parent VALUES (37, 'de', 5), (74, 'fr', 6)", PlanKind.SPLIT_INSERT),
    ],
)
@pytest.mark.parametrize("num_shards", [1, 4])
def test_answers_as_one_file(template: Template, sql: str, kind: PlanKind, num_shards: int) -> None:
    whole = plain(FAMILY)
    with template.cluster(num_shards) as cluster:
        assert cluster.plan(sql).kind is kind
        assert cluster.run(sql).shown(ordered=False) == ask(whole, sql).shown(ordered=False)
        found, expected = cluster.contents(), whole_contents(whole, cluster.tables)
        if "(code)" in sql:  # a default is the time
            assert len(found.pop("country")) == len(expected.pop("country"))
        assert found == expected
        assert cluster.misplaced() == []
    whole.close()
