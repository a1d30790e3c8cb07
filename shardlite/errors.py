"""The exceptions, rooted in the names of PEP 249.

Each class also derives from the ``sqlite3`` class of the same meaning, so ``except sqlite3.OperationalError`` goes
on working when an application moves from one file to shards. A message names the object, the number and the cause,
and says what to do.
"""

from __future__ import annotations

from typing import NoReturn

from shardlite.driver import sqlite3


class Error(sqlite3.Error):
    """The root of all errors that shardlite raises."""


class InterfaceError(Error, sqlite3.InterfaceError):
    """The interface was misused, not the database."""


class DatabaseError(Error, sqlite3.DatabaseError):
    """Something went wrong in the database."""


class OperationalError(DatabaseError, sqlite3.OperationalError):
    """The database could not do its work: locked, full, unreachable, closed."""


class ProgrammingError(DatabaseError, sqlite3.ProgrammingError):
    """The request is wrong: an unknown table, a bad identifier, a closed manager."""


class IntegrityError(DatabaseError, sqlite3.IntegrityError):
    """A constraint would be broken."""


class DataError(DatabaseError, sqlite3.DataError):
    """A value can't be stored or read as asked."""


class InternalError(DatabaseError, sqlite3.InternalError):
    """The database is in a state that it should never be in, such as a damaged file."""


class NotSupportedError(DatabaseError, sqlite3.NotSupportedError):
    """The request is understood and refused, because its answer could be wrong."""


class PoolExhaustedError(OperationalError, TimeoutError):
    """No connection became free in time; names the file, the limit, the wait and the holders."""


class StatementTimeoutError(OperationalError, TimeoutError):
    """A statement took longer than the ``timeout`` it was given; names both."""


class PoolClosedError(OperationalError):
    """The pool, or the connection taken from it, is closed."""


class ShardUnavailableError(OperationalError):
    """A shard's file is missing, damaged, of another database, or can't be reached."""


class TransactionInDoubtError(OperationalError):
    """Some shards of a decided transaction could not confirm their commit."""

    txid: str | None = None
    """The transaction, where it has a record."""


class RoutingError(ProgrammingError):
    """The key is missing, of the wrong type, or contradicts the row or the statement."""


class LayoutMismatchError(ProgrammingError):
    """The stored layout differs from what the caller asked for; names both sides."""


class WalResetBugWarning(UserWarning):
    """The SQLite in use has the WAL-reset bug (https://sqlite.org/wal.html#walresetbug)."""


_COUNTERPARTS: tuple[tuple[type[sqlite3.Error], type[Error]], ...] = (
    (sqlite3.IntegrityError, IntegrityError),
    (sqlite3.NotSupportedError, NotSupportedError),
    (sqlite3.ProgrammingError, ProgrammingError),
    (sqlite3.OperationalError, OperationalError),
    (sqlite3.DataError, DataError),
    (sqlite3.InternalError, InternalError),
    (sqlite3.DatabaseError, DatabaseError),
    (sqlite3.InterfaceError, InterfaceError),
    (sqlite3.Error, Error),
)


def counterpart(error: sqlite3.Error, context: str = "") -> Error:
    """Return shardlite's error for one of the driver's, its words first and ``context`` in brackets after them.

    SQLite's own codes (``sqlite_errorcode``, ``sqlite_errorname``) are carried over. An error that is already
    shardlite's is returned as it is.
    """
    if isinstance(error, Error):
        return error
    cls = next(mine for theirs, mine in _COUNTERPARTS if isinstance(error, theirs))
    made = cls(f"{error} [{context}]" if context else str(error))
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(made, name, getattr(error, name))
    return made


def reraise(error: sqlite3.Error, context: str = "") -> NoReturn:
    """Raise the counterpart of ``error``, chained to it."""
    made = counterpart(error, context)
    if made is error:
        raise error
    raise made from error
