"""Import an existing SQLite file: one file in, a directory of shards out, verified before it is put in place."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shardlite.config import Constraints, Durability
from shardlite.driver import sqlite3
from shardlite.errors import InternalError, OperationalError, ProgrammingError, reraise
from shardlite.execute.files import CATALOG_NAME, META_TABLE, create_shard_file, shard_path
from shardlite.execute.placement import shard_text
from shardlite.names import fold, quote
from shardlite.router.catalog import CREATE_JOB, Catalog
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.layout import Layout
from shardlite.router.strategies import ShardingStrategy
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.sql.shard_schema import lookup_indexes
from shardlite.topology.choose import seen_foreign_keys
from shardlite.topology.examine import Examined, examine
from shardlite.topology.fingerprint import Fingerprint, fingerprint_table, total
from shardlite.topology.hinted import true_text
from shardlite.topology.loading import Load, Loader
from shardlite.topology.placing import require_placeable
from shardlite.topology.progress import Meter
from shardlite.topology.report import ImportPlan, ImportReport, Phase, ProgressCallback, TableReport
from shardlite.topology.source import StrPath, source_uri
from shardlite.topology.workspace import building, require_free

_SCHEMA_ATTEMPTS = 3
"""How often an import begins again because the source's schema was changed while it was being read."""


def plan_import(
    source: StrPath,
    *,
    num_shards: int = 4,
    strategy: ShardingStrategy | None = None,
    keys: Mapping[str, str | Sequence[str]] = {},
    reference: Iterable[str] = (),
    single: Iterable[str] = (),
    constraints: Constraints = "checked",
) -> ImportPlan:
    """Say what ``import_sqlite`` with these arguments would choose, and why. Writes nothing; the same errors."""
    layout = Layout.create(num_shards, strategy)
    found = examine(
        source,
        num_shards=num_shards,
        keys=keys,
        reference=reference,
        single=single,
        constraints=_mode(constraints),
    )
    _require_placeable(found, layout)
    return found.plan


def import_sqlite(
    source: StrPath,
    db_dir: StrPath,
    *,
    num_shards: int = 4,
    strategy: ShardingStrategy | None = None,
    keys: Mapping[str, str | Sequence[str]] = {},
    reference: Iterable[str] = (),
    single: Iterable[str] = (),
    constraints: Constraints = "checked",
    durability: Durability = "full",
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Bring a SQLite file into a new directory of shards.

    The source is only read; one state of it is imported, also while others write to it in WAL mode (without WAL,
    writers wait until the end). Rows move inside SQLite at constant memory; rowids, types and bytes stay. The directory
    appears under its name at the end, complete and verified (row counts and content hashes of every table), or not at
    all; an interrupted import is simply run again.

    :param db_dir: must not exist, or be an empty directory.
    :param keys: table -> its shard key's column or columns, instead of the choice made here.
    :param reference: tables to copy to every shard.
    :param single: tables to keep whole on the home shard.
    :param constraints: "checked" records what no shard can enforce, for ``check``; "strict" refuses it.
    :param durability: "full" syncs all files before they are put in place.
    :param progress: called with the state of the work, in this thread; what it raises ends the import.
    :raises DatabaseError: the source is not SQLite, is damaged or encrypted.
    :raises OperationalError: the source is missing; the target exists or can't be written; the disk is full.
    :raises ProgrammingError: an unknown table or column was stated.
    :raises NotSupportedError: a statement can't be followed; strict, and a constraint would only be checked; the
        strategy's boundaries are not of a key's type. Nothing was written.
    :raises InternalError: the shards' content differs from the source's.
    """
    started = time.monotonic()
    mode = _mode(constraints)
    keys, reference, single = dict(keys), tuple(reference), tuple(single)
    Layout.create(num_shards, strategy)
    require_free(Path(os.path.abspath(db_dir)))
    for attempt in range(_SCHEMA_ATTEMPTS):
        found = examine(source, num_shards=num_shards, keys=keys, reference=reference, single=single, constraints=mode)
        layout = Layout.create(num_shards, strategy, encoding=found.schema.encoding)
        _require_placeable(found, layout)
        try:
            with building(db_dir, durable=durability == "full") as workspace:
                job = _Import(source, found, layout, workspace, progress)
                tables, warnings = job.run()
        except _SchemaChanged as error:
            if attempt + 1 == _SCHEMA_ATTEMPTS:
                raise OperationalError(
                    f"{source}: its schema is being changed: import again when it is quieter"
                ) from error
            continue
        except sqlite3.Error as error:
            reraise(error, f"importing {source} into {db_dir}")
        break
    return ImportReport(
        source=os.fspath(source),
        db_dir=os.fspath(db_dir),
        plan=found.plan,
        tables=tables,
        rows=sum(t.rows for t in tables),
        seconds=time.monotonic() - started,
        warnings=(*found.plan.warnings, *warnings),
    )


class _SchemaChanged(Exception):
    """The source's schema is no longer the one that the choices were made for."""


def _require_placeable(found: Examined, layout: Layout) -> None:
    """Refuse, before anything is written, keys that the layout can't place."""
    for table in found.tables.values():
        if table.sharded:
            require_placeable(layout, table)


def _mode(constraints: str) -> ConstraintMode:
    try:
        return ConstraintMode(constraints)
    except ValueError:
        raise ProgrammingError(f"constraints must be 'checked' or 'strict', not {constraints!r}") from None


class _Import:
    """One import at work in its workspace."""

    def __init__(
        self, source: StrPath, found: Examined, layout: Layout, workspace: Path, progress: ProgressCallback | None
    ) -> None:
        self._source = source
        self._found = found
        self._layout = layout
        self._workspace = workspace
        self._files = [Path(shard_path(str(workspace), shard)) for shard in layout.shard_ids]
        self._copied = {n: t for n, t in (*found.tables.items(), *found.shadows.items()) if not t.virtual}
        rows = found.rows
        routed = sum(rows[n] for n, t in self._copied.items() if self._is_routed(t))
        copied = sum(rows[n] for n in self._copied)
        self._meter = Meter(progress, routed + 4 * copied)
        self._fingerprints: dict[str, Fingerprint] = {}
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1, layout.num_shards))

    def run(self) -> tuple[tuple[TableReport, ...], list[str]]:
        """Do all the work up to the point where only the renaming is left."""
        with self._threads:
            self._create_files()
            with Loader(source_uri(self._source), self._files, self._layout, self._workspace) as loader:
                warnings = self._load(loader)
            self._index()
            reports = tuple(self._verify(name) for name in self._found.tables)
        self._write_catalog()
        return reports, warnings

    def _is_routed(self, table: Table) -> bool:
        return table.sharded and self._layout.num_shards > 1

    # the files and their tables

    def _create_files(self) -> None:
        self._meter.phase(Phase.READING, "", None)
        for shard in self._layout.shard_ids:
            create_shard_file(str(self._workspace), self._layout, shard)
        list(self._threads.map(self._create_tables, self._layout.shard_ids))

    def _create_tables(self, shard: int) -> None:
        with _Writing(self._files[shard]) as conn:
            for item in self._found.schema.of_type("table"):
                table = self._found.tables[fold(item.name)]
                conn.execute(shard_text("table", item.name, item.sql or "", table, self._found.tables))
            # A new virtual table writes a few rows of its own; the home shard gets the source's instead.
            for name in self._found.shadows if shard == 0 else ():
                conn.execute(f"DELETE FROM {quote(self._found.shadows[name].name)}")

    # rows

    def _load(self, loader: Loader) -> list[str]:
        version = loader.reader.execute("PRAGMA src.schema_version").fetchone()[0]
        if version != self._found.schema_version:
            raise _SchemaChanged
        loads = []
        for number, (name, table) in enumerate(self._copied.items()):
            tick = self._meter.phase(Phase.ROUTING, table.name, self._found.rows[name])
            loads.append(loader.plan(table, number, self._found.rows[name], tick))
        loader.finish_routing()
        for load in loads:
            self._copy(loader, load)
        if any(table.autoincrement for table in self._copied.values()):
            loader.copy_sequences()
        loader.commit()
        for name, table in self._copied.items():
            tick = self._meter.phase(Phase.VERIFYING, table.name, self._found.rows[name])
            self._fingerprints[name] = fingerprint_table(loader.reader, table, schema="src", tick=tick)
        return self._broken_foreign_keys(loader.reader)

    def _copy(self, loader: Loader, load: Load) -> None:
        loader.copy(load, self._meter.phase(Phase.COPYING, load.table.name, load.rows))

    def _broken_foreign_keys(self, conn: sqlite3.Connection) -> list[str]:
        """Report the foreign keys that the source itself breaks: nothing is repaired and nothing invented."""
        warnings = []
        for table in self._found.tables.values():
            if not table.foreign_keys:
                continue
            try:
                rows = conn.execute(
                    "SELECT parent, count(*) FROM pragma_foreign_key_check(?, 'src') GROUP BY 1", (table.name,)
                ).fetchall()
            except sqlite3.Error as error:
                warnings.append(f"{table.name}: its foreign keys can't be checked in the source: {error}")
                continue
            warnings += [
                f"{table.name}: {count:,} row(s) of the source refer to rows that {parent} doesn't have"
                for parent, count in rows
            ]
        return warnings

    # what comes after the rows

    def _index(self) -> None:
        rows = sum(self._found.rows[name] for name in self._copied)
        tick = self._meter.phase(Phase.INDEXING, "", rows)
        shards = self._layout.num_shards
        for shard, _ in enumerate(self._threads.map(self._finish_shard, self._layout.shard_ids)):
            tick(rows * (shard + 1) // shards - rows * shard // shards)

    def _finish_shard(self, shard: int) -> None:
        schema = self._found.schema
        with _Writing(self._files[shard]) as conn:
            for item in schema.of_type("index", "view", "trigger"):
                owner = self._found.tables.get(fold(item.tbl_name))
                conn.execute(shard_text(item.type, item.name, item.sql or "", owner, self._found.tables))
            for table in self._found.tables.values():
                for _, text in lookup_indexes(table):
                    conn.execute(text)
            if schema.analyzed:
                conn.execute("ANALYZE")
            conn.execute(f"PRAGMA user_version = {int(schema.user_version)}")
            conn.execute(f"PRAGMA application_id = {int(schema.application_id)}")
            # The catalog's one change will make this its epoch.
            conn.execute(f"UPDATE {META_TABLE} SET epoch = ?", (self._layout.epoch + 1,))
            conn.execute("COMMIT")
            conn.execute("PRAGMA journal_mode = WAL").fetchone()
            conn.execute("BEGIN")

    # verifying

    def _verify(self, name: str) -> TableReport:
        table = self._found.tables[name]
        if table.virtual:
            return self._verify_virtual(table)
        parts = self._parts(table)
        expected = self._fingerprints[name]
        for shard, part in parts.items():
            if table.kind is TableKind.REFERENCE and part != expected:
                _differs(table, expected, part, f"its copy on shard {shard}")
        found = total(parts.values()) if table.kind is not TableKind.REFERENCE else expected
        if found != expected:
            _differs(table, expected, found, "the shards together")
        counts = tuple(parts[shard].rows if shard in parts else 0 for shard in self._layout.shard_ids)
        return TableReport(table.name, table.kind, expected.rows, counts, str(expected))

    def _verify_virtual(self, table: Table) -> TableReport:
        """Compare the tables in which a virtual table keeps its rows; the report counts their rows."""
        prefix = fold(table.name) + "_"
        mine = [n for n in self._found.shadows if n.startswith(prefix)]
        found = Fingerprint()
        for name in mine:
            part = total(self._parts(self._found.shadows[name]).values())
            if part != self._fingerprints[name]:
                _differs(self._found.shadows[name], self._fingerprints[name], part, "shard 0")
            found += part
        with _Reading(self._files[0]) as conn:
            rows = conn.execute(f"SELECT count(*) FROM {quote(table.name)}").fetchone()[0] if mine else 0
        counts = tuple(rows if shard == 0 else 0 for shard in self._layout.shard_ids)
        return TableReport(table.name, table.kind, rows, counts, str(found))

    def _parts(self, table: Table) -> dict[int, Fingerprint]:
        """Return the fingerprint of the table on each shard that holds rows of it, the shards side by side."""
        shards = [0] if table.kind is TableKind.SINGLE else list(self._layout.shard_ids)
        tick = self._meter.phase(Phase.VERIFYING, table.name, self._found.rows[fold(table.name)])
        parts = {}
        for shard in shards:
            with _Reading(self._files[shard]) as conn:
                parts[shard] = fingerprint_table(conn, table, tick=tick if table.sharded or shard == 0 else None)
        return parts

    # the catalog

    def _write_catalog(self) -> None:
        self._meter.phase(Phase.FINISHING, "", None)
        sequences = self._sequences()
        tables = self._found.tables
        objects = [
            SchemaObject(
                o.type,
                o.name,
                o.tbl_name,
                true_text(o.sql or "", tables[fold(o.name)]) if o.type == "table" else o.sql or "",
            )
            for o in self._found.schema.of_type("table", "index", "view", "trigger")
        ]
        with Catalog.create(self._workspace / CATALOG_NAME, layout=self._layout) as catalog:
            with catalog.change() as change:
                for table in self._found.tables.values():
                    change.put_table(table)
                change.set_schema(objects)
            if catalog.epoch != self._layout.epoch + 1:
                raise InternalError(f"the catalog's epoch is {catalog.epoch}, the shards' {self._layout.epoch + 1}")
            for name, at_least in sequences.items():
                catalog.bump(name, at_least)
            # Every file is there: one that is missing from now on is lost, not yet to be created.
            for job in catalog.jobs(CREATE_JOB):
                catalog.delete_job(job.id)

    def _sequences(self) -> dict[str, int]:
        """Return, by folded table, the lowest id that may be generated: above every rowid and AUTOINCREMENT counter."""
        tops: Counter[str] = Counter()
        for file in self._files:
            with _Reading(file) as conn:
                for name, table in self._found.tables.items():
                    if table.rowid_name is not None and not table.virtual:
                        sql = f"SELECT max({quote(table.rowid_name)}) FROM {quote(table.name)}"
                        tops[name] = max(tops[name], conn.execute(sql).fetchone()[0] or 0)
                if any(table.autoincrement for table in self._found.tables.values()):
                    for text, seq in conn.execute("SELECT name, seq FROM sqlite_sequence"):
                        tops[fold(text)] = max(tops[fold(text)], seq if isinstance(seq, int) else 0)
        return {n: top + 1 for n, top in tops.items() if n in self._found.tables and top > 0}


def _differs(table: Table, expected: Fingerprint, found: Fingerprint, where: str) -> None:
    raise InternalError(
        f"{table.name} did not arrive as it was: the source has {expected.rows:,} rows (hash {expected}), {where} "
        f"{found.rows:,} (hash {found}). Nothing was put in place"
    )


class _Writing:
    """A connection to a private shard file: no journal, no syncing, one transaction; on failure the file goes away."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> sqlite3.Connection:
        for pragma in ("foreign_keys=OFF", "journal_mode=OFF", "synchronous=OFF", "ignore_check_constraints=ON"):
            self._conn.execute(f"PRAGMA {pragma}").fetchall()
        self._conn.execute("BEGIN")
        return self._conn

    def __exit__(self, kind: Any, *_rest: object) -> None:
        try:
            if kind is None:
                self._conn.execute("COMMIT")
        finally:
            self._conn.close()


class _Reading:
    """A connection to a private shard file that is only read."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._conn.execute("PRAGMA query_only=ON")

    def __enter__(self) -> sqlite3.Connection:
        return self._conn

    def __exit__(self, *_exc: object) -> None:
        self._conn.close()


__all__ = ["import_sqlite", "plan_import", "seen_foreign_keys"]
