"""What all targets on a disk share: steps in threads that can be given up, refusals, and writing that is durable."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pillarbox import ConfigurationError, Reject, Session, log_fields
from pillarbox.deliver import Message, settled, unavailable
from pillarbox.program.paths import sync_folder

__all__ = [
    "Steps",
    "Threads",
    "WithLF",
    "make_folders",
    "must_be_writable",
    "reason_of",
    "refuses_all",
    "resolved",
    "unknown_mailbox",
    "write_all",
]

_log = logging.getLogger("pillarbox.deliver")
_Result = TypeVar("_Result")

# RFC 5321 4.2.3: "452 Requested action not taken: insufficient system storage", and RFC 3463 3.4 "X.3.1 Mail system
# full"; for all else ``unavailable``. What exactly failed is for the log only.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def unknown_mailbox() -> Reject:
    """Return the refusal for a recipient that has no mailbox."""
    return Reject(550, "Error: no such mailbox here", enhanced="5.1.1")


def refuses_all(refusal: Reject, message: Message) -> bool:
    """Whether what is refused for one recipient must be refused for all, who then must not have the message.

    In SMTP one reply is for all: a client that is told "later" sends the message to all of them again.
    """
    return not message.session.lmtp and (refusal.code or 450) < 500


class Threads(ThreadPoolExecutor):
    """The threads of one target: a disk that hangs must not hold up what goes to another."""

    def __init__(self, url: str) -> None:
        super().__init__(thread_name_prefix=f"pillarbox-{url.partition(':')[0]}")


class Steps:
    """The steps of one delivery that touch the disk: in threads, one at a time, and none after ``end``."""

    def __init__(self, url: str, session: Session, threads: Threads) -> None:
        self._url = url
        self._session = session
        self._threads = threads
        self._one_at_a_time = threading.Lock()
        self._begun = False  # else there is nothing to wait for, and nothing on the disk
        self._hangs = False  # a step was waited for, and did not end
        self.ended = False  # a step that takes long looks at it, and gives up

    async def run(self, step: Callable[..., _Result], *arguments: object) -> _Result:
        """Run a step and return what it returns; an OSError goes to the log and becomes a Reject."""
        try:
            # What has begun in a thread cannot be cancelled: it ends in peace, and ``end`` waits for it.
            return await asyncio.wrap_future(self._threads.submit(self._run, step, *arguments))
        except OSError as error:
            raise self.refusal(error) from error

    async def run_last(self, step: Callable[..., _Result], *arguments: object) -> _Result:
        """Run the step that stores the message for good; to be cancelled after it comes too late, and is passed over.

        For what cannot be taken back then: else the client would be told that nothing is there, and send it again.
        """
        running = self._threads.submit(self._run, step, *arguments)
        try:
            return await asyncio.wrap_future(running)
        except OSError as error:
            raise self.refusal(error) from error
        except asyncio.CancelledError:
            self.ended = True  # where it still can, it gives up
            with suppress(Exception):
                waiting: asyncio.Future[_Result] = asyncio.wrap_future(running)
                waiting.add_done_callback(_seen)
                await settled(waiting)
                if running.done():
                    return running.result()
            self._hangs = not running.done()
            raise

    def _run(self, step: Callable[..., _Result], *arguments: object) -> _Result:
        with self._one_at_a_time:
            self._begun = True  # before it looks: ``end`` does it the other way round
            self.go_on()
            return step(*arguments)

    def go_on(self) -> None:
        """Raise OSError where the delivery has been given up."""
        if self.ended:
            raise _given_up()

    def unless_ended(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Give blocks, until the delivery is given up; then raise OSError."""
        for block in blocks:
            self.go_on()
            yield block

    async def end(self, clean: Callable[[], None]) -> None:
        """Run ``clean`` when no step runs any more; even if this wait is cut off."""
        self.ended = True
        if self._begun and not self._hangs:
            await settled(asyncio.wrap_future(self._threads.submit(self._clean, clean)))
        else:
            self.end_soon(clean)

    def end_soon(self, clean: Callable[[], None]) -> None:
        """Run ``clean`` in its turn, for what was delivered: nobody waits for it, or could be cancelled meanwhile."""
        self.ended = True
        if self._begun:
            self._threads.submit(self._clean, clean)
        else:
            clean()

    def _clean(self, clean: Callable[[], None]) -> None:
        with self._one_at_a_time:
            clean()

    def given_up(self) -> Reject:
        """Return what those are told whom the delivery was not done for when it was given up."""
        return self.refusal(_given_up())

    def refusal(self, error: Exception, *, full: bool = False) -> Reject:
        """Log what went wrong on the disk, and return what the client is told; full: whether there is no room."""
        fields = log_fields(self._session, "deliver", "deliver")
        _log.error("cannot store a message in %s: %s", self._url, error, extra=fields)
        if full or getattr(error, "errno", None) in _FULL:
            return Reject(452, "Error: insufficient system storage, try again later", enhanced="4.3.1")
        return unavailable()


def _seen(future: asyncio.Future[_Result]) -> None:
    """Look at what came of a step that nobody waited for to the end, or asyncio reports it."""
    if not future.cancelled():
        future.exception()


def _given_up() -> OSError:
    return OSError(errno.ECANCELED, "the delivery was given up")


class WithLF:
    """Turns CRLF into LF, block by block; a CR at the end of a block waits for the next one."""

    def __init__(self) -> None:
        self._ends_with_cr = False

    def __call__(self, block: bytes) -> bytes:
        if self._ends_with_cr:
            block = b"\r" + block
        self._ends_with_cr = block.endswith(b"\r")
        if self._ends_with_cr:
            block = block[:-1]
        return block.replace(b"\r\n", b"\n")

    def rest(self) -> bytes:
        """Return what still waits at the message's end."""
        return b"\r" if self._ends_with_cr else b""


# --- Files and folders


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however little the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def resolved(path: Path) -> Path:
    """Return a path without symbolic links; where they lead round in a circle, opening it says so."""
    return Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError then, before Python 3.13


def make_folders(path: Path) -> None:
    """Make a folder and those above it, for the owner alone."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)  # a message is only as durable as the folder that holds it


def must_be_writable(folders: Iterable[Path]) -> None:
    """Raise PermissionError for a folder that nothing can be put into."""
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def reason_of(url: str, path: Path, error: OSError) -> ConfigurationError:
    """Return what the operator is told of a path that cannot be used."""
    reason = (error.strerror or str(error)).lower()
    return ConfigurationError(f"{url}: {error.filename or path}: {reason}")
