"""One connection per thread and file, closed when the thread ends."""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from shardlite.connection import fork
from shardlite.connection.checkpoint import Checkpointer
from shardlite.connection.connection import Connection, end_connection
from shardlite.connection.gate import WriteGate
from shardlite.connection.opening import ConnectionSettings, file_identity, open_connection
from shardlite.connection.thread_end import this_thread
from shardlite.errors import ProgrammingError

_SETTINGS = ConnectionSettings()


class _ThreadConnections:
    """The calling thread's connections by path; closed by its thread's end."""

    def __init__(self) -> None:
        self.by_path: dict[str, Connection] = {}

    def close(self) -> None:
        while self.by_path:
            path, conn = self.by_path.popitem()
            end_connection(conn, "the thread that opened it has ended, or closed it")
            _files.leave(path)


class _Files:
    """What the threads share: a checkpointer for each file that is open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: dict[str, tuple[Checkpointer, list[None]]] = {}
        self._threads: weakref.WeakSet[_ThreadConnections] = weakref.WeakSet()
        fork.register(self)

    def join(self, path: str) -> Checkpointer:
        """Return the file's checkpointer, for one more user."""
        with self._lock:
            entry = self._by_path.get(path)
            if entry is None:
                entry = self._by_path[path] = (Checkpointer(path, gate=WriteGate(path)), [])
            entry[1].append(None)
            return entry[0]

    def leave(self, path: str) -> None:
        """Let the file's checkpointer go with its last user."""
        with self._lock:
            entry = self._by_path.get(path)
            if entry is None:
                return
            entry[1].pop()
            if entry[1]:
                return
            del self._by_path[path]
        entry[0].close()

    def add_thread(self, connections: _ThreadConnections) -> None:
        with self._lock:
            self._threads.add(connections)

    def all_threads(self) -> list[_ThreadConnections]:
        with self._lock:
            return list(self._threads)

    @property
    def checkpointers(self) -> list[Checkpointer]:
        """Return the checkpointers of all open files; takes no lock."""
        return [checkpointer for checkpointer, _ in list(self._by_path.values())]

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the parent's files; its connections are doomed, so new ones are opened."""
        self._lock = threading.Lock()
        self._by_path = {}


class _Local(threading.local):
    connections: _ThreadConnections


_local = _Local()
_files = _Files()


def _mine() -> _ThreadConnections:
    try:
        return _local.connections
    except AttributeError:
        connections = _local.connections = _ThreadConnections()
        _files.add_thread(connections)
        this_thread().at_end.append(connections.close)
        return connections


def get_connection(db_path: str | os.PathLike[str]) -> Connection:
    """Return the calling thread's connection to a file; opened at the first call, the same one after that.

    It has ``row_factory`` ``sqlite3.Row``, foreign keys on and the write-ahead log. It is closed by
    ``close_connection``, ``close_connections``, or by itself when the thread ends.

    :raises OperationalError: the file can't be opened.
    """
    path = os.fspath(db_path)
    if path in ("", ":memory:"):
        raise ProgrammingError(
            f"a connection per thread needs a file, not {path!r}: threads would not see the same data"
        )
    path = os.path.abspath(path)
    mine = _mine().by_path
    conn = mine.get(path)
    if conn is not None:
        if not conn.doomed and file_identity(path) == conn.identity:
            return conn
        close_connection(path)
    conn = open_connection(path, _SETTINGS)
    try:
        conn.after_commit = _files.join(path).note_commit
        mine[path] = conn
    except BaseException:
        end_connection(conn, "its user was interrupted while opening it")
        raise
    return conn


def close_connection(db_path: str | os.PathLike[str]) -> bool:
    """Close the calling thread's connection to a file; tell whether there was one. An open transaction is lost."""
    path = os.path.abspath(os.fspath(db_path))
    conn = _mine().by_path.pop(path, None)
    if conn is None:
        return False
    end_connection(conn, "its thread closed it")
    _files.leave(path)
    return True


def close_connections(*, all_threads: bool = False) -> None:
    """Close all connections of the calling thread, or with ``all_threads`` those of every thread."""
    for connections in _files.all_threads() if all_threads else [_mine()]:
        connections.close()


atexit.register(close_connections)  # the main thread's end comes too late: the interpreter is being taken apart

__all__ = ["close_connection", "close_connections", "get_connection"]
