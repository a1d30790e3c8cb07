"""Golden plans and refusals as data, and every golden plan run over 1, 3, 4 and 8 shards against one plain file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import SHARD_COUNTS, Cluster, Planning, plain, whole_contents
from shop import SHOP

from shardlite import errors
from shardlite.driver import SQLITE_VERSION
from shardlite.names import fold
from shardlite.router.layout import Layout
from shardlite.sql.plan import PlanKind

CASES = Path(__file__).parent / "cases"
PLANS = json.loads((CASES / "plans.json").read_text(encoding="utf-8"))
REFUSALS = json.loads((CASES / "refusals.json").read_text(encoding="utf-8"))
NOT_COMPARED = ("EXPLAIN", "random()", "table_list")


@pytest.fixture(scope="module")
def planning() -> Iterator[Planning]:
    made = Planning(SHOP)
    yield made
    made.close()


def too_old(sql: str) -> bool:
    return ("FULL JOIN" in sql and SQLITE_VERSION < (3, 39, 0)) or ("RETURNING" in sql and SQLITE_VERSION < (3, 35, 0))


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case["sql"][:70])
def test_plan(planning: Planning, case: dict[str, Any]) -> None:
    layout = Layout.create(num_shards=4)
    plan = planning.planner.plan(case["sql"], case.get("parameters", ()), layout)
    assert str(plan).splitlines() == case["plan"]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case["sql"][:70])
def test_refusal(planning: Planning, case: dict[str, Any]) -> None:
    if too_old(case["sql"]):
        pytest.skip("this SQLite doesn't know the statement")
    for num_shards in SHARD_COUNTS:
        layout = Layout.create(num_shards=num_shards)
        with pytest.raises(getattr(errors, case["error"])) as caught:
            planning.planner.plan(case["sql"], case.get("parameters", ()), layout)
        assert type(caught.value).__name__ == case["error"]
        assert str(caught.value) == case["message"]


@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
def test_golden_plans_answer_as_one_file(planning: Planning, num_shards: int) -> None:
    whole, cluster = plain(SHOP, rows=True), Cluster(planning, num_shards)
    for case in PLANS:
        sql, parameters = case["sql"], case.get("parameters", ())
        if case["plan"][0] == PlanKind.DDL or any(word in sql for word in NOT_COMPARED):
            continue
        cursor = whole.execute(sql, parameters)
        expected = cursor.fetchall()
        plan, rows, count = cluster.run(sql, parameters)
        if not plan.readonly:
            assert (count, sql) == (cursor.rowcount, sql)
        if plan.merge_rowid:
            assert [repr(row) for row in rows] == [repr(row) for row in expected], sql
        else:
            assert sorted(map(repr, rows)) == sorted(map(repr, expected)), sql
        if plan.readonly:
            continue
        assert_same(cluster, whole, sql)
        whole.close()
        cluster.close()
        whole, cluster = plain(SHOP, rows=True), Cluster(planning, num_shards)
    whole.close()
    cluster.close()


def assert_same(cluster: Cluster, whole: Any, sql: str) -> None:
    tables = cluster.planning.tables
    found, expected = cluster.contents(), whole_contents(whole, tables)
    if "items" in sql:  # its default is the time
        found.pop("items")
        expected.pop("items")
    assert (found, sql) == (expected, sql)
    assert cluster.misplaced() == []
    for shard in cluster.shards:
        assert [sorted(shard.execute(f"SELECT * FROM {name}")) for name in SHOP.references] == [
            sorted(whole.execute(f"SELECT * FROM {name}")) for name in SHOP.references
        ]


def test_every_plan_kind_is_golden() -> None:
    assert {case["plan"][0] for case in PLANS} == {str(kind) for kind in PlanKind}


def test_fan_out_of_one_table_is_in_rowid_order(planning: Planning) -> None:
    cluster, whole = Cluster(planning, 4), plain(SHOP, rows=True)
    for table in ("users", "orders", "tags"):
        plan, rows, _ = cluster.run(f"SELECT * FROM {table}")
        assert plan.merge_rowid
        assert rows == whole.execute(f"SELECT * FROM {table}").fetchall()
        assert fold(plan.tables[0]) == table
    whole.close()
    cluster.close()
