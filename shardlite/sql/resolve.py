"""Find a statement's tables and what it says of them, in sqlglot's tree. Imported with sqlglot, when first needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlglot import exp

from shardlite.names import fold
from shardlite.router.table import Column
from shardlite.sql.cores import known_as
from shardlite.sql.facts import Schema
from shardlite.sql.parse import Parsed
from shardlite.sql.scopes import Equal, Fact, Fixed, Node, Reference, Scope, Scopes
from shardlite.sql.tokens import Constant, Token, constant_of, number_of


def resolve(parsed: Parsed, schema: Schema) -> Scopes:
    """Find the tables and facts of a statement."""
    return _Resolver(schema, parsed.literals).run(parsed.tree)


class _Resolver:
    def __init__(self, schema: Schema, literals: Any) -> None:
        self._schema = schema
        self._literals: dict[str, Token] = literals
        self._found = Scopes([], [], [])
        self._seen: set[int] = set()

    def run(self, tree: Any) -> Scopes:
        self._statement(tree, None, frozenset())
        for table in tree.find_all(exp.Table):
            if id(table) not in self._seen and table.arg_key != "indexed":
                self._found.unresolved.append(fold(table.name))
        for node in tree.find_all(exp.In):
            name = node.args.get("field")
            if name is not None:
                self._found.unresolved.append(fold(name.name))
        return self._found

    def _statement(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> None:
        with_ = node.args.get("with_")
        if with_ is not None:
            ctes = ctes | {fold(cte.alias) for cte in with_.expressions}
            for cte in with_.expressions:
                self._statement(cte.this, parent, ctes)
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query):
            self._statement(node.this, parent, ctes)
            self._nested(node, ("this", "with_"), parent, ctes)
        elif isinstance(node, exp.SetOperation):
            self._statement(node.this, parent, ctes)
            self._statement(node.expression, parent, ctes)
            self._nested(node, ("this", "expression", "with_"), parent, ctes)
        else:
            self._scope(node, parent, ctes)

    def _scope(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> None:
        scope = Scope(len(self._found.scopes), parent)
        scope.aliases = frozenset(fold(e.alias) for e in node.expressions if isinstance(e, exp.Alias))
        self._found.scopes.append(scope)
        if isinstance(node, (exp.Update, exp.Delete)):
            self._source(node.this, scope, ctes, "inner")
        first = node.args.get("from_")
        if first is not None:
            self._source(first.this, scope, ctes, "inner")
        joins = list(node.args.get("joins") or ())
        if first is not None and isinstance(node, exp.Update):
            joins = [*(first.this.args.get("joins") or ()), *joins]
        sides: list[tuple[Any, Reference | None, str]] = []
        for join in joins:
            how = _how(join)
            sides.append((join, self._source(join.this, scope, ctes, how), how))
        self._check_aliases(scope)
        self._facts(node, scope, sides)
        self._nested(node, ("with_",), scope, ctes)

    def _check_aliases(self, scope: Scope) -> None:
        aliases = [source.alias for source in scope.sources]
        if len(set(aliases)) != len(aliases):
            scope.opaque = True

    def _source(self, node: Any, scope: Scope, ctes: frozenset[str], how: str) -> Reference | None:
        if isinstance(node, exp.Table):
            self._seen.add(id(node))
            reference = self._reference(node, scope, ctes, how)
        else:
            if not (isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query)):
                scope.opaque = True
            alias = node.alias_or_name if isinstance(node, exp.Subquery) else ""
            reference = Reference("", fold(alias), alias, scope.number, None, joined=how)
        scope.sources.append(reference)
        self._found.references.append(reference)
        return reference

    def _reference(self, node: exp.Table, scope: Scope, ctes: frozenset[str], how: str) -> Reference:
        called = node.this.name if isinstance(node.this, exp.Func) else node.name
        name = known_as(fold(node.db), fold(called))
        alias = node.alias or called
        reference = Reference(name, fold(alias), alias, scope.number, None, joined=how)
        if isinstance(node.this, exp.Func) or (not node.db and name in ctes):
            return reference
        reference.table = self._schema.tables.get(name)
        reference.view = name in self._schema.views
        return reference

    def _nested(self, node: Any, leave: tuple[str, ...], scope: Scope | None, ctes: frozenset[str]) -> None:
        for key, value in node.args.items():
            if key not in leave:
                for child in value if isinstance(value, list) else (value,):
                    if isinstance(child, exp.Expression):
                        self._descend(child, scope, ctes)

    def _descend(self, node: Any, scope: Scope | None, ctes: frozenset[str]) -> None:
        if isinstance(node, exp.Query) and not isinstance(node, exp.Table):
            if isinstance(node, exp.Subquery) and not isinstance(node.this, exp.Query):
                for child in node.iter_expressions():
                    self._descend(child, scope, ctes)
                return
            inner = scope
            if scope is not None and node.arg_key == "this" and isinstance(node.parent, (exp.From, exp.Join)):
                inner = scope.parent  # a derived table doesn't see its neighbours
            self._statement(node, inner, ctes)
            return
        for child in node.iter_expressions():
            self._descend(child, scope, ctes)

    # -- facts -----------------------------------------------------------------------------------------------------

    def _facts(self, node: Any, scope: Scope, sides: list[tuple[Any, Reference | None, str]]) -> None:
        for join, reference, _ in sides:
            if reference is not None:
                reference.merged = self._merged(join, reference, scope)
        # Before a RIGHT or FULL JOIN a column made one of several has the value of any of them.
        several = any(join.args.get("using") or _natural(join) for join, _, _ in sides)
        unknown = any(source.table is None for source in scope.sources) or any(how == "other" for _, _, how in sides)
        scope.merged = several and unknown
        if scope.opaque:
            return
        scope.facts.extend(self._asked_for(node, scope))
        inner_only = all(how == "inner" for _, _, how in sides)
        where = node.args.get("where")
        if where is not None:
            scope.facts.extend(self._conjuncts(where.this, scope, is_null=inner_only))
        # Before a RIGHT or FULL JOIN nothing that an ON says holds for the rows of the result.
        if any(how == "other" for _, _, how in sides):
            for source in scope.sources:
                source.joined = "other"
            join, reference, _ = sides[0]
            if len(sides) == 1 and reference is not None:
                reference.matched = tuple(self._join_facts(join, reference, scope))
            return
        for join, reference, how in sides:
            facts = list(self._join_facts(join, reference, scope))
            if how == "inner":
                scope.facts.extend(facts)
            elif reference is not None:
                reference.on = tuple(facts)

    def _asked_for(self, node: Any, scope: Scope) -> Iterator[Fact]:
        """Yield what ``x IN (SELECT y ...)``, as a condition of the WHERE around, says of the rows that can matter."""
        query = node.parent if isinstance(node, exp.Select) else None
        asking = query.parent if isinstance(query, exp.Subquery) else None
        if query is None or not isinstance(asking, exp.In) or query.arg_key != "query":
            return
        if any(node.args.get(part) for part in ("group", "having", "order", "limit", "offset", "with_", "windows")):
            return  # then a row that isn't asked for may decide about one that is
        above = asking.parent
        while isinstance(above, (exp.Paren, exp.And)):
            above = above.parent
        if not isinstance(above, exp.Where) or len(node.expressions) != 1:
            return
        inner = self._column(node.expressions[0].unalias().unnest(), scope)
        outer = self._column(asking.this.unnest(), scope.parent)
        if inner is None or outer is None or inner[0].scope != scope.number:
            return
        if _same_comparison(inner[1], outer[1]):
            yield Equal(inner[0], outer[0])

    def _join_facts(self, join: Any, reference: Reference | None, scope: Scope) -> Iterator[Fact]:
        on = join.args.get("on")
        if on is not None:
            yield from self._conjuncts(on, scope, is_null=False)
        for name in sorted(reference.merged) if reference is not None else ():
            yield from self._using(name, reference, scope)

    @staticmethod
    def _merged(join: Any, reference: Reference, scope: Scope) -> frozenset[str]:
        """Return the columns that a join's USING names, or that NATURAL finds on both sides."""
        if not _natural(join):
            return frozenset(fold(name.name) for name in join.args.get("using") or ())
        before = [source.table for source in scope.sources[: scope.sources.index(reference)]]
        if reference.table is None:
            return frozenset()
        return frozenset(
            name
            for name in reference.table.by_name
            if any(table is not None and name in table.by_name for table in before)
        )

    def _using(self, column: str, reference: Reference | None, scope: Scope) -> Iterator[Fact]:
        if reference is None or reference.table is None or column not in reference.table.by_name:
            return
        before = scope.sources[: scope.sources.index(reference)]
        if any(source.table is None for source in before):
            return
        holder = scope.holder(column)
        if holder is None or holder.table is None or holder not in before:
            return
        left = Node(scope.number, holder.alias, column)
        right = Node(scope.number, reference.alias, column)
        if _same_comparison(holder.table.by_name[column], reference.table.by_name[column]):
            yield Equal(left, right)

    def _conjuncts(self, node: Any, scope: Scope, *, is_null: bool) -> Iterator[Fact]:
        node = node.unnest()
        if isinstance(node, exp.And):
            yield from self._conjuncts(node.this, scope, is_null=is_null)
            yield from self._conjuncts(node.expression, scope, is_null=is_null)
        elif isinstance(node, exp.EQ):
            yield from self._equality(node.this.unnest(), node.expression.unnest(), scope, null=False)
        elif isinstance(node, (exp.Is, exp.NullSafeEQ)) and is_null:
            if not isinstance(node.expression, exp.Boolean):
                yield from self._equality(node.this.unnest(), node.expression.unnest(), scope, null=True)
        elif isinstance(node, exp.In):
            yield from self._membership(node, scope)

    def _membership(self, node: exp.In, scope: Scope) -> Iterator[Fact]:
        if node.args.get("query") is not None or node.args.get("field") is not None or node.args.get("unnest"):
            return
        found = self._column(node.this.unnest(), scope)
        values = [self._constant(value) for value in node.expressions]
        if found is not None and all(value is not None for value in values):
            yield Fixed(found[0], tuple(value for value in values if value is not None))

    def _equality(self, left: Any, right: Any, scope: Scope, *, null: bool) -> Iterator[Fact]:
        if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
            if len(left.expressions) == len(right.expressions):
                for one, other in zip(left.expressions, right.expressions, strict=True):
                    yield from self._equality(one.unnest(), other.unnest(), scope, null=null)
            return
        one, other = self._column(left, scope), self._column(right, scope)
        if one is not None and other is not None:
            if not null and _same_comparison(one[1], other[1]):
                yield Equal(one[0], other[0])
            return
        column, constant = (one, self._constant(right)) if one is not None else (other, self._constant(left))
        if column is not None and constant is not None:
            yield Fixed(column[0], (constant,), null)

    def _constant(self, node: Any) -> Constant | None:
        node = node.unnest()
        if isinstance(node, exp.Neg):
            inner = self._constant(node.this)
            if inner is None or inner.parameter or not isinstance(inner.value, (int, float)):
                return None
            return Constant(-inner.value)
        if isinstance(node, exp.Placeholder):
            name = str(node.this)
            if name[:1] == "p":
                return Constant(parameter=int(name[1:]))
            return constant_of((self._literals[name],))
        if isinstance(node, exp.Null):
            return Constant(None)
        if isinstance(node, exp.Literal):
            if node.is_string:
                return Constant(str(node.this))
            value = number_of(str(node.this))
            return None if value is None else Constant(value)
        return None

    def _column(self, node: Any, scope: Scope | None) -> tuple[Node, Column] | None:
        if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier) or scope is None:
            return None
        name = fold(node.name)
        if node.table:
            source = scope.find(fold(node.table))
            return _pick(source, name) if source is not None else None
        return self._unqualified(name, scope)

    def _unqualified(self, name: str, scope: Scope) -> tuple[Node, Column] | None:
        if scope.opaque or scope.merged:
            return None
        holders = [source for source in scope.sources if source.table is not None and name in source.table.by_name]
        if holders:
            holder = scope.holder(name)
            return None if holder is None else _pick(holder, name)
        if len(scope.sources) == 1 and (found := _pick(scope.sources[0], name)) is not None:
            return found
        if any(source.table is None for source in scope.sources) or name in _ROWID or name in scope.aliases:
            return None
        return self._unqualified(name, scope.parent) if scope.parent is not None else None


_ROWID = frozenset(("rowid", "_rowid_", "oid"))


def _pick(source: Reference, name: str) -> tuple[Node, Column] | None:
    table = source.table
    if table is None:
        return None
    column = table.by_name.get(name)
    if column is None and name in _ROWID and table.rowid_alias is not None:
        column = table.by_name[fold(table.rowid_alias)]
    return None if column is None else (Node(source.scope, source.alias, fold(column.name)), column)


def _same_comparison(left: Column, right: Column) -> bool:
    """Equality of the two is that of equal stored values, and carries over from one column to the next."""
    if not left.typed or not right.typed:
        return False
    return left.affinity is right.affinity and fold(left.collation) == fold(right.collation)


def _natural(join: Any) -> bool:
    return str(join.args.get("method") or "").upper() == "NATURAL"


def _how(join: Any) -> str:
    side = str(join.args.get("side") or "").upper()
    kind = str(join.args.get("kind") or "").upper()
    if side == "LEFT":
        return "left"
    return "inner" if not side and kind in ("", "CROSS", "INNER") else "other"
