"""Where a table's rows live, said in its own CREATE TABLE, in a comment that plain SQLite ignores (pure).

    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        user_id INTEGER NOT NULL REFERENCES users
        /* shardlite: key=user_id, colocate_with=users */
    )

The words are ``create_table``'s: ``key`` (one column, or several: ``key=(tenant, id)``), ``kind``, ``colocate_with``
and ``constraints``. A comment is a hint if it begins with ``shardlite:``; ``--`` comments too. SQLite keeps of a CREATE
TABLE what stands between its name and the last parenthesis, so a hint that stands outside is moved inside: it is then
part of the stored text, and of what is exported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from shardlite.errors import ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.sql.tokens import Token, TokenKind, closing, scan, tokens_of

_MARK = re.compile(r"\s*shardlite\s*:", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KNOWN = "key, kind, colocate_with, constraints"


@dataclass(frozen=True, slots=True)
class Hint:
    """What a CREATE TABLE says of its rows' place; everything may be left open."""

    key: tuple[str, ...] = ()
    kind: TableKind | None = None
    colocate_with: str | None = None
    constraints: ConstraintMode | None = None

    def __str__(self) -> str:
        """The hint as a comment. Raises ProgrammingError for a name that would end the comment."""
        parts = []
        if self.key:
            names = ", ".join(map(_written, self.key))
            parts.append(f"key={names}" if len(self.key) == 1 else f"key=({names})")
        if self.kind is not None:
            parts.append(f"kind={self.kind.value}")
        if self.colocate_with is not None:
            parts.append(f"colocate_with={_written(self.colocate_with)}")
        if self.constraints is not None:
            parts.append(f"constraints={self.constraints.value}")
        text = f"/* shardlite: {', '.join(parts)} */"
        if "*/" in text[:-2]:
            raise ProgrammingError(f"a name that holds */ can't stand in a hint: {text}")
        return text


def hint_of(ddl: str) -> Hint | None:
    """Return what a CREATE TABLE's hints say together, None where it has none.

    :raises ProgrammingError: a word that is none, said twice, or contradicts another; each is named.
    """
    comments = hint_comments(ddl)
    if not comments:
        return None
    said: dict[str, object] = {}
    for comment in comments:
        for word, value in _read(comment.text):
            if word in said:
                raise ProgrammingError(f"{_shown(comment.text)}: {word} is said twice")
            said[word] = value
    hint = Hint(**said)  # type: ignore[arg-type]  # _read gives each word a value of its field's type
    if hint.kind in (TableKind.REFERENCE, TableKind.SINGLE):
        other = "key" if hint.key else "colocate_with" if hint.colocate_with is not None else ""
        if other:
            raise ProgrammingError(
                f"{_shown(comments[0].text)}: a {hint.kind} table has no {other}: leave {other} or kind out"
            )
    return hint


def hint_comments(sql: str) -> list[Token]:
    """Find the comments of a text that are hints."""
    if "shardlite" not in sql.lower():
        return []
    return [token for token in scan(sql) if token.kind is TokenKind.COMMENT and _MARK.match(token.text[2:])]


def makes_table(statement: str) -> bool:
    """Tell whether a statement is a CREATE TABLE, virtual or not."""
    words = [token.key for token in tokens_of(statement)[:3]]
    return words[:2] == ["CREATE", "TABLE"] or words[:3] == ["CREATE", "VIRTUAL", "TABLE"]


def created_name(statement: str) -> str:
    """Return the folded name that a CREATE TABLE gives; "" for another statement."""
    tokens = tokens_of(statement)
    if not makes_table(statement):
        return ""
    at = 3 if tokens[1].key == "VIRTUAL" else 2
    if [token.key for token in tokens[at : at + 3]] == ["IF", "NOT", "EXISTS"]:
        at += 3
    if at + 1 < len(tokens) and tokens[at + 1].key == ".":
        at += 2
    return (tokens[at].name or "") if at < len(tokens) else ""


def refuse_stray(texts: Iterable[str], statements: Iterable[str]) -> None:
    """Refuse a hint that stands in no CREATE TABLE, such as one behind its semicolon: it would say nothing.

    :param statements: the statements that the texts hold.
    """
    inside: list[str] = []
    for statement in statements:
        if makes_table(statement):
            begin = tokens_of(statement)[0].start
            inside += [comment.text for comment in hint_comments(statement) if comment.start > begin]
    for text in texts:
        for comment in hint_comments(text):
            if comment.text not in inside:
                raise ProgrammingError(
                    f"{_shown(comment.text)} stands in no CREATE TABLE: put it between CREATE and the semicolon"
                )
            inside.remove(comment.text)


def settled(ddl: str) -> str:
    """Return a CREATE TABLE with its hints where SQLite keeps them: inside the parentheses."""
    tokens = tokens_of(ddl)
    body = _body(tokens)
    if body is None:
        return ddl
    begin, end = tokens[body[0]].start, tokens[body[1]].start
    comments = hint_comments(ddl)
    outside = [comment for comment in comments if not begin < comment.start < end]
    if not outside:
        return ddl
    moved = "".join(f" /*{_content(comment.text)}*/" for comment in outside)
    for comment in reversed([c for c in outside if c.start > end]):
        ddl = ddl[: comment.start] + ddl[comment.end :]
    ddl = ddl[:end] + moved + ddl[end:]
    for comment in reversed([c for c in outside if c.start < begin]):
        ddl = ddl[: comment.start] + ddl[comment.end :]
    return ddl


def without_hints(ddl: str) -> str:
    """Return the text without its hints; all else stays as written."""
    for comment in reversed(hint_comments(ddl)):
        ddl = ddl[: comment.start] + ddl[comment.end :]
    return ddl


def with_hint(ddl: str, hint: Hint) -> str:
    """Return the CREATE TABLE with this hint: in the place of those that it has, else at the end of its parentheses."""
    comments = hint_comments(ddl)
    text = str(hint) if hint != Hint() else ""
    if comments:
        for comment in reversed(comments[1:]):
            ddl = ddl[: comment.start] + ddl[comment.end :]
        return ddl[: comments[0].start] + text + ddl[comments[0].end :]
    tokens = tokens_of(ddl)
    body = _body(tokens)
    if body is None or not text:
        return ddl
    end = tokens[body[1]].start
    return f"{ddl[:end]} {text}{ddl[end:]}"


def disagreement(hint: Hint, table: Table) -> str | None:
    """Say how a table that exists is placed otherwise than a hint says; None where it isn't."""
    if hint.kind is not None and hint.kind is not table.kind:
        return f"kind={hint.kind}, and it is a {table.kind} table"
    if hint.key and list(map(fold, hint.key)) != list(map(fold, table.key_columns)):
        return f"key={', '.join(hint.key)}, and its key is {', '.join(table.key_columns) or 'none'}"
    return None


def current_hint(hint: Hint, table: Table, names: dict[str, str]) -> Hint:
    """Return the hint in today's words, after columns or tables were renamed or dropped.

    :param names: folded name that a table had -> its name now, for all tables that are there.
    """
    key = hint.key
    if key and list(map(fold, key)) != list(map(fold, table.key_columns)):
        key = table.key_columns
    kind = hint.kind if hint.kind is None or hint.kind is table.kind else table.kind
    other = hint.colocate_with
    if other is not None:
        now = names.get(fold(other))
        other = other if now is not None and fold(now) == fold(other) else now
    return Hint(key, kind, other if table.sharded else None, hint.constraints)


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(comment: str) -> list[tuple[str, object]]:
    """Read ``name=value, name=value`` behind the mark."""
    content = _content(comment)
    tokens = tokens_of(content[_MARK.match(content).end() :])  # type: ignore[union-attr]  # the caller has matched it
    found: list[tuple[str, object]] = []
    position = 0
    while True:
        word = fold(tokens[position].value) if position < len(tokens) else ""
        if word not in {field.name for field in fields(Hint)}:
            raise ProgrammingError(f"{_shown(comment)}: {word or 'nothing'} is no word of a hint: it takes {_KNOWN}")
        if position + 1 >= len(tokens) or tokens[position + 1].key != "=":
            raise ProgrammingError(f"{_shown(comment)}: {word} needs a value: {word}=...")
        names, position = _names(comment, word, tokens, position + 2)
        found.append((word, _value(comment, word, names)))
        if position == len(tokens):
            return found
        if tokens[position].key != ",":
            raise ProgrammingError(
                f"{_shown(comment)}: {tokens[position].text!r} behind the value of {word}: a comma is missing"
            )
        position += 1


def _names(comment: str, word: str, tokens: Sequence[Token], at: int) -> tuple[tuple[str, ...], int]:
    """Read one name, or several in parentheses; return them and the position behind."""
    if at < len(tokens) and tokens[at].key == "(":
        end = closing(tokens, at)
        inner = tokens[at + 1 : end]
        names = [token.value for token in inner[0::2] if token.name is not None]
        commas = all(token.key == "," for token in inner[1::2])
        if end < len(tokens) and tokens[end].key == ")" and commas and 2 * len(names) - 1 == len(inner):
            return tuple(names), end + 1
    elif at < len(tokens) and tokens[at].name is not None:
        return (tokens[at].value,), at + 1
    raise ProgrammingError(f"{_shown(comment)}: the value of {word} is no name (quote one that is no plain word)")


def _value(comment: str, word: str, names: tuple[str, ...]) -> object:
    if word == "key":
        return names
    if len(names) != 1:
        raise ProgrammingError(f"{_shown(comment)}: {word} takes one name, not {len(names)}")
    if word == "colocate_with":
        return names[0]
    choices: type[TableKind] | type[ConstraintMode] = TableKind if word == "kind" else ConstraintMode
    try:
        return choices(fold(names[0]))
    except ValueError:
        known = ", ".join(choice.value for choice in choices)
        raise ProgrammingError(f"{_shown(comment)}: {word} must be one of {known}, not {names[0]}") from None


def _content(comment: str) -> str:
    """Return what stands in a comment, which may lack its end where the text ends."""
    if comment.startswith("--"):
        return comment[2:].replace("*/", "* /") + " "
    return comment[2:-2] if comment.endswith("*/") else comment[2:]


def _body(tokens: Sequence[Token]) -> tuple[int, int] | None:
    """Find the parentheses that hold the columns; None where there are none (CREATE TABLE AS, a virtual table)."""
    if [token.key for token in tokens[:2]] != ["CREATE", "TABLE"]:
        return None
    for position, token in enumerate(tokens):
        if token.is_word("AS", "SELECT", "WITH"):
            return None
        if token.key == "(":
            end = closing(tokens, position)
            return (position, end) if end < len(tokens) else None
    return None


def _written(name: str) -> str:
    return name if _PLAIN.match(name) else quote(name)


def _shown(comment: str) -> str:
    return " ".join(comment.split())
