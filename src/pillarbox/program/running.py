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
from pillarbox.program import parts
from pillarbox.program.advice import cannot_listen
from pillarbox.program.logs import log_to_stderr
from pillarbox.program.observed import Observed
from pillarbox.program.parts import Parts
from pillarbox.program.receiver import Receiver
from pillarbox.program.systemd import handed_over
from pillarbox.users import Chain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.deliver import Target
    from pillarbox.users import Users

__all__ = ["Running", "bound_sockets", "resolved"]

_Key = tuple[str, int]  # of a listener: its address as it is written, and its number among those written the same

_log = logging.getLogger("pillarbox.program")


class Running:
    """A configuration that is served. ``options`` are the server's beside those of the configuration."""

    def __init__(self, configuration: Configuration, options: Mapping[str, Any]) -> None:
        self.configuration = configuration
        self._given = options
        self._changing = asyncio.Lock()  # one change after the other: SIGHUP, and files that are new
        self._changes: asyncio.Task[Any] | None = None  # who has it
        self._finishing: asyncio.Task[None] | None = None  # the part of a change that cannot be given up
        self._ending = False
        try:
            self.server = SMTPServer(configuration.options, **self._more(configuration), **logins(configuration))
        except ConfigurationError as error:  # a key that cannot be read
            raise configuration.located(error) from error
        self.receiver = Receiver()
        self.observed = Observed(self.server, configuration, self.receiver)
        self._bound: dict[_Key, BoundSockets] = {}  # what is listened on
        self._closed: set[int] = set()  # descriptors that were handed over, and closed when their listeners went
        self._parts = Parts()

    async def start(self, sockets: Sequence[BoundSockets | None]) -> None:
        """Start targets and users, and then accept connections; sockets: for each listener what was bound."""
        async with self._changing:
            await self._start(sockets)

    async def _start(self, sockets: Sequence[BoundSockets | None]) -> None:
        await self._parts.start(_parts(self.configuration))
        _check_methods(self.configuration)
        for (key, listener), given in zip(_keyed(self.configuration.listeners), sockets, strict=True):
            await self._listen(key, listener, given or await _bound(listener))
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
            if self._ending:  # while this waited for its turn
                raise asyncio.CancelledError
            self._changes = asyncio.current_task()
            try:
                yield
            finally:
                self._changes = None

    async def _go_over(self, configuration: Configuration, options: Mapping[str, Any]) -> None:
        configuration = self._with_running(configuration)
        new = [(part, source) for part, source in _parts(configuration) if part not in self._parts.running]
        await self._parts.start(new, parts.START_TIME)
        before, self._given = self._given, options
        try:
            added = await self._ready_for(configuration)
        except BaseException:
            self._given = before
            await self._parts.close(part for part, _ in new)
            raise
        # From here on it is served, and what began with it needs all that is new.
        self.configuration = configuration
        log_to_stderr(configuration.program)
        self._finishing = asyncio.create_task(self._change_listeners(added))
        try:
            await asyncio.shield(self._finishing)
        except asyncio.CancelledError:
            await asyncio.wait([self._finishing])
            raise
        finally:
            self._finishing = None
        kept = {id(part) for part, _ in _parts(configuration)}
        unwanted = [part for part in self._parts.running if id(part) not in kept]
        if unwanted:
            self._parts.retire(unwanted, self.server.old_connections_ended)

    async def close(self) -> None:
        """Stop accepting, let running transactions finish, and give back everything."""
        self.observed.state, self._ending = "closing", True
        if self._finishing is not None:  # some turns of the loop, and then all that listens is known
            await asyncio.wait([self._finishing])
        if self._changes is not None and not self._changes.cancelling():  # what it would start nobody would close
            self._changes.cancel()
        await self.server.close()
        await self._changing.acquire()
        await self.receiver.close()
        await self._parts.close_all()
        for bound in self._bound.values():
            bound.close()
        await self.observed.close()

    # --- Targets and users

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

    # --- Listeners

    def _overrides(self, configuration: Configuration, listener: Listener) -> dict[str, Any]:
        handlers = self.receiver.handlers(listener.options.name, configuration.routes_of(listener), listener.access)
        handlers |= logins(configuration)
        methods = () if configuration.states_methods(listener) else chain(configuration).methods()
        own = {"auth_methods": methods} if methods else {}
        return {**own, **listener.overrides, "logger": False, **self.observed.handlers(handlers)}

    async def _listen(self, key: _Key, listener: Listener, bound: BoundSockets) -> None:
        try:
            await self.server.listen(sock=bound.sockets, **self._overrides(self.configuration, listener))
        except (ConfigurationError, OSError, ValueError) as error:
            bound.close()
            raise cannot_listen(listener, error) from error
        self._bound[key] = bound

    async def _ready_for(self, configuration: Configuration) -> list[tuple[_Key, Listener, BoundSockets]]:
        """Do all that may fail, and then change options and handlers where a listener stays; return those to add."""
        _check_methods(configuration)
        wanted = _keyed(configuration.listeners)
        added = [(key, listener) for key, listener in wanted if key not in self._bound]
        leaving = [address for address, number in self._bound if (address, number) not in dict(wanted)]
        for _, listener in added:
            self._check(configuration, listener)
        bound = await bound_sockets([listener for _, listener in added], leaving)
        try:
            self._reload(configuration)
        except BaseException:
            for each in bound:
                each.close()
            raise
        return [(key, listener, each) for (key, listener), each in zip(added, bound, strict=True)]

    def _check(self, configuration: Configuration, listener: Listener) -> None:
        """Raise ConfigurationError where a listener could not be: a key that cannot be read, a socket that is gone."""
        options = {**self._more(configuration), **self._overrides(configuration, listener)}
        try:
            SMTPServer(configuration.options, **options)
            if resolved(listener.arguments).get("fd") in self._closed:  # the number may be a client's connection now
                raise ValueError("it was closed when its listener went: this change needs a restart")
        except ValueError as error:
            raise cannot_listen(listener, error) from error

    async def _change_listeners(self, added: list[tuple[_Key, Listener, BoundSockets]]) -> None:
        """Add listeners, and remove those that the configuration has no more."""
        from pillarbox.cli.addresses import address_text

        for key, listener, bound in added:
            await self._listen(key, listener, bound)
            for address in bound.addresses:
                _log.info("listening on %s", address_text(address))
        for key in self._bound.keys() - dict(_keyed(self.configuration.listeners)):
            bound = self._bound.pop(key)
            if key[0].startswith("fd:"):
                self._closed.update(sock.fileno() for sock in bound.sockets)
            await self.server.stop_listening(bound.addresses[0])
            bound.close()

    def _more(self, configuration: Configuration) -> dict[str, Any]:
        """Return the server's options beside those of a configuration."""
        given = self._given
        if configuration.options.cert is not None:  # the one that was made for all workers is for those without one
            given = {name: value for name, value in given.items() if name not in ("key", "cert")}
        return {**given, "logger": False}  # the program shows all records itself: else they came twice

    def _reload(self, configuration: Configuration) -> None:
        own: dict[Any, Any] = {
            self._bound[key].addresses[0]: self._overrides(configuration, listener)
            for key, listener in _keyed(configuration.listeners)
            if key in self._bound
        }
        try:
            self.server.reload(
                configuration.options, listeners=own, **self._more(configuration), **logins(configuration)
            )
        except ConfigurationError as error:
            raise configuration.located(error) from error


def _keyed(listeners: Iterable[Listener]) -> list[tuple[_Key, Listener]]:
    """Return listeners by what tells them apart."""
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


async def bound_sockets(listeners: Iterable[Listener], leaving: Iterable[str] = ()) -> list[BoundSockets]:
    """Bind the addresses of all listeners; raise ConfigurationError for the first that cannot be.

    leaving: addresses that this program still listens on, and that are to go.
    """
    bound: list[BoundSockets] = []
    try:
        for listener in listeners:
            bound += [await _bound(listener, leaving)]
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


async def _bound(listener: Listener, leaving: Iterable[str] = ()) -> BoundSockets:
    try:
        return await BoundSockets.bind(**resolved(listener.arguments))
    except (OSError, ValueError) as error:
        raise cannot_listen(listener, error, leaving) from error
