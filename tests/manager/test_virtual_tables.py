"""Virtual tables are kept whole; the usual triggers that keep an FTS5 index beside a table work."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError


def has_fts5() -> bool:
    with sqlite3.connect(":memory:") as conn:
        try:
            conn.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
        except sqlite3.OperationalError:
            return False
    conn.close()
    return True


pytestmark = pytest.mark.skipif(not has_fts5(), reason="this SQLite has no FTS5")


def test_an_external_content_index_is_kept_by_triggers(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=3)
    docs = manager.create_table("CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)", kind="single")
    assert docs.kind == "single"
    manager.apply_schema(
        "CREATE VIRTUAL TABLE docs_fts USING fts5(body, content='docs', content_rowid='id');"
        "CREATE TRIGGER docs_in AFTER INSERT ON docs BEGIN"
        " INSERT INTO docs_fts (rowid, body) VALUES (new.id, new.body); END"
    )
    assert manager.tables["docs_fts"].kind == "single"
    manager.insert("docs", {"body": "one shard is enough"})
    manager.execute("INSERT INTO docs (body) VALUES ('many shards')")
    found = manager.execute(
        "SELECT docs.body FROM docs_fts JOIN docs ON docs.id = docs_fts.rowid WHERE docs_fts MATCH 'many'"
    )
    assert [tuple(row) for row in found] == [("many shards",)]


def test_a_virtual_table_cannot_be_sharded(make_manager: Callable[..., ShardManager]) -> None:
    manager = make_manager(num_shards=2)
    with pytest.raises(NotSupportedError, match="virtual table can't be sharded"):
        manager.create_table("CREATE VIRTUAL TABLE f USING fts5(x)", shard_key="x")
    assert list(manager.tables) == []
