"""The commands: what they print, how they fail, and their exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardlite.cli import cli, run
from shardlite.driver import sqlite3


def failure(outcome: Any, *words: str, status: int = 1) -> None:
    """Assert that a call failed with one clear line that holds the words, and printed no result."""
    assert outcome.status == status, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("shardlite: error: ")
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err


# ---- the group


def test_help_lists_the_commands(shardlite: Any) -> None:
    outcome = shardlite("--help")
    assert outcome.status == 0
    for name in ("demo", "init", "import", "export", "query", "shell", "info", "stats", "check"):
        assert f"  {name} " in outcome.out


def test_no_command_is_wrong_usage_and_helps(shardlite: Any) -> None:
    outcome = shardlite()
    assert outcome.status == 2
    assert "Commands:" in outcome.err


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_each_command_has_help(name: str, shardlite: Any) -> None:
    outcome = shardlite(name, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"Usage: shardlite {name}")


def test_version(shardlite: Any) -> None:
    outcome = shardlite("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("shardlite 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["init"], ["DIR"]),
        (["query", "x"], ["SQL"]),
        (["init", "x", "--shards", "0"], ["--shards"]),
        (["init", "x", "--shards", "many"], ["--shards", "many"]),
        (["init", "x", "--slots", "65537"], ["--slots", "65536"]),
        (["query", "x", " "], ["SQL"]),
        (["init", "x", "--nonsense"], ["--nonsense"]),
        (["init", "x", "--strategy", "magic"], ["magic"]),
        (["init", "x", "--boundary", "5"], ["--boundary", "range"]),
        (["init", "x", "--strategy", "range"], ["--boundary"]),
        (["init", "x", "--strategy", "directory", "--assign", "acme"], ["acme", "KEY=SHARD"]),
        (["init", "x", "--strategy", "directory", "--assign", "acme=one"], ["'one'"]),
        (["import", "a.csv", "x", "--key", "a.b", "--key", "c.d"], ["--key"]),
        (["query", "x", "SELECT 1", "--param", "a=1", "--param", "2"], ["'2'"]),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], words: list[str], shardlite: Any, in_tmp_path: Path) -> None:
    Path("a.csv").write_text("id\n1\n", encoding="utf-8")
    failure(shardlite(*arguments), *words, "--help", status=2)
    assert not Path("x").exists()


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "{}", "SELECT 1"],
        ["shell", "{}"],
        ["info", "{}"],
        ["stats", "{}"],
        ["check", "{}"],
        ["export", "{}", "o"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_directory_that_is_no_database_is_named_and_left_alone(
    arguments: list[str], tmp_path: Path, shardlite: Any
) -> None:
    missing, empty, file = tmp_path / "missing", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    for path, words in ((missing, "no such directory"), (empty, "catalog.db"), (file, "is a file")):
        failure(shardlite(*(argument.format(path) for argument in arguments)), str(path), words)
    assert not missing.exists()
    assert not list(empty.iterdir())


def test_a_bug_is_one_line_and_a_traceback_on_request(
    shardlite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(cli.commands["info"], "callback", broken)
    outcome = shardlite("info", tmp_path)
    assert outcome.status == 1
    assert outcome.err == (
        "shardlite: error: internal error: ZeroDivisionError: on purpose; SHARDLITE_TRACEBACK=1 shows where\n"
    )
    monkeypatch.setenv("SHARDLITE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["info", str(tmp_path)])


def test_ctrl_c_is_one_line(shardlite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands["info"], "callback", interrupted)
    outcome = shardlite("info", tmp_path)
    # The empty line first parts it from the terminal's ^C.
    assert (outcome.status, outcome.err) == (130, "\nshardlite: error: interrupted\n")


# ---- init


def test_init(tmp_path: Path, shardlite: Any) -> None:
    outcome = shardlite("init", tmp_path / "new", "--shards", 3)
    assert outcome.status == 0, outcome.err
    assert "3 shards" in outcome.out
    info = json.loads(shardlite("info", tmp_path / "new", "--json").out)
    assert (info["num_shards"], info["strategy"]["name"], info["tables"]) == (3, "hash", [])


def test_init_with_a_schema(tmp_path: Path, shardlite: Any) -> None:
    ddl = tmp_path / "schema.sql"
    ddl.write_text("CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE INDEX t_v ON t (v);", encoding="utf-8")
    assert shardlite("init", tmp_path / "new", "--schema", ddl).status == 0
    info = json.loads(shardlite("info", tmp_path / "new", "--json").out)
    assert [(table["name"], table["kind"], table["key_columns"]) for table in info["tables"]] == [
        ("t", "sharded", ["id"])
    ]


def test_init_range(tmp_path: Path, shardlite: Any) -> None:
    ddl = tmp_path / "schema.sql"
    ddl.write_text("CREATE TABLE t (id INTEGER PRIMARY KEY);", encoding="utf-8")
    options = ["--strategy", "range", "--boundary", "1000", "--boundary", "2000", "--schema", ddl]
    assert shardlite("init", tmp_path / "new", *options).status == 0
    for key in (5, 1500, 1501, 2500):
        assert shardlite("query", tmp_path / "new", "INSERT INTO t VALUES (?)", "-p", key).status == 0
    info = json.loads(shardlite("info", tmp_path / "new", "--json").out)
    assert info["tables"][0]["rows_per_shard"] == [1, 2, 1]


def test_init_directory(tmp_path: Path, shardlite: Any) -> None:
    ddl = tmp_path / "schema.sql"
    ddl.write_text("CREATE TABLE t (tenant TEXT PRIMARY KEY);", encoding="utf-8")
    options = ["--strategy", "directory", "--assign", "acme=2", "--assign", "globex=0", "--shards", 3]
    outcome = shardlite("init", tmp_path / "new", *options, "--schema", ddl)
    assert outcome.status == 0, outcome.err
    for key in ("acme", "globex"):
        assert shardlite("query", tmp_path / "new", "INSERT INTO t VALUES (?)", "-p", key).status == 0
    info = json.loads(shardlite("info", tmp_path / "new", "--json").out)
    assert info["tables"][0]["rows_per_shard"] == [1, 0, 1]


def test_init_twice_is_refused(shop: Path, shardlite: Any) -> None:
    failure(shardlite("init", shop), str(shop), "already")


def test_init_with_a_missing_schema_makes_nothing(tmp_path: Path, shardlite: Any) -> None:
    failure(shardlite("init", tmp_path / "new", "--schema", tmp_path / "nope.sql"), "nope.sql")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("there", [False, True])
def test_init_with_a_bad_schema_leaves_nothing(there: bool, tmp_path: Path, shardlite: Any) -> None:
    ddl, target = tmp_path / "bad.sql", tmp_path / "new"
    ddl.write_text("CREATE TABLE t (id INTEGER PRIMARY KEY); CREATE TABEL u (x);", encoding="utf-8")
    if there:
        target.mkdir()
        (target / "notes.txt").touch()
    failure(shardlite("init", target, "--schema", ddl), "TABEL")
    assert target.exists() == there
    assert [entry.name for entry in target.glob("*")] == ["notes.txt"] * there
    ddl.write_text("CREATE TABLE t (id INTEGER PRIMARY KEY);", encoding="utf-8")
    assert shardlite("init", target, "--schema", ddl).status == 0


# ---- import and export


def test_import_says_what_it_chose(source: Path, tmp_path: Path, shardlite: Any) -> None:
    outcome = shardlite("import", source, tmp_path / "shop", "--shards", 3)
    assert outcome.status == 0, outcome.err
    assert "sharded by user_id" in outcome.out
    assert "160 rows of 2 tables" in outcome.out


def test_import_report_as_json(source: Path, tmp_path: Path, shardlite: Any) -> None:
    report = json.loads(shardlite("import", source, tmp_path / "shop", "--shards", 3, "--json").out)
    assert report["rows"] == 160
    assert {table["table"]: sum(table["rows_per_shard"]) for table in report["tables"]} == {"users": 40, "orders": 120}


def test_import_with_other_choices(source: Path, tmp_path: Path, shardlite: Any) -> None:
    outcome = shardlite("import", source, tmp_path / "shop", "--key", "orders.id", "--reference", "users", "--json")
    assert outcome.status == 0, outcome.err
    choices = {table["table"]: table for table in json.loads(outcome.out)["plan"]["tables"]}
    assert choices["users"]["kind"] == "reference"
    assert choices["orders"]["key_columns"] == ["id"]


def test_import_dry_run_writes_nothing(source: Path, tmp_path: Path, shardlite: Any) -> None:
    outcome = shardlite("import", source, tmp_path / "shop", "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "sharded by user_id" in outcome.out
    assert not (tmp_path / "shop").exists()


def test_import_csv(tmp_path: Path, shardlite: Any) -> None:
    file = tmp_path / "people.csv"
    file.write_text("id,name\n" + "".join(f"{n},person {n}\n" for n in range(1, 51)), encoding="utf-8")
    outcome = shardlite("import", file, tmp_path / "shop", "--key", "id")
    assert outcome.status == 0, outcome.err
    rows = json.loads(shardlite("query", tmp_path / "shop", "SELECT * FROM people WHERE id = 7", "--json").out)
    assert rows == [{"id": 7, "name": "person 7"}]


def test_import_csv_as_one_more_table(shop: Path, tmp_path: Path, shardlite: Any) -> None:
    file = tmp_path / "people.csv"
    file.write_text("id,name\n1,Ann\n2,Ben\n", encoding="utf-8")
    failure(shardlite("import", file, shop, "--shards", 3), "--shards", status=2)
    outcome = shardlite("import", file, shop)
    assert outcome.status == 0, outcome.err
    tables = json.loads(shardlite("info", shop, "--json").out)["tables"]
    assert {table["name"]: table["rows"] for table in tables} == {"users": 40, "orders": 120, "people": 2}


def test_import_ndjson(tmp_path: Path, shardlite: Any) -> None:
    file = tmp_path / "lines.ndjson"
    file.write_text("".join(json.dumps({"id": n, "v": n / 2}) + "\n" for n in range(1, 21)), encoding="utf-8")
    outcome = shardlite("import", file, tmp_path / "shop", "--key", "id", "--table", "events")
    assert outcome.status == 0, outcome.err
    rows = json.loads(shardlite("query", tmp_path / "shop", "SELECT v FROM events WHERE id = 3", "--json").out)
    assert rows == [{"v": 1.5}]


def test_import_of_a_malformed_csv_names_the_line(tmp_path: Path, shardlite: Any) -> None:
    file = tmp_path / "people.csv"
    file.write_text("id,name\n1,Ann\n2,Ben,extra\n", encoding="utf-8")
    failure(shardlite("import", file, tmp_path / "shop"), "people.csv", "3")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.db", None, "no such file"),
        ("text.db", b"this is no database, but long enough to have a header of a hundred bytes" * 3, "--format csv"),
        ("empty.txt", b"", "is empty"),
        ("short.db", b"SQLite format 3", "truncated"),
        ("secret.db", bytes(range(255, 0, -1)) * 20, "encrypted"),
    ],
)
def test_import_of_what_is_no_database(
    name: str, content: bytes | None, words: str, tmp_path: Path, shardlite: Any
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    failure(shardlite("import", file, tmp_path / "shop"), name, words)
    assert not (tmp_path / "shop").exists()


def test_import_of_a_locked_database_says_so(source: Path, tmp_path: Path, shardlite: Any) -> None:
    conn = sqlite3.connect(source, isolation_level=None)
    try:
        conn.execute("BEGIN EXCLUSIVE")
        outcome = shardlite("import", source, tmp_path / "new")
    finally:
        conn.close()
    failure(outcome, "locked")
    assert "--format" not in outcome.err


def test_import_of_a_databases_own_files_is_refused(shop: Path, tmp_path: Path, shardlite: Any) -> None:
    for name in ("catalog.db", "shard_0.db"):
        shutil.copy(shop / name, tmp_path)  # looked at read-only, a file in WAL mode keeps its -wal
        failure(shardlite("import", tmp_path / name, tmp_path / "new"), name, "shardlite export")
        assert not (tmp_path / "new").exists()


def test_import_of_text_in_another_encoding(tmp_path: Path, shardlite: Any) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("id,name\n1,Zoë\n".encode("latin-1"))
    failure(shardlite("import", file, tmp_path / "new"), "a.csv, line 2", "--encoding")
    assert shardlite("import", file, tmp_path / "new", "--encoding", "latin-1").status == 0
    assert "Zoë" in shardlite("query", tmp_path / "new", "SELECT name FROM a").out


def test_imported_views_over_virtual_tables_are_answered(source: Path, tmp_path: Path, shardlite: Any) -> None:
    conn = sqlite3.connect(source)
    conn.executescript(
        "CREATE VIEW again AS SELECT * FROM mixed; CREATE VIEW named AS SELECT id, name FROM users;"
        "CREATE TRIGGER t INSTEAD OF UPDATE ON named BEGIN UPDATE users SET name = NEW.name WHERE id = OLD.id; END;"
        "CREATE VIRTUAL TABLE words USING fts5(word); CREATE VIEW alone AS SELECT word FROM words;"
        "CREATE VIEW mixed AS SELECT name, word FROM users JOIN words ON words.rowid = users.id;"
    )
    conn.close()
    outcome = shardlite("import", source, tmp_path / "new")
    assert outcome.status == 0
    assert "warning" not in outcome.err
    for view in ("named", "alone", "mixed", "again"):
        assert shardlite("query", tmp_path / "new", f"SELECT * FROM {view}").status == 0
    assert shardlite("query", tmp_path / "new", "UPDATE named SET name = 'x'").status == 0


def test_import_options_that_have_no_meaning_are_refused(source: Path, tmp_path: Path, shardlite: Any) -> None:
    failure(shardlite("import", source, tmp_path / "shop", "--delimiter", ";"), "--delimiter", status=2)
    (tmp_path / "a.csv").write_text("id\n1\n", encoding="utf-8")
    failure(shardlite("import", tmp_path / "a.csv", tmp_path / "shop", "--single", "a"), "--single", status=2)


def test_import_of_an_unknown_table_is_named(source: Path, tmp_path: Path, shardlite: Any) -> None:
    failure(shardlite("import", source, tmp_path / "shop", "--key", "nobody.id"), "nobody")


def test_import_over_a_database_is_refused(source: Path, shop: Path, shardlite: Any) -> None:
    failure(shardlite("import", source, shop), str(shop), "holds a shardlite database")


def test_export_is_the_inverse_of_import(source: Path, shop: Path, tmp_path: Path, shardlite: Any) -> None:
    target = tmp_path / "again.db"
    outcome = shardlite("export", shop, target)
    assert outcome.status == 0, outcome.err
    assert "160 rows" in outcome.out
    assert content_of(target) == content_of(source)


def content_of(path: Path) -> list[list[tuple[Any, ...]]]:
    conn = sqlite3.connect(path)
    try:
        queries = (
            "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
            "SELECT * FROM users ORDER BY id",
            "SELECT * FROM orders ORDER BY id",
        )
        return [conn.execute(query).fetchall() for query in queries]
    finally:
        conn.close()


def test_export_replaces_a_file_only_when_told(shop: Path, tmp_path: Path, shardlite: Any) -> None:
    target = tmp_path / "again.db"
    target.write_bytes(b"precious")
    failure(shardlite("export", shop, target), str(target))
    assert target.read_bytes() == b"precious"
    outcome = shardlite("export", shop, target, "--overwrite", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["rows"] == 160


# ---- query


def test_query_as_a_table(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "SELECT id, name, photo FROM users WHERE id = 2")
    assert outcome.status == 0, outcome.err
    assert outcome.out == "id  name    photo\n--  ------  -----\n 2  user 2  NULL\n"


def test_query_as_csv(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "SELECT id, name FROM users", "--format", "csv")
    rows = list(csv.reader(io.StringIO(outcome.out)))
    assert rows[0] == ["id", "name"]
    assert sorted(rows[1:], key=lambda row: int(row[0])) == [[str(n), f"user {n}"] for n in range(1, 41)]


def test_query_as_json(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "SELECT photo FROM users WHERE id = 1", "--json")
    assert json.loads(outcome.out) == [{"photo": {"$base64": "AQ=="}}]


def test_query_with_parameters(shop: Path, shardlite: Any) -> None:
    by_position = shardlite("query", shop, "SELECT name FROM users WHERE id = ?", "-p", 7, "--format", "ndjson")
    by_name = shardlite("query", shop, "SELECT name FROM users WHERE id = :id", "--param", "id=7", "--format", "ndjson")
    assert by_position.out == by_name.out == '{"name": "user 7"}\n'


def test_query_that_writes_says_how_much(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "UPDATE orders SET amount = 0 WHERE user_id = 7")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "3 rows changed\n")
    left = shardlite("query", shop, "SELECT amount FROM orders WHERE user_id = 7", "--format", "csv")
    assert left.out == "amount\n0\n0\n0\n"


def test_query_from_stdin(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "-", "--json", stdin="SELECT name\nFROM users\nWHERE id = 3;\n")
    assert json.loads(outcome.out) == [{"name": "user 3"}]


def test_explain_runs_nothing(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, "DELETE FROM orders WHERE user_id = 7", "--explain")
    assert outcome.status == 0, outcome.err
    assert "one shard" in outcome.out
    count = shardlite("query", shop, "SELECT id FROM orders WHERE user_id = 7", "--json")
    assert len(json.loads(count.out)) == 3


def test_explain_as_json(shop: Path, shardlite: Any) -> None:
    plan = json.loads(shardlite("query", shop, "SELECT * FROM users", "--explain", "--json").out)
    assert plan["shards"] == [0, 1, 2, 3]
    assert plan["kind"] == "fan-out"


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM nobody", ["nobody"]),
        ("SELECT nothing FROM users", ["nothing"]),
        ("SELEC 1", ["SELEC"]),
        ("INSERT INTO users VALUES (1, 'again', NULL, NULL)", ["users.id"]),
        ("INSERT INTO orders VALUES (NULL, 999, 1)", ["FOREIGN KEY"]),
    ],
)
def test_a_failing_query_is_one_line(sql: str, words: list[str], shop: Path, shardlite: Any) -> None:
    outcome = shardlite("query", shop, sql)
    failure(outcome, *words)
    assert outcome.out == ""


def test_a_closed_pipe_is_no_error_message(shop: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "shardlite", "query", str(shop), "SELECT * FROM users", "--format", "csv"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=60) in (0, 1)


# ---- info, stats, check


def test_info(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("info", shop)
    assert outcome.status == 0, outcome.err
    assert "4 shards" in outcome.out
    assert "sharded by user_id" in outcome.out
    assert "shard_3.db" in outcome.out


def test_info_as_json(shop: Path, shardlite: Any) -> None:
    info = json.loads(shardlite("info", shop, "--json").out)
    tables = {table["name"]: table for table in info["tables"]}
    assert tables["users"]["rows"] == sum(tables["users"]["rows_per_shard"]) == 40
    assert tables["orders"]["key_columns"] == ["user_id"]
    assert tables["users"]["skew"] >= 1
    assert [shard["rows"] for shard in info["shards"]] == [
        users + orders
        for users, orders in zip(tables["users"]["rows_per_shard"], tables["orders"]["rows_per_shard"], strict=True)
    ]
    for shard in info["shards"]:
        assert shard["size_bytes"] == os.stat(shard["path"]).st_size


def test_stats(shop: Path, shardlite: Any) -> None:
    assert "160 rows" in shardlite("stats", shop).out
    stats = json.loads(shardlite("stats", shop, "--json").out)
    assert [shard["rows"] for shard in stats["shards"].values()] == list(stats["sharded_rows"].values())
    assert (stats["total_rows"], stats["num_shards"], len(stats["pools"])) == (160, 4, 4)
    assert stats["skew"] >= 1


def test_check_of_a_sound_database(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("check", shop)
    assert outcome.status == 0, outcome.out
    report = json.loads(shardlite("check", shop, "--json").out)
    assert (report["ok"], report["rows"], report["problems"]) == (True, 160, [])


def test_check_finds_a_missing_shard(shop: Path, shardlite: Any) -> None:
    (shop / "shard_2.db").unlink()
    outcome = shardlite("check", shop)
    assert outcome.status == 1
    assert "shard_2.db" in outcome.out
    assert not json.loads(shardlite("check", shop, "--json").out)["ok"]


def test_a_query_names_a_missing_shard(shop: Path, shardlite: Any) -> None:
    (shop / "shard_2.db").unlink()
    failure(shardlite("query", shop, "SELECT * FROM users"), "shard_2.db")
    assert not (shop / "shard_2.db").exists()


def test_a_query_names_a_damaged_shard(shop: Path, shardlite: Any) -> None:
    (shop / "shard_1.db").write_bytes(b"no database" * 1_000)
    failure(shardlite("query", shop, "SELECT * FROM users"), "shard_1.db")


# ---- names that try to be something else


def test_strange_names_stay_names(tmp_path: Path, shardlite: Any) -> None:
    strange = '[red]a "b"; DROP TABLE x --'
    quoted = '"' + strange.replace('"', '""') + '"'
    conn = sqlite3.connect(tmp_path / "odd.db")
    conn.execute(f'CREATE TABLE {quoted} (id INTEGER PRIMARY KEY, "[/bold] é" TEXT)')
    conn.execute(f"INSERT INTO {quoted} VALUES (1, '[blink]')")
    conn.commit()
    conn.close()
    outcome = shardlite("import", tmp_path / "odd.db", tmp_path / "shop")
    assert outcome.status == 0, outcome.err
    assert "[red]a" in outcome.out
    assert strange in shardlite("info", tmp_path / "shop").out
    assert strange in shardlite("shell", tmp_path / "shop", stdin=".tables\n").out
    rows = json.loads(shardlite("query", tmp_path / "shop", f"SELECT * FROM {quoted}", "--json").out)
    assert rows == [{"id": 1, "[/bold] é": "[blink]"}]
    assert shardlite("export", tmp_path / "shop", tmp_path / "out.db").status == 0
