"""One listener: what its options come to, made once, and the sweep that ends silent connections."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pillarbox.logs import EventLog
from pillarbox.net.bulk import BULK
from pillarbox.net.descriptors import Descriptors
from pillarbox.net.pace import DATA_GRACE
from pillarbox.net.rates import RateStores, rates
from pillarbox.net.refusals import Refusals
from pillarbox.net.shared import shared_counts, shared_limits
from pillarbox.net.tls import TLSContexts
from pillarbox.net.wire import seconds_or_forever
from pillarbox.networks import Networks, client_network
from pillarbox.smtp.service import Hook, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.net.connection import Connection
    from pillarbox.net.dns import HostNames
    from pillarbox.net.endpoint import Endpoint
    from pillarbox.options import Options


_BEYOND_DESCRIPTORS = (
    "new connections are refused: the limit is %s descriptors, raise it by ulimit -n or systemd's LimitNOFILE",
    "connections are accepted again; refused for want of descriptors: %d",
)
_BEYOND_MAX_CLIENTS = (
    "new connections are refused: too many connected clients (max_clients is %d)",
    "connections are accepted again; refused above max_clients: %d",
)
_BEYOND_ADDRESS = (
    "new connections of an address, or of all, are refused: there are too many, or they come too fast",
    "connections are accepted again; refused for their number or rate: %d",
)


class Connections:
    """The live connections of a server, what it refuses, and the one sweep that ends the patience with the others."""

    def __init__(self, log: EventLog, options: Options) -> None:
        self._log = log
        self.share(options)
        self.all: set[Connection] = set()
        self.counted = 0
        self.of_network: dict[str, int] = {}  # where a listener has `max_clients_per_address`
        self.closing = False
        self._emptied: asyncio.Event | None = None
        self.interval = 1.0  # seconds between two sweeps
        self._timer: asyncio.TimerHandle | None = None
        self.descriptors = Descriptors()
        self.beyond_descriptors = Refusals(log, *_BEYOND_DESCRIPTORS)
        self.beyond_max_clients = Refusals(log, *_BEYOND_MAX_CLIENTS)
        self.beyond_address = Refusals(log, *_BEYOND_ADDRESS)

    def share(self, options: Options) -> None:
        """Count with other servers from now on, where ``limit_counts`` says so."""
        self.shared = shared_counts(options, self._log)

    def watch(self, timeout: float | None) -> None:
        """Sweep often enough for this timeout: it is kept to within a sixteenth, and to a second at most."""
        if timeout is not None:
            self.interval = min(self.interval, max(0.02, timeout / 16))

    def add(self, connection: Connection) -> None:
        """Begin to watch a connection."""
        self.all.add(connection)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.interval, self._sweep, loop)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is over."""
        self.all.discard(connection)
        self.uncount(connection)
        if self._emptied is not None and not self.all:
            self._emptied.set()

    def uncount(self, connection: Connection) -> None:
        """Give back the places of a connection."""
        if connection.counted:
            connection.counted = False
            self.counted -= 1
            connection.listener.endpoint.counted -= 1
        if connection.network is not None:
            self.count_network(connection, None)
        if connection.places and connection.listener.shared is not None:
            connection.listener.shared.leaves(connection)

    def count_network(self, connection: Connection, network: str | None) -> None:
        """Count a connection where its client comes from, and no longer where it was counted before."""
        counted = self.of_network
        if connection.network is not None:
            counted[connection.network] -= 1
            if not counted[connection.network]:
                del counted[connection.network]
        if network is not None:
            counted[network] = counted.get(network, 0) + 1
        connection.network = network

    async def emptied(self, seconds: float | None) -> None:
        """Return when no connection is left, or the time is over."""
        if self.all:
            self._emptied = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not by the clock: while a handler blocks the event loop nobody can be heard, and nobody loses patience.
        interval = self.interval
        for connection in self.all:
            connection.check_time(interval)
        self._timer = loop.call_later(interval, self._sweep, loop) if self.all else None


class Listener:
    """What one ``listen()`` offers, and how its connections reach the server."""

    def __init__(
        self,
        options: Options,
        hooks: Mapping[str, Hook],
        connections: Connections,
        names: HostNames,
        *,
        stores: RateStores,
        overrides: Mapping[str, Any],
    ) -> None:
        self.options = options
        self.overrides = overrides
        self.overridden = frozenset(overrides)  # the options that are this listener's own
        self.endpoint: Endpoint  # where it has its connections from
        self.connections = connections
        log = EventLog(options.logger, options.component)
        own = "max_clients" in self.overridden
        self.beyond_max_clients = Refusals(log, *_BEYOND_MAX_CLIENTS) if own else connections.beyond_max_clients
        self.share(None)
        self.names = names
        counted = rates(options, stores, log)
        self.service = Service(options, hooks, log, counted)
        self.tls = TLSContexts(options, self._sni_problem)
        self.silence = seconds_or_forever(options.socket_timeout)
        self.reply_time = seconds_or_forever(options.reply_timeout)
        self.command_time = options.command_timeout
        self.data_grace = options.socket_timeout or DATA_GRACE
        self.longest = options.max_session_duration
        self._unlimited = Networks(options.unlimited_hosts)
        # Whether more than the number of all connections decides who may come in.
        self.looks_at_addresses = options.max_clients_per_address is not None or (
            counted is not None and counted.limits("connections")
        )
        self.bulk_buffer = memoryview(bytearray(BULK))
        self.proxies = Networks(options.use_proxy) or None
        self.ignored = Networks(options.ignored_hosts) or None
        quiet = dict.fromkeys(("on_connect", "on_close", "on_error"))
        self.quiet_service = Service(options, {**hooks, **quiet}, log)
        self.tls_first = options.secure and not options.secured
        if self.tls_first:
            _ = self.tls.context  # a self-signed certificate is made now, not while the first client waits
        for seconds in (
            options.socket_timeout,
            options.reply_timeout,
            options.command_timeout,
            options.max_session_duration,
        ):
            connections.watch(seconds)
        if self.proxies:
            connections.watch(options.proxy_timeout)

    def share(self, place: str | None) -> None:
        """Count with other servers, where ``limit_counts`` says so; place: what is listened on, if others can too."""
        own = "max_clients" in self.overridden
        self.shared = shared_limits(self.options, self.connections.shared, place, own_limit=own)

    def renewed(self, tls_options: Mapping[str, Any]) -> tuple[Options, TLSContexts]:
        """Return options and contexts with these changes, without changing anything yet."""
        options = self.options.replace(**tls_options)
        return options, TLSContexts(options, self._sni_problem)

    def has_descriptors(self, descriptor: int) -> bool:
        """Whether the process is far from its limit when a new connection has this descriptor; note it if not."""
        connections = self.connections
        descriptors = connections.descriptors
        if descriptor < descriptors.room and len(connections.all) < descriptors.most:
            return True
        connections.beyond_descriptors.note(None, descriptors.limit)
        return False

    def opened(self, connection: Connection) -> None:
        """Note a new connection."""
        self.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """Note the end of a connection."""
        self.connections.remove(connection)

    def admits(self, connection: Connection) -> bool:
        """Count a connection, unless ``max_clients`` are there: on the listener that has its own limit, or anywhere."""
        limit = self.options.max_clients
        there = self.endpoint.counted if "max_clients" in self.overridden else self.connections.counted
        if limit is not None and there >= limit:
            self.beyond_max_clients.note(connection.session, limit)
            return False
        self.connections.counted += 1
        self.endpoint.counted += 1
        connection.counted = True
        return True

    def end_own_refusals(self) -> None:
        """Say how many were refused by this listener's own limit, since no more will be."""
        if self.beyond_max_clients is not self.connections.beyond_max_clients:
            self.beyond_max_clients.end()

    def end_refusals(self) -> None:
        """Say how many were refused, since no more will be."""
        self.beyond_max_clients.end()
        self.connections.beyond_descriptors.end()
        self.connections.beyond_address.end()

    def admits_of_address(self, connection: Connection) -> bool:
        """Count a connection of an address, unless ``max_clients_per_address`` are there."""
        limit, address = self.options.max_clients_per_address, connection.session.remote_address
        network = client_network(address) if limit is not None and address and address not in self._unlimited else None
        there = (
            self.connections.of_network.get(network, 0) if network is not None and network != connection.network else 0
        )
        if limit is not None and there >= limit:
            return False
        self.connections.count_network(connection, network)
        return True

    def _sni_problem(self, error: BaseException, server_name: str | None) -> None:
        self.service.log.event(
            logging.ERROR, "tls", None, "sni_callback failed for %s, the default is used", server_name, error=error
        )
