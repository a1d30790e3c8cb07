"""How commit logs reach the disk: a small protocol, so that tests can put a disk in its place that fails or forgets.

``SystemFiles`` is the real one. The files are never databases: SQLite holds no lock on them.

Fork: a child closes the descriptors that it inherited, without unlocking, and every file object of the parent's is
closed for it (its methods raise ValueError). An inherited lock would otherwise outlive the parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Final, Protocol

from shardlite.connection import fork
from shardlite.connection.checkpoint import Checkpointer
from shardlite.connection.file_lock import FileLock

_FLAGS: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class OpenFile(Protocol):
    """One open file. Errors are OSError; after close() ValueError.

    Reads are safe beside everything; writes and syncs are ordered by the caller.
    """

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes there, fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> int:
        """Write in one piece and return how many bytes were taken: fewer on a full disk, say. Not synced."""

    def sync(self) -> None:
        """Return when all that was written before, and the length, is durable (``fdatasync``)."""

    def sync_all(self) -> None:
        """As sync(), for a file that is new or has grown (``fsync``)."""

    def size(self) -> int:
        """Return the length in bytes."""

    def try_lock(self) -> bool:
        """Take the file's lock for as long as it is open, if no other has it. Doesn't wait."""

    def is_at(self, path: str) -> bool:
        """Tell whether the file still is what ``path`` names; not if it was deleted, or deleted and made anew."""

    def close(self) -> None:
        """Close it, which lets the lock go; harmless when repeated."""


class FileLayer(Protocol):
    """Where the files of a directory are. Errors are OSError."""

    def open_file(self, path: str, *, writing: bool) -> OpenFile:
        """Open a file that exists; FileNotFoundError otherwise."""

    def create_file(self, path: str) -> OpenFile:
        """Make an empty file and open it for writing; FileExistsError when the name is taken."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError when it is taken. OSError where there are no links."""

    def remove(self, path: str) -> None:
        """Take a name away; FileNotFoundError when there is none."""

    def names(self, directory: str) -> list[str]:
        """List a directory."""

    def sync_directory(self, directory: str) -> None:
        """Make the names in it durable, where the system lets a directory be synced."""


class _SystemFile:
    """A descriptor. Where the system has no pwrite (Windows), moving the position and writing are one step."""

    def __init__(self, layer: SystemFiles, descriptor: int) -> None:
        self._layer = layer
        self._descriptor = descriptor
        self._position = threading.Lock()
        self._lock = FileLock(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        descriptor = self._require_open()
        pieces: list[bytes] = []
        while size > 0:
            piece = self._read_once(descriptor, offset, size)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_once(self, descriptor: int, offset: int, size: int) -> bytes:
        if sys.platform != "win32":
            return os.pread(descriptor, size, offset)
        else:  # noqa: RET505 - so that the type checker sees one platform's half
            with self._position:
                os.lseek(descriptor, offset, os.SEEK_SET)
                return os.read(descriptor, size)

    def write(self, offset: int, data: bytes) -> int:
        descriptor = self._require_open()
        if sys.platform != "win32":
            return os.pwrite(descriptor, data, offset)
        else:  # noqa: RET505 - so that the type checker sees one platform's half
            with self._position:
                os.lseek(descriptor, offset, os.SEEK_SET)
                return os.write(descriptor, data)

    def sync(self) -> None:
        getattr(os, "fdatasync", os.fsync)(self._require_open())

    def sync_all(self) -> None:
        os.fsync(self._require_open())

    def size(self) -> int:
        return os.fstat(self._require_open()).st_size

    def try_lock(self) -> bool:
        with self._position:
            return self._lock.try_exclusive()

    def is_at(self, path: str) -> bool:
        try:
            named = os.stat(path)
        except FileNotFoundError:
            return False
        own = os.fstat(self._require_open())
        return (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino)

    def close(self) -> None:
        self._layer._close(self)

    def _require_open(self) -> int:
        if self._descriptor < 0:
            raise ValueError("this log file is closed, or belongs to the parent process")
        return self._descriptor


class SystemFiles:
    """The system's files. One for each log of a process; safe for threads, and for forks as the module says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a descriptor is opened or closed, so that a fork knows all of them
        self._files: set[_SystemFile] = set()
        fork.register(self)

    def open_file(self, path: str, *, writing: bool) -> OpenFile:
        return self._open(path, os.O_RDWR if writing else os.O_RDONLY)

    def create_file(self, path: str) -> OpenFile:
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def _open(self, path: str, flags: int) -> OpenFile:
        with self._lock:
            file = _SystemFile(self, os.open(path, flags | _FLAGS, 0o666))
            self._files.add(file)
        return file

    def _close(self, file: _SystemFile) -> None:
        with self._lock:
            self._files.discard(file)
            descriptor, file._descriptor = file._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def names(self, directory: str) -> list[str]:
        return os.listdir(directory)

    def sync_directory(self, directory: str) -> None:
        if os.name == "nt":
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def checkpointers(self) -> list[Checkpointer]:
        """None: see ``connection.fork.Forkable``."""
        return []

    def reset_after_fork(self) -> None:
        """In a forked child: close what was inherited. Closing alone leaves the parent's locks as they are."""
        self._lock = threading.Lock()
        files, self._files = self._files, set()
        for file in files:
            descriptor, file._descriptor = file._descriptor, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


__all__ = ["FileLayer", "OpenFile", "SystemFiles"]
