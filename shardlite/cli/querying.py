"""``shardlite query``: one statement."""

from __future__ import annotations

import sys
from typing import Any

import click

from shardlite.cli.console import note
from shardlite.cli.formats import FORMATS, write_document, write_rows
from shardlite.cli.opening import opened
from shardlite.cli.values import parse_parameters


@click.command("query", short_help="Run one SQL statement.")
@click.argument("directory", metavar="DIR")
@click.argument("sql")
@click.option(
    "--param",
    "-p",
    "parameters",
    multiple=True,
    metavar="[NAME=]VALUE",
    help="A value for ? (in order) or for :NAME. Written as in SQL: 42, 1.5, null, x'00ff', 'text'; all else is text.",
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How rows are written."
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--explain", is_flag=True, help="Show the plan instead of running the statement.")
def query_command(
    directory: str, sql: str, parameters: tuple[str, ...], form: str, as_json: bool, explain: bool
) -> None:
    """Run one SQL statement on the database in DIR and write its rows. SQL - reads the statement from stdin.

    A NULL is an empty field in CSV, null in JSON and NULL in a table. A blob is {"$base64": "..."} in JSON and
    x'00ff' elsewhere. CSV, JSON and NDJSON are written as the rows arrive; a table shortens long values.
    For a statement without rows the number of changed rows is said on stderr.
    """
    form = "json" if as_json else form
    bound = parse_parameters(parameters)
    text = sys.stdin.read() if sql == "-" else sql
    if not text.strip():
        raise click.UsageError("SQL is empty: give one statement")
    with opened(directory) as manager:
        if explain:
            plan = manager.explain(text, bound)
            if form in ("json", "ndjson"):
                write_document({"kind": str(plan.kind), "shards": sorted(plan.shards), "plan": str(plan)})
            else:
                click.echo(str(plan))
            return
        with manager.execute(text, bound) as result:
            write_result(result, form)


def write_result(result: Any, form: str) -> None:
    """Write the rows of a Result to stdout, or to stderr how many rows a statement without rows changed."""
    if result.columns:
        write_rows(result, form, sys.stdout)
        sys.stdout.flush()
    elif result.rowcount >= 0:
        note(f"{result.rowcount:,} row{'' if result.rowcount == 1 else 's'} changed")
