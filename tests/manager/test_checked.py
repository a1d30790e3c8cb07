"""constraints="checked": what no shard can see is not enforced, at any number of shards, and ``check`` reports it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.topology.exporter import export_sqlite

Make = Callable[..., ShardManager]
SHARDS = (1, 3, 4, 8)

LOGINS = "CREATE TABLE logins (user_id INTEGER NOT NULL, name TEXT UNIQUE, n INT)"
DEFINITIONS = {
    "column": LOGINS,
    "named": "CREATE TABLE logins (user_id INTEGER NOT NULL, name TEXT CONSTRAINT one_name UNIQUE NOT NULL, n INT)",
    "table": "CREATE TABLE logins (user_id INT NOT NULL, name TEXT, n INT, CONSTRAINT u UNIQUE (name), CHECK (n > 0))",
    "no comma": "CREATE TABLE logins (user_id INT, name TEXT, n INT, UNIQUE (name) UNIQUE (n, name)CHECK (n > 0))",
    "primary": "CREATE TABLE logins (name TEXT PRIMARY KEY, user_id INTEGER NOT NULL, n INT)",
    "primary desc": "CREATE TABLE logins (name TEXT PRIMARY KEY DESC ON CONFLICT ROLLBACK UNIQUE, user_id INT, n INT)",
    "primary of table": "CREATE TABLE logins (name, user_id INT NOT NULL, n INT, PRIMARY KEY (name) ON CONFLICT ABORT)",
    "strict": "CREATE TABLE logins (name TEXT PRIMARY KEY, user_id INTEGER NOT NULL, n INT) STRICT",
    "strict of table": "CREATE TABLE logins (name TEXT, user_id INTEGER, n INT, PRIMARY KEY (name, n)) STRICT",
    "without rowid": "CREATE TABLE logins (name TEXT PRIMARY KEY, user_id INTEGER NOT NULL, n INT) WITHOUT ROWID",
    "without rowid, of table": (
        "CREATE TABLE logins (name TEXT, user_id INTEGER NOT NULL, n INT, PRIMARY KEY (name COLLATE NOCASE, n))"
        " WITHOUT ROWID, STRICT"
    ),
    "odd text": (
        'CREATE TABLE "logins" /* UNIQUE ( */ (\n "name" TEXT -- PRIMARY KEY,\n UNIQUE COLLATE NOCASE,'
        " user_id INTEGER DEFAULT 5, n INT CHECK (n <> ') UNIQUE'), 'x y' AS (n + 1), UNIQUE ([x y], 'n')\n)"
    ),
}
ROWS = [(name, user, n) for n, name in enumerate(["a", "A", "b", "a", "c", "a"], 1) for user in (1, 2, 3, 5)]


def outcome(call: Callable[..., Any], *arguments: Any) -> str:
    """Return what became of a call: done, or the kind of its refusal."""
    try:
        call(*arguments)
    except sqlite3.IntegrityError as error:
        return str(error).split(" [", maxsplit=1)[0]
    return "done"


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_alike_at_any_number_of_shards(make_manager: Make, name: str) -> None:
    """The same rows are taken and refused, and the same rows are there, at 1, 3, 4 and 8 shards."""
    found = []
    for shards in SHARDS:
        manager = make_manager(f"db{shards}", num_shards=shards)
        table = manager.create_table(DEFINITIONS[name], shard_key="user_id", constraints="checked")
        assert table.unenforced
        outcomes = [
            outcome(manager.insert, "logins", dict(zip(("name", "user_id", "n"), row, strict=True)))
            for row in [*ROWS, (None, 1, 1), (None, 1, 1), ("z", None, 1), ("z", 1, None)]
        ]
        outcomes.append(outcome(manager.update, "logins", {"name": "same"}, {"n": [1, 2]}))
        statement = "INSERT INTO logins (name, user_id, n) VALUES (?, ?, ?)"
        outcomes.append(outcome(manager.executemany, statement, [("a", 1, 3), ("a", 2, 4)]))
        rows = sorted(map(repr, (tuple(row.values()) for row in manager.select("logins"))))
        kinds = sorted((p.kind.value, p.table, p.count) for p in manager.check().problems)
        found.append((outcomes, rows, kinds))
    assert all(one == found[0] for one in found), name
    assert {kind for kind, _, _ in found[0][2]} == {"unique"}


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_rows_that_one_file_takes_are_taken(make_manager: Make, name: str) -> None:
    """What one file takes is taken, what it refuses for another constraint is refused; NOT NULL stays, of a key too."""
    manager = make_manager(num_shards=3)
    manager.create_table(DEFINITIONS[name], shard_key="user_id", constraints="checked")
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as one_file:
        one_file.execute(DEFINITIONS[name])
        for row in [*ROWS, (None, 1, 1), ("z", None, 1), ("z", 1, None), ("y", 1, -5)]:
            statement = "INSERT INTO logins (name, user_id, n) VALUES (?, ?, ?)"
            theirs = outcome(one_file.execute, statement, row)
            ours = outcome(manager.execute, statement, row)
            if not theirs.startswith("UNIQUE"):
                assert ours.partition(":")[0] == theirs.partition(":")[0], row


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_the_schema_follows_changes_and_comes_out_as_written(make_manager: Make, tmp_path: Path, name: str) -> None:
    """ALTER TABLE works on the shards' texts as on the written one; lookups have an index; export has the original."""
    manager = make_manager(num_shards=3)
    manager.create_table(DEFINITIONS[name], shard_key="user_id", constraints="checked")
    manager.insert("logins", {"name": "a", "user_id": 1, "n": 1})
    assert manager.check().problems == ()
    changes = [
        "ALTER TABLE logins ADD COLUMN extra TEXT DEFAULT 'UNIQUE'",
        "ALTER TABLE logins RENAME COLUMN name TO label",
        "ALTER TABLE logins RENAME TO log_ins",
        LOGINS.replace("logins", "other")
        + "; ALTER TABLE log_ins RENAME TO logins2; ALTER TABLE other RENAME TO log_ins",
        "ALTER TABLE logins2 RENAME COLUMN user_id TO u",
        "CREATE UNIQUE INDEX ux ON logins2 (label, n) WHERE n > 5",
    ]
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as one_file:
        one_file.execute(DEFINITIONS[name])
        for change in changes:
            if "other" in change:
                manager.create_table(LOGINS.replace("logins", "other"), shard_key="user_id", constraints="checked")
                one_file.execute(LOGINS.replace("logins", "other"))
                change = change.partition("; ")[2]
            manager.apply_schema(change)
            one_file.executescript(change)
            assert manager.check().problems == (), change
        expected = one_file.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        details = [row[3] for row in one_file.execute("EXPLAIN QUERY PLAN SELECT * FROM logins2 WHERE label = 'a'")]
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            plan = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN SELECT * FROM logins2 WHERE label = 'a'")]
            assert [text.split()[0] for text in plan] == [text.split()[0] for text in details]
    export_sqlite(manager, tmp_path / "out.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as out:
        texts = out.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    assert sorted(texts) == sorted(expected)
    manager.apply_schema("DROP TABLE logins2; DROP TABLE log_ins")
    with manager.pool(0).get_connection_context() as conn:
        left = [tuple(row) for row in conn.execute("SELECT name FROM sqlite_schema WHERE tbl_name LIKE 'log%'")]
    assert left == []


@pytest.mark.parametrize("shards", SHARDS)
def test_a_unique_index_is_an_ordinary_one_on_the_shards(make_manager: Make, shards: int) -> None:
    manager = make_manager(num_shards=shards)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, g INT, v TEXT)", constraints="checked")
    manager.insert_many("t", ({"id": n, "g": n % 3, "v": f"v{n}"} for n in range(9)))
    manager.apply_schema("CREATE UNIQUE INDEX ux ON t (g); CREATE UNIQUE INDEX IF NOT EXISTS uv ON t (lower(v), id)")
    assert manager.tables["t"].unenforced == ("UNIQUE (g)",)
    manager.insert("t", {"id": 50, "g": 1, "v": "x"})
    manager.insert("t", {"id": 51, "g": 1, "v": "x"})
    with manager.pool(0).get_connection_context() as conn:
        texts = dict(
            conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 't'").fetchall()
        )
    assert texts["ux"] == "CREATE INDEX ux ON t (g)"
    assert texts["uv"].startswith("CREATE UNIQUE INDEX")
    (problem,) = manager.check().problems
    assert (problem.kind.value, problem.table, problem.count) == ("unique", "t", 3)
    manager.apply_schema(
        "CREATE TABLE made (a INTEGER PRIMARY KEY, b, c); CREATE UNIQUE INDEX mb ON made (b, a);"
        "ALTER TABLE made RENAME TO made2; DROP INDEX ux; CREATE UNIQUE INDEX ux ON t (v, id)"
    )
    assert manager.check().problems == ()


@pytest.mark.parametrize("shards", SHARDS)
def test_conflicts_that_may_lie_elsewhere_are_refused_by_name(make_manager: Make, shards: int) -> None:
    manager = make_manager(num_shards=shards)
    manager.create_table(LOGINS, shard_key="user_id", constraints="checked")
    for sql in (
        "INSERT OR IGNORE INTO logins VALUES (1, 'a', 1)",
        "INSERT OR REPLACE INTO logins VALUES (1, 'a', 1)",
        "REPLACE INTO logins VALUES (1, 'a', 1)",
        "INSERT INTO logins VALUES (1, 'a', 1) ON CONFLICT (name) DO UPDATE SET n = 2",
        "INSERT INTO logins VALUES (1, 'a', 1) ON CONFLICT DO NOTHING",
        "UPDATE OR IGNORE logins SET name = 'b' WHERE user_id = 1",
        "UPDATE OR REPLACE logins SET name = 'b' WHERE user_id = 1",
    ):
        with pytest.raises(NotSupportedError, match=r"UNIQUE \(name\)"):
            manager.execute(sql)
    with pytest.raises(NotSupportedError, match=r"logins: a conflict on \(name\)"):
        manager.upsert("logins", {"user_id": 1, "name": "a"}, conflict="name")
    # The index compares more coarsely than the key: 'a' and 'A' may live on two shards.
    ddl = "CREATE TABLE words (word TEXT, n INT, UNIQUE (word COLLATE NOCASE))"
    manager.create_table(ddl, shard_key="word", constraints="checked")
    with pytest.raises(NotSupportedError, match=r"words: a conflict on \(word\)"):
        manager.upsert("words", {"word": "a", "n": 1}, conflict="word")
    with pytest.raises(NotSupportedError, match=r"UNIQUE \(word\)"):
        manager.execute("INSERT OR IGNORE INTO words VALUES ('a', 1)")
    for word in ("a", "A", "b", "B"):
        manager.insert("words", {"word": word})
    assert [problem.count for problem in manager.check().problems] == [2]


def test_definitions_that_cant_be_followed(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    for ddl, words in (
        ("CREATE TABLE t (k INT, a UNIQUE ON CONFLICT REPLACE)", r"t \(a\): ON CONFLICT REPLACE"),
        ("CREATE TABLE t (k INT, a TEXT PRIMARY KEY ON CONFLICT IGNORE)", r"t \(a\): ON CONFLICT IGNORE"),
        ("CREATE TABLE t (k INT, a, b, UNIQUE (a, b) ON CONFLICT IGNORE)", r"t \(a, b\): ON CONFLICT IGNORE"),
        ("CREATE TABLE t (k INT, a PRIMARY KEY) WITHOUT ROWID", r"k may be NULL"),
    ):
        with pytest.raises(NotSupportedError, match=words):
            manager.create_table(ddl, shard_key="k", constraints="checked")
    manager.create_table(
        "CREATE TABLE t (k INT, a, UNIQUE (a, k) ON CONFLICT REPLACE)", shard_key="k", constraints="checked"
    )
    manager.insert("t", {"k": 1, "a": 1})
    manager.insert("t", {"k": 1, "a": 1})
    assert manager.count("t") == 1


@pytest.mark.parametrize("shards", SHARDS)
def test_foreign_keys_to_what_is_only_checked(make_manager: Make, shards: int) -> None:
    """A child of a key that is only checked is only checked itself: no statement fails with a mismatch."""
    manager = make_manager(num_shards=shards)
    manager.create_table(LOGINS, shard_key="user_id", constraints="checked")
    child = manager.create_table(
        "CREATE TABLE visits (user_id INTEGER, name TEXT REFERENCES logins (name), FOREIGN KEY (name) REFERENCES"
        " logins (name) ON DELETE CASCADE)",
        shard_key="user_id",
        constraints="checked",
    )
    assert len(child.unenforced) == 2
    tree = "CREATE TABLE tree (code TEXT PRIMARY KEY, up TEXT REFERENCES tree, user_id INTEGER)"
    manager.create_table(tree, shard_key="user_id", constraints="checked")
    manager.insert("tree", {"code": "b", "up": "a", "user_id": 1})
    manager.insert("logins", {"user_id": 1, "name": "a"})
    manager.insert("logins", {"user_id": 1, "name": "a"})
    manager.insert("visits", {"user_id": 1, "name": "a"})
    manager.insert("visits", {"user_id": 2, "name": "gone"})
    assert manager.delete("logins", {"name": "a"}) == 2
    assert manager.count("visits") == 2
    found = {(problem.kind.value, problem.table) for problem in manager.check().problems}
    assert found == {("foreign-key", "visits"), ("foreign-key", "tree")}


def test_explicit_keys(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE notes (body TEXT UNIQUE)", kind="sharded", constraints="checked")
    for key in ("x", "x", "y"):
        manager.insert("notes", {"body": "same"}, key=key)
    assert [problem.kind.value for problem in manager.check().problems] == ["unique"]


def test_triggers_that_tolerate_a_conflict(make_manager: Make) -> None:
    """A trigger's own OR IGNORE, or the firing statement's, can't know of a row on another shard."""
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE fired (k INTEGER PRIMARY KEY, v TEXT)")
    log = "CREATE TABLE log (k INTEGER NOT NULL, v TEXT UNIQUE, PRIMARY KEY (k, v)) WITHOUT ROWID"
    manager.create_table(log, shard_key="k", constraints="checked")
    trigger = "CREATE TRIGGER keep AFTER {} ON fired BEGIN {} INTO log (k, v) VALUES (NEW.k, NEW.v){}; END"
    for how, tail in (("INSERT OR IGNORE", ""), ("REPLACE", ""), ("INSERT", " ON CONFLICT (v) DO NOTHING")):
        with pytest.raises(NotSupportedError, match=r"keep.*log that conflicts with UNIQUE \(v\)"):
            manager.apply_schema(trigger.format("INSERT", how, tail))
    manager.apply_schema(trigger.format("INSERT", "INSERT", ""))
    manager.apply_schema(trigger.format("UPDATE", "INSERT", "").replace("keep", "keep_too"))
    for k in (1, 2, 3):
        manager.execute("INSERT INTO fired VALUES (?, 'same')", (k,))
    assert manager.count("log") == 3
    for sql in (
        "INSERT OR IGNORE INTO fired VALUES (9, 'same')",
        "REPLACE INTO fired VALUES (9, 'same')",
        "UPDATE OR IGNORE fired SET v = 'other' WHERE k = 1",
        "UPDATE OR REPLACE fired SET v = 'other' WHERE k = 1",
    ):
        with pytest.raises(NotSupportedError, match=r" log.*UNIQUE \(v\)"):
            manager.execute(sql)
    assert manager.count("fired") == 3
