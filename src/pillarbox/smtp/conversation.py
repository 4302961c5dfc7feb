"""The dialogue with one client: one coroutine that reads like RFC 5321. What is legal when stands in ``COMMANDS``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from logging import DEBUG, INFO
from typing import TYPE_CHECKING, Any

from pillarbox.session import Address, Envelope, Recipient
from pillarbox.smtp import params, reply, xclient
from pillarbox.smtp.asking import (
    ON_CONNECT,
    ON_DATA,
    ON_MAIL_FROM,
    ON_RCPT_TO,
    ON_SECURE,
    Asking,
    Rule,
    authenticate,
)
from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.grammar import GrammarError, address_key, has_forbidden_characters, split_path
from pillarbox.smtp.params import Asked, Refused
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.service import AUTH, HELLO, MAIL, RCPT, TLS
from pillarbox.smtp.stream import MessageStream
from pillarbox.smtp.wire import MAX_AUTH_LINE, ConnectionEnded

if TYPE_CHECKING:
    from pillarbox.session import Session
    from pillarbox.smtp.service import Service
    from pillarbox.smtp.wire import Wire

TRANSACTION = MAIL | RCPT

MAX_UNRECOGNIZED = 10
_HTTP = re.compile(rb"(?i)[a-z]+ \S+ HTTP/\d")


class Conversation:
    """One client's dialogue, from the greeting to the end of the connection.

    ``await run()`` once; it returns when the conversation is over and leaves closing the wire to the caller.
    ``shut_down()`` may be called meanwhile.
    """

    __slots__ = (
        "_closing",
        "_commands",
        "_places",
        "_secure_refusal",
        "_transcript",
        "_unauthenticated",
        "_unrecognized",
        "_vouched_for",
        "asking",
        "connected",
        "phase",
        "service",
        "session",
        "wire",
    )

    def __init__(self, service: Service, session: Session, wire: Wire) -> None:
        self.service = service
        self.session = session
        self.wire = wire
        self.asking = Asking(service, session, wire)
        if service.commands is None:  # once for each listener
            service.commands = _offered(service)
        self._commands = service.commands
        self._transcript = service.log.enabled(DEBUG)  # asked once: it is wanted for every line, and is nearly never on
        self.phase = TLS if session.secure else 0
        self.connected = False  # on_connect was reached, so on_close will be
        self._closing = False
        self._vouched_for = False  # XCLIENT gave another client's address
        self._unrecognized = 0
        self._unauthenticated = 0
        self._places: dict[str, int] = {}  # where a recipient stands, to find it when it is given again
        self._secure_refusal: Reply | None = None

    # --- The course of a connection

    async def run(self) -> None:
        """Greet, then read commands and answer them until one side ends it."""
        try:
            await self._greet()
            limit = self.service.options.max_command_length
            while True:
                if self._closing and not self.phase & MAIL:
                    raise ConnectionEnded("the server closes", reply.SHUTTING_DOWN)
                await self._command(await self.wire.read_line(limit))
        except ConnectionEnded as end:
            if end.reply is not None:
                self.reply(end.reply)
            self.service.log.event(DEBUG, "end", self.session, "%s", str(end))

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted and the message not yet answered."""
        return bool(self.phase & MAIL)

    def shut_down(self) -> None:
        """End the conversation: at once outside a transaction, else when that is done (RFC 5321 3.8)."""
        self._closing = True
        if not self.phase & MAIL:
            self.wire.stop(reply.SHUTTING_DOWN)

    async def _greet(self) -> None:
        options = self.service.options
        self.connected = True
        await self._admit(ON_CONNECT)
        if self.session.tls is not None:
            await self._admit(ON_SECURE, self.session.tls)
        if options.greet_delay:
            await self.wire.wait_input(options.greet_delay)
        if self.wire.pending():
            raise ConnectionEnded("input before the greeting", self.service.too_soon)
        self._write(self.service.greeting)

    async def _admit(self, rule: Rule, *facts: object) -> None:
        """Ask whether this client may come in; a refusal ends the conversation."""
        try:
            await self.asking.ask(rule, *facts, self.session)
        except Refused as refused:
            raise ConnectionEnded(f"{rule.hook} refused", refused.reply) from None

    # --- One command

    async def _command(self, line: bytes) -> None:
        octets = self.service.stripped(line)
        verb, _, argument = octets.partition(b" ")
        command = self._commands.get(verb) or self._commands.get(verb.upper())
        if self._secure_refusal is not None and octets.upper() != b"QUIT":
            raise ConnectionEnded("on_secure refused", self._secure_refusal)
        if len(line) > self.service.options.max_command_length and len(line) > self._limit(command):
            self.reply(reply.LINE_TOO_LONG)
        elif command is None:
            self._not_recognized(octets)
        else:
            if self._transcript:
                self._log_command(command, argument)
            if command.last_in_group:
                self._check_turn()
            await self._obey(command, argument)

    async def _obey(self, command: Command, argument: bytes) -> None:
        try:
            if not (self.phase | self.service.waived) & AUTH:
                self._count_unauthenticated(command)
            text = _decoded(argument) if argument else ""
            self._check_phase(command)
            await command.run(self, text)
        except Refused as refused:
            self.reply(refused.reply)
            if refused.reply.code == 421:
                raise ConnectionEnded("closed by the reply") from None
            if command.verb == b"DATA" and self.wire.pending():
                # What was meant as data must not become commands.
                raise ConnectionEnded("input behind a refused DATA", reply.OUT_OF_TURN) from None

    def _limit(self, command: Command | None) -> int:
        limit = self.service.options.max_command_length
        return max(limit, MAX_AUTH_LINE) if command is not None and command.verb == b"AUTH" else limit

    def _not_recognized(self, octets: bytes) -> None:
        # The text is not logged: after a failed AUTH a confused client sends its password as a command.
        self.service.log.event(DEBUG, "command", self.session, "C: unrecognized command of %d bytes", len(octets))
        if _HTTP.match(octets):
            raise ConnectionEnded("an HTTP request", reply.HTTP)
        if not (self.phase | self.service.waived) & AUTH:
            self._count_unauthenticated(None)
        self._unrecognized += 1
        if self._unrecognized >= MAX_UNRECOGNIZED:
            raise ConnectionEnded("too many unrecognized commands", reply.TOO_MANY_UNRECOGNIZED)
        if self.service.options.lmtp and octets[:4].upper() in (b"HELO", b"EHLO"):
            # RFC 2033 4.1: "the HELO and EHLO commands … MUST NOT be used"
            self.reply(reply.EHLO_IN_LMTP)
        else:
            self.reply(reply.NOT_RECOGNIZED)

    def _log_command(self, command: Command, argument: bytes) -> None:
        if command.verb == b"AUTH":  # a token may stand anywhere behind it, also in the mechanism's place
            mechanism = argument.split(b" ")[0].decode("ascii", "replace").upper()
            text = f"{mechanism} ..." if mechanism in self.service.mechanisms else "..."
        else:
            text = argument.decode("utf-8", "backslashreplace")
        self.service.log.event(DEBUG, "command", self.session, "C: %s %s", command.verb.decode(), text)

    def _check_turn(self) -> None:
        """Refuse input that waits behind a command whose reply must come first."""
        # RFC 2920 3.1: 'The EHLO, DATA, VRFY, EXPN, TURN, QUIT, and NOOP commands can only appear as the last
        # command in a group since their success or failure produces a change of state'.
        if self.service.options.forbid_unauth_pipelining and self.wire.pending():
            raise ConnectionEnded("input out of turn", reply.OUT_OF_TURN)

    def _count_unauthenticated(self, command: Command | None) -> None:
        if command is not None and command.verb in (b"AUTH", b"QUIT"):
            return
        self._unauthenticated += 1
        limit = self.service.options.max_allowed_unauthenticated_commands
        if limit is not False and self._unauthenticated > limit:
            raise ConnectionEnded("too many unauthenticated commands", reply.TOO_MANY_UNAUTHENTICATED)

    def _check_phase(self, command: Command) -> None:
        missing = command.needs & ~(self.phase | self.service.waived)
        if missing:
            raise Refused(next(refusal for bit, refusal in self.service.missing if bit & missing))
        for bit, refusal in command.clashes:
            if bit & self.phase:
                raise Refused(refusal)

    # --- Replies

    def reply(self, answer: Reply) -> None:
        """Send a reply, and keep it in the session if it is a refusal."""
        if answer.code >= 400:
            self.session.error = answer.shown(self.service.codes)
        octets = answer.octets(self.service.codes)
        if self._transcript:
            self._log_reply(octets)
        self.wire.write(octets)

    def _write(self, octets: bytes) -> None:
        if self._transcript:
            self._log_reply(octets)
        self.wire.write(octets)

    def _log_reply(self, octets: bytes) -> None:
        text = octets.decode("utf-8", "replace").rstrip("\r\n").replace("\r\n", " | ")
        self.service.log.event(DEBUG, "reply", self.session, "S: %s", text)

    # --- Greetings (RFC 5321 4.1.1.1, RFC 2033 4.1)

    async def hello(self, verb: str, argument: str) -> None:
        """Answer HELO, EHLO or LHLO: a new hello also ends a transaction."""
        if not argument or " " in argument:
            raise Refused(reply.syntax(f"{verb} hostname"))
        session = self.session
        self._reset()
        session.opening_command = verb
        session.host_name_appears_as = argument
        self.phase |= HELLO
        first = self.service.hello_text(session)
        if verb == "HELO":
            self._write(reply.encode(250, first))
            return
        may_xclient, may_xforward = self.trusted(self.service.xclient_peers), self.trusted(self.service.xforward_peers)
        keywords = self.service.keywords(
            session, authenticated=bool(self.phase & AUTH), xclient=may_xclient, xforward=may_xforward
        )
        self._write(reply.lines(250, [reply.one_line(first), *keywords]))

    def trusted(self, peers: Any) -> bool:
        """Whether this client may speak for others; not once another has spoken for it."""
        return bool(peers) and not self._vouched_for and self.session.remote_address in peers

    # --- A mail transaction (RFC 5321 3.3)

    async def mail(self, argument: str) -> None:
        """Begin a transaction."""
        address, rest = self._path(argument, "FROM")
        sender, envelope = Address(address), self.session.envelope
        try:
            if rest:
                params.parse(rest, params.MAIL, Asked(self.service, self.session.secure, envelope, sender))
            if not (argument.isascii() or envelope.smtp_utf8):
                raise Refused(reply.NEED_SMTPUTF8)
            await self.asking.ask(ON_MAIL_FROM, sender, self.session)
        except Refused:
            self.session.envelope = Envelope()  # as it was: outside a transaction it is empty
            raise
        envelope.mail_from = sender
        self.phase |= MAIL
        self.reply(reply.SENDER_OK)

    async def rcpt(self, argument: str) -> None:
        """Add a recipient."""
        address, rest = self._path(argument, "TO")
        if not address:
            raise Refused(reply.BAD_RECIPIENT)
        recipient, envelope = Recipient(address), self.session.envelope
        if rest:
            params.parse(rest, params.RCPT, Asked(self.service, self.session.secure, envelope, recipient))
        if not (argument.isascii() or envelope.smtp_utf8):
            raise Refused(reply.NEED_SMTPUTF8)
        await self.asking.ask(ON_RCPT_TO, recipient, self.session)
        self._add_recipient(recipient)
        self.phase |= RCPT
        self.reply(reply.RECIPIENT_OK)

    def _add_recipient(self, recipient: Recipient) -> None:
        recipients = self.session.envelope.rcpt_to
        if not self.service.options.lmtp:
            place = self._places.setdefault(address_key(recipient.address), len(recipients))
            if place < len(recipients):
                recipients[place] = recipient
                return
        # RFC 2033 4.2: "one reply for each previously successful RCPT command", also where one is given twice.
        recipients.append(recipient)

    def _path(self, argument: str, keyword: str) -> tuple[str, str]:
        try:
            return split_path(argument, keyword, lenient=self.service.options.lenient_address_parsing)
        except GrammarError as problem:
            self.service.log.event(INFO, "syntax", self.session, "bad address: %s", str(problem))
            raise Refused(params.BAD_PATH[keyword]) from problem

    async def data(self, argument: str) -> None:
        """Receive a message, give it to the handler as it comes, and answer for it."""
        if argument:
            raise Refused(reply.syntax("DATA"))
        service = self.service
        self.reply(reply.START_DATA)
        await self.wire.flush()  # the client need not wait until the handler reads
        too_large = service.too_large if service.options.enforce_size else None
        stream = MessageStream(self.wire, DataDecoder(service.options.bare_newline), service.options.size, too_large)
        try:
            answer = await self.asking.ask(ON_DATA, stream, self.session)
            await stream.drain()
        except Refused as refused:
            await stream.drain()
            answer = refused
        await self._answer_message(stream, answer)

    async def _answer_message(self, stream: MessageStream, answer: object) -> None:
        if stream.refusal is not None:  # stands even where the handler swallowed it
            answer = Refused(reply.from_reject(stream.refusal, reply.LOCAL_ERROR))
        replies = []
        if not self.service.options.lmtp:
            replies.append(await self.asking.message_reply(answer))
            self.reply(replies[0])
        else:
            async for each in self.asking.recipient_replies(answer):
                replies.append(each)
                self.reply(each)
        self._log_message(stream, replies[-1])
        self._reset()
        if any(each.code == 421 for each in replies):
            raise ConnectionEnded("closed by the reply")
        if stream.refusal is not None and stream.refusal.text == reply.BARE_NEWLINE_IN_DATA.text:
            raise ConnectionEnded("a bare CR or LF in the message")

    def _log_message(self, stream: MessageStream, last: Reply) -> None:
        self._unrecognized = 0
        if self.service.log.enabled(INFO):
            envelope = self.session.envelope
            self.service.log.event(
                INFO, "message", self.session, "message from <%s> for %d recipients, %d bytes: %s",
                str(envelope.mail_from), len(envelope.rcpt_to), stream.byte_length, str(last),
            )  # fmt: skip

    def _reset(self) -> None:
        """Forget the transaction."""
        if self.phase & TRANSACTION:
            self.phase &= ~TRANSACTION
            self.session.envelope = Envelope()
            self.session.transaction += 1
            self._places = {}

    async def rset(self, argument: str) -> None:
        """Abort the transaction (RFC 5321 4.1.1.5)."""
        if argument:
            raise Refused(reply.syntax("RSET"))
        self._reset()
        self.reply(reply.FLUSHED)

    # --- TLS (RFC 3207)

    async def starttls(self, argument: str) -> None:
        """Go on under TLS; of what was said in plaintext nothing is kept."""
        if argument:
            raise Refused(reply.syntax("STARTTLS"))
        if self.wire.pending():
            # Never executed under TLS, whatever forbid_unauth_pipelining says (CVE-2011-0411).
            raise ConnectionEnded("input behind STARTTLS", reply.OUT_OF_TURN)
        self.reply(reply.READY_FOR_TLS)
        session = self.session
        session.tls = await self.wire.start_tls()
        # RFC 3207 4.2: "the SMTP protocol is reset to the initial state … The server MUST discard any knowledge
        # obtained from the client".
        self._start_over()
        xclient.forget(session)
        self._vouched_for = False
        session.secure = True
        session.servername = session.tls.servername
        self.phase = TLS
        try:
            await self.asking.ask(ON_SECURE, session.tls, session)
        except Refused as refused:
            self._secure_refusal = refused.reply  # the client speaks next: it answers the next command

    def _start_over(self) -> None:
        self._reset()
        self.phase &= TLS
        session = self.session
        session.user = session.username = None
        session.opening_command = session.host_name_appears_as = None

    # --- AUTH (RFC 4954)

    async def auth(self, argument: str) -> None:
        """Authenticate the client."""
        if not self.service.may_auth(self.session):
            raise Refused(reply.NEED_TLS_FOR_AUTH)
        self.session.user = await authenticate(self.asking, argument, self._write)
        self.phase |= AUTH
        self.reply(reply.AUTHENTICATED)

    # --- What a proxy says of the client

    async def xclient(self, argument: str) -> None:
        """Take another's word for who the client is, and begin again with the greeting."""
        if not self.trusted(self.service.xclient_peers):
            raise Refused(reply.NOT_PERMITTED)
        values = xclient.parse("XCLIENT", argument, xclient.XCLIENT)
        login = values.get("LOGIN")
        user = await self._vouched_user(login) if login else None
        self._start_over()
        xclient.apply(self.session, values)
        if user is not None:
            self.session.user, self.session.username = user, login
            self.phase |= AUTH
        self._vouched_for = "ADDR" in values
        self.service.log.event(INFO, "xclient", self.session, "XCLIENT %s", argument)
        await self._admit(ON_CONNECT)
        self._write(self.service.greeting)

    async def _vouched_user(self, login: str) -> object:
        try:
            return await self.asking.vouched_user(login)
        except Refused as refused:
            raise ConnectionEnded("LOGIN refused", refused.reply) from None

    async def xforward(self, argument: str) -> None:
        """Note what a filter's feeder says of the original client."""
        if not self.trusted(self.service.xforward_peers):
            raise Refused(reply.NOT_PERMITTED)
        self.session.x_forward.update(xclient.parse("XFORWARD", argument, xclient.XFORWARD))
        self.reply(reply.OK)

    # --- The small ones

    async def noop(self, _: str) -> None:
        """Do nothing (RFC 5321 4.1.1.9)."""
        self.reply(reply.OK)

    async def help(self, _: str) -> None:
        """Say where help is."""
        self.reply(reply.HELP)

    async def vrfy(self, argument: str) -> None:
        """Neither confirm nor deny a mailbox (RFC 5321 7.3)."""
        if not argument:
            raise Refused(reply.syntax("VRFY address"))
        self.reply(reply.CANNOT_VERIFY)

    async def quit(self, _: str) -> None:
        """Say goodbye."""
        self.reply(reply.BYE)
        raise ConnectionEnded("QUIT")


def _decoded(argument: bytes) -> str:
    """Return a command's argument as text: UTF-8 without control characters."""
    try:
        text = argument.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise Refused(reply.BAD_CHARACTERS) from problem
    if not text.isprintable() and has_forbidden_characters(text):
        raise Refused(reply.BAD_CHARACTERS)
    return text


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
    return lambda conversation, argument: conversation.hello(verb, argument)


_C = Conversation
_TABLE = (
    Command(b"HELO", _hello("HELO"), last_in_group=True, lmtp=False),
    Command(b"EHLO", _hello("EHLO"), last_in_group=True, lmtp=False),
    Command(b"LHLO", _hello("LHLO"), last_in_group=True, lmtp=True),
    Command(b"STARTTLS", _C.starttls, 0, ((TLS, reply.TLS_ACTIVE),)),
    Command(b"AUTH", _C.auth, HELLO, ((AUTH, reply.NO_IDENTITY_CHANGES), *_IN_TRANSACTION), last_in_group=True),
    Command(b"MAIL", _C.mail, HELLO | AUTH, ((MAIL, reply.NESTED_MAIL),)),
    Command(b"RCPT", _C.rcpt, HELLO | AUTH | MAIL),
    Command(b"DATA", _C.data, HELLO | AUTH | MAIL | RCPT, last_in_group=True),
    Command(b"RSET", _C.rset),
    Command(b"NOOP", _C.noop),
    Command(b"QUIT", _C.quit),
    Command(b"HELP", _C.help),
    Command(b"VRFY", _C.vrfy),
    Command(b"XCLIENT", _C.xclient, 0, _IN_TRANSACTION),
    Command(b"XFORWARD", _C.xforward, 0, _IN_TRANSACTION),
)

COMMANDS: dict[bytes, Command] = {command.verb: command for command in _TABLE}


def _offered(service: Service) -> dict[bytes, Command]:
    """Return the commands of this listener's protocol that are not disabled."""
    return {
        verb: command
        for verb, command in COMMANDS.items()
        if verb not in service.disabled and command.lmtp in (None, service.options.lmtp)
    }
