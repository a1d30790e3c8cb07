"""One statement on its way to a plan: everything that the rules look at, worked out when first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from shardlite.names import fold
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.cores import Core, cores_of
from shardlite.sql.facts import Columns, Prepare, Prepared, Schema, StatementKind
from shardlite.sql.names_in import cte_names
from shardlite.sql.parse import Parsed, parse
from shardlite.sql.tokens import Text, TokenKind, closing, tokenize

if TYPE_CHECKING:
    from shardlite.sql.scopes import Scopes


UNKNOWN_ROWS = 1_000


class Statement:
    """A prepared statement against a schema. ``columns`` tells the names of a query's result columns."""

    def __init__(
        self,
        prepared: Prepared,
        schema: Schema,
        columns: Columns,
        rows: Callable[[Table], int] | None = None,
        prepare: Prepare | None = None,
        *,
        staged: bool = True,
        inits: frozenset[str] = frozenset(),
    ) -> None:
        """``staged``: rows that shards share may be brought first, for others to be held against them.

        ``inits``: the tables (folded names) of the shared database that hold results of its subqueries.
        """
        self.prepared = prepared
        self.schema = schema
        self.columns = columns
        self.rows: Callable[[Table], int] = rows or (lambda table: UNKNOWN_ROWS)
        """About how many rows a table has, over all shards."""
        self.text: Text = tokenize(prepared.sql)
        self.staged = staged
        self.inits = inits
        self.prepare = prepare

    def query(self, sql: str) -> Statement | None:
        """Return a query that is a part of it, as a statement that is answered inside a transaction over the shards."""
        if self.prepare is None:
            return None
        return Statement(self.prepare(sql), self.schema, self.columns, self.rows, self.prepare, staged=False)

    @property
    def sql(self) -> str:
        return self.prepared.sql

    @property
    def kind(self) -> StatementKind:
        return self.prepared.kind

    @cached_property
    def parsed(self) -> Parsed | None:
        """sqlglot's tree, or None where it can't read the statement."""
        return parse(self.text)

    @cached_property
    def cores(self) -> list[Core]:
        """Where the clauses of its SELECTs stand."""
        return cores_of(self.text)

    @cached_property
    def named(self) -> frozenset[str]:
        """Tables and views that stand in a FROM, in its views too.

        SQLite doesn't report a table of which nothing is read but what USING compares, nor what INSERT INTO t SELECT *
        FROM u transfers as a whole.
        """
        found: set[str] = set()
        todo = {item.name for core in self.cores for item in core.items} - cte_names(self.text)
        todo |= {access.via for access in self.prepared.reads | self.prepared.writes}
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found.add(name)
            if name in self.schema.views:
                text = tokenize(self.schema.views[name])
                todo |= {item.name for core in cores_of(text) for item in core.items} - cte_names(text)
        return frozenset(found)

    @cached_property
    def scopes(self) -> Scopes | None:
        """The tables and facts of the tree."""
        if self.parsed is None:
            return None
        from shardlite.sql.resolve import resolve

        try:
            return resolve(self.parsed, self.schema)
        except RecursionError:
            return None

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """All base tables that SQLite reads or writes for it, behind views, triggers and foreign keys too, by name."""
        names = {access.table for access in self.prepared.reads | self.prepared.writes} | self.named
        found = [self.schema.tables[name] for name in names - self.inits if name in self.schema.tables]
        return tuple(sorted(found, key=lambda table: fold(table.name)))

    @cached_property
    def table_names(self) -> tuple[str, ...]:
        return tuple(table.name for table in self.tables)

    def of_kind(self, kind: TableKind) -> tuple[Table, ...]:
        """Return the tables of one kind."""
        return tuple(table for table in self.tables if table.kind is kind)

    @cached_property
    def written(self) -> tuple[Table, ...]:
        """All base tables that it may write, behind triggers and foreign keys too."""
        names = {access.table for access in self.prepared.writes}
        return tuple(table for table in self.tables if fold(table.name) in names)

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Views that it names, directly or behind others."""
        prepared = self.prepared
        names = {access.table for access in prepared.reads | prepared.writes}
        names |= {access.via for access in prepared.reads | prepared.writes} | self.named
        return tuple(sorted(name for name in names if name in self.schema.views))

    @cached_property
    def triggers(self) -> tuple[str, ...]:
        """Triggers that it fires and that touch a table."""
        names = {access.via for access in self.prepared.reads | self.prepared.writes}
        return tuple(sorted(name for name in names if name in self.schema.triggers))

    @cached_property
    def target(self) -> str | None:
        """The folded name of the table or view that an INSERT, UPDATE or DELETE names."""
        opener = {StatementKind.INSERT: "INTO", StatementKind.UPDATE: "UPDATE", StatementKind.DELETE: "FROM"}
        word = opener.get(self.kind)
        depth = 0
        for position, token in enumerate(self.text.tokens):
            depth += (token.key == "(") - (token.key == ")")
            if token.key == word and depth == 0:
                return self._name_at(position + 1)
        return None

    @cached_property
    def left_to_defaults(self) -> tuple[Column, ...]:
        """The columns of an INSERT's target that it doesn't state, so that their defaults are taken."""
        table = self.schema.tables.get(self.target or "")
        into = next((i for i, token in enumerate(self.text.tokens) if token.key == "INTO"), None)
        if table is None or into is None:
            return ()
        tokens = self.text.tokens[into + 1 :]
        opening = next((i for i, token in enumerate(tokens) if token.key in ("(", "VALUES", "SELECT", "DEFAULT")), None)
        if opening is None or tokens[opening].key in ("VALUES", "SELECT"):
            return ()
        stated = {token.name for token in tokens[opening + 1 : closing(tokens, opening)]}
        if tokens[opening].key == "DEFAULT":
            stated = set()
        return tuple(c for c in table.columns if c.writable and fold(c.name) not in stated)

    def _name_at(self, position: int) -> str | None:
        tokens = self.text.tokens
        if tokens[position].key == "OR":
            position += 2
        if position + 2 < len(tokens) and tokens[position + 1].key == ".":
            position += 2
        return tokens[position].name if position < len(tokens) else None

    @cached_property
    def returns_rows(self) -> bool:
        """Tell whether running it gives rows."""
        if self.kind in (StatementKind.SELECT, StatementKind.PRAGMA, StatementKind.EXPLAIN):
            return True
        return "RETURNING" in self.text.keywords()

    def mentions(self, word: str) -> bool:
        """Tell whether an unquoted word (upper case) stands in it."""
        return any(token.kind is TokenKind.WORD and token.key == word for token in self.text.tokens)
