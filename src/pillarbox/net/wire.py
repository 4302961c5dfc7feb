"""The wire of the protocol on an asyncio transport: all reading, writing and waiting happens here."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, cast

from pillarbox.errors import ConnectionLost, HandshakeFailed
from pillarbox.net.tls import tls_info
from pillarbox.smtp import reply
from pillarbox.smtp.wire import MAX_AUTH_LINE, ConnectionEnded, line_limit

if sys.platform != "win32":
    from fcntl import ioctl
    from termios import FIONREAD

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from pillarbox.net.listener import Listener
    from pillarbox.session import TLSInfo
    from pillarbox.smtp.reply import Reply

_waiting = bytearray(4)  # where the kernel puts a count

# More than this, and nobody reading: the client waits (its TCP window closes).
HIGH_WATER = 64 * 1024
# A line past its limit whose end does not follow within this time never ends.
LINE_END_TIME = 1.0
# How long input that nobody wants is still read, so that a reset does not destroy the last reply on its way.
LINGER_TIME = 1.0
# How long a last reply may take to a client that does not read.
CLOSING_TIME = 2.0
# How long the client's close_notify is waited for; it is nobody's loss where it does not come.
TLS_CLOSING_TIME = 1.0
# So many replies may wait for the input that came with theirs to be answered.
MAX_UNSENT = 256
FOREVER = 10 * 365 * 86400.0  # seconds


def seconds_or_forever(timeout: float | None) -> float:
    """Return a time-out as event loops take it, where None would mean their own default."""
    return FOREVER if timeout is None else timeout


class TransportWire(asyncio.Protocol):
    """The transport's protocol and the conversation's wire, in one object: 3-4 KiB a connection matter here."""

    __slots__ = (
        "_at",
        "_buffer",
        "_discarding",
        "_ending",
        "_eof",
        "_expiry",
        "_gone",
        "_limit",
        "_loop",
        "_out",
        "_paused",
        "_silence",
        "_transport",
        "_under_tls",
        "_upgrading",
        "_waiter",
        "_write_blocked",
        "deadline",
        "failure",
        "listener",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self.listener = listener
        self._silence = seconds_or_forever(listener.options.socket_timeout)
        self._loop = loop
        self._buffer = b""  # empty when all is read, so that an idle connection holds none
        self._at = 0  # what comes before is read
        self._out: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ending: ConnectionEnded | None = None
        self.failure: Exception | None = None  # of the socket or of TLS, for on_error
        self._expiry: Reply | None = reply.TIMEOUT
        self._limit: _TimeLimit | None = None
        self._eof = self._gone = self._paused = self._upgrading = self._under_tls = False
        self._write_blocked = self._discarding = False
        self.deadline = 0.0  # when the wait that is under way ends; 0: the client is not waited for

    # --- What the event loop calls

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if self._buffer:
            self._buffer = self._buffer[self._at :] + data
            self._at = 0
        else:
            self._buffer = data
        if self._waiter is not None and not self._write_blocked:
            self._wake(None)
        elif len(self._buffer) > HIGH_WATER and not self._paused and not self._upgrading:
            self._pause()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake(ConnectionEnded("the client closed the connection"))
        return not (self._under_tls or self._upgrading)  # half-closed: what it sent is still answered

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self._write_blocked = False
        if error is not None and self.failure is None:
            self.failure = ConnectionLost(f"the connection is lost: {error}")
            self.failure.__cause__ = error
        self._wake(ConnectionEnded(str(self.failure or "the connection is lost")))

    def pause_writing(self) -> None:
        self._write_blocked = True

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._wake(None)

    # --- Waiting: one future for each wait, one time stamp, no timer and no coroutine of its own

    def _wake(self, problem: ConnectionEnded | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        self.deadline = 0.0
        if problem is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(problem)

    def expire(self) -> None:
        """End the wait that has passed its deadline, and every later one."""
        self._ending = ConnectionEnded("the client was silent for too long", self._expiry)
        self._wake(self._ending)

    def _wait(self, seconds: float) -> asyncio.Future[None]:
        if self._waiter is not None and not self._waiter.done():  # a task that on_data left behind
            self._waiter.set_exception(RuntimeError("the message was read after on_data returned"))
        self._waiter = waiter = self._loop.create_future()
        self.deadline = self._loop.time() + seconds
        if self._limit is not None:
            self._limit.pause()  # the client's time is not the handler's
            waiter.add_done_callback(self._limit.resume)
        return waiter

    def _more(self, seconds: float, expiry: Reply | None = reply.TIMEOUT) -> Awaitable[None]:
        """Wait for input; what was written leaves first, in one piece."""
        if self._ending is not None:
            raise self._ending
        if self._out:
            self.flush()
        if self._write_blocked:
            return self._more_when_written(seconds, expiry)
        if self._eof or self._gone:
            raise ConnectionEnded("the client closed the connection")
        if self._paused:
            self._resume()
        self._expiry = expiry
        return self._wait(seconds)

    async def _more_when_written(self, seconds: float, expiry: Reply | None) -> None:
        """Wait for input from a client that has first to read what it was told."""
        await self._written()
        await self._more(seconds, expiry)

    # --- The wire

    def write(self, octets: bytes) -> None:
        self._out.append(octets)

    def flush(self) -> None:
        if self._out:
            octets = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            if not self._gone:
                self._transport.write(octets)

    async def _written(self) -> None:
        """Send what was written, and return when the client has taken it."""
        self.flush()
        while self._write_blocked:
            self._expiry = None
            await self._wait(self._silence)

    async def read_line(self, limit: int) -> bytes:
        while True:
            buffer, at = self._buffer, self._at
            end = buffer.find(b"\n", at) + 1
            if end and (end - at <= MAX_AUTH_LINE or end - at <= limit):
                if len(self._out) > MAX_UNSENT:
                    await self._written()  # a client that asks much and reads nothing is not served on
                if end < len(buffer):
                    self._at = end
                    return buffer[at:end]
                self._buffer, self._at = b"", 0
                return buffer[at:]
            if len(buffer) - at < limit:
                await self._more(self._silence)
            else:
                await self._more_of_long_line(len(buffer) - at, limit)

    def _more_of_long_line(self, length: int, limit: int) -> Awaitable[None]:
        if length >= max(limit, MAX_AUTH_LINE):
            raise ConnectionEnded("a command line without an end", reply.LINE_NEVER_ENDS)
        if length < line_limit(self._buffer[self._at : self._at + 5], limit):
            return self._more(self._silence)
        return self._more(LINE_END_TIME, reply.LINE_NEVER_ENDS)

    async def read_block(self) -> bytes:
        while not self._buffer:
            await self._more(self._silence)
        return self._take()

    def _take(self) -> bytes:
        block = self._buffer[self._at :] if self._at else self._buffer
        self._buffer, self._at = b"", 0
        return block

    def unread(self, octets: bytes) -> None:
        self._buffer = octets + self._buffer[self._at :]
        self._at = 0

    def pending(self) -> bool:
        if self._buffer:
            return True
        if self._under_tls or self._transport.is_closing() or sys.platform == "win32":
            return False  # Windows cannot be asked what the kernel holds; what was read still counts
        # uvloop's sockets have no peek; the count of the descriptor tells what has arrived (0.4 µs; a result put into
        # a bytearray saves 1 µs over one that is returned).
        ioctl(self._transport.get_extra_info("socket").fileno(), FIONREAD, _waiting)
        return any(_waiting)

    async def wait_input(self, seconds: float) -> None:
        if self._buffer:
            return
        timer = self._loop.call_later(seconds, self._wake, None)
        try:
            await self._more(seconds + self._silence)
        finally:
            timer.cancel()

    def stop(self, answer: Reply) -> None:
        self._ending = ConnectionEnded("the server closes", answer)
        self._wake(self._ending)

    def ends_with(self, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):  # else a handler awaited something that was cancelled
            task = asyncio.current_task()
            return task is None or task.cancelling() > 0
        return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)

    def time_limit(self, seconds: float) -> _TimeLimit:
        return _TimeLimit(self, seconds)

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        self._transport.resume_reading()

    # --- TLS

    async def start_tls(self) -> TLSInfo:
        if not self._paused:
            self._pause()  # before the 220 leaves: a ClientHello that is read before start_tls is lost
        self.flush()
        early = self._take()  # behind a PROXY header the ClientHello may be here already
        try:
            transport = await self._upgraded(early)
        except OSError as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            self.failure = HandshakeFailed(f"TLS handshake failed: {reason}")
            self.failure.__cause__ = error
            raise ConnectionEnded(str(self.failure)) from error
        self._transport = transport
        self._under_tls = True
        return tls_info(transport.get_extra_info("ssl_object"))

    async def _upgraded(self, early: bytes) -> asyncio.Transport:
        options = self.listener.options
        self._upgrading = True
        handshake = self._loop.start_tls(
            self._transport,
            self,
            self.listener.tls.context,
            server_side=True,
            ssl_handshake_timeout=seconds_or_forever(options.handshake_timeout),
            ssl_shutdown_timeout=TLS_CLOSING_TIME,
        )
        try:
            transport = await (self._fed(handshake, early) if early else handshake)
        except BaseException:
            self._gone = True  # the event loop has closed it, and tells only the TLS protocol
            raise
        finally:
            self._paused = False
        self._upgrading = False
        if transport is None:
            raise ConnectionResetError("the client closed the connection")
        return transport

    async def _fed(self, handshake: Any, early: bytes) -> asyncio.Transport | None:
        """Do a handshake whose first octets were read already: they go into the TLS protocol's own buffer."""
        # The order is what makes it safe on both loops: the task's first step schedules connection_made and
        # resume_reading, and `feed`, scheduled behind that step, schedules itself behind those two, before any
        # more is read from the socket.
        task = self._loop.create_task(handshake)
        plain = self._transport

        def feed() -> None:
            tls = cast("asyncio.BufferedProtocol", plain.get_protocol())
            rest = memoryview(early)
            while rest:
                room = memoryview(tls.get_buffer(len(rest)))[: len(rest)]
                room[:] = rest[: len(room)]
                tls.buffer_updated(len(room))
                rest = rest[len(room) :]

        self._loop.call_soon(self._loop.call_soon, feed)
        return await cast("asyncio.Task[asyncio.Transport | None]", task)

    # --- The end

    async def linger(self) -> None:
        """Let the last reply arrive: closing with unread input makes a reset that may overtake it."""
        self.flush()
        if self._gone or self._transport.is_closing() or not self.pending():
            return
        self._discarding = True
        self._buffer, self._at = b"", 0
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError):
            if not self._under_tls:
                self._transport.write_eof()
            if self._paused:
                self._resume()
            if not (self._eof or self._gone):
                await self._wait(LINGER_TIME)

    def close(self) -> None:
        """Close the connection; what was written still leaves, if the client takes it."""
        self.flush()
        transport = self._transport
        if transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_TIME, transport.abort)
        transport.close()


class _TimeLimit:
    """``handler_timeout`` for one call: the clock stands still while the client is waited for."""

    __slots__ = ("_connection", "_left", "_timeout")

    def __init__(self, connection: TransportWire, seconds: float) -> None:
        self._connection = connection
        self._timeout = asyncio.timeout(seconds)
        self._left = seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._connection._limit = self  # noqa: SLF001 - two halves of one thing

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection._limit = None  # noqa: SLF001
        await self._timeout.__aexit__(kind, error, trace)

    def pause(self) -> None:
        when = self._timeout.when()
        if when is not None and not self._timeout.expired():
            self._left = when - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)

    def resume(self, _: object) -> None:
        if self._connection._limit is self and not self._timeout.expired():  # noqa: SLF001
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
