"""What a text alone decides about its plan. Cached by text; ``bind`` adds the parameters and the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

from shardlite.errors import InternalError, NotSupportedError, RoutingError
from shardlite.sql.inits import Asked
from shardlite.sql.order import SortTerm
from shardlite.sql.pins import Bound, Pin, Point, Values
from shardlite.sql.plan import Init, LayoutView, Merge, Move, Parameters, Plan, PlanKind, Program, Route
from shardlite.sql.tokens import Constant, Text, tokenize

LARGE_LIMIT = 50_000
"""LIMIT and OFFSET together up to which each shard is told where to stop. SQLite keeps the first rows of such a
query in a tree, which costs more than to sort all rows and to read some, where the first are many."""


class Template(Protocol):
    """A plan without parameters. Immutable, safe for threads."""

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        """Return the plan for these parameters.

        Raises ProgrammingError for parameters that don't fit, RoutingError for a value that can't be a key, and
        NotSupportedError where these parameters (several keys, say) ask for what can't be done.
        """
        ...

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        """Return the canonical keys that the statement is held to; None where it isn't held to any."""
        ...


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement whose place doesn't depend on parameters: the home shard, every shard, or none (DDL)."""

    kind: PlanKind
    sql: str
    readonly: bool
    reason: str
    tables: tuple[str, ...] = ()
    returns_rows: bool = False

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        shards: tuple[int, ...] = (0,)
        if self.kind is not PlanKind.HOME:
            nowhere = self.kind in (PlanKind.DDL, PlanKind.SCHEMA)
            shards = () if nowhere else tuple(range(layout.num_shards))
        return Plan(
            self.kind,
            self.sql,
            parameters,
            shards,
            self.readonly,
            self.reason,
            self.tables,
            returns_rows=self.returns_rows,
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None


def _shards(pins: Sequence[Pin], values: Values, layout: LayoutView) -> tuple[int, ...]:
    """Return the shards that pins leave: all of them where there are none."""
    return Bound(pins, values, layout).shards if pins else tuple(range(layout.num_shards))


@dataclass(frozen=True, slots=True)
class FannedOut:
    """A query whose rows are those of all shards together; ``pins`` may leave shards out."""

    sql: str
    merge_rowid: bool
    reason: str
    tables: tuple[str, ...]
    text: Text
    pins: tuple[Pin, ...] = ()

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        shards = _shards(self.pins, values, layout)
        return self.over(shards, parameters)

    def over(self, shards: tuple[int, ...], parameters: Parameters) -> Plan:
        """Return the plan that runs on these shards."""
        if self.text.names and not self.text.nameless:
            # In a text that was put together anew the names may come in another order.
            parameters = parameters_for(self.sql, self.text, parameters)
        return Plan(
            PlanKind.FAN_OUT,
            self.sql,
            parameters,
            shards,
            True,
            self.reason,
            self.tables,
            merge_rowid=self.merge_rowid,
            returns_rows=True,
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None


@dataclass(frozen=True, slots=True)
class FannedOutWrite:
    """An UPDATE or DELETE that every shard runs on its own rows; ``pins`` (of the target) may leave shards out."""

    sql: str
    text: Text
    reason: str
    tables: tuple[str, ...]
    returns_rows: bool
    merge_rowid: bool
    pins: tuple[Pin, ...] = ()

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        shards = _shards(self.pins, values, layout)
        return Plan(
            PlanKind.FAN_OUT_WRITE,
            self.sql,
            parameters,
            shards,
            False,
            self.reason,
            self.tables,
            self.merge_rowid,
            self.returns_rows,
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None


@dataclass(frozen=True, slots=True)
class Pinned:
    """A statement in which every sharded table is pinned. ``otherwise`` is for several different keys."""

    sql: str
    readonly: bool
    returns_rows: bool
    reason: str
    tables: tuple[str, ...]
    text: Text
    pins: tuple[Pin, ...]
    otherwise: FannedOut | FannedOutWrite | PushedDown | Gathered | str
    point: Point | None = None
    """The one constant that the key is compared with, where there are no more."""

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        if self.point is not None:
            return self._plan((self.point.shard(values, layout),), parameters)
        bound = Bound(self.pins, values, layout)
        if bound.keys > 1:
            if isinstance(self.otherwise, str):
                raise NotSupportedError(self.otherwise)
            if isinstance(self.otherwise, FannedOut):
                return self.otherwise.over(bound.shards, parameters)
            return self.otherwise.bind(parameters, layout)
        return self._plan(bound.shards, parameters)

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        values = Values(self.text, parameters)
        return frozenset(pin.key_type.canonical(key) for pin in self.pins for key in pin.keys(values))

    def _plan(self, shards: tuple[int, ...], parameters: Parameters) -> Plan:
        return Plan(
            PlanKind.ONE_SHARD,
            self.sql,
            parameters,
            shards,
            self.readonly,
            self.reason,
            self.tables,
            False,
            self.returns_rows,
        )


@dataclass(frozen=True, slots=True)
class Source:
    """What a gather brings of one table, from every shard or the home shard; ``pins`` may leave shards out."""

    into: str
    create: str
    insert: str
    width: int
    sql: str
    everywhere: bool
    pins: tuple[Pin, ...] = ()
    indexes: tuple[str, ...] = ()
    level: int | None = None
    """The stage at which it goes to the shared database; None: it goes to the coordinator's own."""
    whole: str = ""
    """``sql`` without a condition that depends on parameters; "" where it has none."""
    weight: float = 1.0
    """In the shared database: for how many rows of the table each stands, to SQLite's planner."""
    route: Route | None = None
    """Each row goes to the shard that owns its key, not to all."""
    computed: bool = False
    """``sql`` computes its rows."""

    def bind(self, text: Text, values: Values, parameters: Parameters, layout: LayoutView) -> Move:
        """Return the move for these parameters."""
        shards = _shards(self.pins, values, layout) if self.everywhere else (0,)
        given = parameters_for(self.sql, text, parameters)
        return Move(
            self.into,
            self.create,
            self.insert,
            self.width,
            self.sql,
            given,
            shards,
            self.indexes,
            self.whole,
            self.weight,
            self.route,
            self.computed,
        )


def stages_of(bound: Sequence[tuple[int | None, Move]]) -> tuple[tuple[Move, ...], ...]:
    """Group the moves to the shared database by their stage."""
    levels = sorted({level for level, _ in bound if level is not None})
    return tuple(tuple(move for at, move in bound if at == level) for level in levels)


def parameters_for(sql: str, text: Text, parameters: Parameters) -> Parameters:
    """Return the parameters for a piece of a text, in which ``?`` stands with its number."""
    if isinstance(parameters, Mapping) or not parameters:
        return parameters
    count, named = _parameters_of(sql)
    if named and text.names:
        numbers = {token.text: token.index for token in text.tokens if token.index}
        return tuple(parameters[numbers.get(named.get(index, ""), index) - 1] for index in range(1, count + 1))
    return tuple(parameters[:count])


@lru_cache(maxsize=1024)
def _parameters_of(sql: str) -> tuple[int, Mapping[int, str]]:
    """Return the largest number of a parameter of a text, and which of them are names, with their marks."""
    piece = tokenize(sql)
    return piece.parameter_count, {t.index: t.text for t in piece.tokens if t.index and t.text[0] != "?"}


@dataclass(frozen=True, slots=True)
class Gathered:
    """A statement that runs as written on the coordinator, over the rows that ``sources`` bring."""

    kind: PlanKind
    sql: str
    text: Text
    sources: tuple[Source, ...]
    setup: tuple[str, ...]
    readonly: bool
    returns_rows: bool
    reason: str
    tables: tuple[str, ...]
    written: tuple[str, ...] = ()
    past: bool = False
    attached: tuple[tuple[str, int | None], ...] = ()

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        bound = [(source.level, source.bind(self.text, values, parameters, layout)) for source in self.sources]
        shards = tuple(sorted({shard for _, move in bound for shard in move.shards}))
        if self.kind is PlanKind.GATHER_WRITE:
            shards = tuple(range(layout.num_shards))
        return Plan(
            self.kind,
            self.sql,
            parameters,
            shards,
            self.readonly,
            self.reason,
            self.tables,
            returns_rows=self.returns_rows,
            program=Program(
                tuple(move for level, move in bound if level is None),
                self.setup,
                parameters,
                self.written,
                stages_of(bound),
                self.past,
                self.attached,
            ),
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None


class WithFallback:
    """A template that may refuse its parameters, and how the statement runs then. Safe for threads."""

    def __init__(self, first: Template, otherwise: Callable[[str], Gathered | None]) -> None:
        self._first = first
        self._otherwise = otherwise
        self._gathered: Gathered | None = None

    @property
    def first(self) -> Template:
        """The template that is tried first."""
        return self._first

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        try:
            return self._first.bind(parameters, layout)
        except NotSupportedError as refusal:
            found = self._gathered or self._otherwise(str(refusal))
            if found is None:
                raise
            self._gathered = found
            return found.bind(parameters, layout)

    def gathered(self, parameters: Parameters, layout: LayoutView) -> Plan | None:
        """Return the plan that doesn't depend on whether these parameters fit the first template."""
        found = self._gathered or self._otherwise("")
        self._gathered = found
        return None if found is None else found.bind(parameters, layout)

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return self._first.keys(parameters)


@dataclass(frozen=True, slots=True)
class Merged:
    """A query of which each shard gives its rows sorted, to be merged as they are read."""

    sql: str
    limit_sql: str
    """`` LIMIT ...`` to stand after it, or nothing."""
    pins: tuple[Pin, ...]
    columns: tuple[str, ...]
    terms: tuple[SortTerm, ...]
    words: str
    amounts: tuple[Constant, ...]
    """LIMIT and OFFSET, as far as the text has them."""

    def bind(self, whole: PushedDown, values: Values, parameters: Parameters, layout: LayoutView) -> Plan | None:
        """Return the plan; None where only SQLite can tell what LIMIT says: the parameter is no int."""
        given = [values.of(amount) for amount in self.amounts]
        if not all(type(value) is int for value in given):
            return None
        limit, offset = (*given, None, None)[:2]
        some = limit is not None and limit >= 0 and limit + max(offset or 0, 0) <= LARGE_LIMIT
        sql = self.sql + self.limit_sql if some else self.sql
        return Plan(
            PlanKind.FAN_OUT,
            sql,
            parameters_for(sql, whole.text, parameters),
            _shards(self.pins, values, layout),
            True,
            "each shard sorts its rows and the sorted are merged as they are read",
            whole.tables,
            returns_rows=True,
            merge=Merge(
                self.columns, self.terms, self.words, limit, offset, partial(whole.gathered, parameters, layout)
            ),
        )


@dataclass(frozen=True, slots=True)
class PushedDown:
    """A query that each shard answers for its own rows (``part``) and the coordinator puts together by ``sql``.

    ``otherwise`` is the plan for the rare rows whose parts can't be put together: an integer sum beyond 64 bits. None
    where that can't happen.
    """

    sql: str
    text: Text
    part: Source
    reason: str
    tables: tuple[str, ...]
    otherwise: Gathered | None
    shared: tuple[Source, ...] = ()
    """What the shards have to see of other tables."""
    rows_sent: float = 0.0
    """An estimate."""
    merged: Merged | None = None
    """How the rows come without a table of the coordinator's."""
    whole: bool = True
    """The text itself may run on a shard that has all rows."""

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        plan = None
        if self.merged is not None and not self.shared:
            plan = self.merged.bind(self, Values(self.text, parameters), parameters, layout)
        return self.gathered(parameters, layout) if plan is None or len(plan.shards) == 1 else plan

    def gathered(self, parameters: Parameters, layout: LayoutView) -> Plan:
        """Return the plan that puts the shards' parts together at the coordinator, where there are several."""
        values = Values(self.text, parameters)
        move = self.part.bind(self.text, values, parameters, layout)
        if len(move.shards) == 1 and not self.shared and self.whole:
            whole = FannedOut(self.text.sql, False, "all its rows are on one shard", self.tables, self.text)
            return whole.over(move.shards, parameters)
        bound = [(one.level, one.bind(self.text, values, parameters, layout)) for one in self.shared]
        kind = PlanKind.BROADCAST if bound else PlanKind.PUSH_DOWN
        return Plan(
            PlanKind.REPARTITION if any(sent.route is not None for _, sent in bound) else kind,
            self.sql,
            parameters,
            tuple(sorted({*move.shards, *(shard for _, sent in bound for shard in sent.shards)})),
            True,
            self.reason,
            self.tables,
            returns_rows=True,
            program=Program((move,), (), parameters_for(self.sql, self.text, parameters), shared=stages_of(bound)),
            on_overflow=None if self.otherwise is None else partial(self.otherwise.bind, parameters, layout),
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None


@dataclass(frozen=True, slots=True)
class InitSource:
    """A subquery that is a statement of its own: see ``Init``."""

    into: str
    create: str
    insert: str
    width: int
    asked: Asked
    sql: str
    """Its text, in which ``?`` stands with its number."""
    template: Template

    def bind(self, text: Text, parameters: Parameters, layout: LayoutView) -> Init:
        """Return it for the parameters of the statement around it, whose text is ``text``."""
        plan = self.template.bind(parameters_for(self.sql, text, parameters), layout)
        return Init(self.into, self.create, self.insert, self.width, self.asked, plan)


@dataclass(frozen=True, slots=True)
class WithInits:
    """A query some of whose subqueries are evaluated first; ``outer`` reads their results from the shared database.

    ``otherwise`` is for what fails on the way: one file might never have evaluated it.
    """

    text: Text
    inits: tuple[InitSource, ...]
    outer: PushedDown | Gathered
    otherwise: Gathered
    tables: tuple[str, ...]
    reason: str
    columns: tuple[str, ...]

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        Values(self.text, parameters)  # their number
        if layout.num_shards == 1:
            whole = FannedOut(self.text.sql, False, "all its rows are on one shard", self.tables, self.text)
            return whole.over((0,), parameters)
        try:
            inits = tuple(init.bind(self.text, parameters, layout) for init in self.inits)
            # Named parameters have there the numbers that they have in the whole text.
            given = parameters if isinstance(parameters, Mapping) else parameters[: self.outer.text.parameter_count]
            plan = self.outer.bind(given, layout)
        except (NotSupportedError, RoutingError):
            return self.otherwise.bind(parameters, layout)
        if plan.program is None:
            raise InternalError("a statement with init plans that runs without a program")
        return plan._replace(
            shards=plan.shards or (0,),
            reason=self.reason,
            tables=self.tables,
            columns=self.columns,
            program=plan.program._replace(inits=inits),
            on_overflow=partial(self.otherwise.bind, parameters, layout),
        )

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None
