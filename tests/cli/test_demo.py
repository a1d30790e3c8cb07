"""The demo does what it says, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from shardlite.cli import demo as demo_module
from shardlite.cli.sample import sample_path

DEMO_S = 120


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which temporary files are made during the test."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    monkeypatch.chdir(path)
    return path


def demo_process(scratch: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "shardlite", "demo", *options],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_the_demo_as_a_program(scratch: Path) -> None:
    before = sample_path().read_bytes()
    with demo_process(scratch) as child:
        out, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 0, err
    assert err == ""
    assert not list(scratch.iterdir())
    assert sample_path().read_bytes() == before
    for part in (
        "50,097 rows",
        "sharded by customer_id",
        "shard 3",
        "one shard",
        "fan-out",
        "AVG(amount_cents)",
        "LayoutMismatchError",
        "ShardUnavailableError",
        "IntegrityError",
        "shard_2.db",
        "sound",
        "identical",
    ):
        assert part in out
    # The two sides of the refused shard count.
    refusal = next(line for line in out.splitlines() if "LayoutMismatchError" in line)
    assert "4" in refusal
    assert "6" in refusal


def test_a_kept_demo_can_be_read(scratch: Path, shardlite: Any) -> None:
    assert shardlite("demo", "--keep", "kept").status == 0
    assert [path.name for path in scratch.iterdir()] == ["kept"]
    outcome = shardlite("query", "kept", "SELECT name FROM countries WHERE code = 'JP'", "--format", "csv")
    assert outcome.out == "name\nJapan\n"
    again = shardlite("demo", "--keep", "kept")
    assert again.status == 1
    assert "kept exists already" in again.err


@pytest.mark.parametrize("step", ["import_source", "aggregate", "lose_a_shard", "export"])
@pytest.mark.parametrize(
    ("problem", "status"), [(RuntimeError("on purpose"), 1), (KeyboardInterrupt(), 130)], ids=["failure", "ctrl-c"]
)
def test_nothing_is_left_when_a_step_fails(
    step: str, problem: BaseException, status: int, scratch: Path, shardlite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    def broken(self: demo_module.Demo, *_arguments: object) -> None:
        reached.append(list(scratch.iterdir()))
        raise problem

    # The steps before the broken one still run, apart from those that only cost time.
    for slow in {"check", "write", "ask_all_shards"} - {step}:
        monkeypatch.setattr(demo_module.Demo, slow, lambda *_arguments: None)
    monkeypatch.setattr(demo_module.Demo, step, broken)
    outcome = shardlite("demo")
    assert outcome.status == status
    assert len(outcome.err.strip().splitlines()) == 1
    assert reached[0], "the demo worked elsewhere than where this test looks"
    assert not list(scratch.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_nothing_is_left_after_a_signal(name: str, scratch: Path) -> None:
    number = getattr(signal, name)
    # A test run in the background may have the signal ignored, and its children with it.
    former = signal.signal(number, signal.SIG_DFL)
    try:
        child = demo_process(scratch)
    finally:
        signal.signal(number, former)
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if "Import" in line:
                break
        assert list(scratch.iterdir())
        child.send_signal(number)
        _, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 130
    assert err.strip() == "shardlite: error: interrupted"
    assert not list(scratch.iterdir())


def test_a_wrong_answer_ends_the_demo(scratch: Path, shardlite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = demo_module.Demo.original

    def lie(self: demo_module.Demo, sql: str, *parameters: object) -> list[dict[str, Any]]:
        return truth(self, sql, *parameters)[1:]

    monkeypatch.setattr(demo_module.Demo, "original", lie)
    monkeypatch.setattr(demo_module.Demo, "read_one_customer", lambda *_arguments: None)
    outcome = shardlite("demo")
    assert outcome.status == 1
    assert "the open orders from Japan" in outcome.err
    assert not list(scratch.iterdir())
