"""The program's log: what a record looks like on standard error, and which of the library's records are shown."""

from __future__ import annotations

import logging
import re
import sys

from pillarbox import log_fields

__all__ = ["LEVELS", "LineFormatter", "log_to_stderr"]

LEVELS = ("debug", "info", "warning", "error", "critical")

_log = logging.getLogger("pillarbox.program")


class LineFormatter(logging.Formatter):
    """One line a record: the level in front unless it is INFO, the client behind; a traceback follows."""

    _CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line; nothing that came from outside can begin another."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + self._CONTROL.sub("?", record.message + self._client(record))

    def _client(self, record: logging.LogRecord) -> str:
        session = getattr(record, "cid", "")
        if not session or session in record.message:
            return ""
        return f" [{getattr(record, 'address', '')} {session}]".replace("[ ", "[")


# The library's events that the program reports in its own words.
_REPORTED = ("listen", "message", "close")


def _is_not_reported(record: logging.LogRecord) -> bool:
    from_library = record.name != _log.name and record.levelno == logging.INFO
    return not (from_library and getattr(record, "tnx", "") in _REPORTED)


def _note_unraisable(found: sys.UnraisableHookArgs) -> None:
    """Log what CPython prints past every log: of a server name outside ASCII, which any client may send, a line."""
    if isinstance(found.exc_value, UnicodeDecodeError):
        _log.info("a server name (SNI) outside ASCII: the handshake ends", extra=log_fields(None, "program", "tls"))
    else:
        sys.__unraisablehook__(found)


def log_to_stderr(level: str) -> None:
    """Show the library's and the program's records from ``level`` up, and everyone else's warnings."""
    sys.unraisablehook = _note_unraisable
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    handler.addFilter(_is_not_reported)
    logging.getLogger().addHandler(handler)
    logging.getLogger("pillarbox").setLevel(level.upper())
