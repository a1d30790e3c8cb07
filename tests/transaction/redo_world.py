"""Random schemas and transactions for the redo of rows, and a way to run them: captured, plain, and replayed.

A *round* runs one transaction on a file with capture and on a twin without, and replays the redo on a file that holds
what was there before. All three must be equal then, and the two that ran must have answered alike.

The twin has TEMP triggers as well, which do nothing: with any trigger on its table SQLite first collects the rows of an
UPDATE or DELETE and then changes them, instead of changing them as it comes upon them, which may be another order. And
it tells a broken foreign key when the statement is over, not before the row is inserted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.names import quote
from shardlite.transaction.capture import KeyCapture, capturing
from shardlite.transaction.definition import Definitions
from shardlite.transaction.images import prepare_replay, read_images, write_images
from shardlite.transaction.returning import is_plain, keeps_rows, with_returning
from shardlite.transaction.touched import Touched

ODD_TEXTS = {
    "UTF-8": ("CAST(x'ff41' AS TEXT)", "CAST(x'eda080' AS TEXT)", "CAST(x'610062' AS TEXT)"),
    "UTF-16le": ("CAST(x'00d84100' AS TEXT)", "CAST(x'ffff' AS TEXT)", "CAST(x'feff6100' AS TEXT)"),
    "UTF-16be": ("CAST(x'd8000041' AS TEXT)", "CAST(x'ffff' AS TEXT)", "CAST(x'fffe0061' AS TEXT)"),
}
_VALUES = (
    *("NULL", "0", "1", "2", "3", "4", "5", "1.0", "2.5", "-0.0", "9e999", "-9e999", "4611686018427387904"),
    *("-9223372036854775808", "4611686018427387905", "'a'", "'A'", "'a '", "'b'", "'B'", "'1'", "'2.0'", "''", "x''"),
    *("x'00ff'", "x'61'", "'é'", "'x' || char(0) || 'y'", "'{\"k\":1}'", "'{\"k\": 1}'", "1e-320"),
)
_WILD_VALUES = ("9223372036854775807", "random()", "randomblob(3)", "strftime('%f')", "changes()", "total_changes()")
_WILD_VALUES += ("last_insert_rowid()", "random() % 7", "random() % 7")
_TYPES = ("", "TEXT", "INT", "REAL", "NUMERIC", "BLOB", "TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM")
_STRICT_TYPES = ("INT", "TEXT", "REAL", "BLOB", "ANY", "ANY", "ANY COLLATE NOCASE", "TEXT COLLATE NOCASE")
_CLAUSES = ("", "", "", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE", " ON CONFLICT FAIL", " ON CONFLICT ABORT")
_ACTIONS = ("CASCADE", "SET NULL", "SET DEFAULT", "NO ACTION", "RESTRICT")
_TERMS = (
    *("a", "b", "c", "a COLLATE NOCASE", "b COLLATE RTRIM", "c COLLATE BINARY DESC", "a || 'x' COLLATE NOCASE"),
    *("(a || 'x') COLLATE NOCASE", "b + 0", "lower(a)", "length(b) DESC", "typeof(c)", "CAST(a AS INT)", "k % 3"),
    *("CASE WHEN c > 2 THEN b END", "coalesce(a, b)", "b = 'A'"),
)
_PREDICATES = ("", "", "", " WHERE b IS NOT NULL", " WHERE c > 2", " WHERE typeof(a) = 'text' AND c IS NOT 1")
_VERBS = ("INSERT", "INSERT", "INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ABORT")
_UPDATES = ("UPDATE", "UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE", "UPDATE OR FAIL", "UPDATE OR ROLLBACK")


class World:
    """A random schema, and random statements for it. The same seed gives the same."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.encoding = self.r.choice(["UTF-8"] * 4 + ["UTF-16le", "UTF-16be"])
        self.wild = self.r.random() < 0.25
        """Values that differ at each run are about: then there is no twin to compare with."""
        self.values = _VALUES + ODD_TEXTS[self.encoding] + (_WILD_VALUES if self.wild else ())
        self.tables = [f"t{number}" for number in range(self.r.randint(1, 4))]
        self.rowid: dict[str, str | None] = {}
        self.strict: set[str] = set()
        self.schema = [self._table(table) for table in self.tables]
        self.schema += [sql for table in self.tables for sql in self._indexes(table)]
        self.schema += [self._trigger(number) for number in range(self.r.choice([0, 0, 1, 2, 3]))]

    def _table(self, table: str) -> str:
        r, said = self.r, []
        strict = r.random() < 0.15
        if strict:
            self.strict.add(table)
        types = _STRICT_TYPES if strict else _TYPES
        other = " ANY" if strict else ""
        kind = r.choice(["alias", "alias", "auto", "rowid", "composite", "without", "without"])
        self.rowid[table] = {"without": None, "alias": "k", "auto": "k"}.get(kind, "rowid")
        key_type = r.choice(["INT", "TEXT", "TEXT COLLATE NOCASE", "ANY" if strict else "", "REAL"])
        said.append({"alias": "k INTEGER PRIMARY KEY", "auto": "k INTEGER PRIMARY KEY AUTOINCREMENT"}.get(kind, ""))
        said[0] = said[0] or f"k {key_type}"
        for name in "abc":
            column = f"{name} {r.choice(types)}"
            if r.random() < 0.2:
                column += f" NOT NULL{r.choice(_CLAUSES)} DEFAULT {r.choice(['1', chr(39) + 'a' + chr(39), '2.5'])}"
            elif r.random() < 0.2:
                default = f"({r.choice(_WILD_VALUES)})" if self.wild else "(1 + 1)"
                column += f" DEFAULT {r.choice(['0', chr(39) + 'b' + chr(39), default])}"
            if r.random() < 0.25:
                column += f" UNIQUE{r.choice(_CLAUSES)}"
            said.append(column)
        if r.random() < 0.4:
            said.append(f"g{other} AS (a || {r.choice(['b', 'k', 'c'])}) {r.choice(['STORED', 'VIRTUAL'])}")
            said[-1] += r.choice(["", f" UNIQUE{r.choice(_CLAUSES)}"])
        if r.random() < 0.5:
            parent = r.choice(self.tables[: self.tables.index(table) + 1])
            actions = f"ON DELETE {r.choice(_ACTIONS)} ON UPDATE {r.choice(_ACTIONS)}"
            deferred = r.choice(["", " DEFERRABLE INITIALLY DEFERRED"])
            said.append(f"p {r.choice(['INT', 'TEXT', other])} DEFAULT {r.choice(['NULL', '1'])}")
            said.append(f"FOREIGN KEY (p) REFERENCES {parent}(k) {actions}{deferred}")
        elif r.random() < 0.5:
            said.append(f"p{other}")
        else:
            said.append("p TEXT")
        columns = [part for part in said if not part.startswith("FOREIGN")]
        constraints = [part for part in said if part.startswith("FOREIGN")]
        if kind == "composite":
            constraints.insert(0, f"PRIMARY KEY (k, a){r.choice(_CLAUSES)}")
        if kind == "without":
            collation = r.choice(["", " COLLATE NOCASE", " COLLATE BINARY"])
            key = r.choice([f"k{collation}", f"k, b{collation}", f"b{collation} DESC, k"])
            constraints.insert(0, f"PRIMARY KEY ({key})")
        options = ["WITHOUT ROWID"] * (kind == "without") + ["STRICT"] * strict
        return f"CREATE TABLE {table}({', '.join(columns + constraints)}) {', '.join(options)}"

    def _indexes(self, table: str) -> list[str]:
        r = self.r
        made = [f"CREATE UNIQUE INDEX {table}_k ON {table}(k)"] if self.rowid[table] != "k" else []
        for number in range(r.choice([0, 1, 1, 2])):
            terms = ", ".join(r.sample(_TERMS, r.choice([1, 1, 2])))
            unique = r.choice(["UNIQUE ", "UNIQUE ", ""])
            made.append(f"CREATE {unique}INDEX {table}_{number} ON {table}({terms}){r.choice(_PREDICATES)}")
        return made

    def _trigger(self, number: int) -> str:
        r, table = self.r, self.r.choice(self.tables)
        raised = r.choice(["IGNORE", "ABORT, 'no'", "ABORT, 'never'", "ROLLBACK, 'all'"])
        event = r.choice(["INSERT", "UPDATE", "DELETE", "UPDATE OF a, b"])
        rows = {"I": ["NEW"], "U": ["NEW", "OLD"], "D": ["OLD"]}[event[0]]
        body = []
        for _ in range(r.choice([1, 1, 2])):
            other, row = r.choice(self.tables), r.choice(rows)
            body.append(
                r.choice(
                    [
                        f"INSERT {r.choice(['', 'OR REPLACE ', 'OR IGNORE '])}INTO {other}(a, b, c) "
                        f"VALUES ({row}.{r.choice('abc')}, {row}.b, {r.choice(self.values)})",
                        f"REPLACE INTO {other}(k, a, b) VALUES ({row}.c, {row}.a, {r.choice(self.values)})",
                        f"UPDATE {r.choice(['', 'OR REPLACE ', 'OR IGNORE '])}{other} SET {r.choice('abcp')} = "
                        f"{r.choice([row + '.b', row + '.c', r.choice(self.values)])} WHERE k = {row}.k",
                        f"UPDATE OR IGNORE {other} SET c = c + 1 WHERE a = {row}.a",
                        f"DELETE FROM {other} WHERE {r.choice('kabc')} = {row}.{r.choice('kabc')}",
                        f"SELECT RAISE({raised}) WHERE {row}.c = 3",
                    ]
                )
            )
        time = r.choice(["BEFORE ", "AFTER ", "AFTER ", ""])
        return f"CREATE TRIGGER trigger_{number} {time}{event} ON {table} BEGIN {'; '.join(body)}; END"

    def value(self) -> str:
        return self.r.choice(self.values)

    def row(self) -> str:
        key = self.r.choice([str(self.r.randint(-1, 6)), self.value(), "NULL"])
        return f"({key}, {self.value()}, {self.value()}, {self.value()}, {self.r.choice(['NULL', self.value()])})"

    def where(self, table: str) -> str:
        r = self.r
        return r.choice(
            [
                f"k = {r.randint(0, 6)}",
                f"{r.choice('abcp')} = {self.value()}",
                f"{r.choice('kabc')} > {self.value()}",
                f"k = (SELECT {r.choice(['max', 'min'])}(k) FROM {table})",
                f"typeof({r.choice('abc')}) = {r.choice([repr('text'), repr('integer'), repr('null')])}",
                f"k IN ({r.randint(0, 6)}, {r.randint(0, 6)}, {self.value()})",
            ]
        )

    def statement(self) -> tuple[str, str]:
        """Return a table and a statement that changes it."""
        r = self.r
        table = r.choice(self.tables)
        kind = r.random()
        into = f"{r.choice(_VERBS)} INTO {table}"
        if kind < 0.4:
            sql = f"{into}(k, a, b, c, p) VALUES {', '.join(self.row() for _ in range(r.choice([1, 1, 2, 3])))}"
        elif kind < 0.47:
            sql = f"{into}(a, c) VALUES ({self.value()}, {self.value()})"
        elif kind < 0.52:
            sql = f"{into}(k, a, b, c) SELECT k + {r.randint(0, 3)}, b, a, c FROM {r.choice(self.tables)} LIMIT 3"
        elif kind < 0.6:
            action = r.choice(
                ["NOTHING", f"UPDATE SET {r.choice('abc')} = excluded.{r.choice('abc')}", "UPDATE SET k=7"]
            )
            sql = f"INSERT INTO {table}(k, a, b, c, p) VALUES {self.row()} ON CONFLICT DO {action}"
        elif kind < 0.85:
            columns = r.sample(["a", "b", "c", "p"], r.choice([1, 1, 2]))
            if r.random() < 0.25:
                columns.append(r.choice(["k", self.rowid[table] or "k"]))
            numbers = [f"{name} = {r.choice([name + ' + 1', self.value(), 'a', 'c'])}" for name in columns]
            sql = f"{r.choice(_UPDATES)} {table} SET {', '.join(numbers)}"
            sql += r.choice(["", f" WHERE {self.where(table)}", f" WHERE {self.where(table)}"])
        else:
            sql = f"DELETE FROM {table}" + r.choice(["", *[f" WHERE {self.where(table)}"] * 5])
        if r.random() < 0.15 and "INSERT OR FAIL" not in sql:
            sql += r.choice([" RETURNING a, c", " RETURNING *"])
        return table, sql


def connect(path: Path | str = ":memory:", *, encoding: str = "UTF-8") -> Connection:
    conn = sqlite3.connect(path, factory=Connection, isolation_level=None, cached_statements=400)
    conn.fetch_all(f"PRAGMA encoding = '{encoding}'")
    conn.fetch_all("PRAGMA foreign_keys = ON")
    conn.text_factory = lambda raw: raw.decode(errors="backslashreplace")
    return conn


def dump(conn: Connection) -> dict[str, Any]:
    """Return all that a file holds, types and stored bytes and rowids included."""
    found: dict[str, Any] = {}
    for name, sql in conn.fetch_all("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name"):
        columns = [row[0] for row in conn.fetch_all("SELECT name FROM pragma_table_xinfo(?)", (name,))]
        hidden = [word for word in ("rowid", "oid", "_rowid_") if word not in columns]
        columns = [quote(column) for column in columns]
        if "WITHOUT ROWID" not in (sql or "") and name != "sqlite_sequence":
            columns.insert(0, hidden[0])
        shown = ", ".join(f"typeof({c}), quote({c}), hex(CAST({c} AS BLOB))" for c in columns)
        found[name] = sorted(map(repr, conn.fetch_all(f"SELECT {shown} FROM {quote(name)}")))
        reals = ", ".join(f"CASE typeof({c}) WHEN 'real' THEN {c} END" for c in columns)
        found[name + " reals"] = sorted(map(repr, conn.fetch_all(f"SELECT {reals} FROM {quote(name)}")))
    found["triggers"] = conn.fetch_all("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' ORDER BY name")
    for table in {row[0] for row in conn.fetch_all("SELECT tbl_name FROM sqlite_schema WHERE type = 'trigger'")}:
        order = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ? ORDER BY rowid"
        found[f"triggers of {table}"] = conn.fetch_all(order, (table,))
    found["integrity"] = conn.fetch_all("PRAGMA integrity_check")
    return found


class Difference(AssertionError):
    """Something came out otherwise."""


class Rounds:
    """Runs transactions of a world one after the other."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed)
        self.r = random.Random(seed + 1)
        self.stack = ExitStack()
        self.files = [self.stack.enter_context(closing(connect(encoding=self.world.encoding))) for _ in range(3)]
        self.captured, self.plain, self.replayed = self.files
        if self.world.wild:
            self.plain = self.stack.enter_context(closing(connect()))
        self.log: list[str] = []
        self.committed = 0
        self.error = sqlite3.Error()
        for conn in self.files:
            conn.fetch_all("PRAGMA trusted_schema = OFF")
        for sql in self.world.schema:
            for conn in self.files:
                conn.run(sql)
        definitions = Definitions(self.plain)
        for table in () if self.world.wild else self.world.tables:
            events = [f"{time} {event}" for time in ("AFTER", "BEFORE") for event in ("INSERT", "UPDATE", "DELETE")]
            for number, event in enumerate(events if definitions.table(self.plain, table).unique else events[:3]):
                self.plain.run(f"CREATE TEMP TRIGGER nothing_{table}_{number} {event} ON {table} BEGIN SELECT 1; END")

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stack.close()

    @property
    def both(self) -> list[Connection]:
        return [self.captured] if self.world.wild else [self.captured, self.plain]

    def has_grown(self) -> bool:
        """Tell whether there are so many rows that a statement could take minutes: triggers multiply them."""
        rows = [self.captured.fetch_row(f"SELECT count(*) FROM {table}") for table in self.world.tables]
        return any(row is not None and row[0] > 25 for row in rows)

    def round(self) -> None:
        """Run one transaction. Raises Difference."""
        self.log = []
        for conn in self.both:
            conn.run("BEGIN IMMEDIATE")
        section = self._captured_section()
        if self.captured.fetch_all("SELECT name FROM temp.sqlite_schema"):
            raise Difference("something of the capture is left", self.seed, self.log)
        if section is None:
            self._end_both("ROLLBACK")
        else:
            self.committed += 1
            self._replay(section)

    def _captured_section(self) -> bytes | None:
        """Return the redo of a transaction that was committed; None for one that was not."""
        definitions = Definitions(self.captured)
        touched = Touched()
        with capturing(self.captured, (), definitions) as capture:
            self._transaction(capture, definitions, touched)
            if not self.captured.in_transaction:
                return None
            capture.collect(0, touched)
            self._touch_more(definitions, touched)
            section = read_images(self.captured, touched.on(0), definitions)
            return section if self._commit() else None

    def _touch_more(self, definitions: Definitions, touched: Touched) -> None:
        """Name rows that nobody changed, or whole tables: that must do no harm."""
        for table in self.world.tables:
            if self.r.random() < 0.1:
                touched.whole(0, table)
            elif self.r.random() < 0.3 and not definitions.table(self.captured, table).by_key:
                touched.add(0, table, [self.r.randint(-2, 8) for _ in range(4)])

    def _transaction(self, capture: KeyCapture, definitions: Definitions, touched: Touched) -> None:
        savepoints = 0
        for _ in range(self.r.randint(1, 8)):
            choice = self.r.random()
            if choice < 0.08:
                savepoints += 1
                self._both(f"SAVEPOINT s{savepoints}")
            elif choice < 0.14 and savepoints:
                to = self.r.randint(1, savepoints)
                with capture.undoing():
                    self._both(f"ROLLBACK TO s{to}")
                savepoints = to
            elif choice < 0.17 and savepoints:
                savepoints = self.r.randint(1, savepoints)
                self._both(f"RELEASE s{savepoints}")
                savepoints -= 1
            else:
                table, sql = self.world.statement()
                self._statement(capture, definitions, touched, table, sql)
            if not self.captured.in_transaction:
                return

    def _both(self, sql: str) -> None:
        self.log.append(sql)
        for conn in self.both:
            conn.run(sql)

    def _statement(self, capture: KeyCapture, definitions: Definitions, touched: Touched, table: str, sql: str) -> None:
        self.log.append(sql)
        definition = definitions.table(self.captured, table)
        # With BEFORE triggers, as the twin has them, a wrong type in a STRICT table is found before a conflict is.
        alike = not (definition.unique and table in self.world.strict)
        if alike and is_plain(sql, definition) and self.r.random() < 0.5:
            self.log[-1] += "  -- by RETURNING"
            here = self._answer(self.captured, with_returning(sql, definition), capture)
            if isinstance(here[0], list):
                touched.add(0, table, [row[-1] for row in here[0]])
                here = ([row[:-1] for row in here[0]] if "RETURNING" in sql else [], *here[1:])
            elif keeps_rows(self.error):
                touched.whole(0, table)
            else:
                touched.add(0, table)
        else:
            capture.watch([table])
            here = self._answer(self.captured, sql, capture)
        if self.world.wild:
            return
        there = self._answer(self.plain, sql, None)
        if repr(here) != repr(there):
            raise Difference("the answers", here, there, self.seed, self.world.schema, self.log)

    def _answer(self, conn: Connection, sql: str, capture: KeyCapture | None) -> tuple[Any, ...]:
        before = conn.total_changes
        own = capture.own_changes() if capture is not None else 0
        try:
            cursor = conn.run(sql)
            rows = sorted(cursor.fetchall(), key=repr)
        except sqlite3.Error as error:
            self.error = error
            if capture is not None and conn.in_transaction:
                capture.failed(conn.total_changes - before - (capture.own_changes() - own))
            return str(error), conn.in_transaction, conn.fetch_row("SELECT changes(), last_insert_rowid()")
        grown = conn.total_changes - before
        if capture is not None:
            grown -= capture.own_changes() - own
        told = conn.fetch_row("SELECT changes(), last_insert_rowid()")
        assert told is not None
        return rows, cursor.rowcount, grown, told

    def _commit(self) -> bool:
        outcomes = []
        for conn in self.both:
            try:
                conn.run("COMMIT")
                outcomes.append("")
            except sqlite3.Error as error:
                outcomes.append(str(error))
        if len(set(outcomes)) != 1:
            raise Difference("COMMIT", outcomes, self.seed, self.log)
        return not outcomes[0]

    def _end_both(self, sql: str) -> None:
        for conn in self.both:
            if conn.in_transaction:
                conn.run(sql)

    def _replay(self, section: bytes) -> None:
        conn = self.replayed
        prepare_replay(conn)
        for _ in range(self.r.choice([1, 1, 1, 2])):
            conn.run("BEGIN IMMEDIATE")
            write_images(conn, section)
            conn.run("COMMIT")
        wanted = dump(self.captured)
        others = [("replayed", conn)] if self.world.wild else [("replayed", conn), ("without capture", self.plain)]
        for name, other in others:
            found = dump(other)
            if found != wanted:
                wrong = {
                    part: (wanted.get(part), found.get(part)) for part in wanted if wanted[part] != found.get(part)
                }
                raise Difference(name, wrong, self.seed, self.world.schema, self.log)


def failures(seeds: Sequence[int], rounds: int, enough: int = 1_000_000) -> tuple[int, int, list[str]]:
    """Run so many transactions with each seed; return how many were committed, replayed wrongly, and what differed.

    A seed ends with its first difference, everything with ``enough`` of them.
    """
    committed, wrong, shown = 0, 0, []
    for seed in seeds:
        if wrong >= enough:
            break
        try:
            world = Rounds(seed)
        except sqlite3.OperationalError:
            continue  # a schema that SQLite doesn't take
        with world:
            try:
                for _ in range(rounds):
                    if not world.has_grown():
                        world.round()
            except Exception as error:
                wrong += 1
                shown.append(f"seed {seed}: {type(error).__name__}: {error}")
            committed += world.committed
    return committed, wrong, shown
