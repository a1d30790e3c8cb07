"""However many rows a statement gives, few of them are in memory at a time."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
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
SHARDS = 4
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Peak:
    """The most memory that the process had while the block ran, above what it had before. Linux."""

    def __enter__(self) -> Peak:
        gc.collect()
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)  # what was freed before and kept by the allocator must not hide what is taken now
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
    manager = ShardManager(num_shards=SHARDS, db_dir=directory, durability="normal")
    manager.create_table("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b INTEGER)")
    values = ({"id": i, "a": f"{i * 7919 % rows:08d}" * 8, "b": (rows - i) // 10} for i in range(1, rows + 1))
    manager.insert_many("t", values)
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


ASKS_LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is used")
BATCHES = 6 * MIB
"""Rows on their way: of each shard at most 1,000, here 300 bytes each as Python objects."""
SORTERS = SHARDS * 4 * MIB
"""Of each shard what SQLite's sorter keeps before it spills and while it merges what it spilled, and a page cache:
2,000 KiB each, which is SQLite's ``cache_size``."""
EXCHANGE = 64 * MIB
"""The exchange databases of all shards."""
COORDINATOR = 16 * MIB
"""Its cache, its sorter, a batch of rows on their way."""
BOUNDS = [
    ("SELECT * FROM t", BATCHES),
    ("SELECT * FROM t WHERE id > 0 AND a <> 'x'", BATCHES),
    ("SELECT * FROM t ORDER BY id DESC", BATCHES),
    ("SELECT * FROM t ORDER BY a", BATCHES + SORTERS),
    ("SELECT * FROM t ORDER BY substr(a, 5) DESC, id LIMIT 300000 OFFSET 0", BATCHES + SORTERS),
    ("SELECT DISTINCT a, id FROM t", EXCHANGE + COORDINATOR),
]


@ASKS_LINUX
@pytest.mark.parametrize(("sql", "most"), BOUNDS)
def test_memory_is_bounded(large: ShardManager, sql: str, most: int) -> None:
    with Peak() as peak:
        assert sum(1 for _ in large.execute(sql)) == 300_000
    assert peak.above < most
    count, objects = read_through(large, sql)
    assert count == 300_000
    assert objects < BATCHES


@ASKS_LINUX
def test_memory_without_exchange_databases(large: ShardManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond what an exchange database may hold pass through Python and are spilled."""
    monkeypatch.setattr(exchange, "EXCHANGE_BYTES", MIB)
    with Peak() as peak:
        assert sum(1 for _ in large.execute("SELECT DISTINCT a, id FROM t")) == 300_000
    assert peak.above < SHARDS * MIB + COORDINATOR


@ASKS_LINUX
@pytest.mark.parametrize("order", ["", " ORDER BY id DESC", " ORDER BY a"])
def test_memory_of_wide_rows(tmp_path: Path, order: str) -> None:
    with ShardManager(num_shards=SHARDS, db_dir=tmp_path / "db", durability="normal") as manager:
        manager.create_table("CREATE TABLE w(id INTEGER PRIMARY KEY, a TEXT)")
        for i in range(1, 601):
            manager.insert("w", {"id": i, "a": f"{i * 7919 % 601:04d}" * 50_000})
        manager.execute("SELECT max(a) FROM w").fetchall()
        with Peak() as peak:
            assert sum(len(row["a"]) for row in manager.execute("SELECT * FROM w" + order)) == 600 * 200_000
        # A sorter keeps a row while it compares it, and those of all runs that it merges.
        assert peak.above < (SHARDS * 3 * MIB if order != " ORDER BY a" else 2 * SORTERS + BATCHES)


def report(what: str, peak: Peak, began: float) -> None:
    print(f"{what}: {peak.above / MIB:.1f} MiB, {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@ASKS_LINUX
def test_ten_million_rows(tmp_path: Path) -> None:
    """Each statement says with ``-s`` what it took. ``SHARDLITE_ROWS`` takes another number of rows."""
    rows = int(os.environ.get("SHARDLITE_ROWS", "10000000"))
    queries = [
        ("SELECT * FROM t", BATCHES),
        ("SELECT * FROM t ORDER BY b", BATCHES),  # by an index
        ("SELECT * FROM t ORDER BY a", BATCHES + 2 * SORTERS),  # more is spilled, so more spilled runs are merged
        (f"SELECT id FROM t ORDER BY a COLLATE NOCASE DESC LIMIT {rows} OFFSET 0", BATCHES + 2 * SORTERS),
    ]
    with fill(tmp_path / "db", rows) as manager:
        manager.execute("CREATE INDEX t_b ON t(b)")
        manager.execute("CREATE TABLE copy(id INTEGER PRIMARY KEY, a TEXT, b INTEGER)")
        for sql, most in queries:
            with Peak() as peak:
                began = time.monotonic()
                result = manager.execute(sql)
                next(result)
                assert "ORDER BY a" in sql or time.monotonic() - began < 5
                assert sum(1 for _ in result) == rows - 1
            report(sql, peak, began)
            assert peak.above < most, sql
        for sql in (
            "INSERT INTO copy SELECT * FROM t",
            "INSERT INTO copy SELECT -id, a, b FROM t ORDER BY b LIMIT 99999",
        ):
            with Peak() as peak:
                began = time.monotonic()
                manager.execute(sql)
            report(sql, peak, began)
            assert peak.above < COORDINATOR + SORTERS, sql  # the shards' caches, while what is written goes to the logs
        assert manager.execute("SELECT count(*), sum(b) FROM copy WHERE id > 0").fetchone() == (
            manager.execute("SELECT count(*), sum(b) FROM t").fetchone()
        )
