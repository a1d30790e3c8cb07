"""The planning connection: what SQLite says of a statement, without running it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, NotSupportedError, OperationalError, ProgrammingError
from shardlite.execute.planning import PlanningConnection, split_statements
from shardlite.sql.facts import Access, StatementKind

DDL = (
    "CREATE TABLE u (id INTEGER PRIMARY KEY, n TEXT)",
    "CREATE TABLE o (id INTEGER PRIMARY KEY, uid INT REFERENCES u (id) ON DELETE CASCADE, x)",
    "CREATE VIEW v AS SELECT x FROM o",
    "CREATE TRIGGER tr AFTER INSERT ON o BEGIN UPDATE u SET n = new.x WHERE id = new.uid; END",
)


@pytest.fixture
def planning() -> Iterator[PlanningConnection]:
    made = PlanningConnection(DDL)
    yield made
    made.close()


def test_reads_through_a_view(planning: PlanningConnection) -> None:
    found = planning.prepare("SELECT x + abs(?) FROM v WHERE EXISTS (SELECT 1 FROM u)")
    assert found.kind is StatementKind.SELECT
    assert found.readonly
    assert Access("o", "x", "v") in found.reads
    assert Access("v", "x", "") in found.reads
    assert Access("u", "", "") in found.reads
    assert found.functions == {"abs"}
    assert not found.aggregates


def test_writes_behind_a_trigger(planning: PlanningConnection) -> None:
    found = planning.prepare("INSERT INTO o VALUES (1, 2, 3)")
    assert found.inserts == {Access("o", "", "")}
    assert found.updates == {Access("u", "n", "tr")}
    assert not found.readonly


def test_cascades_are_seen(planning: PlanningConnection) -> None:
    found = planning.prepare("DELETE FROM u WHERE id = 1")
    assert {access.table for access in found.deletes} == {"u", "o"}


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("", StatementKind.EMPTY),
        (" -- only words\n;", StatementKind.EMPTY),
        ("WITH c AS (SELECT 1) DELETE FROM u WHERE id IN c", StatementKind.DELETE),
        ("WITH c(a) AS (VALUES (1)) SELECT * FROM c", StatementKind.SELECT),
        ("REPLACE INTO u VALUES (1, 2)", StatementKind.INSERT),
        ("/* x */ update u set n = 1;", StatementKind.UPDATE),
        ("BEGIN IMMEDIATE", StatementKind.TRANSACTION),
        ("create table z (a)", StatementKind.DDL),
        ("EXPLAIN QUERY PLAN SELECT 1", StatementKind.EXPLAIN),
        ("vacuum", StatementKind.VACUUM),
        ("PRAGMA table_info(u)", StatementKind.PRAGMA),
    ],
)
def test_kinds(planning: PlanningConnection, sql: str, kind: StatementKind) -> None:
    assert planning.prepare(sql).kind is kind


def test_pragma_is_named(planning: PlanningConnection) -> None:
    assert planning.prepare("PRAGMA main.user_version = 5").pragma == ("user_version", "5")
    assert planning.prepare("PRAGMA TABLE_INFO('u')").pragma == ("table_info", "u")


def test_nothing_runs(planning: PlanningConnection) -> None:
    planning.prepare("INSERT INTO u VALUES (1, 'x')")
    planning.prepare("PRAGMA foreign_keys = OFF")
    planning.prepare("DROP TABLE u")
    assert planning.prepare("SELECT * FROM u").kind is StatementKind.SELECT
    assert {access.table for access in planning.prepare("DELETE FROM u").deletes} == {"u", "o"}


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("SELEC 1", OperationalError, 'near "SELEC": syntax error'),
        ("SELECT nope FROM u", OperationalError, "no such column: nope"),
        ("SELECT * FROM nope", OperationalError, "no such table: nope"),
        ("SELECT 1; SELECT 2", ProgrammingError, "You can only execute one statement at a time."),
        ("CREATE TABLE a (x); CREATE TABLE b (x)", ProgrammingError, "You can only execute one statement at a time."),
        ("SELECT 'a\0b'", ProgrammingError, "the query contains a null character"),
        ("INSERT INTO u VALUES (1)", OperationalError, "table u has 2 columns but 1 values were supplied"),
    ],
)
def test_errors_are_sqlites(planning: PlanningConnection, sql: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        planning.prepare(sql)
    assert str(caught.value) == words


def test_own_tables_are_told_from_table_functions(planning: PlanningConnection) -> None:
    assert not planning.prepare("SELECT * FROM json_each('[1]')").schema_read
    assert planning.prepare("SELECT * FROM sqlite_schema").schema_read
    assert planning.prepare('SELECT name FROM main."sqlite_master"').schema_read


def test_aggregates_without_a_telling_name(planning: PlanningConnection) -> None:
    assert planning.prepare("SELECT max(id) FROM u").aggregates
    assert not planning.prepare("SELECT max(id, 3) FROM u").aggregates


def test_columns(planning: PlanningConnection) -> None:
    assert planning.columns("SELECT id, n AS name, id+1 FROM u WHERE id = ?") == ("id", "name", "id+1")
    assert planning.columns("SELECT x FROM v") == ("x",)
    assert planning.columns("WITH RECURSIVE c(a) AS (SELECT 1 UNION ALL SELECT a FROM c) SELECT max(a) FROM c") == (
        "max(a)",
    )
    assert planning.columns("SELECT nope") == ()


def test_registered_functions_outlive_a_rebuild(planning: PlanningConnection) -> None:
    with pytest.raises(OperationalError, match="no such function: twice"):
        planning.prepare("SELECT twice(1)")
    planning.create_function("twice", 1, lambda x: 2 * x, deterministic=True)
    planning.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    planning.rebuild(DDL)
    assert planning.prepare("SELECT twice(n) FROM u ORDER BY n COLLATE backwards").functions == {"twice"}


def test_a_failed_rebuild_keeps_the_schema(planning: PlanningConnection) -> None:
    with pytest.raises(OperationalError):
        planning.rebuild(["CREATE NONSENSE"])
    planning.prepare("SELECT * FROM u")


def test_apply_shows_both_sides_and_undoes(planning: PlanningConnection) -> None:
    sql = """
    -- the first; with a semicolon
    CREATE TABLE t (a DEFAULT ';');
    CREATE TRIGGER t2 AFTER INSERT ON t BEGIN DELETE FROM t; SELECT 1; END;
    ALTER TABLE t RENAME COLUMN a TO b
    """
    before, after = planning.apply(sql)
    assert [item.name for item in before] == ["u", "o", "v", "tr"]
    assert [(item.type, item.name) for item in after[4:]] == [("table", "t"), ("trigger", "t2")]
    assert "b DEFAULT" in after[4].sql
    assert planning.objects() == before
    planning.apply(sql, keep=True)
    assert planning.objects() == after


def test_apply_undoes_on_an_error(planning: PlanningConnection) -> None:
    before = planning.objects()
    with pytest.raises(OperationalError, match="already exists"):
        planning.apply("CREATE TABLE t (a); CREATE TABLE u (b)", keep=True)
    assert planning.objects() == before


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("COMMIT", NotSupportedError, "COMMIT is no schema change"),
        ("CREATE TABLE t (a); INSERT INTO t VALUES (1)", NotSupportedError, "INSERT is no schema change"),
        ("CREATE TEMP TABLE t (a)", NotSupportedError, "temp tables"),
        ("CREATE TABLE _shardlite_x (a)", ProgrammingError, "reserved"),
        ("CREATE TABLE t (a", ProgrammingError, "incomplete input|near"),
    ],
)
def test_apply_refuses(planning: PlanningConnection, sql: str, error: type[Exception], words: str) -> None:
    before = planning.objects()
    with pytest.raises((error, OperationalError), match=words):
        planning.apply(sql)
    assert planning.objects() == before


def test_split_statements() -> None:
    assert split_statements(" ; SELECT ';' ; -- x;\n;SELECT 2") == ["SELECT ';'", "SELECT 2"]
    trigger = "CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END"
    assert split_statements(f"{trigger}; CREATE TABLE x (a)") == [trigger, "CREATE TABLE x (a)"]
    assert split_statements("") == []
    assert split_statements("/* nothing */ ;;") == []
    with pytest.raises(ProgrammingError, match="incomplete"):
        split_statements("CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1;")


def test_threads_share_one_connection(planning: PlanningConnection) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(50):
            table = "uo"[number % 2]
            found = planning.prepare(f"SELECT id FROM {table} WHERE id = {number}")
            if {access.table for access in found.reads} != {table}:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_errors_keep_the_drivers_class(planning: PlanningConnection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        planning.prepare("SELECT * FROM nope")
    assert not issubclass(IntegrityError, OperationalError)
