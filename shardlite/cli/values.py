"""Reading values from the command line: parameters, boundaries, assignments."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import click

Value = int | float | str | bytes | None
T = TypeVar("T")

_NAMED = re.compile(r"[:@$]?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_REAL = re.compile(r"[+-]?([0-9]{41,}|[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_BLOB = re.compile(r"[xX]'((?:[0-9A-Fa-f]{2})*)'")


def parse_value(text: str) -> Value:
    """Read a value as SQL writes it: an integer, a real, ``null``, ``x'00ff'`` or ``'text'``; all else is text.

    An integer outside 64 bits is a real, as in SQL.
    """
    if _INTEGER.fullmatch(text):
        number = int(text)
        return number if -(2**63) <= number < 2**63 else float(number)
    if _REAL.fullmatch(text):
        return float(text)
    if text.lower() == "null":
        return None
    if blob := _BLOB.fullmatch(text):
        return bytes.fromhex(blob[1])
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text


def parse_parameters(texts: Sequence[str]) -> tuple[Value, ...] | dict[str, Value]:
    """Read ``--param``: ``NAME=VALUE`` each for ``:NAME``, or plain values for ``?`` in their order.

    Raises click.BadParameter when both forms are mixed.
    """
    named = [_NAMED.fullmatch(text) for text in texts]
    if not any(named):
        return tuple(parse_value(text) for text in texts)
    parameters: dict[str, Value] = {}
    for text, match in zip(texts, named, strict=True):
        if match is None:
            raise click.BadParameter(f"{text!r} has no name but others have: write NAME=VALUE for all or for none")
        parameters[match[1]] = parse_value(match[2])
    return parameters


def parse_pair(text: str, option: str, shape: str) -> tuple[str, str]:
    """Split ``LEFT=RIGHT`` at its last equals sign. Raises click.BadParameter naming the option and the shape."""
    left, equals, right = text.rpartition("=")
    if not equals or not left or not right:
        raise click.BadParameter(f"{text!r} is not of the form {shape}", param_hint=option)
    return left, right


def parse_keys(texts: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """Read ``--key``: ``TABLE.COLUMN``, or ``TABLE.COLUMN,COLUMN`` for a key of several columns."""
    keys: dict[str, str | tuple[str, ...]] = {}
    for text in texts:
        table, dot, columns = text.rpartition(".")
        names = tuple(columns.split(","))
        if not dot or not table or not all(names):
            raise click.BadParameter(f"{text!r} is not of the form TABLE.COLUMN", param_hint="--key")
        if table in keys:
            raise click.BadParameter(f"table {table!r} is given twice", param_hint="--key")
        keys[table] = names[0] if len(names) == 1 else names
    return keys


def convert(parse: Callable[[str], T], text: str, option: str) -> T:
    """Return ``parse(text)``, a ValueError turned into a usage error that names the option."""
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error
