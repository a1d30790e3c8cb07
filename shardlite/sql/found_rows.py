"""Which rows a change that runs on the coordinator can find, or meet on its way.

It *finds* rows by its text: what ``filters.py`` says of each mention of a table. It *meets* others by what holds rows
together: a UNIQUE, a foreign key, a trigger. Where all of that stays with a row's own key, the rows it meets are those
that have the keys of found ones, and each shard can tell them; elsewhere a table that may be met comes whole.
"""

from __future__ import annotations

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.cores import change_core
from shardlite.sql.facts import StatementKind
from shardlite.sql.filters import any_of, filters_of
from shardlite.sql.names_in import cte_names
from shardlite.sql.pins import colocated
from shardlite.sql.rules.common import refuse_key_changes, refuse_reference_writes, refuse_triggers
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.tokens import tokenize


def found_rows(statement: Statement) -> dict[str, str]:
    """Return the conditions on the tables (by folded name) of a change of which not all rows are needed."""
    schema = statement.schema
    texts = statement.texts
    text, cores = texts[0]
    change = change_core(text)
    if change is not None:
        texts = [(text, [change, *cores]), *texts[1:]]
    # A name of a WITH may hide a table.
    hidden = frozenset[str]().union(*(cte_names(each) for each, _ in texts))
    conditions = {
        name: condition
        for name, condition in filters_of(texts, schema.tables, schema.functions.names).items()
        if name not in hidden
    }
    met = _met(statement)
    target = schema.tables.get(statement.target or "")
    if change is None or target is None or fold(target.name) not in conditions:
        found = {name: condition for name, condition in conditions.items() if name not in met}
        return found | _children_of_new_rows(statement, met)
    own = conditions[fold(target.name)]
    alone, stays = _meets_found_rows_alone(statement, target), _stays_with_its_key(statement, target)
    named = {token.name for each, _ in texts for token in each.tokens}
    for name in met - ({fold(target.name)} if alone else set()):
        table = schema.tables.get(name)
        condition = conditions.pop(name, None)
        if table is None or not stays or not colocated(table, target) or (condition is None and name in named):
            continue
        keys = _has_a_key_of(table, target, own, nulls=bool(statement.triggers))
        conditions[name] = keys if condition is None else any_of((condition, keys))
    return conditions


def _met(statement: Statement) -> set[str]:
    """Return the tables of which a change may meet rows that its text doesn't find."""
    schema = statement.schema
    written = {fold(table.name) for table in statement.written}
    parents = {fold(key.parent) for table in statement.written for key in table.foreign_keys}
    fired = {token.name or "" for name in statement.triggers for token in tokenize(schema.triggers[name]).tokens}
    return written | parents | _children(statement) | fired


def _children(statement: Statement) -> set[str]:
    written = {fold(table.name) for table in statement.written}
    return {fold(t.name) for t in statement.tables if any(fold(key.parent) in written for key in t.foreign_keys)}


def _children_of_new_rows(statement: Statement, met: set[str]) -> dict[str, str]:
    """SQLite looks at the children of a new row too, but it has none yet."""
    if statement.kind is not StatementKind.INSERT or statement.triggers:
        return {}
    if statement.text.keywords() & {"REPLACE", "CONFLICT"}:
        return {}
    schema = statement.schema
    texts = [statement.text, *(tokenize(schema.views[view]) for view in statement.views)]
    named = {token.name for text in texts for token in text.tokens}
    written = {fold(table.name) for table in statement.written}
    parents = {fold(key.parent) for table in statement.written for key in table.foreign_keys}
    return dict.fromkeys(_children(statement) - written - parents - named, "0")


def _meets_found_rows_alone(statement: Statement, target: Table) -> bool:
    """Tell whether an UPDATE or DELETE meets other rows of its table than those that its text finds in no way.

    Triggers, foreign keys that point to the table, and what is UNIQUE would.
    """
    if statement.triggers or any(table is not target for table in statement.written):
        return False
    if any(fold(key.parent) == statement.target for t in statement.schema.tables.values() for key in t.foreign_keys):
        return False
    if statement.kind is StatementKind.DELETE:
        return True
    changed = {access.column for access in statement.prepared.updates}
    return not changes_uniqueness(target, changed) and changed <= set(target.by_name)


def changes_uniqueness(table: Table, changed: set[str]) -> bool:
    """Tell whether new values of some columns (folded) may be compared with those of other rows."""
    apart = {None if name is None else fold(name) for constraint in table.unique for name in constraint.columns}
    apart |= {fold(name) for name in table.primary_key}
    if None in apart or any(constraint.partial for constraint in table.unique):
        return True
    return bool(changed & apart) or any(table.by_name[name].generated for name in apart if name is not None)


def _stays_with_its_key(statement: Statement, target: Table) -> bool:
    """Tell whether all that a change of a row can meet has the row's own key."""
    if not target.key_columns or any(unseen_uniqueness(table) for table in statement.written):
        return False
    try:
        refuse_triggers(statement)
        refuse_key_changes(statement)
        refuse_reference_writes(statement)
    except NotSupportedError:
        return False
    # A foreign key that the shards enforce leads to the same key, or to a reference table.
    return all(table.kind is not TableKind.SINGLE for table in statement.tables)


def _has_a_key_of(table: Table, target: Table, condition: str, *, nulls: bool) -> str:
    """Return the condition that a row has the key of a row of the target that fulfils a condition.

    ``nulls``: NULL counts as a key like any other.
    """
    mine = [f"{quote(table.name)}.{quote(name)}" for name in table.key_columns]
    theirs = ", ".join(f"{quote(target.name)}.{quote(name)}" for name in target.key_columns)
    listed = mine[0] if len(mine) == 1 else f"({', '.join(mine)})"
    same = f"{listed} IN (SELECT {theirs} FROM main.{quote(target.name)} WHERE {condition})"
    return any_of((same, *(f"{name} IS NULL" for name in mine))) if nulls else same
