"""``shardlite info``, ``stats`` and ``check``: what is where, and whether it is sound."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.markup import escape
from rich.table import Table as Grid

from shardlite.cli.console import EXIT_FAILURE, EXIT_OK, progress_bar, stdout_console
from shardlite.cli.facts import ShardFacts, TableFacts, shard_facts, strategy_facts, table_facts
from shardlite.cli.formats import write_document
from shardlite.cli.opening import opened, require_database
from shardlite.driver import DRIVER_NAME, SQLITE_VERSION, has_wal_reset_bug
from shardlite.manager import ShardManager
from shardlite.router.table import TableKind
from shardlite.topology import check_database

_BAR = 24


@click.command("info", short_help="Show the layout, the tables and where their rows are.")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info_command(directory: str, as_json: bool) -> None:
    """Show the layout of the database in DIR, its tables with kind, key and rows, and its shards.

    The skew of a sharded table is its fullest shard's rows over the mean of all shards: 1.00 is even.
    """
    with opened(directory) as manager:
        info = manager.get_shard_info()
        tables, shards = table_facts(manager, info), shard_facts(info)
        if as_json:
            write_document(_info_document(manager, directory, tables, shards))
            return
        layout = manager.database.layout
        facts = strategy_facts(manager)
        strategy = ", ".join([facts.pop("name"), *(f"{name} {_short(value)}" for name, value in facts.items())])
        click.echo(f"{directory}: {layout.num_shards} shards, strategy {strategy}, epoch {layout.epoch}")
        click.echo(f"database id {layout.database_id}; SQLite {_sqlite_version()}\n")
        _print_tables(tables)
        click.echo()
        _print_shards(shards)


def _info_document(
    manager: ShardManager, directory: str, tables: Sequence[TableFacts], shards: Sequence[ShardFacts]
) -> dict[str, Any]:
    layout = manager.database.layout
    return {
        "db_dir": directory,
        "database_id": layout.database_id,
        "num_shards": layout.num_shards,
        "strategy": strategy_facts(manager),
        "epoch": layout.epoch,
        "encoding": layout.encoding,
        "sqlite": {"version": ".".join(map(str, SQLITE_VERSION)), "driver": DRIVER_NAME},
        "tables": [table.to_dict() for table in tables],
        "shards": [shard.to_dict() for shard in shards],
    }


def show_tables(manager: ShardManager) -> None:
    """Print the tables with kind, key and rows."""
    _print_tables(table_facts(manager, manager.get_shard_info()))


def show_shards(manager: ShardManager) -> None:
    """Print the shards with file, size and rows."""
    _print_shards(shard_facts(manager.get_shard_info()))


def _print_tables(tables: Sequence[TableFacts]) -> None:
    if not tables:
        click.echo("No tables yet.")
        return
    grid = _grid("table", "placement", ">rows", ">skew", "rows on each shard")
    for table in tables:
        skew = "" if table.skew is None else f"{table.skew:.2f}"
        per_shard = "on every one" if table.kind is TableKind.REFERENCE else _numbers(table.rows_per_shard)
        grid.add_row(escape(table.name), escape(table.placement), f"{table.rows:,}", skew, per_shard)
    stdout_console().print(grid)


def _print_shards(shards: Sequence[ShardFacts]) -> None:
    grid = _grid(">shard", "file", ">size", ">rows", "")
    largest = max((shard.rows for shard in shards), default=0) or 1
    for shard in shards:
        bar = "█" * round(shard.rows / largest * _BAR)
        name = escape(os.path.basename(shard.path))
        grid.add_row(str(shard.number), name, _bytes(shard.size_bytes), f"{shard.rows:,}", bar)
    stdout_console().print(grid)


def _grid(*titles: str) -> Grid:
    """Make a plain grid; a title that begins with ``>`` is of a column of numbers."""
    grid = Grid(box=None, pad_edge=False, show_edge=False)
    for title in titles:
        right = title.startswith(">")
        grid.add_column(title.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return grid


def _numbers(values: Sequence[int]) -> str:
    """Write a few numbers out, of many the smallest and the largest."""
    if len(values) <= 8:
        return "  ".join(f"{value:,}" for value in values)
    return f"{min(values):,} to {max(values):,}"


def _bytes(size: int) -> str:
    """Write a size in the largest unit that leaves at least one digit before the point."""
    if size < 1_000:
        return f"{size} B"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sqlite_version() -> str:
    number = ".".join(map(str, SQLITE_VERSION))
    if not has_wal_reset_bug():
        return number
    return f"{number}, which has the WAL-reset bug (shardlite's own checkpoints avoid it; other programs may not)"


@click.command("stats", short_help="Show sizes, skew and the state of the connections.")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def stats_command(directory: str, as_json: bool) -> None:
    """Show figures of the database in DIR: bytes and rows of each shard, skew, connections and checkpoints.

    The connections are those of this command; an application reads its own with manager.get_shard_stats().
    """
    with opened(directory) as manager:
        stats = manager.get_shard_stats()
    if as_json:
        write_document({"db_dir": directory, **stats})
        return
    shards = shard_facts(stats["shards"])
    rows, size = stats["total_rows"], stats["total_size"]
    click.echo(f"{directory}: {len(shards)} shards, {rows:,} rows stored, {_bytes(size)}")
    sharded, sizes = list(stats["sharded_rows"].values()), [shard.size_bytes for shard in shards]
    click.echo(f"skew of sharded rows {_skew(sharded)}, of bytes {_skew(sizes)} (fullest shard over the mean)\n")
    _print_shards(shards)
    click.echo()
    _print_pools(stats["pools"], stats["wal_sizes"])


def _skew(values: Sequence[int]) -> str:
    total = sum(values)
    return f"{max(values) * len(values) / total:.2f}" if total else "none"


def _print_pools(pools: Mapping[int, Mapping[str, Any]], wal_sizes: Mapping[int, int]) -> None:
    """Print the connections of this command, shard by shard."""
    grid = _grid(">shard", ">open", ">in use", ">limit", ">handed out", ">opened", ">time-outs", ">waited", ">wal")
    for shard, pool in sorted(pools.items()):
        figures = ("pool_size", "active_connections", "max_connections", "total_acquired", "total_connections_created")
        counts = [f"{pool[name]:,}" for name in (*figures, "total_timeouts")]
        grid.add_row(str(shard), *counts, f"{pool['total_wait_s']:.3f} s", _bytes(wal_sizes[shard]))
    stdout_console().print(grid)


@click.command("check", short_help="Check files, rows, routing and constraints.")
@click.argument("directory", metavar="DIR")
@click.option("--repair", is_flag=True, help="Put right what can be put right without losing a row.")
@click.option("--quick", is_flag=True, help="Leave out what reads every row.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check_command(directory: str, repair: bool, quick: bool, as_json: bool) -> int:
    """Check the database in DIR: files sound, every row on the shard where the router looks for it, constraints kept.

    --repair moves misplaced rows, makes the copies of reference tables equal to shard 0's and raises counters. Rows
    of a reference table that only another copy holds are added to shard 0 first; where they can't be, the copy stays.

    Exit status 0 when nothing is wrong (any more), 1 when something is.
    """
    path = require_database(directory)
    with progress_bar("check") as progress:
        report = check_database(str(path), repair=repair, quick=quick, progress=progress)
    if as_json:
        write_document(report.to_dict())
    else:
        click.echo(str(report))
    return EXIT_OK if report.ok else EXIT_FAILURE
