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
from pillarbox.program.channel import Channel
from pillarbox.program.counts import AskedCounts
from pillarbox.program.run import Process, loop_factory, serve

if TYPE_CHECKING:
    from pillarbox.cli.config import Configuration
    from pillarbox.program.running import Running

__all__ = ["ORIGINAL_PATH", "SIGNALS", "work"]

# What a terminal and a service manager send to all processes at once. Blocked while a worker starts: see ``work``.
SIGNALS = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
# The variable with the PYTHONPATH that programs started by a worker are to see.
ORIGINAL_PATH = "PILLARBOX_PYTHONPATH"

Configure = Callable[[Mapping[str, Any]], "Configuration"]

_log = logging.getLogger("pillarbox.program")


def work(number: int, control: int, configure: Configure) -> int:
    """Be a worker until its end, and return the exit status; configure: makes a configuration of a snapshot."""
    path = os.environ.pop(ORIGINAL_PATH, None)
    if path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = path
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_work(number, socket.socket(fileno=control), configure))


async def _work(number: int, control: socket.socket, configure: Configure) -> int:
    started: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
    channel = await Channel.over(control, {"start": lambda *given: started.set_result(given)})
    worker = Worker(number, channel, configure)
    await _first_of(started, channel.closed)
    if not started.done():
        return 0
    snapshot, descriptors, options = started.result()
    try:
        worker.inherit(descriptors, options)
        await serve(configure(snapshot), worker)
    except ConfigurationError as error:
        channel.tell("failed", str(error))
        return 2
    finally:
        channel.close()
        await asyncio.wait([channel.closed], timeout=1.0)
    return 0


async def _first_of(*events: asyncio.Future[Any]) -> None:
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)


class Worker(Process):
    """What a worker does otherwise than a process that is alone."""

    def __init__(self, number: int, channel: Channel, configure: Configure) -> None:
        self.number = number
        self._configure = configure
        self.channel = channel
        self._stopped = asyncio.Event()
        self._sockets: list[list[socket.socket]] = []
        self.channel.handlers["stop"] = self._stopped.set
        self._on_signals()

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        for number in SIGNALS - {signal.SIGTERM}:  # they are the supervisor's, who says what is to be done
            loop.add_signal_handler(number, lambda: None)
        # The supervisor blocked them until here, where they do no harm.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def inherit(self, descriptors: list[list[int]], options: dict[str, Any]) -> None:
        """Take over the sockets, for each listener its own, and options beside the configuration's."""
        self._sockets = [[socket.socket(fileno=number) for number in listener] for listener in descriptors]
        self.options = {**options, "limit_counts": AskedCounts(self.channel)}

    async def sockets(self, configuration: Configuration) -> Sequence[BoundSockets]:
        return [BoundSockets(each) for each in self._sockets]

    def ready(self, running: Running) -> None:
        async def reload(snapshot: Mapping[str, Any]) -> str:
            try:
                await running.reload(self._configure(snapshot))
            except ConfigurationError as error:
                return str(error)
            return ""

        self.channel.handlers["reload"] = reload
        self.channel.tell("ready")

    async def watch(self, running: Running) -> None:
        return  # the supervisor does, who may read more

    async def stopped(self) -> None:
        told = asyncio.create_task(self._stopped.wait())
        await _first_of(told, self.channel.closed)
        told.cancel()
        if self.channel.closed.done():
            _log.warning("worker %d: its supervisor is gone: closing", self.number)

    def closed(self) -> None:
        return
