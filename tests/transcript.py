"""Transcripts of the protocol without sockets: ``C:`` and ``S:`` lines, replayed whole, byte by byte and at splits.

``C:`` lines up to the next ``S:`` line leave together; a reply ends where its last line is. ``C: …`` lines end in
CRLF; ``c: …`` is raw, with Python's escapes and no line end. ``S: *`` is any line, ``S: 250`` any text behind 250.
``X`` at the end: the server closed the connection.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from pillarbox import Options, Session, TLSInfo
from pillarbox.handlers import HOOKS
from pillarbox.logs import EventLog
from pillarbox.net.apart import Apart
from pillarbox.server import SMTPServer
from pillarbox.smtp.conversation import Conversation
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.service import Service
from pillarbox.smtp.wire import Arriving, ConnectionEnded

Split = Callable[[bytes], Iterable[bytes]]


def whole(octets: bytes) -> list[bytes]:
    """Send a flight in one piece."""
    return [octets] if octets else []


def bytewise(octets: bytes) -> list[bytes]:
    """Send a flight byte by byte."""
    return [octets[at : at + 1] for at in range(len(octets))]


def cut_at(place: int) -> Split:
    """Cut the flights, taken together, at one place."""
    sent = 0

    def split(octets: bytes) -> list[bytes]:
        nonlocal sent
        at = place - sent
        sent += len(octets)
        return [part for part in (octets[:at], octets[at:]) if part] if 0 < at < len(octets) else whole(octets)

    return split


class ListWire:
    """A wire made of a list of bytes: gives the next flight only when the server has nothing more to do."""

    def __init__(self, flights: list[bytes], split: Split) -> None:
        self._flights = list(flights)
        self._split = split
        self._arriving: list[bytes] = []
        self._buffer = b""
        self.sent: list[bytes] = []  # what the server had sent when it waited for each flight
        self.out = b""
        self.measured: Arriving | None = None
        self.client_left = False
        self._stopped: Reply | None = None

    def flush(self) -> None:
        return

    def _arrive(self) -> None:
        if self._stopped is not None:
            raise ConnectionEnded("stopped", self._stopped)
        if not self._arriving:
            self.sent.append(self.out)
            self.out = b""
            if not self._flights:
                self.client_left = True
                raise ConnectionEnded("the client closed the connection")
            self._arriving = list(self._split(self._flights.pop(0)))
        if self._arriving:
            self._buffer += self._arriving.pop(0)

    def line(self, limit: int) -> bytes | None:
        if b"\n" not in self._buffer:
            return None
        line, newline, self._buffer = self._buffer.partition(b"\n")
        return line[:-1] if line.endswith(b"\r") and len(line) < limit else line + newline

    def block(self, most: int | None = None) -> bytes:
        end = len(self._buffer) if most is None else most
        block, self._buffer = self._buffer[:end], self._buffer[end:]
        return block

    async def more(self) -> None:
        self._arrive()

    def unread(self, octets: bytes) -> None:
        self._buffer = octets + self._buffer

    def pending(self) -> bool:
        return bool(self._buffer or self._arriving)

    def buffered(self) -> bool:
        return self.pending()

    async def delay(self, seconds: float) -> None:
        return

    async def admit(self) -> Reply | None:
        return None

    async def wait_input(self, seconds: float) -> None:
        return

    async def start_tls(self) -> TLSInfo:
        return TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")

    def stop(self, reply: Reply) -> None:
        self._stopped = reply

    def ends_with(self, error: BaseException) -> bool:
        return not isinstance(error, Exception)

    def apart(self, coroutine: Coroutine[Any, Any, None]) -> Apart:
        return Apart(coroutine)

    @contextlib.asynccontextmanager
    async def time_limit(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(seconds):
            yield

    def finish(self) -> None:
        """Note what was said last."""
        if self.out:
            self.sent.append(self.out)


def parse(text: str) -> tuple[list[bytes], list[list[str]], bool]:
    """Return the client's flights, the server's lines before each (and after the last), and whether it closes."""
    flights: list[bytes] = []
    expected: list[list[str]] = [[]]
    closes = False
    last = "S"
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, _, rest = line.partition(":")
        rest = rest.removeprefix(" ")
        if kind == "S":
            expected[-1].append(rest)
        elif kind == "X":
            closes = True
        elif kind in "Cc" and kind:
            octets = rest.encode() + b"\r\n" if kind == "C" else ast.literal_eval(f'b"{rest}"')
            if last == "S":
                flights.append(octets)
                expected.append([])
            else:
                flights[-1] += octets
        else:
            raise ValueError(f"not a line of a transcript: {line!r}")
        last = kind.upper()
    return flights, expected, closes


class Replay:
    """One conversation over a ``ListWire``, with the messages it delivered."""

    def __init__(self, *, session: Session | None = None, **options: Any) -> None:
        options.setdefault("name", "mx.test")
        options.setdefault("auth_optional", True)
        self.messages: list[bytes] = []
        self.server_ended = False
        self.envelopes: list[tuple[str, list[str]]] = []
        self.session = session or Session(remote_address="192.0.2.1", remote_port=4000)
        server = SMTPServer(**options)
        self.options: Options = server.options
        hooks = {hook: server.handler(hook) for hook in HOOKS}
        if server.options.on_data is None:
            hooks["on_data"] = self._keep
        self.session.lmtp = server.options.lmtp
        self.service = Service(server.options, hooks, EventLog(server.options.logger, "test"))

    async def _keep(self, stream: Any, session: Session) -> None:
        self.messages.append(await stream.read())
        sender = session.envelope.mail_from
        self.envelopes.append((str(sender), [str(recipient) for recipient in session.envelope.rcpt_to]))

    async def run(self, flights: list[bytes], split: Split = whole) -> list[list[str]]:
        """Say these flights; return the server's lines before each and after the last."""
        wire = ListWire(flights, split)
        await Conversation(self.service, self.session, wire).run()
        wire.finish()
        self.server_ended = not wire.client_left
        return [said.decode().split("\r\n")[:-1] for said in wire.sent]


async def replay(text: str, split: Split = whole, **options: Any) -> Replay:
    """Replay a transcript and compare; returns what was delivered."""
    flights, expected, closes = parse(text)
    conversation = Replay(**options)
    said = await conversation.run(flights, split)
    for number, lines in enumerate(expected):
        got = said[number] if number < len(said) else []
        before = "the greeting" if number == 0 else repr(flights[number - 1])
        assert _matches(got, lines), f"after {before}: expected {lines}, got {got}"
    left = [line for lines in said[len(expected) :] for line in lines]
    assert not left, f"the server also said {left}"
    assert closes == conversation.server_ended, "the server did not close" if closes else "the server closed"
    return conversation


def _matches(got: list[str], expected: list[str]) -> bool:
    if len(got) != len(expected):
        return False
    return all(
        want == "*" or line == want or (want[:3] == line[:3] and want[3:] in ("", "-"))
        for line, want in zip(got, expected, strict=True)
    )


async def replay_every_way(text: str, check: Callable[[Replay], None] | None = None, **options: Any) -> None:
    """Replay a transcript whole, byte by byte, and cut at each place: always the same."""
    flights, _, _ = parse(text)
    length = sum(map(len, flights))
    ways: list[Split] = [whole, bytewise, *(cut_at(place) for place in range(1, length))]
    for split in ways:
        done = await replay(text, split, **options)
        if check is not None:
            check(done)
