"""The same octets in one piece, octet by octet, and cut at each place: what a client may do to any of its lines.

A part leaves when the server has read the one before and has done what that asks for: nothing waits for time to pass,
and no two parts are read together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from pillarbox.net.wire import TransportWire
from support import TIMEOUT, Client, Served, pem, trusting

KINDS = ("plain", "starttls", "implicit")
# For connections that make more mistakes than the limits on those allow by default.
FORGIVING: dict[str, Any] = {}


def every_way(octets: bytes, begin: int = 1, end: int | None = None) -> list[tuple[int, ...]]:
    """Return where to cut: nowhere, between all octets, and at each place alone, from ``begin`` to before ``end``."""
    return [(), tuple(range(1, len(octets))), *((place,) for place in range(begin, end or len(octets)))]


def pairs(octets: bytes) -> Iterator[tuple[int, int]]:
    """Yield each two places to cut at."""
    return ((one, two) for two in range(2, len(octets)) for one in range(1, two))


def secured(kind: str) -> dict[str, Any]:
    """Return the options of a server for a kind of connection."""
    return {**pem(), "secure": kind == "implicit"}


async def under(kind: str, served: Served) -> Client:
    """Return a client that has said EHLO on plain TCP, after STARTTLS or under implicit TLS."""
    client = await (served.hello(trusting()) if kind == "implicit" else served.hello())
    if kind == "starttls":
        await client.starttls(trusting())
        await client.ehlo(verb="LHLO" if served.server.options.lmtp else "EHLO")
    return client


class Parts:
    """Sends octets in parts to the server's only busy connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sizes: list[int] = []
        self._closed = False
        self._news: asyncio.Event = asyncio.Event()
        received, close = TransportWire.data_received, TransportWire.close

        def counted(wire: TransportWire, data: bytes) -> None:
            received(wire, data)  # first: who waits for input has it before the next part leaves
            self._sizes.append(len(data))
            self._news.set()

        def closed(wire: TransportWire) -> None:
            close(wire)
            self._closed = True
            self._news.set()

        monkeypatch.setattr(TransportWire, "data_received", counted)
        monkeypatch.setattr(TransportWire, "close", closed)

    async def send(self, client: Client, octets: bytes, cuts: tuple[int, ...]) -> None:
        """Send octets cut at these places; what comes behind the end of the connection is not sent."""
        self._news = asyncio.Event()
        self._sizes.clear()
        self._closed = False
        sent = []
        async with asyncio.timeout(TIMEOUT):
            for begin, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
                sent.append(end - begin)
                await client.send(octets[begin:end])
                while sum(self._sizes) < sum(sent) and not self._closed:
                    self._news.clear()
                    await self._news.wait()
                if self._closed:
                    return
        assert self._sizes == sent, "two parts were read together"
