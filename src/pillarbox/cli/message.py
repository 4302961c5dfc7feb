"""The message that ``send`` makes for want of a file, and what any message needs of the server."""

from __future__ import annotations

import mimetypes
import re
from dataclasses import dataclass
from email.generator import BytesGenerator
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime, make_msgid
from io import BytesIO
from pathlib import Path

from pillarbox import ConfigurationError
from pillarbox.cli.client import own_name

_LINE_ENDS = re.compile(rb"\r\n|\r|\n")
_FILLER = "the quick brown fox jumps over the lazy dog and is measured by the byte."
_ONCE = {"from", "to", "subject", "date", "message-id"}  # a field of the user's stands in the place of ours
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class Content:
    """A message's bytes, lines ended by CRLF."""

    data: bytes

    @property
    def eight_bit(self) -> bool:
        """Whether it needs 8BITMIME (RFC 6152)."""
        return not self.data.isascii()

    @property
    def utf8_header(self) -> bool:
        """Whether it needs SMTPUTF8 (RFC 6531): octets above 127 stand in the header."""
        return not self.data.partition(b"\r\n\r\n")[0].isascii()


@dataclass(frozen=True)
class Wanted:
    """What is to be in a message that is made; ``size`` in bytes."""

    sender: str
    recipients: tuple[str, ...]
    subject: str = "A message from pillarbox send"
    body: str = "Hello.\n"
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[tuple[str, bytes], ...] = ()  # name, content
    size: int | None = None


def from_bytes(data: bytes) -> Content:
    """Take a message as it is, but for its line ends."""
    # RFC 5321 2.3.8: "SMTP client implementations MUST NOT transmit these characters except when they are intended as
    # line terminators and then MUST, as indicated above, transmit them only as a <CRLF> sequence."
    data = _LINE_ENDS.sub(b"\r\n", data)
    return Content(data if data.endswith(b"\r\n") or not data else data + b"\r\n")


def made(wanted: Wanted, *, utf8: bool, eight_bit: bool) -> Content:
    """Make a message for a server that takes, or does not take, UTF-8 in the header and 8-bit text."""
    message = _message(wanted, "")
    content = _flat(message, utf8=utf8, eight_bit=eight_bit)
    if wanted.size is None:
        return content
    missing = wanted.size - len(content.data)
    if missing < 0:
        raise ConfigurationError(f"--size {wanted.size}: the message has {len(content.data)} bytes already")
    return _flat(_message(wanted, _filler(missing), like=message), utf8=utf8, eight_bit=eight_bit)


def _filler(length: int) -> str:
    """Return lines of text that need so many bytes on the way; one byte alone cannot be a line."""
    line = len(_FILLER) + 2
    lines, rest = divmod(length, line)
    if rest == 1 and lines:
        return f"{_FILLER}\n" * (lines - 1) + f"{_FILLER}.\n"
    return f"{_FILLER}\n" * lines + (_FILLER[: rest - 2] + "\n" if rest >= 2 else "")


def _message(wanted: Wanted, filler: str, like: EmailMessage | None = None) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    _add(message, "From", wanted.sender or f"postmaster@{own_name()}")
    _add(message, "To", ", ".join(wanted.recipients))
    _add(message, "Subject", wanted.subject)
    message["Date"] = like["Date"] if like else format_datetime(localtime())
    message["Message-ID"] = like["Message-ID"] if like else make_msgid(domain=own_name())
    for name, value in wanted.headers:
        if name.lower() in _ONCE:
            del message[name]
        _add(message, name, value)
    body = wanted.body if wanted.body.endswith("\n") else f"{wanted.body}\n"
    try:
        message.set_content(body + filler, cte="7bit" if body.isascii() else "8bit")
    except UnicodeEncodeError as error:
        raise ConfigurationError("--body: it is not UTF-8") from error
    for name, data in wanted.attachments:
        _attach(message, name, data)
    if like is not None and message.is_multipart():
        message.set_boundary(like.get_boundary() or "")
    return message


def _add(message: EmailMessage, name: str, value: str) -> None:
    try:
        message[name] = value
    except Exception as error:  # the parser stumbles over what is no address in more than one way
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise ConfigurationError(
            f"{name}: {value!r} cannot stand there{reason}: leave it out, or give a FILE"
        ) from error


def header_field(text: str) -> tuple[str, str]:
    """Split ``Name: value``; raise ConfigurationError where it is none."""
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!-9;-~]+", name) or "\n" in value or "\r" in value:
        raise ConfigurationError(f"--header {text!r}: write 'Name: value'")
    if name.lower().startswith("content-"):  # it would be lost where the content is set
        raise ConfigurationError(f"--header {text!r}: what is made up says that itself: leave it out, or give a FILE")
    return name, value.strip()


def attachment(path: str) -> tuple[str, bytes]:
    """Return a file's name and content; raise ConfigurationError where it cannot be read."""
    try:
        return Path(path).name, Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--attach {path}: cannot be read: {(error.strerror or '').lower()}") from error


def _attach(message: EmailMessage, name: str, data: bytes) -> None:
    kind, encoding = mimetypes.guess_type(name)
    main, _, sub = (kind if kind and not encoding else "application/octet-stream").partition("/")
    if main in ("text", "message"):  # as it is: its character set is not known, and it is no part of this message
        main, sub = "application", "octet-stream"
    message.add_attachment(data, maintype=main, subtype=sub, filename=name)


def _flat(message: EmailMessage, *, utf8: bool, eight_bit: bool) -> Content:
    policy = SMTP.clone(utf8=utf8, cte_type="8bit" if eight_bit else "7bit")
    buffer = BytesIO()
    BytesGenerator(buffer, mangle_from_=False, policy=policy).flatten(message)
    return Content(buffer.getvalue())


def size_of(text: str) -> int:
    """Return the bytes of ``10M``, ``64k`` or ``1000``; raise ConfigurationError for what is no size."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)B?", text.upper())
    if not match:
        raise ConfigurationError(f"--size {text}: write a number of bytes, or one with k, M or G, for example 10M")
    return int(match[1]) * _UNITS[match[2]]
