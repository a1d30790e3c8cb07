"""What isn't about rows: PRAGMAs and the schema's own tables; what belongs to one connection is refused by name."""

from __future__ import annotations

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import is_reserved
from shardlite.sql.facts import StatementKind
from shardlite.sql.plan import PlanKind
from shardlite.sql.pragmas import FILE_TABLES, PRAGMAS, Pragma, PragmaPlace, answered
from shardlite.sql.rules.attached import attached_pragma, refuse_attached_change
from shardlite.sql.statement import Statement
from shardlite.sql.template import Placed, Template
from shardlite.sql.tokens import TokenKind

_REFUSED = {
    StatementKind.TRANSACTION: "belongs to one connection: take one of manager.pool(n), for rows of that shard",
    StatementKind.ATTACH: "belongs to one connection: call manager.attach(schema, path), which all statements see",
    StatementKind.DETACH: "belongs to one connection: call manager.detach(schema)",
}
_AS_ONE_FILE = "the schema is told as one file would hold it"
_FUNCTION_PREFIX = "pragma_"


def session(statement: Statement) -> Template | None:
    """Refuse session matters by name; answer what only reads the schema."""
    _refuse_reserved(statement)
    if statement.kind in _REFUSED:
        head = statement.text.head
        raise NotSupportedError(f"{head} {_REFUSED[statement.kind]}")
    if statement.kind is StatementKind.PRAGMA:
        return attached_pragma(statement) or _pragma(statement)
    if statement.kind is StatementKind.VACUUM:
        refuse_attached_change(statement)
        return _vacuum(statement)
    if statement.kind is StatementKind.EMPTY:
        return Placed(PlanKind.HOME, statement.sql, True, "there is nothing to run")
    if "load_extension" in statement.prepared.functions:
        raise NotSupportedError("load_extension() loads into one connection: register functions with the manager")
    return _schema_tables(statement)


def _refuse_reserved(statement: Statement) -> None:
    for token in statement.text.tokens:
        if token.kind in (TokenKind.WORD, TokenKind.QUOTED) and is_reserved(token.name or ""):
            raise ProgrammingError(f"{token.text}: names that begin with _shardlite_ are reserved")


# -- PRAGMA ------------------------------------------------------------------------------------------------------------


def _pragma(statement: Statement) -> Template:
    name, argument = statement.prepared.pragma or ("?", "")
    if name == "?":
        return Placed(PlanKind.SCHEMA, statement.sql, True, "SQLite says what is wrong with it", returns_rows=True)
    pragma = PRAGMAS.get(name)
    if pragma is None:
        raise NotSupportedError(f"PRAGMA {name} is none that the manager knows: it answers {', '.join(answered())}")
    if pragma.place in (PragmaPlace.SESSION, PragmaPlace.REFUSED):
        raise NotSupportedError(f"PRAGMA {name}: {_why_not(pragma)}")
    if argument and pragma.fixed and argument.lower() not in pragma.already:
        raise NotSupportedError(f"PRAGMA {name} can be read, not set: {pragma.fixed}")
    if name == "optimize" and argument and not _is_quiet(argument):
        raise NotSupportedError(
            f"PRAGMA optimize({argument}): the mask must be a number without its lowest bit, which would only tell "
            "what each connection would do"
        )
    return _placed(statement, pragma, sets=bool(argument) and not pragma.argument)


def _is_quiet(mask: str) -> bool:
    try:
        return int(mask.replace(" ", ""), 0) % 2 == 0
    except ValueError:
        return False


def _placed(statement: Statement, pragma: Pragma, sets: bool) -> Template:
    sql = statement.sql
    if pragma.place is PragmaPlace.MERGED:
        return Placed(PlanKind.CHECK, sql, True, "every shard looks at its own file", returns_rows=True)
    if pragma.place is PragmaPlace.EACH:
        return Placed(PlanKind.EACH_SHARD, sql, False, "maintenance runs on one shard after another")
    if pragma.place is PragmaPlace.HOME:
        return Placed(PlanKind.HOME, sql, True, "it is the same in every file", returns_rows=True)
    if pragma.place is PragmaPlace.SETTING and sets:
        return Placed(PlanKind.SETTING, sql, False, "every file's header holds it, all of them or none are changed")
    return Placed(PlanKind.SCHEMA, sql, True, _AS_ONE_FILE, returns_rows=True)


def _why_not(pragma: Pragma) -> str:
    if pragma.place is PragmaPlace.SESSION:
        return f"it is about one connection, and the manager has many: {pragma.advice}"
    return pragma.advice


def _vacuum(statement: Statement) -> Template:
    tokens = statement.text.tokens[1:]
    if any(token.is_word("INTO") for token in tokens):
        raise NotSupportedError(
            "VACUUM INTO would write one shard's file: `shardlite export` (export_sqlite) writes one file that "
            "holds all rows"
        )
    if tokens and (len(tokens) > 1 or tokens[0].name != "main"):
        named = statement.sql[tokens[0].start : tokens[-1].end]
        raise ProgrammingError(f"VACUUM {named}: there is no other database than main to be vacuumed")
    return Placed(PlanKind.EACH_SHARD, statement.sql, False, "one shard after another is rebuilt; rowids stay")


# -- SQLite's own tables -----------------------------------------------------------------------------------------------


def _schema_tables(statement: Statement) -> Template | None:
    """Answer a query of ``sqlite_schema``, ``pragma_table_info`` and the like, of them alone."""
    prepared = statement.prepared
    names = {access.table for access in prepared.reads | prepared.writes}
    for name in sorted(names & FILE_TABLES.keys()):
        if name not in statement.schema.tables and name not in statement.schema.views:
            raise NotSupportedError(f"{name} tells of one file or one connection: {FILE_TABLES[name]}")
    pragmas = sorted(name for name in names if _is_function(statement, name))
    if not pragmas and not prepared.schema_read:
        return None
    for name in pragmas:
        _require_table_valued(name)
    what = pragmas[0] if pragmas else "sqlite_schema or another of SQLite's own tables"
    if statement.kind is not StatementKind.SELECT:
        raise NotSupportedError(
            f"{statement.text.head} with {what}: the schema is changed by CREATE, ALTER and DROP, ids are drawn from "
            "the catalog, statistics come from ANALYZE; a query's rows can be inserted one by one"
        )
    if statement.tables:
        raise NotSupportedError(
            f"a query that reads {what} beside {', '.join(statement.table_names)}: the schema is told by the catalog, "
            "the rows by the shards. Ask for the schema first, and pass what it says as parameters"
        )
    return Placed(PlanKind.SCHEMA, statement.sql, True, _AS_ONE_FILE, returns_rows=True)


def _is_function(statement: Statement, name: str) -> bool:
    return (
        name.startswith(_FUNCTION_PREFIX) and name not in statement.schema.tables and name not in statement.schema.views
    )


def _require_table_valued(function: str) -> None:
    name = function.removeprefix(_FUNCTION_PREFIX)
    pragma = PRAGMAS.get(name)
    if pragma is None:
        raise NotSupportedError(f"{function} is of no PRAGMA that the manager knows")
    if pragma.place in (PragmaPlace.SESSION, PragmaPlace.REFUSED):
        raise NotSupportedError(f"{function}: {_why_not(pragma)}")
    if not pragma.table:
        raise NotSupportedError(f"{function} can't be asked as a table: run PRAGMA {name}")
