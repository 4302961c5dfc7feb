"""``maildir:PATH``: one file for each message, in ``new/`` only when it is whole and on the disk.

The format and its rules are D. J. Bernstein's (https://cr.yp.to/proto/maildir.html), quoted below. All that
touches the disk runs in threads; a message up to ``BUFFER`` bytes costs one change of thread.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from cachetools import LRUCache
from pydantic import ByteSize, Field

from pillarbox import Recipient, Reject, Session
from pillarbox.deliver import Message, Settings, Target
from pillarbox.deliver.disk import (
    Steps,
    Threads,
    WithLF,
    make_folders,
    must_be_writable,
    reason_of,
    refuses_all,
    resolved,
    unknown_mailbox,
    write_all,
)
from pillarbox.deliver.maildirquota import Quota
from pillarbox.deliver.template import PathTemplate
from pillarbox.program.paths import sync_folder

__all__ = ["Maildir"]

BUFFER = 256 * 1024  # bytes that wait for the disk, for each message
STALE = 36 * 3600.0  # seconds
KNOWN_FOLDERS = 10_000  # Maildirs that are known to be there and clean
FOLDERS = ("tmp", "new", "cur")

_deliveries = itertools.count(1)
# What the file system says where a file cannot have a second name: on another disk, none at all, or too many.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class MaildirSettings(Settings):
    """What stands beside ``url`` in the file."""

    separator: str = Field(default="+", max_length=1)  # between {mailbox} and what follows it
    create: bool = True  # make the folders of recipients that have none
    quota: ByteSize = ByteSize(0)  # bytes, for each Maildir
    quota_messages: int = Field(default=0, ge=0)


class Maildir(Target):
    """The target ``maildir:PATH``; a relative path starts at the working directory, ``~`` is the home directory."""

    Settings: ClassVar[type[Settings]] = MaildirSettings

    def __init__(self, url: str, settings: MaildirSettings | None = None) -> None:
        settings = settings or MaildirSettings()
        super().__init__(url, settings)
        self.paths = PathTemplate(url, separator=settings.separator)
        self.quota = Quota(settings.quota, settings.quota_messages)
        self._create = settings.create
        self._threads = Threads(url)
        self._ready: LRUCache[Path, None] = LRUCache(KNOWN_FOLDERS)
        self._ready_lock = threading.Lock()  # for deliveries' threads

    async def start(self) -> None:
        """Make the folders where they are missing, and clean ``tmp/`` of what no delivery can still be writing."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        path = self.paths.base
        try:
            make_folders(path)
            if self.paths.fixed is None:
                must_be_writable([path] if self._create else [])
            else:
                self._prepare(path)
                must_be_writable(path / name for name in ("tmp", "new"))
        except OSError as error:
            raise reason_of(self.url, path, error) from error

    def prepare(self, path: Path) -> None:
        """Make a recipient's folders where they are missing; nothing is made above what was there at the start."""
        with self._ready_lock:
            ready = self.paths.fixed is not None or path in self._ready
        if not ready:
            if not self.paths.base.is_dir():  # or a disk that is not mounted would be stored on the wrong one
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.paths.base))
            self._prepare(path)

    def _prepare(self, path: Path) -> None:
        if not self._create and self.paths.fixed is None and not (path / "new").is_dir():
            raise unknown_mailbox()
        for folder in (path / name for name in FOLDERS):
            make_folders(folder)
        _clean(path / "tmp")
        with self._ready_lock:
            self._ready[path] = None

    def forget(self, path: Path) -> None:
        """Look again whether the folders are there, before the next message."""
        with self._ready_lock:
            self._ready.pop(path, None)

    @property
    def verifies(self) -> bool:
        """Whether there is more than one Maildir, or a limit."""
        return self.paths.fixed is None or bool(self.quota)

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Refuse an address that has no Maildir or a full one."""
        path = self.paths.path(recipient, session)
        if (self._create or self.paths.fixed) and not self.quota:
            return
        announced = session.envelope.mail_from and session.envelope.mail_from.args.get("SIZE")
        await Steps(self.url, session, self._threads).run(self._verify, path, int(announced or 0))

    def _verify(self, path: Path, size: int) -> None:
        if not self._create and not (path / "new").is_dir():
            raise unknown_mailbox()
        if self.quota:
            self.quota.check(path, size, recount=False)

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        """Store the message once for each folder; in SMTP for all of them or none."""
        steps = Steps(self.url, message.session, self._threads)
        delivery = _Delivery(self, message, steps)
        try:
            await delivery.receive()
            return delivery.places()
        except BaseException:
            await steps.end(delivery.remove)
            raise


class _Delivery:
    """One message on its way into one or more Maildirs: a file in ``tmp/`` of the first, then a name in each ``new/``.

    Its methods but ``receive`` and ``places`` run in threads.
    """

    def __init__(self, target: Maildir, message: Message, steps: Steps) -> None:
        self._target = target
        self._message = message
        self._steps = steps
        # A message that came with BODY=BINARYMIME stays as it is: a CRLF in it may be no line's end (RFC 3030 3).
        self._lf = None if message.session.envelope.body_type == "binarymime" else WithLF()
        self._recipients: list[Path | Reject] = []  # each one's folder
        self._folders: list[Path] = []  # those that nothing has failed in yet
        self._refused: dict[Path, Reject] = {}
        self._stored: dict[Path, Path] = {}  # folder → file
        self._descriptor = -1
        self._opened = self._moved = False
        self._size = 0

    async def receive(self) -> None:
        """Take the message to its end, and return when it is durable."""
        waiting = bytearray()
        async for block in self._message:
            waiting += block
            if len(waiting) >= BUFFER:  # from time to time wait until the disk has them
                await self._steps.run(self._append, bytes(waiting))
                waiting.clear()
        await self._steps.run(self._finish, bytes(waiting))

    def places(self) -> str | Sequence[str | Reject]:
        """Return where each recipient has the message."""
        found = [each if isinstance(each, Reject) else self._place(each) for each in self._recipients]
        return found[0] if isinstance(found[0], str) and len(set(found)) == 1 else found

    def _place(self, folder: Path) -> str | Reject:
        return self._refused.get(folder) or str(self._stored[folder])

    # --- Folders

    def _choose_folders(self) -> None:
        for recipient in self._message.recipients:
            try:
                self._recipients.append(self._folder(recipient))
            except Reject as refusal:
                self._recipients.append(refusal)
                self._must_go_on(refusal)
        self._folders = list(dict.fromkeys(each for each in self._recipients if isinstance(each, Path)))
        self._in_each_folder(self._target.prepare)

    def _folder(self, recipient: Recipient) -> Path:
        paths = self._target.paths
        # Without symbolic links, where there can be several: two names of one folder are to get one file.
        return paths.fixed or resolved(paths.path(recipient, self._message.session))

    def _in_each_folder(self, step: Callable[[Path], None]) -> None:
        """Take a step in each folder; one where it fails is out, and in SMTP so are all."""
        for folder in self._folders:
            try:
                step(folder)
            except OSError as error:
                self._refused[folder] = self._steps.refusal(error)
            except Reject as refusal:
                self._refused[folder] = refusal
            if folder in self._refused:
                self._take_out(folder)
                self._must_go_on(self._refused[folder])
        self._folders = [folder for folder in self._folders if folder not in self._refused]

    def _must_go_on(self, refusal: Reject) -> None:
        refused = [each for each in self._recipients if isinstance(each, Reject) or each in self._refused]
        if refuses_all(refusal, self._message) or len(refused) == len(self._message.recipients):
            raise refusal

    # --- The file

    def _append(self, chunk: bytes) -> None:
        if not self._opened:
            self._open()
        self._write(self._lf(chunk) if self._lf else chunk)

    def _write(self, chunk: bytes) -> None:
        write_all(self._descriptor, chunk)
        self._size += len(chunk)

    def _open(self) -> None:
        self._choose_folders()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._home = self._folders[0]
        self._name = _unique_name()
        self._in_tmp = self._home.joinpath("tmp", self._name)
        self._descriptor = os.open(self._in_tmp, flags, 0o600)
        self._opened = True
        self._folders.append(self._folders.pop(0))  # the file moves into its own folder when all others have it

    def _finish(self, chunk: bytes) -> None:
        """Append the last chunk, make the file durable and give it its name in each ``new/``."""
        self._append(chunk)
        self._write(self._lf.rest() if self._lf else b"")
        os.fsync(self._descriptor)
        self._close()
        if self._target.quota:
            self._in_each_folder(lambda folder: self._target.quota.check(folder, self._size))
        self._in_each_folder(self._store)
        self._leave_tmp()

    def _store(self, folder: Path) -> None:
        # Maildir++: a file's size stands in its name, so that nobody need look it up.
        new = folder.joinpath("new")
        place = self._stored[folder] = new.joinpath(f"{self._name},S={self._size}")
        if folder is self._home:
            # The name is this delivery's alone, so nothing is ever replaced. Unlike link and unlink, which the format's
            # text describes, rename never shows the message twice, and works where there are no links.
            self._in_tmp.rename(place)
            self._moved = True
        else:
            _link_or_copy(self._in_tmp, place)
        self._target.quota.add(folder, self._size, 1)
        sync_folder(new)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _leave_tmp(self) -> None:
        if self._opened and not self._moved:
            self._in_tmp.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the message wherever it is by now: nobody was told that it is here."""
        with suppress(OSError):  # a disk that failed once may do it again
            self._close()
        with suppress(OSError):
            self._leave_tmp()
        for folder in [*self._stored]:
            self._take_out(folder)
        for folder in {*self._folders, *self._refused}:
            self._target.forget(folder)

    def _take_out(self, folder: Path) -> None:
        if place := self._stored.pop(folder, None):
            with suppress(OSError):  # it was never stored, or a reader has taken it
                place.unlink()
                self._target.quota.add(folder, -self._size, -1)


# --- Names and folders


def _unique_name() -> str:
    # "A unique name has three pieces, separated by dots. On the left is the result of time() […]. On the right is the
    # result of gethostname()." In the middle: "Mn, where n is […] the microsecond counter […]. Pn, where n is […] the
    # process ID. Qn, where n is […] the number of deliveries made by this process."
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    # The format: "(To deal with invalid host names, replace / with \057 and : with \072.)"
    host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
    return f"{seconds}.M{microseconds}P{os.getpid()}Q{next(_deliveries)}.{host}"


def _link_or_copy(file: Path, place: Path) -> None:
    """Give the file a second name; or where that cannot be, make a second file."""
    try:
        place.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(file, place.parents[1] / "tmp" / file.name, place)


def _copy(file: Path, copy: Path, place: Path) -> None:
    try:
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with file.open("rb") as source, os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        copy.rename(place)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _clean(tmp: Path) -> None:
    # A program that reads or delivers "should delete files in tmp that haven't been accessed in 36 hours". Many file
    # systems no longer note each access, so the time of the last write counts too.
    oldest = time.time() - STALE
    for entry in tmp.iterdir():
        with suppress(OSError):  # another program may clean at the same time; a folder is none of ours
            status = entry.lstat()
            if max(status.st_atime, status.st_mtime) < oldest:
                entry.unlink()
