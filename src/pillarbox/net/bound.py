"""Sockets that are bound before there is a server: for several processes that share them, or that give up rights."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

from pillarbox.errors import ConfigurationError
from pillarbox.net.sockets import UnixPath, display, name_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class BoundSockets:
    """Listening sockets for ``SMTPServer.listen(sock=bound.sockets)``, also in another process that inherits them.

        bound = await BoundSockets.bind(25)
        ...  # give up root, or start processes with pass_fds=[sock.fileno() for sock in bound.sockets]
        await server.listen(sock=bound.sockets)

    Connections wait in them from the moment of ``bind``. The path of a Unix socket that was made here is removed by
    ``close``, not by the server.
    """

    def __init__(self, sockets: list[socket.socket], unix: UnixPath | None = None) -> None:
        self.sockets = tuple(sockets)
        self._unix = unix

    @classmethod
    async def bind(
        cls,
        port: int | None = None,
        host: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        fd: int | None = None,
        backlog: int = 1024,
    ) -> Self:
        """Bind what ``SMTPServer.listen`` would, and listen; one socket for each address that the host has.

        Raises OSError where the address cannot be bound, ValueError for a descriptor that is no stream socket,
        ConfigurationError where not exactly one of port, path and fd is given.
        """
        if sum(value is not None for value in (port, path, fd)) == 1:
            if path is not None:
                return cls(*_unix_socket(UnixPath(path), backlog))
            if fd is not None:
                return cls([_handed_over(fd, backlog)])
            if port is not None:
                return cls(await _tcp_sockets(host, port, backlog))
        raise ConfigurationError("bind() takes one of port, path and fd")

    @property
    def addresses(self) -> list[tuple[str, int] | str]:
        """What is listened on: ``(host, port)``, or the path of a Unix socket."""
        return [name_of(sock) for sock in self.sockets]

    def close(self) -> None:
        """Close the sockets of this process, and remove the path of a Unix socket that was made here."""
        if self._unix is not None:
            self._unix.remove()
        for sock in self.sockets:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _handed_over(fd: int, backlog: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    try:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"a stream socket was expected, descriptor {fd} is of another kind")
        sock.listen(backlog)
    except (OSError, ValueError):
        sock.detach()  # it is not ours to close
        raise
    return sock


def _unix_socket(unix: UnixPath, backlog: int) -> tuple[list[socket.socket], UnixPath]:
    unix.refuse_if_served()
    unix.remove_stale()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(unix.path)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _named(error, unix.path) from None
    unix.note()
    return [sock], unix


async def _tcp_sockets(host: str | None, port: int, backlog: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_tcp_socket(family, address, backlog))
        except OSError as error:
            # A host without IPv6 may still have the name "::" for all interfaces.
            if family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error
                continue
            for sock in sockets:
                sock.close()
            raise
    if not sockets and absent is not None:
        raise absent
    return sockets


def _tcp_socket(family: int, address: tuple[str | int, ...] | tuple[int, bytes], backlog: int) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _named(error, str(address[0])) from None
    try:
        if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it would let two programs have one address
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _named(error, display((str(address[0]), int(address[1])))) from None
    return sock


def _named(error: OSError, name: str) -> OSError:
    """Return the error with what was to be bound; the socket module's own tells it not, or in other words."""
    return OSError(error.errno, error.strerror, name) if error.errno else error
