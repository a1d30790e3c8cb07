"""KeyboardInterrupt at every line of taking, returning, waiting and closing: no connection and no place is lost.

A tracer raises it at the n-th line that runs, for every n. Left out are events at which CPython doesn't look for
signals (it does so after calls and jumps only): at the *end* of a ``with`` block, before ``__exit__``; between
``calls += ONE`` and the ``try`` after it; between ``finally`` and ``del calls[-1]``. ``test_real_signals`` tries these.
"""

from __future__ import annotations

import linecache
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shardlite import connection as package
from shardlite.connection import ConnectionPool, PoolExhaustedError

WAIT_S = 5.0
MODULES = "blob calls closing connection cursor express pool pool_core pool_lost pool_opening pool_parts pool_places"
FILES = {os.path.join(os.path.dirname(package.__file__), f"{name}.py") for name in MODULES.split()}
assert all(map(os.path.exists, FILES))


COUNTING = re.compile(r"^(calls|in_sqlite) \+= ONE$|^del (calls|in_sqlite)\[-1\]$")


def line_before(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno - 1).strip()


class Injector:
    """Raises KeyboardInterrupt at the n-th traced line."""

    def __init__(self, at: int, pool: ConnectionPool) -> None:
        self.at = at
        self.pool = pool
        self.seen = 0
        self.fired = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name == "__del__":  # swallows what is raised
            return None
        if event == "line" and not self.fired:
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if line.startswith("with ") and self.pool._lock.locked():
                return self
            if COUNTING.search(line) or (line == "try:" and COUNTING.search(line_before(frame))):
                return self
            self.seen += 1
            if self.seen >= self.at:
                self.fired = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}: {line}"
                raise KeyboardInterrupt(self.fired)
        return self


def create_table(pool: ConnectionPool) -> None:
    with pool.get_connection_context() as conn:
        conn.execute("CREATE TABLE t (x)")


def use_fast(pool: ConnectionPool) -> None:
    conn = pool.get_connection()
    pool.return_connection(conn)


def use_context(pool: ConnectionPool) -> None:
    with pool.get_connection_context() as conn:
        conn.execute("INSERT INTO t VALUES (1)")


def use_polling(pool: ConnectionPool) -> None:
    conn = pool.acquire()
    conn.fetch_row("SELECT 1")
    pool.release(conn)


def use_express(pool: ConnectionPool) -> None:
    """The short way of the layers above."""
    pool.release(pool.acquire())
    pool.express_row("SELECT 1")
    pool.express_all("SELECT 1")
    if pool.settings.isolation_level is None:
        pool.express_write("DELETE FROM t")


def use_close(pool: ConnectionPool) -> None:
    pool.close_connection(pool.get_connection())
    use_fast(pool)


def use_exhausted(pool: ConnectionPool) -> None:
    held = [pool.get_connection(), pool.get_connection()]
    with suppress(PoolExhaustedError):
        pool.get_connection(timeout=0)
    while held:
        pool.return_connection(held.pop())


def use_hand_over(pool: ConnectionPool) -> None:
    """Wait in the queue, and be given what another thread returns."""
    held = [pool.get_connection(), pool.get_connection()]
    helper = threading.Thread(target=return_when_waited_for, args=(pool, held))
    helper.start()
    try:
        pool.return_connection(pool.get_connection(timeout=WAIT_S))
    finally:
        helper.join(WAIT_S)


def return_when_waited_for(pool: ConnectionPool, held: list[Any]) -> None:
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline and not pool._waiting:
        time.sleep(0.0005)
    while held:
        pool.return_connection(held.pop())


USES: list[Callable[[ConnectionPool], None]] = [
    use_fast,
    use_context,
    use_polling,
    use_express,
    use_close,
    use_exhausted,
    use_hand_over,
]


def check_nothing_is_lost(pool: ConnectionPool, fired: str) -> None:
    is_locked = pool._lock.locked()  # before the assertion: to show the pool in it, pytest would wait for the lock
    assert not is_locked, f"the lock is held after {fired}"
    held = []
    try:
        for _ in range(2):
            held.append(pool.get_connection(timeout=WAIT_S))
            assert held[-1].fetch_row("SELECT count(*) FROM t") == (0,)
        assert held[0] is not held[1], fired
        assert pool.get_statistics().pool_size == 2, fired
    finally:
        while held:
            pool.return_connection(held.pop())
    stats = pool.get_statistics()
    assert (stats.active_connections, stats.idle_connections, stats.waiting_threads) == (0, 2, 0), fired


@pytest.mark.parametrize("same_thread", [False, True])
@pytest.mark.parametrize("use", USES)
def test_interrupt_at_every_line(tmp_path: Path, use: Callable[[ConnectionPool], None], same_thread: bool) -> None:
    step = 1 if use in (use_fast, use_polling) else 3
    level = None if use is use_express else ""
    with ConnectionPool(
        tmp_path / "a.db", max_connections=2, check_same_thread=same_thread, isolation_level=level
    ) as pool:
        create_table(pool)
        for at in range(1, 10_000, step):
            injector = Injector(at, pool)
            sys.settrace(injector)
            try:
                use(pool)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            check_nothing_is_lost(pool, injector.fired)
            if not injector.fired:
                break
        assert at > 10


# A signal that strikes inside the weak set's own callback is swallowed by the interpreter, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timers")
def test_real_signals(tmp_path: Path) -> None:
    """The same with real signals at random moments."""
    chance = random.Random(5)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ConnectionPool(tmp_path / "a.db", max_connections=2) as pool:
            create_table(pool)
            struck = 0
            for _ in range(400):
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.002))
                    for _ in range(20):
                        use_fast(pool)
                        use_polling(pool)
                        use_express(pool)
                        use_context(pool)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    struck += 1
                check_nothing_is_lost(pool, "a signal")
            assert struck > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
