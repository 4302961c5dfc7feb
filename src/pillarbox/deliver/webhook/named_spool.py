"""The files of ``format = "reference"``: a message under a name, for a receiver that takes the file itself.

A file is shown from ``finish`` to ``close`` only. What a process that was killed has left, the next start removes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from pillarbox.deliver.disk import Steps
from pillarbox.deliver.spool import Spool
from pillarbox.program.paths import sync_folder

__all__ = ["NAME_START", "NamedSpool", "remove_leftovers"]

NAME_START = "msg_"  # of the names of all files that a NamedSpool makes
_PARTIAL, _WHOLE = ".part", ".eml"


class NamedSpool(Spool):
    """A spool whose finished file is ``folder/name.eml``, whole and on the disk; another process may move it away.

    The lock on the file says that its process lives. POSIX only.
    """

    def __init__(self, steps: Steps, folder: Path, name: str) -> None:
        super().__init__(steps, folder)
        self.path = folder / (name + _WHOLE)
        self._shown = folder / (name + _PARTIAL)

    async def finish(self) -> None:
        """Show the file under its name once it is on the disk."""
        await self._steps.run(self._show)

    def _show(self) -> None:
        self._store()
        assert self._file is not None  # noqa: S101 - for the type
        os.fsync(self._file.fileno())
        # The name holds the session's and the transaction's: nothing is replaced.
        self._shown = self._shown.rename(self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Remove the file, if the receiver has not taken it."""
        if self._file is not None:
            with suppress(OSError):
                self._shown.unlink()
        super().close()

    def _open(self) -> IO[bytes]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        while True:
            file = os.fdopen(os.open(self._shown, flags, 0o640), "r+b", buffering=0)
            try:
                _lock(file, wait=True)
            except OSError:  # a file system without locks
                self._shown.unlink()
                file.close()
                raise
            if _is_at(file, self._shown):  # else `remove_leftovers` of another process came before the lock
                return file
            file.close()


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
