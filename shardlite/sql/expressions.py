"""Check that a text is one expression over one table's columns, and nothing else.

The text runs as it was written, so it is read with SQLite's own rules for tokens: what counts as a string, a name or
a comment here is the same as there. Everything that could reach beyond the expression (a subquery, another table, a
second statement, a comment) or whose value differs from shard to shard is refused by name. The grammar proper is left
to SQLite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import fold, unfold
from shardlite.router.keys import COLLATIONS
from shardlite.router.table import ROWID_NAMES, Column, Table
from shardlite.sql.functions import AGGREGATES, DATES, NO_FUNCTIONS, SCALAR, UserFunctions
from shardlite.sql.tokens import Token, TokenKind, closing, scan, split_commas, words

BUILT_IN_COLLATIONS = frozenset(COLLATIONS)

_KEYWORDS = words(
    """
    and or not is null isnull notnull in like glob escape between case when then else end cast as collate
    distinct from true false
    """
)
_REFUSED_WORDS = {
    "select": "a subquery",
    "values": "a subquery",
    "exists": "a subquery",
    "current_date": "the current date",
    "current_time": "the current time",
    "current_timestamp": "the current time",
    "regexp": "the operator REGEXP",
    "match": "the operator MATCH",
    "raise": "RAISE",
}
_BEFORE_PARENTHESIS = words("and or not is in like glob escape between when then else case from distinct as")
CALLING_OPERATORS = frozenset(("like", "glob", "regexp", "match", "->", "->>"))
"""Operators that call the function of their name, which the user may have registered."""
_NAMES = (TokenKind.WORD, TokenKind.QUOTED)


def read_expression(text: str, what: str) -> list[Token]:
    """Split the text of one expression into tokens.

    Raises ProgrammingError for comments, semicolons, unbalanced parentheses and anything that is no token; ``what``
    says in the message what the text is.
    """
    tokens = scan(text)
    depth = 0
    if "\0" in text:
        raise ProgrammingError(f"{what} {text!r} contains a NUL character")
    for token in tokens:
        if token.kind is TokenKind.ILLEGAL:
            raise ProgrammingError(f"{what} {text!r}: unrecognized token at {text[token.start : token.start + 12]!r}")
        if token.kind is TokenKind.COMMENT or token.key == ";":
            raise ProgrammingError(
                f"{what} {text!r}: {token.text[:2]!r} is not allowed; give one expression without comments"
            )
        if token.kind is TokenKind.PARAMETER and (":" in token.text[1:] or token.text[-1] == ")"):
            raise ProgrammingError(
                f"{what} {text!r}: the parameter {token.text!r} has a suffix, which is not supported"
            )
        depth += (token.key == "(") - (token.key == ")")
        if depth < 0:
            raise ProgrammingError(f"{what} {text!r}: a closing parenthesis too many at offset {token.start}")
    if depth:
        raise ProgrammingError(f"{what} {text!r}: {depth} parentheses are not closed")
    if not tokens:
        raise ProgrammingError(f"{what} is empty")
    return tokens


def known_columns(table: Table) -> str:
    """Return the table's column names for a message."""
    return ", ".join(column.name for column in table.columns)


def find_column(table: Table, name: str, what: str) -> Column | None:
    """Return the column of that name, or None where the name means the rowid.

    Raises ProgrammingError naming the table, the name and the columns that there are.
    """
    column = table.by_name.get(fold(name))
    if column is not None:
        return column
    if fold(name) in ROWID_NAMES and not table.without_rowid:
        return None
    raise ProgrammingError(f"{what}: table {table.name!r} has no column {name!r}; it has {known_columns(table)}")


@dataclass
class _Checker:
    """Walks the tokens of one expression once."""

    table: Table
    tokens: Sequence[Token]
    what: str
    functions: UserFunctions
    index: int = 0

    def refuse(self, thing: str) -> NotSupportedError:
        return NotSupportedError(
            f"{self.what}: {thing} can't be evaluated on each shard alone; it is not supported here"
        )

    def peek(self, offset: int = 1) -> str:
        at = self.index + offset
        return self.tokens[at].text if 0 <= at < len(self.tokens) else ""

    def check(self) -> None:
        hidden = CALLING_OPERATORS & self.functions.others
        while self.index < len(self.tokens):
            token = self.tokens[self.index]
            if hidden and fold(token.text) in hidden:
                raise self.refuse(f"the function {fold(token.text)}(), which the operator calls,")
            if token.kind in _NAMES:
                self._name(token)
            self.index += 1

    def _name(self, token: Token) -> None:
        word = fold(token.text) if token.kind is TokenKind.WORD else ""
        if word in _REFUSED_WORDS and not (word in CALLING_OPERATORS and word in self.functions.deterministic):
            raise self.refuse(_REFUSED_WORDS[word])
        if word in ("over", "filter") and self.peek(-1) == ")":
            raise self.refuse(f"{word.upper()} (windows and aggregates)")
        if word == "cast" and self.peek() == "(":
            return
        if word == "as":
            self._type_name()
        elif word == "collate":
            self.index += 1
        elif word == "in":
            if self.peek() != "(":
                raise self.refuse("IN with a table")
        elif word in _KEYWORDS or (word in CALLING_OPERATORS and self.peek() != "("):
            if self.peek() == "(" and word not in _BEFORE_PARENTHESIS:
                raise ProgrammingError(f"{self.what}: {token.text!r} is no function")
        elif self.peek() == "(":
            self._function(token)
        else:
            self._column(token)

    def _type_name(self) -> None:
        """Skip the words of a type up to the parenthesis that closes the CAST."""
        while self.index + 1 < len(self.tokens) and self.tokens[self.index + 1].kind in _NAMES:
            self.index += 1
        if self.peek() == "(":
            self.index = closing(self.tokens, self.index + 1)
        if self.peek() != ")":
            raise ProgrammingError(f"{self.what}: AS is only allowed inside CAST(... AS type)")

    def _function(self, token: Token) -> None:
        name = fold(token.identifier)
        end = closing(self.tokens, self.index + 1)
        inner = self.tokens[self.index + 2 : end]
        arguments = len(split_commas(inner)) if inner else 0
        if name in AGGREGATES or (name in ("min", "max") and arguments < 2):
            raise ProgrammingError(
                f"{self.what}: the aggregate {token.identifier}() is not allowed inside an expression"
            )
        known = name in SCALAR or name in DATES or name in self.functions.deterministic
        if name in self.functions.others or not known:
            raise self.refuse(f"the function {token.identifier}()")
        if name in DATES:
            needed = 2 if name in ("strftime", "timediff") else 1
            says_now = any(part.kind is TokenKind.STRING and says_now_text(part.value) for part in inner)
            if arguments < needed or says_now:
                raise self.refuse(f"the current time in {token.identifier}()")

    def _column(self, token: Token) -> None:
        name = token.identifier
        if self.peek() == ".":
            following = self.tokens[self.index + 2] if self.index + 2 < len(self.tokens) else None
            if following is None or fold(name) != fold(self.table.name):
                raise ProgrammingError(f"{self.what}: {name!r} is not the table {self.table.name!r}")
            self.index += 2
            name = following.identifier
        find_column(self.table, name, self.what)


def says_now_text(value: object) -> bool:
    """Tell whether a date function would read this value as the current time."""
    return isinstance(value, str) and fold(value.strip()) in ("now", "subsec", "subsecond")


def check_expression(table: Table, tokens: Sequence[Token], what: str, functions: UserFunctions = NO_FUNCTIONS) -> None:
    """Check that the tokens name nothing but the table's columns, deterministic functions and operators.

    ``functions`` are those that the user registered; the deterministic ones may be called. Raises ProgrammingError for
    unknown names, NotSupportedError for what no shard can evaluate alone.
    """
    _Checker(table, tokens, what, functions).check()


def uses_dates(tokens: Sequence[Token]) -> bool:
    """Tell whether a date function is called, so that a parameter could bring in ``now``."""
    return any(token.kind in _NAMES and token.name in DATES for token in tokens)


def strip_parentheses(tokens: Sequence[Token]) -> Sequence[Token]:
    """Take off parentheses that enclose all the tokens."""
    while len(tokens) > 2 and tokens[0].text == "(" and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    return tokens


def column_name(tokens: Sequence[Token]) -> str | None:
    """Return the column's name where the tokens are just a column (``c`` or ``t.c``), else None."""
    if len(tokens) == 3 and tokens[1].text == ".":
        tokens = tokens[2:]
    if len(tokens) != 1 or tokens[0].kind not in _NAMES:
        return None
    if tokens[0].kind is TokenKind.WORD and fold(tokens[0].text) in _KEYWORDS:
        return None
    return tokens[0].identifier


def collation_of(table: Table, tokens: Sequence[Token], what: str) -> str:
    """Return the collation by which SQLite compares the expression's values.

    An explicit COLLATE anywhere inside wins; then a column's own, also through parentheses, unary plus and CAST; else
    BINARY. Raises NotSupportedError for several different COLLATEs and for a collation that isn't SQLite's own.
    """
    explicit = {
        unfold(tokens[index + 1].value): tokens[index + 1].value
        for index, token in enumerate(tokens[:-1])
        if token.is_word("COLLATE")
    }
    if len(explicit) > 1:
        raise NotSupportedError(f"{what}: different collations in one expression: {', '.join(sorted(explicit))}")
    found = next(iter(explicit.values())) if explicit else _column_collation(table, tokens)
    if found.upper() not in BUILT_IN_COLLATIONS:
        raise NotSupportedError(f"{what}: values can't be merged by the collation {found!r}, which isn't SQLite's own")
    return found.upper()


def _column_collation(table: Table, tokens: Sequence[Token]) -> str:
    while True:
        before, tokens = tokens, strip_parentheses(tokens)
        if tokens and tokens[0].text == "+":
            tokens = tokens[1:]
        elif len(tokens) > 3 and tokens[0].is_word("CAST") and closing(tokens, 1) == len(tokens) - 1:
            inner = tokens[2:-1]
            last = max((index for index, token in enumerate(inner) if token.is_word("AS")), default=0)
            tokens = inner[:last]
        if tokens is before or tokens == before:
            break
    name = column_name(tokens)
    column = table.by_name.get(fold(name)) if name else None
    return column.collation if column is not None else "BINARY"
