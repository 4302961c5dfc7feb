"""A client without a network: octets go straight into a connection, and what the server says is kept.

One event loop serves all inputs of a run; nothing waits for the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import pipe
from application import Application
from pipe import Pipe
from plainwire import TLS, PlainWire

from pillarbox import Session, SMTPServer, TLSInfo
from pillarbox.net import bulk, wire
from pillarbox.net.connection import Connection
from pillarbox.net.endpoint import Endpoint
from pillarbox.net.listener import Listener
from pillarbox.smtp import authentication, body, conversation, delivery
from pillarbox.smtp import wire as smtp_wire
from pillarbox.smtp.conversation import Conversation
from pillarbox.smtp.sasl import cram_md5

# More turns of the event loop than one input can give work for.
TURNS = 100_000
_LOOP = asyncio.new_event_loop()


class _Stopped(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2026, 1, 1, tzinfo=tz)


# Nothing that the server says may depend on the time or on chance.
_NO_CHANCE = (
    patch.object(secrets, "randbits", lambda _: 4),
    patch.object(secrets, "token_urlsafe", lambda _: "server"),
    patch.object(delivery, "datetime", _Stopped),
    patch.object(cram_md5, "time", SimpleNamespace(time_ns=lambda: 0)),
)
for _patch in _NO_CHANCE:
    _patch.start()


def close() -> None:
    """Give back what all inputs share."""
    for each in _NO_CHANCE:
        each.stop()
    _LOOP.close()
    pipe.close()


@dataclass(frozen=True)
class Sizes:
    """How much the server holds; small ones are reached by the few octets of an input."""

    auth_line: int = smtp_wire.MAX_AUTH_LINE
    high_water: int = wire.HIGH_WATER
    unsent: int = wire.MAX_UNSENT
    bulk: int = bulk.BULK
    piece: int = body._PIECE

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        """Let the server have these sizes."""
        before = [(module, name, getattr(module, name)) for module, name, _ in _PLACES]
        for module, name, field_name in _PLACES:
            setattr(module, name, getattr(self, field_name))
        try:
            yield
        finally:
            for module, name, size in before:
                setattr(module, name, size)


# Where the sizes stand; that of the bulk buffer is the listener's.
_PLACES = (
    *((module, "MAX_AUTH_LINE", "auth_line") for module in (smtp_wire, wire, authentication, conversation)),
    (wire, "HIGH_WATER", "high_water"),
    (wire, "MAX_UNSENT", "unsent"),
    (body, "_PIECE", "piece"),
)
USUAL = Sizes()


@dataclass(frozen=True)
class Manner:
    """How a client talks.

    eager: it sends on without waiting until the server has nothing more to do. most: octets that the server reads at
    once. room: octets of replies that may wait; None: it reads always. until: after so many pieces the server shuts
    down or, where it ``resets``, the connection is lost.
    """

    eager: bool = False
    most: int = 1 << 18
    room: int | None = None
    until: int | None = None
    resets: bool = False


@dataclass
class Heard:
    """What came of one conversation."""

    said: bytes = b""
    messages: list[bytes] = field(default_factory=list)
    told: list[object] = field(default_factory=list)  # what the application was asked
    ended: bool = False  # by the server
    held: int = field(default=0, compare=False)  # the most octets that the connection held unread
    unread: int = field(default=0, compare=False)  # the most octets of replies that waited for the client


class FuzzedConnection(Connection):
    """A connection whose TLS handshakes are nothing but a word."""

    __slots__ = ()

    async def start_tls(self) -> TLSInfo:
        assert not self._buffer, "octets in front of the handshake"
        self.flush()
        return TLS


class Peer:
    """Talks to a server with these options and this application."""

    def __init__(self, application: Application, sizes: Sizes = USUAL, **options: Any) -> None:
        self.application = application
        self._sizes = sizes
        fixed: dict[str, Any] = {"name": "mx.test", "auth_optional": True, "disable_reverse_lookup": True}
        # A limit would end what has hardly begun, and nothing here waits for the clock.
        fixed |= dict.fromkeys(("max_errors", "max_junk_commands", "max_refused_recipients", "max_auth_failures"))
        fixed["auth_failure_delay"] = 0.0
        server = SMTPServer(fixed | options | application.handlers())
        self.options = server.options
        self._listener: Listener = _LOOP.run_until_complete(_listener(server))
        self._listener.bulk_buffer = _bulk_buffer(sizes.bulk)

    def say(self, flights: Sequence[Sequence[bytes]], manner: Manner = Manner()) -> Heard:
        """Say these flights, each in its pieces, and then nothing more; an exception in the server is raised.

        The next flight is sent when the server has nothing more to do.
        """
        return self._run(self._say(flights, manner))

    def say_plainly(self, flights: Sequence[bytes]) -> Heard:
        """Say these flights to the same conversation on a plain wire."""
        return self._run(self._say_plainly(flights))

    def _run(self, saying: Any) -> Heard:
        self.application.begin()
        with self._sizes.there():
            heard: Heard = _LOOP.run_until_complete(saying)
        application = self.application
        assert not application.errors, application.errors
        # The server answers its own failures with 421 and goes on: only its log tells of them.
        if application.log.internal is not None:
            raise AssertionError("an exception in the server") from application.log.internal
        heard.messages, heard.told = application.messages, application.told
        return heard

    async def _say(self, flights: Sequence[Sequence[bytes]], manner: Manner) -> Heard:
        failures: list[dict[str, Any]] = []
        _LOOP.set_exception_handler(lambda _, context: failures.append(context))
        talk = _Talk(self._listener, manner)
        for pieces in flights:
            await talk.send(pieces)
        heard = await talk.end()
        assert not failures, failures
        assert self.application.closed == talk.connected, "on_close belongs to on_connect"
        return heard

    async def _say_plainly(self, flights: Sequence[bytes]) -> Heard:
        options = self.options
        session = Session(
            remote_address="192.0.2.1", remote_port=4000, local_address="192.0.2.2", local_port=25, lmtp=options.lmtp
        )
        plain = PlainWire(flights)
        await Conversation(self._listener.service, session, plain).run()
        return Heard(plain.out, ended=not plain.client_left)


class _Talk:
    """One conversation under way."""

    def __init__(self, listener: Listener, manner: Manner) -> None:
        self._heard = Heard()
        self._manner = manner
        self._connection = FuzzedConnection(listener, _LOOP)
        self._pipe = Pipe(_LOOP, most=manner.most, room=manner.room)
        self._pipe.protocol = self._connection
        self._connection.connection_made(self._pipe)
        task = self._connection.task
        assert task is not None
        self._task = task
        self.connected = False
        self._sent = 0  # pieces

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Send one flight."""
        await self._settled()
        for piece in pieces:
            await self._perhaps_stop()
            if self._pipe.closed or self._task.done():
                return
            self._pipe.send(piece)
            await self._settled(turns=1 if self._manner.eager else TURNS)
        await self._settled()

    async def _perhaps_stop(self) -> None:
        """Let the server shut down, or the connection be lost, when it is time."""
        if self._sent == self._manner.until and not self._task.done():
            self.connected = True  # the greeting has been waited for
            if self._manner.resets:
                self._pipe.closed = True
                self._connection.connection_lost(ConnectionResetError("reset"))
            else:
                self._connection.shut_down()
            await self._settled()
        self._sent += 1

    async def _settled(self, turns: int = TURNS) -> None:
        """Return when the conversation waits for the client, or is over, or after so many turns of the event loop."""
        connection, pipe = self._connection, self._pipe
        unread, last = 0, None
        for _ in range(turns):
            await asyncio.sleep(0)
            self._measure()
            if self._task.done() or pipe.closed:
                return
            if connection.waiter is None or connection.waiter.done():
                continue
            if pipe.blocked:
                pipe.read()
            elif not pipe.incoming:
                assert not connection.out, "what it says does not leave"
                if pipe.reading:
                    return
                # Where a client sends much the others have a turn, and it is not read meanwhile.
                unread = unread + 1 if connection.waiter is last else 0
                last = connection.waiter
                assert unread < 3, "it waits for a client that it does not read"
        assert turns < TURNS, "it neither waits nor ends"

    def _measure(self) -> None:
        connection, heard = self._connection, self._heard
        heard.held = max(heard.held, len(connection._buffer) - connection._at)
        heard.unread = max(heard.unread, self._pipe.unread + len(connection.out))

    async def end(self) -> Heard:
        """Close the client's end, and then the connection."""
        await self._settled()
        connection, pipe = self._connection, self._pipe
        self._heard.ended = pipe.ended
        conversation = connection.conversation
        self.connected = self.connected or (conversation is not None and conversation.connected)
        if not pipe.closed:
            connection.eof_received()
            await self._settled()
            pipe.read()
            await self._settled()
        self._heard.said = b"".join(pipe.written)
        if not connection._gone:
            pipe.closed = True
            connection.connection_lost(None)
        await self._gone()
        return self._heard

    async def _gone(self) -> None:
        for _ in range(TURNS):
            if self._task.done():
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError("the conversation goes on without a client")
        if self._task.exception() is not None:
            raise AssertionError("the conversation failed") from self._task.exception()


@cache
def _bulk_buffer(size: int) -> memoryview:
    return memoryview(bytearray(size))


async def _listener(server: SMTPServer) -> Listener:
    return Endpoint(server._listener({})).listener


def cut(octets: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut octets at these places, in any order and maybe beyond the end; no piece is empty."""
    at = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[begin:end] for begin, end in pairwise(at)]


def numbers(octets: bytes) -> list[int]:
    """Return what each two octets mean."""
    return [int.from_bytes(octets[at : at + 2], "big") for at in range(0, len(octets), 2)]


def bytewise(octets: bytes) -> list[bytes]:
    """Return the octets one by one."""
    return [octets[at : at + 1] for at in range(len(octets))]
