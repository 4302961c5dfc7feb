"""aiosmtpd as it is measured: its own defaults, a handler that drops the message, on either event loop.

python -m servers.aiosmtpd_server PORT plain|tls|auth|lmtp [--loop asyncio|uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from typing import Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from servers.setting import CERTIFICATE, KEY, LOOPS


class Drop:
    """It hands over the whole message at once; there is nothing left to read."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        return "250 OK"


def anybody(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=True)


def options(mode: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"hostname": "bench.example"}
    if mode == "tls":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE, KEY)
        chosen["tls_context"] = context
    elif mode == "auth":
        chosen |= {"auth_required": True, "auth_require_tls": False, "authenticator": anybody}
    return chosen


async def serve(port: int, mode: str) -> None:
    kind = LMTP if mode == "lmtp" else SMTP
    chosen = options(mode)
    server = await asyncio.get_running_loop().create_server(
        lambda: kind(Drop(), **chosen), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port", type=int)
    arguments.add_argument("mode", choices=["plain", "tls", "auth", "lmtp"])
    arguments.add_argument("--loop", choices=LOOPS, default="asyncio")
    given = arguments.parse_args()
    with asyncio.Runner(loop_factory=LOOPS[given.loop]()) as runner:
        runner.run(serve(given.port, given.mode))


if __name__ == "__main__":
    main()
