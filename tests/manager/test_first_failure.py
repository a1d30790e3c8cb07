"""Which row of an INSERT is named when several can't be inserted: the first one of the statement, as in one file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError

SCHEMA = {
    "by_key": "CREATE TABLE by_key (id INTEGER PRIMARY KEY, k TEXT NOT NULL, x INT CHECK (x <> 3), u NOT NULL)",
    "by_id": "CREATE TABLE by_id (id INTEGER PRIMARY KEY, k TEXT NOT NULL, x INT CHECK (x <> 3), u NOT NULL)",
    "plain": "CREATE TABLE plain (id TEXT, k TEXT, x INT CHECK (x <> 3), u NOT NULL, PRIMARY KEY (k, id)) "
    "WITHOUT ROWID",
    "kept": "CREATE TABLE kept (id INTEGER PRIMARY KEY, k TEXT NOT NULL DEFAULT 'd', x INT CHECK (x <> 3), u NOT NULL)",
    "tree": "CREATE TABLE tree (k TEXT, id INT, x INT CHECK (x <> 3), u NOT NULL, up INT, "
    "PRIMARY KEY (k, id), FOREIGN KEY (k, up) REFERENCES tree (k, id)) WITHOUT ROWID",
}
GUARDS = (
    "CREATE TRIGGER after_all AFTER INSERT ON by_key WHEN NEW.x = 4 BEGIN SELECT RAISE(ABORT, 'no four'); END",
    "CREATE TRIGGER before_all BEFORE INSERT ON by_key WHEN NEW.x = 5 BEGIN SELECT RAISE(ABORT, 'no five'); END",
)


class Both:
    """A file and shards that get the same statements."""

    def __init__(self, path: Path, num_shards: int) -> None:
        self.plain = sqlite3.connect(":memory:", isolation_level=None)
        self.plain.execute("PRAGMA foreign_keys = ON")
        self.manager = ShardManager(db_dir=path, num_shards=num_shards, durability="normal")
        for name, sql in SCHEMA.items():
            self.plain.execute(sql)
            self.manager.create_table(sql, shard_key="id" if name == "by_id" else "k")
        for sql in GUARDS:
            self.plain.execute(sql)
            self.manager.apply_schema(sql)

    def outcome(self, conn: Any, sql: str, parameters: Any) -> tuple[Any, ...]:
        try:
            conn.execute(sql, parameters)
        except sqlite3.Error as error:
            kind = IntegrityError if isinstance(error, sqlite3.IntegrityError) else type(error)
            words = str(error).split(" [")[0]
        else:
            kind, words = None, ""
        last = conn.execute("SELECT changes()").fetchone()
        return kind, words, last

    def require_same(self, sql: str, parameters: Any = ()) -> str:
        plain = self.outcome(self.plain, sql, parameters)
        ours = self.outcome(self.manager, sql, parameters)
        assert ours == plain, f"{sql} {parameters!r}"
        return str(plain[1])

    def require_same_rows(self) -> None:
        for name in SCHEMA:
            sql = f"SELECT * FROM {name} ORDER BY k, id"
            assert self.manager.execute(sql).fetchall() == self.plain.execute(sql).fetchall()


@pytest.fixture(params=[1, 3])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path / "shop", request.param)
    yield made
    made.manager.shutdown()
    made.plain.close()


@pytest.mark.parametrize("table", SCHEMA)
@pytest.mark.parametrize("conflict", ["", "OR ABORT ", "OR ROLLBACK "])
def test_many_rows(both: Both, table: str, conflict: str) -> None:
    made = random.Random(f"{table} {conflict}")
    said = set()
    for _ in range(60):
        rows = [
            (
                made.choice([*range(1, 40), *range(1, 40), "no number" if "by" in table else 41]),
                made.choice([*"abcdefgh" * 3, None]) if table != "kept" else made.choice("abcdefgh"),
                made.choice([1, 2, 5, 6, 7, 8, 9, 3, 4]),
                made.choice([1, 1, 1, 1, 1, 1, None]),
            )
            for _ in range(made.randint(1, 5))
        ]
        marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
        sql = f"INSERT {conflict}INTO {table} (id, k, x, u) VALUES {marks}"
        said.add(both.require_same(sql, [value for row in rows for value in row]).split(":")[0])
    both.require_same_rows()
    assert said >= {"", "UNIQUE constraint failed", "CHECK constraint failed", "NOT NULL constraint failed"}
    assert both.manager.check().ok


def test_a_stated_id_beside_drawn_ones(both: Both) -> None:
    for table in ("by_key", "by_id"):
        both.require_same(f"INSERT INTO {table} (id, k, u) VALUES (2, 'a', 1)")
        said = both.require_same(f"INSERT INTO {table} (id, k, u) VALUES (2, 'b', 1), (NULL, 'c', 1), (NULL, 'd', 1)")
        assert said == f"UNIQUE constraint failed: {table}.id"
        said = both.require_same(f"INSERT INTO {table} (id, k, x, u) VALUES (NULL, 'b', 3, 1), (2, 'c', 1, 1)")
        assert said.startswith("CHECK")
    both.require_same_rows()


def test_of_a_single_row_what_comes_before_its_id(both: Both) -> None:
    both.require_same("INSERT INTO by_key VALUES (2, 'a', 1, 1)")
    for key in "abcdef":
        assert both.require_same("INSERT INTO by_key VALUES (2, ?, 3, 1)", [key]).startswith("CHECK")
        assert both.require_same("INSERT INTO by_key VALUES (2, ?, 1, NULL)", [key]).startswith("NOT NULL")
        assert both.require_same("INSERT INTO by_key VALUES (2, ?, 4, 1)", [key]).startswith("UNIQUE")
        assert both.require_same("INSERT INTO by_key VALUES (2, ?, 5, 1)", [key]) == "no five"


def test_a_key_left_to_its_default_that_is_null(both: Both) -> None:
    for rows in ("(1, 'a', 3, 1), (2, NULL, 1, 1)", "(1, NULL, 1, 1), (2, 'a', 3, 1)", "(2, NULL, 3, 1)"):
        both.require_same(f"INSERT INTO kept VALUES {rows}")


def test_a_parent_that_a_later_row_brings(both: Both) -> None:
    sql = "INSERT INTO tree (k, id, up, x, u) VALUES "
    assert both.require_same(sql + "('a', 1, 2, 1, 1), ('a', 2, NULL, 1, 1), ('b', 1, NULL, 1, 1)") == ""
    said = both.require_same(sql + "('b', 2, 3, 1, 1), ('b', 3, NULL, 1, 1), ('c', 2, NULL, 3, 1), ('d', 1, 9, 1, 1)")
    assert said.startswith("CHECK")
    said = both.require_same(sql + "('c', 2, 9, 1, 1), ('d', 1, NULL, 1, 1), ('a', 1, NULL, 1, 1)")
    assert said.startswith("UNIQUE")
    said = both.require_same(sql + "('c', 2, 9, 1, 1), ('d', 1, NULL, 1, 1), ('e', 1, NULL, 1, 1)")
    assert said.startswith("FOREIGN KEY")
    both.require_same_rows()


def test_the_set_that_fails_among_many(both: Both) -> None:
    sql = "INSERT INTO by_key VALUES (?, ?, ?, 1), (?, ?, ?, 1)"
    sets = [(1, "a", 1, 2, "b", 1), (3, "c", 3, 2, "d", 1), (5, "e", 1, 5, "f", 1)]
    with pytest.raises(IntegrityError, match="CHECK constraint failed"):
        both.manager.executemany(sql, sets)
    sets[1] = (3, "c", 1, 2, "d", 3)
    with pytest.raises(IntegrityError, match="CHECK constraint failed"):
        both.manager.executemany(sql, sets)
    sets[1] = (3, "c", 1, 2, "d", 1)
    with pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: by_key.id"):
        both.manager.executemany(sql, sets)
    assert both.manager.execute("SELECT count(*), changes() FROM by_key").fetchone() == (0, 0)


def test_a_drawn_id_that_another_process_gave_is_drawn_again(tmp_path: Path) -> None:
    """Beside a stated id, and on the shard of another row."""
    with ShardManager(db_dir=tmp_path / "shop", num_shards=3, durability="normal") as manager:
        manager.create_table(SCHEMA["by_id"], shard_key="id")
        manager.execute("INSERT INTO by_id (k, u) VALUES ('a', 1)")
        with ShardManager(db_dir=tmp_path / "shop", durability="normal") as other:
            drawn = manager.execute("SELECT max(id) FROM by_id").fetchone()[0]
            for number in range(drawn + 1, drawn + 4):
                other.execute("INSERT INTO by_id (id, k, u) VALUES (?, 'theirs', 1)", [number])
        manager.execute("INSERT INTO by_id (id, k, u) VALUES (5000, 'b', 1), (NULL, 'c', 1), (NULL, 'd', 1)")
        assert manager.execute("SELECT count(*) FROM by_id").fetchone() == (7,)


@pytest.mark.parametrize("verb", ["INSERT OR IGNORE", "REPLACE", "INSERT OR ABORT"])
def test_stated_ids_that_are_no_column(both: Both, verb: str) -> None:
    table = "CREATE TABLE hidden (k TEXT, x INT)"
    both.plain.execute(table)
    both.manager.create_table(table, shard_key="k")
    for key in "abcdefgh":
        both.require_same(f"{verb} INTO hidden (rowid, k, x) VALUES (5, '{key}', 1), (6, '{key}x', 2)")
        both.require_same(f"{verb} INTO hidden (rowid, k, x) VALUES (9, '{key}', 1), (9, 'y{key}', 2)")
    sql = "SELECT rowid, k, x FROM hidden ORDER BY rowid"
    assert both.manager.execute(sql).fetchall() == both.plain.execute(sql).fetchall()


def test_the_last_row_that_came_in(both: Both) -> None:
    sql = "INSERT OR IGNORE INTO plain VALUES ('1', 'a', 1, 1), ('2', 'b', 3, 1)"
    both.require_same(sql)
    made = random.Random(5)
    table = "CREATE TABLE hidden (k TEXT PRIMARY KEY, x INT)"
    both.plain.execute(table)
    both.manager.create_table(table)
    for _ in range(30):
        rows = [(made.choice("abcdefghijklmnopqrstuvwxyz") + made.choice("xyz"), n) for n in range(5)]
        sql = "INSERT OR IGNORE INTO hidden VALUES " + ", ".join(["(?, ?)"] * 5)
        flat = [value for row in rows for value in row]
        plain = both.plain.execute(sql, flat)
        ours = both.manager.execute(sql, flat)
        assert ours.rowcount == plain.rowcount
        if plain.rowcount:
            find = "SELECT k FROM hidden WHERE rowid = ?"
            expected = both.plain.execute(find, [plain.lastrowid]).fetchone()
            assert both.manager.execute(find, [ours.lastrowid]).fetchone() == expected
