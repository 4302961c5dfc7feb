"""One mbox file, locked: a message is appended whole and durable, or the file is as long as it was.

Local programs lock such a file in two ways at once, and each of them must hold: ``fcntl``, and a file beside it whose
name ends in ``.lock``. Ours says who holds it and how long the mailbox was: what ``kill -9`` has left half-written is
cut off by whoever finds the lock next, until the host starts anew.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from pillarbox import log_fields
from pillarbox.deliver.disk import resolved, write_all
from pillarbox.program.paths import sync_folder

__all__ = ["LOCK", "LONGEST_SUFFIX", "Busy", "MboxFile"]

LOCK = ".lock"
LONGEST_SUFFIX = "..pillarbox"  # of the names beside a mailbox
STALE = 300.0  # seconds, of a lock that does not say who holds it: what liblockfile waits
_BLOCK = 64 * 1024
_UNKNOWN = "-"
_OWNER = re.compile(r"(\d+)(?::(\S+))?\s*(?:pillarbox (\d+) (\d+) (\S+)\s)?")

_log = logging.getLogger("pillarbox.deliver")
# The files that this process has open: a lock of fcntl is the process's, and closing any descriptor gives it up.
_open_files: set[Path] = set()
_guard = threading.Lock()


class Busy(Exception):
    """Another program has the file; it is worth to try again soon."""


class MboxFile:
    """An open file with both locks, from ``open`` to ``close``; all it does blocks, and raises OSError."""

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self._descriptor, self._made = _open(path, create=create)
        self._lock = path.with_name(path.name + LOCK)
        self._lock_number: int | None = None  # the inode of our lock
        self._end: int | None = None  # where the file ended before we wrote

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Self:
        """Open the file and lock it; raise Busy at once where someone else has it."""
        path = resolved(path.parent) / path.name
        with _guard:
            if path in _open_files:
                raise Busy
            _open_files.add(path)
        try:
            file = cls(path, create=create)
        except BaseException:
            _open_files.discard(path)
            raise
        try:
            # Debian policy 11.6: "To avoid deadlocks, a program should use fcntl() first and dot locking after this,
            # or alternatively implement the two locking methods in a non blocking way." Here it is both.
            file._lock_descriptor()
            if file._made:
                sync_folder(path.parent)  # now: whoever writes the first message may be another
            file._clear_stale_lock()
            file._make_lock()
        except BaseException:
            file.close()
            raise
        return file

    def _lock_descriptor(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise Busy from error
            raise
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EINVAL, "it is no regular file with one name", str(self.path))
        with suppress(FileNotFoundError):
            if self.path.lstat().st_ino == status.st_ino:
                return
        raise Busy  # another program has put a new file in its place: lock that one

    # --- The lock beside it

    def _make_lock(self) -> None:
        """Make it under another name first, so that it never stands there without what it says."""
        own = self.path.with_name(f".{self.path.name}.pillarbox")
        own.unlink(missing_ok=True)  # a killed process's; nobody else has the fcntl lock
        end = self._size()
        number = os.fstat(self._descriptor).st_ino
        try:
            content = f"{os.getpid()}:{socket.gethostname()}\npillarbox {number} {end} {_boot()}\n"
            with own.open("xb") as file:
                file.write(content.encode())
            try:
                self._lock.hardlink_to(own)
            except FileExistsError as error:
                raise Busy from error
            self._lock_number = own.stat().st_ino
        finally:
            own.unlink(missing_ok=True)
        if self._size() != end:  # a program that has only this lock was still at it
            raise Busy

    def _clear_stale_lock(self) -> None:
        """Remove the lock of a process that is gone, and cut off what it had not finished."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, "rb") as file:
            content, age = file.read(1024).decode("utf-8", "replace"), time.time() - os.fstat(descriptor).st_mtime
        owner = _OWNER.match(content)
        if owner and owner[3]:
            # One of ours, and we have the fcntl lock: so its maker has not, and is gone. Where the host went with it,
            # the lock's removal may not have come to the disk, while the message had, and was acknowledged.
            if int(owner[3]) == os.fstat(self._descriptor).st_ino and owner[5] == _boot():
                self._cut_off(int(owner[4]))
        elif not (_is_gone(int(owner[1]), owner[2]) if owner and int(owner[1]) else age > STALE):
            raise Busy
        self._lock.unlink(missing_ok=True)

    def _cut_off(self, end: int) -> None:
        """Shorten the file to where it ended before a process was killed, if nobody has appended to it since."""
        rest = self._size() - end
        if rest > 0 and not self._another_message_after(end):
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
            _log.warning(
                "%s: cut off %d bytes of a message whose delivery was killed",
                self.path,
                rest,
                extra=log_fields(None, "deliver", "deliver"),
            )

    def _another_message_after(self, end: int) -> bool:
        # A message of ours begins with at most two line ends and has no other such line in it.
        separator, position, kept = b"\n\nFrom ", end + 1, b""
        while block := os.pread(self._descriptor, _BLOCK, position):
            if separator in kept + block:
                return True
            position += len(block)
            kept = block[-len(separator) :]
        return False

    # --- The message

    def append(self, blocks: Iterable[bytes]) -> None:
        """Append a message that begins with its From_ line and ends with an empty line, and make it durable."""
        end = self._end = self._size()
        os.lseek(self._descriptor, end, os.SEEK_SET)
        write_all(self._descriptor, self._gap(end))
        for block in blocks:
            write_all(self._descriptor, block)
        os.fsync(self._descriptor)

    def _gap(self, end: int) -> bytes:
        """Return what is missing to the empty line that a From_ line needs before it."""
        tail = os.pread(self._descriptor, 2, max(0, end - 2))
        if end == 0 or tail == b"\n\n":
            return b""
        return b"\n" if tail.endswith(b"\n") else b"\n\n"

    def take_back(self) -> None:
        """Leave the file as it was found; where the disk does not let us, keep the lock, which says how long it was."""
        try:
            if self._end is not None:
                os.ftruncate(self._descriptor, self._end)
                os.fsync(self._descriptor)
            if self._made and self._size() == 0:
                self.path.unlink()
        except OSError:
            self._lock_number = None

    def close(self) -> None:
        """Give up both locks."""
        with suppress(OSError):
            if self._lock_number is not None and self._lock.stat().st_ino == self._lock_number:
                self._lock.unlink()
                if _boot() == _UNKNOWN:
                    sync_folder(self.path.parent)  # or after a power cut it might be there again, and be believed
        os.close(self._descriptor)
        _open_files.discard(self.path)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def _open(path: Path, *, create: bool) -> tuple[int, bool]:
    # No link is followed, or who may write into the folder could have mail appended to any file; and a pipe must not
    # hold us up.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        if not create:
            raise
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError as error:
        raise Busy from error


@cache
def _boot() -> str:
    """Return what tells this start of the host from all others, where the system (Linux) says it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _UNKNOWN


def _is_gone(process: int, host: str | None) -> bool:
    """Whether a lock's holder cannot be alive; liblockfile writes no host."""
    if host is not None and host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
