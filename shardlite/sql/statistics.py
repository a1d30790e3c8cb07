"""What ANALYZE would say of one file, from what it says of each shard (pure).

``sqlite_stat1`` holds for an index "rows, rows per value of the first column, of the first two, ...". The number of
rows adds up. Values of columns that hold the shard key live on one shard each, so their numbers add up too; of others
there are at least as many as on the shard that has the most: what one file would say lies below, and it is an
estimate there as well.

``expected_rows`` is what the planner makes of them: how many rows fulfil conditions, where these are equalities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from typing import TypeAlias

from shardlite.names import fold
from shardlite.router.table import Table
from shardlite.sql.tokens import Token, TokenKind, closing, constant_of, split_commas, tokens_of

Row = tuple[str, str | None, str]
"""A row of ``sqlite_stat1``: table, index (None: the table has none), statistics."""
Prefixes: TypeAlias = Mapping[tuple[str, ...], float]
"""The first columns of an index (folded) -> how many rows are equal in them on the average."""
SELECTIVITY = 0.2
"""The share of a table's rows that is taken to fulfil conditions of which nothing is known."""


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


def prefixes_of(merged: Iterable[Row], columns: Mapping[str, Sequence[str | None]]) -> dict[tuple[str, ...], float]:
    """Return what the merged statistics of one table say of the first columns of its indexes."""
    found: dict[tuple[str, ...], float] = {}
    for _, index, stat in merged:
        numbers = [int(part) for part in stat.split() if part.isdecimal()]
        names = columns.get(index or "", ())
        for count in range(1, min(len(names), len(numbers) - 1) + 1):
            known = [fold(name) for name in names[:count] if name is not None]
            if len(known) < count:
                break
            prefix = tuple(known)
            found[prefix] = min(found.get(prefix, numbers[count]), numbers[count])
    return found


def expected_rows(rows: float, conditions: Sequence[str], prefixes: Prefixes) -> float:
    """Estimate how many of a table's rows fulfil all conditions, each the text of one on this table alone."""
    if not conditions:
        return rows
    equal: dict[str, int] = {}
    for condition in conditions:
        found = _equality(tokens_of(condition))
        if found is not None:
            equal[found[0]] = min(found[1], equal.get(*found))
    usable = [prefix for prefix in prefixes if all(name in equal for name in prefix)]
    if not usable:
        return rows * SELECTIVITY
    expected = {prefix: prefixes[prefix] * prod(equal[name] for name in prefix) for prefix in usable}
    best = min(usable, key=lambda prefix: (expected[prefix], -len(prefix)))
    others = len(conditions) > len(best)
    return min(rows, expected[best]) * (SELECTIVITY if others else 1.0)


def _equality(tokens: Sequence[Token]) -> tuple[str, int] | None:
    """Return the folded column that a condition holds to constants, and to how many; None for any other condition."""
    at = next((i for i, token in enumerate(tokens) if token.key in ("=", "==", "IS", "IN")), None)
    if at is None:
        return None
    left, right = tokens[:at], tokens[at + 1 :]
    if tokens[at].key == "IN":
        name = _column(left)
        if name is None or not right or right[0].key != "(" or closing(right, 0) != len(right) - 1:
            return None
        values = split_commas(right[1:-1])
        return (name, len(values)) if values and all(_is_constant(value) for value in values) else None
    if _column(left) is None:
        left, right = right, left
    name = _column(left)
    return (name, 1) if name is not None and _is_constant(right) else None


def _column(tokens: Sequence[Token]) -> str | None:
    """Return the name of a column that stands behind its table's."""
    plain = len(tokens) == 3 and tokens[1].key == "." and tokens[2].kind in (TokenKind.WORD, TokenKind.QUOTED)
    return tokens[2].name if plain else None


def _is_constant(tokens: Sequence[Token]) -> bool:
    return bool(tokens) and constant_of(tokens) is not None
