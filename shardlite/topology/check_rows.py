"""Looking at the rows of all shards: places, copies, and the constraints that no shard sees by itself.

Placement is computed inside SQLite. What has to be compared over shards is gathered in the temporary file
that each reader has as its main database, so memory stays constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError
from shardlite.execute.state import key_store_of
from shardlite.names import fold, quote
from shardlite.router.catalog import Catalog
from shardlite.router.keys import MAX_INTEGER
from shardlite.router.table import ForeignKey, Table, TableKind, UniqueConstraint
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.topology.choose import foreign_key_text, seen_foreign_keys
from shardlite.topology.fingerprint import fingerprint_table
from shardlite.topology.pinned import Reader
from shardlite.topology.placing import PlacingFunction
from shardlite.topology.progress import Meter
from shardlite.topology.report import Phase, Problem, ProblemKind

_SHIP_ROWS = 1000


class RowChecks:
    """The row checks of one look at a database. ``problems`` and ``rows`` hold the result."""

    def __init__(
        self, catalog: Catalog, readers: Sequence[Reader], usable: Sequence[int], complete: bool, meter: Meter
    ) -> None:
        self._catalog = catalog
        self._readers = readers
        self._usable = frozenset(usable)
        self._complete = complete
        self._meter = meter
        self.problems: list[Problem] = []
        self.rows = 0

    def run(self) -> None:
        for table in self._catalog.tables.values():
            tick = self._meter.phase(Phase.VERIFYING, table.name, None)
            self._check(table)
            tick(1)

    def _check(self, table: Table) -> None:
        if table.virtual:
            # Nothing to look at, but they count, as they do in import's report and in `info`.
            with contextlib.suppress(sqlite3.Error):  # its module may be missing here
                self.rows += sum(self._count(conn, table, shard) for conn, shard in self._places() if shard == 0)
            return
        counts = {shard: self._count(conn, table, shard) for conn, shard in self._places()}
        self.rows += sum(counts.values()) if table.sharded else counts.get(0, 0)
        if table.kind is TableKind.SINGLE:
            self._check_empty(table, counts)
        elif table.kind is TableKind.REFERENCE:
            self._check_copies(table)
        else:
            self._check_places(table)
        self._check_seen_keys(table)
        if not self._complete:
            return  # what is missing on one shard may be on one that can't be read
        if table.sharded:
            self._check_rowids(table)
            for constraint in unseen_uniqueness(table):
                self._check_unique(table, constraint)
            self._check_sequence(table)
        for key in seen_foreign_keys(table, self._catalog.tables)[1]:
            self._check_hidden_key(table, key)

    def _places(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        for reader in self._readers:
            for shard in reader.shards:
                if shard in self._usable:
                    yield reader.conn, shard

    def _count(self, conn: sqlite3.Connection, table: Table, shard: int) -> int:
        return int(conn.execute(f"SELECT count(*) FROM {_at(shard, table)}").fetchone()[0])

    def _add(
        self, kind: ProblemKind, table: Table, detail: str, remedy: str, *, shard: int | None = None, count: int = 1
    ) -> None:
        self.problems.append(Problem(kind, detail, remedy, shard, table.name, count))

    # places

    def _check_empty(self, table: Table, counts: dict[int, int]) -> None:
        for shard, count in counts.items():
            if shard and count:
                self._add(
                    ProblemKind.MISPLACED_ROW,
                    table,
                    f"{table.name} is single, but {count:,} row(s) of it are on shard {shard}",
                    "check with repair moves them to shard 0 where that is unambiguous",
                    shard=shard,
                    count=count,
                )

    def _check_copies(self, table: Table) -> None:
        prints = {shard: fingerprint_table(conn, table, schema=f"s{shard}") for conn, shard in self._places()}
        home = prints.get(0)
        for shard, found in prints.items():
            if home is not None and found != home:
                self._add(
                    ProblemKind.REFERENCE_COPY,
                    table,
                    f"{table.name}: the copy on shard {shard} ({found.rows:,} rows) differs from the one on shard 0 "
                    f"({home.rows:,} rows)",
                    "check with repair copies it from shard 0 again, after adding to shard 0 what only the copy holds; "
                    "where such rows can't be added it leaves that copy as it is: insert them anew, delete them there",
                    shard=shard,
                )

    def _check_places(self, table: Table) -> None:
        try:
            placing = PlacingFunction(self._catalog.layout, table, columns=("key",) if table.explicit_key else ())
        except ProgrammingError as error:
            self._add(
                ProblemKind.SCHEMA,
                table,
                f"{table.name}: the layout can't place its keys: {error}",
                "read its rows with select(), and make the table anew with a key of the boundaries' type",
            )
            return
        name = key_store_of(table) if table.explicit_key else table.name
        for conn, shard in self._places():
            placing.register(conn)
            count, example = self._misplaced(conn, placing, name, table, shard)
            if count:
                self._add(
                    ProblemKind.MISPLACED_ROW,
                    table,
                    f"{table.name}: {count:,} row(s) on shard {shard} belong elsewhere (one of them: {example})",
                    "check with repair moves them where that is unambiguous",
                    shard=shard,
                    count=count,
                )

    def _misplaced(
        self, conn: sqlite3.Connection, placing: PlacingFunction, name: str, table: Table, shard: int
    ) -> tuple[int, str]:
        columns = ("key",) if table.explicit_key else table.key_columns
        shown = " || ', ' || ".join(f"quote({quote(c)})" for c in columns)

        def look(raw: bool) -> tuple[int, Any]:
            sql = f"SELECT count(*), min({shown}) FROM s{shard}.{quote(name)} WHERE {placing.call(raw=raw)} <> {shard}"
            with _lenient(conn) if raw else contextlib.nullcontext():
                row = conn.execute(sql).fetchone()
            return row[0], row[1]

        count, example = placing.text_first(look)
        return count, f"key {example}"

    def _check_rowids(self, table: Table) -> None:
        """Rowids of a sharded table are unique over the shards; those that are the key are so by their place."""
        rowid = table.rowid_name
        if rowid is None or len(self._usable) < 2:
            return
        if table.rowid_alias is not None and [fold(k) for k in table.key_columns] == [fold(table.rowid_alias)]:
            return
        sql = "INSERT OR IGNORE INTO main._ids SELECT {rowid} FROM {place}"
        with self._gathering("_ids", "id INTEGER PRIMARY KEY") as conn:
            total = 0
            for other, shard in self._places():
                total += self._count(other, table, shard)
                if other is conn:
                    conn.execute(sql.format(rowid=quote(rowid), place=_at(shard, table)))
                else:
                    self._ship(other, f"SELECT {quote(rowid)} FROM {_at(shard, table)}", [conn], "_ids", 1)
            repeated = total - conn.execute("SELECT count(*) FROM main._ids").fetchone()[0]
        if repeated:
            self._add(
                ProblemKind.DUPLICATE_ROWID,
                table,
                f"{table.name}: {repeated:,} {table.rowid_alias or 'rowid'} value(s) stand on more than one shard",
                "give one of each two rows another one",
                count=repeated,
            )

    def _check_sequence(self, table: Table) -> None:
        if table.rowid_name is None:
            return
        rowid = quote(table.rowid_name)
        tops = [
            conn.execute(f"SELECT max({rowid}) FROM {_at(shard, table)}").fetchone()[0] or 0
            for conn, shard in self._places()
        ]
        top, following = max(tops, default=0), self._catalog.next_id(fold(table.name))
        if following <= top < MAX_INTEGER:
            self._add(
                ProblemKind.SEQUENCE,
                table,
                f"{table.name}: the next id would be {following:,}, but {top:,} is in use",
                "check with repair raises the sequence",
            )

    # constraints

    def _check_seen_keys(self, table: Table) -> None:
        """Foreign keys that stand in the shards' own definitions: SQLite's check, shard by shard."""
        if not table.foreign_keys:
            return
        for conn, shard in self._places():
            if table.kind is TableKind.SINGLE and shard:
                continue
            sql = f"SELECT parent, count(*) FROM pragma_foreign_key_check(?, 's{shard}') GROUP BY 1"
            try:
                found = conn.execute(sql, (table.name,)).fetchall()
            except sqlite3.Error as error:
                self._add(ProblemKind.FOREIGN_KEY, table, f"{table.name}: {error}", "mend the definition", shard=shard)
                return
            for parent, count in found:
                self._report_orphans(table, f"refer to rows that {parent} doesn't have", count, shard)

    def _report_orphans(self, table: Table, text: str, count: int, shard: int) -> None:
        self._add(
            ProblemKind.FOREIGN_KEY,
            table,
            f"{table.name}: {count:,} row(s) on shard {shard} {text}",
            "insert the missing rows, or delete or change these",
            shard=shard,
            count=count,
        )

    def _check_hidden_key(self, table: Table, key: ForeignKey) -> None:
        """A foreign key that no shard sees: gather the parents' keys, then look for each child's."""
        parent = self._catalog.tables.get(fold(key.parent))
        given = " AND ".join(f"{quote(c)} IS NOT NULL" for c in key.columns)
        shards = [(conn, s) for conn, s in self._places() if table.sharded or s == 0]
        text = f"break {foreign_key_text(key)}, which no shard enforces"
        names = _parent_columns(parent, key) if parent is not None else []
        if parent is None or not names:
            what = "there is no table" if parent is None else "that is no key of"
            for conn, shard in shards:
                count = conn.execute(f"SELECT count(*) FROM {_at(shard, table)} WHERE {given}").fetchone()[0]
                if count:
                    self._report_orphans(table, f"{text} ({what} {key.parent})", count, shard)
            return
        columns = ", ".join(f"c{i} {_column_type(parent, name)}" for i, name in enumerate(names))
        listed = ", ".join(f"c{i}" for i in range(len(names)))
        match = " AND ".join(f"p.c{i} = t.{quote(c)}" for i, c in enumerate(key.columns))
        with contextlib.ExitStack() as stack:
            conns = [stack.enter_context(_table(r.conn, "_parents", columns)) for r in self._readers]
            self._gather_parents(parent, names, conns)
            for conn in conns:
                conn.execute(f"CREATE INDEX main._parents_by_key ON _parents({listed})")
            for conn, shard in shards:
                sql = (
                    f"SELECT count(*) FROM {_at(shard, table)} AS t WHERE {given} "
                    f"AND NOT EXISTS (SELECT 1 FROM main._parents AS p WHERE {match})"
                )
                count = conn.execute(sql).fetchone()[0]
                if count:
                    self._report_orphans(table, text, count, shard)

    def _gather_parents(self, parent: Table, names: Sequence[str], conns: Sequence[sqlite3.Connection]) -> None:
        listed = ", ".join(map(quote, names))
        given = " AND ".join(f"{quote(name)} IS NOT NULL" for name in names)
        for conn, shard in self._places():
            if not parent.sharded and shard:
                continue
            select = f"SELECT {listed} FROM {_at(shard, parent)} WHERE {given}"
            conn.execute(f"INSERT INTO main._parents {select}")
            others = [other for other in conns if other is not conn]
            if others:
                self._ship(conn, select, others, "_parents", len(names))

    def _check_unique(self, table: Table, constraint: UniqueConstraint) -> None:
        if constraint.partial or None in constraint.columns:
            self._check_unique_index(table, constraint)
            return
        names = [name for name in constraint.columns if name is not None]
        collations = constraint.collations or [table.by_name[fold(name)].collation for name in names]
        columns = ", ".join(
            f"c{i} {_declared(table, name)} COLLATE {quote(coll)}"
            for i, (name, coll) in enumerate(zip(names, collations, strict=True))
        )
        listed = ", ".join(map(quote, names))
        given = " AND ".join(f"{quote(name)} IS NOT NULL" for name in names)
        grouped = ", ".join(f"c{i}" for i in range(len(names)))
        with self._gathering("_values", columns) as conn:
            for other, shard in self._places():
                select = f"SELECT {listed} FROM {_at(shard, table)} WHERE {given}"
                if other is conn:
                    conn.execute(f"INSERT INTO main._values {select}")
                else:
                    self._ship(other, select, [conn], "_values", len(names))
            sql = f"SELECT min(quote(c0)) FROM main._values GROUP BY {grouped} HAVING count(*) > 1"
            with _lenient(conn):
                count, example = conn.execute(f"SELECT count(*), min(1) FROM ({sql})").fetchone()
                if count:
                    example = conn.execute(f"{sql} LIMIT 1").fetchone()[0]
        if count:
            self._report_repeated(
                table, f"UNIQUE ({', '.join(names)})", f"{count:,} value(s), such as {example},", count
            )

    def _check_unique_index(self, table: Table, constraint: UniqueConstraint) -> None:
        """A unique index on an expression, or on some rows only: build it over all rows and see."""
        sql = next((o.sql for o in self._catalog.schema if fold(o.name) == fold(constraint.name)), None)
        if sql is None:
            return
        columns = ", ".join(f"{quote(c.name)} {_column_type(table, c.name)}" for c in table.columns)
        listed = ", ".join(quote(c.name) for c in table.columns)
        with self._gathering(table.name, columns) as conn:
            for other, shard in self._places():
                select = f"SELECT {listed} FROM {_at(shard, table)}"
                if other is conn:
                    conn.execute(f"INSERT INTO main.{quote(table.name)} {select}")
                else:
                    self._ship(other, select, [conn], table.name, len(table.columns))
            try:
                conn.execute(sql)
            except sqlite3.IntegrityError:
                self._report_repeated(table, f"the unique index {constraint.name}", "some values", 1)

    def _report_repeated(self, table: Table, what: str, values: str, count: int) -> None:
        self._add(
            ProblemKind.UNIQUE,
            table,
            f"{table.name}: {values} stand(s) in more than one row, against {what}, which no shard enforces alone",
            "change or delete all but one of each",
            count=count,
        )

    # gathering

    @contextlib.contextmanager
    def _gathering(self, name: str, columns: str) -> Iterator[sqlite3.Connection]:
        with _table(self._readers[0].conn, name, columns) as conn:
            yield conn

    def _ship(
        self, source: sqlite3.Connection, select: str, targets: Sequence[sqlite3.Connection], name: str, width: int
    ) -> None:
        """Copy rows to readers on other connections. Text that is not UTF-8 can't go this way and is left out."""
        insert = f"INSERT OR IGNORE INTO main.{quote(name)} VALUES ({', '.join('?' * width)})"
        with _lenient(source, _utf8_or_none):
            cursor = source.execute(select)
            while rows := cursor.fetchmany(_SHIP_ROWS):
                for target in targets:
                    target.executemany(insert, rows)


def _at(shard: int, table: Table) -> str:
    return f"s{shard}.{quote(table.name)}"


def _parent_columns(parent: Table, key: ForeignKey) -> list[str]:
    """Return the parent's columns as declared; none where the foreign key fits no key of the parent."""
    names = key.parent_columns or parent.primary_key
    if len(names) != len(key.columns) or any(fold(name) not in parent.by_name for name in names):
        return []
    return [parent.by_name[fold(name)].name for name in names]


def _declared(table: Table, name: str) -> str:
    """Return a type with the column's affinity; a declared text such as a STRICT table's ANY would mean another."""
    affinity = table.by_name[fold(name)].affinity.value.upper()
    return affinity if affinity in ("INTEGER", "REAL", "TEXT", "NUMERIC", "BLOB") else "BLOB"


def _column_type(table: Table, name: str) -> str:
    return f"{_declared(table, name)} COLLATE {quote(table.by_name[fold(name)].collation)}"


@contextlib.contextmanager
def _table(conn: sqlite3.Connection, name: str, columns: str) -> Iterator[sqlite3.Connection]:
    """Have a table in the reader's own temporary file."""
    conn.execute(f"CREATE TABLE main.{quote(name)}({columns})")
    try:
        yield conn
    finally:
        conn.execute(f"DROP TABLE main.{quote(name)}")


def _utf8_or_none(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _replaced(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


@contextlib.contextmanager
def _lenient(conn: sqlite3.Connection, factory: Callable[[bytes], Any] = _replaced) -> Iterator[None]:
    before = conn.text_factory
    conn.text_factory = factory
    try:
        yield
    finally:
        conn.text_factory = before
