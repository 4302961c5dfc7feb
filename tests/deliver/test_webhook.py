"""Webhooks, against a real HTTP server: what it gets, in each format, and how it is signed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier

from endpoint import HELLO, OTHER_SECRET, SECRET, answering, endpoint, posted, refused, webhook
from messages import message, session_for
from pillarbox import TLSInfo
from pillarbox.deliver import Message
from pillarbox.deliver.spool import BUFFER as MEMORY

pytestmark = pytest.mark.usefixtures("in_no_time")


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
