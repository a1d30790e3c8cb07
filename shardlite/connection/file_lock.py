"""Locks between processes on files that SQLite doesn't know: the fence and the commit logs. Never on a database.

POSIX: ``flock``, which belongs to the *open file* and not to the process. A forked child shares it, so the child has
to close the descriptor, which leaves the parent's lock alone, and must never unlock it, which would take it from the
parent too. Windows: bytes far behind the file's end, locked by ``msvcrt``: exclusive is the whole range, shared is one
byte of it. (Locked bytes can't be read or written there; nothing is stored at that place.)

The system drops the lock when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_S: Final = 0.001
_RANGE_AT: Final = 0x7FFE0000
"""Below 2 GiB, which is as far as ``msvcrt.locking`` reaches."""
_RANGE_BYTES: Final = 1024
_SHARED_TRIES: Final = 16
_TAKEN: Final = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class FileLock:
    """The lock of one open file, given by its descriptor, which the caller keeps and closes.

    Not for threads: whoever owns the descriptor orders them. Errors other than "somebody else has it" are OSError,
    such as ENOLCK or ENOTSUP where the file system has no locks.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes: tuple[int, int] | None = None  # Windows: where the locked bytes are, and how many

    def try_exclusive(self) -> bool:
        """Take the lock alone, if nobody else has it in any form. Doesn't wait.

        Who shared it until now may have lost that too when the answer is False.
        """
        return self._try_lock(shared=False)

    def try_share(self) -> bool:
        """Take or keep the lock together with others, if nobody has it alone. Doesn't wait.

        From exclusive to shared is not one step: another process may have the lock exclusively in between.
        """
        return self._try_lock(shared=True)

    def share(self, timeout_s: float) -> bool:
        """As try_share(), waiting up to ``timeout_s`` seconds; False: somebody has had it alone all that time."""
        deadline = time.monotonic() + timeout_s
        while not self.try_share():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    if sys.platform == "win32":

        def _try_lock(self, *, shared: bool) -> bool:
            self.unlock()
            if not shared:
                return self._lock_bytes(_RANGE_AT, _RANGE_BYTES)
            places = random.sample(range(_RANGE_AT, _RANGE_AT + _RANGE_BYTES), _SHARED_TRIES)
            return any(self._lock_bytes(place, 1) for place in places)

        def _lock_bytes(self, at: int, count: int) -> bool:
            os.lseek(self.descriptor, at, os.SEEK_SET)
            try:
                msvcrt.locking(self.descriptor, msvcrt.LK_NBLCK, count)
            except OSError as error:
                if error.errno in _TAKEN:
                    return False
                raise
            self._bytes = (at, count)
            return True

        def unlock(self) -> None:
            """Let the lock go; harmless without one."""
            held, self._bytes = self._bytes, None
            if held is not None:
                os.lseek(self.descriptor, held[0], os.SEEK_SET)
                msvcrt.locking(self.descriptor, msvcrt.LK_UNLCK, held[1])

    else:

        def _try_lock(self, *, shared: bool) -> bool:
            try:
                fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _TAKEN:
                    return False
                raise
            return True

        def unlock(self) -> None:
            """Let the lock go; harmless without one. Never in a forked child: it would take the parent's away."""
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)


__all__ = ["FileLock"]
