"""Random queries over three small tables, of the forms that are pushed down: for comparing answers with one file's."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sharded import Definition

_NAMES = ("ann", "Bob", "cy ", "", "Zed", "5", "10", None)
_LOOKALIKES = ("ann", "Bob", "bob", "cy ", "cy", "", "Zed", None)
_GROUPS = ("red", "green", "blue", None)
_SHADES = ("red", "Red", "blue", "blue ", None)
_VALUES = (None, 1, 2.5, "a", "1", b"x", -3, 1e12, "b ")


def _rows(
    count: int, seed: int, names: Sequence[Any] = _NAMES, groups: Sequence[Any] = _GROUPS
) -> list[tuple[Any, ...]]:
    rng = random.Random(seed)
    return [
        (
            i * 3,
            rng.choice((None, 1, 2, 3, 5, 8, 13, 21, 34, -7)),
            rng.choice(groups),
            rng.choice((None, 0, 1, 2, 3, 40, -5, "word")),
            rng.choice((None, 0.25, 1.5, -2.75, 1e6, 3)),
            rng.choice(names),
            rng.choice(_VALUES),
        )
        for i in range(1, count)
    ]


def _definition(names: Sequence[Any], groups: Sequence[Any]) -> Definition:
    return Definition(
        (
            "CREATE TABLE p (id INTEGER PRIMARY KEY, k INTEGER, g TEXT COLLATE NOCASE, n INT, x REAL, s TEXT, v)",
            "CREATE TABLE q (k INTEGER, m INT, t TEXT)",
            "CREATE TABLE r (g TEXT, w INT, u TEXT COLLATE RTRIM)",
            "CREATE TABLE one (k INTEGER NOT NULL, c INT)",
            "CREATE TABLE two (id INTEGER PRIMARY KEY, k INTEGER NOT NULL, c INT)",
            "CREATE TABLE three (a INT, b TEXT, c INT, PRIMARY KEY (a, b)) WITHOUT ROWID",
            'CREATE TABLE odd (k INTEGER, "select" INT, "a b" TEXT, end INT)',
            "CREATE TABLE docs (k INTEGER, body)",
            "CREATE TABLE codes (k INTEGER, code)",
            "CREATE INDEX p_n ON p (n)",
        ),
        keys={
            "p": ("k",),
            "q": ("k",),
            "one": ("k",),
            "two": ("k",),
            "three": ("a", "b"),
            "odd": ("k",),
            "docs": ("k",),
            "codes": ("k",),
        },
        references=frozenset({"r"}),
        groups=dict.fromkeys(("p", "q", "one", "two", "codes"), "int"),
        rows=(
            ("INSERT INTO p VALUES (?, ?, ?, ?, ?, ?, ?)", _rows(60, 1, names, groups)),
            ("INSERT INTO q VALUES (?, ?, ?)", [(r[1], r[3], r[5]) for r in _rows(25, 2, names, groups)]),
            ("INSERT INTO one VALUES (?, ?)", [(i, i % 4) for i in range(20)]),
            ("INSERT INTO two VALUES (?, ?, ?)", [(i, i * 2 % 17, i % 3) for i in range(1, 30)]),
            ("INSERT INTO three VALUES (?, ?, ?)", [(i % 5, "xyz"[i % 3], i) for i in range(15)]),
            ("INSERT INTO docs VALUES (?, ?)", [(i, ("[1]", "[1, 1]", '"x"')[i % 3]) for i in range(12)]),
            ("INSERT INTO codes VALUES (?, ?)", [(k, v) for k in (2, 5, 9) for v in ("1", 1, "01", "2")]),
            ("INSERT INTO r VALUES (?, ?, ?)", [("red", 1, "a"), ("RED", 2, "a "), ("blue", 3, None), (None, 4, "b")]),
        ),
    )


PARTS = _definition(_NAMES, _GROUPS)
"""Values that are equal look the same, so that answers can be compared with their types."""
LOOKALIKES = _definition(_LOOKALIKES, _SHADES)
"""Values that are equal by a collation and look different."""


@dataclass
class Query:
    sql: str
    parameters: Any
    total_order: bool
    """The ORDER BY leaves no ties but of equal rows."""
    orders: bool = False


@dataclass
class Generator:
    rng: random.Random
    parameters: list[Any] = field(default_factory=list)

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def constant(self) -> str:
        value = self.rng.choice((0, 1, 2, 3, 5, 8, "a", "bob", "5", 1.5, None))
        if self.chance(0.4):
            return self.parameter(value)
        return "NULL" if value is None else repr(value)

    def parameter(self, value: Any) -> str:
        self.parameters.append(value)
        return f":p{len(self.parameters) - 1}"

    def columns(self, joined: str) -> list[str]:
        own = ["id", "p.k", "p.g", "n", "p.n", "x", "s", "p.s", "v"]
        if joined == "q":
            return [*own, "q.k", "m", "t", "q.t"]
        if joined == "r":
            return [*own, "r.g", "w", "u"]
        return own

    def expression(self, columns: list[str]) -> str:
        column = self.rng.choice(columns)
        return self.pick(
            column, column, column, column, f"{column} || 'x'", f"{column} + 1", f"typeof({column})", f"({column})",
            f"substr({column}, 1, 1)", f"{column} IS NULL", f"{column} COLLATE NOCASE", f"coalesce({column}, 'none')",
            f"CASE WHEN {column} > 1 THEN 'many' ELSE 'few' END", f"CAST({column} AS TEXT)", f"+{column}",
        )  # fmt: skip

    def subquery(self) -> str:
        return self.pick(
            f"EXISTS (SELECT 1 FROM q AS z WHERE z.k = p.k AND z.m > {self.constant()})",
            "NOT EXISTS (SELECT 1 FROM q AS z WHERE p.k = z.k AND z.t IS NOT NULL)",
            "p.k IN (SELECT k FROM q AS z WHERE m > 0)",
            "p.k IN (SELECT k FROM q AS z GROUP BY k HAVING count(*) > 1)",
            "p.k NOT IN (SELECT k FROM q AS z WHERE m > 0 AND k IS NOT NULL)",
            "(SELECT max(z.m) FROM q AS z WHERE z.k = p.k) > 1",
            "(SELECT count(*) FROM q AS z WHERE z.k = p.k AND z.m = p.n) = 0",
            "p.g IN (SELECT z.g FROM r AS z WHERE w < 3)",
            f"n > (SELECT avg(z.n) FROM p AS z WHERE z.k = {self.pick('p.k', 'p.id')})",
            "EXISTS (SELECT 1 FROM q AS y JOIN p AS z ON z.k = y.k WHERE y.k = p.k AND z.id <> p.id)",
        )

    def window(self, unique: bool) -> str:
        over = (
            "PARTITION BY p.k ORDER BY p.id"
            if unique and self.chance(0.5)
            else self.pick("PARTITION BY p.k", "PARTITION BY p.g, p.k")
        )
        if unique and self.chance(0.3):
            return f"row_number() OVER (PARTITION BY {self.pick('p.k', 'p.k', 'p.g')} ORDER BY p.id)"
        return f"{self.pick('count(*)', 'sum(n)', 'max(x)', 'total(n)')} OVER ({over})"

    def condition(self, columns: list[str]) -> str:
        column = self.rng.choice(columns)
        return self.pick(
            f"{column} > {self.constant()}",
            f"{column} IS NOT NULL",
            f"{column} = {self.constant()}",
            f"{column} IN ({self.constant()}, {self.constant()}, 1, 2, 3)",
            f"{column} BETWEEN 0 AND 9",
            f"({column} < 5 OR {column} LIKE '%b%')",
            f"NOT {column} = {self.rng.choice(columns)}",
        )

    def source(self) -> tuple[str, str, list[str]]:
        """Return FROM with WHERE, the other table's name, and the columns to choose from."""
        how = self.rng.randrange(10)
        where: list[str] = []
        if how < 3:
            text, joined = "p", ""
        elif how == 3:
            text, joined = "p JOIN q ON q.k = p.k", "q"
        elif how == 4:
            text, joined = "p, q", "q"
            where.append("p.k = q.k")
        elif how == 5:
            text, joined = "p LEFT JOIN q ON p.k = q.k AND q.m > 0", "q"
        elif how == 6:
            text, joined = "p JOIN r ON r.g = p.g", "r"
        elif how == 7:
            text, joined = "p LEFT JOIN r ON r.g = p.g", "r"
        elif how == 8:
            text, joined = "(SELECT id, k, g, n, x, s, v FROM p WHERE n IS NOT NULL OR id > 60) AS p", ""
        else:
            text = "(SELECT p.id, p.k, p.g, n + m AS n, x, t AS s, +v AS v FROM p JOIN q USING (k)) p"
            joined = "derived"
        columns = self.columns(joined)
        where += [self.condition(columns) for _ in range(self.rng.choice((0, 0, 1, 1, 2)))]
        if self.chance(0.2):
            where.append(self.subquery())
        return f" FROM {text}" + (f" WHERE {' AND '.join(where)}" if where else ""), joined, columns

    def aggregate(self, groups: list[str]) -> str:
        column = self.pick("n", "x", "id", "n + 1", "x * 2", "p.k", "s", "length(s)")
        numeric = self.pick("n", "x", "id", "n * 2", "s", "v", "n * x", "id - p.n + x")
        plain = self.pick("n", "x", "id", "s", "length(s)", "p.k")
        kept = f" FILTER (WHERE {self.condition(['n', 'x', 's', 'id'])})" if self.chance(0.15) else ""
        simple = self.pick(
            f"count(*){kept}", f"count({column}){kept}", f"sum({numeric}){kept}", f"total({numeric}){kept}",
            f"avg({numeric}){kept}", f"min({plain}){kept}", f"max({plain}){kept}",
            f"count(DISTINCT {self.pick('n', 's', 'p.g', 'v', 'p.k')})", f"sum(DISTINCT {self.pick('n', 'x', 'id')})",
            f"avg(DISTINCT {self.pick('n', 'id')})", "max(s COLLATE BINARY)",
        )  # fmt: skip
        group = self.rng.choice(groups) if groups else "1"
        return self.pick(
            simple, simple, simple, simple, f"{simple} + 1", f"sum(n) / count(*) + {self.constant()}",
            f"avg({numeric}) - sum({numeric})",
            "round(avg(x), 2)", f"CASE WHEN count(*) > 2 THEN {simple} ELSE {group} END", f"-{simple}",
            f"coalesce({simple}, 'none')", f"{group} = {self.constant()} AND {simple} > 2",
        )  # fmt: skip

    def grouped(self) -> Query:
        source, _, columns = self.source()
        groups = list(dict.fromkeys(self.expression(columns) for _ in range(self.rng.choice((0, 1, 1, 1, 2)))))
        outputs: list[str] = []
        terms = list(groups)
        for index, group in enumerate(groups):
            if self.chance(0.8):
                form = self.rng.randrange(4)
                outputs.append({0: group, 1: f"{group} AS g{index}", 2: f"{group} g{index}", 3: group}[form])
                if form in (1, 2) and self.chance(0.5):
                    terms[index] = f"g{index}"
                elif self.chance(0.2):
                    terms[index] = str(len(outputs))
            elif self.chance(0.5):
                outputs.append(f"typeof({group})")
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            outputs.append(self.aggregate(groups) + self.pick("", "", f" AS a{len(outputs)}"))
        sql = f"SELECT {'DISTINCT ' if self.chance(0.1) else ''}{', '.join(outputs)}{source}"
        if groups:
            sql += f" GROUP BY {', '.join(terms)}"
            if self.chance(0.3):
                sql += f" HAVING {self.aggregate(groups)} > {self.pick('0', '1', '2')}"
        more = [*groups, "count(*)"] if groups and "DISTINCT" not in sql[:15] else ["1"]
        return self.ordered(sql, outputs, more)

    def listed(self) -> Query:
        source, joined, columns = self.source()
        distinct = self.chance(0.3)
        outputs = [self.expression(columns) for _ in range(self.rng.choice((1, 2, 3)))]
        if joined == "" and self.chance(0.2):
            outputs = ["*"]
        elif self.chance(0.15):
            outputs.append(self.window(unique=joined == ""))
        elif self.chance(0.1):
            outputs.append(f"(SELECT {self.pick('count(*)', 'max(z.m)', 'sum(z.m)')} FROM q AS z WHERE z.k = p.k)")
        shown = [o if o == "*" or self.chance(0.6) else f"{o} AS c{i}" for i, o in enumerate(outputs)]
        sql = f"SELECT {'DISTINCT ' if distinct else ''}{', '.join(shown)}{source}"
        more = outputs if distinct and outputs != ["*"] else columns
        return self.ordered(sql, outputs, more, tie="" if distinct or joined else "id")

    def compound(self) -> Query:
        width = self.rng.choice((1, 2))
        arms = []
        for number in range(self.rng.choice((2, 2, 3))):
            source, _, columns = self.source()
            columns = [name for name in columns if name not in ("x", "v")]  # 1 and 1.0 are one row to UNION
            outputs = [self.expression(columns) for _ in range(width)]
            if self.chance(0.4):
                outputs[0] = "p.k"
            if number == 0 and self.chance(0.3):
                outputs[-1] += " AS last"
            arms.append(f"SELECT {', '.join(outputs)}{source}")
        operators = [self.pick("UNION ALL", "UNION ALL", "UNION", "EXCEPT", "INTERSECT")] * (len(arms) - 1)
        if self.chance(0.2):
            operators[-1] = "UNION"
        sql = arms[0] + "".join(f" {op} {arm}" for op, arm in zip(operators, arms[1:], strict=True))
        return self.ordered(sql, [""] * width, [str(i + 1) for i in range(width)])

    def ordered(self, sql: str, outputs: list[str], more: list[str], tie: str = "") -> Query:
        width = 7 if outputs == ["*"] else len(outputs)
        if self.chance(0.35):
            return Query(sql, self.parameters, False)
        terms = []
        for _ in range(self.rng.choice((1, 1, 2))):
            term = self.pick(str(self.rng.randint(1, width)), self.rng.choice(more), self.rng.choice(more))
            if term.startswith("'"):
                continue
            terms.append(term + self.pick("", " COLLATE NOCASE" if "COLLATE" not in term else "") + self.way())
        total = self.chance(0.7)
        if total:
            terms += [tie] if tie else [f"{i + 1} COLLATE BINARY{self.way()}" for i in range(width)]
        sql += f" ORDER BY {', '.join(terms)}" if terms else ""
        if total and self.chance(0.6):
            sql += self.limit()
        return Query(sql, self.parameters, total, bool(terms))

    def way(self) -> str:
        return self.pick("", "", " ASC", " DESC", " DESC", " NULLS LAST", " DESC NULLS FIRST")

    def limit(self) -> str:
        form = self.rng.randrange(6)
        count, skip = self.rng.randrange(6), self.rng.choice((0, 1, 3, 50, -1))
        if form == 0:
            return f" LIMIT {self.parameter(count)}"
        if form == 1:
            return f" LIMIT {self.parameter(count)} OFFSET {self.parameter(skip)}"
        if form == 2:
            return f" LIMIT {skip}, {count}"
        if form == 3:
            return f" LIMIT -1 OFFSET {skip}"
        return self.pick(f" LIMIT {count}", f" LIMIT {count} + 1 OFFSET {skip}")


def random_query(seed: int) -> Query:
    """Return the query of a number."""
    generator = Generator(random.Random(seed))
    form = generator.rng.random()
    query = generator.grouped() if form < 0.5 else generator.listed() if form < 0.85 else generator.compound()
    used = [int(number) for number in re.findall(r":p([0-9]+)", query.sql)]
    if seed % 3 == 0:
        query.parameters = {f"p{number}": generator.parameters[number] for number in used}
        return query
    query.parameters = [generator.parameters[number] for number in used]
    query.sql = re.sub(r":p[0-9]+", "?", query.sql)
    return query
