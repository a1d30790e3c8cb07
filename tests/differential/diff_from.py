"""Where random SELECTs read from, and the subqueries in their expressions: what all kinds of queries share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import Any

from diff_expressions import Expressions, Values
from diff_facts import Expr, Named, Source, learn
from diff_schema import affinity

from shardlite.driver import sqlite3

TOO_MANY = 3000
"""Rows of a join that is made on purpose; more would test nothing else."""
SEPARATOR = "|"


@dataclass(frozen=True)
class Query:
    """A SELECT, its columns, and how its rows are ordered.

    :param columns: names and facts; ``sql`` of their expressions means nothing outside.
    :param modes: how each column compares.
    :param determined: the rows, as a multiset, are fixed to the type: it may stand in another query.
    """

    sql: str
    columns: tuple[Named, ...]
    modes: tuple[str, ...]
    order: str | tuple[int, ...] = ""
    shape: str = ""

    @property
    def determined(self) -> bool:
        return all(mode == "exact" for mode in self.modes)


@cache
def full_joins_work() -> bool:
    """Tell whether this SQLite knows what a FULL JOIN in a subquery gives: 3.40 drops the other arm's WHERE here."""
    conn = sqlite3.connect(":memory:")
    try:
        conn.execute("CREATE TABLE t (k INT, x INT)")
        conn.execute("CREATE TABLE u (k INT, x TEXT)")
        conn.execute("CREATE TABLE v (k INT)")
        conn.execute("INSERT INTO t VALUES (2, 3)")
        full = "SELECT v.k o FROM u FULL JOIN v ON u.k = v.k WHERE v.k NOTNULL"
        sql = f"SELECT s.o FROM (SELECT t.k AS o FROM t WHERE (t.x BETWEEN 2 AND 0) ISNULL UNION ALL {full}) s"
        return conn.execute(sql).fetchall() == []
    finally:
        conn.close()


class Skip(Exception):
    """SQLite doesn't take what was made up: another attempt."""


class Sources:
    """FROM clauses, aggregates, orders and limits over base tables and views, whose rows are in ``plain``."""

    def __init__(self, r: Random, plain: Any, tables: Sequence[Source], views: Sequence[Source] = ()) -> None:
        self.r = r
        self.plain = plain
        self.tables = list(tables)
        self.views = list(views)
        self.ctes: list[Source] = []
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self.values = Values(self.r)
        self.expressions = Expressions(self.r, self.values, self)
        self.ctes = []
        self._number = 0
        self.top_level = True
        self.learned_from_values = False
        """What is known of a subquery's columns holds for these values of the parameters."""
        # What is simple can be done on the shards: without this most statements would need all rows in one place.
        self.simple = self.r.random() < 0.4

    def _alias(self, letter: str = "a") -> str:
        self._number += 1
        return f"{letter}{self._number}"

    def query(self, outer: Sequence[Source] = (), columns: int | None = None, limit: bool = True) -> Query:
        """Return a query of any kind."""
        raise NotImplementedError

    @contextmanager
    def _inside(self) -> Any:
        """Within, queries are parts of others: nothing in them may be open."""
        before, self.top_level = self.top_level, False
        try:
            yield
        finally:
            self.top_level = before

    def _width(self, columns: int | None) -> int:
        return columns if columns is not None else self.r.choice((1, 2, 2, 3, 3, 4))

    def _where(self, scope: Sequence[Source], chance: float = 0.65) -> str:
        r = self.r
        conditions = [self.expressions.predicate(scope)] if r.random() < chance else []
        if r.random() < 0.12:
            # All keys pinned, to one value or a few: one shard, or some.
            value = self.expressions.constant().sql
            keys = [c.expr.sql for source in scope for c in source.columns if c.name == "k"]
            test = f"= {value}" if r.random() < 0.6 else f"IN ({value}, {self.expressions.constant().sql})"
            conditions += [f"{key} {test}" for key in keys]
        r.shuffle(conditions)
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def _names(self, picked: Sequence[Expr]) -> tuple[str, ...]:
        if self.top_level and self.r.random() < 0.5:
            return ("",) * len(picked)
        return tuple(f"o{n}" for n in range(len(picked)))

    def _as(self, expr: Expr, name: str) -> str:
        return f"{expr.sql}{self.r.choice((' AS ', ' '))}{name}" if name else expr.sql

    def _order_by(self, scope: Sequence[Source], sources: Sequence[Source]) -> str:
        """An order that has no ties but among equal rows."""
        r = self.r
        terms = []
        for _ in range(r.choice((0, 1, 1, 2))):
            term = self.expressions.value(scope, 1).sql
            if term.isdigit() or term.startswith(("'", "-", "\x10", "x'", "NULL", "1", "2")):
                continue
            collate = r.choice(("", "", "", " COLLATE NOCASE", " COLLATE BINARY"))
            terms.append(term + collate + r.choice(("", "", " DESC", " ASC", " NULLS LAST", " DESC NULLS FIRST")))
        keys = [key for source in sources for key in source.key]
        r.shuffle(keys)
        terms += [key + r.choice(("", "", " DESC")) for key in keys]
        return f" ORDER BY {', '.join(terms)}" if terms else ""

    def _limit(self) -> str:
        r = self.r
        count = r.choice(
            (
                *(self.values.add(r.choice((0, 1, 2, 3, 5, 10))), self.values.add(r.randint(1, 4))),
                *(f"{r.randint(0, 2)} + 1", "-1", f"(SELECT count(*) FROM {r.choice(self.tables).table}) / 2"),
            )
        )
        pick = r.random()
        if pick < 0.5:
            return f" LIMIT {count}"
        offset = self.values.add(r.choice((0, 1, 2, 4)))
        return f" LIMIT {count} OFFSET {offset}" if pick < 0.9 else f" LIMIT {offset}, {count}"

    # -- aggregates ----------------------------------------------------------------------------------------------

    def aggregate(self, scope: Sequence[Source], keys: Sequence[str] = ()) -> tuple[Expr, str]:
        """Return an aggregate over the scope, and how it compares."""
        r = self.r
        a = self.expressions.column(scope) if r.random() < 0.75 else self.expressions.value(scope, 2)
        simple = "(SELECT" not in a.sql
        if not simple:
            a = self.expressions.column(scope)
        filtered = ""
        if r.random() < 0.15:
            with self._inside():
                filtered = f" FILTER (WHERE {self.expressions.predicate(scope, 3)})"
        pick = r.random()
        whole = Expr("", kind="int", identity=True, exact=True)
        if pick < 0.2:
            return replace(whole, sql=f"count(*){filtered}"), "exact"
        if pick < 0.32:
            return replace(whole, sql=f"count({a.sql}){filtered}"), "exact"
        if pick < 0.44:
            return replace(whole, sql=f"count(DISTINCT {a.sql}){filtered}"), "exact"
        if pick < 0.62:
            name = r.choice(("min", "max"))
            if not (a.identity or self.top_level):
                return replace(whole, sql=f"count({a.sql}){filtered}"), "exact"
            distinct = r.choice(("", "", "", "DISTINCT "))
            return a.named(f"{name}({distinct}{a.sql}){filtered}"), a.mode
        if pick < 0.92:
            return self._sum(a, filtered)
        if self.top_level and a.identity:
            distinct = r.choice(("", "", "DISTINCT "))
            separator = "" if distinct else f", '{SEPARATOR}'"
            sql = f"group_concat({distinct}{a.sql}{separator}){filtered}"
            return a.text(sql), f"concat:{',' if distinct else SEPARATOR}"
        return replace(whole, sql=f"count(*){filtered}"), "exact"

    def _sum(self, a: Expr, filtered: str) -> tuple[Expr, str]:
        r = self.r
        name = r.choice(("sum", "sum", "avg", "total"))
        distinct = "DISTINCT " if a.identity and r.random() < 0.2 else ""
        sql = f"{name}({distinct}{a.sql}){filtered}"
        kind = "int" if name == "sum" and a.kind == "int" else "real"
        if a.exact and not a.big:
            exact = name != "avg"
            return Expr(
                sql, kind=kind if a.kind in ("int", "real") else "mixed", identity=kind == "int", exact=exact
            ), ("exact")
        if name == "sum" and a.kind == "int" and a.big and a.sql.count(".") == 1 and " " not in a.sql:
            return Expr(sql, kind="int", identity=True, big=True), "exact"
        if not self.top_level or a.big:
            return Expr(f"count({a.sql}){filtered}", kind="int", identity=True, exact=True), "exact"
        scale = f"total(abs({a.sql})){filtered}"
        return Expr(f"\x01{sql}\x02{scale}\x03", kind="real"), "approx"

    # -- FROM ----------------------------------------------------------------------------------------------------

    def from_clause(self, outer: Sequence[Source] = (), most: int = 3) -> tuple[str, list[Source]]:
        r = self.r
        text, sources = "", list[Source]()
        count = min(most, r.choice((1, 1, 1, 1, 2, 2, 2, 3)))
        size = 1
        for number in range(count):
            piece, source = self._source(small=number > 1, before=sources)
            if not number:
                text, sources, size = piece, [source], max(1, source.rows)
                continue
            size *= max(1, source.rows)
            join, constraint, merged = self._join(sources, source, outer, size)
            text += f"{join}{piece}{constraint}"
            sources.append(merged)
            if size > TOO_MANY * 10:
                break
        return text, sources

    def _key_of_other(self, a: Source, b: Source) -> str:
        """Return the equality of one's key and another column that compares alike: rows that a shard could own."""
        r = self.r
        one, other = (a, b) if r.random() < 0.5 else (b, a)
        key = next((c.expr for c in one.columns if c.name == "k"), None)
        if key is None:
            return ""
        alike = (key.affinity, key.collation)
        found = [c.expr for c in other.columns if c.name != "k" and (c.expr.affinity, c.expr.collation) == alike]
        return f"{key.sql} = {r.choice(found).sql}" if found else ""

    def _join(
        self, sources: Sequence[Source], source: Source, outer: Sequence[Source], size: int
    ) -> tuple[str, str, Source]:
        r = self.r
        pick = r.random()
        words = [" JOIN ", " INNER JOIN ", " LEFT JOIN ", " LEFT OUTER JOIN "]
        if sqlite3.sqlite_version_info >= (3, 39) and (self.top_level or full_joins_work()):
            words += [" RIGHT JOIN ", " FULL JOIN "]
        names = [{c.name for c in s.columns} for s in sources]
        common = set.union(*names) & {c.name for c in source.columns}
        everywhere = [n for n in common if sum(n in known for known in names) == 1 and n.isidentifier()]
        if pick < 0.08 and size <= TOO_MANY:
            return r.choice((", ", " CROSS JOIN ")), "", source
        if pick < 0.16 and len(sources) == 1 and "k" in everywhere:
            return f" NATURAL{r.choice(words)}", "", source
        if pick < 0.28 and everywhere:
            return r.choice(words), f" USING ({r.choice(sorted(everywhere))})", source
        a, b = r.choice(sources), source
        keys = [next((c.expr.sql for c in one.columns if c.name == "k"), "") for one in (a, b)]
        if all(keys) and r.random() < (0.7 if self.simple else 0.2):
            more = f" AND {self.expressions.predicate([*sources, source], 2)}" if r.random() < 0.2 else ""
            return r.choice(words), f" ON {' = '.join(keys)}{more}", source
        tie = self._key_of_other(a, b) if r.random() < 0.3 else ""
        if tie:
            return r.choice(words), f" ON {tie}", source
        left = self.expressions.column([a])
        right = next((c.expr for c in b.columns if f"{a.alias}.{c.ref}" == left.sql), None)
        if right is None or r.random() < 0.3:
            right = self.expressions.column([b])
        on = f"{left.sql} = {right.sql}" if r.random() < 0.7 else f"{right.sql} = {left.sql}"
        if r.random() < 0.12 and size <= TOO_MANY:
            on = f"{left.sql} {r.choice(('<', '>=', 'IS', '<>'))} {right.sql}"
        if r.random() < 0.2:
            on += f" AND {self.expressions.predicate([*sources, source], 2)}"
        if pick < 0.4:
            return r.choice((", ", " JOIN ", " CROSS JOIN ")), f" ON {on}", source
        return r.choice(words), f" ON {on}", source

    def _source(self, small: bool = False, before: Sequence[Source] = ()) -> tuple[str, Source]:
        r = self.r
        pick = r.random()
        if self.simple:
            pick = r.choice((0.1, 0.7, 0.7, 0.7, 0.8, 0.9))
        if self.ctes and pick < 0.5:
            found = r.choice(self.ctes)
            alias = self._alias()
            return f"{found.alias} {alias}", found.aliased(alias)
        if self.views and pick > 0.86:
            found = r.choice(self.views)
            alias = self._alias()
            return f"{found.table} AS {alias}", found.aliased(alias)
        if 0.78 < pick < 0.86 and self._number < 12:
            return self._subquery()
        if 0.75 < pick <= 0.78:
            alias = self._alias("j")
            text = self.values.add(r.choice(("[1,2,3]", '["a",2,null]', '{"a":1,"b":[2]}')))
            function = r.choice(("json_each", "json_each", "json_tree"))
            if before and r.random() < 0.4:
                # Of each row of what stands before it.
                text = f"'[' || length({self.expressions.column(before).sql}) || ',\"a\"]'"
            key = Named("key", learn([0, 1], "BINARY", "BLOB", f"{alias}.key"))
            atom = Named("atom", learn([1, "a"], "BINARY", "BLOB", f"{alias}.atom"))
            return f"{function}({text}) {alias}", Source(alias, (key, atom), (f"{alias}.id",), 3)
        tables = [t for t in self.tables if t.rows <= 12] if small else self.tables
        found = r.choice(tables or self.tables)
        alias = self._alias()
        # SQLite can't attach a file whose views say main., so these don't.
        main = "main." if r.random() < 0.03 and self.values.allowed else ""
        return f"{main}{found.table}{r.choice((' ', ' AS '))}{alias}", found.aliased(alias)

    def _subquery(self) -> tuple[str, Source]:
        with self._inside():
            query = self.query(limit=True)
        if not query.determined:
            raise Skip
        alias = self._alias("s")
        names = tuple(f"o{n}" for n in range(len(query.columns)))
        return f"({query.sql}) {'AS ' if self.r.random() < 0.3 else ''}{alias}", self._derived(alias, query, names)

    def _derived(self, alias: str, query: Query, names: Sequence[str], prefix: Sequence[str] = ()) -> Source:
        """Learn what a subquery's columns hold by running it."""
        before = f"WITH RECURSIVE {', '.join(prefix)} " if prefix else ""
        if query.shape == "recursive":
            whole = f"{alias}({', '.join(names)}) AS ({query.sql})"
            before = f"WITH RECURSIVE {', '.join([*prefix, whole])} "
            text = f"{before}SELECT * FROM {alias}"
        else:
            if self.ctes and not prefix:
                # Its facts are unknown without the CTEs around it: run with all of them would repeat the work.
                return self._unknown(alias, query, names)
            text = f"{before}SELECT * FROM ({query.sql})"
        bound, parameters = self.values.bind(text, "?")
        self.learned_from_values = self.learned_from_values or bool(parameters)
        try:
            rows = self.plain.execute(bound, parameters).fetchmany(TOO_MANY)
        except sqlite3.Error as error:
            raise Skip(str(error)) from error
        if len(rows) >= 400:
            raise Skip
        columns = []
        for number, (name, column) in enumerate(zip(names, query.columns, strict=True)):
            values = [row[number] for row in rows]
            collation = column.expr.collation
            columns.append(Named(name, learn(values, collation, column.expr.affinity, f"{alias}.{name}")))
        key = tuple(f"quote({alias}.{name})" for name in names)
        return Source(alias, tuple(columns), key, len(rows))

    def _unknown(self, alias: str, query: Query, names: Sequence[str]) -> Source:
        columns = tuple(
            Named(n, Expr(f"{alias}.{n}", c.expr.collation, big=True))
            for n, c in zip(names, query.columns, strict=True)
        )
        return Source(alias, columns, tuple(f"quote({alias}.{name})" for name in names), 30)

    # -- subqueries in expressions -------------------------------------------------------------------------------

    def _inner_from(self, outer: Sequence[Source]) -> tuple[str, list[Source], str]:
        """A small FROM, and a condition that ties it to the outer rows; without it where it sees none of them."""
        r = self.r
        if outer and r.random() < 0.4:
            outer = ()
        if r.random() < 0.12 and len(outer) < 4:
            text, sources = self.from_clause(outer, most=2)
        else:
            found = r.choice(self.tables + self.ctes)
            alias = self._alias()
            text, sources = f"{found.table or found.alias} {alias}", [found.aliased(alias)]
        conditions = []
        if outer and r.random() < 0.75:
            left = self.expressions.column(sources)
            right = self.expressions.column(outer)
            conditions.append(f"{left.sql} {r.choice(('=', '=', '=', '=', '<', '>=', 'IS'))} {right.sql}")
        if r.random() < 0.35 or not conditions:
            conditions.append(self.expressions.predicate([*outer, *sources], 2))
        return text, sources, " AND ".join(conditions)

    def inner(self, outer: Sequence[Source], depth: int, width: int) -> str:
        """A subquery for EXISTS and IN: which rows it has is fixed, their order is not needed."""
        r = self.r
        with self._inside():
            text, sources, where = self._inner_from(outer)
            made = self.expressions.column if r.random() < 0.7 else partial(self.expressions.value, depth=2)
            picked = [made(sources).sql for _ in range(width)]
            sql = f"SELECT {r.choice(('', '', 'DISTINCT '))}{', '.join(picked)} FROM {text} WHERE {where}"
            if r.random() < 0.12:
                sql += self._order_by(sources, sources) if "DISTINCT" not in sql else ""
                if "ORDER BY" in sql:
                    sql += self._limit()
            elif r.random() < 0.08:
                other = r.choice(self.tables)
                alias = self._alias()
                more = [self.expressions.column([other.aliased(alias)]).sql for _ in range(width)]
                sql += f" {r.choice(('UNION', 'UNION ALL', 'EXCEPT', 'INTERSECT'))} "
                sql += f"SELECT {', '.join(more)} FROM {other.table} {alias}"
            return sql

    def scalar(self, outer: Sequence[Source], depth: int) -> Expr:
        """A subquery that gives one value."""
        r = self.r
        with self._inside():
            text, sources, where = self._inner_from(outer)
            if r.random() < 0.7:
                expr, _ = self.aggregate(sources[-1:])
                condition = f" WHERE {where}" if r.random() < 0.9 else ""
                return replace(expr, sql=f"(SELECT {expr.sql} FROM {text}{condition})", collation="BINARY")
            a = self.expressions.column(sources)
            order = self._order_by(sources, sources)
            sql = f"(SELECT {a.sql} FROM {text} WHERE {where}{order} LIMIT 1)"
            return Expr(sql, a.collation, a.kind, False, a.exact, a.big)


def describe_table(plain: Any, name: str, collations: dict[str, str], key: Sequence[str], rowid: bool) -> Source:
    """Return a base table or view as a source, with what its rows tell."""
    rows = plain.execute(f"SELECT * FROM {name}").fetchall()
    found = plain.execute(f'PRAGMA table_xinfo("{name}")').fetchall()
    columns = []
    for number, row in enumerate(found):
        values = [values[number] for values in rows]
        expr = learn(values, collations.get(row[1], "BINARY"), affinity(row[2]), "")
        columns.append(Named(row[1], expr))
    made = Source("_", tuple(columns), tuple(f"_.{part}" for part in key), len(rows), name, rowid, rowid)
    return made.aliased("_")
