"""One epoch's view of the schema and the layout, with what was derived from it.

Replaced whole when the epoch moves, or when the user registers a function or collation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from shardlite.errors import NotSupportedError, ProgrammingError, RoutingError
from shardlite.execute.attached import AttachedFile
from shardlite.execute.registry import NOTHING, Registered
from shardlite.names import fold, is_reserved
from shardlite.router.layout import Layout
from shardlite.router.table import Table, TableKind

HOME_SHARD = 0
KEY_STORE_PREFIX = "_shardlite_key_"


class State:
    """Tables and routes of one epoch. Shared by threads: entries are added, never changed."""

    __slots__ = (
        "_routes",
        "attached",
        "deferred",
        "epoch",
        "gets",
        "inserts",
        "layout",
        "registered",
        "stays",
        "tables",
        "unsteady",
    )

    def __init__(
        self,
        epoch: int,
        layout: Layout,
        tables: Mapping[str, Table],
        deferred: tuple[str, ...],
        registered: Registered = NOTHING,
        unsteady: Mapping[str, str] = MappingProxyType({}),
        attached: tuple[AttachedFile, ...] = (),
    ) -> None:
        self.epoch = epoch
        self.layout = layout
        self.tables = tables
        self.deferred = deferred
        """Names of the tables with a deferred foreign key."""
        self.registered = registered
        """The user's functions and collations, which every connection has that is taken from now on."""
        self.unsteady = unsteady
        """Folded name of a reference table -> why a change of its rows may do something else on each copy."""
        self.attached = attached
        """The files attached beside the shards, in the order of attaching."""
        self._routes: dict[str, Callable[[Any], int]] = {}
        self.inserts: dict[Any, Any] = {}
        """Insert plans by (table, columns of the row, whether a key is given)."""
        self.gets: dict[str, Any] = {}
        """Get plans by the table's name as the caller writes it."""
        self.stays: set[Any] = set()
        """Forms of update, delete and upsert of which it is known that no foreign key's action changes a shard key."""

    def table(self, name: str) -> Table:
        """Return the table. Raises ProgrammingError when there is none of that name."""
        try:
            return self.tables[fold(name)]
        except (KeyError, AttributeError, TypeError):
            if not isinstance(name, str):
                raise ProgrammingError(f"a table's name must be a str, not {name!r}") from None
            known = ", ".join(sorted(table.name for table in self.tables.values())) or "none yet"
            raise ProgrammingError(f"no such table: {name} (there are: {known})") from None

    def require_steady(self, table: Table) -> None:
        """Raise NotSupportedError when a change of this table's rows may do something else on each copy of it."""
        if self.unsteady and fold(table.name) in self.unsteady:
            raise NotSupportedError(self.unsteady[fold(table.name)])

    def route(self, table: Table) -> Callable[[Any], int]:
        """Return the function from a key's value to the shard of ``table`` that holds it."""
        try:
            return self._routes[table.name]
        except KeyError:
            pass
        made = self.layout.shard_of(table.key_type) if table.kind is TableKind.SHARDED else _home
        return self._routes.setdefault(table.name, made)

    def key_columns(self, table: Table) -> tuple[str, ...]:
        """Return the columns that ``key=`` speaks of: the shard key, or the primary key of a table kept whole."""
        return table.key_columns if table.sharded else table.primary_key


def _home(_key: Any) -> int:
    return HOME_SHARD


def key_store_of(table: Table) -> str:
    """Name the table that remembers the explicit keys of a table's rows."""
    return KEY_STORE_PREFIX + table.name


def key_parts(table: Table, columns: tuple[str, ...], key: Any) -> tuple[Any, ...]:
    """Split a key into one value for each key column. Raises RoutingError when it has another number of parts."""
    if len(columns) == 1:
        if isinstance(key, (tuple, list, dict, set)):
            raise RoutingError(f"{table.name}: the key is one value ({columns[0]}), not {key!r}")
        return (key,)
    if not isinstance(key, (tuple, list)) or len(key) != len(columns):
        raise RoutingError(f"{table.name}: the key is a tuple of ({', '.join(columns)}), not {key!r}")
    return tuple(key)


def require_user_name(name: str) -> None:
    """Raise ProgrammingError for a name that is shardlite's own."""
    if is_reserved(name):
        raise ProgrammingError(f"names that begin with _shardlite_ are shardlite's own: {name}")
