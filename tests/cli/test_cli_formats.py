"""Rows as a table, CSV, JSON and NDJSON: every value survives or is shown sensibly, and nothing is held back."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlite.cli.formats import write_rows


class Rows:
    """Columns and rows, as a Result has them."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.columns = list(columns)
        self._rows = rows

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return iter(self._rows)


def written(form: str, columns: Sequence[str], *rows: Sequence[Any]) -> str:
    out = io.StringIO()
    assert write_rows(Rows(columns, rows), form, out) == len(rows)
    return out.getvalue()


def test_csv() -> None:
    text = written("csv", ["id", "note"], (1, None), (2, 'a "b", c\nd'), (3, b"\x00\xff"), (4, 1.5))
    assert list(csv.reader(io.StringIO(text))) == [
        ["id", "note"],
        ["1", ""],
        ["2", 'a "b", c\nd'],
        ["3", "x'00ff'"],
        ["4", "1.5"],
    ]


def test_json() -> None:
    text = written("json", ["id", "v"], (1, None), (2, "ü"), (3, b"\x00\xff"), (4, math.inf), (5, -math.inf))
    assert json.loads(text) == [
        {"id": 1, "v": None},
        {"id": 2, "v": "ü"},
        {"id": 3, "v": {"$base64": base64.b64encode(b"\x00\xff").decode()}},
        {"id": 4, "v": "9e999"},
        {"id": 5, "v": "-9e999"},
    ]
    assert "ü" in text


def test_json_of_no_rows_is_an_empty_list() -> None:
    assert json.loads(written("json", ["id"])) == []
    assert written("ndjson", ["id"]) == ""
    assert written("csv", ["id"]) == "id\n"


def test_repeated_column_names_are_numbered_in_json() -> None:
    assert json.loads(written("ndjson", ["id", "id_2", "id"], (1, 2, 3))) == {"id": 1, "id_2": 2, "id_3": 3}


@given(st.lists(st.tuples(st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False))))
def test_ndjson_gives_every_value_back(rows: list[tuple[Any]]) -> None:
    lines = written("ndjson", ["v"], *rows).split("\n")[:-1]
    assert [(json.loads(line)["v"],) for line in lines] == rows


def test_table_aligns_numbers_right_and_text_left() -> None:
    assert written("table", ["id", "name"], (7, "Ann"), (12, None)) == (
        "id  name\n"
        "--  ----\n"
        " 7  Ann\n"
        "12  NULL\n"
    )  # fmt: skip


def test_table_counts_wide_characters_twice() -> None:
    lines = written("table", ["a", "b"], ("配達", 1), ("ab", 2)).splitlines()
    assert lines[2:] == ["配達  1", "ab    2"]


def test_table_keeps_a_row_on_one_line() -> None:
    text = written("table", ["v"], ("a\nb\tc\x1b[31m" + "x" * 200,))
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text
    assert text.splitlines()[2].endswith("…")


@pytest.mark.parametrize("form", ["table", "csv", "json", "ndjson"])
def test_rows_are_written_as_they_arrive(form: str) -> None:
    class Full(Exception):
        """The source was read too far ahead."""

    out = io.StringIO()

    def source() -> Iterator[Sequence[Any]]:
        for n in itertools.count():
            yield (n,)
            # A table looks at the first 200 rows for its widths; nothing else may be held back.
            if n > 250 and "200" not in out.getvalue():
                raise Full
            if n == 1_000:
                return

    assert write_rows(Rows(["n"], source()), form, out) == 1_001
