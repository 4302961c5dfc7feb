"""Octets of a message turned into text that JSON can hold: RFC 2047 words, addresses, dates, bodies.

None of these functions raises, whatever a message says, and each takes time in proportion to its input.
"""

from __future__ import annotations

import binascii
import quopri
import re
from email.errors import MessageError
from email.header import decode_header
from email.utils import getaddresses, parsedate_to_datetime

from pillarbox.deliver.charsets import in_charset

__all__ = ["addresses", "clean", "date", "decoded", "text_of", "unfolded"]

ADDRESSES_SIZE = 64 * 1024  # characters of all fields of one name that are read as lists of addresses
ADDRESSES = 1000  # mailboxes of all fields of one name

# RFC 2047 2: 'encoded-word = "=?" charset "?" encoding "?" encoded-text "?="'; what stands in the wild is longer than
# the 75 characters that it allows. The bounds keep a field without any end of a word from being read again and again.
_WORD = r"=\?[^?\s]{1,60}\?[bBqQ]\?[^?\r\n]{0,1000}\?="
_WORDS = re.compile(rf"{_WORD}(?:[ \t]+{_WORD})*")


def unfolded(value: str) -> str:
    """Return a field's value as one line."""
    # RFC 5322 2.2.3: "Unfolding is accomplished by simply removing any CRLF that is immediately followed by WSP."
    return re.sub(r"[\r\n]+", "", value).strip(" \t")


def decoded(value: str) -> str:
    """Return a field's value as one line with its encoded words decoded; those that cannot be stay as they are."""
    value = unfolded(value)
    return clean(_WORDS.sub(_words, value)) if "=?" in value else clean(value)


def _words(match: re.Match[str]) -> str:
    try:
        parts = decode_header(match[0])
    except MessageError:  # base64 that is none
        return match[0]
    return "".join(part if isinstance(part, str) else _in_charset(part, charset) for part, charset in parts)


def addresses(values: list[str]) -> list[tuple[str, str]]:
    """Return the mailboxes of address fields as (name, address), up to ``ADDRESSES`` and ``ADDRESSES_SIZE``."""
    found: list[tuple[str, str]] = []
    size = 0
    for value in values:
        size += len(value)
        if size <= ADDRESSES_SIZE:
            found += _mailboxes(unfolded(value))
    return [(decoded(name), clean(address)) for name, address in found[:ADDRESSES] if address]


def _mailboxes(value: str) -> list[tuple[str, str]]:
    try:
        return getaddresses([value])
    except (RecursionError, ValueError, IndexError):  # comments within comments within comments
        return []


def date(value: str) -> str | None:
    """Return a Date field in the form of RFC 3339; None if it is no date."""
    try:
        moment = parsedate_to_datetime(value)
        # RFC 3339 4.3: "-00:00" says that the time is in UTC, and nothing is known of the sender's zone.
        return moment.isoformat() + ("-00:00" if moment.tzinfo is None else "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def text_of(encoded: bytes, encoding: str, charset: str | None) -> str:
    """Return a body's text with line ends of LF; what is not in its charset becomes U+FFFD."""
    return _in_charset(_octets(encoded, encoding), charset).replace("\r\n", "\n")


def _octets(encoded: bytes, encoding: str) -> bytes:
    if encoding == "quoted-printable":
        return quopri.decodestring(encoded)
    if encoding != "base64":
        return encoded
    # RFC 2045 6.8: "All line breaks or other characters not found in Table 1 must be ignored by decoding software."
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", encoded.partition(b"=")[0])
    whole = digits[: -1 if len(digits) % 4 == 1 else None]
    return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4))


def _in_charset(octets: bytes, charset: str | None) -> str:
    return clean(in_charset(octets, charset))


def clean(text: str) -> str:
    """Return text without halves of surrogate pairs, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
