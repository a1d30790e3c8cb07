"""What all commands share: the two streams, progress bars, the shape of an error, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from shardlite.topology.report import JobProgress

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended (128 + SIGINT)."""

_PLAIN_WIDTH = 100


class CommandFailure(click.ClickException):
    """A command could not do its work; the message is shown in one line and the exit status is 1."""

    exit_code = EXIT_FAILURE


def one_line(text: str) -> str:
    """Return the text with every run of whitespace, line breaks too, as one space."""
    return " ".join(text.split())


def complain(text: str, kind: str = "error") -> None:
    """Write one line about a failure to stderr."""
    click.echo(f"shardlite: {kind}: {one_line(text)}", err=True)


def note(text: str) -> None:
    """Write one line that is not a result, such as how many rows changed, to stderr."""
    click.echo(text, err=True)


def stdout_console() -> Console:
    """Return the console for what people read; made anew per command, so that a redirected stdout is honoured.

    Where stdout is no terminal, the width is fixed and there is no colour.
    """
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    if not sys.stdout.isatty():
        console = Console(file=sys.stdout, highlight=False, width=_PLAIN_WIDTH, color_system=None)
    return console


@contextmanager
def progress_bar(job: str) -> Iterator[Callable[[JobProgress], None] | None]:
    """Show a bar on stderr while the block runs; yields the callback that moves it.

    Yields None, and shows nothing, where stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(job, total=None)
        shown = [""]

        def move(step: JobProgress) -> None:
            what = f"{step.phase.value} {step.table}".strip()
            fresh = what != shown[0]
            shown[0] = what
            # A new step shows at once: it may be over before the bar's next turn.
            progress.update(
                task, description=f"{job}: {what}", completed=step.done, total=step.total or None, refresh=fresh
            )

        yield move
