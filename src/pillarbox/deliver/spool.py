"""A message that is kept until it is whole: in memory while it is small, then in a file without a name.

For targets that cannot take back what they have begun, or that need the whole message at once. Nothing of it outlives
the process, not even ``kill -9``; so nothing here is durable, and need not be.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from pillarbox.deliver.disk import Steps, WithLF, write_all

__all__ = ["BLOCK", "BUFFER", "Spool"]

BUFFER = 256 * 1024  # octets in memory, for each message
BLOCK = 192 * 1024  # octets of one read: three go into it without rest, so base64 can be made block by block


class Spool:
    """The octets of one message: ``fill`` it and read it as often as needed, in an ``async with`` of it that closes it.

    folder: where the file is, if not with the temporary ones, which are often in memory too. lf: CRLF becomes LF.
    """

    def __init__(self, steps: Steps, folder: Path | None = None, *, lf: bool = False) -> None:
        self._steps = steps
        self._folder = folder
        self._lf = WithLF() if lf else None
        self._memory = bytearray()  # no list: of blocks of an octet each it would take forty times as much
        self._file: IO[bytes] | None = None
        self._stored = 0
        self._one_at_a_time = threading.Lock()  # of those that read or write the file

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._steps.end_soon(self.close)
        else:
            await self._steps.end(self.close)

    @property
    def size(self) -> int:
        """How many octets there are."""
        return self._stored + len(self._memory)

    @property
    def on_disk(self) -> bool:
        """Whether reading may wait for the disk, and belongs in a thread."""
        return self._file is not None

    async def fill(self, message: AsyncIterable[bytes]) -> None:
        """Take the message up to its end; raise what it raises, and Reject where the disk has no room."""
        async for block in message:
            await self.write(block)
        await self.finish()

    async def write(self, block: bytes) -> None:
        """Take the next octets; from time to time wait until the file has them."""
        self._memory += block
        if len(self._memory) >= BUFFER:
            await self._steps.run(self._store)

    async def finish(self) -> None:
        """Let the octets be read. What is small stays in memory, and needs no thread."""
        if self._file is None:
            self._finish()
        else:
            await self._steps.run(self._finish)

    # --- In threads, once it is filled; these raise OSError, also when the delivery has been given up

    def read(self, offset: int, length: int) -> bytes:
        """Return octets; fewer at the end."""
        if self._file is None:
            octets = bytes(memoryview(self._memory)[offset : offset + length])
            self._steps.go_on()  # else they may be those of no message any more
            return octets
        with self._one_at_a_time:
            self._steps.go_on()
            self._file.seek(offset)
            return self._file.read(length)

    def blocks(self) -> Iterator[bytes]:
        """Give the message from its beginning, in blocks of ``BLOCK`` and a last one."""
        for offset in range(0, self.size, BLOCK):
            yield self.read(offset, BLOCK)

    def descriptor(self) -> int:
        """Return a descriptor of its own, at the beginning, that can only be read; the caller closes it."""
        if self._file is None:
            self._store()
        assert self._file is not None  # noqa: S101 - for the type
        try:
            return os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:  # only Linux opens a file anew that has no name: elsewhere a copy
            return self._copy()

    def _copy(self) -> int:
        assert self._file is not None  # noqa: S101 - for the type
        with tempfile.TemporaryFile(dir=self._folder) as copy, self._one_at_a_time:
            self._file.seek(0)
            shutil.copyfileobj(self._file, copy)
            copy.seek(0)
            return os.dup(copy.fileno())

    def close(self) -> None:
        """Forget the message."""
        self._memory = bytearray()  # whoever still reads it, in a thread, keeps the old one
        with self._one_at_a_time, suppress(OSError):  # a full disk says so once more
            if self._file is not None:
                self._file.close()

    def _store(self) -> None:
        octets, self._memory = bytes(self._memory), bytearray()
        if self._lf:
            octets = self._lf(octets)
        with self._one_at_a_time:
            if self._file is None:
                self._file = self._open()
            write_all(self._file.fileno(), octets)
        self._stored += len(octets)

    def _open(self) -> IO[bytes]:
        return tempfile.TemporaryFile(buffering=0, dir=self._folder)

    def _finish(self) -> None:
        if self._lf:
            self._memory = bytearray(self._lf(bytes(self._memory)) + self._lf.rest())
            self._lf = None
        if self._file is not None:
            self._store()
