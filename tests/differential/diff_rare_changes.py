"""Rarer forms of changes, laid over those that the other grammar makes: WITH, joins, row values, several conflicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from diff_case import Statement
from diff_changes import CONFLICTS, Changes
from diff_facts import Source
from diff_from import Skip
from diff_rare import RareSelects
from diff_schema import Column, Table


class RareChanges(Changes):
    """Changes whose rows are found, made or answered in unusual ways."""

    selects: RareSelects

    def __init__(self, r: Random, plain: Any, tables: Sequence[Table], sources: Sequence[Source], limits: bool) -> None:
        super().__init__(r, plain, tables, sources, limits)
        self.selects = RareSelects(r, plain, [s for s in sources if s.table != "log"])
        self.written_views: list[Table] = []
        """Tables that can be changed by way of a view."""

    def statement(self) -> Statement:
        r = self.r
        makers = (
            *(self._insert_with, self._update_with, self._delete_with, self._upserts, self._update_from_tables),
            *(self._update_rows, self._delete_rows, self._insert_joined, self._insert_grouped, self._aliased),
        )
        if self.written_views:
            makers += (self._through_view,) * 3
        while r.random() < 0.3:
            self.selects._begin()
            self.values, self.expressions = self.selects.values, self.selects.expressions
            self.selects.top_level = False
            try:
                text = r.choice(makers)()
            except Skip:
                continue
            sql, parameters = self.values.bind(text)
            varies = not self.selects.learned_from_values
            return Statement(sql, parameters, change=True, shape=f"rare {text.split()[0]}", varies=varies)
        return super().statement()

    # -- pieces --------------------------------------------------------------------------------------------------

    def _cte(self) -> tuple[str, Source]:
        """WITH one query, whose rows are fixed."""
        r = self.r
        name = self.selects._alias("c")
        query = self.selects.query(limit=True)
        if not query.determined or not query.columns:
            raise Skip
        names = tuple(f"o{n}" for n in range(len(query.columns)))
        hint = r.choice(("", "", " MATERIALIZED", " NOT MATERIALIZED"))
        source = self.selects._derived(name, query, names)
        return f"WITH {name}({', '.join(names)}) AS{hint} ({query.sql}) ", source

    def _written(self, table: Table) -> list[Column]:
        """Columns of which every row of an INSERT states a value; a drawn id is left out."""
        return [c for c in table.stored if not (table.integer_key and c.name in table.primary_key)]

    def _fitting(self, table: Table, columns: Sequence[Column], scope: Sequence[Source]) -> str:
        """Values from the scope for columns: those of the same name, mostly."""
        picked = []
        for column in columns:
            same = [c.expr.sql for source in scope for c in source.columns if c.name == column.name]
            if same and self.r.random() < 0.8:
                picked.append(self.r.choice(same))
            elif self.r.random() < 0.5:
                picked.append(self._field(table, column))
            else:
                picked.append(self.expressions.column(scope).sql)
        return ", ".join(picked)

    def _payload(self, table: Table) -> list[Column]:
        found = [c for c in table.stored if c.name not in table.primary_key and c.name != "k"]
        if not found:
            raise Skip
        return found

    # -- INSERT --------------------------------------------------------------------------------------------------

    def _insert_with(self) -> str:
        r = self.r
        table = self._table()
        given, source = self._cte()
        columns = self._written(table)
        order = ", ".join(source.key)
        names = ", ".join(c.ref for c in columns)
        limit = f" LIMIT {r.randint(1, 4)}" if r.random() < 0.6 else ""
        picked = self._fitting(table, columns, [source])
        verb = f"INSERT {r.choice(CONFLICTS)}INTO"
        text = f"{verb} {table.name} ({names}) "
        select = f"SELECT {picked} FROM {source.alias} ORDER BY {order}{limit}"
        # WITH stands before the INSERT, or before its SELECT.
        text = f"{given}{text}{select}" if r.random() < 0.6 else f"{text}{given}{select}"
        return text + self._returning(table, table.name)

    def _insert_joined(self) -> str:
        r = self.r
        table = self._table()
        text, sources = self.selects.from_clause((), most=2)
        keys = [key for source in sources for key in source.key]
        if any(not source.key for source in sources):
            raise Skip
        columns = self._written(table)
        picked = self._fitting(table, columns, sources)
        where = f" WHERE {self.expressions.predicate(sources, 1)}" if r.random() < 0.6 else " WHERE true"
        verb = r.choice(
            ("INSERT INTO", "INSERT INTO", "INSERT OR IGNORE INTO", "INSERT OR REPLACE INTO", "REPLACE INTO")
        )
        names = ", ".join(c.ref for c in columns)
        order = f" ORDER BY {', '.join(keys)} LIMIT {r.randint(1, 5)}"
        return f"{verb} {table.name} ({names}) SELECT {picked} FROM {text}{where}{order}" + self._returning(
            table, table.name
        )

    def _insert_grouped(self) -> str:
        """Rows of groups, or of a compound query."""
        r = self.r
        table = self._table()
        columns = self._written(table)
        found = r.choice(self.selects.tables)
        source = found.aliased("q")
        clean = [c.expr for c in source.columns if c.expr.identity and c.expr.collation == "BINARY"]
        if not clean:
            raise Skip
        group = r.choice(clean)
        names = ", ".join(c.ref for c in columns)
        picked = []
        for column in columns:
            if column.name == "k" or r.random() < 0.4:
                picked.append(group.sql)
            else:
                picked.append(
                    r.choice((f"count(*) + {r.randint(0, 40)}", f"max({r.choice(clean).sql})", "min(quote(q.k))"))
                )
        if not any(c.name == "k" for c in source.columns):
            picked = [p if p != "min(quote(q.k))" else "count(*)" for p in picked]
        where = f" WHERE {self.expressions.predicate([source], 2)}" if r.random() < 0.4 else " WHERE true"
        text = f"INSERT INTO {table.name} ({names}) SELECT {', '.join(picked)} FROM {found.table} q{where}"
        text += f" GROUP BY {group.sql} ORDER BY {group.sql} LIMIT {r.randint(1, 5)}"
        return text + (" ON CONFLICT DO NOTHING" if r.random() < 0.4 else "") + self._returning(table, table.name)

    def _upserts(self) -> str:
        r = self.r
        table = self._table()
        if not table.primary_key:
            raise Skip
        columns = table.stored
        rows = ", ".join(
            "(" + ", ".join(self._field(table, c) for c in columns) + ")" for _ in range(r.choice((1, 2, 3)))
        )
        names = ", ".join(c.ref for c in columns)
        payload = self._payload(table)
        picked = r.sample(payload, min(len(payload), 2))
        sets = ", ".join(
            f"{c.ref} = " + r.choice((f"excluded.{c.ref}", self._field(table, c), f"{table.name}.{c.ref}"))
            for c in picked
        )
        if len(picked) == 2 and r.random() < 0.4:
            sets = f"({picked[0].ref}, {picked[1].ref}) = (excluded.{picked[1].ref}, {self._field(table, picked[0])})"
        source = self._source(table, table.name)
        where = f" WHERE {self.expressions.predicate([source], 3)}" if r.random() < 0.3 else ""
        text = f"INSERT INTO {table.name} ({names}) VALUES {rows} ON CONFLICT ({', '.join(table.primary_key)}) "
        text += f"DO UPDATE SET {sets}{where}" if r.random() < 0.8 else "DO NOTHING"
        if r.random() < 0.4:
            last = r.choice(payload).ref
            text += r.choice((" ON CONFLICT DO NOTHING", f" ON CONFLICT DO UPDATE SET {last} = excluded.{last}"))
        return text + self._returning(table, table.name)

    # -- UPDATE --------------------------------------------------------------------------------------------------

    def _update_with(self) -> str:
        r = self.r
        table = self._table()
        given, source = self._cte()
        column = r.choice(self._payload(table))
        key = r.choice(table.stored)
        a = r.choice(source.columns).expr.sql
        new = r.choice((f"(SELECT max(quote({a})) FROM {source.alias})", f"(SELECT count(*) FROM {source.alias})"))
        if r.random() < 0.5:
            new = self._field(table, column)
        where = f"{table.name}.{key.ref} IN (SELECT {a} FROM {source.alias})"
        if r.random() < 0.3:
            where = f"EXISTS (SELECT 1 FROM {source.alias} WHERE {a} = {table.name}.{key.ref})"
        return f"{given}UPDATE {table.name} SET {column.ref} = {new} WHERE {where}" + self._returning(table, table.name)

    def _update_from_tables(self) -> str:
        """FROM tables that are met by their primary key: a row has one partner at most."""
        r = self.r
        table = self._table()
        partners = [t for t in self.tables if t.integer_key and t.name != table.name]
        if not partners:
            raise Skip
        first = r.choice(partners)
        f = self._source(first, "f")
        source = self._source(table, table.name)
        at = r.choice(source.columns).expr.sql
        text, scope = f" FROM {first.name} AS f", [f, source]
        if r.random() < 0.4:
            second = r.choice(partners)
            g = self._source(second, "g")
            word = r.choice(("JOIN", "LEFT JOIN"))
            text += f" {word} {second.name} g ON g.{second.primary_key[0]} = {r.choice(f.columns).expr.sql}"
            scope.insert(1, g)
        payload = r.choice(self._payload(table))
        new = self.expressions.value(scope[:-1], 2).sql
        more = f" AND {self.expressions.predicate(scope, 2)}" if r.random() < 0.5 else ""
        where = f" WHERE f.{first.primary_key[0]} = {at}{more}"
        return f"UPDATE {table.name} SET {payload.ref} = {new}{text}{where}" + self._returning(table, table.name)

    def _update_rows(self) -> str:
        r = self.r
        table = self._table()
        payload = self._payload(table)
        if len(payload) < 2:
            raise Skip
        a, b = r.sample(payload, 2)
        source = self._source(table, table.name)
        values = f"({self._field(table, a)}, {self.expressions.value([source], 2).sql})"
        if r.random() < 0.5:
            other = r.choice(self.selects.tables).aliased("q")
            picked = ", ".join(self.expressions.column([other]).sql for _ in range(2))
            condition = f"{r.choice(other.columns).expr.sql} = {r.choice(source.columns).expr.sql}"
            order = f" ORDER BY {', '.join(other.key)}" if other.key else ""
            if not order:
                raise Skip
            values = f"(SELECT {picked} FROM {other.table} q WHERE {condition}{order} LIMIT 1)"
        where = self._where([source])
        return f"UPDATE {table.name} SET ({a.ref}, {b.ref}) = {values}{where}" + self._returning(table, table.name)

    def _aliased(self) -> str:
        """The written table under another name, main. before it, or its own rows asked."""
        r = self.r
        table = self._table()
        z = self._source(table, "z")
        main = r.choice(("", "main."))
        inner = self._source(table, "y")
        a, b = r.choice(inner.columns).expr.sql, r.choice(z.columns).expr.sql
        test = (
            f"{b} = (SELECT max({a}) FROM {table.name} y)" if r.choice(inner.columns).expr.identity else f"{b} IS NULL"
        )
        where = f" WHERE {r.choice((self.expressions.predicate([z], 1), test))}"
        if r.random() < 0.4:
            return f"DELETE FROM {main}{table.name} AS z{where}"
        column = r.choice(self._payload(table))
        new = self._field(table, column) if r.random() < 0.5 else self.expressions.value([z], 2).sql
        return f"UPDATE {main}{table.name} AS z SET {column.ref} = {new}{where}"

    def _through_view(self) -> str:
        """Change a view, whose triggers change its table."""
        r = self.r
        table = r.choice(self.written_views)
        name = f"w_{table.name}"
        source = self._source(table, name)
        source = replace(source, columns=tuple(c for c in source.columns if c.name in {s.name for s in table.stored}))
        pick = r.random()
        if pick < 0.4:
            count = r.choice((1, 1, 2, 3))
            rows = ", ".join("(" + ", ".join(self._field(table, c) for c in table.stored) + ")" for _ in range(count))
            names = ", ".join(c.ref for c in table.stored)
            return f"INSERT INTO {name} ({names}) VALUES {rows}"
        if pick < 0.75:
            column = r.choice(self._payload(table))
            new = re.sub(rf"\b{table.name}\.", f"{name}.", self._new_value(table, column, [source]))
            return f"UPDATE {name} SET {column.ref} = {new}{self._where([source])}"
        return f"DELETE FROM {name}{self._where([source])}"

    # -- DELETE --------------------------------------------------------------------------------------------------

    def _delete_with(self) -> str:
        r = self.r
        table = self._table()
        given, source = self._cte()
        key, a = r.choice(table.stored).ref, r.choice(source.columns).expr.sql
        membership = r.choice(("IN", "IN", "NOT IN"))
        where = f"{table.name}.{key} {membership} (SELECT {a} FROM {source.alias})"
        if len(source.columns) == 1 and r.random() < 0.5:
            where = f"{table.name}.{key} {membership} {source.alias}"
        return f"{given}DELETE FROM {table.name} WHERE {where}" + self._returning(table, table.name)

    def _delete_rows(self) -> str:
        r = self.r
        table = self._table()
        source = self._source(table, table.name)
        a, b = r.choice(source.columns).expr.sql, r.choice(source.columns).expr.sql
        where = r.choice(
            (
                f"({a}, {b}) IN ({self.selects.inner([source], 1, 2)})",
                f"({a}, {b}) IN (VALUES (1, 2), ('a', 'b'), (2, 2))",
                f"EXISTS ({self.selects.inner([source], 1, 1)})",
                f"({a}, {b}) < ({self.expressions.constant().sql}, {self.expressions.constant().sql})",
            )
        )
        return f"DELETE FROM {table.name} WHERE {where}" + self._returning(table, table.name)
