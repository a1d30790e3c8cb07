"""Compare N shards with one plain file, statement by statement, over schemas and statements made from seeds.

    python tests/differential/differential.py --seeds 0-200 --shards 1,3,4,8 --time-limit 600
    python tests/differential/differential.py --seeds 7 --shards 3 --select-statements 1000
    python tests/differential/differential.py --replay tests/differential/fixtures/using.json

Prints what was run, what was refused and why, and for each difference a case that was made small: its JSON, kept as a
file by --save, replays it. Exit status 1 after a difference, 2 when more than --max-refused was refused.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from diff_case import loads
from diff_fuzz import Found, Fuzz, Tally
from diff_shrink import Shrinker, replay

from shardlite.errors import WalResetBugWarning


def numbers(text: str) -> list[int]:
    """Read ``3``, ``1,4`` or ``0-99``."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def fuzz_one(job: tuple[int, list[int], int, int, int]) -> tuple[int, Tally | str]:
    """Run one seed; an error of the test itself comes back as text."""
    warnings.simplefilter("ignore", WalResetBugWarning)
    seed, counts, selects, changes, variants = job
    try:
        return seed, Fuzz(seed, counts, selects=selects, changes=changes, variants=variants).run()
    except Exception:
        import traceback

        return seed, traceback.format_exc()


def outcomes(jobs: list[tuple[int, list[int], int, int, int]], processes: int) -> Iterator[tuple[int, Tally | str]]:
    if processes == 1:
        yield from map(fuzz_one, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(fuzz_one, jobs)


def describe(found: Found, shrink_s: float) -> str:
    """Return a difference as text: both answers, and the smallest case."""
    shrinker = Shrinker(found.case, found.difference, budget_s=shrink_s)
    case = shrinker.shrink() if shrink_s > 0 else found.case
    found.case, found.difference = case, shrinker.difference
    return f"seed {found.seed}: {found.difference}\n{case.dumps(shards=found.difference.num_shards)}"


def report(tally: Tally) -> str:
    """Return the table of what was run and refused."""
    rate = tally.statements / tally.seconds if tally.seconds else 0
    refused = sum(tally.refused.values())
    lines = [
        f"{tally.selects} SELECTs and {tally.changes} changes ({tally.texts} texts) in {tally.seconds:.1f} s "
        f"({rate:.0f} a second), "
        f"{tally.failures} fail on one file and on the shards alike, {refused} refused, {len(tally.found)} differences"
    ]
    if refused:
        lines.append(f"refused: {refused} by reason")
        lines += [f"  {count:6d}  {tally.examples[group]}" for group, count in tally.refused.most_common()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=numbers, default=numbers("0-19"), help="7, 0-99 or 1,5 (default 0-19)")
    parser.add_argument("--shards", type=numbers, default=[1, 3, 4, 8], help="shard counts (default 1,3,4,8)")
    parser.add_argument("--rotate", action="store_true", help="one shard count for each seed, in turn, instead of all")
    parser.add_argument("--select-statements", type=int, default=100, help="SELECTs of a schema (default 100)")
    parser.add_argument("--change-statements", type=int, default=25, help="writing statements of a schema (default 25)")
    parser.add_argument("--variants", type=int, default=2, help="runs of a text with other parameters (default 2)")
    parser.add_argument("--time-limit", type=float, default=0, help="seconds; 0 is none")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--max-refused", type=int, default=-1, help="fail above this; -1 (default): never")
    parser.add_argument("--max-differences", type=int, default=10, help="stop after so many (default 10)")
    parser.add_argument("--shrink", type=float, default=30, metavar="SECONDS", help="for each difference (default 30)")
    parser.add_argument("--save", type=Path, help="a directory for the cases that differ")
    parser.add_argument("--known", help="a pattern: differences whose text matches are counted, but not shown")
    parser.add_argument("--replay", type=Path, nargs="+", help="run stored cases instead")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore", WalResetBugWarning)
    if options.replay:
        return _replay(options.replay, options.shards)
    started = time.monotonic()
    jobs = []
    for place, seed in enumerate(options.seeds):
        counts = [options.shards[place % len(options.shards)]] if options.rotate else options.shards
        jobs.append((seed, counts, options.select_statements, options.change_statements, options.variants))
    total, broken, passed_over = Tally(), 0, 0
    for seed, tally in outcomes(jobs, options.processes):
        if isinstance(tally, str):
            broken += 1
            print(f"seed {seed} could not run:\n{tally}", flush=True)
        else:
            known = [f for f in tally.found if options.known and re.search(options.known, str(f.difference))]
            passed_over += len(known)
            tally.found = [found for found in tally.found if found not in known]
            for found in tally.found:
                print(describe(found, options.shrink), flush=True)
                if options.save is not None:
                    options.save.mkdir(parents=True, exist_ok=True)
                    text = found.case.dumps(what=str(found.difference).splitlines()[0], seed=seed)
                    (options.save / f"seed{seed}-{found.difference.num_shards}.json").write_text(text)
            total.add(tally)
        if len(total.found) >= options.max_differences:
            break
        if options.time_limit and time.monotonic() - started > options.time_limit:
            print(f"time is over after seed {seed}")
            break
    print(report(total))
    if passed_over:
        print(f"{passed_over} differences match --known")
    if total.found or broken:
        return 1
    return 2 if 0 <= options.max_refused < sum(total.refused.values()) else 0


def _replay(paths: list[Path], counts: list[int]) -> int:
    status = 0
    for path in paths:
        for count in counts:
            difference = replay(loads(path.read_text()), count)
            print(f"{path.name} at {count} shards: {'the same' if difference is None else difference}")
            status |= difference is not None
    return status


if __name__ == "__main__":
    sys.exit(main())
