"""Moving rows from a source file into shard files, inside SQLite, at constant memory.

First the shard of every row is worked out, once, into a private routing file: one row (shard, position) per source row.
Then *movers*, connections that have the source and up to nine shard files attached, copy with INSERT ... SELECT: values
never pass through Python, so blobs, text of any bytes and exact reals come over as they are. Each mover works in
one transaction without a journal: the shard files are private until the whole import has been verified, and an
import that fails throws them away.

All connections read the same state of the source, also when it is in WAL mode and others write to it: each begins a
read transaction, and ``PRAGMA data_version`` of one more connection tells that nothing was committed meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.names import fold, quote
from shardlite.router.layout import Layout
from shardlite.router.table import Table, TableKind
from shardlite.topology.pinned import pass_over_views
from shardlite.topology.placing import PlacingFunction

BATCH_ROWS = 50_000
SHARDS_PER_MOVER = 9
"""SQLite attaches up to ten files unless built otherwise: the source and nine shards."""
_CACHE_KIB = 65_536
"""Page cache of all shard files together while they are loaded."""
_PIN_TIMEOUT_S = 30.0

Tick = Callable[[int], None]
Span = tuple[int | None, int | None]
"""Positions from (exclusive) to (inclusive); None is unbounded."""


@dataclass
class Load:
    """What to copy: a table, the number of its routing table, and the spans of its batches with their rows."""

    table: Table
    number: int
    rows: int
    spans: list[tuple[Span, int]] = field(default_factory=list)


class Loader:
    """Reads one source and writes the shard files of one directory that is not yet in use.

    Use as a context manager: leaving it closes every connection. ``reader`` is a connection with the source attached
    as ``src``, in the read transaction that all of them share.
    """

    def __init__(
        self,
        source_uri: str,
        shard_files: Sequence[Path],
        layout: Layout,
        workspace: Path,
        *,
        threads: int | None = None,
    ) -> None:
        self._uri = source_uri
        self._files = list(shard_files)
        self._layout = layout
        self._routing_file = workspace / "routing.db"
        self._threads = threads if threads is not None else min(4, os.cpu_count() or 1)
        self._stack = contextlib.ExitStack()
        self.reader: sqlite3.Connection
        self._router: sqlite3.Connection
        self._movers: list[tuple[sqlite3.Connection, list[int]]] = []
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Loader:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._routing_file.unlink(missing_ok=True))
            self.reader = self._connect(stack, ":memory:")
            self._router = self._connect(stack, self._routing_file.resolve().as_uri())
            # The journal stays almost empty: it holds pages that were there when the transaction began.
            for pragma in ("journal_mode=MEMORY", "synchronous=OFF", "cache_size=-16384"):
                self._router.execute(f"PRAGMA main.{pragma}").fetchall()
            self._movers = [(self._connect_mover(stack, shards), shards) for shards in self._groups()]
            self._pin()
            if len(self._movers) > 1:
                self._executor = stack.enter_context(ThreadPoolExecutor(min(self._threads, len(self._movers))))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _groups(self) -> list[list[int]]:
        """Split the shards among movers: few enough for ATTACH, and as many movers as there are threads."""
        count = len(self._files)
        movers = max(-(-count // SHARDS_PER_MOVER), min(self._threads, count))
        return [list(range(i, count, movers)) for i in range(movers)]

    def _connect(self, stack: contextlib.ExitStack, main: str) -> sqlite3.Connection:
        conn = sqlite3.connect(main, uri=True, isolation_level=None, check_same_thread=False)
        stack.callback(conn.close)
        conn.execute("PRAGMA foreign_keys=OFF")
        # All files on one connection must have one text encoding, an empty main one too.
        conn.execute(f"PRAGMA encoding = '{self._layout.encoding}'")
        pass_over_views(conn)
        conn.execute("ATTACH ? AS src", (self._uri,))
        return conn

    def _connect_mover(self, stack: contextlib.ExitStack, shards: Sequence[int]) -> sqlite3.Connection:
        conn = self._connect(stack, self._routing_file.resolve().as_uri())
        # Rows that broke a CHECK before it was declared are carried over as they are.
        conn.execute("PRAGMA ignore_check_constraints=ON")
        for shard in shards:
            conn.execute(f"ATTACH ? AS s{shard}", (self._files[shard].resolve().as_uri() + "?mode=rw",))
            cache = max(512, _CACHE_KIB // len(self._files))
            for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{cache}"):
                conn.execute(f"PRAGMA s{shard}.{pragma}").fetchall()
        return conn

    def _pin(self) -> None:
        """Begin a read transaction on every connection, all on one state of the source."""
        monitor = sqlite3.connect(self._uri, uri=True, isolation_level=None)
        try:
            conns = [self.reader, self._router, *(conn for conn, _shards in self._movers)]
            deadline = time.monotonic() + _PIN_TIMEOUT_S
            while True:
                before = monitor.execute("PRAGMA data_version").fetchone()
                for conn in conns:
                    conn.execute("BEGIN")
                    conn.execute("SELECT count(*) FROM (SELECT 1 FROM src.sqlite_schema LIMIT 1)").fetchone()
                if monitor.execute("PRAGMA data_version").fetchone() == before:
                    return
                for conn in conns:
                    conn.execute("ROLLBACK")
                if time.monotonic() > deadline:
                    raise OperationalError(
                        f"the source is written to so often that in {_PIN_TIMEOUT_S:.0f} s no state of it "
                        "could be held: import when it is quieter, or from a backup"
                    )
        finally:
            monitor.close()

    # routing

    def plan(self, table: Table, number: int, rows: int, tick: Tick) -> Load:
        """Work out the batches of one table and, where it is sharded over several files, the shard of every row."""
        load = Load(table, number, rows)
        routed = table.kind is TableKind.SHARDED and len(self._files) > 1
        if table.rowid_name is None:
            load.spans = self._route_keyed(load, tick) if routed else [((None, None), rows)]
            return load
        if routed:
            self._router.execute(
                f"CREATE TABLE main.r{number}(shard INTEGER, pos INTEGER, PRIMARY KEY (shard, pos)) WITHOUT ROWID"
            )
        placing = PlacingFunction(self._layout, table) if routed else None
        if placing is not None:
            placing.register(self._router)
        for span, count in self._spans(table):
            if placing is not None:
                self._route_span(load, placing, span)
                tick(count)
            load.spans.append((span, count))
        return load

    def _spans(self, table: Table) -> Iterator[tuple[Span, int]]:
        """Yield spans of at most BATCH_ROWS rows by rowid, with their rows."""
        rowid = quote(table.rowid_name or "rowid")
        low: int | None = None
        while True:
            where, bound = ("", ()) if low is None else (f"WHERE {rowid} > ?", (low,))
            inner = (
                f"SELECT {rowid} AS pos FROM src.{quote(table.name)} NOT INDEXED {where} "
                f"ORDER BY {rowid} LIMIT {BATCH_ROWS}"
            )
            count, high = self._router.execute(f"SELECT count(*), max(pos) FROM ({inner})", bound).fetchone()
            if count:
                yield (low, high), count
            if count < BATCH_ROWS:
                return
            low = high

    def _route_span(self, load: Load, placing: PlacingFunction, span: Span) -> None:
        rowid = quote(load.table.rowid_name or "rowid")
        where, bounds = _within(rowid, span)

        def insert(raw: bool) -> None:
            self._router.execute(
                f"INSERT INTO main.r{load.number}(shard, pos) SELECT {placing.call(raw=raw)}, {rowid} "
                f"FROM src.{quote(load.table.name)} NOT INDEXED {where}",
                bounds,
            )

        placing.text_first(insert)

    def _route_keyed(self, load: Load, tick: Tick) -> list[tuple[Span, int]]:
        """Route a WITHOUT ROWID table: the routing table holds the primary key beside a running number."""
        table, number = load.table, load.number
        keys = [f"k{i}" for i in range(len(table.primary_key))]
        self._router.execute(
            f"CREATE TABLE main.r{number}(shard INTEGER, pos INTEGER, {', '.join(keys)}, PRIMARY KEY (shard, pos)) "
            "WITHOUT ROWID"
        )
        placing = PlacingFunction(self._layout, table)
        placing.register(self._router)
        counter = itertools.count(1)
        self._router.create_function("_shardlite_position", 0, counter.__next__)
        columns = ", ".join(quote(name) for name in table.primary_key)

        def insert(raw: bool) -> None:
            self._router.execute(
                f"INSERT INTO main.r{number}(shard, pos, {', '.join(keys)}) SELECT {placing.call(raw=raw)}, "
                f"_shardlite_position(), {columns} FROM src.{quote(table.name)}"
            )

        placing.text_first(insert)
        tick(load.rows)
        first, last = self._router.execute(f"SELECT min(pos), max(pos) FROM main.r{number}").fetchone()
        if first is None:
            return []
        edges = [*range(first - 1, last, BATCH_ROWS), last]
        return [((low, high), high - low) for low, high in itertools.pairwise(edges)]

    def finish_routing(self) -> None:
        """Make the routing tables visible to the movers."""
        self._router.execute("COMMIT")
        self._router.close()

    # copying

    def copy(self, load: Load, tick: Tick) -> None:
        """Copy one table to the shards where its rows belong."""
        for span, count in load.spans:
            tasks = [(conn, [s for s in shards if self._takes(load.table, s)]) for conn, shards in self._movers]
            tasks = [(conn, shards) for conn, shards in tasks if shards]
            if self._executor is None or len(tasks) == 1:
                for conn, shards in tasks:
                    self._copy_span(conn, shards, load, span)
            else:
                futures = [self._executor.submit(self._copy_span, c, shards, load, span) for c, shards in tasks]
                for future in futures:
                    future.result()
            tick(count)

    def _takes(self, table: Table, shard: int) -> bool:
        return table.kind is not TableKind.SINGLE or shard == 0

    def _copy_span(self, conn: sqlite3.Connection, shards: Sequence[int], load: Load, span: Span) -> None:
        for shard in shards:
            conn.execute(*self._copy_statement(load, shard, span))

    def _copy_statement(self, load: Load, shard: int, span: Span) -> tuple[str, tuple[int, ...]]:
        table = load.table
        names = copied_columns(table)
        target = f"INSERT INTO s{shard}.{quote(table.name)}({', '.join(names)}) SELECT "
        picked = ", ".join(f"s.{name}" for name in names)
        source = f"src.{quote(table.name)} AS s"
        if table.kind is not TableKind.SHARDED or len(self._files) == 1:
            if table.rowid_name is None:
                return f"{target}{picked} FROM {source}", ()
            where, bounds = _within(f"s.{quote(table.rowid_name)}", span)
            return f"{target}{picked} FROM {source} NOT INDEXED {where}", bounds
        where, bounds = _within("r.pos", span)
        where = f"{where} AND" if where else "WHERE"
        routed = f"FROM main.r{load.number} AS r CROSS JOIN {source}"
        if table.rowid_name is not None:
            join = f"s.{quote(table.rowid_name)} = r.pos"
        else:
            rules = _key_collations(table)
            join = " AND ".join(
                f"s.{quote(name)} = r.k{i} COLLATE {quote(rules[name])}" for i, name in enumerate(table.primary_key)
            )
        return f"{target}{picked} {routed} {where} r.shard = {shard} AND {join} ORDER BY r.pos", bounds

    def copy_sequences(self) -> None:
        """Give every shard the source's AUTOINCREMENT counters: they may be above the highest rowid."""
        for conn, shards in self._movers:
            for shard in shards:
                conn.execute(f"DELETE FROM s{shard}.sqlite_sequence")
                conn.execute(
                    f"INSERT INTO s{shard}.sqlite_sequence(name, seq) SELECT name, seq FROM src.sqlite_sequence"
                )

    def commit(self) -> None:
        """End the movers' transactions and close them; the reader goes on."""
        for conn, _shards in self._movers:
            conn.execute("COMMIT")
            conn.close()
        self._movers = []


def copied_columns(table: Table) -> list[str]:
    """Return the quoted columns that an INSERT gives to copy a row whole: its rowid too, generated columns not."""
    names = [quote(column.name) for column in table.columns if column.writable]
    if table.rowid_name is not None and table.rowid_alias is None and not table.virtual:
        names.insert(0, table.rowid_name)
    return names


def _key_collations(table: Table) -> dict[str, str]:
    """Return by which collation the PRIMARY KEY compares each of its columns: it may be another than the column's."""
    rules = {name: table.by_name[fold(name)].collation for name in table.primary_key}
    for constraint in table.unique:
        if constraint.origin == "pk":
            parts = zip(constraint.columns, constraint.collations, strict=True)
            rules |= {table.by_name[fold(name)].name: rule for name, rule in parts if name is not None}
    return rules


def _within(name: str, span: Span) -> tuple[str, tuple[int, ...]]:
    low, high = span
    parts = ([] if low is None else [f"{name} > ?"]) + ([] if high is None else [f"{name} <= ?"])
    bounds = tuple(edge for edge in span if edge is not None)
    return (f"WHERE {' AND '.join(parts)}" if parts else ""), bounds
