"""The affinity and collation that a query's result columns have where the query stands in an expression.

``x IN (SELECT c ...)`` compares by the affinity of ``c`` and, where ``x`` has none, by its collation; ``+c`` and most
other expressions have neither. A table that holds the result has to say the same of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shardlite.router.keys import Affinity, affinity_of
from shardlite.router.table import Table
from shardlite.sql.clauses import Sources, Unsure, part_column, read_select, stripped, top
from shardlite.sql.cores import Core, Item, Span
from shardlite.sql.scopes import Reference
from shardlite.sql.tokens import Text, TokenKind, closing, words

_TYPES = {
    Affinity.INTEGER: "INT",
    Affinity.TEXT: "TEXT",
    Affinity.REAL: "REAL",
    Affinity.NUMERIC: "NUMERIC",
    Affinity.BLOB: "",
}
_CONSTANTS = frozenset((TokenKind.NUMBER, TokenKind.STRING, TokenKind.BLOB, TokenKind.PARAMETER))
_NAMES = (TokenKind.WORD, TokenKind.QUOTED)
_OPERATOR_WORDS = words("AND OR NOT IN IS ISNULL NOTNULL LIKE GLOB MATCH REGEXP BETWEEN")
_COLLATIONS = ("BINARY", "NOCASE", "RTRIM")
_JOINED = {"left": "left", "right": "other", "full": "other"}


class ResultColumn(NamedTuple):
    """A result column. ``affinity`` None: it has none, which isn't the same as BLOB. ``stated``: by COLLATE."""

    affinity: Affinity | None
    collation: str
    stated: bool = False

    def declared(self, index: int) -> str:
        """Return the definition of a column that stores its values as they are."""
        kind = "" if self.affinity is None else _TYPES[self.affinity]
        return " ".join(part for part in (part_column(index), kind, f"COLLATE {self.collation}") if part)

    def read(self, index: int) -> str:
        """Return how that column is read, to be compared as the result column is."""
        collate = f" COLLATE {self.collation}" if self.stated else ""
        return f"{'+' if self.affinity is None else ''}{part_column(index)}{collate}"


def result_columns(text: Text, cores: Sequence[Core], tables: Mapping[str, Table]) -> list[ResultColumn]:
    """Return the result columns of a query. Raises Unsure where they can't be told."""
    arms = [core for core in cores if core.parent is None]
    tokens = text.tokens
    whole = Span(0, len(tokens))
    if text.head != "SELECT" or not arms or any(tokens[at].key == "VALUES" for at in top(tokens, whole)):
        raise Unsure("a query of another form")
    found = [_columns(text, arm, tables) for arm in arms]
    if any(columns != found[0] for columns in found):
        raise Unsure("arms of several types")
    return found[0]


def _columns(text: Text, core: Core, tables: Mapping[str, Table]) -> list[ResultColumn]:
    sources = _sources(text, core, tables)
    columns: list[ResultColumn] = []
    for output in read_select(text, core, core.span.end).outputs:
        if not output.star:
            columns.append(_Reader(text, sources).read(output.span))
            continue
        if sources is None:
            raise Unsure("* of a query")
        expanded = sources.expand(output.star)
        columns += [_of_table(found.source.table, found.column, found.affinity, found.collation) for found in expanded]
    return columns


def _sources(text: Text, core: Core, tables: Mapping[str, Table]) -> Sources | None:
    """Return the tables of a FROM; None where something else stands in it."""
    if core.nested or not all(_is_table(item, tables) for item in core.items):
        return None
    references = [
        Reference(item.name, item.alias, item.alias_text, 0, tables[item.name], joined=_JOINED.get(item.join, "inner"))
        for item in core.items
    ]
    return Sources(text, core, references)


def _is_table(item: Item, tables: Mapping[str, Table]) -> bool:
    return item.name in tables and item.schema in ("", "main") and not item.function


def _of_table(table: Table | None, name: str, affinity: Affinity, collation: str) -> ResultColumn:
    if table is None or table.virtual or collation not in _COLLATIONS:
        raise Unsure("a column of something else")
    column = table.by_name.get(name)
    if table.strict and column is not None and column.declared_type.upper() == "ANY":
        raise Unsure("ANY")
    return ResultColumn(affinity, collation)


class _Reader:
    """Reads one expression as SQLite's sqlite3ExprAffinity and sqlite3ExprCollSeq do."""

    def __init__(self, text: Text, sources: Sources | None) -> None:
        self._tokens = text.tokens
        self._sources = sources

    def read(self, span: Span) -> ResultColumn:
        """Return what an expression is as a result column."""
        tokens = self._tokens
        words = tokens[span.start : span.end]
        stated = {tokens[at + 1].name for at in range(*span) if tokens[at].key == "COLLATE"}
        if len(stated) > 1 or (stated and any(token.key == "SELECT" for token in words)):
            raise Unsure("the collation of an expression")
        found = self._plain(span)
        if not stated:
            return found
        name = (stated.pop() or "").upper()
        if name not in _COLLATIONS:
            raise Unsure(f"the collation {name}")
        return ResultColumn(found.affinity, name, True)

    def _plain(self, span: Span) -> ResultColumn:
        """Read an expression, whatever COLLATE it holds."""
        tokens = self._tokens
        start, end = span = stripped(tokens, span)
        nothing = ResultColumn(None, "BINARY")
        first = tokens[start]
        if first.key in ("CASE", "-", "~", "NOT", "EXISTS") or (end - start == 1 and first.kind in _CONSTANTS):
            return nothing
        if first.key == "+":
            return nothing._replace(collation=self._plain(Span(start + 1, end)).collation)
        if any(self._is_operator(at) for at in top(tokens, span) if at > start):
            return nothing
        if end - start > 2 and tokens[end - 2].key == "COLLATE":
            return self._plain(Span(start, end - 2))
        if end - start == 1 and first.key in ("NULL", "TRUE", "FALSE"):
            return nothing
        if first.kind in _NAMES and end - start > 2 and tokens[start + 1].key == "(":
            return self._call(span)
        if first.kind not in _NAMES or self._sources is None:
            raise Unsure("the type of an expression")
        found = self._sources.single(span)
        if found is None:
            raise Unsure(first.text)
        return _of_table(found.source.table, found.column, found.affinity, found.collation)

    def _is_operator(self, at: int) -> bool:
        token = self._tokens[at]
        if token.kind is TokenKind.OPERATOR:
            return token.key not in (".", "(", ")", ",")
        return token.kind is TokenKind.WORD and token.key in _OPERATOR_WORDS

    def _call(self, span: Span) -> ResultColumn:
        """Read a call, or CAST."""
        tokens = self._tokens
        start, end = span
        close = closing(tokens, start + 1)
        name = tokens[start].name or ""
        if name == "cast":
            at = max(i for i in top(tokens, Span(start + 2, close)) if tokens[i].key == "AS")
            affinity = affinity_of(" ".join(token.text for token in tokens[at + 1 : close]), False)
            if close != end - 1 or affinity is Affinity.NUMERIC:
                raise Unsure("CAST AS NUMERIC")  # 5.0 stays REAL there, and not where it is stored
            return ResultColumn(affinity, self._plain(Span(start + 2, at)).collation)
        if name in ("likely", "unlikely", "likelihood"):
            raise Unsure(name)  # SQLite looks through it
        if close != end - 1 and tokens[close + 1].key not in ("FILTER", "OVER"):
            raise Unsure("the type of an expression")
        return ResultColumn(None, "BINARY")
