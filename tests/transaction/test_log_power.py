"""Power loss at every instant of a log's life: after each write, sync, link, removal, with all that may be left."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from log_checks import DECIDED, FAILED, World, valid_records
from log_world import DATABASE_BYTES, record_of
from memory_disk import MemoryDisk

from shardlite.transaction import log_file, own_logs
from shardlite.transaction.log_file import LogFile, log_path
from shardlite.transaction.log_format import SECTOR, Record, decode_header, entry_of, seal
from shardlite.transaction.own_logs import OwnLogs

FEW_WAYS = [("dropped", 0), ("kept", 0), ("torn", 1), ("torn", 2), ("torn", 3)]


def watch(world: World) -> list[int]:
    """Check after each change of the disk; returns a list whose length is the number of changes."""
    changes: list[int] = []

    def check() -> None:
        changes.append(1)
        for how, seed in FEW_WAYS:
            when = f"change {len(changes)}, {how} {seed}"
            world._check_against(world.disk.after_power_loss(how, seed * len(changes)), when, world.told)

    world.disk.on_change = check
    return changes


def live(world: World, seed: int) -> None:
    """Processes one after the other: each commits, fails at times, and is killed, or closes."""
    rng = random.Random(seed)
    for _ in range(4):
        for _ in range(rng.randrange(3, 14)):
            shards = rng.sample(range(4), rng.randrange(1, 3))
            record = record_of(
                {shard: world.shards.watermark.get(shard, 0) + 1 for shard in shards},
                redo=rng.randbytes(rng.choice((9, 600, 1300))),
            )
            if rng.random() < 0.2:
                world.disk.fail_syncs[world.disk.syncs + rng.randrange(1, 3)] = OSError(errno.EIO, "input/output error")
            if rng.random() < 0.1:
                world.disk.fail_writes[world.disk.writes + 1] = lambda size: size // 3
            told = world.commit(record)
            if told not in (DECIDED, FAILED):
                settle(world, shards[0])
            if rng.random() < 0.5:
                for held in world.log._own.old:
                    held.not_before = 0
                world.log.retire()
        world.disk.fail_syncs.clear()
        world.disk.fail_writes.clear()
        if rng.random() < 0.5:
            world.log.close()
        world.disk.kill_process()
        world.log = world.open()
    world.log.close()


def settle(world: World, shard: int) -> None:
    """What whoever takes a shard's lock does with what is in doubt: copy and apply, or make it void."""
    world.disk.fail_syncs.clear()
    world.disk.fail_writes.clear()
    world.log.prepare()
    for found in world.log.unapplied(shard, world.shards.watermark.get(shard, 0)):
        world.log.copy([found.record])
        world.told[found.record.token] = DECIDED
        world.shards.apply(replace(found.record, is_copy=False))
    doubtful = [token for token, what in world.told.items() if what not in (DECIDED, FAILED)]
    world.catalog.note_rolled_back(doubtful)
    for token in doubtful:
        del world.told[token]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drop_cache", [False, True])
def test_power_loss_at_every_instant(seed: int, drop_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_logs, "HALF_FULL", 6 * SECTOR)
    world = World(MemoryDisk(seed))
    world.disk.drop_cache = drop_cache
    changes = watch(world)
    live(world, seed)
    assert world.violations == []
    assert len(changes) > 60
    assert world.disk.files == {}
    assert world.catalog.rows == set()


def reset_before_the_shards_are_synced(self: OwnLogs, records: list[Record]) -> bool:
    return all(self._shards.applied(each.shard, each.number) for record in records for each in record.participants)


def not_reset(self: LogFile) -> None:
    """Go on with the header that is there, behind the last valid record."""
    header = decode_header(self._file.read(0, SECTOR)) if self.room else None
    if header is None:
        RESET(self)
    else:
        self.salt = header.salt
        contents = self.contents()
        self.end = self.synced = contents.ends[-1] if contents.ends else SECTOR


RESET = LogFile.reset


def test_the_check_notices_a_reset_before_the_shards_are_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_logs, "HALF_FULL", 6 * SECTOR)
    monkeypatch.setattr(OwnLogs, "_is_applied", reset_before_the_shards_are_synced)
    world = World()
    watch(world)
    live(world, 1)
    assert any("is lost" in violation for violation in world.violations)


def torn_batch(world: World) -> tuple[list[Record], str]:
    """Let a process die in the middle of a write: of three records of a batch the second isn't whole."""
    world.log.prepare()
    held = world.log._own.active
    assert held is not None
    file = held.file
    assert file.salt is not None
    records = [record_of({shard: 1}, token=token) for shard, token in ((1, 101), (2, 103), (3, 105))]
    offset = SECTOR
    inode = world.disk.files[file.path]
    for record in records:
        sealed = seal(entry_of(record), file.salt, offset)
        if record is not records[1]:
            inode.write(offset, sealed)
        offset += len(sealed)
    world.disk.kill_process()
    world.staged[101] = records[0]
    world.shards.apply(records[0])
    return records, file.path


@pytest.mark.parametrize("reset", [RESET, not_reset], ids=["reset", "weakened"])
def test_what_lies_behind_a_torn_record_never_becomes_valid(
    reset: Callable[[LogFile], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken over and not reset, a record of the same length at the torn one's place makes the third valid."""
    monkeypatch.setattr(LogFile, "reset", reset)
    world = World()
    _, path = torn_batch(world)
    world.log = world.open()
    assert world.commit(record_of({2: 1})) == DECIDED
    assert world.log._own.active is not None
    assert world.log._own.active.file.path == path, "the lowest number is taken over"
    weakened = reset is not_reset
    assert (105 in valid_records(world.disk, world.catalog)) == weakened
    assert any("a record that nobody wrote" in violation for violation in world.violations) == weakened


@pytest.mark.parametrize("weakened", [False, True], ids=["new-salt", "weakened"])
def test_old_bytes_behind_a_reset_never_become_valid(weakened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same salt a record as long as the first one would make the old second one valid again."""
    if weakened:
        monkeypatch.setattr(log_file.os, "urandom", bytes)
    log = LogFile.create(MemoryDisk(), "", 0, DATABASE_BYTES)
    assert log is not None
    old = [record_of({1: 1}), record_of({1: 2})]
    log.append([entry_of(record) for record in old])
    assert log.contents().records == tuple(old)
    log.reset()
    assert log.contents().records == (tuple(old) if weakened else ())
    new = record_of({1: 3})
    log.append([entry_of(new)])
    assert log.contents().records == ((new, old[1]) if weakened else (new,))


def test_a_file_with_work_left_is_not_taken_over() -> None:
    world = World()
    record = record_of({1: 1})
    world.commit(record, apply=False)
    world.disk.kill_process()
    world.log = world.open()
    assert world.commit(record_of({2: 1})) == DECIDED
    assert world.log.find(record.token) == record
    (found,) = world.log.unapplied(1, 0)
    assert not world.log.is_durable(found), "of another process: copied before anybody acts on it"
    assert world.violations == []
    assert len(world.log.close()) == 0
    assert world.catalog.rows == {found.log}
    world.shards.apply(record)
    assert world.open().close() == set()
    assert world.disk.files == {}
    assert world.catalog.outcomes[record.token] == "committed", "its owner died: others may ask"


def test_a_file_without_its_row_is_read_and_taken_over() -> None:
    """A process died between the file and its row, or between the row and the file's end."""
    world = World()
    record = record_of({1: 1})
    world.commit(record, apply=False)
    (found,) = world.log.unapplied(1, 0)
    world.catalog.remove_log(found.log)
    assert world.log.find(record.token) == record
    world.disk.kill_process()
    world.shards.apply(record)
    other = world.open()
    other.prepare()
    assert found.log in world.catalog.rows
    assert other.close() == set()


def test_what_dead_processes_left_unfinished_is_cleared() -> None:
    world = World()
    for name in (".commit_0.log.12.ab.new", ".commit_3.log.12.ab.new"):
        world.disk.create_file(name)
    own = world.disk.open_file(".commit_3.log.12.ab.new", writing=True)
    assert own.try_lock()
    world.disk.create_file(log_path("", 1)).write(0, bytes(100))  # made in place, where there are no links
    world.log.prepare()
    world.log.close()
    assert list(world.disk.files) == [".commit_3.log.12.ab.new"], "the locked one is being made by somebody"


def test_a_file_is_made_where_there_are_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: MemoryDisk, source: str, target: str) -> None:
        raise OSError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(MemoryDisk, "link", no_links)
    world = World()
    watch(world)
    assert world.commit(record_of({1: 1})) == DECIDED
    assert sorted(world.disk.files) == [log_path("", 0), log_path("", 1)]
    assert world.log.close() == set()
    assert world.disk.files == {}
    assert world.violations == []


def test_a_reset_while_it_is_read_is_noticed() -> None:
    """Reader: header, then, after a reset and a new record, the rest. It must find the new record."""
    world = World()
    old, new = record_of({1: 1}), record_of({1: 2})
    world.commit(old)
    assert world.log._own.active is not None
    file = world.log._own.active.file
    inode = world.disk.files[file.path]
    plain, reads = inode.read, []

    def read(offset: int, size: int) -> bytes:
        reads.append(offset)
        if len(reads) == 2:
            file.reset()
            file.append([entry_of(new)])
        return plain(offset, size)

    world.staged[new.token] = new
    inode.read = read  # type: ignore[method-assign]
    assert list(valid_records(world.disk, world.catalog)) == [new.token]
    assert LogFile.take(world.disk, "", file.number, DATABASE_BYTES) is None
