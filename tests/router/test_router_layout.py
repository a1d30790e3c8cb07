"""Strategies and the layout."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardlite.errors import LayoutMismatchError, ProgrammingError, RoutingError
from shardlite.router.keys import Affinity, KeyType, sort_key
from shardlite.router.layout import Layout, even_slot_map
from shardlite.router.router import Router
from shardlite.router.strategies import (
    DirectoryStrategy,
    HashStrategy,
    RangeStrategy,
    ShardingStrategy,
    build_strategy,
    describe_strategy,
    key_from_json,
    key_to_json,
    register_strategy,
    resolve_strategy,
)

INTEGER = KeyType((Affinity.INTEGER,), ("BINARY",))
TEXT = KeyType((Affinity.TEXT,), ("BINARY",))
NOCASE = KeyType((Affinity.TEXT,), ("NOCASE",))
ANYTHING = KeyType((Affinity.BLOB,), ("BINARY",))
PAIR = KeyType((Affinity.TEXT, Affinity.INTEGER), ("BINARY", "BINARY"))

keys = st.one_of(
    st.none(), st.integers(-50, 50), st.floats(-50, 50), st.text("abAB \0", max_size=2), st.binary(max_size=1)
)


class Modulo(ShardingStrategy):
    """A user's own: remembers what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def shard_for(self, key: Any) -> int:
        self.asked.append(key)
        return hash(key) % 3 if self.answer is None else self.answer

    def parameters(self) -> dict[str, Any]:
        return {"answer": self.answer}


# ---- layout


@pytest.mark.parametrize("number", [0, -1, 4097, True, 2.0, "4", None])
def test_the_number_of_shards_is_validated(number: Any) -> None:
    with pytest.raises(ProgrammingError, match=f"1 to 4096, not {number!r}"):
        Layout.create(number)


@pytest.mark.parametrize("slots", [0, -1, 65537, True, 1.5])
def test_the_number_of_slots_is_validated(slots: Any) -> None:
    with pytest.raises(ProgrammingError, match=f"not {slots!r}"):
        HashStrategy(slots)


def test_slots_are_even_and_contiguous() -> None:
    for shards in (1, 3, 4, 7, 4096):
        slot_map = even_slot_map(4096, shards)
        sizes = [slot_map.count(shard) for shard in range(shards)] if shards < 10 else [1]
        assert list(slot_map) == sorted(slot_map)
        assert set(slot_map) == set(range(shards))
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ProgrammingError, match="8 shards need at least as many slots, not 5"):
        Layout.create(8, HashStrategy(5))


def test_a_layout_checks_its_parts() -> None:
    good = Layout.create(2, HashStrategy(4))
    parts = {"database_id": "x", "num_shards": 2, "slots": 4, "strategy": good.strategy, "slot_map": (0, 0, 1, 1)}
    assert Layout(**parts).shard_ids == range(2)
    for wrong, words in (
        ({"slot_map": (0, 1)}, "2 entries for 4 slots"),
        ({"slot_map": (0, 0, 1, 2)}, "names shard 2"),
        ({"encoding": "latin1"}, "latin1"),
    ):
        with pytest.raises(ProgrammingError, match=words):
            Layout(**(parts | wrong))


def test_layouts_have_identities_and_epochs() -> None:
    one, other = Layout.create(2), Layout.create(2)
    assert len(one.database_id) == 32
    assert one.database_id != other.database_id
    assert one.at_epoch(5).epoch == 5
    assert one.at_epoch(5).shard_of(INTEGER)(7) == one.shard_of(INTEGER)(7)


def test_a_moved_slot_moves_its_keys() -> None:
    layout = Layout.create(2)
    slot = layout.slot(INTEGER, 7)
    moved = list(layout.slot_map)
    moved[slot] = 1 - moved[slot]
    changed = Layout(layout.database_id, 2, layout.slots, layout.strategy, tuple(moved), 2)
    assert changed.shard_of(INTEGER)(7) == 1 - layout.shard_of(INTEGER)(7)
    assert changed.shards_of_many(INTEGER, [7]) == [changed.shard_of(INTEGER)(7)]


def test_bulk_and_single_routing_agree() -> None:
    layout = Layout.create(8)
    numbers = list(range(-500, 500))
    assert layout.shards_of_many(INTEGER, numbers) == [layout.shard_of(INTEGER)(n) for n in numbers]
    mixed = [1, "1", 1.0, None, b"1", True]
    assert layout.shards_of_many(INTEGER, mixed) == [layout.shard_of(INTEGER)(key) for key in mixed]
    assert len(set(layout.shards_of_many(INTEGER, numbers))) == 8


def test_the_memo_is_bounded_and_never_mixes_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardlite.router.layout._MEMO_LIMIT", 4)
    layout = Layout.create(3, Modulo())
    shard_of = layout.shard_of(TEXT)
    answers = [shard_of(str(number % 10)) for number in range(40)]
    assert answers == [hash(str(number % 10)) % 3 for number in range(40)]
    assert shard_of(5) == shard_of("5")
    assert 10 < len(layout.strategy.asked) <= 45


# ---- range


def test_a_boundary_begins_the_next_shard() -> None:
    layout = Layout.create(4, RangeStrategy([1000, 2000, 3000]))
    cases = {
        999: 0,
        1000: 1,
        "1000": 1,
        1999.5: 1,
        2000: 2,
        2999: 2,
        3000: 3,
        10**12: 3,
        None: 0,
        "x": 3,
        b"": 3,
        -5: 0,
    }
    shard_of = layout.shard_of(INTEGER)
    assert {key: shard_of(key) for key in cases} == cases
    assert layout.shards_between(INTEGER, 1000, 1999) == {1}
    assert layout.shards_between(INTEGER, 999, 2000) == {0, 1, 2}
    assert layout.shards_between(INTEGER, None, 999) == {0}
    assert layout.shards_between(INTEGER, 3000, None) == {3}
    assert layout.shards_between(INTEGER, None, None) == {0, 1, 2, 3}
    assert layout.shards_between(INTEGER, 5, 4) == {0}
    assert layout.shards_between(INTEGER, 2500, 500) == frozenset()


def test_range_boundaries_are_validated() -> None:
    with pytest.raises(ProgrammingError, match="must ascend: 2 comes after 3"):
        RangeStrategy([1, 3, 2])
    with pytest.raises(ProgrammingError, match="3 range boundaries make 4 ranges, but there are 8 shards: give 7"):
        Layout.create(8, RangeStrategy([1, 2, 3]))
    with pytest.raises(ProgrammingError, match="list of keys"):
        RangeStrategy("abc")
    with pytest.raises(ProgrammingError, match="must ascend as TEXT BINARY keys: 10 comes after 9"):
        Layout.create(3, RangeStrategy([9, 10])).shard_of(TEXT)
    assert RangeStrategy([1, 2]).shard_for(1) == 1


def test_ranges_follow_the_collation() -> None:
    layout = Layout.create(2, RangeStrategy(["M"]))
    assert layout.shard_of(TEXT)("anna") == 1
    assert layout.shard_of(NOCASE)("anna") == layout.shard_of(NOCASE)("ANNA") == 0
    assert layout.shard_of(NOCASE)("m") == 1


def test_composite_ranges_take_prefixes() -> None:
    layout = Layout.create(3, RangeStrategy(["b", ("c", 5)]))
    shard_of = layout.shard_of(PAIR)
    assert [shard_of(key) for key in [("a", 9), ("b", None), ("c", 4), ("c", 5), ("d", 0)]] == [0, 1, 1, 2, 2]
    assert layout.shards_between(PAIR, "c", "c") == {1, 2}
    assert layout.shards_between(PAIR, ("c", 6), "c") == {2}
    assert layout.shards_between(PAIR, None, "a") == {0}
    with pytest.raises(RoutingError, match="2 columns"):
        shard_of("a")


@settings(max_examples=300, deadline=None)
@given(
    boundaries=st.lists(keys.filter(lambda key: key is not None), min_size=1, max_size=4),
    low=keys,
    high=keys,
    key=keys,
)
def test_a_key_in_a_range_is_on_one_of_its_shards(boundaries: list[Any], low: Any, high: Any, key: Any) -> None:
    ascending = sorted({sort_key(b): b for b in boundaries}.items())
    strategies: list[ShardingStrategy] = [
        RangeStrategy([boundary for _, boundary in ascending]),
        HashStrategy(),
        DirectoryStrategy({1: 0, "a": 0}, HashStrategy()),
    ]
    for strategy in strategies:
        layout = Layout.create(len(ascending) + 1, strategy)
        after_low = low is None or sort_key(low) <= sort_key(key)
        before_high = high is None or sort_key(key) <= sort_key(high)
        if key is not None and after_low and before_high:
            assert layout.shard_of(ANYTHING)(key) in layout.shards_between(ANYTHING, low, high)


def test_utf16_databases_do_not_prune_text_ranges() -> None:
    layout = Layout.create(2, RangeStrategy(["m"]), encoding="UTF-16le")
    assert layout.shards_between(TEXT, "a", "b") == {0, 1}
    numbers = Layout.create(2, RangeStrategy([5]), encoding="UTF-16le")
    assert numbers.shards_between(INTEGER, 1, 2) == {0}


# ---- hash and directory


def test_hash_ranges_prune_only_single_keys() -> None:
    layout = Layout.create(4)
    assert layout.shards_between(INTEGER, 7, "7") == {layout.shard_of(INTEGER)(7)}
    assert layout.shards_between(INTEGER, 7, 8) == {0, 1, 2, 3}
    assert layout.shards_between(PAIR, "a", "a") == {0, 1, 2, 3}


def test_a_directory_maps_keys_as_sqlite_compares_them() -> None:
    layout = Layout.create(4, DirectoryStrategy({"acme": 2, "Globex": 3}))
    assert layout.shard_of(NOCASE)("ACME") == 2
    assert layout.shards_between(TEXT, "a", "b") == {2}
    with pytest.raises(RoutingError, match="'ACME' is not in the directory of 2 keys"):
        layout.shard_of(TEXT)("ACME")
    with pytest.raises(ProgrammingError, match=r"shard 4.*0 to 3"):
        Layout.create(4, DirectoryStrategy({"a": 4}))
    clash = Layout.create(4, DirectoryStrategy({"a": 1, "A": 2}))
    with pytest.raises(ProgrammingError, match="equal key of another spelling"):
        clash.shard_of(NOCASE)


def test_a_directory_sends_other_keys_to_its_default() -> None:
    layout, hashed = Layout.create(4, DirectoryStrategy({7: 1}, HashStrategy())), Layout.create(4)
    for key in range(50):
        assert layout.shard_of(INTEGER)(key) == (1 if key == 7 else hashed.shard_of(INTEGER)(key))
    with pytest.raises(ProgrammingError, match="another directory"):
        DirectoryStrategy({}, DirectoryStrategy({}))


# ---- the user's own


def test_a_strategy_is_asked_one_key_for_all_equal_ones() -> None:
    layout = Layout.create(3, Modulo())
    for key_type, spellings, asked in (
        (NOCASE, ("ANN", "ann", "Ann"), "ann"),
        (INTEGER, ("5", 5.0, True + 4, " 5 "), 5),
        (ANYTHING, (1, 1.0), 1),
    ):
        layout.strategy.asked.clear()
        assert len({layout.shard_of(key_type)(spelling) for spelling in spellings}) == 1
        assert {(type(key), key) for key in layout.strategy.asked} == {(type(asked), asked)}
    assert layout.shards_between(INTEGER, 1, 2) == {0, 1, 2}


@pytest.mark.parametrize("answer", [3, -1, "0", True, 1.0])
def test_an_answer_out_of_range_names_everything(answer: Any) -> None:
    layout = Layout.create(3, Modulo(answer))
    with pytest.raises(RoutingError, match=rf"Modulo put the key 'k' on shard {answer!r}; .* 0 to 2"):
        layout.shard_of(TEXT)("k")


def test_range_answers_are_checked_too() -> None:
    class Wide(Modulo):
        def shards_for_range(self, low: Any, high: Any) -> set[int]:
            return {0, 9}

    with pytest.raises(RoutingError, match="shard 9"):
        Layout.create(3, Wide()).shards_between(INTEGER, 1, 2)
    with pytest.raises(ProgrammingError, match="not in use yet"):
        Modulo().shards_for_range(1, 2)


# ---- stored


@pytest.mark.parametrize(
    "strategy",
    [
        HashStrategy(),
        HashStrategy(16),
        RangeStrategy([1, 2.5, "x", b"\xff"]),
        RangeStrategy([("a", 1), ("a", 2)]),
        DirectoryStrategy({"a": 0, 5: 1, b"x": 2}),
        DirectoryStrategy({"a": 0}, HashStrategy(64)),
        DirectoryStrategy({"a": 0}, RangeStrategy([float("-inf"), 0])),
    ],
)
def test_strategies_are_stored_as_json(strategy: ShardingStrategy) -> None:
    stored = json.loads(json.dumps(describe_strategy(strategy)))
    built = build_strategy(stored["name"], stored["parameters"])
    assert type(built) is type(strategy)
    assert describe_strategy(built) == stored
    assert resolve_strategy(stored["name"], stored["parameters"], strategy) is strategy
    assert repr(built) == repr(strategy)


@given(key=st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()))
def test_keys_survive_json(key: Any) -> None:
    assert key_from_json(json.loads(json.dumps(key_to_json(key)))) == key
    assert key_from_json(json.loads(json.dumps(key_to_json((key, 1))))) == (key, 1)


def test_another_strategy_than_the_stored_is_refused() -> None:
    stored = describe_strategy(HashStrategy())
    with pytest.raises(LayoutMismatchError, match=r"hash .*4096.*range .*\[5\]"):
        resolve_strategy(stored["name"], stored["parameters"], RangeStrategy([5]))
    with pytest.raises(LayoutMismatchError, match=r"4096.*hash.*64"):
        resolve_strategy(stored["name"], stored["parameters"], HashStrategy(64))


def test_a_user_written_strategy_is_passed_or_registered() -> None:
    class Registered(Modulo):
        pass

    stored = describe_strategy(Modulo(1))
    with pytest.raises(LayoutMismatchError, match=r"Modulo.*strategy="):
        build_strategy(stored["name"], stored["parameters"])
    assert resolve_strategy(stored["name"], stored["parameters"], Modulo(1)).shard_for(0) == 1
    with pytest.raises(LayoutMismatchError, match="Modulo"):
        resolve_strategy(stored["name"], stored["parameters"], Modulo(2))
    register_strategy(Registered)
    assert isinstance(build_strategy(Registered().name, {"answer": 2}), Registered)
    with pytest.raises(ProgrammingError, match="not a ShardingStrategy"):
        register_strategy(int)  # type: ignore[arg-type]  # what is tested


# ---- router


class FakeManager:
    """Answers with what it was called with."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: (name, *args, *options.items())


def test_the_router_delegates() -> None:
    router = Router(FakeManager(Layout.create(2)), HashStrategy())
    assert router.strategy.name == "hash"
    assert router.route_insert("t", {"a": 1}, 5) == ("insert", "t", {"a": 1}, 5)
    assert router.route_select("t", None, 5, limit=1) == ("select", "t", None, 5, ("limit", 1))
    assert router.route_update("t", {"a": 1}, {"b": 2}) == ("update", "t", {"a": 1}, {"b": 2}, None)
    assert router.route_delete("t", key=5) == ("delete", "t", None, 5)
    assert router.route_aggregate("t", "SUM(a)") == ("aggregate", "t", "SUM(a)", None, None)
    assert router.shard_for("t", 5) == ("shard_for", "t", 5)
    assert "shards=2" in repr(router)
    with pytest.raises(LayoutMismatchError, match="range"):
        Router(FakeManager(Layout.create(2)), RangeStrategy([5]))
