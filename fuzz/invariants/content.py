"""The content of DATA and of BDAT, against a decoder that goes octet by octet and is slow and plain."""

from __future__ import annotations

import re

from peer import cut

from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.chunks import ChunkDecoder
from pillarbox.smtp.reply import BARE_NEWLINE_IN_DATA, NUL_IN_DATA, Reply

MODES = ("normalize", "reject", "accept")


def one(octets: bytes) -> None:
    """Try one input: the mode, two places to cut at, and the octets behind DATA."""
    if len(octets) < 4:
        return
    mode, data = MODES[octets[0] % len(MODES)], octets[3:]
    expected = plain(data, mode)
    for places in (octets[1:3], range(len(data)), b""):
        assert _decoded(data, mode, places) == expected, (mode, list(places))
    text = _normal(data) if mode != "accept" else data
    for places in (octets[1:3], range(len(data)), b""):
        assert _chunked(data, mode, places) == text, (mode, list(places))


def plain(data: bytes, mode: str) -> tuple[bytes, bytes | None, Reply | None]:
    """Return the message, what stands behind it (None where it has no end), and its flaw, as the RFC says it."""
    # RFC 5321 4.5.2, line by line; the start of the data counts as behind a CRLF.
    message, rest = b"", b"\r\n" + data
    ended = re.search(rb"\r\n\.\r\n", rest)
    body, behind = (rest[: ended.start() + 2], rest[ended.end() :]) if ended else (rest, None)
    message = re.sub(rb"\r\n\.", b"\r\n", body)[2:]
    if mode == "accept":
        return message, behind, None
    flaw = NUL_IN_DATA if b"\0" in message else None
    if mode == "reject" and _normal(message) != message:
        flaw = BARE_NEWLINE_IN_DATA
    return _normal(message), behind, flaw


def _normal(text: bytes) -> bytes:
    return re.sub(rb"\r\n|\r|\n", lambda found: b" " if found[0] == b"\r" else b"\r\n", text)


def _decoded(data: bytes, mode: str, places: object) -> tuple[bytes, bytes | None, Reply | None]:
    decoder = DataDecoder(mode)  # type: ignore[arg-type]  # one of MODES
    message, pieces = b"", cut(data, list(places))  # type: ignore[call-overload]  # octets or a range
    for number, piece in enumerate(pieces):
        if not piece:
            continue
        message += decoder.feed(piece)
        if decoder.finished:
            return message, decoder.rest + b"".join(pieces[number + 1 :]), decoder.flaw
    # Without an end some octets may still be held: what was handed out is the beginning of what is expected.
    expected = plain(data, mode)
    assert expected[1] is None, "an end was not found"
    assert expected[0].startswith(message), message
    assert len(expected[0]) - len(message) <= 4, message
    return expected


def _chunked(data: bytes, mode: str, places: object) -> bytes:
    decoder = ChunkDecoder(mode, binary=False)  # type: ignore[arg-type]  # one of MODES
    message = b""
    for piece in cut(data, list(places)):  # type: ignore[call-overload]  # octets or a range
        message += decoder.feed(piece)
    decoder.ending = True
    return message + decoder.feed(b"")
