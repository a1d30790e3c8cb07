"""Queries whose rows are those of the shards: put in order again, cut to the LIMIT and freed of duplicates.

There are two ways. The shards' rows meet in a table of the coordinator, which sorts them; each shard gives the first
OFFSET + LIMIT of them where those are all that can matter. Or each shard sorts its rows, and they are merged as they
are read. What the order needs and the result doesn't show comes in hidden columns at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from shardlite.names import fold, quote
from shardlite.sql.clauses import (
    PART,
    Select,
    SortedTexts,
    Sources,
    Texts,
    Unsure,
    part_column,
    render,
    require_known,
    stripped,
)
from shardlite.sql.cores import Span
from shardlite.sql.expressions import BUILT_IN_COLLATIONS
from shardlite.sql.order import SortTerm, swapped, tie_break
from shardlite.sql.tokens import TokenKind

_LARGE = 1 << 62


class _Term(NamedTuple):
    """One term of the order: the column between the shards and the coordinator, and how it is compared."""

    column: int
    collation: str
    direction: str = ""
    """What follows it: ``DESC NULLS LAST``."""
    words: str = ""
    integer: bool = False
    key: tuple[object, ...] = ()
    """What it means, where it is an expression over the sources: see ``Sources.key``."""

    @property
    def sql(self) -> str:
        collation = self.collation if self.collation in BUILT_IN_COLLATIONS else quote(self.collation)
        return f"{part_column(self.column)} COLLATE {collation} {self.direction}".rstrip()


class SortedRows:
    """Writes the shards' texts and the final one. Raises Unsure where they might answer differently."""

    def __init__(
        self,
        select: Select,
        sources: Sources,
        names: Sequence[str],
        collations: Collection[str] = (),
        *,
        swaps: bool = True,
    ) -> None:
        """``collations``: what the user registered, by folded names. ``swaps``: see ``order.swapped``."""
        self._select = select
        self._sources = sources
        self._text = select.text
        self._tokens = select.text.tokens
        self._names = names
        self._collations = collations
        self._swaps = swaps
        self._hidden: list[str] = []
        self._aliases = {output.alias: output for output in reversed(select.outputs) if output.alias}

    def write(self) -> Texts:
        """Return the texts."""
        select, core, text = self._select, self._select.core, self._text
        distinct = core.distinct
        ties = self._ties()
        rowids = [key for _, key, _, integer in ties if integer]
        order = [self._order(*term) for term in select.order]
        order = [term._replace(integer=True) if term.key in rowids else term for term in order]
        shard_order = [f"{render(text, span)} {direction}".rstrip() for span, direction in select.order]
        for sql, key, collation, integer in [] if distinct or core.group is not None else ties:
            shown = self._shown(key)
            if integer and any(term.key == key or term.column == shown for term in order):
                break  # it is sorted by already, and there are no ties
            order.append(_Term(self._hide(sql) if shown is None else shown, collation, "", sql, integer))
            if shard_order:
                shard_order.append(sql)
        collations = self._output_collations() if distinct else [""] * len(self._names)
        limit = "" if select.limit is None else f" LIMIT {shard_limit(select)}"
        by_order = f" ORDER BY {', '.join(shard_order)}" if shard_order else ""
        sql = self._shard_text(self._hidden) + (by_order if limit else "")
        width = len(self._names) + len(self._hidden)
        shown_columns = ", ".join(f"{part_column(i)} AS {quote(name)}" for i, name in enumerate(self._names))
        final = f"SELECT {'DISTINCT ' if distinct else ''}{shown_columns} FROM {PART}"
        if order:
            final += f" ORDER BY {', '.join(term.sql for term in order)}"
        collations += [""] * len(self._hidden)
        declared = ", ".join(f"{part_column(i)}{f' COLLATE {c}' if c else ''}" for i, c in enumerate(collations))
        merged = None if distinct or not shard_order else self._merged(order, by_order, limit)
        create = f"CREATE TABLE {PART}({declared})"
        return Texts(sql, limit, create, final, select.limit_text, width, merged=merged)

    def _shard_text(self, hidden: Sequence[str]) -> str:
        core, text = self._select.core, self._text
        columns = ", ".join([render(text, core.columns), *hidden])
        rest = render(text, Span(core.columns.end, core.span.end))
        return f"SELECT {'DISTINCT ' if core.distinct else ''}{columns} {rest}"

    def _merged(self, order: Sequence[_Term], by_order: str, limit: str) -> SortedTexts:
        """Return the way of sorted shards."""
        shown = len(self._names)
        integers = {term.column - shown for term in order if term.integer}
        hidden = [
            swapped(sql) if self._swaps and index not in integers else sql for index, sql in enumerate(self._hidden)
        ]
        terms = []
        for term in order:
            descending = term.direction.startswith("DESC")
            terms.append(
                SortTerm(
                    term.column,
                    term.collation if term.collation in BUILT_IN_COLLATIONS else fold(term.collation),
                    descending,
                    term.direction.endswith("FIRST" if descending else "LAST"),
                    term.integer,
                    self._swaps and term.column >= shown and not term.integer,
                )
            )
        words = ", ".join(
            " ".join(
                filter(
                    None,
                    (term.words, "" if term.collation == "BINARY" else f"COLLATE {term.collation}", term.direction),
                )
            )
            for term in order
        )
        return SortedTexts(self._shard_text(hidden) + by_order, limit, tuple(terms), words)

    # -- columns ---------------------------------------------------------------------------------------------------

    def _expanded(self) -> list[tuple[Span | None, str]]:
        """Return for each result column its expression, or None and the collation of the column that * brings."""
        found: list[tuple[Span | None, str]] = []
        for output in self._select.outputs:
            if output.star:
                found.extend((None, column.collation) for column in self._sources.expand(output.star))
            else:
                found.append((output.span, ""))
        if len(found) != len(self._names):
            raise Unsure("the number of result columns")
        return found

    def _collation(self, index: int, others: Collection[str] = ()) -> str:
        span, collation = self._expanded()[index]
        if span is not None:
            return self._sources.collation(span, others)
        require_known(collation, others)
        return collation

    def _output_collations(self) -> list[str]:
        return [self._collation(index) for index in range(len(self._names))]

    def _position(self, alias: str) -> int | None:
        """Return the index of the first result column with this alias."""
        at = 0
        for output in self._select.outputs:
            if output.star:
                at += len(self._sources.expand(output.star))
                continue
            if output.alias == alias:
                return at
            at += 1
        return None

    def _hide(self, sql: str) -> int:
        if sql not in self._hidden:
            self._hidden.append(sql)
        return len(self._names) + self._hidden.index(sql)

    def _shown(self, key: tuple[object, ...]) -> int | None:
        """Return the index of the result column that is the same as an expression."""
        at = 0
        for output in self._select.outputs:
            if output.star:
                columns = self._sources.expand(output.star)
                for offset, found in enumerate(columns):
                    if key == (("column", found.alias, found.column),):
                        return at + offset
                at += len(columns)
                continue
            if self._key_or_none(output.span) == key:
                return at
            at += 1
        return None

    def _ties(self) -> list[tuple[str, tuple[tuple[str, str, str], ...], str, bool]]:
        """Return what ties are ordered by, so that they come as one file's scan gives them.

        Of each column its text, what it means, its collation, and whether it is a rowid.
        """
        references = self._sources.references
        table = references[0].table if len(references) == 1 else None
        if table is None or table.virtual or not references[0].name:
            return []
        reference = references[0]
        alias = quote(reference.alias_text)
        if not table.without_rowid and table.rowid_alias is None:
            key = (("column", reference.alias, "rowid"),)
            return [(f"{alias}.{table.rowid_name}", key, "BINARY", True)] if table.rowid_name is not None else []
        return [
            (
                f"{alias}.{quote(name)}",
                (("column", reference.alias, fold(name)),),
                collation.upper(),
                not table.without_rowid,
            )
            for name, collation in tie_break(table)
            if collation.upper() in BUILT_IN_COLLATIONS
        ]

    # -- order and limit -------------------------------------------------------------------------------------------

    def _order(self, span: Span, direction: str) -> _Term:
        tokens, inner, stated = self._tokens, span, ""
        while inner.end - inner.start > 2 and tokens[inner.end - 2].key == "COLLATE":
            stated = stated or (tokens[inner.end - 1].name or "").upper()
            inner = Span(inner.start, inner.end - 2)
        inner = stripped(tokens, inner)
        if stated:
            require_known(stated, self._collations)
        index: int | None = None
        if inner.end - inner.start == 1:
            token = tokens[inner.start]
            if token.kind is TokenKind.NUMBER and token.text.isdigit():
                index = int(token.text) - 1
                if not 0 <= index < len(self._names):
                    raise Unsure("a number in ORDER BY")
            elif token.kind not in (TokenKind.WORD, TokenKind.QUOTED):
                raise Unsure("a constant in ORDER BY")
            elif (token.name or "") in self._aliases:
                index = self._position(token.name or "")
        if index is not None:
            return _Term(index, stated or self._collation(index, self._collations), direction, self._names[index])
        column, collation, key = self._expression(inner, stated)
        return _Term(column, collation, direction, render(self._text, inner), False, key)

    def _expression(self, span: Span, stated: str) -> tuple[int, str, tuple[object, ...]]:
        """Return an ORDER BY expression's column, a result column where it is the same, its collation and meaning."""
        replaced: dict[int, tuple[int, str]] = {}
        units = self._sources.units(span)
        for unit in units:
            if unit.name:
                if unit.name not in self._aliases:
                    raise Unsure(unit.name)
                replaced[unit.start] = (unit.end, f"({render(self._text, self._aliases[unit.name].span)})")
        if stated:
            collation = stated
        elif replaced:
            if any(unit.key[0] == "collation" for unit in units):
                raise Unsure("COLLATE around an alias")
            for unit in units:  # its collation may be handed on
                if unit.name and self._sources.collation(self._aliases[unit.name].span) != "BINARY":
                    raise Unsure("the collation of an alias")
            collation = "BINARY"
        else:
            collation = self._sources.collation(span, self._collations)
        if all(unit.found is None and not unit.name and unit.key[0] != "function" for unit in units):
            raise Unsure("a constant in ORDER BY")
        key = () if replaced else self._sources.key(span)
        shown = self._shown(key) if key else None
        if shown is not None:
            return shown, collation, key
        if self._select.core.distinct:
            raise Unsure("DISTINCT ordered by what it doesn't show")
        return self._hide(f"({render(self._text, span, replaced)})"), collation, key

    def _key_or_none(self, span: Span) -> tuple[object, ...] | None:
        try:
            return self._sources.key(span)
        except Unsure:
            return None


def shard_limit(select: Select) -> str:
    """Return the LIMIT of each shard: the rows that OFFSET leaves out come too."""
    if select.limit is None:
        raise Unsure("no LIMIT")
    limit = render(select.text, select.limit)
    if select.offset is None:
        return limit
    offset = render(select.text, select.offset)
    if limit.isdigit() and offset.isdigit() and len(limit) < 18 and len(offset) < 18:
        return str(int(limit) + int(offset))
    return (
        # Where there is nothing to give, SQLite doesn't look at OFFSET.
        f"CASE WHEN ({limit}) + 0 = 0 THEN 0 "
        f"WHEN ({limit}) < 0 OR ({limit}) >= {_LARGE} OR ({offset}) >= {_LARGE} THEN -1 "
        f"ELSE ({limit}) + max(({offset}), 0) END"
    )
