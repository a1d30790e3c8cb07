"""Values on the command line are read as SQL writes them."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlite.cli.values import parse_keys, parse_pair, parse_parameters, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("+7", 7),
        ("9223372036854775807", 9223372036854775807),
        ("9223372036854775808", 9223372036854775808.0),
        ("9" * 5_000, float("inf")),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("null", None),
        ("NULL", None),
        ("x'00fF'", b"\x00\xff"),
        ("x''", b""),
        ("x'0'", "x'0'"),
        ("'42'", "42"),
        ("'it''s'", "it's"),
        ("''", ""),
        ("", ""),
        ("'", "'"),
        ("1_0", "1_0"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("0x10", "0x10"),
        ("٣", "٣"),
        ("John Smith", "John Smith"),
    ],
)
def test_value(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_a_quoted_text_is_that_text(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert parse_value(quoted) == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_that_integer(number: int) -> None:
    assert parse_value(str(number)) == number


def test_parameters_by_position() -> None:
    assert parse_parameters(["1", "a b", "'x=y'"]) == (1, "a b", "x=y")
    assert parse_parameters([]) == ()


def test_parameters_by_name() -> None:
    assert parse_parameters(["id=7", ":name=Ann", "note=a=b\nc"]) == {"id": 7, "name": "Ann", "note": "a=b\nc"}


def test_parameters_of_both_forms_are_refused() -> None:
    with pytest.raises(click.BadParameter, match="'7' has no name"):
        parse_parameters(["id=7", "7"])


def test_keys() -> None:
    assert parse_keys(["users.id", "a.b.c", "lines.order_id,line"]) == {
        "users": "id",
        "a.b": "c",
        "lines": ("order_id", "line"),
    }


@pytest.mark.parametrize("text", ["users", ".id", "users.", "users.a,,b"])
def test_a_key_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"TABLE\.COLUMN"):
        parse_keys([text])


def test_two_keys_for_one_table_are_refused() -> None:
    with pytest.raises(click.BadParameter, match="'users' is given twice"):
        parse_keys(["users.id", "users.name"])


def test_pairs() -> None:
    assert parse_pair("acme=0", "--assign", "KEY=SHARD") == ("acme", "0")
    assert parse_pair("a=b=0", "--assign", "KEY=SHARD") == ("a=b", "0")
    with pytest.raises(click.BadParameter, match="'acme' is not of the form KEY=SHARD"):
        parse_pair("acme", "--assign", "KEY=SHARD")
