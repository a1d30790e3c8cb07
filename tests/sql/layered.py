"""Random queries over views, CTEs, subqueries in FROM and joins of equal names: for comparing with one file."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from sharded import Definition

TABLES = {
    "a": ("k", "x", "s"),
    "b": ("k", "y", "x"),
    "c": ("id", "k", "z"),
    "r": ("s", "w"),
    "h": ("k", "v"),
}
VIEWS = {
    "some": (("k", "x"), "CREATE VIEW some AS SELECT k, x FROM a WHERE x > 1 -- few"),
    "totals": (("key", "total"), "CREATE VIEW totals(key, total) AS SELECT k, sum(y) FROM b GROUP BY k"),
    "both": (("k", "x"), "CREATE VIEW both AS SELECT k, x FROM a UNION ALL SELECT k, y FROM b"),
    "joined": (("k", "x", "s", "y"), "CREATE VIEW joined AS SELECT * FROM a NATURAL JOIN b"),
    "deep": (("k", "n"), "CREATE VIEW deep AS SELECT some.k, count(*) AS n FROM some JOIN b USING (k) GROUP BY some.k"),
    "top": (("k", "x"), "CREATE VIEW top AS SELECT k, x FROM a ORDER BY x DESC, k, s LIMIT 5"),
    "sorted": (("k", "y"), "CREATE VIEW sorted AS SELECT k, y FROM main.b ORDER BY y, k, x"),
    "by_s": (("s", "n"), "CREATE VIEW by_s AS SELECT s, count(*) AS n FROM a GROUP BY s"),
    "shades": (("s", "w"), "CREATE VIEW shades AS SELECT s, max(w) AS w FROM r GROUP BY s"),
    "keys": (("k",), "CREATE VIEW keys AS SELECT DISTINCT k FROM b"),
    "within": (("k", "m"), "CREATE VIEW within AS WITH b AS (SELECT k, max(x) AS m FROM a GROUP BY k) SELECT * FROM b"),
    "held": (("k", "v"), "CREATE VIEW held AS SELECT k, v FROM h WHERE v > 0"),
    "ids": (("id", "k"), "CREATE VIEW ids AS SELECT id, k FROM c"),
    "ranked": (
        ("k", "n"),
        "CREATE VIEW ranked AS SELECT k, row_number() OVER (PARTITION BY k ORDER BY x, s) AS n FROM a",
    ),
    "casted": (("k", "x"), "CREATE VIEW casted AS SELECT CAST(k AS TEXT) AS k, x FROM a"),
}


def _definition() -> Definition:
    rng = random.Random(7)
    keys = (1, 2, 3, 5, 8, 13, 21, -7)

    def pick(*choices: Any) -> Any:
        return rng.choice(choices)

    return Definition(
        (
            "CREATE TABLE a (k INTEGER NOT NULL, x INT, s TEXT)",
            "CREATE TABLE b (k INTEGER NOT NULL, y INT, x INT)",
            "CREATE TABLE c (id INTEGER PRIMARY KEY, k INTEGER, z INT)",
            "CREATE TABLE r (s TEXT, w INT)",
            "CREATE TABLE h (k INTEGER, v INT)",
            *(sql for _, sql in VIEWS.values()),
        ),
        keys={"a": ("k",), "b": ("k",), "c": ("id",)},
        references=frozenset({"r"}),
        groups={"a": "one", "b": "one", "c": "one"},
        rows=(
            (
                "INSERT INTO a VALUES (?, ?, ?)",
                [(rng.choice(keys), pick(None, 0, 1, 2, 3), pick("red", "blue", None)) for _ in range(25)],
            ),
            (
                "INSERT INTO b VALUES (?, ?, ?)",
                [(rng.choice(keys), pick(None, 1, 2, 5), pick(0, 1, 2, 3)) for _ in range(20)],
            ),
            ("INSERT INTO c VALUES (?, ?, ?)", [(i, pick(None, *keys), i % 3) for i in range(1, 22)]),
            ("INSERT INTO r VALUES (?, ?)", [("red", 1), ("red", 2), ("blue", 3), (None, 4)]),
            ("INSERT INTO h VALUES (?, ?)", [(1, 1), (2, -1), (5, 3)]),
        ),
    )


LAYERED = _definition()


@dataclass
class Query:
    """``ordered``: the ORDER BY leaves no ties but of equal rows."""

    sql: str
    parameters: Any
    ordered: bool


@dataclass
class Generator:
    rng: random.Random
    named: bool
    parameters: list[Any] = field(default_factory=list)
    ctes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    count: int = 0

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def constant(self) -> str:
        value = self.rng.choice((0, 1, 2, 3, 5, 8, 13))
        if self.chance(0.7):
            return str(value)
        self.parameters.append(value)
        return f":p{len(self.parameters) - 1}" if self.named else "?"

    def alias(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def source(self, depth: int) -> tuple[str, str, tuple[str, ...]]:
        """Return a source's text, the name by which its columns are reached, and these."""
        if depth > 0 and self.chance(0.25):
            sql, columns = self.select(depth - 1, inner=True)
            alias = self.alias()
            return f"({sql}){self.pick(' ', ' AS ')}{alias}", alias, columns
        known = dict(TABLES) | {name: columns for name, (columns, _) in VIEWS.items()}
        if self.ctes and self.chance(0.5):
            name = self.rng.choice(sorted(self.ctes))
            columns = self.ctes[name]
        else:
            names = [*VIEWS, *("some", "both", "totals", "deep", "joined")] if self.chance(0.55) else list(TABLES)
            name = self.rng.choice([n for n in names if n not in self.ctes])
            if name == "h" and self.chance(0.7):
                name = "a" if "a" not in self.ctes else "r"
            columns = known[name]
        if self.chance(0.2) or (name in self.ctes and self.chance(0.4)):
            return name, name, columns
        alias = self.alias()
        prefix = "main." if self.chance(0.03) and name not in self.ctes else ""
        return f"{prefix}{self.pick(name, name, name.upper())}{self.pick(' ', ' AS ')}{alias}", alias, columns

    def from_(self, depth: int) -> tuple[str, list[tuple[str, tuple[str, ...]]]]:
        text, name, columns = self.source(depth)
        sources = [(name, columns)]
        for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2))):
            other, name, columns = self.source(depth)
            if any(name == known for known, _ in sources):
                continue
            here = [(alias, column) for alias, known in sources for column in known]
            common = sorted({column for _, column in here} & set(columns))
            pick = self.rng.random()
            left = self.pick("", "", "LEFT ")
            if pick < 0.35 and common:
                text += f" NATURAL {self.pick('', '', 'LEFT ', 'INNER ')}JOIN {other}"
            elif pick < 0.5 and common:
                text += f" {left}JOIN {other} USING ({self.rng.choice(common)})"
            else:
                keys = [pair for pair in here if pair[1] in ("k", "key", "id")] or here
                alias, column = self.rng.choice(keys)
                mine = self.rng.choice([c for c in columns if c in ("k", "key", "id")] or list(columns))
                text += f" {left}JOIN {other} ON {alias}.{column} = {name}.{mine}"
            sources.append((name, columns))
        return text, sources

    def column(self, sources: list[tuple[str, tuple[str, ...]]]) -> str:
        alias, columns = self.rng.choice(sources)
        column = self.rng.choice(columns)
        return column if self.chance(0.25) else f"{alias}.{column}"

    def predicate(self, sources: list[tuple[str, tuple[str, ...]]], depth: int) -> str:
        alias, columns = self.rng.choice(sources)
        key = next((c for c in columns if c in ("k", "key", "id")), columns[0])
        pick = self.rng.random()
        if pick < 0.25:
            return f"{alias}.{key} = {self.constant()}"
        if pick < 0.32:
            return f"{key} IN ({self.constant()}, {self.constant()})"
        if pick < 0.45:
            other, name, theirs = self.source(0)
            match = next((c for c in theirs if c in ("k", "key", "id")), theirs[0])
            inner = self.alias()
            if self.chance(0.5):
                return f"{alias}.{key} {self.pick('', 'NOT ')}IN (SELECT {name}.{match} FROM {other})"
            base = other.split(" ")[0]
            return f"{self.pick('', 'NOT ')}EXISTS (SELECT 1 FROM {base} {inner} WHERE {inner}.{match} = {alias}.{key})"
        if pick < 0.55:
            return f"{self.column(sources)} IS {self.pick('', 'NOT ')}NULL"
        return f"{self.column(sources)} {self.pick('<', '>=', '<>', '=')} {self.constant()}"

    def select(self, depth: int, *, inner: bool) -> tuple[str, tuple[str, ...]]:
        text, sources = self.from_(depth)
        where = f" WHERE {self.predicate(sources, depth)}" if self.chance(0.55) else ""
        if where and self.chance(0.3):
            where += f" AND {self.predicate(sources, depth)}"
        names: list[str] = []
        outputs: list[str] = []
        group = ""
        if self.chance(0.15) and len(sources) == 1:
            return f"SELECT {self.pick('*', sources[0][0] + '.*')} FROM {text}{where}", sources[0][1]
        grouped = self.chance(0.35)
        for _ in range(self.rng.choice((1, 2, 2, 3))):
            alias, columns = self.rng.choice(sources)
            column = self.rng.choice([c for c in columns if c in ("k", "key", "id")] or list(columns))
            column = column if self.chance(0.5) else self.rng.choice(columns)
            shown = column if self.chance(0.2) else f"{alias}.{column}"
            name = column if column not in names else f"o{len(names)}"
            outputs.append(shown if name == column and self.chance(0.5) else f"{shown} AS {name}")
            names.append(name)
        if grouped:
            keys = [output.split(" AS ")[0] for output in outputs[:2]]
            outputs, names = outputs[: len(keys)], names[: len(keys)]
            group = f" GROUP BY {', '.join(keys)}"
            if not inner and self.chance(0.25):
                outputs, names, group = [], [], ""
            column = self.column(sources)
            outputs.append(self.pick("count(*) AS n", f"count({column}) AS n", f"max({column}) AS n"))
            names.append("n" if "n" not in names else "n2")
            if names[-1] == "n2":
                outputs[-1] += "2"
            if group and self.chance(0.15):
                group += f" HAVING count(*) > {self.constant()}"
        distinct = "DISTINCT " if not grouped and self.chance(0.12) else ""
        return f"SELECT {distinct}{', '.join(outputs)} FROM {text}{where}{group}", tuple(names)

    def query(self) -> Query:
        head = ""
        if self.chance(0.45):
            parts: list[str] = []
            made: dict[str, tuple[str, ...]] = {}
            for _ in range(self.rng.choice((1, 1, 2))):
                sql, columns = self.select(1, inner=True)
                name = self.pick("w1", "w2", "w3", "a", "some", "r")
                if name in made or name in sql.lower().replace("(", " ").split():
                    continue
                listed = ""
                if self.chance(0.25):
                    columns = tuple(f"q{i}" for i in range(len(columns)))
                    listed = f"({', '.join(columns)})"
                hint = self.pick("", "", "", "", "NOT MATERIALIZED ", "MATERIALIZED ")
                parts.append(f"{name}{listed} AS {hint}({sql})")
                made[name] = columns
                self.ctes = dict(made)
            head = f"WITH {', '.join(parts)} " if parts else ""
        sql, columns = self.select(2, inner=False)
        ordered = False
        if self.chance(0.12):
            other, more = self.select(1, inner=False)
            if len(more) == len(columns):
                sql += f" {self.pick('UNION ALL', 'UNION', 'EXCEPT', 'INTERSECT')} {other}"
        if self.chance(0.6):
            ordered = True
            sql += f" ORDER BY {', '.join(f'{i}{self.pick(*_WAYS)}' for i in range(1, len(columns) + 1))}"
            if self.chance(0.3):
                sql += f" LIMIT {self.constant()}"
                if self.chance(0.3):
                    sql += f" OFFSET {self.constant()}"
        parameters: Any = tuple(self.parameters)
        if self.named:
            parameters = {f"p{i}": value for i, value in enumerate(self.parameters)}
        return Query(head + sql, parameters, ordered)


_WAYS = ("", "", " DESC")


def random_query(seed: int) -> Query:
    """Return the query of a seed."""
    rng = random.Random(seed)
    return Generator(rng, named=rng.random() < 0.3).query()
