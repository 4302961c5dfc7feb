"""``SMTPServer``: listeners, handlers and the life of a server; the protocol is in ``smtp``, sockets are in ``net``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any, cast

from pillarbox import optioncheck
from pillarbox.errors import ConfigurationError
from pillarbox.handlers import HOOKS, Handlers
from pillarbox.logs import EventLog
from pillarbox.net import sockets
from pillarbox.net.dns import DNSResolver, HostNames
from pillarbox.net.endpoint import Endpoint
from pillarbox.net.listener import Connections, Listener
from pillarbox.net.rates import RateStores
from pillarbox.net.tls import TLSContexts
from pillarbox.options import Options
from pillarbox.smtp.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from pillarbox.keywords import OptionKeywords
    from pillarbox.session import Session
    from pillarbox.statistics import Statistics

# What update_secure_context may change: key, certificate and the map of server names.
_RENEWABLE = ("key", "cert", "ca", "key_password", "sni_options", "sni_callback", "ssl_context")
_WHOLE_SERVERS = ("close_timeout", "limit_counts")


class SMTPServer(Handlers):
    """An SMTP or LMTP server; the options are keywords, the handlers options or methods of a subclass.

    options: an ``Options`` or a mapping of Python names; keywords override it. Raises ConfigurationError for a
    wrong name, type or combination, and for a key or certificate that cannot be used.

        server = SMTPServer(auth_optional=True, on_data=deliver)
        await server.listen(2525, "127.0.0.1")
        await server.serve_forever()
    """

    def __init__(
        self, options: Options | Mapping[str, Any] | None = None, /, **overrides: Unpack[OptionKeywords]
    ) -> None:
        self.options = Options.make(options, **overrides)
        for hook in HOOKS:  # an option beats a method
            given = getattr(self.options, hook)
            if given is not None:
                setattr(self, hook, given)
        self._log = EventLog(self.options.logger, self.options.component)
        # What cannot be used, a key or an extension, is an error now, not at the first connection.
        TLSContexts(self.options)
        Service(self.options, dict.fromkeys(HOOKS), self._log)
        self._connections = Connections(self._log, self.options)
        self._rate_stores = RateStores(self.options.limit_counts)
        self._endpoints: list[Endpoint] = []
        self._socket_endpoint: Endpoint | None = None
        self._dns = DNSResolver()
        self._names: dict[int, HostNames] = {}
        self._closed: asyncio.Event | None = None
        self._closing: asyncio.Task[None] | None = None

    # --- Listening

    async def listen(
        self,
        port: int | None = None,
        host: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        sock: socket.socket | Sequence[socket.socket] | None = None,
        fd: int | None = None,
        backlog: int = 1024,
        **overrides: Unpack[OptionKeywords],
    ) -> tuple[str, int] | str:
        """Accept connections, and return what was bound: ``(host, port)`` or a path.

        Give a port (0: any free one) and a host (None: all interfaces), or ``path`` of a Unix socket, or a bound
        ``sock`` (or several, see ``BoundSockets``), or its ``fd``. Call it again for more listeners; keywords are
        options of this listener alone. backlog: connections that may wait to be accepted. With port 0 and no host,
        IPv4 and IPv6 may get different ports: ``addresses`` has both. Raises ConfigurationError for bad options,
        OSError where the address cannot be bound, RuntimeError after ``close()``.
        """
        given = [
            name for name, value in (("port", port), ("path", path), ("sock", sock), ("fd", fd)) if value is not None
        ]
        if len(given) != 1:
            raise ConfigurationError(
                f"listen() takes one of port, path, sock and fd, not {' and '.join(given) or 'none'}"
            )
        if port is not None and not (isinstance(port, int) and 0 <= port <= 65535):
            raise ConfigurationError(f"listen(): port must be a number from 0 to 65535, not {port!r}")
        given_sockets = sockets.listed(sock) if fd is None else [socket.socket(fileno=fd)]
        endpoint = Endpoint(self._listener(overrides))
        self._endpoints.append(endpoint)
        self._connections.descriptors.measure(len(self._endpoints) + max(0, len(given_sockets) - 1))
        try:
            await endpoint.bind(port, host, path, given_sockets, backlog)
            self._check_open()  # meanwhile it may have been closed
        except BaseException:
            self._endpoints.remove(endpoint)
            endpoint.close()
            for unwanted in given_sockets if fd is not None else ():
                unwanted.close()
            raise
        bound = endpoint.addresses
        self._log.event(INFO, "listen", None, "listening on %s", ", ".join(map(sockets.display, bound)))
        return bound[0]

    async def stop_listening(self, address: tuple[str, int] | str) -> None:
        """Accept no more connections at an address that ``listen`` returned; those that are open go on.

        Raises ValueError for an address that is none of ``addresses``.
        """
        endpoint = self._endpoint(address)
        self._endpoints.remove(endpoint)
        endpoint.stop_accepting()
        await _turns()
        endpoint.close()

    def _endpoint(self, address: tuple[str, int] | str) -> Endpoint:
        for endpoint in self._endpoints:
            if address in endpoint.addresses:
                return endpoint
        raise ValueError(f"the server does not listen on {address!r}")

    def _check_open(self) -> None:
        if self._closing is not None:
            raise RuntimeError("the server is closed")

    def _listener(self, overrides: OptionKeywords) -> Listener:
        self._check_open()
        options = _listener_options(self.options, overrides)
        # Before the new listener's names reach the context.
        self._check_shared_contexts([*(each.listener.options for each in self._all_endpoints()), options])
        if self._closed is None:
            self._closed = asyncio.Event()
        return self._made(options, overrides, self.handler)

    def _made(self, options: Options, overrides: OptionKeywords, handler: Callable[[str], Any]) -> Listener:
        """Return a listener that nothing uses yet."""
        # A handler among the overrides is this listener's; the others are the server's as they are now.
        hooks: dict[str, Any] = {hook: overrides.get(hook) or handler(hook) for hook in HOOKS}
        names = self._names_for(options)
        listener = Listener(
            options, hooks, self._connections, names, stores=self._rate_stores, overrides=dict(overrides)
        )
        listener.service.check_handlers()
        self._warn_of_trust(options)
        return listener

    def _all_endpoints(self) -> list[Endpoint]:
        return [*self._endpoints, *([self._socket_endpoint] if self._socket_endpoint is not None else [])]

    def _names_for(self, options: Options) -> HostNames:
        """Return the names and their cache that all listeners with this resolver share."""
        resolver = options.resolver or self._dns
        return self._names.setdefault(id(resolver), HostNames(resolver))

    def _check_shared_contexts(self, of_listeners: list[Options]) -> None:
        """Refuse one context with two maps of server names: a context has one callback, and the last would win."""
        maps: dict[int, Any] = {}
        for options in of_listeners:
            names = (options.sni_options, options.sni_callback)
            if options.ssl_context is not None and maps.setdefault(id(options.ssl_context), names) != names:
                optioncheck.wrong("ssl_context", "is shared by listeners with different SNI options: make one for each")

    def _warn_of_trust(self, options: Options) -> None:
        for name in ("use_xclient", "use_xforward"):
            trusted = getattr(options, name)
            if trusted is True or (trusted and "*" in trusted):
                verb = name.removeprefix("use_").upper()
                self._log.event(WARNING, "trust", None, "%s trusts every client: list the proxies in %s", verb, name)

    async def serve_socket(self, sock: socket.socket) -> None:
        """Serve one accepted, connected, plain socket; returns when its conversation has begun.

        The socket is closed at the end. Raises ConfigurationError for an ssl.SSLSocket, RuntimeError after ``close()``.
        """
        if isinstance(sock, ssl.SSLSocket):
            raise ConfigurationError("serve_socket() takes the plain socket: with secure=True TLS is started here")
        self._check_open()
        if self._socket_endpoint is None:
            self._socket_endpoint = Endpoint(self._listener({}))
            self._connections.descriptors.measure(len(self._endpoints))
        sock.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._socket_endpoint, sock)

    @property
    def addresses(self) -> list[tuple[str, int] | str]:
        """What is listened on: ``(host, port)`` or the path of a Unix socket."""
        return [address for endpoint in self._endpoints for address in endpoint.addresses]

    @property
    def statistics(self) -> Statistics:
        """What this server has counted since it was made, over all listeners; the same object each time."""
        return self._connections.statistics

    @property
    def connections(self) -> list[Session]:
        """The live sessions, without those of ``ignored_hosts``."""
        return [connection.session for connection in self._connections.all if connection.counted]

    def update_secure_context(self, **tls_options: Any) -> None:
        """Change key, certificate, authorities or the SNI map; connections that are open keep theirs.

        Takes key, cert, ca, key_password, sni_options, sni_callback and ssl_context. A listener that was given its own
        in ``listen()`` keeps it. Raises ConfigurationError, and changes nothing, where the new ones cannot be used.
        """
        for name in tls_options:
            if name not in _RENEWABLE:
                hint = optioncheck.likely(name, _RENEWABLE)
                raise ConfigurationError(f"update_secure_context does not take {name!r}{hint}")
        options = self.options.replace(**tls_options)
        listeners = [endpoint.listener for endpoint in self._all_endpoints()]
        followers = [listener for listener in listeners if not listener.overridden & set(_RENEWABLE)]
        renewed = [(listener, listener.renewed(tls_options)) for listener in followers]
        if not followers:
            TLSContexts(options)
        self.options = options
        for listener, (own, contexts) in renewed:
            listener.options, listener.tls = own, contexts

    def reload(
        self,
        options: Options | Mapping[str, Any] | None = None,
        /,
        listeners: Mapping[tuple[str, int] | str, OptionKeywords] | None = None,
        **overrides: Unpack[OptionKeywords],
    ) -> None:
        """Change options and handlers for connections that come from now on; those that are open keep theirs.

        options and keywords: the server's, as ``SMTPServer`` takes them; what is not given has its default again.
        listeners: for an address of ``addresses`` the keywords that ``listen`` takes; one that is not named keeps its
        own. What is counted goes on: rates, clients. Raises ConfigurationError, or ValueError for an address that is
        none, and then changes nothing.
        """
        # Where others count too is no matter of taste: it stays.
        new = Options.make(options, **{**overrides, "limit_counts": self.options.limit_counts})
        own = {id(self._endpoint(address)): keywords for address, keywords in (listeners or {}).items()}
        plans = []
        for endpoint in self._all_endpoints():
            keywords = own.get(id(endpoint), cast("OptionKeywords", endpoint.listener.overrides))
            plans.append((endpoint, _listener_options(new, keywords), keywords))
        self._check_shared_contexts([there for _, there, _ in plans])
        TLSContexts(new)
        made = [(endpoint, self._made(there, keywords, self._handlers_of(new))) for endpoint, there, keywords in plans]
        for hook in HOOKS:
            self._take_handler(hook, new)
        self.options = new
        self._connections.share(new)
        for endpoint, listener in made:
            endpoint.use(listener)

    async def old_connections_ended(self) -> None:
        """Return when the connections have ended that keep what a ``reload`` has changed, or whose listener is gone.

        What only their handlers use may be closed then. That is all that were accepted, also those that are no session
        yet. A handler that calls it does not wait for its own.
        """
        await _turns()  # one that was accepted has its listener, but is not among the connections yet
        current = {id(endpoint.listener) for endpoint in self._all_endpoints()}
        tasks = {connection.task for connection in self._connections.all if id(connection.listener) not in current}
        tasks -= {None, asyncio.current_task()}
        if tasks:
            await asyncio.wait(cast("set[asyncio.Task[None]]", tasks))

    def _handlers_of(self, options: Options) -> Callable[[str], Any]:
        """Return what finds a handler under new options: theirs, or a method, but not one of the old options."""

        def handler(hook: str) -> Any:
            given = getattr(options, hook)
            if given is None and vars(self).get(hook) is getattr(self.options, hook) is not None:
                return self.handler_of(getattr(type(self), hook).__get__(self))
            return given or self.handler(hook)

        return handler

    def _take_handler(self, hook: str, options: Options) -> None:
        """Let an option's handler beat the method, and no longer the one of the old options."""
        given = getattr(options, hook)
        if given is not None:
            setattr(self, hook, given)
        elif vars(self).get(hook) is getattr(self.options, hook) is not None:
            delattr(self, hook)

    # --- The life of a server

    async def serve_forever(self) -> None:
        """Return when the server is closed. Raises RuntimeError before the first ``listen()``."""
        if self._closed is None:
            raise RuntimeError("call listen() first")
        await self._closed.wait()

    async def close(self) -> None:
        """Stop accepting, let running transactions finish within ``close_timeout`` (seconds), then end what is left.

        Clients outside a transaction get 421 at once. May be called twice. A handler that calls it is not kept waiting:
        its own transaction has to end first.
        """
        closing = self._begin_closing()
        if asyncio.current_task() not in {connection.task for connection in self._connections.all}:
            await asyncio.shield(closing)

    def _begin_closing(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        self._connections.closing = True
        for endpoint in self._endpoints:
            endpoint.stop_accepting()
        await _turns()
        for endpoint in self._endpoints:
            endpoint.close()
        await self._end_connections()
        for names in self._names.values():
            await names.close()
        await self._dns.close()
        await self._rate_stores.close()
        for endpoint in self._all_endpoints():
            endpoint.listener.end_refusals()
        self._log.event(INFO, "close", None, "closed")
        if self._closed is not None:
            self._closed.set()

    async def _end_connections(self) -> None:
        live = self._connections
        for connection in list(live.all):
            connection.shut_down()
        await live.emptied(self.options.close_timeout)
        for connection in list(live.all):
            connection.cut_off()
        await live.emptied(sockets.CUT_OFF_TIME)
        for connection in list(live.all):
            connection.abort()
        await live.emptied(sockets.CUT_OFF_TIME)
        await _turns()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def run(
        self,
        port: int | None = None,
        host: str | None = None,
        **more: Any,
    ) -> None:
        """Listen and serve in a loop of its own until SIGINT or SIGTERM; takes what ``listen`` takes.

        Uses uvloop where it is installed. A second signal ends at once. For the main thread, since signals reach no
        other. Raises RuntimeError elsewhere, and what ``listen`` raises.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("run() is for the main thread; elsewhere await listen() and serve_forever() in a loop")
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._run(port, host, **more))

    async def _run(self, port: int | None, host: str | None, **more: Any) -> None:
        await self.listen(port, host, **more)
        with _on_first_signal(self._begin_closing):
            await self.serve_forever()


def _listener_options(base: Options, overrides: OptionKeywords) -> Options:
    for name in _WHOLE_SERVERS:
        if name in overrides:
            optioncheck.wrong(name, "is the whole server's: give it to SMTPServer, not to one listener")
    return base.replace(**overrides) if overrides else base


@contextmanager
def _on_first_signal(begin: Callable[[], object]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM call this in the event loop; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def first(_number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # the loop is closed: the process ends anyway
            loop.call_soon_threadsafe(begin)

    # Not add_signal_handler: Windows has none, and a second signal must also end a loop that a handler blocks.
    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


async def _turns() -> None:
    """Let the event loop finish what takes it some turns: to hand over an accepted socket, to close one."""
    for _ in range(4):
        await asyncio.sleep(0)


def _loop_factory() -> Any:
    """Return uvloop's factory, or None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
