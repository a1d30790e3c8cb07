"""sqlglot's tree of a statement, for analysis only. sqlglot is imported when the first statement needs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardlite.sql.tokens import Text, Token, analysis_text

if TYPE_CHECKING:
    from sqlglot.expressions import Delete, Query, Update

_importing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Parsed:
    """The tree, and the literals that ``analysis_text`` took out."""

    tree: Query | Update | Delete
    literals: Mapping[str, Token]


def parse(text: Text) -> Parsed | None:
    """Return the statement's tree, or None for what sqlglot doesn't read as one query, UPDATE or DELETE."""
    if text.head in ("INSERT", "REPLACE"):
        return None  # sqlglot would log a warning of REPLACE, which it doesn't read
    with _importing:
        import sqlglot
        from sqlglot import errors, exp
    words, literals = analysis_text(text)
    try:
        trees: list[Any] = sqlglot.parse(words, dialect="sqlite")
    except (errors.SqlglotError, RecursionError, ValueError):
        return None
    if len(trees) != 1 or not isinstance(trees[0], (exp.Query, exp.Update, exp.Delete)):
        return None
    return Parsed(trees[0], literals)
