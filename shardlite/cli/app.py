"""The command tree, and how its failures end: one line on stderr and an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import NoReturn

import click

from shardlite.cli.console import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, complain
from shardlite.cli.create import init_command
from shardlite.cli.demo import demo_command
from shardlite.cli.querying import query_command
from shardlite.cli.shell import shell_command
from shardlite.cli.status import check_command, info_command, stats_command
from shardlite.cli.transfer import export_command, import_command
from shardlite.driver import DRIVER_NAME, SQLITE_VERSION, sqlite3
from shardlite.errors import WalResetBugWarning

_TRACEBACK_VARIABLE = "SHARDLITE_TRACEBACK"


class _Group(click.Group):
    """Lists the commands in the order in which one meets them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        number = version("shardlite")
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"shardlite {number}, SQLite {'.'.join(map(str, SQLITE_VERSION))} through {DRIVER_NAME}")
    ctx.exit()


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 all right, 1 the work failed, 2 wrong usage, 130 interrupted. "
    f"{_TRACEBACK_VARIABLE}=1 in the environment shows where in the program a failure arose.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """One logical SQLite database over many SQLite files."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)


for _command in (
    demo_command,
    init_command,
    import_command,
    export_command,
    query_command,
    shell_command,
    info_command,
    stats_command,
    check_command,
):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status. Raises nothing of its own."""
    try:
        with _quiet_warnings():
            status = cli.main(
                args=list(arguments) if arguments is not None else None,
                prog_name="shardlite",
                standalone_mode=False,
            )
        sys.stdout.flush()
        return status if isinstance(status, int) else EXIT_OK
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        _complain_usage(error)
        return EXIT_USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return EXIT_FAILURE
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_FAILURE
    except Exception as error:
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        complain(_describe(error))
        return EXIT_FAILURE


def _complain_usage(error: click.UsageError) -> None:
    where = error.ctx.command_path if error.ctx else "shardlite"
    complain(f"{error.format_message().rstrip('.')} (see '{where} --help')")


def _describe(error: Exception) -> str:
    """Return one line for a failure: its own words where it is foreseen, else its class too."""
    if isinstance(error, sqlite3.Error):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, UnicodeDecodeError):
        return f"the input is not UTF-8 text: {error.reason} at byte {error.start}"
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"internal error: {type(error).__name__}: {error}; {_TRACEBACK_VARIABLE}=1 shows where"


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Show warnings in one line each; `info` and `check` themselves say which SQLite this is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WalResetBugWarning)
        warnings.showwarning = lambda message, *_rest, **_named: complain(str(message), "warning")
        yield


def _drop_stdout() -> None:
    """Point stdout at nothing, so that flushing it at exit doesn't complain about the closed pipe again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    if isinstance(sys.stdin, TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8")
    sys.exit(run())
