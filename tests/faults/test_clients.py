"""Clients that reset, stop in the middle, or fall silent, in every phase: no message, no failure, nothing left of them.

Each way to go of ``WAYS`` is tried in each phase of ``PHASES``, in plaintext, after STARTTLS and under implicit TLS, on
both event loops, in SMTP and LMTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leftovers import nothing_left
from pillarbox import ConnectionLost, HandshakeFailed, MessageStream, Session
from program import WAIT, Start
from support import TIMEOUT, Client, Served, b64, careless, on_both_loops, pem, serving

pytestmark = pytest.mark.filterwarnings("error")
SILENCE = 0.8  # seconds


# --- The server's side: it notes what happened, and waits at a gate where a test wants a handler to be busy


class Handlers:
    """The handlers of one server; at ``gate`` they wait while it is closed."""

    def __init__(self, waits_in: str | None = None) -> None:
        self.waits_in = waits_in
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()
        self.stored: list[bytes] = []
        self.broken: list[BaseException] = []  # messages
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.errors: list[Exception] = []

    def options(self) -> dict[str, Any]:
        names = ("on_connect", "on_auth", "on_data", "on_close", "on_error")
        return {name: getattr(self, name) for name in names}

    async def _at_gate(self, place: str) -> None:
        if place == self.waits_in:
            self.waiting.set()
            await self.gate.wait()

    async def on_connect(self, session: Session) -> None:
        self.opened.append(session.id)
        await self._at_gate("on_connect")

    async def on_auth(self, auth: object, session: Session) -> bool:
        await self._at_gate("on_auth")
        return True

    async def on_data(self, stream: MessageStream, session: Session) -> None:
        await self._at_gate("on_data before reading")
        try:
            content = await stream.read()
        except BaseException as error:
            self.broken.append(error)
            raise
        await self._at_gate("on_data behind the end")
        self.stored.append(content)

    def on_close(self, session: Session) -> None:
        self.closed.append(session.id)

    def on_error(self, error: Exception, session: Session | None) -> None:
        self.errors.append(error)


# --- The phases


@dataclass(frozen=True)
class Phase:
    """How far a client goes before it goes away."""

    name: str
    reach: Callable[[Client], Awaitable[None]]  # from the hello on
    silence: str | None = "421 Timeout - closing connection"  # what one hears that says no more
    waits_in: str | None = None  # which handler is busy
    stored: bool = False  # the end of the message was there
    in_message: bool = False  # a handler reads
    in_transaction: bool = False

    def __str__(self) -> str:
        return self.name


def sends(octets: bytes, *codes: int) -> Callable[[Client], Awaitable[None]]:
    """Return what sends this and hears replies with these codes."""

    async def reach(client: Client) -> None:
        if octets:
            await client.send(octets)
        for code in codes:
            assert (await client.reply()).code == code

    return reach


def in_transaction(*parts: tuple[bytes, int]) -> Callable[[Client], Awaitable[None]]:
    """Return what begins a transaction and sends these parts, each with the code it is answered with (0: none)."""

    async def reach(client: Client) -> None:
        await client.envelope()
        for octets, code in parts:
            await sends(octets, *([code] if code else []))(client)

    return reach


async def _answers_half(client: Client) -> None:
    await sends(b"AUTH PLAIN\r\n", 334)(client)
    await client.send(b"AGFu")


DATA = (b"DATA\r\n", 354)
BUSY: dict[str, Any] = {"silence": None}
MESSAGE: dict[str, Any] = {"in_message": True, "in_transaction": True}
WHOLE: dict[str, Any] = {"stored": True, "silence": None, "waits_in": "on_data behind the end", "in_transaction": True}

PHASES = [
    Phase("hello", sends(b"")),
    Phase("within a command", sends(b"MAIL FROM:<a@exa")),
    Phase("between CR and LF", sends(b"NOOP\r")),
    Phase("after a command", sends(b"NOOP\r\n", 250)),
    Phase("in a transaction", in_transaction(), in_transaction=True),
    Phase("within DATA", in_transaction((b"DATA", 0)), in_transaction=True),
    Phase("challenge of AUTH", sends(b"AUTH PLAIN\r\n", 334)),
    Phase("second challenge of AUTH", sends(b"AUTH LOGIN " + b64("ann").encode() + b"\r\n", 334)),
    Phase("within an answer to AUTH", _answers_half),
    Phase("on_auth", sends(b"AUTH PLAIN " + b64("\0ann\0secret").encode() + b"\r\n"), **BUSY, waits_in="on_auth"),
    Phase("no data yet", in_transaction(DATA), **MESSAGE),
    Phase("within a line of data", in_transaction(DATA, (b"Subject: half\r\n\r\nhel", 0)), **MESSAGE),
    Phase("CRLF", in_transaction(DATA, (b"hello\r\n", 0)), **MESSAGE),
    Phase("CRLF .", in_transaction(DATA, (b"hello\r\n.", 0)), **MESSAGE),
    Phase("CRLF . CR", in_transaction(DATA, (b"hello\r\n.\r", 0)), **MESSAGE),
    Phase("much data", in_transaction(DATA, (b"hello\r\n" * 50_000, 0)), **MESSAGE),
    Phase("data that nobody reads yet", in_transaction(DATA, (b"hello\r\n", 0)), **BUSY, **MESSAGE,
          waits_in="on_data before reading"),
    Phase("after the data", in_transaction(DATA, (b"hello\r\n.\r\n", 0)), **WHOLE),
    Phase("within a chunk", in_transaction((b"BDAT 10 LAST\r\nhello", 0)), **MESSAGE),
    Phase("no octet of a chunk", in_transaction((b"BDAT 10 LAST\r\n", 0)), **MESSAGE),
    Phase("between chunks", in_transaction((b"BDAT 7\r\nhello\r\n", 250)), **MESSAGE),
    Phase("within a BDAT between chunks", in_transaction((b"BDAT 7\r\nhello\r\nBDAT 1", 250)), **MESSAGE),
    Phase("after the last chunk", in_transaction((b"BDAT 7 LAST\r\nhello\r\n", 0)), **WHOLE),
    Phase("after QUIT", sends(b"QUIT\r\n", 221), silence=""),
]  # fmt: skip


KINDS = ["plain", "starttls", "implicit", "lmtp", "lmtp+starttls"]


def options_of(kind: str) -> dict[str, Any]:
    more: dict[str, Any] = {} if kind in ("plain", "lmtp") else pem()
    return {"allow_insecure_auth": True, "secure": kind == "implicit", "lmtp": kind.startswith("lmtp"), **more}


async def at_hello(served: Served, kind: str) -> Client:
    """Return a client that has said hello, under TLS where the kind has it."""
    client = await served.connect(careless() if kind == "implicit" else None)
    assert (await client.reply()).code == 220
    verb = "LHLO" if kind.startswith("lmtp") else "EHLO"
    await client.ehlo(verb=verb)
    if kind.endswith("starttls"):
        await client.starttls(careless())
        await client.ehlo(verb=verb)
    return client


# --- The ways to go


def under(client: Client) -> socket.socket:
    """Return the client's socket, under whatever TLS there is; raises OSError where the server closed first."""
    sock = client.writer.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        raise OSError("it is closed")
    return socket.socket(fileno=os.dup(sock.fileno()))


async def resets(client: Client) -> None:
    with contextlib.suppress(OSError), under(client) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def half_closes(client: Client) -> None:
    with contextlib.suppress(OSError), under(client) as sock:
        sock.shutdown(socket.SHUT_WR)


async def says_goodbye(client: Client) -> None:
    """Close in good order: under TLS with a close_notify."""
    client.writer.close()


WAYS = [resets, half_closes, says_goodbye]


@asynccontextmanager
async def watched(handlers: Handlers, **options: Any) -> AsyncIterator[Served]:
    """Serve, and demand that in the end nothing is left and each connection was closed once."""
    async with nothing_left(), serving(**handlers.options(), **options) as served:
        yield served
        handlers.gate.set()
        await all_gone(served)
        for client in served.clients:
            await client.close()
    assert sorted(handlers.closed) == sorted(handlers.opened)
    assert len(set(handlers.closed)) == len(handlers.closed)


async def all_gone(served: Served) -> None:
    async with asyncio.timeout(TIMEOUT):
        while served.server._connections.all:
            await asyncio.sleep(0.005)
    assert served.server.connections == []


@pytest.mark.parametrize("phase", PHASES, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
@on_both_loops
async def test_a_client_that_goes(phase: Phase, way: Callable[[Client], Awaitable[None]], kind: str) -> None:
    handlers = Handlers(phase.waits_in)
    async with watched(handlers, **options_of(kind)) as served:
        client = await at_hello(served, kind)
        await phase.reach(client)
        if phase.waits_in:
            await asyncio.wait_for(handlers.waiting.wait(), TIMEOUT)
        elif phase.in_message:
            await handler_is_there(handlers, served)
        await way(client)
        if phase.waits_in:
            await asyncio.sleep(0.02)  # it is busy, and hears nothing of it
            handlers.gate.set()
        if way is half_closes and kind in ("plain", "lmtp"):
            # Half-closed it can still hear: nothing where it broke off, and the reply where it did not.
            heard = await client.rest()
            expected = b"250 " if phase.stored else b"235 " if phase.waits_in == "on_auth" else b""
            assert heard[:4] == expected
            assert heard.count(b"\r\n") == bool(expected)
        await all_gone(served)
    assert len(handlers.closed) == 1
    # A client that goes between the end of its message and the reply cannot know that it was taken, and sends it again;
    # to drop it would lose it where the reply was on its way. (RFC 1047 has the story.)
    assert handlers.stored == ([b"hello\r\n"] if phase.stored else [])
    assert len(handlers.broken) == phase.in_message
    assert all(isinstance(error, ConnectionError) for error in handlers.broken)
    if way is resets and phase.in_transaction:
        assert [type(error) for error in handlers.errors] in ([], [ConnectionLost])
    else:
        assert handlers.errors == []


async def handler_is_there(handlers: Handlers, served: Served) -> None:
    """Wait until what was sent has reached the server: then its task waits for more."""
    async with asyncio.timeout(TIMEOUT):
        while not all(connection.waiter for connection in served.server._connections.all):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", KINDS)
@on_both_loops
async def test_clients_that_fall_silent(kind: str) -> None:
    handlers = Handlers()
    async with watched(handlers, socket_timeout=SILENCE, **options_of(kind)) as served:
        silent = [phase for phase in PHASES if phase.silence is not None]

        async def one(phase: Phase) -> None:
            client = await at_hello(served, kind)
            await phase.reach(client)
            heard = (await client.rest()).decode()
            assert heard == (f"{phase.silence}\r\n" if phase.silence else ""), phase.name

        await asyncio.gather(*map(one, silent))
    assert handlers.stored == []
    assert len(handlers.broken) == sum(phase.in_message for phase in silent)
    assert all(isinstance(error, ConnectionError) for error in handlers.broken)
    assert handlers.errors == []


@pytest.mark.parametrize("kind", ["plain", "implicit"])
@on_both_loops
async def test_a_busy_handler_is_not_the_clients_silence(kind: str) -> None:
    handlers = Handlers("on_data behind the end")
    async with watched(handlers, socket_timeout=0.3, **options_of(kind)) as served:
        client = await at_hello(served, kind)
        await in_transaction(DATA, (b"hello\r\n.\r\n", 0))(client)
        await asyncio.wait_for(handlers.waiting.wait(), TIMEOUT)
        await asyncio.sleep(0.7)  # more than twice the timeout
        handlers.gate.set()
        assert await client.hear() == "250 OK: message queued"
        assert await client.say("QUIT") == "221 Bye"


# --- Before the greeting


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["plain", "implicit", "lmtp"])
@on_both_loops
async def test_a_client_that_does_not_wait_for_its_greeting(
    way: Callable[[Client], Awaitable[None]], kind: str
) -> None:
    handlers = Handlers("on_connect")
    async with watched(handlers, **options_of(kind)) as served:
        client = await served.connect(careless() if kind == "implicit" else None)
        await asyncio.wait_for(handlers.waiting.wait(), TIMEOUT)
        await way(client)
        await asyncio.sleep(0.02)
        handlers.gate.set()
        if way is half_closes and kind != "implicit":
            assert (await client.rest()).startswith(b"220 ")
        await all_gone(served)
    assert len(handlers.closed) == 1
    assert handlers.errors == []


# --- In the handshake


class Hello:
    """A TLS client whose octets the test sends itself."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = careless().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.octets = self.outgoing.read()


async def nothing(_: Client) -> None:
    """Send nothing of the handshake."""


async def half_a_hello(client: Client) -> None:
    octets = Hello().octets
    await client.send(octets[: len(octets) // 2])


async def a_hello(client: Client) -> None:
    """Send a ClientHello, and read what the server says first."""
    await client.send(Hello().octets)
    assert (await asyncio.wait_for(client.reader.readexactly(5), TIMEOUT))[0] == 22  # a handshake record


async def half_a_finish(client: Client) -> None:
    """Send a ClientHello and half of what ends the handshake."""
    hello = Hello()
    await client.send(hello.octets)
    while True:
        hello.incoming.write(await asyncio.wait_for(client.reader.read(65536), TIMEOUT))
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.tls.do_handshake()
            break
    octets = hello.outgoing.read()
    await client.send(octets[: len(octets) // 2])


STEPS = [nothing, half_a_hello, a_hello, half_a_finish]


async def before_handshake(served: Served, kind: str) -> Client:
    client = await served.connect()
    if kind == "starttls":
        assert (await client.reply()).code == 220
        await client.ehlo()
        assert await client.say("STARTTLS") == "220 Ready to start TLS"
    return client


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@on_both_loops
async def test_a_client_that_goes_in_the_handshake(
    step: Callable[[Client], Awaitable[None]], way: Callable[[Client], Awaitable[None]], kind: str
) -> None:
    handlers = Handlers()
    async with watched(handlers, **options_of(kind)) as served:
        client = await before_handshake(served, kind)
        await step(client)
        await way(client)
        await all_gone(served)
    assert len(handlers.closed) == (kind == "starttls")
    assert [type(error) for error in handlers.errors] == [HandshakeFailed]


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@on_both_loops
async def test_clients_that_fall_silent_in_the_handshake(kind: str) -> None:
    handlers = Handlers()
    async with watched(handlers, handshake_timeout=SILENCE, **options_of(kind)) as served:

        async def one(step: Callable[[Client], Awaitable[None]]) -> None:
            client = await before_handshake(served, kind)
            await step(client)
            with contextlib.suppress(ConnectionError):
                assert b"421" not in await client.rest()  # what is not under TLS yet cannot be said

        await asyncio.gather(*map(one, STEPS))
    assert [type(error) for error in handlers.errors] == [HandshakeFailed] * len(STEPS)


# --- In a PROXY header

V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
HEADERS = [b"", b"PROXY TCP4 192.0.2.7 198", b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r", V2[:9], V2, V2 + b"\xc0"]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("way", [*WAYS, None], ids=["resets", "half_closes", "says_goodbye", "is silent"])
@pytest.mark.parametrize("kind", ["plain", "implicit", "lmtp"])
@on_both_loops
async def test_a_client_that_goes_in_the_proxy_header(
    header: bytes, way: Callable[[Client], Awaitable[None]] | None, kind: str
) -> None:
    handlers = Handlers()
    async with watched(handlers, use_proxy=["127.0.0.1"], proxy_timeout=0.3, **options_of(kind)) as served:
        client = await served.connect()
        await client.send(header)
        if way is not None:
            await way(client)
        if way in (None, half_closes):
            assert await client.rest() == b"* BAD Invalid PROXY header\r\n"
        await all_gone(served)
    assert handlers.opened == []
    assert handlers.errors == []


# --- What is on the disk already


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("way", ["resets", "closes", "is silent"])
@pytest.mark.parametrize("command", [b"DATA", b"BDAT 999999 LAST"])
def test_no_file_is_left_of_a_client_that_vanished(start: Start, tmp_path: Path, way: str, command: bytes) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", "maildir:mail", "--set", f"socket_timeout={SILENCE}")
    tmp, new = tmp_path / "mail" / "tmp", tmp_path / "mail" / "new"
    with socket.create_connection(("127.0.0.1", program.port()), WAIT) as client:
        replies = client.makefile("rb")
        assert replies.readline().startswith(b"220 ")
        for line in (b"HELO client.example", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.com>"):
            client.sendall(line + b"\r\n")
            assert replies.readline().startswith(b"250 ")
        client.sendall(command + b"\r\n")
        assert command != b"DATA" or replies.readline().startswith(b"354 ")
        client.sendall((b"x" * 70 + b"\r\n") * 8_000)  # 576 kB: more than what waits in memory
        until(lambda: any(tmp.iterdir()))
        if way == "resets":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way == "is silent":
            assert replies.readline() == b"421 Timeout - closing connection\r\n"
        replies.close()
    until(lambda: not any(tmp.iterdir()))
    assert program.end() == 0
    assert list(new.iterdir()) == []
    assert list(tmp.iterdir()) == []
