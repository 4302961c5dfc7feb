"""``handler_timeout``: the time of a handler, without that of the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from pillarbox.net.wire import TransportWire


class TimeLimit:
    """``handler_timeout`` for one call: the clock stands still while the client is waited for.

    And while another handler runs: that of a command between two chunks of the message that this one reads.
    """

    __slots__ = ("_connection", "_left", "_outer", "_timeout")

    def __init__(self, connection: TransportWire, seconds: float) -> None:
        self._connection = connection
        self._timeout = asyncio.timeout(seconds)
        self._left = seconds
        self._outer: TimeLimit | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._outer = self._connection._limit  # noqa: SLF001 - two halves of one thing
        if self._outer is not None:
            self._outer.pause()
        self._connection._limit = self  # noqa: SLF001
        self._connection._hindered = True  # noqa: SLF001

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current = self._connection._limit  # noqa: SLF001
        if current is self:
            self._connection._limit = self._outer  # noqa: SLF001
            if self._outer is not None:
                self._outer.resume(None)
        elif current is not None:  # the handler did not wait for the command
            current._outer = self._outer  # noqa: SLF001
        await self._timeout.__aexit__(kind, error, trace)

    def pause(self) -> None:
        when = self._timeout.when()
        if when is not None and not self._timeout.expired():
            self._left = when - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)

    def resume(self, _: object) -> None:
        if self._connection._limit is self and not self._timeout.expired():  # noqa: SLF001
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
