"""Webhooks, against a real HTTP server: what it gets, what its answers become, and what happens when it fails."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import ssl
import time
import tomllib
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Verifier

from endpoint import OTHER_SECRET, SECRET, Got, answering, endpoint
from messages import begun, message, session_for
from pillarbox import ConfigurationError, Reject, Session, TLSInfo
from pillarbox.deliver import Message, target_from_url
from pillarbox.deliver.webhook import Webhook, WebhookSettings
from pillarbox.deliver.webhook import endpoint as asking
from pillarbox.deliver.webhook.answer import Answer, NotUnderstood, answers, is_passing, refusal_for
from pillarbox.deliver.webhook.event import Event
from pillarbox.deliver.webhook.spool import MEMORY

HELLO = (
    b"Return-Path: <a@example.org>\r\nFrom: Ann <a@example.org>\r\nTo: b@example.com\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Mon, 23 Nov 2026 09:00:00 +0100\r\n"
    b"Message-ID: <1@example.org>\r\n\r\nHello.\r\n"
)


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let retries come at once."""
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(asking, "_LONGEST_WAIT", 0.002)


@asynccontextmanager
async def webhook(url: str, **settings: Any) -> AsyncIterator[Webhook]:
    target = target_from_url(url, settings)
    assert isinstance(target, Webhook)
    await target.start()
    try:
        yield target
    finally:
        await target.close()


async def posted(content: bytes = HELLO, session: Session | None = None, **settings: Any) -> Got:
    """Deliver one message that is accepted; return the request."""
    async with endpoint() as there, webhook(there.url, **settings) as target:
        answers = await target.deliver(message(content, session=session))
        assert all(isinstance(answer, str) and there.url in answer for answer in answers)
    [got] = there.got
    return got


async def refused(target: Webhook, content: bytes = HELLO, session: Session | None = None) -> str:
    try:
        [answer] = await target.deliver(message(content, session=session))
    except Reject as refusal:
        return str(refusal)
    assert isinstance(answer, Reject)
    return str(answer)


WORDS = ["reply", "recipients", "code", "text", "enhanced", "b@example.com"]
NOT_NOW = "451 4.3.0 Error: the message cannot be stored now, try again later"


class TestMultipart:
    async def test_event_and_message(self) -> None:
        got = await posted()
        parts = got.parts()
        assert list(parts) == ["event", "message"]
        assert parts["event"][0] == "application/json"
        assert parts["message"] == ("message/rfc822", HELLO)
        assert got.headers["User-Agent"].startswith("pillarbox/")

    async def test_the_length_is_known_before(self) -> None:
        got = await posted(HELLO * 10_000)
        assert int(got.headers["Content-Length"]) == len(got.body)
        assert got.parts()["message"][1] == HELLO * 10_000

    async def test_any_octets(self) -> None:
        content = b"Subject: x\r\n\r\n" + bytes(range(256)) * 5000
        assert (await posted(content)).parts()["message"][1] == content

    async def test_a_form_as_any_framework_reads_it(self) -> None:
        form: dict[str, Any] = {}

        async def read(request: web.Request) -> web.StreamResponse:
            posted = await request.post()
            file = posted["message"]
            assert isinstance(file, web.FileField)
            form.update(event=posted["event"], name=file.filename, type=file.content_type, message=file.file.read())
            return web.Response()

        read.reads_nothing = True  # type: ignore[attr-defined]
        content = HELLO + bytes(range(256))
        async with endpoint(read) as there, webhook(there.url) as target:
            await target.deliver(message(content))
        assert json.loads(form["event"])["type"] == "message.received"
        assert (form["name"], form["type"], form["message"]) == ("message.eml", "message/rfc822", content)

    async def test_a_message_cannot_end_its_part(self) -> None:
        first = await posted()
        boundary = first.headers["Content-Type"].partition("boundary=")[2]
        content = HELLO + f"\r\n--{boundary}--\r\n".encode()
        assert (await posted(content)).parts()["message"][1] == content

    @pytest.mark.parametrize("size", [0, 1, MEMORY - 1, MEMORY, MEMORY + 1, 3 * MEMORY + 5])
    @pytest.mark.parametrize("form", ["multipart", "json"])
    async def test_every_size(self, size: int, form: str) -> None:
        content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        got = await posted(content, format=form)
        data = got.data()
        raw = base64.b64decode(data["message"]["raw"]) if form == "json" else got.parts()["message"][1]
        assert raw == content
        assert (data["message"]["size"], data["message"]["sha256"]) == (size, hashlib.sha256(content).hexdigest())


class TestEvent:
    async def test_header(self) -> None:
        event = (await posted()).event()
        assert event["type"] == "message.received"
        data = event["data"]
        assert data["headers"][1:4] == [["From", "Ann <a@example.org>"], ["To", "b@example.com"], ["Subject", "Grüße"]]
        assert data["from"] == [{"name": "Ann", "address": "a@example.org"}]
        assert (data["subject"], data["date"]) == ("Grüße", "2026-11-23T09:00:00+01:00")
        assert (data["message_id"], data["text"], data["html"]) == ("<1@example.org>", "Hello.\n", None)

    async def test_envelope(self) -> None:
        session = session_for("b@example.com", "ü@example.com", smtp_utf8=True, body_type="8bitmime")
        assert session.envelope.mail_from is not None
        session.envelope.mail_from.args = {"SIZE": "12", "SMTPUTF8": True}
        session.envelope.rcpt_to[0].args = {"NOTIFY": "NEVER"}
        envelope = (await posted(session=session)).data()["envelope"]
        assert envelope == {
            "mail_from": {"address": "a@example.org", "args": {"SIZE": "12", "SMTPUTF8": True}},
            "rcpt_to": [
                {"address": "b@example.com", "args": {"NOTIFY": "NEVER"}},
                {"address": "ü@example.com", "args": {}},
            ],
            "body_type": "8bitmime",
            "smtp_utf8": True,
            "require_tls": False,
        }

    async def test_the_null_sender(self) -> None:
        data = (await posted(session=session_for(sender=""))).data()
        assert data["envelope"]["mail_from"] == {"address": "", "args": {}}

    async def test_only_the_recipients_of_this_target(self) -> None:
        session = session_for("b@example.com", "c@example.com")
        async with endpoint() as there, webhook(there.url) as target:
            one = message(HELLO, session=session)
            await target.deliver(Message(session, session.envelope.rcpt_to[1:], one))
            await target.deliver(Message(session, session.envelope.rcpt_to[:1], message(HELLO)))
        assert [to["address"] for to in there.got[0].data()["envelope"]["rcpt_to"]] == ["c@example.com"]
        # Both are halves of one message: an endpoint that knows identifiers again must not drop the second.
        assert there.got[0].headers["webhook-id"] != there.got[1].headers["webhook-id"]

    async def test_session(self) -> None:
        session = session_for()
        session.remote_address, session.remote_port = "192.0.2.7", 4711
        session.local_address, session.local_port = "192.0.2.1", 25
        session.client_hostname = "host7.example.net"
        session.host_name_appears_as = "client.example.org"
        session.opening_command = "EHLO"
        session.tls = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "mx.example.com")
        session.secure = True
        session.user = session.username = "joe"
        data = (await posted(session=session)).data()
        assert data["session"] == {
            "id": session.id,
            "remote_address": "192.0.2.7",
            "remote_port": 4711,
            "client_hostname": "host7.example.net",
            "host_name_appears_as": "client.example.org",
            "local_address": "192.0.2.1",
            "local_port": 25,
            "transmission_type": "ESMTPSA",
            "secure": True,
            "tls": {
                "version": "TLSv1.3",
                "cipher": "TLS_AES_256_GCM_SHA384",
                "servername": "mx.example.com",
                "authorized": False,
            },
            "user": "joe",
        }
        assert data["id"] == f"{session.id}.1"


class TestReference:
    async def test_the_file_is_there_while_the_endpoint_is_asked(self, tmp_path: Path) -> None:
        seen: list[tuple[bytes, int]] = []

        async def look(request: web.Request) -> web.StreamResponse:
            path = Path(json.loads(await request.read())["data"]["message"]["path"])
            seen.append((path.read_bytes(), path.stat().st_mode & 0o777))
            return web.Response()

        async with endpoint(look) as there, webhook(there.url, format="reference", folder=str(tmp_path)) as target:
            await target.deliver(message(HELLO))
        assert seen == [(HELLO, 0o640)]
        assert not list(tmp_path.iterdir())

    async def test_the_endpoint_may_take_it(self, tmp_path: Path) -> None:
        folder, mine = tmp_path / "spool", tmp_path / "mine.eml"
        folder.mkdir()

        async def take(request: web.Request) -> web.StreamResponse:
            Path(json.loads(await request.read())["data"]["message"]["path"]).rename(mine)
            return web.Response()

        async with endpoint(take) as there, webhook(there.url, format="reference", folder=str(folder)) as target:
            await target.deliver(message(HELLO * 10_000))
        assert mine.read_bytes() == HELLO * 10_000
        assert not list(folder.iterdir())

    @pytest.mark.parametrize("status", [422, 403, 503])
    async def test_refused(self, tmp_path: Path, status: int) -> None:
        async with (
            endpoint(answering(status)) as there,
            webhook(there.url, format="reference", folder=str(tmp_path)) as target,
        ):
            await refused(target)
        assert not list(tmp_path.iterdir())

    async def test_a_start_removes_what_the_dead_have_left_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "msg_old_1_abcdef.eml").write_bytes(b"x")
        (tmp_path / "msg_old_2_abcdef.part").write_bytes(b"x")
        (tmp_path / "other.eml").write_bytes(b"x")
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def hang(_: web.Request) -> web.StreamResponse:
            asked.set()
            await go_on.wait()
            return web.Response()

        async with endpoint(hang) as there, webhook(there.url, format="reference", folder=str(tmp_path)) as target:
            assert [path.name for path in tmp_path.iterdir()] == ["other.eml"]
            delivery = asyncio.ensure_future(target.deliver(message(HELLO)))
            await asyncio.wait_for(asked.wait(), 10)
            async with webhook(there.url, format="reference", folder=str(tmp_path)):
                assert len(list(tmp_path.iterdir())) == 2  # what lives stays
            go_on.set()
            await delivery
        assert [path.name for path in tmp_path.iterdir()] == ["other.eml"]


class TestSignature:
    @pytest.mark.parametrize("form", ["multipart", "json", "reference"])
    @pytest.mark.parametrize("content", [HELLO, HELLO * 10_000], ids=["small", "large"])
    async def test_the_official_library_verifies_the_body(self, form: str, content: bytes, tmp_path: Path) -> None:
        got = await posted(content, format=form, secret=SECRET, folder=str(tmp_path))
        Verifier(SECRET).verify(got.body, dict(got.headers), json_parse=False)
        assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 30

    async def test_the_official_library_verifies_the_event_of_a_form(self) -> None:
        got = await posted(HELLO + b"\xff\xfe", secret=SECRET)  # no text: the body is more than that library can take
        parts = got.parts()
        event = Verifier(SECRET).verify(parts["event"][1], dict(got.headers))
        assert event["data"]["message"]["sha256"] == hashlib.sha256(parts["message"][1]).hexdigest()
        assert got.is_signed_as(got.body)

    async def test_what_was_changed_is_not_signed(self) -> None:
        got = await posted(format="json", secret=SECRET)
        assert got.is_signed_as(got.body)
        assert not got.is_signed_as(got.body.replace(b"Hello", b"Hullo"))
        assert not got.is_signed_as(got.body, OTHER_SECRET)

    async def test_several_secrets(self) -> None:
        got = await posted(format="json", secret=[SECRET, OTHER_SECRET])
        assert got.is_signed_as(got.body)
        assert got.is_signed_as(got.body, OTHER_SECRET)

    async def test_secrets_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "secrets"
        file.write_text(f"# the new one\n{SECRET}\n\n{OTHER_SECRET}\n")
        got = await posted(format="json", secret_file=str(file))
        assert got.is_signed_as(got.body)
        assert got.is_signed_as(got.body, OTHER_SECRET)

    async def test_without_a_secret_there_is_none(self) -> None:
        got = await posted()
        assert "webhook-signature" not in got.headers
        assert got.headers["webhook-id"].startswith("msg_")
        assert "." not in got.headers["webhook-id"]


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "reply"),
        [
            (400, "554 5.6.0 Error: the message was refused"),
            (406, "554 5.6.0 Error: the message was refused"),
            (410, "550 5.2.1 Error: mailbox disabled, not accepting messages"),
            (413, "552 5.3.4 Error: message too large"),
            (415, "554 5.6.1 Error: the message has media that are not supported here"),
            (422, "554 5.6.0 Error: the message was refused"),
        ],
    )
    async def test_the_message_is_refused(self, status: int, reply: str, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url) as target:
            assert await refused(target) == reply
        assert there.begun == 1
        assert not caplog.records

    @pytest.mark.parametrize(
        ("status", "logged"),
        [
            (401, "status 401 (look at headers and secret)"),
            (403, "status 403 (look at headers and secret)"),
            (404, "status 404 (look at the URL)"),
            (405, "status 405 (look at the URL: it takes no POST)"),
            (418, "status 418"),
            (501, "status 501"),
        ],
    )
    async def test_something_is_wrong_here(self, status: int, logged: str, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert there.begun == 1
        assert caplog.messages == [f"cannot hand a message to {there.url}: {logged}"]

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 522])
    async def test_tried_again_and_given_up(self, status: int, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url, attempts=3) as target:
            full = "452 4.3.1 Error: insufficient system storage, try again later"
            assert await refused(target) == (full if status == 507 else NOT_NOW)
        assert there.begun == 3
        [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert error.getMessage() == f"cannot hand a message to {there.url}: status {status}"

    @pytest.mark.parametrize("status", [200, 201, 202, 204])
    async def test_accepted(self, status: int) -> None:
        async with endpoint(answering(status)) as there, webhook(there.url + "?token=x") as target:
            [place] = await target.deliver(message(HELLO))
        assert place == f"{there.url}?… ({there.got[0].headers['webhook-id']})"
        assert there.got[0].path == "/in?token=x"

    async def test_a_reply_of_its_own(self) -> None:
        own = {"reply": {"code": 550, "text": "No such\r\nuser", "enhanced": "5.1.1"}}
        async with endpoint(answering(200, own), answering(503, own)) as there, webhook(there.url) as target:
            for _ in range(2):
                [answer] = await target.deliver(message(HELLO))
                assert isinstance(answer, Reject)
                assert (answer.code, answer.text, answer.enhanced) == (550, "No such\r\nuser", "5.1.1")
        assert there.begun == 2  # a reply is the endpoint's decision: it is not asked again

    async def test_a_reply_without_text(self) -> None:
        async with (
            endpoint(answering(200, {"reply": {"code": 452}}), answering(200, {"reply": {"code": 550}})) as there,
            webhook(there.url) as target,
        ):
            answers = [str((await target.deliver(message(HELLO)))[0]) for _ in range(2)]
        assert answers == [
            "452 Error: the message cannot be stored now, try again later",
            "550 Error: the message was refused",
        ]

    async def test_a_reply_for_each_recipient(self) -> None:
        own = {"recipients": {"c@EXAMPLE.com": {"code": 550, "text": "No"}, "d@example.com": {"code": 250}}}
        session = session_for("b@example.com", "C@example.com", "d@example.com")
        async with endpoint(answering(200, own)) as there, webhook(there.url) as target:
            answers = await target.deliver(message(HELLO, session=session))
        assert [str(answer).partition(" ")[0] for answer in answers] == [there.url, "550", there.url]

    async def test_all_refused_but_one(self) -> None:
        own = {"reply": {"code": 450, "text": "Later"}, "recipients": {"b@example.com": {"code": 250}}}
        session = session_for("b@example.com", "c@example.com")
        async with endpoint(answering(200, own)) as there, webhook(there.url) as target:
            answers = await target.deliver(message(HELLO, session=session))
        assert [str(answer).partition(" ")[0] for answer in answers] == [there.url, "450"]

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, {"reply": "ok"}),
            (200, {"reply": {"code": "550"}}),
            (200, {"reply": {"code": 354}}),
            (200, {"reply": {"code": 421}}),
            (200, {"reply": {"code": 99}}),
            (200, {"reply": {"code": 550, "text": 5}}),
            (200, {"reply": {"code": 550, "text": "x" * 1001}}),
            (200, {"reply": {"code": 550, "enhanced": "4.1.1"}}),
            (200, {"reply": {"code": 550, "enhanced": "5.1.1\r\n250 ok"}}),
            (200, {"recipients": ["b@example.com"]}),
            (200, {"recipients": {"other@example.com": {"code": 550}}}),
            (422, {"reply": {"code": 250}}),
        ],
    )
    async def test_what_cannot_be_understood_is_never_taken_for_yes(
        self, status: int, body: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with endpoint(answering(status, body)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert "its answer cannot be understood: " in caplog.text

    @pytest.mark.parametrize(
        "answer",
        [
            answering(200, {"ok": True}),
            answering(200, ["x"]),
            answering(200, {"x": "y" * 100_000}),
            answering(200, {"reply": {"code": 250, "text": "thanks"}}),
        ],
    )
    async def test_what_says_nothing_of_it_counts_by_its_status(self, answer: Any) -> None:
        async with endpoint(answer) as there, webhook(there.url) as target:
            assert isinstance((await target.deliver(message(HELLO)))[0], str)

    @given(
        st.integers(200, 599),
        st.recursive(
            st.none() | st.integers() | st.text() | st.sampled_from(["b@example.com", "4.1.1", 250, 450, 550]),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner),
        ),
    )
    @hypothesis_settings(max_examples=150, deadline=None)
    def test_nothing_that_is_answered_raises(self, status: int, body: Any) -> None:
        try:
            answer = Answer.from_body(json.dumps(body).encode(), "application/json")
            [outcome] = answers(status, answer, session_for().envelope.rcpt_to, "place")
        except NotUnderstood:
            return
        assert isinstance(outcome, str) <= (200 <= status <= 299)

    @pytest.mark.parametrize("body", [b"", b"{", b"[" * 60_000, b"\xff", b"{}" * 40_000, b"null"])
    def test_what_is_no_object_says_nothing(self, body: bytes) -> None:
        assert Answer.from_body(body, "application/json").is_silent

    async def test_a_redirection_to_nowhere(self, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint(answering(302, Location="http://[")) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert "it redirects to what is no URL" in caplog.text

    async def test_no_redirection_is_followed(self, caplog: pytest.LogCaptureFixture) -> None:
        async with endpoint() as elsewhere:
            moved = answering(307, Location=elsewhere.url + "?secret=1")
            async with endpoint(moved) as there, webhook(there.url) as target:
                assert await refused(target) == NOT_NOW
        assert not elsewhere.got
        assert caplog.messages == [
            f"cannot hand a message to {there.url}: status 307 (it redirects to {elsewhere.url}: write that)"
        ]


class TestTrouble:
    async def test_the_next_attempt_is_the_same_event(self) -> None:
        async with (
            endpoint(answering(503), answering(200)) as there,
            webhook(there.url, secret=SECRET, format="json") as target,
        ):
            assert isinstance((await target.deliver(message(HELLO)))[0], str)
        first, second = there.got
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert second.is_signed_as(second.body)

    async def test_a_large_message_is_sent_whole_again(self) -> None:
        async with endpoint(answering(503), answering(200)) as there, webhook(there.url) as target:
            await target.deliver(message(HELLO * 10_000))
        assert [got.parts()["message"][1] == HELLO * 10_000 for got in there.got] == [True, True]

    async def test_retry_after(self) -> None:
        async with endpoint(answering(429, Retry_After="1"), answering(200)) as there, webhook(there.url) as target:
            begun = time.monotonic()
            await target.deliver(message(HELLO))
        assert time.monotonic() - begun >= 1
        assert int(there.got[1].headers["webhook-timestamp"]) > int(there.got[0].headers["webhook-timestamp"])

    @pytest.mark.parametrize("after", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
    async def test_retry_after_more_than_the_client_waits(self, after: str) -> None:
        async with endpoint(answering(503, Retry_After=after)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert there.begun == 1

    @pytest.mark.parametrize("after", ["", "x", "-1", "Fri, 31 Dec 1999 23:59:59 GMT", "²"])
    async def test_retry_after_that_asks_for_nothing(self, after: str) -> None:
        async with endpoint(answering(503, Retry_After=after), answering(200)) as there, webhook(there.url) as target:
            await target.deliver(message(HELLO))
        assert there.begun == 2

    async def test_nobody_there(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with webhook(f"http://127.0.0.1:{port}/in?token=xyzzy", attempts=2) as target:
            assert await refused(target) == NOT_NOW
        assert "Cannot connect to host 127.0.0.1" in caplog.text
        assert "xyzzy" not in caplog.text

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        ],
        ids=["closes", "no HTTP", "half an answer"],
    )
    async def test_a_broken_server(self, octets: bytes, caplog: pytest.LogCaptureFixture) -> None:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await reader.readuntil(b"--\r\n")
            writer.write(octets)
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with webhook(f"http://127.0.0.1:{port}/?token=xyzzy", attempts=2) as target:
                assert await refused(target) == NOT_NOW
        assert asked == 2
        assert "xyzzy" not in caplog.text

    async def test_a_hanging_endpoint(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        ends = asyncio.Event()

        async def hang(_: web.Request) -> web.StreamResponse:
            await ends.wait()
            return web.Response()

        async with endpoint(hang) as there:
            async with webhook(there.url, give_up_after=0.3, format="reference", folder=str(tmp_path)) as target:
                assert await refused(target) == NOT_NOW
                assert not list(tmp_path.iterdir())
            async with webhook(there.url, request_timeout=0.1, attempts=2) as target:
                assert await refused(target) == NOT_NOW
            ends.set()
        assert there.begun == 3
        assert "no answer in 0.3 seconds" in caplog.text

    async def test_an_endpoint_that_accepts_no_connection(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
            address = full.getsockname()
            for _ in range(8):  # until the kernel lets no more in
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
            async with webhook(f"http://127.0.0.1:{address[1]}/", connect_timeout=0.2, attempts=1) as target:
                assert await refused(target) == NOT_NOW
        assert "Timeout" in caplog.text

    async def test_an_endpoint_that_does_not_read(self) -> None:
        stop = asyncio.Event()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stop.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024) as server:
            port = server.sockets[0].getsockname()[1]
            async with webhook(f"http://127.0.0.1:{port}/", give_up_after=0.5) as target:
                assert await refused(target, b"x" * 20_000_000) == NOT_NOW
            stop.set()

    async def test_an_answer_before_all_was_read_counts(self) -> None:
        async def too_large(_: web.Request) -> web.StreamResponse:
            return web.Response(status=413)  # aiohttp, as nginx, throws away for a while what still comes

        too_large.reads_nothing = True  # type: ignore[attr-defined]
        async with endpoint(too_large) as there, webhook(there.url) as target:
            [answer] = await target.deliver(message(*[b"x" * 65536] * 800))
        assert str(answer) == "552 5.3.4 Error: message too large"


class TestConnections:
    async def test_one_is_used_again(self) -> None:
        async with endpoint() as there, webhook(there.url) as target:
            for _ in range(3):
                await target.deliver(message(HELLO))
        assert len({got.peer for got in there.got}) == 1

    async def test_not_more_than_concurrency(self) -> None:
        at_once, most = 0, 0
        full = asyncio.Event()

        async def count(_: web.Request) -> web.StreamResponse:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            if at_once == 2:
                full.set()
            await full.wait()
            at_once -= 1
            return web.Response()

        async with endpoint(count) as there, webhook(there.url, concurrency=2) as target:
            await asyncio.gather(*(target.deliver(message(HELLO)) for _ in range(6)))
        assert (most, there.begun) == (2, 6)

    async def test_unix_socket(self, tmp_path: Path) -> None:
        path = str(tmp_path / "app.sock")
        async with endpoint(path=path), webhook("http://localhost/in", socket=path) as target:
            assert isinstance((await target.deliver(message(HELLO)))[0], str)

    async def test_a_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with endpoint() as proxy, webhook("http://hooks.invalid/in", proxy=proxy.url) as target:
            await target.deliver(message(HELLO))
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # what the configuration does not say does not count
            async with webhook(proxy.url) as direct:
                await direct.deliver(message(HELLO))
        assert proxy.got[0].headers["Host"] == "hooks.invalid"

    async def test_headers_are_sent_and_never_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        headers = {"Authorization": "Bearer xyzzy", "X-Tenant": "7"}
        async with (
            endpoint(answering(403), answering(200)) as there,
            webhook(there.url, headers=headers, secret=SECRET) as target,
        ):
            await refused(target)
            await target.deliver(message(HELLO))
            assert "xyzzy" not in repr(target.settings)
            assert SECRET not in repr(target.settings)
        assert there.got[1].headers["Authorization"] == "Bearer xyzzy"
        assert there.got[1].headers["X-Tenant"] == "7"
        assert "xyzzy" not in caplog.text
        assert SECRET not in caplog.text

    async def test_a_password_in_the_url(self, caplog: pytest.LogCaptureFixture) -> None:
        async with (
            endpoint(answering(403), answering(200)) as there,
            webhook(there.url.replace("//", "//joe:xyzzy@")) as target,
        ):
            assert target.url == there.url
            await refused(target)
            [place] = await target.deliver(message(HELLO))
        assert "xyzzy" not in f"{place} {caplog.text}"
        assert there.got[1].headers["Authorization"] == "Basic " + base64.b64encode(b"joe:xyzzy").decode()


class TestTLS:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> trustme.CA:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
        client = authority.issue_cert("client@example.com")
        client.private_key_pem.write_to_path(str(tmp_path / "client.key"))
        client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.crt"))
        return authority

    @staticmethod
    def context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        authority.configure_trust(context)
        return context

    async def test_an_authority_of_ones_own(self, authority: trustme.CA, tmp_path: Path) -> None:
        async with (
            endpoint(tls=self.context(authority)) as there,
            webhook(there.url, ca=str(tmp_path / "ca.crt")) as target,
        ):
            assert isinstance((await target.deliver(message(HELLO * 10_000)))[0], str)

    async def test_a_certificate_that_does_not_verify(
        self, authority: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with endpoint(tls=self.context(authority)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        async with (
            endpoint(tls=self.context(authority, "other.example.com")) as there,
            webhook(there.url, ca=str(tmp_path / "ca.crt")) as target,
        ):
            assert await refused(target) == NOT_NOW
        assert not there.got
        assert caplog.text.count("certificate verify failed") == 2

    async def test_a_client_certificate(self, authority: trustme.CA, tmp_path: Path) -> None:
        context = self.context(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        own = {"cert": str(tmp_path / "client.crt"), "key": str(tmp_path / "client.key")}
        async with endpoint(tls=context) as there:
            async with webhook(there.url, ca=str(tmp_path / "ca.crt"), **own) as target:
                assert isinstance((await target.deliver(message(HELLO)))[0], str)
            async with webhook(there.url, ca=str(tmp_path / "ca.crt"), attempts=1) as target:
                assert await refused(target) == NOT_NOW


class TestSpool:
    async def test_memory_has_a_bound(self) -> None:
        """50 MB go through in blocks: message, signature, search for parts and request."""

        async def count(request: web.Request) -> web.StreamResponse:
            size = 0
            async for block, _ in request.content.iter_chunks():
                size += len(block)
            return web.Response(status=200 if size > 50_000_000 else 500)

        count.reads_nothing = True  # type: ignore[attr-defined]
        head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello.\r\n--b\r\n\r\n"
        block = b"0123456789abcdef" * 4096
        async with endpoint(count) as there, webhook(there.url, secret=SECRET) as target:
            tracemalloc.start()
            try:
                answers = await target.deliver(message(head, *(block for _ in range(800))))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert isinstance(answers[0], str)
        assert peak < 3_000_000

    @pytest.mark.parametrize("form", ["multipart", "reference"])
    @pytest.mark.parametrize("size", [10, 3 * MEMORY])
    async def test_a_client_that_disappears_leaves_nothing(self, form: str, size: int, tmp_path: Path) -> None:
        async with endpoint() as there, webhook(there.url, format=form, folder=str(tmp_path)) as target:
            await (await begun(target, b"x" * size, b"y")).abort()
            await (await begun(target, b"x" * size, b"y")).cancel()
            with pytest.raises(ConnectionError):
                await target.deliver(message(b"x" * size, error=ConnectionError("gone")))
        assert not there.got
        assert not list(tmp_path.iterdir())

    async def test_cancelled_while_the_endpoint_is_asked(self, tmp_path: Path) -> None:
        async def hang(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            return web.Response()

        async with endpoint(hang) as there, webhook(there.url, format="reference", folder=str(tmp_path)) as target:
            delivery = asyncio.ensure_future(target.deliver(message(HELLO)))
            await asyncio.wait_for(there.asked.wait(), 10)
            assert len(list(tmp_path.iterdir())) == 1
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
    async def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the spool closes it
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        async with endpoint() as there, webhook(there.url) as target:
            reply = await refused(target, b"x" * 3 * MEMORY)
        assert reply == "452 4.3.1 Error: insufficient system storage, try again later"
        assert "No space left on device" in caplog.text
        assert not there.got

    async def test_a_folder_that_has_gone(self, tmp_path: Path) -> None:
        folder = tmp_path / "spool"
        folder.mkdir()
        async with endpoint() as there, webhook(there.url, folder=str(folder)) as target:
            folder.rmdir()
            assert await refused(target, b"x" * 3 * MEMORY) == NOT_NOW
            await target.deliver(message(HELLO))  # a small one needs no file

    @pytest.mark.parametrize(("form", "limit"), [("multipart", 1000), ("json", 1000), ("json", None)])
    async def test_too_large(self, form: str, limit: int | None) -> None:
        size = limit or 10 * 1024 * 1024
        settings = {"max_size": limit} if limit else {}
        async with endpoint() as there, webhook(there.url, format=form, **settings) as target:
            assert await refused(target, b"x" * (size + 1)) == "552 5.3.4 Error: message too large"
            await target.deliver(message(b"x" * size))
            session = session_for()
            assert session.envelope.mail_from is not None
            for announced, taken in ((size, True), (size + 1, False)):
                session.envelope.mail_from.args["SIZE"] = str(announced)
                if taken:
                    await target.verify(session.envelope.rcpt_to[0], session)
                else:
                    with pytest.raises(Reject, match="message too large"):
                        await target.verify(session.envelope.rcpt_to[0], session)
        assert len(there.got) == 1


class TestConfiguration:
    @pytest.mark.parametrize(
        ("url", "settings", "message"),
        [
            ("http:", {}, "names no host"),
            ("https:///in", {}, "names no host"),
            ("http://x:port/", {}, "the URL of the webhook is none"),
            ("http://[::1/", {}, "the URL of the webhook is none"),
            ("http://ho st/", {}, "names no host"),
            ("https://x/#y", {}, "a fragment"),
            ("http://x/", {"ca": "ca.pem"}, "ca and cert are for https"),
            ("https://x/", {"socket": "app.sock"}, "to a Unix socket there is no TLS"),
            ("https://u:xyzzy@x/", {"headers": {"authorization": "y"}}, "a user in the URL and Authorization"),
            ("https://x/", {"format": "xml"}, "format: .*'multipart', 'json' or 'reference'"),
            ("https://x/", {"format": "reference"}, "needs a folder"),
            ("https://x/", {"secret": "xyzzy"}, "a secret is written whsec_"),
            ("https://x/", {"secret": "whsec_xyzzy"}, "a secret is written whsec_"),
            ("https://x/", {"secret": SECRET, "secret_file": "x"}, "exclude each other"),
            ("https://x/", {"key": "x"}, "key needs cert"),
            ("http://x/", {"socket": "x", "proxy": "http://p"}, "exclude each other"),
            ("https://x/", {"headers": {"a b": "c"}}, "is no name of a header field"),
            ("https://x/", {"headers": {"Content-Type": "c"}}, "is set by the program itself"),
            ("https://x/", {"headers": {"Webhook-Id": "c"}}, "is set by the program itself"),
            ("https://x/", {"headers": {"a": "xyzzy\r\nb: c"}}, "the value of a has characters"),
            ("https://x/", {"attempts": 0}, "attempts: "),
            ("https://x/", {"request_timeout": 0}, "request_timeout: "),
            ("https://x/", {"give_up_after": 601}, "give_up_after: "),
            ("https://x/", {"formt": "json"}, "unknown key 'formt': did you mean 'format'"),
        ],
    )
    def test_wrong(self, url: str, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message) as error:
            target_from_url(url, settings)
        assert "xyzzy" not in str(error.value)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"secret_file": "none"}, "secret_file none: no such file or directory"),
            ({"secret_file": "empty"}, "secret_file empty: there is no secret in it"),
            ({"secret_file": "bad"}, "secret_file bad: a secret is written"),
            ({"ca": "none"}, "ca none: no such file or directory"),
            ({"ca": "bad"}, "ca bad: "),
            ({"cert": "none"}, "cert none: no such file or directory"),
            ({"cert": "bad"}, "cert bad: "),
            ({"folder": "none"}, "folder none: there is no such folder"),
            ({"folder": "bad"}, "folder bad: there is no such folder"),
        ],
    )
    async def test_wrong_at_the_start(
        self, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").write_text("# none\n")
        (tmp_path / "bad").write_text("xyzzy\n")
        target = target_from_url("https://hooks.example.com/in", settings)
        with pytest.raises(ConfigurationError, match=message) as error:
            await target.start()
        await target.close()
        assert "xyzzy" not in str(error.value)

    def test_without_the_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pillarbox.deliver.webhook.settings.find_spec", lambda name: None)
        with pytest.raises(ConfigurationError, match=r"pip install 'pillarbox\[http\]'"):
            target_from_url("https://hooks.example.com/in")

    def test_what_is_shown(self) -> None:
        assert target_from_url("https://u:p@[::1]:8443/in?token=1").url == "https://[::1]:8443/in?…"

    async def test_close_without_a_start(self) -> None:
        await target_from_url("https://hooks.example.com/in").close()


class TestPage:
    """docs/target-webhook.md says what is so."""

    PAGE = (Path(__file__).parents[2] / "docs" / "target-webhook.md").read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.PAGE, re.MULTILINE | re.DOTALL)

    def test_the_event(self) -> None:
        shown = self.blocks("json")[0]
        event = Event.model_validate_json(shown, strict=True)
        assert json.loads(event.model_dump_json(by_alias=True)) == json.loads(shown)

    def test_the_answer(self) -> None:
        answer = Answer.from_body(self.blocks("json")[1].encode(), "application/json")
        assert answer.reply is not None
        assert [reply.code for reply in answer.recipients.values()] == [550, 452]

    def test_the_settings(self) -> None:
        table = self.PAGE.partition("| key | default | |")[2]
        assert {
            name
            for row in table.splitlines()
            if row.startswith("| `")
            for name in re.findall("`(.*?)`", row.split("|")[1])
        } == set(WebhookSettings.model_fields)
        [configured] = tomllib.loads(self.blocks("toml")[0])["deliver"]
        assert target_from_url(configured["url"], {"secret_file": configured["secret_file"]})

    def test_the_table_of_replies(self) -> None:
        rows = {
            row.split("|")[1].strip(): row.split("|")[2:4] for row in self.PAGE.splitlines() if row.startswith("| ")
        }
        listed = {
            status: cells
            for codes, cells in rows.items()
            if re.fullmatch(r"(\d{3}( to \d{3})?(, )?)+", codes)
            for span in codes.split(", ")
            for status in range(int(span[:3]), int(span[-3:]) + 1)
        }
        others = rows["3xx, 401, 403, 404, 405 and all others"]
        for status in range(300, 600):
            reply, again = (cell.strip() for cell in listed.get(status, others))
            refusal = refusal_for(status)
            assert (reply, again) == (f"{refusal.code} {refusal.enhanced}", "yes" if is_passing(status) else "no")

    async def test_the_python_of_the_page(self) -> None:
        names: dict[str, Any] = {}
        for block in self.blocks("python"):
            exec(block, names)
        octets = bytes(range(256)) * 3
        content = b"Content-Type: application/x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(
            octets
        )
        got = await posted(content, secret=[OTHER_SECRET, SECRET])
        event, raw = got.parts()["event"][1], got.parts()["message"][1]
        data = names["verified"](got.headers, event, raw, SECRET)
        assert names["attachment"](raw, data["attachments"][0]) == octets
        for changed in ((event + b" ", raw), (event, raw + b" ")):
            with pytest.raises(PermissionError):
                names["verified"](got.headers, *changed, SECRET)
