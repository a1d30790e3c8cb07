"""Parameters of one statement in SQLite's spellings, and values for them that trip plans which are kept by text."""

from __future__ import annotations

from random import Random
from typing import Any

VALUES = (1, 2, 3, 4, 1.0, "1", "a", "A", "a ", None, 2.5, b"a", 2**53 + 1, "b\0c", "é", 0, -1, "2", "B", 7, 12)


class Parameters:
    """Parameters of one statement, in one of five spellings; or literals. A mark stands in a text until it is done."""

    def __init__(self, r: Random, style: str | None = None) -> None:
        self.r = r
        self.style = r.choice(("?", "?", "?N", "?N", ":", "@$:", "")) if style is None else style
        self.made: list[str] = []
        self.kinds: list[str] = []

    def make(self, kind: str = "value") -> str:
        """Return what stands for a parameter, or a literal."""
        if self.style == "":
            return literal(choose(self.r, kind))
        same = [number for number, other in enumerate(self.made) if other == kind]
        if self.style != "?" and same and self.r.random() < 0.3:
            return f"\1{self.r.choice(same)}\1"
        self.made.append(kind)
        return f"\1{len(self.made) - 1}\1"

    def done(self, text: str) -> str:
        """Return a text with the parameters that are left in it."""
        parts = text.split("\1")
        numbers: dict[str, int] = {}
        for place in range(1, len(parts), 2):
            number = numbers.setdefault(parts[place], len(numbers))
            if number == len(self.kinds):
                self.kinds.append(self.made[int(parts[place])])
            if self.style == "?":
                parts[place] = "?"
            elif self.style == "?N":
                parts[place] = f"?{number + 1}"
            else:
                parts[place] = f"{self.r.choice(self.style)}p{number}"
        return "".join(parts)

    def values(self) -> Any:
        made = [choose(self.r, kind) for kind in self.kinds]
        if self.style in ("?", "?N", ""):
            return tuple(made)
        return {f"p{number}": value for number, value in enumerate(made)}


def choose(r: Random, kind: str) -> Any:
    if kind == "outer limit" and r.random() < 0.1:
        return r.choice(("3", 2.0, None, "x"))
    if "limit" in kind:
        return r.choice((0, 1, 2, 3, 5, 8, 20, -1, 4, 6, 100, 2**62))
    if kind == "text":
        return r.choice(("a", "A", "b", "1", "a ", "é"))
    if kind == "small":
        return r.randint(0, 9)
    return r.choice(VALUES)


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        text = value.replace("'", "''").replace("\0", "'||char(0)||'")
        return f"('{text}')" if "\0" in value else f"'{text}'"
    return repr(value)
