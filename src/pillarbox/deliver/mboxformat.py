"""How a message stands in an mbox file: behind a From_ line, with LF, and with no other line that looks like one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from pillarbox import Session
from pillarbox.deliver.spool import Spool

__all__ = ["Quoted", "content", "from_line"]


def content(session: Session, spool: Spool) -> Iterator[bytes]:
    """Give the message as it stands in the file: with its From_ line, quoted, and an empty line behind it."""
    quoted = Quoted()
    last = from_line(session)
    yield last
    for block in spool.blocks():
        yield quoted(block)
        last = block
    yield quoted.rest() + (b"\n" if last.endswith(b"\n") else b"\n\n")


def from_line(session: Session) -> bytes:
    """Return the line that begins a message in an mbox file: the sender, and the time in UTC."""
    # RFC 4155 A: "a timestamp indicating the UTC date and time when the message was originally received, conformant
    # with the syntax of the traditional UNIX 'ctime' output sans timezone". Local programs have MAILER-DAEMON for the
    # null sender, and look for the end of the address at a space.
    sender = str(session.envelope.mail_from or "") or "MAILER-DAEMON"
    return f"From {'_'.join(sender.split())} {time.asctime(time.gmtime())}\n".encode()


class Quoted:
    """Puts ``>`` before ``From `` where that and any number of ``>`` begin a line (mboxrd), block by block.

    The new one stands right before ``From ``: no run of them need be kept until its end is known.
    """

    _LINE = re.compile(rb"^(>*)(From )", re.MULTILINE)
    _BEGINNING = re.compile(rb"F(?:r(?:om?)?)?\Z")

    def __init__(self) -> None:
        self._kept = b""
        self._at_start = True  # all that the line has so far is ">"

    def __call__(self, block: bytes) -> bytes:
        block = self._kept + block
        begun = self._BEGINNING.search(block, max(0, len(block) - 4))
        self._kept = begun[0] if begun else b""
        block = block[: len(block) - len(self._kept)]
        quoted = self._quoted(block) if b"From " in block else block
        _, newline, last = block.rpartition(b"\n")
        self._at_start = (bool(newline) or self._at_start) and not last.strip(b">")
        return quoted

    def _quoted(self, block: bytes) -> bytes:
        if self._at_start:
            return self._LINE.sub(rb"\1>\2", block)
        first, newline, others = block.partition(b"\n")
        return first + newline + self._LINE.sub(rb"\1>\2", others)

    def rest(self) -> bytes:
        """Return what still waits at the message's end."""
        return self._kept
