"""Random lives of a schema, hints among them, beside one plain file: texts, rows and errors stay the same."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.names import quote
from shardlite.sql.hints import without_hints
from shardlite.sql.tokens import tokens_of

Make = Callable[..., ShardManager]

TABLES = ("a", "b", "c d", "E", "f")
COLUMNS = ("id", "k", "x", "y", "Z z")
TYPES = ("INT", "TEXT", "", "REAL", "BLOB", "NUMERIC(5, 2)")
EXTRAS = ("",) * 5 + (" DEFAULT 5", " NOT NULL DEFAULT 'x'", " COLLATE NOCASE", " CHECK (1)")


def create_table(r: random.Random) -> str:
    columns = r.sample(COLUMNS, r.randint(2, 4))
    parts = [f"{quote(column)} {r.choice(TYPES)}{r.choice(EXTRAS)}" for column in columns]
    if r.random() < 0.6:
        parts[0] = f"{quote(columns[0])} INTEGER PRIMARY KEY{r.choice(('', ' AUTOINCREMENT'))}"
    hints = (
        f"key={quote(r.choice(columns))}",
        "kind=reference",
        "kind=single",
        f"key={quote(columns[0])}, constraints=checked",
    )
    hint = f" /* shardlite: {r.choice(hints)} */" if r.random() < 0.6 else ""
    parts[r.randrange(len(parts))] += hint
    # IF NOT EXISTS with a hint is refused where the table is there and is another one.
    unless = "" if hint else r.choice(("", "IF NOT EXISTS "))
    return f"CREATE TABLE {unless}{quote(r.choice(TABLES))} ({', '.join(parts)})"


def statement(r: random.Random) -> str:
    table, column, name, other = (quote(r.choice(names)) for names in (TABLES, COLUMNS, TABLES, COLUMNS))
    index, view = quote("i" + r.choice(TABLES)), quote("v" + r.choice(TABLES))
    choices = (
        *[create_table(r)] * 3,
        f"ALTER TABLE {table} RENAME TO {name}",
        f"ALTER TABLE {table} RENAME COLUMN {column} TO {other}",
        f"ALTER TABLE {table} ADD COLUMN {column} {r.choice(('INT', 'TEXT DEFAULT 3', ''))}",
        f"ALTER TABLE {table} DROP COLUMN {column}",
        f"DROP TABLE IF EXISTS {table}",
        f"CREATE INDEX {index} ON {table} ({column})",
        f"DROP INDEX IF EXISTS {index}",
        f"CREATE VIEW {view} AS SELECT {column} FROM {table}",
        f"DROP VIEW IF EXISTS {view}",
        f"CREATE TABLE {name} AS SELECT * FROM {table}",
        "VACUUM",
        "ANALYZE",
        "REINDEX",
        f"INSERT INTO {table} ({column}, {other}) VALUES ({r.randint(1, 99)}, {r.randint(1, 99)})",
        f"INSERT INTO {table} ({column}) VALUES ({r.randint(1, 99)})",
    )
    return r.choice(choices)


def shown(rows: Iterable[Iterable[object]]) -> list[tuple[object, ...]]:
    """Return a schema without its hints, which follow the tables while SQLite leaves comments as they are."""
    return [(*start, [token.text for token in tokens_of(without_hints(sql or ""))]) for *start, sql in rows]  # type: ignore[arg-type]  # the last column is the text


@pytest.mark.parametrize("seed", range(12))
def test_random_schemas(make_manager: Make, seed: int) -> None:
    r = random.Random(seed)
    manager = make_manager(num_shards=1 + seed % 3)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as plain:
        plain.execute("PRAGMA foreign_keys = ON")
        log: list[str] = []
        for _ in range(40):
            sql = statement(r)
            log.append(sql)
            try:
                manager.execute(sql)
                ours = None
            except NotSupportedError:
                continue
            except sqlite3.Error as error:
                ours = error
            try:
                plain.execute(sql)
                theirs = None
            except sqlite3.Error as error:
                theirs = error
            assert (ours is None) == (theirs is None), (ours, theirs, log)
            if theirs is None:
                require_same(manager, plain, log)
    assert manager.check().ok


def require_same(manager: ShardManager, plain: sqlite3.Connection, log: list[str]) -> None:
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    assert shown(manager.execute(schema)) == shown(plain.execute(schema)), log
    names = plain.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'").fetchall()
    for (name,) in names:
        # Ids that are left out may be others: whole rows are compared where there are none.
        columns = [row[1] for row in plain.execute(f"PRAGMA table_info({quote(name)})") if not row[5]]
        rows = f"SELECT {', '.join(map(quote, columns)) or 'count(*)'} FROM {quote(name)}"
        assert sorted(map(repr, map(tuple, manager.execute(rows)))) == sorted(map(repr, plain.execute(rows))), log
