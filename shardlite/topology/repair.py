"""Mend what ``check`` found, where there is one right way to do it.

Each act is one transaction on one shard file, so that a kill in between leaves something that the next repair ends:
a misplaced row is first inserted where it belongs, then deleted where it stood, and only if the row at its right place
is the same in every column. Triggers and foreign-key actions must not run for rows that only move: foreign keys are
off, and the table's triggers are dropped and made again in the same transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardlite.driver import sqlite3
from shardlite.execute.database import Database
from shardlite.execute.files import shard_path
from shardlite.execute.state import key_store_of
from shardlite.execute.triggers_off import triggers_off
from shardlite.names import fold, is_reserved, quote
from shardlite.router.table import Table
from shardlite.sql.shard_schema import identity_columns
from shardlite.topology.loading import copied_columns
from shardlite.topology.pinned import pass_over_views
from shardlite.topology.placing import PlacingFunction
from shardlite.topology.report import Problem, ProblemKind


class Repair:
    """One repair of an open database."""

    def __init__(self, database: Database, problems: Sequence[Problem]) -> None:
        self._db = database
        self._problems = problems
        self._acts: list[str] = []

    def run(self) -> tuple[str, ...]:
        """Do what can be done, and return each act in words."""
        for problem in self._problems:
            table = self._db.catalog.tables.get(fold(problem.table or ""))
            if table is None:
                continue
            if problem.kind is ProblemKind.MISPLACED_ROW and problem.shard is not None:
                self._move(table, problem.shard)
        self._mend_copies()
        # After the rows are in their places: moving doesn't change ids, but a sequence may be behind all the same.
        for problem in self._problems:
            table = self._db.catalog.tables.get(fold(problem.table or ""))
            if table is not None and problem.kind is ProblemKind.SEQUENCE:
                self._raise_sequence(table)
        return tuple(self._acts)

    def _move(self, table: Table, source: int) -> None:
        for target in self._db.layout.shard_ids:
            if target == source or (not table.sharded and target != 0):
                continue
            placed = self._insert_there(table, source, target)
            removed = self._delete_here(table, source, target)
            if placed or removed:
                self._acts.append(
                    f"{table.name}: moved {removed:,} row(s) from shard {source} to shard {target}, where they belong"
                )

    @contextlib.contextmanager
    def _condition(self, conn: sqlite3.Connection, table: Table, alias: str, target: int) -> Iterator[str]:
        """Give the condition that a row belongs to the target, for a statement to be run in the block.

        A key that stands beside the row is taken from ``<alias>k``; see ``_rows_of``.
        """
        if not table.sharded:
            yield "1"
            return
        placing = PlacingFunction(self._db.layout, table, columns=("key",) if table.explicit_key else ())
        placing.register(conn)
        with placing.statement():
            yield f"{placing.call(f'{alias}k' if table.explicit_key else alias, raw=True)} = {target}"

    def _insert_there(self, table: Table, source: int, target: int) -> int:
        names = copied_columns(table)
        with self._writing(target, source, table) as conn, self._condition(conn, table, "r", target) as condition:
            if table.explicit_key:
                # What is remembered under the id of no row is of a row that is gone.
                conn.execute(
                    f"DELETE FROM main.{_store(table)} WHERE NOT EXISTS "
                    f"(SELECT 1 FROM main.{quote(table.name)} AS t WHERE t.{table.rowid_name} = id)"
                )
            placed = conn.execute(
                f"INSERT OR IGNORE INTO main.{quote(table.name)}({', '.join(names)}) "
                f"SELECT {', '.join(f'r.{n}' for n in names)} FROM {_rows_of(table, 'other', 'r')} WHERE {condition}"
            ).rowcount
            if table.explicit_key:
                there = f"{_rows_of(table, 'other', 'r')}, main.{quote(table.name)} AS d"
                conn.execute(
                    f"INSERT OR IGNORE INTO main.{_store(table)}(id, key) SELECT rk.id, rk.key FROM {there} "
                    f"WHERE {_same(names, 'r', 'd')} AND {condition} AND rk.id IS NOT NULL"
                )
        return placed

    def _delete_here(self, table: Table, source: int, target: int) -> int:
        names = copied_columns(table)
        place = quote(table.name)
        identity = [table.rowid_name] if table.rowid_name else [quote(name) for name in identity_columns(table)]
        same = _same(names, "d", "h")
        if table.explicit_key:
            same += f" AND {_same(['key'], 'dk', 'hk')}"
        with self._writing(source, target, table) as conn, self._condition(conn, table, "h", target) as condition:
            found = ", ".join(f"h.{name}" for name in identity)
            pairs = f"{_rows_of(table, 'main', 'h')}, {_rows_of(table, 'other', 'd')}"
            rows = f"SELECT {found} FROM {pairs} WHERE {same} AND {condition}"
            # A key that is remembered beside a row goes with it: by a trigger, which is shardlite's own and stays.
            return conn.execute(f"DELETE FROM main.{place} WHERE ({', '.join(identity)}) IN ({rows})").rowcount

    def _mend_copies(self) -> None:
        """Make the copies of reference tables equal, and lose no row that only one of them holds."""
        found: dict[str, list[int]] = {}
        for problem in self._problems:
            if problem.kind is ProblemKind.REFERENCE_COPY and problem.shard is not None:
                found.setdefault(fold(problem.table or ""), []).append(problem.shard)
        for name, shards in found.items():
            if (table := self._db.catalog.tables.get(name)) is None:
                continue
            added = [self._adopt(table, shard) for shard in shards]
            for shard in [s for s in self._db.layout.shard_ids if s] if any(added) else shards:
                self._copy_again(table, shard)

    def _adopt(self, table: Table, shard: int) -> int:
        """Insert on shard 0 what only this copy holds, where nothing there stands against it."""
        names = copied_columns(table)
        with self._writing(0, shard, table) as conn:
            count = conn.execute(
                f"INSERT OR IGNORE INTO main.{quote(table.name)}({', '.join(names)}) "
                f"SELECT {', '.join(f'c.{n}' for n in names)} {_only_in(table, 'other', 'main')}"
            ).rowcount
        if count:
            self._acts.append(f"{table.name}: added {count:,} row(s) to shard 0 that only shard {shard} held")
        return count

    def _copy_again(self, table: Table, shard: int) -> None:
        names = ", ".join(copied_columns(table))
        with self._writing(shard, 0, table) as conn:
            if conn.execute(f"SELECT EXISTS (SELECT 1 {_only_in(table, 'main', 'other')})").fetchone()[0]:
                return  # the next look at the copies goes on reporting it
            conn.execute(f"DELETE FROM main.{quote(table.name)}")
            count = conn.execute(
                f"INSERT INTO main.{quote(table.name)}({names}) SELECT {names} FROM other.{quote(table.name)}"
            ).rowcount
        self._acts.append(f"{table.name}: copied {count:,} row(s) from shard 0 to shard {shard} again")

    def _raise_sequence(self, table: Table) -> None:
        rowid = quote(table.rowid_name or "rowid")
        tops = [
            shard.fetch_row(f"SELECT max({rowid}) FROM {quote(table.name)}", ()) or (0,) for shard in self._db.shards
        ]
        top = max(row[0] or 0 for row in tops)
        following = self._db.catalog.bump(fold(table.name), top + 1)
        self._db.catalog.fence.bump_sequence_epoch()
        self._acts.append(f"{table.name}: the next generated id is {following:,} now")

    @contextlib.contextmanager
    def _writing(self, shard: int, other: int, table: Table) -> Iterator[sqlite3.Connection]:
        """Give a connection to a shard, in a transaction without the table's triggers; another shard is ``other``."""
        directory, timeout_s = self._db.directory, self._db.timeout_s
        uri = Path(shard_path(directory, shard)).resolve().as_uri() + "?mode=rw"
        attached = Path(shard_path(directory, other)).resolve().as_uri() + "?mode=rw"
        conn = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout_s)
        with contextlib.closing(conn):
            self._db.registry.apply(conn)
            for pragma in (
                "foreign_keys=OFF",
                "wal_autocheckpoint=0",
                "ignore_check_constraints=ON",
                "synchronous=FULL",
            ):
                conn.execute(f"PRAGMA {pragma}").fetchall()
            conn.execute("SELECT 1 FROM main.sqlite_schema LIMIT 1").fetchall()  # main's schema is to be read whole
            pass_over_views(conn)
            conn.execute("ATTACH ? AS other", (attached,))
            conn.execute("PRAGMA writable_schema = OFF")
            conn.execute("BEGIN")
            try:
                # A write lock on this file alone; the other one is only read.
                conn.execute("UPDATE main._shardlite_meta SET id = id WHERE 0")
                triggers = conn.execute(
                    "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE",
                    (table.name,),
                ).fetchall()
                triggers = [(name, sql) for name, sql in triggers if not is_reserved(name)]
                with triggers_off(conn.execute, triggers):
                    yield conn
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise


def _store(table: Table) -> str:
    return quote(key_store_of(table))


def _rows_of(table: Table, schema: str, alias: str) -> str:
    """Return the table for a FROM, with keys beside its rows as ``<alias>k``: kept whole, not all rows have one."""
    place = f"{schema}.{quote(table.name)} AS {alias}"
    if not table.explicit_key:
        return place
    join = "JOIN" if table.sharded else "LEFT JOIN"
    return f"{place} {join} {schema}.{_store(table)} AS {alias}k ON {alias}k.id = {alias}.{table.rowid_name}"


def _same(names: Sequence[str], one: str, other: str) -> str:
    """Return the condition that two rows are the same in these columns, types included."""
    return " AND ".join(f"{one}.{n} IS {other}.{n} AND typeof({one}.{n}) = typeof({other}.{n})" for n in names)


def _only_in(table: Table, here: str, there: str) -> str:
    """Return FROM and WHERE for the rows ``c`` of a reference table that are in one schema and not in another.

    A row is the same one when its primary key is; without one, or with a NULL in it, when all its columns are.
    """
    names = copied_columns(table)
    key = [quote(name) for name in ([table.rowid_alias] if table.rowid_alias else table.primary_key)]
    equal = _same(names, "h", "c")
    same = f"SELECT 1 FROM {there}.{quote(table.name)} AS h WHERE "
    tests = [f"NOT EXISTS ({same}{equal})"]
    if key:
        tests.append(f"NOT EXISTS ({same}{' AND '.join(f'h.{n} = c.{n}' for n in key)})")
    # The key first: it has an index.
    return f"FROM {here}.{quote(table.name)} AS c WHERE {' AND '.join(reversed(tests))}"
