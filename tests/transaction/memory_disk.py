"""A disk in memory that forgets: what wasn't synced is lost, kept or torn at 512 bytes when the power goes.

It is a ``FileLayer``. Each sector has the value that is durable, what the page cache shows, and all values written
since: any of them may be on the disk. A failed sync leaves its sectors *clean*: later syncs don't write them any more
(https://lwn.net/Articles/752063/), and the cache may go on showing them or fall back to what the disk has.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

SECTOR = 512
ZEROS = bytes(SECTOR)


@dataclass
class Sector:
    durable: bytes = ZEROS
    cache: bytes = ZEROS
    possible: list[bytes] = field(default_factory=list)
    dirty: bool = False


@dataclass(eq=False)
class Inode:
    sectors: dict[int, Sector] = field(default_factory=dict)
    size: int = 0
    durable_size: int = 0
    holder: MemoryFile | None = None

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        first, last = offset // SECTOR, -(-end // SECTOR)
        blank = Sector()
        data = b"".join(self.sectors.get(index, blank).cache for index in range(first, last))
        return data[offset - first * SECTOR : end - first * SECTOR]

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for index in range(offset // SECTOR, -(-end // SECTOR)):
            start = index * SECTOR
            piece = data[max(0, start - offset) : start + SECTOR - offset]
            sector = self.sectors.get(index)
            if sector is None:
                if not any(piece):
                    continue
                sector = self.sectors[index] = Sector()
            at = max(0, offset - start)
            sector.cache = sector.cache[:at] + piece + sector.cache[at + len(piece) :]
            sector.possible.append(sector.cache)
            sector.dirty = True
        self.size = max(self.size, end)

    def sync(self) -> None:
        self.durable_size = self.size
        for sector in self.sectors.values():
            if sector.dirty:
                sector.durable, sector.possible, sector.dirty = sector.cache, [], False

    def fail_sync(self, rng: random.Random, drop_cache: bool) -> None:
        for sector in self.sectors.values():
            if sector.dirty:
                sector.dirty = False
                if drop_cache:
                    sector.durable = sector.cache = rng.choice([sector.durable, *sector.possible])
                    sector.possible = []

    def after_power_loss(self, how: str, rng: random.Random) -> Inode:
        left = Inode(size=self.size, durable_size=self.size)
        if how == "dropped" or (how == "torn" and rng.random() < 0.5):
            left.size = left.durable_size = self.durable_size
        for index, sector in self.sectors.items():
            value = sector.durable
            if sector.possible and how != "dropped":
                value = sector.possible[-1] if how == "kept" else rng.choice([value, *sector.possible])
            if index * SECTOR < left.size and any(value):
                left.sectors[index] = Sector(durable=value, cache=value)
        return left


class MemoryFile:
    """One open file of the disk."""

    def __init__(self, disk: MemoryDisk, inode: Inode) -> None:
        self.disk = disk
        self.inode = inode
        self.closed = False
        self.generation = disk.generation

    def _use(self) -> None:
        if self.closed or self.generation != self.disk.generation:
            raise ValueError("closed, or of a process that was killed")

    def read(self, offset: int, size: int) -> bytes:
        self._use()
        with self.disk.lock:
            return self.inode.read(offset, size)

    def write(self, offset: int, data: bytes) -> int:
        self._use()
        taken = self.disk.before_write(len(data))
        with self.disk.lock:
            self.inode.write(offset, data[:taken])
            self.disk.changed()
        return taken

    def sync(self) -> None:
        self._use()
        try:
            self.disk.before_sync()
        except OSError:
            with self.disk.lock:
                self.inode.fail_sync(self.disk.rng, self.disk.drop_cache)
                self.disk.changed()
            raise
        with self.disk.lock:
            self.inode.sync()
            self.disk.changed()

    sync_all = sync

    def size(self) -> int:
        self._use()
        return self.inode.size

    def try_lock(self) -> bool:
        self._use()
        with self.disk.lock:
            holder = self.inode.holder
            if holder is not None and not holder.closed and holder.generation == self.disk.generation:
                return holder is self
            self.inode.holder = self
            return True

    def is_at(self, path: str) -> bool:
        return self.disk.files.get(path) is self.inode

    def close(self) -> None:
        self.closed = True


class MemoryDisk:
    """The file layer. ``fail_writes`` and ``fail_syncs`` say what happens at the k-th, counted from 1.

    A write's fault is an OSError, or a number of bytes that are taken; a sync's fault is an OSError.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.lock = threading.RLock()
        self.files: dict[str, Inode] = {}
        self.durable_files: dict[str, Inode] = {}
        self.writes = 0
        self.syncs = 0
        self.fail_writes: dict[int, OSError | Callable[[int], int]] = {}
        self.fail_syncs: dict[int, OSError] = {}
        self.drop_cache = False
        self.generation = 0
        self.on_change: Callable[[], None] = lambda: None
        self.on_write: Callable[[], None] = lambda: None
        self.on_sync: Callable[[], None] = lambda: None

    def changed(self) -> None:
        self.on_change()

    def before_write(self, size: int) -> int:
        with self.lock:
            self.writes += 1
            fault = self.fail_writes.get(self.writes)
        self.on_write()
        if isinstance(fault, OSError):
            raise fault
        return size if fault is None else fault(size)

    def before_sync(self) -> None:
        with self.lock:
            self.syncs += 1
            fault = self.fail_syncs.get(self.syncs)
        self.on_sync()
        if fault is not None:
            raise fault

    def open_file(self, path: str, *, writing: bool) -> MemoryFile:
        with self.lock:
            if path not in self.files:
                raise FileNotFoundError(path)
            return MemoryFile(self, self.files[path])

    def create_file(self, path: str) -> MemoryFile:
        with self.lock:
            if path in self.files:
                raise FileExistsError(path)
            self.files[path] = Inode()
            self.changed()
            return MemoryFile(self, self.files[path])

    def link(self, source: str, target: str) -> None:
        with self.lock:
            if target in self.files:
                raise FileExistsError(target)
            self.files[target] = self.files[source]
            self.changed()

    def remove(self, path: str) -> None:
        with self.lock:
            if path not in self.files:
                raise FileNotFoundError(path)
            del self.files[path]
            self.changed()

    def names(self, directory: str) -> list[str]:
        with self.lock:
            return [os.path.basename(path) for path in self.files]

    def sync_directory(self, directory: str) -> None:
        with self.lock:
            self.durable_files = dict(self.files)
            self.changed()

    def kill_process(self) -> None:
        """All that is open is closed, all locks are gone; what was written is there."""
        self.generation += 1

    def after_power_loss(self, how: str, seed: int = 0) -> MemoryDisk:
        """Return the disk as it may be found after the power went: unsynced writes ``dropped``, ``kept``, ``torn``."""
        rng = random.Random(seed)
        with self.lock:
            names = {**self.durable_files}
            for path in {*self.files, *self.durable_files}:
                if self.files.get(path) is not self.durable_files.get(path):
                    now = how == "kept" or (how == "torn" and rng.random() < 0.5)
                    inode = (self.files if now else self.durable_files).get(path)
                    names.pop(path, None)
                    if inode is not None:
                        names[path] = inode
            left = MemoryDisk(seed)
            inodes = {id(inode): inode.after_power_loss(how, rng) for inode in names.values()}
            left.files = {path: inodes[id(inode)] for path, inode in names.items()}
            left.durable_files = dict(left.files)
            return left
