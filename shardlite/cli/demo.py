"""``shardlite demo``: the main job from end to end on the sample that ships, each step said and its result checked."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from shardlite.cli.console import CommandFailure, one_line, progress_bar, stdout_console
from shardlite.cli.sample import sample_path
from shardlite.cli.transfer import choices_grid
from shardlite.driver import sqlite3
from shardlite.errors import IntegrityError, LayoutMismatchError, ShardUnavailableError
from shardlite.manager import ShardManager
from shardlite.topology import check_database, export_sqlite, import_sqlite

_SHARDS = 4
_CUSTOMER = 42
_BAR = 36


@click.command("demo", short_help="Show the main job, end to end, on the sample that ships.")
@click.option("--keep", metavar="DIR", help="Leave the shards in DIR, to look at them afterwards.")
def demo_command(keep: str | None) -> None:
    """Import a sample shop of 50,000 rows to four shards, read and write it, break it, check it, and export it again.

    All of it happens in a temporary directory, which is gone afterwards, also when the demo is interrupted. Each step
    compares its result with the one-file original; a difference ends the demo with exit status 1.
    """
    if keep is not None and Path(keep).exists():
        raise CommandFailure(f"{keep} exists already: name a directory that the demo may make")
    source = sample_path()
    with _workspace() as workspace:
        demo = Demo(source, workspace, stdout_console())
        demo.run()
        if keep is not None:
            shutil.copytree(demo.shop, keep)
    demo.console.print(f"[dim]Removed {escape(str(workspace))}.[/dim]")
    if keep is not None:
        demo.console.print(f"The shards are in {escape(keep)}: try [bold]shardlite shell {escape(keep)}[/bold]")


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """Make a temporary directory for the block and remove it however the block ends, Ctrl-C and SIGTERM included."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _signals(dict.fromkeys(("SIGTERM", "SIGHUP", "SIGBREAK"), interrupt)):
        workspace = Path(tempfile.mkdtemp(prefix="shardlite-demo-"))
        try:
            yield workspace
        finally:
            # A second Ctrl-C must not leave half of it behind.
            with _signals(dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"), signal.SIG_IGN)):
                shutil.rmtree(workspace)


@contextlib.contextmanager
def _signals(handlers: dict[str, Any]) -> Iterator[None]:
    """Set the handlers of those signals that the platform has, for the block; none outside the main thread.

    A signal that is ignored stays so: that is how nohup says that this process shall go on.
    """
    former: list[tuple[int, Any]] = []
    try:
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Only the main thread may set handlers; another one (a test's) is not sent signals either.
                with contextlib.suppress(ValueError):
                    former.append((number, signal.signal(number, handler)))
        yield
    finally:
        for number, handler in former:
            signal.signal(number, handler)


@dataclass
class Demo:
    """The steps of the demo. Each prints what it shows and raises CommandFailure when the result is not as promised."""

    source: Path
    workspace: Path
    console: Console
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def shop(self) -> Path:
        """The directory of shards."""
        return self.workspace / "shop"

    def run(self) -> None:
        """Take all steps, in their order."""
        self.show_source()
        self.import_source()
        with ShardManager(db_dir=str(self.shop)) as manager:
            self.read_one_customer(manager)
            self.ask_all_shards(manager)
            self.aggregate(manager)
            self.write(manager)
            self.fail_and_roll_back(manager)
        self.open_wrongly()
        self.lose_a_shard()
        self.check()
        self.export()
        seconds = time.monotonic() - self.started
        self.console.print(f"\n[bold green]All {self.step} steps went as promised[/bold green], in {seconds:.1f} s.")

    def show_source(self) -> None:
        self.title("The source: one ordinary SQLite file")
        with _plain(self.source) as conn:
            listing = "SELECT type, count(*) FROM sqlite_schema WHERE sql IS NOT NULL GROUP BY type ORDER BY 2 DESC"
            objects = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in conn.execute(listing))
            rows = sum(_count(conn, table) for table in _tables(conn))
        megabytes = self.source.stat().st_size / 1e6
        self.say(f"{self.source.name}, the orders of a small shop: {rows:,} rows in {megabytes:.1f} MB; {objects}.")

    def import_source(self) -> None:
        self.title(f"Import: split over {_SHARDS} files")
        self.command(f"shardlite import {self.source.name} ./shop --shards {_SHARDS}")
        with progress_bar("import") as progress:
            report = import_sqlite(str(self.source), str(self.shop), num_shards=_SHARDS, progress=progress)
        self.say("For each table a kind and a key were chosen:")
        self.console.print(choices_grid(report.plan))
        open_constraints = [(c.table, text) for c in report.plan.tables for text in c.unenforced]
        if open_constraints:
            self.say("What no single shard can see is recorded, and looked at by 'shardlite check':")
            for table, text in open_constraints:
                self.indented(f"{table}: {text}")
        self.say(f"{report.rows:,} rows in {report.seconds:.1f} s; counts and content verified. Where they went:")
        per_shard = {table.table: table.rows_per_shard for table in report.tables}
        self.bars({name: per_shard[name] for name in ("customers", "orders", "order_items")})

    def read_one_customer(self, manager: ShardManager) -> None:
        self.title("One customer lives on one shard")
        shard = manager.shard_for("customers", _CUSTOMER)
        customer = manager.get("customers", _CUSTOMER)
        self.code(f"manager.get('customers', {_CUSTOMER})")
        self.expect(customer, self.original("SELECT * FROM customers WHERE id = ?", _CUSTOMER)[0], "the customer")
        self.say(f"{customer!r}")
        sql = (
            "SELECT o.id, o.placed_at, o.status, p.name, i.quantity FROM orders o "
            "JOIN order_items i ON i.customer_id = o.customer_id AND i.order_id = o.id "
            "JOIN products p ON p.id = i.product_id WHERE o.customer_id = ? ORDER BY o.id, i.line"
        )
        plan = manager.explain(sql, (_CUSTOMER,))
        rows = manager.execute(sql, (_CUSTOMER,)).dicts()
        self.expect(rows, self.original(sql, _CUSTOMER), "the orders of one customer")
        self.code("manager.execute('SELECT ... FROM orders JOIN order_items JOIN products WHERE customer_id = ?')")
        self.say(
            f"{len(rows)} lines, from shard {shard} alone: orders and items share the customer's shard, and products "
            "are on every one."
        )
        self.plan(plan)

    def ask_all_shards(self, manager: ShardManager) -> None:
        self.title("A question that concerns all shards fans out")
        sql = (
            "SELECT c.name, c.country, o.id AS order_id FROM customers c JOIN orders o ON o.customer_id = c.id "
            "WHERE o.status = 'open' AND c.country = 'JP'"
        )
        self.code(sql)
        plan = manager.explain(sql)
        rows = manager.execute(sql).dicts()
        self.expect(_sorted(rows), _sorted(self.original(sql)), "the open orders from Japan")
        self.say(f"{len(rows)} rows, the same as the one file gives; each shard joined its own rows.")
        self.plan(plan)

    def aggregate(self, manager: ShardManager) -> None:
        self.title("Aggregates are put together, not averaged over averages")
        expressions = ["COUNT(*)", "SUM(amount_cents)", "AVG(amount_cents)", "MAX(amount_cents)"]
        self.code(f"manager.aggregate('payments', {expressions}, group_by='method')")
        over_shards = manager.aggregate("payments", expressions, group_by="method")
        one_file = self.original(f"SELECT method, {', '.join(expressions)} FROM payments GROUP BY method")
        self.expect(_sorted(over_shards), _sorted(one_file), "the aggregates")
        grid = Grid(box=None, pad_edge=False)
        for name in ("method", *expressions):
            grid.add_column(name, justify="left" if name == "method" else "right")
        for row in _sorted(over_shards):
            grid.add_row(*(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row))
        self.console.print(grid)
        self.say("Equal to the one-file answer, to the last digit.")

    def write(self, manager: ShardManager) -> None:
        self.title("Writes go where the key says; ids are unique over all shards")
        self.code("order = manager.insert('orders', {'customer_id': 42, 'placed_at': ..., ...})")
        order = manager.insert(
            "orders",
            {"customer_id": _CUSTOMER, "placed_at": "2024-12-24 18:00:00", "changed_at": "2024-12-24 18:00:00"},
        )
        self.expect(len(manager.select("orders", {"id": order})), 1, "the rows with the new order's id")
        paid = {"status": "paid", "changed_at": "2024-12-24 18:05:00"}
        changed = manager.update("orders", paid, where={"customer_id": _CUSTOMER, "id": order})
        self.expect(changed, 1, "the rows changed")
        events = manager.select("order_events", {"customer_id": _CUSTOMER, "order_id": order})
        self.expect([event["status"] for event in events], ["paid"], "what the trigger wrote")
        self.say(
            f"Order {order} is on shard {manager.shard_for('orders', _CUSTOMER)}; paying it fired the trigger there."
        )
        manager.delete("orders", where={"customer_id": _CUSTOMER, "id": order})
        left = manager.count("order_events", {"customer_id": _CUSTOMER, "order_id": order})
        self.expect(left, 0, "the events left after ON DELETE CASCADE")
        self.say("Deleted again, its events with it (ON DELETE CASCADE).")

    def fail_and_roll_back(self, manager: ShardManager) -> None:
        self.title("A write over several shards that fails leaves nothing behind")
        first, second = self.two_customers_apart(manager)
        notes = [
            {"customer_id": first, "body": "on one shard"},
            {"customer_id": second, "body": "on another"},
            {"customer_id": 999_999, "body": "a customer who does not exist"},
        ]
        self.code("manager.insert_many('notes', [two notes on two shards, and one for a customer who does not exist])")
        before = manager.count("notes")
        self.refused(IntegrityError, lambda: manager.insert_many("notes", notes))
        self.expect(manager.count("notes"), before, "the number of notes afterwards")
        shards = sorted({manager.shard_for("notes", first), manager.shard_for("notes", second)})
        self.say(f"{before} notes before and after: shards {shards[0]} and {shards[1]} rolled back together.")

    def open_wrongly(self) -> None:
        self.title("Opened with the wrong number of shards: refused, not silently half empty")
        self.code("ShardManager(num_shards=6, db_dir='./shop')")
        self.refused(LayoutMismatchError, lambda: self.touch(num_shards=6))

    def lose_a_shard(self) -> None:
        self.title("A shard file is missing: named, not skipped")
        file, aside = self.shop / "shard_2.db", self.workspace / "shard_2.aside"
        self.command("mv ./shop/shard_2.db elsewhere")
        # Nothing is open here: the file may be moved by other means than SQLite.
        file.rename(aside)
        try:
            self.refused(ShardUnavailableError, self.touch)
        finally:
            file.unlink(missing_ok=True)
            aside.rename(file)
        self.say("The file is put back.")

    def check(self) -> None:
        self.title("Check: every row where the router says, every file sound")
        self.command("shardlite check ./shop")
        with progress_bar("check") as progress:
            report = check_database(str(self.shop), progress=progress)
        if not report.ok:
            raise CommandFailure(f"check found: {report}")
        self.say(f"{report.rows:,} rows of {report.tables} tables on {report.shards} shards: sound.")

    def export(self) -> None:
        self.title("Export: back to one ordinary file")
        target = self.workspace / "again.db"
        self.command("shardlite export ./shop again.db")
        with progress_bar("export") as progress:
            export_sqlite(str(self.shop), str(target), progress=progress)
        with _plain(self.source) as before, _plain(target) as after:
            self.expect(_schema(after), _schema(before), "the schema")
            for table in _tables(before):
                self.expect(_content(after, table), _content(before, table), f"the content of {table}")
            rows = sum(_count(after, table) for table in _tables(after))
        self.say(f"{rows:,} rows, compared value by value with {self.source.name}: identical, schema and content.")

    def touch(self, **options: Any) -> None:
        """Open the shop and read from every shard."""
        with ShardManager(db_dir=str(self.shop), **options) as manager:
            manager.count("customers")

    def two_customers_apart(self, manager: ShardManager) -> tuple[int, int]:
        """Return two customers on different shards."""
        home = manager.shard_for("customers", 1)
        return 1, next(n for n in range(2, 3_000) if manager.shard_for("customers", n) != home)

    def original(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        """Return the answer of the one-file original."""
        with _plain(self.source) as conn:
            cursor = conn.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def expect(self, found: object, promised: object, what: str) -> None:
        """Raise CommandFailure unless both are equal."""
        if found != promised:
            raise CommandFailure(f"{what}: {_short(found)} over the shards, but {_short(promised)} was to be expected")

    def refused(self, expected: type[Exception], action: Callable[[], object]) -> None:
        """Run what must be refused, and show the error. Raises CommandFailure when it is not refused."""
        try:
            action()
        except expected as error:
            self.refusal(error)
            return
        raise CommandFailure(f"this should have been refused with {expected.__name__}, but was not")

    def title(self, text: str) -> None:
        self.step += 1
        self.console.print(f"\n[bold cyan]{self.step}. {escape(text)}[/bold cyan]")

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    def command(self, text: str) -> None:
        self.console.print(f"[bold]$ {escape(text)}[/bold]")

    def code(self, text: str) -> None:
        self.console.print(f"[bold]> {escape(text)}[/bold]")

    def plan(self, plan: object) -> None:
        for line in str(plan).splitlines():
            branch = line[:3] if line[:1] in "├└│" else ""
            self.indented(line[len(branch) :], branch, style="dim")

    def refusal(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {one_line(str(error))}".replace(str(self.workspace), ".")
        self.indented(text, style="yellow")

    def indented(self, text: str, lead: str = "", style: str = "") -> None:
        """Print a text two columns in, its further lines below its first one."""
        grid = Grid(box=None, pad_edge=False, show_edge=False, show_header=False, padding=0)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(f"  {lead}", style), Text(text, style))
        self.console.print(grid)

    def bars(self, tables: dict[str, Sequence[int]]) -> None:
        """Print one bar per shard for each table."""
        width = max(len(name) for name in tables)
        for name, per_shard in tables.items():
            largest = max(per_shard) or 1
            for shard, rows in enumerate(per_shard):
                bar = "█" * round(rows / largest * _BAR)
                label = name if shard == 0 else ""
                self.console.print(f"  {label:<{width}}  shard {shard}  [green]{bar:<{_BAR}}[/green] {rows:>7,}")


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[sqlite3.Connection]:
    """Open one ordinary file, read-only."""
    conn = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        yield conn
    finally:
        conn.close()


def _tables(conn: sqlite3.Connection) -> list[str]:
    listing = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    return [name for (name,) in conn.execute(listing)]


def _count(conn: sqlite3.Connection, table: str) -> int:
    return int(conn.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])


def _schema(conn: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY 1, 2").fetchall()


def _content(conn: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """Return a table's rows, in an order that doesn't depend on where they are stored."""
    return sorted(conn.execute(f'SELECT * FROM "{table}"').fetchall(), key=repr)


def _sorted(rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    return sorted((tuple(row.values()) for row in rows), key=repr)


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else {"index": "indexes"}.get(kind, f"{kind}s")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
