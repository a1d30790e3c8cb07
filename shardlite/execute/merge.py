"""Merge the shards' sorted rows into one stream, in SQLite's order.

Rows come from each shard in batches. Of all batches at hand, what is not behind the end of any of them can be given
out: it is put together and sorted by ``list.sort``, which finds the runs that the shards have sorted already and merges
them in C. Each row is sorted once; beyond that, a few rows of a batch are looked at to find where it is to be cut.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cmp_to_key
from itertools import chain, islice
from operator import index, itemgetter
from typing import Any

from shardlite.router.keys import TEXT_ENCODINGS, collated
from shardlite.sql.order import NO_COLLATIONS, Comparison, OrderSpec, SortTerm

Row = tuple[Any, ...]
Rows = Sequence[Row]
_NUMBERS = frozenset((int, float))
_NULL, _NUMBER, _TEXT, _BLOB, _ABOVE = range(5)
"""The classes of values in SQLite's order. NULLs stand first, or above all others where the statement says so."""


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


class _Column:
    """One term of an order: sort keys for its values."""

    __slots__ = ("_blob", "_null", "_of_text", "_text", "at", "descending", "integer")

    def __init__(self, term: SortTerm, encoding: str, comparisons: Mapping[str, Comparison]) -> None:
        self.at = term.at
        self.descending = term.descending
        self.integer = term.integer
        self._null = (_ABOVE if term.nulls_high else _NULL,)
        # A term that is swapped comes as bytes where it is text, and the other way round.
        self._text: type = bytes if term.swapped else str
        self._blob: type = str if term.swapped else bytes
        self._of_text = _text_key(term, encoding, comparisons)

    def key(self, value: Any) -> tuple[Any, ...]:
        """Return a key that is comparable with those of all other values of the column."""
        if value is None:
            return self._null
        kind = type(value)
        if kind is self._text:
            return (_TEXT, value if self._of_text is None else self._of_text(value))
        return (_BLOB if kind is self._blob else _NUMBER, value)

    def keys(self, rows: Rows) -> tuple[list[Any], bool, bool]:
        """Return the keys of some rows, comparable among these; whether they are numbers, or the values themselves."""
        values = [row[self.at] for row in rows]
        if self.integer:
            return values, True, True
        kinds = set(map(type, values))
        if kinds <= _NUMBERS:
            return values, True, True
        if len(kinds) == 1 and self._text in kinds:
            return (values, False, True) if self._of_text is None else (list(map(self._of_text, values)), False, False)
        if len(kinds) == 1 and self._blob in kinds:
            return values, False, True
        return list(map(self.key, values)), False, False


def _text_key(term: SortTerm, encoding: str, comparisons: Mapping[str, Comparison]) -> Callable[[Any], Any] | None:
    """Return a function from a text to its sort key; None where the text is its own."""
    codec = TEXT_ENCODINGS[encoding]
    if term.collation == "BINARY":
        # UTF-8 sorts as its characters do. A text in bytes is already what SQLite compares.
        return None if term.swapped or codec == "utf-8" else lambda text: text.encode(codec, "surrogatepass")
    if term.collation in comparisons:
        compare = cmp_to_key(_as_the_driver(comparisons[term.collation], codec))
        return compare if not term.swapped else lambda text: compare(_decoded(text, codec))
    fold = _nocase if term.collation == "NOCASE" else _rtrim
    if not term.swapped:
        return fold
    if codec == "utf-8":
        return lambda text: collated(text, term.collation)
    return lambda text: fold(text.decode(codec, "surrogatepass"))


def _nocase(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text.lower()
    return collated(text.encode("utf-8", "surrogatepass"), "NOCASE").decode("utf-8", "surrogatepass")


def _rtrim(text: str) -> str:
    return text.rstrip(" ")


def _decoded(text: bytes, codec: str) -> str | bytes:
    """Return a text, or its bytes where they are no Unicode: that is an error when it is compared, as in SQLite."""
    try:
        return text.decode(codec)
    except UnicodeDecodeError:
        return text


def _as_the_driver(compare: Comparison, codec: str) -> Callable[[str | bytes, str | bytes], int]:
    """Compare as the driver does for SQLite: where the answer is no integer the texts are equal."""

    def compared(left: str | bytes, right: str | bytes) -> int:
        left = left if isinstance(left, str) else left.decode(codec)
        right = right if isinstance(right, str) else right.decode(codec)
        answer: Any = compare(left, right)
        return answer if isinstance(answer, int) else _index(answer)

    return compared


def _index(answer: Any) -> int:
    try:
        return index(answer)
    except TypeError:
        return 0


class Order:
    """An order over rows."""

    def __init__(
        self, terms: Sequence[SortTerm], encoding: str = "UTF-8", comparisons: Mapping[str, Comparison] = NO_COLLATIONS
    ) -> None:
        """``encoding``: of the database, as SQLite names it. ``comparisons``: the user's collations by folded name."""
        self._columns = [_Column(term, encoding, comparisons) for term in terms]
        places = [column.at for column in self._columns]
        self._values: Callable[[Row], Any] = itemgetter(*places) if places else len

    def key(self, row: Row) -> Any:
        """Return a row's sort key: slower than what ``sort`` does, and comparable with any other's."""
        return tuple(
            _Reversed(column.key(row[column.at])) if column.descending else column.key(row[column.at])
            for column in self._columns
        )

    def sort(self, rows: list[Row]) -> list[Row]:
        """Return the rows sorted; equal ones stay in their order."""
        passes: list[_Pass] = []
        plain = True
        for column in self._columns:
            keys, numbers, own = column.keys(rows)
            plain = plain and own and not column.descending
            if passes and passes[-1].take(keys, numbers, column.descending):
                continue
            passes.append(_Pass(keys, numbers, column.descending))
        if plain:
            rows.sort(key=self._values)
            return rows
        places = list(range(len(rows)))
        for one in reversed(passes):
            one.sort(places)
        return [rows[place] for place in places]


class _Pass:
    """Terms that one sort looks after: all of them ascending, or all descending."""

    def __init__(self, keys: list[Any], numbers: bool, descending: bool) -> None:
        self._columns = [keys]
        self._numbers = numbers
        self._descending = descending

    def take(self, keys: list[Any], numbers: bool, descending: bool) -> bool:
        """Take the next term in, if its direction is the same or numbers can be turned round."""
        if descending != self._descending:
            if numbers:
                keys = [-value for value in keys]
            elif self._numbers:
                self._columns = [[-value for value in column] for column in self._columns]
                self._descending = descending
            else:
                return False
        self._columns.append(keys)
        self._numbers = self._numbers and numbers
        return True

    def sort(self, places: list[int]) -> None:
        keys = self._columns[0] if len(self._columns) == 1 else list(zip(*self._columns, strict=True))
        places.sort(key=keys.__getitem__, reverse=self._descending)


class _Stream:
    """What is at hand of one shard's rows."""

    __slots__ = ("_batches", "_first", "_last", "_order", "rows", "start")

    def __init__(self, batches: Iterator[Rows], order: Order) -> None:
        self._batches = batches
        self._order = order
        self.rows: Rows = ()
        self.start = 0
        self._first: Any = None
        self._last: Any = None

    def refill(self) -> bool:
        """Read on if nothing is at hand; tell whether something is."""
        while self.start >= len(self.rows):
            rows = next(self._batches, None)
            if rows is None:
                return False
            self.rows, self.start = rows, 0
            self._first = self._last = None
        return True

    @property
    def first(self) -> Any:
        """The key of the first row at hand."""
        if self._first is None:
            self._first = self._order.key(self.rows[self.start])
        return self._first

    @property
    def last(self) -> Any:
        """The key of the last row at hand."""
        if self._last is None:
            self._last = self._order.key(self.rows[-1])
        return self._last

    def take(self) -> Rows:
        """Return all that is at hand."""
        return self._cut(len(self.rows))

    def take_up_to(self, bound: Any) -> Rows:
        """Return what is at hand up to a key."""
        if bound < self.first:
            return ()
        return self._cut(bisect_right(self.rows, bound, self.start, key=self._order.key))

    def _cut(self, end: int) -> Rows:
        rows = self.rows if not self.start and end == len(self.rows) else self.rows[self.start : end]
        self.start = end
        self._first = None
        if end == len(self.rows):
            self.rows, self.start = (), 0
        return rows

    def rest(self) -> Iterator[Rows]:
        if self.start < len(self.rows):
            yield self.take()
        yield from self._batches


def merge_batches(parts: Iterable[Iterator[Rows]], order: Order) -> Iterator[Rows]:
    """Merge streams of batches, each sorted by ``order``; yield batches. Holds one batch of each stream.

    Where the order has ties, which of them comes first isn't fixed. Every row comes once, even where the streams aren't
    sorted, as under a collation that contradicts itself.
    """
    streams = [_Stream(batches, order) for batches in parts]
    while True:
        if len(streams) == 1:
            yield from streams[0].rest()
            return
        streams = [stream for stream in streams if stream.refill()]
        if len(streams) < 2:
            if not streams:
                return
            continue
        nearest = min(streams, key=lambda stream: stream.last)
        bound = nearest.last
        slices = [stream.take() if stream is nearest else stream.take_up_to(bound) for stream in streams]
        slices = [rows for rows in slices if rows]
        yield slices[0] if len(slices) == 1 else order.sort(list(chain.from_iterable(slices)))


def merge_rows(
    parts: Iterable[Rows],
    spec: OrderSpec,
    *,
    limit: int | None = None,
    offset: int | None = None,
    encoding: str = "UTF-8",
) -> Iterator[Row]:
    """Merge answers, each sorted by ``spec`` and ending with its hidden columns; yield rows without these.

    A negative or missing ``limit`` means all rows, a negative or missing ``offset`` none skipped, as in SQLite.
    """
    answers = list(parts)
    width = len(spec.columns)
    if len(answers) == 1 or not width:
        merged = chain.from_iterable(answers)
    else:
        order = Order(spec.terms, encoding, spec.comparisons)
        merged = chain.from_iterable(merge_batches([iter((rows,)) for rows in answers], order))
    rows = sliced(merged, limit, offset)
    return map(itemgetter(slice(-width)), rows) if width else rows


def sliced(rows: Iterator[Row], limit: int | None, offset: int | None) -> Iterator[Row]:
    """Return the rows that LIMIT and OFFSET leave; negative or missing ones leave all."""
    start = max(offset or 0, 0)
    stop = None if limit is None or limit < 0 else min(start + limit, sys.maxsize)
    return rows if not start and stop is None else islice(rows, min(start, sys.maxsize), stop)
