"""Schema changes on all shards, all or nothing.

A change is tried on a scratch copy of the schema, then runs in one transaction over all shards while the catalog holds
it as a job. The job is synced before the first shard commits, so a process that dies between two COMMITs leaves enough
to end it: whoever opens the directory next (or waits for the new epoch) takes all shards' locks and

==============================  ===========================================================
no shard has the new epoch      forgets the job: nothing had been committed
some or all have it             runs the statements on the others, then changes the catalog
some, and rows came with it     takes it back on these: nobody has seen it yet
==============================  ===========================================================

Steps: all locks; job into the catalog (synced); statements and the new epoch on every shard; COMMIT of each; the
catalog's change, which deletes the job. Every step can be repeated.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import Error, NotSupportedError, OperationalError, ProgrammingError
from shardlite.execute.core import DatabaseCore
from shardlite.execute.deadline import Deadline
from shardlite.execute.files import META_TABLE
from shardlite.execute.kept_rows import kept_rows, require_room_for_ids
from shardlite.execute.placement import Placement, hinted
from shardlite.execute.planning import split_statements
from shardlite.execute.schema import SchemaChange, SchemaDraft, key_store_statements
from shardlite.execute.state import State
from shardlite.execute.writes import StaleEpochError, WriteScope
from shardlite.names import RESERVED_PREFIX, fold, quote
from shardlite.router.catalog import CatalogChange
from shardlite.router.catalog_file import SchemaObject, table_from_json, table_to_json
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.sql.hints import created_name, hint_of, refuse_stray, with_hint

JOB_KIND = "ddl"


class _DoneByAnotherError(Exception):
    """Another process has ended this job."""


class _LeftBehindError(Exception):
    """There is a job of a process that died before it committed anything."""


class SchemaChanger:
    """Schema changes of one database. Thread-safe: one at a time."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database
        self._lock = threading.Lock()

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the lock of a thread that is not there."""
        self._lock = threading.Lock()

    def create_table(
        self,
        ddl: str,
        *,
        shard_key: str | Sequence[str] | None = None,
        kind: str | None = None,
        colocate_with: str | None = None,
        constraints: str = "strict",
        reason: str = "",
    ) -> Table:
        """Create one table and return it, or the one that is there already (IF NOT EXISTS)."""
        placement = _placement(shard_key, kind, colocate_with, constraints, reason)
        statements = split_statements(ddl)
        if len(statements) != 1:
            raise ProgrammingError(f"create_table takes one CREATE TABLE, not {len(statements)} statements")
        refuse_stray([ddl], statements)
        with SchemaDraft((), {}, "UTF-8", self._db.registry.current) as alone:
            name = alone.table_created_by(statements[0])

        def attempt() -> Table:
            state = self._db.current()
            existing = state.tables.get(fold(name))
            if existing is not None:
                _require_same_placement(existing, hinted(name, placement, hint_of(ddl)))
            self._apply(state, statements, {} if existing is not None else {fold(name): placement})
            return self._db.table(name)

        with self._lock:
            return self._db.with_current(attempt)

    @contextlib.contextmanager
    def _alone(self, deadline: Deadline | None) -> Iterator[None]:
        """Wait until no other thread changes the schema."""
        waits = deadline is None or deadline.seconds is None
        if not self._lock.acquire(timeout=-1 if waits or deadline is None else deadline.wait_s):
            if deadline is not None:
                deadline.check()
            raise OperationalError(f"{self._db.directory}: another thread is changing the schema")
        try:
            yield
        finally:
            self._lock.release()

    def apply(
        self,
        sql: str | Sequence[str],
        placements: Mapping[str, Placement] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Run schema changes on every shard, all or none of them. ``placements`` is by folded table name."""
        texts = [sql] if isinstance(sql, str) else list(sql)
        statements = [statement for text in texts for statement in split_statements(text)]
        refuse_stray(texts, statements)
        with self._alone(deadline):
            self._db.with_current(lambda: self._apply(self._db.current(), statements, placements or {}, deadline))

    def create_table_as(
        self,
        sql: str,
        parameters: Any,
        read: Callable[[], Iterable[Sequence[Any]]],
        deadline: Deadline | None = None,
    ) -> None:
        """Create the table of a CREATE TABLE ... AS with its rows, in one transaction: all of it or nothing.

        Without a hint the table is single: its rows are on the home shard, which commits first, so that whatever a
        crash leaves for ``recover`` to end on the other shards, the rows are there. Where they are on several shards,
        recovery takes the table back unless all have committed. They are read, by ``read``, before any lock is taken,
        and kept in a file meanwhile: as if the statement had run right after the reading.

        :param parameters: NULL for each parameter of the statement.
        """
        refuse_stray([sql], [sql])
        hint = hint_of(sql)

        def attempt() -> None:
            state = self._db.current()
            registered = self._db.registry.current
            schema, encoding = self._db.catalog.schema, state.layout.encoding
            text = self._text_made_as(state, sql, parameters)
            if text is None:
                return
            with SchemaDraft(schema, state.tables, encoding, registered) as draft:
                draft.run(with_hint(text, hint) if hint is not None else text)
                change = draft.finish({})
            table = next(table for table in change.tables if fold(table.name) == created_name(sql))
            if table.kind is not TableKind.SINGLE:
                change = replace(change, undo=(f"DROP TABLE main.{quote(table.name)}",))
            if table.sharded:
                _require_routes(state, table)
                require_room_for_ids(table)
            with kept_rows(read()) as rows:

                def fill(scope: WriteScope) -> SchemaChange:
                    next_id = rows.insert(scope, table, state.layout)
                    return replace(change, next_ids={table.name: next_id}) if next_id else change

                self._run(state, change, fill, deadline)

        with self._alone(deadline):
            self._db.with_current(attempt)

    def _text_made_as(self, state: State, sql: str, parameters: Any) -> str | None:
        """Return the definition that SQLite gives a table of CREATE TABLE ... AS; attached files are looked at last."""
        schema, registered, encoding = self._db.catalog.schema, self._db.registry.current, state.layout.encoding
        try:
            with SchemaDraft(schema, state.tables, encoding, registered) as draft:
                return draft.table_made_as(sql, parameters)
        except OperationalError as error:
            if not state.attached or not str(error).startswith("no such"):
                raise
        beside = [(file.schema, file.read_schema(self._db.timeout_s, registered).texts) for file in state.attached]
        with SchemaDraft(schema, state.tables, encoding, registered) as draft:
            return draft.table_made_as(sql, parameters, beside)

    def set_header(self, sql: str, deadline: Deadline | None = None) -> None:
        """Run a PRAGMA that sets a number in the file's header, such as ``user_version``, on every shard or none."""

        def attempt() -> None:
            state = self._db.current()
            change = SchemaChange((sql,), tuple(state.tables.values()), {}, tuple(self._db.catalog.schema))
            self._run(state, change, None, deadline)

        with self._alone(deadline):
            self._db.with_current(attempt)

    def keep_explicit_keys(self, table: Table) -> Table:
        """Let a table without a key column remember the keys that are given with its rows."""
        with self._lock:
            return self._db.with_current(lambda: self._keep_explicit_keys(table.name))

    def _keep_explicit_keys(self, name: str) -> Table:
        state = self._db.current()
        table = state.table(name)
        if table.explicit_key:
            return table
        if table.virtual:
            raise ProgrammingError(f"{table.name} is a virtual table, beside whose rows no key is kept: leave key= out")
        if table.rowid_name is None:
            raise ProgrammingError(f"{table.name} has no rowid to remember a key beside: leave key= out")
        changed = Table(**{**_fields(table), "explicit_key": True})
        tables = tuple(changed if t.name == table.name else t for t in state.tables.values())
        schema = self._db.catalog.schema
        self._run(state, SchemaChange(tuple(key_store_statements(changed)), tables, {}, tuple(schema)))
        return changed

    def _apply(
        self,
        state: State,
        statements: Sequence[str],
        placements: Mapping[str, Placement],
        deadline: Deadline | None = None,
    ) -> None:
        registered = self._db.registry.current
        try:
            with SchemaDraft(self._db.catalog.schema, state.tables, state.layout.encoding, registered) as draft:
                for statement in statements:
                    draft.run(statement)
                change = draft.finish(placements)
        except Error:
            if not self._db.is_current(state):
                raise StaleEpochError from None  # another process changed the schema since the state was taken
            raise
        for table in change.tables:
            before = state.tables.get(fold(table.name))
            if table.sharded and (before is None or before.key_type != table.key_type):
                _require_routes(state, table)
        if not change.is_nothing:
            self._run(state, change, None, deadline)

    # -- running -------------------------------------------------------------------------------------------------

    def _run(
        self,
        state: State,
        change: SchemaChange,
        fill: Callable[[WriteScope], SchemaChange] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Run a change on all shards. ``fill`` brings rows, and returns the change with what follows from them.

        Until the first COMMIT the deadline can end it, and nothing is changed then.
        """
        db = self._db
        epoch = state.epoch + 1
        job = 0
        deadline = deadline or Deadline("", None, db.timeout_s)
        try:
            with db.write_scope(db.layout.shard_ids, state, timeout_s=deadline.wait_s) as scope:
                deadline.watch(list(scope.sessions.values()))
                try:
                    if db.catalog.jobs(JOB_KIND):
                        raise _LeftBehindError
                    for shard in db.layout.shard_ids:
                        _run_on_shard(scope, shard, change.statements, epoch)
                    if fill is not None:
                        change = fill(scope)
                    deadline.check()
                except sqlite3.Error as error:
                    deadline.explain(error)
                    raise
                finally:
                    deadline.release()  # a COMMIT isn't interrupted
                job = db.catalog.add_job(JOB_KIND, _to_payload(change, epoch))
        except _LeftBehindError:
            # All locks were ours and no shard had a newer epoch: whoever recorded that job is gone.
            db.recover()
            raise StaleEpochError from None
        except BaseException:
            if job:
                db.recover()
            raise
        self._finish(job, change)

    def _finish(self, job: int, change: SchemaChange) -> None:
        """Change the catalog, unless another process has done it."""
        db = self._db
        try:
            with db.catalog.change() as catalog:
                if not any(pending.id == job for pending in db.catalog.jobs(JOB_KIND)):
                    raise _DoneByAnotherError
                _change_tables(catalog, change)
                for name, next_id in change.next_ids.items():
                    catalog.set_next(name, next_id)
                catalog.set_schema(change.schema)
                catalog.delete_job(job)
        except _DoneByAnotherError:
            db.catalog.reload_if_changed()
        db.forget_state()

    def recover(self) -> None:
        """End what a process that died has begun. Waits for all shards' locks when there is something to end."""
        db = self._db
        pending = db.catalog.jobs(JOB_KIND)
        if not pending:
            return
        change, epoch, forgotten, taken_back = SchemaChange((), (), {}, ()), 0, False, False
        with db.write_scope(db.layout.shard_ids, check_epoch=False) as scope:
            pending = db.catalog.jobs(JOB_KIND)  # under the locks: its owner may have ended it meanwhile
            if not pending:
                return
            change, epoch = _from_payload(pending[0].payload)
            behind = [shard for shard in db.layout.shard_ids if _epoch_on(scope, shard) < epoch]
            if len(behind) == len(db.layout.shard_ids):
                db.catalog.delete_job(pending[0].id)
                forgotten = True
            elif behind and change.undo:
                for shard in set(db.layout.shard_ids) - set(behind):
                    _run_on_shard(scope, shard, change.undo, epoch - 1)
                taken_back = True
            else:
                for shard in behind:
                    _run_on_shard(scope, shard, change.statements, epoch)
        if taken_back:
            db.catalog.delete_job(pending[0].id)
        elif not forgotten:
            self._finish(pending[0].id, change)


def _require_routes(state: State, table: Table) -> None:
    """Refuse a table whose keys the layout can't place: range boundaries need not ascend as keys of another type."""
    try:
        state.layout.shard_of(table.key_type)
    except ProgrammingError as error:
        raise NotSupportedError(
            f"{table.name}: the key ({', '.join(table.key_columns)}) can't be placed by this database's layout: "
            f"{error}. Declare the key with the type of the boundaries, or use kind='single'"
        ) from None


def _change_tables(catalog: CatalogChange, change: SchemaChange) -> None:
    """Drop, rename and put tables; names may change hands in one change (drop a, rename b to a; swap a and b)."""
    after = {fold(table.name): table for table in change.tables}
    moved = {new: fold(old) for new, old in change.renamed.items() if fold(old) in catalog.tables}
    leaving = set(moved.values())
    for name in list(catalog.tables):
        if name not in leaving and (name not in after or name in moved):
            catalog.drop_table(name)
    for number, old in enumerate(moved.values()):
        catalog.rename_table(old, replace(catalog.tables[old], name=_between(number)))
    for number, new in enumerate(moved):
        catalog.rename_table(_between(number), after[new])
    for name, table in after.items():
        if catalog.tables.get(name) != table:
            catalog.put_table(table)


def _between(number: int) -> str:
    return f"{RESERVED_PREFIX}renamed_{number}"


def _run_on_shard(scope: WriteScope, shard: int, statements: Sequence[str], epoch: int) -> None:
    for statement in statements:
        scope.run(shard, statement)
    scope.run(shard, f"UPDATE {META_TABLE} SET epoch = ?", (epoch,))


def _epoch_on(scope: WriteScope, shard: int) -> int:
    (row,) = scope.fetch_all(shard, f"SELECT epoch FROM {META_TABLE}")
    return int(str(row[0]))


def _to_payload(change: SchemaChange, epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "statements": list(change.statements),
        "tables": [table_to_json(table) for table in change.tables],
        "renamed": dict(change.renamed),
        "schema": [[item.type, item.name, item.tbl_name, item.sql] for item in change.schema],
        "undo": list(change.undo),
        "next_ids": dict(change.next_ids),
    }


def _from_payload(payload: Mapping[str, Any]) -> tuple[SchemaChange, int]:
    change = SchemaChange(
        tuple(payload["statements"]),
        tuple(table_from_json(text) for text in payload["tables"]),
        payload["renamed"],
        tuple(SchemaObject(*item) for item in payload["schema"]),
        tuple(payload.get("undo", ())),
        payload.get("next_ids", {}),
    )
    return change, payload["epoch"]


def _fields(table: Table) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.__dataclass_fields__}


def _placement(
    shard_key: str | Sequence[str] | None, kind: str | None, colocate_with: str | None, constraints: str, reason: str
) -> Placement:
    """Check what the caller says of a table."""
    try:
        mode = ConstraintMode(constraints)
    except ValueError:
        raise ProgrammingError(
            f"constraints must be {' or '.join(repr(m.value) for m in ConstraintMode)}, not {constraints!r}"
        ) from None
    try:
        wanted = None if kind is None else TableKind(kind)
    except ValueError:
        known = ", ".join(repr(k.value) for k in TableKind)
        raise ProgrammingError(f"kind must be one of {known}, not {kind!r}") from None
    columns: tuple[str, ...] = ()
    if shard_key is not None:
        given: Any = shard_key
        several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        columns = tuple(given) if several else (given,)
        if not columns or not all(isinstance(name, str) for name in columns):
            raise ProgrammingError(f"shard_key must be a column's name or several, not {shard_key!r}")
        if wanted in (TableKind.REFERENCE, TableKind.SINGLE):
            raise ProgrammingError(f"a {wanted} table has no shard key: leave shard_key= or kind= out")
    return Placement(wanted, columns, colocate_with, mode, reason)


def _require_same_placement(table: Table, asked: Placement) -> None:
    """Raise ProgrammingError when a table that exists is asked for with another kind or key."""
    same_key = not asked.key_columns or list(map(fold, asked.key_columns)) == list(map(fold, table.key_columns))
    if not same_key or (asked.kind is not None and asked.kind is not table.kind):
        raise ProgrammingError(
            f"{table.name} exists as a {table.kind} table"
            + (f" sharded by {', '.join(table.key_columns)}" if table.key_columns else "")
            + ": it can't be had with another kind or key"
        )
