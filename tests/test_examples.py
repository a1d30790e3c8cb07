"""The examples run, end by themselves, and warn of nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
COMMAND_S = 120
# SQLite's own fault (the WAL-reset bug) is no fault of the example.
STRICT = ["-X", "dev", "-W", "error", "-W", "ignore:SQLite"]
ARGUMENTS = {"web_server.py": ["--check"]}
SAYS = {
    "scheduled_task.py": "in all 60 sales",
    "tenants.py": "after acme left: 208 documents",
    "time_ranges.py": "the first quarter is deleted: 270 readings",
    "web_server.py": "all answers are right",
    "worker_threads.py": "done: accepted 400, counted 400",
}


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, *STRICT, str(EXAMPLES / name), *arguments]


def test_each_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name == "web_server.py":
        pytest.importorskip("flask")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        command(name, *ARGUMENTS.get(name, [])),
        cwd=here,
        env={**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert SAYS[name] in done.stdout
    assert list(temporary.iterdir()) == [], "the example leaves something behind"
    assert list(here.iterdir()) == [], "the example leaves something behind"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_workers_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("worker_threads.py", "--events", "0"),
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "working\n"
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=COMMAND_S)
        finally:
            process.kill()
    assert process.returncode == 0, stdout + stderr
    assert stderr == ""
    words = stdout.replace(",", "").split()  # stopped: accepted N counted N
    assert words[0] == "stopped:"
    assert words[2] == words[4]
    assert list(tmp_path.iterdir()) == []
