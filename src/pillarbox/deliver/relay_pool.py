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


class Pool:
    """At most ``most`` connections; one that nobody needs stays open for ``idle`` seconds."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], most: int, idle: float) -> None:
        self._connect = connect
        self._idle_time = idle
        self._places = asyncio.Semaphore(most)
        self._idle: dict[Connection, asyncio.TimerHandle] = {}  # the last one is the freshest
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, *, fresh: bool = False) -> Connection:
        """Wait for a connection of one's own; raise Lost. ``fresh``: a new one, since an old one was dead."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._places.acquire()
        except TimeoutError as error:
            # RFC 3463 3.4: "X.3.2 System not accepting network messages".
            raise Lost(f"all connections were in use for {PATIENCE:g} seconds", "4.3.2") from error
        try:
            if fresh:  # then the others have waited as long, and are dead too
                for old in list(self._idle):
                    self._retire(old)
            return self._freshest() or await self._connect()
        except BaseException:
            self._places.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """End the use of a connection: it is kept, or dropped where a transaction is still open."""
        self._places.release()
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

    def _freshest(self) -> Connection | None:
        if not self._idle:
            return None
        connection, timer = self._idle.popitem()
        timer.cancel()
        return connection

    def _retire(self, connection: Connection) -> None:
        self._idle.pop(connection).cancel()
        task = asyncio.create_task(connection.quit())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
