"""Refuse what belongs to one connection: transactions, ATTACH, PRAGMAs that set something, its past."""

from __future__ import annotations

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import is_reserved
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import SESSION_STATE
from shardlite.sql.plan import PlanKind
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template
from shardlite.sql.tokens import TokenKind

SCHEMA_PRAGMAS = frozenset(
    ("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list")
)
"""PRAGMAs that tell only of the schema, which is the same on every shard."""

_TABLE_LIST = r"SELECT * FROM pragma_table_list WHERE name NOT LIKE '\_shardlite\_%' ESCAPE '\'"
"""``PRAGMA table_list`` without what shardlite keeps in each file."""

_REFUSED = {
    StatementKind.TRANSACTION: "belongs to one connection: take one of manager.pool(n), for rows of that shard",
    StatementKind.ATTACH: "belongs to one connection: bring the data in with import, or attach on manager.pool(n)",
    StatementKind.DETACH: "belongs to one connection, and nothing is attached to the manager",
    StatementKind.VACUUM: "works on one file and may renumber rowids: run it on each manager.pool(n) if it has to be",
}


def session(statement: Statement) -> Template | None:
    """Refuse session matters by name; let the PRAGMAs through that only read the schema."""
    _refuse_reserved(statement)
    if statement.kind in _REFUSED:
        head = statement.text.head
        raise NotSupportedError(f"{head} {_REFUSED[statement.kind]}")
    if statement.kind is StatementKind.PRAGMA:
        return _pragma(statement)
    if statement.kind is StatementKind.EMPTY:
        return Placed(PlanKind.HOME, statement.sql, True, "there is nothing to run")
    state = sorted(statement.prepared.functions & SESSION_STATE)
    if state:
        raise NotSupportedError(
            f"{state[0]}() tells of one connection's past, and the manager's statements share none: "
            "use the result's rowcount and lastrowid"
        )
    if statement.prepared.schema_read:
        raise NotSupportedError(
            "sqlite_schema and SQLite's other own tables are different in each shard: "
            "use PRAGMA table_list, table_info, index_list or foreign_key_list"
        )
    return None


def _refuse_reserved(statement: Statement) -> None:
    for token in statement.text.tokens:
        if token.kind in (TokenKind.WORD, TokenKind.QUOTED) and is_reserved(token.name or ""):
            raise ProgrammingError(f"{token.text}: names that begin with _shardlite_ are reserved")


def _pragma(statement: Statement) -> Template:
    name, argument = statement.prepared.pragma or ("?", "")
    if name not in SCHEMA_PRAGMAS:
        raise NotSupportedError(
            f"PRAGMA {name} is about one connection or one file: run it on a connection of manager.pool(n); "
            f"the manager answers {', '.join(sorted(SCHEMA_PRAGMAS))}"
        )
    sql = _TABLE_LIST if name == "table_list" and not argument else statement.sql
    return Placed(PlanKind.HOME, sql, True, "the schema is the same on every shard", returns_rows=True)
