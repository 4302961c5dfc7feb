"""``SMTPServer``: listeners, handlers and the life of a server; the protocol is in ``smtp``, sockets are in ``net``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import threading
from contextlib import contextmanager, suppress
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

from pillarbox import optioncheck
from pillarbox.errors import ConfigurationError
from pillarbox.handlers import HOOKS, Handlers
from pillarbox.logs import EventLog
from pillarbox.net import descriptors, sockets
from pillarbox.net.dns import DNSResolver, HostNames
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

# What update_secure_context may change: key, certificate and the map of server names.
_RENEWABLE = ("key", "cert", "ca", "key_password", "sni_options", "sni_callback", "ssl_context")
_WHOLE_SERVERS = ("close_timeout", "limit_counts")
# From Python 3.13 on the path of a Unix socket is removed at the end, also of one that another process made and keeps.
_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


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
        self._listeners: list[Listener] = []
        self._socket_listener: Listener | None = None
        self._servers: list[asyncio.Server] = []
        self._addresses: list[tuple[str, int] | str] = []
        self._unix_sockets: list[sockets.UnixPath] = []
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
        listener = self._listener(overrides)
        bound_already = sockets.listed(sock) if fd is None else [socket.socket(fileno=fd)]
        listener.share(sockets.place(port, host, path, bound_already))
        servers: list[asyncio.Server] = []
        self._connections.descriptors.measure(len(self._servers) + max(1, len(bound_already)))
        try:
            for each in bound_already or (None,):
                servers.append(await self._bind(listener, port, host, path, each, backlog))
                if isinstance(servers[-1].get_loop(), asyncio.SelectorEventLoop):
                    descriptors.let_wait(servers[-1], backlog)
            self._check_open()  # meanwhile it may have been closed
        except BaseException:
            self._listeners.remove(listener)
            for unwanted in (*servers, *(bound_already if fd is not None else ())):
                unwanted.close()
            raise
        return self._listening(servers)

    def _listening(self, servers: list[asyncio.Server]) -> tuple[str, int] | str:
        """Note what was bound, and return the first."""
        self._servers += servers
        bound = [sockets.name_of(s) for server in servers for s in server.sockets]
        self._addresses += bound
        self._log.event(INFO, "listen", None, "listening on %s", ", ".join(map(sockets.display, bound)))
        return bound[0]

    def _check_open(self) -> None:
        if self._closing is not None:
            raise RuntimeError("the server is closed")

    async def _bind(  # noqa: PLR0917 - the ways that listen() takes
        self,
        listener: Listener,
        port: int | None,
        host: str | None,
        path: str | os.PathLike[str] | None,
        sock: socket.socket | None,
        backlog: int,
    ) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop):
            backlog = min(backlog, self._connections.descriptors.batch())
        if path is not None:
            unix = sockets.UnixPath(path)
            unix.refuse_if_served()
            server = await loop.create_unix_server(listener, unix.path, backlog=backlog)
            unix.note()
            self._unix_sockets.append(unix)
            return server
        if sock is None:
            return await loop.create_server(listener, host, port or 0, backlog=backlog)
        if sock.family == getattr(socket, "AF_UNIX", None):
            return await loop.create_unix_server(listener, sock=sock, backlog=backlog, **_KEEP_PATH)
        return await loop.create_server(listener, sock=sock, backlog=backlog)

    def _listener(self, overrides: OptionKeywords) -> Listener:
        self._check_open()
        for name in _WHOLE_SERVERS:
            if name in overrides:
                optioncheck.wrong(name, "is the whole server's: give it to SMTPServer, not to one listener")
        options = self.options.replace(**overrides) if overrides else self.options
        self._check_shared_context(options)  # before the new listener's names reach the context
        if self._closed is None:
            self._closed = asyncio.Event()
        # A handler among the overrides is this listener's; the others are the server's as they are now.
        hooks: dict[str, Any] = {hook: overrides.get(hook) or self.handler(hook) for hook in HOOKS}
        listener = Listener(
            options,
            hooks,
            self._connections,
            self._names_for(options),
            stores=self._rate_stores,
            overridden=frozenset(overrides),
        )
        listener.service.check_handlers()
        self._warn_of_trust(options)
        self._listeners.append(listener)
        return listener

    def _names_for(self, options: Options) -> HostNames:
        """Return the names and their cache that all listeners with this resolver share."""
        resolver = options.resolver or self._dns
        return self._names.setdefault(id(resolver), HostNames(resolver))

    def _check_shared_context(self, options: Options) -> None:
        """Refuse one context with two maps of server names: a context has one callback, and the last would win."""
        names = (options.sni_options, options.sni_callback)
        for other in (listener.options for listener in self._listeners):
            shared = options.ssl_context is not None and other.ssl_context is options.ssl_context
            if shared and (other.sni_options, other.sni_callback) != names:
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
        if self._socket_listener is None:
            self._socket_listener = self._listener({})
            self._connections.descriptors.measure(len(self._servers))
        sock.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._socket_listener, sock)

    @property
    def addresses(self) -> list[tuple[str, int] | str]:
        """What is listened on: ``(host, port)`` or the path of a Unix socket."""
        return list(self._addresses)

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
        followers = [listener for listener in self._listeners if not listener.overridden & set(_RENEWABLE)]
        renewed = [(listener, listener.renewed(tls_options)) for listener in followers]
        if not followers:
            TLSContexts(options)
        self.options = options
        for listener, (own, contexts) in renewed:
            listener.options, listener.tls = own, contexts

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
        for server in self._servers:
            sockets.stop_accepting(server)
        await _turns()
        for server in self._servers:
            server.close()
        for unix in self._unix_sockets:
            unix.remove()
        await self._end_connections()
        for names in self._names.values():
            await names.close()
        await self._dns.close()
        await self._rate_stores.close()
        self._addresses = []
        for listener in self._listeners:
            listener.end_refusals()
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
