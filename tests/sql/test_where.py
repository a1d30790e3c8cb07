"""Conditions: the rows they match, what they tell the router, and what they refuse."""

from __future__ import annotations

import timeit
from typing import Any

import pytest
import sample_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_table import NAMES, TABLE, make_table, split_over

from shardlite.errors import DataError, NotSupportedError, ProgrammingError
from shardlite.router.keys import apply_affinity, sort_key
from shardlite.router.table import Table
from shardlite.sql.functions import UserFunctions
from shardlite.sql.where import JSON_LIST_FROM, Condition, compile_where

SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STORED = [
    (1, 1.0, 1, "a", "A", "x ", b"a", 1, "2024-01-01"),
    (2, 2.5, "x", "b", "b", "x", b"b", "1", None),
    (None, None, None, None, None, None, None, None, None),
    (3, -1.0, 2**53 + 1, "12", "ab", "", b"", b"1", "2025-01-01"),
]


def ids(where: Any, parameters: Any = (), rows: Any = STORED) -> list[int]:
    condition = compile_where(TABLE, where, parameters)
    with split_over(rows, 1) as (plain, _):
        sql = "SELECT id FROM things" + (f" WHERE {condition.sql}" if condition.sql else "")
        return [row[0] for row in plain.execute(sql + " ORDER BY id", condition.parameters)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, [1, 2, 3, 4]),
        ({}, [1, 2, 3, 4]),
        ({"i": 1}, [1]),
        ({"I": "1"}, [1]),
        ({"i": True}, [1]),
        ({"rowid": 2}, [2]),
        ({"order": "2024-01-01"}, [1]),
        ({"i": None}, [3]),
        ({"nc": "a", "i": 1}, [1]),
        ({"i": [1, 2]}, [1, 2]),
        ({"i": {3}}, [4]),
        ({"i": range(2, 4)}, [2, 4]),
        ({"i": []}, []),
        ({"i": [1, None]}, [1, 3]),
        ({"i": [None]}, [3]),
        ({"i": (">=", 2)}, [2, 4]),
        ({"i": [(">", 1), ("<", 3)]}, [2]),
        ({"i": ("!=", 1)}, [2, 4]),
        ({"i": ("<>", 1)}, [2, 4]),
        ({"i": ("==", 1)}, [1]),
        ({"i": ("!=", None)}, [1, 2, 4]),
        ({"i": ("is not", None)}, [1, 2, 4]),
        ({"i": ("IS  NOT", 1)}, [2, 3, 4]),
        ({"i": ("=", None)}, [3]),
        ({"i": ("IN", (1, 2))}, [1, 2]),
        ({"i": ("NOT IN", [1])}, [2, 4]),
        ({"i": ("NOT IN", [1, None])}, [2, 4]),
        ({"i": ("NOT IN", [])}, [1, 2, 3, 4]),
        ({"i": ("BETWEEN", 2, 3)}, [2, 4]),
        ({"i": ("between", [2, 3])}, [2, 4]),
        ({"i": ("NOT BETWEEN", 2, 3)}, [1]),
        ({"t": ("LIKE", "A%")}, [1]),
        ({"t": ("GLOB", "A*")}, []),
        ({"t": ("NOT LIKE", "a%")}, [2, 4]),
        ({"t": 12}, [4]),
        ({"b": "a"}, []),
        ({"b": bytearray(b"a")}, [1]),
        ({"x": 1}, [1]),
        ({"rt": "x"}, [1, 2]),
        ("i = 1 OR i = 2", [1, 2]),
        ("things.i > 2", [4]),
        ('"order" IS NOT NULL AND [order] < `order` || 1', [1, 4]),
        ("lower(nc) = 'a' AND (SUBSTR(t, 1, 1) BETWEEN 'a' AND 'b')", [1]),
        ("CAST(t AS DECIMAL(10, 2)) = 12", [4]),
        ("CASE WHEN i IS NULL THEN 1 ELSE 0 END", [3]),
        ("t = 'it''s' OR t = 'b;--'", []),
        ("nc IN ('A', 'B')", [1, 2]),
        ("date(\"order\") >= date('2025-01-01')", [4]),
        ("i NOT NULL AND NOT (i = 1)", [2, 4]),
    ],
)
def test_rows_that_match(where: Any, expected: list[int]) -> None:
    assert ids(where) == expected


def test_text_keeps_the_callers_parameters() -> None:
    assert ids("i = ? OR i = ?", (1, 2)) == [1, 2]
    assert ids("i = ?2 AND ?1 = 7", (7, 2)) == [2]
    assert ids("i = :a OR nc = @b OR t = $c", {"a": 1, "b": "AB", "c": "b"}) == [1, 2, 4]


@SETTINGS
@given(rows=sample_table.rows, name=st.sampled_from(NAMES), wanted=st.lists(sample_table.values, max_size=8))
def test_long_lists_match_as_short_ones(rows: Any, name: str, wanted: list[Any]) -> None:
    """A list shipped as JSON compares as bound values do, in every kind of column."""
    wanted = wanted + [f"filler {number}" for number in range(JSON_LIST_FROM + 1)]
    bound = [value for value in wanted if value is not None]
    marks = ", ".join("?" * len(bound))
    with split_over(rows, 1) as (plain, _):
        for given, oracle in (
            (wanted, f'"{name}" IN ({marks})' + (f' OR "{name}" IS NULL' if None in wanted else "")),
            (("NOT IN", wanted), f'"{name}" NOT IN ({marks})'),
        ):
            condition = compile_where(TABLE, {name: given})
            assert "json_each" in condition.sql or name == "r"
            sql = "SELECT id FROM things WHERE "
            expected = plain.execute(f"{sql}{oracle} ORDER BY id", bound).fetchall()
            assert plain.execute(f"{sql}{condition.sql} ORDER BY id", condition.parameters).fetchall() == expected


def test_lists_beyond_sqlites_limit_on_variables() -> None:
    assert ids({"i": list(range(40_000))}) == [1, 2, 4]
    assert ids({"t": [str(number) for number in range(40_000)]}) == [4]
    assert ids({"b": [b"a", *(b"%d" % number for number in range(30_000))]}) == [1]
    with pytest.raises(NotSupportedError, match=r"'things' has 40000 floats, blobs.* at most 32000"):
        compile_where(TABLE, {"b": [b"%d" % number for number in range(40_000)]})


@pytest.mark.parametrize(
    ("where", "parameters", "pins"),
    [
        ({"ID": 5}, (), {"id": (5,)}),
        ({"id": [5, "6"]}, (), {"id": (5, "6")}),
        ({"id": []}, (), {"id": ()}),
        ({"id": [5, None]}, (), {"id": (5, None)}),
        ({"id": None}, (), {"id": (None,)}),
        ({"id": ("=", 5), "t": 1}, (), {"id": (5,), "t": (1,)}),
        ({"id": ("IS", 5)}, (), {"id": (5,)}),
        ({"id": ("!=", 5)}, (), {}),
        ({"id": ("NOT IN", [5])}, (), {}),
        ({"id": [("IN", [1, 2]), ("=", 1)]}, (), {"id": (1,)}),
        ({"rowid": 5}, (), {"id": (5,)}),
        ("id = 5", (), {"id": (5,)}),
        ("5 == things.id", (), {"id": (5,)}),
        ("((id) = (5))", (), {}),
        ("(id = -5)", (), {"id": (-5,)}),
        ("id = ? AND t = ?", (5, "x"), {"id": (5,), "t": ("x",)}),
        ("t = ?2 AND id = ?1", (5, "x"), {"id": (5,), "t": ("x",)}),
        ("id = :k", {"k": 5}, {"id": (5,)}),
        ("id = #k", {"k": 5}, {"id": (5,)}),
        ("t = :k AND id = ?", ("x", 5), {"t": ("x",), "id": (5,)}),
        ("t = :k AND id = :k AND i = ?", (5, 6), {"t": (5,), "id": (5,), "i": (6,)}),
        ("id = ?5 AND t = ?", (1, 2, 3, 4, 5, 6), {"id": (5,), "t": (6,)}),
        ("id = ?9", (1,), {}),
        ("id = 0x1F", (), {"id": (31,)}),
        ("id IN (1, ?, 'x')", (2,), {"id": (1, 2, "x")}),
        ("id IN ()", (), {"id": ()}),
        ("id = NULL", (), {"id": ()}),
        ("id = ?", (None,), {"id": ()}),
        ("id IN (1, NULL)", (), {"id": (1,)}),
        ("(i > 1 OR i < 0) AND (t = 'it''s' AND id = x'00ff')", (), {"t": ("it's",), "id": (b"\x00\xff",)}),
        ("i BETWEEN 1 AND 2 AND id = 3", (), {"id": (3,)}),
        ("CASE WHEN i = 1 AND t = 2 THEN 1 END AND id = 3", (), {"id": (3,)}),
        ("id = 5 OR i = 1", (), {}),
        ("i = 1 AND t = 'x' OR id = 5", (), {}),
        ("NOT id = 5", (), {}),
        ("NOT (id = 5 AND i = 1)", (), {}),
        ("id NOT IN (5)", (), {}),
        ("+id = 5", (), {}),
        ("id = +5", (), {}),
        ("id = -?", (5,), {}),
        ("id = - -?", (5,), {}),
        ("id = - -'5'", (), {}),
        ("id = true", (), {}),
        ("id = 5 COLLATE NOCASE", (), {}),
        ("id COLLATE NOCASE = 5", (), {}),
        ("id = CAST('5' AS INTEGER)", (), {}),
        ("id = i", (), {}),
        ("id = 5 IS NULL", (), {}),
        ("id = 5 = 0", (), {}),
        ("id = 1.5", (), {}),
        ("id IN (1) IS NULL", (), {}),
        ("id = 5 AND 0 OR 1", (), {}),
        ("(id = 5) IS NULL", (), {}),
        ("(id, i) = (1, 2)", (), {}),
        ("id = 9223372036854775808", (), {}),
    ],
)
def test_pins(where: Any, parameters: Any, pins: dict[str, tuple[Any, ...]]) -> None:
    assert dict(compile_where(TABLE, where, parameters).pins) == pins


@pytest.mark.parametrize(
    ("where", "parameters", "ranges"),
    [
        ({"id": (">=", 5)}, (), {"id": [(">=", 5)]}),
        ({"id": [(">", 1), ("<=", 9)]}, (), {"id": [(">", 1), ("<=", 9)]}),
        ({"id": ("BETWEEN", 1, 9)}, (), {"id": [(">=", 1), ("<=", 9)]}),
        ("id < ? AND 3 <= id", (9,), {"id": [("<", 9), (">=", 3)]}),
        ("id < 3 OR id > 5", (), {}),
    ],
)
def test_ranges(where: Any, parameters: Any, ranges: dict[str, Any]) -> None:
    assert dict(compile_where(TABLE, where, parameters).ranges) == ranges


TERMS = st.sampled_from(
    ["id = 3", "i = 1", "nc = 'A'", "t IN ('a', '12')", "i > 0", "r <= 2", "x = '1'", "NOT i = 1", "b IS NULL",
     "i BETWEEN 0 AND 4", "x IN (1, 'a', x'31')", "n = 1 + 1", "rt = 'x'", "id = NULL"]
)  # fmt: skip
TEXTS = st.recursive(
    TERMS,
    lambda inner: st.builds(
        lambda a, op, b, wrap: f"({a} {op} {b})" if wrap else f"{a} {op} {b}",
        inner, st.sampled_from(["AND", "OR", "AND NOT"]), inner, st.booleans(),
    ),
    max_leaves=6,
)  # fmt: skip


@SETTINGS
@given(rows=sample_table.rows, text=TEXTS)
def test_matching_rows_fulfil_pins_and_ranges(rows: Any, text: str) -> None:
    condition = compile_where(TABLE, text)
    with split_over(rows, 1) as (plain, _):
        for name, pinned in condition.pins.items():
            column = TABLE.by_name[name]
            allowed = {sort_key(apply_affinity(value, column.affinity), column.collation) for value in pinned}
            for (value,) in plain.execute(f'SELECT "{name}" FROM things WHERE {condition.sql}'):
                assert sort_key(value, column.collation) in allowed
        for name, bounds in condition.ranges.items():
            tests = " AND ".join(f'"{name}" {operator} ?' for operator, _ in bounds)
            sql = f"SELECT count(*) FROM things WHERE ({condition.sql}) AND NOT ({tests})"
            assert plain.execute(sql, [value for _, value in bounds]).fetchone() == (0,)


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ({"nope": 1}, ProgrammingError, "table 'things' has no column 'nope'; it has id, i,"),
        ({'i" = 1 OR "1': 1}, ProgrammingError, "no column"),
        ({5: 1}, ProgrammingError, "must be a str"),
        ({"i": 1, "I": 2}, ProgrammingError, "twice"),
        ({"i": [1], "I": [2]}, ProgrammingError, "twice"),
        ({"i": object()}, ProgrammingError, "column 'i' of table 'things'.*type object"),
        ({"i": {"a": 1}}, ProgrammingError, "type dict"),
        ({"i": [[1]]}, ProgrammingError, "type list"),
        ({"i": float("nan")}, ProgrammingError, "NaN"),
        ({"i": 2**63}, DataError, "64-bit"),
        ({"i": [2**63]}, DataError, "64-bit"),
        ({"i": (1, 2)}, ProgrammingError, "no comparison"),
        ({"i": ("; DROP", 2)}, ProgrammingError, "no comparison"),
        ({"i": ("a", "b")}, ProgrammingError, "a list for IN"),
        ({"i": ()}, ProgrammingError, "no comparison"),
        ({"i": ("<", None)}, ProgrammingError, "None"),
        ({"i": ("<", 1, 2)}, ProgrammingError, "takes 1"),
        ({"i": ("BETWEEN", 1)}, ProgrammingError, "takes 2"),
        ({"i": ("BETWEEN", 1, None)}, ProgrammingError, "None"),
        ({"i": ("IN", "abc")}, ProgrammingError, "takes a list"),
        ({"i": [("<", 1), 5]}, ProgrammingError, "not both"),
        ([("i", 1)], ProgrammingError, "mapping"),
        ("i = 1; DROP TABLE things", ProgrammingError, "';'"),
        ("i = 1 -- no", ProgrammingError, "'--'"),
        ("i = 1 /* no", ProgrammingError, r"'/\*'"),
        ("1) OR (1", ProgrammingError, "closing parenthesis"),
        ("(1", ProgrammingError, "not closed"),
        ("i = 'x", ProgrammingError, "unrecognized"),
        ("i = 1a", ProgrammingError, "unrecognized"),
        ("i = x'0'", ProgrammingError, "unrecognized"),
        ("i = $a(b", ProgrammingError, "unrecognized"),
        ("ſelect = 1", ProgrammingError, "no column 'ſelect'"),
        ("i = 'x\0'", ProgrammingError, "NUL"),
        ('t = "a"', ProgrammingError, "no column 'a'"),
        ("i IN (SELECT 1)", NotSupportedError, "subquery"),
        ("EXISTS (VALUES (1))", NotSupportedError, "subquery"),
        ("i IN sqlite_master", NotSupportedError, "IN with a table"),
        ("i IN pragma_table_info('things')", NotSupportedError, "IN with a table"),
        ("count(*) > 1", ProgrammingError, "aggregate count"),
        ("max(i) > 1", ProgrammingError, "aggregate max"),
        ("row_number() OVER () = 1", NotSupportedError, "row_number"),
        ("abs(i) OVER () = 1", NotSupportedError, "OVER"),
        ("random() > 0", NotSupportedError, "random"),
        ('"random"() > 0', NotSupportedError, "random"),
        ("t > CURRENT_DATE", NotSupportedError, "current date"),
        ("t > date()", NotSupportedError, "current time"),
        ("t > date(' NOW ')", NotSupportedError, "current time"),
        ("t REGEXP 'a'", NotSupportedError, "REGEXP"),
        ("main.things.i = 1", ProgrammingError, "'main' is not the table"),
        ("other.i = 1", ProgrammingError, "'other' is not the table"),
        ("i = $a::b('c)')", ProgrammingError, "suffix"),
    ],
)
def test_refusals_name_the_cause(where: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compile_where(TABLE, where)


def test_parameters_belong_to_text() -> None:
    with pytest.raises(ProgrammingError, match="mapping carries its own"):
        compile_where(TABLE, {"i": 1}, (1,))
    with pytest.raises(ProgrammingError, match="no where text"):
        compile_where(TABLE, None, (1,))
    with pytest.raises(NotSupportedError, match="'now' differs"):
        compile_where(TABLE, "t > date(?)", ("now",))
    with pytest.raises(ProgrammingError, match="sequence or a mapping"):
        compile_where(TABLE, "i = ?", "5")


def test_user_functions_must_be_named_deterministic() -> None:
    with pytest.raises(NotSupportedError, match="mine"):
        compile_where(TABLE, "mine(i)")
    assert compile_where(TABLE, "mine(i)", functions=UserFunctions(frozenset({"mine"}))).sql == "(mine(i)\n)"


def test_a_table_without_rowid_has_none() -> None:
    table = make_table(without_rowid=True)
    with pytest.raises(ProgrammingError, match="no column 'rowid'"):
        compile_where(table, {"rowid": 1})


def test_equal_shapes_share_their_key() -> None:
    first, second = compile_where(TABLE, {"i": 1, "t": "a"}), compile_where(TABLE, {"i": 9, "t": "b"})
    assert first.cache_key == second.cache_key != compile_where(TABLE, {"i": None, "t": "a"}).cache_key
    assert first.sql is second.sql


def test_an_equality_costs_no_more_than_a_few_dict_builds() -> None:
    table: Table = make_table()
    where = {"id": 1}
    compile_where(table, where)

    def build() -> Condition:
        return compile_where(table, where)

    def control() -> list[dict[str, int]]:
        return [{str(number): number} for number in range(10)]

    cost, scale = (min(timeit.repeat(call, number=2_000, repeat=9)) for call in (build, control))
    assert cost < 3 * scale
