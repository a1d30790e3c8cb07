"""What every operation stands on: the open catalog, the shards, the epoch, ids, locks.

Invariants
----------
* A statement is routed by one ``State`` (one epoch). A write is guarded by the epoch that its shard holds, in the same
  transaction; a read is repeated when the epoch moved meanwhile.
* Locks are taken in one order: gates and write locks of shards ascending, then the catalog's. Ids are drawn before the
  first shard lock, or under all of them.
* No shard file is opened before it is needed; opening the directory only looks whether they are there.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from shardlite.config import DEFAULT_SHARDS, ShardliteConfig
from shardlite.connection import ConnectionPool
from shardlite.connection.budget import ConnectionBudget
from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.errors import (
    LayoutMismatchError,
    OperationalError,
    ProgrammingError,
    ShardUnavailableError,
)
from shardlite.execute.attached import AttachedFiles
from shardlite.execute.files import (
    CATALOG_NAME,
    META_TABLE,
    create_shard_file,
    missing_shards,
    orphaned_shards,
    shard_path,
    sync_directory,
    truncated_shards,
    verifier,
)
from shardlite.execute.placement import sees_parent, shard_text
from shardlite.execute.planning import PlanningConnection
from shardlite.execute.registry import Registration, Registry
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError, WriteScope, require_new_ids, write_scope
from shardlite.names import fold, quote
from shardlite.router.catalog import CREATE_JOB, Catalog
from shardlite.router.fence import Fence
from shardlite.router.keys import MAX_INTEGER
from shardlite.router.layout import Layout
from shardlite.router.sequences import Sequence as IdSequence
from shardlite.router.sequences import ids_of
from shardlite.router.strategies import ShardingStrategy
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.copies import unsteady_triggers
from shardlite.sql.ddl import without_foreign_keys

T = TypeVar("T")
_inherited: list[PlanningConnection] = []
"""Planning connections of parent processes: never used, closed or finalised here, a thread may have been inside."""
_EPOCH_PAUSE_S = 0.002
_RECOVER_AFTER_S = 0.25


class DatabaseCore(ABC):
    """The open catalog, the shards, and what is derived from them. Thread-safe; ``close()`` releases every file."""

    def __init__(self, config: ShardliteConfig, *, encoding: str = "UTF-8") -> None:
        self.config = config
        self.directory = os.path.abspath(config.db_dir)
        self.timeout_s = float(config.connection_timeout)
        self._closed = False
        self._lock = threading.Lock()
        self._sequences: dict[str, IdSequence] = {}
        self._planning: PlanningConnection | None = None
        self._planning_state: State | None = None
        self.registry = Registry()
        self.abandoned: deque[Callable[[], None]] = deque()
        """What results that were dropped unread hold, where their finaliser could not give it back."""
        self.catalog = self._open_catalog(encoding)
        try:
            self.layout = self.catalog.layout
            self._require_layout()
            self._complete_files()
            self._words = self.catalog.fence.words
            self.attached = AttachedFiles(self.layout.encoding, self.timeout_s)
            self.budget = ConnectionBudget(config.max_open_connections)
            self.shards: list[SqliteShard] = [self._open_shard(shard) for shard in self.layout.shard_ids]
        except BaseException:
            self.catalog.close()
            raise
        self._state = self._load_state()

    # -- opening -------------------------------------------------------------------------------------------------

    def _open_catalog(self, encoding: str) -> Catalog:
        path = Path(self.directory) / CATALOG_NAME
        strategy = self.config.strategy
        if strategy is not None and not isinstance(strategy, ShardingStrategy):
            raise ProgrammingError(f"strategy must be a ShardingStrategy, not {strategy!r}")
        try:
            there = Catalog.exists(path)
        except OSError as error:
            raise ShardUnavailableError(f"can't look into {self.directory}: {error.strerror or error}") from error
        if there:
            return Catalog.open(path, strategy=strategy, timeout_s=self.timeout_s)
        if not self.config.create:
            raise ShardUnavailableError(f"{self.directory} holds no shardlite database ({CATALOG_NAME} is missing)")
        self._require_no_orphans(path)
        num_shards = self.config.num_shards or _shards_of(strategy) or DEFAULT_SHARDS

        def make_layout() -> Layout:
            return Layout.create(num_shards, strategy, encoding=encoding)

        make_layout()  # a layout that can't be must not leave an empty directory or catalog behind
        try:
            os.makedirs(self.directory, exist_ok=True)
        except OSError as error:
            raise OperationalError(f"can't create the directory {self.directory}: {error.strerror or error}") from error
        return Catalog.open_or_create(path, make_layout, strategy=strategy, timeout_s=self.timeout_s)

    def _require_no_orphans(self, path: Path) -> None:
        if os.path.exists(self.directory) and not os.path.isdir(self.directory):
            raise ShardUnavailableError(f"{self.directory} is a file: db_dir is the directory that holds the shards")
        orphans = orphaned_shards(self.directory)
        if orphans:
            raise ShardUnavailableError(
                f"{path} is missing, but {orphans[0]} is there: restore the catalog, or move the shards away to begin "
                "a new database"
            )

    def _require_layout(self) -> None:
        wanted = self.config.num_shards
        if wanted is not None and wanted != self.layout.num_shards:
            raise LayoutMismatchError(
                f"{self.directory} has {self.layout.num_shards} shards, but num_shards={wanted} was asked for: leave "
                "num_shards out, it is stored with the data"
            )

    def _complete_files(self) -> None:
        """Create the shard files of a new database; find out which are missing of an old one."""
        if self.catalog.jobs(CREATE_JOB):
            for shard in missing_shards(self.directory, self.layout):
                create_shard_file(self.directory, self.layout, shard)
            sync_directory(self.directory)
            for job in self.catalog.jobs(CREATE_JOB):
                self.catalog.delete_job(job.id)
            return
        missing = missing_shards(self.directory, self.layout)
        if missing:
            raise ShardUnavailableError(
                f"{shard_path(self.directory, missing[0])} is missing ({len(missing)} of {self.layout.num_shards} "
                "shards): put the file back or restore it from a backup"
            )
        truncated = truncated_shards(self.directory, self.layout)
        if truncated:
            raise ShardUnavailableError(f"{truncated[0]} is truncated: restore it from a backup")

    def _open_shard(self, shard: int) -> SqliteShard:
        path = shard_path(self.directory, shard)
        check = verifier(path, self.layout, shard)

        def verify(conn: Connection) -> None:
            self.registry.apply(conn)
            check(conn)
            self._raise_ids_word(conn)

        pool = ConnectionPool(
            path,
            self.config.max_connections_per_shard,
            timeout=self.timeout_s,
            durability=self.config.durability,
            isolation_level=None,
            create=False,
            encoding=self.layout.encoding,
            trusted_schema=True,  # the schema is the user's own; triggers that feed an FTS5 table need it
            verify=verify,
            budget=self.budget,
            name=f"shard {shard} ({path})",
        )
        return SqliteShard(shard, pool, self.timeout_s)

    def _raise_ids_word(self, conn: Connection) -> None:
        """Put the fence's hint right where its file was lost: the shard is the truth."""
        row = conn.fetch_row(f"SELECT ids FROM {META_TABLE}")
        if row is not None and row[0] > self._words[Fence.SEQUENCE_EPOCH]:
            self._words[Fence.SEQUENCE_EPOCH] = row[0]

    # -- the epoch -----------------------------------------------------------------------------------------------

    def current(self) -> State:
        """Return the newest known state; a look at one word when nothing changed. Raises when closed."""
        state = self._state
        try:
            if self._words[Fence.EPOCH] == state.epoch:
                return state
        except ValueError:
            self._refuse()
        return self._reload()

    def is_current(self, state: State) -> bool:
        """Tell whether no change was announced since ``state`` was taken."""
        try:
            return self._words[Fence.EPOCH] == state.epoch or self._reload().epoch == state.epoch
        except ValueError:
            self._refuse()

    def is_stale(self, state: State, shard: int | None = None) -> bool:
        """Tell, after a guarded write changed nothing, whether that was the epoch's doing; wait for the newer one.

        ``shard``: where the write ran; all are asked unless given.
        """
        if not self.is_current(state):
            return True
        return self._wait_for_shards(state, shard)

    def require_current(self, state: State, shard: int | None = None) -> None:
        """Raise StaleEpochError when a guarded write changed nothing because of the epoch."""
        if self.is_stale(state, shard):
            raise StaleEpochError

    def _wait_for_shards(self, state: State, shard: int | None = None) -> bool:
        """A schema change commits on the shards first and then in the catalog: wait for it, or end it."""
        asked = self.shards if shard is None else [self.shards[shard]]
        rows = (one.fetch_row(f"SELECT epoch FROM {META_TABLE}", ()) for one in asked)
        if all(row is None or row[0] <= state.epoch for row in rows):
            return False
        started = time.monotonic()
        while self._reload(surely=True).epoch == state.epoch:
            waited = time.monotonic() - started
            if waited > self.timeout_s:
                raise OperationalError(
                    f"{self.directory}: a schema change by another process has not ended after {waited:.1f} s"
                )
            if waited > _RECOVER_AFTER_S:
                self.recover()
            time.sleep(_EPOCH_PAUSE_S)
        return True

    def with_current(self, call: Callable[[], T]) -> T:
        """Call until it isn't stopped by a change of the epoch."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return call()
            except StaleEpochError:
                if time.monotonic() > deadline:
                    raise OperationalError(f"{self.directory}: the schema kept changing: try again") from None
                self._wait_for_shards(self._reload())

    def _reload(self, *, surely: bool = False) -> State:
        """Take the catalog's newest snapshot; ``surely``: even if the fence, whose file may be lost, tells of none."""
        with self._lock:
            self._require_open()
            self.catalog.reload_if_changed(surely=surely)
            if self.catalog.epoch != self._state.epoch:
                self._state = self._load_state()
            return self._state

    def forget_state(self) -> None:
        """Take the catalog's newest snapshot after a change of our own."""
        with self._lock:
            self._state = self._load_state()

    def _load_state(self) -> State:
        snapshot = self.catalog.state
        self.layout = snapshot.layout
        deferred = tuple(
            item.name
            for item in snapshot.schema
            if item.type == "table" and "deferr" in fold(item.sql) and "references" in fold(item.sql)
        )
        registered = self.registry.current
        unsteady = unsteady_triggers(snapshot.schema, snapshot.tables, registered.functions)
        attached = self.attached.current
        return State(snapshot.layout.epoch, snapshot.layout, snapshot.tables, deferred, registered, unsteady, attached)

    # -- functions and collations ----------------------------------------------------------------------------------

    def register(self, entry: Registration) -> None:
        """Register a function or collation on every connection, or take one back. Raises what ``check`` raises.

        A statement that begins afterwards sees it; one that runs meanwhile may see it on some shards.
        """
        entry.check()
        with self._lock:
            self._require_open()
            self.registry.put(entry)
            for shard in self.shards:
                shard.pool.renew()
            self._state = self._load_state()  # what was planned before is forgotten with the old one
        self.resume()

    # -- tables, ids, planning -------------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """Return a table; raises ProgrammingError when there is none of that name."""
        return self.current().table(name)

    def sequence(self, table: Table) -> IdSequence:
        """Return the id sequence of a table."""
        try:
            return self._sequences[table.name]
        except KeyError:
            with self._lock:
                made = IdSequence(self.catalog, fold(table.name), lambda: self._recount_ids(table))
                return self._sequences.setdefault(table.name, made)

    def _recount_ids(self, table: Table) -> bool:
        """Set the table's sequence behind the greatest id of its rows; False when that leaves none."""
        rowid = table.rowid_name
        own = threading.get_ident()
        if rowid is None or any(shard.pool.gate.owner == own for shard in self.shards):
            return False  # this thread is in a transaction already, and can't take all shards' locks
        with self.write_scope(self.layout.shard_ids) as scope:
            sql = f"SELECT max({quote(rowid) if table.rowid_alias else rowid}) FROM {quote(table.name)}"
            tops = [scope.fetch_all(shard, sql)[0][0] for shard in self.layout.shard_ids]
            highest = max((int(str(top)) for top in tops if top is not None), default=0)
            if highest >= MAX_INTEGER - 1:
                return False
            self.catalog.set_next(fold(table.name), max(highest, 0) + 1)
            self.stop_drawn_ids(scope)
        return True

    def take_ids(self, table: Table, count: int) -> Iterator[int]:
        """Draw ``count`` ids."""
        return ids_of(self.sequence(table).take(count))

    def note_ids(self, table: Table, ids: Sequence[Any]) -> bool:
        """Tell the table's sequence of explicit ids; True when one may be drawn already by somebody else."""
        return bool(ids) and self.sequence(table).note_explicit_many(min(ids), max(ids), len(ids))

    def require_new_ids(self, scope: WriteScope, table: Table, ids: Sequence[Any], drawn: bool) -> None:
        """Raise IntegrityError when an id is on any shard; all shards are locked.

        ``drawn``: somebody may have drawn one of them and not used it yet, so make every process draw new ids.
        """
        require_new_ids(scope, self.layout.shard_ids, table, ids)
        if drawn:
            self.stop_drawn_ids(scope)

    def stop_drawn_ids(self, scope: WriteScope) -> None:
        """Make every process draw new ids. All shards are locked."""
        word = self.catalog.fence.bump_sequence_epoch()
        for shard in self.layout.shard_ids:
            scope.run(shard, f"UPDATE {META_TABLE} SET ids = max(ids, ?)", (word,))

    def planning(self) -> PlanningConnection:
        """Return the planning connection with the newest schema."""
        state = self.current()
        with self._lock:
            self._require_open()
            if self._planning is None:
                self._planning = PlanningConnection(self.schema_texts(state), self.layout.encoding, state.registered)
            elif self._planning_state is not state:
                self._planning.rebuild(self.schema_texts(state), state.registered)
            self._planning_state = state
            return self._planning

    def schema_texts(self, state: State) -> list[str]:
        """Return the schema's texts as the shards have them: without the foreign keys that no shard enforces."""
        texts = []
        for item in self.catalog.schema:
            table = state.tables.get(fold(item.name)) if item.type == "table" else None
            unseen = [] if table is None else [k for k in table.foreign_keys if not sees_parent(table, k, state.tables)]
            texts.append(without_foreign_keys(item.sql, unseen))
        return texts

    def shard_texts(self, state: State) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """Return the texts of tables and of indexes as the shards have them, by the table's folded name."""
        tables: dict[str, str] = {}
        indexes: dict[str, tuple[str, ...]] = {}
        for item in self.catalog.schema:
            if item.type not in ("table", "index"):
                continue
            name = fold(item.tbl_name)
            text = shard_text(item.type, item.name, item.sql, state.tables.get(name), state.tables)
            if item.type == "table":
                tables[name] = text
            else:
                indexes[name] = (*indexes.get(name, ()), text)
        return tables, indexes

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write_scope(
        self,
        shard_ids: Sequence[int],
        state: State | None = None,
        *,
        check_epoch: bool = True,
        timeout_s: float | None = None,
        images: bool = False,
    ) -> Iterator[WriteScope]:
        """Hold the write locks of these shards and commit them together. See ``writes.py``.

        ``state`` is the one that the work was routed by: StaleEpochError is raised when the shards have another epoch.
        ``images``: rows are written as they have to be in the end, foreign keys being seen to already.
        """
        state = state or self.current()

        def current(conn: Connection) -> bool:
            row = conn.fetch_row(f"SELECT epoch FROM {META_TABLE}")
            return row is not None and row[0] == state.epoch

        with write_scope(
            [self.shards[shard] for shard in shard_ids],
            self.budget,
            self.timeout_s if timeout_s is None else timeout_s,
            current if check_epoch else None,
            () if images else state.deferred,
            foreign_keys=not images,
        ) as scope:
            yield scope

    @abstractmethod
    def recover(self) -> None:
        """End what a process that died has begun."""

    @abstractmethod
    def resume(self) -> None:
        """Try again to end what a process that died has begun, where that lacked a registered function."""

    # -- closing ---------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def _require_open(self) -> None:
        if self._closed:
            raise ProgrammingError(f"the database {self.directory} is closed: open a new ShardManager")

    def _refuse(self) -> NoReturn:
        raise ProgrammingError(f"the database {self.directory} is closed: open a new ShardManager") from None

    def reset_after_fork(self) -> None:
        """Begin anew, in a forked child, what a thread that is not there may have been in the middle of."""
        self._lock = threading.Lock()
        self.registry.reset_after_fork()
        self.catalog.reset_after_fork()
        if self._state.registered is not self.registry.current:  # a registration was under way
            self._state = self._load_state()
        if self._planning is not None:
            _inherited.append(self._planning)
            self._planning = None

    def close_abandoned(self) -> None:
        """Give back what results that were dropped unread hold."""
        while self.abandoned:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.abandoned.popleft()()

    def look_at_files(self) -> list[str | None]:
        """Look at every shard file through a connection; for each what is wrong with it, or None."""
        self._require_open()
        found: list[str | None] = []
        for shard in self.shards:
            try:
                shard.fetch_row("SELECT count(*) FROM sqlite_schema", ())
                missing = not os.path.exists(shard.name)
                found.append(f"{shard.name} is missing" if missing else None)
            except sqlite3.Error as error:
                found.append(str(error))
        return found

    def close(self, timeout_s: float | None = None) -> None:
        """Close every file. Idempotent; connections that are in use are ended, within ``timeout_s`` each."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.close_abandoned()
        for sequence in self._sequences.values():
            try:
                sequence.release()
            except sqlite3.Error:
                continue  # the unused ids are lost, which only makes a gap
        for shard in self.shards:
            shard.close(timeout_s)
        if self._planning is not None:
            self._planning.close()
        self._words.release()
        self.catalog.close()


def _shards_of(strategy: ShardingStrategy | None) -> int | None:
    """Return the number of shards that a strategy asks for by itself, when it does."""
    boundaries = getattr(strategy, "boundaries", None)
    return len(boundaries) + 1 if boundaries is not None else None
