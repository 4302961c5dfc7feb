"""One worker: a process of the program that gets its sockets, its configuration and its end from a supervisor.

It ends as the program does, within ``close_timeout``: when it is told to, at SIGTERM, and when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pillarbox import BoundSockets, ConfigurationError
from pillarbox.program.channel import Channel, Handlers
from pillarbox.program.counts import WorkersCounts
from pillarbox.program.run import Process, end_without_threads, loop_factory, serve

if TYPE_CHECKING:
    from pillarbox.cli.config import Configuration
    from pillarbox.program.observed import Observed
    from pillarbox.program.running import Running

__all__ = ["ORIGINAL_PATH", "SIGNALS", "first_of", "work"]

# What a terminal and a service manager send to all processes at once. Blocked while a worker starts: see ``work``.
SIGNALS = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
# The variable with the PYTHONPATH that programs started by a worker are to see.
ORIGINAL_PATH = "PILLARBOX_PYTHONPATH"

Configure = Callable[[Mapping[str, Any]], "Configuration"]

_log = logging.getLogger("pillarbox.program")


def work(number: int, control: int, configure: Configure, log: Callable[[Configuration], None]) -> int:
    """Be a worker until its end, and return the exit status.

    configure: makes a configuration of a snapshot, the first and each that a reload brings; log: begins the log, once.
    """
    path = os.environ.pop(ORIGINAL_PATH, None)
    if path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = path
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            status = runner.run(_work(number, socket.socket(fileno=control), configure, log))
        except Exception as error:
            end_without_threads(1, error)
            raise
        end_without_threads(status)
        return status


async def _work(number: int, control: socket.socket, configure: Configure, log: Callable[[Configuration], None]) -> int:
    worker = Worker(number, configure)
    channel = await worker.connect(control)
    try:
        given = await worker.started()
        if given is not None:
            configuration = worker.configure(given)
            log(configuration)
            await serve(configuration, worker)
    except ConfigurationError as error:
        channel.tell("failed", str(error))
        return 2
    finally:
        worker.close()
        channel.close()
        await asyncio.wait([channel.closed], timeout=1.0)
    return 0


async def first_of(*events: asyncio.Future[Any]) -> None:
    """Return when the first of these is done."""
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)


class Worker(Process):
    """What a worker does otherwise than a process that is alone."""

    channel: Channel

    def __init__(self, number: int, configure: Configure) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.configure = configure
        self._started: asyncio.Future[tuple[Any, ...]] = loop.create_future()
        self._running: asyncio.Future[Running] = loop.create_future()
        self._stopped = asyncio.Event()
        self._newest: Mapping[str, Any] | None = None
        self._counted: Callable[[], Mapping[str, Any]] = dict
        self._sockets: list[list[socket.socket]] = []

    async def connect(self, control: socket.socket) -> Channel:
        """Begin to listen to the supervisor, and to signals."""
        handlers: Handlers = {"start": self._start, "stop": self._stopped.set, "reload": self._reload}
        self.channel = await Channel.over(control, handlers)
        self._on_signals()
        return self.channel

    def _start(self, *given: Any) -> None:
        self._started.set_result(given)

    async def started(self) -> Mapping[str, Any] | None:
        """Take over what the supervisor gives, and return the snapshot; None where the supervisor is gone."""
        await first_of(self._started, self.channel.closed)
        if not self._started.done():
            return None
        snapshot, descriptors, options, workers, memory = self._started.result()
        self._sockets = [[socket.socket(fileno=number) for number in listener] for listener in descriptors]
        self.options = {**options, "limit_counts": WorkersCounts(workers, self.number - 1, memory)}
        return dict(snapshot)

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        for number in SIGNALS - {signal.SIGTERM}:  # they are the supervisor's, who says what is to be done
            loop.add_signal_handler(number, lambda: None)
        # The supervisor blocked them until here, where they do no harm.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def close(self) -> None:
        """Close the sockets that no server has taken, and closed."""
        for listener in self._sockets:
            for sock in listener:
                sock.close()

    async def pages(self, configuration: Configuration) -> BoundSockets | None:
        return None  # the supervisor's tell of all workers

    async def observe(self, observed: Observed, pages: BoundSockets | None) -> None:
        self.channel.handlers["metrics"] = self._counted = observed.snapshot

    async def sockets(self, configuration: Configuration) -> Sequence[BoundSockets]:
        return [BoundSockets(each) for each in self._sockets]

    def ready(self, running: Running) -> None:
        self._running.set_result(running)
        self.channel.tell("ready")

    async def _reload(self, snapshot: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        """Change the configuration, once there is one; return what is wrong with the new one."""
        self._newest = snapshot
        running = await self._running
        await asyncio.sleep(0)  # what else has waited in the channel, while this process did not hear
        if self._newest is not snapshot:
            return ""  # the supervisor did not wait for this one: it has asked for another since
        try:
            await running.reload(self.configure(snapshot), {**self.options, **options})
        except ConfigurationError as error:
            return str(error)
        return ""

    async def watch(self, running: Running) -> None:
        return  # the supervisor does, who may read more

    async def stopped(self) -> None:
        told = asyncio.create_task(self._stopped.wait())
        await first_of(told, self.channel.closed)
        told.cancel()
        if self.channel.closed.done():
            _log.warning("the supervisor is gone: closing")

    def closed(self) -> None:
        if counted := self._counted():
            self.channel.tell("counted", counted)
