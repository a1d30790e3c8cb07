"""INSERT of what a query gives: the query is answered first, then its rows go to the shards of their keys."""

from __future__ import annotations

from dataclasses import dataclass

from shardlite.errors import NotSupportedError
from shardlite.names import fold
from shardlite.router.table import Table, TableKind
from shardlite.sql.copies import shifts, why_copies_differ
from shardlite.sql.facts import StatementKind
from shardlite.sql.names_in import ROWIDS
from shardlite.sql.pins import Values
from shardlite.sql.plan import Into, LayoutView, Move, Parameters, Plan, PlanKind, Program
from shardlite.sql.rules.common import refuse_reference_writes, refuse_triggers
from shardlite.sql.rules.fan_out import fan_out
from shardlite.sql.rules.gather import gather, trigger_target
from shardlite.sql.rules.home import home
from shardlite.sql.rules.one_shard import one_shard
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.statement import Statement
from shardlite.sql.template import Gathered, Template, parameters_for
from shardlite.sql.tokens import Text, closing, numbered, tokenize

_ROWS = "_shardlite_rows"
_AS_ONE = (PlanKind.HOME, PlanKind.ONE_SHARD, PlanKind.FAN_OUT)


def insert_query(statement: Statement, *, values: bool = False) -> InsertQuery | None:
    """Insert the rows of a query; None where they have to be inserted one by one as on one file.

    ``values``: VALUES without a query in it is taken for one.
    """
    if statement.kind is not StatementKind.INSERT or statement.returns_rows:
        return None
    target = statement.schema.tables.get(statement.target or "")
    if target is None or target.explicit_key:
        return None
    form = _form_of(statement.text, target)
    if form is None or (form.values and not values and not statement.mentions("SELECT")):
        return None
    if not _rows_stand_alone(statement, target, form.columns):
        return None
    refuse_triggers(statement)
    if target.kind is not TableKind.REFERENCE:
        refuse_reference_writes(statement)
    query = statement.query(form.query)
    if query is None or query.kind is not StatementKind.SELECT or query.prepared.schema_read:
        return None
    gathered = gather(query)
    reading = _reading(query) or gathered
    if reading is None or gathered is None:
        return None
    return InsertQuery(
        statement.text,
        query.text,
        reading,
        gathered,
        Into(target.name, form.columns, statement.text.head == "INSERT"),
        _draws_ids(target, form.columns),
        statement.table_names,
    )


def _reading(query: Statement) -> Template | None:
    """Return how the query is answered best; None where nothing is better than to gather."""
    if not query.tables or query.prepared.attached or query.without_automatic_indexes:
        return None
    found = home(query)
    if found is not None:
        return found
    query = query.expanded or query
    try:
        return one_shard(query) or fan_out(query)
    except NotSupportedError:
        return push_down(query)


@dataclass(frozen=True, slots=True)
class _Form:
    """The columns that an INSERT names, in the table's spelling, and the query with numbered parameters."""

    columns: tuple[str, ...]
    query: str
    values: bool


def _form_of(text: Text, table: Table) -> _Form | None:
    """Take ``[WITH ...] INSERT [OR ABORT] INTO t [AS a] [(columns)] query`` apart; None for any other form."""
    tokens = text.tokens
    first = 0
    while first < len(tokens) and tokens[first].key != "INSERT":
        first = closing(tokens, first) + 1 if tokens[first].key == "(" else first + 1
    keys = [token.key for token in tokens]
    if "CONFLICT" in keys or first >= len(tokens):
        return None
    position = first + 1
    if keys[position] == "OR":
        if keys[position + 1] != "ABORT":
            return None
        position += 2
    position += 4 if keys[position + 2 : position + 3] == ["."] else 2
    if keys[position : position + 1] == ["AS"]:
        position += 2
    names = [fold(column.name) for column in table.columns if column.writable]
    if keys[position : position + 1] == ["("]:
        end = closing(tokens, position)
        names = [token.name or "" for token in tokens[position + 1 : end] if token.key != ","]
        position = end + 1
    if keys[position : position + 1] not in (["SELECT"], ["WITH"], ["VALUES"]) or (first and keys[position] == "WITH"):
        return None
    known = {fold(column.name): column.name for column in table.columns}
    if table.virtual:
        known = dict.fromkeys(ROWIDS, "rowid") | known
    if len(set(names)) != len(names) or any(name not in known for name in names):
        return None
    columns = tuple(known[name] for name in names)
    query = f"{numbered(text, 0, first)} {numbered(text, position, len(tokens))}".strip()
    return _Form(columns, query, keys[position] == "VALUES")


def _rows_stand_alone(statement: Statement, table: Table, columns: tuple[str, ...]) -> bool:
    """Tell whether each row can be placed and inserted by itself, and all of them as by one statement."""
    stated = {fold(name) for name in columns}
    if table.sharded:
        # A key that is left to its default, and is no generated id, is not known before the row is there.
        generated = {fold(table.rowid_alias)} if table.rowid_alias is not None else set()
        if not {fold(name) for name in table.key_columns} <= stated | generated or not table.key_columns:
            return False
        if not table.without_rowid and table.rowid_name is None:
            return False
    if any(column.writable and fold(column.name) not in stated and shifts(column) for column in table.columns):
        return False
    if "CONFLICT" in tokenize(statement.schema.ddl.get(fold(table.name), "")).keywords():
        return False
    for sql in statement.schema.triggers.values():
        if trigger_target(sql) != fold(table.name):
            continue
        if table.kind is TableKind.REFERENCE or "IGNORE" in tokenize(sql).keywords():
            return False
        if why_copies_differ(sql, statement.schema.functions) is not None:
            return False
    return True


def _draws_ids(table: Table, columns: tuple[str, ...]) -> bool:
    """Tell whether the order of the rows decides their ids."""
    if table.without_rowid:
        return False
    return table.rowid_alias is None or fold(table.rowid_alias) not in {fold(name) for name in columns}


@dataclass(frozen=True, slots=True)
class InsertQuery:
    """An INSERT of a query's rows. ``gathered`` is how the query gives them in the order of one file."""

    text: Text
    query: Text
    reading: Template
    gathered: Gathered
    into: Into
    draws_ids: bool
    tables: tuple[str, ...]

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        Values(self.text, parameters)
        given = parameters_for(self.query.sql, self.text, parameters)
        plan = self.reading.bind(given, layout)
        if plan.merge is not None:  # the rows meet at the coordinator in any case
            plan = plan.merge.otherwise()
        scattered = plan.kind is PlanKind.FAN_OUT and not plan.merge_rowid and len(plan.shards) > 1
        if scattered and self.draws_ids:
            plan = self.gathered.bind(given, layout)
        sql, program = (plan.sql, plan.program) if plan.kind not in _AS_ONE else self._brought(plan)
        if program is None or program.shared:
            raise NotSupportedError(f"the rows of a {plan.kind} inserted into {self.into.table}")
        return Plan(
            PlanKind.INSERT_QUERY,
            sql,
            parameters,
            tuple(range(layout.num_shards)),
            False,
            f"the rows for {self.into.table} are read first ({plan.kind}: {plan.reason})",
            self.tables,
            program=program,
            into=self.into,
        )

    def _brought(self, plan: Plan) -> tuple[str, Program]:
        """Return the plan of rows that are brought as the shards give them."""
        skip = 1 if plan.merge_rowid else 0
        width = len(self.into.columns) + skip
        names = [f"c{index}" for index in range(width)]
        listed = ", ".join(names)
        move = Move(
            _ROWS,
            f"CREATE TABLE {_ROWS}({listed})",
            f"INSERT INTO {_ROWS}({listed})",
            width,
            plan.sql,
            plan.parameters,
            plan.shards,
        )
        order = "c0" if skip else "rowid"
        return f"SELECT {', '.join(names[skip:])} FROM {_ROWS} ORDER BY {order}", Program((move,))

    def keys(self, parameters: Parameters) -> frozenset[bytes] | None:
        return None
