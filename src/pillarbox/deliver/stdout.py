"""``stdout:`` writes messages to standard output, each of them whole: for pipes, containers and trying things out.

What a pipe has taken cannot be taken back: a message is written only when it is whole, and a reader that goes away in
the middle of one sees it cut off.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import errno
import json
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pillarbox import ConfigurationError
from pillarbox.deliver import Message, Settings, Target
from pillarbox.deliver.disk import Steps, Threads
from pillarbox.deliver.mboxformat import content
from pillarbox.deliver.spool import Spool

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Stdout"]

OUTPUT = 1
# POSIX: a pipe that poll() calls writable takes this much without waiting, if nobody else writes at the same time.
ATOMIC = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512
_NOTHING_TO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # a pipe, a terminal
PAUSE = 0.25  # seconds between two looks whether the delivery was given up


_ours = threading.Lock()  # a lock of fcntl is the process's: it keeps no other target of ours out


class StdoutSettings(Settings):
    """What stands beside ``url`` in the file."""

    format: Literal["mbox", "json"] = "mbox"


class Stdout(Target):
    """The target ``stdout:``."""

    Settings: ClassVar[type[Settings]] = StdoutSettings

    def __init__(self, url: str, settings: StdoutSettings | None = None) -> None:
        self.options = settings or StdoutSettings()
        super().__init__(url, self.options)
        if url.partition(":")[2]:
            raise ConfigurationError(f"{url!r}: nothing can follow stdout:")
        self._descriptor = -1
        self._threads = Threads(url)
        self._cut_off = False  # the last message is not whole, so that the next must begin a line
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        """Make sure that there is a standard output."""
        try:
            # Its own, in case that something closes or replaces descriptor 1.
            self._descriptor = os.dup(OUTPUT)
        except OSError as error:
            raise ConfigurationError(f"{self.url}: there is no standard output: {error.strerror}") from error
        if _only_for_reading(self._descriptor):  # as the program leaves it where it was started without one
            await self.close()
            raise ConfigurationError(f"{self.url}: there is no standard output")

    async def deliver(self, message: Message) -> str:
        """Write the message when it is whole and no other is being written."""
        steps = Steps(self.url, message.session, self._threads)
        # In JSON the message is as it came, with CRLF.
        spool = Spool(steps, lf=self.options.format == "mbox" and message.session.envelope.body_type != "binarymime")
        async with spool:
            await spool.fill(message)
            async with self._one_at_a_time:
                await steps.run_last(self._write, message, spool, steps)
        return self.url

    def _write(self, message: Message, spool: Spool, steps: Steps) -> None:
        blocks = content(message.session, spool) if self.options.format == "mbox" else _json_line(message, spool)
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the target is closed")
        with self._locked(steps):
            if self._cut_off:
                self._put(b"\n\n" if self.options.format == "mbox" else b"\n", steps)
            for block in blocks:
                self._put(block, steps)
            self._cut_off = False
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NOTHING_TO_SYNC:
                raise

    @contextmanager
    def _locked(self, steps: Steps) -> Iterator[None]:
        """Keep other targets and processes of the program out; where the system knows no lock for this, do without."""
        while not _ours.acquire(timeout=PAUSE):
            steps.go_on()
        try:
            with self._locked_for_us(steps):
                yield
        finally:
            _ours.release()

    @contextmanager
    def _locked_for_us(self, steps: Steps) -> Iterator[None]:
        locked = False
        while fcntl is not None and not locked:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    break
                steps.go_on()
                time.sleep(PAUSE / 10)
        try:
            yield
        finally:
            if locked:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _put(self, block: bytes, steps: Steps) -> None:
        """Write a block as the reader takes it; raise OSError when the delivery is given up, or nobody reads."""
        view = memoryview(block)
        while view:
            self._wait(steps)
            try:
                view = view[os.write(self._descriptor, view[:ATOMIC]) :]
                self._cut_off = True  # until it is whole
            except BrokenPipeError as error:
                raise OSError(errno.EPIPE, "nobody reads standard output any more") from error

    def _wait(self, steps: Steps) -> None:
        if not hasattr(select, "poll"):
            return
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLOUT)
        while not waiting.poll(PAUSE * 1000):
            steps.go_on()
        steps.go_on()

    async def close(self) -> None:
        """Give back the descriptor, when nobody writes any more: its number may be another file's at once."""
        async with self._one_at_a_time:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _only_for_reading(descriptor: int) -> bool:
    return fcntl is not None and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


# --- JSON


def _json_line(message: Message, spool: Spool) -> Iterator[bytes]:
    """Give one line: the envelope, and last the message, as text where it is UTF-8 and else in base64."""
    facts = json.dumps(_facts(message) | {"size": spool.size}, ensure_ascii=False)
    text = _is_text(spool.blocks())
    yield f'{facts[:-1]}, "{"message" if text else "message_base64"}": "'.encode()
    yield from _as_text(spool.blocks()) if text else _as_base64(spool.blocks())
    yield b'"}\n'


def _facts(message: Message) -> dict[str, Any]:
    session = message.session
    return {
        "id": message.id,
        "received": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "mail_from": str(session.envelope.mail_from or ""),
        "rcpt_to": [recipient.address for recipient in message.recipients],
        "client_address": session.remote_address,
        "client_hostname": session.client_hostname,
        "client_helo": session.host_name_appears_as,
        "protocol": session.transmission_type,
        "user": None if session.user is None else str(session.user),
    }


def _is_text(blocks: Iterable[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in blocks:
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _as_text(blocks: Iterable[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in blocks:
        yield json.dumps(decoder.decode(block), ensure_ascii=False)[1:-1].encode()


def _as_base64(blocks: Iterable[bytes]) -> Iterator[bytes]:
    return map(base64.b64encode, blocks)  # see spool.BLOCK
