"""PRAGMAs and SQLite's own tables over one logical database: what ``sql/pragmas.py`` says of each is done here.

``OneFile`` is a connection in memory that holds the schema as the user wrote it, as one file would: without rows, but
with what a file tells of itself (the numbers in its header, the counters of AUTOINCREMENT, the statistics of ANALYZE),
put there from the shards before each question.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, reraise
from shardlite.execute.attached import AttachedFile, attached_files
from shardlite.execute.core import DatabaseCore
from shardlite.execute.deadline import Deadline, watched
from shardlite.execute.registry import Registered, load_schema
from shardlite.execute.result import Result
from shardlite.execute.state import HOME_SHARD, State
from shardlite.names import RESERVED_PREFIX, fold, is_reserved, quote
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.table import Table
from shardlite.shard.sqlite import SqliteShard
from shardlite.sql.plan import Parameters, Plan, PlanKind
from shardlite.sql.statistics import merged_statistics
from shardlite.sql.tokens import tokenize

_inherited: list[OneFile] = []
"""Those of parent processes: never used, closed or finalised here."""
_SPARE = f"{RESERVED_PREFIX}spare"
_DEFAULT_FINDINGS = 100
"""How many findings SQLite's checks give at most, unless told otherwise."""


class OneFile:
    """The logical schema as one file would hold it. Thread-safe; one question at a time."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database
        self._lock = threading.Lock()
        self._conn: sqlite3.Connection | None = None
        self._built: tuple[object, ...] = ()

    def ask(
        self, sql: str, parameters: Parameters, deadline: Deadline, beside: Sequence[AttachedFile] = ()
    ) -> tuple[tuple[str, ...] | None, list[tuple[Any, ...]]]:
        """Run a statement that reads the schema; return its columns (None: it has no rows) and rows.

        ``beside``: files that are attached for the time of the question.
        """
        with self._lock:
            conn = self._current()
            deadline.check()
            try:
                with attached_files(conn, beside, deadline.wait_s), watched(conn, deadline):
                    cursor = conn.execute(sql, parameters)
                    rows = cursor.fetchall()
            except sqlite3.Error as error:
                reraise(error)
            described = cursor.description
            return None if described is None else tuple(column[0] for column in described), rows

    def _current(self) -> sqlite3.Connection:
        """Return the connection, built anew where the schema isn't the one that it holds, with what the shards know."""
        user_version, application_id, analyzed, counted = self._db.shards[HOME_SHARD].fetch_row(
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_stat1'), "
            "(SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence') "
            "FROM pragma_user_version, pragma_application_id",
            (),
        ) or (0, 0, 0, 0)
        snapshot = self._db.catalog.state
        registered = self._db.registry.current
        wanted = (snapshot.layout.epoch, registered.generation, analyzed, counted)
        if self._conn is None or self._built != wanted:
            fresh = _open([item.sql for item in snapshot.schema], snapshot.layout.encoding, registered)
            if counted:  # it outlives the tables that it was made for, until a VACUUM
                fresh.execute(f"CREATE TABLE {_SPARE} (i INTEGER PRIMARY KEY AUTOINCREMENT)")
                fresh.execute(f"DROP TABLE {_SPARE}")
            if analyzed:
                fresh.execute("ANALYZE")
            # Whoever compares it learns of every change; the number itself means nothing, on one file neither.
            fresh.execute(f"PRAGMA schema_version = {snapshot.layout.epoch}")
            self._drop()
            self._conn, self._built = fresh, wanted
        conn = self._conn
        conn.execute(f"PRAGMA user_version = {int(user_version)}")
        conn.execute(f"PRAGMA application_id = {int(application_id)}")
        tables = snapshot.tables
        if any(table.autoincrement for table in tables.values()):
            conn.execute("DELETE FROM sqlite_sequence")
            conn.executemany("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", self._counters(tables.values()))
        if analyzed:
            conn.execute("DELETE FROM sqlite_stat1")
            conn.executemany("INSERT INTO sqlite_stat1(tbl, idx, stat) VALUES (?, ?, ?)", self._statistics(conn))
        return conn

    def _counters(self, tables: Iterable[Table]) -> list[tuple[str, int]]:
        """Return the highest id that each AUTOINCREMENT table ever had, as ``sqlite_sequence`` has it."""
        highest: dict[str, int] = {}
        for shard in self._db.shards:
            for name, seq in shard.fetch_all("SELECT name, seq FROM sqlite_sequence", ()):
                highest[name] = max(highest.get(name, seq), seq)
        return [(table.name, highest[table.name]) for table in tables if table.name in highest]

    def _statistics(self, conn: sqlite3.Connection) -> list[tuple[str, str | None, str]]:
        found: list[tuple[int, tuple[str, str | None, str]]] = []
        for shard in self._db.shards:
            if not shard.fetch_row("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1'", ()):
                continue
            rows = shard.fetch_all("SELECT tbl, idx, stat FROM sqlite_stat1", ())
            found += [(shard.id, row) for row in rows if not is_reserved(row[0]) and not is_reserved(row[1] or "")]
        columns = {
            index: [row[2] for row in conn.execute(f"PRAGMA index_info({quote(index)})")]
            for index in {row[1] for _, row in found if row[1] is not None}
        }
        return merged_statistics(found, self._db.catalog.state.tables, columns)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None


def _open(texts: Sequence[str], encoding: str, registered: Registered) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, uri=True)
    try:
        conn.execute(f'PRAGMA encoding = "{encoding}"')
        registered.apply(conn)
        load_schema(conn, texts)
        conn.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        conn.close()
        reraise(error, "the logical schema")
    return conn


class PragmaRunner:
    """Runs what is planned as a question about the schema, a check or a setting. Thread-safe."""

    def __init__(self, database: DatabaseCore) -> None:
        self._db = database
        self._file = OneFile(database)

    def run(self, state: State, plan: Plan, deadline: Deadline) -> Result:
        """Run a plan of the kind SCHEMA or CHECK."""
        if plan.kind is PlanKind.CHECK:
            return self._check(state, plan, deadline)
        name, _ = _pragma_of(plan.sql)
        if name == "database_list":
            beside = [(number, file.schema, file.path) for number, file in enumerate(state.attached, 2)]
            return Result(("seq", "name", "file"), iter([(0, "main", self._db.directory), *beside]))
        columns, rows = self._file.ask(
            plan.sql, plan.parameters, deadline, _asked_beside(state, self._db.catalog.schema, plan.sql)
        )
        return Result(columns or (), iter(rows))

    def close(self) -> None:
        """Close the connection that holds the schema. Idempotent."""
        self._file.close()

    def reset_after_fork(self) -> None:
        """Begin anew, in a forked child: a thread that is not there may have been inside the connection."""
        _inherited.append(self._file)
        self._file = OneFile(self._db)

    # -- checks --------------------------------------------------------------------------------------------------

    def _check(self, state: State, plan: Plan, deadline: Deadline) -> Result:
        name, argument = _pragma_of(plan.sql)
        columns, _ = self._file.ask(plan.sql, (), deadline)  # SQLite's own words for an argument that is none
        about = state.tables.get(fold(argument))
        self._require_seen(state, name, about)
        if name == "foreign_key_check":
            tables = [about] if about is not None else list(state.tables.values())
            return Result(columns or (), iter(self._broken_keys(tables, deadline)))
        most = int(argument) if about is None and argument.isdecimal() and int(argument) > 0 else _DEFAULT_FINDINGS
        findings: list[tuple[Any, ...]] = []
        for shard in self._db.shards:
            rows = _all_of(shard, plan.sql, deadline)
            if [row[0] for row in rows] != ["ok"]:
                findings += [(f"shard {shard.id}: {row[0]}",) for row in rows]
        return Result(columns or (), iter(findings[:most] or [("ok",)]))

    def _require_seen(self, state: State, name: str, about: Table | None) -> None:
        """Refuse a check of what no shard can see: it would find nothing, which is not the same as all being well."""
        for table in [about] if about is not None else state.tables.values():
            unseen = [text for text in table.unenforced if name != "foreign_key_check" or text.startswith("FOREIGN")]
            if unseen:
                raise NotSupportedError(
                    f"PRAGMA {name}: no single shard can see {table.name}'s {'; '.join(unseen)}: run manager.check() "
                    "or `shardlite check`, which looks over all shards"
                )

    def _broken_keys(self, tables: Sequence[Table], deadline: Deadline) -> list[tuple[Any, ...]]:
        """Return the rows without a parent: of each table by rowid, as one file gives them."""
        found: list[tuple[Any, ...]] = []
        for table in tables:
            if not table.foreign_keys:
                continue
            shards = self._db.shards if table.sharded else self._db.shards[: HOME_SHARD + 1]
            sql = f"PRAGMA foreign_key_check({quote(table.name)})"
            rows = [row for shard in shards for row in _all_of(shard, sql, deadline)]
            rows.sort(key=lambda row: (row[1] is not None, row[1]) if row[1] is not None else (False, 0))
            found += rows
        return found


def _all_of(shard: SqliteShard, sql: str, deadline: Deadline) -> list[tuple[Any, ...]]:
    """Run a statement that may take long on one shard."""
    deadline.check()
    with shard.reading(deadline.wait_s) as conn, watched(conn, deadline):
        try:
            return conn.fetch_all(sql)
        except sqlite3.Error as error:
            shard.fail(error, sql)


def _asked_beside(state: State, schema: Iterable[SchemaObject], sql: str) -> list[AttachedFile]:
    """Return the attached files that a question about the schema may be about.

    A PRAGMA that says no schema looks for a name in all of them, if the database has none of that name.
    """
    tokens = tokenize(sql).tokens if state.attached else ()
    names = {token.name or "" for token in tokens}
    name, argument = _pragma_of(sql)
    own = bool(name) and fold(argument) in {fold(item.name) for item in schema}
    everywhere = (bool(name) and not own) or any(each.startswith("pragma_") for each in names)
    return [file for file in state.attached if everywhere or file.name in names]


def _pragma_of(sql: str) -> tuple[str, str]:
    """Return a PRAGMA's folded name and its argument; ("", "") for another statement."""
    tokens = tokenize(sql).tokens
    if not tokens or tokens[0].key != "PRAGMA":
        return "", ""
    rest = tokens[1:]
    if len(rest) > 2 and rest[1].key == ".":
        rest = rest[2:]
    name = (rest[0].name if rest else None) or ""
    return name, " ".join(token.value for token in rest[1:] if token.key not in ("=", "(", ")"))
