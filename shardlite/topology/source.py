"""Open an existing SQLite file to be read and nothing else, with words for everything that can be wrong with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.errors import DatabaseError, InternalError, NotSupportedError, OperationalError, counterpart
from shardlite.names import fold, is_reserved, quote
from shardlite.router.catalog_file import APPLICATION_ID

HEADER_MAGIC = b"SQLite format 3\0"

StrPath = str | os.PathLike[str]
_EFFECTIVE = os.access in os.supports_effective_ids


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One row of ``sqlite_schema``, in its order. ``sql`` is None for an index that a constraint made."""

    type: str
    name: str
    tbl_name: str
    sql: str | None


@dataclass(frozen=True, slots=True)
class SourceSchema:
    """What a source file says of itself."""

    objects: tuple[SourceObject, ...]
    encoding: str
    user_version: int
    application_id: int
    page_size: int
    shadow_tables: frozenset[str]
    """Folded names of the tables that virtual tables keep for themselves."""
    analyzed: bool
    """Whether ANALYZE has been run."""

    def of_type(self, *types: str) -> list[SourceObject]:
        """Return the user's objects of these types, in order: SQLite's own and shadow tables left out."""
        return [
            o
            for o in self.objects
            if o.type in types
            and o.sql is not None
            and not fold(o.name).startswith("sqlite_")
            and fold(o.name) not in self.shadow_tables
            and not is_reserved(o.name)
        ]


def read_only_uri(path: StrPath, *, immutable: bool = False) -> str:
    """Return the URI that opens a file read-only."""
    return f"{Path(path).resolve().as_uri()}?mode=ro" + ("&immutable=1" if immutable else "")


def is_sqlite_file(path: StrPath) -> bool:
    """Tell whether a path is a SQLite database that can be read. No handle stays open."""
    try:
        with open_source(path):
            return True
    except DatabaseError:
        return False


def source_uri(path: StrPath) -> str:
    """Return the URI by which the source can be read, after looking whether it can be.

    A database in WAL mode in a directory that can't be written has no place for its ``-shm``; when it has no ``-wal``
    either, nobody is writing it and it is read as immutable.

    :raises OperationalError: missing, a directory, not readable.
    :raises DatabaseError: not SQLite, encrypted, truncated, damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise OperationalError(
            f"{path} is a directory, not a SQLite file (`shardlite export` makes one of a shardlite directory)"
        )
    if not path.exists():
        raise OperationalError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DatabaseError(f"{path} is empty (0 bytes): there is nothing to import")
    uri = read_only_uri(path)
    try:
        _probe(uri)
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        no_place_for_shm = code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        pending = _size(f"{path}-wal") + _size(f"{path}-journal")
        if no_place_for_shm and os.access(path, os.R_OK, effective_ids=_EFFECTIVE) and not pending:
            uri = read_only_uri(path, immutable=True)
            with _explained(path):
                _probe(uri)
            return uri
        raise _explain(error, path) from error
    return uri


def connect_source(uri: str, path: StrPath) -> sqlite3.Connection:
    """Open the source read-only; the caller closes it. Text that is not UTF-8 is read with surrogate escapes."""
    with _explained(path):
        conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    conn.execute("PRAGMA query_only=ON")
    conn.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return conn


@contextlib.contextmanager
def open_source(path: StrPath) -> Iterator[sqlite3.Connection]:
    """Give a read-only connection to the source, closed at the end. See ``source_uri`` for the errors."""
    conn = connect_source(source_uri(path), path)
    try:
        with _explained(path):
            yield conn
    finally:
        conn.close()


def read_schema(conn: sqlite3.Connection, path: StrPath) -> SourceSchema:
    """Read the schema of an opened source.

    :raises NotSupportedError: the source holds names that are shardlite's own.
    """
    rows = conn.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_schema ORDER BY rowid").fetchall()
    objects = tuple(SourceObject(*row) for row in rows)
    ours = [o.name for o in objects if is_reserved(o.name)]
    if ours:
        raise NotSupportedError(
            f"{path} holds {ours[0]}, a name that is shardlite's own: this is a shard, not an application's database. "
            "Import the file that `shardlite export` makes of its directory"
        )
    names = {fold(o.name) for o in objects}
    if {"setting", "logical_table", "schema_object"} <= names and (
        conn.execute("PRAGMA main.application_id").fetchone()[0] == APPLICATION_ID
    ):
        raise NotSupportedError(
            f"{path} is the catalog of a shardlite database, not an application's database. "
            "Import the file that `shardlite export` makes of its directory"
        )
    return SourceSchema(
        objects=objects,
        encoding=conn.execute("PRAGMA encoding").fetchone()[0],
        user_version=conn.execute("PRAGMA user_version").fetchone()[0],
        application_id=conn.execute("PRAGMA application_id").fetchone()[0],
        page_size=conn.execute("PRAGMA page_size").fetchone()[0],
        shadow_tables=_shadow_tables(conn, objects),
        analyzed=any(fold(o.name) == "sqlite_stat1" for o in objects),
    )


def _shadow_tables(conn: sqlite3.Connection, objects: Sequence[SourceObject]) -> frozenset[str]:
    virtual = [o.name for o in objects if o.type == "table" and o.sql and is_virtual_sql(o.sql)]
    if not virtual:
        return frozenset()
    if SQLITE_VERSION >= (3, 37, 0):
        # A virtual table whose module is missing has no shadow tables known to SQLite: say so here, by name.
        for name in virtual:
            try:
                conn.execute(f"SELECT * FROM main.{quote(name)} LIMIT 0")
            except sqlite3.Error as error:
                raise NotSupportedError(f"the virtual table {name} can't be read with this SQLite: {error}") from error
        rows = conn.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'")
        return frozenset(fold(name) for (name,) in rows)
    prefixes = tuple(f"{fold(name)}_" for name in virtual)
    return frozenset(fold(o.name) for o in objects if o.type == "table" and fold(o.name).startswith(prefixes))


def is_virtual_sql(sql: str) -> bool:
    """Tell whether a text from ``sqlite_schema``, where SQLite has normalised its front, makes a virtual table."""
    return sql[:20].upper().startswith("CREATE VIRTUAL TABLE")


def _probe(uri: str) -> None:
    conn = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        conn.close()


@contextlib.contextmanager
def _explained(path: StrPath) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if isinstance(error, DatabaseError):
            raise
        raise _explain(error, path) from error


def _explain(error: sqlite3.Error, path: StrPath) -> DatabaseError:
    """Say in words what is wrong with a source."""
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith("SQLITE_NOTADB"):
        return DatabaseError(f"{path} is not a SQLite database: {_look(path)}")
    if code.startswith("SQLITE_CORRUPT"):
        return InternalError(
            f"{path} is damaged or truncated ({_size(path):,} bytes): {error}. "
            "Restore it from a backup, or save what can be read with `sqlite3 FILE .recover`"
        )
    if code.startswith("SQLITE_READONLY"):
        return OperationalError(
            f"{path} holds an interrupted transaction, and rolling it back would write to it: open it once with the "
            f"application or the sqlite3 tool, then import again ({error})"
        )
    if code.startswith("SQLITE_CANTOPEN"):
        readable = os.access(path, os.R_OK, effective_ids=_EFFECTIVE)
        why = "its directory can't hold the -shm file that WAL mode needs" if readable else "no permission to read it"
        return OperationalError(f"{path} can't be opened: {error}; {why}")
    made = counterpart(error, str(path))
    return made if isinstance(made, DatabaseError) else DatabaseError(str(made))


def _look(path: StrPath) -> str:
    """Guess from its first bytes what a file is that SQLite says is no database (so nobody holds its locks)."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    if head.startswith(HEADER_MAGIC):
        return "its header is SQLite's but holds values that this SQLite can't read (damaged, or of a newer version)"
    if head.startswith(HEADER_MAGIC[: min(len(head), 15)]):
        return f"it is truncated after {len(head)} bytes"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip: unpack it first"
    if head.startswith(b"** This file contains an SQLite 2"):
        return "it is of SQLite 2: convert it with `sqlite OLD .dump | sqlite3 NEW`"
    try:
        text = head.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return "it is another kind of file, or encrypted (decrypt it first, such as with SQLCipher's export)"
    first = text.splitlines()[0][:40] if text.strip() else ""
    return (
        f"it looks like text ({first!r} ...): name it .csv, .tsv or .ndjson, or use --format csv or --format ndjson, "
        "to import it as such"
    )


def _size(path: StrPath) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
