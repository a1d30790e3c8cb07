"""Counting how far a long job is."""

from __future__ import annotations

from collections.abc import Callable

from shardlite.topology.report import JobProgress, Phase, ProgressCallback


class Meter:
    """Turn "so many rows more" into JobProgress. ``total`` is the whole job in rows, each phase counted."""

    def __init__(self, callback: ProgressCallback | None, total: int) -> None:
        self._callback = callback
        self._total = max(total, 1)
        self._done = 0

    def phase(self, phase: Phase, table: str, rows: int | None) -> Callable[[int], None]:
        """Begin a phase of one table and return what to call with the number of rows done since the last call."""
        here = 0

        def tick(count: int) -> None:
            nonlocal here
            here += count
            self._done = max(0, min(self._total, self._done + count))
            self._report(phase, table, here, rows)

        self._report(phase, table, 0, rows)
        return tick

    def _report(self, phase: Phase, table: str, here: int, rows: int | None) -> None:
        if self._callback is not None:
            self._callback(JobProgress(phase, table, here, rows, self._done, self._total))
