"""The threads that run statements of several shards side by side: one bounded set for the whole process."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shardlite.connection.connection import Connection

T = TypeVar("T")
MOST = 8
_QUICK_S = 0.001
"""Seconds that all shards may take, one after another, before handing them to threads pays."""
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
    call: Callable[[int], T], shards: Iterable[int], what: Hashable, sessions: Mapping[int, Connection]
) -> Iterator[tuple[int, T]]:
    """Call for each shard and yield (shard, answer) in the order given.

    In threads, unless the same work (``what``) was quick the last time: waking a thread costs more than a point query.
    At the first error the other shards' statements are interrupted, all are waited for, and the error is raised.
    """
    wanted = list(shards)
    started = time.perf_counter()
    if len(wanted) == 1 or _paces.get(what, 1.0) < _QUICK_S:
        for shard in wanted:
            yield shard, call(shard)
        _remember(what, time.perf_counter() - started)
        return
    pool = workers()
    tasks: list[tuple[int, Future[tuple[float, T]]]] = [(n, pool.submit(_timed, call, n)) for n in wanted]
    spent = 0.0
    try:
        for shard, task in tasks:
            seconds, answer = task.result()
            spent += seconds
            yield shard, answer
    except BaseException:
        for shard, task in tasks:
            if not task.cancel() and not task.done():
                sessions[shard].interrupt()
        for _, task in tasks:
            if not task.cancelled():
                task.exception()
        raise
    _remember(what, spent)


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
