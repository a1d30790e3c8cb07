"""The fence: a small memory-mapped file of 8-byte words by which processes tell each other that something changed.

Reading a word costs about 0.1 us, where a SELECT in another database costs 2 to 3. A word is a hint: the catalog is
the truth, and whoever opens it puts the words right. The file, native byte order:

====== ==============================================================================
0      magic and version, ``SHLFNCE`` and one byte
8      words per shard (0 in this version)
16     ``epoch``: that of the catalog
24     ``sequence_epoch``: raised when an explicit id was put into ids already drawn
32-511 reserved, zero
512    per shard, room for 2 words each, for cross-shard commits: ``pending``, ``done``
====== ==============================================================================

Aligned 8-byte words are read and written in one piece, so no lock is needed to read one. Whoever writes one does so
under the lock that orders the writers: the catalog's write lock for ``epoch``, all shards' write locks for
``sequence_epoch``. The mapping is shared: a forked child reads and writes the same words. POSIX locks are per file and
this file is never a database, so closing it drops nobody's lock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Final

from shardlite.errors import OperationalError, ShardUnavailableError

MAGIC: Final = b"SHLFNCE"
VERSION: Final = 1
FILE_NAME: Final = "fence"

_EPOCH: Final = 2
_SEQUENCE_EPOCH: Final = 3
_HEADER_BYTES: Final = 512
_WORDS_PER_SHARD: Final = 2


class Fence:
    """The mapped words of one directory. Reading is safe for threads; see the module for who may write.

    ``Fence.open(directory, num_shards)`` creates the file when it is missing. Raises OperationalError when it can't
    be created or mapped, ShardUnavailableError when it is not a fence or of a newer version.
    """

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self._mapping: mmap.mmap | None = mapping
        self._words: memoryview = memoryview(mapping).cast("Q")

    @classmethod
    def open(cls, directory: str | os.PathLike[str], num_shards: int) -> Fence:
        """Map the fence of a database directory, creating the file when it is missing."""
        path = Path(directory) / FILE_NAME
        size = _HEADER_BYTES + 8 * _WORDS_PER_SHARD * num_shards
        try:
            if not path.exists():
                _create(path, size)
            with path.open("r+b") as file:
                head = file.read(8)
                _require_fence(path, head)
                if os.fstat(file.fileno()).st_size < size:
                    os.truncate(file.fileno(), size)
                mapping = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise OperationalError(
                f"can't map the fence {path}: {error.strerror or error}; the directory must be writable"
            ) from error
        return cls(path, mapping)

    @property
    def epoch(self) -> int:
        """The catalog's epoch, as last announced. Raises ValueError after close()."""
        return self._words[_EPOCH]

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._words[_EPOCH] = value

    @property
    def sequence_epoch(self) -> int:
        """How often an explicit id was put into ids that some process had already drawn."""
        return self._words[_SEQUENCE_EPOCH]

    def bump_sequence_epoch(self) -> int:
        """Raise ``sequence_epoch`` by one. The caller holds every shard's write lock."""
        self._words[_SEQUENCE_EPOCH] = value = self._words[_SEQUENCE_EPOCH] + 1
        return value

    @property
    def words(self) -> memoryview:
        """All words, for a loop that reads ``words[Fence.EPOCH]`` without a property call."""
        return self._words

    EPOCH: Final = _EPOCH
    SEQUENCE_EPOCH: Final = _SEQUENCE_EPOCH

    @property
    def closed(self) -> bool:
        """Tell whether the mapping is released."""
        return self._mapping is None

    def close(self) -> None:
        """Release the mapping; harmless when repeated. Reading a word afterwards raises ValueError."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            self._words.release()
            mapping.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"epoch={self.epoch} sequence_epoch={self.sequence_epoch}"
        return f"Fence({str(self.path)!r}, {state})"


def _create(path: Path, size: int) -> None:
    """Create the file whole or not at all: written beside and linked into place, so the first of several wins."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.new")
    head = MAGIC + bytes((VERSION,))
    try:
        with beside.open("xb") as file:
            file.write(head.ljust(size, b"\0"))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            return
        except OSError:
            # No hard links here (FAT, some network mounts): rename, which may replace an equal file of another opener
            # that has not been announced through yet.
            if not path.exists():
                os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def _require_fence(path: Path, head: bytes) -> None:
    if head[:7] != MAGIC:
        raise ShardUnavailableError(f"{path} is not a fence file: it begins with {head!r}; move it away and open again")
    if head[7] != VERSION:
        raise ShardUnavailableError(
            f"{path} has version {head[7]}, this shardlite knows version {VERSION}: use a newer shardlite"
        )
