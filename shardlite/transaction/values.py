"""Values as bytes, so that a row can be kept in a log and made again bit by bit.

One byte for the kind, then the value, little endian:

====  ==================================================================
0     NULL
1     i64
2     f64, its 8 bytes: -0.0 and the infinities are kept
3     text: u32 length, then the bytes that the file holds
4     blob: u32 length, then its bytes
====  ==================================================================

Text is kept as the file stores it, in the file's encoding: it may hold NULs and bytes that are no valid UTF-8 or
UTF-16, which a ``str`` can't say. All functions are pure and may be called from any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final

from shardlite.errors import DataError, InternalError


class Text(bytes):
    """Text as the file stores it, which tells it from a blob. Compare encodings, not values: ``Text(b"a") == b"a"``."""

    __slots__ = ()


Value = None | int | float | str | bytes | bytearray | memoryview
"""What SQLite stores, ``Text`` among them. A ``str`` is text that the application gave."""

CODECS: Final = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
"""What ``PRAGMA encoding`` says -> Python's codec."""

_NULL: Final = b"\x00"
_INTEGER: Final = struct.Struct("<Bq")
_REAL: Final = struct.Struct("<Bd")
_SIZED: Final = struct.Struct("<BI")
_I64: Final = struct.Struct("<q")
_F64: Final = struct.Struct("<d")
_U32: Final = struct.Struct("<I")

_pack_integer, _pack_real, _pack_size = _INTEGER.pack, _REAL.pack, _SIZED.pack
_TEXT, _BLOB = 3, 4


def encode_values(values: Iterable[Value], codec: str) -> bytes:
    """Return values one after the other as bytes.

    :param codec: the file's text encoding as Python calls it (``CODECS``), for values that are ``str``.
    :raises DataError: a value that SQLite can't store: an integer beyond 64 bits, a ``str`` with lone surrogates,
        another type.
    """
    parts: list[bytes] = []
    put = parts.append
    for value in values:
        kind = type(value)
        if value is None:
            put(_NULL)
        elif kind is int and -(1 << 63) <= value < 1 << 63:  # type: ignore[operator]  # an int, by its type
            put(_pack_integer(1, value))
        elif kind is Text:
            put(_pack_size(_TEXT, len(value)))  # type: ignore[arg-type]  # Text, by its type
            put(value)  # type: ignore[arg-type]  # as above
        elif kind is bytes:
            put(_pack_size(_BLOB, len(value)))  # type: ignore[arg-type]  # bytes, by its type
            put(value)  # type: ignore[arg-type]  # as above
        elif kind is float:
            put(_pack_real(2, value) if value == value else _NULL)  # NaN is NULL in SQLite
        else:
            put(_encode_given(value, codec))
    return b"".join(parts)


def _encode_given(value: Value, codec: str) -> bytes:
    """Encode what only an application gives: SQLite itself returns none of it."""
    if isinstance(value, str):
        try:
            raw = value.encode(codec)
        except UnicodeEncodeError as error:
            raise DataError(f"a text that can't be stored in {codec}: {value!r}: {error.reason}") from error
        return _pack_size(_TEXT, len(raw)) + raw
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        return _pack_size(_TEXT if isinstance(value, Text) else _BLOB, len(raw)) + raw
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return _pack_integer(1, int(value))
    if isinstance(value, float):
        return encode_values((float(value),), codec)
    if isinstance(value, int):
        raise DataError(f"an integer beyond 64 bits can't be stored: {value}")
    raise DataError(f"a value of type {type(value).__name__} can't be stored: {value!r}")


def decode_values(data: bytes, at: int, count: int, text: Callable[[bytes], Value] = Text) -> tuple[list[Value], int]:
    """Read ``count`` values that begin at byte ``at``; return them and where the next one begins.

    :param text: what to make of the bytes of a text.
    :raises InternalError: the bytes are no such values.
    """
    values: list[Value] = []
    put = values.append
    try:
        for _ in range(count):
            kind = data[at]
            at += 1
            if kind == 1:
                put(_I64.unpack_from(data, at)[0])
                at += 8
            elif kind == 0:
                put(None)
            elif kind == 2:
                put(_F64.unpack_from(data, at)[0])
                at += 8
            elif kind in (_TEXT, _BLOB):
                (size,) = _U32.unpack_from(data, at)
                at += 4
                raw = data[at : at + size]
                if len(raw) != size:
                    raise IndexError
                put(text(raw) if kind == _TEXT else raw)
                at += size
            else:
                raise InternalError(f"redo: byte {at - 1} should be the kind of a value, and is {kind}")
    except (IndexError, struct.error) as error:
        raise InternalError(f"redo: it ends within a value, at byte {at} of {len(data)}") from error
    return values, at


def is_exact(text: str, codec: str) -> bool:
    """Tell whether a ``str`` that is bound reaches a file of this encoding as it is.

    On its way to UTF-16 SQLite replaces U+FFFE and U+FFFF.
    """
    return codec == "utf-8" or not ("\ufffe" in text or "\uffff" in text)


def bindable(codec: str) -> Callable[[bytes], Value]:
    """Return a function from stored text to what can be bound for it: a ``str``, or Text where no ``str`` says it."""

    def bind(raw: bytes) -> Value:
        try:
            made = raw.decode(codec)
        except UnicodeDecodeError:
            return Text(raw)
        return made if is_exact(made, codec) else Text(raw)

    return bind
