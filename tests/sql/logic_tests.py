"""The statements in SQLite's logic tests, for tests that only look at their text."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path


def records(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("statement" or "query", SQL) of what SQLite should run."""
    with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    for chunk in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in chunk.split("\n") if line and not line.startswith("#")]
        wanted = True
        while lines and lines[0].split()[0] in ("skipif", "onlyif"):
            rule, engine = lines[0].split()[:2]
            wanted = wanted and (engine == "sqlite") == (rule == "onlyif")
            lines = lines[1:]
        if not wanted or not lines or lines[0].split()[0] not in ("statement", "query"):
            continue
        body = lines[1:]
        yield lines[0].split()[0], "\n".join(body[: body.index("----")] if "----" in body else body)
