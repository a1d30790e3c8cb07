"""ORDER BY from column names, and what a merge of sorted shards must know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.table import Table
from shardlite.sql.expressions import BUILT_IN_COLLATIONS, find_column

Comparison = Callable[[str, str], int]
"""A collation that the user registered: it returns a negative number, 0 or a positive one."""

NO_COLLATIONS: Mapping[str, Comparison] = MappingProxyType({})


class SortTerm(NamedTuple):
    """One term of an order over rows that are at hand: which of their values it looks at, and how."""

    at: int
    """The index of the value in a row, from the end where it is negative."""
    collation: str
    """BINARY, NOCASE or RTRIM, or the folded name of one that the user registered."""
    descending: bool = False
    nulls_high: bool = False
    """NULLs are above all other values: NULLS LAST, or NULLS FIRST and descending."""
    integer: bool = False
    """All values are integers, as a rowid is."""
    swapped: bool = False
    """Text comes as its bytes, and a blob as a text, its bytes in hexadecimal digits: see ``swapped``."""


def swapped(sql: str) -> str:
    """Return an expression that sorts as ``sql`` does and can be read whatever bytes a text has.

    Python refuses text that is no Unicode; of what a result only sorts by, SQLite doesn't have to show any.
    """
    return f"CASE typeof({sql}) WHEN 'text' THEN CAST({sql} AS BLOB) WHEN 'blob' THEN hex({sql}) ELSE {sql} END"


@dataclass(frozen=True)
class OrderSpec:
    """An order over rows that ends with the rowid (or primary key), so that ties come out as from one file.

    Compose a shard's statement as ``SELECT <columns> {spec.hidden} FROM t ... {spec.sql}`` and give the rows to
    ``shardlite.execute.merge.merge_rows``, which takes the hidden columns off again.
    """

    sql: str
    """``ORDER BY "a" DESC, "rowid"``; empty when there is nothing to order by."""
    columns: tuple[str, ...]
    descending: tuple[bool, ...]
    collations: tuple[str, ...]
    by_rowid: bool = False
    """The order is the rowid alone, ascending: every key is an int that is not NULL."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict, compare=False)
    """How text is compared by the collations of ``collations`` that the user registered."""

    @cached_property
    def hidden(self) -> str:
        """The columns that the merge needs, to go at the end of the SELECT list: ``, "a", "rowid"``."""
        return "".join(", " + quote(name) for name in self.columns)

    @cached_property
    def terms(self) -> tuple[SortTerm, ...]:
        """What the merge compares: the hidden columns, from the end of a row."""
        width = len(self.columns)
        return tuple(
            SortTerm(index - width, self.collations[index], self.descending[index], integer=self.by_rowid)
            for index in range(width)
        )


def compile_order(
    table: Table, order_by: str | Sequence[str] | None, registered: Mapping[str, Comparison] = NO_COLLATIONS
) -> OrderSpec:
    """Return the order for ``order_by``: a column, ``"-column"`` (descending), or several in a list.

    None orders by rowid alone, as a scan of one file does. Raises ProgrammingError for an unknown column,
    NotSupportedError for a column whose collation is neither SQLite's own nor in ``registered`` (by folded name).
    """
    terms: list[tuple[str, bool, str]] = []
    seen: set[str] = set()
    wanted = order_by if isinstance(order_by, (list, tuple)) else () if order_by is None else (order_by,)
    for item in wanted:
        name, descending, collation = _term(table, item, registered)
        if fold(name) not in seen:
            seen.add(fold(name))
            terms.append((name, descending, collation))
    for name, collation in tie_break(table):
        if fold(name) not in seen:
            terms.append((name, False, _known(table, name, collation, registered)))
    sql = ", ".join(quote(name) + (" DESC" if descending else "") for name, descending, _ in terms)
    return OrderSpec(
        sql=f"ORDER BY {sql}" if sql else "",
        columns=tuple(term[0] for term in terms),
        descending=tuple(term[1] for term in terms),
        collations=tuple(term[2] for term in terms),
        by_rowid=[term[:2] for term in terms] == [(table.rowid_name, False)],
        comparisons={term[2]: registered[term[2]] for term in terms if term[2] in registered},
    )


def tie_break(table: Table) -> tuple[tuple[str, str], ...]:
    """Return the columns, with collations, in whose order a scan of one file gives the rows."""
    if not table.without_rowid:
        return ((table.rowid_name, "BINARY"),) if table.rowid_name is not None else ()
    return tuple((name, table.by_name[fold(name)].collation) for name in table.primary_key)


def _term(table: Table, item: object, registered: Mapping[str, Comparison]) -> tuple[str, bool, str]:
    if not isinstance(item, str) or not item:
        raise ProgrammingError(
            f"order_by of table {table.name!r} takes column names, '-column' for descending, not {item!r}"
        )
    # A column may itself be called "-x": the whole name is looked for first.
    descending = item.startswith("-") and fold(item) not in table.by_name
    name = item[1:] if descending else item
    column = find_column(table, name, "order_by")
    if column is None:
        return table.rowid_name or name, descending, "BINARY"
    return column.name, descending, _known(table, column.name, column.collation, registered)


def _known(table: Table, column: str, collation: str, registered: Mapping[str, Comparison]) -> str:
    """Return the name under which the merge knows a collation: a built-in one in capitals, another one folded."""
    if collation.upper() in BUILT_IN_COLLATIONS:
        return collation.upper()
    if fold(collation) in registered:
        return fold(collation)
    raise NotSupportedError(
        f"order_by: column {column!r} of table {table.name!r} has the collation {collation!r}, by which shards can't "
        "be merged: register it with manager.create_collation (BINARY, NOCASE and RTRIM are SQLite's own)"
    )
