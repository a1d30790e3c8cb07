"""Statements in which every sharded table is pinned to the same key run, as they are, on that key's shard."""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.router.table import TableKind
from shardlite.sql.facts import StatementKind
from shardlite.sql.pins import one_key
from shardlite.sql.rules.common import (
    ignores,
    pins_of,
    refuse_key_changes,
    refuse_mixed,
    refuse_reference_writes,
    refuse_tolerance_in_triggers,
    refuse_triggers,
    refuse_views,
    replaces,
    unlocal_uniqueness,
)
from shardlite.sql.rules.every_shard_write import describe_every_shard_write
from shardlite.sql.rules.fan_out import describe_fan_out
from shardlite.sql.rules.gather import gather
from shardlite.sql.rules.layers import layered_pins
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, FannedOutWrite, Gathered, Pinned, PushedDown, Template


def one_shard(statement: Statement) -> Template | None:
    """Pin a SELECT, UPDATE or DELETE. Triggers and keys that no shard can see to are refused here."""
    refuse_mixed(statement)
    refuse_views(statement)
    writes = statement.kind in (StatementKind.UPDATE, StatementKind.DELETE)
    if writes:
        _check_write(statement)
    pins = pins_of(statement)
    if pins is None and not writes:
        pins = layered_pins(statement)
    if pins is None:
        return None
    tables = ", ".join(sorted({pin.table for pin in pins}))
    otherwise: FannedOut | FannedOutWrite | PushedDown | Gathered | str
    if writes:
        otherwise = describe_every_shard_write(statement)
    else:
        otherwise = describe_fan_out(statement)
        if isinstance(otherwise, str):
            otherwise = push_down(statement) or gather(statement, otherwise) or otherwise
    whole = statement.whole
    return Pinned(
        whole.sql,
        statement.prepared.readonly,
        statement.returns_rows,
        f"the key of {tables} is pinned",
        whole.table_names,
        whole.text,
        pins,
        otherwise,
        one_key(pins),
    )


def _check_write(statement: Statement) -> None:
    target = statement.schema.tables.get(statement.target or "")
    if target is not None and target.kind is TableKind.REFERENCE:
        raise NotSupportedError(
            f"a write of the reference table {target.name} that reads sharded tables: every copy has to get the same; "
            "read the values first and pass them as parameters"
        )
    refuse_triggers(statement)
    refuse_reference_writes(statement)
    refuse_key_changes(statement)
    if ignores(statement) or replaces(statement):
        refuse_tolerance_in_triggers(statement, "OR IGNORE" if ignores(statement) else "OR REPLACE")
    if target is None or (unlocal := unlocal_uniqueness(target)) is None:
        return
    if ignores(statement) and not unlocal.startswith("PRIMARY KEY"):  # an INTEGER PRIMARY KEY can't be updated
        raise NotSupportedError(
            f"OR IGNORE on {target.name}: the row that conflicts with {unlocal} may be on another shard; "
            "look for that row first, and leave OR IGNORE out"
        )
    if replaces(statement):
        raise NotSupportedError(
            f"OR REPLACE on {target.name}: the row that conflicts with {unlocal} may be on another shard; "
            "delete that row and then update"
        )
