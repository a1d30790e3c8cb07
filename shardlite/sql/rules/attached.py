"""Statements that have to run on the coordinator, as written, whatever else could be done with them.

Those with tables of attached files, since it is there that the files are attached; and joins for which SQLite's
automatic indexes have to be switched off.
"""

from __future__ import annotations

from functools import partial

from shardlite.errors import NotSupportedError
from shardlite.sql.facts import StatementKind
from shardlite.sql.plan import PlanKind
from shardlite.sql.pragmas import PRAGMAS, PragmaPlace
from shardlite.sql.rules.gather import gather
from shardlite.sql.rules.insert_query import insert_query
from shardlite.sql.statement import Statement
from shardlite.sql.template import Gathered, Template, WithFallback
from shardlite.sql.tokens import words

_MADE = words("TABLE INDEX VIEW TRIGGER VIRTUAL UNIQUE TEMP TEMPORARY IF NOT EXISTS")


def attached(statement: Statement) -> Template | None:
    """Gather what names an attached file's tables; refuse changes of its schema."""
    if statement.kind is StatementKind.DDL:
        refuse_attached_change(statement)
    if not statement.prepared.attached:
        return _careful(statement)
    return _gathered(statement)


def _careful(statement: Statement) -> Template | None:
    """Gather what SQLite could answer wrongly by its automatic indexes; None where it needn't or can't be."""
    if not statement.without_automatic_indexes:
        return None
    try:
        return _gathered(statement)
    except NotSupportedError:
        return None


def _gathered(statement: Statement) -> Template | None:
    if statement.prepared.readonly or statement.prepared.attached_write:
        return gather(statement)
    inserted = insert_query(statement)
    return gather(statement) if inserted is None else WithFallback(inserted, partial(gather, statement))


def attached_pragma(statement: Statement) -> Template | None:
    """Ask the attached file that a PRAGMA names; None where it names none.

    A setting of a connection is refused: it would be that of one which nobody has afterwards.
    """
    schema = statement.prepared.pragma_schema
    if schema not in statement.schema.attached:
        return None
    name, argument = statement.prepared.pragma or ("?", "")
    pragma = PRAGMAS.get(name)
    if pragma is None or pragma.place in (PragmaPlace.SESSION, PragmaPlace.REFUSED, PragmaPlace.EACH):
        raise NotSupportedError(f"PRAGMA {name} of the attached file {schema}: run it on a connection to that file")
    if argument and pragma.fixed:
        raise NotSupportedError(
            f"PRAGMA {name} of the attached file {schema} can be read, not set: set it on a connection to that file"
        )
    return Gathered(
        PlanKind.ATTACHED_PRAGMA,
        statement.sql,
        statement.text,
        (),
        (),
        not argument or pragma.argument,
        True,
        f"{schema} is asked",
        (),
        attached=((schema, statement.schema.attached[schema]),),
    )


def refuse_attached_change(statement: Statement) -> None:
    """Refuse CREATE, DROP, VACUUM and so on of an attached file."""
    tokens = statement.text.tokens
    at = next((i for i, token in enumerate(tokens) if i and token.key not in _MADE), 0)
    whole = statement.text.head in ("ANALYZE", "REINDEX", "VACUUM")
    named = at and tokens[at].name in statement.schema.attached
    if named and (whole or (at + 1 < len(tokens) and tokens[at + 1].key == ".")):
        raise NotSupportedError(
            f"{statement.text.head} in the attached file {tokens[at].text}: its schema belongs to whoever owns the "
            "file: do it on a connection to that file"
        )
