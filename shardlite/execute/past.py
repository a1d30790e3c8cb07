"""What changes(), total_changes() and last_insert_rowid() tell: of the statements that a thread ran before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from shardlite.driver import sqlite3

SCRATCH = "temp._shardlite_past"
NO_ROWID = -(2**63)
"""Nobody's: what last_insert_rowid() gives where nothing was inserted since ``forget_rowid``."""
_NOWHERE = "temp._shardlite_none"


def forget_rowid(run: Callable[[str], object]) -> None:
    """Let a connection's last_insert_rowid() be NO_ROWID, so that an INSERT can be told from one that did nothing."""
    run(f"CREATE TABLE {_NOWHERE}(x)")
    run(f"INSERT INTO {_NOWHERE}(rowid) VALUES ({NO_ROWID})")
    run(f"DROP TABLE {_NOWHERE}")


@dataclass(slots=True)
class Told:
    """What a statement that failed leaves for total_changes() and last_insert_rowid().

    An INSERT's rows are undone and don't count, but the last rowid is that of the last one; what triggers and foreign
    keys changed counts though it is undone.
    """

    total: int = 0
    last_rowid: int | None = None


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

    def note_failure(self, told: Told) -> None:
        """Remember a statement that failed."""
        self.note(0, told.total, told.last_rowid)

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
