"""Checks that several rules share, and the words of refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.table import Table, TableKind
from shardlite.sql.facts import Access, StatementKind
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.tokens import closing, tokenize
from shardlite.sql.triggers import conflict_of, read_trigger, table_at, trigger_target


def key_words(table: Table) -> str:
    """Name a table's key as a user would write it."""
    if not table.key_columns:
        return f"{table.name} (its key is given beside the row)"
    return " and ".join(f"{table.name}.{column}" for column in table.key_columns)


def pin_advice(table: Table) -> str:
    """Say how to pin a table."""
    if table.explicit_key or not table.key_columns:
        return f"{table.name} has its key beside the row: use the manager's methods with key="
    return f"pin {key_words(table)} with = or IN and a literal or parameter"


def refuse_mixed(statement: Statement) -> None:
    """Refuse single tables beside sharded ones: where the rows meet would depend on the layout."""
    single, sharded = statement.of_kind(TableKind.SINGLE), statement.of_kind(TableKind.SHARDED)
    if single and sharded:
        raise NotSupportedError(
            f"the single table {single[0].name} and the sharded table {sharded[0].name} in one statement: "
            f"make {single[0].name} a reference table, or read it first and pass its values as parameters"
        )


def refuse_views(statement: Statement) -> None:
    """Refuse views that reach a sharded table."""
    prepared = statement.prepared
    sharded = {fold(table.name) for table in statement.of_kind(TableKind.SHARDED)}
    accesses = prepared.reads | prepared.writes
    behind = [a for a in accesses if a.via in statement.schema.views and a.table in sharded]
    if behind:
        first = min(behind, key=lambda access: (access.via, access.table))
        raise NotSupportedError(
            f"the view {first.via} reads the sharded table {statement.schema.tables[first.table].name}: "
            "write the view's query out, with its key pinned"
        )
    if any(a.via == "" and a.table in statement.schema.views for a in prepared.writes):
        raise NotSupportedError("a write through a view whose triggers touch sharded tables: write to the tables")


def refuse_key_changes(statement: Statement) -> None:
    """Refuse an UPDATE (also by UPSERT or ON DELETE SET NULL) of what decides a row's shard or identity."""
    refuse_updates_of_keys(statement.prepared.updates, statement.schema.tables)


def refuse_updates_of_keys(updates: Iterable[Access], tables: Mapping[str, Table]) -> None:
    """Refuse the updates that SQLite reported, a foreign key's actions among them, where one changes a key or rowid."""
    for access in sorted(updates, key=lambda a: (a.table, a.column)):
        table = tables.get(access.table)
        if table is None or not table.sharded:
            continue
        if access.column in {fold(name) for name in table.key_columns}:
            column = table.by_name[access.column].name
            raise NotSupportedError(
                f"an update of {table.name}.{column}, the shard key, would move the row: delete it and insert it anew"
            )
        alias = fold(table.rowid_alias) if table.rowid_alias else None
        if access.column == alias or (
            access.column in ("rowid", "_rowid_", "oid") and access.column not in table.by_name
        ):
            raise NotSupportedError(
                f"an update of {table.name}.{table.rowid_alias or 'rowid'}: no single shard can tell whether the new "
                "id is taken; delete the row and insert it anew"
            )


def refuse_triggers(statement: Statement) -> None:
    """Refuse triggers that touch more than reference tables read and rows that are pinned to NEW's or OLD's key."""
    schema = statement.schema
    for access in sorted(statement.prepared.writes, key=lambda a: (a.via, a.table)):
        if access.via in schema.triggers and not _is_local(statement, access.via):
            raise NotSupportedError(
                f"the trigger {access.via} writes to {access.table}, whose rows may be on another shard: "
                "do that in the application"
            )
    for name in statement.triggers:
        tokens = tokenize(schema.triggers[name]).tokens
        for position in range(table_at(tokens) + 1, len(tokens)):
            found = tokens[position].name
            table = schema.tables.get(found) if found is not None else None
            touches = (table is not None and table.kind is not TableKind.REFERENCE) or found in schema.views
            if touches and not _is_local(statement, name):
                raise NotSupportedError(
                    f"the trigger {name} reads {tokens[position].text}, whose rows may be on another shard: "
                    "check that in the application"
                )


def _is_local(statement: Statement, name: str) -> bool:
    """Tell whether all that a trigger touches is sure to be on the shard of the row that fires it."""
    sql = statement.schema.triggers[name]
    fired = statement.schema.tables.get(trigger_target(sql))
    schema = statement.schema
    if fired is None:
        return False
    return conflict_of(read_trigger(name, fired.name, sql), schema.tables, schema.functions) is None


def refuse_reference_writes(statement: Statement) -> None:
    """Refuse a write of sharded rows that by a foreign key's action also writes a reference table."""
    for table in statement.written:
        if table.kind is TableKind.REFERENCE:
            raise NotSupportedError(
                f"this {statement.kind} also writes the reference table {table.name}, which has a copy on every shard: "
                "write to each of the two by itself"
            )


def ignores(statement: Statement) -> bool:
    """Tell whether an UPDATE leaves a row as it is where its new values would conflict: UPDATE OR IGNORE."""
    keys = [token.key for token in statement.text.tokens]
    return ["UPDATE", "OR", "IGNORE"] in (keys[at : at + 3] for at in range(len(keys)))


def replaces(statement: Statement) -> bool:
    """Tell whether a conflict makes rows go: REPLACE INTO, INSERT OR REPLACE, UPDATE OR REPLACE."""
    tokens = statement.text.tokens
    words = ("INSERT", "UPDATE")
    pairs = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return statement.text.head == "REPLACE" or any(
        (a.key in words and b.key == "OR" and c.key == "REPLACE") or (a.key == "REPLACE" and b.key == "INTO")
        for a, b, c in pairs
    )


def refuse_tolerance_in_triggers(statement: Statement, how: str) -> None:
    """Refuse OR IGNORE and OR REPLACE, which hold in triggers too, where these write what is only checked."""
    prepared = statement.prepared
    for access in sorted(prepared.inserts | prepared.updates, key=lambda a: (a.via, a.table)):
        table = statement.schema.tables.get(access.table)
        if table is None or access.via not in statement.schema.triggers or not unseen_uniqueness(table):
            continue
        raise NotSupportedError(
            f"{how}: the trigger {access.via} writes {table.name}, and the row that conflicts with "
            f"{unlocal_uniqueness(table)} may be on another shard: leave {how} out"
        )


def unlocal_uniqueness(table: Table) -> str | None:
    """Return a uniqueness of the table that no single shard can see, in words, or None when there is none."""
    for constraint in unseen_uniqueness(table):
        named = ", ".join(column or "an expression" for column in constraint.columns)
        return f"UNIQUE ({named})"
    if table.rowid_alias is not None and {fold(name) for name in table.key_columns} != {fold(table.rowid_alias)}:
        return f"PRIMARY KEY ({table.rowid_alias})"
    return None


def pins_of(statement: Statement) -> tuple[Pin, ...] | None:
    """Return the pins of all references to sharded tables; None where one of them has none, or can't be followed."""
    scopes = statement.scopes
    if scopes is None or not analysed(statement):
        return None
    pins = [pin_of(scopes, reference) for reference in scopes.of_kind(TableKind.SHARDED)]
    if not pins or any(pin is None for pin in pins):
        return None
    return tuple(dict.fromkeys(pin for pin in pins if pin is not None))


def analysed(statement: Statement) -> bool:
    """Tell whether the analysis found every table that SQLite uses, and each in a place that it follows."""
    scopes = statement.scopes
    if scopes is None:
        return False
    named = {reference.name for reference in scopes.references if reference.table is not None}
    sharded = {fold(table.name) for table in statement.of_kind(TableKind.SHARDED)}
    if sharded & set(scopes.unresolved) or set(statement.schema.views) & set(scopes.unresolved):
        return False
    if statement.kind is StatementKind.SELECT:
        return sharded <= named
    # A foreign key's check or action brings in tables that the text doesn't name: they are colocated.
    mentioned = sharded & {token.name for token in statement.text.tokens}
    return statement.target in named and mentioned <= named


def keeps_failed(statement: Statement) -> None:
    """Leave OR FAIL, which keeps rows of a statement that fails, to the gather."""
    if statement.prepared.writes:
        refuse_fail(statement)


def may_keep_failed(statement: Statement) -> bool:
    """Tell whether a failure of the statement would leave rows behind that it had written before: OR FAIL."""
    try:
        refuse_fail(statement)
    except NotSupportedError:
        return True
    return False


def refuse_fail(statement: Statement) -> None:
    """Refuse OR FAIL where it would keep rows: a statement that fails is undone here, on all its shards."""
    tokens = statement.text.tokens
    keys = [token.key for token in tokens]
    for position in range(len(keys) - 2):
        if keys[position] not in ("INSERT", "UPDATE") or keys[position + 1 : position + 3] != ["OR", "FAIL"]:
            continue
        if keys[position] == "INSERT" and "VALUES" in keys[position:] and "SELECT" not in keys:
            opening = keys.index("VALUES", position) + 1
            if opening < len(keys) and keys[opening] == "(" and keys[closing(tokens, opening) + 1 :][:1] != [","]:
                _refuse_fail_with_triggers(statement)
                continue  # one row: nothing stands before it
        raise NotSupportedError(
            f"{keys[position]} OR FAIL keeps the rows before a failure, which can't be kept here: write the rows one "
            "by one, or leave OR FAIL out"
        )


def _refuse_fail_with_triggers(statement: Statement) -> None:
    """Refuse INSERT OR FAIL of one row that fires triggers which write: what they wrote would have to stay."""
    vias = {access.via for access in statement.prepared.writes}
    trigger = next((name for name in statement.triggers if name in vias), None)
    if trigger is not None:
        raise NotSupportedError(
            f"INSERT OR FAIL keeps what the trigger {trigger} wrote before a failure, which can't be kept here: leave "
            "OR FAIL out"
        )
