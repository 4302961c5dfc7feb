"""Log records: one line per event, with fields; nothing is formatted while its level is off, no credential ever.

All goes through the standard ``logging`` tree under ``pillarbox``, which is silent until it is configured.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from contextlib import suppress
from logging import DEBUG, ERROR, INFO, WARNING
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PROGRAM_ENDS
from pillarbox.smtp.reply import printable

if TYPE_CHECKING:
    from pillarbox.session import Session

ROOT = logging.getLogger("pillarbox")
ROOT.addHandler(logging.NullHandler())
_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
_NAMES = {DEBUG: "DEBUG", INFO: "INFO", WARNING: "WARNING", ERROR: "ERROR"}
_STANDARD_FACTORY = logging.getLogRecordFactory()


def log_fields(session: Session | None, component: str, tnx: str) -> dict[str, Any]:
    """Return the fields of a record, for ``extra=``: ``component``, ``tnx``, ``cid``, ``user`` and ``address``.

    component: what part logs; tnx: the kind of event. For records of one's own that go with the library's.
    """
    if session is None:
        return {"component": component, "tnx": tnx, "cid": "", "user": None, "address": ""}
    return {
        "component": component,
        "tnx": tnx,
        "cid": session.id,
        # The name, not `session.user`: what an application keeps there may show a password when it is printed.
        "user": session.username,
        "address": session.remote_address,
    }


class EventLog:
    """Where a listener's events go: the option ``logger`` and ``component``, decided once.

    A record's fields: ``component``, ``cid`` (session id), ``tnx`` (what kind of event), ``user``, ``address``
    (the client's).
    """

    def __init__(self, logger: Any, component: str) -> None:
        self._logger = _console() if logger is True else (logger or ROOT)
        self._component = component
        self._common: dict[str, Any] | None = None
        # An object that is no logging.Logger may not know levels: then it gets every record.
        self.enabled = getattr(self._logger, "isEnabledFor", lambda _level: True)

    def event(
        self,
        level: int,
        tnx: str,
        session: Session | None,
        message: str,
        *parts: object,
        error: BaseException | None = None,
    ) -> None:
        """Log one event, if the level is on."""
        if not self.enabled(level) or (session is not None and session.ignored):
            return
        try:
            self._write(level, log_fields(session, self._component, tnx), message, parts, error)
        except PROGRAM_ENDS:
            raise
        except BaseException:  # noqa: BLE001 - a logger that fails must cost neither a reply nor a message
            # As logging's own handlers do it, for what is not theirs: a filter, or an object of the application's.
            if logging.raiseExceptions and sys.stderr is not None:
                with suppress(Exception):
                    traceback.print_exc(file=sys.stderr)

    def _write(
        self, level: int, fields: dict[str, Any], message: str, parts: tuple[object, ...], error: BaseException | None
    ) -> None:
        # A client's or a handler's text must not forge a line of a text log.
        safe = tuple([printable(part) if isinstance(part, str) else part for part in parts])
        logger = self._logger
        if isinstance(logger, logging.Logger):
            failure = None if error is None else (type(error), error, error.__traceback__)
            if logging.getLogRecordFactory() is _STANDARD_FACTORY:
                record: logging.LogRecord = _EventRecord(self._facts(), fields, level, message, safe)
                record.exc_info = failure
            else:
                # Not Logger.log: it would walk the stack to find this very line, for a quarter of the whole cost.
                record = logger.makeRecord(logger.name, level, __file__, 0, message, safe, failure, "event", fields)
            logger.handle(record)
        else:
            getattr(logger, _METHODS[level])(message, *safe, extra=fields, exc_info=error)

    def _facts(self) -> dict[str, Any]:
        """Return what all records of this log have in common."""
        if self._common is None:  # made when it is wanted: only then is it known which thread and process it is
            record = self._logger.makeRecord(self._logger.name, INFO, __file__, 0, "", (), None, "event")
            self._common = dict(record.__dict__)
        return self._common


class _EventRecord(logging.LogRecord):
    """A record with all its attributes, made in a third of the time: 0.9 µs instead of 2.9.

    ``LogRecord`` takes the path to pieces and asks for thread and process each time; here they are the same each time.
    """

    def __init__(
        self, common: dict[str, Any], fields: dict[str, Any], level: int, message: str, parts: tuple[object, ...]
    ) -> None:
        now = time.time()
        # Not `super().__init__`: that is what costs.
        attributes = self.__dict__
        attributes.update(common)
        attributes.update(fields)
        self.levelno, self.levelname = level, _NAMES[level]
        self.msg, self.args = message, parts
        self.created = now
        self.msecs = int(now % 1 * 1000) + 0.0
        self.relativeCreated += (now - common["created"]) * 1000
        if "taskName" in attributes:  # from Python 3.12 on
            self.taskName = _task_name()


def _task_name() -> str | None:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # outside an event loop
        return None
    return None if task is None else task.get_name()


class _LineFormatter(logging.Formatter):
    """A line for each record, and behind it the traceback of a failure.

    It reads as "%(asctime)s %(levelname)-7s %(message)s [%(cid)s]" would, in half the time: the text of a second is
    made once.
    """

    _second = 0
    _time = ""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        return self.formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - theirs
        second = int(record.created)
        if second != self._second:
            self._time = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        return f"{self._time},{int(record.msecs):03}"

    def usesTime(self) -> bool:  # noqa: N802 - theirs
        return True

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - theirs
        return f"{record.asctime} {record.levelname:7} {record.message} [{getattr(record, 'cid', '')}]"


def _console() -> logging.Logger:
    """Return the logger of ``logger=True``: to standard error, from INFO up."""
    console = ROOT.getChild("console")
    if not console.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_LineFormatter())
        console.addHandler(handler)
        console.setLevel(INFO)
    return console
