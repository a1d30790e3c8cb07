"""Random window functions and compound SELECTs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diff_facts import Expr, Named, Source
from diff_from import Query, Skip, Sources


class Windows(Sources):
    """Queries whose windows have no ties that show, and UNION, INTERSECT, EXCEPT and VALUES."""

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
            keys_too = [c.expr.sql for s in sources for c in s.columns if c.name == "k"] or [a.sql]
            over = r.choice(keys_too) if r.random() < 0.4 else self.expressions.column(sources).sql
            partition = f"PARTITION BY {over} "
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
