"""However many rows a statement gives, few of them are in memory at a time."""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardlite import ShardManager
from shardlite.execute import exchange

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory that the process had while the block ran, above what it had before. Linux."""

    def __enter__(self) -> Peak:
        gc.collect()
        self._before = self._most = self._resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self._most = max(self._most, self._resident())

    @property
    def above(self) -> int:
        return self._most - self._before


def fill(directory: Path, rows: int) -> ShardManager:
    manager = ShardManager(num_shards=4, db_dir=directory, durability="normal")
    manager.create_table("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")
    manager.insert_many("t", ({"id": i, "a": f"{i * 7919 % rows:08d}" * 8} for i in range(1, rows + 1)))
    for sql in ("SELECT count(*) FROM t", "SELECT max(a) FROM t"):  # the page caches are filled
        manager.execute(sql).fetchall()
    return manager


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardManager]:
    """About 28 MiB of rows."""
    with fill(tmp_path_factory.mktemp("large") / "db", 300_000) as manager:
        yield manager


def read_through(manager: ShardManager, sql: str) -> tuple[int, int]:
    """Return how many rows a query gave, and the most bytes that Python objects took meanwhile."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in manager.execute(sql))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is used")
@pytest.mark.parametrize(
    ("sql", "most"),
    [
        ("SELECT * FROM t", 6 * MIB),
        ("SELECT * FROM t WHERE id > 0 AND a <> 'x'", 6 * MIB),
        # The exchange databases of all shards, the coordinator's own cache and the sorter's.
        ("SELECT * FROM t ORDER BY a", 64 * MIB + 16 * MIB),
    ],
)
def test_memory_is_bounded(large: ShardManager, sql: str, most: int) -> None:
    with Peak() as peak:
        assert sum(1 for _ in large.execute(sql)) == 300_000
    assert peak.above < most
    count, objects = read_through(large, sql)
    assert count == 300_000
    assert objects < 6 * MIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is used")
def test_memory_without_exchange_databases(large: ShardManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond what an exchange database may hold pass through Python and are spilled."""
    monkeypatch.setattr(exchange, "EXCHANGE_BYTES", MIB)
    with Peak() as peak:
        assert sum(1 for _ in large.execute("SELECT * FROM t ORDER BY a")) == 300_000
    assert peak.above < 20 * MIB


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is used")
def test_ten_million_rows(tmp_path: Path) -> None:
    with fill(tmp_path / "db", 10_000_000) as manager:
        with Peak() as peak:
            started = time.monotonic()
            result = manager.execute("SELECT * FROM t")
            next(result)
            assert time.monotonic() - started < 5
            assert sum(1 for _ in result) == 9_999_999
        assert peak.above < 8 * MIB
        with Peak() as peak:
            assert sum(1 for _ in manager.execute("SELECT * FROM t ORDER BY a")) == 10_000_000
        assert peak.above < 100 * MIB
