"""How a database is opened: one frozen, validated set of options, from keywords, a mapping or a file."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from shardlite.errors import ProgrammingError

Durability = Literal["full", "normal"]
Constraints = Literal["strict", "checked"]

MAX_SHARDS = 4096
DEFAULT_SHARDS = 4
MAX_TIMEOUT_S = 2_147_483
"""SQLite counts the milliseconds of a wait in 31 bits."""


@dataclass(frozen=True, slots=True)
class ShardliteConfig:
    """The options of a ShardManager.

    ``num_shards`` and ``strategy`` describe the layout: they are stored when a directory is created (4 shards and
    ``HashStrategy()`` unless given) and, when given for an existing one, compared with what is stored there.
    The others hold for this process only. Times are seconds.
    """

    num_shards: int | None = None
    db_dir: str = "./data"
    strategy: Any = None
    """A ShardingStrategy, or None. In a file: not available, use the catalog's."""
    max_connections_per_shard: int = 10
    connection_timeout: float = 30.0
    """How long a statement waits for a connection, a write lock or a busy file; 0 is not at all."""
    durability: Durability = "full"
    max_open_connections: int | None = None
    """Cap on open connections over all shards; None derives it from the descriptor limit."""
    create: bool = True
    """Create the directory's files when there is no database yet."""

    def __post_init__(self) -> None:
        if self.num_shards is not None:
            _check_int("num_shards", self.num_shards, 1, MAX_SHARDS)
        if not isinstance(self.db_dir, (str, os.PathLike)) or not os.fspath(self.db_dir):
            raise ProgrammingError(f"db_dir must be a path, not {self.db_dir!r}")
        object.__setattr__(self, "db_dir", os.fspath(self.db_dir))
        if "\0" in self.db_dir:
            raise ProgrammingError(f"db_dir must not hold a NUL: {self.db_dir!r}")
        _check_int("max_connections_per_shard", self.max_connections_per_shard, 1, 10_000)
        if self.max_open_connections is not None:
            _check_int("max_open_connections", self.max_open_connections, 1, 1_000_000)
        check_seconds("connection_timeout", self.connection_timeout)
        if self.durability not in get_args(Durability):
            raise ProgrammingError(f"durability must be 'full' or 'normal', not {self.durability!r}")

    @classmethod
    def load(cls, source: ShardliteConfig | Mapping[str, Any] | str | os.PathLike[str]) -> ShardliteConfig:
        """Make a config from another, from a mapping, or from a ``.toml``, ``.json``, ``.yaml`` or ``.yml`` file.

        In a file the options stand at the top level or under ``[shardlite]``. Raises ProgrammingError for an
        unknown option, a value of the wrong kind, or a file that can't be read.
        """
        if isinstance(source, ShardliteConfig):
            return source
        if isinstance(source, Mapping):
            return cls._from_mapping(source, "config")
        return cls._from_mapping(_read_file(Path(source)), os.fspath(source))

    @classmethod
    def _from_mapping(cls, values: Mapping[str, Any], where: str) -> ShardliteConfig:
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise ProgrammingError(f"unknown option {unknown[0]!r} in {where}: use one of {', '.join(known)}")
        return cls(**cast("dict[str, Any]", dict(values)))

    def override(self, **options: Any) -> ShardliteConfig:
        """Return a copy with the options that are not None replaced."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def check_seconds(name: str, value: object) -> float:
    """Return a timeout as a float: seconds to wait at most, 0 for not at all.

    :raises ProgrammingError: it is no int or float (a bool, a str), negative, NaN, or longer than SQLite can wait.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIMEOUT_S:
        raise ProgrammingError(f"{name} must be a number of seconds from 0 to {MAX_TIMEOUT_S:,}, not {value!r}")
    return float(value)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProgrammingError(f"{name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ProgrammingError(f"{name} must be from {low} to {high}, not {value}")


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProgrammingError(f"can't read the config file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ProgrammingError(f"config file {path} is not UTF-8 text: {error}") from error
    try:
        match path.suffix.lower():
            case ".toml":
                loaded: Any = tomllib.loads(text)
            case ".json":
                loaded = json.loads(text)
            case ".yaml" | ".yml":
                loaded = _load_yaml(path, text)
            case other:
                raise ProgrammingError(f"config file {path}: unknown suffix {other!r}, use .toml, .json, .yaml")
    except ValueError as error:
        raise ProgrammingError(f"config file {path} can't be parsed: {error}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("shardlite"), Mapping):
        loaded = loaded["shardlite"]
    if not isinstance(loaded, Mapping):
        raise ProgrammingError(f"config file {path} must hold options by name, not {type(loaded).__name__}")
    return loaded


def _load_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ProgrammingError(f"config file {path} needs PyYAML: pip install 'shardlite[yaml]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
