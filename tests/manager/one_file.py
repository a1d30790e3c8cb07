"""Plain databases of one file, to compare with; all are closed after the test."""

from __future__ import annotations

from shardlite.driver import sqlite3

_opened: list[sqlite3.Connection] = []


def one_file() -> sqlite3.Connection:
    """Open a database of one file, in memory."""
    _opened.append(sqlite3.connect(":memory:", isolation_level=None))
    return _opened[-1]


def close_opened() -> None:
    """Close what ``one_file`` opened."""
    while _opened:
        _opened.pop().close()
