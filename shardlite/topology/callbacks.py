"""What Python functions raise that SQLite calls: SQLite only says that one of them raised something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shardlite.driver import sqlite3


class Raised:
    """Holds what a function raised inside a statement, until the statement is over. For one thread at a time."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None

    def take(self) -> BaseException | None:
        """Return what was recorded, and forget it."""
        failure, self.failure = self.failure, None
        return failure

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """Run a statement that calls recording functions: what one raised is raised again, as it was.

        :raises KeyboardInterrupt: a function failed that recorded nothing. Python handles signals as it enters a
            function, before any line of it can catch what their handlers raise.
        """
        try:
            yield
        except sqlite3.Error as error:
            if (failure := self.take()) is not None:
                raise failure from error
            if is_callback_failure(error):
                raise KeyboardInterrupt from error
            raise
        # An aggregate's failure may be lost on the way: the statement then just goes on.
        if (failure := self.take()) is not None:
            raise failure


def is_callback_failure(error: BaseException) -> bool:
    """Tell whether a statement failed since a Python function raised, or could not be given its arguments."""
    return isinstance(error, sqlite3.Error) and "user-defined" in str(error)
