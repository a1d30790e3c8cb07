"""ORDER BY from column names, and what a merge of sorted shards must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import fold, quote
from shardlite.router.table import Table
from shardlite.sql.expressions import BUILT_IN_COLLATIONS, find_column


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

    @cached_property
    def hidden(self) -> str:
        """The columns that the merge needs, to go at the end of the SELECT list: ``, "a", "rowid"``."""
        return "".join(", " + quote(name) for name in self.columns)


def compile_order(table: Table, order_by: str | Sequence[str] | None) -> OrderSpec:
    """Return the order for ``order_by``: a column, ``"-column"`` (descending), or several in a list.

    None orders by rowid alone, as a scan of one file does. Raises ProgrammingError for an unknown column,
    NotSupportedError for a column whose collation isn't SQLite's own.
    """
    terms: list[tuple[str, bool, str]] = []
    seen: set[str] = set()
    wanted = order_by if isinstance(order_by, (list, tuple)) else () if order_by is None else (order_by,)
    for item in wanted:
        name, descending, collation = _term(table, item)
        if fold(name) not in seen:
            seen.add(fold(name))
            terms.append((name, descending, collation))
    terms.extend((name, False, collation) for name, collation in tie_break(table) if fold(name) not in seen)
    sql = ", ".join(quote(name) + (" DESC" if descending else "") for name, descending, _ in terms)
    return OrderSpec(
        sql=f"ORDER BY {sql}" if sql else "",
        columns=tuple(term[0] for term in terms),
        descending=tuple(term[1] for term in terms),
        collations=tuple(term[2] for term in terms),
        by_rowid=[term[:2] for term in terms] == [(table.rowid_name, False)],
    )


def tie_break(table: Table) -> tuple[tuple[str, str], ...]:
    """Return the columns, with collations, in whose order a scan of one file gives the rows."""
    if not table.without_rowid:
        return ((table.rowid_name, "BINARY"),) if table.rowid_name is not None else ()
    return tuple((name, table.by_name[fold(name)].collation) for name in table.primary_key)


def _term(table: Table, item: object) -> tuple[str, bool, str]:
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
    if column.collation.upper() not in BUILT_IN_COLLATIONS:
        raise NotSupportedError(
            f"order_by: column {column.name!r} of table {table.name!r} has the collation {column.collation!r}; "
            "shards can be merged by BINARY, NOCASE and RTRIM only"
        )
    return column.name, descending, column.collation.upper()
