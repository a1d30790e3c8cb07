"""Changes that must not misplace a row, split the copies of a reference table, or lose what is known of a row."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from shardlite import RangeStrategy, ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, NotSupportedError, ProgrammingError, RoutingError

Make = Callable[..., ShardManager]


# -- foreign keys' actions -----------------------------------------------------------------------------------------


def test_a_foreign_keys_action_never_changes_a_shard_key(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE p (id INTEGER PRIMARY KEY, n INT)")
    manager.create_table(
        "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id) ON DELETE SET NULL)", shard_key="p"
    )
    manager.insert("p", {"id": 1})
    manager.insert("c", {"id": 5, "p": 1})
    for _ in range(2):
        with pytest.raises(NotSupportedError, match=r"c\.p, the shard key"):
            manager.delete("p", key=1)
    assert manager.update("p", {"n": 2}, key=1) == 1
    assert manager.upsert("p", {"id": 1, "n": 3}) == 1
    assert manager.select("c", key=1) == [{"id": 5, "p": 1}]


def test_a_reference_parent_never_changes_a_shard_key(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE ref (id INTEGER PRIMARY KEY, code TEXT UNIQUE, n INT)", kind="reference")
    manager.create_table("CREATE TABLE c (code TEXT REFERENCES ref (code) ON UPDATE CASCADE, n INT)", shard_key="code")
    manager.insert("ref", {"id": 1, "code": "a"})
    manager.insert("c", {"code": "a", "n": 1})
    with pytest.raises(NotSupportedError, match=r"c\.code, the shard key"):
        manager.update("ref", {"code": "zz"}, {"id": 1})
    with pytest.raises(NotSupportedError, match=r"c\.code, the shard key"):
        manager.upsert("ref", {"id": 1, "code": "xx"})
    assert manager.update("ref", {"n": 2}, {"id": 1}) == 1
    assert manager.upsert("ref", {"id": 1, "n": 3}) == 1
    assert manager.select("c", key="a") == [{"code": "a", "n": 1}]


# -- triggers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "UPDATE z SET (k, v) = (NEW.v, 1) WHERE k = NEW.k",
        "UPDATE z SET (v, k) = (SELECT 1, 2) WHERE k = NEW.k",
        "UPDATE z SET id = NEW.v WHERE k = NEW.k",
        "UPDATE z SET rowid = 1000 WHERE k = NEW.k",
        "UPDATE z SET oid = 1000 WHERE k = NEW.k",
        "UPDATE OR IGNORE z SET v = 1, _rowid_ = 1000 WHERE k = NEW.k",
        "INSERT INTO w VALUES (NEW.k, 1) ON CONFLICT (k) DO UPDATE SET k = 'moved' || NEW.k",
        "INSERT INTO w VALUES (NEW.k, 1) ON CONFLICT (k) DO UPDATE SET (v, k) = (1, NEW.v)",
        "INSERT INTO w VALUES (NEW.k, 1) ON CONFLICT (k) DO UPDATE SET k = 'm' ON CONFLICT DO NOTHING",
    ],
)
def test_a_trigger_that_changes_keys_or_rowids_is_refused(manager: ShardManager, body: str) -> None:
    manager.create_table("CREATE TABLE z (id INTEGER PRIMARY KEY, k TEXT, v INT)", shard_key="k")
    manager.create_table("CREATE TABLE w (k TEXT PRIMARY KEY, v INT) WITHOUT ROWID")
    with pytest.raises(NotSupportedError, match=r"\bzt\b"):
        manager.apply_schema(f"CREATE TRIGGER zt AFTER INSERT ON z BEGIN {body}; END")
    manager.apply_schema(
        "CREATE TRIGGER zt AFTER INSERT ON z BEGIN UPDATE z SET v = k || 'x' WHERE k = NEW.k; "
        "INSERT INTO w VALUES (NEW.k, 1) ON CONFLICT (k) DO UPDATE SET v = v + 1; END"
    )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(x.v) FROM w AS x WHERE w.k = NEW.k",
        "SELECT sum(new.v) FROM w AS new WHERE k = new.k",
    ],
)
def test_a_trigger_that_pins_another_table_of_the_name_is_refused(manager: ShardManager, query: str) -> None:
    manager.create_table("CREATE TABLE w (k INTEGER PRIMARY KEY, v INT, s INT)")
    with pytest.raises(NotSupportedError, match=r"\bwt\b"):
        manager.apply_schema(
            f"CREATE TRIGGER wt AFTER INSERT ON w BEGIN UPDATE w SET s = ({query}) WHERE k = NEW.k; END"
        )
    manager.apply_schema(
        "CREATE TRIGGER wt AFTER INSERT ON w BEGIN "
        "UPDATE w SET s = (SELECT sum(x.v) FROM w AS x WHERE x.k = NEW.k) WHERE k = NEW.k; END"
    )


@pytest.mark.parametrize(
    "body",
    [
        "UPDATE ref SET v = random() WHERE id = NEW.id",
        "UPDATE ref SET v = CURRENT_TIMESTAMP WHERE id = NEW.id",
        "UPDATE ref SET v = datetime('now') WHERE id = NEW.id",
        "UPDATE ref SET v = last_insert_rowid() WHERE id = NEW.id",
        "UPDATE ref SET v = (SELECT id FROM ref LIMIT 1) WHERE id = NEW.id",
        "INSERT INTO log (what) VALUES (NEW.v)",
        "SELECT 1 WHERE RANDOM () > 5",
    ],
)
def test_a_trigger_that_differs_on_each_copy_is_refused(manager: ShardManager, body: str) -> None:
    manager.create_table("CREATE TABLE ref (id INTEGER PRIMARY KEY, v)", kind="reference")
    manager.create_table(
        "CREATE TABLE log (id INTEGER PRIMARY KEY, what, at DEFAULT CURRENT_TIMESTAMP)", kind="reference"
    )
    with pytest.raises(NotSupportedError, match=r"\btrg\b.*copy"):
        manager.apply_schema(f"CREATE TRIGGER trg AFTER INSERT ON ref BEGIN {body}; END")
    manager.apply_schema(
        "CREATE TRIGGER trg AFTER INSERT ON ref WHEN NEW.v IN (1, 2) BEGIN "
        "UPDATE ref SET v = upper(coalesce(NEW.v, 'x')) WHERE id = NEW.id; "
        "UPDATE log SET what = (SELECT max(id) FROM ref); END"
    )
    manager.insert("ref", {"id": 1, "v": 1})
    assert manager.select("ref") == [{"id": 1, "v": "1"}]


def test_raise_rollback_and_raise_fail_are_named(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE t (k INTEGER PRIMARY KEY, v INT)")
    manager.create_table("CREATE TABLE s (k INTEGER PRIMARY KEY, v INT)", kind="single")
    text = "CREATE TRIGGER trg BEFORE INSERT ON {} BEGIN SELECT RAISE({}, 'no') WHERE NEW.v < 0; END"
    with pytest.raises(NotSupportedError, match=r"RAISE\(ROLLBACK\) would end the transaction on one shard only"):
        manager.apply_schema(text.format("t", "ROLLBACK"))
    for name in "ts":
        with pytest.raises(NotSupportedError, match=r"trg.*RAISE\(FAIL\) can't keep"):
            manager.apply_schema(text.format(name, "FAIL"))
    manager.apply_schema(text.format("s", "ROLLBACK"))
    manager.insert("s", {"k": 1, "v": 1})
    with pytest.raises(IntegrityError, match="no"):
        manager.insert("s", {"k": 2, "v": -1})
    assert manager.count("s") == 1


# -- upsert and update ---------------------------------------------------------------------------------------------


def test_upsert_looks_for_a_stated_id_on_every_shard(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE o (id INTEGER PRIMARY KEY, k INT, no INT, v INT, UNIQUE (k, no))", shard_key="k")
    manager.insert("o", {"id": 10, "k": 1, "no": 1})
    for k in range(2, 12):
        with pytest.raises(IntegrityError, match=r"o\.id"):
            manager.upsert("o", {"id": 10, "k": k, "no": 1}, conflict=["k", "no"])
    assert manager.upsert("o", {"id": "10", "k": 1, "no": 1, "v": 7}, conflict=["k", "no"]) == 10
    assert manager.upsert("o", {"id": 11, "k": 1, "no": 1, "v": 8}, conflict=["k", "no"]) == 10
    assert manager.upsert("o", {"id": 12, "k": 2, "no": 1, "v": 9}, conflict=["k", "no"]) == 12
    rows = manager.select("o", order_by="id")
    assert [(row["id"], row["k"], row["v"]) for row in rows] == [(10, 1, 8), (12, 2, 9)]


def test_upsert_draws_again_when_its_id_was_given_meanwhile(
    make_manager: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make_manager(num_shards=8)
    other = make_manager()
    manager.create_table("CREATE TABLE o (id INTEGER PRIMARY KEY, k INT, no INT, UNIQUE (k, no))", shard_key="k")
    first = manager.upsert("o", {"k": 1, "no": 1}, conflict=["k", "no"])
    taken = first + 1
    locks = manager._database.write_scope
    done = []

    def given_before_the_locks(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(other.insert("o", {"id": taken, "k": 5, "no": 1}))
        return locks(*args, **options)

    monkeypatch.setattr(manager._database, "write_scope", given_before_the_locks)
    assert manager.upsert("o", {"k": 2, "no": 1}, conflict=["k", "no"]) != taken
    ids = [row["id"] for row in manager.select("o")]
    assert done == [taken]
    assert len(ids) == len(set(ids)) == 3


def test_upsert_compares_keys_and_bears_an_ignored_row(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, name TEXT)")
    assert manager.upsert("u", {"id": 3, "name": "x"}, key="3") == 3
    with pytest.raises(RoutingError, match="leave one out"):
        manager.upsert("u", {"id": 3, "name": "x"}, key=4)
    assert manager.upsert("u", {"name": "new"}) not in (None, 3)
    manager.apply_schema("CREATE TRIGGER ut BEFORE INSERT ON u WHEN NEW.name = 'no' BEGIN SELECT RAISE(IGNORE); END")
    assert manager.upsert("u", {"id": 400, "name": "no"}) is None
    assert manager.upsert("u", {"name": "no"}) is None
    assert manager.count("u") == 2


def test_a_parameter_can_not_take_a_reserved_name(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n INT)")
    manager.insert("u", {"id": 1, "n": 1})
    with pytest.raises(ProgrammingError, match="_shardlite_s0"):
        manager.update("u", {"n": 8}, "id = :_shardlite_s0", parameters={"_shardlite_s0": 1})
    with pytest.raises(ProgrammingError, match="_shardlite_epoch"):
        manager.delete("u", "id = :_shardlite_epoch", parameters={"_shardlite_epoch": 1})
    assert manager.update("u", {"n": 8}, "id = :id", parameters={"id": 1}) == 1
    assert manager.get("u", 1) == {"id": 1, "n": 8}


def test_a_primary_key_of_a_reference_table_can_be_updated(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE ref (id INTEGER PRIMARY KEY, n INT)", kind="reference")
    manager.insert("ref", {"id": 1, "n": 1})
    assert manager.update("ref", {"id": 9}, {"id": 1}) == 1
    for shard in range(manager.num_shards):
        with manager.pool(shard).get_connection() as conn:
            assert [tuple(row) for row in conn.execute("SELECT * FROM ref")] == [(9, 1)]
    assert manager.insert("ref", {"n": 2}) == 10


# -- what conflicts do ---------------------------------------------------------------------------------------------


def test_null_is_not_routed_where_a_default_would_be_stored(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE z (k INT NOT NULL DEFAULT 5 PRIMARY KEY, v INT)")
    manager.create_table("CREATE TABLE y (k INT NOT NULL ON CONFLICT REPLACE DEFAULT 5 PRIMARY KEY, v INT)")
    for sql in ("INSERT OR REPLACE INTO z VALUES (NULL, 1)", "INSERT INTO y VALUES (NULL, 1)"):
        with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: [zy]\.k"):
            manager.execute(sql)
    with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: z\.k"):
        manager.execute("REPLACE INTO z VALUES (?, 1)", (None,))
    assert manager.execute("INSERT INTO z (v) VALUES (1)").rowcount == 1
    assert manager.get("z", 5) == {"k": 5, "v": 1}


def test_copies_take_no_default_of_their_own(manager: ShardManager) -> None:
    manager.create_table(
        "CREATE TABLE r2 (id INTEGER PRIMARY KEY, h NOT NULL DEFAULT (hex(randomblob(4))))", kind="reference"
    )
    manager.insert("r2", {"id": 1, "h": "a"})
    seen = ["a"]
    for sql in ("INSERT OR REPLACE INTO r2 VALUES (1, NULL)", "UPDATE OR REPLACE r2 SET h = NULL"):
        manager.execute(sql)
        copies = set()
        for shard in manager.shard_ids:
            with manager.pool(shard).get_connection_context() as conn:
                copies.add(tuple(conn.execute("SELECT id, h FROM r2").fetchone()))
        ((number, drawn),) = copies
        assert number == 1
        assert drawn not in seen
        seen.append(drawn)
    declared = "CREATE TABLE r3 (id INTEGER PRIMARY KEY, h NOT NULL ON CONFLICT REPLACE DEFAULT (random()))"
    with pytest.raises(NotSupportedError, match=r"r3 \(h\): ON CONFLICT REPLACE of a reference table"):
        manager.create_table(declared, kind="reference")
    manager.create_table(declared)


def same_outcome(manager: ShardManager, one_file: sqlite3.Connection, sql: str, *tables: str) -> None:
    """Run on both: both succeed, or both fail for a constraint; the rows are the same afterwards."""
    try:
        one_file.execute(sql)
    except sqlite3.IntegrityError as error:
        with pytest.raises(IntegrityError, match=re.escape(str(error))):
            manager.execute(sql)
    else:
        manager.execute(sql)
    for table in tables:
        stored = sorted(one_file.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
        assert sorted((tuple(row.values()) for row in manager.select(table)), key=repr) == stored, sql


def test_fail_keeps_what_one_file_keeps(manager: ShardManager) -> None:
    """A statement that says OR FAIL keeps the rows before the failure; a definition that says so is refused."""
    one_file = sqlite3.connect(":memory:", isolation_level=None)
    for ddl, kind in (
        ("CREATE TABLE p (a TEXT PRIMARY KEY, n INT UNIQUE)", "single"),
        ("CREATE TABLE q (a TEXT PRIMARY KEY, n INT)", "sharded"),
        ("CREATE TABLE r (a TEXT PRIMARY KEY, n INT)", "reference"),
    ):
        manager.create_table(ddl, kind=kind)
        one_file.execute(ddl)
    for name in "pqr":
        for sql in (
            f"INSERT OR FAIL INTO {name} VALUES ('a', 1), ('b', 2), ('a', 3), ('c', 4)",
            f"INSERT OR FAIL INTO {name} VALUES ('a', 9)",
            f"INSERT OR FAIL INTO {name} VALUES ('d', 4)",
            f"UPDATE OR FAIL {name} SET a = 'z'",
            f"UPDATE OR FAIL {name} SET n = n + 100",
        ):
            same_outcome(manager, one_file, sql, name)
        assert manager.count(name) == 3
    one_file.close()
    with pytest.raises(NotSupportedError, match=r"f \(a\): ON CONFLICT FAIL"):
        manager.create_table("CREATE TABLE f (a TEXT PRIMARY KEY ON CONFLICT FAIL, n INT)")
    with pytest.raises(NotSupportedError, match=r"f \(n, a\): ON CONFLICT FAIL"):
        manager.create_table("CREATE TABLE f (a TEXT PRIMARY KEY, n INT, UNIQUE (n, a) ON CONFLICT FAIL)")


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_fail_keeps_what_a_trigger_has_written(manager: ShardManager, when: str) -> None:
    """On one file the rows of the trigger stay when INSERT OR FAIL fails after them."""
    one_file = sqlite3.connect(":memory:", isolation_level=None)
    for ddl in (
        "CREATE TABLE a (k INTEGER PRIMARY KEY, v TEXT NOT NULL CHECK (v <> 'bad'))",
        "CREATE TABLE log (k INTEGER PRIMARY KEY)",
        f"CREATE TRIGGER note {when} INSERT ON a BEGIN INSERT INTO log VALUES (NEW.k), (NEW.k % 5); END",
        "CREATE TABLE b (k INTEGER PRIMARY KEY, v TEXT NOT NULL)",
        f"CREATE TRIGGER look {when} INSERT ON b BEGIN SELECT RAISE(ABORT, 'no') WHERE NEW.v = 'no'; END",
    ):
        one_file.execute(ddl)
        if ddl.startswith("CREATE TABLE"):
            manager.create_table(ddl, kind="single")
        else:
            manager.apply_schema(ddl)
    for values in ("(3, 'ok')", "(7, 'ok')", "(7, 'ok')", "(12, 'ok')", "(20, 'bad')", "(31, NULL)"):
        same_outcome(manager, one_file, f"INSERT OR FAIL INTO a VALUES {values}", "a", "log")
    assert manager.count("log", {"k": 3}) == 1  # what ABORT would have undone
    for values in ("(1, 'yes')", "(1, 'again')", "(2, 'no')", "(3, NULL)"):
        same_outcome(manager, one_file, f"INSERT OR FAIL INTO b VALUES {values}", "b")
    one_file.close()
    with pytest.raises(NotSupportedError, match="trigger late: OR FAIL can't keep"):
        manager.apply_schema("CREATE TRIGGER late AFTER INSERT ON b BEGIN INSERT OR FAIL INTO log VALUES (NEW.k); END")


@pytest.mark.parametrize("action", ["REPLACE", "IGNORE", "ROLLBACK"])
def test_a_declared_conflict_of_an_id_that_is_no_key_is_refused(manager: ShardManager, action: str) -> None:
    ddl = f"CREATE TABLE t (id INTEGER PRIMARY KEY ON CONFLICT {action}, k INT NOT NULL)"
    with pytest.raises(NotSupportedError, match=rf"t \(id\): ON CONFLICT {action}"):
        manager.create_table(ddl, shard_key="k")
    with pytest.raises(NotSupportedError, match=rf"t \(id\): ON CONFLICT {action}"):
        manager.create_table(
            f"CREATE TABLE t (id INTEGER, k INT, PRIMARY KEY (id) ON CONFLICT {action})", shard_key="k"
        )
    manager.create_table(ddl)


def test_a_key_that_the_boundaries_can_not_serve_is_refused(make_manager: Make) -> None:
    manager = make_manager(strategy=RangeStrategy([5, 50, 300]))
    with pytest.raises(NotSupportedError, match=r"t: the key \(k\).*as TEXT BINARY keys: 300 comes after 50"):
        manager.create_table("CREATE TABLE t (k TEXT PRIMARY KEY)")
    manager.create_table("CREATE TABLE t (k INTEGER PRIMARY KEY)")
    assert manager.check().problems == ()


def test_check_reports_keys_that_can_not_be_placed(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(strategy=RangeStrategy([5, 50, 300]))
    ddl = importlib.import_module("shardlite.execute.ddl")
    monkeypatch.setattr(ddl, "_require_routes", lambda _state, _table: None)
    manager.create_table("CREATE TABLE t (k TEXT PRIMARY KEY)")
    (problem,) = manager.check().problems
    assert "t: the layout can't place its keys" in str(problem)


def test_the_key_of_execute_is_compared_as_a_key(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE u (id INTEGER PRIMARY KEY, n INT)")
    manager.create_table("CREATE TABLE ref (id INTEGER PRIMARY KEY, n INT)", kind="reference")
    for key in range(2, 20):
        for sql in ("SELECT 1 FROM u WHERE id = 1", "INSERT INTO u VALUES (1, 1)", "DELETE FROM u WHERE id = 1"):
            with pytest.raises(RoutingError, match="isn't held to key="):
                manager.execute(sql, key=key)
    for sql in ("SELECT * FROM u", "SELECT * FROM u WHERE id IN (1, 2)", "INSERT INTO u (n) VALUES (1)"):
        with pytest.raises(RoutingError, match="isn't held to key=1"):
            manager.execute(sql, key=1)
    with pytest.raises(RoutingError):
        manager.execute("UPDATE ref SET n = 1", key=1)
    assert manager.execute("INSERT INTO u VALUES (?, 1)", (1,), key="1").rowcount == 1
    assert manager.execute("UPDATE u SET n = 2 WHERE id = :id", {"id": 1}, key=1).rowcount == 1
    assert [tuple(row) for row in manager.execute("SELECT n FROM u WHERE id = 1", key=1)] == [(2,)]


# -- what is remembered and said -----------------------------------------------------------------------------------


def test_a_remembered_key_follows_its_row(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE nk (a)")
    manager.insert("nk", {"a": 1}, key="k")
    manager.execute("UPDATE nk SET rowid = 77")
    assert manager.select("nk", key="k") == [{"a": 1}]
    manager.insert("nk", {"a": 2})  # without a key: it takes the place of the row that has one
    manager.execute("UPDATE OR REPLACE nk SET rowid = 77 WHERE a = 2")
    assert manager.select("nk", key="k") == []
    manager.insert("nk", {"a": 3}, key="n")
    manager.apply_schema("ALTER TABLE nk RENAME TO nn")
    manager.execute("UPDATE nn SET rowid = 99 WHERE a = 3")
    assert manager.select("nn", key="n") == [{"a": 3}]


def test_keys_that_are_declared_otherwise_are_named(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE p (k TEXT PRIMARY KEY)")
    child = "CREATE TABLE c (k TEXT COLLATE NOCASE REFERENCES p (k), v INT)"
    with pytest.raises(NotSupportedError, match=r"c \(k\) is TEXT NOCASE, p is TEXT BINARY"):
        manager.create_table(child, shard_key="k")
    with pytest.raises(NotSupportedError, match=r"c \(k\) is INTEGER BINARY, p is TEXT BINARY"):
        manager.create_table("CREATE TABLE c (k INT PRIMARY KEY REFERENCES p (k))", kind="sharded")


def test_a_replaced_parent_never_changes_a_shard_key(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE p (id INTEGER PRIMARY KEY ON CONFLICT REPLACE, n INT)")
    child = "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id) ON DELETE {})"
    with pytest.raises(NotSupportedError, match="would change c's shard key"):
        manager.create_table(child.format("SET NULL"), shard_key="p")
    manager.create_table(child.format("CASCADE"), shard_key="p")
