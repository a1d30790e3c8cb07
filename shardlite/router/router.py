"""The Router: the manager's row methods under the names of routing, with the strategy in sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from shardlite.router.layout import Layout
from shardlite.router.strategies import ShardingStrategy, describe_strategy, resolve_strategy


class RoutedManager(Protocol):
    """What a Router needs of a manager."""

    @property
    def layout(self) -> Layout: ...

    def insert(self, table: str, row: Mapping[str, Any], key: Any = None) -> Any: ...

    def select(self, table: str, where: Any = None, key: Any = None, **options: Any) -> Any: ...

    def update(self, table: str, set_values: Mapping[str, Any], where: Any = None, key: Any = None) -> int: ...

    def delete(self, table: str, where: Any = None, key: Any = None) -> int: ...

    def aggregate(self, table: str, expression: Any, where: Any = None, group_by: Any = None) -> Any: ...

    def shard_for(self, table: str, key: Any) -> int: ...


class Router:
    """Route rows of a manager's tables. Safe for threads as the manager is.

    ``strategy`` states what the caller believes the layout to be: another one than the stored, or other parameters,
    is a LayoutMismatchError that names both.
    """

    def __init__(self, manager: Any, strategy: ShardingStrategy | None = None) -> None:
        self.manager: RoutedManager = manager
        if strategy is not None:
            stored = describe_strategy(self.manager.layout.strategy)
            resolve_strategy(stored["name"], stored["parameters"], strategy)

    @property
    def strategy(self) -> ShardingStrategy:
        """The strategy of the layout in force."""
        return self.manager.layout.strategy

    def shard_for(self, table: str, key: Any) -> int:
        """Return the shard that holds the rows of ``table`` with this key."""
        return self.manager.shard_for(table, key)

    def route_insert(self, table: str, row: Mapping[str, Any], key: Any = None) -> Any:
        """Insert a row on its key's shard; returns what ``manager.insert`` does."""
        return self.manager.insert(table, row, key)

    def route_select(self, table: str, where: Any = None, key: Any = None, **options: Any) -> Any:
        """Select rows, from one shard when the key or the condition pins it; as ``manager.select``."""
        return self.manager.select(table, where, key, **options)

    def route_update(self, table: str, set_values: Mapping[str, Any], where: Any = None, key: Any = None) -> int:
        """Update rows; as ``manager.update``."""
        return self.manager.update(table, set_values, where, key)

    def route_delete(self, table: str, where: Any = None, key: Any = None) -> int:
        """Delete rows; as ``manager.delete``."""
        return self.manager.delete(table, where, key)

    def route_aggregate(self, table: str, expression: Any, where: Any = None, group_by: Any = None) -> Any:
        """Aggregate over the shards; as ``manager.aggregate``."""
        return self.manager.aggregate(table, expression, where, group_by)

    def __repr__(self) -> str:
        return f"Router(shards={self.manager.layout.num_shards}, strategy={self.strategy!r})"
