"""UNION, INTERSECT and EXCEPT of queries whose rows are those of the shards.

UNION ALL puts rows beside each other, on each shard as over all. UNION drops duplicates, once more where the shards'
rows meet. The others, and mixtures, compare rows of the two sides: they are pushed down only where every side shows
its shard key in the same columns, so that equal rows are on one shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shardlite.names import fold, quote
from shardlite.sql.clauses import PART, Found, Select, Sources, Texts, Unsure, part_column, render, stripped
from shardlite.sql.cores import COMPOUNDS, Span
from shardlite.sql.pins import colocated
from shardlite.sql.sorted_rows import shard_limit
from shardlite.sql.tokens import TokenKind


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a compound query."""

    select: Select
    sources: Sources


class Compound:
    """Writes the texts. The last arm's ``select`` holds the ORDER BY and LIMIT of the whole."""

    def __init__(self, arms: Sequence[Arm], names: Sequence[str]) -> None:
        self._arms = arms
        self._names = names
        self._last = arms[-1].select
        self._text = self._last.text
        self._tokens = self._text.tokens
        self._operators = [self._operator(a, b) for a, b in pairwise(arms)]
        self.key, self.group = self._find_key()
        """Where the result shows the shard key of the rows, and the group of these keys."""
        self._by_key = bool(self.key)
        self._check()

    @property
    def final_only_concatenates(self) -> bool:
        """Tell whether the rows of the shards are the answer as they are."""
        as_they_are = self._by_key or set(self._operators) == {"UNION ALL"}
        return as_they_are and not self._last.order and self._last.limit is None

    def _operator(self, left: Arm, right: Arm) -> str:
        between = self._tokens[left.select.core.span.end : right.select.core.span.start]
        words = " ".join(token.key for token in between)
        if words not in COMPOUNDS and words != "UNION ALL":
            raise Unsure(words)
        return words

    def _check(self) -> None:
        if self._by_key:
            return
        if set(self._operators) == {"UNION ALL"}:
            if any(arm.select.core.distinct for arm in self._arms):
                raise Unsure("DISTINCT in UNION ALL")
        elif set(self._operators) != {"UNION"}:
            raise Unsure("rows of several shards are compared")

    def write(self) -> Texts:
        """Return the texts."""
        last = self._last
        order = [self._order(span, direction) for span, direction in last.order]
        sql = render(self._text, Span(0, last.core.span.end))
        limit = ""
        if last.limit is not None:
            if last.order:
                terms = (f"{render(self._text, span)} {direction}".rstrip() for span, direction in last.order)
                sql += f" ORDER BY {', '.join(terms)}"
            limit = f" LIMIT {shard_limit(last)}"
        distinct = not self._by_key and "UNION" in self._operators
        collations = [self._collation(index) if distinct else "" for index in range(len(self._names))]
        declared = ", ".join(
            part_column(index) + (f" COLLATE {collation}" if collation else "")
            for index, collation in enumerate(collations)
        )
        shown = ", ".join(f"{part_column(i)} AS {quote(name)}" for i, name in enumerate(self._names))
        final = f"SELECT {'DISTINCT ' if distinct else ''}{shown} FROM {PART}"
        if order:
            final += f" ORDER BY {', '.join(order)}"
        return Texts(sql, limit, f"CREATE TABLE {PART}({declared})", final, last.limit_text, len(self._names))

    # -- columns ---------------------------------------------------------------------------------------------------

    def _columns(self, arm: Arm) -> list[tuple[Span | None, Found | None]]:
        """Return an arm's result columns: expressions, or what * brings."""
        found: list[tuple[Span | None, Found | None]] = []
        for output in arm.select.outputs:
            if output.star:
                found.extend((None, column) for column in arm.sources.expand(output.star))
            else:
                found.append((output.span, None))
        if len(found) != len(self._names):
            raise Unsure("the number of result columns")
        return found

    def _collation(self, index: int) -> str:
        """Return the collation by which a column's values are compared: of the first arm that has one."""
        found = set()
        for arm in self._arms:
            span, column = self._columns(arm)[index]
            if span is not None:
                column = arm.sources.single(span)
            found.add(column.collation if column is not None else arm.sources.collation(span or Span(0, 0)))
            if column is not None and len(found) == 1:
                break
        if len(found) != 1 or not found <= {"BINARY", "NOCASE", "RTRIM"}:
            raise Unsure("the collation of a compound query's column")
        return found.pop()

    def _find_key(self) -> tuple[tuple[int, ...], str]:
        """Return the columns in which all arms show their whole shard key, and its group; none where they don't."""
        shown = [self._plain(arm) for arm in self._arms]
        for reference in self._arms[0].sources.references:
            table = reference.table
            if table is None or not table.sharded or reference.joined != "inner" or not table.key_columns:
                continue
            wanted = [(reference.alias, fold(name)) for name in table.key_columns]
            here = [(column.alias, column.column) if column is not None else None for column in shown[0]]
            if not all(each in here for each in wanted):
                continue
            places = [here.index(each) for each in wanted]
            if all(self._is_key_at(columns, places, shown[0]) for columns in shown[1:]):
                return tuple(places), table.group
        return (), ""

    def _plain(self, arm: Arm) -> list[Found | None]:
        columns: list[Found | None] = []
        for span, found in self._columns(arm):
            if span is not None:
                try:
                    found = arm.sources.single(span)
                except Unsure:
                    found = None
            columns.append(found)
        return columns

    @staticmethod
    def _is_key_at(columns: Sequence[Found | None], places: Sequence[int], first: Sequence[Found | None]) -> bool:
        found = [columns[place] for place in places]
        model = first[places[0]]
        if model is None or model.source.table is None or any(column is None for column in found):
            return False
        source = next(column.source for column in found if column is not None)
        table = source.table
        if table is None or source.joined != "inner" or not colocated(model.source.table, table):
            return False
        names = [(column.alias, column.column) for column in found if column is not None]
        return names == [(source.alias, fold(name)) for name in table.key_columns]

    # -- order -----------------------------------------------------------------------------------------------------

    def _order(self, span: Span, direction: str) -> str:
        tokens, inner, stated = self._tokens, span, ""
        while inner.end - inner.start > 2 and tokens[inner.end - 2].key == "COLLATE":
            stated = stated or (tokens[inner.end - 1].name or "").upper()
            inner = Span(inner.start, inner.end - 2)
        if stated and stated not in ("BINARY", "NOCASE", "RTRIM"):
            raise Unsure(f"the collation {stated}")
        index = self._index(stripped(tokens, inner))
        return f"{part_column(index)} COLLATE {stated or self._collation(index)} {direction}".rstrip()

    def _index(self, span: Span) -> int:
        """Return the result column that an ORDER BY term means: a number, or a name that the first arm gives."""
        token = self._tokens[span.start]
        if span.end - span.start == 1 and token.kind is TokenKind.NUMBER and token.text.isdigit():
            if not 1 <= int(token.text) <= len(self._names):
                raise Unsure("a number in ORDER BY")
            return int(token.text) - 1
        first = self._arms[0]
        if any(output.star for output in first.select.outputs):
            raise Unsure("* ordered by a name")
        if span.end - span.start == 1:
            for index, output in enumerate(first.select.outputs):
                if output.alias and output.alias == token.name:
                    return index
        key = first.sources.key(span)
        for index, output in enumerate(first.select.outputs):
            try:
                if first.sources.key(output.span) == key:
                    return index
            except Unsure:
                continue
        raise Unsure("a compound query ordered by something else")
