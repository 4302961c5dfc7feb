"""Every verb: what it does and, in one table, when it is legal (RFC 5321 4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from logging import INFO
from typing import TYPE_CHECKING, Any

from pillarbox.errors import Reject
from pillarbox.extension import Asked, Command
from pillarbox.session import Address, Envelope, Recipient
from pillarbox.smtp import limits, params, reply, xclient
from pillarbox.smtp.asking import (
    ON_CONNECT,
    ON_EHLO,
    ON_EXPN,
    ON_HELP,
    ON_MAIL_FROM,
    ON_RCPT_TO,
    ON_SECURE,
    ON_VRFY,
    Rule,
    made,
)
from pillarbox.smtp.authentication import authenticate
from pillarbox.smtp.grammar import GrammarError, address_key, split_path
from pillarbox.smtp.message import bdat, data
from pillarbox.smtp.phase import AUTH, CHUNKS, HELLO, MAIL, RCPT, TLS
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.wire import ConnectionEnded, LimitCrossed
from pillarbox.statistics import count

if TYPE_CHECKING:
    from pillarbox.smtp.conversation import Conversation

# --- Greetings (RFC 5321 4.1.1.1, RFC 2033 4.1)


def hello(c: Conversation, verb: str, argument: str) -> Reply | Awaitable[Reply]:
    """Answer HELO, EHLO or LHLO: a new hello also ends a transaction."""
    argument = argument.lstrip(" ")  # several spaces do no harm, and other servers take them
    if not argument or " " in argument:
        raise Refused(reply.syntax(f"{verb} hostname"))
    if c.phase & HELLO:
        limits.junk(c)
    if c.service.hooks["on_ehlo"] is not None:
        return _ask_for_hello(c, verb, argument)
    _greeted(c, verb, argument)
    return _hello_reply(c, [] if verb == "HELO" else c.service.keywords(c.session))


def _greeted(c: Conversation, verb: str, argument: str) -> None:
    c.reset()
    c.session.opening_command = verb
    c.session.host_name_appears_as = argument
    c.phase |= HELLO


def _hello_reply(c: Conversation, keywords: Iterable[bytes]) -> Reply:
    # RFC 2034 4: no enhanced code here.
    return Reply.of_lines(250, [reply.one_line(c.service.hello_text(c.session)), *keywords])


async def _ask_for_hello(c: Conversation, verb: str, argument: str) -> Reply:
    session, service = c.session, c.service
    before = session.opening_command, session.host_name_appears_as
    session.opening_command, session.host_name_appears_as = verb, argument
    offered = [] if verb == "HELO" else [keyword.decode() for keyword in service.keywords(session)]
    try:
        answer = await c.asking.ask(ON_EHLO, offered, session)
        keywords = service.checked_keywords(offered if answer is None else answer)
    except Refused:
        session.opening_command, session.host_name_appears_as = before
        raise
    _greeted(c, verb, argument)
    return _hello_reply(c, [] if verb == "HELO" else keywords)


# --- A mail transaction (RFC 5321 3.3)


def mail(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Begin a transaction."""
    service, session = c.service, c.session
    address, rest = _path(c, argument, "FROM", reply.BAD_SENDER)
    sender, envelope = Address(address), session.envelope  # which is empty outside a transaction
    if rest:
        envelope = Envelope()
        params.parse(rest, service.mail_parameters, Asked(service.options, session, envelope, sender))
    if not (argument.isascii() or envelope.smtp_utf8):
        raise Refused(reply.SENDER_NEEDS_SMTPUTF8)
    if service.max_messages is not None and session.transaction > service.max_messages:
        raise LimitCrossed("too many messages", reply.TOO_MANY_MESSAGES, "max_messages")
    session.envelope = envelope
    if service.hooks["on_mail_from"] is not None:
        return _ask_for_sender(c, sender)
    envelope.mail_from = sender
    c.phase = c.phase & ~CHUNKS | MAIL
    return reply.SENDER_OK


async def _ask_for_sender(c: Conversation, sender: Address) -> Reply:
    wished = c.session.envelope.mt_priority
    try:
        await c.asking.ask(ON_MAIL_FROM, sender, c.session)
    except Refused:
        c.session.envelope = Envelope()
        raise
    envelope = c.session.envelope
    envelope.mail_from = sender
    c.phase = c.phase & ~CHUNKS | MAIL
    # RFC 6710 4 has the client told where its message gets another priority than it asked for.
    if wished is not None and envelope.mt_priority is not None and envelope.mt_priority != wished:
        return reply.priority_changed(envelope.mt_priority)
    return reply.SENDER_OK


def rcpt(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Add a recipient."""
    service, session = c.service, c.session
    if c.counts is not None and not limits.may_name_recipient(c):
        raise Refused(reply.TOO_MANY_REFUSED)
    address, rest = _path(c, argument, "TO", reply.BAD_RECIPIENT)
    if not address:
        raise Refused(reply.BAD_RECIPIENT)
    recipient = Recipient(address)
    if rest:
        params.parse(rest, service.rcpt_parameters, Asked(service.options, session, session.envelope, recipient))
    if not (argument.isascii() or session.envelope.smtp_utf8):
        raise Refused(reply.NEED_SMTPUTF8)
    accepted, limit = session.envelope.rcpt_to, service.max_recipients
    if accepted and limit is not None and len(accepted) >= limit:
        limits.note(c, "too many recipients", "max_recipients")
        raise Refused(reply.TOO_MANY_RECIPIENTS)
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
    count = len(recipients)
    place = c.places.setdefault(address_key(recipient.address), count)
    if place < count:
        recipients[place] = recipient
    else:
        recipients.append(recipient)


def _path(c: Conversation, argument: str, keyword: str, refusal: Reply) -> tuple[str, str]:
    try:
        return split_path(argument, keyword, c.service.lenient)
    except GrammarError as problem:
        c.service.log.event(INFO, "syntax", c.session, "bad address: %s", str(problem))
        raise Refused(refusal) from problem


def rset(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Abort the transaction (RFC 5321 4.1.1.5)."""
    if argument:
        raise Refused(reply.syntax("RSET"))
    if c.service.hooks["on_reset"] is not None:
        return _tell_of_reset(c)
    c.reset()
    return reply.FLUSHED


async def _tell_of_reset(c: Conversation) -> Reply:
    await c.asking.tell_reset()
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
    await limits.may_log_in(c)
    logins = _logins(c, argument)
    try:
        c.session.user = await authenticate(c.asking, argument)
    except Refused as refused:
        count(logins, "refused" if refused.reply.code >= 500 else "deferred")
        if isinstance(refused.__cause__, Reject) and refused.reply.code >= 500:
            await limits.login_failed(c)
        raise
    count(logins, "accepted")
    c.phase |= AUTH
    return reply.AUTHENTICATED


def _logins(c: Conversation, argument: str) -> dict[str, int]:
    """Return where logins by this mechanism are counted; a name that is not offered is the client's invention."""
    name = argument.partition(" ")[0].upper()
    return c.service.statistics.logins.setdefault(name if name in c.service.mechanisms else "OTHER", {})


# --- What a proxy says of the client


async def take_xclient(c: Conversation, argument: str) -> None:
    """Take another's word for who the client is, and begin again with the greeting."""
    if not c.service.may_xclient(c.session):
        raise Refused(reply.NOT_PERMITTED)
    values = xclient.parse("XCLIENT", argument, xclient.XCLIENT)
    login = values.get("LOGIN")
    user = await _vouched_user(c, login) if login else None
    c.start_over()
    c.counts, c.auth_failures = None, 0
    xclient.apply(c.session, values)
    if user is not None:
        c.session.user, c.session.username = user, login
        c.phase |= AUTH
    c.service.log.event(INFO, "xclient", c.session, "XCLIENT %s", argument)
    refusal = await c.wire.admit()
    if refusal is not None:
        raise LimitCrossed("too many connections of this address", refusal, "connections_of_address")
    await c.admit(ON_CONNECT)
    c.greet()


async def _vouched_user(c: Conversation, login: str) -> object:
    try:
        return await c.asking.vouched_user(login)
    except Refused as refused:
        raise ConnectionEnded("LOGIN refused", refused.reply) from None


def take_xforward(c: Conversation, argument: str) -> Reply:
    """Note what a filter's feeder says of the original client."""
    if not c.service.may_xforward(c.session):
        raise Refused(reply.NOT_PERMITTED)
    c.session.x_forward.update(xclient.parse("XFORWARD", argument, xclient.XFORWARD))
    return reply.OK


# --- The small ones


def noop(_: Conversation, __: str) -> Reply:
    """Do nothing (RFC 5321 4.1.1.9)."""
    return reply.OK


def help_(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Say where help is (RFC 5321 4.1.1.8)."""
    return reply.HELP if c.service.hooks["on_help"] is None else _ask_for_help(c, argument)


async def _ask_for_help(c: Conversation, topic: str) -> Reply:
    text = await c.asking.ask(ON_HELP, topic, c.session)
    return reply.HELP if text is None else reply.text_lines(214, "2.0.0", made(lambda: str(text).splitlines(), ON_HELP))


def vrfy(c: Conversation, argument: str) -> Reply | Awaitable[Reply]:
    """Neither confirm nor deny a mailbox (RFC 5321 7.3), unless the application does."""
    argument, utf8 = _mailbox_and_utf8(argument, "VRFY address")
    return reply.CANNOT_VERIFY if c.service.hooks["on_vrfy"] is None else _ask_for_mailbox(c, argument, utf8)


async def _ask_for_mailbox(c: Conversation, address: str, utf8: bool) -> Reply:
    found = await _ask_with_utf8(c, ON_VRFY, address, utf8)
    if found is None:
        return reply.CANNOT_VERIFY
    shown = made(lambda: str(found), ON_VRFY)
    return reply.text_lines(250, "2.1.5", [shown], utf8=utf8) if utf8 or shown.isascii() else reply.CANNOT_SHOW


async def expn(c: Conversation, argument: str) -> Reply:
    """List the members of a mailing list (RFC 5321 4.1.1.7); known where the application has ``on_expn``."""
    argument, utf8 = _mailbox_and_utf8(argument, "EXPN list")
    members = await _ask_with_utf8(c, ON_EXPN, argument, utf8)
    shown = made(lambda: _members(members), ON_EXPN)
    if not shown:
        raise Refused(ON_EXPN.refusal)
    if not (utf8 or all(member.isascii() for member in shown)):
        raise Refused(reply.MAILBOX_NEEDS_UTF8)
    return reply.text_lines(250, "2.1.5", shown, utf8=utf8)


def _members(answer: Any) -> list[str]:
    return [answer] if answer and isinstance(answer, str) else [str(member) for member in answer or ()]


def _mailbox_and_utf8(argument: str, form: str) -> tuple[str, bool]:
    """Return whom VRFY or EXPN asks about, and whether the reply may be in UTF-8; raises Refused."""
    # RFC 6531 3.7.4.2: 'vrfy = "VRFY" SP String [ SP "SMTPUTF8" ] CRLF'.
    text, space, word = argument.rpartition(" ")
    utf8 = bool(space) and word.isascii() and word.upper() == "SMTPUTF8"
    argument = text.rstrip(" ") if utf8 else argument
    if not argument:
        raise Refused(reply.syntax(form))
    if not (utf8 or argument.isascii()):
        raise Refused(reply.NEED_SMTPUTF8)
    return argument, utf8


async def _ask_with_utf8(c: Conversation, rule: Rule, mailbox: str, utf8: bool) -> Any:
    try:
        return await c.asking.ask(rule, mailbox, c.session)
    except Refused as refused:
        # RFC 6531 3.7.4.2: "Using the SMTPUTF8 parameter with a VRFY or EXPN command enables UTF-8 replies for that
        # command only."
        if isinstance(refused.__cause__, Reject):
            raise Refused(reply.from_reject(refused.__cause__, rule.refusal, utf8=utf8)) from refused.__cause__
        raise


def quit_(_: Conversation, argument: str) -> Reply:
    """Say goodbye."""
    # RFC 5321 4.1.1: "Several commands (RSET, DATA, QUIT) are specified as not permitting parameters. In the absence of
    # specific extensions offered by the server and accepted by the client, clients MUST NOT send such parameters and
    # servers SHOULD reject commands containing them as having invalid syntax."
    if argument:
        raise Refused(reply.syntax("QUIT"))
    raise ConnectionEnded("QUIT", reply.BYE)


# --- The table

_IN_TRANSACTION = ((MAIL, reply.IN_TRANSACTION),)
_IN_CHUNKS = ((CHUNKS, reply.CHUNKS_BEGUN),)


def _hello(verb: str) -> Callable[[Conversation, str], Reply | Awaitable[Reply]]:
    return lambda c, argument: hello(c, verb, argument)


# Those of RFC 5321 and RFC 2033, and then those of extensions.
CORE = (
    Command("HELO", _hello("HELO"), last_in_group=True, lmtp=False),
    Command("EHLO", _hello("EHLO"), last_in_group=True, lmtp=False),
    Command("LHLO", _hello("LHLO"), last_in_group=True, lmtp=True),
    Command("MAIL", mail, HELLO | AUTH, ((MAIL, reply.NESTED_MAIL),)),
    Command("RCPT", rcpt, HELLO | AUTH | MAIL, _IN_CHUNKS),
    Command("DATA", data, HELLO | AUTH | MAIL | RCPT, _IN_CHUNKS, last_in_group=True),
    Command("RSET", rset),
    Command("NOOP", noop),
    Command("QUIT", quit_),
    Command("HELP", help_),
    Command("VRFY", vrfy),
)
STARTTLS_COMMAND = Command("STARTTLS", starttls, 0, ((TLS, reply.TLS_ACTIVE), *_IN_CHUNKS))
AUTH_COMMAND = Command("AUTH", auth, HELLO, ((AUTH, reply.NO_IDENTITY_CHANGES), *_IN_TRANSACTION), last_in_group=True)
# It has to read the chunk before it can refuse anything, so it looks itself at what has been done.
BDAT_COMMAND = Command("BDAT", bdat)
EXPN_COMMAND = Command("EXPN", expn)
XCLIENT_COMMAND = Command("XCLIENT", take_xclient, 0, _IN_TRANSACTION)
XFORWARD_COMMAND = Command("XFORWARD", take_xforward, 0, _IN_TRANSACTION)
