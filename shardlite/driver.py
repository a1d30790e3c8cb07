"""The one SQLite driver of this process.

Two SQLite libraries on one file in one process corrupt it: each keeps its own table of the file's locks, and
the first descriptor that either closes drops the locks of both. So the choice is made once, here, and every other
module takes ``sqlite3`` from this one.

``SHARDLITE_DRIVER=sqlite3`` (the default) is the standard library's; ``SHARDLITE_DRIVER=pysqlite3`` is the PyPI
package of that name, which carries a newer SQLite. Another name, or a missing package, is an ImportError whose ``name``
is this module's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

DRIVER_NAME = os.environ.get("SHARDLITE_DRIVER", "sqlite3") or "sqlite3"

if TYPE_CHECKING or DRIVER_NAME == "sqlite3":
    import sqlite3
elif DRIVER_NAME == "pysqlite3":
    try:
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError as error:
        raise ImportError(
            "SHARDLITE_DRIVER=pysqlite3 in the environment, but that package can't be imported "
            f"({error}): pip install 'shardlite[pysqlite3]', or unset the variable",
            name=__name__,
        ) from error
else:
    raise ImportError(
        f"SHARDLITE_DRIVER={DRIVER_NAME!r} in the environment is unknown: use 'sqlite3' or 'pysqlite3', or unset it",
        name=__name__,
    )

SQLITE_VERSION: tuple[int, int, int] = sqlite3.sqlite_version_info[:3]


def has_wal_reset_bug(version: tuple[int, int, int] = SQLITE_VERSION) -> bool:
    """Tell whether this SQLite has the WAL-reset bug (https://sqlite.org/wal.html#walresetbug).

    3.7.0 up to 3.51.2 have it, apart from the releases that carry the correction: 3.44.6 and 3.50.7.
    """
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version <= (3, 51, 2)


__all__ = ["DRIVER_NAME", "SQLITE_VERSION", "has_wal_reset_bug", "sqlite3"]
