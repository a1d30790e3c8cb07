"""The layout: which shard holds which key. Frozen; a change makes a new layout of the next epoch."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Final

from shardlite.errors import ProgrammingError
from shardlite.router.keys import KeyType, encode_integer, hash32, slot_of
from shardlite.router.strategies import DEFAULT_SLOTS, DirectoryStrategy, HashStrategy, ShardingStrategy

MAX_SHARDS: Final = 4096
ENCODINGS: Final = ("UTF-8", "UTF-16le", "UTF-16be")

_MEMO_LIMIT: Final = 16_384
"""Keys remembered per key type where placing one is dear: about 2 MB."""


def even_slot_map(slots: int, num_shards: int) -> tuple[int, ...]:
    """Return the slot map of a new database: contiguous runs of slots, their lengths differing by one at most."""
    return tuple(slot * num_shards // slots for slot in range(slots))


@dataclass(frozen=True)
class Layout:
    """Where keys live. Immutable apart from memos, and safe for threads.

    ``strategy`` is bound to ``num_shards``. ``slot_map[slot]`` is the shard of a hash slot; it is there under every
    strategy, since a directory may send its unknown keys through the hash.
    """

    database_id: str
    num_shards: int
    slots: int
    strategy: ShardingStrategy
    slot_map: tuple[int, ...]
    epoch: int = 1
    encoding: str = "UTF-8"
    _locators: dict[KeyType, Callable[[Any], int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _range_locators: dict[KeyType, Callable[[Any, Any], frozenset[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        require_num_shards(self.num_shards)
        if len(self.slot_map) != self.slots:
            raise ProgrammingError(f"the slot map has {len(self.slot_map)} entries for {self.slots} slots")
        wrong = next((shard for shard in self.slot_map if not 0 <= shard < self.num_shards), None)
        if wrong is not None:
            raise ProgrammingError(f"the slot map names shard {wrong}, but the shards are 0 to {self.num_shards - 1}")
        if self.encoding not in ENCODINGS:
            raise ProgrammingError(f"unknown text encoding {self.encoding!r}: use one of {', '.join(ENCODINGS)}")
        if self.strategy.num_shards != self.num_shards:
            object.__setattr__(self, "strategy", self.strategy.bound(self.num_shards))

    @classmethod
    def create(
        cls,
        num_shards: int,
        strategy: ShardingStrategy | None = None,
        *,
        database_id: str | None = None,
        encoding: str = "UTF-8",
    ) -> Layout:
        """Return the layout of a new database; the strategy is hash with 4096 slots unless given.

        Raises ProgrammingError when the number of shards is not 1 to 4096 or doesn't suit the strategy.
        """
        require_num_shards(num_shards)
        if strategy is None:
            strategy = HashStrategy(max(DEFAULT_SLOTS, num_shards))
        if not isinstance(strategy, ShardingStrategy):
            raise ProgrammingError(f"strategy must be a ShardingStrategy, not {strategy!r}")
        slots = slots_of(strategy)
        return cls(
            database_id=database_id or uuid.uuid4().hex,
            num_shards=num_shards,
            slots=slots,
            strategy=strategy.bound(num_shards),
            slot_map=even_slot_map(slots, num_shards),
            encoding=encoding,
        )

    @property
    def shard_ids(self) -> range:
        """The shards' numbers."""
        return range(self.num_shards)

    def at_epoch(self, epoch: int) -> Layout:
        """Return the same layout under another epoch."""
        return self if epoch == self.epoch else replace(self, epoch=epoch)

    def shard_of(self, key_type: KeyType) -> Callable[[Any], int]:
        """Return the function from a key to its shard, made for speed: take it once, call it per row.

        The function raises RoutingError for a value that can't be a key of this type.
        """
        locator = self._locators.get(key_type)
        if locator is None:
            locator = self._memoised(key_type, self.strategy.locator(key_type, self.slot_map))
            self._locators[key_type] = locator
        return locator

    def _memoised(self, key_type: KeyType, locate: Callable[[Any], int]) -> Callable[[Any], int]:
        """Put a memo before ``locate`` where a key of one plain Python type is the common case."""
        common = key_type.common_type
        hashed = type(self.strategy) is HashStrategy
        if common is None or (hashed and (common is int or key_type.collations == ("BINARY",))):
            return locate  # hashing costs hardly more than looking up
        memo: dict[Any, int] = {}
        # A user-written strategy may be anything, but "same key, same answer" is its contract too.

        def shard_of(key: Any) -> int:
            # The exact type: 5 == 5.0 == Decimal(5) to a dict, but they need not be one key.
            if type(key) is not common:
                return locate(key)
            try:
                return memo[key]
            except KeyError:
                shard = locate(key)
            if len(memo) >= _MEMO_LIMIT:
                memo.clear()
            memo[key] = shard
            return shard

        return shard_of

    def shards_of_many(self, key_type: KeyType, keys: Sequence[Any], *, integers: bool = False) -> list[int]:
        """Return the shard of each key, in order; for bulk work, without filling the memo.

        ``integers``: the caller knows that all keys are of type int.
        """
        hashed = type(self.strategy) is HashStrategy and key_type.common_type is int
        if hashed and (integers or set(map(type, keys)) == {int}):
            return self._shards_of_integers(key_type, keys)
        locate = self.strategy.locator(key_type, self.slot_map)
        return [locate(key) for key in keys]

    def _shards_of_integers(self, key_type: KeyType, keys: Sequence[int]) -> list[int]:
        slot_map, slots, pack, hash_of = self.slot_map, self.slots, encode_integer, hash32
        try:
            # Chained at C speed: slot_map[hash(pack(b"i", key)) % slots] for each key.
            hashes = map(hash_of, map(pack, repeat(b"i"), keys), repeat(0), repeat(False))
            return list(map(slot_map.__getitem__, map(slots.__rmod__, hashes)))
        except struct.error:  # an int beyond 64 bits: the slow way names it
            locate = self.strategy.locator(key_type, slot_map)
            return [locate(key) for key in keys]

    def slot(self, key_type: KeyType, key: Any) -> int:
        """Return the key's hash slot."""
        return slot_of(key_type.canonical(key), self.slots)

    def shard_of_canonical(self, canonical: bytes) -> int:
        """Return the shard of canonical key bytes: for rows whose key Python can't hold, such as malformed UTF-8.

        Raises ProgrammingError under a strategy that needs the value itself.
        """
        strategy: ShardingStrategy | None = self.strategy
        if isinstance(strategy, DirectoryStrategy):
            strategy = strategy.default
        if not isinstance(strategy, HashStrategy):
            raise ProgrammingError(
                f"the strategy {self.strategy.name} can't place a key that is not valid text: {canonical[:80]!r}"
            )
        return self.slot_map[slot_of(canonical, self.slots)]

    def shards_between(self, key_type: KeyType, low: Any, high: Any) -> frozenset[int]:
        """Return the shards that can hold keys from ``low`` to ``high``, both included; None is an open end.

        NULL keys lie in no range. For a composite key a bound may be a prefix of it.
        """
        if self.encoding != "UTF-8" and not all(_order_is_plain(end) for end in (low, high)):
            # BINARY compares UTF-16 text byte by byte: another order than that of the boundaries.
            return frozenset(self.shard_ids)
        locate = self._range_locators.get(key_type)
        if locate is None:
            locate = self._range_locators[key_type] = self.strategy.range_locator(key_type, self.slot_map)
        return locate(low, high)


def require_num_shards(num_shards: Any) -> None:
    """Raise ProgrammingError unless ``num_shards`` is an int from 1 to 4096."""
    if isinstance(num_shards, bool) or not isinstance(num_shards, int) or not 1 <= num_shards <= MAX_SHARDS:
        raise ProgrammingError(f"num_shards must be an int from 1 to {MAX_SHARDS}, not {num_shards!r}")


def slots_of(strategy: ShardingStrategy) -> int:
    """Return the slot count that a strategy asks for; the default where it doesn't hash."""
    if isinstance(strategy, DirectoryStrategy) and strategy.default is not None:
        strategy = strategy.default
    return strategy.slots if isinstance(strategy, HashStrategy) else DEFAULT_SLOTS


def _order_is_plain(end: Any) -> bool:
    """Tell whether a bound orders alike in every text encoding: there is no text in it."""
    parts = end if isinstance(end, (tuple, list)) else (end,)
    return not any(isinstance(part, str) for part in parts)
