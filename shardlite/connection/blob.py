"""A handle on one value's bytes whose calls are counted on its connection."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from shardlite.connection.calls import counted

if TYPE_CHECKING:
    from shardlite.connection.connection import Connection


class Blob:
    """A handle on one value's bytes, as ``sqlite3.Blob``, with counted calls."""

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
        return self._call("__getitem__", key)

    def __setitem__(self, key: int | slice, value: Any) -> None:
        self._call("__setitem__", key, value)


__all__ = ["Blob"]
