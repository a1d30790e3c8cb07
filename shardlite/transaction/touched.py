"""What a transaction touched: keys of rows, by shard and table.

Too many keys are harmless, one too few is a lost row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from shardlite.errors import ProgrammingError
from shardlite.names import fold
from shardlite.transaction.values import Value

Key = int | tuple[Value, ...]
"""A rowid, or the values of the key columns of a table WITHOUT ROWID, in the primary key's order."""


class TouchedTable:
    """The keys of one table on one shard, some of them perhaps several times. Belongs to one thread."""

    __slots__ = ("keys", "name", "rowids", "whole")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rowids = array("q")
        self.keys: list[tuple[Value, ...]] = []
        self.whole = False
        """All rows are touched, whatever the keys say."""

    def add(self, keys: Iterable[Key]) -> None:
        """Note keys. Raises ProgrammingError for one that is neither a rowid nor a tuple."""
        for key in keys:
            if isinstance(key, tuple):
                self.keys.append(key)
                continue
            try:
                self.rowids.append(key)
            except (TypeError, OverflowError) as error:
                raise ProgrammingError(
                    f"{self.name}: a touched row is named by its rowid or by a tuple of key columns, not by {key!r}"
                ) from error

    def merge(self, other: TouchedTable) -> None:
        """Take over what another one holds."""
        self.rowids.extend(other.rowids)
        self.keys.extend(other.keys)
        self.whole = self.whole or other.whole


class Touched:
    """The rows that a transaction touched, by shard and table. Belongs to the transaction's thread.

    A table that is named without a key counts too: where it is AUTOINCREMENT its sequence may have moved, also by an
    INSERT OR IGNORE that inserted nothing.
    """

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: dict[int, dict[str, TouchedTable]] = {}

    def _table(self, shard: int, table: str) -> TouchedTable:
        tables = self._shards.setdefault(shard, {})
        name = fold(table)
        found = tables.get(name)
        if found is None:
            found = tables[name] = TouchedTable(table)
        return found

    def add(self, shard: int, table: str, keys: Iterable[Key] = ()) -> None:
        """Note rows of a table: rowids, or tuples of key columns. Raises ProgrammingError for another kind of key."""
        self._table(shard, table).add(keys)

    def whole(self, shard: int, table: str) -> None:
        """Note all rows of a table, those that are gone too."""
        self._table(shard, table).whole = True

    def merge(self, other: Touched) -> None:
        """Take over what another one holds."""
        for shard in other.shards:
            for theirs in other.on(shard):
                self._table(shard, theirs.name).merge(theirs)

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards where something was touched, ascending."""
        return tuple(sorted(self._shards))

    def on(self, shard: int) -> Sequence[TouchedTable]:
        """Return what was touched on one shard, by the tables' folded names."""
        tables = self._shards.get(shard, {})
        return [tables[name] for name in sorted(tables)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.shards)

    def __bool__(self) -> bool:
        return bool(self._shards)
