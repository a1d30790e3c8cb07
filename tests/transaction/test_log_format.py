"""The bytes of the commit log: what was written is found exactly, or not at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import DATABASE_BYTES, record_of

from shardlite.transaction.log_format import (
    CATALOG,
    PART_BYTES,
    SECTOR,
    Header,
    LogFormatError,
    Part,
    Participant,
    Record,
    database_id_bytes,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    entry_bytes,
    entry_of,
    hash_in,
    part_entry,
    read_records,
    seal,
)

SALT = bytes(range(16))
HEADER = Header(SALT, DATABASE_BYTES, 5, 4711, 1_700_000_000_000)

sections = st.lists(st.binary(max_size=1500), min_size=1, max_size=4)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    redo = tuple(draw(sections))
    shards = draw(st.lists(st.one_of(st.integers(0, 4096), st.just(CATALOG)), min_size=1, max_size=6, unique=True))
    participants = tuple(
        Participant(shard, draw(u64), draw(st.integers(-(2**63), 2**63 - 1)), draw(st.integers(0, len(redo) - 1)))
        for shard in shards
    )
    parts = tuple(draw(st.lists(st.binary(min_size=16, max_size=16), max_size=3)))
    return Record(draw(u64) | 1, draw(u64), draw(u64), participants, redo, parts, draw(st.booleans()))


def log_of(written: list[Record], header: Header = HEADER, room: int = 0) -> bytes:
    data = encode_header(header)
    for record in written:
        data += encode_record(record, header.salt, len(data))
    return data + bytes(room)


@given(st.lists(records(), max_size=5), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(written: list[Record], zeros: int) -> None:
    data = log_of(written, room=zeros * SECTOR)
    assert len(data) % SECTOR == 0
    assert decode_records(data) == tuple(written)


@given(st.binary(min_size=16, max_size=16), u64, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_headers_are_read(salt: bytes, written_ms: int, number: int, process_id: int) -> None:
    header = Header(salt, DATABASE_BYTES, number, process_id, written_ms)
    assert decode_header(encode_header(header)) == header


def test_parts_are_read() -> None:
    entries = [part_entry(Part(9, place, 1, bytes([place]) * size)) for place, size in enumerate((0, 1, 700))]
    data = bytes(SECTOR)
    for entry in entries:
        data += seal(entry, SALT, len(data))
    placed = list(read_records(lambda offset, size: data[offset : offset + size], len(data), SALT))
    assert [each.content for each in placed] == [Part(9, 0, 1, b""), Part(9, 1, 1, b"\1"), Part(9, 2, 1, b"\2" * 700)]
    assert [each.hash for each in placed] == [hash_in(data[each.offset : each.end]) for each in placed]
    with pytest.raises(ValueError, match="1048576 bytes at most"):
        part_entry(Part(9, 0, 0, bytes(PART_BYTES + 1)))


def three() -> list[Record]:
    return [
        record_of({0: 1, 3: 9}, token=11, redo=b"a" * 40),
        record_of({1: 2}, token=13, redo=b"b" * 700),
        record_of({2: 3}, token=15),
    ]


def test_every_flipped_bit_hides_records_or_nothing() -> None:
    """A flip in a record hides it and what is behind it; in zeros that fill a sector it changes nothing."""
    written = three()
    data = bytearray(log_of(written))
    allowed = {tuple(written[:count]) for count in range(len(written) + 1)}
    seen = set()
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        try:
            found = decode_records(bytes(data))
        except LogFormatError:
            assert bit < 80 * 8, f"bit {bit} is in no header"
        else:
            assert found in allowed, f"bit {bit}"
            seen.add(len(found))
        data[bit // 8] ^= 1 << bit % 8
    assert seen == {0, 1, 2, 3}


def test_every_truncation_hides_records_or_nothing() -> None:
    written = three()
    data = log_of(written)
    for size in range(SECTOR, len(data)):
        assert decode_records(data[:size]) in {tuple(written[:count]) for count in range(len(written) + 1)}
    for size in range(SECTOR):
        with pytest.raises(LogFormatError):
            decode_records(data[:size])


def test_torn_writes_hide_records_or_nothing() -> None:
    """Each subset of the sectors of one write may be there, over zeros or over what an earlier owner wrote."""
    written = three()
    new = log_of(written)
    older = Header(bytes(16), DATABASE_BYTES, 5, 1, 1)
    for old in (
        bytes(len(new)),
        log_of(written[::-1], older, 4096)[: len(new)],
        log_of([three()[1]] * 3, older)[: len(new)],
    ):
        body_sectors = len(new) // SECTOR - 1
        for kept in range(2**body_sectors):
            torn = bytearray(new[:SECTOR] + old[SECTOR : len(new)].ljust(len(new) - SECTOR, b"\0"))
            for index in range(body_sectors):
                if kept >> index & 1:
                    at = (index + 1) * SECTOR
                    torn[at : at + SECTOR] = new[at : at + SECTOR]
            assert decode_records(bytes(torn)) in {tuple(written[:count]) for count in range(len(written) + 1)}


def test_a_record_is_valid_at_its_own_place_only() -> None:
    record = three()[0]
    sealed = encode_record(record, SALT, SECTOR)
    assert decode_records(encode_header(HEADER) + sealed) == (record,)
    assert decode_records(encode_header(HEADER) + sealed + sealed) == (record,)
    assert decode_records(encode_header(Header(bytes(16), DATABASE_BYTES, 5, 1, 1)) + sealed) == ()


def test_random_bytes_are_no_records() -> None:
    rng = random.Random(1)
    for _ in range(200):
        garbage = bytearray(rng.randbytes(4096))
        garbage[:4] = b"DECI"
        garbage[16:24] = rng.randrange(0, 5000).to_bytes(8, "little")
        garbage[28:32] = bytes(4)
        assert decode_records(encode_header(HEADER) + bytes(garbage)) == ()


def test_a_zero_header_is_an_empty_file_and_another_version_is_refused() -> None:
    assert decode_header(bytes(SECTOR)) is None
    assert decode_records(bytes(4 * SECTOR)) == ()
    with pytest.raises(LogFormatError, match="no header"):
        decode_header(b"SHLCLOG2" + encode_header(HEADER)[8:])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record(2, 0, 0, (Participant(0, 1, 0, 0),), (b"",)), "bit 0"),
        (Record(1, 0, 0, (), (b"",)), "one shard or more"),
        (Record(1, 0, 0, (Participant(0, 1, 0, 0), Participant(0, 2, 0, 0)), (b"",)), "each once"),
        (Record(1, 0, 0, (Participant(0, 1, 0, 1),), (b"",)), "none of the sections"),
        (Record(1, 0, 0, (Participant(0, 1, 0, 0),), (b"",), (b"short",)), "hash of a part"),
    ],
)
def test_records_that_make_no_sense_are_refused(record: Record, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry_of(record)


def test_a_whole_record_of_a_newer_version_is_refused_and_not_skipped() -> None:
    entry = entry_of(three()[0])
    for changed in (entry._replace(flags=2), entry._replace(body=entry.body + b"more")):
        with pytest.raises(LogFormatError, match=r"newer version|makes no sense"):
            decode_records(encode_header(HEADER) + seal(changed, SALT, SECTOR))


def test_sizes_and_database_ids() -> None:
    entry = entry_of(three()[1])
    assert entry_bytes(entry) == len(seal(entry, SALT, SECTOR))
    assert database_id_bytes("01234567-89ab-cdef-0123-456789abcdef") == DATABASE_BYTES
    assert len(database_id_bytes("no uuid")) == 16
    assert database_id_bytes("no uuid") != database_id_bytes("another")
