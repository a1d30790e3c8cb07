"""Subqueries in the expressions of a text, and how a text reads the result of one that was evaluated before.

Such a result is a table of the shared database; ``(SELECT +_shardlite_0 FROM _shardlite_shared._shardlite_init_0)``
stands for the subquery then. No name of a user's begins like that, so the tokens alone tell it from a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shardlite.sql.cores import Core, Span
from shardlite.sql.tokens import Text, Token, closing

INIT = "_shardlite_init_"
"""What the names of the tables begin with."""


class Asked(StrEnum):
    """What is asked of a subquery."""

    ROW = "its first row"
    ROWS = "its rows"
    EXISTENCE = "whether it has a row"


@dataclass(frozen=True, slots=True)
class Subquery:
    """A query in parentheses inside an expression. ``span``: with the parentheses; ``around``: the SELECT around it."""

    span: Span
    asked: Asked
    around: Core | None

    @property
    def inner(self) -> Span:
        """The query without its parentheses."""
        return Span(self.span.start + 1, self.span.end - 1)


def init_end(tokens: Sequence[Token], position: int) -> int:
    """Return the position after the reading of a result that begins at a position; 0 where there is none."""
    if tokens[position].key == "EXISTS":
        position += 1
    if position + 1 >= len(tokens) or tokens[position].key != "(" or tokens[position + 1].key != "SELECT":
        return 0
    end = closing(tokens, position)
    if end >= len(tokens) or not tokens[end - 1].text.startswith(INIT):
        return 0
    return 0 if any(token.key in ("(", "SELECT") for token in tokens[position + 2 : end]) else end + 1


def subqueries_of(text: Text, cores: Sequence[Core]) -> list[Subquery]:
    """Return the subqueries in expressions, each before those inside of it. Those of FROM and WITH are left out."""
    tokens = text.tokens
    found = []
    for position in range(1, len(tokens) - 1):
        if tokens[position].key != "(" or tokens[position + 1].key not in ("SELECT", "WITH"):
            continue
        end = closing(tokens, position)
        around = innermost(cores, position)
        if tokens[position - 1].key in ("AS", "MATERIALIZED") or end >= len(tokens) or in_from(around, position):
            continue
        asked = {"IN": Asked.ROWS, "EXISTS": Asked.EXISTENCE}.get(tokens[position - 1].key, Asked.ROW)
        found.append(Subquery(Span(position, end + 1), asked, around))
    return found


def innermost(cores: Sequence[Core], position: int) -> Core | None:
    """Return the innermost SELECT in which a position stands. (Its ORDER BY and LIMIT are outside of it.)"""
    holding = [core for core in cores if core.span.start <= position < core.span.end]
    return min(holding, key=lambda core: core.span.end - core.span.start, default=None)


def in_from(core: Core | None, position: int) -> bool:
    """Tell whether a position stands in a SELECT's FROM, and not in a condition of its joins."""
    if core is None or core.from_ is None or not core.from_.start <= position < core.from_.end:
        return False
    return not any(item.on is not None and item.on.start <= position < item.on.end for item in core.items)
