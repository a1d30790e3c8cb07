"""What of a table's uniqueness stands in the shards' own definitions (pure).

A shard enforces a UNIQUE or PRIMARY KEY whose columns hold the shard key. Any other one would hold among the rows that
happen to share a shard, so what is refused would depend on the number of shards: it goes from the shards' texts, and
an ordinary index stands in its place. The catalog keeps the texts as the user wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shardlite.errors import NotSupportedError
from shardlite.names import RESERVED_PREFIX, fold, quote
from shardlite.router.table import Table, UniqueConstraint
from shardlite.sql.tokens import Token, closing, split_commas, tokenize


@dataclass(frozen=True, slots=True)
class UniquenessClause:
    """One UNIQUE or PRIMARY KEY clause of a CREATE TABLE; ``first`` to ``last`` are its tokens."""

    first: int
    last: int
    primary: bool
    columns: tuple[str, ...]
    """Folded."""
    collations: tuple[str, ...]
    """As the clause says them, folded; "" where it says none."""
    action: str
    """REPLACE and so on of its ON CONFLICT, or ""."""


def covers_key(table: Table, constraint: UniqueConstraint) -> bool:
    """Tell whether equal values of the constraint's columns always share a shard.

    They don't where the constraint compares a key column more coarsely than the key does: a NOCASE index on a BINARY
    key finds 'a' and 'A' equal, which live on two shards.
    """
    collations = constraint.collations or ("",) * len(constraint.columns)
    columns = {fold(n): fold(c) for n, c in zip(constraint.columns, collations, strict=True) if n is not None}
    keys = {fold(name): fold(table.by_name[fold(name)].collation) for name in table.key_columns}
    return bool(keys) and all(
        name in columns and columns[name] in ("", "binary", collation) for name, collation in keys.items()
    )


def unseen_uniqueness(table: Table) -> list[UniqueConstraint]:
    """Return the constraints that no single shard can enforce."""
    return [c for c in table.unique if table.sharded and not covers_key(table, c)]


def uniqueness_clauses(ddl: str) -> list[UniquenessClause]:
    """Find the UNIQUE and PRIMARY KEY clauses of a CREATE TABLE."""
    return list(_clauses(tokenize(ddl).tokens))


def is_unseen(table: Table, clause: UniquenessClause) -> bool:
    """Tell whether no single shard can enforce a clause of the table's definition."""
    if not table.sharded or (clause.primary and table.rowid_alias is not None):
        return False
    unknown = [name for name in clause.columns if name not in table.by_name]
    if unknown:
        raise NotSupportedError(
            f"{table.name}: a constraint names the column {unknown[0]}, which was renamed in the same change: make the "
            "table and rename its column in two changes"
        )
    own = [table.by_name[name].collation for name in clause.columns]
    collations = tuple(said or fold(collation) for said, collation in zip(clause.collations, own, strict=True))
    return not covers_key(table, UniqueConstraint("", clause.columns, "u", False, collations))


def without_unseen_uniqueness(table: Table, ddl: str) -> str:
    """Return the CREATE TABLE for the shards: what they can't enforce is left out, all else stays as written.

    A table WITHOUT ROWID must have a PRIMARY KEY: one that is left out is made longer by the shard key instead.
    """
    while True:
        tokens = tokenize(ddl).tokens
        clause = next((c for c in _clauses(tokens) if is_unseen(table, c)), None)
        if clause is None:
            return ddl
        ddl = _cut(ddl, tokens, clause)
        if clause.primary and table.without_rowid:
            ddl = _with_item(ddl, f"PRIMARY KEY ({', '.join(_longer_key(table, clause))})")
        elif clause.primary and table.strict:
            ddl = _with_not_null(ddl, clause.columns)


def without_unique(table: Table, index: str, sql: str) -> str:
    """Return the CREATE UNIQUE INDEX for the shards: an ordinary index where they can't enforce it."""
    tokens = tokenize(sql).tokens
    unseen = any(c.origin == "c" and fold(c.name) == fold(index) for c in unseen_uniqueness(table))
    if not unseen or len(tokens) < 3 or tokens[1].key != "UNIQUE":
        return sql
    return sql[: tokens[1].start] + sql[tokens[2].start :]


def lookup_indexes(table: Table) -> list[tuple[str, str]]:
    """Return the ordinary indexes, as (name, text), that stand on the shards in the place of what was left out."""
    found = []
    clauses = [
        c for c in unseen_uniqueness(table) if c.origin != "c" and not (c.origin == "pk" and table.without_rowid)
    ]
    for number, constraint in enumerate(clauses, 1):
        collations = constraint.collations or tuple(table.by_name[fold(n or "")].collation for n in constraint.columns)
        columns = [
            f"{quote(name)} COLLATE {quote(collation)}"
            for name, collation in zip(constraint.columns, collations, strict=True)
            if name is not None
        ]
        name = f"{RESERVED_PREFIX}lookup_{number}_{table.name}"
        found.append((name, f"CREATE INDEX {quote(name)} ON {quote(table.name)} ({', '.join(columns)})"))
    return found


def identity_columns(table: Table) -> tuple[str, ...]:
    """Return the columns that tell the rows of a table WITHOUT ROWID apart on one shard."""
    primary = {fold(name) for name in table.primary_key}
    unseen = any(c.origin == "pk" for c in unseen_uniqueness(table))
    return table.primary_key + tuple(n for n in table.key_columns if unseen and fold(n) not in primary)


def _clauses(tokens: Sequence[Token]) -> Iterator[UniquenessClause]:
    # UNIQUE, PRIMARY and CONSTRAINT are reserved words: unquoted they are never names.
    depth, item = 0, 0
    for position, token in enumerate(tokens):
        depth += (token.key == "(") - (token.key == ")")
        if depth == 1 and token.key in ("(", ","):
            item = position + 1
        if depth == 1 and token.key in ("UNIQUE", "PRIMARY"):
            yield _clause(tokens, position, tokens[item])


def _clause(tokens: Sequence[Token], at: int, column: Token) -> UniquenessClause:
    primary = tokens[at].key == "PRIMARY"
    last = at + primary
    parts: list[tuple[Token, ...]] = [(column,)]
    if _key(tokens, last + 1) == "(":
        end = closing(tokens, last + 1)
        parts = split_commas(tokens[last + 2 : end])
        last = end
    elif _key(tokens, last + 1) in ("ASC", "DESC"):
        last += 1
    action = ""
    if _key(tokens, last + 1) == "ON" and _key(tokens, last + 2) == "CONFLICT":
        action = _key(tokens, last + 3)
        last += 3
    if _key(tokens, last + 1) == "AUTOINCREMENT":
        last += 1
    named = at >= 2 and tokens[at - 2].key == "CONSTRAINT"
    return UniquenessClause(
        at - 2 if named else at,
        last,
        primary,
        tuple(part[0].name or "" for part in parts),
        tuple(_collation(part) for part in parts),
        action,
    )


def _collation(part: Sequence[Token]) -> str:
    keys = [token.key for token in part]
    return (part[keys.index("COLLATE") + 1].name or "") if "COLLATE" in keys[1:] else ""


def _key(tokens: Sequence[Token], position: int) -> str:
    return tokens[position].key if position < len(tokens) else ""


def _cut(ddl: str, tokens: Sequence[Token], clause: UniquenessClause) -> str:
    """Take a clause out, with the comma before it where it stood by itself and another comma or the end follows."""
    first = clause.first
    alone = first > 0 and tokens[first - 1].key == "," and _key(tokens, clause.last + 1) in (",", ")")
    start = tokens[first - 1 if alone else first].start
    return ddl[:start] + ddl[tokens[clause.last].end :]


def _with_item(ddl: str, item: str) -> str:
    """Add an item at the end of the table's parentheses."""
    tokens = tokenize(ddl).tokens
    opening = next(i for i, token in enumerate(tokens) if token.key == "(")
    end = tokens[closing(tokens, opening)].start
    return f"{ddl[:end]}, {item}{ddl[end:]}"


def _longer_key(table: Table, clause: UniquenessClause) -> list[str]:
    """Return the columns of a PRIMARY KEY that is as coarse as it can be and yet holds the shard key."""
    keys = {fold(name): fold(table.by_name[fold(name)].collation) for name in table.key_columns}
    parts = []
    for name, collation in zip(clause.columns, clause.collations, strict=True):
        coarse = name in keys and (collation or keys[name]) not in ("binary", keys[name])
        said = "BINARY" if coarse else collation
        parts.append(quote(table.by_name[name].name) + (f" COLLATE {quote(said)}" if said else ""))
    return parts + [quote(table.by_name[name].name) for name in keys if name not in clause.columns]


def _with_not_null(ddl: str, columns: Sequence[str]) -> str:
    """Say NOT NULL of columns for which only a PRIMARY KEY of a STRICT table meant it."""
    tokens = tokenize(ddl).tokens
    opening = next(i for i, token in enumerate(tokens) if token.key == "(")
    at = opening + 1
    places = []
    for item in split_commas(tokens[at : closing(tokens, opening)]):
        keys = [token.key for token in item]
        if item[0].name in columns and ("NOT", "NULL") not in pairwise(keys):
            places.append(item[-1].end)
    for place in reversed(places):
        ddl = f"{ddl[:place]} NOT NULL{ddl[place:]}"
    return ddl
