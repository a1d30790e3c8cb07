"""Rows on their way to the shards that own their keys: one database in memory per shard, all under one name.

The rows wait in a table of the coordinator, which tells the owner of each row once, by the router; then each owner's
go to its database inside SQLite. All shards run one text over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import ProgrammingError
from shardlite.execute.exchange import SHARED_BYTES, limit_size, memory_uri
from shardlite.router.keys import slot_of
from shardlite.router.layout import Layout
from shardlite.sql.plan import Move, Route
from shardlite.sql.reduction import OWNED

_OWNERS = "main._shardlite_owners"
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

    def fill(
        self, moves: Sequence[Move], spools: Sequence[str], finish: Callable[[str, Sequence[Move], Sequence[int]], None]
    ) -> None:
        """Give every owner its rows of the moves, which wait in ``spools``.

        ``finish(schema, moves, counts)`` is called for each database, for indexes and figures. The shards' connections
        have attached the databases, which live as long as one connection has them.
        """
        owners = [f"{_OWNERS}_{number}" for number in range(len(moves))]
        for owner, move, spool in zip(owners, moves, spools, strict=True):
            self._tell(owner, move, spool)
        for shard, uri in self.uris.items():
            self._run(f"ATTACH '{uri}' AS {OWNED}")
            try:
                limit_size(self._connection.execute, OWNED, SHARED_BYTES // len(self.uris))
                counts = []
                for owner, move, spool in zip(owners, moves, spools, strict=True):
                    self._run(move.create)
                    columns = ", ".join(f"c{index}" for index in range(move.width))
                    # CROSS JOIN: in this order, which is that of both tables.
                    rows = f"SELECT {columns} FROM {owner} o CROSS JOIN {spool} s ON s.rowid = o.id WHERE o.shard = ?"
                    counts.append(self._run(f"{move.insert} {rows}", (shard,)).rowcount)
                finish(OWNED, moves, counts)
            finally:
                self._connection.execute(f"DETACH {OWNED}")
        for owner in owners:
            self._run(f"DROP TABLE {owner}")

    def _tell(self, owner: str, move: Move, spool: str) -> None:
        """Make a table that tells the owner of each row of a spool."""
        assert move.route is not None
        name = "_shardlite_owner_of"
        function = _owner_of(self._layout, move.route)
        self._connection.create_function(name, 2 * len(move.route.positions), function, deterministic=True)
        self._run(f"CREATE TABLE {owner}(shard, id, PRIMARY KEY (shard, id)) WITHOUT ROWID")
        # As bytes: text need not be Unicode.
        columns = [f"c{position}" for position in move.route.positions]
        said = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns)
        texts = ", ".join(f"typeof({c}) = 'text'" for c in columns)
        self._run(f"INSERT INTO {owner} SELECT {name}({said}, {texts}), rowid FROM {spool} ORDER BY 1, 2")


def _owner_of(layout: Layout, route: Route) -> Callable[..., int]:
    """Return the function from the values of a row's columns, and which of them are text, to the owner's number."""
    key_type = route.key_type
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
