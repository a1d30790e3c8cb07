"""The shard of a row, computed inside SQLite by a registered function over the row's key columns."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from shardlite.driver import sqlite3
from shardlite.errors import DataError, Error, NotSupportedError, ProgrammingError
from shardlite.names import quote
from shardlite.router.keys import Affinity, KeyType, apply_affinity, slot_of
from shardlite.router.layout import Layout
from shardlite.router.strategies import DirectoryStrategy, HashStrategy, RangeStrategy, ShardingStrategy
from shardlite.router.table import Table
from shardlite.topology.callbacks import Raised, is_callback_failure

_Result = TypeVar("_Result")
_PYTHON_CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}


class _NoRecord(Exception):
    """A call failed, and the function recorded nothing: its arguments were no text, or a signal came first."""


class PlacingFunction:
    """A SQL function that gives the shard of a key, registered on any number of connections.

    ``call(alias)`` is the text of the call for a row of the table. A text key that is not valid UTF-8 can't be handed
    to Python as text: the driver then fails the statement, or hands over None, which is taken for a failure.
    ``raw=True`` makes the call that hands over types and bytes: it is slower, and gives the same shard for all other
    keys. ``text_first`` runs a statement in the form that will do.
    """

    def __init__(self, layout: Layout, table: Table, *, columns: Sequence[str] = ()) -> None:
        """``columns`` are those to read the key from, where they aren't the table's own key columns."""
        self._layout = layout
        self._table = table
        self._columns = tuple(columns) or table.key_columns
        self._name = "_shardlite_shard_of"
        self._key_type: KeyType = table.key_type
        self._shard_of = layout.shard_of(table.key_type)
        self._raised = Raised()
        self._met_bytes = False
        self._none_may_be_text = _gives_none_for_bad_text()

    def register(self, conn: sqlite3.Connection) -> None:
        """Make the function known to a connection."""
        width = len(self._columns)
        call = self._guarded_one if width == 1 else self._guarded_many
        conn.create_function(self._name, width, call, deterministic=True)
        conn.create_function(f"{self._name}_raw", 2 * width, self._raw, deterministic=True)

    def call(self, alias: str = "", *, raw: bool = False) -> str:
        """Return the SQL text of the call over the key columns of ``alias``."""
        prefix = f"{alias}." if alias else ""
        columns = [prefix + quote(name) for name in self._columns]
        if not raw:
            return f"{self._name}({', '.join(columns)})"
        parts = [f"typeof({c}), CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns]
        return f"{self._name}_raw({', '.join(parts)})"

    def text_first(self, run: Callable[[bool], _Result]) -> _Result:
        """Run a statement that makes the call with ``raw`` as given; once more, raw, where a key is not valid text.

        :raises DataError: a key can't be placed.
        :raises KeyboardInterrupt: as any other exception of a signal handler, it comes out as it was raised.
        """
        try:
            with self.statement(raw=False):
                return run(False)
        except (_NoRecord, UnicodeDecodeError) as error:
            self._met_bytes = False
            with self.statement():
                result = run(True)
            if not self._met_bytes and isinstance(error, _NoRecord):
                # Every key was text after all: it was not the arguments that failed the statement.
                raise KeyboardInterrupt from error
            return result

    @contextlib.contextmanager
    def statement(self, *, raw: bool = True) -> Iterator[None]:
        """Run a statement that makes the call: what the function raised is raised, in its words."""
        try:
            with self._raised.statement():
                try:
                    yield
                except sqlite3.Error as error:
                    if not raw and self._raised.failure is None and is_callback_failure(error):
                        raise _NoRecord from error
                    raise
        except Exception as error:
            if isinstance(error, (sqlite3.Error, UnicodeDecodeError, _NoRecord)) and not isinstance(error, Error):
                raise
            raise DataError(f"{self._table.name}: {error}") from error

    def _guarded_one(self, key: Any) -> int:
        try:
            if self._none_may_be_text and (None in key if isinstance(key, tuple) else key is None):
                raise UnicodeDecodeError("utf-8", b"", 0, 0, "the driver gave None, for NULL or for such a text")
            return self._shard_of(key)
        except BaseException as error:
            self._raised.failure = error
            raise

    def _guarded_many(self, *key: Any) -> int:
        return self._guarded_one(key)

    def _raw(self, *parts: Any) -> int:
        try:
            return self._locate_raw(list(parts[0::2]), list(parts[1::2]))
        except BaseException as error:
            self._raised.failure = error
            raise

    def _locate_raw(self, kinds: list[str], values: list[Any]) -> int:
        codec = _PYTHON_CODECS[self._layout.encoding]
        valid = True
        for i, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            if kind != "text":
                continue
            try:
                text = value.decode(codec)
                text.encode()
            except UnicodeError:
                valid = False
                self._met_bytes = True
                if codec != "utf-8":
                    values[i] = value.decode(codec, "surrogatepass").encode("utf-8", "surrogatepass")
            else:
                values[i] = text if valid else text.encode()
        if valid:
            return self._shard_of(values[0] if len(values) == 1 else tuple(values))
        return self._locate_bytes(kinds, [v.encode() if isinstance(v, str) else v for v in values])

    def _locate_bytes(self, kinds: list[str], values: list[Any]) -> int:
        if not isinstance(self._layout.strategy, HashStrategy):
            raise Error(
                f"the key ({', '.join(map(repr, values))}) holds text that is not valid UTF-8: only a hash layout can "
                "place it; keep the table single, or choose another key"
            )
        key_type = self._key_type
        one = len(values) == 1
        canonical = key_type.canonical_from_storage(kinds[0] if one else kinds, values[0] if one else values)
        return self._layout.slot_map[slot_of(canonical, self._layout.slots)]


@functools.cache
def _gives_none_for_bad_text() -> bool:
    """Tell whether the driver hands None to functions for a text that is not valid UTF-8: pysqlite3 does."""
    given: list[Any] = []
    conn = sqlite3.connect(":memory:")
    try:
        conn.create_function("give", 1, given.append)
        with contextlib.suppress(sqlite3.Error):
            conn.execute("SELECT give(CAST(x'ff' AS TEXT))").fetchone()
    finally:
        conn.close()
    return given == [None]


def require_placeable(layout: Layout, table: Table) -> None:
    """Refuse a sharded table whose keys the layout can't place, or would all put beyond one of its boundaries.

    :raises NotSupportedError: names the table, its key and the boundary.
    """
    named = f"{table.name}: its key ({', '.join(table.key_columns)})"
    advice = f"State another key for {table.name}, or keep it single, or give boundaries of the key's type"
    try:
        layout.shard_of(table.key_type)
    except ProgrammingError as error:
        raise NotSupportedError(f"{named} can't be placed by the strategy: {error}. {advice}") from None
    strategy: ShardingStrategy | None = layout.strategy
    if isinstance(strategy, DirectoryStrategy):
        strategy = strategy.default
    for boundary in strategy.boundaries if isinstance(strategy, RangeStrategy) else ():
        parts = boundary if isinstance(boundary, tuple) else (boundary,)
        if len(parts) > len(table.key_columns):
            raise NotSupportedError(
                f"{named} has {len(table.key_columns)} column(s), and the boundary {boundary!r} has {len(parts)}. "
                f"{advice}"
            )
        for column, affinity, part in zip(table.key_columns, table.key_type.affinities, parts, strict=False):
            if not _is_of_type(part, affinity):
                raise NotSupportedError(
                    f"{named}: {column} is {affinity.value}, and the boundary {boundary!r} is not: by SQLite's order "
                    f"it has all such keys on one side. {advice}"
                )


def _is_of_type(part: Any, affinity: Affinity) -> bool:
    """Tell whether a part of a boundary lies among the values that a column of this affinity is meant for."""
    if part is None or affinity is Affinity.BLOB:
        return True
    if affinity is Affinity.TEXT:
        return isinstance(part, str)
    return isinstance(apply_affinity(part, affinity), (int, float))
