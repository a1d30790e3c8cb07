"""What a commit log needs around it, for tests of the log alone: a catalog, shards, records."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Collection
from contextlib import closing

from shardlite.driver import sqlite3
from shardlite.transaction.commit_log import CommitLog
from shardlite.transaction.log_format import Participant, Record, database_id_bytes

DATABASE_ID = "0123456789abcdef0123456789abcdef"
DATABASE_BYTES = database_id_bytes(DATABASE_ID)


def new_token(rng: random.Random | None = None) -> int:
    return (rng or random.SystemRandom()).getrandbits(64) | 1


def record_of(
    numbers: dict[int, int], *, token: int | None = None, redo: bytes = b"redo", copy: bool = False
) -> Record:
    """A decision with these numbers by shard, all with the same redo."""
    participants = tuple(Participant(shard, number, 7, 0) for shard, number in numbers.items())
    return Record(token or new_token(), 3, time.time_ns() // 1_000_000, participants, (redo,), is_copy=copy)


class MemoryCatalog:
    """The tables ``commit_log`` and ``outcome``, always durable."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.outcomes: dict[int, str] = {}

    def copy(self) -> MemoryCatalog:
        made = MemoryCatalog()
        made.rows, made.outcomes = set(self.rows), dict(self.outcomes)
        return made

    def log_numbers(self) -> Collection[int]:
        return set(self.rows)

    def add_log(self, number: int) -> None:
        self.rows.add(number)

    def remove_log(self, number: int) -> None:
        self.rows.discard(number)

    def note_committed(self, tokens: Collection[int]) -> None:
        for token in tokens:
            self.outcomes.setdefault(token, "committed")

    def note_rolled_back(self, tokens: Collection[int]) -> None:
        for token in tokens:
            self.outcomes.setdefault(token, "rolled back")

    def rolled_back(self, tokens: Collection[int]) -> Collection[int]:
        return {token for token in tokens if self.outcomes.get(token) == "rolled back"}


class MemoryShards:
    """Watermarks, and up to where they are durable."""

    def __init__(self) -> None:
        self.watermark: dict[int, int] = {}
        self.synced: dict[int, int] = {}
        self.syncs = 0

    def applied(self, shard: int, number: int) -> bool:
        return self.watermark.get(shard, 0) >= number

    def sync(self, shard: int) -> None:
        self.syncs += 1
        self.synced[shard] = self.watermark.get(shard, 0)

    def apply(self, record: Record) -> None:
        for each in record.participants:
            assert self.watermark.get(each.shard, 0) + 1 == each.number
            self.watermark[each.shard] = each.number


class SqliteWorld:
    """Catalog and shards of several processes: one SQLite file with their tables."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, "world.db")
        self._lock = threading.Lock()
        with closing(self._open()) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("CREATE TABLE IF NOT EXISTS commit_log(number INTEGER PRIMARY KEY)")
            conn.execute("CREATE TABLE IF NOT EXISTS outcome(token INTEGER PRIMARY KEY, state TEXT)")
            conn.execute("CREATE TABLE IF NOT EXISTS watermark(shard INTEGER PRIMARY KEY, number INTEGER)")

    def _open(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        conn.execute("PRAGMA synchronous = OFF")  # processes die here, not machines
        return conn

    def run(self, sql: str, *rows: tuple[object, ...]) -> list[tuple[int, ...]]:
        with self._lock, closing(self._open()) as conn:
            return [found for row in rows or [()] for found in conn.execute(sql, row).fetchall()]

    def log_numbers(self) -> Collection[int]:
        return {row[0] for row in self.run("SELECT number FROM commit_log")}

    def add_log(self, number: int) -> None:
        self.run("INSERT OR IGNORE INTO commit_log VALUES (?)", (number,))

    def remove_log(self, number: int) -> None:
        self.run("DELETE FROM commit_log WHERE number = ?", (number,))

    def note_committed(self, tokens: Collection[int]) -> None:
        self.run("INSERT OR IGNORE INTO outcome VALUES (?, 'committed')", *((_signed(each),) for each in tokens))

    def note_rolled_back(self, tokens: Collection[int]) -> None:
        self.run("INSERT OR IGNORE INTO outcome VALUES (?, 'rolled back')", *((_signed(each),) for each in tokens))

    def rolled_back(self, tokens: Collection[int]) -> Collection[int]:
        void = {row[0] for row in self.run("SELECT token FROM outcome WHERE state = 'rolled back'")}
        return {token for token in tokens if _signed(token) in void}

    def watermark(self, shard: int) -> int:
        rows = self.run("SELECT number FROM watermark WHERE shard = ?", (shard,))
        return rows[0][0] if rows else 0

    def applied(self, shard: int, number: int) -> bool:
        return self.watermark(shard) >= number

    def sync(self, shard: int) -> None:
        pass

    def apply(self, shard: int, number: int) -> None:
        self.run("INSERT OR REPLACE INTO watermark VALUES (?, ?)", (shard, number))

    def log(self) -> CommitLog:
        return CommitLog(self.directory, DATABASE_ID, self, self)


def _signed(token: int) -> int:
    return token - (1 << 64) if token >> 63 else token
