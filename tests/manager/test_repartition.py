"""Rows that are sent to the shards that own the keys they are joined with: against one file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_file import one_file

from shardlite import ShardManager
from shardlite.config import ShardliteConfig
from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.execute import exchange
from shardlite.execute.database import Database
from shardlite.execute.sizes import Sizes
from shardlite.router.strategies import DirectoryStrategy, RangeStrategy, ShardingStrategy
from shardlite.sql.plan import PlanKind

Make = Callable[..., ShardManager]
SIZES = dict.fromkeys(("stay", "lines", "tenants", "reals", "any"), 300_000)
"""What the planner takes these tables' rows to be: they had better stay. Others are small."""
TABLES = (
    "CREATE TABLE stay (k INTEGER PRIMARY KEY, a INT, t TEXT)",
    "CREATE TABLE lines (id INTEGER PRIMARY KEY, k INTEGER, n INT) /* shardlite: key=k, colocate_with=stay */",
    "CREATE TABLE moved (id INTEGER PRIMARY KEY, x INTEGER, y TEXT, z INT)",
    "CREATE TABLE pairs (x INTEGER, y TEXT, n INT, PRIMARY KEY (x, y)) WITHOUT ROWID /* shardlite: key=y */",
    "CREATE TABLE whole (id INTEGER PRIMARY KEY, x INTEGER) /* shardlite: kind=single */",
    "CREATE TABLE other (id INTEGER PRIMARY KEY, z INT)",
    "CREATE TABLE tenants (c TEXT COLLATE NOCASE, n INTEGER, v) /* shardlite: key=(c, n) */",
    "CREATE TABLE uses (id INTEGER PRIMARY KEY, c TEXT COLLATE NOCASE, n INTEGER, b TEXT)",
    "CREATE TABLE reals (k REAL, v INT) /* shardlite: key=k */",
    "CREATE TABLE any (k, v INT) /* shardlite: key=k */",
    "CREATE TABLE meets (id INTEGER PRIMARY KEY, r REAL, o)",
)
KEYS = [*range(1, 41), -5]
WORDS = ("a", "A", "b ", "B", "b", "", "é", "É", "1", None)
ODD = (None, 1, "1", 1.0, 2.5, b"1", "x", 2**53 + 1, 9007199254740992.0, -0.0, 0)
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "stay": [(k, k % 7, WORDS[k % 9]) for k in KEYS],
    "lines": [(i, i % 45 if i % 10 else None, i % 4) for i in range(1, 90)],
    "moved": [
        (i, (None, "odd", 2.5, 777)[i % 4] if i % 5 == 0 else i * 3 % 60 - 5, WORDS[i % 10], i % 12)
        for i in range(1, 120)
    ],
    "pairs": [(i % 50, f"p{i}", i) for i in range(1, 70)],
    "whole": [(i, i % 9 * 5) for i in range(1, 30)],
    "other": [(i, i % 6) for i in range(1, 12)],
    "tenants": [(word, n, i) for i, (word, n) in enumerate((word, n) for word in WORDS for n in (1, 2, None))],
    "uses": [(i, WORDS[i % 10], (1, 2, None, 3)[i % 4], WORDS[(i + 3) % 10]) for i in range(1, 60)],
    "reals": [(v, i) for i, v in enumerate((None, 1, 2.5, 1e300, 2**53 + 1, "x", 0, -3))],
    "any": [(v, i) for i, v in enumerate(ODD)],
    "meets": [(i, ODD[i % 11], ODD[(i + 4) % 11]) for i in range(1, 70)],
}  # fmt: skip
SENT = (
    "SELECT m.y, count(*), count(s.k), sum(s.a) FROM moved m LEFT JOIN stay s ON s.k = m.x GROUP BY m.y",
    "SELECT m.x, count(*), count(s.k), max(s.t) FROM moved m LEFT JOIN stay s ON s.k = m.x GROUP BY m.x",
    "SELECT m.id, s.t FROM moved m LEFT JOIN stay s ON s.k = m.x AND s.a > ?1 WHERE m.z < ?2 ORDER BY m.id",
    "SELECT m.id, m.x FROM moved m WHERE NOT EXISTS (SELECT 1 FROM stay s WHERE s.k = m.x)",
    "SELECT m.id, (SELECT s.t FROM stay s WHERE s.k = m.x) FROM moved m WHERE m.z > 2",
    "SELECT count(*) FROM moved m WHERE m.x IN (SELECT k FROM stay)",
    "SELECT DISTINCT m.x, s.a FROM moved m LEFT JOIN stay s ON m.x = s.k",
    "SELECT m.id, row_number() OVER (PARTITION BY m.x ORDER BY m.id), s.k FROM moved m LEFT JOIN stay s ON s.k = m.x",
    "SELECT m.x, count(*), sum(l.n) FROM moved m LEFT JOIN lines l ON l.k = m.x LEFT JOIN stay s ON s.k = m.x "
    "GROUP BY m.x",
    "SELECT m.x, p.n, count(s.k) FROM moved m JOIN pairs p ON p.x = m.x LEFT JOIN stay s ON s.k = m.x GROUP BY 1, 2",
    "SELECT w.x, count(*), count(s.k) FROM whole w LEFT JOIN stay s ON s.k = w.x GROUP BY w.x HAVING count(*) > 1",
    "SELECT m.y, count(o.id), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.x LEFT JOIN other o ON o.id = m.z "
    "GROUP BY m.y",
    "SELECT p.y, s.t FROM pairs p LEFT JOIN stay s ON s.k = p.x AND s.a IN (1, 2, 3) ORDER BY p.y LIMIT 30",
    "SELECT u.c, u.n, count(*), count(t.v) FROM uses u LEFT JOIN tenants t ON t.c = u.c AND t.n = u.n GROUP BY 1, 2",
    "SELECT count(*), sum(u.id) FROM uses u WHERE NOT EXISTS (SELECT 1 FROM tenants t WHERE t.c = u.c AND u.n = t.n)",
    "SELECT e.r, count(*), count(r.v) FROM meets e LEFT JOIN reals r ON r.k = e.r GROUP BY e.r",
    "SELECT count(*), count(a.v), sum(a.v), min(e.id) FROM meets e LEFT JOIN any a ON a.k = e.o",
    "SELECT m.x FROM moved m LEFT JOIN stay s ON s.k = m.x WHERE m.z = 3 UNION SELECT x FROM moved WHERE z = 4",
)
JOINED_BOTH_WAYS = (
    "SELECT count(*), count(m.id), sum(m.id), count(s.k), sum(s.k) FROM moved m FULL JOIN stay s ON s.k = m.x",
    "SELECT s.k, count(*), count(m.id) FROM stay s FULL JOIN moved m ON s.k = m.x AND m.z > 3 GROUP BY s.k",
    "SELECT m.y, s.a, count(*) FROM moved m RIGHT JOIN stay s ON s.k = m.x GROUP BY 1, 2",
    "SELECT DISTINCT s.t, m.x FROM stay s RIGHT JOIN moved m ON s.k = m.x WHERE m.z < 9",
    "SELECT s.k, l.n FROM stay s FULL JOIN lines l ON l.k = s.k WHERE s.k IS NULL OR l.n IS NULL",
)
NOT_SENT = (
    "SELECT count(*), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = +m.x GROUP BY m.x",
    "SELECT m.x, count(s.k) FROM moved m LEFT JOIN stay s ON s.k IS m.x GROUP BY m.x",
    "SELECT u.b, count(t.v) FROM uses u LEFT JOIN tenants t ON t.c = u.b AND t.n = u.n GROUP BY u.b",
    "SELECT u.c, count(t.v) FROM uses u LEFT JOIN tenants t ON t.c = u.c GROUP BY u.c",
    "SELECT m.y, count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.y GROUP BY m.y",
    "SELECT m.x, count(*) FROM moved m LEFT JOIN stay s ON s.k = m.x OR s.k = m.z GROUP BY m.x",
    "SELECT id FROM moved WHERE x NOT IN (SELECT k FROM stay WHERE a > 3)",
    "SELECT m.id, s.k FROM moved m FULL JOIN stay s ON s.k < m.x AND m.id < 9",
    "SELECT m.id, s.k, l.n FROM moved m FULL JOIN stay s ON s.k = m.x LEFT JOIN lines l ON l.k = s.k",
)
"""Comparisons that don't say that equal keys are equal values, or whose rows a shard can't know all of."""


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    known = dict(SIZES)
    monkeypatch.setattr(Sizes, "rows", lambda self, table: known.get(table.name, 100))
    return known


def fill(manager: ShardManager) -> sqlite3.Connection:
    """Make the tables, there and in one file."""
    plain = one_file()
    for ddl in TABLES:
        name = ddl.split()[2]
        plain.execute(ddl)
        manager.apply_schema(ddl)
        columns = [row[1] for row in plain.execute(f"PRAGMA table_info({name})")]
        plain.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", ROWS[name])
        manager.insert_many(name, [dict(zip(columns, row, strict=True)) for row in ROWS[name]])
    return plain


def compare(manager: ShardManager, plain: sqlite3.Connection, sql: str, parameters: tuple[Any, ...] = ()) -> None:
    found = [typed(row) for row in manager.execute(sql, parameters)]
    expected = [typed(row) for row in plain.execute(sql, parameters)]
    if "ORDER BY" not in sql.rsplit(")", 1)[-1]:
        found.sort()
        expected.sort()
    assert found == expected
    assert expected


def typed(row: Any) -> list[str]:
    return [repr(value) for value in row]


def parameters_of(sql: str) -> tuple[int, ...]:
    return (2, 10) if "?1" in sql else ()


def is_sent(manager: ShardManager, sql: str) -> bool:
    return manager.explain(sql, parameters_of(sql)).kind == PlanKind.REPARTITION


@pytest.mark.parametrize("num_shards", [1, 3, 4, 8])
def test_against_one_file(make_manager: Make, num_shards: int) -> None:
    manager = make_manager(num_shards=num_shards)
    plain = fill(manager)
    for sql in SENT:
        assert is_sent(manager, sql), sql
        compare(manager, plain, sql, parameters_of(sql))
    for sql in NOT_SENT if SQLITE_VERSION >= (3, 39) else NOT_SENT[:-2]:
        assert not is_sent(manager, sql), sql
        compare(manager, plain, sql)


@pytest.mark.skipif(SQLITE_VERSION < (3, 39), reason="this SQLite has no RIGHT and FULL JOIN")
@pytest.mark.parametrize("num_shards", [1, 3, 4, 8])
def test_right_and_full_joins(make_manager: Make, num_shards: int) -> None:
    manager = make_manager(num_shards=num_shards)
    plain = fill(manager)
    for sql in JOINED_BOTH_WAYS:
        assert manager.explain(sql).kind in (PlanKind.REPARTITION, PlanKind.FAN_OUT), sql
        compare(manager, plain, sql)


@pytest.mark.parametrize("num_shards", [3, 8])
def test_beside_subqueries_that_are_evaluated_first(make_manager: Make, num_shards: int) -> None:
    manager = make_manager(num_shards=num_shards)
    plain = fill(manager)
    for sql in (
        "SELECT m.x, count(*), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.x "
        "WHERE m.z > (SELECT avg(z) FROM other) GROUP BY m.x",
        "SELECT m.id, s.t, (SELECT max(id) FROM other) AS most FROM moved m "
        "LEFT JOIN stay s ON s.k = m.x AND s.a > 1 ORDER BY m.id LIMIT 50",
    ):
        plan = manager.explain(sql)
        assert plan.kind == PlanKind.REPARTITION, plan
        assert "init _shardlite_init_0" in str(plan)
        compare(manager, plain, sql)
        told = "\n".join(row[3] for row in manager.execute(f"EXPLAIN QUERY PLAN {sql}"))
        assert "_shardlite_init_0: _shardlite_part" in told, told
        assert "SHARD 0: moved" in told, told


class Picky(ShardingStrategy):
    """Knows small whole numbers only, and fails at everything else in a way of its own."""

    name = "picky"

    def parameters(self) -> dict[str, Any]:
        return {}

    def shard_for(self, key: Any) -> int:
        if key == 777:
            raise ZeroDivisionError
        return int(key) % (self.num_shards or 1)


@pytest.mark.parametrize(
    "strategy",
    [
        RangeStrategy([2, 10, 30]),
        DirectoryStrategy({k: (k if k else 0) % 4 for k in (*KEYS, *range(45), None)}),
        Picky(),
    ],
    ids=["range", "directory", "own"],
)
def test_values_that_the_strategy_does_not_know_are_placed_too(make_manager: Make, strategy: ShardingStrategy) -> None:
    manager = make_manager(num_shards=4, strategy=strategy)
    plain = one_file()
    for ddl in (*TABLES[:1], "CREATE TABLE moved (id INTEGER, x INTEGER, y TEXT, z INT) /* shardlite: key=z */"):
        plain.execute(ddl)
        manager.apply_schema(ddl)
    for name, width in (("stay", 3), ("moved", 4)):
        for run in (plain.executemany, manager.executemany):
            run(f"INSERT INTO {name} VALUES ({', '.join('?' * width)})", ROWS[name])
    for run in (plain.execute, manager.execute):
        run("INSERT INTO moved (rowid, z) VALUES (500, 1)")
    for sql in SENT[:4]:
        assert is_sent(manager, sql), sql
        compare(manager, plain, sql, parameters_of(sql))
    assert manager.execute(SENT[0]).rows_moved < len(ROWS["moved"]) + len(ROWS["stay"])  # it wasn't gathered after all
    # A value that the strategy doesn't know holds no shard back: it isn't asked for the shard of a pin.
    compare(
        manager,
        plain,
        "SELECT m.x, count(*), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.x WHERE m.x = 777 GROUP BY m.x",
    )


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
def test_text_that_is_no_unicode(tmp_path: Path, encoding: str) -> None:
    Database(ShardliteConfig(num_shards=4, db_dir=str(tmp_path / "db"), durability="normal"), encoding=encoding).close()
    plain = one_file()
    plain.execute(f"PRAGMA encoding = '{encoding}'")
    bad = ("CAST(x'66ff' AS TEXT)", "CAST(x'66fe' AS TEXT)", "CAST(x'00d8' AS TEXT)", "'é'", "NULL", "'e' || char(0)")
    with ShardManager(db_dir=tmp_path / "db") as manager:
        for run in (plain.execute, manager.execute):
            run("CREATE TABLE stay (k TEXT, v INT) /* shardlite: key=k */")
            run("CREATE TABLE moved (id INTEGER PRIMARY KEY, x TEXT)")
            run("INSERT INTO stay VALUES ('é', 1), ('e', 2)")
            for number in range(60):
                run(f"INSERT INTO moved VALUES ({number + 1}, {bad[number % len(bad)]})")
        sql = (
            "SELECT hex(m.x), count(*), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.x GROUP BY m.x "
            "HAVING count(*) > 1"
        )
        assert is_sent(manager, sql)
        compare(manager, plain, sql)


def test_rows_of_one_key_are_sent_once(make_manager: Make) -> None:
    manager = make_manager(num_shards=8)
    fill(manager)
    result = manager.execute(
        "SELECT m.y, count(*) FROM moved m LEFT JOIN stay s ON s.k = m.x WHERE m.z = 3 GROUP BY m.y"
    )
    groups = len(result.fetchall())
    wanted = sum(row[3] == 3 for row in ROWS["moved"])
    assert wanted < result.rows_moved <= wanted + 8 * groups


def test_the_plan_goes_by_the_rows(make_manager: Make, sizes: dict[str, int]) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE a (id INTEGER PRIMARY KEY, x INTEGER)")
    manager.create_table("CREATE TABLE b (id INTEGER PRIMARY KEY, y TEXT)")
    joined = "SELECT b.y, count(*) FROM a JOIN b ON b.id = a.x GROUP BY b.y"
    preserved = "SELECT a.x, count(b.y) FROM a LEFT JOIN b ON b.id = a.x GROUP BY a.x"
    together = "SELECT a.x, group_concat(b.y) FROM a LEFT JOIN b ON b.id = a.x GROUP BY a.x"
    kinds = {}
    for a, b in ((10, 10), (10, 50_000), (50_000, 10), (20_000, 200_000), (200_000, 20_000)):
        sizes.update(a=a, b=b)
        texts = (f"{sql} LIMIT {a}, {b}" for sql in (joined, preserved, together))
        kinds[a, b] = [str(manager.explain(sql).kind) for sql in texts]
    assert kinds == {
        (10, 10): ["broadcast", "broadcast", "gather"],
        (10, 50_000): ["broadcast", "repartition", "repartition"],
        (50_000, 10): ["broadcast", "broadcast", "gather"],
        (20_000, 200_000): ["broadcast", "repartition", "repartition"],
        (200_000, 20_000): ["broadcast", "broadcast", "gather"],
    }


def test_explain_query_plan(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    fill(manager)
    for sql in (SENT[0], SENT[9], "SELECT sum(m.z) FROM moved m JOIN stay s ON s.a = m.id JOIN other o ON o.id = s.k"):
        told = [str(tuple(row)) for row in manager.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert any("SEARCH s USING INTEGER PRIMARY KEY" in row or "SCAN s" in row for row in told), told


def test_more_than_memory_may_hold_is_gathered(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = make_manager(num_shards=3)
    plain = fill(manager)
    for run in (plain.execute, manager.execute):
        run("UPDATE moved SET y = replace(hex(zeroblob(1000)), '0', 'w')")
    sql = "SELECT m.x, max(m.y), count(s.k) FROM moved m LEFT JOIN stay s ON s.k = m.x GROUP BY m.x"
    assert is_sent(manager, sql)
    monkeypatch.setattr(exchange, "_LEAST_PAGES", 4)
    monkeypatch.setattr(importlib.import_module("shardlite.execute.owned"), "SHARED_BYTES", 4 * 4096)
    result = manager.execute(sql)
    assert result.rows_moved >= len(ROWS["moved"]) + len(ROWS["stay"])
    monkeypatch.undo()
    compare(manager, plain, sql)


@pytest.mark.parametrize("streamed", [False, True])
def test_many_rows_come_inside_sqlite_or_in_batches(
    make_manager: Make, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    manager = make_manager(num_shards=10)
    plain = fill(manager)
    monkeypatch.setattr(exchange, "FEW", 3)
    seen = set()
    if streamed:
        monkeypatch.setattr(exchange, "_LEAST_PAGES", 1)
        monkeypatch.setattr(exchange, "EXCHANGE_BYTES", 4096)
    close = exchange.Answer.close

    def noting(self: exchange.Answer) -> None:
        if any(move.route is not None for move in self.moves):
            seen.add((self.exchange is not None, self.streaming))
        close(self)

    monkeypatch.setattr(exchange.Answer, "close", noting)
    for sql in SENT:
        compare(manager, plain, sql, parameters_of(sql))
    assert ((False, True) if streamed else (True, False)) in seen


def test_a_text_runs_again_and_leaves_nothing_behind(make_manager: Make) -> None:
    manager = make_manager(num_shards=4)
    plain = fill(manager)
    for _ in range(3):
        compare(manager, plain, SENT[2], (2, 10))
        compare(manager, plain, SENT[2], (4, 5))
    for shard in range(4):
        with manager.pool(shard).connection() as connection:
            assert [row[1] for row in connection.execute("PRAGMA database_list")] == ["main"]


def test_shared_tables_look_as_large_as_what_their_rows_stand_for(
    make_manager: Make, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    """A condition that chose the rows stands in the query still: SQLite will count it a second time."""
    coordinator = importlib.import_module("shardlite.execute.coordinator")
    seen: dict[str, str] = {}
    count_rows = coordinator.Coordinator._count_rows

    def noting(self: Any, schema: str, stage: Any) -> None:
        count_rows(self, schema, stage)
        seen.update(self.connection.execute(f"SELECT tbl, stat FROM {schema}.sqlite_stat1").fetchall())

    monkeypatch.setattr(coordinator.Coordinator, "_count_rows", noting)
    sizes.update(nation=10, supplier=300, part=2000)
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE nation (id INTEGER PRIMARY KEY, name TEXT)", kind="reference")
    manager.create_table("CREATE TABLE supplier (id INTEGER PRIMARY KEY, nation INT, phone TEXT)")
    manager.create_table("CREATE TABLE part (id INTEGER PRIMARY KEY, supplier INTEGER, size INT)")
    manager.insert_many("nation", [{"id": i, "name": f"n{i}"} for i in range(10)])
    manager.insert_many("supplier", [{"id": i, "nation": i % 10, "phone": str(i % 3)} for i in range(1, 301)])
    manager.insert_many("part", [{"id": i, "supplier": i % 300 + 1, "size": i % 50} for i in range(1, 2001)])
    joined = "SELECT count(*) FROM part p JOIN supplier s ON s.id = p.supplier"
    for sql, rows in (
        (f"{joined} JOIN nation n ON n.id = s.nation WHERE n.name = 'n3'", 30 * 4),
        (f"{joined} JOIN nation n ON n.id = s.nation WHERE n.name = 'n3' AND s.phone = '1'", 10 * 16),
        (f"{joined} WHERE s.phone LIKE '1%'", 100),
        (f"{joined} WHERE s.phone = '7'", 0),
        (joined, 300),
    ):
        assert manager.explain(sql).kind == PlanKind.BROADCAST
        manager.execute(sql).fetchall()
        assert int(seen["supplier"].split()[0]) == rows, sql
