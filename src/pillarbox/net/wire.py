"""The wire of the protocol on an asyncio transport: all reading, writing and waiting happens here."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from pillarbox.errors import PROGRAM_ENDS, ConnectionLost, HandshakeFailed
from pillarbox.net.apart import Apart
from pillarbox.net.bulk import Bulk
from pillarbox.net.pace import Pace
from pillarbox.net.timelimit import TimeLimit
from pillarbox.net.tls import tls_info
from pillarbox.smtp import reply
from pillarbox.smtp.wire import MAX_AUTH_LINE, ConnectionEnded, LimitCrossed, line_limit

if sys.platform != "win32":
    from fcntl import ioctl
    from termios import FIONREAD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from pillarbox.net.listener import Listener
    from pillarbox.session import TLSInfo
    from pillarbox.smtp.reply import Reply
    from pillarbox.smtp.wire import Arriving

_LF = ord("\n")
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
# So many octets of replies may wait for the input that came with theirs to be answered.
MAX_UNSENT = 16 * 1024
FOREVER = 10 * 365 * 86400.0  # seconds


def seconds_or_forever(timeout: float | None) -> float:
    """Return a time-out as event loops take it, where None would mean their own default."""
    return FOREVER if timeout is None else timeout


class TransportWire(asyncio.Protocol):
    """The transport's protocol and the conversation's wire, in one object: 3-4 KiB a connection matter here."""

    __slots__ = (
        "_age",
        "_at",
        "_buffer",
        "_command_time",
        "_discarding",
        "_ending",
        "_eof",
        "_expiry",
        "_gone",
        "_hindered",
        "_in_bulk",
        "_limit",
        "_line_limit",
        "_loop",
        "_pace",
        "_paused",
        "_silence",
        "_transport",
        "_under_tls",
        "_upgrading",
        "_write_blocked",
        "failure",
        "listener",
        "measured",
        "out",
        "patience",
        "waiter",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self.listener = listener
        self._silence = listener.silence + listener.connections.interval
        self._loop = loop
        self._buffer = b""  # empty when all is read, so that an idle connection holds none
        self._at = 0  # what comes before is read
        self.out = b""  # not a list: an append to b"" copies nothing, and there is nearly never more
        self.waiter: asyncio.Future[None] | None = None  # None while the client is not waited for
        self._ending: ConnectionEnded | None = None
        self.failure: Exception | None = None  # of the socket or of TLS, for on_error
        self._expiry: Reply | None = reply.TIMEOUT
        self._limit: TimeLimit | None = None
        self._line_limit: int | None = None  # of the line under way, where it is longer
        self._command_time: float | None = None  # what is left for the command of which a part has come
        self.measured: Arriving | None = None
        self._pace: Pace | None = None
        self._age = 0.0  # as far as somebody wants to know it
        self._eof = self._gone = self._paused = self._upgrading = self._under_tls = False
        self._write_blocked = self._discarding = self._in_bulk = False
        self._hindered = False  # one of those may be true: a wait must look; one test instead of eight
        # What is left of the wait under way: each sweep takes off its interval (and the first one too much, hence one
        # more for each wait). To ask for the time at each wait would cost 0.7 µs a message.
        self.patience = 0.0

    # --- What the event loop calls

    def data_received(self, data: bytes) -> None:
        waiter = self.waiter
        if waiter is None or self._buffer or self._hindered:
            self._received_besides(data)
            return
        # As it nearly always is, and as `_wake` does it: the conversation waits for just this.
        self._buffer = data
        self.waiter = None
        try:  # noqa: SIM105 - `suppress` would cost more than all the rest
            waiter.set_result(None)
        except asyncio.InvalidStateError:
            pass  # the task was cancelled meanwhile

    def _received_besides(self, data: bytes) -> None:
        """Take input that completes what is there, or that comes while nobody waits for it."""
        if self._discarding:
            return
        if self._buffer:
            self._buffer = self._buffer[self._at :] + data
            self._at = 0
        else:
            self._buffer = data
            self._command_time = None
        if self.waiter is not None and not self._write_blocked:
            self._wake(None)
        elif len(self._buffer) > HIGH_WATER:
            self.pause()

    def eof_received(self) -> bool:
        self._eof = self._hindered = True
        if self.waiter is not None:
            self._wake(ConnectionEnded("the client closed the connection"))
        return not (self._under_tls or self._upgrading)  # half-closed: what it sent is still answered

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = self._hindered = True
        self._write_blocked = False
        if error is not None and self.failure is None:
            self.failure = ConnectionLost(f"the connection is lost: {error}")
            self.failure.__cause__ = error
        if self.waiter is not None:
            self._wake(ConnectionEnded(str(self.failure or "the connection is lost")))

    def pause_writing(self) -> None:
        self._write_blocked = self._hindered = True

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._wake(None)

    # --- Waiting: one future for each wait, no clock, no timer and no coroutine of its own

    def _wake(self, problem: ConnectionEnded | None) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is None or waiter.done():
            return
        if problem is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(problem)

    def _end(self, end: ConnectionEnded) -> None:
        """Let the wait that is under way, and every later one, raise this."""
        self._ending = end
        self._hindered = True
        self._wake(end)

    def check_time(self, seconds: float) -> None:
        """Take off time that has passed, and end the wait under way, and every later one, where none is left."""
        # By the sweep, for every connection: what is not limited is not asked for.
        longest = self.listener.longest
        if longest is not None and self._ending is None:
            self._age += seconds
            if self._age > longest:
                self._end(
                    LimitCrossed("the connection lasted too long", reply.SESSION_TOO_LONG, "max_session_duration")
                )
        if self.waiter is None or self.waiter.done():  # done: a handler gave up waiting, and the time is its own
            return
        self.patience -= seconds
        if self.patience <= 0.0:
            if self._write_blocked:
                self._end(LimitCrossed("the client did not read its replies", self._expiry, "reply_timeout"))
            else:
                limit = "max_command_length" if self._expiry is reply.LINE_NEVER_ENDS else "socket_timeout"
                self._end(LimitCrossed("the client was silent for too long", self._expiry, limit))
        elif self._command_time is not None and self._command_time <= seconds:
            self._end(LimitCrossed("a command took too long", reply.COMMAND_TOO_SLOW, "command_timeout"))
        else:
            if self._command_time is not None:
                self._command_time -= seconds
            if self.measured is not None:  # also while a command between two chunks comes
                self._check_pace(self.measured, seconds)
            elif self._pace is not None:
                self._pace = None

    def _check_pace(self, source: Arriving, seconds: float) -> None:
        listener = self.listener
        rate = listener.options.min_data_rate
        if rate is None:
            return
        if self._pace is None or self._pace.source is not source:
            self._pace = Pace(source, listener.data_grace)
        elif self._pace.is_too_slow(seconds, rate, listener.data_grace):
            self._end(LimitCrossed("a message came too slowly", reply.MESSAGE_TOO_SLOW, "min_data_rate"))

    def _wait(self, seconds: float) -> asyncio.Future[None]:
        if self.waiter is not None and not self.waiter.done():  # a task that on_data left behind
            self.waiter.set_exception(RuntimeError("the message was read after on_data returned"))
        self.waiter = waiter = self._loop.create_future()
        self.patience = seconds
        if self._limit is not None:
            self._limit.pause()  # the client's time is not the handler's
            waiter.add_done_callback(self._limit.resume)
        return waiter

    def more(self) -> Awaitable[None]:
        if self._hindered or self.waiter is not None:
            return self._more(self._silence)
        if self.out:
            self._transport.write(self.out)
            self.out = b""
            if self._write_blocked:
                return self._more(self._silence)
        # As `_wait` does it, without its questions.
        self.patience = self._silence
        self.waiter = waiter = self._loop.create_future()
        return waiter

    def _more(self, seconds: float, expiry: Reply | None = reply.TIMEOUT) -> Awaitable[None]:
        """Wait for input, whatever stands in the way; what was written leaves first, in one piece."""
        if self._ending is not None:
            raise self._ending
        self.flush()
        if self._write_blocked:
            return self._more_when_written(seconds, expiry)
        if self._buffer and expiry is reply.TIMEOUT and self._has_line():  # it is only not its turn
            return self._turn(seconds)
        if self._eof or self._gone:
            raise ConnectionEnded("the client closed the connection")
        if self._paused:
            self._resume()
        if not self._buffer:
            self._command_time = None
        self._hindered = (
            self._limit is not None
            or self._line_limit is not None
            or self._command_time is not None
            or expiry is not reply.TIMEOUT
        )
        if self._line_limit is not None:
            return self._more_of_long_line(self._line_limit)
        self._expiry = expiry
        return self._wait(seconds)

    def _has_line(self) -> bool:
        return not self._gone and self._line_limit is None and self._buffer.find(b"\n", self._at) >= 0

    def _turn(self, seconds: float) -> Awaitable[None]:
        """Wait until the event loop has served the others, and read no more meanwhile."""
        self.pause()
        self._expiry = reply.TIMEOUT
        self._loop.call_soon(self._wake, None)
        return self._wait(seconds)

    async def _more_when_written(self, seconds: float, expiry: Reply | None) -> None:
        """Wait for input from a client that has first to read what it was told."""
        self.flush()
        while self._write_blocked:
            self._expiry = None
            await self._wait(self.listener.reply_time)
        if not self._buffer:
            await self._more(seconds, expiry)

    # --- The wire

    def flush(self) -> None:
        if self.out:
            octets, self.out = self.out, b""
            if not self._gone:
                self._transport.write(octets)

    def line(self, limit: int) -> bytes | None:
        buffer = self._buffer
        if not buffer:
            return None
        at = self._at
        if at and len(buffer) - at > limit:  # to copy the rest for each line of a long flight would be quadratic
            return self._one_of_several(limit)
        line = buffer[at:-2]
        # Nearly always one line is all that is there. The tests cost half of `find`. An empty line is left to the slow
        # way: its CR may be the last octet of the chunk before it, and then it is a bare LF.
        if line and buffer[-2:] == b"\r\n" and _LF not in line and len(line) < limit - 1:
            self._buffer, self._at = b"", 0
            return line
        return self._one_of_several(limit)

    def _one_of_several(self, limit: int) -> bytes | None:
        """Return the next line, or None where it has no end yet, the client has first to read, or others are due."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", at) + 1
        self._line_limit = None
        if not end and self._command_time is None:
            self._command_time = self.listener.command_time
            self._hindered = self._hindered or self._command_time is not None
        if not end or (end - at > MAX_AUTH_LINE and end - at > limit):
            if len(buffer) - at >= limit:
                self._line_limit = limit
                self._hindered = True
            return None
        if len(self.out) > MAX_UNSENT:
            self.flush()
            # A client that asks much and reads nothing is not served on; one that reads lets the others have a turn.
            self._hindered = True
            return None
        if end < len(buffer):
            self._at = end
        else:
            self._buffer, self._at = b"", 0
        self._command_time = None
        return buffer[at : end - 2 if buffer.endswith(b"\r\n", at, end) and end - at <= limit else end]

    def _more_of_long_line(self, limit: int) -> Awaitable[None]:
        length = len(self._buffer) - self._at
        if length >= max(limit, MAX_AUTH_LINE):
            raise LimitCrossed("a command line without an end", reply.LINE_NEVER_ENDS, "max_command_length")
        if length < line_limit(self._buffer[self._at : self._at + 5], limit):
            self._expiry = reply.TIMEOUT
            return self._wait(self._silence)
        self._expiry = reply.LINE_NEVER_ENDS
        return self._wait(LINE_END_TIME + self.listener.connections.interval)

    def block(self, most: int | None = None) -> bytes:
        block = self._buffer
        if most is not None and len(block) - self._at > most:  # only these are copied, not the rest too
            at = self._at
            self._at += most
            return block[at : self._at]
        if block:
            if self._at:
                block = block[self._at :]
                self._at = 0
            self._buffer = b""
            if len(block) > HIGH_WATER and not self._in_bulk:
                self._read_in_bulk()
        return block

    def _read_in_bulk(self) -> None:
        """Read into the listener's buffer from now on, and no more than was asked for."""
        # The event loops hand out 256 KiB in fresh pages and read on: that costs 0.2 ms a megabyte and, where the
        # handler is slow, 1 MiB a connection. For short commands `data_received` is 2 µs a message cheaper.
        self._in_bulk = True
        self.pause()  # uvloop looks at the protocol when it begins to read
        self._transport.set_protocol(Bulk(self))

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

    def buffered(self) -> bool:
        return bool(self._buffer)

    async def delay(self, seconds: float) -> None:
        if self._ending is not None:
            raise self._ending
        self.pause()  # what it sends meanwhile waits in the kernel
        self.flush()
        self._command_time = None
        loop = self._loop
        until = loop.time() + seconds
        # More than once where input that was read before wakes it, or where the loop's timer is early.
        while not self._gone and (left := until - loop.time()) > 0.0:
            timer = loop.call_later(left, self._wake, None)
            try:
                await self._wait(FOREVER)
            finally:
                timer.cancel()

    async def wait_input(self, seconds: float) -> None:
        if self._buffer:
            return
        timer = self._loop.call_later(seconds, self._wake, None)
        try:
            await self._more(seconds + self._silence)
        finally:
            timer.cancel()

    def stop(self, answer: Reply) -> None:
        self._end(ConnectionEnded("the server closes", answer))

    def ends_with(self, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):  # else a handler awaited something that was cancelled
            task = asyncio.current_task()
            return task is None or task.cancelling() > 0
        return isinstance(error, PROGRAM_ENDS)

    def apart(self, coroutine: Coroutine[Any, Any, None]) -> Apart:
        return Apart(coroutine)

    def time_limit(self, seconds: float) -> TimeLimit:
        return TimeLimit(self, seconds)

    def pause(self) -> None:
        """Read no more until more is asked for."""
        if not (self._paused or self._discarding or self._upgrading):
            self._paused = self._hindered = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        self._transport.resume_reading()

    # --- TLS

    async def start_tls(self) -> TLSInfo:
        self.pause()  # before the 220 leaves: a ClientHello that is read before start_tls is lost
        self.flush()
        early = self.block()  # behind a PROXY header the ClientHello may be here already
        try:
            transport = await self._upgraded(early)
        except OSError as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            self.failure = HandshakeFailed(f"TLS handshake failed: {reason}")
            self.failure.__cause__ = error
            raise ConnectionEnded(str(self.failure)) from error
        self._transport = transport
        self._under_tls = True
        self._in_bulk = False
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
            # Closed before its first step, a handshake "succeeds": asyncio has no transport then, uvloop no TLS in it.
            if transport is None or transport.get_extra_info("ssl_object") is None:
                raise ConnectionResetError("the client closed the connection")
        except BaseException:
            self._gone = self._hindered = True  # the event loop has closed it, and tells only the TLS protocol
            raise
        finally:
            self._paused = False
        self._upgrading = False
        return transport

    async def _fed(self, handshake: Any, early: bytes) -> asyncio.Transport | None:
        """Do a handshake whose first octets were read already: they go into the TLS protocol's own buffer."""
        # The order is what makes it safe on both loops: the task's first step schedules connection_made and
        # resume_reading, and `feed`, scheduled behind that step, schedules itself behind those two, before any
        # more is read from the socket.
        task = self._loop.create_task(handshake)
        plain = self._transport

        def feed() -> None:
            tls = cast("asyncio.BufferedProtocol | None", plain.get_protocol())
            if tls is None:  # uvloop: the client is gone
                return
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
        self._discarding = self._hindered = True
        self._buffer, self._at = b"", 0
        with suppress(OSError, NotImplementedError, RuntimeError):
            if not self._under_tls:
                self._transport.write_eof()
            if self._paused:
                self._resume()
            if not (self._eof or self._gone):
                await self._wait(LINGER_TIME + self.listener.connections.interval)

    def close(self) -> None:
        """Close the connection; what was written still leaves, if the client takes it."""
        self.flush()
        transport = self._transport
        if transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_TIME, transport.abort)
        transport.close()
