"""Time ranges: each quarter of a year on a shard of its own.

    python examples/time_ranges.py

ISO dates as text sort as the days do, so they can be the boundaries of a range strategy. A question about a span of
time opens only the shards that can hold it; the rows of a quarter that is no longer needed are deleted from one file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from shardlite import RangeStrategy, ShardManager

QUARTERS = ["2026-04-01", "2026-07-01", "2026-10-01"]  # shard 0 is all before, shard 3 all from October on
READINGS = """CREATE TABLE readings (
    day TEXT NOT NULL CHECK (date(day) IS day),
    sensor INTEGER NOT NULL,
    celsius REAL NOT NULL,
    PRIMARY KEY (day, sensor)
) WITHOUT ROWID"""


def readings() -> Iterator[dict[str, Any]]:
    """Yield a year of readings, three sensors a day."""
    for number in range(365):
        day = date(2026, 1, 1) + timedelta(days=number)
        for sensor in (1, 2, 3):
            yield {"day": day.isoformat(), "sensor": sensor, "celsius": sensor + number % 30}


def main() -> None:
    """Run in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        with ShardManager(num_shards=4, db_dir=directory, strategy=RangeStrategy(QUARTERS)) as manager:
            manager.create_table(READINGS, shard_key="day")
            print(f"{manager.insert_many('readings', readings())} readings:")
            for shard, info in manager.get_shard_info().items():
                print(f"  shard {shard}: {info['tables']['readings']}")

            spring = {"day": [(">=", "2026-03-15"), ("<", "2026-05-01")]}  # shards 0 and 1
            print("March to May:", manager.aggregate("readings", ["COUNT(*)", "AVG(celsius)"], spring))
            one_day = manager.select("readings", key="2026-08-01", order_by="sensor")  # shard 2 alone
            assert [row["sensor"] for row in one_day] == [1, 2, 3]
            warmest = manager.select("readings", {"day": (">=", "2026-10-01")}, order_by=["-celsius", "day"], limit=1)
            print("warmest since October:", warmest[0])

            gone = manager.delete("readings", {"day": ("<", "2026-04-01")})
            assert gone == 90 * 3
            assert manager.get_shard_info()[0]["tables"]["readings"] == 0
            print(f"the first quarter is deleted: {gone} readings")


if __name__ == "__main__":
    main()
