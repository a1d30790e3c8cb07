"""Random SELECTs whose answer one file fixes, or of which it is known what is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diff_case import Statement
from diff_expressions import APPROX, Values
from diff_facts import Expr, Named, Source
from diff_from import Query, Skip
from diff_windows import Windows


class Selects(Windows):
    """Statements: plain, grouped, distinct, windowed and compound queries, with and without WITH."""

    # -- whole statements ----------------------------------------------------------------------------------------

    def statement(self) -> Statement:
        """Return one SELECT that one file accepts (or, rarely, one that it refuses in its own words)."""
        while True:
            self._begin()
            if self.r.random() < 0.02:
                return self._bad()
            try:
                return self._finish(self._with_ctes(self.query))
            except Skip:
                continue

    def _finish(self, query: Query) -> Statement:
        style = self.r.choice(Values.STYLES)
        main, parameters = self.values.bind(APPROX.sub(r"\1", query.sql), style)
        scale = None
        if any(mode == "approx" for mode in query.modes):
            scale = self.values.bind(APPROX.sub(r"\2", query.sql), style)[0]
        varies = not self.learned_from_values
        return Statement(main, parameters, query.order, query.modes, scale, shape=query.shape, varies=varies)

    def _bad(self) -> Statement:
        """A statement with one mistake."""
        table = self.r.choice(self.tables)
        column = table.columns[0].ref
        name = table.table
        text, parameters = self.r.choice(
            (
                (f"SELECT nope FROM {name}", ()),
                (f"SELECT {column} FROM nope", ()),
                (f"SELECT {column} FROM {name} x JOIN {name} y", ()),
                (f"SELECT {column} FROM {name} WHERE {column} = ?", ()),
                (f"SELECT {column} FROM {name} WHERE {column} = ?", (1, 2)),
                (f"SELECT {column} FROM {name} WHERE {column} = :a", {"b": 1}),
                (f"SELECT {column} FROM {name} WHERE max({column}) = 1", ()),
                (f"SELECT {column} FROM {name} WERE 1", ()),
                (f"SELECT nosuch({column}) FROM {name}", ()),
                (f"SELECT substr({column}) FROM {name}", ()),
                (f"SELECT {column} FROM {name} UNION SELECT 1, 2", ()),
                (f"SELECT {column} FROM {name} ORDER BY 7", ()),
                (f"SELECT {column} FROM {name} WHERE ({column}, 1) = 1", ()),
                (f"SELECT count(*) FROM {name} GROUP BY nope", ()),
                (f"SELECT {column} COLLATE nope FROM {name} ORDER BY 1", ()),
                (f"SELECT row_number() FROM {name}", ()),
                (f"SELECT * FROM {name} WHERE {column} IN (SELECT 1, 2)", ()),
                ("SELECT abs(-9223372036854775808)", ()),
                (f"SELECT json('x') FROM {name} WHERE 0", ()),
            )
        )
        return Statement(text, parameters, order="", shape="bad")

    def _with_ctes(self, make: Callable[[], Query]) -> Query:
        r = self.r
        if r.random() > (0.15 if self.simple else 0.35):
            return make()
        parts = []
        recursive = False
        for _ in range(r.choice((1, 1, 2))):
            name = self._alias("c")
            if not self.simple and r.random() < 0.3:
                recursive = True
                query = self._recursive(name)
            else:
                with self._inside():
                    query = self.query(limit=r.random() < 0.3)
                if not query.determined:
                    raise Skip
            names = tuple(f"c{n}" for n in range(len(query.columns)))
            hint = r.choice(("AS", "AS", "AS MATERIALIZED", "AS NOT MATERIALIZED"))
            self.ctes.append(self._derived(name, query, names, prefix=parts))
            parts.append(f"{name}({', '.join(names)}) {hint} ({query.sql})")
        inner = make()
        words = "WITH RECURSIVE" if recursive else r.choice(("WITH", "WITH", "WITH RECURSIVE"))
        return replace(inner, sql=f"{words} {', '.join(parts)} {inner.sql}", shape=f"with {inner.shape}")

    def _recursive(self, name: str) -> Query:
        r = self.r
        if r.random() < 0.5:
            top = self.values.add(r.randint(1, 6))
            sql = f"SELECT 1, 'x' UNION ALL SELECT c0 + 1, c1 || 'x' FROM {name} WHERE c0 < {top}"
        else:
            base = r.choice([t for t in self.tables if t.rows <= 12] or self.tables)
            a, b = base.aliased(self._alias()), base.aliased(self._alias())
            whole = [n for n, c in enumerate(a.columns) if c.expr.kind == "int" and not c.expr.big]
            if not whole:
                raise Skip
            x, y = r.choice(whole), r.choice(whole)
            with self._inside():
                where = self.expressions.predicate([a], 2)
            sql = (
                f"SELECT {a.columns[x].expr.sql}, 0 FROM {base.table} {a.alias} WHERE {where} UNION "
                f"SELECT {b.columns[y].expr.sql}, c1 + 1 FROM {name} JOIN {base.table} {b.alias} "
                f"ON {b.columns[x].expr.sql} = c0 WHERE c1 < {r.randint(1, 4)}"
            )
        columns = (Named("c0", Expr("c0", kind="int")), Named("c1", Expr("c1")))
        return Query(sql, columns, ("exact", "exact"), shape="recursive")

    # -- queries -------------------------------------------------------------------------------------------------

    def query(self, outer: Sequence[Source] = (), columns: int | None = None, limit: bool = True) -> Query:
        r = self.r
        makers: list[tuple[float, Callable[..., Query]]] = [
            (0.46, self._plain),
            (0.2, self._grouped),
            (0.1, self._distinct),
            (0.12, self._windowed),
            (0.12, self._compound),
        ]
        pick = r.random()
        for weight, maker in makers:
            if pick < weight:
                return maker(outer, columns, limit)
            pick -= weight
        return self._plain(outer, columns, limit)

    def _plain(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        if r.random() < 0.03:
            return self._without_from(outer, columns)
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        if columns is None and self.top_level and r.random() < 0.2:
            listed = r.choice(("*", f"{sources[0].alias}.*", f"{sources[-1].alias}.*, 1"))
            chosen, names = listed, ()
            modes: tuple[str, ...] = ()
            picked: list[Expr] = []
        else:
            width = self._width(columns)
            picked = [self.expressions.value(scope) for _ in range(width)]
            if self.top_level and r.random() < 0.1:
                rowids = [s for s in sources if s.rowid]
                if rowids:
                    alias = r.choice(rowids).alias
                    picked[0] = Expr(f"{alias}.{r.choice(('rowid', '_rowid_', 'oid'))}", kind="int", identity=True)
            names = self._names(picked)
            chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
            modes = ("exact",) * width
        sql = f"SELECT {r.choice(('', '', '', 'ALL '))}{chosen} FROM {text}{self._where(scope)}"
        order: str | tuple[int, ...] = "scan" if len(sources) == 1 and sources[0].plain_rowid else ""
        pick = r.random()
        if pick < 0.4:
            sql += self._order_by(scope, sources)
            order = "total"
            if limit and r.random() < 0.5:
                sql += self._limit()
        elif pick < 0.5 and picked and self.top_level:
            which = r.randrange(len(picked))
            if picked[which].identity:
                sql += f" ORDER BY {which + 1}{r.choice(('', ' DESC', ' ASC', ' NULLS LAST', ' DESC NULLS FIRST'))}"
                order = (which,)
        made = tuple(Named(n, e) for n, e in zip(names, picked, strict=True))
        return Query(sql, made, modes, order, f"plain {len(sources)}")

    def _without_from(self, outer: Sequence[Source], columns: int | None) -> Query:
        """VALUES, or a SELECT of constants and of subqueries."""
        r = self.r
        width = self._width(columns)
        if r.random() < 0.4:
            rows = [", ".join(self.expressions.constant().sql for _ in range(width)) for _ in range(r.randint(1, 3))]
            named = tuple(Named(f"column{n + 1}", Expr("")) for n in range(width))
            return Query(f"VALUES {', '.join(f'({row})' for row in rows)}", named, ("exact",) * width, shape="values")
        picked = [self.scalar(outer, 1) if r.random() < 0.7 else self.expressions.constant() for _ in range(width)]
        names = self._names(picked)
        chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
        made = tuple(Named(n, e) for n, e in zip(names, picked, strict=True))
        return Query(f"SELECT {chosen}", made, ("exact",) * width, "total", "no FROM")

    def _grouped(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        width = self._width(columns)
        where = self._where(scope)
        groups: list[Expr] = []
        key = next((c.expr for c in sources[0].columns if c.name == "k"), None)
        if key is not None and r.random() < 0.3 and (key.identity or self.top_level):
            groups.append(key)
        for _ in range(r.choice((0, 1, 1, 1, 2))):
            group = self.expressions.column(sources) if r.random() < 0.8 else self.expressions.value(sources, 2)
            if "(SELECT" in group.sql or group.sql[0] in "0123456789'\x10-xN":
                continue
            if group.identity or self.top_level:
                groups.append(group)
        outputs: list[tuple[Expr, str]] = []
        for number in range(width):
            if groups and (number == 0 or r.random() < 0.25):
                group = r.choice(groups)
                outputs.append((group, group.mode))
            else:
                outputs.append(self.aggregate(sources) if r.random() < 0.9 else (self._over_groups(groups), "exact"))
        bare_column = self.top_level and len(sources) == 1 and sources[0].rowid and r.random() < 0.12
        if bare_column:
            # The row of the greatest rowid is one row: bare columns are its columns, if no other min or max is there.
            alias = sources[0].alias
            highest = Expr(f"{r.choice(('max', 'min'))}({alias}.rowid)", kind="int", identity=True)
            bare = r.choice(sources[0].columns).expr
            outputs = [(group, group.mode) for group in groups] + [(highest, "exact"), (bare, "exact")]
            if columns is not None:
                raise Skip
        names = self._names([e for e, _ in outputs])
        chosen = ", ".join(self._as(e, n) for (e, _), n in zip(outputs, names, strict=True))
        sql = f"SELECT {chosen} FROM {text}{where}"
        if groups:
            sql += f" GROUP BY {', '.join(g.sql for g in groups)}"
            if r.random() < 0.3 and not bare_column:
                sql += f" HAVING {self._having(sources, groups)}"
        order: str | tuple[int, ...] = "" if groups else "total"
        if groups and r.random() < 0.5:
            first, mode = self.aggregate(sources)
            leading = []
            if r.random() < 0.5 and mode == "exact" and not bare_column:
                leading.append(first.sql + r.choice(("", " DESC")))
            terms = leading + [g.sql + r.choice(("", " DESC", " NULLS LAST")) for g in groups]
            sql += f" ORDER BY {', '.join(terms)}"
            order = "total"
            if limit and r.random() < 0.5:
                sql += self._limit()
        made = tuple(Named(n, e) for n, (e, _) in zip(names, outputs, strict=True))
        return Query(sql, made, tuple(m for _, m in outputs), order, f"grouped {len(sources)}")

    def _over_groups(self, groups: Sequence[Expr]) -> Expr:
        """A window over the groups."""
        r = self.r
        function = r.choice(("rank()", "dense_rank()", "sum(count(*))", "count(*)", "max(count(*))"))
        partition = f"PARTITION BY {r.choice(groups).sql} " if groups and r.random() < 0.3 else ""
        order = r.choice(("", "ORDER BY count(*)", "ORDER BY count(*) DESC"))
        if groups and r.random() < 0.3:
            order = f"ORDER BY {r.choice(groups).sql}"
        return Expr(f"{function} OVER ({partition}{order})", kind="int", identity=True, exact=True)

    def _having(self, sources: Sequence[Source], groups: Sequence[Expr]) -> str:
        r = self.r
        with self._inside():
            expr, _ = self.aggregate(sources)
            if r.random() < 0.3:
                inner = r.choice(self.tables)
                alias = self._alias()
                condition = ""
                if r.random() < 0.5:
                    column, group = r.choice(inner.aliased(alias).columns).expr, r.choice(groups)
                    condition = f" WHERE {column.sql} = {group.sql}"
                    if column.affinity != group.affinity:
                        # One file gives the group's value as what its look-up in an index made of it: 2 for '2'.
                        condition = f" WHERE quote({column.sql}) = quote({group.sql})"
                return (
                    f"{expr.sql} {r.choice(('>', '<=', '<>'))} (SELECT count(*) FROM {inner.table} {alias}{condition})"
                )
            return f"{expr.sql} {r.choice(('>', '<', '=', '>=', 'IS NOT'))} {self.expressions.constant(expr).sql}"

    def _distinct(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        picked = []
        for _ in range(min(3, self._width(columns))):
            expr = self.expressions.value(scope, 1)
            if not (expr.identity or self.top_level):
                expr = expr.text(f"quote({expr.sql})")
            picked.append(expr)
        if columns is not None and len(picked) != columns:
            raise Skip
        names = self._names(picked)
        chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
        sql = f"SELECT DISTINCT {chosen} FROM {text}{self._where(scope)}"
        order = ""
        if r.random() < 0.5:
            numbers = list(range(1, len(picked) + 1))
            r.shuffle(numbers)
            sql += " ORDER BY " + ", ".join(f"{n}{r.choice(('', ' DESC', ' NULLS LAST'))}" for n in numbers)
            order = "total"
            if limit and r.random() < 0.5:
                sql += self._limit()
        made = tuple(Named(n, e) for n, e in zip(names, picked, strict=True))
        return Query(sql, made, tuple(e.mode for e in picked), order, f"distinct {len(sources)}")
