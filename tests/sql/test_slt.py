"""SQLite's own logic tests through a real ShardManager: what is answered is what one file answers.

The folder with the corpus holds its runner too; both are looked for beside the checkout, or in SHARDLITE_SLT.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardlite.driver import sqlite3

FOLDER = Path(os.environ.get("SHARDLITE_SLT", Path(__file__).parents[3] / "shared" / "slt"))
CORPUS = FOLDER / "corpus"
SHARD_COUNTS = (1, 3, 4, 8)
SHORT_RECORDS = int(os.environ.get("SHARDLITE_SLT_QUERIES", "250"))
"""Records run of each file in the short form; the shard counts take turns in it."""
MAX_REFUSED = int(os.environ.get("SHARDLITE_SLT_REFUSED", "-1"))
"""How many refusals are let pass in a file; -1: any number. They are counted and shown."""

needs_corpus = pytest.mark.skipif(
    not (FOLDER / "slt.py").is_file(), reason=f"SQLite's logic tests are not in {FOLDER}: set SHARDLITE_SLT"
)


def files() -> list[Path]:
    return sorted(CORPUS.rglob("*.test.gz")) if CORPUS.is_dir() else []


def name_of(path: Path) -> str:
    return str(path.relative_to(CORPUS)).removesuffix(".test.gz")


def load(name: str) -> ModuleType:
    """Import a module of the corpus' folder without putting the folder on the path for good."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


class Counting:
    """A target that remembers why statements were refused."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.unsupported = target.unsupported
        self.reasons: Counter[str] = Counter()

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            return self.target.execute(sql)
        except self.unsupported as refusal:
            self.reasons[" ".join(str(refusal).split()[:6])] += 1
            raise


@pytest.fixture
def target(num_shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    memory = Path("/dev/shm")  # thousands of small transactions: their syncs are not what is tested
    monkeypatch.setattr(tempfile, "tempdir", str(memory if memory.is_dir() else tmp_path))
    monkeypatch.setenv("SHARDS", str(num_shards))
    made = load("shardlite_target").make()
    yield Counting(made)
    made.close()


def check_file(path: Path, target: Counting, limit: int | None) -> None:
    found = load("slt").run_file(str(path), target, unsupported=target.unsupported, limit=limit)
    refused = f"{found.unsupported} of {found.tests} refused: {dict(target.reasons.most_common(5))}"
    shown = "\n".join(f"  line {line}: {why}\n    {sql}" for line, why, sql in found.failures[:5])
    assert found.nfail == 0, f"{found.nfail} wrong of {found.tests}; {refused}\n{shown}"
    assert found.tests > 0
    print(f"{name_of(path)}: {refused}")
    assert MAX_REFUSED < 0 or found.unsupported <= MAX_REFUSED, refused


@needs_corpus
@pytest.mark.parametrize(
    ("path", "num_shards"),
    [
        pytest.param(path, SHARD_COUNTS[place % 4], id=f"{name_of(path)}-{SHARD_COUNTS[place % 4]}")
        for place, path in enumerate(files())
    ],
)
def test_beginning(path: Path, target: Counting) -> None:
    """The first records of each file."""
    check_file(path, target, SHORT_RECORDS)


@needs_corpus
@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("num_shards", SHARD_COUNTS)
@pytest.mark.parametrize("path", files(), ids=name_of)
def test_whole(path: Path, target: Counting) -> None:
    check_file(path, target, None)


@needs_corpus
def test_runner_sees_a_wrong_answer() -> None:
    class Lossy:
        """One file that loses the last row of each answer."""

        def __init__(self) -> None:
            self.conn = sqlite3.connect(":memory:", isolation_level=None)

        def execute(self, sql: str) -> list[tuple[Any, ...]]:
            return self.conn.execute(sql).fetchall()[:-1]

    path = next(path for path in files() if path.name == "select1.test.gz")
    lossy = Lossy()
    try:
        assert load("slt").run_file(str(path), lossy, limit=80).nfail > 10
    finally:
        lossy.conn.close()
