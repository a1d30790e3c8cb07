"""Where the sample database is."""

from __future__ import annotations

from pathlib import Path

import shardlite
from shardlite.cli.console import CommandFailure


def sample_path() -> Path:
    """Return the path of ``orders.db``: in the installed package, or in ``data/`` of a checkout.

    Raises CommandFailure when it is in neither place.
    """
    package = Path(shardlite.__file__).parent
    for candidate in (package / "_data" / "orders.db", package.parent / "data" / "orders.db"):
        if candidate.is_file():
            return candidate
    raise CommandFailure(f"the sample database orders.db is missing: install shardlite again (looked in {package})")
