"""Merge the shards' sorted rows into one stream, in SQLite's order."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cmp_to_key
from itertools import islice
from operator import itemgetter
from typing import Any

from shardlite.router.keys import sort_key
from shardlite.sql.order import OrderSpec


class _Reversed:
    """A sort key whose order is turned round."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.key < self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(self.key == other.key)

    __hash__ = None  # type: ignore[assignment]  # as the language says it; object's is a method


def row_key(spec: OrderSpec) -> Callable[[tuple[Any, ...]], Any]:
    """Return a function from a row, which ends with the hidden columns of ``spec``, to its sort key."""
    width = len(spec.columns)
    parts = tuple(
        (index - width, _value_key(spec, spec.collations[index]), spec.descending[index]) for index in range(width)
    )

    def key(row: tuple[Any, ...]) -> Any:
        return tuple(_Reversed(of(row[at])) if descending else of(row[at]) for at, of, descending in parts)

    return key


def _value_key(spec: OrderSpec, collation: str) -> Callable[[Any], Any]:
    """Return a function from a value to its sort key in one column's order."""
    if collation not in spec.comparisons:
        return lambda value: sort_key(value, collation)
    text_key = cmp_to_key(spec.comparisons[collation])
    # Among the classes of values text stands where ``sort_key`` puts it.
    return lambda value: (*sort_key("")[:1], text_key(value)) if isinstance(value, str) else sort_key(value)


def merge_rows(
    iterables: Iterable[Iterable[tuple[Any, ...]]],
    spec: OrderSpec,
    *,
    limit: int | None = None,
    offset: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Merge streams of rows, each sorted by ``spec`` and ending with its hidden columns; yield rows without these.

    Holds one row of each stream. Equal rows come in the order of the streams. A negative or missing ``limit`` means
    all rows, a negative or missing ``offset`` none skipped, as in SQLite.
    """
    streams = list(iterables)
    width = len(spec.columns)
    if len(streams) == 1 or not width:
        merged: Iterable[tuple[Any, ...]] = (row for stream in streams for row in stream)
    elif spec.by_rowid:
        merged = heapq.merge(*streams, key=itemgetter(-1))
    else:
        merged = heapq.merge(*streams, key=row_key(spec))
    start = max(offset or 0, 0)
    stop = None if limit is None or limit < 0 else min(start + limit, sys.maxsize)
    rows: Iterable[tuple[Any, ...]] = merged if not start and stop is None else islice(merged, start, stop)
    return (row[:-width] for row in rows) if width else iter(rows)
