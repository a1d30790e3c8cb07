"""What may come out differently on each copy of a reference table: a random value, the time, an order nobody stated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shardlite.names import fold
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.functions import CLOCK, DATES, NO_FUNCTIONS, UserFunctions, not_shardable
from shardlite.sql.tokens import Text, TokenKind, constant_of, tokenize, words

_BEFORE_PARENTHESIS = words(
    """
    all and as between by case cast conflict distinct else escape except exists filter from glob having in intersect
    is join like limit match not offset on or over partition raise regexp returning select set then union using values
    when where
    """
)
"""Words that stand before a parenthesis and call no function."""


def shifts(column: Column) -> bool:
    """Tell whether a column's default may have another value each time that it is taken."""
    return column.default_sql is not None and constant_of(tokenize(column.default_sql).tokens) is None


def may_take_defaults(sql: str) -> bool:
    """Tell whether a statement may store a column's default: any INSERT, and what replaces rows (NULL becomes it)."""
    return bool(tokenize(sql).keywords() & {"INSERT", "REPLACE"})


def why_copies_differ(sql: str, registered: UserFunctions = NO_FUNCTIONS) -> str | None:
    """Return what in a statement of a trigger may do something else on each copy; None when there is nothing."""
    text = tokenize(sql)
    if "LIMIT" in text.keywords():
        return "LIMIT may choose other rows on each copy"
    functions = functions_called(text)
    # A value of a row may be 'now': dates are not told apart by their text here.
    found = next(iter(sorted(functions & (DATES | CLOCK))), None) or not_shardable(functions, text, registered)
    return f"{found}() may answer differently on each copy" if found is not None else None


def functions_called(text: Text) -> frozenset[str]:
    """Return the folded names of the functions called, CURRENT_TIMESTAMP and its like among them."""
    tokens = text.tokens
    found = set()
    for position, token in enumerate(tokens):
        name = token.name if token.kind in (TokenKind.WORD, TokenKind.QUOTED) else None
        if name is None:
            continue
        if token.kind is TokenKind.WORD and name in CLOCK:
            found.add(name)
        opens = position + 1 < len(tokens) and tokens[position + 1].key == "("
        called = token.kind is TokenKind.QUOTED or name not in _BEFORE_PARENTHESIS
        named = position > 0 and tokens[position - 1].key in ("INTO", "AS", ".")
        if opens and called and not named:
            found.add(name)
    return frozenset(found)


def unsteady_triggers(
    schema: Iterable[SchemaObject], tables: Mapping[str, Table], registered: UserFunctions
) -> Mapping[str, str]:
    """Return, for reference tables (folded names), which trigger calls a function that may differ on each copy.

    A trigger is looked at when it is created; here those are found whose functions were registered since, or otherwise.
    """
    found: dict[str, str] = {}
    for item in schema if registered.others else ():
        table = tables.get(fold(item.tbl_name)) if item.type == "trigger" else None
        called = functions_called(tokenize(item.sql)) & registered.others if table is not None else None
        if table is not None and table.kind is TableKind.REFERENCE and called:
            found[fold(table.name)] = (
                f"trigger {item.name} of the reference table {table.name} calls {min(called)}(), which was registered "
                "without deterministic=True and may do something else on each copy: register it as deterministic"
            )
    return found
