"""Tokens: cut where SQLite cuts, parameters numbered as SQLite numbers them, constants read as SQLite reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from logic_tests import records
from test_slt import files
from token_oracle import DEPENDS_ON_VERSION, Oracle

from shardlite.driver import sqlite3
from shardlite.sql.tokens import (
    Constant,
    TokenKind,
    analysis_text,
    constant_of,
    first_words,
    scan,
    split_commas,
    tokenize,
    tokens_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is a named parameter:DeprecationWarning")  # it is only counted here

CASES = Path(__file__).parent / "cases"
EVERY_SLT = int(os.environ.get("SHARDLITE_SLT_TOKENS", "500"))
"""Of so many records of SQLite's logic tests one is looked at."""


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    oracle = Oracle()
    yield oracle
    oracle.close()


# -- against SQLite's own tokenizer

CHARACTERS = "aexXF01_ .,;:@#$?'\"`[]()-+/*|<>=!~%&\n\t\v\f\r\ufeffé\x1c\x85{^\\"
PIECES = [
    "--", "/*", "*/", "->", "->>", "||", "<<", ">>", "<=", ">=", "<>", "!=", "==", "0x1F", "1e5", "1e+", "1.", ".5",
    "1_0", "$a::b(c)", "@a(", "::", "?1", ":a", "x'", "x'00'", "''", '""', "``", "[]", "SELECT", "CAST", "\ufeff",
]  # fmt: skip
SOUP = st.lists(st.one_of(st.sampled_from(CHARACTERS), st.sampled_from(PIECES)), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(SOUP)
@example("1 /* unterminated")
@example("1 /*")
@example("/*/ 1")
@example("1 -- no line break")
@example("'a''b")
@example("x'0' x'0g' X'00' x'")
@example("a->>'$.b'->c - >d")
@example("$a::b(c) $a(b c) $:: :::a $a:b @ # #1 #a")
@example("1e5 1e 1e+ 1e+5 .5e-1 1..2 1.e1 1a 0x 0xg .e1")
@example("\v \v a\x1cb \x85 \ufeffa\ufeff")
@example('"a""b" `a``b` [a]]b] [a')
def test_tokens_are_sqlites(oracle: Oracle, sql: str) -> None:
    assume(not DEPENDS_ON_VERSION.search(sql))
    oracle.check(sql)


def case_texts() -> list[str]:
    files = [json.loads(path.read_text("utf-8")) for path in sorted(CASES.glob("*.json"))]
    return [case["sql"] for cases in files if isinstance(cases, list) for case in cases]  # TPC-H's are plans alone


def test_tokens_of_the_cases_are_sqlites(oracle: Oracle) -> None:
    for sql in case_texts():
        oracle.check(sql)


@pytest.mark.skipif(not files(), reason="SQLite's logic tests are not here: set SHARDLITE_SLT")
@pytest.mark.parametrize("every", [EVERY_SLT, pytest.param(1, marks=pytest.mark.slow)])
def test_tokens_of_the_logic_tests_are_sqlites(oracle: Oracle, every: int) -> None:
    seen = 0
    for path in files():
        for number, (_, sql) in enumerate(records(path)):
            if number % every == 0:
                oracle.check(sql)
                seen += 1
    assert seen >= len(files())


# -- other spaces between the tokens, the same statement

# None makes another token of the one before it, as a byte order mark would of a word, or "--" of a minus.
SPACES = [" ", "\n", "\t \v", " \ufeff", "/**/", "/* it's \" [ */", " -- it's\n", " /*/ */ "]
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b REAL DEFAULT 1, c)"
STATEMENTS = [
    "SELECT a||'it''s' AS \"x y\", b+-1.5e-3,[c]->>'$.d' FROM t WHERE id=?1 AND(b<:b OR c IS NOT $c::d(e))",
    "INSERT INTO t(id,a)VALUES(0x1F,x'00ff'),(?,'a--b')ON CONFLICT(id)DO UPDATE SET a=excluded.a||'/*'",
    "UPDATE t SET a=CASE WHEN b<>1 THEN'x'ELSE`a`END WHERE id IN(1,.5,2.)AND c NOT LIKE'%'ESCAPE'!'",
    "WITH RECURSIVE n(i)AS(SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<<1<=8)SELECT i,i%2 FROM n ORDER BY-i LIMIT 3",
    "DELETE FROM t WHERE~b&1|2 AND a GLOB'*'AND id=(SELECT max(id)FROM t AS u WHERE u.a!=t.a)",
    "CREATE TABLE new(id INTEGER PRIMARY KEY,a DEFAULT 'x;y'CHECK(a<>''),UNIQUE(a,id)ON CONFLICT IGNORE)",
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STATEMENTS), st.data())
def test_other_spaces_make_the_same_program(sql: str, data: st.DataObject) -> None:
    tokens = tokens_of(sql)
    spaces = data.draw(st.lists(st.sampled_from(SPACES), min_size=len(tokens), max_size=len(tokens)))
    spaced = "".join(token.text + space for token, space in zip(tokens, spaces, strict=True))
    assert [(token.text, token.index) for token in tokens_of(spaced)] == [(token.text, token.index) for token in tokens]
    assert program(spaced) == program(sql)


def program(sql: str) -> list[object]:
    """Return SQLite's bytecode without the places where it carries the text itself (the schema's CREATE)."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(TABLE)
        text = tokenize(sql)
        nothing = dict.fromkeys(dict(text.names)) if text.names and not text.nameless else [None] * text.parameter_count
        rows = connection.execute(f"EXPLAIN {sql}", nothing).fetchall()
    finally:
        connection.close()
    return [row[:5] if text.head == "CREATE" else row for row in rows]


# -- parameters


@pytest.mark.parametrize(
    ("sql", "indexes", "count"),
    [
        ("SELECT ?, ?, ?", [1, 2, 3], 3),
        ("SELECT ?2, ?, ?1", [2, 3, 1], 3),
        ("SELECT :a, @a, $a, :a, #a", [1, 2, 3, 1, 4], 4),
        ("SELECT '?', \"?\", [?], `?`, /* ? */ ? -- ?", [1], 1),
        ("SELECT $a::b(c), ?", [1, 2], 2),
        ("SELECT ?0000000000000000000000002", [2], 2),
        ("SELECT x'00', 1e5, .5, 0x1F, 'it''s ?'", [], 0),
    ],
)
def test_parameters(sql: str, indexes: list[int], count: int) -> None:
    text = tokenize(sql)
    assert [token.index for token in text.tokens if token.index] == indexes
    assert text.parameter_count == count


PARAMETERS = ["?", "?1", "?3", "?7", ":a", ":b", "@a", "$a", "#a", "$a::b(c)", "'?'", "/*?*/ 1", '"x"', "1"]


@given(st.lists(st.sampled_from(PARAMETERS), min_size=1))
def test_parameter_count_is_sqlites(items: list[str]) -> None:
    sql = "SELECT " + ", ".join(items)
    count = tokenize(sql).parameter_count
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.ProgrammingError, match=rf"uses {count}, and there are {count + 1} supplied"):
        connection.execute(sql, (None,) * (count + 1))
    connection.close()


def test_huge_numbers_are_no_accident() -> None:
    assert tokenize("SELECT ?" + "9" * 5000).tokens[-1].index > 2**31
    assert constant_of(tokens_of("9" * 5000)) == Constant(float("inf"))
    assert constant_of(tokens_of("0" * 5000 + "7")) == Constant(7)


# -- what a token says


@given(st.text(alphabet=CHARACTERS + "\x00", max_size=40))
def test_tokens_cover_the_text(sql: str) -> None:
    at = 0
    for token in scan(sql):
        assert token.start >= at
        assert not sql[at : token.start].strip(" \t\n\v\f\r\ufeff")
        assert sql[token.start : token.end] == token.text
        at = token.end
    assert not sql[at:].strip(" \t\n\v\f\r\ufeff")


@pytest.mark.parametrize(
    ("sql", "kind", "value", "identifier", "name"),
    [
        ("Ab", "word", "Ab", "Ab", "ab"),
        ('"A""b"', "quoted", 'A"b', 'A"b', 'a"b'),
        ("`A``b`", "quoted", "A`b", "A`b", "a`b"),
        ('[A""b]', "quoted", 'A""b', 'A""b', 'a""b'),
        ("'A''b'", "string", "A'b", "", "a'b"),
        ("1.5", "number", "1.5", "", None),
        ("(", "operator", "(", "", None),
        (":a", "parameter", ":a", "", None),
        ("/* a */", "comment", "/* a */", "", None),
        ("'a", "illegal", "'a", "", None),
    ],
)
def test_what_a_token_says(sql: str, kind: str, value: str, identifier: str, name: str | None) -> None:
    (token,) = scan(sql)
    assert (token.kind, token.value, token.identifier, token.name) == (kind, value, identifier, name)


def test_keywords_are_ascii() -> None:
    """ "ſELECT" in upper case is SELECT to Python, and a column to SQLite."""
    (token,) = scan("ſelect")
    assert not token.is_word("SELECT")
    assert scan("Select")[0].is_word("INSERT", "SELECT")
    assert not scan('"SELECT"')[0].is_word("SELECT")
    assert first_words("/* a */ create 'Table' -- x\n t1") == ("CREATE", "TABLE", "T1")


def test_comments_and_semicolons() -> None:
    assert [token.kind for token in scan("a /* b */ -- c")] == [TokenKind.WORD, TokenKind.COMMENT, TokenKind.COMMENT]
    assert [token.text for token in tokens_of("; a; -- c\n;")] == [";", "a", ";", ";"]
    assert [token.text for token in tokenize("; a; -- c\n;").tokens] == ["a"]
    assert tokenize(" /* a").head == ""


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("5", Constant(5)),
        ("-5", Constant(-5)),
        ("- -5", Constant(5)),
        ("((+5.0))", Constant(5.0)),
        ("9223372036854775807", Constant(9223372036854775807)),
        ("9223372036854775808", Constant(9223372036854775808.0)),
        ("-9223372036854775808", Constant(-9223372036854775808)),
        ("00000000000000000000000000000000001", Constant(1)),
        ("0x10", Constant(16)),
        ("0xFFFFFFFFFFFFFFFF", Constant(-1)),
        ("1_000", Constant(1000)),
        ("1_0.2_5", Constant(10.25)),
        ("0xF_F", Constant(255)),
        ("'it''s'", Constant("it's")),
        ("+'5'", Constant("5")),
        ("x'00ff'", Constant(b"\x00\xff")),
        ("NULL", Constant(None)),
        ("true", Constant(1)),
        ("?", Constant(parameter=1)),
        ("-?", None),
        ("- -?", None),
        ("-'5'", None),
        ("- -'5'", None),
        ("- -true", None),
        ("-0x8000000000000000", None),
        ("1 + 1", None),
        ("(1), (2)", None),
        ("f(1)", None),
        ('"5"', None),
        ("'5", None),
    ],
)
def test_constants(sql: str, expected: Constant | None) -> None:
    found = constant_of(tokenize(sql).tokens)
    assert found == expected
    if found is not None and expected is not None:
        assert type(found.value) is type(expected.value)


SIGNS = st.lists(st.sampled_from(["-", "+", "- ", "+ ", "("]), max_size=3)
LITERALS = st.one_of(
    st.sampled_from(["NULL", "true", "FALSE", "x'00'", "'5'", "'a'", "0x7fffffffffffffff", "0x8000000000000000"]),
    st.integers(0, 2**65).map(str),
    st.integers(0, 10**6).map(lambda number: f"{number / 64}"),
)


@given(SIGNS, LITERALS)
def test_constants_are_what_sqlite_makes_of_them(signs: list[str], literal: str) -> None:
    text = "".join(signs).replace("--", "- -") + literal + ")" * signs.count("(")
    found = constant_of(tokenize(text).tokens)
    if found is not None:
        connection = sqlite3.connect(":memory:")
        try:
            assert connection.execute(f"SELECT {text}").fetchone() == (found.value,)
        finally:
            connection.close()


# -- what is made of tokens


def test_analysis_text_keeps_what_matters() -> None:
    words, literals = analysis_text(
        tokenize("UPDATE OR IGNORE t SET a = +b - 1 WHERE k = ?3 AND x = X'AB' AND +k = +1 AND n = 1_000 -- end")
    )
    assert words == "UPDATE t SET a = ~ b - 1 WHERE k = :p3 AND x = :k0 AND ~ k = ~ 1 AND n = :k1"
    assert literals["k0"].text == "X'AB'"
    assert literals["k1"].text == "1_000"


def test_split_commas() -> None:
    parts = split_commas(tokenize("a, f(b, c), (d, e)").tokens)
    assert ["".join(token.text for token in part) for part in parts] == ["a", "f(b,c)", "(d,e)"]
    assert split_commas(()) == []
