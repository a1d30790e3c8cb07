"""The documentation is true: its code runs, its commands exist, its links lead somewhere, the reference is current.

On every page each ``python`` block is executed, and each ``shardlite ...`` line of an ``sh`` or ``console`` block, page
by page, in the order of the page, in a fresh directory that holds the sample as ``orders.db``, ``app.db`` and
``data/orders.db``. A comment ``<!-- not run: reason -->`` before a block leaves it out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import shardlite
import shardlite.connection
from shardlite import errors
from shardlite.cli import cli
from shardlite.cli.reference import reference
from shardlite.cli.sample import sample_path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MUST_RUN = [
    ROOT / "README.md",
    *(ROOT / "docs" / "tutorial").glob("*.md"),
    *(ROOT / "docs" / "how-to").glob("[a-z]*.md"),
]
OPEN_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)")
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
COMMAND_S = 120
OUTSIDE = ("pip", "python", "pytest", "cd", "git", ".ci/run", "source", ".", "#")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    left_out: bool


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number, before = 0, ""
    while number < len(lines):
        if opened := OPEN_FENCE.match(lines[number]):
            start, indent = number + 1, len(opened["indent"])
            end = next(n for n in range(start, len(lines)) if lines[n].strip() == "```")
            text = "\n".join(line[indent:] for line in lines[start:end])
            yield Block(page, start + 1, opened["language"], text, bool(NOT_RUN.search(before)))
            number = end
        before = lines[number] or before
        number += 1


def shell_commands(block: Block) -> Iterator[str]:
    """Yield the commands of a shell block: all lines of ``sh``, those after a ``$`` of ``console``."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        command = line.strip()
        if block.language == "console":
            if not command.startswith("$ "):
                continue
            command = command[2:]
        command = re.sub(r"\s+#\s.*$", "", command)
        if command and not command.startswith("#"):
            yield command


def runnable(page: Path) -> list[Block]:
    """Return the blocks of a page that are run."""
    languages = ("python", "sh", "bash", "console")
    return [block for block in blocks(page) if block.language in languages and not block.left_out]


def run_shell_line(command: str, where: str, directory: Path) -> None:
    """Run one command; only shardlite's own, since all others belong to the reader's machine."""
    if command.split()[0] in OUTSIDE:
        return
    assert command.startswith("shardlite "), f"{where}: only shardlite commands are run: {command}"
    words = shlex.split(command)
    if any(word in ("|", "&&", ">", "<", ";") for word in words):
        if sys.platform == "win32":
            return
        program = f'shardlite() {{ {shlex.quote(sys.executable)} -m shardlite "$@"; }}; set -euo pipefail; {command}'
        words = ["bash", "-c", program]
    else:
        words = [sys.executable, "-m", "shardlite", *words[1:]]
    done = subprocess.run(
        words, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{where}: {command}\n{done.stdout}\n{done.stderr}"


def test_the_tutorial_and_the_guides_are_there() -> None:
    assert len(MUST_RUN) >= 10
    for page in MUST_RUN:
        assert runnable(page), f"{page_id(page)} has nothing to run"


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=page_id)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("orders.db", "app.db", "data/orders.db"):
        shutil.copyfile(sample_path(), tmp_path / name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in runnable(page):
        where = f"{page_id(page)}, line {block.line}"
        if block.language == "python":
            # Line numbers of the page, for the traceback.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        else:
            for command in shell_commands(block):
                run_shell_line(command, where, tmp_path)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install . && shardlite demo" in text
    assert "pip install '.[test]' && pytest" in text


def test_the_reference_of_the_command_line_is_current() -> None:
    stored = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert stored == reference(), "run: python -m shardlite.cli.reference docs/reference/cli.md"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_documented(name: str) -> None:
    command = cli.commands[name]
    assert command.help, f"{name} has no help"
    assert command.short_help, f"{name} has no line in the list of commands"
    assert f"\n## shardlite {name}\n" in (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_in_the_documentation_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language not in ("sh", "bash", "console"):
            continue
        for command in shell_commands(block):
            for match in re.finditer(r"(?:^|&& |\| )shardlite (?P<name>[a-z]+)", command):
                assert match["name"] in cli.commands, f"{page_id(page)}, line {block.line}: {command}"


def test_every_page_can_be_found() -> None:
    linked = {
        (page.parent / match["target"].partition("#")[0]).resolve()
        for page in PAGES
        for match in LINK.finditer(page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", match["target"])
    }
    missing = [page_id(page) for page in PAGES if page.name != "README.md" and page.resolve() not in linked]
    assert not missing, f"no page links to {missing}"


def test_the_map_names_every_package() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "shardlite").glob("*/**/__init__.py")}
    tree |= {f"shardlite/{path.name}" for path in (ROOT / "shardlite").glob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"`(shardlite/[a-z_/]*(?:/|\.py))`", text))
    assert named == tree


def test_the_parser_is_imported_when_it_is_needed() -> None:
    script = "import sys, shardlite; assert not {'sqlglot', 'click', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=COMMAND_S)


def test_public_names_are_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    words = set(re.findall(r"\w+", text))
    classes = (shardlite.ShardManager, shardlite.ConnectionPool, shardlite.Router, shardlite.ShardingStrategy)
    members = {name for cls in classes for name in vars(cls) if not name.startswith("_")}
    options = {field.name for field in dataclasses.fields(shardlite.ShardliteConfig)}
    figures = {field.name for field in dataclasses.fields(shardlite.PoolStatistics)}
    exceptions = {name for name, thing in vars(errors).items() if isinstance(thing, type)}
    wanted = set(shardlite.__all__) | set(shardlite.connection.__all__) | members | options | figures | exceptions
    assert sorted(wanted - words) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"]
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        name, _, anchor = target.partition("#")
        assert (page.parent / name).exists(), f"{page_id(page)}: {target}"
        if anchor and name.endswith(".md"):
            assert anchor in anchors(page.parent / name), f"{page_id(page)}: {target}: no such heading"
