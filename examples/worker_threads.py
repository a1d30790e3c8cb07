"""Worker threads on shards, ended cleanly by SIGTERM or Ctrl-C.

    python examples/worker_threads.py               # 400 events, 4 threads, then it ends
    python examples/worker_threads.py --events 0    # until it is told to end: kill PID

Threads share one manager. Each event is one statement that is pinned to its user's key, so threads that work on
different shards don't wait for each other, and those on the same shard queue in the order in which they came.

A handler may run between any two steps of the main thread, so it only sets a flag. The producer stops, the workers
finish what was accepted, and only then are the files closed: no accepted event is lost.
"""

from __future__ import annotations

import argparse
import queue
import signal
import tempfile
import threading
from types import FrameType

from shardlite import ShardManager
from shardlite.errors import OperationalError

COUNT = "INSERT INTO visits (user_id, pages) VALUES (?, 1) ON CONFLICT (user_id) DO UPDATE SET pages = pages + 1"
USERS = 50
WORKERS = 4

Events = queue.Queue[int | None]


def work(manager: ShardManager, events: Events, failures: list[str]) -> None:
    """Handle events until a None comes."""
    while (user := events.get()) is not None:
        try:
            manager.execute(COUNT, (user,))
        except OperationalError as error:  # locked for too long, or the disk is full
            failures.append(f"user {user}: {error}")


def produce(events: Events, limit: int, stop: threading.Event) -> int:
    """Put events in until there are ``limit`` (0: no limit) or it is time to stop; return how many."""
    accepted = 0
    while not stop.is_set() and (not limit or accepted < limit):
        try:
            events.put(1 + accepted * 7 % USERS, timeout=0.1)
        except queue.Full:
            continue  # the workers are behind: look at the flag again
        accepted += 1
    return accepted


def run(directory: str, limit: int) -> None:
    """Count the pages that users visit."""
    stop = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)

    with ShardManager(num_shards=4, db_dir=directory, durability="normal") as manager:
        manager.create_table("CREATE TABLE visits (user_id INTEGER PRIMARY KEY, pages INTEGER NOT NULL)")
        events: Events = queue.Queue(maxsize=100)
        failures: list[str] = []
        workers = [threading.Thread(target=work, args=(manager, events, failures)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        print("working", flush=True)
        try:
            accepted = produce(events, limit, stop)
        finally:
            for _ in workers:
                events.put(None)  # behind all that was accepted
            for worker in workers:
                worker.join()
        for failure in failures:
            print(failure)
        counted = manager.aggregate("visits", "TOTAL(pages)")["TOTAL(pages)"]
        print(f"{'stopped' if stop.is_set() else 'done'}: accepted {accepted}, counted {counted:.0f}", flush=True)
        assert counted == accepted - len(failures)


def main() -> None:
    """Run in a temporary directory."""
    parser = argparse.ArgumentParser(description="Worker threads on shards.")
    parser.add_argument("--events", type=int, default=400, help="end after so many; 0: never")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run(directory, options.events)


if __name__ == "__main__":
    main()
