"""pillarbox as it is measured: default options, a handler that reads and drops, no authentication, no reverse lookup.

    python -m servers.pillarbox_server PORT plain|tls|auth|lmtp|slow|info [--loop asyncio|uvloop] [--options JSON]

slow: a handler that takes 5 ms for each block; info: ``logger=True``, which writes a line for each message on standard
error (the runner drops it). In the other modes logging is as nobody configured it: nothing below WARNING.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from servers.setting import CERTIFICATE, KEY, LOOPS

from pillarbox import AuthRequest, MessageStream, Session, SMTPServer

if TYPE_CHECKING:
    from pillarbox.keywords import OptionKeywords


async def drop(stream: MessageStream, session: Session) -> None:
    async for _ in stream:
        pass


async def drop_slowly(stream: MessageStream, session: Session) -> None:
    async for _ in stream:
        await asyncio.sleep(0.005)


def anybody(auth: AuthRequest, session: Session) -> Any:
    return True


def options(mode: str) -> OptionKeywords:
    chosen: OptionKeywords = {"disable_reverse_lookup": True, "auth_optional": mode != "auth"}
    chosen["on_data"] = drop_slowly if mode == "slow" else drop
    if mode == "info":
        chosen["logger"] = True
    elif mode == "tls":
        chosen |= {"key": KEY, "cert": CERTIFICATE}
    elif mode == "auth":
        chosen |= {"allow_insecure_auth": True, "on_auth": anybody}
    elif mode == "lmtp":
        chosen["lmtp"] = True
    return chosen


async def serve(port: int, mode: str, more: dict[str, Any]) -> None:
    server = SMTPServer({**options(mode), **more})
    await server.listen(port, "127.0.0.1")
    await server.serve_forever()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port", type=int)
    arguments.add_argument("mode", choices=["plain", "tls", "auth", "lmtp", "slow", "info"])
    arguments.add_argument("--loop", choices=LOOPS, default="uvloop")
    arguments.add_argument("--options", type=json.loads, default={}, help="more options")
    given = arguments.parse_args()
    with asyncio.Runner(loop_factory=LOOPS[given.loop]()) as runner:
        runner.run(serve(given.port, given.mode, given.options))


if __name__ == "__main__":
    main()
