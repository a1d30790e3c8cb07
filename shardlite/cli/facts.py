"""What is where: the tables and shards of an open database, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardlite.manager import ShardManager
from shardlite.router.table import Table, TableKind


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table: its kind, its key, and its rows on each shard (of a reference table: the same on every one)."""

    name: str
    kind: TableKind
    key_columns: tuple[str, ...]
    rows: int
    rows_per_shard: tuple[int, ...]
    reason: str

    @property
    def skew(self) -> float | None:
        """The fullest shard's rows over the mean of all; 1.0 is even. None unless sharded and not empty."""
        if self.kind is not TableKind.SHARDED or not self.rows:
            return None
        return max(self.rows_per_shard) * len(self.rows_per_shard) / self.rows

    @property
    def placement(self) -> str:
        """``sharded by user_id``, ``reference`` or ``single``."""
        return f"sharded by {', '.join(self.key_columns)}" if self.key_columns else self.kind.value

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return {**asdict(self), "skew": self.skew}


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """One shard: its file, the file's size in bytes, and its rows."""

    number: int
    path: str
    size_bytes: int
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)


def shard_facts(info: Mapping[int, Mapping[str, Any]]) -> list[ShardFacts]:
    """Return the facts of each shard out of what ``get_shard_info()`` gives."""
    return [
        ShardFacts(number, str(entry["path"]), int(entry["size"]), sum(entry["tables"].values()))
        for number, entry in sorted(info.items())
    ]


def table_facts(manager: ShardManager, info: Mapping[int, Mapping[str, Any]]) -> list[TableFacts]:
    """Return the facts of each table, by name."""
    found = []
    for table in sorted(manager.tables.values(), key=lambda table: table.name):
        per_shard = [int(entry["tables"].get(table.name, 0)) for _, entry in sorted(info.items())]
        found.append(_facts_of(table, per_shard))
    return found


def _facts_of(table: Table, per_shard: Sequence[int]) -> TableFacts:
    rows = per_shard[0] if table.kind is TableKind.REFERENCE else sum(per_shard)
    return TableFacts(table.name, table.kind, table.key_columns, rows, tuple(per_shard), table.reason)


def strategy_facts(manager: ShardManager) -> dict[str, Any]:
    """Return the strategy's name and parameters."""
    strategy = manager.strategy
    return {"name": strategy.name, **strategy.parameters()}
