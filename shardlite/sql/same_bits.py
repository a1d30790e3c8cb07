"""Whether a sum that is computed in one place may be compared with the same sum that is computed in another.

REAL sums depend on the order in which they are added. One file computes both in the same order, so that
``total = (SELECT max(total) FROM totals)`` finds its row; a subquery that is evaluated by itself may not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from shardlite.sql.clauses import render, top
from shardlite.sql.cores import Core, Span, conjuncts
from shardlite.sql.functions import AGGREGATES
from shardlite.sql.inits import Asked, Subquery, in_from, subqueries_of
from shardlite.sql.names_in import cte_names
from shardlite.sql.statement import Statement
from shardlite.sql.tokens import Token, TokenKind, closing, number_of

BY_ORDER = AGGREGATES - {"count"}
"""Aggregates whose last digits, or whose order, depend on the order of the rows."""
_KIN: Mapping[str, frozenset[str]] = {
    **{name: BY_ORDER - {"sum", "total", "avg"} for name in BY_ORDER},
    "sum": frozenset(("sum", "total")),
    "total": frozenset(("sum", "total")),
    "avg": frozenset(("avg",)),
}


def may_meet_itself(statement: Statement, subquery: Subquery, query: Statement) -> bool:
    """Tell whether a subquery's sum may be compared with a sum of the same numbers that is computed elsewhere.

    Both would have to be added in one order. What WHERE and ON compare it with are stored values, unless a query or a
    view in FROM computed them; HAVING and a result column have sums of their own.
    """
    if _is_scaled(statement, subquery, query):
        return False
    tokens, around = statement.text.tokens, subquery.around
    at = subquery.span.start
    region = Span(0, len(tokens))
    if around is not None:
        conditions = [span for span in (around.where, *(item.on for item in around.items)) if span is not None]
        holding = [part for span in conditions if span.start <= at < span.end for part in conjuncts(tokens, span)]
        holding = [part for part in holding if part.start <= at < part.end]
        if holding:
            region = holding[0]
        elif around.parent is None and not around.distinct and _is_alone(statement):
            if around.having is not None and around.having.start <= at < around.having.end:
                region = Span(around.columns.start, around.having.end)
            elif around.columns.start <= at < around.columns.end:
                region = _output(statement, around, at)
    if region == Span(0, len(tokens)) and statement.views:
        return True
    return _sees_computed(statement, around) or _are_kin(statement, subquery, query, region)


def _are_kin(statement: Statement, subquery: Subquery, query: Statement, region: Span) -> bool:
    """Tell whether aggregates in a part of the text may give, to the bit, what a subquery of it gives."""
    text = statement.text
    # The same text is computed once.
    same = [
        other.span
        for other in subqueries_of(text, statement.cores)
        if other.asked is subquery.asked and render(text, other.inner) == query.sql
    ]
    own = text.tokens[slice(*subquery.span)]
    others = [text.tokens[at] for at in range(*region) if not any(span.start <= at < span.end for span in same)]
    mine, theirs = _called(own), _called(others)
    if query.views or len(query.cores) > 1 or _sees_computed(query, query.cores[0] if query.cores else None):
        return bool(theirs)  # which of its sums reaches the comparison isn't looked at
    if any(name in _KIN[other] for name in mine for other in theirs):
        pass
    elif not theirs or not any(token.key in ("*", "/") for token in (*own, *others)):
        return False  # a sum and an average
    # Elsewhere in the statement a column may have another name.
    return region == Span(0, len(text.tokens)) or bool(_arguments(own) & _arguments(others))


def _called(tokens: Sequence[Token]) -> set[str]:
    """Return the aggregates that are called whose value depends on the order of the rows."""
    return {
        token.name
        for token, after in pairwise(tokens)
        if token.name is not None and token.name in BY_ORDER and after.key == "("
    }


def _arguments(tokens: Sequence[Token]) -> set[str]:
    """Return the names in their arguments."""
    found: set[str] = set()
    for at in range(len(tokens) - 1):
        if tokens[at].name in BY_ORDER and tokens[at + 1].key == "(":
            found |= {token.name for token in tokens[at + 2 : closing(tokens, at + 1)] if token.name is not None}
    return found


def _is_alone(statement: Statement) -> bool:
    return sum(core.parent is None for core in statement.cores) == 1


def _output(statement: Statement, core: Core, at: int) -> Span:
    """Return the result column that holds a position."""
    tokens = statement.text.tokens
    commas = [i for i in top(tokens, core.columns) if tokens[i].key == ","]
    start = max((i + 1 for i in commas if i < at), default=core.columns.start)
    return Span(start, min((i for i in commas if i > at), default=core.columns.end))


def _sees_computed(statement: Statement, core: Core | None) -> bool:
    """Tell whether something else than a table stands in the FROM of a SELECT, or of one whose columns it sees."""
    ctes = cte_names(statement.text)
    while core is not None:
        for item in core.items:
            if item.name not in statement.schema.tables or item.name in ctes or item.function:
                return True
        if core.nested:
            return True
        parent = core.parent
        core = None if in_from(parent, core.span.start) else parent
    return False


def _is_scaled(statement: Statement, subquery: Subquery, query: Statement) -> bool:
    """Tell whether the subquery's value is a product with a number by which nothing else is multiplied."""
    tokens = query.text.tokens
    outer = [core for core in query.cores if core.parent is None]
    if len(outer) != 1 or subquery.asked is not Asked.ROW:
        return False
    places = list(top(tokens, outer[0].columns))
    operators = {tokens[at].key for at in places if tokens[at].kind is TokenKind.OPERATOR} - {"(", ")", "."}
    factors = [tokens[at].text for at in places if tokens[at].kind is TokenKind.NUMBER]
    if operators != {"*"} or len(factors) != 1 or number_of(factors[0]) in (None, 0, 1):
        return False
    outside = (*statement.text.tokens[: subquery.span.start], *statement.text.tokens[subquery.span.end :])
    return all(token.text != factors[0] for token in outside)
