"""Checkpoints: moving what the write-ahead log holds into the database file, by us alone.

SQLite's own automatic checkpoint is switched off on every connection, for two reasons. Most SQLite versions in use
have the WAL-reset bug (https://sqlite.org/wal.html#walresetbug): one connection checkpoints while another starts the
log again, and the file may be damaged. And with overlapping readers an automatic checkpoint never finishes: four
readers of 5 ms each let the log grow to 794 MB in 6 seconds.

The rule that makes it sound, for all processes: **a checkpoint runs only while a second connection of ours holds
the file's write lock** (BEGIN IMMEDIATE). There is one write lock, so there is one checkpoint at a time; and
who starts the log again is a writer, so nobody does it meanwhile. PASSIVE is the only mode that runs under that lock
(the others want the lock for themselves).

States
------
::

            enough commits             longer than             longer than soft_limit,
            since the last look        look_bytes              not backing off
    QUIET ------------------> LOOK ------------------> COPY ------------------> DRAIN
      ^                        |  shorter               | done                   | done, or stall_limit_s over
      +------------------------+------------------------+------------------------+

LOOK    Measure the log (``wal.py``); no lock is taken.
COPY    Sync the log (no lock is needed for that, and it is the longest part), take the gate without waiting, open
        two connections, BEGIN IMMEDIATE on one (the locker), PASSIVE on the other (the worker). Readers may keep the
        newest frames from being copied; the next COPY does these.
DRAIN   After a COPY. Keep the write lock, at most ``stall_limit_s`` in all, until (1) PASSIVE has copied everything
        and (2) ``settle_s`` more have gone by, in which those leave who still read from the log. New readers find
        everything in the database file and don't need the log, so the next writer starts it again.
        (2) can't be observed, only tried: if the next look finds that the log went on growing, ``settle_s`` is
        doubled, up to what the stall limit leaves, and the next DRAIN comes ``look_bytes`` / 4 later; with each success
        ``settle_s`` shrinks by a tenth. Without readers it is 0.
        When (1) fails, or (2) fails at its longest, some reader is slower than the limit. Then DRAIN *backs off*: not
        again for ``backoff_s``, doubled with each failure in a row up to 10 s, so that a long reader costs every
        writer one stall now and then, and not one per commit. COPY goes on. The reader is named in the report and
        in the log messages. (While it stays open SQLite can't shorten the log, whoever checkpoints.)

Everything runs in the thread that has just committed, as SQLite's automatic checkpoint does; there is no background
thread. The final checkpoint, when the last connection closes, is SQLite's own.

Failures
--------
===========================================  ======================================================================
another process writes                       poll for the lock a few milliseconds, then leave it to a later commit
                                             (or to that process, which looks at the log after its own commits)
another thread of this process writes        it holds the gate: leave it to that thread; when the log is twice over
                                             its soft limit, queue at the gate
another process checkpoints too              it needs the same lock; whoever comes second finds little to do
killed anywhere                              locks vanish with the process; PASSIVE can be cut off anywhere
I/O error, disk full                         the commit before it stands; noted in the report, tried again later
interrupt (KeyboardInterrupt) in the middle  the lock is released, both connections are closed
the file is deleted                          the connections don't create it (mode=rw); noted in the report
fork in the middle                           ``pause`` before, ``resume`` after; ``reset_after_fork`` in the child
===========================================  ======================================================================
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shardlite.connection.busy import begin_immediate
from shardlite.connection.gate import WriteGate
from shardlite.connection.wal import NO_WAL, WalLength, read_wal_length, sync_wal, wal_file_bytes
from shardlite.driver import sqlite3

logger = logging.getLogger("shardlite.checkpoint")

MEGABYTE = 1_000_000

_LOOK_EVERY_COMMITS = 16
_LOOK_EVERY_S = 0.02
_LONGEST_BLIND_COMMITS = 2_000
_FIRST_SETTLE_S = 0.004
_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 10.0
_RETRY_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """When to checkpoint and how long a writer may wait for it."""

    look_bytes: int = 12 * MEGABYTE
    """New frames beyond this are copied into the database."""
    soft_limit_bytes: int = 24 * MEGABYTE
    """A log longer than this is drained, so that it can start again."""
    stall_limit_s: float = 0.1
    """The longest time for which a checkpoint keeps writers waiting, apart from the copying itself."""
    patience_s: float = 0.005
    """How long to poll for the write lock while another process writes."""

    @classmethod
    def of(cls, durability: str) -> CheckpointSettings:
        """Return the settings for a durability.

        Where every commit is synced, a log that starts again early is worth more than few checkpoints: to sync what is
        written over old frames costs the disk less than to sync a file that grows.
        """
        return cls(look_bytes=4 * MEGABYTE) if durability == "full" else cls()


@dataclass(frozen=True, slots=True)
class Reader:
    """A connection of this process that may be reading from the log."""

    holder: str
    """Who has it, for people: the thread and the line that took it."""
    age_s: float
    """For how long."""


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What the checkpoints of one file have done since this process opened it."""

    path: str
    wal_bytes: int
    """The size of the ``-wal`` file now; it doesn't shrink before the last connection closes."""
    live_bytes: int
    """How much of it is in use."""
    checkpoints: int
    incomplete: int
    """Checkpoints that could not copy everything, because of readers."""
    drains: int
    hopeless: int
    """Drains given up because a reader stayed longer than the stall limit."""
    postponed: int
    """Times that another process's write lock made us leave it for later."""
    longest_stall_s: float
    """The longest time for which a checkpoint kept the write lock."""
    total_stall_s: float
    blocking: tuple[str, ...]
    """Who held the log when it last could not be drained; empty when the last drain succeeded."""
    last_error: str | None


class Permits(Protocol):
    """What a checkpoint asks of a budget of open connections."""

    def overdraw(self, key: object, connections: int) -> AbstractContextManager[None]:
        """Count connections that are open for the block, without waiting for room."""


class Checkpointer:
    """Keeps the write-ahead log of one file short. Thread-safe; one per file and process.

    :param path: the database file.
    :param gate: the gate of the file's writers in this process, if they use one.
    :param readers: lists the connections of this process that may be reading, oldest first or not.
    :param budget: counts the two connections that a checkpoint opens for a moment (it may exceed its cap by these).
    :param budget_key: the budget's name for the file's pool.
    """

    def __init__(
        self,
        path: str,
        *,
        gate: WriteGate | None = None,
        readers: Callable[[], Iterable[Reader]] | None = None,
        budget: Permits | None = None,
        budget_key: object = None,
        settings: CheckpointSettings | None = None,
    ) -> None:
        self.path = path
        self.settings = settings or CheckpointSettings()
        self._wal_path = f"{path}-wal"
        self._uri = f"{Path(path).absolute().as_uri()}?mode=rw"
        self._gate = gate
        self._readers = readers
        self._budget = budget
        self._budget_key = budget_key
        self._running = threading.Lock()
        self._closed = False
        self._commits = 0
        self._commits_at_try = 0
        self._look_at = 0
        self._look_by = 0.0
        self._seen = NO_WAL
        self._tried_frames = 0
        self._drained_salt: bytes | None = None
        self._drained_bytes = 0
        self._settle_s = 0.0
        self._backoff_s = 0.0
        self._backoff_until = 0.0
        self._checkpoints = self._incomplete = self._drains = self._hopeless = self._postponed = 0
        self._longest_stall_s = self._total_stall_s = 0.0
        self._blocking: tuple[str, ...] = ()
        self._last_error: str | None = None

    def note_commit(self, conn: sqlite3.Connection | None = None) -> None:
        """Note that a transaction that wrote was committed; checkpoint when the log has become long.

        Call it with no transaction open in ``conn``, while this thread holds the gate or holds nothing. Costs about a
        quarter of a microsecond most of the times. Errors of a checkpoint are kept for the report: the commit stands.
        """
        self._commits = commits = self._commits + 1
        if commits < self._look_at and time.monotonic() < self._look_by:
            return
        if conn is not None and conn.in_transaction:
            return
        self._look_at = commits + _LOOK_EVERY_COMMITS
        self._look_by = time.monotonic() + _LOOK_EVERY_S
        if wal_file_bytes(self._wal_path) >= self.settings.look_bytes:
            self._look()

    def checkpoint(self) -> bool:
        """Copy the log into the database now; tell whether all of it was copied.

        Waits for the gate and the write lock for at most the stall limit.
        """
        with self._running:
            return not self._closed and self._run(drain=False, patience_s=self.settings.stall_limit_s, queue=True)

    def report(self) -> CheckpointReport:
        """Return the figures so far."""
        length = read_wal_length(self._wal_path)
        return CheckpointReport(
            path=self.path,
            wal_bytes=length.file_bytes,
            live_bytes=length.live_bytes,
            checkpoints=self._checkpoints,
            incomplete=self._incomplete,
            drains=self._drains,
            hopeless=self._hopeless,
            postponed=self._postponed,
            longest_stall_s=self._longest_stall_s,
            total_stall_s=self._total_stall_s,
            blocking=self._blocking,
            last_error=self._last_error,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Run no more checkpoints, and wait for one that is running. May be repeated."""
        self._closed = True
        if self._running.acquire(timeout=timeout_s):
            self._running.release()

    def pause(self, timeout_s: float) -> bool:
        """Before a fork: wait until no checkpoint runs, and let none begin; tell whether that was reached in time."""
        return self._running.acquire(timeout=timeout_s)

    def resume(self) -> None:
        """After a fork, in the parent: let checkpoints run again."""
        self._running.release()

    def reset_after_fork(self) -> None:
        """After a fork, in the child: forget the parent's locks."""
        self._running = threading.Lock()

    def _look(self) -> None:
        """Measure the log and do what its length asks for, unless another thread is at it."""
        if self._closed or not self._running.acquire(blocking=False):
            return
        try:
            length = self._measure()
            settings = self.settings
            now = time.monotonic()
            fresh_bytes = (length.frames - self._tried_frames) * length.frame_bytes
            # A drain that readers outlasted is tried again soon: they hold everything that is written meanwhile.
            enough = max(settings.soft_limit_bytes, self._drained_bytes + settings.look_bytes // 4)
            # Half of the way to the next checkpoint at the pace since the last one can go without a look.
            rest_bytes = min(settings.look_bytes - fresh_bytes, enough - length.live_bytes)
            pace_bytes = fresh_bytes / max(1, self._commits - self._commits_at_try)
            spare_commits = int(rest_bytes / pace_bytes / 2) if pace_bytes > 0 else 0
            self._look_at = self._commits + min(max(spare_commits, _LOOK_EVERY_COMMITS), _LONGEST_BLIND_COMMITS)
            drain = length.live_bytes >= enough and now >= self._backoff_until
            if drain or fresh_bytes >= settings.look_bytes:
                overdue = length.live_bytes >= 2 * settings.soft_limit_bytes and now >= self._backoff_until
                self._run(drain=drain, patience_s=settings.patience_s, queue=overdue)
        finally:
            self._running.release()

    def _measure(self) -> WalLength:
        """Read the log's length; learn from it whether the last drain let the log start again."""
        length = read_wal_length(self._wal_path)
        if length.salt != self._seen.salt:
            self._tried_frames = self._drained_bytes = 0
        drained, self._drained_salt = self._drained_salt, None
        if drained is not None:
            if length.salt != drained:
                self._settle_s = 0.0 if self._settle_s < _FIRST_SETTLE_S else self._settle_s * 0.9
                self._backoff_s = 0.0
                self._blocking = ()
            elif length.frames > self._seen.frames:
                self._unsettled()
            else:
                self._drained_salt = drained  # nobody has written since: still unknown
        self._seen = length
        return length

    def _unsettled(self) -> None:
        """Readers outlasted the settling time of the last drain: allow more, or give up for a while."""
        longest_s = 0.8 * self.settings.stall_limit_s
        if self._settle_s >= longest_s:
            self._back_off()
        self._settle_s = min(max(2 * self._settle_s, _FIRST_SETTLE_S), longest_s)

    def _run(self, *, drain: bool, patience_s: float, queue: bool) -> bool:
        """Take the gate and checkpoint; tell whether everything was copied. ``_running`` is held."""
        gate = self._gate
        mine = gate is None or gate.owner == threading.get_ident()
        held = None
        try:
            if gate is not None and not mine:
                held = gate.held(self.settings.stall_limit_s if queue else 0)
                held.acquire()
            with self._budget.overdraw(self._budget_key, 2) if self._budget is not None else nullcontext():
                return self._with_connections(drain, patience_s)
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                self._postponed += 1
            else:
                text = f"{type(error).__name__}: {error}"
                if text != self._last_error:  # once, not at every commit while a disk is full
                    logger.warning("a checkpoint of %s failed; it is tried again: %s", self.path, text)
                self._last_error = text
            return False
        finally:
            if held is not None:
                held.release()

    def _with_connections(self, drain: bool, patience_s: float) -> bool:
        sync_wal(self._wal_path)  # PASSIVE syncs it first of all: better before writers have to wait
        locker = self._open()
        try:
            worker = self._open()
            try:
                complete = self._locked(locker, patience_s, lambda: self._copy(worker))
                if drain:
                    complete = self._locked(locker, patience_s, lambda: self._drain(locker, worker))
                return complete
            finally:
                worker.close()
        finally:
            locker.close()

    def _locked(self, locker: sqlite3.Connection, patience_s: float, step: Callable[[], bool]) -> bool:
        """Run ``step`` while ``locker`` has the write lock, and note for how long."""
        begin_immediate(locker, time.monotonic() + patience_s)
        started = time.monotonic()
        try:
            return step()
        finally:
            locker.rollback()
            stall_s = time.monotonic() - started
            self._longest_stall_s = max(self._longest_stall_s, stall_s)
            self._total_stall_s += stall_s

    def _open(self) -> sqlite3.Connection:
        """Open a plain connection for one checkpoint; it never creates the file."""
        conn = sqlite3.connect(self._uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            conn.execute("PRAGMA wal_autocheckpoint=0")
            conn.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            conn.close()
            raise
        return conn

    def _copy(self, worker: sqlite3.Connection) -> bool:
        """Run one PASSIVE checkpoint under the write lock."""
        complete = self._passive(worker)
        self._checkpoints += 1
        self._incomplete += not complete
        self._seen = read_wal_length(self._wal_path)
        return complete

    def _drain(self, locker: sqlite3.Connection, worker: sqlite3.Connection) -> bool:
        """Copy what is left and let the readers of the log leave, within the stall limit.

        SQLite has four read marks for all readers of the log; who finds none free shares an old one and keeps the log
        behind it from being copied. The locker may be such a reader itself, so it begins anew before each try.
        """
        self._drains += 1
        started = time.monotonic()
        limit = started + self.settings.stall_limit_s
        pause_s = _RETRY_PAUSE_S
        while not self._passive(worker):
            if time.monotonic() >= limit:
                self._incomplete += 1
                self._back_off()
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 8 * _RETRY_PAUSE_S)
            locker.rollback()
            begin_immediate(locker, limit)
        waited_s = time.monotonic() - started
        settle_s = self._settle_s if pause_s == _RETRY_PAUSE_S else max(self._settle_s, waited_s)
        time.sleep(max(0.0, min(settle_s, limit - time.monotonic())))
        self._seen = read_wal_length(self._wal_path)
        self._drained_salt = self._seen.salt
        self._drained_bytes = self._seen.live_bytes
        return True

    def _passive(self, worker: sqlite3.Connection) -> bool:
        """Run PASSIVE once; tell whether the whole log is in the database now."""
        _, frames, copied = worker.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._tried_frames = max(frames, 0)
        self._commits_at_try = self._commits
        return bool(frames == copied)

    def _back_off(self) -> None:
        """Note who holds the log, and drain no more for a while."""
        self._hopeless += 1
        first = self._backoff_s == 0.0
        self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
        self._backoff_until = time.monotonic() + self._backoff_s * random.uniform(0.8, 1.2)
        self._blocking = self._name_readers()
        if first:
            logger.warning(
                "the write-ahead log of %s (%d bytes) can't be drained while a reader is open: %s",
                self.path,
                wal_file_bytes(self._wal_path),
                "; ".join(self._blocking),
            )

    def _name_readers(self) -> tuple[str, ...]:
        readers = sorted(self._readers() if self._readers is not None else (), key=lambda reader: -reader.age_s)
        old = [reader for reader in readers if reader.age_s >= self.settings.stall_limit_s / 2]
        if not old:
            return ("a reader in another process (its process id is unknown)",)
        return tuple(f"{reader.holder}, for {reader.age_s:.1f} s" for reader in old[:5])


__all__ = ["CheckpointReport", "CheckpointSettings", "Checkpointer", "Reader"]
