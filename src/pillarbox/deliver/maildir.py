"""``maildir:PATH``: one file for each message, in ``new/`` only when it is whole and on the disk.

The format and its rules are D. J. Bernstein's (https://cr.yp.to/proto/maildir.html), quoted below. All that
touches the disk runs in threads; a message up to ``BUFFER`` bytes costs one change of thread.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pillarbox import ConfigurationError, Reject, log_fields
from pillarbox.deliver import Target, settled, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pillarbox.deliver import Message

__all__ = ["Maildir"]

BUFFER = 256 * 1024  # bytes that wait for the disk, for each message
STALE = 36 * 3600.0  # seconds

_log = logging.getLogger("pillarbox.deliver")
_deliveries = itertools.count(1)
_Result = TypeVar("_Result")

# RFC 5321 4.2.3: "452 Requested action not taken: insufficient system storage", and RFC 3463 3.4 "X.3.1 Mail system
# full"; all else is "451 Requested action aborted: error in processing" with "X.3.0 Other or undefined mail system
# status". What exactly failed is for the log only.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Maildir(Target):
    """The target ``maildir:PATH``; a relative path starts at the working directory, ``~`` is the home directory."""

    def __init__(self, url: str, settings: Any = None) -> None:
        super().__init__(url, settings)
        self.path = _path(url)
        self.tmp, self.new, self.cur = (self.path / name for name in ("tmp", "new", "cur"))

    async def start(self) -> None:
        """Make the folders where they are missing, and clean ``tmp/`` of what no delivery can still be writing."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        try:
            _make_folders(self.path, (self.tmp, self.new, self.cur))
            _must_be_writable((self.tmp, self.new))
            _clean(self.tmp)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigurationError(f"{self.url}: {error.filename or self.path}: {reason}") from error

    async def deliver(self, message: Message) -> str:
        """Return the file's path in ``new/`` when file and folder entry are on the disk."""
        return await _Delivery(self, message).run()


class _Delivery:
    """One message for a Maildir: a file in ``tmp/`` that moves to ``new/`` when it is whole."""

    def __init__(self, target: Maildir, message: Message) -> None:
        self._target = target
        self._message = message
        self._file = _File(target, binary=message.session.envelope.body_type == "binarymime")

    async def run(self) -> str:
        waiting: list[bytes] = []
        octets = 0
        try:
            async for block in self._message:
                waiting.append(block)
                octets += len(block)
                if octets >= BUFFER:
                    await self._on_disk(self._file.write, b"".join(waiting))
                    waiting.clear()
                    octets = 0
            return await self._on_disk(self._file.finish, b"".join(waiting))
        except BaseException:
            # A thread may still be writing; even if this wait is cut off, it does its work.
            await settled(asyncio.to_thread(self._file.remove))
            raise

    async def _on_disk(self, work: Callable[[bytes], _Result], chunk: bytes) -> _Result:
        try:
            # A thread cannot be cancelled: shielded, it ends in peace, and removing the file waits for it.
            return await asyncio.shield(asyncio.to_thread(work, chunk))
        except OSError as error:
            raise self._reject(error) from error

    def _reject(self, error: OSError) -> Reject:
        fields = log_fields(self._message.session, "deliver", "deliver")
        _log.error("cannot store a message in %s: %s", self._target.url, error, extra=fields)
        if error.errno in _FULL:
            return Reject(452, "Error: insufficient system storage, try again later", enhanced="4.3.1")
        return unavailable()


class _File:
    """The message's file: its methods run in threads, one at a time, and nothing is written after ``remove``."""

    def __init__(self, target: Maildir, *, binary: bool) -> None:
        self._target = target
        self._binary = binary  # a CRLF in it may be no line's end: nothing is changed (RFC 3030 3)
        self._one_at_a_time = threading.Lock()
        self._path = target.tmp / _unique_name()
        self._descriptor = -1
        self._ends_with_cr = False
        self._removed = False

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        with self._one_at_a_time:
            self._append(chunk)

    def finish(self, chunk: bytes) -> str:
        """Append the last chunk, make the file durable and move it to ``new/``."""
        with self._one_at_a_time:
            self._append(chunk)
            if self._ends_with_cr:
                _write_all(self._descriptor, b"\r")
            os.fsync(self._descriptor)
            self._close()
            # The name is this delivery's alone, so nothing is ever replaced. Unlike link and unlink, which the format's
            # text describes, rename never shows the message twice, and works where there are no links.
            self._path = self._path.rename(self._target.new / self._path.name)
            _sync_folder(self._target.new)
            return str(self._path)

    def remove(self) -> None:
        """Remove the file, wherever it is by now: nobody was told that the message is here."""
        with self._one_at_a_time:
            self._removed = True
            with suppress(OSError):  # a disk that failed once may do it again
                self._close()
            with suppress(OSError):  # it was never made, or a reader has taken it
                self._path.unlink()

    def _append(self, chunk: bytes) -> None:
        if self._removed:
            raise OSError(errno.ECANCELED, "the delivery was given up")
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags, 0o600)
        _write_all(self._descriptor, chunk if self._binary else self._with_lf(chunk))

    def _with_lf(self, chunk: bytes) -> bytes:
        """Turn CRLF into LF; a CR at the end of a chunk waits for the next one."""
        if self._ends_with_cr:
            chunk = b"\r" + chunk
        self._ends_with_cr = chunk.endswith(b"\r")
        if self._ends_with_cr:
            chunk = chunk[:-1]
        return chunk.replace(b"\r\n", b"\n")

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


# --- Names and folders


def _path(url: str) -> Path:
    path = url.partition(":")[2]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host:
            raise ConfigurationError(f"{url!r}: a Maildir is on this host: write maildir:PATH or maildir:///PATH")
        path = slash + path
    if not path or "\0" in path:
        raise ConfigurationError(f"{url!r} names no folder: write maildir:PATH, for example maildir:Maildir")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{url!r}: there is no such home directory") from error


def _unique_name() -> str:
    # "A unique name has three pieces, separated by dots. On the left is the result of time() […]. On the right is the
    # result of gethostname()." In the middle: "Mn, where n is […] the microsecond counter […]. Pn, where n is […] the
    # process ID. Qn, where n is […] the number of deliveries made by this process."
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    # The format: "(To deal with invalid host names, replace / with \057 and : with \072.)"
    host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
    return f"{seconds}.M{microseconds}P{os.getpid()}Q{next(_deliveries)}.{host}"


def _make_folders(path: Path, folders: tuple[Path, ...]) -> None:
    for folder in (*reversed(path.parents), path, *folders):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)  # a message is only as durable as the folder that holds it


def _must_be_writable(folders: tuple[Path, ...]) -> None:
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _clean(tmp: Path) -> None:
    # A program that reads or delivers "should delete files in tmp that haven't been accessed in 36 hours". Many file
    # systems no longer note each access, so the time of the last write counts too.
    oldest = time.time() - STALE
    for entry in tmp.iterdir():
        with suppress(OSError):  # another program may clean at the same time; a folder is none of ours
            status = entry.lstat()
            if max(status.st_atime, status.st_mtime) < oldest:
                entry.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders; its file systems log their own changes
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
