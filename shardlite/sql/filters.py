"""Which rows of a table a query can't do without: conditions on that table alone, as text.

A row that fails such a condition reaches no result, so it need not be brought to where the query runs. A condition is
taken only where it holds for every mention of the table: the WHERE of an inner join, or the ON that a table's own join
has. A table that is mentioned several times needs the rows of all its mentions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardlite.names import quote
from shardlite.router.table import Table
from shardlite.sql.cores import Core, Item, Span, conjuncts, disjuncts
from shardlite.sql.functions import SCALAR
from shardlite.sql.inits import init_end
from shardlite.sql.names_in import ROWIDS, holder_of
from shardlite.sql.tokens import Text, Token, TokenKind, words

_SAFE_WORDS = words(
    """
    AND OR NOT IN IS NULL ISNULL NOTNULL LIKE GLOB BETWEEN CASE WHEN THEN ELSE END ESCAPE DISTINCT FROM TRUE FALSE
    """
)
_RAISING = words(
    """
    abs json json_array json_array_length json_error_position json_extract json_insert json_object json_patch
    json_pretty json_quote json_remove json_replace json_set json_type jsonb jsonb_array jsonb_extract jsonb_insert
    jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set -> ->> zeroblob printf format likelihood unistr
    unistr_quote replace max min
    """
)
"""Functions that can raise an error, which one file might not meet: it may look at another condition first."""
SAFE_FUNCTIONS = SCALAR - _RAISING


Place = tuple[Text, Core, Item]
"""Where a table stands in a FROM."""


def mentions_of(texts: Sequence[tuple[Text, Sequence[Core]]], tables: Mapping[str, Table]) -> dict[str, list[Place]]:
    """Return where each table (by folded name) stands in a FROM; tables that may stand elsewhere too are left out.

    ``texts`` are the statement and all views that it uses.
    """
    found: dict[str, list[Place]] = {}
    for text, cores in texts:
        for core in cores:
            for item in core.items:
                if item.name in tables:
                    found.setdefault(item.name, []).append((text, core, item))
    return {
        name: places for name, places in found.items() if len(places) == sum(times_named(t, name) for t, _ in texts)
    }


def filters_of(
    texts: Sequence[tuple[Text, Sequence[Core]]],
    tables: Mapping[str, Table],
    registered: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Return for each table (by folded name) the condition that its rows must fulfil; no entry where there is none."""
    found: dict[str, str] = {}
    for name, places in mentions_of(texts, tables).items():
        parts = [conditions_of(text, core, item, tables, registered) for text, core, item in places]
        if all(parts):
            found[name] = any_of([" AND ".join(f"({part})" for part in each) for each in parts])
    return found


def any_of(conditions: Sequence[str]) -> str:
    """Join conditions of which one has to hold."""
    return " OR ".join(f"({condition})" for condition in dict.fromkeys(conditions))


def times_named(text: Text, name: str) -> int:
    """Count the tokens that may name the table, its use before a dot (``t.a``) left out."""
    tokens = text.tokens
    count = 0
    for position, token in enumerate(tokens):
        if token.name != name:
            continue
        after = tokens[position + 1].key if position + 1 < len(tokens) else ""
        before = tokens[position - 1] if position else None
        if after == ".":
            continue
        if before is not None and before.key in ("AS", ".") and not _qualifies_schema(tokens, position):
            continue
        count += 1
    return count


def _qualifies_schema(tokens: Sequence[Token], position: int) -> bool:
    return position >= 2 and tokens[position - 1].key == "." and tokens[position - 2].name in ("main", "temp")


def conditions_of(
    text: Text, core: Core, item: Item, tables: Mapping[str, Table], registered: frozenset[str]
) -> list[str]:
    """Return the conditions that the rows of one mention of a table must fulfil.

    They name columns by the table's own name; their parameters are numbered (``?1``) or named. ``registered`` holds
    the functions of the user, which may hide SQLite's own.
    """
    if registered & {"like", "glob"} or core.nested or core.outer_joins:
        return []
    if sum(other.alias == item.alias for other in core.items) != 1:
        return []
    spans: list[Span] = []
    if item.on is not None and item.join in ("inner", "left", "cross", "comma"):
        spans += conjuncts(text.tokens, item.on)
    if core.where is not None and item.join != "left":
        spans += conjuncts(text.tokens, core.where)
    texts = (_implied(text, span, core, item, tables, registered) for span in spans)
    return [found for found in texts if found is not None]


def _implied(
    text: Text, span: Span, core: Core, item: Item, tables: Mapping[str, Table], registered: frozenset[str]
) -> str | None:
    """Return what a condition says of one source: itself, or of alternatives what each says of it."""
    whole = condition_text(text, span, core, item, tables, registered)
    if whole is not None:
        return whole
    parts = disjuncts(text.tokens, span)
    if len(parts) < 2:
        return None
    said = []
    for part in parts:
        inner = [_implied(text, each, core, item, tables, registered) for each in conjuncts(text.tokens, part)]
        known = [f"({each})" for each in inner if each is not None]
        if not known:
            return None
        said.append(" AND ".join(known))
    return any_of(said)


def condition_text(
    text: Text,
    span: Span,
    core: Core,
    item: Item,
    tables: Mapping[str, Table],
    registered: frozenset[str] = frozenset(),
) -> str | None:
    """Return a condition that looks at one source only, its columns named by the table; None for any other."""
    tokens, table = text.tokens, tables[item.name]
    pieces: list[str] = []
    position, reads = span.start, False
    previous = span.start
    while position < span.end:
        token = tokens[position]
        after = tokens[position + 1].key if position + 1 < span.end else ""
        replaced: str | None = None
        step = 1
        end = init_end(tokens, position)
        if end and end <= span.end:  # a constant
            position = end
            continue
        if token.kind is TokenKind.PARAMETER:
            replaced = f"?{token.index}" if token.text[:1] == "?" else token.text
        elif token.key in ("CAST", "COLLATE"):
            step = _skipped(tokens, position, span)
            if not step:
                return None
        elif token.kind in (TokenKind.WORD, TokenKind.QUOTED):
            if after == "(" and token.kind is TokenKind.WORD and token.key not in _SAFE_WORDS:
                if token.name not in SAFE_FUNCTIONS or token.name in registered:
                    return None
            elif after == ".":
                column = tokens[position + 2].name if position + 2 < span.end else None
                if token.name != item.alias or not _is_column(table, column):
                    return None
                replaced, reads = quote(table.name), True
                step = 3
                previous = _take(text, pieces, previous, position, tokens[position], replaced)
                position += step
                continue
            elif token.key not in _SAFE_WORDS or token.kind is TokenKind.QUOTED:
                if not _is_own(table, token, core, item, tables):
                    return None
                replaced, reads = f"{quote(table.name)}.{token.text}", True
        elif token.key in ("->", "->>"):
            return None
        if replaced is not None:
            previous = _take(text, pieces, previous, position, token, replaced)
        position += step
    if not reads:
        return None
    pieces.append(_between(text, previous, span.end))
    return " ".join(piece for piece in pieces if piece)


def _take(text: Text, pieces: list[str], previous: int, position: int, token: Token, replaced: str) -> int:
    """Copy what stands before a token, put a replacement in its place, and return the position after it."""
    pieces.append(_between(text, previous, position))
    pieces.append(replaced)
    return position + 1


def _between(text: Text, start: int, end: int) -> str:
    """Return the text of some tokens without the comments between them."""
    return " ".join(token.text for token in text.tokens[start:end])


def _skipped(tokens: Sequence[Token], position: int, span: Span) -> int:
    """Return how many tokens to leave alone: a collation's name. CAST isn't followed (its type is any words)."""
    if tokens[position].key == "CAST":
        return 0
    name = tokens[position + 1].name if position + 1 < span.end else None
    return 2 if name in ("binary", "nocase", "rtrim") else 0


def _is_column(table: Table, name: str | None) -> bool:
    if name is None:
        return False
    return name in table.by_name or (name in ROWIDS and table.rowid_name is not None)


def _is_own(table: Table, token: Token, core: Core, item: Item, tables: Mapping[str, Table]) -> bool:
    """Tell whether an unqualified name is sure to mean a column of this source."""
    name = token.name
    return name is not None and name in table.by_name and holder_of(core, name, tables) is item
