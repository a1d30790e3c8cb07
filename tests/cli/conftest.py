"""A command line to call, in this process, and databases to call it on."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardlite.cli import run
from shardlite.driver import sqlite3

SHOP = """
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, photo BLOB, score REAL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users (id), amount INTEGER);
CREATE INDEX orders_by_user ON orders (user_id);
"""


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line gave."""

    status: int
    out: str
    err: str


CommandLine = Callable[..., Outcome]


@pytest.fixture
def shardlite(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Return a function that runs one command line; ``stdin`` is what it reads."""

    def call(*arguments: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make, once, what the tests copy: ``app.db``, 40 users with three orders each, and ``shop``, its four shards."""
    directory = tmp_path_factory.mktemp("made")
    conn = sqlite3.connect(directory / "app.db")
    conn.executescript(SHOP)
    users = [(n, f"user {n}", bytes([n]) if n % 2 else None, n / 4) for n in range(1, 41)]
    conn.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", users)
    conn.executemany("INSERT INTO orders (user_id, amount) VALUES (?, ?)", [(1 + n % 40, n) for n in range(120)])
    conn.commit()
    conn.close()
    assert run(["import", str(directory / "app.db"), str(directory / "shop"), "--json"]) == 0
    return directory


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """Return an ordinary SQLite file: 40 users, each with three orders."""
    return Path(shutil.copyfile(made / "app.db", tmp_path / "app.db"))


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a directory of four shards with the content of `source`. Nothing is open, so plain copies will do."""
    path = tmp_path / "shop"
    shutil.copytree(made / "shop", path)
    yield path
    leftover = [file.name for file in path.glob("*-wal")] + [file.name for file in path.glob("*-shm")]
    assert not leftover, "a command left the database open"
