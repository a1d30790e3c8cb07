"""The budget's waiting, under a scheduler that decides which thread runs.

Pools and budget are the real ones; their locks and events hand control to the scheduler, one thread runs at a time, and
the clock moves only when all of them wait. Using a connection takes no time. So whatever needs the clock to move has
missed its wake-up, or waits for ever, though polls and time-outs would hide that in a test with real threads.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from shardlite.connection import budget as budget_module
from shardlite.connection import (
    budget_accounts,
    budget_parts,
    pool_core,
    pool_opening,
    pool_parts,
    pool_places,
)
from shardlite.connection.budget import ConnectionBudget
from shardlite.connection.connection import Connection
from shardlite.connection.pool import ConnectionPool

Predicate = Callable[[], bool]


class Ended(BaseException):
    """Ends the threads of a run that has failed."""


class Worker:
    def __init__(self, number: int, body: Callable[[], None]) -> None:
        self.number = number
        self.body = body
        self.go = threading.Semaphore(0)
        self.ready: Predicate | None = None
        self.deadline: float | None = None
        self.inside = False
        self.finished = False
        self.doing = ""


class Scheduler:
    """Runs threads one at a time. ``choose(options, may_stay)`` picks who of those that can; first is who runs now."""

    def __init__(self, choose: Callable[[int, bool], int], patience_s: float = 0.0) -> None:
        self.now = 0.0
        self.patience_s = patience_s
        self.workers: list[Worker] = []
        self.problem = ""
        self.over = True
        self.check: Callable[[], None] = lambda: None
        self._choose = choose
        self._local = threading.local()
        self._done = threading.Event()
        self._leave = threading.Event()

    def run(self, bodies: list[Callable[[], None]]) -> None:
        self.workers = [Worker(number, body) for number, body in enumerate(bodies)]
        self.over = False
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in self.workers]
        for thread in threads:
            thread.start()
        self.workers[self._choose(len(self.workers), False)].go.release()
        assert self._done.wait(60), "the scheduler itself hangs"
        self.over = True
        self._leave.set()
        for thread in threads:
            thread.join(60)
        assert not self.problem, self.problem

    def _work(self, worker: Worker) -> None:
        self._local.worker = worker
        worker.go.acquire()
        try:
            if not self.problem:
                worker.body()
        except Ended:
            pass
        except BaseException as error:
            self._fail(f"thread {worker.number} while {worker.doing}: {type(error).__name__}: {error}")
        worker.finished = worker.inside = True
        self._switch(worker)
        self._leave.wait(60)  # what the pools do at the end of a thread comes after the run

    def point(self, ready: Predicate | None = None, timeout_s: float | None = None) -> None:
        """Let others run; go on when ``ready`` or after the time."""
        worker = getattr(self._local, "worker", None)
        if self.over or worker is None or worker.finished or worker.inside:  # the check runs lines, too
            return
        if self.problem:
            raise Ended
        worker.ready = ready
        worker.deadline = None if timeout_s is None else self.now + timeout_s
        worker.inside = True
        self._switch(worker)
        worker.inside = False
        worker.ready = worker.deadline = None
        if self.problem:
            raise Ended

    def _fail(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _can_run(self, worker: Worker) -> bool:
        if worker.finished:
            return False
        timed_out = worker.deadline is not None and worker.deadline <= self.now
        return bool(self.problem) or worker.ready is None or timed_out or worker.ready()

    def _switch(self, present: Worker) -> None:
        try:
            self.check()
        except AssertionError as error:
            self._fail(f"after thread {present.number} {present.doing}: {error}")
        runnable = [worker for worker in self.workers if self._can_run(worker)]
        while not runnable:
            deadlines = [
                worker.deadline for worker in self.workers if not worker.finished and worker.deadline is not None
            ]
            if all(worker.finished for worker in self.workers):
                self._done.set()
                return
            self.now = min(deadlines, default=1e9)
            if self.now > self.patience_s:
                waiting = [f"{worker.number}: {worker.doing}" for worker in self.workers if not worker.finished]
                self._fail(f"nobody can go on until {self.now} s have gone by: {waiting}")
            runnable = [worker for worker in self.workers if self._can_run(worker)]
        may_stay = present in runnable
        if may_stay:
            runnable.remove(present)
            runnable.insert(0, present)
        following = runnable[0 if self.problem else self._choose(len(runnable), may_stay)]
        if following is not present:
            following.go.release()
            if not present.finished:
                present.go.acquire()

    # ---- what takes the place of ``threading`` and ``time`` in the modules under test

    def lock(self) -> Any:
        return _Lock(self)

    def event(self) -> Any:
        return _Event(self)


class _Lock:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            self._scheduler.point(lambda: not self._held, None if timeout < 0 else timeout)
        elif not self._held:
            self._scheduler.point()
        if self._held and not self._scheduler.over:
            return False
        self._held = True
        return True

    def release(self) -> None:
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()


class _Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._scheduler.point()
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        self._scheduler.point(lambda: self._set, timeout)
        return self._set


class World:
    """Pools of a budget under a scheduler, with connections that are real but to no file."""

    def __init__(self, directory: Path, scheduler: Scheduler, limit: int, pools: int, places: int) -> None:
        self.scheduler = scheduler
        self.alive = 0
        self.budget = ConnectionBudget(limit)
        self.pools = [
            ConnectionPool(
                directory / f"{number}.db", places, timeout=1e6, budget=self.budget, clock=lambda: scheduler.now
            )
            for number in range(pools)
        ]
        self.met = 0
        scheduler.check = self.check

    def check(self) -> None:
        """The invariants of ``budget.py``."""
        budget = self.budget
        if budget._mutex.locked():
            return
        accounts = budget._accounts.values()
        assert budget._open == sum(account.open for account in accounts)
        assert budget._charged == sum(account.charge for account in accounts)
        assert budget._reserved == sum(account.reserved for account in accounts)
        assert all(0 <= account.reserved <= account.pending for account in accounts)
        assert budget._collector is not None or not any(account.pending for account in accounts)
        assert budget.waiting == len(budget._queue)
        assert budget.pressed or not budget.waiting

    def single(self, number: int, times: int = 1, close: bool = False) -> Callable[[], None]:
        def body() -> None:
            pool = self.pools[number]
            for _ in range(times):
                self.do(f"taking one of {number}")
                conn = pool.acquire()
                self.do(f"using {number}")
                conn.fetch_row("SELECT 1")
                self.scheduler.point()
                (pool.close_connection if close else pool.release)(conn)

        return body

    def operation(self, *numbers: int, times: int = 1) -> Callable[[], None]:
        def body() -> None:
            pools = [self.pools[number] for number in numbers]
            for _ in range(times):
                self.do(f"taking {numbers}")
                connections = self.budget.acquire_all(pools, 1e6)
                self.do(f"using {numbers}")
                assert len(set(map(id, connections))) == len(numbers)
                self.scheduler.point()
                self.budget.release_all(pools, connections)

        return body

    def meeting(self, count: int, *numbers: int) -> Callable[[], None]:
        """An operation that keeps what it has until ``count`` such have theirs: there is room for all of them."""

        def body() -> None:
            pools = [self.pools[number] for number in numbers]
            self.do(f"taking {numbers}")
            connections = self.budget.acquire_all(pools, 1e6) if len(pools) > 1 else [pools[0].acquire()]
            self.do(f"waiting for others with {numbers}")
            self.met += 1
            self.scheduler.point(lambda: self.met >= count)
            self.budget.release_all(pools, connections)

        return body

    def do(self, what: str) -> None:
        worker = getattr(self.scheduler._local, "worker", None)
        if worker is not None:
            worker.doing = what

    def finish(self) -> None:
        report = self.budget.report()
        assert (report.reserved, report.waiting, report.timeouts) == (0, 0, 0)
        assert report.open <= report.limit
        assert self.budget._collector is None
        assert all(pool.get_statistics().active_connections == 0 for pool in self.pools)
        for pool in self.pools:
            pool.close_all()
        assert self.budget.report().charged == 0


MODULES = (budget_module, budget_accounts, budget_parts, pool_core, pool_opening, pool_parts, pool_places)
FILES = {module.__file__ for module in (budget_module, budget_accounts, budget_parts, pool_core, pool_places)}

Run = Callable[..., None]
Plan = Callable[[World], list[Callable[[], None]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a function that runs a plan once: what runs when is chosen by ``choose``."""
    switches = sys.getswitchinterval()

    def run_once(
        plan: Plan,
        choose: Callable[[int, bool], int],
        *,
        limit: int = 2,
        pools: int = 3,
        places: int = 2,
        patience_s: float = 0.0,
        by_line: bool = False,
    ) -> None:
        scheduler = Scheduler(choose, patience_s)

        def open_connection(path: str, settings: Any, timeout_s: float) -> Connection:
            scheduler.point()
            conn = Connection(":memory:", check_same_thread=False)
            conn.path = path
            conn.unclean = False
            return conn

        fake_threading = SimpleNamespace(
            Lock=scheduler.lock,
            Event=scheduler.event,
            get_ident=threading.get_ident,
            enumerate=threading.enumerate,
        )
        for module in MODULES:
            if hasattr(module, "threading"):
                monkeypatch.setattr(module, "threading", fake_threading)
            if hasattr(module, "time"):
                monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: scheduler.now))
        monkeypatch.setattr(pool_opening, "open_connection", open_connection)
        world = World(tmp_path, scheduler, limit, pools, places)
        bodies = plan(world)
        if by_line:
            bodies = [_switching_at_lines(body, scheduler) for body in bodies]
        scheduler.run(bodies)
        world.finish()

    yield run_once
    sys.setswitchinterval(switches)


def _switching_at_lines(body: Callable[[], None], scheduler: Scheduler) -> Callable[[], None]:
    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name in ("__del__", "check"):
            return None
        if event == "line":
            scheduler.point()
        return trace

    def traced() -> None:
        sys.settrace(trace)
        try:
            body()
        finally:
            sys.settrace(None)

    return traced


class Search:
    """Goes through all schedules that interrupt a thread which could go on at most ``interruptions`` times."""

    def __init__(self, interruptions: int) -> None:
        self._interruptions = interruptions
        self._prefix: list[int] = []
        self._taken: list[tuple[int, int]] = []
        self._left = interruptions
        self.runs = 0

    def choose(self, options: int, may_stay: bool) -> int:
        at = len(self._taken)
        if may_stay and self._left == 0:
            options = 1
        pick = self._prefix[at] if at < len(self._prefix) else 0
        self._left -= may_stay and pick > 0
        self._taken.append((pick, options))
        return pick

    def next(self) -> bool:
        """Prepare the next run; False when there is none."""
        if self.runs:
            while self._taken and self._taken[-1][0] + 1 >= self._taken[-1][1]:
                self._taken.pop()
            if not self._taken:
                return False
            self._prefix = [pick for pick, _ in self._taken]
            self._prefix[-1] += 1
        self.runs += 1
        self._taken = []
        self._left = self._interruptions
        return True


PLANS: dict[str, tuple[Plan, dict[str, Any]]] = {
    "a reservation is used by another": (
        lambda world: [world.operation(0, 1), world.single(1), world.operation(0, 1)],
        {"pools": 2},
    ),
    "overlapping operations": (
        lambda world: [world.operation(0, 1), world.operation(1, 2), world.operation(2, 0)],
        {},
    ),
    "closed instead of returned": (
        lambda world: [world.operation(0, 1), world.single(1, close=True), world.single(2, close=True)],
        {},
    ),
    "one place in each pool": (
        lambda world: [world.operation(0, 1), world.single(1), world.single(2), world.operation(2, 1)],
        {"places": 1},
    ),
    "singles only": (
        lambda world: [world.single(0), world.single(1), world.single(1, close=True), world.single(2)],
        {"limit": 1},
    ),
    "two permits come free": (
        lambda world: [
            world.single(0, close=True),
            world.single(1, close=True),
            world.meeting(2, 2),
            world.meeting(2, 3),
        ],
        {"pools": 4},
    ),
    "operations side by side": (
        lambda world: [world.single(0), world.meeting(2, 0, 1), world.meeting(2, 2, 3)],
        {"limit": 4, "pools": 4, "places": 1},
    ),
    # Beyond the cap an operation may wait for GRACE_S.
    "beyond the cap": (
        lambda world: [world.operation(0, 1, 2), world.single(1), world.operation(0, 1, 2)],
        {"patience_s": 0.3},
    ),
    "beyond the cap and within": (
        lambda world: [world.operation(0, 1, 2), world.operation(1, 2), world.single(0), world.single(2)],
        {"patience_s": 0.3, "places": 1},
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_schedules_of_a_plan(run: Run, name: str) -> None:
    _search(run, name, 1, 150)
    _try_at_random(run, name, 150)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_schedule_with_one_interruption(run: Run, name: str) -> None:
    assert _search(run, name, 1, 30_000), "there are more schedules than are tried"
    _try_at_random(run, name, 3_000)


def _search(run: Run, name: str, interruptions: int, most: int) -> bool:
    """Go through the schedules of a plan; tell whether these were all."""
    plan, options = PLANS[name]
    search = Search(interruptions)
    while search.next():
        if search.runs > most:
            return False
        run(plan, search.choose, **options)
    print(f"{name}: {search.runs} schedules are all with {interruptions} interruptions")
    return True


def _try_at_random(run: Run, name: str, count: int) -> None:
    plan, options = PLANS[name]
    for seed in range(count):
        run(plan, _anything(random.Random(seed), 0.3), **options)


def _anything(rng: random.Random, readiness: float) -> Callable[[int, bool], int]:
    def choose(options: int, may_stay: bool) -> int:
        if may_stay and rng.random() > readiness:
            return 0
        return rng.randrange(options)

    return choose


def _random_plan(rng: random.Random, world: World, widest: int) -> list[Callable[[], None]]:
    bodies = []
    for _ in range(rng.randint(3, 5)):
        if rng.random() < 0.4:
            numbers = rng.sample(range(len(world.pools)), rng.randint(1, widest))
            bodies.append(world.operation(*numbers, times=rng.randint(1, 2)))
        else:
            number = rng.randrange(len(world.pools))
            bodies.append(world.single(number, rng.randint(1, 3), close=rng.random() < 0.3))
    return bodies


def _random_schedules(run: Run, first: int, count: int, *, by_line: bool) -> None:
    for seed in range(first, first + count):
        rng = random.Random(seed)
        limit, places = rng.randint(1, 3), rng.randint(1, 2)
        within_cap = rng.random() < 0.7
        try:
            run(
                lambda world, rng=rng, widest=limit if within_cap else 4: _random_plan(rng, world, widest),
                _anything(rng, 0.02 if by_line else 0.3),
                limit=limit,
                pools=4,
                places=places,
                patience_s=0.0 if within_cap else 1.0,
                by_line=by_line,
            )
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_random_schedules(run: Run) -> None:
    _random_schedules(run, 0, 200, by_line=False)


def test_random_schedules_that_switch_at_any_line(run: Run) -> None:
    _random_schedules(run, 10_000, 60, by_line=True)


@pytest.mark.slow
def test_many_random_schedules(run: Run) -> None:
    _random_schedules(run, 20_000, 8_000, by_line=False)


@pytest.mark.slow
def test_many_random_schedules_that_switch_at_any_line(run: Run) -> None:
    _random_schedules(run, 40_000, 3_000, by_line=True)
