"""How a users' file is changed: as a whole and durably, by one program at a time; nobody ever reads half of it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pillarbox.program.paths import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["change", "lines_of"]

PATIENCE = 10.0  # seconds to wait for another program that changes the file
_MODE = 0o600
_NEVER_OTHERS = 0o660  # what an existing file may keep of its mode


def lines_of(path: Path) -> list[str]:
    """Return a file's lines; what is no UTF-8 comes back as it was when it is written. Raises OSError."""
    # Some editors put a mark of the byte order in front: it is no part of a line.
    content = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return content.removesuffix("\n").split("\n") if content else []


def change(path: Path, edit: Callable[[list[str]], Sequence[str]], *, make: bool = False) -> None:
    """Put in place of a file what ``edit`` makes of its lines; ``make`` it where there is none.

    Owner, group and what its owner and group may do stay as they are; a new file is for its owner alone. Raises
    OSError, TimeoutError where another program keeps the file locked, and what ``edit`` raises: then nothing changes.
    """
    real = Path(os.path.realpath(path))  # not the symbolic link is replaced, but what it leads to
    is_new = not real.exists()
    with _locked(real, make=make) as status:
        try:
            before = lines_of(real)
            after = list(edit(before))
            if after != before:
                _replace(real, "".join(f"{line}\n" for line in after), status)
        except BaseException:
            if is_new and not status.st_size:  # made here; who waits for the lock makes it again
                real.unlink(missing_ok=True)
            raise


@contextmanager
def _locked(path: Path, *, make: bool) -> Iterator[os.stat_result]:
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), _MODE)
        try:
            _lock(descriptor, deadline)
            status = os.fstat(descriptor)
            # Whoever had the lock before may have put another file in its place.
            if _is_at(path, status):
                yield status
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another program is changing it") from None
            time.sleep(0.02)
        else:
            return


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def _replace(path: Path, content: str, status: os.stat_result) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & _NEVER_OTHERS)
            file.write(content.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)
