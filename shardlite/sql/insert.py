"""INSERT ... VALUES in pieces: where its rows begin and end, which values are the key and the id, and how pieces join.

Works on tokens, so that the text that runs is the user's own with ids spliced in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Column, Table
from shardlite.sql.tokens import Constant, Text, Token, TokenKind, closing, constant_of, split_commas, tokenize

GENERATED = 0
"""The slot that a generated id is bound to."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text whose parameters are all ``?``; ``slots`` says what each is bound to: SQLite's number or GENERATED."""

    sql: str
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of VALUES. ``id`` is None where the row leaves the rowid out; ``key`` has None in the id's place."""

    key: tuple[Constant | None, ...]
    id: Constant | None
    as_given: Piece
    with_id: Piece


@dataclass(frozen=True, slots=True)
class Insertion:
    """An INSERT in pieces: ``prefix`` + rows joined with commas + ``tail``."""

    prefix: Piece
    rows: tuple[Row, ...]
    tail: Piece
    conflict: str
    """``REPLACE``, ``IGNORE``, ``FAIL`` and so on; ``UPSERT`` for ON CONFLICT; "" for none."""
    takes_id: bool
    """The table's rowid can be named, so every row has to have an id."""


def take_apart(text: Text, table: Table) -> Insertion:
    """Cut an INSERT into a sharded table into pieces. Raises NotSupportedError for other forms than VALUES."""
    return _Cutter(text, table).run()


class _Cutter:
    def __init__(self, text: Text, table: Table) -> None:
        self._text = text
        self._tokens = text.tokens
        self._table = table
        self._positions = {token.start: position for position, token in enumerate(text.tokens)}
        self._conflict = ""
        alias = table.rowid_alias
        hidden = ("rowid", "_rowid_", "oid")
        self._id_names = {fold(alias)} if alias else set()
        self._id_names |= {name for name in hidden if name not in table.by_name}
        self._takes_id = table.rowid_name is not None and not table.virtual

    def run(self) -> Insertion:
        position = self._after_table()
        names, position = self._columns(position)
        word = self._tokens[position].key if position < len(self._tokens) else ""
        if word == "DEFAULT":
            return self._default_values(position)
        if word != "VALUES":
            raise NotSupportedError(
                f"INSERT INTO {self._table.name} ... SELECT: the rows may belong to several shards; "
                "read them first and insert them with manager.insert_many()"
            )
        return self._values(names, position)

    def _after_table(self) -> int:
        tokens = self._tokens
        position = next((i for i, token in enumerate(tokens) if token.key == "INTO"), -1)
        if tokens[0].key not in ("INSERT", "REPLACE") or position < 0:
            raise NotSupportedError(f"WITH before INSERT INTO {self._table.name}: insert the values themselves")
        if tokens[0].key == "REPLACE":
            self._conflict = "REPLACE"
        elif tokens[1].key == "OR":
            self._conflict = tokens[2].key
        position += 4 if tokens[position + 2 : position + 3] and tokens[position + 2].key == "." else 2
        if position < len(tokens) and tokens[position].key == "AS":
            position += 2
        return position

    def _columns(self, position: int) -> tuple[list[str] | None, int]:
        if position >= len(self._tokens) or self._tokens[position].key != "(":
            return None, position
        end = closing(self._tokens, position)
        names = [token.name or "" for token in self._tokens[position + 1 : end] if token.key != ","]
        if len(set(names)) != len(names) or sum(name in self._id_names for name in names) > 1:
            raise NotSupportedError(f"INSERT INTO {self._table.name} names a column twice: name each once")
        return names, end + 1

    def _default_values(self, position: int) -> Insertion:
        key = self._key([], [])
        before = self._text.sql[: self._tokens[position].start]
        tail = self._tail(position + 2)
        if self._id_column() is None:
            given = Piece(self._text.sql[self._tokens[position].start : self._tokens[position + 1].end])
            row = Row(key, None, given, given)
            return Insertion(Piece(before), (row,), tail, self._conflict, False)
        row = Row(key, None, Piece("(?)", (GENERATED,)), Piece("(?)", (GENERATED,)))
        return Insertion(Piece(f"{before}({self._id_column()}) VALUES "), (row,), tail, self._conflict, True)

    def _values(self, names: list[str] | None, position: int) -> Insertion:
        columns = names if names is not None else [fold(c.name) for c in self._table.columns if c.writable]
        stated = next((i for i, name in enumerate(columns) if name in self._id_names), None)
        prefix = self._prefix(names, columns, stated, position)
        rows: list[Row] = []
        position += 1
        while position < len(self._tokens) and self._tokens[position].key == "(":
            end = closing(self._tokens, position)
            rows.append(self._row(position, end, columns, stated))
            position = end + 1
            if position < len(self._tokens) and self._tokens[position].key == ",":
                position += 1
        return Insertion(prefix, tuple(rows), self._tail(position), self._conflict, self._takes_id)

    def _prefix(self, names: list[str] | None, columns: list[str], stated: int | None, values: int) -> Piece:
        sql = self._text.sql
        end = self._tokens[values].end
        if stated is not None or not self._takes_id:
            return Piece(sql[:end] + " ")
        if names is None:
            listed = ", ".join(quote(self._table.by_name[name].name) for name in columns)
            start = self._tokens[values].start
            return Piece(f"{sql[:start]}({self._id_column()}, {listed}) VALUES ")
        opening = next(i for i in range(values, -1, -1) if self._opens_columns(i, values))
        cut = self._tokens[opening].end
        return Piece(f"{sql[:cut]}{self._id_column()}, {sql[cut:end]} ")

    def _opens_columns(self, position: int, values: int) -> bool:
        return self._tokens[position].key == "(" and closing(self._tokens, position) == values - 1

    def _row(self, opening: int, end: int, columns: list[str], stated: int | None) -> Row:
        values = split_commas(self._tokens[opening + 1 : end])
        key = self._key(columns, values)
        as_given = self._piece(opening, end + 1)
        if stated is None:
            inner = self._piece(opening + 1, end)
            with_id = Piece(f"(?, {inner.sql})", (GENERATED, *inner.slots)) if self._takes_id else as_given
            return Row(key, None, as_given, with_id)
        value = values[stated]
        constant = constant_of(value)
        if constant is None:
            raise NotSupportedError(
                f"INSERT INTO {self._table.name}: the id is computed ({_words(self._text, value)}); "
                "give it as a literal or a parameter, or leave it out"
            )
        first, last = self._positions[value[0].start], self._positions[value[-1].start]
        left, right = self._piece(opening, first), self._piece(last + 1, end + 1)
        with_id = Piece(f"{left.sql}?{right.sql}", (*left.slots, GENERATED, *right.slots))
        return Row(key, constant, as_given, with_id)

    def _key(self, columns: list[str], values: Sequence[Sequence[Token]]) -> tuple[Constant | None, ...]:
        return tuple(self._key_part(fold(name), columns, values) for name in self._table.key_columns)

    def _key_part(self, name: str, columns: list[str], values: Sequence[Sequence[Token]]) -> Constant | None:
        if self._table.rowid_alias is not None and name == fold(self._table.rowid_alias):
            return None
        if name not in columns:
            return self._default(self._table.by_name[name])
        value = values[columns.index(name)]
        constant = constant_of(value)
        if constant is None:
            raise NotSupportedError(
                f"INSERT INTO {self._table.name}: the shard key {name} is computed ({_words(self._text, value)}); "
                "give it as a literal or a parameter"
            )
        return constant

    def _default(self, column: Column) -> Constant:
        if column.default_sql is None:
            return Constant(None)
        constant = constant_of(tokenize(column.default_sql).tokens)
        if constant is None or constant.parameter:
            raise NotSupportedError(
                f"INSERT INTO {self._table.name} leaves the shard key {column.name} to its default "
                f"{column.default_sql}: give it as a literal or a parameter"
            )
        return constant

    def _tail(self, position: int) -> Piece:
        rest = self._tokens[position:]
        if not self._conflict and any(token.key == "CONFLICT" for token in rest):
            self._conflict = "UPSERT"
        piece = self._piece(position, len(self._tokens))
        return Piece(" " + piece.sql, piece.slots) if piece.sql else piece

    def _id_column(self) -> str | None:
        if not self._takes_id or self._table.rowid_name is None:
            return None
        return quote(self._table.rowid_name) if self._table.rowid_alias else self._table.rowid_name

    def _piece(self, first: int, last: int) -> Piece:
        return piece_of(self._text, first, last)


def piece_of(text: Text, first: int, last: int) -> Piece:
    """Return the original text of tokens ``first`` up to ``last`` with its parameters made nameless."""
    sql, parts, slots = text.sql, [], []
    if first >= last:
        return Piece("")
    at = text.tokens[first].start
    for token in text.tokens[first:last]:
        if token.kind is TokenKind.PARAMETER:
            parts += [sql[at : token.start], "?"]
            slots.append(token.index)
            at = token.end
    parts.append(sql[at : text.tokens[last - 1].end])
    return Piece("".join(parts), tuple(slots))


def _words(text: Text, value: Sequence[Token]) -> str:
    words = " ".join(text.sql[value[0].start : value[-1].end].split()) if value else ""
    return words if len(words) <= 60 else words[:57] + "..."
