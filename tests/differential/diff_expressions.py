"""Random expressions and predicates over the columns in scope."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from diff_facts import Expr, Source
from diff_schema import COLLATIONS, POOLS

if TYPE_CHECKING:
    from diff_from import Sources

MARK = "\x10"
APPROX = re.compile("\x01(.*?)\x02(.*?)\x03", re.S)
COMPARISONS = ("=", "=", "=", "==", "<>", "!=", "<", "<=", ">", ">=", "IS", "IS NOT")


def literal(value: Any) -> str:
    """Return a value as SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return repr(value)


class Values:
    """Collects the parameters of one statement; texts carry marks until the style is chosen."""

    STYLES = ("?", "?", "?", "?n", ":", "@", "$")

    def __init__(self, r: Random) -> None:
        self._r = r
        self.allowed = True
        self.values: list[Any] = []

    def add(self, value: Any, chance: float = 0.35) -> str:
        if not self.allowed or self._r.random() > chance:
            return literal(value)
        self.values.append(value)
        return f"{MARK}{len(self.values) - 1}{MARK}"

    def bind(self, text: str, style: str | None = None) -> tuple[str, Any]:
        """Return the text in one style of parameters, and its values as the driver wants them."""
        style = style or self._r.choice(self.STYLES)
        order: list[int] = []

        def put(found: re.Match[str]) -> str:
            number = int(found[1])
            order.append(number)
            if style == "?":
                return "?"
            if style == "?n":
                return f"?{sorted_numbers[number]}"
            return f"{style}p{number}"

        used = [int(n) for n in re.findall(f"{MARK}(\\d+){MARK}", text)]
        sorted_numbers = {number: position + 1 for position, number in enumerate(sorted(set(used)))}
        bound = re.sub(f"{MARK}(\\d+){MARK}", put, text)
        if not order:
            return bound, ()
        if style == "?":
            return bound, tuple(self.values[number] for number in order)
        if style == "?n":
            return bound, tuple(self.values[number] for number in sorted_numbers)
        return bound, {f"p{number}": self.values[number] for number in set(order)}


class Expressions:
    """Expressions over a scope: a list of sources, the innermost last."""

    def __init__(self, r: Random, values: Values, selects: Sources) -> None:
        self.r = r
        self.values = values
        self.selects = selects

    # -- columns and constants -----------------------------------------------------------------------------------

    def column(self, scope: Sequence[Source]) -> Expr:
        """A column of the scope; the key, which the tables share, and inner sources more often."""
        r = self.r
        sources = [source for source in scope if source.columns]
        source = sources[-1] if r.random() < 0.4 else r.choice(sources)
        keys = [c for c in source.columns if c.name == "k"]
        named = r.choice(keys) if keys and r.random() < 0.3 else r.choice(source.columns)
        return named.expr

    def constant(self, like: Expr | None = None) -> Expr:
        r = self.r
        pool: tuple[Any, ...] = POOLS["mixed"] if like is None or r.random() < 0.3 else self._pool(like)
        value = r.choice(pool)
        sql = self.values.add(value)
        if isinstance(value, int):
            return Expr(sql, kind="int", identity=True, exact=abs(value) < 2**40, big=abs(value) >= 2**40)
        if isinstance(value, float):
            return Expr(sql, kind="real", exact=abs(value) < 1e6 and (value * 1024).is_integer(), big=abs(value) > 1e6)
        return Expr(sql, kind="text" if isinstance(value, str) else "blob", identity=True)

    @staticmethod
    def _pool(like: Expr) -> tuple[Any, ...]:
        if like.big:
            return POOLS["edges"]
        return {"int": POOLS["few"], "real": POOLS["real"], "text": POOLS["text"], "blob": POOLS["blob"]}.get(
            like.kind, POOLS["mixed"]
        )

    # -- values --------------------------------------------------------------------------------------------------

    def value(self, scope: Sequence[Source], depth: int = 0) -> Expr:
        r = self.r
        pick = r.random()
        if pick < 0.5 or depth > 2:
            return self.column(scope)
        if pick < 0.58:
            return self.constant()
        if pick < 0.72:
            return self._arithmetic(scope, depth)
        if pick < 0.86:
            return self._function(scope, depth)
        if pick < 0.9:
            test = self.predicate(scope, depth + 1)
            a, b = self.value(scope, depth + 1), self.value(scope, depth + 1)
            kind = a.kind if a.kind == b.kind else "mixed"
            sql = f"CASE WHEN {test} THEN {a.sql} ELSE {b.sql} END"
            same = a.kind == b.kind == "int" or (a.identity and b.identity and a.kind == b.kind == "text")
            same = same and a.collation == "BINARY"
            return Expr(sql, a.collation, kind, same, a.exact and b.exact, a.big or b.big)
        if pick < 0.93:
            return Expr(f"({self.predicate(scope, depth + 1)})", kind="int", identity=True, exact=True)
        if pick < 0.97 and depth < 2 and not self.selects.simple:
            return self.selects.scalar(scope, depth + 1)
        a = self.value(scope, depth + 1)
        how = r.choice(("INTEGER", "TEXT", "REAL", "NUMERIC"))
        if how == "TEXT":
            return a.text(f"CAST({a.sql} AS TEXT)")
        if how == "INTEGER":
            return Expr(f"CAST({a.sql} AS INTEGER)", kind="int", identity=True, exact=a.exact, big=a.big)
        if how == "REAL":
            return Expr(f"CAST({a.sql} AS REAL)", kind="real", identity=False, exact=a.exact, big=a.big)
        return Expr(f"CAST({a.sql} AS NUMERIC)", exact=a.exact, big=a.big)

    def _arithmetic(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        a = self.value(scope, depth + 1)
        b = self.constant(a) if r.random() < 0.5 else self.value(scope, depth + 1)
        operator = r.choice(("+", "-", "*", "+", "-", "*", "/", "%", "||", "||", "&", "|", "<<"))
        sql = f"({a.sql} {operator} {b.sql})"
        if operator == "||":
            return a.text(sql)
        if operator in ("&", "|", "<<", "%"):
            whole = operator != "%" or (a.kind == b.kind == "int")
            return Expr(sql, kind="int" if whole else "mixed", identity=whole, exact=False, big=True)
        small = not (a.big or b.big)
        if operator == "/":
            whole = a.kind == b.kind == "int"
            return Expr(sql, kind="int" if whole else "mixed", identity=whole, exact=whole and small, big=not small)
        whole = a.kind == b.kind == "int" and small
        exact = a.exact and b.exact and small and depth < 2
        return Expr(sql, kind="int" if whole else "mixed", identity=whole, exact=exact, big=not small)

    def _function(self, scope: Sequence[Source], depth: int) -> Expr:
        r = self.r
        a = self.value(scope, depth + 1)
        name = r.choice(
            (
                *("length", "lower", "upper", "typeof", "quote", "hex", "coalesce", "ifnull", "nullif", "iif", "instr"),
                *("substr", "trim", "replace", "round", "min", "max", "unicode", "printf", "minus", "plus", "not"),
                *("collate", "abs", "date", "json", "sign", "ltrim", "between", "likely"),
            )
        )
        if name in ("minus", "plus", "collate", "likely") and a.sql[0] in "0123456789":
            # ORDER BY and GROUP BY would take +1 for the number of a column.
            a = self.column(scope)
        if name in ("length", "unicode"):
            return a.number(f"{name}({a.sql})")
        if name in ("lower", "upper", "typeof", "quote", "hex", "trim", "ltrim"):
            return a.text(f"{name}({a.sql})")
        if name in ("coalesce", "ifnull", "nullif", "min", "max"):
            b = self.constant(a) if r.random() < 0.6 else self.value(scope, depth + 1)
            # min and max give one of two equal values; the first of them, whatever the collation.
            return Expr(f"{name}({a.sql}, {b.sql})", a.collation, "mixed", False, a.exact and b.exact, a.big or b.big)
        if name == "iif":
            b = self.value(scope, depth + 1)
            return Expr(f"iif({self.predicate(scope, depth + 1)}, {a.sql}, {b.sql})", exact=False, big=True)
        if name == "instr":
            return a.number(f"instr({a.sql}, {self.constant(a).sql})")
        if name == "substr":
            return a.text(f"substr(CAST({a.sql} AS TEXT), {r.choice((1, 2, -1))}, {r.choice((1, 2))})")
        if name == "replace":
            return a.text(f"replace({a.sql}, 'a', 'bc')")
        if name == "round":
            return Expr(f"round({a.sql}, {r.choice((0, 1, 2))})", kind="real", exact=False, big=a.big)
        if name == "printf":
            how = r.choice(("'%d'", "'%s-%s'", "'%05.1f'"))
            return a.text(f"printf({how}, {a.sql}, {self.column(scope).sql})")
        if name == "minus":
            return Expr(f"(- {a.sql})", kind="mixed", exact=a.exact, big=a.big)
        if name == "plus":
            return Expr(f"(+{a.sql})", a.collation, a.kind, a.identity, a.exact, a.big)
        if name == "not":
            return a.number(f"(NOT {a.sql})")
        if name == "collate":
            collation = r.choice(COLLATIONS)
            return Expr(f"({a.sql} COLLATE {collation})", collation, a.kind, False, a.exact, a.big)
        if name == "abs" and not a.big:
            return Expr(f"abs({a.sql})", kind="mixed", exact=a.exact)
        if name == "sign":
            return a.number(f"sign({a.sql})")
        if name == "date":
            return a.text(f"date('2024-02-27', '+' || length({a.sql}) || ' days')")
        if name == "json":
            return a.text(f"json_array({a.sql if a.kind != 'blob' and a.kind != 'mixed' else quoted(a)}, 1)")
        if name == "between":
            return a.number(f"({a.sql} BETWEEN {self.constant(a).sql} AND {self.constant(a).sql})")
        if name == "likely":
            return Expr(f"likely({a.sql})", "BINARY", a.kind, False, a.exact, a.big)
        return a.text(f"typeof({a.sql})")

    # -- predicates ----------------------------------------------------------------------------------------------

    def predicate(self, scope: Sequence[Source], depth: int = 0) -> str:
        r = self.r
        pick = r.random()
        if depth < 3 and pick < 0.14:
            return f"({self.predicate(scope, depth + 1)} AND {self.predicate(scope, depth + 1)})"
        if depth < 3 and pick < 0.26:
            return f"({self.predicate(scope, depth + 1)} OR {self.predicate(scope, depth + 1)})"
        if depth < 3 and pick < 0.31:
            return f"NOT ({self.predicate(scope, depth + 1)})"
        if depth < (1 if self.selects.simple else 2) and pick < (0.34 if self.selects.simple else 0.44):
            return self._with_subquery(scope, depth)
        a = self.column(scope) if r.random() < 0.7 else self.value(scope, depth + 1)
        if pick < 0.62:
            return f"{a.sql} {r.choice(COMPARISONS)} {self.constant(a).sql}"
        if pick < 0.72:
            return f"{a.sql} {r.choice(COMPARISONS)} {self.value(scope, depth + 1).sql}"
        if pick < 0.78:
            return f"{a.sql} {r.choice(('IS NULL', 'IS NOT NULL', 'ISNULL', 'NOTNULL', 'NOT NULL'))}"
        if pick < 0.84:
            listed = ", ".join(self.constant(a).sql for _ in range(r.randint(0, 4)))
            return f"{a.sql} {r.choice(('IN', 'IN', 'NOT IN'))} ({listed})"
        if pick < 0.88:
            return f"{a.sql} {r.choice(('', 'NOT '))}BETWEEN {self.constant(a).sql} AND {self.constant(a).sql}"
        if pick < 0.92:
            pattern = self.values.add(r.choice(("a%", "%A%", "_", "1%", "%", "a_", "")))
            return f"{a.sql} {r.choice(('LIKE', 'NOT LIKE'))} {pattern}"
        if pick < 0.94:
            return f"{a.sql} GLOB {self.values.add(r.choice(('a*', '[aA]*', '?', '*')))}"
        if pick < 0.97:
            b, c, d = self.column(scope), self.constant(a), self.constant()
            operator = r.choice(("=", "<", "<>", ">=", "IS"))
            return f"({a.sql}, {b.sql}) {operator} ({c.sql}, {d.sql})"
        return a.sql

    def _with_subquery(self, scope: Sequence[Source], depth: int) -> str:
        r = self.r
        pick = r.random()
        if pick < 0.4:
            return f"{r.choice(('EXISTS', 'EXISTS', 'NOT EXISTS'))} ({self.selects.inner(scope, depth + 1, 1)})"
        a = self.column(scope)
        membership = r.choice(("IN", "IN", "NOT IN"))
        if pick < 0.75:
            return f"{a.sql} {membership} ({self.selects.inner(scope, depth + 1, 1)})"
        if pick < 0.88:
            b = self.column(scope)
            return f"({a.sql}, {b.sql}) {membership} ({self.selects.inner(scope, depth + 1, 2)})"
        return f"{a.sql} {r.choice(COMPARISONS)} {self.selects.scalar(scope, depth + 1).sql}"


def quoted(a: Expr) -> str:
    """JSON can't hold BLOBs."""
    return f"quote({a.sql})"
