"""``shardlite import`` and ``shardlite export``: from one ordinary file to shards and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid

from shardlite.cli.console import CommandFailure, complain, progress_bar, stdout_console
from shardlite.cli.formats import write_document
from shardlite.cli.opening import require_database
from shardlite.cli.values import parse_keys, parse_pair
from shardlite.config import DEFAULT_SHARDS, MAX_SHARDS, Constraints
from shardlite.topology import export_sqlite, import_delimited, import_sqlite, plan_import
from shardlite.topology.report import ImportPlan, ImportReport
from shardlite.topology.source import open_source

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}


@click.command("import", short_help="Bring an SQLite file, CSV or NDJSON into a directory of shards.")
@click.argument("source")
@click.argument("directory", metavar="DIR")
@click.option(
    "--shards",
    type=click.IntRange(1, MAX_SHARDS),
    metavar="N",
    help=f"How many files.  [default: {DEFAULT_SHARDS}]",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="TABLE.COLUMN",
    help="Shard a table by this column, not by the one that would be chosen. CSV, NDJSON: COLUMN alone will do.",
)
@click.option("--reference", multiple=True, metavar="TABLE", help="Keep a full copy of the table on every shard.")
@click.option("--single", multiple=True, metavar="TABLE", help="Keep the whole table on the home shard.")
@click.option("--strict", is_flag=True, help="Refuse a key under which a constraint could not be enforced.")
@click.option("--dry-run", is_flag=True, help="Say what would be chosen and why; write nothing.")
@click.option("--format", "form", type=click.Choice(["sqlite", "csv", "ndjson"]), help="What SOURCE is, if not plain.")
@click.option("--table", metavar="NAME", help="CSV, NDJSON: the table's name; else the file's name without suffix.")
@click.option("--type", "types", multiple=True, metavar="COLUMN=TYPE", help="CSV, NDJSON: a column's type.")
@click.option("--delimiter", metavar="CHAR", help="CSV: the delimiter; found out if not given.")
@click.option("--encoding", metavar="NAME", help="CSV, NDJSON: the text's encoding, such as latin-1.  [default: utf-8]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def import_command(
    source: str,
    directory: str,
    shards: int | None,
    keys: tuple[str, ...],
    reference: tuple[str, ...],
    single: tuple[str, ...],
    strict: bool,
    dry_run: bool,
    form: str | None,
    table: str | None,
    types: tuple[str, ...],
    delimiter: str | None,
    encoding: str | None,
    as_json: bool,
) -> None:
    """Bring SOURCE, an existing SQLite file, CSV or NDJSON, into the directory DIR of shards.

    Of an SQLite file all tables, indexes, views and triggers come along. For each table a kind and a shard key are
    chosen: tables that others refer to are sharded by their primary key, the tables that refer to them by the foreign
    key, so that what belongs together shares a shard; small tables that many refer to are copied to every shard; what
    can't be split stays whole. The report says what was chosen and why. Row counts and content are compared with the
    source at the end.

    A CSV or NDJSON file becomes one table, of a new directory or one more of an existing database.

    The source is only read. An import that was interrupted is simply run again.
    """
    form = form or _form_of(source)
    constraints: Constraints = "strict" if strict else "checked"
    if form == "sqlite":
        _refuse("an SQLite file", {"--table": table, "--type": types, "--delimiter": delimiter, "--encoding": encoding})
        choices = Choices(shards or DEFAULT_SHARDS, parse_keys(keys), reference, single, constraints)
        if dry_run:
            _show_plan(_plan(source, choices), as_json)
            return
        report = _import_sqlite(source, directory, choices)
    else:
        _refuse(f"a {form.upper()} file", {"--reference": reference, "--single": single, "--dry-run": dry_run})
        if shards is not None and (Path(directory) / "catalog.db").exists():
            raise click.UsageError(f"{directory} has its shards already: leave --shards out")
        with progress_bar("import") as progress:
            report = import_delimited(
                source,
                directory,
                table=table,
                format="ndjson" if form == "ndjson" else "csv",
                num_shards=shards or DEFAULT_SHARDS,
                key=_only_key(keys),
                types=dict(parse_pair(text, "--type", "COLUMN=TYPE") for text in types),
                delimiter=delimiter,
                encoding=encoding or "utf-8-sig",
                constraints=constraints,
                progress=progress,
            )
    if as_json:
        write_document(report.to_dict())
    else:
        show_report(report)


@dataclass(frozen=True, slots=True)
class Choices:
    """How the user wants an SQLite file to be split, where not as it would be chosen."""

    num_shards: int
    keys: Mapping[str, str | Sequence[str]]
    reference: Sequence[str]
    single: Sequence[str]
    constraints: Constraints


def _plan(source: str, choices: Choices) -> ImportPlan:
    return plan_import(
        source,
        num_shards=choices.num_shards,
        keys=choices.keys,
        reference=choices.reference,
        single=choices.single,
        constraints=choices.constraints,
    )


def _import_sqlite(source: str, directory: str, choices: Choices) -> ImportReport:
    with progress_bar("import") as progress:
        return import_sqlite(
            source,
            directory,
            num_shards=choices.num_shards,
            keys=choices.keys,
            reference=choices.reference,
            single=choices.single,
            constraints=choices.constraints,
            progress=progress,
        )


def _form_of(source: str) -> str:
    """Tell what the source is: by its suffix, else by its first bytes."""
    path = Path(source)
    if not path.exists():
        raise CommandFailure(f"{source}: no such file")
    if path.is_dir():
        raise CommandFailure(f"{source} is a directory: name an SQLite, CSV or NDJSON file")
    if form := _SUFFIXES.get(path.suffix.lower()):
        return form
    with open_source(source):  # says what is wrong with it: locked, truncated, encrypted, no permission, text
        return "sqlite"


def _refuse(where: str, options: Mapping[str, object]) -> None:
    """Raise a usage error for the first option that was given and has no meaning for such a source."""
    for name, value in options.items():
        if value:
            raise click.UsageError(f"{name} has no meaning for {where}")


def _only_key(keys: tuple[str, ...]) -> str | None:
    """Return the one key column of a text file, with or without a table before it."""
    if len(keys) > 1:
        raise click.UsageError("a CSV or NDJSON file makes one table: give --key once")
    return keys[0].rpartition(".")[2] if keys else None


def _show_plan(plan: ImportPlan, as_json: bool = False) -> None:
    """Print the choices of an import, and what no shard will enforce."""
    if as_json:
        write_document(plan.to_dict())
        return
    stdout_console().print(choices_grid(plan))
    show_unenforced(plan)
    for warning in plan.warnings:
        complain(warning, "warning")


def choices_grid(plan: ImportPlan) -> Grid:
    """Return the kind and key of each table, and the reason, as a grid."""
    grid = Grid(box=None, pad_edge=False, show_edge=False)
    grid.add_column("table", no_wrap=True, overflow="fold")
    grid.add_column("rows", justify="right", no_wrap=True)
    grid.add_column("placement", no_wrap=True, overflow="fold")
    grid.add_column("why", overflow="fold")
    for choice in plan.tables:
        grid.add_row(escape(choice.table), f"{choice.rows:,}", escape(choice.placement), escape(choice.reason))
    return grid


def show_unenforced(plan: ImportPlan) -> None:
    """Print the constraints that are only checked, each with the advice."""
    console = stdout_console()
    concerned = [choice for choice in plan.tables if choice.unenforced or choice.advice]
    if not concerned:
        return
    console.print("\nNot enforced when rows are written, since no single shard can see it ('check' looks for it):")
    for choice in concerned:
        for text in choice.unenforced:
            console.print(Padding(f"{escape(choice.table)}: {escape(text)}", (0, 0, 0, 2)))
        for text in choice.advice:
            console.print(Padding(f"-> {escape(text)}", (0, 0, 0, 4)))


def show_report(report: ImportReport) -> None:
    """Print what an import did: the choices, rows per shard, and the verdict."""
    console = stdout_console()
    _show_plan(report.plan)
    console.print()
    grid = Grid(box=None, pad_edge=False, show_edge=False)
    grid.add_column("table", no_wrap=True)
    grid.add_column("rows on each shard", overflow="fold")
    for table in report.tables:
        per_shard = "  ".join(f"{rows:,}" for rows in table.rows_per_shard)
        grid.add_row(escape(table.table), per_shard)
    console.print(grid)
    for warning in report.warnings:
        if warning not in report.plan.warnings:  # those have been said with the choices
            complain(warning, "warning")
    console.print(
        f"\n{report.rows:,} rows of {len(report.tables)} tables in {report.seconds:.1f} s; "
        f"counts and content verified against {escape(report.source)}."
    )


@click.command("export", short_help="Write all shards back to one ordinary SQLite file.")
@click.argument("directory", metavar="DIR")
@click.argument("file", metavar="FILE")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export_command(directory: str, file: str, overwrite: bool, as_json: bool) -> None:
    """Write the database in DIR to FILE, one ordinary SQLite file.

    Tables, indexes, views and triggers are as they were written; the content is compared with the shards at the end.
    """
    path = require_database(directory)
    with progress_bar("export") as progress:
        report = export_sqlite(str(path), file, overwrite=overwrite, progress=progress)
    if as_json:
        write_document(report.to_dict())
    else:
        click.echo(str(report))
