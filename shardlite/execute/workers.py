"""The threads that run statements of several shards side by side: one bounded set for the whole process."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

MOST = 8
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def workers() -> ThreadPoolExecutor:
    """Return the process's worker threads. A forked child makes its own."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(min(MOST, os.cpu_count() or 1), thread_name_prefix="shardlite")
        return _pool


def _after_fork_in_child() -> None:
    global _pool, _lock
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
