"""What SQL through ``execute`` costs beside sqlite3 on one plain file: scans, point statements, planning.

    pip install 'shardlite[bench]'
    python benchmarks/sql.py                          # a million rows, 4 shards
    python benchmarks/sql.py --sf 0.02 --rounds 3 --only scans,planning

Scans aggregate all of TPC-H's lineitem (a million rows at scale factor 0.17): goal, at least 1.6 times as fast as one
file on two cores. Point statements are of a repeated text: goal, at most 2.5 times sqlite3's time. Planning is the
first ``explain`` of a text that no cache has seen, for the 22 queries of TPC-H: goal, under 30 ms each.
Both sides run in turn, and the ratio of the medians counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpch import Sides, Source, databases, same_rows

from shardlite.errors import NotSupportedError

GROUPED = """SELECT l_suppkey % 50 AS bucket, count(*), avg(l_extendedprice), max(l_quantity)
FROM lineitem GROUP BY bucket ORDER BY bucket"""
POINTS = 2_000
"""Point statements in a round."""


def in_turn(left: Callable[[], object], right: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the medians of both, in seconds; a first round warms up."""
    pairs = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        left()
        between = time.perf_counter()
        right()
        if number:
            pairs.append((between - started, time.perf_counter() - between))
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def row(what: str, one_file: float, shards: float, goal: str, met: bool, unit: str = "ms") -> dict[str, Any]:
    return {"what": what, "one_file": one_file, "shards": shards, "goal": goal, "met": met, "unit": unit}


def scans(source: Source, sides: Sides, rounds: int) -> list[dict[str, Any]]:
    """Aggregates over all rows; the answers are compared before they are timed."""
    queries = source.queries()
    found = []
    (count,) = sides.one_file("SELECT count(*) FROM lineitem")[0]
    for name, sql in (("TPC-H 1", queries[1]), ("TPC-H 6", queries[6]), ("GROUP BY of 50 groups", GROUPED)):
        what = f"{name}, {count:,} rows"
        try:
            right = same_rows([tuple(r) for r in sides.shards(sql)], sides.one_file(sql))
        except NotSupportedError as refusal:
            found.append({"what": what, "goal": "", "met": False, "refused": str(refusal)})
            continue
        one, ours = in_turn(lambda sql=sql: sides.one_file(sql), lambda sql=sql: sides.shards(sql), rounds)
        met = right and one / ours >= 1.6
        found.append(row(what + ("" if right else ": WRONG"), one * 1e3, ours * 1e3, "1.6 times as fast", met))
    return found


def points(_source: Source, sides: Sides, rounds: int) -> list[dict[str, Any]]:
    """Statements that one key pins, each time with another key."""
    keys = [key for (key,) in sides.plain.execute("SELECT o_orderkey FROM orders ORDER BY random() LIMIT ?", (POINTS,))]
    sides.plain.execute("PRAGMA synchronous = NORMAL")
    found = []
    for name, sql, parameters in (
        ("SELECT by key", "SELECT * FROM orders WHERE o_orderkey = ?", lambda key: (key,)),
        (
            "join by key",
            "SELECT count(*), sum(l_quantity) FROM orders JOIN lineitem ON l_orderkey = o_orderkey"
            " WHERE o_orderkey = ?",
            lambda key: (key,),
        ),
        # The clerk stands in no answer of TPC-H, so that databases that are kept stay right.
        ("UPDATE by key", "UPDATE orders SET o_clerk = ? WHERE o_orderkey = ?", lambda key: (f"Clerk {key}", key)),
    ):
        execute, manager_execute = sides.plain.execute, sides.manager.execute

        def plain(sql: str = sql, parameters: Any = parameters, execute: Any = execute) -> None:
            for key in keys:
                execute(sql, parameters(key)).fetchall()

        def ours(sql: str = sql, parameters: Any = parameters, execute: Any = manager_execute) -> None:
            for key in keys:
                execute(sql, parameters(key)).fetchall()

        try:
            ours()
        except NotSupportedError as refusal:
            found.append({"what": name, "goal": "", "met": False, "refused": str(refusal)})
            continue
        one, other = in_turn(plain, ours, rounds)
        per = 1e6 / len(keys)
        found.append(row(name, one * per, other * per, "at most 2.5 times", other / one <= 2.5, "us"))
    return found


def planning(source: Source, sides: Sides, rounds: int) -> list[dict[str, Any]]:
    """Plan each TPC-H query anew: a comment makes it a text that no cache has seen."""
    figures = []
    sides.manager.explain("SELECT count(*) FROM lineitem, orders WHERE l_orderkey = o_orderkey")
    for number, query in source.queries().items():
        times = []
        try:
            for again in range(max(3, rounds)):
                started = time.perf_counter()
                sides.manager.explain(f"{query}\n-- {again} {os.getpid()}")
                times.append(time.perf_counter() - started)
        except NotSupportedError as refusal:
            figures.append({"what": f"planning Q{number}", "goal": "", "met": False, "refused": str(refusal)})
            continue
        ms = statistics.median(times) * 1e3
        figures.append(row(f"planning Q{number}", float("nan"), ms, "under 30 ms", ms < 30))
    return figures


PARTS = {"scans": scans, "points": points, "planning": planning}


def show(rows: list[dict[str, Any]]) -> None:
    width = max(len(one["what"]) for one in rows)
    print(f"{'':{width}}  {'one file':>11}  {'shards':>11}  {'ratio':>6}  goal")
    for one in rows:
        if "refused" in one:
            print(f"{one['what']:{width}}  refused: {one['refused']}")
            continue
        verdict = "met" if one["met"] else "MISSED"
        print(
            f"{one['what']:{width}}  {one['one_file']:8.1f} {one['unit']:2}  {one['shards']:8.1f} {one['unit']:2}  "
            f"{one['shards'] / one['one_file']:6.2f}  {one['goal']}: {verdict}"
        )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sf", type=float, default=0.17, help="TPC-H scale factor; 0.17 is a million rows (default)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help="scans,points,planning")
    parser.add_argument("--keep", type=Path, help="a directory for the databases, to use them again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with databases(options.keep, options.sf, analyze=True) as (source, sides):
        for name in options.only:
            rows += PARTS[name](source, sides, options.rounds)
    if options.json:
        print(json.dumps({"sqlite": sqlite3.sqlite_version, "cpus": os.cpu_count(), "rows": rows}, indent=2))
    else:
        show(rows)
    return 0 if all(one["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
