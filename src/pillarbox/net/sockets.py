"""Names of sockets, and the care a Unix socket's path needs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence

# How long connections that were told to end may take to do it.
CUT_OFF_TIME = 1.0


def name_of(sock: socket.socket) -> tuple[str, int] | str:
    """Return ``(host, port)`` of a listening socket, or a Unix socket's path."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return os.fsdecode(name)


def display(address: tuple[str, int] | str) -> str:
    """Write an address as people do: ``127.0.0.1:25``, ``[::1]:25``, ``unix:/run/lmtp``."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listed(given: socket.socket | Sequence[socket.socket] | None) -> list[socket.socket]:
    """Return the sockets that were given: none, one or several."""
    if given is None:
        return []
    return [given] if isinstance(given, socket.socket) else list(given)


def place(
    port: int | None, host: str | None, path: str | os.PathLike[str] | None, bound: Sequence[socket.socket]
) -> str | None:
    """Name what is listened on, as others who listen there would; None where nobody else can."""
    if bound:
        return ",".join(display(name_of(sock)) for sock in bound)
    if path is not None:
        return display(os.fspath(path))
    return display((host or "", port)) if port else None


def stop_accepting(server: asyncio.Server) -> None:
    """Accept nothing more, but let what was accepted reach its connection.

    asyncio forgets, and so never closes, a socket that it accepted but has not handed over when its server is closed.
    """
    loop = server.get_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())


class UnixPath:
    """The path of a Unix socket: a stale one is replaced, a served one is not, and only our own is removed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._inode: int | None = None

    def refuse_if_served(self) -> None:
        """Raise OSError (EADDRINUSE) where another process answers; the event loop would take its path away."""
        try:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):  # noqa: PTH116 - an abstract name is no path
                raise OSError(errno.EADDRINUSE, "there is a file that is no socket", self.path)
        except (FileNotFoundError, ValueError):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.path)
            except (ConnectionRefusedError, FileNotFoundError):
                return  # nobody is behind it any more
            except OSError:  # its backlog is full, or it is of another kind: somebody is
                pass
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self.path)

    def remove_stale(self) -> None:
        """Remove the path of a socket that nobody serves, after ``refuse_if_served``; an abstract name has none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            if not self.path.startswith("\0"):
                os.unlink(self.path)  # noqa: PTH108

    def note(self) -> None:
        """Remember the socket that was bound."""
        with contextlib.suppress(OSError, ValueError):
            self._inode = os.stat(self.path).st_ino  # noqa: PTH116

    def remove(self) -> None:
        """Remove the path, if it is still ours; once, since another process's socket may have the same inode later."""
        inode, self._inode = self._inode, None
        with contextlib.suppress(OSError, ValueError):
            if inode is not None and os.stat(self.path).st_ino == inode:  # noqa: PTH116
                os.unlink(self.path)  # noqa: PTH108
