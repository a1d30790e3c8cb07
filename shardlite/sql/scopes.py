"""Who stands where in a statement: the tables that each SELECT, UPDATE or DELETE names, and what its WHERE and ON fix.

A *fact* is an equality that holds for every row that can reach the result: of two columns, or of a column and
constants. Facts flow inwards only: a subquery may use those of the statement around it, never the other way round,
and those of a LEFT JOIN's ON hold for its right side only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shardlite.router.table import Table, TableKind
from shardlite.sql.tokens import Constant


@dataclass(frozen=True, slots=True)
class Node:
    """A column of one reference to a table."""

    scope: int
    alias: str
    column: str


@dataclass(frozen=True, slots=True)
class Equal:
    """Two columns of the same affinity and collation are equal."""

    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Fixed:
    """A column equals one of some constants. ``null``: NULL is equal to NULL here (IS)."""

    node: Node
    values: tuple[Constant, ...]
    null: bool = False


Fact = Equal | Fixed


@dataclass(slots=True)
class Reference:
    """One mention of a table, view, CTE or table-valued function. ``table`` is None for all but base tables."""

    name: str
    alias: str
    alias_text: str
    scope: int
    table: Table | None
    view: bool = False
    joined: str = "inner"
    """``inner``, ``left`` (the right side of a LEFT JOIN) or ``other`` (in a FROM with a RIGHT or FULL JOIN)."""
    on: tuple[Fact, ...] = ()
    merged: frozenset[str] = frozenset()
    """Columns that its USING or NATURAL JOIN makes one with those of a source before it."""
    matched: tuple[Fact, ...] = ()
    """The right side of a RIGHT or FULL JOIN: what holds for the pairs of rows that match, and for no others."""


@dataclass(slots=True)
class Scope:
    """One SELECT, UPDATE or DELETE."""

    number: int
    parent: Scope | None
    sources: list[Reference] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    opaque: bool = False
    """Its sources can't be told apart (nested joins, one alias twice): nothing follows from its conditions."""
    merged: bool = False
    """USING or NATURAL, and it can't be told what an unqualified name stands for."""
    aliases: frozenset[str] = frozenset()
    """Names given to result columns: a WHERE may mean them."""

    def known(self) -> tuple[Fact, ...]:
        """Return the facts that hold in this scope, those of the scopes around it included."""
        return (*(self.parent.known() if self.parent else ()), *self.facts)

    def holder(self, name: str) -> Reference | None:
        """Return the source whose column an unqualified name means: of columns made one the leftmost counts."""
        holders = [source for source in self.sources if source.table is not None and name in source.table.by_name]
        return holders[0] if holders and all(name in other.merged for other in holders[1:]) else None

    def find(self, alias: str) -> Reference | None:
        """Return the source that a qualified name means, looking outwards; None where it can't be told."""
        if self.opaque:
            return None
        for source in self.sources:
            if source.alias == alias:
                return source
        return self.parent.find(alias) if self.parent else None


@dataclass(slots=True)
class Scopes:
    """All that was found in a statement."""

    scopes: list[Scope]
    references: list[Reference]
    unresolved: list[str]
    """Tables in places that the analysis doesn't follow."""

    def of_kind(self, kind: TableKind) -> list[Reference]:
        return [ref for ref in self.references if ref.table is not None and ref.table.kind is kind]
