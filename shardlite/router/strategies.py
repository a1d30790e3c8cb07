"""Sharding strategies: which shard holds a key, and which shards can hold a range of keys.

A strategy is a small class behind ShardingStrategy. It is asked about a key as SQLite stores it, and of keys that
SQLite holds equal always about the same one (``KeyType.representative``), so a strategy needs to know nothing of
affinities and collations. It is stored in the catalog by name and JSON parameters. Strategies are immutable once in
use and safe for threads; a user-written one has to be too.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from struct import error as StructError
from typing import Any, Self

from shardlite.errors import LayoutMismatchError, ProgrammingError, RoutingError
from shardlite.router.keys import Affinity, KeyType, encode_integer, hash32, slot_of, sort_key

DEFAULT_SLOTS = 4096
MAX_SLOTS = 65536


class ShardingStrategy(ABC):
    """Decide which shard holds a key. Subclass it, define ``shard_for`` and, to let ranges prune shards,
    ``shards_for_range``.

    ``self.num_shards`` is the number of shards of the database that uses the strategy, None before that. Same key,
    same answer, for ever: the answer is where the row lies on disk.
    """

    num_shards: int | None = None

    @property
    def name(self) -> str:
        """The name under which the catalog stores the strategy: for a user-written class its qualified name."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def parameters(self) -> dict[str, Any]:
        """Return what the catalog stores beside the name, as JSON values. Override it when the class has options."""
        return {}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ShardingStrategy:
        """Build the strategy from stored parameters; the default passes them to the class as keywords."""
        return cls(**parameters)

    @abstractmethod
    def shard_for(self, key: Any) -> int:
        """Return the shard that holds ``key``: a value as SQLite stores it, a tuple for a composite key."""

    def shards_for_range(self, low: Any, high: Any) -> set[int]:
        """Return every shard that can hold a key between ``low`` and ``high``, both included; None is an open end."""
        return set(range(self._bound_shards()))

    def bound(self, num_shards: int) -> Self:
        """Return a copy that knows its number of shards. Raises ProgrammingError when that number can't be."""
        made = copy.copy(self)
        made.num_shards = num_shards
        return made

    def locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any], int]:
        """Return the function from a key, as the user gives it, to its shard, for keys of one type.

        The default asks ``shard_for`` about the key's representative and checks the answer.
        """

        def locate(key: Any) -> int:
            return self._checked(self.shard_for(key_type.representative(key)), key)

        return locate

    def range_locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any, Any], frozenset[int]]:
        """Return the function from the bounds of a range to the shards that can hold keys in it."""

        def locate(low: Any, high: Any) -> frozenset[int]:
            ends = [_whole_or_none(end, key_type) for end in (low, high)]
            shards = self.shards_for_range(*ends)
            return frozenset(self._checked(shard, (low, high)) for shard in shards)

        return locate

    def _bound_shards(self) -> int:
        if self.num_shards is None:
            raise ProgrammingError(f"{self!r} is not in use yet: its number of shards is unknown; call bound(n)")
        return self.num_shards

    def _checked(self, shard: Any, key: Any) -> int:
        if isinstance(shard, int) and not isinstance(shard, bool) and 0 <= shard < self._bound_shards():
            return shard
        raise RoutingError(
            f"the strategy {self.name} put the key {key!r} on shard {shard!r}; it must return an int from 0 to "
            f"{self._bound_shards() - 1}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardingStrategy):
            return NotImplemented
        return (
            type(self) is type(other)
            and self.num_shards == other.num_shards
            and describe_strategy(self) == describe_strategy(other)
        )

    def __hash__(self) -> int:
        return hash((self.name, self.num_shards))

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.parameters().items())
        return f"{type(self).__name__}({parts if len(parts) <= 200 else parts[:200] + '...'})"


class HashStrategy(ShardingStrategy):
    """Spread keys evenly: MurmurHash3 of the canonical key bytes, modulo ``slots``, looked up in the slot map."""

    def __init__(self, slots: int = DEFAULT_SLOTS) -> None:
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS:
            raise ProgrammingError(f"slots must be an int from 1 to {MAX_SLOTS}, not {slots!r}")
        self.slots = slots

    @property
    def name(self) -> str:
        return "hash"

    def parameters(self) -> dict[str, Any]:
        return {"slots": self.slots}

    def bound(self, num_shards: int) -> Self:
        if num_shards > self.slots:
            raise ProgrammingError(f"{num_shards} shards need at least as many slots, not {self.slots}")
        return super().bound(num_shards)

    def shard_for(self, key: Any) -> int:
        """Return the shard of a key by the even slot map that a new database has.

        A database's own map may have moved slots since; ``Layout.shard_of`` follows it.
        """
        shards = self._bound_shards()
        width = len(key) if isinstance(key, tuple) else 1
        canonical = KeyType((Affinity.BLOB,) * width, ("BINARY",) * width).canonical(key)
        return slot_of(canonical, self.slots) * shards // self.slots

    def locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any], int]:
        canonical, slots, common = key_type.canonical, len(slot_map), key_type.common_type

        def locate(key: Any) -> int:
            return slot_map[slot_of(canonical(key), slots)]

        def locate_integer(key: Any) -> int:
            if type(key) is not int:
                return locate(key)
            try:
                return slot_map[hash32(encode_integer(b"i", key), 0, False) % slots]
            except StructError:  # beyond 64 bits: canonical() names it
                return locate(key)

        def locate_text(key: Any) -> int:
            if type(key) is not str:
                return locate(key)
            try:
                return slot_map[hash32(b"t" + key.encode(), 0, False) % slots]
            except UnicodeEncodeError:  # a lone surrogate: canonical() names it
                return locate(key)

        if common is int:
            return locate_integer
        return locate_text if common is str and key_type.collations == ("BINARY",) else locate

    def range_locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any, Any], frozenset[int]]:
        locate, everywhere = self.locator(key_type, slot_map), frozenset(range(self._bound_shards()))

        def shards_between(low: Any, high: Any) -> frozenset[int]:
            if low is not None and high is not None and key_type.order(low) == key_type.order(high):
                width = len(low) if isinstance(low, (tuple, list)) else 1
                if width == key_type.width:
                    return frozenset((locate(low),))
            return everywhere

        return shards_between


class RangeStrategy(ShardingStrategy):
    """Put neighbouring keys together: n ascending boundaries cut the keys into n + 1 ranges, one per shard.

    A key below the first boundary is on shard 0, a key equal to boundary i (counted from 0) or above it on shard
    i + 1. Order is SQLite's: NULL, numbers, text, blobs; text by the key column's collation. For a composite key
    a boundary is a tuple, or a single value for the first column.
    """

    def __init__(self, boundaries: Sequence[Any]) -> None:
        if isinstance(boundaries, (str, bytes)) or not isinstance(boundaries, Sequence):
            raise ProgrammingError(f"boundaries must be a list of keys, not {boundaries!r}")
        self.boundaries = tuple(tuple(b) if isinstance(b, list) else b for b in boundaries)
        self._require_ascending([_plain_order(boundary) for boundary in self.boundaries], "")

    def _require_ascending(self, orders: Sequence[Any], where: str) -> None:
        for position in range(1, len(orders)):
            if not orders[position - 1] < orders[position]:
                low, high = self.boundaries[position - 1 : position + 1]
                raise ProgrammingError(f"range boundaries must ascend{where}: {high!r} comes after {low!r}")

    @property
    def name(self) -> str:
        return "range"

    def parameters(self) -> dict[str, Any]:
        return {"boundaries": [key_to_json(boundary) for boundary in self.boundaries]}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> RangeStrategy:
        return cls([key_from_json(item) for item in parameters["boundaries"]])

    def bound(self, num_shards: int) -> Self:
        if len(self.boundaries) + 1 != num_shards:
            raise ProgrammingError(
                f"{len(self.boundaries)} range boundaries make {len(self.boundaries) + 1} ranges, but there are "
                f"{num_shards} shards: give {num_shards - 1} boundaries"
            )
        return super().bound(num_shards)

    def shard_for(self, key: Any) -> int:
        return bisect_right([_plain_order(boundary) for boundary in self.boundaries], _plain_order(key))

    def shards_for_range(self, low: Any, high: Any) -> set[int]:
        first = 0 if low is None else self.shard_for(low)
        last = len(self.boundaries) if high is None else self.shard_for(high)
        return set(range(first, last + 1))

    def _orders(self, key_type: KeyType) -> list[tuple[Any, ...]]:
        orders = [key_type.order(boundary) for boundary in self.boundaries]
        self._require_ascending(orders, f" as {', '.join(key_type.affinities)} {', '.join(key_type.collations)} keys")
        return orders

    def locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any], int]:
        orders = self._orders(key_type)

        def locate(key: Any) -> int:
            return bisect_right(orders, key_type.order(_full(key, key_type)))

        return locate

    def range_locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any, Any], frozenset[int]]:
        orders = self._orders(key_type)

        def shards_between(low: Any, high: Any) -> frozenset[int]:
            first = 0 if low is None else bisect_right(orders, key_type.order(low))
            last = len(orders) if high is None else bisect_right(orders, _last_order(key_type, high))
            return frozenset(range(first, last + 1))

        return shards_between


class DirectoryStrategy(ShardingStrategy):
    """Look keys up in an explicit map of key to shard; other keys go by ``default``, or are an error without one."""

    def __init__(self, directory: Mapping[Any, int], default: ShardingStrategy | None = None) -> None:
        if not isinstance(directory, Mapping):
            raise ProgrammingError(f"the directory must map keys to shards, not {directory!r}")
        if default is not None and not isinstance(default, ShardingStrategy):
            raise ProgrammingError(f"the default of a directory must be a ShardingStrategy, not {default!r}")
        if isinstance(default, DirectoryStrategy):
            raise ProgrammingError("the default of a directory can't be another directory: merge the two maps")
        self.directory = dict(directory)
        self.default = default
        for key in self.directory:
            _plain_order(key)

    @property
    def name(self) -> str:
        return "directory"

    def parameters(self) -> dict[str, Any]:
        entries = sorted(self.directory.items(), key=lambda item: _plain_order(item[0]))
        default = None if self.default is None else describe_strategy(self.default)
        return {"directory": [[key_to_json(key), shard] for key, shard in entries], "default": default}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> DirectoryStrategy:
        stored = parameters["default"]
        default = None if stored is None else build_strategy(stored["name"], stored["parameters"])
        return cls({key_from_json(key): shard for key, shard in parameters["directory"]}, default)

    def bound(self, num_shards: int) -> Self:
        for key, shard in self.directory.items():
            if isinstance(shard, bool) or not isinstance(shard, int) or not 0 <= shard < num_shards:
                raise ProgrammingError(
                    f"the directory puts the key {key!r} on shard {shard!r}, but the shards are 0 to {num_shards - 1}"
                )
        made = super().bound(num_shards)
        if self.default is not None:
            made.default = self.default.bound(num_shards)
        return made

    def shard_for(self, key: Any) -> int:
        if key in self.directory:
            return self.directory[key]
        if self.default is None:
            raise self._unknown(key)
        return self.default.shard_for(key)

    def shards_for_range(self, low: Any, high: Any) -> set[int]:
        shards = {shard for key, shard in self.directory.items() if _within(_plain_order(key), low, high)}
        return shards if self.default is None else shards | self.default.shards_for_range(low, high)

    def _unknown(self, key: Any) -> RoutingError:
        return RoutingError(
            f"the key {key!r} is not in the directory of {len(self.directory)} keys, which has no default strategy: "
            "add it, or create the database with a default"
        )

    def _by_canonical(self, key_type: KeyType) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for key, shard in self.directory.items():
            canonical = key_type.canonical(key)
            if found.setdefault(canonical, shard) != shard:
                raise ProgrammingError(
                    f"the directory puts the key {key!r} on shard {shard}, and an equal key of another spelling on "
                    f"shard {found[canonical]}"
                )
        return found

    def locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any], int]:
        by_canonical, canonical = self._by_canonical(key_type), key_type.canonical
        default = None if self.default is None else self.default.locator(key_type, slot_map)

        def locate(key: Any) -> int:
            shard = by_canonical.get(canonical(key))
            if shard is not None:
                return shard
            if default is None:
                raise self._unknown(key)
            return default(key)

        return locate

    def range_locator(self, key_type: KeyType, slot_map: Sequence[int]) -> Callable[[Any, Any], frozenset[int]]:
        orders = [(key_type.order(key), shard) for key, shard in self.directory.items()]
        default = None if self.default is None else self.default.range_locator(key_type, slot_map)

        def shards_between(low: Any, high: Any) -> frozenset[int]:
            first = None if low is None else key_type.order(low)
            last = None if high is None else _last_order(key_type, high)
            named = {s for o, s in orders if (first is None or first <= o) and (last is None or o <= last)}
            return frozenset(named if default is None else named | default(low, high))

        return shards_between


def _plain_order(key: Any) -> tuple[Any, ...]:
    """Return the order of a key whose type is not known: no affinity, BINARY."""
    parts = key if isinstance(key, (tuple, list)) else (key,)
    return tuple(sort_key(part) for part in parts)


def _within(order: tuple[Any, ...], low: Any, high: Any) -> bool:
    return (low is None or _plain_order(low) <= order) and (high is None or order <= _plain_order(high))


def _whole_or_none(end: Any, key_type: KeyType) -> Any:
    """Return a bound as a strategy is asked about it; None, an open end, for a prefix of a composite key."""
    if end is None or (key_type.width > 1 and not (isinstance(end, (tuple, list)) and len(end) == key_type.width)):
        return None
    return key_type.representative(end)


def _full(key: Any, key_type: KeyType) -> Any:
    """Return the key; raise RoutingError when a composite key is not complete."""
    if key_type.width > 1 and not (isinstance(key, (tuple, list)) and len(key) == key_type.width):
        raise RoutingError(f"the key has {key_type.width} columns: give a tuple of as many values, not {key!r}")
    return key


def _last_order(key_type: KeyType, high: Any) -> tuple[Any, ...]:
    """Return an order at or after every key that begins with ``high``."""
    order = key_type.order(high)
    return order if len(order) == key_type.width else (*order, (9,))


_REGISTRY: dict[str, type[ShardingStrategy]] = {
    "hash": HashStrategy,
    "range": RangeStrategy,
    "directory": DirectoryStrategy,
}


def register_strategy(cls: type[ShardingStrategy]) -> type[ShardingStrategy]:
    """Let databases that use a user-written strategy open without being passed it; usable as a class decorator.

    The class is found again by its qualified name and built by ``from_parameters``.
    """
    if not (isinstance(cls, type) and issubclass(cls, ShardingStrategy)):
        raise ProgrammingError(f"not a ShardingStrategy class: {cls!r}")
    _REGISTRY[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return cls


def describe_strategy(strategy: ShardingStrategy) -> dict[str, Any]:
    """Return what the catalog stores of a strategy: ``{"name": ..., "parameters": {...}}``, JSON values only."""
    return {"name": strategy.name, "parameters": strategy.parameters()}


def build_strategy(name: str, parameters: Mapping[str, Any]) -> ShardingStrategy:
    """Build a stored strategy. Raises LayoutMismatchError when it is user-written and not registered."""
    cls = _REGISTRY.get(name)
    if cls is None:
        raise LayoutMismatchError(
            f"the database is laid out by the strategy {name} with parameters {dict(parameters)!r}, which is not "
            "part of shardlite: pass an instance of it as strategy=, or register its class with register_strategy"
        )
    return cls.from_parameters(parameters)


def resolve_strategy(name: str, parameters: Mapping[str, Any], given: ShardingStrategy | None) -> ShardingStrategy:
    """Return the strategy of a stored layout, checking the one that the caller passed, if any.

    Raises LayoutMismatchError, naming both sides, when another strategy or other parameters are given.
    """
    if given is None:
        return build_strategy(name, parameters)
    if given.name != name or given.parameters() != dict(parameters):
        raise LayoutMismatchError(
            f"the database is laid out by the strategy {name} with parameters {_shortened(parameters)}, but "
            f"{given.name} with parameters {_shortened(given.parameters())} was given: leave strategy= out to use "
            "the stored one, or copy the data into a new database"
        )
    return given


def _shortened(parameters: Mapping[str, Any]) -> str:
    text = repr(dict(parameters))
    return text if len(text) <= 300 else f"{text[:300]}..."


def key_to_json(key: Any) -> Any:
    """Return a key as a JSON value: blobs, infinities and tuples are wrapped in an object or a list."""
    if isinstance(key, (tuple, list)):
        return [key_to_json(part) for part in key]
    if isinstance(key, (bytes, bytearray, memoryview)):
        return {"blob": bytes(key).hex()}
    if isinstance(key, float) and not math.isfinite(key):
        return {"real": repr(float(key))}
    return key


def key_from_json(item: Any) -> Any:
    """Return the key that ``key_to_json`` wrote."""
    if isinstance(item, list):
        return tuple(key_from_json(part) for part in item)
    if isinstance(item, dict):
        return bytes.fromhex(item["blob"]) if "blob" in item else float(item["real"])
    return item
