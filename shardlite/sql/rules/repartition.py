"""Queries that the shards can answer once rows are where the key is that they are joined with.

The tables of one colocation group stay where they are. The rows of a table that is joined on their shard key go each
to the one shard that owns the value of its join column. There the table is what a colocated table with that column as
its shard key is, so the query can be pushed down: as the preserved side of an outer join too, and grouped by that
column. Other tables are broadcast beside it. NULL and values that no key has are placed like any other value: each row
is on exactly one shard, and equal values are together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from shardlite.names import fold, quote
from shardlite.router.table import Table, TableKind
from shardlite.sql.clauses import PART, part_column
from shardlite.sql.names_in import cte_names
from shardlite.sql.pins import Pin, colocated
from shardlite.sql.reduction import MOST_SHARED_ROWS, OWNED, Place, Reduction
from shardlite.sql.rules.broadcast import anchors, in_shared
from shardlite.sql.rules.gather import gather, source_of
from shardlite.sql.rules.push_down import push_down
from shardlite.sql.statement import Statement
from shardlite.sql.template import FannedOut, PushedDown, Source

_WORTH = 0.95
"""Of the rows that a gather would bring: above, the rows aren't sent."""
_TO_OWNER = 2.2
"""What sending a row to its owner costs, beside bringing it to one place or to every shard (measured)."""
MOST_OWNED_ROWS = 1_000_000
"""Rows up to which tables are sent to the owners of their keys, whose databases are held in memory."""
BROADCAST_UP_TO = 10_000
"""Rows up to which a broadcast is left as it is: the difference is small."""
_FEW = 1_000
"""Rows up to which a table is rather broadcast beside one that is sent to the owners."""
_MOST_CHOICES = 100
_MOST_TRIES = 6


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which tables stay, which are sent to the owners (by folded name: by which columns), which to every shard."""

    stay: tuple[Table, ...]
    owned: Mapping[str, tuple[str, ...]]
    shared: frozenset[str]
    cost: float


def repartition(statement: Statement, instead_of: PushedDown | None = None) -> PushedDown | None:
    """Send rows to the owners of their join keys and push the query down; None where that can't be or doesn't pay.

    ``instead_of``: the broadcast that would do it, too.
    """
    if instead_of is not None and instead_of.rows_sent <= BROADCAST_UP_TO:
        return None
    spread = [table for table in statement.tables if table.kind is not TableKind.REFERENCE]
    if len(spread) < 2 or statement.views or any(table.virtual for table in spread):
        return None
    if cte_names(statement.text) & {fold(table.name) for table in spread}:
        return None
    reduction = statement.reduction
    everything = sum(needed.rows for needed in reduction.needed.values())
    most = everything * _WORTH
    if instead_of is not None:
        most = min(most, instead_of.rows_sent)
    choices = sorted(islice(_choices(reduction, spread), _MOST_CHOICES), key=lambda choice: choice.cost)
    for choice in choices[:_MOST_TRIES]:
        if choice.cost > most:
            return None
        if choice.cost + _answer(statement, reduction, choice) > most:
            continue
        found = _pushed(statement, reduction, choice)
        if found is not None:
            return found
    return None


def _answer(statement: Statement, reduction: Reduction, choice: _Choice) -> float:
    """Estimate the rows of the answer, which come from the shards as well: about one for each that was sent."""
    words = statement.text.keywords()
    if words & {"LIMIT", "DISTINCT", "GROUP"} or (statement.prepared.aggregates and "OVER" not in words):
        return 0.0
    outer = {item.name for core in statement.cores if core.parent is None for item in core.items}
    sent = outer & set(choice.owned)
    counted = outer & set(reduction.needed) if words & {"RIGHT", "FULL"} or not sent else sent
    return max((reduction.needed[name].rows for name in counted), default=0.0)


def _choices(reduction: Reduction, spread: Sequence[Table]) -> Iterator[_Choice]:
    equal = _classes(reduction.equal_columns())
    for stay in anchors(reduction, spread):
        staying = {fold(table.name) for table in stay}
        others = [table for table in spread if fold(table.name) not in staying]
        columns = {fold(table.name): list(islice(_columns(table, stay, equal), 2)) for table in others}
        able = [table for table in others if columns[fold(table.name)]]
        large = [table for table in able if reduction.needed[fold(table.name)].rows > _FEW]
        for sent in [able] if large in ([], able) else [large, able]:
            names = [fold(table.name) for table in sent]
            shared = frozenset(fold(table.name) for table in others if table not in sent)
            cost = _cost(reduction, names, shared)
            if names and cost is not None:
                for each in product(*(columns[name] for name in names)):
                    yield _Choice(stay, dict(zip(names, each, strict=True)), shared, cost)


def _classes(pairs: Sequence[tuple[Place, Place]]) -> dict[Place, set[Place]]:
    """Return for each column all those that a chain of equalities ties to it."""
    found: dict[Place, set[Place]] = {}
    for left, right in pairs:
        both = found.get(left, {left}) | found.get(right, {right})
        for place in both:
            found[place] = both
    return found


def _columns(table: Table, stay: Sequence[Table], equal: Mapping[Place, set[Place]]) -> Iterator[tuple[str, ...]]:
    """Yield by which columns a table's rows may find the shards of the tables that stay."""
    seen = set()
    for owner in stay:
        ties = [equal.get((fold(owner.name), fold(key)), ()) for key in owner.key_columns]
        named = [sorted(column for name, column in tie if name == fold(table.name)) for tie in ties]
        for columns in product(*named):
            spelt = tuple(table.by_name[column].name for column in columns)
            if spelt in seen or len(set(spelt)) != len(spelt) or not _as_keys(table, spelt, owner):
                continue
            if spelt == table.key_columns and colocated(table, owner):
                continue  # its rows are there
            seen.add(spelt)
            yield spelt


def _as_keys(table: Table, columns: tuple[str, ...], owner: Table) -> bool:
    """Tell whether these columns compare as the owner's key does, so that equal values are one key."""
    found = [table.by_name[fold(name)] for name in columns]
    wanted = [owner.by_name[fold(name)] for name in owner.key_columns]
    return all(
        one.affinity is other.affinity and fold(one.collation) == fold(other.collation)
        for one, other in zip(found, wanted, strict=True)
    )


def _cost(reduction: Reduction, owned: Sequence[str], shared: frozenset[str]) -> float | None:
    """Return what sending these tables costs, in rows; None where they are too many to be held in memory."""
    needed = reduction.needed
    everywhere = sum(needed[name].rows for name in _shared(reduction, owned, shared))
    sent = sum(needed[name].rows for name in owned)
    if everywhere > MOST_SHARED_ROWS or sent > MOST_OWNED_ROWS:
        return None
    return everywhere + sent * _TO_OWNER


def _shared(reduction: Reduction, owned: Sequence[str], shared: frozenset[str]) -> list[str]:
    """Return what has to be in the shared database, also for conditions to be held against."""
    named = reduction.with_used(set(owned) | shared)
    used = {name for each in named for name in reduction.needed[each].uses}
    return sorted(used | shared)


def _pushed(statement: Statement, reduction: Reduction, choice: _Choice) -> PushedDown | None:
    """Push the query down as if the tables sent to owners were sharded like those that stay."""
    owner = choice.stay[0]
    tables = dict(statement.schema.tables)
    for name in choice.shared:
        tables[name] = replace(tables[name], kind=TableKind.REFERENCE, key_columns=(), group="", explicit_key=False)
    for name, columns in choice.owned.items():
        tables[name] = replace(
            tables[name], kind=TableKind.SHARDED, key_columns=columns, group=owner.group, explicit_key=False
        )
    schema = replace(statement.schema, tables=tables)
    pushed = push_down(statement.as_if(schema))
    found = _collected(statement, pushed) if isinstance(pushed, FannedOut) else pushed
    otherwise = gather(statement)
    if found is None or otherwise is None:
        return None
    part = in_shared(found.part.sql, set(choice.owned), OWNED)
    part = None if part is None else in_shared(part, set(choice.shared))
    if part is None:
        return None
    needed = reduction.needed
    sources = [
        source_of(statement, needed[name], shared=True) for name in _shared(reduction, [*choice.owned], choice.shared)
    ]
    sources += [
        source_of(statement, needed[name], by=(owner.key_type, columns)) for name, columns in choice.owned.items()
    ]
    words = ", ".join(f"{needed[name].table.name} by {' and '.join(by)}" for name, by in sorted(choice.owned.items()))
    return replace(
        found,
        part=replace(found.part, sql=part, pins=_pins(found.part.pins, choice.stay)),
        shared=tuple(sources),
        otherwise=otherwise,
        reason=f"{words} sent to the shards of {owner.name}; {found.reason}",
        rows_sent=choice.cost,
    )


def _collected(statement: Statement, fanned: FannedOut) -> PushedDown | None:
    """Return a query whose rows are those of all shards as one that brings them together."""
    names = statement.columns(statement.sql)
    if not names or "" in names:
        return None
    width = len(names) + fanned.merge_rowid
    listed = ", ".join(map(part_column, range(width)))
    part = Source(
        PART, f"CREATE TABLE {PART}({listed})", f"INSERT INTO {PART}({listed})", width, fanned.sql, True, fanned.pins
    )
    shown = ", ".join(
        f"{part_column(number)} AS {quote(name)}" for number, name in enumerate(names, int(fanned.merge_rowid))
    )
    order = part_column(0) if fanned.merge_rowid else f"{PART}.rowid"
    sql = f"SELECT {shown} FROM {PART} ORDER BY {order}"
    return PushedDown(sql, statement.text, part, fanned.reason, fanned.tables, None)


def _pins(pins: Sequence[Pin], stay: Sequence[Table]) -> tuple[Pin, ...]:
    """Leave out the pins of tables that were sent: what they are compared with need not be a key that is known."""
    names = {table.name for table in stay}
    return tuple(pins) if all(pin.table in names for pin in pins) else ()
