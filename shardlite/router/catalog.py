"""The catalog: layout, tables and schema, sequences and jobs of one database.

What is read here is a snapshot in memory; ``reload_if_changed`` compares one fence word with it and reads the file
again when another process changed it. A change is one transaction: it raises the epoch by one and announces it in the
fence.

The fence word is only a hint, so a change announces its epoch *before* it commits: a process killed between the two
leaves readers that look once too often, never readers that miss a change. Where the word is ahead of the
file for good, whoever next gets the file's write lock without waiting puts it right.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from shardlite.connection import Connection
from shardlite.errors import InternalError, NotSupportedError, OperationalError, ProgrammingError
from shardlite.names import fold
from shardlite.router import catalog_file
from shardlite.router.catalog_file import FORMAT_VERSION, CatalogFile, Job, SchemaObject
from shardlite.router.fence import Fence
from shardlite.router.keys import MAX_INTEGER
from shardlite.router.layout import Layout
from shardlite.router.strategies import ShardingStrategy, describe_strategy, resolve_strategy
from shardlite.router.table import Table

FILE_NAME: Final = "catalog.db"
CREATE_JOB: Final = "create"
"""The job of a new catalog: its shard files are still to be made."""


@dataclass(frozen=True, slots=True)
class CatalogState:
    """Everything of the catalog that a statement may need: one consistent, immutable snapshot."""

    layout: Layout
    tables: Mapping[str, Table]
    """By folded name, in the order of their creation."""
    schema: tuple[SchemaObject, ...]


class Catalog:
    """The open catalog of one directory. Safe for threads; readers never wait for a change.

    Use ``create``, ``open`` or ``open_or_create``. ``close()`` leaves no descriptor and, when no other process has the
    directory open, no ``-wal`` and ``-shm``.
    """

    def __init__(self, file: CatalogFile, strategy: ShardingStrategy | None, created: bool) -> None:
        self._file = file
        self._given_strategy = strategy
        self._load_lock = threading.Lock()
        self.created = created
        self.path = file.path
        self._state = self._load_state(None)
        self.fence = Fence.open(file.path.parent, self._state.layout.num_shards)
        self._seen_epoch = self._state.layout.epoch
        self._reconcile(wait=True)

    # ---- opening and closing

    @classmethod
    def create(cls, path: str | Path, *, layout: Layout, timeout_s: float = 30.0) -> Self:
        """Create ``path`` (a ``catalog.db``) and open it. Raises ProgrammingError when it holds a catalog already."""
        made = cls.open_or_create(path, lambda: layout, timeout_s=timeout_s, strategy=layout.strategy)
        if not made.created:
            made.close()
            raise ProgrammingError(f"{path} exists already: open the database instead of creating it")
        return made

    @classmethod
    def open(cls, path: str | Path, *, strategy: ShardingStrategy | None = None, timeout_s: float = 30.0) -> Self:
        """Open an existing catalog.

        ``strategy`` is needed only where a user-written one is stored; another one than the stored is a
        LayoutMismatchError. Raises ShardUnavailableError when the file is missing, DatabaseError when it is not a
        SQLite file, InternalError when it is another database, NotSupportedError for a newer format.
        """
        file = CatalogFile(path, timeout_s=timeout_s)
        with _closing_on_error(file):
            return cls(file, strategy, created=False)

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        make_layout: Callable[[], Layout],
        *,
        strategy: ShardingStrategy | None = None,
        timeout_s: float = 30.0,
    ) -> Self:
        """Open the catalog; create it with ``make_layout()`` when the file is missing or was never completed.

        Of several processes that create it at once one does, and the others open. ``created`` tells which.
        """
        file = CatalogFile(path, create=True, timeout_s=timeout_s)
        with _closing_on_error(file):
            with file.write() as connection:
                created = not catalog_file.is_initialised(connection)
                if created:
                    catalog_file.initialise(connection, make_layout())
                    _add_job(connection, CREATE_JOB, {}, "pending")
            return cls(file, strategy, created)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Tell whether there is a catalog file, complete or not."""
        try:
            return Path(path).stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        """Close the file and the fence; harmless when repeated."""
        self._file.close()
        self.fence.close()

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the lock of a thread that is not there."""
        self._load_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"Catalog({str(self.path)!r}, shards={layout.num_shards}, epoch={layout.epoch}, tables={len(self.tables)})"
        )

    # ---- reading

    @property
    def state(self) -> CatalogState:
        """The snapshot that everything below reads from; take it once where several facts must agree."""
        return self._state

    @property
    def layout(self) -> Layout:
        """The layout, its epoch included."""
        return self._state.layout

    @property
    def epoch(self) -> int:
        """The epoch of the snapshot."""
        return self._state.layout.epoch

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables by folded name, in the order of their creation."""
        return self._state.tables

    @property
    def schema(self) -> tuple[SchemaObject, ...]:
        """All schema objects in the order of their creation."""
        return self._state.schema

    def table(self, name: str) -> Table:
        """Return a table by name, after a look for changes if need be. Raises ProgrammingError when there is none."""
        found = self._state.tables.get(fold(name))
        if found is None:
            self.reload_if_changed()
            found = self._state.tables.get(fold(name))
        if found is None:
            raise ProgrammingError(f"no such table: {name}")
        return found

    def is_current(self) -> bool:
        """Tell whether no change was announced since the snapshot was read; costs one fence word."""
        return self.fence.epoch == self._seen_epoch

    def reload_if_changed(self, *, surely: bool = False) -> bool:
        """Read the catalog again if the fence tells of a change; return whether the snapshot is another one now.

        ``surely``: read it whatever the fence tells, for somebody who knows otherwise that there is a change.
        """
        if self.fence.epoch == self._seen_epoch and not surely:
            return False
        before = self._state
        with self._load_lock:
            if self.fence.epoch == self._seen_epoch and not surely:
                return self._state is not before
            announced = self.fence.epoch
            self._take(self._load_state(before))
            if announced > self._seen_epoch:
                self._reconcile(wait=False)
        return self._state is not before

    def _take(self, state: CatalogState) -> None:
        if state.layout.epoch > self._state.layout.epoch:
            self._state = state
            self._seen_epoch = state.layout.epoch

    def _load_state(self, before: CatalogState | None) -> CatalogState:
        (version,), *_ = self._file.read("PRAGMA user_version")[0]
        self._require_format(version)
        settings, tables, schema = self._file.read(
            "SELECT name, value FROM setting",
            "SELECT name, definition FROM logical_table ORDER BY position",
            "SELECT type, name, tbl_name, sql FROM schema_object ORDER BY position",
        )
        try:
            return CatalogState(
                layout=self._layout_of(dict(settings), before),
                tables=MappingProxyType({name: catalog_file.table_from_json(text) for name, text in tables}),
                schema=tuple(SchemaObject(*row) for row in schema),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise InternalError(
                f"{self.path} is damaged: {type(error).__name__} in what it stores ({error}); restore it from a backup"
            ) from error

    def _require_format(self, version: int) -> None:
        if version == 0:
            raise InternalError(
                f"{self.path} holds no complete catalog: it is another database, or its creation was cut off; "
                "create the database again"
            )
        if version > FORMAT_VERSION:
            raise NotSupportedError(
                f"{self.path} has format version {version}, this shardlite reads up to {FORMAT_VERSION}: use a newer "
                "shardlite"
            )

    def _layout_of(self, settings: Mapping[str, Any], before: CatalogState | None) -> Layout:
        stored = json.loads(settings["strategy"])
        if before is not None and describe_strategy(before.layout.strategy) == stored:
            strategy = before.layout.strategy
        else:
            strategy = resolve_strategy(stored["name"], stored["parameters"], self._given_strategy)
        return Layout(
            database_id=settings["database_id"],
            num_shards=settings["num_shards"],
            slots=settings["slots"],
            strategy=strategy.bound(settings["num_shards"]),
            slot_map=catalog_file.slot_map_of(settings["slot_map"]),
            epoch=settings["epoch"],
            encoding=settings["encoding"],
        )

    def _reconcile(self, *, wait: bool) -> None:
        """Put the fence's epoch right, under the write lock; without ``wait`` only if nobody holds that."""
        if self.fence.epoch == self._seen_epoch:
            return
        with contextlib.suppress(OperationalError):
            with self._file.write(timeout_s=None if wait else 0.0) as connection:
                epoch = catalog_file.scalar(connection, "SELECT value FROM setting WHERE name = 'epoch'")
                self.fence.epoch = epoch

    # ---- changing

    @contextlib.contextmanager
    def change(self) -> Iterator[CatalogChange]:
        """Change tables, schema, layout or jobs in one transaction; the epoch is raised by one.

        Commits at the end of the block and rolls back on an exception. Other changes, of threads and processes, wait;
        readers don't. Don't draw ids inside the block. Raises OperationalError when the lock is not to be had in time.
        """
        with self._newest_for_change() as connection:
            base = self._state
            change = CatalogChange(connection, base)
            yield change
            epoch = base.layout.epoch + 1
            change.finish(epoch)
            self.fence.epoch = epoch
            if change.ids_forgotten:
                self.fence.bump_sequence_epoch()
            done = change.result(epoch)
        with self._load_lock:
            self._take(done)

    @contextlib.contextmanager
    def _newest_for_change(self) -> Iterator[Connection]:
        """Hold the write transaction with the newest snapshot loaded; after a failure the fence is as before."""
        with self._file.write() as connection:
            epoch = catalog_file.scalar(connection, "SELECT value FROM setting WHERE name = 'epoch'")
            if epoch != self._state.layout.epoch:
                with self._load_lock:
                    self._take(self._load_state(self._state))
            try:
                yield connection
            except BaseException:
                self.fence.epoch = epoch
                raise

    # ---- sequences

    def draw_block(self, sequence: str, size: int, at_least: int = 1) -> tuple[int, int]:
        """Take the next ``size`` ids of a sequence for good, none of them below ``at_least``; return first and last.

        Durable at return: no other caller, process or later run gets one of them. The block is shorter at the end of
        the 64-bit range. Raises OperationalError when no id is left.
        """
        with self._file.write() as connection:
            first = max(_next_id(connection, sequence), at_least)
            if first >= MAX_INTEGER:
                raise OperationalError(
                    f"database or disk is full: the ids of {sequence} are used up, the greatest possible was given; "
                    "give ids explicitly"
                )
            last = min(first + size - 1, MAX_INTEGER - 1)
            _store_next_id(connection, sequence, last + 1)
        return first, last

    def claim(self, sequence: str, number: int, size: int) -> tuple[int, int, int]:
        """Take one given id and a block of ``size`` above it; return the lowest id not drawn before, and the block.

        Ids below the lowest not drawn may be in the hands of another thread or process. The block is empty (its last
        below its first) where no id is left above ``number``.
        """
        with self._file.write() as connection:
            unused = _next_id(connection, sequence)
            first = min(max(unused, number + 1), MAX_INTEGER)
            last = min(first + size - 1, MAX_INTEGER - 1)
            _store_next_id(connection, sequence, last + 1)
        return unused, first, last

    def give_back(self, sequence: str, first: int, last: int) -> bool:
        """Return unused ids to a sequence; tell whether it took them, which it does only if they were its newest."""
        with self._file.write() as connection:
            cursor = connection.run(
                "UPDATE sequence SET next_id = ? WHERE name = ? AND next_id = ?", (first, sequence, last + 1)
            )
            return bool(cursor.rowcount)

    def set_next(self, sequence: str, next_id: int) -> None:
        """Set a sequence back (or on). The caller holds all shards' write locks; no row has a higher id."""
        with self._file.write() as connection:
            _store_next_id(connection, sequence, next_id)

    def bump(self, sequence: str, at_least: int) -> int:
        """See to it that no id below ``at_least`` is drawn any more; return the next id that will be drawn."""
        if (known := self.next_id(sequence)) >= at_least:
            return known
        with self._file.write() as connection:
            connection.run(
                "INSERT INTO sequence VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET next_id = "
                "max(next_id, excluded.next_id)",
                (sequence, min(at_least, MAX_INTEGER)),
            )
            return _next_id(connection, sequence)

    def next_id(self, sequence: str) -> int:
        """Return the lowest id that nobody has drawn yet."""
        rows = self._file.read("SELECT next_id FROM sequence WHERE name = ?", parameters=(sequence,))[0]
        return int(rows[0][0]) if rows else 1

    # ---- jobs

    def jobs(self, kind: str | None = None) -> tuple[Job, ...]:
        """Return the pending jobs, of one kind or all, oldest first."""
        rows = self._file.read("SELECT id, kind, state, payload FROM job ORDER BY id")[0]
        return tuple(job for job in catalog_file.jobs_of(rows) if kind is None or job.kind == kind)

    def add_job(self, kind: str, payload: Mapping[str, Any], state: str = "pending") -> int:
        """Record work that must be ended even if this process dies; return the job's number."""
        with self._file.write() as connection:
            return _add_job(connection, kind, payload, state)

    def update_job(self, job_id: int, *, state: str | None = None, payload: Mapping[str, Any] | None = None) -> None:
        """Record how far a job is. Raises ProgrammingError when there is no such job."""
        with self._file.write() as connection:
            _update_job(connection, job_id, state, payload)

    def delete_job(self, job_id: int) -> None:
        """Forget a job that is done."""
        with self._file.write() as connection:
            connection.run("DELETE FROM job WHERE id = ?", (job_id,))


class CatalogChange:
    """A change in the making; made by ``Catalog.change()``, for the thread that made it."""

    def __init__(self, connection: Connection, base: CatalogState) -> None:
        self._connection = connection
        self.layout = base.layout
        self.tables: dict[str, Table] = dict(base.tables)
        """The tables as they will be."""
        self.schema = base.schema
        """The schema objects as they will be."""
        self.ids_forgotten = False

    def put_table(self, table: Table) -> None:
        """Add a table, or replace the one of that name."""
        catalog_file.put_table(self._connection, table)
        self.tables[fold(table.name)] = table

    def drop_table(self, name: str) -> None:
        """Forget a table and its sequence. Raises ProgrammingError when there is none of that name."""
        folded = self._require(name)
        self._connection.run("DELETE FROM logical_table WHERE name = ?", (folded,))
        self._connection.run("DELETE FROM sequence WHERE name = ?", (folded,))
        self.ids_forgotten = True
        del self.tables[folded]

    def rename_table(self, name: str, table: Table) -> None:
        """Put ``table`` in the place of the table ``name``, which takes its sequence along."""
        old, new = self._require(name), fold(table.name)
        if new != old:
            if new in self.tables:
                raise ProgrammingError(f"there is already a table named {table.name}")
            for sql in (
                "UPDATE logical_table SET name = ? WHERE name = ?",
                "UPDATE sequence SET name = ? WHERE name = ?",
            ):
                self._connection.run(sql, (new, old))
            self.tables = {new if key == old else key: value for key, value in self.tables.items()}
            self.ids_forgotten = True
        self.put_table(table)

    def set_next(self, name: str, next_id: int) -> None:
        """Set the next id of a table that comes with rows."""
        _store_next_id(self._connection, fold(name), next_id)

    def set_schema(self, objects: Sequence[SchemaObject]) -> None:
        """Replace the whole list of schema objects, given in the order of their creation."""
        self._connection.run("DELETE FROM schema_object")
        self._connection.run_many(
            "INSERT INTO schema_object(type, name, tbl_name, sql) VALUES (?, ?, ?, ?)",
            [(item.type, item.name, item.tbl_name, item.sql) for item in objects],
        )
        self.schema = tuple(objects)

    def set_slot_map(self, slot_map: Sequence[int]) -> None:
        """Move slots to other shards."""
        self.layout = replace(self.layout, slot_map=tuple(slot_map))

    def add_job(self, kind: str, payload: Mapping[str, Any], state: str = "pending") -> int:
        """Record a job as part of the change; return its number."""
        return _add_job(self._connection, kind, payload, state)

    def update_job(self, job_id: int, *, state: str | None = None, payload: Mapping[str, Any] | None = None) -> None:
        """Record how far a job is, as part of the change."""
        _update_job(self._connection, job_id, state, payload)

    def delete_job(self, job_id: int) -> None:
        """Forget a job as part of the change."""
        self._connection.run("DELETE FROM job WHERE id = ?", (job_id,))

    def finish(self, epoch: int) -> None:
        """Write the layout under its new epoch."""
        catalog_file.store_layout(self._connection, self.layout.at_epoch(epoch))

    def result(self, epoch: int) -> CatalogState:
        """Return the snapshot that the change makes."""
        return CatalogState(self.layout.at_epoch(epoch), MappingProxyType(self.tables), self.schema)

    def _require(self, name: str) -> str:
        folded = fold(name)
        if folded not in self.tables:
            raise ProgrammingError(f"no such table: {name}")
        return folded


def _next_id(connection: Connection, sequence: str) -> int:
    row = connection.fetch_row("SELECT next_id FROM sequence WHERE name = ?", (sequence,))
    return int(row[0]) if row else 1


def _store_next_id(connection: Connection, sequence: str, next_id: int) -> None:
    connection.run("INSERT OR REPLACE INTO sequence VALUES (?, ?)", (sequence, next_id))


def _add_job(connection: Connection, kind: str, payload: Mapping[str, Any], state: str) -> int:
    cursor = connection.run(
        "INSERT INTO job(kind, state, payload) VALUES (?, ?, ?)", (kind, state, json.dumps(dict(payload)))
    )
    return int(cursor.lastrowid or 0)


def _update_job(connection: Connection, job_id: int, state: str | None, payload: Mapping[str, Any] | None) -> None:
    text = None if payload is None else json.dumps(dict(payload))
    cursor = connection.run(
        "UPDATE job SET state = ifnull(?, state), payload = ifnull(?, payload) WHERE id = ?", (state, text, job_id)
    )
    if cursor.rowcount != 1:
        raise ProgrammingError(f"there is no job {job_id} in the catalog")


@contextlib.contextmanager
def _closing_on_error(file: CatalogFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise
