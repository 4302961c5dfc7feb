"""How a client is read that sends much: by the block, into one buffer of all connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillarbox.net.wire import TransportWire

# What a client that sends much is read by. Smaller costs more calls; from 128 KiB on malloc takes fresh pages.
BULK = 120 * 1024


class Bulk(asyncio.BufferedProtocol):
    """Passes on what a transport tells, and reads in large blocks of which one is there at a time."""

    __slots__ = ("_buffer", "_wire")

    def __init__(self, wire: TransportWire) -> None:
        self._wire = wire
        self._buffer = wire.listener.bulk_buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer  # of all connections: it is emptied before anything else is read

    def buffer_updated(self, nbytes: int) -> None:
        self._wire.data_received(bytes(self._buffer[:nbytes]))
        self._wire.pause()

    def eof_received(self) -> bool:
        return self._wire.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.connection_lost(exc)

    def pause_writing(self) -> None:
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        self._wire.resume_writing()
