"""Export: a directory of shards becomes one ordinary SQLite file again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, OperationalError, reraise
from shardlite.execute.database import Database
from shardlite.execute.files import shard_path, sync_directory
from shardlite.names import fold, is_reserved, quote
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.introspect import describe
from shardlite.router.table import Table, TableKind
from shardlite.topology.fingerprint import fingerprint_table
from shardlite.topology.loading import BATCH_ROWS, copied_columns
from shardlite.topology.pinned import DatabaseOrDir, Reader, opened, pinned
from shardlite.topology.progress import Meter
from shardlite.topology.report import ExportReport, Phase, ProgressCallback, TableReport
from shardlite.topology.source import StrPath


def export_sqlite(
    database_or_dir: DatabaseOrDir,
    dest_file: StrPath,
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Write all shards' content to one ordinary SQLite file; the database stays in use.

    What is written is one moment of the database: writers wait only until every shard's state is held. The file has
    the schema as it was declared (the texts, in their order), rowids, AUTOINCREMENT counters, ``user_version``,
    ``application_id`` and the text encoding, and nothing of shardlite's. It is written beside ``dest_file`` and renamed
    at the end.

    :param database_or_dir: a directory, a Database or a ShardManager.
    :param overwrite: replace an existing file; it must not be in use.
    :raises OperationalError: the file exists; it is one of the database's own, or in the database's directory; no
        database in the directory; the disk is full.
    :raises IntegrityError: a constraint that no shard enforces is broken, so that one file can't hold the rows.
    """
    started = time.monotonic()
    dest = Path(os.path.abspath(dest_file))
    if os.path.lexists(dest) and not overwrite:
        raise OperationalError(f"{dest} exists: choose another name, remove it, or use --overwrite (overwrite=True)")
    if not dest.parent.is_dir():
        raise OperationalError(f"{dest.parent} is no directory: the file can't be written there")
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(opened(database_or_dir))
        _refuse_own_files(database, dest)
        beside = stack.enter_context(_beside(dest))
        try:
            tables = _Export(database, beside, progress).run()
        except sqlite3.IntegrityError as error:
            raise IntegrityError(
                f"{error}: rows of different shards can't stand in one file. `shardlite check` names them "
                f"[exporting {database.directory}]"
            ) from error
        except sqlite3.Error as error:
            reraise(error, f"exporting {database.directory} to {dest}")
        directory = database.directory
    return ExportReport(
        db_dir=directory,
        dest=str(dest),
        tables=tables,
        rows=sum(t.rows for t in tables),
        bytes=dest.stat().st_size,
        seconds=time.monotonic() - started,
    )


def _refuse_own_files(database: Database, dest: Path) -> None:
    """Refuse a destination in the database's directory, or that is one of its files under another name."""
    directory = os.path.realpath(database.directory)
    # The name itself is what gets replaced, and what it leads to is what its owner means by it.
    for path in (os.path.join(os.path.realpath(dest.parent), dest.name), os.path.realpath(dest)):
        if os.path.commonpath([directory, path]) == directory:
            raise OperationalError(f"{dest} is in the database's own directory {directory}: export to another one")
    shards = [shard_path(database.directory, shard) for shard in database.layout.shard_ids]
    own = {os.path.realpath(path) + suffix for path in shards for suffix in ("", "-wal", "-shm", "-journal")}
    own.update(entry.path for entry in os.scandir(directory))
    real = os.path.realpath(dest)
    for path in own:
        with contextlib.suppress(FileNotFoundError):
            if path == real or os.path.samefile(path, dest):
                raise OperationalError(f"{dest} is {path}, one of the database's own files: choose another name")


@contextlib.contextmanager
def _beside(dest: Path) -> Iterator[Path]:
    """Give a name beside the destination; at the end that file is synced and takes the destination's name."""
    beside = dest.with_name(f".{dest.name}.{os.getpid()}.exporting")
    try:
        try:
            beside.unlink(missing_ok=True)
            beside.touch()
        except OSError as error:
            raise OperationalError(f"can't write {dest}: {error.strerror or error}") from error
        yield beside
        try:
            _sync_file(beside)
            os.replace(beside, dest)
            sync_directory(str(dest.parent))
        except OSError as error:
            raise OperationalError(f"can't write {dest}: {error.strerror or error}") from error
    finally:
        for suffix in ("", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(f"{beside}{suffix}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Export:
    """One export at work."""

    def __init__(self, database: Database, path: Path, progress: ProgressCallback | None) -> None:
        self._db = database
        self._path = path
        self._progress = progress
        self._objects: list[SchemaObject] = []
        self._tables: dict[str, Table] = {}
        self._counts: dict[str, list[int]] = {}
        self._sequences: dict[str, int] = {}
        self._pragmas: list[tuple[str, int]] = []
        self._analyzed = False

    def run(self) -> tuple[TableReport, ...]:
        state = self._db.catalog
        with pinned(self._db, self._path.resolve().as_uri()) as readers:
            # Read after the shards were pinned at the catalog's epoch: the schema that their rows have.
            self._objects = [o for o in state.schema if not is_reserved(o.name)]
            self._tables = dict(state.tables)
            self._meter = Meter(self._progress, 2 * self._total(readers))
            self._create_tables()
            for reader in readers:
                self._copy_from(reader)
        return self._finish()

    def _total(self, readers: Sequence[Reader]) -> int:
        rows = 0
        for name, table in self._tables.items():
            counts = [0] * self._db.layout.num_shards
            for reader in readers:
                for shard in self._shards_of(table, reader):
                    sql = f"SELECT count(*) FROM s{shard}.{quote(table.name)}"
                    counts[shard] = 0 if table.virtual else reader.conn.execute(sql).fetchone()[0]
            self._counts[name] = counts
            rows += sum(counts)
        return rows

    def _shards_of(self, table: Table, reader: Reader) -> list[int]:
        return list(reader.shards) if table.sharded else [shard for shard in reader.shards if shard == 0]

    def _create_tables(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as conn:
            self._db.registry.apply(conn)
            conn.execute(f"PRAGMA encoding = '{self._db.layout.encoding}'")
            for pragma in ("foreign_keys=OFF", "journal_mode=OFF", "synchronous=OFF"):
                conn.execute(f"PRAGMA {pragma}").fetchall()
            conn.execute("BEGIN")
            for item in self._objects:
                if item.type == "table":
                    conn.execute(item.sql)
            for name in _shadows(conn):
                conn.execute(f"DELETE FROM {quote(name)}")
            conn.execute("COMMIT")

    def _copy_from(self, reader: Reader) -> None:
        """Copy all that is on a reader's shards, in the transaction in which it is pinned; it ends with that."""
        conn = reader.conn
        for name, table in self._tables.items():
            tick = self._meter.phase(Phase.COPYING, table.name, sum(self._counts[name]))
            shards = self._shards_of(table, reader)
            if shards and not table.virtual:
                self._copy_table(conn, table, shards, tick)
        if 0 in reader.shards:
            self._copy_once(conn)
        for shard in reader.shards:
            self._note_sequences(conn, shard)
        conn.execute("COMMIT")

    def _copy_table(
        self, conn: sqlite3.Connection, table: Table, shards: Sequence[int], tick: Callable[[int], None]
    ) -> None:
        names = copied_columns(table)
        target = f"INSERT INTO main.{quote(table.name)}({', '.join(names)})"
        if table.rowid_name is None:
            for shard in shards:
                conn.execute(f"{target} SELECT {', '.join(names)} FROM s{shard}.{quote(table.name)}")
                tick(self._counts[fold(table.name)][shard])
            return
        # In order of the rowid over the shards, so that pages fill up one after the other.
        for bounds in self._spans(conn, table, shards):
            arms = [
                f"SELECT {', '.join(names)} FROM s{shard}.{quote(table.name)} NOT INDEXED {bounds}" for shard in shards
            ]
            at = 1 + (names.index(quote(table.rowid_alias)) if table.rowid_alias else 0)
            tick(conn.execute(f"{target} {' UNION ALL '.join(arms)} ORDER BY {at}").rowcount)

    def _spans(self, conn: sqlite3.Connection, table: Table, shards: Sequence[int]) -> Iterator[str]:
        """Yield conditions that split the table by rowid into spans of roughly BATCH_ROWS rows."""
        rowid = quote(table.rowid_name or "rowid")
        most = max(shards, key=lambda shard: self._counts[fold(table.name)][shard])
        step = max(1, BATCH_ROWS // len(shards))
        low: int | None = None
        while True:
            where = "" if low is None else f"WHERE {rowid} > {low}"
            place = f"s{most}.{quote(table.name)} NOT INDEXED"
            row = conn.execute(
                f"SELECT {rowid} FROM {place} {where} ORDER BY {rowid} LIMIT 1 OFFSET ?",
                (step - 1,),
            ).fetchone()
            if row is None:
                yield where
                return
            yield f"{where} {'AND' if where else 'WHERE'} {rowid} <= {row[0]}"
            low = row[0]

    def _copy_once(self, conn: sqlite3.Connection) -> None:
        """Copy what only the home shard knows: virtual tables' own tables, the numbers in the header."""
        for name in _shadows(conn):
            names = copied_columns(_shadow_table(conn, name))
            columns = ", ".join(names)
            conn.execute(f"INSERT INTO main.{quote(name)}({columns}) SELECT {columns} FROM s0.{quote(name)}")
        for pragma in ("user_version", "application_id"):
            self._pragmas.append((pragma, conn.execute(f"PRAGMA s0.{pragma}").fetchone()[0]))
        stat = conn.execute("SELECT 1 FROM s0.sqlite_schema WHERE name = 'sqlite_stat1'").fetchone()
        self._analyzed = stat is not None

    def _note_sequences(self, conn: sqlite3.Connection, shard: int) -> None:
        if not any(table.autoincrement for table in self._tables.values()):
            return
        for name, seq in conn.execute(f"SELECT name, seq FROM s{shard}.sqlite_sequence"):
            if isinstance(name, str) and not is_reserved(name):
                self._sequences[name] = max(self._sequences.get(name, seq), seq)

    def _finish(self) -> tuple[TableReport, ...]:
        conn = sqlite3.connect(self._path, isolation_level=None)
        with contextlib.closing(conn):
            self._db.registry.apply(conn)
            for pragma in ("foreign_keys=OFF", "journal_mode=OFF", "synchronous=OFF"):
                conn.execute(f"PRAGMA {pragma}").fetchall()
            self._meter.phase(Phase.INDEXING, "", None)
            conn.execute("BEGIN")
            for item in self._objects:
                if item.type != "table":
                    conn.execute(item.sql)
            if self._sequences or any(table.autoincrement for table in self._tables.values()):
                conn.execute("DELETE FROM sqlite_sequence")
                conn.executemany("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", self._sequences.items())
            for pragma, value in self._pragmas:
                conn.execute(f"PRAGMA {pragma} = {int(value)}")
            if self._analyzed:
                conn.execute("ANALYZE")
            _restore_order(conn, self._objects)
            conn.execute("COMMIT")
        # Opened anew: the schema was written to directly, and virtual tables have their rows.
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as conn:
            self._db.registry.apply(conn)
            reports = tuple(self._report(conn, name) for name in self._tables)
        self._meter.phase(Phase.FINISHING, "", None)
        return reports

    def _report(self, conn: sqlite3.Connection, name: str) -> TableReport:
        table, counts = self._tables[name], self._counts[name]
        if table.virtual:
            rows = conn.execute(f"SELECT count(*) FROM {quote(table.name)}").fetchone()[0]
            counts = [rows if shard == 0 else 0 for shard in self._db.layout.shard_ids]
            return TableReport(table.name, table.kind, rows, tuple(counts), "")
        tick = self._meter.phase(Phase.VERIFYING, table.name, sum(counts))
        found = fingerprint_table(conn, table, tick=tick)
        if found.rows != sum(counts):
            raise IntegrityError(f"{table.name}: the shards have {sum(counts):,} rows, the file {found.rows:,}")
        if table.kind is TableKind.REFERENCE:
            counts = [found.rows] * self._db.layout.num_shards
        return TableReport(table.name, table.kind, found.rows, tuple(counts), str(found))


def _shadows(conn: sqlite3.Connection) -> list[str]:
    return [n for (n,) in conn.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'")]


def _shadow_table(conn: sqlite3.Connection, name: str) -> Table:
    """Describe a shadow table, which `describe` would refuse on a connection that has its virtual table."""
    sql = conn.execute("SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?", (name,)).fetchone()[0]
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
        scratch.execute(sql)
        return describe(scratch, name).table(TableKind.SINGLE)


def _restore_order(conn: sqlite3.Connection, objects: Sequence[SchemaObject]) -> None:
    """Give the schema's rows the order of ``objects``, though indexes were built after the rows.

    What SQLite adds by itself (an index for a constraint, ``sqlite_sequence``, a virtual table's tables) stays behind
    the table that it was created with. Only the order of rows in ``sqlite_schema`` changes.
    """
    rank = {(o.type, fold(o.name)): i for i, o in enumerate(objects)}
    rows = conn.execute("SELECT rowid, type, name FROM sqlite_schema ORDER BY rowid").fetchall()
    order, last = [], 0
    for rowid, kind, name in rows:
        last = rank.get((kind, fold(name)), last)
        order.append((last, rowid))
    if order == sorted(order):
        return
    top = rows[-1][0]
    conn.execute("PRAGMA writable_schema = ON")
    for new, (_rank, rowid) in enumerate(sorted(order), top + 1):
        conn.execute("UPDATE sqlite_schema SET rowid = ? WHERE rowid = ?", (new, rowid))
    conn.execute("UPDATE sqlite_schema SET rowid = rowid - ?", (top,))
    conn.execute("PRAGMA writable_schema = OFF")
