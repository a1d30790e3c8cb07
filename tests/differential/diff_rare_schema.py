"""Rarer words of table definitions, put into those that the other grammar made."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from diff_case import Ddl
from diff_schema import Schema, Table


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
                clause = r.choice(
                    ("NOT NULL ON CONFLICT IGNORE", "NOT NULL ON CONFLICT ABORT", "CHECK (length(v) < 9)")
                )
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


def written_view(r: Random, table: Table) -> list[Ddl]:
    """Return a view of a table's stored columns, and the triggers that carry changes of it to the table.

    The triggers state every value.
    """
    names = [column.ref for column in table.stored]
    payload = [column.ref for column in table.stored if column.name not in table.primary_key]
    found = " AND ".join(f"{name} IS old.{name}" for name in table.primary_key)
    where = r.choice(("", "", f" WHERE {names[-1]} IS NOT NULL"))
    view = f"w_{table.name}"
    made = [Ddl(f"CREATE VIEW {view} AS SELECT {', '.join(names)} FROM {table.name}{where}")]
    values = ", ".join(f"new.{name}" for name in names)
    given = f" WHEN new.{table.primary_key[0]} IS NOT NULL" if table.integer_key else ""
    verb = r.choice(("INSERT INTO", "INSERT OR IGNORE INTO", "INSERT OR REPLACE INTO"))
    bodies = [
        ("INSERT", given, f"{verb} {table.name} ({', '.join(names)}) VALUES ({values});"),
        ("DELETE", "", f"DELETE FROM {table.name} WHERE {found};"),
    ]
    if payload:
        sets = ", ".join(f"{name} = new.{name}" for name in payload)
        bodies.append(("UPDATE", "", f"UPDATE {table.name} SET {sets} WHERE {found};"))
    for event, when, body in bodies:
        sql = f"CREATE TRIGGER {event.lower()}_{view} INSTEAD OF {event} ON {view}{when} BEGIN {body} END"
        made.append(Ddl(sql))
    return made
