"""What happens around each durable step: for logging, statistics and, in tests, as points at which a process dies.

An event's name is a step's name and a phase: ``decided.start``, ``decided.complete``, ``decided.failed``. The steps
are listed in ``DESIGN.md`` (7.1 and 13). With nobody subscribed an event costs one look at an empty tuple.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger("shardlite.transaction")


@dataclass(frozen=True, slots=True)
class Event:
    """One step that begins, is complete or has failed.

    ``facts`` says what it is about: ``number`` of a log file, ``tokens``, ``shard``, ``error``; by step.
    """

    name: str
    facts: Mapping[str, object]


Subscriber = Callable[[Event], None]
_subscribers: tuple[Subscriber, ...] = ()
_changing = threading.Lock()


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Call ``subscriber`` with each event from now on; returns what ends it. Safe for threads.

    It is called in the thread that makes the step, often under locks: it must be quick and must not use the database.
    What it raises is logged and changes nothing.
    """
    global _subscribers
    with _changing:
        _subscribers = (*_subscribers, subscriber)

    def unsubscribe() -> None:
        global _subscribers
        with _changing:
            _subscribers = tuple(other for other in _subscribers if other is not subscriber)

    return unsubscribe


def emit(name: str, **facts: object) -> None:
    """Tell the subscribers, in their order. Raises nothing of theirs."""
    for subscriber in _subscribers:
        try:
            subscriber(Event(name, facts))
        except Exception:
            logger.exception("a subscriber failed at the event %s", name)


@contextmanager
def step(name: str, **facts: object) -> Iterator[None]:
    """Emit ``name.start``, and ``name.complete`` or, with ``error``, ``name.failed``."""
    if not _subscribers:
        yield
        return
    emit(f"{name}.start", **facts)
    try:
        yield
    except BaseException as error:
        emit(f"{name}.failed", **facts, error=error)
        raise
    emit(f"{name}.complete", **facts)


def crash_at(name: str, nth: int = 1) -> Callable[[], None]:
    """For tests: kill this process, with no chance to clean up, at the ``nth`` event called ``name``.

    Returns what calls it off.
    """
    left = nth
    counting = threading.Lock()

    def crash(event: Event) -> None:
        nonlocal left
        if event.name != name:
            return
        with counting:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    return subscribe(crash)


__all__ = ["Event", "Subscriber", "crash_at", "emit", "step", "subscribe"]
