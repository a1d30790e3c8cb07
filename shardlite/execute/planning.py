"""The planning connection: the logical schema in memory, without rows, that tells what a statement means.

Every text is prepared here before anything runs. Errors are SQLite's own words; the authorizer names the tables,
columns and functions used, behind views and triggers too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError, reraise
from shardlite.execute.attached import attach_schema
from shardlite.execute.program import program_of
from shardlite.execute.registry import HOW_TO_REGISTER, NOTHING, Registered, is_missing, load_schema
from shardlite.names import fold, is_reserved, quote
from shardlite.router.catalog_file import SchemaObject
from shardlite.sql.cores import SHARED, top_positions
from shardlite.sql.facts import Access, Prepared, StatementKind
from shardlite.sql.pragmas import OWN_TABLES
from shardlite.sql.tokens import Text, Token, TokenKind, tokenize, tokens_of
from shardlite.sql.virtual_tables import shadows_of

_DELETE, _INSERT, _READ, _UPDATE, _FUNCTION = 9, 18, 20, 23, 31
_KINDS = {
    "SELECT": StatementKind.SELECT,
    "VALUES": StatementKind.SELECT,
    "INSERT": StatementKind.INSERT,
    "REPLACE": StatementKind.INSERT,
    "UPDATE": StatementKind.UPDATE,
    "DELETE": StatementKind.DELETE,
    **dict.fromkeys(("CREATE", "DROP", "ALTER", "REINDEX", "ANALYZE"), StatementKind.DDL),
    **dict.fromkeys(("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"), StatementKind.TRANSACTION),
    "PRAGMA": StatementKind.PRAGMA,
    "ATTACH": StatementKind.ATTACH,
    "DETACH": StatementKind.DETACH,
    "VACUUM": StatementKind.VACUUM,
    "EXPLAIN": StatementKind.EXPLAIN,
}
_PREPARED_HERE = frozenset((StatementKind.SELECT, StatementKind.INSERT, StatementKind.UPDATE, StatementKind.DELETE))
_READ_ONLY = frozenset((StatementKind.EMPTY, StatementKind.EXPLAIN, StatementKind.PRAGMA))
_ONE_AT_A_TIME = "You can only execute one statement at a time."
_COLUMN_STEPS = 20_000
"""Virtual-machine steps that finding the column names may take: a recursive CTE over no rows can run for ever."""


@dataclass
class _Log:
    """What the authorizer saw while one statement was prepared."""

    reads: set[Access] = field(default_factory=set)
    inserts: set[Access] = field(default_factory=set)
    updates: set[Access] = field(default_factory=set)
    deletes: set[Access] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    own_behind: bool = False
    attached: set[str] = field(default_factory=set)
    attached_write: bool = False

    def note(self, action: int, first: str | None, second: str | None, db: str | None, via: str | None) -> int:
        if db is not None and action in (_READ, _INSERT, _UPDATE, _DELETE) and fold(db) not in ("main", "temp", SHARED):
            self.attached.add(fold(db))
            self.attached_write = self.attached_write or action != _READ
        elif action in (_READ, _INSERT, _UPDATE, _DELETE):
            self._note_table(action, fold(first or ""), fold(second or ""), fold(via or ""))
        elif action == _FUNCTION:
            self.functions.add(fold(second or ""))
        return 0

    def _note_table(self, action: int, table: str, column: str, via: str) -> None:
        if table in OWN_TABLES:
            # Opening a table-valued function reads the schema too: the text itself tells a mention from that.
            self.own_behind = self.own_behind or bool(via)
            return
        target = {_READ: self.reads, _INSERT: self.inserts, _UPDATE: self.updates, _DELETE: self.deletes}[action]
        target.add(Access(table, column if action in (_READ, _UPDATE) else "", via))


def kind_of(text: Text) -> StatementKind:
    """Tell a statement's kind from its words."""
    if not text.tokens:
        return StatementKind.EMPTY
    head = text.head
    if head == "WITH":
        head = _head_after_with(text.tokens)
    # An unknown first word is a syntax error: prepared as a query, SQLite words it.
    return _KINDS.get(head, StatementKind.SELECT)


def _head_after_with(tokens: Sequence[Token]) -> str:
    depth = 0
    for token in tokens[1:]:
        depth += (token.key == "(") - (token.key == ")")
        if depth == 0 and token.key in ("SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"):
            return token.key
    return "SELECT"


def inserts(sql: str) -> bool:
    """Tell whether a statement is an INSERT or REPLACE."""
    head = sql.lstrip()[:6].upper()
    if head in ("INSERT", "UPDATE", "DELETE"):
        return head == "INSERT"
    return kind_of(tokenize(sql)) is StatementKind.INSERT


def inserted_into(sql: str) -> str | None:
    """Return the folded name of an INSERT's table or view."""
    tokens = tokens_of(sql)
    at = next((i for i in top_positions(tokens) if tokens[i].is_word("INTO")), len(tokens)) + 1
    at += 2 if [token.key for token in tokens[at + 1 : at + 2]] == ["."] else 0
    return tokens[at].name if at < len(tokens) else None


def has_conflict_clause(sql: str) -> bool:
    """Tell whether a statement says ON CONFLICT: it may then have updated a row instead of inserting one."""
    return "CONFLICT" in sql.upper() and any(token.is_word("CONFLICT") for token in tokens_of(sql))


class PlanningConnection:
    """Prepare statements against the logical schema. Safe to use from many threads; one statement at a time."""

    def __init__(
        self,
        schema_sql: Sequence[str] = (),
        encoding: str = "UTF-8",
        registered: Registered = NOTHING,
        attached: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        """``attached``: schema names and texts of files whose tables statements may name too."""
        self._attached = tuple(attached)
        self._lock = threading.RLock()
        self._encoding = encoding
        self._registrations: list[Callable[[sqlite3.Connection], object]] = []
        self._log = _Log()
        self._missing: frozenset[str] = frozenset()
        self._tables_beside: dict[str, frozenset[str]] = {}
        self._connection = self._open(schema_sql, registered)

    def _open(self, schema_sql: Sequence[str], registered: Registered) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, uri=True)
        try:
            connection.execute(f'PRAGMA encoding = "{self._encoding}"')
            registered.apply(connection)
            for register in self._registrations:
                register(connection)
            self._missing = load_schema(
                connection, [*schema_sql, "ANALYZE"]
            )  # which makes sqlite_stat1: a statement may name it
            connection.execute("PRAGMA foreign_keys = ON")
            for schema, texts in self._attached:
                attach_schema(connection, schema, texts, self._encoding, registered)
            self._tables_beside = {fold(schema): _tables_of(connection, schema) for schema, _ in self._attached}
        except sqlite3.Error as error:
            connection.close()
            reraise(error, "the logical schema")
        return connection

    def rebuild(self, schema_sql: Sequence[str], registered: Registered = NOTHING) -> None:
        """Replace the schema, in the order given (tables before what needs them), and what the user registered."""
        with self._lock:
            fresh = self._open(schema_sql, registered)
            self._connection.close()
            self._connection = fresh

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with self._lock:
            self._connection.close()

    def register(self, call: Callable[[sqlite3.Connection], object]) -> None:
        """Run ``call(connection)`` now and after every rebuild."""
        with self._lock:
            call(self._connection)
            self._registrations.append(call)

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, *, deterministic: bool = False
    ) -> None:
        """Register a function as ``sqlite3.Connection.create_function`` does."""
        self.register(lambda c: c.create_function(name, narg, func, deterministic=deterministic))

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        """Register an aggregate as ``sqlite3.Connection.create_aggregate`` does."""
        self.register(lambda c: c.create_aggregate(name, n_arg, aggregate_class))

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any) -> None:
        """Register a window function as ``sqlite3.Connection.create_window_function`` does."""
        self.register(lambda c: c.create_window_function(name, num_params, aggregate_class))

    def create_collation(self, name: str, call: Callable[[str, str], int] | None) -> None:
        """Register a collation as ``sqlite3.Connection.create_collation`` does."""
        self.register(lambda c: c.create_collation(name, call))

    @contextmanager
    def _beside(self, tables: Sequence[str]) -> Iterator[None]:
        """Let the shared database be there meanwhile, with these tables; the lock is held."""
        if not tables:
            yield
            return
        self._connection.execute(f"ATTACH ':memory:' AS {SHARED}")
        try:
            for sql in tables:
                self._connection.execute(sql)
            yield
        finally:
            self._connection.execute(f"DETACH {SHARED}")

    def prepare(self, sql: str, beside: Sequence[str] = ()) -> Prepared:
        """Say what a statement means, without running it. ``beside``: CREATE texts of tables of the shared database.

        Raises SQLite's own errors as shardlite's classes: bad syntax, unknown tables and columns, several statements.
        Schema changes, transaction control, ATTACH and VACUUM are only named, not prepared.
        """
        if "\0" in sql:
            raise ProgrammingError("the query contains a null character")
        text = tokenize(sql)
        kind = kind_of(text)
        if any(token.key == ";" for token in text.tokens) and (
            kind not in (StatementKind.DDL, StatementKind.EXPLAIN) or len(split_statements(sql)) > 1
        ):
            raise ProgrammingError(_ONE_AT_A_TIME)
        if kind not in _PREPARED_HERE:
            # A PRAGMA isn't prepared either: some, such as foreign_keys, take effect while SQLite prepares them.
            pragma = _pragma_of(text) if kind is StatementKind.PRAGMA else None
            schema = pragma_schema(text) if kind is StatementKind.PRAGMA else ""
            return Prepared(sql, kind, readonly=kind in _READ_ONLY, pragma=pragma, pragma_schema=schema)
        log, rows = self._explain(sql, text, beside)
        own = log.own_behind or any(_names_own_table(text.tokens, at, log.attached) for at in range(len(text.tokens)))
        return Prepared(
            sql,
            kind,
            readonly=not (log.inserts or log.updates or log.deletes or log.attached_write),
            reads=frozenset(log.reads),
            inserts=frozenset(log.inserts),
            updates=frozenset(log.updates),
            deletes=frozenset(log.deletes),
            functions=frozenset(log.functions),
            aggregates=any(row[1].startswith(b"Agg") for row in rows),
            schema_read=own,
            program=program_of(rows) if kind is StatementKind.SELECT else "",
            attached=frozenset(log.attached | self._named_beside(text)),
            attached_write=log.attached_write,
        )

    def _named_beside(self, text: Text) -> set[str]:
        """Return the attached files whose schema, or one of whose tables, the text may name.

        SQLite doesn't report a table of which nothing is read but what USING compares, nor say which file's table it is
        of which the rows are only counted.
        """
        named = {token.name or "" for token in text.tokens} if self._attached else set()
        return {schema for schema, tables in self._tables_beside.items() if schema in named or tables & named}

    def _explain(self, sql: str, text: Text, beside: Sequence[str]) -> tuple[_Log, list[tuple[Any, ...]]]:
        with self._lock, self._beside(beside):
            self._log = log = _Log()
            self._connection.set_authorizer(log.note)
            self._connection.text_factory = (
                bytes  # blobs of the statement stand among the operands, as if they were text
            )
            try:
                rows = self._connection.execute("EXPLAIN " + sql, _nothing(text)).fetchall()
            except (sqlite3.Error, sqlite3.Warning) as error:
                _raise(error)
            finally:
                self._connection.text_factory = str
                self._connection.set_authorizer(None)
            missing = sorted(log.functions & self._missing)
        if missing:
            raise OperationalError(f"no such function: {missing[0]} [{HOW_TO_REGISTER}]")
        return log, rows

    def shadows(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return, for each virtual table by its folded name, the tables that hold its content, with their columns."""
        listed = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = ?"
        with self._lock:
            names, virtual = (
                [name for (name,) in self._connection.execute(listed, (kind,))] for kind in ("shadow", "virtual")
            )
            columns = {
                name: tuple(row[1] for row in self._connection.execute(f"PRAGMA main.table_info({quote(name)})"))
                for name in names
            }
        return {owner: {n: columns[n] for n in mine} for owner, mine in shadows_of(names, virtual).items()}

    def columns(self, sql: str, beside: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of a query's result columns; empty where they can't be told without running it.

        ``beside``: as for ``prepare``. Runs the query over no rows, for a bounded number of steps, so registered
        functions may be called.
        """
        text = tokenize(sql)
        with self._lock, self._beside(beside):
            self._connection.set_progress_handler(lambda: 1, _COLUMN_STEPS)
            try:
                # A virtual table may refuse the NULLs that stand for parameters: with LIMIT 0 it isn't asked.
                return self._names(sql, text) or self._names(f"{sql}\nLIMIT 0", text)
            finally:
                self._connection.set_progress_handler(None, 0)

    def _names(self, sql: str, text: Text) -> tuple[str, ...]:
        try:
            cursor = self._connection.execute(sql, _nothing(text))
            names = tuple(column[0] for column in cursor.description or ())
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning):
            return ()
        return names

    def objects(self) -> list[SchemaObject]:
        """List the schema's objects in the order of their creation; SQLite's own and automatic indexes are left out."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL "
                "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
            ).fetchall()
        return [SchemaObject(*row) for row in rows]

    def apply(self, sql: str | Sequence[str], *, keep: bool = False) -> tuple[list[SchemaObject], list[SchemaObject]]:
        """Run schema changes in a savepoint and return the schema's objects before and after.

        One text may hold several statements. The changes are undone unless ``keep``; on an error always. Raises
        SQLite's own errors, and NotSupportedError for what is no schema change.
        """
        texts = [sql] if isinstance(sql, str) else list(sql)
        statements = [statement for text in texts for statement in split_statements(text)]
        for statement in statements:
            check_ddl(statement)
        with self._lock:
            before = self.objects()
            self._connection.execute("PRAGMA foreign_keys = OFF")
            self._connection.execute("SAVEPOINT apply_schema")
            done = False
            try:
                for statement in statements:
                    self._connection.execute(statement)
                after = self.objects()
                done = keep
            except (sqlite3.Error, sqlite3.Warning) as error:
                _raise(error)
            finally:
                if not done:
                    self._connection.execute("ROLLBACK TO apply_schema")
                self._connection.execute("RELEASE apply_schema")
                self._connection.execute("PRAGMA foreign_keys = ON")
        return before, after


def split_statements(sql: str) -> list[str]:
    """Split a text into statements, without their semicolons. A trigger's body stays whole.

    Raises ProgrammingError ("incomplete input") where the last one doesn't end.
    """
    if not isinstance(sql, str):
        raise ProgrammingError(f"sql must be a str, not {type(sql).__name__}")
    if "\0" in sql:
        raise ProgrammingError(f"the SQL contains a null character: {sql[:60]!r}")
    statements: list[str] = []
    start = 0
    for token in tokens_of(sql):
        if token.key == ";" and token.start >= start and sqlite3.complete_statement(sql[start : token.end]):
            statement = sql[start : token.start].strip().lstrip("; \t\r\n")
            if tokenize(statement).tokens:
                statements.append(statement)
            start = token.end
    rest = sql[start:].strip().lstrip("; \t\r\n")
    if tokenize(rest).tokens:
        if not sqlite3.complete_statement(rest + "\n;"):
            raise ProgrammingError(f"incomplete input: {rest[:60]!r}")
        statements.append(rest)
    return statements


def check_ddl(statement: str) -> None:
    """Refuse what is no schema change of the logical database, and names that are shardlite's own."""
    text = tokenize(statement)
    head, second = text.head, text.tokens[1].key if len(text.tokens) > 1 else ""
    if kind_of(text) is not StatementKind.DDL:
        raise NotSupportedError(f"{head or 'this'} is no schema change: apply_schema takes CREATE, ALTER and DROP")
    if head == "CREATE" and second in ("TEMP", "TEMPORARY"):
        raise NotSupportedError("temp tables, views and triggers live in one connection: create an ordinary one")
    for token in text.tokens:
        name = token.name if token.kind in (TokenKind.WORD, TokenKind.QUOTED) else None
        if name is not None and is_reserved(name):
            raise ProgrammingError(f"{token.text}: names that begin with _shardlite_ are reserved")


def _pragma_of(text: Text) -> tuple[str, str]:
    """Return a PRAGMA's folded name and its argument as written, without quotes or parentheses."""
    tokens = text.tokens[1:]
    if len(tokens) > 2 and tokens[1].key == ".":
        tokens = tokens[2:]
    name = (tokens[0].name if tokens else None) or "?"
    argument = [token for token in tokens[1:] if token.key not in ("=", "(", ")")]
    return name, " ".join(token.name or token.text for token in argument)


def _tables_of(connection: sqlite3.Connection, schema: str) -> frozenset[str]:
    """Return the folded names of an attached database's tables and views."""
    rows = connection.execute(f"SELECT name FROM {quote(schema)}.sqlite_schema WHERE type IN ('table', 'view')")
    return frozenset(fold(name) for (name,) in rows)


def pragma_schema(text: Text) -> str:
    """Return the folded name of the schema that a PRAGMA names; "" where it names none, and for other statements."""
    tokens = text.tokens
    named = text.head == "PRAGMA" and len(tokens) > 3 and tokens[2].key == "."
    return (tokens[1].name or "") if named else ""


def _names_own_table(tokens: Sequence[Token], at: int, attached: Collection[str]) -> bool:
    """Tell whether a token names one of SQLite's own tables, and not that of an attached file."""
    if tokens[at].kind is TokenKind.STRING or tokens[at].name not in OWN_TABLES:
        return False
    return at < 2 or tokens[at - 1].key != "." or tokens[at - 2].name not in attached


def _nothing(text: Text) -> Any:
    """Return parameters that are all NULL, for a statement that is only looked at."""
    if text.names and text.nameless:
        raise NotSupportedError("a statement that mixes ? and named parameters: use one of the two")
    return {name: None for name, _ in text.names} if text.names else (None,) * text.parameter_count


def _raise(error: Exception) -> NoReturn:
    if isinstance(error, sqlite3.Error):
        reraise(error, HOW_TO_REGISTER if is_missing(error) else "")
    raise ProgrammingError(str(error)) from error
