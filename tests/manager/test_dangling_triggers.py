"""Triggers may name what isn't there yet, or not any more, as on one file; they are judged when it comes."""

from __future__ import annotations

from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, a /* shardlite: kind={kind} */)"
LOG = "CREATE TABLE log (id INTEGER PRIMARY KEY, a /* shardlite: kind={kind} */) WITHOUT ROWID"
TRIGGER = "CREATE TRIGGER noted AFTER INSERT ON t BEGIN INSERT INTO log (id, a) VALUES (new.id, new.a); END"


def outcome(target: Any, sql: str) -> Any:
    try:
        return [tuple(row) for row in target.execute(sql).fetchall()]
    except sqlite3.Error as error:
        return str(error).partition(" [")[0]


@pytest.mark.parametrize("kind", ["single", "reference", "sharded"])
def test_as_on_one_file(manager: ShardManager, kind: str) -> None:
    plain = sqlite3.connect(":memory:", isolation_level=None)
    for sql in (
        *(TABLE, TRIGGER, "INSERT INTO t VALUES (1, 1)", "INSERT INTO t SELECT 7, 7", "UPDATE t SET a = 2"),
        *(LOG, "INSERT INTO t VALUES (2, 2), (3, 3)", "DROP TABLE log", "INSERT INTO t VALUES (4, 4)"),
        *(
            "DELETE FROM t WHERE id = 2",
            "CREATE TABLE log (id INTEGER PRIMARY KEY /* shardlite: kind={kind} */) WITHOUT ROWID",
        ),
        *("INSERT INTO t VALUES (5, 5)", "DROP TABLE log", LOG, "INSERT INTO t VALUES (6, 6)"),
        *("SELECT * FROM t ORDER BY id", "SELECT * FROM log ORDER BY id", "DROP TABLE log", "DROP TABLE t"),
    ):
        text = sql.format(kind=kind)
        assert outcome(manager, text) == outcome(plain, text), text
    plain.close()


def test_what_comes_is_judged(manager: ShardManager) -> None:
    manager.execute(TABLE.format(kind="sharded"))
    manager.execute(TRIGGER)
    with pytest.raises(OperationalError, match=r"no such table: main[.]log"):
        manager.insert("t", {"id": 1})
    with pytest.raises(NotSupportedError, match="trigger noted on t"):
        manager.execute(LOG.format(kind="single"))
    assert "log" not in manager.tables
    manager.execute("DROP TRIGGER noted")
    manager.execute(LOG.format(kind="single"))
    assert manager.check().ok


@pytest.mark.parametrize("event", ["UPDATE OF b", "UPDATE"])
def test_another_trigger_is_judged_nevertheless(manager: ShardManager, event: str) -> None:
    """A change of ``b`` alone fires only the second one, which writes rows that may be anywhere."""
    manager.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b /* shardlite: kind=single */)")
    manager.execute("CREATE TABLE spread (id INTEGER PRIMARY KEY, x)")
    manager.execute("CREATE TRIGGER noted AFTER UPDATE OF a ON t BEGIN INSERT INTO log VALUES (new.id); END")
    with pytest.raises(NotSupportedError, match=r"trigger other on t \(single\) writes spread \(sharded\)"):
        manager.execute(f"CREATE TRIGGER other AFTER {event} ON t BEGIN UPDATE spread SET x = 1; END")
