"""``lmtp://``, ``smtp://`` and ``smtps://``: a message goes on to the next server while it arrives.

Nothing is kept here: 250 is said when the next server has said it, and what it refuses the client hears. A message that
does not come to its end is never ended there either.
"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pillarbox import ConfigurationError, Reject, log_fields
from pillarbox.deliver import Target
from pillarbox.deliver import relay_settings as wanted
from pillarbox.deliver.dots import BareNewline
from pillarbox.deliver.relay_client import GONE, LONGEST_TEXT, Lost
from pillarbox.deliver.relay_commands import mail_command, rcpt_command
from pillarbox.deliver.relay_content import Content
from pillarbox.deliver.relay_pool import Pool
from pillarbox.deliver.relay_settings import RelaySettings
from pillarbox.program.paths import looks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pillarbox import Envelope, Recipient, Session
    from pillarbox.deliver import Message
    from pillarbox.deliver.relay_client import Connection, Reply

__all__ = ["Relay"]

PATIENCE_AT_RCPT = 60.0  # seconds: a client waits longer for RCPT, but nothing is lost if it is told to come again
PAUSE_AFTER_REFUSED_LOGIN = 60.0  # seconds

_log = logging.getLogger("pillarbox.deliver")
_Result = TypeVar("_Result")

_ENHANCED = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}(?= |$)")
_LOST = {
    "4.4.1": "Error: the next server cannot be reached, try again later",
    "4.4.2": "Error: the connection to the next server was lost, try again later",
}
_NO_TEXT = "Error: refused by the next server"
_NOT_NOW = "Error: the message cannot be handed on now, try again later"
# RFC 4954 6: what these say (530, 534, 535, 538) is about our own login, of which the client can know nothing.
_ABOUT_OUR_LOGIN = (530, 534, 535, 538)
# RFC 5321 4.2.3: "502 Command not implemented", "503 Bad sequence of commands": of that the message is not guilty.
_OUT_OF_TURN = (502, 503)


class Relay(Target):
    """The targets ``lmtp:``, ``smtp:`` and ``smtps:``."""

    Settings: ClassVar[type[RelaySettings]] = RelaySettings
    final = False
    relays = True
    settings: RelaySettings

    def __init__(self, url: str, settings: RelaySettings) -> None:
        self._server = wanted.parse_url(url)
        super().__init__(self._server.shown, settings)
        wanted.check(self._server, settings)
        files = (settings.ca, settings.cert, settings.key, settings.password_file)
        self.made_from = (self._server, *looks(*files))  # not to be shown
        self._login_pause: tuple[float, Lost] | None = None
        self._pool = Pool(self._connect, settings.connections, settings.idle)

    def same_as(self, other: Target) -> bool:
        """Whether the other has the same password and certificates too, also those in files."""
        return isinstance(other, Relay) and super().same_as(other) and self.made_from == other.made_from

    async def start(self) -> None:
        """Read the files that the settings name; the next server need not be there yet."""
        try:
            from pillarbox.deliver.relay_connect import connect
        except ImportError as error:
            raise ConfigurationError(f"{self.url} needs aiosmtplib: pip install 'pillarbox[smtp]'") from error
        self._place = await asyncio.to_thread(wanted.place, self._server, self.settings)
        self._open = connect

    async def close(self) -> None:
        """Take leave of the next server."""
        await self._pool.close()

    # --- The contract

    @property
    def verifies(self) -> bool:
        """Whether the next server is asked at RCPT; by itself only an LMTP server is."""
        return self._server.scheme == "lmtp" if self.settings.verify is None else self.settings.verify

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Ask the next server for the recipient; its refusal is ours."""
        try:
            async with asyncio.timeout(PATIENCE_AT_RCPT):
                reply = await self._reply_to(recipient, session)
        except TimeoutError:
            raise self._lost(Lost("it does not answer at RCPT", "4.4.1"), session) from None
        except Lost as lost:
            raise self._lost(lost, session) from None
        if not reply.ok:
            raise self._refusal(reply, session)

    async def deliver(self, message: Message) -> Sequence[str | Reject]:
        """Hand a message on; return for each recipient what the next server says."""
        try:
            return await self._handed_on(message)
        except Lost as lost:
            raise self._lost(lost, message.session) from None
        except BareNewline:
            # Only a server with bare_newline = "accept" lets them in. RFC 3463 3.7: "X.6.0 Other or undefined media
            # error".
            raise Reject(554, "Error: a message with a bare CR or LF cannot be handed on", enhanced="5.6.0") from None

    async def _handed_on(self, message: Message) -> list[str | Reject]:
        content = Content(message)
        await content.read_ahead()
        connection, answers = await self._with_connection(partial(self._begun, message, content))
        try:
            waiting = answers.count(None)
            replies = iter(await _sent(connection, content, message.session, waiting) if waiting else ())
        finally:
            self._pool.give_back(connection)
        return [answer or self._outcome(next(replies), message.session) for answer in answers]

    # --- With a connection

    async def _connect(self) -> Connection:
        from pillarbox.deliver.relay_connect import LoginRefused

        now = asyncio.get_running_loop().time()
        if self._login_pause is not None and now < self._login_pause[0]:
            raise Lost(f"{self._login_pause[1]} (not tried again yet)", self._login_pause[1].enhanced)
        try:
            return await self._open(self._place)
        except LoginRefused as refused:
            self._login_pause = now + PAUSE_AFTER_REFUSED_LOGIN, refused
            raise

    async def _with_connection(self, begin: Callable[[Connection], Awaitable[_Result]]) -> tuple[Connection, _Result]:
        """Begin something on a connection, which the caller gives back; one that died while it waited is replaced."""
        for fresh in (False, True):
            connection = await self._pool.take(fresh=fresh)
            try:
                return connection, await begin(connection)
            except BaseException as error:
                self._pool.give_back(connection)
                # Nothing of the message has left yet, so nothing is there twice.
                if fresh or connection.used == 1 or not isinstance(error, Lost):
                    raise
        raise AssertionError

    async def _reply_to(self, recipient: Recipient, session: Session) -> Reply:
        """Say MAIL and RCPT, and take them back; return the reply that counts."""

        async def ask(connection: Connection) -> Reply:
            mail, rcpts = _commands(session.envelope, [recipient], connection, None)
            sender, replies = await connection.begin(mail, rcpts)
            await connection.reset()
            return replies[0] if sender.ok else sender

        connection, reply = await self._with_connection(ask)
        self._pool.give_back(connection)
        return reply

    async def _begun(self, message: Message, content: Content, connection: Connection) -> list[Reject | None]:
        """Say MAIL, RCPT and DATA; return for each recipient its refusal, or None where the message may come."""
        session = message.session
        content.must_fit(connection.offers, session.envelope)
        mail, rcpts = _commands(session.envelope, message.recipients, connection, content.size)
        answers = self._answers(*await connection.begin(mail, rcpts), message)
        if None in answers and session.envelope.body_type != "binarymime":
            go = await connection.data()
            if go.code != 354:
                answers = [answer or self._refusal(go, session) for answer in answers]
        if None not in answers:
            await connection.reset()
        return answers

    def _answers(self, sender: Reply, replies: Sequence[Reply], message: Message) -> list[Reject | None]:
        session = message.session
        if not sender.ok:
            return [self._refusal(sender, session)] * len(message.recipients)
        refusals = {reply: self._refusal(reply, session) for reply in dict.fromkeys(replies) if not reply.ok}
        answers = [refusals.get(reply) for reply in replies]
        return answers if session.lmtp else _all_or_none(answers, message.recipients)

    # --- What the client is told

    def _outcome(self, reply: Reply, session: Session) -> str | Reject:
        return f"{self.url} ({reply})"[:300] if reply.ok else self._refusal(reply, session)

    def _refusal(self, reply: Reply, session: Session) -> Reject:
        """Return the next server's refusal as ours: its code and text, without what is between it and us alone."""
        if reply.code == 421:  # ours would end the client's connection too
            return self._lost(Lost("not all of its replies came" if reply is GONE else f"it said {reply}"), session)
        if reply.code in _ABOUT_OUR_LOGIN:
            return self._lost(Lost(f"it wants a login, or another one: {reply}", "4.3.5"), session)
        if reply.code < 400 or reply.code in _OUT_OF_TURN:
            return self._lost(Lost(f"it said {reply} out of turn", "4.5.0"), session)
        status = _ENHANCED.match(reply.lines[0])
        enhanced = status[0] if status and status[1] == str(reply.code)[0] else None
        lines = [line.removeprefix(enhanced or "").strip() for line in reply.lines]
        return Reject(reply.code, " ".join(lines)[:LONGEST_TEXT] or _NO_TEXT, enhanced=enhanced)

    def _lost(self, lost: Lost, session: Session) -> Reject:
        fields = log_fields(session, "deliver", "deliver")
        _log.error("%s: %s", self.url, lost, extra=fields)
        return Reject(451, _LOST.get(lost.enhanced, _NOT_NOW), enhanced=lost.enhanced)


def _commands(
    envelope: Envelope, recipients: Sequence[Recipient], connection: Connection, size: int | None
) -> tuple[bytes, list[bytes]]:
    offers = connection.offers
    mail = mail_command(envelope, offers, size=size, tls=connection.verified)
    return mail, [rcpt_command(recipient, envelope, offers) for recipient in recipients]


def _all_or_none(answers: list[Reject | None], recipients: Sequence[Recipient]) -> list[Reject | None]:
    """Let one refusal be that of all: in SMTP they share a reply, and who had the message would get it twice."""
    refusals = [(answer, to) for answer, to in zip(answers, recipients, strict=True) if answer is not None]
    if not refusals:
        return answers
    # What is refused for good stays so, however often the client comes again.
    answer, to = next((each for each in refusals if (each[0].code or 0) >= 500), refusals[0])
    if len(recipients) > 1:
        answer = Reject(answer.code, f"<{to.address}>: {answer.text or 'refused'}", enhanced=answer.enhanced)
    return [answer] * len(recipients)


async def _sent(connection: Connection, content: Content, session: Session, recipients: int) -> list[Reply]:
    """Send the message; return a reply for each recipient that waits for one."""
    binary = session.envelope.body_type == "binarymime"
    replies = await (connection.send_chunks if binary else connection.send)(content, recipients)
    return replies if connection.lmtp else replies * recipients
