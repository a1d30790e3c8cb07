"""Random SELECTs whose answer one file fixes, or of which it is known what is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from diff_case import Statement
from diff_expressions import APPROX, Expressions, Values
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


class Skip(Exception):
    """SQLite doesn't take what was made up: another attempt."""


class Selects:
    """SELECTs over base tables and views of one schema, whose rows are in ``plain``."""

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

    def _alias(self, letter: str = "a") -> str:
        self._number += 1
        return f"{letter}{self._number}"

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
        return Statement(main, parameters, query.order, query.modes, scale, shape=query.shape)

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
        if r.random() > 0.2:
            return make()
        parts = []
        recursive = False
        for _ in range(r.choice((1, 1, 2))):
            name = self._alias("c")
            if r.random() < 0.3:
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
        return f" WHERE {self.expressions.predicate(scope)}" if self.r.random() < chance else ""

    def _plain(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
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

    def _grouped(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        width = self._width(columns)
        where = self._where(scope)
        groups: list[Expr] = []
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
                outputs.append(self.aggregate(sources))
        if self.top_level and len(sources) == 1 and sources[0].rowid and r.random() < 0.12:
            # The row of the greatest rowid is one row: bare columns are its columns.
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
            if r.random() < 0.3:
                sql += f" HAVING {self._having(sources, groups)}"
        order: str | tuple[int, ...] = "" if groups else "total"
        if groups and r.random() < 0.5:
            first, mode = self.aggregate(sources)
            leading = []
            if r.random() < 0.5 and mode == "exact":
                leading.append(first.sql + r.choice(("", " DESC")))
            terms = leading + [g.sql + r.choice(("", " DESC", " NULLS LAST")) for g in groups]
            sql += f" ORDER BY {', '.join(terms)}"
            order = "total"
            if limit and r.random() < 0.5:
                sql += self._limit()
        made = tuple(Named(n, e) for n, (e, _) in zip(names, outputs, strict=True))
        return Query(sql, made, tuple(m for _, m in outputs), order, f"grouped {len(sources)}")

    def _having(self, sources: Sequence[Source], groups: Sequence[Expr]) -> str:
        r = self.r
        with self._inside():
            expr, _ = self.aggregate(sources)
            if r.random() < 0.3:
                inner = r.choice(self.tables)
                alias = self._alias()
                condition = ""
                if r.random() < 0.5:
                    column = r.choice(inner.aliased(alias).columns)
                    condition = f" WHERE {column.expr.sql} = {r.choice(groups).sql}"
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

    # -- windows -------------------------------------------------------------------------------------------------

    def _windowed(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        text, sources = self.from_clause(outer)
        scope = [*outer, *sources]
        keys = [key for source in sources for key in source.key]
        named: list[str] = []
        picked: list[Expr] = []
        for number in range(self._width(columns)):
            if number == 0 and columns != 1:
                picked.append(self.expressions.value(scope, 1))
            else:
                picked.append(self._window_function(sources, keys, named))
        names = self._names(picked)
        chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
        sql = f"SELECT {chosen} FROM {text}{self._where(scope, 0.4)}"
        if named:
            sql += f" WINDOW {', '.join(named)}"
        order = ""
        if r.random() < 0.4:
            sql += self._order_by(scope, sources)
            order = "total"
            if limit and r.random() < 0.4:
                sql += self._limit()
        made = tuple(Named(n, e) for n, e in zip(names, picked, strict=True))
        return Query(sql, made, ("exact",) * len(picked), order, f"window {len(sources)}")

    def _window_function(self, sources: Sequence[Source], keys: Sequence[str], named: list[str]) -> Expr:
        r = self.r
        a = self.expressions.column(sources)
        whole = Expr("", kind="int", identity=True, exact=True)
        partition = ""
        if r.random() < 0.6:
            partition = f"PARTITION BY {self.expressions.column(sources).sql} "
        direction = r.choice(("", " DESC", " NULLS LAST"))
        some = f"ORDER BY {self.expressions.column(sources).sql}{direction}"
        total = f"{some}, {', '.join(keys)}" if r.random() < 0.7 else f"ORDER BY {', '.join(keys)}"
        pick = r.random()
        if pick < 0.2:
            name = r.choice(("rank()", "dense_rank()", "percent_rank()", "cume_dist()"))
            return replace(whole, sql=self._over(name, partition + some, named), kind="mixed", identity=False)
        if pick < 0.4:
            name = r.choice(("row_number()", f"ntile({r.randint(1, 4)})"))
            return replace(whole, sql=self._over(name, partition + total, named))
        if pick < 0.65:
            default = r.choice(("", f", {r.randint(1, 2)}", f", 1, {self.expressions.constant(a).sql}"))
            name = r.choice(
                (
                    *(f"lag({a.sql}{default})", f"lead({a.sql}{default})", f"first_value({a.sql})"),
                    *(f"last_value({a.sql})", f"nth_value({a.sql}, {r.randint(1, 3)})"),
                )
            )
            frame = self._frame(("ROWS",)) if "value" in name else ""
            return Expr(self._over(name, f"{partition}{total}{frame}", named), a.collation, exact=False, big=True)
        filtered = ""
        if r.random() < 0.2:
            with self._inside():
                filtered = f" FILTER (WHERE {self.expressions.predicate(sources, 3)})"
        name = r.choice(("count(*)", f"count({a.sql})", "sum", "avg", "total", "min", "max", "group_concat"))
        if name in ("sum", "avg", "total") and (not a.exact or a.big):
            name = f"count({a.sql})"
        if name in ("min", "max") and not a.identity:
            name = "count(*)"
        tied = name != "group_concat" and r.random() < 0.5
        if name == "group_concat":
            name = f"group_concat({a.sql}, ';')"
        elif "(" not in name:
            name = f"{name}({a.sql})"
        if tied:
            # Peers enter and leave these frames together, so the order among them doesn't show.
            definition = partition + some + r.choice(("", "", self._frame(("GROUPS",))))
        else:
            definition = partition + total + self._frame(("ROWS", "ROWS", "GROUPS"))
        if r.random() < 0.15:
            definition = partition if not name.startswith("group_concat") else definition
        return Expr(self._over(f"{name}{filtered}", definition.strip(), named), exact=False, big=True)

    def _over(self, function: str, definition: str, named: list[str]) -> str:
        if self.r.random() < 0.15:
            name = f"w{len(named)}"
            named.append(f"{name} AS ({definition})")
            return f"{function} OVER {name}"
        return f"{function} OVER ({definition})"

    def _frame(self, units: Sequence[str]) -> str:
        r = self.r
        if r.random() < 0.3:
            return ""
        start = r.choice(("UNBOUNDED PRECEDING", "1 PRECEDING", "2 PRECEDING", "CURRENT ROW"))
        end = r.choice(("CURRENT ROW", "1 FOLLOWING", "UNBOUNDED FOLLOWING"))
        exclude = r.choice(("", "", "", " EXCLUDE CURRENT ROW", " EXCLUDE GROUP", " EXCLUDE TIES"))
        return f" {r.choice(units)} BETWEEN {start} AND {end}{exclude}"

    # -- compounds -----------------------------------------------------------------------------------------------

    def _compound(self, outer: Sequence[Source], columns: int | None, limit: bool) -> Query:
        r = self.r
        width = columns if columns is not None else r.choice((1, 1, 2, 3))
        arms, sqls = [], []
        top, self.top_level = self.top_level, False
        try:
            for _ in range(r.choice((2, 2, 3))):
                if r.random() < 0.12:
                    rows = [", ".join(self.expressions.constant().sql for _ in range(width)) for _ in range(2)]
                    arms.append([Expr("", kind="mixed")] * width)
                    sqls.append(f"VALUES {', '.join(f'({row})' for row in rows)}")
                    continue
                text, sources = self.from_clause(outer, most=2)
                scope = [*outer, *sources]
                picked = [self.expressions.value(scope, 1) for _ in range(width)]
                arms.append(picked)
                names = [f"o{n}" for n in range(width)]
                chosen = ", ".join(self._as(e, n) for e, n in zip(picked, names, strict=True))
                sqls.append(f"SELECT {chosen} FROM {text}{self._where(scope)}")
        finally:
            self.top_level = top
        operators = [r.choice(("UNION", "UNION ALL", "UNION ALL", "INTERSECT", "EXCEPT")) for _ in sqls[1:]]
        # Clean: equal values are the same whatever collation or type compares them.
        clean = [
            all(arm[n].identity and arm[n].kind in ("int", "text") for arm in arms)
            and len({arm[n].kind for arm in arms}) == 1
            and {arm[n].collation for arm in arms} == {"BINARY"}
            for n in range(width)
        ]
        deduplicates = any(op != "UNION ALL" for op in operators)
        if deduplicates and not all(clean) and not self.top_level:
            raise Skip
        found = {c for arm in arms for e in arm for c in (e.collation,)}
        collation = "+".join(sorted(found))
        modes = tuple("exact" if ok or not deduplicates else f"rep:{collation}" for ok in clean)
        sql = sqls[0] + "".join(f" {op} {arm}" for op, arm in zip(operators, sqls[1:], strict=True))
        order: str | tuple[int, ...] = ""
        if r.random() < 0.5 and all(clean):
            numbers = list(range(1, width + 1))
            r.shuffle(numbers)
            sql += " ORDER BY " + ", ".join(f"{n}{r.choice(('', ' DESC'))}" for n in numbers)
            order = "total"
            if limit and r.random() < 0.5:
                sql += self._limit()
        made = tuple(Named(f"o{n}", Expr("")) for n in range(width))
        return Query(sql, made, modes, order, "compound")

    # -- FROM ----------------------------------------------------------------------------------------------------

    def from_clause(self, outer: Sequence[Source] = (), most: int = 3) -> tuple[str, list[Source]]:
        r = self.r
        text, sources = "", list[Source]()
        count = min(most, r.choice((1, 1, 1, 1, 2, 2, 2, 3)))
        size = 1
        for number in range(count):
            piece, source = self._source(small=number > 1)
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

    def _join(
        self, sources: Sequence[Source], source: Source, outer: Sequence[Source], size: int
    ) -> tuple[str, str, Source]:
        r = self.r
        pick = r.random()
        words = [" JOIN ", " INNER JOIN ", " LEFT JOIN ", " LEFT OUTER JOIN "]
        if sqlite3.sqlite_version_info >= (3, 39):
            words += [" RIGHT JOIN ", " FULL JOIN "]
        names = [{c.name for c in s.columns} for s in sources]
        common = set.union(*names) & {c.name for c in source.columns}
        everywhere = [n for n in common if sum(n in known for known in names) == 1 and n.isidentifier()]
        if pick < 0.08 and size <= TOO_MANY:
            return r.choice((", ", " CROSS JOIN ")), "", source
        if pick < 0.13 and len(sources) == 1 and "k" in everywhere:
            return f" NATURAL{r.choice(words)}", "", source
        if pick < 0.25 and everywhere:
            return r.choice(words), f" USING ({r.choice(sorted(everywhere))})", source
        a, b = r.choice(sources), source
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

    def _source(self, small: bool = False) -> tuple[str, Source]:
        r = self.r
        pick = r.random()
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
            key = Named("key", learn([0, 1], "BINARY", "BLOB", f"{alias}.key"))
            atom = Named("atom", learn([1, "a"], "BINARY", "BLOB", f"{alias}.atom"))
            return f"{function}({text}) {alias}", Source(alias, (key, atom), (f"{alias}.id",), 3)
        tables = [t for t in self.tables if t.rows <= 12] if small else self.tables
        found = r.choice(tables or self.tables)
        alias = self._alias()
        main = "main." if r.random() < 0.03 else ""
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
        """A small FROM, and a condition that ties it to the outer rows, mostly."""
        r = self.r
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
            picked = [self.expressions.column(sources).sql for _ in range(width)]
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
