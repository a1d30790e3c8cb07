"""Many shards: nothing is opened before it is needed, and the cap on open connections holds under load."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shardlite import ShardManager

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed in /proc only")
DDL = "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)"


HeldFiles = Callable[[Path], list[str]]


@needs_proc
def test_opening_a_directory_opens_no_shard(
    tmp_path: Path, make_manager: Callable[..., ShardManager], held_files: HeldFiles
) -> None:
    def shard_descriptors(directory: Path) -> list[str]:
        return [path for path in held_files(directory) if "shard_" in path]

    with make_manager(num_shards=64) as manager:
        manager.create_table(DDL)
        manager.insert_many("t", ({"id": i, "n": i} for i in range(1, 201)))
    again = make_manager()
    assert again.num_shards == 64
    assert shard_descriptors(tmp_path) == []
    assert again.get("t", 7) == {"id": 7, "n": 7}
    used = {path.removesuffix("-wal").removesuffix("-shm") for path in shard_descriptors(tmp_path)}
    assert used == {str(tmp_path / "db" / f"shard_{again.shard_for('t', 7)}.db")}
    assert again.count("t") == 200


@needs_proc
def test_the_cap_holds_over_256_shards(
    tmp_path: Path, make_manager: Callable[..., ShardManager], held_files: HeldFiles
) -> None:
    """Eight threads of single-row work over 256 shards with at most 40 connections, three descriptors each."""
    cap = 40
    with make_manager(num_shards=256, max_open_connections=1000) as manager:
        manager.create_table(DDL)
    manager = make_manager(max_open_connections=cap)
    most = 0
    failures: list[BaseException] = []
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, sum("shard_" in path for path in held_files(tmp_path)))

    def work(seed: int) -> None:
        pick = random.Random(seed)
        try:
            for number in range(120):
                key = seed * 1000 + number + 1
                manager.insert("t", {"n": seed}, key)
                assert manager.get("t", key) == {"id": key, "n": seed}
                manager.get("t", pick.randrange(1, 9000))
        except BaseException as error:
            failures.append(error)

    watcher = threading.Thread(target=watch)
    crew = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    watcher.start()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    done.set()
    watcher.join()
    assert failures == []
    # A checkpoint may open two more connections for its moment; none is due at this size.
    assert 0 < most <= 3 * cap
    assert manager.count("t") == 8 * 120
    assert manager.database.budget.report().peak_open <= cap + 1  # an operation over all shards goes shard by shard


def test_an_operation_over_all_shards_may_exceed_the_cap(make_manager: Callable[..., ShardManager]) -> None:
    """A transaction needs all its shards at once; two of these at a time must not wait for each other for ever."""
    manager = make_manager(num_shards=24, max_open_connections=10, max_connections_per_shard=1, connection_timeout=30)
    manager.create_table(DDL)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(3):
                base = (seed * 100 + number) * 100
                manager.insert_many("t", [{"id": base + i, "n": seed} for i in range(1, 60)])
                manager.update("t", {"n": seed}, {"n": seed})
                manager.aggregate("t", "SUM(n)")
        except BaseException as error:
            failures.append(error)

    crew = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert failures == []
    assert manager.count("t") == 3 * 3 * 59
