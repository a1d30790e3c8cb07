"""Where a new table's rows live, and which of its constraints one shard can see (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardlite.errors import LayoutMismatchError, NotSupportedError, ProgrammingError
from shardlite.names import fold
from shardlite.router.table import ConstraintMode, ForeignKey, Table, TableKind, UniqueConstraint
from shardlite.sql.copies import shifts
from shardlite.sql.ddl import conflict_clauses, without_foreign_keys
from shardlite.sql.hints import Hint, without_hints
from shardlite.sql.shard_schema import (
    is_unseen,
    uniqueness_clauses,
    unseen_uniqueness,
    without_unique,
    without_unseen_uniqueness,
)

_KEY_COLLATIONS = ("binary", "nocase", "rtrim")


@dataclass(frozen=True, slots=True)
class Placement:
    """What the caller says of a table: everything may be left open."""

    kind: TableKind | None = None
    key_columns: tuple[str, ...] = ()
    colocate_with: str | None = None
    constraints: ConstraintMode = ConstraintMode.STRICT
    reason: str = ""


def hinted(name: str, asked: Placement, hint: Hint | None) -> Placement:
    """Put together what the caller says and what the CREATE TABLE's hints say.

    :raises ProgrammingError: they contradict each other. (``constraints="strict"``, the default, contradicts nothing.)
    """
    if hint is None:
        return asked
    kind_of_key = TableKind.SHARDED if hint.key else None
    for word, said, argument in (
        ("key", hint.key, asked.key_columns),
        ("kind", hint.kind or kind_of_key, asked.kind or (TableKind.SHARDED if asked.key_columns else None)),
        ("colocate_with", hint.colocate_with, asked.colocate_with),
    ):
        if said and argument and _folded(said) != _folded(argument):
            raise ProgrammingError(
                f"{name}: the hint in its definition says {word}={_names_of(said)}, the call {_names_of(argument)}: "
                "leave one of them out"
            )
    if hint.constraints is ConstraintMode.STRICT and asked.constraints is ConstraintMode.CHECKED:
        raise ProgrammingError(
            f"{name}: the hint in its definition says constraints=strict, the call checked: leave one of them out"
        )
    return replace(
        asked,
        kind=asked.kind or hint.kind,
        key_columns=asked.key_columns or hint.key,
        colocate_with=asked.colocate_with or hint.colocate_with,
        constraints=hint.constraints or asked.constraints,
    )


def _folded(said: str | Sequence[str]) -> list[str]:
    return [fold(said)] if isinstance(said, str) else list(map(fold, said))


def _names_of(said: str | Sequence[str]) -> str:
    return str(said) if isinstance(said, str) else ", ".join(said)


def place(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table:
    """Give ``table`` (as introspected) its kind, key, group and the list of what no shard can see.

    :param tables: the tables of the database by folded name, for foreign keys and colocation.
    :raises ProgrammingError: an unknown column, or a request that contradicts itself.
    :raises NotSupportedError: the stated key leaves a constraint that no shard can see, and ``strict`` is asked.
    """
    if asked.kind in (TableKind.REFERENCE, TableKind.SINGLE):
        return _place_whole(table, asked, tables)
    if table.virtual:
        if asked.key_columns or asked.kind is TableKind.SHARDED:
            raise NotSupportedError(f"{table.name}: a virtual table can't be sharded: use kind='single'")
        return replace(table, kind=TableKind.SINGLE, reason="a virtual table is kept whole")
    if asked.key_columns:
        return _place_by_stated_key(table, asked, tables)
    if asked.colocate_with is not None:
        raise ProgrammingError(f"{table.name}: colocate_with needs shard_key, the column that equals the other's key")
    if asked.kind is TableKind.SHARDED and not table.primary_key:
        return _place_by_explicit_key(table, asked, tables)
    return _place_by_primary_key(table, asked, tables)


def _place_whole(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table:
    if asked.key_columns or asked.colocate_with is not None:
        raise ProgrammingError(f"{table.name}: a {asked.kind} table has no shard key and no colocation")
    if asked.kind is TableKind.REFERENCE and table.virtual:
        raise NotSupportedError(f"{table.name}: a virtual table can't be a reference table: use kind='single'")
    kind = TableKind.SINGLE if asked.kind is None else asked.kind
    placed = replace(table, kind=kind, constraints=asked.constraints, reason=asked.reason or "stated at creation")
    return _with_unseen(placed, tables)


def _with_unseen(placed: Table, tables: Mapping[str, Table]) -> Table:
    """Record what a table that is kept whole can't enforce: foreign keys to rows of shards."""
    unseen = unseen_constraints(placed, tables)
    if unseen and placed.constraints is ConstraintMode.STRICT:
        raise NotSupportedError(
            f"{placed.name} as a {placed.kind} table ({placed.reason}) can't enforce {'; '.join(unseen)}: state "
            "shard_key=, the column that refers to the parent's key, make the parent a reference or single table (and "
            "create it first), or say constraints='checked' (recorded, not enforced, looked at by check)"
        )
    return replace(placed, unenforced=unseen)


def _place_by_stated_key(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table:
    placed = replace(
        _keyed(table, asked.key_columns), constraints=asked.constraints, reason=asked.reason or "shard key stated"
    )
    if asked.colocate_with is not None:
        other = tables.get(fold(asked.colocate_with))
        if other is None or not other.sharded:
            what = "no such table" if other is None else f"it is a {other.kind} table"
            raise ProgrammingError(f"{table.name}: can't be colocated with {asked.colocate_with}: {what}")
        if other.group != placed.group:
            raise LayoutMismatchError(
                f"{table.name}: its key ({placed.group}) is not of the type of {other.name}'s key ({other.group}), "
                "so equal keys would not meet: declare the column with the same type and collation"
            )
    placed = replace(placed, unenforced=unseen_constraints(placed, tables))
    if placed.unenforced and asked.constraints is ConstraintMode.STRICT:
        raise NotSupportedError(
            f"{table.name}: with the shard key {', '.join(placed.key_columns)} no single shard can enforce "
            f"{'; '.join(placed.unenforced)}{_unlike_parents(placed, tables)}. "
            "Choose a key that these contain, make the parent a reference table, "
            "use kind='single', or say constraints='checked' (recorded, not enforced, looked at by check)"
        )
    return placed


def _place_by_explicit_key(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table:
    if table.rowid_name is None:
        raise NotSupportedError(f"{table.name}: without a rowid and a key column its rows can't be told apart")
    placed = replace(
        table,
        kind=TableKind.SHARDED,
        explicit_key=True,
        group="BLOB BINARY",
        constraints=asked.constraints,
        reason=asked.reason or "sharded by the key that is given with each row",
    )
    unseen = unseen_constraints(placed, tables)
    if unseen and asked.constraints is ConstraintMode.STRICT:
        raise NotSupportedError(f"{table.name}: sharded by an explicit key no shard can enforce {'; '.join(unseen)}")
    return replace(placed, unenforced=unseen)


def _place_by_primary_key(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table:
    if not table.primary_key:
        why = "it has no PRIMARY KEY to shard by"
    else:
        column = table.by_name[fold(table.primary_key[0])]
        if fold(column.collation) not in _KEY_COLLATIONS:
            why = f"its key {column.name} has the custom collation {column.collation}"
        else:
            placed = replace(_keyed(table, table.primary_key[:1]), reason=asked.reason or "sharded by its primary key")
            unseen = unseen_constraints(placed, tables)
            if not unseen or asked.constraints is ConstraintMode.CHECKED:
                return replace(placed, constraints=asked.constraints, unenforced=unseen)
            why = f"sharded by {column.name} no single shard could enforce {'; '.join(unseen)}"
            why += _unlike_parents(placed, tables)
    if asked.kind is TableKind.SHARDED:
        raise NotSupportedError(f"{table.name} can't be sharded: {why}")
    single = replace(table, kind=TableKind.SINGLE, constraints=asked.constraints, reason=f"kept whole: {why}")
    if unseen_constraints(single, tables):
        return _place_beside_parent(table, asked, tables) or _with_unseen(single, tables)
    return single


def _place_beside_parent(table: Table, asked: Placement, tables: Mapping[str, Table]) -> Table | None:
    """Shard a child by the foreign key that leads to its parent's shard, where that makes everything enforceable."""
    for key in table.foreign_keys:
        parent = tables.get(fold(key.parent))
        if parent is None or not parent.sharded or parent.explicit_key:
            continue
        pairs = dict(zip(map(fold, key.parent_columns or parent.primary_key), key.columns, strict=False))
        columns = [pairs.get(fold(name)) for name in parent.key_columns]
        if None in columns:
            continue
        placed = _keyed(table, [name for name in columns if name is not None])
        if not unseen_constraints(placed, tables):
            reason = f"sharded by {', '.join(placed.key_columns)}, beside its rows of {parent.name}"
            return replace(placed, constraints=asked.constraints, reason=reason)
    return None


def _keyed(table: Table, key_columns: Sequence[str]) -> Table:
    """Return the table sharded by these columns, named as they are declared."""
    names = []
    for name in key_columns:
        column = table.by_name.get(fold(name))
        if column is None:
            known = ", ".join(c.name for c in table.columns)
            raise ProgrammingError(f"{table.name} has no column {name!r} to be its shard key: it has {known}")
        if column.generated:
            raise NotSupportedError(f"{table.name}.{column.name} is a generated column: it can't be the shard key")
        if fold(column.collation) not in _KEY_COLLATIONS:
            raise NotSupportedError(
                f"{table.name}.{column.name} has the collation {column.collation}: a key needs one of SQLite's own"
            )
        names.append(column.name)
    if len(set(names)) != len(names):
        raise ProgrammingError(f"{table.name}: the shard key names a column twice: {', '.join(names)}")
    placed = replace(table, kind=TableKind.SHARDED, key_columns=tuple(names))
    return replace(placed, group=group_of(placed))


def group_of(table: Table) -> str:
    """Name the colocation group: tables of the same key type, column by column, put equal keys on one shard."""
    key = table.key_type
    return ", ".join(f"{a.value} {fold(c).upper()}" for a, c in zip(key.affinities, key.collations, strict=True))


def unseen_constraints(table: Table, tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Say in words which constraints of a table no single shard can see."""
    unseen = [f"UNIQUE ({_names(c)})" for c in unseen_uniqueness(table)]
    unseen += [foreign_key_text(k) for k in table.foreign_keys if not sees_parent(table, k, tables)]
    return tuple(unseen)


def shard_text(kind: str, name: str, sql: str, table: Table | None, tables: Mapping[str, Table]) -> str:
    """Return the text that makes an object of the schema on a shard: without the constraints that it can't see.

    :param kind: table, index, view or trigger.
    :param table: the table that the object is or belongs to, None for a view.
    """
    if table is None or table.virtual:
        return sql
    if kind == "index":
        return without_unique(table, name, sql)
    if kind != "table":
        return sql
    unseen = [key for key in table.foreign_keys if not sees_parent(table, key, tables)]
    return without_unseen_uniqueness(table, without_foreign_keys(without_hints(sql), unseen))


def refuse_definition(table: Table, ddl: str) -> None:
    """Refuse what the definition of a placed table says and its shards or copies can't follow."""
    _refuse_conflict_clauses(table, ddl)
    for clause in uniqueness_clauses(ddl):
        if not is_unseen(table, clause):
            continue
        named = f"{table.name} ({', '.join(clause.columns)})"
        key = f"the shard key ({', '.join(table.key_columns)})"
        if clause.action in ("IGNORE", "REPLACE"):
            raise NotSupportedError(
                f"{named}: ON CONFLICT {clause.action} of a constraint without {key}: the row that it conflicts with "
                "may be on another shard. Leave ON CONFLICT out, or use kind='single'"
            )
        nullable = [n for n in table.key_columns if not table.by_name[fold(n)].not_null]
        if clause.primary and table.without_rowid and nullable:
            raise NotSupportedError(
                f"{named}: a table WITHOUT ROWID whose PRIMARY KEY is without {key} tells its rows apart by both, and "
                f"{nullable[0]} may be NULL: declare it NOT NULL, leave WITHOUT ROWID out, or use kind='single'"
            )


def _refuse_conflict_clauses(table: Table, ddl: str) -> None:
    """Refuse an ON CONFLICT in the definition of a placed table that shards or copies can't follow."""
    alias = fold(table.rowid_alias) if table.rowid_alias is not None else None
    for clause in conflict_clauses(ddl):
        named = f"{table.name} ({', '.join(clause.columns)}): ON CONFLICT {clause.action}"
        if clause.action == "FAIL":
            raise NotSupportedError(f"{named} keeps the rows before a failure, which can't be kept: use ABORT")
        only = clause.columns[0]
        is_key = tuple(map(fold, table.key_columns)) == (only,)
        if clause.constraint == "KEY" and table.sharded and only == alias and not is_key and clause.action != "ABORT":
            raise NotSupportedError(
                f"{named} on a PRIMARY KEY that isn't the shard key ({', '.join(table.key_columns)}): the row that it "
                "conflicts with may be on another shard, so such a row is always refused. Leave ON CONFLICT out, or "
                "use kind='single'"
            )
        column = table.by_name.get(only)
        may_take_default = clause.constraint == "NULL" and clause.action == "REPLACE" and column is not None
        if table.kind is TableKind.REFERENCE and may_take_default and column is not None and shifts(column):
            raise NotSupportedError(
                f"{named} of a reference table: the default {column.default_sql} that takes the place of NULL would "
                "differ on each copy. Use a constant default, or leave ON CONFLICT REPLACE out"
            )


def _unlike_parents(child: Table, tables: Mapping[str, Table]) -> str:
    """Say which foreign keys are out of sight only because the two keys are of different types or collations."""
    found = []
    for key in child.foreign_keys:
        parent = tables.get(fold(key.parent))
        if parent is None or not parent.sharded or parent.explicit_key or parent.group == child.group:
            continue
        if _pairs_keys(child, key, parent):
            found.append(
                f"{child.name} ({', '.join(child.key_columns)}) is {child.group}, {parent.name} is {parent.group}"
            )
    if not found:
        return ""
    return f" (the keys are declared otherwise: {'; '.join(found)}; of one type and collation they would share a shard)"


def _pairs_keys(child: Table, key: ForeignKey, parent: Table) -> bool:
    """Tell whether a foreign key compares the child's shard key with the parent's, column by column."""
    parents = key.parent_columns or parent.primary_key
    pairs = {fold(p): fold(c) for c, p in zip(key.columns, parents, strict=False)}
    if len(parent.key_columns) != len(child.key_columns):
        return False
    return all(pairs.get(fold(p)) == fold(c) for p, c in zip(parent.key_columns, child.key_columns, strict=True))


def sees_parent(child: Table, key: ForeignKey, tables: Mapping[str, Table]) -> bool:
    """Tell whether a row's parent, if there is one, is always on the row's own shard."""
    parent = child if fold(key.parent) == fold(child.name) else tables.get(fold(key.parent))
    if parent is None:
        return False
    if child.kind is TableKind.SINGLE:
        return parent.kind in (TableKind.SINGLE, TableKind.REFERENCE)
    if parent.kind is TableKind.REFERENCE:
        return True
    if child.kind is TableKind.REFERENCE or not parent.sharded or parent.group != child.group or parent.explicit_key:
        return False
    return _pairs_keys(child, key, parent)


def _names(constraint: UniqueConstraint) -> str:
    return ", ".join(name or "an expression" for name in constraint.columns)


def foreign_key_text(key: ForeignKey) -> str:
    """Say a foreign key in words."""
    columns = f" ({', '.join(key.parent_columns)})" if key.parent_columns else ""
    return f"FOREIGN KEY ({', '.join(key.columns)}) REFERENCES {key.parent}{columns}"
