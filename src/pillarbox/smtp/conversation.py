"""The dialogue with one client: one coroutine from the greeting to the end; the verbs stand in ``commands``."""

from __future__ import annotations

import re
from logging import DEBUG, INFO
from typing import TYPE_CHECKING

from pillarbox.session import Envelope
from pillarbox.smtp import counting, limits, reply
from pillarbox.smtp.asking import ON_CONNECT, ON_SECURE, Asking, Rule
from pillarbox.smtp.grammar import has_forbidden_characters
from pillarbox.smtp.phase import AUTH, DOOMED, MAIL, TLS, TRANSACTION
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.wire import MAX_AUTH_LINE, ConnectionEnded, LimitCrossed, TransactionAborted, read_line

if TYPE_CHECKING:
    from pillarbox.extension import Command
    from pillarbox.session import Session
    from pillarbox.smtp.chunks import Chunks
    from pillarbox.smtp.limits import Counts
    from pillarbox.smtp.service import Service
    from pillarbox.smtp.wire import Wire


_LF = ord("\n")
_HTTP = re.compile(rb"(?i)[a-z]+ \S+ HTTP/\d")


class Conversation:
    """One client's dialogue, from the greeting to the end of the connection.

    ``await run()`` once; it returns when the conversation is over and leaves closing the wire to the caller.
    ``shut_down()`` may be called meanwhile. A verb of an application's own uses ``session``, ``reply`` and
    ``read_line``.
    """

    __slots__ = (
        "_closing",
        "_codes",
        "_counts_unauthenticated",
        "_max_length",
        "_secure_refusal",
        "_transcript",
        "_unauthenticated",
        "_watching",
        "asking",
        "auth_failures",
        "chunk_recipients",
        "chunk_refusal",
        "chunks",
        "connected",
        "counts",
        "informs",
        "phase",
        "places",
        "replied",
        "service",
        "session",
        "wire",
    )

    def __init__(self, service: Service, session: Session, wire: Wire) -> None:
        self.service = service
        self.session = session
        self.wire = wire
        self.asking = Asking(service, session, wire)
        self._codes = service.codes
        self._counts_unauthenticated = service.must_authenticate
        self._max_length = service.options.max_command_length
        # Asked once: it is wanted for every line, and is nearly never on.
        self._transcript = service.log.enabled(DEBUG)
        self.informs = service.log.enabled(INFO)
        self.phase = TLS if session.secure else 0
        self.connected = False  # on_connect was reached, so on_close will be
        self._closing = False
        self._watching = False  # whether the end of the transaction means more than that
        self.chunks: Chunks | None = None  # of the message that comes by BDAT
        self.chunk_refusal: Reply | None = None  # of the chunks behind the one that was refused
        self.chunk_recipients = 0  # so many recipients that message had
        self.replied = False  # whether a verb that returned nothing has replied itself
        self.counts: Counts | None = None  # of errors and the like since the last message, if there were some
        self.auth_failures = 0
        self._unauthenticated = 0
        self.places: dict[str, int] | None = None  # where a recipient stands, to find it when it is given again
        self._secure_refusal: Reply | None = None

    # --- The course of a connection

    async def run(self, *, between_chunks: bool = False) -> None:  # noqa: PLR0912, PLR0915 - see below
        """Greet, then read commands and answer them until one side ends it.

        Between two chunks of a message it is entered again: it returns with the next chunk, and raises
        TransactionAborted or ConnectionEnded where none comes.
        """
        # All that every command needs stands in this one function: with the layers that went below it, a message took
        # 56 µs instead of 64.
        wire, limit, transcript = self.wire, self._max_length, self._transcript
        usual = {} if transcript else self.service.usual
        command: Command | None = None  # the one that is not counted yet
        try:
            if not between_chunks:
                await self._greet()
            while True:
                command = None
                if self._watching and not self.phase & MAIL:
                    self._transaction_is_over()
                while (line := wire.line(limit)) is None:
                    await wire.more()
                command = usual.get(line[:5])
                try:
                    if command is not None and line[-1] != _LF:
                        argument = line[5:].rstrip(b" ")
                    else:
                        command, argument = self._recognized(line)
                    if command.last_in_group and wire.buffered():
                        self._check_turn()
                    if self._counts_unauthenticated and not self.phase & AUTH:
                        self._count_unauthenticated(command)
                    try:
                        text = argument.decode()
                    except UnicodeDecodeError:
                        raise Refused(reply.BAD_CHARACTERS) from None
                    if not text.isprintable() and has_forbidden_characters(text):
                        raise Refused(reply.BAD_CHARACTERS)
                    if self.phase & command.concerns != command.needs:
                        self._check_phase(command)
                    done = command.run(self, text)
                    # A verb that need not wait is no coroutine.
                    answer = done if isinstance(done, Reply) else await done
                except Refused as refused:
                    await self._refuse(command, refused)
                    if command is not None:
                        command.tally[0] += 1
                    continue
                if answer is not None:
                    command.tally[answer.code] += 1
                    octets = answer.coded if self._codes else answer.plain
                    if transcript:
                        self._log_reply(octets)
                    wire.out += octets
                else:
                    command.tally[0] += 1
                    if self.chunks is not None and self.chunks.begun:
                        return
        except ConnectionEnded as end:
            if command is not None:
                command.tally[0] += 1
            if between_chunks:
                raise
            if end.reply is not None:
                self.reply(end.reply)
            self._log_end(end)

    def _log_end(self, end: ConnectionEnded) -> None:
        # That the server ends it is worth a line; that the client does, or the whole server, is not.
        ours = end.reply is not None and end.reply.code >= 400 and end.reply is not reply.SHUTTING_DOWN
        if end.reply is not reply.BYE:
            counting.ended(self.service, end)
        if isinstance(end, LimitCrossed):
            self.service.log.event(INFO, "limit", self.session, "closed: %s", str(end))
        elif ours or self._transcript:
            self.service.log.event(INFO if ours else DEBUG, "end", self.session, "%s%s", "closed: " * ours, str(end))

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted and the message not yet answered."""
        return bool(self.phase & MAIL)

    def shut_down(self) -> None:
        """End the conversation: at once outside a transaction, else when that is done (RFC 5321 3.8)."""
        self._closing = self._watching = True
        if not self.phase & MAIL:
            self.wire.stop(reply.SHUTTING_DOWN)

    async def _greet(self) -> None:
        options = self.service.options
        self.connected = True
        if self.service.hooks["on_connect"] is not None:
            await self.admit(ON_CONNECT)
        if self.session.tls is not None:
            await self.admit(ON_SECURE, self.session.tls)
        if options.greet_delay:
            await self.wire.wait_input(options.greet_delay)
        if self.wire.pending():
            raise ConnectionEnded("input before the greeting", self.service.too_soon)
        self.greet()

    async def admit(self, rule: Rule, *facts: object) -> None:
        """Ask whether this client may come in; a refusal ends the conversation."""
        try:
            await self.asking.ask(rule, *facts, self.session)
        except Refused as refused:
            raise ConnectionEnded(f"{rule.hook} refused", refused.reply) from None

    # --- One command

    def _recognized(self, line: bytes) -> tuple[Command, bytes]:
        """Return the command of a line and its argument; raises Refused where it is none."""
        octets = self.service.stripped(line)
        verb, _, argument = octets.partition(b" ")
        commands = self.service.commands
        command = commands.get(verb) or commands.get(verb.upper())
        if self._secure_refusal is not None and octets.upper() != b"QUIT":
            raise ConnectionEnded("on_secure refused", self._secure_refusal)
        if command is None and _HTTP.match(octets):
            raise ConnectionEnded("an HTTP request", reply.HTTP)
        if len(line) > self._max_length and len(line) > self._limit(command):
            if verb.upper() == b"BDAT":
                raise ConnectionEnded("BDAT on a line that is too long", reply.LINE_TOO_LONG)
            raise Refused(reply.LINE_TOO_LONG)
        if command is None:
            raise self._not_recognized(octets)
        if self._transcript:
            self._log_command(command, argument)
        return command, argument

    async def _refuse(self, command: Command | None, refused: Refused) -> None:
        verb = "" if command is None else command.verb
        counting.refused(self.service, verb, refused)
        if refused.failure is not None:
            await self.asking.report(refused.failure)
        if refused.reply.code != 421:
            await limits.refused(self, verb, refused)
        self.reply(refused.reply)
        if refused.reply.code == 421:
            raise ConnectionEnded("closed by the reply") from None
        if verb == "DATA" and self.wire.pending():
            # What was meant as data must not become commands.
            raise ConnectionEnded("input behind a refused DATA", reply.OUT_OF_TURN) from None
        if refused.reply is reply.BAD_CHARACTERS and verb == "BDAT":
            # Nor what stands behind a chunk-size that cannot be read.
            raise ConnectionEnded("malformed BDAT") from None

    def _limit(self, command: Command | None) -> int:
        limit = self._max_length
        return max(limit, MAX_AUTH_LINE) if command is not None and command.verb == "AUTH" else limit

    def _not_recognized(self, octets: bytes) -> Refused:
        if octets[:4].upper() == b"BDAT":
            # Where it is disabled or malformed: what follows is a part of a message, and must not become commands.
            raise ConnectionEnded("BDAT is disabled or malformed", reply.NOT_RECOGNIZED)
        # The text is not logged: after a failed AUTH a confused client sends its password as a command.
        self.service.log.event(DEBUG, "command", self.session, "C: unrecognized command of %d bytes", len(octets))
        self.service.statistics.unknown_command()
        if self._counts_unauthenticated and not self.phase & AUTH:
            self._count_unauthenticated(None)
        if self.service.options.lmtp and octets[:4].upper() in (b"HELO", b"EHLO"):
            # RFC 2033 4.1: "the HELO and EHLO commands … MUST NOT be used"
            return Refused(reply.EHLO_IN_LMTP)
        return Refused(reply.NOT_RECOGNIZED)

    def _log_command(self, command: Command, argument: bytes) -> None:
        if command.verb == "AUTH":  # a token may stand anywhere behind it, also in the mechanism's place
            mechanism = argument.split(b" ")[0].decode("ascii", "replace").upper()
            text = f"{mechanism} ..." if mechanism in self.service.mechanisms else "..."
        else:
            text = argument.decode("utf-8", "backslashreplace")
        self.service.log.event(DEBUG, "command", self.session, "C: %s %s", command.verb, text)

    def _check_turn(self) -> None:
        """Refuse input that waits behind a command whose reply must come first."""
        # RFC 2920 3.1: 'The EHLO, DATA, VRFY, EXPN, TURN, QUIT, and NOOP commands can only appear as the last
        # command in a group since their success or failure produces a change of state'.
        # What was read with the command counts, not what arrives while it is handled: to ask the kernel before each
        # DATA would cost 2.3 µs a message.
        if self.service.options.forbid_unauth_pipelining:
            raise ConnectionEnded("input out of turn", reply.OUT_OF_TURN)

    def _count_unauthenticated(self, command: Command | None) -> None:
        if command is not None and command.verb in ("AUTH", "QUIT"):
            return
        self._unauthenticated += 1
        limit = self.service.options.max_allowed_unauthenticated_commands
        if limit is not False and self._unauthenticated > limit:
            problem = "too many unauthenticated commands"
            raise LimitCrossed(problem, reply.TOO_MANY_UNAUTHENTICATED, "max_allowed_unauthenticated_commands")

    def _check_phase(self, command: Command) -> None:
        if self._secure_refusal is not None:
            raise ConnectionEnded("on_secure refused", self._secure_refusal)
        missing = self.missing(command.needs)
        if missing is not None:
            raise Refused(missing)
        for bit, refusal in command.clashes:
            if bit & self.phase:
                raise Refused(refusal)

    def missing(self, needs: int) -> Reply | None:
        """Return the reply that asks for the first phase that is needed and not there."""
        missing = needs & ~self.phase
        return next((refusal for bit, refusal in self.service.missing if bit & missing), None)

    # --- Replies

    def reply(self, answer: Reply) -> None:
        """Send a reply, and keep it in the session if it is a refusal."""
        self.replied = True
        self.service.statistics.other_replies[answer.code] += 1
        if answer.code >= 400:
            self.session.error = answer.shown(self._codes)
        octets = answer.coded if self._codes else answer.plain
        if self._transcript:
            self._log_reply(octets)
        self.wire.out += octets

    def greet(self) -> None:
        """Send the greeting."""
        octets = self.service.greeting
        self.service.statistics.other_replies[220] += 1
        if self._transcript:
            self._log_reply(octets)
        self.wire.out += octets

    def _log_reply(self, octets: bytes) -> None:
        text = octets.decode("utf-8", "replace").rstrip("\r\n").replace("\r\n", " | ")
        self.service.log.event(DEBUG, "reply", self.session, "S: %s", text)

    # --- What commands share

    def reset(self) -> None:
        """Forget the transaction."""
        if self.phase & MAIL:
            session = self.session
            session.envelope = Envelope()
            session.transaction += 1
            self.places = None
        if self.service.xforward_peers is not None:
            # XFORWARD_README: "At the end of the next MAIL FROM transaction (i.e. RSET or DOT), all XFORWARD attributes
            # are reset to the real client information".
            del self.session.x_forward
        self.phase &= ~TRANSACTION

    def start_over(self) -> None:
        self.reset()
        self.phase &= TLS
        session = self.session
        session.user = session.username = None
        session.opening_command = session.host_name_appears_as = None

    def refuse_all(self, refusal: Reply) -> None:
        """Answer the next command, but for QUIT, with this refusal and close."""
        self._secure_refusal = refusal
        self.phase |= DOOMED

    # --- A message in chunks

    def begin_chunks(self, chunks: Chunks) -> None:
        """Note that a message stream waits for the next chunk of these."""
        self.chunks = chunks
        self._watching = True

    def end_chunks(self) -> None:
        """Note that the message is over, one way or the other."""
        self.chunks = None
        self._watching = self._closing

    def _transaction_is_over(self) -> None:
        if self.chunks is not None:
            self.wire.flush()  # the client need not wait until the handler has noticed
            raise TransactionAborted
        raise ConnectionEnded("the server closes", reply.SHUTTING_DOWN)

    # --- For verbs of an application's own

    async def read_line(self) -> bytes:
        """Return the client's next line without its end (up to ``max_command_length`` octets); it is not logged.

        What was replied leaves first. Raises ConnectionError where the client is gone or silent for too long, Reject
        (500) where the line is too long.
        """
        line = await read_line(self.wire, self._max_length)
        if len(line) > self._max_length:
            raise Refused(reply.LINE_TOO_LONG)
        return self.service.stripped(line)
