"""What the header section of a passing message tells a server that hands it on: how often that was done already."""

from __future__ import annotations

import re

from pillarbox import Reject

__all__ = ["MOST_HOPS", "HeaderWatch"]

# RFC 5321 6.3: 'Simple counting of the number of "Received:" header fields in a message has proven to be an effective,
# although rarely optimal, method of detecting loops in mail systems.' A server that does so is to have a large limit
# there, "normally at least 100".
MOST_HOPS = 100

# RFC 5322 4.5 lets white space stand before the colon.
_RECEIVED = re.compile(rb"received[ \t]*:", re.IGNORECASE)
_KEPT = 64  # octets of a line that has not ended yet: enough to tell its name


class HeaderWatch:
    """Reads along: ``feed`` it the message's blocks, from the first one on.

    hops: the Received fields so far. is_ascii: no octet above 127 so far. ended: the header section is over, and
    nothing changes any more.
    """

    def __init__(self) -> None:
        self.hops = 0
        self.is_ascii = True
        self.ended = False
        self._line = b""  # the beginning of the line that has not ended, and its last octet

    def feed(self, block: bytes) -> None:
        """Read the next block; raise Reject (554 5.4.6) where the message has been on the way too often."""
        if self.ended:
            return
        *lines, last = (self._line + block).split(b"\n")
        for line in lines:
            # Where a bare LF is let in, the next server may take it for a line's end: so it is one here too.
            if line in (b"", b"\r"):
                self.ended = True
                return
            self._note(line)
        if not last.isascii():
            self.is_ascii = False
        self._line = last if len(last) < _KEPT else last[: _KEPT - 1] + last[-1:]

    def _note(self, line: bytes) -> None:
        if not line.isascii():
            self.is_ascii = False
        if _RECEIVED.match(line):
            self.hops += 1
        if self.hops > MOST_HOPS:
            # RFC 3463 3.5: "X.4.6 Routing loop detected".
            raise Reject(554, "Error: too many hops, this is a mail loop", enhanced="5.4.6")
