"""Where one message waits for its request: in memory up to ``MEMORY`` octets, beyond that in a file without a name.

Of a file without a name nothing is left when the process dies. Only a ``NamedSpool``, for a receiver that takes the
file itself, shows its file, and only from ``finish`` to ``close``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BLOCK", "MEMORY", "NAME_START", "NamedSpool", "Spool", "remove_leftovers"]

MEMORY = 256 * 1024  # octets that wait for the disk, for each message
BLOCK = 192 * 1024  # octets of one read: three go into it without rest, so base64 can be made block by block
NAME_START = "msg_"  # of the names of all files that a NamedSpool makes
_PARTIAL, _WHOLE = ".part", ".eml"

_Result = TypeVar("_Result")


class Spool:
    """The octets of one message: write them, finish, read them at any place, close. What fails raises OSError."""

    def __init__(self, folder: Path | None = None) -> None:
        self.size = 0
        self._folder = folder
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._memory = b""
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._touched = False  # the disk may hold something of this message
        self._closed = False
        self._one_at_a_time = threading.Lock()  # of the threads at work on the file

    @property
    def sha256(self) -> str:
        """The message's SHA-256 in hexadecimal digits, after ``finish``."""
        return self._digest.hexdigest()

    @property
    def on_disk(self) -> bool:
        """Whether reading may wait for the disk, and belongs in a thread."""
        return self._file is not None

    async def write(self, block: bytes) -> None:
        """Take the next octets; from time to time wait until the file has them."""
        self._waiting.append(block)
        self._waiting_size += len(block)
        self.size += len(block)
        if self._waiting_size > MEMORY:
            await self._on_disk(self._store, self._taken())

    async def finish(self) -> None:
        """Let the octets be read."""
        if self._touched:
            await self._on_disk(self._store, self._taken())
        else:
            self._memory = self._taken()
            self._digest.update(self._memory)

    def read(self, offset: int, length: int) -> bytes:
        """Return octets of the finished message; see ``on_disk``."""
        if self._file is None:
            return self._memory[offset : offset + length]
        with self._one_at_a_time:
            self._file.seek(offset)
            return self._file.read(length)

    async def close(self) -> None:
        """Leave nothing behind, also if a thread is still writing."""
        if self._touched:
            await self._on_disk(self._close)

    def _taken(self) -> bytes:
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_size = 0
        return taken

    async def _on_disk(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        self._touched = True
        # A thread cannot be cancelled: shielded, it ends in peace, and ``close`` waits for it.
        return await asyncio.shield(asyncio.to_thread(work, *arguments))

    # --- In threads, one at a time

    def _store(self, chunk: bytes) -> None:
        with self._one_at_a_time:
            if self._closed:
                return
            if self._file is None:
                self._file = self._open()
            self._file.write(chunk)
            self._file.flush()
            self._digest.update(chunk)

    def _open(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="pillarbox-", dir=self._folder)

    def _close(self) -> None:
        with self._one_at_a_time:
            self._closed = True
            if self._file is not None:
                with suppress(OSError):  # a disk that failed once may do it again
                    self._file.close()


class NamedSpool(Spool):
    """A spool whose finished file is ``folder/name.eml``, whole and on the disk; another process may move it away.

    The lock on the file says that its process lives. POSIX only.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.path = folder / (name + _WHOLE)
        self._shown = folder / (name + _PARTIAL)

    async def finish(self) -> None:
        """Show the file under its name once it is on the disk."""
        await self._on_disk(self._store, self._taken())
        await self._on_disk(self._show)

    def _open(self) -> IO[bytes]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        while True:
            file = os.fdopen(os.open(self._shown, flags, 0o640), "r+b")
            try:
                _lock(file, wait=True)
            except OSError:  # a file system without locks
                self._shown.unlink()
                file.close()
                raise
            if _is_at(file, self._shown):  # else `remove_leftovers` of another process came before the lock
                return file
            file.close()

    def _show(self) -> None:
        with self._one_at_a_time:
            if self._closed or self._file is None:
                return
            os.fsync(self._file.fileno())
            # The name holds the session's and the transaction's: nothing is replaced.
            self._shown = self._shown.rename(self.path)
            _sync_folder(self.path.parent)

    def _close(self) -> None:
        with self._one_at_a_time:
            self._closed = True
            if self._file is not None:
                with suppress(OSError):  # the receiver has taken it
                    self._shown.unlink()
                with suppress(OSError):
                    self._file.close()


def remove_leftovers(folder: Path) -> None:
    """Remove the files of processes that no longer live: no request stands behind them any more."""
    for entry in folder.iterdir():
        if entry.name.startswith(NAME_START) and entry.suffix in (_PARTIAL, _WHOLE):
            with suppress(OSError), entry.open("rb") as file:  # another process cleans too, or this one lives
                _lock(file, wait=False)
                entry.unlink()


def _lock(file: IO[bytes], *, wait: bool) -> None:
    import fcntl  # Windows has none

    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
