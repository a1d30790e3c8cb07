"""What the differential test runs: a schema, rows and statements, as data that can be stored, shrunk, replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Parameters = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Create:
    """One table: its DDL and the words for ``create_table``."""

    ddl: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Any:
        return {"create": self.ddl, **({"options": dict(self.options)} if self.options else {})}


@dataclass(frozen=True)
class Ddl:
    """An index, a view or a trigger."""

    sql: str

    def to_json(self) -> Any:
        return {"ddl": self.sql}


@dataclass(frozen=True)
class Rows:
    """Rows of one table, inserted by one statement."""

    table: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def insert(self) -> tuple[str, list[Any]]:
        marks = "(" + ", ".join("?" * len(self.columns)) + ")"
        sql = f"INSERT INTO {self.table} ({', '.join(self.columns)}) VALUES " + ", ".join([marks] * len(self.rows))
        return sql, [value for row in self.rows for value in row]

    def to_json(self) -> Any:
        return {"rows": self.table, "columns": list(self.columns), "values": [list(map(encode, r)) for r in self.rows]}


Step = Create | Ddl | Rows


@dataclass(frozen=True)
class Statement:
    """One statement and what of its answer is fixed.

    :param order: "total": the rows' order is fixed; "scan": it is fixed if one file scans the table by rowid; a tuple
        of column numbers: only the order of these is; "": the rows are a multiset.
    :param modes: for each column "exact", "rep:COLLATION" (which of equal values stands for them is open), "approx"
        (a sum of REAL) or "concat:SEPARATOR" (the order of the parts is open). Empty: all exact.
    :param scale: for "approx": the statement that gives the sums of absolute values instead.
    :param change: whether it writes: then the whole content is compared afterwards.
    """

    sql: str
    parameters: Any = ()
    order: str | tuple[int, ...] = ""
    modes: tuple[str, ...] = ()
    scale: str | None = None
    change: bool = False
    shape: str = ""
    varies: bool = True
    """What is known of it holds for other values of its parameters too."""

    def to_json(self) -> Any:
        made: dict[str, Any] = {"sql": self.sql}
        if self.parameters:
            if isinstance(self.parameters, Mapping):
                made["parameters"] = {name: encode(value) for name, value in self.parameters.items()}
            else:
                made["parameters"] = list(map(encode, self.parameters))
        if self.order:
            made["order"] = self.order if isinstance(self.order, str) else list(self.order)
        if any(mode != "exact" for mode in self.modes):
            made["modes"] = list(self.modes)
        if self.scale is not None:
            made["scale"] = self.scale
        if self.change:
            made["change"] = True
        return made


@dataclass(frozen=True)
class Case:
    """A schema with rows, then statements."""

    steps: tuple[Step, ...]
    statements: tuple[Statement, ...] = ()

    def only(self, steps: Sequence[Step] | None = None, statements: Sequence[Statement] | None = None) -> Case:
        return replace(
            self,
            steps=self.steps if steps is None else tuple(steps),
            statements=self.statements if statements is None else tuple(statements),
        )

    def dumps(self, **extra: Any) -> str:
        """Return the case as JSON, a line for each step and statement."""
        parts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in extra.items()]
        for name, found in (("steps", self.steps), ("statements", self.statements)):
            lines = ",\n    ".join(json.dumps(one.to_json(), ensure_ascii=False) for one in found)
            parts.append(f'"{name}": [\n    {lines}\n  ]' if lines else f'"{name}": []')
        return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def encode(value: Any) -> Any:
    return {"blob": value.hex()} if isinstance(value, bytes) else value


def decode(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value


def loads(text: str) -> Case:
    """Read what ``Case.dumps`` wrote."""
    data = json.loads(text)
    steps: list[Step] = []
    for one in data["steps"]:
        if "create" in one:
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in one.get("options", {}).items()}
            steps.append(Create(one["create"], options))
        elif "ddl" in one:
            steps.append(Ddl(one["ddl"]))
        else:
            rows = tuple(tuple(map(decode, row)) for row in one["values"])
            steps.append(Rows(one["rows"], tuple(one["columns"]), rows))
    statements = []
    for one in data["statements"]:
        given = one.get("parameters", [])
        parameters: Any = (
            {name: decode(value) for name, value in given.items()}
            if isinstance(given, dict)
            else tuple(map(decode, given))
        )
        order = one.get("order", "")
        statements.append(
            Statement(
                one["sql"],
                parameters,
                order if isinstance(order, str) else tuple(order),
                tuple(one.get("modes", ())),
                one.get("scale"),
                one.get("change", False),
            )
        )
    return Case(tuple(steps), tuple(statements))
