"""Queries whose rows are those of the shards: sorted again, cut to the LIMIT and freed of duplicates where they meet.

Each shard answers the query as written, with the first OFFSET + LIMIT rows where those are all that can matter. What
the order needs and the result doesn't show comes in hidden columns at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.names import quote
from shardlite.sql.clauses import PART, Select, Sources, Texts, Unsure, part_column, render, stripped
from shardlite.sql.cores import Span
from shardlite.sql.expressions import BUILT_IN_COLLATIONS
from shardlite.sql.order import tie_break
from shardlite.sql.tokens import TokenKind

_LARGE = 1 << 62


class SortedRows:
    """Writes the shards' text and the final one. Raises Unsure where they might answer differently."""

    def __init__(self, select: Select, sources: Sources, names: Sequence[str]) -> None:
        self._select = select
        self._sources = sources
        self._text = select.text
        self._tokens = select.text.tokens
        self._names = names
        self._hidden: list[str] = []
        self._aliases = {output.alias: output for output in reversed(select.outputs) if output.alias}

    def write(self) -> Texts:
        """Return the texts."""
        select, core, text = self._select, self._select.core, self._text
        distinct = core.distinct
        order = [self._order(*term) for term in select.order]
        ties = [] if distinct or core.group is not None else self._ties()
        shard_order = [f"{render(text, span)} {direction}".rstrip() for span, direction in select.order]
        for sql, collation in ties:
            order.append(f"{self._hide(sql)} COLLATE {collation}")
            if shard_order:
                shard_order.append(sql)
        collations = self._output_collations() if distinct else [""] * len(self._names)
        sql = "SELECT DISTINCT " if distinct else "SELECT "
        sql += ", ".join([render(text, core.columns), *self._hidden])
        sql += " " + render(text, Span(core.columns.end, core.span.end))
        limit = ""
        if select.limit is not None:
            if shard_order:
                sql += f" ORDER BY {', '.join(shard_order)}"
            limit = f" LIMIT {shard_limit(select)}"
        width = len(self._names) + len(self._hidden)
        shown = ", ".join(f"{part_column(i)} AS {quote(name)}" for i, name in enumerate(self._names))
        final = f"SELECT {'DISTINCT ' if distinct else ''}{shown} FROM {PART}"
        if order:
            final += f" ORDER BY {', '.join(order)}"
        collations += [""] * len(self._hidden)
        declared = ", ".join(f"{part_column(i)}{f' COLLATE {c}' if c else ''}" for i, c in enumerate(collations))
        return Texts(sql, limit, f"CREATE TABLE {PART}({declared})", final, select.limit_text, width)

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

    def _collation(self, index: int) -> str:
        span, collation = self._expanded()[index]
        if span is not None:
            return self._sources.collation(span)
        if collation not in ("BINARY", "NOCASE", "RTRIM"):
            raise Unsure(f"the collation {collation}")
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

    def _hide(self, sql: str) -> str:
        if sql not in self._hidden:
            self._hidden.append(sql)
        return part_column(len(self._names) + self._hidden.index(sql))

    def _ties(self) -> list[tuple[str, str]]:
        """Return what ties are ordered by, so that they come as one file's scan gives them, with its collations."""
        references = self._sources.references
        table = references[0].table if len(references) == 1 else None
        if table is None or table.virtual or not references[0].name:
            return []
        alias = quote(references[0].alias_text)
        if not table.without_rowid and table.rowid_alias is None:
            return [(f"{alias}.{table.rowid_name}", "BINARY")] if table.rowid_name is not None else []
        return [
            (f"{alias}.{quote(name)}", collation)
            for name, collation in tie_break(table)
            if collation.upper() in BUILT_IN_COLLATIONS
        ]

    # -- order and limit -------------------------------------------------------------------------------------------

    def _order(self, span: Span, direction: str) -> str:
        tokens, inner, stated = self._tokens, span, ""
        while inner.end - inner.start > 2 and tokens[inner.end - 2].key == "COLLATE":
            stated = stated or (tokens[inner.end - 1].name or "").upper()
            inner = Span(inner.start, inner.end - 2)
        inner = stripped(tokens, inner)
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
            if stated and stated not in ("BINARY", "NOCASE", "RTRIM"):
                raise Unsure(f"the collation {stated}")
            return f"{part_column(index)} COLLATE {stated or self._collation(index)} {direction}".rstrip()
        return f"{self._hidden_term(inner, stated)} {direction}".rstrip()

    def _hidden_term(self, span: Span, stated: str) -> str:
        """Return an ORDER BY expression's column: a result column's where it is the same, else a hidden one."""
        replaced: dict[int, tuple[int, str]] = {}
        units = self._sources.units(span)
        for unit in units:
            if unit.name:
                if unit.name not in self._aliases:
                    raise Unsure(unit.name)
                replaced[unit.start] = (unit.end, f"({render(self._text, self._aliases[unit.name].span)})")
        if stated:
            collation = stated
            if stated not in ("BINARY", "NOCASE", "RTRIM"):
                raise Unsure(f"the collation {stated}")
        elif replaced:
            if any(unit.key[0] == "collation" for unit in units):
                raise Unsure("COLLATE around an alias")
            for unit in units:  # its collation may be handed on
                if unit.name and self._sources.collation(self._aliases[unit.name].span) != "BINARY":
                    raise Unsure("the collation of an alias")
            collation = "BINARY"
        else:
            collation = self._sources.collation(span)
        if all(unit.found is None and not unit.name and unit.key[0] != "function" for unit in units):
            raise Unsure("a constant in ORDER BY")
        if not replaced:
            key = self._sources.key(span)
            at = 0
            for output in self._select.outputs:
                if output.star:
                    columns = self._sources.expand(output.star)
                    for offset, found in enumerate(columns):
                        if key == (("column", found.alias, found.column),):
                            return f"{part_column(at + offset)} COLLATE {collation}"
                    at += len(columns)
                    continue
                if self._key_or_none(output.span) == key:
                    return f"{part_column(at)} COLLATE {collation}"
                at += 1
        if self._select.core.distinct:
            raise Unsure("DISTINCT ordered by what it doesn't show")
        return f"{self._hide(f'({render(self._text, span, replaced)})')} COLLATE {collation}"

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
        f"CASE WHEN ({limit}) < 0 OR ({limit}) > {_LARGE} OR ({offset}) > {_LARGE} THEN -1 "
        f"ELSE ({limit}) + max(({offset}), 0) END"
    )
