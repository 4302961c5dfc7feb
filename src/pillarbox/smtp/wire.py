"""What the conversation asks of a connection: the asyncio transport gives it, and so does a list of bytes in a test."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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


class Wire(Protocol):
    """One connection, as the protocol needs it."""

    def write(self, octets: bytes) -> None:
        """Send; what is written before the next read leaves together."""

    def flush(self) -> None:
        """Send what was written now, without waiting for the next read."""

    async def read_line(self, limit: int) -> bytes:
        """Return the next line with its LF, of whatever length up to ``MAX_AUTH_LINE``.

        A line longer than ``limit`` that does not end soon ends the conversation.
        """
        ...

    async def read_block(self) -> bytes:
        """Return all octets that are there, at least one."""
        ...

    def unread(self, octets: bytes) -> None:
        """Put octets back in front of what is read next."""

    def pending(self) -> bool:
        """Whether input has arrived that nothing has read yet."""
        ...

    async def wait_input(self, seconds: float) -> None:
        """Return when input arrives or the time is over, whichever is first."""

    async def start_tls(self) -> TLSInfo:
        """Send what was written, do the handshake and go on under TLS; raises ConnectionEnded if it fails."""
        ...

    def stop(self, reply: Reply) -> None:
        """Let the read that waits, or the next one, raise ConnectionEnded with this reply."""

    def ends_with(self, error: BaseException) -> bool:
        """Whether this ends the connection or the program, and is no failure of the handler that it came from."""
        ...

    def time_limit(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError in the block when it has run so long, not counting waits for the client."""
        ...


def line_limit(start: bytes, limit: int) -> int:
    """Return the limit for a line that begins so: AUTH may be longer."""
    return max(limit, MAX_AUTH_LINE) if start[:5].upper() == b"AUTH " else limit
