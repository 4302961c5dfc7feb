"""The messages that are sent: what kinds there are, and how each is written for the two load programs.

Always the same octets, so that two runs compare.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KB, MB = 1024, 1024 * 1024
HEADER = (
    b"From: Sender <sender@example.org>",
    b"To: Ann <ann@example.com>",
    b"Subject: a message of the benchmark",
    b"Date: Sat, 07 Mar 2026 09:05:03 +0000",
    b"Message-ID: <20260307090503.1@example.org>",
    b"",
)
_WORDS = (
    b"the letter was dropped in the box at the corner, and nobody saw who had brought it. When the postman came, "
    b"he read the address twice, e.g. to be sure; then he took it along. It rained... all the day"
).split()


def _base64() -> Iterator[bytes]:
    """What most large mail is: 76 characters a line, no dot."""
    source = random.Random(5321)
    while True:
        yield base64.b64encode(source.randbytes(57))


def _prose() -> Iterator[bytes]:
    """A dot now and then, seldom at the start of a line."""
    source = random.Random(2920)
    while True:
        line = b""
        while len(line) < 66:
            line += source.choice(_WORDS) + b" "
        yield line.rstrip()


def _dots() -> Iterator[bytes]:
    """The worst case for transparency: every line begins with a dot."""
    for line in _prose():
        yield b"." + line


_KINDS = {"base64": _base64, "prose": _prose, "dots": _dots, "bare-lf": _prose}


@dataclass(frozen=True)
class Body:
    """A kind of text and its size in octets, header included."""

    kind: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}"

    def lines(self) -> list[bytes]:
        made, length = list(HEADER), sum(len(line) + 2 for line in HEADER)
        for line in _KINDS[self.kind]():
            if length >= self.size:
                return made
            made.append(line[: max(1, self.size - length - 2)])
            length += len(made[-1]) + 2
        return made

    def for_smtp_source(self, folder: Path) -> Path:
        """Write it as lines; ``smtp-source -F`` reads it once, doubles the dots and sends lines with CRLF."""
        return _written(folder / f"{self.name}.lines", b"\n".join(self.lines()) + b"\n")

    def for_load(self, folder: Path) -> Path:
        """Write it as it is sent: dots doubled, the end of data behind it."""
        end = b"\n" if self.kind == "bare-lf" else b"\r\n"
        lines = [b"." + line if line.startswith(b".") else line for line in self.lines()]
        head, text = lines[: len(HEADER)], lines[len(HEADER) :]
        octets = b"\r\n".join(head) + b"\r\n" + end.join(text) + b"\r\n.\r\n"
        return _written(folder / f"{self.name}.octets", octets)


def _written(file: Path, octets: bytes) -> Path:
    if not file.exists():
        file.write_bytes(octets)
    return file
