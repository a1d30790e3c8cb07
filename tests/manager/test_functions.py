"""Functions, aggregates, window functions and collations that the user registers. The model is one sqlite3 file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardlite
from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError

Make = Callable[..., ShardManager]
PATIENCE_S = 60.0
WORDS = ["b", "A", "a", "B", "ä", "Ä", "", "aa", "10", "9", None, "Zz", "zZ", "b ", "a\0b"]


def reverse(a: str, b: str) -> int:
    """Compare backwards."""
    return (a < b) - (a > b)


def by_length(a: str, b: str) -> int:
    """Compare by length alone, so that different texts are equal."""
    return len(a) - len(b)


class Median:
    """The upper median; also a window function."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def step(self, value: Any) -> None:
        self.values.append(value)

    def inverse(self, value: Any) -> None:
        self.values.remove(value)

    def value(self) -> Any:
        return sorted(self.values)[len(self.values) // 2] if self.values else None

    finalize = value


class Both:
    """A manager and one file that get the same."""

    def __init__(self, manager: ShardManager) -> None:
        self.manager = manager
        self.file = sqlite3.connect(":memory:", isolation_level=None)

    def table(self, ddl: str, **options: Any) -> None:
        self.file.execute(ddl)
        self.manager.create_table(ddl, **options)

    def ddl(self, sql: str) -> None:
        self.file.execute(sql)
        self.manager.apply_schema(sql)

    def function(self, name: str, narg: int, func: Any, **options: Any) -> None:
        self.file.create_function(name, narg, func, **options)
        self.manager.create_function(name, narg, func, **options)

    def aggregate(self, name: str, narg: int, cls: Any) -> None:
        self.file.create_aggregate(name, narg, cls)
        self.manager.create_aggregate(name, narg, cls)

    def collation(self, name: str, call: Any) -> None:
        self.file.create_collation(name, call)
        self.manager.create_collation(name, call)

    def same(self, sql: str, parameters: Any = (), *, ordered: bool = False) -> list[Any]:
        """Run a statement on both and compare what comes; return it."""
        expected = self.file.execute(sql, parameters).fetchall()
        got = list(map(tuple, self.manager.execute(sql, parameters).fetchall()))
        if not ordered:
            expected, got = sorted(expected, key=repr), sorted(got, key=repr)
        assert got == expected, sql
        return got

    def same_rows(self, *tables: str) -> None:
        for table in tables:
            expected = self.file.execute(f"SELECT * FROM {table}").fetchall()
            got = [tuple(row.values()) for row in self.manager.select(table)]
            assert sorted(got, key=repr) == sorted(expected, key=repr), table


@pytest.fixture
def both(manager: ShardManager) -> Iterator[Both]:
    """A sharded table t, a single table s and a reference table r, alike in the manager and in one file."""
    pair = Both(manager)
    pair.table("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, n INTEGER)")
    pair.table("CREATE TABLE s (id INTEGER PRIMARY KEY, a TEXT, n INTEGER)", kind="single")
    pair.table("CREATE TABLE r (id INTEGER PRIMARY KEY, a TEXT, n INTEGER)", kind="reference")
    for table, count in (("t", 60), ("s", 20), ("r", 9)):
        for n in range(count):
            row = (n + 1, WORDS[n % len(WORDS)], n * 7 % 11)
            pair.file.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", row)
            manager.insert(table, dict(zip(("id", "a", "n"), row, strict=True)))
    yield pair
    pair.file.close()


# -- functions ---------------------------------------------------------------------------------------------------------


def test_deterministic_functions_run_on_every_shard(both: Both) -> None:
    both.function("double", 1, lambda x: None if x is None else x * 2, deterministic=True)
    both.same("SELECT id, double(n) FROM t")
    assert "gather" not in str(both.manager.explain("SELECT id, double(n) FROM t WHERE double(n) > 8"))
    both.same("SELECT id, DOUBLE(a) FROM t WHERE double(n) > 8")
    both.same("SELECT t.id, double(r.a) FROM t JOIN r ON r.n = t.n")
    both.same("SELECT double(n) FROM t WHERE id = 7")
    both.same("SELECT double(n), count(*) FROM s GROUP BY double(n)")
    manager = both.manager
    expected = both.file.execute("SELECT id FROM t WHERE double(n) = 6 ORDER BY id").fetchall()
    assert [(row["id"],) for row in manager.select("t", "double(n) = ?", parameters=(6,))] == expected
    assert manager.count("t", "double(n) = 6") == len(expected)
    assert manager.aggregate("t", "SUM(double(n))") == {
        "SUM(double(n))": both.file.execute("SELECT sum(double(n)) FROM t").fetchone()[0]
    }


def test_functions_in_writes(both: Both) -> None:
    both.function("double", 1, lambda x: None if x is None else x * 2, deterministic=True)
    both.function("next", 1, lambda x: x + 1)  # not said to be deterministic, but evaluated on one shard alone
    both.same("INSERT INTO t VALUES (100, double('x'), next(1))")
    both.same("INSERT INTO t VALUES (?, double(?), double(3))", (101, "y"))
    both.same("UPDATE t SET n = next(n), a = double(a) WHERE id = 3")
    both.same("DELETE FROM t WHERE id = 4 AND next(n) > 0")
    both.same("UPDATE s SET n = next(n)")
    both.same("UPDATE r SET n = double(n)")
    both.file.execute("UPDATE t SET a = 'seen' WHERE double(n) = 8")
    both.manager.update("t", {"a": "seen"}, "double(n) = 8")
    both.file.execute("DELETE FROM t WHERE double(n) = 4")
    both.manager.delete("t", "double(n) = 4")
    both.same_rows("t", "s", "r")
    for shard in both.manager.shard_ids:  # every copy got the same
        with both.manager.pool(shard).connection() as conn:
            assert [tuple(row) for row in conn.execute("SELECT * FROM r")] == both.file.execute(
                "SELECT * FROM r"
            ).fetchall()


def test_forms_by_number_of_arguments(both: Both) -> None:
    both.function("f", 1, lambda x: f"one {x}", deterministic=True)
    both.function("f", -1, lambda *x: f"many {x}", deterministic=True)
    both.function("F", 2, lambda x, y: f"two {x} {y}", deterministic=True)
    both.same("SELECT f(id), f(id, n), f(id, n, a), F() FROM t")
    both.function("f", 1, lambda x: f"another {x}", deterministic=True)
    both.same("SELECT f(id), f(id, n) FROM t")
    both.manager.create_function("f", 2, None)
    assert both.manager.execute("SELECT f(1, 2) FROM t WHERE id = 1").scalar() == "many (1, 2)"
    # One form that isn't deterministic, and the name may not be evaluated by several shards in any.
    both.manager.create_function("f", 1, str)
    with pytest.raises(NotSupportedError, match=r"f\(\)"):
        both.manager.select("t", "f(n, n) = 1")


def test_taken_back(both: Both) -> None:
    manager = both.manager
    manager.create_function("f", 1, str, deterministic=True)
    manager.execute("SELECT f(id) FROM t").fetchall()
    manager.create_function("f", 1, None)
    with pytest.raises(OperationalError, match=r"no such function: f .*manager.create_function"):
        manager.execute("SELECT f(id) FROM t")
    manager.create_function("lower", 1, lambda x: "mine", deterministic=True)
    assert {row[0] for row in manager.execute("SELECT lower(a) FROM t")} == {"mine"}
    manager.create_function("lower", 1, None)
    both.same("SELECT lower(a) FROM t")
    manager.create_function("never_registered", 1, None)


def test_what_is_not_deterministic_is_not_evaluated_by_several_shards(both: Both) -> None:
    both.function("f", 1, lambda x: x)
    manager = both.manager
    both.same("SELECT id FROM t WHERE f(n) = 3")
    for call in (
        lambda: manager.select("t", "f(n) = 3"),
        lambda: manager.update("t", {"a": "x"}, "f(n) = 3"),
        lambda: manager.aggregate("t", "SUM(f(n))"),
    ):
        with pytest.raises(NotSupportedError, match=r"the function f\(\)"):
            call()
    both.same_rows("t")
    both.same("SELECT f(n) FROM t WHERE id = 5")
    both.same("SELECT f(n) FROM s")
    both.same("SELECT f(n) FROM r")


def test_a_function_in_the_place_of_a_built_in_one(both: Both) -> None:
    """The planner knows SQLite's own by name: after a registration that name means something else."""
    manager = both.manager
    both.same("SELECT lower(a) FROM t")
    counters = {}
    for target in (both.file, manager):
        calls = counters[target] = iter(range(10**9))
        target.create_function("LOWER", 1, lambda x, calls=calls: next(calls))
    with pytest.raises(NotSupportedError, match=r"lower\(\)"):
        manager.select("t", "lower(a) = 'a'")
    both.same("SELECT id, lower(a) FROM t ORDER BY id", ordered=True)
    both.same("UPDATE r SET n = lower(a)")
    copies = []
    for shard in manager.shard_ids:
        with manager.pool(shard).connection() as conn:
            copies.append([tuple(row) for row in conn.execute("SELECT * FROM r")])
    assert copies == copies[:1] * manager.num_shards
    both.function("lower", 1, lambda x: f"<{x}>", deterministic=True)
    both.same("SELECT lower(a) FROM t")
    both.function("like", 2, lambda pattern, text: text is not None and text.startswith(pattern), deterministic=True)
    both.same("SELECT id FROM t WHERE a LIKE 'a'")
    expected = both.file.execute("SELECT count(*) FROM t WHERE a LIKE 'a'").fetchone()[0]
    assert manager.count("t", {"a": ("LIKE", "a")}) == manager.count("t", "a LIKE 'a'") == expected
    manager.create_function("like", 2, lambda pattern, text: next(counters[manager]) % 2)
    for where in ({"a": ("LIKE", "a")}, {"a": ("NOT LIKE", "a")}, "a LIKE 'a'"):
        with pytest.raises(NotSupportedError, match=r"like\(\)"):
            manager.count("t", where)


def test_operators_that_call_a_registered_function(both: Both) -> None:
    import re

    with pytest.raises(NotSupportedError, match="REGEXP"):
        both.manager.select("t", "a REGEXP 'a+'")
    both.function("regexp", 2, lambda p, x: x is not None and re.search(p, x) is not None, deterministic=True)
    both.same("SELECT id FROM t WHERE a REGEXP '^[ab]+$'")
    expected = both.file.execute("SELECT id FROM t WHERE a REGEXP '^[ab]+$' ORDER BY id").fetchall()
    assert [(row["id"],) for row in both.manager.select("t", "a REGEXP '^[ab]+$'")] == expected
    assert [(row["id"],) for row in both.manager.select("t", "regexp('^[ab]+$', a)")] == expected


# -- aggregates --------------------------------------------------------------------------------------------------------


def test_aggregates_are_never_evaluated_per_shard(both: Both) -> None:
    both.aggregate("med", 1, Median)
    both.same("SELECT med(n) FROM t WHERE id = 4")
    both.same("SELECT med(n), med(id) FROM s")
    both.same("SELECT n % 3, med(id) FROM r GROUP BY 1")
    both.same("SELECT med(n) FROM t")
    both.same("SELECT n, med(id) FROM t GROUP BY n")
    both.same("SELECT med(DISTINCT n) FROM t WHERE id IN (1, 2, 3, 4, 5)")
    with pytest.raises(NotSupportedError, match=r"MED\(\)"):
        both.manager.aggregate("t", "MED(n)")


@pytest.mark.parametrize("name", ["total", "sum", "avg", "group_concat"])
def test_an_aggregate_in_the_place_of_a_built_in_one(both: Both, name: str) -> None:
    manager = both.manager
    call = f"{name.upper()}(n)"
    manager.aggregate("t", call)
    both.aggregate(name, 1, Median)
    with pytest.raises(NotSupportedError, match=rf"{name}\(\)"):
        manager.aggregate("t", call)
    both.same(f"SELECT {name}(n) FROM t")
    both.same(f"SELECT n, {name}(id) FROM t GROUP BY n")
    both.same("SELECT n % 3, count(*), min(a) FROM t GROUP BY 1")
    both.same("SELECT count(*), max(n) FROM t")
    both.same(f"SELECT {name}(n) FROM s")
    both.same(f"SELECT {name}(n) FROM t WHERE id = 9")
    manager.create_aggregate(name, 1, None)
    manager.aggregate("t", call)


def test_a_scalar_in_the_place_of_an_aggregate(both: Both) -> None:
    both.function("total", 1, lambda x: -1, deterministic=True)
    assert "total" in both.manager.database.registry.functions.others  # no rule may take it for SQLite's
    both.same("SELECT total(n) FROM s")
    both.same("SELECT total(n) FROM t")
    with pytest.raises(NotSupportedError, match=r"total\(\)"):
        both.manager.aggregate("t", "AVG(n)")


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "create_window_function"), reason="the driver has none")
def test_window_functions(both: Both) -> None:
    both.file.create_window_function("med", 1, Median)
    both.manager.create_window_function("med", 1, Median)
    over = "med(n) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)"
    both.same(f"SELECT id, {over} FROM s")
    both.same(f"SELECT id, {over} FROM t WHERE id = 3")
    both.same(f"SELECT id, {over} FROM t")
    both.same("SELECT med(n) FROM s")


def test_window_functions_where_the_driver_has_none(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        """A driver's connection of before."""

    manager = make_manager(num_shards=2)
    monkeypatch.setattr(sqlite3, "Connection", Old)
    with pytest.raises(NotSupportedError, match="window functions"):
        manager.create_window_function("med", 1, Median)


# -- collations --------------------------------------------------------------------------------------------------------


@pytest.fixture
def collated(manager: ShardManager) -> Iterator[Both]:
    """A table whose columns have collations of the user's, and rows of all classes."""
    pair = Both(manager)
    pair.collation("reverse", reverse)
    pair.collation("BY_length", by_length)
    pair.table("CREATE TABLE c (id INTEGER PRIMARY KEY, a TEXT COLLATE reverse, b COLLATE by_length, n)")
    values = [*WORDS, 3, -1.5, b"blob", 10**15, "10", "Z", b"", 2.0]
    for n in range(70):
        row = (n + 1, values[n % len(WORDS)], values[n * 3 % len(values)], n % 4)
        pair.file.execute("INSERT INTO c VALUES (?, ?, ?, ?)", row)
        manager.insert("c", dict(zip(("id", "a", "b", "n"), row, strict=True)))
    yield pair
    pair.file.close()


@pytest.mark.parametrize("order", [["a"], ["-a"], ["b"], ["-b"], ["b", "-a"], ["n", "-b", "a"], ["-n", "b"]])
def test_order_by_a_collation(collated: Both, order: list[str]) -> None:
    terms = ", ".join(f"{name[1:]} DESC" if name[0] == "-" else name for name in order)
    sql = f"SELECT id, a, b, n FROM c ORDER BY {terms}, id"
    for limit, offset in ((None, None), (7, 3)):
        tail = "" if limit is None else f" LIMIT {limit} OFFSET {offset}"
        expected = collated.file.execute(sql + tail).fetchall()
        rows = collated.manager.select("c", order_by=order, limit=limit, offset=offset)
        assert [tuple(row.values()) for row in rows] == expected


def test_collations_in_conditions(collated: Both) -> None:
    collated.same("SELECT id FROM c WHERE a < 'b'")
    collated.same("SELECT id FROM c WHERE b = 'xx'")
    collated.same("SELECT id FROM c WHERE n COLLATE reverse < 'b' OR a = 'B' COLLATE nocase")
    for where, sql in (
        ({"b": "xx"}, "b = 'xx'"),
        ({"a": ("<", "b")}, "a < 'b'"),
        ({"b": ["x", "yyy"]}, "b IN ('x', 'yyy')"),
    ):
        expected = collated.file.execute(f"SELECT count(*) FROM c WHERE {sql}").fetchone()[0]
        assert collated.manager.count("c", where) == expected
    collated.same("SELECT a FROM c ORDER BY a, id")
    collated.same("SELECT max(a), min(a) FROM c")
    collated.same("SELECT count(DISTINCT b) FROM c")
    collated.same("SELECT count(*) FROM c GROUP BY b")
    collated.same("SELECT count(*), max(a) FROM c GROUP BY b COLLATE BY_LENGTH, n")
    collated.same("SELECT count(*) FROM (SELECT DISTINCT b FROM c)")
    collated.same("SELECT x.id, y.id FROM c AS x JOIN c AS y ON x.b = y.a WHERE x.id < 9")
    collated.same("SELECT id FROM c ORDER BY n COLLATE reverse DESC, a, id LIMIT 9 OFFSET 2", ordered=True)
    collated.same("SELECT id, rank() OVER (ORDER BY b) FROM c")
    for call in ("MAX(a)", "COUNT(DISTINCT b)"):
        with pytest.raises(NotSupportedError, match="collation"):
            collated.manager.aggregate("c", call)
    collated.ddl("CREATE INDEX c_by_a ON c (a)")
    collated.same("SELECT id FROM c WHERE a < 'b'")


def test_a_collation_that_is_gone(collated: Both) -> None:
    manager = collated.manager
    manager.create_collation("REVERSE", None)
    with pytest.raises(NotSupportedError, match=r"'reverse'.*manager.create_collation"):
        manager.select("c", order_by="a")
    with pytest.raises(OperationalError, match="no such collation sequence: reverse"):
        manager.execute("SELECT id FROM c WHERE a < 'b'")
    assert len(manager.select("c", {"n": 1}, order_by="b")) == 18  # what doesn't need it works
    with pytest.raises(OperationalError, match=r"no such collation sequence: nothere .*manager.create"):
        manager.apply_schema("CREATE TABLE x (id INTEGER PRIMARY KEY, a COLLATE nothere)")
    manager.create_collation("reverse", reverse)
    assert len(manager.select("c", order_by="a")) == 70


def test_an_exception_in_a_collation_is_not_a_wrong_order(collated: Both) -> None:
    def broken(a: str, b: str) -> int:
        raise ValueError("not comparable")

    collated.manager.create_collation("reverse", broken)
    if collated.manager.num_shards > 1:
        with pytest.raises(ValueError, match="not comparable"):
            collated.manager.select("c", order_by="a")


def test_shard_keys_have_built_in_collations(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.create_collation("reverse", reverse)
    with pytest.raises(NotSupportedError, match="collation reverse: a key needs"):
        manager.create_table("CREATE TABLE k (a TEXT COLLATE reverse, b)", shard_key="a")
    assert manager.create_table("CREATE TABLE k (a TEXT COLLATE reverse PRIMARY KEY, b)").kind == "single"
    manager.insert("k", {"a": "x"})
    manager.insert("k", {"a": "y"})
    assert [row["a"] for row in manager.select("k", order_by="a")] == ["y", "x"]
    for name in ("BINARY", "nocase", "Rtrim"):
        with pytest.raises(NotSupportedError, match=f"create_collation.*{name}"):
            manager.create_collation(name, reverse)


# -- schemas that need functions ---------------------------------------------------------------------------------------

_NEEDY = (
    "CREATE TABLE d (id INTEGER PRIMARY KEY, a TEXT CHECK (good(a)), g AS (twice(a)) STORED, v AS (twice(id)), note)",
    "CREATE INDEX d_by_twice ON d (twice(a))",
    "CREATE INDEX d_some ON d (id) WHERE good(a)",
    "CREATE TRIGGER d_note AFTER INSERT ON d BEGIN UPDATE d SET note = twice(NEW.a) || '!' WHERE id = NEW.id; END",
    "CREATE VIEW dv AS SELECT id, twice(a) AS t FROM d",
)


def register(target: Any) -> None:
    target.create_function("good", 1, lambda x: x != "bad", deterministic=True)
    target.create_function("twice", 1, lambda x: None if x is None else x * 2, deterministic=True)


def test_tables_that_need_functions(manager: ShardManager, make_manager: Make) -> None:
    both = Both(manager)
    register(both.file)
    with pytest.raises(OperationalError, match=r"no such function: (good|twice) .*manager.create_function"):
        manager.create_table(_NEEDY[0])
    assert dict(manager.tables) == {}
    register(manager)
    for ddl in _NEEDY:
        both.ddl(ddl)
    assert manager.tables["d"].sharded

    def use() -> None:
        n = len(manager.select("d"))
        for name in ("x", "y", None, "zz"):
            n += 1
            assert manager.insert("d", {"id": n, "a": name}) == n
            both.file.execute("INSERT INTO d (id, a) VALUES (?, ?)", (n, name))
        for target in (manager, both.file):
            with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
                target.execute("INSERT INTO d (id, a) VALUES (1000, 'bad')")
        both.same("UPDATE d SET a = 'new' WHERE id = 2")
        both.same("SELECT id FROM d WHERE twice(a) = 'xx'")
        both.same("SELECT id, g, v FROM d WHERE good(a)")
        both.same_rows("d")
        assert (
            manager.update("d", {"a": "other"}, "twice(a) = 'zzzz'")
            == both.file.execute("UPDATE d SET a = 'other' WHERE twice(a) = 'zzzz'").rowcount
        )
        both.same("SELECT * FROM dv")
        assert manager.check().ok

    use()
    manager.apply_schema("CREATE TABLE other (id INTEGER PRIMARY KEY, a TEXT)")
    manager.shutdown()
    both.manager = manager = make_manager()
    # Nothing is asked for before it is needed; then what is missing is named.
    assert set(manager.tables) == {"d", "other"}
    assert manager.insert("other", {"a": "x"}) == 1
    assert manager.execute("SELECT a FROM other").scalar() == "x"
    manager.apply_schema("CREATE TABLE more (id INTEGER PRIMARY KEY)")
    assert len(manager.execute("SELECT id, a FROM d").fetchall()) == 4
    assert [problem.kind for problem in manager.check().problems] == ["schema"] * manager.num_shards
    for call in (
        lambda: manager.insert("d", {"a": "x"}),
        lambda: manager.execute("INSERT INTO d (id, a) VALUES (99, 'x')"),
        lambda: manager.select("d"),
        lambda: manager.execute("SELECT id FROM d WHERE twice(a) = 'xx'"),
        lambda: manager.execute("SELECT twice(1)"),
        lambda: manager.apply_schema("CREATE INDEX d_again ON d (twice(id))"),
    ):
        with pytest.raises(OperationalError, match=r"(no such|unknown) function: (good|twice)"):
            call()
    register(manager)
    use()
    both.file.close()


def test_triggers_of_reference_tables(manager: ShardManager) -> None:
    """They run on every copy, which has to get the same."""
    both = Both(manager)
    both.table("CREATE TABLE r (id INTEGER PRIMARY KEY, a TEXT, note)", kind="reference")
    trigger = "CREATE TRIGGER r_note AFTER INSERT ON r BEGIN UPDATE r SET note = f(lower(NEW.a)) WHERE id = NEW.id; END"
    both.function("f", 1, lambda x: x * 2)
    with pytest.raises(NotSupportedError, match=r"f\(\) may answer differently on each copy"):
        manager.apply_schema(trigger)
    both.function("f", 1, lambda x: x * 2, deterministic=True)
    both.ddl(trigger)

    def insert(n: int) -> None:
        manager.insert("r", {"id": n, "a": "X"})
        manager.upsert("r", {"id": n + 1, "a": "Y"})
        manager.insert_many("r", [{"id": n + 2, "a": "Z"}])
        both.file.execute("INSERT INTO r (id, a) VALUES (?, 'X'), (?, 'Y'), (?, 'Z')", (n, n + 1, n + 2))

    insert(1)
    calls = iter(range(10**9))
    manager.create_function("lower", 1, lambda x: str(next(calls)))
    for call in (
        lambda: manager.insert("r", {"id": 50, "a": "X"}),
        lambda: manager.upsert("r", {"id": 50, "a": "X"}),
        lambda: manager.insert_many("r", [{"id": 50, "a": "X"}]),
        lambda: manager.update("r", {"a": "X"}, {"id": 1}),
    ):
        with pytest.raises(NotSupportedError, match=r"r_note of the reference table r calls lower\(\)"):
            call()
    manager.create_function("lower", 1, None)
    insert(10)
    both.same_rows("r")
    for shard in manager.shard_ids:
        with manager.pool(shard).connection() as conn:
            rows = [tuple(row) for row in conn.execute("SELECT * FROM r")]
            assert rows == both.file.execute("SELECT * FROM r").fetchall()
    both.file.close()


def test_functions_with_a_memory(both: Both) -> None:
    """A function that counts its calls is called in one file's order, wherever the rows are."""
    for target in (both.file, both.manager):
        calls = iter(range(10**9))
        target.create_function("ticket", 0, lambda calls=calls: next(calls))
    both.same("INSERT INTO t (id, n) VALUES " + ", ".join(f"({n}, ticket())" for n in range(200, 220)))
    both.same_rows("t")
    both.same("SELECT id, ticket() FROM t ORDER BY id")
    both.same("SELECT id FROM t WHERE ticket() % 3 = 0 ORDER BY id")
    both.same("UPDATE t SET n = ticket() WHERE id > 30")
    both.same("UPDATE r SET n = ticket()")
    both.same("DELETE FROM t WHERE ticket() % 5 = 0")
    both.same("INSERT INTO t SELECT id + 1000, a, ticket() FROM t ORDER BY id")
    both.same_rows("t", "r")


_DYING = """
    import os, sys
    from shardlite import ShardManager
    from shardlite.connection.connection import Connection
    m = ShardManager(db_dir=sys.argv[1])
    m.create_function("good", 1, lambda x: x != "bad", deterministic=True)
    run, commits = Connection.run, []
    def dying(conn, sql, params=()):
        if sql == "COMMIT" and "shard_" in conn.path:
            commits.append(conn.path)
            if len(commits) == 2:
                os._exit(9)
        return run(conn, sql, params)
    Connection.run = dying
    m.apply_schema("CREATE TABLE d (id INTEGER PRIMARY KEY, a TEXT CHECK (good(a)))")
"""


def test_a_schema_change_of_a_dead_process_waits_for_its_functions(tmp_path: Path, make_manager: Make) -> None:
    make_manager(num_shards=3).create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    make_manager().shutdown()
    died = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_DYING), str(tmp_path / "db")],
        timeout=PATIENCE_S,
        check=False,
    )
    assert died.returncode == 9
    manager = make_manager()
    assert set(manager.tables) == {"t"}
    assert manager.select("t") == []
    with pytest.raises(OperationalError, match="no such function: good"):
        manager.insert("t", {})
    manager.create_function("good", 1, lambda x: x != "bad", deterministic=True)
    assert set(manager.tables) == {"t", "d"}
    manager.insert("t", {})
    manager.insert("d", {"a": "fine"})
    assert manager.database.catalog.jobs() == ()
    assert manager.check().ok


def test_export_and_check_know_the_functions(tmp_path: Path, make_manager: Make) -> None:
    from shardlite.topology.check import check_database
    from shardlite.topology.exporter import export_sqlite

    manager = make_manager(num_shards=3)
    register(manager)
    manager.create_collation("reverse", reverse)
    for ddl in (*_NEEDY, "CREATE TABLE c (id INTEGER PRIMARY KEY, a COLLATE reverse)", "CREATE INDEX ca ON c (a)"):
        manager.apply_schema(ddl)
    for n, a in enumerate(("x", "y", None, "zz"), 1):
        manager.insert("d", {"id": n, "a": a})
        manager.insert("c", {"id": n, "a": a})
    export_sqlite(manager, tmp_path / "one.db")
    assert manager.check().ok
    found = check_database(tmp_path / "db").problems  # who only knows the directory can't call them
    assert {problem.kind for problem in found} == {"schema"}
    assert all("good" in p.detail or "twice" in p.detail or "reverse" in p.detail for p in found)
    one = sqlite3.connect(tmp_path / "one.db")
    register(one)
    one.create_collation("reverse", reverse)
    assert one.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert one.execute("SELECT * FROM d").fetchall() == [tuple(row.values()) for row in manager.select("d")]
    assert one.execute("SELECT a FROM c ORDER BY a").fetchall() == [(None,), ("zz",), ("y",), ("x",)]
    one.close()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_exceptions_in_functions(both: Both) -> None:
    manager = both.manager

    def boom(value: Any) -> Any:
        if value == 3:
            raise ValueError("three")
        return value

    manager.create_function("boom", 1, boom, deterministic=True)
    assert manager.execute("SELECT boom(n) FROM t WHERE id = 1").scalar() == 0
    statements: tuple[Callable[[], Any], ...] = (
        lambda: manager.execute("SELECT boom(n) FROM t").fetchall(),
        lambda: manager.select("t", "boom(n) > 0"),
        lambda: manager.update("t", {"a": "changed"}, "boom(n) >= 0"),
        lambda: manager.execute("INSERT INTO t VALUES (500, 'x', boom(3))"),
        lambda: manager.execute("SELECT boom(n) FROM s").fetchall(),
    )
    for call in statements:
        with pytest.raises(
            OperationalError, match=r"user-defined function raised exception \[shard \d+: .*boom\("
        ) as info:
            call()
        assert isinstance(info.value, sqlite3.OperationalError)
    both.same_rows("t", "s")

    # Another plan is tried, since the exception may come of sending the rows: the shard is named nevertheless.
    joined = "SELECT sum(boom(x.n)) FROM t x JOIN other y ON y.id = x.id"
    manager.create_table("CREATE TABLE other (id INTEGER PRIMARY KEY, n)", shard_key="n")
    manager.insert_many("other", [{"id": n, "n": n} for n in range(1, 9)])
    assert manager.explain(joined).kind == "broadcast"
    with pytest.raises(OperationalError, match=r"user-defined function raised exception \[shard \d+: .*boom\("):
        manager.execute(joined)

    class Bad(Median):
        """Fails at its end."""

        def finalize(self) -> Any:
            raise ValueError("no end")

    manager.create_aggregate("bad", 1, Bad)
    with pytest.raises(OperationalError, match=r"'finalize' method raised error \[shard 0: SELECT bad"):
        manager.execute("SELECT bad(n) FROM s").fetchall()


def test_wrong_calls(both: Both) -> None:
    manager = both.manager
    manager.create_function("f", 1, str, deterministic=True)
    with pytest.raises(OperationalError, match=r"wrong number of arguments to function f\(\)"):
        manager.execute("SELECT f(n, n) FROM t")
    with pytest.raises(OperationalError, match=r"create_function\('g'\), 5000 arguments"):
        manager.create_function("g", 5000, str)
    with pytest.raises(ProgrammingError, match="must be callable"):
        manager.create_function("g", 1, 5)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ProgrammingError, match="name must be a str"):
        manager.create_function("", 1, str)
    with pytest.raises(ProgrammingError, match="name must be a str"):
        manager.create_collation(None, reverse)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ProgrammingError, match="_shardlite_"):
        manager.create_function("_shardlite_place", 1, str)
    for name, narg in (("count", 1), ("MAX", -1), ("min", 2)):
        with pytest.raises(NotSupportedError, match=f"shardlite's own statements call {name}"):
            manager.create_aggregate(name, narg, Median)
    both.same("SELECT max(n), count(*) FROM t")
    assert manager.aggregate("t", ["MAX(n)", "COUNT(*)"]) == {"MAX(n)": 10, "COUNT(*)": 60}
    manager.create_function("max", 5, lambda *x: "five", deterministic=True)  # nothing of SQLite's own has five
    assert manager.execute("SELECT max(1, 2, 3, 4, 5), max(1, 2) FROM t WHERE id = 1").fetchone() == ("five", 2)
    manager.shutdown()
    with pytest.raises(ProgrammingError, match="closed"):
        manager.create_function("h", 1, str)


def test_registered_on_one_connection_only(both: Both) -> None:
    manager = both.manager
    for shard in manager.shard_ids:
        with manager.pool(shard).connection() as conn:
            conn.create_function("only_here", 0, lambda: 1)
            conn.create_function("lower", 1, lambda x: "wrong")
            conn.create_collation("here", reverse)
            assert conn.execute("SELECT only_here(), lower('A')").fetchone()[:] == (1, "wrong")
    with pytest.raises(OperationalError, match=r"no such function: only_here .*manager.create_function"):
        manager.execute("SELECT only_here() FROM t")
    with pytest.raises(OperationalError, match=r"no such collation sequence: here .*manager.create"):
        manager.execute("SELECT a FROM s ORDER BY a COLLATE here")
    both.same("SELECT lower(a) FROM t")  # the connection isn't used again
    both.same("SELECT lower(a) FROM s")


# -- every connection --------------------------------------------------------------------------------------------------


def test_connections_that_are_open_already(make_manager: Make) -> None:
    manager = make_manager(num_shards=2, max_connections_per_shard=4)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)")
    manager.insert_many("t", ({"n": n} for n in range(30)))
    pool = manager.pool(0)
    idle = [pool.get_connection() for _ in range(3)]
    for conn in idle:
        pool.return_connection(conn)
    held = pool.get_connection()
    held.execute("BEGIN")
    held.execute("SELECT * FROM t").fetchone()
    result = manager.execute("SELECT id FROM t")
    manager.create_function("f", 1, lambda x: x + 1, deterministic=True)
    with pytest.raises(sqlite3.OperationalError, match="no such function"):
        held.execute("SELECT f(1)")  # it goes on as it was until it is returned
    assert len(result.fetchall()) == 30
    pool.return_connection(held)
    again = [pool.get_connection() for _ in range(4)]
    assert [conn.execute("SELECT f(1)").fetchone()[0] for conn in again] == [2] * 4
    for conn in again:
        pool.return_connection(conn)
    for _ in range(5):
        assert manager.select("t", "f(n) = 30", columns=["n"]) == [{"n": 29}]
    assert pool.get_statistics().pool_size <= 4


def test_the_short_way_meets_no_old_connection(make_manager: Make) -> None:
    """A connection on which a statement runs at the instant of a registration comes back without the function."""
    manager = make_manager(num_shards=1)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)")
    manager.insert("t", {"n": 1})
    inside, leave = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        assert leave.wait(PATIENCE_S)
        return 1

    manager.create_function("block", 0, block, deterministic=True)
    shard = manager.database.shards[0]
    rows: list[Any] = []
    thread = threading.Thread(target=lambda: rows.append(shard.fetch_row("SELECT block()", ())))
    thread.start()
    assert inside.wait(PATIENCE_S)
    manager.create_function("f", 0, lambda: 2, deterministic=True)
    leave.set()
    thread.join()
    assert rows == [(1,)]
    for _ in range(5):
        assert shard.fetch_row("SELECT f()", ()) == (2,)


def test_threads_register_while_others_ask(make_manager: Make) -> None:
    """What was registered when a statement began is what it sees, on every shard, or something newer."""
    manager = make_manager(num_shards=3, max_connections_per_shard=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)")
    manager.insert_many("t", ({"n": n} for n in range(30)))
    versions = [0] * 2
    for who in range(2):
        manager.create_function(f"version_{who}", 0, lambda: 0, deterministic=True)
    stop = threading.Event()
    problems: list[str] = []

    def registering(who: int) -> None:
        for version in range(1, 41):
            manager.create_function(f"version_{who}", 0, lambda v=version: v, deterministic=True)
            manager.create_function(f"f_{who}_{version}", 1, lambda x: x, deterministic=True)
            versions[who] = version
        stop.set()

    def asking(seed: int) -> None:
        who = seed % 2
        while not stop.is_set():
            known = versions[who]
            seen = {row[0] for row in manager.execute(f"SELECT version_{who}() FROM t").fetchall()}
            seen |= {manager.execute(f"SELECT version_{who}() FROM t WHERE id = {seed + 1}").scalar()}
            if min(seen) < known:
                problems.append(f"{seen} after {known}")
            if known and len(manager.select("t", f"f_{who}_{known}(n) >= 0")) != 30:
                problems.append(f"f_{who}_{known}")

    def guarded(work: Callable[[int], None], argument: int) -> None:
        try:
            work(argument)
        except BaseException as error:
            problems.append(f"{type(error).__name__}: {error}")
            stop.set()

    threads = [threading.Thread(target=guarded, args=(registering, who)) for who in range(2)]
    threads += [threading.Thread(target=guarded, args=(asking, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert problems == []
    assert versions == [40, 40]
    assert manager.database.registry.generation == 2 + 2 * 80


def test_other_connections_can_be_given_all(make_manager: Make) -> None:
    manager = make_manager(num_shards=2)
    manager.create_function("f", 1, lambda x: x + 1, deterministic=True)
    manager.create_aggregate("med", 1, Median)
    manager.create_collation("reverse", reverse)
    other = sqlite3.connect(":memory:")
    manager.database.registry.apply(other)
    assert other.execute("SELECT med(f(column1)) FROM (VALUES (1), (2), (3))").fetchone() == (3,)
    rows = other.execute("SELECT * FROM (VALUES ('a'), ('b')) ORDER BY 1 COLLATE reverse").fetchall()
    assert rows == [("b",), ("a",)]
    other.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_children(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_function("f", 1, lambda x: x + 1, deterministic=True)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER CHECK (f(n) > 0))")
    manager.insert_many("t", ({"n": n} for n in range(10)))
    assert manager.execute("SELECT f(n) FROM t WHERE id = 3").scalar() == 3
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert sorted(row[0] for row in manager.execute("SELECT f(n) FROM t")) == list(range(1, 11))
            manager.create_function("g", 1, lambda x: -x, deterministic=True)
            assert len(manager.select("t", "g(n) < -4")) == 5
            manager.insert("t", {"n": 100})
            manager.shutdown()
            code = 0
        except BaseException as error:
            os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert manager.count("t", "f(n) = 101") == 1
    with pytest.raises(OperationalError, match="no such function: g"):
        manager.execute("SELECT g(n) FROM t")


def test_module_functions(tmp_path: Path) -> None:
    shardlite.initialize(num_shards=2, db_dir=tmp_path / "db")
    try:
        shardlite.create_function("f", 1, lambda x: x + 1, deterministic=True)
        shardlite.create_aggregate("med", 1, Median)
        shardlite.create_collation("reverse", reverse)
        shardlite.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, a COLLATE reverse)")
        for a in "abc":
            shardlite.insert("t", {"a": a})
        assert [row["a"] for row in shardlite.select("t", "f(id) > 2", order_by="a")] == ["c", "b"]
        assert shardlite.execute("SELECT med(a) FROM t WHERE id = 2").scalar() == "b"
        if hasattr(sqlite3.Connection, "create_window_function"):
            shardlite.create_window_function("wmed", 1, Median)
            assert shardlite.execute("SELECT wmed(a) OVER () FROM t WHERE id = 1").scalar() == "a"
    finally:
        shardlite.shutdown()
