"""UPDATE and DELETE over several keys: every shard runs the text, where a row is changed by what its own shard has."""

from __future__ import annotations

from collections.abc import Iterator

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.ddl import conflict_clauses
from shardlite.sql.facts import StatementKind
from shardlite.sql.found_rows import changes_uniqueness
from shardlite.sql.functions import AGGREGATES, WINDOWS, not_shardable
from shardlite.sql.pins import facts_for, pin_of, same_key
from shardlite.sql.rules.common import analysed, pin_advice
from shardlite.sql.rules.fan_out import ROWID_COLUMN
from shardlite.sql.scopes import Reference, Scopes
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOutWrite
from shardlite.sql.tokens import tokenize

_WITHIN_QUERIES = AGGREGATES | WINDOWS


class _No(Exception):
    """The statement can't run shard by shard, for the reason given."""


def every_shard_write(statement: Statement) -> FannedOutWrite | None:
    """Run an UPDATE or DELETE on every shard, or refuse it by name."""
    if statement.kind not in (StatementKind.UPDATE, StatementKind.DELETE):
        return None
    found = describe_every_shard_write(statement)
    if isinstance(found, str):
        raise NotSupportedError(found)
    return found


def describe_every_shard_write(statement: Statement) -> FannedOutWrite | str:
    """Return the plan of a change of rows on several shards, or the words that say why it can't be one.

    ``one_shard`` has looked at views, triggers and keys already.
    """
    try:
        return _every_shard_write(statement)
    except _No as refusal:
        target = statement.schema.tables.get(statement.target or "")
        sharded = statement.of_kind(TableKind.SHARDED)[0]
        table = target if target is not None and target.sharded else sharded
        return (
            f"this {statement.kind} reaches rows of {sharded.name} on several shards, with {refusal.args[0]}: "
            f"{pin_advice(table)}, in subqueries too"
        )


def _every_shard_write(statement: Statement) -> FannedOutWrite:
    target = statement.schema.tables.get(statement.target or "")
    if target is None or not target.sharded or target.explicit_key or target.virtual:
        raise _No("a target that is no table with a shard key")
    scopes = statement.scopes
    if scopes is None or not analysed(statement) or not scopes.scopes or not scopes.scopes[0].sources:
        raise _No("a form that is not followed")
    reference = scopes.scopes[0].sources[0]
    if reference.table is not target or statement.prepared.schema_read:
        raise _No("a form that is not followed")
    _check_form(statement)
    _check_constraints(statement)
    _check_functions(statement)
    _check_sources(statement, scopes, reference)
    pin = pin_of(scopes, reference)
    sql, by_rowid = _with_rowid(statement, target)
    return FannedOutWrite(
        sql,
        statement.text,
        f"each row of {target.name} is changed by what its own shard has",
        statement.table_names,
        statement.returns_rows,
        by_rowid,
        () if pin is None else (pin,),
    )


def _check_form(statement: Statement) -> None:
    """Refuse what chooses among all rows, or goes on after a conflict."""
    outside = set(_outside_parentheses(statement))
    if "LIMIT" in outside:
        raise _No("LIMIT, which chooses among the rows of all")
    keys = [token.key for token in statement.text.tokens]
    at = keys.index("UPDATE") if statement.kind is StatementKind.UPDATE else len(keys)
    if keys[at + 1 : at + 2] == ["OR"]:
        _check_tolerance(statement, keys[at + 2])
    if "FROM" in outside and statement.kind is StatementKind.UPDATE and statement.returns_rows:
        raise _No("FROM and RETURNING, whose rows come in the order of the join")


def _check_tolerance(statement: Statement, action: str) -> None:
    """Refuse to go on after a conflict, but where each row is its own conflict: NOT NULL and CHECK."""
    if action in ("ABORT", "ROLLBACK"):
        return
    target = statement.schema.tables[statement.target or ""]
    changed = {access.column for access in statement.prepared.updates}
    tied = statement.triggers or any(table is not target for table in statement.written)
    if action not in ("IGNORE", "REPLACE") or tied or changes_uniqueness(target, changed):
        raise _No(f"OR {action}")


def _outside_parentheses(statement: Statement) -> Iterator[str]:
    depth = 0
    for token in statement.text.tokens:
        depth += (token.key == "(") - (token.key == ")")
        if depth == 0:
            yield token.key


def _check_constraints(statement: Statement) -> None:
    """Refuse constraints that tolerate conflicts, and changes of what only all shards together could compare."""
    for table in statement.written:
        actions = {clause.action for clause in conflict_clauses(statement.schema.ddl.get(fold(table.name), ""))}
        if statement.prepared.inserts | statement.prepared.updates:
            for action in sorted(actions):
                _check_tolerance(statement, action)
    for access in statement.prepared.updates:
        changed = statement.schema.tables.get(access.table)
        for constraint in unseen_uniqueness(changed) if changed is not None else ():
            named = {None if column is None else fold(column) for column in constraint.columns}
            if None in named or constraint.partial or access.column in named:
                raise _No(f"a change of what a UNIQUE of {access.table} holds apart on all shards")


def _check_functions(statement: Statement) -> None:
    own = statement.schema.functions
    functions = statement.prepared.functions - (_WITHIN_QUERIES - own.names)
    texts = [statement.text, *(tokenize(statement.schema.triggers[name]) for name in statement.triggers)]
    for text in texts:
        found = not_shardable(functions, text, own)
        if found is not None:
            raise _No(f"the function {found}(), which may answer differently on each shard")


def _check_sources(statement: Statement, scopes: Scopes, target: Reference) -> None:
    """Refuse sources whose rows may be on another shard, or change while the statement runs."""
    written = {fold(table.name) for table in statement.written}
    for reference in scopes.references:
        table = reference.table
        if reference is target or table is None:
            continue  # a name without a table is a query's or a function's, whose own sources are looked at
        if table.kind is TableKind.REFERENCE:
            continue
        if fold(table.name) in written:
            raise _No(f"a query of {table.name}, which it changes")
        if not same_key(facts_for(scopes, reference), target, reference):
            raise _No(f"a query of {table.name} whose key isn't that of the row")


def _with_rowid(statement: Statement, table: Table) -> tuple[str, bool]:
    """Put the rowid before what RETURNING names, so that the rows come in the order of one file's scan."""
    sql = statement.sql
    if not statement.returns_rows or table.rowid_name is None:
        return sql, False
    at = max(token.end for token in statement.text.tokens if token.key == "RETURNING")
    rowid = quote(table.rowid_name) if table.rowid_alias is not None else table.rowid_name
    return f'{sql[:at]} {rowid} AS "{ROWID_COLUMN}",{sql[at:]}', True
