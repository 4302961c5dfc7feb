"""What every client has at hand: connections that are surely dropped at the end, notes, and the time that is left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TextIO

from soaking.place import Peer, Place

LONG = 30.0  # seconds that a long-lived connection lives
PAUSE = 0.03  # seconds on average: the machine is not to be the limit


class Desk:
    """One turn of one client."""

    def __init__(self, place: Place, notes: TextIO, until: float) -> None:
        self.place = place
        self._notes = notes
        self._until = until
        self._since = time.monotonic()
        self._peers: list[Peer] = []

    @property
    def open(self) -> bool:
        """Whether there is time for another message."""
        return time.monotonic() < self._until

    @property
    def fresh(self) -> bool:
        """Whether a connection that sends many messages may send another one."""
        return self.open and time.monotonic() < self._since + LONG

    async def plain(self) -> Peer:
        """Connect in plaintext."""
        return self._kept(await Peer.tcp(self.place.plain))

    async def implicit(self) -> Peer:
        """Connect under TLS."""
        return self._kept(await Peer.tcp(self.place.tls, tls=True))

    async def onto_tls_port(self) -> Peer:
        """Connect where TLS is expected, without it."""
        return self._kept(await Peer.tcp(self.place.tls))

    async def unix(self) -> Peer:
        """Connect to the LMTP socket."""
        return self._kept(await Peer.unix(self.place.lmtp))

    async def either(self, *ways: Callable[[Desk], Awaitable[Peer]]) -> Peer:
        """Connect in one of these ways."""
        return await random.choice(ways)(self)

    def _kept(self, peer: Peer) -> Peer:
        self._peers.append(peer)
        return peer

    def acknowledged(self, name: bytes) -> None:
        """Note that the server answered for this message."""
        self._notes.write(f"{name.decode()}\n")

    async def pause(self, seconds: float = PAUSE) -> None:
        """Wait about so long."""
        await asyncio.sleep(random.uniform(0.5, 1.5) * seconds)

    def leave(self) -> None:
        """Drop what is still connected."""
        for peer in self._peers:
            peer.drop()
