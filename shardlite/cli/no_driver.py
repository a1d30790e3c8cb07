"""The command line where the SQLite driver that the environment asks for can't be had."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


def refuser(problem: str) -> Callable[[], NoReturn]:
    """Return a ``main`` that writes the problem to stderr, in one line, and exits as for wrong usage."""

    def main() -> NoReturn:
        sys.stderr.write(f"shardlite: error: {problem}\n")
        sys.exit(2)

    return main


__all__ = ["refuser"]
