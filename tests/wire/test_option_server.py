"""Server behaviour: name, banner, helo_response, size, hide_size, lmtp, logger, component."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

from pillarbox import MessageStream, Session
from support import Inbox, Sessions, recorded, serving


@pytest.mark.parametrize(
    ("options", "greeting"),
    [
        ({"name": "mx.example.net"}, "220 mx.example.net ESMTP"),
        ({"name": "mx.example.net", "banner": "no spam"}, "220 mx.example.net ESMTP no spam"),
        ({"name": "mx.example.net", "lmtp": True}, "220 mx.example.net LMTP"),
        ({"name": "[192.0.2.1]"}, "220 [192.0.2.1] ESMTP"),
        ({}, f"220 {socket.gethostname()} ESMTP"),
    ],
)
async def test_the_greeting(options: dict[str, Any], greeting: str) -> None:
    async with serving(**options) as served:
        client = await served.connect()
        assert await client.hear() == greeting


@pytest.mark.parametrize(
    ("helo_response", "first"),
    [
        (None, "mx.example.net Nice to meet you, [127.0.0.1]"),
        ("Hello %s, this is %s", "Hello mx.example.net, this is [127.0.0.1]"),
        ("%s", "mx.example.net"),
        ("plain", "plain"),
        ("%s %s (%s)", "mx.example.net [127.0.0.1] ()"),
        ("100%% %s", "100%% mx.example.net"),
    ],
)
async def test_helo_response(helo_response: str | None, first: str) -> None:
    options = {} if helo_response is None else {"helo_response": helo_response}
    async with serving(name="mx.example.net", **options) as served:
        client = await served.client()
        assert await client.say("HELO liar.example") == f"250 {first}"
        assert (await client.command("EHLO liar.example")).lines[0] == first


async def test_size_is_advertised_and_checked_on_mail() -> None:
    async with serving(size=1000) as served:
        client = await served.client()
        assert (await client.ehlo())["SIZE"] == "1000"
        assert await client.say("MAIL FROM:<a@example.com> SIZE=1001") == (
            "552 Error: message exceeds fixed maximum message size 1000"
        )
        assert await client.say("MAIL FROM:<a@example.com> SIZE=1000") == "250 Accepted"


async def test_size_is_checked_on_the_message_itself() -> None:
    inbox = Inbox()
    async with serving(size=1000, on_data=inbox) as served:
        client = await served.hello()
        assert await client.deliver(b"x" * 998 + b"\r\n") == "250 OK: message queued"
        assert await client.deliver(b"x" * 999 + b"\r\n") == (
            "552 Error: message exceeds fixed maximum message size 1000"
        )
        assert await client.say("NOOP") == "250 OK"
    assert len(inbox) == 1


async def test_without_size_there_is_no_limit_and_no_keyword() -> None:
    async with serving() as served:
        client = await served.client()
        assert "SIZE" not in await client.ehlo()
        assert await client.say("MAIL FROM:<a@example.com> SIZE=99999999999999") == "250 Accepted"


async def test_hide_size_hides_the_number_everywhere() -> None:
    async with serving(size=1000, hide_size=True) as served:
        client = await served.client()
        assert (await client.ehlo())["SIZE"] == ""
        too_large = "552 Error: message exceeds fixed maximum message size"
        assert await client.say("MAIL FROM:<a@example.com> SIZE=1001") == too_large
        assert await client.deliver(b"x" * 2000 + b"\r\n") == too_large


async def test_lmtp_speaks_lhlo_alone_and_answers_for_each_recipient() -> None:
    inbox = Inbox()
    async with serving(lmtp=True, on_data=inbox) as served:
        client = await served.client()
        assert await client.say("EHLO client.example") == "500 Error: EHLO not allowed in LMTP server"
        assert await client.say("HELO client.example") == "500 Error: EHLO not allowed in LMTP server"
        assert "PIPELINING" in await client.ehlo(verb="LHLO")
        assert await client.deliver(b"hello\r\n", "a@example.com", "b@example.com") == "250 OK: message accepted"
        assert await client.hear() == "250 OK: message accepted"
        assert await client.say("NOOP") == "250 OK"
    assert inbox[0].recipients == ["a@example.com", "b@example.com"]


async def test_lhlo_is_unknown_in_smtp() -> None:
    async with serving() as served:
        client = await served.client()
        assert await client.say("LHLO client.example") == "500 Error: command not recognized"


async def test_a_recipient_given_twice() -> None:
    """In SMTP the later one replaces the earlier, without case; in LMTP each keeps its place and reply."""
    twice = ("a@example.com", "b@example.com", "A@EXAMPLE.com")
    inbox = Inbox()
    async with serving(on_data=inbox) as served:
        client = await served.hello()
        await client.deliver(b"hello\r\n", *twice)
    assert inbox[0].recipients == ["A@EXAMPLE.com", "b@example.com"]
    async with serving(on_data=inbox, lmtp=True) as served:
        client = await served.hello()
        await client.deliver(b"hello\r\n", *twice)
        for _ in range(2):
            assert await client.hear() == "250 OK: message accepted"
        assert await client.say("NOOP") == "250 OK"
    assert inbox[1].recipients == list(twice)


class Notes:
    """An object with the standard logger's methods, and nothing else."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, dict[str, Any]]] = []

    def _note(self, level: str, message: str, *parts: object, extra: dict[str, Any], exc_info: object = None) -> None:
        self.records.append((level, message % parts, extra))

    def debug(self, message: str, *parts: object, **more: Any) -> None:
        self._note("debug", message, *parts, **more)

    def info(self, message: str, *parts: object, **more: Any) -> None:
        self._note("info", message, *parts, **more)

    def warning(self, message: str, *parts: object, **more: Any) -> None:
        self._note("warning", message, *parts, **more)

    def error(self, message: str, *parts: object, **more: Any) -> None:
        self._note("error", message, *parts, **more)


async def test_logger_receives_the_records_with_component_and_session() -> None:
    notes, sessions = Notes(), Sessions()
    async with serving(logger=notes, component="mx-in", on_connect=sessions) as served:
        client = await served.hello()
        await client.deliver()
        await client.say("QUIT")
    level, text, fields = next(record for record in notes.records if record[2]["tnx"] == "message")
    assert level == "info"
    assert "from@example.com" in text
    assert fields["component"] == "mx-in"
    assert fields["cid"] == sessions[0].id
    assert fields["address"] == "127.0.0.1"
    assert {record[2]["component"] for record in notes.records} == {"mx-in"}


async def test_a_standard_logger_receives_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "somewhere.else")
    async with serving(logger=logging.getLogger("somewhere.else")) as served:
        client = await served.hello()
        await client.deliver()
    assert any(
        record.name == "somewhere.else" and "from@example.com" in record.getMessage() for record in caplog.records
    )


async def test_without_a_logger_records_go_to_the_tree() -> None:
    with recorded() as records:
        async with serving() as served:
            client = await served.hello()
            await client.deliver()
    assert {record.name.partition(".")[0] for record in records} == {"pillarbox"}
    assert {record.component for record in records} == {"smtp-server"}  # type: ignore[attr-defined]


async def test_logger_true_logs_to_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    console = logging.getLogger("pillarbox.console")
    before = list(console.handlers)
    try:
        async with serving(logger=True) as served:
            client = await served.hello()
            await client.deliver()
    finally:
        console.handlers[:] = before
    assert "from@example.com" in capsys.readouterr().err


async def test_nothing_shows_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(stream: MessageStream, session: Session) -> None:
        raise RuntimeError("broken")

    async with serving(on_data=broken) as served:
        client = await served.hello()
        await client.deliver()
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""
