"""Golden plans and refusals as data; every golden plan runs over 1, 3, 4 and 8 shards, beside one plain file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sharded import SHARD_COUNTS, Answer, Cluster, Template, ask, plain, whole_contents
from shop import SHOP

from shardlite import errors
from shardlite.driver import SQLITE_VERSION
from shardlite.names import fold
from shardlite.sql.plan import PlanKind

CASES = Path(__file__).parent / "cases"
FILES = ("plans.json", "selects.json", "changes.json", "push_down.json", "init_plans.json")
PLANS = [case for name in FILES for case in json.loads((CASES / name).read_text(encoding="utf-8"))]
REFUSALS = json.loads((CASES / "refusals.json").read_text(encoding="utf-8"))
DIFFERENT_EACH_TIME = ("EXPLAIN", "random()", "'now'", "CURRENT_T")
GOLDEN_SHARDS = 4


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(SHOP) as made:
        yield made


@pytest.fixture(scope="module")
def clusters(template: Template) -> Iterator[dict[int, Cluster]]:
    """Databases for statements that change nothing."""
    with ExitStack() as stack:
        yield {count: stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS}


def too_old(sql: str) -> bool:
    """Tell whether this SQLite doesn't know the statement."""
    words = {"FULL JOIN": (3, 39), "RIGHT JOIN": (3, 39), "RETURNING": (3, 35), "MATERIALIZED": (3, 35)}
    words |= {"IS DISTINCT FROM": (3, 39), "IS NOT DISTINCT FROM": (3, 39)}
    return any(word in sql and version > SQLITE_VERSION for word, version in words.items())


def name_of(case: dict[str, Any]) -> str:
    return str(case["sql"])[:70]


@pytest.mark.parametrize("case", PLANS, ids=name_of)
def test_plan(clusters: dict[int, Cluster], case: dict[str, Any]) -> None:
    if too_old(case["sql"]):
        pytest.skip("this SQLite doesn't know the statement")
    plan = clusters[GOLDEN_SHARDS].plan(case["sql"], case.get("parameters", ()))
    assert str(plan).splitlines() == case["plan"]


@pytest.mark.parametrize("case", REFUSALS, ids=name_of)
def test_refusal(clusters: dict[int, Cluster], case: dict[str, Any]) -> None:
    if too_old(case["sql"]):
        pytest.skip("this SQLite doesn't know the statement")
    for cluster in clusters.values():
        with pytest.raises(getattr(errors, case["error"])) as caught:
            cluster.plan(case["sql"], case.get("parameters", ()))
        assert type(caught.value).__name__ == case["error"]
        assert str(caught.value) == case["message"]


@pytest.mark.parametrize("case", PLANS, ids=name_of)
def test_golden_plans_answer_as_one_file(
    template: Template, clusters: dict[int, Cluster], case: dict[str, Any]
) -> None:
    """``moved`` bounds the rows that are brought together; ``ordered``: the rows have one order;
    ``ids``: one file gives other ids to the new rows, each with ours."""
    sql, parameters = case["sql"], case.get("parameters", ())
    if case["plan"][0] == PlanKind.DDL:
        pytest.skip("schema changes have tests of their own")
    if too_old(sql):
        pytest.skip("this SQLite doesn't know the statement")
    whole = plain(SHOP)
    expected = ask(whole, sql, parameters)
    for count in SHARD_COUNTS:
        if clusters[count].plan(sql, parameters).readonly:
            compare(clusters[count], case, expected)
            continue
        with template.cluster(count) as cluster:
            compare(cluster, case, expected)
            found, wanted = cluster.contents(), whole_contents(whole, cluster.tables)
            if "items" in sql:  # its default is the time
                found.pop("items")
                wanted.pop("items")
            if not any(word in sql for word in DIFFERENT_EACH_TIME):
                assert (renumbered(found, case), count) == (wanted, count)
            assert cluster.misplaced() == []
    whole.close()


def renumbered(contents: dict[str, list[str]], case: dict[str, Any]) -> dict[str, list[str]]:
    for here, there in case.get("ids", {}).items():
        contents = {
            name: sorted(row.replace(f"({there},", f"({here},") for row in rows) for name, rows in contents.items()
        }
    return contents


def compare(cluster: Cluster, case: dict[str, Any], expected: Answer) -> None:
    sql, parameters = case["sql"], case.get("parameters", ())
    plan, found = cluster.plan(sql, parameters), cluster.run(sql, parameters)
    num_shards = cluster.manager.num_shards
    assert (found.moved <= case.get("moved", 0), num_shards) == (True, num_shards), f"{found.moved} rows were moved"
    if plan.kind is PlanKind.EXPLAIN:  # each shard says it, below a row that names the shard
        assert (len(found.rows) > len(expected.rows), found.error) == (True, expected.error)
        return
    if plan.kind in (PlanKind.SCHEMA, PlanKind.EACH_SHARD) or any(word in sql for word in DIFFERENT_EACH_TIME):
        assert (len(found.rows), found.error) == (len(expected.rows), expected.error)
        return
    ordered = plan.merge_rowid or case.get("ordered", False)
    assert (found.shown(ordered=ordered), num_shards) == (expected.shown(ordered=ordered), num_shards)
    if found.lastrowid is not None:
        assert (found.lastrowid, num_shards) == (expected.lastrowid, num_shards)


def test_every_plan_kind_is_golden() -> None:
    beside = {PlanKind.ATTACHED_WRITE, PlanKind.ATTACHED_PRAGMA}  # they have tests of their own, with attached files
    assert {case["plan"][0] for case in PLANS} == {str(kind) for kind in PlanKind if kind not in beside}


def test_fan_out_of_one_table_is_in_rowid_order(clusters: dict[int, Cluster]) -> None:
    whole = plain(SHOP)
    for table in ("users", "orders", "tags"):
        sql = f"SELECT * FROM {table}"
        plan = clusters[4].plan(sql)
        assert plan.merge_rowid
        assert clusters[4].run(sql).rows == whole.execute(sql).fetchall()
        assert fold(plan.tables[0]) == table
    whole.close()
