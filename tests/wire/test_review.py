"""What a review found in handlers, commands and messages; each test holds one finding shut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pillarbox import AuthRequest, MessageStream, Recipient, Reject, Session
from support import PLAIN, TIMEOUT, Client, Inbox, on_both_loops, serving

START_DATA = "354 End data with <CR><LF>.<CR><LF>"


class Errors(list[Exception]):
    """An ``on_error`` that keeps what it hears."""

    def __call__(self, error: Exception, session: Session | None) -> None:
        self.append(error)


async def within(waited_for: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(waited_for, TIMEOUT)


async def begin_data(client: Client, *recipients: str) -> None:
    """Come to the point where the message begins."""
    await client.envelope("from@example.com", *recipients)
    assert await client.say("DATA") == START_DATA


# --- What a handler returns


async def test_an_awaitable_that_a_coroutine_returns_is_awaited_too() -> None:
    async def check(auth: AuthRequest) -> str | None:
        return "ann" if auth.password == "right" else None

    async def on_auth(auth: AuthRequest, session: Session) -> Any:
        return check(auth)

    async with serving(on_auth=on_auth, allow_insecure_auth=True) as served:
        client = await served.hello()
        assert (await client.command(f"AUTH PLAIN {PLAIN}")).code == 535
        assert served.server.connections[0].user is None
        assert await client.say("AUTH PLAIN AGFubgByaWdodA==") == "235 Authentication successful"
        assert served.server.connections[0].user == "ann"


@pytest.mark.parametrize("name", ["on_mail_from", "on_rcpt_to", "on_data"])
async def test_a_returned_coroutine_that_refuses(name: str) -> None:
    async def refuse() -> None:
        raise Reject(553, "Not that one")

    async def hook(*_: Any) -> Any:
        return refuse()

    async with serving(**{name: hook}) as served:
        client = await served.hello()
        commands = ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", "."]
        answers = [await client.say(command) for command in commands]
        assert "553 Not that one" in answers
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.parametrize("waits", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    ("name", "command", "code"),
    [
        ("on_auth", f"AUTH PLAIN {PLAIN}", 535),
        ("on_mail_from", "MAIL FROM:<a@example.com>", 550),
        ("on_rcpt_to", "RCPT TO:<b@example.com>", 550),
    ],
)
async def test_a_returned_reject_refuses(name: str, command: str, code: int, waits: bool) -> None:
    def plain(*_: Any) -> Reject:
        return Reject(None, "Not you")

    async def waiting(*_: Any) -> Reject:
        return Reject(None, "Not you")

    async with serving(**{name: waiting if waits else plain}, allow_insecure_auth=True) as served:
        client = await served.hello()
        if name == "on_rcpt_to":
            assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        assert await client.say(command) == f"{code} Not you"
        assert served.server.connections[0].user is None


async def test_an_exception_in_an_lmtp_list_is_that_recipients_failure() -> None:
    errors = Errors()

    async def deliver(number: int) -> str:
        if number == 1:
            raise LookupError("the disk is full")
        return f"stored {number}"

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        await stream.read()
        return await asyncio.gather(*map(deliver, range(3)), return_exceptions=True)

    async with serving(lmtp=True, on_data=on_data, on_error=errors) as served:
        client = await served.hello()
        recipients = [f"r{number}@example.com" for number in range(3)]
        assert await client.deliver(b"hello\r\n", *recipients) == "250 stored 0"
        second = await client.reply()
        assert second.code == 451
        assert "disk" not in str(second)
        assert await client.hear() == "250 stored 2"
        assert await client.say("NOOP") == "250 OK"
    assert [str(error) for error in errors] == [str(LookupError("the disk is full"))]


@pytest.mark.parametrize("lmtp", [False, True])
async def test_a_returned_exception_is_a_failure(lmtp: bool) -> None:
    errors = Errors()

    async def on_data(stream: MessageStream, session: Session) -> Exception:
        await stream.read()
        return LookupError("the disk is full")

    async with serving(lmtp=lmtp, on_data=on_data, on_error=errors) as served:
        client = await served.hello()
        assert (await client.deliver()).startswith("451 ")
        assert await client.say("NOOP") == "250 OK"
    assert [type(error) for error in errors] == [LookupError]


class OddError(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("kind", ["a cancelled task", "a BaseException"])
@on_both_loops
async def test_what_is_no_exception_fails_one_command_only(kind: str) -> None:
    async def on_rcpt_to(address: Recipient, session: Session) -> None:
        if kind == "a BaseException":
            raise OddError
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    async with serving(on_rcpt_to=on_rcpt_to) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        for _ in range(2):
            assert (await client.command("RCPT TO:<b@example.com>")).code == 451
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.parametrize("text", [123, b"text", ["text"], object()], ids=["int", "bytes", "list", "object"])
async def test_the_text_of_a_reject_is_a_string(text: Any) -> None:
    with pytest.raises(TypeError, match="text"):
        Reject(550, text)

    def on_rcpt_to(address: Recipient, session: Session) -> None:
        raise Reject(550, text)

    async with serving(on_rcpt_to=on_rcpt_to) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        assert (await client.command("RCPT TO:<b@example.com>")).code == 451
        assert await client.say("NOOP") == "250 OK"


async def test_a_user_that_cannot_say_whether_it_is_true() -> None:
    class User:
        def __bool__(self) -> bool:
            raise LookupError("the database is gone")

    async with serving(on_auth=lambda *_: User(), allow_insecure_auth=True) as served:
        client = await served.hello()
        assert (await client.command(f"AUTH PLAIN {PLAIN}")).code == 454
        assert served.server.connections[0].user is None
        assert await client.say("NOOP") == "250 OK"


# --- Commands


async def test_recipients_are_told_apart_by_more_than_their_case() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@b.cc> SMTPUTF8") == "250 Accepted"
        for address in ("straße@b.cc", "strasse@b.cc", "STRASSE@b.cc", "STRAßE@B.CC"):
            assert await client.say(f"RCPT TO:<{address}>") == "250 Accepted"
        assert (await client.data(b"hello\r\n")).code == 250
    assert [address.partition("@")[0] for address in inbox[0].recipients] == ["STRAßE", "STRASSE"]


@pytest.mark.promises("Commands", "An HTTP request ends the connection with 421.")
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_long_http_request_is_sent_away_too(verb: str) -> None:
    async with serving() as served:
        client = await served.client()
        await client.send(f"{verb} /{'a' * 5000} HTTP/1.1\r\nHost: example.com\r\n\r\n".encode())
        assert await client.hear() == "421 HTTP requests not allowed"
        await client.eof()


@pytest.mark.promises(
    "Commands", "What waits behind HELO, EHLO, AUTH, STARTTLS or DATA is never run: 554, and the connection ends."
)
@pytest.mark.parametrize("forbid", [True, False])
async def test_commands_behind_a_token_of_its_own_line(forbid: bool) -> None:
    options = {} if forbid else {"forbid_unauth_pipelining": False}
    async with serving(on_auth=lambda *_: True, allow_insecure_auth=True, **options) as served:
        client = await served.hello()
        assert (await client.command("AUTH PLAIN")).code == 334
        await client.send(f"{PLAIN}\r\nMAIL FROM:<a@example.com>\r\n".encode())
        if forbid:
            assert await client.hear() == "554 Error: SMTP protocol synchronization"
            await client.eof()
        else:
            assert await client.hear() == "235 Authentication successful"
            assert await client.hear() == "250 Accepted"


@pytest.mark.promises("Commands", "Keywords are ASCII: no other letter of Unicode passes for one of theirs.")
@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([], "MAIL FROM:<a@b.cc> SMTPUTF8 RET=HDR\u017f"),
        ([], "MAIL FROM:<a@b.cc> SMTPUTF8 BODY=8B\u0130TMIME"),
        (["MAIL FROM:<a@b.cc> SMTPUTF8"], "RCPT TO:<a@b.cc> NOTIFY=\u017fUCCESS"),
        *(
            ([], f"{verb} {value}")
            for verb in ("XCLIENT", "XFORWARD")
            for value in ("PROTO=+C5+BFMTP", "ADDR=1.2.3.4%foo")
        ),
    ],
)
async def test_values_are_ascii(before: list[str], command: str) -> None:
    async with serving(hide_dsn=False, use_xclient=["127.0.0.1"], use_xforward=["127.0.0.1"]) as served:
        client = await served.hello()
        for accepted in before:
            assert await client.say(accepted) == "250 Accepted"
        assert (await client.command(command)).code == 501
        assert served.server.connections[0].remote_address == "127.0.0.1"


# --- Messages


@on_both_loops
async def test_a_timeout_within_the_data_is_final() -> None:
    caught = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> str:
        try:
            await stream.read()
        except ConnectionError:
            caught.set()
        return "kept"

    async with serving(on_data=on_data, socket_timeout=0.3) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(b"half\r\n")
        heard = asyncio.create_task(client.hear())  # before the rest: a reset might overtake the reply
        await within(caught.wait())
        with contextlib.suppress(ConnectionError):
            await client.send(b"whole\r\n.\r\n")
        assert await heard == "421 Timeout - closing connection"
        await client.eof()


async def test_handler_timeout_holds_after_a_wait_of_the_handlers_own() -> None:
    ended = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.read(), 0.05)
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(on_data=on_data, handler_timeout=0.3) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(b"half\r\n")
        await within(ended.wait())
        assert (await client.command(".")).code == 451
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.promises(
    "The end of a message",
    'With "reject" a message with a bare CR or LF is read to its end and refused; then the connection ends.',
)
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("first", [b"\0\r\n", b"x" * 200 + b"\r\n"], ids=["NUL", "too large"])
async def test_a_bare_newline_behind_another_flaw_closes_too(first: bytes, pieces: int) -> None:
    refused = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except Reject:
            refused.set()
            raise

    async with serving(on_data=on_data, bare_newline="reject", size=100) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(first if pieces == 2 else first + b"bare\n.\r\n.\r\n")
        await within(refused.wait())
        if pieces == 2:
            await client.send(b"bare\n.\r\n.\r\n")
        assert (await client.reply()).code in ((550,) if first[:1] == b"\0" else (550, 552))
        await client.eof()


READS: list[Callable[[MessageStream], Awaitable[object]]] = [
    lambda stream: stream.read(),
    lambda stream: stream.read(1),
    lambda stream: stream.message(),
    anext,
]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_ends_with_its_handler(whole: bool) -> None:
    streams: list[MessageStream] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        streams.append(stream)
        await stream.read(-1 if whole else 3)

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver() == "250 OK: message queued"
        for read in READS:
            with pytest.raises(RuntimeError):
                await within(read(streams[0]))
        assert await client.deliver() == "250 OK: message queued"


@on_both_loops
async def test_a_read_that_outlives_the_handler_fails() -> None:
    reading: list[asyncio.Task[bytes]] = []
    returned = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        if not reading:
            reading.append(asyncio.create_task(stream.read()))
            await asyncio.sleep(0.05)  # it has read what is there and waits for more
        returned.set()

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(b"half\r\n")
        await within(returned.wait())
        await client.send(b"whole\r\n.\r\n")
        assert await client.hear() == "250 OK: message queued"
        done, _ = await asyncio.wait(reading, timeout=TIMEOUT)
        assert done, "the read still waits"
        assert reading[0].cancelled() or isinstance(reading[0].exception(), Exception)
        assert await client.deliver() == "250 OK: message queued"


@pytest.mark.parametrize("again", ["read", "blocks", "message"])
async def test_a_read_that_was_cancelled_loses_nothing(again: str) -> None:
    got: list[bytes] = []
    lengths: list[int] = []
    cancelled = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.read() if again != "message" else stream.message(), 0.2)
        cancelled.set()
        got.append(b"".join([block async for block in stream]) if again == "blocks" else await stream.read())
        lengths.append(stream.byte_length)

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(b"Subject: x\r\n\r\nfirst\r\n")
        await within(cancelled.wait())
        await client.send(b"second\r\n.\r\n")
        assert await client.hear() == "250 OK: message queued"
    assert got == [b"Subject: x\r\n\r\nfirst\r\nsecond\r\n"]
    assert lengths == [len(got[0])]


@on_both_loops
async def test_the_reply_to_a_message_waits_for_no_other_handler() -> None:
    go = asyncio.Event()
    senders: list[str] = []

    async def on_mail_from(address: object, session: Session) -> None:
        senders.append(str(address))
        if len(senders) == 2:
            await go.wait()

    async with serving(on_mail_from=on_mail_from) as served:
        client = await served.hello()
        await begin_data(client)
        await client.send(b"hello\r\n.\r\nMAIL FROM:<second@example.com>\r\n")
        assert await client.hear() == "250 OK: message queued"
        go.set()
        assert await client.hear() == "250 Accepted"
    assert senders == ["from@example.com", "second@example.com"]
