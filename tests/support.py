"""What the socket tests share: a plain client, a server on a free port, certificates, and both event loops."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import socket
import ssl
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import trustme

from pillarbox import Envelope, MessageStream, Session, SMTPServer

TIMEOUT = 10.0  # how long anything may take that ends by itself; no test waits so long on purpose
PLAIN = b64encode(b"\0ann\0secret").decode()


def b64(text: str | bytes) -> str:
    """Encode as the mechanisms of AUTH do."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


# --- A client that knows nothing of SMTP but the form of a reply


@dataclass(frozen=True)
class Reply:
    """One reply: the code, and the text of each line behind it."""

    code: int
    lines: list[str]

    def __str__(self) -> str:
        return f"{self.code} " + "\n".join(self.lines)


class Client:
    """Octets out, replies in. Every wait fails after ``TIMEOUT``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls, address: tuple[str, int] | str, tls: ssl.SSLContext | None = None, server_hostname: str = "localhost"
    ) -> Client:
        """Connect to ``(host, port)`` or to the path of a Unix socket; with ``tls`` do the handshake at once."""
        name = server_hostname if tls is not None else None
        if isinstance(address, str):
            opening = asyncio.open_unix_connection(address, ssl=tls, server_hostname=name)
        else:
            opening = asyncio.open_connection(*address, ssl=tls, server_hostname=name)
        return cls(*await asyncio.wait_for(opening, TIMEOUT))

    async def send(self, octets: bytes) -> None:
        """Send in one piece, as far as the kernel takes it so."""
        self.writer.write(octets)
        await asyncio.wait_for(self.writer.drain(), TIMEOUT)

    async def line(self) -> bytes:
        """Return one line with its end; b"" where the server closed."""
        return await asyncio.wait_for(self.reader.readline(), TIMEOUT)

    async def reply(self) -> Reply:
        """Return the next reply, of however many lines; each must have the form of RFC 5321 4.2."""
        lines: list[str] = []
        while True:
            line = await self.line()
            assert line, f"closed where a reply was due, after {lines}"
            assert line.endswith(b"\r\n"), line
            assert len(line) <= 512, f"a reply line of {len(line)} octets"
            assert line[:3].isdigit(), line
            assert line[3:4] in (b" ", b"-"), line
            lines.append(line[4:-2].decode())
            if line[3:4] == b" ":
                return Reply(int(line[:3]), lines)

    async def command(self, text: str) -> Reply:
        """Send one command line and return its reply."""
        await self.send(text.encode() + b"\r\n")
        return await self.reply()

    async def say(self, text: str) -> str:
        """Send one command line and return its reply as text: ``250 Accepted``."""
        return str(await self.command(text))

    async def hear(self) -> str:
        """Return the next reply as text."""
        return str(await self.reply())

    async def ehlo(self, name: str = "client.example", verb: str = "EHLO") -> dict[str, str]:
        """Say EHLO (or LHLO) and return keyword → its parameters."""
        answer = await self.command(f"{verb} {name}")
        assert answer.code == 250, answer
        return keywords(answer)

    async def starttls(self, context: ssl.SSLContext, server_hostname: str | None = "localhost") -> None:
        """Ask for TLS and do the handshake."""
        assert await self.say("STARTTLS") == "220 Ready to start TLS"
        await self.handshake(context, server_hostname)

    async def handshake(self, context: ssl.SSLContext, server_hostname: str | None = "localhost") -> None:
        """Begin TLS on the open connection."""
        upgrade = self.writer.start_tls(context, server_hostname=server_hostname)
        await asyncio.wait_for(upgrade, TIMEOUT)

    async def envelope(self, sender: str = "from@example.com", *recipients: str) -> None:
        """Begin a transaction that is accepted."""
        assert (await self.command(f"MAIL FROM:<{sender}>")).code == 250
        for recipient in recipients or ("to@example.com",):
            assert (await self.command(f"RCPT TO:<{recipient}>")).code == 250

    async def data(self, body: bytes) -> Reply:
        """Send a message that is dot-stuffed already, and return the (first) reply."""
        assert await self.say("DATA") == "354 End data with <CR><LF>.<CR><LF>"
        await self.send(body + b".\r\n")
        return await self.reply()

    async def deliver(self, body: bytes = b"Subject: test\r\n\r\nHello\r\n", *recipients: str) -> str:
        """Send one message and return the reply to its data."""
        await self.envelope("from@example.com", *recipients)
        return str(await self.data(body))

    async def said_until_closed(self, text: str, most: int = 400) -> list[str]:
        """Say one command again and again, and return its replies, up to the 421 that ends it."""
        replies: list[str] = []
        while not (replies and replies[-1].startswith("421")):
            assert len(replies) < most, "it never ends"
            replies.append(await self.say(text))
        await self.eof()
        return replies

    async def eof(self) -> None:
        """The server has closed the connection and said nothing more."""
        try:
            rest = await asyncio.wait_for(self.reader.read(), TIMEOUT)
        except ConnectionError:
            return
        assert rest == b""

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(), TIMEOUT)

    async def close(self) -> None:
        """Close our side."""
        self.writer.close()
        try:
            await asyncio.wait_for(self.writer.wait_closed(), TIMEOUT)
        except (OSError, TimeoutError):  # the server was first, or did not want TLS's goodbye
            self.writer.transport.abort()


def keywords(answer: Reply) -> dict[str, str]:
    """Return the EHLO keywords of a reply: name in upper case → its parameters, "" where it has none."""
    found = {}
    for line in answer.lines[1:]:
        keyword, _, parameters = line.partition(" ")
        assert keyword not in found, f"{keyword} stands there twice"
        found[keyword.upper()] = parameters
    return found


# --- A server


@dataclass
class Served:
    """A server that runs, and the clients that a test opened to it."""

    server: SMTPServer
    clients: list[Client] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Where its first listener is."""
        address = self.server.addresses[0]
        assert isinstance(address, tuple)
        return address

    async def connect(
        self,
        tls: ssl.SSLContext | None = None,
        server_hostname: str = "localhost",
        address: tuple[str, int] | str | None = None,
    ) -> Client:
        """Return a connected client that has read nothing yet."""
        client = await Client.open(address or self.address, tls, server_hostname)
        self.clients.append(client)
        return client

    async def narrow(self) -> Client:
        """Return a connected client on a listener of its own, where the kernel holds little of what nobody reads."""
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # what it accepts inherits that
        address = await self.server.listen(sock=listening)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        sock.connect(address)
        client = Client(*await asyncio.open_connection(sock=sock))
        self.clients.append(client)
        return client

    async def client(self, tls: ssl.SSLContext | None = None, server_hostname: str = "localhost") -> Client:
        """Return a client that was greeted."""
        client = await self.connect(tls, server_hostname)
        assert (await client.reply()).code == 220
        return client

    async def hello(self, tls: ssl.SSLContext | None = None, server_hostname: str = "localhost") -> Client:
        """Return a client that was greeted and has said EHLO, or LHLO to an LMTP server."""
        client = await self.client(tls, server_hostname)
        await client.ehlo(verb="LHLO" if self.server.options.lmtp else "EHLO")
        return client


@asynccontextmanager
async def serving(
    server_class: type[SMTPServer] = SMTPServer, /, *, server: Any = None, **options: Any
) -> AsyncIterator[Served]:
    """Run a server on a free port of 127.0.0.1, without DNS and where not said otherwise without AUTH."""
    if server is None:
        server = server_class(
            **{"disable_reverse_lookup": True, "auth_optional": True, "auth_failure_delay": 0.0, **options}
        )
    await server.listen(0, "127.0.0.1")
    served = Served(server)
    with internal_errors() as found:
        try:
            yield served
        finally:
            for client in served.clients:
                await client.close()
            await asyncio.wait_for(server.close(), TIMEOUT)
    assert not found, "\n".join(found)
    left = [connection.task for connection in server._connections.all]
    assert not left, f"the server forgot to end {left}"


@contextmanager
def internal_errors() -> Iterator[list[str]]:
    """Note what the server itself, not a handler, did wrong."""
    found: list[str] = []
    with recorded(logging.ERROR) as records:
        yield found
    found += [
        logging.Formatter().format(record)
        for record in records
        if "internal error" in record.getMessage() or record.name == "asyncio"
    ]


@contextmanager
def recorded(level: int = logging.DEBUG) -> Iterator[list[logging.LogRecord]]:
    """Collect what the server (and asyncio, from ERROR up) logs."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    collector, errors = Collector(level), Collector(logging.ERROR)
    ours, theirs = logging.getLogger("pillarbox"), logging.getLogger("asyncio")
    before = ours.level
    ours.addHandler(collector)
    theirs.addHandler(errors)
    ours.setLevel(min(level, before) if before else level)
    try:
        yield records
    finally:
        ours.setLevel(before)
        ours.removeHandler(collector)
        theirs.removeHandler(errors)


# --- Handlers that remember


@dataclass
class Message:
    """What reached ``on_data``."""

    content: bytes
    envelope: Envelope

    @property
    def recipients(self) -> list[str]:
        """The addresses it is for."""
        return [recipient.address for recipient in self.envelope.rcpt_to]


class Inbox(list[Message]):
    """An ``on_data`` that keeps every message."""

    async def __call__(self, stream: MessageStream, session: Session) -> None:
        """Take one message."""
        self.append(Message(await stream.read(), session.envelope))


class Sessions(list[Session]):
    """An ``on_connect`` that keeps the sessions."""

    def __call__(self, session: Session) -> None:
        """Take one session."""
        self.append(session)


# --- Certificates


@lru_cache
def ca(name: str) -> trustme.CA:
    """Return a certificate authority; the same one for each name."""
    return trustme.CA(organization_name=name)


@lru_cache
def issued(*names: str, by: str = "server") -> trustme.LeafCert:
    """Return a certificate for these names."""
    return ca(by).issue_cert(*names)


def pem(*names: str, by: str = "server") -> dict[str, Any]:
    """Return ``key`` and ``cert`` as options take them, for these names (``localhost`` where there are none)."""
    leaf = issued(*(names or ("localhost",)), by=by)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return {"key": leaf.private_key_pem.bytes().decode(), "cert": chain.decode()}


def ca_pem(name: str = "server") -> str:
    """Return an authority as the option ``ca`` takes it."""
    return ca(name).cert_pem.bytes().decode()


def trusting(*authorities: str) -> ssl.SSLContext:
    """Return a client's context that checks the server's certificate and name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities or ("server",):
        ca(authority).configure_trust(context)
    return context


def careless() -> ssl.SSLContext:
    """Return a client's context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def offering(folder: Path, name: str, entry_points: str) -> None:
    """Install a distribution as pip leaves it: beside its modules a folder that says what it offers."""
    info = folder / f"pillarbox_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pillarbox-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def names_in(client: Client) -> set[str]:
    """Return the host names in the certificate that the client was shown."""
    from cryptography import x509

    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    extension = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


# --- Event loops


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        module = pytest.importorskip("uvloop", reason="uvloop is not installed here")
        return module.new_event_loop  # type: ignore[no-any-return]
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop
    return asyncio.SelectorEventLoop


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an ``async def`` test once on asyncio's loop and once on uvloop's (skipped where that is missing)."""

    @functools.wraps(test)
    def run(*, loop_name: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=_factory(loop_name)) as runner:
            runner.run(test(**arguments))

    del run.__wrapped__  # else it would pass for the coroutine function
    given = inspect.signature(test)
    loop_name = inspect.Parameter("loop_name", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = given.replace(parameters=[*given.parameters.values(), loop_name])  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])(run)
    return marked
