"""What ANALYZE would say of one file, from what it says of each shard (pure).

``sqlite_stat1`` holds for an index "rows, rows per value of the first column, of the first two, ...". The number of
rows adds up. Values of columns that hold the shard key live on one shard each, so their numbers add up too; of others
there are at least as many as on the shard that has the most: what one file would say lies below, and it is an
estimate there as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from shardlite.names import fold
from shardlite.router.table import Table

Row = tuple[str, str | None, str]
"""A row of ``sqlite_stat1``: table, index (None: the table has none), statistics."""


def merged_statistics(
    found: Iterable[tuple[int, Row]], tables: Mapping[str, Table], columns: Mapping[str, Sequence[str | None]]
) -> list[Row]:
    """Merge the shards' statistics.

    :param found: (shard, row), the shards in order.
    :param tables: by folded name; what is no sharded table is taken from shard 0.
    :param columns: the columns of each index, None for an expression.
    """
    texts: dict[tuple[str, str | None], list[str]] = {}
    for shard, (name, index, stat) in found:
        table = tables.get(fold(name))
        if shard == 0 or (table is not None and table.sharded):
            texts.setdefault((name, index), []).append(stat)
    merged = []
    for (name, index), stats in texts.items():
        table = tables.get(fold(name))
        keys = set(map(fold, table.key_columns)) if table is not None and table.key_columns else None
        merged.append((name, index, _merge(stats, columns.get(index or "", ()), keys)))
    return merged


def _merge(stats: Sequence[str], columns: Sequence[str | None], keys: set[str] | None) -> str:
    if len(stats) == 1:
        return stats[0]
    numbers = [[int(part) for part in stat.split() if part.isdecimal()] for stat in stats]
    words = [part for part in stats[0].split() if not part.isdecimal()]
    rows = sum(each[0] for each in numbers)
    averages = []
    for position in range(1, min(map(len, numbers))):
        distinct = [max(1, round(each[0] / each[position])) if each[position] else 1 for each in numbers]
        prefix = {fold(name) for name in columns[:position] if name is not None}
        apart = keys is not None and keys <= prefix
        averages.append(max(1, ceil(rows / (sum(distinct) if apart else max(distinct)))))
    return " ".join([str(rows), *map(str, averages), *words])
