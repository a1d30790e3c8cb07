"""What SQLite itself says of a statement, and what the planner knows of the schema. Frozen data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    program: str = ""
    """What SQLite's machine does for a query, as text: two queries that have one program give one answer."""
    pragma_schema: str = ""
    """The folded name of the schema that a PRAGMA names."""
    attached: frozenset[str] = frozenset()
    """Folded names of the attached files whose tables it may use. ``reads`` and its like don't tell of these."""
    attached_write: bool = False
    """A table of an attached file is written, and then nothing else is."""

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
    collations: frozenset[str] = frozenset()
    """The folded names of the collations that the user registered."""
    ddl: Mapping[str, str] = field(default_factory=dict)
    """Folded table name -> its CREATE TABLE text as the shards have it."""
    indexes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folded table name -> the CREATE INDEX texts of its indexes."""

    attached: Mapping[str, int | None] = field(default_factory=dict)
    """Folded name of each attached file -> its ``schema_version``, None where its tables aren't known, in order."""

    automatic_indexes_lose: bool = False
    """SQLite's automatic indexes lose matches by collations that take texts of several lengths for equal."""

    prefixes: Callable[[Table], Mapping[tuple[str, ...], float]] = field(default=lambda table: {})
    """What ANALYZE found of a table: an index's first columns (folded) -> rows that are equal in them, on the average.

    It decides costs, never answers, and may be another at each call.
    """

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
