"""What a reply may look like, whatever the client said (RFC 5321 4.2, RFC 2034)."""

from __future__ import annotations

import re
from collections.abc import Iterator

# RFC 5321 4.2: the digits that a reply code may have; the server has no 1yz.
_LINE = re.compile(rb"([2-5][0-5][0-9])([ -])([\x20-\x7e\x80-\xff]*)\r\n")
_ENHANCED = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3} ")
# RFC 2034 4: neither the greeting nor the reply to a hello has enhanced codes.
_GREETING = re.compile(rb"mx\.test (?:ESMTP|LMTP)|mx\.test Nice to meet you")
# RFC 6531 3.7.4: UTF-8 stands in replies that name a mailbox and in no other.
_OF_MAILBOXES = (250, 551)
LONGEST = 512


def check(said: bytes, *, codes: bool) -> None:
    """Raise where these are no replies. codes: whether they have enhanced codes."""
    for code, texts in replies(said):
        assert code // 100 != 1
        for text in texts:
            assert len(text) + len(b"250 \r\n") <= LONGEST, text
            assert text.isascii() or code in _OF_MAILBOXES, text
            text.decode()
        if codes:
            _check_codes(code, texts)


def replies(said: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield code and texts of each reply."""
    at, code, texts = 0, 0, list[bytes]()
    while at < len(said):
        line = _LINE.match(said, at)
        assert line is not None, said[at : at + LONGEST]
        assert not texts or code == int(line[1]), "two codes in one reply"
        code, at = int(line[1]), line.end()
        texts.append(line[3])
        if line[2] == b" ":
            yield code, texts
            texts = []
    assert not texts, "the last reply has no end"


def _check_codes(code: int, texts: list[bytes]) -> None:
    if code // 100 == 3 or _GREETING.match(texts[0]):
        assert not any(map(_ENHANCED.match, texts)), texts
        return
    for text in texts:
        found = _ENHANCED.match(text)
        assert found is not None, (code, text)
        assert int(found[1]) == code // 100, (code, text)
