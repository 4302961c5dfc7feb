"""A transport without a network: what the client sends waits here until the server reads, as in a kernel."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

# The kernel is asked what waits at a descriptor: at this one nothing ever does.
_SILENT = socket.socketpair()


def close() -> None:
    """Give back the descriptor that all pipes share."""
    for end in _SILENT:
        end.close()


class Pipe(asyncio.Transport):
    """One connection's transport.

    most: octets that one read takes. room: octets of replies that may wait for a client that does not read; None: it
    reads always.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int = 1 << 18, room: int | None = None) -> None:
        super().__init__()
        self._loop = loop
        self._most, self._room = most, room
        self.protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self.incoming = b""  # sent, and not read yet
        self.written: list[bytes] = []
        self.unread = 0  # octets that were written and that the client has not read
        self.blocked = False
        self.reading = True
        self.ended = False  # the server has said its last
        self.closed = False

    # --- The client

    def send(self, octets: bytes) -> None:
        """Send something to the server, which has it when it reads."""
        self.incoming += octets
        self._deliver()

    def read(self) -> None:
        """Read what the server has said."""
        self.unread, blocked, self.blocked = 0, self.blocked, False
        if blocked and not self.closed:
            self.protocol.resume_writing()

    def _deliver(self) -> None:
        while self.incoming and self.reading and not self.closed:
            protocol = self.protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                room = memoryview(protocol.get_buffer(-1))
                taken = self._take(min(self._most, len(room)))
                room[: len(taken)] = taken
                protocol.buffer_updated(len(taken))
            else:
                assert isinstance(protocol, asyncio.Protocol)
                protocol.data_received(self._take(self._most))

    def _take(self, most: int) -> bytes:
        taken, self.incoming = self.incoming[:most], self.incoming[most:]
        return taken

    # --- What the server calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        facts = {"peername": ("192.0.2.1", 4000), "sockname": ("192.0.2.2", 25), "socket": _SILENT[0]}
        return facts.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after its last word"
        self.written.append(bytes(data))
        self.unread += len(data)
        if self._room is not None and self.unread > self._room and not self.blocked:
            self.blocked = True
            self.protocol.pause_writing()

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
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed without a pause"
        self.reading = True
        self._loop.call_soon(self._deliver)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol
