"""What is where: figures of each shard and of the whole."""

from __future__ import annotations

import os
from typing import Any

from shardlite.execute.database import Database
from shardlite.names import quote


def _size(path: str) -> int:
    """Return a file's size in bytes, 0 when it is not there. By path: a descriptor would drop SQLite's locks."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def shard_info(database: Database) -> dict[int, dict[str, Any]]:
    """Return what is on each shard: path, bytes, the tables with their rows, and the rows in all."""
    state = database.current()
    info: dict[int, dict[str, Any]] = {}
    for shard in database.shards:
        tables: dict[str, int] = {}
        with shard.reading() as conn:
            conn.run("BEGIN")
            for table in state.tables.values():
                row = conn.fetch_row(f"SELECT count(*) FROM {quote(table.name)}")
                tables[table.name] = int(row[0]) if row is not None else 0
            conn.run("ROLLBACK")
        info[shard.id] = {
            "path": shard.name,
            "size": _size(shard.name),
            "wal_size": _size(f"{shard.name}-wal"),
            "tables": tables,
            "rows": sum(tables.values()),
        }
    return info


def shard_stats(database: Database) -> dict[str, Any]:
    """Return figures of the whole: rows and their skew, pools, checkpoints."""
    info = shard_info(database)
    state = database.current()
    sharded = [table.name for table in state.tables.values() if table.sharded]
    rows = [sum(shard["tables"][name] for name in sharded) for shard in info.values()]
    mean = sum(rows) / len(rows)
    pools = {shard.id: shard.pool.get_pool_stats() for shard in database.shards}
    return {
        "num_shards": len(database.shards),
        "strategy": database.layout.strategy.name,
        "epoch": state.epoch,
        "total_rows": sum(shard["rows"] for shard in info.values()),
        "total_size": sum(shard["size"] for shard in info.values()),
        "sharded_rows": dict(zip(info, rows, strict=True)),
        "skew": max(rows) / mean if mean else 1.0,
        "tables": {
            table.name: {
                "kind": table.kind.value,
                "key": list(table.key_columns),
                "rows": _rows(table.kind.value, [shard["tables"][table.name] for shard in info.values()]),
            }
            for table in state.tables.values()
        },
        "shards": info,
        "pools": pools,
        "open_connections": sum(pool["pool_size"] for pool in pools.values()),
        "wal_sizes": {shard: figures["wal_size"] for shard, figures in info.items()},
    }


def _rows(kind: str, counts: list[int]) -> int:
    """Return a table's rows: a reference table's copies count once."""
    return counts[0] if kind == "reference" else sum(counts)
