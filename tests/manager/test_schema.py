"""Schema changes: where tables go, what is refused, and all shards or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import (
    IntegrityError,
    LayoutMismatchError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    RoutingError,
)
from shardlite.execute.writes import StaleEpochError

Make = Callable[..., ShardManager]


def schema_of(manager: ShardManager, shard: int) -> list[tuple[Any, ...]]:
    """Return everything that a shard file's own schema says."""
    with manager.pool(shard).get_connection_context() as conn:
        rows = conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    return [tuple(row) for row in rows]


def everything(manager: ShardManager) -> tuple[Any, ...]:
    """Return all that a failed change must leave as it was: each shard's schema, the catalog, the epoch, the jobs."""
    catalog = manager.database.catalog
    return (
        [schema_of(manager, shard) for shard in manager.shard_ids],
        dict(manager.tables),
        catalog.schema,
        catalog.epoch,
        catalog.jobs(),
    )


def assert_consistent(manager: ShardManager) -> None:
    """All shards have one schema, and the catalog knows the same tables; nothing is pending."""
    schemas = [schema_of(manager, shard) for shard in manager.shard_ids]
    assert all(schema == schemas[0] for schema in schemas)
    own = {row[1] for row in schemas[0] if row[0] == "table" and not row[1].startswith(("_shardlite_", "sqlite_"))}
    assert own == set(manager.tables)
    assert own == {item.name for item in manager.database.catalog.schema if item.type == "table"}
    indexes = {row[1] for row in schemas[0] if row[0] == "index" and row[3] and not row[1].startswith("_shardlite_")}
    assert indexes == {item.name for item in manager.database.catalog.schema if item.type == "index"}
    assert manager.database.catalog.jobs() == ()
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            assert conn.execute("SELECT epoch FROM _shardlite_meta").fetchone()[0] == manager.database.catalog.epoch


# -- placement ---------------------------------------------------------------------------------------------------------


def test_defaults(manager: ShardManager) -> None:
    users = manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    assert (users.kind, users.key_columns) == ("sharded", ("id",))
    pairs = manager.create_table("CREATE TABLE pairs (a TEXT, b INT, PRIMARY KEY (a, b))")
    assert (pairs.kind, pairs.key_columns) == ("sharded", ("a",))
    notes = manager.create_table("CREATE TABLE notes (body)")
    assert notes.kind == "single"
    assert "PRIMARY KEY" in notes.reason
    emails = manager.create_table("CREATE TABLE emails (id INTEGER PRIMARY KEY, address TEXT UNIQUE)")
    assert emails.kind == "single"
    assert "UNIQUE (address)" in emails.reason
    orders = manager.create_table("CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users)")
    assert (orders.kind, orders.key_columns) == ("sharded", ("user_id",))
    assert orders.group == users.group
    tree = manager.create_table("CREATE TABLE tree (id INTEGER PRIMARY KEY, parent INT REFERENCES tree)")
    assert tree.kind == "single"
    assert_consistent(manager)


def test_stated_keys(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    with pytest.raises(NotSupportedError, match=r"logins.*UNIQUE \(name\)"):
        manager.create_table("CREATE TABLE logins (user_id INT, name TEXT UNIQUE)", shard_key="user_id")
    checked = manager.create_table(
        "CREATE TABLE logins (user_id INT, name TEXT UNIQUE)", shard_key="USER_ID", constraints="checked"
    )
    assert checked.key_columns == ("user_id",)
    assert checked.unenforced == ("UNIQUE (name)",)
    composite = manager.create_table("CREATE TABLE c (a INT, b TEXT, v)", shard_key=("b", "a"))
    assert composite.key_columns == ("b", "a")
    with pytest.raises(ProgrammingError, match="no column 'nope'"):
        manager.create_table("CREATE TABLE d (a)", shard_key="nope")
    with pytest.raises(ProgrammingError, match="twice"):
        manager.create_table("CREATE TABLE d (a)", shard_key=("a", "A"))
    with pytest.raises(NotSupportedError, match="generated"):
        manager.create_table("CREATE TABLE d (a, b AS (a + 1))", shard_key="b")
    for bad in ({"kind": "huge"}, {"constraints": "maybe"}, {"shard_key": ()}, {"shard_key": 5}):
        with pytest.raises(ProgrammingError):
            manager.create_table("CREATE TABLE d (a)", **bad)
    with pytest.raises(ProgrammingError, match="no shard key"):
        manager.create_table("CREATE TABLE d (a)", shard_key="a", kind="reference")
    assert_consistent(manager)
    assert set(manager.tables) == {"users", "logins", "c"}


def test_colocation(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    manager.create_table("CREATE TABLE codes (code TEXT PRIMARY KEY)", kind="reference")
    with pytest.raises(LayoutMismatchError, match=r"INTEGER.*|TEXT"):
        manager.create_table("CREATE TABLE p (u TEXT)", shard_key="u", colocate_with="users")
    with pytest.raises(ProgrammingError, match="no such table"):
        manager.create_table("CREATE TABLE p (u INT)", shard_key="u", colocate_with="nobody")
    with pytest.raises(ProgrammingError, match="reference"):
        manager.create_table("CREATE TABLE p (u TEXT)", shard_key="u", colocate_with="codes")
    posts = manager.create_table("CREATE TABLE posts (u INT)", shard_key="u", colocate_with="users")
    for key in range(50):
        assert manager.shard_for("users", key) == manager.shard_for("posts", key)
    assert posts.kind == "sharded"


def test_explicit_keys(manager: ShardManager) -> None:
    """A table without a key column takes a key with each row, and is found by it again."""
    table = manager.create_table("CREATE TABLE events (what TEXT)", kind="sharded")
    assert table.explicit_key
    for number in range(20):
        manager.insert("events", {"what": f"e{number}"}, key=f"k{number % 5}")
    assert manager.count("events") == 20
    assert sorted(row["what"] for row in manager.select("events", key="k3")) == ["e13", "e18", "e3", "e8"]
    assert manager.update("events", {"what": "new"}, key="k3") == 4
    assert manager.delete("events", key="k3") == 4
    assert manager.count("events") == 16
    assert "key" not in manager.select("events", limit=1)[0]
    with pytest.raises(RoutingError, match="key="):
        manager.insert("events", {"what": "lost"})
    manager.apply_schema("ALTER TABLE events RENAME TO happenings; CREATE TABLE single (v)")
    assert [row["what"] for row in manager.select("happenings", key="k0", limit=1)] == ["e0"]
    manager.create_table("CREATE TABLE events (what TEXT)", kind="sharded")
    manager.insert("events", {"what": "again"}, key="k0")
    assert manager.delete("happenings", key="k0") == 4
    assert manager.count("events") == 1
    manager.insert("single", {"v": 1}, key="s")
    assert manager.select("single", key="s") == [{"v": 1}]
    assert manager.insert_many("single", [{"v": 2}]) == 1
    assert manager.count("single") == 2
    manager.apply_schema("DROP TABLE events; DROP TABLE happenings; DROP TABLE single")
    for shard in manager.shard_ids:
        assert [row[1] for row in schema_of(manager, shard)] == ["_shardlite_meta"]


def test_foreign_keys_out_of_sight(manager: ShardManager) -> None:
    """A foreign key that no shard can see is not in the shards' texts, but in the catalog's."""
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    ddl = (
        "CREATE TABLE likes (id INTEGER PRIMARY KEY, -- a comment, REFERENCES users\n"
        " user_id INT CONSTRAINT u REFERENCES users (id) ON DELETE SET NULL NOT NULL, post INT DEFAULT 5,"
        " \"FOREIGN\" TEXT DEFAULT 'REFERENCES x', CHECK (post > 0),"
        " CONSTRAINT f FOREIGN KEY (post) REFERENCES users ON UPDATE NO ACTION DEFERRABLE INITIALLY DEFERRED)"
    )
    with pytest.raises(NotSupportedError, match="FOREIGN KEY"):
        manager.create_table(ddl, shard_key="id")
    likes = manager.create_table(ddl, shard_key="id", constraints="checked")
    assert len(likes.unenforced) == 2
    assert len(likes.foreign_keys) == 2
    for shard in manager.shard_ids:
        text = next(row[3] for row in schema_of(manager, shard) if row[1] == "likes")
        assert "REFERENCES users (id)" not in text
        assert "FOREIGN KEY" not in text
        assert "NOT NULL" in text
        assert "CHECK" in text
    assert ddl in [item.sql for item in manager.database.catalog.schema]
    manager.insert("likes", {"user_id": 7, "post": 1})
    with pytest.raises(IntegrityError, match="NOT NULL"):
        manager.insert("likes", {"post": 1, "user_id": None})


def test_enforced_foreign_keys(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    manager.create_table("CREATE TABLE countries (code TEXT PRIMARY KEY)", kind="reference")
    manager.create_table(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users ON DELETE CASCADE, "
        "country TEXT REFERENCES countries)",
        shard_key="user_id",
    )
    manager.insert("countries", {"code": "de"})
    for user in range(12):
        manager.insert("users", {"id": user})
        manager.insert("orders", {"user_id": user, "country": "de"})
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        manager.insert("orders", {"user_id": 99, "country": "de"})
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        manager.insert("orders", {"user_id": 1, "country": "xx"})
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        manager.delete("countries", {"code": "de"})
    assert manager.count("countries") == 1
    assert manager.delete("users", {"id": (">=", 6)}) == 6
    assert manager.count("orders") == 6


def test_a_parent_made_later_must_be_in_sight(manager: ShardManager) -> None:
    """A child whose shards enforce a foreign key can't get a parent that lives elsewhere."""
    users = "CREATE TABLE users (id INTEGER PRIMARY KEY, v TEXT)"
    manager.apply_schema(f"{users}; CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users)")
    assert manager.tables["orders"].key_columns == ("user_id",)
    manager.apply_schema("DROP TABLE users")
    before = everything(manager)
    with pytest.raises(NotSupportedError, match=r"orders.*users.*single"):
        manager.create_table(users, kind="single")
    with pytest.raises(NotSupportedError, match=r"orders.*users"):
        manager.create_table(users, shard_key="v", constraints="checked")
    assert everything(manager) == before
    manager.create_table(users)
    manager.insert("users", {"id": 3})
    manager.insert("orders", {"user_id": 3})


def test_forward_and_self_references(manager: ShardManager) -> None:
    """Within one text the order doesn't matter; a ring keeps its tables whole."""
    manager.apply_schema(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT REFERENCES users); "
        "CREATE TABLE users (id INTEGER PRIMARY KEY);"
        "CREATE TABLE nodes (tenant INT, id INT, up INT, PRIMARY KEY (tenant, id), "
        "FOREIGN KEY (tenant, up) REFERENCES nodes (tenant, id))"
    )
    assert manager.tables["orders"].key_columns == ("user_id",)
    assert manager.tables["nodes"].key_columns == ("tenant",)
    with pytest.raises(NotSupportedError, match="create it first"):
        manager.apply_schema("CREATE TABLE children (id INTEGER PRIMARY KEY, p INT REFERENCES parents)")
    manager.apply_schema("ALTER TABLE users RENAME COLUMN id TO uid")
    assert manager.tables["users"].key_columns == ("uid",)
    manager.insert("users", {"uid": 1})
    manager.insert("orders", {"user_id": 1})
    with pytest.raises(IntegrityError):
        manager.insert("orders", {"user_id": 2})
    manager.apply_schema("ALTER TABLE users RENAME TO people; ALTER TABLE orders RENAME COLUMN user_id TO person")
    assert manager.tables["orders"].key_columns == ("person",)
    with pytest.raises(IntegrityError):
        manager.insert("orders", {"person": 2})
    manager.insert("orders", {"person": 1})
    assert_consistent(manager)


@pytest.mark.parametrize(
    "body",
    [
        "INSERT INTO log (user_id, what) VALUES (NEW.id, 'new')",
        "INSERT INTO users (id) VALUES (NEW.id + 1000)",
        "UPDATE users SET n = n + 1",
        "UPDATE notes SET n = n + 1",
        "DELETE FROM log WHERE user_id = NEW.n",
        "UPDATE codes SET n = 1",
        "SELECT RAISE(ABORT, 'no') FROM notes",
    ],
)
def test_triggers_that_reach_further_are_refused(manager: ShardManager, body: str) -> None:
    manager.apply_schema(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, n INT); CREATE TABLE notes (n INT);"
        "CREATE TABLE log (id INTEGER PRIMARY KEY, user_id INT REFERENCES users, what TEXT)"
    )
    manager.create_table("CREATE TABLE codes (code INT PRIMARY KEY, n INT)", kind="reference")
    before = everything(manager)
    with pytest.raises(NotSupportedError, match=r"\btrg\b"):
        manager.apply_schema(f"CREATE TRIGGER trg AFTER INSERT ON users BEGIN {body}; END")
    assert everything(manager) == before


def test_triggers_that_stay_on_the_row(manager: ShardManager) -> None:
    manager.apply_schema(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, n INT, twice INT);"
        "CREATE TRIGGER t AFTER UPDATE OF n ON users BEGIN UPDATE users SET twice = 2 * n WHERE id = NEW.id; END;"
        "CREATE TRIGGER c BEFORE INSERT ON users WHEN NEW.n < 0 BEGIN SELECT RAISE(ABORT, 'negative n'); END"
    )
    for user in range(10):
        manager.insert("users", {"id": user, "n": user})
    assert manager.update("users", {"n": 21}, {"id": (">", 4)}) == 5
    assert {row["twice"] for row in manager.select("users", {"id": (">", 4)})} == {42}
    with pytest.raises(IntegrityError, match="negative n"):
        manager.insert("users", {"id": 11, "n": -1})
    assert manager.count("users") == 10


def test_a_row_that_a_trigger_ignores(manager: ShardManager) -> None:
    for name, key in (("k", "k TEXT PRIMARY KEY"), ("i", "k INTEGER PRIMARY KEY"), ("w", "k INT PRIMARY KEY, v2 INT")):
        manager.apply_schema(
            f"CREATE TABLE {name} ({key}, v INT); CREATE TRIGGER t{name} BEFORE INSERT ON {name} WHEN NEW.v = 5 "
            "BEGIN SELECT RAISE(IGNORE); END"
        )
        assert manager.insert(name, {"k": 1, "v": 4}) == 1
        assert manager.insert(name, {"k": 2, "v": 5}) is None
        assert manager.count(name) == 1
    assert manager.insert("i", {"v": 5}) is None
    assert manager.insert("i", {"v": 6}) > 2


# -- changes -----------------------------------------------------------------------------------------------------------


def test_if_not_exists_and_same_name(manager: ShardManager) -> None:
    ddl = "CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b)"
    first = manager.create_table(ddl)
    epoch = manager.database.catalog.epoch
    assert manager.create_table(ddl) == first
    assert manager.create_table(ddl, shard_key="A") == first
    assert manager.database.catalog.epoch == epoch
    with pytest.raises(ProgrammingError, match="another kind or key"):
        manager.create_table(ddl, shard_key="b")
    with pytest.raises(ProgrammingError, match="another kind or key"):
        manager.create_table(ddl, kind="single")
    with pytest.raises(OperationalError, match="already exists"):
        manager.create_table("CREATE TABLE T (x INTEGER PRIMARY KEY)")
    manager.apply_schema("DROP TABLE IF EXISTS nobody")
    assert manager.database.catalog.epoch == epoch


def test_not_a_create_table(manager: ShardManager) -> None:
    for ddl in (
        "CREATE TABLE a (x); CREATE TABLE b (x)", "", "SELECT 1", "CREATE VIEW v AS SELECT 1", "DROP TABLE t",
        "CREATE TABLE a AS SELECT 1 AS x", "CREATE TABLE a AS VALUES (1)", "CREATE TEMP TABLE a (x)",
        "CREATE TABLE _shardlite_a (x)", "CREATE TABLE a (x", "CREATE TABLE a (x) garbage",
    ):  # fmt: skip
        with pytest.raises((ProgrammingError, NotSupportedError, OperationalError)):
            manager.create_table(ddl)
    for sql in (
        "VACUUM", "BEGIN", "INSERT INTO t VALUES (1)", "PRAGMA user_version = 3", "ATTACH 'x' AS y",
        "CREATE TABLE a AS VALUES (1)", "ALTER TABLE nobody ADD COLUMN x", "DROP TABLE _shardlite_meta",
        "CREATE TABLE temp.a (x)", "CREATE TEMP VIEW v AS SELECT 1", "CREATE VIEW temp.v AS SELECT 1",
        "CREATE INDEX i ON nobody (x)", "CREATE TABLE a (x); DROP TABLE nobody", "CREATE TRIGGER t",
    ):  # fmt: skip
        with pytest.raises((ProgrammingError, NotSupportedError, OperationalError)):
            manager.apply_schema(sql)
    assert dict(manager.tables) == {}
    assert_consistent(manager)


def test_alter_and_drop(manager: ShardManager) -> None:
    manager.apply_schema("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INT)")
    manager.insert_many("t", ({"id": n, "a": f"a{n}", "b": n} for n in range(20)))
    manager.apply_schema(
        "ALTER TABLE t ADD COLUMN c INT DEFAULT 7; ALTER TABLE t RENAME COLUMN a TO aa; ALTER TABLE t DROP COLUMN b;"
        "CREATE INDEX by_aa ON t (aa); CREATE VIEW v AS SELECT aa FROM t"
    )
    assert manager.get("t", 5) == {"id": 5, "aa": "a5", "c": 7}
    manager.insert("t", {"id": 50, "aa": "new"})
    assert manager.count("t", {"c": 7}) == 21
    manager.apply_schema("ALTER TABLE t RENAME TO u")
    assert manager.count("u") == 21
    with pytest.raises(ProgrammingError, match="no such table: t"):
        manager.count("t")
    with pytest.raises((NotSupportedError, OperationalError), match="id"):
        manager.apply_schema("ALTER TABLE u DROP COLUMN id")
    with pytest.raises(NotSupportedError, match=r"UNIQUE \(aa\)"):
        manager.apply_schema("CREATE UNIQUE INDEX ux ON u (aa)")
    manager.apply_schema("CREATE UNIQUE INDEX ux ON u (aa, id); ANALYZE; REINDEX")
    assert_consistent(manager)
    manager.apply_schema("DROP INDEX ux; DROP INDEX by_aa; DROP VIEW v; DROP TABLE u")
    assert dict(manager.tables) == {}


def test_a_dropped_unique_index_is_forgotten(manager: ShardManager) -> None:
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)", constraints="checked")
    manager.apply_schema("CREATE UNIQUE INDEX ux ON t (a)")
    assert manager.tables["t"].unenforced == ("UNIQUE (a)",)
    manager.apply_schema("DROP INDEX ux")
    assert manager.tables["t"].unenforced == ()
    assert manager.tables["t"].unique == ()


def test_names_change_hands(manager: ShardManager) -> None:
    """A renamed table takes its rows and its ids along, whatever takes its name in the same change."""
    ddl = "CREATE TABLE a (id INTEGER PRIMARY KEY, v TEXT)"
    manager.apply_schema(ddl + "; CREATE TABLE b (k TEXT PRIMARY KEY, v)")
    ids = [manager.insert("a", {"v": "old"}) for _ in range(3)]
    manager.insert("b", {"k": "x", "v": 1})
    manager.apply_schema("ALTER TABLE a RENAME TO a_old; " + ddl)
    assert set(manager.tables) == {"a", "a_old", "b"}
    assert manager.count("a") == 0
    assert manager.count("a_old") == 3
    assert manager.insert("a_old", {"v": "more"}) > max(ids)
    manager.apply_schema("ALTER TABLE a RENAME TO tmp; ALTER TABLE b RENAME TO a; ALTER TABLE tmp RENAME TO b")
    assert manager.select("a") == [{"k": "x", "v": 1}]
    assert manager.tables["b"].key_columns == ("id",)
    manager.insert("b", {"v": "new"})
    manager.apply_schema("DROP TABLE b; ALTER TABLE a_old RENAME TO b; ALTER TABLE b RENAME TO B2")
    assert manager.count("B2") == 4
    assert set(manager.tables) == {"a", "B2"}
    assert manager.insert("b2", {"v": "x"}) > max(ids)
    assert_consistent(manager)


def test_a_single_table_gets_no_key_to_rows_elsewhere(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.apply_schema("CREATE TABLE users (id INTEGER PRIMARY KEY); CREATE TABLE notes (body)")
    before = everything(manager)
    with pytest.raises(NotSupportedError, match=r"notes.*FOREIGN KEY \(u\)"):
        manager.apply_schema("ALTER TABLE notes ADD COLUMN u INT REFERENCES users")
    assert everything(manager) == before


def test_failure_on_a_later_shard_leaves_all_as_it_was(make_manager: Make) -> None:
    manager = make_manager(num_shards=4)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, g INT)", shard_key="g")
    last = next(key for key in range(1000) if manager.shard_for("t", key) == 3)
    manager.insert_many("t", ({"id": n, "g": n} for n in range(60) if n != last))
    manager.insert_many("t", [{"id": 100, "g": last}, {"id": 101, "g": last}])
    before = everything(manager)
    with pytest.raises(IntegrityError, match="shard 3"):
        manager.apply_schema("CREATE TABLE other (x); ALTER TABLE t ADD COLUMN n; CREATE UNIQUE INDEX ux ON t (g)")
    assert everything(manager) == before
    manager.delete("t", {"id": 101})
    manager.apply_schema("CREATE UNIQUE INDEX ux ON t (g)")
    assert_consistent(manager)


def test_a_commit_that_fails_on_a_later_shard_is_completed(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was synced before the first COMMIT, so a half-made change is ended and not left."""
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    from shardlite.connection.connection import Connection

    run, commits = Connection.run, []

    def failing(conn: Any, sql: str, params: Any = ()) -> Any:
        if sql == "COMMIT" and "shard_" in conn.path:
            commits.append(conn.path)
            if len(commits) == 2:
                raise sqlite3.OperationalError("disk I/O error")
        return run(conn, sql, params)

    monkeypatch.setattr(Connection, "run", failing)
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        manager.apply_schema("ALTER TABLE t ADD COLUMN a")
    monkeypatch.undo()
    assert "a" in manager.tables["t"].by_name
    assert_consistent(manager)
    manager.insert("t", {"id": 1, "a": 2})


def test_a_job_that_nobody_ends_is_ended_by_the_next_change(make_manager: Make) -> None:
    """A process that died after it recorded its change, before any shard committed, holds nobody up."""
    manager = make_manager(num_shards=2)
    manager.database.catalog.add_job(
        "ddl", {"epoch": manager.database.catalog.epoch + 1, "statements": ["CREATE TABLE ghost (x)"], "tables": [],
                "renamed": {}, "schema": []},
    )  # fmt: skip
    manager.apply_schema("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    assert set(manager.tables) == {"t"}
    assert_consistent(manager)


def test_writes_by_an_old_state_are_refused(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    state = manager.database.current()
    manager.apply_schema("CREATE TABLE u (id INTEGER PRIMARY KEY)")
    with pytest.raises(StaleEpochError), manager.database.write_scope([0, 1], state):
        pass


def test_reference_copies_are_equal(manager: ShardManager) -> None:
    """Defaults that differ from one evaluation to the next are evaluated once for all copies."""
    manager.create_table(
        "CREATE TABLE r (id INTEGER PRIMARY KEY, k TEXT UNIQUE, v INT DEFAULT (random()), "
        "t TEXT DEFAULT CURRENT_TIMESTAMP, w TEXT DEFAULT (hex(randomblob(8))), n INT)",
        kind="reference",
    )
    manager.insert("r", {"k": "one"})
    assert manager.insert_many("r", ({"k": f"many{n}"} for n in range(5))) == 5
    manager.upsert("r", {"k": "up"}, conflict="k")
    manager.upsert("r", {"k": "up", "n": 5}, conflict="k")
    manager.upsert("r", {"k": "one", "n": 6}, conflict="k")
    manager.upsert("r", {"k": "one"}, conflict="k")
    manager.execute("INSERT INTO r (k, v, t, w) VALUES ('sql too', 1, 'x', 'y')")
    assert manager.insert("r", {"k": "after"}) == 9
    manager.insert_many("r", [{"id": None, "k": "none"}, {"id": 50, "k": "fifty"}])
    manager.upsert("r", {"k": "up again"}, conflict="k")
    assert manager.execute("INSERT INTO r (k) VALUES ('sql')").rowcount == 1
    with pytest.raises(NotSupportedError, match="random"):
        manager.update("r", {"n": 1}, "v > random()")
    with pytest.raises(NotSupportedError, match="random"):
        manager.delete("r", "random() > 0")
    copies = []
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            copies.append([tuple(row) for row in conn.execute("SELECT * FROM r ORDER BY id")])
    assert all(copy == copies[0] for copy in copies)
    assert len(copies[0]) == 13
    assert [row["n"] for row in manager.select("r", {"k": ["one", "up"]}, order_by="k")] == [6, 5]


def test_virtual_tables_are_single(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    try:
        manager.apply_schema("CREATE VIRTUAL TABLE f USING fts5(body)")
    except OperationalError:
        pytest.skip("this SQLite has no FTS5")
    assert manager.tables["f"].kind == "single"
    manager.insert("f", {"body": "hello world"})
    assert manager.insert_many("f", [{"body": "hello again"}]) == 1
    assert len(manager.execute("SELECT body FROM f WHERE f MATCH 'hello'").fetchall()) == 2
    with pytest.raises(ProgrammingError, match="virtual table"):
        manager.insert("f", {"body": "x"}, key=1)
    with pytest.raises(NotSupportedError, match="virtual"):
        manager.create_table("CREATE VIRTUAL TABLE g USING fts5(body)", kind="reference")
    manager.apply_schema("DROP TABLE f")
    assert_consistent(manager)
