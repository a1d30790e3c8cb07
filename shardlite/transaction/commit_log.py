"""The commit log of one process: decisions become durable here, and those of all processes are read here.

::

    log.prepare()                  # files are there; before the catalog's lock, best before any
    staged = log.stage(record)     # step 4 of a commit: encoded, and its space is made
    try:
        log.commit(staged)         # steps 8 and 9: written and synced, together with others'
        ...                        # applied on the shards
    finally:
        log.release(staged)        # exactly then it is over, however it ended
    log.retire()                   # outside all locks: old files are freed

Safe for threads. A forked child begins with a log that has no file; it uses none of its parent's, and what the parent
staged can't be committed there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

from shardlite.connection import fork
from shardlite.connection.checkpoint import Checkpointer
from shardlite.errors import OperationalError, ProgrammingError
from shardlite.transaction.events import step
from shardlite.transaction.file_layer import FileLayer, SystemFiles
from shardlite.transaction.group_commit import Fate, GroupCommit, Staged
from shardlite.transaction.log_file import LogFile
from shardlite.transaction.log_format import PART_BYTES, Part, Record, database_id_bytes, part_entry
from shardlite.transaction.log_reader import Found, LogCatalog, LogReader
from shardlite.transaction.own_logs import LogShards, OwnLogs
from shardlite.transaction.statistics import TransactionCounters, TransactionStatistics

CLOSE_WITHIN_S: Final = 10.0


class CommitLog:
    """See the module. ``directory`` is the database's; ``database_id`` the layout's."""

    def __init__(
        self,
        directory: str,
        database_id: str,
        catalog: LogCatalog,
        shards: LogShards,
        *,
        layer: FileLayer | None = None,
        counters: TransactionCounters | None = None,
    ) -> None:
        self.directory = directory
        self.layer = layer or SystemFiles()
        self.counters = counters or TransactionCounters()
        self._database_id = database_id_bytes(database_id)
        self._catalog = catalog
        self._shards = shards
        self._reader = LogReader(self.layer, directory, self._database_id, catalog)
        self._begin(closed=False)
        fork.register(self)

    def _begin(self, *, closed: bool) -> None:
        self._lock = threading.Lock()  # a leaf: nothing is waited for while it is held
        self._over = threading.Condition(self._lock)
        self._own = OwnLogs(
            self.directory, self._database_id, self.layer, self._catalog, self._shards, self.counters, self._lock
        )
        self._group = GroupCommit(self._own, self.counters, self._lock)
        self._staged = 0
        self._closing = closed
        self._closed = closed

    @property
    def closed(self) -> bool:
        """Tell whether close() was called: nothing is staged any more."""
        return self._closing

    def prepare(self) -> None:
        """See that there are files to write to; quick when there are. Not while holding the catalog's write lock.

        Raises OperationalError when none can be made.
        """
        self._require_open()
        self._own.prepare()

    def stage(self, record: Record) -> Staged:
        """Encode a record and make the space that it will take. release() must follow, whatever happens.

        Raises OperationalError when the log is closed, without prepare(), or on a full disk; ValueError for a record
        that makes no sense.
        """
        return self._stage((record,))

    def _stage(self, records: tuple[Record, ...]) -> Staged:
        staged = Staged(records, self._own)
        with self._lock:
            self._require_open()
            self._staged += 1
            self._own.reserved += staged.size
        try:
            self._own.make_room()
        except BaseException:
            self.release(staged)
            raise
        return staged

    def commit(self, staged: Staged) -> None:
        """Write a staged record and sync it, together with those of other threads: returns when it is durable.

        Raises OperationalError when it isn't there and never will be: roll back. Raises TransactionInDoubtError, with
        ``txid``, when it may be valid: others settle it. Called again it tells the same, so what interrupted it
        (KeyboardInterrupt is raised once the fate is known) can be kept and the fate asked for.
        """
        if staged.owner is not self._own:
            raise ProgrammingError(f"transaction {staged.txids} belongs to the parent process")
        if staged.fate is Fate.OPEN:
            if self._closed or staged.released:
                raise OperationalError(f"transaction {staged.txids} is rolled back: the database is closed")
            self._note_parts(staged)
        self._group.run(staged)
        if staged.error is not None:
            raise staged.error

    def _note_parts(self, staged: Staged) -> None:
        for record in staged.records:
            held = self._own.parts.get(record.token)
            if held is not None:
                held.record = record

    def release(self, staged: Staged) -> None:
        """Note that a transaction is over: rolled back, in doubt, or applied as far as could be. Can be repeated."""
        if staged.owner is not self._own:
            return
        self._group.end(staged)
        with self._lock:
            if staged.released:
                return
            staged.released = True
            self._staged -= 1
            if not staged.written:
                self._own.reserved -= staged.size
            for held in staged.files:
                held.in_flight.discard(staged)
            if staged.fate is Fate.FAILED:
                for record in staged.records:
                    if (parts := self._own.parts.get(record.token)) is not None:
                        parts.dropped = True
            if self._closing:
                self._over.notify_all()

    def write_ahead(self, token: int) -> PartWriter:
        """Begin to write redo ahead of the decision, into a file of the transaction's own. As prepare() otherwise."""
        self._require_open()
        return PartWriter(self._own.obtain_parts(token), token, lambda: self._drop_parts(token))

    def _drop_parts(self, token: int) -> None:
        with self._lock:
            if (held := self._own.parts.get(token)) is not None:
                held.dropped = True

    def copy(self, records: Iterable[Record]) -> None:
        """Write decisions of other processes to this log, with one sync: then they may be acted on.

        Needs prepare() before (and may be called under the catalog's lock, unlike that). Raises OperationalError when
        they couldn't be made durable.
        """
        copies = tuple(replace(record, is_copy=True) for record in records)
        if not copies:
            return
        staged = self._stage(copies)
        try:
            with step("settle.copied", tokens=tuple(record.token for record in copies)):
                self.commit(staged)
        except OperationalError as error:
            raise OperationalError(
                f"decided transactions {staged.txids} can't be copied to a commit log: {error}; what they changed "
                "can't be used until one can be written"
            ) from error
        finally:
            self.release(staged)
        self.counters.add(log_copies=len(copies))

    def find(self, token: int) -> Record | None:
        """Return the valid record of a token in any log, None without one. Raises as ``LogReader``."""
        return self._reader.find(token)

    def unapplied(self, shard: int, above: int) -> list[Found]:
        """Return the decisions that a shard with the watermark ``above`` lacks, in order; see ``is_durable``.

        Raises ShardUnavailableError when one is missing between them, or logs contradict each other.
        """
        return self._reader.unapplied(shard, above, self.is_durable)

    def is_durable(self, found: Found) -> bool:
        """Tell whether this process knows by its own sync that a decision is on the disk; others have to be copied."""
        with self._lock:
            own = (self._own.active, self._own.spare, *self._own.old)
            return any(
                held is not None
                and held.file.number == found.log
                and held.file.failure is None
                and found.end <= held.file.synced
                for held in own
            )

    def highest(self) -> dict[int, int]:
        """Return, by shard, the highest number that stands in any log: what an opener has to look at."""
        return self._reader.highest()

    def parts(self, record: Record) -> Iterator[Part]:
        """Yield what a decision wrote ahead, in order. Raises ShardUnavailableError when a part is missing."""
        return self._reader.parts(record)

    def retire(self) -> None:
        """Free files whose records are all applied and synced; quick when there are none. No lock may be held."""
        if not self._closing:
            self._own.retire()

    def close(self, timeout_s: float = CLOSE_WITHIN_S) -> Collection[int]:
        """Take nothing new, wait for what is staged, retire and delete the files. Can be repeated.

        Returns the numbers of the files that had to stay: a shard hasn't what stands there. After ``timeout_s``
        seconds what is still staged can't be committed any more.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._closing = True
            while self._staged and self._over.wait(max(0.0, deadline - time.monotonic())):
                pass
            self._closed = True
        with step("close.log"):
            return self._own.close(max(0.1, deadline - time.monotonic()))

    def statistics(self) -> TransactionStatistics:
        """Return the counters of this process."""
        with self._lock:
            own = (self._own.active, self._own.spare, *self._own.old)
            doubtful = {record.token for held in own if held is not None for record in held.doubtful}
        return self.counters.statistics(in_doubt=len(doubtful))

    def _require_open(self) -> None:
        if self._closing:
            raise OperationalError(f"the commit log of {self.directory} is closed")

    @property
    def checkpointers(self) -> list[Checkpointer]:
        """None: see ``connection.fork.Forkable``."""
        return []

    def reset_after_fork(self) -> None:
        """In a forked child: forget the parent's files, whose descriptors the file layer closes without unlocking."""
        self.counters.reset_after_fork()
        self._begin(closed=self._closing)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "closing" if self._closing else "open"
        own = self._own
        return f"CommitLog({self.directory!r}, {state}, active={own.active}, spare={own.spare}, old={len(own.old)})"


class PartWriter:
    """Writes a transaction's redo ahead of its decision. Belongs to one thread."""

    def __init__(self, file: LogFile, token: int, drop: Callable[[], None]) -> None:
        self._file = file
        self._token = token
        self._drop = drop
        self._hashes: list[bytes] = []

    def add(self, section: int, data: bytes) -> None:
        """Append bytes to a section; in pieces of 1 MiB at most. Raises OperationalError: roll back, discard()."""
        for start in range(0, len(data), PART_BYTES):
            part = Part(self._token, len(self._hashes), section, data[start : start + PART_BYTES])
            try:
                self._hashes += self._file.append([part_entry(part)])
            except OSError as error:
                raise OperationalError(f"redo can't be written to {self._file.path}: {error}") from error

    def finish(self) -> tuple[bytes, ...]:
        """Make all of it durable and return the hashes, which the decision has to carry. Raises as add()."""
        try:
            self._file.sync()
        except OSError as error:
            raise OperationalError(f"redo can't be synced to {self._file.path}: {error}") from error
        return tuple(self._hashes)

    def discard(self) -> None:
        """There will be no decision: the file is deleted at the next occasion."""
        self._drop()


__all__ = ["CommitLog", "Found", "LogCatalog", "LogShards", "PartWriter", "Staged"]
