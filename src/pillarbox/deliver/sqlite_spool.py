"""A message on its way to where it can only be written whole: small in memory, larger in a file without a name.

The file is in the folder that the message will be in: a folder for temporary files is often in memory too. It has no
name, so nothing of it remains, whatever becomes of the program. Nothing here is durable, and need not be.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["BUFFER", "Spool"]

BUFFER = 256 * 1024  # bytes in memory, for each message


class Spool:
    """Takes blocks on the event loop, and gives them back in a thread. What fails raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._waiting = bytearray()  # no list: of blocks of an octet each it would take forty times as much
        self._file: IO[bytes] | None = None
        self._closed = False
        self._one_at_a_time = threading.Lock()

    async def write(self, block: bytes) -> None:
        """Take the next bytes; from time to time wait until the file has them."""
        self._waiting += block
        self.size += len(block)
        if len(self._waiting) > BUFFER:
            taken, self._waiting = self._waiting, bytearray()
            # A thread cannot be cancelled: shielded, it ends in peace, and ``close`` waits for it.
            await asyncio.shield(asyncio.to_thread(self._append, taken))

    @property
    def in_memory(self) -> bool:
        """Whether the whole message is in memory: then there is nothing to close."""
        return self.size <= BUFFER

    async def close(self) -> None:
        """Close the file, when no thread works on it any more."""
        await asyncio.shield(asyncio.to_thread(self._close))

    # --- In a thread, once all is written

    def read(self, limit: int) -> bytes:
        """Return the first bytes."""
        with self._one_at_a_time:
            if self._file is None:
                return bytes(self._waiting[:limit])
            self._file.seek(0)
            head = self._file.read(limit)
        return (head + self._waiting)[:limit]

    def blocks(self) -> Iterator[bytes]:
        """Give the message from its beginning."""
        place = 0
        while block := self._block_at(place):
            yield block
            place += len(block)
        yield bytes(self._waiting)

    def _block_at(self, place: int) -> bytes:
        with self._one_at_a_time:
            if self._file is None:
                return b""
            self._file.seek(place)
            return self._file.read(BUFFER)

    def _append(self, taken: bytearray) -> None:
        with self._one_at_a_time:
            if self._closed:
                raise OSError(errno.ECANCELED, "the delivery was given up")
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 - closed by ``close``
            view = memoryview(taken)
            while view:
                view = view[self._file.write(view) :]

    def _close(self) -> None:
        with self._one_at_a_time:
            self._closed = True
            if self._file is not None:
                self._file.close()
