"""Sequences: ids that are unique over all shards, threads, processes and runs.

A process draws ids from the catalog in blocks and hands them out from memory. The first block has one id, each
further one twice as many up to MAX_BLOCK: a script that inserts one row costs no gap, and a bulk load one catalog
write for thousands of rows. ``release`` gives the unused rest back.

As in SQLite, the next generated id is above every id that was given explicitly. An explicit id may also fall
among ids that somebody has drawn and not used yet. Whoever puts one there raises the fence's ``sequence_epoch``
while holding all shards' write locks, and whoever uses a drawn id checks the word under its own shard's lock::

    token = sequence.token
    id = sequence.next()          # may write the catalog: before any shard lock is taken
    ... take the shard's write lock ...
    if not sequence.is_current(token): release the lock, begin again

Ids are positive. Negative explicit ids are ordinary rows that no sequence ever meets.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from shardlite.errors import OperationalError, ProgrammingError
from shardlite.router.fence import Fence
from shardlite.router.keys import MAX_INTEGER

MAX_BLOCK: Final = 4096
_MAX_ROOM_AHEAD: Final = 65_536
_WORD: Final = Fence.SEQUENCE_EPOCH


class Blocks(Protocol):
    """Where blocks come from: the catalog."""

    @property
    def fence(self) -> Fence: ...

    def draw_block(self, sequence: str, size: int, at_least: int = 1) -> tuple[int, int]: ...

    def give_back(self, sequence: str, first: int, last: int) -> bool: ...

    def next_id(self, sequence: str) -> int: ...

    def claim(self, sequence: str, number: int, size: int) -> tuple[int, int, int]: ...


class Sequence:
    """The ids of one table, in this process. Safe for threads; a forked child draws blocks of its own.

    Make one per table and catalog, and keep it.
    """

    def __init__(self, blocks: Blocks, name: str, recount: Callable[[], bool] | None = None) -> None:
        """``recount`` is asked when no id is left: it may set the sequence back to what the rows really use."""
        self._recount = recount
        self.name = name
        self._blocks = blocks
        self._words = blocks.fence.words
        self._token = -1
        self._empty()
        _sequences.add(self)

    def _empty(self) -> None:
        """Forget the block; also in a forked child, where the lock may be held by a thread that isn't there."""
        self._lock = threading.Lock()
        self._next = 1
        self._last = 0
        self._high_water = 0
        """Every id up to this one is drawn or given, as far as this process knows."""
        self._size = 1

    @property
    def token(self) -> int:
        """The state of the fence that ``is_current`` compares: read it before drawing an id."""
        return self._words[_WORD]

    def is_current(self, token: int) -> bool:
        """Tell, under a shard's write lock, whether ids drawn since ``token`` was read may still be used."""
        return self._words[_WORD] == token

    def next(self) -> int:
        """Return a fresh id. Raises OperationalError when the 64-bit range is used up."""
        with self._lock:
            if self._token != self._words[_WORD]:
                self._forget()
            number = self._next
            if number > self._last:
                self._draw(self._size)
                number = self._next
            self._next = number + 1
            return number

    def take(self, count: int) -> list[range]:
        """Return ``count`` fresh ids as ascending ranges, mostly one; for bulk inserts."""
        if count < 0:
            raise ProgrammingError(f"can't take {count} ids of {self.name}: count must be 0 or more")
        taken: list[range] = []
        with self._lock:
            if self._token != self._words[_WORD]:
                self._forget()
            while count > 0:
                if self._next > self._last:
                    self._draw(max(count, self._size) if count < MAX_BLOCK else count)
                part = range(self._next, min(self._next + count, self._last + 1))
                self._next = part.stop
                count -= len(part)
                _append(taken, part)
        return taken

    def note_explicit(self, number: int) -> bool:
        """Take notice of an id that was given explicitly, so that generated ids come after it.

        Returns True when the id lies among those already drawn, where another thread or process may hold it unused:
        unless the id is the shard key, the caller then raises the fence's ``sequence_epoch`` before it lets go of
        the shards' write locks. Costs a catalog write once per block for ascending ids; call it before any shard
        lock is taken where the id may be new (``is_new``).
        """
        return self.note_explicit_many(number, number)

    def note_key(self, number: int) -> None:
        """Take notice of an explicit id that is its row's shard key, as ``note_explicit`` but without the lock.

        Two threads at once may set ``_next`` back by a little, and an id that was given is then generated again. Where
        the id is the key, its row's own shard refuses it and the caller draws another, so nothing is lost by it.
        """
        current = self._token == self._words[_WORD]  # else the table may have been made anew, its ids from 1 again
        if number < self._next and current:
            return
        if number <= self._last and current:
            self._next = number + 1
        else:
            self.note_explicit(number)

    def note_explicit_many(self, lowest: int, highest: int, count: int = 1) -> bool:
        """Take notice of explicit ids that lie between two bounds, both included; as ``note_explicit``, for a batch.

        ``count``, the size of the batch, makes room ahead: a run of batches with ascending ids writes the catalog once
        in a few.
        """
        if not 1 <= highest <= MAX_INTEGER:
            return False  # one beyond 64 bits is refused when it is routed or bound, and must not use up the ids
        lowest = max(lowest, 1)
        with self._lock:
            if self._token != self._words[_WORD]:
                self._forget()
            own_first, own_last = self._next, self._last
            if own_first <= highest <= own_last:
                self._next = highest + 1
                return lowest < own_first
            if highest <= self._known_high_water(highest):
                if own_first <= own_last and lowest <= own_last:
                    self._next = max(own_first, min(highest, own_last) + 1)
                return True
            ahead = max(self._size, min(4 * count, _MAX_ROOM_AHEAD))
            drawn_to = min(self._claim(highest, ahead) - 1, highest)
            return lowest <= drawn_to and not (own_first <= lowest and drawn_to <= own_last)

    def is_new(self, number: int) -> bool:
        """Tell whether noting this explicit id would write the catalog."""
        with self._lock:
            return number > self._last and number > self._known_high_water(number)

    def invalidate(self) -> None:
        """Drop the block: the next id is drawn afresh, above everything known to the catalog."""
        with self._lock:
            self._forget()

    def release(self) -> None:
        """Give the unused rest of the block back to the catalog, if nobody drew since; for an orderly end."""
        with self._lock:
            if self._next <= self._last and self._token == self._words[_WORD]:
                self._blocks.give_back(self.name, self._next, self._last)
            self._forget()

    def _forget(self) -> None:
        self._next, self._last, self._high_water, self._size = 1, 0, 0, 1
        self._token = self._words[_WORD]

    def _draw(self, size: int) -> None:
        # The word is read first: a change between the two makes the new block look stale, never a stale one new.
        token = self._words[_WORD]
        try:
            first, last = self._blocks.draw_block(self.name, size)
        except OperationalError:
            # An id near the end of the range may have been stated by a row that was refused in the end.
            if self._recount is None or self._blocks.next_id(self.name) < MAX_INTEGER or not self._recount():
                raise
            token = self._words[_WORD]
            first, last = self._blocks.draw_block(self.name, size)
        self._hold(token, first, last)

    def _claim(self, number: int, size: int) -> int:
        """Take the id and a block above it; return the lowest id that nobody had drawn."""
        token = self._words[_WORD]
        unused, first, last = self._blocks.claim(self.name, number, size)
        self._hold(token, first, last)
        return unused

    def _hold(self, token: int, first: int, last: int) -> None:
        self._next, self._last, self._token = first, last, token
        self._high_water = last
        self._size = min(2 * self._size, MAX_BLOCK)

    def _known_high_water(self, number: int) -> int:
        """Return the high water, asking the catalog only when what is known leaves ``number`` above it."""
        if number > self._high_water:
            self._high_water = max(self._high_water, self._blocks.next_id(self.name) - 1)
        return self._high_water

    def __repr__(self) -> str:
        return f"Sequence({self.name!r}, next={self._next}, last={self._last}, high_water={self._high_water})"


def _append(ranges: list[range], part: range) -> None:
    if ranges and ranges[-1].stop == part.start:
        ranges[-1] = range(ranges[-1].start, part.stop)
    else:
        ranges.append(part)


def ids_of(ranges: list[range]) -> Iterator[int]:
    """Yield the ids of ``Sequence.take`` one by one."""
    for part in ranges:
        yield from part


_sequences: weakref.WeakSet[Sequence] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for sequence in list(_sequences):
        sequence._empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
