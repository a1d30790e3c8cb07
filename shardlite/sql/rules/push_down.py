"""Queries of which each shard answers its part, and the coordinator puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shardlite.sql.clauses import PART, Select, Texts, Unsure, part_column
from shardlite.sql.compound import Compound
from shardlite.sql.cores import Span
from shardlite.sql.derived import derived_columns
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES
from shardlite.sql.pins import Pin
from shardlite.sql.rules.fan_out import with_rowid
from shardlite.sql.rules.gather import gather
from shardlite.sql.rules.layers import Layers, arms_of, layers_of, only_piece, pins_for
from shardlite.sql.rules.queries import Query, check_functions, check_rows, queries_of
from shardlite.sql.sorted_rows import SortedRows
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, Merged, PushedDown, Source
from shardlite.sql.tokens import Constant, TokenKind, unnumbered
from shardlite.sql.two_phase import COMBINED, TwoPhase


def push_down(statement: Statement) -> PushedDown | FannedOut | None:
    """Push a query down to the shards where its answer is sure to be that of one file; None where it isn't."""
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly:
        return None
    try:
        try:
            layers = layers_of(statement)
        except Unsure:
            return _over_parts(statement)
        if layers is None:
            return _push_down(statement, None)
        found = _push_down(layers.outer, layers)
        return None if found is None else layers.restored(found)
    except Unsure:
        return None


def _over_parts(statement: Statement) -> PushedDown | None:
    """Push down the only subquery in FROM, whose groups lie over several shards; the rest runs over what comes of it.

    The parts of groups have the types and collations of the columns that they are of; what else a subquery may show
    must have none.
    """
    only = only_piece(statement)
    if only is None:
        return None
    outer, name, inner, columns = only
    layers = layers_of(inner)
    subject = inner if layers is None else layers.outer
    queries = queries_of(subject)
    query = queries[0]
    if len(queries) > 1 or not query.grouped or query.by_key:
        return None
    if not all(column.typed for column in derived_columns(arms_of(queries), columns)):
        return None
    found = _aggregated(subject, query, columns, pins_for(subject, query, layers))
    restored = found if found is None or layers is None else layers.restored(found)
    if not isinstance(restored, PushedDown):
        return None
    whole = statement.whole
    sql = unnumbered(outer.sql.replace(name, f"({restored.sql})"), whole.text)
    if not whole.names or statement.names_of(_stub(restored.part.width) + sql) != whole.names:
        return None
    return replace(restored, sql=sql, text=whole.text, tables=whole.table_names)


def _push_down(statement: Statement, layers: Layers | None) -> PushedDown | FannedOut | None:
    queries = queries_of(statement)
    shown = statement.names
    names = shown if layers is None else statement.whole.names
    if not names or "" in names or len(names) != len(shown):
        return None
    found = _answered(statement, queries, names, layers)
    if isinstance(found, FannedOut) and shown != names:
        return None  # the shards' own names are the answer's
    return found


def _answered(
    statement: Statement, queries: Sequence[Query], names: Sequence[str], layers: Layers | None
) -> PushedDown | FannedOut | None:
    if len(queries) > 1:
        return _compound(statement, queries, names)
    query = queries[0]
    pins = pins_for(statement, query, layers)
    if query.grouped and not query.by_key:
        return _aggregated(statement, query, names, pins)
    return _rows(statement, query, names, pins)


def _compound(statement: Statement, queries: Sequence[Query], names: Sequence[str]) -> PushedDown | FannedOut | None:
    """Push down a UNION and its like."""
    check_rows(statement, queries)
    for query in queries:
        if query.grouped and not query.by_key:
            return None
        if not query.sharded:
            return None  # every shard would give its rows
    compound = Compound(arms_of(queries), names)
    reason = "each shard does it for its rows"
    if compound.final_only_concatenates:
        return FannedOut(statement.sql, False, reason, statement.table_names, statement.text, ())
    return _split(statement, compound.write(), names, reason, ())


def _rows(
    statement: Statement, query: Query, names: Sequence[str], pins: tuple[Pin, ...]
) -> PushedDown | FannedOut | None:
    """Push down a query whose rows are those of all shards."""
    check_rows(statement, (query,))
    select = query.select
    reason = "each shard sorts its rows and the sorted are put together"
    if query.grouped:
        reason = "each group is on one shard"
    if select.order or select.limit is not None or select.core.distinct:
        return _split(statement, _sorted_rows(statement, query, names), names, reason, pins, select)
    sql, merge = statement.sql, False
    if query.windows:
        reason = "each window is on one shard"
    elif not query.grouped:
        reason = "what its subqueries look at is on the row's shard" if query.below else "each shard joins its rows"
        sql, merge = with_rowid(statement, query.scope)
    return FannedOut(sql, merge, reason, statement.table_names, statement.text, pins)


def _sorted_rows(statement: Statement, query: Query, names: Sequence[str]) -> Texts:
    """Write the texts of a query whose rows are sorted, cut to a LIMIT, or freed of duplicates."""
    schema = statement.schema
    # What a function of the user's gives is Unicode, and the function mustn't be called more often than it has to be.
    swaps = not schema.functions.names & {"hex", *statement.whole.prepared.functions}
    return SortedRows(query.select, query.sources, names, schema.collations, swaps=swaps).write()


def _aggregated(statement: Statement, query: Query, names: Sequence[str], pins: tuple[Pin, ...]) -> PushedDown | None:
    """Push down a query whose groups lie over several shards."""
    if query.windows:
        return None
    check_functions(statement, COMBINED | AGGREGATES if query.below else COMBINED)
    reason = "each shard aggregates its rows and the parts are put together"
    texts = TwoPhase(query.select, query.sources, names).write()
    return _split(statement, texts, names, reason, pins)


def _split(
    statement: Statement,
    texts: Texts,
    names: Sequence[str],
    reason: str,
    pins: tuple[Pin, ...],
    select: Select | None = None,
) -> PushedDown | None:
    """Return the plan of a split query if SQLite takes both of its texts. ``select``: one whose rows may be merged."""
    listed = ", ".join(map(part_column, range(texts.width)))
    final = _stub(texts.width) + texts.final
    if len(statement.columns(texts.shard)) != texts.width or statement.columns(final) != tuple(names):
        return None
    otherwise = gather(statement, reason) if texts.may_overflow else None
    part = Source(
        PART,
        texts.create,
        f"INSERT INTO {PART}({listed})",
        texts.width,
        texts.shard + texts.shard_limit,
        True,
        pins,
        computed=True,
    )
    return PushedDown(
        texts.final + texts.final_limit,
        statement.text,
        part,
        reason,
        statement.table_names,
        otherwise,
        merged=_merged(statement, texts, names, pins, select),
    )


def _merged(
    statement: Statement, texts: Texts, names: Sequence[str], pins: tuple[Pin, ...], select: Select | None
) -> Merged | None:
    """Return the way of sorted shards, where there is one: with a LIMIT whose number the parameters tell."""
    if texts.merged is None or select is None:
        return None
    sql, limit, terms, words = texts.merged
    if len(statement.columns(sql)) != texts.width:
        return None
    amounts = [_amount(select, span) for span in (select.limit, select.offset) if span is not None]
    if None in amounts:
        return None
    given = tuple(one for one in amounts if one is not None)
    return Merged(sql, limit, pins, tuple(names), terms, words, given)


def _amount(select: Select, span: Span) -> Constant | None:
    """Return what LIMIT or OFFSET says, where that is a number or a parameter."""
    if span.end - span.start != 1:
        return None
    token = select.text.tokens[span.start]
    if token.kind is TokenKind.PARAMETER:
        return Constant(parameter=token.index)
    is_number = token.kind is TokenKind.NUMBER and token.text.isdigit() and len(token.text) < 18
    return Constant(int(token.text)) if is_number else None


def _stub(width: int) -> str:
    """Return a WITH that stands for the table of the shards' rows while a final text is prepared."""
    listed = ", ".join(map(part_column, range(width)))
    return f"WITH {PART}({listed}) AS (SELECT {', '.join(['NULL'] * width)}) "
