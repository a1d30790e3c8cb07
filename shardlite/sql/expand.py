"""Write a query's views and common table expressions out: each mention in a FROM becomes a subquery of that name.

The text is cut and put together at the places of its tokens. What comes out is only a guess at what SQLite does with
views by itself: it is trusted where SQLite's own program for it is the same (``Statement.expanded``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardlite.names import fold, quote
from shardlite.sql.clauses import Unsure, commas, read_select
from shardlite.sql.cores import Item, cores_of
from shardlite.sql.locality import calls_aggregate
from shardlite.sql.tokens import Text, Token, closing, numbered, spliced, tokenize

_MOST_MENTIONS = 200
_LONGEST = 100_000
"""Characters. Views of views that name each other several times grow by powers."""
_DEPENDS_ON_HOW_IT_RUNS = frozenset(("LIMIT", "GROUP", "HAVING", "DISTINCT", "OVER", "INTERSECT", "EXCEPT"))


@dataclass(frozen=True, slots=True)
class Expanded:
    """``sql`` has no view and no WITH; ``hinted`` is the original, its CTEs marked as SQLite may write them out too.

    ``repeated``: a CTE stands in it several times, so that what it asks may be asked more than once.
    """

    sql: str
    hinted: str
    repeated: bool


Columns = Callable[[str], tuple[str, ...]]


def expand(text: Text, views: Mapping[str, str], columns: Columns) -> Expanded | None:
    """Write out all views (folded name -> CREATE text) and CTEs of a query; None where there is none, or one stays.

    ``columns`` tells the names of a query's result columns.
    """
    if "WITH" not in text.keywords() and not any(token.name in views for token in text.tokens):
        return None
    sql = numbered(text)
    expander = _Expander(views, columns)
    try:
        found = expander.query(sql, {})
        return Expanded(found, _hinted(sql), expander.repeated()) if found != sql else None
    except (Unsure, IndexError, RecursionError):
        return None


class _Cte:
    """One table of a WITH. ``scope`` is what its text may name: the others of its WITH, and those around it."""

    def __init__(self, columns: tuple[str, ...], sql: str, scope: Mapping[str, _Cte]) -> None:
        self.columns = columns
        self.sql = sql
        self.scope = scope
        self.written: list[str] = []
        self.busy = False


class _Expander:
    def __init__(self, views: Mapping[str, str], columns: Columns) -> None:
        self._views = views
        self._columns = columns
        self._ctes: list[_Cte] = []
        self._busy: set[str] = set()
        self._mentions = 0

    def repeated(self) -> bool:
        """Tell whether a CTE was written out more than once; Unsure where that could change the answer."""
        several = [cte for cte in self._ctes if len(cte.written) > 1]
        if not all(_answers_alike(tokenize(cte.written[0])) for cte in several):
            raise Unsure("a CTE whose rows depend on how it runs")
        return bool(several)

    def query(self, sql: str, scope: Mapping[str, _Cte]) -> str:
        """Return a query's text with all that it names in FROM written out."""
        text = tokenize(sql)
        tokens = text.tokens
        edits: list[tuple[int, int, str]] = []
        start = 0
        if text.head == "WITH":
            scope, start = self._with(text, scope)
            edits.append((tokens[0].start, tokens[start].start, ""))
        inner = list(_with_queries(tokens, start))
        for first, last in inner:
            piece = sql[tokens[first].start : tokens[last - 1].end]
            edits.append((tokens[first].start, tokens[last - 1].end, self.query(piece, scope)))
        for core in cores_of(text):
            at = core.span.start
            if at < start or any(first <= at < last for first, last in inner):
                continue
            for item in core.items:
                edit = self._item(tokens, item, scope)
                if edit is not None:
                    edits.append(edit)
        found = spliced(sql, edits)
        if len(found) > _LONGEST:
            raise Unsure("a text that grows too long")
        return found

    def _with(self, text: Text, scope: Mapping[str, _Cte]) -> tuple[Mapping[str, _Cte], int]:
        """Read the tables of the WITH that begins a query; return what it may name, and where its SELECT begins."""
        tokens, sql = text.tokens, text.sql
        made = dict(scope)
        position = 2 if tokens[1].key == "RECURSIVE" else 1
        while True:
            name = tokens[position].name or ""
            position += 1
            columns: tuple[str, ...] = ()
            if tokens[position].key == "(":
                end = closing(tokens, position)
                columns = tuple(token.value for token in tokens[position + 1 : end] if token.key != ",")
                position = end + 1
            position += 1  # AS
            if tokens[position].key == "MATERIALIZED":
                raise Unsure("MATERIALIZED")
            if tokens[position].key == "NOT":
                position += 2
            end = closing(tokens, position)
            made[name] = _Cte(columns, sql[tokens[position + 1].start : tokens[end - 1].end], made)
            self._ctes.append(made[name])
            if tokens[end + 1].key != ",":
                return made, end + 1
            position = end + 2

    def _item(self, tokens: tuple[Token, ...], item: Item, scope: Mapping[str, _Cte]) -> tuple[int, int, str] | None:
        """Return the edit that puts a subquery where a view or CTE is named."""
        body = self._body(item, scope)
        if body is None:
            return None
        self._mentions += 1
        if self._mentions > _MOST_MENTIONS:
            raise Unsure("too many views")
        first = item.span.start
        last = first + (2 if item.schema else 0)
        aliased = last + 1 < item.span.end and tokens[last + 1].key not in ("INDEXED", "NOT")
        alias = "" if aliased else f" AS {quote(tokens[last].value)}"
        return tokens[first].start, tokens[last].end, f"({body}){alias}"

    def _body(self, item: Item, scope: Mapping[str, _Cte]) -> str | None:
        if item.function or not item.name:
            return None
        if not item.schema and item.name in scope:
            cte = scope[item.name]
            if cte.busy:
                raise Unsure("a recursive CTE")
            cte.busy = True
            found = _renamed(self.query(cte.sql, cte.scope), cte.columns, self._columns)
            cte.busy = False
            cte.written.append(found)
            return found
        if item.name not in self._views or item.schema not in ("", "main"):
            return None
        if item.name in self._busy:
            raise Unsure("a view that names itself")
        self._busy.add(item.name)
        columns, sql = _select_of(tokenize(self._views[item.name]))
        found = _renamed(self.query(sql, {}), columns, self._columns)
        self._busy.remove(item.name)
        return found


def with_names(sql: str, names: Sequence[str], columns: Columns) -> str | None:
    """Name the result columns of a query; None where the text doesn't show which is which."""
    text = tokenize(sql)
    core = next(iter(cores_of(text)), None)
    if core is None or core.span.start:
        return None
    try:
        return _renamed(sql, tuple(names), columns)
    except Unsure:
        return None


def _with_queries(tokens: tuple[Token, ...], start: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of queries in parentheses that begin with a WITH of their own, the outermost ones."""
    position = start
    while position < len(tokens):
        if tokens[position].key == "(" and tokens[position + 1].key == "WITH":
            end = closing(tokens, position)
            yield position + 1, end
            position = end
        position += 1


def _select_of(text: Text) -> tuple[tuple[str, ...], str]:
    """Return the column names that a CREATE VIEW gives, and its SELECT."""
    tokens = text.tokens
    columns: tuple[str, ...] = ()
    position = 0
    while tokens[position].key != "AS":
        if tokens[position].key == "(":
            end = closing(tokens, position)
            columns = tuple(token.value for token in tokens[position + 1 : end] if token.key != ",")
            position = end
        position += 1
    return columns, text.sql[tokens[position + 1].start : tokens[-1].end]


def _renamed(sql: str, names: Sequence[str], columns: Columns) -> str:
    """Give the columns of a query other names."""
    if not names:
        return sql
    text = tokenize(sql)
    tokens = text.tokens
    core = next((core for core in cores_of(text) if core.span.start == 0), None)
    if core is None:
        raise Unsure("the columns of VALUES")
    outputs = read_select(text, core, core.span.end).outputs
    terms = commas(tokens, core.columns)
    if len(outputs) == 1 and outputs[0].star and len(core.items) == 1 and not core.nested:
        shown = columns(sql)
        if len(set(map(fold, shown))) != len(names) or len(shown) != len(names):
            raise Unsure("the columns of *")
        listed = ", ".join(f"{quote(own)} AS {quote(name)}" for own, name in zip(shown, names, strict=True))
        return spliced(sql, [(tokens[terms[0].start].start, tokens[terms[0].end - 1].end, listed)])
    if len(outputs) != len(names) or any(output.star for output in outputs):
        raise Unsure("the columns of *")
    return spliced(
        sql,
        [
            (tokens[output.span.end - 1].end, tokens[term.end - 1].end, f" AS {quote(name)}")
            for output, term, name in zip(outputs, terms, names, strict=True)
        ],
    )


def _answers_alike(text: Text) -> bool:
    """Tell whether a query gives the same rows, bit by bit, however SQLite runs it: no aggregate, no choice of rows."""
    tokens = text.tokens
    if _DEPENDS_ON_HOW_IT_RUNS & text.keywords():
        return False
    unions = [at for at, token in enumerate(tokens) if token.is_word("UNION")]
    if any(at + 1 >= len(tokens) or tokens[at + 1].key != "ALL" for at in unions):
        return False
    return not any(calls_aggregate(tokens, at) for at in range(len(tokens)))


def _hinted(sql: str) -> str:
    """Let SQLite write out CTEs that are named several times, as it does with those named once."""
    tokens = tokenize(sql).tokens
    opens = ("SELECT", "VALUES", "WITH")
    return spliced(
        sql,
        [
            (tokens[at].end, tokens[at].end, " NOT MATERIALIZED")
            for at in range(len(tokens) - 2)
            if tokens[at].key == "AS" and tokens[at + 1].key == "(" and tokens[at + 2].key in opens
        ],
    )
