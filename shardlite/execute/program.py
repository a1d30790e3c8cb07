"""What EXPLAIN says of a query, written so that two texts which SQLite runs alike give the same.

Cursors are numbered in the order in which they are first used: SQLite numbers them as it reads the text, so that a
view has another number than the subquery that it stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

_IN_P1 = frozenset(
    b"""
    OpenRead ReopenIdx OpenDup OpenAutoindex OpenEphemeral SorterOpen OpenPseudo Close ColumnsUsed SeekLT SeekLE SeekGE
    SeekGT SeekScan SeekHit IfNotOpen IfNoHope NoConflict NotFound Found SeekRowid NotExists Sequence NewRowid Insert
    SorterCompare SorterData RowData Rowid NullRow SeekEnd Last IfSmaller IfSizeBetween SorterSort Sort Rewind IfEmpty
    SorterNext Prev Next IdxInsert SorterInsert IdxRowid DeferredSeek FinishSeek IdxLE IdxGT IdxLT IdxGE Column Offset
    Count IfNullRow IsType VOpen VFilter VColumn VNext VInitIn ResetSorter Delete IdxDelete RowCell SequenceTest
    """.split()
)
"""Instructions whose first operand is a cursor. What isn't here has to be equal as it stands."""
_IN_P2 = frozenset((b"OpenDup",))
_IN_P3 = frozenset((b"DeferredSeek", b"SorterData"))
_LEFT_OUT = frozenset((b"Explain", b"Noop"))
"""They do nothing; the words of the one name tables by their alias."""


def program_of(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return a digest of the rows of EXPLAIN (text as bytes): address, opcode, p1 to p5."""
    numbers: dict[int, int] = {}

    def cursor(operand: int) -> int:
        return operand if operand < 0 else numbers.setdefault(operand, len(numbers))

    digest = hashlib.blake2b(digest_size=16)
    for address, code, p1, p2, p3, p4, p5, *_ in rows:
        if code in _LEFT_OUT:
            digest.update(b"%d\n" % address)
            continue
        if code in _IN_P1:
            p1 = cursor(p1)
        if code in _IN_P2:
            p2 = cursor(p2)
        if code in _IN_P3:
            p3 = cursor(p3)
        if code == b"Variable":
            # A name, whose number is that of its place in the text; or ?1, which ? may be as well.
            p1, p4 = (0, p4) if p4 is not None and p4[:1] != b"?" else (p1, None)
        digest.update(repr((code, p1, p2, p3, p4, p5)).encode())
    return digest.hexdigest()
