"""From an opened source to the facts that are decided about, and from the decisions to the words about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError
from shardlite.execute.placement import refuse_definition
from shardlite.names import fold, quote
from shardlite.router.introspect import describe
from shardlite.router.table import ConstraintMode, Table, TableKind, UniqueConstraint
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.triggers import read_trigger
from shardlite.sql.virtual_tables import content_table
from shardlite.topology.choose import Facts, Stated, choose, foreign_key_text, read_stated, seen_foreign_keys
from shardlite.topology.hinted import follow_hints, read_hints, stated_by
from shardlite.topology.report import ImportPlan, TableChoice
from shardlite.topology.source import SourceSchema, StrPath, open_source, read_schema


@dataclass(frozen=True, slots=True)
class Examined:
    """What an import works from: the source's schema, the placed tables and the shadow tables to copy beside them."""

    schema: SourceSchema
    tables: Mapping[str, Table]
    """Placed, by folded name, in the order of creation."""
    shadows: Mapping[str, Table]
    """Tables that virtual tables keep for themselves: single, copied row by row, in no catalog."""
    rows: Mapping[str, int]
    """Rows by folded name, shadow tables too; none for virtual tables."""
    schema_version: int
    plan: ImportPlan


def examine(
    path: StrPath,
    *,
    num_shards: int,
    keys: Mapping[str, str | Sequence[str]],
    reference: Iterable[str],
    single: Iterable[str],
    constraints: ConstraintMode,
) -> Examined:
    """Read a source's schema and sizes, and choose. Writes nothing."""
    with open_source(path) as conn:
        conn.execute("BEGIN")
        schema = read_schema(conn, path)
        tables, shadows = _describe(schema)
        rows = {name: 0 if table.virtual else count_rows(conn, table) for name, table in {**tables, **shadows}.items()}
        version = conn.execute("PRAGMA schema_version").fetchone()[0]
    facts = Facts(
        tables=tables,
        rows=rows,
        triggers=tuple(read_trigger(o.name, o.tbl_name, o.sql or "") for o in schema.of_type("trigger")),
        contents=_contents(schema),
        num_shards=num_shards,
    )
    stated = read_stated(facts, keys, reference, single)
    hints = read_hints(schema, stated)
    placed = follow_hints(_choose(schema, facts, stated_by(facts, stated, hints), constraints), hints)
    plan = ImportPlan(
        source=str(path),
        num_shards=num_shards,
        encoding=schema.encoding,
        tables=tuple(_choice(table, placed, rows[name]) for name, table in placed.items()),
        warnings=tuple(_warnings(placed)),
    )
    return Examined(schema, placed, shadows, rows, version, plan)


def _choose(schema: SourceSchema, facts: Facts, stated: Stated, constraints: ConstraintMode) -> dict[str, Table]:
    """Choose, and keep a table whole where shards couldn't follow its definition and nothing was stated of it."""
    while True:
        placed = choose(facts, stated, constraints)
        whole = dict(facts.whole)
        for item in schema.of_type("table"):
            table = placed[fold(item.name)]
            try:
                refuse_definition(table, item.sql or "")
            except NotSupportedError as error:
                if not table.sharded or fold(item.name) in stated.keys:
                    raise
                whole[fold(item.name)] = f"Sharded by {', '.join(table.key_columns)} it couldn't be followed: {error}."
        if len(whole) == len(facts.whole):
            return placed
        facts = replace(facts, whole=whole)


def count_rows(conn: sqlite3.Connection, table: Table, schema: str = "main") -> int:
    """Count a table's rows."""
    return int(conn.execute(f"SELECT count(*) FROM {quote(schema)}.{quote(table.name)}").fetchone()[0])


def scratch_schema(statements: Iterable[tuple[str, str]], encoding: str) -> sqlite3.Connection:
    """Return a new in-memory connection that holds a schema and no rows; the caller closes it.

    :param statements: (name, SQL text) in order.
    :raises NotSupportedError: the schema needs what this SQLite lacks: a module, a collation, a function.
    """
    conn = sqlite3.connect(":memory:", isolation_level=None)
    try:
        conn.execute(f"PRAGMA encoding = '{encoding}'")
        for name, sql in statements:
            try:
                conn.execute(sql)
            except sqlite3.Error as error:
                raise NotSupportedError(
                    f"{name} can't be created with this SQLite: {error}. Its text: {sql}"
                ) from error
    except BaseException:
        conn.close()
        raise
    return conn


def _describe(schema: SourceSchema) -> tuple[dict[str, Table], dict[str, Table]]:
    objects = [(o.name, o.sql or "") for o in schema.of_type("table", "index", "view", "trigger")]
    conn = scratch_schema(objects, schema.encoding)
    try:
        tables = {fold(o.name): describe(conn, o.name).table(TableKind.SINGLE) for o in schema.of_type("table")}
        # A shadow table is no table to `describe`: look at it under another name, as an ordinary one.
        shadows = {}
        for item in schema.objects:
            if item.type == "table" and fold(item.name) in schema.shadow_tables:
                shadows[fold(item.name)] = _describe_shadow(item.name, item.sql or "")
    finally:
        conn.close()
    return tables, shadows


def _describe_shadow(name: str, sql: str) -> Table:
    conn = scratch_schema([(name, sql)], "UTF-8")
    try:
        return describe(conn, name).table(TableKind.SINGLE)
    finally:
        conn.close()


def _contents(schema: SourceSchema) -> dict[str, str]:
    """Return the tables that hold the content of FTS virtual tables, with these."""
    found = {}
    for item in schema.of_type("table"):
        content = content_table(item.sql or "")
        if content is not None:
            found[fold(content)] = item.name
    return found


def _warnings(placed: Mapping[str, Table]) -> list[str]:
    return [
        f"{table.name}: columns hide every name of its rowid, so the rowids of its rows are not kept"
        for table in placed.values()
        if table.rowid_name is None and not table.without_rowid and not table.virtual
    ]


def _choice(table: Table, placed: Mapping[str, Table], rows: int) -> TableChoice:
    seen, _hidden = seen_foreign_keys(table, placed)
    hidden = unseen_uniqueness(table)
    unique = [_unique_text(c) for c in table.unique if c not in hidden]
    if table.rowid_alias is not None:
        unique.insert(0, f"PRIMARY KEY ({table.rowid_alias})")
    foreign = [f"FOREIGN KEY {foreign_key_text(k)}" for k in seen]
    return TableChoice(
        table=table.name,
        kind=table.kind,
        key_columns=table.key_columns,
        rows=rows,
        reason=table.reason,
        enforced=tuple(unique + foreign),
        unenforced=table.unenforced,
        advice=tuple(_advice(table, placed)),
    )


def _unique_text(constraint: UniqueConstraint) -> str:
    columns = ", ".join(name or "an expression" for name in constraint.columns)
    return f"{'PRIMARY KEY' if constraint.origin == 'pk' else 'UNIQUE'} ({columns})"


def _advice(table: Table, placed: Mapping[str, Table]) -> list[str]:
    """Say what can be done about each constraint that no shard sees."""
    found = []
    for constraint in unseen_uniqueness(table):
        first = next((name for name in constraint.columns if name is not None), None)
        other = f"--key {table.name}.{first} or " if first is not None and len(constraint.columns) == 1 else ""
        found.append(
            f"{_unique_text(constraint)} is not enforced: keep it so in the application, or have it enforced with "
            f"{other}--single {table.name}"
        )
    _seen, hidden = seen_foreign_keys(table, placed)
    for key in hidden:
        parent = placed.get(fold(key.parent))
        text = f"FOREIGN KEY {foreign_key_text(key)} is not enforced"
        if parent is None:
            found.append(f"{text}: there is no table {key.parent}")
        elif parent.name == table.name:
            found.append(f"{text}: both rows are in {table.name}; --single {table.name} would enforce it")
        elif parent.sharded and table.sharded:
            carried = ", ".join(parent.key_columns)
            found.append(
                f"{text}: give {table.name} a column with {parent.name}'s shard key ({carried}) and make it the key, "
                f"or --reference {parent.name} if it is small and rarely written"
            )
        else:
            found.append(f"{text}: --reference {parent.name} would enforce it, or --single for both tables")
    return found
