"""The same text with other values: what a kept plan does with its parameters, at a fraction of the price of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from diff_case import Statement
from diff_schema import POOLS

_BIG = 2**40
_WHOLE = (0, 1, 2, 3, 4, 5, 7, 12, -1)
_TEXT = (*(value for value in POOLS["text"] if value is not None), "a%", "3", "01", "2.0")
_BIG_WHOLE = (2**63 - 1, 2**63 - 2, 2**53, 2**53 + 1, 2**62, -(2**63))


def other_value(r: Random, value: Any) -> Any:
    """Return a value of which the same is known: type, size, exactness of sums, whether it is JSON."""
    if value is None:
        return None
    if isinstance(value, int):
        # Big ones keep their sign: whether a sum overflows must not depend on the order.
        big = [one for one in _BIG_WHOLE if (one < 0) == (value < 0)]
        return r.choice(_WHOLE) if abs(value) < _BIG else r.choice(big)
    if isinstance(value, float):
        return r.choice([one for one in POOLS["real"] if one is not None]) if abs(value) < 1e6 else value
    if isinstance(value, bytes):
        return r.choice([one for one in POOLS["blob"] if one is not None])
    if value[:1] in ("[", "{") and value[-1:] in ("]", "}"):
        return r.choice(("[1,2,3]", '["a",2,null]', '{"a":1,"b":[2]}', "[]", value))
    return r.choice(_TEXT)


def varied(r: Random, statement: Statement) -> Statement | None:
    """Return the statement with other values for its parameters; None for one without any.

    Equal values stay equal: ``SELECT k + ? ... GROUP BY k + ?`` means one expression.
    """
    given = statement.parameters
    if not given:
        return None
    other: dict[str, Any] = {}

    def chosen(value: Any) -> Any:
        if repr(value) not in other:
            other[repr(value)] = other_value(r, value)
        return other[repr(value)]

    if isinstance(given, Mapping):
        return replace(statement, parameters={name: chosen(value) for name, value in given.items()})
    return replace(statement, parameters=tuple(map(chosen, given)))
