"""Which triggers stay right when the rows are spread: a trigger runs on one shard and sees and writes only that shard.

A trigger on a sharded table is *local* when every statement in it reads only reference tables, and touches otherwise
only rows that are pinned to the row that fired it: ``WHERE key = NEW.key`` on a colocated table, ``WHERE id = NEW.id``
on the row itself.
An INSERT must give the colocated table the same key, and the table must be WITHOUT ROWID: a rowid that the trigger
makes is unique on its shard only. What is not understood is taken as not local.

A trigger on a reference table runs once on every copy, so it must also do the same on each (``sql/copies.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from shardlite.names import fold
from shardlite.router.table import ROWID_NAMES, Table, TableKind
from shardlite.sql.copies import may_take_defaults, shifts, why_copies_differ
from shardlite.sql.functions import NO_FUNCTIONS, UserFunctions
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.tokens import Token, TokenKind, tokenize, tokens_of

if TYPE_CHECKING:  # it takes a third of a second to import: each function that needs it does that
    from sqlglot import exp


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger: the table or view that fires it, the statements of its body, and every word in it (folded).

    Its WHEN condition stands among the statements as a SELECT. ``statements`` is None when the text is not understood.
    """

    name: str
    table: str
    statements: tuple[str, ...] | None
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A trigger that is not local: why, and the tables (folded names) that have to stay together."""

    trigger: Trigger
    reason: str
    tables: frozenset[str]


def read_trigger(name: str, table: str, sql: str) -> Trigger:
    """Split a CREATE TRIGGER text into the statements of its body."""
    tokens = tokens_of(sql)
    said = frozenset(fold(token.value) for token in tokens)
    # The trigger itself may be called begin.
    before = (".", "TRIGGER", "EXISTS")
    begin = next((i for i, t in enumerate(tokens) if t.is_word("BEGIN") and tokens[i - 1].key not in before), None)
    end = max((i for i, t in enumerate(tokens) if t.is_word("END")), default=-1)
    if begin is None or end < begin or any(token.kind is TokenKind.ILLEGAL for token in tokens):
        return Trigger(name, table, None, said)
    statements = []
    when = next((i for i, t in enumerate(tokens[:begin]) if t.is_word("WHEN")), None)
    if when is not None:
        statements.append("SELECT " + sql[tokens[when + 1].start : tokens[begin - 1].end])
    first = begin + 1
    for i in range(begin + 1, end + 1):
        if tokens[i].key == ";":
            if i > first:
                statements.append(sql[tokens[first].start : tokens[i - 1].end])
            first = i + 1
    return Trigger(name, table, tuple(statements), said)


def table_at(tokens: Sequence[Token]) -> int:
    """Return the position of the name of the table or view that a CREATE TRIGGER's tokens stand on."""
    at = next((i for i, token in enumerate(tokens) if token.key == "ON"), 0) + 1
    return at + 2 if at + 2 < len(tokens) and tokens[at + 1].key == "." else at


def trigger_target(sql: str) -> str:
    """Return the folded name of the table or view that a trigger stands on."""
    tokens = tokenize(sql).tokens
    return tokens[table_at(tokens)].name or ""


def written_tables(trigger: Trigger) -> frozenset[str]:
    """Return the folded names of the tables that the trigger writes, as far as its text is understood."""
    trees = [_parse(text) for text in trigger.statements or ()]
    targets = [_target(tree) for tree in trees if tree is not None]
    return frozenset(fold(target.name) for target in targets if target is not None)


def conflict_of(
    trigger: Trigger, tables: Mapping[str, Table], registered: UserFunctions = NO_FUNCTIONS
) -> Conflict | None:
    """Return why a trigger would be wrong with these placements; None when it is right.

    :param tables: the placed tables by folded name. A trigger on something else (a view) is not looked at.
    :param registered: the user's functions.
    """
    from sqlglot import exp

    if (why := stops_half_way(trigger)) is not None:
        return Conflict(trigger, why, frozenset())
    fired = tables.get(fold(trigger.table))
    if fired is None:
        return None
    if fired.kind is not TableKind.SINGLE and raises(trigger, "ROLLBACK"):
        rollback = "RAISE(ROLLBACK) would end the transaction on one shard only: use RAISE(ABORT, ...)"
        return _opaque_conflict(trigger, fired, tables, rollback)
    if fired.kind is TableKind.REFERENCE and (why := differs(trigger, tables, registered)) is not None:
        return _opaque_conflict(trigger, fired, tables, why)
    if trigger.statements is None:
        return _opaque_conflict(trigger, fired, tables, "its text is not understood")
    for text in trigger.statements:
        tree = _parse(text)
        if tree is None:
            conflict = _opaque_conflict(trigger, fired, tables, f"not understood: {_short(text)}")
            if conflict is not None:
                return conflict
            continue
        reason = _statement_conflict(tree, fired, tables) or _unlocal_conflict(text, tree, tables)
        if reason is not None:
            together = {fold(t.name) for t in tree.find_all(exp.Table)} | {fold(fired.name)}
            return Conflict(trigger, f"{reason} ({_short(text)})", frozenset(together & set(tables)))
    return None


def raises(trigger: Trigger, how: str) -> bool:
    """Tell whether the trigger says ``RAISE(how, ...)``; where its text isn't understood, whether it may."""
    if trigger.statements is None:
        return {"raise", fold(how)} <= trigger.words
    for text in trigger.statements:
        keys = [token.key for token in tokenize(text).tokens]
        if ("RAISE", "(", how) in zip(keys, keys[1:], keys[2:], strict=False):
            return True
    return False


def stops_half_way(trigger: Trigger) -> str | None:
    """Return why a failure in the trigger would have to keep what was done before it; None when it needn't.

    Nothing is ever kept: a statement that fails is undone, on all its shards.
    """
    if raises(trigger, "FAIL"):
        return "RAISE(FAIL) can't keep what was done before it: use RAISE(ABORT, ...)"
    texts = [tokenize(text).tokens for text in trigger.statements or ()]
    pairs = {(a.key, b.key) for tokens in texts for a, b in pairwise(tokens)}
    if ("OR", "FAIL") in pairs or (trigger.statements is None and {"or", "fail"} <= trigger.words):
        return "OR FAIL can't keep what was done before a failure: leave it out"
    return None


def differs(trigger: Trigger, tables: Mapping[str, Table], registered: UserFunctions = NO_FUNCTIONS) -> str | None:
    """Return why a trigger of a reference table may do something else on each copy; None when it can't."""
    for text in trigger.statements or ():
        why = why_copies_differ(text, registered)
        if why is not None:
            return f"{why} ({_short(text)})"
        tree = _parse(text)
        target = _target(tree) if tree is not None else None
        table = tables.get(fold(target.name)) if target is not None else None
        if table is not None and (may_take_defaults(text)):
            shifting = next((c for c in table.columns if shifts(c)), None)
            if shifting is not None:
                return f"the default {shifting.default_sql} of {table.name}.{shifting.name} may differ on each copy"
    return None


def _opaque_conflict(trigger: Trigger, fired: Table, tables: Mapping[str, Table], reason: str) -> Conflict | None:
    """Keep together every table whose name stands in a text that is not understood."""
    together = {fold(fired.name)} | (trigger.words & set(tables))
    if all(tables[name].kind is TableKind.SINGLE for name in together):
        return None
    return Conflict(trigger, reason, frozenset(together))


def _statement_conflict(tree: exp.Expression, fired: Table, tables: Mapping[str, Table]) -> str | None:
    from sqlglot import exp

    target = _target(tree)
    common = {fold(cte.alias) for cte in tree.find_all(exp.CTE)}
    if any(fold(node.alias) in ("new", "old") for node in tree.find_all(exp.Table, exp.Subquery, exp.CTE)):
        return "it calls something else NEW or OLD"
    for node in tree.find_all(exp.Table):
        name = fold(node.name)
        if name in common:
            continue
        other = tables.get(name)
        if other is None:
            return f"it uses {node.name}, which is no table of which the place is known"
        writes = target is not None and node is target
        reason = _table_conflict(tree, node, other, fired, writes)
        if reason is not None:
            return reason
    return None


def _unlocal_conflict(text: str, tree: exp.Expression, tables: Mapping[str, Table]) -> str | None:
    """Return why a statement that goes on after a conflict (OR IGNORE, ON CONFLICT) may miss it; None if it can't."""
    target = _target(tree)
    table = tables.get(fold(target.name)) if target is not None else None
    unseen = unseen_uniqueness(table) if table is not None else []
    if not unseen or table is None or not tokenize(text).keywords() & {"IGNORE", "REPLACE", "CONFLICT"}:
        return None
    named = ", ".join(name or "an expression" for name in unseen[0].columns)
    return f"the row of {table.name} that conflicts with UNIQUE ({named}) may be on another shard"


def _table_conflict(tree: exp.Expression, node: exp.Table, other: Table, fired: Table, writes: bool) -> str | None:
    from sqlglot import exp

    verb = "writes" if writes else "reads"
    if fired.kind is TableKind.SINGLE:
        together = other.kind is TableKind.SINGLE or (other.kind is TableKind.REFERENCE and not writes)
        return None if together else f"{fired.name} is kept whole, and it {verb} {other.name} ({other.kind})"
    if fired.kind is TableKind.REFERENCE or other.kind is TableKind.REFERENCE:
        together = other.kind is TableKind.REFERENCE and (fired.kind is TableKind.REFERENCE or not writes)
        return None if together else f"it {verb} {other.name}, which is placed otherwise ({other.kind})"
    if not other.sharded:
        return f"it {verb} {other.name}, which is on one shard only"
    if writes and isinstance(tree, exp.Insert):
        return _insert_conflict(tree, other, fired)
    if writes and isinstance(tree, exp.Update) and _sets_key(tree.expressions, other):
        return f"it changes the shard key or the rowid of {other.name}"
    if not _pinned(node, other, fired):
        return f"it {verb} rows of {other.name} that may be on other shards"
    return None


def _insert_conflict(tree: exp.Insert, other: Table, fired: Table) -> str | None:
    from sqlglot import exp

    if not other.without_rowid:
        return f"it inserts into {other.name}, whose rowids must be unique over the shards"
    if other.group != fired.group:
        return f"it inserts into {other.name}, which is keyed otherwise"
    upsert = tree.args.get("conflict")
    if upsert is not None and _sets_key(upsert.expressions, other):
        return f"it changes the shard key of {other.name}"
    schema, source = tree.this, tree.expression
    names = [fold(c.name) for c in schema.expressions] if isinstance(schema, exp.Schema) else None
    names = names or [fold(c.name) for c in other.columns if c.writable]
    if isinstance(source, exp.Values) and len(source.expressions) == 1:
        values = list(source.expressions[0].expressions)
    elif isinstance(source, exp.Select):
        values = [v.unalias() for v in source.expressions]
    else:
        return f"it inserts into {other.name} rows whose key is not seen"
    given = dict(zip(names, values, strict=False))
    for theirs, mine in zip(other.key_columns, fired.key_columns, strict=True):
        if not _is_row_column(given.get(fold(theirs)), {fold(mine)}):
            return f"it inserts into {other.name} rows of another key"
    return None


def _sets_key(assignments: Iterable[exp.Expression], table: Table) -> bool:
    """Tell whether a SET changes what decides a row's shard or identity, or isn't understood."""
    from sqlglot import exp

    fixed = {fold(name) for name in table.key_columns}
    if not table.without_rowid:
        fixed |= {name for name in ROWID_NAMES if name not in table.by_name}
        fixed |= {fold(table.rowid_alias)} if table.rowid_alias is not None else set()
    for assignment in assignments:
        if not isinstance(assignment, exp.EQ):
            return True
        if fixed & {fold(name.name) for name in assignment.this.find_all(exp.Identifier)}:
            return True
    return False


def _pinned(node: exp.Table, other: Table, fired: Table) -> bool:
    """Tell whether the query around ``node`` is held to the shard of the row that fired the trigger."""
    from sqlglot import exp

    query = node.find_ancestor(exp.Select, exp.Update, exp.Delete, exp.Insert)
    where = query.args.get("where") if query is not None else None
    pairs = list(_equalities(where.this, fold(node.alias_or_name))) if where is not None else []
    if fold(other.name) == fold(fired.name):
        own = [fold(c) for c in other.primary_key]
        rowid = {name for name in (other.rowid_name, "rowid") if name and fold(name) not in other.by_name}
        if own and all((c, c) in pairs for c in own):
            return True
        if any((fold(name), fold(name)) in pairs for name in rowid):
            return True
    if other.group != fired.group or len(other.key_columns) != len(fired.key_columns):
        return False
    keys = zip(other.key_columns, fired.key_columns, strict=True)
    return all((fold(theirs), fold(mine)) in pairs for theirs, mine in keys)


def _equalities(condition: exp.Expr, alias: str) -> Iterator[tuple[str, str]]:
    """Yield (column, column of NEW or OLD) for each ``column = NEW.column`` that must hold."""
    from sqlglot import exp

    if isinstance(condition, exp.Paren):
        yield from _equalities(condition.this, alias)
    elif isinstance(condition, exp.And):
        yield from _equalities(condition.left, alias)
        yield from _equalities(condition.right, alias)
    elif isinstance(condition, exp.EQ):
        for mine, theirs in ((condition.left, condition.right), (condition.right, condition.left)):
            if not isinstance(mine, exp.Column) or not isinstance(theirs, exp.Column):
                continue
            # The bare name of a table that has an alias means another one, further out.
            if fold(mine.table) in ("", alias) and fold(theirs.table) in ("new", "old"):
                yield fold(mine.name), fold(theirs.name)


def _is_row_column(value: exp.Expression | None, names: set[str]) -> bool:
    from sqlglot import exp

    return isinstance(value, exp.Column) and fold(value.table) in ("new", "old") and fold(value.name) in names


def _target(tree: exp.Expression) -> exp.Table | None:
    from sqlglot import exp

    if not isinstance(tree, (exp.Insert, exp.Update, exp.Delete)):
        return None
    this = tree.this
    if isinstance(this, exp.Schema):
        this = this.this
    return this if isinstance(this, exp.Table) else None


_QUERIES_AND_CHANGES = ("SELECT", "WITH", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE")


def _parse(text: str) -> exp.Expression | None:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    tokens = tokens_of(text)
    keys, parts = [token.key for token in tokens], [token.text for token in tokens]
    if not keys or keys[0] not in _QUERIES_AND_CHANGES:
        return None
    # Three forms that sqlglot doesn't read; neither changes what is touched.
    for i, three in enumerate(zip(keys, keys[1:], keys[2:], strict=False)):
        if three == ("RAISE", "(", "ROLLBACK"):
            parts[i + 2] = "ABORT"
    if keys[0] == "REPLACE":
        parts[0] = "INSERT OR REPLACE"
    if keys[:2] == ["UPDATE", "OR"]:
        del parts[1:3]
    try:
        tree = sqlglot.parse_one(" ".join(parts), read="sqlite")
    except (SqlglotError, RecursionError):
        return None
    known = (exp.Select, exp.SetOperation, exp.Insert, exp.Update, exp.Delete)
    return tree if isinstance(tree, known) else None


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "..."
