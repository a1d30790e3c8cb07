"""Tokens: parameters are numbered as SQLite numbers them, and nothing in quotes or comments is mistaken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlite.driver import sqlite3
from shardlite.sql.tokens import Constant, analysis_text, constant_of, split_commas, tokenize


@pytest.mark.parametrize(
    ("sql", "indexes", "count"),
    [
        ("SELECT ?, ?, ?", [1, 2, 3], 3),
        ("SELECT ?2, ?, ?1", [2, 3, 1], 3),
        ("SELECT :a, @a, $a, :a", [1, 2, 3, 1], 3),
        ("SELECT '?', \"?\", [?], `?`, /* ? */ ? -- ?", [1], 1),
        ("SELECT $a::b(c), ?", [1, 2], 2),
        ("SELECT x'00', 1e5, .5, 0x1F, 'it''s ?'", [], 0),
    ],
)
def test_parameters(sql: str, indexes: list[int], count: int) -> None:
    text = tokenize(sql)
    assert [token.index for token in text.tokens if token.index] == indexes
    assert text.parameter_count == count


@given(
    st.lists(st.sampled_from(["?", "?1", "?3", "?7", ":a", ":b", "@a", "$a", "'?'", "/*?*/ 1", '"x"', "1"]), min_size=1)
)
def test_parameter_count_is_sqlites(items: list[str]) -> None:
    sql = "SELECT " + ", ".join(items)
    count = tokenize(sql).parameter_count
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.ProgrammingError, match=rf"uses {count}, and there are {count + 1} supplied"):
        connection.execute(sql, (None,) * (count + 1))
    connection.close()


@given(st.text(alphabet="aA1_ .,;?:@$'\"`[]()-+/*|<>=!x\n\t\x00é", max_size=40))
def test_tokens_cover_the_text(sql: str) -> None:
    at = 0
    for token in tokenize(sql).tokens:
        assert token.start >= at
        assert sql[token.start : token.end] == token.text
        at = token.end


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("5", Constant(5)),
        ("-5", Constant(-5)),
        ("- -5", Constant(5)),
        ("((+5.0))", Constant(5.0)),
        ("9223372036854775808", Constant(9223372036854775808.0)),
        ("-9223372036854775808", Constant(-9223372036854775808)),
        ("0x10", Constant(16)),
        ("0xFFFFFFFFFFFFFFFF", Constant(-1)),
        ("'it''s'", Constant("it's")),
        ("x'00ff'", Constant(b"\x00\xff")),
        ("NULL", Constant(None)),
        ("true", Constant(1)),
        ("?", Constant(parameter=1)),
        ("-?", None),
        ("-'5'", None),
        ("1 + 1", None),
        ("(1), (2)", None),
        ("f(1)", None),
        ('"5"', None),
    ],
)
def test_constants(sql: str, expected: Constant | None) -> None:
    found = constant_of(tokenize(sql).tokens)
    assert found == expected
    if found is not None and expected is not None:
        assert type(found.value) is type(expected.value)


def test_analysis_text_keeps_what_matters() -> None:
    words, literals = analysis_text(
        tokenize("UPDATE OR IGNORE t SET a = +b - 1 WHERE k = ?3 AND x = X'AB' AND +k = +1")
    )
    assert words == "UPDATE t SET a = ~ b - 1 WHERE k = :p3 AND x = :k0 AND ~ k = ~ 1"
    assert literals["k0"].text == "X'AB'"


def test_split_commas() -> None:
    parts = split_commas(tokenize("a, f(b, c), (d, e)").tokens)
    assert ["".join(token.text for token in part) for part in parts] == ["a", "f(b,c)", "(d,e)"]
    assert split_commas(()) == []
