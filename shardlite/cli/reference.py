"""Write the reference of the command line from the commands: ``python -m shardlite.cli.reference [FILE]``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from shardlite.cli.app import cli
from shardlite.cli.console import EXIT_OK, EXIT_USAGE

_PROGRAM = "shardlite"
_HEADER = """\
# The command line

This page is written by `python -m shardlite.cli.reference docs/reference/cli.md`, from the commands themselves.
"""


def reference() -> str:
    """Return the page: every command with its usage, description, arguments and options."""
    lines = [_HEADER, *_group_lines()]
    for name, command in cli.commands.items():
        lines += ["", f"## shardlite {name}", "", *_command_lines(name, command)]
    return "\n".join(lines).rstrip() + "\n"


def _group_lines() -> Iterator[str]:
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in cli.commands.items():
        yield f"| [`shardlite {name}`](#shardlite-{name}) | {command.get_short_help_str(limit=100)} |"
    yield ""
    yield cli.epilog or ""
    yield ""
    yield "`shardlite --version` shows the versions of shardlite and SQLite; `--help` after any command explains it."


def _command_lines(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"{_PROGRAM} {name}")
    yield "```text"
    yield command.get_usage(context).removeprefix("Usage: ")
    yield "```"
    yield ""
    yield inspect.cleandoc(command.help or "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        yield ""
        yield "| option | meaning |"
        yield "|---|---|"
    for option in options:
        yield _option_line(option)


def _option_line(option: click.Option) -> str:
    """Return one row of the table of options. Built here, since click's own words differ from version to version."""
    flags = ", ".join(option.opts)
    if isinstance(option.type, click.Choice):
        flags += f" [{'|'.join(option.type.choices)}]"
    elif not option.is_flag:
        flags += f" {option.metavar}"
    meaning = option.help or ""
    if option.show_default:
        meaning += f" [default: {option.default}]"
    if option.multiple:
        meaning += " May be given several times."
    cells = (text.replace("|", "\\|") for text in (f"`{flags}`", " ".join(meaning.split())))
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Write the page to the named file, or to stdout."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        click.echo("usage: python -m shardlite.cli.reference [FILE]", err=True)
        return EXIT_USAGE
    if arguments:
        Path(arguments[0]).write_text(reference(), encoding="utf-8", newline="\n")
    else:
        click.echo(reference(), nl=False)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
