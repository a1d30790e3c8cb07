"""Where the clauses of each SELECT stand, in tokens: for cutting pieces out of a text and for splicing others in.

SQLite reserves the words that open these clauses, so their places can be told without a full parse. What sqlglot's
tree says (``resolve.py``) has no places; the two are used side by side, and a text that this module can't follow gives
no cores, which costs speed and never an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shardlite.names import fold
from shardlite.sql.tokens import Text, Token, TokenKind, closing

SHARED = "_shardlite_shared"
"""The schema name of the database that a statement's coordinator and shards share."""
COMPOUNDS = frozenset(("UNION", "INTERSECT", "EXCEPT"))
_ENDS = COMPOUNDS | frozenset(("ORDER", "LIMIT", "RETURNING"))
_CLAUSES = ("FROM", "WHERE", "GROUP", "HAVING", "WINDOW")
_JOIN_WORDS = frozenset(("NATURAL", "LEFT", "RIGHT", "FULL", "INNER", "CROSS", "OUTER"))
_NOT_ALIAS = _JOIN_WORDS | frozenset(("JOIN", "ON", "USING", "INDEXED", "NOT", "AS", "SET", "WHERE"))


class Span(NamedTuple):
    """Positions of tokens, the end excluded."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Item:
    """One source of a FROM clause. ``name`` is the folded table name, "" for a subquery or a function.

    That of an attached file's table has its schema before it, as no table of the database has.

    ``join`` is ``from`` (the first), ``comma``, ``inner``, ``cross``, ``left``, ``right`` or ``full``.
    """

    name: str
    alias: str
    span: Span
    join: str
    natural: bool = False
    on: Span | None = None
    using: tuple[str, ...] = ()
    function: bool = False
    schema: str = ""
    alias_text: str = ""


@dataclass(slots=True)
class Core:
    """One SELECT without the ORDER BY and LIMIT that may follow it."""

    span: Span
    parent: Core | None
    columns: Span
    distinct: bool
    items: list[Item] = field(default_factory=list)
    from_: Span | None = None
    where: Span | None = None
    group: Span | None = None
    having: Span | None = None
    window: Span | None = None
    nested: bool = False
    """A parenthesised join stands in its FROM: ``items`` doesn't hold all."""

    @property
    def outer_joins(self) -> bool:
        """Tell whether a RIGHT or FULL JOIN is among its joins."""
        return any(item.join in ("right", "full") for item in self.items)


def cores_of(text: Text) -> list[Core]:
    """Find every SELECT of a statement, in the order of their first words. Empty where the text can't be followed."""
    found: list[Core] = []
    try:
        _scan(text.tokens, Span(0, len(text.tokens)), None, found)
    except (IndexError, RecursionError):
        return []
    return found


def change_core(text: Text) -> Core | None:
    """Return what an UPDATE or DELETE reads as one SELECT would: its target is the first item, those of FROM follow.

    A WITH may stand before it. None for other statements, and where the text can't be followed.
    """
    tokens = text.tokens
    try:
        return _change_core(tokens)
    except (IndexError, RecursionError):
        return None


def _change_core(tokens: Sequence[Token]) -> Core | None:
    first = next((i for i in top_positions(tokens) if _begins_change(tokens, i)), None)
    if first is None or (first and tokens[0].key != "WITH"):
        return None
    start = first + (3 if tokens[first + 1].key == "OR" else 2 if tokens[first].key == "DELETE" else 1)
    position = start
    schema, name = "", tokens[position].name or ""
    if tokens[position + 1 : position + 2] and tokens[position + 1].key == ".":
        schema, name = name, tokens[position + 2].name or ""
        position += 2
    shown = _spelled(tokens[position])
    position += 1
    if position < len(tokens) and tokens[position].key == "AS":  # which isn't left out here
        shown = _spelled(tokens[position + 1])
        position += 2
    position = _indexed(tokens, position, len(tokens))
    target = Item(known_as(schema, name), fold(shown), Span(start, position), "from", schema=schema, alias_text=shown)
    marks: dict[str, int] = {}
    end = len(tokens)
    for at in _top(tokens, Span(position, end)):
        key = tokens[at].key
        if key in _ENDS:
            end = at
            break
        if key in ("FROM", "WHERE") and key not in marks and _opens(tokens, at, key):
            marks[key] = at
    core = Core(Span(first, end), None, Span(position, min(marks.values(), default=end)), False, [target])
    if "WHERE" in marks:
        core.where = Span(marks["WHERE"] + 1, end)
    if "FROM" in marks:
        core.from_ = Span(marks["FROM"] + 1, marks.get("WHERE", end))
        _read_from(tokens, core.from_, core)
    return core


def begins_upsert(tokens: Sequence[Token], at: int) -> bool:
    """Tell whether an ON is that of ON CONFLICT ... DO, and none of a join (where ``conflict`` may be a column)."""
    return (
        tokens[at + 1 : at + 2] != () and tokens[at + 1].key == "CONFLICT" and any(t.key == "DO" for t in tokens[at:])
    )


def _begins_change(tokens: Sequence[Token], at: int) -> bool:
    """Tell whether UPDATE or DELETE is the statement's word here; both may be names of a WITH (``update AS (...)``)."""
    after = tokens[at + 1].key if at + 1 < len(tokens) else ""
    if tokens[at].key == "DELETE":
        return after == "FROM"
    return tokens[at].key == "UPDATE" and after not in ("AS", "(", ",", ".")


def _scan(tokens: Sequence[Token], span: Span, parent: Core | None, found: list[Core]) -> None:
    """Find the SELECTs between two positions, parentheses included."""
    position = span.start
    while position < span.end:
        token = tokens[position]
        if token.key == "SELECT":
            position = _core(tokens, position, span.end, parent, found)
        elif token.key == "(":
            end = min(closing(tokens, position), span.end)
            _scan(tokens, Span(position + 1, end), parent, found)
            position = end + 1
        else:
            position += 1


def _core(tokens: Sequence[Token], start: int, limit: int, parent: Core | None, found: list[Core]) -> int:
    marks: dict[str, int] = {}
    position = start + 1
    end = limit
    for at in _top(tokens, Span(position, limit)):
        key = tokens[at].key
        if key in _ENDS or (key == "ON" and begins_upsert(tokens, at)):
            end = at
            break
        if key in _CLAUSES and key not in marks and _opens(tokens, at, key):
            marks[key] = at
    distinct = tokens[position].key == "DISTINCT" if position < limit else False
    if position < limit and tokens[position].key in ("DISTINCT", "ALL"):
        position += 1
    places = [marks[key] for key in _CLAUSES if key in marks]

    def clause(key: str, skip: int) -> Span | None:
        if key not in marks:
            return None
        return Span(marks[key] + skip, min((p for p in places if p > marks[key]), default=end))

    core = Core(Span(start, end), parent, Span(position, min(places, default=end)), distinct)
    core.from_, core.where, core.having = clause("FROM", 1), clause("WHERE", 1), clause("HAVING", 1)
    core.group, core.window = clause("GROUP", 2), clause("WINDOW", 1)
    found.append(core)
    if core.from_ is not None:
        _read_from(tokens, core.from_, core)
    _scan(tokens, Span(start + 1, end), core, found)
    return end


def _opens(tokens: Sequence[Token], at: int, key: str) -> bool:
    """Tell whether a word opens a clause here: not the FROM of IS DISTINCT FROM, not a column called window."""
    if key == "FROM":
        return tokens[at - 1].key != "DISTINCT" or tokens[at - 2].key not in ("IS", "NOT")
    if key == "WINDOW":
        return at + 2 < len(tokens) and tokens[at + 2].key == "AS" and tokens[at + 1].name is not None
    return True


def _top(tokens: Sequence[Token], span: Span) -> Iterator[int]:
    """Yield the positions that stand outside parentheses."""
    position = span.start
    while position < span.end:
        yield position
        position = closing(tokens, position) + 1 if tokens[position].key == "(" else position + 1


def top_positions(tokens: Sequence[Token]) -> Iterator[int]:
    """Yield the positions of a statement's tokens that stand outside parentheses."""
    return _top(tokens, Span(0, len(tokens)))


def _read_from(tokens: Sequence[Token], span: Span, core: Core) -> None:
    position, join, natural = span.start, "from", False
    while position < span.end:
        start = position
        name, schema, function = "", "", False
        if tokens[position].key == "(":
            end = closing(tokens, position)
            core.nested = core.nested or tokens[position + 1].key not in ("SELECT", "VALUES", "WITH")
            position = end + 1
        else:
            name = tokens[position].name or ""
            if position + 2 < span.end and tokens[position + 1].key == ".":
                schema, name = name, tokens[position + 2].name or ""
                position += 2
            position += 1
            if position < span.end and tokens[position].key == "(":
                function = True
                position = closing(tokens, position) + 1
        shown = _spelled(tokens[position - 1]) if name and not function else ""
        position, alias = _alias(tokens, position, span.end)
        if alias is not None:
            shown = alias
        position = _indexed(tokens, position, span.end)
        source = Span(start, position)
        on: Span | None = None
        using: tuple[str, ...] = ()
        if position < span.end and tokens[position].key == "ON":
            end = _join_at(tokens, position + 1, span.end)
            on, position = Span(position + 1, end), end
        elif position < span.end and tokens[position].key == "USING":
            end = closing(tokens, position + 1)
            using = tuple(token.name for token in tokens[position + 2 : end] if token.name is not None)
            position = end + 1
        called = "" if function else known_as(schema, name)
        core.items.append(Item(called, fold(shown), source, join, natural, on, using, function, schema, shown))
        position, join, natural = _joiner(tokens, position, span.end)


def known_as(schema: str, name: str) -> str:
    """Return the name by which a table is looked up: an attached file's is none of the database's."""
    return name if schema in ("", "main", "temp", SHARED) else f"{schema}.{name}"


def _spelled(token: Token) -> str:
    """Return a name without its quotes, in its own letters."""
    return token.value


def _alias(tokens: Sequence[Token], position: int, end: int) -> tuple[int, str | None]:
    if position < end and tokens[position].key == "AS":
        return position + 2, _spelled(tokens[position + 1])
    if position < end and tokens[position].name is not None and tokens[position].key not in _NOT_ALIAS:
        return position + 1, _spelled(tokens[position])
    return position, None


def _indexed(tokens: Sequence[Token], position: int, end: int) -> int:
    if position + 2 < end + 1 and position < end:
        if tokens[position].key == "INDEXED":
            return position + 3
        if tokens[position].key == "NOT":
            return position + 2
    return position


def _join_at(tokens: Sequence[Token], start: int, end: int) -> int:
    """Return where the next join begins."""
    for position in _top(tokens, Span(start, end)):
        token = tokens[position]
        if token.key == "," or token.key == "JOIN":
            return position
        if token.key in _JOIN_WORDS and _joiner(tokens, position, end)[0] > position:
            return position
    return end


def _joiner(tokens: Sequence[Token], position: int, end: int) -> tuple[int, str, bool]:
    """Read a comma or join words; return the position after them (unchanged where there are none)."""
    if position >= end:
        return end, "", False
    if tokens[position].key == ",":
        return position + 1, "comma", False
    seen = set()
    at = position
    while at < end and tokens[at].kind is TokenKind.WORD and tokens[at].key in _JOIN_WORDS:
        seen.add(tokens[at].key)
        at += 1
    if at >= end or tokens[at].key != "JOIN":
        if not seen and position < end:
            raise IndexError("not a join")
        return position, "", False
    how = next((word.lower() for word in ("FULL", "RIGHT", "LEFT", "CROSS") if word in seen), "inner")
    if {"LEFT", "RIGHT"} <= seen:
        how = "full"
    return at + 1, how, "NATURAL" in seen


def conjuncts(tokens: Sequence[Token], span: Span) -> list[Span]:
    """Split a condition at the ANDs that join it as a whole, parentheses around all of it opened."""
    start, end = span
    while end - start >= 2 and tokens[start].key == "(" and closing(tokens, start) == end - 1:
        start, end = start + 1, end - 1
    parts: list[Span] = []
    begin, between, cases = start, 0, 0
    for position in _top(tokens, Span(start, end)):
        key = tokens[position].key
        if key == "CASE":
            cases += 1
        elif key == "END":
            cases -= 1
        if cases > 0:
            continue
        if key == "OR":
            return [Span(start, end)]
        if key == "BETWEEN":
            between += 1
        elif key == "AND" and between:
            between -= 1
        elif key == "AND":
            parts.append(Span(begin, position))
            begin = position + 1
    parts.append(Span(begin, end))
    if len(parts) == 1:
        return parts
    return [inner for part in parts for inner in conjuncts(tokens, part)]


def disjuncts(tokens: Sequence[Token], span: Span) -> list[Span]:
    """Split a condition at the ORs that join it as a whole, parentheses around all of it opened."""
    start, end = span
    while end - start >= 2 and tokens[start].key == "(" and closing(tokens, start) == end - 1:
        start, end = start + 1, end - 1
    parts: list[Span] = []
    begin, cases = start, 0
    for position in _top(tokens, Span(start, end)):
        key = tokens[position].key
        cases += (key == "CASE") - (key == "END")
        if key == "OR" and cases == 0:
            parts.append(Span(begin, position))
            begin = position + 1
    parts.append(Span(begin, end))
    return parts
