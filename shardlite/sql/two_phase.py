"""Aggregates in two phases: each shard aggregates its own rows, the coordinator puts the parts together.

The shards' text is made of the original's pieces; the final text is the original's SELECT list, HAVING, ORDER BY and
LIMIT, in which each aggregate call stands replaced by one over the parts and each group expression by the column that
brings it. Such a column has the type and collation of the column that it came from, so that comparisons around it
mean the same; the value was stored by that type before, so it isn't converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardlite.names import quote
from shardlite.router.keys import Affinity
from shardlite.sql.clauses import (
    PART,
    Found,
    Output,
    Select,
    Sources,
    Texts,
    Unit,
    Unsure,
    part_column,
    render,
    stripped,
)
from shardlite.sql.cores import Span
from shardlite.sql.functions import SCALAR
from shardlite.sql.locality import holds_key
from shardlite.sql.tokens import TokenKind, closing

COMBINED = frozenset(("count", "sum", "total", "avg", "min", "max"))
"""The aggregates that can be put together from parts."""
_TYPES = {Affinity.INTEGER: "INT", Affinity.TEXT: "TEXT", Affinity.REAL: "REAL", Affinity.NUMERIC: "NUMERIC"}


_ARITHMETIC = frozenset(("operator", text) for text in "+-*()")


class TwoPhase:
    """Writes the two texts. Raises Unsure where they might answer differently from the original."""

    def __init__(self, select: Select, sources: Sources, names: Sequence[str]) -> None:
        self._select = select
        self._sources = sources
        self._text = select.text
        self._tokens = select.text.tokens
        self._names = names
        self._columns: list[str] = []
        self._declared: list[str] = []
        self._aliases = {output.alias: output for output in reversed(select.outputs) if output.alias}
        self._refined: list[str] = []
        """Arguments of DISTINCT aggregates: the shards group by them too."""
        self._groups: list[tuple[tuple[object, ...], Span, str]] = []
        self._called = False
        self._sums = False
        self._summed = self._find_sums([output.span for output in select.outputs])
        self._counts_keys = self._only_keys_are_distinct()
        if any(output.star for output in select.outputs):
            raise Unsure("* beside an aggregate")

    # -- the texts -------------------------------------------------------------------------------------------------

    def write(self) -> Texts:
        """Return the texts."""
        select = self._select
        self._require_no_alias(select.source_span)
        terms = [self._group_term(span) for span in select.group]
        group = [render(self._text, span) for span in terms]
        columns = [f"{self._value(output.span)} AS {quote(name)}" for output, name in self._outputs()]
        final = f"SELECT {'DISTINCT ' if select.core.distinct else ''}{', '.join(columns)} FROM {PART}"
        if terms:
            final += f" GROUP BY {', '.join(column for _, _, column in self._groups)}"
        if select.core.having is not None:
            final += f" HAVING {self._value(select.core.having)}"
        if select.order:
            final += f" ORDER BY {', '.join(self._order(term.span, term.direction) for term in select.order)}"
        if not terms and not self._called:
            raise Unsure("neither a group nor an aggregate")
        if not self._columns:
            raise Unsure("nothing of the shards is asked for")
        sql = f"SELECT {', '.join(self._columns)} {render(self._text, select.source_span)}"
        if group or self._refined:
            sql += f" GROUP BY {', '.join(dict.fromkeys((*group, *self._refined)))}"
        create = f"CREATE TABLE {PART}({', '.join(self._declared)})"
        return Texts(sql, "", create, final, select.limit_text, len(self._columns), may_overflow=self._sums)

    def _outputs(self) -> list[tuple[Output, str]]:
        return list(zip(self._select.outputs, self._names, strict=True))

    def _require_no_alias(self, span: Span) -> None:
        """FROM and WHERE may use the names of result columns, which the shards' text doesn't give."""
        for token in self._tokens[span.start : span.end]:
            named = token.kind in (TokenKind.WORD, TokenKind.QUOTED) and token.name in self._aliases
            if named and self._sources.find((token.name or "",)) is None:
                raise Unsure(f"{token.text} in WHERE")

    # -- groups ----------------------------------------------------------------------------------------------------

    def _group_term(self, span: Span) -> Span:
        """Take one GROUP BY term in: an expression, a result column's number or its name."""
        expression = self._meant(span, aliases_first=False)
        self._sources.require_columns(expression)
        if self._calls_aggregate(expression):
            raise Unsure("an aggregate in GROUP BY")
        found = self._sources.single(expression)
        self._require_reading(expression)
        column = self._add(render(self._text, stripped(self._tokens, expression)), self._declaration(expression, found))
        key = self._sources.key(expression)
        self._groups.append((key, expression, column))
        return expression

    def _require_reading(self, span: Span) -> None:
        """Raise Unsure where an expression names no column: a number alone would be a result column's."""
        if all(unit.found is None for unit in self._sources.units(span)):
            raise Unsure("a constant in GROUP BY")

    def _meant(self, span: Span, *, aliases_first: bool) -> Span:
        """Return the result column's expression where a term is its number or name, else the term itself."""
        inner = stripped(self._tokens, span)
        token = self._tokens[inner.start]
        if inner.end - inner.start != 1:
            return span
        if token.kind is TokenKind.NUMBER:
            number = int(token.text) if token.text.isdigit() else 0
            if inner != span or not 1 <= number <= len(self._select.outputs):
                raise Unsure("a number in GROUP BY or ORDER BY")
            return self._select.outputs[number - 1].span
        alias = self._aliases.get(token.name or "") if token.kind in (TokenKind.WORD, TokenKind.QUOTED) else None
        if alias is not None and (aliases_first or self._sources.find((token.name or "",)) is None):
            return alias.span
        return span

    def _declaration(self, span: Span, found: Found | None) -> str:
        kind = _TYPES.get(found.affinity, "") if found is not None and not _is_any(found) else ""
        return f"{kind} COLLATE {self._sources.collation(span)}"

    def _add(self, sql: str, declaration: str = "") -> str:
        """Return the part's column that brings a piece of SQL."""
        if sql not in self._columns:
            self._columns.append(sql)
            self._declared.append(f"{part_column(len(self._columns) - 1)} {declaration}".rstrip())
        return part_column(self._columns.index(sql))

    # -- expressions -----------------------------------------------------------------------------------------------

    def _value(self, span: Span, *, aliases: bool = True) -> str:
        """Return an expression over the part table that gives what the original gives."""
        key = self._sources.key(span)
        for group, _, column in self._groups:
            if group == key:
                return column
        if not self._calls_aggregate(span):
            units = self._sources.units(span)
            if self._depends_on_groups(units) and not any(unit.name for unit in units):
                shipped = f"({render(self._text, span)})"
                return self._add(shipped, f"COLLATE {self._sources.collation(span)}")
        return self._rewritten(span, aliases=aliases)

    def _depends_on_groups(self, units: Sequence[Unit]) -> bool:
        """Tell whether an expression names columns, and only inside whole group expressions."""
        position, seen = 0, False
        while position < len(units):
            size = self._group_at(units, position)[0]
            if size:
                seen = True
                position += size
                continue
            if units[position].found is not None:
                raise Unsure("a column that is neither grouped nor aggregated")
            position += 1
        return seen

    def _group_at(self, units: Sequence[Unit], position: int) -> tuple[int, str]:
        """Return how many units from here on are one group expression, and the column that brings it."""
        best, column_of_best = 0, ""
        for key, span, column in self._groups:
            size = len(key)
            if size <= best or tuple(unit.key for unit in units[position : position + size]) != key:
                continue
            if size > 1 and not self._is_operand(span, units, position, position + size):
                continue
            best, column_of_best = size, column
        return best, column_of_best

    def _is_operand(self, span: Span, units: Sequence[Unit], start: int, end: int) -> bool:
        """Tell whether the units from ``start`` to ``end`` are an operand of their own where they stand."""
        before = units[start - 1].key[1] if start else "("
        after = units[end].key[1] if end < len(units) else ")"
        if before in ("(", ",") and after in (")", ","):
            return True
        inner = stripped(self._tokens, span)
        if units[start].key == ("word", "CASE"):
            inside = [unit.key for unit in units[start:end]]
            return inside[-1] == ("word", "END") and inside.count(("word", "CASE")) == 1
        opening = self._tokens[inner.start + 1].key if inner.end - inner.start > 2 else ""
        is_call = opening == "(" and closing(self._tokens, inner.start + 1) == inner.end - 1
        return is_call and units[start].key[0] == "function"

    def _rewritten(self, span: Span, *, aliases: bool) -> str:
        replaced: dict[int, tuple[int, str]] = {}
        units = self._sources.units(span)
        position = 0
        while position < len(units):
            unit = units[position]
            size, column = self._group_at(units, position)
            if size:
                replaced[unit.start] = (
                    units[position + size - 1].end,
                    self._placed(units[position : position + size], column),
                )
                position += size
                continue
            end = 0
            if unit.key[0] == "function":
                if self._is_aggregate(unit):
                    end, sql = self._aggregate(unit, span)
                    replaced[unit.start] = (end, sql)
                elif unit.key[1] not in SCALAR:
                    raise Unsure(f"{unit.key[1]}() around an aggregate")
            elif unit.found is not None:
                raise Unsure("a column that is neither grouped nor aggregated")
            elif unit.name:
                if not aliases or unit.name not in self._aliases:
                    raise Unsure(unit.name)
                inner = self._value(self._aliases[unit.name].span, aliases=False)
                replaced[unit.start] = (unit.end, f"({inner})")
            position += 1
            while end and position < len(units) and units[position].start < end:
                position += 1
        return render(self._text, span, replaced)

    @staticmethod
    def _placed(units: Sequence[Unit], column: str) -> str:
        """Return a group's column for a place inside an expression, where its explicit collation counts too."""
        if any(unit.found is not None and not unit.found.source.name for unit in units):
            raise Unsure("a subquery's column beside an aggregate")  # SQLite may look through it, or not
        if any(unit.key[0] == "function" and str(unit.key[1]).startswith("json") for unit in units):
            raise Unsure("JSON beside an aggregate")  # a stored value isn't told from text any more
        if any(unit.key == ("word", "CAST") for unit in units):
            raise Unsure("CAST in a group beside an aggregate")  # its type would count in comparisons
        collations = [str(unit.key[1]) for unit in units if unit.key[0] == "collation"]
        return f"({column} COLLATE {collations[0].upper()})" if collations else column

    # -- aggregates ------------------------------------------------------------------------------------------------

    def _calls_aggregate(self, span: Span) -> bool:
        return any(unit.key[0] == "function" and self._is_aggregate(unit) for unit in self._sources.units(span))

    def _is_aggregate(self, unit: Unit) -> bool:
        if unit.key[1] in ("min", "max"):
            end = closing(self._tokens, unit.end)
            inside = self._tokens[unit.end + 1 : end]
            depth = 0
            for token in inside:
                depth += (token.key == "(") - (token.key == ")")
                if token.key == "," and depth == 0:
                    return False
            return True
        return unit.key[1] in COMBINED

    def _aggregate(self, unit: Unit, span: Span) -> tuple[int, str]:
        """Return the position after a call (its FILTER included) and the SQL that puts its parts together."""
        self._called = True
        tokens, function = self._tokens, str(unit.key[1])
        close = closing(tokens, unit.end)
        inside, end, filter_ = Span(unit.end + 1, close), close + 1, ""
        if end < span.end and tokens[end].key == "FILTER":
            shut = closing(tokens, end + 1)
            self._sources.require_columns(Span(end + 3, shut))
            filter_ = f" FILTER (WHERE {render(self._text, Span(end + 3, shut))})"
            end = shut + 1
        if end > span.end or any(token.key == "ORDER" for token in tokens[inside.start : inside.end]):
            raise Unsure("ORDER BY in an aggregate")
        if inside.start < inside.end and tokens[inside.start].key == "DISTINCT":
            if filter_:
                raise Unsure("DISTINCT with FILTER")
            return end, self._distinct(function, Span(inside.start + 1, inside.end))
        if inside.start < inside.end and tokens[inside.start].key == "ALL":
            inside = Span(inside.start + 1, inside.end)
        star = inside.start == inside.end or tokens[inside.start].key == "*"
        if star and function != "count":
            raise Unsure(f"{function}(*)")
        argument = "*" if star else render(self._text, inside)
        if not star:
            self._sources.require_columns(inside)
        return end, self._combined(function, argument, filter_, inside, star)

    def _combined(self, function: str, argument: str, filter_: str, inside: Span, star: bool) -> str:
        def part(name: str, declaration: str = "") -> str:
            return self._add(f"{name}({argument}){filter_}", declaration)

        if function == "count":
            return f"coalesce(sum({part('count')}), 0)"
        if function in ("min", "max"):
            column = part(function, f"COLLATE {self._extreme_collation(inside)}")
            stated = self._explicit_collation(inside)
            return f"{function}({column}{stated})"
        if function == "sum":
            return self._sum(part, inside, filtered=bool(filter_))
        if function == "avg" and (argument, filter_) in self._summed:
            # The sum is there anyway: to add the values up once more as reals is a third of the time.
            found, count = part("sum"), part("count")
            return f"CASE WHEN sum({found} IS NULL AND {count} > 0) THEN NULL ELSE total({found}) / sum({count}) END"
        total = part("total")
        if function == "total":
            return f"CASE WHEN sum({total} IS NULL) THEN NULL ELSE total({total}) END"
        count = part("count")
        return f"CASE WHEN sum({total} IS NULL) THEN NULL ELSE total({total}) / sum({count}) END"

    def _sum(self, part: Callable[[str], str], inside: Span, *, filtered: bool) -> str:
        """Add the shards' sums. A NULL sum of some values is NaN, which no other part makes good.

        Counting the values tells, but costs another evaluation of the argument. Arithmetic is NULL all over a shard
        so rarely where it isn't elsewhere that the query is then gathered instead: the error says so.
        """
        self._sums = True
        found = part("sum")
        if filtered or not self._is_arithmetic(inside):
            return f"CASE WHEN sum({found} IS NULL AND {part('count')} > 0) THEN NULL ELSE sum({found}) END"
        rows = self._add("count(*)")
        return (
            f"CASE WHEN sum({found} IS NULL AND {rows} > 0) AND count({found}) > 0 "
            f"THEN abs(-9223372036854775807 - (count(*) > 0)) ELSE sum({found}) END"
        )

    def _is_arithmetic(self, span: Span) -> bool:
        """Tell whether an expression is made of columns, numbers and operators, with two columns or more."""
        units = self._sources.units(span)
        columns = [unit for unit in units if unit.found is not None]
        others = [unit for unit in units if unit.found is None]
        return len(columns) > 1 and all(unit.key[0] == "number" or unit.key in _ARITHMETIC for unit in others)

    def _find_sums(self, spans: Sequence[Span]) -> frozenset[tuple[str, str]]:
        """Return the arguments and FILTERs of all plain SUM calls."""
        found = set()
        for span in spans:
            for unit in self._sources.units(span):
                if unit.key == ("function", "sum"):
                    close = closing(self._tokens, unit.end)
                    if close + 1 >= len(self._tokens) or self._tokens[close + 1].key != "FILTER":
                        found.add((render(self._text, Span(unit.end + 1, close)), ""))
        return frozenset(found)

    def _only_keys_are_distinct(self) -> bool:
        """Tell whether all DISTINCT aggregates are counts of a shard key: no two shards have the same one."""
        tokens, spans = self._tokens, [output.span for output in self._select.outputs]
        spans += [term.span for term in self._select.order]
        if self._select.core.having is not None:
            spans.append(self._select.core.having)
        places = [at for span in spans for at in range(span.start + 2, span.end) if tokens[at].key == "DISTINCT"]
        return all(
            tokens[at - 2].name == "count"
            and holds_key(self._sources, [self._sources.single(Span(at + 1, closing(tokens, at - 1)))])
            for at in places
            if tokens[at - 1].key == "("
        )

    def _extreme_collation(self, inside: Span) -> str:
        """Return the collation of a MIN or MAX. Unsure where equal values may look different: which comes first?"""
        collation = self._sources.collation(inside)
        kinds = {unit.found.affinity for unit in self._sources.units(inside) if unit.found is not None}
        if collation != "BINARY" or Affinity.BLOB in kinds:
            raise Unsure("the extreme of values that can be equal and look different")
        return collation

    def _distinct(self, function: str, inside: Span) -> str:
        """Bring an aggregate's distinct values: the shards group by them too."""
        self._sources.require_columns(inside)
        self._require_reading(inside)
        sql = render(self._text, stripped(self._tokens, inside))
        if self._counts_keys:
            return f"coalesce(sum({self._add(f'count(DISTINCT {sql})')}), 0)"  # equal keys are on one shard
        column = self._add(sql, f"COLLATE {self._sources.collation(inside)}")
        self._refined.append(sql)
        return f"{function}(DISTINCT {column}{self._explicit_collation(inside)})"

    def _explicit_collation(self, span: Span) -> str:
        stated = any(unit.key[0] == "collation" for unit in self._sources.units(span))
        return f" COLLATE {self._sources.collation(span)}" if stated else ""

    # -- order -----------------------------------------------------------------------------------------------------

    def _order(self, span: Span, direction: str) -> str:
        tokens = self._tokens
        collation = ""
        inner = span
        while inner.end - inner.start > 2 and tokens[inner.end - 2].key == "COLLATE":
            collation = collation or f" COLLATE {tokens[inner.end - 1].text}"
            inner = Span(inner.start, inner.end - 2)
        inner = stripped(tokens, inner)
        if inner.end - inner.start == 1:
            token = tokens[inner.start]
            if token.kind in (TokenKind.NUMBER, TokenKind.PARAMETER, TokenKind.STRING, TokenKind.BLOB):
                if token.kind is not TokenKind.NUMBER or not token.text.isdigit():
                    raise Unsure("a constant in ORDER BY")
                if not 1 <= int(token.text) <= len(self._select.outputs):
                    raise Unsure("a number in ORDER BY")
                return f"{token.text}{collation} {direction}".rstrip()
            numbers = [
                i for i, output in enumerate(self._select.outputs, 1) if output.alias and output.alias == token.name
            ]
            if numbers:
                return f"{numbers[0]}{collation} {direction}".rstrip()
        return f"{self._value(span)} {direction}".rstrip()


def _is_any(found: Found) -> bool:
    """Tell whether a column takes values of any type as they are."""
    return found.affinity is Affinity.BLOB
