"""Answers that must agree with each other, whatever they are: partitions of WHERE (TLP), and no optimisation (NoREC).

TLP: each row is in exactly one of ``WHERE p``, ``WHERE NOT p`` and ``WHERE p IS NULL`` (Rigger and Su, OOPSLA 2020).
NoREC: as many rows pass ``WHERE p`` as have a true p when p is only computed (Rigger and Su, ESEC/FSE 2020).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from random import Random

import pytest
from diff_from import Skip
from diff_fuzz import Fuzz
from diff_rare import RareSelects
from diff_world import World

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError

SHARD_COUNTS = (3, 1, 8, 4)
SHORT_S = float(os.environ.get("SHARDLITE_METAMORPHIC_SECONDS", "4"))


class Refused(Exception):
    """One of the queries isn't answered: nothing to compare."""


def rows(world: World, sql: str) -> Counter[str]:
    try:
        return Counter(map(repr, map(tuple, world.manager.execute(sql))))
    except NotSupportedError as refusal:
        raise Refused(str(refusal)) from refusal


def partitions(world: World, text: str, outputs: str, predicate: str) -> tuple[Counter[str], Counter[str]]:
    """Return all rows, and those of the three partitions together."""
    whole = rows(world, f"SELECT {outputs} FROM {text}")
    parts: Counter[str] = Counter()
    for condition in (f"({predicate})", f"NOT ({predicate})", f"({predicate}) IS NULL"):
        parts += rows(world, f"SELECT {outputs} FROM {text} WHERE {condition}")
    return whole, parts


def aggregates(world: World, text: str, column: str, predicate: str) -> tuple[object, object]:
    """Return count, min and max over all rows, and put together from the partitions."""
    listed = f"count(*), count({column}), min(quote({column})), max(quote({column}))"

    def one(sql: str) -> tuple[int, int, str | None, str | None]:
        try:
            return tuple(world.manager.execute(sql).fetchall()[0])
        except NotSupportedError as refusal:
            raise Refused(str(refusal)) from refusal

    whole = one(f"SELECT {listed} FROM {text}")
    conditions = (f"({predicate})", f"NOT ({predicate})", f"({predicate}) IS NULL")
    parts = [one(f"SELECT {listed} FROM {text} WHERE {condition}") for condition in conditions]
    low = min((p[2] for p in parts if p[2] is not None), default=None, key=lambda v: v.encode())
    high = max((p[3] for p in parts if p[3] is not None), default=None, key=lambda v: v.encode())
    return whole, (sum(p[0] for p in parts), sum(p[1] for p in parts), low, high)


def passes(world: World, text: str, predicate: str) -> tuple[int, int, int]:
    """Return how many rows pass a filter: counted, counted by the client, and where it is only computed."""
    counted = rows(world, f"SELECT count(*) FROM {text} WHERE {predicate}")
    fetched = rows(world, f"SELECT 1 FROM {text} WHERE {predicate}")
    computed = rows(world, f"SELECT ({predicate}) IS TRUE FROM {text}")
    return int(next(iter(counted))[1:-2]), fetched.total(), computed["(1,)"]


def check_seed(seed: int, num_shards: int, queries: int = 25) -> Counter[str]:
    """Check one seed's schema; return how many checks were done, and refused."""
    done: Counter[str] = Counter()
    fuzz = Fuzz(seed, [num_shards])
    world = World(num_shards)
    try:
        fuzz._prepare(world)
        tables = fuzz._sources(world)
        r = Random(seed)
        selects = RareSelects(r, world.plain, tables, fuzz.views)
        for _ in range(queries):
            selects._begin()
            selects.values.allowed = False
            selects.top_level = False
            try:
                text, sources = selects.from_clause()
                predicate = selects.expressions.predicate(sources)
                column = selects.expressions.column(sources).sql
                world.plain.execute(f"EXPLAIN SELECT {column} FROM {text} WHERE {predicate}").close()
            except (Skip, sqlite3.Error):
                continue
            outputs = f"{column}, {selects.expressions.column(sources).sql}"
            for name, check, arguments in (
                ("TLP", partitions, (text, outputs, predicate)),
                ("TLP of aggregates", aggregates, (text, column, predicate)),
                ("NoREC", passes, (text, predicate)),
            ):
                try:
                    first, *others = check(world, *arguments)
                except Refused:
                    done[f"{name} refused"] += 1
                    continue
                done[name] += 1
                schema = "\n".join(str(step) for step in fuzz.steps)
                shown = f"{name} at {num_shards} shards, seed {seed}: FROM {text} WHERE {predicate}\n{schema}"
                assert all(other == first for other in others), shown
    finally:
        world.close()
    return done


def test_metamorphic() -> None:
    done: Counter[str] = Counter()
    deadline = time.monotonic() + SHORT_S
    seed = 0
    while seed < 4 or time.monotonic() < deadline:
        done += check_seed(500 + seed, SHARD_COUNTS[seed % 4])
        seed += 1
    assert done["TLP"] > 20
    assert done["NoREC"] > 20


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(8))
def test_much_metamorphic(part: int) -> None:
    for seed in range(200):
        check_seed(20_000 + part * 1000 + seed, SHARD_COUNTS[seed % 4], queries=60)


def test_a_lost_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(world: World, sql: str) -> Counter[str]:
        found = Counter(map(repr, world.plain.execute(sql)))
        if " WHERE " in sql and found and "count(" not in sql:
            found.subtract([next(iter(found))])
        return +found

    monkeypatch.setitem(globals(), "rows", lossy)
    with pytest.raises(AssertionError, match="at 3 shards"):
        check_seed(500, 3, queries=100)
