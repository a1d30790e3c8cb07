"""Where SQLite itself cuts a text: asked token by token, through the parser's errors, which quote the token."""

from __future__ import annotations

import re

from shardlite.driver import SQLITE_VERSION, sqlite3
from shardlite.sql.tokens import TokenKind, tokens_of

NEEDS_PARENTHESIS = "SELECT CAST/**/"
"""Nothing but "(" may follow: every other token is an error that quotes it."""
NO_PARENTHESIS = "INSERT OR/**/"
"""Some words may follow, but no "("."""
# Both end with a comment: a space would be one with a vertical tab behind it, which is no space by itself.
END = "incomplete input"
_SYNTAX = ('near "', '": syntax error')
_UNRECOGNIZED = ('unrecognized token: "', '"')

DEPENDS_ON_VERSION = re.compile(
    r"0[xX][0-9a-fA-F][0-9a-fA-F_]*[G-Zg-z$\x80-\U0010ffff]"  # two tokens, unrecognized since SQLite 3.46
    + ("" if SQLITE_VERSION >= (3, 46, 0) else "|(?:0[xX][0-9a-fA-F]+|[0-9]\\.?)_")  # there are separators since then
)


class Oracle:
    """SQLite's tokenizer, behind its parser."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:")

    def close(self) -> None:
        self._connection.close()

    def check(self, sql: str) -> None:
        """Assert that ``tokens_of`` cuts a text as SQLite does, and knows what SQLite doesn't recognize."""
        at = 0
        for token in tokens_of(sql):
            where = f"at offset {at} of {sql!r}"
            if "(" in sql[at : token.start]:
                assert self._complaint(NO_PARENTHESIS, sql[at : token.start]) == END, where
            if token.key == "(":
                assert self._complaint(NEEDS_PARENTHESIS, sql[at : token.end]) == END, where
                assert self._complaint(NO_PARENTHESIS, sql[at : token.end]) == 'near "(": syntax error', where
            else:
                before, after = _UNRECOGNIZED if token.kind is TokenKind.ILLEGAL else _SYNTAX
                assert self._complaint(NEEDS_PARENTHESIS, sql[at:]) == before + token.text + after, where
            at = token.end
        assert self._complaint(NO_PARENTHESIS, sql[at:]) == END, f"at offset {at} of {sql!r}"

    def _complaint(self, beginning: str, rest: str) -> str:
        try:
            self._connection.execute(beginning + rest)
        except (sqlite3.Error, sqlite3.Warning) as error:
            return str(error)
        return ""
