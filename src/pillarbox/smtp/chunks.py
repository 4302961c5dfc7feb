"""A message that comes in chunks (BDAT, RFC 3030): where each begins and ends, so that no octet of one is a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillarbox.smtp import reply
from pillarbox.smtp.body import BareNewline, checked, worse
from pillarbox.smtp.params import upper
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.wire import ConnectionEnded

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pillarbox.smtp.conversation import Conversation
    from pillarbox.smtp.wire import Apart

# RFC 1870 3 gives a size 20 digits; more would only be there to break something.
_MAX_DIGITS = 20
BAD_SYNTAX = reply.syntax("BDAT size [LAST]")


def parse(argument: str) -> tuple[int, bool]:
    """Return the size of a chunk and whether it is the last; raises ConnectionEnded."""
    # RFC 3030 2: 'bdat-cmd ::= "BDAT" SP chunk-size [ SP end-marker ] CR LF'. Where the size is not known, what follows
    # cannot be told from commands.
    size, *mark = argument.split(" ")
    digits = size.isascii() and size.isdigit() and len(size) <= _MAX_DIGITS
    # ASCII only, or "LAſT" would end the message.
    if not digits or (mark and [upper(word) for word in mark] != ["LAST"]):
        raise ConnectionEnded("malformed BDAT", BAD_SYNTAX)
    return int(size), bool(mark)


class Chunks:
    """What a message stream reads instead of the wire: the octets of chunks; between them commands are served."""

    __slots__ = ("_conversation", "_decoder", "_dialogue", "_left", "_size", "begun", "last")

    def __init__(self, conversation: Conversation, decoder: ChunkDecoder) -> None:
        self._conversation = conversation
        self._decoder = decoder
        self._dialogue: Apart | None = None  # what follows the chunk, once that is answered
        self._size = self._left = 0
        self.last = False  # whether this chunk ends the message
        self.begun = False  # a chunk has begun that was waited for

    def begin(self, size: int, last: bool) -> None:
        """Take the next chunk."""
        self._size = self._left = size
        self.last = last
        self._decoder.ending = last and not size
        self._dialogue = None
        self.begun = True

    def block(self) -> bytes:
        """Return what has come of this chunk."""
        if not self._left:
            return b""
        block = self._conversation.wire.block(self._left)
        self._left -= len(block)
        self._decoder.ending = self.last and not self._left
        return block

    def more(self) -> Awaitable[None]:
        """Wait for octets of this chunk or, where it is complete, for the next; raises TransactionAborted."""
        return self._conversation.wire.more() if self._left else self._next()

    def unread(self, octets: bytes) -> None:
        """Put octets of this chunk back in front of what is read next."""
        self._left += len(octets)
        self._decoder.ending = False
        self._conversation.wire.unread(octets)

    async def _next(self) -> None:
        """Answer the chunk, once, and serve commands until the next: apart from whoever waits for that."""
        # A handler may give up waiting (a time limit of its own) and wait again or return, and may wait in another
        # task: neither must cost a command its reply or give a chunk two.
        if self._dialogue is None:
            conversation = self._conversation
            # RFC 3030 2: "A 250 response MUST be sent to each successful BDAT data block".
            conversation.reply(reply.chunk_received(self._size))
            self.begun = False
            self._dialogue = conversation.wire.apart(conversation.run(between_chunks=True))
        await self._dialogue.wait()

    @property
    def received(self) -> int:
        """Octets of this chunk that have come."""
        return self._size - self._left

    @property
    def complete(self) -> bool:
        """Whether all octets of a chunk have come, and it is still to be answered."""
        return not self._left and self._dialogue is None

    async def skip(self) -> None:
        """Read the rest of this chunk and drop it."""
        while self._left:
            while not self.block():
                await self._conversation.wire.more()

    def end(self) -> None:
        """Serve no more commands for the sake of this message."""
        if self._dialogue is not None:
            self._dialogue.cancel()
            self._dialogue = None


async def discard(conversation: Conversation, size: int) -> None:
    """Read a chunk that is not wanted."""
    chunks = Chunks(conversation, ChunkDecoder("accept", binary=True))
    chunks.begin(size, last=True)
    conversation.wire.measured = chunks
    try:
        await chunks.skip()
    finally:
        conversation.wire.measured = None


class ChunkDecoder:
    """Turns the octets of chunks into the message: like ``DataDecoder``, but no dot means anything."""

    __slots__ = ("_bare_newline", "_binary", "_carry", "ending", "finished", "flaw", "rest")

    def __init__(self, bare_newline: BareNewline, *, binary: bool) -> None:
        self._bare_newline = bare_newline
        self._binary = binary or bare_newline == "accept"
        self._carry = b""  # a CR whose LF may be in the next chunk
        self.ending = False  # what is fed next is the last
        self.finished = False
        self.rest = b""
        self.flaw: Reply | None = None

    def feed(self, block: bytes) -> bytes:
        """Return what of the message these octets complete."""
        self.finished = self.ending
        if self._binary:
            return block
        data = self._carry + block
        self._carry = b""
        if data[-1:] == b"\r" and not self.finished:
            data, self._carry = data[:-1], b"\r"
        data, flaw = checked(data, self._bare_newline)
        self.flaw = worse(self.flaw, flaw)
        return data
