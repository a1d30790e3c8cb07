"""How long a write-ahead log is, read from the ``-wal`` file itself.

The file never shrinks while it is in use: after a checkpoint the next writer starts again at its beginning, and old
frames lie behind the new ones. What tells them apart are two numbers (*salts*) in the header that change at each new
start and stand in each frame too (https://sqlite.org/fileformat2.html#walformat). The frames of the current
run are a prefix, so its length is found by bisection, in about 15 reads of 24 bytes.

Opening and closing the ``-wal`` file is safe beside SQLite, which holds no lock on it (unlike the database and
``-shm``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


@dataclass(frozen=True, slots=True)
class WalLength:
    """What a write-ahead log holds at one moment."""

    file_bytes: int
    """The size of the file; it doesn't shrink."""
    frames: int
    """The frames (pages) written since the log was last started again."""
    frame_bytes: int
    """The size of one frame: the page and 24 bytes."""
    salt: bytes
    """Changes each time the log is started again."""

    @property
    def live_bytes(self) -> int:
        """The part of the file that is in use."""
        return self.frames * self.frame_bytes


NO_WAL = WalLength(0, 0, 0, b"")


def wal_file_bytes(wal_path: str) -> int:
    """Return the size of the ``-wal`` file, 0 when there is none."""
    try:
        return os.stat(wal_path).st_size
    except OSError:
        return 0


def read_wal_length(wal_path: str) -> WalLength:
    """Measure the ``-wal`` file; a missing one has length 0. The result is a moment old when writers are at work."""
    try:
        with open(wal_path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                return NO_WAL
            salt = header[16:24]
            frame_bytes = int.from_bytes(header[8:12], "big") + _FRAME_HEADER_BYTES
            low, high = 0, (size - _HEADER_BYTES) // frame_bytes
            while low < high:  # frames before low belong to this run, those from high on don't
                middle = (low + high) // 2
                file.seek(_HEADER_BYTES + middle * frame_bytes + 8)
                if file.read(8) == salt:
                    low = middle + 1
                else:
                    high = middle
            return WalLength(size, low, frame_bytes, salt)
    except OSError:
        return NO_WAL


_sync = getattr(os, "fdatasync", os.fsync)


def sync_wal(wal_path: str) -> None:
    """Ask the system to write the ``-wal`` file to the disk now. A hint: SQLite's own sync follows."""
    try:
        descriptor = os.open(wal_path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return
    try:
        _sync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


__all__ = ["NO_WAL", "WalLength", "read_wal_length", "sync_wal", "wal_file_bytes"]
