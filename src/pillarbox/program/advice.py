"""Why an address cannot be listened on: in the system's words, with what can be done about it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pillarbox.cli.config import Listener

__all__ = ["cannot_listen", "reason"]

# What the reader of `cannot listen on …` can do about it, by the error's symbol.
_ADVICE = {
    "EADDRINUSE": "another program listens there: stop it, or choose another address",
    "EADDRNOTAVAIL": "no interface of this host has that address",
    "EACCES": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EPERM": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EBADF": "nothing was handed over on that descriptor",
    "ENOTSOCK": "what was handed over on that descriptor is no socket",
    "EINVAL": "a descriptor has to be of a socket that can listen; [fe80::…] needs its interface, as [fe80::1%eth0]:25",
    "ENOENT": "make the folder first",
}


def cannot_listen(
    listener: Listener, error: ConfigurationError | OSError | ValueError, leaving: Iterable[str] = ()
) -> ConfigurationError:
    """Return the error of a listener with its place; ValueError: a descriptor that is no stream socket.

    leaving: addresses that this program still listens on, and that are to go.
    """
    place = f"{listener.source}: " if listener.source else ""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{place}{error}")
    why = reason(error)
    if getattr(error, "errno", None) == errno.EADDRINUSE and any(_same_port(each, listener) for each in leaving):
        why = "the listener that is to go has that port until then: this change needs a restart"
    return ConfigurationError(f"{place}cannot listen on {listener.address}: {why}")


def _same_port(address: str, listener: Listener) -> bool:
    return "port" in listener.arguments and address.rpartition(":")[2] == str(listener.arguments["port"])


def reason(error: OSError | ValueError) -> str:
    """Say what the system said of an address, and what to do about it."""
    number = getattr(error, "errno", None) or 0
    said = getattr(error, "strerror", None) or str(error)
    system = os.strerror(number)
    advised = ""
    if said.lower().endswith(system.lower()):  # asyncio puts the address, and since 3.13 the number, in front
        said = system
        advice = _ADVICE.get(errno.errorcode.get(number, ""))
        advised = f" ({advice})" if advice else ""
    first = said[:2].capitalize() == said[:2]  # a word, and no abbreviation
    return f"{said[:1].lower() if first else said[:1]}{said[1:]}{advised}"
