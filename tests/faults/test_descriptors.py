"""More connections than descriptors: 421 and one line of the log, and nobody is dropped without a word."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pillarbox.net.descriptors import raise_limit
from support import TIMEOUT, Client, careless

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
both_loops = pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])

# A server in a process of its own, whose limit is its own. argv: the loop, soft and hard limit, when its handlers open
# how many files, a listener's options. It writes its port and its new limit, and its log to standard error.
PROGRAM = """
import asyncio, logging, resource, sys
loop_name, soft, hard, when, files, options = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
import pillarbox.net.refusals
from pillarbox import SMTPServer

logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
pillarbox.net.refusals.QUIET = 0.2
held = {}

def hold(session):
    held[session.id] = [open("/dev/null") for _ in range(int(files))]

def let_go(session):
    for file in held.pop(session.id, []):
        file.close()

class Server(SMTPServer):
    def on_connect(self, session):
        if when == "on_connect":
            hold(session)

    async def on_data(self, stream, session):
        if when == "on_data":
            hold(session)
        await stream.read()

    def on_close(self, session):
        let_go(session)

async def main():
    server = Server(auth_optional=True, disable_reverse_lookup=True, socket_timeout=None)
    async with server:
        host, port = await server.listen(0, "127.0.0.1", **eval(options))
        print(port, resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

if loop_name == "uvloop":
    import uvloop
with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop_name == "uvloop" else None) as runner:
    runner.run(main())
"""


class Process:
    """The server's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        port, soft = map(int, process.stdout.readline().split())
        self.address, self.limit = ("127.0.0.1", port), soft
        self.clients: list[Client] = []

    async def open(self, count: int) -> list[Client]:
        """Open connections, all at once."""
        clients = await asyncio.gather(*(Client.open(self.address) for _ in range(count)))
        self.clients += clients
        return clients

    async def flood(self, count: int) -> tuple[list[Client], int]:
        """Open connections; return those that were greeted, and how many were refused. There is nothing else."""
        clients = await self.open(count)
        replies = await asyncio.gather(*(client.reply() for client in clients))
        assert {reply.code for reply in replies} <= {220, 421}
        served = [client for client, reply in zip(clients, replies, strict=True) if reply.code == 220]
        for client, reply in zip(clients, replies, strict=True):
            if reply.code == 421:
                assert reply.lines[0].endswith(" Too many connected clients, try again in a moment")
                await client.eof()
        return served, count - len(served)

    async def close(self, clients: list[Client]) -> None:
        await asyncio.gather(*(client.close() for client in clients))

    async def log(self) -> list[str]:
        """End the server and return what it has logged of refusals and failures."""
        await self.close(self.clients)
        _, text = await asyncio.to_thread(self._process.communicate, timeout=4 * TIMEOUT)
        assert self._process.returncode == 0
        return [line for line in text.splitlines() if not re.match("INFO (listening|closed|message)", line)]


@asynccontextmanager
async def running(
    loop_name: str, soft: int = 256, hard: int = 256, when: str = "never", files: int = 0, **options: Any
) -> AsyncIterator[Process]:
    if loop_name == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed here")
    raise_limit()  # of the clients' process: this one
    arguments = [loop_name, str(soft), str(hard), when, str(files), repr(options)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        running = Process(process)
        try:
            yield running
        finally:
            process.kill()
            await running.close(running.clients)


async def hello(clients: list[Client]) -> None:
    await asyncio.gather(*(client.ehlo() for client in clients))


@pytest.mark.promises(
    "Limits", "The process never runs out of descriptors: connections too many get 421, and one line in the log."
)
@both_loops
async def test_each_is_served_or_hears_421_and_the_log_has_one_line(loop_name: str) -> None:
    async with running(loop_name) as process:
        (early,) = await process.open(1)
        assert (await early.reply()).code == 220
        await early.ehlo()
        await early.envelope()
        served, refused = await process.flood(600)
        assert len(served) > 50
        assert refused > 300
        await hello(served)
        assert str(await early.data(b"hello\r\n")) == "250 OK: message queued"
        assert await served[0].deliver() == "250 OK: message queued"
        await process.close(served)
        for _ in range(100):  # until the server has seen that they are gone
            again, more = await process.flood(10)
            refused += more
            if not more:
                break
        assert len(again) == 10
        await hello(again)
        await asyncio.sleep(0.5)  # twice what the server takes for the end of it
        log = await process.log()
    began, over = log
    assert began.startswith("WARNING new connections are refused: the limit is 256 descriptors, raise it by ulimit -n")
    assert over == f"INFO connections are accepted again; refused for want of descriptors: {refused}"


@pytest.mark.promises(
    "Limits", "The process never runs out of descriptors: connections too many get 421, and one line in the log."
)
@both_loops
@pytest.mark.parametrize(("when", "files"), [("on_connect", 1), ("on_connect", 3), ("on_data", 1)])
async def test_what_handlers_hold_counts(loop_name: str, when: str, files: int) -> None:
    """Also where they open it when all the connections are there."""
    async with running(loop_name, when=when, files=files) as process:
        served, _ = await process.flood(400)
        assert len(served) > 20
        await hello(served)
        messages = asyncio.gather(*(client.deliver() for client in served))
        _, refused = await process.flood(200)
        assert refused > 100
        assert set(await messages) == {"250 OK: message queued"}
        log = await process.log()
    assert log
    assert not [line for line in log if not re.match("(WARNING new connections|INFO connections are) ", line)]


@pytest.mark.promises(
    "Limits", "The process never runs out of descriptors: connections too many get 421, and one line in the log."
)
@both_loops
async def test_the_soft_limit_is_raised(loop_name: str) -> None:
    async with running(loop_name, soft=256, hard=2048) as process:
        assert process.limit == 2048
        served, refused = await process.flood(600)
        assert (len(served), refused) == (600, 0)
        assert await process.log() == []


@pytest.mark.promises(
    "Limits", "The process never runs out of descriptors: connections too many get 421, and one line in the log."
)
@both_loops
async def test_on_implicit_tls_nothing_is_said_to_who_is_refused(loop_name: str) -> None:
    async with running(loop_name, secure=True) as process:
        clients = await process.open(400)
        await asyncio.sleep(0.2)
        ended = [client for client in clients if client.reader.at_eof()]
        assert len(ended) > 100
        for client in ended:
            await client.eof()
        await process.close([client for client in clients if client not in ended])
        for _ in range(100):
            try:
                late = await Client.open(process.address, careless())
                break
            except OSError:  # the server has yet to see that they are gone
                await asyncio.sleep(0.02)
        process.clients.append(late)
        assert (await late.reply()).code == 220


@both_loops
async def test_what_was_sent_before_the_greeting_makes_no_reset(loop_name: str) -> None:
    async with running(loop_name, use_proxy=True) as process:
        clients = await process.open(400)

        async def reply(client: Client) -> int:
            await client.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n")
            return (await client.reply()).code

        answers = await asyncio.gather(*map(reply, clients))
        assert set(answers) == {220, 421}
