"""Threads that do everything together on few connections: no deadlock, no lost update, exact counts."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardlite import ShardManager
from shardlite.driver import sqlite3
from shardlite.errors import OperationalError, PoolExhaustedError, ProgrammingError

Make = Callable[..., ShardManager]
PATIENCE_S = 60.0


def together(*works: Callable[[], None]) -> None:
    """Run works in threads; raise the first error, and fail where one doesn't end in time."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(PATIENCE_S)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "deadlock"


@pytest.mark.parametrize("size", [1, 2])
def test_everything_at_once(make_manager: Make, size: int) -> None:
    manager = make_manager(num_shards=3, max_connections_per_shard=size, connection_timeout=20.0)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT NOT NULL DEFAULT 0, who TEXT)")
    manager.create_table("CREATE TABLE child (id INTEGER PRIMARY KEY, t INT REFERENCES t)", shard_key="t")
    manager.create_table("CREATE TABLE codes (code TEXT PRIMARY KEY, n INT DEFAULT 0)", kind="reference")
    manager.insert_many("t", ({"id": n} for n in range(1, 31)))
    manager.insert("codes", {"code": "a"})
    rounds = 25
    inserted: list[list[int]] = [[] for _ in range(4)]

    def insert(mine: list[int]) -> None:
        mine.extend(manager.insert("t", {"who": "insert"}) for _ in range(rounds))

    def insert_many(mine: list[int]) -> None:
        for _ in range(rounds // 5):
            assert manager.insert_many("t", ({"who": "many"} for _ in range(10)), batch_size=4) == 10

    def add_one() -> None:
        for n in range(rounds):
            assert manager.update("t", {"who": "u"}, {"id": n % 30 + 1}) == 1
            assert manager.execute("UPDATE t SET n = n + 1 WHERE id = ?", (n % 30 + 1,)).rowcount == 1

    def everywhere() -> None:
        for _ in range(rounds // 3):
            assert manager.update("t", {"who": "all"}, {"id": ("<=", 30)}) == 30
            manager.update("codes", {"n": 1}, {"code": "a"})

    def children() -> None:
        for n in range(rounds):
            manager.insert("child", {"t": n % 30 + 1})
            manager.insert("child", {"id": 1_000_000 - n, "t": n % 30 + 1})

    def read() -> None:
        for n in range(rounds):
            assert manager.get("t", n % 30 + 1) is not None
            assert len(manager.select("t", {"id": ("<=", 30)})) == 30
            assert manager.count("t", {"id": ("<=", 30)}) == 30
            assert manager.aggregate("t", "COUNT(*)", {"id": ("<=", 30)}) == {"COUNT(*)": 30}
            assert len(manager.execute("SELECT * FROM t WHERE id <= 30").fetchall()) == 30

    def ddl() -> None:
        for n in range(4):
            manager.apply_schema(f"CREATE TABLE x{n} (id INTEGER PRIMARY KEY); ALTER TABLE t ADD COLUMN c{n}")
            manager.insert(f"x{n}", {})
            manager.apply_schema(f"DROP TABLE x{n}")

    together(
        *(lambda mine=mine: insert(mine) for mine in inserted[:2]), lambda: insert_many(inserted[2]), add_one, add_one,
        everywhere, children, read, ddl,
    )  # fmt: skip
    ids = [rowid for mine in inserted for rowid in mine]
    assert len(set(ids)) == len(ids) == 2 * rounds
    assert manager.count("t") == 30 + 2 * rounds + rounds // 5 * 10
    assert manager.aggregate("t", "SUM(n)") == {"SUM(n)": 2 * rounds}
    assert manager.count("child") == 2 * rounds
    assert len({row["id"] for row in manager.select("child")}) == 2 * rounds
    assert manager.check().ok


def test_no_update_is_lost(make_manager: Make) -> None:
    manager = make_manager(num_shards=2, max_connections_per_shard=2)
    manager.create_table("CREATE TABLE c (id INTEGER PRIMARY KEY, n INT)")
    manager.insert_many("c", ({"id": n, "n": 0} for n in range(4)))

    def work() -> None:
        for n in range(50):
            manager.execute("UPDATE c SET n = n + 1 WHERE id = ?", (n % 4,))
            manager.upsert("c", {"id": 10 + n % 3, "n": n})

    together(*[work] * 6)
    assert manager.aggregate("c", "SUM(n)", {"id": ("<", 4)}) == {"SUM(n)": 300}
    assert manager.count("c") == 7


def test_a_table_that_is_made_anew_with_another_key(make_manager: Make) -> None:
    """Inserts by the old schema are routed again: no row lands where the new key doesn't lead."""
    manager = make_manager(num_shards=4, max_connections_per_shard=3)
    forms = ["CREATE TABLE t (a INT PRIMARY KEY, b TEXT)", "CREATE TABLE t (a INT, b TEXT PRIMARY KEY)"]
    manager.create_table(forms[0])
    stop = threading.Event()
    counter = itertools.count()
    refused: list[str] = []

    def insert(how: Callable[[dict[str, Any]], Any]) -> None:
        while not stop.is_set():
            n = next(counter)
            try:
                how({"a": n, "b": f"b{n}"})
            except (ProgrammingError, OperationalError) as error:
                refused.append(str(error))

    def change() -> None:
        try:
            for n in range(1, 9):
                manager.apply_schema(f"DROP TABLE t; {forms[n % 2]}")
        finally:
            stop.set()

    together(
        lambda: insert(lambda row: manager.insert("t", row)),
        lambda: insert(lambda row: manager.insert_many("t", [row, {"a": row["a"] + 10**6, "b": row["b"] + "x"}])),
        lambda: insert(lambda row: manager.upsert("t", row)),
        lambda: insert(lambda row: manager.execute("INSERT INTO t (a, b) VALUES (:a, :b)", row)),
        lambda: insert(lambda row: manager.executemany("INSERT INTO t VALUES (?, ?)", [tuple(row.values())])),
        change,
    )  # fmt: skip
    assert refused == []
    manager.insert("t", {"a": -1, "b": "last"})
    assert_no_row_misplaced(manager, "t", manager.tables["t"].key_columns[0])


def assert_no_row_misplaced(manager: ShardManager, table: str, key: str) -> None:
    found = 0
    for shard in manager.shard_ids:
        with manager.pool(shard).get_connection_context() as conn:
            for (value,) in conn.execute(f"SELECT {key} FROM {table}"):
                assert manager.shard_for(table, value) == shard
                found += 1
    assert found == manager.count(table) > 0


def test_readers_see_the_new_table_at_once(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (a INT PRIMARY KEY, b TEXT)")
    manager.insert("t", {"a": 1, "b": "x"})
    assert manager.get("t", 1) == {"a": 1, "b": "x"}
    manager.apply_schema("DROP TABLE t; CREATE TABLE t (a INT, b TEXT PRIMARY KEY, c)")
    for n in range(20):
        manager.insert("t", {"a": n, "b": f"k{n}"})
    for n in range(20):
        assert manager.get("t", f"k{n}") == {"a": n, "b": f"k{n}", "c": None}
    assert manager.select("t", {"a": 7}) == [{"a": 7, "b": "k7", "c": None}]


def test_two_threads_make_the_same_table(make_manager: Make) -> None:
    """Everybody who says IF NOT EXISTS gets the one table, whoever is first."""
    manager = make_manager(num_shards=2)
    for n in range(5):
        ddl = f"CREATE TABLE IF NOT EXISTS t{n} (id INTEGER PRIMARY KEY)"
        together(*[lambda ddl=ddl: manager.create_table(ddl) and None] * 4)
    assert len(manager.tables) == 5


def test_one_connection_that_is_held_is_named(make_manager: Make) -> None:
    manager = make_manager(num_shards=1, max_connections_per_shard=1, connection_timeout=0.2)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    manager.insert_many("t", ({} for _ in range(3000)))
    with manager.execute("SELECT id FROM t") as result:
        next(result)
        for call in (
            lambda: manager.insert("t", {}),
            lambda: manager.get("t", 1),
            lambda: manager.delete("t", key=1),
            lambda: manager.apply_schema("CREATE TABLE u (x)"),
        ):
            with pytest.raises(PoolExhaustedError, match="max_connections"):
                call()
    assert manager.insert("t", {}) > 3000


def test_a_writer_in_a_transaction_of_its_own_is_waited_for(make_manager: Make) -> None:
    """A raw transaction on a pool's connection holds writers up until it ends, and nobody longer."""
    manager = make_manager(num_shards=1, connection_timeout=20.0)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    began, done = threading.Event(), threading.Event()

    def raw() -> None:
        with manager.pool(0).get_connection_context() as conn:
            conn.execute("BEGIN IMMEDIATE")
            began.set()
            assert not done.wait(0.2)
            conn.execute("INSERT INTO t VALUES (1, 1)")
            conn.execute("COMMIT")

    def insert() -> None:
        assert began.wait(PATIENCE_S)
        manager.upsert("t", {"id": 1, "n": 2})
        done.set()

    together(raw, insert)
    assert manager.get("t", 1) == {"id": 1, "n": 2}


def test_interrupted_between_commits(make_manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt during the COMMITs comes after the last of them."""
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    from shardlite.connection.connection import Connection

    run, seen = Connection.run, []

    def interrupted(conn: Any, sql: str, params: Any = ()) -> Any:
        done = run(conn, sql, params)
        if sql == "COMMIT" and "shard_" in conn.path:
            seen.append(conn.path)
            if len(seen) == 1:
                raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Connection, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.insert_many("t", [{"id": n} for n in range(30)])
    monkeypatch.undo()
    assert len(seen) == 3
    assert manager.count("t") == 30
    manager.insert("t", {"id": 100})


def test_deferred_keys_are_checked_before_any_commit(make_manager: Make) -> None:
    manager = make_manager(num_shards=3)
    manager.create_table("CREATE TABLE p (id INTEGER PRIMARY KEY)")
    manager.create_table(
        "CREATE TABLE c (id INT, p INT REFERENCES p DEFERRABLE INITIALLY DEFERRED, PRIMARY KEY (p, id)) WITHOUT ROWID",
        shard_key="p",
    )
    manager.insert_many("p", ({"id": n} for n in range(20)))
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        manager.insert_many("c", [{"id": 1, "p": n} for n in range(20)] + [{"id": 1, "p": 999}])
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        manager.insert("c", {"id": 1, "p": 999})
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        manager.executemany("INSERT INTO c VALUES (1, ?)", [(n,) for n in (*range(20), 999)])
    assert manager.count("c") == 0
    assert manager.insert_many("c", [{"id": 1, "p": n} for n in range(20)]) == 20
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        manager.delete("p")
    assert (manager.count("p"), manager.count("c")) == (20, 20)


@pytest.fixture
def ids(make_manager: Make) -> Iterator[ShardManager]:
    manager = make_manager(num_shards=4)
    manager.create_table("CREATE TABLE o (id INTEGER PRIMARY KEY, u INT, v TEXT)", shard_key="u")
    yield manager
    rows = manager.select("o")
    assert len({row["id"] for row in rows}) == len(rows)


def test_ids_begin_anew_with_a_new_table(make_manager: Make) -> None:
    """What was known of the ids of a dropped table is forgotten with it, in every process that has it open."""
    first, second = make_manager(num_shards=3), make_manager()
    for manager in (first, second):
        first.apply_schema("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        for number in range(1, 80):
            second.insert("t", {"id": number})
        assert manager.insert("t", {}) > 79
        assert first.check().ok
        first.apply_schema("DROP TABLE t")


def test_generated_and_stated_ids_mixed(ids: ShardManager) -> None:
    """An id that isn't the key is unique over all shards, in whatever way rows come."""
    rng = random.Random(5)
    used: set[int] = set()
    for n in range(150):
        stated = rng.choice([None, None, rng.randrange(1, 200)])
        row = {"u": rng.randrange(50), "v": str(n)} | ({"id": stated} if stated or rng.random() < 0.5 else {})
        how = rng.randrange(4)
        try:
            if how == 0:
                used.add(ids.insert("o", row))
            elif how == 1:
                ids.insert_many("o", [row])
            elif how == 2:
                ids.execute("INSERT INTO o (id, u, v) VALUES (?, ?, ?)", (row.get("id"), row["u"], row["v"]))
            else:
                ids.executemany("INSERT INTO o (id, u, v) VALUES (?, ?, ?)", [(row.get("id"), row["u"], row["v"])] * 1)
        except sqlite3.IntegrityError:
            assert ids.count("o", {"id": stated}) == 1
            continue
        if stated is not None:
            used.add(stated)
    assert used <= {row["id"] for row in ids.select("o")}
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: o\.id"):
        ids.insert_many("o", [{"id": 1000, "u": 1}, {"id": 1000, "u": 2}])
    assert ids.count("o", {"id": 1000}) == 0


@pytest.mark.parametrize("key", ["id", "u"])
def test_an_id_drawn_beside_stated_ones_is_above_them(make_manager: Make, key: str) -> None:
    """The next id of the sequence may be one that another row of the same call states."""
    manager = make_manager(num_shards=4)
    manager.create_table("CREATE TABLE o (id INTEGER PRIMARY KEY, u INT)", shard_key=key)
    for number in range(1, 30, 4):
        rows = [{"id": number, "u": 1}, {"id": None, "u": 2}, {"id": number + 1, "u": 3}, {"id": None, "u": 4}]
        assert manager.insert_many("o", rows) == 4
    assert manager.count("o") == 32
    assert manager.execute("SELECT min(id), max(id), count(*) FROM o WHERE u % 2").fetchall() == [(1, 30, 16)]
