"""Rarer words of table definitions, put into those that the other grammar made."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from diff_schema import Schema


def add_rare(r: Random, schema: Schema) -> None:
    """Add AUTOINCREMENT, conflict clauses of constraints, deferred foreign keys, UNIQUE beside the key."""
    if r.random() < 0.5:
        return
    for table in schema.tables:
        if table.hidden:
            continue
        keys = [place for place, column in enumerate(table.columns) if column.key == "PRIMARY KEY"]
        if table.integer_key and keys and r.random() < 0.12:
            column = table.columns[keys[0]]
            table.columns[keys[0]] = replace(column, key="PRIMARY KEY AUTOINCREMENT", not_null=False)
        payload = [p for p, c in enumerate(table.columns) if c.name in ("v", "w", "x", "y") and not c.generated]
        if payload and r.random() < 0.15:
            place = r.choice(payload)
            column = table.columns[place]
            if not column.not_null and not column.key:
                clause = r.choice(("NOT NULL ON CONFLICT IGNORE", "NOT NULL ON CONFLICT FAIL", "CHECK (length(v) < 9)"))
                if "(v)" in clause:
                    clause = f"CHECK (length({column.ref}) < 9)"
                elif column.pool != "json":
                    # Rows of the start hold values, so that they are accepted.
                    column = replace(column, pool="few" if column.pool == "wild" else column.pool)
                table.columns[place] = replace(column, key=clause)
        if r.random() < 0.08 and table.options.get("kind") in ("single", "reference") and payload:
            column = table.columns[r.choice(payload)]
            clause = r.choice(("", "", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE"))
            table.constraints.append(f"UNIQUE (k, {column.ref}){clause}")
        for place, text in enumerate(table.constraints):
            if text.startswith("FOREIGN KEY") and r.random() < 0.4:
                more = r.choice((" DEFERRABLE INITIALLY DEFERRED", " ON UPDATE NO ACTION", " DEFERRABLE"))
                if "ON DELETE" not in text and r.random() < 0.5:
                    more = r.choice((" ON DELETE SET DEFAULT", " ON DELETE RESTRICT ON UPDATE RESTRICT")) + (
                        more if "UPDATE" not in more else ""
                    )
                table.constraints[place] = text + ("" if "ON UPDATE" in text and "UPDATE" in more else more)
