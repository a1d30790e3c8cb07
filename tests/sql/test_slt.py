"""SQLite's own logic tests: every query is planned or refused, and what is planned answers as one file does."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Definition, Planning

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.introspect import describe, table_names
from shardlite.router.table import TableKind

CORPUS = Path(os.environ.get("SHARDLITE_SLT", Path(__file__).parents[3] / "shared" / "slt")) / "corpus"
PER_FILE = int(os.environ.get("SHARDLITE_SLT_QUERIES", "400"))


def files() -> list[Path]:
    return sorted(CORPUS.rglob("*.test.gz")) if CORPUS.is_dir() else []


def records(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("statement" or "query", SQL) of what SQLite should run."""
    with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    for chunk in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in chunk.split("\n") if line and not line.startswith("#")]
        wanted = True
        while lines and lines[0].split()[0] in ("skipif", "onlyif"):
            rule, engine = lines[0].split()[:2]
            wanted = wanted and (engine == "sqlite") == (rule == "onlyif")
            lines = lines[1:]
        if not wanted or not lines or lines[0].split()[0] not in ("statement", "query"):
            continue
        body = lines[1:]
        yield lines[0].split()[0], "\n".join(body[: body.index("----")] if "----" in body else body)


class Sharded:
    """A plain connection's schema and rows, with every table sharded by its key, over ``num_shards`` shards."""

    def __init__(self, whole: sqlite3.Connection, num_shards: int) -> None:
        self.whole = whole
        self.num_shards = num_shards
        self.planning: Planning | None = None
        self.cluster: Cluster | None = None
        self._schema: object = None
        self._changes = -1

    def refresh(self) -> None:
        (schema,) = self.whole.execute("PRAGMA schema_version").fetchone()
        if schema == self._schema and self.whole.total_changes == self._changes:
            return
        self.close()
        ddl = [
            sql for (sql,) in self.whole.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
        ]
        keys, rows = {}, []
        for name in table_names(self.whole):
            table = describe(self.whole, name).table(TableKind.SINGLE)
            unique = next((c.columns[0] for c in table.unique if c.columns and c.columns[0]), None)
            keys[fold(name)] = ((table.primary_key or (unique or table.columns[0].name,))[0],)
            names = ", ".join(f'"{column.name}"' for column in table.columns)
            marks = ", ".join("?" * len(table.columns))
            values = self.whole.execute(f'SELECT {names} FROM "{name}" ORDER BY rowid').fetchall()
            rows.append((f'INSERT INTO "{name}" ({names}) VALUES ({marks})', values))
        self.planning = Planning(Definition([sql for sql in ddl if "TRIGGER" not in sql[:20].upper()], keys, rows=rows))
        self.cluster = Cluster(self.planning, self.num_shards)
        self._schema, self._changes = schema, self.whole.total_changes

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.close()
        if self.planning is not None:
            self.planning.close()


def check_file(path: Path, num_shards: int, limit: int) -> tuple[int, int]:
    whole = sqlite3.connect(":memory:", isolation_level=None)
    sharded = Sharded(whole, num_shards)
    planned = refused = 0
    try:
        for kind, sql in records(path):
            if kind == "statement":
                try:
                    whole.execute(sql)
                except sqlite3.Error:
                    continue
                continue
            if planned + refused >= limit:
                break
            sharded.refresh()
            assert sharded.cluster is not None
            try:
                _, rows, _ = sharded.cluster.run(sql)
            except NotSupportedError:
                refused += 1
                continue
            planned += 1
            expected = whole.execute(sql).fetchall()
            assert sorted(map(repr, rows)) == sorted(map(repr, expected)), sql
    finally:
        sharded.close()
        whole.close()
    return planned, refused


@pytest.mark.slow
@pytest.mark.skipif(not files(), reason=f"SQLite's logic tests are not in {CORPUS}: set SHARDLITE_SLT")
@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_logic_tests(path: Path, num_shards: int) -> None:
    planned, refused = check_file(path, num_shards, PER_FILE)
    assert planned + refused > 0 or path.parent.name == "evidence"
