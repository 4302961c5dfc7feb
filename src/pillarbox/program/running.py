"""What a process serves: server, targets and handlers of one configuration, and the change to another one.

A session that is open at a change goes on with what it began with; its targets stay until it has ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pillarbox import BoundSockets, ConfigurationError, SMTPServer
from pillarbox.program.advice import cannot_listen
from pillarbox.program.logs import log_to_stderr
from pillarbox.program.observed import Observed
from pillarbox.program.receiver import Receiver
from pillarbox.program.systemd import handed_over
from pillarbox.users import Chain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from pillarbox import Session
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.deliver import Target
    from pillarbox.users import Users

__all__ = ["Running", "bound_sockets", "resolved"]

_POLL = 1.0  # seconds between two looks whether old sessions have ended

_log = logging.getLogger("pillarbox.program")


class Running:
    """A configuration that is served. ``options`` are the server's beside those of the configuration."""

    def __init__(self, configuration: Configuration, options: Mapping[str, Any]) -> None:
        self.configuration = configuration
        self._given = options
        self._changing = asyncio.Lock()  # one change after the other: SIGHUP, and files that are new
        self._changes: asyncio.Task[Any] | None = None  # who has it
        try:
            self.server = SMTPServer(configuration.options, **self._more(configuration), **logins(configuration))
        except ConfigurationError as error:  # a key that cannot be read
            raise configuration.located(error) from error
        self.receiver = Receiver()
        self.observed = Observed(self.server, configuration, self.receiver)
        self._bound: dict[tuple[str, int], tuple[str, int] | str] = {}  # listener → where it listens
        self._started: list[Target | Users] = []
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, sockets: Sequence[BoundSockets | None]) -> None:
        """Start targets and users, and then accept connections; sockets: for each listener what was bound."""
        async with self._changing:
            await self._start(sockets)

    async def _start(self, sockets: Sequence[BoundSockets | None]) -> None:
        await self._start_all(_parts(self.configuration))
        _check_methods(self.configuration)
        for (key, listener), bound in zip(_keyed(self.configuration.listeners), sockets, strict=True):
            await self._listen(self.configuration, key, listener, bound)
        self.observed.state = ""

    async def reload(self, configuration: Configuration, options: Mapping[str, Any] | None = None) -> None:
        """Go over to another configuration; raise ConfigurationError where that cannot be, and change nothing.

        options: in place of those that were given at first.
        """
        async with self._change():
            await self._go_over(configuration, self._given if options is None else options)

    async def renew(self) -> None:
        """Read keys and certificates again; raise ConfigurationError where they cannot be used, and keep the old."""
        async with self._change():
            # Here, and not before: a reload that was under way may have brought another configuration.
            await self._go_over(self.configuration.with_files_again(), self._given)

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        async with self._changing:
            self._changes = asyncio.current_task()
            try:
                yield
            finally:
                self._changes = None

    async def _go_over(self, configuration: Configuration, options: Mapping[str, Any]) -> None:
        configuration = self._with_running(configuration)
        new = [(part, source) for part, source in _parts(configuration) if part not in self._started]
        await self._start_all(new)
        before, self._given = self._given, options
        try:
            _check_methods(configuration)
            await self._change_listeners(configuration)
        except BaseException:
            self._given = before
            await self._close_all(part for part, _ in new)
            raise
        kept = {id(part) for part, _ in _parts(configuration)}
        unwanted = [part for part in self._started if id(part) not in kept]
        self.configuration = configuration
        log_to_stderr(configuration.program)
        if unwanted:
            task = asyncio.create_task(self._retire(unwanted, self.server.connections))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Stop accepting, let running transactions finish, and give back everything."""
        self.observed.state = "closing"
        if self._changes is not None:  # what it would start nobody would close
            self._changes.cancel()
        await self._changing.acquire()
        await self.server.close()
        await self.receiver.close()
        for task in self._retiring:
            task.cancel()
        await self._close_all(list(self._started))
        await self.observed.close()

    # --- Targets and users

    async def _start_all(self, parts: Iterable[tuple[Target | Users, str]]) -> None:
        started: list[Target | Users] = []
        try:
            for part, source in parts:
                await _start(part, source)
                started.append(part)
        except BaseException:
            await self._close_all(started)
            raise
        self._started += started

    async def _close_all(self, parts: Iterable[Target | Users]) -> None:
        for part in parts:
            if part in self._started:
                self._started.remove(part)
            try:
                await part.close()
            except Exception as error:  # noqa: BLE001 - one of the user's own: the others have to be closed too
                _log.error("%s: %s while it closed: %s", part.url, type(error).__name__, error, exc_info=error)

    def _with_running(self, configuration: Configuration) -> Configuration:
        """Return a configuration with the targets and users that run already in place of those that are the same."""
        targets = [route.target for route in self.configuration.routes]
        routes = []
        for route in configuration.routes:
            target = next((each for each in targets if route.target.same_as(each)), route.target)
            routes.append(dataclasses.replace(route, target=target))
        known = [backend.users for backend in self.configuration.users]
        backends = []
        for backend in configuration.users:
            users = next((each for each in known if backend.users.same_as(each)), backend.users)
            backends.append(dataclasses.replace(backend, users=users))
        return dataclasses.replace(configuration, routes=tuple(routes), users=tuple(backends))

    async def _retire(self, parts: list[Target | Users], sessions: list[Session]) -> None:
        """Close targets and users when the sessions that may need them have ended."""
        # Looked at now and then: whoever holds a session knows of its end, but is not this.
        while {id(each) for each in sessions} & {id(each) for each in self.server.connections}:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        await self._close_all(parts)

    # --- Listeners

    def _overrides(self, configuration: Configuration, listener: Listener) -> dict[str, Any]:
        handlers = self.receiver.handlers(listener.options.name, configuration.routes_of(listener), listener.access)
        handlers |= logins(configuration)
        methods = () if configuration.states_methods(listener) else chain(configuration).methods()
        own = {"auth_methods": methods} if methods else {}
        return {**own, **listener.overrides, "logger": False, **self.observed.handlers(handlers)}

    async def _listen(
        self,
        configuration: Configuration,
        key: tuple[str, int],
        listener: Listener,
        bound: BoundSockets | None,
        leaving: Iterable[str] = (),
    ) -> None:
        where: Mapping[str, Any] = {"sock": bound.sockets} if bound is not None else resolved(listener.arguments)
        try:
            self._bound[key] = await self.server.listen(**where, **self._overrides(configuration, listener))
        except (ConfigurationError, OSError, ValueError) as error:
            raise cannot_listen(listener, error, leaving) from error

    async def _change_listeners(self, configuration: Configuration) -> None:
        """Change options and handlers of the listeners that stay, add and remove the others."""
        wanted = _keyed(configuration.listeners)
        added = [(key, listener) for key, listener in wanted if key not in self._bound]
        before = list(self._bound)
        leaving = [key for key in before if key not in dict(wanted)]
        self._reload(configuration)
        try:
            for key, listener in added:
                await self._listen(configuration, key, listener, None, [address for address, _ in leaving])
        except BaseException:
            for key in [key for key in self._bound if key not in before]:
                await self.server.stop_listening(self._bound.pop(key))
            self._reload(self.configuration)
            raise
        for key in leaving:
            await self.server.stop_listening(self._bound.pop(key))

    def _more(self, configuration: Configuration) -> dict[str, Any]:
        """Return the server's options beside those of a configuration."""
        given = self._given
        if configuration.options.cert is not None:  # the one that was made for all workers is for those without one
            given = {name: value for name, value in given.items() if name not in ("key", "cert")}
        return {**given, "logger": False}  # the program shows all records itself: else they came twice

    def _reload(self, configuration: Configuration) -> None:
        own: dict[Any, Any] = {
            self._bound[key]: self._overrides(configuration, listener)
            for key, listener in _keyed(configuration.listeners)
            if key in self._bound
        }
        try:
            self.server.reload(
                configuration.options, listeners=own, **self._more(configuration), **logins(configuration)
            )
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


def _parts(configuration: Configuration) -> list[tuple[Target | Users, str]]:
    """Return all that is started and closed, each with its place in the configuration."""
    return [
        *((backend.users, backend.source) for backend in configuration.users),
        *((route.target, route.source) for route in configuration.routes),
    ]


async def _start(part: Target | Users, source: str) -> None:
    try:
        await part.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}" if source else str(error)) from error


# --- Who may log in


def chain(configuration: Configuration) -> Chain:
    """Return all users of a configuration."""
    return Chain([backend.users for backend in configuration.users])


def logins(configuration: Configuration) -> dict[str, Any]:
    """Return the handlers for AUTH, and for XCLIENT, by which a proxy may name a user."""
    users = chain(configuration)
    return {"on_auth": users.on_auth, "on_scram": users.on_scram}


def _check_methods(configuration: Configuration) -> None:
    """Raise ConfigurationError where mechanisms are announced by which nobody could log in."""
    for listener in configuration.listeners:
        if not configuration.users or "AUTH" in listener.options.disabled_commands:
            continue
        unknown = chain(configuration).cannot(map(str, listener.options.auth_methods))
        if unknown and configuration.states_methods(listener):
            place = listener.source if "auth_methods" in listener.overrides else configuration.sources["auth_methods"]
            known = ", ".join(chain(configuration).methods()) or "nothing"
            raise ConfigurationError(
                f"{place}: none of the users can log in by {', '.join(unknown)} (auth_methods), but by {known}"
            )


def resolved(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where to listen; a name of a socket that was handed over has become its descriptor."""
    name = arguments.get("fd")
    if not isinstance(name, str):
        return arguments
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
                bound.append(await BoundSockets.bind(**resolved(listener.arguments)))
            except (OSError, ValueError) as error:
                raise cannot_listen(listener, error) from error
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound
