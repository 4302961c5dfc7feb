"""The content of DATA and of BDAT, against decoders that are slow and plain: the message, its end and its flaw.

An input: 1 octet for the mode, 4 for two places to cut at, and the octets behind DATA, or of the chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peer import Sizes, bytewise, cut, numbers

from pillarbox.smtp.body import BareNewline, DataDecoder
from pillarbox.smtp.chunks import ChunkDecoder
from pillarbox.smtp.reply import BARE_NEWLINE_IN_DATA, NUL_IN_DATA, Reply

MODES: tuple[BareNewline, ...] = ("normalize", "reject", "accept")
HEAD = 5
SMALL = Sizes(piece=16)  # so that what is done in pieces is done here


def one(octets: bytes) -> None:
    """Try one input."""
    if len(octets) < HEAD:
        return
    mode, places, data = MODES[octets[0] % len(MODES)], numbers(octets[1:HEAD]), octets[HEAD:]
    for pieces in ([data], cut(data, places), bytewise(data)):
        _try(pieces, data, mode)


def every_cut(octets: bytes) -> None:
    """Try one input cut in two at each place, for the tests."""
    mode, data = MODES[octets[0] % len(MODES)], octets[HEAD:]
    for place in range(1, len(data)):
        _try([data[:place], data[place:]], data, mode)


def _try(pieces: Sequence[bytes], data: bytes, mode: BareNewline) -> None:
    with SMALL.there():
        _check_data(list(filter(None, pieces)), data, mode)
        assert _chunked(pieces, mode, binary=False) == _plain_chunks(data, mode), (mode, pieces)
        assert _chunked(pieces, mode, binary=True) == (data, None), (mode, pieces)


def _check_data(pieces: Sequence[bytes], data: bytes, mode: BareNewline) -> None:
    message, behind, flaw = plain(data, mode)
    decoder, decoded = DataDecoder(mode), b""
    for number, piece in enumerate(pieces):
        decoded += decoder.feed(piece)
        if decoder.finished:
            found = decoded, decoder.rest + b"".join(pieces[number + 1 :]), decoder.flaw
            assert found == (message, behind, flaw), (mode, pieces)
            return
    assert behind is None, "an end was not found"
    # Without an end some octets may still be held: what was handed out is the beginning of what is expected.
    assert message.startswith(decoded), (mode, pieces)
    assert len(message) - len(decoded) <= 4, (mode, pieces)
    assert decoder.flaw in (flaw, NUL_IN_DATA, None), (mode, pieces)


def plain(data: bytes, mode: BareNewline) -> tuple[bytes, bytes | None, Reply | None]:
    """Return the message, what stands behind it (None where it has no end), and its flaw, as the RFC says it."""
    # RFC 5321 4.5.2, line by line; the start of the data counts as behind a CRLF.
    rest = b"\r\n" + data
    ended = re.search(rb"\r\n\.\r\n", rest)
    body, behind = (rest[: ended.start() + 2], rest[ended.end() :]) if ended else (rest, None)
    message, flaw = _plain_chunks(re.sub(rb"\r\n\.", b"\r\n", body)[2:], mode)
    return message, behind, flaw


def _plain_chunks(message: bytes, mode: BareNewline) -> tuple[bytes, Reply | None]:
    if mode == "accept":
        return message, None
    normal = re.sub(rb"\r\n|\r|\n", lambda found: b" " if found[0] == b"\r" else b"\r\n", message)
    if mode == "reject" and normal != message:
        return normal, BARE_NEWLINE_IN_DATA
    return normal, NUL_IN_DATA if b"\0" in message else None


def _chunked(pieces: Sequence[bytes], mode: BareNewline, *, binary: bool) -> tuple[bytes, Reply | None]:
    decoder = ChunkDecoder(mode, binary=binary)
    message = b"".join(map(decoder.feed, pieces))
    decoder.ending = True
    return message + decoder.feed(b""), decoder.flaw
