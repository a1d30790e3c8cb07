"""The shell: statements over several lines, dot-commands, errors, with a pipe and with a terminal."""

from __future__ import annotations

import builtins
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardlite.cli import shell as shell_module


def test_statements_over_several_lines(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("shell", shop, stdin=".mode ndjson\nSELECT name\n  FROM users\n WHERE id = 5;\n")
    assert (outcome.status, outcome.out, outcome.err) == (0, '{"name": "user 5"}\n', "")


def test_several_statements_on_one_line(shop: Path, shardlite: Any) -> None:
    script = ".mode ndjson\nSELECT 1 AS a; SELECT ';' AS b; -- done; really\nSELECT 3 AS c"
    assert [json.loads(line) for line in shardlite("shell", shop, stdin=script).out.splitlines()] == [
        {"a": 1},
        {"b": ";"},
        {"c": 3},
    ]


def test_a_trigger_is_one_statement(shop: Path, shardlite: Any) -> None:
    script = (
        "CREATE TRIGGER t AFTER UPDATE ON users BEGIN\n"
        "  UPDATE orders SET amount = -1 WHERE user_id = new.id;\n"
        "  SELECT 1;\n"
        "END;\n.schema\n"
    )
    outcome = shardlite("shell", shop, stdin=script)
    assert outcome.status == 0, outcome.err
    assert "CREATE TRIGGER t" in outcome.out


def test_dot_commands(shop: Path, shardlite: Any) -> None:
    outcome = shardlite("shell", shop, stdin=".help\n.tables\n.shards\n.schema users\n.explain SELECT * FROM users\n")
    assert outcome.status == 0, outcome.err
    for part in (".explain SQL", "sharded by user_id", "shard_3.db", "CREATE TABLE users", "fan-out"):
        assert part in outcome.out
    assert "CREATE TABLE orders" not in outcome.out
    assert "_shardlite_" not in shardlite("shell", shop, stdin=".schema\n.tables\n").out


def test_quit_leaves_the_rest_alone(shop: Path, shardlite: Any) -> None:
    for leave in (".quit", ".exit"):
        assert shardlite("shell", shop, stdin=f"{leave}\nDELETE FROM users WHERE id = 1;\nnonsense;\n").status == 0
    kept = shardlite("query", shop, "SELECT id FROM users WHERE id = 1", "--json")
    assert json.loads(kept.out) == [{"id": 1}]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("SELECT 1;\n\nSELECT *\nFROM nobody;\nSELECT 2;\n", "line 3: "),
        (".nonsense\nSELECT 2;", "line 1: unknown command '.nonsense'"),
        (".mode yaml\n", "line 1: .mode takes one of table, csv, json, ndjson"),
        (".schema nobody\n", "line 1: no such table: nobody"),
        (".explain\n", "line 1: .explain needs a statement"),
    ],
)
def test_the_first_error_ends_a_piped_shell(script: str, words: str, shop: Path, shardlite: Any) -> None:
    outcome = shardlite("shell", shop, stdin=script)
    assert outcome.status == 1
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    assert "2\n" not in outcome.out


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the shell believe that a person types these lines; an exception is raised."""

    def arrange(*lines: str | type[BaseException]) -> list[str]:
        prompts: list[str] = []
        pending: Iterator[str | type[BaseException]] = iter(lines)

        def answer(prompt: str = "") -> str:
            prompts.append(prompt)
            line = next(pending, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", answer)
        monkeypatch.setattr(shell_module, "_is_interactive", lambda: True)
        return prompts

    return arrange


def test_a_typed_error_brings_the_prompt_back(shop: Path, shardlite: Any, typed: Any) -> None:
    typed("SELECT * FROM nobody;", ".mode ndjson", "SELECT 7 AS n;")
    outcome = shardlite("shell", shop)
    assert outcome.status == 0
    assert "nobody" in outcome.err
    assert '{"n": 7}' in outcome.out


def test_the_prompt_says_when_a_statement_goes_on(shop: Path, shardlite: Any, typed: Any) -> None:
    prompts = typed("SELECT", "1;", ".quit")
    shardlite("shell", shop)
    assert prompts == ["shardlite> ", "      ...> ", "shardlite> "]


def test_ctrl_c_drops_the_unfinished_statement(shop: Path, shardlite: Any, typed: Any) -> None:
    prompts = typed("DELETE FROM users", KeyboardInterrupt, ".mode ndjson", "SELECT 1 AS a;")
    outcome = shardlite("shell", shop)
    assert outcome.status == 0
    assert prompts[2] == "shardlite> "
    assert outcome.out.rstrip().endswith('{"a": 1}')


def test_completion_knows_tables_and_columns(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    from shardlite.cli.opening import opened

    with opened(str(shop)) as manager:
        complete = shell_module._completer(shell_module.Shell(manager, interactive=True), readline)
        assert [complete("us", 0), complete("us", 1), complete("us", 2)] == ["user_id", "users", None]
        assert complete("sel", 0) == "SELECT"
        monkeypatch.setattr(readline, "get_line_buffer", lambda: ".sh")
        assert complete(".sh", 0) == ".shards"


def test_a_pipe_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert not shell_module._is_interactive()
