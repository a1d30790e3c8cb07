"""Fixtures for import, export and check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from nasty_sources import NASTY, NASTY_ROWS, make


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    return make(tmp_path / "nasty.db", NASTY, NASTY_ROWS)


@pytest.fixture(autouse=True)
def _nothing_left_open(tmp_path: Path) -> Iterator[None]:
    """No test leaves a descriptor under its directory open."""
    yield
    proc = Path("/proc/self/fd")
    if not proc.is_dir():
        return
    left = []
    for entry in proc.iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(str(tmp_path)):
                left.append(target)
    assert left == []
