"""The server of ``--target library``: ``SMTPServer`` with a handler that notes each message durably.

    python -m soaking.library FOLDER asyncio|uvloop

It listens on 127.0.0.1 in plaintext and with implicit TLS, and with LMTP on FOLDER/lmtp.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from servers.setting import LOOPS
from soaking import probe
from soaking.messages import Judge, Stored
from soaking.place import LIMITS, PASSWORD, USER
from soaking.probe import Watched

from pillarbox import AuthRequest, MessageStream, Session

# Nobody meets them; but each address and each event has its place in a table, which is not to grow.
GENEROUS = dict.fromkeys(("connections", "messages", "recipients", "auth_failures", "errors"), "1000000/second")


class Notes:
    """A line for each message: its id, and whether it is whole; on the disk before it is acknowledged."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def on_data(self, stream: MessageStream, session: Session) -> None:
        """Look at a message as it arrives."""
        judge = Judge()
        async for block in stream:
            judge.feed(block)
        await asyncio.to_thread(self._note, judge.verdict())

    def _note(self, stored: Stored) -> None:
        os.write(self._descriptor, f"{stored.id or 'nobody'} {'whole' if stored.whole else 'torn'}\n".encode())
        os.fdatasync(self._descriptor)


class LocalNames:
    """A resolver that asks nobody: clients come from many addresses of this host, and each has a name."""

    async def reverse(self, ip: str) -> list[str]:
        """Answer after a turn of the loop, as one that asks would."""
        await asyncio.sleep(0)
        return [f"host-{ip.replace('.', '-')}.example"]


def on_auth(auth: AuthRequest, session: Session) -> str | None:
    return USER if auth.username == USER and auth.validate_password(PASSWORD) else None


async def serve(folder: Path) -> None:
    server = Watched(
        LIMITS,
        name="soak.example",
        auth_optional=True,
        on_auth=on_auth,
        on_data=Notes(folder / "stored").on_data,
        resolver=LocalNames(),
        rates_per_address=GENEROUS,
        rates_over_all=GENEROUS,
        max_clients_per_address=1_000,
    )
    await server.listen(0, "127.0.0.1")
    await server.listen(0, "127.0.0.1", secure=True)
    await server.listen(path=folder / "lmtp", lmtp=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: closing.append(_closing(server)))
    closing: list[asyncio.Task[None]] = []
    await server.serve_forever()


def _closing(server: Watched) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(server.close())


def main() -> None:
    folder, loop = Path(sys.argv[1]), sys.argv[2]
    logging.basicConfig(level=logging.WARNING)
    probe.watch()
    with asyncio.Runner(loop_factory=LOOPS[loop]()) as runner:
        runner.run(serve(folder))


if __name__ == "__main__":
    main()
