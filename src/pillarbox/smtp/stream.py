"""The message as a handler reads it, while it arrives: pulled from the wire, so that back-pressure is the client's."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from pillarbox.errors import MessageTooLarge, Reject
from pillarbox.smtp.reply import BARE_NEWLINE_IN_DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from email.message import EmailMessage

    from pillarbox.smtp.body import DataDecoder
    from pillarbox.smtp.chunks import ChunkDecoder, Chunks
    from pillarbox.smtp.reply import Reply
    from pillarbox.smtp.wire import Wire


class MessageStream:
    """A message that is arriving: ``async for block in stream`` or ``await stream.read()``.

    byte_length: octets handed out so far; size_exceeded: whether ``size`` was crossed. Both are true to the
    moment. Lines end with CRLF (unless ``bare_newline`` is "accept") and transparency dots are gone (RFC 5321 4.5.2).
    Raises ConnectionError in the middle if the client disappears (it never looks like the end),
    MessageTooLarge past ``size`` (unless ``enforce_size`` is off), and Reject for content that is refused.
    """

    __slots__ = (
        "_closed",
        "_decoder",
        "_limit",
        "_spare",
        "_too_large",
        "_wire",
        "began",
        "byte_length",
        "refusal",
        "size_exceeded",
    )

    def __init__(
        self,
        wire: Wire | Chunks,
        decoder: DataDecoder | ChunkDecoder,
        limit: int | None = None,
        too_large: Reply | None = None,
    ) -> None:
        self._wire = wire
        self._decoder = decoder
        self._limit = limit
        self._too_large = too_large  # None: the size is only watched
        self._spare = b""  # decoded, but not yet asked for
        self.began = monotonic()
        self.byte_length = 0
        self.size_exceeded = False
        self.refusal: Reject | None = None
        self._closed = False

    def __aiter__(self) -> MessageStream:
        return self

    @property
    def bare(self) -> bool:
        """Whether it is refused for a bare CR or LF."""
        return self._decoder.flaw is BARE_NEWLINE_IN_DATA

    @property
    def received(self) -> int:
        """Octets of the message that were decoded, handed out or not."""
        return self.byte_length + len(self._spare)

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._block(iterating=True)  # no coroutine of its own

    async def read(self, n: int = -1) -> bytes:
        """Return at most ``n`` octets, b"" at the end; without ``n`` all that is left. Raises what iterating raises."""
        if n < 0:
            return await self._all()
        if n == 0:
            return b""
        block = await self._block()
        self._spare = block[n:]
        self.byte_length -= len(self._spare)
        return block[:n]

    async def _all(self) -> bytes:
        blocks = []
        try:
            async for block in self:
                blocks.append(block)  # noqa: PERF401 - what was read must outlive a cancellation
        except BaseException:  # a time-out of the handler's own, say: the next read has it again
            self._spare = b"".join(blocks) + self._spare
            self.byte_length -= sum(map(len, blocks))
            raise
        return b"".join(blocks)

    def close(self) -> bool:
        """Let every later read raise RuntimeError, since the handler has returned; tell whether it left nothing."""
        self._closed = True
        if self._spare:  # it came, and nobody will ask for it
            self.byte_length += len(self._spare)
            self._spare = b""
        return self._decoder.finished

    async def message(self) -> EmailMessage:
        """Read the message and return it parsed (``email.policy.default``). Raises what iterating raises."""
        from email import policy
        from email.message import EmailMessage
        from email.parser import BytesParser

        return BytesParser(EmailMessage, policy=policy.default).parsebytes(await self.read())

    async def drain(self, enough: Callable[[], bool] | None = None) -> None:
        """Read what is left to the end of data, or until it is enough, and drop it; raises only ConnectionError."""
        self.byte_length += len(self._spare)
        self._spare = b""
        decoder = self._decoder
        while not (decoder.finished or (enough is not None and enough())):
            while not (octets := self._wire.block()) and not decoder.ending:
                await self._wire.more()
            with suppress(Reject):  # it stands in `refusal`, and the end has still to be found
                self._decoded(octets)

    async def _block(self, *, iterating: bool = False) -> bytes:
        if self._closed:
            raise RuntimeError("the message was read after on_data returned")
        if self._spare:
            block, self._spare = self._spare, b""
            self.byte_length += len(block)
            return block
        decoder, wire = self._decoder, self._wire
        while self.refusal is None and not decoder.finished:
            while not (octets := wire.block()) and not decoder.ending:
                await wire.more()
                if self._closed:  # while a task that on_data left behind waited: what has come is not for it
                    raise RuntimeError("the message was read after on_data returned")
            block = self._decoded(octets)
            if block:
                return block
        if self.refusal is not None:
            raise self.refusal
        if iterating:
            raise StopAsyncIteration
        return b""

    def _decoded(self, octets: bytes) -> bytes:
        decoder = self._decoder
        block = decoder.feed(octets)
        if decoder.rest:
            self._wire.unread(decoder.rest)
            decoder.rest = b""
        length = self.byte_length = self.byte_length + len(block)
        if self._limit is not None and length > self._limit:
            self.size_exceeded = True
        if self.size_exceeded or decoder.flaw is not None:
            self._refuse()
        return block

    def _refuse(self) -> None:
        """Note what the message is refused for, if it is, and raise it the first time."""
        # Which of several reasons is told must not depend on how the message was cut: so not the first that was seen.
        flaw = self._decoder.flaw
        if flaw is not BARE_NEWLINE_IN_DATA and self.size_exceeded and self._too_large is not None:
            refusal: Reject = MessageTooLarge(self._too_large.text)
        elif flaw is not None:
            refusal = Reject(flaw.code, flaw.text, enhanced=flaw.enhanced)
        else:
            return
        first, self.refusal = self.refusal is None, refusal
        if first:
            raise refusal
