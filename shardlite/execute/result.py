"""What a statement gives: rows that are read as they are needed, with names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from types import TracebackType
from typing import Any, NoReturn, Self

from shardlite.errors import InterfaceError, OperationalError, ProgrammingError
from shardlite.names import fold


class Row(tuple[Any, ...]):
    """A row: a tuple whose values can also be had by name (``row["name"]``, case ignored), as ``sqlite3.Row``."""

    __slots__ = ()
    _names: tuple[str, ...] = ()
    _index: dict[str, int] = {}  # noqa: RUF012 - one per result, in the subclass that row_class makes

    def keys(self) -> list[str]:
        """Return the column names."""
        return list(self._names)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return tuple.__getitem__(self, self._index[fold(key)])
            except KeyError:
                raise IndexError(f"no column {key!r} in this row: it has {', '.join(self._names)}") from None
        return tuple.__getitem__(self, key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._names, tuple(self))

    def dict(self) -> dict[str, Any]:
        """Return the row as a dict."""
        return dict(zip(self._names, self, strict=True))

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{n}={v!r}' for n, v in zip(self._names, self, strict=True))})"


def _rebuild(names: Sequence[str], values: tuple[Any, ...]) -> Row:
    """Make a row anew, in another process."""
    return row_class(names)(values)


def row_class(names: Sequence[str]) -> type[Row]:
    """Return the class of rows with these columns. Of columns with the same name the first is found by it."""
    return _row_class(tuple(names))


@lru_cache(maxsize=512)
def _row_class(names: tuple[str, ...]) -> type[Row]:
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        index.setdefault(fold(name), position)
    return type("Row", (Row,), {"__slots__": (), "_names": names, "_index": index})


class Result:
    """The outcome of one statement: an iterator over its rows, and counts.

    A small answer is in memory already; a large one is read from the shards as it is iterated and holds a connection
    of each until it ends. ``close()``, the end of a ``with`` block or the last row gives them back. Belongs to one
    thread at a time.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_held",
        "_rows",
        "columns",
        "lastrowid",
        "max_rows",
        "rowcount",
        "rows_moved",
    )

    columns: tuple[str, ...]
    """The names of the columns; empty for a statement without rows."""
    rowcount: int
    """Rows changed by a writing statement, -1 for a query."""
    lastrowid: Any
    """The rowid of the last inserted row; None where none was, or where ON CONFLICT may have updated instead."""
    rows_moved: int
    """Rows that were brought together before the statement could run, 0 where it ran on the shards."""
    max_rows: int | None
    """The most rows that ``fetchall`` and the others that return all rows at once may return; None: any number."""

    def __init__(
        self,
        columns: Sequence[str] = (),
        rows: Iterator[tuple[Any, ...]] | None = None,
        *,
        rowcount: int = -1,
        lastrowid: Any = None,
        close: Callable[[], None] | None = None,
        abandon: Callable[[], None] | None = None,
        rows_moved: int = 0,
    ) -> None:
        self.columns = tuple(columns)
        self.rowcount = rowcount
        self.lastrowid = lastrowid
        self.rows_moved = rows_moved
        self.max_rows = None
        make = _row_class(self.columns)
        self._rows: Iterator[Row] = map(make, rows if rows is not None else ())
        self._held = None if close is None else _Held(close, abandon or close)
        self._closed = False

    @property
    def description(self) -> list[tuple[str, None, None, None, None, None, None]] | None:
        """The columns as PEP 249 wants them; None for a statement without rows."""
        return [(name, None, None, None, None, None, None) for name in self.columns] or None

    @property
    def is_held(self) -> bool:
        """Whether it holds connections, or a temporary database."""
        return self._held is not None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        if self._closed:
            self._refuse()
        try:
            return next(self._rows)
        except StopIteration:
            self._give_back()
            raise
        except BaseException:
            self.close()
            raise

    def _refuse(self) -> NoReturn:
        raise InterfaceError("this Result is closed: execute the statement again")

    def fetchone(self) -> Row | None:
        """Return the next row, or None."""
        return next(self, None)

    def fetchmany(self, size: int = 1) -> list[Row]:
        """Return up to ``size`` further rows."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ProgrammingError(f"size must be an int of 0 or more, not {size!r}")
        rows: list[Row] = []
        while len(rows) < size and (row := self.fetchone()) is not None:
            rows.append(row)
        return rows

    def fetchall(self) -> list[Row]:
        """Return all rows that are left.

        Raises OperationalError, and closes the result, when they are more than the statement's ``max_rows``.
        """
        if self._closed:
            self._refuse()
        limit = self.max_rows
        try:
            rows = list(self._rows) if limit is None else list(islice(self._rows, limit + 1))
        except BaseException:
            self.close()
            raise
        if limit is not None and len(rows) > limit:
            self.close()
            raise OperationalError(
                f"result too large: it has more rows than max_rows={limit}: read it row by row, or with fetchmany"
            )
        self._give_back()
        return rows

    def dicts(self) -> list[dict[str, Any]]:
        """Return all rows that are left as dicts."""
        return [row.dict() for row in self.fetchall()]

    def scalar(self) -> Any:
        """Return the first column of the first row, None when there is no row; the rest is not read."""
        row = self.fetchone()
        self.close()
        return None if row is None else row[0]

    def to_pandas(self) -> Any:
        """Return the rows that are left as a pandas DataFrame (needs the extra ``pandas``)."""
        pandas = _optional("pandas")
        return pandas.DataFrame.from_records(list(map(tuple, self.fetchall())), columns=list(self.columns))

    def to_polars(self) -> Any:
        """Return the rows that are left as a polars DataFrame (needs the extra ``polars``)."""
        polars = _optional("polars")
        return polars.DataFrame(
            list(map(tuple, self.fetchall())), schema=list(self.columns), orient="row", infer_schema_length=None
        )

    def to_arrow(self) -> Any:
        """Return the rows that are left as a pyarrow Table (needs the extra ``arrow``)."""
        arrow = _optional("pyarrow", "arrow")
        rows = list(map(tuple, self.fetchall()))
        values = list(zip(*rows, strict=True)) if rows else [()] * len(self.columns)
        return arrow.table([arrow.array(column) for column in values], names=list(self.columns))

    def close(self) -> None:
        """Give back what the result holds. Idempotent."""
        self._closed = True
        self._give_back()

    def _give_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def small_result(columns: tuple[str, ...], make: type[Row], rows: list[tuple[Any, ...]]) -> Result:
    """Return the result of a query whose rows are there already; ``make`` is their class. Faster than ``Result()``."""
    result = _new(Result)
    result.columns = columns
    result.rowcount = -1
    result.lastrowid = result.max_rows = result._held = None
    result.rows_moved = 0
    result._rows = map(make, rows)
    result._closed = False
    return result


_new = Result.__new__


class _Held:
    """What a result holds: given back by ``close``, or when nobody refers to the result any more.

    By itself, so that the many results that hold nothing need no finaliser.
    """

    __slots__ = ("_abandon", "_close")

    def __init__(self, close: Callable[[], None], abandon: Callable[[], None]) -> None:
        self._close: Callable[[], None] | None = close
        self._abandon = abandon

    def close(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            close()

    def __del__(self) -> None:
        if self._close is not None:
            self._close = None
            self._abandon()


def _optional(module: str, extra: str | None = None) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ProgrammingError(f"this needs {module}: pip install 'shardlite[{extra or module}]'") from error
