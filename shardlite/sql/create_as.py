"""CREATE TABLE ... AS SELECT, as text (pure)."""

from __future__ import annotations

from shardlite.sql.hints import created_name
from shardlite.sql.tokens import tokens_of


def select_of(statement: str) -> str | None:
    """Return the query of a CREATE TABLE ... AS; None for any other statement."""
    if not created_name(statement):
        return None
    tokens = tokens_of(statement)
    at = next((i for i, token in enumerate(tokens) if token.key == "(" or token.is_word("AS", "USING")), len(tokens))
    if at + 1 >= len(tokens) or not tokens[at].is_word("AS"):
        return None
    return statement[tokens[at + 1].start :]
