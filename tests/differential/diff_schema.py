"""Random schemas and rows: types, collations, keys, kinds of tables, indexes, views and triggers that trip planners."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import Any

from diff_case import Create, Ddl, Step

COLLATIONS = ("BINARY", "BINARY", "BINARY", "NOCASE", "RTRIM")
TYPES = (
    *("INTEGER", "INTEGER", "INT", "TEXT", "TEXT", "", "", "NUMERIC", "REAL", "DECIMAL(10,2)"),
    *("VARCHAR(10)", "BLOB", "BOOLEAN", "DATE", "DOUBLE PRECISION", "FLOATING POINT", "BIGINT", "NCHAR(5)"),
)
STRICT_TYPES = ("INTEGER", "INT", "REAL", "TEXT", "BLOB", "ANY")
BIG = (2**63 - 1, 2**63 - 2, 2**53, 2**53 + 1, 2**62, 1, 2)
"""Of one sign: whether their sum overflows doesn't depend on the order."""
POOLS: dict[str, tuple[Any, ...]] = {
    "few": (1, 2, 3, 4, None),
    "ids": tuple(range(1, 13)),
    "mixed": (
        *(1, 1.0, "1", b"1", "", None, 2, "2", 2.0, 2.5, 0, -0.0, "a", "A", "a ", "ab", b"", b"a", "01", "1.0", " 1"),
        *(-1, 3, "3", "b", "B", True),
    ),
    "edges": (2**63 - 1, 2**63 - 2, -(2**63), 2**53, 2**53 + 1, 9007199254740992.0, 9.223372036854775807e18, 1, None),
    "big": (*BIG, None),
    "text": ("", "a", "A", "a ", "b", "B", "b  ", "ab", "é", "É", "aa", "1", "1.0", "10", "2", "o'x", None),
    "real": (0.25, 0.5, 1.0, 1.5, -2.25, 0.0, 100.0, 2.0, None),
    "wild": (1e16, 1.0, -1e16, 0.1, 0.2, 1e-7, 3.3, None),
    "json": ("[1,2]", '{"a":1,"b":"x"}', "[]", '[[1],"x",null]', "null", None),
    "blob": (b"", b"1", b"a", b"A", b"ab", None),
}


def affinity(declared: str) -> str:
    """Return SQLite's affinity of a declared type."""
    upper = declared.upper()
    for words, found in (
        (("INT",), "INTEGER"),
        (("CHAR", "CLOB", "TEXT"), "TEXT"),
        (("BLOB",), "BLOB"),
        (("REAL", "FLOA", "DOUB"), "REAL"),
    ):
        if any(word in upper for word in words):
            return found
    return "NUMERIC" if declared and upper != "ANY" else "BLOB"


@dataclass(frozen=True)
class Column:
    name: str
    declared: str
    collation: str = "BINARY"
    pool: str = "mixed"
    not_null: bool = False
    default: str = ""
    generated: str = ""
    key: str = ""
    """PRIMARY KEY, UNIQUE or REFERENCES, as it stands in the definition."""

    @property
    def ref(self) -> str:
        return self.name if re.fullmatch(r"[a-z]\w*", self.name) else f'"{self.name}"'

    @property
    def affinity(self) -> str:
        return affinity(self.declared)

    @property
    def definition(self) -> str:
        parts = [self.ref, self.declared, self.key, "NOT NULL" if self.not_null else ""]
        parts.append(f"COLLATE {self.collation}" if self.collation != "BINARY" else "")
        parts.append(f"DEFAULT {self.default}" if self.default else "")
        parts.append(self.generated)
        return " ".join(part for part in parts if part)


@dataclass
class Table:
    name: str
    columns: list[Column]
    options: dict[str, Any]
    primary_key: tuple[str, ...] = ()
    integer_key: bool = False
    """The primary key is an INTEGER PRIMARY KEY, an alias of the rowid."""
    without_rowid: bool = False
    strict: bool = False
    constraints: list[str] = field(default_factory=list)
    rows: int = 8
    hidden: bool = False
    """Not written by the statements: a trigger's log, whose rowids are not compared."""

    @property
    def ddl(self) -> str:
        parts = [column.definition for column in self.columns] + self.constraints
        tail = [word for word, said in (("WITHOUT ROWID", self.without_rowid), ("STRICT", self.strict)) if said]
        return f"CREATE TABLE {self.name} ({', '.join(parts)}) {', '.join(tail)}".strip()

    @property
    def stored(self) -> list[Column]:
        return [column for column in self.columns if not column.generated]

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def step(self) -> Create:
        return Create(self.ddl, self.options)


@dataclass
class Schema:
    tables: list[Table]
    extras: list[Ddl] = field(default_factory=list)
    """Indexes and triggers; views are made by the query grammar."""

    @property
    def steps(self) -> list[Step]:
        return [*(table.step for table in self.tables), *self.extras]


def value_for(r: Random, column: Column, strict: bool) -> Any:
    """Return a value that a column is likely to take (a STRICT table refuses some)."""
    pool = POOLS[column.pool]
    if column.not_null or column.key:
        pool = tuple(value for value in pool if value is not None)
    if strict:
        kinds = {"INTEGER": int, "TEXT": str, "REAL": float, "BLOB": bytes}.get(column.affinity, object)
        if column.declared != "ANY":
            pool = tuple(v for v in pool if v is None or isinstance(v, kinds)) or POOLS["few"][:4]
    return r.choice(pool)


def _pool(r: Random, declared: str) -> str:
    found = affinity(declared)
    if found == "INTEGER":
        return r.choice(("few", "few", "few", "ids", "big", "mixed", "edges"))
    if found == "TEXT":
        return r.choice(("text", "text", "mixed", "few", "json"))
    if found == "REAL":
        return r.choice(("real", "real", "wild", "few", "mixed"))
    if found == "NUMERIC":
        return r.choice(("few", "real", "mixed", "edges", "text"))
    return r.choice(("mixed", "mixed", "few", "text", "edges", "blob", "real"))


def _payload(r: Random, name: str, strict: bool) -> Column:
    declared = r.choice(STRICT_TYPES if strict else TYPES)
    pool = _pool(r, declared)
    if strict and affinity(declared) == "BLOB" and declared != "ANY":
        pool = "blob"
    collation = r.choice(COLLATIONS) if affinity(declared) in ("TEXT", "BLOB", "NUMERIC") else "BINARY"
    default = ""
    if not strict and r.random() < 0.2:
        default = r.choice(("7", "'d'", "1.0", "(1 + 1)", "NULL", "x'64'"))
    not_null = pool not in ("json",) and r.random() < 0.12
    return Column(name, declared, collation, pool, not_null, default)


def _key_columns(r: Random) -> Column:
    """The key that several tables of a schema share, so that joins find partners."""
    declared, pool = r.choice(
        (
            *(("INTEGER", "few"), ("INTEGER", "ids"), ("TEXT", "text"), ("TEXT", "mixed"), ("", "mixed")),
            *(("INT", "few"), ("NUMERIC", "mixed"), ("REAL", "few"), ("DECIMAL(10,2)", "real"), ("", "edges")),
        )
    )
    collation = r.choice(COLLATIONS) if affinity(declared) in ("TEXT", "BLOB") else "BINARY"
    return Column("k", declared, collation, pool)


def make_schema(r: Random) -> Schema:
    """Return two to four tables that have columns, keys and values in common."""
    key = _key_columns(r)
    schema = Schema([])
    count = r.choice((2, 2, 3, 3, 4))
    letters = ["v", "w", "x", "y"]
    for number in range(count):
        kind = r.choice(("sharded", "sharded", "sharded", "reference", "single")) if number else "sharded"
        schema.tables.append(_make_table(r, f"t{number}", key, kind, schema.tables, letters))
    for table in schema.tables:
        schema.extras += _indexes(r, table)
    if r.random() < 0.5:
        _add_triggers(r, schema, key)
    return schema


def _make_table(r: Random, name: str, key: Column, kind: str, earlier: list[Table], letters: list[str]) -> Table:
    strict = r.random() < 0.1
    form = r.choice(("id", "id", "key", "composite", "composite", "none", "child", "child"))
    parents = [t for t in earlier if t.primary_key == ("k",) and t.options.get("shard_key", "k") == "k"]
    parents = [t for t in parents if t.options.get("kind", "sharded") == "sharded"]
    if strict and key.declared not in ("", "INTEGER", "INT", "REAL", "TEXT"):
        strict = False
    declared = "ANY" if strict and key.declared == "" else key.declared
    shared = Column("k", declared, key.collation, key.pool)
    payload = [_payload(r, letter, strict) for letter in r.sample(letters, r.randint(1, 3))]
    if r.random() < 0.04:
        payload.append(_payload(r, "a b", strict))
    options: dict[str, Any] = {"kind": kind} if kind != "sharded" else {}
    sharded = kind == "sharded"
    table = Table(name, [], options, strict=strict, rows=r.choice((0, 1, 3, 6, 8, 8, 12, 12, 20, 30)))
    if form == "child" and not (parents and sharded):
        form = "none"
    if form == "id":
        table.columns = [Column("id", "INTEGER", pool="ids", key="PRIMARY KEY"), shared, *payload]
        table.primary_key, table.integer_key = ("id",), True
        if sharded and r.random() < 0.6:
            options["shard_key"] = "k"
    elif form == "key":
        integer = shared.declared == "INTEGER"
        table.without_rowid = r.random() < 0.3
        table.columns = [
            Column("k", declared, key.collation, key.pool, not_null=r.random() < 0.4, key="PRIMARY KEY"),
            *payload,
        ]
        table.primary_key = ("k",)
        table.integer_key = integer and not table.without_rowid
    elif form == "composite":
        table.without_rowid = r.random() < 0.5
        table.columns = [shared, Column("n", "INTEGER", pool="ids"), *payload]
        table.primary_key = ("k", "n") if r.random() < 0.7 else ("n", "k")
        action = r.choice(("", "", "", "", " ON CONFLICT IGNORE", " ON CONFLICT REPLACE", " ON CONFLICT ROLLBACK"))
        table.constraints.append(f"PRIMARY KEY ({', '.join(table.primary_key)}){action}")
        if sharded:
            options["shard_key"] = r.choice(("k", "k", "n"))
    elif form == "child":
        parent = r.choice(parents)
        actions = r.choice(("", " ON DELETE CASCADE", " ON DELETE CASCADE ON UPDATE CASCADE", " ON DELETE SET NULL"))
        table.columns = [Column("id", "INTEGER", pool="ids", key="PRIMARY KEY"), shared, *payload]
        table.primary_key, table.integer_key = ("id",), True
        if r.random() < 0.7:
            table.constraints.append(f"FOREIGN KEY (k) REFERENCES {parent.name} (k){actions}")
        options.update(shard_key="k", colocate_with=parent.name)
    else:
        table.columns = [shared, *payload]
        if sharded:
            options["shard_key"] = "k"
    if r.random() < 0.15:
        options.setdefault("constraints", "strict")
    if r.random() < 0.2:
        of = r.choice(table.columns[1:])
        text = r.choice((f"typeof({of.ref})", f"coalesce({of.ref}, 0) || '!'", "length(k)", "k"))
        stored = r.choice((" STORED", " VIRTUAL", ""))
        declared = "ANY" if strict else r.choice(("TEXT", "", "INTEGER")) if text == "k" else "TEXT"
        table.columns.append(Column("g", declared, generated=f"GENERATED ALWAYS AS ({text}){stored}"))
    if r.random() < 0.1 and not strict:
        column = payload[0]
        table.constraints.append(f"CHECK ({column.ref} IS NOT 2)")
    return table


def _indexes(r: Random, table: Table) -> list[Ddl]:
    made = []
    for number in range(r.choice((0, 0, 1, 1, 2))):
        columns = [column.ref for column in table.columns if not column.generated]
        picked = ", ".join(
            name + r.choice(("", "", "", " DESC", " COLLATE NOCASE"))
            for name in r.sample(columns, min(len(columns), r.randint(1, 2)))
        )
        form = r.random()
        if form < 0.15:
            picked = f"lower({columns[-1]})"
        where = f" WHERE {columns[-1]} IS NOT NULL" if r.random() < 0.2 else ""
        unique = "UNIQUE " if form > 0.92 and "k" in columns else ""
        if unique:
            picked, where = f"k, {columns[-1]}" if columns[-1] != "k" else "k", ""
        made.append(Ddl(f"CREATE {unique}INDEX i{number}_{table.name} ON {table.name} ({picked}){where}"))
    return made


def _add_triggers(r: Random, schema: Schema, key: Column) -> None:
    """Add a log beside a sharded table, and triggers that write to it: its rows are where the written row is."""
    watched = [t for t in schema.tables if t.options.get("shard_key", t.primary_key[:1]) in ("k", ("k",))]
    watched = [t for t in watched if t.options.get("kind", "sharded") == "sharded" and not t.strict]
    # A generated id that is the key, or is logged, would be another one on each side.
    watched = [t for t in watched if not (t.integer_key and t.primary_key == ("k",))]
    if not watched:
        return
    table = r.choice(watched)
    columns = [
        Column("k", table.column("k").declared, key.collation, key.pool),
        Column("what", "TEXT"),
        Column("old", ""),
        Column("new", ""),
    ]
    counted = r.random() < 0.75
    log = Table("log", columns, {"shard_key": "k", "colocate_with": table.name}, rows=0, hidden=True)
    if counted:
        log.columns.append(Column("n", "INTEGER", default="1"))
        log.without_rowid, log.primary_key = True, ("k", "what", "old", "new")
        log.constraints.append("PRIMARY KEY (k, what, old, new)")
    schema.tables.append(log)
    other = r.choice([c.ref for c in table.stored if c.name != "id"])
    for event, row in r.sample((("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")), r.randint(1, 3)):
        old = "NULL" if event == "INSERT" else f"old.{other}"
        new = "NULL" if event == "DELETE" else f"new.{other}"
        when = r.choice(("", "", f" WHEN {row}.{other} IS NOT NULL"))
        of = f" OF {other}" if event == "UPDATE" and r.random() < 0.4 else ""
        if counted:
            old, new = f"quote({old})", f"quote({new})"
        again = " ON CONFLICT DO UPDATE SET n = n + 1" if counted else ""
        body = f"INSERT INTO log (k, what, old, new) VALUES ({row}.k, '{event}', {old}, {new}){again};"
        if event != "DELETE" and r.random() < 0.15:
            body += f" SELECT RAISE(ABORT, 'no three') WHERE new.{other} = 3;"
        if r.random() < 0.12:
            how = "RAISE(IGNORE)" if r.random() < 0.7 else "RAISE(ABORT, 'no fours')"
            body = f"SELECT {how} WHERE {row}.{other} IN (4, 'a');" + body
        # What NEW holds of a generated id is undefined before the row is inserted.
        moment = "AFTER" if event == "INSERT" and table.integer_key else r.choice(("AFTER", "AFTER", "BEFORE"))
        sql = f"CREATE TRIGGER on_{event.lower()} {moment} {event}{of} ON {table.name}{when} BEGIN {body} END"
        schema.extras.append(Ddl(sql))
