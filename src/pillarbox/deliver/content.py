"""What of a message can be searched: its header fields and its text, decoded, and bounded whatever the message holds.

Read are the first ``HEAD`` bytes or ``LINES`` lines, whichever end first, and of those at most ``PARTS`` MIME parts.
The bounds hold the time as well as the memory: what the standard library's parser does is in places quadratic.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as MIMEPart
from email.parser import BytesParser
from email.policy import Compat32, Policy
from html import unescape

from pillarbox.deliver.charsets import in_charset

__all__ = ["HEAD", "Content", "clean", "content_of"]

HEAD = 512 * 1024  # bytes
LINES = 10_000
PARTS = 100  # MIME parts; also how deep they can stand in one another
HEADERS = 64 * 1024  # characters of all header fields
TEXT = 256 * 1024  # characters of all text parts
# RFC 5322 2.1.1: "Each line of characters MUST be no more than 998 characters"
_LINE = 998
_CONTENT_FIELD = 1000  # characters of Content-Type and the like, whose parameters take quadratic time

_log = logging.getLogger("pillarbox.deliver")

_FOLD = re.compile(r"\r?\n[ \t]?")
# One that does not end is no tag: without this each "<" of a text would be looked for its ">" up to the end.
_TAG = re.compile(r"<[^<>]*>")
_NO_TEXT = ("style", "script")


@dataclass(frozen=True, slots=True)
class Content:
    """The searchable part of a message. Fields that it does not have are None; ``headers`` has a line for each."""

    message_id: str | None = None
    date: str | None = None
    subject: str | None = None
    sender: str | None = None  # From
    to: str | None = None
    cc: str | None = None
    headers: str = ""
    text: str = ""


def content_of(head: bytes) -> Content:
    """Return what can be searched of a message that begins so; nothing of one that cannot be read."""
    try:
        parts = _parsed(head[:HEAD])
        fields = _fields(parts[0])
        return Content(
            **{name: _first(fields, field) for name, field in _FIELDS},
            headers=clean("".join(f"{name}: {value}\n" for name, value in fields)),
            text=_text(parts),
        )
    except Exception:  # noqa: BLE001 - the parser has bugs: they must not keep a message from being stored
        _log.info("a message's content cannot be read: it is stored, and can be found by its envelope", exc_info=True)
        return Content()


def clean(text: str) -> str:
    """Return text that every database and reader takes: without NUL and without what is no character."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


# --- MIME parts

_FIELDS = (
    ("message_id", "message-id"),
    ("date", "date"),
    ("subject", "subject"),
    ("sender", "from"),
    ("to", "to"),
    ("cc", "cc"),
)


class _Policy(Compat32):
    """Keeps header fields as they came, but for those that the parser itself reads."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_CONTENT_FIELD] if name.lower().startswith("content-") else value

    def header_fetch_parse(self, name: str, value: str) -> str:
        return value


class _Enough(Exception):
    """There are more parts than are looked at."""


def _parsed(head: bytes) -> list[MIMEPart]:
    """Return the message and its parts, in order."""
    parts: list[MIMEPart] = []

    def part(policy: Policy) -> MIMEPart:
        if len(parts) == PARTS:
            raise _Enough
        made = MIMEPart(policy)
        parts.append(made)
        return made

    try:
        BytesParser(policy=_Policy(message_factory=part)).parsebytes(_first_lines(head))
    except _Enough:
        return parts
    return parts


def _first_lines(head: bytes) -> bytes:
    if head.count(b"\n") <= LINES:
        return head
    return b"\n".join(head.split(b"\n", LINES)[:LINES])


# --- Header fields


def _fields(message: MIMEPart) -> list[tuple[str, str]]:
    fields, room = [], HEADERS
    for name, value in message.items():
        if room <= 0:
            break
        decoded = _decoded(value[:room])
        fields.append((name, decoded))
        room -= len(name) + len(value)
    return fields


def _first(fields: list[tuple[str, str]], wanted: str) -> str | None:
    return next((clean(value) for name, value in fields if name.lower() == wanted), None)


def _decoded(value: str) -> str:
    """Return a field's value in one line, encoded words decoded (RFC 2047)."""
    # Octets outside ASCII stand in it as surrogates, and decode_header hands on those of Latin-1 unchanged.
    octets = value.encode("ascii", "surrogateescape").decode("latin-1")
    unfolded = _FOLD.sub(" ", octets)
    if "=?" not in unfolded:
        return in_charset(unfolded.encode("latin-1"), None)
    # Line by line, as it takes quadratic time for each.
    lines = (unfolded[start : start + _LINE] for start in range(0, len(unfolded), _LINE))
    return "".join(_decoded_line(line) for line in lines)


def _decoded_line(line: str) -> str:
    try:
        words = decode_header(line)
    except HeaderParseError:
        return in_charset(line.encode("latin-1"), None)
    # Without encoded words it returns text, with some it returns octets.
    found = [(word.encode("latin-1") if isinstance(word, str) else word, charset) for word, charset in words]
    return "".join(in_charset(word, charset) for word, charset in found)


# --- Text


def _text(parts: list[MIMEPart]) -> str:
    """Return the plain text parts; those in HTML only where there is no plain one."""
    plain, html = (_text_of(parts, kind) for kind in ("text/plain", "text/html"))
    return clean(plain if plain.strip() else _without_tags(html))


def _text_of(parts: list[MIMEPart], kind: str) -> str:
    texts, room = [], TEXT
    for part in parts:
        if room > 0 and part.get_content_type() == kind and not _is_attached(part):
            texts.append(_part_text(part)[:room])
            room -= len(texts[-1])
    return "\n".join(texts)


def _is_attached(part: MIMEPart) -> bool:
    return (part.get("Content-Disposition") or "").lower().lstrip().startswith("attachment")


def _part_text(part: MIMEPart) -> str:
    octets = part.get_payload(decode=True)
    if not isinstance(octets, bytes):  # an unfinished one, or one with parts
        return ""
    charset = part.get_param("charset")
    return in_charset(octets, charset if isinstance(charset, str) else None)


def _without_tags(html: str) -> str:
    for name in _NO_TEXT:
        html = _without(html, name)
    text = _TAG.sub(" ", html)
    try:
        return unescape(text)
    except ValueError:  # a number of more digits than Python reads
        return text


def _without(html: str, name: str) -> str:
    """Leave out what stands between a tag and its end tag."""
    lower, kept, place = html.lower(), [], 0
    while (start := lower.find(f"<{name}", place)) >= 0 and (end := lower.find(f"</{name}", start)) >= 0:
        kept.append(html[place:start])
        place = end
    return "".join([*kept, html[place:]])
