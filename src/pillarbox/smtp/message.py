"""A message and its answer: DATA (RFC 5321 4.1.1.4) and BDAT (RFC 3030) give it to ``on_data`` as it comes."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING

from pillarbox.smtp import chunks, reply
from pillarbox.smtp.asking import ON_DATA
from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.chunks import ChunkDecoder, Chunks
from pillarbox.smtp.phase import CHUNKS, MAIL
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.stream import MessageStream
from pillarbox.smtp.wire import ConnectionEnded, TransactionAborted

if TYPE_CHECKING:
    from pillarbox.smtp.conversation import Conversation


async def data(c: Conversation, argument: str) -> Reply | None:
    """Receive a message, give it to the handler as it comes, and answer for it."""
    if argument:
        raise Refused(reply.syntax("DATA"))
    if c.session.envelope.body_type == "binarymime":
        # RFC 3030 3: such content has no lines, so no end that DATA could find.
        raise Refused(reply.BINARY_NEEDS_BDAT)
    service, wire = c.service, c.wire
    c.reply(reply.START_DATA)
    wire.flush()  # the client need not wait until the handler reads
    stream = MessageStream(wire, DataDecoder(service.bare_newline), service.size, service.enforced_size)
    answer: object
    try:
        answer = await c.asking.ask(ON_DATA, stream, c.session)
    except Refused as refused:
        answer = refused
    if not stream.close():
        await stream.drain()
    if stream.refusal is not None:  # stands even where the handler swallowed it
        answer = Refused(reply.from_reject(stream.refusal, reply.LOCAL_ERROR))
    if answer is None and not service.options.lmtp:
        _end_message(c, stream, service.accepted)
        if not wire.buffered():
            return service.accepted
        c.reply(service.accepted)
        wire.flush()  # the client need not wait for what it sent behind the message: it would send that again
        return None
    await _finish(c, stream, answer)
    return None


async def bdat(c: Conversation, argument: str) -> None:
    """Receive a chunk; with the first one the message goes to the handler, which gets all of them as one stream."""
    size, last = chunks.parse(argument)
    if c.chunks is not None:  # the stream waits for it
        c.chunks.begin(size, last)
        return
    refusal = c.chunk_refusal if c.phase & CHUNKS else c.missing(c.service.for_message)
    if refusal is not None:
        await chunks.discard(c, size, refusal)
    service = c.service
    decoder = ChunkDecoder(service.bare_newline, binary=c.session.envelope.body_type == "binarymime")
    source = Chunks(c, decoder)
    source.begin(size, last)
    stream = MessageStream(source, decoder, service.size, service.enforced_size)
    c.phase |= CHUNKS
    c.begin_chunks(source)
    try:
        answer = await _received(c, source, stream)
    except TransactionAborted:  # what aborted it has been answered
        return
    finally:
        c.end_chunks()
    await (_finish if source.last else _refuse_chunk)(c, stream, answer)


async def _received(c: Conversation, source: Chunks, stream: MessageStream) -> object:
    """Return what the handler says of a message, which may be before its last chunk if it refuses it."""
    answer: object
    try:
        answer = await c.asking.ask(ON_DATA, stream, c.session)
    except Refused as refused:
        answer = refused
    stream.close()
    if c.phase & MAIL:
        # A refusal need not wait for the rest of the message, only for that of the chunk.
        at_once = isinstance(answer, Refused)
        await stream.drain(lambda: source.complete and (at_once or stream.refusal is not None))
    if not c.phase & MAIL:  # whatever the handler made of it
        raise TransactionAborted
    return answer if stream.refusal is None else Refused(reply.from_reject(stream.refusal, reply.LOCAL_ERROR))


async def _refuse_chunk(c: Conversation, stream: MessageStream, answer: object) -> None:
    refusal = await c.asking.message_reply(answer)
    c.reply(refusal)
    _end_message(c, stream, refusal)
    # RFC 3030 2: "the receiver SMTP MUST be prepared to accept and discard additional BDAT chunks already in the
    # pipeline after the failed BDAT": until RSET or a new MAIL.
    c.phase |= CHUNKS
    c.chunk_refusal = refusal if stream.size_exceeded else reply.CHUNK_AFTER_REFUSAL
    _close_with(stream, refusal)
    c.wire.flush()


async def _finish(c: Conversation, stream: MessageStream, answer: object) -> None:
    last = await _answer_message(c, answer)
    _end_message(c, stream, last)
    _close_with(stream, last)
    c.wire.flush()


async def _answer_message(c: Conversation, answer: object) -> Reply:
    """Answer for a message, or in LMTP for each recipient; return the last reply, or the one that closes."""
    if not c.service.options.lmtp:
        last = await c.asking.message_reply(answer)
        c.reply(last)
        return last
    closes = None
    async for last in c.asking.recipient_replies(answer):
        c.reply(last)
        closes = last if last.code == 421 else closes
    return closes or last


def _end_message(c: Conversation, stream: MessageStream, last: Reply) -> None:
    if c.informs:
        envelope = c.session.envelope
        c.service.log.event(
            INFO, "message", c.session, "message from <%s> for %d recipients, %d bytes: %s",
            str(envelope.mail_from), len(envelope.rcpt_to), stream.byte_length, str(last),
        )  # fmt: skip
    c.unrecognized = 0
    c.reset()


def _close_with(stream: MessageStream, last: Reply) -> None:
    """Raise ConnectionEnded where the connection has to go with the message."""
    if last.code == 421:
        raise ConnectionEnded("closed by the reply")
    if stream.bare:
        raise ConnectionEnded("a bare CR or LF in the message")
