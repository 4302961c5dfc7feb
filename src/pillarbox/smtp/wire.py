"""What the conversation asks of a connection: the asyncio transport gives it, and so does a list of bytes in a test."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from pillarbox.session import TLSInfo
    from pillarbox.smtp.reply import Reply

# RFC 4954 4: "the maximum length of the … AUTH command … 12288 octets" holds for its continuation lines too.
MAX_AUTH_LINE = 12_288


class ConnectionEnded(ConnectionError):
    """The conversation is over; ``reply`` is what the client is still told, if it is there to hear it.

    Raised by every read of the wire once the client is gone, silent for too long, or the server closes; a handler
    sees it in the message stream as the ConnectionError that it is.
    """

    def __init__(self, why: str, reply: Reply | None = None) -> None:
        super().__init__(why)
        self.reply = reply


class LimitCrossed(ConnectionEnded):
    """The conversation is over because the client crossed a limit, which is logged and counted under its name."""

    def __init__(self, why: str, reply: Reply | None, limit: str) -> None:
        super().__init__(why, reply)
        self.limit = limit


class TransactionAborted(ConnectionError):
    """The client gave a message up between two of its chunks (RSET, EHLO): it never looks like the end of it."""

    def __init__(self) -> None:
        super().__init__("the client aborted the transaction")


class Apart(Protocol):
    """A coroutine that runs on, whatever becomes of those who wait for it."""

    async def wait(self) -> None:
        """Return when it has ended; raises what ended it, each time."""

    def cancel(self) -> None:
        """End it, if it runs."""


class Arriving(Protocol):
    """What a client sends that must not come too slowly (``min_data_rate``)."""

    @property
    def received(self) -> int:
        """Octets that have come so far."""
        ...


class Wire(Protocol):
    """One connection, as the protocol needs it.

    ``out`` is what is to be sent: append to it; it leaves with ``more``, in one piece, or with ``flush``.
    ``measured`` is what the client is sending that has a rate to keep.
    """

    out: bytes
    measured: Arriving | None

    def flush(self) -> None:
        """Send ``out`` now, without waiting for input."""

    def line(self, limit: int) -> bytes | None:
        """Return the next line without its CRLF; None until ``more`` has come.

        One that is not as it should be keeps its end: it has a bare LF, or is longer than ``limit`` (with its end) and
        not than ``MAX_AUTH_LINE``. A line longer than ``limit`` that does not end soon ends the conversation.
        """
        ...

    def block(self, most: int | None = None) -> bytes:
        """Return all octets that are there, or at most so many of them; maybe none."""
        ...

    def more(self) -> Awaitable[None]:
        """Return when something new has arrived; raises ConnectionEnded where nothing will."""
        ...

    def unread(self, octets: bytes) -> None:
        """Put octets back in front of what is read next."""

    def pending(self) -> bool:
        """Whether input has arrived that nothing has read yet."""
        ...

    def buffered(self) -> bool:
        """Whether input was read already that nothing has asked for: what `pending` knows without asking the kernel."""
        ...

    async def wait_input(self, seconds: float) -> None:
        """Return when input arrives or the time is over, whichever is first."""

    async def delay(self, seconds: float) -> None:
        """Send what was written and let the client wait, whatever it sends; raises ConnectionEnded as ``more`` does."""

    async def admit(self) -> Reply | None:
        """Count the client, as the session has it now; the refusal where that is one too many of its address."""
        ...

    async def start_tls(self) -> TLSInfo:
        """Send what was written, do the handshake and go on under TLS; raises ConnectionEnded if it fails."""
        ...

    def stop(self, reply: Reply) -> None:
        """Let the read that waits, or the next one, raise ConnectionEnded with this reply."""

    def ends_with(self, error: BaseException) -> bool:
        """Whether this ends the connection or the program, and is no failure of the handler that it came from."""
        ...

    def apart(self, coroutine: Coroutine[Any, Any, None]) -> Apart:
        """Run a coroutine of the conversation apart from the handler that waits for it."""
        ...

    def time_limit(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError in the block when it has run so long, not counting waits for the client."""
        ...


def line_limit(start: bytes, limit: int) -> int:
    """Return the limit for a line that begins so: AUTH may be longer."""
    return max(limit, MAX_AUTH_LINE) if start[:5].upper() == b"AUTH " else limit


async def read_line(wire: Wire, limit: int) -> bytes:
    """Return the next line, as ``Wire.line`` does, when it is there."""
    while (line := wire.line(limit)) is None:
        await wire.more()
    return line
