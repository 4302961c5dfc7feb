"""What a service manager and the program tell each other: sockets that were opened for it, and how far it is.

Both protocols are systemd's, and stable: sd_listen_fds(3) and sd_notify(3). Elsewhere nothing of this happens.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

__all__ = ["handed_over", "notify", "reloading"]

# sd_listen_fds(3): "SD_LISTEN_FDS_START (which is 3)"
_FIRST = 3


def handed_over(name: str) -> list[int]:
    """Return the descriptors of the sockets that were opened for this process under a name (FileDescriptorName=)."""
    # sd_listen_fds(3): LISTEN_PID says for which process they are; a child that inherits the variables is another.
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = os.environ.get("LISTEN_FDS", "")
    names = names[: int(count)] if count.isascii() and count.isdigit() else []
    return [_FIRST + number for number, each in enumerate(names) if each == name]


def notify(state: str) -> None:
    """Tell the service manager, if there is one that listens: ``READY=1`` and so on, a line for each."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    # sd_notify(3): a path, or an abstract name behind "@".
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.sendall(state.encode())


def reloading() -> None:
    """Tell that the configuration is read again; ``READY=1`` says that it is done."""
    # sd_notify(3): with RELOADING=1 goes the time of the monotonic clock, so that it is told from an earlier reload.
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
