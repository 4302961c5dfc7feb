"""A message and its answer: DATA (RFC 5321 4.1.1.4) and BDAT (RFC 3030) give it to ``on_data`` as it comes."""

from __future__ import annotations

from logging import INFO
from time import monotonic
from typing import TYPE_CHECKING

from pillarbox.errors import MessageTooLarge
from pillarbox.smtp import chunks, limits, reply
from pillarbox.smtp.asking import ON_DATA
from pillarbox.smtp.body import DataDecoder
from pillarbox.smtp.chunks import ChunkDecoder, Chunks
from pillarbox.smtp.phase import CHUNKS, MAIL
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.stream import MessageStream
from pillarbox.smtp.wire import ConnectionEnded, TransactionAborted
from pillarbox.statistics import MESSAGE_BOUNDS, count

if TYPE_CHECKING:
    from pillarbox.errors import Reject
    from pillarbox.session import Envelope
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
    answer: object = None
    wire.measured = stream
    try:
        try:
            answer = await c.asking.ask(ON_DATA, stream, c.session)
        except Refused as refused:
            answer = Refused(refused.reply)  # not that one: its traceback refers to this frame
        if not stream.close():
            await stream.drain()
    except BaseException as end:
        _lost(c, stream, c.session.envelope, answer, end)
        raise
    finally:
        wire.measured = None
    if stream.refusal is not None:  # stands even where the handler swallowed it
        answer = _in_its_place(c, stream.refusal, answer)
    if answer is None and not service.options.lmtp:
        c.counts = None
        _end_message(c, stream, service.accepted, "accepted")
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
    if not (size or last):
        limits.junk(c)  # it brings the message no nearer
    if c.chunks is not None:  # the stream waits for it
        c.chunks.begin(size, last)
        return
    refusal = c.chunk_refusal if c.phase & CHUNKS else c.missing(c.service.for_message)
    if refusal is not None:
        await chunks.discard(c, size)
        _refuse_discarded(c, last, refusal)
        return
    service = c.service
    decoder = ChunkDecoder(service.bare_newline, binary=c.session.envelope.body_type == "binarymime")
    source = Chunks(c, decoder)
    source.begin(size, last)
    stream = MessageStream(source, decoder, service.size, service.enforced_size)
    c.phase |= CHUNKS
    c.begin_chunks(source)
    c.wire.measured = stream
    try:
        answer = await _received(c, stream, source)
    except TransactionAborted:  # what aborted it has been answered
        return
    finally:
        c.wire.measured = None
        c.end_chunks()
        source.end()
    await (_finish if source.last else _refuse_chunk)(c, stream, answer)


def _refuse_discarded(c: Conversation, last: bool, refusal: Reply) -> None:
    begun = c.phase & CHUNKS
    if not (last and c.service.options.lmtp) or not (begun or refusal in (reply.NEED_MAIL, reply.NEED_RCPT)):
        raise Refused(refusal)
    # RFC 2033 4.3: a BDAT command with LAST has one reply for each previously successful RCPT command in the mail
    # transaction, and "if there were no previously successful RCPT commands in the mail transaction, then the BDAT LAST
    # command returns zero replies": a client that sends ahead counts on that.
    limits.junk(c)
    for _ in range(c.chunk_recipients if begun else 0):
        c.reply(refusal)


async def _received(c: Conversation, stream: MessageStream, source: Chunks) -> object:
    """Return what the handler says of a message, which may be before its last chunk if it refuses it."""
    envelope = c.session.envelope
    answer: object = None
    try:
        try:
            answer = await c.asking.ask(ON_DATA, stream, c.session)
        except Refused as refused:
            answer = Refused(refused.reply)  # not that one: its traceback refers to this frame
        stream.close()
        if c.phase & MAIL:
            # A refusal need not wait for the rest of the message, only for that of the chunk.
            at_once = isinstance(answer, Refused)
            await stream.drain(lambda: source.complete and (at_once or stream.refusal is not None))
        if not c.phase & MAIL:  # whatever the handler made of it
            raise TransactionAborted
    except BaseException as end:
        _lost(c, stream, envelope, answer, end)
        raise
    return answer if stream.refusal is None else _in_its_place(c, stream.refusal, answer)


async def _refuse_chunk(c: Conversation, stream: MessageStream, answer: object) -> None:
    refusal = await c.asking.message_reply(answer)
    c.reply(refusal)
    c.chunk_recipients = len(c.session.envelope.rcpt_to)
    _end_message(c, stream, refusal, _outcome(refusal))
    # RFC 3030 2: "the receiver SMTP MUST be prepared to accept and discard additional BDAT chunks already in the
    # pipeline after the failed BDAT": until RSET or a new MAIL.
    c.phase |= CHUNKS
    c.chunk_refusal = refusal if isinstance(stream.refusal, MessageTooLarge) else reply.CHUNK_AFTER_REFUSAL
    _close_with(stream, refusal)
    c.wire.flush()


async def _finish(c: Conversation, stream: MessageStream, answer: object) -> None:
    last, outcome = await _answer_message(c, answer)
    _end_message(c, stream, last, outcome)
    _close_with(stream, last)
    c.wire.flush()


async def _answer_message(c: Conversation, answer: object) -> tuple[Reply, str]:
    """Answer for a message, or in LMTP for each recipient; return the last reply, or the one that closes.

    And what became of the message, as it is counted: accepted, where it is for a recipient.
    """
    if not c.service.options.lmtp:
        last = await c.asking.message_reply(answer)
        _reply(c, last)
        return last, _outcome(last)
    closes = taken = None
    async for last in c.asking.recipient_replies(answer):
        _reply(c, last)
        closes = last if last.code == 421 else closes
        taken = last if last.code < 400 else taken
    return closes or last, _outcome(taken or last)


def _outcome(answer: Reply) -> str:
    return "refused" if answer.code >= 500 else "deferred" if answer.code >= 400 else "accepted"


def _reply(c: Conversation, answer: Reply) -> None:
    if answer.code < 400:
        c.counts = None  # a message that is refused proves nothing, and guesses recipients without a trace
    c.reply(answer)


def _in_its_place(c: Conversation, refusal: Reject, answer: object) -> Refused:
    """Return the refusal that stands for whatever the handler answered."""
    c.asking.let_go(answer)
    refusals = c.service.statistics.refusals
    if isinstance(refusal, MessageTooLarge):
        count(refusals["limit"], "size")
    else:
        count(refusals["protocol"], "content")
    refusal.__traceback__ = None  # which refers to the stream, and that to this
    return Refused(reply.from_reject(refusal, reply.LOCAL_ERROR))


def _lost(c: Conversation, stream: MessageStream, envelope: Envelope, answer: object, end: BaseException) -> None:
    """Note that a message did not come to its end."""
    c.asking.let_go(answer)
    c.service.statistics.messages["aborted"] += 1
    c.service.statistics.message_bytes += stream.received
    _log(c, "aborted", stream, envelope, str(end) or "cut off")


def _end_message(c: Conversation, stream: MessageStream, last: Reply, outcome: str) -> None:
    statistics = c.service.statistics
    statistics.messages[outcome] += 1
    statistics.message_bytes += stream.byte_length
    took, durations = monotonic() - stream.began, statistics.message_seconds
    if took <= MESSAGE_BOUNDS[0]:  # as nearly always: to search for its place would take 0.1 µs
        durations.counts[0] += 1
        durations.sum += took
    else:
        durations.add(took)
    if c.informs:
        _log(c, "message", stream, c.session.envelope, str(last))
    c.reset()


def _log(c: Conversation, kind: str, stream: MessageStream, envelope: Envelope, outcome: str) -> None:
    c.service.log.event(
        INFO, kind, c.session, "message from <%s> for %d recipients, %d bytes: %s",
        str(envelope.mail_from), len(envelope.rcpt_to), stream.received, outcome,
    )  # fmt: skip


def _close_with(stream: MessageStream, last: Reply) -> None:
    """Raise ConnectionEnded where the connection has to go with the message."""
    if last.code == 421:
        raise ConnectionEnded("closed by the reply")
    if stream.bare:
        raise ConnectionEnded("a bare CR or LF in the message")
