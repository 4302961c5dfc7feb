"""One listener: what its options come to, made once, and the sweep that ends silent connections."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pillarbox.logs import EventLog
from pillarbox.net.bulk import BULK
from pillarbox.net.connection import Connection
from pillarbox.net.tls import TLSContexts
from pillarbox.net.wire import seconds_or_forever
from pillarbox.networks import Networks
from pillarbox.smtp.service import Hook, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.net.dns import HostNames
    from pillarbox.options import Options


class Connections:
    """The live connections of a server, and the one sweep that ends their patience."""

    def __init__(self) -> None:
        self.all: set[Connection] = set()
        self.counted = 0
        self.closing = False
        self._emptied: asyncio.Event | None = None
        self.interval = 1.0  # seconds between two sweeps
        self._timer: asyncio.TimerHandle | None = None

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
        if connection.counted:
            connection.counted = False
            self.counted -= 1
            connection.listener.counted -= 1
        if self._emptied is not None and not self.all:
            self._emptied.set()

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
        ended = []
        for connection in self.all:
            if connection.waiter is not None:
                connection.patience -= interval
                if connection.patience <= 0.0:
                    ended.append(connection)
        for connection in ended:
            connection.expire()
        self._timer = loop.call_later(interval, self._sweep, loop) if self.all else None


class Listener:
    """What one ``listen()`` offers, and how its connections reach the server."""

    def __init__(
        self,
        options: Options,
        hooks: Mapping[str, Hook],
        connections: Connections,
        names: HostNames,
        overridden: frozenset[str] = frozenset(),
    ) -> None:
        self.options = options
        self.overridden = overridden  # the options that are this listener's own
        self.counted = 0
        self.connections = connections
        self.names = names
        log = EventLog(options.logger, options.component)
        self.service = Service(options, hooks, log)
        self.tls = TLSContexts(options, self._sni_problem)
        self.silence = seconds_or_forever(options.socket_timeout)
        self.bulk_buffer = memoryview(bytearray(BULK))
        self.proxies = Networks(options.use_proxy) or None
        self.ignored = Networks(options.ignored_hosts) or None
        quiet = dict.fromkeys(("on_connect", "on_close", "on_error"))
        self.quiet_service = Service(options, {**hooks, **quiet}, log)
        self.tls_first = options.secure and not options.secured
        if self.tls_first:
            _ = self.tls.context  # a self-signed certificate is made now, not while the first client waits
        connections.watch(options.socket_timeout)
        if self.proxies:
            connections.watch(options.proxy_timeout)

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self, asyncio.get_running_loop())

    def renewed(self, tls_options: Mapping[str, Any]) -> tuple[Options, TLSContexts]:
        """Return options and contexts with these changes, without changing anything yet."""
        options = self.options.replace(**tls_options)
        return options, TLSContexts(options, self._sni_problem)

    def opened(self, connection: Connection) -> None:
        """Note a new connection."""
        self.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """Note the end of a connection."""
        self.connections.remove(connection)

    def admits(self, connection: Connection) -> bool:
        """Count a connection, unless ``max_clients`` are there: on the listener that has its own limit, or anywhere."""
        limit = self.options.max_clients
        there = self.counted if "max_clients" in self.overridden else self.connections.counted
        if limit is not None and there >= limit:
            return False
        self.connections.counted += 1
        self.counted += 1
        connection.counted = True
        return True

    def _sni_problem(self, error: BaseException, server_name: str | None) -> None:
        self.service.log.event(
            logging.ERROR, "tls", None, "sni_callback failed for %s, the default is used", server_name, error=error
        )
