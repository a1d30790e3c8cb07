"""Check a whole database: every file, every row's place, every constraint that no shard enforces by itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from shardlite.config import ShardliteConfig
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, ProgrammingError, ShardUnavailableError
from shardlite.execute.database import Database
from shardlite.execute.files import CATALOG_NAME, META_TABLE, shard_path
from shardlite.execute.placement import shard_text
from shardlite.execute.registry import NOTHING, Registered, is_missing
from shardlite.names import fold, is_reserved, quote
from shardlite.router.catalog import Catalog
from shardlite.router.catalog_file import SchemaObject
from shardlite.sql.tokens import tokens_of
from shardlite.topology.check_rows import RowChecks
from shardlite.topology.pinned import DatabaseOrDir, Reader, database_of, groups_of, open_reader
from shardlite.topology.progress import Meter
from shardlite.topology.repair import Repair
from shardlite.topology.report import CheckReport, Phase, Problem, ProblemKind, ProgressCallback


def check_database(
    database_or_dir: DatabaseOrDir,
    *,
    repair: bool = False,
    quick: bool = False,
    progress: ProgressCallback | None = None,
) -> CheckReport:
    """Look for everything that can be wrong with a database; what is found is reported, not raised.

    Files: there, SQLite's, this database's, in their places, sound (``PRAGMA integrity_check``), of one schema and
    epoch. Rows: on the shard that the router says, rowids unique over the shards, single tables empty elsewhere, copies
    of reference tables equal, foreign keys and uniqueness that no shard enforces, sequences above all ids. The database
    may be in use: one moment of it is looked at.

    :param database_or_dir: a directory, a Database or a ShardManager.
    :param repair: move misplaced rows where that is unambiguous, make reference tables' copies equal to the home
        shard's (rows that only a copy holds are added there first; where they can't be, the copy is left as it is),
        raise sequences; every act is reported. Without it nothing is written.
    :param quick: use ``PRAGMA quick_check``, which doesn't compare indexes with their tables.
    :raises OperationalError: there is no database in the directory.
    """
    started = time.monotonic()
    with _looked_at(database_or_dir) as target:
        found = _Check(target, quick, progress).run()
        repaired: tuple[str, ...] = ()
        if repair and found.problems:
            repaired = _repair(target, found.problems)
            if repaired:
                found = _Check(target, quick, progress).run()
        return CheckReport(
            db_dir=target.directory,
            shards=target.catalog.layout.num_shards,
            tables=len(target.catalog.tables),
            rows=found.rows,
            problems=tuple(found.problems),
            repaired=repaired,
            seconds=time.monotonic() - started,
        )


class _Target:
    """The database that is checked: its directory and catalog, and the open Database where there is one."""

    def __init__(self, directory: str, catalog: Catalog, database: Database | None) -> None:
        self.directory = directory
        self.catalog = catalog
        self.database = database

    @property
    def registered(self) -> Registered:
        """The user's functions and collations, which tables may need; none are known of a directory alone."""
        return NOTHING if self.database is None else self.database.registry.current


@contextlib.contextmanager
def _looked_at(database_or_dir: DatabaseOrDir) -> Iterator[_Target]:
    database = database_of(database_or_dir)
    if database is not None:
        database.current()
        yield _Target(database.directory, database.catalog, database)
        return
    directory = os.path.abspath(database_or_dir)
    path = Path(directory) / CATALOG_NAME
    if not path.exists():
        what = f"it holds no {CATALOG_NAME}" if os.path.isdir(directory) else "no such directory"
        raise OperationalError(f"{directory} is no shardlite database: {what}")
    with Catalog.open(path) as catalog:
        yield _Target(directory, catalog, None)


def _repair(target: _Target, problems: list[Problem]) -> tuple[str, ...]:
    if target.database is not None:
        return Repair(target.database, problems).run()
    strategy = target.catalog.layout.strategy
    try:
        database = Database(ShardliteConfig(db_dir=target.directory, strategy=strategy, create=False))
    except (ShardUnavailableError, ProgrammingError):
        return ()  # a file is missing or foreign: no repair without it
    with contextlib.closing(database):
        return Repair(database, problems).run()


class _Check:
    """One look at the whole database."""

    def __init__(self, target: _Target, quick: bool, progress: ProgressCallback | None) -> None:
        self._target = target
        self._catalog = target.catalog
        self._layout = target.catalog.layout
        self._quick = quick
        self._progress = progress
        self.problems: list[Problem] = []
        self.rows = 0

    def run(self) -> _Check:
        self._catalog.reload_if_changed()
        meter = Meter(self._progress, self._layout.num_shards + len(self._catalog.tables))
        tick = meter.phase(Phase.READING, "", None)
        sound = []
        for shard in self._layout.shard_ids:
            if self._file_is_sound(shard):
                sound.append(shard)
            tick(1)
        with contextlib.ExitStack() as stack:
            readers = self._pin(stack, sound)
            self._check_epochs(readers)
            usable = self._check_schemas(readers)
            if usable:
                checks = RowChecks(self._catalog, readers, usable, len(usable) == self._layout.num_shards, meter)
                checks.run()
                self.problems += checks.problems
                self.rows = checks.rows
        return self

    def _report(self, kind: ProblemKind, shard: int, detail: str, remedy: str) -> None:
        self.problems.append(Problem(kind, detail, remedy, shard))

    # files

    def _file_is_sound(self, shard: int) -> bool:
        path = shard_path(self._target.directory, shard)
        if not os.path.exists(path):
            self._report(
                ProblemKind.MISSING_SHARD, shard, f"{path} is missing", f"put shard {shard} back, from a backup"
            )
            return False
        try:
            with contextlib.closing(_open_file(path)) as conn:
                self._target.registered.apply(conn)
                return self._is_ours(conn, path, shard) and self._is_undamaged(conn, path, shard)
        except sqlite3.Error as error:
            self._report(ProblemKind.DAMAGED, shard, f"{path}: {error}", f"restore shard {shard} from a backup")
            return False

    def _is_ours(self, conn: sqlite3.Connection, path: str, shard: int) -> bool:
        try:
            row = conn.execute(f"SELECT database_id, shard FROM {META_TABLE}").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            row = None
        if row is None:
            detail = f"{path} is a SQLite file, but no shard of shardlite's ({META_TABLE} is missing)"
        elif row[0] != self._layout.database_id:
            detail = f"{path} belongs to database {row[0]}, this is {self._layout.database_id}"
        elif row[1] != shard:
            detail = f"{path} holds shard {row[1]}, not {shard}: files were renamed or swapped"
        else:
            return True
        self._report(ProblemKind.WRONG_FILE, shard, detail, f"put the right file for shard {shard} back")
        return False

    def _is_undamaged(self, conn: sqlite3.Connection, path: str, shard: int) -> bool:
        pragma = "quick_check" if self._quick else "integrity_check"
        try:
            found = [text for (text,) in conn.execute(f"PRAGMA {pragma}(20)")]
        except sqlite3.OperationalError as error:
            if not is_missing(error):
                raise
            found = self._look_at_tables(conn, pragma, shard)
        # Rows that break a CHECK or NOT NULL were so in an imported source; the file itself is sound.
        damage = [t for t in found if t != "ok" and not t.startswith(("CHECK constraint", "NULL value in"))]
        if damage:
            remedy = f"restore shard {shard} from a backup; where only indexes are named, REINDEX mends them"
            self._report(ProblemKind.DAMAGED, shard, f"{path}: {'; '.join(damage[:5])}", remedy)
        return not damage

    def _look_at_tables(self, conn: sqlite3.Connection, pragma: str, shard: int) -> list[str]:
        """Check table by table where one needs a function that nobody registered; report each of these."""
        found: list[str] = []
        names = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid").fetchall()
        for (name,) in names:
            try:
                found += [text for (text,) in conn.execute(f"PRAGMA {pragma}({quote(name)})")]
            except sqlite3.OperationalError as error:
                if not is_missing(error):
                    raise
                detail = f"{name} can't be looked at whole: {error}"
                remedy = "register it with manager.create_function() or its like, and call manager.check()"
                self._report(ProblemKind.SCHEMA, shard, detail, remedy)
        return found

    # one moment of all files

    def _pin(self, stack: contextlib.ExitStack, shards: list[int]) -> list[Reader]:
        """Attach the sound shards and hold one moment of them: no write is under way while they are pinned."""
        target = self._target
        readers = [
            open_reader(stack, target.directory, group, self._layout.encoding, registered=target.registered)
            for group in groups_of(shards)
        ]
        lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if target.database is not None and len(shards) == self._layout.num_shards:
            lock = target.database.write_scope(shards, check_epoch=False)
        with lock:
            self._catalog.reload_if_changed()
            for reader in readers:
                reader.pin()
        return readers

    def _check_epochs(self, readers: list[Reader]) -> None:
        expected = self._catalog.epoch
        for reader in readers:
            for shard in reader.shards:
                epoch = reader.conn.execute(f"SELECT epoch FROM s{shard}.{META_TABLE}").fetchone()[0]
                if epoch != expected:
                    detail = f"shard {shard} is at epoch {epoch}, the catalog at {expected}"
                    remedy = "open the database once (that ends an interrupted schema change), then check again"
                    self._report(ProblemKind.EPOCH, shard, detail, remedy)

    def _check_schemas(self, readers: list[Reader]) -> list[int]:
        """Compare every shard's schema with the catalog's; return the shards whose rows can be looked at."""
        expected = self._expected_schema()
        usable = []
        for reader in readers:
            for shard in reader.shards:
                actual = _schema_of(reader, shard)
                differences = [
                    f"{kind} {name} " + ("is missing" if key not in actual else "is another one")
                    for key, (kind, name, sql) in expected.items()
                    if key not in actual or not _same_sql(actual[key][2], sql)
                ]
                differences += [
                    f"{kind} {name} is not in the catalog"
                    for key, (kind, name, _) in actual.items()
                    if key not in expected
                ]
                if differences:
                    detail = f"shard {shard}: {'; '.join(differences[:5])}"
                    remedy = "change the schema through the manager only; restore the shard, or mend it by hand"
                    self._report(ProblemKind.SCHEMA, shard, detail, remedy)
                missing = [key for key in expected if key[0] == "table" and key not in actual]
                if not missing:
                    usable.append(shard)
        return usable

    def _expected_schema(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        tables = self._catalog.tables
        found = {}
        for item in self._catalog.schema:
            sql = shard_text(item.type, item.name, item.sql, tables.get(fold(item.tbl_name)), tables)
            found[item.type, fold(item.name)] = (item.type, item.name, sql)
        return found


def _schema_of(reader: Reader, shard: int) -> dict[tuple[str, str], tuple[str, str, str]]:
    rows = reader.conn.execute(f"SELECT type, name, tbl_name, sql FROM s{shard}.sqlite_schema WHERE sql IS NOT NULL")
    objects = [SchemaObject(*row) for row in rows]
    virtual = [fold(o.name) + "_" for o in objects if o.sql[:20].upper().startswith("CREATE VIRTUAL TABLE")]
    return {
        (o.type, fold(o.name)): (o.type, o.name, o.sql)
        for o in objects
        if not is_reserved(o.name)
        and not fold(o.name).startswith("sqlite_")
        and not (virtual and o.type in ("table", "index") and fold(o.name).startswith(tuple(virtual)))
    }


def _same_sql(actual: str, expected: str) -> bool:
    if actual == expected:
        return True
    written = [[sql[token.start : token.end] for token in tokens_of(sql)] for sql in (actual, expected)]
    return written[0] == written[1]


def _open_file(path: str) -> sqlite3.Connection:
    """Open a shard to be read. Read-write where possible: a read-only last connection would leave a -wal behind."""
    uri = Path(path).resolve().as_uri()
    conn = sqlite3.connect(f"{uri}?mode=rw", uri=True, isolation_level=None, timeout=30.0)
    conn.execute("PRAGMA query_only=ON")
    conn.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    return conn
