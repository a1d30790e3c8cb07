"""The catalog's SQLite file: its schema, its connections, and each row read or written there.

Nothing is decided here. Readers never wait for a writer: they use a connection of their own.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from shardlite.connection import Connection, ConnectionPool
from shardlite.connection.busy import begin_immediate
from shardlite.driver import sqlite3
from shardlite.errors import InternalError, ProgrammingError, ShardUnavailableError, reraise
from shardlite.names import fold
from shardlite.router.keys import Affinity
from shardlite.router.layout import Layout
from shardlite.router.strategies import describe_strategy
from shardlite.router.table import Column, ConstraintMode, ForeignKey, Table, TableKind, UniqueConstraint

FORMAT_VERSION: Final = 1
APPLICATION_ID: Final = 0x53484C43  # "SHLC"

_LEAST_BYTES: Final = 512
"""SQLite's smallest page; it takes a shorter file for a new one, and would write to it."""
_SCHEMA: Final = (
    "CREATE TABLE setting(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE logical_table(name TEXT PRIMARY KEY, position INTEGER, definition TEXT) WITHOUT ROWID",
    "CREATE TABLE schema_object(position INTEGER PRIMARY KEY, type TEXT, name TEXT, tbl_name TEXT, sql TEXT)",
    "CREATE TABLE sequence(name TEXT PRIMARY KEY, next_id INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE job(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, state TEXT NOT NULL, payload TEXT)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """One object of the logical schema, as ``sqlite_schema`` lists it."""

    type: str
    name: str
    tbl_name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Job:
    """Work that outlives a process: what it is, how far it is, and what it needs to go on (JSON)."""

    id: int
    kind: str
    state: str
    payload: Mapping[str, Any]


class CatalogFile:
    """A small pool of connections to one ``catalog.db``. Safe for threads and forks; readers never wait for a writer.

    SQLite's errors come out as shardlite's, with the path.
    """

    def __init__(self, path: str | Path, *, create: bool = False, timeout_s: float = 30.0) -> None:
        self.path = Path(path)
        if not create and not self.path.exists():
            raise ShardUnavailableError(
                f"there is no catalog {self.path}: not a directory of shards, or the file was moved away"
            )
        if not create and 0 < self.path.stat().st_size < _LEAST_BYTES:
            raise InternalError(f"{self.path} is truncated: restore it from a backup")
        self.timeout_s = timeout_s
        self._pool = ConnectionPool(
            self.path,
            max_connections=8,
            timeout=timeout_s,
            durability="full",
            isolation_level=None,
            create=create,
            name=f"the catalog {self.path}",
        )

    def read(self, *statements: str, parameters: Sequence[Any] = ()) -> list[list[tuple[Any, ...]]]:
        """Run SELECT statements in one read transaction; return the rows of each."""
        with self._errors(), self._connection(self.timeout_s) as connection:
            connection.run("BEGIN")
            try:
                return [connection.fetch_all(sql, parameters) for sql in statements]
            finally:
                connection.run("ROLLBACK")

    @contextlib.contextmanager
    def write(self, timeout_s: float | None = None) -> Iterator[Connection]:
        """Hold the write transaction: commits at the end of the block, rolls back on an exception.

        Raises OperationalError when it is not to be had within the timeout, ProgrammingError when this thread is
        inside one already.
        """
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + patience_s
        gate = self._pool.gate
        if gate.owner == threading.get_ident():
            raise ProgrammingError(f"this thread is already changing the catalog {self.path}: end that change first")
        with self._errors(), gate.held(patience_s):
            with self._connection(max(0.0, deadline - time.monotonic())) as connection:
                begin_immediate(connection, deadline)
                try:
                    yield connection
                    connection.run("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.run("ROLLBACK")
                    raise

    @property
    def pool(self) -> ConnectionPool:
        """The pool, for figures and reports."""
        return self._pool

    def close(self) -> None:
        """Close all connections; harmless when repeated."""
        self._pool.close_all()

    @contextlib.contextmanager
    def _connection(self, timeout_s: float) -> Iterator[Connection]:
        connection = self._pool.acquire(timeout_s)
        try:
            yield connection
        finally:
            self._pool.release(connection)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reraise(error, str(self.path))


def scalar(connection: Connection, sql: str) -> Any:
    """Return the first value of a query, None when there is no row."""
    row = connection.fetch_row(sql)
    return None if row is None else row[0]


def is_initialised(connection: Connection) -> bool:
    """Tell whether the open file holds a catalog; raise InternalError when it is some other database."""
    application = scalar(connection, "PRAGMA application_id")
    if application == APPLICATION_ID:
        return True
    if scalar(connection, "SELECT count(*) FROM sqlite_schema"):
        raise InternalError(f"not a catalog of shardlite: application_id is {application}, not {APPLICATION_ID}")
    return False


def initialise(connection: Connection, layout: Layout) -> None:
    """Make the tables of an empty catalog and store the layout, inside the caller's transaction."""
    for statement in _SCHEMA:
        connection.run(statement)
    connection.run("INSERT INTO setting VALUES ('database_id', ?)", (layout.database_id,))
    connection.run("INSERT INTO setting VALUES ('encoding', ?)", (layout.encoding,))
    store_layout(connection, layout)


def store_layout(connection: Connection, layout: Layout) -> None:
    """Write what can change of a layout, its epoch included."""
    settings = {
        "num_shards": layout.num_shards,
        "slots": layout.slots,
        "strategy": json.dumps(describe_strategy(layout.strategy)),
        "slot_map": json.dumps(_runs(layout.slot_map)),
        "epoch": layout.epoch,
    }
    connection.run_many("INSERT OR REPLACE INTO setting VALUES (?, ?)", settings.items())


def _runs(slot_map: Sequence[int]) -> list[list[int]]:
    """Return a slot map as [shard, length] runs."""
    runs: list[list[int]] = []
    for shard in slot_map:
        if runs and runs[-1][0] == shard:
            runs[-1][1] += 1
        else:
            runs.append([shard, 1])
    return runs


def slot_map_of(text: str) -> tuple[int, ...]:
    """Return the slot map stored as ``text``."""
    return tuple(shard for shard, length in json.loads(text) for _ in range(length))


def table_to_json(table: Table) -> str:
    """Return a table as JSON text."""
    return json.dumps(asdict(table), ensure_ascii=False)


def table_from_json(text: str) -> Table:
    """Return the table that ``table_to_json`` wrote; fields that later versions added are ignored."""
    stored = json.loads(text)
    known = {name: stored[name] for name in Table.__dataclass_fields__ if name in stored}
    known["kind"] = TableKind(known["kind"])
    known["constraints"] = ConstraintMode(known["constraints"])
    known["columns"] = tuple(
        Column(**(column | {"affinity": Affinity(column["affinity"])})) for column in known["columns"]
    )
    known["unique"] = tuple(
        UniqueConstraint(
            **(item | {"columns": tuple(item["columns"]), "collations": tuple(item.get("collations", ()))})
        )
        for item in known["unique"]
    )
    known["foreign_keys"] = tuple(_foreign_key(item) for item in known["foreign_keys"])
    for name in ("key_columns", "unenforced"):
        known[name] = tuple(known[name])
    return Table(**known)


def _foreign_key(item: Mapping[str, Any]) -> ForeignKey:
    lists = {name: tuple(item[name]) for name in ("columns", "parent_columns")}
    return ForeignKey(**{**item, **lists})


def put_table(connection: Connection, table: Table) -> None:
    """Store a table, new or changed; its place among the tables stays."""
    connection.run(
        "INSERT INTO logical_table VALUES (?1, (SELECT ifnull(max(position), 0) + 1 FROM logical_table), ?2) "
        "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition",
        (fold(table.name), table_to_json(table)),
    )


def jobs_of(rows: Sequence[tuple[Any, ...]]) -> tuple[Job, ...]:
    """Return jobs from rows of (id, kind, state, payload)."""
    return tuple(Job(number, kind, state, json.loads(payload)) for number, kind, state, payload in rows)
