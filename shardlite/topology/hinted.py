"""The hints that a source's CREATE TABLE texts hold: words about a table's place, below what the caller says (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shardlite.errors import LayoutMismatchError, NotSupportedError, ProgrammingError
from shardlite.names import fold
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.sql.hints import Hint, disagreement, hint_of, with_hint
from shardlite.topology.choose import Facts, Stated
from shardlite.topology.source import SourceSchema


def read_hints(schema: SourceSchema, stated: Stated) -> dict[str, Hint]:
    """Return the hints by folded table name, without those of tables of which the caller has said something.

    :raises ProgrammingError: a hint that can't be read.
    """
    found = {}
    for item in schema.of_type("table"):
        name = fold(item.name)
        if name in stated.keys or name in stated.reference or name in stated.single:
            continue
        try:
            hint = hint_of(item.sql or "")
        except ProgrammingError as error:
            raise ProgrammingError(
                f"{item.name}: {error}: mend the source's text, or state the table's place"
            ) from None
        if hint is not None:
            found[name] = hint
    return found


def stated_by(facts: Facts, stated: Stated, hints: Mapping[str, Hint]) -> Stated:
    """Return what the caller and the hints say together."""
    keys = dict(stated.keys)
    kinds: dict[TableKind, set[str]] = {TableKind.REFERENCE: set(), TableKind.SINGLE: set()}
    for name, hint in hints.items():
        table = facts.tables[name]
        if hint.key:
            missing = [column for column in hint.key if fold(column) not in table.by_name]
            if missing:
                known = ", ".join(column.name for column in table.columns)
                raise ProgrammingError(f"{table.name}: its hint names the column {missing[0]!r}: it has {known}")
            keys[name] = hint.key
        elif hint.kind is TableKind.SHARDED:
            if not table.primary_key:
                raise NotSupportedError(
                    f"{table.name}: its hint says kind=sharded, and it has no PRIMARY KEY to be sharded by: say key=..."
                )
            keys[name] = table.primary_key[:1]
        elif hint.kind is not None:
            kinds[hint.kind].add(name)
    return Stated(keys, stated.reference | kinds[TableKind.REFERENCE], stated.single | kinds[TableKind.SINGLE])


def follow_hints(placed: Mapping[str, Table], hints: Mapping[str, Hint]) -> dict[str, Table]:
    """Check what the hints say beyond kind and key; return the tables with the constraints' mode that they ask for.

    :raises LayoutMismatchError: two tables that are said to be colocated aren't.
    :raises NotSupportedError: a constraint is to be enforced (``strict``) and no shard can.
    """
    tables = dict(placed)
    for name, hint in hints.items():
        table = placed[name]
        if hint.colocate_with is not None:
            _require_colocated(table, hint.colocate_with, placed)
        if hint.constraints is ConstraintMode.STRICT and table.unenforced:
            raise NotSupportedError(
                f"{table.name}: its hint says constraints=strict, and no single shard can enforce "
                f"{'; '.join(table.unenforced)}: state another key or kind, or constraints=checked"
            )
        if hint.constraints is not None:
            tables[name] = replace(table, constraints=hint.constraints)
    return tables


def true_text(sql: str, table: Table) -> str:
    """Return a CREATE TABLE whose hint, if it has one, says where the table is; the caller may have said otherwise."""
    hint = hint_of(sql) if not table.virtual else None
    if hint is None or disagreement(hint, table) is None:
        return sql
    kind = None if table.sharded else table.kind
    return with_hint(sql, Hint(table.key_columns, kind, None, hint.constraints))


def _require_colocated(table: Table, name: str, placed: Mapping[str, Table]) -> None:
    other = placed.get(fold(name))
    if other is None:
        raise ProgrammingError(f"{table.name}: its hint says colocate_with={name}, and the source has no such table")
    if not table.sharded or not other.sharded or table.group != other.group:
        raise LayoutMismatchError(
            f"{table.name}: its hint says colocate_with={name}, and equal keys would not meet: {table.name} is "
            f"{table.group or table.kind}, {other.name} is {other.group or other.kind}"
        )
