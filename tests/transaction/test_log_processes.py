"""The commit log between processes: kills, stops, forks, races for a file. Real files; each process a real one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from log_checks import wait_until
from log_world import DATABASE_BYTES, DATABASE_ID, SqliteWorld, record_of
from memory_disk import MemoryDisk

from shardlite.transaction.commit_log import CommitLog
from shardlite.transaction.file_layer import SystemFiles
from shardlite.transaction.log_file import LogFile, log_numbers

START = """
import os, signal, sys, threading, time
from log_world import SqliteWorld, record_of
from shardlite.errors import OperationalError, ProgrammingError
from shardlite.transaction import own_logs
from shardlite.transaction.events import crash_at, subscribe
from shardlite.transaction.file_layer import SystemFiles

world = SqliteWorld(sys.argv[1])
log = world.log()

def say(*words):
    print(*words, flush=True)

def commit(shard, redo=b"redo"):
    number = world.watermark(shard) + 1
    log.prepare()
    staged = log.stage(record_of({shard: number}, redo=redo))
    try:
        log.commit(staged)
        say("ack", shard, number)
        world.apply(shard, number)
    finally:
        log.release(staged)
    log.retire()
"""
FOREVER = """
own_logs.HALF_FULL = 8192
say("ready")
while True:
    commit(int(sys.argv[2]), os.urandom(700))
"""


def start(tmp_path: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", START + script, str(tmp_path), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )


def end(process: subprocess.Popen[str]) -> list[str]:
    """Return what it said, once it is over."""
    said, _ = process.communicate(timeout=120)
    return said.split("\n")[:-1]


def settle(world: SqliteWorld, log: CommitLog, shard: int) -> int:
    """Apply what a dead process decided; returns the shard's watermark."""
    watermark = world.watermark(shard)
    log.prepare()
    for found in log.unapplied(shard, watermark):
        if not log.is_durable(found):
            log.copy([found.record])
        watermark += 1
        assert found.record.number_on(shard) == watermark
        world.apply(shard, watermark)
    return watermark


@pytest.mark.parametrize("rounds", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_and_taken_over(tmp_path: Path, rounds: int) -> None:
    """Two processes commit until they are killed; another settles, commits and stays. Nothing acknowledged is lost."""
    world = SqliteWorld(str(tmp_path))
    rng = random.Random(rounds)
    log = world.log()
    acknowledged = 0
    for _ in range(rounds):
        processes = {shard: start(tmp_path, FOREVER, shard) for shard in (1, 2)}
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        time.sleep(rng.random() * 0.15)
        for process in processes.values():
            process.kill()
        for shard, process in processes.items():
            acks = [int(line.split()[2]) for line in end(process) if line.startswith("ack")]
            acknowledged += len(acks)
            left = [found.record for found in log.unapplied(shard, world.watermark(shard))]
            assert len(left) <= 1, "one transaction at a time"
            reached = settle(world, log, shard)
            assert reached >= max(acks, default=0)
        staged = log.stage(record_of({3: world.watermark(3) + 1}))
        log.commit(staged)
        world.apply(3, world.watermark(3) + 1)
        log.release(staged)
        if rng.random() < 0.5:
            log.close()
            log = world.log()
    assert acknowledged > rounds
    assert log.close() == set()
    assert log_numbers(SystemFiles(), str(tmp_path)) == set(world.log_numbers()) == set()
    assert [name for name in os.listdir(tmp_path) if not name.startswith("world.db")] == []


@pytest.mark.parametrize(
    "point",
    [
        f"{step}.{phase}"
        for step in ("log.created", "log.registered", "logged", "decided", "retire.synced", "retire.reset", "close.log")
        for phase in ("start", "complete")
    ],
)
def test_killed_at_each_step(tmp_path: Path, point: str) -> None:
    """A process dies at a step's first or third time; the next finds all that was acknowledged, and leaves nothing."""
    world = SqliteWorld(str(tmp_path))
    nth = 1 if point.startswith(("close", "log")) else 3
    script = f"""
own_logs.HALF_FULL = 2048
crash_at({point!r}, {nth})
for _ in range(12):
    commit(1)
log.close()
say("alive")
"""
    process = start(tmp_path, script)
    said = end(process)
    assert "alive" not in said
    assert process.returncode == -signal.SIGKILL
    log = world.log()
    assert settle(world, log, 1) >= len([line for line in said if line.startswith("ack")])
    assert log.close() == set()
    assert [name for name in os.listdir(tmp_path) if not name.startswith("world.db")] == []
    assert set(world.log_numbers()) == set()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system can't stop a process")
@pytest.mark.parametrize("point", ["log.created.complete", "logged.start", "logged.complete", "decided.complete"])
def test_a_stopped_owner_holds_nobody_up(tmp_path: Path, point: str) -> None:
    world = SqliteWorld(str(tmp_path))
    script = f"""
subscribe(lambda event: event.name == {point!r} and os.kill(os.getpid(), signal.SIGSTOP))
commit(1)
log.close()
say("done")
"""
    process = start(tmp_path, script)
    wait_until(lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None)
    try:
        log = world.log()
        began = time.monotonic()
        for number in range(1, 21):
            log.prepare()
            staged = log.stage(record_of({2: number}))
            log.commit(staged)
            world.apply(2, number)
            log.release(staged)
        log.unapplied(1, 0)
        assert time.monotonic() - began < 10
        log.close()
    finally:
        stop = threading.Event()

        def go_on() -> None:  # it stops at each such event
            while not stop.wait(0.001):
                process.send_signal(signal.SIGCONT)

        going = threading.Thread(target=go_on)
        going.start()
        try:
            said = end(process)
        finally:
            stop.set()
            going.join()
    assert said == ["ack 1 1", "done"]
    assert set(world.log_numbers()) == set()


def test_processes_race_for_file_numbers(tmp_path: Path) -> None:
    """Each gets files of its own; released together by closing their standard input."""
    SqliteWorld(str(tmp_path))
    script = """
say("ready")
sys.stdin.read()
log.prepare()
say("own", *sorted(log._own._own_numbers()))
commit(int(sys.argv[2]))
say("done")
time.sleep(60)
"""
    processes = [start(tmp_path, script, shard) for shard in range(5)]
    outputs = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            outputs.append(process.stdout)
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        owned: list[int] = []
        for index, output in enumerate(outputs):
            owned += map(int, output.readline().split()[1:])
            assert output.readline() == f"ack {index} 1\n"
            assert output.readline() == "done\n"
        assert sorted(owned) == list(range(10)), "each two, nobody's twice, no number left out"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    world = SqliteWorld(str(tmp_path))
    assert world.log().close() == set()
    assert set(world.log_numbers()) == set()


def race(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_create_the_same_number_at_once() -> None:
    """Both find the number free, and link at the same instant: one gets it."""
    barrier = threading.Barrier(2)

    class Racing(MemoryDisk):
        def link(self, source: str, target: str) -> None:
            barrier.wait(20)
            super().link(source, target)

    disk = Racing()
    made: list[LogFile | None] = []
    race(lambda index: made.append(LogFile.create(disk, "", 0, DATABASE_BYTES)), 2)
    assert sorted(each is None for each in made) == [False, True]
    assert list(disk.files) == ["commit_0.log"]


def test_a_deleted_file_is_not_taken(tmp_path: Path) -> None:
    """Opened before its owner deletes it, locked after: it isn't what the name stands for any more."""
    layer = SystemFiles()
    owner = LogFile.create(layer, str(tmp_path), 0, DATABASE_BYTES)
    assert owner is not None
    assert LogFile.take(layer, str(tmp_path), 0, DATABASE_BYTES) is None, "it has an owner"

    class Slow(SystemFiles):
        def open_file(self, path: str, *, writing: bool):  # type: ignore[no-untyped-def]
            file = super().open_file(path, writing=writing)
            owner.delete()
            return file

    if os.name != "nt":
        assert LogFile.take(Slow(), str(tmp_path), 0, DATABASE_BYTES) is None
        assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_has_a_log_of_its_own(tmp_path: Path) -> None:
    """The child closes what it inherited: its end, and its closing, leave the parent's files and locks alone."""
    SqliteWorld(str(tmp_path))
    script = """
commit(1)
mine = log._own._own_numbers()
staged = log.stage(record_of({1: 2}))
held = log._own.active.file
pid = os.fork()
if pid == 0:
    status = 1
    try:
        try:
            log.commit(staged)
        except ProgrammingError:
            log.release(staged)
            try:
                held.append([])
            except (ValueError, OSError):
                pass
            commit(2)
            assert not log._own._own_numbers() & mine
            inherited = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n != "0"
                         and os.path.exists(f"/proc/self/fd/{n}")] if os.path.isdir("/proc/self/fd") else []
            assert not any(f"commit_{k}.log" in name for name in inherited for k in mine), inherited
            assert log.close() == set()
            status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
assert log._own._own_numbers() == mine
log.commit(staged)
world.apply(1, 2)
log.release(staged)
say("own", *sorted(mine))
sys.stdin.read()
log.close()
say("closed")
"""
    process = start(tmp_path, script)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ack 1 1\n"
    assert process.stdout.readline() == "ack 2 1\n"
    assert process.stdout.readline() == "own 0 1\n"
    for number in (0, 1):
        assert LogFile.take(SystemFiles(), str(tmp_path), number, DATABASE_BYTES) is None, "the parent still has it"
    assert end(process) == ["closed"]
    assert log_numbers(SystemFiles(), str(tmp_path)) == set()


UNLOCKING = """
def reset(self):
    for file in self._files:
        file._lock.unlock()
SystemFiles.reset_after_fork = reset
"""
KEEPING = """
SystemFiles.reset_after_fork = lambda self: None
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("weakened", ["", UNLOCKING], ids=["closing", "unlocking"])
def test_a_childs_end_leaves_the_parents_lock(tmp_path: Path, weakened: str) -> None:
    """A child that unlocks what it inherited takes the lock from its parent too."""
    SqliteWorld(str(tmp_path))
    script = """
commit(1)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
say("forked")
sys.stdin.read()
"""
    process = start(tmp_path, weakened + script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ack 1 1\n"
    assert process.stdout.readline() == "forked\n"
    taken = LogFile.take(SystemFiles(), str(tmp_path), 0, DATABASE_BYTES)
    end(process)
    assert (taken is not None) == bool(weakened)
    if taken is not None:
        taken.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("weakened", ["", KEEPING], ids=["closing", "keeping"])
def test_a_child_that_outlives_its_parent_keeps_no_lock(tmp_path: Path, weakened: str) -> None:
    world = SqliteWorld(str(tmp_path))
    script = f"""
{weakened}
commit(1)
pid = os.fork()
if pid == 0:
    say("child", os.getpid())
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
    process = start(tmp_path, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ack 1 1\n"
    child = int(process.stdout.readline().split()[1])
    try:
        process.kill()
        process.wait()
        assert world.log().close() == set()
        left = log_numbers(SystemFiles(), str(tmp_path))
        assert left == ({0, 1} if weakened else set()), "free though the child lives"
    finally:
        os.kill(child, signal.SIGKILL)
        end(process)


def test_system_files(tmp_path: Path) -> None:
    layer = SystemFiles()
    path = str(tmp_path / "f")
    with pytest.raises(FileNotFoundError):
        layer.open_file(path, writing=False)
    file = layer.create_file(path)
    with pytest.raises(FileExistsError):
        layer.create_file(path)
    assert file.write(5, b"hello") == 5
    file.sync()
    file.sync_all()
    assert file.size() == 10
    assert file.read(0, 100) == bytes(5) + b"hello"
    assert file.is_at(path)
    layer.link(path, path + "2")
    with pytest.raises(FileExistsError):
        layer.link(path, path + "2")
    assert sorted(layer.names(str(tmp_path))) == ["f", "f2"]
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)
    layer.remove(path)
    layer.sync_directory(str(tmp_path))


def test_an_other_databases_log_is_refused(tmp_path: Path) -> None:
    layer = SystemFiles()
    made = LogFile.create(layer, str(tmp_path), 0, bytes(16))
    assert made is not None
    made.close()
    world = SqliteWorld(str(tmp_path))
    log = CommitLog(str(tmp_path), DATABASE_ID, world, world, layer=layer)
    with pytest.raises(Exception, match="put the right file back"):
        log.highest()
    log.prepare()
    assert 0 not in log._own._own_numbers()
    log.close()
