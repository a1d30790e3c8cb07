"""The database object that everything above stands on: the core, and what reads, writes and changes it."""

from __future__ import annotations

import os
import weakref

from shardlite.config import ShardliteConfig
from shardlite.errors import OperationalError
from shardlite.execute.bulk import BulkInserter
from shardlite.execute.change import Changer
from shardlite.execute.core import DatabaseCore
from shardlite.execute.ddl import SchemaChanger
from shardlite.execute.insert import Inserter
from shardlite.execute.maintenance import Maintenance
from shardlite.execute.planners import Planners
from shardlite.execute.pragmas import PragmaRunner
from shardlite.execute.read import Reader
from shardlite.execute.registry import is_missing
from shardlite.execute.sizes import Sizes


class Database(DatabaseCore):
    """One logical database, open. Thread-safe; ``close()`` releases every file."""

    def __init__(self, config: ShardliteConfig, *, encoding: str = "UTF-8") -> None:
        super().__init__(config, encoding=encoding)
        self.schema = SchemaChanger(self)
        self.maintenance = Maintenance(self)
        self.pragmas = PragmaRunner(self)
        self.reader = Reader(self)
        self.inserter = Inserter(self, self.schema.keep_explicit_keys)
        self.bulk = BulkInserter(self)
        self.planners = Planners(self, Sizes(self))
        self.changer = Changer(self, self.reader, self.inserter)
        _databases.add(self)
        self._waits_for_functions = False
        try:
            self._recover_or_wait()
        except BaseException:
            self.close()
            raise

    def recover(self) -> None:
        """End what a process that died has begun."""
        self.schema.recover()
        self.maintenance.recover()

    def close(self, timeout_s: float | None = None) -> None:
        """Close every file. Idempotent; connections that are in use are ended, within ``timeout_s`` each."""
        super().close(timeout_s)
        self.pragmas.close()
        self.planners.close()

    def attach(self, schema: str, path: str, *, create: bool, trusted_schema: bool) -> None:
        """Attach a file for the statements that begin afterwards. Raises as ``ShardManager.attach``."""
        registered = self.current().registered
        self.attached.add(schema, path, registered, create=create, trusted_schema=trusted_schema)
        self.forget_state()

    def detach(self, schema: str) -> None:
        """Forget an attached file. Raises OperationalError where none has the name."""
        self.current()
        self.attached.remove(schema)
        self.forget_state()

    def resume(self) -> None:
        """Try again to end what a process that died has begun, where that lacked a registered function."""
        if self._waits_for_functions:
            self._recover_or_wait()

    def _recover_or_wait(self) -> None:
        """End what a process that died has begun, unless that takes functions that can only be registered once open.

        Until then reads see the schema as it was before, and writes say what is missing.
        """
        self._waits_for_functions = True
        try:
            self.recover()
        except OperationalError as error:
            if not is_missing(error):
                raise
        else:
            self._waits_for_functions = False

    def reset_after_fork(self) -> None:
        """Begin anew, in a forked child, what a thread that is not there may have been in the middle of."""
        super().reset_after_fork()
        self.attached.reset_after_fork()
        self.schema.reset_after_fork()
        self.pragmas.reset_after_fork()
        self.planners.reset_after_fork()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for database in list(_databases):
        database.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
