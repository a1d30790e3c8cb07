"""``shardlite init``: an empty database."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from shardlite.cli.console import CommandFailure
from shardlite.cli.formats import write_document
from shardlite.cli.values import parse_pair, parse_value
from shardlite.config import DEFAULT_SHARDS, MAX_SHARDS
from shardlite.manager import ShardManager
from shardlite.router import DirectoryStrategy, HashStrategy, RangeStrategy, ShardingStrategy
from shardlite.router.strategies import MAX_SLOTS


@click.command("init", short_help="Make an empty database.")
@click.argument("directory", metavar="DIR")
@click.option(
    "--shards", type=click.IntRange(1, MAX_SHARDS), metavar="N", help=f"How many files.  [default: {DEFAULT_SHARDS}]"
)
@click.option(
    "--strategy",
    type=click.Choice(["hash", "range", "directory"]),
    default="hash",
    show_default=True,
    help="How a key finds its shard.",
)
@click.option(
    "--slots", type=click.IntRange(1, MAX_SLOTS), metavar="N", help="hash: the number of slots.  [default: 4096]"
)
@click.option(
    "--boundary",
    "boundaries",
    multiple=True,
    metavar="KEY",
    help="range: the first key of each shard but the first, ascending.",
)
@click.option(
    "--assign",
    "assignments",
    multiple=True,
    metavar="KEY=SHARD",
    help="directory: the shard of a key; all other keys are hashed.",
)
@click.option("--schema", metavar="FILE", help="Apply the CREATE statements in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def init_command(
    directory: str,
    shards: int | None,
    strategy: str,
    slots: int | None,
    boundaries: tuple[str, ...],
    assignments: tuple[str, ...],
    schema: str | None,
    as_json: bool,
) -> None:
    """Make an empty database of shards in the directory DIR.

    KEY is written as in SQL: 42, 1.5, 'text' or text.
    """
    if (Path(directory) / "catalog.db").exists():
        raise CommandFailure(f"{directory} holds a shardlite database already")
    if Path(directory).exists() and not Path(directory).is_dir():
        raise CommandFailure(f"{directory} is a file: name a directory")
    chosen = _strategy(strategy, slots, boundaries, assignments)
    if shards is None:
        shards = len(boundaries) + 1 if strategy == "range" else DEFAULT_SHARDS
    ddl = _read_schema(schema)
    found = set(os.listdir(directory)) if Path(directory).exists() else None
    with contextlib.ExitStack() as undo:
        with ShardManager(num_shards=shards, db_dir=directory, strategy=chosen) as manager:
            if ddl:
                undo.callback(_remove, directory, found)
                manager.apply_schema(ddl)
        undo.pop_all()
    if as_json:
        write_document({"db_dir": directory, "shards": shards, "strategy": strategy})
    else:
        click.echo(f"{directory}: {shards} shards, {strategy} strategy")


def _remove(directory: str, found: set[str] | None) -> None:
    """Remove the files of a database that was just made; ``found`` is what the directory held before, if it was."""
    for name in set(os.listdir(directory)) - (found or set()):
        os.unlink(os.path.join(directory, name))
    if found is None:
        os.rmdir(directory)


def _strategy(
    name: str, slots: int | None, boundaries: tuple[str, ...], assignments: tuple[str, ...]
) -> ShardingStrategy:
    """Make the strategy, refusing options that belong to another one."""
    for option, value, owner in (
        ("--slots", slots, "hash"),
        ("--boundary", boundaries, "range"),
        ("--assign", assignments, "directory"),
    ):
        if value and owner != name:
            raise click.UsageError(f"{option} belongs to --strategy {owner}, not to {name}")
    if name == "range":
        if not boundaries:
            raise click.UsageError("--strategy range needs --boundary, once for each shard but the first")
        return RangeStrategy([parse_value(text) for text in boundaries])
    if name == "directory":
        pairs = (parse_pair(text, "--assign", "KEY=SHARD") for text in assignments)
        return DirectoryStrategy({parse_value(key): _shard(shard) for key, shard in pairs}, default=HashStrategy())
    return HashStrategy(slots=slots) if slots else HashStrategy()


def _shard(text: str) -> int:
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is not a shard number", param_hint="--assign")
    return int(text)


def _read_schema(file: str | None) -> str:
    if file is None:
        return ""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandFailure(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CommandFailure(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
