"""Which shard holds a key: keys, strategies, the layout and the catalog that stores it."""

from __future__ import annotations

from shardlite.router.catalog import Catalog, CatalogChange, CatalogState
from shardlite.router.catalog_file import Job, SchemaObject
from shardlite.router.fence import Fence
from shardlite.router.introspect import TableFacts, describe, table_names
from shardlite.router.keys import Affinity, KeyType, affinity_of, apply_affinity, slot_of, sort_key
from shardlite.router.layout import Layout
from shardlite.router.router import Router
from shardlite.router.sequences import Sequence
from shardlite.router.strategies import (
    DirectoryStrategy,
    HashStrategy,
    RangeStrategy,
    ShardingStrategy,
    register_strategy,
)
from shardlite.router.table import Column, ConstraintMode, ForeignKey, Table, TableKind, UniqueConstraint

__all__ = [
    "Affinity",
    "Catalog",
    "CatalogChange",
    "CatalogState",
    "Column",
    "ConstraintMode",
    "DirectoryStrategy",
    "Fence",
    "ForeignKey",
    "HashStrategy",
    "Job",
    "KeyType",
    "Layout",
    "RangeStrategy",
    "Router",
    "SchemaObject",
    "Sequence",
    "ShardingStrategy",
    "Table",
    "TableFacts",
    "TableKind",
    "UniqueConstraint",
    "affinity_of",
    "apply_affinity",
    "describe",
    "register_strategy",
    "slot_of",
    "sort_key",
    "table_names",
]
