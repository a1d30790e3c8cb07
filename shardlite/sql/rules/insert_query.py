"""INSERT of what a query gives: the query is answered first, then its rows go to the shards of their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shardlite.errors import NotSupportedError
from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.copies import functions_called, shifts, why_copies_differ
from shardlite.sql.cores import begins_upsert, top_positions
from shardlite.sql.facts import StatementKind
from shardlite.sql.functions import tells_the_time
from shardlite.sql.insert import Piece, piece_of
from shardlite.sql.names_in import ROWIDS
from shardlite.sql.pins import Values
from shardlite.sql.plan import Into, LayoutView, Move, Parameters, Plan, PlanKind, Program
from shardlite.sql.rules.common import (
    refuse_key_changes,
    refuse_reference_writes,
    refuse_tolerance_in_triggers,
    refuse_triggers,
)
from shardlite.sql.rules.fan_out import fan_out
from shardlite.sql.rules.gather import gather
from shardlite.sql.rules.home import home
from shardlite.sql.rules.one_shard import one_shard
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.shard_schema import unseen_uniqueness
from shardlite.sql.statement import Statement
from shardlite.sql.template import Gathered, Template, parameters_for
from shardlite.sql.tokens import Text, Token, closing, numbered, tokenize
from shardlite.sql.triggers import trigger_target

_ROWS = "_shardlite_rows"
_AS_ONE = (PlanKind.HOME, PlanKind.ONE_SHARD, PlanKind.FAN_OUT)


def insert_query(statement: Statement, *, values: bool = False) -> InsertQuery | None:
    """Insert the rows of a query; None where they have to be inserted one by one as on one file.

    ``values``: VALUES without a query in it is taken for one.
    """
    if statement.kind is not StatementKind.INSERT:
        return None
    target = statement.schema.tables.get(statement.target or "")
    if target is None or target.explicit_key:
        return None
    form = _form_of(statement.text, target)
    if form is None or (form.values and not values and not statement.mentions("SELECT")):
        return None
    if target.virtual and (form.conflict or form.tail.sql):
        return None
    if not _rows_stand_alone(statement, target, form):
        return None
    refuse_triggers(statement)
    refuse_key_changes(statement)
    if form.conflict in ("IGNORE", "REPLACE"):
        refuse_tolerance_in_triggers(statement, f"OR {form.conflict}")
    if target.kind is not TableKind.REFERENCE:
        refuse_reference_writes(statement)
    query = statement.query(form.query)
    if query is None or query.kind is not StatementKind.SELECT or query.prepared.schema_read:
        return None
    if target.kind is TableKind.REFERENCE and any(t.kind is not TableKind.REFERENCE for t in statement.written):
        return None
    if any(table.name != target.name for table in statement.written if table in query.tables):
        return None  # what it reads is changed by a foreign key's action while it is read
    gathered = gather(query)
    reading = _reading(query) or gathered
    if reading is None or gathered is None:
        return None
    return InsertQuery(
        statement.text,
        query.text,
        reading,
        gathered,
        Into(
            target.name,
            form.columns,
            statement.text.head in ("INSERT", "REPLACE"),
            f"INSERT OR {form.conflict}" if form.conflict else "INSERT",
            f" AS {quote(form.alias)}" if form.alias else "",
            f" {form.tail.sql}" if form.tail.sql else "",
            (),
            _tolerates(statement, target, form),
            statement.returns_rows,
        ),
        form.tail.slots,
        _draws_ids(target, form.columns) or statement.returns_rows or _tolerates(statement, target, form),
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
    if not query.of_kind(TableKind.SHARDED):
        return None
    try:
        return one_shard(query) or fan_out(query)
    except NotSupportedError:
        return push_down(query)


@dataclass(frozen=True, slots=True)
class _Form:
    """An INSERT taken apart: the columns in the table's spelling, and the query with numbered parameters.

    ``conflict`` is the word behind OR (ROLLBACK is ABORT for a statement by itself); ``tail`` is what follows the
    query: ON CONFLICT and RETURNING.
    """

    columns: tuple[str, ...]
    query: str
    values: bool
    conflict: str
    alias: str
    tail: Piece

    @property
    def upsert(self) -> bool:
        return self.tail.sql[:2].upper() == "ON"


def _form_of(text: Text, table: Table) -> _Form | None:
    """Take ``[WITH ...] INSERT [OR ...] INTO t [AS a] [(columns)] query [ON CONFLICT ...] [RETURNING ...]`` apart.

    None for any other form.
    """
    tokens = text.tokens
    keys = [token.key for token in tokens]
    first = next((i for i in top_positions(tokens) if keys[i] in ("INSERT", "REPLACE") and _begins(keys, i)), len(keys))
    if first >= len(tokens):
        return None
    conflict = "REPLACE" if keys[first] == "REPLACE" else ""
    position = first + 1
    if keys[position] == "OR":
        conflict = keys[position + 1]
        position += 2
    if conflict == "FAIL":
        return None
    position += 4 if keys[position + 2 : position + 3] == ["."] else 2
    alias = ""
    if keys[position : position + 1] == ["AS"]:
        alias = tokens[position + 1].value
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
    tail = next((i for i in top_positions(tokens) if i > position and _begins_tail(tokens, i)), _end(tokens))
    query = f"{numbered(text, 0, first)} {numbered(text, position, tail)}".strip()
    return _Form(
        columns,
        query,
        keys[position] == "VALUES",
        "ABORT" if conflict == "ROLLBACK" else conflict,
        alias,
        piece_of(text, tail, _end(tokens)),
    )


def _end(tokens: Sequence[Token]) -> int:
    """Return where a statement ends, a semicolon left out."""
    end = len(tokens)
    while end and tokens[end - 1].key == ";":
        end -= 1
    return end


def _begins(keys: list[str], at: int) -> bool:
    """Tell whether INSERT or REPLACE is the statement's word here, and no name of a WITH."""
    return keys[at + 1 : at + 2] in (["INTO"], ["OR"])


def _begins_tail(tokens: Sequence[Token], at: int) -> bool:
    return tokens[at].key == "RETURNING" or (tokens[at].key == "ON" and begins_upsert(tokens, at))


def _rows_stand_alone(statement: Statement, table: Table, form: _Form) -> bool:
    """Tell whether each row can be placed and inserted by itself, and all of them as by one statement."""
    stated = {fold(name) for name in form.columns}
    if table.sharded:
        # A key that is left to its default, and is no generated id, is not known before the row is there.
        generated = {fold(table.rowid_alias)} if table.rowid_alias is not None else set()
        if not {fold(name) for name in table.key_columns} <= stated | generated or not table.key_columns:
            return False
        if not table.without_rowid and table.rowid_name is None:
            return False
    if any(column.writable and fold(column.name) not in stated and shifts(column) for column in table.columns):
        return False
    if not _conflicts_stay(statement, table, form) or not _tail_stands_alone(statement, form):
        return False
    for sql in (statement.schema.triggers[name] for name in firing(statement, table)):
        if table.kind is TableKind.REFERENCE or why_copies_differ(sql, statement.schema.functions) is not None:
            return False
    return True


def _conflicts_stay(statement: Statement, table: Table, form: _Form) -> bool:
    """Tell whether a conflict that is tolerated is always with rows of the same shard, but for an id that is stated.

    (Where such an id is already on another shard is found out when the rows are known.)
    """
    if not _tolerates(statement, table, form):
        return True
    for written in statement.written:
        keys = [token.key for token in tokenize(statement.schema.ddl.get(fold(written.name), "")).tokens]
        actions = {after for word, after in pairwise(keys) if word == "CONFLICT"}
        # FAIL keeps rows of a statement that fails.
        if actions - {"IGNORE", "REPLACE", "ABORT", "ROLLBACK"} or (actions and written.name != table.name):
            return False
        if unseen_uniqueness(written):
            return False
    # OR REPLACE puts a column's default in the place of NULL; on each copy, or in the key, that would be a guess.
    return not any(column.not_null and shifts(column) for column in table.columns)


def _tolerates(statement: Statement, table: Table, form: _Form) -> bool:
    """Tell whether a row may be left out, or replace or change others, instead of making the statement fail."""
    if form.conflict in ("IGNORE", "REPLACE") or form.upsert:
        return True
    if "CONFLICT" in tokenize(statement.schema.ddl.get(fold(table.name), "")).keywords():
        return True
    return any(ignores_rows(statement.schema.triggers[name]) for name in firing(statement, table))


def firing(statement: Statement, table: Table) -> list[str]:
    """Return the triggers on a statement's target and those that it fires elsewhere."""
    own = {name for name, sql in statement.schema.triggers.items() if trigger_target(sql) == fold(table.name)}
    return sorted(own | set(statement.triggers))


def ignores_rows(trigger: str) -> bool:
    """Tell whether a trigger may leave a row out: RAISE(IGNORE)."""
    return "IGNORE" in tokenize(trigger).keywords()


def _tail_stands_alone(statement: Statement, form: _Form) -> bool:
    """Tell whether ON CONFLICT and RETURNING say the same of a row, whenever and wherever it is inserted."""
    text = tokenize(form.tail.sql)
    if "SELECT" in text.keywords() or tells_the_time(text):
        return False
    return not functions_called(text) & statement.schema.functions.others


def _draws_ids(table: Table, columns: tuple[str, ...]) -> bool:
    """Tell whether the order of the rows decides their ids."""
    if table.without_rowid:
        return False
    return table.rowid_alias is None or fold(table.rowid_alias) not in {fold(name) for name in columns}


@dataclass(frozen=True, slots=True)
class InsertQuery:
    """An INSERT of a query's rows. ``gathered`` is how the query gives them in the order of one file.

    ``slots`` are the parameters that follow the query; ``in_order``: the order of the rows makes a difference.
    """

    text: Text
    query: Text
    reading: Template
    gathered: Gathered
    into: Into
    slots: tuple[int, ...]
    in_order: bool
    tables: tuple[str, ...]

    def bind(self, parameters: Parameters, layout: LayoutView) -> Plan:
        values = Values(self.text, parameters)
        given = parameters_for(self.query.sql, self.text, parameters)
        plan = self.reading.bind(given, layout)
        if plan.merge is not None:  # the rows meet at the coordinator in any case
            plan = plan.merge.otherwise()
        scattered = plan.kind is PlanKind.FAN_OUT and not plan.merge_rowid and len(plan.shards) > 1
        if scattered and self.in_order:
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
            returns_rows=self.into.returns,
            program=program,
            into=self.into._replace(tail_values=tuple(values.raw(slot) for slot in self.slots)),
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
