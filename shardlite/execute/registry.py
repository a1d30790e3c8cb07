"""What the user registered: functions, aggregates, window functions and collations, the same on every connection.

SQLite keeps these per connection, so they are remembered here and replayed on each connection when it is opened: on
those of the pools, on the planning connection, on scratch copies of the schema and on private databases that rows are
gathered in. A connection that was opened before a registration is replaced before its next use
(``ConnectionPool.renew``), never changed: a statement that it has prepared may still call what was replaced.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from shardlite.driver import sqlite3
from shardlite.errors import NotSupportedError, ProgrammingError, reraise
from shardlite.names import fold, is_reserved
from shardlite.router.keys import COLLATIONS
from shardlite.sql.functions import AGGREGATES, WINDOWS, UserFunctions

Collation = Callable[[str, str], int]

_OWN_USE: Mapping[str, frozenset[int]] = {
    "count": frozenset((-1, 0, 1)),
    "max": frozenset((-1, 1, 2)),
    "min": frozenset((-1, 1, 2)),
    "quote": frozenset((-1, 1)),
    "typeof": frozenset((-1, 1)),
}
"""Functions, and numbers of arguments, that shardlite's own statements on the shards call."""

_MISSING = re.compile(r"(?:no such|unknown) (function|collation sequence): (.+?)(?:\(\))?$")

HOW_TO_REGISTER = "register it for all connections with manager.create_function() or its like"


class Kind(StrEnum):
    """What a registration is, by the method of ``sqlite3.Connection`` that makes it."""

    FUNCTION = "create_function"
    AGGREGATE = "create_aggregate"
    WINDOW = "create_window_function"
    COLLATION = "create_collation"


@dataclass(frozen=True, slots=True)
class Registration:
    """One call of ``create_function`` or its like. ``target`` None takes back what was registered."""

    kind: Kind
    name: str
    arguments: int
    """How many arguments it takes, -1 for any number; of no meaning for a collation."""
    target: Any
    deterministic: bool = False

    @property
    def slot(self) -> tuple[str, int]:
        """What it replaces: SQLite has one function per name and number of arguments, whatever its kind."""
        return ("collation " + fold(self.name), 0) if self.kind is Kind.COLLATION else (fold(self.name), self.arguments)

    def register_on(self, connection: sqlite3.Connection) -> None:
        """Register it on one connection."""
        if self.kind is Kind.COLLATION:
            connection.create_collation(self.name, self.target)
        elif self.kind is Kind.FUNCTION:
            connection.create_function(self.name, self.arguments, self.target, deterministic=self.deterministic)
        elif self.kind is Kind.AGGREGATE:
            connection.create_aggregate(self.name, self.arguments, self.target)
        else:
            connection.create_window_function(self.name, self.arguments, self.target)

    def check(self) -> None:
        """Raise what SQLite says against it, ProgrammingError, or NotSupportedError naming what can't be replaced."""
        call = f"{self.kind}({self.name!r})"
        if not isinstance(self.name, str) or not self.name:
            raise ProgrammingError(f"{call}: the name must be a str that is not empty")
        if is_reserved(self.name):
            raise ProgrammingError(f"{call}: names that begin with _shardlite_ are reserved")
        if self.kind is Kind.WINDOW and not hasattr(sqlite3.Connection, "create_window_function"):
            raise NotSupportedError(f"{call}: this SQLite driver ({sqlite3.__name__}) has no window functions")
        if self.target is not None and not callable(self.target):
            raise ProgrammingError(f"{call}: it must be callable, or None to take it back, not {self.target!r}")
        if self.kind is Kind.COLLATION and self.name.upper() in COLLATIONS:
            raise NotSupportedError(
                f"{call}: the collation decides where rows live and can't be replaced: take another name"
            )
        if self.kind is not Kind.COLLATION and self.arguments in _OWN_USE.get(fold(self.name), ()):
            raise NotSupportedError(f"{call}: shardlite's own statements call {self.name}(): take another name")
        with contextlib.closing(sqlite3.connect(":memory:")) as scratch:
            try:
                (self if self.target is not None else _sample(self)).register_on(scratch)
            except sqlite3.Error as error:
                reraise(error, f"{call}, {self.arguments} arguments")


def _sample(removal: Registration) -> Registration:
    """Return a registration in the place of one that is to go, to have its name and number of arguments checked."""
    return Registration(removal.kind, removal.name, removal.arguments, lambda *_: 0)


class Registered:
    """All that is registered at one time. Immutable."""

    __slots__ = ("collations", "entries", "functions", "generation")

    def __init__(self, entries: Iterable[Registration] = (), generation: int = 0) -> None:
        self.entries = tuple(entries)
        """In the order of their first registration."""
        self.generation = generation
        """Goes up with each registration."""
        self.functions = _judged(self.entries)
        self.collations: Mapping[str, Collation] = MappingProxyType(
            {fold(entry.name): entry.target for entry in self.entries if entry.kind is Kind.COLLATION}
        )
        """By folded name."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Register everything on a connection on which nothing runs."""
        for entry in self.entries:
            entry.register_on(connection)

    def changed(self, entry: Registration) -> Registered:
        """Return what is registered after one more call."""
        entries = {known.slot: known for known in self.entries}
        if entry.target is None:
            entries.pop(entry.slot, None)
        else:
            entries[entry.slot] = entry
        return Registered(entries.values(), self.generation + 1)


def _judged(entries: Iterable[Registration]) -> UserFunctions:
    """Tell by name what a shard may evaluate on its own; what one form of a name forbids is forbidden to all."""
    deterministic: set[str] = set()
    others: set[str] = set()
    for entry in entries:
        if entry.kind is Kind.COLLATION:
            continue
        name = fold(entry.name)
        # Under the name of a built-in aggregate it would be taken for that, and put together from the shards' parts.
        plain = entry.kind is Kind.FUNCTION and name not in AGGREGATES | WINDOWS | {"max", "min"}
        (deterministic if plain and entry.deterministic else others).add(name)
    return UserFunctions(frozenset(deterministic - others), frozenset(others))


NOTHING = Registered()


class Registry:
    """What is registered now. Thread-safe; reading takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.current = NOTHING

    @property
    def generation(self) -> int:
        """Goes up with each registration."""
        return self.current.generation

    @property
    def functions(self) -> UserFunctions:
        """The functions by what a shard may do with them."""
        return self.current.functions

    @property
    def collations(self) -> Mapping[str, Collation]:
        """The collations by folded name."""
        return self.current.collations

    def put(self, entry: Registration) -> None:
        """Add, replace or take back one. It has been checked."""
        with self._lock:
            self.current = self.current.changed(entry)

    def apply(self, connection: sqlite3.Connection) -> None:
        """Register everything on a connection on which nothing runs."""
        self.current.apply(connection)

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the lock of a thread that is not there."""
        self._lock = threading.Lock()


def load_schema(connection: sqlite3.Connection, texts: Iterable[str]) -> frozenset[str]:
    """Make a schema on a scratch connection; return the folded names of functions that it calls and nobody registered.

    A directory may be opened before the functions of its CHECK constraints, generated columns and indexes are
    registered, and what doesn't need them works, as on one file: SQLite asks for them when a table is created, not when
    a schema is read. So stand-ins are registered here; the functions stay (they raise when called), the collations go.
    """
    functions: set[str] = set()
    collations: set[str] = set()
    for text in texts:
        while True:
            try:
                connection.execute(text)
                break
            except sqlite3.OperationalError as error:
                missing = _MISSING.match(str(error))
                if missing is None or missing[2] in functions | collations:
                    raise
                if missing[1] == "function":
                    functions.add(missing[2])
                    connection.create_function(missing[2], -1, _raise_missing, deterministic=True)
                else:
                    collations.add(missing[2])
                    connection.create_collation(missing[2], lambda _a, _b: 0)
    for name in collations:
        connection.create_collation(name, None)
    return frozenset(map(fold, functions))


def _raise_missing(*_arguments: object) -> None:
    raise NotImplementedError("a stand-in for a function that is not registered")


def is_missing(error: sqlite3.Error) -> bool:
    """Tell whether an error is about a function or collation that nobody registered."""
    return re.search(r"(no such|unknown) (function|collation sequence): ", str(error)) is not None
