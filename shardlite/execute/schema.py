"""What a schema change will make of the logical schema: tried on an empty scratch copy before any shard sees it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from shardlite.driver import sqlite3
from shardlite.errors import InternalError, NotSupportedError, ProgrammingError, reraise
from shardlite.execute.attached import attach_schema
from shardlite.execute.placement import (
    Placement,
    foreign_key_text,
    hinted,
    place,
    refuse_definition,
    sees_parent,
    shard_text,
    unseen_constraints,
)
from shardlite.execute.planning import check_ddl
from shardlite.execute.registry import HOW_TO_REGISTER, NOTHING, Registered, is_missing, load_schema
from shardlite.execute.state import key_store_of
from shardlite.names import fold, quote
from shardlite.router.catalog_file import SchemaObject
from shardlite.router.introspect import describe, table_names
from shardlite.router.table import ConstraintMode, Table, TableKind
from shardlite.sql.create_as import select_of
from shardlite.sql.ddl import conflict_clauses
from shardlite.sql.hints import Hint, created_name, current_hint, disagreement, hint_of, makes_table, settled, with_hint
from shardlite.sql.shard_schema import identity_columns, lookup_indexes, unseen_uniqueness
from shardlite.sql.tokens import first_words, tokenize
from shardlite.sql.virtual_tables import refuse_spread_content

_DELETE, _INSERT, _READ, _UPDATE = 9, 18, 20, 23
_DANGLING = re.compile(r"no such table: (?:main\.)?(.*)|no such column: |table .* has no column named ")
"""What SQLite says of a statement that fires a trigger whose tables aren't there, or not any more."""


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """A change that is ready to run: on every shard the same statements, and the catalog as it will be."""

    statements: tuple[str, ...]
    tables: tuple[Table, ...]
    """All tables afterwards, in the order of their creation."""
    renamed: Mapping[str, str]
    """New folded name -> old name, for tables that were renamed."""
    schema: tuple[SchemaObject, ...]
    undo: tuple[str, ...] = ()
    """Texts that take it back on a shard, where some shards alone having it can't be mended otherwise."""
    next_ids: Mapping[str, int] = field(default_factory=dict)
    """Name of a new table that comes with rows -> the id of its next one."""

    @property
    def is_nothing(self) -> bool:
        return not self.statements


class SchemaDraft:
    """The logical schema on a scratch connection, changed statement by statement. For one thread; close it."""

    def __init__(
        self,
        schema: Sequence[SchemaObject],
        tables: Mapping[str, Table],
        encoding: str,
        registered: Registered = NOTHING,
    ) -> None:
        self._old = dict(tables)
        self._tables: dict[str, Table] = dict(tables)
        self._renamed: dict[str, str] = {}
        self._created: dict[str, int] = {}
        self._unique_indexes: dict[int, str] = {}
        """Position of a CREATE UNIQUE INDEX in the statements -> the index's name."""
        self._hints = {
            fold(item.name): hint for item in schema if item.type == "table" and (hint := hint_of(item.sql)) is not None
        }
        """Folded table name -> what its CREATE TABLE says of its place: DROP COLUMN may take the comment away."""
        self._statements: list[str] = []
        self._encoding = encoding
        self._registered = registered
        self._conn = sqlite3.connect(":memory:", isolation_level=None, uri=True)
        self._conn.execute(f"PRAGMA encoding = '{encoding}'")
        self._functions = registered.functions
        registered.apply(self._conn)
        load_schema(self._conn, [item.sql for item in schema])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._conn.close()

    def table_created_by(self, statement: str) -> str:
        """Return the name of the table that a CREATE TABLE makes. Raises ProgrammingError when it makes none."""
        names = set(table_names(self._conn))
        try:
            self.run(statement)
        except sqlite3.Error as error:
            if first_words(statement)[:2] != ("CREATE", "VIRTUAL"):
                raise
            raise ProgrammingError(str(error)) from error
        made = [name for name in table_names(self._conn) if name not in names]
        if len(made) != 1 or first_words(statement, 1) != ("CREATE",):
            raise ProgrammingError(f"create_table takes a CREATE TABLE, not: {statement[:80]}")
        return made[0]

    def run(self, statement: str) -> None:
        """Apply one statement to the draft. Raises SQLite's own error, or NotSupportedError for what can't be."""
        check_ddl(statement)
        words = first_words(statement)
        if select_of(statement) is not None:
            raise NotSupportedError(
                "CREATE TABLE ... AS SELECT reads rows: run it through execute(), or create the table here and insert "
                "the rows then"
            )
        before = self._objects()
        names = table_names(self._conn)
        hint = None
        if makes_table(statement):
            hint, statement = hint_of(statement), settled(statement)
        with self._sqlites_errors():
            self._conn.execute(statement)
        self._require_nothing_temporary(statement)
        if self._objects() == before and words[0] not in ("REINDEX", "ANALYZE"):
            self._require_agreement(statement, hint)
            return  # IF NOT EXISTS, IF EXISTS
        self._statements.append(statement)
        if words[:2] == ("CREATE", "UNIQUE"):
            known = {item.name for item in before if item.type == "index"}
            made = (item.name for item in self._objects() if item.type == "index" and item.name not in known)
            self._unique_indexes[len(self._statements) - 1] = next(made)
        now = table_names(self._conn)
        if hint is not None:
            self._hints |= {fold(name): hint for name in now if name not in names}
        self._follow(words, set(names), set(now), before)

    def _require_agreement(self, statement: str, hint: Hint | None) -> None:
        """Refuse CREATE TABLE IF NOT EXISTS of a table that is there with another kind or key than the hint says."""
        table = self._tables.get(created_name(statement)) if hint is not None else None
        why = disagreement(hint, table) if hint is not None and table is not None else None
        if table is not None and why is not None:
            raise ProgrammingError(f"{table.name} exists: the hint in its definition says {why}")

    def table_made_as(
        self, statement: str, parameters: Any, beside: Sequence[tuple[str, Sequence[str]]] = ()
    ) -> str | None:
        """Return the text that SQLite gives a table of CREATE TABLE ... AS; None where IF NOT EXISTS finds it there.

        ``beside``: schema names and texts of attached files.
        """
        check_ddl(statement)
        name = created_name(statement)
        with self._sqlites_errors():
            for schema, texts in beside:
                attach_schema(self._conn, schema, texts, self._encoding, self._registered)
            before = {item.name for item in self._objects()}
            self._conn.execute(statement, parameters)
        self._require_nothing_temporary(statement)
        made = (item.sql for item in self._objects() if item.name not in before and fold(item.name) == name)
        return next(made, None)

    @contextlib.contextmanager
    def _sqlites_errors(self) -> Iterator[None]:
        """Raise what SQLite says as shardlite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            reraise(error, HOW_TO_REGISTER if is_missing(error) else "")
        except sqlite3.Warning as error:
            raise ProgrammingError(str(error)) from error

    def _require_nothing_temporary(self, statement: str) -> None:
        if self._conn.execute("SELECT count(*) FROM sqlite_temp_schema").fetchone()[0]:
            raise NotSupportedError(f"temp objects live in one connection: create an ordinary one: {statement[:80]}")

    def _objects(self) -> list[SchemaObject]:
        rows = self._conn.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL "
            "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
        )
        shadows = {name for (name,) in self._conn.execute("SELECT name FROM pragma_table_list WHERE type = 'shadow'")}
        return [SchemaObject(*row) for row in rows.fetchall() if row[1] not in shadows]

    def _follow(self, words: tuple[str, ...], old: set[str], new: set[str], before: list[SchemaObject]) -> None:
        """Carry the tables' placement over what one statement did."""
        gone, come = old - new, new - old
        if words[0] == "ALTER" and len(gone) == len(come) == 1:
            self._rename(gone.pop(), come.pop())
        for name in gone:
            self._drop(name)
        for name in come:
            self._created[name] = len(self._statements) - 1
        texts = {(item.type, item.name): item for item in before if item.type in ("table", "index")}
        now = {(item.type, item.name): item for item in self._objects() if item.type in ("table", "index")}
        changed = {fold(item.tbl_name) for key, item in now.items() if texts.get(key) != item}
        changed |= {fold(item.tbl_name) for key, item in texts.items() if key not in now}
        self._alter([table for name in sorted(changed) if (table := self._tables.get(name)) is not None])

    def _rename(self, old: str, new: str) -> None:
        if fold(old) in self._hints:
            self._hints[fold(new)] = self._hints.pop(fold(old))
        table = self._tables.pop(fold(old), None)
        if table is None:
            if old in self._created:
                self._created[new] = self._created.pop(old)
            return
        renamed = replace(table, name=new)
        if table.explicit_key:
            _, index, *triggers = key_store_statements(renamed)
            self._statements += [
                f"DROP TRIGGER {quote(key_store_of(table) + '_gone')}",
                f"DROP TRIGGER {quote(key_store_of(table) + '_moved')}",
                f"DROP INDEX {quote(key_store_of(table) + '_by_key')}",
                f"ALTER TABLE {quote(key_store_of(table))} RENAME TO {quote(key_store_of(renamed))}",
                index,
                *triggers,
            ]
        for (old_name, _), (_, text) in zip(lookup_indexes(table), lookup_indexes(renamed), strict=True):
            self._statements += [f"DROP INDEX {quote(old_name)}", text]
        self._tables[fold(new)] = renamed
        self._renamed[fold(new)] = self._renamed.pop(fold(old), old)

    def _drop(self, name: str) -> None:
        table = self._tables.pop(fold(name), None)
        self._hints.pop(fold(name), None)
        self._created.pop(name, None)
        self._renamed.pop(fold(name), None)
        if table is not None and table.explicit_key:
            self._statements.append(f"DROP TABLE {quote(key_store_of(table))}")

    def _alter(self, tables: Sequence[Table]) -> None:
        """Describe tables anew, all of them before any is judged: a parent's column may have been renamed."""
        for table in tables:
            self._tables[fold(table.name)] = self._described(table)
        for table in tables:
            self._judge(table, self._tables[fold(table.name)])

    def _described(self, table: Table) -> Table:
        """Return what a table has become; its key columns may have been renamed in place."""
        facts = describe(self._conn, table.name)
        now = facts.table(
            table.kind, group=table.group, constraints=table.constraints, reason=table.reason,
            explicit_key=table.explicit_key,
        )  # fmt: skip
        if len(now.columns) == len(table.columns):
            mapping = {fold(a.name): b.name for a, b in zip(table.columns, now.columns, strict=True)}
        else:
            mapping = {fold(column.name): column.name for column in now.columns}
        lost = [name for name in table.key_columns if fold(name) not in mapping]
        if lost:
            raise NotSupportedError(f"{table.name}.{lost[0]} is the shard key: it can't be dropped")
        return replace(now, key_columns=tuple(mapping[fold(name)] for name in table.key_columns))

    def _judge(self, before: Table, now: Table) -> None:
        """Record what no shard can see of a changed table; refuse what was added to it."""
        parents = {fold(key.parent) for key in now.foreign_keys}
        if len(now.foreign_keys) <= len(before.foreign_keys) and not parents <= set(self._tables):
            return  # a parent is gone: SQLite says so when a row refers to it
        unseen = unseen_constraints(now, self._tables)
        added = [text for text in unseen if text not in before.unenforced]
        if added and len(unseen) > len(before.unenforced):
            self._refuse_unseen(now, added)
        self._tables[fold(now.name)] = replace(now, unenforced=unseen)

    def _refuse_unseen(self, table: Table, added: Sequence[str]) -> None:
        if table.constraints is ConstraintMode.STRICT:
            why = f"the shard key ({', '.join(table.key_columns)}) is not part of it"
            if not table.sharded:
                why = f"it is a {table.kind} table and the parent's rows are spread"
            raise NotSupportedError(
                f"{table.name}: no single shard can enforce {'; '.join(added)}, because {why}. Create the table with "
                "constraints='checked' to have it recorded and looked at by check, or put the key into it"
            )
        if any(text.startswith("FOREIGN KEY") for text in added):
            raise NotSupportedError(f"{table.name}: {'; '.join(added)} can't be added to a table that has rows")

    # -- the result ----------------------------------------------------------------------------------------------

    def finish(self, placements: Mapping[str, Placement]) -> SchemaChange:
        """Place the new tables and return the whole change.

        ``placements`` is by folded table name; a table without one goes where its definition allows.
        """
        unknown = [name for name in placements if name not in {fold(created) for created in self._created}]
        if unknown:
            raise ProgrammingError(f"the statement creates no table {unknown[0]}")
        statements = list(self._statements)
        for name in self._in_dependency_order():
            facts = describe(self._conn, name)
            asked = hinted(name, placements.get(fold(name), Placement()), self._hints.get(fold(name)))
            table = place(facts.table(TableKind.SINGLE), asked, self._tables)
            refuse_definition(table, self._text_of(name))
            self._tables[fold(name)] = table
            at = self._created[name]
            statements[at] = shard_text("table", name, statements[at], table, self._tables)
            if table.explicit_key:
                statements += key_store_statements(table)
            if unseen_uniqueness(table):
                self._require_same_columns(table, statements[at])
                statements += [text for _, text in lookup_indexes(table)]
        for at, index in self._unique_indexes.items():
            owner = next((t for t in self._tables.values() if any(c.name == index for c in t.unique)), None)
            statements[at] = shard_text("index", index, statements[at], owner, self._tables)
        self._check_children()
        for item in self._objects():
            if item.type == "table":
                refuse_spread_content(item.sql, self._tables)
        self._check_replaced_parents()
        self._check_triggers()
        order = [fold(name) for name in table_names(self._conn)]
        tables = tuple(self._tables[name] for name in order)
        return SchemaChange(tuple(statements), tables, dict(self._renamed), tuple(self._hinted_objects()))

    def _hinted_objects(self) -> Iterable[SchemaObject]:
        """Give the schema's objects, hints in today's words: SQLite renames nothing in a comment."""
        names = {name: table.name for name, table in self._tables.items()}
        names |= {fold(old): self._tables[new].name for new, old in self._renamed.items()}
        for item in self._objects():
            table = self._tables.get(fold(item.name)) if item.type == "table" else None
            hint = self._hints.get(fold(item.name)) if table is not None and not table.virtual else None
            if hint is None or table is None or (now := current_hint(hint, table, names)) == hint_of(item.sql):
                yield item
            else:
                yield replace(item, sql=with_hint(item.sql, now))

    def _require_same_columns(self, table: Table, text: str) -> None:
        """Make sure, by SQLite's own reading, that the shards' text differs in the constraints that were meant only."""
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
            scratch.execute(text)
            (made,) = table_names(scratch)
            found = describe(scratch, made).table(TableKind.SINGLE)
        placed = replace(table, columns=found.columns, unique=found.unique)
        columns = [replace(column, primary_key_position=0) for column in found.columns]
        expected = [replace(column, primary_key_position=0) for column in table.columns]
        primary = identity_columns(table) if table.without_rowid else table.primary_key if table.rowid_alias else None
        wrong = primary is not None and [*map(fold, found.primary_key)] != [*map(fold, primary)]
        if unseen_uniqueness(placed) or columns != expected or wrong:
            raise InternalError(f"{table.name}: the shards' definition came out as another one: {text}")

    def _text_of(self, name: str) -> str:
        row = self._conn.execute("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)).fetchone()
        return str(row[0])

    def _in_dependency_order(self) -> list[str]:
        """List the new tables, parents before children as far as they don't form a ring."""
        parents = {
            name: {fold(key.parent) for key in describe(self._conn, name).foreign_keys} for name in self._created
        }
        new = {fold(name) for name in self._created}
        done: list[str] = []
        left = list(self._created)
        while left:
            placed = {fold(name) for name in done}
            ready = [name for name in left if not (parents[name] & new) - placed - {fold(name)}]
            chosen = ready or left[:1]
            done += chosen
            left = [name for name in left if name not in chosen]
        return done

    def _check_children(self) -> None:
        """Refuse a new parent whose rows an older child's shard, which enforces the foreign key, would not see."""
        new = {fold(name) for name in self._created}
        for child in self._tables.values():
            for key in child.foreign_keys:
                if fold(child.name) in new or fold(key.parent) not in new or sees_parent(child, key, self._tables):
                    continue
                if foreign_key_text(key) not in child.unenforced:
                    parent = self._tables[fold(key.parent)]
                    raise NotSupportedError(
                        f"{child.name} ({child.kind}) has {foreign_key_text(key)}, which its shards enforce, and "
                        f"{parent.name} as a {parent.kind} table would be out of their sight: drop {child.name} first, "
                        f"or place {parent.name} so that a row and its parent share a shard"
                    )

    def _check_replaced_parents(self) -> None:
        """Refuse ON CONFLICT REPLACE of a parent where the row that goes would change its children's shard key."""
        for child in self._tables.values():
            for key in child.foreign_keys:
                parent = self._tables.get(fold(key.parent))
                clears = key.on_delete.upper() in ("SET NULL", "SET DEFAULT") and child.sharded
                if parent is None or not clears or not set(map(fold, key.columns)) & set(map(fold, child.key_columns)):
                    continue
                clauses = conflict_clauses(self._text_of(parent.name))
                if any(clause.action == "REPLACE" and clause.constraint in ("KEY", "UNIQUE") for clause in clauses):
                    raise NotSupportedError(
                        f"{parent.name} is declared ON CONFLICT REPLACE, and {child.name} has "
                        f"{foreign_key_text(key)} ON DELETE {key.on_delete}: a row that is replaced would change "
                        f"{child.name}'s shard key. Leave one of the two out"
                    )

    def _check_triggers(self) -> None:
        """Refuse a trigger that would have to write or read rows that another shard may hold."""
        rows = self._conn.execute("SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        if not rows:
            return
        # Needs the SQL parser, which takes a third of a second to import: only where there is a trigger.
        from shardlite.sql.triggers import conflict_of, read_trigger, stops_half_way

        missing: set[str] = set()
        for (name,) in rows:
            table = self._tables.get(fold(name))
            if table is None:
                continue  # INSTEAD OF, on a view
            for trigger, other, writes in self._touched(table, missing):
                touched = self._tables.get(other)
                if touched is not None and touched.name != table.name and not _reaches(table, touched, writes):
                    raise NotSupportedError(
                        f"trigger {trigger} on {table.name} ({table.kind}) {'writes' if writes else 'reads'} "
                        f"{touched.name} ({touched.kind}), whose rows may be on another shard: colocate the two, or "
                        "keep both single"
                    )
        for item in self._objects():
            if item.type != "trigger":
                continue
            text = read_trigger(item.name, item.tbl_name, item.sql)
            if (why := stops_half_way(text)) is not None:
                raise NotSupportedError(f"trigger {item.name}: {why}")
            fired = self._tables.get(fold(item.tbl_name))
            conflict = None
            dangling = missing and any(token.name in missing for token in tokenize(item.sql).tokens)
            if fired is not None and fired.kind is not TableKind.SINGLE and not dangling:
                conflict = conflict_of(text, self._tables, self._functions)
            if fired is not None and conflict is not None:
                where = "one shard only" if fired.sharded else "each copy by itself"
                raise NotSupportedError(
                    f"trigger {item.name} on {fired.name} ({fired.kind}) would run on {where}: {conflict.reason}. "
                    "Do its work in the application, or keep the tables single"
                )

    def _touched(self, table: Table, missing: set[str]) -> Iterable[tuple[str, str, bool]]:
        """Give (trigger, folded table, writes) for all that the triggers of a table touch.

        A statement that would fire a trigger which names what isn't there can't run, so that this trigger and those
        fired together with it needn't be judged: what brings it is a schema change, too. The tables that aren't there
        are added to ``missing``.
        """
        triggers = {
            fold(name): name for (name,) in self._conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        }
        found: set[tuple[str, str, bool]] = set()

        def note(action: int, first: str | None, _second: str | None, _db: str | None, via: str | None) -> int:
            if action in (_READ, _INSERT, _UPDATE, _DELETE) and fold(via or "") in triggers:
                found.add((triggers[fold(via or "")], fold(first or ""), action != _READ))
            return 0

        quoted = quote(table.name)
        sets = [f"{quote(column.name)} = NULL" for column in table.columns if column.writable]
        # One column after the other, too: a statement may fire but one of two triggers.
        alone = [*sets, *([] if table.rowid_name is None else [f"{table.rowid_name} = NULL"])]
        statements = [f"INSERT INTO {quoted} DEFAULT VALUES", f"DELETE FROM {quoted}"]
        if sets:
            statements.append(f"UPDATE {quoted} SET {', '.join(sets)}")
        self._conn.set_authorizer(note)
        try:
            while statements:
                statement = statements.pop()
                try:
                    self._conn.execute(f"EXPLAIN {statement}").close()  # blobs of the operands can't be fetched as text
                except sqlite3.Error as error:
                    dangling = _DANGLING.match(str(error))
                    if dangling is None:
                        reraise(error, f"a trigger of {table.name}")
                    missing.update(fold(name) for name in dangling.groups() if name)
                    if statement.startswith("UPDATE"):
                        statements += [f"UPDATE {quoted} SET {one}" for one in alone]
                        alone = []
        finally:
            self._conn.set_authorizer(None)
        return sorted(found)


def _reaches(table: Table, other: Table, writes: bool) -> bool:
    """Tell whether a trigger of ``table`` finds, on its own shard, what it touches of ``other``."""
    if other.kind is TableKind.REFERENCE:
        return not writes or table.kind is TableKind.REFERENCE
    if table.kind is TableKind.SINGLE:
        return other.kind is TableKind.SINGLE
    return table.kind is TableKind.SHARDED and other.kind is TableKind.SHARDED and table.group == other.group


def key_store_statements(table: Table) -> list[str]:
    """Return what makes the table that remembers the explicit keys of a table's rows."""
    store = quote(key_store_of(table))
    return [
        f"CREATE TABLE {store} (id INTEGER PRIMARY KEY, key BLOB)",
        f"CREATE INDEX {quote(key_store_of(table) + '_by_key')} ON {store} (key)",
        f"CREATE TRIGGER {quote(key_store_of(table) + '_gone')} AFTER DELETE ON {quote(table.name)} "
        f"BEGIN DELETE FROM {store} WHERE id = OLD.{table.rowid_name}; END",
        # OR REPLACE takes a row away without a trigger: what is remembered under the new rowid is of such a row.
        f"CREATE TRIGGER {quote(key_store_of(table) + '_moved')} AFTER UPDATE ON {quote(table.name)} "
        f"WHEN NEW.{table.rowid_name} <> OLD.{table.rowid_name} "
        f"BEGIN DELETE FROM {store} WHERE id = NEW.{table.rowid_name}; "
        f"UPDATE {store} SET id = NEW.{table.rowid_name} WHERE id = OLD.{table.rowid_name}; END",
    ]
