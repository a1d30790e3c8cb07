"""What a statement will do, as frozen data with deterministic text.

A :class:`Template` (``sql/template.py``) holds what the text alone decides; ``template.bind(parameters, layout)`` looks
at the parameters and gives a :class:`Plan`. Whether a statement is accepted never depends on the number of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

from shardlite.router.keys import KeyType
from shardlite.sql.inits import Asked
from shardlite.sql.order import SortTerm

Value: TypeAlias = Any
"""None, int, float, str, bytes (or what the driver adapts to one of them)."""
Parameters: TypeAlias = "Sequence[Value] | Mapping[str, Value]"


class PlanKind(StrEnum):
    """How a statement runs."""

    ONE_SHARD = "one shard"
    """The key is pinned: the text runs on the shard of that key."""
    HOME = "home shard"
    """Only single and reference tables, or none: the text runs on shard 0."""
    FAN_OUT = "fan-out"
    """Every shard of the plan runs ``sql``; the answer is all their rows together."""
    EVERY_SHARD = "every shard"
    """A write of a reference table: the same on every shard, in one transaction; the count is that of one shard."""
    FAN_OUT_WRITE = "fan-out write"
    """Every shard of the plan runs ``sql`` on its own rows, all in one transaction; the count is the sum."""
    SPLIT_INSERT = "split insert"
    """An INSERT whose rows belong to several shards: ``steps`` run in one transaction."""
    INSERT_QUERY = "insert of a query"
    """Under all shards' locks a query is answered as by a gather; its rows then go to the shards of their keys."""
    PUSH_DOWN = "push-down"
    """Every shard does its part; the coordinator puts the parts together with ``sql``."""
    BROADCAST = "broadcast"
    """As a push-down, after the rows needed of the smaller tables were sent to every shard."""
    REPARTITION = "repartition"
    """As a push-down, after rows of some tables were sent to the shards that own the keys they are joined with."""
    GATHER = "gather"
    """The rows that the statement needs are brought to the coordinator, where the text runs as written."""
    GATHER_WRITE = "gather and write"
    """As a gather, under all shards' locks; what changed there is then written to the shards."""
    ATTACHED_WRITE = "change of an attached file"
    """As a gather; the text changes the attached file's rows, which is a transaction of that file."""
    ATTACHED_PRAGMA = "PRAGMA of an attached file"
    """Asked where the file is attached and nothing else is."""
    DDL = "schema change"
    """The text goes to ``apply_schema``."""
    SCHEMA = "logical schema"
    """The text runs on the schema as one file would hold it; no shard is asked for rows."""
    CHECK = "check of all shards"
    """A PRAGMA that looks for faults: the findings of all shards, or ``ok`` once."""
    SETTING = "setting of every shard"
    """A PRAGMA that sets a number in the files' headers: on all shards or none."""
    EACH_SHARD = "each shard in turn"
    """Maintenance that gives no rows (VACUUM): one shard after another, each by itself."""
    EXPLAIN = "explain"
    """Every shard of the plan, and the coordinator, say how they would run their parts of ``explained``."""


WITHOUT_STEPS = frozenset(
    (
        *(PlanKind.DDL, PlanKind.SCHEMA, PlanKind.CHECK, PlanKind.SETTING, PlanKind.EACH_SHARD, PlanKind.EXPLAIN),
        PlanKind.ATTACHED_PRAGMA,
    )
)
"""Kinds that don't run as steps on shards: ``execute`` has a way of its own for each."""


class LayoutView(Protocol):
    """What binding asks of a layout."""

    @property
    def num_shards(self) -> int: ...

    def shard_of(self, key_type: KeyType) -> Callable[[Any], int]: ...


class Step(NamedTuple):
    """One text with its parameters on one shard."""

    shard: int
    sql: str
    parameters: Parameters


class InsertedRow(NamedTuple):
    """One row of an INSERT as a statement of its own."""

    shard: int
    sql: str
    parameters: Parameters
    id: int | None
    """Its rowid, where that is known before it is inserted."""
    drawn: bool
    """The id is from the table's sequence."""
    fails: str
    """What SQLite would say to it, where a shard that is asked would do something else; "" where it may be asked."""


class Route(NamedTuple):
    """By which of its columns a moved row finds the one shard that it goes to."""

    key_type: KeyType
    """That of the table whose keys they are joined with."""
    columns: tuple[str, ...]
    positions: tuple[int, ...]
    """Where they stand among the columns moved."""


class Move(NamedTuple):
    """Rows brought together: what ``sql`` gives on each of ``shards`` goes into one table of the coordinator."""

    into: str
    """The table's name there."""
    create: str
    """Its CREATE TABLE text."""
    insert: str
    """``INSERT INTO t(a, b)``, without the values."""
    width: int
    """How many columns ``sql`` gives."""
    sql: str
    parameters: Parameters
    shards: tuple[int, ...]
    indexes: tuple[str, ...] = ()
    """Indexes that are worth making where many rows come."""
    whole: str = ""
    """``sql`` without a condition that depends on parameters, for a statement that runs with several sets of them."""
    weight: float = 1.0
    """For how many rows each stands to SQLite's planner, which will count conditions again that left the others out."""
    route: Route | None = None
    """The rows go to the shards that own these keys, each to one."""
    computed: bool = False
    """``sql`` computes its rows: to run it once more costs more than to read some thousand of them."""

    def __str__(self) -> str:
        where = ", ".join(map(str, self.shards))
        by = f" by {', '.join(self.route.columns)}" if self.route is not None else ""
        return f"move to {self.into}{by} from shards {where}: {_one_line(self.sql)}"


class Init(NamedTuple):
    """A subquery that is evaluated before the statement: its result goes into a table of the shared database."""

    into: str
    """The table's name there."""
    create: str
    insert: str
    """``INSERT INTO t``, without the values."""
    width: int
    asked: Asked
    plan: Plan

    def __str__(self) -> str:
        lines = str(self.plan).splitlines()
        return "\n".join([f"init {self.into} ({self.asked}): {lines[0]}", *lines[1:]])


class Program(NamedTuple):
    """What is brought to the coordinator before the plan's ``sql`` runs there."""

    moves: tuple[Move, ...]
    """What goes to the coordinator's own database, all at once."""
    setup: tuple[str, ...] = ()
    """Texts to run after the moves: views."""
    parameters: Parameters = ()
    """Those of the plan's ``sql``."""
    written: tuple[str, ...] = ()
    """GATHER_WRITE: the tables that may change."""
    shared: tuple[tuple[Move, ...], ...] = ()
    """Before that, stage by stage: what goes to the database that the shards see as well, or to the keys' owners."""
    past: bool = False
    """The statement asks for changes(), total_changes() or last_insert_rowid()."""
    attached: tuple[tuple[str, int | None], ...] = ()
    """Attached files that the statement names, with the ``schema_version`` by which it was planned (None: none)."""
    inits: tuple[Init, ...] = ()
    """Subqueries whose results come before all else."""


class Into(NamedTuple):
    """Where the rows of a query go."""

    table: str
    columns: tuple[str, ...]
    counted: bool = True
    """Whether the driver counts the rows: where the text begins with INSERT, and not with WITH."""
    verb: str = "INSERT"
    """With OR IGNORE or OR REPLACE where the text says so."""
    alias: str = ""
    """`` AS a``, quoted."""
    tail: str = ""
    """ON CONFLICT and RETURNING, with a ``?`` for each of ``tail_values``."""
    tail_values: tuple[Value, ...] = ()
    tolerant: bool = False
    """A row that conflicts may be left out, or replace or change other rows."""
    returns: bool = False
    """The rows have to be inserted one after the other, for what RETURNING says of each."""

    @property
    def words(self) -> str:
        """What is said besides the columns, for a plan's text."""
        return f"{self.verb.lower()} into {self.table} ({', '.join(self.columns)}){self.tail}"


class Merge(NamedTuple):
    """How the rows of shards are merged that each shard has sorted."""

    columns: tuple[str, ...]
    """The result's columns: a shard's rows begin with them, and go on with what is only sorted by."""
    terms: tuple[SortTerm, ...]
    words: str
    """The order in words."""
    limit: int | None
    offset: int | None
    otherwise: Callable[[], Plan]
    """The plan that doesn't bring what is sorted by through Python."""

    def __str__(self) -> str:
        limit = "" if self.limit is None else f", LIMIT {self.limit}"
        return self.words + limit + ("" if self.offset is None else f" OFFSET {self.offset}")


@dataclass(frozen=True, slots=True)
class InsertIds:
    """What an INSERT into a sharded rowid table asks of the table's sequence.

    ``id_rows`` ids have to be drawn and given to ``Plan.with_ids`` before the plan has steps (0: it has them
    already). ``needs_id_for_key``: the id is the shard key, so the shards are known only then. ``explicit_ids`` are
    those that the statement states: the sequence has to be bumped by them, and where ``probe`` holds (the INTEGER
    PRIMARY KEY is not the shard key) they have to be absent on every other shard.
    """

    table: str
    id_rows: int = 0
    needs_id_for_key: bool = False
    explicit_ids: tuple[int, ...] = ()
    probe: bool = False


class Plan(NamedTuple):
    """How one statement runs with these parameters. A named tuple because one is made per statement: 1 us, not 5.

    ``sql`` and ``parameters`` run on each of ``shards``, or, where they differ by shard, as ``steps`` says.
    """

    kind: PlanKind
    sql: str
    parameters: Parameters
    shards: tuple[int, ...]
    readonly: bool
    reason: str
    tables: tuple[str, ...] = ()
    """The tables read or written, in the schema's spelling, sorted."""
    merge_rowid: bool = False
    """FAN_OUT, FAN_OUT_WRITE: each row starts with a rowid; merge the shards by it, ascending, and drop it."""
    returns_rows: bool = False
    """The statement gives rows: a SELECT, or DML with RETURNING."""
    insert: InsertIds | None = None
    split: tuple[Step, ...] = ()
    complete: Callable[[Sequence[int]], Plan] | None = None
    """Puts generated ids in their places; call ``with_ids`` instead."""
    program: Program | None = None
    """PUSH_DOWN (and its like), GATHER(_WRITE), INSERT_QUERY: what comes before ``sql``, which the coordinator runs."""
    explained: Plan | None = None
    """EXPLAIN: how the statement behind that word would run."""
    rows: Callable[[], Sequence[InsertedRow]] | None = None
    """An INSERT's rows in the order of the statement; None while ids are missing, and for other statements."""
    row_count: int = 0
    """How many ``rows`` there are."""
    fails: str = ""
    """An INSERT of which a row can't be inserted, in SQLite's words, though a shard would take it: don't ask."""
    on_overflow: Callable[[], Plan] | None = None
    """What has a program: the plan to run where this one fails and another may not.

    Whether adding the shards' integers fails is a matter of order; the shared database may be full; what one file
    wouldn't have evaluated may fail.
    """
    columns: tuple[str, ...] = ()
    """The names of the result's columns, where ``sql`` would give others."""

    into: Into | None = None
    """INSERT_QUERY: where the rows go that ``sql`` gives on the coordinator."""
    merge: Merge | None = None
    """FAN_OUT: each shard's rows are sorted; merge them in that order."""

    @property
    def id_rows(self) -> int:
        """Count the ids that ``with_ids`` needs."""
        return self.insert.id_rows if self.insert is not None else 0

    @property
    def needs_id_for_key(self) -> bool:
        """Tell whether the shards depend on the generated ids."""
        return self.insert is not None and self.insert.needs_id_for_key

    @property
    def explicit_ids(self) -> tuple[int, ...]:
        """Return the rowids that an INSERT states itself."""
        return self.insert.explicit_ids if self.insert is not None else ()

    def with_ids(self, ids: Sequence[int]) -> Plan:
        """Return the plan with generated ids in their places, in the order of the rows. Its ``id_rows`` is 0.

        Raises ValueError unless exactly ``id_rows`` ids are given.
        """
        if len(ids) != self.id_rows:
            raise ValueError(f"the plan needs {self.id_rows} ids, {len(ids)} were given")
        return self if self.complete is None or not ids else self.complete(ids)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What runs where, in this order. Empty for DDL, and while ids are missing."""
        if self.split or self.id_rows or self.kind in WITHOUT_STEPS:
            return self.split
        return tuple(Step(shard, self.sql, self.parameters) for shard in self.shards)

    def __str__(self) -> str:
        unknown = "known when the ids are drawn" if self.id_rows else "none"
        where = ", ".join(str(shard) for shard in self.shards) if self.shards else unknown
        lines = [str(self.kind)]
        if self.kind not in (PlanKind.DDL, PlanKind.SCHEMA):
            lines.append(f"shards: {where}")
        if self.tables:
            lines.append(f"tables: {', '.join(self.tables)}")
        lines.append(f"why: {self.reason}")
        if self.merge_rowid:
            lines.append("merge: by rowid")
        if self.merge is not None:
            lines.append(f"merge: by {self.merge}")
        if self.program is not None:
            lines.extend(map(str, self.program.inits))
            for stage in self.program.shared:
                lines.extend(f"{'share' if move.route is None else 'send'} {move}" for move in stage)
            lines.extend(map(str, self.program.moves))
            if self.program.attached:
                lines.append(f"attached: {', '.join(name for name, _ in self.program.attached)}")
        if self.into is not None:
            lines.append(self.into.words)
        if self.insert is not None and self.insert.id_rows:
            lines.append(f"ids: {self.insert.id_rows} from the sequence of {self.insert.table}")
        if self.insert is not None and self.insert.probe and self.insert.explicit_ids:
            lines.append(f"probe: {len(self.insert.explicit_ids)} ids must be new on every shard")
        if self.split:
            lines.extend(f"shard {step.shard}: {_one_line(step.sql)}" for step in self.split)
        else:
            lines.append(f"sql: {_one_line(self.sql)}")
        marks = ["", *("├─ " for _ in lines[1:-1]), "└─ "]
        return "\n".join(mark + line.replace("\n", "\n│  ") for mark, line in zip(marks, lines, strict=True))


def _one_line(sql: str, limit: int = 400) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
