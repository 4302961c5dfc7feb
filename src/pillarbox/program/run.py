"""One process of the program, from its start to its end: targets, server, signals.

All that is heavy is imported inside the functions that need it: the program is to listen 400 ms after its start.
"""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pillarbox import SMTPServer
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.program.receiver import Receiver
    from pillarbox.program.routes import Route

__all__ = ["run"]

_log = logging.getLogger("pillarbox.program")

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


def run(configuration: Configuration) -> None:
    """Serve until a signal says otherwise, on uvloop where it is installed."""
    import asyncio

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(configuration))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# --- From start to end


async def _serve(configuration: Configuration) -> None:
    from pillarbox import SMTPServer
    from pillarbox.program.receiver import Receiver

    stopped = _on_signals()
    try:
        # The program shows all records itself: the option would show them twice.
        server = SMTPServer(configuration.options, logger=False)
    except ConfigurationError as error:  # a key that cannot be read
        raise configuration.located(error) from error
    receiver = Receiver()
    try:
        for route in configuration.routes:
            await _start(route)
        await _listen(server, configuration, receiver)
        _log.info("%s: closing; a second signal ends at once", await stopped)
    finally:
        await server.close()
        await receiver.close()
        for route in configuration.routes:
            await route.target.close()
    _log.info("closed")


async def _start(route: Route) -> None:
    try:
        await route.target.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{route.source}: {error}" if route.source else str(error)) from error


async def _listen(server: SMTPServer, configuration: Configuration, receiver: Receiver) -> None:
    from pillarbox.cli.addresses import address_text

    for listener in configuration.listeners:
        handlers = receiver.handlers(listener.options.name, configuration.routes_of(listener), listener.access)
        await _listen_on(server, listener, handlers)
    # Only now: of a start that fails there is one message to read.
    for address in server.addresses:
        _log.info("listening on %s", address_text(address))


async def _listen_on(server: SMTPServer, listener: Listener, handlers: dict[str, Callable[..., Any]]) -> None:
    overrides = {**listener.overrides, "logger": False, **handlers}
    place = f"{listener.source}: " if listener.source else ""
    try:
        await server.listen(**listener.arguments, **overrides)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}{error}") from error
    except (OSError, ValueError) as error:  # ValueError: a descriptor that is no stream socket
        raise ConfigurationError(f"{place}cannot listen on {listener.address}: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    """Say what the system said, and what to do about it."""
    import errno
    import os

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


def _on_signals() -> asyncio.Future[str]:
    """Return what the first SIGINT or SIGTERM fulfils; a second one ends the program at once."""
    import asyncio

    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # the loop is closed: the program ends anyway
            loop.call_soon_threadsafe(stopped.set_result, signal.Signals(number).name)

    # Not add_signal_handler: Windows has none, and a second signal must also end a loop that hangs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped
