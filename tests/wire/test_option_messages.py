"""Commands and messages: limits, leniency, bare newlines, pipelining and the size of a message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillarbox import MessageStream, MessageTooLarge, Session
from support import Inbox, b64, serving


def padded(length: int, start: bytes = b"NOOP ") -> bytes:
    """Return a command line of this length, its CRLF included."""
    return start + b"x" * (length - len(start) - 2) + b"\r\n"


@pytest.mark.promises("Commands", "A line that is longer than its limit is refused, to the octet.")
@pytest.mark.parametrize("limit", [None, 512, 1000])
async def test_max_command_length(limit: int | None) -> None:
    options: dict[str, Any] = {} if limit is None else {"max_command_length": limit}
    limit = limit or 4096
    async with serving(**options) as served:
        client = await served.client()
        await client.send(padded(limit))
        assert await client.hear() == "250 OK"
        await client.send(padded(limit + 1))
        assert await client.hear() == "500 Error: Command line too long"
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.promises(
    "Commands", "Of a line without an end no more is kept than its limit and one read of the socket; then 421."
)
async def test_a_command_line_without_an_end() -> None:
    async with serving(max_command_length=512) as served:
        client = await served.client()
        await client.send(b"NOOP " + b"x" * 600)
        assert await client.hear() == "421 Error: Command line too long"
        await client.eof()


async def test_auth_and_its_lines_may_be_longer() -> None:
    async with serving(allow_insecure_auth=True, max_command_length=512, on_auth=lambda *_: True) as served:
        client = await served.hello()
        token = b64("\0ann\0" + "x" * 9000)
        token = token + "=" * (-len(token) % 4)
        assert len(token) < 12_288 - len("AUTH PLAIN \r\n")
        assert (await client.command("AUTH PLAIN")).code == 334
        assert await client.say(token) == "235 Authentication successful"
    async with serving(allow_insecure_auth=True, max_command_length=512, on_auth=lambda *_: True) as served:
        client = await served.hello()
        assert await client.say(f"AUTH PLAIN {token}") == "235 Authentication successful"


@pytest.mark.promises(
    "Commands", "Of a line without an end no more is kept than its limit and one read of the socket; then 421."
)
@pytest.mark.parametrize("challenged", [False, True])
async def test_auth_beyond_its_limit(challenged: bool) -> None:
    async with serving(allow_insecure_auth=True) as served:
        client = await served.hello()
        if challenged:
            assert (await client.command("AUTH PLAIN")).code == 334
        await client.send(b"A" * 12_289 if challenged else b"AUTH PLAIN " + b"A" * 12_289)
        assert await client.hear() == "421 Error: Command line too long"
        await client.eof()


MALFORMED = ["a@-example.com", "a@example..com", ".a@example.com", "a.@example.com", "a..b@example.com"]


@pytest.mark.parametrize("address", MALFORMED)
async def test_lenient_address_parsing(address: str) -> None:
    async with serving() as served:
        client = await served.hello()
        assert await client.say(f"MAIL FROM:<{address}>") == "501 Error: Bad sender address syntax"
        assert await client.say("MAIL FROM:<>") == "250 Accepted"
        assert await client.say(f"RCPT TO:<{address}>") == "501 Error: Bad recipient address syntax"
    async with serving(lenient_address_parsing=True) as served:
        client = await served.hello()
        assert await client.say(f"MAIL FROM:<{address}>") == "250 Accepted"
        assert await client.say(f"RCPT TO:<{address}>") == "250 Accepted"


@pytest.mark.promises("Commands", "Control characters, NUL and malformed UTF-8 in a command are refused.")
@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    "bad", ["a@example.com", "<a\x07@example.com>", "<a\u200b@example.com>", "<a@exa\u0085mple.com>"]
)
async def test_what_no_mode_accepts(bad: str, lenient: bool) -> None:
    async with serving(lenient_address_parsing=lenient) as served:
        client = await served.hello()
        assert (await client.command(f"MAIL FROM:{bad} SMTPUTF8")).code == 501


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ("MAIL FROM : <a@example.com>", "a@example.com"),
        ("mail from:<a@example.com>", "a@example.com"),
        ("MAIL FROM:<>", ""),
        ("MAIL FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        ("MAIL FROM:<a@[IPv6:2001:DB8:0:0::1]>", "a@[IPv6:2001:db8::1]"),
        ("MAIL FROM:<a@xn--bcher-kva.example>", "a@bücher.example"),
        ('MAIL FROM:<"a b"@example.com>', '"a b"@example.com'),
    ],
)
async def test_addresses_that_are_accepted(sent: str, known: str) -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        assert await client.say(sent) == "250 Accepted"
        assert await client.say("RCPT TO:<b@example.com>") == "250 Accepted"
        await client.data(b"hello\r\n")
    assert str(inbox[0].envelope.mail_from) == known


async def test_lenient_parameters() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        assert (await client.command("MAIL FROM:<a@example.com> XVALUE=a+2B XFLAG")).code == 555
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        assert (await client.command("RCPT TO:<a@example.com> XFLAG")).code == 555
    async with serving(lenient_parameters=True, on_data=inbox) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com> XValue=a+2B xflag") == "250 Accepted"
        assert await client.say("RCPT TO:<a@example.com> XFLAG") == "250 Accepted"
        await client.data(b"hello\r\n")
    envelope = inbox[0].envelope
    assert envelope.mail_from is not None
    assert envelope.mail_from.args == {"XVALUE": "a+2B", "XFLAG": True}
    assert envelope.rcpt_to[0].args == {"XFLAG": True}


@pytest.mark.promises(
    "The end of a message", 'With bare_newline "normalize", the default, a handler gets CR and LF only as CRLF.'
)
@pytest.mark.promises("The end of a message", 'With "accept" the content is untouched.')
@pytest.mark.parametrize(
    ("mode", "stored"),
    [("normalize", b"a\r\nb c\r\n.\r\nd\r\n"), ("accept", b"a\nb\rc\r\n.\nd\r\n")],
)
async def test_bare_newline(mode: str, stored: bytes) -> None:
    inbox = Inbox()
    async with serving(bare_newline=mode, on_data=inbox) as served:
        client = await served.hello()
        assert await client.deliver(b"a\nb\rc\r\n..\nd\r\n") == "250 OK: message queued"
        assert await client.say("NOOP") == "250 OK"
    assert inbox[0].content == stored


@pytest.mark.promises(
    "The end of a message",
    'With "reject" a message with a bare CR or LF is read to its end and refused; then the connection ends.',
)
async def test_bare_newline_reject() -> None:
    async with serving(bare_newline="reject", hide_enhanced_status_codes=False) as served:
        client = await served.hello()
        assert (await client.deliver(b"a\nb\r\n")).startswith("550 5.6.0 ")
        await client.eof()


async def test_bare_newline_in_commands() -> None:
    async with serving() as served:
        client = await served.client()
        await client.send(b"NOOP\n")
        assert await client.hear() == "250 OK"
    async with serving(bare_newline="reject") as served:
        client = await served.client()
        await client.send(b"NOOP\n")
        assert (await client.reply()).code == 500
        await client.eof()


@pytest.mark.promises(
    "The end of a message",
    "A NUL in a message is refused with 550, unless BINARYMIME or bare_newline accept allows it.",
)
@pytest.mark.parametrize(("mode", "answer"), [("normalize", 550), ("reject", 550), ("accept", 250)])
async def test_a_nul_in_the_data(mode: str, answer: int) -> None:
    inbox = Inbox()
    async with serving(bare_newline=mode, on_data=inbox) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.data(b"a\0b\r\n")).code == answer
    assert [message.content for message in inbox] == ([b"a\0b\r\n"] if answer == 250 else [])


@pytest.mark.promises(
    "Commands", "What waits behind HELO, EHLO, AUTH, STARTTLS or DATA is never run: 554, and the connection ends."
)
@pytest.mark.parametrize("command", ["EHLO client.example", "HELO client.example", "AUTH LOGIN", "DATA", "STARTTLS"])
async def test_forbid_unauth_pipelining(command: str) -> None:
    async with serving(allow_insecure_auth=True) as served:
        client = await served.hello()
        if command == "DATA":
            await client.envelope()
        await client.send(command.encode() + b"\r\nNOOP\r\n")
        assert (await client.reply()).code == 554
        await client.eof()


async def test_with_it_off_such_input_is_served_in_turn() -> None:
    inbox = Inbox()
    async with serving(forbid_unauth_pipelining=False, on_data=inbox) as served:
        client = await served.client()
        await client.send(
            b"EHLO client.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
            b"hello\r\n.\r\nQUIT\r\n"
        )
        answers = [(await client.reply()).code for _ in range(6)]
        assert answers == [250, 250, 250, 354, 250, 221]
        await client.eof()
    assert inbox[0].content == b"hello\r\n"


@pytest.mark.promises(
    "Commands", "With forbid_unauth_pipelining off, what waits behind a refused DATA still ends the connection."
)
async def test_with_it_off_bytes_behind_a_refused_data_still_close() -> None:
    async with serving(forbid_unauth_pipelining=False) as served:
        client = await served.hello()
        await client.send(b"DATA\r\nNOOP\r\n")
        assert await client.hear() == "503 Error: need MAIL command"
        assert b"250 OK" not in await client.rest()


@pytest.mark.promises(
    "TLS", "What stands behind STARTTLS, be it part of a line, is never run under TLS: 554, and the connection ends."
)
async def test_with_it_off_bytes_behind_starttls_still_close() -> None:
    async with serving(forbid_unauth_pipelining=False) as served:
        client = await served.hello()
        await client.send(b"STARTTLS\r\nNOOP\r\n")
        assert (await client.reply()).code == 554
        await client.eof()


class Swallowing:
    """Reads to the end and hides that it was too much."""

    def __init__(self) -> None:
        self.raised: list[Exception] = []
        self.seen = (0, False)

    async def __call__(self, stream: MessageStream, session: Session) -> str:
        try:
            async for _ in stream:
                pass
        except MessageTooLarge as error:
            self.raised.append(error)
        self.seen = (stream.byte_length, stream.size_exceeded)
        return "all is well"


async def test_enforce_size() -> None:
    handler = Swallowing()
    async with serving(size=1000, on_data=handler) as served:
        client = await served.hello()
        too_large = "552 Error: message exceeds fixed maximum message size 1000"
        assert await client.deliver(b"x" * 5000 + b"\r\n") == too_large
        assert await client.say("NOOP") == "250 OK"
    assert len(handler.raised) == 1
    assert handler.seen[1]


async def test_enforce_size_false_only_tells() -> None:
    handler = Swallowing()
    async with serving(size=1000, enforce_size=False, on_data=handler) as served:
        client = await served.hello()
        assert await client.deliver(b"x" * 5000 + b"\r\n") == "250 all is well"
    assert handler.raised == []
    assert handler.seen == (5002, True)


async def test_pipelined_commands_are_answered_together() -> None:
    async with serving() as served:
        client = await served.hello()
        await client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nRSET\r\nNOOP\r\n")
        await asyncio.wait_for(client.reader.readexactly(len(b"250 Accepted\r\n250 Accepted\r\n250 Flushed\r\n")), 5)
        assert await client.hear() == "250 OK"
