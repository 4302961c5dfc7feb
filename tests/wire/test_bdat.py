"""BDAT (RFC 3030) through sockets: chunks of every size, what stands between them, and every way in which they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from garbage import no_garbage
from pillarbox import Command, Extension, MessageStream, Reject, Reply, Session
from support import TIMEOUT, Client, Inbox, Served, on_both_loops, pem, recorded, serving, trusting

MIB = 1024 * 1024
LARGE = b"".join(b"%08d %s\r\n" % (number, b"x" * 70) for number in range(311_000))  # 25 MB


class Errors(list[BaseException]):
    """An ``on_error`` that keeps what it is told."""

    def __call__(self, error: BaseException, session: Session | None) -> None:
        self.append(error)


class Attentive:
    """An ``on_data`` that tells how its message ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, stream: MessageStream, session: Session) -> None:
        try:
            self.ended.put_nowait(await stream.read())
        except BaseException as error:
            self.ended.put_nowait(error)
            raise

    async def end(self) -> Any:
        """Return the message, or what was raised in its place."""
        return await asyncio.wait_for(self.ended.get(), TIMEOUT)


@asynccontextmanager
async def transaction(*recipients: str, **options: Any) -> AsyncIterator[tuple[Served, Client]]:
    """Yield a server and a client that has begun a transaction."""
    async with serving(**options) as served:
        client = await served.hello()
        await client.envelope("from@example.com", *recipients)
        yield served, client


async def chunk(client: Client, octets: bytes, last: str = "") -> str:
    """Send one chunk and return its reply."""
    await client.send(b"BDAT %d%b\r\n" % (len(octets), last.encode()) + octets)
    return await client.hear()


async def under(kind: str, served: Served) -> Client:
    """Return a client that speaks through plain TCP, STARTTLS or implicit TLS."""
    if kind == "implicit":
        return await served.hello(trusting())
    client = await served.hello()
    if kind == "starttls":
        await client.starttls(trusting())
        await client.ehlo()
    return client


def secured(kind: str) -> dict[str, Any]:
    return {**pem(), "secure": kind == "implicit"}


# --- What arrives


@pytest.mark.parametrize("kind", ["plain", "starttls", "implicit"])
@on_both_loops
async def test_large_chunks(kind: str) -> None:
    digests: list[str] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        content = sha256()
        async for block in stream:
            content.update(block)
        digests.append(content.hexdigest())

    async with serving(on_data=on_data, **secured(kind)) as served:
        client = await under(kind, served)
        for size in (len(LARGE), MIB + 1):
            await client.envelope()
            parts = [LARGE[at : at + size] for at in range(0, len(LARGE), size)]
            for part in parts[:-1]:
                assert await chunk(client, part) == f"250 {len(part)} octets received"
            assert await chunk(client, parts[-1], " LAST") == "250 OK: message queued"
        assert await client.say("NOOP") == "250 OK"
    assert digests == [sha256(LARGE).hexdigest()] * 2


@pytest.mark.parametrize("kind", ["plain", "starttls", "implicit"])
@on_both_loops
async def test_thousands_of_small_chunks_sent_ahead(kind: str) -> None:
    inbox = Inbox()
    parts = [b"%d\r\n" % number for number in range(5_000)]
    ahead = b"".join(b"BDAT %d\r\n%b" % (len(part), part) for part in parts) + b"BDAT 0 LAST\r\nNOOP\r\n"
    async with serving(on_data=inbox, **secured(kind)) as served:
        client = await under(kind, served)
        await client.envelope()
        client.writer.write(ahead)
        for part in parts:
            assert await client.hear() == f"250 {len(part)} octets received"
        assert await client.hear() == "250 OK: message queued"
        assert await client.hear() == "250 OK"
    assert inbox[0].content == b"".join(parts)


@pytest.mark.promises("Memory", "A client that sends faster than it is served, or than its message is read, is paused.")
@pytest.mark.parametrize("size", [16 * MIB, 1_000])
@on_both_loops
async def test_a_slow_handler_stops_the_client(size: int) -> None:
    """What the server holds is bounded, whether the chunks are large or small."""
    go_on, read = asyncio.Event(), asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        async for _ in stream:
            if stream.byte_length >= 1_000:
                read.set()
                await go_on.wait()

    octets = 16 * MIB // size * size
    async with transaction(on_data=on_data) as (served, client):
        for _ in range(octets // size):
            client.writer.write(b"BDAT %d\r\n" % size + bytes(b"x" * size))
        client.writer.write(b"BDAT 0 LAST\r\n")
        await asyncio.wait_for(read.wait(), TIMEOUT)
        connection = next(iter(served.server._connections.all))
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert len(connection._buffer) <= 512 * 1024
        assert client.writer.transport.get_write_buffer_size() > 0
        go_on.set()
        for _ in range(octets // size):
            assert (await client.reply()).code == 250
        assert await client.hear() == "250 OK: message queued"


@pytest.mark.promises("Memory", "A client that reads no replies is paused, and then the connection ends.")
async def test_a_client_that_reads_no_replies_is_not_served_on() -> None:
    closed = asyncio.Event()
    async with serving(socket_timeout=1.0, on_close=lambda _: closed.set()) as served:
        # Small buffers in the kernel, so that few replies fill them.
        here, there = socket.create_server(("127.0.0.1", 0)), socket.socket()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await served.server.listen(sock=here)
        there.connect(here.getsockname())
        client = Client(*await asyncio.open_connection(sock=there))
        assert (await client.reply()).code == 220
        await client.ehlo()
        await client.envelope()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.transport.set_write_buffer_limits(high=0)
        sent, chunks = 0, b"BDAT 1\r\nx" * 1_000
        with contextlib.suppress(TimeoutError):
            while sent < 64 * MIB:
                client.writer.write(chunks)
                await asyncio.wait_for(client.writer.drain(), 0.5)
                sent += len(chunks)
        assert sent < 16 * MIB
        await asyncio.wait_for(closed.wait(), 30)
        client.writer.transport.abort()


# --- How it ends too early


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The end of the connection, or of TLS, inside a chunk delivers nothing."
)
@pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
@pytest.mark.parametrize(
    "place", ["BDAT 100 LAST\r\nabc", "BDAT 3\r\nabc", "BDAT 3\r\nabcBDA", "BDAT 3\r\nabcBDAT 9\r\n"]
)
@pytest.mark.parametrize("way", ["eof", "abort"])
@on_both_loops
async def test_a_client_that_goes_delivers_nothing(place: str, way: str) -> None:
    attentive, errors = Attentive(), Errors()
    with recorded(logging.INFO) as records:
        async with transaction(on_data=attentive, on_error=errors) as (_, client):
            await client.send(place.encode())
            if place.startswith("BDAT 3"):
                assert (await client.reply()).code == 250
            if way == "eof":
                client.writer.write_eof()
                await client.eof()
            else:
                client.writer.transport.abort()
            assert isinstance(await attentive.end(), ConnectionError)
    assert len(errors) <= 1  # a reset is a failure of the network, an end is none
    assert not errors or way == "abort"
    lines = [record.getMessage() for record in records if getattr(record, "tnx", "") in ("message", "aborted")]
    assert len(lines) == 1
    assert lines[0].startswith("message from <from@example.com> for 1 recipients, 3 bytes: ")


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The end of the connection, or of TLS, inside a chunk delivers nothing."
)
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@on_both_loops
async def test_the_end_of_tls_inside_a_chunk_delivers_nothing(kind: str) -> None:
    attentive = Attentive()
    async with serving(on_data=attentive, **secured(kind)) as served:
        client = await under(kind, served)
        await client.envelope()
        await client.send(b"BDAT 10 LAST\r\nabc")
        await client.close()  # with a close_notify
        assert isinstance(await attentive.end(), ConnectionError)


@pytest.mark.parametrize("place", ["BDAT 100 LAST\r\nabc", "BDAT 3\r\nabc"])
@on_both_loops
async def test_a_silent_client_is_given_up(place: str) -> None:
    attentive, errors = Attentive(), Errors()
    async with transaction(on_data=attentive, on_error=errors, socket_timeout=0.2) as (_, client):
        await client.send(place.encode())
        if place.startswith("BDAT 3"):
            assert (await client.reply()).code == 250
        assert await client.hear() == "421 Timeout - closing connection"
        await client.eof()
        assert isinstance(await attentive.end(), ConnectionError)
    assert not errors


async def test_the_server_waits_for_the_rest_when_it_closes() -> None:
    attentive = Attentive()
    async with transaction(on_data=attentive) as (served, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        closing = asyncio.create_task(served.server.close())
        await asyncio.sleep(0.05)
        assert await chunk(client, b"def", " LAST") == "250 OK: message queued"
        assert await client.hear() == "421 Server shutting down"
        await asyncio.wait_for(closing, TIMEOUT)
    assert await attentive.end() == b"abcdef"


async def test_when_it_closes_a_message_may_be_given_up() -> None:
    async with transaction(on_data=Attentive()) as (served, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        closing = asyncio.create_task(served.server.close())
        await asyncio.sleep(0.05)
        assert await client.say("RSET") == "250 Flushed"
        assert await client.hear() == "421 Server shutting down"
        await asyncio.wait_for(closing, TIMEOUT)


@pytest.mark.parametrize("place", ["BDAT 100 LAST\r\nabc", "BDAT 3\r\nabc"])
async def test_the_server_does_not_wait_for_ever_when_it_closes(place: str) -> None:
    attentive = Attentive()
    async with transaction(on_data=attentive, close_timeout=0.1) as (served, client):
        await client.send(place.encode())
        if place.startswith("BDAT 3"):
            assert (await client.reply()).code == 250
        await asyncio.sleep(0.05)
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert await client.hear() == "421 Server shutting down"
    assert isinstance(await attentive.end(), ConnectionError)


# --- Between two chunks


async def hangs(conversation: Any, argument: str) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


async def asks(conversation: Any, argument: str) -> Reply:
    conversation.reply(Reply(354, "", "What?"))
    return Reply(250, "2.0.0", (await conversation.read_line()).decode())


XHANG = Extension(commands=[Command("XHANG", hangs), Command("XASK", asks)])


async def test_a_verb_that_hangs_between_chunks_ends_with_the_server() -> None:
    attentive = Attentive()
    async with transaction(on_data=attentive, extensions=[XHANG], close_timeout=0.1) as (served, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await client.send(b"XHANG\r\n")
        await asyncio.sleep(0.05)
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert await client.hear() == "421 Server shutting down"
    assert isinstance(await attentive.end(), asyncio.CancelledError)


async def test_the_clients_time_and_a_commands_are_not_the_handlers() -> None:
    inbox = Inbox()

    async def on_help(topic: str, session: Session) -> str:
        await asyncio.sleep(0.4)
        return topic

    options = {"on_help": on_help, "on_data": inbox, "extensions": [XHANG], "handler_timeout": 0.7}
    async with transaction(**options) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        for _ in range(2):
            assert await client.say("HELP a") == "214 a"
            await asyncio.sleep(0.4)
        assert await client.say("XHANG") == "451 Error: local error in processing"
        await asyncio.sleep(0.8)
        assert await client.say("XASK") == "354 What?"
        await asyncio.sleep(0.8)
        assert await client.say("that") == "250 that"
        assert await chunk(client, b"def", " LAST") == "250 OK: message queued"
    assert inbox[0].content == b"abcdef"


async def test_the_handlers_own_time_is_counted() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        async for _ in stream:
            await asyncio.sleep(0.4)

    async with transaction(on_data=on_data, handler_timeout=0.7) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        assert await client.say("HELP") == "214 See https://www.rfc-editor.org/rfc/rfc5321 for details"
        assert await chunk(client, b"abc", " LAST") == "451 Error: local error in processing"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("STARTTLS", "503 Error: the message has begun with BDAT"),
        ("AUTH PLAIN", "503 Error: not allowed in a mail transaction"),
        ("XCLIENT NAME=x", "503 Error: not allowed in a mail transaction"),
        ("XFORWARD NAME=x", "503 Error: not allowed in a mail transaction"),
        ("MAIL FROM:<x@example.com>", "503 Error: nested MAIL command"),
        ("RCPT TO:<x@example.com>", "503 Error: the message has begun with BDAT"),
        ("DATA", "503 Error: the message has begun with BDAT"),
        ("EHLO refused.example", "550 Error: access denied"),
        ("NONSENSE", "500 Error: command not recognized"),
        ("VRFY x", "252 Cannot VRFY user, but will accept message and attempt delivery"),
    ],
)
async def test_what_changes_nothing_between_chunks(command: str, answer: str) -> None:
    inbox = Inbox()

    async def on_ehlo(keywords: list[str], session: Session) -> None:
        await asyncio.sleep(0)
        if session.host_name_appears_as == "refused.example":
            raise Reject

    options = {"on_data": inbox, "on_ehlo": on_ehlo, "use_xclient": ["127.0.0.1"], "use_xforward": ["127.0.0.1"]}
    async with transaction(**options, allow_insecure_auth=True) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        assert await client.say(command) == answer
        assert await chunk(client, b"def", " LAST") == "250 OK: message queued"
    assert inbox[0].content == b"abcdef"
    assert inbox[0].recipients == ["to@example.com"]


async def test_too_much_nonsense_between_chunks_closes() -> None:
    attentive = Attentive()
    async with transaction(on_data=attentive) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        for _ in range(9):
            assert (await client.command("NONSENSE")).code == 500
        assert await client.say("NONSENSE") == "421 Error: too many unrecognized commands"
        await client.eof()
    assert isinstance(await attentive.end(), ConnectionError)


@pytest.mark.parametrize("command", ["RSET", "EHLO again.example"])
async def test_giving_up_is_answered_before_the_handler_has_noticed(command: str) -> None:
    go_on, ended = asyncio.Event(), Errors()

    async def on_data(stream: MessageStream, session: Session) -> str:
        try:
            await stream.read()
        except ConnectionError as error:
            ended.append(error)
            await go_on.wait()  # it has much to clear away
        try:
            await stream.read()
        except ConnectionError as error:
            ended.append(error)
        return "stored"

    errors = Errors()
    with recorded(logging.INFO) as records:
        async with transaction(on_data=on_data, on_error=errors) as (_, client):
            assert await chunk(client, b"abc") == "250 3 octets received"
            assert (await client.command(command)).code == 250
            await client.send(b"NOOP\r\n")
            go_on.set()
            assert await client.hear() == "250 OK"
            assert (await client.command("RCPT TO:<a@example.com>")).code == 503
    assert len(ended) == 2
    assert not errors
    lines = [record.getMessage() for record in records if getattr(record, "tnx", "") in ("message", "aborted")]
    assert lines == ["message from <from@example.com> for 1 recipients, 3 bytes: the client aborted the transaction"]


@pytest.mark.parametrize("swallows", ["returns", "reads on", "raises another"])
async def test_quit_is_answered_whatever_the_handler_makes_of_it(swallows: str) -> None:
    async def on_data(stream: MessageStream, session: Session) -> str:
        try:
            await stream.read()
        except ConnectionError:
            if swallows == "raises another":
                raise LookupError from None
        if swallows == "reads on":
            await stream.read()
        return "stored"

    async with transaction(on_data=on_data, on_error=Errors()) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await client.send(b"QUIT\r\nBDAT 3 LAST\r\nabc")
        assert await client.hear() == "221 Bye"
        await client.eof()


# --- Handlers that do not simply read


async def _with_timeout(stream: MessageStream) -> bytes:
    async with asyncio.timeout(0.05):
        return await stream.read()


async def _in_a_task(stream: MessageStream) -> bytes:
    return await asyncio.wait_for(asyncio.create_task(stream.read()), 0.05)


@pytest.mark.parametrize("impatient", [_with_timeout, _in_a_task])
@on_both_loops
async def test_a_handler_that_waits_in_turns(impatient: Callable[[MessageStream], Awaitable[bytes]]) -> None:
    """Each chunk has one reply, however often the handler asks for the next."""
    contents: list[bytes] = []
    turns = 0

    async def on_data(stream: MessageStream, session: Session) -> None:
        nonlocal turns
        while True:
            try:
                contents.append(await impatient(stream))
            except TimeoutError:
                turns += 1
            else:
                return

    async with transaction(on_data=on_data) as (_, client):
        for _ in range(2):
            assert await chunk(client, b"abc") == "250 3 octets received"
            before = turns
            while turns < before + 2:
                await asyncio.sleep(0.01)
        assert await client.say("NOOP") == "250 OK"
        assert await chunk(client, b"def", " LAST") == "250 OK: message queued"
        assert await client.say("NOOP") == "250 OK"
    assert contents == [b"abcabcdef"]


async def test_a_command_whose_handler_outlives_the_readers_patience_is_answered() -> None:
    go_on, given_up = asyncio.Event(), asyncio.Event()

    async def on_help(topic: str, session: Session) -> str:
        await go_on.wait()
        return "here"

    contents: list[bytes] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        assert await stream.read(3) == b"abc"
        try:
            async with asyncio.timeout(0.2):
                await stream.read()
        except TimeoutError:
            given_up.set()
        contents.append(await stream.read())

    async with transaction(on_data=on_data, on_help=on_help) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await client.send(b"HELP\r\n")
        await asyncio.wait_for(given_up.wait(), TIMEOUT)
        go_on.set()
        assert await client.hear() == "214 here"
        assert await chunk(client, b"def", " LAST") == "250 OK: message queued"
    assert contents == [b"def"]


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize("rest", ["BDAT 3 LAST\r\ndef", "BDAT 3\r\ndef", "BDAT 0 LAST\r\n"])
async def test_a_refusal_between_chunks_waits_for_one(rest: str, limit: float | None) -> None:
    """A chunk that was answered has its reply: who loses patience behind it refuses the next one."""
    refused = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            async with asyncio.timeout(0.05):
                await stream.read()
        except TimeoutError:
            refused.set()
            raise Reject(451, "Too slow") from None

    async with transaction(on_data=on_data, handler_timeout=limit) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await asyncio.wait_for(refused.wait(), TIMEOUT)
        assert await client.say("NOOP") == "250 OK"
        await client.send(rest.encode())
        assert await client.hear() == "451 Too slow"
        assert await client.say("RSET") == "250 Flushed"
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"


async def test_a_handler_that_accepts_between_chunks_gets_the_rest_dropped() -> None:
    accepted = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> str:
        try:
            async with asyncio.timeout(0.05):
                await stream.read()
        except TimeoutError:
            accepted.set()
        return "enough"

    async with transaction(on_data=on_data) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await asyncio.wait_for(accepted.wait(), TIMEOUT)
        assert await chunk(client, b"QUIT\r\n") == "250 6 octets received"
        assert await chunk(client, b"QUIT\r\n", " LAST") == "250 enough"
        assert await client.say("NOOP") == "250 OK"


@on_both_loops
async def test_a_reader_that_the_handler_leaves_behind_fails() -> None:
    tasks: list[asyncio.Task[bytes]] = []
    returned = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> str:
        tasks.append(asyncio.create_task(stream.read()))
        await asyncio.sleep(0.1)
        returned.set()
        return "enough"

    async with transaction(on_data=on_data) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        await asyncio.wait_for(returned.wait(), TIMEOUT)
        assert await chunk(client, b"def") == "250 3 octets received"
        assert await chunk(client, b"ghi", " LAST") == "250 enough"
        assert await client.deliver() == "250 enough"
        with pytest.raises(RuntimeError, match="after on_data returned"):
            await asyncio.wait_for(tasks[0], TIMEOUT)


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
async def test_input_that_comes_as_the_handler_returns_is_not_its_readers(verb: str) -> None:
    """The reader that was left behind wakes up after the handler has returned: the message is not its."""
    tasks: list[asyncio.Task[bytes]] = []
    served_by: list[Any] = []

    async def on_data(stream: MessageStream, session: Session) -> str:
        tasks.append(asyncio.create_task(stream.read()))
        connection = next(iter(served_by[0].server._connections.all))
        while connection.waiter is None:
            await asyncio.sleep(0)
        # Awake in the same turn of the loop in which input comes, but before whom that wakes.
        asyncio.get_running_loop().call_soon(connection.data_received, b"half")
        await asyncio.sleep(0)
        return "enough"

    async with transaction(on_data=on_data) as (served, client):
        served_by.append(served)
        await client.send(b"DATA\r\n" if verb == "DATA" else b"BDAT 20 LAST\r\n")
        if verb == "DATA":
            assert (await client.reply()).code == 354
        while not tasks:
            await asyncio.sleep(0.01)
        await client.send(b" a message\r\n.\r\n" if verb == "DATA" else b"x" * 16)
        assert await client.hear() == "250 enough"
        with pytest.raises(RuntimeError, match="after on_data returned"):
            await asyncio.wait_for(tasks[0], TIMEOUT)


# --- What cannot be read


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The size of a chunk is decimal digits; what is anything else ends the connection."
)
@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"BDAT \xff", "501 "),
        (b"BDAT 6\x01", "501 "),
        (b"BDAT 6" + b" " * 4200, "500 "),
        (b"BDAT\t6", "500 "),
        (b"BDAT6", "500 "),
        (b"BDAT -6", "501 "),
        (b"BDAT", "501 "),
    ],
)
async def test_behind_a_malformed_bdat_nothing_is_a_command(line: bytes, answer: str) -> None:
    for begun in (False, True):
        async with transaction(on_data=Attentive()) as (_, client):
            if begun:
                assert await chunk(client, b"abc") == "250 3 octets received"
            await client.send(line + b"\r\nRSET\r\nNOOP\r\n")
            heard = (await client.rest()).split(b"\r\n")
            assert len(heard) == 2, heard
            assert heard[0].startswith(answer.encode())


@pytest.mark.parametrize("cut", [0, 1, 8, 9])
async def test_the_cr_that_ends_a_chunk_ends_no_line(cut: int) -> None:
    # The fuzzer found that it did where the LF behind it came in the same packet.
    octets = b"BDAT 1\r\n\r\n"
    async with serving(bare_newline="reject") as served:
        client = await served.hello()
        for part in filter(None, (octets[:cut], octets[cut:])):
            await client.send(part)
            await asyncio.sleep(0)
        assert await client.rest() == b"503 Error: need MAIL command\r\n500 Error: bare <LF> received\r\n"


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
async def test_a_chunk_behind_a_refused_on_secure_is_not_read() -> None:
    def on_secure(tls: Any, session: Session) -> None:
        raise Reject(554, "Not you")

    async with serving(on_secure=on_secure, **pem()) as served:
        client = await served.hello()
        await client.starttls(trusting())
        await client.send(b"BDAT 6 LAST\r\nRSET\r\n")
        assert await client.hear() == "554 Not you"
        await client.eof()


# --- What is told of it

LEFT = ("Connection", "Conversation", "MessageStream", "Chunks", "ChunkDecoder")


async def test_enforce_size_off_only_tells() -> None:
    seen: list[tuple[int, bool]] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read()
        seen.append((stream.byte_length, stream.size_exceeded))
        raise Reject(550, "No")

    async with transaction(on_data=on_data, size=4, enforce_size=False) as (_, client):
        assert await chunk(client, b"abc") == "250 3 octets received"
        assert await chunk(client, b"def", " LAST") == "550 No"
    assert seen == [(6, True)]


async def test_each_message_has_one_line_in_the_log_and_its_refusal_in_the_session() -> None:
    sessions: list[Session] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        sessions.append(session)
        if b"spam" in await stream.read(4):
            raise Reject(550, "Spam")
        await stream.read()

    with recorded(logging.DEBUG) as records:
        async with transaction(on_data=on_data) as (_, client):
            assert await chunk(client, b"good") == "250 4 octets received"
            assert await chunk(client, b"", " LAST") == "250 OK: message queued"
            await client.envelope()
            assert await chunk(client, b"spam") == "550 Spam"
            assert await chunk(client, b"spam", " LAST") == "503 Error: the message was refused, send RSET"
            assert sessions[0].error == "503 Error: the message was refused, send RSET"
    lines = [record.getMessage() for record in records if getattr(record, "tnx", "") == "message"]
    assert [line.partition("recipients, ")[2] for line in lines] == [
        "4 bytes: 250 2.6.0 OK: message queued",
        "4 bytes: 550 5.0.0 Spam",
    ]
    transcript = [record.getMessage() for record in records if getattr(record, "tnx", "") in ("command", "reply")]
    assert transcript[-10:] == [
        "C: BDAT 0 LAST",
        "S: 250 OK: message queued",
        "C: MAIL FROM:<from@example.com>",
        "S: 250 Accepted",
        "C: RCPT TO:<to@example.com>",
        "S: 250 Accepted",
        "C: BDAT 4",
        "S: 550 Spam",
        "C: BDAT 4 LAST",
        "S: 503 Error: the message was refused, send RSET",
    ]


@pytest.mark.parametrize(
    "said",
    [
        "BDAT 3\r\nabcBDAT 3 LAST\r\ndefQUIT\r\n",
        "BDAT 3\r\nabcNOOP\r\nRSET\r\nQUIT\r\n",
        "BDAT 3\r\nabcQUIT\r\n",
        "BDAT 3\r\nabcBDAT 9\r\nbad",
        "BDAT 3\r\nbadQUIT\r\n",
        "BDAT 3 LAST\r\nbadQUIT\r\n",
    ],
)
async def test_nothing_is_left_for_the_garbage_collector(said: str) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        async for block in stream:
            if b"bad" in block:
                raise Reject

    async with serving(on_data=on_data) as served:
        for _ in range(2):
            async with no_garbage(*LEFT):
                client = await served.hello()
                await client.envelope()
                await client.send(said.encode())
                client.writer.write_eof()
                await client.rest()
                await client.close()
