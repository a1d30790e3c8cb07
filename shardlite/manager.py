"""ShardManager: one logical database over many SQLite files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shardlite.config import Constraints, Durability, ShardliteConfig, check_seconds
from shardlite.connection import ConnectionPool
from shardlite.errors import ProgrammingError
from shardlite.execute.aggregates import aggregate
from shardlite.execute.bulk import DEFAULT_BATCH
from shardlite.execute.database import Database
from shardlite.execute.info import shard_info, shard_stats
from shardlite.execute.read import Where
from shardlite.execute.registry import Kind, Registration
from shardlite.execute.result import Result
from shardlite.execute.statements import StatementRunner
from shardlite.router.layout import Layout
from shardlite.router.router import Router
from shardlite.router.strategies import ShardingStrategy
from shardlite.router.table import Table
from shardlite.topology.check import check_database
from shardlite.topology.report import CheckReport

if TYPE_CHECKING:
    from shardlite.sql.plan import Plan

Parameters = Sequence[Any] | Mapping[str, Any]


class ShardManager:
    """A logical SQLite database over ``num_shards`` files in ``db_dir``. Thread-safe; one per process and directory.

    A directory without a database gets one, unless ``create=False``. For an existing one ``num_shards`` and
    ``strategy`` may be left out; when given they must be what is stored with the data, else LayoutMismatchError is
    raised.

    :param num_shards: 1 to 4096; 4 unless given.
    :param db_dir: the directory of the catalog and the shards.
    :param strategy: a ShardingStrategy; ``HashStrategy()`` unless given.
    :param max_connections_per_shard: the hard limit of each shard's pool.
    :param connection_timeout: seconds to wait for a connection, a write lock, or another process's lock.
    :param durability: "full": each commit is synced; "normal": a power failure may take back the last commits.
    :param max_open_connections: cap over all shards; derived from the system's descriptor limit unless given.
    :param config: a ShardliteConfig, a mapping, or the path of a TOML, JSON or YAML file; keywords override it.
    :raises LayoutMismatchError: the stored layout is another one.
    :raises ShardUnavailableError: a file is missing, or the directory holds something else.

    Use it in a ``with`` statement, or call ``shutdown()``: afterwards no file of the directory is open.
    """

    def __init__(
        self,
        *,
        num_shards: int | None = None,
        db_dir: str | os.PathLike[str] | None = None,
        strategy: ShardingStrategy | None = None,
        max_connections_per_shard: int | None = None,
        connection_timeout: float | None = None,
        durability: Durability | None = None,
        max_open_connections: int | None = None,
        create: bool | None = None,
        config: ShardliteConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> None:
        base = ShardliteConfig() if config is None else ShardliteConfig.load(config)
        self.config = base.override(
            num_shards=num_shards,
            db_dir=db_dir,
            strategy=strategy,
            max_connections_per_shard=max_connections_per_shard,
            connection_timeout=connection_timeout,
            durability=durability,
            max_open_connections=max_open_connections,
            create=create,
        )
        self._database = Database(self.config)
        self._insert = self._database.inserter.insert
        self._get = self._database.reader.get
        self._statements = StatementRunner(self._database)
        self._find = self._statements.points.find
        self._router: Router | None = None

    # -- schema --------------------------------------------------------------------------------------------------

    def create_table(
        self,
        ddl: str,
        shard_key: str | Sequence[str] | None = None,
        *,
        kind: str | None = None,
        colocate_with: str | None = None,
        constraints: Constraints = "strict",
    ) -> Table:
        """Create a table on every shard and return what is known of it, its ``kind`` and the ``reason`` for it too.

        Without further words a table is sharded by its primary key (the first column of a composite one) if one shard
        can enforce all its constraints then; otherwise by the foreign key that leads to its parent's shard; otherwise
        it is kept whole.

        The same can be said in a comment of the definition, ``/* shardlite: key=user_id */``; what is said in both
        places must agree. ``docs/reference/sql.md`` has all words.

        :param shard_key: the column, or columns, whose value decides a row's shard.
        :param kind: "sharded", "reference" (a full copy on every shard) or "single" (whole, on shard 0).
        :param colocate_with: a sharded table whose equal keys must be on the same shard; checked, never assumed.
        :param constraints: what to do with a constraint that no single shard can see: "strict" refuses the table,
            "checked" records it and leaves it to ``check``.
        :raises ProgrammingError: bad SQL, an unknown column, or a table of another kind or key is there already.
        :raises NotSupportedError: a constraint that no shard can see, under "strict".
        """
        return self._database.schema.create_table(
            ddl, shard_key=shard_key, kind=kind, colocate_with=colocate_with, constraints=constraints
        )

    def apply_schema(self, sql: str) -> None:
        """Run schema changes (CREATE, ALTER, DROP, REINDEX, ANALYZE) on every shard, all of them or none.

        ``sql`` may hold several statements. New tables are placed as ``create_table`` does without further words.
        """
        self._database.schema.apply(sql)

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables by name, in the order of their creation."""
        return {table.name: table for table in self._database.current().tables.values()}

    # -- rows ----------------------------------------------------------------------------------------------------

    def insert(self, table: str, row: Mapping[str, Any], key: Any = None) -> Any:
        """Insert one row and return its rowid (the primary key where the table has no rowid).

        None is returned where a trigger said RAISE(IGNORE).

        :param key: the shard key's value; needed only where the row doesn't hold it.
        :raises RoutingError: no key, or ``key`` is another than the row's.
        :raises IntegrityError: a constraint would be broken.
        """
        return self._insert(table, row, key)

    def insert_many(self, table: str, rows: Iterable[Mapping[str, Any]], *, batch_size: int = DEFAULT_BATCH) -> int:
        """Insert all rows or none, in one transaction over the shards they belong to; return how many.

        ``rows`` may be endless as far as memory goes: ``batch_size`` of them are held at a time. The write locks are
        held until the last row has come.
        """
        return self._database.bulk.insert_many(table, rows, batch_size)

    def get(self, table: str, key: Any) -> dict[str, Any] | None:
        """Return the row with this primary key (which must hold the shard key), or None."""
        return self._get(table, key)

    def select(
        self,
        table: str,
        where: Where = None,
        key: Any = None,
        *,
        columns: Sequence[str] | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        parameters: Parameters = (),
    ) -> list[dict[str, Any]]:
        """Return rows as dicts.

        :param where: a mapping of column to value (``None``: IS NULL, a list: IN, ``(">=", 18)``: a comparison, a list
            of such tuples: all of them), or SQL text with ``parameters``.
        :param key: only the rows with this shard key.
        :param order_by: a column, ``"-column"`` for descending, or a list of these. Without it rows come by rowid.
        """
        return self._database.reader.select(
            table, where, key=key, columns=columns, order_by=order_by, limit=limit, offset=offset, parameters=parameters
        )

    def update(
        self,
        table: str,
        set_values: Mapping[str, Any],
        where: Where = None,
        key: Any = None,
        *,
        parameters: Parameters = (),
    ) -> int:
        """Set columns of the rows that match, on all their shards or none; return how many rows matched."""
        return self._database.changer.update(table, set_values, where, key=key, parameters=parameters)

    def delete(self, table: str, where: Where = None, key: Any = None, *, parameters: Parameters = ()) -> int:
        """Delete the rows that match, on all their shards or none; return how many."""
        return self._database.changer.delete(table, where, key=key, parameters=parameters)

    def upsert(
        self, table: str, row: Mapping[str, Any], key: Any = None, conflict: str | Sequence[str] | None = None
    ) -> Any:
        """Insert the row, or update the one it conflicts with; return its rowid (or primary key).

        :param conflict: the columns of the constraint; the primary key unless given. They must hold the shard key.
        """
        return self._database.changer.upsert(table, row, key, conflict)

    def aggregate(
        self,
        table: str,
        expressions: str | Sequence[str],
        where: Where = None,
        group_by: str | Sequence[str] | None = None,
        *,
        parameters: Parameters = (),
    ) -> Any:
        """Return aggregates over all shards, as one file would give them.

        One dict of expression -> value, or with ``group_by`` a list of dicts that hold the group's columns too. Each
        expression is one call of COUNT, SUM, AVG, MIN, MAX, TOTAL or GROUP_CONCAT, DISTINCT included.
        """
        return aggregate(self._database, table, expressions, where, group_by, parameters)

    def count(self, table: str, where: Where = None, *, parameters: Parameters = ()) -> int:
        """Return the number of rows that match."""
        return self._database.reader.count(table, where, parameters=parameters)

    # -- SQL -----------------------------------------------------------------------------------------------------

    def execute(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        key: Any = None,
        timeout: float | None = None,
        max_rows: int | None = None,
    ) -> Result:
        """Run one SQL statement and return its Result: what SQLite would answer if all rows were in one file.

        What runs where, and what is refused by name (NotSupportedError) rather than answered wrongly, is told by
        ``explain`` and in ``docs/reference/sql.md``.

        :param key: an assertion: RoutingError if the statement doesn't belong wholly to that key's shard.
        :param timeout: seconds for all of it: waiting for connections and locks, its work, and reading the result's
            rows. Then StatementTimeoutError is raised and nothing has changed. 0: it waits for nothing, and its work
            takes as long as it takes. None: no limit, but ``connection_timeout`` for each wait.
        :param max_rows: the most rows that the result's ``fetchall`` may return; beyond it raises OperationalError.
        :raises ProgrammingError: ``timeout`` is no number of seconds, 0 or more; ``max_rows`` no int, 0 or more.
        """
        if timeout is None and max_rows is None and key is None:
            found = self._find(sql, parameters)
            if found is not None:
                return found
        if timeout is not None:
            check_seconds("timeout", timeout)
        if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 0):
            raise ProgrammingError(f"max_rows must be an int of 0 or more, not {max_rows!r}")
        return self._statements.execute(sql, parameters, key=key, timeout_s=timeout, max_rows=max_rows)

    def executemany(self, sql: str, seq: Iterable[Parameters], *, timeout: float | None = None) -> Result:
        """Run one writing statement for each set of parameters, all in one transaction.

        As in ``sqlite3``, the rows of a RETURNING clause are not kept and ``lastrowid`` is not set; the result has the
        columns and the sum of the row counts.

        :param timeout: seconds for all of it, taking the parameters from ``seq`` too; see ``execute``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        return self._statements.executemany(sql, seq, timeout)

    def explain(self, sql: str, parameters: Parameters = ()) -> Plan:
        """Return the plan by which ``execute`` would run the statement; ``str(plan)`` is for people."""
        return self._statements.plan(sql, parameters)

    # -- files beside the shards -----------------------------------------------------------------------------------

    def attach(
        self, schema: str, path: str | os.PathLike[str], *, create: bool = False, trusted_schema: bool = False
    ) -> None:
        """Let statements name the tables of another SQLite file as ``schema.table``, as ``ATTACH path AS schema`` does.

        The file is plain: none of a shardlite database. Its rows can be read and changed beside those of the shards,
        each change as one transaction of the file; its schema can't be changed. It holds for this manager until
        ``detach``, for statements that begin afterwards. Thread-safe.

        :param create: make the file if there is none.
        :param trusted_schema: views, triggers and CHECKs of the file may call any function. Otherwise statements that
            name the file run with ``PRAGMA trusted_schema = OFF``, under which SQLite refuses what may do harm.
        :raises OperationalError: the name is taken, there are nine already, or the file can't be opened.
        :raises DatabaseError: it is no SQLite file.
        :raises ProgrammingError: it is a shard or a catalog, or ``schema`` is no usable name.
        """
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or not os.fspath(path):
            raise ProgrammingError(f"attach: path must be a path, not {path!r}")
        if "\0" in os.fspath(path):
            raise ProgrammingError(f"attach: path must not hold a NUL: {path!r}")
        self._database.attach(schema, os.path.abspath(path), create=create, trusted_schema=trusted_schema)

    def detach(self, schema: str) -> None:
        """Forget a file attached as ``schema``. A result that is still being read goes on. Thread-safe.

        :raises OperationalError: there is none of that name.
        """
        self._database.detach(schema)

    @property
    def attached(self) -> Mapping[str, str]:
        """The attached files: schema name -> path, in the order of attaching."""
        return {file.schema: file.path for file in self._database.current().attached}

    # -- functions and collations --------------------------------------------------------------------------------

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, *, deterministic: bool = False
    ) -> None:
        """Register an SQL function on every connection, those of later too; as ``sqlite3.Connection.create_function``.

        It isn't stored: register it each time that the database is opened, before what needs it.

        :param narg: how many arguments it takes, -1 for any number.
        :param func: None takes back what was registered under this name with this number of arguments.
        :param deterministic: the same arguments always give the same value. Only such a function may be evaluated by
            several shards, each for its own rows, and only such a one stand in an index or a generated column.
        :raises NotSupportedError: shardlite's own statements call the function that it would replace.
        """
        self._database.register(Registration(Kind.FUNCTION, name, narg, func, deterministic))

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Callable[[], Any] | None) -> None:
        """Register an aggregate (a class with ``step`` and ``finalize``) on every connection; see create_function.

        It is never evaluated on the rows of one shard where the statement means those of several.
        """
        self._database.register(Registration(Kind.AGGREGATE, name, n_arg, aggregate_class))

    def create_window_function(self, name: str, num_params: int, aggregate_class: Callable[[], Any] | None) -> None:
        """Register an aggregate that may stand before OVER (``value`` and ``inverse`` too); see create_aggregate.

        :raises NotSupportedError: the SQLite driver has no window functions.
        """
        self._database.register(Registration(Kind.WINDOW, name, num_params, aggregate_class))

    def create_collation(self, name: str, callable: Callable[[str, str], int] | None) -> None:
        """Register a collation on every connection, or take it back with None; see create_function.

        ``callable(a, b)`` returns a negative number, 0 or a positive one. A shard key can't have such a collation.

        :raises NotSupportedError: BINARY, NOCASE and RTRIM, which decide where rows live, can't be replaced.
        """
        self._database.register(Registration(Kind.COLLATION, name, 0, callable))

    # -- shards --------------------------------------------------------------------------------------------------

    @property
    def router(self) -> Router:
        """The router of this database."""
        if self._router is None:
            self._router = Router(self)
        return self._router

    @property
    def strategy(self) -> ShardingStrategy:
        """The stored strategy."""
        return self._database.layout.strategy

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return self._database.layout.num_shards

    @property
    def shard_ids(self) -> range:
        """The shards' numbers, from 0."""
        return self._database.layout.shard_ids

    @property
    def layout(self) -> Layout:
        """The layout in force: frozen, replaced by a new one when it changes."""
        return self._database.current().layout

    @property
    def database(self) -> Database:
        """The open database behind this manager, for the layers beside it (checks, import, export)."""
        return self._database

    def pool(self, shard_id: int) -> ConnectionPool:
        """Return the pool of one shard. What is written there directly is not routed: see the docs."""
        if isinstance(shard_id, bool) or not isinstance(shard_id, int) or shard_id not in self.shard_ids:
            raise ProgrammingError(f"there is no shard {shard_id!r}: the shards are 0 to {self.num_shards - 1}")
        self._database.current()
        return self._database.shards[shard_id].pool

    def shard_for(self, table: str, key: Any) -> int:
        """Return the shard that holds a key of a table (shard 0 for a single table)."""
        state = self._database.current()
        return state.route(state.table(table))(key)

    def get_shard_info(self) -> dict[int, dict[str, Any]]:
        """Return what is on each shard: path, size in bytes, tables, rows."""
        return shard_info(self._database)

    def get_shard_stats(self) -> dict[str, Any]:
        """Return figures of the whole: pools, connections, WAL sizes, rows and their skew."""
        return shard_stats(self._database)

    def validate_shard_files(self) -> bool:
        """Tell whether every shard file is there, sound at first sight, and of this database."""
        return all(problem is None for problem in self._database.look_at_files())

    def check(self, repair: bool = False) -> CheckReport:
        """Look at everything: every row where the router says, files sound, copies equal, constraints kept.

        ``repair=True`` mends what can be mended without a guess, and reports each act.
        """
        return check_database(self._database, repair=repair)

    # -- the end -------------------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = None) -> None:
        """Close everything; connections in use are ended. Idempotent.

        Afterwards no file of the directory is open and no ``-wal`` or ``-shm`` is left by this process.

        :param timeout: seconds for each connection in use to end; what hasn't by then is closed in the background.
        :raises ProgrammingError: ``timeout`` is no number of seconds, 0 or more; nothing was closed.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        self._database.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = "closed" if self._database.closed else "open"
        return f"<ShardManager {self._database.directory} shards={self.num_shards} {state}>"
