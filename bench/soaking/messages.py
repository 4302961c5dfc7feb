"""The messages of a soak: each says who it is and what its body hashes to, so that whoever stores it can judge it.

An id tells what may become of it: ``ack``: a good client's, in the end acknowledged and stored; ``any``: a hostile
client's whole one, to be stored if it was acknowledged; ``not``: one that was never whole, or smuggled.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["ack", "any", "not"]

KB, MB = 1024, 1024 * 1024
_HEAD = b"X-Soak-Id: %b\r\nX-Soak-Digest: %b\r\n\r\n"
_FOUND = re.compile(rb"X-Soak-Id: (\S{24})\r\nX-Soak-Digest: ([0-9a-f]{64})\r\n\r\n")
HEAD_LENGTH = len(_HEAD % (b"i" * 24, b"d" * 64))
_numbers = itertools.count(1)


def _lines(size: int) -> bytes:
    """Make lines as mail has them; some begin with a dot, which has to be doubled on the way and come back single."""
    source = random.Random(5321)
    made = bytearray()
    while len(made) < size:
        made += b"." * (source.random() < 0.02) + base64.b64encode(source.randbytes(57)) + b"\r\n"
    return bytes(made)


_TEXT = _lines(MB) * 20  # made once: what is sent is a piece of it


@dataclass(frozen=True)
class Message:
    """A message as it is to be stored, and its id."""

    id: bytes
    octets: bytes

    @property
    def stuffed(self) -> bytes:
        """What DATA sends: dots doubled, the end of data behind it."""
        # No header line begins with a dot, so that each doubled one has a CRLF in front.
        return self.octets.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def message(kind: Kind, size: int) -> Message:
    """Make one of about this size, unlike all others."""
    name = _name(kind)
    end = _TEXT.find(b"\r\n", size) + 2
    body = b"This is " + name + b".\r\n" + _TEXT[:end]
    return Message(name, _head(name, body) + body)


def raw(kind: Kind, sent: bytes) -> tuple[bytes, bytes]:
    """Return the id and the octets before the end of data of a body with bare newlines.

    The digest is that of what has to come out: a dot behind CRLF is gone, a bare LF is CRLF, a bare CR is a space.
    """
    name = _name(kind)
    stored = sent.replace(b"\r\n.", b"\r\n").replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
    return name, _head(name, stored) + sent


def _name(kind: Kind) -> bytes:
    return b"%b-%06d-%013d" % (kind.encode(), os.getpid() % 1_000_000, next(_numbers))


def _head(name: bytes, body: bytes) -> bytes:
    return _HEAD % (name, hashlib.sha256(body).hexdigest().encode())


@dataclass(frozen=True)
class Stored:
    """A message as it was found: its id, or "" where it has none, and whether its body is what its sender meant."""

    id: str
    whole: bool


class Judge:
    """Looks at a message block by block, without keeping it."""

    def __init__(self) -> None:
        self._head = b""
        self._digest = hashlib.sha256()

    def feed(self, block: bytes) -> None:
        """Take the next block."""
        if len(self._head) < HEAD_LENGTH:
            self._head += block
            block, self._head = self._head[HEAD_LENGTH:], self._head[:HEAD_LENGTH]
        self._digest.update(block)

    def verdict(self) -> Stored:
        """Say what it was."""
        found = _FOUND.fullmatch(self._head)
        if found is None:
            return Stored("", whole=False)
        return Stored(found[1].decode(), found[2].decode() == self._digest.hexdigest())


def judged(octets: bytes) -> Stored:
    """Judge a file of a Maildir: header fields stand in front of the message, and its lines may end with LF."""
    octets = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    judge = Judge()
    judge.feed(octets[max(0, octets.find(b"X-Soak-Id: ")) :])
    return judge.verdict()
