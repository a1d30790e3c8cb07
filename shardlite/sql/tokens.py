"""SQLite's tokens: enough to find parameters, statement kinds and the places where text is spliced in.

Rewrites never print a tree back; they cut the original text at the offsets of these tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shardlite.names import fold

_ID = r"A-Za-z0-9_$\x80-\U0010ffff"
_TOKEN = re.compile(
    r"(?P<space>[ \t\n\f\r]+|--[^\n]*|/\*.*?(?:\*/|\Z))"
    r"|(?P<blob>[xX]'[^']*')"
    r"|(?P<string>'(?:[^']|'')*')"
    r'|(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])'
    r"|(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)"
    rf"|(?P<parameter>\?[0-9]*|[@:#$](?:[{_ID}]|::)+(?:\([^)\s]*\))?)"
    rf"|(?P<word>[A-Za-z_\x80-\U0010ffff][{_ID}]*)"
    r"|(?P<operator>->>|->|\|\||<<|>>|<=|>=|<>|!=|==|.)",
    re.DOTALL,
)


def words(text: str) -> frozenset[str]:
    """Return the words of a text, for long lists of names."""
    return frozenset(text.split())


class TokenKind(StrEnum):
    """What a token is. Space and comments are left out."""

    BLOB = "blob"
    STRING = "string"
    QUOTED = "quoted"
    NUMBER = "number"
    PARAMETER = "parameter"
    WORD = "word"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Token:
    """One token. ``key`` is the upper-cased text of a word, the text itself of an operator, else "".

    ``index`` is a parameter's number as SQLite counts (from 1), else 0.
    """

    kind: TokenKind
    text: str
    start: int
    end: int
    key: str
    index: int = 0

    @property
    def name(self) -> str | None:
        """The identifier that the token may be, unquoted and folded, else None."""
        if self.kind is TokenKind.WORD:
            return fold(self.text)
        if self.kind is TokenKind.QUOTED:
            return fold(unquote(self.text))
        if self.kind is TokenKind.STRING:
            return fold(self.text[1:-1].replace("''", "'"))
        return None


def unquote(text: str) -> str:
    """Take the quotes off an identifier."""
    if text[:1] == "[":
        return text[1:-1]
    if text[:1] in ('"', "`"):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


@dataclass(frozen=True, slots=True)
class Text:
    """A statement in tokens. ``names`` maps a parameter's name (without its first character) to its number."""

    sql: str
    tokens: tuple[Token, ...]
    parameter_count: int
    names: tuple[tuple[str, int], ...]
    nameless: bool
    """A parameter without a name (``?``, ``?1``) occurs."""

    @property
    def head(self) -> str:
        """The first word, upper-cased; "" for a text without any token."""
        return self.tokens[0].key if self.tokens else ""

    def keywords(self) -> frozenset[str]:
        """Return all unquoted words, upper-cased."""
        return frozenset(token.key for token in self.tokens if token.kind is TokenKind.WORD)


def tokenize(sql: str) -> Text:
    """Cut a statement into tokens and number its parameters as SQLite does. A trailing ``;`` is left out."""
    tokens: list[Token] = []
    names: dict[str, int] = {}
    largest, nameless = 0, False
    for match in _TOKEN.finditer(sql):
        group = match.lastgroup
        if group == "space" or group is None:
            continue
        text = match.group()
        index = 0
        if group == "parameter":
            if text[0] == "?":
                nameless = True
                index = int(text[1:]) if len(text) > 1 else largest + 1
            else:
                index = names.setdefault(text, largest + 1)
            largest = max(largest, index)
        key = text.upper() if group == "word" else text if group == "operator" else ""
        tokens.append(Token(TokenKind(group), text, match.start(), match.end(), key, index))
    while tokens and tokens[-1].key == ";":
        tokens.pop()
    while tokens and tokens[0].key == ";":
        tokens.pop(0)
    by_name = tuple((name[1:], index) for name, index in names.items())
    return Text(sql, tuple(tokens), largest, by_name, nameless)


_AFTER_OPERAND = frozenset((")", "END", "NULL", "ISNULL", "NOTNULL", "TRUE", "FALSE"))
_OPERANDS = frozenset((TokenKind.BLOB, TokenKind.STRING, TokenKind.QUOTED, TokenKind.NUMBER, TokenKind.PARAMETER))
_KEYWORDS_BEFORE_OPERAND = words(
    """
    SELECT WHERE AND OR NOT ON IN IS LIKE GLOB MATCH REGEXP BETWEEN CASE WHEN THEN ELSE BY HAVING LIMIT
    OFFSET SET VALUES RETURNING DISTINCT ALL ESCAPE FROM
    """
)


def analysis_text(text: Text) -> tuple[str, dict[str, Token]]:
    """Return the statement in words that sqlglot reads faithfully, with the literals that were taken out.

    Parameters become ``:p<number>``, blobs and hexadecimal numbers ``:k<n>``; a unary plus, which sqlglot drops
    although it takes a column's affinity away, becomes ``~``; ``OR IGNORE`` and the like go from UPDATE.
    The result is only looked at, it never runs.
    """
    parts: list[str] = []
    literals: dict[str, Token] = {}
    skip = 0
    for position, token in enumerate(text.tokens):
        if skip:
            skip -= 1
            continue
        if token.kind is TokenKind.PARAMETER:
            parts.append(f":p{token.index}")
        elif token.kind is TokenKind.BLOB or (token.kind is TokenKind.NUMBER and token.text[1:2] in ("x", "X")):
            name = f"k{len(literals)}"
            literals[name] = token
            parts.append(f":{name}")
        elif token.key == "+" and is_unary(text.tokens, position):
            parts.append("~")
        elif token.key == "UPDATE" and _key(text.tokens, position + 1) == "OR":
            parts.append("UPDATE")
            skip = 2
        else:
            parts.append(token.text)
    return " ".join(parts), literals


def is_unary(tokens: Sequence[Token], position: int) -> bool:
    """Tell whether the sign at ``position`` stands before its operand only."""
    if position == 0:
        return True
    before = tokens[position - 1]
    if before.kind in _OPERANDS or before.key in _AFTER_OPERAND:
        return False
    return before.kind is not TokenKind.WORD or before.key in _KEYWORDS_BEFORE_OPERAND


def _key(tokens: Sequence[Token], position: int) -> str:
    return tokens[position].key if position < len(tokens) else ""


def closing(tokens: Sequence[Token], opening: int) -> int:
    """Return the position of the ``)`` that ends the ``(`` at ``opening``; ``len(tokens)`` when there is none."""
    depth = 0
    for position in range(opening, len(tokens)):
        key = tokens[position].key
        if key == "(":
            depth += 1
        elif key == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(tokens)


def split_commas(tokens: Sequence[Token]) -> list[tuple[Token, ...]]:
    """Split at the commas that stand outside parentheses. Nothing gives an empty list."""
    parts: list[tuple[Token, ...]] = []
    current: list[Token] = []
    depth = 0
    for token in tokens:
        if token.key == "," and depth == 0:
            parts.append(tuple(current))
            current = []
            continue
        depth += (token.key == "(") - (token.key == ")")
        current.append(token)
    if current or parts:
        parts.append(tuple(current))
    return parts


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that the text fixes (``parameter`` 0) or that a parameter brings."""

    value: object = None
    parameter: int = 0


_DECIMAL = re.compile(r"[0-9]+\Z")
_REAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")


def number_of(text: str) -> int | float | None:
    """Return the value of a numeric literal as SQLite reads it; None where it isn't a plain one."""
    if text[:2] in ("0x", "0X"):
        value = int(text, 16)
        if value >= 1 << 64:
            return None
        return value - (1 << 64) if value >= 1 << 63 else value
    if _DECIMAL.match(text):
        value = int(text)
        return value if value < 1 << 63 else float(value)
    return float(text) if _REAL.match(text) else None


def constant_of(tokens: Sequence[Token]) -> Constant | None:
    """Return the constant that an expression is: a literal or a parameter, with signs and parentheses; else None."""
    while len(tokens) >= 2 and tokens[0].key == "(" and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    negative = False
    while len(tokens) > 1 and tokens[0].key in ("-", "+"):
        negative ^= tokens[0].key == "-"
        tokens = tokens[1:]
    if len(tokens) != 1:
        return None
    return _single(tokens[0], negative)


def _single(token: Token, negative: bool) -> Constant | None:
    if token.kind is TokenKind.PARAMETER:
        return None if negative else Constant(parameter=token.index)
    if token.kind is TokenKind.NUMBER:
        number = number_of(token.text)
        if number is None:
            return None
        if negative and number == float(1 << 63) and _DECIMAL.match(token.text) and int(token.text) == 1 << 63:
            return Constant(-(1 << 63))
        return Constant(-number if negative else number)
    if negative:
        return None
    if token.kind is TokenKind.STRING:
        return Constant(token.text[1:-1].replace("''", "'"))
    if token.kind is TokenKind.BLOB:
        return Constant(bytes.fromhex(token.text[2:-1]))
    fixed = {"NULL": Constant(None), "TRUE": Constant(1), "FALSE": Constant(0)}
    return fixed.get(token.key)
