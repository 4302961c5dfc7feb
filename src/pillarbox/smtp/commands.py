"""Every verb: what it does and, in one table, when it is legal (RFC 5321 4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import reduce
from logging import INFO
from operator import or_
from typing import TYPE_CHECKING

from pillarbox.session import Address, Envelope, Recipient
from pillarbox.smtp import params, reply, xclient
from pillarbox.smtp.asking import ON_CONNECT, ON_DATA, ON_MAIL_FROM, ON_RCPT_TO, ON_SECURE, authenticate
from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.grammar import GrammarError, address_key, split_path
from pillarbox.smtp.params import Asked, Refused
from pillarbox.smtp.phase import AUTH, DOOMED, HELLO, MAIL, RCPT, TLS
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.stream import MessageStream
from pillarbox.smtp.wire import ConnectionEnded

if TYPE_CHECKING:
    from pillarbox.smtp.conversation import Conversation

# --- Greetings (RFC 5321 4.1.1.1, RFC 2033 4.1)


def hello(c: Conversation, verb: str, argument: str) -> Reply:
    """Answer HELO, EHLO or LHLO: a new hello also ends a transaction."""
    if not argument or " " in argument:
        raise Refused(reply.syntax(f"{verb} hostname"))
    session = c.session
    c.reset()
    session.opening_command = verb
    session.host_name_appears_as = argument
    c.phase |= HELLO
    first = reply.one_line(c.service.hello_text(session))
    if verb == "HELO":
        return Reply.of_lines(250, [first])
    may_xclient, may_xforward = c.trusted(c.service.xclient_peers), c.trusted(c.service.xforward_peers)
    keywords = c.service.keywords(
        session, authenticated=bool(c.phase & AUTH), xclient=may_xclient, xforward=may_xforward
    )
    return Reply.of_lines(250, [first, *keywords])


# --- A mail transaction (RFC 5321 3.3)


def mail(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Begin a transaction."""
    service, session = c.service, c.session
    address, rest = _path(c, argument, "FROM", reply.BAD_SENDER)
    sender, envelope = Address(address), session.envelope  # which is empty outside a transaction
    if rest:
        envelope = Envelope()
        params.parse(rest, params.MAIL, Asked(service, session.secure, envelope, sender))
    if not (argument.isascii() or envelope.smtp_utf8):
        raise Refused(reply.NEED_SMTPUTF8)
    session.envelope = envelope
    if service.hooks["on_mail_from"] is not None:
        return _ask_for_sender(c, sender)
    envelope.mail_from = sender
    c.phase |= MAIL
    return reply.SENDER_OK


async def _ask_for_sender(c: Conversation, sender: Address) -> Reply:
    try:
        await c.asking.ask(ON_MAIL_FROM, sender, c.session)
    except Refused:
        c.session.envelope = Envelope()
        raise
    c.session.envelope.mail_from = sender
    c.phase |= MAIL
    return reply.SENDER_OK


def rcpt(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Add a recipient."""
    service, session = c.service, c.session
    address, rest = _path(c, argument, "TO", reply.BAD_RECIPIENT)
    if not address:
        raise Refused(reply.BAD_RECIPIENT)
    recipient = Recipient(address)
    if rest:
        params.parse(rest, params.RCPT, Asked(service, session.secure, session.envelope, recipient))
    if not (argument.isascii() or session.envelope.smtp_utf8):
        raise Refused(reply.NEED_SMTPUTF8)
    if service.hooks["on_rcpt_to"] is not None:
        return _ask_for_recipient(c, recipient)
    _add_recipient(c, recipient)
    return reply.RECIPIENT_OK


async def _ask_for_recipient(c: Conversation, recipient: Recipient) -> Reply:
    await c.asking.ask(ON_RCPT_TO, recipient, c.session)
    _add_recipient(c, recipient)
    return reply.RECIPIENT_OK


def _add_recipient(c: Conversation, recipient: Recipient) -> None:
    """Add a recipient, in SMTP in the place of the same one given before."""
    c.phase |= RCPT
    recipients = c.session.envelope.rcpt_to
    # RFC 2033 4.2: "one reply for each previously successful RCPT command", also where one is given twice.
    if not recipients or c.service.options.lmtp:
        recipients.append(recipient)
        return
    if c.places is None:  # made now, since most messages have one recipient
        c.places = {address_key(recipients[0].address): 0}
    place = c.places.setdefault(address_key(recipient.address), len(recipients))
    if place < len(recipients):
        recipients[place] = recipient
    else:
        recipients.append(recipient)


def _path(c: Conversation, argument: str, keyword: str, refusal: Reply) -> tuple[str, str]:
    try:
        return split_path(argument, keyword, c.service.lenient)
    except GrammarError as problem:
        c.service.log.event(INFO, "syntax", c.session, "bad address: %s", str(problem))
        raise Refused(refusal) from problem


async def data(c: Conversation, argument: str) -> Reply | None:
    """Receive a message, give it to the handler as it comes, and answer for it."""
    if argument:
        raise Refused(reply.syntax("DATA"))
    service, wire = c.service, c.wire
    c.reply(reply.START_DATA)
    wire.flush()  # the client need not wait until the handler reads
    stream = MessageStream(wire, DataDecoder(service.bare_newline), service.size, service.enforced_size)
    answer: object
    try:
        answer = await c.asking.ask(ON_DATA, stream, c.session)
    except Refused as refused:
        answer = refused
    if not stream.close():
        await stream.drain()
    if stream.refusal is not None:  # stands even where the handler swallowed it
        answer = Refused(reply.from_reject(stream.refusal, reply.LOCAL_ERROR))
    if answer is None and not service.options.lmtp:
        _end_message(c, stream, service.accepted)
        if not wire.buffered():
            return service.accepted
        c.reply(service.accepted)
        wire.flush()  # the client need not wait for what it sent behind the message: it would send that again
        return None
    last = await _answer_message(c, answer)
    _end_message(c, stream, last)
    if last.code == 421:
        raise ConnectionEnded("closed by the reply")
    if stream.bare:
        raise ConnectionEnded("a bare CR or LF in the message")
    wire.flush()
    return None


async def _answer_message(c: Conversation, answer: object) -> Reply:
    """Answer for a message, or in LMTP for each recipient; return the last reply, or the one that closes."""
    if not c.service.options.lmtp:
        last = await c.asking.message_reply(answer)
        c.reply(last)
        return last
    closes = None
    async for last in c.asking.recipient_replies(answer):
        c.reply(last)
        closes = last if last.code == 421 else closes
    return closes or last


def _end_message(c: Conversation, stream: MessageStream, last: Reply) -> None:
    if c.informs:
        envelope = c.session.envelope
        c.service.log.event(
            INFO, "message", c.session, "message from <%s> for %d recipients, %d bytes: %s",
            str(envelope.mail_from), len(envelope.rcpt_to), stream.byte_length, str(last),
        )  # fmt: skip
    c.unrecognized = 0
    c.reset()


def rset(c: Conversation, argument: str) -> Reply:
    """Abort the transaction (RFC 5321 4.1.1.5)."""
    if argument:
        raise Refused(reply.syntax("RSET"))
    c.reset()
    return reply.FLUSHED


# --- TLS (RFC 3207)


async def starttls(c: Conversation, argument: str) -> None:
    """Go on under TLS; of what was said in plaintext nothing is kept."""
    if argument:
        raise Refused(reply.syntax("STARTTLS"))
    if c.wire.pending():
        # Never executed under TLS, whatever forbid_unauth_pipelining says (CVE-2011-0411).
        raise ConnectionEnded("input behind STARTTLS", reply.OUT_OF_TURN)
    c.reply(reply.READY_FOR_TLS)
    session = c.session
    session.tls = await c.wire.start_tls()
    # RFC 3207 4.2: "the SMTP protocol is reset to the initial state … The server MUST discard any knowledge
    # obtained from the client".
    c.start_over()
    xclient.forget(session)
    c.vouched_for = False
    session.secure = True
    session.servername = session.tls.servername
    c.phase = TLS
    try:
        await c.asking.ask(ON_SECURE, session.tls, session)
    except Refused as refused:
        c.refuse_all(refused.reply)  # the client speaks next: it answers the next command


# --- AUTH (RFC 4954)


async def auth(c: Conversation, argument: str) -> Reply:
    """Authenticate the client."""
    if not c.service.may_auth(c.session):
        raise Refused(reply.NEED_TLS_FOR_AUTH)
    c.session.user = await authenticate(c.asking, argument, c.send)
    c.phase |= AUTH
    return reply.AUTHENTICATED


# --- What a proxy says of the client


async def take_xclient(c: Conversation, argument: str) -> None:
    """Take another's word for who the client is, and begin again with the greeting."""
    if not c.trusted(c.service.xclient_peers):
        raise Refused(reply.NOT_PERMITTED)
    values = xclient.parse("XCLIENT", argument, xclient.XCLIENT)
    login = values.get("LOGIN")
    user = await _vouched_user(c, login) if login else None
    c.start_over()
    xclient.apply(c.session, values)
    if user is not None:
        c.session.user, c.session.username = user, login
        c.phase |= AUTH
    c.vouched_for = "ADDR" in values
    c.service.log.event(INFO, "xclient", c.session, "XCLIENT %s", argument)
    await c.admit(ON_CONNECT)
    c.send(c.service.greeting)


async def _vouched_user(c: Conversation, login: str) -> object:
    try:
        return await c.asking.vouched_user(login)
    except Refused as refused:
        raise ConnectionEnded("LOGIN refused", refused.reply) from None


def take_xforward(c: Conversation, argument: str) -> Reply:
    """Note what a filter's feeder says of the original client."""
    if not c.trusted(c.service.xforward_peers):
        raise Refused(reply.NOT_PERMITTED)
    c.session.x_forward.update(xclient.parse("XFORWARD", argument, xclient.XFORWARD))
    return reply.OK


# --- The small ones


def noop(_: Conversation, __: str) -> Reply:
    """Do nothing (RFC 5321 4.1.1.9)."""
    return reply.OK


def help_(_: Conversation, __: str) -> Reply:
    """Say where help is."""
    return reply.HELP


def vrfy(_: Conversation, argument: str) -> Reply:
    """Neither confirm nor deny a mailbox (RFC 5321 7.3)."""
    if not argument:
        raise Refused(reply.syntax("VRFY address"))
    return reply.CANNOT_VERIFY


def quit_(_: Conversation, __: str) -> Reply:
    """Say goodbye."""
    raise ConnectionEnded("QUIT", reply.BYE)


# --- The table


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Command:
    """One verb: what it does, and when it is legal.

    ``run`` returns the reply or, where it waits for something, a coroutine, which may also return None for a reply that
    it has sent itself. It raises Refused for any of 4xx and 5xx.
    """

    verb: bytes
    run: Callable[[Conversation, str], Reply | Awaitable[Reply | None]]
    needs: int = 0
    clashes: tuple[tuple[int, Reply], ...] = ()
    last_in_group: bool = False
    lmtp: bool | None = None  # True: in LMTP only, False: not in LMTP
    concerns: int = field(init=False)  # the bits of a phase that decide

    def __post_init__(self) -> None:
        bits = [bit for bit, _ in self.clashes] + ([] if self.verb == b"QUIT" else [DOOMED])
        object.__setattr__(self, "concerns", reduce(or_, bits, self.needs))


_IN_TRANSACTION = ((MAIL, reply.IN_TRANSACTION),)


def _hello(verb: str) -> Callable[[Conversation, str], Reply]:
    return lambda c, argument: hello(c, verb, argument)


_TABLE = (
    Command(b"HELO", _hello("HELO"), last_in_group=True, lmtp=False),
    Command(b"EHLO", _hello("EHLO"), last_in_group=True, lmtp=False),
    Command(b"LHLO", _hello("LHLO"), last_in_group=True, lmtp=True),
    Command(b"STARTTLS", starttls, 0, ((TLS, reply.TLS_ACTIVE),)),
    Command(b"AUTH", auth, HELLO, ((AUTH, reply.NO_IDENTITY_CHANGES), *_IN_TRANSACTION), last_in_group=True),
    Command(b"MAIL", mail, HELLO | AUTH, ((MAIL, reply.NESTED_MAIL),)),
    Command(b"RCPT", rcpt, HELLO | AUTH | MAIL),
    Command(b"DATA", data, HELLO | AUTH | MAIL | RCPT, last_in_group=True),
    Command(b"RSET", rset),
    Command(b"NOOP", noop),
    Command(b"QUIT", quit_),
    Command(b"HELP", help_),
    Command(b"VRFY", vrfy),
    Command(b"XCLIENT", take_xclient, 0, _IN_TRANSACTION),
    Command(b"XFORWARD", take_xforward, 0, _IN_TRANSACTION),
)

COMMANDS: dict[bytes, Command] = {command.verb: command for command in _TABLE}
