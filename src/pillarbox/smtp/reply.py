"""Replies: each is text once and octets once; nothing else in the package writes a reply line.

A reply owns its code, its enhanced code (RFC 3463) and its octets with and without that code. All that the protocol
itself ever says stands in the table below (``TABLE``), from which docs/replies.md is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from pillarbox.errors import Reject

_Maker = TypeVar("_Maker", bound=Callable[..., "Reply"])

# RFC 5321 4.5.3.1.5: "The maximum total length of a reply line including the reply code and the <CRLF> is 512
# octets."
MAX_REPLY_LINE = 512

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\u2060\ufeff]")


def printable(text: str) -> str:
    """Replace what could forge a line or hide in one (CR, LF, control and invisible characters) by spaces."""
    return text if text.isprintable() else _UNSAFE.sub(" ", text)


def encode(code: int, text: str, enhanced: str = "", *, utf8: bool = False) -> bytes:
    """Return the octets of a reply; text that does not fit one line becomes several (RFC 5321 4.2.1)."""
    # RFC 6531 3.7.4.2: "SMTPUTF8-aware SMTP servers MUST NOT include non-ASCII characters in replies except in the
    # limited cases specifically permitted in this section."
    octets = printable(text).encode("utf-8" if utf8 else "ascii", "replace")
    # RFC 2034 4: "the enhanced status code … preceding the text part of … each line" of 2xx, 4xx and 5xx replies.
    start = enhanced.encode() + b" " if enhanced and code // 100 in (2, 4, 5) else b""
    parts = _wrapped(octets, MAX_REPLY_LINE - len(b"250 \r\n") - len(start))
    return lines(code, [start + part for part in parts])


def lines(code: int, parts: Sequence[bytes]) -> bytes:
    """Return a reply of these lines: a hyphen behind the code of all but the last (RFC 5321 4.2.1)."""
    # RFC 5321 4.2 has first digits from 2 to 5.
    if not (isinstance(code, int) and 200 <= code <= 599):
        raise ValueError(f"Reply: code must be from 200 to 599, not {code!r}")
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

    def __init__(self, answer: Reply, failure: BaseException | None = None) -> None:
        super().__init__(str(answer))
        self.reply = answer
        self.failure = failure


def from_reject(reject: Reject, default: Reply, *, utf8: bool = False) -> Reply:
    """Return the reply that a handler's ``Reject`` means, with the hook's defaults for what it left out.

    utf8: whether the client can take a reply in UTF-8 where it names a mailbox (551).
    """
    code = reject.code or _code_of_class(reject.enhanced, default.code)
    text = default.text if reject.text is None else reject.text
    if code == 551 and not (utf8 or text.isascii()):
        return MAILBOX_NEEDS_UTF8
    if reject.enhanced:
        enhanced = reject.enhanced
    elif code == default.code:
        enhanced = default.enhanced
    else:
        # RFC 3463 3.1: "X.0.0 Other undefined status is the only undefined error code."
        enhanced = f"{code // 100}.0.0"
    # RFC 6531 3.7.4.1: "the SMTPUTF8-aware SMTP server is permitted to use UTF-8 characters in the email address
    # associated with 251 and 551 reply-codes".
    return Reply(code, enhanced, text, utf8=utf8 and code == 551)


def _code_of_class(enhanced: str | None, default: int) -> int:
    """Return the hook's code, or 450 or 550 where only an enhanced code of the other class was given."""
    # RFC 2034 4: "the class … of the enhanced status code … MUST … agree with" the reply code's first digit.
    return default if enhanced is None or enhanced[0] == str(default)[0] else int(enhanced[0]) * 100 + 50


# --- The table: every reply of the protocol, with the enhanced code of the place that knows the reason


class Entry(NamedTuple):
    """One line of the table: a reply, and when it is given."""

    reply: Reply
    when: str


TABLE: list[Entry] = []


def _fixed(code: int, enhanced: str, text: str, when: str) -> Reply:
    """Make a reply that is always the same."""
    answer = Reply(code, enhanced, text)
    TABLE.append(Entry(answer, when))
    return answer


def _varying(when: str, *sample: Any) -> Callable[[_Maker], _Maker]:
    """Enter a function that makes replies, with what it makes of a sample."""

    def entered(make: _Maker) -> _Maker:
        TABLE.append(Entry(make(*sample), when))
        return make

    return entered


# Done, or go on.

OK = _fixed(250, "2.0.0", "OK", "NOOP; XFORWARD is taken")
FLUSHED = _fixed(250, "2.0.0", "Flushed", "RSET")
BYE = _fixed(221, "2.0.0", "Bye", "QUIT")
HELP = _fixed(214, "2.0.0", "See https://www.rfc-editor.org/rfc/rfc5321 for details", "HELP, without `on_help`")
# Not X.1.5, "Destination address valid" (RFC 3463 3.2): nobody has looked.
CANNOT_VERIFY = _fixed(
    252, "2.0.0", "Cannot VRFY user, but will accept message and attempt delivery", "VRFY, without `on_vrfy`"
)
# RFC 6531 3.7.4.2: where a reply "requires a UTF-8 string, but the SMTP client did not use the SMTPUTF8 parameter,
# then the SMTPUTF8-aware SMTP server MUST use either the reply-code 252 or 550", with "X.6.8".
CANNOT_SHOW = _fixed(
    252, "2.6.8", "The mailbox can only be shown in UTF-8", "VRFY without SMTPUTF8, and the mailbox is not in ASCII"
)
SENDER_OK = _fixed(250, "2.1.0", "Accepted", "MAIL")
RECIPIENT_OK = _fixed(250, "2.1.5", "Accepted", "RCPT")
START_DATA = _fixed(354, "", "End data with <CR><LF>.<CR><LF>", "DATA")
QUEUED = _fixed(250, "2.6.0", "OK: message queued", "a message is accepted")
ACCEPTED = _fixed(250, "2.6.0", "OK: message accepted", "LMTP: a message is accepted for one recipient")
READY_FOR_TLS = _fixed(220, "2.0.0", "Ready to start TLS", "STARTTLS")
AUTHENTICATED = _fixed(235, "2.7.0", "Authentication successful", "AUTH")


@_varying("BDAT: a chunk, but for the last", 4096)
def chunk_received(octets: int) -> Reply:
    """Return the reply to a chunk."""
    return Reply(250, "2.0.0", f"{octets} octets received")


@_varying("MAIL with MT-PRIORITY, where `on_mail_from` has changed `envelope.mt_priority`", 3)
def priority_changed(priority: int) -> Reply:
    """Return the reply that tells a message's new priority."""
    # X.3.6 is "Requested priority was changed" (RFC 6710).
    return Reply(250, "2.3.6", f"{priority} is the new priority of the message")


# The command itself.

NOT_RECOGNIZED = _fixed(500, "5.5.2", "Error: command not recognized", "an unknown or disabled verb")
TOO_MANY_UNRECOGNIZED = _fixed(
    421, "4.7.0", "Error: too many unrecognized commands", "the `max_errors`-th error, if it is an unknown verb"
)
TOO_MANY_ERRORS = _fixed(
    421, "4.7.0", "Error: too many errors", "the `max_errors`-th error, or one more than a rate of `errors` allows"
)
TOO_MUCH_JUNK = _fixed(421, "4.7.0", "Error: too many commands without a message", "`max_junk_commands` is crossed")
TOO_MANY_UNAUTHENTICATED = _fixed(
    421, "4.7.0", "Error: too many unauthenticated commands", "`max_allowed_unauthenticated_commands` is crossed"
)
LINE_TOO_LONG = _fixed(500, "5.5.2", "Error: Command line too long", "a command is longer than `max_command_length`")
LINE_NEVER_ENDS = _fixed(421, "4.7.0", "Error: Command line too long", "no end of the line within the limit")
BARE_LF = _fixed(500, "5.5.2", "Error: bare <LF> received", 'a command ends in a bare LF, with `bare_newline="reject"`')
HTTP = _fixed(421, "4.7.0", "HTTP requests not allowed", "an HTTP request")
BAD_CHARACTERS = _fixed(
    501, "5.5.2", "Error: control characters or malformed UTF-8 in the command", "such a command, whatever its verb"
)
EHLO_IN_LMTP = _fixed(500, "5.5.1", "Error: EHLO not allowed in LMTP server", "LMTP: HELO or EHLO")
OUT_OF_TURN = _fixed(
    554, "5.5.0", "Error: SMTP protocol synchronization", "input waits behind HELO, EHLO, AUTH, STARTTLS or DATA"
)


@_varying("a command whose form is wrong", "EHLO hostname")
def syntax(form: str) -> Reply:
    """Return ``501 Error: syntax: EHLO hostname``."""
    return Reply(501, "5.5.4", f"Error: syntax: {form}")


# Not now, or not here.

HELLO_FIRST = _fixed(503, "5.5.1", "Error: send HELO/EHLO first", "before HELO or EHLO, and after STARTTLS")
LHLO_FIRST = _fixed(503, "5.5.1", "Error: send LHLO first", "LMTP: before LHLO, and after STARTTLS")
NEED_MAIL = _fixed(503, "5.5.1", "Error: need MAIL command", "RCPT, DATA or BDAT before MAIL")
NEED_RCPT = _fixed(503, "5.5.1", "Error: need RCPT command", "DATA or BDAT before RCPT")
CHUNKS_BEGUN = _fixed(503, "5.5.1", "Error: the message has begun with BDAT", "RCPT, DATA or STARTTLS after BDAT")
CHUNK_AFTER_REFUSAL = _fixed(503, "5.5.1", "Error: the message was refused, send RSET", "BDAT after a refused BDAT")
BINARY_NEEDS_BDAT = _fixed(
    503, "5.5.1", "Error: a message with BODY=BINARYMIME needs BDAT", "DATA after BODY=BINARYMIME"
)
NESTED_MAIL = _fixed(503, "5.5.1", "Error: nested MAIL command", "MAIL in a transaction")
IN_TRANSACTION = _fixed(
    503, "5.5.1", "Error: not allowed in a mail transaction", "AUTH, XCLIENT or XFORWARD in a transaction"
)
TLS_ACTIVE = _fixed(503, "5.5.1", "Error: TLS already active", "STARTTLS under TLS")
NO_IDENTITY_CHANGES = _fixed(503, "5.5.1", "Error: No identity changes permitted", "AUTH after a login")
NEED_TLS_FOR_AUTH = _fixed(538, "5.7.11", "Error: Must issue a STARTTLS command first", "AUTH before the TLS it needs")


@_varying("MAIL and what follows it, before the login that is required (`auth_required_message`)", "Error: …")
def authentication_required(text: str) -> Reply:
    """Return the reply to mail before AUTH."""
    return Reply(530, "5.7.0", text)


# Addresses and parameters.

# RFC 3463 3.2 has X.1.7 for the sender's; the contract of this server's replies has one code for any bad mailbox.
BAD_SENDER = _fixed(501, "5.1.3", "Error: Bad sender address syntax", "MAIL: a malformed address")
BAD_RECIPIENT = _fixed(501, "5.1.3", "Error: Bad recipient address syntax", "RCPT: a malformed address, or none")
# RFC 6531 3.5: "When messages are rejected because the RCPT command requires an ASCII address, the reply-code 553 is
# returned"; "because the MAIL command requires an ASCII address, the reply-code 550".
SENDER_NEEDS_SMTPUTF8 = _fixed(
    550, "5.6.7", "Error: a non-ASCII address needs the SMTPUTF8 parameter", "MAIL: UTF-8 without SMTPUTF8"
)
NEED_SMTPUTF8 = _fixed(
    553,
    "5.6.7",
    "Error: a non-ASCII address needs the SMTPUTF8 parameter",
    "RCPT, VRFY or EXPN: UTF-8 without SMTPUTF8 (for RCPT, on MAIL)",
)
MAILBOX_NEEDS_UTF8 = _fixed(
    550,
    "5.6.8",
    "Error: the mailbox can only be shown in UTF-8",
    "EXPN without SMTPUTF8, or 551 in a transaction without it, and a mailbox is not in ASCII",
)
BAD_PARAMETERS = _fixed(
    501, "5.5.4", "Error: syntax of the parameters", "a `Reject` without text in a parameter of your own"
)


@_varying("MAIL or RCPT: a parameter is malformed, given twice, without its value, or has a wrong one", "…")
def wrong_parameter(problem: str) -> Reply:
    """Return the reply to a parameter that is wrong."""
    return Reply(501, "5.5.4", f"Error: {problem}")


@_varying("MAIL or RCPT: a parameter that is unknown or whose option is off, unless `lenient_parameters`", "FOO")
def unknown_parameter(keyword: str) -> Reply:
    """Return the reply to a parameter that is not known here."""
    # RFC 5321 4.1.1.11: "If the server SMTP does not recognize or cannot implement one or more of the parameters
    # associated with a particular MAIL FROM or RCPT TO command, it will return code 555."
    return Reply(555, "5.5.4", f"Error: parameter {keyword} is not supported")


@_varying("MAIL: BY asks for less time than `deliver_by` announces", 120)
def too_soon_to_deliver(seconds: int) -> Reply:
    """Return the reply to a by-time that is too short."""
    return Reply(555, "5.5.4", f"Error: BY must be {seconds} seconds or more with R")


REQUIRETLS_NEEDS_TLS = _fixed(530, "5.7.10", "Error: REQUIRETLS needs TLS", "MAIL with REQUIRETLS in plaintext")
# RFC 5321 4.5.3.1.10: "RFC 821 [1] incorrectly listed the error where an SMTP server exhausts its implementation limit
# on the number of RCPT commands ("too many recipients") as having reply code 552. The correct reply code for this
# condition is 452."
TOO_MANY_RECIPIENTS = _fixed(452, "4.5.3", "Error: too many recipients", "RCPT: one more than `max_recipients`")
TOO_MANY_REFUSED = _fixed(
    452,
    "4.5.3",
    "Error: too many refused recipients",
    "RCPT after `max_refused_recipients`, in a transaction that has recipients",
)
TOO_MANY_REFUSED_CLOSING = _fixed(
    421, "4.7.0", "Error: too many refused recipients", "the same, in a transaction without recipients"
)
TOO_MANY_RECIPIENTS_NOW = _fixed(
    450, "4.7.1", "Error: too many recipients, try again later", "RCPT: one more than a rate of `recipients` allows"
)
TOO_MUCH_MAIL_NOW = _fixed(
    450, "4.7.1", "Error: too much mail, try again later", "MAIL: one more than a rate of `messages` allows"
)
TOO_MANY_MESSAGES = _fixed(
    421, "4.7.0", "Error: too many messages in this connection", "MAIL: one more than `max_messages`"
)


@_varying("MAIL with SIZE, or the end of the message: it is larger than `size` (no number with `hide_size`)", " N")
def too_large(number: str) -> Reply:
    """Return the reply to a message that is too large; the number comes with a space before it, or is ""."""
    return Reply(552, "5.3.4", f"Error: message exceeds fixed maximum message size{number}")


# AUTH.

UNKNOWN_MECHANISM = _fixed(504, "5.5.4", "Error: Unrecognized authentication type", "AUTH: an unknown mechanism")
AUTH_ABORTED = _fixed(501, "5.7.0", "Authentication aborted", "AUTH: the client answers `*`")
INVALID_USERDATA = _fixed(500, "5.5.2", "Error: invalid userdata", "AUTH: a malformed credential")
BAD_CREDENTIALS = _fixed(535, "5.7.8", "Invalid username or password", "`on_auth` refuses")
AUTH_NOT_IMPLEMENTED = _fixed(535, "5.7.8", "Authentication not implemented", "AUTH, without `on_auth`")
AUTH_FAILED_HERE = _fixed(454, "4.7.0", "Temporary authentication failure", "`on_auth` fails")

TOO_MANY_AUTH_FAILURES = _fixed(
    421,
    "4.7.0",
    "Error: too many failed logins",
    "AUTH after `max_auth_failures` failed logins, or while a rate of `auth_failures` allows none",
)
ACCOUNT_LOCKED = _fixed(
    454,
    "4.7.0",
    "Error: too many failed logins, try again later",
    "AUTH while a rate of `auth_failures` of the account allows none, whatever the password",
)

# Messages.

BARE_NEWLINE_IN_DATA = _fixed(
    550, "5.6.0", "Error: bare <CR> or <LF> in the message", 'such a message, with `bare_newline="reject"`'
)
NUL_IN_DATA = _fixed(
    550, "5.6.0", "Error: NUL in the message", 'such a message, unless `bare_newline="accept"` or BODY=BINARYMIME'
)


@_varying("`on_data` returns a text", "…")
def message_accepted(text: str) -> Reply:
    """Return the reply to a message that ``on_data`` accepts in its own words."""
    return Reply(250, "2.6.0", text)


# Refusals of handlers that do not say more, by hook.

CONNECTION_REFUSED = _fixed(554, "5.7.1", "Error: connection refused", "`on_connect` or `on_secure` refuses")
HELLO_REFUSED = _fixed(550, "5.7.1", "Error: access denied", "`on_ehlo` refuses")
SENDER_REFUSED = _fixed(550, "5.7.1", "Error: sender refused", "`on_mail_from` refuses")
RECIPIENT_REFUSED = _fixed(550, "5.1.1", "Error: recipient refused", "`on_rcpt_to` refuses")
MESSAGE_REFUSED = _fixed(450, "4.3.0", "Error: message refused, try again later", "`on_data` refuses")
NO_SUCH_USER = _fixed(550, "5.1.1", "Error: no such user", "`on_vrfy` refuses")
NO_SUCH_LIST = _fixed(550, "5.1.1", "Error: no such mailing list", "`on_expn` refuses or returns nothing")
NO_HELP = _fixed(504, "5.5.4", "Error: no help on that", "`on_help` refuses")
LOGIN_REFUSED = _fixed(550, "5.7.8", "Error: LOGIN refused", "XCLIENT with LOGIN, and `on_auth` refuses")


def login_refused(text: str | None) -> Reply:
    """Return the reply to a LOGIN of XCLIENT that ``on_auth`` refuses, in its own words if it has some."""
    return Reply(LOGIN_REFUSED.code, LOGIN_REFUSED.enhanced, text or LOGIN_REFUSED.text)


@_varying("a verb of your own refuses", "XPING")
def verb_refused(verb: str) -> Reply:
    """Return the reply of an application's verb that refuses."""
    return Reply(550, "5.7.1", f"Error: {verb} refused")


@_varying("`on_help` returns text: a line for each of its lines", 214, "2.0.0", ["Call us."])
@_varying("`on_vrfy` or `on_expn` returns mailboxes: a line for each", 250, "2.1.5", ["Jo Doe <jo@example.com>"])
def text_lines(code: int, enhanced: str, texts: Sequence[str], *, utf8: bool = False) -> Reply:
    """Return a reply of these lines, each cut to what fits."""
    parts = [one_line(text, enhanced, utf8=utf8) for text in texts]
    return Reply.of_lines(code, parts or [b""], enhanced)


# The connection, and what goes wrong here.

TIMEOUT = _fixed(421, "4.4.2", "Timeout - closing connection", "silence for `socket_timeout`")
COMMAND_TOO_SLOW = _fixed(421, "4.4.2", "Timeout - the command takes too long", "`command_timeout` is over")
MESSAGE_TOO_SLOW = _fixed(421, "4.4.2", "Timeout - the message comes too slowly", "slower than `min_data_rate`")
SESSION_TOO_LONG = _fixed(421, "4.4.2", "Timeout - the connection lasts too long", "`max_session_duration` is over")
SHUTTING_DOWN = _fixed(421, "4.3.2", "Server shutting down", "the server closes")
LOCAL_ERROR = _fixed(451, "4.3.0", "Error: local error in processing", "a handler fails or takes too long")
LOCAL_ERROR_CLOSING = _fixed(
    421, "4.3.0", "Error: local error in processing", "`on_connect` or `on_secure` fails or takes too long"
)


@_varying("input before the greeting", "NAME")
def talks_too_soon(name: str) -> Reply:
    """Return the reply to a client that does not wait for the greeting."""
    return Reply(421, "4.7.0", f"{name} You talk too soon")


@_varying("more connections than `max_clients`, or than there are descriptors for", "NAME")
def too_many_clients(name: str) -> Reply:
    """Return the reply to a connection too many."""
    return Reply(421, "4.3.2", f"{name} Too many connected clients, try again in a moment")


@_varying("more connections from one address than `max_clients_per_address`, or than a rate of `connections`", "NAME")
def too_many_connections(name: str) -> Reply:
    """Return the reply to a connection too many of one address."""
    return Reply(421, "4.7.0", f"{name} Too many connections, try again later")


# What a proxy says.

NOT_PERMITTED = _fixed(550, "5.7.0", "Error: not permitted", "XCLIENT or XFORWARD from a client that is not listed")
BAD_ATTRIBUTES = _fixed(501, "5.5.4", "Error: bad attribute", "XCLIENT or XFORWARD: the value of an attribute is wrong")


@_varying("XCLIENT or XFORWARD: an attribute is unknown, malformed or given twice", "XCLIENT", "FOO")
def bad_attribute(verb: str, name: str) -> Reply:
    """Return the reply to an attribute that is wrong as a whole."""
    return Reply(501, "5.5.4", f"Error: bad {verb} attribute: {name}")
