"""The hooks: as option, method and attribute; what they return, raise and see, and in which order they are called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pillarbox import (
    Address,
    AuthRequest,
    MessageStream,
    MessageTooLarge,
    Recipient,
    Reject,
    Session,
    SMTPServer,
    TLSInfo,
)
from support import (
    PLAIN,
    TIMEOUT,
    Client,
    Inbox,
    Served,
    Sessions,
    careless,
    on_both_loops,
    pem,
    recorded,
    serving,
    trusting,
)

HOOKS = ("on_connect", "on_secure", "on_auth", "on_mail_from", "on_rcpt_to", "on_data", "on_close", "on_error")
Hook = Callable[..., Any]


# --- Where a hook may stand


async def through_all(served: Served) -> None:
    """Do what makes the server call every hook (on_error: the recipient "broken")."""
    client = await served.hello()
    await client.starttls(careless())
    await client.ehlo()
    assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
    assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
    assert await client.say("RCPT TO:<b@example.com>") == "250 Accepted"
    assert (await client.command("RCPT TO:<broken@example.com>")).code == 451
    assert str(await client.data(b"hello\r\n")) == "250 taken"
    assert await client.say("QUIT") == "221 Bye"
    await client.eof()


def hook(name: str, called: list[str], *, waits: bool) -> Hook:
    """Return a hook that notes its call and the types it was given."""
    expected = {
        "on_connect": (Session,),
        "on_secure": (TLSInfo, Session),
        "on_auth": (AuthRequest, Session),
        "on_mail_from": (Address, Session),
        "on_rcpt_to": (Recipient, Session),
        "on_data": (MessageStream, Session),
        "on_close": (Session,),
        "on_error": (LookupError, Session),
    }[name]

    def plain(*given: Any) -> Any:
        assert len(given) == len(expected)
        assert all(isinstance(value, kind) for value, kind in zip(given, expected, strict=True)), given
        called.append(name)
        if name == "on_rcpt_to" and given[0].address.startswith("broken"):
            raise LookupError("the database is gone")
        return True if name == "on_auth" else "taken" if name == "on_data" else None

    async def waiting(*given: Any) -> Any:
        await asyncio.sleep(0)
        return plain(*given)

    return waiting if waits or name == "on_data" else plain


ORDER = [
    "on_connect", "on_secure", "on_auth", "on_mail_from", "on_rcpt_to", "on_rcpt_to", "on_error", "on_data", "on_close",
]  # fmt: skip


@pytest.mark.parametrize("waits", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("place", ["option", "method", "attribute", "listener"])
async def test_every_hook_in_every_place(place: str, waits: bool) -> None:
    called: list[str] = []
    hooks: dict[str, Any] = {name: hook(name, called, waits=waits) for name in HOOKS}
    options: dict[str, Any] = {"disable_reverse_lookup": True}
    if place == "option":
        server = SMTPServer(**options, **hooks)
    elif place == "method":
        methods = {name: _as_method(function) for name, function in hooks.items()}
        server = type("Inbound", (SMTPServer,), methods)(**options)
    else:
        server = SMTPServer(**options)
    if place == "attribute":
        for name, function in hooks.items():
            setattr(server, name, function)
    async with serving(server=server) as served:
        if place == "listener":
            address = await server.listen(0, "127.0.0.1", **hooks)
            client = await served.connect(address=address)
            await _through_all_as(client)
        else:
            await through_all(served)
    assert called == ORDER


def _as_method(function: Hook) -> Hook:
    return lambda self, *given: function(*given)


async def _through_all_as(client: Client) -> None:
    class One(Served):
        async def connect(self, *_: Any, **__: Any) -> Client:
            return client

    await through_all(One(SMTPServer()))


async def test_an_option_beats_a_method() -> None:
    class Inbound(SMTPServer):
        def on_mail_from(self, address: Address, session: Session) -> None:
            raise Reject(550, "the method")

        def on_rcpt_to(self, address: Recipient, session: Session) -> None:
            raise Reject(550, "the method")

    def on_mail_from(address: Address, session: Session) -> None:
        raise Reject(550, "the option")

    async with serving(Inbound, on_mail_from=on_mail_from) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "550 the option"


async def test_super_works_for_every_hook() -> None:
    called: list[str] = []

    class Inbound(SMTPServer):
        async def on_connect(self, session: Session) -> Any:
            called.append("on_connect")
            return super().on_connect(session)

        async def on_secure(self, tls: TLSInfo, session: Session) -> Any:
            called.append("on_secure")
            return super().on_secure(tls, session)

        async def on_auth(self, auth: AuthRequest, session: Session) -> Any:
            called.append("on_auth")
            return super().on_auth(auth, session)

        async def on_mail_from(self, address: Address, session: Session) -> Any:
            called.append("on_mail_from")
            return super().on_mail_from(address, session)

        async def on_rcpt_to(self, address: Recipient, session: Session) -> Any:
            called.append("on_rcpt_to")
            return super().on_rcpt_to(address, session)

        async def on_data(self, stream: MessageStream, session: Session) -> Any:
            called.append("on_data")
            return await super().on_data(stream, session)

        async def on_close(self, session: Session) -> Any:
            called.append("on_close")
            return super().on_close(session)

    async with serving(Inbound) as served:
        client = await served.hello()
        await client.starttls(careless())
        await client.ehlo()
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "535 Authentication not implemented"
        assert await client.deliver() == "250 OK: message queued"
        await client.say("QUIT")
        await client.eof()
    assert called == [name for name in HOOKS if name != "on_error"]


async def test_a_plain_hook_may_return_any_awaitable() -> None:
    def on_rcpt_to(address: Recipient, session: Session) -> Awaitable[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if address.address.startswith("no"):
            future.set_exception(Reject(550, "No such user"))
        else:
            future.set_result(None)
        return future

    async with serving(on_rcpt_to=on_rcpt_to) as served:
        client = await served.hello()
        await client.envelope()
        assert await client.say("RCPT TO:<nobody@example.com>") == "550 No such user"


async def test_the_defaults() -> None:
    with recorded(logging.INFO) as records:
        async with serving(allow_insecure_auth=True) as served:
            client = await served.hello()
            assert await client.say(f"AUTH PLAIN {PLAIN}") == "535 Authentication not implemented"
            assert await client.deliver(b"12345678\r\n") == "250 OK: message queued"
    assert any("10 bytes" in record.getMessage() for record in records)


# --- Reject


async def provoke(served: Served, name: str) -> tuple[Client, str]:
    """Reach the hook and return the client and the reply that came of it."""
    if name == "on_connect":
        client = await served.connect()
        return client, await client.hear()
    client = await served.hello()
    if name == "on_secure":
        await client.starttls(careless())
        return client, await client.say("EHLO client.example")
    if name == "on_auth":
        return client, await client.say(f"AUTH PLAIN {PLAIN}")
    if name == "on_mail_from":
        return client, await client.say("MAIL FROM:<a@example.com>")
    assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
    if name == "on_rcpt_to":
        return client, await client.say("RCPT TO:<a@example.com>")
    assert await client.say("RCPT TO:<a@example.com>") == "250 Accepted"
    return client, str(await client.data(b"hello\r\n"))


def raising(error: BaseException | type[BaseException]) -> Hook:
    async def hook(*_: Any) -> None:
        raise error

    return hook


DEFAULT_CODES = [
    ("on_connect", 554), ("on_secure", 554), ("on_auth", 535), ("on_mail_from", 550), ("on_rcpt_to", 550),
    ("on_data", 450),
]  # fmt: skip
CLOSING = ("on_connect", "on_secure")


@pytest.mark.parametrize(("name", "code"), DEFAULT_CODES)
async def test_the_default_code_of_a_reject(name: str, code: int) -> None:
    async with serving(**{name: raising(Reject)}, allow_insecure_auth=True) as served:
        client, answer = await provoke(served, name)
        assert answer.startswith(f"{code} ")
        if name in CLOSING:
            await client.eof()
        else:
            assert served.server.connections[0].error is not None
            assert served.server.connections[0].error.startswith(f"{code} ")
            assert await client.say("NOOP") == "250 OK"


@pytest.mark.parametrize("name", [name for name, _ in DEFAULT_CODES])
async def test_code_text_and_enhanced_of_a_reject(name: str) -> None:
    reject = Reject(471, "Not now", enhanced="4.7.1")
    async with serving(**{name: raising(reject)}, allow_insecure_auth=True, hide_enhanced_status_codes=False) as served:
        client, answer = await _provoke_with_codes(served, name)
        assert answer == "471 4.7.1 Not now"
        if name in CLOSING:
            await client.eof()
        else:
            assert (await client.command("NOOP")).code == 250


async def _provoke_with_codes(served: Served, name: str) -> tuple[Client, str]:
    if name == "on_connect":
        client = await served.connect()
        return client, await client.hear()
    client = await served.hello()
    if name == "on_secure":
        await client.send(b"STARTTLS\r\n")
        assert (await client.reply()).code == 220
        await client.handshake(careless())
        return client, await client.say("EHLO client.example")
    if name == "on_auth":
        return client, await client.say(f"AUTH PLAIN {PLAIN}")
    commands = ["MAIL FROM:<a@example.com>", "RCPT TO:<a@example.com>", "DATA"]
    last = ["on_mail_from", "on_rcpt_to", "on_data"].index(name)
    for command in commands[:last]:
        assert (await client.command(command)).code == 250
    if name == "on_data":
        assert (await client.command("DATA")).code == 354
        return client, await client.say(".")
    return client, await client.say(commands[last])


@pytest.mark.parametrize("name", ["on_connect", "on_secure", "on_auth", "on_mail_from", "on_rcpt_to", "on_data"])
async def test_421_also_closes(name: str) -> None:
    async with serving(**{name: raising(Reject(421, "Go away"))}, allow_insecure_auth=True) as served:
        client, answer = await provoke(served, name)
        assert answer == "421 Go away"
        await client.eof()


FAILURES = [
    ("on_connect", 421), ("on_secure", 421), ("on_auth", 454), ("on_mail_from", 451), ("on_rcpt_to", 451),
    ("on_data", 451),
]  # fmt: skip


@pytest.mark.promises("Replies and logs", "The text of an exception never reaches the client.")
@pytest.mark.parametrize(("name", "code"), FAILURES)
async def test_any_other_exception_is_a_bug(name: str, code: int) -> None:
    errors: list[tuple[Exception, Session]] = []

    def on_error(error: Exception, session: Session) -> None:
        errors.append((error, session))

    secret = "password=hunter2 at 10.0.0.1"
    async with serving(**{name: raising(LookupError(secret))}, allow_insecure_auth=True, on_error=on_error) as served:
        client, answer = await provoke(served, name)
        assert answer.startswith(f"{code} ")
        assert "hunter2" not in answer
        if name in CLOSING:
            await client.eof()
        else:
            assert await client.say("NOOP") == "250 OK"
    assert [str(error) for error, _ in errors] == [str(LookupError(secret))]


async def test_a_bug_is_logged_with_its_traceback() -> None:
    with recorded(logging.ERROR) as records:
        async with serving(on_mail_from=raising(LookupError("gone"))) as served:
            client = await served.hello()
            assert (await client.command("MAIL FROM:<a@example.com>")).code == 451
    assert len(records) == 1
    assert "Traceback" in logging.Formatter().format(records[0])
    assert records[0].cid  # type: ignore[attr-defined]


async def test_a_broken_on_error_harms_nobody() -> None:
    broken = raising(ZeroDivisionError("worse"))
    async with serving(on_mail_from=raising(LookupError("gone")), on_error=broken) as served:
        client = await served.hello()
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 451
        assert await client.say("NOOP") == "250 OK"


async def test_a_broken_on_close_is_only_logged() -> None:
    errors: list[Exception] = []
    async with serving(
        on_close=raising(LookupError("gone")), on_error=lambda error, _session: errors.append(error)
    ) as served:
        client = await served.hello()
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()
        assert (await (await served.client()).command("NOOP")).code == 250
    assert [type(error) for error in errors] == [LookupError, LookupError]


@pytest.mark.parametrize("code", [399, 600, 250, 0])
async def test_a_reject_takes_no_other_code(code: int) -> None:
    with pytest.raises(ValueError, match="400"):
        Reject(code)


async def test_a_refused_command_changes_nothing() -> None:
    def on_rcpt_to(address: Recipient, session: Session) -> None:
        if not address.address.startswith("b"):
            raise Reject

    inbox = Inbox()
    async with serving(on_rcpt_to=on_rcpt_to, on_data=inbox) as served:
        client = await served.hello()
        await client.say("MAIL FROM:<a@example.com>")
        assert (await client.command("RCPT TO:<a@example.com>")).code == 550
        assert await client.say("DATA") == "503 Error: need RCPT command"
        assert await client.say("RCPT TO:<b@example.com>") == "250 Accepted"
        await client.data(b"hello\r\n")
    assert inbox[0].recipients == ["b@example.com"]


@pytest.mark.parametrize(
    "refused",
    [
        "MAIL FROM:<ä@example.com> BODY=8BITMIME RET=HDRS",  # needs SMTPUTF8
        "MAIL FROM:<no@example.com> BODY=8BITMIME RET=HDRS SMTPUTF8",  # by the handler
        "MAIL FROM:<a@example.com> BODY=8BITMIME RET=HDRS SMTPUTF8 SIZE=x",  # by the last parameter
    ],
)
async def test_nothing_of_a_refused_mail_reaches_the_next(refused: str) -> None:
    def on_mail_from(address: Address, session: Session) -> None:
        if address.address.startswith("no"):
            raise Reject

    for handler in (on_mail_from, None):
        inbox = Inbox()
        async with serving(on_mail_from=handler, on_data=inbox) as served:
            client = await served.hello()
            answer = await client.command(refused)
            if answer.code < 300:  # nobody to refuse it
                continue
            assert (await client.deliver(b"hello\r\n")).startswith("250")
        envelope = inbox[0].envelope
        assert (envelope.body_type, envelope.smtp_utf8, envelope.dsn.ret) == ("7bit", False, None)


async def test_the_parameters_are_on_the_envelope_when_on_mail_from_is_called() -> None:
    seen: list[tuple[str, object, bool, str]] = []

    def on_mail_from(address: Address, session: Session) -> None:
        seen.append((address.address, address.args["SIZE"], session.envelope.smtp_utf8, session.envelope.body_type))

    async with serving(on_mail_from=on_mail_from) as served:
        client = await served.hello()
        await client.say("MAIL FROM:<a@example.com> SIZE=10 SMTPUTF8 BODY=8BITMIME")
    assert seen == [("a@example.com", "10", True, "8bitmime")]


# --- on_auth


@pytest.mark.parametrize(
    ("returned", "answer", "user"),
    [
        (True, "235 Authentication successful", "ann"),
        ("Ann Smith", "235 Authentication successful", "Ann Smith"),
        (42, "235 Authentication successful", 42),
        (["list"], "235 Authentication successful", ["list"]),
        (None, "535 ", None),
        (False, "535 ", None),
        ({"user": 1}, "454 ", None),
        ({}, "454 ", None),
    ],
)
async def test_what_on_auth_returns(returned: Any, answer: str, user: Any) -> None:
    with recorded(logging.WARNING) as records:
        async with serving(on_auth=lambda *_: returned, allow_insecure_auth=True) as served:
            client = await served.hello()
            assert (await client.say(f"AUTH PLAIN {PLAIN}")).startswith(answer)
            assert served.server.connections[0].user == user
            assert await client.say("NOOP") == "250 OK"
    assert any("dict" in record.getMessage() for record in records) == isinstance(returned, dict)


# --- on_data


@pytest.mark.parametrize(
    ("returned", "answer"), [(None, "250 OK: message queued"), ("queued as 42", "250 queued as 42")]
)
async def test_what_on_data_returns(returned: str | None, answer: str) -> None:
    async def on_data(stream: MessageStream, session: Session) -> str | None:
        await stream.read()
        return returned

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver() == answer
        assert await client.deliver() == answer


async def later(answer: Any, turn: asyncio.Event) -> Any:
    await turn.wait()
    if isinstance(answer, Exception):
        raise answer
    return answer


async def test_lmtp_replies_in_order() -> None:
    turn = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        return [
            "first",
            None,
            Reject(552, "full"),
            Reject(),
            later("patience", turn),
            later(None, turn),
            later(Reject(550, "gone"), turn),
            later(LookupError("bug"), turn),
        ]

    recipients = [f"r{number}@example.com" for number in range(8)]
    async with serving(lmtp=True, on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver(b"hello\r\n", *recipients) == "250 first"
        # What is known leaves before what is awaited.
        assert await client.hear() == "250 OK: message accepted"
        assert await client.hear() == "552 full"
        assert (await client.reply()).code == 450
        turn.set()
        assert await client.hear() == "250 patience"
        assert await client.hear() == "250 OK: message accepted"
        assert await client.hear() == "550 gone"
        assert (await client.reply()).code == 451
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.parametrize(
    ("answer", "replies"),
    [
        ("all of it", ["250 all of it"] * 2),
        (None, ["250 OK: message accepted"] * 2),
        (Reject(), ["450 "] * 2),
        (Reject(552, "full"), ["552 full"] * 2),
        (LookupError("bug"), ["451 "] * 2),
        (["just one"], ["451 "] * 2),
        (["one", "two", "three"], ["451 "] * 2),
        ([], ["451 "] * 2),
    ],
)
async def test_lmtp_answers_for_all(answer: Any, replies: list[str]) -> None:
    async def on_data(stream: MessageStream, session: Session) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with serving(lmtp=True, on_data=on_data) as served:
        client = await served.hello()
        heard = [await client.deliver(b"hello\r\n", "a@example.com", "b@example.com"), await client.hear()]
        assert await client.say("NOOP") == "250 OK"
    assert all(line.startswith(expected) for line, expected in zip(heard, replies, strict=True)), heard


async def test_a_421_for_one_lmtp_recipient_closes_behind_the_last_reply() -> None:
    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        return [Reject(421, "Shutting down"), "kept"]

    async with serving(lmtp=True, on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver(b"hello\r\n", "a@example.com", "b@example.com") == "421 Shutting down"
        assert await client.hear() == "250 kept"
        await client.eof()


@pytest.mark.parametrize("name", ["on_mail_from", "on_rcpt_to", "on_data"])
async def test_handler_timeout_is_a_451(name: str) -> None:
    cancelled: list[str] = []

    async def hang(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    async with serving(**{name: hang}, handler_timeout=0.1) as served:
        client, answer = await provoke(served, name)
        assert answer.startswith("451 ")
        assert await client.say("NOOP") == "250 OK"
    assert cancelled == [name]


@pytest.mark.parametrize("name", ["on_connect", "on_auth"])
async def test_handler_timeout_bounds_the_others_too(name: str) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async with serving(**{name: hang}, handler_timeout=0.1, allow_insecure_auth=True) as served:
        _, answer = await provoke(served, name)
        assert answer[:1] == "4"  # 451, or what a failure of this hook is


async def test_handler_timeout_for_an_awaitable_of_an_lmtp_list() -> None:
    never = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        return [later(None, never), "second"]

    async with serving(lmtp=True, on_data=on_data, handler_timeout=0.1) as served:
        client = await served.hello()
        assert (await client.deliver(b"hello\r\n", "a@example.com", "b@example.com")).startswith("451 ")
        assert await client.hear() == "250 second"


# --- The stream


async def test_reading_block_by_block() -> None:
    blocks: list[bytes] = []
    lengths: list[int] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        async for block in stream:
            assert isinstance(block, bytes)
            blocks.append(block)
            lengths.append(stream.byte_length)

    body = b"".join(b"%06d\r\n" % number for number in range(20_000))
    async with serving(on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver(body) == "250 OK: message queued"
    assert b"".join(blocks) == body
    assert all(blocks)
    assert lengths[-1] == len(body)
    assert [sum(map(len, blocks[: n + 1])) for n in range(len(blocks))] == lengths


async def test_reading_by_number() -> None:
    parts: list[bytes] = []
    lengths: list[int] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        for number in (0, 3, 1, 1000):
            parts.append(await stream.read(number))
            lengths.append(stream.byte_length)
        parts.extend([await stream.read(), await stream.read(), await stream.read(5)])

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver(b"0123456789\r\n") == "250 OK: message queued"
    assert b"".join(parts) == b"0123456789\r\n"
    assert parts[:3] == [b"", b"012", b"3"]
    assert parts[-2:] == [b"", b""]
    assert lengths[:3] == [0, 3, 4]


async def test_the_message_parsed() -> None:
    subjects: list[str] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        message = await stream.message()
        subjects.append(f"{message['Subject']}/{message.get_content().strip()}")

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        text = b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
        assert await client.deliver(text) == "250 OK: message queued"
    assert subjects == ["grüße/hello"]


async def test_what_is_left_unread_is_drained() -> None:
    async def on_data(stream: MessageStream, session: Session) -> str:
        await stream.read(3)
        return "enough"

    async def refusing(stream: MessageStream, session: Session) -> None:
        raise Reject(554, "No spam here")

    body = b"NOOP\r\n" * 50_000
    for handler, answer in ((on_data, "250 enough"), (refusing, "554 No spam here")):
        async with serving(on_data=handler) as served:
            client = await served.hello()
            assert await client.deliver(body) == answer
            assert await client.say("NOOP") == "250 OK"


@pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
@on_both_loops
async def test_a_client_that_vanishes_raises_in_the_stream() -> None:
    ended: asyncio.Queue[object] = asyncio.Queue()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            async for _ in stream:
                pass
        except BaseException as error:
            ended.put_nowait(error)
            raise
        ended.put_nowait("the end")

    for last in (b"half a message\r\n", b"half\r\n.", b"half\r\n.\r", b""):
        async with serving(on_data=on_data) as served:
            client = await served.hello()
            await client.envelope()
            assert (await client.command("DATA")).code == 354
            await client.send(last)
            await client.close()
            assert isinstance(await asyncio.wait_for(ended.get(), TIMEOUT), ConnectionError)


@pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
async def test_a_client_that_vanishes_under_tls() -> None:
    ended: asyncio.Queue[object] = asyncio.Queue()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except ConnectionError as error:
            ended.put_nowait(error)  # swallowed: nothing is accepted nevertheless
            return
        ended.put_nowait("the end")

    with recorded(logging.INFO) as records:
        async with serving(on_data=on_data, secure=True) as served:
            for abruptly in (False, True):
                client = await served.hello(careless())
                await client.envelope()
                assert (await client.command("DATA")).code == 354
                await client.send(b"half a message\r\n")
                if abruptly:
                    client.writer.transport.abort()
                else:
                    await client.close()
                assert isinstance(await asyncio.wait_for(ended.get(), TIMEOUT), ConnectionError)
    assert not any(getattr(record, "tnx", "") == "message" for record in records)


async def test_message_too_large_is_raised_in_every_way_of_reading() -> None:
    ways: list[Callable[[MessageStream], Awaitable[object]]] = [
        lambda stream: stream.read(),
        lambda stream: stream.message(),
        _by_parts,
    ]
    for way in ways:
        raised: list[MessageTooLarge] = []

        async def on_data(
            stream: MessageStream,
            session: Session,
            way: Callable[[MessageStream], Awaitable[object]] = way,
            raised: list[MessageTooLarge] = raised,
        ) -> str:
            try:
                await way(stream)
            except MessageTooLarge as error:
                raised.append(error)
            return "swallowed"

        async with serving(on_data=on_data, size=100) as served:
            client = await served.hello()
            assert await client.deliver(b"x" * 200 + b"\r\n") == (
                "552 Error: message exceeds fixed maximum message size 100"
            )
        assert len(raised) == 1
        assert isinstance(raised[0], Reject)
        assert raised[0].code == 552


async def _by_parts(stream: MessageStream) -> None:
    while await stream.read(10):
        pass


@pytest.mark.promises("Memory", "A client that sends faster than it is served, or than its message is read, is paused.")
async def test_back_pressure_reaches_the_client() -> None:
    go = asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read(1)
        await go.wait()
        await stream.read()

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        block = b"x" * 998 + b"\r\n"
        client.writer.transport.set_write_buffer_limits(high=0)
        sent = 0
        while sent < 64 * 2**20:
            client.writer.write(block * 1000)
            sent += len(block) * 1000
            try:
                await asyncio.wait_for(client.writer.drain(), 0.3)
            except TimeoutError:
                break
        go.set()
        assert sent < 32 * 2**20  # the kernel's buffers hold some megabytes
        await client.send(b".\r\n")
        assert await client.hear() == "250 OK: message queued"


# --- The order of the hooks


def noting(called: list[str]) -> dict[str, Hook]:
    """Return hooks that note their calls."""

    def note(name: str) -> Hook:
        def hook(*given: Any) -> Any:
            called.append(name)
            return name == "on_auth"

        return hook

    return {name: note(name) for name in ("on_connect", "on_secure", "on_auth", "on_mail_from", "on_close")}


@on_both_loops
async def test_the_order_on_implicit_tls() -> None:
    called: list[str] = []
    async with serving(secure=True, **noting(called), **pem()) as served:
        client = await served.connect(trusting())
        assert (await client.reply()).code == 220
        called.append("greeting")
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()
    assert called == ["on_connect", "on_secure", "greeting", "on_close"]


@on_both_loops
async def test_on_connect_knows_of_implicit_tls() -> None:
    seen: list[tuple[bool, bool, str | None]] = []
    async with serving(
        secure=True, on_connect=lambda s: seen.append((s.secure, s.tls is not None, s.servername)), **pem()
    ) as served:
        await served.client(trusting())
    assert seen == [(True, True, "localhost")]


@pytest.mark.parametrize("name", ["on_connect", "on_secure"])
@on_both_loops
async def test_a_refusal_on_implicit_tls(name: str) -> None:
    async with serving(secure=True, **{name: raising(Reject(None, "Not you"))}) as served:
        client = await served.connect(careless())
        assert await client.hear() == "554 Not you"
        await client.eof()


@on_both_loops
async def test_the_order_after_starttls() -> None:
    called: list[str] = []
    async with serving(**noting(called)) as served:
        client = await served.hello()
        await client.say("MAIL FROM:<a@example.com>")
        await client.starttls(careless())
        assert await client.say("NOOP") == "250 OK"
        assert called == ["on_connect", "on_mail_from", "on_secure"]
        await client.say("QUIT")
        await client.eof()
    assert called == ["on_connect", "on_mail_from", "on_secure", "on_close"]


@pytest.mark.parametrize("command", ["EHLO client.example", "NOOP", "MAIL FROM:<a@example.com>", "XYZZY", "HELP"])
async def test_a_refusal_after_starttls_answers_the_next_command(command: str) -> None:
    async with serving(on_secure=raising(Reject(None, "Not you"))) as served:
        client = await served.hello()
        await client.starttls(careless())
        assert await client.say(command) == "554 Not you"
        await client.eof()


async def test_the_order_with_xclient() -> None:
    called: list[str] = []
    async with serving(use_xclient=["127.0.0.1"], **noting(called)) as served:
        client = await served.hello()
        assert (await client.command("XCLIENT ADDR=192.0.2.7 LOGIN=ann")).code == 220
        await client.ehlo()
        assert served.server.connections[0].user == "ann"
        await client.say("QUIT")
        await client.eof()
    assert called == ["on_connect", "on_auth", "on_connect", "on_close"]


async def test_a_client_that_on_connect_refused_still_reaches_on_close() -> None:
    called: list[str] = []
    hooks = noting(called)
    async with serving(on_connect=raising(Reject), on_close=hooks["on_close"]) as served:
        client = await served.connect()
        await client.reply()
        await client.eof()
    assert called == ["on_close"]


@pytest.mark.parametrize("end", ["QUIT", "close", "abort", "timeout"])
async def test_on_close_comes_once_however_it_ends(end: str) -> None:
    closed: asyncio.Queue[str] = asyncio.Queue()
    async with serving(
        on_close=lambda session: closed.put_nowait(session.id), socket_timeout=0.3 if end == "timeout" else 60
    ) as served:
        client = await served.hello()
        ident = served.server.connections[0].id
        if end == "QUIT":
            await client.say("QUIT")
        elif end == "close":
            await client.close()
        elif end == "abort":
            client.writer.transport.abort()
        assert await asyncio.wait_for(closed.get(), TIMEOUT) == ident
    assert closed.empty()


async def test_on_close_comes_when_the_connection_is_gone() -> None:
    done = asyncio.Event()

    async def on_close(session: Session) -> None:
        await done.wait()

    async with serving(on_close=on_close) as served:
        client = await served.hello()
        assert await client.say("QUIT") == "221 Bye"
        try:
            await client.eof()  # it does not wait for the application
        finally:
            done.set()


@on_both_loops
async def test_on_error_hears_of_a_failed_handshake() -> None:
    errors: asyncio.Queue[Exception] = asyncio.Queue()
    async with serving(secure=True, on_error=lambda error, _session: errors.put_nowait(error)) as served:
        client = await served.connect()
        await client.send(b"EHLO client.example\r\n")
        error = await asyncio.wait_for(errors.get(), TIMEOUT)
        assert isinstance(error, ConnectionError)
        assert "EHLO" not in str(error)
    assert errors.empty()


# --- The session


async def test_the_sessions_fields_from_the_start() -> None:
    sessions = Sessions()
    async with serving(on_connect=sessions) as served:
        client = await served.client()
        host, port = client.writer.get_extra_info("sockname")[:2]
        session = sessions[0]
        assert served.server.connections == [session]
        assert (session.remote_address, session.remote_port) == (host, port)
        assert served.address == (session.local_address, session.local_port)
        assert (session.client_hostname, session.secure, session.servername) == ("[127.0.0.1]", False, None)
        assert (session.opening_command, session.host_name_appears_as, session.user) == (None, None, None)
        assert (session.tls, session.error, session.transaction, session.state) == (None, None, 1, {})
        assert (session.x_client, session.x_forward) == ({}, {})
        assert session.envelope.mail_from is None
        assert session.envelope.rcpt_to == []


async def test_what_the_session_learns() -> None:
    async with serving(on_auth=lambda *_: True, **pem()) as served:
        client = await served.client()
        session = served.server.connections[0]
        await client.command("HELO plain.example")
        assert (session.opening_command, session.host_name_appears_as) == ("HELO", "plain.example")
        assert session.transmission_type == "SMTP"
        await client.ehlo("better.example")
        assert (session.opening_command, session.host_name_appears_as) == ("EHLO", "better.example")
        assert session.transmission_type == "ESMTP"
        session.state["note"] = 1
        await client.starttls(trusting())
        await client.ehlo()
        assert session.tls is not None
        assert session.tls.version in ("TLSv1.2", "TLSv1.3")
        assert session.tls.cipher
        assert (session.tls.servername, session.servername, session.secure) == ("localhost", "localhost", True)
        assert session.transmission_type == "ESMTPS"
        await client.say(f"AUTH PLAIN {PLAIN}")
        assert (session.user, session.transmission_type) == ("ann", "ESMTPSA")
        with pytest.raises(AttributeError):
            session.tls.version = "TLSv9"  # type: ignore[misc]
        assert session.state == {"note": 1}
        assert session.client_hostname == "[127.0.0.1]"


async def test_lmtp_transmission_types() -> None:
    async with serving(lmtp=True, on_auth=lambda *_: True) as served:
        client = await served.hello()
        session = served.server.connections[0]
        assert (session.transmission_type, session.opening_command) == ("LMTP", "LHLO")
        await client.starttls(careless())
        await client.ehlo(verb="LHLO")
        assert session.transmission_type == "LMTPS"
        await client.say(f"AUTH PLAIN {PLAIN}")
        assert session.transmission_type == "LMTPSA"


async def test_transactions_are_counted_and_envelopes_fresh() -> None:
    seen: list[tuple[int, list[str]]] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        seen.append((session.transaction, [str(recipient) for recipient in session.envelope.rcpt_to]))

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await client.deliver(b"1\r\n", "a@example.com")
        await client.deliver(b"2\r\n", "b@example.com")
        await client.say("NOOP")
        await client.deliver(b"3\r\n", "c@example.com", "d@example.com")
    assert seen == [(1, ["a@example.com"]), (2, ["b@example.com"]), (3, ["c@example.com", "d@example.com"])]


async def test_ids_are_unique() -> None:
    sessions = Sessions()
    async with serving(on_connect=sessions) as served:
        for _ in range(5):
            await served.client()
    ids = {session.id for session in sessions}
    assert len(ids) == 5
    assert all(len(ident) == 16 and set(ident) <= set("abcdefghijklmnopqrstuvwxyz234567") for ident in ids)


async def test_error_is_the_last_refusal() -> None:
    async with serving() as served:
        client = await served.hello()
        session = served.server.connections[0]
        await client.say("MAIL FROM:<bad>")
        assert session.error is not None
        assert "Bad sender address syntax" in session.error
        await client.say("XYZZY")
        assert "command not recognized" in session.error
        await client.say("NOOP")
        assert "command not recognized" in session.error


async def test_the_error_of_a_refused_client_is_known_on_close() -> None:
    errors: asyncio.Queue[str | None] = asyncio.Queue()
    async with serving(
        on_connect=raising(Reject(554, "Not you")), on_close=lambda session: errors.put_nowait(session.error)
    ) as served:
        client = await served.connect()
        await client.reply()
        error = await asyncio.wait_for(errors.get(), TIMEOUT)
    assert error is not None
    assert "Not you" in error


async def test_concurrent_sessions_do_not_mix() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        clients = [await served.hello() for _ in range(10)]
        for number, client in enumerate(clients):
            await client.envelope(f"s{number}@example.com", f"r{number}@example.com")
        answers = await asyncio.gather(*(c.data(b"%d\r\n" % n) for n, c in enumerate(clients)))
        assert [answer.code for answer in answers] == [250] * 10
    for message in inbox:
        own = message.content.decode().strip()
        assert str(message.envelope.mail_from) == f"s{own}@example.com"
        assert message.recipients == [f"r{own}@example.com"]


async def test_super_may_be_awaited_or_not() -> None:
    class Awaiting(SMTPServer):
        async def on_connect(self, session: Session) -> None:
            await super().on_connect(session)

        async def on_mail_from(self, address: Address, session: Session) -> None:
            await super().on_mail_from(address, session)

        async def on_rcpt_to(self, address: Recipient, session: Session) -> None:
            super().on_rcpt_to(address, session)

        async def on_close(self, session: Session) -> None:
            await super().on_close(session)

        async def on_error(self, error: Exception, session: Session | None) -> None:
            raise AssertionError(error)

    async with serving(Awaiting) as served:
        client = await served.hello()
        assert await client.deliver(b"hello\r\n", "a@example.com") == "250 OK: message queued"
