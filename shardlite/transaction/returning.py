"""Finding the rows that a statement touches by its own RETURNING, where it can't touch others."""

from __future__ import annotations

from collections.abc import Sequence

from shardlite.driver import sqlite3
from shardlite.names import fold
from shardlite.router.table import ROWID_NAMES
from shardlite.sql.cores import top_positions
from shardlite.sql.tokens import Token, closing, tokenize
from shardlite.transaction.definition import TableDefinition

_VERBS = ("INSERT", "REPLACE", "UPDATE", "DELETE")
_AFTER_SET = ("WHERE", "FROM", "RETURNING", "ORDER", "LIMIT", "ON")
_KEEPS_OR_REPLACES = ("REPLACE", "FAIL")
_UNDONE = frozenset(
    (
        sqlite3.SQLITE_CONSTRAINT_CHECK,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
        sqlite3.SQLITE_CONSTRAINT_NOTNULL,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    )
)


def is_plain(text: str, table: TableDefinition) -> bool:
    """Tell whether ``with_returning`` finds every row that an INSERT, UPDATE or DELETE of this table touches.

    The table must be plain, no row may be pushed out (OR REPLACE), none kept by a statement that fails (OR FAIL gives
    no rows then), and none renamed: the text assigns no rowid.
    """
    if not table.plain:
        return False
    tokens = tokenize(text).tokens
    top = list(top_positions(tokens))
    verb = next((at for at in top if tokens[at].key in _VERBS), None)
    if verb is None or tokens[verb].key == "REPLACE":
        return False
    if _key(tokens, verb + 1) == "OR" and _key(tokens, verb + 2) in _KEEPS_OR_REPLACES:
        return False
    rowids = {fold(name) for name in (*table.keys, *ROWID_NAMES)}
    return not rowids & _assigned(tokens, top)


def with_returning(text: str, table: TableDefinition) -> str:
    """Return the text with the touched row's rowid as its last RETURNING column, behind those of its own.

    Fetch all rows: SQLite makes all changes before it gives the first one. ``executemany`` throws them away. After an
    error ask ``keeps_rows``.
    """
    tokens = tokenize(text).tokens
    top = list(top_positions(tokens))
    verb = next((tokens[at].key for at in top if tokens[at].key in _VERBS), "")
    own = any(tokens[at].key == "RETURNING" for at in top)
    end = len(tokens)
    if verb in ("UPDATE", "DELETE"):  # their ORDER BY and LIMIT come after RETURNING
        end = next((at for at in top if tokens[at].key in ("ORDER", "LIMIT")), end)
    start, stop = tokens[0].start, tokens[-1].end
    cut = tokens[end - 1].end
    # The sign: where the first column is REAL, SQLite 3.40 makes a float of a bare rowid in RETURNING.
    added = f"{', ' if own else ' RETURNING '}+{table.key_terms[0]}"
    return f"{text[start:cut]}{added}{text[cut:stop]}"


def keeps_rows(error: sqlite3.Error) -> bool:
    """Tell whether a statement that failed so may have left changes behind: then the whole table is touched.

    SQLite undoes a statement that meets one of these constraints (a plain one has no OR FAIL). For another error (a
    datatype mismatch, also one that STRICT finds, a function that fails, a value that is too long) it does so only
    where such a constraint might have stopped it as well, and an error of reading what RETURNING gives undoes nothing.
    """
    return getattr(error, "sqlite_errorcode", 0) not in _UNDONE


def _assigned(tokens: Sequence[Token], top: Sequence[int]) -> set[str]:
    """Return the folded names that a SET outside of parentheses assigns."""
    found: set[str] = set()
    left = False
    for place, at in enumerate(top):
        key = tokens[at].key
        if key == "SET":
            left = True
        elif left and key == "=":
            first = top[place - 1]
            last = closing(tokens, first) if tokens[first].key == "(" else first  # (a, b) = (...)
            found.update(token.name or "" for token in tokens[first : last + 1])
            left = False
        elif key == ",":
            left = _in_set(tokens, top[:place])
        elif key in _AFTER_SET:
            left = False
    return found


def _in_set(tokens: Sequence[Token], before: Sequence[int]) -> bool:
    """Tell whether the last clause that began before is a SET."""
    for at in reversed(before):
        if tokens[at].key in _AFTER_SET:
            return False
        if tokens[at].key == "SET":
            return True
    return False


def _key(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].key if at < len(tokens) else ""
