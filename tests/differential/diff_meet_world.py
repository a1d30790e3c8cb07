"""Worlds in which parts of the planner and executor meet, with choices forced that few rows wouldn't take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from diff_case import Statement
from diff_compare import Answer
from diff_world import Contents, Outcome, World

from shardlite.driver import sqlite3

_SEND = {
    "shardlite.sql.rules.repartition._WORTH": 1e9,
    "shardlite.sql.rules.repartition._TO_OWNER": 0.0,
    "shardlite.sql.rules.repartition._FEW": -1,
    "shardlite.sql.rules.repartition.BROADCAST_UP_TO": -1,
    "shardlite.sql.rules.broadcast._WORTH": 1e9,
}
_SMALL = {
    "shardlite.execute.streams.SMALL": 3,
    "shardlite.execute.streams._BATCH": 2,
    "shardlite.execute.streams._FIRST": 1,
    "shardlite.execute.gather.SMALL": 3,
    "shardlite.execute.coordinator.INDEX_FROM": 1,
    "shardlite.execute.coordinator._BATCH": 2,
    "shardlite.execute.exchange.FEW": 0,
    "shardlite.execute.insert_query._BATCH": 2,
    "shardlite.execute.gather_write._BATCH": 2,
    "shardlite.execute.kept_rows._BATCH": 2,
    "shardlite.execute.owned._SCANNED": 0,
    "shardlite.sql.where.JSON_LIST_FROM": 2,
}
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "own": {},
    "sent": _SEND,
    "sent in small parts": {**_SEND, **_SMALL},
    "broadcast": {**_SEND, "shardlite.sql.rules.repartition._WORTH": 0.0, "shardlite.execute.exchange.FEW": 0},
    "gathered": {
        "shardlite.sql.rules.repartition._WORTH": 0.0,
        "shardlite.sql.rules.broadcast._WORTH": 0.0,
        **_SMALL,
    },
    "sorted without limits": {**_SMALL, "shardlite.sql.template.LARGE_LIMIT": 0},
}


@contextmanager
def forced(choice: str) -> Iterator[None]:
    """Make the planner choose so, and the executor use parts so small, whatever few rows would cost."""
    with ExitStack() as stack:
        for name, value in CHOICES[choice].items():
            stack.enter_context(patch(name, value))
        yield


class MeetWorld(World):
    """A world that may have text which is no Unicode, and a plain file attached on each side."""

    def __init__(self, num_shards: int, encoding: str = "UTF-8", strategy: Any = None) -> None:
        super().__init__(num_shards, encoding, strategy)
        self.beside: list[Path] = []

    def attach(self, texts: Sequence[str]) -> None:
        """Attach a file of its own to each side, as ``beside``."""
        for side in ("plain", "shards"):
            path = self.directory.with_name(f"{self.directory.name}-{side}.db")
            self.beside.append(path)
            (encoding,) = self.plain.execute("PRAGMA encoding").fetchone()
            with closing(sqlite3.connect(path, isolation_level=None)) as made:
                made.execute(f"PRAGMA encoding = '{encoding}'")
                for text in texts:
                    made.execute(text)
        self.plain.execute("ATTACH ? AS beside", (str(self.beside[0]),))
        self.manager.attach("beside", self.beside[1])

    def close(self) -> None:
        super().close()
        for path in self.beside:
            path.unlink()

    def define(self, text: str) -> None:
        """Change the schema, or the figures of ANALYZE, on both sides."""
        self.plain.execute(text)
        self.manager.execute(text)
        self._reads = {}

    def kind_of(self, statement: Statement) -> str:
        """Return how a statement is run; "" where that can't be told."""
        try:
            return str(self.manager.explain(statement.sql, statement.parameters).kind)
        except Exception:  # compared when it runs
            return ""

    def change(self, statement: Statement) -> Outcome:
        found = super().change(statement)
        if found is None and self.beside:
            mine, theirs = map(self._content_beside, self.beside)
            if mine != theirs:
                return self._difference(
                    "contents of the attached file", statement, Answer(rows=mine), Answer(rows=theirs)
                )
        return found

    def _content_beside(self, path: Path) -> tuple[Any, ...]:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.text_factory = bytes
            return tuple(reader.execute("SELECT rowid, * FROM b0 ORDER BY rowid"))

    def content_of_plain(self) -> Contents:
        self._read_texts()  # names are text
        self.plain.text_factory = bytes
        try:
            return super().content_of_plain()
        finally:
            self.plain.text_factory = str

    def content_of_shards(self) -> Contents | str:
        if not self._readers:
            self._open_readers()
            for reader in self._readers:
                reader.text_factory = bytes
        return super().content_of_shards()

    def _align(self, before: Contents) -> dict[int, int]:
        self._read_texts()
        self.plain.text_factory = bytes
        try:
            return super()._align(before)
        finally:
            self.plain.text_factory = str

    def _follows_rowid(self, table: str) -> frozenset[int]:
        self.plain.text_factory = str
        try:
            return super()._follows_rowid(table)
        finally:
            self.plain.text_factory = bytes

    def _renumber(self, table: str, ids: dict[int, int]) -> None:
        self.plain.text_factory = str
        try:
            super()._renumber(table, ids)
        finally:
            self.plain.text_factory = bytes
