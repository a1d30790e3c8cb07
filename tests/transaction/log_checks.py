"""A commit log on a disk in memory, told failures, and the look at it afterwards: was anybody told wrongly?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from log_world import DATABASE_BYTES, DATABASE_ID, MemoryCatalog, MemoryShards, record_of
from memory_disk import MemoryDisk

from shardlite.errors import OperationalError, TransactionInDoubtError
from shardlite.transaction.commit_log import CommitLog
from shardlite.transaction.group_commit import Staged
from shardlite.transaction.log_format import Record
from shardlite.transaction.log_reader import LogReader

DECIDED, FAILED, IN_DOUBT = "decided", "failed", "in doubt"
WAYS = [("dropped", 0), ("kept", 0), *(("torn", seed) for seed in range(6))]


def valid_records(disk: MemoryDisk, catalog: MemoryCatalog) -> dict[int, Record]:
    """What is decided, as anybody reads it; copies must be equal."""
    found: dict[int, Record] = {}
    for contents in LogReader(disk, "", DATABASE_BYTES, catalog).contents():
        for record in contents.records:
            plain = replace(record, is_copy=False)
            assert found.setdefault(record.token, plain) == plain
    return found


@dataclass
class World:
    """One process's log and all that it told."""

    disk: MemoryDisk = field(default_factory=MemoryDisk)
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    shards: MemoryShards = field(default_factory=MemoryShards)
    staged: dict[int, Record] = field(default_factory=dict)
    told: dict[int, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    log: CommitLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.open()

    def open(self) -> CommitLog:
        return CommitLog("", DATABASE_ID, self.catalog, self.shards, layer=self.disk)

    def commit(self, record: Record, *, apply: bool = True) -> str:
        """Commit and note what was told; check at once that it is true whatever a power loss leaves."""
        self.staged[record.token] = record
        try:
            self.log.prepare()
            staged = self.log.stage(record)
        except OperationalError:
            return self._tell(record, FAILED)
        return self.finish(staged, apply=apply)

    def finish(self, staged: Staged, *, apply: bool = True) -> str:
        (record,) = staged.records
        try:
            self.log.commit(staged)
        except TransactionInDoubtError as error:
            return self._tell(record, IN_DOUBT if error.txid == record.txid else "in doubt, of another name")
        except OperationalError:
            return self._tell(record, FAILED)
        else:
            told = self._tell(record, DECIDED)
            if apply:
                self.shards.apply(record)
            return told
        finally:
            self.log.release(staged)

    def _tell(self, record: Record, what: str) -> str:
        self.told[record.token] = what
        self.check()
        return what

    def check(self) -> None:
        """Compare what was told with what is valid now, and after each kind of power loss."""
        told = dict(self.told)  # first: other threads go on
        self._check_against(self.disk, "now", told)
        for how, seed in WAYS:
            self._check_against(self.disk.after_power_loss(how, seed), f"{how} {seed}", told)

    def _check_against(self, disk: MemoryDisk, when: str, told: dict[int, str]) -> None:
        found = valid_records(disk, self.catalog)
        for token, record in found.items():
            if self.staged.get(token) != record:
                self.violations.append(f"{when}: a record that nobody wrote: {record}")
        for token, what in told.items():
            record = self.staged[token]
            safe = all(self.shards.synced.get(each.shard, 0) >= each.number for each in record.participants)
            if what == DECIDED and token not in found and not safe:
                self.violations.append(f"{when}: {record.txid} was told decided and is lost")
            if what == FAILED and token in found:
                self.violations.append(f"{when}: {record.txid} was told rolled back and is valid")


def batch_of_three(world: World, first_shard: int = 10) -> list[str]:
    """One record alone, one that needs more room, and one during whose write two others queue: batches of 1 and 2."""
    results = [world.commit(record_of({0: 1})), world.commit(record_of({1: 1}, redo=b"x" * 100_000))]
    records = [record_of({first_shard + k: 1, first_shard + 10 + k: 1}, redo=bytes([65 + k]) * 900) for k in range(3)]
    staged = []
    for record in records:
        world.staged[record.token] = record
        try:
            world.log.prepare()
            staged.append(world.log.stage(record))
        except OperationalError:
            results.append(world._tell(record, FAILED))
    results += run_together(world, staged)
    return results


def run_together(world: World, staged: Sequence[Staged]) -> list[str]:
    """Let the first lead, and the others queue while it writes: they are the next batch."""
    if not staged:
        return []
    results: dict[int, str] = {}
    errors: list[BaseException] = []
    group = world.log._group

    def run(index: int) -> None:
        try:
            results[index] = world.finish(staged[index])
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run, args=(index,)) for index in range(1, len(staged))]
    before, world.disk.on_write = world.disk.on_write, lambda: None

    def hold() -> None:
        world.disk.on_write = before
        for thread in others:
            thread.start()
        wait_until(lambda: len(group._queue) == len(others))

    world.disk.on_write = hold
    run(0)
    for thread in others:
        if thread.ident is None:  # the leader never wrote
            thread.start()
        thread.join()
    world.disk.on_write = before
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(staged))]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    waited = threading.Event()
    for _ in range(int(seconds / 0.0005)):
        if condition():
            return
        waited.wait(0.0005)
    raise AssertionError("it never came about")
