"""What changes(), total_changes() and last_insert_rowid() tell: of the statements that a thread ran before."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shardlite.driver import sqlite3

SCRATCH = "temp._shardlite_past"


class Past(threading.local):
    """One thread's past with ``execute`` and ``executemany`` of one manager. All 0 at first, as on a new connection."""

    def __init__(self) -> None:
        self.changes = 0
        self.total = 0
        self.last_rowid = 0

    def note(self, changes: int, total: int, last_rowid: int | None) -> None:
        """Remember a statement that wrote: the rows it changed, those with triggers' and foreign keys' share."""
        self.changes = max(changes, 0)
        self.total += total
        if last_rowid is not None:
            self.last_rowid = last_rowid

    def tell(self, connection: sqlite3.Connection) -> None:
        """Let a connection answer as if it had that past. For a statement that only reads."""
        told: dict[str, Callable[[], int]] = {
            "changes": lambda: self.changes,
            "total_changes": lambda: self.total,
            "last_insert_rowid": lambda: self.last_rowid,
        }
        for name, answer in told.items():
            connection.create_function(name, 0, answer)

    def relive(self, connection: sqlite3.Connection) -> None:
        """Give a connection that past, as SQLite itself keeps it: a trigger may ask in the middle of its work."""
        connection.execute(f"CREATE TABLE {SCRATCH}(x)")
        connection.execute(f"CREATE TABLE {SCRATCH}_rowid(x)")
        numbers = "WITH numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
        connection.execute(f"{numbers} INSERT INTO {SCRATCH} SELECT 1 FROM numbers", (max(self.changes, 1),))
        connection.execute(f"INSERT INTO {SCRATCH}_rowid(rowid) VALUES (?)", (self.last_rowid,))
        connection.execute(f"UPDATE {SCRATCH} SET x = 2 WHERE ?", (self.changes > 0,))
        total = self.total
        connection.create_function("total_changes", 0, lambda: total)
