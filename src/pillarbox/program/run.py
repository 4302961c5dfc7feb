"""One process of the program, from its start to its end: targets, server, signals.

All that is heavy is imported inside the functions that need it: the program is to listen 400 ms after its start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.program import systemd
from pillarbox.program.privileges import account
from pillarbox.program.running import Running, bound_sockets

if TYPE_CHECKING:
    from pillarbox import BoundSockets
    from pillarbox.cli.config import Configuration
    from pillarbox.program.observed import Observed

__all__ = [
    "Process",
    "ProgramFailed",
    "StopSignals",
    "end_without_threads",
    "give_up_root",
    "hear_hangup",
    "loop_factory",
    "on_hangup",
    "read_again",
    "run",
    "serve",
    "watch_files",
]

# How long (seconds) threads may take to end, after everything else.
THREADS_TIME = 2.0

_log = logging.getLogger("pillarbox.program")


def run(configuration: Configuration) -> None:
    """Serve until a signal says otherwise, on uvloop where it is installed; in several processes where it says so."""
    from pillarbox.program.cpus import number_of_workers

    workers = number_of_workers(configuration.program.workers)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            if workers > 1:
                from pillarbox.program.workers import Supervisor

                runner.run(Supervisor(configuration, workers).run())
            else:
                runner.run(serve(configuration))
        except Exception as error:
            end_without_threads(2 if isinstance(error, ConfigurationError) else 1, error)
            raise
        if hasattr(signal, "SIGHUP"):  # Python gives all other handlers back before its end, and it would kill
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        end_without_threads(0)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory, or None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def end_without_threads(status: int, failure: Exception | None = None) -> None:
    """End this process in some seconds, if it has not ended by itself by then.

    Python waits for all threads, and a thread cannot be ended: that of a target may hang, on a disk that is gone.
    failure: why it ends, which nobody would say then.
    """

    def end() -> None:
        if failure is not None:
            foreseen = isinstance(failure, (ConfigurationError, ProgramFailed))
            _log.error("%s", failure, exc_info=None if foreseen else failure)
        _log.error("a thread did not end within %g seconds after all else: the process ends without it", THREADS_TIME)
        os._exit(status)

    timer = threading.Timer(THREADS_TIME, end)
    timer.daemon = True
    timer.start()


# --- From start to end


class ProgramFailed(Exception):
    """The program cannot go on, and not for its configuration; the text is for its user."""


class Process:
    """What a process that is alone does by itself, and a worker leaves to its supervisor."""

    options: Mapping[str, Any] = {}
    """Options of the server beside those of the configuration."""

    def __init__(self) -> None:
        self._signals = StopSignals()
        self._hangup = hear_hangup()
        self._hearing: asyncio.Task[None] | None = None

    async def sockets(self, configuration: Configuration) -> Sequence[BoundSockets]:
        """Return what is listened on, for each listener of the configuration."""
        return await bound_sockets(configuration.listeners)

    async def pages(self, configuration: Configuration) -> BoundSockets | None:
        """Return what the pages for operators are served on, if there are any."""
        from pillarbox.program.observed import bound_pages

        return await bound_pages(configuration)

    async def observe(self, observed: Observed, pages: BoundSockets | None) -> None:
        """Let the operator see what the process does."""
        if pages is not None:
            await observed.serve(pages)

    def ready(self, running: Running) -> None:
        """Tell that all is listened on, and from now on read the configuration again when that is asked for."""
        from pillarbox.cli.addresses import address_text

        self._hearing = on_hangup(self._hangup, lambda: read_again(running.configuration, running.reload))
        for address in running.server.addresses:
            _log.info("listening on %s", address_text(address))
        systemd.notify("READY=1")

    async def watch(self, running: Running) -> None:
        """Use keys and certificates that have changed, until it is cancelled."""
        await watch_files(lambda: running.configuration.files, running.renew)

    async def stopped(self) -> None:
        """Return when the process is to end."""
        await self._signals.stopped()
        if self._hearing is not None:
            self._hearing.cancel()
        systemd.notify("STOPPING=1")

    def closed(self) -> None:
        """Tell that it has ended."""
        _log.info("closed")


async def serve(configuration: Configuration, process: Process | None = None) -> None:
    """Serve in this process until its end."""
    process = process or Process()
    bound = await process.sockets(configuration)
    pages = None
    try:
        pages = await process.pages(configuration)
        running = Running(give_up_root(configuration), process.options)
        await _serve(running, bound, process, pages)
    finally:
        for each in (*bound, *([pages] if pages is not None else [])):
            each.close()
    process.closed()


async def _serve(running: Running, bound: Sequence[BoundSockets], process: Process, pages: BoundSockets | None) -> None:
    watching = asyncio.create_task(process.watch(running))
    stopped = asyncio.create_task(process.stopped())
    try:
        await process.observe(running.observed, pages)
        if await _started(running, bound, stopped):
            process.ready(running)
            await stopped
    finally:
        watching.cancel()
        stopped.cancel()
        await running.close()


async def _started(running: Running, bound: Sequence[BoundSockets], stopped: asyncio.Task[None]) -> bool:
    """Start; return False where the end comes first: a target may wait for a server that does not answer."""
    starting = asyncio.create_task(running.start(bound))
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return False
        await starting
        return True
    finally:
        if starting.cancel():
            await asyncio.wait([starting])


def give_up_root(configuration: Configuration) -> Configuration:
    """Become the user of the configuration, if there is one; return it with the keys that only root could read."""
    if configuration.program.user is None:
        return configuration
    chosen = account(configuration.program.user)
    configuration = configuration.with_files_read()
    chosen.become()
    return configuration


async def watch_files(files: Callable[[], Sequence[str]], renew: Callable[[], Awaitable[object]]) -> None:
    """Renew whenever some of the files of keys and certificates have changed."""
    from pillarbox.program.files import changed

    async def renewed() -> bool:
        _log.info("certificate files have changed")
        return await _tried(renew())

    await changed(files, renewed)


async def _tried(reloading: Awaitable[object]) -> bool:
    """Wait for a change of configuration; a mistake in the new one is logged, and the old one stays."""
    try:
        await reloading
    except ConfigurationError as error:
        _log.error("not reloaded, all stays as it was: %s", error)
        return False
    except Exception as error:  # noqa: BLE001 - a target or users of one's own: later changes must still come
        _log.error("not reloaded: %s: %s", type(error).__name__, error, exc_info=error)
        return False
    return True


async def read_again(configuration: Configuration, reload: Callable[[Configuration], Awaitable[object]]) -> None:
    """Read the configuration file again, and go over to what stands there."""

    async def reading() -> None:
        new = configuration.again()
        fixed = new.fixed_unlike(configuration)
        await reload(new.with_fixed_of(configuration) if fixed else new)
        if fixed:
            _log.warning("needs a restart, and stays as it was: %s in [program]", ", ".join(fixed))
        _log.info("reloaded")

    systemd.reloading()
    await _tried(reading())
    systemd.notify("READY=1")


def hear_hangup() -> asyncio.Event:
    """Return what SIGHUP sets from now on: one that comes before all is ready would end the program."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def hear(_number: int, _frame: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the program ends anyway
            loop.call_soon_threadsafe(asked.set)

    # Not add_signal_handler: a loop that is closed gives the signal back, and one that comes then would kill.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # see the command serve
    return asked


def on_hangup(asked: asyncio.Event, read: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Begin this when it is asked for, once at a time; what comes meanwhile lets it begin again.

    Who has the task cancels it at the end: a reload that is under way then is none, and nobody is told that it is done.
    """

    async def forever() -> None:
        while True:
            await asked.wait()
            asked.clear()
            await read()

    return asyncio.get_running_loop().create_task(forever())


class StopSignals:
    """Hears SIGINT and SIGTERM; the second one ends the program at once, after ``at_once``."""

    def __init__(self, at_once: Callable[[], None] | None = None) -> None:
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
            self._loop.call_soon_threadsafe(self._hear, signal.Signals(number).name)

    def _hear(self, name: str) -> None:
        if not self._stopped.done():  # nobody waits any more: the program has failed, and ends already
            self._stopped.set_result(name)

    def _second(self, number: int, _frame: object) -> None:
        if self._at_once is not None:
            self._at_once()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
