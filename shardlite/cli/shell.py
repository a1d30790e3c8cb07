"""``shardlite shell``: statements and dot-commands, one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TextIO

import click

from shardlite.cli.console import CommandFailure, complain
from shardlite.cli.formats import FORMATS
from shardlite.cli.opening import opened
from shardlite.cli.querying import write_result
from shardlite.cli.status import show_shards, show_tables
from shardlite.driver import sqlite3
from shardlite.manager import ShardManager
from shardlite.names import fold

_PROMPT = "shardlite> "
_CONTINUED = "      ...> "
_KEYWORDS = """
SELECT FROM WHERE GROUP BY ORDER LIMIT JOIN INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE INDEX VIEW
BETWEEN LIKE IN IS NULL NOT AND OR AS ON DISTINCT COUNT SUM AVG MIN MAX
"""

HELP = """\
.tables            the tables, their kind, key and rows
.schema [TABLE]    the CREATE statements
.shards            the shards, their files, sizes and rows
.explain SQL       how a statement would run
.mode FORMAT       how rows are written: table, csv, json, ndjson
.help              this text
.quit              leave (as does end of input)
A statement may take several lines and ends with a semicolon."""


@click.command("shell", short_help="A prompt for SQL statements.")
@click.argument("directory", metavar="DIR")
def shell_command(directory: str) -> int:
    """Read SQL statements and dot-commands, and run them on the database in DIR.

    A statement may take several lines and ends with a semicolon; .help lists the dot-commands. With a terminal, an
    error is shown and the prompt comes back; with a file or a pipe for input, the first error ends the shell with
    exit status 1 and names the line.
    """
    with opened(directory) as manager:
        shell = Shell(manager, interactive=_is_interactive())
        if shell.interactive:
            click.echo(f"{directory}: {len(manager.shard_ids)} shards. .help for help, .quit to leave.")
            with _line_editing(shell):
                shell.loop(_typed_lines(shell))
        else:
            shell.loop(_piped_lines(sys.stdin))
    return shell.status


@dataclass
class Shell:
    """The state of one shell: what was typed of an unfinished statement, the output format, the exit status."""

    manager: ShardManager
    interactive: bool
    mode: str = "table"
    status: int = 0
    pending: str = ""
    done: bool = False
    line: int = 0
    started: int = 0
    commands: dict[str, Callable[[str], None]] = field(init=False)

    def __post_init__(self) -> None:
        self.commands = {
            ".tables": self._tables,
            ".schema": self._schema,
            ".shards": self._shards,
            ".explain": self._explain,
            ".mode": self._mode,
            ".help": lambda _: click.echo(HELP),
            ".quit": self._quit,
            ".exit": self._quit,
        }

    @property
    def prompt(self) -> str:
        return _CONTINUED if self.pending.strip() else _PROMPT

    def loop(self, lines: Iterator[str]) -> None:
        """Take lines until they end, until ``.quit``, or, when not interactive, until the first error."""
        for text in lines:
            self.line += 1
            self.feed(text)
            if self.done:
                return
        if rest := self.pending.strip():
            self.pending = ""
            self._attempt(self._statement, rest)

    def feed(self, text: str) -> None:
        """Take one line: a dot-command, or a further piece of a statement, which runs once it is complete."""
        if not self.pending.strip() and text.lstrip().startswith("."):
            self.started = self.line
            name, _, rest = text.strip().partition(" ")
            self._attempt(self._dot_command, name.lower(), rest.strip())
            return
        for piece in _statement_pieces(text):
            if not self.pending.strip():
                self.pending, self.started = "", self.line
            self.pending += piece
            if sqlite3.complete_statement(self.pending):
                statement, self.pending = self.pending.strip(), ""
                self._attempt(self._statement, statement)
            if self.done:
                return
        self.pending += "\n"

    def _attempt(self, action: Callable[..., None], *arguments: str) -> None:
        """Run an action; an error is one line, and the end of a shell that nobody is typing into."""
        try:
            action(*arguments)
        except BrokenPipeError:
            raise
        except (sqlite3.Error, OSError, CommandFailure) as error:
            message = error.message if isinstance(error, CommandFailure) else str(error)
            complain(message if self.interactive else f"line {self.started}: {message}")
            if not self.interactive:
                self.status, self.done = 1, True
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            complain("interrupted")

    def _statement(self, statement: str) -> None:
        if statement.strip("; \n\t\r"):
            with self.manager.execute(statement) as result:
                write_result(result, self.mode)

    def _dot_command(self, name: str, rest: str) -> None:
        command = self.commands.get(name)
        if command is None:
            raise CommandFailure(f"unknown command {name!r}: .help lists the commands")
        command(rest)

    def _tables(self, _rest: str) -> None:
        show_tables(self.manager)

    def _shards(self, _rest: str) -> None:
        show_shards(self.manager)

    def _schema(self, rest: str) -> None:
        wanted = fold(rest.strip(";\"' "))
        found = [
            entry
            for entry in self.manager.database.catalog.schema
            if not wanted or wanted in (fold(entry.name), fold(entry.tbl_name))
        ]
        if wanted and not found:
            raise CommandFailure(f"no such table: {rest}")
        for entry in found:
            click.echo(f"{entry.sql};")

    def _explain(self, rest: str) -> None:
        if not rest:
            raise CommandFailure(".explain needs a statement after it")
        click.echo(str(self.manager.explain(rest.rstrip("; "))))

    def _mode(self, rest: str) -> None:
        if rest not in FORMATS:
            raise CommandFailure(f".mode takes one of {', '.join(FORMATS)}, not {rest!r}")
        self.mode = rest

    def _quit(self, _rest: str) -> None:
        self.done = True


def _statement_pieces(line: str) -> Iterator[str]:
    """Cut a line after each semicolon, so that several statements on one line run one by one.

    A semicolon inside a literal, a comment or a trigger's body does no harm: the pieces are put together again
    until SQLite says that the statement is complete.
    """
    start = 0
    while (end := line.find(";", start)) >= 0:
        yield line[start : end + 1]
        start = end + 1
    if start < len(line):
        yield line[start:]


def _is_interactive() -> bool:
    """Tell whether somebody types."""
    return sys.stdin.isatty()


def _piped_lines(stream: TextIO) -> Iterator[str]:
    for line in stream:
        yield line.rstrip("\r\n")


def _typed_lines(shell: Shell) -> Iterator[str]:
    """Prompt for lines until end of input; Ctrl-C drops what was typed of a statement."""
    while True:
        try:
            yield input(shell.prompt)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            shell.pending = ""


@contextlib.contextmanager
def _line_editing(shell: Shell) -> Iterator[None]:
    """Give the prompt history and completion, where the platform has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    former = readline.get_completer()
    readline.set_completer(_completer(shell, readline))
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(former)


def _completer(shell: Shell, readline: ModuleType) -> Callable[[str, int], str | None]:
    """Return a completer of keywords, dot-commands, tables and columns."""
    names = {entry.name for entry in shell.manager.database.catalog.schema if entry.type in ("table", "view")}
    for table in shell.manager.tables.values():
        names |= {column.name for column in table.columns}

    def complete(text: str, state: int) -> str | None:
        dotted = readline.get_line_buffer().lstrip().startswith(".")
        words = sorted(names) + _KEYWORDS.split() + (list(shell.commands) if dotted else [])
        found = [word for word in words if word.lower().startswith(text.lower())]
        return found[state] if state < len(found) else None

    return complete
