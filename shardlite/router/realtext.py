"""REAL to text and text to REAL, as this process's SQLite does it.

Releases of SQLite differ in the last digit: they read decimal text with different rounding, and write a REAL with 15
or with 17 significant digits. They differ on a NUL after a number, too. What counts for a key is the value that *this*
SQLite stores, so the rare keys that cross between text and REAL are put to it, on one private in-memory connection.
Safe for threads and after a fork.
"""

from __future__ import annotations

import atexit
import os
import threading

from shardlite.driver import sqlite3


class _Scratch:
    """The private connection: opened at the first question, closed at exit, forgotten by a forked child."""

    def __init__(self) -> None:
        self._inherited: list[sqlite3.Connection] = []
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def forget(self) -> None:
        """Start afresh in a forked child; the inherited connection is kept, since finalising it is not safe."""
        if self._connection is not None:
            self._inherited.append(self._connection)
        self._reset()

    def ask(self, sql: str, value: object, first: str = "") -> object:
        """Return the first value of ``sql``; ``first`` is run before it. Both get ``value`` as their parameter."""
        with self._lock:
            connection = self._connection
            if connection is None:
                connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
                connection.execute("CREATE TABLE stored(n INTEGER PRIMARY KEY, k NUMERIC)")
                self._connection = connection
            if first:
                connection.execute(first, (value,))
            return connection.execute(sql, (value,)).fetchone()[0]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


_scratch = _Scratch()
atexit.register(_scratch.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_scratch.forget)


def real_of_text(text: str) -> float:
    """Return the REAL that SQLite reads from ``text``, which must be a well-formed number."""
    value = _scratch.ask("SELECT CAST(? AS REAL)", text)
    if not isinstance(value, float):
        raise TypeError(f"SQLite read {text!r} as {value!r}, not as a REAL")
    return value


def number_of_text(text: str) -> int | float | None:
    """Return the number that SQLite stores for ``text`` in a NUMERIC column; None when it stores the text.

    For texts with a NUL: newer releases of SQLite take the NUL for the text's end, older ones for a letter.
    """
    value = _scratch.ask("SELECT k FROM stored WHERE ? IS NOT NULL", text, "REPLACE INTO stored VALUES (1, ?)")
    return value if isinstance(value, (int, float)) else None


def text_of_real(value: float) -> str:
    """Return the text that SQLite stores for a REAL put into a TEXT column."""
    return str(_scratch.ask("SELECT CAST(? AS TEXT)", value))
