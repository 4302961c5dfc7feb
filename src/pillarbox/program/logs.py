"""The program's log on standard error: its form, by structlog, and which of the library's records are shown.

On a terminal a line for people, in colour; elsewhere JSON, a line for each record, with the fields of docs/logging.md.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from pillarbox import Networks, log_fields
from pillarbox.program.pipes import nobody_else_writes, pipe_of
from pillarbox.program.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict

__all__ = ["LEVELS", "LogSettings", "log_to_stderr"]

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("auto", "text", "json")
ALL = "all"

_log = logging.getLogger("pillarbox.program")


class LogSettings(Settings):
    """The keys of ``[program]`` that are about the log."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "info", description="The least serious records that are logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Lines for people, or JSON; auto: lines on a terminal, JSON elsewhere."
    )
    transcript: list[str] = Field(
        [], description="Networks of clients of whom everything that is said is logged, or all; no password is."
    )

    @field_validator("transcript")
    @classmethod
    def _are_networks(cls, transcript: list[str]) -> list[str]:
        try:
            _networks(transcript)
        except ValueError as error:
            raise ValueError(f"{error}: write an address, a network or {ALL}") from None
        return transcript


def log_to_stderr(settings: LogSettings, *, worker: int | None = None) -> None:
    """Show records as the settings say: the library's and the program's from a level up, others' from WARNING.

    worker: the number of the one that this process is; 0: their supervisor. May be called again, when the settings have
    changed: the process stays what it was.
    """
    sys.unraisablehook = _note_unraisable
    level = getattr(logging, settings.log_level.upper())
    transcript = _networks(settings.transcript)
    root = logging.getLogger()
    handler = next((each for each in root.handlers if isinstance(each, _Stderr)), None)
    if handler is None:
        handler = _Stderr()
        root.addHandler(handler)
        if (pipe := pipe_of(handler.stream)) is not None:
            os.set_blocking(pipe, True)  # else lines are lost where it is full for a moment
    if worker is not None:
        handler.worker, handler.pipe = worker, pipe_of(handler.stream)
    handler.setFormatter(_formatter(settings.log_format, handler.worker))
    handler.filters = [_is_not_reported, _Chosen(level, transcript)]
    logging.getLogger("pillarbox").setLevel(min(level, logging.DEBUG) if transcript else level)


class _Stderr(logging.StreamHandler[Any]):
    """The one handler of the program. pipe: what other processes of the program write to as well."""

    worker = 0
    pipe: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.pipe is None:  # the lock would cost 4 µs a line
            super().emit(record)
        else:
            with nobody_else_writes(self.pipe):
                super().emit(record)


def _networks(transcripts: list[str]) -> Networks | None:
    return Networks(["*" if each == ALL else each for each in transcripts]) if transcripts else None


# --- Which records


# The library's events that the program reports in its own words.
_REPORTED = ("listen", "message", "close")


def _is_not_reported(record: logging.LogRecord) -> bool:
    from_library = record.name != _log.name and record.levelno == logging.INFO
    return not (from_library and getattr(record, "tnx", "") in _REPORTED)


class _Chosen:
    """What is shown: all from a level up, and everything of the clients whose transcript is wanted."""

    def __init__(self, level: int, transcripts: Networks | None) -> None:
        self._level = level
        self._transcripts = transcripts

    def filter(self, record: logging.LogRecord) -> bool:
        if self._transcripts is None or record.levelno >= self._level:
            return True
        return getattr(record, "cid", "") != "" and (
            "" in self._transcripts or getattr(record, "address", "") in self._transcripts
        )


# --- Their form


def _formatter(form: str, worker: int) -> logging.Formatter:
    from structlog import stdlib

    terminal = sys.stderr is not None and sys.stderr.isatty()
    chain: list[Any] = [stdlib.add_log_level, stdlib.ExtraAdder()]
    if form == "json" or (form == "auto" and not terminal):
        return stdlib.ProcessorFormatter(processors=_json(worker), foreign_pre_chain=chain)
    colours = terminal and not os.environ.get("NO_COLOR")
    text = _text(colours=colours, times=terminal, worker=worker)
    processors: list[Any] = [stdlib.ProcessorFormatter.remove_processors_meta, text]
    return stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=chain)


def _json(worker: int) -> list[Any]:
    from structlog import processors, stdlib

    return [
        _facts_of({"worker": worker} if worker else {}),
        stdlib.ProcessorFormatter.remove_processors_meta,
        processors.format_exc_info,
        processors.JSONRenderer(ensure_ascii=False, default=str),
    ]


def _facts_of(process: Mapping[str, Any]) -> Callable[[object, str, EventDict], EventDict]:
    """Return what puts in front what every reader looks for, and leaves out what a record has not."""
    from datetime import UTC, datetime

    def facts(_logger: object, _name: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event["_record"]
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found: EventDict = {
            "time": time,
            "level": event.pop("level"),
            "message": event.pop("event"),
            "logger": record.name,
            "pid": record.process,
            **process,
        }
        found.update({name: value for name, value in event.items() if value not in (None, "", [])})
        return found

    return facts


# Of the last ones a terminal shows what follows from right to left, so that a line seems to say something else.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m", "debug": "\x1b[2m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def _text(*, colours: bool, times: bool, worker: int) -> Callable[[object, str, EventDict], str]:
    """Return what makes one line of a record: worker, and level unless it is INFO, in front, the client behind."""

    def coloured(colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if colours and colour and text else text

    source = coloured(_DIM, f"worker {worker}:") + " " if worker else ""

    def line(_logger: object, _name: str, event: EventDict) -> str:
        level = event["level"]
        # Nothing that came from outside can begin another line, or speak to the terminal.
        message = _CONTROL.sub("?", str(event["event"]))
        name = "" if level == "info" else f"{level}: "
        text = source + coloured(_COLOURS.get(level, ""), name + message) + coloured(_DIM, _client(event, message))
        if times:
            from time import localtime, strftime

            text = coloured(_DIM, strftime("%H:%M:%S", localtime())) + " " + text
        return text + _traceback(event["exc_info"]) if event.get("exc_info") else text

    return line


def _traceback(exc_info: Any) -> str:
    """Return a traceback, its lines indented: what an error says may come from outside, and begin a line there too."""
    # Not by structlog.dev: where rich is installed that shows local variables, of which some are passwords.
    lines = logging.Formatter().formatException(exc_info).split("\n")
    return "".join(f"\n  {_CONTROL.sub('?', each)}" for each in lines)


def _client(event: EventDict, message: str) -> str:
    session = event.get("cid") or ""
    if not session or session in message:
        return ""
    return f" [{event.get('address') or ''} {session}]".replace("[ ", "[")


# --- What CPython prints by itself


def _note_unraisable(found: sys.UnraisableHookArgs) -> None:
    """Log what CPython prints past every log: of a server name outside ASCII, which any client may send, a line."""
    if isinstance(found.exc_value, UnicodeDecodeError):
        _log.info("a server name (SNI) outside ASCII: the handshake ends", extra=log_fields(None, "program", "tls"))
    else:
        sys.__unraisablehook__(found)
