"""Rarer forms of SELECTs, laid over those that the other grammars make: expressions, FROM clauses and whole queries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from diff_expressions import COMPARISONS, Expressions, quoted
from diff_facts import Expr, Named, Source
from diff_from import TOO_MANY, Query, Skip
from diff_select import Selects

from shardlite.driver import sqlite3

HAS_DISTINCT_FROM = sqlite3.sqlite_version_info >= (3, 39)
ROWIDS = ("rowid", "_rowid_", "oid")


class RareExpressions(Expressions):
    """Rowids, row values, VALUES, JSON, nested WITH and compound subqueries."""

    selects: RareSelects

    # -- predicates ----------------------------------------------------------------------------------------------

    def predicate(self, scope: Sequence[Source], depth: int = 0) -> str:
        r = self.r
        if r.random() > 0.14:
            return super().predicate(scope, depth)
        makers = [self._of_rowid, self._in_values, self._row_between, self._distinct_from, self._escaped]
        if depth < 2 and not self.selects.simple:
            makers += [self._in_cte, self._row_is_subquery, self._exists, self._in_json, self._between_subqueries]
        return r.choice(makers)(scope, depth) or super().predicate(scope, depth)

    def _of_rowid(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        found = [source for source in scope if source.rowid]
        if not found:
            return ""
        rowid = f"{r.choice(found).alias}.{r.choice(ROWIDS)}"
        one, two = (self.values.add(r.choice((0, 1, 2, 3, 5, 8, 12, "2", 3.0, None))) for _ in range(2))
        return r.choice(
            (
                f"{rowid} {r.choice(COMPARISONS)} {one}",
                f"{rowid} IN ({one}, {two}, 4)",
                f"{rowid} BETWEEN {one} AND {two}",
                f"{rowid} {r.choice(('=', '<', '>='))} {self.column(scope).sql}",
            )
        )

    def _in_values(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        a, b = self.column(scope), self.column(scope)
        membership = r.choice(("IN", "NOT IN"))
        if r.random() < 0.4:
            rows = ", ".join(f"({self.constant(a).sql})" for _ in range(r.randint(1, 3)))
            return f"{a.sql} {membership} (VALUES {rows})"
        rows = ", ".join(f"({self.constant(a).sql}, {self.constant(b).sql})" for _ in range(r.randint(1, 3)))
        return f"({a.sql}, {b.sql}) {membership} (VALUES {rows})"

    def _row_between(self, scope: Sequence[Source], depth: int) -> str:
        a, b = self.column(scope), self.column(scope)
        low, high = (f"({self.constant(a).sql}, {self.constant(b).sql})" for _ in range(2))
        return f"({a.sql}, {b.sql}) {self.r.choice(('', 'NOT '))}BETWEEN {low} AND {high}"

    def _distinct_from(self, scope: Sequence[Source], depth: int) -> str:
        a = self.column(scope)
        b = self.constant(a) if self.r.random() < 0.6 else self.column(scope)
        return f"{a.sql} IS {self.r.choice(('', 'NOT '))}DISTINCT FROM {b.sql}" if HAS_DISTINCT_FROM else ""

    def _escaped(self, scope: Sequence[Source], depth: int) -> str:
        pattern = self.values.add(self.r.choice(("a!%", "%!_%", "a!!%", "A%")))
        return f"{self.column(scope).sql} LIKE {pattern} ESCAPE '!'"

    def _in_cte(self, scope: Sequence[Source], depth: int) -> str:
        found = [source for source in self.selects.ctes if len(source.columns) == 1]
        if not found:
            return ""
        return f"{self.column(scope).sql} {self.r.choice(('IN', 'NOT IN'))} {self.r.choice(found).alias}"

    def _row_is_subquery(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        a, b = self.column(scope), self.column(scope)
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            picked = f"{self.column(sources).sql}, {self.column(sources).sql}"
            order = self.selects._order_by(sources, sources)
        inner = f"SELECT {picked} FROM {text} WHERE {where}{order} LIMIT 1"
        return f"({a.sql}, {b.sql}) {r.choice(('=', '<', '>=', '<>', 'IS'))} ({inner})"

    def _exists(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            a = self.column(sources)
            inner = f"SELECT {r.choice(('1', '*', a.sql))} FROM {text} WHERE {where}"
            pick = r.random()
            if pick < 0.4:
                aggregate, _ = self.selects.aggregate(sources[-1:])
                inner = f"SELECT {a.sql} FROM {text} WHERE {where} GROUP BY {a.sql} HAVING {aggregate.sql} > 1"
            elif pick < 0.6:
                other, more, condition = self.selects._inner_from(scope)
                inner = f"SELECT {a.sql} FROM {text} WHERE {where} {r.choice(('UNION ALL', 'EXCEPT', 'INTERSECT'))} "
                inner += f"SELECT {self.column(more).sql} FROM {other} WHERE {condition}"
            elif pick < 0.75:
                inner += f" LIMIT {r.randint(0, 2)} OFFSET {r.randint(0, 2)}"
        return f"{r.choice(('', 'NOT '))}EXISTS ({inner})"

    def _in_json(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        listed = self.values.add(r.choice(('[1,2,"a"]', "[3,4,null]", '["b","1",2.5]', "[]")))
        return f"{self.column(scope).sql} {r.choice(('IN', 'NOT IN'))} (SELECT value FROM json_each({listed}))"

    def _between_subqueries(self, scope: Sequence[Source], depth: int) -> str:
        low, high = (self.selects.scalar(scope, depth + 1).sql for _ in range(2))
        return f"{self.column(scope).sql} BETWEEN {low} AND {high}"

    # -- values --------------------------------------------------------------------------------------------------

    def value(self, scope: Sequence[Source], depth: int = 0) -> Expr:
        if depth > 2 or self.r.random() > 0.12:
            return super().value(scope, depth)
        makers = [self._simple_case, self._json_of, self._json_extracted]
        if depth < 2 and not self.selects.simple:
            makers += [
                self._with_scalar,
                self._compound_scalar,
                self._json_grouped,
                self._counted_derived,
                self._nested,
            ]
        return self.r.choice(makers)(scope, depth)

    def _simple_case(self, scope: Sequence[Source], depth: int) -> Expr:
        a, b = self.column(scope), self.value(scope, depth + 1)
        arms = " ".join(f"WHEN {self.constant(a).sql} THEN {self.constant().sql}" for _ in range(self.r.randint(1, 2)))
        last = f" ELSE {b.sql}" if self.r.random() < 0.7 else ""
        return Expr(f"CASE {a.sql} {arms}{last} END", b.collation, big=True)

    def _json_of(self, scope: Sequence[Source], depth: int) -> Expr:
        a, b = self.column(scope), self.column(scope)
        return a.text(
            self.r.choice(
                (
                    f"json_object('a', {quoted(a)}, 'b', {quoted(b)})",
                    f"json_array({quoted(a)}, {quoted(b)}) ->> 1",
                    f"(json_array({quoted(a)}) -> '$[0]')",
                    f"json_type(json_array(length({a.sql})), '$[0]')",
                    f"json_set('{{\"a\":1}}', '$.b', {quoted(a)})",
                    f"json_remove(json_array(1, {quoted(a)}, {quoted(b)}), '$[0]')",
                )
            )
        )

    def _json_extracted(self, scope: Sequence[Source], depth: int) -> Expr:
        """What is no JSON is left out: an error is raised where a row is met, and which rows are met is open."""
        r = self.r
        text = f"CAST({self.column(scope).sql} AS TEXT)"
        got = r.choice(
            (
                f"json_extract({text}, '$.a')",
                f"{text} ->> '$.b'",
                f"{text} -> 0",
                f"json_type({text})",
                f"json_array_length({text})",
            )
        )
        return Expr(f"CASE WHEN json_valid({text}) THEN {got} END", big=True)

    def _with_scalar(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            a = self.column(sources)
            name = self.selects._alias("c")
            hint = r.choice(("", "", " MATERIALIZED", " NOT MATERIALIZED"))
            given = f"WITH {name}(o) AS{hint} (SELECT {a.sql} FROM {text} WHERE {where})"
        if r.random() < 0.5:
            return a.number(f"({given} SELECT count(DISTINCT o) FROM {name})")
        return a.text(f"({given} SELECT max(quote(o)) FROM {name} WHERE o IS NOT NULL)")

    def _compound_scalar(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        with self.selects._inside():
            arms = []
            for _ in range(2):
                text, sources, where = self.selects._inner_from(scope)
                a = self.column(sources)
                arms.append(f"SELECT quote({a.sql}) FROM {text} WHERE {where}")
        operator = r.choice(("UNION", "UNION ALL", "INTERSECT", "EXCEPT"))
        return a.text(f"({arms[0]} {operator} {arms[1]} ORDER BY 1{r.choice(('', ' DESC'))} LIMIT 1)")

    def _json_grouped(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            a = self.column(sources)
        function = r.choice((f"json_group_array(quote({a.sql}))", f"json_group_object(quote({a.sql}), 1)"))
        value = "value" if "array" in function else "key"
        inner = f"SELECT {function} FROM {text} WHERE {where}"
        return a.text(f"(SELECT {r.choice(('max', 'min', 'count'))}({value}) FROM json_each(({inner})))")

    def _counted_derived(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            a, b = self.column(sources), self.column(sources)
        inner = r.choice(
            (
                f"SELECT DISTINCT quote({a.sql}) AS o FROM {text} WHERE {where}",
                f"SELECT {a.sql} AS o FROM {text} WHERE {where}",
                f"SELECT quote({a.sql}) AS o, count(*) FROM {text} WHERE {where} GROUP BY quote({a.sql})",
                f"SELECT rank() OVER (ORDER BY {b.sql}) AS o FROM {text} WHERE {where}",
            )
        )
        return a.number(f"(SELECT count({r.choice(('*', 'o', 'DISTINCT o'))}) FROM ({inner}))")

    def _nested(self, scope: Sequence[Source], depth: int) -> Expr:
        """A subquery in a subquery, which looks at rows of both around it."""
        r = self.r
        with self.selects._inside():
            text, sources, where = self.selects._inner_from(scope)
            inner, below, condition = self.selects._inner_from([*scope, *sources])
        a = self.column(below)
        of = r.choice(("count(*)", f"count({a.sql})", f"max(quote({a.sql}))"))
        of = f"quote((SELECT {of} FROM {inner} WHERE {condition})) || quote({self.column(sources).sql})"
        return a.text(f"(SELECT max({of}) FROM {text} WHERE {where})")


class RareSelects(Selects):
    """Parentheses and VALUES in FROM, GROUP BY by name and number, RANGE frames, chained windows, nested WITH."""

    def _begin(self) -> None:
        super()._begin()
        self.expressions = RareExpressions(self.r, self.values, self)
        self._right_before = False

    def query(self, outer: Sequence[Source] = (), columns: int | None = None, limit: bool = True) -> Query:
        r = self.r
        if r.random() > 0.16:
            return super().query(outer, columns, limit)
        makers = [self._grouped_by_name, self._only_having, self._beside_extreme, self._ranged]
        if not self.simple and not (self.top_level and self.ctes):
            makers += [self._nested_with, self._shadowing]
        return r.choice(makers)(outer, columns, limit)

    # -- FROM ----------------------------------------------------------------------------------------------------

    def from_clause(self, outer: Sequence[Source] = (), most: int = 3) -> tuple[str, list[Source]]:
        pick = self.r.random()
        before, self._right_before = self._right_before, False
        try:
            found = None
            if most >= 3 and pick < 0.08:
                found = self._parenthesised(outer) if pick < 0.05 else self._with_values(outer)
            return found or super().from_clause(outer, most)
        finally:
            self._right_before = before

    def _join(
        self, sources: Sequence[Source], source: Source, outer: Sequence[Source], size: int
    ) -> tuple[str, str, Source]:
        join, constraint, merged = super()._join(sources, source, outer, size)
        if self._right_before and ("USING" in constraint or "NATURAL" in join):
            # SQLite 3.40 takes a NOT NULL column that a RIGHT JOIN made NULL for equal to NULL here.
            raise Skip
        right = "RIGHT" in join or "FULL" in join
        if right and ("LIKE" in constraint or "GLOB" in constraint):
            # SQLite 3.40 looks only at the rows in an index's range for the pattern, and leaves the others out.
            raise Skip
        self._right_before = self._right_before or right
        if constraint.startswith(" ON ") and not self.simple and self.r.random() < 0.06:
            constraint += f" AND {self.expressions._with_subquery([*sources, source], 1)}"
        return join, constraint, merged

    def _parenthesised(self, outer: Sequence[Source]) -> tuple[str, list[Source]] | None:
        first, a = self._source(small=True)
        second, b = self._source(small=True)
        third, c = self._source(small=True)
        if max(1, a.rows) * max(1, b.rows) * max(1, c.rows) > TOO_MANY:
            return None
        join, on, a = self._join([b], a, outer, 10)
        inner, inner_on, c = self._join([b], c, outer, 10)
        if not on.startswith(" ON") or not inner_on.startswith(" ON") or "," in join or "RIGHT" in join:
            return None
        # Names that stand in the parentheses have no rowid outside of them.
        b, c = (replace(s, rowid=False, key=tuple(f"quote({e.expr.sql})" for e in s.columns)) for s in (b, c))
        return f"{first}{join}({second}{inner}{third}{inner_on}){on}", [a, b, c]

    def _with_values(self, outer: Sequence[Source]) -> tuple[str, list[Source]] | None:
        r = self.r
        piece, source = self._source(small=True)
        alias = self._alias("s")
        column = self.expressions.column([source])
        rows = [(self.expressions.constant(column), self.expressions.constant()) for _ in range(r.randint(1, 3))]
        listed = ", ".join(f"({a.sql}, {b.sql})" for a, b in rows)
        names = ("column1", "column2")
        made = tuple(Named(n, Expr(f"{alias}.{n}", big=True)) for n in names)
        values = Source(alias, made, tuple(f"quote({alias}.{n})" for n in names), len(rows))
        word = r.choice((" JOIN ", " LEFT JOIN ", " CROSS JOIN "))
        on = "" if "CROSS" in word else f" ON {alias}.column1 = {column.sql}"
        if r.random() < 0.3 and "LEFT" not in word:
            return f"(VALUES {listed}) {alias}{word}{piece}{on}", [values, source]
        return f"{piece}{word}(VALUES {listed}) {alias}{on}", [source, values]

    def aggregate(self, scope: Sequence[Source], keys: Sequence[str] = ()) -> tuple[Expr, str]:
        if self.simple or self.r.random() > 0.05 or len(scope) > 3:
            return super().aggregate(scope, keys)
        a = self.expressions.column(scope)
        inner = self.scalar(scope, 2).sql
        if self.r.random() < 0.5:
            return a.number(f"count({inner})"), "exact"
        return a.text(f"{self.r.choice(('min', 'max'))}(quote({a.sql}) || quote({inner}))"), "exact"

    # -- queries -------------------------------------------------------------------------------------------------

    def _grouped_by_name(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        """GROUP BY and ORDER BY by the name or the number of a result column."""
        r = self.r
        text, sources = self.from_clause(outer)
        group = self.expressions.column(sources)
        if r.random() < 0.4:
            group = group.text(f"{r.choice(('quote', 'typeof', 'lower'))}({group.sql})")
        elif r.random() < 0.2 and not self.simple:
            group = group.text(f"quote({self.scalar([*outer, *sources], 1).sql})")
        if not (group.identity or self.top_level):
            raise Skip
        outputs = [(group, group.mode)] + [self.aggregate(sources) for _ in range(self._width(columns) - 1)]
        chosen = ", ".join(f"{e.sql} AS g{n}" for n, (e, _) in enumerate(outputs))
        where = self._where([*outer, *sources])
        sql = f"SELECT {chosen} FROM {text}{where} GROUP BY {r.choice(('g0', '1'))}"
        if r.random() < 0.3:
            sql += f" HAVING {r.choice(('g0 IS NOT NULL', 'count(*) > 1', 'g0 = ' + self.expressions.constant().sql))}"
        order = ""
        if r.random() < 0.6:
            words = r.choice(("", " DESC", " NULLS LAST", " DESC NULLS FIRST", " COLLATE BINARY"))
            sql += f" ORDER BY {r.choice(('g0', '1', 'g0 IS NULL, g0'))}{words}"
            order = "total" if words != " COLLATE BINARY" or group.collation == "BINARY" else ""
            if limit and order and r.random() < 0.4:
                sql += self._limit()
        made = tuple(Named(f"g{n}", e) for n, (e, _) in enumerate(outputs))
        return Query(sql, made, tuple(mode for _, mode in outputs), order, "grouped by name")

    def _only_having(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        text, sources = self.from_clause(outer)
        outputs = [self.aggregate(sources) for _ in range(self._width(columns))]
        chosen = ", ".join(f"{e.sql} AS o{n}" for n, (e, _) in enumerate(outputs))
        test = f"count(*) {self.r.choice(('>', '<', '<>'))} {self.values.add(self.r.choice((0, 1, 4, 8)))}"
        sql = f"SELECT {chosen} FROM {text}{self._where([*outer, *sources])} HAVING {test}"
        made = tuple(Named(f"o{n}", e) for n, (e, _) in enumerate(outputs))
        return Query(sql, made, tuple(mode for _, mode in outputs), "total", "only HAVING")

    def _beside_extreme(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        """Bare columns beside min or max of a column that has no value twice: they are of one row."""
        r = self.r
        if columns is not None or not self.top_level:
            raise Skip
        base = r.choice(self.tables)
        source = base.aliased(self._alias())
        unique = []
        for column in source.columns:
            told = f"SELECT count(*) = count(DISTINCT {column.ref} COLLATE {column.expr.collation}) FROM {base.table}"
            if column.expr.identity and self.plain.execute(told).fetchone()[0]:
                unique.append(column)
        if not unique:
            raise Skip
        extreme = f"{r.choice(('min', 'max'))}({r.choice(unique).expr.sql})"
        bare = [r.choice(source.columns).expr.sql for _ in range(r.randint(1, 3))]
        groups = [c.expr for c in source.columns if r.random() < 0.3][:2]
        chosen = [extreme, *bare, *(g.sql for g in groups)]
        r.shuffle(chosen)
        sql = f"SELECT {', '.join(chosen)} FROM {base.table} {source.alias}{self._where([*outer, source])}"
        sql += f" GROUP BY {', '.join(g.sql for g in groups)}" if groups else ""
        made = tuple(Named(f"o{n}", Expr("")) for n in range(len(chosen)))
        # Of a group's equal values, the bare row's is the one: nothing is open.
        modes = tuple("exact" if text == extreme else "rep:NOCASE+RTRIM" for text in chosen)
        return Query(sql, made, modes, "" if groups else "total", "beside extreme")

    def _ranged(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        """Frames by value, whose peers enter together; and windows that go on from another."""
        r = self.r
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        keys = [key for source in sources for key in source.key]
        picked = [self.expressions.value(scope, 1)]
        a, over = self.expressions.column(sources), self.expressions.column(sources)
        partition = f"PARTITION BY {self.expressions.column(sources).sql}" if r.random() < 0.5 else ""
        definition = f"w0 AS ({partition})"
        while len(picked) < self._width(columns) or len(picked) < 2:
            name = r.choice(("count(*)", f"count({a.sql})", "sum", "total", "min", "max"))
            if name in ("sum", "total") and (not a.exact or a.big):
                name = "count(*)"
            if name in ("min", "max") and not a.identity:
                name = "count(*)"
            function = name if "(" in name else f"{name}({a.sql})"
            start = r.choice(("UNBOUNDED PRECEDING", "1 PRECEDING", "0.5 PRECEDING", "CURRENT ROW", "1 FOLLOWING"))
            end = r.choice(("CURRENT ROW", "2 FOLLOWING", "UNBOUNDED FOLLOWING"))
            if start == "1 FOLLOWING" and end == "CURRENT ROW":
                end = "3 FOLLOWING"
            exclude = r.choice(
                ("", "", " EXCLUDE NO OTHERS", " EXCLUDE GROUP", " EXCLUDE TIES", " EXCLUDE CURRENT ROW")
            )
            frame = f"RANGE BETWEEN {start} AND {end}{exclude}"
            if r.random() < 0.4 and keys:
                sql = f"{function} OVER (w0 ORDER BY {', '.join(keys)} ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)"
            elif r.random() < 0.3:
                sql = f"{function} OVER w0"
            else:
                sql = f"{function} OVER (w0 ORDER BY {over.sql}{r.choice(('', ' DESC'))} {frame})"
            picked.append(Expr(sql, exact=False, big=True))
        if columns is not None:
            picked = picked[-columns:]
        names = self._names(picked)
        chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
        sql = f"SELECT {chosen} FROM {text}{self._where(scope, 0.4)} WINDOW {definition}"
        order = ""
        if r.random() < 0.4:
            sql += self._order_by(scope, sources)
            order = "total"
            if limit and r.random() < 0.4:
                sql += self._limit()
        made = tuple(Named(n, e) for n, e in zip(names, picked, strict=True))
        return Query(sql, made, ("exact",) * len(picked), order, "ranged")

    def _nested_with(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        return self._over_cte(self._alias("c"), columns)

    def _shadowing(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        """A common table expression by the name of a table, which its own query doesn't read."""
        return self._over_cte(self.r.choice(self.tables).table or "t0", columns)

    def _over_cte(self, name: str, columns: int | None) -> Query:
        r = self.r
        with self._inside():
            query = self.query(limit=r.random() < 0.3)
        if not query.determined or re.search(rf"\b{name}\b", query.sql):
            raise Skip
        names = tuple(f"n{n}" for n in range(len(query.columns)))
        source = self._derived(name, query, names)
        alias = self._alias()
        inner = source.aliased(alias)
        inner = replace(inner, table=None)
        picked = [self.expressions.column([inner]) for _ in range(self._width(columns))]
        shown = self._names(picked)
        chosen = ", ".join(self._as(e, n) for e, n in zip(picked, shown, strict=True))
        before, self.simple = self.simple, True  # a subquery that reads the table would mean the expression
        try:
            where = f" WHERE {self.expressions.predicate([inner], 2)}" if r.random() < 0.5 else ""
        finally:
            self.simple = before
        hint = r.choice(("", "", " MATERIALIZED", " NOT MATERIALIZED"))
        sql = f"WITH {name}({', '.join(names)}) AS{hint} ({query.sql}) SELECT {chosen} FROM {name} AS {alias}{where}"
        made = tuple(Named(n, e) for n, e in zip(shown, picked, strict=True))
        return Query(sql, made, ("exact",) * len(picked), "", "nested with")
