"""Reading CREATE TABLE as text: where its foreign-key clauses stand, so that a shard's copy can go without some (pure).

SQLite enforces all foreign keys of a connection or none. A key whose parent may live on another shard must
therefore not stand in a shard's own definition; the catalog keeps the text as the user wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.table import ForeignKey
from shardlite.sql.tokens import Token, TokenKind, tokens_of


def without_foreign_keys(ddl: str, unwanted: Sequence[ForeignKey]) -> str:
    """Return the CREATE TABLE without the clauses of ``unwanted``; all else stays as written."""
    if not unwanted:
        return ddl
    tokens = tokens_of(ddl)
    spans: list[tuple[int, int]] = []
    wanted_out = {(tuple(map(fold, key.columns)), fold(key.parent)) for key in unwanted}
    for first, last, columns, parent in _clauses(tokens):
        if (tuple(map(fold, columns)), fold(parent)) in wanted_out:
            spans.append((tokens[first].start, tokens[last].end))
    if len(spans) < len(wanted_out):
        raise NotSupportedError(f"can't find the foreign keys to leave out in: {ddl}")
    for start, end in reversed(spans):
        ddl = ddl[:start] + ddl[end:]
    return ddl


def _clauses(tokens: Sequence[Token]) -> list[tuple[int, int, list[str], str]]:
    """Find the foreign-key clauses: (first token, last token, child columns, parent)."""
    found = []
    body = next((i for i, token in enumerate(tokens) if token.key == "("), len(tokens))
    depth, column, at_item_start = 0, "", False
    i = body
    while i < len(tokens):
        token = tokens[i]
        if token.key in ("(", ")", ","):
            depth += (token.key == "(") - (token.key == ")")
            at_item_start = depth == 1 and token.key != ")"
            i += 1
            continue
        if depth == 1 and token.is_word("FOREIGN") and tokens[i + 1].is_word("KEY"):
            names, after = _name_list(tokens, i + 2)
            last = _end_of_references(tokens, after)
            first = _with_constraint_name(tokens, i)
            first -= tokens[first - 1].key == ","
            found.append((first, last, names, tokens[after + 1].value))
            i, at_item_start = last + 1, False
            continue
        if depth == 1 and token.is_word("REFERENCES"):
            last = _end_of_references(tokens, i)
            found.append((_with_constraint_name(tokens, i), last, [column], tokens[i + 1].value))
            i = last + 1
            continue
        if at_item_start:
            column, at_item_start = token.value, False
        i += 1
    return found


@dataclass(frozen=True, slots=True)
class ConflictClause:
    """One ON CONFLICT of a CREATE TABLE."""

    constraint: str
    """NULL (for NOT NULL), UNIQUE, KEY (for PRIMARY KEY) or CHECK."""
    columns: tuple[str, ...]
    """Folded."""
    action: str


def conflict_clauses(ddl: str) -> list[ConflictClause]:
    """Find what a CREATE TABLE says of conflicts: ROLLBACK, ABORT, FAIL, IGNORE or REPLACE for each constraint."""
    tokens = tokens_of(ddl)
    found: list[ConflictClause] = []
    depth, column, constraint = 0, "", ""
    listed: list[str] = []
    for position, token in enumerate(tokens):
        if token.key in ("(", ")"):
            depth += 1 if token.key == "(" else -1
            if token.key == "(" and depth == 2:
                listed = []
        elif depth == 2 and token.name is not None:
            listed.append(token.name)
        if depth != 1:
            continue
        if position and tokens[position - 1].key in ("(", ","):
            column, listed = fold(token.value), []
        if token.is_word("NULL", "UNIQUE", "KEY", "CHECK"):
            constraint, listed = token.key, []
        whole = constraint in ("UNIQUE", "KEY") and bool(listed)
        if token.is_word("CONFLICT") and tokens[position - 1].is_word("ON") and position + 1 < len(tokens):
            names = tuple(listed) if whole else (column,)
            found.append(ConflictClause(constraint, names, tokens[position + 1].key))
    return found


def _with_constraint_name(tokens: Sequence[Token], at: int) -> int:
    """Step back over ``CONSTRAINT name`` where it stands before the clause."""
    return at - 2 if at >= 2 and tokens[at - 2].is_word("CONSTRAINT") else at


def _name_list(tokens: Sequence[Token], at: int) -> tuple[list[str], int]:
    """Read ``(a, b)`` at ``at``; return the names and the index behind it."""
    names = []
    i = at + 1
    while tokens[i].key != ")":
        if tokens[i].key != ",":
            names.append(tokens[i].value)
        i += 1
    return names, i + 1


def _end_of_references(tokens: Sequence[Token], at: int) -> int:
    """Return the index of the last token of the REFERENCES clause that begins at ``at``."""
    i = at + 2
    if i < len(tokens) and tokens[i].key == "(":
        i = _name_list(tokens, i)[1]
    while i < len(tokens):
        token = tokens[i]
        if token.is_word("ON"):
            i += 4 if tokens[i + 2].is_word("SET", "NO") else 3
        elif token.is_word("MATCH"):
            i += 2
        elif token.is_word("NOT") and tokens[i + 1].is_word("DEFERRABLE"):
            i += 1
        elif token.is_word("DEFERRABLE"):
            i += 3 if i + 1 < len(tokens) and tokens[i + 1].is_word("INITIALLY") else 1
        else:
            break
    return i - 1


def shift_numbered(sql: str, by: int) -> str:
    """Add ``by`` to the number of every ``?NNN`` parameter, for text that is put behind ``by`` other parameters."""
    for token in reversed(tokens_of(sql)):
        if token.kind is TokenKind.PARAMETER and token.text[0] == "?" and len(token.text) > 1:
            sql = f"{sql[: token.start]}?{token.index + by}{sql[token.end :]}"
    return sql
