"""Lines of several processes on one pipe: each whole, also where it is long and the reader is slow.

The GNU C library's manual, of more than ``PIPE_BUF``: "Reading or writing a larger amount of data may not be atomic;
for example, output data from other processes sharing the descriptor may be interspersed."
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["nobody_else_writes", "pipe_of"]

# A byte far behind what is ever written: stdout: locks the whole of its file, and to give up that lock is not for us.
_BYTE = 2**40


def pipe_of(stream: Any) -> int | None:
    """Return the descriptor of a stream that is a pipe or a socket, else None.

    Nothing else needs a lock, or could have one: a file of all the host, as the null device, anybody may lock.
    """
    with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor, or a closed one
        descriptor: int = stream.fileno()
        mode = os.fstat(descriptor).st_mode
        if fcntl is not None and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return descriptor
    return None


@contextmanager
def nobody_else_writes(pipe: int) -> Iterator[None]:
    """Keep out the other processes that ask this way; where the system knows no lock for a pipe, do without."""
    locked = _locked(pipe)
    try:
        yield
    finally:
        if locked:
            fcntl.lockf(pipe, fcntl.LOCK_UN, 1, _BYTE)


def _locked(pipe: int) -> bool:
    with suppress(OSError):
        fcntl.lockf(pipe, fcntl.LOCK_EX, 1, _BYTE)
        return True
    return False
