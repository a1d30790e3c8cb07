"""Ending a connection that another thread may be inside: doom it, interrupt until no call is in flight, close it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from shardlite.connection.calls import FORKING, fork_pause
from shardlite.driver import sqlite3

if TYPE_CHECKING:
    from shardlite.connection.connection import Connection


def end_connection(conn: Connection, reason: str, timeout_s: float = 10.0) -> bool:
    """Doom, interrupt until no call is in flight, close, call ``on_closed``. Tell whether it is closed on return.

    A call that can't be interrupted within ``timeout_s`` seconds (SQLite waiting for another process's lock, a slow
    user function, or a call of this very thread further down the stack) is waited for in the background.
    Thread-safe, may be repeated; only one of several callers closes.
    """
    while conn.doomed is FORKING:
        fork_pause.wait()
    conn.doomed = conn.doomed or reason
    me: object = [reason]  # told apart by identity
    try:
        if conn.closing.setdefault(0, me) is not me:  # somebody else is closing it, or it is closed
            return not conn.calls
        if _drain(conn, timeout_s):
            _close_now(conn)
            return True
        me = threading.Thread(target=_end_later, args=(conn,), name=f"closing {conn.path}", daemon=True)
        conn.closing[0] = me
        me.start()
        return False
    except BaseException:
        started = isinstance(me, threading.Thread) and me.ident is not None
        if conn.closing.get(0) is me and not started:  # somebody else may do it
            del conn.closing[0]
        raise


def _close_now(conn: Connection) -> None:
    conn.base_close()
    if conn.on_closed is not None:
        conn.on_closed()  # may be repeated: an interrupt may come between the two lines
        conn.on_closed = None


def _end_later(conn: Connection) -> None:
    _drain(conn, threading.TIMEOUT_MAX)
    _close_now(conn)


def _drain(conn: Connection, timeout_s: float) -> bool:
    """Interrupt until no call is in flight; tell whether that was reached in time."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0
    while conn.calls:
        if time.monotonic() >= deadline:
            return False
        try:
            conn.interrupt()
        except sqlite3.ProgrammingError:  # another thread closed it meanwhile
            return True
        time.sleep(pause_s)
        pause_s = min(pause_s + 0.0005, 0.01)
    return True


__all__ = ["end_connection"]
