"""``python -m shardlite``: the same as the ``shardlite`` command."""

from __future__ import annotations

from shardlite.cli import main

main()
