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
    from collections.abc import Callable, Mapping

    from pillarbox import SMTPServer
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.program.receiver import Receiver
    from pillarbox.program.routes import Route

__all__ = ["Process", "StopSignals", "cannot_listen", "loop_factory", "run", "serve"]

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
    """Serve until a signal says otherwise, on uvloop where it is installed; in several processes where it says so."""
    import asyncio

    from pillarbox.program.cpus import number_of_workers

    workers = number_of_workers(configuration.program.workers)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if workers > 1:
            from pillarbox.program.workers import Supervisor

            runner.run(Supervisor(configuration, workers).run())
        else:
            runner.run(serve(configuration))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory, or None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# --- From start to end


class Process:
    """What a process that is alone does by itself, and a worker leaves to its supervisor."""

    options: Mapping[str, Any] = {}
    """Options of the server beside those of the configuration."""

    def __init__(self) -> None:
        self._signals = StopSignals()

    def address(self, number: int, listener: Listener) -> Mapping[str, Any]:
        """Return the arguments of ``SMTPServer.listen`` that say where; number: which listener it is, from 0."""
        return listener.arguments

    def ready(self, addresses: list[tuple[str, int] | str]) -> None:
        """Tell that all is listened on."""
        from pillarbox.cli.addresses import address_text

        for address in addresses:
            _log.info("listening on %s", address_text(address))

    async def stopped(self) -> None:
        """Return when the process is to end."""
        await self._signals.stopped()

    def closed(self) -> None:
        """Tell that it has ended."""
        _log.info("closed")


async def serve(configuration: Configuration, process: Process | None = None) -> None:
    """Serve in this process until its end."""
    from pillarbox import SMTPServer
    from pillarbox.program.receiver import Receiver

    process = process or Process()
    try:
        # The program shows all records itself: the option would show them twice.
        server = SMTPServer(configuration.options, **{**process.options, "logger": False})
    except ConfigurationError as error:  # a key that cannot be read
        raise configuration.located(error) from error
    receiver = Receiver()
    try:
        for route in configuration.routes:
            await _start(route)
        await _listen(server, configuration, receiver, process)
        await process.stopped()
    finally:
        await server.close()
        await receiver.close()
        for route in configuration.routes:
            await route.target.close()
    process.closed()


async def _start(route: Route) -> None:
    try:
        await route.target.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{route.source}: {error}" if route.source else str(error)) from error


async def _listen(server: SMTPServer, configuration: Configuration, receiver: Receiver, process: Process) -> None:
    for number, listener in enumerate(configuration.listeners):
        handlers = receiver.handlers(listener.options.name, configuration.routes_of(listener), listener.access)
        overrides = {**listener.overrides, "logger": False, **handlers}
        try:
            await server.listen(**process.address(number, listener), **overrides)
        except (ConfigurationError, OSError, ValueError) as error:
            raise cannot_listen(listener, error) from error
    # Only now: of a start that fails there is one message to read.
    process.ready(server.addresses)


def cannot_listen(listener: Listener, error: ConfigurationError | OSError | ValueError) -> ConfigurationError:
    """Return the error of a listener with its place; ValueError: a descriptor that is no stream socket."""
    place = f"{listener.source}: " if listener.source else ""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{place}{error}")
    return ConfigurationError(f"{place}cannot listen on {listener.address}: {_reason(error)}")


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


class StopSignals:
    """Hears SIGINT and SIGTERM; the second one ends the program at once, after ``at_once``."""

    def __init__(self, at_once: Callable[[], None] | None = None) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._at_once = at_once
        self._stopped: asyncio.Future[str] = self._loop.create_future()
        # Not add_signal_handler: Windows has none, and a second signal must also end a loop that hangs.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._first)

    async def stopped(self) -> None:
        """Return after the first one, and log which it was."""
        _log.info("%s: closing; a second signal ends at once", await self._stopped)

    def _first(self, number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL if self._at_once is None else self._second)
        with suppress(RuntimeError):  # the loop is closed: the program ends anyway
            self._loop.call_soon_threadsafe(self._stopped.set_result, signal.Signals(number).name)

    def _second(self, number: int, _frame: object) -> None:
        if self._at_once is not None:
            self._at_once()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
