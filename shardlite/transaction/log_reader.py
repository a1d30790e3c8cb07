"""All commit logs of a directory, read: what was decided, by whomever, and what of it a shard may lack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple, Protocol

from shardlite.errors import ShardUnavailableError
from shardlite.transaction.file_layer import FileLayer
from shardlite.transaction.log_file import LogContents, log_numbers, log_path, scan, scan_parts
from shardlite.transaction.log_format import Part, Record

_LOOKS: Final = 5


class LogCatalog(Protocol):
    """What the logs ask of the catalog: its tables ``commit_log`` and ``outcome``.

    Each call is a transaction of its own, durable when it returns; errors are shardlite's. Safe for threads.
    """

    def log_numbers(self) -> Collection[int]:
        """Return the numbers of the log files that must exist."""

    def add_log(self, number: int) -> None:
        """Note that a log file must exist from now on; harmless when it is noted already."""

    def remove_log(self, number: int) -> None:
        """Note that a log file needn't exist any more; harmless when that is so already."""

    def note_committed(self, tokens: Collection[int]) -> None:
        """Write ``committed`` to ``outcome`` for tokens that have no row there."""

    def note_rolled_back(self, tokens: Collection[int]) -> None:
        """Write ``rolled back`` to ``outcome`` for tokens that have no row there."""

    def rolled_back(self, tokens: Collection[int]) -> Collection[int]:
        """Return those of the tokens whose row says ``rolled back``: their records are void."""


class Found(NamedTuple):
    """A decision in a log."""

    record: Record
    log: int
    """The number of the file."""
    end: int
    """Where the record ends there, in bytes."""


class LogReader:
    """Reads all logs of a directory, with a descriptor for each read. Safe for threads and forks.

    Raises ShardUnavailableError when a registered log is missing, or any is damaged or can't be read: what was
    decided can't be told then.
    """

    def __init__(self, layer: FileLayer, directory: str, database_id: bytes, catalog: LogCatalog) -> None:
        self._layer = layer
        self._directory = directory
        self._database_id = database_id
        self._catalog = catalog

    def contents(self) -> list[LogContents]:
        """Read every log file, ascending."""
        lost: set[int] = set()
        for _ in range(_LOOKS):
            # A log's row comes after the file and goes before it: a file that is gone has no row by now.
            registered = set(self._catalog.log_numbers())
            found, lost = [], set()
            for number in sorted(registered | log_numbers(self._layer, self._directory)):
                contents = scan(self._layer, self._directory, number, self._database_id)
                if contents is not None and contents.header is not None:
                    found.append(contents)
                elif number in registered:
                    lost.add(number)
            if not lost or not lost & set(self._catalog.log_numbers()):
                return found
        names = ", ".join(log_path(self._directory, number) for number in sorted(lost))
        raise ShardUnavailableError(
            f"{names}: missing, or without its header; decided transactions may be lost with it: put the file back, or "
            "restore the directory from a backup"
        )

    def find(self, token: int) -> Record | None:
        """Return the valid record of a token, None when there is none or it is void."""
        if token in self._catalog.rolled_back((token,)):
            return None
        for contents in self.contents():
            for record in contents.records:
                if record.token == token:
                    return record
        return None

    def unapplied(self, shard: int, above: int, prefer: Callable[[Found], bool] = lambda found: False) -> list[Found]:
        """Return what a shard with the watermark ``above`` lacks, in the order of its numbers, each decision once.

        Of several copies the first that ``prefer`` is true for, or the first.
        Raises ShardUnavailableError when one is missing between them, or two have the same number.
        """
        by_number: dict[int, Found] = {}
        for found in self._valid():
            number = found.record.number_on(shard)
            if number is None or number <= above:
                continue
            other = by_number.setdefault(number, found)
            if other.record.token != found.record.token:
                raise ShardUnavailableError(
                    f"shard {shard}: {log_path(self._directory, other.log)} and {log_path(self._directory, found.log)} "
                    f"have different decisions {number} ({other.record.txid}, {found.record.txid}): files of different "
                    "moments are mixed; restore the directory from one backup"
                )
            if prefer(found) and not prefer(other):
                by_number[number] = found
        for wanted, number in enumerate(sorted(by_number), above + 1):
            if number != wanted:
                raise ShardUnavailableError(
                    f"shard {shard} is at decision {above}, decision {wanted} is in no commit log and {number} is in "
                    f"{log_path(self._directory, by_number[number].log)}: a log or a newer file of the shard is "
                    "missing; restore the directory from a backup"
                )
        return [by_number[number] for number in sorted(by_number)]

    def highest(self) -> dict[int, int]:
        """Return, for each shard named in a log, the highest number there: what has to be applied, or is."""
        numbers: dict[int, int] = {}
        for found in self._valid():
            for each in found.record.participants:
                numbers[each.shard] = max(each.number, numbers.get(each.shard, 0))
        return numbers

    def parts(self, record: Record) -> Iterator[Part]:
        """Yield what a decision wrote ahead, in order, one part in memory at a time."""
        left = list(reversed(record.parts))
        for contents in self.contents() if left else ():
            if contents.parts_of != record.token:
                continue
            for placed in scan_parts(self._layer, self._directory, contents.number):
                if left and placed.hash == left[-1] and isinstance(placed.content, Part):
                    left.pop()
                    yield placed.content
        if left:
            raise ShardUnavailableError(
                f"transaction {record.txid}: {len(left)} of the {len(record.parts)} parts of its redo are in no commit "
                "log: a log file is missing; put it back, or restore the directory from a backup"
            )

    def _valid(self) -> list[Found]:
        everything = [
            Found(record, contents.number, end)
            for contents in self.contents()
            for record, end in zip(contents.records, contents.ends, strict=True)
        ]
        void = set(self._catalog.rolled_back({found.record.token for found in everything})) if everything else set()
        return [found for found in everything if found.record.token not in void]


__all__ = ["Found", "LogCatalog", "LogReader"]
