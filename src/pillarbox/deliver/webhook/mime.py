"""What is in a message: its header fields, texts and attachments, found in bounded memory and time.

The message is never held as a whole. Nothing in it makes this fail: what cannot be understood stays as it is, and what
passes a limit is left out and named in ``Content.truncated``. The work belongs in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message as Header
from email.parser import HeaderParser
from itertools import islice
from typing import Protocol

from pillarbox.deliver.charsets import in_charset
from pillarbox.deliver.webhook.fields import clean, decoded, text_of, unfolded

__all__ = ["Attachment", "Content", "Source", "content_of"]

HEADER_SIZE = 128 * 1024  # octets of the message's header
FIELDS = 1000  # of the message's header
PART_HEADER_SIZE = 16 * 1024
PARAMETERS_SIZE = 4096  # characters of a field that is searched for parameters: that takes time by their square
PARTS = 200
DEPTH = 20  # multiparts within each other
_BLOCK = 256 * 1024
_BOUNDARY_SIZE = 200  # RFC 2046 5.1.1 allows 70 characters
_OVERLAP = 512  # octets: more than the longest line with a delimiter
# Between header and body; what is searched begins with the line end before the header.
_BLANK_LINE = re.compile(rb"\n\r?\n")


class Source(Protocol):
    """What holds a message."""

    @property
    def size(self) -> int:
        """How many octets there are."""
        ...

    def read(self, offset: int, length: int, /) -> bytes:
        """Return octets; fewer at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is neither ``text`` nor ``html``; its body, still encoded, is ``raw[offset : offset + size]``."""

    filename: str | None
    content_type: str
    charset: str | None
    disposition: str | None
    content_id: str | None
    encoding: str
    offset: int
    size: int


@dataclass(slots=True)
class Content:
    """What was found; the header's values are undecoded. ``truncated``: what of the fields here is not complete."""

    headers: list[tuple[str, str]]
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)
    truncated: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Part:
    header: Header[str, str]
    start: int
    end: int


def content_of(source: Source, text_limit: int) -> Content:
    """Look through a message; of each text ``text_limit`` octets are decoded, with 0 texts are attachments too."""
    walk = _Walk(source)
    content = Content([], truncated=walk.truncated)
    for part in walk.parts():
        if not _take_text(content, source, part, text_limit):
            content.attachments.append(_attachment(part))
    content.headers = walk.fields
    return content


# --- From delimiter to delimiter


class _Walk:
    """The way through the parts of a message (RFC 2046 5.1)."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._boundaries: list[bytes] = []  # of the multiparts we are in, the outermost first
        self._delimiter: re.Pattern[bytes] | None = None
        self.fields: list[tuple[str, str]] = []
        self.truncated: set[str] = set()

    def parts(self) -> Iterator[_Part]:
        """Return the parts that are no multipart, in order."""
        header, body = self._header(0, HEADER_SIZE)
        self.fields = list(islice(header.raw_items(), FIELDS))
        if self.truncated:  # nobody knows where the body begins
            self.truncated |= {"text", "html", "attachments"}
            return
        if len(header) > FIELDS:
            self.truncated.add("headers")
        _shorten(header)
        for _ in range(PARTS):
            is_multipart = self._enter(header)
            end, following = self._to_next_part(body)
            if not is_multipart:
                yield _Part(header, body, end)
            if following is None:
                return
            header, body = self._header(following, PART_HEADER_SIZE)
            _shorten(header)
        self.truncated.add("attachments")

    def _header(self, start: int, limit: int) -> tuple[Header[str, str], int]:
        """Return the header that begins at ``start``, and where the body begins."""
        # The line end in front of it: a header may be empty.
        octets = self._source.read(start - 1, limit + 1) if start else b"\n" + self._source.read(0, limit)
        blank = _BLANK_LINE.search(octets)
        delimiter = self._delimiter.search(octets) if self._delimiter else None
        if delimiter and (not blank or delimiter.start() < blank.start()):  # a part without body
            header_end, body = delimiter.start() + 1, start + delimiter.start()
        elif blank:
            header_end, body = blank.start() + 1, start - 1 + blank.end()
        else:
            header_end, body = self._cut(octets, start)
        # UTF-8 is what SMTPUTF8 allows (RFC 6532 3.2); what is older and not ASCII is not allowed, but comes.
        return HeaderParser().parsestr(octets[1:header_end].decode("utf-8", "replace"), headersonly=True), body

    def _cut(self, octets: bytes, start: int) -> tuple[int, int]:
        """Return where a header without an end ends, after a whole line, and where its body begins."""
        end = start - 1 + len(octets)
        if end >= self._source.size:
            return len(octets), self._source.size
        self.truncated.add("attachments" if start else "headers")
        return octets.rfind(b"\n") + 1, end

    def _enter(self, header: Header[str, str]) -> bool:
        """Return whether this is a multipart; look for its delimiters from now on."""
        if header.get_content_maintype() != "multipart":
            return False
        # A boundary that is missing, or too long to be one, ends nothing: then it is all preamble.
        boundary = (_text_parameter(header, "boundary") or "").encode().rstrip()
        if len(self._boundaries) >= DEPTH:
            self.truncated.add("attachments")
        elif 0 < len(boundary) <= _BOUNDARY_SIZE:
            self._boundaries.append(boundary)
            self._compile()
        return True

    def _compile(self) -> None:
        # RFC 2046 5.1.1: 'delimiter := CRLF "--" boundary', 'close-delimiter := delimiter "--"', both with white space
        # behind. A message with bare LFs, where the server lets them in, is understood too.
        names = b"|".join(re.escape(boundary) for boundary in self._boundaries)
        self._delimiter = re.compile(rb"\n--(%b)(--)?[ \t]{0,100}\r?\n" % names) if names else None

    def _to_next_part(self, start: int) -> tuple[int, int | None]:
        """Return where what begins at ``start`` ends, and where the next part begins, None if there is none."""
        end: int | None = None
        while found := self._search(start):
            match, line_end, start = found
            end = line_end if end is None else end
            # RFC 2046 5.1.2: an outer delimiter ends what is within it too, also where its own end is missing.
            level = self._boundaries.index(match[1])
            del self._boundaries[level if match[2] else level + 1 :]
            self._compile()
            if not match[2]:
                return end, start
        return self._source.size if end is None else end, None

    def _search(self, start: int) -> tuple[re.Match[bytes], int, int] | None:
        """Return the first delimiter at or after a line's start, where the line before it ends, and where it ends."""
        offset = start - 1  # its line end belongs to the delimiter
        while self._delimiter is not None and offset < self._source.size:
            block = self._source.read(offset, _BLOCK)
            is_last = offset + len(block) >= self._source.size
            if match := self._delimiter.search(block + b"\r\n" if is_last else block):
                line_end = match.start() - (block[max(0, match.start() - 1)] == 0x0D)
                return match, max(start, offset + line_end), min(offset + match.end(), self._source.size)
            if is_last:
                return None
            offset += len(block) - _OVERLAP
        return None


# --- One part


def _shorten(header: Header[str, str]) -> None:
    for name in ("content-type", "content-disposition"):
        if len(header.get(name, "")) > PARAMETERS_SIZE:
            header.replace_header(name, header[name][:PARAMETERS_SIZE])


def _take_text(content: Content, source: Source, part: _Part, limit: int) -> bool:
    """Take a part as the message's text or HTML, if it is the first of its kind and no attachment."""
    kind = {"text/plain": "text", "text/html": "html"}.get(part.header.get_content_type())
    if not kind or not limit or getattr(content, kind) is not None:
        return False
    if part.header.get_content_disposition() == "attachment" or _filename(part.header) is not None:
        return False
    encoded = source.read(part.start, min(part.end - part.start, limit))
    setattr(content, kind, text_of(encoded, _encoding(part.header), _charset(part.header)))
    if part.end - part.start > limit:
        content.truncated.add(kind)
    return True


def _attachment(part: _Part) -> Attachment:
    header = part.header
    content_id = header.get("content-id")
    return Attachment(
        filename=_filename(header),
        content_type=clean(header.get_content_type()),
        charset=_or_none(_charset(header)),
        disposition=_or_none(header.get_content_disposition()),
        content_id=decoded(content_id).strip("<>") if content_id else None,
        encoding=_encoding(header),
        offset=part.start,
        size=part.end - part.start,
    )


def _encoding(header: Header[str, str]) -> str:
    # RFC 2045 6.1: '"Content-Transfer-Encoding: 7BIT" is assumed if the Content-Transfer-Encoding header field is not
    # present.'
    return clean(unfolded(header.get("content-transfer-encoding", "7bit")).lower())


def _filename(header: Header[str, str]) -> str | None:
    # Not get_filename(), nor get_content_charset() below: they ask Python for each charset that a message calls one.
    name = header.get_param("filename", None, "content-disposition")
    name = header.get_param("name") if name is None else name
    return None if name is None else decoded(_extended(name).strip())


def _charset(header: Header[str, str]) -> str | None:
    charset = _extended(header.get_param("charset", "")).lower()
    return charset if charset.isascii() else None


def _extended(value: str | tuple[str | None, str | None, str]) -> str:
    """Return a parameter's value; one in the form of RFC 2231 is charset, language and text."""
    return value if isinstance(value, str) else in_charset(value[2].encode("raw-unicode-escape"), value[0] or "ascii")


def _text_parameter(header: Header[str, str], name: str) -> str | None:
    value = header.get_param(name)
    return value if isinstance(value, str) else None


def _or_none(value: str | None) -> str | None:
    return clean(value) if value else None
