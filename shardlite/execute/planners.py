"""Which planner plans a text: the schema's own, or one that knows the tables of attached files as well.

What the first can plan means the same beside attached files: SQLite looks for a name in ``main`` before them. So only
texts that it can't are given to the other, and trouble with an attached file is that of statements that name it.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from functools import cache

from shardlite.driver import sqlite3
from shardlite.errors import OperationalError
from shardlite.execute.attached import AttachedSchema
from shardlite.execute.core import DatabaseCore
from shardlite.execute.planning import PlanningConnection
from shardlite.execute.sizes import Sizes
from shardlite.execute.state import State
from shardlite.names import fold
from shardlite.sql.facts import Schema
from shardlite.sql.planner import CACHED_TEXTS, Planner

_UNKNOWN = ("no such table", "no such column", "unknown database")
_inherited: list[PlanningConnection] = []
"""Planning connections of parent processes: never used, closed or finalised here, a thread may have been inside."""


@cache
def automatic_indexes_lose() -> bool:
    """Tell whether SQLite's Bloom filters take 'b' and 'b ' for different by RTRIM, as those up to 3.40 do."""
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        for table in ("a", "b"):
            conn.execute(f"CREATE TABLE {table} (k TEXT COLLATE RTRIM)")
        conn.execute("INSERT INTO a VALUES ('b  '), ('B')")
        conn.execute("INSERT INTO b VALUES ('b'), ('x')")
        return not conn.execute("SELECT count(b.k) FROM a LEFT JOIN b ON a.k = b.k").fetchone()[0]


@dataclass(slots=True)
class _Beside:
    """A planner that knows attached files, and what it knows of them."""

    state: State
    schemas: tuple[AttachedSchema, ...]
    connection: PlanningConnection
    planner: Planner
    texts: set[str] = field(default_factory=set)
    """Those that it alone can plan."""

    def fits(self, state: State) -> bool:
        known = [file.known for file in state.attached]
        return self.state is state and all(a is b for a, b in zip(known, self.schemas, strict=True))


class Planners:
    """The planners of one database. Thread-safe."""

    def __init__(self, database: DatabaseCore, sizes: Sizes) -> None:
        self._db = database
        self._rows = sizes.rows
        self._prefixes = sizes.prefixes
        self._lock = threading.Lock()
        self._own: tuple[State, Planner] | None = None
        self._beside: _Beside | None = None

    def of(self, state: State, sql: str) -> Planner:
        """Return the planner for a text. Raises as ``Planner.template`` where there are attached files."""
        own = self._own_planner(state)
        if not state.attached:
            return own
        known = self._beside
        if known is not None and sql in known.texts and known.fits(state):
            return known.planner
        try:
            own.template(sql)
            return own
        except OperationalError as error:
            if not str(error).startswith(_UNKNOWN):
                raise
        beside = self._planner_beside(state)
        try:
            beside.planner.template(sql)
        except OperationalError:
            if not self._is_changed(state):
                raise
            beside = self._planner_beside(state)
            beside.planner.template(sql)
        if len(beside.texts) < CACHED_TEXTS:
            beside.texts.add(sql)
        return beside.planner

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, what another thread may have been in the middle of."""
        self._lock = threading.Lock()
        if self._beside is not None:
            _inherited.append(self._beside.connection)
            self._beside = None

    def close(self) -> None:
        """Close the connection that knows attached files. Idempotent."""
        with self._lock:
            if self._beside is not None:
                self._beside.connection.close()

    def _own_planner(self, state: State) -> Planner:
        known = self._own
        if known is not None and known[0] is state:
            return known[1]
        schema = self._schema(state, {file.name: None for file in state.attached})
        made = Planner(
            schema,
            lambda sql, beside=(): self._db.planning().prepare(sql, beside),
            lambda sql, beside=(): self._db.planning().columns(sql, beside),
            self._rows,
        )
        self._own = (state, made)
        return made

    def _schema(self, state: State, attached: dict[str, int | None]) -> Schema:
        schema = self._db.catalog.schema
        texts, indexes = self._db.shard_texts(state)
        return Schema(
            tables=state.tables,
            views={fold(item.name): item.sql for item in schema if item.type == "view"},
            triggers={fold(item.name): item.sql for item in schema if item.type == "trigger"},
            functions=state.registered.functions,
            collations=frozenset(state.registered.collations),
            ddl=texts,
            indexes=indexes,
            shadows=self._db.planning().shadows() if any(t.virtual for t in state.tables.values()) else {},
            attached=attached,
            automatic_indexes_lose=automatic_indexes_lose(),
            prefixes=self._prefixes,
        )

    def _planner_beside(self, state: State) -> _Beside:
        """Return the planner that knows the attached files' schemas, made anew where they have changed."""
        with self._lock:
            known = self._beside
            if known is not None and known.fits(state):
                return known
            schemas = tuple(file.schema_now(self._db.timeout_s, state.registered) for file in state.attached)
            named = list(zip(state.attached, schemas, strict=True))
            connection = PlanningConnection(
                self._db.schema_texts(state),
                state.layout.encoding,
                state.registered,
                [(file.schema, schema.texts) for file, schema in named],
            )
            versions: dict[str, int | None] = {file.name: schema.version for file, schema in named}
            planner = Planner(self._schema(state, versions), connection.prepare, connection.columns, self._rows)
            # The old connection is left to whoever is planning with it.
            self._beside = _Beside(state, schemas, connection, planner)
            return self._beside

    def _is_changed(self, state: State) -> bool:
        """Tell whether a file has another schema than the one known, and forget that."""
        changed = False
        for file in state.attached:
            known = file.known
            if known is None or known.version != file.version(self._db.timeout_s, state.registered):
                file.known = None
                changed = True
        return changed
