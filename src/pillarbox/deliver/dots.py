"""What stands between DATA and its end: no line of a message is that end, and CR and LF leave as CRLF only."""

from __future__ import annotations

__all__ = ["BareNewline", "Dots"]


class BareNewline(ValueError):
    """The message holds a CR or an LF that is no part of a CRLF: DATA cannot carry it."""


class Dots:
    """Transparency for a message that passes in blocks: ``block`` each of them, then ``end``."""

    def __init__(self) -> None:
        self._cr = b""  # a CR at the end of a block: what it is, the next one says
        self._at_line_start = True

    def block(self, octets: bytes) -> bytes:
        """Return the next octets as they are sent; raise BareNewline before anything of them is."""
        octets = self._cr + octets
        self._cr = octets[-1:] if octets.endswith(b"\r") else b""
        if self._cr:
            octets = octets[:-1]
        # RFC 5321 2.3.8: "SMTP client implementations MUST NOT transmit these characters except when they are intended
        # as line terminators and then MUST, as indicated above, transmit them only as a <CRLF> sequence." A server that
        # took one of them for a line's end could be made to see two messages.
        rest = octets.replace(b"\r\n", b"")
        if b"\r" in rest or b"\n" in rest:
            raise BareNewline
        if not octets:
            return b""
        # RFC 5321 4.5.2: "Before sending a line of mail text, the SMTP client checks the first character of the line.
        # If it is a period, one additional period is inserted at the beginning of the line."
        first = b"." if self._at_line_start and octets.startswith(b".") else b""
        self._at_line_start = octets.endswith(b"\n")
        if b"." not in octets:  # 10 us a megabyte instead of 700-900, and most bodies are base64
            return octets
        return first + octets.replace(b"\r\n.", b"\r\n..")

    def end(self) -> bytes:
        """Return what ends the message, with the CRLF that its last line may lack."""
        if self._cr:
            raise BareNewline
        return b".\r\n" if self._at_line_start else b"\r\n.\r\n"
