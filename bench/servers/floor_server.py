"""The floor: a uvloop protocol class that answers canned replies and parses nothing but the end of data.

    python -m servers.floor_server PORT plain|auth|lmtp

No server in Python on this event loop can cost less; what ours costs above it is what SMTP costs.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

GREETING, OK, GO_AHEAD, BYE = b"220 floor ESMTP\r\n", b"250 OK\r\n", b"354 Go ahead\r\n", b"221 Bye\r\n"


class Floor(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport
    in_data = False
    tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        if self.in_data:
            if data.endswith(b"\r\n.\r\n") or (self.tail + data).endswith(b"\r\n.\r\n"):
                self.in_data = False
                self.transport.write(OK)
            self.tail = data[-4:]
        elif data.endswith(b"DATA\r\n"):
            self.in_data = True
            self.transport.write(OK * (data.count(b"\n") - 1) + GO_AHEAD)
        elif data.startswith(b"QUIT"):
            self.transport.write(BYE)
            self.transport.close()
        else:
            self.transport.write(OK * data.count(b"\n"))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
