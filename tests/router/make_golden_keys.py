"""Write golden_keys.json: canonical bytes, hash and shards of several hundred keys.

Run by hand, once: the file pins where rows lie on disk. A test that fails against it has found a change that
would lose rows of existing databases; writing the file again is never the cure.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import mmh3

from shardlite.router.keys import Affinity, KeyType
from shardlite.router.layout import Layout
from shardlite.router.strategies import key_to_json

SHARD_COUNTS = (1, 3, 4, 8)

INTEGERS = [0, 1, -1, 2, 5, 42, 255, 256, 1000, 65535, -65536, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1]
INTEGERS += [10**18, 2**62, 2**63 - 1, -(2**63), -(2**63) + 1]
REALS = [0.0, -0.0, 0.5, -0.5, 1.0, 1.5, 2.0**53, 2.0**63, -(2.0**63), 1e300, 5e-324, float("inf"), float("-inf")]
TEXTS = ["", " ", "a", "A", "Ann", "ANN", "ann  ", "ann\t", "Ärger", "ärger", "日本語", "😀", "x" * 300, "a\0b", "A\0C"]
TEXTS += ["5", "05", " 5 ", "+5", "5.0", "5e0", "1e3", "0x10", "1_0", "٣", "nan", "inf", "9223372036854775807"]
TEXTS += ["-9223372036854775808", "9223372036854775808", ".5", "5.", ".", "1 2"]
BLOBS = [b"", b"\0", b"5", b"Ann", b"ann  ", bytes(range(256)), b"\xff\xfe"]


def scalar_cases() -> list[tuple[KeyType, Any]]:
    """Every value under every affinity, text also under every collation."""
    cases: list[tuple[KeyType, Any]] = []
    for affinity in Affinity:
        for value in [None, True, *INTEGERS, *REALS, *BLOBS, *TEXTS]:
            if affinity is Affinity.TEXT and isinstance(value, float):
                continue  # releases of SQLite write REALs with 15 or 17 digits
            collations = ("BINARY", "NOCASE", "RTRIM") if isinstance(value, str) else ("BINARY",)
            cases += [(KeyType((affinity,), (collation,)), value) for collation in collations]
    return cases


def composite_cases() -> list[tuple[KeyType, Any]]:
    """Pairs and triples, among them those that a careless joining of bytes would confuse."""
    pair = KeyType((Affinity.INTEGER, Affinity.TEXT), ("BINARY", "NOCASE"))
    texts = KeyType((Affinity.TEXT, Affinity.TEXT), ("BINARY", "RTRIM"))
    triple = KeyType((Affinity.BLOB, Affinity.REAL, Affinity.NUMERIC), ("BINARY",) * 3)
    cases: list[tuple[KeyType, Any]] = [(pair, p) for p in itertools.product((1, "1", None), ("a", "A", "b", None))]
    cases += [(texts, p) for p in [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("abc ", " "), (None, None)]]
    cases += [(triple, p) for p in itertools.product((b"x", "x", 1), (1, 0.5), ("7", None))]
    return cases


def random_cases() -> list[tuple[KeyType, Any]]:
    """Keys as applications have them."""
    rnd = random.Random(20_240_101)
    integer = KeyType((Affinity.INTEGER,), ("BINARY",))
    text = KeyType((Affinity.TEXT,), ("BINARY",))
    blob = KeyType((Affinity.BLOB,), ("BINARY",))
    cases: list[tuple[KeyType, Any]] = [(integer, number) for number in range(1, 101)]
    cases += [(integer, rnd.randint(-(2**63), 2**63 - 1)) for _ in range(50)]
    cases += [(text, f"user-{rnd.randrange(10**6)}@example.org") for _ in range(50)]
    return cases + [(blob, rnd.randbytes(16)) for _ in range(30)]


def vector(key_type: KeyType, key: Any) -> dict[str, Any]:
    """Return one vector: what goes in and everything that must come out for ever."""
    canonical = key_type.canonical(key)
    return {
        "affinities": list(key_type.affinities),
        "collations": list(key_type.collations),
        "key": key_to_json(key),
        "canonical": canonical.hex(),
        "hash": mmh3.hash(canonical, 0, False),
        "shards": {str(count): Layout.create(count).shard_of(key_type)(key) for count in SHARD_COUNTS},
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("golden_keys.json")
    if path.exists():
        raise SystemExit(f"{path.name} exists: it is never written again")
    vectors = [vector(*case) for case in scalar_cases() + composite_cases() + random_cases()]
    path.write_text("[\n" + ",\n".join(json.dumps(item) for item in vectors) + "\n]\n", encoding="utf-8")
    print(f"{len(vectors)} vectors")
