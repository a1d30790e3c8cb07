"""Import of CSV and newline-delimited JSON: one text file becomes one table.

The text is read twice: once to find the columns and their types and every error in it, once for the rows. The rows go
into a private SQLite file, and from there the way of every import: so nothing is created unless all of it is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from shardlite.config import Constraints, Durability
from shardlite.driver import sqlite3
from shardlite.errors import DataError, OperationalError, ProgrammingError, reraise
from shardlite.execute.database import Database
from shardlite.execute.files import CATALOG_NAME
from shardlite.execute.placement import Placement
from shardlite.names import fold, is_reserved, quote
from shardlite.router.strategies import ShardingStrategy
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.topology.examine import examine
from shardlite.topology.fingerprint import Fingerprint, fingerprint_table, total
from shardlite.topology.importer import import_sqlite
from shardlite.topology.loading import copied_columns
from shardlite.topology.pinned import opened, pinned
from shardlite.topology.progress import Meter
from shardlite.topology.report import ImportReport, Phase, ProgressCallback, TableReport
from shardlite.topology.source import StrPath
from shardlite.topology.text_rows import RowSource, csv_source, ndjson_source
from shardlite.topology.workspace import workspace_of

Format = Literal["csv", "ndjson"]
_SUFFIXES: Mapping[str, Format] = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_BATCH_ROWS = 5000
_CHECKED = ConstraintMode.CHECKED


def import_delimited(
    source: StrPath,
    db_dir: StrPath,
    *,
    table: str | None = None,
    format: Format | None = None,
    num_shards: int = 4,
    strategy: ShardingStrategy | None = None,
    key: str | None = None,
    types: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    quote_char: str = '"',
    encoding: str = "utf-8-sig",
    constraints: Constraints = "checked",
    durability: Durability = "full",
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Bring a CSV or NDJSON file in as one table: of a new directory, or one more of an existing one.

    CSV: the first line names the columns; an empty field is NULL in a column of numbers and '' in one of text. NDJSON:
    one object per line, the columns are the union of their names in order of appearance; what is missing is NULL, true
    and false are 1 and 0, objects and arrays are kept as JSON text.

    The shard key is ``key``, else the column named id; it becomes the primary key if its values are all there and
    different. With neither the table gets an ``id`` of its own. Nothing is created or changed when anything in the
    file is wrong.

    :param table: the table's name; else the file's name without suffix.
    :param format: else told by the suffix: .csv, .tsv, .txt, .ndjson, .jsonl.
    :param num_shards: for a new directory; an existing one has its own.
    :param types: column -> declared type, instead of INTEGER, REAL or TEXT as its values suggest.
    :param delimiter: one character; else found out from the first lines: comma, semicolon, tab or bar.
    :param encoding: the text's; "utf-8-sig" is UTF-8 with or without a byte-order mark.
    :raises DataError: the text is malformed; says in which line.
    :raises ProgrammingError: an unknown key or column, a bad name or option.
    :raises OperationalError: the file is missing, the table exists already, the target can't be written.
    """
    started = time.monotonic()
    path = Path(source)
    name = table if table is not None else path.stem
    rows = _row_source(path, _format_of(path, format), delimiter, quote_char, encoding)
    _require_name(name)
    target = Path(os.path.abspath(db_dir))
    existing = (target / CATALOG_NAME).exists()
    with _scratch_file(target, existing) as scratch:
        spec = _Specification(name, rows, key, types or {})
        _fill(scratch, spec, rows, Meter(progress, 0))
        if existing:
            report = _into_existing(scratch, target, spec, progress)
        else:
            report = import_sqlite(
                scratch,
                db_dir,
                num_shards=num_shards,
                strategy=strategy,
                keys={name: spec.key},
                constraints=constraints,
                durability=durability,
                progress=progress,
            )
    plan = replace(report.plan, source=str(source))
    return replace(
        report, source=os.fspath(source), db_dir=os.fspath(db_dir), plan=plan, seconds=time.monotonic() - started
    )


def _format_of(path: Path, given: str | None) -> Format:
    found = given or _SUFFIXES.get(path.suffix.lower())
    if found not in ("csv", "ndjson"):
        what = f"format {given!r}" if given else f"suffix {path.suffix!r}"
        raise ProgrammingError(f"{path}: unknown {what}: use --format (format=) csv or ndjson")
    return "csv" if found == "csv" else "ndjson"


def _row_source(path: Path, form: Format, delimiter: str | None, quote_char: str, encoding: str) -> RowSource:
    if path.is_dir():
        raise OperationalError(f"{path} is a directory, not a {form.upper()} file")
    if not path.exists():
        raise OperationalError(f"{path}: no such file")
    if form == "csv":
        return csv_source(path, delimiter, quote_char, encoding)
    return ndjson_source(path, encoding)


def _require_name(name: str) -> None:
    if not name or "\0" in name:
        raise ProgrammingError(f"not a usable table name: {name!r}; give another with --table (table=)")
    if is_reserved(name) or fold(name).startswith("sqlite_"):
        raise ProgrammingError(
            f"{name}: names that begin with _shardlite_ or sqlite_ are reserved; give another with --table (table=)"
        )


@contextlib.contextmanager
def _scratch_file(target: Path, existing: bool) -> Iterator[Path]:
    """Give the path of a private file, on the target's disk: it is as large as what is imported."""
    parent = target if existing else target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.mkdtemp(prefix=f"{workspace_of(target).name}.", dir=parent)
    except OSError as error:
        raise OperationalError(f"can't write {target}: {error.strerror or error}") from error
    try:
        yield Path(directory) / "rows.db"
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, f"rows.db{suffix}"))
        with contextlib.suppress(OSError):
            os.rmdir(directory)


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    declared: str


class _Specification:
    """The table that is made of a text: its columns, types and key."""

    def __init__(self, name: str, rows: RowSource, key: str | None, types: Mapping[str, str]) -> None:
        self.name = name
        self.generated_id = False
        found = {fold(column): column for column in rows.columns}
        for wanted in types:
            if fold(wanted) not in found:
                raise ProgrammingError(f"{rows.path} has no column {wanted!r} to give a type: it has {_list(rows)}")
        stated = {fold(column): declared for column, declared in types.items()}
        for declared in stated.values():
            _require_type(declared)
        self.columns = [_Column(c, stated.get(fold(c), rows.types[c])) for c in rows.columns]
        if key is not None and fold(key) not in found:
            raise ProgrammingError(f"{rows.path} has no column {key!r} to be the key: it has {_list(rows)}")
        chosen = found[fold(key)] if key is not None else found.get("id")
        if chosen is None:
            self.generated_id = True
            chosen = "id"
        self.key = chosen

    def ddl(self, *, primary: bool) -> str:
        """Return the CREATE TABLE text, with or without the key as primary key."""
        columns = []
        if self.generated_id:
            columns.append('"id" INTEGER PRIMARY KEY')
        for column in self.columns:
            suffix = " PRIMARY KEY" if primary and column.name == self.key and not self.generated_id else ""
            columns.append(f"{quote(column.name)} {column.declared}{suffix}".rstrip())
        return f"CREATE TABLE {quote(self.name)} ({', '.join(columns)})"


def _list(rows: RowSource) -> str:
    return ", ".join(rows.columns)


def _require_type(declared: str) -> None:
    """Keep a type to words and numbers: it is pasted into the definition."""
    if not all(c.isalnum() or c in " _(),." for c in declared):
        raise ProgrammingError(f"not a column type: {declared!r}")
    conn = sqlite3.connect(":memory:")
    try:
        conn.execute(f"CREATE TABLE t(a {declared})")
        if len(conn.execute("PRAGMA table_info(t)").fetchall()) != 1:
            raise ProgrammingError(f"not a column type: {declared!r}")
    except sqlite3.Error as error:
        raise ProgrammingError(f"not a column type: {declared!r}: {error}") from error
    finally:
        conn.close()


def _fill(scratch: Path, spec: _Specification, rows: RowSource, meter: Meter) -> None:
    """Make the private file, the key being its primary key where its values allow that."""
    tick = meter.phase(Phase.READING, spec.name, rows.count)
    with contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as conn:
        try:
            for pragma in ("journal_mode=OFF", "synchronous=OFF"):
                conn.execute(f"PRAGMA {pragma}").fetchall()
            _load(conn, spec.ddl(primary=False), spec, rows, tick)
            if not spec.generated_id and _is_unique(conn, spec):
                with_key = spec.ddl(primary=True)
                names = ", ".join(quote(c.name) for c in spec.columns)
                conn.execute(f"ALTER TABLE {quote(spec.name)} RENAME TO _rows")
                conn.execute(with_key)
                conn.execute(f"INSERT INTO {quote(spec.name)}({names}) SELECT {names} FROM _rows")
                conn.execute("DROP TABLE _rows")
        except sqlite3.Error as error:
            reraise(error, f"importing {rows.path}")


def _load(
    conn: sqlite3.Connection, ddl: str, spec: _Specification, rows: RowSource, tick: Callable[[int], None]
) -> None:
    conn.execute(ddl)
    names = ", ".join(quote(c.name) for c in spec.columns)
    sql = f"INSERT INTO {quote(spec.name)}({names}) VALUES ({', '.join('?' * len(spec.columns))})"
    numeric = [_is_numeric(column.declared) for column in spec.columns]
    conn.execute("BEGIN")
    source = iter(rows.rows())
    while batch := list(islice(source, _BATCH_ROWS)):
        conn.executemany(sql, _emptied(batch, numeric) if rows.is_text else batch)
        tick(len(batch))
    conn.execute("COMMIT")


def _is_numeric(declared: str) -> bool:
    text = declared.upper()
    if any(word in text for word in ("CHAR", "CLOB", "TEXT", "BLOB")):
        return False
    return bool(text.strip())


def _emptied(batch: Sequence[Sequence[Any]], numeric: Sequence[bool]) -> Iterable[list[Any]]:
    """Make NULLs of the empty fields in columns of numbers."""
    return [[None if n and value == "" else value for value, n in zip(row, numeric, strict=True)] for row in batch]


def _is_unique(conn: sqlite3.Connection, spec: _Specification) -> bool:
    key, place = quote(spec.key), quote(spec.name)
    column = next(c for c in spec.columns if c.name == spec.key)
    rows, given, integers = conn.execute(
        f"SELECT count(*), count({key}), sum(typeof({key}) = 'integer') FROM {place}"
    ).fetchone()
    if given != rows or (fold(column.declared) == "integer" and (integers or 0) != rows):
        return False
    return bool(conn.execute(f"SELECT count(DISTINCT {key}) FROM {place}").fetchone()[0] == rows)


# ---- one more table of an existing directory


def _into_existing(
    scratch: Path, target: Path, spec: _Specification, progress: ProgressCallback | None
) -> ImportReport:
    """Create the table in an open database and insert the rows in one transaction; drop it again if that fails."""
    with opened(str(target)) as database:
        if fold(spec.name) in database.catalog.tables:
            raise OperationalError(
                f"{target} has a table {spec.name} already: give this one another name with --table (table=)"
            )
        found = examine(
            scratch,
            num_shards=database.layout.num_shards,
            keys={spec.name: spec.key},
            reference=(),
            single=(),
            constraints=_CHECKED,
        )
        placement = Placement(
            kind=None, key_columns=(spec.key,), constraints=_CHECKED, reason=found.tables[fold(spec.name)].reason
        )
        ddl = found.schema.of_type("table")[0].sql or ""
        database.schema.apply(ddl, {fold(spec.name): placement})
        try:
            with contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as conn:
                report = _insert_all(database, conn, spec, progress)
        except BaseException:
            database.schema.apply(f"DROP TABLE {quote(spec.name)}")
            raise
        return ImportReport(
            source=str(scratch),
            db_dir=str(target),
            plan=found.plan,
            tables=(report,),
            rows=report.rows,
            seconds=0.0,
            warnings=found.plan.warnings,
        )


def _insert_all(
    database: Database, conn: sqlite3.Connection, spec: _Specification, progress: ProgressCallback | None
) -> TableReport:
    table = database.table(spec.name)
    names = [c.name for c in table.columns]
    count = conn.execute(f"SELECT count(*) FROM {quote(spec.name)}").fetchone()[0]
    tick = Meter(progress, 3 * count).phase(Phase.COPYING, spec.name, count)
    with_rowid = table.rowid_name is not None and table.rowid_alias is None
    columns = copied_columns(table)
    route = database.layout.shard_of(table.key_type)
    at = columns.index(quote(spec.key))
    sql = f"INSERT INTO {quote(spec.name)}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    rows = conn.execute(f"SELECT {', '.join(quote(n) for n in names)} FROM {quote(spec.name)} ORDER BY rowid")

    def write(scope: Any) -> None:
        while batch := rows.fetchmany(_BATCH_ROWS):
            if with_rowid:
                batch = [(rowid, *row) for rowid, row in zip(database.take_ids(table, len(batch)), batch, strict=True)]
            split: dict[int, list[Any]] = {}
            for row in batch:
                split.setdefault(route(row[at]), []).append(row)
            for shard, part in split.items():
                scope.run_many(shard, sql, part)
            tick(len(batch))

    shards = list(database.layout.shard_ids)
    with database.write_scope(shards) as scope:
        write(scope)
    if table.rowid_alias is not None:
        top = conn.execute(f"SELECT max(rowid) FROM {quote(spec.name)}").fetchone()[0] or 0
        if top > 0:
            database.catalog.bump(fold(spec.name), top + 1)
    return _verified(database, table, conn, names, with_rowid)


def _verified(
    database: Database, table: Table, conn: sqlite3.Connection, names: Sequence[str], with_rowid: bool
) -> TableReport:
    """Compare the shards' rows with the private file's; rowids that were generated here are left out of that."""
    compared = replace(table, without_rowid=True) if with_rowid else table
    expected = fingerprint_table(conn, compared)
    with pinned(database, "") as readers:
        parts = {s: fingerprint_table(r.conn, compared, schema=f"s{s}") for r in readers for s in r.shards}
    found: Fingerprint = total(parts.values())
    if found != expected:
        raise DataError(
            f"{table.name} did not arrive as it was: {expected.rows:,} rows were read, the shards have {found.rows:,}"
        )
    counts = tuple(parts[shard].rows for shard in database.layout.shard_ids)
    return TableReport(table.name, TableKind.SHARDED, expected.rows, counts, str(expected))
