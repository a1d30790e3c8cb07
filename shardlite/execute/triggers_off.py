"""Triggers taken away while rows are moved or written as images: they had their say when the rows were changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shardlite.names import quote


@contextmanager
def triggers_off(run: Callable[[str], object], triggers: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Drop triggers, given as (name, CREATE TRIGGER text), and make them again at the end, all by ``run``.

    In a transaction: what fails meanwhile rolls it back, and the triggers are as they were.
    """
    for name, _ in triggers:
        run(f"DROP TRIGGER main.{quote(name)}")
    yield
    for _, sql in triggers:
        run(sql)
