"""``handler_timeout``: the time of a handler, without that of the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from pillarbox.net.wire import TransportWire


class TimeLimit:
    """``handler_timeout`` for one call: the clock stands still while the client is waited for."""

    __slots__ = ("_connection", "_left", "_timeout")

    def __init__(self, connection: TransportWire, seconds: float) -> None:
        self._connection = connection
        self._timeout = asyncio.timeout(seconds)
        self._left = seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._connection._limit = self  # noqa: SLF001 - two halves of one thing
        self._connection._hindered = True  # noqa: SLF001

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection._limit = None  # noqa: SLF001
        await self._timeout.__aexit__(kind, error, trace)

    def pause(self) -> None:
        when = self._timeout.when()
        if when is not None and not self._timeout.expired():
            self._left = when - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)

    def resume(self, _: object) -> None:
        if self._connection._limit is self and not self._timeout.expired():  # noqa: SLF001
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
