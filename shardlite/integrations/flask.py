"""Flask: one database for an application, one connection for a request.

.. code-block:: python

    app = Flask(__name__)
    app.config["DATABASE_PATH"] = "app.db"        # one file; or SHARDLITE_DIR = "./data" for shards
    init_app(app)

    @app.get("/users/<int:user_id>")
    def user(user_id):
        row = get_db().execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
        return dict(row)

Settings, read from ``app.config`` first and from the environment second:

=======================  ==============================================================================
``DATABASE_PATH``        the file of a plain SQLite database; ``get_db()`` is then a connection of a pool
``SHARDLITE_DIR``        the directory of a sharded database; ``get_db()`` is then its ``ShardManager``
``SHARDLITE_SHARDS``     how many shards to make if that directory has no database yet
``DB_POOL_SIZE``         the most connections (of each shard) that are open at once; 10
``DB_TIMEOUT``           seconds to wait for a connection or a lock; 30
=======================  ==============================================================================

The extension opens its files at the first use, so it may be set up before a server forks its workers.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from shardlite.connection.connection import Connection
from shardlite.connection.pool import ConnectionPool
from shardlite.errors import ProgrammingError
from shardlite.manager import ShardManager

try:
    from flask import Flask, current_app, g
except ImportError as error:
    raise ImportError(
        "shardlite.integrations.flask needs Flask, which is not installed: pip install 'shardlite[flask]'"
    ) from error

_EXTENSION = "shardlite"
_CONNECTION = "_shardlite_connection"


class _State:
    """The database of one application, opened at the first use."""

    def __init__(
        self, path: str | None, directory: str | None, shards: int | None, size: int, timeout_s: float
    ) -> None:
        self.path = path
        self.directory = directory
        self.shards = shards
        self.size = size
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._database: ConnectionPool | ShardManager | None = None

    def database(self) -> ConnectionPool | ShardManager:
        """Return the pool or the manager; open it if it isn't."""
        if self._process != os.getpid():  # forked while another thread had the lock, perhaps
            self._lock = threading.Lock()
            self._process = os.getpid()
        database = self._database
        if database is None:
            with self._lock:
                if self._database is None:
                    self._database = self._open()
                database = self._database
        return database

    def _open(self) -> ConnectionPool | ShardManager:
        if self.directory is not None:
            return ShardManager(
                db_dir=self.directory,
                num_shards=self.shards,
                max_connections_per_shard=self.size,
                connection_timeout=self.timeout_s,
            )
        assert self.path is not None
        return ConnectionPool(self.path, self.size, self.timeout_s)

    def close(self) -> None:
        with self._lock:
            database, self._database = self._database, None
        if isinstance(database, ShardManager):
            database.shutdown()
        elif database is not None:
            database.close_all()


def init_app(app: Flask) -> None:
    """Set up the application's database from its configuration; see the module's table. Opens nothing yet.

    :raises ProgrammingError: a setting is missing, contradictory or not a number; names it.
    """
    if _EXTENSION in app.extensions:
        raise ProgrammingError(f"shardlite is set up for the application {app.name!r} already: call init_app once")
    path, directory = _setting(app, "DATABASE_PATH"), _setting(app, "SHARDLITE_DIR")
    if (path is None) == (directory is None):
        found = "neither is set" if path is None else f"both are set ({path!r} and {directory!r})"
        raise ProgrammingError(f"set either DATABASE_PATH (one file) or SHARDLITE_DIR (shards) in app.config: {found}")
    shards = _setting(app, "SHARDLITE_SHARDS")
    app.extensions[_EXTENSION] = _State(
        path=None if path is None else os.fspath(path),
        directory=None if directory is None else os.fspath(directory),
        shards=None if shards is None else int(_number("SHARDLITE_SHARDS", shards, 1)),
        size=int(_number("DB_POOL_SIZE", _setting(app, "DB_POOL_SIZE", 10), 1)),
        timeout_s=_number("DB_TIMEOUT", _setting(app, "DB_TIMEOUT", 30.0), 0),
    )
    app.teardown_appcontext(_give_back)


init_pool = init_app
"""The same as ``init_app``."""


def get_db() -> Any:
    """Return the request's database connection, or the ``ShardManager`` when the application has shards.

    The connection is taken from the pool at the first call in a request and given back when the request ends; what
    wasn't committed by then is rolled back.

    :raises PoolExhaustedError: none became free within ``DB_TIMEOUT`` seconds.
    """
    conn = g.get(_CONNECTION)
    if conn is None:
        database = _state().database()
        if isinstance(database, ShardManager):
            return database
        conn = database.get_connection()
        setattr(g, _CONNECTION, conn)
    return conn


def get_pool_stats() -> dict[Any, Any]:
    """Return the statistics of the application's pool, or of all its shards (``ShardManager.get_shard_stats``)."""
    database = _state().database()
    return database.get_shard_stats() if isinstance(database, ShardManager) else database.get_pool_stats()


def close_pool(app: Flask) -> None:
    """Close the application's database; the next use opens it again. For tests and for an orderly end."""
    state = app.extensions.get(_EXTENSION)
    if isinstance(state, _State):
        state.close()


def _give_back(error: BaseException | None) -> None:
    conn: Connection | None = g.pop(_CONNECTION, None)
    if conn is not None:
        database = _state().database()
        if isinstance(database, ConnectionPool) and conn.pool_ref is database._self_ref:
            database.return_connection(conn)


def _state() -> _State:
    state = current_app.extensions.get(_EXTENSION)
    if not isinstance(state, _State):
        raise ProgrammingError(
            f"shardlite isn't set up for the application {current_app.name!r}: call "
            "shardlite.integrations.flask.init_app(app) when it is created"
        )
    return state


def _setting(app: Flask, name: str, default: Any = None) -> Any:
    value = app.config.get(name)
    if value is None or value == "":
        value = os.environ.get(name) or None
    return default if value is None else value


def _number(name: str, value: Any, least: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not least <= number < 1e9 or (name != "DB_TIMEOUT" and number != int(number)):
        kind = "a number of seconds" if name == "DB_TIMEOUT" else "a whole number"
        raise ProgrammingError(f"{name} must be {kind}, {least} or more, not {value!r}")
    return number


__all__ = ["close_pool", "get_db", "get_pool_stats", "init_app", "init_pool"]
