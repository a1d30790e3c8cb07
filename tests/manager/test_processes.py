"""Several processes on one directory: ids, creation, schema changes, kill -9, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.execute import ddl
from shardlite.execute.schema import SchemaDraft

Make = Callable[..., ShardManager]
PATIENCE_S = 60.0


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code in a process of its own, with a manager's directory as its first argument."""
    head = "import os, sys, time\nfrom shardlite import ShardManager\nfrom shardlite.driver import sqlite3\n"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", head + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*processes: subprocess.Popen[str], code: int = 0) -> list[str]:
    """Wait for processes and return what they printed."""
    printed = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"a process hangs: {out[-500:]} {err[-500:]}") from None
        assert process.returncode == code, out + err
        printed.append(out)
    return printed


def test_ids_are_unique_over_processes(tmp_path: Path, make_manager: Make) -> None:
    """Generated and stated ids, as key and beside another key, from four processes."""
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE users (id INTEGER PRIMARY KEY, who INT)")
    manager.create_table("CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INT, who INT)", shard_key="user_id")
    code = """
        import random
        who = int(sys.argv[2])
        rng = random.Random(who)
        made = {"users": 0, "orders": 0}
        with ShardManager(db_dir=sys.argv[1], durability="normal") as m:
            print("ready", flush=True)
            sys.stdin.readline()
            for n in range(60):
                table = rng.choice(["users", "orders"])
                row = {"who": who} | ({"user_id": n} if table == "orders" else {})
                if rng.random() < 0.4:
                    row["id"] = rng.randrange(1, 400)
                how = rng.randrange(3)
                try:
                    if how == 0:
                        m.insert(table, row)
                    elif how == 1:
                        m.insert_many(table, [row])
                    else:
                        names = ", ".join(row)
                        marks = ", ".join("?" * len(row))
                        m.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))
                    made[table] += 1
                except sqlite3.IntegrityError:
                    assert "id" in row, row
        print(made["users"], made["orders"])
    """
    processes = [start(code, tmp_path / "db", who) for who in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [line.split() for line in finish(*processes)]
    for position, table in enumerate(("users", "orders")):
        rows = manager.select(table)
        assert len(rows) == sum(int(line[position]) for line in counts)
        assert len({row["id"] for row in rows}) == len(rows)
    assert manager.check().ok


def test_processes_create_one_directory(tmp_path: Path, make_manager: Make) -> None:
    code = """
        sys.stdin.readline()
        with ShardManager(num_shards=5, db_dir=sys.argv[1]) as m:
            m.create_table("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v TEXT)")
            m.create_table("CREATE TABLE IF NOT EXISTS r (id INTEGER PRIMARY KEY, v TEXT)", kind="reference")
            for n in range(10):
                m.insert("t", {"v": "x"})
            print(m.layout.database_id)
    """
    processes = [start(code, tmp_path / "db") for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len(set(finish(*processes))) == 1
    manager = make_manager()
    assert manager.num_shards == 5
    assert manager.count("t") == 40
    assert manager.check().ok
    assert sorted(p.name for p in (tmp_path / "db").glob("*.new")) == []


def test_one_process_changes_the_schema_while_another_inserts(tmp_path: Path, make_manager: Make) -> None:
    """A table is made anew with another key: the other process's rows go where the new key leads, or nowhere."""
    manager = make_manager(num_shards=4)
    forms = ["CREATE TABLE t (a INT PRIMARY KEY, b TEXT)", "CREATE TABLE t (a INT, b TEXT PRIMARY KEY)"]
    manager.create_table(forms[0])
    code = """
        n = 0
        with ShardManager(db_dir=sys.argv[1], durability="normal") as m:
            print("ready", flush=True)
            while not os.path.exists(sys.argv[2]):
                n += 5
                m.insert("t", {"a": n, "b": f"b{n}"})
                m.insert_many("t", [{"a": n + 1, "b": f"b{n + 1}"}, {"a": n + 2, "b": f"b{n + 2}"}])
                m.upsert("t", {"a": n + 3, "b": f"b{n + 3}"})
                m.execute("INSERT INTO t VALUES (?, ?)", (n + 4, f"b{n + 4}"))
            before = m.count("t")
            m.insert("t", {"a": -1, "b": "last"})
            assert m.count("t") == before + 1
    """
    process = start(code, tmp_path / "db", tmp_path / "stop")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen = 0
    for n in range(1, 7):
        deadline = time.monotonic() + PATIENCE_S
        while manager.count("t") < 10 and process.poll() is None and time.monotonic() < deadline:
            pass
        seen += manager.count("t")
        manager.apply_schema(f"DROP TABLE t; {forms[n % 2]}")
    (tmp_path / "stop").touch()
    finish(process)
    assert seen >= 60
    key = manager.tables["t"].key_columns[0]
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            for (value,) in conn.execute(f"SELECT {key} FROM t"):
                assert manager.shard_for("t", value) == shard
    assert manager.count("t", {"b": "last"}) == 1


# -- dying -------------------------------------------------------------------------------------------------------------

_DYING = """
    from shardlite.connection.connection import Connection
    from shardlite.router.catalog import Catalog
    from shardlite.execute.ddl import SchemaChanger
    at = sys.argv[2]
    m = ShardManager(db_dir=sys.argv[1])
    commits = 0
    def die_before(owner, name, when):
        real = getattr(owner, name)
        def dying(self, *args, **kwargs):
            if when(self, args):
                os._exit(9)
            return real(self, *args, **kwargs)
        setattr(owner, name, dying)
    def nth_commit(conn, args):
        global commits
        if args[0] == "COMMIT" and "shard_" in conn.path:
            commits += 1
            return commits == int(at[7:]) + 1
        return False
    if at == "run":
        die_before(Connection, "run", lambda conn, args: args[0].startswith("ALTER") and "shard_1" in conn.path)
    elif at == "epoch":
        die_before(Connection, "run", lambda conn, args: "SET epoch" in args[0] and "shard_2" in conn.path)
    elif at == "job":
        die_before(Catalog, "add_job", lambda catalog, args: True)
    elif at.startswith("commit:"):
        die_before(Connection, "run", nth_commit)
    elif at == "finish":
        die_before(SchemaChanger, "_finish", lambda changer, args: True)
    elif at == "announced":
        die_before(Connection, "run", lambda conn, args: args[0] == "COMMIT" and "catalog" in conn.path and commits > 5)
        real = Catalog.change
        def change(self):
            global commits
            commits = 6
            return real(self)
        Catalog.change = change
    m.apply_schema(
        "ALTER TABLE t ADD COLUMN c DEFAULT 5; CREATE TABLE more (id INTEGER PRIMARY KEY); CREATE INDEX i ON t (c);"
        "ALTER TABLE old RENAME TO new; DROP TABLE gone"
    )
    os._exit(3)
"""

_STEPS = ["run", "epoch", "job", "commit:0", "commit:1", "commit:2", "finish", "announced"]
_NOTHING_YET = {"run", "epoch", "job", "commit:0"}


@pytest.mark.parametrize("step", _STEPS)
@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_schema_change_killed(tmp_path: Path, make_manager: Make, step: str, open_meanwhile: bool) -> None:
    """Whenever it dies, the next to open the directory, or to use it, finds all of the change or none of it."""
    manager = make_manager(num_shards=3)
    manager.apply_schema(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE old (id INTEGER PRIMARY KEY);"
        "CREATE TABLE gone (id INTEGER PRIMARY KEY)"
    )
    manager.insert_many("t", ({"v": n} for n in range(20)))
    manager.insert_many("old", ({} for n in range(9)))
    if not open_meanwhile:
        manager.shutdown()
    finish(start(_DYING, tmp_path / "db", step), code=9)
    if not open_meanwhile:
        manager = make_manager()
    if step in _NOTHING_YET:
        assert set(manager.tables) == {"t", "old", "gone"}
        manager.insert("t", {"v": "after"})
        manager.apply_schema("ALTER TABLE t ADD COLUMN c DEFAULT 5; CREATE TABLE more (id INTEGER PRIMARY KEY)")
    else:
        assert manager.insert("t", {"v": "after"}) > 20
        assert manager.update("t", {"v": "after"}, {"v": "after"}) == 1
        assert set(manager.tables) == {"t", "new", "more"}
        assert manager.insert("new", {}) > 9
    assert manager.get("t", 3) == {"id": 3, "v": 2, "c": 5}
    assert manager.insert("more", {}) == 1
    assert manager.count("t") == 21
    assert manager.database.catalog.jobs() == ()
    schemas = []
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            schemas.append([tuple(row) for row in conn.execute("SELECT name, sql FROM sqlite_schema ORDER BY name")])
            assert conn.execute("SELECT epoch FROM _shardlite_meta").fetchone()[0] == manager.database.catalog.epoch
    assert all(schema == schemas[0] for schema in schemas)
    assert manager.check().ok


def test_kill_9_while_writing(tmp_path: Path, make_manager: Make) -> None:
    """Acknowledged rows of one shard are never lost.

    What touches several shards may be there in part after a kill between two COMMITs in this release; each shard by
    itself has all of its part or nothing.
    """
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, batch INT)")
    manager.shutdown()
    code = """
        m = ShardManager(db_dir=sys.argv[1], durability="full")
        n = 0
        while True:
            n += 1
            rowid = m.insert("t", {"batch": 0})
            os.write(1, f"{rowid}\\n".encode())
            if n % 10 == 0:
                m.insert_many("t", ({"batch": n} for _ in range(30)))
    """
    acknowledged: set[int] = set()
    for _ in range(2):
        process = start(code, tmp_path / "db")
        assert process.stdout is not None
        for _ in range(40):
            acknowledged.add(int(process.stdout.readline()))
        process.kill()
        rest, _ = process.communicate(timeout=PATIENCE_S)
        acknowledged |= {int(line) for line in rest.split("\n")[:-1]}
    manager = make_manager()
    assert acknowledged <= {row["id"] for row in manager.select("t", {"batch": 0})}
    assert manager.check().ok
    assert manager.insert("t", {"batch": -1}) > max(acknowledged)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestFork:
    """A forked child of a quiet manager goes on with it; that of a busy one is refused by name."""

    @staticmethod
    def in_child(work: Callable[[], None]) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException as error:
                os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def test_child_of_an_idle_manager(self, make_manager: Make) -> None:
        manager = make_manager(num_shards=3)
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT)")
        manager.insert_many("t", ({"who": "parent"} for _ in range(10)))
        manager.execute("SELECT count(*) FROM t WHERE id = 1")

        def work() -> None:
            for _ in range(20):
                manager.insert("t", {"who": "child"})
            assert manager.execute("SELECT who FROM t WHERE id = 1").scalar() == "parent"
            assert manager.count("t") == 30
            manager.apply_schema("CREATE TABLE from_child (id INTEGER PRIMARY KEY)")
            manager.shutdown()

        assert self.in_child(work) == 0
        assert "from_child" in manager.tables
        for _ in range(20):
            manager.insert("t", {"who": "parent"})
        rows = manager.select("t")
        assert len(rows) == len({row["id"] for row in rows}) == 50
        assert manager.check().ok

    def test_both_go_on_at_once(self, make_manager: Make) -> None:
        manager = make_manager(num_shards=2)
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT)")
        manager.insert("t", {"who": "parent"})
        child = os.fork()
        who = "child" if child == 0 else "parent"
        try:
            for _ in range(30):
                manager.insert("t", {"who": who})
        finally:
            if child == 0:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert manager.count("t") == 61

    def test_child_of_a_busy_manager(self, make_manager: Make) -> None:
        manager = make_manager(num_shards=2)
        manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        manager.insert_many("t", ({"v": "x"} for _ in range(5000)))

        def work() -> None:
            for call in (lambda: manager.count("t"), lambda: manager.insert("t", {"v": "child"})):
                with pytest.raises(sqlite3.Error, match=r"shard_.*(forked|parent process)"):
                    call()

        with manager.execute("SELECT * FROM t") as result:
            next(result)
            assert self.in_child(work) == 0
            assert len(result.fetchall()) == 4999
        assert manager.count("t") == 5000
        manager.insert("t", {"v": "parent"})


def test_a_table_that_another_makes_meanwhile(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """IF NOT EXISTS looked before the other's schema change, and the schema is read after it."""
    one, other = make_manager(num_shards=2), make_manager()
    sql = "CREATE TABLE IF NOT EXISTS r (id INTEGER PRIMARY KEY, v TEXT)"
    drafts = 0

    def between(texts: Sequence[Any], *rest: Any) -> SchemaDraft:
        nonlocal drafts
        drafts += 1
        if drafts == 2:  # the first is of the statement alone, to learn the table's name
            other.create_table(sql, kind="reference")
            texts = one._database.current() and one._database.catalog.schema
        return SchemaDraft(texts, *rest)

    monkeypatch.setattr(ddl, "SchemaDraft", between)
    assert one.create_table(sql, kind="reference").kind == "reference"
    assert drafts > 3
