"""``mbox:PATH``: messages in one file, one behind the other (mboxrd); appended under locks when they are whole.

A client may take minutes for a message, so it is kept aside until it is whole, and the locks are held for moments only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from pydantic import Field

from pillarbox import ConfigurationError, Recipient, Reject, Session
from pillarbox.deliver import Message, Settings, Target
from pillarbox.deliver.disk import (
    Steps,
    Threads,
    make_folders,
    must_be_writable,
    reason_of,
    refuses_all,
    resolved,
    unknown_mailbox,
)
from pillarbox.deliver.mboxformat import content
from pillarbox.deliver.spool import Spool
from pillarbox.deliver.template import PathTemplate

try:
    from pillarbox.deliver.mboxfile import LOCK, LONGEST_SUFFIX, Busy, MboxFile
except ImportError as error:  # Windows has no fcntl
    raise ConfigurationError("mbox: works on POSIX systems only: use maildir:") from error

__all__ = ["Mbox"]

PAUSE = 0.05  # seconds between two attempts to lock

# Who in this process waits for which file: one behind the other.
_ours: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()


class MboxSettings(Settings):
    """What stands beside ``url`` in the file."""

    separator: str = Field(default="+", max_length=1)  # between {mailbox} and what follows it
    create: bool = True  # make the files of recipients that have none
    lock_timeout: float = Field(default=30.0, gt=0)  # seconds to wait for other programs


class Mbox(Target):
    """The target ``mbox:PATH``; a relative path starts at the working directory, ``~`` is the home directory."""

    Settings: ClassVar[type[Settings]] = MboxSettings

    def __init__(self, url: str, settings: MboxSettings | None = None) -> None:
        self.options = settings or MboxSettings()
        super().__init__(url, self.options)
        self.paths = PathTemplate(url, separator=self.options.separator, suffix=LONGEST_SUFFIX)
        self._threads = Threads(url)

    async def start(self) -> None:
        """Make the folder where it is missing, and cut off what a killed process has left in a file."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        fixed = self.paths.fixed
        folder = self.paths.base if fixed is None else fixed.parent
        try:
            make_folders(folder)
            must_be_writable([folder])
            if fixed is not None:
                with suppress(Busy):  # then it is in good hands
                    file = MboxFile.open(fixed, create=True)
                    file.close()
        except OSError as error:
            raise reason_of(self.url, fixed or folder, error) from error

    @property
    def verifies(self) -> bool:
        """Whether there is more than one file, or there may be none."""
        return self.paths.fixed is None or not self.options.create

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Refuse an address that has no mailbox."""
        path = self._path(recipient, session)
        if not self.options.create and not await Steps(self.url, session, self._threads).run(path.is_file):
            raise unknown_mailbox()

    def _path(self, recipient: Recipient, session: Session) -> Path:
        path = self.paths.path(recipient, session)
        if self.paths.fields and path.name.endswith(LOCK):
            raise unknown_mailbox()  # or mail for joe.lock@ would lock joe's mailbox
        return path

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        """Append the message once to each file; in SMTP to all of them or none."""
        steps = Steps(self.url, message.session, self._threads)
        spool = Spool(steps, lf=message.session.envelope.body_type != "binarymime")
        async with spool:
            places = [self._path_or_refusal(recipient, message) for recipient in message.recipients]
            await spool.fill(message)
            places = await steps.run(self._there, places)
            paths = list(dict.fromkeys(place for place in places if isinstance(place, Path)))
            results = await self._append(message, steps, spool, paths)
        answers = [place if isinstance(place, Reject) else results[place] for place in places]
        return answers[0] if isinstance(answers[0], str) and len(set(answers)) == 1 else answers

    def _path_or_refusal(self, recipient: Recipient, message: Message) -> Path | Reject:
        try:
            return self._path(recipient, message.session)
        except Reject as refusal:
            if refuses_all(refusal, message):
                raise
            return refusal

    def _there(self, places: list[Path | Reject]) -> list[Path | Reject]:
        """Return the places without symbolic links, so that two names of one file are one; in a thread."""
        found = [place if isinstance(place, Reject) else resolved(place.parent) / place.name for place in places]
        if self.options.create:
            return found
        return [place if isinstance(place, Reject) or place.is_file() else unknown_mailbox() for place in found]

    async def _append(
        self, message: Message, steps: Steps, spool: Spool, paths: list[Path]
    ) -> dict[Path, str | Reject]:
        if not message.session.lmtp:
            await self._append_together(message, steps, spool, paths)
            return {path: str(path) for path in paths}
        results: dict[Path, str | Reject] = {}
        for path in paths:
            try:
                await self._append_together(message, steps, spool, [path])
                results[path] = str(path)
            except Reject as refusal:
                results[path] = refusal
            except asyncio.CancelledError:
                if not any(isinstance(result, str) for result in results.values()):
                    raise
                steps.ended = True
            if steps.ended and len(results) < len(paths):  # cut off: who has the message must not get it again
                return dict.fromkeys(paths, steps.given_up()) | results
        return results

    async def _append_together(self, message: Message, steps: Steps, spool: Spool, paths: list[Path]) -> None:
        """Append to all files or none, as soon as no other program has them."""
        deadline = time.monotonic() + self.options.lock_timeout
        async with AsyncExitStack() as held:
            # In one order for all deliveries: two that want the same files do not wait for each other.
            for path in sorted(paths):
                await held.enter_async_context(_ours.setdefault(path, asyncio.Lock()))
            while True:
                try:
                    return await steps.run_last(self._attempt, message.session, steps, spool, paths)
                except Busy:
                    if time.monotonic() > deadline:
                        # RFC 5321 4.2.3: "450 Requested mail action not taken: mailbox unavailable (e.g., mailbox busy
                        # or temporarily blocked for policy reasons)"
                        raise Reject(450, "Error: the mailbox is busy, try again later", enhanced="4.2.0") from None
                await asyncio.sleep(PAUSE)

    def _attempt(self, session: Session, steps: Steps, spool: Spool, paths: list[Path]) -> None:
        """Append to all files in a thread; raise Busy where another program has one of them."""
        with ExitStack() as held:
            files = []
            try:
                for path in sorted(paths):
                    self._make_folder(path.parent)
                    files.append(MboxFile.open(path, create=self.options.create))
                    held.callback(files[-1].close)
                for file in files:
                    file.append(steps.unless_ended(content(session, spool)))
                steps.go_on()
            except Busy:
                raise
            except BaseException:
                for file in files:
                    file.take_back()
                raise

    def _make_folder(self, folder: Path) -> None:
        # Not where the base is gone: a disk that is not mounted would be stored on the wrong one.
        if self.paths.fixed is None and self.options.create and self.paths.base.is_dir():
            make_folders(folder)
