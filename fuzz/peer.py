"""A client without a network: octets go straight into a connection, and what the server says is kept.

One event loop serves all inputs of a run; nothing waits for the clock.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from pillarbox import MessageStream, Options, Session, SMTPServer
from pillarbox.net.connection import Connection
from pillarbox.net.listener import Listener

# More turns of the event loop than one input can give work for.
TURNS = 100_000


# The kernel is asked what waits at a descriptor: at this one nothing ever does.
_SILENT = socket.socketpair()
_LOOP = asyncio.new_event_loop()


def close() -> None:
    """Give back what all inputs share."""
    _LOOP.close()
    for end in _SILENT:
        end.close()


class Pipe(asyncio.Transport):
    """What a connection writes to; it reads nothing by itself."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._protocol = protocol
        self.written: list[bytes] = []
        self.closed = False
        self.ended = False  # the server has said its last
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        facts = {"peername": ("192.0.2.1", 4000), "sockname": ("192.0.2.2", 25), "socket": _SILENT[0]}
        return facts.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written after it was closed"
        self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


class Heard:
    """What came of one conversation."""

    def __init__(self) -> None:
        self.said = b""
        self.messages: list[bytes] = []
        self.broken: list[int] = []  # octets of messages that ended in the middle
        self.errors: list[BaseException] = []
        self.ended = False
        self.held = 0  # the most that the connection held unread

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Heard):
            return NotImplemented
        return (self.said, self.messages, self.ended) == (other.said, other.messages, other.ended)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.said!r}, {self.messages!r}, {'ended' if self.ended else 'open'}>"


class Peer:
    """Talks to a server with these options."""

    def __init__(self, **options: Any) -> None:
        self._heard = Heard()
        fixed: dict[str, Any] = {"name": "mx.test", "auth_optional": True, "disable_reverse_lookup": True}
        server = SMTPServer(fixed | options, on_data=self._keep, on_error=self._note)
        self.options: Options = server.options
        self._listener: Listener = _LOOP.run_until_complete(_listener(server))

    async def _keep(self, stream: MessageStream, session: Session) -> None:
        blocks: list[bytes] = []
        try:
            async for block in stream:
                blocks.append(block)  # noqa: PERF401 - what came before a failure is counted
        except ConnectionError:
            self._heard.broken.append(sum(map(len, blocks)))
            raise
        self._heard.messages.append(b"".join(blocks))

    def _note(self, error: Exception, session: Session | None) -> None:
        self._heard.errors.append(error)

    def say(self, pieces: Iterable[bytes]) -> Heard:
        """Say these pieces, and then nothing more; return what came of it. An exception in the server is raised."""
        self._heard = heard = Heard()
        _LOOP.run_until_complete(self._say(pieces, heard))
        return heard

    async def _say(self, pieces: Iterable[bytes], heard: Heard) -> None:
        failures: list[dict[str, Any]] = []
        _LOOP.set_exception_handler(lambda _, context: failures.append(context))
        connection = Connection(self._listener, _LOOP)
        pipe = Pipe(connection)
        connection.connection_made(pipe)
        task = connection.task
        assert task is not None
        await _settled(connection)
        for piece in pieces:
            if pipe.closed or task.done():
                break
            _received(pipe, piece)
            await _settled(connection)
            assert pipe.reading or task.done(), "it waits for a client that it does not read"
            heard.held = max(heard.held, len(connection._buffer) - connection._at)
        heard.said, heard.ended = b"".join(pipe.written), pipe.ended
        connection.eof_received()
        await _settled(connection)
        connection.connection_lost(None)
        await _settled(connection)
        if not task.done():
            raise AssertionError("the conversation goes on without a client")
        if task.exception() is not None:
            raise AssertionError("the conversation failed") from task.exception()
        assert not failures, failures


def _received(pipe: Pipe, piece: bytes) -> None:
    protocol = pipe.get_protocol()
    if isinstance(protocol, asyncio.BufferedProtocol):
        while piece:
            room = memoryview(protocol.get_buffer(-1))
            part, piece = piece[: len(room)], piece[len(room) :]
            room[: len(part)] = part
            protocol.buffer_updated(len(part))
    else:
        assert isinstance(protocol, asyncio.Protocol)
        protocol.data_received(piece)


async def _listener(server: SMTPServer) -> Listener:
    return server._listener({})


async def _settled(connection: Connection) -> None:
    """Return when the conversation waits for the client, or is over."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
        waiter = connection.waiter
        if connection.task is None or connection.task.done() or (waiter is not None and not waiter.done()):
            return
    raise AssertionError("it neither waits nor ends")


def cut(octets: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut octets at these places, in any order and maybe beyond the end."""
    at = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[begin:end] for begin, end in pairwise(at)]
