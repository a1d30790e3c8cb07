"""What import, export and check say of their work: frozen data with ``to_dict()``, and ``str()`` for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from shardlite.router.table import TableKind


class Phase(StrEnum):
    """The steps of a long job, in their order."""

    READING = "reading"
    """Reading the source's schema, or sniffing a text file."""
    ROUTING = "routing"
    """Working out the shard of each row."""
    COPYING = "copying"
    """Moving rows."""
    INDEXING = "indexing"
    """Building indexes, views and triggers."""
    VERIFYING = "verifying"
    """Comparing row counts and content hashes, or checking."""
    FINISHING = "finishing"
    """Syncing the files and putting the result in place."""


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One step forward. ``done`` of ``total`` is the whole job's, in rows, each phase counted; the rest is the phase's.

    ``rows_total`` is None where it isn't known yet.
    """

    phase: Phase
    table: str
    rows_done: int
    rows_total: int | None
    done: int
    total: int


ImportProgress = JobProgress
ExportProgress = JobProgress
CheckProgress = JobProgress
ProgressCallback = Callable[[JobProgress], None]


@dataclass(frozen=True, slots=True)
class TableChoice:
    """The kind and key of one table, and why."""

    table: str
    kind: TableKind
    key_columns: tuple[str, ...]
    rows: int
    reason: str
    """Why this kind and key, in words for people."""
    enforced: tuple[str, ...] = ()
    """Constraints that the shards go on enforcing."""
    unenforced: tuple[str, ...] = ()
    """Constraints that no shard can see: recorded and looked at by ``check``, not enforced at write time."""
    advice: tuple[str, ...] = ()
    """What to do about the unenforced ones, or how to override the choice."""

    @property
    def placement(self) -> str:
        """``sharded by user_id``, ``reference`` or ``single``."""
        return f"sharded by {', '.join(self.key_columns)}" if self.key_columns else self.kind.value

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.placement}, {self.rows:,} rows. {self.reason}"]
        lines += [f"    enforced: {text}" for text in self.enforced]
        lines += [f"    only checked: {text}" for text in self.unenforced]
        lines += [f"    -> {text}" for text in self.advice]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import would do: nothing has been written."""

    source: str
    num_shards: int
    encoding: str
    tables: tuple[TableChoice, ...]
    warnings: tuple[str, ...] = ()

    def choice(self, table: str) -> TableChoice:
        """Return one table's choice. Raises KeyError for a table that the source doesn't have."""
        for choice in self.tables:
            if choice.table.lower() == table.lower():
                return choice
        raise KeyError(table)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source} over {self.num_shards} shards:"]
        lines += [f"  {line}" for choice in self.tables for line in str(choice).splitlines()]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class TableReport:
    """What came of one table."""

    table: str
    kind: TableKind
    rows: int
    rows_per_shard: tuple[int, ...]
    """Rows on each shard; a reference table has all its rows on every one."""
    fingerprint: str
    """The content hash over rowid and columns, in hexadecimal; the same in the source and over the shards."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    source: str
    db_dir: str
    plan: ImportPlan
    tables: tuple[TableReport, ...]
    rows: int
    seconds: float
    warnings: tuple[str, ...] = ()
    """Violations that the source already had, and what could not be kept."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.db_dir}: {self.rows:,} rows in {self.seconds:.1f} s, verified"]
        lines += [
            f"  {t.table}: {t.kind.value}, {t.rows:,} rows, per shard {list(t.rows_per_shard)}" for t in self.tables
        ]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote."""

    db_dir: str
    dest: str
    tables: tuple[TableReport, ...]
    rows: int
    bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.db_dir} -> {self.dest}: {len(self.tables)} tables, {self.rows:,} rows, "
            f"{self.bytes:,} bytes in {self.seconds:.1f} s"
        )


class ProblemKind(StrEnum):
    """The kinds of problems that ``check`` finds."""

    MISSING_SHARD = "missing-shard"
    WRONG_FILE = "wrong-file"
    DAMAGED = "damaged"
    SCHEMA = "schema"
    EPOCH = "epoch"
    MISPLACED_ROW = "misplaced-row"
    DUPLICATE_ROWID = "duplicate-rowid"
    REFERENCE_COPY = "reference-copy"
    FOREIGN_KEY = "foreign-key"
    UNIQUE = "unique"
    SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of ``check``."""

    kind: ProblemKind
    detail: str
    """What is wrong, with names and numbers."""
    remedy: str = ""
    """What to do about it."""
    shard: int | None = None
    table: str | None = None
    count: int = 1
    """How many rows are concerned."""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}" + (f" -> {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found; ``ok`` when no problem is left."""

    db_dir: str
    shards: int
    tables: int
    rows: int
    problems: tuple[Problem, ...]
    """What is wrong now, after any repair."""
    repaired: tuple[str, ...]
    """What ``repair=True`` did, act by act."""
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        verdict = "sound" if self.ok else f"{len(self.problems)} problem(s)"
        lines = [f"{self.db_dir}: {verdict}; {self.shards} shards, {self.tables} tables, {self.rows:,} rows"]
        lines += [f"  repaired: {text}" for text in self.repaired]
        lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)
