"""One connection to the next server: the dialogue of a transaction, and the message as a stream.

aiosmtplib opens it (``relay_connect``); from then on this file speaks, since that library takes whole messages, sends
one command at a time and knows no LMTP. What is here is what those three need, and no more.
"""

from __future__ import annotations

import asyncio
import re
import select
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pillarbox.deliver.dots import Dots

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence

__all__ = ["GONE", "LIMITS", "LONGEST_LINE", "LONGEST_TEXT", "Connection", "Limits", "Lost", "Reply"]

LONGEST_LINE = 8192  # octets; RFC 5321 4.5.3.1.5 has 512, and servers that go beyond it exist
LONGEST_TEXT = 1000  # characters of a reply, however many lines it has, that a log or a client gets
_MOST_LINES = 100

# RFC 5321 4.2: "Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF".
_REPLY_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*?))?\r?\n", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """How many seconds each step may take, as RFC 5321 4.5.3.2 recommends.

    A route's own ``timeout`` holds over all of them together.
    """

    # 4.5.3.2.1 has "Initial 220 Message: 5 Minutes", but a client waits so long for all of this: a minute is for
    # connecting, one for the handshake, and one for the greeting.
    connect: float = 60.0
    command: float = 300.0  # 4.5.3.2.2 and .3: "MAIL Command: 5 Minutes", "RCPT Command: 5 Minutes"
    data: float = 120.0  # 4.5.3.2.4: "DATA Initiation: 2 Minutes"
    block: float = 180.0  # 4.5.3.2.5: "Data Block: 3 Minutes"
    termination: float = 600.0  # 4.5.3.2.6: "DATA Termination: 10 Minutes."
    farewell: float = 5.0


LIMITS = Limits()


class Lost(Exception):
    """There is no connection to the next server any more, or none could be made; its text is for the log.

    enhanced: the status for the client (RFC 3463), of the class 4. reply: the 421 that said so, if one did.
    """

    def __init__(self, reason: str, enhanced: str = "4.4.2", *, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.enhanced = enhanced
        self.reply = reply


class Reply(NamedTuple):
    """A reply: its code, and the text of each of its lines."""

    code: int
    lines: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it is a positive completion (RFC 5321 4.2.1)."""
        return 200 <= self.code < 300

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.lines)}"[:LONGEST_TEXT]


# Stands for a reply that did not come.
GONE = Reply(421, ())


class Connection:
    """A connection that was greeted, and says what it ``offers``: EHLO's keywords in upper case with their parameters.

    lmtp: whether it speaks LMTP. verified: whether it is under TLS with a certificate that was verified. clean: no
    transaction is open, so that another may begin. used: transactions begun so far. refusals: how many commands or
    messages were refused; servers slow down or end a connection that has many.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        offers: Mapping[str, str],
        *,
        lmtp: bool = False,
        verified: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self.offers = offers
        self.lmtp = lmtp
        self.verified = verified
        self.clean = True
        self.used = 0
        self.refusals = 0
        self._limits = limits
        self._reader = reader
        self._writer = writer

    # --- A transaction

    async def begin(self, mail: bytes, recipients: Sequence[bytes]) -> tuple[Reply, list[Reply]]:
        """Say MAIL and RCPT; return the reply to MAIL and, where it was accepted, those to the recipients."""
        self.used += 1
        self.clean = False
        await self._nothing_unasked()
        # RFC 2920 3.1: "In particular, the commands RSET, MAIL FROM, SEND FROM, SOML FROM, SAML FROM, and RCPT TO can
        # all appear anywhere in a pipelined command group."
        together = "PIPELINING" in self.offers
        if together:
            self._write(mail + b"".join(recipients))
        replies: list[Reply] = []
        try:
            for command in (mail, *recipients):
                if together or not replies or replies[0].ok:
                    replies.append(await (self._reply(self._limits.command) if together else self._ask(command)))
        except Lost as lost:
            replies = self._refused_until(replies, lost) + [lost.reply or GONE] * (1 + len(recipients) - len(replies))
        self.refusals += sum(not reply.ok for reply in replies)
        return replies[0], replies[1:] if replies[0].ok else []

    def _refused_until(self, replies: list[Reply], lost: Lost) -> list[Reply]:
        """Return the refusals that came before the connection was lost; raise Lost where another may do better."""
        # A server ends a connection with so many refusals (Postfix: smtpd_hard_error_limit, 20), each time anew: were
        # they forgotten, the message would be "later" until it is given up.
        if self.used > 1 or all(reply.ok for reply in replies):
            raise lost
        return replies[:1] + [(lost.reply or GONE) if reply.ok else reply for reply in replies[1:]]

    async def reset(self) -> None:
        """End a transaction without a message; raises nothing: the connection then is not clean."""
        with suppress(Lost):
            self.clean = (await self._ask(b"RSET\r\n")).ok

    async def data(self) -> Reply:
        """Say DATA; 354 says that the message may come."""
        self._write(b"DATA\r\n")
        return await self._reply(self._limits.data)

    async def send(self, blocks: AsyncIterable[bytes], recipients: int) -> list[Reply]:
        """Send the message behind DATA; return its reply, in LMTP one for each recipient that was accepted.

        Where ``blocks`` raises, or this is cancelled, the end of the message is never sent. Raises BareNewline.
        """
        dots = Dots()
        async with _Answers(self, recipients) as answers:
            try:
                async for block in blocks:
                    await self._push(dots.block(block), answers)
            except _Answered:  # with 421, say (RFC 5321 3.8), or by going away
                return answers.so_far()
            end = dots.end()
            if await self._has_answered(answers):
                return answers.so_far()
            self._write(end)
            return await answers.all(self._limits.termination)

    async def send_chunks(self, blocks: AsyncIterable[bytes], recipients: int) -> list[Reply]:
        """Send the message by BDAT (RFC 3030 2), octet by octet as it is; otherwise like ``send``."""
        async for block in blocks:
            self._write(b"BDAT %d\r\n" % len(block) + block)
            reply = await self._reply(self._limits.termination)
            if not reply.ok:
                return [reply] * (recipients if self.lmtp else 1)
        async with _Answers(self, recipients) as answers:
            self._write(b"BDAT 0 LAST\r\n")
            return await answers.all(self._limits.termination)

    def note(self, replies: Sequence[Reply]) -> None:
        """Take the replies to a message into account: whether another may follow."""
        self.refusals += sum(not reply.ok for reply in replies)
        # A refusal before all of the message has left, and what is left would be taken for commands.
        sent = not self._writer.transport.get_write_buffer_size()
        self.clean = sent and all(reply.code != 421 for reply in replies)

    # --- Its end

    async def quit(self) -> None:
        """Take leave and close; raises nothing."""
        # RFC 5321 4.1.1.10: "The sender MUST NOT intentionally close the transmission channel until it sends a QUIT
        # command, and it SHOULD wait until it receives the reply (even if there was an error response to a previous
        # command)."
        with suppress(Lost):
            self._write(b"QUIT\r\n")
            await self._reply(self._limits.farewell)
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._limits.farewell):
                await self._writer.wait_closed()
        self.abort()

    def abort(self) -> None:
        """Drop the connection, with all that is still to be sent."""
        self.clean = False
        self._writer.transport.abort()

    # --- Octets

    async def _nothing_unasked(self) -> None:
        """Raise Lost for a reply that nobody waits for: it would be taken for that to the next command."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(0):
                await self._reader.read(1)
            raise Lost("it said more than it was asked for, or closed the connection")

    async def _ask(self, command: bytes) -> Reply:
        self._write(command)
        return await self._reply(self._limits.command)

    def _write(self, octets: bytes) -> None:
        if self._writer.transport.is_closing():  # where uvloop would raise a RuntimeError
            raise Lost("it closed the connection")
        self._writer.write(octets)

    async def _has_answered(self, answers: _Answers) -> bool:
        if self._says_something():  # to write to one that refuses and closes would lose what it says
            await answers.settle()
        return answers.done

    def _says_something(self) -> bool:
        """Whether there is something to read that the event loop has not read yet."""
        connection = self._writer.get_extra_info("socket")
        if connection is None or connection.fileno() < 0 or not hasattr(select, "poll"):  # Windows has none
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def _push(self, octets: bytes, answers: _Answers) -> None:
        if await self._has_answered(answers):
            raise _Answered
        try:
            self._write(octets)
            async with asyncio.timeout(self._limits.block):
                await self._writer.drain()
        except TimeoutError as error:
            raise Lost("it does not read the message") from error
        except (OSError, Lost) as error:
            await answers.settle()
            if answers.done:
                raise _Answered from error
            raise Lost(f"the connection broke: {error}") from error

    async def _reply(self, limit: float | None) -> Reply:
        """Read a reply; raise Lost for what is none, for none at all, and for 421 outside a message."""
        try:
            async with asyncio.timeout(limit):
                reply = await self.read()
        except TimeoutError as error:
            raise Lost("it does not answer") from error
        # RFC 5321 3.8: a server that must shut down answers with 421 whatever it is asked, and closes.
        if reply.code == 421:
            raise Lost(f"it said {reply}", reply=reply)
        return reply

    async def read(self) -> Reply:
        """Read a reply of however many lines; raise Lost for what is none."""
        lines: list[str] = []
        while len(lines) < _MOST_LINES:
            match = _REPLY_LINE.fullmatch(await self._line())
            if match is None:
                raise Lost("it answers with what is no reply")
            lines.append((match[3] or b"").decode("utf-8", "replace").strip())
            if match[2] != b"-":
                return Reply(int(match[1]), tuple(lines))
        raise Lost("it answers without an end")

    async def _line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise Lost("it closed the connection") from error
        except asyncio.LimitOverrunError as error:
            raise Lost("it answers without an end") from error
        except OSError as error:
            raise Lost(f"the connection broke: {error}") from error


class _Answered(Exception):
    """The next server has answered before the message was whole, or is gone."""


class _Answers:
    """The replies to a message. They are read from its first octet on: a server may end it at any time with 421."""

    def __init__(self, connection: Connection, recipients: int) -> None:
        self._sending = True
        self._connection = connection
        # RFC 2033 4.2: after the final "." an LMTP server returns one reply for each RCPT that was successful.
        self._wanted = recipients if connection.lmtp else 1
        self._replies: list[Reply] = []

    async def __aenter__(self) -> _Answers:
        self._task = asyncio.create_task(self._read())
        self._task.add_done_callback(self._stop_sending)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, Lost):
            await self._task

    async def _read(self) -> None:
        while len(self._replies) < self._wanted:
            self._replies.append(await self._connection.read())
            if self._replies[-1].code == 421:
                return

    def _stop_sending(self, _: object) -> None:
        """Wake who waits until a server reads on that has answered already."""
        if self._sending:
            self._connection.abort()

    @property
    def done(self) -> bool:
        return self._task.done()

    async def settle(self) -> None:
        """Give what has arrived the time to be read."""
        await asyncio.wait([self._task], timeout=0.1)

    async def all(self, limit: float) -> list[Reply]:
        """Wait for the replies, now that the end of the message was written; raise Lost where not one comes."""
        self._sending = False
        await asyncio.wait([self._task], timeout=limit)
        replies = self.so_far()
        self._connection.note(replies)
        return replies

    def so_far(self) -> list[Reply]:
        """Return the replies that have come; what is missing is GONE. Raises Lost where not one has come."""
        if self._replies:
            missing = [GONE] * (self._wanted - len(self._replies))
            # What was accepted before it was whole is not what was sent.
            return [GONE if self._sending and reply.ok else reply for reply in self._replies] + missing
        error = self._task.exception() if self._task.done() and not self._task.cancelled() else None
        raise error or Lost("it does not answer the message")
