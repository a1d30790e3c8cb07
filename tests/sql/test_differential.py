"""Generated statements answer as one plain file, at every shard count."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharded import SHARD_COUNTS, Answer, Cluster, Definition, Template, ask, plain, whole_contents

from shardlite.driver import sqlite3

VALUES = (None, 0, 1, 2, 3, 1.0, 2.5, "1", "2", "a", "A", "b ", "1.0", b"a", -1, "x'y")


def pairs(shift: int) -> list[tuple[Any, ...]]:
    return [(value, VALUES[(i + shift) % len(VALUES)], i / 2) for i, value in enumerate(VALUES)]


MIXED = Definition(
    (
        "CREATE TABLE i (k INTEGER, v, w INT)",
        "CREATE TABLE j (id INTEGER PRIMARY KEY, k INTEGER, v TEXT)",
        "CREATE TABLE t (k TEXT, v, w REAL)",
        "CREATE TABLE n (k TEXT COLLATE NOCASE, v, w)",
        "CREATE TABLE b (k, v, w NUMERIC)",
        "CREATE TABLE c (k INT, m TEXT, v, PRIMARY KEY (k, m)) WITHOUT ROWID",
        "CREATE TABLE r (k INTEGER, v, w TEXT)",
    ),
    keys={"i": ("k",), "j": ("k",), "t": ("k",), "n": ("k",), "b": ("k",), "c": ("k", "m")},
    references=frozenset({"r"}),
    groups={"i": "int", "j": "int"},
    rows=(
        ("INSERT INTO i VALUES (?, ?, ?)", pairs(3)),
        ("INSERT INTO j VALUES (?, ?, ?)", [(i * 3, a, i % 5) for i, a in enumerate(VALUES + VALUES)]),
        ("INSERT INTO t VALUES (?, ?, ?)", pairs(1)),
        ("INSERT INTO n VALUES (?, ?, ?)", pairs(5)),
        ("INSERT INTO b VALUES (?, ?, ?)", pairs(2)),
        ("INSERT INTO c VALUES (?, ?, ?)", [(i % 4, "abc"[i % 3], a) for i, a in enumerate(VALUES[:12])]),
        ("INSERT INTO r VALUES (?, ?, ?)", [(1, "a", "1"), (2, None, "A"), (2, 3, "b"), (None, 1, "a")]),
    ),
)
TABLES = {"i": "kvw", "j": ("id", "k", "v"), "t": "kvw", "n": "kvw", "b": "kvw", "c": "kmv", "r": "kvw"}


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template(MIXED) as made:
        yield made


@pytest.fixture(scope="module")
def clusters(template: Template) -> Iterator[tuple[sqlite3.Connection, list[Cluster]]]:
    with ExitStack() as stack:
        whole = stack.enter_context(closing(plain(MIXED)))
        yield whole, [stack.enter_context(template.cluster(count)) for count in SHARD_COUNTS]


@st.composite
def constants(draw: Any, parameters: list[Any]) -> str:
    value = draw(st.sampled_from(VALUES))
    form = draw(st.integers(0, 6))
    if form <= 2:
        parameters.append(value)
        return "?"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    text = "NULL" if value is None else "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
    return {5: f"({text})", 6: f"+{text}" if isinstance(value, int) else text}.get(form, text)


@st.composite
def columns(draw: Any, aliases: dict[str, str]) -> str:
    alias = draw(st.sampled_from(sorted(aliases)))
    column = draw(st.sampled_from(["k", "k", "k", *TABLES[aliases[alias]]]))
    text = f"{alias}.{column}"
    return draw(
        st.sampled_from([text] * 6 + [f"({text})", f"+{text}", f"{text} COLLATE NOCASE", f"CAST({text} AS TEXT)"])
    )


@st.composite
def conditions(draw: Any, aliases: dict[str, str], parameters: list[Any], depth: int = 0) -> str:
    kind = draw(st.integers(0, 12 if depth < 2 else 7))
    left = draw(columns(aliases))
    if kind <= 3:
        operator = draw(st.sampled_from(["=", "=", "=", "==", "IS", "<", "<>", "LIKE"]))
        right = draw(constants(parameters))
        flip = draw(st.booleans()) and operator != "LIKE" and "COLLATE" not in left
        return f"{right} {operator} {left}" if flip else f"{left} {operator} {right}"
    if kind == 4:
        listed = ", ".join(draw(constants(parameters)) for _ in range(draw(st.integers(0, 3))))
        return f"{left} {draw(st.sampled_from(['IN', 'IN', 'NOT IN']))} ({listed})"
    if kind == 5:
        return f"{left} {draw(st.sampled_from(['IS NULL', 'IS NOT NULL', 'ISNULL', 'NOTNULL']))}"
    if kind <= 7:
        return f"{left} = {draw(columns(aliases))}"
    first = draw(conditions(aliases, parameters, depth + 1))
    if kind == 8:
        return f"NOT {first}"
    second = draw(conditions(aliases, parameters, depth + 1))
    if kind == 9:
        return f"{first} OR {second}"
    return f"({first}) AND {second}" if kind == 10 else f"{first} AND {second}"


@st.composite
def selects(draw: Any, depth: int = 0) -> tuple[str, list[Any]]:
    parameters: list[Any] = []
    aliases: dict[str, str] = {}
    sources: list[str] = []
    for number in range(draw(st.sampled_from([1, 1, 1, 2, 2, 3]))):
        table = draw(st.sampled_from(sorted(TABLES)))
        alias = f"a{number}"
        aliases[alias] = table
        named = f"{table} {alias}"
        if not sources:
            sources.append(named)
            continue
        join = draw(st.sampled_from([", ", " JOIN ", " JOIN ", " LEFT JOIN ", " CROSS JOIN "]))
        if join == ", ":
            sources.append(f", {named}")
            continue
        keys = f"{alias}.k = a0.k" if draw(st.booleans()) else draw(conditions(dict(aliases), parameters))
        extra = f" AND {draw(conditions(dict(aliases), parameters, 2))}" if draw(st.integers(0, 3)) == 0 else ""
        sources.append(f"{join}{named} ON {keys}{extra}")
    where = ""
    if draw(st.integers(0, 4)):
        where = " WHERE " + draw(conditions(aliases, parameters))
    if draw(st.integers(0, 3)) == 0:
        joiner = " AND " if where else " WHERE "
        where += f"{joiner}a0.k = " + draw(constants(parameters))
    if draw(st.integers(0, 5)) == 0 and depth == 0:
        inner = draw(st.sampled_from(sorted(TABLES)))
        joiner = " AND " if where else " WHERE "
        test = draw(st.sampled_from(["EXISTS", "NOT EXISTS"]))
        more = draw(conditions({**aliases, "s": inner}, parameters, 2))
        where += f"{joiner}{test} (SELECT 1 FROM {inner} s WHERE s.k = a0.k AND {more})"
    everything = ["*", "a0.k, a0.v", "count(*), max(a0.v)", "a0.*, typeof(a0.k)", "DISTINCT a0.v"]
    chosen = draw(st.sampled_from(everything[:1] * 4 + everything))
    return f"SELECT {chosen} FROM {''.join(sources)}{where}", parameters


def check(clusters: tuple[sqlite3.Connection, list[Cluster]], sql: str, parameters: list[Any]) -> None:
    whole, sharded = clusters
    expected = fixed(sql, ask(whole, sql, parameters).shown(ordered=False))
    for cluster in sharded:
        assert (fixed(sql, cluster.run(sql, parameters).shown(ordered=False)), sql) == (expected, sql)


def fixed(sql: str, shown: Any) -> Any:
    """Leave out what SQLite leaves open: whether DISTINCT shows equal numbers as ``1`` or as ``1.0``."""
    if "DISTINCT" not in sql:
        return shown
    rows, *rest = shown
    return sorted(re.sub(r"(-?[0-9]+)\.0\b", r"\1", row) for row in rows), *rest


EXAMPLES = int(os.environ.get("SHARDLITE_EXAMPLES", "20000"))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(query=selects())
def test_selects(clusters: tuple[sqlite3.Connection, list[Cluster]], query: tuple[str, list[Any]]) -> None:
    check(clusters, *query)


@pytest.mark.slow
@LONG
@given(query=selects())
def test_many_selects(clusters: tuple[sqlite3.Connection, list[Cluster]], query: tuple[str, list[Any]]) -> None:
    check(clusters, *query)


@st.composite
def changes(draw: Any) -> tuple[str, list[Any]]:
    parameters: list[Any] = []
    table = draw(st.sampled_from(sorted(TABLES)))
    kind = draw(st.integers(0, 3))
    if kind >= 2:
        names = draw(st.permutations(list(TABLES[table])))[: draw(st.integers(1, len(TABLES[table])))]
        rows = [
            "(" + ", ".join(draw(constants(parameters)) for _ in names) + ")" for _ in range(draw(st.integers(1, 3)))
        ]
        how = draw(st.sampled_from(["INSERT", "INSERT", "INSERT OR IGNORE", "REPLACE"]))
        return f"{how} INTO {table} ({', '.join(names)}) VALUES {', '.join(rows)}", parameters
    alias = {table: table}
    where = draw(conditions(alias, parameters))
    pinned = draw(constants(parameters))
    condition = f" WHERE {where.replace('a0.', '')} AND {table}.k = {pinned}"
    if table == "c":
        condition += f" AND m = {draw(constants(parameters))}"
    if kind == 0:
        return f"DELETE FROM {table}{condition}", parameters
    value = draw(st.sampled_from(["1", "v || 'x'", "NULL", f"(SELECT count(*) FROM {table} z WHERE z.k = {table}.k)"]))
    return f"UPDATE {table} SET {draw(st.sampled_from(['v', 'v', 'k']))} = {value}{condition}", parameters


def check_change(template: Template, sql: str, parameters: list[Any]) -> None:
    with closing(plain(MIXED)) as whole:
        expected = ask(whole, sql, parameters)
        for count in (1, 4):
            with template.cluster(count) as cluster:
                found = cluster.run(sql, parameters)
                assert cluster.contents() == whole_contents(whole, cluster.tables), sql
                assert cluster.misplaced() == []
                # Which of two broken constraints is named may differ: each shard stops at its own first.
                assert outcome(found) == outcome(expected), sql


def outcome(answer: Answer) -> tuple[int, str]:
    return answer.rowcount, answer.error.partition(":")[0]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(change=changes())
def test_changes(template: Template, change: tuple[str, list[Any]]) -> None:
    check_change(template, *change)


@pytest.mark.slow
@LONG
@given(change=changes())
def test_many_changes(template: Template, change: tuple[str, list[Any]]) -> None:
    check_change(template, *change)
