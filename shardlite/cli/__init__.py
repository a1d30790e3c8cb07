"""The ``shardlite`` command: one module per group of commands, `main` for the entry point."""

from __future__ import annotations

try:
    from shardlite.cli.app import cli, main, run
except ImportError as error:
    if error.name != "shardlite.driver":
        raise
    from shardlite.cli.no_driver import refuser

    main = refuser(str(error))

__all__ = ["cli", "main", "run"]
