"""SQLite's tokens, cut where SQLite cuts them: all that reads SQL text here begins with them.

Rewrites never print a tree back; they cut the original text at the offsets of these tokens. The rules are those of
SQLite's own tokenizer, with its surprises: a comment may end with the text, ``/*`` alone is two operators, a byte order
mark is space, ``$a::b(c)`` is one parameter, and what it can't read is one token up to a place that it chooses
(``TokenKind.ILLEGAL``). Digits may have separators (``1_000``), which SQLite before 3.46 refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from shardlite.names import fold, unfold

_ID = r"A-Za-z0-9_$\x80-\U0010ffff"


_DECIMAL_TEXT = r"(?:[0-9][0-9_]*+(?:\.[0-9_]*+)?+|\.[0-9][0-9_]*+)(?:[eE][+-]?[0-9][0-9_]*+)?+"
_TOKEN = re.compile(
    r"(?P<space>[ \t\n\f\r][ \t\n\v\f\r]*+|\ufeff)"
    r"|(?P<comment>--[^\n]*+|/\*(?:.*?\*/|.+))"
    r"|(?P<blob>[xX]'(?:[0-9a-fA-F]{2})*+')"
    r"|(?P<string>'[^']*+(?:''[^']*+)*+')"
    r'|(?P<quoted>"[^"]*+(?:""[^"]*+)*+"|`[^`]*+(?:``[^`]*+)*+`|\[[^\]]*+\])'
    rf"|(?P<number>0[xX][0-9a-fA-F][0-9a-fA-F_]*+|{_DECIMAL_TEXT}(?![{_ID}]))"
    rf"|(?P<parameter>\?[0-9]*+|[@:#$](?:::)*+[{_ID}](?:[{_ID}]|::)*+(?:\([^) \t\n\v\f\r]*+\)|(?!\()))"
    rf"|(?P<illegal>[xX]'[^']*+'?|{_DECIMAL_TEXT}[{_ID}]+|['\"`\[].*"
    rf"|[@:#$](?:::)*+(?:[{_ID}](?:[{_ID}]|::)*+(?:\([^) \t\n\v\f\r]*+)?)?)"
    rf"|(?P<word>[A-Za-z_\x80-\U0010ffff][{_ID}]*+)"
    r"|(?P<operator>->>|->|\|\||<<|>>|<=|>=|<>|!=|==|[-+*/%<>=&|~(),.;])"
    r"|(?P<unknown>.)",
    re.DOTALL,
)


def words(text: str) -> frozenset[str]:
    """Return the words of a text, for long lists of names."""
    return frozenset(text.split())


class TokenKind(StrEnum):
    """What a token is. Space is left out."""

    BLOB = "blob"
    STRING = "string"
    QUOTED = "quoted"
    NUMBER = "number"
    PARAMETER = "parameter"
    WORD = "word"
    OPERATOR = "operator"
    COMMENT = "comment"
    ILLEGAL = "illegal"
    """What SQLite refuses as "unrecognized token"."""


# Not frozen: a statement has hundreds of these, and the __init__ of a frozen class takes three times as long.
@dataclass(unsafe_hash=True, slots=True)
class Token:
    """One token, which nobody changes. ``key`` is a word in upper case, the text itself of an operator, else "".

    ``text`` is ``sql[start:end]``, quotes and all. ``index`` is a parameter's number as SQLite counts (from 1), else 0.
    ``name`` is the identifier that the token may be (a string may), unquoted and folded, else None.
    """

    kind: TokenKind
    text: str
    start: int
    end: int
    key: str
    index: int = 0
    name: str | None = None

    @property
    def value(self) -> str:
        """What the token says: the text without its quotes."""
        if self.kind is TokenKind.QUOTED and self.text[0] == "[":
            return self.text[1:-1]
        if self.kind is TokenKind.QUOTED or self.kind is TokenKind.STRING:
            return self.text[1:-1].replace(self.text[0] * 2, self.text[0])
        return self.text

    @property
    def identifier(self) -> str:
        """The identifier that the token is, unquoted, else "". (SQLite also takes a string for one in some places.)"""
        return self.value if self.kind is TokenKind.WORD or self.kind is TokenKind.QUOTED else ""

    def is_word(self, *wanted: str) -> bool:
        """Tell whether the token is one of these words (in upper case), unquoted."""
        return self.kind is TokenKind.WORD and self.key in wanted


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


_KINDS: dict[str | None, TokenKind] = {"unknown": TokenKind.ILLEGAL, **{kind.value: kind for kind in TokenKind}}
"""What each group of ``_TOKEN`` is; space is nothing."""


def scan(sql: str) -> list[Token]:
    """Cut a text into all its tokens, comments among them, and number its parameters as SQLite does."""
    tokens: list[Token] = []
    named: dict[str, int] = {}
    largest = 0
    for match in _TOKEN.finditer(sql):
        kind = _KINDS.get(match.lastgroup)
        if kind is None:
            continue
        text = match.group()
        if kind is TokenKind.WORD:
            tokens.append(Token(kind, text, match.start(), match.end(), unfold(text), 0, fold(text)))
            continue
        token = Token(kind, text, match.start(), match.end(), text if kind is TokenKind.OPERATOR else "")
        if kind is TokenKind.PARAMETER:
            if text[0] == "?":
                token.index = _number_of_parameter(text) if len(text) > 1 else largest + 1
            else:
                token.index = named.setdefault(text, largest + 1)
            largest = max(largest, token.index)
        elif kind is TokenKind.QUOTED or kind is TokenKind.STRING:
            token.name = fold(token.value)
        tokens.append(token)
    return tokens


def _number_of_parameter(text: str) -> int:
    """Return NNN of ``?NNN``. SQLite refuses more than ten digits, and Python to read thousands of them."""
    digits = text[1:].lstrip("0")
    return int(digits[:11] or "0")


def tokens_of(sql: str) -> list[Token]:
    """Cut a text into its tokens without the comments."""
    return [token for token in scan(sql) if token.kind is not TokenKind.COMMENT]


def first_words(sql: str, count: int = 4) -> tuple[str, ...]:
    """Return what the first tokens of a statement say, in upper case."""
    return tuple(unfold(token.value) for token in tokens_of(sql)[:count])


def tokenize(sql: str) -> Text:
    """Cut a statement into tokens without the comments. A ``;`` before or behind it is left out."""
    return _remembered(sql) if len(sql) <= _LONGEST_REMEMBERED else _tokenize(sql)


def _tokenize(sql: str) -> Text:
    tokens = tokens_of(sql)
    while tokens and tokens[-1].key == ";":
        tokens.pop()
    while tokens and tokens[0].key == ";":
        tokens.pop(0)
    return Text(
        sql,
        tuple(tokens),
        parameter_count=max((token.index for token in tokens), default=0),
        names=_names(tokens),
        nameless=any(token.text[0] == "?" for token in tokens if token.kind is TokenKind.PARAMETER),
    )


_LONGEST_REMEMBERED = 4096
"""Characters. While a statement is planned its pieces are looked at from many sides; those of a large one are few."""
_remembered = lru_cache(maxsize=256)(_tokenize)


def numbered(text: Text, first: int = 0, last: int | None = None) -> str:
    """Return the text of some tokens (all of them), each ``?`` with its number, so that it may be moved."""
    last = len(text.tokens) if last is None else last
    if first >= last:
        return ""
    parts, at = [], text.tokens[first].start
    for token in text.tokens[first:last]:
        if token.kind is TokenKind.PARAMETER and token.text[:1] == "?":
            parts += [text.sql[at : token.start], f"?{token.index}"]
            at = token.end
    parts.append(text.sql[at : text.tokens[last - 1].end])
    return "".join(parts)


def unnumbered(sql: str, whole: Text) -> str:
    """Take the numbers off where ``whole`` has ``?`` and counting gives the same: they would show in column names."""
    written: dict[int, set[str]] = {}
    for token in whole.tokens:
        if token.index:
            written.setdefault(token.index, set()).add(token.text)
    edits, largest = [], 0
    for token in tokens_of(sql):
        if token.index and token.text[0] == "?" and token.index == largest + 1 and written.get(token.index) == {"?"}:
            edits.append((token.start, token.end, "?"))
        largest = max(largest, token.index)
    return spliced(sql, edits)


def renumbered(text: Text, whole: Text) -> Text:
    """Give the named parameters of a part of a statement the numbers that they have in the whole."""
    if not whole.names:
        return text
    known = {token.text: token.index for token in whole.tokens if token.index}
    tokens = tuple(
        replace(token, index=known[token.text]) if token.index and token.text in known else token
        for token in text.tokens
    )
    return replace(text, tokens=tokens, names=_names(tokens), parameter_count=whole.parameter_count)


def spliced(sql: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """Put texts in the places of others; each edit gives the offsets and what stands there then."""
    for start, end, text in sorted(edits, reverse=True):
        sql = sql[:start] + text + sql[end:]
    return sql


def _names(tokens: Iterable[Token]) -> tuple[tuple[str, int], ...]:
    named = {token.text: token.index for token in tokens if token.index and token.text[0] != "?"}
    return tuple((name[1:], index) for name, index in named.items())


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

    Parameters become ``:p<number>``, blobs and numbers that are hexadecimal or have separators ``:k<n>``; a unary plus,
    which sqlglot drops although it takes a column's affinity away, becomes ``~``; ``OR IGNORE`` and the like go from
    UPDATE.
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
        elif token.kind is TokenKind.BLOB or (token.kind is TokenKind.NUMBER and not _is_plain(token.text)):
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


def _is_plain(number: str) -> bool:
    return number[1:2] not in ("x", "X") and "_" not in number


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


_MAX_INT64_DIGITS = 19


def number_of(text: str) -> int | float | None:
    """Return the value of a numeric literal as SQLite reads it; None where it isn't a plain one."""
    text = text.replace("_", "")  # SQLite has refused those that stand elsewhere than between digits
    if text[:2] in ("0x", "0X"):
        value = int(text, 16)
        if value >= 1 << 64:
            return None
        return value - (1 << 64) if value >= 1 << 63 else value
    if _DECIMAL.match(text):
        text = text.lstrip("0") or "0"
        value = int(text[: _MAX_INT64_DIGITS + 1])  # Python refuses to read thousands of digits
        return value if value < 1 << 63 else float(text)
    return float(text) if _REAL.match(text) else None


def constant_of(tokens: Sequence[Token]) -> Constant | None:
    """Return the constant that an expression is: a literal or a parameter, with signs and parentheses; else None."""
    while len(tokens) >= 2 and tokens[0].key == "(" and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    minuses = 0
    while len(tokens) > 1 and tokens[0].key in ("-", "+"):
        minuses += tokens[0].key == "-"
        tokens = tokens[1:]
    if len(tokens) != 1 or (minuses and tokens[0].kind is not TokenKind.NUMBER):  # a minus makes a number of a text
        return None
    return _single(tokens[0], minuses)


def _single(token: Token, minuses: int) -> Constant | None:
    if token.kind is TokenKind.PARAMETER:
        return Constant(parameter=token.index)
    if token.kind is TokenKind.NUMBER:
        number, negative = number_of(token.text), minuses % 2 == 1
        if number is None:
            return None
        if negative and token.text.replace("_", "").lstrip("0") == str(1 << 63):
            return Constant(-(1 << 63))
        if minuses and number == -(1 << 63):  # -0x8000000000000000, which SQLite refuses
            return None
        return Constant(-number if negative else number)
    if token.kind is TokenKind.STRING:
        return Constant(token.value)
    if token.kind is TokenKind.BLOB:
        return Constant(bytes.fromhex(token.text[2:-1]))
    fixed = {"NULL": Constant(None), "TRUE": Constant(1), "FALSE": Constant(0)}
    return fixed.get(token.key)
