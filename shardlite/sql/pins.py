"""Which key a reference to a sharded table is pinned to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.names import fold
from shardlite.router.keys import KeyType
from shardlite.router.table import Table
from shardlite.sql.plan import LayoutView, Parameters
from shardlite.sql.scopes import Equal, Fact, Fixed, Node, Reference, Scopes
from shardlite.sql.tokens import Constant, Text

MOST_KEYS = 10_000
"""Combinations of key values that one statement may pin."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The key of one reference: for each key column the constants it may equal, and whether NULL equals NULL."""

    table: str
    group: str
    key_type: KeyType
    columns: tuple[Fixed, ...]

    def keys(self, values: Values) -> list[Any]:
        """Return the keys that rows of the reference can have; none where a comparison with NULL can't hold."""
        choices = [self._choices(fixed, values) for fixed in self.columns]
        if math.prod(map(len, choices)) > MOST_KEYS:
            raise NotSupportedError(f"more than {MOST_KEYS} keys of {self.table} in one statement: split it")
        if len(choices) == 1:
            return choices[0]
        return list(product(*choices))

    @staticmethod
    def _choices(fixed: Fixed, values: Values) -> list[Any]:
        found = [values.of(constant) for constant in fixed.values]
        return found if fixed.null else [value for value in found if value is not None]


class Values:
    """The parameters of one execution, by SQLite's numbers. Raises ProgrammingError as the driver words it."""

    __slots__ = ("_by_index",)

    def __init__(self, text: Text, parameters: Parameters) -> None:
        self._by_index = _by_index(text, parameters)

    def of(self, constant: Constant) -> Any:
        """Return a constant's value; NaN, which SQLite binds as NULL, is None."""
        value = self._by_index[constant.parameter - 1] if constant.parameter else constant.value
        return None if isinstance(value, float) and value != value else value

    def raw(self, index: int) -> Any:
        """Return the parameter with SQLite's number ``index``."""
        return self._by_index[index - 1]


def _by_index(text: Text, parameters: Parameters) -> Sequence[Any]:
    if isinstance(parameters, Mapping):
        if not text.parameter_count:
            return ()
        if text.nameless:
            first = next(token.index for token in text.tokens if token.text[:1] == "?")
            raise ProgrammingError(
                f"Binding {first} has no name, but you supplied a dictionary (which has only names)."
            )
        found: list[Any] = [None] * text.parameter_count  # a part of a statement needn't have them all
        try:
            for name, index in text.names:
                found[index - 1] = parameters[name]
            return found
        except KeyError as error:
            raise ProgrammingError(f"You did not supply a value for binding parameter :{error.args[0]}.") from None
    if len(parameters) != text.parameter_count:
        raise ProgrammingError(
            "Incorrect number of bindings supplied. "
            f"The current statement uses {text.parameter_count}, and there are {len(parameters)} supplied."
        )
    return parameters


def reachable(facts: Iterable[Fact], start: Node) -> set[Node]:
    """Return all columns that are equal to ``start``, itself included."""
    edges: dict[Node, set[Node]] = {}
    for fact in facts:
        if isinstance(fact, Equal):
            edges.setdefault(fact.left, set()).add(fact.right)
            edges.setdefault(fact.right, set()).add(fact.left)
    found, todo = {start}, [start]
    while todo:
        for node in edges.get(todo.pop(), ()):
            if node not in found:
                found.add(node)
                todo.append(node)
    return found


def facts_for(scopes: Scopes, reference: Reference) -> tuple[Fact, ...]:
    """Return the facts that hold for the rows of one reference that can matter."""
    return (*scopes.scopes[reference.scope].known(), *reference.on)


def pin_of(scopes: Scopes, reference: Reference) -> Pin | None:
    """Return the pin of a reference to a sharded table, or None."""
    table = reference.table
    if table is None or not table.key_columns or table.explicit_key:
        return None
    facts = facts_for(scopes, reference)
    columns = [_fixed(facts, Node(reference.scope, reference.alias, fold(name))) for name in table.key_columns]
    if any(column is None for column in columns):
        return None
    return Pin(table.name, table.group, table.key_type, tuple(column for column in columns if column is not None))


def _fixed(facts: Sequence[Fact], node: Node) -> Fixed | None:
    equal = reachable(facts, node)
    found = [fact for fact in facts if isinstance(fact, Fixed) and fact.node in equal]
    # IS reaches other columns only where the value isn't NULL, which the text doesn't tell.
    found = [fact for fact in found if not fact.null or fact.node == node]
    return min(found, key=lambda fact: len(fact.values)) if found else None


def same_key(facts: Sequence[Fact], left: Reference, right: Reference) -> bool:
    """Tell whether two colocated references are joined on equal keys."""
    one, other = left.table, right.table
    if one is None or other is None or not colocated(one, other):
        return False
    return all(
        Node(right.scope, right.alias, fold(theirs)) in reachable(facts, Node(left.scope, left.alias, fold(mine)))
        for mine, theirs in zip(one.key_columns, other.key_columns, strict=True)
    )


def colocated(one: Table, other: Table) -> bool:
    """Tell whether equal keys of two tables share a shard."""
    if not one.key_columns or one.explicit_key or other.explicit_key or not one.sharded or not other.sharded:
        return False
    return one.group == other.group and one.key_type == other.key_type


@dataclass(frozen=True, slots=True)
class Point:
    """One key column compared with one constant: the commonest pin, made fast."""

    key_type: KeyType
    constant: Constant
    null: bool

    def shard(self, values: Values, layout: LayoutView) -> int:
        """Return the shard of the key; any does where ``= NULL`` finds nothing."""
        value = values.of(self.constant)
        return 0 if value is None and not self.null else layout.shard_of(self.key_type)(value)


def one_key(pins: Sequence[Pin]) -> Point | None:
    """Return the only key as a point, where all pins are of one column and equal to one and the same constant."""
    found = {(pin.group, pin.key_type, pin.columns[0].values, pin.columns[0].null) for pin in pins}
    if len(found) != 1 or any(len(pin.columns) != 1 for pin in pins):
        return None
    fixed = pins[0].columns[0]
    return None if len(fixed.values) != 1 else Point(pins[0].key_type, fixed.values[0], fixed.null)


class Bound:
    """The keys of several pins under one layout: ``keys`` counts different ones, ``shards`` are where they live."""

    __slots__ = ("keys", "shards")
    keys: int
    shards: tuple[int, ...]

    def __init__(self, pins: Sequence[Pin], values: Values, layout: LayoutView) -> None:
        shards: set[int] = set()
        keys: set[tuple[Any, ...]] = set()
        for pin in pins:
            locate = layout.shard_of(pin.key_type)
            found = pin.keys(values)
            for key in found:
                # Places are compared by key and not by shard: whether a statement is accepted mustn't depend on
                # how many shards there are.
                keys.add((pin.group, pin.key_type, pin.key_type.canonical(key)))
                shards.add(locate(key))
        self.keys = len(keys)
        self.shards = tuple(sorted(shards)) or (0,)
