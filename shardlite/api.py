"""The module-level API: the same as ShardManager, over one default manager of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardlite.config import check_seconds
from shardlite.errors import ProgrammingError
from shardlite.execute.result import Result
from shardlite.manager import ShardManager
from shardlite.router.table import Table

_lock = threading.Lock()
_manager: ShardManager | None = None


def initialize(**options: Any) -> ShardManager:
    """Open the default manager with ShardManager's options and return it.

    Raises ProgrammingError when there is one already: call ``shutdown()`` first.
    """
    global _manager
    with _lock:
        if _manager is not None:
            raise ProgrammingError(f"shardlite is initialized already ({_manager!r}): call shutdown() first")
        _manager = ShardManager(**options)
        return _manager


def get_manager() -> ShardManager:
    """Return the default manager. Raises ProgrammingError before ``initialize()``."""
    manager = _manager
    if manager is None:
        raise ProgrammingError("shardlite is not initialized: call shardlite.initialize(db_dir=...) first")
    return manager


def shutdown(timeout: float | None = None) -> None:
    """Close the default manager, if there is one."""
    global _manager
    if timeout is not None:
        check_seconds("timeout", timeout)
    with _lock:
        manager, _manager = _manager, None
    if manager is not None:
        manager.shutdown(timeout)


def create_table(ddl: str, shard_key: str | Sequence[str] | None = None, **options: Any) -> Table:
    """See ShardManager.create_table."""
    return get_manager().create_table(ddl, shard_key, **options)


def apply_schema(sql: str) -> None:
    """See ShardManager.apply_schema."""
    get_manager().apply_schema(sql)


def insert(table: str, row: Mapping[str, Any], key: Any = None) -> Any:
    """See ShardManager.insert."""
    return get_manager().insert(table, row, key)


def insert_many(table: str, rows: Any, **options: Any) -> int:
    """See ShardManager.insert_many."""
    return get_manager().insert_many(table, rows, **options)


def get(table: str, key: Any) -> dict[str, Any] | None:
    """See ShardManager.get."""
    return get_manager().get(table, key)


def select(table: str, where: Any = None, key: Any = None, **options: Any) -> list[dict[str, Any]]:
    """See ShardManager.select."""
    return get_manager().select(table, where, key, **options)


def update(table: str, set_values: Mapping[str, Any], where: Any = None, key: Any = None, **options: Any) -> int:
    """See ShardManager.update."""
    return get_manager().update(table, set_values, where, key, **options)


def delete(table: str, where: Any = None, key: Any = None, **options: Any) -> int:
    """See ShardManager.delete."""
    return get_manager().delete(table, where, key, **options)


def upsert(table: str, row: Mapping[str, Any], key: Any = None, conflict: str | Sequence[str] | None = None) -> Any:
    """See ShardManager.upsert."""
    return get_manager().upsert(table, row, key, conflict)


def aggregate(
    table: str,
    expressions: str | Sequence[str],
    where: Any = None,
    group_by: str | Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """See ShardManager.aggregate."""
    return get_manager().aggregate(table, expressions, where, group_by, **options)


def count(table: str, where: Any = None, **options: Any) -> int:
    """See ShardManager.count."""
    return get_manager().count(table, where, **options)


def execute(sql: str, parameters: Any = (), **options: Any) -> Result:
    """See ShardManager.execute."""
    return get_manager().execute(sql, parameters, **options)


def create_function(name: str, narg: int, func: Callable[..., Any] | None, *, deterministic: bool = False) -> None:
    """See ShardManager.create_function."""
    get_manager().create_function(name, narg, func, deterministic=deterministic)


def create_aggregate(name: str, n_arg: int, aggregate_class: Callable[[], Any] | None) -> None:
    """See ShardManager.create_aggregate."""
    get_manager().create_aggregate(name, n_arg, aggregate_class)


def create_window_function(name: str, num_params: int, aggregate_class: Callable[[], Any] | None) -> None:
    """See ShardManager.create_window_function."""
    get_manager().create_window_function(name, num_params, aggregate_class)


def create_collation(name: str, callable: Callable[[str, str], int] | None) -> None:
    """See ShardManager.create_collation."""
    get_manager().create_collation(name, callable)
