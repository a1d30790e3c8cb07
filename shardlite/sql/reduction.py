"""Which rows of each table a query can't do without, joins taken into account (semi-join reduction).

The conditions on single tables (``filters.py``) come first. Then, from the smallest table to the largest, a table's
rows are held against those that its equal columns can meet in tables brought before: reference tables and colocated
tables are asked where the row is, others by their rows in the shared database. A row that meets none of them can't
reach the result. P. Bernstein, D.-M. Chiu: Using Semi-Joins to Solve Relational Queries (J. ACM 28, 1981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.cores import SHARED, Core, Item
from shardlite.sql.filters import any_of, conditions_of, mentions_of
from shardlite.sql.names_in import Edge, Mention, edges_of, only_asks
from shardlite.sql.pins import colocated
from shardlite.sql.statistics import SELECTIVITY, Prefixes, expected_rows
from shardlite.sql.tokens import Text, tokenize

OWNED = "_shardlite_owned"
"""The schema name under which each shard sees the rows that were sent to it alone."""
_EQUALITY = 4.0
"""SQLite takes a column without an index to equal a constant in every fourth row (whereLoopOutputAdjust)."""
MOST_SHARED_ROWS = 300_000
"""Rows up to which a table may stand in the shared database, which is held in memory."""


Place = tuple[str, str]
"""A table's column, both names folded."""


@dataclass(slots=True)
class Needed:
    """What has to come of one table. ``condition`` is text, "" for every row; ``level`` 0 is brought first."""

    table: Table
    condition: str = ""
    rows: float = 0.0
    """An estimate."""
    distinct: bool = False
    """It is only asked whether such rows are there: rows that are equal in the columns wanted count once."""
    shared: bool = False
    level: int = 0
    uses: set[str] = field(default_factory=set)
    """Tables of the shared database that the condition names."""
    weight: float = 1.0
    """By how much SQLite will think the rows fewer than those that come: it counts a condition again that made them
    so already, since the text still has it."""


class Reduction:
    """The rows that a query needs of each of its tables."""

    def __init__(
        self,
        texts: Sequence[tuple[Text, Sequence[Core]]],
        tables: Mapping[str, Table],
        wanted: list[Table],
        rows: Callable[[Table], int],
        registered: frozenset[str],
        *,
        closed: frozenset[str] = frozenset(),
        unshared: frozenset[str] = frozenset(),
        prefixes: Callable[[Table], Prefixes] = lambda table: {},
        inits: frozenset[str] = frozenset(),
    ) -> None:
        """``texts``: the statement, and the views that it uses.

        ``closed`` holds names that may mean something else than the table: all its rows are needed. ``unshared`` are
        tables that have to stand in the coordinator's own database, where a view or ``main.t`` looks for them.
        ``inits`` stand in the shared database already.
        """
        self._unshared = unshared
        self._inits = inits
        self._tables = tables
        self._places = {name: at for name, at in mentions_of(texts, tables).items() if name not in closed}
        self._own = {
            name: [conditions_of(text, core, item, tables, registered) for text, core, item in places]
            for name, places in self._places.items()
        }
        self._edges = [
            found for text, cores in texts for core in cores for found in edges_of(text, core, cores, tables)
        ]
        self.needed: dict[str, Needed] = {}
        self._rows = rows
        self._prefixes = prefixes
        todo = sorted(wanted, key=lambda table: (self._estimate(table), fold(table.name)))
        for table in todo:
            self._settle(table)
        self._mark_shared()

    def _estimate(self, table: Table) -> float:
        name = fold(table.name)
        count = float(max(1, self._rows(table)))
        own = self._own.get(name)
        if not own or not all(own):
            return count
        prefixes = self._prefixes(table)
        return min(count, sum(expected_rows(count, conditions, prefixes) for conditions in own))

    def _settle(self, table: Table) -> None:
        name = fold(table.name)
        made = self.needed[name] = Needed(table, rows=self._estimate(table))
        made.distinct = name in self._places and all(only_asks(text, core) for text, core, _ in self._places[name])
        places = self._places.get(name)
        if not places:
            return
        parts = []
        weights = []
        for (_, core, item), own in zip(places, self._own[name], strict=True):
            semi, through = self._semi_joins(table, core, item, made)
            parts.append([*(f"({text})" for text in own), *semi])
            weights.append((_EQUALITY if any(map(_is_equality, own)) else 1.0) * through)
        if all(parts):
            made.condition = any_of([" AND ".join(part) for part in parts])
            if made.uses or any(len(p) > len(o) for p, o in zip(parts, self._own[name], strict=True)):
                made.rows *= SELECTIVITY
            made.weight = min(weights)
        else:
            made.uses.clear()

    def _semi_joins(self, table: Table, core: Core, item: Item, made: Needed) -> tuple[list[str], float]:
        """Return what one mention's joins say of the table's rows, and the weight that this gives them."""
        found: list[str] = []
        weight = 1.0
        for edge, on in self._edges:
            mine, other = self._sides(edge, core, item)
            if mine is None or other is None or other.item.name == item.name:
                continue
            if item.join in ("left",) and on is not item and mine.core is other.core:
                continue  # a WHERE leaves no row of a LEFT JOIN's right side out
            if core.nested or core.outer_joins or other.core.nested or other.core.outer_joins:
                continue
            if on is not None and on is not item and on.join == "left":
                continue  # what another LEFT JOIN's ON says leaves no row of this table out
            text = self._semi_join(table, mine, other, made)
            if text is not None:
                if text not in found and other.item.name in self.needed:  # not the result of a subquery
                    weight *= self.needed[other.item.name].weight
                found.append(text)
        return found, weight

    @staticmethod
    def _sides(edge: Edge, core: Core, item: Item) -> tuple[Mention | None, Mention | None]:
        for mine, other in ((edge.left, edge.right), (edge.right, edge.left)):
            if mine.core is not core or mine.item is not item or not (edge.plain or mine is edge.left):
                continue
            # What stands inside says nothing of the rows around it, but for a subquery in which they must be found.
            if edge.into or not _is_inside(other.core, core):
                return mine, other
        return None, None

    def _semi_join(self, table: Table, mine: Mention, other: Mention, made: Needed) -> str | None:
        if other.item.name in self._inits:
            if self._rows(self._tables[other.item.name]) > made.rows * 0.5:
                return None
            return (
                f"{quote(table.name)}.{quote(mine.column.name)} "
                f"IN (SELECT {quote(other.column.name)} FROM {SHARED}.{other.item.name})"
            )
        there = self.needed.get(other.item.name)
        if there is None or not there.condition or there.rows > made.rows * 0.5 or there.table.virtual:
            return None
        if table.kind is TableKind.REFERENCE and there.table.kind is not TableKind.REFERENCE:
            return None  # it is asked where other tables' rows are, also before those come
        column = f"{quote(table.name)}.{quote(mine.column.name)}"
        theirs = quote(other.column.name)
        name = quote(there.table.name)
        if there.table.kind is TableKind.REFERENCE or share_a_shard(table, mine, there.table, other):
            made.uses |= there.uses
            return f"{column} IN (SELECT {theirs} FROM main.{name} WHERE {there.condition})"
        if there.rows > MOST_SHARED_ROWS or other.item.name in self._unshared:
            return None
        made.uses.add(other.item.name)
        return f"{column} IN (SELECT {theirs} FROM {SHARED}.{name})"

    def local_joins(self) -> list[tuple[str, str]]:
        """Return the pairs of tables (folded names) that are somewhere joined on equal keys, which share a shard."""
        found = []
        for edge, _ in self._edges:
            left, right = edge.left, edge.right
            one, other = self._tables.get(left.item.name), self._tables.get(right.item.name)
            if one is not None and other is not None and share_a_shard(one, left, other, right):
                found.append((left.item.name, right.item.name))
        return found

    def equal_columns(self) -> list[tuple[Place, Place]]:
        """Return the pairs of columns that are somewhere joined by equality of the values stored."""
        found = []
        for edge, _ in self._edges:
            left, right = edge.left, edge.right
            found.append(
                ((left.item.name, fold(left.column.name)), (right.item.name, fold(right.column.name))),
            )
        return found

    def with_used(self, names: set[str]) -> list[str]:
        """Return these tables and all that their conditions need in the shared database, by folded name."""
        found = set(names)
        todo = list(names)
        while todo:
            for name in self.needed[todo.pop()].uses - found:
                found.add(name)
                todo.append(name)
        return sorted(found)

    def _mark_shared(self) -> None:
        """Say which tables go to the shared database, and in which order."""
        for made in self.needed.values():
            for name in made.uses:
                self.needed[name].shared = True
        for made in self.needed.values():  # from the smallest: what is used comes before what uses it
            made.level = max((self.needed[name].level + 1 for name in made.uses), default=0)


def _is_equality(condition: str) -> bool:
    """Tell whether a condition is one of those that SQLite holds to leave few rows."""
    keys = [token.key for token in tokenize(condition).tokens]
    return sum(key in ("=", "==", "IS") for key in keys) == 1 and not {"AND", "OR", "NOT", "CASE"} & set(keys)


def _is_inside(core: Core, outer: Core) -> bool:
    """Tell whether one SELECT stands inside another: its rows say nothing of the outer's."""
    parent = core.parent
    while parent is not None:
        if parent is outer:
            return True
        parent = parent.parent
    return False


def share_a_shard(one: Table, mine: Mention, other: Table, theirs: Mention) -> bool:
    """Tell whether rows that are equal in these columns are sure to be on one shard."""
    if len(one.key_columns) != 1 or not colocated(one, other):
        return False
    return fold(one.key_columns[0]) == fold(mine.column.name) and fold(other.key_columns[0]) == fold(theirs.column.name)
