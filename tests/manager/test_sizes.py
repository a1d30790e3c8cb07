"""What ANALYZE finds decides which rows are moved, and never what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.execute.sizes import Sizes

TABLES = (
    "CREATE TABLE small (id INTEGER PRIMARY KEY, x INTEGER, v TEXT)",
    "CREATE TABLE middle (id INTEGER PRIMARY KEY, x INTEGER, v TEXT)",
    "CREATE TABLE large (id INTEGER PRIMARY KEY, y INTEGER, code TEXT, flag INTEGER)",
    "CREATE INDEX by_code ON large (code, flag)",
    "CREATE INDEX by_flag ON large (flag)",
    "CREATE INDEX partly ON large (y) WHERE y < 5",
)
SMALL, MIDDLE, LARGE = 500, 900, 3_000


@pytest.fixture
def pair(make_manager: Callable[..., ShardManager]) -> Iterator[tuple[ShardManager, sqlite3.Connection]]:
    manager = make_manager(num_shards=3)
    plain = sqlite3.connect(":memory:")
    for sql in TABLES:
        manager.execute(sql)
        plain.execute(sql)
    rows = [(n, n % 300, f"v{n % 7}") for n in range(MIDDLE)]
    large = [(n, n % 300, f"c{n}", 1) for n in range(LARGE)]
    for target in (manager, plain):
        target.executemany("INSERT INTO small VALUES (?, ?, ?)", rows[:SMALL])
        target.executemany("INSERT INTO middle VALUES (?, ?, ?)", rows)
        target.executemany("INSERT INTO large VALUES (?, ?, ?, ?)", large)
    yield manager, plain
    plain.close()


CASES = [
    # A condition that finds one row: that row goes to the shards, and not the smaller table.
    ("SELECT count(*) FROM small s JOIN large l ON l.y = s.x WHERE l.code = 'c77'", 20, SMALL),
    ("SELECT s.v, count(*) FROM small s JOIN large l ON l.y = s.x WHERE l.code IN ('c7', 'c9') GROUP BY 1", 60, SMALL),
    ("SELECT s.id, l.id FROM small s JOIN large l ON l.y = s.x WHERE l.code = ? AND l.flag = 1", 20, SMALL),
    # One that finds all rows, though it looks as if it would find few: the smaller table goes.
    ("SELECT count(*), max(l.code) FROM middle s JOIN large l ON l.y = s.x AND l.flag = 1", MIDDLE + 300, LARGE - 1),
]


@pytest.mark.parametrize(("sql", "most", "before"), CASES)
def test_fewer_rows_are_moved(pair: tuple[ShardManager, sqlite3.Connection], sql: str, most: int, before: int) -> None:
    manager, plain = pair
    parameters = ("c5",) if "?" in sql else ()
    expected = sorted(plain.execute(sql, parameters).fetchall())
    result = manager.execute(sql, parameters)
    assert sorted(map(tuple, result.fetchall())) == expected
    assert result.rows_moved >= before, "a guess that is better than the figures would prove nothing"
    manager.execute("ANALYZE")
    result = manager.execute(sql, parameters)
    assert sorted(map(tuple, result.fetchall())) == expected
    assert result.rows_moved <= most


def test_figures_are_those_of_one_file(pair: tuple[ShardManager, sqlite3.Connection]) -> None:
    manager, plain = pair
    database = manager.database
    assert Sizes(database).prefixes(manager.tables["large"]) == {}
    manager.execute("ANALYZE")
    plain.execute("ANALYZE")
    told = {row[1]: [int(part) for part in row[2].split()] for row in plain.execute("SELECT * FROM sqlite_stat1")}
    sizes = Sizes(database)
    assert sizes.rows(manager.tables["large"]) == LARGE
    found = sizes.prefixes(manager.tables["large"])
    assert set(found) == {("code",), ("code", "flag"), ("flag",)}, "a partial index tells of its own rows alone"
    assert found["flag",] == told["by_flag"][1] == LARGE
    assert found["code",] <= 4 * told["by_code"][1], "each shard knows its own values, which may be those of others too"
    assert sizes.prefixes(manager.tables["small"]) == {}
