"""The cap on open connections over many pools."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shardlite.connection import budget as budget_module
from shardlite.connection import budget_parts, opening
from shardlite.connection.budget import DESCRIPTORS_PER_CONNECTION, ConnectionBudget, default_limit
from shardlite.connection.busy import retry_busy
from shardlite.connection.connection import Connection
from shardlite.connection.pool import ConnectionPool
from shardlite.errors import PoolClosedError, PoolExhaustedError, ProgrammingError

MakePools = Callable[..., list[ConnectionPool]]
HeldFiles = Callable[[Path], list[str]]


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.0005)


@pytest.fixture
def make_pools(tmp_path: Path, held_files: HeldFiles) -> Iterator[MakePools]:
    made: list[ConnectionPool] = []

    def make(budget: ConnectionBudget, count: int, max_connections: int = 4) -> list[ConnectionPool]:
        pools = [
            ConnectionPool(tmp_path / f"s{number}.db", max_connections, timeout=20, durability="normal", budget=budget)
            for number in range(len(made), len(made) + count)
        ]
        made.extend(pools)
        return pools

    yield make
    for pool in made:
        pool.close_all()
    assert held_files(tmp_path) == []


class Alive:
    """Counts the connections that exist, from before SQLite opens the first file until it has closed the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        connect, base_close = opening._connect, Connection.base_close

        def connect_counted(*args: Any) -> Connection:
            self.change(+1)
            return connect(*args)

        def close_counted(conn: Connection) -> None:
            base_close(conn)
            self.change(-1)

        monkeypatch.setattr(opening, "_connect", connect_counted)
        monkeypatch.setattr(Connection, "base_close", close_counted)

    def change(self, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    return Alive(monkeypatch)


def use(pool: ConnectionPool) -> None:
    conn = pool.acquire()
    conn.fetch_row("SELECT 1")
    pool.release(conn)


@pytest.mark.parametrize("limit", [0, -1, True, 2.5])
def test_a_bad_limit_is_refused(limit: object) -> None:
    with pytest.raises(ProgrammingError, match="int of 1 or more"):
        ConnectionBudget(limit)


def test_the_default_comes_from_the_descriptor_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    assert default_limit() == (1024 - 128) // 3
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    assert default_limit() == 10
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert default_limit() == budget_parts.WITHOUT_LIMIT
    monkeypatch.setattr(budget_parts, "resource", None)
    assert default_limit() == budget_parts.WITHOUT_LIMIT


def test_counts_what_is_open(make_pools: MakePools) -> None:
    budget = ConnectionBudget(10)
    first, second = make_pools(budget, 2)
    use(first)
    use(second)
    assert budget.report().open == 2
    first.close_all()
    assert budget.report().open == 1
    conn = second.acquire()
    second.close_connection(conn)
    assert budget.report().open == 0
    assert budget.report().charged == 0


def test_makes_room_by_closing_the_quietest_idle_connection(
    make_pools: MakePools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "RECENT_S", 0.0)
    budget = ConnectionBudget(3)
    pools = make_pools(budget, 4)
    for pool in pools[:3]:
        use(pool)
    use(pools[0])  # so 1 is the quietest
    use(pools[3])
    assert [pool.idle_count for pool in pools] == [1, 0, 1, 1]
    assert budget.report().evictions == 1


def test_a_recently_used_pool_is_spared_and_so_is_a_last_connection(make_pools: MakePools) -> None:
    budget = ConnectionBudget(6)
    quiet, spare, busy, new, newer = make_pools(budget, 5)
    use(quiet)
    for conn in [spare.acquire(), spare.acquire(), spare.acquire()]:
        spare.release(conn)
    use(busy)
    now = time.monotonic()
    for conn in [*quiet.connections(), *spare.connections()]:
        conn.idle_since = now - 100
    quiet.connections()[0].idle_since = now - 200
    use(new)
    use(newer)
    assert (quiet.idle_count, spare.idle_count, busy.idle_count) == (1, 2, 1)


def test_a_held_connection_makes_others_wait_and_its_return_is_noticed(make_pools: MakePools) -> None:
    budget = ConnectionBudget(1)
    first, second = make_pools(budget, 2)
    held = first.acquire()
    got: list[object] = []

    def want() -> None:
        conn = second.acquire()
        got.append(conn)
        second.release(conn)

    thread = threading.Thread(target=want)
    thread.start()
    until(lambda: budget.waiting == 1)
    assert not got
    first.release(held)
    thread.join(20)
    assert len(got) == 1
    assert first.idle_count == 0


def test_time_out_names_the_cap_and_the_file(make_pools: MakePools) -> None:
    budget = ConnectionBudget(1)
    first, second = make_pools(budget, 2)
    held = first.acquire()
    with pytest.raises(PoolExhaustedError, match=r"cap of 1 open connections.*s1\.db") as caught:
        second.acquire(timeout=0.05)
    assert "1 connections to 1 files are open" in str(caught.value)
    assert budget.report().timeouts == 1
    assert budget.waiting == 0
    first.release(held)
    use(second)


def test_waiters_are_served_in_order(make_pools: MakePools) -> None:
    budget = ConnectionBudget(1)
    pools = make_pools(budget, 6)
    held = pools[0].acquire()
    order: list[int] = []

    def want(number: int) -> None:
        conn = pools[number].acquire()
        order.append(number)
        pools[number].release(conn)

    threads = []
    for number in range(1, 6):
        threads.append(threading.Thread(target=want, args=(number,)))
        threads[-1].start()
        until(lambda number=number: budget.waiting == number)
    pools[0].release(held)
    for thread in threads:
        thread.join(20)
    assert order == [1, 2, 3, 4, 5]


def test_closing_a_pool_ends_the_waiting_for_its_permits(make_pools: MakePools) -> None:
    budget = ConnectionBudget(1)
    first, second = make_pools(budget, 2)
    held = first.acquire()
    caught: list[BaseException] = []

    def want() -> None:
        try:
            second.acquire()
        except PoolClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=want)
    thread.start()
    until(lambda: budget.waiting == 1)
    second.close_all()
    thread.join(20)
    assert len(caught) == 1
    first.release(held)


def test_a_connection_that_cannot_be_opened_gives_its_permit_back(tmp_path: Path) -> None:
    budget = ConnectionBudget(2)
    pool = ConnectionPool(tmp_path / "absent" / "a.db", budget=budget, create=False)
    for _ in range(5):
        with pytest.raises(Exception, match="absent"):
            pool.acquire(timeout=0)
    assert budget.report().open == 0
    pool.close_all()


def test_a_pool_that_is_lost_gives_its_permits_back(tmp_path: Path) -> None:
    budget = ConnectionBudget(2)
    pool = ConnectionPool(tmp_path / "a.db", budget=budget)
    use(pool)
    assert budget.report().open == 1
    del pool
    gc.collect()
    assert budget.report().open == 0


def test_descriptors_that_sqlite_keeps_are_charged(
    make_pools: MakePools, tmp_path: Path, held_files: HeldFiles
) -> None:
    budget = ConnectionBudget(20)
    (pool,) = make_pools(budget, 1, max_connections=10)
    conns = [pool.acquire() for _ in range(10)]
    for conn in conns:
        conn.fetch_row("SELECT count(*) FROM sqlite_schema")
    assert budget.report().charged == 10
    while conns:
        pool.close_connection(conns.pop())
        report = budget.report()
        assert len(held_files(tmp_path)) <= report.charged * DESCRIPTORS_PER_CONNECTION
    assert budget.report().charged == 0


def test_an_operation_takes_idle_connections_and_opens_the_rest(make_pools: MakePools) -> None:
    budget = ConnectionBudget(8)
    pools = make_pools(budget, 8)
    for pool in pools[::2]:
        use(pool)
    conns = budget.acquire_all(pools, 10)
    assert [conn.path for conn in conns] == [pool.path for pool in pools]
    assert all(conn.polling for conn in conns)
    assert budget.report().open == 8
    assert budget.report().reserved == 0
    budget.release_all(pools, conns)
    assert budget.report().evictions == 0
    assert sum(pool.idle_count for pool in pools) == 8


def test_an_operation_that_times_out_holds_nothing(make_pools: MakePools) -> None:
    budget = ConnectionBudget(4)
    pools = make_pools(budget, 4)
    held = pools[3].acquire()
    more = pools[3].acquire()
    with pytest.raises(PoolExhaustedError, match="operation over 4 files"):
        budget.acquire_all(pools, 0.05)
    report = budget.report()
    assert (report.open, report.reserved, report.waiting) == (2, 0, 0)
    pools[3].release(held)
    pools[3].release(more)
    budget.release_all(pools, budget.acquire_all(pools, 10))


def test_an_operation_that_fails_on_the_way_gives_everything_back(make_pools: MakePools) -> None:
    budget = ConnectionBudget(8)
    pools = make_pools(budget, 4)
    pools[2].close_all()
    with pytest.raises(PoolClosedError):
        budget.acquire_all(pools, 5)
    assert budget.report().reserved == 0
    assert all(pool.get_statistics().active_connections == 0 for pool in pools)
    pools[2].open()
    budget.release_all(pools, budget.acquire_all(pools, 10))


def test_a_pool_named_twice_is_refused(make_pools: MakePools) -> None:
    budget = ConnectionBudget(8)
    (pool,) = make_pools(budget, 1)
    with pytest.raises(ProgrammingError, match="named twice"):
        budget.acquire_all([pool, pool], 1)


def test_an_operation_larger_than_the_cap_runs_alone(make_pools: MakePools) -> None:
    budget = ConnectionBudget(3)
    pools = make_pools(budget, 7)
    use(pools[0])
    conns = budget.acquire_all(pools, 10)
    assert budget.report().open == 7
    budget.release_all(pools, conns)
    assert budget.report().open <= 3


def test_an_operation_larger_than_the_cap_does_not_wait_for_ever_for_its_own_thread(make_pools: MakePools) -> None:
    budget = ConnectionBudget(3)
    pools = make_pools(budget, 6)
    mine = pools[0].acquire()
    conns = budget.acquire_all(pools[1:], 20)
    budget.release_all(pools[1:], conns)
    pools[0].release(mine)


def test_a_thread_that_waits_for_a_permit_uses_the_reservation_in_its_pool(make_pools: MakePools) -> None:
    """Else it would wait for the operation, and the operation for its place."""
    budget = ConnectionBudget(2)
    one, other = make_pools(budget, 2, max_connections=1)
    place_taken = threading.Event()
    claim = one._claim

    def noted(*args: object) -> object:
        got = claim(*args)
        place_taken.set()
        return got

    one._claim = noted
    third, fourth = make_pools(budget, 2)
    held = [third.acquire(), fourth.acquire()]
    done: list[str] = []

    def operation() -> None:
        conns = budget.acquire_all([one, other], 20)
        done.append("operation")
        budget.release_all([one, other], conns)

    def single() -> None:
        use(one)
        done.append("single")

    first = threading.Thread(target=operation)
    first.start()
    until(lambda: budget.waiting == 1)
    second = threading.Thread(target=single)
    second.start()
    assert place_taken.wait(10)
    until(lambda: budget.waiting == 2)
    third.release(held[0])
    fourth.release(held[1])
    first.join(20)
    second.join(20)
    assert sorted(done) == ["operation", "single"]


def test_what_others_took_beyond_the_cap_is_closed_when_they_return_it(make_pools: MakePools) -> None:
    """Threads may take what an operation beyond the cap returns before the rest of it is closed."""
    budget = ConnectionBudget(2)
    pools = make_pools(budget, 6, max_connections=1)
    conns = budget.acquire_all(pools, 10)
    taken: list[Connection] = []

    def release_and_take(release: Callable[[Connection], None], pool: ConnectionPool, conn: Connection) -> None:
        release(conn)
        taken.append(pool.acquire())

    for pool in pools:
        pool.release = partial(release_and_take, pool.release, pool)
    budget.release_all(pools, conns)
    assert budget.report().open == 6
    for pool, conn in zip(pools, taken, strict=True):
        del pool.release
        pool.release(conn)
    assert budget.report().open == 2
    budget.release_all(pools, budget.acquire_all(pools, 10))


def test_an_operation_beyond_the_cap_that_was_lost_does_not_lift_the_cap(make_pools: MakePools) -> None:
    budget = ConnectionBudget(2)
    pools = make_pools(budget, 6, max_connections=1)
    for pool, conn in zip(pools, budget.acquire_all(pools, 10), strict=True):
        pool.release(conn)  # not by release_all
    gc.collect()
    use(pools[0])
    budget.release_all(pools[:2], budget.acquire_all(pools[:2], 10))
    assert budget.report().open == 2


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("many", [False, True])
def test_threads_that_pass_connections_on_starve_nobody(make_pools: MakePools, users: int, many: bool) -> None:
    budget = ConnectionBudget(2)
    pools = make_pools(budget, 4, max_connections=1)
    stop = threading.Event()

    def hammer(pool: ConnectionPool) -> None:
        sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 500) SELECT count(*) FROM c"
        while not stop.is_set():
            pool.express_row(sql)

    threads = [threading.Thread(target=hammer, args=(pool,)) for pool in pools[:2] for _ in range(users)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            until(lambda: budget.report().open == 2)
            if many:
                chosen = [pools[0], pools[2]]
                budget.release_all(chosen, budget.acquire_all(chosen, 10))
            else:
                pools[3].close_connection(pools[3].acquire(10))
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def test_overdraw_counts_for_a_moment(make_pools: MakePools) -> None:
    budget = ConnectionBudget(1)
    (pool,) = make_pools(budget, 1)
    with budget.overdraw(pool, 2):
        assert budget.report().open == 2
    with budget.overdraw(None, 2):
        assert budget.report().open == 2
    assert budget.report().open == 0
    assert budget.report().peak_open == 2


class Watchdog:
    """Notes the progress of threads; when there is none for a while, says what all of them are doing."""

    def __init__(self, budget: ConnectionBudget, patience_s: float) -> None:
        self.steps = 0
        self.longest: dict[str, float] = {}
        self.stalls: list[str] = []
        self._budget = budget
        self._patience_s = patience_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.steps += 1
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - started)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._over.set()
        self._thread.join()

    def _progress(self) -> tuple[int, ...]:
        report = self._budget.report()
        return self.steps, report.open, report.reserved, report.waiting, report.evictions, self._budget._numbers

    def _watch(self) -> None:
        seen, since = self._progress(), time.monotonic()
        while not self._over.wait(0.1):
            now = self._progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._patience_s:
                stacks = [f"thread {ident}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in _stacks()]
                self.stalls.append(
                    f"nothing happened for {self._patience_s} s; {self._budget.report()}\n" + "\n".join(stacks)
                )
                since = time.monotonic()


def _stacks() -> list[tuple[int, FrameType]]:
    return [(ident, frame) for ident, frame in sys._current_frames().items() if ident != threading.get_ident()]


def _mix(
    budget: ConnectionBudget,
    pools: list[ConnectionPool],
    count_files: Callable[[], int],
    spans: list[int],
    rounds: int,
    seed: int = 1,
) -> int:
    """Run single and many-pool operations in 8 threads; return the largest number of open files seen."""
    peak = 0
    dog = Watchdog(budget, 3.0)
    started = time.monotonic()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        nonlocal peak
        rng = random.Random(seed * 100 + number)
        try:
            for _ in range(rounds):
                if rng.random() < 0.15:
                    chosen = rng.sample(pools, rng.choice(spans))
                    with dog.step(f"taking {len(chosen)}"):
                        conns = budget.acquire_all(chosen, 120)
                    try:
                        assert len({id(conn) for conn in conns}) == len(chosen)
                        for conn in conns[:3]:
                            count = partial(conn.fetch_row, "SELECT count(*) FROM t")
                            retry_busy(count, time.monotonic() + 120, "to read")
                        peak = max(peak, count_files())
                    finally:
                        budget.release_all(chosen, conns)
                else:
                    pool = rng.choice(pools)
                    give_back = pool.release if rng.random() < 0.7 else pool.close_connection
                    with dog.step("taking 1"):
                        conn = pool.acquire(120)
                    try:
                        # In this mode BUSY comes back at once, and the caller polls: two threads may write to one file.
                        retry_busy(partial(conn.run, "INSERT INTO t VALUES (1)"), time.monotonic() + 120, "to insert")
                        if rng.random() < 0.5:
                            conn.run("COMMIT")
                        peak = max(peak, count_files())
                    finally:
                        give_back(conn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with dog:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(250)
    report = budget.report()
    longest = ", ".join(f"{kind}: {seconds:.2f}" for kind, seconds in sorted(dog.longest.items()))
    print(f"{time.monotonic() - started:.1f} s, {dog.steps} steps, longest wait in s: {longest}; {report}")
    assert not dog.stalls, dog.stalls[0]
    assert not any(thread.is_alive() for thread in threads), report
    assert not errors, errors
    assert (report.reserved, report.waiting) == (0, 0)
    assert all(pool.get_statistics().active_connections == 0 for pool in pools)
    return peak


def _with_tables(pools: list[ConnectionPool]) -> list[ConnectionPool]:
    for pool in pools:
        conn = pool.acquire()
        conn.run("CREATE TABLE t(x)")
        pool.release(conn)
    return pools


def test_the_cap_holds_with_256_pools(
    make_pools: MakePools, tmp_path: Path, held_files: HeldFiles, alive: Alive
) -> None:
    budget = ConnectionBudget(40)
    pools = _with_tables(make_pools(budget, 256, max_connections=2))
    peak = _mix(budget, pools, lambda: len(held_files(tmp_path)), [2, 8, 25, 40], rounds=12)
    assert peak <= 40 * DESCRIPTORS_PER_CONNECTION
    assert budget.report().peak_charged <= 40
    assert 30 < alive.most <= 40


def test_operations_over_all_pools_exceed_the_cap_one_at_a_time(
    make_pools: MakePools, tmp_path: Path, held_files: HeldFiles, alive: Alive
) -> None:
    budget = ConnectionBudget(10)
    pools = _with_tables(make_pools(budget, 24, max_connections=1))
    peak = _mix(budget, pools, lambda: len(held_files(tmp_path)), [3, 24], rounds=20)
    assert peak <= (24 + 10) * DESCRIPTORS_PER_CONNECTION
    assert 10 < alive.most <= 24 + 10
    assert budget.report().open <= 10 + 8


@pytest.mark.slow
def test_the_cap_holds_with_256_pools_for_longer(
    make_pools: MakePools, tmp_path: Path, held_files: HeldFiles, alive: Alive
) -> None:
    budget = ConnectionBudget(40)
    pools = _with_tables(make_pools(budget, 256, max_connections=2))

    def count_files() -> int:
        return len(held_files(tmp_path))

    for seed in range(2, 8):
        peak = _mix(budget, pools, count_files, [2, 8, 25, 40], rounds=150, seed=seed)
        assert peak <= 40 * DESCRIPTORS_PER_CONNECTION
        assert alive.most <= 40
    peak = _mix(budget, pools, count_files, [40, 256], rounds=60)
    assert peak <= (256 + 40) * DESCRIPTORS_PER_CONNECTION
    assert alive.most <= 256 + 40


FEW_DESCRIPTORS = """
import random, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
from shardlite.connection.budget import ConnectionBudget
from shardlite.connection.pool import ConnectionPool
budget = ConnectionBudget()
pools = [ConnectionPool(f"{sys.argv[1]}/{n}.db", 2, timeout=60, budget=budget) for n in range(96)]
errors = []
def work(number):
    rng = random.Random(number)
    try:
        for pool in rng.sample(pools, len(pools)):
            with pool.get_connection_context() as conn:
                conn.execute("CREATE TABLE IF NOT EXISTS t(x)")
                conn.execute("INSERT INTO t VALUES (zeroblob(20000))")
                conn.commit()
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
report = budget.report()
failed = sum(pool.get_statistics().connections_failed for pool in pools)
[pool.close_all() for pool in pools]
print(errors, failed, report.peak_charged == report.limit, report.limit)
"""


def test_the_default_cap_leaves_enough_descriptors(tmp_path: Path) -> None:
    """Every file is made, synced, written and closed again; what that opens for a moment finds room beside the cap."""
    pytest.importorskip("resource")
    command = [sys.executable, "-W", "ignore", "-c", FEW_DESCRIPTORS, str(tmp_path), "128"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout == f"[] 0 True {(128 - 64) // 3}\n", done.stdout + done.stderr
