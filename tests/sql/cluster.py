"""Plans run by hand: N shard files in memory beside one plain file, for comparing answers. No manager is involved."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardlite.driver import sqlite3
from shardlite.execute.planning import PlanningConnection
from shardlite.names import fold, quote
from shardlite.router.introspect import describe, table_names
from shardlite.router.layout import Layout
from shardlite.router.table import Table, TableKind
from shardlite.sql.facts import Schema
from shardlite.sql.plan import Plan, PlanKind, Program
from shardlite.sql.planner import Planner

SHARD_COUNTS = (1, 3, 4, 8)


@dataclass
class Definition:
    """A schema with its rows: ``keys`` says which tables are sharded and by what, ``groups`` which are colocated."""

    ddl: Sequence[str]
    keys: Mapping[str, tuple[str, ...]]
    references: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[tuple[str, Sequence[Sequence[Any]]]] = ()
    """INSERT texts for the plain file, each with its rows."""

    def tables(self) -> dict[str, Table]:
        scratch = plain(self)
        found = {}
        for name in table_names(scratch):
            folded = fold(name)
            kind = TableKind.SINGLE
            if folded in self.keys:
                kind = TableKind.SHARDED
            elif folded in self.references:
                kind = TableKind.REFERENCE
            key = self.keys.get(folded, ())
            found[folded] = describe(scratch, name).table(
                kind, key_columns=key, group=self.groups.get(folded, folded) if key else ""
            )
        scratch.close()
        return found


def plain(definition: Definition, *, rows: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for sql in definition.ddl:
        connection.execute(sql)
    if rows:
        for sql, values in definition.rows:
            connection.executemany(sql, values)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class Planning:
    """The planner of a definition, shared by clusters of all sizes."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.connection = PlanningConnection(definition.ddl)
        self.tables = definition.tables()
        objects = self.connection.objects()
        self.schema = Schema(
            self.tables,
            {fold(item.name): item.sql for item in objects if item.type == "view"},
            {fold(item.name): item.sql for item in objects if item.type == "trigger"},
        )
        self.planner = Planner(self.schema, self.connection.prepare, self.connection.columns)

    def close(self) -> None:
        self.connection.close()


class Cluster:
    """The rows of a definition over ``num_shards`` connections, split by the layout."""

    def __init__(self, planning: Planning, num_shards: int) -> None:
        self.planning = planning
        self.rows_moved = 0
        self.columns: list[str] = []
        self.layout = Layout.create(num_shards=num_shards)
        self.shards = [plain(planning.definition) for _ in range(num_shards)]
        whole = plain(planning.definition, rows=True)
        for shard in self.shards:
            shard.execute("PRAGMA foreign_keys = OFF")
        for table in planning.tables.values():
            self._split(whole, table)
        for shard in self.shards:
            shard.execute("PRAGMA foreign_keys = ON")
        whole.close()

    def close(self) -> None:
        for shard in self.shards:
            shard.close()

    def _split(self, whole: sqlite3.Connection, table: Table) -> None:
        names = [column.name for column in table.columns if column.writable]
        columns = [quote(name) for name in names]
        if table.rowid_name is not None and table.rowid_alias is None:
            columns.append(table.rowid_name)
        listed = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        for row in whole.execute(f"SELECT {listed} FROM {quote(table.name)}").fetchall():
            for shard in self._owners(table, dict(zip(names, row, strict=False))):
                self.shards[shard].execute(f"INSERT INTO {quote(table.name)} ({listed}) VALUES ({marks})", row)

    def _owners(self, table: Table, row: Mapping[str, Any]) -> Sequence[int]:
        if table.kind is TableKind.SINGLE:
            return (0,)
        if table.kind is TableKind.REFERENCE:
            return range(len(self.shards))
        values = [row[name] for name in table.key_columns]
        return (self.layout.shard_of(table.key_type)(values[0] if len(values) == 1 else tuple(values)),)

    def plan(self, sql: str, parameters: Any = ()) -> Plan:
        return self.planning.planner.plan(sql, parameters, self.layout)

    def run(self, sql: str, parameters: Any = ()) -> tuple[Plan, list[tuple[Any, ...]], int]:
        """Return the plan, the rows and the row count."""
        plan = self.plan(sql, parameters)
        if plan.program is not None and plan.readonly:
            try:
                return plan, self._run_program(plan.program, plan.sql), -1
            except sqlite3.OperationalError as error:
                if plan.on_overflow is None or "integer overflow" not in str(error):
                    raise
                plan = plan.on_overflow()
                assert plan.program is not None
                return plan, self._run_program(plan.program, plan.sql), -1
        if plan.id_rows:
            plan = plan.with_ids(self._next_ids(plan))
        for identity in plan.explicit_ids if plan.insert is not None and plan.insert.probe else ():
            self._probe(plan, identity)
        parts, count = [], 0
        for step in plan.steps:
            cursor = self.shards[step.shard].execute(step.sql, step.parameters)
            parts.append(cursor.fetchall())
            if plan.kind is not PlanKind.EVERY_SHARD or step.shard == 0:
                count += cursor.rowcount
        if plan.kind is PlanKind.EVERY_SHARD:
            assert all(part == parts[0] for part in parts)
            parts = parts[:1]
        if plan.merge_rowid:
            return plan, [row[1:] for row in heapq.merge(*parts, key=lambda row: row[0])], count
        return plan, [row for part in parts for row in part], count

    def _run_program(self, program: Program, sql: str) -> list[tuple[Any, ...]]:
        """Bring the rows together and run the final text; ``rows_moved`` counts them."""
        coordinator = sqlite3.connect(":memory:", isolation_level=None)
        try:
            self.rows_moved = 0
            for move in program.moves:
                coordinator.execute(move.create)
                marks = ", ".join("?" * move.width)
                for shard in move.shards:
                    rows = self.shards[shard].execute(move.sql, move.parameters).fetchall()
                    self.rows_moved += len(rows)
                    coordinator.executemany(f"{move.insert} VALUES ({marks})", rows)
            for text in program.setup:
                coordinator.execute(text)
            cursor = coordinator.execute(sql, program.parameters)
            self.columns = [column[0] for column in cursor.description]
            return cursor.fetchall()
        finally:
            coordinator.close()

    def _next_ids(self, plan: Plan) -> list[int]:
        """Give the ids that one plain file would give."""
        assert plan.insert is not None
        table = self.planning.tables[fold(plan.insert.table)]
        sql = f"SELECT max({table.rowid_alias or table.rowid_name}) FROM {quote(table.name)}"
        largest = max([shard.execute(sql).fetchone()[0] or 0 for shard in self.shards])
        return list(range(largest + 1, largest + 1 + plan.id_rows))

    def _probe(self, plan: Plan, identity: int) -> None:
        assert plan.insert is not None
        table = self.planning.tables[fold(plan.insert.table)]
        name = table.rowid_alias or table.rowid_name
        for shard in self.shards:
            if shard.execute(f"SELECT 1 FROM {quote(table.name)} WHERE {name} = ?", (identity,)).fetchone():
                raise sqlite3.IntegrityError(f"UNIQUE constraint failed: {table.name}.{name}")

    def contents(self) -> dict[str, list[str]]:
        """All rows of all tables with their types, sorted; a reference table's from its first copy."""
        return {
            table.name: sorted(
                line for shard in (self.shards if table.sharded else self.shards[:1]) for line in rows_of(shard, table)
            )
            for table in self.planning.tables.values()
        }

    def misplaced(self) -> list[str]:
        """Rows of sharded tables on another shard than their key's."""
        wrong = []
        for table in self.planning.tables.values():
            if not table.sharded:
                continue
            listed = ", ".join(quote(name) for name in table.key_columns)
            for number, shard in enumerate(self.shards):
                wrong.extend(
                    f"{table.name} {key!r} on shard {number}"
                    for key in shard.execute(f"SELECT {listed} FROM {quote(table.name)}")
                    if list(self._owners(table, dict(zip(table.key_columns, key, strict=True)))) != [number]
                )
        return wrong


def rows_of(connection: sqlite3.Connection, table: Table) -> list[str]:
    rowid = f", {table.rowid_name}" if table.rowid_name is not None and table.rowid_alias is None else ""
    return [repr(row) for row in connection.execute(f"SELECT *{rowid} FROM {quote(table.name)}")]


def whole_contents(connection: sqlite3.Connection, tables: Mapping[str, Table]) -> dict[str, list[str]]:
    return {table.name: sorted(rows_of(connection, table)) for table in tables.values()}
