"""Why an address cannot be listened on: in the system's words, with what can be done about it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from pillarbox.cli.config import Listener

__all__ = ["cannot_listen"]

# What the reader of `cannot listen on …` can do about it, by the error's symbol.
_ADVICE = {
    "EADDRINUSE": "another program listens there: stop it, or choose another address",
    "EADDRNOTAVAIL": "no interface of this host has that address",
    "EACCES": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EPERM": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EBADF": "nothing was handed over on that descriptor",
    "ENOTSOCK": "what was handed over on that descriptor is no socket",
    "ENOENT": "make the folder first",
}


def cannot_listen(listener: Listener, error: ConfigurationError | OSError | ValueError) -> ConfigurationError:
    """Return the error of a listener with its place; ValueError: a descriptor that is no stream socket."""
    place = f"{listener.source}: " if listener.source else ""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{place}{error}")
    return ConfigurationError(f"{place}cannot listen on {listener.address}: {_reason(error)}")


def _reason(error: OSError | ValueError) -> str:
    """Say what the system said, and what to do about it."""
    number = getattr(error, "errno", None) or 0
    reason = getattr(error, "strerror", None) or str(error)
    system = os.strerror(number)
    advised = ""
    if reason.lower().endswith(system.lower()):  # asyncio puts the address, and since 3.13 the number, in front
        reason = system
        advice = _ADVICE.get(errno.errorcode.get(number, ""))
        advised = f" ({advice})" if advice else ""
    first = reason[:2].capitalize() == reason[:2]  # a word, and no abbreviation
    return f"{reason[:1].lower() if first else reason[:1]}{reason[1:]}{advised}"
