"""What a message costs, in calls and octets: both are the same on every machine, so they may fail a build.

A call is one of Python or C made by the package's own code, or a resumed coroutine of it. The bounds stand in one
table. After a change for the better lower them: ``python tests/test_cost.py`` prints what they are now.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pillarbox
from garbage import no_garbage
from pillarbox import MessageStream, Session, SMTPServer

PACKAGE = str(Path(pillarbox.__file__).parent)

# The most that each may cost: what was measured, the same on Python 3.11 to 3.13, and about 3 %.
BOUNDS: dict[str, float] = {
    "message": 93,  # 91 calls, of which 2 ask for the time: how long a message takes is counted
    "pipelined_message": 91,  # 89, of which 2 see to it that a flight of thousands is not copied for each line
    "recipient": 29,  # 28.1: how much of a flight is left is looked at, or its rest would be copied for each line
    "connection": 112,  # 110.8, of which 3 ask how full the process's table of descriptors is, 1 gives back its place,
    # and 5 count the session, by its TLS and how long it took
    "idle_session": 2_270,  # 2,213 octets, of which 48 say since when it is there
}

MAIL, RCPT, DATA = b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n"
BODY = b"Subject: x\r\n\r\nHello\r\n.\r\n"
LINES = 14_000  # 1 MB
DOT_LINES = b"Subject: x\r\n\r\n" + (b".." + b"x" * 70 + b"\r\n") * LINES + b".\r\n"
TIMES = 20


class Calls:
    """Counts calls while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event in {"call", "c_call"} and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *problem: object) -> None:
        sys.setprofile(None)


class Client:
    """Speaks to the server in the same loop, one flight at a time."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)

    async def connect(self, address: tuple[str, int]) -> None:
        await asyncio.get_running_loop().sock_connect(self.socket, address)
        await self.replies(1)
        await self.say(b"EHLO client.example\r\n")

    async def say(self, octets: bytes, replies: int = 1) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, octets)
        await self.replies(replies)

    async def replies(self, wanted: int) -> None:
        octets = b""
        while sum(line[3:4] == b" " for line in octets.splitlines()) < wanted or not octets.endswith(b"\n"):
            octets += await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            assert octets[:1] in b"23", octets

    async def message(self, recipients: int = 1, body: bytes = BODY) -> None:
        for octets in (MAIL, *[b"RCPT TO:<%d@example.com>\r\n" % n for n in range(recipients)], DATA, body):
            await self.say(octets)


async def drop(stream: MessageStream, session: Session) -> None:
    async for _ in stream:
        pass


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    async with SMTPServer(on_data=drop, auth_optional=True, disable_reverse_lookup=True) as server:
        address = await server.listen(0, "127.0.0.1")
        assert isinstance(address, tuple)
        yield address


# --- What is measured


async def message() -> float:
    """One to one recipient, command by command."""
    return await _messages(1)


async def recipient() -> float:
    """One more recipient."""
    return (await _messages(51) - await _messages(1)) / 50


async def _messages(recipients: int) -> float:
    async with serving() as address:
        client = Client()
        await client.connect(address)
        await client.message(recipients)
        with Calls() as calls:
            for _ in range(TIMES):
                await client.message(recipients)
        client.socket.close()
    return calls.count / TIMES


async def pipelined_message() -> float:
    """The same in two flights."""
    async with serving() as address:
        client = Client()
        await client.connect(address)
        await client.message()
        with Calls() as calls:
            for _ in range(TIMES):
                await client.say(MAIL + RCPT + DATA, 3)
                await client.say(BODY)
        client.socket.close()
    return calls.count / TIMES


async def connection() -> float:
    """From the accepted socket to its end, with EHLO and QUIT."""
    async with serving() as address:
        with Calls() as calls:
            for _ in range(TIMES):
                client = Client()
                await client.connect(address)
                await client.say(b"QUIT\r\n")
                client.socket.close()
                await asyncio.sleep(0.01)  # its end
    return calls.count / TIMES


async def idle_session() -> float:
    """Octets that the package's own code has allocated for a session after EHLO and MAIL."""
    async with serving() as address:
        clients = [Client() for _ in range(100)]
        await _opened(clients[:10], address)
        tracemalloc.start()
        try:
            await _opened(clients[10:], address)
            gc.collect()
            ours = [tracemalloc.Filter(inclusive=True, filename_pattern=f"{PACKAGE}/*")]
            mine = tracemalloc.take_snapshot().filter_traces(ours)
            octets = sum(statistic.size for statistic in mine.statistics("filename"))
        finally:
            tracemalloc.stop()
            for client in clients:
                client.socket.close()
    return octets / 90


async def _opened(clients: list[Client], address: tuple[str, int]) -> None:
    for client in clients:
        await client.connect(address)
        await client.say(MAIL)


MEASURES = (message, pipelined_message, recipient, connection, idle_session)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
async def test_it_costs_no_more(measure: Any) -> None:
    if measure is idle_session and sys.gettrace() is not None:
        pytest.skip("coverage allocates in our lines; where it does not run, this does")
    cost = await measure()
    assert cost <= BOUNDS[measure.__name__], "lower what it costs, or say in the bound's line why it is worth it"


async def test_a_body_is_never_read_line_by_line() -> None:
    async with serving() as address:
        client = Client()
        await client.connect(address)
        with Calls() as calls:
            await client.message(body=DOT_LINES)
        client.socket.close()
    assert calls.count < LINES / 4


async def test_a_connection_that_is_over_leaves_nothing_for_the_garbage_collector() -> None:
    async with serving() as address:
        for _ in range(2):
            async with no_garbage("Connection"):
                client = Client()
                await client.connect(address)
                await client.message()
                await client.say(b"QUIT\r\n")
                client.socket.close()


if __name__ == "__main__":
    for each in MEASURES:
        print(f'    "{each.__name__}": {asyncio.run(each()):.1f},')  # noqa: T201
