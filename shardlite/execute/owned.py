"""Rows on their way to the shards that own their keys: one database in memory per shard, all under one name.

The rows wait in a table of the coordinator, in a column of which the router tells each row's owner; then each owner's
go to its database. Nothing but the keys becomes a Python object. All shards run one text over their databases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError
from shardlite.execute.exchange import SHARED_BYTES, limit_size, memory_uri
from shardlite.router.keys import KeyType, slot_of
from shardlite.router.layout import Layout
from shardlite.router.strategies import HashStrategy
from shardlite.sql.plan import Move
from shardlite.sql.reduction import OWNED

OWNER = "_shardlite_owner"
"""The column of a waiting row that tells its owner."""
_SCANNED = 8
"""Owners up to which reading all waiting rows for each is faster than an index."""
_CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}


class Owned:
    """The databases of the shards that answer. Rows of other shards' keys are dropped: nobody asks for them."""

    def __init__(
        self, connection: sqlite3.Connection, run: Callable[..., sqlite3.Cursor], layout: Layout, shards: Sequence[int]
    ) -> None:
        self.uris = {shard: memory_uri() for shard in shards}
        self._connection = connection
        self._run = run
        self._layout = layout

    def spool(self, move: Move, number: int) -> Move:
        """Make a table of the coordinator's in which a move's rows wait; each row's owner is told as it comes."""
        assert move.route is not None
        plain, other = f"_shardlite_owner_of_{number}", f"_shardlite_owner_of_any_{number}"
        positions = move.route.positions
        key_type = move.route.key_type
        owner_of = _owner_of(self._layout, key_type)
        self._connection.create_function(other, 2 * len(positions), owner_of, deterministic=True)
        # As bytes: text need not be Unicode.
        said = ", ".join(f"CASE typeof(c{at}) WHEN 'text' THEN CAST(c{at} AS BLOB) ELSE c{at} END" for at in positions)
        texts = ", ".join(f"typeof(c{at}) = 'text'" for at in positions)
        owner = f"{other}({said}, {texts})"
        if len(positions) == 1:
            locate = self._layout.shard_of(key_type)
            if type(self._layout.strategy) is not HashStrategy:  # which places every integer
                locate = _or_else(locate, owner_of)
            self._connection.create_function(plain, 1, locate, deterministic=True)
            owner = f"CASE typeof(c{positions[0]}) WHEN 'integer' THEN {plain}(c{positions[0]}) ELSE {owner} END"
        into = f"main._shardlite_spool_{number}"
        columns = ", ".join(f"c{index}" for index in range(move.width))
        self._run("PRAGMA trusted_schema = ON")  # the functions are ours
        self._run(f"CREATE TABLE {into}({OWNER} AS ({owner}) STORED, {columns})")
        return move._replace(into=into, insert=f"INSERT INTO {into}({columns})")

    def fill(
        self,
        moves: Sequence[Move],
        spools: Sequence[Move],
        finish: Callable[[str, Sequence[Move], Sequence[int]], None],
    ) -> None:
        """Give every owner its rows of the moves, which wait in ``spools``.

        ``finish(schema, moves, counts)`` is called for each database, for indexes and figures. The shards' connections
        have attached the databases, which live as long as one connection has them.
        """
        if len(self.uris) > _SCANNED:
            for number, spool in enumerate(spools):
                at = spool.into.removeprefix("main.")
                self._run(f"CREATE INDEX main._shardlite_spooled_{number} ON {at}({OWNER})")
        for shard, uri in self.uris.items():
            self._run(f"ATTACH '{uri}' AS {OWNED}")
            try:
                limit_size(self._connection.execute, OWNED, SHARED_BYTES // len(self.uris))
                counts = []
                for move, spool in zip(moves, spools, strict=True):
                    self._run(move.create)
                    columns = ", ".join(f"c{index}" for index in range(move.width))
                    rows = f"SELECT {columns} FROM {spool.into} WHERE {OWNER} = ?"
                    counts.append(self._run(f"{move.insert} {rows}", (shard,)).rowcount)
                finish(OWNED, moves, counts)
            finally:
                self._connection.execute(f"DETACH {OWNED}")
        for spool in spools:
            self._run(f"DROP TABLE {spool.into}")


def _or_else(locate: Callable[[Any], int], otherwise: Callable[..., int]) -> Callable[[Any], int]:
    """Return a function that places an integer, also one that the strategy doesn't know."""

    def owner_of(key: Any) -> int:
        try:
            return locate(key)
        except Exception:
            return otherwise(key, 0)

    return owner_of


def _owner_of(layout: Layout, key_type: KeyType) -> Callable[..., int]:
    """Return the function from the values of a row's columns, and which of them are text, to the owner's number."""
    locate, codec = layout.shard_of(key_type), _CODECS[layout.encoding]
    width = key_type.width

    def owner_of(*given: Any) -> int:
        values = list(given[:width])
        kinds = []
        whole = True
        for number, is_text in enumerate(given[width:]):
            kinds.append("text" if is_text else "other")
            if is_text:
                try:
                    values[number] = values[number].decode(codec)
                except UnicodeDecodeError:
                    whole = False
                    if codec != "utf-8":
                        values[number] = values[number].decode(codec, "surrogatepass").encode("utf-8", "surrogatepass")
        if whole:
            key = values[0] if width == 1 else tuple(values)
            try:
                return locate(key)
            except Exception:
                # The strategy, a user's perhaps, has no place for it: no row of a sharded table has this key. Equal
                # values have to be together all the same.
                return layout.slot_map[slot_of(key_type.canonical(key), layout.slots)]
        canonical = key_type.canonical_from_storage(*((kinds[0], values[0]) if width == 1 else (kinds, values)))
        try:
            return layout.shard_of_canonical(canonical)
        except ProgrammingError:
            return layout.slot_map[slot_of(canonical, layout.slots)]

    return owner_of
