"""Values come through the codec, and through a file, bit by bit."""

from __future__ import annotations

import math
import struct
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redo_world import connect

from shardlite.errors import DataError, InternalError
from shardlite.transaction.definition import Definitions
from shardlite.transaction.images import prepare_replay, read_images, write_images
from shardlite.transaction.touched import Touched
from shardlite.transaction.values import CODECS, Text, bindable, decode_values, encode_values

ENCODINGS = sorted(CODECS)
STORED = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-0.0, 0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, 2.0**53 + 2]),
    st.floats(allow_nan=False),
    st.binary(max_size=40),
    st.sampled_from([b"", b"\x00", b"\xff\x00a", b"a" * 300]),
    st.binary(max_size=20).map(Text),
    st.sampled_from(
        [b"", b"\x00", b"a\x00b", b"\xff", b"\xed\xa0\x80", b"\x00\xd8A\x00", b"\xff\xfe", b"\xfe\xff"]
    ).map(Text),
    st.text(max_size=20).map(lambda text: Text(text.encode("utf-8", "replace"))),
)


def bits(value: Any) -> tuple[type, Any]:
    return type(value), struct.pack("<d", value) if isinstance(value, float) else value


@given(st.lists(STORED))
def test_values_come_back_as_they_were(values: list[Any]) -> None:
    raw = encode_values(values, "utf-8")
    found, end = decode_values(raw, 0, len(values))
    assert (list(map(bits, found)), end) == (list(map(bits, values)), len(raw))


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))), st.sampled_from(ENCODINGS))
def test_text_that_was_given_is_text_as_stored(text: str, encoding: str) -> None:
    codec = CODECS[encoding]
    assert encode_values([text], codec) == encode_values([Text(text.encode(codec))], codec)


def test_the_bytes_are_those_of_the_document() -> None:
    values = [None, 1, -1.5, "é", b"\x00\xff"]
    assert encode_values(values, "utf-8").hex() == (
        "00" + "010100000000000000" + "02000000000000f8bf" + "0302000000c3a9" + "040200000000ff"
    )
    assert encode_values([True, bytearray(b"a"), memoryview(b"b"), math.nan], "utf-8").hex() == (
        "010100000000000000" + "040100000061" + "040100000062" + "00"
    )


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "\ud800", object(), 1j])
def test_what_no_file_holds_is_refused(value: Any) -> None:
    with pytest.raises(DataError):
        encode_values([value], "utf-8")


@given(st.lists(STORED, min_size=1), st.data())
def test_bytes_that_end_too_early_are_refused(values: list[Any], data: Any) -> None:
    raw = encode_values(values, "utf-8")
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(InternalError):
        decode_values(raw[:cut], 0, len(values))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InternalError, match="byte 0 should be the kind of a value, and is 9"):
        decode_values(b"\x09", 0, 1)


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(STORED, min_size=1, max_size=12))
def test_a_file_gets_back_what_a_file_held(encoding: str, values: list[Any]) -> None:
    codec = CODECS[encoding]
    shown = "SELECT k, typeof(x), quote(x), hex(CAST(x AS BLOB)) FROM t ORDER BY k"
    reals = "SELECT x FROM t WHERE typeof(x) = 'real' ORDER BY k"
    with closing(connect(encoding=encoding)) as here, closing(connect(encoding=encoding)) as there:
        for conn in (here, there):
            conn.run("CREATE TABLE t(k INTEGER PRIMARY KEY, x)")
            conn.run("CREATE TABLE w(x, PRIMARY KEY (x)) WITHOUT ROWID")
        for number, value in enumerate(values):
            if isinstance(value, Text):
                if codec != "utf-8" and len(value) % 2:
                    value = Text(value + b"\x00")
                here.run(f"INSERT INTO t VALUES ({number}, CAST(x'{value.hex()}' AS TEXT))")
            else:
                here.run("INSERT INTO t VALUES (?, ?)", (number, value))
        here.run("INSERT OR IGNORE INTO w SELECT x FROM t WHERE x IS NOT NULL")
        touched = Touched()
        touched.add(0, "t", range(-1, len(values) + 1))
        touched.whole(0, "w")
        section = read_images(here, touched.on(0))
        prepare_replay(there)
        there.run("BEGIN IMMEDIATE")
        write_images(there, section)
        there.run("COMMIT")
        assert there.fetch_all(shown) == here.fetch_all(shown)
        assert repr(there.fetch_all(reals)) == repr(here.fetch_all(reals))
        keyed = "SELECT typeof(x), quote(x), hex(CAST(x AS BLOB)) FROM w ORDER BY x"
        assert there.fetch_all(keyed) == here.fetch_all(keyed)
        assert Definitions(here).codec == codec


def test_text_that_sqlite_would_change_on_its_way_is_not_bound() -> None:
    assert bindable("utf-8")("\ufffe".encode()) == "\ufffe"
    assert type(bindable("utf-16-le")("\ufffe".encode("utf-16-le"))) is Text
    assert type(bindable("utf-8")(b"\xff")) is Text
    assert bindable("utf-16-be")("a\0b".encode("utf-16-be")) == "a\0b"
