"""SQLite's PRAGMAs: what each means for one logical database over many files (data; pure).

A PRAGMA is about the schema (which is one), about a file (there are many), or about a connection (statements of the
manager share none). ``PRAGMAS`` says for each which it is, and where it can't be answered why, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from shardlite.sql.tokens import words


class PragmaPlace(StrEnum):
    """Where a PRAGMA's answer comes from."""

    SCHEMA = "logical schema"
    """The schema as one file would hold it; no shard is asked."""
    SETTING = "setting of every shard"
    """A number in the header of the file, the same in every shard: read from one, set on all of them or none."""
    HOME = "home shard"
    """The same in every file, read from the first."""
    MERGED = "check of all shards"
    """Every shard is asked; ``ok`` once where all are."""
    EACH = "each shard in turn"
    """Runs on every shard, one after another, and gives no rows."""
    SESSION = "one connection"
    """A setting or the state of one connection: refused on the manager."""
    REFUSED = "refused"
    """What shardlite relies on, or what differs from file to file."""


@dataclass(frozen=True, slots=True)
class Pragma:
    """What is done with one PRAGMA."""

    place: PragmaPlace
    advice: str = ""
    """SESSION and REFUSED: why it isn't answered, and what to do instead."""
    argument: bool = False
    """The value in parentheses or behind ``=`` says what is asked about; otherwise it would set something."""
    fixed: str = ""
    """Why it can't be set, for what can be read."""
    already: frozenset[str] = frozenset()
    """Values (folded) that may be set nevertheless, as they are what holds."""
    table: bool = False
    """It may also be asked as a table, ``pragma_<name>``."""


_OWN = "on a connection of manager.pool(n) it holds for that connection alone"
_LIMITS = "give the manager a smaller max_connections_per_shard, or take a connection of manager.pool(n)"
_WAL = "shardlite keeps its files in WAL mode and checkpoints them itself"
_FIGURES = "every shard has its own: see manager.get_shard_info(), or ask a connection of manager.pool(n)"
_AT_CREATION = "it is fixed when the database is made"


TRUE_VALUES: Final = words("1 on yes true")
"""What SQLite takes for true, other numbers left aside."""
FALSE_VALUES: Final = words("0 off no false")
"""What SQLite takes for false."""

_ASKED = words(
    """
    table_info table_xinfo table_list index_list index_info index_xinfo foreign_key_list
    collation_list function_list module_list compile_options pragma_list
    """
)


def _rows() -> dict[str, Pragma]:
    place = PragmaPlace
    table = dict.fromkeys(sorted(_ASKED), Pragma(place.SCHEMA, argument=True, table=True))
    table |= {
        "database_list": Pragma(place.SCHEMA, argument=True),
        "encoding": Pragma(place.SCHEMA, fixed=_AT_CREATION, table=True),
        "schema_version": Pragma(
            place.SCHEMA, fixed="shardlite counts the schema's changes itself: reading it tells of each", table=True
        ),
        "foreign_keys": Pragma(
            place.SCHEMA,
            fixed="foreign keys are always enforced: leave the constraint out of the schema, or say "
            "constraints='checked' when the table is made",
            already=TRUE_VALUES,
            table=True,
        ),
        "user_version": Pragma(place.SETTING, table=True),
        "application_id": Pragma(place.SETTING, table=True),
        "journal_mode": Pragma(place.HOME, fixed=f"{_WAL}: the mode is wal and stays so", already=words("wal")),
        "locking_mode": Pragma(
            place.HOME,
            fixed="the shards' files are shared by the connections of their pools: it is normal and stays so",
            already=words("normal"),
        ),
        "synchronous": Pragma(
            place.HOME, fixed="say durability='full' or 'normal' when the manager is made: it holds for every shard"
        ),
        "cache_size": Pragma(place.HOME, fixed=f"the shards' connections have one each: {_LIMITS}"),
        "recursive_triggers": Pragma(place.HOME, fixed=f"it is off; {_OWN}", already=FALSE_VALUES),
        "read_uncommitted": Pragma(
            place.HOME, fixed="the shards share no cache, so that nothing uncommitted can be read", already=FALSE_VALUES
        ),
        "page_size": Pragma(place.HOME, fixed=_AT_CREATION),
        "auto_vacuum": Pragma(place.HOME, fixed=f"{_AT_CREATION}; VACUUM gives free pages back"),
        "integrity_check": Pragma(place.MERGED, argument=True),
        "quick_check": Pragma(place.MERGED, argument=True),
        "foreign_key_check": Pragma(place.MERGED, argument=True),
        "optimize": Pragma(place.EACH, argument=True),
    }
    table |= {
        name: Pragma(place.SESSION, advice)
        for name, advice in {
            "analysis_limit": f"{_OWN}; ANALYZE through the manager looks at all rows",
            "automatic_index": _OWN,
            "busy_timeout": "say connection_timeout= when the manager is made: it holds for every lock",
            "cache_spill": _OWN,
            "case_sensitive_like": "it would change what indexes and CHECKs mean: compare with GLOB or a COLLATE",
            "cell_size_check": _OWN,
            "checkpoint_fullfsync": _OWN,
            "count_changes": "the result's rowcount has the count",
            "data_version": "it compares two moments of one connection, and the manager's statements share none: "
            "ask it on a connection of manager.pool(n) for that shard",
            "defer_foreign_keys": "it holds for one transaction: declare the key DEFERRABLE INITIALLY DEFERRED",
            "empty_result_callbacks": _OWN,
            "full_column_names": "name the columns with AS",
            "fullfsync": _OWN,
            "ignore_check_constraints": "CHECK is always enforced: leave the constraint out of the schema",
            "legacy_alter_table": _OWN,
            "mmap_size": _OWN,
            "query_only": _OWN,
            "reverse_unordered_selects": "say ORDER BY",
            "secure_delete": _OWN,
            "short_column_names": "name the columns with AS",
            "shrink_memory": f"the shards' connections have memory each: {_LIMITS}",
            "temp_store": _OWN,
            "threads": _OWN,
            "trusted_schema": _OWN,
        }.items()
    }
    table |= {
        name: Pragma(place.REFUSED, advice)
        for name, advice in {
            "data_store_directory": "it is the process's: set it before the manager is made",
            "default_cache_size": "SQLite has given it up: use max_connections_per_shard and cache_size",
            "freelist_count": _FIGURES,
            "hard_heap_limit": "it holds for the whole process: set it on a connection of your own",
            "incremental_vacuum": "the shards' auto_vacuum is off: VACUUM gives free pages back",
            "journal_size_limit": f"{_WAL}: the log's size is bounded by that",
            "lock_status": _FIGURES,
            "max_page_count": _FIGURES,
            "page_count": _FIGURES,
            "soft_heap_limit": "it holds for the whole process: set it on a connection of your own",
            "stats": _FIGURES,
            "temp_store_directory": "it is the process's: set the environment variable SQLITE_TMPDIR",
            "wal_autocheckpoint": _WAL,
            "wal_checkpoint": _WAL,
            "writable_schema": "a schema written by hand would differ from what the catalog knows: use ALTER TABLE",
        }.items()
    }
    return table


PRAGMAS: Final[Mapping[str, Pragma]] = MappingProxyType(_rows())
"""By folded name: all that SQLite documents, but for those that only its debugging builds have."""

OWN_TABLES: Final = words(
    "sqlite_master sqlite_schema sqlite_temp_master sqlite_temp_schema sqlite_sequence sqlite_stat1 sqlite_stat4"
)
"""SQLite's own tables that tell of the schema: answered as one file would show them."""

FILE_TABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dbstat": _FIGURES,
        "sqlite_dbpage": "every shard has its own pages: ask a connection of manager.pool(n)",
        "sqlite_stmt": "every connection has its own statements: ask one of manager.pool(n)",
        "bytecode": "use EXPLAIN",
        "tables_used": "use manager.explain()",
    }
)
"""Table-valued functions that some builds have, and that tell of one file or one connection."""


def answered() -> tuple[str, ...]:
    """List the PRAGMAs that the manager answers."""
    return tuple(sorted(n for n, p in PRAGMAS.items() if p.place not in (PragmaPlace.SESSION, PragmaPlace.REFUSED)))
