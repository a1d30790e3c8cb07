"""The commit log of one process, on a disk in memory: who is told what, whatever fails."""

from __future__ import annotations

import _thread
import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from log_checks import DECIDED, FAILED, IN_DOUBT, World, batch_of_three, run_together, valid_records
from log_world import DATABASE_ID, MemoryCatalog, MemoryShards, record_of
from memory_disk import MemoryDisk

from shardlite.errors import OperationalError, ShardUnavailableError, TransactionInDoubtError
from shardlite.transaction import own_logs
from shardlite.transaction.commit_log import CommitLog
from shardlite.transaction.events import Event, subscribe
from shardlite.transaction.group_commit import Fate, GroupCommit
from shardlite.transaction.log_file import LogFile, log_path
from shardlite.transaction.log_format import SECTOR, entry_of

EIO = OSError(errno.EIO, "input/output error")
ENOSPC = OSError(errno.ENOSPC, "no space left on device")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    assert made.violations == []


def test_a_decision_is_durable_when_it_is_told(world: World) -> None:
    record = record_of({0: 1, 2: 1})
    assert world.commit(record, apply=False) == DECIDED
    assert valid_records(world.disk.after_power_loss("dropped"), world.catalog) == {record.token: record}
    assert world.log.find(record.token) == record
    assert world.log.find(record.token ^ 2) is None
    assert [found.record for found in world.log.unapplied(2, 0)] == [record]
    assert world.log.unapplied(2, 1) == []
    assert world.log.unapplied(1, 0) == []
    assert world.log.highest() == {0: 1, 2: 1}
    assert world.log.is_durable(world.log.unapplied(0, 0)[0])


@pytest.mark.parametrize("threads", [2, 8, 16])
def test_concurrent_committers_share_syncs(world: World, threads: int) -> None:
    """The first writes; all others queue meanwhile and share the second sync."""
    world.commit(record_of({0: 1}))
    staged = []
    for k in range(threads):
        record = record_of({k + 1: 1})
        world.staged[record.token] = record
        staged.append(world.log.stage(record))
    syncs = world.disk.syncs
    assert run_together(world, staged) == [DECIDED] * threads
    assert world.disk.syncs - syncs == 2
    statistics = world.log.statistics()
    assert statistics.multi_shard_commits == threads + 1
    assert statistics.log_syncs == statistics.log_batches == 3
    assert statistics.commits_per_log_sync == (threads + 1) / 3


def test_many_threads_commit_many_times(world: World) -> None:
    """Each look at the disk, after each commit, is part of ``finish``."""
    errors: list[BaseException] = []

    def work(shard: int) -> None:
        try:
            for number in range(1, 9):
                assert world.commit(record_of({shard: number, shard + 100: number})) == DECIDED
                world.log.retire()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert world.log.statistics().multi_shard_commits == 48
    assert world.log.close() == set()
    assert world.disk.files == {}
    assert world.catalog.rows == set()


def faults_at_every_step(prepare: Callable[[MemoryDisk, int], None], run: Callable[[World], object]) -> list[World]:
    """Run once without a fault to count, then once for each write or sync with a fault there, both kinds of cache."""
    plain = World()
    run(plain)
    steps = max(plain.disk.writes, plain.disk.syncs)
    assert steps >= 10
    worlds = []
    for k in range(1, steps + 1):
        for drop_cache in (False, True):
            world = World(MemoryDisk(seed=k))
            world.disk.drop_cache = drop_cache
            prepare(world.disk, k)
            run(world)
            worlds.append(world)
    return worlds


def fail_sync(disk: MemoryDisk, k: int) -> None:
    disk.fail_syncs[disk.syncs + k] = EIO


def fail_write(disk: MemoryDisk, k: int) -> None:
    disk.fail_writes[disk.writes + k] = ENOSPC


def short_write(share: int) -> Callable[[MemoryDisk, int], None]:
    def prepare(disk: MemoryDisk, k: int) -> None:
        disk.fail_writes[disk.writes + k] = lambda size: size * share // 8

    return prepare


def fail_two_syncs(disk: MemoryDisk, k: int) -> None:
    disk.fail_syncs[disk.syncs + k] = disk.fail_syncs[disk.syncs + k + 1] = EIO


def fail_sync_and_copy(disk: MemoryDisk, k: int) -> None:
    disk.fail_syncs[disk.syncs + k] = EIO
    disk.fail_writes[disk.writes + k + 1] = lambda size: size // 2


def no_sync_any_more(disk: MemoryDisk, k: int) -> None:
    disk.fail_syncs.update(dict.fromkeys(range(disk.syncs + k, disk.syncs + k + 100), EIO))


def the_disk_dies(disk: MemoryDisk, k: int) -> None:
    no_sync_any_more(disk, k)

    def die() -> None:
        if disk.syncs >= k:
            disk.fail_writes.update(dict.fromkeys(range(disk.writes + 1, disk.writes + 100), ENOSPC))

    disk.on_sync = die


FAULTS = [
    fail_sync,
    fail_write,
    *map(short_write, range(1, 8)),
    fail_two_syncs,
    fail_sync_and_copy,
    no_sync_any_more,
    the_disk_dies,
]
NAMES = ["sync", "write", *(f"short{k}" for k in range(1, 8)), "two-syncs", "sync-and-copy", "no-sync", "dead"]


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_nobody_is_told_wrongly(fault: Callable[[MemoryDisk, int], None]) -> None:
    told = set()
    for world in faults_at_every_step(fault, batch_of_three):
        world.check()
        assert world.violations == []
        told |= set(world.told.values())
        # The log goes on once the disk does.
        world.disk.on_sync = lambda: None
        world.disk.fail_syncs.clear()
        world.disk.fail_writes.clear()
        assert world.commit(record_of({77: 1})) == DECIDED
        assert world.violations == []
    assert {DECIDED, FAILED} <= told  # the making of the files fails too
    if fault in (fail_two_syncs, no_sync_any_more, the_disk_dies):
        assert IN_DOUBT in told
    if fault in FAULTS[:9]:
        assert IN_DOUBT not in told


def test_a_failed_sync_alone_is_told_to_nobody() -> None:
    for k in range(1, 5):
        world = World()
        world.log.prepare()
        fail_sync(world.disk, k)
        assert batch_of_three(world) == [DECIDED] * 5
        assert world.log.statistics().log_failures == 1
        assert world.violations == []


def rolled_back_without_a_look(self: GroupCommit, batch, held, start, error) -> None:  # type: ignore[no-untyped-def]
    from shardlite.transaction.group_commit import _fail

    _fail(batch, str(error))


def synced_again(self: GroupCommit, batch, held, start, error) -> None:  # type: ignore[no-untyped-def]
    """The naive answer to a failed sync: it succeeds the second time, and means nothing."""
    held.file.failure = None
    held.file.sync()
    self._decide(batch)


@pytest.mark.parametrize(
    ("weakened", "fault"),
    [(rolled_back_without_a_look, fail_sync), (rolled_back_without_a_look, short_write(5)), (synced_again, fail_sync)],
)
def test_the_checks_notice(
    weakened: Callable[..., None], fault: Callable[[MemoryDisk, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupCommit, "_save", weakened)
    assert any(world.violations for world in faults_at_every_step(fault, batch_of_three))


def test_the_checks_notice_a_missing_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogFile, "sync", lambda self: None)
    world = World()
    world.commit(record_of({0: 1}))
    assert world.violations


def test_a_poisoned_file_is_written_no_more_and_goes_when_it_is_applied(world: World) -> None:
    world.commit(record_of({0: 1}))
    world.disk.fail_syncs[world.disk.syncs + 1] = EIO
    record = record_of({1: 1})
    assert world.commit(record, apply=False) == DECIDED
    (poisoned,) = world.log._own.old
    with pytest.raises(OSError, match="has failed before"):
        poisoned.file.append([])
    assert world.log.statistics().log_failures == 1
    assert world.log.statistics().log_copies == 1
    world.log.retire()
    assert world.log._own.old == [poisoned], "shard 1 hasn't its record yet"
    world.shards.apply(record)
    poisoned.not_before = 0
    world.log.retire()
    assert world.log._own.old == []
    assert log_path("", poisoned.file.number) not in world.disk.files
    assert poisoned.file.number not in world.catalog.rows


def test_in_doubt_until_somebody_settles(world: World) -> None:
    world.commit(record_of({0: 1}))
    world.disk.fail_syncs.update({world.disk.syncs + k: EIO for k in (1, 2)})
    record = record_of({1: 1, 2: 1})
    assert world.commit(record) == IN_DOUBT
    assert world.log.statistics().in_doubt == 1
    world.log.prepare()  # new files
    found = world.log.unapplied(1, 0)
    assert [each.record.token for each in found] == [record.token]
    assert not world.log.is_durable(found[0])
    world.log.copy([found[0].record])
    found = world.log.unapplied(1, 0)
    assert world.log.is_durable(found[0]), "of two copies the durable one"
    assert found[0].record.is_copy
    assert record.token in valid_records(world.disk.after_power_loss("dropped"), world.catalog)
    world.shards.apply(record)
    for held in world.log._own.old:
        held.not_before = 0
    world.log.retire()
    assert world.log.statistics().in_doubt == 0
    assert world.log._own.old == []


def test_what_cant_be_read_back_counts_as_valid(world: World) -> None:
    """The record is whole, its sync failed, and reading it back fails too: it is copied, not rolled back."""
    world.commit(record_of({0: 1}))
    assert world.log._own.active is not None
    inode = world.disk.files[world.log._own.active.file.path]
    plain = inode.read

    def read(offset: int, size: int) -> bytes:
        inode.read = plain  # type: ignore[method-assign]
        raise EIO

    world.disk.fail_syncs[world.disk.syncs + 1] = EIO
    inode.read = read  # type: ignore[method-assign]
    assert world.commit(record_of({1: 1})) == DECIDED
    assert inode.read == plain


def test_a_doubtful_record_that_isnt_seen_keeps_its_file_until_it_is_settled(world: World) -> None:
    """The kernel dropped the page: the file looks empty, and yet the record may be back with the next boot."""
    world.commit(record_of({0: 1}))
    world.disk.fail_syncs.update(dict.fromkeys((world.disk.syncs + 1, world.disk.syncs + 2), EIO))
    record = record_of({1: 1})
    assert world.commit(record) == IN_DOUBT
    for inode in world.disk.files.values():
        for sector in inode.sectors.values():
            sector.cache = sector.durable
    assert world.log.find(record.token) is None
    world.log.prepare()
    assert len(world.log._own.old) == 2
    world.log.retire()
    assert len(world.log._own.old) == 2
    world.catalog.note_rolled_back([record.token])
    for held in world.log._own.old:
        held.not_before = 0
    world.log.retire()
    assert world.log._own.old == []


def test_a_void_record_counts_for_nobody(world: World) -> None:
    record = record_of({1: 1})
    world.commit(record, apply=False)
    world.catalog.note_rolled_back([record.token])
    assert world.log.find(record.token) is None
    assert world.log.unapplied(1, 0) == []
    assert world.log.highest() == {}
    world.told.clear()
    assert world.log.close() == set()


def test_contradictions_are_refused(world: World) -> None:
    first, second = record_of({1: 1}), record_of({1: 3})
    world.commit(first, apply=False)
    world.commit(second, apply=False)
    with pytest.raises(ShardUnavailableError, match="shard 1 is at decision 0, decision 2 is in no commit log and 3"):
        world.log.unapplied(1, 0)
    with pytest.raises(ShardUnavailableError, match="decision 2 is in no commit log"):
        world.log.unapplied(1, 1)
    assert len(world.log.unapplied(1, 2)) == 1
    world.commit(record_of({1: 3}), apply=False)
    with pytest.raises(ShardUnavailableError, match="different decisions 3"):
        world.log.unapplied(1, 2)
    world.told.clear()


def test_a_missing_or_damaged_log_is_refused_by_name(world: World) -> None:
    world.commit(record_of({1: 1}), apply=False)
    world.told.clear()
    (path,) = (path for path, inode in world.disk.files.items() if len(inode.sectors) > 1)
    inode = world.disk.files.pop(path)
    with pytest.raises(ShardUnavailableError, match=r"commit_\d.log: missing"):
        world.log.highest()
    world.disk.files[path] = inode
    head = inode.sectors.pop(0)
    with pytest.raises(ShardUnavailableError, match="without its header"):
        world.log.highest()
    head.cache = b"\1" + head.cache[1:]
    inode.sectors[0] = head
    with pytest.raises(ShardUnavailableError, match="is damaged"):
        world.log.highest()
    head.cache = world.disk.files[log_path("", 1 - world.log._own.active.file.number)].sectors[0].cache
    with pytest.raises(ShardUnavailableError, match="put the right file back"):
        world.log.highest()
    inode.sectors.clear()


def test_files_change_when_half_full_and_are_retired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_logs, "HALF_FULL", 4 * SECTOR)
    used = set()
    for number in range(1, 40):
        assert world.commit(record_of({1: number, 2: number})) == DECIDED
        used.add(world.log._own.active.file.number)
        world.log.retire()
    assert used == {0, 1}
    assert world.log.statistics().log_files_created == 2
    assert world.log.statistics().log_files_retired > 5
    assert len(valid_records(world.disk, world.catalog)) < 12


def test_what_isnt_applied_keeps_its_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_logs, "HALF_FULL", 4 * SECTOR)
    stuck = record_of({9: 1})
    world.commit(stuck, apply=False)
    for number in range(1, 30):
        world.commit(record_of({1: number}))
        world.log.retire()
    assert world.log.find(stuck.token) == stuck
    (left,) = world.log.close()
    assert world.catalog.rows == {left}
    assert list(world.disk.files) == [log_path("", left)]


def test_space_is_made_before_the_record(world: World) -> None:
    """On a full disk a transaction is refused when it is staged, and needs no space after that."""
    world.commit(record_of({0: 1}))
    big = record_of({1: 1}, redo=b"x" * 300_000)
    world.staged[big.token] = big
    staged = world.log.stage(big)
    assert world.log._own.active.file.room >= 300_000
    assert world.log._own.spare.file.room >= 300_000
    rooms = [inode.size for inode in world.disk.files.values()]
    assert world.finish(staged) == DECIDED
    assert [inode.size for inode in world.disk.files.values()] == rooms
    world.disk.fail_writes[world.disk.writes + 1] = ENOSPC
    with pytest.raises(OperationalError, match="no space"):
        world.log.stage(record_of({2: 1}, redo=b"x" * 900_000))
    assert world.log._own.reserved == 0
    assert world.commit(record_of({2: 1})) == DECIDED


def test_a_smaller_file_on_a_nearly_full_disk() -> None:
    world = World()
    world.disk.fail_writes[1] = lambda size: 20_000
    assert world.commit(record_of({0: 1})) == DECIDED
    assert world.log._own.active.file.room == 16 * 1024
    assert world.violations == []


def test_no_file_can_be_made(world: World) -> None:
    world.disk.fail_writes.update(dict.fromkeys(range(1, 3), ENOSPC))
    with pytest.raises(OperationalError, match="no commit log can be made"):
        world.log.prepare()
    assert world.disk.files == {}
    assert world.commit(record_of({0: 1})) == DECIDED


def test_closing_waits_for_what_is_staged_and_takes_nothing_new(world: World) -> None:
    record = record_of({0: 1})
    world.staged[record.token] = record
    world.log.prepare()
    staged = world.log.stage(record)
    left: list[object] = []
    closer = threading.Thread(target=lambda: left.append(world.log.close(30)))
    closer.start()
    while not world.log.closed:
        pass
    with pytest.raises(OperationalError, match="closed"):
        world.log.stage(record_of({1: 1}))
    assert world.finish(staged) == DECIDED
    closer.join()
    assert left == [set()]
    assert world.disk.files == {}


def test_nothing_is_made_after_closing(world: World) -> None:
    assert world.log.close() == set()
    for use in (world.log.prepare, world.log._own.prepare, lambda: world.log.write_ahead(1)):
        with pytest.raises(OperationalError, match="closed"):
            use()
    assert world.disk.files == {}
    assert world.log.close() == set()


def test_staging_needs_a_file(world: World) -> None:
    with pytest.raises(OperationalError, match="no commit log"):
        world.log.stage(record_of({0: 1}))
    assert world.log.close(0) == set()


def test_a_copy_that_cant_be_made_is_an_error(world: World) -> None:
    record = record_of({0: 1})
    world.staged[record.token] = record
    world.log.prepare()
    world.log.copy([])
    no_sync_any_more(world.disk, 1)
    with pytest.raises(OperationalError, match="can't be copied") as caught:
        world.log.copy([record])
    assert not isinstance(caught.value, TransactionInDoubtError)
    assert world.log.statistics().in_doubt == 0
    with pytest.raises(OperationalError, match="no commit log"):
        world.log.copy([record])
    world.disk.fail_syncs.clear()
    world.log.prepare()
    world.log.copy([record, record_of({1: 1}, token=record.token ^ 2)])
    world.staged.update((each.record.token, replace(each.record, is_copy=False)) for each in world.log.unapplied(1, 0))
    assert len(valid_records(world.disk.after_power_loss("dropped"), world.catalog)) == 2


def test_closing_doesnt_wait_for_ever(world: World) -> None:
    record = record_of({0: 1})
    world.staged[record.token] = record
    world.log.prepare()
    staged = world.log.stage(record)
    world.log.close(0.01)
    assert world.finish(staged) == FAILED
    assert world.log.close() == set()


def test_an_interrupt_comes_when_the_fate_is_known(world: World) -> None:
    world.commit(record_of({0: 1}))
    for moment in ("on_write", "on_sync"):
        record = record_of({0: world.shards.watermark[0] + 1})
        world.staged[record.token] = record
        world.log.prepare()
        staged = world.log.stage(record)

        def interrupt(moment: str = moment) -> None:
            setattr(world.disk, moment, lambda: None)
            raise KeyboardInterrupt

        setattr(world.disk, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.log.commit(staged)
        assert staged.fate is (Fate.FAILED if moment == "on_write" else Fate.DECIDED)
        assert world.finish(staged) == (FAILED if moment == "on_write" else DECIDED)
    assert world.commit(record_of({0: world.shards.watermark[0] + 1})) == DECIDED


def test_a_committer_that_gives_up_holds_nobody_up(world: World) -> None:
    """Released without a commit, or interrupted before one: nothing of it is written, and others go on."""
    world.log.prepare()
    record = record_of({5: 1})
    world.staged[record.token] = record
    staged = world.log.stage(record)
    world.log._group._queue[staged] = None
    world.log._group._leader = staged
    world.log.release(staged)
    with pytest.raises(OperationalError, match="wasn't committed"):
        world.log.commit(staged)
    world.told[record.token] = FAILED
    assert world.commit(record_of({0: 1})) == DECIDED


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
def test_interrupts_at_random_moments(tmp_path: Path) -> None:
    """Ctrl-C again and again in the midst of commits: every fate becomes known, and other threads go on."""
    catalog, shards = MemoryCatalog(), MemoryShards()
    log = CommitLog(str(tmp_path), DATABASE_ID, catalog, shards)
    log.prepare()
    armed, over, interrupts = False, threading.Event(), 0

    def interrupt(signum: int, frame: object) -> None:
        nonlocal interrupts
        if armed:
            interrupts += 1
            raise KeyboardInterrupt

    def work(shard: int) -> None:
        while not over.is_set():
            log.prepare()
            commit(shard)
            over.wait(0.001)

    def commit(shard: int) -> None:
        record = record_of({shard: shards.watermark.get(shard, 0) + 1})
        staged = log.stage(record)
        try:
            log.commit(staged)
            shards.apply(record)
        except TransactionInDoubtError:
            catalog.note_rolled_back([record.token])
        except OperationalError:
            pass
        finally:
            log.release(staged)
            log.retire()

    def pester() -> None:
        while not over.wait(0.0003):
            _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, interrupt)
    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2)] + [threading.Thread(target=pester)]
    try:
        for thread in threads:
            thread.start()
        fates: dict[int, Fate] = {}
        end = time.monotonic() + 60
        while (interrupts < 60 or len(fates) < 60) and time.monotonic() < end:
            log.prepare()
            record = record_of({0: shards.watermark.get(0, 0) + 1})
            staged = log.stage(record)
            while staged.fate is Fate.OPEN:
                try:
                    armed = True
                    log.commit(staged)
                    armed = False
                except (KeyboardInterrupt, OperationalError):
                    armed = False
            log.release(staged)
            fates[record.token] = staged.fate
            if staged.fate is Fate.FAILED:
                assert log.find(record.token) is None
            if staged.fate is Fate.DECIDED:
                shards.apply(record)
            else:
                catalog.note_rolled_back([record.token])
            log.retire()
    finally:
        armed = False
        over.set()
        for thread in threads:
            thread.join(30)
        signal.signal(signal.SIGINT, before)
    assert not any(thread.is_alive() for thread in threads)
    assert interrupts >= 20
    assert Fate.DECIDED in fates.values()
    assert shards.watermark[1] > 2
    assert log.close() == set()


def test_events_tell_each_durable_step(world: World) -> None:
    events: list[Event] = []
    end = subscribe(events.append)
    try:
        world.commit(record_of({0: 1}))
        world.disk.fail_syncs[world.disk.syncs + 1] = EIO
        world.commit(record_of({0: 2}))
        world.log.close()
    finally:
        end()
    names = [event.name for event in events]
    create = ["log.created.start", "log.created.complete", "log.registered.start", "log.registered.complete"]
    commit = ["logged.start", "logged.complete", "decided.start", "decided.complete"]
    poison = ["logged.start", "logged.complete", "decided.start", "decided.failed", "log.poisoned.complete"]
    copied = ["log.copied.start", "log.copied.complete", "decided.start", "decided.complete"]
    assert names[:21] == create * 2 + commit + poison + copied
    assert "retire.synced.complete" in names
    assert names[-1] == "close.log.complete"


def test_a_subscriber_that_fails_changes_nothing(world: World) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError(event.name)

    end = subscribe(fail)
    try:
        assert world.commit(record_of({0: 1})) == DECIDED
    finally:
        end()


def test_parts_are_written_ahead_and_read(world: World) -> None:
    world.log.prepare()
    token = 0xABCDEF01
    writer = world.log.write_ahead(token)
    writer.add(0, b"a" * 1_500_000)
    writer.add(0, b"b" * 10)
    hashes = writer.finish()
    assert len(hashes) == 3
    plain = record_of({0: 1}, token=token)
    record = type(plain)(token, 1, 1, plain.participants, (b"end",), hashes)
    assert world.commit(record, apply=False) == DECIDED
    found = world.log.find(token)
    assert found == record
    assert b"".join(part.data for part in world.log.parts(found)) == b"a" * 1_500_000 + b"b" * 10
    assert len(list(world.log.parts(found))) == 3
    world.log.retire()
    assert len(world.disk.files) == 3
    world.shards.apply(record)
    world.log.retire()
    assert len(world.disk.files) == len(world.catalog.rows) == 2
    with pytest.raises(ShardUnavailableError, match="3 of the 3 parts"):
        list(world.log.parts(found))


def test_parts_go_before_their_decision(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts without a decision are taken for those of none, so a decision stays as long as its parts."""
    monkeypatch.setattr(own_logs, "HALF_FULL", 2 * SECTOR)
    world.log.prepare()
    writer = world.log.write_ahead(0xA1)
    writer.add(0, b"x")
    plain = record_of({0: 1}, token=0xA1)
    record = type(plain)(0xA1, 1, 1, plain.participants, (b"",), writer.finish())
    world.commit(record)
    with monkeypatch.context() as patch:
        patch.setattr(own_logs.OwnLogs, "_retire_parts", lambda self: None)
        world.commit(record_of({0: 2}))
        world.commit(record_of({0: 3}))
        world.log.retire()
        assert world.log.find(0xA1) == record
    for held in world.log._own.old:
        held.not_before = 0
    world.log.retire()
    assert world.log.find(0xA1) is None
    assert len(world.disk.files) == 2


def test_the_number_of_a_lost_file_is_not_used_anew(world: World) -> None:
    world.catalog.add_log(0)
    world.log.prepare()
    assert world.log._own._own_numbers() == {1, 2}
    with pytest.raises(ShardUnavailableError, match=r"commit_0.log: missing"):
        world.log.highest()
    world.catalog.remove_log(0)


def test_what_isnt_synced_yet_is_not_durable(world: World) -> None:
    world.log.prepare()
    record = record_of({0: 1})
    assert world.log._own.active is not None
    world.log._own.active.file.append([entry_of(record)])
    (found,) = world.log.unapplied(0, 0)
    assert not world.log.is_durable(found)
    world.log._own.active.file.sync()
    assert world.log.is_durable(found)


def test_no_change_to_a_file_without_space(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spare couldn't be made larger: a record for which the active file has space goes there, half full or not."""
    monkeypatch.setattr(own_logs, "HALF_FULL", 2 * SECTOR)
    world.commit(record_of({0: 1}))
    assert world.log._own.spare is not None
    active, room = world.log._own.active, world.log._own.spare.file.room
    world.disk.fail_writes[world.disk.writes + 2] = ENOSPC  # the first is the active one's
    assert world.commit(record_of({0: 2}, redo=b"x" * 100_000)) == DECIDED
    assert world.log._own.active is active
    assert world.log._own.spare.file.room == room


def test_parts_of_a_transaction_that_was_rolled_back_go(world: World) -> None:
    world.log.prepare()
    writer = world.log.write_ahead(77)
    writer.add(0, b"x")
    writer.discard()
    world.log.write_ahead(79).add(0, b"y")
    assert len(world.disk.files) == 4
    world.log.retire()
    assert len(world.disk.files) == 3
    world.disk.kill_process()
    other = world.open()
    other.prepare()
    assert other.close() == set()
    assert world.catalog.outcomes == {79: "rolled back"}
    assert world.disk.files == {}


def test_in_doubt_carries_its_name() -> None:
    assert TransactionInDoubtError("x").txid is None
