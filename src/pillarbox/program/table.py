"""Names with a row of numbers each, in memory that several processes have together; a row is changed under a lock.

The lock is the kernel's on a byte of the file behind the memory, so that it ends with the process that has it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOCKED_AT_MOST", "NEIGHBOURS", "Place", "Table"]

# A name has its row among so many; where none of them can be had there is none for it. With a quarter as many names as
# rows that comes to less than one in a million of them, with half as many to one in 1,300.
NEIGHBOURS = 16
# A lock is held for some microseconds. Who has it for longer (seconds) was stopped meanwhile, and is not waited for.
LOCKED_AT_MOST = 0.02

# For so many names a process remembers where they may be.
_REMEMBERED = 4096

# Where a name may be: among which neighbours, and by what it is known there.
Place = tuple[int, int]

_SECRET = 16
_NUMBER = 8  # octets


class Table:
    """So many rows of numbers: unsigned (Q) or of floating point (d). Raise OSError where there is no memory.

    descriptor: of the table that another process has made; None: make it, with zeros. What is never written takes no
    memory. A row keeps its name until another one takes it.
    """

    def __init__(self, rows: int, columns: int, kind: Literal["Q", "d"], descriptor: int | None = None) -> None:
        size = _SECRET + (1 + columns) * rows * _NUMBER
        self.descriptor = _unnamed_file(size) if descriptor is None else descriptor
        view = memoryview(mmap.mmap(self.descriptor, size))
        if descriptor is None:
            view[:_SECRET] = os.urandom(_SECRET)
        # No name is like another by chance (64 bits), and as it is secret also by nobody's intention.
        self._secret = bytes(view[:_SECRET])
        self._neighbourhoods = rows // NEIGHBOURS
        tags, *numbers = (view[begin:end] for begin, end in pairwise(range(_SECRET, size + 1, rows * _NUMBER)))
        self._tags = tags.cast("Q")
        self.columns: list[memoryview[Any]] = [column.cast(kind) for column in numbers]

        self.place = lru_cache(_REMEMBERED)(self._place)

    def _place(self, name: str) -> Place:
        """Return where a name may be."""
        digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=12, key=self._secret).digest()
        return int.from_bytes(digest[8:], "big") % self._neighbourhoods, int.from_bytes(digest[:8], "big") or 1

    def row(self, place: Place) -> int | None:
        """Return the row of a name that has one."""
        first, tag = place[0] * NEIGHBOURS, place[1]
        tags = self._tags[first : first + NEIGHBOURS].tolist()
        return first + tags.index(tag) if tag in tags else None

    def taken(self, place: Place, cost: Callable[[int], float | None]) -> int | None:
        """Take a row for a name that has none, and return it; None where none can be had. With the lock.

        cost: what is lost with what a row holds, None where it must stay; the first without any loss is taken, or that
        with the least.
        """
        first = place[0] * NEIGHBOURS
        best: tuple[float, int] | None = None
        for row in range(first, first + NEIGHBOURS):
            lost = cost(row)
            if lost is not None and (best is None or lost < best[0]):
                best = lost, row
                if not lost:
                    break
        if best is None:
            return None
        self._tags[best[1]] = place[1]
        return best[1]

    # --- The lock

    def lock(self, number: int) -> None:
        """Have for this process alone, until ``unlock``, what has this number by agreement."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            self._wait_for(number)

    def _wait_for(self, number: int) -> None:
        # Not LOCK_EX alone: that would wait for ever where the other process is stopped by SIGSTOP.
        end = time.monotonic() + LOCKED_AT_MOST
        while time.monotonic() < end:
            time.sleep(0)  # the other one may need this very CPU
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                continue
            return

    def unlock(self, number: int) -> None:
        """Give back what was locked."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, number)


def _unnamed_file(size: int) -> int:
    """Return the descriptor of a file without a name, in memory where the system has such and allows it."""
    try:
        descriptor = os.memfd_create("pillarbox")
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
