"""INSERT in pieces: ids in their places, rows with their shards, parameters bound once each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sharded import Cluster, Template, plain, whole_contents
from shop import SHOP

from shardlite.errors import ProgrammingError
from shardlite.sql.plan import PlanKind


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(SHOP) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(template: Template) -> Iterator[Cluster]:
    with template.cluster(4) as made:
        yield made


def test_ids_are_spliced_as_parameters(cluster: Cluster) -> None:
    plan = cluster.plan("INSERT INTO orders (user_id, note) VALUES (:u, ':u')", {"u": 37})
    assert (plan.kind, plan.id_rows, plan.needs_id_for_key) == (PlanKind.ONE_SHARD, 1, False)
    assert plan.steps == ()
    done = plan.with_ids([7])
    assert done.id_rows == 0
    assert [(step.sql, step.parameters) for step in done.steps] == [
        ("INSERT INTO orders (\"id\", user_id, note) VALUES (?, ?, ':u')", (7, 37))
    ]


def test_an_id_that_is_the_key_decides_the_shard(cluster: Cluster) -> None:
    plan = cluster.plan("INSERT INTO users (name) VALUES (?)", ("x",))
    assert (plan.shards, plan.needs_id_for_key) == ((), True)
    shards = {plan.with_ids([number]).shards for number in range(200)}
    assert shards == {(0,), (1,), (2,), (3,)}


def test_null_ids_are_drawn_and_others_kept(cluster: Cluster) -> None:
    plan = cluster.plan("INSERT INTO orders VALUES (?, 37, 1, NULL), (900, 37, 2, ?)", (None, "n"))
    assert (plan.id_rows, plan.explicit_ids) == (1, (900,))
    assert plan.insert is not None
    assert plan.insert.probe
    assert plan.with_ids([5]).steps[0].parameters == (5, "n")


def test_the_wrong_number_of_ids_is_an_error(cluster: Cluster) -> None:
    plan = cluster.plan("INSERT INTO users (name) VALUES (?)", ("x",))
    with pytest.raises(ValueError, match="needs 1 ids, 2 were given"):
        plan.with_ids([1, 2])


def test_one_id_twice_is_refused_over_shards(cluster: Cluster) -> None:
    sql = "INSERT INTO orders (id, user_id) VALUES (900, 37), (900, 74)"
    plan = cluster.plan(sql)
    assert len(plan.steps) == 2
    assert plan.insert is not None
    assert plan.insert.probe
    assert cluster.run(sql).error.startswith("IntegrityError: UNIQUE constraint failed: orders.id")


def test_rows_one_by_one(cluster: Cluster) -> None:
    sql = "INSERT INTO orders (id, user_id, note) VALUES (NULL, 37, :a), (900, :b, ''), (NULL, 37, 'c')"
    plan = cluster.plan(sql, {"a": "x", "b": 74})
    assert plan.rows is None
    done = plan.with_ids([5, 6])
    assert done.rows is not None
    rows = done.rows()
    assert [(row.id, row.drawn, row.parameters) for row in rows] == [
        (5, True, (5, "x")),
        (900, False, (74,)),
        (6, True, (6,)),
    ]
    assert {row.shard for row in rows} == set(done.shards)
    assert len(rows) == done.row_count


def test_the_last_row_runs_last(cluster: Cluster) -> None:
    keys = [37, 111, 74]
    rows = ", ".join(f"({key})" for key in keys)
    plan = cluster.plan(f"INSERT INTO orders (user_id) VALUES {rows}").with_ids([1, 2, 3])
    last = cluster.plan("SELECT * FROM orders WHERE user_id = 74").shards[0]
    assert plan.steps[-1].shard == last
    assert plan.steps[-1].parameters[-1] == 3  # type: ignore[index]  # the plan has a sequence


def test_many_rows_stay_under_the_limit_of_parameters(template: Template) -> None:
    sql = "INSERT INTO tags (tag, n) VALUES " + ", ".join(f"('t{i % 7}', {i})" for i in range(40_000))
    with template.cluster(4) as cluster:
        assert cluster.run(sql).rowcount == 40_000  # each with an id to bind; SQLite takes 32,766 parameters
        whole = plain(SHOP)
        whole.execute(sql)
        assert cluster.contents() == whole_contents(whole, cluster.tables)
        whole.close()


def test_bad_parameters_name_the_cause(cluster: Cluster) -> None:
    with pytest.raises(ProgrammingError, match="uses 1, and there are 2 supplied"):
        cluster.plan("INSERT INTO users (name) VALUES (?)", ("a", "b"))
    with pytest.raises(ProgrammingError, match="binding parameter :n"):
        cluster.plan("INSERT INTO users (name) VALUES (:n)", {"m": 1})
