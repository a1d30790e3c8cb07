"""The fence and the catalog: snapshots, changes, other processes, damage."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from open_files import open_files_under

from shardlite.driver import sqlite3
from shardlite.errors import (
    InternalError,
    LayoutMismatchError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    ShardUnavailableError,
)
from shardlite.router.catalog import CREATE_JOB, Catalog
from shardlite.router.catalog_file import SchemaObject, table_from_json, table_to_json
from shardlite.router.fence import MAGIC, Fence
from shardlite.router.introspect import describe
from shardlite.router.keys import Affinity, KeyType
from shardlite.router.layout import Layout
from shardlite.router.strategies import HashStrategy, RangeStrategy, ShardingStrategy
from shardlite.router.table import ConstraintMode, Table, TableKind

INTEGER = KeyType((Affinity.INTEGER,), ("BINARY",))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.db", layout=Layout.create(4)) as made:
        yield made


def make_table(name: str = "users", **decided: Any) -> Table:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("CREATE TABLE parent(id INTEGER PRIMARY KEY)")
        connection.execute(
            f'CREATE TABLE "{name}"(id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, p REFERENCES parent,'
            " g AS (id + 1))"
        )
        connection.execute(f'CREATE UNIQUE INDEX "ux_{name}" ON "{name}"(lower(name))')
        decided = {"key_columns": ("id",), "group": "users"} | decided
        return describe(connection, name).table(TableKind.SHARDED, **decided)
    finally:
        connection.close()


# ---- fence


def test_words_are_shared_between_mappings(tmp_path: Path) -> None:
    first, second = Fence.open(tmp_path, 4), Fence.open(tmp_path, 64)
    first.epoch = 7
    assert second.epoch == second.words[Fence.EPOCH] == 7
    assert second.bump_sequence_epoch() == first.sequence_epoch == 1
    assert "epoch=7" in repr(first)
    first.close()
    first.close()
    assert first.closed
    assert "closed" in repr(first)
    with pytest.raises(ValueError, match="released"):
        _ = first.epoch
    second.close()
    assert os.listdir(tmp_path) == ["fence"]
    assert open_files_under(tmp_path) == []
    again = Fence.open(tmp_path, 4)
    assert again.epoch == 7
    again.close()


@pytest.mark.parametrize(
    ("content", "words"), [(b"SQLite format 3", "not a fence"), (MAGIC + b"\x09" + bytes(504), "version 9")]
)
def test_a_foreign_fence_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "fence").write_bytes(content)
    with pytest.raises(ShardUnavailableError, match=words):
        Fence.open(tmp_path, 4)


def test_a_fence_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="missing"):
        Fence.open(tmp_path / "missing", 4)


def _bump_in_child(fence: Fence) -> None:
    fence.bump_sequence_epoch()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_child_writes_the_same_words(tmp_path: Path) -> None:
    fence = Fence.open(tmp_path, 1)
    child = multiprocessing.get_context("fork").Process(target=_bump_in_child, args=(fence,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert fence.sequence_epoch == 1
    fence.close()


# ---- opening


def test_what_was_created_is_opened(tmp_path: Path) -> None:
    layout = Layout.create(3, RangeStrategy([10, b"x"]), encoding="UTF-16le")
    with Catalog.create(tmp_path / "catalog.db", layout=layout) as made:
        assert made.created
        assert [job.kind for job in made.jobs()] == [CREATE_JOB]
    with Catalog.open(tmp_path / "catalog.db") as opened:
        assert not opened.created
        assert opened.layout.shard_of(INTEGER)(10) == 1
        stored = (opened.layout.database_id, opened.layout.num_shards, opened.layout.encoding, opened.epoch)
        assert stored == (layout.database_id, 3, "UTF-16le", 1)
        assert opened.fence.epoch == 1
        assert "shards=3" in repr(opened)
    assert sorted(os.listdir(tmp_path)) == ["catalog.db", "fence"]
    assert open_files_under(tmp_path) == []


def test_a_catalog_is_created_once(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(ProgrammingError, match="exists already"):
        Catalog.create(catalog.path, layout=Layout.create(4))
    with Catalog.open_or_create(catalog.path, lambda: Layout.create(9)) as other:
        assert other.layout == catalog.layout
    assert Catalog.exists(catalog.path)
    assert not Catalog.exists(tmp_path / "other.db")


def test_a_creation_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.touch()
    with pytest.raises(InternalError, match="cut off"):
        Catalog.open(path)
    with Catalog.open_or_create(path, lambda: Layout.create(2)) as made:
        assert made.created


@pytest.mark.parametrize("damage", ["missing", "garbage", "other database", "newer format"])
def test_what_is_no_catalog_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "catalog.db"
    expected: tuple[type[Exception], str] = (ShardUnavailableError, "there is no catalog")
    if damage == "garbage":
        path.write_bytes(b"no database at all " * 100)
        expected = (ShardUnavailableError, "not a SQLite database|not a database")
    elif damage != "missing":
        if damage == "newer format":
            Catalog.create(path, layout=Layout.create(2)).close()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("CREATE TABLE mine(x)")
        connection.execute(f"PRAGMA user_version = {99 if damage == 'newer format' else 0}")
        connection.close()
        newer = (NotSupportedError, "format version 99.*up to 1")
        expected = newer if damage == "newer format" else (InternalError, "another database")
    with pytest.raises(expected[0], match=expected[1]):
        Catalog.open(path)
    if damage == "other database":
        with pytest.raises(InternalError, match="not a catalog"):
            Catalog.open_or_create(path, lambda: Layout.create(2))
    assert open_files_under(tmp_path) == []


class Everything(ShardingStrategy):
    """A user's own."""

    def shard_for(self, key: Any) -> int:
        return 1


def test_strategies_are_compared_at_open(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(LayoutMismatchError, match=r"hash.*range"):
        Catalog.open(catalog.path, strategy=RangeStrategy([1, 2, 3]))
    Catalog.open(catalog.path, strategy=HashStrategy()).close()
    own = tmp_path / "own"
    own.mkdir()
    Catalog.create(own / "catalog.db", layout=Layout.create(2, Everything())).close()
    with pytest.raises(LayoutMismatchError, match=r"Everything.*strategy="):
        Catalog.open(own / "catalog.db")
    with Catalog.open(own / "catalog.db", strategy=Everything()) as opened:
        assert opened.layout.shard_of(INTEGER)(7) == 1
        with opened.change():
            pass
        assert opened.layout.shard_of(INTEGER)(7) == 1


# ---- changing


def test_a_table_survives_json() -> None:
    table = make_table(constraints=ConstraintMode.CHECKED, reason="because", unenforced=("UNIQUE (name)",))
    assert table_from_json(table_to_json(table)) == table
    later = table_to_json(table).replace('{"name"', '{"invented_later": 1, "name"', 1)
    assert table_from_json(later) == table


def test_others_see_a_change(catalog: Catalog) -> None:
    users, objects = make_table(), (SchemaObject("table", "users", "users", "CREATE TABLE users(...)"),)
    with Catalog.open(catalog.path) as other:
        assert not other.reload_if_changed()
        with catalog.change() as change:
            change.put_table(users)
            change.set_schema(objects)
            assert "users" not in catalog.tables
        assert catalog.is_current()
        assert not other.is_current()
        assert other.table("USERS") == users
        assert (other.schema, other.epoch, other.fence.epoch) == (objects, 2, 2)
        assert other.is_current()
        assert not other.reload_if_changed()
        with pytest.raises(ProgrammingError, match="no such table: x"):
            other.table("x")


def test_tables_keep_their_order_and_are_renamed_and_dropped(catalog: Catalog) -> None:
    with catalog.change() as change:
        for name in ("b", "a", "c"):
            change.put_table(make_table(name))
    catalog.draw_block("a", 5)
    with catalog.change() as change:
        change.put_table(make_table("b", reason="changed"))
        change.rename_table("A", make_table("z"))
        change.drop_table("C")
        for call in (lambda: change.drop_table("nope"), lambda: change.rename_table("z", make_table("b"))):
            with pytest.raises(ProgrammingError, match=r"no such table: nope|already a table named b"):
                call()
    assert list(catalog.tables) == ["b", "z"]
    assert catalog.tables["b"].reason == "changed"
    assert catalog.next_id("z") == 6
    assert catalog.next_id("a") == 1
    assert catalog.fence.sequence_epoch == 1
    with Catalog.open(catalog.path) as other:
        assert dict(other.tables) == dict(catalog.tables)


def test_a_failed_change_leaves_nothing(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.change() as change:  # noqa: PT012  # what comes before the error is what has to be undone
        change.put_table(make_table())
        change.add_job("ddl", {})
        _ = 1 / 0
    assert not catalog.tables
    assert catalog.is_current()
    assert (catalog.epoch, catalog.fence.epoch, len(catalog.jobs("ddl"))) == (1, 1, 0)


def test_slots_move_with_the_epoch(catalog: Catalog) -> None:
    with Catalog.open(catalog.path) as other:
        with catalog.change() as change:
            change.set_slot_map([3] * 4096)
        assert catalog.layout.shard_of(INTEGER)(1) == 3
        assert other.reload_if_changed()
        assert other.layout == catalog.layout
        assert other.layout.epoch == 2


def test_a_change_in_this_thread_excludes_another(catalog: Catalog) -> None:
    with catalog.change():
        with pytest.raises(ProgrammingError, match="already changing the catalog"):
            catalog.draw_block("t", 1)
        assert not catalog.reload_if_changed()
        assert catalog.next_id("t") == 1


def test_readers_do_not_wait_for_a_change(catalog: Catalog) -> None:
    with Catalog.open(catalog.path, timeout_s=0.05) as other:
        with catalog.change() as change:
            change.put_table(make_table())
            found: list[Any] = []
            reader = threading.Thread(target=lambda: found.append((catalog.next_id("t"), other.next_id("t"))))
            reader.start()
            reader.join(20)
            assert found == [(1, 1)]
            with pytest.raises(OperationalError, match=r"locked.*catalog\.db"):
                other.draw_block("t", 1)


def test_a_fence_ahead_of_the_file_is_put_right(catalog: Catalog) -> None:
    catalog.fence.epoch = 9
    assert not catalog.reload_if_changed()
    assert catalog.fence.epoch == 1
    assert catalog.is_current()
    catalog.fence.epoch = 9
    with Catalog.open(catalog.path) as other:
        assert other.fence.epoch == 1
        with other.change():
            other.fence.epoch = 9
            assert not catalog.reload_if_changed()
            assert catalog.fence.epoch == 9  # somebody may be about to commit this very epoch
        assert other.fence.epoch == 2
    assert catalog.reload_if_changed()


def test_a_lost_fence_is_made_again(catalog: Catalog) -> None:
    with catalog.change():
        pass
    catalog.close()
    (catalog.path.parent / "fence").unlink()
    with Catalog.open(catalog.path) as opened:
        assert opened.fence.epoch == opened.epoch == 2


def test_jobs_outlive_their_process(catalog: Catalog) -> None:
    job = catalog.add_job("import", {"source": "x.db", "done": 0})
    catalog.update_job(job, payload={"source": "x.db", "done": 5})
    catalog.update_job(job, state="verifying")
    with catalog.change() as change:
        other = change.add_job("ddl", {"sql": "CREATE"})
        change.update_job(other, state="applied")
    with Catalog.open(catalog.path) as opened:
        (found,) = opened.jobs("import")
        assert (found.state, found.payload) == ("verifying", {"source": "x.db", "done": 5})
        assert [found.state for found in opened.jobs("ddl")] == ["applied"]
        with opened.change() as change:
            change.delete_job(other)
        opened.delete_job(job)
    assert [found.kind for found in catalog.jobs()] == [CREATE_JOB]
    with pytest.raises(ProgrammingError, match=f"no job {job}"):
        catalog.update_job(job, state="x")


def test_a_closed_catalog_says_so(catalog: Catalog) -> None:
    catalog.close()
    catalog.close()
    with pytest.raises(OperationalError, match="closed"):
        catalog.next_id("t")


def _create_or_open(path: str, queue: Any) -> None:
    with Catalog.open_or_create(path, lambda: Layout.create(4)) as opened:
        with opened.change():
            pass
        queue.put((opened.created, opened.layout.database_id, opened.draw_block("t", 10)))


def test_processes_create_and_change_one_catalog(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    path = str(tmp_path / "catalog.db")
    children = [context.Process(target=_create_or_open, args=(path, queue)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 3
    created, identities, blocks = zip(*(queue.get() for _ in children), strict=True)
    queue.close()
    assert sorted(created) == [False, False, True]
    assert len(set(identities)) == 1
    assert sorted(blocks) == [(1, 10), (11, 20), (21, 30)]
    with Catalog.open(path) as opened:
        assert opened.epoch == opened.fence.epoch == 4
