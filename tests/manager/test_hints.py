"""Kind, key and colocation said in a comment of the CREATE TABLE, which plain SQLite ignores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import LayoutMismatchError, NotSupportedError, ProgrammingError
from shardlite.sql.hints import Hint, hint_of, settled, with_hint, without_hints
from shardlite.topology import export_sqlite, import_sqlite

Make = Callable[..., ShardManager]

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)"
BODY = "id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, total"


def text_of(manager: ShardManager, name: str = "orders") -> str:
    return str(manager.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).scalar())


PLACES = (
    "CREATE TABLE orders ({body} {hint})",
    "CREATE TABLE orders ({hint} {body})",
    "CREATE TABLE orders ({body}) {hint}",
    "CREATE TABLE orders {hint} ({body})",
    "CREATE {hint} TABLE orders ({body})",
    "CREATE TABLE {hint} IF NOT EXISTS main.orders ({body}){hint2}",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, {hint} user_id INTEGER REFERENCES users, CHECK (id IN (1, 2, 3)))",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "hint",
    ["/* shardlite: key=user_id, colocate_with=users */", "/*shardlite:KEY = 'User_Id',colocate_with=\"users\"*/"],
)
def test_anywhere_inside_the_statement(manager: ShardManager, place: str, hint: str) -> None:
    ddl = place.format(body=BODY, hint=hint, hint2="--shardlite: constraints=checked\n")
    with contextlib.closing(sqlite3.connect(":memory:")) as plain:
        plain.execute(ddl)  # plain SQLite takes it as it is
    manager.execute(USERS)
    manager.execute(ddl)
    table = manager.tables["orders"]
    assert (table.kind, table.key_columns) == ("sharded", ("user_id",))
    assert table.constraints == ("checked" if "{hint2}" in place else "strict")
    stored = hint_of(text_of(manager))
    assert stored is not None
    assert list(map(str.lower, stored.key)) == ["user_id"]
    assert stored.colocate_with == "users"
    assert manager.check().ok


def test_line_comments_and_scripts(manager: ShardManager) -> None:
    manager.apply_schema(
        """
        -- The people.
        CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE codes ( -- shardlite: kind=reference
            code TEXT, n INT);
        CREATE TABLE settings (name TEXT PRIMARY KEY, value) -- shardlite: kind=single
        ;
        CREATE TABLE logins (
            user_id INT,
            -- shardlite: key=user_id, constraints=checked
            mail TEXT UNIQUE -- shardlite says nothing here
        );
        CREATE TABLE parts (tenant TEXT, id INT, v /* shardlite: key=(tenant, id) */)
        """
    )
    kinds = {table.name: (str(table.kind), table.key_columns) for table in manager.tables.values()}
    assert kinds == {
        "users": ("sharded", ("id",)),
        "codes": ("reference", ()),
        "settings": ("single", ()),
        "logins": ("sharded", ("user_id",)),
        "parts": ("sharded", ("tenant", "id")),
    }
    assert manager.tables["logins"].unenforced == ("UNIQUE (mail)",)
    assert "shardlite: kind=single" in text_of(manager, "settings")
    assert manager.check().ok


def test_inside_it_stays_as_written(manager: ShardManager) -> None:
    ddl = "CREATE TABLE t (a, -- shardlite:  kind=reference\n  b /* and so on */ TEXT)"
    manager.execute(ddl)
    with contextlib.closing(sqlite3.connect(":memory:")) as plain:
        plain.execute(ddl)
        assert text_of(manager, "t") == plain.execute("SELECT sql FROM sqlite_schema").fetchone()[0] == ddl


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        ("shard_key=id", r"shard_key is no word of a hint: it takes key, kind"),
        ("key", "key needs a value"),
        ("key=", "the value of key is no name"),
        ("key=(id", "the value of key is no name"),
        ("key=()", "the value of key is no name"),
        ("key=(id user_id)", "the value of key is no name"),
        ("key=5", "the value of key is no name"),
        ("key=id kind=sharded", "a comma is missing"),
        ("key=id,", "nothing is no word"),
        ("", "nothing is no word"),
        ("key=id, key=user_id", "key is said twice"),
        ("kind=huge", "kind must be one of sharded, reference, single, not huge"),
        ("constraints=loose", "constraints must be one of strict, checked.*not loose"),
        ("kind=(sharded, single)", "kind takes one name, not 2"),
        ("kind=reference, key=id", "a reference table has no key"),
        ("kind=single, colocate_with=users", "a single table has no colocate_with"),
        ("key=nope", "no column 'nope'"),
        ("key=user_id, colocate_with=nobody", "nobody"),
    ],
)
def test_wrong_hints_are_named(make_manager: Make, hint: str, why: str) -> None:
    manager = make_manager(num_shards=2)
    manager.execute(USERS)
    ddl = f"CREATE TABLE orders ({BODY} /* shardlite: {hint} */)"
    for run in (manager.execute, manager.apply_schema, manager.create_table):
        with pytest.raises(ProgrammingError, match=why):
            run(ddl)
    assert set(manager.tables) == {"users"}


def test_a_strict_hint_refuses_as_the_argument_does(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    with pytest.raises(NotSupportedError, match="UNIQUE"):
        manager.execute("CREATE TABLE t (a, b UNIQUE /* shardlite: key=a */)")
    manager.execute("CREATE TABLE k (k TEXT PRIMARY KEY)")
    with pytest.raises(LayoutMismatchError, match="not of the type"):
        manager.execute("CREATE TABLE t (a INT /* shardlite: key=a, colocate_with=k */)")


def test_hints_and_arguments(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.execute(USERS)
    ddl = f"CREATE TABLE orders ({BODY} /* shardlite: key=user_id, constraints=strict */)"
    for arguments, why in (
        ({"shard_key": "id"}, "key=user_id, the call id"),
        ({"kind": "single"}, "kind=sharded, the call single"),
        ({"kind": "reference"}, "kind=sharded, the call reference"),
        ({"constraints": "checked"}, "constraints=strict, the call checked"),
    ):
        with pytest.raises(ProgrammingError, match=why):
            manager.create_table(ddl, **arguments)
    other = "CREATE TABLE logins (user_id INT /* shardlite: key=user_id, colocate_with=users */)"
    with pytest.raises(ProgrammingError, match="colocate_with=users, the call orders"):
        manager.create_table(other, colocate_with="orders")
    with pytest.raises(ProgrammingError, match="kind=single, the call sharded"):
        manager.create_table("CREATE TABLE s (a /* shardlite: kind=single */)", shard_key="a")
    assert set(manager.tables) == {"users"}
    table = manager.create_table(ddl, shard_key="USER_ID", kind="sharded", colocate_with="users")
    assert table.key_columns == ("user_id",)


def test_if_not_exists_must_agree(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE TABLE t (a INT, b INT /* shardlite: key=a */)")
    same = "CREATE TABLE IF NOT EXISTS t (a INT, b INT /* shardlite: key=A */)"
    for run in (manager.execute, manager.apply_schema, manager.create_table):
        run(same)
        for hint in ("key=b", "kind=single"):
            with pytest.raises(ProgrammingError, match="exists"):
                run(f"CREATE TABLE IF NOT EXISTS t (a /* shardlite: {hint} */)")


@pytest.mark.parametrize(
    "sql",
    [
        "/* shardlite: kind=single */ CREATE TABLE t (a)",
        "CREATE TABLE t (a); -- shardlite: kind=single",
        "CREATE TABLE t (a); /* shardlite: kind=single */ CREATE INDEX i ON t (a)",
        "CREATE TABLE t (a); CREATE INDEX i ON t (a /* shardlite: key=a */)",
        "CREATE TABLE t (a); -- shardlite: key=a\nCREATE TABLE u (a)",
    ],
)
def test_a_hint_that_says_nothing_is_refused(make_manager: Make, sql: str) -> None:
    manager = make_manager(num_shards=2)
    with pytest.raises(ProgrammingError, match="stands in no CREATE TABLE"):
        manager.apply_schema(sql)
    assert dict(manager.tables) == {}


def test_virtual_tables(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE VIRTUAL TABLE v USING fts5(a) /* shardlite: kind=single */")
    assert manager.tables["v"].kind == "single"
    with pytest.raises(NotSupportedError, match="virtual"):
        manager.execute("CREATE VIRTUAL TABLE w USING fts5(a) /* shardlite: kind=reference */")


def test_renaming_keeps_the_hint_true(manager: ShardManager) -> None:
    manager.execute("CREATE TABLE users (id INTEGER PRIMARY KEY /* shardlite: key=id */)")
    manager.execute(f"CREATE TABLE orders ({BODY} /* shardlite: key=user_id, colocate_with=users */)")
    manager.execute("ALTER TABLE orders RENAME COLUMN user_id TO buyer")
    assert "key=buyer, colocate_with=users" in text_of(manager)
    manager.execute("ALTER TABLE users RENAME TO people")
    manager.execute('ALTER TABLE orders RENAME TO "my orders"')
    manager.execute("ALTER TABLE people RENAME COLUMN id TO number")
    assert hint_of(text_of(manager, "my orders")) == Hint(("buyer",), None, "people")
    assert hint_of(text_of(manager, "people")) == Hint(("number",))
    manager.execute("ALTER TABLE 'my orders' DROP COLUMN total")
    manager.execute("ALTER TABLE 'my orders' ADD COLUMN more TEXT")
    assert hint_of(text_of(manager, "my orders")) == Hint(("buyer",), None, "people")
    assert manager.check().ok
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            assert conn.execute("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%shardlite:%'").fetchone()[0] == 0


def test_dropping_what_it_names(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.execute("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    manager.execute("CREATE TABLE posts (u INT /* shardlite: key=u, colocate_with=users */)")
    manager.execute("DROP TABLE users")
    assert hint_of(text_of(manager, "posts")) == Hint(("u",))


def test_export_and_import_keep_it(make_manager: Make, tmp_path: Path) -> None:
    manager = make_manager(num_shards=3)
    manager.apply_schema(
        f"{USERS}; CREATE TABLE orders ({BODY}) /* shardlite: key=user_id, colocate_with=users */;"
        "CREATE TABLE codes (code TEXT PRIMARY KEY) -- shardlite: kind=reference\n;"
        "CREATE TABLE big (id INTEGER PRIMARY KEY, v /* shardlite: kind=single */);"
        "CREATE TABLE mails (id INTEGER PRIMARY KEY, mail TEXT UNIQUE "
        "/* shardlite: kind=sharded, constraints=checked */);"
        "CREATE TABLE parts (tenant TEXT, id INT /* shardlite: key=(tenant, id) */)"
    )
    for number in range(40):
        manager.insert("users", {"id": number, "name": "n"})
        manager.insert("orders", {"user_id": number, "total": 1})
        manager.insert("parts", {"tenant": "a", "id": number})
        manager.insert("big", {"v": 1})
    before = {t.name: (t.kind, t.key_columns) for t in manager.tables.values()}
    manager.shutdown()
    export_sqlite(tmp_path / "db", tmp_path / "one.db")
    import_sqlite(tmp_path / "one.db", tmp_path / "again", num_shards=2)
    again = make_manager("again")
    assert {t.name: (t.kind, t.key_columns) for t in again.tables.values()} == before
    assert hint_of(text_of(again)) == Hint(("user_id",), None, "users")
    assert again.check().ok


def test_import_honours_what_a_file_says(make_manager: Make, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "one.db")) as plain:
        plain.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, b INT, c INT /* shardlite: key=c */)")
        plain.execute("CREATE TABLE b (id INTEGER PRIMARY KEY /* shardlite: kind=single */)")
        plain.execute("CREATE TABLE c (id INTEGER PRIMARY KEY /* shardlite: kind=reference */)")
        plain.executemany("INSERT INTO a VALUES (?, ?, ?)", [(n, n, n) for n in range(50)])
        plain.commit()
    import_sqlite(tmp_path / "one.db", tmp_path / "db", num_shards=2)
    manager = make_manager()
    assert {t.name: (str(t.kind), t.key_columns) for t in manager.tables.values()} == {
        "a": ("sharded", ("c",)),
        "b": ("single", ()),
        "c": ("reference", ()),
    }
    # Whoever calls knows better, and the text then says so.
    import_sqlite(tmp_path / "one.db", tmp_path / "other", num_shards=2, keys={"a": "b"}, single=["c"])
    other = make_manager("other")
    assert other.tables["a"].key_columns == ("b",)
    assert other.tables["c"].kind == "single"
    assert hint_of(text_of(other, "a")) == Hint(("b",))
    assert hint_of(text_of(other, "c")) == Hint(kind=other.tables["c"].kind)
    assert other.check().ok


@pytest.mark.parametrize(
    ("ddl", "why"),
    [
        ("CREATE TABLE a (id INTEGER PRIMARY KEY /* shardlite: key=nope */)", "nope"),
        ("CREATE TABLE a (id INTEGER PRIMARY KEY /* shardlite: kye=id */)", "kye is no word"),
        ("CREATE TABLE a (id /* shardlite: kind=sharded */)", "no PRIMARY KEY"),
        ("CREATE TABLE a (id INT, m UNIQUE /* shardlite: key=id, constraints=strict */)", "UNIQUE"),
        ("CREATE TABLE a (id INT /* shardlite: key=id, colocate_with=t */)", "t"),
        ("CREATE TABLE a (id INT /* shardlite: key=id, colocate_with=nobody */)", "nobody"),
    ],
)
def test_import_names_a_wrong_hint(tmp_path: Path, ddl: str, why: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "one.db")) as plain:
        plain.execute("CREATE TABLE t (k TEXT PRIMARY KEY)")
        plain.execute(ddl)
    with pytest.raises((ProgrammingError, NotSupportedError, LayoutMismatchError), match=f"(?s)a.*{why}"):
        import_sqlite(tmp_path / "one.db", tmp_path / "db", num_shards=2)
    assert not (tmp_path / "db").exists()


def test_moving_and_taking_away() -> None:
    inside = "CREATE TABLE t (a /* shardlite: key=a */, b)"
    assert settled(inside) == inside
    assert without_hints(inside) == "CREATE TABLE t (a , b)"
    assert (
        settled("CREATE TABLE t (a) STRICT -- shardlite: key=a") == "CREATE TABLE t (a /* shardlite: key=a */) STRICT "
    )
    assert with_hint("CREATE TABLE t(x,y)", Hint(("a b",))) == 'CREATE TABLE t(x,y /* shardlite: key="a b" */)'
    assert with_hint(inside, Hint()) == "CREATE TABLE t (a , b)"
    assert hint_of("CREATE TABLE t (a /* shardlite, not a hint */)") is None
    assert hint_of("CREATE TABLE t (a DEFAULT '/* shardlite: key=a */')") is None
    with pytest.raises(ProgrammingError, match="can't stand in a hint"):
        str(Hint(("a*/b",)))


def test_options_are_all_tested() -> None:
    words: dict[str, Any] = {"key": ("a",), "kind": None, "colocate_with": "b", "constraints": None}
    assert set(words) == set(Hint.__dataclass_fields__)
