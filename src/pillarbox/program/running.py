"""What a process serves: server, targets and handlers of one configuration, and the change to another one.

A session that is open at a change goes on with what it began with; its targets stay until it has ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from pillarbox import BoundSockets, ConfigurationError, SMTPServer
from pillarbox.program.advice import cannot_listen
from pillarbox.program.receiver import Receiver
from pillarbox.program.systemd import handed_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pillarbox import Session
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.deliver import Target
    from pillarbox.program.routes import Route

__all__ = ["Running", "bound_sockets"]

_POLL = 1.0  # seconds between two looks whether old sessions have ended

_log = logging.getLogger("pillarbox.program")


class Running:
    """A configuration that is served. ``options`` are the server's beside those of the configuration."""

    def __init__(self, configuration: Configuration, options: Mapping[str, Any]) -> None:
        self.configuration = configuration
        self._more = {**options, "logger": False}  # the program shows all records itself: else they came twice
        try:
            self.server = SMTPServer(configuration.options, **self._more)
        except ConfigurationError as error:  # a key that cannot be read
            raise configuration.located(error) from error
        self.receiver = Receiver()
        self._bound: dict[tuple[str, int], tuple[str, int] | str] = {}  # listener → where it listens
        self._started: list[Target] = []
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, sockets: Sequence[BoundSockets | None]) -> None:
        """Start the targets, and then accept connections; sockets: for each listener what was bound."""
        await self._start_targets(self.configuration.routes)
        for (key, listener), bound in zip(_keyed(self.configuration.listeners), sockets, strict=True):
            await self._listen(self.configuration, key, listener, bound)

    async def reload(self, configuration: Configuration) -> None:
        """Go over to another configuration; raise ConfigurationError where that cannot be, and change nothing."""
        configuration = dataclasses.replace(configuration, routes=self._with_running(configuration.routes))
        new = [route for route in configuration.routes if route.target not in self._started]
        await self._start_targets(new)
        try:
            await self._change(configuration)
        except BaseException:
            await self._close_targets(route.target for route in new)
            raise
        kept = {id(route.target) for route in configuration.routes}
        unwanted = [target for target in self._started if id(target) not in kept]
        self.configuration = configuration
        if unwanted:
            task = asyncio.create_task(self._retire(unwanted, self.server.connections))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def renew(self) -> None:
        """Read keys and certificates again; raise ConfigurationError where they cannot be used, and keep the old."""
        await self.reload(self.configuration.with_files_again())

    async def close(self) -> None:
        """Stop accepting, let running transactions finish, and give back everything."""
        await self.server.close()
        await self.receiver.close()
        for task in self._retiring:
            task.cancel()
        await self._close_targets(list(self._started))

    # --- Targets

    async def _start_targets(self, routes: Iterable[Route]) -> None:
        started: list[Target] = []
        try:
            for route in routes:
                await _start(route)
                started.append(route.target)
        except BaseException:
            await self._close_targets(started)
            raise
        self._started += started

    async def _close_targets(self, targets: Iterable[Target]) -> None:
        for target in targets:
            if target in self._started:
                self._started.remove(target)
            await target.close()

    def _with_running(self, routes: Sequence[Route]) -> tuple[Route, ...]:
        """Return routes with the targets that run already in place of those that are the same."""
        running = {route.target.url: route.target for route in self.configuration.routes}
        found = []
        for route in routes:
            old = running.get(route.target.url)
            same = old is not None and type(old) is type(route.target) and old.settings == route.target.settings
            found.append(dataclasses.replace(route, target=old) if old is not None and same else route)
        return tuple(found)

    async def _retire(self, targets: list[Target], sessions: list[Session]) -> None:
        """Close targets when the sessions that may need them have ended."""
        # Looked at now and then: whoever holds a session knows of its end, but is not this.
        while {id(each) for each in sessions} & {id(each) for each in self.server.connections}:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        await self._close_targets(targets)

    # --- Listeners

    def _overrides(self, configuration: Configuration, listener: Listener) -> dict[str, Any]:
        handlers = self.receiver.handlers(listener.options.name, configuration.routes_of(listener), listener.access)
        return {**listener.overrides, "logger": False, **handlers}

    async def _listen(
        self, configuration: Configuration, key: tuple[str, int], listener: Listener, bound: BoundSockets | None
    ) -> None:
        where: Mapping[str, Any] = {"sock": bound.sockets} if bound is not None else _arguments(listener)
        try:
            self._bound[key] = await self.server.listen(**where, **self._overrides(configuration, listener))
        except (ConfigurationError, OSError, ValueError) as error:
            raise cannot_listen(listener, error) from error

    async def _change(self, configuration: Configuration) -> None:
        """Change options and handlers of the listeners that stay, add and remove the others."""
        wanted = _keyed(configuration.listeners)
        added = [(key, listener) for key, listener in wanted if key not in self._bound]
        before = list(self._bound)
        self._reload(configuration)
        try:
            for key, listener in added:
                await self._listen(configuration, key, listener, None)
        except BaseException:
            for key in [key for key in self._bound if key not in before]:
                await self.server.stop_listening(self._bound.pop(key))
            self._reload(self.configuration)
            raise
        for key in [key for key in before if key not in dict(wanted)]:
            await self.server.stop_listening(self._bound.pop(key))

    def _reload(self, configuration: Configuration) -> None:
        own: dict[Any, Any] = {
            self._bound[key]: self._overrides(configuration, listener)
            for key, listener in _keyed(configuration.listeners)
            if key in self._bound
        }
        # The certificate that was made for all workers is for a configuration without one.
        more = self._more if configuration.options.cert is None else {"logger": False}
        try:
            self.server.reload(configuration.options, listeners=own, **more)
        except ConfigurationError as error:
            raise configuration.located(error) from error


def _keyed(listeners: Iterable[Listener]) -> list[tuple[tuple[str, int], Listener]]:
    """Return listeners by their address as it is written, and its number among those that are written the same."""
    seen: dict[str, int] = {}
    keyed = []
    for listener in listeners:
        number = seen[listener.address] = seen.get(listener.address, 0) + 1
        keyed.append(((listener.address, number), listener))
    return keyed


async def _start(route: Route) -> None:
    try:
        await route.target.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{route.source}: {error}" if route.source else str(error)) from error


def _arguments(listener: Listener) -> Mapping[str, Any]:
    """Return where to listen; a name of a socket that was handed over has become its descriptor."""
    name = listener.arguments.get("fd")
    if not isinstance(name, str):
        return listener.arguments
    found = handed_over(name)
    if len(found) == 1:
        return {"fd": found[0]}
    problem = f"{len(found)} sockets are called {name!r}: write each as fd:N" if found else f"none is called {name!r}"
    raise ValueError(f"of the sockets that the service manager handed over {problem}")


async def bound_sockets(configuration: Configuration) -> list[BoundSockets]:
    """Bind the addresses of all listeners; raise ConfigurationError for the first that cannot be."""
    bound: list[BoundSockets] = []
    try:
        for listener in configuration.listeners:
            try:
                bound.append(await BoundSockets.bind(**_arguments(listener)))
            except (OSError, ValueError) as error:
                raise cannot_listen(listener, error) from error
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound
