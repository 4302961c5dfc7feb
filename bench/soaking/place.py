"""What server and clients have to agree on, and the one client that both the good and the hostile are made of."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from soaking.messages import MB

if TYPE_CHECKING:
    from pillarbox.keywords import OptionKeywords

USER, PASSWORD = "alice", "correct horse battery"
# Short, so that a run sees many clients time out.
LIMITS: OptionKeywords = {
    "size": 16 * MB,
    "socket_timeout": 10.0,
    "handshake_timeout": 5.0,
    "command_timeout": 8.0,
    "reply_timeout": 8.0,
    "close_timeout": 10.0,
}
_REPLY = re.compile(rb"([2-5]\d\d) ")


class Refused(Exception):
    """A reply that a good client does not expect; the text is the reply."""


@dataclass(frozen=True)
class Place:
    """Where the server is."""

    plain: int
    tls: int
    lmtp: str
    accounts: bool  # whether it knows USER


def careless() -> ssl.SSLContext:
    """Return a client's context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


CONTEXT = careless()


def _from_somewhere() -> tuple[str, int]:
    """Return one of a thousand addresses of this host, so that a table of addresses has something to hold."""
    return f"127.1.{random.randrange(4)}.{random.randrange(1, 251)}", 0


class Peer:
    """One connection: octets out, codes of replies in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def tcp(cls, port: int, *, tls: bool = False) -> Self:
        """Connect, and with ``tls`` do the handshake at once."""
        context = CONTEXT if tls else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=_from_somewhere()))

    @classmethod
    async def unix(cls, path: str) -> Self:
        """Connect to a Unix socket."""
        return cls(*await asyncio.open_unix_connection(path))

    async def send(self, octets: bytes) -> None:
        """Write, and wait while too much of it is not taken."""
        try:
            self.writer.write(octets)
        except RuntimeError as error:  # what uvloop raises once the connection is gone
            raise ConnectionResetError(str(error)) from error
        await self.writer.drain()

    async def reply(self) -> str:
        """Return the last line of the next reply. Raises EOFError where the server closed instead."""
        while True:
            line = await self.reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            if _REPLY.match(line):
                return line.decode("utf-8", "replace").rstrip()

    async def ask(self, octets: bytes, *expected: str) -> None:
        """Send, and read a reply for each expectation: how it begins. Raises Refused for another."""
        await self.send(octets)
        for begins in expected:
            if not (said := await self.reply()).startswith(begins):
                raise Refused(f"{octets[:40]!r}: {said}")

    async def start_tls(self) -> None:
        """Do the handshake on the open connection."""
        await self.writer.start_tls(CONTEXT)

    async def rest(self) -> bytes:
        """Return all that is still said, to the end of the connection."""
        return await self.reader.read()

    def stop_reading(self) -> None:
        """Leave in the kernel what is still said."""
        cast("asyncio.ReadTransport", self.writer.transport).pause_reading()

    def half_close(self) -> None:
        """Say that nothing more comes."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Drop the connection as a crash does: RST, and nothing in flight counts."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def drop(self) -> None:
        """Close without a word."""
        self.writer.transport.abort()
