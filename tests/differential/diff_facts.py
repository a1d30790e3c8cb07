"""What is known of columns: from their data, so that the grammar can tell which answers SQLite fixes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diff_compare import representative


@dataclass(frozen=True)
class Expr:
    """An expression and what is known of its values.

    :param kind: int, real, text, blob or mixed; NULL besides.
    :param identity: values that compare equal are the same value of the same type, so GROUP BY has no choice.
    :param exact: sums of it are the same in every order.
    :param big: integers so big that a sum of them may overflow.
    """

    sql: str
    collation: str = "BINARY"
    kind: str = "mixed"
    identity: bool = False
    exact: bool = False
    big: bool = False
    affinity: str = "BLOB"

    def text(self, sql: str) -> Expr:
        return Expr(sql, kind="text", identity=True, exact=False)

    def number(self, sql: str) -> Expr:
        return Expr(sql, kind="int", identity=True, exact=True)

    def named(self, sql: str) -> Expr:
        return replace(self, sql=sql)

    @property
    def mode(self) -> str:
        # One file itself may give 0 for the 0.0 of a REAL column that stands for a group.
        return "exact" if self.identity and self.kind in ("int", "text", "blob") else f"rep:{self.collation}"


@dataclass(frozen=True)
class Named:
    """A column of a source: its name, and the expression that reads it."""

    name: str
    expr: Expr

    @property
    def ref(self) -> str:
        return self.name if re.fullmatch(r"[a-z]\w*", self.name) else f'"{self.name}"'


@dataclass(frozen=True)
class Source:
    """Something that stands in FROM, under an alias.

    :param key: expressions that together tell its rows apart (rows that they don't tell apart are equal).
    :param table: the name of the base table, if it is one.
    """

    alias: str
    columns: tuple[Named, ...]
    key: tuple[str, ...]
    rows: int
    table: str | None = None
    rowid: bool = False
    plain_rowid: bool = False

    def aliased(self, alias: str) -> Source:
        columns = tuple(replace(c, expr=c.expr.named(f"{alias}.{c.ref}")) for c in self.columns)
        key = tuple(part.replace(f"{self.alias}.", f"{alias}.") for part in self.key)
        return replace(self, alias=alias, columns=columns, key=key)


def learn(values: Sequence[Any], collation: str, affinity: str, sql: str) -> Expr:
    """Return an Expr for a column that holds these values."""
    types = {type(value) for value in values if value is not None}
    names = {int: "int", float: "real", str: "text", bytes: "blob"}
    kind = names[types.pop()] if len(types) == 1 else "mixed" if types else "int"
    present = [value for value in values if value is not None]
    identity = len({repr(v) for v in present}) == len({representative(v, collation) for v in present})
    return Expr(
        sql,
        collation,
        kind,
        identity,
        exact=all(map(_is_exact, present)),
        big=any(abs(_number(value)) > 2**40 for value in present),
        affinity=affinity,
    )


_PREFIX = re.compile(r"\s*[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+)")


def _number(value: Any) -> int | float:
    """Return what SQLite's sum() adds for a value."""
    if isinstance(value, int | float):
        return value
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    found = _PREFIX.match(text)
    return float(found[0]) if found else 0


def _is_exact(value: Any) -> bool:
    number = _number(value)
    return abs(number) <= 2**40 and float(number * 1024).is_integer()
