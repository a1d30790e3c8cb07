"""Progress is shown where somebody looks, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shardlite.cli.sample import sample_path

IMPORT_S = 120


def test_no_bar_without_a_terminal(source: Path, tmp_path: Path, shardlite: Any) -> None:
    outcome = shardlite("import", source, tmp_path / "shop")
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_bar_on_a_terminal_and_none_of_it_on_stdout(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shardlite", "import", str(sample_path()), "shop", "--json"],
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=IMPORT_S,
            check=False,
        )
    finally:
        os.close(theirs)
        reader.join(timeout=IMPORT_S)
        os.close(ours)
    assert done.returncode == 0, shown
    assert done.stdout.startswith(b"{")
    assert b"\x1b" not in done.stdout
    text = shown.decode()
    assert "import: copying" in text
    assert "%" in text
