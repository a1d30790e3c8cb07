"""Queries whose answer is the rows of all shards together: plain columns, filters and joins on equal keys."""

from __future__ import annotations

from typing import Any

from shardlite.errors import NotSupportedError
from shardlite.names import quote
from shardlite.router.table import TableKind
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import AGGREGATES, CLOCK, DATES, WINDOWS, not_shardable
from shardlite.sql.pins import facts_for, pin_of, same_key
from shardlite.sql.rules.common import analysed, pin_advice
from shardlite.sql.scopes import Reference, Scope, Scopes
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, Template

_CLAUSES = frozenset(("ORDER", "GROUP", "HAVING", "LIMIT", "DISTINCT", "UNION", "INTERSECT", "EXCEPT", "VALUES"))
ROWID_COLUMN = "_shardlite_rowid"


class _No(Exception):
    """The statement can't fan out, for the reason given."""


def fan_out(statement: Statement) -> Template | None:
    """Fan a plain SELECT out, push another down, or refuse it by name."""
    found = describe_fan_out(statement)
    if isinstance(found, str):
        raise NotSupportedError(found)
    return found


def describe_fan_out(statement: Statement) -> FannedOut | str:
    """Return the fan-out of a query, or the words that say why it can't be one."""
    try:
        return _fan_out(statement)
    except _No as refusal:
        table = statement.of_kind(TableKind.SHARDED)[0]
        return f"{refusal.args[0]} over several shards of {table.name}: {refusal.args[1] or pin_advice(table)}"


def joins_locally(scopes: Scopes, scope: Scope) -> bool:
    """Tell whether each row of a FROM needs rows of one shard only, and appears on one shard only."""
    try:
        _check_joins(scopes, scope)
    except _No:
        return False
    return True


def _fan_out(statement: Statement) -> FannedOut:
    if statement.kind is not StatementKind.SELECT or not statement.prepared.readonly:
        raise _No(f"this {statement.kind}", "")
    scopes = statement.scopes
    if scopes is None or statement.parsed is None:
        raise _No("a statement of this form", "")
    _check_clauses(statement, statement.parsed.tree)
    if not analysed(statement) or len(scopes.scopes) != 1:
        raise _No("a nested join or a table in an unusual place", "write it as a plain list of joins")
    _check_functions(statement)
    _check_joins(scopes, scopes.scopes[0])
    sharded = scopes.of_kind(TableKind.SHARDED)
    # What an ON says of a LEFT JOIN's right side leaves no row of the left side out, so it can't leave shards out.
    inner = [reference for reference in sharded if reference.joined == "inner"]
    pins = [pin for reference in inner if (pin := pin_of(scopes, reference)) is not None]
    sql, merge = with_rowid(statement, scopes.scopes[0])
    names = ", ".join(reference.table.name for reference in sharded if reference.table)
    how = "joined on equal keys" if len(sharded) > 1 else "read row by row"
    return FannedOut(sql, merge, f"{names}: {how}", statement.table_names, statement.text, tuple(pins[:1]))


def _check_clauses(statement: Statement, tree: Any) -> None:
    from sqlglot import exp

    selecting = "read the rows and do it in Python, or use manager.select()"
    if tree.args.get("with_") is not None:
        raise _No("WITH (a common table expression)", "write it as a plain query")
    if not isinstance(tree, exp.Select):
        raise _No("UNION, INTERSECT, EXCEPT or VALUES", "run the parts one by one")
    if any(isinstance(node, exp.Subquery) and not isinstance(node.this, exp.Query) for node in tree.walk()):
        raise _No("a nested join", "write it as a plain list of joins")
    if any(node is not tree for node in tree.find_all(exp.Query)):
        if statement.whole is not statement:
            raise _No("a view or WITH (a common table expression)", "")
        raise _No("a subquery", "run it first and pass its values as parameters")
    if any(tree.find_all(exp.Window)) or tree.args.get("windows"):
        raise _No("a window function", selecting)
    aggregate = sorted(statement.prepared.functions & AGGREGATES)
    if aggregate or statement.prepared.aggregates or tree.args.get("group") or tree.args.get("having"):
        what = f"{aggregate[0]}()" if aggregate else "GROUP BY" if tree.args.get("group") else "an aggregate"
        raise _No(what, "use manager.aggregate(), or pin the key")
    if tree.args.get("distinct"):
        raise _No("DISTINCT", selecting)
    if tree.args.get("order"):
        raise _No("ORDER BY", "use manager.select(order_by=), or sort the rows in Python")
    if tree.args.get("limit") or tree.args.get("offset"):
        raise _No("LIMIT", "use manager.select(limit=), or pin the key")
    # These words are reserved in SQLite: where the tree doesn't show them, it was read otherwise than SQLite does.
    unseen = sorted(statement.text.keywords() & _CLAUSES)
    if unseen:
        raise _No(f"{unseen[0]} in this place", "")


def _check_functions(statement: Statement) -> None:
    found = not_shardable(statement.prepared.functions, statement.text, statement.schema.functions)
    if found is None:
        return
    if found in WINDOWS:
        raise _No("a window function", "")
    if found in DATES or found in CLOCK:
        raise _No(f"{found}, which asks the clock,", "give the time as a literal")
    raise _No(f"the function {found}(), which may answer differently on each shard,", "compute it in Python")


def _check_joins(scopes: Scopes, scope: Scope) -> None:
    """Check that each row of the result needs rows of one shard only, and appears on one shard only."""
    if scope.opaque:
        raise _No("a nested join or an alias used twice", "write it as a plain list of joins")
    before: list[Reference] = []
    for source in scope.sources:
        if source.table is None:
            what = f"the table-valued function or view {source.name}" if source.name else "a nested join"
            raise _No(what, "")
        if source.joined == "other":
            if not _matches_keys(scope):
                raise _No("a RIGHT or FULL JOIN", "write it as a LEFT JOIN, or as two queries")
            continue
        if not source.table.sharded:
            continue
        if source.joined == "left" and not before:
            raise _No(f"a LEFT JOIN of {source.table.name} onto a reference table", "")
        facts = facts_for(scopes, source)
        if before and not any(same_key(facts, earlier, source) for earlier in before):
            names = f"{before[0].alias_text} and {source.alias_text}"
            raise _No(f"a join of {names} without equality of their keys", "")
        before.append(source)


def _matches_keys(scope: Scope) -> bool:
    """Tell whether a FROM is a RIGHT or FULL JOIN of two sharded tables on equal keys.

    Each shard then knows all that its rows can match, and which of them are left over.
    """
    if len(scope.sources) != 2:
        return False
    left, right = scope.sources
    return same_key(right.matched, left, right)


def with_rowid(statement: Statement, scope: Scope, shown: str = ROWID_COLUMN) -> tuple[str, bool]:
    """Put the rowid before the other columns, so that the merged rows come in the order of one file's scan."""
    only = scope.sources[0]
    table = only.table
    if len(scope.sources) != 1 or table is None or table.virtual or table.rowid_name is None:
        return statement.sql, False
    tokens = statement.text.tokens
    at = tokens[1].end if len(tokens) > 1 and tokens[1].key == "ALL" else tokens[0].end
    rowid = quote(table.rowid_name) if table.rowid_alias is not None else table.rowid_name
    sql = statement.sql
    return f"{sql[:at]} {quote(only.alias_text)}.{rowid} AS {quote(shown)},{sql[at:]}", True
