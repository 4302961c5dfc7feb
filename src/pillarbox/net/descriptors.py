"""The process's table of descriptors: made as large as it may be, and never full.

Where it is full, uvloop accepts a connection and drops it without a word, and asyncio stops accepting for a second.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from functools import cache

if sys.platform != "win32":
    import resource

# More than that is of no use here, and some containers allow 2**30: a program that a handler starts, and that closes
# all the descriptors it could have, would be busy with it for minutes. It is what systemd allows.
MOST = 2**19
OPEN_MAX = 10_240  # what macOS' manual says to ask for where the hard limit is none
# For all that is neither a connection nor a handler's file for one: the log, DNS, the threads that sync folders.
KEPT = 64
# For the files of handlers: one for each connection, up to so many.
FILES = 4096
# asyncio accepts so many in one turn (its `backlog`), and from there to the close of one that is refused it takes
# four turns. uvloop 0.23 accepts one in a turn.
BATCH = 16
TURNS = 5


@cache
def raise_limit() -> None:
    """Raise the soft limit to the hard one, once in a process: who lowers it afterwards has a reason."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    for wanted in (most, min(most, OPEN_MAX)):
        if soft != resource.RLIM_INFINITY and wanted > soft:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def limit() -> int | None:
    """Return how many descriptors the process may have; None where that has no end, as on Windows."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Descriptors:
    """How many descriptors the connections of a server may take.

    room: POSIX gives the lowest number that is free, so a new connection's own number tells how full the table is,
    whoever fills it; from this number on one is refused. most: so many connections at once, for a handler may open a
    file for each when all are there.
    """

    __slots__ = ("limit", "most", "room")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.room = self.most = sys.maxsize

    def measure(self, listeners: int) -> None:
        """Find out how many there are, and share them out for a server with so many listeners."""
        raise_limit()
        self.limit = limit()
        if self.limit is not None:
            room = self.limit - min(KEPT, self.limit // 4) - listeners * self.batch() * TURNS
            self.room = max(room, self.limit // 4)  # absurdly low: better a few connections than none
            self.most = self.room - min(self.room // 2, FILES)

    def batch(self) -> int:
        """Return how many connections asyncio may accept in one turn."""
        return BATCH if self.limit is None else max(1, min(BATCH, self.limit // 64))


def let_wait(server: asyncio.Server, backlog: int) -> None:
    """Let so many connections wait to be accepted, where asyncio was told a ``batch``: for it both are one number."""
    for sock in server.sockets:
        with sock.dup() as same:
            same.listen(backlog)
