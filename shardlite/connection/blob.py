"""A handle on one value's bytes whose calls are counted on its connection."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from shardlite.connection.calls import counted
from shardlite.driver import sqlite3

if TYPE_CHECKING:
    from shardlite.connection.connection import Connection

T = TypeVar("T")


class Blob:
    """A handle on one value's bytes, as ``sqlite3.Blob``, with counted calls."""

    __slots__ = ("__weakref__", "_blob", "_conn")

    def __init__(self, conn: Connection, blob: Any) -> None:
        self._conn = conn
        self._blob = blob

    def __enter__(self) -> Blob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, name: str, *args: Any) -> Any:
        return counted(lambda _: getattr(self._blob, name)(*args))(self._conn)

    def close(self) -> None:
        """Close the blob; it holds a transaction open until then."""
        if not self._conn.doomed:
            self._call("close")

    def end(self) -> None:
        """Close the blob, asking nobody; no call may be in flight."""
        self._blob.close()

    def read(self, length: int = -1, /) -> bytes:
        """Read ``length`` bytes, or all the rest, from the current position."""
        return bytes(self._call("read", length))

    def write(self, data: Any, /) -> None:
        """Write at the current position; the length of the value can't change."""
        self._call("write", data)

    def seek(self, offset: int, origin: int = 0, /) -> None:
        """Set the current position, as ``io`` does."""
        self._call("seek", offset, origin)

    def tell(self) -> int:
        """Return the current position."""
        return int(self._call("tell"))

    def __len__(self) -> int:
        return int(self._call("__len__"))

    def __getitem__(self, key: int | slice) -> Any:
        return self._content()[key] if _IS_PYSQLITE3 else self._call("__getitem__", key)

    def __setitem__(self, key: int | slice, value: Any) -> None:
        if not _IS_PYSQLITE3:
            self._call("__setitem__", key, value)
            return
        content = bytearray(self._content())
        length = len(content)
        content[key] = value
        if len(content) != length:
            raise IndexError("Blob slice assignment is wrong size")
        self._with_position_kept(lambda: self.write(bytes(content)))

    def _content(self) -> bytes:
        return self._with_position_kept(self.read)

    def _with_position_kept(self, call: Callable[[], T]) -> T:
        """Call with the position at 0. (Subscripts of pysqlite3's own blobs are counted from the position.)"""
        position = self.tell()
        self.seek(0)
        try:
            return call()
        finally:
            self.seek(position)


_IS_PYSQLITE3 = not hasattr(sqlite3.Connection, "blobopen")


def tracking(open_blob: Callable[..., Any]) -> Callable[..., Blob]:
    """Wrap a method of ``sqlite3.Connection`` that opens a blob: it is counted, and closed on return to the pool."""

    def opened(conn: Connection, *args: Any, **kwargs: Any) -> Blob:
        blob = Blob(conn, open_blob(conn, *args, **kwargs))
        conn.track(blob)  # not the driver's own: pysqlite3 fails where others refer to that weakly
        return blob

    return counted(opened)


def blobopen(
    conn: Connection, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
) -> Any:
    """Open a blob as ``sqlite3.Connection.blobopen`` does, which has another name in pysqlite3."""
    if _IS_PYSQLITE3:
        plain: Any = sqlite3.Connection
        return plain.open_blob(conn, table, column, row, readonly=readonly, dbname=name)
    return sqlite3.Connection.blobopen(conn, table, column, row, readonly=readonly, name=name)


__all__ = ["Blob", "blobopen", "tracking"]
