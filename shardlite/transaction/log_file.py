"""One file of the commit log, ``commit_<k>.log``: made, taken over, written by its owner, read by everybody.

Its owner is the process that holds its lock; only the owner writes. Four rules keep old bytes from ever becoming
decisions (``DESIGN.md``, 4.4):

1. It is only appended to behind its last valid record, by the process that wrote the present header. Whoever takes a
   file over calls reset() before the first append.
2. After a failed or short write, or a failed sync, it is *poisoned*: never appended to or synced again.
3. A reset needs all its records to be applied and synced on all their shards. The new header isn't synced by itself:
   the first record's sync makes both durable, and until then the old records may be back, which changes nothing.
4. Readers stop at the first record that isn't valid, and read the header again at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shardlite.errors import ShardUnavailableError
from shardlite.transaction.file_layer import FileLayer, OpenFile
from shardlite.transaction.log_format import (
    SECTOR,
    Entry,
    Header,
    LogFormatError,
    Part,
    Placed,
    Record,
    decode_header,
    encode_header,
    hash_in,
    read_records,
    seal,
)

FIRST_ROOM: Final = (64 * 1024, 16 * 1024)
"""Bytes of zeros that a new file gets; the second size where there is no space for the first."""
ROOM_STEP: Final = 64 * 1024
_NAME: Final = re.compile(r"commit_(\d+)\.log")
_UNFINISHED: Final = re.compile(r"\.commit_\d+\.log\..*\.new")
_HEADER_LOOKS: Final = 100
_DAMAGED_LOOKS: Final = 3
_PAUSE_S: Final = 0.001


class PoisonedError(OSError):
    """The file has failed before: nothing is appended to it any more."""


@dataclass(frozen=True, slots=True)
class LogContents:
    """What a log held at one moment."""

    path: str
    number: int
    header: Header | None
    """None: a file that somebody is making, or was when he died. It can't have a row in the catalog."""
    records: tuple[Record, ...]
    ends: tuple[int, ...]
    """Where each record ends, in bytes."""
    parts_of: int | None
    """The token whose parts are in this file; such a file holds nothing else."""


def log_path(directory: str, number: int) -> str:
    """Return where a log file is."""
    return os.path.join(directory, f"commit_{number}.log")


def log_numbers(layer: FileLayer, directory: str) -> set[int]:
    """Return the numbers of the log files that are there."""
    return {int(found[1]) for name in layer.names(directory) if (found := _NAME.fullmatch(name))}


class LogFile:
    """A log file that this process owns. Calls are ordered by the caller; OSError comes out as it is.

    ``create`` and ``take`` are the two ways to one; None says that another process has it.
    """

    def __init__(self, layer: FileLayer, path: str, number: int, database_id: bytes, file: OpenFile) -> None:
        self.layer = layer
        self.path = path
        self.number = number
        self.database_id = database_id
        self.salt: bytes | None = None
        """That of the header which this process wrote; None: reset() comes first."""
        self.end = SECTOR
        self.synced = SECTOR
        """What lies before is durable."""
        self.room = 0
        self.failure: OSError | None = None
        self._file = file
        self._beside: str | None = None

    @classmethod
    def create(cls, layer: FileLayer, directory: str, number: int, database_id: bytes) -> LogFile | None:
        """Make the file, complete and locked before it has its name. None: the name is taken.

        Raises OSError, such as ENOSPC; nothing is left then.
        """
        path = log_path(directory, number)
        beside = os.path.join(directory, f".commit_{number}.log.{os.getpid()}.{os.urandom(4).hex()}.new")
        log = cls(layer, path, number, database_id, layer.create_file(beside))
        log._beside = beside
        try:
            if log._file.try_lock():  # else somebody clears away what dead processes left, and took it for that
                log._fill()
                if log._publish():
                    layer.sync_directory(directory)
                    return log
        except BaseException:
            log.close()
            raise
        log.close()
        return None

    def _publish(self) -> bool:
        """Give the finished file its name."""
        assert self._beside is not None
        try:
            self.layer.link(self._beside, self.path)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError:  # no hard links here
            return self._create_in_place()
        self._forget_beside()
        return True

    def _create_in_place(self) -> bool:
        """Others may see it unfinished, and that is no harm: it has no row in the catalog yet."""
        try:
            file = self.layer.create_file(self.path)
        except FileExistsError:
            return False
        self._file.close()
        self._forget_beside()
        self._file, self.room = file, 0
        if not file.try_lock():
            return False
        self._fill()
        return True

    def _fill(self) -> None:
        for size in FIRST_ROOM:
            try:
                self._extend(size)
                break
            except OSError:
                if size == FIRST_ROOM[-1]:
                    raise
        self.reset()
        self._file.sync_all()

    @classmethod
    def take(cls, layer: FileLayer, directory: str, number: int, database_id: bytes) -> LogFile | None:
        """Take over a file whose owner is gone. None: it has an owner, or was deleted.

        What it holds stays as it is until reset().
        """
        path = log_path(directory, number)
        try:
            file = layer.open_file(path, writing=True)
        except FileNotFoundError:
            return None
        log = cls(layer, path, number, database_id, file)
        try:
            if file.try_lock() and file.is_at(path):
                log.room = file.size()
                return log
        except BaseException:
            log.close()
            raise
        log.close()
        return None

    def contents(self) -> LogContents:
        """Read what the file holds. Raises ShardUnavailableError for a damaged one, and OSError."""
        return _contents(self._file, self.path, self.number, self.database_id)

    def parts(self) -> Iterator[Placed]:
        """Yield the valid parts, one in memory at a time."""
        return _parts(self._file)

    def reset(self) -> None:
        """Make the file empty by a new header, which isn't synced. All its records are applied and synced."""
        self._require_sound()
        if self.room < FIRST_ROOM[-1]:  # left unfinished by a process that died while it made it
            self._extend(FIRST_ROOM[-1])
        salt = os.urandom(16)
        header = Header(salt, self.database_id, self.number, os.getpid() & 0xFFFFFFFF, time.time_ns() // 1_000_000)
        self._write(0, encode_header(header))
        self.salt, self.end, self.synced = salt, SECTOR, SECTOR

    def append(self, entries: Sequence[Entry]) -> list[bytes]:
        """Write all entries behind the last one, in one piece, and return their hashes. Not durable before sync().

        A failed or short write poisons the file; what of it is there says ``valid_from``.
        """
        self._require_sound()
        salt = self.salt
        if salt is None:
            raise PoisonedError(f"{self.path} was taken over and not reset")
        sealed, offset = [], self.end
        for entry in entries:
            sealed.append(seal(entry, salt, offset))
            offset += len(sealed[-1])
        self._write(self.end, b"".join(sealed))
        self.end = offset
        self.room = max(self.room, offset)
        return [hash_in(each) for each in sealed]

    def sync(self) -> None:
        """Make durable what was appended. A failure poisons the file: a second try would succeed and mean nothing."""
        self._require_sound()
        try:
            self._file.sync()
        except OSError as error:
            self.failure = error
            raise
        self.synced = self.end

    def make_room(self, size: int) -> None:
        """Let the file have ``size`` bytes, written with zeros and synced, so that a record needs no space."""
        self._require_sound()
        if size > self.room:
            self._extend(-(-size // ROOM_STEP) * ROOM_STEP)
            try:
                self._file.sync_all()
            except OSError as error:  # an unsynced header may be among what was lost
                self.failure = error
                raise

    def valid_from(self, offset: int) -> int | None:
        """Count the records that are valid from ``offset`` on; None when that can't be read."""
        if self.salt is None:
            return 0
        try:
            return sum(1 for _ in read_records(self._file.read, self._file.size(), self.salt, offset))
        except (OSError, LogFormatError):
            return None

    def poison(self, error: OSError) -> None:
        """Give the file up, as after a failed sync."""
        self.failure = self.failure or error

    def close(self) -> None:
        """Close the file, which lets its lock go; harmless when repeated."""
        self.salt = None
        self._file.close()
        self._forget_beside()

    def delete(self) -> None:
        """Take the file away; its row in the catalog is gone already. Harmless when it can't be: others will."""
        if os.name == "nt":  # an open file stays
            self.close()
        with contextlib.suppress(OSError):
            self.layer.remove(self.path)
        self.close()

    def _forget_beside(self) -> None:
        """Take the other name away; on Windows that has to wait until the file is closed."""
        if self._beside is not None:
            with contextlib.suppress(OSError):
                self.layer.remove(self._beside)
                self._beside = None

    def _extend(self, size: int) -> None:
        self._write(self.room, bytes(size - self.room), poisons=False)
        self.room = size

    def _write(self, offset: int, data: bytes, *, poisons: bool = True) -> None:
        try:
            written = self._file.write(offset, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written to {self.path}: the disk is full?")
        except OSError as error:
            if poisons:
                self.failure = error
            raise

    def _require_sound(self) -> None:
        if self.failure is not None:
            raise PoisonedError(f"{self.path} has failed before: {self.failure}")

    def __repr__(self) -> str:
        state = "poisoned" if self.failure else "taken over" if self.salt is None else "own"
        return f"LogFile({self.path!r}, {state}, end={self.end}, synced={self.synced}, room={self.room})"


def scan(layer: FileLayer, directory: str, number: int, database_id: bytes) -> LogContents | None:
    """Read a log file, whoever owns it, beside its writer. None: there is no such file.

    Raises ShardUnavailableError for a damaged one, for one of another database, and for one that can't be read.
    """
    path = log_path(directory, number)
    try:
        file = layer.open_file(path, writing=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardUnavailableError(f"can't read the commit log {path}: {error}") from error
    try:
        return _contents(file, path, number, database_id)
    except OSError as error:
        raise ShardUnavailableError(f"can't read the commit log {path}: {error}") from error
    finally:
        file.close()


def scan_parts(layer: FileLayer, directory: str, number: int) -> Iterator[Placed]:
    """Yield the valid parts of a file, one in memory at a time; none when there is no such file. Raises OSError."""
    try:
        file = layer.open_file(log_path(directory, number), writing=False)
    except FileNotFoundError:
        return
    try:
        yield from _parts(file)
    finally:
        file.close()


def clear_unfinished(layer: FileLayer, directory: str) -> None:
    """Remove what processes left that died while they made a log file. Quietly leaves what it can't."""
    for name in layer.names(directory):
        if not _UNFINISHED.fullmatch(name):
            continue
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):
            file = layer.open_file(path, writing=True)
            try:
                if file.try_lock():
                    layer.remove(path)
            finally:
                file.close()


def _contents(file: OpenFile, path: str, number: int, database_id: bytes) -> LogContents:
    for look in range(_HEADER_LOOKS):
        try:
            header = _header(file, path, database_id, number)
            if header is None:
                return LogContents(path, number, None, (), (), None)
            found = _collect(file, path, number, header)
            if _header(file, path, database_id, number) == header:
                return found
        except LogFormatError as error:
            if look < _DAMAGED_LOOKS:  # read in the middle of a reset?
                time.sleep(_PAUSE_S)
                continue
            raise ShardUnavailableError(
                f"the commit log {path} is damaged: {error}; decided transactions may be lost: restore the directory "
                "from a backup"
            ) from error
    raise ShardUnavailableError(f"the commit log {path} was reset each time while it was read: try again")


def _collect(file: OpenFile, path: str, number: int, header: Header) -> LogContents:
    records: list[Record] = []
    ends: list[int] = []
    parts_of = None
    for placed in read_records(file.read, file.size(), header.salt):
        if isinstance(placed.content, Part):
            parts_of = placed.content.token  # a file has parts of one transaction or decisions
            break
        records.append(placed.content)
        ends.append(placed.end)
    return LogContents(path, number, header, tuple(records), tuple(ends), parts_of)


def _header(file: OpenFile, path: str, database_id: bytes, number: int) -> Header | None:
    sector = file.read(0, SECTOR)
    if len(sector) < SECTOR and not any(sector):
        return None  # unfinished
    header = decode_header(sector)
    if header is None or (header.database_id == database_id and header.number == number):
        return header
    raise ShardUnavailableError(
        f"{path} is commit log {header.number} of database {header.database_id.hex()}, expected was {number} of "
        f"{database_id.hex()}: put the right file back"
    )


def _parts(file: OpenFile) -> Iterator[Placed]:
    header = decode_header(file.read(0, SECTOR))
    if header is not None:
        for placed in read_records(file.read, file.size(), header.salt):
            if isinstance(placed.content, Part):
                yield placed


__all__ = [
    "LogContents",
    "LogFile",
    "PoisonedError",
    "clear_unfinished",
    "log_numbers",
    "log_path",
    "scan",
    "scan_parts",
]
