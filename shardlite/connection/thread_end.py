"""Knowing that a thread has ended.

A thread's ident is used again as soon as the thread has ended, and a ``threading.Thread`` object says nothing of
threads that were not started by ``threading``. What is certain: the thread's ``threading.local`` values are
dropped when it ends, by that thread itself. So each thread keeps an object there whose end is the thread's end.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


class ThreadLife:
    """One thread: its name, its ident and whether it is alive; ``at_end`` are called once, in the ending thread."""

    __slots__ = ("__weakref__", "alive", "at_end", "ident", "name", "pid")

    def __init__(self) -> None:
        self.name = threading.current_thread().name
        self.ident = threading.get_ident()
        self.pid = os.getpid()
        self.alive = True
        self.at_end: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"thread {self.name!r}" + ("" if self.alive else " (ended)")


at_any_end: list[Callable[[ThreadLife], None]] = []
"""Called at the end of every thread that ``this_thread`` has met, in that thread."""


class _Sentinel:
    __slots__ = ("life",)

    def __init__(self, life: ThreadLife) -> None:
        self.life = life

    # Bound here, since at the interpreter's end the module's names may be gone before the main thread's sentinel.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # the process ends: the system takes back everything
            return
        life = self.life
        life.alive = False
        if life.pid != os.getpid():  # a forked child drops what its parent's other threads had: not their end
            return
        while life.at_end:
            life.at_end.pop()()
        for callback in at_any_end:
            callback(life)


class _Local(threading.local):
    life: ThreadLife
    sentinel: _Sentinel


_local = _Local()


def this_thread() -> ThreadLife:
    """Return the calling thread's life. Costs 0.1 us."""
    try:
        return _local.life
    except AttributeError:
        life = ThreadLife()
        _local.sentinel = _Sentinel(life)
        _local.life = life
        return life


__all__ = ["ThreadLife", "this_thread"]
