"""One accepted connection, from the PROXY header over TLS and the client's name to the conversation, and its end."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from logging import DEBUG, ERROR, INFO
from typing import TYPE_CHECKING, Any, cast

from pillarbox.errors import HandshakeFailed
from pillarbox.net.wire import TransportWire, seconds_or_forever
from pillarbox.networks import normal_address
from pillarbox.session import Session
from pillarbox.smtp import proxy, reply
from pillarbox.smtp.asking import Asking
from pillarbox.smtp.conversation import Conversation
from pillarbox.smtp.wire import ConnectionEnded

if TYPE_CHECKING:
    from pillarbox.net.listener import Listener
    from pillarbox.smtp.reply import Reply

# More than that nobody sends before the greeting: a PROXY header, a ClientHello, the commands of who talks too soon.
MOST_BEFORE_GREETING = 16 * 1024


class Connection(TransportWire):
    """A client's connection; its task runs what happens on it in order."""

    __slots__ = ("_over", "conversation", "counted", "network", "places", "service", "session", "task")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(listener, loop)
        self.service = listener.service
        self.counted = self._over = False
        self.network: str | None = None  # under which it is counted
        self.places: tuple[str, ...] = ()  # where it is counted with those of other servers
        self.conversation: Conversation | None = None
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None and isinstance(here, tuple):
            self._discarding = True  # it is gone already, and without its address nobody could say who it was
            self._transport.abort()
            return
        if self.listener.connections.closing:
            self._refuse(reply.SHUTTING_DOWN)
            return
        if not self.listener.has_descriptors(transport.get_extra_info("socket").fileno()):
            self._refuse(self.service.too_many_clients)
            return
        if self.listener.tls_first and not self.listener.proxies:
            self.pause()  # a ClientHello that is read before start_tls is lost
        self.session = self._new_session(peer, here)
        self.listener.opened(self)
        self.task = self._loop.create_task(self._run())
        self.task.add_done_callback(self._done)

    def _refuse(self, answer: Reply) -> None:
        """Close a connection that comes too late, or is one too many, without a task of its own."""
        self._discarding = True
        if not self.listener.tls_first:  # a 421 would break the client's handshake
            if sys.platform != "win32":
                # What the client has sent already would make of the close a reset, which may overtake the reply.
                with suppress(OSError):
                    os.read(self._transport.get_extra_info("socket").fileno(), MOST_BEFORE_GREETING)
            self._transport.write(answer.coded if self.service.codes else answer.plain)
        self._transport.close()

    def _done(self, _: object) -> None:
        self._over = True
        if not self._transport.is_closing():  # cancelled before its first step
            self._last_words(reply.SHUTTING_DOWN)
            self.close()
        if self._gone:
            self._leave()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._over:
            self._leave()

    def _leave(self) -> None:
        """Leave the server, now that both are over, the connection and what runs on it."""
        self._over = False  # after a handshake that failed the connection may be lost a second time
        self.listener.closed(self)
        # Both refer to this object: without them it goes at once, not when the garbage collector finds it (3 µs).
        self.conversation = None
        del self._transport

    def _new_session(self, peer: Any, here: Any) -> Session:
        remote_address, remote_port = _endpoint(peer)
        local_address, local_port = _endpoint(here)
        options = self.listener.options
        return Session(
            remote_address=remote_address,
            remote_port=remote_port,
            local_address=local_address,
            local_port=local_port,
            secure=options.secure and options.secured,
            lmtp=options.lmtp,
        )

    # --- The course of a connection

    async def _run(self) -> None:
        # One coroutine for all of it: each further one would be passed at every resumption.
        listener, session = self.listener, self.session
        try:
            if listener.proxies is not None and session.remote_address in listener.proxies:
                await self._read_proxy_header()
            refusal = self._refusal()
            if refusal is None and listener.shared is not None:
                refusal = await self._shared_refusal()
            if refusal is None and listener.looks_at_addresses:
                refusal = await self.admit()
            if refusal is not None:
                self._turn_away(refusal)
            else:
                if listener.tls_first:
                    await self._begin_with_tls()
                if session.remote_address and not listener.options.disable_reverse_lookup:
                    await self._find_name()
                if self.service.log.enabled(DEBUG):
                    self.service.log.event(DEBUG, "connect", session, "connection from %s", session.client_hostname)
                self.conversation = Conversation(self.service, session, self)
                await self.conversation.run()
            await self.linger()
        except ConnectionEnded as end:
            self.service.log.event(DEBUG, "end", self.session, "%s", str(end))
        except asyncio.CancelledError:
            self._last_words(reply.SHUTTING_DOWN)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not take the process down
            self.service.log.event(ERROR, "error", self.session, "internal error", error=error)
            self._last_words(reply.LOCAL_ERROR_CLOSING)
        finally:
            await self._ended()

    async def _ended(self) -> None:
        """Close, and tell the application what it wants to know of the end."""
        self.close()
        if self.service.log.enabled(DEBUG):
            self.service.log.event(DEBUG, "close", self.session, "connection closed")
        conversation = self.conversation
        # A connection that breaks outside a transaction is how many clients end: no failure to speak of.
        in_transaction = conversation is not None and conversation.in_transaction
        try:
            if isinstance(self.failure, HandshakeFailed) or (self.failure is not None and in_transaction):
                await Asking(self.service, self.session, self).report(self.failure)
        finally:  # an on_error that hangs until the server cuts it off
            if conversation is not None and conversation.connected and self.service.hooks["on_close"] is not None:
                await conversation.asking.tell_closed()

    def _refusal(self) -> Reply | None:
        if self._is_of_ignored_host():
            self.session.ignored = True
            self.service = self.listener.quiet_service
        elif not self.listener.admits(self):
            return self.service.too_many_clients
        return None

    async def _shared_refusal(self) -> Reply | None:
        listener, session = self.listener, self.session
        if session.ignored or listener.shared is None or await listener.shared.admits(self):
            return None
        listener.beyond_max_clients.note(session, listener.options.max_clients)
        return self.service.too_many_clients

    async def admit(self) -> Reply | None:
        rates, shared = self.service.rates, self.listener.shared
        if self.session.ignored:
            return None
        admitted = self.listener.admits_of_address(self) and (shared is None or await shared.admits_of_network(self))
        if admitted and (rates is None or await rates.take("connections", self.session)):
            return None
        self.listener.connections.beyond_address.note(self.session)
        return self.service.too_many_connections

    def _turn_away(self, refusal: Reply) -> None:
        self.listener.connections.uncount(self)  # now: its end may take seconds, and many of them all places
        if not self.listener.tls_first:  # a 421 would break the client's handshake
            self.out += refusal.coded if self.service.codes else refusal.plain

    def _is_of_ignored_host(self) -> bool:
        ignored = self.listener.ignored
        return ignored is not None and self.session.remote_address in ignored

    async def _begin_with_tls(self) -> None:
        session = self.session
        session.tls = await self.start_tls()
        session.secure = True
        session.servername = session.tls.servername

    async def _find_name(self) -> None:
        address, names = self.session.remote_address, self.listener.names
        self.session.client_hostname = names.cached(address) or await names.name_of(address)

    async def _read_proxy_header(self) -> None:
        deadline = self._loop.time() + seconds_or_forever(self.listener.options.proxy_timeout)
        try:
            while (header := proxy.parse(self._buffer)) is None:
                left = max(0.0, deadline - self._loop.time())
                await self._more(left + self.listener.connections.interval, None)
        except (proxy.BadHeader, ConnectionEnded) as problem:
            # A health check that only connects tells no other address than its own. Who stays, and waits for the
            # greeting, is a client, and its proxy is not set up.
            knocked = isinstance(problem, ConnectionEnded) and (self._eof or self._gone)
            self.session.ignored = knocked and self._is_of_ignored_host()
            self.out += proxy.BAD_HEADER
            self.service.log.event(INFO, "proxy", self.session, "no valid PROXY header: %s", str(problem))
            await self.linger()
            raise ConnectionEnded("no valid PROXY header") from problem
        self.unread(self.block()[header.length :])
        if self.listener.tls_first:
            self.pause()
        _apply_proxy_header(self.session, header)

    # --- The end

    def shut_down(self) -> None:
        """End as soon as the transaction under way, if there is one, is done."""
        if self.conversation is None or self._upgrading:
            self._cancel()
        else:
            self.conversation.shut_down()

    def cut_off(self) -> None:
        """End now, whatever is under way."""
        if self.waiter is not None:
            self.stop(reply.SHUTTING_DOWN)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        """Drop what is left."""
        self._cancel()
        self._transport.abort()

    def _last_words(self, answer: Reply) -> None:
        if not (self._discarding or self._upgrading or (self.conversation is None and self.listener.tls_first)):
            self.out += answer.coded if self.service.codes else answer.plain


def _apply_proxy_header(session: Session, header: proxy.ProxyHeader) -> None:
    info = session.proxy = header.info
    if header.source is not None and header.destination is not None:
        session.remote_address, session.remote_port = header.source
        session.local_address, session.local_port = header.destination
        session.client_hostname = f"[{session.remote_address}]"
    if info.tls is not None:  # the peer is listed, so its word is as good as a handshake of our own
        session.secure = True
        session.servername = info.authority.lower() if info.authority else None


def _endpoint(name: Any) -> tuple[str, int]:
    """Return address and port of a socket name; a Unix socket has neither."""
    if not isinstance(name, tuple):
        return "", 0
    address, port = name[0], name[1]
    return (normal_address(address) if ":" in address else address), port
