"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

HeldFiles = Callable[[Path], list[str]]


def _descriptors(directory: Path) -> dict[str, str]:
    """List this process's descriptors of files below a directory (Linux; elsewhere there is no list)."""
    found = {}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # closed since
            continue
        if target.startswith(f"{directory}/"):
            found[name] = target
    return found


@pytest.fixture
def held_files() -> HeldFiles:
    """Return a function that lists the files below a directory which this process had open at one instant.

    Such a list takes a while, in which one file may be closed and another opened: both would be in it. What two lists
    in a row agree on was all open at the instant between them. The directory itself isn't counted: SQLite opens it
    for the moment in which it syncs a new log.
    """

    def held(directory: Path) -> list[str]:
        before, after = _descriptors(directory), _descriptors(directory)
        return [target for name, target in before.items() if after.get(name) == target]

    return held


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the long forms of the checks too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="the long form of a check: run with --run-slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)
