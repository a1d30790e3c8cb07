"""What is known of a table: its columns, its kind, its key.

Frozen data, shared by the router, the planner and the checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from shardlite.names import fold
from shardlite.router.keys import Affinity, KeyType

ROWID_NAMES = ("rowid", "_rowid_", "oid")
"""What the rowid is called where no column has the name."""


class TableKind(StrEnum):
    """Where a table's rows live."""

    SHARDED = "sharded"
    """Each row on the shard that its key's value belongs to."""
    REFERENCE = "reference"
    """A full copy on every shard."""
    SINGLE = "single"
    """Whole, on the home shard (shard 0)."""


class ConstraintMode(StrEnum):
    """What happens to a constraint that no single shard can see."""

    STRICT = "strict"
    CHECKED = "checked"


@dataclass(frozen=True, slots=True)
class Column:
    """One column, as SQLite sees it."""

    name: str
    declared_type: str
    affinity: Affinity
    collation: str
    not_null: bool
    default_sql: str | None
    primary_key_position: int
    """1-based position in the PRIMARY KEY, 0 when not part of it."""
    generated: bool
    typed: bool = True
    """False for a subquery's column whose affinity can't be told: ``affinity`` says nothing then."""

    @property
    def writable(self) -> bool:
        """Tell whether an INSERT may name the column."""
        return not self.generated


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """One FOREIGN KEY clause; ``parent_columns`` is empty where the clause means the parent's primary key."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_update: str
    on_delete: str


@dataclass(frozen=True, slots=True)
class UniqueConstraint:
    """A PRIMARY KEY, UNIQUE or unique index; ``columns`` holds None for an expression."""

    name: str
    columns: tuple[str | None, ...]
    origin: str
    """``pk``, ``u`` (a UNIQUE clause) or ``c`` (CREATE UNIQUE INDEX), as PRAGMA index_list says."""
    partial: bool
    collations: tuple[str, ...] = ()
    """By which each column is compared; empty: by the columns' own."""


@dataclass(frozen=True)
class Table:
    """A table of the logical database.

    ``key_columns`` is the shard key: one column for most tables, several for a composite key, none for a sharded
    table whose key stands beside the row (``explicit_key``) and for reference and single tables. ``group`` names the
    colocation group: two sharded tables of one group put equal keys on one shard.
    """

    name: str
    kind: TableKind
    columns: tuple[Column, ...]
    key_columns: tuple[str, ...] = ()
    group: str = ""
    without_rowid: bool = False
    strict: bool = False
    autoincrement: bool = False
    virtual: bool = False
    unique: tuple[UniqueConstraint, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    constraints: ConstraintMode = ConstraintMode.STRICT
    reason: str = ""
    """Why the table has its kind and key, in words for people."""
    unenforced: tuple[str, ...] = field(default=())
    """Constraints that no shard can see: recorded, not enforced, looked at by ``check``."""
    explicit_key: bool = False
    """The key is no column: it is given with each row and remembered in ``_shardlite_key_<name>``."""

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by folded name."""
        return {fold(column.name): column for column in self.columns}

    @cached_property
    def primary_key(self) -> tuple[str, ...]:
        """The PRIMARY KEY's columns in its order; empty when there is none."""
        parts = [column for column in self.columns if column.primary_key_position]
        return tuple(column.name for column in sorted(parts, key=lambda column: column.primary_key_position))

    @cached_property
    def rowid_alias(self) -> str | None:
        """The INTEGER PRIMARY KEY column, when there is one."""
        if self.without_rowid or self.virtual or len(self.primary_key) != 1:
            return None
        column = self.by_name[fold(self.primary_key[0])]
        has_index = any(constraint.origin == "pk" for constraint in self.unique)
        return column.name if fold(column.declared_type) == "integer" and not has_index else None

    @cached_property
    def rowid_name(self) -> str | None:
        """A name by which SQL reaches the rowid: the alias column, or one of rowid/_rowid_/oid that no column hides."""
        if self.without_rowid:
            return None
        if self.rowid_alias is not None:
            return self.rowid_alias
        return next((name for name in ROWID_NAMES if name not in self.by_name), None)

    @cached_property
    def key_type(self) -> KeyType:
        """Affinities and collations of the shard key. Two tables of one group have equal key types."""
        if self.explicit_key:
            return KeyType((Affinity.BLOB,), ("BINARY",))
        columns = [self.by_name[fold(name)] for name in self.key_columns]
        return KeyType(tuple(c.affinity for c in columns), tuple(c.collation for c in columns))

    @property
    def sharded(self) -> bool:
        return self.kind is TableKind.SHARDED
