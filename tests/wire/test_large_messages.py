"""Large messages: a connection that sends one is read in other blocks, and nobody may notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest

from pillarbox import MessageStream, Session
from support import Inbox, on_both_loops, pem, serving, trusting

BODY = b"".join(b"%06d %s\r\n" % (number, b"x" * 70) for number in range(20_000))
DOTS = b"".join(b".%06d %s\r\n" % (number, b"x" * 70) for number in range(20_000))
STUFFED = DOTS.replace(b"\r\n.", b"\r\n..").replace(b".", b"..", 1)


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


@on_both_loops
async def test_large_and_small_messages_in_turn() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        for body in (BODY, b"small\r\n", STUFFED, b"small\r\n", BODY):
            assert await client.deliver(body) == "250 OK: message queued"
        assert await client.say("NOOP") == "250 OK"
    wanted = [BODY, b"small\r\n", DOTS, b"small\r\n", BODY]
    assert [digest(message.content) for message in inbox] == [digest(body) for body in wanted]


@on_both_loops
async def test_before_and_after_starttls() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox, **pem()) as served:
        client = await served.hello()
        assert (await client.deliver(BODY)).startswith("250")
        await client.starttls(trusting())
        await client.ehlo()
        for body in (BODY, b"small\r\n", STUFFED):
            assert (await client.deliver(body)).startswith("250")
    wanted = [BODY, BODY, b"small\r\n", DOTS]
    assert [digest(message.content) for message in inbox] == [digest(body) for body in wanted]


@on_both_loops
async def test_what_is_pipelined_behind_one_is_answered() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        await client.send(BODY + b".\r\nNOOP\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n")
        assert [(await client.reply()).code for _ in range(4)] == [250, 250, 250, 250]
        assert (await client.data(STUFFED)).code == 250
    assert [digest(message.content) for message in inbox] == [digest(BODY), digest(DOTS)]


@pytest.mark.parametrize("closes", ["eof", "abort"])
@on_both_loops
async def test_a_client_that_leaves_in_the_middle(closes: str) -> None:
    failed: asyncio.Queue[Any] = asyncio.Queue()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            async for _ in stream:
                pass
        except ConnectionError as error:
            failed.put_nowait(error)
            raise

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        await client.send(BODY)
        if closes == "eof":
            client.writer.write_eof()
        else:
            client.writer.transport.abort()
        assert isinstance(await asyncio.wait_for(failed.get(), 5), ConnectionError)


@on_both_loops
async def test_no_more_is_read_than_is_asked_for() -> None:
    """A handler that stops reading stops the client: what the server holds is one block, whatever is sent."""
    seen: list[int] = []
    go_on = asyncio.Event()

    async def blocks(stream: MessageStream) -> AsyncIterator[bytes]:
        async for block in stream:
            seen.append(len(block))
            yield block

    async def on_data(stream: MessageStream, session: Session) -> None:
        async for _ in blocks(stream):
            if len(seen) == 4:
                await go_on.wait()

    async with serving(on_data=on_data, size=None) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        for _ in range(20):
            client.writer.write(BODY)
        client.writer.write(b".\r\n")
        while len(seen) < 4:
            await asyncio.sleep(0.01)
        connection = next(iter(served.server._connections.all))
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert len(connection._buffer) <= 128 * 1024
        go_on.set()
        assert (await client.reply()).code == 250
    assert sum(seen) == 20 * len(BODY)
    assert max(seen[4:]) <= 128 * 1024
