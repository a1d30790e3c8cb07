"""The ``shardlite`` command: one module per group of commands, `main` for the entry point."""

from __future__ import annotations

from shardlite.cli.app import cli, main, run

__all__ = ["cli", "main", "run"]
