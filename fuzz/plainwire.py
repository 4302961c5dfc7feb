"""The wire as ``smtp.wire`` describes it, written down plainly: what the fast one on a transport must agree with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from pillarbox import TLSInfo
from pillarbox.net.apart import Apart
from pillarbox.smtp import reply
from pillarbox.smtp import wire as smtp_wire
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.wire import Arriving, ConnectionEnded

TLS = TLSInfo(
    "TLSv1.3",
    "TLS_AES_256_GCM_SHA384",
    peer_certificate=b"",
    authorized=True,
    channel_bindings={"tls-server-end-point": b"hash"},
)


class PlainWire:
    """A client that sends its flights one by one, each in one piece, when the server has nothing more to do."""

    def __init__(self, flights: Sequence[bytes]) -> None:
        self._flights = list(flights)
        self._buffer = b""
        self.out = b""
        self.measured: Arriving | None = None
        self.client_left = False  # the server had to be told that nothing more comes

    def flush(self) -> None:
        return

    def line(self, limit: int) -> bytes | None:
        longest = max(limit, smtp_wire.MAX_AUTH_LINE)
        line, newline, rest = self._buffer.partition(b"\n")
        line += newline
        if len(line) > longest or (not newline and len(line) == longest):
            raise ConnectionEnded("a line without an end", reply.LINE_NEVER_ENDS)
        if not newline:
            return None
        self._buffer = rest
        return line[:-2] if line.endswith(b"\r\n") and len(line) <= limit else line

    def block(self, most: int | None = None) -> bytes:
        end = len(self._buffer) if most is None else most
        block, self._buffer = self._buffer[:end], self._buffer[end:]
        return block

    async def more(self) -> None:
        if not self._flights:
            self.client_left = True
            raise ConnectionEnded("the client closed the connection")
        self._buffer += self._flights.pop(0)

    def unread(self, octets: bytes) -> None:
        self._buffer = octets + self._buffer

    def pending(self) -> bool:
        return bool(self._buffer)

    buffered = pending

    async def delay(self, seconds: float) -> None:
        return

    async def admit(self) -> Reply | None:
        return None

    async def wait_input(self, seconds: float) -> None:
        return

    async def start_tls(self) -> TLSInfo:
        assert not self._buffer, "octets in front of the handshake"
        return TLS

    def stop(self, reply: Reply) -> None:
        raise AssertionError("nobody closes this server")

    def ends_with(self, error: BaseException) -> bool:
        return not isinstance(error, Exception)

    def apart(self, coroutine: Coroutine[Any, Any, None]) -> Apart:
        return Apart(coroutine)

    @contextlib.asynccontextmanager
    async def time_limit(self, seconds: float) -> AsyncIterator[None]:
        yield
