"""What a gathered change changed is found row by row through an index, however many rows were brought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.execute.coordinator import Coordinator

TABLES = {
    "an id": "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b TEXT)",
    "a rowid": "CREATE TABLE t (id TEXT COLLATE NOCASE, a, b TEXT /* shardlite: key=id */)",
    "columns": "CREATE TABLE t (id TEXT COLLATE NOCASE, a, b REAL DEFAULT 1, PRIMARY KEY (id, a, b)) WITHOUT ROWID",
    "strict": "CREATE TABLE t (id TEXT, a ANY, PRIMARY KEY (id, a)) STRICT, WITHOUT ROWID",
}


@pytest.mark.parametrize("names", TABLES)
def test_each_row_is_looked_up(
    names: str, make_manager: Callable[..., ShardManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make_manager(num_shards=3)
    manager.execute(TABLES[names])
    manager.executemany("INSERT INTO t (id, a) VALUES (?, ?)", [(n, n % 7) for n in range(60)])
    run, plans = Coordinator.run, []

    def seen(self: Coordinator, sql: str, parameters: Any = ()) -> Any:
        if "WHERE NOT EXISTS" in sql and "_shardlite_before_" in sql:
            plans.append([row[3] for row in self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)])
        return run(self, sql, parameters)

    monkeypatch.setattr(Coordinator, "run", seen)
    assert manager.execute("UPDATE t SET a = (SELECT count(*) FROM t) WHERE a < 3").rowcount == 27
    assert len(plans) >= 3, "the rows that are gone, and the new ones"
    for plan in plans:
        assert sum(line.startswith("SCAN") for line in plan) == 1, plan
        assert sum(line.startswith("SEARCH") for line in plan) == 1, plan


def test_as_many_columns_as_a_table_may_have(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=3)
    manager.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {', '.join(f'c{n}' for n in range(1_999))})")
    manager.insert_many("t", [{"id": n, "c1500": n} for n in range(9)])
    manager.execute("UPDATE t SET c1998 = (SELECT count(*) FROM t WHERE c1500 > 2), id = id + 100")
    found = manager.execute("SELECT id, c1500, c1998, c0 FROM t ORDER BY id").fetchall()
    assert found == [(n + 100, n, 6, None) for n in range(9)]
