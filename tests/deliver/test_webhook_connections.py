"""Webhooks: connections, TLS, proxies, and what is sent with each request."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from endpoint import HELLO, NOT_NOW, SECRET, answering, endpoint, refused, webhook
from messages import message

pytestmark = pytest.mark.usefixtures("in_no_time")


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

    async def test_a_proxy_that_lets_nobody_through(self, caplog: pytest.LogCaptureFixture) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        proxy = f"http://joe:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, webhook("https://hooks.invalid/in", proxy=proxy, attempts=1) as target:
            assert await refused(target) == NOT_NOW
        assert "the proxy answers 407 (look at proxy)" in caplog.text
        assert "s3cret" not in caplog.text

    @pytest.mark.promises(
        "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
    )
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
