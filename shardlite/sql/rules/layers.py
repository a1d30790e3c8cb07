"""Queries with subqueries in FROM, one layer at a time: what the shards can answer of each layer.

A subquery in FROM sees nothing of the query around it, so it is a statement of its own. Where its rows are those of
the shards together, or the same on every shard, it is to the query around it what a table is: the outer layer is
looked at with the name of such a table in the subquery's place, and the text is put back into what the shards run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.clauses import Unsure, read_select
from shardlite.sql.compound import Arm, Compound
from shardlite.sql.cores import Core, Item, top_positions
from shardlite.sql.derived import derived_columns, derived_key, derived_table
from shardlite.sql.facts import Columns, Schema
from shardlite.sql.locality import calls_aggregate, holds_key
from shardlite.sql.names_in import ROWIDS
from shardlite.sql.pins import Pin, pin_of
from shardlite.sql.rules.common import analysed, pins_of
from shardlite.sql.rules.fan_out import with_rowid
from shardlite.sql.rules.queries import Query, check_rows, queries_of
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, PushedDown
from shardlite.sql.tokens import Text, Token, closing, numbered, spliced, tokenize, unnumbered
from shardlite.sql.two_phase import COMBINED

_OPENS = frozenset(("SELECT", "VALUES", "WITH"))
_NAMELESS = "_shardlite_from"
"""The alias of a subquery that has none, where its rowid is asked for; the names of those cut out begin with it."""
_CUT = "layers"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A subquery cut out.

    ``alone``: the only source of the outermost SELECT, whose rows may keep the order of ids. ``sorted_anew``: the order
    of its own rows can't be seen.
    """

    name: str
    statement: Statement
    columns: tuple[str, ...]
    alone: bool
    sorted_anew: bool


@dataclass(frozen=True, slots=True)
class _Cut:
    """A statement with names in the places of the outermost subqueries in FROM. It depends on no table's kind."""

    outer: Statement
    pieces: tuple[_Piece, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A subquery as a table. ``sql`` is what stands in its parentheses on the shards; ``pins`` are those within."""

    statement: Statement
    sql: str
    table: Table
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class Layers:
    """The outer layer of a statement, over a schema that has its subqueries in FROM as tables."""

    outer: Statement
    parts: Mapping[str, _Part]

    def put_back(self, sql: str) -> str:
        """Put the subqueries back into a text made of the outer layer's."""
        for name, part in self.parts.items():
            sql = sql.replace(name, f"({part.sql})")
        return unnumbered(sql, self.outer.whole.text)

    def restored(self, found: PushedDown | FannedOut) -> PushedDown | FannedOut:
        """Return a plan of the outer layer as one of the whole statement."""
        whole = self.outer.whole
        if isinstance(found, FannedOut):
            return replace(found, sql=self.put_back(found.sql), text=whole.text, tables=whole.table_names)
        part = replace(found.part, sql=self.put_back(found.part.sql))
        merged = found.merged
        if merged is not None:
            merged = replace(merged, sql=self.put_back(merged.sql), limit_sql=self.put_back(merged.limit_sql))
        return replace(found, part=part, merged=merged, text=whole.text, tables=whole.table_names)


def layers_of(statement: Statement) -> Layers | None:
    """Return the layers of a query, None where it has one only. Unsure where an inner one can't be answered apart."""
    cut = _cut_of(statement)
    if cut is None:
        return None
    parts = {piece.name: _part(piece, cut.outer, statement.schema) for piece in cut.pieces}
    tables = {**statement.schema.tables, **{name: part.table for name, part in parts.items()}}
    outer = cut.outer.as_if(replace(statement.schema, tables=tables))
    layers = Layers(outer, parts)
    outer.whole = statement.whole
    outer.columns = _columns(statement.columns, layers)
    return layers


def _columns(columns: Columns, layers: Layers) -> Columns:
    return lambda sql, beside=(): columns(layers.put_back(sql), beside)


def layered_pins(statement: Statement) -> tuple[Pin, ...] | None:
    """Return pins of all sharded tables, in subqueries too, that what is said of the subqueries' columns gives."""
    try:
        layers = layers_of(statement)
    except Unsure:
        return None
    if layers is None:
        return None
    scopes = layers.outer.scopes
    if scopes is None or not analysed(layers.outer):
        return None
    pins: list[Pin] = []
    for reference in scopes.of_kind(TableKind.SHARDED):
        pin = pin_of(scopes, reference)
        if pin is not None:
            named = reference.name not in layers.parts or fold(reference.alias) != reference.name
            pins.append(replace(pin, table=reference.alias_text if named else "a subquery"))
            continue
        if reference.name not in layers.parts:
            return None
        inner = layers.parts[reference.name].statement
        found = pins_of(inner) or layered_pins(inner)
        if found is None:
            return None
        pins += found
    return tuple(dict.fromkeys(pins)) or None


def pins_for(statement: Statement, query: Query, layers: Layers | None) -> tuple[Pin, ...]:
    """Return a pin that may leave shards out: of a source whose rows every row of the result needs."""
    scopes = statement.scopes
    if scopes is None:
        return ()
    for reference in query.scope.sources:
        if reference.table is None or not reference.table.sharded or reference.joined != "inner":
            continue
        pin = pin_of(scopes, reference)
        if pin is not None:
            return (pin,)
        if layers is not None and reference.name in layers.parts and layers.parts[reference.name].pins:
            return layers.parts[reference.name].pins
    return ()


def only_piece(statement: Statement) -> tuple[Statement, str, Statement, tuple[str, ...]] | None:
    """Return a query that reads one subquery in FROM and nothing else: its text with a name there, and the subquery.

    The third is the subquery's statement, the last its columns.
    """
    cut = _cut_of(statement)
    if cut is None or len(cut.pieces) != 1:
        return None
    piece, cores = cut.pieces[0], cut.outer.cores
    if any(core.nested for core in cores) or [i.name for core in cores for i in core.items] != [piece.name]:
        return None
    if any(token.key == "IN" and cut.outer.text.tokens[at + 1].key != "(" for at, token in _words(cut.outer.text)):
        return None
    return cut.outer, piece.name, piece.statement.as_if(statement.schema), piece.columns


def _words(text: Text) -> list[tuple[int, Token]]:
    return list(enumerate(text.tokens[:-1]))


def arms_of(queries: Sequence[Query]) -> list[Arm]:
    """Return the arms of a compound query."""
    return [Arm(query.select, query.sources) for query in queries]


# -- cutting ------------------------------------------------------------------------------------------------------


def _cut_of(statement: Statement) -> _Cut | None:
    if _CUT not in statement.memory:
        statement.memory[_CUT] = _cut(statement)
    found = statement.memory[_CUT]
    if isinstance(found, Unsure):
        raise found
    return found if isinstance(found, _Cut) else None


def _cut(statement: Statement) -> _Cut | Unsure | None:
    text = statement.text
    places = _places(text, statement.cores)
    if not places:
        return None
    try:
        return _cut_at(statement, places)
    except Unsure as unsure:
        return unsure


def _places(text: Text, cores: Sequence[Core]) -> list[tuple[Core, Item]]:
    """Return the outermost subqueries in FROM, with the SELECTs whose sources they are."""
    tokens = text.tokens
    places: list[tuple[Core, Item]] = []
    for core in cores:
        for item in core.items:
            at = item.span.start
            if tokens[at].key == "(" and tokens[at + 1].key in _OPENS:
                places.append((core, item))
    ends = [(item.span.start, closing(tokens, item.span.start)) for _, item in places]
    return [(core, item) for core, item in places if not any(start < item.span.start < end for start, end in ends)]


def _cut_at(statement: Statement, places: Sequence[tuple[Core, Item]]) -> _Cut:
    sql, text = statement.sql, statement.text
    if _NAMELESS in sql:
        raise Unsure("a text that holds the names put into it")
    tokens = text.tokens
    pieces: list[_Piece] = []
    edits: list[tuple[int, int, str]] = []
    covered: set[int] = set()
    for number, (core, item) in enumerate(places):
        start = item.span.start
        end = closing(tokens, start)
        covered.update(range(start, end))
        name = f"{_NAMELESS}_{number}_"
        inner = statement.part(numbered(text, start + 1, end), columns=statement.columns)
        if inner is None:
            raise Unsure("a subquery that SQLite doesn't take by itself")
        columns = statement.columns(inner.sql)
        if not columns or "" in columns:
            raise Unsure("a subquery whose columns aren't known")
        alone = _is_alone(statement.cores, core)
        alias = f" AS {_NAMELESS}" if alone and not item.alias_text else ""
        edits.append((tokens[start].start, tokens[end].end, name + alias))
        if alone:
            edits += _stars(text, core, item.alias_text or _NAMELESS, columns)
        pieces.append(_Piece(name, inner, columns, alone, _sorts_anew(text, core)))
    if any(token.key == "WITH" for at, token in enumerate(tokens) if at not in covered):
        raise Unsure("WITH around a subquery")
    cut = numbered(tokenize(spliced(sql, [*edits, *_numbers(text, covered)])))
    stub = ", ".join(
        f"{piece.name}({', '.join(map(quote, piece.columns))}) AS (SELECT {', '.join(['NULL'] * len(piece.columns))})"
        for piece in pieces
    )
    outer = statement.part(cut, stub=f"WITH {stub} ", columns=statement.columns)
    if outer is None:
        raise Unsure("a query that SQLite doesn't take with tables for subqueries")
    return _Cut(outer, tuple(pieces))


def _numbers(text: Text, covered: set[int]) -> list[tuple[int, int, str]]:
    """Return the edits that give each ``?`` its number."""
    return [
        (token.start, token.end, f"?{token.index}")
        for at, token in enumerate(text.tokens)
        if token.index and token.text[0] == "?" and at not in covered
    ]


def _is_alone(cores: Sequence[Core], core: Core) -> bool:
    return core.parent is None and len(core.items) == 1 and sum(other.parent is None for other in cores) == 1


def _sorts_anew(text: Text, core: Core) -> bool:
    """Tell whether an outermost SELECT joins its sources, sorts its rows or only adds them up."""
    tokens, end = text.tokens, core.span.end
    if core.span.start not in frozenset(top_positions(tokens)):
        return False
    called = {token.name for at, token in _words(text) if calls_aggregate(tokens, at)}
    if not called <= COMBINED:
        return False
    own = range(*core.columns)
    adds_up = not any(tokens[at].key == "SELECT" for at in own) and any(calls_aggregate(tokens, at) for at in own)
    return adds_up or len(core.items) > 1 or (end < len(tokens) and tokens[end].key == "ORDER")


def _stars(text: Text, core: Core, alias: str, columns: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the edits that write * out: a table that stands for a subquery may have one more column, the rowid."""
    tokens = text.tokens
    listed = ", ".join(f"{quote(alias)}.{quote(name)}" for name in columns)
    return [
        (tokens[output.span.start].start, tokens[output.span.end - 1].end, listed)
        for output in read_select(text, core, core.span.end).outputs
        if output.star
    ]


# -- what a subquery is to the query around it --------------------------------------------------------------------


def _part(piece: _Piece, outer: Statement, schema: Schema) -> _Part:
    """Describe a subquery as a table. Unsure where its rows are neither the shards' together nor each shard's."""
    inner = piece.statement.as_if(schema)
    layers = layers_of(inner)
    subject = inner if layers is None else layers.outer
    queries = queries_of(subject)
    sharded = [query.sharded for query in queries]
    if any(sharded) != all(sharded):
        raise Unsure("rows that every shard would give")
    last = queries[-1].select
    if (last.order and not piece.sorted_anew) or last.limit is not None:
        raise Unsure("a subquery with an order")
    check_rows(subject, queries)
    arms = arms_of(queries)
    columns = derived_columns(arms, piece.columns)
    kind = TableKind.SHARDED if all(sharded) else TableKind.REFERENCE
    key: tuple[tuple[str, ...], str] = ((), "")
    if kind is TableKind.SHARDED:
        key = _spread(queries, arms, piece.columns)
    rowid = _rowid(piece, outer, subject, queries) if kind is TableKind.SHARDED else ""
    sql = inner.sql if not rowid else with_rowid(subject, queries[0].scope, rowid)[0]
    if rowid and layers is not None:
        sql = layers.put_back(sql)
    table = derived_table(piece.name, kind, columns, key, rowid=bool(rowid))
    pins = pins_for(subject, queries[0], layers) if len(queries) == 1 else ()
    return _Part(inner, sql, table, pins)


def _spread(queries: Sequence[Query], arms: Sequence[Arm], names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the shard key that a subquery shows. Unsure where its rows aren't those of the shards together."""
    if any(query.grouped and not query.by_key for query in queries):
        raise Unsure("groups over several shards")
    if len(queries) > 1:
        compound = Compound(arms, names)
        if not compound.final_only_concatenates:
            raise Unsure("rows of several shards are compared")
        return tuple(names[place] for place in compound.key), compound.group
    select, sources = queries[0].select, queries[0].sources
    key = derived_key(arms[0], names)
    if select.core.distinct and not key[0]:
        plain = [sources.single(output.span) for output in select.outputs if not output.star]
        if not holds_key(sources, plain):
            raise Unsure("DISTINCT over several shards")
    return key


def _rowid(piece: _Piece, outer: Statement, subject: Statement, queries: Sequence[Query]) -> str:
    """Return the name under which a subquery can show its table's rowid, "" where its rows aren't those of a table."""
    query = queries[0]
    if not piece.alone or len(queries) > 1 or query.grouped or query.windows or query.select.core.distinct:
        return ""
    if any(token.name in ROWIDS for token in outer.text.tokens):
        return ""  # which a subquery has not
    taken = {name.lower() for name in piece.columns}
    name = next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), "")
    return name if name and with_rowid(subject, query.scope)[1] else ""
