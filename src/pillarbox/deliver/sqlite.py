"""``sqlite:PATH``: one file with all messages, that can be searched with SQL while mail comes in.

All work on the file runs in one thread. What waits for it at that moment shares one transaction, and so one fsync.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from pillarbox import ConfigurationError, MessageTooLarge, Reject, log_fields
from pillarbox.deliver import Settings, Target, settled
from pillarbox.deliver.content import HEAD, clean, content_of
from pillarbox.deliver.disk import Steps, Threads
from pillarbox.deliver.spool import Spool
from pillarbox.deliver.sqlite_file import MessageFile, Row, is_busy, primary_code
from pillarbox.program.paths import local_path

if TYPE_CHECKING:
    from pillarbox import Session
    from pillarbox.deliver import Message

__all__ = ["SQLite"]

# What one transaction takes at most: other writers wait for its end.
TOGETHER = 100  # messages
OCTETS_TOGETHER = 64 * 1024 * 1024

_log = logging.getLogger("pillarbox.deliver")
_Result = TypeVar("_Result")


class SQLiteSettings(Settings):
    """keep_days: how long messages are kept; None until somebody deletes them."""

    keep_days: Annotated[float, Field(gt=0, le=36_500)] | None = None


class SQLite(Target):
    """The target ``sqlite:PATH``; a relative path starts at the working directory, ``~`` is the home directory."""

    Settings: ClassVar[type[Settings]] = SQLiteSettings

    def __init__(self, url: str, settings: Any = None) -> None:
        super().__init__(url, settings)
        self.path = _path(url)
        self._file = MessageFile(self.path, settings.keep_days if settings else None)
        self._waiting: deque[_Letter] = deque()
        self._threads = Threads(url)
        self._thread: ThreadPoolExecutor | None = None  # from start to close

    async def start(self) -> None:
        """Open the file, and make it where there is none."""
        self._thread = ThreadPoolExecutor(1, "pillarbox-sqlite")
        try:
            await self._in_thread(self._open)
        except BaseException as error:
            self._end_thread()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise ConfigurationError(f"{self.url}: {self._file.path}: {_why_not(error)}") from error
            raise

    def _open(self) -> None:
        self._file.open()
        try:
            self._file.expire()
        except BaseException:
            self._file.close()
            raise

    async def close(self) -> None:
        """Let go of the file."""
        if self._thread is not None:
            closing = self._in_thread(self._file.close)
            self._end_thread()  # whoever comes now is too late
            await closing

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    async def deliver(self, message: Message) -> str:
        """Store the message in one row for all its recipients; return when it is durable."""
        steps = Steps(self.url, message.session, self._threads)
        # In the folder that the message will be in: there must be room for it there anyway.
        letter = _Letter(message, Spool(steps, self._file.path.parent))
        async with letter.spool:
            await letter.spool.fill(message)
            return f"{self.url}#{await self._stored(letter, steps)}"

    async def _stored(self, letter: _Letter, steps: Steps) -> int:
        letter.columns = _envelope(letter.message)
        self._waiting.append(letter)
        try:
            return await self._in_thread(self._store, letter)
        except asyncio.CancelledError:
            await settled(self._in_thread(self._take_back, letter))
            raise
        except (sqlite3.Error, OSError) as error:
            raise _refusal(error, steps) from error

    def _in_thread(self, work: Callable[..., _Result], *args: object) -> asyncio.Future[_Result]:
        if self._thread is None:
            raise OSError(errno.EBADF, "the target is closed")
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # --- In the thread: one after the other, in the order in which the messages became whole

    def _store(self, letter: _Letter) -> int:
        while letter.answer is None:  # an earlier one may have taken it along
            self._commit(self._taken())
        if isinstance(letter.answer, Exception):
            raise letter.answer
        return letter.answer

    def _taken(self) -> list[_Letter]:
        taken: list[_Letter] = []
        octets = 0
        while self._waiting and len(taken) < TOGETHER and octets < OCTETS_TOGETHER:
            taken.append(self._waiting.popleft())
            octets += taken[-1].spool.size
        return taken

    def _commit(self, letters: list[_Letter]) -> None:
        try:
            answers: list[int | Exception] = [*self._file.store([letter.row() for letter in letters])]
        except Exception as error:  # noqa: BLE001 - each message hears of it
            if len(letters) > 1 and not is_busy(error):
                for letter in letters:  # so that one that cannot be stored does not harm the others
                    self._commit([letter])
                return
            answers = [error] * len(letters)
        for letter, answer in zip(letters, answers, strict=True):
            letter.answer = answer

    def _take_back(self, letter: _Letter) -> None:
        """Leave nothing of a message whose client was not told that it is here."""
        if letter in self._waiting:
            self._waiting.remove(letter)
        elif isinstance(letter.answer, int):
            try:
                self._file.remove(letter.answer)
            except (sqlite3.Error, OSError) as error:
                fields = log_fields(letter.message.session, "deliver", "deliver")
                _log.error("cannot take a message out of %s again: %s", self.url, error, extra=fields)


@dataclass(eq=False, slots=True)
class _Letter:
    """A message, and what became of it: its number in the file, or what went wrong."""

    message: Message
    spool: Spool
    columns: dict[str, str | None] | None = None
    answer: int | Exception | None = None

    def row(self) -> Row:
        """Return what the file takes; in the thread, as it looks for the text in the message."""
        content = content_of(self.spool.read(0, HEAD))
        found = {
            "size": self.spool.size,
            "message_id": content.message_id,
            "date": content.date,
            "subject": content.subject,
            "header_from": content.sender,
            "header_to": content.to,
            "header_cc": content.cc,
            "headers": content.headers,
            "text": content.text,
        }
        columns = {**(self.columns or {}), **found}
        return Row(columns, [clean(recipient.address) for recipient in self.message.recipients], self.spool)


def _envelope(message: Message) -> dict[str, str | None]:
    session = message.session
    columns = {
        "received_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        "log_id": message.id,
        "session_id": session.id,
        "client_address": session.remote_address,
        "client_name": session.client_hostname,
        "helo": session.host_name_appears_as,
        "protocol": session.transmission_type,
        "tls": _tls(session),
        "user": session.user if isinstance(session.user, str) else session.username,
        "mail_from": str(session.envelope.mail_from or ""),
        "rcpt_to": "\n".join(recipient.address for recipient in message.recipients),
    }
    return {name: None if value is None else clean(value) for name, value in columns.items()}


def _tls(session: Session) -> str | None:
    if session.tls is not None:
        return session.tls.version
    tls = session.proxy.tls if session.proxy is not None else None
    return tls.version if tls is not None else None


def _refusal(error: sqlite3.Error | OSError, steps: Steps) -> Reject:
    code = primary_code(error)
    if code == sqlite3.SQLITE_TOOBIG:
        return MessageTooLarge()
    shared_memory = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    return steps.refusal(error, full=code == sqlite3.SQLITE_FULL or shared_memory)


# --- The URL, and why a file cannot be opened


def _path(url: str) -> Path:
    path = local_path(url, "mail.db")
    if url.endswith("/"):
        raise ConfigurationError(f"{url!r} names no file: write sqlite:PATH, for example sqlite:mail.db")
    return path


_REASONS = {
    sqlite3.SQLITE_NOTADB: "is no SQLite database: name another file",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: it is a folder, or may not be read or written",
    sqlite3.SQLITE_READONLY: "may not be written, or its folder not",
    sqlite3.SQLITE_CORRUPT: "is damaged: look at it with PRAGMA integrity_check",
}


def _why_not(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such folder: make it first"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if "fts5" in str(error):
        return "the SQLite of this Python has no full-text search (FTS5): use another build of Python"
    if is_busy(error):
        return "another program holds it locked: end that, or let it commit"
    return _REASONS.get(primary_code(error), str(error))
