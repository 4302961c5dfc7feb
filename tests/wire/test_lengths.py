"""How long a line may be, to the octet, however it is cut; and that nothing beyond the limit is kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillarbox.net.wire import HIGH_WATER, TransportWire
from pillarbox.smtp.wire import MAX_AUTH_LINE
from splits import Parts, every_way, secured, under
from support import TIMEOUT, Inbox, b64, on_both_loops, serving


def padded(start: bytes, length: int) -> bytes:
    """Return a line of this length, its CRLF included."""
    return start + b"x" * (length - len(start) - 2) + b"\r\n"


def token(room: int) -> bytes:
    """Return the longest token of PLAIN that fits."""
    return b64("\0ann\0" + "s" * (room // 4 * 3 - len("\0ann\0"))).encode()


@pytest.mark.promises("Commands", "A line that is longer than its limit is refused, to the octet.")
@pytest.mark.parametrize("kind", ["plain", "implicit"])
@pytest.mark.parametrize("limit", [512, 4096])
@on_both_loops
async def test_a_command(limit: int, kind: str, parts: Parts) -> None:
    async with serving(max_command_length=limit, max_errors=None, max_junk_commands=None, **secured(kind)) as served:
        client = await under(kind, served)
        for length, answer in ((limit, "250 OK"), (limit + 1, "500 Error: Command line too long")):
            line = padded(b"NOOP ", length)
            ways = every_way(line) if limit == 512 and kind == "plain" else [(), *every_way(line, length - 4)[2:]]
            for cuts in ways:
                await parts.send(client, line, cuts)
                assert await client.hear() == answer, (length, cuts)
        await client.send(padded(b"NOOP ", MAX_AUTH_LINE + 1))  # nothing so long is read to its end
        assert await client.hear() == "421 Error: Command line too long"
        await client.eof()


@pytest.mark.promises("Commands", "A line that is longer than its limit is refused, to the octet.")
@pytest.mark.parametrize("kind", ["plain", "implicit"])
@pytest.mark.parametrize("limit", [512, 4096])
@on_both_loops
async def test_a_line_of_auth(limit: int, kind: str, parts: Parts) -> None:
    options: dict[str, Any] = {"allow_insecure_auth": True, "on_auth": lambda *_: True, "max_command_length": limit}
    async with serving(**options, **secured(kind)) as served:
        for start, challenge in ((b"AUTH PLAIN ", None), (b"auth plain ", None), (b"", 334)):
            room = MAX_AUTH_LINE - len(start) - 2
            line = start + token(room) + b"\r\n"
            assert MAX_AUTH_LINE - 4 < len(line) <= MAX_AUTH_LINE
            spaces = b" " * (MAX_AUTH_LINE - len(line))  # to be tolerated at the end of a line (RFC 5321 4.1.1)
            for longer, codes in ((spaces, [235]), (spaces + b" ", [421, 500])):
                octets = line[:-2] + longer + b"\r\n"
                for cuts in ((), (4096,), (len(octets) - 2,), (len(octets) - 1,)):
                    client = await under(kind, served)
                    if challenge:
                        assert (await client.command("AUTH PLAIN")).code == challenge
                    await parts.send(client, octets, cuts)
                    assert (await client.reply()).code in codes, (start, len(octets), cuts)
                    assert (codes == [235]) == any(session.user for session in served.server.connections)
                    await client.close()
                    while served.server.connections:
                        await asyncio.sleep(0)


@pytest.mark.promises(
    "Commands", "Of a line without an end no more is kept than its limit and one read of the socket; then 421."
)
@pytest.mark.parametrize("start", [b"NOOP ", b"AUTH PLAIN ", b"MAIL FROM:<", b"BDAT ", b"\xff", b"\r", b""])
@pytest.mark.parametrize("kind", ["plain", "implicit"])
@on_both_loops
async def test_a_line_without_an_end(kind: str, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of it is bounded by the limit and what one read of the socket may bring."""
    kept, received = [0], TransportWire.data_received

    def noted(connection: TransportWire, data: bytes) -> None:
        received(connection, data)
        kept.append(len(connection._buffer))

    monkeypatch.setattr(TransportWire, "data_received", noted)
    async with serving(allow_insecure_auth=True, **secured(kind)) as served:
        client = await under(kind, served)
        client.writer.write(start + b"A" * 2**20)
        assert (await client.reply()).code == 421
        assert 0 < max(kept) <= MAX_AUTH_LINE + 4 * HIGH_WATER  # asyncio reads up to 256 KiB at once
        client.writer.transport.abort()


@pytest.mark.promises("The end of a message", "Lines of a message may have any length.")
@pytest.mark.parametrize("kind", ["plain", "implicit"])
@on_both_loops
async def test_lines_of_any_length_in_data(kind: str) -> None:
    inbox = Inbox()
    async with serving(on_data=inbox, max_command_length=512, **secured(kind)) as served:
        client = await under(kind, served)
        for length in (998, 999, 4097, 12_289, 2**20):
            body = b"x" * length + b"\r\n"
            assert await asyncio.wait_for(client.deliver(body), TIMEOUT) == "250 OK: message queued"
            assert inbox.pop().content == body
