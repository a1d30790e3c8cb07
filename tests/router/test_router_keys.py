"""Keys are what SQLite stores and holds equal: every claim here is put to a real table."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import mmh3
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.errors import NotSupportedError, RoutingError
from shardlite.router.keys import COLLATIONS, Affinity, KeyType, affinity_of, apply_affinity, slot_of, sort_key
from shardlite.router.layout import Layout
from shardlite.router.strategies import key_from_json

GOLDEN = json.loads(Path(__file__).with_name("golden_keys.json").read_text(encoding="utf-8"))
TABLES = [(affinity, collation) for affinity in Affinity for collation in COLLATIONS]


@pytest.fixture(scope="module")
def oracle() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for affinity, collation in TABLES:
        connection.execute(
            f"CREATE TABLE {affinity}_{collation}(n INTEGER PRIMARY KEY, k {affinity} COLLATE {collation})"
        )
    yield connection
    connection.close()


numeric_text = st.one_of(
    st.text(alphabet="0123456789+-.eE_xnaif \t\n\v\f\r\0\xa0٣", max_size=10),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
)
words = st.text(alphabet="aAbBzZ äÄß\0\t_[@`{", max_size=5)
texts = st.one_of(numeric_text, words, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
integers = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
reals = st.one_of(
    st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1).map(float), st.sampled_from([0.0, -0.0, 0.5, 5.0])
)
values = st.one_of(st.none(), st.booleans(), integers, reals, texts, st.binary(max_size=4))


def stored_by_sqlite(oracle: sqlite3.Connection, table: str, value: Any) -> Any:
    oracle.execute(f"DELETE FROM {table}")
    oracle.execute(f"INSERT INTO {table}(k) VALUES (?)", (value,))
    return oracle.execute(f"SELECT k FROM {table}").fetchone()[0]


@settings(max_examples=400, deadline=None)
@given(value=values)
@example(value="1e18")
@example(value="9223372036854775808")
@example(value=-0.0)
@example(value=float(2**63))
@example(value="0" * 60)
def test_affinity_stores_what_sqlite_stores(oracle: sqlite3.Connection, value: Any) -> None:
    for affinity in Affinity:
        theirs, ours = stored_by_sqlite(oracle, f"{affinity}_BINARY", value), apply_affinity(value, affinity)
        assert (type(theirs), repr(theirs)) == (type(ours), repr(ours)), affinity


NUMERIC_LOOKALIKES = [
    *(" 5 ", "\t5\n", "5\v", "\f5\r", "\xa05", "5\xa0", "1_0", "0x10", "1e3", "1E3", "+5", "+-5", "٣", "nan", "inf"),
    *(
        "Infinity",
        "1e400",
        "-1e400",
        "5.",
        ".5",
        ".",
        "-.",
        "",
        " ",
        "e5",
        "5e",
        "5e+",
        "5e+3",
        "1 2",
        "- 5",
        "5\0",
        "5\0x",
        "\0005",
        " 5 \0",
    ),
    *("9223372036854775807", "-9223372036854775808", "-9223372036854775809", "9223372036854775807.0", "9" * 400),
    *("4503599627370496.0", "9007199254740993", "9007199254740993.0", "-0", "-0.0", "1e05", "00012", "１"),
]


@pytest.mark.parametrize("text", NUMERIC_LOOKALIKES)
def test_text_that_looks_like_a_number(oracle: sqlite3.Connection, text: str) -> None:
    for affinity in (Affinity.INTEGER, Affinity.REAL, Affinity.NUMERIC):
        theirs, ours = stored_by_sqlite(oracle, f"{affinity}_BINARY", text), apply_affinity(text, affinity)
        assert (type(theirs), repr(theirs)) == (type(ours), repr(ours)), affinity


@settings(max_examples=50, deadline=None)
@given(left=values, right=values, same_text=words)
@example(left=1, right=1.0, same_text="")
@example(left=-0.0, right=0.0, same_text="")
@example(left=2**53 + 1, right=float(2**53), same_text="")
@example(left="a\0b", right="A\0c", same_text="")
@example(left="a\0b", right="a\0bb", same_text="")
def test_equal_in_sqlite_means_equal_bytes(oracle: sqlite3.Connection, left: Any, right: Any, same_text: str) -> None:
    pairs = [(left, right), (same_text, same_text.swapcase()), (same_text, same_text + " ")]
    for affinity, collation in TABLES:
        key_type = KeyType((affinity,), (collation,))
        for first, second in pairs:
            oracle.execute(f"DELETE FROM {affinity}_{collation}")
            oracle.executemany(f"INSERT INTO {affinity}_{collation}(n, k) VALUES (?, ?)", [(1, first), (2, second)])
            sql = f"SELECT a.k IS b.k FROM {affinity}_{collation} a, {affinity}_{collation} b WHERE a.n = 1 AND b.n = 2"
            equal = bool(oracle.execute(sql).fetchone()[0])
            assert (key_type.canonical(first) == key_type.canonical(second)) is equal, (first, second, key_type)


@settings(max_examples=50, deadline=None)
@given(column=st.lists(values, min_size=2, max_size=12))
@example(column=["a\0", "a", "ab", "a\0b", "A\0", b"a", 1, None, 1.5, float("inf"), 2**63 - 1, "Z", "[", "z"])
def test_order_is_that_of_order_by(oracle: sqlite3.Connection, column: list[Any]) -> None:
    for affinity, collation in TABLES:
        table = f"{affinity}_{collation}"
        oracle.execute(f"DELETE FROM {table}")
        oracle.executemany(f"INSERT INTO {table}(n, k) VALUES (?, ?)", enumerate(column))
        theirs = [n for (n,) in oracle.execute(f"SELECT n FROM {table} ORDER BY k, n")]
        stored = [apply_affinity(value, affinity) for value in column]
        assert sorted(range(len(column)), key=lambda n: (sort_key(stored[n], collation), n)) == theirs, table
        key_type = KeyType((affinity,), (collation,))
        assert sorted(range(len(column)), key=lambda n: (key_type.order(column[n]), n)) == theirs, table


@settings(max_examples=100, deadline=None)
@given(left=st.tuples(values, texts), right=st.tuples(values, texts))
@example(left=("a", "bc"), right=("ab", "c"))
def test_composite_keys_are_equal_column_by_column(left: Any, right: Any) -> None:
    pair = KeyType((Affinity.BLOB, Affinity.TEXT), ("BINARY", "NOCASE"))
    columns = [KeyType((a,), (c,)) for a, c in zip(pair.affinities, pair.collations, strict=True)]
    same = all(column.canonical(a) == column.canonical(b) for column, a, b in zip(columns, left, right, strict=True))
    assert (pair.canonical(left) == pair.canonical(right)) is same
    assert pair.canonical(list(left)) == pair.canonical(left)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_a_key_read_from_storage_has_the_same_bytes(oracle: sqlite3.Connection, value: Any) -> None:
    for affinity, collation in TABLES:
        table = f"{affinity}_{collation}"
        stored_by_sqlite(oracle, table, value)
        sql = f"SELECT typeof(k), iif(typeof(k) = 'text', CAST(k AS BLOB), k) FROM {table}"
        kind, raw = oracle.execute(sql).fetchone()
        key_type = KeyType((affinity,), (collation,))
        assert key_type.canonical_from_storage(kind, raw) == key_type.canonical(value)


def test_malformed_utf8_follows_the_collation() -> None:
    nocase = KeyType((Affinity.INTEGER,), ("NOCASE",))
    assert nocase.canonical_from_storage("text", b"A\xff") == nocase.canonical_from_storage("text", b"a\xff")
    assert nocase.canonical_from_storage("text", b"a\xff") != nocase.canonical_from_storage("blob", b"a\xff")
    pair = KeyType((Affinity.TEXT, Affinity.TEXT), ("RTRIM", "BINARY"))
    assert pair.canonical_from_storage(("text", "text"), (b"\xed\xa0\x80 ", b"x")) == pair.canonical_from_storage(
        ("text", "text"), (b"\xed\xa0\x80", b"x")
    )
    assert pair.canonical_from_storage(("text", "text"), (b"a", b"x")) == pair.canonical(("a", "x"))


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_routing_is_total_and_stable(value: Any) -> None:
    for affinity, collation in TABLES:
        key_type = KeyType((affinity,), (collation,))
        for shards in (1, 3, 8):
            layout = Layout.create(shards)
            shard = layout.shard_of(key_type)(value)
            assert 0 <= shard < shards
            assert layout.shard_of(key_type)(value) == shard == layout.shards_of_many(key_type, [value])[0]
            assert layout.shard_of(key_type)(key_type.stored(value)) == shard
            assert layout.shard_of(key_type)(key_type.representative(value)) == shard
            assert layout.shard_of_canonical(key_type.canonical(value)) == shard


def test_golden_keys() -> None:
    assert len(GOLDEN) > 900
    layouts = {count: Layout.create(int(count)) for count in GOLDEN[0]["shards"]}
    for vector in GOLDEN:
        key_type = KeyType(tuple(map(Affinity, vector["affinities"])), tuple(vector["collations"]))
        key = key_from_json(vector["key"])
        canonical = key_type.canonical(key)
        assert canonical.hex() == vector["canonical"], vector
        assert mmh3.hash(canonical, 0, False) == vector["hash"], vector
        assert slot_of(canonical, 4096) == vector["hash"] % 4096
        for count, layout in layouts.items():
            assert layout.shard_of(key_type)(key) == vector["shards"][count], vector
            assert layout.shards_of_many(key_type, [key]) == [vector["shards"][count]], vector
            assert vector["hash"] % 4096 * int(count) // 4096 == vector["shards"][count]


def reference_murmur3(data: bytes) -> int:
    """MurmurHash3 x86 32 bit, seed 0, written after the description of the algorithm."""
    mask, state = 0xFFFFFFFF, 0
    for start in range(0, len(data), 4):
        block = data[start : start + 4]
        word = int.from_bytes(block, "little") * 0xCC9E2D51 & mask
        word = (word << 15 | word >> 17) & mask
        state ^= word * 0x1B873593 & mask
        if len(block) == 4:
            state = ((state << 13 | state >> 19) & mask) * 5 + 0xE6546B64 & mask
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & mask
    return state ^ state >> 16


def test_the_hash_is_murmur3() -> None:
    for vector in GOLDEN[::7]:
        assert reference_murmur3(bytes.fromhex(vector["canonical"])) == vector["hash"]


@pytest.mark.parametrize(
    "declared",
    [
        *("", "INT", "integer", "BIGINT UNSIGNED", "CHARINT", "VARCHAR(9)", "nclob", "text", "BLOB", "blobtext"),
        *(
            "REAL",
            "DOUBLE PRECISION",
            "FLOATING POINT",
            "real blob",
            "floater",
            "DECIMAL(10,5)",
            "ANY",
            "DATE",
            "STRING",
            "İNT",
        ),
    ],
)
def test_affinity_of_a_declared_type(declared: str) -> None:
    with sqlite3.connect(":memory:") as connection:
        quoted = f'"{declared}"' if declared else ""
        connection.execute(f"CREATE TABLE t(k {quoted})")
        for value in ("5", 5, 5.5, "x", b"5"):
            connection.execute("DELETE FROM t")
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            theirs, ours = (
                connection.execute("SELECT k FROM t").fetchone()[0],
                apply_affinity(value, affinity_of(declared)),
            )
            assert (type(theirs), theirs) == (type(ours), ours)
    connection.close()


@pytest.mark.skipif(SQLITE_VERSION < (3, 37, 0), reason="STRICT tables came with SQLite 3.37")
def test_any_in_a_strict_table_converts_nothing() -> None:
    assert affinity_of("ANY", strict_table=True) is Affinity.BLOB
    assert affinity_of("ANY") is Affinity.NUMERIC
    assert affinity_of("INT", strict_table=True) is Affinity.INTEGER


def test_subclasses_and_buffers_are_keys() -> None:
    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    integer, text = KeyType((Affinity.INTEGER,), ("BINARY",)), KeyType((Affinity.TEXT,), ("BINARY",))
    blob = KeyType((Affinity.BLOB,), ("BINARY",))
    assert text.canonical(Text("x")) == text.canonical("x")
    assert integer.canonical(True) == integer.canonical(1)
    assert integer.canonical(math.nan) == integer.canonical(None)
    assert blob.canonical(bytearray(b"x")) == blob.canonical(memoryview(b"x")) == blob.canonical(b"x")
    assert blob.canonical(b"x") != blob.canonical("x")


@pytest.mark.parametrize(
    ("key", "words_in_error"),
    [
        (2**63, "9223372036854775808"),
        (-(2**63) - 1, "-9223372036854775809"),
        (Decimal(5), r"Decimal.*Decimal\('5'\)"),
        ([1], r"list.*\[1\]"),
        ({"a": 1}, "dict"),
        ((1, 2), r"tuple.*\(1, 2\)"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_can_not_be_a_key_is_named(key: Any, words_in_error: str) -> None:
    layout = Layout.create(4)
    for affinity in (Affinity.INTEGER, Affinity.TEXT, Affinity.BLOB):
        key_type = KeyType((affinity,), ("BINARY",))
        calls = [key_type.canonical, layout.shard_of(key_type), lambda k, t=key_type: layout.shards_of_many(t, [k])]
        if not isinstance(key, int) or affinity is not Affinity.TEXT:
            layout.shard_of(key_type)(5)
        for call in calls:
            with pytest.raises(RoutingError, match=words_in_error):
                call(key)


def test_a_composite_key_has_all_its_columns() -> None:
    pair = KeyType((Affinity.INTEGER, Affinity.TEXT), ("BINARY", "BINARY"))
    for wrong in (1, "ab", (1,), (1, "a", "b")):
        with pytest.raises(RoutingError, match=re.escape(repr(wrong))):
            pair.canonical(wrong)


def test_only_built_in_collations_make_keys() -> None:
    with pytest.raises(NotSupportedError, match=r"GERMAN.*BINARY, NOCASE, RTRIM"):
        KeyType((Affinity.TEXT,), ("german",))
    assert KeyType((Affinity.TEXT,), ("nocase",)) == KeyType((Affinity.TEXT,), ("NOCASE",))


def _ask_in_child(queue: Any) -> None:
    queue.put(apply_affinity(2.5, Affinity.TEXT))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_reals_and_texts_convert_in_threads_and_after_a_fork() -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(apply_affinity("2.50", Affinity.REAL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_ask_in_child, args=(queue,))
    child.start()
    child.join(30)
    assert found == [2.5] * 4
    assert child.exitcode == 0
    assert queue.get() == "2.5"
    queue.close()
