"""One ``listen()``: what is bound, and the listener that gives its next connection options and handlers."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Any

from pillarbox.net import descriptors, sockets
from pillarbox.net.connection import Connection

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Sequence

    from pillarbox.net.listener import Listener

# From Python 3.13 on the path of a Unix socket is removed at the end, also of one that another process made and keeps.
_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Endpoint:
    """Where connections come in. It outlives its listener, which ``use`` replaces; connections keep theirs."""

    def __init__(self, listener: Listener) -> None:
        self.counted = 0  # connections that came in here
        self.addresses: list[tuple[str, int] | str] = []
        self._place: str | None = None  # as other processes that listen here call it
        self._servers: list[asyncio.Server] = []
        self._unix: sockets.UnixPath | None = None
        self.listener = listener
        listener.endpoint = self

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self.listener, asyncio.get_running_loop())

    def use(self, listener: Listener) -> None:
        """Let this listener have the next connections."""
        self.listener.end_own_refusals()
        self.listener = listener
        listener.endpoint = self
        listener.share(self._place)

    async def bind(
        self,
        port: int | None,
        host: str | None,
        path: str | os.PathLike[str] | None,
        given: Sequence[socket.socket],
        backlog: int,
    ) -> None:
        """Bind, or take what is bound already, and accept connections."""
        loop = asyncio.get_running_loop()
        self._place = sockets.place(port, host, path, given)
        self.listener.share(self._place)
        waiting = backlog
        if isinstance(loop, asyncio.SelectorEventLoop):
            waiting = min(backlog, self.listener.connections.descriptors.batch())
        for sock in given or (None,):
            server = await self._surely(self._bound(loop, port, host, path, sock, waiting))
            self._servers.append(server)
            if isinstance(loop, asyncio.SelectorEventLoop):
                descriptors.let_wait(server, backlog)
            self.addresses += [sockets.name_of(each) for each in server.sockets]

    async def _surely(self, binding: Coroutine[Any, Any, asyncio.Server]) -> asyncio.Server:
        """Return the server that is being made; where this is cancelled, close it when it is there."""
        # A loop that is cancelled on the way forgets the server that it has made, with its sockets open.
        making = asyncio.ensure_future(binding)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._close_late)
            raise

    def _close_late(self, making: asyncio.Future[asyncio.Server]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._servers.append(making.result())
            self.close()

    async def _bound(  # noqa: PLR0917 - the ways that listen() takes
        self,
        loop: asyncio.AbstractEventLoop,
        port: int | None,
        host: str | None,
        path: str | os.PathLike[str] | None,
        sock: socket.socket | None,
        backlog: int,
    ) -> asyncio.Server:
        if path is not None:
            unix = sockets.UnixPath(path)
            unix.refuse_if_served()
            server = await loop.create_unix_server(self, unix.path, backlog=backlog)
            unix.note()
            self._unix = unix
            return server
        if sock is None:
            return await loop.create_server(self, host, port or 0, backlog=backlog)
        if sock.family == getattr(socket, "AF_UNIX", None):
            return await loop.create_unix_server(self, sock=sock, backlog=backlog, **_KEEP_PATH)
        return await loop.create_server(self, sock=sock, backlog=backlog)

    def stop_accepting(self) -> None:
        """Accept nothing more, but let what was accepted reach its connection."""
        for server in self._servers:
            sockets.stop_accepting(server)

    def close(self) -> None:
        """Close what is bound; the connections go on."""
        self.addresses = []
        for server in self._servers:
            server.close()
        if self._unix is not None:
            self._unix.remove()
