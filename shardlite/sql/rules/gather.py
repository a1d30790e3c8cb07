"""The plan that makes any statement work: bring the rows together, run the text there as it is written."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.keys import Affinity, KeyType
from shardlite.router.table import Table, TableKind
from shardlite.sql.cores import SHARED
from shardlite.sql.facts import StatementKind
from shardlite.sql.found_rows import found_rows
from shardlite.sql.functions import PAST
from shardlite.sql.names_in import ROWIDS
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.plan import PlanKind, Route
from shardlite.sql.reduction import OWNED, Needed
from shardlite.sql.rules.common import analysed
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.stubs import index_ddl, index_in, source_columns, stub_ddl
from shardlite.sql.template import Gathered, Source
from shardlite.sql.tokens import Text, TokenKind, tokenize
from shardlite.sql.triggers import trigger_target
from shardlite.sql.virtual_tables import content_beside, virtual_sources

_WRITES = (StatementKind.INSERT, StatementKind.UPDATE, StatementKind.DELETE)


def gather(statement: Statement, why: str = "") -> Gathered | None:
    """Gather a query or a change of rows. ``why`` says why no other rule did it.

    Of a table that is only read come the columns and rows that can be needed; of one that may change the rows that the
    statement can find or meet (``found_rows.py``).
    """
    statement = statement.whole
    if statement.kind not in (StatementKind.SELECT, *_WRITES):
        return None
    if statement.prepared.attached_write:
        return _attached_write(statement)
    if statement.kind in _WRITES or not statement.prepared.readonly:
        return _gather_write(statement, why)
    needed = statement.reduction.needed
    sources = [source_of(statement, needed[fold(table.name)]) for table in statement.tables if not table.virtual]
    sources += _virtual(statement)
    return Gathered(
        PlanKind.GATHER,
        without_index_hints(statement.text),
        statement.text,
        tuple(sources),
        (*view_ddl(statement), *_settings(statement)),
        True,
        True,
        why or "the rows are brought together",
        statement.table_names,
        past=asks_past(statement),
        attached=statement.attached,
    )


def _settings(statement: Statement) -> tuple[str, ...]:
    """Return how the coordinator has to be set for the statement."""
    return ("PRAGMA automatic_index = OFF",) if statement.without_automatic_indexes else ()


def _attached_write(statement: Statement) -> Gathered:
    """Bring what a change of an attached file reads of the shards: whole rows, as SQLite doesn't tell all columns."""
    filters = found_rows(statement)
    read = [(table, filters.get(fold(table.name), "")) for table in statement.tables if not table.virtual]
    sources = [source_of(statement, Needed(table, condition), whole=True) for table, condition in read]
    sources += _virtual(statement)
    return Gathered(
        PlanKind.ATTACHED_WRITE,
        without_index_hints(statement.text),
        statement.text,
        tuple(sources),
        (*view_ddl(statement), *_settings(statement)),
        False,
        statement.returns_rows,
        "the attached file is changed, beside the rows that the change reads of the shards",
        statement.table_names,
        past=asks_past(statement),
        attached=statement.attached,
    )


def asks_past(statement: Statement) -> bool:
    """Tell whether it, or a trigger of it, asks what earlier statements did."""
    return bool(statement.prepared.functions & PAST)


def _virtual(statement: Statement) -> list[Source]:
    """Return the sources of the virtual tables that are read, and of what holds their content."""
    schema = statement.schema
    virtual = [table for table in statement.tables if table.virtual]
    contents = {fold(found.name): found for table in virtual if (found := content_beside(table, schema)) is not None}
    beside = [_all_columns(statement, found, None) for name, found in contents.items() if found not in statement.tables]
    return [*beside, *(source for table in virtual for source in virtual_sources(table, schema))]


def _gather_write(statement: Statement, why: str) -> Gathered:
    """Bring all that the change may touch, with its constraints and triggers, so that it runs as on one file."""
    written = statement.written
    refuse_unchecked_conflicts(statement)
    for table in written:
        if table.virtual:
            raise NotSupportedError(
                f"a change of the virtual table {table.name} that reads sharded tables: read their rows first and pass "
                "what they say as parameters"
            )
        if table.rowid_name is None and not table.without_rowid:
            raise NotSupportedError(f"{table.name} hides its rowid behind columns of all its names: rename one of them")
        if table.explicit_key and statement.kind is StatementKind.INSERT and fold(table.name) == statement.target:
            raise NotSupportedError(
                f"INSERT INTO {table.name}: its key stands beside the row: use manager.insert({table.name!r}, row, key)"
            )
    filters = found_rows(statement)
    sources = [_all_columns(statement, t, filters.get(fold(t.name))) for t in statement.tables if not t.virtual]
    sources += _virtual(statement)
    indexes = [text for table in statement.tables for text in statement.schema.index_texts(table.name)]
    touched = {fold(table.name) for table in statement.tables} | set(statement.views)
    triggers = [sql for sql in statement.schema.triggers.values() if trigger_target(sql) in touched]
    views = [sql for name, sql in statement.schema.views.items() if name in _views_for(statement)]
    return Gathered(
        PlanKind.GATHER_WRITE,
        statement.sql,
        statement.text,
        tuple(sources),
        (*indexes, *views, *triggers, *_settings(statement)),
        False,
        statement.returns_rows,
        why or "the rows are brought together",
        statement.table_names,
        tuple(table.name for table in written),
        asks_past(statement),
        statement.attached,
    )


def _views_for(statement: Statement) -> set[str]:
    """Return the views that it needs: those that SQLite reported, and the one that it writes to."""
    return set(statement.views) | {statement.target or ""}


def _all_columns(statement: Statement, table: Table, condition: str | None) -> Source:
    names = [quote(column.name) for column in table.columns if column.writable]
    if table.rowid_name is not None and table.rowid_alias is None:
        names.insert(0, table.rowid_name)
    listed = ", ".join(names)
    whole = f"SELECT {listed} FROM main.{quote(table.name)}"
    sql = f"{whole} WHERE {condition}" if condition is not None else whole
    return Source(
        table.name,
        statement.schema.ddl[fold(table.name)],
        f"INSERT INTO main.{quote(table.name)}({listed})",
        len(names),
        sql,
        table.kind is TableKind.SHARDED,
        whole=whole if any(token.kind is TokenKind.PARAMETER for token in tokenize(sql).tokens) else "",
    )


def refuse_unchecked_conflicts(statement: Statement) -> None:
    """Refuse a statement that tolerates conflicts with a uniqueness that no shard checks (constraints="checked")."""
    schema = statement.schema
    texts = [statement.text, *(tokenize(schema.triggers[name]) for name in statement.triggers)]
    if not any(text.keywords() & {"REPLACE", "IGNORE", "CONFLICT"} for text in texts):
        return
    for table in statement.written:
        for constraint in unseen_uniqueness(table):
            named = ", ".join(column or "an expression" for column in constraint.columns)
            raise NotSupportedError(
                f"a tolerated conflict on {table.name}: UNIQUE ({named}) is looked at by manager.check() only; "
                "look the row up first, then insert or update"
            )


def source_of(
    statement: Statement,
    needed: Needed,
    *,
    shared: bool | None = None,
    by: tuple[KeyType, Sequence[str]] | None = None,
    whole: bool = False,
) -> Source:
    """Return how the rows of a table are brought.

    ``by``: to the shards that own the keys (of this type) that these columns hold. ``whole``: all columns of them, for
    any parameters.
    """
    table = needed.table
    shared = needed.shared if shared is None else shared
    schema = OWNED if by is not None else SHARED if shared else "main"
    wanted = None if whole else wanted_columns(statement, table)
    selected, inserted = source_columns(table, wanted)
    distinct = ""
    if needed.distinct and _may_count_once(table, wanted):
        distinct = "DISTINCT "
        rowid = quote(table.rowid_alias) if table.rowid_alias is not None else table.rowid_name
        selected = inserted = [name for name in selected if name != rowid]
    every = sql = f"SELECT {distinct}{', '.join(selected)} FROM main.{quote(table.name)}"
    if needed.condition:
        sql += f" WHERE {needed.condition}"
    route = None
    if by is not None:
        key_type, names = by
        route = Route(key_type, tuple(names), tuple(inserted.index(quote(name)) for name in names))
    return Source(
        table.name,
        stub_ddl(table, schema),
        f"INSERT INTO {schema}.{quote(table.name)}({', '.join(inserted)})",
        len(selected),
        sql,
        table.kind is TableKind.SHARDED,
        _pins(statement, table),
        _indexes(statement, table, schema, selected),
        needed.level if shared or by is not None else None,
        every if whole and needed.condition else "",
        weight=needed.weight,
        route=route,
    )


def _indexes(statement: Statement, table: Table, schema: str, selected: Sequence[str]) -> tuple[str, ...]:
    """Return the indexes that are worth making where many rows come: the table's own, or what SQLite may not make."""
    own = [index_in(text, schema) for text in statement.schema.index_texts(table.name)]
    if statement.without_automatic_indexes:
        own += [
            f"CREATE INDEX {schema}.{quote(f'_shardlite_{table.name}_on_{number}')} ON {quote(table.name)}({column})"
            for number, column in enumerate(selected)
            if column != table.rowid_name
        ]
    return (*index_ddl(table, schema), *own)


def _may_count_once(table: Table, wanted: frozenset[str] | None) -> bool:
    """Tell whether rows may be told apart by the columns wanted alone, and may be equal in them.

    What DISTINCT takes for equal has to be the same to any expression: not 'a' and 'A' under NOCASE, nor 1 and 1.0.
    """
    if not wanted or table.without_rowid or wanted & ROWIDS:
        return False
    columns = [column for column in table.columns if fold(column.name) in wanted]
    if any(column.affinity is Affinity.BLOB or fold(column.collation) != "binary" for column in columns):
        return False
    return table.rowid_alias is None or fold(table.rowid_alias) not in wanted


def wanted_columns(statement: Statement, table: Table) -> frozenset[str] | None:
    """Return the folded names of a table's columns that the statement can need, None for all.

    SQLite reports those that it reads, but not the ones that USING and NATURAL compare; so all that the text (or a
    view's) names count too.
    """
    if statement.has_natural_joins:
        return None
    name, named = fold(table.name), statement.all_names
    rowids = frozenset(name for name in ROWIDS if name in named)
    if not statement.stars_matter:
        # SQLite reports every column for the * in EXISTS (SELECT * ...), which nobody looks at.
        return frozenset(column for column in table.by_name if column in named) | rowids
    read = {access.column for access in statement.prepared.reads if access.table == name}
    return frozenset(column for column in table.by_name if column in read or column in named) | rowids


def _pins(statement: Statement, table: Table) -> tuple[Pin, ...]:
    """Return the pins of all mentions of a table, where each has one."""
    scopes = statement.scopes
    name = fold(table.name)
    if scopes is None or not table.sharded or not analysed(statement):
        return ()
    if any(access.table == name and access.via in statement.schema.views for access in statement.prepared.reads):
        return ()
    # SQLite doesn't report a table of which a view reads nothing but what USING compares.
    if any(item.name == name for _, cores in statement.texts[1:] for core in cores for item in core.items):
        return ()
    pins = [pin_of(scopes, reference) for reference in scopes.references if reference.table is table]
    found = [pin for pin in pins if pin is not None]
    return tuple(dict.fromkeys(found)) if found and len(found) == len(pins) else ()


def view_ddl(statement: Statement) -> tuple[str, ...]:
    """Return the texts of the views that the statement uses, in the order of the schema."""
    used = set(statement.views)
    return tuple(without_index_hints(tokenize(sql)) for name, sql in statement.schema.views.items() if name in used)


def without_index_hints(text: Text) -> str:
    """Take INDEXED BY out: the coordinator has other indexes. The hint changes no answer."""
    sql, tokens = text.sql, text.tokens
    for position in range(len(tokens) - 3, -1, -1):
        if tokens[position + 1].key == "INDEXED" and tokens[position + 2].key == "BY":
            sql = sql[: tokens[position + 1].start] + sql[tokens[position + 3].end :]
    return sql
