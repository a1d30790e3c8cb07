"""Queries with subqueries that look at nothing around them: those are evaluated first, as PostgreSQL's InitPlan.

States. (1) Each such subquery of an expression that reads sharded or single tables, and the same text only once, is
planned as a statement of its own, by any rule. (2) When the statement runs, its result goes into a table of the shared
database, before any connection for the rest is taken. (3) The text, in which ``(SELECT +_shardlite_0 FROM ...)`` stands
in the subquery's place, is planned as if that table were a reference table: on one shard, pushed down, with a
broadcast, or gathered, where its conditions then leave rows out.

Invariants. A column of that table has the affinity and collation of the result column, and holds its values as they
are. A scalar subquery gives its first row only, as its own plan orders them. What fails on the way (one file may never
have evaluated it) makes the statement run as a gather. Parameters keep their numbers, result columns their names.

Not where: the subquery sees the rows around it, a CTE or another's clock; its types can't be told; its result is
large; a REAL sum in it may meet a sum of the same numbers elsewhere, which would have to be the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shardlite.errors import Error
from shardlite.names import quote
from shardlite.router.keys import Affinity
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.clauses import PART, Unsure, part_column, render, top
from shardlite.sql.cores import SHARED, Span, top_positions
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES, WINDOWS, not_shardable
from shardlite.sql.inits import INIT, Asked, Subquery, subqueries_of
from shardlite.sql.names_in import cte_names, edges_of
from shardlite.sql.pins import one_key
from shardlite.sql.reduction import MOST_SHARED_ROWS, Needed, share_a_shard
from shardlite.sql.result_columns import ResultColumn, result_columns
from shardlite.sql.rules.broadcast import broadcast
from shardlite.sql.rules.common import pins_of
from shardlite.sql.rules.gather import gather
from shardlite.sql.rules.layers import layered_pins
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.rules.repartition import repartition
from shardlite.sql.same_bits import BY_ORDER, may_meet_itself
from shardlite.sql.statement import Statement, without_limit
from shardlite.sql.template import FannedOut, Gathered, InitSource, PushedDown, Source, Template, WithInits
from shardlite.sql.tokens import Text, TokenKind, renumbered, spliced, tokenize

_WORTH = 0.95
"""Init plans are made where they move fewer rows than a gather would."""
_CUT = 0.5
"""The part of its rows that a condition on a result may leave."""
_LONGEST = 8192
"""Characters of a subquery: longer texts aren't kept, and would be planned again and again."""
_EXISTENCE = ResultColumn(None, "BINARY")

Plans = Callable[[str], Template]


@dataclass(frozen=True, slots=True)
class _Init:
    """A subquery that can be evaluated first. ``rows``: about how many its result has; ``moved``: for having it."""

    subquery: Subquery
    columns: tuple[ResultColumn, ...]
    sql: str
    template: Template
    rows: float
    moved: float


def init_plan(statement: Statement, plans: Plans) -> WithInits | None:
    """Evaluate subqueries first; None where there are none, or where that can't be or doesn't pay.

    ``plans`` gives the template of a text.
    """
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly or statement.prepare is None:
        return None
    found = _inits(statement, plans)
    if not found:
        return None
    names = statement.names
    try:
        otherwise = gather(statement)
    except Error:
        return None
    if otherwise is None or not names:
        return None
    whole = sum(needed.rows for needed in statement.reduction.needed.values())
    for inits in _choices(statement, found):
        if inits and sum(init.moved + init.rows for init in inits) <= whole * _WORTH:
            made = _attempt(statement, inits, names, otherwise, whole)
            if made is not None:
                return made
    return None


def _choices(statement: Statement, found: Sequence[_Init]) -> Iterator[list[_Init]]:
    """Yield which of the subqueries to evaluate first: a list of keys need not be sent to where the keys are."""
    single = [init for init in found if init.subquery.asked is not Asked.ROWS]
    spread = [init for init in found if init in single or not _is_local(statement, init.subquery)]
    yield single
    if len(spread) > len(single):
        yield spread
    if len(found) > len(spread) and broadcast(statement) is None and repartition(statement) is None:
        yield list(found)


def _is_local(statement: Statement, subquery: Subquery) -> bool:
    """Tell whether what a subquery is asked for is a key that is on the row's shard: ``key IN (SELECT key ...)``."""
    core, tables = subquery.around, statement.schema.tables
    for edge, _ in () if core is None else edges_of(statement.text, core, statement.cores, tables):
        one, other = tables.get(edge.left.item.name), tables.get(edge.right.item.name)
        if edge.into and edge.right.core.span.start == subquery.inner.start and one is not None and other is not None:
            return share_a_shard(one, edge.left, other, edge.right)
    return False


# -- subqueries ----------------------------------------------------------------------------------------------------


def _inits(statement: Statement, plans: Plans) -> list[_Init]:
    """Return the outermost subqueries that can be evaluated first."""
    found: list[_Init] = []
    end = 0
    for subquery in subqueries_of(statement.text, statement.cores):
        if subquery.span.start < end:
            continue
        init = _init(statement, subquery, plans)
        if init is not None:
            found.append(init)
            end = subquery.span.end
    return found


def _init(statement: Statement, subquery: Subquery, plans: Plans) -> _Init | None:
    text = statement.text
    inner = subquery.inner
    if _names_a_cte(text, subquery.span) or statement.prepare is None:
        return None
    sql = render(text, inner)
    if len(sql) > _LONGEST:
        return None
    try:
        # In backticks a name is never taken for a string: what is no column in here is one of the rows around it.
        prepared = statement.prepare(render(text, inner, _in_backticks(text, inner)))
    except Error:
        return None
    query = Statement(replace(prepared, sql=sql), statement.schema, statement.columns, statement.rows)
    if all(table.kind is TableKind.REFERENCE for table in query.tables) or prepared.schema_read:
        return None
    if not prepared.readonly or not_shardable(
        prepared.functions - AGGREGATES - WINDOWS, query.text, statement.schema.functions
    ):
        return None
    if _carries_json(statement, prepared.functions, subquery.span):
        return None
    try:
        columns = _columns(query, subquery)
    except Unsure:
        return None
    if prepared.functions & BY_ORDER and may_meet_itself(statement, subquery, query):
        return None
    if subquery.asked is not Asked.ROWS:
        sql = _first_row(query)
    try:
        template = plans(sql)
    except Error:
        return None
    rows, moved = _size(query, subquery.asked, template)
    if rows > MOST_SHARED_ROWS:
        return None
    return _Init(subquery, columns, sql, template, rows, moved)


def _names_a_cte(text: Text, span: Span) -> bool:
    """Tell whether a name that the text gives to a common table expression around it stands in a subquery."""
    names = cte_names(replace(text, tokens=(*text.tokens[: span.start], *text.tokens[span.end :])))
    return any(token.name in names for token in text.tokens[span.start : span.end])


def _in_backticks(text: Text, span: Span) -> dict[int, tuple[int, str]]:
    """Return the names in double quotes, each with other quotes."""
    return {
        at: (at + 1, "`" + text.tokens[at].value.replace("`", "``") + "`")
        for at in range(*span)
        if text.tokens[at].kind is TokenKind.QUOTED and text.tokens[at].text[0] == '"'
    }


def _carries_json(statement: Statement, functions: frozenset[str], span: Span) -> bool:
    """Tell whether JSON may come out of a subquery into a function that tells it from text, as no table does."""
    if not any(name.startswith(("json", "->")) for name in functions):
        return False
    tokens = statement.text.tokens
    outside = (*tokens[: span.start], *tokens[span.end :])
    return bool(statement.views) or any(
        (token.name or "").startswith("json") or token.key in ("->", "->>") for token in outside
    )


def _columns(query: Statement, subquery: Subquery) -> tuple[ResultColumn, ...]:
    if subquery.asked is Asked.EXISTENCE:
        return (_EXISTENCE,)
    tables = {name: table for name, table in query.schema.tables.items() if name not in query.inits}
    if cte_names(query.text):
        raise Unsure("WITH")
    return tuple(result_columns(query.text, query.cores, tables))


def _first_row(query: Statement) -> str:
    """Return the text that gives the first row of a query."""
    text = query.text
    if any(text.tokens[at].key in ("LIMIT", "VALUES") for at in top_positions(text.tokens)) or _has_one_row(query):
        return text.sql
    return f"{text.sql} LIMIT 1"


def _has_one_row(query: Statement) -> bool:
    """Tell whether a query is one SELECT of aggregates over all its rows."""
    outer = [core for core in query.cores if core.parent is None]
    if len(outer) != 1 or outer[0].group is not None or query.text.head != "SELECT":
        return False
    tokens, columns = query.text.tokens, outer[0].columns
    return any(
        tokens[at].name in AGGREGATES | {"min", "max"} and tokens[at + 1].key == "(" for at in top(tokens, columns)
    ) and not any(tokens[at].key == "OVER" for at in range(*columns))


def _size(query: Statement, asked: Asked, template: Template) -> tuple[float, float]:
    """Estimate how many rows a subquery's result has, and how many are moved for it before."""
    needed = [one for one in query.reduction.needed.values() if one.table.kind is not TableKind.REFERENCE]
    rows = max((one.rows for one in needed), default=1.0)
    if asked is not Asked.ROWS or _has_one_row(query):
        rows = 0.0  # one row counts for nothing
    if isinstance(template, WithInits):
        template = template.outer
    if isinstance(
        template, Gathered
    ):  # what its conditions leave out is a guess, and the rest of the text may share it
        return rows, sum(query.rows(one.table) for one in needed)
    if isinstance(template, PushedDown) and template.shared:
        return rows, sum(one.rows for one in needed) - max(one.rows for one in needed)
    return rows, 0.0


# -- the text around -----------------------------------------------------------------------------------------------


def _attempt(
    statement: Statement, inits: Sequence[_Init], names: tuple[str, ...], otherwise: Gathered, whole: float
) -> WithInits | None:
    """Plan the text with these subqueries evaluated first."""
    sources, tables, places = _sources(inits)
    beside = tuple(source.create for source in sources)
    as_if = _as_if(statement, inits, places, tables, beside, names)
    if as_if is None:
        return None
    moved = sum(init.moved + init.rows for init in inits)
    outer = _planned(as_if, names) or _gathered(as_if, whole * _WORTH - moved)
    if outer is None:
        return None
    counted = "a subquery is" if len(sources) == 1 else f"{len(sources)} subqueries are"
    shown = statement.whole
    return WithInits(
        shown.text,
        tuple(sources),
        outer,
        otherwise,
        shown.table_names,
        f"{counted} evaluated first; {outer.reason}",
        names,
    )


def _sources(inits: Sequence[_Init]) -> tuple[list[InitSource], dict[str, tuple[Table, float]], list[str]]:
    """Return the results' tables, each once, and for each subquery the name of its own."""
    known: dict[tuple[str, Asked], str] = {}
    sources: list[InitSource] = []
    tables: dict[str, tuple[Table, float]] = {}
    places = []
    for init in inits:
        key = (init.sql, init.subquery.asked)
        if key not in known:
            name = known[key] = f"{INIT}{len(known)}"
            width = len(init.columns)
            declared = ", ".join(column.declared(index) for index, column in enumerate(init.columns))
            create = f"CREATE TABLE {SHARED}.{name}({declared})"
            into = f"INSERT INTO {SHARED}.{name}"
            sources.append(InitSource(name, create, into, width, init.subquery.asked, init.sql, init.template))
            columns = tuple(
                Column(part_column(i), "", c.affinity or Affinity.BLOB, c.collation, False, None, 0, False)
                for i, c in enumerate(init.columns)
            )
            tables[name] = Table(name, TableKind.REFERENCE, columns), init.rows
        places.append(known[key])
    return sources, tables, places


def _as_if(
    statement: Statement,
    inits: Sequence[_Init],
    places: Sequence[str],
    tables: dict[str, tuple[Table, float]],
    beside: tuple[str, ...],
    names: tuple[str, ...],
) -> Statement | None:
    """Return the statement whose text reads the results; None where SQLite understands it otherwise."""
    if statement.prepare is None:
        return None
    sql = _spliced(statement.text, inits, places)
    text = tokenize(sql)
    if any(
        token.kind in (TokenKind.QUOTED, TokenKind.STRING) and "select" in (token.name or "") for token in text.tokens
    ):
        return None  # perhaps the name of a column that a subquery's text has given
    prepare, columns = statement.prepare, statement.columns
    try:
        prepared = prepare(sql, beside)
    except Error:
        return None
    own = {sql: names, without_limit(text): names}
    if len(columns(without_limit(text), beside)) != len(names):
        return None
    made = Statement(
        prepared,
        replace(statement.schema, tables={**statement.schema.tables, **{name: t for name, (t, _) in tables.items()}}),
        lambda sql, also=(): own.get(sql) or columns(sql, (*beside, *also)),
        lambda table: int(tables[table.name][1]) if table.name in tables else statement.rows(table),
        lambda sql, also=(): prepare(sql, (*beside, *also)),
        inits=frozenset(tables),
    )
    made.text = renumbered(made.text, statement.text)
    return made


def _spliced(text: Text, inits: Sequence[_Init], places: Sequence[str]) -> str:
    """Return the text with numbered parameters, in which the results are read in the subqueries' places."""
    sql, tokens = text.sql, text.tokens
    edits = [
        (token.start, token.end, f"?{token.index}")
        for at, token in enumerate(tokens)
        if token.kind is TokenKind.PARAMETER
        and token.text[0] == "?"
        and not any(init.subquery.span.start <= at < init.subquery.span.end for init in inits)
    ]
    for init, name in zip(inits, places, strict=True):
        start, end = init.subquery.span
        listed = ", ".join(column.read(index) for index, column in enumerate(init.columns))
        edits.append((tokens[start].start, tokens[end - 1].end, f"(SELECT {listed} FROM {SHARED}.{name})"))
    return spliced(sql, edits)


def _planned(as_if: Statement, names: tuple[str, ...]) -> PushedDown | None:
    """Plan the text by the rules that let shards do the work."""
    if not as_if.of_kind(TableKind.SHARDED):
        if not as_if.tables:
            return None
        source = _part(as_if.sql, len(names), everywhere=False)
        return _collected(as_if, source, names, "the home shard has the other tables")
    pins = pins_of(as_if) or layered_pins(as_if)
    if pins is not None and one_key(pins) is not None and not as_if.of_kind(TableKind.SINGLE):
        tables = ", ".join(sorted({pin.table for pin in pins}))
        source = _part(as_if.sql, len(names), everywhere=True)
        return _collected(as_if, replace(source, pins=pins), names, f"the key of {tables} is pinned")
    found = push_down(as_if)
    if isinstance(found, PushedDown):
        return replace(found, merged=None, whole=False)
    if isinstance(found, FannedOut):
        width = len(names) + found.merge_rowid
        source = replace(_part(found.sql, width, everywhere=True), pins=found.pins)
        return _collected(as_if, source, names, found.reason, by_rowid=found.merge_rowid)
    sent = broadcast(as_if)
    sent = repartition(as_if, sent) or sent
    return None if sent is None else replace(sent, merged=None, whole=False)


def _part(sql: str, width: int, *, everywhere: bool) -> Source:
    listed = ", ".join(map(part_column, range(width)))
    return Source(PART, f"CREATE TABLE {PART}({listed})", f"INSERT INTO {PART}({listed})", width, sql, everywhere)


def _collected(
    as_if: Statement, part: Source, names: Sequence[str], reason: str, *, by_rowid: bool = False
) -> PushedDown:
    """Return the plan of a text whose rows on the shards are those of the answer."""
    shown = ", ".join(f"{part_column(i + by_rowid)} AS {quote(name)}" for i, name in enumerate(names))
    order = part_column(0) if by_rowid else f"{PART}.rowid"
    final = f"SELECT {shown} FROM {PART} ORDER BY {order}"
    return PushedDown(final, as_if.text, part, reason, as_if.table_names, None, whole=False)


def _gathered(as_if: Statement, most: float) -> Gathered | None:
    """Gather the rows that the text needs where the results leave enough of them out."""
    if as_if.tables and _left(as_if.reduction.needed) > most:
        return None
    try:
        found = gather(as_if)
    except Error:
        return None
    return found


def _left(needed: Mapping[str, Needed]) -> float:
    """Estimate the rows that are left by conditions on the results, or on tables that such conditions cut."""
    cut: set[str] = set()
    for name, one in sorted(needed.items(), key=lambda each: each[1].level):
        if INIT in one.condition or one.uses & cut:
            cut.add(name)
    return sum(one.rows * (_CUT if name in cut else 1.0) for name, one in needed.items())
