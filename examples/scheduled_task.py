"""A scheduled task on shards: every so often, sum up what is new and drop what is old.

    python examples/scheduled_task.py                             # three runs, then it ends
    python examples/scheduled_task.py --interval 3600 --runs 0    # hourly, until Ctrl-C

The task may be interrupted anywhere and run again: it writes each day's total with an upsert, so that a second run
replaces the first one's figures instead of adding to them. And it sums up only days that it doesn't delete from, since
a deletion over several shards that is cut off may have happened on some of them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from datetime import date, timedelta

from shardlite import ShardManager

SALES = """CREATE TABLE sales (
    id INTEGER PRIMARY KEY,
    shop INTEGER NOT NULL,
    day TEXT NOT NULL,
    cents INTEGER NOT NULL
)"""
# Small, and read by everybody: whole, on the home shard.
TOTALS = "CREATE TABLE daily_totals (day TEXT PRIMARY KEY, sales INTEGER NOT NULL, cents INTEGER NOT NULL)"
KEEP_DAYS = 30
FIRST_DAY = date(2026, 1, 1)


def sell(manager: ShardManager, today: date) -> None:
    """Stand in for the shops: some sales of today."""
    rows = [{"shop": shop, "day": today.isoformat(), "cents": 100 * shop + today.day} for shop in range(1, 21)]
    manager.insert_many("sales", rows)


def task(manager: ShardManager, today: date) -> int:
    """Store the totals of the days that are kept, then delete the rows of older ones; return how many went."""
    oldest = (today - timedelta(days=KEEP_DAYS)).isoformat()
    for day in manager.aggregate("sales", ["COUNT(*)", "SUM(cents)"], {"day": (">=", oldest)}, group_by="day"):
        manager.upsert("daily_totals", {"day": day["day"], "sales": day["COUNT(*)"], "cents": day["SUM(cents)"]})
    return manager.delete("sales", {"day": ("<", oldest)})


def run(directory: str, interval_s: float, runs: int) -> None:
    """Run the task now and then again each ``interval_s`` seconds, ``runs`` times in all (0: for ever)."""
    stop = threading.Event()  # set it from another thread or a signal handler to end the waiting at once
    with ShardManager(num_shards=3, db_dir=directory) as manager:
        manager.create_table(SALES, shard_key="shop")
        manager.create_table(TOTALS, kind="single")
        today, done, due = FIRST_DAY, 0, time.monotonic()
        while not stop.is_set():
            sell(manager, today)
            deleted = task(manager, today)
            days = manager.count("daily_totals")
            print(f"{today}: {days} days summed up, {deleted} old rows deleted, {manager.count('sales')} kept")
            done += 1
            if done == runs:
                break
            today += timedelta(days=20)
            # From the time that was due, not from now: the task's own time doesn't add up.
            due = max(due + interval_s, time.monotonic())
            stop.wait(due - time.monotonic())
        totals = manager.aggregate("daily_totals", ["SUM(sales)", "SUM(cents)"])
        print(f"in all {totals['SUM(sales)']} sales, {totals['SUM(cents)'] / 100:.2f}")
        assert totals["SUM(sales)"] == 20 * done


def main() -> None:
    """Run in a temporary directory."""
    parser = argparse.ArgumentParser(description="A scheduled task on shards.")
    parser.add_argument("--interval", type=float, default=0.05, help="seconds")
    parser.add_argument("--runs", type=int, default=3, help="0: for ever")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        try:
            run(directory, options.interval, options.runs)
        except KeyboardInterrupt:
            print("interrupted")


if __name__ == "__main__":
    main()
