"""Shard keys: the value that SQLite will store, and the bytes that are hashed.

Two keys that SQLite holds equal must reach the same shard, so a key goes through what SQLite does to it: the
column's affinity (``'5'``, ``5.0`` and ``5`` are one INTEGER key), then the column's collation (``'Ann'`` and ``'ANN'``
are one NOCASE key), then an encoding in which values are equal exactly when their bytes are. The encoding is fixed for
ever: data on disk lies where it says. Everything here is a pure function and safe for threads.

The encoding, one tag byte and then:

====== ==========================================================================
``n``  NULL (NaN too, which SQLite stores as NULL)
``i``  64-bit integer, little-endian; also a REAL that equals one (``1.0``, ``-0.0``)
``r``  any other REAL, IEEE 754 double, little-endian
``t``  text, UTF-8, after the collation
``b``  blob
``c``  composite: for each column 4 bytes of length, little-endian, and its encoding
====== ==========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import Any, Final, TypeAlias

import mmh3

from shardlite.errors import NotSupportedError, RoutingError
from shardlite.names import fold
from shardlite.router.realtext import number_of_text, real_of_text, text_of_real

Value: TypeAlias = int | float | str | bytes | None
"""A value as SQLite stores it: INTEGER, REAL, TEXT, BLOB, NULL."""

COLLATIONS: Final = ("BINARY", "NOCASE", "RTRIM")
"""The collations that a key may have: those that every SQLite has."""

MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1

_SPACE = r"[ \t\n\v\f\r]*"
_NUMBER = re.compile(
    rf"{_SPACE}(?:(?P<integer>[+-]?[0-9]+)|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?){_SPACE}\Z"
)
encode_integer: Final = Struct("<cq").pack
_REAL: Final = Struct("<cd").pack
_LENGTH: Final = Struct("<I").pack
hash32 = mmh3.hash


class Affinity(StrEnum):
    """A column's type affinity (https://sqlite.org/datatype3.html#type_affinity)."""

    INTEGER = "INTEGER"
    REAL = "REAL"
    NUMERIC = "NUMERIC"
    TEXT = "TEXT"
    BLOB = "BLOB"


def affinity_of(declared_type: str, strict_table: bool = False) -> Affinity:
    """Return the affinity that SQLite derives from a column's declared type."""
    name = fold(declared_type)
    if strict_table and name == "any":
        return Affinity.BLOB
    if "int" in name:
        return Affinity.INTEGER
    if any(part in name for part in ("char", "clob", "text")):
        return Affinity.TEXT
    if not name or "blob" in name:
        return Affinity.BLOB
    if any(part in name for part in ("real", "floa", "doub")):
        return Affinity.REAL
    return Affinity.NUMERIC


def plain_value(value: Any) -> Value:
    """Return ``value`` as one of the five types that SQLite stores, before any affinity.

    bool becomes int, bytearray and memoryview become bytes, NaN becomes None. Raises RoutingError for an int
    beyond 64 bits and for any other type, naming type and value.
    """
    if value is None or type(value) is str or type(value) is bytes:
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        if MIN_INTEGER <= number <= MAX_INTEGER:
            return number
        raise RoutingError(f"the key {number} doesn't fit into SQLite's 64-bit integers")
    if isinstance(value, float):
        return None if value != value else float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise RoutingError(
        f"a value of type {type(value).__name__} can't be a key: {value!r}; use int, float, str, bytes or None"
    )


def apply_affinity(value: Any, affinity: Affinity) -> Value:
    """Return the value that SQLite would store for ``value`` in a column of this affinity.

    Raises RoutingError as plain_value does. The value that a STRICT table or an INTEGER PRIMARY KEY would refuse is
    returned as it is: refusing it is left to SQLite.
    """
    plain = plain_value(value)
    if plain is None or isinstance(plain, bytes) or affinity is Affinity.BLOB:
        return plain
    if affinity is Affinity.TEXT:
        if isinstance(plain, float):
            return text_of_real(plain)
        return str(plain)
    if isinstance(plain, str):
        number = _number_of_text(plain)
        if number is None:
            return plain
        plain = number
    if affinity is Affinity.REAL:
        return float(plain) + 0.0  # SQLite stores -0.0 here as 0.0
    if isinstance(plain, float) and plain.is_integer() and MIN_INTEGER < plain < MAX_INTEGER:
        return int(plain)
    return plain


def _number_of_text(text: str) -> int | float | None:
    """Return the number that a numeric affinity makes of ``text``; None when it is not a well-formed number."""
    match = _NUMBER.match(text)
    if match is None:
        head, nul, _ = text.partition("\0")
        return number_of_text(text) if nul and _NUMBER.match(head) else None
    digits = match["integer"]
    if digits is not None and len(digits.lstrip("+-").lstrip("0")) <= 19:
        number = int(digits)
        if MIN_INTEGER <= number <= MAX_INTEGER:
            return number
    return real_of_text(text.strip(" \t\n\v\f\r"))


_FOLD_BYTES: Final = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))


def collated(text: bytes, collation: str) -> bytes:
    """Return one representative of all texts (UTF-8) that are equal to ``text`` under the collation.

    The representatives also sort, byte by byte, as the collation orders the texts.
    """
    if collation == "NOCASE":
        folded = text.translate(_FOLD_BYTES)
        # SQLite's NOCASE stops comparing at a NUL and then looks at the lengths alone.
        nul = folded.find(b"\0")
        return folded if nul < 0 else folded[:nul].ljust(len(folded), b"\0")
    if collation == "RTRIM":
        return text.rstrip(b" ")
    return text


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RoutingError(f"the key {text!r} holds a lone surrogate, which SQLite can't store as text") from error


def _representative(value: Value, collation: str) -> Value:
    """Return one value for all that SQLite holds equal to ``value``: an int for an integral REAL, collated text."""
    if isinstance(value, float):
        if value.is_integer() and MIN_INTEGER <= value < MAX_INTEGER:
            return int(value)
        return value
    if isinstance(value, str) and collation != "BINARY":
        return collated(_utf8(value), collation).decode()
    return value


def _encode(value: Value) -> bytes:
    """Encode a representative."""
    if isinstance(value, int):
        return encode_integer(b"i", value)
    if isinstance(value, str):
        return b"t" + _utf8(value)
    if value is None:
        return b"n"
    if isinstance(value, float):
        return _REAL(b"r", value)
    return b"b" + value


_UTF_16: Final = {"UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
TEXT_ENCODINGS: Final = {"UTF-8": "utf-8", **_UTF_16}
"""Python's name for each of SQLite's text encodings."""


def text_order(collation: str, encoding: str) -> str:
    """Return what ``sort_key`` has to be given for a collation in a database of this text encoding.

    BINARY compares the bytes as they are stored, so in a UTF-16 database it orders otherwise than in a UTF-8 one;
    NOCASE and RTRIM compare UTF-8 in both (https://sqlite.org/datatype3.html#collating_sequences).
    """
    return encoding if encoding in _UTF_16 and collation == "BINARY" else collation


def sort_key(value: Any, collation: str = "BINARY") -> tuple[Any, ...]:
    """Return a Python sort key that orders values as SQLite's ORDER BY does.

    NULL first, then numbers, text by the collation, blobs. No affinity is applied. ``collation`` may also be what
    ``text_order`` returns.
    """
    plain = _representative(plain_value(value), collation)
    if plain is None:
        return (0,)
    if isinstance(plain, str):
        return (2, _utf8(plain) if collation not in _UTF_16 else plain.encode(_UTF_16[collation], "surrogatepass"))
    if isinstance(plain, bytes):
        return (3, plain)
    return (1, plain)


@dataclass(frozen=True, slots=True)
class KeyType:
    """Affinities and collations of a shard key, one of each per column.

    Equal key types give equal bytes for equal keys: tables that share one can be colocated. Raises NotSupportedError
    for a collation that is not built into SQLite.
    """

    affinities: tuple[Affinity, ...]
    collations: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.affinities or len(self.affinities) != len(self.collations):
            raise RoutingError(
                f"a key type needs one affinity and one collation per column, not {len(self.affinities)} and "
                f"{len(self.collations)}"
            )
        collations = tuple(name.upper() for name in self.collations)
        for name in collations:
            if name not in COLLATIONS:
                raise NotSupportedError(
                    f"a column with the collation {name} can't be a shard key: only {', '.join(COLLATIONS)} order "
                    "keys alike in every process; declare the key column with one of these"
                )
        object.__setattr__(self, "affinities", tuple(Affinity(affinity) for affinity in self.affinities))
        object.__setattr__(self, "collations", collations)

    @property
    def common_type(self) -> type[int] | type[str] | None:
        """The Python type whose values this key stores as they are; None when no type is the common one."""
        if len(self.affinities) > 1:
            return None
        affinity = self.affinities[0]
        if affinity is Affinity.INTEGER or affinity is Affinity.NUMERIC:
            return int
        return None if affinity is Affinity.REAL else str

    @property
    def width(self) -> int:
        """The number of key columns."""
        return len(self.affinities)

    def stored(self, key: Any) -> Any:
        """Return the key as SQLite would store it: a value, or a tuple of values for a composite key."""
        if len(self.affinities) == 1:
            return apply_affinity(key, self.affinities[0])
        return tuple(map(apply_affinity, self._parts(key), self.affinities))

    def representative(self, key: Any) -> Any:
        """Return one key for all that SQLite holds equal to ``key``; this is what a strategy is asked about.

        It is the key as stored, with text in ASCII lower case under NOCASE and without trailing spaces under RTRIM.
        In a column of REAL affinity it stays a float, elsewhere an integral REAL becomes an int.
        """
        if len(self.affinities) == 1:
            return _as_asked(apply_affinity(key, self.affinities[0]), self.affinities[0], self.collations[0])
        values = map(apply_affinity, self._parts(key), self.affinities)
        return tuple(map(_as_asked, values, self.affinities, self.collations))

    def canonical(self, key: Any) -> bytes:
        """Return the bytes that are hashed: a scalar for one column, a tuple or list for several.

        Raises RoutingError for a type that can't be a key, an int beyond 64 bits, a lone surrogate, or a composite
        key of another length; it names type and value.
        """
        if len(self.affinities) == 1:
            return _encode(_representative(apply_affinity(key, self.affinities[0]), self.collations[0]))
        return _join(
            _encode(_representative(apply_affinity(part, affinity), collation))
            for part, affinity, collation in zip(self._parts(key), self.affinities, self.collations, strict=True)
        )

    def canonical_from_storage(self, type_names: Any, values: Any) -> bytes:
        """Return the canonical bytes of a key read as SQLite's ``typeof()`` and, for text, its raw UTF-8 bytes.

        For text that is not valid UTF-8, which Python can't hold as str; for valid text the result is that of
        ``canonical``. One type name and value for one column, sequences of both for a composite key.
        """
        if len(self.affinities) == 1:
            return _encode_storage(type_names, values, self.affinities[0], self.collations[0])
        names, parts = self._parts(type_names), self._parts(values)
        return _join(map(_encode_storage, names, parts, self.affinities, self.collations))

    def order(self, key: Any) -> tuple[Any, ...]:
        """Return a sort key by which keys order as SQLite's ORDER BY over the key columns orders them.

        A tuple shorter than a composite key is taken as a prefix, a scalar as its first column: it sorts before
        every key that begins with it.
        """
        if len(self.affinities) == 1:
            return (sort_key(apply_affinity(key, self.affinities[0]), self.collations[0]),)
        parts = key if isinstance(key, (tuple, list)) else (key,)
        if not 0 < len(parts) <= len(self.affinities):
            raise RoutingError(f"a bound of this key has 1 to {len(self.affinities)} values, not {len(parts)}: {key!r}")
        return tuple(
            sort_key(apply_affinity(part, affinity), collation)
            for part, affinity, collation in zip(parts, self.affinities, self.collations, strict=False)
        )

    def _parts(self, key: Any) -> Sequence[Any]:
        if not isinstance(key, (tuple, list)):
            raise RoutingError(
                f"the key has {len(self.affinities)} columns: give a tuple of {len(self.affinities)} values, not "
                f"{type(key).__name__} {key!r}"
            )
        if len(key) != len(self.affinities):
            raise RoutingError(f"the key has {len(self.affinities)} columns, but {len(key)} values were given: {key!r}")
        return key


def _as_asked(value: Value, affinity: Affinity, collation: str) -> Value:
    if affinity is Affinity.REAL and isinstance(value, float):
        return value
    return _representative(value, collation)


def _join(parts: Any) -> bytes:
    return b"c" + b"".join(_LENGTH(len(part)) + part for part in parts)


def _encode_storage(type_name: str, value: Any, affinity: Affinity, collation: str) -> bytes:
    if type_name == "text" and isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            # No affinity can read a number out of it, so only the collation is left to apply.
            return b"t" + collated(raw, collation)
    return _encode(_representative(apply_affinity(value, affinity), collation))


def slot_of(canonical: bytes, slots: int) -> int:
    """Return the slot of canonical key bytes: MurmurHash3 x86 32 bit, seed 0, unsigned, modulo ``slots``."""
    return int(hash32(canonical, 0, False)) % slots
