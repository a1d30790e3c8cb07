"""The log files that this process owns: which is written, which is ready, which wait to be freed.

*active*: records are appended there. *spare*: empty, for the copies after a failure and for the change of files when
the active one is half full. *old*: full or poisoned, freed (retired) once all its records are applied and synced on all
their shards. Files that a dead process left are taken over only when they can be retired.

Three locks, in this order: ``upkeep`` (files are made, taken over, retired; asks shards and the catalog), ``io`` (one
writes or syncs own files), and the log's mutex, a leaf, under which the three roles change.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from shardlite.errors import Error, OperationalError
from shardlite.transaction.events import emit, step
from shardlite.transaction.file_layer import FileLayer
from shardlite.transaction.log_file import LogContents, LogFile, clear_unfinished, log_numbers
from shardlite.transaction.log_format import SECTOR, Record
from shardlite.transaction.log_reader import LogCatalog, LogReader
from shardlite.transaction.statistics import TransactionCounters

HALF_FULL: Final = 512 * 1024
"""Bytes after which the next batch goes to the spare file."""
_TRY_AGAIN_S: Final = 1.0
"""How long an old file that can't be retired is left alone."""


class LogShards(Protocol):
    """What the logs ask of the shards; errors are shardlite's. Safe for threads. CATALOG is a shard like others here.

    Called without any lock of the log's but ``upkeep``; must not wait for a shard's write lock.
    """

    def applied(self, shard: int, number: int) -> bool:
        """Tell whether the shard's watermark is ``number`` or more in a *committed* state."""

    def sync(self, shard: int) -> None:
        """Make durable what is committed on a shard now."""


@dataclass(eq=False, slots=True)
class OwnedLog:
    """A file, and why it may not be retired yet."""

    file: LogFile
    in_flight: set[object] = field(default_factory=set)
    """Transactions that wrote there and aren't over."""
    doubtful: list[Record] = field(default_factory=list)
    """Their fate isn't known: somebody has to settle them first."""
    not_before: float = 0.0
    """When retiring is tried again, by the monotonic clock."""


@dataclass(eq=False, slots=True)
class OwnedParts:
    """A file of parts. Freed when its decision is applied everywhere, or there will be none."""

    file: LogFile
    record: Record | None = None
    dropped: bool = False


class OwnLogs:
    """See the module. Safe for threads."""

    def __init__(
        self,
        directory: str,
        database_id: bytes,
        layer: FileLayer,
        catalog: LogCatalog,
        shards: LogShards,
        counters: TransactionCounters,
        mutex: threading.Lock,
    ) -> None:
        self._directory = directory
        self._database_id = database_id
        self._layer = layer
        self._catalog = catalog
        self._shards = shards
        self._counters = counters
        self._reader = LogReader(layer, directory, database_id, catalog)
        self._mutex = mutex
        self.io = threading.Lock()
        self._upkeep = threading.Lock()
        self.active: OwnedLog | None = None
        self.spare: OwnedLog | None = None
        self.old: list[OwnedLog] = []
        self.parts: dict[int, OwnedParts] = {}
        self._closed = False
        self.reserved = 0
        """Bytes that staged records will take."""

    def prepare(self) -> None:
        """See that there is an active file and a spare. Not while the caller has the catalog's write lock.

        Raises OperationalError when there is no active file and none can be made; a spare that can't be made is left
        for the next time.
        """
        if self._is_ready():
            return
        with self._upkeep:
            self._require_open()
            self._retire_old()
            while not self._is_ready():
                with self._mutex:
                    self._promote()
                    have_active = self.active is not None
                try:
                    made = OwnedLog(self._obtain())
                except (OSError, OperationalError) as error:
                    if have_active:
                        return
                    raise OperationalError(
                        f"no commit log can be made in {self._directory}: {error}; transactions over several shards "
                        "can't be committed"
                    ) from error
                with self._mutex:
                    if self.active is None:
                        self.active = made
                    else:
                        self.spare = made

    def _require_open(self) -> None:
        """Make no file that nobody would close. ``upkeep`` is held."""
        if self._closed:
            raise OperationalError(f"the commit log of {self._directory} is closed")

    def _is_ready(self) -> bool:
        active, spare = self.active, self.spare
        if active is None or active.file.failure:
            return False
        if spare is not None and not spare.file.failure:
            return True
        # One that was full a moment ago will be the spare, as soon as the transactions in it are over.
        return active.file.end < HALF_FULL and any(held.in_flight and not held.file.failure for held in self.old)

    def _promote(self) -> OwnedLog | None:
        """Return a sound active file, if need be the spare. The mutex is held."""
        if self.spare is not None and self.spare.file.failure:
            self.old.append(self.spare)
            self.spare = None
        if self.active is None or self.active.file.failure:
            self._change()
        return self.active

    def _change(self) -> None:
        if self.active is not None:
            self.old.append(self.active)
        self.active, self.spare = self.spare, None

    def choose(self) -> OwnedLog | None:
        """Return the file for the next batch; None: none can be written. The caller has ``io`` and leads."""
        with self._mutex:
            active, spare = self._promote(), self.spare
            full = active is not None and active.file.end >= HALF_FULL
            if full and spare is not None and spare.file.room - spare.file.end >= self.reserved:
                self._change()
            return self.active

    def note_poisoned(self, held: OwnedLog, error: BaseException) -> None:
        """Give a file up after a failed write or sync."""
        held.file.poison(error if isinstance(error, OSError) else OSError(f"interrupted by {error!r}"))
        self._counters.add(log_failures=1)
        emit("log.poisoned.complete", number=held.file.number, error=error)

    def make_room(self) -> None:
        """Let the active file have space for all staged records, and the spare too, if it can be.

        Raises OperationalError without a file that can be written, and on a full disk.
        """
        for _ in range(3):
            with self._mutex:
                active, spare, reserved = self._promote(), self.spare, self.reserved
            if active is None:
                raise OperationalError(f"there is no commit log in {self._directory} that can be written")
            try:
                if active.file.room < active.file.end + reserved:
                    with self.io:
                        active.file.make_room(active.file.end + reserved)
            except OSError as error:
                if error is active.file.failure:
                    self.note_poisoned(active, error)
                if active.file.failure:
                    continue
                raise OperationalError(f"no space for a transaction in {active.file.path}: {error}") from error
            if spare is not None and spare.file.room < SECTOR + reserved:
                try:
                    with self.io:
                        spare.file.make_room(SECTOR + reserved)
                except OSError as error:  # it only has to be there when the active one fails
                    if error is spare.file.failure:
                        self.note_poisoned(spare, error)
            return
        raise OperationalError(f"the commit logs in {self._directory} fail one after the other")

    def obtain_parts(self, token: int) -> LogFile:
        """Return a file for the parts of one transaction. Raises OperationalError. Not under the catalog's lock."""
        with self._upkeep:
            self._require_open()
            try:
                file = self._obtain()
            except OSError as error:
                raise OperationalError(f"no commit log can be made in {self._directory}: {error}") from error
            with self._mutex:
                self.parts[token] = OwnedParts(file)
            return file

    def _obtain(self) -> LogFile:
        """Return an empty file with its row in the catalog: the lowest that can be taken over, else a new one."""
        taken = log_numbers(self._layer, self._directory)
        for number in sorted(taken - self._own_numbers()):
            file = self._take_over(number)
            if file is not None:
                return file
        taken |= set(self._catalog.log_numbers())  # a row without a file is a loss, which a new file would hide
        number = 0
        while True:
            if number not in taken:
                with step("log.created", number=number):
                    made = LogFile.create(self._layer, self._directory, number, self._database_id)
                if made is not None:
                    self._counters.add(log_files_created=1)
                    return self._register(made)
            number += 1

    def _register(self, file: LogFile) -> LogFile:
        try:
            with step("log.registered", number=file.number):
                self._catalog.add_log(file.number)
        except BaseException:
            file.close()
            raise
        return file

    def _take_over(self, number: int) -> LogFile | None:
        try:
            file = LogFile.take(self._layer, self._directory, number, self._database_id)
        except OSError:
            return None
        if file is None:
            return None
        try:
            if self._can_retire(file.contents(), of_dead=True):
                with step("retire.reset", number=number):
                    file.reset()
                self._counters.add(log_files_retired=1)
                return self._register(file)
        except (OSError, Error) as error:  # damaged, a shard that can't be reached: left as it is
            emit("retire.failed", number=number, error=error)
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def _own_numbers(self) -> set[int]:
        with self._mutex:
            files = [each.file for each in (self.active, self.spare, *self.old) if each is not None]
            files += [each.file for each in self.parts.values()]
        return {file.number for file in files}

    def retire(self) -> None:
        """Free the old files that can be freed; at once back when another thread is at it. No lock may be held."""
        if (self.old or self.parts) and self._upkeep.acquire(blocking=False):
            try:
                self._retire_old()
            finally:
                self._upkeep.release()

    def _retire_old(self) -> None:
        self._retire_parts()
        now = time.monotonic()
        with self._mutex:
            ready = [held for held in self.old if not held.in_flight and held.not_before <= now]
        for held in ready:
            held.not_before = now + _TRY_AGAIN_S
            with contextlib.suppress(Error, OSError):
                if self._is_settled(held.doubtful) and self._can_retire(held.file.contents()):
                    self._free(held)

    def _retire_parts(self) -> None:
        with self._mutex:
            parts = list(self.parts.items())
        for token, held in parts:
            with contextlib.suppress(Error, OSError):
                if held.dropped or (held.record is not None and self._is_settled((held.record,))):
                    self._delete(held.file)
                    with self._mutex:
                        del self.parts[token]

    def _free(self, held: OwnedLog) -> None:
        """Make a retired file the spare, or delete it."""
        file = held.file
        if file.failure is None and self.spare is None:
            with step("retire.reset", number=file.number):
                file.reset()
            with self._mutex:
                self.old.remove(held)
                self.spare = OwnedLog(file)
        else:
            self._delete(file)
            with self._mutex:
                self.old.remove(held)
        self._counters.add(log_files_retired=1)

    def _delete(self, file: LogFile) -> None:
        """Row first: a row without its file says that decisions were lost."""
        self._catalog.remove_log(file.number)
        file.delete()

    def _can_retire(self, contents: LogContents, *, of_dead: bool = False) -> bool:
        """Tell whether nothing in a file is needed any more, after syncing the shards that make it so."""
        if contents.parts_of is not None:
            return self._can_retire_parts(contents.parts_of)
        tokens = {record.token for record in contents.records}
        if tokens & self.parts.keys():
            return False  # its parts go first: parts without a decision are those of none
        void = set(self._catalog.rolled_back(tokens)) if tokens else set()
        live = [record for record in contents.records if record.token not in void]
        if not self._is_applied(live):
            return False
        if of_dead and live:
            with step("retire.outcome", number=contents.number):
                self._catalog.note_committed({record.token for record in live})
        return True

    def _can_retire_parts(self, token: int) -> bool:
        """Tell whether a dead process's parts are needed by nobody. Without a decision there will be none."""
        record = self._reader.find(token)
        if record is not None:
            return self._is_applied((record,))
        self._catalog.note_rolled_back((token,))
        return True

    def _is_settled(self, records: Sequence[Record]) -> bool:
        void = self._catalog.rolled_back({record.token for record in records}) if records else ()
        return self._is_applied([record for record in records if record.token not in void])

    def _is_applied(self, records: Iterable[Record]) -> bool:
        """Tell whether each record is applied on all its shards, and durable there."""
        numbers: dict[int, int] = {}
        for record in records:
            for each in record.participants:
                numbers[each.shard] = max(each.number, numbers.get(each.shard, 0))
        if not numbers:
            return True
        if not all(self._shards.applied(shard, number) for shard, number in numbers.items()):
            return False
        with step("retire.synced", shards=tuple(numbers)):
            for shard in numbers:  # after the look: what was seen is what gets synced
                self._shards.sync(shard)
        return True

    def close(self, timeout_s: float) -> Collection[int]:
        """Retire and delete what can be, close the rest. Returns the numbers of own files that stay.

        Waits for ``io`` and ``upkeep`` up to ``timeout_s`` seconds; a file in use after that stays open.
        """
        if not self._upkeep.acquire(timeout=timeout_s):
            return self._own_numbers()
        self._closed = True
        try:
            if not self.io.acquire(timeout=timeout_s):
                return self._own_numbers()
            try:  # whoever leads next finds no file
                with self._mutex:
                    held = [*self.old, *(each for each in (self.active, self.spare) if each is not None)]
                    self.old, self.active, self.spare = [], None, None
            finally:
                self.io.release()
            self._retire_parts()
            left = [each.file for each in held if not self._end(each)]
            left += [each.file for each in self.parts.values()]
            for file in left:
                file.close()
            self._clear()
            return {file.number for file in left}
        finally:
            self._upkeep.release()

    def _end(self, held: OwnedLog) -> bool:
        with contextlib.suppress(Error, OSError):
            done = not held.in_flight and self._is_settled(held.doubtful) and self._can_retire(held.file.contents())
            if done:
                self._delete(held.file)
            return done
        return False

    def _clear(self) -> None:
        """Delete what dead processes left and nobody needs."""
        with contextlib.suppress(Error, OSError):
            clear_unfinished(self._layer, self._directory)
            for number in sorted(log_numbers(self._layer, self._directory) - self._own_numbers()):
                file = self._take_over(number)
                if file is not None:
                    self._delete(file)


__all__ = ["HALF_FULL", "LogShards", "OwnLogs", "OwnedLog", "OwnedParts"]
