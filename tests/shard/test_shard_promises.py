"""What ``shardlite.shard.protocol`` promises, asked of every implementation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from implementations import IMPLEMENTATIONS, SHARD_ID, Elsewhere, Implementation

from shardlite.driver import sqlite3
from shardlite.errors import (
    DataError,
    Error,
    IntegrityError,
    OperationalError,
    PoolClosedError,
    PoolExhaustedError,
    ProgrammingError,
)
from shardlite.shard import Session, Shard

LONG_S = 30.0
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
ENDLESS_COUNT = f"SELECT count(*) FROM ({ENDLESS})"
INSERT = "INSERT INTO t (v) VALUES (?)"
GUARDED = "INSERT INTO t (v) SELECT ? WHERE (SELECT epoch FROM meta) = ?"
COUNT = "SELECT count(*) FROM t"


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest, tmp_path: Path) -> Implementation:
    return IMPLEMENTATIONS[request.param](tmp_path)


@pytest.fixture
def shard(implementation: Implementation) -> Iterator[Shard]:
    """A shard with two sessions and time enough."""
    shard = implementation.shard(2, LONG_S)
    yield shard
    shard.close()


@pytest.fixture
def single(implementation: Implementation) -> Iterator[Shard]:
    """A shard with one session: what isn't given back is missed at once. It doesn't wait long by itself."""
    shard = implementation.shard(1, 0.05)
    yield shard
    shard.close()


@pytest.fixture
def elsewhere(implementation: Implementation, request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    request.getfixturevalue("single" if "single" in request.fixturenames else "shard")
    other = implementation.elsewhere()
    yield other
    other.close()


def one_call(name: str, sql: str, params: Any = (), **options: Any) -> Callable[[Shard], Any]:
    def call(shard: Shard) -> Any:
        if name == "reading":
            with shard.reading(**options) as session:
                return session.fetch_all(sql, params)
        return getattr(shard, name)(sql, params, **options)

    return call


def each_call(**options: Any) -> list[Any]:
    """One of each call that takes a time limit."""
    reads = [pytest.param(one_call(n, COUNT, **options), id=n) for n in ("fetch_row", "fetch_all", "reading")]
    return [*reads, pytest.param(one_call("write_once", INSERT, (1,), **options), id="write_once")]


def check_names_the_shard(error: BaseException, shard: Shard) -> None:
    assert isinstance(error, Error)
    assert f"shard {SHARD_ID}" in str(error) or shard.name in str(error)


def rows_of(other: Elsewhere) -> list[Any]:
    return [row[0] for row in other.execute("SELECT v FROM t ORDER BY id").fetchall()]


# -- reading


def test_it_says_which_shard_it_is(shard: Shard) -> None:
    assert shard.id == SHARD_ID
    assert shard.name
    assert shard.timeout_s == LONG_S


def test_rows_are_plain_tuples(shard: Shard, elsewhere: Elsewhere) -> None:
    elsewhere.execute("INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, x'00'), (4, 1.5)")
    expected = [(1, "a"), (2, None), (3, b"\x00"), (4, 1.5)]
    sql = "SELECT id, v FROM t WHERE id > ? ORDER BY id"
    with shard.reading() as session:
        found = [shard.fetch_all(sql, (0,)), session.fetch_all(sql, (0,)), session.run(sql, (0,)).fetchall()]
        stream = session.stream(sql, (0,))
        found.append(stream.fetchmany(9))
        first = [shard.fetch_row(sql, (1,)), session.fetch_row(sql, (1,))]
    assert found == [expected] * 4
    assert first == [(2, None)] * 2
    assert {type(row) for rows in (*found, first) for row in rows} == {tuple}


def test_no_row_is_none(shard: Shard) -> None:
    with shard.reading() as session:
        assert shard.fetch_row("SELECT 1 WHERE 0", ()) is session.fetch_row("SELECT 1 WHERE 0") is None
    assert shard.fetch_all("SELECT 1 WHERE 0", ()) == []


def test_parameters_by_name(shard: Shard) -> None:
    assert shard.fetch_row("SELECT :a, @b, $a", {"a": 1, "b": "x"}) == (1, "x", 1)
    assert shard.write_once("INSERT INTO t (v) VALUES (:v)", {"v": 5})[0] == 1


def test_the_first_row_leaves_nothing_open(single: Shard, elsewhere: Elsewhere) -> None:
    """An open statement would hold its snapshot, and would keep the table from being dropped."""
    assert single.fetch_row(ENDLESS, ()) == (1,)
    with single.reading() as session:
        assert session.fetch_row("SELECT 1 FROM meta UNION ALL SELECT 2 FROM meta") == (1,)
        elsewhere.execute("UPDATE meta SET epoch = 2")
        assert session.fetch_row("SELECT epoch FROM meta") == (2,)
        session.run("DROP TABLE meta")


def test_a_read_sees_what_was_committed_elsewhere(shard: Shard, elsewhere: Elsewhere) -> None:
    for number in range(3):
        elsewhere.execute(INSERT, (number,))
        assert shard.fetch_row(COUNT, ()) == (number + 1,)


# -- writing one statement


def test_write_once_is_committed(shard: Shard, elsewhere: Elsewhere) -> None:
    assert shard.write_once(INSERT, ("a",)) == (1, 1)
    assert shard.write_once("INSERT INTO t VALUES (7, 'b'), (9, 'c')", ()) == (2, 9)
    assert rows_of(elsewhere) == ["a", "b", "c"]
    assert shard.write_once("UPDATE t SET v = id WHERE id > 1", ())[0] == 2
    assert shard.write_once("DELETE FROM t WHERE id = 100", ())[0] == 0
    assert rows_of(elsewhere) == ["a", 7, 9]


@pytest.mark.parametrize("warm", [False, True])
def test_a_statement_that_failed_changed_nothing(single: Shard, elsewhere: Elsewhere, warm: bool) -> None:
    if warm:
        single.write_once(INSERT, ("warm",))
    before = rows_of(elsewhere)
    with pytest.raises(IntegrityError, match=r"UNIQUE.*t\.v") as caught:
        single.write_once("INSERT INTO t (v) VALUES ('x'), ('y'), ('x')", ())
    check_names_the_shard(caught.value, single)
    assert rows_of(elsewhere) == before
    assert single.write_once(INSERT, ("after",))[0] == 1


@pytest.mark.parametrize("warm", [False, True])
def test_a_transaction_left_open_is_refused_and_undone(single: Shard, elsewhere: Elsewhere, warm: bool) -> None:
    if warm:
        single.write_once(INSERT, ("warm",))
    with pytest.raises(ProgrammingError, match="transaction") as caught:
        single.write_once("BEGIN IMMEDIATE", ())
    check_names_the_shard(caught.value, single)
    elsewhere.execute(INSERT, ("elsewhere",))  # nobody has the lock
    assert single.write_once(INSERT, ("after",))[0] == 1


def test_threads_take_turns(shard: Shard) -> None:
    shard.write_once("INSERT INTO t VALUES (1, 0)", ())
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: shard.write_once("UPDATE t SET v = v + 1", ()), range(100)))
    assert [changed for changed, _ in done] == [1] * 100
    assert shard.fetch_row("SELECT v FROM t", ()) == (100,)


# -- the epoch


def test_a_guard_holds_or_nothing_is_changed(shard: Shard, elsewhere: Elsewhere) -> None:
    assert shard.write_once(GUARDED, ("a", 1)) == (1, 1)
    elsewhere.execute("UPDATE meta SET epoch = 2")
    assert shard.write_once(GUARDED, ("b", 1))[0] == 0
    assert shard.write_once(GUARDED, ("c", 2))[0] == 1
    assert rows_of(elsewhere) == ["a", "c"]


def test_a_guard_is_evaluated_after_the_wait(shard: Shard, elsewhere: Elsewhere) -> None:
    elsewhere.execute("BEGIN IMMEDIATE")
    elsewhere.execute("UPDATE meta SET epoch = 2")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shard.write_once, GUARDED, ("a", 1))
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        elsewhere.execute("COMMIT")
        assert waiting.result(LONG_S)[0] == 0


def test_begin_write_sees_the_newest_epoch_and_keeps_it(shard: Shard, elsewhere: Elsewhere) -> None:
    with shard.reading() as session:
        assert session.fetch_row("SELECT epoch FROM meta") == (1,)
        elsewhere.execute("UPDATE meta SET epoch = 2")
        shard.begin_write(session, LONG_S)
        assert session.fetch_row("SELECT epoch FROM meta") == (2,)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            elsewhere.execute("UPDATE meta SET epoch = 3")
        session.run(INSERT, ("a",))
        session.run("COMMIT")
    assert rows_of(elsewhere) == ["a"]
    elsewhere.execute("UPDATE meta SET epoch = 3")


# -- time limits


@pytest.mark.parametrize("call", [*each_call(), *each_call(timeout_s=0.05), *each_call(timeout_s=0)])
def test_no_session_in_time(single: Shard, call: Callable[[Shard], Any]) -> None:
    with single.reading():
        began = time.monotonic()
        with pytest.raises(PoolExhaustedError) as caught:
            call(single)
        assert time.monotonic() - began < 5
    check_names_the_shard(caught.value, single)
    call(single)


@pytest.mark.parametrize("timeout_s", [None, 0.05, 0])
def test_the_lock_is_elsewhere_for_too_long(single: Shard, elsewhere: Elsewhere, timeout_s: float | None) -> None:
    elsewhere.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="database is locked") as caught:
        single.write_once(INSERT, ("a",), timeout_s)
    check_names_the_shard(caught.value, single)
    assert caught.value.sqlite_errorname == "SQLITE_BUSY"
    assert single.fetch_row(COUNT, ()) == (0,)  # readers don't wait for a writer
    elsewhere.execute("COMMIT")
    assert single.write_once(INSERT, ("b",))[0] == 1
    assert rows_of(elsewhere) == ["b"]


def test_begin_write_in_vain_leaves_no_transaction(single: Shard, elsewhere: Elsewhere) -> None:
    elsewhere.execute("BEGIN IMMEDIATE")
    with single.reading() as session:
        with pytest.raises(OperationalError, match="database is locked") as caught:
            single.begin_write(session, 0.05)
        check_names_the_shard(caught.value, single)
        elsewhere.execute("COMMIT")
        session.run(INSERT, ("a",))  # a transaction of its own: there is none around it
        assert rows_of(elsewhere) == ["a"]


def test_waiting_for_the_lock_ends_when_it_is_free(shard: Shard, elsewhere: Elsewhere) -> None:
    elsewhere.execute("BEGIN IMMEDIATE")
    elsewhere.execute(INSERT, ("elsewhere",))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shard.write_once, INSERT, ("a",))
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        elsewhere.execute("COMMIT")
        assert waiting.result(LONG_S)[0] == 1
    assert rows_of(elsewhere) == ["elsewhere", "a"]


def test_all_waiting_together_is_limited(single: Shard, elsewhere: Elsewhere) -> None:
    """A session becomes free just before the time is over; then only the rest is left to wait for the lock."""
    elsewhere.execute("BEGIN IMMEDIATE")
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with single.reading():
            held.set()
            enough.wait(2.7)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        assert held.wait(LONG_S)
        began = time.monotonic()
        with pytest.raises(OperationalError):
            single.write_once(INSERT, ("a",), 3.0)
        waited_s = time.monotonic() - began
        enough.set()
        holding.result()
    assert waited_s < 5.0  # twice the time would be 5.7


# -- sessions


class Stop(BaseException):
    """Stands for what may end a block from outside, such as KeyboardInterrupt."""


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("begin", ["BEGIN", "begin_write"])
def test_what_isnt_committed_is_rolled_back(
    single: Shard, elsewhere: Elsewhere, begin: str, end: type[BaseException] | None
) -> None:
    caught: type[BaseException] | None = None
    try:
        with single.reading() as session:
            single.begin_write(session, LONG_S) if begin == "begin_write" else session.run(begin)
            session.run(INSERT, ("lost",))
            if end is not None:
                raise end
    except BaseException as error:
        caught = type(error)
    assert caught is end
    elsewhere.execute(INSERT, ("elsewhere",))  # the lock is free
    with ThreadPoolExecutor(1) as threads:  # and another thread can have the session
        assert threads.submit(single.fetch_all, "SELECT v FROM t", ()).result() == [("elsewhere",)]


def test_each_statement_is_a_transaction_until_one_is_begun(shard: Shard, elsewhere: Elsewhere) -> None:
    with shard.reading() as session:
        session.run(INSERT, ("a",))
        assert rows_of(elsewhere) == ["a"]
        session.run("BEGIN")
        session.run(INSERT, ("b",))
        assert rows_of(elsewhere) == ["a"]
        with pytest.raises(sqlite3.IntegrityError):
            session.run("INSERT INTO t (v) VALUES ('c'), ('a')")
        session.run("COMMIT")
        assert rows_of(elsewhere) == ["a", "b"]


def test_outcome(shard: Shard) -> None:
    with shard.reading() as session:
        outcome = session.run("INSERT INTO t VALUES (5, 'a'), (6, 'b')")
        assert (outcome.rowcount, outcome.lastrowid, outcome.description) == (2, 6, None)
        assert session.run("UPDATE t SET v = id").rowcount == 2
        outcome = session.run("SELECT id AS k, v FROM t ORDER BY id")
        assert [column[0] for column in outcome.description] == ["k", "v"]
        assert outcome.rowcount == -1
        assert outcome.fetchall() == [(5, 5), (6, 6)]
        assert outcome.fetchall() == []
        assert session.run("DELETE FROM t").rowcount == 2


def test_run_many(shard: Shard) -> None:
    with shard.reading() as session:
        assert session.run_many(INSERT, [("a",), ("b",), ("c",)]) == 3
        assert session.run_many("DELETE FROM t WHERE v = ?", (iter([("a",), ("x",)]))) == 1
        assert session.run_many(INSERT, []) <= 0
    assert shard.fetch_all("SELECT v FROM t", ()) == [("b",), ("c",)]


def test_two_sessions_at_once(shard: Shard) -> None:
    with shard.reading() as one, shard.reading() as other:
        one.run("BEGIN")
        assert one.fetch_row(COUNT) == (0,)
        other.run(INSERT, ("a",))
        assert one.fetch_row(COUNT) == (0,)  # its snapshot
        assert other.fetch_row(COUNT) == (1,)


# -- streams


def test_rows_come_as_they_are_asked_for(shard: Shard) -> None:
    with shard.reading() as session:
        stream = session.stream(ENDLESS)
        assert [column[0] for column in stream.description] == ["i"]
        assert stream.fetchmany(2) == [(1,), (2,)]
        assert stream.fetchmany(1) == [(3,)]
        assert len(stream.fetchmany(5000)) == 5000
        stream.close()


def test_streams_end(shard: Shard) -> None:
    with shard.reading() as session:
        stream = session.stream("SELECT 1 UNION ALL SELECT 2")
        assert stream.fetchmany(5) == [(1,), (2,)]
        assert stream.fetchmany(5) == []
        assert session.stream("SELECT 1 WHERE 0").fetchmany(5) == []


def test_a_stream_of_a_write(shard: Shard) -> None:
    with shard.reading() as session:
        stream = session.stream("INSERT INTO t VALUES (8, 'a'), (9, 'b')")
        assert (stream.rowcount, stream.lastrowid, stream.description) == (2, 9, None)


def test_other_statements_dont_disturb_a_stream(shard: Shard) -> None:
    with shard.reading() as session:
        one, other = session.stream(ENDLESS), session.stream(ENDLESS)
        assert one.fetchmany(1) == [(1,)]
        assert session.fetch_row("SELECT 'x'") == ("x",)
        assert other.fetchmany(2) == [(1,), (2,)]
        assert session.fetch_all("SELECT 'y'") == [("y",)]
        assert one.fetchmany(1) == [(2,)]
        other.close()
        assert one.fetchmany(1) == [(3,)]
        one.close()


def test_a_closed_stream_is_not_read_on(shard: Shard) -> None:
    with shard.reading() as session:
        stream = session.stream(ENDLESS)
        stream.fetchmany(1)
        stream.close()
        stream.close()
        with pytest.raises(sqlite3.ProgrammingError):
            stream.fetchmany(1)
        session.run("CREATE TABLE more (x)")


def test_the_sessions_end_closes_its_streams(single: Shard, elsewhere: Elsewhere) -> None:
    """A stream that is left would hold its snapshot: the next holder of the session would read the past."""
    elsewhere.execute("INSERT INTO t (v) VALUES (1), (2), (3)")
    with single.reading() as session:
        stream = session.stream("SELECT v FROM t")
        assert stream.fetchmany(1) == [(1,)]
    with pytest.raises(sqlite3.ProgrammingError):
        stream.fetchmany(1)
    elsewhere.execute("DELETE FROM t")
    assert single.fetch_row(COUNT, ()) == (0,)
    stream.close()


# -- errors

WRONG = [
    ("SELEC 1", (), OperationalError, "syntax error"),
    ("SELECT * FROM nowhere", (), OperationalError, "nowhere"),
    ("SELECT ?", (), ProgrammingError, "binding"),
    ("SELECT ?", (2**63,), DataError, "value"),
    ("SELECT ?", (-(2**63) - 1,), DataError, "value"),
    ("SELECT ?", ("\ud800",), DataError, "value"),
    ("SELECT ?", (object(),), Error, "type 'object'|unsupported type"),
    ("SELECT abs(-9223372036854775807 - 1)", (), OperationalError, "overflow"),
    ("SELECT zeroblob(-1) || json('{')", (), OperationalError, "malformed JSON"),
]


@pytest.mark.parametrize(("sql", "params", "kind", "words"), WRONG)
@pytest.mark.parametrize("name", ["fetch_row", "fetch_all", "write_once"])
def test_errors_name_the_shard(single: Shard, name: str, sql: str, params: Any, kind: type[Error], words: str) -> None:
    for _ in range(2):  # new sessions and used ones
        with pytest.raises(kind, match=words) as caught:
            getattr(single, name)(sql, params)
        check_names_the_shard(caught.value, single)
        assert caught.value.__cause__ is not None
        assert single.fetch_row("SELECT 1", ()) == (1,)


def test_an_error_isnt_taken_for_the_one_before(single: Shard) -> None:
    single.write_once(INSERT, ("a",))
    for _ in range(2):
        with pytest.raises(IntegrityError):
            single.write_once(INSERT, ("a",))
        with pytest.raises(DataError):
            single.write_once(INSERT, (2**63,))
        with pytest.raises(OperationalError):
            single.fetch_all("SELECT nothing", ())
        with pytest.raises(DataError):
            single.fetch_row("SELECT ?", ("\ud800",))
    try:
        raise OverflowError("the caller's own")
    except OverflowError:
        with pytest.raises(IntegrityError):
            single.write_once(INSERT, ("a",))


def test_a_sessions_errors_are_the_drivers(shard: Shard) -> None:
    with shard.reading() as session:
        session.run(INSERT, ("a",))
        with pytest.raises(sqlite3.IntegrityError) as caught:
            session.run(INSERT, ("a",))
        assert not isinstance(caught.value, Error)
        with pytest.raises(IntegrityError, match=r"UNIQUE.*INSERT INTO t") as named:
            shard.fail(caught.value, INSERT)
        check_names_the_shard(named.value, shard)
        assert named.value.sqlite_errorname == caught.value.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
        assert named.value.__cause__ is caught.value
        session.fetch_row("SELECT 1")  # without an error before it, the driver raises the value's own
        with pytest.raises(OverflowError) as too_large:
            session.run(INSERT, (2**63,))
        with pytest.raises(DataError) as named:
            shard.fail_value(too_large.value, INSERT)
        check_names_the_shard(named.value, shard)


def test_what_is_shardlites_already_stays_as_it_is(shard: Shard) -> None:
    mine = ProgrammingError("mine")
    with pytest.raises(ProgrammingError) as caught:
        shard.fail(mine, "SELECT 1")
    assert caught.value is mine


def test_long_statements_are_cut_in_messages(shard: Shard) -> None:
    with pytest.raises(OperationalError) as caught:
        shard.fetch_row("SELECT " + "1, " * 10_000 + "nothing", ())
    assert len(str(caught.value)) < 500


# -- the end


@pytest.mark.parametrize("call", each_call(timeout_s=LONG_S))
def test_a_closed_shard_refuses(shard: Shard, call: Callable[[Shard], Any]) -> None:
    call(shard)
    shard.close()
    with pytest.raises(PoolClosedError) as caught:
        call(shard)
    check_names_the_shard(caught.value, shard)
    shard.close()
    shard.close(0.1)


def test_a_session_ends_with_its_shard(shard: Shard, elsewhere: Elsewhere) -> None:
    def calls(session: Session) -> list[Callable[[], Any]]:
        return [
            lambda: session.fetch_row(COUNT),
            lambda: session.fetch_all(COUNT),
            lambda: session.run(COUNT),
            lambda: session.run_many(INSERT, [("x",)]),
            lambda: session.stream(COUNT),
            lambda: stream.fetchmany(1),
        ]

    with ExitStack() as stack:
        session = stack.enter_context(shard.reading())
        shard.begin_write(session, LONG_S)
        session.run(INSERT, ("lost",))
        stream = session.stream(ENDLESS)
        stream.fetchmany(1)
        shard.close()
        for call in calls(session):
            with pytest.raises(PoolClosedError):
                call()
        stream.close()
    assert rows_of(elsewhere) == []
    elsewhere.execute(INSERT, ("the lock is free",))


@pytest.mark.parametrize("name", ["fetch_row", "fetch_all", "write_once"])
def test_closing_interrupts_what_runs(shard: Shard, name: str) -> None:
    sql = ENDLESS_COUNT if name != "write_once" else f"INSERT INTO t (v) {ENDLESS_COUNT}"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(getattr(shard, name), sql, ())
        with pytest.raises(TimeoutError):
            running.result(0.1)
        began = time.monotonic()
        shard.close(LONG_S)
        with pytest.raises(OperationalError, match=r"interrupted|closed") as caught:
            running.result(LONG_S)
        assert time.monotonic() - began < LONG_S / 2
    check_names_the_shard(caught.value, shard)


def test_closing_wakes_who_waits(implementation: Implementation) -> None:
    shard = implementation.shard(1, LONG_S)
    with ThreadPoolExecutor(1) as threads, shard.reading():
        waiting = threads.submit(shard.fetch_row, "SELECT 1", ())
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        began = time.monotonic()
        shard.close(0.1)
        with pytest.raises(PoolClosedError):
            waiting.result(LONG_S)
        assert time.monotonic() - began < LONG_S / 2
