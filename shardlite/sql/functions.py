"""SQLite's built-in functions by what they depend on. Names are folded."""

from __future__ import annotations

from dataclasses import dataclass

from shardlite.sql.tokens import Text, Token, TokenKind, closing, split_commas, words

PAST = frozenset(("changes", "total_changes", "last_insert_rowid"))
"""They tell of what the thread did before."""

SCALAR = words(
    """
    abs char coalesce format glob hex ifnull iif if instr length like likelihood likely lower ltrim nullif
    octet_length printf quote replace round rtrim sign soundex substr substring trim typeof unhex unicode
    unistr unlikely upper zeroblob concat concat_ws acos acosh asin asinh atan atan2 atanh ceil ceiling cos
    cosh degrees exp floor ln log log10 log2 mod pi pow power radians sin sinh sqrt tan tanh trunc json
    json_array json_array_length json_error_position json_extract json_insert json_object json_patch
    json_pretty json_quote json_remove json_replace json_set json_type json_valid jsonb
    jsonb_array jsonb_extract jsonb_insert jsonb_object
    jsonb_patch jsonb_remove jsonb_replace jsonb_set unistr_quote -> ->> max min
    """
)
"""Deterministic functions of their arguments. ``max`` and ``min`` are aggregates with one argument."""

DATES = frozenset(("date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"))
"""Deterministic but for the time ``now``, which is also what a missing argument means."""

CLOCK = frozenset(("current_date", "current_time", "current_timestamp"))

AGGREGATES = words(
    """
    avg count group_concat string_agg sum total json_group_array json_group_object jsonb_group_array
    jsonb_group_object median percentile
    percentile_cont percentile_disc
    """
)
WINDOWS = words(
    """
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    """
)


@dataclass(frozen=True, slots=True)
class UserFunctions:
    """The functions that the user registered, by folded name. They hide SQLite's own of the same name."""

    deterministic: frozenset[str] = frozenset()
    """Deterministic functions of their arguments: a shard may evaluate them on its own."""
    others: frozenset[str] = frozenset()
    """The rest: their answers may differ from shard to shard, or need the rows of all (aggregates and windows)."""

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return self.deterministic | self.others


NO_FUNCTIONS = UserFunctions()


def not_shardable(functions: frozenset[str], text: Text, registered: UserFunctions) -> str | None:
    """Return a function whose answer could differ from shard to shard, or None when there is none."""
    for name in sorted(functions):
        if name in registered.others:
            return name
        if name in SCALAR or name in registered.deterministic:
            continue
        if name in DATES and not tells_the_time(text):
            continue
        return name
    return None


def tells_the_time(text: Text) -> bool:
    """Tell whether the clock may be asked: CURRENT_*, or a date function of nothing, of ``'now'`` or of a parameter."""
    for position, token in enumerate(text.tokens):
        name = token.name if token.kind in (TokenKind.WORD, TokenKind.QUOTED) else None
        if name in CLOCK:
            return True
        if name in DATES and position + 1 < len(text.tokens) and text.tokens[position + 1].key == "(":
            arguments = split_commas(text.tokens[position + 2 : closing(text.tokens, position + 1)])
            if len(arguments) < (2 if name == "strftime" else 1) or any(map(_may_be_now, arguments)):
                return True
    return False


def _may_be_now(argument: tuple[Token, ...]) -> bool:
    return any(
        token.kind is TokenKind.PARAMETER or (token.kind is TokenKind.STRING and "now" in token.text.lower())
        for token in argument
    )
