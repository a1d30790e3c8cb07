"""Statements in which the parts of the planner and executor meet.

Views over views, CTEs and subqueries in FROM, joined over shards, sorted and limited by parameters; changes that read
them. Every source shows a column ``u`` whose values differ from row to row: what is sorted by it, at last, has one
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from diff_case import Create, Ddl, Rows, Statement, Step
from diff_meet_parameters import VALUES, Parameters, literal
from diff_meet_world import MeetWorld

from shardlite.router.strategies import DirectoryStrategy, HashStrategy, RangeStrategy

_FORMS = (*("key", "id", "composite", "none", "without") * 3, "pair", "reference", "reference", "single", "explicit")


KEYS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("INTEGER", "BINARY", (1, 2, 3, 4, 5, 6, 7)),
    ("TEXT", "BINARY", ("a", "A", "a ", "b", "1", "01", "é", "b\0c", "")),
    ("TEXT", "NOCASE", ("a", "A", "b", "B ", "b ", "1", "É", "é", "b\0C", "b\0c")),
    ("TEXT", "RTRIM", ("a", "a ", "b", "B", "b  ", "1", "", " ")),
    ("", "BINARY", (1, 1.5, "1", b"1", "a", 2, 3)),
    ("REAL", "BINARY", (1.0, 2.5, 3.0, 4.0, 0.0)),
)


@dataclass(frozen=True)
class Relation:
    """What stands in a FROM: its text, its columns; ``u`` is one of them."""

    sql: str
    columns: tuple[str, ...]
    table: bool = False


class Meeting:
    """Schema, rows and statements of one seed."""

    def __init__(self, seed: int) -> None:
        self.r = Random(f"meet {seed}")
        self.names = iter(f"a{n}" for n in range(10**6))
        self.base: dict[str, dict[str, Any]] = {}
        self.views: dict[str, tuple[str, ...]] = {}
        self.parameters = Parameters(self.r)
        self.sorted = False
        self.raw_text = False
        self.rtrim = False
        self.simple = self.r.random() < 0.65
        """Most joins are on keys, and few layers deep: what the shards can do by themselves."""

    # -- schema ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        r = self.r
        declared, collation, values = r.choice(KEYS)
        self.keys, self.collation = values, collation
        of_key = f"{declared} COLLATE {collation}".strip() if declared in ("TEXT", "") else declared
        made: list[Step] = []
        number = 0
        for index in range(r.choice((3, 4, 4, 5))):
            name = f"t{index}"
            form = r.choice(_FORMS[:15] if self.simple and r.random() < 0.9 else _FORMS)
            if index == 0:
                form = r.choice(("key", "id", "composite"))
            options: dict[str, Any] = {}
            other = r.choice(
                (f"t {r.choice(('TEXT', 'TEXT COLLATE NOCASE', 'TEXT COLLATE RTRIM', 'VARCHAR(9)'))}", "t")
            )
            columns = ["u INTEGER", f"j {of_key}", "n INTEGER", other, "x"]
            if r.random() < 0.2:
                columns[3] += " DEFAULT 'd'"
            stored = ["k", "u", "j", "n", "t", "x"]
            key = f"k {of_key}"
            if r.random() < 0.15:
                columns.append(
                    f"g GENERATED ALWAYS AS ({r.choice(('n + 1', 'lower(t)', 'typeof(x)'))}) "
                    f"{r.choice(('VIRTUAL', 'STORED'))}"
                )
            tail = ""
            if form == "key":
                columns.insert(0, f"{key} PRIMARY KEY")
            elif form == "id":
                columns[:0] = ["id INTEGER PRIMARY KEY", key]
                options["shard_key"] = r.choice(("k", "k", "j"))
            elif form == "composite":
                columns.insert(0, key)
                columns.append("PRIMARY KEY (k, u)")
                options["shard_key"] = "k"
            elif form == "pair":
                columns.insert(0, key)
                columns.append("PRIMARY KEY (k, u)")
                options["shard_key"] = ["k", "u"]
            elif form == "without":
                columns.insert(0, key)
                columns.append("PRIMARY KEY (u, k)")
                options["shard_key"] = "k"
                tail = " WITHOUT ROWID"
            elif form in ("reference", "single"):
                columns.insert(0, key)
                options["kind"] = form
            elif form == "explicit":
                columns.insert(0, key)
                options["kind"] = "sharded"
                options["shard_key"] = "j"
            else:
                columns.insert(0, key)
                options["shard_key"] = r.choice(("k", "k", "j"))
            # Constraints stand last.
            columns.sort(key=lambda text: text.startswith("PRIMARY KEY"))
            self.rtrim = self.rtrim or any("RTRIM" in text for text in columns)
            made.append(Create(f"CREATE TABLE {name} ({', '.join(columns)}){tail}", options))
            names = [text.split()[0] for text in columns if not text.startswith("PRIMARY KEY")]
            self.base[name] = {"columns": names, "form": form, "options": options}
            rows = []
            one = r.choice(values)
            for _ in range(r.choice((0, 1, 5, 9, 14, 14, 22))):
                number += 1
                k = r.choice(values) if r.random() < 0.9 or form in ("without", "composite", "pair", "key") else None
                if r.random() < 0.15:
                    k = one
                if form == "key" and any(_same(k, row[0], collation, declared) for row in rows):
                    continue
                text = r.choice(("a", "A", "a ", "b", "é", "1", None, "b\0c", "ab", "zz"))
                rows.append(
                    (k, number, r.choice((*values, None)), r.choice((1, 2, 3, 4, None)), text, r.choice(VALUES))
                )
            if rows:
                made.append(Rows(name, tuple(stored), tuple(rows)))
        for index in range(r.choice((0, 1, 2))):
            name = r.choice(list(self.base))
            column = ", ".join(r.sample(("k", "j", "n", "t", "x", "u"), r.randint(1, 2)))
            made.append(Ddl(f"CREATE INDEX i{index} ON {name} ({column})"))
        for index in range(r.choice((1, 2, 3, 4))):
            self.parameters = Parameters(r, "")
            query, columns = self.query(r.choice((0, 0, 0, 1) if self.simple else (0, 0, 1, 2)))
            named = tuple(columns)
            if r.random() < 0.5:
                named = tuple("u" if c == "u" else f"c{n}" for n, c in enumerate(columns))
                text = f"CREATE VIEW v{index}({', '.join(named)}) AS {query}"
            else:
                text = f"CREATE VIEW v{index} AS {query}"
            made.append(Ddl(text))
            self.views[f"v{index}"] = named
        return made

    def world(self, num_shards: int) -> MeetWorld:
        """Return an empty world of this seed's kind: to be asked after ``steps``."""
        pick = self.r.random()
        if pick < 0.15:
            return MeetWorld(num_shards, self.r.choice(("UTF-16le", "UTF-16be")))
        strategy: Any = None
        if pick < 0.3 and self.collation == "BINARY":  # keys that are equal are on one shard
            strategy = DirectoryStrategy(
                {key: number % num_shards for number, key in enumerate(self.keys[:4])}, HashStrategy()
            )
        elif pick < 0.45 and all(isinstance(key, (int, float)) for key in self.keys):
            strategy = RangeStrategy(list(range(1, num_shards)))
        return MeetWorld(num_shards, strategy=strategy)

    def beside(self) -> list[str]:
        """Return the texts of the attached file, whose table and view may be named from now on."""
        r = self.r
        columns = "k, u INTEGER, j, n INTEGER, t TEXT COLLATE NOCASE, x"
        made = [f"CREATE TABLE b0({columns})", "CREATE VIEW bv AS SELECT k, u, n FROM b0 WHERE n IS NOT NULL"]
        for number in range(900, 900 + r.choice((0, 3, 8))):
            row = (
                r.choice(self.keys),
                number,
                r.choice(self.keys),
                r.randint(1, 4),
                r.choice(("a", "A", "b")),
                r.choice(VALUES),
            )
            made.append(f"INSERT INTO b0 VALUES ({', '.join(map(literal, row))})")
        self.base[r.choice(("b0", "beside.b0"))] = {
            "columns": ["k", "u", "j", "n", "t", "x"],
            "form": "none",
            "options": {},
        }
        self.views["beside.bv"] = ("k", "u", "n")
        return made

    def virtual(self) -> list[Step]:
        """Return a full-text table with rows."""
        rows = tuple((self.r.choice(self.keys), 950 + n, f"w{n % 3} all") for n in range(self.r.choice((0, 4, 9))))
        self.views["f0"] = ("k", "u", "t")
        made: list[Step] = [Ddl("CREATE VIRTUAL TABLE f0 USING fts5(k, u, t)")]
        return [*made, Rows("f0", ("k", "u", "t"), rows)] if rows else made

    def later(self) -> str:
        """Return what may stand between two runs of a text; "" for a function that is registered."""
        r = self.r
        name = r.choice([name for name in self.base if "b0" not in name])
        number = next(self.names)
        column = r.choice(("k", "j", "n", "x"))
        more = f"ALTER TABLE {name} ADD COLUMN later_{number} DEFAULT 5"
        # Up to SQLite 3.40, the Bloom filters that one file makes by these figures lose matches by RTRIM.
        figures = "" if self.rtrim else "ANALYZE"
        return r.choice((figures, figures, f"CREATE INDEX later_{number} ON {name} ({column})", more, ""))

    def raw(self) -> list[Statement]:
        """Return statements that put text which is no Unicode into some rows."""
        self.raw_text = True
        name = self.r.choice(list(self.base))
        return [Statement(f"UPDATE {name} SET x = CAST(x'61ff' AS TEXT) WHERE u % 3 = 0", change=True)]

    # -- sources -----------------------------------------------------------------------------------------------------

    def source(self, depth: int) -> Relation:
        r = self.r
        pick = r.random()
        if self.views and pick < 0.25:
            name = r.choice(list(self.views))
            return Relation(name, self.views[name])
        if depth > 0 and pick < 0.55:
            query, columns = self.query(depth - 1)
            return Relation(f"({query})", tuple(columns))
        name = r.choice(list(self.base))
        return Relation(name, tuple(self.base[name]["columns"]), True)

    def query(
        self, depth: int, ctes: Mapping[str, tuple[str, ...]] | None = None, *, plain: bool = False
    ) -> tuple[str, list[str]]:
        """Return a query with a column u, and its columns' names."""
        r = self.r
        pick = r.random()
        if pick < 0.12 and depth > 0 and not plain:
            return self._union(depth)
        scope: list[tuple[str, Relation]] = []
        joined = r.choice((1, 1, 1, 2, 2, 3)) if depth > 0 else r.choice((1, 1, 2))
        text = ""
        outer = False
        for index in range(joined):
            if ctes and r.random() < 0.6:
                name = r.choice(list(ctes))
                relation = Relation(name, ctes[name])
            else:
                relation = self.source(depth)
            alias = next(self.names)
            if index == 0:
                text = f"{relation.sql} {r.choice(('', 'AS '))}{alias}"
                scope.append((alias, relation))
                continue
            before = list(scope)
            scope.append((alias, relation))
            how = r.choice(
                ("JOIN", "JOIN", "LEFT JOIN", ",", "USING", "NATURAL", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN")
            )
            if how in ("RIGHT JOIN", "FULL JOIN") and r.random() < 0.6:
                how = "JOIN"
            outer = outer or how in ("LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
            left_alias, left = r.choice(before)
            condition = self._equality(left_alias, left, alias, relation)
            if how == "USING":
                shared = [c for c in ("k", "j", "n") if all(c in other.columns for _, other in scope)]
                if shared and len(before) == 1:
                    text += f" {r.choice(('', 'LEFT '))}JOIN {relation.sql} {alias} USING ({r.choice(shared)})"
                    outer = True
                    continue
                how = "JOIN"
            if how == "NATURAL":
                how = "JOIN"
            if how == ",":
                text += f", {relation.sql} {alias}"
                text += f"\0{condition}\0"
                continue
            text += f" {how} {relation.sql} {alias} ON {condition}"
            if r.random() < 0.3:
                text += f" AND {self.predicate(scope, 0)}"
        conditions = text.split("\0")[1::2]
        text = "".join(text.split("\0")[0::2])
        shape = r.random()
        alone = len(scope) == 1
        us = [f"{alias}.u" for alias, _ in scope]
        unique = us[0] if alone else " || '-' || ".join(f"coalesce({u}, '')" for u in us)
        if r.random() < 0.55:
            conditions.append(self.predicate(scope, depth))
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if shape < (0.08 if self.simple else 0.15):
            return self._grouped(scope, unique, text, where)
        if shape < 0.22 and alone:
            alias, relation = scope[0]
            text = f"SELECT {r.choice(('*', alias + '.*'))} FROM {text}{where}"
            return self._ordered(text, list(relation.columns), scope, "u", depth)
        columns = [(unique, "u")]
        taken = {"u"}
        for _ in range(r.randint(1, 4)):
            expression, name = self.output(scope, depth)
            if name in taken:
                name = f"{name}_{len(taken)}"
            taken.add(name)
            columns.append((expression, name))
        if self.simple and "k" not in taken:
            keyed = [alias for alias, relation in scope if "k" in relation.columns]
            columns += [(f"{r.choice(keyed)}.k", "k")] if keyed else []
        r.shuffle(columns)
        distinct = "DISTINCT " if r.random() < 0.12 else ""
        listed = ", ".join(
            e if e.endswith("." + n) and r.random() < 0.5 else f"{e}{r.choice((' AS ', ' '))}{n}" for e, n in columns
        )
        return self._ordered(
            f"SELECT {distinct}{listed} FROM {text}{where}", [n for _, n in columns], scope, "u", depth, bool(distinct)
        )

    def _ordered(
        self, text: str, names: list[str], scope: Any, unique: str, depth: int, distinct: bool = False
    ) -> tuple[str, list[str]]:
        r = self.r
        self.sorted = r.random() < (0.08 if self.simple else 0.25)
        if self.sorted:
            text += f" ORDER BY {self.order(scope, names, unique, distinct)}{self.limit()}"
        return text, names

    def limit(self, kind: str = "limit") -> str:
        r = self.r
        if r.random() < (0.3 if kind != "limit" else 0.6):
            return ""
        made = f" LIMIT {self.parameters.make(kind)}"
        return made + (f" OFFSET {self.parameters.make(kind)}" if r.random() < 0.35 else "")

    def order(self, scope: Any, names: list[str], unique: str, distinct: bool = False) -> str:
        r = self.r
        terms = []
        for _ in range(r.choice((0, 1, 1, 2, 3))):
            if distinct or r.random() < 0.5 or not scope:
                name = r.choice(names)
                term = str(names.index(name) + 1) if r.random() < 0.3 else name
                if (
                    term == name
                    and scope
                    and sum(name in rel.columns for _, rel in scope)
                    and r.random() < 0.3
                    and not distinct
                ):
                    term = self.column(scope)
            else:
                term = self.output(scope, 0)[0]
                if not (term[0] == "a" or term.startswith(("(", "quote", "coalesce"))):
                    term = self.column(scope)
            term += r.choice(("", "", "", " COLLATE NOCASE", " COLLATE RTRIM", " COLLATE BINARY"))
            term += r.choice(("", "", " DESC", " ASC"))
            term += r.choice(("", "", "", " NULLS LAST", " NULLS FIRST"))
            terms.append(term)
        terms.append(unique + r.choice(("", "", " DESC")))
        return ", ".join(terms)

    def _grouped(self, scope: Any, unique: str, text: str, where: str) -> tuple[str, list[str]]:
        r = self.r
        self.sorted = False
        keys = list(
            dict.fromkeys(self.column(scope, ("k",) if r.random() < 0.5 else ()) for _ in range(r.randint(1, 2)))
        )
        n = self.number(scope)
        parts = [
            f"min({unique}) AS u",
            "count(*) AS n",
            r.choice(
                (f"sum({n}) AS s", f"max({n}) AS s", f"total({n}) AS s", f"count(DISTINCT {n}) AS s", f"avg({n}) AS s")
            ),
        ]
        names = ["u", "n", "s"]
        having = ""
        if r.random() < 0.3:
            having = f" HAVING count(*) {r.choice(('>', '<', '>='))} {self.parameters.make('small')}"
        if r.random() < 0.1:
            return f"SELECT {', '.join(parts)} FROM {text}{where}", names
        text = f"SELECT {', '.join(parts)} FROM {text}{where} GROUP BY {', '.join(keys)}{having}"
        return text, names

    def _joined(self) -> tuple[str, list[str]]:
        """Return a join on keys whose rows are fewer than those that it reads: rows are worth being sent for it."""
        r = self.r
        scope: list[tuple[str, Relation]] = []
        text = ""
        for _ in range(r.choice((2, 2, 3))):
            name = r.choice(list(self.base))
            relation = Relation(name, tuple(self.base[name]["columns"]), True)
            if r.random() < 0.35:
                alias = next(self.names)
                inner = f"SELECT {', '.join(relation.columns)} FROM {name} {alias}"
                if r.random() < 0.6:
                    inner += f" WHERE {self.predicate([(alias, relation)], 0)}"
                relation = Relation(f"({inner})", relation.columns)
            alias = next(self.names)
            scope.append((alias, relation))
            if len(scope) == 1:
                text = f"{relation.sql} {alias}"
                continue
            how = r.choice(("JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"))
            other = r.choice(scope[:-1])[0]
            condition = f"{other}.{r.choice('kkj')} = {alias}.{r.choice('kjj')}"
            if r.random() < 0.3:
                condition += f" AND {self.predicate([scope[-1]] if r.random() < 0.7 else scope, 0)}"
            text += f" {how} {relation.sql} {alias} ON {condition}"
        if r.random() < 0.5:
            text += f" WHERE {self.predicate(scope, r.choice((0, 1)))}"
        unique = " || '-' || ".join(f"coalesce({alias}.u, '')" for alias, _ in scope)
        if r.random() < 0.6:
            return self._grouped(scope, unique, text, "")
        self.sorted = True
        columns = [f"{unique} AS u", f"{self.column(scope, ('k', 'j'))} AS a", f"{self.output(scope, 1)[0]} AS b"]
        text = f"SELECT {r.choice(('', 'DISTINCT '))}{', '.join(columns)} FROM {text} ORDER BY "
        return f"{text}{self.order([], ['u', 'a', 'b'], 'u')} LIMIT {self.parameters.make('limit')}", ["u", "a", "b"]

    def _union(self, depth: int) -> tuple[str, list[str]]:
        r = self.r
        arms = []
        for number in range(2):
            relation = self.source(depth - 1)
            alias = next(self.names)
            scope = [(alias, relation)]
            other = self.output(scope, 0)[0]
            where = f" WHERE {self.predicate(scope, 0)}" if r.random() < 0.5 else ""
            arms.append(
                f"SELECT '{number}' || coalesce({alias}.u, '') AS u, {other} AS w FROM {relation.sql} {alias}{where}"
            )
        text = r.choice((" UNION ALL ", " UNION ALL ", " UNION ")).join(arms)
        self.sorted = r.random() < 0.3
        if self.sorted:
            text += f" ORDER BY {self.order([], ['u', 'w'], 'u')}{self.limit()}"
        return text, ["u", "w"]

    # -- expressions -------------------------------------------------------------------------------------------------

    def column(self, scope: Any, wanted: tuple[str, ...] = ()) -> str:
        alias, relation = self.r.choice(scope)
        found = [c for c in relation.columns if c in wanted] or list(relation.columns)
        return f"{alias}.{self.r.choice(found)}"

    def number(self, scope: Any) -> str:
        alias, relation = self.r.choice(scope)
        found = [c for c in relation.columns if c in ("n", "id")]
        return f"{alias}.{self.r.choice(found)}" if found else f"length({alias}.u)"

    def output(self, scope: Any, depth: int) -> tuple[str, str]:
        r = self.r
        alias, relation = r.choice(scope)
        column = r.choice(relation.columns)
        pick = r.random()
        if pick < 0.6:
            return f"{alias}.{column}", column
        if pick < 0.68:
            return self.parameters.make(), "p"
        if pick < 0.76:
            return f"quote({alias}.{column})", "q"
        if pick < 0.82:
            return f"coalesce({alias}.{column}, {self.parameters.make()})", "c"
        if pick < 0.88:
            return f"(length({alias}.{column}) + {self.parameters.make('small')})", "l"
        if pick < 0.94 and depth > 0:
            inner = self.source(0)
            name = next(self.names)
            condition = self._equality(alias, relation, name, inner)
            return f"(SELECT count(*) FROM {inner.sql} {name} WHERE {condition})", "e"
        return f"typeof({alias}.{column})", "y"

    def _equality(self, left: str, one: Relation, right: str, other: Relation) -> str:
        r = self.r
        wanted = r.choice(
            (*[("k", "k")] * 9, *[("k", "j"), ("j", "k")] * 2, ("j", "j"))
            if self.simple
            else (*[("k", "k")] * 7, ("k", "j"), ("j", "k"), ("j", "k"), ("j", "j"), ("n", "n"), ("u", "u"))
        )
        a = wanted[0] if wanted[0] in one.columns else r.choice(one.columns)
        b = wanted[1] if wanted[1] in other.columns else r.choice(other.columns)
        return f"{left}.{a} {r.choice(('=', '=', '=', 'IS', '=='))} {right}.{b}"

    def predicate(self, scope: Any, depth: int) -> str:
        r = self.r
        column = self.column(scope, ("k", "j", "n") if r.random() < 0.4 else ())
        pick = r.random()
        make = self.parameters.make
        if pick < 0.3:
            return f"{column} {r.choice(('=', '=', '<', '>', '<>', 'IS', 'IS NOT', '<='))} {make()}"
        if pick < 0.4:
            return f"{column} {r.choice(('', 'NOT '))}IN ({make()}, {make()}, {make()})"
        if pick < 0.5:
            return f"{column} IS {r.choice(('', 'NOT '))}NULL"
        if pick < 0.58:
            return f"({self.predicate(scope, 0)} OR {self.predicate(scope, 0)})"
        if pick < 0.64:
            return f"{column} BETWEEN {make()} AND {make()}"
        if pick < 0.8 and depth > 0:
            inner = self.source(0)
            name = next(self.names)
            alias, relation = r.choice(scope)
            if r.random() < 0.5:
                equal = self._equality(alias, relation, name, inner)
                return f"{r.choice(('', 'NOT '))}EXISTS (SELECT 1 FROM {inner.sql} {name} WHERE {equal})"
            shown = r.choice(inner.columns)
            if self.simple and "k" in inner.columns:
                column, shown = self.column(scope, ("k",)), "k"
            return f"{column} {r.choice(('', 'NOT '))}IN (SELECT {name}.{shown} FROM {inner.sql} {name})"
        return (
            f"{column} > {make('text')} COLLATE {r.choice(('NOCASE', 'RTRIM', 'BINARY'))}"
            if pick < 0.9
            else f"{column} LIKE {make('text')}"
        )

    # -- statements --------------------------------------------------------------------------------------------------

    def select(self) -> Iterator[Statement]:
        """Yield one text with several sets of parameters."""
        r = self.r
        self.parameters = Parameters(r)
        prefix = ""
        ctes: dict[str, tuple[str, ...]] = {}
        if r.random() < 0.3:
            prefix, ctes = self._with()
        if r.random() < 0.3:
            text, names = self._joined()
        else:
            text, names = self.query(r.choice((0, 0, 1) if self.simple else (0, 1, 1, 2)), ctes)
        order = ""
        if self.sorted:
            order = "total"
        elif r.random() < 0.8:
            text += f" ORDER BY {self.order([], names, 'u')}{self.limit('outer limit')}"
            order = "total"
        text = self.parameters.done(prefix + text)
        for _ in range(1 if not self.parameters.kinds else r.choice((2, 3, 4))):
            yield Statement(text, self.parameters.values(), order=order)

    def _with(self) -> tuple[str, dict[str, tuple[str, ...]]]:
        r = self.r
        ctes: dict[str, tuple[str, ...]] = {}
        parts = []
        for number in range(r.choice((1, 1, 2))):
            query, columns = self.query(1, ctes)
            name = f"w{number}"
            if r.random() < 0.4:
                columns = ["u" if c == "u" else f"c{n}" for n, c in enumerate(columns)]
                hint = r.choice(("", "", "NOT MATERIALIZED ", "MATERIALIZED "))
                parts.append(f"{name}({', '.join(columns)}) AS {hint}({query})")
            else:
                parts.append(f"{name} AS ({query})")
            ctes[name] = tuple(columns)
        return f"WITH {', '.join(parts)} ", ctes

    def change(self) -> Iterator[Statement]:
        """Yield one text of a change with one or two sets of parameters."""
        r = self.r
        self.parameters = Parameters(r)
        prefix = ""
        ctes: dict[str, tuple[str, ...]] = {}
        if r.random() < 0.35:
            prefix, ctes = self._with()
        name = r.choice(list(self.base))
        make = r.choice((self._insert, self._insert, self._insert, self._update, self._update, self._delete))
        # With one file the driver leaves the rows changed when it can't read what they return.
        returning = ("", "", " RETURNING u, quote(k), n", "" if self.raw_text else " RETURNING *")
        text = prefix + make(name, ctes) + r.choice(returning)
        text = self.parameters.done(text)
        for _ in range(1 if not self.parameters.kinds else 2):
            yield Statement(text, self.parameters.values(), change=True)

    def _insert(self, name: str, ctes: Mapping[str, tuple[str, ...]]) -> str:
        r = self.r
        query, names = self.query(1, ctes, plain=True)
        alias = next(self.names)
        columns = [c for c in ("k", "u", "j", "n", "t", "x") if c in ("k", "u") or r.random() < 0.6]
        listed = []
        for column in columns:
            if column == "u":
                listed.append(f"{1000 + r.randint(0, 9) * 100} + row_number() OVER (ORDER BY {alias}.u)")
            elif column == "n":
                listed.append(f"length({alias}.{r.choice(names)})")
            elif column in ("k", "j") and r.random() < 0.6:
                listed.append(self.parameters.make() if column == "j" else literal(r.choice(self.keys)))
            else:
                listed.append(f"{alias}.{r.choice(names)}")
        conflict = r.choice(("", "", "OR IGNORE ", "OR REPLACE ", "OR ABORT "))
        upsert = ""
        target = {"key": "k", "composite": "k, u", "without": "u, k", "pair": "k, u"}.get(self.base[name]["form"])
        if target is not None and not conflict and r.random() < 0.6:
            more = f"n = coalesce(n, 0) + {self.parameters.make('small')}, t = excluded.t"
            upsert = r.choice(
                (
                    " ON CONFLICT DO NOTHING",
                    f" ON CONFLICT ({target}) DO NOTHING",
                    f" ON CONFLICT ({target}) DO UPDATE SET {more}",
                )
            )
        return (
            f"INSERT {conflict}INTO {name} ({', '.join(columns)}) SELECT {', '.join(listed)} FROM ({query}) {alias} "
            f"WHERE true ORDER BY {alias}.u LIMIT {self.parameters.make('small')}{upsert}"
        )

    def _update(self, name: str, ctes: Mapping[str, tuple[str, ...]]) -> str:
        r = self.r
        joined, value = "", self.parameters.make()
        if r.random() < 0.3:
            query, _ = self.query(1, ctes, plain=True)
            joined, value = f" FROM (SELECT count(*) AS c FROM ({query}) b) f", "f.c"
        column = r.choice(("n", "t", "x"))
        return f"UPDATE {name} SET {column} = {value}{joined} WHERE {self._found(name, ctes)}"

    def _delete(self, name: str, ctes: Mapping[str, tuple[str, ...]]) -> str:
        rest = self.parameters.make("small") if self.r.random() < 0.3 else "0"
        return f"DELETE FROM {name} WHERE {self._found(name, ctes)} AND {name}.u % {self.r.choice((2, 3))} = {rest}"

    def _found(self, name: str, ctes: Mapping[str, tuple[str, ...]]) -> str:
        """Return the condition of a change."""
        r = self.r
        if not ctes or r.random() < 0.3:
            return self.predicate([(name, Relation(name, tuple(self.base[name]["columns"]), True))], 1)
        cte = r.choice(list(ctes))
        shown = f"SELECT {r.choice(ctes[cte])} FROM {cte}"
        return f"{name}.{r.choice(('k', 'j', 'u'))} {r.choice(('IN', 'IN', 'NOT IN'))} ({shown})"


def _same(one: Any, other: Any, collation: str, declared: str) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        if collation == "NOCASE":
            one, other = (t.encode().lower().split(b"\0")[0] for t in (one, other))
        elif collation == "RTRIM":
            one, other = one.rstrip(" "), other.rstrip(" ")
    return one == other
