"""A message that is kept until it is whole: in memory while it is small, then in a file without a name.

For targets that cannot take back what they have begun. Nothing of it outlives the process, not even ``kill -9``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterable, Iterator
from contextlib import suppress

from pillarbox.deliver.disk import Steps, WithLF

__all__ = ["BUFFER", "Spool"]

BUFFER = 256 * 1024  # bytes in memory, for each message
_BLOCK = 64 * 1024


class Spool:
    """One whole message; ``fill`` it, read it in threads as often as needed, ``close`` it through ``Steps.end``."""

    def __init__(self, steps: Steps, *, lf: bool) -> None:
        self._steps = steps
        self._lf = WithLF() if lf else None
        # Closed by ``close``: it lives longer than any one block of code.
        self._file = tempfile.SpooledTemporaryFile(max_size=BUFFER)  # noqa: SIM115
        self.size = 0

    async def fill(self, message: AsyncIterable[bytes]) -> None:
        """Take the message up to its end; raise what it raises, and Reject where the disk has no room."""
        waiting: list[bytes] = []
        amount = 0
        async for block in message:
            waiting.append(block)
            amount += len(block)
            if amount >= BUFFER:
                await self._steps.run(self._write, b"".join(waiting))
                waiting, amount = [], 0
        # What is small stays in memory, and needs no thread.
        last = self._converted(b"".join(waiting)) + (self._lf.rest() if self._lf else b"")
        if self.size + len(last) < BUFFER:
            self._append(last)
        else:
            await self._steps.run(self._append, last)

    def _converted(self, block: bytes) -> bytes:
        return self._lf(block) if self._lf else block

    def _write(self, block: bytes) -> None:
        self._append(self._converted(block))

    def _append(self, block: bytes) -> None:
        self._file.write(block)
        self.size += len(block)

    def blocks(self) -> Iterator[bytes]:
        """Give the message from its beginning."""
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            yield block

    def descriptor(self) -> int:
        """Return a descriptor of its own, at the beginning, that can only be read; the caller closes it."""
        self._file.rollover()
        self._file.flush()
        try:
            return os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:  # only Linux opens a file anew that has no name: elsewhere a copy
            return self._copy()

    def _copy(self) -> int:
        with tempfile.TemporaryFile() as copy:
            self._file.seek(0)
            shutil.copyfileobj(self._file, copy)
            copy.seek(0)
            return os.dup(copy.fileno())

    def close(self) -> None:
        """Forget the message."""
        with suppress(OSError):  # a full disk says so once more
            self._file.close()
