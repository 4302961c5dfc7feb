"""The connections to the next server: never more than so many, and each used again while it is fresh."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pillarbox.deliver.relay_client import Lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pillarbox.deliver.relay_client import Connection

__all__ = ["Pool"]

# A server makes a client wait that it has refused so often (Postfix: smtpd_soft_error_limit, 10), and then ends it.
_MOST_REFUSALS = 10
PATIENCE = 60.0  # seconds for a connection to become free
_FAREWELL = 1.0  # seconds that who takes leave may hold up the next one


class Pool:
    """At most ``most`` connections; one that nobody needs stays open for ``idle`` seconds."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], most: int, idle: float) -> None:
        self._connect = connect
        self._most = most
        self._used = 0
        self._idle_time = idle
        self._places = asyncio.Semaphore(most)
        self._idle: dict[Connection, asyncio.TimerHandle] = {}  # the last one is the freshest
        self._leaving: dict[asyncio.Task[None], Connection] = {}  # the first one is the oldest
        self._closed = False

    async def take(self, *, fresh: bool = False) -> Connection:
        """Wait for a connection of one's own; raise Lost. ``fresh``: a new one, since an old one was dead."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._places.acquire()
        except TimeoutError as error:
            # RFC 3463 3.4: "X.3.2 System not accepting network messages".
            raise Lost(f"all connections were in use for {PATIENCE:g} seconds", "4.3.2") from error
        self._used += 1
        try:
            if fresh:  # then the others have waited as long, and are dead too
                for old in list(self._idle):
                    self._retire(old)
            return self._freshest() or await self._opened()
        except BaseException:
            self._release()
            raise

    def give_back(self, connection: Connection) -> None:
        """End the use of a connection: it is kept, or dropped where a transaction is still open."""
        self._release()
        if not connection.clean:
            connection.abort()
            return
        timer = asyncio.get_running_loop().call_later(self._idle_time, self._retire, connection)
        self._idle[connection] = timer
        if self._closed or connection.refusals >= _MOST_REFUSALS or not self._idle_time:
            self._retire(connection)

    async def close(self) -> None:
        """Take leave of all connections that nobody uses; those in use end with their message."""
        self._closed = True
        for connection in list(self._idle):
            self._retire(connection)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _opened(self) -> Connection:
        """Open a connection where there is room for it; who takes leave for too long is cut off."""
        while self._leaving and self._used + len(self._idle) + len(self._leaving) > self._most:
            oldest, connection = next(iter(self._leaving.items()))
            if not (await asyncio.wait([oldest], timeout=_FAREWELL))[0]:
                connection.abort()
                await asyncio.wait([oldest])
        return await self._connect()

    def _release(self) -> None:
        self._used -= 1
        self._places.release()

    def _freshest(self) -> Connection | None:
        if not self._idle:
            return None
        connection, timer = self._idle.popitem()
        timer.cancel()
        return connection

    def _retire(self, connection: Connection) -> None:
        self._idle.pop(connection).cancel()
        task = asyncio.create_task(connection.quit())
        self._leaving[task] = connection
        task.add_done_callback(self._leaving.pop)
