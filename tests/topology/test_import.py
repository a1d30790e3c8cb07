"""Imports that are interrupted, that fail at the end, and what they leave for the application."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nasty_sources import make

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import InternalError, OperationalError
from shardlite.topology import check_database, import_sqlite
from shardlite.topology import importer as importer_module
from shardlite.topology.fingerprint import Fingerprint
from shardlite.topology.report import JobProgress, Phase

DDL = """CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);
CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id), total REAL);
CREATE TRIGGER fires AFTER INSERT ON orders BEGIN UPDATE orders SET total = -1 WHERE id = NEW.id; END;
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 200)
    INSERT INTO users SELECT i, 'u' || i FROM c;
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 1000)
    INSERT INTO orders SELECT i, i % 200 + 1, 5 FROM c;
UPDATE orders SET total = id; UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'users';"""

CHILD = """
import os, sys, warnings
warnings.simplefilter("ignore")
from shardlite.topology import import_sqlite
steps = 0
def progress(step):
    global steps
    steps += 1
    if steps == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
import_sqlite(sys.argv[1], sys.argv[2], progress=progress)
print(steps)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "app.db", DDL)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL for a process to end itself by")
def test_killed_at_any_step_and_run_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "shop"
    step, steps = 1, 0
    while True:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(source), str(target), str(step)],
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode == 0:
            steps = int(child.stdout)
            break
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert not target.exists()
        step = step * 4
    assert steps > 15
    assert {entry.name for entry in tmp_path.iterdir()} == {"app.db", "shop"}  # leftovers were cleared away
    assert check_database(target).ok


def test_two_imports_into_one_target(source: Path, tmp_path: Path) -> None:
    tried = []

    def progress(step: JobProgress) -> None:
        if step.phase is Phase.COPYING and not tried:
            tried.append(step)
            with pytest.raises(OperationalError, match="another import works in"):
                import_sqlite(source, tmp_path / "shop")

    import_sqlite(source, tmp_path / "shop", progress=progress)
    assert tried
    assert check_database(tmp_path / "shop").ok


def test_a_progress_callback_that_raises_ends_it(source: Path, tmp_path: Path) -> None:
    def stop(step: JobProgress) -> None:
        if step.phase is Phase.VERIFYING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_sqlite(source, tmp_path / "shop", progress=stop)
    assert [entry.name for entry in tmp_path.iterdir()] == ["app.db"]


def test_somebody_elses_directory_is_not_removed(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".shop.importing").mkdir()
    (tmp_path / ".shop.importing" / "precious").write_text("mine")
    with pytest.raises(OperationalError, match="in the way and no import made it"):
        import_sqlite(source, tmp_path / "shop")
    assert (tmp_path / ".shop.importing" / "precious").exists()


def test_content_that_differs_is_not_put_in_place(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importer_module.fingerprint_table

    def wrong(conn: sqlite3.Connection, table: object, *, schema: str = "main", **rest: object) -> Fingerprint:
        found = real(conn, table, schema=schema, **rest)
        return found + Fingerprint(0, 1) if schema == "src" else found

    monkeypatch.setattr(importer_module, "fingerprint_table", wrong)
    with pytest.raises(
        InternalError, match=r"users did not arrive as it was: the source has 200 rows .* 200 .*Nothing was"
    ):
        import_sqlite(source, tmp_path / "shop")
    assert [entry.name for entry in tmp_path.iterdir()] == ["app.db"]


def test_progress_goes_forward_to_the_end(source: Path, tmp_path: Path) -> None:
    steps: list[JobProgress] = []
    import_sqlite(source, tmp_path / "shop", progress=steps.append)
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert steps[-1].done == steps[-1].total
    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases[:3] == [Phase.READING, Phase.ROUTING, Phase.COPYING]
    assert phases[-1] is Phase.FINISHING
    copied = [s for s in steps if s.phase is Phase.COPYING and s.table == "orders"]
    assert copied[-1].rows_done == copied[-1].rows_total == 1000


@pytest.mark.parametrize("num_shards", [1, 4])
def test_the_application_goes_on_where_the_file_ended(source: Path, tmp_path: Path, num_shards: int) -> None:
    import_sqlite(source, tmp_path / "shop", num_shards=num_shards)
    with ShardManager(db_dir=tmp_path / "shop") as manager:
        assert manager.count("orders") == 1000
        assert manager.get("users", 17) is not None
        assert manager.select("orders", {"user_id": 17}, columns=["id", "total"], order_by="id")[0] == {
            "id": 16,
            "total": 16.0,
        }
        assert manager.insert("users", {"name": "new"}) == 5001  # as AUTOINCREMENT would go on
        assert manager.insert("orders", {"user_id": 17, "total": 1.0}) == 1001
        assert manager.select("orders", {"id": 1001, "user_id": 17})[0]["total"] == -1  # the trigger is there now
        assert manager.check().ok
    left = {entry.name for entry in (tmp_path / "shop").iterdir()}
    assert not any(name.endswith(("-wal", "-shm")) for name in left)


def test_a_shard_lost_after_the_import_is_not_made_again(source: Path, tmp_path: Path) -> None:
    import_sqlite(source, tmp_path / "shop")
    os.unlink(tmp_path / "shop" / "shard_2.db")
    with pytest.raises(OperationalError, match="shard_2"):
        ShardManager(db_dir=tmp_path / "shop").shutdown()
    assert not (tmp_path / "shop" / "shard_2.db").exists()


@pytest.mark.slow
def test_memory_stays_constant(tmp_path: Path) -> None:
    """A source ten times as large takes no more than a little more memory."""
    script = (
        "import sys, resource, warnings; warnings.simplefilter('ignore')\n"
        "from shardlite.topology import import_sqlite\n"
        "import_sqlite(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for rows in (100_000, 1_000_000):
        source = make(
            tmp_path / f"{rows}.db",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b TEXT); CREATE INDEX i ON t(a);"
            f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})"
            "INSERT INTO t SELECT i, hex(randomblob(40)), hex(randomblob(40)) FROM c",
        )
        started = time.monotonic()
        out = subprocess.run(
            [sys.executable, "-c", script, str(source), str(tmp_path / f"d{rows}")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(out.stdout))
        print(rows, "rows", round(time.monotonic() - started, 1), "s", peaks[-1], "KiB")
    assert peaks[1] < 200_000
