"""The bytes of a commit log: header, records, parts. Pure: no file, no database, no clock.

Little endian. Everything begins at a multiple of 512 bytes, so that writing a record rewrites no sector of another.

====== ===================================================================================================
header sector 0
====== ===================================================================================================
0      8 bytes ``SHLCLOG1``
8      16: salt, random, new at each reset
24     16: database id
40     u32 number of the file; 44 u32 process id of who wrote it; 48 u64 milliseconds since 1970
56     u64 zero
64     16: BLAKE2b-128 of the bytes 0 to 63
====== ===================================================================================================

====== ===================================================================================================
record from sector 1 on, one behind the other
====== ===================================================================================================
0      4 bytes: ``DECI``, a decision, or ``PART``, redo written ahead of its decision
4      u32 flags; 1: a copy
8      u64 token
16     u64 length of the body
24     u32 ``PART``: its place, from 0 on; ``DECI``: how many parts it has
28     u32 zero
32     16: BLAKE2b-128, its key the salt, of: own offset in the file as u64, bytes 0 to 31, body
48     body, then zeros to the next multiple of 512
====== ===================================================================================================

Body of ``DECI``: u64 epoch, u64 milliseconds since 1970, u32 participants, u32 sections; each participant: u32 shard,
u32 section, u64 number, i64 ``ids``; each part's 16-byte hash, as in its head; the sections, u64 length before each.
Body of ``PART``: u32 section, u32 zero, bytes. A section is what its parts hold, in their order, and then what the
decision itself holds. What the bytes of a section mean is not known here.

A record is *valid* when its hash is right. Bytes that a file held before can't be valid: another salt or offset.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

SECTOR: Final = 512
CATALOG: Final = 0xFFFFFFFE
"""The catalog as a participant, in place of a shard's number."""
PART_BYTES: Final = 1 << 20
"""The most bytes of a section that one part holds."""
IS_COPY: Final = 1
DECISION: Final = b"DECI"
PART: Final = b"PART"

_MAGIC: Final = b"SHLCLOG1"
_HEADER: Final = Struct("<8s16s16sIIQQ")
_HEAD: Final = Struct("<4sIQQII")
_BODY: Final = Struct("<QQII")
_PARTICIPANT: Final = Struct("<IIQq")
_PART: Final = Struct("<II")
_LENGTH: Final = Struct("<Q")
_HASH_BYTES: Final = 16
HEAD_BYTES: Final = _HEAD.size + _HASH_BYTES

Read = Callable[[int, int], bytes]
"""``read(offset, size)``: the bytes there, fewer at the end of the file."""


class LogFormatError(ValueError):
    """Bytes that are whole by their hash, or should be, and make no sense: damage, or of a newer version."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first sector of a log. ``written_ms`` is milliseconds since 1970; it and ``process_id`` serve messages."""

    salt: bytes
    database_id: bytes
    number: int
    process_id: int
    written_ms: int


@dataclass(frozen=True, slots=True)
class Participant:
    """A shard that a decision changes, or the catalog (``CATALOG``)."""

    shard: int
    number: int
    """Of the decision on this shard: its watermark before, plus 1."""
    ids: int
    """What ``_shardlite_meta.ids`` is afterwards."""
    section: int
    """Which of the record's sections is this shard's redo."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decided transaction over several shards."""

    token: int
    """Its random 64-bit number; bit 0 is set."""
    epoch: int
    decided_ms: int
    """Milliseconds since 1970, for messages."""
    participants: tuple[Participant, ...]
    sections: tuple[bytes, ...]
    parts: tuple[bytes, ...] = ()
    """The hashes of what was written ahead, in order."""
    is_copy: bool = False

    @property
    def txid(self) -> str:
        """The token as users see it: 16 hexadecimal digits."""
        return f"{self.token:016x}"

    def number_on(self, shard: int) -> int | None:
        """Return the decision's number on a shard, None when the shard is no participant."""
        return next((each.number for each in self.participants if each.shard == shard), None)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a section, written ahead of the decision."""

    token: int
    place: int
    section: int
    data: bytes


class Entry(NamedTuple):
    """What is written as one record once its place in the file is known: made by ``entry_of`` or ``part_entry``."""

    kind: bytes
    flags: int
    token: int
    part: int
    """Of a part: its place. Of a decision: how many parts it has."""
    body: bytes


class Placed(NamedTuple):
    """A valid record and where it stands: from ``offset`` to before ``end``."""

    content: Record | Part
    hash: bytes
    offset: int
    end: int


def database_id_bytes(text: str) -> bytes:
    """Return the 16 bytes by which logs name a database: those of its UUID, or a hash of another text."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def encode_header(header: Header) -> bytes:
    """Return the first sector. Raises struct.error for numbers out of range."""
    if len(header.salt) != 16 or len(header.database_id) != 16:
        raise ValueError("the salt and the database id have 16 bytes each")
    head = _HEADER.pack(_MAGIC, header.salt, header.database_id, header.number, header.process_id, header.written_ms, 0)
    return (head + blake2b(head, digest_size=_HASH_BYTES).digest()).ljust(SECTOR, b"\0")


def decode_header(sector: bytes) -> Header | None:
    """Return the header in the first bytes of a file, None when a whole sector of zeros is there.

    Raises LogFormatError for anything else: a sector is written in one piece, so it is damage.
    """
    if len(sector) >= SECTOR and not any(sector[:SECTOR]):
        return None
    head, digest = sector[: _HEADER.size], sector[_HEADER.size : _HEADER.size + _HASH_BYTES]
    if len(sector) < SECTOR or digest != blake2b(head, digest_size=_HASH_BYTES).digest():
        raise LogFormatError(f"no header of a commit log: it begins with {sector[:8]!r}")
    magic, salt, database_id, number, process_id, written_ms, zero = _HEADER.unpack(head)
    if magic != _MAGIC or zero:
        raise LogFormatError(f"a commit log of another version: it begins with {magic!r}")
    return Header(salt, database_id, number, process_id, written_ms)


def entry_of(record: Record) -> Entry:
    """Encode a record but for what depends on its place. Raises ValueError for one that makes no sense."""
    _require_sense(record)
    pieces = [_BODY.pack(record.epoch, record.decided_ms, len(record.participants), len(record.sections))]
    pieces += [_PARTICIPANT.pack(each.shard, each.section, each.number, each.ids) for each in record.participants]
    pieces += record.parts
    for section in record.sections:
        pieces += (_LENGTH.pack(len(section)), section)
    return Entry(DECISION, IS_COPY if record.is_copy else 0, record.token, len(record.parts), b"".join(pieces))


def part_entry(part: Part) -> Entry:
    """Encode a part but for what depends on its place."""
    if len(part.data) > PART_BYTES:
        raise ValueError(f"a part holds {PART_BYTES} bytes at most, not {len(part.data)}")
    return Entry(PART, 0, part.token, part.place, _PART.pack(part.section, 0) + part.data)


def entry_bytes(entry: Entry) -> int:
    """Return how many bytes an entry takes in the file: a multiple of 512."""
    return -(-(HEAD_BYTES + len(entry.body)) // SECTOR) * SECTOR


def seal(entry: Entry, salt: bytes, offset: int) -> bytes:
    """Return the bytes of an entry at ``offset`` in a file with this salt."""
    head = _HEAD.pack(entry.kind, entry.flags, entry.token, len(entry.body), entry.part, 0)
    record = head + _hash(salt, offset, head, entry.body) + entry.body
    return record.ljust(entry_bytes(entry), b"\0")


def encode_record(record: Record, salt: bytes, offset: int) -> bytes:
    """Return the bytes of a record at ``offset``, zeros to the next multiple of 512 included."""
    return seal(entry_of(record), salt, offset)


def hash_in(sealed: bytes) -> bytes:
    """Return the 16-byte hash that stands in the head of a sealed record."""
    return sealed[_HEAD.size : HEAD_BYTES]


def decode_records(data: bytes) -> tuple[Record, ...]:
    """Return the decisions of a whole file: none for an empty one. Raises LogFormatError, see ``decode_header``."""
    header = decode_header(data[:SECTOR])
    if header is None:
        return ()
    placed = read_records(lambda offset, size: data[offset : offset + size], len(data), header.salt)
    return tuple(each.content for each in placed if isinstance(each.content, Record))


def read_records(read: Read, size: int, salt: bytes, offset: int = SECTOR) -> Iterator[Placed]:
    """Yield the valid records from ``offset`` on, up to the first that isn't valid: nothing behind it counts.

    ``size`` is the file's. Only one record is in memory at a time. Raises LogFormatError for a record whose hash is
    right and whose body makes no sense, and what ``read`` raises.
    """
    while True:
        head = read(offset, HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            return
        kind, flags, token, length, count, zero = _HEAD.unpack_from(head)
        if kind not in (DECISION, PART) or zero or offset + HEAD_BYTES + length > size:
            return
        body = read(offset + HEAD_BYTES, length)
        digest = head[_HEAD.size :]
        if len(body) < length or digest != _hash(salt, offset, head[: _HEAD.size], body):
            return
        entry = Entry(kind, flags, token, count, body)
        end = offset + entry_bytes(entry)
        yield Placed(_content(entry), digest, offset, end)
        offset = end


def _content(entry: Entry) -> Record | Part:
    if entry.flags & ~IS_COPY:
        raise LogFormatError(f"record {entry.token:016x} has unknown flags {entry.flags}: of a newer version")
    try:
        return _part(entry) if entry.kind == PART else _record(entry)
    except (ValueError, IndexError, StructError) as error:
        raise LogFormatError(f"record {entry.token:016x} is whole and makes no sense: {error}") from error


def _part(entry: Entry) -> Part:
    section, _ = _PART.unpack_from(entry.body)
    return Part(entry.token, entry.part, section, entry.body[_PART.size :])


def _record(entry: Entry) -> Record:
    body = memoryview(entry.body)
    epoch, decided_ms, participants, sections = _BODY.unpack_from(body)
    at = _BODY.size
    found = []
    for _ in range(participants):
        shard, section, number, ids = _PARTICIPANT.unpack_from(body, at)
        found.append(Participant(shard, number, ids, section))
        at += _PARTICIPANT.size
    parts = []
    for _ in range(entry.part):
        parts.append(bytes(body[at : at + _HASH_BYTES]))
        at += _HASH_BYTES
    redo = []
    for _ in range(sections):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        redo.append(bytes(body[at : at + length]))
        at += length
    if at != len(body):
        raise LogFormatError(f"its body has {len(body)} bytes, what it says takes {at}")
    is_copy = bool(entry.flags & IS_COPY)
    record = Record(entry.token, epoch, decided_ms, tuple(found), tuple(redo), tuple(parts), is_copy)
    _require_sense(record)
    return record


def _require_sense(record: Record) -> None:
    if not record.token & 1:
        raise ValueError(f"token {record.txid} has no bit 0: it says that it has no record")
    shards = [each.shard for each in record.participants]
    if not shards or len(set(shards)) != len(shards):
        raise ValueError(f"a decision is about one shard or more, each once, not {shards}")
    if any(each.section >= len(record.sections) for each in record.participants):
        raise ValueError("a participant's redo is none of the sections")
    if any(len(each) != _HASH_BYTES for each in record.parts):
        raise ValueError(f"the hash of a part has {_HASH_BYTES} bytes")


def _hash(salt: bytes, offset: int, head: bytes, body: bytes) -> bytes:
    made = blake2b(_LENGTH.pack(offset), digest_size=_HASH_BYTES, key=salt)
    made.update(head)
    made.update(body)
    return made.digest()


__all__ = [
    "CATALOG",
    "PART_BYTES",
    "SECTOR",
    "Entry",
    "Header",
    "LogFormatError",
    "Part",
    "Participant",
    "Placed",
    "Record",
    "database_id_bytes",
    "decode_header",
    "decode_records",
    "encode_header",
    "encode_record",
    "entry_bytes",
    "entry_of",
    "hash_in",
    "part_entry",
    "read_records",
    "seal",
]
