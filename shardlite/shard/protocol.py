"""What the layers above ask of one shard. Nothing above this package may assume a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Parameters = Sequence[Any] | Mapping[str, Any]


class Outcome(Protocol):
    """What a statement left behind; valid until the session's next statement."""

    @property
    def rowcount(self) -> int: ...
    @property
    def lastrowid(self) -> int | None: ...
    @property
    def description(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Stream(Protocol):
    """Rows of one statement, read as they come."""

    @property
    def description(self) -> Any: ...
    @property
    def rowcount(self) -> int: ...
    @property
    def lastrowid(self) -> int | None: ...
    def fetchmany(self, size: int = ..., /) -> list[Any]: ...
    def close(self) -> None: ...


class Session(Protocol):
    """One connection to a shard, held by one thread. Rows are plain tuples."""

    def fetch_row(self, sql: str, params: Parameters = ..., /) -> tuple[Any, ...] | None: ...
    def fetch_all(self, sql: str, params: Parameters = ..., /) -> list[tuple[Any, ...]]: ...
    def run(self, sql: str, params: Parameters = ..., /) -> Outcome: ...
    def run_many(self, sql: str, rows: Iterable[Parameters], /) -> int: ...
    def stream(self, sql: str, params: Parameters = ..., /) -> Stream: ...


class Shard(Protocol):
    """One shard of the database.

    Everything that takes ``timeout_s`` raises PoolExhaustedError or OperationalError when it can't have what it
    needs in that time. Errors name the shard.
    """

    id: int
    name: str

    def fetch_row(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> tuple[Any, ...] | None: ...
    def fetch_all(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> list[tuple[Any, ...]]: ...
    def write_once(self, sql: str, params: Parameters, timeout_s: float | None = ...) -> tuple[int, int | None]:
        """Run one statement that writes, alone in its transaction. Return (rows changed, last rowid)."""
        ...

    def reading(self, timeout_s: float | None = ...) -> AbstractContextManager[Session]: ...
    def close(self, timeout_s: float | None = ...) -> None: ...
