"""One statement on its way to a plan: everything that the rules look at, worked out when first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from shardlite.errors import Error
from shardlite.names import fold
from shardlite.router.table import Column, Table, TableKind
from shardlite.sql.cores import Core, change_core, cores_of, known_as
from shardlite.sql.expand import expand, with_names
from shardlite.sql.facts import Columns, Prepare, Prepared, Schema, StatementKind
from shardlite.sql.functions import AGGREGATES, WINDOWS, not_shardable
from shardlite.sql.names_in import cte_names, stars_matter
from shardlite.sql.parse import Parsed, parse
from shardlite.sql.reduction import Reduction
from shardlite.sql.tokens import Text, TokenKind, closing, renumbered, tokenize, unnumbered

if TYPE_CHECKING:
    from shardlite.sql.scopes import Scopes


UNKNOWN_ROWS = 1_000
_CHANGES = (StatementKind.UPDATE, StatementKind.DELETE)


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
        self.memory: dict[str, object] = {}
        """What rules have found out and may want again, whatever kinds the tables have."""
        self.whole: Statement = self
        """The statement as the user wrote it, of which this one is another form or a part."""

    def query(self, sql: str) -> Statement | None:
        """Return a query that is a part of it, as a statement that is answered inside a transaction over the shards."""
        if self.prepare is None:
            return None
        return Statement(self.prepare(sql), self.schema, self.columns, self.rows, self.prepare, staged=False)

    def part(self, sql: str, *, stub: str = "", schema: Schema | None = None, columns: Columns) -> Statement | None:
        """Return a query made of its text, whose parameters have their numbers; None where SQLite doesn't take it.

        ``stub`` is a WITH that stands for tables that SQLite doesn't know.
        """
        if self.prepare is None:
            return None
        try:
            prepared = self.prepare(stub + sql)
        except Error:
            return None
        made = Statement(
            replace(prepared, sql=sql),
            schema or self.schema,
            columns,
            self.rows,
            self.prepare,
            staged=self.staged,
            inits=self.inits,
        )
        made.text = renumbered(made.text, self.text)
        made.whole = self.whole
        return made

    def as_if(self, schema: Schema) -> Statement:
        """Return the same statement over a schema in which tables are of other kinds."""
        made = Statement(
            self.prepared, schema, self.columns, self.rows, self.prepare, staged=self.staged, inits=self.inits
        )
        made.text, made.whole, made.memory = self.text, self.whole, self.memory
        made.parsed, made.cores, made.named = self.parsed, self.cores, self.named
        return made

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
    def expanded(self) -> Statement | None:
        """The query with its views and CTEs written out; None where there are none, or SQLite would run it otherwise.

        A recursive CTE stays what it is, and then all do.
        """
        if self.kind is not StatementKind.SELECT or not self.prepared.readonly or self.prepare is None:
            return None
        found = expand(self.text, self.schema.views, self.columns)
        if found is None or (found.repeated and self._may_vary()):
            return None
        written = unnumbered(found.sql, self.text)
        sql: str | None = written
        if self.names_of(written) != self.names:
            sql = with_names(written, self.names, self.columns)
        made = None if sql is None else self.part(sql, columns=self.columns)
        if made is None or made.views or not self._has_parameters_of(tokenize(made.sql)):
            return None
        if sql != written and self.names_of(made.sql) != self.names:
            return None
        try:
            same = self.prepared if found.hinted == self.sql else self.prepare(found.hinted)
        except Error:
            return None  # an old SQLite doesn't know the hint
        return made if made.prepared.program == same.program else None

    def _may_vary(self) -> bool:
        """Tell whether a function may give something else when it is called once more."""
        called = self.prepared.functions - AGGREGATES - WINDOWS
        return not_shardable(called, self.text, self.schema.functions) is not None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of a query's result columns; empty where they can't be told."""
        return self.names_of(self.sql)

    def names_of(self, sql: str) -> tuple[str, ...]:
        """Return a query's column names, also where SQLite refuses the NULLs that stand for its parameters."""
        return self.columns(without_limit(tokenize(sql)))

    def _has_parameters_of(self, text: Text) -> bool:
        """Tell whether another text has the same parameters: by name in any order, by number where one has no name."""
        if self.text.nameless or text.nameless:
            mine, theirs = ((t.parameter_count, t.names, t.nameless) for t in (self.text, text))
            return mine == theirs
        return {name for name, _ in self.text.names} == {name for name, _ in text.names}

    @cached_property
    def texts(self) -> list[tuple[Text, list[Core]]]:
        """The statement and the views that it uses, with their SELECTs."""
        views = [tokenize(self.schema.views[name]) for name in self.views]
        return [(self.text, self.cores), *((text, cores_of(text)) for text in views)]

    @cached_property
    def all_names(self) -> frozenset[str | None]:
        """Everything in its text, and in its views', that may be a name."""
        return frozenset(token.name for text, _ in self.texts for token in text.tokens)

    @cached_property
    def has_natural_joins(self) -> bool:
        """Tell whether columns are compared that no text names."""
        return any("NATURAL" in text.keywords() for text, _ in self.texts)

    @cached_property
    def stars_matter(self) -> bool:
        """Tell whether columns are looked at that no text names: by ``*``, or by ``x IN t``."""
        return any(stars_matter(text, cores) for text, cores in self.texts)

    @cached_property
    def reduction(self) -> Reduction:
        """The rows that a query needs of each of its tables."""
        schema, texts = self.schema, self.texts
        behind = {item.name for _, cores in texts[1:] for core in cores for item in core.items}
        return Reduction(
            texts,
            schema.tables,
            list(self.tables),
            self.rows,
            schema.functions.names,
            closed=frozenset[str]().union(*(cte_names(text) for text, _ in texts)),
            unshared=frozenset(behind) | _in_main(self.text) if self.staged else frozenset(schema.tables),
            prefixes=schema.prefixes,
            inits=self.inits,
        )

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
    def attached(self) -> tuple[tuple[str, int | None], ...]:
        """The attached files that it names, in the order of attaching, with their ``schema_version``."""
        return tuple(pair for pair in self.schema.attached.items() if pair[0] in self.prepared.attached)

    @cached_property
    def without_automatic_indexes(self) -> bool:
        """Tell whether it joins rows of the shards where an automatic index of SQLite's could lose matches.

        These take texts of several lengths for different (up to SQLite 3.40), and under RTRIM, or a collation of the
        user's, they may be equal. Which matches are lost depends on the other rows of the file.
        """
        if not self.schema.automatic_indexes_lose or not self.of_kind(TableKind.SHARDED):
            return False
        texts = [self.text, *(tokenize(self.schema.views[name]) for name in self.views)]
        named = {token.name for text in texts for token in text.tokens}
        # NATURAL compares columns that no text names, and so does x IN t.
        hidden = any(
            a.key == "NATURAL" or (a.key == "IN" and b.key != "(") for t in texts for a, b in pairwise(t.tokens)
        )
        said = {b.name or "" for t in texts for a, b in pairwise(t.tokens) if a.key == "COLLATE"}
        said |= {fold(c.collation) for t in self.tables for c in t.columns if hidden or fold(c.name) in named}
        if said <= {"binary", "nocase"}:
            return False
        cores = [core for text in texts for core in cores_of(text)]
        if self.kind in _CHANGES:
            change = change_core(self.text)
            if change is None:
                return True
            cores.append(change)
        return sum(len(core.items) for core in cores) > 1 or (self.mentions("SELECT") and not self.cores)

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
            return known_as(tokens[position].name or "", tokens[position + 2].name or "")
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


def without_limit(text: Text) -> str:
    """Return a query's text up to its LIMIT, which SQLite refuses where NULL stands for a parameter."""
    depth, end = 0, len(text.tokens)
    for position, token in enumerate(text.tokens):
        depth += (token.key == "(") - (token.key == ")")
        if token.key == "LIMIT" and depth == 0:
            end = position
    return text.sql[: text.tokens[end - 1].end]


def _in_main(text: Text) -> frozenset[str]:
    """Return the tables that the text names together with their schema."""
    tokens = text.tokens
    return frozenset(
        tokens[position + 2].name or ""
        for position in range(len(tokens) - 2)
        if tokens[position].name in ("main", "temp") and tokens[position + 1].key == "."
    )
