"""Which rows a change that runs on the coordinator can find, or meet on its way.

It *finds* rows by its text: what ``filters.py`` says of each mention of a table. It *meets* others by what holds rows
together: a UNIQUE, a foreign key, a trigger. Where all of that stays with a row's own key, the rows it meets are those
that have the keys of found ones, and each shard can tell them; elsewhere a table that may be met comes whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table
from shardlite.sql.cores import Core, Span, change_core, conjuncts, top_positions
from shardlite.sql.facts import Access, StatementKind
from shardlite.sql.filters import any_of, condition_text, filters_of, times_named
from shardlite.sql.names_in import cte_names
from shardlite.sql.pins import colocated
from shardlite.sql.reduction import Reduction
from shardlite.sql.rules.common import refuse_key_changes, refuse_reference_writes, refuse_triggers
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.tokens import Token, TokenKind, tokenize
from shardlite.sql.virtual_tables import content_beside


def found_rows(statement: Statement) -> dict[str, str]:
    """Return the conditions on the tables (by folded name) of a change of which not all rows are needed."""
    schema = statement.schema
    texts = statement.texts
    change = change_core(texts[0][0])
    if change is not None:
        texts = [(texts[0][0], [change, *_below(change, texts[0][1])]), *texts[1:]]
    # A name of a WITH may hide a table.
    hidden = frozenset[str]().union(*(cte_names(each) for each, _ in texts))
    target = schema.tables.get(statement.target or "")
    met = _met(statement)
    for named_table in statement.tables:
        content = content_beside(named_table, schema) if named_table.virtual else None
        if content is not None:
            hidden |= {fold(content.name)}  # the virtual table asks for any of its rows
    alone = change is not None and target is not None and _meets_found_rows_alone(statement, target)
    if alone and target is not None and _times_named(statement, target) == 1:
        # What it looks at is as it was: it is a query of the rows that it changes.
        reduction = Reduction(
            texts,
            schema.tables,
            list(statement.tables),
            statement.rows,
            schema.functions.names,
            closed=hidden,
            unshared=frozenset(schema.tables),
        )
        conditions = {name: needed.condition for name, needed in reduction.needed.items() if needed.condition}
    else:
        filters = filters_of(texts, schema.tables, schema.functions.names)
        conditions = {name: condition for name, condition in filters.items() if name not in hidden}
    chosen = None if change is None or target is None else _chosen(statement, change, target)
    if chosen is not None and target is not None and fold(target.name) not in hidden:
        conditions[fold(target.name)] = chosen
    if change is None or target is None or fold(target.name) not in conditions:
        found = {name: condition for name, condition in conditions.items() if name not in met}
        return found | _children_of_new_rows(statement, met)
    own = conditions[fold(target.name)]
    stays = _stays_with_its_key(statement, target)
    named = {token.name for each, _ in texts for token in each.tokens}
    for name in met - ({fold(target.name)} if alone else set()):
        table = schema.tables.get(name)
        condition = conditions.pop(name, None)
        if table is None or not stays or not colocated(table, target) or (condition is None and name in named):
            continue
        keys = _has_a_key_of(table, target, own, nulls=bool(statement.triggers))
        conditions[name] = keys if condition is None else any_of((condition, keys))
    return conditions


def _below(change: Core, cores: Sequence[Core]) -> list[Core]:
    """Return the SELECTs of a change, those that stand in its own clauses with it around them."""
    made: dict[int, Core] = {}
    for core in cores:
        parent = made[id(core.parent)] if core.parent is not None else None
        if parent is None and change.span.start <= core.span.start < change.span.end:
            parent = change
        made[id(core)] = replace(core, parent=parent)
    return list(made.values())


def _times_named(statement: Statement, table: Table) -> int:
    return sum(times_named(text, fold(table.name)) for text, _ in statement.texts)


def _chosen(statement: Statement, change: Core, target: Table) -> str | None:
    """Return the condition that a row is among those that ORDER BY and LIMIT choose on its shard, ties included.

    None where the statement doesn't choose, or not by the rows of its target alone.
    """
    text, tables, registered = statement.text, statement.schema.tables, statement.schema.functions.names
    tokens = text.tokens
    after = [at for at in top_positions(tokens) if at >= change.span.end and tokens[at].key != ";"]
    order = next((at for at in after if tokens[at].key == "ORDER"), None)
    limit = next((at for at in after if tokens[at].key == "LIMIT"), None)
    rowid = target.rowid_name
    if order is None or limit is None or limit < order or rowid is None or len(change.items) != 1:
        return None
    if _times_named(statement, target) != 1 or registered & {"like", "glob"}:
        return None

    def said(span: Span) -> str | None:
        return condition_text(text, span, change, change.items[0], tables, registered)

    parts = [] if change.where is None else [said(span) for span in conjuncts(tokens, change.where)]
    commas = [at for at in after if order < at < limit and tokens[at].key == ","]
    ends = list(pairwise([order + 1, *commas, limit]))
    terms = [_term(tokens, Span(start + 1, end), said) for start, end in ends]
    number = _number(tokens[limit + 1 : after[-1] + 1])
    if None in parts or None in terms or number is None:
        return None
    where = f" WHERE {' AND '.join(f'({part})' for part in parts)}" if parts else ""
    own = quote(rowid) if target.rowid_alias is not None else rowid
    ranked = (
        f"SELECT {own} AS r, rank() OVER (ORDER BY {', '.join(str(term) for term in terms)}) AS k "
        f"FROM main.{quote(target.name)}{where}"
    )
    return f"{quote(target.name)}.{own} IN (SELECT r FROM ({ranked}) WHERE {number})"


def _term(tokens: Sequence[Token], span: Span, said: Callable[[Span], str | None]) -> str | None:
    """Return a term of ORDER BY as it stands, its columns named by the table."""
    end = span.end
    while end > span.start and tokens[end - 1].key in ("ASC", "DESC", "NULLS", "FIRST", "LAST"):
        end -= 1
    found = said(Span(span.start, end))
    return None if found is None else " ".join([found, *(token.key for token in tokens[end : span.end])])


def _number(tokens: Sequence[Token]) -> str | None:
    """Return the condition that a place (k) is within LIMIT n [OFFSET m], each a number or a parameter; else None."""
    given = []
    for token in tokens[::2]:
        if token.kind is TokenKind.PARAMETER:
            given.append(f"?{token.index}" if token.text[:1] == "?" else token.text)
        elif token.text.isdecimal():
            given.append(token.text)
    if [token.key for token in tokens[1::2]] not in ([], ["OFFSET"]) or len(given) != len(tokens[::2]):
        return None
    within = " + ".join([given[0], *(f"max({each}, 0)" for each in given[1:])])
    return f"k <= {within} OR {given[0]} < 0"


def _met(statement: Statement) -> set[str]:
    """Return the tables of which a change may meet rows that its text doesn't find."""
    schema = statement.schema
    written = {fold(table.name) for table in statement.written}
    parents = {
        fold(key.parent)
        for table in statement.written
        for key in table.foreign_keys
        if _may_change(statement, table, key.columns, statement.prepared.inserts | statement.prepared.deletes)
    }
    fired = {token.name or "" for name in statement.triggers for token in tokenize(schema.triggers[name]).tokens}
    return written | parents | _children(statement) | fired


def _children(statement: Statement) -> set[str]:
    """Return the tables whose foreign keys lead to what a change may take away."""
    written = {fold(table.name): table for table in statement.written}
    return {
        fold(child.name)
        for child in statement.tables
        for key in child.foreign_keys
        if (parent := written.get(fold(key.parent))) is not None
        and _may_change(statement, parent, key.parent_columns or parent.primary_key, statement.prepared.deletes)
    }


def _may_change(statement: Statement, table: Table, columns: Sequence[str], whole_rows: frozenset[Access]) -> bool:
    """Tell whether some columns of a table may get other values, or ``whole_rows`` come to it or go from it.

    (A row that goes is looked up in its parent too, where it may have been missed.)
    """
    name = fold(table.name)
    texts = [statement.text, tokenize(statement.schema.ddl.get(name, ""))]
    # What OR REPLACE takes away isn't reported.
    if any("REPLACE" in text.keywords() for text in texts) or any(access.table == name for access in whole_rows):
        return True
    changed = {access.column for access in statement.prepared.updates if access.table == name}
    named = {fold(column) for column in columns}
    if changed and any(table.by_name[column].generated for column in named if column in table.by_name):
        return True
    return bool(changed & named) or not changed <= set(table.by_name)


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
    if fold(target.name) in {
        fold(key.parent)
        for child in statement.schema.tables.values()
        for key in child.foreign_keys
        if fold(key.parent) == fold(target.name)
        and _may_change(statement, target, key.parent_columns or target.primary_key, statement.prepared.deletes)
    }:
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
    return True  # a foreign key that the shards enforce leads to the same key, or to a reference table


def _has_a_key_of(table: Table, target: Table, condition: str, *, nulls: bool) -> str:
    """Return the condition that a row has the key of a row of the target that fulfils a condition.

    ``nulls``: NULL counts as a key like any other.
    """
    mine = [f"{quote(table.name)}.{quote(name)}" for name in table.key_columns]
    theirs = ", ".join(f"{quote(target.name)}.{quote(name)}" for name in target.key_columns)
    listed = mine[0] if len(mine) == 1 else f"({', '.join(mine)})"
    same = f"{listed} IN (SELECT {theirs} FROM main.{quote(target.name)} WHERE {condition})"
    return any_of((same, *(f"{name} IS NULL" for name in mine))) if nulls else same
