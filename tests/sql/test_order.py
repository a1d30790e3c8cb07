"""ORDER BY from names: text, merge key and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_table import TABLE, make_table

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.sql.order import compile_order


@pytest.mark.parametrize(
    ("order_by", "sql"),
    [
        (None, 'ORDER BY "id"'),
        ([], 'ORDER BY "id"'),
        ("id", 'ORDER BY "id"'),
        ("-id", 'ORDER BY "id" DESC'),
        ("rowid", 'ORDER BY "id"'),
        ("NC", 'ORDER BY "nc", "id"'),
        (["-order", "i"], 'ORDER BY "order" DESC, "i", "id"'),
        (("i", "-id", "t", "I"), 'ORDER BY "i", "id" DESC, "t"'),
    ],
)
def test_order_ends_with_the_rowid(order_by: Any, sql: str) -> None:
    assert compile_order(TABLE, order_by).sql == sql


def test_columns_collations_and_hidden_columns() -> None:
    spec = compile_order(TABLE, ["-nc", "rt"])
    assert spec.columns == ("nc", "rt", "id")
    assert spec.descending == (True, False, False)
    assert spec.collations == ("NOCASE", "RTRIM", "BINARY")
    assert spec.hidden == ', "nc", "rt", "id"'
    assert not spec.by_rowid
    assert compile_order(TABLE, None).by_rowid
    assert not compile_order(TABLE, "-id").by_rowid


def test_tables_without_an_integer_primary_key() -> None:
    columns = (("k", "TEXT", "NOCASE"), ("rowid", "TEXT", "BINARY"))
    assert compile_order(make_table(columns=columns), None).sql == 'ORDER BY "_rowid_"'
    spec = compile_order(make_table(columns=columns, without_rowid=True), "rowid")
    assert (spec.sql, spec.collations, spec.by_rowid) == ('ORDER BY "rowid", "k"', ("BINARY", "NOCASE"), False)
    hiding = make_table(
        columns=(("k", "TEXT", "BINARY"), *((name, "", "BINARY") for name in ("oid", "rowid", "_rowid_")))
    )
    assert compile_order(hiding, None).sql == ""
    assert compile_order(hiding, "-oid").sql == 'ORDER BY "oid" DESC'


def test_a_column_named_with_a_dash_and_quotes() -> None:
    table = make_table(columns=(("id", "INTEGER", "BINARY"), ("-i", "", "BINARY"), ('a"b', "", "BINARY")))
    assert compile_order(table, ["-i", '-a"b']).sql == 'ORDER BY "-i", "a""b" DESC, "id"'
    assert compile_order(table, "--i").sql == 'ORDER BY "-i" DESC, "id"'


@pytest.mark.parametrize("order_by", ["nope", "-nope", "i DESC", "i; DROP TABLE things", "", "-", 5, [None], [["i"]]])
def test_unknown_columns_are_refused_by_name(order_by: Any) -> None:
    with pytest.raises(ProgrammingError, match=r"order_by.*'things'|order_by takes"):
        compile_order(TABLE, order_by)


def test_other_collations_are_refused_by_name() -> None:
    table = replace(TABLE, columns=(*TABLE.columns[:1], replace(TABLE.columns[1], collation="german")))
    with pytest.raises(NotSupportedError, match="column 'i' of table 'things' has the collation 'german'"):
        compile_order(table, "i")
