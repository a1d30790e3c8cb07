"""Plain SQLite files beside the shards: under which names, and what their schemas are.

No connection to such a file is kept. A statement that names its tables opens it on the coordinator; it was planned by
a copy of the file's schema, without rows, and is planned again where the file's ``schema_version`` is another by then.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote as quote_path

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, ProgrammingError, reraise
from shardlite.execute.files import META_TABLE
from shardlite.execute.registry import Registered, load_schema
from shardlite.names import fold, is_reserved, quote
from shardlite.router.catalog_file import APPLICATION_ID
from shardlite.sql.create_as import select_of
from shardlite.sql.tokens import first_words

MOST_ATTACHED: Final = 9
"""SQLite attaches ten databases unless built otherwise; one of them is where shards and coordinator share rows."""
_MAIN: Final = ("main", "temp")
_copies = itertools.count(1)


@dataclass(frozen=True, slots=True)
class AttachedSchema:
    """A file's schema at one time."""

    version: int
    texts: tuple[str, ...]


class AttachedFile:
    """One file and its schema name. Shared by threads: what is known of its schema is replaced as a whole."""

    __slots__ = ("known", "path", "schema", "trusted_schema")

    def __init__(self, schema: str, path: str, trusted_schema: bool) -> None:
        self.schema = schema
        self.path = path
        self.trusted_schema = trusted_schema
        self.known: AttachedSchema | None = None
        """Its schema as it was last read; None: it has to be read anew."""

    def __repr__(self) -> str:
        return f"the attached file {self.schema} ({self.path})"

    @property
    def name(self) -> str:
        """The folded schema name."""
        return fold(self.schema)

    def uri(self, mode: str = "rw") -> str:
        """Return what ATTACH takes. ``mode``: "rw", or "rwc" where the file may be made."""
        return f"file:{quote_path(self.path)}?mode={mode}"

    @contextlib.contextmanager
    def opened(self, timeout_s: float, registered: Registered, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """Open it alone. Raises SQLite's errors as shardlite's classes, with the file named."""
        try:
            connection = sqlite3.connect(self.uri(mode), timeout=timeout_s, isolation_level=None, uri=True)
            with contextlib.closing(connection):
                connection.execute("PRAGMA trusted_schema = OFF")
                registered.apply(connection)
                yield connection
        except sqlite3.Error as error:
            reraise(error, repr(self))

    def version(self, timeout_s: float, registered: Registered) -> int:
        """Return its ``schema_version`` now."""
        with self.opened(timeout_s, registered) as connection:
            return int(connection.execute("PRAGMA schema_version").fetchone()[0])

    def schema_now(self, timeout_s: float, registered: Registered) -> AttachedSchema:
        """Return its schema, read where it was not yet."""
        known = self.known
        if known is None:
            known = self.known = self.read_schema(timeout_s, registered)
        return known

    def read_schema(self, timeout_s: float, registered: Registered) -> AttachedSchema:
        """Read its schema."""
        with self.opened(timeout_s, registered) as connection:
            return _read_schema(connection)


def _read_schema(connection: sqlite3.Connection) -> AttachedSchema:
    connection.execute("BEGIN")
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    shadows = {name for (name,) in connection.execute("SELECT name FROM pragma_table_list WHERE type = 'shadow'")}
    connection.execute("COMMIT")
    texts = [sql for name, sql in rows if not fold(name).startswith("sqlite_") and name not in shadows]
    if any(fold(name).startswith("sqlite_stat") for name, _ in rows):
        texts.append("ANALYZE")
    return AttachedSchema(int(version), tuple(texts))


def attach_schema(
    connection: sqlite3.Connection, schema: str, texts: Sequence[str], encoding: str, registered: Registered
) -> None:
    """Attach a database in memory with a schema and no rows. Raises SQLite's errors.

    The texts are a stranger's: none of them runs but a CREATE that makes an empty object.
    """
    uri = f"file:/shardlite-schema-{os.getpid()}-{next(_copies)}?vfs=memdb"
    with contextlib.closing(sqlite3.connect(uri, isolation_level=None, uri=True)) as copy:
        copy.execute(f'PRAGMA encoding = "{encoding}"')
        copy.execute("PRAGMA trusted_schema = OFF")
        registered.apply(copy)
        for text in texts:
            if text != "ANALYZE" and (first_words(text, 1) != ("CREATE",) or select_of(text) is not None):
                raise OperationalError(f"malformed database schema: {text[:60]!r}")
            try:
                load_schema(copy, [text])
            except sqlite3.OperationalError as error:
                if not str(error).startswith("no such module"):
                    raise  # as on one file, only what needs the module fails
        connection.execute("ATTACH ? AS ?", (uri, schema))


class AttachedFiles:
    """The files attached to one database. Thread-safe."""

    def __init__(self, encoding: str, timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._encoding = encoding
        self._timeout_s = timeout_s
        self.current: tuple[AttachedFile, ...] = ()
        """In the order of attaching, in which SQLite looks for a name that says no schema."""

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the lock of a thread that is not there."""
        self._lock = threading.Lock()

    def add(self, schema: str, path: str, registered: Registered, *, create: bool, trusted_schema: bool) -> None:
        """Know a file by a schema name from now on. Raises as ``ShardManager.attach``."""
        _check_name(schema)
        with self._lock:
            self._require_place(schema)
        file = AttachedFile(schema, path, trusted_schema)
        self._look_into(file, registered, "rwc" if create else "rw")
        with self._lock:
            self._require_place(schema)  # another thread may have been faster
            self.current = (*self.current, file)

    def remove(self, schema: str) -> None:
        """Forget a file. Raises OperationalError where none has the name."""
        with self._lock:
            left = tuple(file for file in self.current if file.name != fold(str(schema)))
            if len(left) == len(self.current):
                if isinstance(schema, str) and fold(schema) in _MAIN:
                    raise OperationalError(f"cannot detach database {schema}")
                raise OperationalError(f"no such database: {schema}")
            self.current = left

    def _require_place(self, schema: str) -> None:
        if any(file.name == fold(schema) for file in self.current):
            raise OperationalError(f"database {schema} is already in use")
        if len(self.current) >= MOST_ATTACHED:
            raise OperationalError(
                f"too many attached databases - max {MOST_ATTACHED}: of the 10 that SQLite allows, rows on their way "
                "between shards take one; detach another first"
            )

    def _look_into(self, file: AttachedFile, registered: Registered, mode: str) -> None:
        """Read the file's schema; raise where it is none that can be attached."""
        try:
            with file.opened(self._timeout_s, registered, mode) as connection:
                (encoding,) = connection.execute("PRAGMA encoding").fetchone()
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                file.known = _read_schema(connection)
                own = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (META_TABLE,)).fetchone()
        except sqlite3.OperationalError as error:
            if mode == "rw" and str(error).startswith("unable to open database file"):
                raise OperationalError(f"{error}: say create=True to make a new file") from error
            raise
        if own is not None or application == APPLICATION_ID:
            raise ProgrammingError(
                f"{file.path} is a file of a shardlite database, of which one alone tells nothing: open its directory "
                "with a ShardManager, or `shardlite export` it first"
            )
        if encoding != self._encoding and file.known.texts:
            raise OperationalError(
                f"attached databases must use the same text encoding as main database: {file.path} is in {encoding}, "
                f"the shards are in {self._encoding}"
            )
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None, uri=True)) as scratch:
            try:
                scratch.execute(f'PRAGMA encoding = "{self._encoding}"')
                attach_schema(scratch, file.schema, file.known.texts, self._encoding, registered)
            except sqlite3.Error as error:
                reraise(error, repr(file))


def _check_name(schema: str) -> None:
    quote(schema)  # raises for what can be no name
    if fold(schema) in _MAIN:
        raise OperationalError(f"database {schema} is already in use")
    if is_reserved(schema):
        raise ProgrammingError(f"{schema}: names that begin with _shardlite_ are reserved")


def attach_files(connection: sqlite3.Connection, files: Iterable[AttachedFile], timeout_s: float) -> None:
    """Attach files to a private connection, in this order. Raises SQLite's errors as shardlite's classes."""
    connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}").fetchall()
    for file in files:
        try:
            if not file.trusted_schema:
                connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("ATTACH ? AS ?", (file.uri(), file.schema))
            connection.execute(f"SELECT 1 FROM {quote(file.schema)}.sqlite_schema LIMIT 1").fetchall()
        except sqlite3.Error as error:
            reraise(error, repr(file))


@contextlib.contextmanager
def attached_files(connection: sqlite3.Connection, files: Sequence[AttachedFile], timeout_s: float) -> Iterator[None]:
    """Attach files for a while."""
    try:
        attach_files(connection, files, timeout_s)
        yield
    finally:
        if files:
            for _, schema, _ in connection.execute("PRAGMA database_list").fetchall():
                if fold(schema) not in _MAIN:
                    connection.execute(f"DETACH {quote(schema)}")
            connection.execute("PRAGMA trusted_schema = ON")
