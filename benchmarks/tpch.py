"""TPC-H over shards: are all 22 answers right, and what do they cost beside one plain file with the same indexes.

    pip install 'shardlite[bench]'
    python benchmarks/tpch.py                              # scale factor 0.1, 4 shards, 5 rounds
    python benchmarks/tpch.py --sf 0.01 --rounds 3 --only 1,6
    python benchmarks/tpch.py --keep /tmp/tpch             # leave the databases there, and use them next time

Data, queries and answers come from DuckDB's tpch extension at run time. The queries are put into SQLite's dialect by
the rules in TRANSLATIONS. Each round runs every query on both sides one after the other; the ratio of the medians
counts (shardlite's time / one file's: below 1 is faster). Goals: the geometric mean at most 0.8, none above 3.
Planning is timed apart: the first ``explain`` of a text that no cache has seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

from shardlite import ShardManager  # noqa: E402  # the warning of an old SQLite comes with the import
from shardlite.errors import NotSupportedError  # noqa: E402  # as above

SHARDS = 4
GOAL_MEAN, GOAL_WORST, GOAL_PLANNING_MS = 0.8, 3.0, 30.0
TOLERANCE = 1e-10
"""One file adds REALs one after the other, and a sum of n of them is off by up to n * 2**-53: 7e-11 of 600,000."""
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """One table: its definition, and where its rows go."""

    ddl: str
    options: dict[str, Any] = field(default_factory=dict)


TABLES = {
    "region": Table(
        "CREATE TABLE region (r_regionkey INTEGER PRIMARY KEY, r_name TEXT, r_comment TEXT)", {"kind": "reference"}
    ),
    "nation": Table(
        "CREATE TABLE nation (n_nationkey INTEGER PRIMARY KEY, n_name TEXT, n_regionkey INTEGER, n_comment TEXT)",
        {"kind": "reference"},
    ),
    "supplier": Table(
        """CREATE TABLE supplier (s_suppkey INTEGER PRIMARY KEY, s_name TEXT, s_address TEXT, s_nationkey INTEGER,
        s_phone TEXT, s_acctbal DECIMAL(15,2), s_comment TEXT)""",
        {"shard_key": "s_suppkey"},
    ),
    "customer": Table(
        """CREATE TABLE customer (c_custkey INTEGER PRIMARY KEY, c_name TEXT, c_address TEXT, c_nationkey INTEGER,
        c_phone TEXT, c_acctbal DECIMAL(15,2), c_mktsegment TEXT, c_comment TEXT)""",
        {"shard_key": "c_custkey"},
    ),
    "part": Table(
        """CREATE TABLE part (p_partkey INTEGER PRIMARY KEY, p_name TEXT, p_mfgr TEXT, p_brand TEXT, p_type TEXT,
        p_size INTEGER, p_container TEXT, p_retailprice DECIMAL(15,2), p_comment TEXT)""",
        {"shard_key": "p_partkey"},
    ),
    "partsupp": Table(
        """CREATE TABLE partsupp (ps_partkey INTEGER, ps_suppkey INTEGER, ps_availqty INTEGER,
        ps_supplycost DECIMAL(15,2), ps_comment TEXT, PRIMARY KEY (ps_partkey, ps_suppkey))""",
        {"shard_key": "ps_partkey", "colocate_with": "part"},
    ),
    "orders": Table(
        """CREATE TABLE orders (o_orderkey INTEGER PRIMARY KEY, o_custkey INTEGER, o_orderstatus TEXT,
        o_totalprice DECIMAL(15,2), o_orderdate DATE, o_orderpriority TEXT, o_clerk TEXT, o_shippriority INTEGER,
        o_comment TEXT)""",
        {"shard_key": "o_orderkey"},
    ),
    "lineitem": Table(
        """CREATE TABLE lineitem (l_orderkey INTEGER, l_partkey INTEGER, l_suppkey INTEGER, l_linenumber INTEGER,
        l_quantity DECIMAL(15,2), l_extendedprice DECIMAL(15,2), l_discount DECIMAL(15,2), l_tax DECIMAL(15,2),
        l_returnflag TEXT, l_linestatus TEXT, l_shipdate DATE, l_commitdate DATE, l_receiptdate DATE,
        l_shipinstruct TEXT, l_shipmode TEXT, l_comment TEXT, PRIMARY KEY (l_orderkey, l_linenumber))""",
        {"shard_key": "l_orderkey", "colocate_with": "orders"},
    ),
}
INDEXES = (
    "CREATE INDEX lineitem_part ON lineitem (l_partkey, l_suppkey)",
    "CREATE INDEX lineitem_supplier ON lineitem (l_suppkey)",
    "CREATE INDEX orders_customer ON orders (o_custkey)",
    "CREATE INDEX partsupp_supplier ON partsupp (ps_suppkey)",
    "CREATE INDEX customer_nation ON customer (c_nationkey)",
    "CREATE INDEX supplier_nation ON supplier (s_nationkey)",
)
"""The foreign keys: what anybody would index. The same on both sides."""

TRANSLATIONS: tuple[tuple[str, str], ...] = (
    (r"CAST\(('\d{4}-\d\d-\d\d') AS date\)", r"\1"),
    (r"\bdate ('\d{4}-\d\d-\d\d')", r"\1"),
    (r"extract\(year FROM (\w+)\)", r"CAST(substr(\1, 1, 4) AS INTEGER)"),
    (r"substring\((\w+) FROM (\d+) FOR (\d+)\)", r"substr(\1, \2, \3)"),
    # SQLite names no columns of a subquery outside of it: Q13 says them inside.
    (r"count\(o_orderkey\)", "count(o_orderkey) AS c_count"),
    (r"AS c_orders \(c_custkey,\s*c_count\)", "AS c_orders"),
)


def translate(query: str) -> str:
    """Return a query of DuckDB's in SQLite's dialect."""
    for pattern, replacement in TRANSLATIONS:
        query = re.sub(pattern, replacement, query)
    return query.strip().rstrip(";")


class Source:
    """DuckDB's TPC-H: rows, queries and answers."""

    def __init__(self, sf: float) -> None:
        try:
            import duckdb
        except ImportError:
            raise SystemExit("this needs DuckDB 1.0.0: pip install 'shardlite[bench]'") from None
        self.sf = sf
        self.conn = duckdb.connect()
        self.conn.execute("LOAD tpch")
        self._generated = False

    def rows(self, table: str) -> Iterator[list[Row]]:
        """Yield batches of a table's rows: decimals as REAL, dates as TEXT, in the order of the keys."""
        if not self._generated:
            self.conn.execute(f"CALL dbgen(sf={self.sf})")
            self._generated = True
        described = self.conn.execute(f"DESCRIBE {table}").fetchall()
        casts = []
        for name, declared, *_ in described:
            if declared.startswith("DECIMAL"):
                casts.append(f"CAST({name} AS DOUBLE)")
            elif declared == "DATE":
                casts.append(f"CAST({name} AS VARCHAR)")
            else:
                casts.append(name)
        order = "1, 4" if table == "lineitem" else "1, 2"
        found = self.conn.execute(f"SELECT {', '.join(casts)} FROM {table} ORDER BY {order}")
        while batch := found.fetchmany(20_000):
            yield batch

    def queries(self) -> dict[int, str]:
        found = self.conn.execute("SELECT query_nr, query FROM tpch_queries() ORDER BY 1").fetchall()
        return {number: translate(query) for number, query in found}

    def answers(self) -> dict[int, list[list[str]]]:
        """Return the stored answers as text; nothing for another scale factor than 0.01, 0.1 and 1."""
        sql = "SELECT query_nr, answer FROM tpch_answers() WHERE scale_factor = ?"
        found = self.conn.execute(sql, [self.sf]).fetchall()
        return {number: [line.split("|") for line in text.removesuffix("\n").split("\n")[1:]] for number, text in found}

    def close(self) -> None:
        self.conn.close()


# -- answers ---------------------------------------------------------------------------------------------------------


def same_value(value: Any, expected: str) -> bool:
    """Compare a value with the text of the answer: numbers to the digits that are open, everything else exactly."""
    if value is None:
        return expected in ("", "NULL")
    if isinstance(value, int | float):
        try:
            return math.isclose(value, float(expected), rel_tol=1e-9, abs_tol=1e-9)
        except ValueError:
            return False
    return str(value) == expected


def wrong_answer(rows: Sequence[Row], expected: Sequence[Sequence[str]]) -> str | None:
    """Return what is wrong with the rows, or None. All queries say an order, and the answers follow it."""
    if len(rows) != len(expected):
        return f"{len(rows)} rows, not {len(expected)}"
    for number, (row, texts) in enumerate(zip(rows, expected, strict=True)):
        if len(row) != len(texts) or not all(map(same_value, row, texts)):
            return f"row {number}: {tuple(row)} is not {tuple(texts)}"
    return None


def same_rows(left: Sequence[Row], right: Sequence[Row]) -> bool:
    """Compare both sides with types; REALs to what one file's own sums are worth."""
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            if type(x) is not type(y):
                return False
            if isinstance(x, float) and not math.isclose(x, y, rel_tol=TOLERANCE):
                return False
            if not isinstance(x, float) and x != y:
                return False
    return True


# -- databases -------------------------------------------------------------------------------------------------------


def prepare(directory: Path, sf: float, analyze: bool) -> Source:
    """Make the plain file and the shards of a scale factor, unless the directory has them."""
    source = Source(sf)
    mark = directory / "made.json"
    wanted = {"sf": sf, "shards": SHARDS, "analyze": analyze}
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return source
    if directory.is_dir() and any(directory.iterdir()) and not mark.is_file():
        raise SystemExit(f"{directory} is not empty and not ours: choose another directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started = time.perf_counter()
    plain = sqlite3.connect(directory / "one.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = OFF")
    with (
        contextlib.closing(plain),
        ShardManager(num_shards=SHARDS, db_dir=directory / "shards", durability="normal") as manager,
    ):
        for name, table in TABLES.items():
            plain.execute(table.ddl)
            manager.create_table(table.ddl, **table.options)
            columns = [row[1] for row in plain.execute(f"PRAGMA table_info({name})")]
            plain.execute("BEGIN")
            marks = ", ".join("?" * len(columns))
            for batch in source.rows(name):
                plain.executemany(f"INSERT INTO {name} VALUES ({marks})", batch)
            plain.execute("COMMIT")
            manager.insert_many(name, (dict(zip(columns, row, strict=True)) for b in source.rows(name) for row in b))
        for sql in (*INDEXES, *(["ANALYZE"] if analyze else [])):
            plain.execute(sql)
            manager.apply_schema(sql)
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    mark.write_text(json.dumps(wanted))
    print(f"made {directory} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return source


class Sides:
    """The one file and the shards, open."""

    def __init__(self, directory: Path) -> None:
        self.plain = sqlite3.connect(directory / "one.db", isolation_level=None)
        self.manager = ShardManager(db_dir=directory / "shards", durability="normal")

    def one_file(self, sql: str) -> list[Row]:
        return self.plain.execute(sql).fetchall()

    def shards(self, sql: str) -> list[Row]:
        return self.manager.execute(sql).fetchall()

    def close(self) -> None:
        self.plain.close()
        self.manager.shutdown()


def seconds(work: Callable[[str], object], sql: str) -> float:
    started = time.perf_counter()
    work(sql)
    return time.perf_counter() - started


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """What one query gave and took."""

    name: str
    verdict: str
    one_file_s: float = math.nan
    shards_s: float = math.nan
    planning_s: float = math.nan
    rows_moved: int | None = None
    plan: str = ""

    @property
    def ratio(self) -> float:
        return self.shards_s / self.one_file_s


def first_look(sides: Sides, name: str, sql: str, expected: list[list[str]] | None) -> Figure:
    """Plan a query that no cache has seen, run it on both sides, and compare all answers."""
    try:
        started = time.perf_counter()
        plan = sides.manager.explain(sql)
        planning_s = time.perf_counter() - started
        result = sides.manager.execute(sql)
        rows = [tuple(row) for row in result.fetchall()]
    except NotSupportedError as refusal:
        return Figure(name, f"refused: {refusal}")
    except Exception as error:
        return Figure(name, f"failed: {type(error).__name__}: {error}")
    moved = getattr(result, "rows_moved", None)
    figure = Figure(name, "right", planning_s=planning_s, rows_moved=moved, plan=str(plan.kind))
    trouble = wrong_answer(rows, expected) if expected is not None else None
    if trouble is not None:
        figure.verdict = f"wrong: {trouble}"
    elif not same_rows(rows, sides.one_file(sql)):
        figure.verdict = "wrong: another answer than the one file's"
    elif expected is None:
        figure.verdict = "as one file"
    return figure


def measure(sides: Sides, figures: Sequence[Figure], texts: dict[str, str], rounds: int, patience_s: float) -> None:
    """Time both sides, query by query in turn, and keep the medians."""
    found: dict[str, list[tuple[float, float]]] = {f.name: [] for f in figures if f.planning_s == f.planning_s}
    slow: dict[str, float] = {}
    for _ in range(rounds):
        for name, pairs in found.items():
            if slow.get(name, 0) < patience_s or not pairs:
                pairs.append((seconds(sides.one_file, texts[name]), seconds(sides.shards, texts[name])))
                slow[name] = slow.get(name, 0) + sum(pairs[-1])
    for figure in figures:
        if found.get(figure.name):
            figure.one_file_s = statistics.median(one for one, _ in found[figure.name])
            figure.shards_s = statistics.median(other for _, other in found[figure.name])


def show(figures: Sequence[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    print(f"{'':{width}}  {'one file':>10}  {'shards':>10}  {'ratio':>6}  {'planning':>9}  {'rows moved':>10}  plan")
    for f in figures:
        moved = "" if f.rows_moved is None else f"{f.rows_moved:,}"
        print(
            f"{f.name:{width}}  {f.one_file_s * 1e3:7.1f} ms  {f.shards_s * 1e3:7.1f} ms  {f.ratio:6.2f}  "
            f"{f.planning_s * 1e3:6.1f} ms  {moved:>10}  {f.plan}  {f.verdict}"
        )


def summary(figures: Sequence[Figure]) -> dict[str, Any]:
    ratios = [figure.ratio for figure in figures if figure.ratio == figure.ratio]
    right = sum(figure.verdict in ("right", "as one file") for figure in figures)
    return {
        "right": right,
        "of": len(figures),
        "geometric_mean": statistics.geometric_mean(ratios) if ratios else None,
        "worst": max(ratios, default=None),
        "slowest_planning_ms": max((f.planning_s * 1e3 for f in figures if f.planning_s == f.planning_s), default=None),
        "goals": {"geometric_mean": GOAL_MEAN, "worst": GOAL_WORST, "slowest_planning_ms": GOAL_PLANNING_MS},
    }


@contextlib.contextmanager
def databases(keep: Path | None, sf: float, analyze: bool) -> Iterator[tuple[Source, Sides]]:
    """Make or take the databases and open both sides; a temporary directory is removed at the end."""
    directory = keep if keep is not None else Path(tempfile.mkdtemp(prefix="shardlite-tpch-"))
    try:
        source = prepare(directory / f"sf{sf}" if keep is not None else directory / "data", sf, analyze)
        sides = Sides(directory / f"sf{sf}" if keep is not None else directory / "data")
        try:
            yield source, sides
        finally:
            sides.close()
            source.close()
    finally:
        if keep is None:
            shutil.rmtree(directory)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Check and measure; exit status 1 if an answer is wrong, missing or refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sf", type=float, default=0.1, help="scale factor (default 0.1)")
    parser.add_argument("--rounds", type=int, default=5, help="0: only check the answers")
    parser.add_argument("--only", type=numbers, help="queries, as 1,6")
    parser.add_argument("--keep", type=Path, help="a directory for the databases, to use them again")
    parser.add_argument("--no-analyze", action="store_true", help="leave out ANALYZE, on both sides")
    parser.add_argument("--patience", type=float, default=120, help="seconds in all for one query's rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with databases(options.keep, options.sf, not options.no_analyze) as (source, sides):
        queries, answers = source.queries(), source.answers()
        wanted = options.only or sorted(queries)
        # What only the first statement of a process pays: the import of the parser.
        sides.manager.explain("SELECT o_orderdate FROM orders WHERE o_orderkey = 1")
        texts = {f"Q{number}": queries[number] for number in wanted}
        figures = [first_look(sides, f"Q{n}", queries[n], answers.get(n) if answers else None) for n in wanted]
        measure(sides, figures, texts, options.rounds, options.patience)
    totals = summary(figures)
    if options.json:
        listed = [vars(figure) | {"ratio": figure.ratio} for figure in figures]
        print(json.dumps({"sqlite": sqlite3.sqlite_version, "cpus": os.cpu_count(), **totals, "queries": listed}))
    else:
        show(figures)
        print(totals)
    return 0 if totals["right"] == totals["of"] else 1


if __name__ == "__main__":
    sys.exit(main())
