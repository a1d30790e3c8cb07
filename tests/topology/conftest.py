"""Fixtures for import, export and check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nasty_sources import NASTY, NASTY_ROWS, make
from open_files import open_files_under


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    return make(tmp_path / "nasty.db", NASTY, NASTY_ROWS)


@pytest.fixture(autouse=True)
def _nothing_left_open(tmp_path: Path) -> Iterator[None]:
    """No test leaves a descriptor under its directory open."""
    yield
    assert open_files_under(tmp_path) == []
