"""What an operator sees of the running program: metrics and traces, where the configuration has them, and nothing else.

Neither costs anything, nor is imported, where it is off.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from pillarbox import BoundSockets, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pillarbox import SMTPServer
    from pillarbox.cli.config import Configuration
    from pillarbox.program.channel import Channel
    from pillarbox.program.metrics import Counted, Snapshots
    from pillarbox.program.receiver import Receiver
    from pillarbox.program.status import Status
    from pillarbox.program.traces import Traces

__all__ = ["Observed", "Workers", "bound_pages"]

# How long a page waits for a worker; of one that is busy for longer it has what was known before.
_PATIENCE = 2.0

_log = logging.getLogger("pillarbox.program")


class Observed:
    """The metrics and traces of one process; raises ConfigurationError where their extra is not installed.

    state: why the process is not ready, or empty.
    """

    def __init__(self, server: SMTPServer, configuration: Configuration, receiver: Receiver) -> None:
        self.state = "starting"
        self._status: Status | None = None
        self._counted: Counted | None = None
        self._traces: Traces | None = None
        if configuration.program.metrics is not None:
            self._counted = _counted(server, configuration, receiver)
        if configuration.program.traces is not None:
            self._traces = _traces(configuration, receiver)

    def snapshot(self) -> dict[str, Any]:
        """Return what this process has counted, for a page that is made elsewhere; nothing where metrics are off."""
        return {} if self._counted is None else self._counted.snapshot()

    async def serve(self, sockets: BoundSockets) -> None:
        """Serve the pages there."""
        self._status = await _served(sockets, self._snapshots, lambda: self.state)

    async def _snapshots(self) -> Snapshots:
        from pillarbox.program.metrics import Snapshots

        return Snapshots({"1": self.snapshot()})

    def handlers(self, own: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        """Return the handlers of a listener, traced if they are to be."""
        return own if self._traces is None else self._traces.handlers(own)

    async def close(self) -> None:
        """Stop serving the pages, and send the last spans."""
        if self._status is not None:
            await self._status.close()
        if self._traces is not None:
            await self._traces.close()


def _counted(server: SMTPServer, configuration: Configuration, receiver: Receiver) -> Counted:
    from pillarbox.program.metrics import Counted

    counted = Counted(server.statistics, [route.target.url for route in configuration.routes])
    receiver.observers.append(counted.deliveries.note)
    return counted


def _traces(configuration: Configuration, receiver: Receiver) -> Traces:
    from pillarbox.program.traces import Traces

    settings = configuration.program
    traces = Traces(settings.traces or "", addresses=settings.trace_addresses)
    receiver.observers.append(traces.delivered)
    return traces


# --- The pages


async def bound_pages(configuration: Configuration) -> BoundSockets | None:
    """Return what the pages are served on, if there are to be any; raise ConfigurationError where that cannot be."""
    address = configuration.program.metrics
    if address is None:
        return None
    from pillarbox.cli.addresses import listen_arguments
    from pillarbox.program.advice import reason
    from pillarbox.program.running import resolved

    try:
        return await BoundSockets.bind(**resolved(listen_arguments(address)))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"metrics: cannot listen on {address}: {reason(error)}") from error


async def _served(
    sockets: BoundSockets, collect: Callable[[], Awaitable[Snapshots]], why_not_ready: Callable[[], str]
) -> Status:
    from pillarbox.cli.addresses import address_text
    from pillarbox.program.status import Status

    status = Status(collect, why_not_ready)
    await status.start(sockets)
    for address in sockets.addresses:
        _log.info("metrics on %s", address_text(address))
    return status


# --- Several processes


class Place(Protocol):
    """A worker's place, as the supervisor has it."""

    number: int
    ready: bool
    channel: Channel | None


class Workers:
    """The pages of a supervisor, which tell of all its workers; state: as in ``Observed``."""

    def __init__(self, configuration: Configuration, places: Sequence[Place]) -> None:
        from pillarbox.program.metrics import History

        self.state = "starting"
        self._configuration = configuration
        self._places = places
        self._history = History()
        self._bound: BoundSockets | None = None
        self._status: Status | None = None

    async def bind(self) -> None:
        """Serve the pages, if there are to be any; raises ConfigurationError where nobody can listen there."""
        self._bound = await bound_pages(self._configuration)
        if self._bound is not None:
            self._status = await _served(self._bound, self._snapshots, self._why_not_ready)

    def _why_not_ready(self) -> str:
        there = any(place.ready and place.channel is not None for place in self._places)
        return self.state or ("" if there else "no worker is ready")

    async def _snapshots(self) -> Snapshots:
        await asyncio.gather(*(self._ask(place) for place in self._places))
        return self._history.snapshots()

    async def _ask(self, place: Place) -> None:
        channel = place.channel
        if channel is None or not place.ready:
            return
        try:
            answer = await asyncio.wait_for(channel.call("metrics"), _PATIENCE)
        except (ConnectionError, TimeoutError):
            return
        if place.channel is channel:  # it may have died meanwhile
            self._history.note(str(place.number), answer)

    def note(self, place: Place, snapshot: Mapping[str, Any]) -> None:
        """Keep what a worker has counted until its end, which it says by itself."""
        self._history.note(str(place.number), snapshot)

    def ended(self, place: Place) -> None:
        """Note that a worker is gone: what it had counted when it was last heard of stays on the page."""
        self._history.end(str(place.number))

    async def close(self) -> None:
        """Stop serving the pages."""
        if self._status is not None:
            await self._status.close()
        if self._bound is not None:
            self._bound.close()
