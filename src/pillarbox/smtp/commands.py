"""Every verb: what it does and, in one table, when it is legal (RFC 5321 4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from logging import INFO
from typing import TYPE_CHECKING

from pillarbox.session import Address, Envelope, Recipient
from pillarbox.smtp import params, reply, xclient
from pillarbox.smtp.asking import ON_CONNECT, ON_DATA, ON_MAIL_FROM, ON_RCPT_TO, ON_SECURE, authenticate
from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.grammar import GrammarError, address_key, split_path
from pillarbox.smtp.params import Asked, Refused
from pillarbox.smtp.phase import AUTH, HELLO, MAIL, RCPT, TLS
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.stream import MessageStream
from pillarbox.smtp.wire import ConnectionEnded

if TYPE_CHECKING:
    from pillarbox.smtp.conversation import Conversation

# --- Greetings (RFC 5321 4.1.1.1, RFC 2033 4.1)


async def hello(c: Conversation, verb: str, argument: str) -> None:
    """Answer HELO, EHLO or LHLO: a new hello also ends a transaction."""
    if not argument or " " in argument:
        raise Refused(reply.syntax(f"{verb} hostname"))
    session = c.session
    c.reset()
    session.opening_command = verb
    session.host_name_appears_as = argument
    c.phase |= HELLO
    first = c.service.hello_text(session)
    if verb == "HELO":
        c.send(reply.encode(250, first))
        return
    may_xclient, may_xforward = c.trusted(c.service.xclient_peers), c.trusted(c.service.xforward_peers)
    keywords = c.service.keywords(
        session, authenticated=bool(c.phase & AUTH), xclient=may_xclient, xforward=may_xforward
    )
    c.send(reply.lines(250, [reply.one_line(first), *keywords]))


# --- A mail transaction (RFC 5321 3.3)


async def mail(c: Conversation, argument: str) -> None:
    """Begin a transaction."""
    address, rest = _path(c, argument, "FROM")
    sender, envelope = Address(address), c.session.envelope
    try:
        if rest:
            params.parse(rest, params.MAIL, Asked(c.service, c.session.secure, envelope, sender))
        if not (argument.isascii() or envelope.smtp_utf8):
            raise Refused(reply.NEED_SMTPUTF8)
        await c.asking.ask(ON_MAIL_FROM, sender, c.session)
    except Refused:
        c.session.envelope = Envelope()  # as it was: outside a transaction it is empty
        raise
    envelope.mail_from = sender
    c.phase |= MAIL
    c.reply(reply.SENDER_OK)


async def rcpt(c: Conversation, argument: str) -> None:
    """Add a recipient."""
    address, rest = _path(c, argument, "TO")
    if not address:
        raise Refused(reply.BAD_RECIPIENT)
    recipient, envelope = Recipient(address), c.session.envelope
    if rest:
        params.parse(rest, params.RCPT, Asked(c.service, c.session.secure, envelope, recipient))
    if not (argument.isascii() or envelope.smtp_utf8):
        raise Refused(reply.NEED_SMTPUTF8)
    await c.asking.ask(ON_RCPT_TO, recipient, c.session)
    _add_recipient(c, recipient)
    c.phase |= RCPT
    c.reply(reply.RECIPIENT_OK)


def _add_recipient(c: Conversation, recipient: Recipient) -> None:
    recipients = c.session.envelope.rcpt_to
    if not c.service.options.lmtp:
        place = c.places.setdefault(address_key(recipient.address), len(recipients))
        if place < len(recipients):
            recipients[place] = recipient
            return
    # RFC 2033 4.2: "one reply for each previously successful RCPT command", also where one is given twice.
    recipients.append(recipient)


def _path(c: Conversation, argument: str, keyword: str) -> tuple[str, str]:
    try:
        return split_path(argument, keyword, lenient=c.service.options.lenient_address_parsing)
    except GrammarError as problem:
        c.service.log.event(INFO, "syntax", c.session, "bad address: %s", str(problem))
        raise Refused(params.BAD_PATH[keyword]) from problem


async def data(c: Conversation, argument: str) -> None:
    """Receive a message, give it to the handler as it comes, and answer for it."""
    if argument:
        raise Refused(reply.syntax("DATA"))
    service = c.service
    c.reply(reply.START_DATA)
    c.wire.flush()  # the client need not wait until the handler reads
    too_large = service.too_large if service.options.enforce_size else None
    decoder = DataDecoder(service.options.bare_newline)
    stream = MessageStream(c.wire, decoder, service.options.size, too_large)
    try:
        answer = await c.asking.ask(ON_DATA, stream, c.session)
    except Refused as refused:
        answer = refused
    stream.close()
    if not stream.finished:
        await stream.drain()
    await _answer_message(c, stream, answer)
    if decoder.bare:
        raise ConnectionEnded("a bare CR or LF in the message")


async def _answer_message(c: Conversation, stream: MessageStream, answer: object) -> None:
    if stream.refusal is not None:  # stands even where the handler swallowed it
        answer = Refused(reply.from_reject(stream.refusal, reply.LOCAL_ERROR))
    closes = False
    if not c.service.options.lmtp:
        last = c.service.accepted if answer is None else await c.asking.message_reply(answer)
        c.reply(last)
    else:
        async for last in c.asking.recipient_replies(answer):
            c.reply(last)
            closes |= last.code == 421
    _log_message(c, stream, last)
    c.reset()
    if closes or last.code == 421:
        raise ConnectionEnded("closed by the reply")
    c.wire.flush()  # the client need not wait for what it sent behind the message: it would send that again


def _log_message(c: Conversation, stream: MessageStream, last: Reply) -> None:
    c.unrecognized = 0
    if c.service.log.enabled(INFO):
        envelope = c.session.envelope
        c.service.log.event(
            INFO, "message", c.session, "message from <%s> for %d recipients, %d bytes: %s",
            str(envelope.mail_from), len(envelope.rcpt_to), stream.byte_length, str(last),
        )  # fmt: skip


async def rset(c: Conversation, argument: str) -> None:
    """Abort the transaction (RFC 5321 4.1.1.5)."""
    if argument:
        raise Refused(reply.syntax("RSET"))
    c.reset()
    c.reply(reply.FLUSHED)


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
        c.secure_refusal = refused.reply  # the client speaks next: it answers the next command


# --- AUTH (RFC 4954)


async def auth(c: Conversation, argument: str) -> None:
    """Authenticate the client."""
    if not c.service.may_auth(c.session):
        raise Refused(reply.NEED_TLS_FOR_AUTH)
    c.session.user = await authenticate(c.asking, argument, c.send)
    c.phase |= AUTH
    c.reply(reply.AUTHENTICATED)


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


async def take_xforward(c: Conversation, argument: str) -> None:
    """Note what a filter's feeder says of the original client."""
    if not c.trusted(c.service.xforward_peers):
        raise Refused(reply.NOT_PERMITTED)
    c.session.x_forward.update(xclient.parse("XFORWARD", argument, xclient.XFORWARD))
    c.reply(reply.OK)


# --- The small ones


async def noop(c: Conversation, _: str) -> None:
    """Do nothing (RFC 5321 4.1.1.9)."""
    c.reply(reply.OK)


async def help_(c: Conversation, _: str) -> None:
    """Say where help is."""
    c.reply(reply.HELP)


async def vrfy(c: Conversation, argument: str) -> None:
    """Neither confirm nor deny a mailbox (RFC 5321 7.3)."""
    if not argument:
        raise Refused(reply.syntax("VRFY address"))
    c.reply(reply.CANNOT_VERIFY)


async def quit_(c: Conversation, _: str) -> None:
    """Say goodbye."""
    c.reply(reply.BYE)
    raise ConnectionEnded("QUIT")


# --- The table


@dataclass(frozen=True, slots=True)
class Command:
    """One verb: what it does, and when it is legal."""

    verb: bytes
    run: Callable[[Conversation, str], Awaitable[None]]
    needs: int = 0
    clashes: tuple[tuple[int, Reply], ...] = ()
    last_in_group: bool = False
    lmtp: bool | None = None  # True: in LMTP only, False: not in LMTP


_IN_TRANSACTION = ((MAIL, reply.IN_TRANSACTION),)


def _hello(verb: str) -> Callable[[Conversation, str], Awaitable[None]]:
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
