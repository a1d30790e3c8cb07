"""One SELECT taken apart in tokens: its result columns, GROUP BY, ORDER BY and LIMIT, and whose columns it names.

Pieces are cut out of the original text; nothing is printed from a tree. Whatever can't be followed for sure raises
``Unsure``, and the statement is then gathered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shardlite.names import fold
from shardlite.router.keys import Affinity
from shardlite.router.table import Table
from shardlite.sql.cores import Core, Span
from shardlite.sql.expressions import BUILT_IN_COLLATIONS
from shardlite.sql.inits import init_end
from shardlite.sql.order import SortTerm
from shardlite.sql.scopes import Reference
from shardlite.sql.tokens import Text, Token, TokenKind, closing, words


class Unsure(Exception):
    """The statement has something whose meaning on shards isn't sure."""


_WORDS = words(
    """
    AND OR NOT IN IS NULL ISNULL NOTNULL LIKE GLOB MATCH REGEXP BETWEEN CASE WHEN THEN ELSE END ESCAPE DISTINCT FROM
    COLLATE CAST AS FILTER WHERE TRUE FALSE ASC DESC NULLS FIRST LAST
    """
)
"""Words of expressions. A column with one of these names makes the statement unsure."""
_NOT_FOLLOWED = words("SELECT OVER RAISE WITH VALUES EXISTS CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP")
_ROWIDS = ("rowid", "_rowid_", "oid")
_OPERANDS = frozenset((TokenKind.BLOB, TokenKind.STRING, TokenKind.QUOTED, TokenKind.NUMBER, TokenKind.PARAMETER))
_ENDS_OPERAND = frozenset((")", "END", "NULL", "ISNULL", "NOTNULL", "TRUE", "FALSE"))


class Found(NamedTuple):
    """A column of one source. ``column`` is folded, "rowid" for a rowid without a name of its own."""

    alias: str
    column: str
    affinity: Affinity
    collation: str
    source: Reference


class Unit(NamedTuple):
    """A token, or the tokens of one (qualified) name. ``key`` is equal for what means the same."""

    key: tuple[object, ...]
    start: int
    end: int
    found: Found | None = None
    name: str = ""
    """A name that is no column of the sources: an alias perhaps."""


class Output(NamedTuple):
    """One result column as written. ``star`` is "" or the alias whose columns are meant, "*" for all."""

    span: Span
    alias: str
    star: str = ""


class Order(NamedTuple):
    """One term of ORDER BY, and what follows its expression: ``DESC NULLS LAST``."""

    span: Span
    direction: str


class SortedTexts(NamedTuple):
    """What the shards run to give their rows sorted, and how these are merged."""

    shard: str
    shard_limit: str
    """`` LIMIT ...`` to stand after it, or nothing."""
    terms: tuple[SortTerm, ...]
    words: str
    """The order in words."""


class Texts(NamedTuple):
    """A query split: what the shards run, the table that takes their rows, and what then runs over it."""

    shard: str
    shard_limit: str
    """`` LIMIT ...`` to stand after it, or nothing."""
    create: str
    final: str
    final_limit: str
    width: int
    """How many columns lie between the two."""
    may_overflow: bool = False
    """Parts may not add up in 64 bits, or not tell what they stand for: "integer overflow" says so."""
    merged: SortedTexts | None = None
    """Another way: the shards sort their rows, which are merged as they are read."""


PART = "_shardlite_part"
"""The table of the coordinator that takes the shards' rows."""


def part_column(index: int) -> str:
    """Return the name of a column of the part table: no text of a user's may hold it."""
    return f"_shardlite_{index}"


@dataclass(frozen=True, slots=True)
class Select:
    """A SELECT with the ORDER BY and LIMIT after it."""

    text: Text
    core: Core
    outputs: tuple[Output, ...]
    group: tuple[Span, ...]
    order: tuple[Order, ...]
    limit: Span | None
    offset: Span | None

    @property
    def source_span(self) -> Span:
        """The span of FROM and WHERE, from the word FROM on."""
        core = self.core
        if core.from_ is None:
            raise Unsure("no FROM")
        return Span(core.from_.start - 1, core.where.end if core.where is not None else core.from_.end)

    @property
    def limit_text(self) -> str:
        """The LIMIT and OFFSET for a text around it, or nothing."""
        if self.limit is None:
            return ""
        offset = "" if self.offset is None else f" OFFSET {render(self.text, self.offset)}"
        return f" LIMIT {render(self.text, self.limit)}{offset}"


def read_select(text: Text, core: Core, end: int) -> Select:
    """Take a SELECT apart whose ORDER BY and LIMIT end at the token ``end``."""
    tokens = text.tokens
    order: tuple[Order, ...] = ()
    limit = offset = None
    at = core.span.end
    if at < end and tokens[at].key == "ORDER":
        stop = next((i for i in top(tokens, Span(at, end)) if tokens[i].key == "LIMIT"), end)
        order = tuple(_order_term(tokens, span) for span in commas(tokens, Span(at + 2, stop)))
        at = stop
    if at < end and tokens[at].key == "LIMIT":
        limit, offset = _limit(tokens, Span(at + 1, end))
        at = end
    if at != end:
        raise Unsure(tokens[at].text)
    outputs = tuple(_output(tokens, span) for span in commas(tokens, core.columns))
    group = tuple(commas(tokens, core.group)) if core.group is not None else ()
    return Select(text, core, outputs, group, order, limit, offset)


def top(tokens: Sequence[Token], span: Span) -> Iterator[int]:
    """Yield the positions that stand outside parentheses."""
    position = span.start
    while position < span.end:
        yield position
        position = closing(tokens, position) + 1 if tokens[position].key == "(" else position + 1


def commas(tokens: Sequence[Token], span: Span) -> list[Span]:
    """Split at the commas outside parentheses."""
    parts, start = [], span.start
    for at in top(tokens, span):
        if tokens[at].key == ",":
            parts.append(Span(start, at))
            start = at + 1
    parts.append(Span(start, span.end))
    if any(part.start >= part.end for part in parts):
        raise Unsure("an empty term")
    return parts


def _order_term(tokens: Sequence[Token], span: Span) -> Order:
    end = span.end
    if end - span.start > 2 and tokens[end - 2].key == "NULLS" and tokens[end - 1].key in ("FIRST", "LAST"):
        end -= 2
    if end - span.start > 1 and tokens[end - 1].key in ("ASC", "DESC"):
        end -= 1
    return Order(Span(span.start, end), " ".join(token.key for token in tokens[end : span.end]))


def _limit(tokens: Sequence[Token], span: Span) -> tuple[Span, Span | None]:
    if any(token.key == "SELECT" for token in tokens[span.start : span.end]):
        raise Unsure("a query in LIMIT")
    for at in top(tokens, span):
        if tokens[at].key == "OFFSET":
            return Span(span.start, at), Span(at + 1, span.end)
        if tokens[at].key == ",":
            return Span(at + 1, span.end), Span(span.start, at)
    return span, None


def _output(tokens: Sequence[Token], span: Span) -> Output:
    start, end = span
    last = tokens[end - 1]
    if last.key == "*" and (end - start == 1 or tokens[end - 2].key == "."):
        qualifier = "*" if end - start == 1 else tokens[end - 3].name
        return Output(span, "", qualifier or "")
    if end - start < 2:
        return Output(span, "")
    before = tokens[end - 2]
    if before.key == "AS":
        return Output(Span(start, end - 2), _shown(last))
    named = last.kind in (TokenKind.QUOTED, TokenKind.STRING) or (
        last.kind is TokenKind.WORD and last.key not in _WORDS and last.key not in _NOT_FOLLOWED
    )
    operand = before.kind in _OPERANDS or before.key in _ENDS_OPERAND
    operand = operand or (before.kind is TokenKind.WORD and before.key not in _WORDS | _NOT_FOLLOWED)
    if named and operand:
        return Output(Span(start, end - 1), _shown(last))
    return Output(span, "")


def _shown(token: Token) -> str:
    return token.name or ""


def require_known(collation: str, others: Collection[str] = ()) -> None:
    """Raise Unsure for a collation that is neither SQLite's own nor one of ``others``, which are folded."""
    if collation not in BUILT_IN_COLLATIONS and fold(collation) not in others:
        raise Unsure(f"the collation {collation}")


def stripped(tokens: Sequence[Token], span: Span) -> Span:
    """Leave out parentheses around the whole of an expression."""
    start, end = span
    while end - start > 2 and tokens[start].key == "(" and closing(tokens, start) == end - 1:
        start, end = start + 1, end - 1
    return Span(start, end)


def render(text: Text, span: Span, replaced: Mapping[int, tuple[int, str]] | None = None) -> str:
    """Return the text of some tokens without comments, parameters with their numbers.

    ``replaced`` maps a position to the position after what is left out and the text to put there.
    """
    tokens, parts = text.tokens, []
    position, before = span.start, -1
    while position < span.end:
        token = tokens[position]
        if before >= 0 and token.start > before:
            parts.append(" ")
        if replaced is not None and position in replaced:
            position, piece = replaced[position]
            parts.append(piece)
        else:
            parts.append(f"?{token.index}" if token.index and token.text[0] == "?" else token.text)
            position += 1
        before = tokens[position - 1].end
    return "".join(parts)


class Sources:
    """The tables of one SELECT's FROM, for resolving names."""

    def __init__(self, text: Text, core: Core, references: Sequence[Reference]) -> None:
        self._tokens = text.tokens
        self.references = tuple(references)
        self._units: dict[tuple[Span, bool], list[Unit]] = {}
        if core.nested or len(core.items) != len(references):
            raise Unsure("a nested join")
        self._merged = [reference.merged for reference in references]
        names = {name.upper() for table in self._tables() for name in table.by_name}
        if names & (_WORDS | _NOT_FOLLOWED):
            raise Unsure("a column named as a keyword")

    def _tables(self) -> Iterator[Table]:
        for reference in self.references:
            if reference.table is None:
                raise Unsure(reference.name)
            yield reference.table

    def find(self, path: Sequence[str]) -> Found | None:
        """Return the column that a name means; None where it is none of these tables'. Unsure where it's ambiguous."""
        name = path[-1]
        if len(path) > 1:
            sources = [reference for reference in self.references if reference.alias == path[-2]]
            if len(path) > 3 or (len(path) == 3 and path[0] != "main") or len(sources) != 1:
                raise Unsure(".".join(path))
            return self._pick(sources[0], name, rowid=True)
        holders = [i for i, reference in enumerate(self.references) if name in self._table(reference).by_name]
        # Of columns that USING or NATURAL makes one the leftmost counts, but where a RIGHT or FULL JOIN is.
        merged = all(name in self._merged[i] for i in holders[1:]) and not self._is_right_joined()
        if len(holders) > 1 and not merged:
            raise Unsure(name)
        if holders:
            return self._pick(self.references[holders[0]], name, rowid=False)
        if name in _ROWIDS:
            return self._pick(self.references[0], name, rowid=True) if len(self.references) == 1 else None
        return None

    def expand(self, star: str) -> list[Found]:
        """Return the columns that ``*`` or ``alias.*`` stands for."""
        if any(self._merged) and self._is_right_joined():
            raise Unsure("* over merged columns")
        return [
            found
            for reference in self.references
            if star in ("*", reference.alias)
            for name in self._table(reference).by_name
            if not (star == "*" and name in reference.merged)
            if (found := self._pick(reference, name, rowid=False)) is not None
        ]

    def _is_right_joined(self) -> bool:
        return any(reference.joined == "other" for reference in self.references)

    @staticmethod
    def _table(reference: Reference) -> Table:
        if reference.table is None:
            raise Unsure(reference.name)
        return reference.table

    def _pick(self, reference: Reference, name: str, *, rowid: bool) -> Found | None:
        table = self._table(reference)
        column = table.by_name.get(name)
        if column is None and rowid and name in _ROWIDS and table.rowid_name is not None:
            if table.rowid_alias is None:
                return Found(reference.alias, "rowid", Affinity.INTEGER, "BINARY", reference)
            column = table.by_name[fold(table.rowid_alias)]
        if column is None:
            return None
        return Found(reference.alias, fold(column.name), column.affinity, column.collation.upper(), reference)

    def units(self, span: Span, *, strangers: bool = False) -> list[Unit]:
        """Cut an expression into names and other tokens. Unsure where it holds a query or a window.

        The result of a subquery that was evaluated before is one of the tokens.

        ``strangers``: columns of the queries around this one may stand in it.
        """
        known = self._units.get((span, strangers))
        if known is None:
            known = self._units[span, strangers] = self._cut(span, strangers)
        return known

    def _cut(self, span: Span, strangers: bool) -> list[Unit]:
        tokens = self._tokens
        units: list[Unit] = []
        position = span.start
        while position < span.end:
            token = tokens[position]
            end = init_end(tokens, position)
            if end:  # a constant
                units.append(Unit(("init", *(each.text for each in tokens[position:end])), position, end))
                position = end
                continue
            if token.key in _NOT_FOLLOWED and token.kind is TokenKind.WORD:
                raise Unsure(token.key)
            is_name = token.kind is TokenKind.QUOTED or (token.kind is TokenKind.WORD and token.key not in _WORDS)
            if not is_name:
                units.append(Unit(_key(token), position, position + 1))
                if token.key == "COLLATE" and position + 1 < span.end:
                    units.append(Unit(("collation", tokens[position + 1].name), position + 1, position + 2))
                    position += 1
                elif token.key == "AS":  # the type in CAST
                    position += 1
                    while position < span.end and tokens[position].key != ")":
                        units.append(Unit(("type", tokens[position].text.upper()), position, position + 1))
                        position = position + 1
                    continue
                position += 1
                continue
            end = position + 1
            if end < span.end and tokens[end].key == "(":
                units.append(Unit(("function", token.name), position, end))
                position = end
                continue
            path = [token.name or ""]
            while end + 1 < span.end and tokens[end].key == ".":
                path.append(tokens[end + 1].name or "")
                end += 2
            known = not strangers or len(path) == 1 or any(r.alias == path[-2] for r in self.references)
            found = self.find(path) if known else None
            if found is not None:
                units.append(Unit(("column", found.alias, found.column), position, end, found))
            elif len(path) == 1 or strangers:
                units.append(Unit(("name", *path), position, end, None, path[-1]))
            else:
                raise Unsure(".".join(path))
            position = end
        return units

    def key(self, span: Span) -> tuple[object, ...]:
        """Return a value that is equal for expressions that mean the same."""
        return tuple(unit.key for unit in self.units(stripped(self._tokens, span)))

    def single(self, span: Span) -> Found | None:
        """Return the column that an expression is, None where it is anything else."""
        units = self.units(stripped(self._tokens, span))
        return units[0].found if len(units) == 1 else None

    def collation(self, span: Span, others: Collection[str] = ()) -> str:
        """Return the collation by which an expression's values are compared, in capitals.

        Unsure for one that is neither SQLite's own nor one of ``others``, which are folded.
        """
        if self._is_window(span):
            return "BINARY"
        units = self.units(stripped(self._tokens, span))
        stated = {str(unit.key[1]).upper() for unit in units if unit.key[0] == "collation"}
        if len(stated) > 1 or any(unit.name for unit in units):
            raise Unsure("the collation of an expression")
        if stated:
            collation = stated.pop()
        else:
            inner = [
                unit for unit in units if unit.key not in (("operator", "+"), ("operator", "("), ("operator", ")"))
            ]
            if len(inner) == 1 and inner[0].found is not None:
                collation = inner[0].found.collation
            elif any(unit.key in _PASSING for unit in units) and not all(map(_binary, units)):
                raise Unsure("the collation of an expression")
            else:
                collation = "BINARY"
        require_known(collation, others)
        return collation

    def _is_window(self, span: Span) -> bool:
        """Tell whether an expression is a window function and nothing else, without any collation."""
        tokens = self._tokens
        inner = tokens[span.start : span.end]
        at = span.start + 1
        if not any(token.key == "OVER" for token in inner) or any(
            token.key in ("COLLATE", "SELECT") for token in inner
        ):
            return False
        if at >= span.end or tokens[at].key != "(":
            return False
        at = closing(tokens, at) + 1
        if at < span.end and tokens[at].key == "FILTER":
            at = closing(tokens, at + 1) + 1
        if at + 1 >= span.end or tokens[at].key != "OVER":
            return False
        return (closing(tokens, at + 1) if tokens[at + 1].key == "(" else at + 1) == span.end - 1

    def require_columns(self, span: Span) -> None:
        """Raise Unsure where a name isn't a column of the sources: an alias, or a string in double quotes."""
        for unit in self.units(span):
            if unit.name:
                raise Unsure(unit.name)


_PASSING = (("word", "CAST"), ("function", "likely"), ("function", "unlikely"), ("function", "likelihood"))
"""What may hand on its argument's collation."""


def _binary(unit: Unit) -> bool:
    return unit.found is None or unit.found.collation == "BINARY"


def _key(token: Token) -> tuple[object, ...]:
    if token.kind is TokenKind.WORD:
        return ("word", token.key)
    if token.kind is TokenKind.PARAMETER:
        return ("parameter", token.index)
    return (str(token.kind), token.text)
