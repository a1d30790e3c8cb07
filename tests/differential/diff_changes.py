"""Random INSERT, UPDATE, DELETE and REPLACE, with what follows them: conflicts, RETURNING, FROM, LIMIT."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from diff_case import Statement
from diff_expressions import Expressions, Values
from diff_facts import Source
from diff_from import Skip
from diff_schema import POOLS, Column, Table, value_for
from diff_select import Selects

CONFLICTS = ("", "", "", "", "", "OR IGNORE ", "OR REPLACE ", "OR ABORT ", "OR FAIL ", "OR ROLLBACK ")
MAX_ROWS = 60


class Changes:
    """Writing statements over the tables of one schema; facts about rows come from when it was made."""

    def __init__(self, r: Random, plain: Any, tables: Sequence[Table], sources: Sequence[Source], limits: bool) -> None:
        self.r = r
        self.tables = [table for table in tables if not table.hidden]
        self.sources = {source.table: source for source in sources}
        self.limits = limits
        self.selects = Selects(r, plain, [s for s in sources if s.table != "log"])

    def statement(self) -> Statement:
        while True:
            self.selects._begin()
            self.values: Values = self.selects.values
            self.expressions: Expressions = self.selects.expressions
            self.selects.top_level = False
            pick = self.r.random()
            try:
                if pick < 0.42:
                    text = self._insert()
                elif pick < 0.74:
                    text = self._update()
                elif pick < 0.88:
                    text = self._delete()
                elif pick < 0.95:
                    text = self._with()
                else:
                    return Statement("SELECT changes()", order="total", shape="changes()")
            except Skip:
                continue
            sql, parameters = self.values.bind(text)
            varies = not self.selects.learned_from_values
            return Statement(sql, parameters, change=True, shape=text.split()[0], varies=varies)

    def _table(self) -> Table:
        return self.r.choice(self.tables)

    def _source(self, table: Table, alias: str) -> Source:
        return self.sources[table.name].aliased(alias)

    # -- INSERT --------------------------------------------------------------------------------------------------

    def _insert(self) -> str:
        r = self.r
        table = self._table()
        columns = table.stored
        if r.random() < 0.35:
            optional = [c for c in columns if not c.not_null and (not c.key or table.integer_key)]
            left_out = set(r.sample([c.name for c in optional], r.randint(0, len(optional))))
            columns = [c for c in columns if c.name not in left_out] or columns
        elif table.integer_key and r.random() < 0.5:
            columns = [c for c in columns if c.name not in table.primary_key] or columns
        columns = r.sample(columns, len(columns)) if r.random() < 0.2 else columns
        conflict = r.choice(CONFLICTS)
        verb = f"INSERT {conflict}INTO" if r.random() < 0.93 else "REPLACE INTO"
        names = ", ".join(c.ref for c in columns)
        listed = f" ({names})" if len(columns) != len(table.stored) or r.random() < 0.8 else ""
        if not listed:
            columns = table.stored
        pick = r.random()
        alias = " AS z" if r.random() < 0.05 else ""
        if pick < 0.03:
            return f"INSERT INTO {table.name} DEFAULT VALUES{self._returning(table, table.name)}"
        if pick < 0.78:
            count = r.choice((1, 1, 1, 2, 3, 5))
            # Generated ids come last: one file could draw one that a later row of the statement gives.
            given = sorted((r.random() < 0.75 for _ in range(count)), reverse=True)
            rows = ", ".join("(" + ", ".join(self._field(table, c, one) for c in columns) + ")" for one in given)
            text = f"{verb} {table.name}{alias}{listed} VALUES {rows}"
        else:
            text = f"{verb} {table.name}{alias}{listed} {self._rows_for(columns)}"
        if " OR " not in verb and verb != "REPLACE INTO" and r.random() < 0.3:
            text += self._upsert(table, "z" if alias else table.name)
        return text + self._returning(table, table.name)

    def _field(self, table: Table, column: Column, given: bool = True) -> str:
        r = self.r
        generated = table.integer_key and column.name == table.primary_key[0]
        if generated and not given:
            return "NULL"
        if generated:
            wild = ("'x'", "1.0", "'7'", "2.5") if r.random() < 0.04 else ()
            return r.choice(wild or (self.values.add(r.choice(POOLS["ids"])), self.values.add(r.randint(10, 60))))
        if r.random() < 0.06:
            return self.expressions.constant().sql
        if r.random() < 0.03:
            other = r.choice(self.selects.tables)
            return f"(SELECT count(*) FROM {other.table})"
        return self.values.add(value_for(r, column, table.strict), 0.5)

    def _rows_for(self, columns: Sequence[Column]) -> str:
        """A SELECT whose rows come in one order: generated ids and conflicts depend on it."""
        r = self.r
        found = r.choice([s for s in self.selects.tables if s.rows <= 20] or self.selects.tables)
        source = found.aliased("q")
        by_name = {c.name: c.expr.sql for c in source.columns}
        picked = []
        for column in columns:
            if column.name in by_name and r.random() < 0.7:
                picked.append(by_name[column.name])
            elif column.name == "id":
                picked.append(f"{self.expressions.column([source]).sql}" if r.random() < 0.3 else "NULL")
            else:
                picked.append(self.expressions.value([source], 2).sql)
        order = f" ORDER BY {', '.join(source.key)}" if source.key else ""
        limit = f" LIMIT {r.randint(1, 4)}" if r.random() < 0.5 and order else ""
        where = f" WHERE {self.expressions.predicate([source], 2)}"
        return f"SELECT {', '.join(picked)} FROM {found.table} q{where}{order}{limit}"

    def _upsert(self, table: Table, name: str) -> str:
        r = self.r
        target = ""
        if table.primary_key and r.random() < 0.9:
            target = f" ({', '.join(table.primary_key)})"
        if r.random() < 0.35 or not target:
            return f" ON CONFLICT{target} DO NOTHING"
        column = r.choice(table.stored)
        value = r.choice(
            (
                f"excluded.{column.ref}",
                f"coalesce({name}.{column.ref}, excluded.{column.ref})",
                self._field(table, column),
                f"(SELECT max({column.ref}) FROM {table.name} m)",
            )
        )
        where = ""
        if r.random() < 0.3:
            where = f" WHERE excluded.{column.ref} IS NOT {name}.{column.ref}"
        return f" ON CONFLICT{target} DO UPDATE SET {column.ref} = {value}{where}"

    def _returning(self, table: Table, name: str) -> str:
        r = self.r
        if r.random() > 0.3:
            return ""
        pick = r.random()
        if pick < 0.3:
            return " RETURNING *"
        source = self._source(table, name)
        listed = []
        for _ in range(r.randint(1, 3)):
            column = r.choice(source.columns).ref
            # An id that was generated is compared as a number.
            drawn = column == "id" or (table.integer_key and column in table.primary_key)
            last = column if drawn else f"{column} || '!' AS x"
            listed.append(r.choice((column, column, f"typeof({column})", last)))
        if not table.without_rowid and r.random() < 0.3:
            listed.append("rowid")
        return f" RETURNING {', '.join(listed)}"

    # -- UPDATE and DELETE ---------------------------------------------------------------------------------------

    def _where(self, scope: Sequence[Source], chance: float = 0.9) -> str:
        r = self.r
        if r.random() > chance:
            return ""
        source = scope[-1]
        if r.random() < 0.4:
            a = r.choice(source.columns).expr
            return f" WHERE {a.sql} {r.choice(('=', '=', 'IS', '<', '>='))} {self.expressions.constant(a).sql}"
        return f" WHERE {self.expressions.predicate(scope, 1)}"

    def _update(self) -> str:
        r = self.r
        table = self._table()
        source = self._source(table, table.name)
        conflict = r.choice(CONFLICTS) if r.random() < 0.3 else ""
        payload = [c for c in table.stored if c.name not in table.primary_key and c.name != "k"]
        columns = payload if payload and r.random() < 0.75 else table.stored
        picked = r.sample(columns, min(len(columns), r.choice((1, 1, 2))))
        joined, condition, scope = "", "", [source]
        if r.random() < 0.18:
            joined, condition, partner = self._from(source)
            scope = [partner, source]
        sets = []
        if len(picked) == 2 and r.random() < 0.3:
            names = ", ".join(c.ref for c in picked)
            inner = r.choice(self.selects.tables).aliased("q")
            values = f"max({r.choice(inner.columns).expr.sql}), count(*)"
            sets.append(f"({names}) = (SELECT {values} FROM {inner.table} q)")
        else:
            sets += [f"{column.ref} = {self._new_value(table, column, scope)}" for column in picked]
        where = self._where([source])
        if condition:
            where = f"{where} AND {condition}" if where else f" WHERE {condition}"
            where = (
                where.replace(" WHERE ", " WHERE (", 1).replace(f" AND {condition}", f") AND {condition}", 1)
                if (f" AND {condition}" in where)
                else where
            )
        text = f"UPDATE {conflict}{table.name} SET {', '.join(sets)}{joined}{where}"
        if joined:
            return text + self._returning(table, table.name)
        return text + self._returning(table, table.name) + self._limited(table)

    def _with(self) -> str:
        """WITH before a change that looks into it."""
        r = self.r
        table = self._table()
        source = self._source(table, table.name)
        inner = r.choice(self.selects.tables).aliased("q")
        name = r.choice(("c", "c", r.choice(self.selects.tables).table))
        if name == table.name or name == inner.table:
            name = "c"
        where = f" WHERE {self.expressions.predicate([inner], 1)}" if r.random() < 0.7 else ""
        a = r.choice(inner.columns).expr
        text = f"WITH {name} (a, n) AS (SELECT {a.sql}, count(*) FROM {inner.table} q{where} GROUP BY 1)"
        if r.random() < 0.2:
            columns = r.sample(table.stored, 1) if not any(c.not_null for c in table.stored) else table.stored
            listed = ", ".join(c.ref for c in columns)
            values = ", ".join("a" if r.random() < 0.5 else "n" for _ in columns)
            conflict = r.choice(("", "OR IGNORE ", "OR REPLACE "))
            return f"{text} INSERT {conflict}INTO {table.name} ({listed}) SELECT {values} FROM {name} ORDER BY 1, 2"
        found = f"{r.choice(source.columns).expr.sql} {r.choice(('IN', 'IN', 'NOT IN'))} (SELECT a FROM {name})"
        if r.random() < 0.5:
            found = f"({found}) AND {self.expressions.predicate([source], 1)}"
        if r.random() < 0.4:
            return f"{text} DELETE FROM {table.name} WHERE {found}{self._returning(table, table.name)}"
        column = r.choice([c for c in table.stored if c.name not in table.primary_key] or table.stored)
        value = r.choice((self._field(table, column), f"(SELECT count(*) FROM {name} WHERE a = {a.sql[2:]})"))
        value = self._field(table, column) if "SELECT" in value and a.sql[2:] not in by_name(table) else value
        conflict = r.choice(CONFLICTS)
        text = f"{text} UPDATE {conflict}{table.name} SET {column.ref} = {value} WHERE {found}"
        return text + self._returning(table, table.name)

    def _new_value(self, table: Table, column: Column, scope: Sequence[Source]) -> str:
        r = self.r
        pick = r.random()
        if pick < 0.45:
            return self._field(table, column)
        if pick < 0.6:
            return f"{table.name}.{column.ref} {r.choice(('+ 1', '- 1', '* 2'))}"
        if pick < 0.85:
            return self.expressions.value(scope, 1).sql
        others = [s for s in self.selects.tables if s.table != table.name] or self.selects.tables
        inner = r.choice(others).aliased("q")
        a, b = r.choice(inner.columns).expr.sql, r.choice(scope[-1].columns).expr.sql
        c = r.choice(inner.columns).expr
        aggregate = f"max({c.sql})" if c.identity else f"count({c.sql})"
        return f"(SELECT {aggregate} FROM {inner.table} q WHERE {a} = {b})"

    def _from(self, source: Source) -> tuple[str, str, Source]:
        """FROM with at most one partner for a row, so that there is no choice between two."""
        r = self.r
        other = r.choice(self.selects.tables).aliased("f")
        column = r.choice([c for c in other.columns if c.expr.identity] or [None])
        if column is None or column.expr.collation != "BINARY" or column.expr.kind not in ("int", "text"):
            raise Skip
        target = next((c for c in source.columns if c.name == column.name), None)
        if target is None or target.expr.kind != column.expr.kind:
            raise Skip
        inner = f"SELECT {column.ref} AS j, count(*) AS c, max(length({r.choice(other.columns).ref})) AS m"
        inner += f" FROM {other.table} GROUP BY {column.ref}"
        partner = Source("f", tuple(c for c in _partner_columns()), ("f.j",), 10)
        return f" FROM ({inner}) f", f"f.j = {target.expr.sql}", partner

    def _delete(self) -> str:
        table = self._table()
        source = self._source(table, table.name)
        return f"DELETE FROM {table.name}{self._where([source], 0.97)}{self._returning(table, table.name)}" + (
            self._limited(table)
        )

    def _limited(self, table: Table) -> str:
        r = self.r
        source = self._source(table, table.name)
        if not self.limits or r.random() > 0.08 or not (table.primary_key or not table.without_rowid):
            return ""
        keys = ", ".join(key for key in source.key)
        return f" ORDER BY {keys}{r.choice(('', ' DESC'))} LIMIT {r.randint(1, 4)}" if keys else ""


def by_name(table: Table) -> set[str]:
    """Return the names of a table's columns, as they stand in a text."""
    return {column.ref for column in table.columns}


def _partner_columns() -> list[Any]:
    from diff_facts import Expr, Named

    return [
        Named("c", Expr("f.c", kind="int", identity=True, exact=True)),
        Named("m", Expr("f.m", kind="int", identity=True, exact=True)),
    ]
