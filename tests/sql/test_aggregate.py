"""Aggregates over plain connections that share the rows, against one connection that has them all."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import sample_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_table import NAMES, TABLE, split_over

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, OperationalError, ProgrammingError
from shardlite.router.keys import sort_key
from shardlite.sql.aggregate import parse_aggregate, plan_aggregates
from shardlite.sql.where import compile_where

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ARGUMENTS = (
    *[f'"{name}"' for name in NAMES],
    "things.nc",
    "(nc)",
    "+nc",
    "CAST(nc AS TEXT)",
    "t COLLATE NOCASE",
    "lower(t COLLATE NOCASE)",
    "x || ''",
    "coalesce(i, t)",
    "length(t) * 2",
    "CASE WHEN i > 0 THEN n ELSE r END",
    "max(i, 3)",
    "1",
    "nullif(nc, 'A')",
)
CALLS = (
    "COUNT({})", "count(DISTINCT {})", "SUM({})", "Sum( distinct {} )", "AVG({})", "avg(DISTINCT {})", "MIN({})",
    "MAX({})", "max(DISTINCT {})", "TOTAL({})", "total(DISTINCT {})", "GROUP_CONCAT({})", "group_concat({}, '; ')",
    "group_concat(DISTINCT {})", "group_concat({}, t)",
)  # fmt: skip
FILTERS = ("", " FILTER (WHERE i > 0)", " filter (where nc = 'a' OR r IS NULL)", " FILTER (WHERE 0)")
expressions = st.one_of(
    st.builds(
        lambda call, argument, tail: call.format(argument) + tail,
        st.sampled_from(CALLS),
        st.sampled_from(ARGUMENTS),
        st.sampled_from(FILTERS),
    ),
    st.sampled_from(["COUNT(*)", "count( * ) FILTER (WHERE t LIKE 'a%')", "COUNT()"]),
)
conditions = st.sampled_from(
    [None, {"i": ("<", 3)}, {"nc": ["a", "b", None]}, {"id": 3}, "i IS NOT NULL OR nc = 'A'", {"id": -1}]
)


def same(expected: Any, given: Any, magnitude: float = 0.0) -> bool:
    """Typed equality; reals within rounding of the sum of absolute values."""
    if type(expected) is not type(given):
        return False
    if isinstance(expected, float) and not math.isinf(expected) and not math.isinf(given):
        return abs(expected - given) <= 1e-9 * max(magnitude, abs(expected), 1e-300)
    return bool(expected == given)


def ask_plain(connection: sqlite3.Connection, expressions: list[str], condition: Any, groups: list[str]) -> Any:
    """Give one file's answer: rows, or None when its SUM overflows."""
    keys = [f'"{name}"' for name in groups]
    sql = f"SELECT {', '.join([*keys, *expressions])} FROM things"
    if condition.sql:
        sql += f" WHERE {condition.sql}"
    if keys:
        sql += f" GROUP BY {', '.join(keys)}"
    try:
        return connection.execute(sql, condition.parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "integer overflow" not in str(error):
            raise
        return None


def fetchers(connections: list[sqlite3.Connection]) -> list[Any]:
    return [lambda sql, parameters, c=c: c.execute(sql, parameters).fetchall() for c in connections]


def magnitude_of(connection: sqlite3.Connection, expression: str) -> float:
    argument = parse_aggregate(TABLE, expression).argument
    found = connection.execute(f"SELECT total(abs(CAST({argument or 1} AS REAL))) FROM things").fetchone()[0]
    return 0.0 if found is None or math.isinf(found) else found


def compare_group(
    plain: Any, wanted: list[str], expected: tuple[Any, ...], row: dict[str, Any], groups: list[str]
) -> None:
    collations = [TABLE.by_name[name].collation for name in groups]
    for name, collation, value in zip(groups, collations, expected, strict=False):
        assert sort_key(row[name], collation) == sort_key(value, collation)
    for expression, value in zip(wanted, expected[len(groups) :], strict=True):
        aggregate = parse_aggregate(TABLE, expression)
        mine = row[expression]
        if aggregate.function in ("min", "max"):
            assert sort_key(mine, aggregate.collation) == sort_key(value, aggregate.collation), expression
        elif aggregate.function == "group_concat" and aggregate.distinct:
            # Which of 'a' and 'A' stands for both, and so the text, is left open; the number of pieces is not.
            assert (mine is None) == (value is None), expression
        elif aggregate.function == "group_concat" and groups and "t)" in expression:
            assert Counter(mine or "") == Counter(value or ""), expression
        else:
            assert same(value, mine, magnitude_of(plain, expression)), (expression, value, mine)


@FEW
@given(
    rows=sample_table.rows,
    wanted=st.lists(expressions, min_size=1, max_size=4, unique=True),
    where=conditions,
    groups=st.lists(st.sampled_from(NAMES[1:]), max_size=2, unique=True),
    shards=st.sampled_from([1, 3, 8]),
)
def test_answers_are_those_of_one_file(
    rows: list[Any], wanted: list[str], where: Any, groups: list[str], shards: int
) -> None:
    condition = compile_where(TABLE, where)
    with split_over(rows, shards) as (plain, parts):
        expected = ask_plain(plain, wanted, condition, groups)
        plan = plan_aggregates(TABLE, wanted, condition, groups or None)
        try:
            answer = plan.run(fetchers(parts))
        except OperationalError:
            # The total overflows: one file's SUM has overflowed too.
            assert expected is None
            return
        if expected is None:
            # One file overflowed on the way; a total that fits is the better answer.
            return
        listed = answer if isinstance(answer, list) else [answer]
        assert len(listed) == len(expected)
        for expected_row, row in zip(expected, listed, strict=True):
            compare_group(plain, wanted, expected_row, row, groups)


def run(rows: list[tuple[Any, ...]], expression: str, shards: int = 3, **more: Any) -> Any:
    """Give the answer for rows of (x) alone."""
    with split_over([(None,) * 7 + (row, None) for row in rows], shards) as (_, parts):
        return plan_aggregates(TABLE, expression, compile_where(TABLE, None), **more).run(fetchers(parts))


BIG = 2**63 - 1


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([BIG, 1, -1], BIG),
        ([BIG, BIG, -BIG, -BIG], 0),
        ([BIG, BIG, BIG, -BIG, -BIG, -5], BIG - 5),
        ([-(2**63), -(2**63), BIG, BIG], -2),
        ([str(BIG), BIG, " -9223372036854775807 "], BIG),
        ([BIG, BIG, 1.5], 2.0 * BIG),
        ([BIG, BIG, "1e2"], 2.0 * BIG),
        ([BIG, BIG, "9223372036854775808"], 3.0 * BIG),
        ([BIG, BIG, b"12"], 2.0 * BIG),
        ([None, None], None),
        ([], None),
    ],
)
def test_sum_is_exact_whatever_the_shards_overflow(values: list[Any], total: Any, shards: int) -> None:
    answer = run(values, "SUM(x)", shards)["SUM(x)"]
    assert type(answer) is type(total)
    assert answer == total


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize("values", [[BIG, 1], [BIG, BIG, BIG], [-(2**63), -1], [BIG, "1"]])
def test_sum_beyond_64_bits_is_sqlites_error(values: list[Any], shards: int) -> None:
    with pytest.raises(OperationalError, match=r"integer overflow: SUM\(x\) is -?\d+, beyond 64 bits"):
        run(values, "SUM(x)", shards)
    assert isinstance(run(values, "TOTAL(x)", shards)["TOTAL(x)"], float)


def test_an_overflow_inside_the_argument_stays_an_error() -> None:
    with pytest.raises(sqlite3.OperationalError, match="integer overflow"):
        run([-(2**63)], "SUM(abs(x))")


def test_exact_statements_classify_values_as_sum_does() -> None:
    """The fallback's view of every kind of value, one at a time, against SQLite's SUM."""
    seeds = ["12", " 12 ", "12abc", "1e2", "1.0", "", "+7", "-0", ".5", "5.", "0x10", "1_0", "9223372036854775807",
             "9223372036854775808", "\t3\n", "1e", "e", "--1", b"12", b"", 5, 2.0, None, "١"]  # fmt: skip
    plan = plan_aggregates(TABLE, "SUM(x)", compile_where(TABLE, None))
    for seed in seeds:
        with split_over([(None,) * 7 + (seed, None)], 1) as (plain, parts):
            expected = plain.execute("SELECT SUM(x) FROM things").fetchone()[0]
            results = [[fetch(sql, ()) for sql in plan.exact_statements] for fetch in fetchers(parts)]
            answer = plan.combine(results, exact=True)
            assert isinstance(answer, dict)
            assert same(expected, answer["SUM(x)"]), (seed, expected, answer)


@pytest.mark.parametrize("shards", [1, 3])
def test_infinities_that_cancel_are_null(shards: int) -> None:
    for values in ([math.inf, -math.inf], [math.inf, 1, -math.inf, 2]):
        assert run(values, "SUM(x)", shards) == {"SUM(x)": None}
    assert run([math.inf, 1], "SUM(x)", shards) == {"SUM(x)": math.inf}


def test_empty_table() -> None:
    wanted = ["COUNT(*)", "SUM(x)", "AVG(x)", "MIN(x)", "TOTAL(x)", "GROUP_CONCAT(x)", "COUNT(DISTINCT x)"]
    condition = compile_where(TABLE, None)
    with split_over([], 3) as (_, parts):
        answer = plan_aggregates(TABLE, wanted, condition).run(fetchers(parts))
        assert answer == dict(zip(wanted, [0, None, None, None, 0.0, None, 0], strict=True))
        assert type(answer["TOTAL(x)"]) is float
        assert plan_aggregates(TABLE, wanted, condition, "i").run(fetchers(parts)) == []


def test_group_concat_keeps_the_order_of_one_file() -> None:
    letters = [*"shardlite", None, 1.5, 10]
    for shards in (1, 3, 8):
        assert run(letters, "group_concat(x, '')", shards) == {"group_concat(x, '')": "shardlite1.510"}
        answer = run([*letters, "s", "h"], "group_concat(DISTINCT x)", shards)
        assert answer == {"group_concat(DISTINCT x)": "s,h,a,r,d,l,i,t,e,1.5,10"}


def test_distinct_follows_the_collation_over_all_shards() -> None:
    rows = [(None, None, None, None, value, None, None, None, None) for value in ("a", "A", "b", "B", "a", None)]
    condition = compile_where(TABLE, None)
    wanted = ["COUNT(DISTINCT nc)", "COUNT(DISTINCT nc COLLATE BINARY)"]
    for shards in (1, 3, 8):
        with split_over(rows, shards) as (_, parts):
            answer = plan_aggregates(TABLE, wanted, condition).run(fetchers(parts))
            assert list(answer.values()) == [2, 4]  # type: ignore[union-attr]  # without groups it is a dict
            grouped = plan_aggregates(TABLE, "COUNT(*)", condition, ["nc"]).run(fetchers(parts))
            assert [row["COUNT(*)"] for row in grouped] == [1, 3, 2]  # type: ignore[union-attr,index]  # with groups, a list


@pytest.mark.parametrize(
    ("expression", "error", "words"),
    [
        ("", ProgrammingError, "empty"),
        ("x", ProgrammingError, "give one call"),
        ("SUM(x) + 1", ProgrammingError, "only FILTER"),
        ("SUM(x), COUNT(*)", ProgrammingError, "only FILTER"),
        ("SUM(x); DROP TABLE things", ProgrammingError, "';' is not allowed"),
        ("SUM(x) -- y", ProgrammingError, "'--' is not allowed"),
        ("SUM(x /* y)", ProgrammingError, "is not allowed"),
        ("SUM(x) FROM things", ProgrammingError, "only FILTER"),
        ("SUM(x)) FROM (things", ProgrammingError, "closing parenthesis too many"),
        ("SUM((SELECT 1))", NotSupportedError, "a subquery"),
        ("SUM(nope)", ProgrammingError, "no column 'nope'; it has id, i,"),
        ('SUM("nope")', ProgrammingError, "no column 'nope'"),
        ("SUM(other.x)", ProgrammingError, "'other' is not the table 'things'"),
        ("SUM(x, i)", ProgrammingError, "takes 1 argument"),
        ("MIN(x, i)", ProgrammingError, "takes 1 argument"),
        ("SUM(*)", ProgrammingError, "COUNT"),
        ("COUNT(DISTINCT *)", ProgrammingError, "COUNT"),
        ("SUM()", ProgrammingError, "takes 1 argument"),
        ("SUM(COUNT(x))", ProgrammingError, "aggregate COUNT"),
        ("SUM(random())", NotSupportedError, r"random\(\)"),
        ("SUM(julianday('now'))", NotSupportedError, "current time"),
        ("MAX(CURRENT_TIMESTAMP)", NotSupportedError, "current time"),
        ("SUM(x) OVER ()", NotSupportedError, "window"),
        ("json_group_array(x)", NotSupportedError, "json_group_array"),
        ("load_extension('x')", NotSupportedError, "load_extension"),
        ("SUM(?)", ProgrammingError, "no parameters"),
        ("group_concat(x ORDER BY x)", NotSupportedError, "ORDER BY"),
        ("group_concat(DISTINCT x, ';')", ProgrammingError, "DISTINCT group_concat"),
        ("MIN(x COLLATE mine)", NotSupportedError, "'mine'"),
        ("COUNT(x) FILTER (WHERE nope)", ProgrammingError, "no column 'nope'"),
        ("COUNT(x) FILTER (x)", ProgrammingError, "only FILTER"),
        ("SUM(x", ProgrammingError, "not closed"),
        ("SUM('x)", ProgrammingError, "unrecognized token"),
        ("SUM(x IN things)", NotSupportedError, "IN with a table"),
        ("SUM(x) FILTER (WHERE x = 1a)", ProgrammingError, "unrecognized token"),
    ],
)
def test_refusals_name_the_cause(expression: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan_aggregates(TABLE, expression, compile_where(TABLE, None))


@pytest.mark.parametrize("group", ["nope", "i; DROP TABLE things", "lower(t)", 5, []])
def test_group_by_takes_known_columns_only(group: Any) -> None:
    with pytest.raises(ProgrammingError, match=r"group_by"):
        plan_aggregates(TABLE, "COUNT(*)", compile_where(TABLE, None), group)


def test_keys_are_as_the_caller_wrote_them() -> None:
    answer = run([1, 2], "count( X )  filter (where  X>1)", group_by="I")
    assert answer == [{"I": None, "count( X )  filter (where  X>1)": 1}]


def test_a_collation_may_be_quoted_as_a_string() -> None:
    assert parse_aggregate(TABLE, "MIN(x COLLATE 'nocase')").collation == "NOCASE"


def test_a_cast_without_a_type_is_left_for_sqlite_to_refuse() -> None:
    plan = plan_aggregates(TABLE, "MIN(CAST(i))", compile_where(TABLE, None))
    with split_over([], 1) as (plain, _), pytest.raises(sqlite3.OperationalError, match="syntax error"):
        plain.execute(plan.statements[0])
