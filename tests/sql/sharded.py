"""A definition's rows in real databases of any number of shards, beside one plain file with the same rows."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, WalResetBugWarning
from shardlite.names import fold, quote
from shardlite.router.introspect import table_names
from shardlite.router.table import Table, TableKind
from shardlite.sql.plan import Plan, PlanKind

SHARD_COUNTS = (1, 3, 4, 8)
_MEMORY = Path("/dev/shm")
_AFTER_ROWS = ("TRIGGER", "VIEW")


@dataclass
class Definition:
    """A schema with its rows: ``keys`` says which tables are sharded and by what, ``groups`` which are colocated."""

    ddl: Sequence[str]
    keys: Mapping[str, tuple[str, ...]]
    references: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[tuple[str, Sequence[Sequence[Any]]]] = ()
    """INSERT texts for the plain file, each with its rows."""


def plain(definition: Definition) -> sqlite3.Connection:
    """Make one file in memory with all rows, on a connection that has no past."""
    loading = sqlite3.connect(":memory:", isolation_level=None)
    for sql in definition.ddl:
        loading.execute(sql)
    for sql, values in definition.rows:
        loading.executemany(sql, values)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    loading.backup(connection)
    loading.close()
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@dataclass(frozen=True)
class Answer:
    """What a statement gave: its rows, or the error's class and words."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rowcount: int = -1
    error: str = ""
    lastrowid: int | None = None
    moved: int = 0

    def shown(self, *, ordered: bool) -> tuple[Any, ...]:
        """Return what has to be equal, types included."""
        rows = list(map(repr, self.rows))
        # What follows SQLite's words says which shard it was, or whose row was in the way.
        error = re.sub(r" \[.*\]$", "", self.error, flags=re.DOTALL)
        return (rows if ordered else sorted(rows)), self.columns, self.rowcount, error


def ask(connection: sqlite3.Connection, sql: str, parameters: Any = ()) -> Answer:
    """Run a statement on the plain file."""
    try:
        cursor = connection.execute(sql, parameters)
        rows = cursor.fetchall()
        columns = tuple(column[0] for column in cursor.description or ())
        count = cursor.rowcount
        return Answer(rows, columns, count, lastrowid=connection.execute("SELECT last_insert_rowid()").fetchone()[0])
    except sqlite3.Error as error:
        return Answer(error=f"{type(error).__name__}: {error}")


class Template:
    """Closed databases of a definition, one for each number of shards, to be copied. A context manager."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.root = Path(tempfile.mkdtemp(prefix="shardlite-sql-", dir=_MEMORY if _MEMORY.is_dir() else None))
        self._made: dict[int, Path] = {}
        self._copies = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def _directory(self, num_shards: int) -> Path:
        if num_shards not in self._made:
            directory = self.root / f"of_{num_shards}"
            with _manager(directory, num_shards) as manager:
                _create(manager, self.definition)
            self._made[num_shards] = directory
        return self._made[num_shards]

    @contextmanager
    def cluster(self, num_shards: int) -> Iterator[Cluster]:
        """Give a database of its own, with all rows."""
        self._copies += 1
        directory = self.root / f"copy_{self._copies}"
        shutil.copytree(self._directory(num_shards), directory)
        try:
            with _manager(directory, num_shards) as manager:
                yield Cluster(manager)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _manager(directory: Path, num_shards: int) -> ShardManager:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WalResetBugWarning)
        return ShardManager(num_shards=num_shards, db_dir=directory, durability="normal")


def _create(manager: ShardManager, definition: Definition) -> None:
    """Create the tables and bring the plain file's rows in; triggers come last, as they have had their say there."""
    whole = plain(definition)
    parts = [sql.split(None, 2)[1].upper() for sql in definition.ddl]
    leaders: dict[str, str] = {}
    for sql, part in zip(definition.ddl, parts, strict=True):
        if part in _AFTER_ROWS:
            continue
        if part != "TABLE":
            manager.apply_schema(sql)
            continue
        scratch = sqlite3.connect(":memory:")
        scratch.execute(sql)
        name = table_names(scratch)[0]
        scratch.close()
        folded = fold(name)
        if folded not in definition.keys:
            manager.create_table(sql, kind="reference" if folded in definition.references else "single")
            continue
        key = definition.keys[folded]
        group = definition.groups.get(folded, folded)
        manager.create_table(sql, key[0] if len(key) == 1 else key, kind="sharded", colocate_with=leaders.get(group))
        leaders.setdefault(group, name)
    for table in manager.tables.values():
        columns = [quote(column.name) for column in table.columns if column.writable]
        if table.rowid_name is not None and table.rowid_alias is None:
            columns.insert(0, table.rowid_name)
        listed = ", ".join(columns)
        rows = whole.execute(f"SELECT {listed} FROM {quote(table.name)}").fetchall()
        if rows:
            marks = ", ".join("?" * len(columns))
            manager.executemany(f"INSERT INTO {quote(table.name)} ({listed}) VALUES ({marks})", rows)
    for sql, part in zip(definition.ddl, parts, strict=True):
        if part in _AFTER_ROWS:
            manager.apply_schema(sql)
    whole.close()


class Cluster:
    """One database, and what a test asks of it."""

    def __init__(self, manager: ShardManager) -> None:
        self.manager = manager
        self.tables: Mapping[str, Table] = manager.tables

    def plan(self, sql: str, parameters: Any = ()) -> Plan:
        return self.manager.explain(sql, parameters)

    def run(self, sql: str, parameters: Any = ()) -> Answer:
        """Run a statement; NotSupportedError is raised, the other errors are part of the answer."""
        try:
            result = self.manager.execute(sql, parameters)
            rows = [tuple(row) for row in result]
            return Answer(rows, result.columns, result.rowcount, "", result.lastrowid, result.rows_moved)
        except sqlite3.NotSupportedError:
            raise
        except sqlite3.Error as error:
            return Answer(error=f"{type(error).__name__}: {error}")

    def contents(self) -> dict[str, list[str]]:
        """All rows of all tables with their types, sorted; a reference table's from its first copy."""
        found: dict[str, list[str]] = {table.name: [] for table in self.tables.values()}
        for shard in self.manager.shard_ids:
            with self.manager.pool(shard).connection() as connection:
                for table in self.tables.values():
                    rows = rows_of(connection, table)
                    if table.sharded or shard == 0:
                        found[table.name] += rows
                    elif table.kind is TableKind.REFERENCE:
                        assert sorted(rows) == sorted(found[table.name]), f"the copy of {table.name} on shard {shard}"
                    else:
                        assert rows == [], f"rows of {table.name} on shard {shard}"
        return {name: sorted(rows) for name, rows in found.items()}

    def misplaced(self) -> list[str]:
        """Rows of sharded tables on another shard than their key's."""
        wrong = []
        for shard in self.manager.shard_ids:
            with self.manager.pool(shard).connection() as connection:
                for table in self.tables.values():
                    if not table.sharded:
                        continue
                    listed = ", ".join(quote(name) for name in table.key_columns)
                    for row in connection.execute(f"SELECT {listed} FROM {quote(table.name)}"):
                        key = row[0] if len(row) == 1 else tuple(row)
                        if self.manager.shard_for(table.name, key) != shard:
                            wrong.append(f"{table.name} {key!r} on shard {shard}")
        return wrong


def rows_of(connection: Any, table: Table) -> list[str]:
    rowid = f", {table.rowid_name}" if table.rowid_name is not None and table.rowid_alias is None else ""
    return [repr(tuple(row)) for row in connection.execute(f"SELECT *{rowid} FROM {quote(table.name)}")]


def whole_contents(connection: sqlite3.Connection, tables: Mapping[str, Table]) -> dict[str, list[str]]:
    return {table.name: sorted(rows_of(connection, table)) for table in tables.values()}


__all__ = ["SHARD_COUNTS", "Answer", "Cluster", "Definition", "Template", "ask", "plain", "whole_contents"]


def agree(
    template: Template,
    definition: Definition,
    sql: str,
    parameters: Any,
    num_shards: int,
    kind: PlanKind,
    *,
    past: str,
    ordered: bool = True,
    after_errors: bool = False,
) -> int:
    """Run a change on shards and on one file, compare all that can be seen, and return the rows moved.

    ``past`` asks what the change did, ``changes()`` and its like: also of one that failed where ``after_errors`` holds.
    """
    with closing(plain(definition)) as whole, template.cluster(num_shards) as cluster:
        assert cluster.plan(sql, parameters).kind is kind
        found, expected = cluster.run(sql, parameters), ask(whole, sql, parameters)
        assert found.shown(ordered=ordered) == expected.shown(ordered=ordered)
        assert cluster.contents() == whole_contents(whole, cluster.tables)
        assert cluster.misplaced() == []
        if after_errors or not found.error:
            assert cluster.run(past).rows == ask(whole, past).rows
        if not found.error:
            assert found.lastrowid is None or found.lastrowid == expected.lastrowid
        return found.moved


def fails_alike(
    template: Template, definition: Definition, before: str, sql: str, parameters: Any, num_shards: int
) -> None:
    """Run a change that fails, after one that doesn't: both sides say and know the same."""
    with closing(plain(definition)) as whole, template.cluster(num_shards) as cluster:
        for text, given in ((before, ()), (sql, parameters), ("SELECT changes()", ())):
            found, expected = cluster.run(text, given), ask(whole, text, given)
            assert found.rows == expected.rows
            assert bool(found.error) is bool(expected.error) is (text == sql)


def many_alike(
    template: Template, definition: Definition, good: tuple[str, list[Any]], bad: tuple[str, list[Any]], words: str
) -> None:
    """Run one statement for several sets of parameters, then one of which a set fails: all of them or none."""
    with closing(plain(definition)) as whole, template.cluster(3) as cluster:
        assert cluster.manager.executemany(*good).rowcount == whole.executemany(*good).rowcount
        assert cluster.contents() == whole_contents(whole, cluster.tables)
        with pytest.raises(IntegrityError, match=words):
            cluster.manager.executemany(*bad)
        assert cluster.contents() == whole_contents(whole, cluster.tables)
