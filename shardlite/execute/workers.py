"""The threads that run statements of several shards side by side: one bounded set for the whole process."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

from shardlite.connection.connection import Connection
from shardlite.driver import sqlite3
from shardlite.execute.deadline import Deadline

T = TypeVar("T")
MOST = 8
_QUICK_S = 0.001
"""Seconds that all shards may take, one after another, before handing them to threads pays."""
_AGAIN_S = 0.01
"""Seconds from one interrupt to the next, while a task that was told to end hasn't."""
_REMEMBERED = 4096
_paces: OrderedDict[Hashable, float] = OrderedDict()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def workers() -> ThreadPoolExecutor:
    """Return the process's worker threads. A forked child makes its own."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(min(MOST, os.cpu_count() or 1), thread_name_prefix="shardlite")
        return _pool


def run_on_shards(
    call: Callable[[int], T],
    shards: Iterable[int],
    what: Hashable,
    sessions: Mapping[int, Connection],
    deadline: Deadline,
) -> list[T]:
    """Call for each shard and return the answers in the order given.

    In threads, unless the same work (``what``) was quick the last time: waking a thread costs more than a point query.
    At the first error, whichever shard's it is, the others' statements are interrupted, all are waited for, and the
    error is raised. ``deadline`` bounds the wait for a thread; what runs is under it already (``Deadline.watch``).
    """
    wanted = list(shards)
    started = time.perf_counter()
    if len(wanted) == 1 or _paces.get(what, 1.0) < _QUICK_S:
        answers = [call(shard) for shard in wanted]
        _remember(what, time.perf_counter() - started)
        return answers
    pool = workers()
    tasks: list[Future[tuple[float, T]]] = []
    try:
        # One by one into the list, so that an interrupt finds all that were begun.
        for shard in wanted:
            tasks.append(pool.submit(_timed, call, shard))  # noqa: PERF401 - see above
        done, running = wait(tasks, deadline.left_s, FIRST_EXCEPTION)
        failed = [task for task in tasks if task in done and task.exception() is not None]
        if failed:
            failed[0].result()
        if running:
            deadline.fail()
        timed = [task.result() for task in tasks]
    except BaseException:
        _cancel(tasks, [sessions[shard] for shard in wanted])
        raise
    _remember(what, sum(seconds for seconds, _ in timed))
    return [answer for _, answer in timed]


def _cancel(tasks: Sequence[Future[Any]], sessions: Sequence[Connection]) -> None:
    """Let no task begin any more, interrupt those that run, and wait for them.

    Again and again: an interrupt between two statements of a task is lost. A KeyboardInterrupt that comes meanwhile
    is raised once all have ended, for they use connections that are given back after this.
    """
    stopped: BaseException | None = None
    while True:
        try:
            left = [(task, session) for task, session in zip(tasks, sessions, strict=False) if not task.cancel()]
            left = [(task, session) for task, session in left if not task.done()]
            if not left:
                break
            for _, session in left:
                with suppress(sqlite3.Error):  # its pool is being closed
                    session.interrupt()
            wait([task for task, _ in left], _AGAIN_S)
        except BaseException as stop:
            stopped = stop
    if stopped is not None:
        raise stopped


def _timed(call: Callable[[int], T], shard: int) -> tuple[float, T]:
    started = time.perf_counter()
    answer = call(shard)
    return time.perf_counter() - started, answer


def _remember(what: Hashable, seconds: float) -> None:
    with _lock:
        _paces[what] = seconds
        _paces.move_to_end(what)
        if len(_paces) > _REMEMBERED:
            _paces.popitem(last=False)


def _after_fork_in_child() -> None:
    global _pool, _lock
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
