"""Webhooks and their other end: an HTTP server that keeps what it gets and answers what the test says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any

from aiohttp import web

from messages import message
from pillarbox import Reject, Session
from pillarbox.deliver import target_from_url
from pillarbox.deliver.webhook import Webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two octets...").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret, of 32 octets too").decode()

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Got:
    """One request."""

    headers: Any
    body: bytes
    path: str
    peer: Any

    def parts(self) -> dict[str, tuple[str, bytes]]:
        """Return the fields of multipart/form-data: name → type and content."""
        boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        empty, *parts, end = (b"\r\n" + self.body).split(b"\r\n" + boundary)
        assert (empty, end) == (b"", b"--\r\n")
        return dict(map(_part, parts))

    def event(self) -> Any:
        """Return the JSON, wherever it stands."""
        if self.headers["Content-Type"] == "application/json":
            return json.loads(self.body)
        return json.loads(self.parts()["event"][1])

    def data(self) -> Any:
        """Return what the event says."""
        return self.event()["data"]

    def is_signed_as(self, payload: bytes, secret: str = SECRET) -> bool:
        """Check a signature by hand: octets of any kind."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + payload
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return f"v1,{expected}" in self.headers["webhook-signature"].split()


def _part(octets: bytes) -> tuple[str, tuple[str, bytes]]:
    head, _, content = octets.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    fields = message_from_bytes(head)
    name = fields.get_param("name", header="Content-Disposition")
    return str(name), (fields.get_content_type(), content)


@dataclass
class Endpoint:
    """The server; ``answers`` are used one after the other, the last one for ever."""

    url: str = ""
    got: list[Got] = field(default_factory=list)  # the requests, as far as they were read here
    answers: list[Answer] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        answer = self.answers[min(self.begun, len(self.answers) - 1)] if self.answers else None
        self.begun += 1
        if getattr(answer, "reads_nothing", False):
            assert answer is not None
            return await answer(request)
        body = await request.read()
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.got.append(Got(request.headers, body, request.path_qs, peer))
        self.asked.set()
        return await answer(request) if answer else web.Response()


def answering(status: int, body: Any = None, **headers: str) -> Answer:
    """Return an answer with a status, and with JSON where there is a body."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is None:
            return web.Response(status=status, headers=named)
        return web.json_response(body, status=status, headers=named)

    return answer


@asynccontextmanager
async def endpoint(
    *answers: Answer, tls: ssl.SSLContext | None = None, path: str | None = None, port: int = 0
) -> AsyncIterator[Endpoint]:
    """Run a server on a free port, or on a Unix socket."""
    served = Endpoint(answers=list(answers))
    app = web.Application(client_max_size=200 * 1024 * 1024)
    app.router.add_route("*", "/{tail:.*}", served.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.UnixSite(runner, path) if path else web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    if path:
        served.url = "http://localhost/in"
    else:
        number = runner.addresses[0][1]
        served.url = f"{'https' if tls else 'http'}://127.0.0.1:{number}/in"
    try:
        yield served
    finally:
        await runner.cleanup()


# --- The target

HELLO = (
    b"Return-Path: <a@example.org>\r\nFrom: Ann <a@example.org>\r\nTo: b@example.com\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Mon, 23 Nov 2026 09:00:00 +0100\r\n"
    b"Message-ID: <1@example.org>\r\n\r\nHello.\r\n"
)
NOT_NOW = "451 4.3.0 Error: the message cannot be stored now, try again later"


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
