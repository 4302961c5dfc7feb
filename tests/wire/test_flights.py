"""Clients that send thousands of commands in one flight: the others are served in between."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from support import TIMEOUT, careless, on_both_loops, serving

# MAIL and RSET are answered without a wait, and are no mischief but by their number.
UNLIMITED: dict[str, Any] = {"max_junk_commands": None, "max_errors": None}
COUNT = 20_000
FLIGHT = b"MAIL FROM:<a@example.com>\r\nRSET\r\n" * COUNT
ANSWERS = b"250 Accepted\r\n250 Flushed\r\n" * COUNT


@pytest.mark.promises("Limits", "Thousands of slow clients do not keep honest ones from being served.")
@pytest.mark.parametrize("tls", [False, True])
@on_both_loops
async def test_others_are_served_in_between(tls: bool) -> None:
    async with serving(**UNLIMITED) as served:
        busy, other = await served.hello(), await served.hello()
        if tls:
            await busy.starttls(careless())
            await busy.ehlo()
        busy.writer.write(FLIGHT)
        heard = await asyncio.wait_for(busy.reader.readexactly(100), TIMEOUT)
        for _ in range(5):
            assert await other.say("NOOP") == "250 OK"
        # What of the flight has been answered by now the client has not yet read: it is in its stream.
        there = len(heard) + len(busy.reader._buffer)  # type: ignore[attr-defined]
        assert there < len(ANSWERS) / 2
        heard += await asyncio.wait_for(busy.reader.readexactly(len(ANSWERS) - 100), 4 * TIMEOUT)
        assert heard == ANSWERS
        assert await busy.say("NOOP") == "250 OK"


@on_both_loops
async def test_a_flight_is_answered_to_its_end_when_the_client_has_closed_its_half() -> None:
    async with serving(**UNLIMITED) as served:
        client = await served.hello()
        client.writer.write(FLIGHT + b"QUIT\r\n")
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(len(ANSWERS) * 2), 4 * TIMEOUT)
        heard = await asyncio.wait_for(client.reader.read(), 4 * TIMEOUT)
        assert heard.endswith(b"250 Flushed\r\n221 Bye\r\n")


@on_both_loops
async def test_a_flight_that_never_ends_is_not_kept_in_memory() -> None:
    async with serving(**UNLIMITED) as served:
        busy = socket.create_connection(served.address, TIMEOUT)
        busy.setblocking(False)
        other = await served.hello()
        sent = 0
        for _ in range(50):
            try:
                while True:
                    sent += busy.send(FLIGHT)
            except BlockingIOError:
                pass
            await asyncio.sleep(0)
            connections = list(served.server._connections.all)
            assert all(len(connection._buffer) < 2**20 for connection in connections)
            assert await other.say("NOOP") == "250 OK"
        assert sent
        busy.close()
