"""The choice of the driver: what it says when it can't be had, in a program and on the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MISSING = "import sys; sys.modules['pysqlite3'] = None\n"
"""As where the package isn't installed."""


def run(code: str, driver: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "SHARDLITE_DRIVER": driver},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


CASES = pytest.mark.parametrize(
    ("driver", "before", "says"),
    [
        ("sqlite4", "", "SHARDLITE_DRIVER='sqlite4' in the environment is unknown: use 'sqlite3' or 'pysqlite3'"),
        ("pysqlite3", MISSING, "that package can't be imported"),
    ],
    ids=["unknown", "missing"],
)


@CASES
@pytest.mark.parametrize("arguments", [["--help"], ["info", "x"], ["import", "a", "b"], []], ids=" ".join)
def test_the_command_line_says_it_in_one_line(driver: str, before: str, says: str, arguments: list[str]) -> None:
    done = run(before + "from shardlite.cli import main; main()", driver, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shardlite: error: SHARDLITE_DRIVER=")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_running_the_package_says_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardlite", "info"],
        env={**os.environ, "SHARDLITE_DRIVER": "none"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@CASES
@pytest.mark.parametrize(
    "code",
    [
        "from shardlite import ShardManager",
        "import shardlite; shardlite.ShardManager",
        "import shardlite.connection",
        "from shardlite.driver import sqlite3",
    ],
)
def test_a_program_gets_an_import_error(driver: str, before: str, says: str, code: str) -> None:
    done = run(before + code, driver)
    assert done.returncode == 1
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert says in done.stderr.splitlines()[-1]


def test_other_missing_names_are_attribute_errors() -> None:
    done = run("import shardlite; print(hasattr(shardlite, 'nothing'), shardlite.__version__ > '0')", "none")
    assert (done.returncode, done.stdout) == (0, "False True\n")


def test_a_missing_dependency_is_not_blamed_on_the_driver() -> None:
    done = run("import sys; sys.modules['mmh3'] = None\nimport shardlite", "sqlite3")
    assert "mmh3" in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_the_default_is_the_standard_library() -> None:
    done = run("from shardlite.driver import DRIVER_NAME; print(DRIVER_NAME)", "")
    assert done.stdout == "sqlite3\n"
