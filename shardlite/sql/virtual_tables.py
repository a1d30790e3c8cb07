"""Virtual tables (FTS5, R-Tree) on the coordinator: made anew there, then given the tables that hold what they know.

A virtual table keeps its content in ordinary tables beside it, its *shadow tables*. What CREATE VIRTUAL TABLE puts into
these is replaced by the home shard's rows, so that every query means there what it means at home.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.facts import Schema
from shardlite.sql.template import Source

_FTS = re.compile(r"CREATE VIRTUAL TABLE.*?\bUSING\s+fts[345]\b", re.IGNORECASE | re.DOTALL)
_CONTENT = re.compile(r"""\bcontent\s*=\s*(?:"([^"]+)"|'([^']+)'|\[([^\]]+)\]|`([^`]+)`|(\w+))""", re.IGNORECASE)


def content_table(ddl: str) -> str | None:
    """Return the name of the table that holds an FTS table's content (``content=``), None where there is none."""
    match = _CONTENT.search(ddl) if _FTS.match(ddl) else None
    return None if match is None else next(group for group in match.groups() if group)


def refuse_spread_content(ddl: str, tables: Mapping[str, Table]) -> None:
    """Raise NotSupportedError where an FTS table would look for its content on one shard, and it is on all of them."""
    name = content_table(ddl)
    content = tables.get(fold(name)) if name is not None else None
    if content is not None and content.sharded:
        raise NotSupportedError(
            f"content={name}: the rows of {content.name} are spread over the shards, and a full-text table reads one "
            f"file: keep {content.name} whole (/* shardlite: kind=single */), or leave content= out, so that the "
            "full-text table keeps the text itself"
        )


def shadows_of(names: Sequence[str], virtual: Sequence[str]) -> dict[str, list[str]]:
    """Share shadow tables among the virtual tables that they belong to, by folded name: ``f_data`` is ``f``'s.

    SQLite names a shadow table by its virtual table's name, an underscore and a word without one.
    """
    found: dict[str, list[str]] = {fold(name): [] for name in virtual}
    for name in names:
        owner = fold(name).rpartition("_")[0]
        if owner in found:
            found[owner].append(name)
    return found


def virtual_sources(table: Table, schema: Schema) -> Iterator[Source]:
    """Give what a gather brings for a virtual table.

    Raises NotSupportedError where nothing is known of what the table keeps.
    """
    shadows = schema.shadows.get(fold(table.name), {})
    if not shadows:
        raise NotSupportedError(
            f"the virtual table {table.name} beside sharded tables: its module keeps no tables that could be read; "
            "read it in a statement of its own and pass its values as parameters"
        )
    create = schema.ddl[fold(table.name)]
    for name, columns in shadows.items():
        listed = ", ".join(map(quote, columns))
        place = f"main.{quote(name)}"
        insert = f"INSERT OR REPLACE INTO {place}({listed})"
        yield Source(name, create, insert, len(columns), f"SELECT {listed} FROM {place}", False)
        create = ""  # one statement made them all


def content_beside(table: Table, schema: Schema) -> Table | None:
    """Return the table that has to come with a virtual table, as it holds its content."""
    name = content_table(schema.ddl[fold(table.name)])
    content = schema.tables.get(fold(name)) if name is not None else None
    if content is not None and content.kind is TableKind.SHARDED:
        refuse_spread_content(schema.ddl[fold(table.name)], schema.tables)
    return content
