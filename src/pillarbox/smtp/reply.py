"""Replies: each is text once and octets once; nothing else in the package writes a reply line.

A reply owns its code, its enhanced code (RFC 3463) and its octets with and without that code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pillarbox.errors import Reject

# RFC 5321 4.5.3.1.5: "The maximum total length of a reply line including the reply code and the <CRLF> is 512
# octets."
MAX_REPLY_LINE = 512

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\u2060\ufeff]")


def printable(text: str) -> str:
    """Replace what could forge a line or hide in one (CR, LF, control and invisible characters) by spaces."""
    return text if text.isprintable() else _UNSAFE.sub(" ", text)


def encode(code: int, text: str, enhanced: str = "", *, utf8: bool = False) -> bytes:
    """Return the octets of a reply; text that does not fit one line becomes several (RFC 5321 4.2.1)."""
    # RFC 6531 3.7.4.1: without SMTPUTF8 "the reply text MUST be in ASCII".
    octets = printable(text).encode("utf-8" if utf8 else "ascii", "replace")
    # RFC 2034 4: "the enhanced status code … preceding the text part of … each line" of 2xx, 4xx and 5xx replies.
    start = enhanced.encode() + b" " if enhanced and code // 100 in (2, 4, 5) else b""
    parts = _wrapped(octets, MAX_REPLY_LINE - len(b"250 \r\n") - len(start))
    return lines(code, [start + part for part in parts])


def lines(code: int, parts: Sequence[bytes]) -> bytes:
    """Return a reply of these lines: a hyphen behind the code of all but the last (RFC 5321 4.2.1)."""
    first = b"%d-" % code
    return b"".join([first + part + b"\r\n" for part in parts[:-1]]) + b"%d %b\r\n" % (code, parts[-1])


def one_line(text: str, enhanced: str = "", *, utf8: bool = False) -> bytes:
    """Return text for one line of a reply of several, cut to what fits."""
    room = MAX_REPLY_LINE - len(b"250-\r\n") - (len(enhanced) + 1 if enhanced else 0)
    octets = printable(text).encode("utf-8" if utf8 else "ascii", "replace")
    return octets if len(octets) <= room else octets[:room].decode("utf-8", "ignore").encode()


def _wrapped(octets: bytes, room: int) -> list[bytes]:
    parts = []
    while len(octets) > room:
        cut = octets.rfind(b" ", 1, room + 1)
        if cut < 0:
            cut = room
            while octets[cut] & 0xC0 == 0x80:  # not inside a UTF-8 character
                cut -= 1
        parts.append(octets[:cut])
        octets = octets[cut:].lstrip(b" ")
    return [*parts, octets]


class Reply:
    """A reply; ``coded`` and ``plain`` are what goes on the wire with and without the enhanced code, made once."""

    __slots__ = ("code", "coded", "enhanced", "plain", "text")

    def __init__(self, code: int, enhanced: str, text: str, *, utf8: bool = False) -> None:
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.plain = encode(code, text, utf8=utf8)
        self.coded = encode(code, text, enhanced, utf8=utf8) if enhanced else self.plain

    @classmethod
    def of_lines(cls, code: int, parts: Sequence[bytes], enhanced: str = "") -> Reply:
        """Make a reply of these lines, each of which fits."""
        answer = cls.__new__(cls)
        answer.code, answer.enhanced, answer.text = code, enhanced, ""
        answer.plain = answer.coded = lines(code, parts)
        if enhanced:
            start = enhanced.encode() + b" "
            answer.coded = lines(code, [start + part for part in parts])
        return answer

    def shown(self, codes: bool) -> str:
        """Return the reply as text, with or without the enhanced code."""
        start = f"{self.code} {self.enhanced}" if codes and self.enhanced else str(self.code)
        return f"{start} {self.text}" if self.text else start

    def __str__(self) -> str:
        return self.shown(codes=True)

    def __repr__(self) -> str:
        return f"<Reply {self}>"


class Refused(Exception):
    """What the client asked for is refused with this reply; the session stays as it was.

    failure: what went wrong in the application, for ``on_error``, where that is why.
    """

    def __init__(self, answer: Reply, failure: Exception | None = None) -> None:
        super().__init__(str(answer))
        self.reply = answer
        self.failure = failure


def from_reject(reject: Reject, default: Reply, *, utf8: bool = False) -> Reply:
    """Return the reply that a handler's ``Reject`` means, with the hook's defaults for what it left out."""
    code = reject.code or _code_of_class(reject.enhanced, default.code)
    text = default.text if reject.text is None else reject.text
    if reject.enhanced:
        enhanced = reject.enhanced
    elif code == default.code:
        enhanced = default.enhanced
    else:
        # RFC 3463 3.1: "X.0.0 Other undefined status is the only undefined error code."
        enhanced = f"{code // 100}.0.0"
    return Reply(code, enhanced, text, utf8=utf8)


def _code_of_class(enhanced: str | None, default: int) -> int:
    """Return the hook's code, or 450 or 550 where only an enhanced code of the other class was given."""
    # RFC 2034 4: "the class … of the enhanced status code … MUST … agree with" the reply code's first digit.
    return default if enhanced is None or enhanced[0] == str(default)[0] else int(enhanced[0]) * 100 + 50


# --- Every fixed reply of the dialogue, with the enhanced code of the place that knows the reason.

OK = Reply(250, "2.0.0", "OK")
FLUSHED = Reply(250, "2.0.0", "Flushed")
BYE = Reply(221, "2.0.0", "Bye")
HELP = Reply(214, "2.0.0", "See https://www.rfc-editor.org/rfc/rfc5321 for details")
CANNOT_VERIFY = Reply(252, "2.1.5", "Cannot VRFY user, but will accept message and attempt delivery")
SENDER_OK = Reply(250, "2.1.0", "Accepted")
RECIPIENT_OK = Reply(250, "2.1.5", "Accepted")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
QUEUED = Reply(250, "2.6.0", "OK: message queued")
ACCEPTED = Reply(250, "2.6.0", "OK: message accepted")
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED = Reply(235, "2.7.0", "Authentication successful")

NOT_RECOGNIZED = Reply(500, "5.5.2", "Error: command not recognized")
TOO_MANY_UNRECOGNIZED = Reply(421, "4.7.0", "Error: too many unrecognized commands")
TOO_MANY_UNAUTHENTICATED = Reply(421, "4.7.0", "Error: too many unauthenticated commands")
LINE_TOO_LONG = Reply(500, "5.5.2", "Error: Command line too long")
LINE_NEVER_ENDS = Reply(421, "4.7.0", "Error: Command line too long")
BARE_LF = Reply(500, "5.5.2", "Error: bare <LF> received")
HTTP = Reply(421, "4.7.0", "HTTP requests not allowed")
BAD_CHARACTERS = Reply(501, "5.5.2", "Error: control characters or malformed UTF-8 in the command")
EHLO_IN_LMTP = Reply(500, "5.5.1", "Error: EHLO not allowed in LMTP server")
OUT_OF_TURN = Reply(554, "5.5.0", "Error: SMTP protocol synchronization")

HELLO_FIRST = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
LHLO_FIRST = Reply(503, "5.5.1", "Error: send LHLO first")
NEED_MAIL = Reply(503, "5.5.1", "Error: need MAIL command")
NEED_RCPT = Reply(503, "5.5.1", "Error: need RCPT command")
CHUNKS_BEGUN = Reply(503, "5.5.1", "Error: the message has begun with BDAT")
CHUNK_AFTER_REFUSAL = Reply(503, "5.5.1", "Error: the message was refused, send RSET")
BINARY_NEEDS_BDAT = Reply(503, "5.5.1", "Error: a message with BODY=BINARYMIME needs BDAT")
NESTED_MAIL = Reply(503, "5.5.1", "Error: nested MAIL command")
IN_TRANSACTION = Reply(503, "5.5.1", "Error: not allowed in a mail transaction")
TLS_ACTIVE = Reply(503, "5.5.1", "Error: TLS already active")
NO_IDENTITY_CHANGES = Reply(503, "5.5.1", "Error: No identity changes permitted")
NEED_TLS_FOR_AUTH = Reply(538, "5.7.11", "Error: Must issue a STARTTLS command first")

BAD_SENDER = Reply(501, "5.1.3", "Error: Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Error: Bad recipient address syntax")
# RFC 6531 3.5: "550" or "553" with "5.6.7" where a non-ASCII address comes without SMTPUTF8.
NEED_SMTPUTF8 = Reply(553, "5.6.7", "Error: a non-ASCII address needs the SMTPUTF8 parameter")
BAD_PARAMETERS = Reply(501, "5.5.4", "Error: syntax of the parameters")

UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Error: Unrecognized authentication type")
AUTH_ABORTED = Reply(501, "5.7.0", "Authentication aborted")
INVALID_USERDATA = Reply(500, "5.5.2", "Error: invalid userdata")
BAD_CREDENTIALS = Reply(535, "5.7.8", "Invalid username or password")
AUTH_FAILED_HERE = Reply(454, "4.7.0", "Temporary authentication failure")

BARE_NEWLINE_IN_DATA = Reply(550, "5.6.0", "Error: bare <CR> or <LF> in the message")
NUL_IN_DATA = Reply(550, "5.6.0", "Error: NUL in the message")

TIMEOUT = Reply(421, "4.4.2", "Timeout - closing connection")
SHUTTING_DOWN = Reply(421, "4.3.2", "Server shutting down")
LOCAL_ERROR = Reply(451, "4.3.0", "Error: local error in processing")
LOCAL_ERROR_CLOSING = Reply(421, "4.3.0", "Error: local error in processing")

NOT_PERMITTED = Reply(550, "5.7.0", "Error: not permitted")
BAD_ATTRIBUTES = Reply(501, "5.5.4", "Error: bad attribute")


def syntax(form: str) -> Reply:
    """Return ``501 Error: syntax: EHLO hostname``."""
    return Reply(501, "5.5.4", f"Error: syntax: {form}")
