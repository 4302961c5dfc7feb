"""Log records: one line per event, with fields; nothing is formatted while its level is off, no credential ever.

All goes through the standard ``logging`` tree under ``pillarbox``, which is silent until it is configured.
"""

from __future__ import annotations

import logging
from logging import DEBUG, ERROR, INFO, WARNING
from typing import TYPE_CHECKING, Any

from pillarbox.smtp.reply import printable

if TYPE_CHECKING:
    from pillarbox.session import Session

ROOT = logging.getLogger("pillarbox")
ROOT.addHandler(logging.NullHandler())
_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s [%(cid)s]"


def log_fields(session: Session | None, component: str, tnx: str) -> dict[str, Any]:
    """Return the fields of a record, for ``extra=``: ``component``, ``tnx``, ``cid``, ``user`` and ``address``.

    component: what part logs; tnx: the kind of event. For records of one's own that go with the library's.
    """
    if session is None:
        return {"component": component, "tnx": tnx, "cid": "", "user": None, "address": ""}
    # The name, not `session.user`: what an application keeps there may show a password when it is printed.
    who = {"cid": session.id, "user": session.username, "address": session.remote_address}
    return {"component": component, "tnx": tnx, **who}


class EventLog:
    """Where a listener's events go: the option ``logger`` and ``component``, decided once.

    A record's fields: ``component``, ``cid`` (session id), ``tnx`` (what kind of event), ``user``, ``address``
    (the client's).
    """

    def __init__(self, logger: Any, component: str) -> None:
        self._logger = _console() if logger is True else (logger or ROOT)
        self._component = component
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
        fields = log_fields(session, self._component, tnx)
        # A client's or a handler's text must not forge a line of a text log.
        safe = [printable(part) if isinstance(part, str) else part for part in parts]
        if isinstance(self._logger, logging.Logger):
            # Not Logger.log: it would walk the stack to find this very line, for a quarter of the whole cost.
            failure = None if error is None else (type(error), error, error.__traceback__)
            logger = self._logger
            logger.handle(
                logger.makeRecord(logger.name, level, __file__, 0, message, tuple(safe), failure, "event", fields)
            )
        else:
            getattr(self._logger, _METHODS[level])(message, *safe, extra=fields, exc_info=error)


def _console() -> logging.Logger:
    """Return the logger of ``logger=True``: to standard error, from INFO up."""
    console = ROOT.getChild("console")
    if not console.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(CONSOLE_FORMAT))
        console.addHandler(handler)
        console.setLevel(INFO)
    return console
