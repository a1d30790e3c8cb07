"""Records that arrive together share one write and one sync: flat combining.

A committer queues its record. Who finds no leader leads: it takes all that is queued, writes it in one piece, syncs,
wakes the others and names the head of the new queue leader. A failed write or sync gives the file up; what is valid of
the batch is written again to the spare file (``DESIGN.md``, 7.3).

Interrupts (KeyboardInterrupt and others that are no Exception) are kept until the fate is known: each step can be run
again from its start, and a waiter that missed its waking looks by itself after a while.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Final

from shardlite.errors import Error, OperationalError, TransactionInDoubtError
from shardlite.transaction.events import step
from shardlite.transaction.log_format import IS_COPY, Entry, Record, entry_bytes, entry_of
from shardlite.transaction.own_logs import OwnedLog, OwnLogs
from shardlite.transaction.statistics import TransactionCounters

_LOOK_AGAIN_S: Final = 1.0


class Fate(Enum):
    """What became of staged records."""

    OPEN = "open"
    DECIDED = "decided"
    """Valid and durable."""
    FAILED = "failed"
    """Not there, and it never will be."""
    IN_DOUBT = "in doubt"
    """Perhaps valid, perhaps durable: who settles a shard decides."""


class Staged:
    """Records that are to be written together, with space made for them. Made by the log; belongs to one thread."""

    __slots__ = ("entries", "error", "fate", "files", "owner", "records", "released", "size", "wake", "written")

    def __init__(self, records: tuple[Record, ...], owner: object) -> None:
        self.records = records
        self.entries: list[Entry] = [entry_of(record) for record in records]
        self.size = sum(map(entry_bytes, self.entries))
        self.owner = owner
        self.fate = Fate.OPEN
        self.error: Error | None = None
        self.files: list[OwnedLog] = []
        self.released = False
        self.written = False
        self.wake = threading.Lock()
        self.wake.acquire()

    @property
    def txids(self) -> str:
        """The transactions, for messages."""
        return ", ".join(record.txid for record in self.records)

    def __repr__(self) -> str:
        return f"Staged({self.txids}, {self.fate.value}, {self.size} bytes)"


class GroupCommit:
    """The queue. Safe for threads."""

    def __init__(self, own: OwnLogs, counters: TransactionCounters, mutex: threading.Lock) -> None:
        self._own = own
        self._counters = counters
        self._mutex = mutex
        self._queue: dict[Staged, None] = {}
        self._batch: list[Staged] = []
        self._leader: Staged | None = None

    def run(self, item: Staged) -> None:
        """Write and sync a staged item, together with others that come meanwhile; returns when its fate is known.

        An interrupt is raised at the end, with the fate known by then (but for one that comes at the very end or
        beginning: the call can be repeated). Errors of the log are the item's fate.
        """
        interrupt: BaseException | None = None
        while item.fate is Fate.OPEN or self._leader is item:
            try:
                self._take_part(item)
            except Exception:
                raise
            except BaseException as stop:
                interrupt = stop
        if interrupt is not None:
            raise interrupt

    def end(self, item: Staged) -> None:
        """See that nothing of an item is still to come: what wasn't written never will be, and others go on."""
        with self._mutex:
            if item.fate is Fate.OPEN and item not in self._batch:
                self._queue.pop(item, None)
                _fail([item], "it wasn't committed")
        self.run(item)

    def _take_part(self, item: Staged) -> None:
        with self._mutex:
            if item.fate is Fate.OPEN and item not in self._batch:
                self._queue[item] = None
            if self._leader is None:
                self._leader = item
        while self._leader is not item and item.fate is Fate.OPEN:
            item.wake.acquire(timeout=_LOOK_AGAIN_S)
        if self._leader is item:
            self._lead()

    def _lead(self) -> None:
        with self._mutex:
            if not self._batch:
                self._batch = [each for each in self._queue if each.fate is Fate.OPEN]
                self._queue.clear()
        batch = [each for each in self._batch if each.fate is Fate.OPEN]
        try:
            with self._own.io:
                self._write([each for each in batch if not each.files])
        finally:
            # Written, and then interrupted while that was dealt with: it must not be written again.
            self._doubt([each for each in batch if each.fate is Fate.OPEN and each.files], "it was interrupted")
            self._hand_over()

    def _hand_over(self) -> None:
        for each in self._batch:
            _wake(each)
        with self._mutex:
            self._batch = []
            self._leader = following = next((each for each in self._queue if each.fate is Fate.OPEN), None)
        if following is not None:
            _wake(following)

    def _write(self, batch: list[Staged]) -> None:
        held = self._own.choose() if batch else None
        if held is None:
            _fail(batch, "no commit log can be written")
            return
        start = held.file.end
        try:
            self._put(held, batch, [entry for item in batch for entry in item.entries], "logged")
        except BaseException as error:
            self._own.note_poisoned(held, error)
            self._save(batch, held, start, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._decide(batch)

    def _put(self, held: OwnedLog, batch: list[Staged], entries: list[Entry], name: str) -> None:
        """Append and sync."""
        for item in batch:
            held.in_flight.add(item)
            item.files.append(held)
        tokens = tuple(entry.token for entry in entries)
        start = held.file.end
        with step(name, number=held.file.number, tokens=tokens):
            held.file.append(entries)
        with self._mutex:
            for item in batch:
                if not item.written:
                    item.written = True
                    self._own.reserved -= item.size
        with step("decided", number=held.file.number, tokens=tokens):
            held.file.sync()
        self._counters.add(log_batches=1, log_syncs=1, log_records=len(entries), log_bytes=held.file.end - start)

    def _save(self, batch: list[Staged], held: OwnedLog, start: int, error: BaseException) -> None:
        """After a failure: what isn't valid fails, what is valid is written to the spare, else it is in doubt."""
        valid = held.file.valid_from(start)
        survivors: list[Staged] = []
        for item in batch:
            if valid is None or valid >= len(item.entries):
                survivors.append(item)
                valid = None if valid is None else valid - len(item.entries)
            else:
                valid = 0  # nothing behind it counts
        _fail([item for item in batch if item not in survivors], f"{held.file.path}: {error}")
        if survivors:
            self._copy(survivors, f"{held.file.path}: {error}")

    def _copy(self, survivors: list[Staged], why: str) -> None:
        """Write what is valid in a poisoned file to the spare one."""
        target = self._own.choose()
        if target is None:
            self._doubt(survivors, f"{why}; there is no other commit log that can be written")
            return
        copies = [entry._replace(flags=entry.flags | IS_COPY) for item in survivors for entry in item.entries]
        try:
            self._put(target, survivors, copies, "log.copied")
        except BaseException as error:
            self._own.note_poisoned(target, error)
            self._doubt(survivors, f"{why}; its copy: {target.file.path}: {error}")
            if not isinstance(error, Exception):
                raise
        else:
            self._counters.add(log_copies=len(copies))
            self._decide(survivors)

    def _doubt(self, items: list[Staged], why: str) -> None:
        for item in items:
            for held in item.files:
                held.file.poison(OSError(why))
                held.doubtful.extend(record for record in item.records if not record.is_copy)
            doubt = TransactionInDoubtError(
                f"transaction {item.txids} may or may not be decided: {why}. Who uses its shards next settles it; "
                "manager.outcome(txid) tells then"
            )
            doubt.txid = item.records[0].txid
            item.error, item.fate = doubt, Fate.IN_DOUBT

    def _decide(self, batch: list[Staged]) -> None:
        self._counters.add(
            multi_shard_commits=sum(1 for item in batch for record in item.records if not record.is_copy)
        )
        for item in batch:
            item.fate = Fate.DECIDED


def _fail(items: list[Staged], why: str) -> None:
    for item in items:
        item.error = OperationalError(
            f"transaction {item.txids} is rolled back: its record couldn't be written: {why}; nothing has changed, try "
            "again"
        )
        item.fate = Fate.FAILED


def _wake(item: Staged) -> None:
    if item.wake.locked():  # else it is woken already
        item.wake.release()


__all__ = ["Fate", "GroupCommit", "Staged"]
