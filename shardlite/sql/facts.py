"""What SQLite itself says of a statement, and what the planner knows of the schema. Frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shardlite.names import fold
from shardlite.router.table import Table
from shardlite.sql.functions import NO_FUNCTIONS, UserFunctions


class StatementKind(StrEnum):
    """What sort of statement a text holds."""

    EMPTY = "empty"
    SELECT = "SELECT"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    DDL = "schema change"
    TRANSACTION = "transaction control"
    PRAGMA = "PRAGMA"
    ATTACH = "ATTACH"
    DETACH = "DETACH"
    VACUUM = "VACUUM"
    EXPLAIN = "EXPLAIN"


@dataclass(frozen=True, slots=True)
class Access:
    """One access that SQLite's authorizer reported. Names are folded; ``column`` is "" for a whole table.

    ``via`` is the innermost view or trigger that is responsible, "" for the statement itself.
    """

    table: str
    column: str
    via: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as SQLite understood it."""

    sql: str
    kind: StatementKind
    readonly: bool
    reads: frozenset[Access] = frozenset()
    inserts: frozenset[Access] = frozenset()
    updates: frozenset[Access] = frozenset()
    deletes: frozenset[Access] = frozenset()
    functions: frozenset[str] = frozenset()
    pragma: tuple[str, str] | None = None
    """The PRAGMA's folded name and its argument ("" when there is none)."""
    aggregates: bool = False
    """The bytecode accumulates: an aggregate or window function that no name gives away (``max(x)``)."""
    schema_read: bool = False
    """``sqlite_schema`` or another of SQLite's own tables is read or written."""

    @property
    def writes(self) -> frozenset[Access]:
        return self.inserts | self.updates | self.deletes


@dataclass(frozen=True)
class Schema:
    """The logical schema as the planner sees it. Keys are folded names."""

    tables: Mapping[str, Table]
    views: Mapping[str, str]
    """View name -> its CREATE text."""
    triggers: Mapping[str, str]
    """Trigger name -> its CREATE text."""
    functions: UserFunctions = NO_FUNCTIONS
    """Functions that the user registered: which of them shards may evaluate, and which not."""
    ddl: Mapping[str, str] = field(default_factory=dict)
    """Folded table name -> its CREATE TABLE text as the shards have it."""
    indexes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folded table name -> the CREATE INDEX texts of its indexes."""

    shadows: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Folded name of a virtual table -> the tables in which it keeps its content, and their columns."""

    def index_texts(self, table: str) -> tuple[str, ...]:
        """Return the texts of a table's indexes."""
        return self.indexes.get(fold(table), ())


class Prepare(Protocol):
    """Say what a text means. ``beside``: CREATE texts of tables that the shared database has for it."""

    def __call__(self, sql: str, beside: Sequence[str] = ..., /) -> Prepared: ...


class Columns(Protocol):
    """Tell the names of a query's result columns. ``beside``: as for ``Prepare``."""

    def __call__(self, sql: str, beside: Sequence[str] = ..., /) -> tuple[str, ...]: ...
