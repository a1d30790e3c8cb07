"""The plan that makes any statement work: bring the rows together, run the text there as it is written."""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.cores import cores_of
from shardlite.sql.facts import StatementKind
from shardlite.sql.filters import filters_of
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.plan import PlanKind
from shardlite.sql.rules.common import analysed
from shardlite.sql.statement import Statement
from shardlite.sql.stubs import index_ddl, source_columns, stub_ddl
from shardlite.sql.template import Gathered, Source
from shardlite.sql.tokens import Text, tokenize


def gather(statement: Statement, why: str = "") -> Gathered | None:
    """Gather a query: of each table the columns and rows that it can need. ``why`` says why no other rule did it."""
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly:
        return None
    for table in statement.tables:
        if table.virtual:
            raise NotSupportedError(
                f"the virtual table {table.name} and sharded tables in one query: read it first and pass its values "
                "as parameters"
            )
    filters = _filters(statement)
    sources = tuple(_source(statement, table, filters.get(fold(table.name))) for table in statement.tables)
    return Gathered(
        PlanKind.GATHER,
        without_index_hints(statement.text),
        statement.text,
        sources,
        view_ddl(statement),
        True,
        True,
        why or "the rows are brought together",
        statement.table_names,
    )


def _source(statement: Statement, table: Table, condition: str | None) -> Source:
    selected, inserted = source_columns(table, wanted_columns(statement, table))
    sql = f"SELECT {', '.join(selected)} FROM main.{quote(table.name)}"
    if condition is not None:
        sql += f" WHERE {condition}"
    return Source(
        table.name,
        stub_ddl(table),
        f"INSERT INTO main.{quote(table.name)}({', '.join(inserted)})",
        len(selected),
        sql,
        table.kind is TableKind.SHARDED,
        _pins(statement, table),
        tuple(index_ddl(table)) + statement.schema.index_texts(table.name),
    )


def wanted_columns(statement: Statement, table: Table) -> frozenset[str] | None:
    """Return the folded names of a table's columns that the statement can need, None for all.

    SQLite reports those that it reads, but not the ones that USING and NATURAL compare; so all that the text (or a
    view's) names count too.
    """
    texts = [statement.text, *(tokenize(statement.schema.views[view]) for view in statement.views)]
    if any("NATURAL" in text.keywords() for text in texts):
        return None
    name = fold(table.name)
    read = {access.column for access in statement.prepared.reads if access.table == name}
    named = {token.name for text in texts for token in text.tokens}
    return frozenset(column for column in table.by_name if column in read or column in named)


def _filters(statement: Statement) -> dict[str, str]:
    """Return the conditions under which rows have to come; none for a table that a view reads as well."""
    found = filters_of(statement.text, cores_of(statement.text), statement.schema.tables)
    behind = {access.table for access in statement.prepared.reads if access.via in statement.schema.views}
    return {name: condition for name, condition in found.items() if name not in behind}


def _pins(statement: Statement, table: Table) -> tuple[Pin, ...]:
    """Return the pins of all mentions of a table, where each has one."""
    scopes = statement.scopes
    name = fold(table.name)
    if scopes is None or not table.sharded or not analysed(statement):
        return ()
    if any(access.table == name and access.via in statement.schema.views for access in statement.prepared.reads):
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
