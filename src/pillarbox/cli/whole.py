"""What a configuration must be as a whole: listeners and routes fit together, and none of it is an open relay."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.cli.addresses import listen_arguments
from pillarbox.cli.document import located
from pillarbox.program.access import everyone
from pillarbox.program.settings import likely
from pillarbox.program.systemd import handed_over

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.program.routes import Routes

__all__ = ["checked"]


def checked(configuration: Configuration) -> Configuration:
    """Return the configuration, closed where it has to be; raise ConfigurationError, with the place."""
    _check_listeners(configuration)
    _check_routes(configuration)
    return _closed(configuration)


def _check_listeners(configuration: Configuration) -> None:
    places = [(each.address, each.arguments, each.source or "--listen") for each in configuration.listeners]
    if configuration.program.metrics is not None:
        pages = configuration.program.metrics
        places.append((pages, listen_arguments(pages), "metrics"))
    taken: list[Mapping[str, Any]] = []
    for address, arguments, source in places:
        if arguments.get("port") == 0:  # each is another one
            continue
        if (place := _known(arguments)) in taken:
            raise ConfigurationError(located(source, f"{address} is given twice"))
        taken.append(place)


def _known(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where to listen; of a socket with a name its descriptor, where this process is the one that has it."""
    name = arguments.get("fd")
    found = handed_over(name) if isinstance(name, str) else []
    return {"fd": found[0]} if len(found) == 1 else arguments


def _check_routes(configuration: Configuration) -> None:
    addresses = [listener.address for listener in configuration.listeners]
    for route in configuration.routes:
        for address in route.listeners:
            if address not in addresses:
                raise ConfigurationError(
                    located(route.source, f"listeners: there is no listener {address!r}{likely(address, addresses)}")
                )
    for listener in configuration.listeners:
        if not configuration.routes_of(listener).all:
            raise ConfigurationError(located(listener.source, f"no [[deliver]] is for the listener {listener.address}"))


def _closed(configuration: Configuration) -> Configuration:
    """Return the configuration without open relays: where messages leave for anywhere, nobody unknown may send them."""
    listeners = tuple(
        _closed_listener(listener, configuration.routes_of(listener), users=bool(configuration.users))
        for listener in configuration.listeners
    )
    return dataclasses.replace(configuration, listeners=listeners)


def _closed_listener(listener: Listener, routes: Routes, *, users: bool) -> Listener:
    relay = next((route for route in routes.all if route.target.relays and route.recipients.unbounded), None)
    if relay is None or listener.local:
        return listener
    access, options = listener.access, listener.options
    advice = (
        "anyone could send them. Say which recipients are yours (accept in [access], or recipients in that"
        " [[deliver]]), or who may log in ([[users]])"
    )
    if not listener.loopback and (
        everyone(options.use_xclient) or (access.networks_given and everyone(options.use_proxy))
    ):
        advice = "anyone could say by XCLIENT or PROXY who it is. List your proxies in use_xclient and use_proxy"
    elif options.must_authenticate:
        return listener
    elif access.accept is None and not access.everywhere and (users or access.networks_given):
        return dataclasses.replace(listener, access=access.accepting([]))
    elif access.accept is not None and not access.open_to_all:
        return listener
    raise ConfigurationError(
        located(
            listener.source,
            f"listener {listener.address} would be an open relay: {relay.target.url} takes messages for anyone, and"
            f" {advice}",
        )
    )
