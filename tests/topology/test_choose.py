"""What is chosen, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from nasty_sources import NASTY, NASTY_ROWS, make

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.router.table import TableKind
from shardlite.topology import plan_import
from shardlite.topology.report import ImportPlan

SHOP = """
CREATE TABLE countries(code TEXT PRIMARY KEY, name TEXT);
CREATE TABLE users(id INTEGER PRIMARY KEY, email TEXT UNIQUE, country TEXT REFERENCES countries(code));
CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id));
CREATE TABLE products(id INTEGER PRIMARY KEY, name TEXT);
"""


def _rows(table: str, count: int, values: str) -> str:
    series = f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {count})"
    return f"INSERT INTO {table} {series} SELECT {values} FROM c;"


SHOP_ROWS = (
    _rows("countries", 10, "'c' || i, 'n'")
    + _rows("users", 500, "i, 'e' || i, 'c' || (i % 10 + 1)")
    + _rows("orders", 2000, "i, i % 500 + 1")
    + _rows("products", 50, "i, 'p'")
)


def _placements(plan: ImportPlan) -> dict[str, str]:
    return {c.table: c.placement for c in plan.tables}


def test_root_child_and_reference(tmp_path: Path) -> None:
    plan = plan_import(make(tmp_path / "a.db", SHOP, SHOP_ROWS))
    assert _placements(plan) == {
        "countries": "reference",
        "users": "sharded by id",
        "orders": "sharded by user_id",
        "products": "sharded by id",
    }
    users, orders = plan.choice("users"), plan.choice("orders")
    assert "orders follow it (2,500 rows)" in users.reason
    assert "FOREIGN KEY country -> countries(code)" in users.enforced
    assert users.unenforced == ("UNIQUE (email)",)
    assert "--key users.email or --single users" in users.advice[0]
    assert orders.enforced == ("PRIMARY KEY (id)", "FOREIGN KEY user_id -> users(id)")
    assert orders.unenforced == ()
    assert "10 rows against 500 in users" in plan.choice("countries").reason


def test_composite_foreign_key_carries_the_key_down(tmp_path: Path) -> None:
    ddl = """CREATE TABLE tenants(id INTEGER PRIMARY KEY);
    CREATE TABLE orders(tenant_id INTEGER REFERENCES tenants(id), id INTEGER, PRIMARY KEY (tenant_id, id));
    CREATE TABLE items(tenant INTEGER, order_id INTEGER, n INT,
        FOREIGN KEY (order_id, tenant) REFERENCES orders(id, tenant_id));"""
    plan = plan_import(make(tmp_path / "a.db", ddl, _rows("tenants", 100, "i"), _rows("items", 200, "i % 100, i, i")))
    assert _placements(plan) == {
        "tenants": "sharded by id",
        "orders": "sharded by tenant_id",
        "items": "sharded by tenant",
    }
    assert all(c.unenforced == () for c in plan.tables)


def test_a_chain_without_the_key_goes_with_the_larger_family(tmp_path: Path) -> None:
    ddl = """CREATE TABLE users(id INTEGER PRIMARY KEY);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id));
    CREATE TABLE items(id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders(id));"""
    rows = _rows("users", 30_000, "i") + _rows("orders", 40_000, "i, i % 30000 + 1") + _rows("items", 90_000, "i, i")
    plan = plan_import(make(tmp_path / "a.db", ddl, rows))
    assert _placements(plan) == {"users": "sharded by id", "orders": "sharded by id", "items": "sharded by order_id"}
    assert plan.choice("orders").unenforced == ("FOREIGN KEY (user_id) REFERENCES users (id)",)
    assert "give orders a column" not in str(plan.choice("items"))
    assert "users's shard key (id)" in plan.choice("orders").advice[0]


def test_child_of_another_type_or_collation_is_not_colocated(tmp_path: Path) -> None:
    ddl = """CREATE TABLE p(k TEXT COLLATE NOCASE PRIMARY KEY);
    CREATE TABLE same(id INTEGER PRIMARY KEY, k TEXT COLLATE NOCASE REFERENCES p(k));
    CREATE TABLE other(id INTEGER PRIMARY KEY, k TEXT REFERENCES p(k));
    CREATE TABLE number(id INTEGER PRIMARY KEY, k INTEGER REFERENCES p(k));"""
    rows = _rows("p", 30_000, "'k' || i") + "".join(_rows(t, 10, "i, i") for t in ("same", "other", "number"))
    plan = plan_import(make(tmp_path / "a.db", ddl, rows))
    assert _placements(plan) == {
        "p": "sharded by k", "same": "sharded by k", "other": "sharded by id", "number": "sharded by id",
    }  # fmt: skip


def test_few_parents_of_many_rows_are_no_root(tmp_path: Path) -> None:
    ddl = "CREATE TABLE c(code TEXT PRIMARY KEY); CREATE TABLE u(id INTEGER PRIMARY KEY, c TEXT REFERENCES c(code));"
    plan = plan_import(
        make(tmp_path / "a.db", ddl, _rows("c", 10, "'c' || i") + _rows("u", 500, "i, 'c' || (i % 10 + 1)"))
    )
    assert _placements(plan) == {"c": "reference", "u": "sharded by id"}


def test_what_cannot_be_split_is_single_and_says_why(tmp_path: Path) -> None:
    plan = plan_import(make(tmp_path / "a.db", NASTY, NASTY_ROWS))
    kinds = {c.table: c.kind for c in plan.tables}
    for name, reason in {
        "docs_fts": "virtual table can't be split",
        "own_fts": "virtual table can't be split",
        "boxes": "virtual table can't be split",
        "docs": "content of the virtual table docs_fts",
        "plain": "no primary key",
        "hidden": "hide every name of its rowid",
        "counted": "trigger counts on counting",
        "counting": "trigger counts on counting",
    }.items():
        assert kinds[name] is TableKind.SINGLE, name
        assert reason in plan.choice(name).reason, name
    assert plan.choice("it's").placement == "sharded by user_id"  # its trigger touches its own row only
    assert not any(name.startswith(("docs_fts_", "boxes_")) for name in kinds)
    assert [text.split(":")[0] for text in plan.warnings] == ["hidden"]  # its rowids; views and their triggers work


@pytest.mark.parametrize(
    ("body", "together"),
    [
        ("UPDATE users SET n = n + 1 WHERE id = NEW.user_id", False),
        ("UPDATE users SET n = n + 1 WHERE n > 0 AND (NEW.user_id = users.id)", False),
        ("UPDATE users SET n = n + 1 WHERE id = NEW.id", True),
        ("UPDATE users SET n = n + 1", True),
        ("UPDATE users SET n = n + 1 WHERE id = NEW.user_id OR n = 3", True),
        ("UPDATE users SET id = 3 WHERE id = NEW.user_id", True),
        ("UPDATE OR IGNORE orders SET note = 'x' WHERE id = NEW.id", False),
        ("DELETE FROM log WHERE user_id = OLD.user_id", False),
        ("INSERT INTO log(user_id, text) VALUES (NEW.user_id, 'x')", False),
        ("INSERT INTO log(user_id, text) VALUES (NEW.id, 'x')", True),
        ("INSERT INTO audit(user_id) VALUES (NEW.user_id)", True),
        ("SELECT RAISE(ABORT, 'no') WHERE EXISTS (SELECT 1 FROM users WHERE id = NEW.user_id AND n > 9)", False),
        ("SELECT RAISE(ABORT, 'no') WHERE (SELECT count(*) FROM orders) > 9", True),
        ("REPLACE INTO log(user_id, text) VALUES (NEW.user_id, 'x')", False),
    ],
)
def test_triggers_keep_their_tables_together_or_are_local(tmp_path: Path, body: str, together: bool) -> None:
    ddl = f"""CREATE TABLE users(id INTEGER PRIMARY KEY, n INT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id), note TEXT);
    CREATE TABLE log(user_id INTEGER REFERENCES users(id), text TEXT, PRIMARY KEY (user_id, text)) WITHOUT ROWID;
    CREATE TABLE audit(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id));
    CREATE TRIGGER tr AFTER UPDATE ON orders BEGIN {body}; END;"""
    source = make(tmp_path / "a.db", ddl, _rows("users", 100, "i, 0") + _rows("orders", 300, "i, i % 100 + 1, ''"))
    plan = plan_import(source)
    assert (plan.choice("orders").kind is TableKind.SINGLE) is together
    if together:
        assert "The trigger tr on orders needs its tables in one place" in plan.choice("orders").reason
        with pytest.raises(NotSupportedError, match="trigger tr"):
            plan_import(source, keys={"orders": "user_id"})


def test_a_trigger_condition_is_looked_at_too(tmp_path: Path) -> None:
    ddl = """CREATE TABLE limits(id INTEGER PRIMARY KEY, n INT); CREATE TABLE t(id INTEGER PRIMARY KEY, n INT);
    CREATE TRIGGER tr AFTER INSERT ON t WHEN NEW.n > (SELECT max(n) FROM limits) BEGIN SELECT 1; END;"""
    plan = plan_import(make(tmp_path / "a.db", ddl, _rows("t", 100, "i, i") + _rows("limits", 100, "i, i")))
    assert _placements(plan) == {"limits": "single", "t": "single"}


def test_what_the_caller_says_stands(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db", SHOP, SHOP_ROWS)
    plan = plan_import(source, keys={"USERS": "email"}, reference=["products"], single=["countries"])
    assert _placements(plan) == {
        "countries": "single", "users": "sharded by email", "orders": "sharded by id", "products": "reference",
    }  # fmt: skip
    assert "FOREIGN KEY (country) REFERENCES countries (code)" in plan.choice("users").unenforced
    both = plan_import(source, keys={"orders": ("user_id", "id")})
    assert both.choice("orders").key_columns == ("user_id", "id")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"keys": {"nope": "id"}}, "no table 'nope': it has countries, users"),
        ({"keys": {"users": "nope"}}, "users has no column 'nope': it has id, email, country"),
        ({"reference": ["users"], "single": ["users"]}, "users: more than one"),
        ({"constraints": "loose"}, "'checked' or 'strict'"),
        ({"num_shards": 0}, "1 to 4096"),
    ],
)
def test_wrong_statements_are_named(tmp_path: Path, stated: dict[str, object], message: str) -> None:
    source = make(tmp_path / "a.db", SHOP)
    with pytest.raises(ProgrammingError, match=message):
        plan_import(source, **stated)


def test_strict_refuses_and_names_each_constraint(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db", SHOP, SHOP_ROWS)
    with pytest.raises(NotSupportedError, match=r"1 constraint.*users: UNIQUE \(email\)"):
        plan_import(source, constraints="strict")
    assert plan_import(source, constraints="strict", single=["users", "orders"]).choice("users").unenforced == ()


def test_virtual_tables_cannot_be_stated_otherwise(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db", NASTY)
    with pytest.raises(NotSupportedError, match="own_fts can only be single"):
        plan_import(source, reference=["own_fts"])
