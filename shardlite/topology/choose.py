"""Choose each table's kind and shard key, with the reason in words (pure: no connection, no clock).

The order of the decisions:

1. What the caller says stands. What can't be split is single: virtual tables, the tables that hold their content,
   tables whose rowid can't be reached, tables with neither a primary key nor a foreign key to go by.
2. Families: a *root* is sharded by its primary key; every table with a foreign key that carries its parent's shard key
   is sharded by that foreign key, so that parent and child share a shard; and so on down. The root whose family
   has the most rows goes first. A table of few rows is not made the root of a much larger family: its keys would not
   spread.
3. Small tables that sharded tables of another key refer to become reference tables.
4. A trigger that would be wrong with its tables apart makes them single, and the choice begins again without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shardlite.errors import NotSupportedError, ProgrammingError
from shardlite.execute.placement import Placement, place, sees_parent, unseen_constraints
from shardlite.names import fold
from shardlite.router.keys import COLLATIONS, KeyType
from shardlite.router.table import ConstraintMode, ForeignKey, Table, TableKind
from shardlite.sql.triggers import Conflict, Trigger, conflict_of, written_tables

REFERENCE_ROWS = 20_000
"""A table with more rows than this is never made a reference table by itself."""
KEYS_PER_SHARD = 16
"""A root with fewer rows than this per shard spreads badly, and is not made one of a much larger family."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What the caller says; names folded. ``keys`` holds the columns."""

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference: frozenset[str] = frozenset()
    single: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be decided about. ``tables`` by folded name in the order of their creation, of any kind as yet."""

    tables: Mapping[str, Table]
    rows: Mapping[str, int]
    triggers: tuple[Trigger, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    """Folded name of a table that holds a virtual table's content -> the virtual table's name."""
    num_shards: int = 4
    whole: Mapping[str, str] = field(default_factory=dict)
    """Folded name of a table that must not be split -> why."""


def read_stated(
    facts: Facts, keys: Mapping[str, str | Sequence[str]], reference: Iterable[str], single: Iterable[str]
) -> Stated:
    """Check the caller's words against the schema. Raises ProgrammingError naming what is not there or said twice."""
    asked = {_known(facts, name): ((k,) if isinstance(k, str) else tuple(k)) for name, k in keys.items()}
    stated = Stated(asked, frozenset(_known(facts, n) for n in reference), frozenset(_known(facts, n) for n in single))
    twice = (set(asked) & (stated.reference | stated.single)) | (stated.reference & stated.single)
    if twice:
        name = facts.tables[min(twice)].name
        raise ProgrammingError(f"{name}: more than one of a key, reference and single was stated for it")
    for name, columns in asked.items():
        table = facts.tables[name]
        missing = [c for c in columns if fold(c) not in table.by_name]
        if missing or not columns:
            known = ", ".join(c.name for c in table.columns)
            raise ProgrammingError(f"{table.name} has no column {missing[0] if missing else ''!r}: it has {known}")
    return stated


def choose(facts: Facts, stated: Stated, constraints: ConstraintMode = ConstraintMode.CHECKED) -> dict[str, Table]:
    """Return the placed tables by folded name, in the order of ``facts.tables``.

    :raises NotSupportedError: a statement of the caller can't be followed (a virtual table sharded, a trigger that
        would be wrong), or ``constraints`` is strict and something would only be checked; each of these is named.
    """
    whole = _unsplittable(facts, stated)
    while True:
        placed = _place_all(facts, _Chooser(facts, stated, whole).run())
        conflict = next((c for c in (conflict_of(t, placed) for t in facts.triggers) if c is not None), None)
        if conflict is None:
            break
        before = len(whole)
        whole |= _kept_by_trigger(facts, stated, placed, conflict, whole)
        if len(whole) == before:
            raise NotSupportedError(
                f"the trigger {conflict.trigger.name} on {conflict.trigger.table} can't be kept right: "
                f"{conflict.reason}. Drop it from the source before the import"
            )
    if constraints is ConstraintMode.STRICT:
        _refuse_unenforced(placed)
    return placed


def foreign_key_text(key: ForeignKey) -> str:
    """Return a foreign key as people read it: ``user_id -> users(id)``."""
    parents = f"({', '.join(key.parent_columns)})" if key.parent_columns else ""
    return f"{', '.join(key.columns)} -> {key.parent}{parents}"


def _known(facts: Facts, name: str) -> str:
    if fold(name) not in facts.tables:
        known = ", ".join(t.name for t in facts.tables.values()) or "none"
        raise ProgrammingError(f"the source has no table {name!r}: it has {known}")
    return fold(name)


def _unsplittable(facts: Facts, stated: Stated) -> dict[str, str]:
    """Return the tables that can't be split, with the reasons."""
    whole = dict.fromkeys(stated.single, "stated to be single.") | dict(facts.whole)
    for name, table in facts.tables.items():
        reason = ""
        if table.virtual:
            reason = "A virtual table can't be split."
        elif name in facts.contents:
            reason = f"It holds the content of the virtual table {facts.contents[name]}, which can't be split."
        elif table.rowid_name is None and not table.without_rowid:
            reason = "Columns hide every name of its rowid, so its rows can't be told apart."
        if not reason:
            continue
        if name in stated.keys or name in stated.reference:
            raise NotSupportedError(f"{table.name} can only be single. {reason}")
        whole.setdefault(name, reason)
    return whole


def _kept_by_trigger(
    facts: Facts, stated: Stated, placed: Mapping[str, Table], conflict: Conflict, whole: Mapping[str, str]
) -> dict[str, str]:
    trigger = conflict.trigger
    reason = f"The trigger {trigger.name} on {trigger.table} needs its tables in one place: {conflict.reason}."
    written = written_tables(trigger) | {fold(trigger.table)}
    found = {}
    for name in conflict.tables:
        if name in whole or (placed[name].kind is TableKind.REFERENCE and name not in written):
            continue
        if name in stated.keys or name in stated.reference:
            raise NotSupportedError(
                f"{facts.tables[name].name} can't be placed as stated. {reason} Leave the statement out, or drop the "
                "trigger from the source before the import"
            )
        found[name] = reason
    return found


def _place_all(facts: Facts, decided: Mapping[str, Placement]) -> dict[str, Table]:
    """Give the tables their kinds first and the lists of unenforced constraints when all kinds are known."""
    placed: dict[str, Table] = {}
    for name, table in facts.tables.items():
        asked = decided[name]
        bare = replace(table, unique=(), foreign_keys=())
        placed[name] = replace(place(bare, asked, {}), unique=table.unique, foreign_keys=table.foreign_keys)
    return {name: replace(table, unenforced=unseen(table, placed)) for name, table in placed.items()}


def unseen(table: Table, tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Say which constraints of a placed table no shard can see; for one kept whole these are foreign keys only."""
    if table.sharded:
        return unseen_constraints(table, tables)
    return unseen_constraints(replace(table, unique=()), tables)


def _refuse_unenforced(placed: Mapping[str, Table]) -> None:
    found = [f"{t.name}: {text}" for t in placed.values() for text in t.unenforced]
    if found:
        raise NotSupportedError(
            f"with these placements no shard can enforce {len(found)} constraint(s), and strict was asked: "
            f"{'; '.join(found)}. State other keys, reference or single tables, or leave --strict out to have them "
            "checked by `shardlite check` only"
        )


class _Chooser:
    """One run of the choice, with the tables in ``whole`` kept single."""

    def __init__(self, facts: Facts, stated: Stated, whole: Mapping[str, str]) -> None:
        self._facts = facts
        self._rows = facts.rows
        self._placed: dict[str, Placement] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._stated = stated
        self._whole = whole
        own = {fold(t.table): written_tables(t) - {fold(t.table)} for t in facts.triggers}
        self._written = {name for names in own.values() for name in names}
        self._open = [n for n in facts.tables if n not in whole]

    def run(self) -> dict[str, Placement]:
        for name, reason in self._whole.items():
            self._put(name, TableKind.SINGLE, reason)
        for name in self._stated.reference:
            self._put(name, TableKind.REFERENCE, "Stated to be a reference table.")
        for name, columns in self._stated.keys.items():
            names = tuple(self._facts.tables[name].by_name[fold(c)].name for c in columns)
            self._shard(name, names, "The key was stated.")
        for name in list(self._stated.keys):
            self._adopt(name)
        while self._open:
            root = self._best_root()
            if root is None:
                self._mark_references()
                for name in list(self._open):
                    self._put(name, TableKind.SINGLE, self._no_key_reason(name))
                break
            self._make_root(root)
            self._mark_references()
        return self._placed

    def _put(self, name: str, kind: TableKind, reason: str, columns: tuple[str, ...] = ()) -> None:
        self._placed[name] = Placement(
            kind=None if columns else kind, key_columns=columns, constraints=ConstraintMode.CHECKED, reason=reason
        )
        if name in self._open:
            self._open.remove(name)

    def _shard(self, name: str, columns: tuple[str, ...], reason: str) -> None:
        self._put(name, TableKind.SHARDED, reason, columns)
        self._keys[name] = columns

    # families

    def _root_key(self, name: str) -> tuple[str, ...]:
        """The column that a root would be sharded by; empty when it has none."""
        table = self._facts.tables[name]
        for column in table.primary_key[:1]:
            facts = table.by_name[fold(column)]
            if not facts.generated and facts.collation in COLLATIONS:
                return (column,)
        return ()

    def _family(self, root: str, key: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], ForeignKey]]:
        """Return the open tables that could be sharded by a foreign key to the root or to one of these."""
        keys = {root: key}
        found: dict[str, tuple[tuple[str, ...], ForeignKey]] = {}
        grown = True
        while grown:
            grown = False
            for name in self._open:
                if name in keys:
                    continue
                via = self._joining(name, keys)
                if via is not None:
                    keys[name], grown = via[0], True
                    found[name] = via
        return found

    def _joining(self, name: str, keys: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ForeignKey] | None:
        """Return the columns and the foreign key by which a table can join tables of these keys."""
        child = self._facts.tables[name]
        options = []
        for position, foreign in enumerate(child.foreign_keys):
            parent = self._facts.tables.get(fold(foreign.parent))
            if parent is None or fold(parent.name) == name or fold(parent.name) not in keys:
                continue
            columns = _carried(child, parent, foreign, keys[fold(parent.name)])
            if columns is None:
                continue
            facts = [child.by_name[fold(c)] for c in columns]
            nullable = any(not c.not_null and not c.primary_key_position for c in facts)
            options.append((nullable, -self._rows[fold(parent.name)], position, columns, foreign))
        if not options:
            return None
        *_, columns, foreign = min(options, key=lambda option: option[:3])
        return columns, foreign

    def _best_root(self) -> str | None:
        """Return the open table whose family has the most rows; None when no open table has a key."""
        best: tuple[bool, int, int, int] | None = None
        root = None
        for position, name in enumerate(self._open):
            key = self._root_key(name)
            if not key:
                continue
            family = self._family(name, key)
            rows = self._rows[name] + sum(self._rows[member] for member in family)
            spreads = len(family) > 2 or not self._too_few(name, rows)
            rank = (spreads, rows, len(family), -position)
            if best is None or rank > best:
                best, root = rank, name
        return root

    def _too_few(self, name: str, family_rows: int) -> bool:
        rows = self._rows[name]
        return rows < KEYS_PER_SHARD * self._facts.num_shards and family_rows >= 10 * max(1, rows)

    def _make_root(self, name: str) -> None:
        key = self._root_key(name)
        self._shard(name, key, "")
        members = self._adopt(name)
        rows = self._rows[name] + sum(self._rows[m] for m in members)
        names = ", ".join(self._facts.tables[m].name for m in members)
        reason = f"Root of a family by its primary key: {names} follow it ({rows:,} rows)." if members else ""
        self._shard(name, key, reason or "Sharded by its primary key; no table's foreign key follows it.")

    def _adopt(self, root: str) -> list[str]:
        """Shard the root's family; return the members."""
        family = self._family(root, self._keys[root])
        for name, (columns, foreign) in family.items():
            text = foreign_key_text(foreign)
            self._shard(name, columns, f"Its foreign key {text} puts each row on its parent's shard.")
        return list(family)

    # reference tables

    def _mark_references(self) -> None:
        """Make reference tables of the small open ones that placed tables of another key refer to."""
        grown = True
        while grown:
            grown = False
            for name in list(self._open):
                children = self._referring(name)
                if children and name not in self._written and self._small(name, children):
                    grown = True
                    most = max(children, key=lambda c: self._rows[c])
                    others = ", ".join(self._facts.tables[c].name for c in children)
                    self._put(
                        name,
                        TableKind.REFERENCE,
                        f"Small ({self._rows[name]:,} rows against {self._rows[most]:,} in "
                        f"{self._facts.tables[most].name}) and referred to by {others}: a copy on every shard keeps "
                        "joins and foreign keys local.",
                    )

    def _referring(self, name: str) -> list[str]:
        """Return the placed tables with a foreign key to ``name``."""
        return [
            child
            for child in self._placed
            if child != name and any(fold(k.parent) == name for k in self._facts.tables[child].foreign_keys)
        ]

    def _small(self, name: str, children: Sequence[str]) -> bool:
        rows, most = self._rows[name], max(self._rows[c] for c in children)
        return (
            (rows <= 100 and rows <= most)
            or (rows <= 1000 and rows * 4 <= most)
            or (rows <= REFERENCE_ROWS and rows * 10 <= most)
        )

    def _no_key_reason(self, name: str) -> str:
        table = self._facts.tables[name]
        if table.primary_key:
            return f"Its primary key ({', '.join(table.primary_key)}) can't be a shard key."
        return "It has no primary key, and no foreign key to a sharded table, to be spread by."


def _carried(child: Table, parent: Table, foreign: ForeignKey, key: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the child's columns that hold the parent's shard key through a foreign key; None when they don't."""
    parents = foreign.parent_columns or parent.primary_key
    pairs = {fold(p): c for c, p in zip(foreign.columns, parents, strict=False)}
    if any(fold(k) not in pairs for k in key):
        return None
    columns = [child.by_name.get(fold(pairs[fold(k)])) for k in key]
    if any(c is None or c.generated or c.collation not in COLLATIONS for c in columns):
        return None
    mine = KeyType(tuple(c.affinity for c in columns if c), tuple(c.collation for c in columns if c))
    theirs = [parent.by_name[fold(k)] for k in key]
    if mine != KeyType(tuple(c.affinity for c in theirs), tuple(c.collation for c in theirs)):
        return None
    return tuple(c.name for c in columns if c)


def seen_foreign_keys(table: Table, tables: Mapping[str, Table]) -> tuple[list[ForeignKey], list[ForeignKey]]:
    """Split a placed table's foreign keys into those that its shard can enforce and those that it can't."""
    seen = [k for k in table.foreign_keys if sees_parent(table, k, tables)]
    return seen, [k for k in table.foreign_keys if k not in seen]
